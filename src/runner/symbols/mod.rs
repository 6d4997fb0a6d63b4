//! Places in the source for the functions in a kernel's traces: `f+0x12/0x34 [module]` becomes
//! `f+0x12/0x34 [module] (drivers/x/x.c:33)`. What counts is the offset in the function, so that it does not matter where
//! the kernel and its modules were loaded.
//!
//! | file | what it is |
//! | --- | --- |
//! | `binary` | functions and lines of vmlinux or of a module |
//! | `sections` | its debug information: read, unpacked, relocated |
//! | `place` | where in the source something is |

mod binary;
mod place;
mod sections;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use regex::{Captures, Regex};

use binary::Binary;

/// Why there are no places.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("Cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is no ELF file with readable debug information: {reason}")]
    Format { path: PathBuf, reason: String },
    #[error(
        "{path} has no line numbers, so traces stay as the kernel prints them: build it with \
         CONFIG_DEBUG_INFO_DWARF_TOOLCHAIN_DEFAULT=y"
    )]
    NoLines { path: PathBuf },
}

static SYMBOL: LazyLock<Regex> = LazyLock::new(|| {
    let pattern = r"(?P<name>[A-Za-z_$][\w$.]*)\+0x(?P<offset>[0-9a-f]{1,16})/0x(?P<size>[0-9a-f]{1,16})(?: \[(?P<module>[\w-]+)[^\]]*\])?";
    Regex::new(pattern).unwrap_or_else(|error| panic!("{error}"))
});

/// A kernel and its modules.
#[derive(Debug)]
pub struct Symbols {
    kernel: Option<Binary>,
    /// By name as the kernel has it.
    modules: HashMap<String, Module>,
    /// What was looked up, as traces repeat themselves.
    known: HashMap<Spot, String>,
}

#[derive(Debug)]
enum Module {
    Unread(PathBuf),
    Read(Box<Binary>),
    /// It cannot be read, or has no line numbers.
    Useless,
}

/// An address that was printed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Spot {
    module: Option<String>,
    name: String,
    size: u64,
    offset: u64,
}

/// Addresses of which the places are remembered.
const KNOWN: usize = 10_000;

impl Symbols {
    /// Reads a `vmlinux` with debug information. `modules` are `.ko` files, compressed or not: they are read when they
    /// occur in a trace.
    ///
    /// # Errors
    ///
    /// `vmlinux` cannot be read, or has no line numbers.
    pub fn of(vmlinux: &Path, modules: &[PathBuf]) -> Result<Self, Error> {
        Ok(Self { kernel: Some(Binary::open(vmlinux)?), ..Self::of_modules(modules) })
    }

    /// The same for a kernel that has no line numbers, whose modules may have some.
    pub fn of_modules(modules: &[PathBuf]) -> Self {
        let modules = modules.iter().filter_map(|path| Some((module_name(path)?, Module::Unread(path.clone()))));
        Self { kernel: None, modules: modules.collect(), known: HashMap::new() }
    }

    /// `text` with the place after each function that is known: what was inlined first, the function itself last.
    pub fn decode(&mut self, text: &str) -> String {
        let lines = text.split('\n').map(|line| {
            // Traces have the address to return to; the call is before it. These have the address itself.
            let exact = line.contains("IP: ") || line.contains("WARNING: ");
            let all = |captures: &Captures<'_>| format!("{}{}", &captures[0], self.place(captures, exact));
            SYMBOL.replace_all(line, all).into_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    /// ` (PLACE)`, or nothing.
    fn place(&mut self, captures: &Captures<'_>, exact: bool) -> String {
        let text = |name| captures.name(name).map(|found| found.as_str());
        let number = |name| text(name).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or_default();
        let offset = number("offset").saturating_sub(u64::from(!exact));
        let name = text("name").unwrap_or_default().to_owned();
        let spot = Spot { module: text("module").map(kernel_name), name, size: number("size"), offset };
        if let Some(known) = self.known.get(&spot) {
            return known.clone();
        }
        let places =
            self.binary(spot.module.as_deref()).map(|binary| binary.places(&spot.name, spot.size, spot.offset));
        let found = places.filter(|text| !text.is_empty()).map(|text| format!(" ({text})")).unwrap_or_default();
        if self.known.len() < KNOWN {
            self.known.insert(spot, found.clone());
        }
        found
    }

    fn binary(&mut self, module: Option<&str>) -> Option<&Binary> {
        let Some(name) = module else { return self.kernel.as_ref() };
        let module = self.modules.get_mut(name)?;
        if let Module::Unread(path) = module {
            *module = Binary::open(path).map_or(Module::Useless, |binary| Module::Read(Box::new(binary)));
        }
        match module {
            Module::Read(binary) => Some(binary),
            _ => None,
        }
    }
}

/// `some-module.ko.xz` as the kernel calls it: `some_module`.
fn module_name(path: &Path) -> Option<String> {
    let (name, _) = path.file_name()?.to_str()?.split_once(".ko")?;
    Some(kernel_name(name))
}

fn kernel_name(name: &str) -> String {
    name.replace('-', "_")
}
