//! Whether this process may make code at run time, which the software CPU's native parts need: SELinux (execmem), PaX and
//! systemd (MemoryDenyWriteExecute) can forbid it.

// UNSAFETY: maps memory, makes it executable and calls into it.
#![expect(unsafe_code)]

use std::io;
use std::ptr::null_mut;

use crate::mem::PAGE;

/// mov eax, 42; ret.
const CODE: &[u8] = &[0xb8, 42, 0, 0, 0, 0xc3];

/// Makes a function and calls it.
pub fn probe() -> io::Result<()> {
    let len = PAGE as usize;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new private mapping at an address of the kernel's choice touches nothing that exists.
    let page = unsafe { libc::mmap(null_mut(), len, access, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the page is mapped, writable, ours alone, and longer than the code.
    unsafe { page.cast::<u8>().copy_from_nonoverlapping(CODE.as_ptr(), CODE.len()) };
    // SAFETY: the page is ours alone; nothing holds a reference into it.
    let result = if unsafe { libc::mprotect(page, len, libc::PROT_READ | libc::PROT_EXEC) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        // SAFETY: the page holds a whole function of this type (CODE), for the CPU that this program is for, and is
        // executable.
        let made: extern "C" fn() -> u32 = unsafe { std::mem::transmute(page) };
        if made() == 42 { Ok(()) } else { Err(io::Error::other("code made at run time does not run right")) }
    };
    // SAFETY: the mapping made above; nothing points into it any more.
    unsafe { libc::munmap(page, len) };
    result
}

#[cfg(test)]
mod tests {
    #[test]
    fn code_runs_or_the_host_refuses() {
        match super::probe() {
            Ok(()) => {}
            Err(e) => assert!(matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM)), "{e}"),
        }
    }
}
