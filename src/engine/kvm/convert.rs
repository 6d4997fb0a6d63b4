//! Between KVM's structures and the engine-neutral ones of `arch`.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW,
    kvm_cpuid_entry2, kvm_debugregs, kvm_dtable, kvm_lapic_state, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
};

use super::NAME;
use crate::arch::x86_64::cpuid::{CpuidTable, Leaf};
use crate::arch::x86_64::state::{DebugRegisters, DescriptorTable, Events, Registers, Segment, SystemRegisters};
use crate::engine::Error;

/// KVM_X86_SHADOW_INT_STI (api.rst, 4.32).
const SHADOW_OF_STI: u8 = 2;

pub(super) fn cpuid_from_kvm(cpuid: &CpuId) -> CpuidTable {
    let leaf = |e: &kvm_cpuid_entry2| Leaf {
        leaf: e.function,
        subleaf: e.index,
        indexed: e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: e.eax,
        ebx: e.ebx,
        ecx: e.ecx,
        edx: e.edx,
    };
    CpuidTable(cpuid.as_slice().iter().map(leaf).collect())
}

pub(super) fn cpuid_to_kvm(table: &CpuidTable) -> Result<CpuId, Error> {
    let entry = |l: &Leaf| kvm_cpuid_entry2 {
        function: l.leaf,
        index: l.subleaf,
        flags: if l.indexed { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax: l.eax,
        ebx: l.ebx,
        ecx: l.ecx,
        edx: l.edx,
        ..Default::default()
    };
    let entries: Vec<_> = table.0.iter().map(entry).collect();
    CpuId::from_entries(&entries)
        .map_err(|_| Error::Unsupported { engine: NAME, reason: "too many CPUID leaves".into() })
}

/// Both structures list the same registers under the same names.
macro_rules! same_names {
    ($from:expr => $to:ident { $($name:ident),* }) => { $to { $($name: $from.$name),* } };
}

pub(super) fn regs_to_kvm(r: &Registers) -> kvm_regs {
    same_names!(r => kvm_regs { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags })
}

pub(super) fn regs_from_kvm(r: &kvm_regs) -> Registers {
    same_names!(r => Registers { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags })
}

fn segment_to_kvm(s: &Segment) -> kvm_segment {
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.kind,
        present: s.present.into(),
        dpl: s.dpl,
        db: s.db.into(),
        s: s.s.into(),
        l: s.l.into(),
        g: s.g.into(),
        avl: s.avl.into(),
        unusable: s.unusable.into(),
        padding: 0,
    }
}

fn segment_from_kvm(s: &kvm_segment) -> Segment {
    Segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        kind: s.type_,
        present: s.present != 0,
        dpl: s.dpl,
        db: s.db != 0,
        s: s.s != 0,
        l: s.l != 0,
        g: s.g != 0,
        avl: s.avl != 0,
        unusable: s.unusable != 0,
    }
}

/// Puts `s` over `sregs`, keeping what the neutral state does not have (pending interrupts).
pub(super) fn system_to_kvm(s: &SystemRegisters, sregs: &mut kvm_sregs) {
    let table = |t: DescriptorTable| kvm_dtable { base: t.base, limit: t.limit, padding: [0; 3] };
    sregs.cs = segment_to_kvm(&s.cs);
    sregs.ds = segment_to_kvm(&s.ds);
    sregs.es = segment_to_kvm(&s.es);
    sregs.fs = segment_to_kvm(&s.fs);
    sregs.gs = segment_to_kvm(&s.gs);
    sregs.ss = segment_to_kvm(&s.ss);
    sregs.tr = segment_to_kvm(&s.tr);
    sregs.ldt = segment_to_kvm(&s.ldt);
    sregs.gdt = table(s.gdt);
    sregs.idt = table(s.idt);
    (sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.cr8) = (s.cr0, s.cr2, s.cr3, s.cr4, s.cr8);
    (sregs.efer, sregs.apic_base) = (s.efer, s.apic_base);
}

/// All of them, `kvm_debugregs` and the neutral form.
pub(super) fn debug_to_kvm(d: &DebugRegisters) -> kvm_debugregs {
    kvm_debugregs { db: d.breakpoints, dr6: d.dr6, dr7: d.dr7, ..Default::default() }
}

pub(super) fn debug_from_kvm(d: &kvm_debugregs) -> DebugRegisters {
    DebugRegisters { breakpoints: d.db, dr6: d.dr6, dr7: d.dr7 }
}

/// Events as KVM takes them; what the neutral form does not have (system management mode) stays as it is.
pub(super) fn events_to_kvm(e: &Events) -> kvm_vcpu_events {
    let mut to =
        kvm_vcpu_events { flags: KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW, ..Default::default() };
    (to.interrupt.injected, to.interrupt.nr) = (e.interrupt.is_some().into(), e.interrupt.unwrap_or(0));
    to.interrupt.shadow = if e.shadow { SHADOW_OF_STI } else { 0 };
    (to.nmi.masked, to.nmi.pending) = (e.nmi_blocked.into(), e.nmi_pending.into());
    if let Some((vector, error)) = e.exception {
        (to.exception.injected, to.exception.nr) = (1, vector);
        (to.exception.has_error_code, to.exception.error_code) = (error.is_some().into(), error.unwrap_or(0));
    }
    to
}

pub(super) fn events_from_kvm(e: &kvm_vcpu_events) -> Events {
    let error = (e.exception.has_error_code != 0).then_some(e.exception.error_code);
    Events {
        shadow: e.interrupt.shadow != 0,
        nmi_blocked: e.nmi.masked != 0,
        nmi_pending: e.nmi.pending != 0 || e.nmi.injected != 0,
        interrupt: (e.interrupt.injected != 0).then_some(e.interrupt.nr),
        exception: (e.exception.injected != 0).then_some((e.exception.nr, error)),
    }
}

pub(super) fn apic_to_kvm(page: &[u8]) -> kvm_lapic_state {
    let mut to = kvm_lapic_state::default();
    to.regs.iter_mut().zip(page).for_each(|(to, from)| *to = *from as std::ffi::c_char);
    to
}

pub(super) fn apic_from_kvm(apic: &kvm_lapic_state) -> Vec<u8> {
    apic.regs.iter().map(|byte| *byte as u8).collect()
}

pub(super) fn system_from_kvm(s: &kvm_sregs) -> SystemRegisters {
    let table = |t: kvm_dtable| DescriptorTable { base: t.base, limit: t.limit };
    SystemRegisters {
        cs: segment_from_kvm(&s.cs),
        ds: segment_from_kvm(&s.ds),
        es: segment_from_kvm(&s.es),
        fs: segment_from_kvm(&s.fs),
        gs: segment_from_kvm(&s.gs),
        ss: segment_from_kvm(&s.ss),
        tr: segment_from_kvm(&s.tr),
        ldt: segment_from_kvm(&s.ldt),
        gdt: table(s.gdt),
        idt: table(s.idt),
        cr0: s.cr0,
        cr2: s.cr2,
        cr3: s.cr3,
        cr4: s.cr4,
        cr8: s.cr8,
        efer: s.efer,
        apic_base: s.apic_base,
    }
}
