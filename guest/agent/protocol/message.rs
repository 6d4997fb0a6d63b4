//! The messages. Each belongs to a *session*: 0 is the machine itself, the others are commands, numbered by the host.
//!
//! ```text
//!   guest                                  host
//!     Hello, then Ready or Failed  ------>
//!                                  <------  Exec
//!     Started                      ------>
//!     Data, End (stdout, stderr)   ------>  Credit as they are read, Close when nobody reads any more
//!     Credit, Close (stdin)        <------  Data, End (stdin); Signal, Resize
//!     Ended, the last of a session ------>
//!                                  <------  Shutdown: the guest powers off
//! ```

use std::ffi::OsString;
use std::path::PathBuf;

use super::wire::{Malformed, Wire};

/// What is said. Direction and order: see the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// The first: the agent runs and speaks [`super::VERSION`].
    Hello {
        /// Version that the guest speaks.
        version: u32,
    },
    /// The plan is carried out; commands may come.
    Ready(Ready),
    /// The plan cannot be carried out: the guest powers off.
    Failed {
        /// One line.
        what: String,
    },
    /// The command runs.
    Started {
        /// Its number in the guest.
        pid: u32,
    },
    /// The command has ended and all its output was sent. The session's number is free again.
    Ended(Outcome),
    /// Bytes of a stream, no more than there is credit for.
    Data {
        /// Which stream.
        stream: Stream,
        /// At most [`super::CHUNK`].
        bytes: Vec<u8>,
    },
    /// No more bytes follow.
    End {
        /// Which stream.
        stream: Stream,
    },
    /// The receiver took this many bytes.
    Credit {
        /// Which stream.
        stream: Stream,
        /// More that the sender may send.
        bytes: u32,
    },
    /// Nobody takes any more bytes: who still writes shall get a broken pipe.
    Close {
        /// Which stream.
        stream: Stream,
    },
    /// Run this.
    Exec(Exec),
    /// For the process group of the command.
    Signal {
        /// Number of the signal.
        number: u8,
    },
    /// The terminal has another size.
    Resize(Size),
    /// End everything and power off.
    Shutdown,
    /// Between processes of the host alone: a core dump of the machine, into the file whose descriptor comes with it.
    Dump,
}

/// What of a command is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Stream {
    /// Towards the guest.
    Stdin = 0,
    /// Towards the host. On a terminal the only one.
    Stdout = 1,
    /// Towards the host.
    Stderr = 2,
}

/// How far the guest has come; times in nanoseconds since its kernel started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ready {
    /// When the agent started.
    pub started: u64,
    /// When it was ready.
    pub ready: u64,
    /// What is not as it should be but stops nobody; a line each.
    pub notes: Vec<String>,
}

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Characters a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

/// What a session shall do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Run a program: its arguments, the first of which is looked for in PATH if it has no slash.
    Command(Vec<OsString>),
    /// Send a file or tree of the guest to stdout (see `tree`).
    Pack(PathBuf),
    /// Make a file or tree in the guest of what comes from stdin.
    Unpack(PathBuf),
}

/// A command and its surroundings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// What to do.
    pub task: Task,
    /// Environment beyond PATH, HOME, USER, HOSTNAME and, on a terminal, TERM; or instead of their defaults.
    pub env: Vec<(OsString, OsString)>,
    /// No defaults: the environment is `env` alone.
    pub clear_env: bool,
    /// Working directory; none: `/`.
    pub cwd: Option<PathBuf>,
    /// Where there is no such working directory, or not for this user, `/` will do.
    pub cwd_or_root: bool,
    /// Who runs it: name or number, and perhaps `:` and a group; none: root.
    pub user: Option<String>,
    /// A terminal of this size instead of pipes.
    pub terminal: Option<Size>,
    /// Whether there is input; else it is `/dev/null`.
    pub stdin: bool,
}

impl Exec {
    /// A command with everything else as it usually is: no input, no terminal, root, in `/`.
    pub fn new<I: IntoIterator<Item: Into<OsString>>>(command: I) -> Self {
        Self::task(Task::Command(command.into_iter().map(Into::into).collect()))
    }

    /// The same for any task.
    pub fn task(task: Task) -> Self {
        Self {
            task,
            env: Vec::new(),
            clear_env: false,
            cwd: None,
            cwd_or_root: false,
            user: None,
            terminal: None,
            stdin: false,
        }
    }
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// By itself, with this status.
    Exited(u8),
    /// By this signal.
    Signalled(u8),
    /// There is no such program; the text says what was looked for.
    NotFound(String),
    /// There is a file, but it cannot be executed; the text says why.
    NotExecutable(String),
    /// Something else is wrong, such as a user that does not exist.
    Failed(String),
}

/// Numbers of the messages.
mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const READY: u8 = 2;
    pub(super) const FAILED: u8 = 3;
    pub(super) const STARTED: u8 = 4;
    pub(super) const ENDED: u8 = 5;
    pub(super) const DATA: u8 = 6;
    pub(super) const END: u8 = 7;
    pub(super) const CREDIT: u8 = 8;
    pub(super) const CLOSE: u8 = 9;
    pub(super) const EXEC: u8 = 10;
    pub(super) const SIGNAL: u8 = 11;
    pub(super) const RESIZE: u8 = 12;
    pub(super) const SHUTDOWN: u8 = 13;
    pub(super) const DUMP: u8 = 14;
}

impl Message {
    /// Its number.
    pub fn kind(&self) -> u8 {
        match self {
            Self::Hello { .. } => kind::HELLO,
            Self::Ready(_) => kind::READY,
            Self::Failed { .. } => kind::FAILED,
            Self::Started { .. } => kind::STARTED,
            Self::Ended(_) => kind::ENDED,
            Self::Data { .. } => kind::DATA,
            Self::End { .. } => kind::END,
            Self::Credit { .. } => kind::CREDIT,
            Self::Close { .. } => kind::CLOSE,
            Self::Exec(_) => kind::EXEC,
            Self::Signal { .. } => kind::SIGNAL,
            Self::Resize(_) => kind::RESIZE,
            Self::Shutdown => kind::SHUTDOWN,
            Self::Dump => kind::DUMP,
        }
    }

    /// Appends what follows the head of its frame.
    pub fn put(&self, to: &mut Vec<u8>) {
        match self {
            Self::Hello { version: number } | Self::Started { pid: number } => number.put(to),
            Self::Ready(ready) => {
                ready.started.put(to);
                ready.ready.put(to);
                ready.notes.put(to);
            }
            Self::Failed { what } => what.put(to),
            Self::Ended(outcome) => outcome.put(to),
            Self::Data { stream, bytes } => {
                stream.put(to);
                to.extend_from_slice(bytes);
            }
            Self::End { stream } | Self::Close { stream } => stream.put(to),
            Self::Credit { stream, bytes } => {
                stream.put(to);
                bytes.put(to);
            }
            Self::Exec(exec) => exec.put(to),
            Self::Signal { number } => number.put(to),
            Self::Resize(size) => size.put(to),
            Self::Shutdown | Self::Dump => {}
        }
    }

    /// The message of this number. None: no message that is known here. Bytes left over are [`Malformed`].
    pub fn get(number: u8, mut from: &[u8]) -> Result<Option<Self>, Malformed> {
        let from = &mut from;
        let message = match number {
            kind::HELLO => Self::Hello { version: u32::get(from)? },
            kind::READY => {
                Self::Ready(Ready { started: u64::get(from)?, ready: u64::get(from)?, notes: Vec::get(from)? })
            }
            kind::FAILED => Self::Failed { what: String::get(from)? },
            kind::STARTED => Self::Started { pid: u32::get(from)? },
            kind::ENDED => Self::Ended(Outcome::get(from)?),
            kind::DATA => Self::Data { stream: Stream::get(from)?, bytes: std::mem::take(from).to_vec() },
            kind::END => Self::End { stream: Stream::get(from)? },
            kind::CREDIT => Self::Credit { stream: Stream::get(from)?, bytes: u32::get(from)? },
            kind::CLOSE => Self::Close { stream: Stream::get(from)? },
            kind::EXEC => Self::Exec(Exec::get(from)?),
            kind::SIGNAL => Self::Signal { number: u8::get(from)? },
            kind::RESIZE => Self::Resize(Size::get(from)?),
            kind::SHUTDOWN => Self::Shutdown,
            kind::DUMP => Self::Dump,
            _ => return Ok(None),
        };
        if from.is_empty() { Ok(Some(message)) } else { Err(Malformed) }
    }
}

impl Wire for Stream {
    fn put(&self, to: &mut Vec<u8>) {
        (*self as u8).put(to);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        match u8::get(from)? {
            0 => Ok(Self::Stdin),
            1 => Ok(Self::Stdout),
            2 => Ok(Self::Stderr),
            _ => Err(Malformed),
        }
    }
}

impl Wire for Size {
    fn put(&self, to: &mut Vec<u8>) {
        self.columns.put(to);
        self.rows.put(to);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(Self { columns: u16::get(from)?, rows: u16::get(from)? })
    }
}

impl Wire for PathBuf {
    fn put(&self, to: &mut Vec<u8>) {
        self.as_os_str().to_os_string().put(to);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        OsString::get(from).map(Self::from)
    }
}

impl Wire for Task {
    fn put(&self, to: &mut Vec<u8>) {
        match self {
            Self::Command(arguments) => {
                0u8.put(to);
                arguments.put(to);
            }
            Self::Pack(path) => {
                1u8.put(to);
                path.put(to);
            }
            Self::Unpack(path) => {
                2u8.put(to);
                path.put(to);
            }
        }
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        match u8::get(from)? {
            0 => Ok(Self::Command(Vec::get(from)?)),
            1 => Ok(Self::Pack(PathBuf::get(from)?)),
            2 => Ok(Self::Unpack(PathBuf::get(from)?)),
            _ => Err(Malformed),
        }
    }
}

impl Wire for Exec {
    fn put(&self, to: &mut Vec<u8>) {
        self.task.put(to);
        self.env.put(to);
        self.clear_env.put(to);
        self.cwd.put(to);
        self.cwd_or_root.put(to);
        self.user.put(to);
        self.terminal.put(to);
        self.stdin.put(to);
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(Self {
            task: Task::get(from)?,
            env: Vec::get(from)?,
            clear_env: bool::get(from)?,
            cwd: Option::get(from)?,
            cwd_or_root: bool::get(from)?,
            user: Option::get(from)?,
            terminal: Option::get(from)?,
            stdin: bool::get(from)?,
        })
    }
}

impl Wire for Outcome {
    fn put(&self, to: &mut Vec<u8>) {
        match self {
            Self::Exited(status) => [0, *status].put(to),
            Self::Signalled(number) => [1, *number].put(to),
            Self::NotFound(what) => {
                2u8.put(to);
                what.put(to);
            }
            Self::NotExecutable(why) => {
                3u8.put(to);
                why.put(to);
            }
            Self::Failed(why) => {
                4u8.put(to);
                why.put(to);
            }
        }
    }

    fn get(from: &mut &[u8]) -> Result<Self, Malformed> {
        match u8::get(from)? {
            0 => Ok(Self::Exited(u8::get(from)?)),
            1 => Ok(Self::Signalled(u8::get(from)?)),
            2 => Ok(Self::NotFound(String::get(from)?)),
            3 => Ok(Self::NotExecutable(String::get(from)?)),
            4 => Ok(Self::Failed(String::get(from)?)),
            _ => Err(Malformed),
        }
    }
}
