//! Guest code, decoded: blocks of operations, found again by the address of their bytes in RAM.

pub(super) mod block;
pub(super) mod op;
