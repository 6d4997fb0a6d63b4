//! TEMPORARY
use crate::engine::soft::code::lower::Lowered;
use crate::engine::soft::code::op::Op;
pub(in crate::engine::soft) fn lower(_: &iced_x86::Instruction, _: &mut Op) -> Lowered {
    Lowered::NotMine
}
