//! The differential test: instructions with random operands, on the host CPU and on the software CPU, from the same state.

mod case;
mod encoding;
mod generate;
mod host;
mod random;
mod scope;
mod trampoline;
