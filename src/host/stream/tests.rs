//! Streams over real pipes, sockets and pseudo-terminals.

use std::io::{Read, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;
use crate::host::event_loop::EventLoop;

const LONG: Duration = Duration::from_secs(20);

struct Tell(Mutex<Sender<&'static str>>);

impl Listener for Tell {
    fn ready(&self) {
        let _ = self.0.lock().unwrap().send("ready");
    }
    fn resized(&self) {
        let _ = self.0.lock().unwrap().send("resized");
    }
}

fn listener() -> (Arc<Tell>, Receiver<&'static str>) {
    let (sender, told) = channel();
    (Arc::new(Tell(Mutex::new(sender))), told)
}

fn style(lines: bool, patience: Duration) -> Style {
    Style { lines, patience: Some(patience), quit: Arc::new(|| {}) }
}

fn claim(stream: &Stream, listener: &Arc<Tell>) -> Claim {
    let listener: Arc<dyn Listener> = listener.clone();
    stream.claim(Arc::downgrade(&listener))
}

/// Takes `len` bytes of input, waiting for them.
fn take(claim: &Claim, told: &Receiver<&'static str>, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    let end = Instant::now() + LONG;
    while all.len() < len && Instant::now() < end {
        let mut piece = vec![0; (len - all.len()).min(64)];
        let n = claim.take(&mut piece);
        all.extend_from_slice(&piece[..n]);
        if n == 0 {
            let _ = told.recv_timeout(Duration::from_secs(1));
        }
    }
    all
}

/// A named pipe as a target, and its reader, non-blocking.
pub(crate) fn fifo(dir: &Path) -> (Target, std::fs::File) {
    let path = dir.join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
    let reader = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    (Target::File(path), reader)
}

/// Reads until `len` bytes arrived, with a time limit.
pub(crate) fn read(mut from: &std::fs::File, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    let end = Instant::now() + LONG;
    while all.len() < len && Instant::now() < end {
        let mut piece = [0; 4096];
        match from.read(&mut piece) {
            Ok(n) if n > 0 => all.extend_from_slice(&piece[..n]),
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    all
}

/// The user's side of a terminal.
pub(crate) struct User(Pty);

impl User {
    pub(crate) fn resize(&self, columns: u16, rows: u16) {
        let size = rustix::termios::Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&self.0.ours, size).unwrap();
    }
}

/// A stream on a terminal, as standard input and output are for a user.
pub(crate) fn on_pty(events: &LoopHandle) -> (Stream, User) {
    let pty = Pty::open().unwrap();
    let terminal = pty.theirs.try_clone().unwrap();
    let sink = Sink::nonblocking(pty.theirs.try_clone().unwrap());
    let parts = (Some(sink), Source::default(), Some(terminal));
    (Stream::start("console0", parts, style(true, LONG), events).unwrap(), User(pty))
}

impl Stream {
    /// As if the window's size had changed.
    pub(crate) fn tell_resized(&self) {
        self.0.tell(true, |listener| listener.resized());
    }
}

#[test]
fn lines_are_written_whole_and_the_rest_soon() {
    let dir = tempfile::tempdir().unwrap();
    let (target, mut reader) = fifo(dir.path());
    let events = EventLoop::start("stream-test").unwrap();
    let stream = Stream::open("serial0", &target, style(true, LONG), &events.handle()).unwrap();
    assert!(stream.connected());
    for byte in b"one line" {
        assert_eq!(stream.write(&[*byte], WhenFull::Drop), 1);
    }
    stream.write(b"\n", WhenFull::Drop);
    let mut seen = [0; 100];
    assert_eq!(reader.read(&mut seen).unwrap(), 9, "a finished line does not wait");
    stream.write(b"login: ", WhenFull::Drop);
    assert_eq!(read(&reader, 7), b"login: ", "an unfinished one not for long");
}

#[test]
fn a_slow_reader_costs_a_waiting_writer_nothing_and_others_the_excess() {
    let dir = tempfile::tempdir().unwrap();
    let (target, reader) = fifo(dir.path());
    let events = EventLoop::start("stream-test").unwrap();
    let stream = Stream::open("console0", &target, style(false, LONG), &events.handle()).unwrap();
    let (tell, told) = listener();
    let _claim = claim(&stream, &tell);
    let mut sent = 0usize;
    let byte = |n: usize| (n % 251) as u8;
    loop {
        let piece: Vec<u8> = (sent..sent + 3000).map(byte).collect();
        let n = stream.write(&piece, WhenFull::Wait);
        sent += n;
        if n < piece.len() {
            break;
        }
    }
    assert!(sent >= OUTPUT_CAPACITY);
    assert_eq!(stream.write(b"x", WhenFull::Wait), 0);
    assert_eq!(stream.write(&[b'x'; 5000], WhenFull::Drop), 5000);
    assert_eq!(stream.0.output().lost, 5000);
    while told.try_recv().is_ok() {}
    let seen = read(&reader, sent);
    assert!(seen.iter().enumerate().all(|(n, seen)| *seen == byte(n)) && seen.len() == sent);
    assert_eq!(told.recv_timeout(LONG), Ok("ready"), "there is room again");
    assert_eq!(stream.write(b"after\n", WhenFull::Wait), 6);
    assert_eq!(read(&reader, 6), b"after\n");
}

#[test]
fn patience_ends_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (target, reader) = fifo(dir.path());
    let events = EventLoop::start("stream-test").unwrap();
    let stream = Stream::open("console0", &target, style(true, Duration::from_millis(20)), &events.handle()).unwrap();
    let (tell, told) = listener();
    let _claim = claim(&stream, &tell);
    while stream.write(&[b'x'; 1000], WhenFull::Wait) == 1000 && !stream.0.output().stalled {}
    while !stream.0.output().stalled {
        told.recv_timeout(LONG).expect("the listener hears when waiting is over");
    }
    assert_eq!(stream.write(&[b'y'; 1000], WhenFull::Wait), 1000, "lost, but the guest goes on");
    read(&reader, OUTPUT_CAPACITY + 4096);
    let end = Instant::now() + LONG;
    while stream.0.output().blocked.is_some() && Instant::now() < end {
        read(&reader, 1);
    }
    assert!(!stream.0.output().stalled);
    assert_eq!(stream.0.output().lost, 0, "reported");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let (target, reader) = fifo(dir.path());
    let events = EventLoop::start("stream-test").unwrap();
    let stream = Stream::open("serial0", &target, style(true, LONG), &events.handle()).unwrap();
    drop(reader);
    for _ in 0..100 {
        assert_eq!(stream.write(b"hello\n", WhenFull::Wait), 6);
    }
    assert!(!stream.connected());
    stream.finish(LONG);
    assert_eq!(stream.0.output().lost, 0);
}

#[test]
fn clients_of_a_socket_come_leave_and_return() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let events = EventLoop::start("stream-test").unwrap();
    let target = Target::Socket(path.clone());
    let stream = Stream::open("port0", &target, style(false, LONG), &events.handle()).unwrap();
    let (tell, told) = listener();
    let claim = claim(&stream, &tell);
    assert_eq!(stream.write(b"into the void", WhenFull::Wait), 13);
    for round in 0..50 {
        let mut client = UnixStream::connect(&path).unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        client.write_all(b"hello").unwrap();
        assert_eq!(take(&claim, &told, 5), b"hello", "round {round}");
        assert_eq!(stream.write(b"hi", WhenFull::Wait), 2);
        let mut seen = [0; 2];
        client.read_exact(&mut seen).unwrap();
        if round == 0 {
            let mut second = UnixStream::connect(&path).unwrap();
            second.set_read_timeout(Some(LONG)).unwrap();
            assert!(matches!(second.read(&mut seen), Ok(0) | Err(_)), "one at a time");
        }
    }
    let end = Instant::now() + LONG;
    while stream.connected() && Instant::now() < end {
        let _ = told.recv_timeout(Duration::from_millis(100));
    }
    assert!(!stream.connected());
    drop(events);
    assert!(!path.exists());
}

#[test]
fn input_waits_for_its_reader_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let events = EventLoop::start("stream-test").unwrap();
    let stream = Stream::open("c", &Target::Socket(path.clone()), style(false, LONG), &events.handle()).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    let content: Vec<u8> = (0..100_000u32).map(|n| (n % 241) as u8).collect();
    let sent = content.clone();
    let writer = std::thread::spawn(move || client.write_all(&sent).map(|()| client));
    let (tell, told) = listener();
    let first = claim(&stream, &tell);
    assert_eq!(take(&first, &told, 10_000), content[..10_000]);
    let second = claim(&stream, &tell);
    assert_eq!(first.take(&mut [0; 10]), 0, "the later claim has the input");
    assert_eq!(take(&second, &told, 10_000), content[10_000..20_000]);
    drop(second);
    assert_eq!(take(&first, &told, 80_000), content[20_000..]);
    writer.join().unwrap().unwrap();
}

#[test]
fn a_plain_file_is_read_as_input_to_its_end() {
    let events = EventLoop::start("stream-test").unwrap();
    let mut file = tempfile::tempfile().unwrap();
    let content: Vec<u8> = (0..50_000u32).map(|n| (n % 241) as u8).collect();
    file.write_all(&content).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let source = Source { reader: Some(file.into()), ..Source::default() };
    let stream = Stream::start("stdin", (None, source, None), style(false, LONG), &events.handle()).unwrap();
    let (tell, told) = listener();
    let claim = claim(&stream, &tell);
    assert_eq!(take(&claim, &told, 50_000), content);
    assert_eq!(claim.take(&mut [0; 1]), 0);
}

#[test]
fn keys_for_belljar_work_even_if_the_guest_does_not_read() {
    let events = EventLoop::start("stream-test").unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut user = ours;
    theirs.set_nonblocking(true).unwrap();
    let source = Source { reader: Some(theirs.into()), keys: Some(EscapeKeys::default()), ..Source::default() };
    let (sender, quits) = channel();
    let sender = Mutex::new(sender);
    let quit = Arc::new(move || sender.lock().unwrap().send(()).unwrap());
    let stream =
        Stream::start("t", (None, source, None), Style { quit, ..style(true, LONG) }, &events.handle()).unwrap();
    let (tell, told) = listener();
    let claim = claim(&stream, &tell);
    user.write_all(b"ls\r\x01\x01\x03").unwrap();
    assert_eq!(take(&claim, &told, 5), b"ls\r\x01\x03");
    user.write_all(&[b'x'; 3 * INPUT_CAPACITY]).unwrap();
    user.write_all(b"\x01x").unwrap();
    quits.recv_timeout(LONG).unwrap();
    assert_eq!(stream.0.input().buffer.len(), INPUT_CAPACITY, "bounded");
}

#[test]
fn a_pty_without_user_does_not_hold_the_guest_up() {
    let events = EventLoop::start("stream-test").unwrap();
    let style = style(true, Duration::from_millis(10));
    let stream = Stream::open("serial0", &Target::Pty, style, &events.handle()).unwrap();
    let end = Instant::now() + LONG;
    let mut taken = 0;
    while taken < 10 * OUTPUT_CAPACITY && Instant::now() < end {
        taken += stream.write(&[b'x'; 1000], WhenFull::Wait);
    }
    assert!(taken >= 10 * OUTPUT_CAPACITY);
    stream.finish(Duration::from_millis(10));
}
