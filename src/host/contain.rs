//! Threads that must not end in silence: a mistake in belljar that panics on one of them is told, on one line, to whom it
//! concerns, instead of leaving a machine behind that waits for that thread for ever.
//!
//! [`install`] is called once, by the command line; [`contain`] around the whole work of each vCPU and event loop thread.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};

thread_local! {
    /// Where the panic that this thread contains was raised; `Some` while something is contained.
    static CONTAINED: Cell<Option<String>> = const { Cell::new(None) };
}

/// Does `work`, called `what`. If it panics: what is to be said about it, on one line.
///
/// What `work` used is dropped with it, or must be fit to be used half-way changed.
pub fn contain<T>(what: &str, work: impl FnOnce() -> T) -> Result<T, String> {
    CONTAINED.set(Some(String::new()));
    let done = catch_unwind(AssertUnwindSafe(work));
    let place = CONTAINED.take().unwrap_or_default();
    done.map_err(|payload| {
        format!("{what} panicked{place}: {}: this is a mistake in belljar, please report it", text(&*payload))
    })
}

/// Lets contained panics be told by those who contain them, unless the user wants to see everything (`RUST_BACKTRACE`).
pub fn install() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::env::var_os("RUST_BACKTRACE").is_some() || !note(info) {
            hook(info);
        }
    }));
}

/// Keeps the place of a contained panic; false if nobody contains it.
fn note(info: &PanicHookInfo<'_>) -> bool {
    let contained = CONTAINED.take().is_some();
    if contained {
        CONTAINED.set(Some(info.location().map_or_else(String::new, |at| format!(" at {at}"))));
    }
    contained
}

/// The message of a panic, on one line.
fn text(payload: &(dyn Any + Send)) -> String {
    let said = payload.downcast_ref::<&str>().map(|text| (*text).to_string());
    let said = said.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into());
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_one_line() {
        assert_eq!(contain("a sum", || 1 + 1), Ok(2));
        let line = |number: u32| contain("a division", || panic!("nothing\nby {number}"));
        let said: Result<(), _> = line(0);
        let said = said.unwrap_err();
        assert!(
            said.starts_with("a division panicked") && said.contains(": nothing by 0: this is a mistake"),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1);
        let said = contain("a constant", || panic!("fixed")).map(|(): ()| ()).unwrap_err();
        assert!(said.contains(": fixed: "), "{said}");
    }
}
