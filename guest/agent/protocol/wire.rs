//! Numbers, texts and lists as bytes: little-endian, lengths and counts first as 32 bits. Readers trust nothing: what a
//! length promises and the bytes do not hold is [`Malformed`], and nothing is allocated before it is there.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The bytes do not mean what they should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("not understood")
    }
}

impl std::error::Error for Malformed {}

/// A value that can be put in a message.
pub trait Wire: Sized {
    /// Appends the value.
    fn put(&self, to: &mut Vec<u8>);
    /// Takes the value off the front.
    fn get(from: &mut &[u8]) -> Result<Self, Malformed>;
}

/// Takes `n` bytes off the front.
pub fn bytes<'a>(from: &mut &'a [u8], n: usize) -> Result<&'a [u8], Malformed> {
    let (taken, rest) = from.split_at_checked(n).ok_or(Malformed)?;
    *from = rest;
    Ok(taken)
}

/// A length; what is longer than 4 GiB is cut by nobody, because frames are bounded far below that.
fn put_len(n: usize, to: &mut Vec<u8>) {
    u32::try_from(n).unwrap_or(u32::MAX).put(to);
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Wire for $number {
            fn put(&self, to: &mut Vec<u8>) {
                to.extend_from_slice(&self.to_le_bytes());
            }

            fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
                let (number, rest) = from.split_first_chunk().ok_or(Malformed)?;
                *from = rest;
                Ok(Self::from_le_bytes(*number))
            }
        }
    )*};
}
numbers!(u8, u16, u32, u64);

impl Wire for bool {
    fn put(&self, to: &mut Vec<u8>) {
        u8::from(*self).put(to);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        match u8::get(from)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }
}

impl Wire for OsString {
    fn put(&self, to: &mut Vec<u8>) {
        put_len(self.len(), to);
        to.extend_from_slice(self.as_bytes());
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        let len = u32::get(from)? as usize;
        Ok(Self::from_vec(bytes(from, len)?.to_vec()))
    }
}

impl Wire for String {
    fn put(&self, to: &mut Vec<u8>) {
        put_len(self.len(), to);
        to.extend_from_slice(self.as_bytes());
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        let len = u32::get(from)? as usize;
        String::from_utf8(bytes(from, len)?.to_vec()).map_err(|_| Malformed)
    }
}

impl<const N: usize> Wire for [u8; N] {
    fn put(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        let (taken, rest) = from.split_first_chunk().ok_or(Malformed)?;
        *from = rest;
        Ok(*taken)
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, to: &mut Vec<u8>) {
        self.is_some().put(to);
        if let Some(value) = self {
            value.put(to);
        }
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(if bool::get(from)? { Some(T::get(from)?) } else { None })
    }
}

impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, to: &mut Vec<u8>) {
        self.0.put(to);
        self.1.put(to);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        Ok((A::get(from)?, B::get(from)?))
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, to: &mut Vec<u8>) {
        put_len(self.len(), to);
        self.iter().for_each(|item| item.put(to));
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        // No count is believed: the list grows as its items are found.
        let count = u32::get(from)?;
        let mut list = Self::new();
        for _ in 0..count {
            list.push(T::get(from)?);
        }
        Ok(list)
    }
}
