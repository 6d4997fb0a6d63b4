//! The state after RESET and after INIT, and how a start-up message sets a CPU going (SDM volume 3, tables 11-1 and
//! section 10.4.4.2).

use super::breakpoints::Armed;
use super::debug;
use crate::arch::x86_64::state::{Activity, DescriptorTable, Segment};
use crate::engine::soft::code::op::Seg;
use crate::engine::soft::cpu::{Cpu, cr0};
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::vector::state::VectorState;

/// A segment register after RESET.
const fn segment(selector: u16, base: u64, kind: u8, s: bool) -> Segment {
    Segment {
        base,
        limit: 0xffff,
        selector,
        kind,
        present: true,
        dpl: 0,
        db: false,
        s,
        l: false,
        g: false,
        avl: false,
        unusable: false,
    }
}

impl Cpu {
    /// RESET: all but the local APIC and the model-specific registers, which have their own.
    pub(in crate::engine::soft) fn reset(&mut self) {
        self.system.cr0 = cr0::CD | cr0::NW;
        self.system.xcr0 = 1;
        self.vector = VectorState::default();
        self.init();
        self.system.activity = if self.index == 0 { Activity::Running } else { Activity::WaitForInit };
    }

    /// INIT: vector registers, XCR0, most model-specific registers and the cache bits of CR0 stay. The CPU then waits for a
    /// start-up message, but for the boot CPU, which starts over.
    pub(in crate::engine::soft) fn init(&mut self) {
        for number in 0..16 {
            self.regs.set64(RegAt::gpr(number), 0);
        }
        let [signature, ..] = self.cpuid(1, 0);
        self.regs.set64(RegAt::RDX, signature.into());
        for seg in [Seg::Es, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
            self.set_segment(seg, segment(0, 0, 3, true));
        }
        self.set_segment(Seg::Cs, segment(0xf000, 0xffff_0000, 0xb, true));
        let system = &mut self.system;
        system.ldt = segment(0, 0, 2, false);
        system.tr = segment(0, 0, 0xb, false);
        system.gdt = DescriptorTable { base: 0, limit: 0xffff };
        system.idt = DescriptorTable { base: 0, limit: 0xffff };
        system.cr0 = system.cr0 & (cr0::CD | cr0::NW) | cr0::ET;
        (system.cr2, system.cr3, system.cr4, system.efer) = (0, 0, 0, 0);
        system.breakpoints = [0; 4];
        (system.dr6, system.dr7) = debug::RESET;
        self.armed = Armed::default();
        let system = &mut self.system;
        system.nmi_blocked = false;
        system.activity = if self.index == 0 { Activity::Running } else { Activity::WaitForSipi };
        self.rip = 0xfff0;
        self.cpl = 0;
        self.shadow = false;
        self.set_rflags(0);
        self.tlb.flush();
        self.mode_changed();
    }

    /// A start-up message with this vector: the CPU executes from the start of page `vector`, in real mode. Counts only
    /// while it waits for one.
    pub(in crate::engine::soft) fn start(&mut self, vector: u8) {
        if self.system.activity != Activity::WaitForSipi {
            return;
        }
        let cs = segment(u16::from(vector) << 8, u64::from(vector) << 12, 0xb, true);
        self.set_segment(Seg::Cs, cs);
        self.rip = 0;
        self.system.activity = Activity::Running;
        self.mode_changed();
    }
}
