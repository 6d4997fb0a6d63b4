//! Running a command in a machine of its own: `belljar run`, and the same for programs.
//!
//! ```no_run
//! use belljar::run::{RunSpec, output};
//!
//! let spec = RunSpec { command: vec!["uname".into(), "-r".into()], ..RunSpec::default() };
//! let output = output(&spec)?;
//! println!("status {}: {}", output.report.exit_code, String::from_utf8_lossy(&output.stdout));
//! # Ok::<(), belljar::run::Error>(())
//! ```
//!
//! | file | what it is |
//! | --- | --- |
//! | `spec`, `volume` | what shall be run, where |
//! | `prepare`, `environment`, `disk_root`, `network` | kernel, root, devices, plan: decided before anything starts |
//! | `assemble`, `pack` | the initial RAM file system, in memory |
//! | `channel`, `session`, `attendant` | reaching the agent; the command's life, and what is done around it |
//! | `bare` | a kernel without user space |
//! | `course`, `guest`, `steward`, `last_words` | the machine from its start to its end |
//! | `verdict`, `report` | what came of it |
//! | `registry`, `control`, `server`, `client`, `copy`, `dump` | running machines, and reaching them from other processes |

mod assemble;
mod attendant;
mod bare;
mod channel;
mod client;
mod control;
mod copy;
mod course;
mod disk_root;
mod dump;
mod environment;
mod guest;
pub mod kept;
mod last_words;
mod network;
mod pack;
mod prepare;
pub mod registry;
mod report;
mod server;
mod session;
mod spec;
mod steward;
mod verdict;
mod volume;

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

pub use attendant::Attendant;
pub use bare::{Bare, BareEnd};
pub use client::{Remote, RemoteError};
pub use course::{Ended, Handle, Run, Running};
pub use environment::environment;
pub use prepare::Prepared;
pub use report::{KernelReport, Report, Stages};
pub use session::window_size;
pub use spec::{RootAccess, RunSpec, RunSpecError};
pub use verdict::of_command as verdict_of;
pub use volume::Volume;

use crate::agent::{self, Input, Io, Output as Stream};
use crate::debug;
use crate::kernel;
use crate::loader::initramfs;
use crate::machine;
use crate::spec::{Size, SpecError};

/// A command cannot be run.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error(transparent)]
    Spec(#[from] RunSpecError),
    #[error(transparent)]
    Machine(#[from] machine::Error),
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    #[error(transparent)]
    Initramfs(#[from] initramfs::Error),
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error(transparent)]
    Agent(#[from] agent::Error),
    #[error(transparent)]
    Debug(#[from] debug::Error),
    #[error("Kernel {kernel}: {what}")]
    Lacks { kernel: String, what: String },
    #[error(
        "Kernel {0}: it has neither virtio sockets (CONFIG_VIRTIO_VSOCKETS) nor virtio consoles (CONFIG_VIRTIO_CONSOLE) nor serial ports (CONFIG_SERIAL_8250_CONSOLE), one of which the guest's agent needs"
    )]
    NoChannel(String),
    #[error("{lack}; {} is no directory to be packed into the guest's memory instead (at most {limit}, read-only or with changes thrown away): give a kernel that has it, or --disk-root", .path.display())]
    NoFilesystem { lack: String, path: PathBuf, limit: Size },
    #[error("Cannot use {} as the guest's root", .path.display())]
    Root { path: PathBuf, source: io::Error },
    #[error("Cannot use the disk {} as the guest's root", .path.display())]
    Disk { path: PathBuf, source: io::Error },
    #[error("--disk-root {}: it has a partition table; give an image that is a file system", .0.display())]
    Partitions(PathBuf),
    #[error("--volume: cannot use {}", .path.display())]
    Volume { path: PathBuf, source: io::Error },
    #[error("--volume: {} is not a directory", .0.display())]
    VolumeIsNoDirectory(PathBuf),
    #[error("Cannot read the environment file {}", .path.display())]
    EnvFile { path: PathBuf, source: io::Error },
    #[error("{}: the name of a kernel must be UTF-8", .0.display())]
    Name(PathBuf),
    #[error("This belljar has no device of the kind {0}")]
    NoDevice(String),
    #[error("The run was started before")]
    Twice,
    #[error("Cannot {0}")]
    Host(&'static str, #[source] io::Error),
}

impl From<SpecError> for Error {
    fn from(error: SpecError) -> Self {
        Self::Spec(error.into())
    }
}

impl Error {
    /// Whether what was asked for cannot be, whatever the host.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Spec(_))
    }
}

/// What a command printed, and what came of it.
#[derive(Debug)]
pub struct Output {
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// Verdict, exit code and all else.
    pub report: Report,
}

/// Runs the command of `spec` without input, and returns what it printed when the machine has ended.
pub fn output(spec: &RunSpec) -> Result<Output, Error> {
    let (stdout, stderr) = (Collected::default(), Collected::default());
    let io = Io {
        stdin: Input::None,
        stdout: Stream::Writer(Box::new(stdout.clone())),
        stderr: Stream::Writer(Box::new(stderr.clone())),
    };
    let ended = Run::new(spec)?.io(io).start()?.until_end(None, &mut || {})?;
    Ok(Output { stdout: stdout.take(), stderr: stderr.take(), report: ended.report })
}

/// Output in memory.
#[derive(Debug, Clone, Default)]
struct Collected(Arc<Mutex<Vec<u8>>>);

impl Collected {
    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Collected {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
