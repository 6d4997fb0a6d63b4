//! Whether this user can make user namespaces and is somebody in them (user_namespaces(7)).

// UNSAFETY: forks, since a process with threads cannot try it on itself.
#![expect(unsafe_code)]

use std::io;

use super::{Finding, text};

/// What a child found: its exit code.
const LATER: i32 = 100;

/// Error numbers of the two steps that a child tries: a user namespace, and with its rights a network of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tried {
    Works,
    NoNamespace(i32),
    NoRights(i32),
}

/// User namespaces, for isolation without root.
pub fn user_namespaces() -> Finding {
    match attempt() {
        Ok(tried) => judge(tried, |name| text(&format!("/proc/sys/{name}")).trim().to_owned()),
        Err(e) => Finding::limited(format!("not tried: {e}"), "allow more processes (ulimit -u)"),
    }
}

fn attempt() -> io::Result<Tried> {
    // SAFETY: the child calls nothing but system calls, which is allowed whatever other threads held at the fork, and
    // leaves by _exit, so that nothing of this process is run or flushed twice.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    if child == 0 {
        // SAFETY: as above; the child has one thread and changes only its own namespaces.
        unsafe {
            let code = if libc::unshare(libc::CLONE_NEWUSER) < 0 {
                (*libc::__errno_location()).clamp(1, LATER - 1)
            } else if libc::unshare(libc::CLONE_NEWNET) < 0 {
                LATER + (*libc::__errno_location()).clamp(1, LATER - 1)
            } else {
                0
            };
            libc::_exit(code)
        }
    }
    let mut status = 0;
    // SAFETY: waits for the child made above; `status` lives for the call.
    while unsafe { libc::waitpid(child, &mut status, 0) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    if !libc::WIFEXITED(status) {
        return Err(io::Error::other("the process that tries it was killed"));
    }
    Ok(match libc::WEXITSTATUS(status) {
        0 => Tried::Works,
        code if code < LATER => Tried::NoNamespace(code),
        code => Tried::NoRights(code - LATER),
    })
}

/// What `tried` means, with the settings that can be the reason.
fn judge(tried: Tried, setting: impl Fn(&str) -> String) -> Finding {
    let (what, error) = match tried {
        Tried::Works => return Finding::ok("can be made, with a network of their own"),
        Tried::NoNamespace(error) => ("cannot be made", error),
        Tried::NoRights(error) => ("give no rights", error),
    };
    let reasons = [
        ("user/max_user_namespaces", "0", "sudo sysctl user.max_user_namespaces=10000"),
        ("kernel/unprivileged_userns_clone", "0", "sudo sysctl kernel.unprivileged_userns_clone=1"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ];
    let reason = reasons.iter().find(|(name, forbids, _)| setting(name) == *forbids);
    let remedy = reason.map_or("allow it in the container's seccomp or security profile", |(.., remedy)| remedy);
    Finding::missing(format!("{what} ({})", io::Error::from_raw_os_error(error)), remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::survey::Mark;

    #[test]
    fn the_attempt_leaves_this_process_as_it_was() {
        let link = |name: &str| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        let before = (link("user"), link("net"));
        let first = attempt().unwrap();
        assert_eq!(attempt().unwrap(), first);
        assert_eq!((link("user"), link("net")), before);
        let unshare = std::process::Command::new("unshare").args(["-Un", "true"]).status();
        if let Ok(status) = unshare {
            assert_eq!(status.success(), first == Tried::Works, "{first:?}");
        }
    }

    #[test]
    fn the_setting_that_forbids_it_is_named() {
        let none = |_: &str| String::new();
        assert_eq!(judge(Tried::Works, none).mark, Mark::Ok);
        let full =
            judge(Tried::NoNamespace(libc::ENOSPC), |name| if name.starts_with("user/") { "0" } else { "" }.into());
        assert!(full.mark == Mark::Missing && full.remedy.unwrap().contains("max_user_namespaces=10000"));
        let ubuntu =
            judge(Tried::NoRights(libc::EPERM), |name| if name.contains("apparmor") { "1" } else { "9" }.into());
        assert!(ubuntu.found.starts_with("give no rights") && ubuntu.remedy.unwrap().contains("apparmor"));
        let container = judge(Tried::NoNamespace(libc::EPERM), none);
        assert!(container.remedy.unwrap().contains("seccomp"));
    }
}
