//! Whose files are whose: user and group numbers of host and guest.
//!
//! A process of root passes numbers on as they are, and what a guest's user makes belongs to that user from the
//! beginning. An ordinary user's process can only make files of its own, and has no other rights: to the guest those
//! files are root's (as the guest's root acts with the user's rights), all others have the numbers they have.

use rustix::fs::{Gid, Uid};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use crate::host::identity;

/// The guest's root.
const ROOT: u32 = 0;
/// "Leave it as it is" in chown(2).
const UNCHANGED: u32 = u32::MAX;

/// How numbers are translated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owners {
    /// User and group of this process.
    own: (u32, u32),
    /// It is root: nothing is translated.
    all: bool,
}

impl Owners {
    /// As this process may.
    pub(super) fn of_process() -> Self {
        Self::of(geteuid().as_raw(), getegid().as_raw())
    }

    fn of(uid: u32, gid: u32) -> Self {
        Self { own: (uid, gid), all: uid == ROOT }
    }

    /// User and group of a file as the guest sees them.
    pub(super) fn shown(&self, uid: u32, gid: u32) -> (u32, u32) {
        let show = |number, own| if !self.all && number == own { ROOT } else { number };
        (show(uid, self.own.0), show(gid, self.own.1))
    }

    /// What chown(2) shall be told when the guest wants `uid` and `gid` for a file that it sees as one of `now`. Nothing
    /// is changed that the guest sees as it wants it.
    pub(super) fn wanted(
        &self,
        uid: Option<u32>,
        gid: Option<u32>,
        now: (u32, u32),
    ) -> Result<(Option<Uid>, Option<Gid>), Errno> {
        let translate = |wanted: Option<u32>, own, now| {
            let wanted = wanted.filter(|&wanted| self.all || wanted != now);
            match wanted {
                Some(UNCHANGED) => Err(Errno::INVAL),
                Some(ROOT) if !self.all => Ok(Some(own)),
                other => Ok(other),
            }
        };
        let (uid, gid) = (translate(uid, self.own.0, now.0)?, translate(gid, self.own.1, now.1)?);
        Ok((uid.map(Uid::from_raw), gid.map(Gid::from_raw)))
    }

    /// Calls `work`, which makes a file for the guest's user.
    pub(super) fn making<T>(&self, uid: u32, gid: u32, work: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        match self.all {
            true => identity::with_owner(uid, gid, work),
            false => work(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_users_files_are_roots_and_stay_so() {
        let user = Owners::of(1000, 100);
        assert_eq!(user.shown(1000, 100), (0, 0));
        assert_eq!(user.shown(0, 7), (0, 7));
        assert_eq!(user.wanted(Some(0), Some(0), (0, 0)), Ok((None, None)), "as it is");
        assert_eq!(user.wanted(Some(0), None, (7, 7)), Ok((Some(Uid::from_raw(1000)), None)));
        assert_eq!(user.wanted(Some(5), Some(7), (0, 7)), Ok((Some(Uid::from_raw(5)), None)));
        assert_eq!(user.wanted(None, Some(u32::MAX), (0, 0)), Err(Errno::INVAL));
    }

    #[test]
    fn root_changes_nothing() {
        let root = Owners::of(0, 0);
        assert_eq!(root.shown(1000, 0), (1000, 0));
        let wanted = (Some(Uid::from_raw(0)), Some(Gid::from_raw(5)));
        assert_eq!(root.wanted(Some(0), Some(5), (0, 5)), Ok(wanted), "chown takes set-user-ID away");
    }
}
