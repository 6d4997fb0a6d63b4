//! Effective addresses (SDM volume 1, 3.7.5) and the checks of segments outside 64-bit mode (volume 3, chapter 5).

use crate::engine::soft::code::op::{Op, Seg};
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::{self, Break};
use crate::engine::soft::memory::walk::Access;
use crate::engine::soft::width::Width;

impl Cpu {
    /// Linear address of the memory operand of `op`, `bytes` long.
    #[inline(always)]
    pub(in crate::engine::soft) fn address(&mut self, op: &Op, bytes: u64, access: Access) -> Result<u64, Break> {
        match self.flat_address(op) {
            Some(at) => Ok(at),
            None => self.address_slow(op, bytes, access).ok_or(Break::Fault),
        }
    }

    /// The source operand: register `op.src`, or memory if `MEM`.
    #[inline(always)]
    pub(in crate::engine::soft) fn source<T: Width, const MEM: bool>(&mut self, op: &Op) -> Result<T, Break> {
        if !MEM {
            return Ok(self.regs.get(op.src));
        }
        let at = self.address(op, T::BYTES, Access::Read)?;
        self.load(at)
    }

    /// Base + index << scale + displacement.
    #[inline(always)]
    pub(in crate::engine::soft) fn offset64(&self, op: &Op) -> u64 {
        let index = self.regs.get64(op.index).wrapping_shl(op.scale.into());
        self.regs.get64(op.base).wrapping_add(index).wrapping_add(i64::from(op.disp) as u64)
    }

    /// The offset within its segment, at the address size.
    pub(in crate::engine::soft) fn offset(&self, op: &Op) -> u64 {
        op.addressing.wrapped(self.offset64(op))
    }

    /// None after a fault: unlike a `Result` it is returned in registers.
    #[cold]
    #[inline(never)]
    fn address_slow(&mut self, op: &Op, bytes: u64, access: Access) -> Option<u64> {
        let offset = self.offset(op);
        self.segmented(op.seg, offset, bytes, access).ok()
    }

    /// Linear address of `bytes` at `offset` of a segment, which outside 64-bit mode must allow the access.
    pub(in crate::engine::soft) fn segmented(
        &mut self,
        seg: Seg,
        offset: u64,
        bytes: u64,
        access: Access,
    ) -> Result<u64, Break> {
        if self.is_64() {
            return Ok(self.seg_base[seg as usize & 7].wrapping_add(offset));
        }
        let segment = self.segment(seg);
        let last = offset.wrapping_add(bytes.max(1) - 1);
        let limit = u64::from(segment.limit);
        let code = segment.kind & 8 != 0;
        let allowed = match access {
            Access::Write => !code && segment.kind & 2 != 0,
            Access::Read => !code || segment.kind & 2 != 0,
            Access::Fetch => true,
        };
        let inside = if !code && segment.kind & 4 != 0 {
            let top = if segment.db { 0xffff_ffff } else { 0xffff };
            offset > limit && last <= top
        } else {
            last <= limit
        };
        let usable = !segment.unusable || !self.protected();
        if usable && inside && (allowed || !self.protected()) {
            return Ok(segment.base.wrapping_add(offset) & 0xffff_ffff);
        }
        Err(self.raise(if seg == Seg::Ss { fault::SS } else { fault::GP }, Some(0)))
    }

    /// Linear address of code at `ip`.
    #[inline]
    pub(in crate::engine::soft) fn code_address(&mut self, ip: u64) -> Result<u64, Break> {
        if self.is_64() { Ok(ip) } else { self.segmented(Seg::Cs, ip, 1, Access::Fetch) }
    }

    /// A near transfer to `target`; the limit and whether it is canonical are checked first.
    #[inline(always)]
    pub(in crate::engine::soft) fn jump(&mut self, target: u64) -> Break {
        let allowed =
            if self.is_64() { Self::canonical(target) } else { target <= u64::from(self.segment(Seg::Cs).limit) };
        if !allowed {
            return self.gp(0);
        }
        self.rip = target;
        Break::Jump
    }
}
