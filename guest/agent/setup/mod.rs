//! Setting the guest up: carries out the [`Plan`] as process 1 of the initramfs, in the order of these files.
//!
//! | file | what it does |
//! | --- | --- |
//! | `mounts` | /proc, /sys, /dev and the other file systems that programs expect |
//! | `modules` | loads kernel modules |
//! | `channel` | opens the connection to the host |
//! | `root` | mounts the guest's root, and makes it the root |
//! | `network` | interfaces, routes, name servers |
//! | `handover` | the root's own init as process 1 |
//! | `power` | the end |
//!
//! What goes wrong is one line of text. Before there is a connection it goes to the console, later to the host.

mod channel;
mod handover;
mod modules;
mod mounts;
mod network;
mod power;
mod root;

use std::fs;
use std::path::Path;

use crate::protocol::plan::PATH;
use crate::protocol::{Message, Plan, Ready, Root, VERSION};
use crate::serve::{End, Link, Server, reason};
use crate::sys;

/// Files that every program may have open at first, and at most: as systemd has it.
const FILES: (u64, u64) = (1024, 512 << 10);

/// What is not as it should be but stops nobody.
pub type Notes = Vec<String>;

/// Everything, from the start of the guest to its end.
pub fn run() -> String {
    let started = sys::uptime();
    match begin() {
        Ok((plan, link, notes)) => serve(&plan, link, notes, started),
        Err(what) => {
            eprintln!("belljar-agent: {what}");
            power::off()
        }
    }
}

/// As far as a connection to the host.
fn begin() -> Result<(Plan, Link, Notes), String> {
    let mut notes = Notes::new();
    let bytes = fs::read(PATH).map_err(|e| format!("cannot read {PATH}: {}", reason(&e)))?;
    let plan = Plan::from_bytes(&bytes).map_err(|e| format!("{PATH}: {e}"))?;
    mounts::early()?;
    modules::load(&plan.modules, &mut notes);
    let link = channel::open(&plan.channel).map_err(|e| match notes.is_empty() {
        true => e,
        false => format!("{e} ({})", notes.join("; ")),
    })?;
    Ok((plan, link, notes))
}

/// Sets up the rest, serves, and ends the guest. Returns only if it cannot be powered off.
fn serve(plan: &Plan, mut link: Link, mut notes: Notes, started: u64) -> String {
    link.say(0, Message::Hello { version: VERSION });
    // Fails if the host is gone, which will be seen soon enough.
    let _ = link.flush();
    let children = prepare(plan, &mut notes).and_then(|()| {
        handover::begin(plan.init.as_deref())?;
        sys::children().map_err(|e| format!("cannot wait for children: {}", reason(&e)))
    });
    match children {
        Ok(children) => {
            // What a command prints shall be on its way before the command goes on, and perhaps kills the kernel; and a
            // guest whose CPUs are busy shall still be reached.
            sys::run_before_others();
            link.say(0, Message::Ready(Ready { started, ready: sys::uptime(), notes }));
            if let End::Shutdown = Server::new(link, children).run()
                && plan.init.is_some()
            {
                handover::ask();
            }
        }
        Err(what) => {
            link.say(0, Message::Failed { what });
            link.finish();
        }
    }
    power::off()
}

fn prepare(plan: &Plan, notes: &mut Notes) -> Result<(), String> {
    // Nobody runs yet whom this could matter to; it fails in a kernel that has no such thing.
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let _ = sys::limit_files(FILES.0, FILES.1);
    if !plan.hostname.is_empty() {
        sys::set_hostname(&plan.hostname)
            .map_err(|e| format!("cannot set the name {}: {}", plan.hostname, reason(&e)))?;
    }
    match plan.root {
        Root::Initramfs => root::stay(),
        _ => root::change(&plan.root, notes)?,
    }
    mounts::standard(&plan.root, notes)?;
    root::volumes(&plan.mounts)?;
    network::configure(&plan.network, notes)
}

/// The directory `path` and those above it, if they are missing.
fn make_directory(path: &Path) -> Result<(), String> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)
        .map_err(|e| format!("cannot make the directory {} in the guest: {}", path.display(), reason(&e)))
}
