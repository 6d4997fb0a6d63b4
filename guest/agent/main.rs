//! belljar's agent in a guest: a small static program that sets the guest up, runs commands for the host and powers the
//! guest off. docs/agent.md describes what it does, `protocol` what it says.
//!
//!     /init                          process 1 of an initramfs: carries out the plan in /belljar/plan, then serves
//!     belljar-agent --serve-fd N     serves a socket that it was given, in a system that somebody else has set up
//!
//! One thread, no dependencies but the standard library, and compiled by belljar's build script with rustc alone. It
//! prints nothing but, if it cannot reach its host, one line on the console.

#![deny(unsafe_code)]
// The standard library's own main would look at stacks and handle signals: of no use here, and a tenth of the size.
#![cfg_attr(not(test), no_main)]

#[allow(dead_code, unused_imports, reason = "the host needs the rest")]
mod protocol;
mod serve;
mod setup;
#[cfg_attr(test, allow(dead_code))]
mod sys;

use protocol::{Message, Ready, VERSION};
use serve::{Link, Server};

/// Where the C library starts. What is printed goes to the console of the guest.
#[allow(unsafe_code, reason = "the name is what the C library calls")]
#[cfg_attr(not(test), unsafe(export_name = "main"))]
#[cfg_attr(test, allow(dead_code))]
extern "C" fn agent() -> i32 {
    sys::ignore_broken_pipes();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--serve-fd", number] => serve_only(number),
        _ if std::process::id() == 1 => Err(setup::run()),
        _ => Err("belljar starts this in its guests; see docs/agent.md".into()),
    };
    match result {
        Ok(()) => 0,
        Err(e) => {
            eprintln!("belljar-agent: {e}");
            1
        }
    }
}

/// Serves without setting anything up, and without an end to anything when it ends.
fn serve_only(number: &str) -> Result<(), String> {
    let started = sys::uptime();
    let fail = |e: std::io::Error| format!("cannot serve descriptor {number}: {}", serve::reason(&e));
    let fd = number.parse().map_err(|_| format!("{number}: no number of a descriptor"))?;
    let children = sys::children().and_then(|children| sys::adopt_orphans().map(|()| children)).map_err(fail)?;
    let mut link = sys::inherited(fd).and_then(Link::new).map_err(fail)?;
    link.say(0, Message::Hello { version: VERSION });
    link.say(0, Message::Ready(Ready { started, ready: sys::uptime(), notes: Vec::new() }));
    Server::new(link, children).run();
    Ok(())
}
