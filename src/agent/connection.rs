//! The connection: one thread that reads, one that writes, and what they know.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Error;
use super::protocol::frame::{MAGIC, put_data};
use super::protocol::{Decoder, Frame, Message, Ready, Stream, TO_GUEST, TO_HOST, VERSION};
use super::pump::thread;
use super::session::{Session, printable};

/// Bytes that may wait to be sent: far more than the windows of all streams of many commands.
const QUEUE: usize = 32 << 20;

#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    state: Mutex<State>,
    changed: Condvar,
    queue: Mutex<Queue>,
    queued: Condvar,
}

#[derive(Debug)]
struct State {
    stage: Stage,
    sessions: HashMap<u32, Arc<Session>>,
    next: u32,
}

/// How far the guest has come.
#[derive(Debug)]
enum Stage {
    /// It has said nothing.
    Silent,
    /// It lives.
    Hello,
    /// It takes commands.
    Ready(Ready),
    /// It has ended, or its connection.
    Over(Error),
}

#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    ended: bool,
}

impl Connection {
    pub(super) fn start(stream: UnixStream) -> Result<Arc<Self>, Error> {
        let host = |what| move |e: std::io::Error| Error::Host(what, Arc::new(e));
        let state = State { stage: Stage::Silent, sessions: HashMap::new(), next: 1 };
        stream.set_nonblocking(false).map_err(host("use the agent's socket"))?;
        let connection = Arc::new(Self {
            stream,
            state: Mutex::new(state),
            changed: Condvar::new(),
            queue: Mutex::default(),
            queued: Condvar::new(),
        });
        let (reader, writer) = (connection.clone(), connection.clone());
        thread("agent-read", move || reader.over(reader.read()))?;
        let started = thread("agent-write", move || writer.write());
        started.inspect_err(|_| connection.end())?;
        Ok(connection)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the connection: both threads end.
    pub(super) fn end(&self) {
        // Fails only if the other side was faster.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    /// Waits until the guest is ready.
    pub(super) fn ready(&self, deadline: Option<Instant>) -> Result<Ready, Error> {
        let mut state = self.state();
        loop {
            match &state.stage {
                Stage::Ready(ready) => return Ok(ready.clone()),
                Stage::Over(why) => return Err(why.clone()),
                Stage::Silent | Stage::Hello => {}
            }
            state = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return Err(Error::TimedOut),
                Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    /// A session for one more command.
    pub(super) fn open(&self) -> Result<Arc<Session>, Error> {
        let mut state = self.state();
        match &state.stage {
            Stage::Ready(_) => {}
            Stage::Over(why) => return Err(why.clone()),
            Stage::Silent | Stage::Hello => return Err(Error::NotReady),
        }
        while state.next == 0 || state.sessions.contains_key(&state.next) {
            state.next = state.next.wrapping_add(1);
        }
        let id = state.next;
        let session = Session::new(id).map_err(|e| Error::Host("make an event descriptor", Arc::new(e)))?;
        let session = Arc::new(session);
        state.next = id.wrapping_add(1);
        state.sessions.insert(id, session.clone());
        Ok(session)
    }

    /// A session that never began.
    pub(super) fn forget(&self, id: u32) {
        self.state().sessions.remove(&id);
    }

    /// Queues a message.
    pub(super) fn send(&self, session: u32, message: Message) -> Result<(), Error> {
        self.enqueue(|bytes| Frame::new(session, message).put(bytes))
    }

    /// Queues input.
    pub(super) fn send_data(&self, session: u32, data: &[u8]) -> Result<(), Error> {
        self.enqueue(|bytes| put_data(session, Stream::Stdin, data, bytes))
    }

    fn enqueue(&self, put: impl FnOnce(&mut Vec<u8>)) -> Result<(), Error> {
        let mut queue = self.queue();
        if queue.ended {
            drop(queue);
            return Err(self.why());
        }
        if queue.bytes.len() > QUEUE {
            return Err(Error::Gone("it takes no messages any more".into()));
        }
        let before = queue.bytes.len();
        put(&mut queue.bytes);
        let len = queue.bytes.len() - before;
        if len > TO_GUEST {
            queue.bytes.truncate(before);
            return Err(Error::TooLong(len));
        }
        self.queued.notify_one();
        Ok(())
    }

    fn why(&self) -> Error {
        match &self.state().stage {
            Stage::Over(why) => why.clone(),
            // It ends just now.
            _ => Error::Gone("the guest has ended".into()),
        }
    }

    /// The writing thread. It says nothing before the guest did: whatever carries the bytes is not set up before.
    fn write(&self) {
        let speaks = |stage: &Stage| !matches!(stage, Stage::Silent);
        let wait = self.changed.wait_while(self.state(), |state| !speaks(&state.stage));
        drop(wait);
        let mut bytes = MAGIC.to_vec();
        while (&self.stream).write_all(&bytes).is_ok() {
            bytes.clear();
            let empty = |queue: &mut Queue| queue.bytes.is_empty() && !queue.ended;
            let mut queue = self.queued.wait_while(self.queue(), empty).unwrap_or_else(PoisonError::into_inner);
            if queue.bytes.is_empty() {
                return;
            }
            // The buffers take turns.
            std::mem::swap(&mut bytes, &mut queue.bytes);
        }
        // The reading thread finds out why.
        self.end();
    }

    /// The reading thread; returns why it ended.
    fn read(&self) -> Error {
        let mut decoder = Decoder::new(TO_HOST);
        let mut buffer = vec![0; TO_HOST];
        loop {
            match (&self.stream).read(&mut buffer) {
                Ok(0) => return Error::Gone("the guest has ended".into()),
                Ok(n) => decoder.push(buffer.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(e) => return Error::Gone(format!("its connection broke: {e}")),
            }
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => {
                        if let Err(why) = self.hear(frame) {
                            return why;
                        }
                    }
                    Ok(None) => break,
                    Err(_) => return nonsense(),
                }
            }
        }
    }

    fn hear(&self, frame: Frame) -> Result<(), Error> {
        let mut state = self.state();
        let Frame { session: id, message } = frame;
        if id != 0 {
            // What was under way when a session ended may come late: nobody waits for it.
            let Some(session) = state.sessions.get(&id).cloned() else { return Ok(()) };
            drop(state);
            if session.hear(message).map_err(|_| nonsense())? {
                self.state().sessions.remove(&id);
            }
            return Ok(());
        }
        state.stage = match (message, &state.stage) {
            (Message::Hello { version: VERSION }, Stage::Silent) => Stage::Hello,
            (Message::Hello { version }, Stage::Silent) => {
                return Err(Error::Gone(format!("it is of another version ({version}, not {VERSION})")));
            }
            (Message::Ready(mut ready), Stage::Hello) => {
                ready.notes.iter_mut().for_each(|note| *note = printable(note));
                Stage::Ready(ready)
            }
            (Message::Failed { what }, _) => return Err(Error::Failed(printable(&what))),
            _ => return Err(nonsense()),
        };
        self.changed.notify_all();
        Ok(())
    }

    /// The last that happens.
    fn over(&self, why: Error) {
        self.end();
        self.queue().ended = true;
        let sessions = {
            let mut state = self.state();
            state.stage = Stage::Over(why.clone());
            self.changed.notify_all();
            std::mem::take(&mut state.sessions)
        };
        self.queued.notify_all();
        sessions.values().for_each(|session| session.abandon(&why));
    }
}

fn nonsense() -> Error {
    Error::Gone("it sent what makes no sense".into())
}
