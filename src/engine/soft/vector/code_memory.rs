//! Executable memory for stubs. It is written through one mapping and executed through another of the same pages, so that
//! no page is ever writable and executable at one address.

// UNSAFETY: maps memory and writes to it.
#![expect(unsafe_code)]

use std::ffi::c_void;
use std::os::fd::AsFd;
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Room for stubs in bytes: several times what all encodings together need. Pages that are not written cost nothing.
const SIZE: usize = 32 << 20;
/// Stubs start at multiples of this.
const ALIGNMENT: usize = 16;
/// `MFD_EXEC` of Linux 6.3: the file may be mapped for execution whatever `vm.memfd_noexec` makes the default.
const MFD_EXEC: MemfdFlags = MemfdFlags::from_bits_retain(0x10);

/// A piece of memory that code is added to.
#[derive(Debug)]
pub(super) struct CodeMemory {
    write: NonNull<c_void>,
    execute: NonNull<c_void>,
    used: usize,
}

// SAFETY: the mappings belong to this value alone and are as good on any thread.
unsafe impl Send for CodeMemory {}

impl CodeMemory {
    /// Maps the memory; an error if the host does not let this process have executable memory.
    pub(super) fn new() -> Result<Self, Errno> {
        let name = c"belljar-stubs";
        let file = match memfd_create(name, MemfdFlags::CLOEXEC | MFD_EXEC) {
            Err(Errno::INVAL) => memfd_create(name, MemfdFlags::CLOEXEC)?,
            other => other?,
        };
        ftruncate(&file, SIZE as u64)?;
        let map = |access| {
            // SAFETY: a new mapping at an address that the kernel chooses touches no other memory.
            let start = unsafe { mmap(ptr::null_mut(), SIZE, access, MapFlags::SHARED, file.as_fd(), 0) }?;
            NonNull::new(start).ok_or(Errno::NOMEM)
        };
        let write = map(ProtFlags::READ | ProtFlags::WRITE)?;
        match map(ProtFlags::READ | ProtFlags::EXEC) {
            Ok(execute) => Ok(Self { write, execute, used: 0 }),
            Err(e) => {
                // SAFETY: mapped above, and nothing refers to it.
                let _ = unsafe { munmap(write.as_ptr(), SIZE) };
                Err(e)
            }
        }
    }

    /// Adds code; returns where it is executed. None if there is no room left.
    pub(super) fn add(&mut self, code: &[u8]) -> Option<NonNull<c_void>> {
        let end = self.used.checked_add(code.len()).filter(|end| *end <= SIZE)?;
        // No CPU has executed or fetched these bytes before, so nothing stale needs to be driven out of any pipeline.
        // SAFETY: `used` to `end` lies within the mapping, and only this value writes there.
        let place = unsafe {
            ptr::copy_nonoverlapping(code.as_ptr(), self.write.as_ptr().cast::<u8>().add(self.used), code.len());
            self.execute.byte_add(self.used)
        };
        self.used = end.next_multiple_of(ALIGNMENT);
        Some(place)
    }
}

impl Drop for CodeMemory {
    fn drop(&mut self) {
        // SAFETY: both were mapped by `new` with this size; whoever runs stubs keeps this value alive.
        let _ = unsafe { (munmap(self.write.as_ptr(), SIZE), munmap(self.execute.as_ptr(), SIZE)) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_code_runs_and_the_room_ends() {
        let mut memory = CodeMemory::new().unwrap();
        // mov eax, N; ret
        let first = memory.add(&[0xb8, 1, 0, 0, 0, 0xc3]).unwrap();
        let second = memory.add(&[0xb8, 2, 0, 0, 0, 0xc3]).unwrap();
        assert_eq!(second.as_ptr() as usize - first.as_ptr() as usize, ALIGNMENT);
        // SAFETY: this is the code written above, with the C calling convention.
        let call = |at: NonNull<c_void>| unsafe {
            std::mem::transmute::<*mut c_void, extern "sysv64" fn() -> u32>(at.as_ptr())()
        };
        assert_eq!((call(first), call(second)), (1, 2));
        assert!(memory.add(&vec![0; SIZE]).is_none());
        assert!(memory.add(&vec![0; SIZE - 32]).is_some());
        assert!(memory.add(&[0xc3]).is_none());
    }

    #[test]
    fn no_page_is_writable_and_executable() {
        let memory = CodeMemory::new().unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let rights = |at: NonNull<c_void>| {
            let start = format!("{:x}-", at.as_ptr() as usize);
            maps.lines().find(|line| line.starts_with(&start)).and_then(|line| line.split(' ').nth(1)).map(String::from)
        };
        assert_eq!(rights(memory.write).as_deref(), Some("rw-s"));
        assert_eq!(rights(memory.execute).as_deref(), Some("r-xs"));
    }
}
