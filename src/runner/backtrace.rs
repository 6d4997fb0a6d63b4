//! Places in the source for the call traces of complaints, where the kernel's debug information is at hand.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::outcome::Splat;
use super::symbols::Symbols;
use crate::run::{KernelReport, RunSpec};

/// A bzImage in a build tree.
const BUILT: &str = "arch/x86/boot/bzImage";
/// What a build tree has of its modules, a path a line.
const BUILT_MODULES: &str = "modules.order";

/// Adds the places to the texts of `splats`.
pub(super) fn decode(splats: &mut [Splat], kernel: &KernelReport, run: &RunSpec) {
    if splats.is_empty() {
        return;
    }
    let names: BTreeSet<_> = splats.iter().flat_map(|splat| modules_in(&splat.text)).collect();
    let modules: Vec<_> = names.iter().filter_map(|name| module(name, kernel, run)).collect();
    let whole = vmlinux(kernel).map(|vmlinux| Symbols::of(&vmlinux, &modules)).transpose();
    let mut symbols = whole.unwrap_or_else(|e| {
        // Modules may have what the kernel has not.
        tracing::info!("no places in the source of the kernel: {e}");
        None
    });
    let symbols = symbols.get_or_insert_with(|| Symbols::of_modules(&modules));
    splats.iter_mut().for_each(|splat| splat.text = symbols.decode(&splat.text));
}

/// The build tree, if that is where the kernel comes from.
fn tree(kernel: &KernelReport) -> Option<&Path> {
    let depth = Path::new(BUILT).iter().count();
    kernel.path.ancestors().nth(depth).filter(|_| kernel.path.ends_with(BUILT))
}

/// The kernel as an ELF file, where build trees and packages of debug information have it.
fn vmlinux(kernel: &KernelReport) -> Option<PathBuf> {
    let debug = kernel.release.as_ref().map(|release| PathBuf::from(format!("/usr/lib/debug/boot/vmlinux-{release}")));
    let beside = kernel.path.parent().map(|parent| parent.join("vmlinux"));
    let places = [tree(kernel).map(|tree| tree.join("vmlinux")), debug, beside, Some(kernel.path.clone())];
    places.into_iter().flatten().find(|path| path.is_file())
}

/// Modules that a trace names: `function+0x1/0x2 [module]`.
fn modules_in(text: &str) -> impl Iterator<Item = &str> {
    let names = text.lines().filter_map(|line| line.trim_end().strip_suffix(']')?.rsplit_once(" ["));
    names.map(|(_, name)| name).filter(|name| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
}

/// The file of a module: from the build tree, or, for those of the user, a directory that the guest was given.
fn module(name: &str, kernel: &KernelReport, run: &RunSpec) -> Option<PathBuf> {
    let is_it = |path: &Path| path.file_stem().is_some_and(|stem| stem.to_string_lossy().replace('-', "_") == name);
    let listed = tree(kernel).and_then(|tree| {
        let list = std::fs::read_to_string(tree.join(BUILT_MODULES)).ok()?;
        let found = list.lines().map(Path::new).find(|path| is_it(path))?;
        Some(tree.join(found).with_extension("ko"))
    });
    let file = format!("{name}.ko");
    let given = run.volumes.iter().map(|volume| volume.host.join(&file));
    let places = listed.into_iter().chain(given).chain(run.workdir.as_ref().map(|dir| dir.join(&file)));
    places.into_iter().find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_named_at_the_ends_of_lines() {
        let text =
            " kasan_report+0xfa/0x130\n ? f+0x45/0x50 [planted]\n RIP: 0010:g+0x1/0x2 [a_b] \nTainted: [O]=OOT [x y]\n";
        assert_eq!(modules_in(text).collect::<Vec<_>>(), ["planted", "a_b"]);
    }

    #[test]
    fn build_trees_have_their_kernel_at_a_place() {
        let kernel = |path: &str| KernelReport { path: path.into(), release: None, origin: String::new() };
        assert_eq!(tree(&kernel("/src/linux/arch/x86/boot/bzImage")), Some(Path::new("/src/linux")));
        assert_eq!(tree(&kernel("/boot/vmlinuz")), None);
    }
}
