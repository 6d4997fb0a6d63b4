//! A debugger that speaks gdb's remote protocol, as far as tests need it, on whatever host and engine.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::BOOT;

/// Attached to a machine.
pub struct Debugger(UnixStream);

impl Debugger {
    /// Attaches to the socket that belljar makes at `path`: the machine then stands still.
    #[track_caller]
    pub fn attach(path: &Path) -> Self {
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(e) => assert!(start.elapsed() < BOOT, "{}: {e}", path.display()),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        stream.set_read_timeout(Some(BOOT)).unwrap();
        let mut debugger = Self(stream);
        let features = debugger.ask("qSupported:multiprocess-;swbreak+;hwbreak+");
        assert!(features.contains("swbreak+") && features.contains("qXfer:features:read+"), "{features}");
        assert!(debugger.ask("?").starts_with("T05thread:"));
        debugger
    }

    /// Sends a packet.
    pub fn send(&mut self, packet: &str) {
        let sum = packet.bytes().fold(0, u8::wrapping_add);
        self.0.write_all(format!("${packet}#{sum:02x}").as_bytes()).unwrap();
    }

    /// What Ctrl-C sends.
    pub fn interrupt(&mut self) {
        self.0.write_all(&[3]).unwrap();
    }

    /// Waits for the next packet.
    #[track_caller]
    pub fn wait(&mut self) -> String {
        while self.byte() != b'$' {}
        let mut text = Vec::new();
        loop {
            match self.byte() {
                b'#' => break,
                // The last byte, so many times more.
                b'*' => {
                    let more = usize::from(self.byte() - 29);
                    text.resize(text.len() + more, *text.last().unwrap());
                }
                other => text.push(other),
            }
        }
        let _checksum = [self.byte(), self.byte()];
        // Whoever has said the last word may be gone.
        let _ = self.0.write_all(b"+");
        String::from_utf8(text).unwrap()
    }

    #[track_caller]
    fn byte(&mut self) -> u8 {
        let mut byte = [0];
        self.0.read_exact(&mut byte).unwrap();
        byte[0]
    }

    /// Sends a packet; the answer.
    #[track_caller]
    pub fn ask(&mut self, packet: &str) -> String {
        self.send(packet);
        self.wait()
    }

    /// Sends a packet that must be answered with OK.
    #[track_caller]
    pub fn tell(&mut self, packet: &str) {
        assert_eq!(self.ask(packet), "OK", "{packet}");
    }

    /// Value of a register: 0 to 15 are RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8 to R15, 16 is RIP.
    #[track_caller]
    pub fn register(&mut self, number: u32) -> u64 {
        let hex = self.ask(&format!("p{number:x}"));
        u64::from_str_radix(&hex, 16).unwrap_or_else(|e| panic!("{hex}: {e}")).swap_bytes()
    }

    /// RIP.
    #[track_caller]
    pub fn rip(&mut self) -> u64 {
        self.register(16)
    }

    /// `len` bytes of memory, in hexadecimal.
    #[track_caller]
    pub fn memory(&mut self, at: u64, len: u64) -> String {
        self.ask(&format!("m{at:x},{len:x}"))
    }

    /// One instruction of one CPU, the one that has stopped; where it is then.
    #[track_caller]
    pub fn step(&mut self, thread: u32) -> u64 {
        let stop = self.ask(&format!("vCont;s:{thread}"));
        assert!(stop.starts_with(&format!("T05thread:{thread:02x};")), "{stop}");
        self.rip()
    }
}
