//! The vCPU threads: each owns one vCPU and runs it until the machine pauses or stops.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::engine::{CpuIo, Exit, ExitCounters, ExitStats, Kicker, Vcpu};
use crate::host::clock;
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
    mailbox: Arc<Mutex<Vec<Request>>>,
    thread: Option<JoinHandle<()>>,
}

/// Work for the thread that owns a vCPU.
type Request = Box<dyn FnOnce(&mut dyn Vcpu) + Send>;

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
            let mailbox = Arc::new(Mutex::default());
            let runner = Runner {
                index,
                io: io.clone(),
                control: control.clone(),
                gate: cpus.gate.clone(),
                mailbox: mailbox.clone(),
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

    /// Runs `work` on the thread of vCPU `index`, whether it runs or is paused.
    pub fn with<T: Send + 'static>(
        &self,
        index: usize,
        work: impl FnOnce(&mut dyn Vcpu) -> T + Send + 'static,
    ) -> Result<T, NoAnswer> {
        let cpu = self.threads.get(index).ok_or(NoAnswer(index))?;
        let (answer, answered) = channel();
        let request: Request = Box::new(move |vcpu| {
            // The asker may have given up waiting.
            let _ = answer.send(work(vcpu));
        });
        lock(&cpu.mailbox).push(request);
        // With the lock taken once, a parked thread has either seen the request or is waiting for the notification.
        drop(lock(&self.gate.state));
        self.gate.changed.notify_all();
        cpu.kicker.kick();
        answered.recv_timeout(ANSWER).map_err(|_: RecvTimeoutError| NoAnswer(index))
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

    /// CPU time that the threads have used together: guest code and its emulation.
    pub fn cpu_time(&self) -> Duration {
        self.threads.iter().flat_map(|cpu| &cpu.thread).map(clock::thread_cpu_time).sum()
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
    parked: usize,
}

impl Gate {
    fn set(&self, mode: Mode) {
        lock(&self.state).mode = mode;
        self.changed.notify_all();
    }

    fn wait_all_parked(&self, count: usize) {
        let state = lock(&self.state);
        let limit = Instant::now() + ANSWER;
        let wait = self.changed.wait_timeout_while(state, limit.saturating_duration_since(Instant::now()), |state| {
            state.parked < count && state.mode == Mode::Pause
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
    mailbox: Arc<Mutex<Vec<Request>>>,
}

impl Runner {
    fn run(self, mut vcpu: Box<dyn Vcpu>) {
        while self.may_run(vcpu.as_mut()) {
            if self.gate.first_run.load(Ordering::Relaxed) == 0 {
                self.gate.first_run.store(clock::monotonic_nanos(), Ordering::Relaxed);
            }
            match vcpu.run(self.io.as_ref()) {
                Ok(Exit::Kicked | Exit::Debug) => {}
                Ok(exit) => {
                    self.end(exit);
                    self.gate.park_until_stopped(&self.mailbox, vcpu.as_mut());
                    return;
                }
                Err(e) => self.control.end(Ending::Failed(e.to_string())),
            }
        }
    }

    fn end(&self, exit: Exit) {
        self.control.end(match exit {
            Exit::Reset => Ending::Reset,
            Exit::Crashed(report) => Ending::CpuDied(report),
            Exit::Shutdown => Ending::CpuDied(format!("vCPU {}: triple fault", self.index)),
            // Engines of ours wait for interrupts themselves; one that does not has nothing left to wake this CPU.
            Exit::Halted | Exit::Kicked | Exit::Debug => Ending::Halted,
        });
    }

    /// Serves requests and waits while the machine is paused. False when the machine stops.
    fn may_run(&self, vcpu: &mut dyn Vcpu) -> bool {
        let mut state = lock(&self.gate.state);
        let mut parked = false;
        loop {
            let requests = std::mem::take(&mut *lock(&self.mailbox));
            if !requests.is_empty() {
                drop(state);
                requests.into_iter().for_each(|request| request(vcpu));
                state = lock(&self.gate.state);
                continue;
            }
            match state.mode {
                Mode::Pause => {
                    if !parked {
                        parked = true;
                        state.parked += 1;
                        self.gate.changed.notify_all();
                    }
                    state = self.gate.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                mode => {
                    state.parked -= usize::from(parked);
                    return mode == Mode::Run;
                }
            }
        }
    }
}

impl Gate {
    /// For a vCPU that will not run again: answers requests until the machine stops.
    fn park_until_stopped(&self, mailbox: &Mutex<Vec<Request>>, vcpu: &mut dyn Vcpu) {
        let mut state = lock(&self.state);
        state.parked += 1;
        self.changed.notify_all();
        while state.mode != Mode::Stop {
            let requests = std::mem::take(&mut *lock(mailbox));
            if requests.is_empty() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else {
                drop(state);
                requests.into_iter().for_each(|request| request(vcpu));
                state = lock(&self.state);
            }
        }
    }
}
