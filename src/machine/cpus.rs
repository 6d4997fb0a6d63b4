//! The vCPU threads: each owns one vCPU and runs it until the machine pauses or stops.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::engine::{CpuIo, Exit, ExitCounters, ExitStats, Kicker, Vcpu};
use crate::host::clock::{self, ThreadClock};
use crate::host::contain::contain;
use crate::machine::control::{Control, Ending};

/// A vCPU that does not answer within this time hangs in the host.
const ANSWER: Duration = Duration::from_secs(10);

/// All vCPU threads of a machine. Dropping it stops them.
pub struct Cpus {
    gate: Arc<Gate>,
    threads: Vec<CpuThread>,
}

struct CpuThread {
    kicker: Arc<dyn Kicker>,
    counters: Arc<ExitCounters>,
    mailbox: Arc<Mailbox>,
    thread: Option<JoinHandle<()>>,
}

/// Work for the thread that owns a vCPU.
type Request = Box<dyn FnOnce(&mut dyn Vcpu) + Send>;

/// Requests that wait; none once the thread is gone, so that nobody waits for its answer.
type Mailbox = Mutex<Option<Vec<Request>>>;

/// A vCPU did not answer.
#[derive(Debug, thiserror::Error)]
#[error("vCPU {0} does not answer")]
pub struct NoAnswer(pub usize);

impl std::fmt::Debug for Cpus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cpus").field("count", &self.threads.len()).finish_non_exhaustive()
    }
}

impl Cpus {
    /// Starts a thread for each vCPU; they wait until [`Cpus::resume`].
    pub fn start(
        vcpus: Vec<Box<dyn Vcpu>>,
        io: &Arc<dyn CpuIo + Send>,
        control: &Arc<Control>,
    ) -> std::io::Result<Self> {
        let mut cpus = Self { gate: Arc::default(), threads: Vec::with_capacity(vcpus.len()) };
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let mailbox = Arc::new(Mutex::new(Some(Vec::new())));
            let runner = Runner {
                index,
                io: io.clone(),
                control: control.clone(),
                gate: cpus.gate.clone(),
                mailbox: mailbox.clone(),
                parked: Cell::new(false),
            };
            let (kicker, counters) = (vcpu.kicker(), vcpu.counters());
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{index}"))
                .stack_size(256 << 10)
                .spawn(move || runner.run(vcpu))?;
            cpus.threads.push(CpuThread { kicker, counters, mailbox, thread: Some(thread) });
        }
        Ok(cpus)
    }

    /// Lets all vCPUs run.
    pub fn resume(&self) {
        self.gate.set(Mode::Run);
    }

    /// Stops all vCPUs between two instructions; returns when none executes guest code.
    pub fn pause(&self) {
        self.gate.set(Mode::Pause);
        self.kick();
        self.gate.wait_all_parked(self.threads.len());
    }

    /// What keeps the vCPUs from running now and then.
    pub(super) fn holder(&self) -> Holder {
        Holder { gate: self.gate.clone(), kickers: self.threads.iter().map(|cpu| cpu.kicker.clone()).collect() }
    }

    /// Runs `work` on the thread of vCPU `index`, whether it runs or is paused.
    pub fn with<T: Send + 'static>(
        &self,
        index: usize,
        work: impl FnOnce(&mut dyn Vcpu) -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let cpu = self.threads.get(index).ok_or(NoAnswer(index))?;
        ask(&self.gate, &cpu.mailbox, cpu.kicker.as_ref(), work).ok_or(NoAnswer(index))
    }

    /// Reaches the vCPUs from other threads, however long this lives.
    pub(crate) fn remote(&self) -> Remote {
        let cpus = self.threads.iter().map(|cpu| (cpu.kicker.clone(), cpu.mailbox.clone()));
        Remote { gate: self.gate.clone(), cpus: cpus.collect() }
    }

    /// Exits to user space of all vCPUs.
    pub fn stats(&self) -> ExitStats {
        let mut sum = ExitStats::default();
        self.threads.iter().for_each(|cpu| sum += cpu.counters.stats());
        sum
    }

    /// The exit counters of all vCPUs.
    pub fn counters(&self) -> Vec<Arc<ExitCounters>> {
        self.threads.iter().map(|cpu| cpu.counters.clone()).collect()
    }

    /// When the first vCPU was about to run for the first time, on the monotonic clock in nanoseconds.
    pub fn first_run(&self) -> Option<u64> {
        match self.gate.first_run.load(Ordering::Relaxed) {
            0 => None,
            time => Some(time),
        }
    }

    /// Guest instructions executed, all vCPUs together, if the engine counts them.
    pub fn instructions(&self) -> Option<u64> {
        let sum = self.threads.iter().map(|cpu| cpu.counters.instructions.load(Ordering::Relaxed)).sum();
        (sum != 0).then_some(sum)
    }

    /// CPU time that the threads have used together: guest code and its emulation.
    pub fn cpu_time(&self) -> Duration {
        self.clocks().iter().map(ThreadClock::time).sum()
    }

    /// The CPU clocks of the threads.
    pub(super) fn clocks(&self) -> Vec<ThreadClock> {
        self.threads.iter().flat_map(|cpu| &cpu.thread).flat_map(ThreadClock::of).collect()
    }

    /// Number of vCPUs.
    pub fn count(&self) -> usize {
        self.threads.len()
    }

    fn kick(&self) {
        self.threads.iter().for_each(|cpu| cpu.kicker.kick());
    }
}

impl Drop for Cpus {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Cpus {
    /// Ends all vCPU threads; guest code never runs again.
    pub fn stop(&mut self) {
        self.gate.set(Mode::Stop);
        self.kick();
        for cpu in &mut self.threads {
            if cpu.thread.take().is_some_and(|thread| thread.join().is_err()) {
                tracing::error!("a vCPU thread panicked");
            }
        }
    }
}

/// Holds all vCPUs for a while, whatever else is asked of them: beside [`Cpus::pause`], not instead of it.
pub(super) struct Holder {
    gate: Arc<Gate>,
    kickers: Vec<Arc<dyn Kicker>>,
}

impl Holder {
    /// vCPUs stop after their next instructions, and run again when what this returns is dropped.
    pub(super) fn hold(&self) -> Held<'_> {
        self.gate.hold(true);
        self.kickers.iter().for_each(|kicker| kicker.kick());
        Held(&self.gate)
    }
}

/// While this exists no vCPU runs.
pub(super) struct Held<'a>(&'a Gate);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.hold(false);
    }
}

/// Runs `work` on the thread of a vCPU.
fn ask<T: Send + 'static>(
    gate: &Gate,
    mailbox: &Mailbox,
    kicker: &dyn Kicker,
    work: impl FnOnce(&mut dyn Vcpu) -> T + Send + 'static,
) -> Option<T> {
    let (answer, answered) = channel();
    let request: Request = Box::new(move |vcpu| {
        // The asker may have given up waiting.
        let _ = answer.send(work(vcpu));
    });
    lock(mailbox).as_mut()?.push(request);
    // With the lock taken once, a parked thread has either seen the request or is waiting for the notification.
    drop(lock(&gate.state));
    gate.changed.notify_all();
    kicker.kick();
    answered.recv_timeout(ANSWER).ok()
}

/// The vCPUs for a debugger: it says which may run, beside [`Cpus::pause`] and [`Holder`].
pub(crate) struct Remote {
    gate: Arc<Gate>,
    cpus: Vec<(Arc<dyn Kicker>, Arc<Mailbox>)>,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Remote").field("count", &self.cpus.len()).finish_non_exhaustive()
    }
}

impl Remote {
    /// Number of vCPUs.
    pub(crate) fn count(&self) -> usize {
        self.cpus.len()
    }

    /// As [`Cpus::with`].
    pub(crate) fn with<T: Send + 'static>(
        &self,
        index: usize,
        work: impl FnOnce(&mut dyn Vcpu) -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let (kicker, mailbox) = self.cpus.get(index).ok_or(NoAnswer(index))?;
        ask(&self.gate, mailbox, kicker.as_ref(), work).ok_or(NoAnswer(index))
    }

    /// Lets only these run, or all.
    pub(crate) fn allow(&self, only: Option<BTreeSet<usize>>) {
        lock(&self.gate.state).only = only;
        self.gate.changed.notify_all();
    }

    /// All vCPUs stop after their next instructions. Does not wait for it.
    pub(super) fn brake(&self) {
        self.allow(Some(BTreeSet::new()));
        self.cpus.iter().for_each(|(kicker, _)| kicker.kick());
    }

    /// All vCPUs stop; returns when none executes guest code.
    pub(crate) fn stop(&self) {
        self.brake();
        self.gate.wait_all_parked(self.cpus.len());
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mode {
    #[default]
    Pause,
    Run,
    Stop,
}

/// What all vCPU threads wait at.
#[derive(Debug, Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
    first_run: AtomicU64,
}

#[derive(Debug, Default)]
struct GateState {
    mode: Mode,
    /// Nobody may run, whatever the mode; see [`Holder`].
    held: bool,
    /// Nobody but these may run, if a debugger says so; see [`Remote`].
    only: Option<BTreeSet<usize>>,
    parked: usize,
}

impl GateState {
    fn lets(&self, index: usize) -> bool {
        self.mode == Mode::Run && !self.held && self.only.as_ref().is_none_or(|only| only.contains(&index))
    }
}

impl Gate {
    fn set(&self, mode: Mode) {
        lock(&self.state).mode = mode;
        self.changed.notify_all();
    }

    fn hold(&self, held: bool) {
        lock(&self.state).held = held;
        self.changed.notify_all();
    }

    fn wait_all_parked(&self, count: usize) {
        let state = lock(&self.state);
        let limit = Instant::now() + ANSWER;
        let wait = self.changed.wait_timeout_while(state, limit.saturating_duration_since(Instant::now()), |state| {
            let stops = state.mode == Mode::Pause || state.only.is_some();
            state.parked < count && stops && state.mode != Mode::Stop
        });
        if wait.is_ok_and(|(_, timeout)| timeout.timed_out()) {
            tracing::error!("a vCPU does not pause");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a vCPU thread needs beside its vCPU.
struct Runner {
    index: usize,
    io: Arc<dyn CpuIo + Send>,
    control: Arc<Control>,
    gate: Arc<Gate>,
    mailbox: Arc<Mailbox>,
    /// Counted among those that are parked.
    parked: Cell<bool>,
}

impl Runner {
    /// All that the thread does. A panic ends the machine at once; whoever waits for this CPU then finds it parked.
    fn run(self, vcpu: Box<dyn Vcpu>) {
        let end = contain(&format!("the thread of vCPU {}", self.index), || self.run_until_stop(vcpu));
        *lock(&self.mailbox) = None;
        if let Err(what) = end {
            self.control.end(Ending::Failed(what));
            if !self.parked.get() {
                lock(&self.gate.state).parked += 1;
            }
            self.gate.changed.notify_all();
        }
    }

    fn run_until_stop(&self, mut vcpu: Box<dyn Vcpu>) {
        while self.may_run(vcpu.as_mut(), true) {
            if self.gate.first_run.load(Ordering::Relaxed) == 0 {
                self.gate.first_run.store(clock::monotonic_nanos(), Ordering::Relaxed);
            }
            self.control.end(match vcpu.run(self.io.as_ref()) {
                // Whoever ended the machine from within an access to a device wants no instruction more.
                Ok(Exit::Kicked) if self.control.has_ended() => return self.park(vcpu.as_mut()),
                Ok(Exit::Kicked) => continue,
                Ok(Exit::Debug(stop)) => {
                    self.control.leash().into_iter().for_each(|leash| leash.stopped(self.index, stop));
                    continue;
                }
                Ok(Exit::Reset) => Ending::Reset,
                Ok(Exit::Crashed(report) | Exit::Shutdown(report)) => Ending::CpuDied(report),
                // Engines of ours wait for interrupts themselves; one that does not has nothing left to wake this CPU.
                Ok(Exit::Halted) => Ending::Halted,
                Err(e) => Ending::Failed(e.to_string()),
            });
            return self.park(vcpu.as_mut());
        }
    }

    /// This CPU never runs again; it still answers.
    fn park(&self, vcpu: &mut dyn Vcpu) {
        self.may_run(vcpu, false);
    }

    /// Serves requests and waits while the machine is paused, or until it stops if this CPU is not `able` to run again.
    /// False when the machine stops.
    fn may_run(&self, vcpu: &mut dyn Vcpu, able: bool) -> bool {
        let mut state = lock(&self.gate.state);
        loop {
            let requests = lock(&self.mailbox).as_mut().map(std::mem::take).unwrap_or_default();
            if !requests.is_empty() {
                drop(state);
                requests.into_iter().for_each(|request| request(vcpu));
                state = lock(&self.gate.state);
            } else if state.mode == Mode::Stop || (able && state.lets(self.index)) {
                state.parked -= usize::from(self.parked.take());
                return state.mode == Mode::Run;
            } else {
                if !self.parked.replace(true) {
                    state.parked += 1;
                    self.gate.changed.notify_all();
                }
                state = self.gate.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::cpuid::CpuidTable;
    use crate::arch::x86_64::state::CpuState;
    use crate::engine::{IoAddr, Result};
    use std::sync::atomic::AtomicBool;

    /// Runs until kicked, or ends with the exit it was given; panics for `Exit::Reset`.
    struct Fake {
        kicked: Arc<FakeKicker>,
        runs: Arc<AtomicU64>,
        exit: Option<Exit>,
    }

    #[derive(Debug, Default)]
    struct FakeKicker(AtomicBool);
    impl Kicker for FakeKicker {
        fn kick(&self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    impl Vcpu for Fake {
        fn set_state(&mut self, _: &CpuState) -> Result<()> {
            Ok(())
        }
        fn state(&mut self) -> Result<CpuState> {
            Ok(CpuState::default())
        }
        fn set_cpuid(&mut self, _: &CpuidTable) -> Result<()> {
            Ok(())
        }
        fn tsc_khz(&self) -> Option<u32> {
            None
        }
        fn kicker(&self) -> Arc<dyn Kicker> {
            self.kicked.clone()
        }
        fn run(&mut self, _: &dyn CpuIo) -> Result<Exit> {
            if self.exit == Some(Exit::Reset) {
                panic!("a panic that this test wants");
            }
            if let Some(exit) = self.exit.take() {
                return Ok(exit);
            }
            while !self.kicked.0.swap(false, Ordering::SeqCst) {
                self.runs.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(Exit::Kicked)
        }
        fn counters(&self) -> Arc<ExitCounters> {
            Arc::default()
        }
    }

    struct NoIo;
    impl CpuIo for NoIo {
        fn read(&self, _: IoAddr, _: &mut [u8]) {}
        fn write(&self, _: IoAddr, _: &[u8]) {}
    }

    fn start(exits: Vec<Option<Exit>>) -> (Cpus, Vec<Arc<AtomicU64>>, Arc<Control>) {
        let control = Control::new().unwrap();
        let runs: Vec<_> = exits.iter().map(|_| Arc::new(AtomicU64::new(0))).collect();
        let fake = |(exit, runs): (Option<Exit>, &Arc<AtomicU64>)| {
            Box::new(Fake { kicked: Arc::default(), runs: runs.clone(), exit }) as Box<dyn Vcpu>
        };
        let vcpus = exits.into_iter().zip(&runs).map(fake).collect();
        let io: Arc<dyn CpuIo + Send> = Arc::new(NoIo);
        (Cpus::start(vcpus, &io, &control).unwrap(), runs, control)
    }

    fn wait_for(what: impl Fn() -> bool) {
        let limit = Instant::now() + Duration::from_secs(10);
        while !what() {
            assert!(Instant::now() < limit, "it does not happen");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn cpus_run_pause_and_go_on() {
        let (cpus, runs, _) = start(vec![None, None]);
        assert_eq!(cpus.first_run(), None);
        cpus.resume();
        wait_for(|| runs.iter().all(|n| n.load(Ordering::SeqCst) > 0));
        assert!(cpus.first_run().is_some());
        cpus.pause();
        let now = || runs.iter().map(|n| n.load(Ordering::SeqCst)).collect::<Vec<_>>();
        let paused = now();
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(now(), paused);
        cpus.resume();
        wait_for(|| now().iter().zip(&paused).all(|(a, b)| a > b));
    }

    #[test]
    fn held_cpus_do_not_run_until_they_are_let_go() {
        let (mut cpus, runs, _) = start(vec![None, None]);
        let now = || runs.iter().map(|n| n.load(Ordering::SeqCst)).collect::<Vec<_>>();
        let holder = cpus.holder();
        let held = holder.hold();
        cpus.resume();
        assert!(cpus.with(1, |_| true).unwrap(), "they answer");
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(now(), [0, 0]);
        drop(held);
        wait_for(|| now().iter().all(|&n| n > 0));
        let _held = holder.hold();
        cpus.pause();
        cpus.stop();
    }

    #[test]
    fn requests_are_served_whether_running_or_paused() {
        let (cpus, ..) = start(vec![None]);
        assert_eq!(cpus.with(0, |_| 1).unwrap(), 1);
        cpus.resume();
        assert!(cpus.with(0, |vcpu| vcpu.state().is_ok()).unwrap());
        cpus.pause();
        assert_eq!(cpus.with(0, |_| 3).unwrap(), 3);
        assert!(cpus.with(1, |_| ()).is_err());
    }

    #[test]
    fn a_dead_cpu_ends_the_machine_and_still_answers() {
        let (mut cpus, _, control) = start(vec![Some(Exit::Crashed("registers".into())), None]);
        cpus.resume();
        wait_for(|| control.ending().is_some());
        assert_eq!(control.ending(), Some(Ending::CpuDied("registers".into())));
        assert_eq!(cpus.with(0, |_| 7).unwrap(), 7);
        cpus.pause();
        cpus.stop();
        cpus.stop();
    }

    #[test]
    fn a_panic_ends_the_machine_at_once_and_nobody_waits_for_the_thread() {
        let (mut cpus, _, control) = start(vec![Some(Exit::Reset), None]);
        cpus.resume();
        wait_for(|| control.has_ended());
        let Some(Ending::Failed(what)) = control.ending() else { panic!("{:?}", control.ending()) };
        assert!(what.starts_with("the thread of vCPU 0 panicked"), "{what}");
        assert!(what.contains("a panic that this test wants"), "{what}");
        let start = Instant::now();
        wait_for(|| cpus.with(0, |_| ()).is_err());
        cpus.pause();
        assert!(cpus.with(0, |_| ()).is_err() && cpus.with(1, |_| ()).is_ok());
        assert!(start.elapsed() < ANSWER, "nobody waits in vain");
        cpus.stop();
    }

    #[test]
    fn a_request_that_panics_ends_the_machine_too() {
        let (cpus, _, control) = start(vec![None, None]);
        cpus.pause();
        assert!(cpus.with(1, |_| panic!("a panic that this test wants")).map(|(): ()| ()).is_err());
        wait_for(|| matches!(control.ending(), Some(Ending::Failed(_))));
        cpus.resume();
        cpus.pause();
        assert!(cpus.with(0, |_| ()).is_ok());
    }
}
