//! What kernels use.
pub(super) mod event;
pub(super) mod lower;
pub(super) mod msr;
mod mtrr;
