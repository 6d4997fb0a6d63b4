//! Configurations of kernels: which options are built in or modules. From a file beside the kernel, or from the kernel
//! itself, if it was built with CONFIG_IKCONFIG (linux/kernel/configs.c).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use super::compressed;
use super::search::find_in;
use crate::loader::unpack::Part;

/// Distributions' configurations have some 300 KiB.
const MAX: u64 = 8 << 20;
/// Around the embedded one.
const BEGIN: &[u8] = b"IKCFG_ST";

/// How an option is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Not at all.
    Unset,
    /// `=m`.
    Module,
    /// `=y`.
    BuiltIn,
}

/// The options of a kernel that are set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config(HashMap<Box<str>, Setting>);

impl Config {
    /// Reads the text of a `.config`; none if it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let set = text.lines().filter_map(|line| {
            let (name, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
            match value {
                "y" => Some((name.into(), Setting::BuiltIn)),
                "m" => Some((name.into(), Setting::Module)),
                _ => None,
            }
        });
        let config = Self(set.collect());
        (!config.0.is_empty()).then_some(config)
    }

    /// Reads a configuration file, which may be compressed as `/proc/config.gz` is.
    pub fn read(path: &Path) -> io::Result<Self> {
        let text = compressed::read(path, MAX)?;
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, "it is not a kernel configuration");
        Self::parse(&String::from_utf8_lossy(&text)).ok_or_else(wrong)
    }

    /// The configuration inside of an ELF kernel, if there is one.
    pub fn embedded(vmlinux: &File) -> io::Result<Option<Self>> {
        let Some(at) = find_in(vmlinux, BEGIN)? else { return Ok(None) };
        let packed = Part { file: vmlinux, at: at + BEGIN.len() as u64, end: u64::MAX };
        let mut text = String::new();
        // What follows the compressed text is not its decoder's business.
        let mut text_of = flate2::bufread::GzDecoder::new(BufReader::new(packed)).take(MAX);
        Ok(match text_of.read_to_string(&mut text) {
            Ok(_) => Self::parse(&text),
            // The mark was something else.
            Err(_) => None,
        })
    }

    /// How `option`, a name without `CONFIG_`, is set.
    pub fn setting(&self, option: &str) -> Setting {
        self.0.get(option).copied().unwrap_or(Setting::Unset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::fixtures::{self, pack};
    use crate::loader::unpack::Format;

    const TEXT: &str = "#\n# Linux/x86 6.1.0 Kernel Configuration\n#\nCONFIG_FUSE_FS=m\nCONFIG_EXT4_FS=y\n\
                        # CONFIG_XFS_FS is not set\nCONFIG_HZ=250\n";

    #[test]
    fn options_are_told_apart() {
        let config = Config::parse(TEXT).unwrap();
        assert_eq!(config.setting("FUSE_FS"), Setting::Module);
        assert_eq!(config.setting("EXT4_FS"), Setting::BuiltIn);
        assert_eq!(config.setting("XFS_FS"), Setting::Unset);
        assert_eq!(config.setting("HZ"), Setting::Unset);
        assert_eq!(Config::parse("hello\n"), None);
    }

    #[test]
    fn it_is_found_in_a_file_and_in_a_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        for text in [TEXT.as_bytes().to_vec(), pack(Format::Gzip, TEXT.as_bytes())] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(Config::read(&path).unwrap(), Config::parse(TEXT).unwrap());
        }
        std::fs::write(&path, "nothing").unwrap();
        assert!(Config::read(&path).is_err());
        let embed = |packed: &[u8]| {
            let text = [&vec![7; 300_000], BEGIN, packed, b"IKCFG_ED", &[7; 1000]].concat();
            Config::embedded(&fixtures::file(&text)).unwrap()
        };
        let packed = pack(Format::Gzip, TEXT.as_bytes());
        assert_eq!(embed(&packed), Config::parse(TEXT));
        assert_eq!(embed(&packed[..20]), None, "damaged");
        assert_eq!(embed(b"only a text that speaks of it"), None);
        assert_eq!(Config::embedded(&fixtures::file(b"IKCFG_S")).unwrap(), None);
    }
}
