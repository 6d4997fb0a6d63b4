//! Symbol tables of kernels: what is built in shows in them where no configuration tells.

use std::collections::HashSet;
use std::fs::File;

use object::read::ReadCache;
use object::{Object, ObjectSymbol};

/// The names that a kernel defines.
#[derive(Debug)]
pub struct Symbols(HashSet<Box<str>>);

impl Symbols {
    /// Reads the symbol table of an ELF file; none if it was stripped, or cannot be read.
    pub fn read(file: &File) -> Option<Self> {
        let cache = ReadCache::new(file);
        let elf = object::File::parse(&cache).inspect_err(|error| tracing::debug!(%error, "no symbols")).ok()?;
        let names = elf.symbols().filter(ObjectSymbol::is_definition).filter_map(|symbol| symbol.name().ok());
        // Compilers add suffixes to names that are not unique in the whole.
        let names: HashSet<_> = names.map(|name| name.split_once('.').map_or(name, |(name, _)| name).into()).collect();
        (!names.is_empty()).then_some(Self(names))
    }

    /// Whether it defines `name`.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}
