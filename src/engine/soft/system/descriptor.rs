//! Descriptors and the tables that hold them (SDM volume 3, 3.4.5, 3.5, 5.8.3), read with supervisor rights whatever the
//! current privilege level is (4.6.1, implicit supervisor-mode accesses).

use crate::arch::x86_64::state::Segment;
use crate::engine::soft::cpu::{CodeSize, Cpu};
use crate::engine::soft::fault::{Break, Step};
use crate::engine::soft::flags::rflags;

/// Selector bits: requested privilege level; local table.
pub(super) const RPL: u16 = 3;
pub(super) const LOCAL: u16 = 4;

/// Type field of segments: code; conforming code or expand-down data; readable code or writable data; accessed.
pub(super) mod kind {
    pub(crate) const CODE: u8 = 8;
    pub(crate) const CONFORMING: u8 = 4;
    pub(crate) const EXPAND_DOWN: u8 = 4;
    pub(crate) const READABLE: u8 = 2;
    pub(crate) const WRITABLE: u8 = 2;
    pub(crate) const ACCESSED: u8 = 1;
}

/// Type field of system descriptors (SDM volume 3, table 3-2).
pub(super) mod system {
    pub(crate) const TSS16: u8 = 1;
    pub(crate) const LDT: u8 = 2;
    pub(crate) const TSS16_BUSY: u8 = 3;
    pub(crate) const CALL_GATE16: u8 = 4;
    pub(crate) const TASK_GATE: u8 = 5;
    pub(crate) const INTERRUPT_GATE16: u8 = 6;
    pub(crate) const TRAP_GATE16: u8 = 7;
    pub(crate) const TSS: u8 = 9;
    pub(crate) const TSS_BUSY: u8 = 0xb;
    /// 32 bits, in IA-32e mode 64.
    pub(crate) const CALL_GATE: u8 = 0xc;
    pub(crate) const INTERRUPT_GATE: u8 = 0xe;
    pub(crate) const TRAP_GATE: u8 = 0xf;
}

/// The error code that names a selector.
pub(super) const fn error_of(selector: u16) -> u32 {
    (selector & !RPL) as u32
}

/// Whether a selector selects nothing.
pub(super) const fn is_null(selector: u16) -> bool {
    selector & !RPL == 0
}

/// The first eight bytes of a descriptor, and where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// The bytes.
    pub(super) raw: u64,
    /// Linear address.
    pub(super) at: u64,
}

impl Descriptor {
    fn bit(self, number: u32) -> bool {
        self.raw >> number & 1 != 0
    }

    /// Type field.
    pub(super) fn kind(self) -> u8 {
        (self.raw >> 40 & 15) as u8
    }

    /// Code or data, not a system descriptor.
    pub(super) fn is_segment(self) -> bool {
        self.bit(44)
    }

    pub(super) fn dpl(self) -> u8 {
        (self.raw >> 45 & 3) as u8
    }

    pub(super) fn present(self) -> bool {
        self.bit(47)
    }

    /// 64-bit code.
    pub(super) fn long(self) -> bool {
        self.bit(53)
    }

    /// D/B.
    pub(super) fn big(self) -> bool {
        self.bit(54)
    }

    pub(super) fn is_code(self) -> bool {
        self.is_segment() && self.kind() & kind::CODE != 0
    }

    pub(super) fn is_conforming(self) -> bool {
        self.is_code() && self.kind() & kind::CONFORMING != 0
    }

    pub(super) fn is_writable_data(self) -> bool {
        self.is_segment() && self.kind() & (kind::CODE | kind::WRITABLE) == kind::WRITABLE
    }

    /// Data, or code that may be read.
    pub(super) fn is_readable(self) -> bool {
        self.is_segment() && (self.kind() & kind::CODE == 0 || self.kind() & kind::READABLE != 0)
    }

    /// Limit in bytes.
    pub(super) fn limit(self) -> u32 {
        let limit = (self.raw & 0xffff | self.raw >> 32 & 0xf_0000) as u32;
        if self.bit(55) { limit << 12 | 0xfff } else { limit }
    }

    /// The low 32 bits of the base.
    pub(super) fn base(self) -> u64 {
        self.raw >> 16 & 0xff_ffff | self.raw >> 32 & 0xff00_0000
    }

    /// As it is in a segment register; segments become accessed by being loaded.
    pub(super) fn segment(self, selector: u16) -> Segment {
        let accessed = if self.is_segment() { kind::ACCESSED } else { 0 };
        Segment {
            base: self.base(),
            limit: self.limit(),
            selector,
            kind: self.kind() | accessed,
            present: self.present(),
            dpl: self.dpl(),
            db: self.big(),
            s: self.is_segment(),
            l: self.long(),
            g: self.bit(55),
            avl: self.bit(52),
            unusable: false,
        }
    }
}

/// What a segment register holds after a null selector was loaded.
pub(super) fn null_segment(selector: u16) -> Segment {
    Segment { selector, unusable: true, dpl: (selector & RPL) as u8, ..Segment::default() }
}

impl Cpu {
    /// Does `work` with the rights of privilege level `cpl`, without what AC allows, and with addresses as wide as the mode
    /// has them (delivery of events crosses from compatibility to 64-bit code). `work` changes no mode.
    pub(super) fn with_privilege<R>(&mut self, cpl: u8, work: impl FnOnce(&mut Self) -> R) -> R {
        let (cpl_before, flags_before, size_before) = (self.cpl, self.system.rflags, self.code_size);
        self.cpl = cpl;
        self.system.rflags &= !rflags::AC;
        if self.long_mode() {
            self.code_size = CodeSize::Bits64;
        }
        self.choose_tlb();
        let result = work(self);
        (self.cpl, self.system.rflags, self.code_size) = (cpl_before, flags_before, size_before);
        self.choose_tlb();
        result
    }

    /// Does `work` with supervisor rights.
    pub(super) fn as_supervisor<R>(&mut self, work: impl FnOnce(&mut Self) -> R) -> R {
        self.with_privilege(0, work)
    }

    /// A linear address from a table's base: 32 bits outside IA-32e mode.
    pub(super) fn table_address(&self, base: u64, offset: u64) -> u64 {
        let at = base.wrapping_add(offset);
        if self.long_mode() { at } else { at & 0xffff_ffff }
    }

    /// The descriptor of a selector; none if the table has none there. A selector that selects nothing is the caller's.
    pub(super) fn find_descriptor(&mut self, selector: u16, bytes: u64) -> Result<Option<Descriptor>, Break> {
        let (base, limit) = if selector & LOCAL == 0 {
            (self.system.gdt.base, u32::from(self.system.gdt.limit))
        } else if self.system.ldt.unusable {
            return Ok(None);
        } else {
            (self.system.ldt.base, self.system.ldt.limit)
        };
        let offset = u64::from(selector & !7);
        if offset + bytes - 1 > limit.into() {
            return Ok(None);
        }
        let at = self.table_address(base, offset);
        let raw = self.as_supervisor(|cpu| cpu.load::<u64>(at))?;
        Ok(Some(Descriptor { raw, at }))
    }

    /// The descriptor of a selector that is not null; #GP(selector) if the table has none there.
    pub(super) fn descriptor(&mut self, selector: u16) -> Result<Descriptor, Break> {
        match self.find_descriptor(selector, 8)? {
            Some(descriptor) => Ok(descriptor),
            None => Err(self.gp(error_of(selector))),
        }
    }

    /// The second eight bytes of a system descriptor, in IA-32e mode; #GP(selector) if the table ends before them.
    pub(super) fn second_half(&mut self, selector: u16, first: Descriptor) -> Result<u64, Break> {
        if self.find_descriptor(selector, 16)?.is_none() {
            return Err(self.gp(error_of(selector)));
        }
        let at = self.table_address(first.at, 8);
        self.as_supervisor(|cpu| cpu.load::<u64>(at))
    }

    /// Sets the accessed bit in memory, if it is not set.
    pub(super) fn mark_accessed(&mut self, descriptor: Descriptor) -> Step {
        if descriptor.kind() & kind::ACCESSED != 0 {
            return Ok(());
        }
        self.set_type_bits(descriptor, kind::ACCESSED)
    }

    /// Sets bits of the type field in memory.
    pub(super) fn set_type_bits(&mut self, descriptor: Descriptor, bits: u8) -> Step {
        let at = self.table_address(descriptor.at, 5);
        self.as_supervisor(|cpu| cpu.modify_locked::<u8, ()>(at, |byte| (byte | bits, ())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::gdt;

    #[test]
    fn descriptors_read_back_as_they_were_made() {
        let placed = Segment { base: 0x1234_5678, limit: 0x1_2345, g: false, dpl: 3, avl: true, ..gdt::DATA };
        for segment in [gdt::CODE32, gdt::CODE64, gdt::DATA, gdt::TASK, placed] {
            let descriptor = Descriptor { raw: gdt::descriptor(&segment), at: 0 };
            assert_eq!(descriptor.segment(segment.selector), segment);
        }
        let code = Descriptor { raw: gdt::descriptor(&gdt::CODE64), at: 0 };
        assert!(code.is_code() && code.is_readable() && !code.is_conforming() && !code.is_writable_data());
        let data = Descriptor { raw: gdt::descriptor(&gdt::DATA), at: 0 };
        assert!(data.is_writable_data() && !data.is_code());
        assert!(is_null(3) && !is_null(4) && error_of(0x2b) == 0x28);
    }
}
