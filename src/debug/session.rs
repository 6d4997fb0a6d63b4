//! One connection of gdb, from its first packet to its last.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use gdbstub::common::Signal;
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub, GdbStubError, MultiThreadStopReason};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::Error;
use super::guest::Event;
use super::requests::Request;
use super::target::{self, Debugged};

/// Longest packet: gdb reads memory in pieces of half of it.
const PACKET: usize = 16 << 10;
/// How long gdb may take to read what it is told.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// Somebody who wants a word with the session.
pub(super) trait Around {
    /// Readable when there is something new: stops of vCPUs, or the end.
    fn wake_fd(&self) -> &OwnedFd;
    /// Makes that unreadable.
    fn awake(&self);
    /// The machine has ended, with this exit code.
    fn ended(&self) -> Option<u8>;
    /// Whether the machine is not about to be taken apart.
    fn goes_on(&self) -> bool;
    /// Dumps that others want.
    fn requests(&self) -> Vec<Request>;
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// gdb left the machine alone.
    Detached,
    /// gdb wants the machine to end.
    Killed,
    /// The machine has ended.
    Ended,
}

/// Serves gdb until it leaves or the machine has ended.
pub(super) fn serve(stream: OwnedFd, debugged: &mut Debugged, around: &dyn Around) -> Result<End, Error> {
    let mut buffer = vec![0; PACKET];
    let client = Client { stream, input: VecDeque::new(), output: Vec::new() };
    let stub = GdbStub::builder(client).with_packet_buffer(&mut buffer).build();
    let stub = stub.map_err(|e| Error::Protocol(e.to_string()))?;
    let mut gdb = stub.run_state_machine(debugged).map_err(failed)?;
    loop {
        let runs = matches!(gdb, GdbStubStateMachine::Running(_));
        debugged.guest.dump_for(around.requests(), runs, &|| around.goes_on());
        gdb = match gdb {
            GdbStubStateMachine::Disconnected(gdb) => return Ok(end(gdb.get_reason())),
            GdbStubStateMachine::CtrlCInterrupt(gdb) => {
                let tid = target::thread(debugged.guest.interrupt()?);
                let reason = MultiThreadStopReason::SignalWithThread { tid, signal: Signal::SIGINT };
                gdb.interrupt_handled(debugged, Some(reason)).map_err(failed)?
            }
            GdbStubStateMachine::Running(mut gdb) => match debugged.guest.next_event()? {
                Some(event) => {
                    if matches!(event, Event::Crash(_)) && debugged.monitor.dump.is_some() {
                        tracing::warn!("the guest has died: {}", debugged.monitor.dump(&mut debugged.guest).trim());
                    }
                    gdb.report_stop(debugged, target::reason(event)).map_err(failed)?
                }
                None => match (gdb.borrow_conn().next(around)?, around.ended()) {
                    (Next::Byte(byte), _) => gdb.incoming_data(debugged, byte).map_err(failed)?,
                    (Next::Woken, Some(code)) => {
                        gdb.report_stop(debugged, MultiThreadStopReason::Exited(code)).map_err(failed)?;
                        return Ok(End::Ended);
                    }
                    (Next::Woken, None) => gdb.into(),
                    (Next::Gone, _) => return Ok(End::Detached),
                },
            },
            GdbStubStateMachine::Idle(mut gdb) => match (gdb.borrow_conn().next(around)?, around.ended()) {
                (Next::Byte(byte), _) => gdb.incoming_data(debugged, byte).map_err(failed)?,
                (Next::Woken, Some(_)) => return Ok(End::Ended),
                (Next::Woken, None) => gdb.into(),
                (Next::Gone, _) => return Ok(End::Detached),
            },
        };
    }
}

fn end(reason: DisconnectReason) -> End {
    match reason {
        DisconnectReason::Kill => End::Killed,
        DisconnectReason::Disconnect => End::Detached,
        _ => End::Ended,
    }
}

fn failed(error: GdbStubError<Error, io::Error>) -> Error {
    Error::Protocol(error.to_string())
}

enum Next {
    Byte(u8),
    Woken,
    Gone,
}

/// gdb's end of a socket that does not block.
struct Client {
    stream: OwnedFd,
    input: VecDeque<u8>,
    output: Vec<u8>,
}

impl Client {
    /// What comes next.
    fn next(&mut self, around: &dyn Around) -> Result<Next, Error> {
        loop {
            if let Some(byte) = self.input.pop_front() {
                return Ok(Next::Byte(byte));
            }
            let mut fds = [PollFd::new(around.wake_fd(), PollFlags::IN), PollFd::new(&self.stream, PollFlags::IN)];
            match poll(&mut fds, None) {
                Err(Errno::INTR) => continue,
                other => other.map_err(|e| Error::Host("wait for gdb", e.into()))?,
            };
            let [woken, _] = fds.map(|fd| !fd.revents().is_empty());
            if woken {
                around.awake();
                return Ok(Next::Woken);
            }
            let mut bytes = [0; 4096];
            match rustix::io::read(&self.stream, &mut bytes) {
                Ok(0) => return Ok(Next::Gone),
                Ok(len) => self.input.extend(bytes.iter().take(len)),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return Ok(Next::Gone),
            }
        }
    }
}

impl Connection for Client {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.output.push(byte);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let output = std::mem::take(&mut self.output);
        let mut rest = &*output;
        while !rest.is_empty() {
            match rustix::io::write(&self.stream, rest) {
                Ok(len) => rest = rest.get(len..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let mut fds = [PollFd::new(&self.stream, PollFlags::OUT)];
                    if poll(&mut fds, Some(&PATIENCE)) == Ok(0) {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}
