//! Between KVM's structures and the engine-neutral ones of `arch`.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs,
};

use super::NAME;
use crate::arch::x86_64::cpuid::{CpuidTable, Leaf};
use crate::arch::x86_64::state::{DescriptorTable, Registers, Segment, SystemRegisters};
use crate::engine::Error;

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
