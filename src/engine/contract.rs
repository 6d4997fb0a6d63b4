//! What every engine must do, as tests: tiny machine-code guests, run through the traits alone.
//!
//! An engine's own test module calls [`run_all`]. The guests use plain integer instructions in 64-bit mode, so that
//! they run on every kind of host.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::guests::debugger;
use super::{CpuIo, Engine, Exit, IoAddr, Kicker, Vcpu, Vm, VmConfig};
use crate::arch::x86_64::state::{Activity, CpuState, DebugRegisters, DescriptorTable, Events, Segment};
use crate::irq::MsiMessage;
use crate::mem::{Backing, PAGE, Ram};

/// Nothing here takes longer than this, even on an engine that interprets.
pub(super) const LIMIT: Duration = Duration::from_secs(20);
pub(super) const RAM_SIZE: u64 = 2 << 20;
pub(super) const CODE: u64 = 0x1_0000;
pub(super) const AP_CODE: u64 = 0x6000;
pub(super) const GDT: u64 = 0x8000;
pub(super) const IDT: u64 = 0x9000;
const IDT_POINTER: u64 = 0xa000;
pub(super) const HANDLER: u64 = 0xb000;
pub(super) const STACK: u64 = 0xf000;
pub(super) const PAGE_TABLES: u64 = 0x2_0000;
/// Not RAM.
pub(super) const MMIO: u64 = 0x20_0000 * 4;
/// Guests write here when they are done.
pub(super) const DONE: IoAddr = IoAddr::Port(0xf4);
pub(super) const READY: IoAddr = IoAddr::Port(0xf5);
const VECTOR: u8 = 0x41;

type Test = fn(&dyn Engine);

/// Runs every test of the contract; panics name the one that failed.
pub fn run_all(engine: &dyn Engine) {
    let tests: &[(&str, Test)] = &[
        ("accesses of every width", widths),
        ("string I/O is element by element", string_io),
        ("kicks", kicks),
        ("doorbells", doorbells),
        ("writes that may arrive late arrive in order", late_writes),
        ("interrupt messages wake a halted CPU", message_wakes),
        ("level-triggered pins report the end of interrupt", level_pin),
        ("triple fault", triple_fault),
        ("state round trip", state_round_trip),
        ("register pages", register_pages),
        ("a second CPU starts by INIT and SIPI", second_cpu),
        ("a debugger steps over instructions", debugger::steps),
        ("a debugger's breakpoint in a register", debugger::in_a_register),
    ];
    for (name, test) in tests {
        println!("{}: {name}", engine.name());
        test(engine);
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Access {
    Read(IoAddr, usize),
    Write(IoAddr, Vec<u8>),
    EndOfInterrupt(u8),
}

/// Answers reads with a pattern, tells the test every access, and stops the vCPU at [`DONE`].
struct Recorder {
    told: Mutex<Sender<Access>>,
    stop: Arc<dyn Kicker>,
}

impl Recorder {
    fn tell(&self, access: Access) {
        // The test may have seen enough and be gone.
        let _ = self.told.lock().unwrap().send(access);
    }
}

impl CpuIo for Recorder {
    fn read(&self, at: IoAddr, data: &mut [u8]) {
        self.tell(Access::Read(at, data.len()));
        data.iter_mut().zip(0xa1..).for_each(|(byte, value)| *byte = value);
    }

    fn write(&self, at: IoAddr, data: &[u8]) {
        self.tell(Access::Write(at, data.to_vec()));
        if at == DONE {
            self.stop.kick();
        }
    }

    fn end_of_interrupt(&self, vector: u8) {
        self.tell(Access::EndOfInterrupt(vector));
    }
}

/// A VM with `code` at [`CODE`].
pub(super) struct Guest {
    pub(super) ram: Ram,
    pub(super) vm: Arc<dyn Vm>,
}

/// A vCPU that runs on its own thread.
pub(super) struct Running {
    pub(super) accesses: Receiver<Access>,
    ended: Receiver<(Exit, Box<dyn Vcpu>)>,
    pub(super) kicker: Arc<dyn Kicker>,
}

impl Guest {
    pub(super) fn new(engine: &dyn Engine, cpus: u32, code: &[u8]) -> Self {
        let ram = Ram::new(&[(0, RAM_SIZE)], Backing::Anonymous).unwrap();
        ram.write(CODE, code).unwrap();
        write_tables(&ram);
        let vm = engine.create_vm(&ram, &VmConfig { cpus, ioapic_pins: 4, deterministic: None }).unwrap();
        Self { ram, vm }
    }

    pub(super) fn start(&self) -> Running {
        self.start_with(0, &long_mode())
    }

    pub(super) fn start_with(&self, index: u32, state: &CpuState) -> Running {
        let mut vcpu = self.vm.create_vcpu(index).unwrap();
        vcpu.set_cpuid(&self.vm.supported_cpuid().unwrap()).unwrap();
        vcpu.set_state(state).unwrap();
        let (told, accesses) = channel();
        let (ending, ended) = channel();
        let kicker = vcpu.kicker();
        let recorder = Recorder { told: Mutex::new(told), stop: kicker.clone() };
        std::thread::spawn(move || {
            let exit = vcpu.run(&recorder).unwrap();
            ending.send((exit, vcpu)).unwrap();
        });
        Running { accesses, ended, kicker }
    }
}

impl Running {
    pub(super) fn next(&self) -> Access {
        self.accesses.recv_timeout(LIMIT).unwrap_or_else(|_| self.hangs())
    }

    pub(super) fn end(&self) -> (Exit, Box<dyn Vcpu>) {
        self.ended.recv_timeout(LIMIT).unwrap_or_else(|_| self.hangs())
    }

    fn hangs<T>(&self) -> T {
        self.kicker.kick();
        let state = self.ended.recv_timeout(LIMIT).map(|(exit, mut vcpu)| (exit, vcpu.state().unwrap().regs));
        panic!("the guest hangs: {state:x?}");
    }

    /// All accesses up to the one to [`DONE`].
    pub(super) fn finish(self) -> Vec<Access> {
        assert_eq!(self.end().0, Exit::Kicked);
        let mut all: Vec<_> = self.accesses.try_iter().collect();
        assert!(matches!(all.pop(), Some(Access::Write(DONE, _))), "{all:x?}");
        all
    }
}

/// GDT with 64-bit code at 8 and data at 16, an IDT whose vector [`VECTOR`] is [`HANDLER`], and page tables that map
/// the first GiB one to one with 2 MiB pages.
fn write_tables(ram: &Ram) {
    let quads = |at: u64, values: &[u64]| {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        ram.write(at, &bytes).unwrap();
    };
    quads(GDT, &[0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]);
    let gate = HANDLER & 0xffff | 8 << 16 | 0x8e00 << 32 | (HANDLER >> 16 & 0xffff) << 48;
    quads(IDT + u64::from(VECTOR) * 16, &[gate, 0]);
    ram.write(IDT_POINTER, &0xfffu16.to_le_bytes()).unwrap();
    ram.write(IDT_POINTER + 2, &IDT.to_le_bytes()).unwrap();
    quads(PAGE_TABLES, &[(PAGE_TABLES + PAGE) | 3]);
    quads(PAGE_TABLES + PAGE, &[(PAGE_TABLES + 2 * PAGE) | 3]);
    let pages: Vec<u64> = (0..512).map(|page| page << 21 | 0x83).collect();
    quads(PAGE_TABLES + 2 * PAGE, &pages);
}

pub(super) fn long_mode() -> CpuState {
    let segment = |selector, kind, l, db| Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        kind,
        present: true,
        s: true,
        g: true,
        l,
        db,
        ..Segment::default()
    };
    let mut state = CpuState::default();
    let system = &mut state.system;
    system.cs = segment(8, 11, true, false);
    let data = segment(16, 3, false, true);
    (system.ds, system.es, system.fs, system.gs, system.ss) = (data, data, data, data, data);
    system.tr = Segment { limit: 0x67, kind: 11, present: true, ..Segment::default() };
    system.ldt = Segment { kind: 2, unusable: true, ..Segment::default() };
    system.gdt = DescriptorTable { base: GDT, limit: 23 };
    system.idt = DescriptorTable { base: IDT, limit: 0xfff };
    system.cr0 = 0x8000_0011; // PG, ET, PE
    system.cr3 = PAGE_TABLES;
    system.cr4 = 0x20; // PAE
    system.efer = 0x500; // LMA, LME
    system.apic_base = 0xfee0_0900; // enabled, boot processor
    state.regs.rip = CODE;
    state.regs.rsp = STACK;
    state.regs.rflags = 2;
    state
}

/// `out 0xf4, al`
pub(super) const OUT_DONE: &[u8] = &[0xe6, 0xf4];
/// `out 0xf5, al`
pub(super) const OUT_READY: &[u8] = &[0xe6, 0xf5];
/// `sti; hlt; jmp -3`
const WAIT_FOR_INTERRUPT: &[u8] = &[0xfb, 0xf4, 0xeb, 0xfd];
/// Enables the local APIC in x2APIC mode: `wrmsr` of APIC_BASE and of the spurious vector register.
pub(super) const ENABLE_X2APIC: &[u8] = &[
    0xb9, 0x1b, 0, 0, 0, 0xb8, 0x00, 0x0d, 0xe0, 0xfe, 0x31, 0xd2, 0x0f, 0x30, // APIC_BASE = 0xfee00d00
    0xb9, 0x0f, 0x08, 0, 0, 0xb8, 0xff, 0x01, 0, 0, 0x31, 0xd2, 0x0f, 0x30, // SVR = 0x1ff
];
/// Ends the interrupt: `mov ecx, 0x80b; xor eax, eax; xor edx, edx; wrmsr`.
const END_OF_INTERRUPT: &[u8] = &[0xb9, 0x0b, 0x08, 0, 0, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30];
const IRETQ: &[u8] = &[0x48, 0xcf];

fn mov_ebx(value: u64) -> [u8; 5] {
    let v = (value as u32).to_le_bytes();
    [0xbb, v[0], v[1], v[2], v[3]]
}

fn widths(engine: &dyn Engine) {
    let ports = [
        &[0x66, 0xba, 0x10, 0x00][..], // mov dx, 0x10
        &[0xec, 0xee],                 // in al, dx; out dx, al
        &[0x66, 0xed, 0x66, 0xef],     // 16 bits
        &[0xed, 0xef],                 // 32 bits
    ];
    let mmio = [
        &mov_ebx(MMIO)[..],
        &[0x8a, 0x03, 0x88, 0x43, 0x08],             // mov al, [rbx]; mov [rbx+8], al
        &[0x66, 0x8b, 0x03, 0x66, 0x89, 0x43, 0x08], // 16 bits
        &[0x8b, 0x03, 0x89, 0x43, 0x08],             // 32 bits
        &[0x48, 0x8b, 0x03, 0x48, 0x89, 0x43, 0x08], // 64 bits
        OUT_DONE,
    ];
    let code = [ports.concat(), mmio.concat()].concat();
    let pattern: Vec<u8> = (0xa1..=0xa8).collect();
    let mut expected = Vec::new();
    for width in [1, 2, 4] {
        expected.push(Access::Read(IoAddr::Port(0x10), width));
        expected.push(Access::Write(IoAddr::Port(0x10), pattern[..width].to_vec()));
    }
    for width in [1, 2, 4, 8] {
        expected.push(Access::Read(IoAddr::Mmio(MMIO), width));
        expected.push(Access::Write(IoAddr::Mmio(MMIO + 8), pattern[..width].to_vec()));
    }
    assert_eq!(Guest::new(engine, 1, &code).start().finish(), expected);
}

fn string_io(engine: &dyn Engine) {
    let code = [
        &[0xbe, 0x00, 0xc0, 0, 0][..], // mov esi, 0xc000
        &[0xb9, 3, 0, 0, 0],           // mov ecx, 3
        &[0x66, 0xba, 0x10, 0],        // mov dx, 0x10
        &[0xfc, 0xf3, 0x6e],           // cld; rep outsb
        &[0xbf, 0x00, 0xd0, 0, 0],     // mov edi, 0xd000
        &[0xb9, 2, 0, 0, 0],           // mov ecx, 2
        &[0xf3, 0x66, 0x6d],           // rep insw
        OUT_DONE,
    ]
    .concat();
    let guest = Guest::new(engine, 1, &code);
    guest.ram.write(0xc000, b"jar").unwrap();
    let port = IoAddr::Port(0x10);
    let mut expected: Vec<_> = b"jar".iter().map(|&byte| Access::Write(port, vec![byte])).collect();
    expected.extend([Access::Read(port, 2), Access::Read(port, 2)]);
    assert_eq!(guest.start().finish(), expected);
    let mut seen = [0; 4];
    guest.ram.read(0xd000, &mut seen).unwrap();
    assert_eq!(seen, [0xa1, 0xa2, 0xa1, 0xa2]);
}

fn kicks(engine: &dyn Engine) {
    // sti; out; jmp $. With IF clear Bochs 2.7, the VT-x of `scripts/nested --bochs`, holds back the host's interrupts too.
    let guest = Guest::new(engine, 1, &[&[0xfb], OUT_READY, &[0xeb, 0xfe]].concat());
    let running = guest.start();
    assert!(matches!(running.next(), Access::Write(READY, _)));
    running.kicker.kick();
    let (exit, mut vcpu) = running.end();
    assert_eq!(exit, Exit::Kicked);
    // A kick while the vCPU does not run takes effect at the next run.
    running.kicker.kick();
    let (told, _) = channel();
    let again = vcpu.run(&Recorder { told: Mutex::new(told), stop: running.kicker.clone() }).unwrap();
    assert_eq!(again, Exit::Kicked);
    assert_eq!(vcpu.state().unwrap().regs.rip, CODE + 3, "it was in the endless loop");
    drop(vcpu);
    running.kicker.kick();
}

fn doorbells(engine: &dyn Engine) {
    let code = [
        &mov_ebx(MMIO)[..],
        &[0xb8, 7, 0, 0, 0],           // mov eax, 7
        &[0x66, 0x89, 0x03],           // mov [rbx], ax: any value rings
        &[0x89, 0x43, 0x10],           // mov [rbx+0x10], eax: 7 rings
        &[0xff, 0xc0, 0x89, 0x43, 16], // inc eax; again: 8 does not
        &[0x66, 0xba, 0x50, 0, 0xee],  // mov dx, 0x50; out dx, al
        OUT_DONE,
    ]
    .concat();
    let guest = Guest::new(engine, 1, &code);
    let bells = [
        (IoAddr::Mmio(MMIO), None),
        (IoAddr::Mmio(MMIO + 16), Some(7)),
        (IoAddr::Port(0x50), None),
        (IoAddr::Mmio(MMIO + 0x100), None),
    ];
    let fds = bells.map(|(at, value)| {
        let fd = EventFd::new(EFD_NONBLOCK).unwrap();
        (guest.vm.doorbell(at, value, &fd).unwrap(), fd)
    });
    let gone = EventFd::new(EFD_NONBLOCK).unwrap();
    if guest.vm.doorbell(IoAddr::Mmio(MMIO + 16), Some(8), &gone).unwrap() {
        guest.vm.remove_doorbell(IoAddr::Mmio(MMIO + 16), Some(8), &gone).unwrap();
    }
    let seen = guest.start().finish();
    if fds.iter().all(|(by_engine, _)| *by_engine) {
        assert_eq!(seen, [Access::Write(IoAddr::Mmio(MMIO + 16), vec![8, 0, 0, 0])]);
        assert_eq!(fds.each_ref().map(|(_, fd)| fd.read().ok()), [Some(1), Some(1), Some(1), None]);
        for ((at, value), (_, fd)) in bells.iter().zip(&fds) {
            guest.vm.remove_doorbell(*at, *value, fd).unwrap();
        }
    } else {
        assert_eq!(seen.len(), 4, "without doorbells every write must reach the bus: {seen:x?}");
    }
}

fn late_writes(engine: &dyn Engine) {
    let code = [
        &mov_ebx(MMIO)[..],
        &[0xb8, 7, 0, 0, 0],          // mov eax, 7
        &[0x89, 0x03],                // mov [rbx], eax: late
        &[0x66, 0xba, 0x50, 0, 0xef], // mov dx, 0x50; out dx, eax: late
        &[0xff, 0xc0, 0x89, 0x03],    // inc eax; mov [rbx], eax: late
        &[0x8b, 0x43, 0x10],          // mov eax, [rbx+16]
        &[0x66, 0x89, 0x03],          // mov [rbx], ax: another width
        OUT_DONE,
    ]
    .concat();
    let guest = Guest::new(engine, 1, &code);
    guest.vm.coalesce(IoAddr::Mmio(MMIO), 4).unwrap();
    guest.vm.coalesce(IoAddr::Port(0x50), 4).unwrap();
    let expected = [
        Access::Write(IoAddr::Mmio(MMIO), vec![7, 0, 0, 0]),
        Access::Write(IoAddr::Port(0x50), vec![7, 0, 0, 0]),
        Access::Write(IoAddr::Mmio(MMIO), vec![8, 0, 0, 0]),
        Access::Read(IoAddr::Mmio(MMIO + 16), 4),
        Access::Write(IoAddr::Mmio(MMIO), vec![0xa1, 0xa2]),
    ];
    assert_eq!(guest.start().finish(), expected);
}

fn message_wakes(engine: &dyn Engine) {
    let guest = Guest::new(engine, 1, &[ENABLE_X2APIC, OUT_READY, WAIT_FOR_INTERRUPT].concat());
    guest.ram.write(HANDLER, &[END_OF_INTERRUPT, OUT_DONE, IRETQ].concat()).unwrap();
    let vector = guest.vm.msi().vector().unwrap();
    let other = guest.vm.msi().vector().unwrap();
    vector.trigger();
    vector.route(Some(MsiMessage { address: 0xfee0_0000, data: u32::from(VECTOR) })).unwrap();
    other.route(Some(MsiMessage { address: 0xfee0_0000, data: 0x99 })).unwrap();
    other.route(None).unwrap();
    let running = guest.start();
    assert!(matches!(running.next(), Access::Write(READY, _)));
    other.trigger();
    vector.trigger();
    assert_eq!(running.finish(), []);
}

fn level_pin(engine: &dyn Engine) {
    let guest = Guest::new(engine, 1, &[ENABLE_X2APIC, OUT_READY, WAIT_FOR_INTERRUPT].concat());
    guest.ram.write(HANDLER, &[END_OF_INTERRUPT, OUT_READY, OUT_DONE, IRETQ].concat()).unwrap();
    let pin = guest.vm.msi().pin(2).unwrap();
    // Level-triggered, asserted (SDM volume 3, section 12.11.2).
    pin.route(Some(MsiMessage { address: 0xfee0_0000, data: u32::from(VECTOR) | 0xc000 })).unwrap();
    let running = guest.start();
    assert!(matches!(running.next(), Access::Write(READY, _)));
    pin.trigger();
    // An engine may report it only when the guest comes back to it for something else.
    let seen = running.finish();
    assert_eq!(seen.iter().filter(|a| **a == Access::EndOfInterrupt(VECTOR)).count(), 1, "{seen:x?}");
}

fn triple_fault(engine: &dyn Engine) {
    // A page fault with an empty IDT: mov eax, [rbx] above what the page tables map.
    let guest = Guest::new(engine, 1, &[&mov_ebx(0x5000_0000)[..], &[0x8b, 0x03]].concat());
    let mut state = long_mode();
    state.system.idt = DescriptorTable::default();
    let exit = guest.start_with(0, &state).end().0;
    assert!(matches!(&exit, Exit::Shutdown(report) if report.contains("vCPU 0: triple fault")), "{exit:?}");
}

fn state_round_trip(engine: &dyn Engine) {
    let guest = Guest::new(engine, 1, OUT_DONE);
    let mut vcpu = guest.vm.create_vcpu(0).unwrap();
    vcpu.set_cpuid(&guest.vm.supported_cpuid().unwrap()).unwrap();
    let mut state = long_mode();
    (state.regs.rax, state.regs.r15, state.regs.rbp) = (0x0123_4567_89ab_cdef, u64::MAX, 5);
    state.system.cr2 = 0xffff_8000_0000_1000;
    state.msrs = vec![(0xc000_0082, 0xffff_ffff_8100_0000)];
    state.debug = DebugRegisters { breakpoints: [0x1000, 0, 0, 0xffff_8000_0000_0008], dr6: 0xffff_4ff1, dr7: 0x501 };
    state.events = Events { shadow: true, nmi_blocked: true, nmi_pending: true, ..Events::default() };
    state.apic = vcpu.state().unwrap().apic;
    // Software enabled; an interrupt that is served, one that waits, a task priority between them.
    for (offset, value) in
        [(0xf0, [0xff, 1, 0, 0]), (0x130, [2, 0, 0, 0]), (0x220, [0, 0, 1, 0]), (0x80, [0x50, 0, 0, 0])]
    {
        state.apic[offset..offset + 4].copy_from_slice(&value);
    }
    vcpu.set_state(&state).unwrap();
    let first = vcpu.state().unwrap();
    assert_eq!(first.regs, state.regs);
    assert_eq!(
        (first.system.cr2, first.system.cr3, first.system.gdt),
        (state.system.cr2, state.system.cr3, state.system.gdt)
    );
    assert_eq!((first.debug, first.events), (state.debug, state.events));
    assert_eq!(apic_registers(&first), apic_registers(&state));
    let text = serde_json::to_string(&first).unwrap();
    assert_eq!(serde_json::from_str::<CpuState>(&text).unwrap(), first);
    assert_eq!((first.system.cs, first.system.efer), (state.system.cs, state.system.efer));
    assert!(first.msrs.contains(&state.msrs[0]), "{:x?}", first.msrs);
    vcpu.set_state(&first).unwrap();
    let mut second = vcpu.state().unwrap();
    // Time goes on.
    let times = [0x10, 0x4b56_4d00, 0x4b56_4d01];
    second.msrs.retain(|msr| !times.contains(&msr.0));
    let mut first = first;
    first.msrs.retain(|msr| !times.contains(&msr.0));
    assert_eq!(apic_registers(&second), apic_registers(&first));
    (first.apic, second.apic) = (Vec::new(), Vec::new());
    assert!(
        second == first,
        "{:x?}\n{:x?}",
        (first.regs, first.system, &first.msrs),
        (second.regs, second.system, &second.msrs)
    );
}

/// Registers of the local APIC but those that follow from others (the priorities), and what is left of the timer's count.
fn apic_registers(state: &CpuState) -> Vec<(usize, &[u8])> {
    let registers = state.apic.chunks_exact(16).map(|register| &register[..4]);
    (0..).step_by(16).zip(registers).filter(|(offset, _)| ![0x90, 0xa0, 0x390].contains(offset)).collect()
}

fn register_pages(engine: &dyn Engine) {
    let code = [
        &mov_ebx(MMIO)[..],
        &[0x8b, 0x43, 0x20, 0x89, 0x43, 0x40], // mov eax, [rbx+0x20]; mov [rbx+0x40], eax
        OUT_DONE,
    ]
    .concat();
    let guest = Guest::new(engine, 1, &code);
    let Some(pages) = guest.vm.register_pages() else { return };
    let page = Arc::new(Ram::new(&[(0, PAGE)], Backing::Shared).unwrap());
    page.write(0x20, &[1, 2, 3, 4]).unwrap();
    let host = page.host_address(0, PAGE).unwrap() as usize;
    let shown = pages.show(MMIO, host, PAGE, page.clone()).unwrap();
    assert_eq!(guest.start().finish(), [Access::Write(IoAddr::Mmio(MMIO + 0x40), vec![1, 2, 3, 4])]);
    drop(shown);
    assert!(pages.show(MMIO + 1, host, PAGE, page).is_err(), "unaligned");
}

fn second_cpu(engine: &dyn Engine) {
    let send = |icr: u32| {
        let v = icr.to_le_bytes();
        [0xb9, 0x30, 0x08, 0, 0, 0xb8, v[0], v[1], v[2], v[3], 0xba, 1, 0, 0, 0, 0x0f, 0x30] // ICR, to APIC id 1
    };
    let sipi = 0x4600 | (AP_CODE >> 12) as u32;
    let code = [ENABLE_X2APIC, &send(0x4500), &send(sipi), &send(sipi), &[0xf4, 0xeb, 0xfd]].concat();
    let guest = Guest::new(engine, 2, &code);
    // 16-bit real mode: mov ax, cs; out 0xf4, ax
    guest.ram.write(AP_CODE, &[0x8c, 0xc8, 0xe7, 0xf4]).unwrap();
    let mut vcpu = guest.vm.create_vcpu(1).unwrap();
    vcpu.set_cpuid(&guest.vm.supported_cpuid().unwrap()).unwrap();
    let waiting = vcpu.state().unwrap();
    drop(vcpu);
    assert_eq!(waiting.activity, Activity::WaitForInit);
    let guest = Guest::new(engine, 2, &code);
    guest.ram.write(AP_CODE, &[0x8c, 0xc8, 0xe7, 0xf4]).unwrap();
    let second = guest.start_with(1, &waiting);
    let first = guest.start();
    assert_eq!(second.next(), Access::Write(DONE, vec![0, 6]));
    assert_eq!(second.end().0, Exit::Kicked);
    first.kicker.kick();
    assert_eq!(first.end().0, Exit::Kicked);
}
