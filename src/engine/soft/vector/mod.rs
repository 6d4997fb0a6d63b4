//! x87, MMX, SSE to SSE4.2, AES, PCLMULQDQ, SHA, AVX, AVX2, FMA and F16C (SDM volume 1, chapters 8 to 14): the host's CPU
//! executes most of these instructions itself, on the guest's registers.
//!
//! [`lower::lower`], called by the decoder, picks what executes an instruction. The common moves and bitwise operations are
//! functions here (`moves.rs`, `bitwise.rs`), as is common arithmetic (`float.rs`, `mxcsr.rs`); the rest are stubs in executable memory (`code_memory.rs`), one for each
//! encoding with its registers normalised (`stub.rs`, `thunks.rs`), called by `run.rs` (XMM and YMM registers) and `legacy.rs`
//! (x87 and MMX). What stores or loads whole states is in `area.rs` and `control.rs`, what touches memory element by element
//! in `masked.rs` and `gather.rs`.

mod access;
mod area;
mod bitwise;
mod code_memory;
mod control;
mod float;
mod gather;
mod legacy;
mod lower;
mod masked;
mod moves;
mod mxcsr;
mod offer;
mod run;
pub(super) mod state;
mod stub;
mod thunks;

#[cfg(test)]
mod tests;

pub(in crate::engine::soft) use self::lower::lower;
pub(in crate::engine::soft) use self::thunks::Thunks;
