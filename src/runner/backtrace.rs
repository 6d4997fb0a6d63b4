//! Places in the source for the call traces of complaints, where the kernel's debug information is at hand.

use std::path::{Path, PathBuf};

use super::outcome::Splat;
use super::symbols::Symbols;
use crate::run::KernelReport;

/// A bzImage in a build tree.
const BUILT: &str = "arch/x86/boot/bzImage";

/// Adds the places to the texts of `splats`.
pub(super) fn decode(splats: &mut [Splat], kernel: &KernelReport) {
    if splats.is_empty() {
        return;
    }
    let Some(vmlinux) = vmlinux(kernel) else { return };
    match Symbols::of(&vmlinux, &[]) {
        Ok(mut symbols) => splats.iter_mut().for_each(|splat| splat.text = symbols.decode(&splat.text)),
        Err(e) => tracing::info!("no places in the source: {e}"),
    }
}

/// The kernel as an ELF file, where build trees and packages of debug information have it.
fn vmlinux(kernel: &KernelReport) -> Option<PathBuf> {
    let tree = kernel.path.ends_with(BUILT).then(|| kernel.path.ancestors().nth(Path::new(BUILT).iter().count()));
    let debug = kernel.release.as_ref().map(|release| PathBuf::from(format!("/usr/lib/debug/boot/vmlinux-{release}")));
    let beside = kernel.path.parent().map(|parent| parent.join("vmlinux"));
    let places = [tree.flatten().map(|tree| tree.join("vmlinux")), debug, beside, Some(kernel.path.clone())];
    places.into_iter().flatten().find(|path| path.is_file())
}
