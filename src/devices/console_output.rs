//! What all consoles of a machine share: one standard input and output, the log, and those who watch what is printed.
//!
//! The machine makes one [`ConsoleHub`] before its devices and calls [`ConsoleHub::finish`] when it has ended. Output
//! passes through on vCPU threads (serial port) and on the event loop (virtio console).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::devices::{AttachError, GuestEvent, Notify};
use crate::host::chardev::{Target, create};
use crate::host::event_loop::LoopHandle;
use crate::host::stream::{Stream, Style, WhenFull};

/// Bytes kept in a log: a guest that prints without end must not fill the disk.
const LOG_LIMIT: u64 = 64 << 20;
/// Bytes of the log that wait for the end of their line.
const LOG_BUFFER: usize = 4 << 10;
/// Bytes of a line that watchers for text look at; kernel messages are shorter.
const LINE_LIMIT: usize = 1 << 10;
/// How long a console may leave a virtio guest waiting for a reader that takes nothing: well below the 10 s after
/// which a kernel calls a spinning CPU locked up.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for a pseudo-terminal, which mostly has no reader at all.
const PTY_PATIENCE: Duration = Duration::from_millis(100);
/// How long the end of a machine waits for a slow reader.
const LAST_WRITE: Duration = Duration::from_secs(2);

/// Sees all output of consoles.
pub trait ConsoleWatcher: Send + Sync {
    /// `source` is the device's name, e.g. `serial0`; `bytes` may be any piece of its output. Must not block.
    fn output(&self, source: &str, bytes: &[u8]);
}

/// See the module's head.
pub struct ConsoleHub {
    log: Option<Mutex<Log>>,
    watchers: Vec<Arc<dyn ConsoleWatcher>>,
    notify: Notify,
    first: OnceLock<Instant>,
    stdio: Mutex<Option<Stream>>,
    streams: Mutex<Vec<Stream>>,
}

impl std::fmt::Debug for ConsoleHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsoleHub").field("first", &self.first).finish_non_exhaustive()
    }
}

impl ConsoleHub {
    /// A hub whose consoles are also written to the file `log`, and shown to `watchers`. Keys that quit are told to
    /// `notify`.
    pub fn new(
        log: Option<&Path>,
        watchers: Vec<Arc<dyn ConsoleWatcher>>,
        notify: Notify,
    ) -> Result<Arc<Self>, AttachError> {
        let log = log.map(Log::create).transpose()?.map(Mutex::new);
        let (first, stdio, streams) = Default::default();
        Ok(Arc::new(Self { log, watchers, notify, first, stdio, streams }))
    }

    /// Opens the place that `target` names for the device called `name`. Standard input and output are one stream,
    /// whoever asks for them.
    pub fn open(
        self: &Arc<Self>,
        name: &str,
        target: &Target,
        events: &LoopHandle,
    ) -> Result<ConsoleOutput, AttachError> {
        let open = || {
            let notify = self.notify.clone();
            let patience = if *target == Target::Pty { PTY_PATIENCE } else { PATIENCE };
            let style =
                Style { lines: true, patience: Some(patience), quit: Arc::new(move || notify(GuestEvent::UserQuit)) };
            let stream = Stream::open(name, target, style, events).map_err(|e| AttachError(e.to_string()))?;
            lock(&self.streams).push(stream.clone());
            Ok(stream)
        };
        let stream = match target {
            Target::Stdio => {
                let mut stdio = lock(&self.stdio);
                match &*stdio {
                    Some(stream) => stream.clone(),
                    None => stdio.insert(open()?).clone(),
                }
            }
            _ => open()?,
        };
        Ok(ConsoleOutput { hub: self.clone(), name: name.into(), stream })
    }

    /// When the first character was printed on any console.
    pub fn first_output(&self) -> Option<Instant> {
        self.first.get().copied()
    }

    /// Writes what still waits, within two seconds for each place. Call it when the guest has stopped and before the
    /// event loop ends.
    pub fn finish(&self) {
        let streams = lock(&self.streams).clone();
        streams.iter().for_each(|stream| stream.finish(LAST_WRITE));
        self.log.iter().for_each(|log| lock(log).flush());
    }

    fn saw(&self, source: &str, bytes: &[u8]) {
        self.first.get_or_init(Instant::now);
        self.log.iter().for_each(|log| lock(log).add(bytes));
        self.watchers.iter().for_each(|watcher| watcher.output(source, bytes));
    }
}

/// The output side of one console device.
#[derive(Debug)]
pub struct ConsoleOutput {
    hub: Arc<ConsoleHub>,
    name: String,
    stream: Stream,
}

impl ConsoleOutput {
    /// Writes without waiting; returns how many bytes were taken. The log and the watchers see those.
    pub fn write(&self, bytes: &[u8], when_full: WhenFull) -> usize {
        let taken = self.stream.write(bytes, when_full);
        if let Some(taken) = bytes.get(..taken).filter(|taken| !taken.is_empty()) {
            self.hub.saw(&self.name, taken);
        }
        taken
    }

    /// The stream below: for its input and its window.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }
}

/// The file that keeps what consoles printed, as it was printed.
struct Log {
    file: File,
    path: PathBuf,
    buffer: Vec<u8>,
    /// Bytes that may still be written; none after an error or the limit.
    left: Option<u64>,
}

impl Log {
    fn create(path: &Path) -> Result<Self, AttachError> {
        let file = create(path).map_err(|e| AttachError(format!("cannot write the log {}: {e}", path.display())))?;
        Ok(Self { file, path: path.into(), buffer: Vec::new(), left: Some(LOG_LIMIT) })
    }

    fn add(&mut self, bytes: &[u8]) {
        if self.left.is_none() {
            return;
        }
        for piece in bytes.chunks(LOG_BUFFER) {
            self.buffer.extend_from_slice(piece);
            if self.buffer.len() >= LOG_BUFFER || piece.contains(&b'\n') {
                self.flush();
            }
        }
    }

    fn flush(&mut self) {
        let Some(left) = self.left.filter(|_| !self.buffer.is_empty()) else { return };
        self.left = left.checked_sub(self.buffer.len() as u64);
        let written = match self.left {
            Some(_) => self.file.write_all(&self.buffer),
            None => writeln!(self.file, "\n[belljar: the log ends here, at {} MiB]", LOG_LIMIT >> 20),
        };
        self.buffer.clear();
        match written {
            Ok(()) => {}
            // The reader of a log that is a pipe is slow: this piece is lost, the next may not be.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => {
                tracing::warn!("the log {} ends here: {e}", self.path.display());
                self.left = None;
            }
        }
    }
}

/// Finds the line with which a kernel says that it panicked.
pub struct PanicWatcher {
    lines: Mutex<BTreeMap<String, Vec<u8>>>,
    found: Box<dyn Fn(&str) + Send + Sync>,
}

impl std::fmt::Debug for PanicWatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PanicWatcher").finish_non_exhaustive()
    }
}

impl PanicWatcher {
    /// Calls `found` with what follows the time stamp, e.g. `Kernel panic - not syncing: VFS: Unable to mount`, each
    /// time such a line is complete. On vCPU threads or the event loop.
    pub fn new(found: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self { lines: Mutex::default(), found: Box::new(found) }
    }

    fn line(&self, line: &[u8]) {
        let line = String::from_utf8_lossy(line);
        if let Some(at) = line.find("Kernel panic - not syncing") {
            (self.found)(line.get(at..).unwrap_or_default().trim_end());
        }
    }
}

impl ConsoleWatcher for PanicWatcher {
    fn output(&self, source: &str, bytes: &[u8]) {
        let mut lines = lock(&self.lines);
        if !lines.contains_key(source) {
            lines.insert(source.into(), Vec::new());
        }
        let Some(line) = lines.get_mut(source) else { return };
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let room = LINE_LIMIT.saturating_sub(line.len());
            line.extend(piece.iter().take(room));
            if piece.ends_with(b"\n") {
                self.line(line);
                line.clear();
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::host::event_loop::EventLoop;

    /// A hub without log and watchers.
    pub(crate) fn quiet_hub() -> Arc<ConsoleHub> {
        ConsoleHub::new(None, Vec::new(), Arc::new(|_| {})).unwrap()
    }

    /// Output of a console over any stream.
    pub(crate) fn output_over(hub: &Arc<ConsoleHub>, stream: &Stream) -> ConsoleOutput {
        ConsoleOutput { hub: hub.clone(), name: "console0".into(), stream: stream.clone() }
    }

    fn panics() -> (Arc<PanicWatcher>, std::sync::mpsc::Receiver<String>) {
        let (sender, found) = std::sync::mpsc::channel();
        let sender = Mutex::new(sender);
        (Arc::new(PanicWatcher::new(move |line| lock(&sender).send(line.into()).unwrap())), found)
    }

    #[test]
    fn output_reaches_its_place_the_log_and_the_watchers() {
        let dir = tempfile::tempdir().unwrap();
        let (out, log) = (dir.path().join("out"), dir.path().join("log"));
        let (watcher, found) = panics();
        let events = EventLoop::start("hub-test").unwrap();
        let hub = ConsoleHub::new(Some(&log), vec![watcher], Arc::new(|_| {})).unwrap();
        let serial = hub.open("serial0", &Target::File(out.clone()), &events.handle()).unwrap();
        let console = hub.open("console0", &Target::Null, &events.handle()).unwrap();
        assert_eq!(hub.first_output(), None);
        for byte in b"[    1.5] Kernel panic - not syncing: no init\r\nrest" {
            serial.write(&[*byte], WhenFull::Drop);
        }
        assert!(hub.first_output().is_some());
        assert_eq!(console.write(b"\x1b[0m from hvc0", WhenFull::Wait), 14);
        hub.finish();
        assert_eq!(found.try_recv().unwrap(), "Kernel panic - not syncing: no init");
        assert!(found.try_recv().is_err(), "once");
        let printed = "[    1.5] Kernel panic - not syncing: no init\r\nrest";
        assert_eq!(std::fs::read_to_string(out).unwrap(), printed);
        assert_eq!(std::fs::read_to_string(log).unwrap(), format!("{printed}\x1b[0m from hvc0"));
    }

    #[test]
    fn lines_of_two_consoles_are_not_mixed_and_long_ones_are_bounded() {
        let (watcher, found) = panics();
        watcher.output("a", b"Kernel panic - not ");
        watcher.output("b", b"syncing: of b\n");
        watcher.output("b", &[b'x'; 3 * LINE_LIMIT]);
        watcher.output("b", b"Kernel panic - not syncing: beyond the limit\n");
        assert!(found.try_recv().is_err());
        watcher.output("a", b"syncing: \xff of a\nKernel panic - not syncing: two\n");
        assert_eq!(found.try_recv().unwrap(), "Kernel panic - not syncing: \u{fffd} of a");
        assert_eq!(found.try_recv().unwrap(), "Kernel panic - not syncing: two");
        assert!(lock(&watcher.lines).values().all(Vec::is_empty));
    }

    #[test]
    fn the_log_is_bounded_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::create(&path).unwrap();
        log.left = Some(10);
        log.add(b"12345678\n");
        log.add(b"abc\n");
        log.add(b"never\n");
        let kept = std::fs::read_to_string(&path).unwrap();
        assert_eq!(kept, "12345678\n\n[belljar: the log ends here, at 64 MiB]\n");
        let missing = Log::create(&dir.path().join("no/such")).err().unwrap().to_string();
        assert!(missing.starts_with("cannot write the log") && missing.contains("No such file"), "{missing}");
    }
}
