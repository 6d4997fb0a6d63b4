//! The environment of a command: what flags and files say of it.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::Error;

/// The environment that `--env` and `--env-file` make; what stands later counts, and files before flags.
pub fn environment(env: &[OsString], files: &[PathBuf]) -> Result<Vec<(OsString, OsString)>, Error> {
    let mut variables: Vec<(OsString, OsString)> = Vec::new();
    let mut set = |text: &OsStr| {
        let bytes = text.as_bytes();
        let at = bytes.iter().position(|&byte| byte == b'=');
        let name = OsStr::from_bytes(at.and_then(|at| bytes.get(..at)).unwrap_or(bytes));
        let value = match at.and_then(|at| bytes.get(at + 1..)) {
            Some(value) => Some(OsStr::from_bytes(value).to_owned()),
            // Not set here, not set there.
            None => std::env::var_os(name),
        };
        variables.retain(|(known, _)| known != name);
        variables.extend(value.map(|value| (name.to_owned(), value)));
    };
    for path in files {
        let text = std::fs::read(path).map_err(|source| Error::EnvFile { path: path.clone(), source })?;
        let lines = text.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with(b"#"));
        lines.for_each(|line| set(OsStr::from_bytes(line)));
    }
    env.iter().for_each(|text| set(text));
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_what_flags_and_files_say() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(&file, "# comment\nA=1\nB=two words\r\n\nPATH\n").unwrap();
        let env = environment(&["A=3".into(), "C=".into(), "NOT_SET_ANYWHERE".into()], &[file]).unwrap();
        let path = std::env::var_os("PATH").unwrap();
        let expected = [("B", "two words".into()), ("PATH", path), ("A", "3".into()), ("C", "".into())];
        assert_eq!(env, expected.map(|(name, value)| (name.into(), value)));
        let missing = environment(&[], &["/no/such".into()]).unwrap_err().to_string();
        assert!(missing.contains("/no/such"), "{missing}");
    }
}
