//! Kernel modules, from files of the initramfs.

use std::fs::File;
use std::io;

use super::Notes;
use crate::serve::reason;
use crate::sys;

/// Loads `modules` in this order. What a module is missed for says more than that it did not load: a note.
pub fn load(modules: &[String], notes: &mut Notes) {
    for module in modules {
        if let Err(e) = load_one(module) {
            notes.push(format!("cannot load the kernel module {module}: {}", reason(&e)));
        }
    }
}

fn load_one(module: &str) -> io::Result<()> {
    match sys::load_module(&File::open(module)?) {
        // Loaded already, or part of the kernel.
        Err(e) if e.raw_os_error() == Some(sys::EEXIST) => Ok(()),
        result => result,
    }
}
