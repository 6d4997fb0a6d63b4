//! Functions and lines of one ELF file: `vmlinux`, or a module.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use addr2line::Context;
use gimli::{EndianArcSlice, LittleEndian};
use object::read::ReadCache;
use object::{Object, ObjectSymbol, SymbolKind};

use super::sections::{self, Elf};
use super::{Error, place};
use crate::kernel::compressed;

type Reader = EndianArcSlice<LittleEndian>;

/// Functions that the compiler put into each other at one address: more are damage.
const DEPTH: usize = 32;

pub(super) struct Binary {
    lines: Context<Reader>,
    /// Directory in which it was built.
    root: String,
    /// Addresses of what has a name: several functions may have the same.
    symbols: HashMap<String, Vec<u64>>,
    /// All of them, sorted.
    addresses: Vec<u64>,
}

impl fmt::Debug for Binary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Binary").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Binary {
    /// Reads what is needed of a file.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        let format = |error: &dyn fmt::Display| Error::Format { path: path.to_owned(), reason: error.to_string() };
        let file = compressed::open(path).map_err(read)?;
        let cache = ReadCache::new(&file);
        let elf = object::File::parse(&cache).map_err(|error| format(&error))?;
        let bases = sections::bases(&elf);
        let dwarf = gimli::Dwarf::load(|id| {
            let data = sections::read(&elf, &file, id, &bases).map_err(read)?;
            Ok(Reader::new(Arc::from(data), LittleEndian))
        })?;
        let root = root(&dwarf).ok_or_else(|| Error::NoLines { path: path.to_owned() })?;
        let lines = Context::from_dwarf(dwarf).map_err(|error| format(&error))?;
        let mut binary = Self { lines, root, symbols: HashMap::new(), addresses: Vec::new() };
        binary.take_symbols(&elf, &bases);
        Ok(binary)
    }

    fn take_symbols(&mut self, elf: &Elf<'_>, bases: &HashMap<object::SectionIndex, u64>) {
        for symbol in elf.symbols().filter(|symbol| is_code(symbol.kind())) {
            let (Ok(name), Some(section)) = (symbol.name(), symbol.section_index()) else { continue };
            let address = symbol.address().wrapping_add(bases.get(&section).copied().unwrap_or_default());
            self.symbols.entry(name.to_owned()).or_default().push(address);
            self.addresses.push(address);
        }
        self.addresses.sort_unstable();
        self.addresses.dedup();
    }

    /// The place of an offset in a function of the given size, after the places of what is inlined there; nothing if they
    /// are not known.
    pub(super) fn places(&self, name: &str, size: u64, offset: u64) -> String {
        let address = self.function(name, size).and_then(|start| start.checked_add(offset));
        address.and_then(|address| self.places_at(address)).unwrap_or_default()
    }

    /// Address of the function; of several with the same name the one of that size, if only one is.
    fn function(&self, name: &str, size: u64) -> Option<u64> {
        let candidates = self.symbols.get(name)?;
        if let [only] = candidates.as_slice() {
            return Some(*only);
        }
        // The kernel has no sizes: to it, a function goes on to the next.
        let mut fitting = candidates.iter().filter(|start| self.end(**start) == start.checked_add(size));
        fitting.next().filter(|_| fitting.next().is_none()).copied()
    }

    fn end(&self, start: u64) -> Option<u64> {
        self.addresses.get(self.addresses.partition_point(|address| *address <= start)).copied()
    }

    fn places_at(&self, address: u64) -> Option<String> {
        let mut frames = self.lines.find_frames(address).skip_all_loads().ok()?;
        let mut places = Vec::new();
        while let Some(frame) = frames.next().ok()?.filter(|_| places.len() < DEPTH) {
            let location = frame.location?;
            let place = format!("{}:{}", place::relative(location.file?, &self.root), location.line?);
            let name = frame.function.as_ref().and_then(|name| name.raw_name().ok()).unwrap_or_default().into_owned();
            places.push((place, name));
        }
        let (last, inlined) = places.split_last()?;
        let inlined = inlined.iter().map(|(place, name)| format!("{place} in {name}, "));
        Some(inlined.collect::<String>() + &last.0)
    }
}

/// Where the first unit with debug information was compiled: the root of a kernel's tree.
fn root(dwarf: &gimli::Dwarf<Reader>) -> Option<String> {
    let mut headers = dwarf.units();
    while let Some(header) = headers.next().ok()? {
        let Ok(unit) = dwarf.unit(header) else { continue };
        if let (Some(directory), Some(_)) = (&unit.comp_dir, &unit.line_program) {
            return Some(gimli::Reader::to_string_lossy(directory).ok()?.into_owned());
        }
    }
    None
}

/// Functions, and what assembly code names without saying what it is.
fn is_code(kind: SymbolKind) -> bool {
    matches!(kind, SymbolKind::Text | SymbolKind::Label | SymbolKind::Unknown)
}
