//! Vectored reads and writes between files and guest RAM, without a copy in between.
//!
//! An [`IoBuf`] is a piece of host memory that the guest sees as RAM. It has the layout of `struct iovec`, so a slice
//! of them goes to the kernel as it is. Called on event loop threads by block, network and socket devices.

// UNSAFETY: reads and writes memory by address and hands addresses to the kernel.
#![expect(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use vm_memory::{Bytes, VolatileSlice};

/// Most buffers in one system call (`UIO_MAXIOV` in Linux).
pub const MAX_BUFS: usize = 1024;

/// Guest RAM between two host addresses. It cannot be copied: whoever lends one keeps the RAM mapped.
#[repr(transparent)]
pub struct IoBuf(libc::iovec);

// SAFETY: an IoBuf is an address range that stays mapped on every thread; access to it is volatile, since the guest
// may write to it at any time anyway.
unsafe impl Send for IoBuf {}
// SAFETY: as above; no method changes the range through a shared reference.
unsafe impl Sync for IoBuf {}

impl std::fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IoBuf({:p}+{:#x})", self.0.iov_base, self.0.iov_len)
    }
}

impl IoBuf {
    /// A buffer over `len` bytes from `start`.
    ///
    /// # Safety
    ///
    /// The range must be mapped, readable and writable, for as long as the buffer exists, and nobody may hold a Rust
    /// reference into it.
    pub(crate) unsafe fn new(start: *mut u8, len: usize) -> Self {
        Self(libc::iovec { iov_base: start.cast(), iov_len: len })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Whether there are no bytes in it.
    pub fn is_empty(&self) -> bool {
        self.0.iov_len == 0
    }

    /// The view that `vm_memory` and disk formats work on.
    pub fn volatile(&self) -> VolatileSlice<'_> {
        // SAFETY: the range is mapped as long as `self` exists (promise made to `new`), hence for the borrow.
        unsafe { VolatileSlice::new(self.0.iov_base.cast(), self.0.iov_len) }
    }

    /// Fills `data` from the start of the buffer; returns how many bytes there were.
    pub fn copy_to(&self, data: &mut [u8]) -> usize {
        self.volatile().read(data, 0).unwrap_or(0)
    }

    /// Copies `data` to the start of the buffer; returns how many bytes found room.
    pub fn copy_from(&self, data: &[u8]) -> usize {
        self.volatile().write(data, 0).unwrap_or(0)
    }

    /// Drops the first `count` bytes (at most all).
    pub(crate) fn advance(&mut self, count: usize) {
        let count = count.min(self.0.iov_len);
        self.0.iov_base = self.0.iov_base.cast::<u8>().wrapping_add(count).cast();
        self.0.iov_len -= count;
    }

    /// Keeps the first `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.0.iov_len = self.0.iov_len.min(len);
    }
}

/// The list as the kernel wants it, at most [`MAX_BUFS`] entries: for `io_uring`. The addresses are good as long as
/// the lender of `bufs` exists.
pub fn as_iovecs(bufs: &[IoBuf]) -> (*const libc::iovec, u32) {
    (bufs.as_ptr().cast(), bufs.len().min(MAX_BUFS) as u32)
}

/// A list of buffers put together from several lists, for one system call. Keeps its memory for the next one.
#[derive(Debug, Default)]
pub struct Scatter(Vec<IoBuf>);

impl Scatter {
    /// Calls `work` with the buffers of `lists` one after the other (at most [`MAX_BUFS`] in all), then `tail`, which
    /// is memory of the program's own.
    pub fn with<'a, R>(
        &mut self,
        lists: impl Iterator<Item = &'a [IoBuf]>,
        tail: &mut [u8],
        work: impl FnOnce(&[IoBuf]) -> R,
    ) -> R {
        let last = usize::from(!tail.is_empty());
        self.0.clear();
        for buf in lists.flatten().take(MAX_BUFS - last) {
            // SAFETY: the same range, whose lender stays borrowed for this call; the list is empty at its end.
            self.0.push(unsafe { IoBuf::new(buf.0.iov_base.cast(), buf.0.iov_len) });
        }
        if last > 0 {
            // SAFETY: `tail` is mapped and borrowed exclusively for this call, and nobody here uses the reference
            // while `work` runs; the list is empty at the end.
            self.0.push(unsafe { IoBuf::new(tail.as_mut_ptr(), tail.len()) });
        }
        let result = work(&self.0);
        self.0.clear();
        result
    }

    /// Calls `work` with the first `limit` bytes of `list` (at most [`MAX_BUFS`] buffers).
    pub fn up_to<R>(&mut self, list: &[IoBuf], limit: usize, work: impl FnOnce(&[IoBuf]) -> R) -> R {
        let mut left = limit;
        self.0.clear();
        for buf in list.iter().take(MAX_BUFS) {
            let len = buf.len().min(left);
            if len == 0 {
                break;
            }
            left -= len;
            // SAFETY: a part of the same range, whose lender stays borrowed for this call; the list is empty at its end.
            self.0.push(unsafe { IoBuf::new(buf.0.iov_base.cast(), len) });
        }
        let result = work(&self.0);
        self.0.clear();
        result
    }
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// One `readv`: returns how many bytes came, 0 at the end.
pub fn read(fd: impl AsFd, bufs: &[IoBuf]) -> io::Result<usize> {
    let (list, count) = as_iovecs(bufs);
    // SAFETY: IoBuf is a transparent iovec and each range is mapped and writable while `bufs` is borrowed.
    check(unsafe { libc::readv(fd.as_fd().as_raw_fd(), list, count as libc::c_int) })
}

/// One `writev`: returns how many bytes went.
pub fn write(fd: impl AsFd, bufs: &[IoBuf]) -> io::Result<usize> {
    let (list, count) = as_iovecs(bufs);
    // SAFETY: IoBuf is a transparent iovec and each range is mapped while `bufs` is borrowed.
    check(unsafe { libc::writev(fd.as_fd().as_raw_fd(), list, count as libc::c_int) })
}

/// One `sendmsg` to a socket, without waiting and without SIGPIPE: returns how many bytes went.
pub fn send(socket: impl AsFd, bufs: &[IoBuf]) -> io::Result<usize> {
    let (list, count) = as_iovecs(bufs);
    // SAFETY: an all-zero msghdr is a valid one without address, buffers and control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (list.cast_mut(), count as usize);
    // SAFETY: IoBuf is a transparent iovec and each range is mapped while `bufs` is borrowed; the kernel only reads
    // the list and the ranges.
    check(unsafe { libc::sendmsg(socket.as_fd().as_raw_fd(), &message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) })
}

/// One `preadv` at `offset` bytes into a file.
pub fn read_at(fd: impl AsFd, offset: u64, bufs: &[IoBuf]) -> io::Result<usize> {
    let (list, count) = as_iovecs(bufs);
    let offset = file_offset(offset)?;
    // SAFETY: as in `read`.
    check(unsafe { libc::preadv(fd.as_fd().as_raw_fd(), list, count as libc::c_int, offset) })
}

/// One `pwritev` at `offset` bytes into a file.
pub fn write_at(fd: impl AsFd, offset: u64, bufs: &[IoBuf]) -> io::Result<usize> {
    let (list, count) = as_iovecs(bufs);
    let offset = file_offset(offset)?;
    // SAFETY: as in `write`.
    check(unsafe { libc::pwritev(fd.as_fd().as_raw_fd(), list, count as libc::c_int, offset) })
}

/// One `pwritev2` to the end of a file, wherever that is by then, however the file was opened.
pub fn append(fd: impl AsFd, bufs: &[IoBuf]) -> io::Result<usize> {
    let (list, count) = as_iovecs(bufs);
    // SAFETY: as in `write`.
    check(unsafe { libc::pwritev2(fd.as_fd().as_raw_fd(), list, count as libc::c_int, 0, libc::RWF_APPEND) })
}

/// Fills all of `bufs` from `offset`; the end of the file is an error of kind `UnexpectedEof`.
pub fn read_exact_at(fd: impl AsFd, offset: u64, bufs: &[IoBuf]) -> io::Result<()> {
    complete(fd.as_fd(), offset, bufs, read_at, io::ErrorKind::UnexpectedEof)
}

/// Writes all of `bufs` at `offset`.
pub fn write_all_at(fd: impl AsFd, offset: u64, bufs: &[IoBuf]) -> io::Result<()> {
    complete(fd.as_fd(), offset, bufs, write_at, io::ErrorKind::WriteZero)
}

type At<'a> = fn(BorrowedFd<'a>, u64, &[IoBuf]) -> io::Result<usize>;

/// Repeats `step` until every byte of `bufs` is done. The usual case is one call.
fn complete<'a>(
    fd: BorrowedFd<'a>,
    mut offset: u64,
    mut bufs: &[IoBuf],
    step: At<'a>,
    none: io::ErrorKind,
) -> io::Result<()> {
    let mut done_of_first = 0;
    while let Some((first, rest)) = bufs.split_first() {
        if done_of_first >= first.len() {
            done_of_first -= first.len();
            bufs = rest;
            continue;
        }
        let result = if done_of_first == 0 {
            step(fd, offset, bufs)
        } else {
            // SAFETY: a part of `first`, which stays borrowed for longer than this buffer lives.
            let mut tail = unsafe { IoBuf::new(first.0.iov_base.cast(), first.len()) };
            tail.advance(done_of_first);
            step(fd, offset, &[tail])
        };
        match result {
            Ok(0) => return Err(none.into()),
            Ok(count) => {
                done_of_first += count;
                offset = offset.saturating_add(count as u64);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::mem::buffers::Buffers;
    use crate::mem::{Backing, Ram};

    use super::*;

    #[test]
    fn files_and_guest_ram_exchange_bytes_in_any_number_of_pieces() {
        let ram = Ram::new(&[(0, 1 << 20)], Backing::Anonymous).unwrap();
        let content: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
        ram.write(0, &content).unwrap();
        let file = tempfile::tempfile().unwrap();
        let mut out = Buffers::new(ram.clone());
        // More pieces than one system call takes.
        for piece in 0..2000 {
            out.push(piece * 100, 100).unwrap();
        }
        write_all_at(&file, 4096, out.list()).unwrap();
        let mut back = Buffers::new(ram.clone());
        back.push(0x80_000, 150_000).unwrap();
        back.push(0x80_000 + 150_000, 50_000).unwrap();
        read_exact_at(&file, 4096, back.list()).unwrap();
        let mut seen = vec![0; content.len()];
        ram.read(0x80_000, &mut seen).unwrap();
        assert_eq!(seen, content);
        let short = read_exact_at(&file, 8192, back.list()).unwrap_err();
        assert_eq!(short.kind(), io::ErrorKind::UnexpectedEof);
        assert!(read_at(&file, u64::MAX, back.list()).is_err());
    }

    #[test]
    fn scattered_lists_are_one_and_end_with_the_tail() {
        let ram = Ram::new(&[(0, 1 << 16)], Backing::Anonymous).unwrap();
        let (mut a, mut b) = (Buffers::new(ram.clone()), Buffers::new(ram.clone()));
        a.push(0, 10).unwrap();
        for piece in 0..MAX_BUFS as u64 {
            b.push(100 + piece * 2, 1).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &(0..200).collect::<Vec<u8>>(), 0).unwrap();
        let mut tail = [0; 4];
        let mut scatter = Scatter::default();
        let lists = [a.list(), &b.list()[..20]];
        let count = scatter.with(lists.into_iter(), &mut tail, |bufs| read_at(&file, 0, bufs).unwrap());
        assert_eq!((count, tail), (34, [30, 31, 32, 33]));
        let mut seen = [0; 3];
        ram.read(100, &mut seen).unwrap();
        assert_eq!(seen, [10, 0, 11]);
        let lists = [a.list(), b.list()];
        assert_eq!(scatter.with(lists.into_iter(), &mut tail, <[IoBuf]>::len), MAX_BUFS);
        assert_eq!(scatter.with(std::iter::empty(), &mut [], <[IoBuf]>::len), 0);
        let lens = |bufs: &[IoBuf]| bufs.iter().map(IoBuf::len).collect::<Vec<_>>();
        a.push(0x100, 10).unwrap();
        assert_eq!(scatter.up_to(a.list(), 13, lens), [10, 3]);
        assert_eq!(scatter.up_to(a.list(), 10, lens), [10]);
        assert_eq!(scatter.up_to(a.list(), 99, lens), [10, 10]);
    }

    #[test]
    fn sending_to_a_closed_socket_is_an_error_and_no_signal() {
        let ram = Ram::new(&[(0, 1 << 16)], Backing::Anonymous).unwrap();
        let mut bufs = Buffers::new(ram.clone());
        bufs.push(0, 3).unwrap();
        bufs.push(8, 2).unwrap();
        ram.write(0, b"abc-----de").unwrap();
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(send(&ours, bufs.list()).unwrap(), 5);
        let mut seen = [0; 5];
        io::Read::read_exact(&mut theirs, &mut seen).unwrap();
        assert_eq!(&seen, b"abcde");
        drop(theirs);
        assert_eq!(send(&ours, bufs.list()).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn partial_transfers_go_on_where_they_stopped() {
        let ram = Ram::new(&[(0, 1 << 16)], Backing::Anonymous).unwrap();
        let mut bufs = Buffers::new(ram.clone());
        for piece in 0..10 {
            bufs.push(piece * 64, 30).unwrap();
        }
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[9; 300], 0).unwrap();
        fn seven(fd: BorrowedFd<'_>, offset: u64, bufs: &[IoBuf]) -> io::Result<usize> {
            // SAFETY: a part of a buffer that outlives it.
            let mut first = unsafe { IoBuf::new(bufs[0].0.iov_base.cast(), bufs[0].len()) };
            first.truncate(7);
            read_at(fd, offset, &[first])
        }
        complete(file.as_fd(), 0, bufs.list(), seven, io::ErrorKind::UnexpectedEof).unwrap();
        let mut seen = [0; 640];
        ram.read(0, &mut seen).unwrap();
        for (at, byte) in seen.iter().enumerate() {
            assert_eq!(*byte == 9, at % 64 < 30, "{at}");
        }
    }
}
