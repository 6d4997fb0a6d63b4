//! Options of one device, from a flag (`PATH,key=value,switch`) or from a TOML table: one parser for both.
//!
//! A comma inside a value is written twice.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

/// One thing that can be set on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key {
    /// Name, e.g. `readonly`.
    pub name: &'static str,
    /// What the value looks like in help, e.g. `PATH`, `on|off`, `SIZE`.
    pub value: &'static str,
    /// One line for help, with the default.
    pub about: &'static str,
}

/// Options that are not right. Always names the device and the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{device}: {reason}")]
pub struct OptionError {
    /// Flag name, e.g. `--disk`.
    pub device: String,
    /// What is wrong and what is right.
    pub reason: String,
}

/// The options of one device, taken one by one; what is left at the end is an error.
#[derive(Debug, Clone)]
pub struct Options {
    kind: &'static str,
    keys: &'static [Key],
    values: BTreeMap<String, String>,
}

impl Options {
    /// Parses the text of a flag. An empty text sets nothing.
    pub fn from_flag(kind: &'static str, keys: &'static [Key], text: &str) -> Result<Self, OptionError> {
        let mut values = BTreeMap::new();
        let parts = split_commas(text);
        for (position, part) in parts.iter().enumerate() {
            let known = part.split_once('=').filter(|(key, _)| keys.iter().any(|k| k.name == *key));
            let (key, value) = match (known, keys.first()) {
                (Some(pair), _) => pair,
                (None, _) if keys.iter().any(|k| k.name == part && k.value == "on|off") => (part.as_str(), "on"),
                (None, Some(first)) if position == 0 => (first.name, part.as_str()),
                (None, _) => (part.split_once('=').map_or(part.as_str(), |(key, _)| key), ""),
            };
            if values.insert(key.to_string(), value.to_string()).is_some() {
                return Err(error(kind, format!("{key} is given twice")));
            }
        }
        Self::from_values(kind, keys, values)
    }

    /// Options from (key, value) pairs, as they stand in a TOML table.
    pub fn from_values(
        kind: &'static str,
        keys: &'static [Key],
        values: BTreeMap<String, String>,
    ) -> Result<Self, OptionError> {
        if let Some(unknown) = values.keys().find(|name| !keys.iter().any(|k| k.name == *name)) {
            let known: Vec<_> = keys.iter().map(|k| k.name).collect();
            let known =
                if known.is_empty() { "it takes none".into() } else { format!("known are {}", known.join(", ")) };
            return Err(error(kind, format!("unknown key `{unknown}`; {known}")));
        }
        Ok(Self { kind, keys, values })
    }

    /// An error about these options.
    pub fn error(&self, reason: impl Into<String>) -> OptionError {
        error(self.kind, reason.into())
    }

    /// All values as given; what a specification file stores.
    pub fn values(&self) -> &BTreeMap<String, String> {
        &self.values
    }

    /// The text given for `key`.
    pub fn text(&self, key: &str) -> Option<&str> {
        debug_assert!(self.keys.iter().any(|k| k.name == key), "{key} is not in the list of keys");
        self.values.get(key).map(String::as_str)
    }

    /// The text given for `key`, which must be there and not empty.
    pub fn required(&self, key: &str) -> Result<&str, OptionError> {
        match self.text(key) {
            Some(text) if !text.is_empty() => Ok(text),
            _ => Err(self.error(format!("{key}= is missing"))),
        }
    }

    /// A path.
    pub fn path(&self, key: &str) -> Result<Option<PathBuf>, OptionError> {
        match self.text(key) {
            Some("") => Err(self.error(format!("{key}= is empty; give a path"))),
            text => Ok(text.map(PathBuf::from)),
        }
    }

    /// `on`, `off` (or `true`, `false`, `yes`, `no`).
    pub fn switch(&self, key: &str, default: bool) -> Result<bool, OptionError> {
        match self.text(key) {
            None => Ok(default),
            Some("on" | "true" | "yes") => Ok(true),
            Some("off" | "false" | "no") => Ok(false),
            Some(other) => Err(self.error(format!("{key}={other}: say on or off"))),
        }
    }

    /// A number within `range`.
    pub fn number<T>(&self, key: &str, default: T, range: std::ops::RangeInclusive<T>) -> Result<T, OptionError>
    where
        T: FromStr + PartialOrd + std::fmt::Display,
    {
        let Some(text) = self.text(key) else { return Ok(default) };
        match text.parse() {
            Ok(number) if range.contains(&number) => Ok(number),
            _ => Err(self.error(format!("{key}={text}: give a number from {} to {}", range.start(), range.end()))),
        }
    }

    /// A size in bytes: a number with an optional suffix K, M, G or T (powers of 1024).
    pub fn size(&self, key: &str) -> Result<Option<u64>, OptionError> {
        let Some(text) = self.text(key) else { return Ok(None) };
        parse_size(text).map(Some).ok_or_else(|| self.error(format!("{key}={text}: give a size such as 512M or 2G")))
    }

    /// One of `choices`.
    pub fn choice<T: Copy>(&self, key: &str, default: T, choices: &[(&str, T)]) -> Result<T, OptionError> {
        let Some(text) = self.text(key) else { return Ok(default) };
        choices.iter().find(|(name, _)| *name == text).map(|(_, value)| *value).ok_or_else(|| {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            self.error(format!("{key}={text}: choose one of {}", names.join(", ")))
        })
    }
}

fn error(kind: &str, reason: String) -> OptionError {
    OptionError { device: format!("--{kind}"), reason }
}

/// `512M` and the like in bytes. Suffixes K, M, G, T are powers of 1024, `B`, `iB` may follow them; none means bytes.
pub fn parse_size(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let shift = match text[digits..].to_ascii_uppercase().trim_end_matches('B').trim_end_matches('I') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn split_commas(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            (',', Some(',')) => {
                chars.next();
                parts.last_mut().into_iter().for_each(|part| part.push(','));
            }
            (',', _) => parts.push(String::new()),
            _ => parts.last_mut().into_iter().for_each(|part| part.push(c)),
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &[Key] = &[
        Key { name: "path", value: "PATH", about: "" },
        Key { name: "readonly", value: "on|off", about: "" },
        Key { name: "queues", value: "N", about: "" },
    ];

    fn parse(text: &str) -> Result<Options, OptionError> {
        Options::from_flag("disk", KEYS, text)
    }

    #[test]
    fn flags_set_values() {
        let options = parse("/a,,b=c,readonly,queues=4").unwrap();
        assert_eq!(options.required("path"), Ok("/a,b=c"));
        assert_eq!(options.switch("readonly", false), Ok(true));
        assert_eq!(options.number("queues", 1, 1..=8), Ok(4));
        assert_eq!(parse("").unwrap().number("queues", 1, 1..=8), Ok(1));
        assert_eq!(parse("readonly=off,path=x").unwrap().required("path"), Ok("x"));
    }

    #[test]
    fn mistakes_name_the_device_the_key_and_the_remedy() {
        let say = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(say("x,size=3"), "--disk: unknown key `size`; known are path, readonly, queues");
        assert_eq!(say("x,readonly,readonly"), "--disk: readonly is given twice");
        let options = parse("queues=9").unwrap();
        let wrong = options.number("queues", 1, 1..=8).unwrap_err().to_string();
        assert_eq!(wrong, "--disk: queues=9: give a number from 1 to 8");
        assert_eq!(options.required("path").unwrap_err().to_string(), "--disk: path= is missing");
    }

    #[test]
    fn sizes_have_suffixes() {
        let cases = [("1", 1), ("4k", 4096), ("2M", 2 << 20), ("3GiB", 3 << 30), ("1TB", 1 << 40)];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for text in ["", "M", "1X", "-1", "99999999999T", "1.5G"] {
            assert_eq!(parse_size(text), None, "{text}");
        }
    }
}
