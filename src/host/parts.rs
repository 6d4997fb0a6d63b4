//! A part of a list of buffers: for requests of which one piece goes here and the next one there.

// UNSAFETY: makes buffers that lie within other buffers.
#![expect(unsafe_code)]

use std::marker::PhantomData;
use std::ops::Deref;

use crate::host::vectored::IoBuf;

/// Some bytes of a borrowed list of buffers; used like the list itself.
#[derive(Debug)]
pub struct Parts<'a> {
    list: Vec<IoBuf>,
    lender: PhantomData<&'a [IoBuf]>,
}

impl Deref for Parts<'_> {
    type Target = [IoBuf];

    fn deref(&self) -> &[IoBuf] {
        &self.list
    }
}

/// The `len` bytes of `bufs` after the first `skip`; fewer if there are not so many.
pub fn part(bufs: &[IoBuf], mut skip: u64, mut len: u64) -> Parts<'_> {
    let mut list = Vec::new();
    for buf in bufs {
        if len == 0 {
            break;
        }
        let size = buf.len() as u64;
        if skip >= size {
            skip -= size;
            continue;
        }
        let count = (size - skip).min(len);
        let start = buf.volatile().ptr_guard_mut().as_ptr().wrapping_add(skip as usize);
        // SAFETY: the range lies within `buf`, which stays borrowed, and so mapped, as long as the result exists.
        list.push(unsafe { IoBuf::new(start, count as usize) });
        len -= count;
        skip = 0;
    }
    Parts { list, lender: PhantomData }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::buffers::Buffers;
    use crate::mem::{Backing, Ram};

    #[test]
    fn parts_are_the_bytes_that_were_asked_for() {
        let ram = Ram::new(&[(0, 1 << 16)], Backing::Anonymous).unwrap();
        let mut bufs = Buffers::new(ram.clone());
        let mut model = Vec::new();
        for piece in 0..10u8 {
            let bytes: Vec<u8> = (0..=piece).map(|i| piece * 16 + i).collect();
            ram.write(u64::from(piece) * 0x1000, &bytes).unwrap();
            bufs.push(u64::from(piece) * 0x1000, bytes.len() as u64).unwrap();
            model.extend(bytes);
        }
        for skip in 0..model.len() + 2 {
            for len in 0..model.len() + 2 {
                let mut seen = Vec::new();
                for buf in part(bufs.list(), skip as u64, len as u64).iter() {
                    let mut bytes = vec![0; buf.len()];
                    assert_eq!(buf.copy_to(&mut bytes), bytes.len());
                    seen.extend(bytes);
                }
                let wanted: Vec<u8> = model.iter().copied().skip(skip).take(len).collect();
                assert_eq!(seen, wanted, "{skip} {len}");
            }
        }
    }
}
