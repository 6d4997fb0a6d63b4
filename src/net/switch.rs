//! A switch that machines on one host share (`--net switch=NAME`), without any process that is the switch.
//!
//! | file | what it is |
//! | --- | --- |
//! | `place` | where members of a switch meet, and how a new one joins |
//! | `table` | which Ethernet address is behind which member |
//!
//! Every member is connected with every other by a socket that keeps packets apart (SOCK_SEQPACKET), and sends each frame
//! to the member that has its address, or to all. So nothing depends on who came first or who leaves. A member that does
//! not take its packets loses them, as behind a full port of any switch: nobody waits for it.
//!
//! Frames go with their virtio header, which is all zeros: they are complete, nothing is left to the receiver.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{Backend, HEADER_LEN, first_bytes};
use crate::host::vectored::{self, IoBuf};
use place::Membership;
use table::Table;

mod place;
mod table;
#[cfg(test)]
pub(super) mod tests;

pub use place::{Error, check_name};

/// Most members that one member is connected with. Each is a socket with its buffers.
const MAX_MEMBERS: usize = 64;
/// Event of the socket that new members connect to; members have numbers from 1.
const NEWCOMERS: u64 = 0;
/// Packets dropped at once by [`Backend::drain`].
const MOST_DRAINED: usize = 2048;
/// Events looked at in one call: a member that sends what is no packet must not keep the loop to itself.
const MOST_EVENTS: usize = 64;
/// Bytes that tell where a packet is from and to: the virtio header (zeros but for the number of buffers at its end) and
/// two addresses.
const ADDRESSED: usize = HEADER_LEN + 12;
/// The part of the virtio header that says what is left to the receiver.
const OFFLOADS: usize = 10;

/// A card's port of a switch.
#[derive(Debug)]
pub struct Switch {
    membership: Membership,
    epoll: Epoll,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    members: BTreeMap<u64, OwnedFd>,
    joined: u64,
    table: Table,
}

impl Switch {
    /// Joins the switch called `name`, which exists as soon as it has a member.
    pub fn join(name: &str) -> Result<Self, Error> {
        Self::join_at(&place::directory(name)?)
    }

    fn join_at(directory: &std::path::Path) -> Result<Self, Error> {
        let (membership, others) = Membership::new(directory, MAX_MEMBERS)?;
        let epoll = Epoll::new().map_err(Error::Socket)?;
        let newcomers = EpollEvent::new(EventSet::IN, NEWCOMERS);
        epoll.ctl(ControlOperation::Add, membership.as_raw_fd(), newcomers).map_err(Error::Socket)?;
        let switch = Self { membership, epoll, state: Mutex::default() };
        let mut state = switch.state();
        for other in others {
            switch.add(&mut state, other).map_err(Error::Socket)?;
        }
        drop(state);
        Ok(switch)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, state: &mut State, member: OwnedFd) -> io::Result<()> {
        if state.members.len() >= MAX_MEMBERS {
            return Ok(());
        }
        state.joined += 1;
        self.epoll.ctl(ControlOperation::Add, member.as_raw_fd(), EpollEvent::new(EventSet::IN, state.joined))?;
        state.members.insert(state.joined, member);
        Ok(())
    }

    /// A member has left. Closing its socket takes it out of the set of descriptors.
    fn remove(state: &mut State, member: u64) {
        state.members.remove(&member);
        state.table.forget(member);
    }

    /// The next packet of any member, in turns. `read` reads it from a socket and returns its length and first bytes.
    fn next(&self, mut read: impl FnMut(BorrowedFd<'_>) -> io::Result<(usize, [u8; ADDRESSED])>) -> io::Result<usize> {
        let mut state = self.state();
        for _ in 0..MOST_EVENTS {
            let mut events = [EpollEvent::default()];
            if self.epoll.wait(0, &mut events)? == 0 {
                break;
            }
            let [event] = events;
            if event.data() == NEWCOMERS {
                self.welcome(&mut state);
                continue;
            }
            let Some(member) = state.members.get(&event.data()) else { continue };
            match read(member.as_fd()) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Ok((0, _)) | Err(_) => Self::remove(&mut state, event.data()),
                Ok((len, first)) if len >= ADDRESSED && first.iter().take(OFFLOADS).all(|&byte| byte == 0) => {
                    let [.., s0, s1, s2, s3, s4, s5] = first;
                    state.table.learn([s0, s1, s2, s3, s4, s5], event.data(), Instant::now());
                    return Ok(len);
                }
                // Not what a member of this version sends.
                Ok(_) => {}
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Somebody connected.
    fn welcome(&self, state: &mut State) {
        match self.membership.accept().and_then(|member| self.add(state, member)) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => {
                // It would be told over and over. Those that are connected are served as before.
                tracing::warn!("the switch takes no more members: {e}");
                let _ = self.epoll.ctl(ControlOperation::Delete, self.membership.as_raw_fd(), EpollEvent::default());
            }
            Ok(()) => {}
        }
    }
}

impl Backend for Switch {
    fn fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    fn takes_offloads(&self) -> bool {
        false
    }

    fn send(&self, packet: &[IoBuf]) -> io::Result<()> {
        let [.., d0, d1, d2, d3, d4, d5, _, _, _, _, _, _] = first_bytes::<ADDRESSED>(packet);
        let mut state = self.state();
        let known = state.table.find([d0, d1, d2, d3, d4, d5], Instant::now());
        let mut gone = Vec::new();
        let (mut taken, mut refused) = (0, None);
        for (&id, member) in state.members.iter().filter(|(id, _)| known.is_none_or(|known| known == **id)) {
            match vectored::send(member, packet) {
                Ok(_) => taken += 1,
                Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    gone.push(id)
                }
                Err(e) => refused = Some(e),
            }
        }
        gone.into_iter().for_each(|id| Self::remove(&mut state, id));
        match refused {
            // It must not be taken for a wish to wait.
            Some(e) if taken == 0 => Err(io::Error::other(e)),
            _ => Ok(()),
        }
    }

    fn receive(&self, room: &[IoBuf]) -> io::Result<usize> {
        self.next(|member| Ok((vectored::read(member, room)?, first_bytes(room))))
    }

    fn set_offload(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_enabled(&self, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn drain(&self) {
        let read = |member: BorrowedFd<'_>| {
            let mut first = [0; ADDRESSED];
            Ok((rustix::io::read(member, &mut first)?, first))
        };
        for _ in 0..MOST_DRAINED {
            if self.next(read).is_err() {
                return;
            }
        }
    }
}
