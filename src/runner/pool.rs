//! Several tests at a time: threads that take one after the other from the list until it is empty or nobody wants more.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, PoisonError};

use crate::run::Handle;

/// How all work is told to end. Shared by all threads.
#[derive(Debug, Default)]
pub struct Stop {
    no_more: AtomicBool,
    now: AtomicBool,
    running: Mutex<Vec<Option<Running>>>,
}

/// What can be ended.
#[derive(Debug, Clone)]
pub(super) enum Running {
    /// A machine with an agent.
    Run(Handle),
    /// One without.
    Bare(Arc<crate::machine::Control>),
}

impl Stop {
    /// No further test is begun; those under way go on.
    pub fn no_more(&self) {
        self.no_more.store(true, Ordering::Release);
    }

    /// Those under way end too.
    pub fn now(&self) {
        self.no_more();
        self.now.store(true, Ordering::Release);
        self.running().iter().flatten().for_each(Running::end);
    }

    /// Whether everything shall end.
    pub(super) fn is_now(&self) -> bool {
        self.now.load(Ordering::Acquire)
    }

    /// Ends `machine` too when everything ends, as long as the returned guard lives.
    pub(super) fn watch(&self, machine: Running) -> Watched<'_> {
        let mut running = self.running();
        let index = running.len();
        running.push(Some(machine.clone()));
        drop(running);
        if self.is_now() {
            machine.end();
        }
        Watched { stop: self, index }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Vec<Option<Running>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    fn end(&self) {
        match self {
            // The second time it ends at once.
            Self::Run(handle) => (0..2).for_each(|_| handle.stop()),
            Self::Bare(control) => control.end(crate::machine::Ending::Stopped(Some(libc::SIGTERM))),
        }
    }
}

/// See [`Stop::watch`].
pub(super) struct Watched<'a> {
    stop: &'a Stop,
    index: usize,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.stop.running().get_mut(self.index) {
            *slot = None;
        }
    }
}

/// Does `work` for each of `count` numbers on `jobs` threads, in order; what comes of each arrives as it is done. The
/// channel closes when all is done or [`Stop`] says so.
pub(super) fn each<T: Send + 'static>(
    count: usize,
    jobs: usize,
    stop: &Arc<Stop>,
    work: impl Fn(usize) -> T + Send + Sync + 'static,
) -> std::io::Result<Receiver<(usize, T)>> {
    let (done, results) = mpsc::channel();
    let (next, work) = (Arc::new(AtomicUsize::new(0)), Arc::new(work));
    for number in 0..jobs.clamp(1, count.max(1)) {
        let (done, next, work, stop) = (done.clone(), next.clone(), work.clone(), stop.clone());
        let body = move || {
            while !stop.no_more.load(Ordering::Acquire) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                // Nobody listens any more: then nobody wants the rest.
                if index >= count || done.send((index, work(index))).is_err() {
                    break;
                }
            }
        };
        std::thread::Builder::new().name(format!("test{number}")).spawn(body)?;
    }
    Ok(results)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_done_once_by_as_many_threads_as_wanted() {
        let stop = Arc::new(Stop::default());
        let results = each(20, 3, &stop, |number| number * 2).unwrap();
        let mut results: Vec<_> = results.iter().collect();
        results.sort_unstable();
        assert_eq!(results, (0..20).map(|number| (number, number * 2)).collect::<Vec<_>>());
        assert_eq!(each(0, 2, &stop, |_| ()).unwrap().iter().count(), 0);
    }

    #[test]
    fn no_further_one_begins_when_it_shall_stop() {
        let stop = Arc::new(Stop::default());
        let inner = stop.clone();
        let results = each(100, 1, &stop, move |number| {
            if number == 4 {
                inner.no_more()
            }
        })
        .unwrap();
        assert_eq!(results.iter().count(), 5);
    }
}
