//! The end of the guest: everybody ends, disks are written, the power goes off.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::serve::reason;
use crate::sys::{self, MNT_DETACH, MS_RDONLY, MS_REMOUNT, SIGKILL, SIGTERM};

/// How long programs have after they were asked to end, and after they were made to.
const ASKED: Duration = Duration::from_secs(2);
const MADE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

/// Powers off. Returns only if that does not work.
pub fn off() -> String {
    end_all(SIGTERM, ASKED);
    end_all(SIGKILL, MADE);
    sys::write_back();
    unmount();
    sys::write_back();
    format!("cannot power off: {}", reason(&sys::power_off()))
}

/// Sends a signal to everybody else and waits until nobody is left, or the time is over.
fn end_all(signal: i32, time: Duration) {
    let end = Instant::now() + time;
    // Fails if there is nobody.
    if sys::send_signal(-1, signal).is_err() {
        return;
    }
    loop {
        match sys::reap() {
            Ok(_) => {}
            // As process 1 the agent is the parent of everybody who has no other.
            Err(true) => return,
            Err(false) if Instant::now() >= end => return,
            Err(false) => sleep(PAUSE),
        }
    }
}

/// Unmounts everything, the last first; what is still in use becomes read-only.
fn unmount() {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let paths = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)).map(unescape);
    for path in paths.filter(|path| !["/proc", "/dev", "/sys"].contains(&path.as_str())) {
        let path = Path::new(&path);
        if sys::unmount(path, 0).is_err() {
            // Fails where it means nothing.
            let _ = sys::mount_at("", path, "", MS_REMOUNT | MS_RDONLY, "");
            if path != Path::new("/") {
                let _ = sys::unmount(path, MNT_DETACH);
            }
        }
    }
}

/// A path as /proc has it: blanks and the like as `\040`.
fn unescape(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match (byte, code) {
            (b'\\', Some(code)) => {
                bytes.push(code);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::unescape;

    #[test]
    fn paths_of_proc_are_read() {
        assert_eq!(unescape(r"/a\040b\134c"), r"/a b\c");
        assert_eq!(unescape(r"/x\"), r"/x\");
        assert_eq!(unescape(r"/x\04"), r"/x\04");
    }
}
