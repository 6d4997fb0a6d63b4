//! A directory of the host in the guest, as users of containers write it: `HOST:GUEST[:ro|rw]`.

use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A shared directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Directory of the host.
    pub host: PathBuf,
    /// Where the guest finds it: an absolute path.
    pub guest: String,
    /// The guest cannot write.
    pub read_only: bool,
}

impl FromStr for Volume {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |what: &str| format!("`{text}`: {what}; write HOST:GUEST or HOST:GUEST:ro");
        let (rest, read_only) = match text.rsplit_once(':') {
            Some((rest, "ro")) if rest.contains(':') => (rest, true),
            Some((rest, "rw")) if rest.contains(':') => (rest, false),
            _ => (text, false),
        };
        let (host, guest) = rest.rsplit_once(':').ok_or_else(|| wrong("no `:` between host and guest"))?;
        if host.is_empty() {
            return Err(wrong("no directory of the host"));
        }
        let path = Path::new(guest);
        if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
            return Err(wrong("the guest's path must be absolute and without `..`"));
        }
        if path == Path::new("/") {
            return Err(wrong("the guest's root is chosen with --root"));
        }
        Ok(Self { host: host.into(), guest: guest.into(), read_only })
    }
}

impl fmt::Display for Volume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = if self.read_only { ":ro" } else { "" };
        write!(f, "{}:{}{mode}", self.host.display(), self.guest)
    }
}

impl Serialize for Volume {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Volume {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_written_as_for_containers() {
        let volume = |text: &str| text.parse::<Volume>();
        let src = Volume { host: "/home/me".into(), guest: "/src".into(), read_only: false };
        assert_eq!(volume("/home/me:/src"), Ok(src.clone()));
        assert_eq!(volume("/home/me:/src:rw"), Ok(src));
        let read_only = volume("a:b:/src:ro").unwrap();
        assert_eq!((read_only.host.to_str(), read_only.read_only), (Some("a:b"), true));
        assert_eq!(read_only.to_string().parse(), Ok(read_only));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, part) in [
            ("/src", "no `:`"),
            (":/src", "no directory of the host"),
            ("/a:src", "must be absolute"),
            ("/a:/b/../c", "without `..`"),
            ("/a:/", "--root"),
            ("/a:ro", "must be absolute"),
        ] {
            let error = text.parse::<Volume>().unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
