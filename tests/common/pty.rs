//! Terminals, and who sits at them.

use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::Talk;

/// A program on a terminal of its own.
pub struct OnTerminal {
    /// The program.
    pub child: Child,
    /// The user's end.
    pub user: OwnedFd,
    /// The same, to talk over.
    pub talk: Talk,
}

impl OnTerminal {
    /// Starts it on a terminal of so many lines and columns.
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let user = openpt(flags).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        resize(&user, rows, columns);
        let terminal: OwnedFd = ioctl_tiocgptpeer(&user, flags).unwrap();
        let fd = || Stdio::from(terminal.try_clone().unwrap());
        let child = command.stdin(fd()).stdout(fd()).stderr(fd()).spawn().unwrap();
        let talk = Talk::over(user.try_clone().unwrap());
        Self { child, user, talk }
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        // It has ended unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Gives a terminal another size.
pub fn resize(user: &OwnedFd, rows: u16, columns: u16) {
    tcsetwinsize(user, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}
