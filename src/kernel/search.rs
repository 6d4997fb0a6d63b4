//! Looking for texts in kernels, without reading them into memory as a whole.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use super::release::is_numbered;
use crate::loader::unpack::Part;

const BUFFER: usize = 1 << 20;
/// What every Linux kernel says at start-up, with its release behind it.
const BANNER: &[u8] = b"Linux version ";
/// Other texts may begin like the banner.
const MAX_BANNERS: usize = 16;

/// Where `text` first is in the file.
pub fn find_in(file: &File, text: &[u8]) -> io::Result<Option<u64>> {
    find_from(file, text, 0)
}

fn find_from(file: &File, text: &[u8], mut at: u64) -> io::Result<Option<u64>> {
    let finder = memchr::memmem::Finder::new(text);
    let mut buffer = Vec::with_capacity(BUFFER);
    loop {
        buffer.clear();
        let n = Part { file, at, end: at.saturating_add(BUFFER as u64) }.read_to_end(&mut buffer)?;
        if let Some(found) = finder.find(&buffer) {
            return Ok(Some(at + found as u64));
        }
        if n < BUFFER {
            return Ok(None);
        }
        // The text may be half in this piece and half in the next one.
        at += (n - text.len()) as u64;
    }
}

/// The release that an ELF kernel will tell.
pub fn release_in(vmlinux: &File) -> io::Result<Option<String>> {
    let mut at = 0;
    for _ in 0..MAX_BANNERS {
        let Some(found) = find_from(vmlinux, BANNER, at)? else { break };
        at = found + BANNER.len() as u64;
        let mut text = [0; 65];
        let n = vmlinux.read_at(&mut text, at)?;
        let word = text.get(..n).unwrap_or_default().split(|&byte| byte == b' ').next().unwrap_or_default();
        let word = String::from_utf8_lossy(word);
        if is_numbered(&word) {
            return Ok(Some(word.into_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::fixtures;

    #[test]
    fn a_text_is_found_wherever_it_is() {
        for before in [0, 1, BUFFER - 3, BUFFER, 3 * BUFFER - 1] {
            let mut content = vec![b'x'; before];
            content.extend(b"needle");
            assert_eq!(find_in(&fixtures::file(&content), b"needle").unwrap(), Some(before as u64));
            assert_eq!(find_in(&fixtures::file(&content), b"needles").unwrap(), None);
        }
    }

    #[test]
    fn the_banner_has_the_release() {
        let file = fixtures::file(b"Linux version %s\0Linux version 6.9.1-x86+ (me@here) (gcc) #1\n");
        assert_eq!(release_in(&file).unwrap().as_deref(), Some("6.9.1-x86+"));
        assert_eq!(release_in(&fixtures::file(b"Linux version ")).unwrap(), None);
        assert_eq!(release_in(&fixtures::file(&b"Linux version 6/".repeat(1000))).unwrap(), None);
    }
}
