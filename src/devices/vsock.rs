//! Sockets between guest and host (virtio 1.3, section 5.10), without any network.
//!
//! ```text
//!   guest program  --(CID 2, port P)-->  UNIX socket PATH_P of the host     who listens there answers
//!   host program   --(UNIX socket PATH, "CONNECT P\n")-->  port P of the guest, answered "OK n\n"
//! ```
//!
//! `table` keeps the connections, `connection` is one of them with its flow control, `handler` moves packets.
//! Everything but the making of the device runs on the event loop.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use crate::devices::{AttachError, Builder, Key, Kind as DeviceKind, OptionError, Options, Spec};
use crate::host::alarm::Alarm;
use crate::host::socket::Listening;
use crate::virtio::config::ConfigSpace;
use crate::virtio::{ActivateError, Handler, Info, VirtioDevice};

mod connection;
mod handler;
mod handshake;
mod packet;
mod table;
#[cfg(test)]
mod tests;

/// Packets that may wait in each direction. Linux offers a buffer of 4 KiB for each.
const QUEUE_SIZE: u16 = 256;
/// Events that may wait. None are ever sent: connections do not outlive the device.
const EVENT_SIZE: u16 = 4;
/// VIRTIO_VSOCK_F_STREAM (section 5.10.3).
const F_STREAM: u64 = 1;

/// Guest's address if none is given: the first that is free for guests (section 5.10.4).
const FIRST_CID: u64 = 3;
/// The upper half of an address is reserved, and all ones mean any.
const LAST_CID: u64 = u32::MAX as u64 - 1;
/// Most bytes of the path of a UNIX socket.
const MAX_PATH: usize = 107;
/// Most bytes after it: `_` and a port.
const MAX_SUFFIX: usize = 11;

/// `--vsock`.
#[derive(Debug)]
pub struct Kind;

const KEYS: &[Key] = &[
    Key { name: "socket", value: "PATH", about: "UNIX socket for programs of the host" },
    Key { name: "cid", value: "N", about: "address of the guest (3)" },
];

impl DeviceKind for Kind {
    fn name(&self) -> &'static str {
        "vsock"
    }

    fn about(&self) -> &'static str {
        "Sockets between programs of guest and host (AF_VSOCK)"
    }

    fn keys(&self) -> &'static [Key] {
        KEYS
    }

    fn repeatable(&self) -> bool {
        false
    }

    fn parse(&self, options: &mut Options) -> Result<Box<dyn Spec>, OptionError> {
        let socket = PathBuf::from(options.required("socket")?);
        if socket.as_os_str().len() > MAX_PATH - MAX_SUFFIX {
            return Err(options.error(format!(
                "socket={}: too long (at most {} bytes); use a shorter or a relative path",
                socket.display(),
                MAX_PATH - MAX_SUFFIX
            )));
        }
        let cid = options.number("cid", FIRST_CID, FIRST_CID..=LAST_CID)?;
        Ok(Box::new(VsockSpec { socket, cid }))
    }
}

#[derive(Debug)]
struct VsockSpec {
    socket: PathBuf,
    cid: u64,
}

impl Spec for VsockSpec {
    fn timed(&self) -> Option<&'static str> {
        Some("--vsock")
    }

    fn attach(&self, builder: &mut Builder<'_>) -> Result<(), AttachError> {
        let fail = |e| AttachError(format!("--vsock: cannot listen at {}: {e}", self.socket.display()));
        builder.virtio("vsock", Box::new(Vsock::new(&self.socket, self.cid).map_err(fail)?));
        Ok(())
    }
}

struct Vsock {
    listener: Arc<Listening>,
    path: PathBuf,
    cid: u64,
    config: ConfigSpace,
    limits: handler::Limits,
}

impl Vsock {
    fn new(path: &Path, cid: u64) -> std::io::Result<Self> {
        let listener = Arc::new(Listening::new(path)?);
        let config = ConfigSpace::with(&cid.to_le_bytes());
        Ok(Self { listener, path: path.into(), cid, config, limits: handler::Limits::default() })
    }
}

impl VirtioDevice for Vsock {
    fn info(&self) -> Info {
        let queue_sizes = vec![QUEUE_SIZE, QUEUE_SIZE, EVENT_SIZE];
        Info { id: VIRTIO_ID_VSOCK as u16, features: F_STREAM, queue_sizes, blocking: false }
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn activate(&mut self, _: u64) -> Result<Box<dyn Handler>, ActivateError> {
        let alarm = Alarm::new().map_err(|e| ActivateError(format!("cannot make a timer: {e}")))?;
        let (listener, path) = (self.listener.clone(), self.path.clone());
        Ok(Box::new(handler::VsockHandler::new(listener, path, self.cid, alarm, self.limits)))
    }
}
