//! Runs a handler: calls it when there is something to do, then sends interrupts and asks for notifications.
//!
//! [`Runner`] knows the rules, [`Worker`] puts it on an event loop. The transport makes a worker when the driver is
//! ready and takes it off the loop at reset; in between all calls come on the loop's thread.
//!
//! The driver's notifications arrive as eventfds, watched edge-triggered, so that nobody has to read them: a request
//! costs one `epoll_wait`, the device's own I/O and one write to an interrupt's eventfd.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use crate::host::log_limit::LogLimit;
use crate::virtio::queue::{Again, Queues};
use crate::virtio::{Broken, Handler};

static BROKEN: LogLimit = LogLimit::new();

/// Turns that a queue gets in a row at most while its driver adds a request at the end of each.
const TURNS: u32 = 8;

/// A handler with its queues.
pub struct Runner {
    name: String,
    handler: Box<dyn Handler>,
    queues: Queues,
    broken: bool,
    again: Vec<Again>,
    ready: Vec<(RawFd, u32)>,
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("name", &self.name).field("broken", &self.broken).finish_non_exhaustive()
    }
}

impl Runner {
    /// A runner for the device called `name` in messages.
    pub fn new(name: String, handler: Box<dyn Handler>, queues: Queues) -> Self {
        Self { name, handler, queues, broken: false, again: Vec::new(), ready: Vec::new() }
    }

    /// Starts the handler and lets it see what the driver made available before.
    pub fn start(&mut self) {
        self.call(|handler, queues| handler.start(queues));
        for index in 0..self.queues.len() {
            if matches!(self.queues.queue(index).is_empty(), Ok(false)) {
                self.on_queue(index);
            }
        }
    }

    /// The driver notified queue `index`.
    pub fn on_queue(&mut self, index: usize) {
        for turn in 1..=TURNS {
            self.call(|handler, queues| {
                queues.queue(index).begin()?;
                handler.on_queue(index, queues)
            });
            // A driver that got its interrupt and had the next request ready before this turn was over: by way of the
            // doorbell that would be one system call more for a request.
            let late = self.again.iter().position(|again| again.queue == index && !again.throttled);
            match late {
                Some(at) if turn < TURNS => drop(self.again.swap_remove(at)),
                _ => return,
            }
        }
    }

    /// The handler's descriptor with `token` is ready.
    pub fn on_fd(&mut self, token: u32) {
        self.call(|handler, queues| handler.on_fd(token, queues));
    }

    /// Some of the descriptors of [`Queues::watch`] are ready.
    pub fn on_watches(&mut self) {
        let mut ready = std::mem::take(&mut self.ready);
        self.queues.watches.ready(&mut ready);
        for &(fd, token) in &ready {
            if self.queues.watches.is_watched(fd, token) {
                self.on_fd(token);
            }
        }
        self.ready = ready;
    }

    /// A queue that needs another turn. The caller lets others go first.
    pub fn take_again(&mut self) -> Option<usize> {
        self.again.pop().map(|again| again.queue)
    }

    /// What [`Queues::pause`] asked for since the last call: (token, paused).
    #[cfg(any(test, feature = "testkit"))]
    pub(crate) fn take_pauses(&mut self) -> Vec<(u32, bool)> {
        std::mem::take(&mut self.queues.watches.pauses)
    }

    /// All descriptors to poll: the handler's with their tokens, and the one that stands for its watches.
    #[cfg(any(test, feature = "testkit"))]
    pub(crate) fn poll_fds(&self) -> (Vec<(RawFd, u32)>, Option<RawFd>) {
        (self.handler.fds(), self.queues.watches.fd())
    }

    /// Whether the handler is called no more.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Stops: the driver must reset the device.
    fn fail(&mut self, reason: &Broken) {
        self.broken = true;
        self.again.clear();
        self.queues.needs_reset();
        if BROKEN.allow() {
            tracing::warn!("{}: the guest's driver broke the rules, the device stops until reset: {reason}", self.name);
        }
    }

    fn call(&mut self, work: impl FnOnce(&mut dyn Handler, &mut Queues) -> Result<(), Broken>) {
        if self.broken {
            return;
        }
        // Interrupts first: the driver may use the time in which notifications are turned on again.
        let result = work(&mut *self.handler, &mut self.queues)
            .and_then(|()| self.queues.signal())
            .and_then(|()| self.queues.end_turn(&mut self.again));
        if let Err(reason) = result {
            self.fail(&reason);
        }
    }
}

/// Event data of the descriptor that stands for [`Queues::watch`]. Below it: queues, then the handler's descriptors.
const WATCHES: u32 = u32::MAX;

/// A descriptor of the handler's and whether the loop watches it now.
#[derive(Debug)]
struct Fixed {
    fd: RawFd,
    token: u32,
    watched: bool,
}

/// A runner on an event loop.
#[derive(Debug)]
pub struct Worker {
    runner: Runner,
    doorbells: Vec<Arc<EventFd>>,
    fixed: Vec<Fixed>,
    watches: Option<RawFd>,
}

impl Worker {
    /// A worker that serves queue `i` when `doorbells[i]` is written to.
    pub fn new(runner: Runner, doorbells: Vec<Arc<EventFd>>) -> Self {
        let fds = runner.handler.fds().into_iter();
        let fixed = fds.map(|(fd, token)| Fixed { fd, token, watched: false }).collect();
        Self { runner, doorbells, fixed, watches: None }
    }

    fn watch(&mut self, ops: &mut EventOps, fd: RawFd, data: u32, set: EventSet) {
        if let Err(e) = ops.add(Events::with_data_raw(fd, data, set)) {
            self.runner.fail(&Broken(format!("descriptor {fd} cannot be watched: {e}")));
        }
    }

    fn watch_fixed(&mut self, ops: &mut EventOps, index: usize, on: bool) {
        let data = self.doorbells.len().saturating_add(index) as u32;
        let Some(fixed) = self.fixed.get_mut(index).filter(|fixed| fixed.watched != on) else { return };
        fixed.watched = on;
        let fd = fixed.fd;
        if on {
            self.watch(ops, fd, data, EventSet::IN);
        } else if let Err(e) = ops.remove(Events::empty_raw(fd)) {
            tracing::debug!("descriptor {fd} was not watched: {e}");
        }
    }

    /// Does on the loop what the last call asked for.
    fn follow_up(&mut self, ops: &mut EventOps) {
        if self.runner.is_broken() {
            return self.silence(ops);
        }
        let pauses = std::mem::take(&mut self.runner.queues.watches.pauses);
        for (token, paused) in pauses {
            if let Some(index) = self.fixed.iter().position(|fixed| fixed.token == token) {
                self.watch_fixed(ops, index, !paused);
            }
        }
        if let (None, Some(fd)) = (self.watches, self.runner.queues.watches.fd()) {
            self.watches = Some(fd);
            self.watch(ops, fd, WATCHES, EventSet::IN);
        }
        while let Some(doorbell) = self.runner.take_again().and_then(|index| self.doorbells.get(index)) {
            // Cannot fail: the counter would have to reach 2^64.
            let _ = doorbell.write(1);
        }
    }

    /// Stops listening to the handler's descriptors, which nobody serves any more.
    fn silence(&mut self, ops: &mut EventOps) {
        for index in 0..self.fixed.len() {
            self.watch_fixed(ops, index, false);
        }
        if let Some(fd) = self.watches.take() {
            let _ = ops.remove(Events::empty_raw(fd));
        }
    }
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps) {
        for index in 0..self.doorbells.len() {
            if let Some(fd) = self.doorbells.get(index).map(|doorbell| doorbell.as_raw_fd()) {
                self.watch(ops, fd, index as u32, EventSet::IN | EventSet::EDGE_TRIGGERED);
            }
        }
        for index in 0..self.fixed.len() {
            self.watch_fixed(ops, index, true);
        }
        self.runner.start();
        self.follow_up(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let slot = events.data() as usize;
        if events.data() == WATCHES {
            self.runner.on_watches();
        } else if slot < self.doorbells.len() {
            self.runner.on_queue(slot);
        } else if let Some(fixed) = self.fixed.get(slot - self.doorbells.len()).filter(|fixed| fixed.watched) {
            self.runner.on_fd(fixed.token);
        }
        self.follow_up(ops);
    }
}
