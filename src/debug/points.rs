//! The breakpoints and watchpoints that a debugger has set.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::engine::debug::{MAX_WATCHPOINTS, On, Stop, Wanted, Watchpoint};

/// Breakpoints that can be set: more than people set, and few enough to be looked through.
const MAX_BREAKPOINTS: usize = 1024;

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Points {
    /// By linear address; where INT3 is in memory for it, if anywhere.
    breakpoints: BTreeMap<u64, Option<u64>>,
    watchpoints: Vec<Watchpoint>,
    /// Those of them that are breakpoints to the debugger, by address.
    stand_ins: BTreeSet<u64>,
}

impl Points {
    /// Adds a breakpoint; false if there are too many. `planted` is where INT3 is for it.
    pub(super) fn add_breakpoint(&mut self, at: u64, planted: Option<u64>) -> bool {
        let room = self.breakpoints.len() < MAX_BREAKPOINTS || self.breakpoints.contains_key(&at);
        if room {
            self.breakpoints.insert(at, planted);
        }
        room
    }

    /// Takes a breakpoint away: where INT3 was for it. None if there is no such.
    pub(super) fn remove_breakpoint(&mut self, at: u64) -> Option<Option<u64>> {
        self.breakpoints.remove(&at)
    }

    /// Adds a breakpoint that takes a watchpoint, since nothing can be written where it is.
    pub(super) fn add_stand_in(&mut self, at: u64) -> bool {
        self.add_watchpoint(at, 1, On::Execution) && self.stand_ins.insert(at)
    }

    /// Takes it away; false if there is none.
    pub(super) fn remove_stand_in(&mut self, at: u64) -> bool {
        self.stand_ins.remove(&at) && self.remove_watchpoint(at, 1, On::Execution)
    }

    /// What the debugger knows `stop` by.
    pub(super) fn known_as(&self, stop: Stop) -> Stop {
        match stop {
            Stop::Watchpoint(Watchpoint { at, on: On::Execution, .. }) if self.stand_ins.contains(&at) => {
                Stop::Breakpoint
            }
            other => other,
        }
    }

    /// Adds watchpoints on `len` bytes at `at`: each watches 1, 2, 4 or 8 bytes that are aligned. False if that would be more
    /// than there are.
    pub(super) fn add_watchpoint(&mut self, at: u64, len: u64, on: On) -> bool {
        let Some(mut pieces) = pieces(at, len, on) else { return false };
        let room = self.watchpoints.len() + pieces.len() <= MAX_WATCHPOINTS;
        if room {
            self.watchpoints.append(&mut pieces);
        }
        room
    }

    /// Takes what [`Points::add_watchpoint`] has added away; false if there is no such.
    pub(super) fn remove_watchpoint(&mut self, at: u64, len: u64, on: On) -> bool {
        let Some(pieces) = pieces(at, len, on) else { return false };
        pieces.iter().all(|piece| {
            let found = self.watchpoints.iter().position(|watchpoint| watchpoint == piece);
            found.map(|found| self.watchpoints.remove(found)).is_some()
        })
    }

    /// Whether this watchpoint is set.
    pub(super) fn watches(&self, watchpoint: &Watchpoint) -> bool {
        self.watchpoints.contains(watchpoint)
    }

    /// Takes everything away; where INT3 was.
    pub(super) fn clear(&mut self) -> Vec<u64> {
        let Self { breakpoints, .. } = std::mem::take(self);
        breakpoints.into_values().flatten().collect()
    }

    /// What a vCPU is to be told.
    pub(super) fn wanted(&self) -> Wanted {
        let breakpoints: BTreeSet<u64> = self.breakpoints.keys().copied().collect();
        Wanted { step: false, breakpoints: Arc::new(breakpoints), watchpoints: self.watchpoints.clone() }
    }
}

/// Aligned pieces of an area; none if there are too many of them.
fn pieces(at: u64, len: u64, on: On) -> Option<Vec<Watchpoint>> {
    let (mut at, mut left) = (at, if on == On::Execution { 1 } else { len.max(1) });
    let mut pieces = Vec::new();
    while left > 0 {
        let size = [8u8, 4, 2, 1].into_iter().find(|&size| at % u64::from(size) == 0 && u64::from(size) <= left)?;
        pieces.push(Watchpoint { at, len: size, on });
        at = at.checked_add(size.into())?;
        left -= u64::from(size);
        if pieces.len() > MAX_WATCHPOINTS {
            return None;
        }
    }
    Some(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_are_watched_in_aligned_pieces_as_long_as_there_are_some() {
        let mut points = Points::default();
        assert!(points.add_watchpoint(0x1006, 4, On::Writes));
        let piece = |at, len| Watchpoint { at, len, on: On::Writes };
        assert_eq!(points.wanted().watchpoints, [piece(0x1006, 2), piece(0x1008, 2)]);
        assert!(!points.add_watchpoint(0x2001, 7, On::Accesses), "three are too many");
        assert!(points.add_watchpoint(0x3000, 9, On::Execution), "one byte");
        assert!(!points.remove_watchpoint(0x1006, 2, On::Accesses));
        assert!(points.remove_watchpoint(0x1006, 4, On::Writes));
        assert!(points.add_watchpoint(0x2001, 7, On::Accesses));
        assert!(!points.add_watchpoint(0, u64::MAX, On::Writes) && !points.add_watchpoint(u64::MAX - 1, 9, On::Writes));
        let stop = |at| Stop::Watchpoint(Watchpoint { at, len: 1, on: On::Execution });
        assert!(points.remove_watchpoint(0x3000, 1, On::Execution) && points.add_stand_in(0x4000));
        assert_eq!([0x3000, 0x4000].map(|at| points.known_as(stop(at))), [stop(0x3000), Stop::Breakpoint]);
        assert!(points.remove_stand_in(0x4000) && !points.remove_stand_in(0x4000));
        assert!(points.add_breakpoint(5, Some(7)) && points.add_breakpoint(6, None));
        assert_eq!(points.wanted().breakpoints.len(), 2);
        assert_eq!((points.remove_breakpoint(6), points.remove_breakpoint(8)), (Some(None), None));
        assert_eq!(points.clear(), [7]);
        assert_eq!(points.wanted(), Wanted::default());
    }
}
