//! Direct I/O wants aligned addresses, offsets and lengths. Requests that are not go through an aligned buffer, in
//! pieces; all others never come here.

use std::fs::File;
use std::io;

use super::host_file::Alignment;
use super::scratch::Scratch;
use super::total;
use crate::host::parts::part;
use crate::host::vectored::{self, IoBuf};

/// Bytes in one piece: bounds the memory, whatever the guest asks for.
const PIECE: u64 = 64 << 10;

/// Whether a request can go to the file as it is.
pub(super) fn is_aligned(alignment: Alignment, at: u64, bufs: &[IoBuf]) -> bool {
    let memory = |b: &IoBuf| (b.volatile().ptr_guard().as_ptr() as u64).is_multiple_of(alignment.memory);
    let whole = |b: &IoBuf| (b.len() as u64).is_multiple_of(alignment.offset);
    at.is_multiple_of(alignment.offset) && bufs.iter().all(|b| memory(b) && whole(b))
}

/// The buffer, made on first use.
#[derive(Debug, Default)]
pub(super) struct Bounce(Option<Scratch>);

/// A stretch of the file as direct I/O can read it, and the part of it that is meant.
struct Piece {
    start: u64,
    skip: u64,
    count: u64,
    whole: u64,
}

impl Piece {
    fn new(at: u64, left: u64, align: u64) -> Self {
        let skip = at % align;
        let count = left.min(PIECE - skip);
        Self { start: at - skip, skip, count, whole: (skip + count).next_multiple_of(align) }
    }

    fn partial(&self) -> bool {
        self.count < self.whole
    }
}

impl Bounce {
    fn buffer(&mut self) -> io::Result<&Scratch> {
        if self.0.is_none() {
            self.0 = Some(Scratch::new(PIECE)?);
        }
        self.0.as_ref().ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    /// Fills `into` from `at` on.
    pub(super) fn read(&mut self, file: &File, align: u64, at: u64, into: &[IoBuf]) -> io::Result<()> {
        let (buffer, len) = (self.buffer()?, total(into));
        let mut done = 0;
        while done < len {
            let piece = Piece::new(at + done, len - done, align);
            vectored::read_exact_at(file, piece.start, &part(buffer.list(), 0, piece.whole))?;
            buffer.give(piece.skip, into, done, piece.count)?;
            done += piece.count;
        }
        Ok(())
    }

    /// Writes `from` at `at`; what shares a block with it is read first and written back.
    pub(super) fn write(&mut self, file: &File, align: u64, at: u64, from: &[IoBuf]) -> io::Result<()> {
        let (buffer, len) = (self.buffer()?, total(from));
        let mut done = 0;
        while done < len {
            let piece = Piece::new(at + done, len - done, align);
            let whole = part(buffer.list(), 0, piece.whole);
            if piece.partial() {
                vectored::read_exact_at(file, piece.start, &whole)?;
            }
            buffer.take(piece.skip, from, done, piece.count)?;
            vectored::write_all_at(file, piece.start, &whole)?;
            done += piece.count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::buffers::Buffers;
    use crate::mem::{Backing, Ram};

    #[test]
    fn misaligned_requests_leave_their_neighbours_alone() {
        let len = 400_u64 * 1024;
        let mut model: Vec<u8> = (0..len).map(|i| (i % 253) as u8).collect();
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &model, 0).unwrap();
        let ram = Ram::new(&[(0, 1 << 20)], Backing::Anonymous).unwrap();
        let mut bounce = Bounce::default();
        for (at, count) in
            [(512, 512), (0, 4096), (3584, 1024), (4096, 200 * 1024), (61_952, 150_016), (len - 512, 512)]
        {
            let mut bufs = Buffers::new(ram.clone());
            bufs.push(3, count / 2).unwrap();
            bufs.push(0x80_001, count - count / 2).unwrap();
            bounce.read(&file, 4096, at, bufs.list()).unwrap();
            let mut seen = vec![0; count as usize];
            let (head, tail) = seen.split_at_mut((count / 2) as usize);
            ram.read(3, head).unwrap();
            ram.read(0x80_001, tail).unwrap();
            assert!(seen == model[at as usize..(at + count) as usize], "{at} {count}");
            let fresh: Vec<u8> = seen.iter().map(|b| b ^ 0xff).collect();
            ram.write(3, &fresh[..(count / 2) as usize]).unwrap();
            ram.write(0x80_001, &fresh[(count / 2) as usize..]).unwrap();
            bounce.write(&file, 4096, at, bufs.list()).unwrap();
            model[at as usize..(at + count) as usize].copy_from_slice(&fresh);
            let mut whole = vec![0; len as usize];
            std::os::unix::fs::FileExt::read_exact_at(&file, &mut whole, 0).unwrap();
            assert!(whole == model, "{at} {count}");
        }
        let alignment = Alignment { memory: 4096, offset: 512 };
        let mut bufs = Buffers::new(ram.clone());
        bufs.push(0x1000, 1024).unwrap();
        assert!(is_aligned(alignment, 512, bufs.list()) && !is_aligned(alignment, 100, bufs.list()));
        bufs.push(0x2200, 512).unwrap();
        assert!(!is_aligned(alignment, 512, bufs.list()));
    }
}
