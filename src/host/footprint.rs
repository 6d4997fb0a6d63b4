//! Giving memory back that only the start of the program needed: freed heap, and code that will not run again.

// UNSAFETY: advises the kernel about the program's own code, and calls into the C library's allocator.
#![expect(unsafe_code)]

use crate::mem::PAGE;

unsafe extern "C" {
    /// First byte of the program in memory, and the first after its code; both from the linker.
    static __executable_start: u8;
    static etext: u8;
}

/// Returns freed heap pages and the program's code pages to the host; code comes back from the page cache, page by page,
/// when it runs. Call it when the machine is built and before it runs.
pub fn give_back() {
    // SAFETY: malloc_trim has no preconditions.
    unsafe { libc::malloc_trim(0) };
    let start = (&raw const __executable_start as u64).next_multiple_of(PAGE);
    let end = &raw const etext as u64 / PAGE * PAGE;
    let len = end.saturating_sub(start);
    // SAFETY: the range is the program's read-only image, mapped privately from its file and never written, so dropping
    // its pages only makes the next access fault them in again from the file. Failure leaves things as they were.
    unsafe { libc::madvise(start as *mut libc::c_void, len as usize, libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_program_goes_on() {
        let text = String::from("still here");
        super::give_back();
        assert_eq!(text, "still here");
    }
}
