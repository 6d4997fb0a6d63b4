//! Paths in belljar.toml are relative to the directory that the file is in.

use std::path::{Path, PathBuf};

use crate::devices::KINDS;
use crate::run::RunSpec;

/// Where the guest has file systems of its own, whatever its root is.
const OF_THE_GUEST: [&str; 5] = ["/tmp", "/run", "/dev", "/proc", "/sys"];

/// Whether guests have a file system of their own there, even with the host's root.
pub(in crate::runner) fn is_of_the_guest(path: &Path) -> bool {
    OF_THE_GUEST.iter().any(|own| path.starts_with(own))
}

/// `path` as seen from `base`; `~/` is the home directory.
pub(super) fn at(base: &Path, path: &Path) -> PathBuf {
    match (path.strip_prefix("~"), std::env::home_dir()) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => base.join(path),
    }
}

/// Makes all paths of the host in `run` relative to `base`, and has its command start there if the guest has it.
pub(super) fn rebase(run: &mut RunSpec, base: &Path) {
    let machine = &mut run.machine;
    if let Some(kernel) = &mut machine.kernel {
        // It may be a name.
        if kernel.components().count() > 1 || at(base, kernel).exists() {
            *kernel = at(base, kernel);
        }
    }
    let alone = [&mut run.root, &mut run.disk_root, &mut run.modules].into_iter().flatten();
    let trace = machine.trace.as_mut().map(|trace| &mut trace.path);
    let lists = machine.initrd.iter_mut().chain(&mut run.env_file).chain(run.volumes.iter_mut().map(|v| &mut v.host));
    alone.chain(trace).chain(lists).for_each(|path| *path = at(base, path));
    for kind in KINDS {
        for options in machine.device_options_mut(kind.name()) {
            for (key, value) in options.iter_mut() {
                let form = kind.keys().iter().find(|known| known.name == key).map_or("", |known| known.value);
                rebase_option(form, value, base);
            }
        }
    }
    let here = run.root.as_deref().unwrap_or(Path::new("/")) == Path::new("/") && run.disk_root.is_none();
    match &mut run.workdir {
        Some(dir) if here => *dir = at(base, dir),
        Some(_) => {}
        None if here && !is_of_the_guest(base) => run.workdir = Some(base.into()),
        None => {}
    }
}

/// An option of a device whose values look like `form` in help: `PATH`, or `pty|file=PATH`.
fn rebase_option(form: &str, value: &mut String, base: &Path) {
    let prefix = match form {
        "PATH" | "FILE" | "DIR" | "SOCKET" if !value.is_empty() => "",
        _ => match value.split_once('=') {
            Some((word, _)) if form.split('|').any(|known| known == format!("{word}=PATH")) => word,
            _ => return,
        },
    };
    let path = value.strip_prefix(prefix).map(|rest| rest.strip_prefix('=').unwrap_or(rest)).unwrap_or(value);
    let path = at(base, Path::new(path)).to_string_lossy().into_owned();
    *value = if prefix.is_empty() { path } else { format!("{prefix}={path}") };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rebased(text: &str, base: &str) -> RunSpec {
        let mut run = RunSpec::from_toml(text).unwrap();
        rebase(&mut run, Path::new(base));
        run
    }

    #[test]
    fn every_path_of_the_host_is_relative_to_the_file() {
        let run = rebased(
            "kernel = \"out/bzImage\"\ninitrd = [\"i\"]\nroot = \"r\"\nmodules = \"m\"\nenv-file = [\"/e\"]\n\
             volumes = [\"v:/v\"]\ntrace = { path = \"t\" }\nworkdir = \"/w\"\nserial = \"file=s\"\nconsole = \"null\"\n\
             [[disk]]\npath = \"d\"\nserial = \"d\"\n[[net]]\ntap = \"t0\"\npcap = \"p\"\n",
            "/b",
        );
        let expected = "kernel = \"/b/out/bzImage\"\ninitrd = [\"/b/i\"]\nroot = \"/b/r\"\nmodules = \"/b/m\"\n\
             env-file = [\"/e\"]\nvolumes = [\"/b/v:/v\"]\ntrace = { path = \"/b/t\" }\nworkdir = \"/w\"\n\
             serial = \"file=/b/s\"\nconsole = \"null\"\n[[disk]]\npath = \"/b/d\"\nserial = \"d\"\n\
             [[net]]\ntap = \"t0\"\npcap = \"/b/p\"\n";
        assert_eq!(run, RunSpec::from_toml(expected).unwrap());
    }

    #[test]
    fn kernels_may_be_names_and_paths_may_begin_at_home() {
        assert_eq!(rebased("kernel = \"6.1.0-1-amd64\"", "/b").machine.kernel, Some("6.1.0-1-amd64".into()));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("bzImage"), "").unwrap();
        let kernel = rebased("kernel = \"bzImage\"", dir.path().to_str().unwrap()).machine.kernel;
        assert_eq!(kernel, Some(dir.path().join("bzImage")));
        let home = std::env::home_dir().unwrap();
        assert_eq!(at(Path::new("/b"), Path::new("~/linux")), home.join("linux"));
    }

    #[test]
    fn commands_start_where_the_file_is_if_the_guest_has_that() {
        let workdir = |text: &str, base: &str| rebased(text, base).workdir;
        assert_eq!(workdir("", "/src"), Some("/src".into()));
        assert_eq!(workdir("workdir = \"sub\"", "/src"), Some("/src/sub".into()));
        assert_eq!(workdir("root = \"/r\"", "/src"), None);
        assert_eq!(workdir("", "/tmp/x"), None);
    }
}
