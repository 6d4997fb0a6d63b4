//! Descriptors that a handler watches beside its queues, as they come and go (sockets of a network, a paused tap).
//!
//! They live in an epoll instance of their own, made when first needed, whose descriptor the device's loop watches:
//! so a change takes effect at once, before the descriptor can be closed and its number used again.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Data to read.
    Read,
    /// Room to write.
    Write,
    /// Either.
    Both,
    /// Only that the other end is gone for good, which is told in all other cases as well.
    Hangup,
}

/// Events taken from the kernel at once.
const BATCH: usize = 16;

/// What a handler watches.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    epoll: Option<Epoll>,
    tokens: BTreeMap<RawFd, u32>,
    /// Wishes about the handler's fixed descriptors, by token; the loop fulfils them after the call.
    pub(crate) pauses: Vec<(u32, bool)>,
}

impl Watches {
    pub(crate) fn watch(&mut self, fd: RawFd, token: u32, interest: Interest) -> io::Result<()> {
        let epoll = match &mut self.epoll {
            Some(epoll) => epoll,
            none => none.insert(Epoll::new()?),
        };
        let set = match interest {
            Interest::Read => EventSet::IN,
            Interest::Write => EventSet::OUT,
            Interest::Both => EventSet::IN | EventSet::OUT,
            // The kernel adds errors and hang-ups.
            Interest::Hangup => EventSet::empty(),
        };
        let known = self.tokens.contains_key(&fd);
        let operation = if known { ControlOperation::Modify } else { ControlOperation::Add };
        epoll.ctl(operation, fd, EpollEvent::new(set, u64::from(token) << 32 | u64::from(fd as u32)))?;
        self.tokens.insert(fd, token);
        Ok(())
    }

    pub(crate) fn unwatch(&mut self, fd: RawFd) {
        if let (Some(_), Some(epoll)) = (self.tokens.remove(&fd), &self.epoll) {
            // Fails only if the descriptor is closed already; then it is out of the set as well.
            let _ = epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
        }
    }

    pub(crate) fn pause(&mut self, token: u32, paused: bool) {
        self.pauses.retain(|&(other, _)| other != token);
        self.pauses.push((token, paused));
    }

    /// Readable when a watched descriptor is ready.
    pub(crate) fn fd(&self) -> Option<RawFd> {
        self.epoll.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// The descriptors that are ready now, with their tokens.
    pub(crate) fn ready(&self, found: &mut Vec<(RawFd, u32)>) {
        let mut events = [EpollEvent::default(); BATCH];
        let count = self.epoll.as_ref().and_then(|epoll| epoll.wait(0, &mut events).ok()).unwrap_or(0);
        found.clear();
        found
            .extend(events.iter().take(count).map(|event| (event.data() as u32 as RawFd, (event.data() >> 32) as u32)));
    }

    /// Whether `fd` is still watched under `token`: an earlier event may have ended that.
    pub(crate) fn is_watched(&self, fd: RawFd, token: u32) -> bool {
        self.tokens.get(&fd) == Some(&token)
    }
}
