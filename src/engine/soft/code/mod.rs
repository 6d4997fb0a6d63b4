//! Guest code, decoded: blocks of operations, found again by the address of their bytes in RAM.

pub(super) mod block;
pub(super) mod decode;
pub(super) mod features;
pub(super) mod lower;
pub(super) mod op;
