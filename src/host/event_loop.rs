//! Event loops: each is one thread with one `event-manager`. Devices run on them; vCPU threads only send messages.
//!
//! A machine has one loop for everything that never blocks; a device whose work may block (synchronous disk I/O)
//! gets a loop of its own. A loop that ends unasked, by an error or a panic, is told to the machine ([`Failed`]).
//!
//! A loop in step ([`EventLoop::start_in_step`]) serves machines whose runs can be repeated: their CPU waits after each
//! access to a device until the loop has nothing left to do ([`LoopHandle::settle`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::contain::contain;
use super::signal::survive_file_size_limit;
use event_manager::{EventManager, MutEventSubscriber, RemoteEndpoint, SubscriberId};

/// What runs on a loop.
pub type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// Is told, on one line, that a loop ended unasked and why; on the loop's thread.
pub type Failed = Arc<dyn Fn(String) + Send + Sync>;

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
pub struct LoopHandle {
    endpoint: RemoteEndpoint<Subscriber>,
    step: Option<Arc<Step>>,
    failed: Failed,
}

/// What a loop in step and those who wait for it tell each other.
#[derive(Debug, Default)]
struct Step {
    progress: Mutex<Progress>,
    settled: Condvar,
}

#[derive(Debug, Default)]
struct Progress {
    /// Number of the last wish that the loop be idle.
    asked: u64,
    /// The loop was idle after this one.
    settled: u64,
    ended: bool,
}

/// Turns after which a loop is called idle although it is not: something on it is ready for ever, which is a mistake.
const MANY_TURNS: u32 = 100_000;

impl Step {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// On the loop, after a turn: if somebody waits, takes turns until nothing is ready.
    fn follow(&self, manager: &mut EventManager<Subscriber>) -> event_manager::Result<()> {
        let asked = {
            let progress = self.progress();
            if progress.asked == progress.settled {
                return Ok(());
            }
            progress.asked
        };
        let mut turns = 0;
        while manager.run_with_timeout(0)? > 0 {
            turns += 1;
            if turns == MANY_TURNS {
                tracing::error!("the devices find no rest: this run cannot be repeated");
                break;
            }
        }
        self.progress().settled = asked;
        self.settled.notify_all();
        Ok(())
    }

    fn end(&self) {
        self.progress().ended = true;
        self.settled.notify_all();
    }

    fn wait(&self, kick: impl FnOnce()) {
        let mine = {
            let mut progress = self.progress();
            progress.asked += 1;
            progress.asked
        };
        kick();
        let waiting = |progress: &mut Progress| progress.settled < mine && !progress.ended;
        drop(self.settled.wait_while(self.progress(), waiting));
    }
}

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
    /// Starts a thread called `name` (tools show 15 characters of it), about whose end only the log tells.
    pub fn start(name: &str) -> Result<Self, Error> {
        Self::start_with(name, None, Arc::new(|what| tracing::error!("{what}")))
    }

    /// The same, and `failed` is told of its end.
    pub fn start_watched(name: &str, failed: Failed) -> Result<Self, Error> {
        Self::start_with(name, None, failed)
    }

    /// The same for a machine whose CPU waits for its devices: all of them are to run on this one loop, and none may do
    /// anything at a time of its own.
    pub fn start_in_step(name: &str, failed: Failed) -> Result<Self, Error> {
        Self::start_with(name, Some(Arc::default()), failed)
    }

    fn start_with(name: &str, step: Option<Arc<Step>>, failed: Failed) -> Result<Self, Error> {
        let fail = |reason: String| Error::Start { name: name.into(), reason };
        let mut manager = EventManager::<Subscriber>::new_with_capacity(32).map_err(|e| fail(e.to_string()))?;
        let handle = LoopHandle { endpoint: manager.remote_endpoint(), step: step.clone(), failed: failed.clone() };
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        let what = format!("the I/O thread {name}");
        let thread = std::thread::Builder::new()
            .name(name.into())
            .stack_size(256 << 10)
            .spawn(move || {
                survive_file_size_limit();
                let step = step.as_deref();
                let outcome = contain(&what, || turn_until(&ended, &mut manager, step));
                step.into_iter().for_each(Step::end);
                match outcome {
                    Ok(Ok(())) => {}
                    Ok(Err(e)) => failed(format!("{what} stopped: {e}")),
                    Err(panicked) => failed(panicked),
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

/// What a loop's thread does until it shall end.
fn turn_until(
    ended: &AtomicBool,
    manager: &mut EventManager<Subscriber>,
    step: Option<&Step>,
) -> event_manager::Result<()> {
    while !ended.load(Ordering::Acquire) {
        manager.run()?;
        step.map_or(Ok(()), |step| step.follow(manager))?;
    }
    Ok(())
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Release);
        let kicked = self.handle.endpoint.kick();
        if let (Ok(()), Some(thread)) = (kicked, self.thread.take()) {
            // A panic on the loop's thread was told there; nothing is left to do about it here.
            let _ = thread.join();
        }
    }
}

impl LoopHandle {
    /// Starts another loop, whose end is told to whom the end of this one is.
    pub fn start_another(&self, name: &str) -> Result<EventLoop, Error> {
        EventLoop::start_watched(name, self.failed.clone())
    }

    /// Whether the machine waits for this loop: then nothing on it may depend on time or on other threads.
    pub fn in_step(&self) -> bool {
        self.step.is_some()
    }

    /// Waits until all that was ready on the loop is handled, and all that followed from it. Returns at once if the loop
    /// is not in step. Not on the loop's own thread, and without a lock that something on the loop may want.
    pub fn settle(&self) {
        if let Some(step) = &self.step {
            step.wait(|| {
                if let Err(e) = self.endpoint.kick() {
                    tracing::error!("cannot reach the devices: {e}");
                    step.end();
                }
            });
        }
    }

    /// Puts `subscriber` on the loop and returns when it is initialised. Must not be called on the loop's own thread.
    pub fn add(&self, subscriber: Subscriber) -> Result<SubscriberId, Error> {
        self.endpoint
            .call_blocking(|ops| Ok::<_, event_manager::Error>(ops.add_subscriber(subscriber)))
            .map_err(|e| Error::Gone(e.to_string()))
    }

    /// Takes a subscriber off the loop, after it has finished what it is doing. Not on the loop's own thread.
    pub fn remove(&self, id: SubscriberId) -> Result<Subscriber, Error> {
        self.endpoint.call_blocking(move |ops| ops.remove_subscriber(id)).map_err(|e| Error::Gone(e.to_string()))
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

    /// Hands on what it gets to the next, `left` times, and counts.
    struct Relay {
        fds: [EventFd; 2],
        left: u32,
        count: Arc<std::sync::atomic::AtomicU32>,
    }
    impl MutEventSubscriber for Relay {
        fn process(&mut self, events: Events, _: &mut EventOps) {
            let at = events.data() as usize;
            self.fds[at].read().unwrap();
            self.count.fetch_add(1, Ordering::SeqCst);
            if self.left > 0 {
                self.left -= 1;
                self.fds[1 - at].write(1).unwrap();
            }
        }
        fn init(&mut self, ops: &mut EventOps) {
            for (fd, data) in self.fds.iter().zip(0..) {
                ops.add(Events::with_data(fd, data, EventSet::IN)).unwrap();
            }
        }
    }

    #[test]
    fn a_loop_in_step_has_done_all_when_it_is_settled() {
        let looped = EventLoop::start_in_step("test-step", Arc::new(|what| panic!("{what}"))).unwrap();
        let handle = looped.handle();
        assert!(handle.in_step());
        for round in 0..50 {
            let fds = [EventFd::new(0).unwrap(), EventFd::new(0).unwrap()];
            let (count, bell) = (Arc::default(), fds[0].try_clone().unwrap());
            let relay = Relay { fds, left: round, count: Arc::clone(&count) };
            let id = handle.add(Box::new(relay)).unwrap();
            handle.settle();
            assert_eq!(count.load(Ordering::SeqCst), 0);
            bell.write(1).unwrap();
            handle.settle();
            assert_eq!(count.load(Ordering::SeqCst), round + 1);
            handle.remove(id).unwrap();
        }
        drop(looped);
        handle.settle();
        let free = EventLoop::start("test-free").unwrap();
        assert!(!free.handle().in_step());
        free.handle().settle();
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

    /// Panics when it is written to.
    struct Mistake(EventFd);
    impl MutEventSubscriber for Mistake {
        fn process(&mut self, _: Events, _: &mut EventOps) {
            panic!("a panic that this test wants");
        }
        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Events::new(&self.0, EventSet::IN)).unwrap();
        }
    }

    #[test]
    fn a_panic_on_a_loop_is_told_and_leaves_nobody_waiting() {
        let (sender, told) = channel();
        let failed: Failed = Arc::new(move |what| sender.send(what).unwrap());
        let main = EventLoop::start_in_step("test-main", failed).unwrap();
        let own = main.handle().start_another("test-own").unwrap();
        for looped in [own, main] {
            let fd = EventFd::new(0).unwrap();
            let id = looped.handle().add(Box::new(Mistake(fd.try_clone().unwrap()))).unwrap();
            fd.write(1).unwrap();
            looped.handle().settle();
            let what = told.recv_timeout(Duration::from_secs(10)).unwrap();
            assert!(what.starts_with("the I/O thread test-") && what.contains("panicked"), "{what}");
            assert!(looped.handle().remove(id).is_err());
        }
    }
}
