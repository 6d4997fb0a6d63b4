//! Input that is read to its end before the guest starts, for runs that can be repeated: when a piece of it comes must not
//! count.

use std::io::{self, Write};
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;

/// More than anybody types.
const MOST: usize = 64 << 20;
/// After this time it is said what is waited for.
const SILENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// All that `reader` has to give.
pub(super) fn whole(reader: &OwnedFd) -> io::Result<Vec<u8>> {
    let (mut all, mut piece, mut told) = (Vec::new(), [0; 4096], false);
    loop {
        let quiet = poll(&mut [PollFd::new(reader, PollFlags::IN)], (!told).then_some(&SILENCE)) == Ok(0);
        if quiet {
            told = true;
            // A closed stderr is no reason to fail.
            let _ = writeln!(
                io::stderr(),
                "belljar: waiting for the end of standard input, which --deterministic reads before the guest starts"
            );
            continue;
        }
        match rustix::io::read(reader, &mut piece) {
            Ok(0) => return Ok(all),
            Ok(count) => all.extend(piece.iter().take(count)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(e) => return Err(e.into()),
        }
        if all.len() > MOST {
            return Err(io::Error::other("more than 64 MiB of input"));
        }
    }
}
