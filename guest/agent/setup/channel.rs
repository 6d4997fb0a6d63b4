//! The connection to the host: vsock, a virtio port, or a serial port.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::protocol::Channel;
use crate::serve::{Link, reason};
use crate::sys;

/// Address of the host.
const HOST: u32 = 2;
/// How long drivers may take until the device is there, and the host until it listens.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(10);

/// Connects.
pub fn open(channel: &Channel) -> Result<Link, String> {
    let end = Instant::now() + PATIENCE;
    let opened = loop {
        match attempt(channel) {
            // No driver will come that is not here by now.
            Err(e) if e.raw_os_error() == Some(sys::EAFNOSUPPORT) => break Err(e),
            Err(_) if Instant::now() < end => sleep(PAUSE),
            result => break result,
        }
    };
    opened.and_then(Link::new).map_err(|e| {
        let name = match channel {
            Channel::Vsock { port } => format!("vsock port {port}"),
            Channel::Port { name } => format!("the virtio port {name}"),
            Channel::Uart { device } => device.clone(),
        };
        match e.raw_os_error() {
            Some(sys::EAFNOSUPPORT) => format!("this kernel has no vsock (CONFIG_VIRTIO_VSOCKETS) to reach {name}"),
            _ => format!("cannot reach the host through {name}: {}", reason(&e)),
        }
    })
}

fn attempt(channel: &Channel) -> io::Result<OwnedFd> {
    match channel {
        Channel::Vsock { port } => sys::connect_vsock(HOST, *port),
        Channel::Port { name } => open_port(name),
        Channel::Uart { device } => {
            let file = open_device(device)?;
            sys::make_raw(&file)?;
            Ok(file.into())
        }
    }
}

/// The kernel knows the port's name; the link with that name in /dev is udev's.
fn open_port(name: &str) -> io::Result<OwnedFd> {
    for entry in fs::read_dir("/sys/class/virtio-ports")? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name"))?.trim_end() == name {
            let device = format!("/dev/{}", entry.file_name().to_string_lossy());
            return open_device(&device).map(OwnedFd::from);
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

fn open_device(path: &str) -> io::Result<File> {
    const O_NOCTTY: i32 = 0o400;
    const O_NONBLOCK: i32 = 0o4000;
    let mut options = File::options();
    options.read(true).write(true);
    std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, O_NOCTTY | O_NONBLOCK).open(path)
}
