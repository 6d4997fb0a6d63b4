//! temp
use std::path::{Path, PathBuf};
#[allow(missing_docs, missing_debug_implementations)]
pub struct Symbols;
#[allow(missing_docs)]
impl Symbols { pub fn of(_: &Path, _: &[PathBuf]) -> Result<Self, std::io::Error> { Ok(Self) } pub fn decode(&mut self, t: &str) -> String { t.into() } }
