//! Ethernet addresses.

use std::fmt;
use std::str::FromStr;

use rustix::rand::{GetRandomFlags, getrandom};

/// An address of one interface (not of a group).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mac([u8; 6]);

/// First byte: the address is that of a group.
const GROUP: u8 = 1;
/// First byte: the address is not from a manufacturer.
const LOCAL: u8 = 2;

impl Mac {
    /// An address that no other interface is likely to have: 46 random bits.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 6];
        getrandom(&mut bytes, GetRandomFlags::empty())?;
        bytes[0] = bytes[0] & !GROUP | LOCAL;
        Ok(Self(bytes))
    }

    /// The address with these bytes, unless they are those of a group or all zeros.
    pub fn new(bytes: [u8; 6]) -> Option<Self> {
        (bytes[0] & GROUP == 0 && bytes != [0; 6]).then_some(Self(bytes))
    }

    /// The bytes in the order of transmission.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for Mac {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit())).ok_or(())?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| ())?;
        }
        if parts.next().is_some() {
            return Err(());
        }
        Self::new(bytes).ok_or(())
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let text = "52:54:00:aB:00:01";
        assert_eq!(text.parse::<Mac>().unwrap().to_string(), text.to_lowercase());
        for bad in ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52-54-00-12-34-56", "+2:54:00:12:34:56"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
        for group in ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"] {
            assert!(group.parse::<Mac>().is_err(), "{group}");
        }
    }

    #[test]
    fn random_addresses_are_local_and_differ() {
        let (a, b) = (Mac::random().unwrap(), Mac::random().unwrap());
        assert_ne!(a, b);
        assert_eq!(a.bytes()[0] & 3, LOCAL);
    }
}
