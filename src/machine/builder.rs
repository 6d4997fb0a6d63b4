//! From a specification to a machine: opens, places, connects.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use super::{Error, Machine, MachineIo, choose};
use crate::arch::x86_64::boot::FIRMWARE_MSRS;
use crate::arch::x86_64::cpuid::Topology;
use crate::board::ioapic::{self, IoApic};
use crate::board::layout;
use crate::bus::Bus;
use crate::devices::balloon::BalloonHandle;
use crate::devices::builder::{PlacedPorts, Statistics};
use crate::devices::console_output::{ConsoleHub, ConsoleWatcher, PanicWatcher};
use crate::devices::{self, AttachError, Builder, PlainConsole, Spec};
use crate::engine::{IoAddr, Vcpu, Vm, VmConfig};
use crate::firmware::power::{self, PowerPorts};
use crate::firmware::{self, IsaDevice};
use crate::host::clock;
use crate::host::event_loop::EventLoop;
use crate::host::limits;
use crate::kernel;
use crate::loader::{self, Boot, Initrd, cmdline};
use crate::machine::control::Control;
use crate::machine::cpus::Cpus;
use crate::machine::first_output::FirstOutput;
use crate::machine::in_step::InStep;
use crate::machine::placement::{Around, Placement};
use crate::machine::quota::Quota;
use crate::mem::{Backing, Ram};
use crate::spec::{MachineSpec, Size, SpecError, Transport};

/// Pin 0 stays unused (kernels take interrupt 0 for none) and so does 2 (they keep it for the cascade of old PCs);
/// 1 is the serial ports, 3 the power button; then one for each
/// virtio-mmio device.
const FIRST_FREE_PIN: u32 = 4;
/// The power button's interrupt.
const POWER_GSI: u32 = 3;
/// CONFIG_ADDRESS of PCI configuration mechanism #1 (PCI 3.0, section 3.2.2.3.2), which this machine does not have.
const PCI_CONFIG_ADDRESS: u16 = 0xcf8;
/// An I/O APIC has at most 240 (its version register says so in 8 bits, and index registers end at FFh).
const MAX_PINS: u32 = 120;

/// What a machine keeps alive beside CPUs and loops.
pub(super) struct Parts {
    pub engine: &'static str,
    pub notice: Option<String>,
    pub kernel: loader::Report,
    pub consoles: Arc<ConsoleHub>,
    pub first_output: Arc<FirstOutput>,
    pub power: Arc<PowerPorts>,
    pub statistics: BTreeMap<String, Statistics>,
    pub balloon: Option<BalloonHandle>,
    pub ram: Ram,
    _placement: Placement,
    _vm: Arc<dyn Vm>,
}

/// The kernel command line that a machine of this specification gets.
pub fn kernel_command_line(spec: &MachineSpec) -> Result<String, Error> {
    command_line(spec, &spec.devices()?)
}

fn command_line(spec: &MachineSpec, devices: &[Box<dyn Spec>]) -> Result<String, Error> {
    let mut device_words: Vec<_> = devices.iter().flat_map(|device| device.kernel_words()).collect();
    let better_console = device_words.iter().any(|word| word.starts_with("console="));
    let plain: Vec<_> = devices.iter().filter_map(|device| device.plain_console()).collect();
    // Who wants no messages needs no early console for them, which costs two exits a character.
    let quiet = spec.append.iter().flat_map(|words| words.split_whitespace()).any(|word| word == "quiet");
    let word = |console: &PlainConsole| if better_console { console.early } else { console.main }.to_string();
    device_words.extend(plain.iter().filter(|_| !(better_console && quiet)).map(word));
    let uarts = devices.iter().map(|device| device.serial_ports()).max().unwrap_or(0);
    let machine = cmdline::Machine { device_words: &device_words, uarts, kernel_under_test: false };
    let defaults = cmdline::default_words(&machine);
    let append: Vec<_> = spec.append.iter().cloned().collect();
    Ok(cmdline::compose(&defaults, spec.cmdline.as_deref(), &append)?)
}

/// A machine about to be made: what a specification says, and what only a running program can hand over.
pub struct MachineBuilder<'a> {
    spec: &'a MachineSpec,
    initrds: Vec<File>,
    watchers: Vec<Arc<dyn ConsoleWatcher>>,
}

impl std::fmt::Debug for MachineBuilder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MachineBuilder").field("spec", self.spec).finish_non_exhaustive()
    }
}

impl<'a> MachineBuilder<'a> {
    pub(super) fn new(spec: &'a MachineSpec) -> Self {
        Self { spec, initrds: Vec::new(), watchers: Vec::new() }
    }

    /// One more initial RAM disk, after those of the specification: an open file, such as one in memory.
    #[must_use]
    pub fn initrd(mut self, archive: File) -> Self {
        self.initrds.push(archive);
        self
    }

    /// Somebody who sees all output of all consoles.
    #[must_use]
    pub fn watch_consoles(mut self, watcher: Arc<dyn ConsoleWatcher>) -> Self {
        self.watchers.push(watcher);
        self
    }

    /// Builds the machine: opens its files, loads its kernel. Its CPUs do not run yet.
    pub fn build(self) -> Result<Machine, Error> {
        build(self)
    }
}

fn build(MachineBuilder { spec, initrds, watchers }: MachineBuilder<'_>) -> Result<Machine, Error> {
    let begin = clock::monotonic_nanos();
    spec.validate()?;
    let wanted = spec.devices()?;
    let control = Control::new().map_err(|e| Error::Host("create an eventfd", e))?;
    // More than is free may be fine: guests seldom use all of theirs. More than there is would end by the OOM killer.
    let host = limits::memory();
    if spec.memory.0 > host {
        return Err(Error::MoreThanTheHost(spec.memory, Size(host >> 20 << 20)));
    }
    let ram = Ram::new(&layout::ram_layout(spec.memory.0), Backing::Anonymous)?;
    let choose::Chosen { engine, notice } = choose::open(spec.engine_wanted())?;
    let deterministic = spec.deterministic();
    let pins = pins(spec.transport, wanted.len());
    let vm = engine.create_vm(&ram, &VmConfig { cpus: spec.cpus, ioapic_pins: pins, deterministic })?;
    let bus = Arc::new(Bus::default());
    let ioapic = IoApic::new(pins, vm.msi())?;
    bus.insert(IoAddr::Mmio(layout::IOAPIC), ioapic::SIZE, ioapic.clone())?;
    // Registers that only select what the next access is for; the second one is where a kernel looks for old PCI.
    vm.coalesce(IoAddr::Mmio(layout::IOAPIC), 4)?;
    vm.coalesce(IoAddr::Port(PCI_CONFIG_ADDRESS), 4)?;
    let main_loop = match deterministic {
        Some(_) => EventLoop::start_in_step("devices", control.failed())?,
        None => EventLoop::start_watched("devices", control.failed())?,
    };
    let in_step = deterministic.map(|_| Arc::new(InStep::new(main_loop.handle(), control.clone())));
    let notify = control.notify();
    let first_output = Arc::new(FirstOutput::default());
    let panic_control = control.clone();
    let panicked = move |line: &str| panic_control.panicked_with(line);
    let own: [Arc<dyn ConsoleWatcher>; 2] = [first_output.clone(), Arc::new(PanicWatcher::new(panicked))];
    let watchers = own.into_iter().chain(watchers).collect();
    let consoles = ConsoleHub::new(spec.log.as_deref(), watchers, notify.clone())?;
    let lines = |gsi| ioapic.line(gsi).ok_or_else(|| AttachError(format!("the I/O APIC has no pin {gsi}")));
    let mut builder = Builder {
        ram: &ram,
        events: &main_loop.handle(),
        notify: &notify,
        consoles: &consoles,
        lines: &lines,
        virtio: Vec::new(),
        ports: Vec::new(),
        statistics: BTreeMap::new(),
        balloon: None,
        deterministic,
    };
    for device in &wanted {
        device.attach(&mut builder)?;
    }
    // Guests have the time from the PV clock; the real-time clock only answers those who ask without being told of it.
    devices::place_fixed(&mut builder, false);
    let (virtio, ports) = (builder.virtio, builder.ports);
    let (statistics, balloon) = (builder.statistics, builder.balloon);
    let around =
        Around { bus: &bus, vm: &vm, ram: &ram, events: &main_loop.handle(), lines: &lines, first_gsi: FIRST_FREE_PIN };
    let placement = Placement::new(virtio, spec.transport, &around)?;
    for placed in &ports {
        bus.insert(IoAddr::Port(placed.base), placed.len.into(), placed.device.clone())?;
    }
    let power = Arc::new(PowerPorts::new(notify.clone(), lines(POWER_GSI)?));
    bus.insert(IoAddr::Port(layout::POWER_PORTS), power::PORTS.into(), power.clone())?;
    let rsdp = firmware::write(&ram, &firmware_machine(spec, &ports, &placement))?;
    let request = Boot {
        kernel: kernel::image(spec.kernel.as_deref().ok_or(SpecError::NoKernel)?)?,
        initrds: spec.initrd.iter().cloned().map(Initrd::Path).chain(initrds.into_iter().map(Initrd::File)).collect(),
        cmdline: command_line(spec, &wanted)?,
        rsdp,
        memory_map: layout::memory_map(spec.memory.0),
        protocol: spec.entry,
        decompress: !spec.self_extract,
        cache: loader::cache::Policy::User,
        fresh: true,
    };
    let loaded = loader::load(&ram, &request)?;
    let mut vcpus = vcpus(vm.as_ref(), spec, &loaded)?;
    if let (Some(in_step), Some(cpu)) = (&in_step, vcpus.first()) {
        in_step.set_cpu(cpu.kicker());
    }
    if let (Some(wanted), Some(cpu)) = (&spec.trace, vcpus.first_mut()) {
        let trace = wanted.open().map_err(|e| Error::Trace(wanted.path.clone(), e))?;
        if !cpu.trace(trace) {
            return Err(Error::NoTrace(engine.name()));
        }
    }
    let io: Arc<dyn crate::engine::CpuIo + Send> = Arc::new(MachineIo { bus, ioapic: ioapic.clone(), in_step });
    let cpus = Cpus::start(vcpus, &io, &control).map_err(|e| Error::Host("start a vCPU thread", e))?;
    let quota = spec.cpu_quota.map(|quota| Quota::keep(quota, &cpus)).transpose()?;
    first_output.count(cpus.counters());
    let parts = Parts {
        engine: engine.name(),
        notice,
        kernel: loaded.report,
        consoles,
        first_output,
        power,
        statistics,
        balloon,
        ram,
        _placement: placement,
        _vm: vm,
    };
    Ok(Machine { cpus, quota, _loops: vec![main_loop], parts, control, begin })
}

/// What the ACPI tables say.
fn firmware_machine(spec: &MachineSpec, ports: &[PlacedPorts], placement: &Placement) -> firmware::Machine {
    let isa = |placed: &PlacedPorts| {
        Some(IsaDevice { hid: placed.hid?, port: placed.base, ports: placed.len as u8, gsi: placed.gsi })
    };
    firmware::Machine {
        cpus: spec.cpus,
        pci: placement.pci,
        virtio_mmio: placement.virtio_mmio.clone(),
        isa: ports.iter().filter_map(isa).collect(),
        event_gsi: POWER_GSI,
    }
}

fn pins(transport: Transport, devices: usize) -> u32 {
    match transport {
        Transport::Pci => FIRST_FREE_PIN,
        Transport::Mmio => (FIRST_FREE_PIN + devices as u32).min(MAX_PINS),
    }
}

/// vCPU 0 starts in the kernel, the others wait until it starts them.
fn vcpus(vm: &dyn Vm, spec: &MachineSpec, loaded: &loader::Loaded) -> Result<Vec<Box<dyn Vcpu>>, Error> {
    let mut supported = vm.supported_cpuid()?;
    if let Some(level) = spec.cpu {
        if level > supported.level() {
            return Err(Error::NoSuchCpu(level, supported.level()));
        }
        supported.limit(level);
    }
    let mut vcpus = Vec::with_capacity(spec.cpus as usize);
    for index in 0..spec.cpus {
        let mut vcpu = vm.create_vcpu(index)?;
        let topology = Topology { apic_id: index, cpus: spec.cpus };
        vcpu.set_cpuid(&supported.for_guest(topology, vcpu.tsc_khz()))?;
        if index == 0 {
            vcpu.set_state(&loaded.state)?;
        } else {
            let mut state = vcpu.state()?;
            state.msrs = FIRMWARE_MSRS.to_vec();
            vcpu.set_state(&state)?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}
