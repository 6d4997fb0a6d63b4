//! Whether `/dev/kvm` runs unmodified kernels, found out by running code on it: a guest of a few pages that executes, in
//! 64-bit mode and ring 0, one instruction of each kind that kernels use early (Intel SDM volume 2: SSE2, XSAVE, VEX-coded
//! AVX and BMI2) and ends by a port write. Hosts without VT-x or SVM can have a complete `/dev/kvm` all the same (PVM),
//! which interprets kernels that were not made for it and stops at the first such instruction.
//!
//! Called before a machine is built and by `belljar doctor`, on the main thread; a thread of its own ends a guest that
//! does not end by itself.

use std::fmt;
use std::io;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuExit;

use super::vcpu::KvmVcpu;
use super::vm::KvmVm;
use super::{KvmEngine, crash};
use crate::arch::x86_64::boot::{self, Tables};
use crate::arch::x86_64::cpuid::{CpuidTable, Topology};
use crate::arch::x86_64::state::CpuState;
use crate::arch::x86_64::{gdt, paging};
use crate::engine::{Error, Result, Vcpu, Vm, VmConfig};
use crate::mem::{Backing, PAGE, Ram};

/// The guest needs microseconds; a host so busy that this passes is no place for a guest.
const LIMIT: Duration = Duration::from_secs(2);

/// The guest's memory: descriptors, code, data and stack, page tables.
const GDT: u64 = 0;
const CODE: u64 = PAGE;
const DATA: u64 = 2 * PAGE;
const DATA_END: u64 = 3 * PAGE;
const PAGE_TABLES: u64 = 4 * PAGE;
const RAM: u64 = PAGE_TABLES + paging::SIZE;
/// The port that ends it.
const DONE: u16 = 0xf4;
/// CR4: FXSAVE and SSE instructions, SSE exceptions.
const CR4_OSFXSR: u64 = 1 << 9;
const CR4_OSXMMEXCPT: u64 = 1 << 10;
/// What RBX starts with; each step changes it in a known way.
const SEED: u64 = 0x0123_4567_89ab_cdef;

/// Code that needs a feature of the CPU.
struct Step {
    name: &'static str,
    /// Whether the CPU has what it needs.
    given: fn(&Features) -> bool,
    code: &'static [u8],
    /// What it does to RBX.
    effect: fn(u64) -> u64,
}

/// What the guest's CPU has, by its CPUID.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Features {
    xsave: bool,
    avx: bool,
    bmi2: bool,
}

/// In the order in which they run.
const STEPS: &[Step] = &[
    Step {
        name: "SSE2",
        given: |_| true,
        code: &[
            0x66, 0x48, 0x0f, 0x6e, 0xc3, // movq xmm0, rbx
            0x66, 0x0f, 0xd4, 0xc0, // paddq xmm0, xmm0
            0x66, 0x48, 0x0f, 0x7e, 0xc3, // movq rbx, xmm0
        ],
        effect: |rbx| rbx.wrapping_add(rbx),
    },
    Step {
        name: "BMI2",
        given: |has| has.bmi2,
        code: &[
            0xc4, 0xe3, 0xfb, 0xf0, 0xdb, 0x07, // rorx rbx, rbx, 7
            0xb9, 0x03, 0x00, 0x00, 0x00, // mov ecx, 3
            0xc4, 0xe2, 0xf1, 0xf7, 0xdb, // shlx rbx, rbx, rcx
        ],
        effect: |rbx| rbx.rotate_right(7) << 3,
    },
    Step {
        name: "XSAVE",
        given: |has| has.xsave,
        code: &[
            0x0f, 0x20, 0xe0, // mov rax, cr4
            0x48, 0x0f, 0xba, 0xe8, 0x12, // bts rax, 18 (OSXSAVE)
            0x0f, 0x22, 0xe0, // mov cr4, rax
            0x31, 0xc9, // xor ecx, ecx
            0x0f, 0x01, 0xd0, // xgetbv
            0x83, 0xc8, 0x03, // or eax, 3 (x87, SSE)
            0x0f, 0x01, 0xd1, // xsetbv
            0x48, 0x0f, 0xae, 0x27, // xsave64 [rdi]
            0x48, 0x0f, 0xae, 0x2f, // xrstor64 [rdi]
            0x48, 0x01, 0xc3, // add rbx, rax
        ],
        effect: |rbx| rbx.wrapping_add(3),
    },
    Step {
        name: "AVX",
        given: |has| has.xsave && has.avx,
        code: &[
            0x31, 0xc9, // xor ecx, ecx
            0x0f, 0x01, 0xd0, // xgetbv
            0x83, 0xc8, 0x07, // or eax, 7 (x87, SSE, AVX)
            0x0f, 0x01, 0xd1, // xsetbv
            0xc4, 0xe1, 0xf9, 0x6e, 0xc3, // vmovq xmm0, rbx
            0xc5, 0xf9, 0xd4, 0xc0, // vpaddq xmm0, xmm0, xmm0
            0xc4, 0xe1, 0xf9, 0x7e, 0xc3, // vmovq rbx, xmm0
            0x48, 0x0f, 0xae, 0x27, // xsave64 [rdi]
        ],
        effect: |rbx| rbx.wrapping_add(rbx),
    },
];

/// out 0xf4, al; hlt; back to hlt.
const END: &[u8] = &[0xe6, DONE as u8, 0xf4, 0xeb, 0xfd];

/// A guest ran as it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Works {
    /// The instruction sets that it tried.
    pub tried: Vec<&'static str>,
    /// How long all of it took, making and removing the VM included.
    pub time: Duration,
}

/// Why KVM is of no use here. The text says what was found.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// There is no such device.
    #[error("/dev/kvm does not exist")]
    Missing,
    /// The user may not open it.
    #[error("/dev/kvm: permission denied")]
    Denied,
    /// Opening it fails otherwise.
    #[error("/dev/kvm does not open: {0}")]
    NotOpen(#[source] io::Error),
    /// An API that nobody has any more.
    #[error("/dev/kvm has API version {0}, not {version}", version = super::API_VERSION)]
    Version(i32),
    /// The host kernel is too old.
    #[error("/dev/kvm lacks {0}")]
    Lacks(&'static str),
    /// The guest met an instruction that such a host cannot run.
    #[error("/dev/kvm is a paravirtual (PVM) host: it cannot run unmodified kernels")]
    Paravirtual,
    /// The guest stopped with an internal error of KVM.
    #[error("/dev/kvm cannot run a small guest: internal error {suberror} at {place}")]
    Internal {
        /// KVM's number for it.
        suberror: u32,
        /// Which step was being done.
        place: &'static str,
    },
    /// The guest did not end.
    #[error("/dev/kvm did not run a small guest to its end within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The guest ended in another way, or with another result, than on any CPU.
    #[error("/dev/kvm does not run a small guest right: {what} at {place}")]
    Wrong {
        /// What happened instead.
        what: String,
        /// Which step was being done.
        place: &'static str,
    },
    /// Making the guest failed.
    #[error("/dev/kvm does not make a small guest: {0}")]
    Host(#[source] Error),
}

impl Trouble {
    pub(super) fn not_open(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing,
            io::ErrorKind::PermissionDenied => Self::Denied,
            _ => Self::NotOpen(error),
        }
    }

    /// Whether VMs can be made nevertheless, though not for unmodified kernels.
    pub fn opens(&self) -> bool {
        !matches!(self, Self::Missing | Self::Denied | Self::NotOpen(_) | Self::Version(_) | Self::Lacks(_))
    }

    /// What the user can do about it.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Missing => "load the kvm-intel or kvm-amd module, or enable virtualisation in the firmware",
            Self::Denied => "add yourself to group kvm (sudo usermod -aG kvm $USER, then log in again)",
            Self::NotOpen(_) => "another hypervisor may be using the CPU's virtualisation extensions",
            Self::Version(_) | Self::Lacks(_) => "update the host kernel (5.4 or newer)",
            Self::Paravirtual => "use a host with hardware virtualisation (VT-x or SVM), or one that passes it on",
            Self::Internal { .. } | Self::Wrong { .. } => {
                "update the host kernel, or below another hypervisor that one; dmesg may say more"
            }
            Self::TimedOut(_) => "try again when the host is less busy; dmesg may say more",
            Self::Host(_) => "see what the host's limits (ulimit, cgroup) and dmesg say",
        }
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Host(error)
    }
}

impl fmt::Display for Works {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.time.as_secs_f64() * 1e3;
        write!(f, "runs unmodified kernels (a small guest used {} in {millis:.1} ms)", self.tried.join(", "))
    }
}

/// Runs the guest.
pub(super) fn run(engine: &KvmEngine) -> Result<Works, Trouble> {
    let begin = Instant::now();
    let ram = memory()?;
    let vm = KvmVm::new(engine, &ram, &VmConfig { cpus: 1, ioapic_pins: 1, deterministic: None })?;
    let (mut vcpu, features) = vcpu(&vm)?;
    let program = Program::for_cpu(features);
    program.load(&ram).map_err(|e| Error::Unavailable(e.to_string()))?;
    vcpu.set_state(&program.state())?;
    let ended = run_limited(&mut vcpu, LIMIT)?;
    let regs = vcpu.registers()?;
    drop((vcpu, vm));
    program.judge(ended, regs.rip, regs.rbx)?;
    Ok(Works { tried: program.steps.iter().map(|step| step.name).collect(), time: begin.elapsed() })
}

fn memory() -> Result<Ram> {
    Ram::new(&[(0, RAM)], Backing::Anonymous).map_err(|e| Error::Unavailable(e.to_string()))
}

/// A vCPU that has all that KVM can offer.
fn vcpu(vm: &KvmVm) -> Result<(KvmVcpu, Features)> {
    let mut vcpu = vm.vcpu(0)?;
    let cpuid = vm.supported_cpuid()?.for_guest(Topology { apic_id: 0, cpus: 1 }, None);
    vcpu.set_cpuid(&cpuid)?;
    Ok((vcpu, Features::of(&cpuid)))
}

/// How the guest stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Ended {
    /// It wrote to this port.
    Port(u16),
    /// Internal error of KVM with this number.
    Internal(u32),
    /// Too late.
    TimedOut,
    /// Anything else.
    Otherwise(String),
}

/// Lets the vCPU run until it stops, `limit` at most.
fn run_limited(vcpu: &mut KvmVcpu, limit: Duration) -> Result<Ended, Error> {
    let kicker = vcpu.kicker();
    vcpu.runs_here();
    let (over, is_over) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if is_over.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
                kicker.kick();
            }
        });
        let ended = run_to_its_end(vcpu);
        drop(over);
        ended
    })
}

fn run_to_its_end(vcpu: &mut KvmVcpu) -> Result<Ended, Error> {
    loop {
        match vcpu.fd().run() {
            Ok(VcpuExit::IoOut(port, _)) => return Ok(Ended::Port(port)),
            Ok(VcpuExit::InternalError) => return Ok(Ended::Internal(vcpu.suberror())),
            Ok(VcpuExit::Shutdown) => return Ok(Ended::Otherwise("triple fault".into())),
            Ok(VcpuExit::Intr) => {}
            Ok(other) => return Ok(Ended::Otherwise(format!("{other:?}"))),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(e) => return Err(super::host("run a vCPU")(e)),
        }
        // Other signals than a kick have their own receivers.
        if vcpu.was_kicked() {
            return Ok(Ended::TimedOut);
        }
    }
}

impl Features {
    fn of(cpuid: &CpuidTable) -> Self {
        let leaf = |number| cpuid.0.iter().find(|leaf| leaf.leaf == number && leaf.subleaf == 0);
        let one = leaf(1).map_or(0, |leaf| leaf.ecx);
        let seven = leaf(7).map_or(0, |leaf| leaf.ebx);
        Self { xsave: one & 1 << 26 != 0, avx: one & 1 << 28 != 0, bmi2: seven & 1 << 8 != 0 }
    }
}

/// The steps that a CPU can do.
struct Program {
    steps: Vec<&'static Step>,
}

impl Program {
    fn for_cpu(features: Features) -> Self {
        Self { steps: STEPS.iter().filter(|step| (step.given)(&features)).collect() }
    }

    fn load(&self, ram: &Ram) -> Result<(), crate::mem::Error> {
        let table: Vec<u8> = gdt::table().iter().flat_map(|entry| entry.to_le_bytes()).collect();
        let code: Vec<u8> = self.steps.iter().flat_map(|step| step.code).chain(END).copied().collect();
        ram.write(GDT, &table)?;
        ram.write(CODE, &code)?;
        ram.write(PAGE_TABLES, &paging::identity_4g(PAGE_TABLES))
    }

    fn state(&self) -> CpuState {
        let mut state = boot::linux_entry(CODE, 0, Tables { gdt: GDT, page_tables: PAGE_TABLES });
        state.system.cr4 |= CR4_OSFXSR | CR4_OSXMMEXCPT;
        (state.regs.rbx, state.regs.rdi, state.regs.rsp) = (SEED, DATA, DATA_END);
        state
    }

    /// The step that has the instruction at `rip`.
    fn place(&self, rip: u64) -> &'static str {
        let mut end = CODE;
        for step in &self.steps {
            end += step.code.len() as u64;
            if (CODE..end).contains(&rip) {
                return step.name;
            }
        }
        "its end"
    }

    fn result(&self) -> u64 {
        self.steps.iter().fold(SEED, |rbx, step| (step.effect)(rbx))
    }

    fn judge(&self, ended: Ended, rip: u64, rbx: u64) -> Result<(), Trouble> {
        let place = self.place(rip);
        match ended {
            Ended::Port(DONE) if rbx == self.result() => Ok(()),
            Ended::Port(DONE) => Err(Trouble::Wrong { what: format!("a result of {rbx:#x}"), place }),
            Ended::Port(port) => Err(Trouble::Wrong { what: format!("a write to port {port:#x}"), place }),
            Ended::Internal(_) if crash::is_paravirtual() => Err(Trouble::Paravirtual),
            Ended::Internal(suberror) => Err(Trouble::Internal { suberror, place }),
            Ended::TimedOut => Err(Trouble::TimedOut(LIMIT)),
            Ended::Otherwise(what) => Err(Trouble::Wrong { what, place }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every combination of features that a CPU may lack.
    fn all_features() -> impl Iterator<Item = Features> {
        let bit = |n: u32, at: u32| n & 1 << at != 0;
        (0..8).map(move |n| Features { xsave: bit(n, 0), avx: bit(n, 1), bmi2: bit(n, 2) })
    }

    /// What this host says of itself is one of the documented findings, within the time that a start can spare; where
    /// KVM is real it must be that guests run.
    #[test]
    fn this_host_is_judged() {
        let engine = match KvmEngine::open_or_say() {
            Ok(engine) => engine,
            Err(trouble) => {
                assert!(!trouble.opens() && !trouble.remedy().is_empty());
                println!("\nSKIPPED engine::kvm probe: {trouble}");
                return;
            }
        };
        let begin = Instant::now();
        let found = run(&engine);
        println!("{:?}: {found:?}", begin.elapsed());
        assert!(begin.elapsed() < LIMIT, "{found:?}");
        if crash::is_paravirtual() {
            assert!(matches!(found, Err(Trouble::Paravirtual)), "{found:?}");
        } else {
            assert!(found.as_ref().is_ok_and(|works| works.tried.contains(&"SSE2")), "{found:?}");
        }
        assert_eq!(run(&engine).is_ok(), found.is_ok(), "it can be done again");
    }

    #[test]
    fn a_guest_that_does_not_end_is_ended() {
        let Ok(engine) = KvmEngine::open() else {
            println!("\nSKIPPED engine::kvm probe: no /dev/kvm");
            return;
        };
        let ram = memory().unwrap();
        let vm = KvmVm::new(&engine, &ram, &VmConfig { cpus: 1, ioapic_pins: 1, deterministic: None }).unwrap();
        let (mut vcpu, _) = vcpu(&vm).unwrap();
        let program = Program { steps: Vec::new() };
        program.load(&ram).unwrap();
        for code in [&[0xeb_u8, 0xfe][..], &[0xf4]] {
            // A loop, and a halt with interrupts off, from which nothing wakes.
            ram.write(CODE, code).unwrap();
            vcpu.set_state(&program.state()).unwrap();
            let begin = Instant::now();
            let ended = run_limited(&mut vcpu, Duration::from_millis(50)).unwrap();
            assert_eq!(ended, Ended::TimedOut, "{code:x?}");
            assert!(begin.elapsed() >= Duration::from_millis(50));
        }
        ram.write(CODE, END).unwrap();
        vcpu.set_state(&program.state()).unwrap();
        assert_eq!(run_limited(&mut vcpu, LIMIT).unwrap(), Ended::Port(DONE), "what was kicked runs again");
    }

    #[test]
    fn programs_fit_the_memory_and_tell_where_they_are() {
        for features in all_features() {
            let program = Program::for_cpu(features);
            let ram = memory().unwrap();
            program.load(&ram).unwrap();
            let mut at = CODE;
            for step in &program.steps {
                assert_eq!(program.place(at), step.name);
                at += step.code.len() as u64;
                assert_eq!(program.place(at - 1), step.name);
            }
            assert_eq!(program.place(at), "its end");
            assert_eq!(program.place(0), "its end");
            assert!(at + (END.len() as u64) < DATA);
            assert!(program.judge(Ended::Port(DONE), at, program.result()).is_ok());
            let wrong = program.judge(Ended::Port(DONE), at, program.result() ^ 1).unwrap_err().to_string();
            assert!(wrong.contains("does not run a small guest right"), "{wrong}");
        }
        let names = |features| Program::for_cpu(features).steps.iter().map(|step| step.name).collect::<Vec<_>>();
        assert_eq!(names(Features::default()), ["SSE2"]);
        assert_eq!(names(Features { avx: true, ..Features::default() }), ["SSE2"], "AVX needs XSAVE");
        assert_eq!(names(Features { xsave: true, avx: true, bmi2: true }), ["SSE2", "BMI2", "XSAVE", "AVX"]);
    }

    #[test]
    fn every_finding_has_its_own_words_and_a_remedy() {
        let place = "BMI2";
        let troubles = [
            Trouble::not_open(io::ErrorKind::NotFound.into()),
            Trouble::not_open(io::ErrorKind::PermissionDenied.into()),
            Trouble::not_open(io::ErrorKind::ResourceBusy.into()),
            Trouble::Version(11),
            Trouble::Lacks("KVM_CAP_IRQFD"),
            Trouble::Paravirtual,
            Trouble::Internal { suberror: 1, place },
            Trouble::TimedOut(LIMIT),
            Trouble::Wrong { what: "triple fault".into(), place },
            Trouble::Host(Error::Unavailable("no memory".into())),
        ];
        let said: std::collections::BTreeSet<_> = troubles.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), troubles.len());
        for trouble in &troubles {
            assert!(trouble.to_string().starts_with("/dev/kvm") && trouble.to_string().lines().count() == 1);
            assert!(!trouble.remedy().is_empty());
        }
        assert_eq!(troubles.iter().filter(|trouble| trouble.opens()).count(), 5);
        assert!(troubles[1].remedy().contains("group kvm") && troubles[0].remedy().contains("kvm-amd"));
    }
}
