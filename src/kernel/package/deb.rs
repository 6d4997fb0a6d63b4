//! Debian packages (deb(5)): an `ar` archive with two tar archives in it, `control.tar` and `data.tar`, each compressed
//! in whatever way.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;

use super::About;
use super::take::{self, Error, Taker};
use crate::kernel::compressed;
use crate::loader::unpack::Part;

/// The first bytes of an `ar` archive.
pub const MAGIC: &[u8] = b"!<arch>\n";
/// Name 16, time 12, owner 6, group 6, mode 8, size 10, end 2 bytes, all of it text (ar(5)).
const HEADER: usize = 60;
/// Members: `debian-binary`, the two archives, and at most some of other tools.
const MAX_MEMBERS: usize = 32;
const MAX_CONTROL: u64 = 1 << 20;

/// Takes the files of a package.
pub fn unpack(file: &File, taker: &mut Taker<'_>) -> Result<About, Error> {
    let mut about = About::default();
    let mut at = MAGIC.len() as u64;
    let mut data = false;
    for _ in 0..MAX_MEMBERS {
        let Some((name, size)) = member(file, at)? else { break };
        let start = at + HEADER as u64;
        let content = || BufReader::with_capacity(64 << 10, Part { file, at: start, end: start + size });
        if name.starts_with("control.tar") {
            about = control(compressed::reader(content())?)?;
        } else if name.starts_with("data.tar") {
            take::tar(compressed::reader(content())?, taker)?;
            data = true;
        }
        // Members begin at even places.
        at = (start + size).next_multiple_of(2);
    }
    if data { Ok(about) } else { Err(Error::Damaged(io::ErrorKind::UnexpectedEof.into())) }
}

/// Name and size of the member whose header is at `at`; none at the end.
fn member(file: &File, at: u64) -> Result<Option<(String, u64)>, Error> {
    let mut header = [0; HEADER];
    match file.read_at(&mut header, at)? {
        0 => return Ok(None),
        HEADER => {}
        _ => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
    }
    let text = String::from_utf8_lossy(&header);
    let fields = text.get(..16).zip(text.get(48..58)).filter(|_| text.ends_with("`\n"));
    let size = fields.and_then(|(name, size)| Some((name, size.trim_end().parse::<u64>().ok()?)));
    let Some((name, size)) = size else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a header of its archive is none").into());
    };
    if file.metadata()?.len() < at.saturating_add(HEADER as u64).saturating_add(size) {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some((name.trim_end_matches([' ', '/']).to_owned(), size)))
}

/// Name and dependencies in the control file (deb-control(5)).
fn control(data: impl Read) -> Result<About, Error> {
    let mut text = String::new();
    take::each_in_tar(data, |name, _, data| {
        if name.strip_prefix(b"./").unwrap_or(name) == b"control" {
            let mut bytes = Vec::new();
            data.take(MAX_CONTROL).read_to_end(&mut bytes)?;
            text = String::from_utf8_lossy(&bytes).into_owned();
        }
        Ok(())
    })?;
    let field = |name: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        found.unwrap_or_default().trim().to_owned()
    };
    Ok(About { name: field("Package"), needs: field("Depends") })
}
