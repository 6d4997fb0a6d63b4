//! Event loops: each is one thread with one `event-manager`. Devices run on them; vCPU threads only send messages.
//!
//! A machine has one loop for everything that never blocks; a device whose work may block (synchronous disk I/O)
//! gets a loop of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use event_manager::{EventManager, MutEventSubscriber, RemoteEndpoint, SubscriberId};

/// What runs on a loop.
pub type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// The loop could not be started or reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Thread or epoll creation failed.
    #[error("Cannot start I/O thread {name}: {reason}")]
    Start {
        /// Thread name.
        name: String,
        /// The host's reason.
        reason: String,
    },
    /// The loop's thread ended.
    #[error("I/O thread is gone: {0}")]
    Gone(String),
}

/// A running loop; dropping it stops the thread and drops all subscribers.
pub struct EventLoop {
    handle: LoopHandle,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// A way to reach a loop from other threads.
#[derive(Clone)]
pub struct LoopHandle(RemoteEndpoint<Subscriber>);

impl std::fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventLoop").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for LoopHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LoopHandle").finish_non_exhaustive()
    }
}

impl EventLoop {
    /// Starts a thread called `name` (tools show 15 characters of it).
    pub fn start(name: &str) -> Result<Self, Error> {
        let fail = |reason: String| Error::Start { name: name.into(), reason };
        let mut manager = EventManager::<Subscriber>::new_with_capacity(32).map_err(|e| fail(e.to_string()))?;
        let handle = LoopHandle(manager.remote_endpoint());
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        let thread = std::thread::Builder::new()
            .name(name.into())
            .stack_size(256 << 10)
            .spawn(move || {
                while !ended.load(Ordering::Acquire) {
                    if let Err(e) = manager.run() {
                        tracing::error!("event loop stopped: {e}");
                        return;
                    }
                }
            })
            .map_err(|e| fail(e.to_string()))?;
        Ok(Self { handle, end, thread: Some(thread) })
    }

    /// A handle for other threads.
    pub fn handle(&self) -> LoopHandle {
        self.handle.clone()
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Release);
        let kicked = self.handle.0.kick();
        if let (Ok(()), Some(thread)) = (kicked, self.thread.take()) {
            // A panic on the loop's thread was already printed there; nothing is left to do about it here.
            let _ = thread.join();
        }
    }
}

impl LoopHandle {
    /// Puts `subscriber` on the loop and returns when it is initialised. Must not be called on the loop's own thread.
    pub fn add(&self, subscriber: Subscriber) -> Result<SubscriberId, Error> {
        self.0
            .call_blocking(|ops| Ok::<_, event_manager::Error>(ops.add_subscriber(subscriber)))
            .map_err(|e| Error::Gone(e.to_string()))
    }

    /// Takes a subscriber off the loop, after it has finished what it is doing. Not on the loop's own thread.
    pub fn remove(&self, id: SubscriberId) -> Result<Subscriber, Error> {
        self.0.call_blocking(move |ops| ops.remove_subscriber(id)).map_err(|e| Error::Gone(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_manager::{EventOps, EventSet, Events};
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;
    use vmm_sys_util::eventfd::EventFd;

    struct Tell(EventFd, Sender<u64>);
    impl MutEventSubscriber for Tell {
        fn process(&mut self, _: Events, _: &mut EventOps) {
            self.1.send(self.0.read().unwrap()).unwrap();
        }
        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
        }
    }

    #[test]
    fn subscribers_run_until_removed_and_the_loop_ends_when_dropped() {
        let looped = EventLoop::start("test-loop").unwrap();
        let fd = EventFd::new(0).unwrap();
        let (sender, told) = channel();
        let id = looped.handle().add(Box::new(Tell(fd.try_clone().unwrap(), sender))).unwrap();
        fd.write(3).unwrap();
        assert_eq!(told.recv_timeout(Duration::from_secs(10)).unwrap(), 3);
        let back = looped.handle().remove(id).unwrap();
        fd.write(1).unwrap();
        drop(back);
        assert!(told.recv_timeout(Duration::from_secs(10)).is_err(), "removed subscribers hear nothing");
        let handle = looped.handle();
        drop(looped);
        assert!(handle.remove(id).is_err());
    }
}
