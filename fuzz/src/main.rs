//! One binary for all targets: `BELLJAR_FUZZ` names the one to run, the arguments are libFuzzer's. With
//! `BELLJAR_FUZZ_SEEDS=DIR` it first writes the target's seeds there.

#![no_main]

use std::sync::OnceLock;

use belljar::fuzz::{TARGETS, Target, target};

static TARGET: OnceLock<&Target> = OnceLock::new();

fn prepare() {
    let name = std::env::var("BELLJAR_FUZZ").unwrap_or_default();
    let Some(found) = target(&name) else {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("BELLJAR_FUZZ={name}: no such target; there are {}", names.join(" "));
        std::process::exit(2);
    };
    if let Some(dir) = std::env::var_os("BELLJAR_FUZZ_SEEDS") {
        for (seed, number) in (found.seeds)().iter().zip(0..) {
            let path = std::path::Path::new(&dir).join(format!("seed-{number}"));
            std::fs::write(&path, seed).unwrap_or_else(|e| panic!("cannot write {}: {e}", path.display()));
        }
    }
    // libfuzzer-sys ends the process at every panic. Those of the qcow2 driver are expected: belljar catches them.
    std::panic::set_hook(Box::new(|info| {
        let file = info.location().map_or("", |place| place.file());
        if file.contains("/imago-") {
            return;
        }
        eprintln!("{info}\n{}", std::backtrace::Backtrace::force_capture());
        std::process::abort();
    }));
    let _ = TARGET.set(found);
}

libfuzzer_sys::fuzz_target!(init: prepare(), |data: &[u8]| {
    if let Some(target) = TARGET.get() {
        (target.run)(data);
    }
});
