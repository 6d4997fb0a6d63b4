//! TEMPORARY
pub(super) mod state;
use crate::engine::soft::code::lower::Lowered;
use crate::engine::soft::code::op::Op;
#[derive(Debug, Default)]
pub(in crate::engine::soft) struct Thunks;
pub(in crate::engine::soft) fn lower(_: &iced_x86::Instruction, _: &mut Op, _: &Thunks) -> Lowered {
    Lowered::NotMine
}
