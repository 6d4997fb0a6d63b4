//! Keeps the packets of a card in a file (`--net ..,pcap=FILE`), for tcpdump, Wireshark and the like: the pcap format
//! (draft-ietf-opsawg-pcap) with nanoseconds.
//!
//! A [`Captured`] stands between a card and its network, whichever that is. Packets that are segments for the receiver to
//! cut up are kept as they are.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::{Backend, HEADER_LEN, contents};
use crate::host::vectored::IoBuf;

/// Magic number of files with nanoseconds.
const MAGIC: u32 = 0xa1b2_3c4d;
/// Longest packet kept, as tcpdump has it: all of every packet that can be.
const SNAP_LEN: u32 = 262_144;
/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;

/// A file that packets are kept in. All queues of a card share one.
#[derive(Debug)]
pub struct Capture {
    path: PathBuf,
    /// None after a write has failed.
    file: Mutex<Option<File>>,
}

impl Capture {
    /// Begins the file `path` anew.
    pub fn create(path: &Path) -> io::Result<Arc<Self>> {
        let mut file = File::options().write(true).create(true).truncate(false).open(path)?;
        if file.try_lock().is_err() {
            return Err(io::Error::other("another card writes to it; give each a file of its own"));
        }
        // A pipe has no length.
        if file.metadata()?.is_file() {
            file.set_len(0)?;
        }
        let version = 2u32 | 4 << 16;
        let words = [MAGIC, version, 0, 0, SNAP_LEN, ETHERNET];
        file.write_all(&words.map(u32::to_le_bytes).concat())?;
        Ok(Arc::new(Self { path: path.into(), file: Mutex::new(Some(file)) }))
    }

    /// Keeps a packet: the first `len` bytes of `bufs`, without its virtio header.
    fn keep(&self, bufs: &[IoBuf], len: usize) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = file.as_mut() else { return };
        let packet = contents(bufs, len);
        let frame = packet.get(HEADER_LEN..).unwrap_or_default();
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let len = frame.len() as u32;
        let words = [time.as_secs() as u32, time.subsec_nanos(), len, len];
        // One write for each packet, so that whoever reads along sees whole ones.
        if let Err(e) = open.write_all(&[&words.map(u32::to_le_bytes).concat(), frame].concat()) {
            tracing::warn!("{}: no more packets are kept: {e}", self.path.display());
            *file = None;
        }
    }
}

/// A network whose packets are kept.
#[derive(Debug)]
pub struct Captured {
    network: Arc<dyn Backend>,
    capture: Arc<Capture>,
}

impl Captured {
    /// `network` with its packets kept by `capture`.
    pub fn new(network: Arc<dyn Backend>, capture: Arc<Capture>) -> Self {
        Self { network, capture }
    }
}

impl Backend for Captured {
    fn fd(&self) -> RawFd {
        self.network.fd()
    }

    fn takes_offloads(&self) -> bool {
        self.network.takes_offloads()
    }

    fn send(&self, packet: &[IoBuf]) -> io::Result<()> {
        self.network.send(packet)?;
        self.capture.keep(packet, usize::MAX);
        Ok(())
    }

    fn receive(&self, room: &[IoBuf]) -> io::Result<usize> {
        let len = self.network.receive(room)?;
        if len > 0 {
            self.capture.keep(room, len);
        }
        Ok(len)
    }

    fn set_offload(&self, features: u64) -> io::Result<()> {
        self.network.set_offload(features)
    }

    fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        self.network.set_enabled(enabled)
    }

    fn drain(&self) {
        self.network.drain();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::buffers::Buffers;
    use crate::mem::{Backing, Ram};
    use crate::net::switch::tests::{packet, port};

    /// The frames in a file, by the format's own rules.
    fn frames(bytes: &[u8]) -> Vec<Vec<u8>> {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        assert_eq!((word(0), word(4), word(16), word(20)), (0xa1b2_3c4d, 0x0004_0002, 262_144, 1));
        let (mut at, mut frames) = (24, Vec::new());
        while at < bytes.len() {
            let (seconds, nanos, kept, len) = (word(at), word(at + 4), word(at + 8), word(at + 12));
            assert!(seconds > 1_700_000_000 && nanos < 1_000_000_000 && kept == len);
            frames.push(bytes[at + 16..at + 16 + len].to_vec());
            at += 16 + len;
        }
        frames
    }

    #[test]
    fn both_directions_are_kept_and_a_reader_understands_them() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("card.pcap");
        let capture = Capture::create(&file).unwrap();
        assert!(Capture::create(&file).unwrap_err().to_string().contains("another card"));
        let (left, right) = (port(dir.path()), port(dir.path()));
        left.drain();
        let card = Captured::new(Arc::new(left), capture);
        let ram = Ram::new(&[(0, 1 << 20)], Backing::Anonymous).unwrap();
        let mut out = Buffers::new(ram.clone());
        let (there, back) = (packet(2, 1, 100), packet(1, 2, 1500));
        ram.write(0, &there).unwrap();
        out.push(0, there.len() as u64).unwrap();
        card.send(out.list()).unwrap();
        let mut room = Buffers::new(ram.clone());
        room.push(0x1000, 70_000).unwrap();
        assert_eq!(right.receive(room.list()).unwrap(), there.len());
        ram.write(0x40_000, &back).unwrap();
        let mut answer = Buffers::new(ram.clone());
        answer.push(0x40_000, back.len() as u64).unwrap();
        right.send(answer.list()).unwrap();
        assert_eq!(card.receive(room.list()).unwrap(), back.len());
        assert!(card.receive(room.list()).is_err() && !card.takes_offloads());
        let seen = frames(&std::fs::read(&file).unwrap());
        assert_eq!(seen, [there[HEADER_LEN..].to_vec(), back[HEADER_LEN..].to_vec()]);
        match std::process::Command::new("tcpdump").args(["-enr"]).arg(&file).output() {
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                assert!(output.status.success() && text.lines().count() >= 2, "{text}");
                assert!(text.contains("02:00:00:00:00:01 > 02:00:00:00:00:02"), "{text}");
            }
            Err(_) => eprintln!("\nSKIPPED: no tcpdump to read the file back"),
        }
    }

    #[test]
    fn a_full_disk_ends_the_capture_and_not_the_network() {
        let capture = Capture::create(Path::new("/dev/full"));
        assert!(capture.is_err(), "a file that cannot be written is an error at once");
        assert!(Capture::create(Path::new("/no/such/directory/x.pcap")).is_err());
        let dir = tempfile::tempdir().unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let capture = Arc::new(Capture { path: "card.pcap".into(), file: Mutex::new(Some(full)) });
        let (left, right) = (Captured::new(Arc::new(port(dir.path())), capture), port(dir.path()));
        let ram = Ram::new(&[(0, 1 << 20)], Backing::Anonymous).unwrap();
        left.drain();
        ram.write(0, &packet(2, 1, 100)).unwrap();
        let mut list = Buffers::new(ram);
        list.push(0, 112).unwrap();
        for _ in 0..2 {
            left.send(list.list()).unwrap();
            assert_eq!(right.receive(list.list()).unwrap(), 112);
        }
        assert!(left.capture.file.lock().unwrap().is_none());
    }
}
