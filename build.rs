//! Compiles the agent that belljar starts in its guests (`guest/agent`), with rustc alone: a small static program of its
//! own, which `src/agent` embeds. No second package, so that `cargo install` works.

use std::env;
use std::path::PathBuf;
use std::process::{Command, exit};

/// Small, and with no part of the library that only start-up code of ordinary programs would need.
const OPTIONS: &[&str] = &[
    "opt-level=z",
    "lto=fat",
    "codegen-units=1",
    "panic=abort",
    "strip=symbols",
    "force-unwind-tables=no",
    "target-feature=+crt-static",
    "relocation-model=static",
    "link-arg=-Wl,-z,noseparate-code,--build-id=none",
];

fn main() {
    println!("cargo::rerun-if-changed=guest/agent");
    let get = |name: &str| env::var(name).unwrap_or_default();
    let out = PathBuf::from(get("OUT_DIR")).join("belljar-agent");
    let mut rustc = Command::new(get("RUSTC"));
    rustc.args(["--edition", "2024", "--crate-name", "belljar_agent", "--target", &get("TARGET"), "-o"]);
    rustc.arg(&out).arg("guest/agent/main.rs");
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.arg("-C").arg(format!("linker={linker}"));
    }
    rustc.args(OPTIONS.iter().flat_map(|option| ["-C", option]));
    match rustc.status() {
        Ok(status) if status.success() => {}
        Ok(_) => exit(1),
        Err(e) => {
            eprintln!("cannot start {}: {e}", get("RUSTC"));
            exit(1)
        }
    }
}
