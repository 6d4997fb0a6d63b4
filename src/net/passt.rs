//! passt, a user-mode network in a process of its own (`--net passt=SOCKET`), as QEMU is connected to it: a UNIX stream
//! socket with Ethernet frames, each behind its length (32 bits, big-endian).

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Backend, HEADER_LEN, contents};
use crate::host::vectored::IoBuf;

/// Bytes of the length before a frame.
const LENGTH: usize = 4;
/// Longest frame that passt sends: 64 KiB with its Ethernet header and a tag.
const MAX_FRAME: usize = 65536 + 18;
/// Frames dropped at once by [`Backend::drain`].
const MOST_DRAINED: usize = 2048;

/// A connection to passt.
#[derive(Debug)]
pub struct Passt {
    stream: UnixStream,
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Outgoing>,
}

/// A frame that has begun to arrive. Never more than one is read, so that the socket stays readable if there are more.
#[derive(Debug, Default)]
struct Incoming {
    bytes: Vec<u8>,
    filled: usize,
}

/// A frame that has begun to leave.
#[derive(Debug, Default)]
struct Outgoing {
    /// What the socket has not taken yet.
    rest: Vec<u8>,
    /// The caller was told to offer that packet again.
    offered_again: bool,
}

impl Passt {
    /// Connects to the passt that listens at `path`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, incoming: Mutex::default(), outgoing: Mutex::default() })
    }

    /// Calls `take` with the next whole frame.
    fn next<T>(&self, take: impl FnOnce(&[u8]) -> T) -> io::Result<Option<T>> {
        let mut incoming = lock(&self.incoming);
        loop {
            let wanted = incoming.wanted()?;
            if incoming.filled == wanted {
                let taken = take(incoming.bytes.get(LENGTH..wanted).unwrap_or_default());
                incoming.filled = 0;
                return Ok(Some(taken));
            }
            let start = incoming.filled;
            incoming.bytes.resize(wanted.max(LENGTH), 0);
            match (&self.stream).read(incoming.bytes.get_mut(start..).unwrap_or_default())? {
                0 => return Ok(None),
                count => incoming.filled += count,
            }
        }
    }
}

impl Incoming {
    /// Bytes to have before there is something to do: a length, or it and its frame.
    fn wanted(&self) -> io::Result<usize> {
        let length = self.bytes.first_chunk::<LENGTH>().filter(|_| self.filled >= LENGTH);
        let Some(length) = length else { return Ok(LENGTH) };
        match u32::from_be_bytes(*length) as usize {
            0 => Err(io::Error::other("passt sent a frame without any bytes")),
            len if len > MAX_FRAME => Err(io::Error::other(format!("passt sent a frame of {len} bytes"))),
            len => Ok(LENGTH + len),
        }
    }
}

impl Outgoing {
    /// Gives the socket what is left. `WouldBlock` if that is not everything.
    fn flush(&mut self, mut stream: &UnixStream) -> io::Result<()> {
        while !self.rest.is_empty() {
            let count = stream.write(&self.rest)?;
            self.rest.drain(..count);
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Backend for Passt {
    fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    fn takes_offloads(&self) -> bool {
        false
    }

    fn send(&self, packet: &[IoBuf]) -> io::Result<()> {
        let mut outgoing = lock(&self.outgoing);
        outgoing.flush(&self.stream)?;
        if std::mem::take(&mut outgoing.offered_again) {
            return Ok(());
        }
        let frame = contents(packet, usize::MAX);
        let frame = frame.get(HEADER_LEN..).unwrap_or_default();
        outgoing.rest.extend_from_slice(&(frame.len() as u32).to_be_bytes());
        outgoing.rest.extend_from_slice(frame);
        let sent = outgoing.flush(&self.stream);
        outgoing.offered_again = sent.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock);
        sent
    }

    fn receive(&self, room: &[IoBuf]) -> io::Result<usize> {
        let copy = |frame: &[u8]| {
            let packet = [&[0; HEADER_LEN], frame].concat();
            let mut rest = packet.as_slice();
            for buf in room {
                rest = rest.get(buf.copy_from(rest)..).unwrap_or_default();
            }
            packet.len() - rest.len()
        };
        self.next(copy).map(Option::unwrap_or_default)
    }

    fn set_offload(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_enabled(&self, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn drain(&self) {
        // The packet that has begun to leave is an earlier driver's: nobody will offer it again.
        lock(&self.outgoing).offered_again = false;
        for _ in 0..MOST_DRAINED {
            if !matches!(self.next(|_| ()), Ok(Some(()))) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::buffers::Buffers;
    use crate::mem::{Backing, Ram};

    /// A connection, and the peer that passt would be.
    fn pair() -> (Passt, UnixStream, Ram) {
        let (stream, peer) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let passt = Passt { stream, incoming: Mutex::default(), outgoing: Mutex::default() };
        (passt, peer, Ram::new(&[(0, 1 << 20)], Backing::Anonymous).unwrap())
    }

    fn buffers(ram: &Ram, pieces: &[(u64, u64)]) -> Buffers {
        let mut buffers = Buffers::new(ram.clone());
        pieces.iter().for_each(|&(at, len)| buffers.push(at, len).unwrap());
        buffers
    }

    fn framed(frame: &[u8]) -> Vec<u8> {
        [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
    }

    #[test]
    fn frames_arrive_whole_however_the_stream_is_cut() {
        let (passt, mut peer, ram) = pair();
        let room = buffers(&ram, &[(0, 20), (100, 200)]);
        let frames = [vec![1; 60], vec![2; 100], vec![3; 61]];
        let stream: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
        let mut seen = Vec::new();
        for piece in stream.chunks(7) {
            peer.write_all(piece).unwrap();
            while let Ok(len) = passt.receive(room.list()) {
                seen.push(contents(room.list(), len).split_off(HEADER_LEN));
            }
        }
        assert_eq!(seen, frames);
        drop(peer);
        assert_eq!(passt.receive(room.list()).unwrap(), 0, "the end");
    }

    #[test]
    fn packets_leave_whole_also_through_a_full_socket_and_a_reset() {
        let (passt, mut peer, ram) = pair();
        let packet = |byte: u8| {
            ram.write(0, &[byte; HEADER_LEN + 60_000]).unwrap();
            buffers(&ram, &[(0, HEADER_LEN as u64 + 5), (HEADER_LEN as u64 + 5, 59_995)])
        };
        let mut sent = 0u8;
        while passt.send(packet(sent).list()).is_ok() {
            sent += 1;
        }
        assert!(passt.send(packet(sent).list()).is_err(), "still no room");
        let mut read = |count: usize| {
            let mut bytes = vec![0; count * (LENGTH + 60_000)];
            peer.read_exact(&mut bytes).unwrap();
            bytes.chunks(LENGTH + 60_000).map(|frame| (frame[..LENGTH].to_vec(), frame[LENGTH])).collect::<Vec<_>>()
        };
        let length = 60_000u32.to_be_bytes().to_vec();
        let frames = read(sent.into());
        assert_eq!(frames, (0..sent).map(|byte| (length.clone(), byte)).collect::<Vec<_>>());
        passt.send(packet(sent).list()).unwrap();
        assert_eq!(read(1), [(length.clone(), sent)], "once, not twice");
        while passt.send(packet(77).list()).is_ok() {}
        passt.drain();
        assert!(passt.send(packet(99).list()).is_err());
        let mut last = read(1);
        while passt.send(packet(99).list()).is_err() {
            last = read(1);
        }
        while last != [(length.clone(), 99)] {
            assert_eq!(last, [(length.clone(), 77)]);
            last = read(1);
        }
    }

    #[test]
    fn a_peer_that_is_not_passt_is_an_error_and_no_memory() {
        for head in [u32::MAX, 0, 70_000] {
            let (passt, mut peer, ram) = pair();
            peer.write_all(&head.to_be_bytes()).unwrap();
            let room = buffers(&ram, &[(0, 2000)]);
            let error = passt.receive(room.list()).unwrap_err().to_string();
            assert!(error.starts_with("passt sent a frame"), "{error}");
            assert!(lock(&passt.incoming).bytes.len() <= LENGTH);
            passt.drain();
        }
    }

    /// The real one answers DHCP, if it is there (apt-get install passt).
    #[test]
    fn the_real_passt_gives_an_address() {
        let dir = tempfile::tempdir().unwrap();
        // It gives up root's rights before it makes the socket.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let path = dir.path().join("s");
        let mut command = std::process::Command::new("passt");
        command.args(["-q", "-f", "-1", "--socket"]).arg(&path).stderr(std::process::Stdio::null());
        let Ok(mut child) = command.spawn() else { return eprintln!("\nSKIPPED: no passt here") };
        let start = std::time::Instant::now();
        let passt = loop {
            if let Ok(passt) = Passt::connect(&path) {
                break passt;
            }
            if child.try_wait().unwrap().is_some() {
                return eprintln!("\nSKIPPED: passt does not run here");
            }
            assert!(start.elapsed() < crate::virtio::kit::LIMIT, "passt does not listen");
            std::thread::sleep(std::time::Duration::from_millis(10));
        };
        let ram = Ram::new(&[(0, 1 << 20)], Backing::Anonymous).unwrap();
        let discover = discover();
        ram.write(0, &[&[0; HEADER_LEN][..], &discover].concat()).unwrap();
        passt.send(buffers(&ram, &[(0, (HEADER_LEN + discover.len()) as u64)]).list()).unwrap();
        let room = buffers(&ram, &[(0x1000, 70_000)]);
        let offered = loop {
            match passt.receive(room.list()) {
                // From port 67 to port 68: an offer.
                Ok(len)
                    if contents(room.list(), len).get(HEADER_LEN + 34..HEADER_LEN + 38) == Some(&[0, 67, 0, 68]) =>
                {
                    break true;
                }
                Ok(0) => break false,
                _ if start.elapsed() > crate::virtio::kit::LIMIT => break false,
                _ => std::thread::sleep(std::time::Duration::from_millis(1)),
            }
        };
        drop(passt);
        let _ = child.kill();
        child.wait().unwrap();
        assert!(offered);
    }

    /// A frame with a DHCPDISCOVER (RFC 2131).
    fn discover() -> Vec<u8> {
        let mut dhcp = vec![1, 1, 6, 0, 1, 2, 3, 4];
        dhcp.resize(28, 0);
        dhcp.extend([2, 0, 0, 0, 0, 1]);
        dhcp.resize(236, 0);
        dhcp.extend([0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]);
        dhcp.resize(300, 0);
        let (udp_len, ip_len) = (8 + dhcp.len() as u16, 28 + dhcp.len() as u16);
        let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255];
        ip[2..4].copy_from_slice(&ip_len.to_be_bytes());
        let sum: u32 = ip.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
        ip[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
        let udp = [&[0, 68, 0, 67][..], &udp_len.to_be_bytes(), &[0, 0]].concat();
        [&[255; 6][..], &[2, 0, 0, 0, 0, 1], &[8, 0], &ip, &udp, &dhcp].concat()
    }
}
