//! Little-endian numbers in file headers, none if the header ends before; and a page of zeros to compare with, which
//! is quick even without optimisation.

use crate::mem::PAGE;

/// A page of zeros.
pub static ZERO_PAGE: [u8; PAGE as usize] = [0; PAGE as usize];

/// 16 bits at `at`.
pub fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    bytes(data, at).map(u16::from_le_bytes)
}

/// 32 bits at `at`.
pub fn u32_at(data: &[u8], at: usize) -> Option<u32> {
    bytes(data, at).map(u32::from_le_bytes)
}

/// 64 bits at `at`.
pub fn u64_at(data: &[u8], at: usize) -> Option<u64> {
    bytes(data, at).map(u64::from_le_bytes)
}

fn bytes<const N: usize>(data: &[u8], at: usize) -> Option<[u8; N]> {
    data.get(at..at.checked_add(N)?)?.try_into().ok()
}
