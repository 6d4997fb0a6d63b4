//! Published ports: sockets of the host whose clients are passed on to the guest.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::PoisonError;

use super::config::Publish;
use super::context::Context;
use super::counters::Published;
use super::poller::Source;
use super::tcp::Tcp;
use super::udp::Udp;

/// Clients taken in before others get their turn.
const MOST_AT_ONCE: usize = 64;

/// A port cannot be published.
#[derive(Debug, thiserror::Error)]
#[error("cannot publish {listen}{protocol}: {error}{remedy}")]
pub struct Error {
    listen: SocketAddr,
    protocol: &'static str,
    error: io::Error,
    remedy: &'static str,
}

enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

struct Port {
    socket: Socket,
    guest: u16,
    /// Somebody may wait.
    waiting: bool,
}

/// All published ports.
pub(super) struct Ports(Vec<Port>);

impl Ports {
    /// Listens at the ports.
    pub(super) fn open(context: &Context, list: &[Publish]) -> Result<Self, Error> {
        let mut ports = Vec::new();
        for (publish, id) in list.iter().zip(0..) {
            let (socket, at) = listen(context, publish, id).map_err(|error| explain(publish, error))?;
            let protocol = if publish.udp { "udp" } else { "tcp" };
            let published = Published { listen: at.to_string(), guest: publish.guest, protocol };
            let chosen = publish.listen.port() == 0;
            if chosen {
                tracing::warn!("port {} of the guest ({protocol}) is published at {at}", publish.guest);
            }
            context.counters.published.lock().unwrap_or_else(PoisonError::into_inner).push(published);
            ports.push(Port { socket, guest: publish.guest, waiting: false });
        }
        Ok(Self(ports))
    }

    /// Somebody waits at a port.
    pub(super) fn ready(&mut self, id: u64) {
        if let Some(port) = usize::try_from(id).ok().and_then(|index| self.0.get_mut(index)) {
            port.waiting = true;
        }
    }

    /// Lets those in who wait, if the guest is there and there is room.
    pub(super) fn serve(&mut self, context: &mut Context, tcp: &mut Tcp, udp: &mut Udp, room: &mut [u8]) {
        if !context.neighbours.any() {
            return;
        }
        for (port, id) in self.0.iter_mut().zip(0..).filter(|(port, _)| port.waiting) {
            match &port.socket {
                Socket::Tcp(listener) => port.waiting = !accept(context, tcp, listener, port.guest),
                Socket::Udp(socket) => port.waiting = !udp.arrived(context, id, socket, port.guest, room),
            }
        }
    }

    /// Whether somebody may wait who can be let in.
    pub(super) fn has_work(&self, context: &Context, tcp: &Tcp) -> bool {
        let open = |port: &Port| matches!(port.socket, Socket::Udp(_)) || tcp.has_room();
        context.neighbours.any() && self.0.iter().any(|port| port.waiting && open(port))
    }

    /// The guest answers a client of a UDP port.
    pub(super) fn answer(&self, id: u64, client: SocketAddr, payload: &[u8]) -> usize {
        match usize::try_from(id).ok().and_then(|index| self.0.get(index)) {
            // UDP may be lost.
            Some(Port { socket: Socket::Udp(socket), .. }) => socket.send_to(payload, client).unwrap_or(0),
            _ => 0,
        }
    }
}

/// True if nobody waits any more.
fn accept(context: &mut Context, tcp: &mut Tcp, listener: &TcpListener, guest: u16) -> bool {
    for _ in 0..MOST_AT_ONCE {
        if !tcp.has_room() {
            return false;
        }
        match listener.accept() {
            Ok((client, _)) => {
                if client.set_nonblocking(true).is_ok() {
                    let _ = client.set_nodelay(true);
                    tcp.welcome(context, OwnedFd::from(client), guest);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return true,
            Err(e) if e.kind() == io::ErrorKind::Interrupted || e.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(e) => {
                // Most often too many files are open; whoever comes next is seen again.
                tracing::debug!("cannot accept a client: {e}");
                return true;
            }
        }
    }
    false
}

fn listen(context: &Context, publish: &Publish, id: u64) -> io::Result<(Socket, SocketAddr)> {
    if publish.udp {
        let socket = UdpSocket::bind(publish.listen)?;
        socket.set_nonblocking(true)?;
        context.poller.watch(&socket, Source::Port(id))?;
        let at = socket.local_addr()?;
        return Ok((Socket::Udp(socket), at));
    }
    let listener = TcpListener::bind(publish.listen)?;
    listener.set_nonblocking(true)?;
    context.poller.watch(&listener, Source::Port(id))?;
    let at = listener.local_addr()?;
    Ok((Socket::Tcp(listener), at))
}

fn explain(publish: &Publish, error: io::Error) -> Error {
    let remedy = match error.kind() {
        io::ErrorKind::AddrInUse => "; name another port, or 0 for any that is free",
        io::ErrorKind::PermissionDenied => "; ports below 1024 are for root: name another, such as 8080",
        io::ErrorKind::AddrNotAvailable => "; name an address of this host, or 0.0.0.0 for all",
        _ => "",
    };
    Error { listen: publish.listen, protocol: if publish.udp { "/udp" } else { "" }, error, remedy }
}
