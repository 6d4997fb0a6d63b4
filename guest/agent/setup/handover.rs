//! A guest whose root has an init of its own: that becomes process 1, and the agent one of its children.

use std::ffi::CString;
use std::fs::File;
use std::io::Read;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::serve::reason;
use crate::sys;

/// How long an init may take to power off once it was asked to.
const PATIENCE: Duration = Duration::from_secs(30);

/// Makes the two processes, if there is an init. Returns in the one that is the agent from now on.
pub fn begin(init: Option<&[String]>) -> Result<(), String> {
    let Some(init) = init else { return Ok(()) };
    let fail = |e: std::io::Error| format!("cannot hand over to {}: {}", init.join(" "), reason(&e));
    let program = init.first().ok_or("no init was given")?;
    let arguments: Result<Vec<CString>, _> = init.iter().map(sys::c_string).collect();
    let (program, arguments) = (sys::c_string(program).map_err(fail)?, arguments.map_err(fail)?);
    let environment = [c"HOME=/", c"TERM=linux", c"PATH=/usr/sbin:/usr/bin:/sbin:/bin"].map(CString::from);
    let (told, tell) = sys::pipe().map_err(fail)?;
    if !sys::divide().map_err(fail)? {
        // Process 1. Its number is all that makes an init.
        drop(told);
        // Nobody's fault if the kernel has no such thing.
        let _ = std::fs::write("/proc/self/oom_score_adj", "0");
        sys::default_signals();
        let error = sys::become_program(&program, &arguments, &environment);
        let _ = std::io::Write::write_all(&mut File::from(tell), reason(&error).as_bytes());
        // The agent says why and powers off; until then this must not end.
        loop {
            sleep(PATIENCE);
        }
    }
    drop(tell);
    sys::adopt_orphans().map_err(fail)?;
    let mut why = String::new();
    match File::from(told).read_to_string(&mut why) {
        Ok(0) => Ok(()),
        _ => Err(format!("cannot start {}: {why}", init.join(" "))),
    }
}

/// Asks the init to power off, as its own users do, and waits until it does.
pub fn ask() {
    for command in [&["systemctl", "poweroff"][..], &["poweroff"], &["halt", "-p"]] {
        let Some((program, arguments)) = command.split_first() else { continue };
        let mut asked = Command::new(program);
        asked.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if asked.status().is_ok_and(|status| status.success()) {
            return sleep(PATIENCE);
        }
    }
}
