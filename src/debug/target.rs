//! gdb's protocol: what the crate `gdbstub` asks of a debugged machine. Threads are vCPUs, numbered from 1.

use gdbstub::common::{Signal, Tid};
use gdbstub::stub::MultiThreadStopReason;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::base::single_register_access::{SingleRegisterAccess, SingleRegisterAccessOps};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, HwWatchpoint, HwWatchpointOps, SwBreakpoint,
    SwBreakpointOps, WatchKind,
};
use gdbstub::target::ext::monitor_cmd::{ConsoleOutput, MonitorCmd, MonitorCmdOps};
use gdbstub::target::ext::thread_extra_info::{ThreadExtraInfo, ThreadExtraInfoOps};
use gdbstub::target::{Target, TargetError, TargetResult};

use super::Error;
use super::guest::{Action, Event, Guest};
use super::monitor::Monitor;
use super::registers::{Image, Number, X86};
use crate::engine::debug::{On, Stop};

/// EFAULT, as gdb shows it.
const NO_MEMORY: u8 = 14;
/// EINVAL.
const NONSENSE: u8 = 22;

/// A machine as gdb sees it.
#[derive(Debug)]
pub(super) struct Debugged {
    pub(super) guest: Guest,
    pub(super) monitor: Monitor,
}

/// The thread that vCPU `cpu` is.
pub(super) fn thread(cpu: usize) -> Tid {
    Tid::MIN.saturating_add(cpu)
}

fn cpu(thread: Tid) -> usize {
    thread.get() - 1
}

/// What gdb cannot have is told to it; anything else ends the session.
fn refuse(error: Error) -> TargetError<Error> {
    match error {
        Error::NoCpu(_) => TargetError::Errno(NONSENSE),
        other => TargetError::Fatal(other),
    }
}

/// What gdb is told of `event`.
pub(super) fn reason(event: Event) -> MultiThreadStopReason<u64> {
    match event {
        Event::Stop(cpu, Stop::Step) => {
            MultiThreadStopReason::SignalWithThread { tid: thread(cpu), signal: Signal::SIGTRAP }
        }
        Event::Stop(cpu, Stop::Breakpoint) => MultiThreadStopReason::SwBreak(thread(cpu)),
        Event::Stop(cpu, Stop::Watchpoint(watchpoint)) => match watchpoint.on {
            On::Execution => MultiThreadStopReason::HwBreak(thread(cpu)),
            On::Writes => {
                MultiThreadStopReason::Watch { tid: thread(cpu), kind: WatchKind::Write, addr: watchpoint.at }
            }
            On::Accesses => {
                MultiThreadStopReason::Watch { tid: thread(cpu), kind: WatchKind::ReadWrite, addr: watchpoint.at }
            }
        },
        Event::Crash(cpu) => MultiThreadStopReason::SignalWithThread { tid: thread(cpu), signal: Signal::SIGABRT },
    }
}

impl Target for Debugged {
    type Arch = X86;
    type Error = Error;

    fn base_ops(&mut self) -> BaseOps<'_, X86, Error> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }

    fn support_monitor_cmd(&mut self) -> Option<MonitorCmdOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Debugged {
    fn read_registers(&mut self, image: &mut Image, tid: Tid) -> TargetResult<(), Self> {
        *image = Image::of(self.guest.state(cpu(tid)).map_err(refuse)?);
        Ok(())
    }

    fn write_registers(&mut self, image: &Image, tid: Tid) -> TargetResult<(), Self> {
        self.guest.set_registers(cpu(tid), image).map_err(refuse)
    }

    fn support_single_register_access(&mut self) -> Option<SingleRegisterAccessOps<'_, Tid, Self>> {
        Some(self)
    }

    fn read_addrs(&mut self, at: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        match self.guest.read(cpu(tid), at, data).map_err(refuse)? {
            0 => Err(TargetError::Errno(NO_MEMORY)),
            len => Ok(len),
        }
    }

    fn write_addrs(&mut self, at: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let written = self.guest.write(cpu(tid), at, data).map_err(refuse)?;
        if written { Ok(()) } else { Err(TargetError::Errno(NO_MEMORY)) }
    }

    fn list_active_threads(&mut self, found: &mut dyn FnMut(Tid)) -> Result<(), Error> {
        (0..self.guest.cpus()).map(thread).for_each(found);
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }

    fn support_thread_extra_info(&mut self) -> Option<ThreadExtraInfoOps<'_, Self>> {
        Some(self)
    }
}

impl SingleRegisterAccess<Tid> for Debugged {
    fn read_register(&mut self, tid: Tid, register: Number, to: &mut [u8]) -> TargetResult<usize, Self> {
        let image = Image::of(self.guest.state(cpu(tid)).map_err(refuse)?);
        let from = image.register(register).ok_or(TargetError::NonFatal)?;
        to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        Ok(from.len().min(to.len()))
    }

    fn write_register(&mut self, tid: Tid, register: Number, value: &[u8]) -> TargetResult<(), Self> {
        let mut image = Image::of(self.guest.state(cpu(tid)).map_err(refuse)?);
        let to = image.register_mut(register).ok_or(TargetError::NonFatal)?;
        to.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
        self.guest.set_registers(cpu(tid), &image).map_err(refuse)
    }
}

impl ThreadExtraInfo for Debugged {
    fn thread_extra_info(&self, tid: Tid, to: &mut [u8]) -> Result<usize, Error> {
        let text = format!("CPU {}", cpu(tid));
        to.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        Ok(text.len().min(to.len()))
    }
}

/// Signals mean nothing to a CPU.
impl MultiThreadResume for Debugged {
    fn resume(&mut self) -> Result<(), Error> {
        self.guest.resume()
    }

    fn clear_resume_actions(&mut self) -> Result<(), Error> {
        self.guest.clear_actions();
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Error> {
        self.guest.set_action(cpu(tid), Action::Continue);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Debugged {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Error> {
        self.guest.set_action(cpu(tid), Action::Step);
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Debugged {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Error> {
        self.guest.others_stay();
        Ok(())
    }
}

impl Breakpoints for Debugged {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_watchpoint(&mut self) -> Option<HwWatchpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Debugged {
    fn add_sw_breakpoint(&mut self, at: u64, _: usize) -> TargetResult<bool, Self> {
        self.guest.add_breakpoint(at).map_err(refuse)
    }

    fn remove_sw_breakpoint(&mut self, at: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.guest.remove_breakpoint(at))
    }
}

impl HwBreakpoint for Debugged {
    fn add_hw_breakpoint(&mut self, at: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.guest.add_watchpoint(at, 1, On::Execution))
    }

    fn remove_hw_breakpoint(&mut self, at: u64, _: usize) -> TargetResult<bool, Self> {
        Ok(self.guest.remove_watchpoint(at, 1, On::Execution))
    }
}

/// x86 has no watchpoints on reads alone: they are on writes too.
fn on(kind: WatchKind) -> On {
    match kind {
        WatchKind::Write => On::Writes,
        WatchKind::Read | WatchKind::ReadWrite => On::Accesses,
    }
}

impl HwWatchpoint for Debugged {
    fn add_hw_watchpoint(&mut self, at: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        Ok(self.guest.add_watchpoint(at, len, on(kind)))
    }

    fn remove_hw_watchpoint(&mut self, at: u64, len: u64, kind: WatchKind) -> TargetResult<bool, Self> {
        Ok(self.guest.remove_watchpoint(at, len, on(kind)))
    }
}

impl MonitorCmd for Debugged {
    fn handle_monitor_cmd(&mut self, command: &[u8], mut out: ConsoleOutput<'_>) -> Result<(), Error> {
        let answer = self.monitor.answer(&String::from_utf8_lossy(command), &mut self.guest);
        out.write_raw(answer.as_bytes());
        Ok(())
    }
}
