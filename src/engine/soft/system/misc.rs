//! CPUID, RDMSR, WRMSR, RDTSC, RDTSCP, RDPID, RDPMC, RDRAND, RDSEED, PAUSE (SDM volume 2).

use crate::engine::soft::code::op::Op;
use crate::engine::soft::cpu::{Cpu, cr4};
use crate::engine::soft::fault::Step;
use crate::engine::soft::flags::Flags;
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::width::Width;

/// After so many PAUSEs a CPU that spins gives its host CPU to whoever wants it, perhaps to the vCPU that it waits for: if
/// each vCPU may have a host CPU of its own, and if not.
const PATIENCE: u32 = 16384;
const LITTLE_PATIENCE: u32 = 256;

impl Cpu {
    /// Sets EDX:EAX.
    fn set_pair(&mut self, value: u64) {
        self.regs.set(RegAt::RAX, value as u32);
        self.regs.set(RegAt::RDX, (value >> 32) as u32);
    }

    /// #GP(0) where CR4.TSD keeps time from programs.
    fn tells_time(&mut self) -> Step {
        if self.cpl != 0 && self.system.cr4 & cr4::TSD != 0 { Err(self.gp(0)) } else { Ok(()) }
    }
}

/// CPUID.
pub(super) fn cpuid(cpu: &mut Cpu, _: &Op) -> Step {
    let [eax, ebx, ecx, edx] = cpu.cpuid(cpu.regs.get(RegAt::RAX), cpu.regs.get(RegAt::RCX));
    cpu.regs.set(RegAt::RAX, eax);
    cpu.regs.set(RegAt::RBX, ebx);
    cpu.regs.set(RegAt::RCX, ecx);
    cpu.regs.set(RegAt::RDX, edx);
    Ok(())
}

/// RDMSR.
pub(super) fn rdmsr(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.privileged()?;
    let value = cpu.read_msr(cpu.regs.get(RegAt::RCX))?;
    cpu.set_pair(value);
    Ok(())
}

/// WRMSR.
pub(super) fn wrmsr(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.privileged()?;
    let (low, high): (u32, u32) = (cpu.regs.get(RegAt::RAX), cpu.regs.get(RegAt::RDX));
    cpu.write_msr(cpu.regs.get(RegAt::RCX), u64::from(high) << 32 | u64::from(low))
}

/// RDTSC.
pub(super) fn rdtsc(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.tells_time()?;
    let now = cpu.guest_tsc();
    cpu.set_pair(now);
    Ok(())
}

/// RDTSCP.
pub(super) fn rdtscp(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.tells_time()?;
    let now = cpu.guest_tsc();
    cpu.set_pair(now);
    cpu.regs.set(RegAt::RCX, cpu.system.msrs.tsc_aux as u32);
    Ok(())
}

/// RDPID.
pub(super) fn rdpid(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.regs.set64(op.dst, cpu.system.msrs.tsc_aux & 0xffff_ffff);
    Ok(())
}

/// RDPMC: there are no performance counters.
pub(super) fn rdpmc(cpu: &mut Cpu, _: &Op) -> Step {
    Err(cpu.gp(0))
}

/// RDRAND and RDSEED.
pub(super) fn random<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.random_number();
    cpu.regs.set(op.dst, T::from_u64(value.unwrap_or(0)));
    cpu.flags = Flags::from_rflags(0);
    cpu.flags.set(Flags::CF, value.is_some());
    Ok(())
}

impl Cpu {
    /// Eight random bytes of the host's, or of the seed's; none if the host has none now.
    fn random_number(&mut self) -> Option<u64> {
        if let Some(seeded) = &mut self.random {
            return Some(seeded.next_u64());
        }
        self.entropy.next_u64()
    }
}

/// PAUSE.
pub(super) fn pause(cpu: &mut Cpu, _: &Op) -> Step {
    if cpu.shared.cpus() > 1 {
        cpu.system.pauses = cpu.system.pauses.wrapping_add(1);
        let patience = if cpu.shared.crowded { LITTLE_PATIENCE } else { PATIENCE };
        if cpu.system.pauses.is_multiple_of(patience) {
            std::thread::yield_now();
        }
    }
    Ok(())
}
