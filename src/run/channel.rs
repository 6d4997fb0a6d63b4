//! What carries the connection to the agent: the best that the guest's kernel has.
//!
//! | channel | device of the machine | who connects |
//! | --- | --- | --- |
//! | vsock | `--vsock` | the agent, to a port of the host |
//! | named port | `--port` | this process, before the guest has opened it |
//! | second serial port | `--uart` | the same; slow, but every kernel for PCs has its driver |

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Error;
use super::prepare::add;
use super::registry::Home;
use crate::agent;
use crate::kernel::{Feature, Kernel, Support};
use crate::machine::Control;
use crate::spec::MachineSpec;

/// Port of the host on which the agent is expected, `bj` in ASCII.
const PORT: u32 = 0x626a;
/// Name of the port, as of other agents.
const NAME: &str = "org.belljar.agent";
/// How often a wait for the agent looks whether the machine still runs.
const LOOK: Duration = Duration::from_millis(200);

/// A channel that was chosen, with its place on this host.
#[derive(Debug)]
pub(super) enum Channel {
    /// The socket on which the device's connections arrive.
    Vsock { device: PathBuf, listener: UnixListener },
    /// The socket of the device.
    Port(PathBuf),
    /// The same.
    Uart(PathBuf),
}

/// What the kernel needs for a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Vsock,
    Port,
    Uart,
}

impl Kind {
    /// The best that `kernel` has for a machine of this specification; none if it has none.
    pub(super) fn choose(kernel: &Kernel, machine: &MachineSpec) -> Option<Self> {
        // A machine has one such device, and the one that is there is the user's.
        let is_free = |kind: &Self| *kind == Self::Port || machine.device_options(kind.device()).next().is_none();
        let kinds = [Self::Vsock, Self::Port, Self::Uart].into_iter().filter(is_free);
        let kinds: Vec<_> = kinds.map(|kind| (kind, kernel.support(kind.feature()))).collect();
        let known = kinds.iter().find(|(_, support)| matches!(support, Support::BuiltIn | Support::Modules(_)));
        known.or_else(|| kinds.iter().find(|(_, support)| *support == Support::Unknown)).map(|(kind, _)| *kind)
    }

    pub(super) fn feature(self) -> Feature {
        match self {
            Self::Vsock => Feature::Vsock,
            Self::Port => Feature::VirtioConsole,
            Self::Uart => Feature::Serial,
        }
    }

    fn device(self) -> &'static str {
        match self {
            Self::Vsock => "vsock",
            Self::Port => "port",
            Self::Uart => "uart",
        }
    }
}

impl Channel {
    /// Makes what the host needs, in the machine's directory.
    pub(super) fn new(kind: Kind, home: &Home) -> io::Result<Self> {
        Ok(match kind {
            Kind::Vsock => {
                let listener = UnixListener::bind(home.file(&format!("vsock_{PORT}")))?;
                Self::Vsock { device: home.file("vsock"), listener }
            }
            Kind::Port => Self::Port(home.file("port")),
            Kind::Uart => Self::Uart(home.file("port")),
        })
    }

    /// Adds the device to the machine.
    pub(super) fn add_device(&self, machine: &mut MachineSpec) -> Result<(), Error> {
        // Commas separate options.
        let text = |path: &PathBuf| path.display().to_string().replace(',', ",,");
        match self {
            Self::Vsock { device, .. } => add(machine, "vsock", &format!("socket={}", text(device))),
            Self::Port(device) => add(machine, "port", &format!("name={NAME},to=socket={}", text(device))),
            Self::Uart(device) => add(machine, "uart", &format!("to=socket={}", text(device))),
        }
    }

    /// The channel as the agent finds it.
    pub(super) fn for_agent(&self) -> agent::Channel {
        match self {
            Self::Vsock { .. } => agent::Channel::Vsock { port: PORT },
            Self::Port(_) => agent::Channel::Port { name: NAME.into() },
            Self::Uart(_) => agent::Channel::Uart { device: "/dev/ttyS1".into() },
        }
    }

    /// The connection; none if the machine ended before there was one. Waits for the agent.
    pub(super) fn connect(self, control: &Control) -> io::Result<Option<UnixStream>> {
        let listener = match self {
            Self::Port(path) | Self::Uart(path) => return UnixStream::connect(path).map(Some),
            Self::Vsock { listener, .. } => listener,
        };
        let time = Timespec { tv_sec: 0, tv_nsec: LOOK.as_nanos() as i64 };
        while !control.has_ended() {
            let mut fds = [PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)];
            if poll(&mut fds, Some(&time)).is_ok_and(|ready| ready > 0) {
                return listener.accept().map(|(stream, _)| Some(stream));
            }
        }
        Ok(None)
    }
}
