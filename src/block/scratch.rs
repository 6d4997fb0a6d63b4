//! Host memory in the shape of guest RAM: for copies that cannot be avoided. Page aligned.

use crate::host::parts::part;
use crate::host::vectored::IoBuf;
use crate::mem::buffers::Buffers;
use crate::mem::{Backing, PAGE, Ram};

/// A buffer of fixed length.
#[derive(Debug)]
pub(super) struct Scratch {
    ram: Ram,
    buffers: Buffers,
}

impl Scratch {
    /// `len` bytes, all zero. The host gives memory only for what is touched.
    pub(super) fn new(len: u64) -> std::io::Result<Self> {
        let ram = Ram::new(&[(0, len.next_multiple_of(PAGE))], Backing::Anonymous).map_err(std::io::Error::other)?;
        let mut buffers = Buffers::new(ram.clone());
        buffers.push(0, len).map_err(std::io::Error::other)?;
        Ok(Self { ram, buffers })
    }

    /// The whole buffer, for system calls.
    pub(super) fn list(&self) -> &[IoBuf] {
        self.buffers.list()
    }

    /// Copies `len` bytes from `bufs`, `skip` bytes into them, to `at`.
    pub(super) fn take(&self, at: u64, bufs: &[IoBuf], skip: u64, len: u64) -> std::io::Result<()> {
        let mut bytes = vec![0; len as usize];
        let mut done = 0;
        for buf in part(bufs, skip, len).iter() {
            done += buf.copy_to(bytes.get_mut(done..).unwrap_or_default());
        }
        self.ram.write(at, &bytes).map_err(std::io::Error::other)
    }

    /// Copies `len` bytes from `at` to `bufs`, `skip` bytes into them.
    pub(super) fn give(&self, at: u64, bufs: &[IoBuf], skip: u64, len: u64) -> std::io::Result<()> {
        let mut bytes = vec![0; len as usize];
        self.ram.read(at, &mut bytes).map_err(std::io::Error::other)?;
        let mut done = 0;
        for buf in part(bufs, skip, len).iter() {
            done += buf.copy_from(bytes.get(done..).unwrap_or_default());
        }
        Ok(())
    }

    /// Bytes from `at` on.
    pub(super) fn bytes<const N: usize>(&self, at: u64) -> std::io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.ram.read(at, &mut bytes).map_err(std::io::Error::other)?;
        Ok(bytes)
    }
}
