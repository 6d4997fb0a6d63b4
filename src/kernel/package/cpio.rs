//! The archive within an RPM package: cpio in its "newc" format.

use std::io::{self, Read};

use super::take::{Error, Taker};

const MAGICS: [&[u8]; 2] = [b"070701", b"070702"];
/// Of packages with files of 4 GiB and more, whose sizes are elsewhere.
const STRIPPED: &[u8] = b"07070X";
const HEADER: usize = 110;
const MAX_NAME: u64 = 4096;
/// What the archive may be altogether.
const MAX_STREAM: u64 = 8 << 30;
const MODE_FILE: u64 = 0o100_000;
const MODE_KIND: u64 = 0o170_000;

/// Takes what is in the archive.
pub fn unpack(data: impl Read, taker: &mut Taker<'_>) -> Result<(), Error> {
    let mut data = data.take(MAX_STREAM);
    loop {
        let mut header = [0; HEADER];
        data.read_exact(&mut header)?;
        if header.starts_with(STRIPPED) {
            return Err(Error::Refused("it is made for files of 4 GiB and more, which kernels do not have".into()));
        }
        if !MAGICS.iter().any(|magic| header.starts_with(magic)) {
            return Err(damaged("its archive is no cpio archive"));
        }
        let field = |index: usize| number(&header, index).ok_or_else(|| damaged("a number in its archive is none"));
        let (mode, size, name_size) = (field(1)?, field(6)?, field(11)?);
        if name_size > MAX_NAME {
            return Err(Error::Refused(format!("a name in it has {name_size} bytes")));
        }
        let mut name = vec![0; name_size as usize];
        data.read_exact(&mut name)?;
        skip(&mut data, padding(HEADER as u64 + name_size))?;
        name.truncate(name.iter().position(|&byte| byte == 0).unwrap_or(name.len()));
        if name == b"TRAILER!!!" {
            return Ok(());
        }
        let mut content = (&mut data).take(size);
        if mode & MODE_KIND == MODE_FILE {
            taker.take(&name, size, &mut content)?;
        }
        let rest = content.limit();
        skip(&mut data, rest + padding(size))?;
    }
}

/// The eight hexadecimal digits of a field.
fn number(header: &[u8], index: usize) -> Option<u64> {
    let digits = header.get(6 + index * 8..14 + index * 8)?;
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(4) - size
}

fn skip(data: &mut impl Read, bytes: u64) -> Result<(), Error> {
    if io::copy(&mut data.take(bytes), &mut io::sink())? < bytes {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(())
}

fn damaged(reason: &'static str) -> Error {
    Error::Damaged(io::Error::new(io::ErrorKind::InvalidData, reason))
}
