//! A request as the driver made it available: buffers to read from and buffers to write to (section 2.6).
//!
//! A [`Chain`] owns its list of buffers and keeps guest RAM mapped, so a device may hold it while the host works on
//! it (io_uring, received packets to come) and give it back to its queue later.

use std::ops::Range;

use vm_memory::ByteValued;

use crate::host::vectored::IoBuf;
use crate::mem::buffers::Buffers;
use crate::virtio::Broken;

/// Buffers of one request. Reading and writing move forward; what is left can be passed to the system calls of
/// [`crate::host::vectored`] without copying.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    buffers: Buffers,
    /// Buffers before this index are readable for the device, the others writable.
    split: usize,
    /// First buffer with unread bytes.
    reading: usize,
    /// First buffer with unwritten bytes.
    writing: usize,
    /// Buffers from this index on are no longer shown as writable.
    end: usize,
    unread: usize,
    room: usize,
    written: usize,
    /// Where the status byte is in the list.
    status: Option<usize>,
    /// Where the parts of the header are in the list.
    header: Range<usize>,
}

impl Chain {
    /// A chain over `buffers`; those from index `split` on are writable for the device.
    pub(crate) fn new(head: u16, buffers: Buffers, split: usize) -> Self {
        let len = |bufs: &[IoBuf]| bufs.iter().map(IoBuf::len).sum();
        let (unread, room) = buffers.list().split_at_checked(split).map_or((0, 0), |(r, w)| (len(r), len(w)));
        let end = buffers.list().len();
        let (status, header) = (None, 0..0);
        Self { head, buffers, split, reading: 0, writing: split, end, unread, room, written: 0, status, header }
    }

    /// Index of the first descriptor: names the chain within its queue as long as it is not pushed.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes left to read.
    pub fn readable_len(&self) -> usize {
        self.unread
    }

    /// Bytes that may still be written.
    pub fn writable_len(&self) -> usize {
        self.room
    }

    /// Bytes written by the methods of this type (without the status byte): what most devices report as used length.
    pub fn written(&self) -> u32 {
        u32::try_from(self.written).unwrap_or(u32::MAX)
    }

    /// What is left to read, for system calls that read from guest RAM (`writev`).
    pub fn readable(&self) -> &[IoBuf] {
        self.buffers.list().get(self.reading..self.split).unwrap_or_default()
    }

    /// What may still be written, for system calls that write to guest RAM (`readv`).
    pub fn writable(&self) -> &[IoBuf] {
        self.buffers.list().get(self.writing..self.end).unwrap_or_default()
    }

    /// Reads as many bytes as `data` takes and the driver gave; returns how many.
    pub fn read(&mut self, data: &mut [u8]) -> usize {
        let mut done = 0;
        while let (Some(rest), Some(buf)) = (data.get_mut(done..).filter(|r| !r.is_empty()), self.readable().first()) {
            let count = buf.copy_to(rest);
            done += count;
            self.skip_readable(count);
        }
        done
    }

    /// Fills `data`.
    pub fn read_exact(&mut self, data: &mut [u8]) -> Result<(), Broken> {
        let (wanted, there) = (data.len(), self.unread);
        if self.read(data) < wanted {
            return Err(Broken(format!("a request has {there} readable bytes where {wanted} are needed")));
        }
        Ok(())
    }

    /// Reads a structure.
    pub fn read_obj<T: ByteValued>(&mut self) -> Result<T, Broken> {
        let mut object = T::zeroed();
        self.read_exact(object.as_mut_slice())?;
        Ok(object)
    }

    /// Passes over `count` bytes (at most what is left), for instance after a system call took them.
    pub fn skip_readable(&mut self, count: usize) {
        let mut left = count.min(self.unread);
        self.unread -= left;
        // An empty buffer cannot occur: the queue leaves them out.
        while let Some(len) = self.buffers.list().get(self.reading).map(IoBuf::len).filter(|_| left > 0) {
            if left < len {
                return self.buffers.advance(self.reading, left);
            }
            left -= len;
            self.reading += 1;
        }
    }

    /// Writes as many bytes of `data` as there is room for; returns how many.
    pub fn write(&mut self, data: &[u8]) -> usize {
        let mut done = 0;
        while let (Some(rest), Some(buf)) = (data.get(done..).filter(|r| !r.is_empty()), self.writable().first()) {
            let count = buf.copy_from(rest);
            done += count;
            self.skip_writable(count);
        }
        done
    }

    /// Writes all of `data`.
    pub fn write_all(&mut self, data: &[u8]) -> Result<(), Broken> {
        let (wanted, there) = (data.len(), self.room);
        if self.write(data) < wanted {
            return Err(Broken(format!("a request has {there} writable bytes where {wanted} are needed")));
        }
        Ok(())
    }

    /// Writes a structure.
    pub fn write_obj<T: ByteValued>(&mut self, object: &T) -> Result<(), Broken> {
        self.write_all(object.as_slice())
    }

    /// Passes over `count` bytes (at most what is left) and counts them as written: a system call filled them.
    pub fn skip_writable(&mut self, count: usize) {
        let mut left = count.min(self.room);
        self.room -= left;
        self.written += left;
        while let Some(len) = self.writable().first().map(IoBuf::len).filter(|_| left > 0) {
            if left < len {
                return self.buffers.advance(self.writing, left);
            }
            left -= len;
            self.writing += 1;
        }
    }

    /// Shows at most `len` more bytes as writable: to read no more from a file or socket than is due.
    pub fn limit_writable(&mut self, len: usize) {
        let mut left = len.min(self.room);
        self.room = left;
        let mut index = self.writing;
        while let Some(buf) = self.buffers.list().get(index).filter(|_| index < self.end && left > 0) {
            let keep = buf.len().min(left);
            self.buffers.shorten(index, keep);
            left -= keep;
            index += 1;
        }
        self.end = index;
    }

    /// Shows at most `len` more bytes as readable.
    pub fn limit_readable(&mut self, len: usize) {
        let mut left = len.min(self.unread);
        self.unread = left;
        let mut index = self.reading;
        while let Some(buf) = self.buffers.list().get(index).filter(|_| index < self.split && left > 0) {
            let keep = buf.len().min(left);
            self.buffers.shorten(index, keep);
            left -= keep;
            index += 1;
        }
        // `split` also tells where the writable buffers began, but only `writing` uses that, and it is set.
        self.split = index;
    }

    /// Sets the last writable byte aside (block and network control requests end with a status byte); the other
    /// methods no longer see it. To be called before anything is written.
    pub fn take_status(&mut self) -> Result<(), Broken> {
        let last = self.end.checked_sub(1).filter(|_| self.room > 0);
        let byte = |last: usize| Some((last, self.buffers.list().get(last)?.len().checked_sub(1)?));
        let byte = last.and_then(byte);
        let Some(status) = byte.and_then(|(last, offset)| self.buffers.push_part(last, offset, 1)) else {
            return Err(Broken("a request has no room for its status".into()));
        };
        self.limit_writable(self.room - 1);
        self.status = Some(status);
        Ok(())
    }

    /// Writes the byte set aside by [`Chain::take_status`].
    pub fn set_status(&mut self, status: u8) {
        if let Some(byte) = self.status.and_then(|index| self.buffers.list().get(index)) {
            byte.copy_from(&[status]);
        }
    }

    /// Sets the first `len` writable bytes aside, for a header that is known only when what follows it is there; they
    /// count as written. To be called before anything is written.
    pub fn take_header(&mut self, len: usize) -> Result<(), Broken> {
        let short = || Broken(format!("a request has no room for a header of {len} bytes"));
        if self.room < len {
            return Err(short());
        }
        let start = self.buffers.list().len();
        let (mut index, mut left) = (self.writing, len);
        while left > 0 {
            let part = self.buffers.list().get(index).map_or(0, IoBuf::len).min(left);
            self.buffers.push_part(index, 0, part).ok_or_else(short)?;
            (index, left) = (index + 1, left - part);
        }
        self.header = start..self.buffers.list().len();
        self.skip_writable(len);
        Ok(())
    }

    /// Writes the bytes set aside by [`Chain::take_header`].
    pub fn set_header(&mut self, header: &[u8]) {
        let mut rest = header;
        for part in self.buffers.list().get(self.header.clone()).unwrap_or_default() {
            rest = rest.get(part.copy_from(rest)..).unwrap_or_default();
        }
    }

    /// The memory of the list, for the next chain.
    pub(crate) fn recycle(self) -> Vec<IoBuf> {
        self.buffers.recycle()
    }
}
