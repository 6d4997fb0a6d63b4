//! How reports begin, what they are called and where they end, as Linux 5.4 to 6.12 print them (mm/kasan/report.c,
//! kernel/locking/lockdep.c, kernel/rcu/tree_stall.h, lib/ubsan.c and so on).

use std::sync::LazyLock;

use regex::{Captures, Regex, RegexSet};

use super::shapes::{SYMBOL, fixed, fixed_set};
use crate::runner::outcome::SplatKind::{self, *};

/// Where the function stands that a title names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    /// The title names none.
    None,
    /// In the first line, at the instruction pointer or in the trace, whichever says it first.
    Trace,
    /// The same, or where the lock is taken that the report is about: `.., at: f+0x1/0x2`.
    Lock,
    /// In the first trace that is not an interrupt's.
    Stalled,
    /// In the trace, below those that get memory.
    Leak,
}

/// Where a report ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With `---[ end trace`, or the `=====` that older kernels print.
    Mark,
    /// With `=====`.
    Banner,
    /// After the call trace, which begins within that many lines.
    Trace(usize),
    /// After that many lines.
    Lines(usize),
    /// Where lines are no longer indented.
    Indented,
    /// With `---[ end Kernel panic`.
    Panic,
}

/// One way in which a report begins.
#[derive(Debug)]
pub(super) struct Pattern {
    /// The first line, without prefix and tag. Group `f` is the function at fault.
    head: &'static str,
    pub(super) kind: SplatKind,
    /// With `$1` for the groups of the first line; ` in f` is added.
    pub(super) title: &'static str,
    pub(super) function: Function,
    pub(super) end: End,
}

const fn row(kind: SplatKind, head: &'static str, title: &'static str, function: Function, end: End) -> Pattern {
    Pattern { head, kind, title, function, end }
}

/// Reports with chains of locks are long before their trace.
const LOCKS: End = End::Trace(600);
/// Stalls list CPUs, tasks and registers before it.
const STALL: End = End::Trace(120);
const SHORT: End = End::Trace(40);

/// `@` stands for a symbol. The first that matches counts. Where syzbot has a title for a fault, it is the same, so that
/// what is known of it is found.
#[rustfmt::skip]
static PATTERNS: &[Pattern] = &[
    row(Panic, r"^Kernel panic - not syncing: (.*)", "kernel panic: $1", Function::None, End::Panic),

    row(Oops, r"^BUG: unable to handle (?:kernel )?(?:page fault|paging request)",
        "BUG: unable to handle kernel paging request", Function::Trace, End::Mark),
    row(Oops, r"^BUG: (?:unable to handle )?(?:kernel )?NULL pointer dereference",
        "BUG: unable to handle kernel NULL pointer dereference", Function::Trace, End::Mark),
    row(Oops, r"^BUG: .*(stack guard page was hit)", "BUG: $1", Function::Trace, End::Mark),
    row(Oops, r"^PANIC: (double fault)", "PANIC: $1", Function::Trace, End::Mark),
    row(Oops, r"^(?:Oops: )+[0-9a-f]{4} \[#\d+\]", "Oops", Function::Trace, End::Mark),
    row(Oops, r"^(?:Oops: )?([A-Za-z][A-Za-z0-9 -]*?)(?:,.*)?: [0-9a-f]{4} \[#\d+\]", "$1", Function::Trace, End::Mark),
    row(Oops, r"^Oops: ", "Oops", Function::Trace, End::Mark),

    row(Bug, r"^[kK]ernel BUG at ", "kernel BUG", Function::Trace, End::Mark),
    row(Warning, r"^WARNING: (?:CPU: \d+ PID: \d+ )?(?:[^ ]+:\d+ )?at (?:[^ ]+:\d+ )?@", "WARNING", Function::Trace, End::Mark),
    row(Warning, r"^WARNING: CPU: \d+ PID: \d+ at ", "WARNING", Function::Trace, End::Mark),

    row(Kasan, r"^BUG: KASAN: (.+?) in @", "KASAN: $1", Function::Trace, End::Banner),
    row(Kasan, r"^BUG: KASAN: (.+)", "KASAN: $1", Function::Trace, End::Banner),
    row(Kmsan, r"^BUG: KMSAN: (.+?) in @", "KMSAN: $1", Function::Trace, End::Banner),
    row(Kcsan, r"^BUG: KCSAN: (.+)", "KCSAN: $1", Function::None, End::Banner),
    row(Kfence, r"^BUG: KFENCE: (.+?) in @", "KFENCE: $1", Function::Trace, End::Banner),
    row(Ubsan, r"^UBSAN: (.+?) in ", "UBSAN: $1", Function::Trace, End::Mark),

    row(Lockdep, r"^(?:WARNING|INFO): possible (?:circular|recursive) locking", "possible deadlock", Function::Lock, LOCKS),
    row(Lockdep, r"^(?:WARNING|INFO): possible irq lock inversion", "possible deadlock", Function::Lock, LOCKS),
    row(Lockdep, r"^(?:WARNING|INFO): \S+-safe -> \S+-unsafe lock order", "possible deadlock", Function::Lock, LOCKS),
    row(Lockdep, r"^(?:WARNING|INFO): (inconsistent lock state)", "$1", Function::Lock, LOCKS),
    row(Lockdep, r"^(?:WARNING|\[ BUG): ([Bb]ad unlock balance|bad contention|Nested lock was not taken)", "WARNING: $1", Function::Lock, LOCKS),
    row(Lockdep, r"^\[ BUG: (Invalid wait context) \]", "$1", Function::Lock, LOCKS),
    row(Lockdep, r"^WARNING: (lock held when returning to user space)", "WARNING: $1", Function::Lock, End::Lines(12)),
    row(Lockdep, r"^WARNING: (held lock freed|chain_key collision)", "WARNING: $1", Function::Trace, LOCKS),
    row(Lockdep, r"^WARNING: .+/\d+ (still has locks held)", "task $1", Function::Trace, LOCKS),
    row(Lockdep, r"^(?:WARNING|INFO|\[ INFO): (suspicious RCU usage)", "WARNING: $1", Function::Trace, LOCKS),
    row(Lockdep, r"^INFO: (trying to register non-static key)", "INFO: $1", Function::Trace, SHORT),
    row(Lockdep, r"^BUG: (sleeping function called from invalid context)", "BUG: $1", Function::Trace, LOCKS),
    row(Lockdep, r"^BUG: (scheduling while atomic)", "BUG: $1", Function::Trace, LOCKS),
    row(Lockdep, r"^BUG: (workqueue leaked [a-zA-Z, ]+)", "BUG: $1", Function::Trace, LOCKS),
    row(Lockdep, r"^BUG: ((?:spin|rw)lock [a-z ]+?) on CPU", "BUG: $1", Function::Trace, SHORT),

    row(RcuStall, r"^INFO: rcu\w* (?:self-)?detected (?:expedited )?stalls?", "INFO: rcu detected stall", Function::Stalled, STALL),
    row(SoftLockup, r"^BUG: (soft lockup)", "BUG: $1", Function::Stalled, STALL),
    row(SoftLockup, r"^BUG: (workqueue lockup)", "BUG: $1", Function::None, End::Lines(30)),
    row(HardLockup, r"^(?:CPU\d+: )?Watchdog detected hard LOCKUP", "hard lockup", Function::Stalled, STALL),
    row(HungTask, r"^INFO: task .+:\d+ blocked .*for more than", "INFO: task hung", Function::Stalled, STALL),

    row(Kmemleak, r"^unreferenced object 0x", "memory leak", Function::Leak, End::Indented),
    row(Kmemleak, r"^\d+ (new suspected memory leaks)", "kmemleak: $1", Function::None, End::Lines(1)),

    row(Bug, r"^BUG: (using \w+\(\) in preemptible)", "BUG: $1 code", Function::Trace, SHORT),
    row(Bug, r"^BUG: (Bad (?:page|rss)[a-z -]+?) (?:in process|mm:)", "BUG: $1", Function::Trace, SHORT),
    row(Bug, r"^BUG (\S+) \([^)]*\): (.+)", "BUG: $2 in $1", Function::Trace, LOCKS),
    row(Bug, r"^BUG: (.+)", "BUG: $1", Function::Trace, SHORT),
];

/// Panics that follow from a fault that was reported before, of one of these kinds, or of any.
#[rustfmt::skip]
static CONSEQUENCES: &[(&str, &[SplatKind])] = &[
    (r"panic_on_(?:warn|taint) set|kasan\.fault|kmsan\.panic", &[]),
    (r"Fatal exception|^Attempted to kill|killing interrupt handler|^Machine halted", &[Oops, Bug]),
    (r"^softlockup: ", &[SoftLockup]),
    (r"Hard LOCKUP", &[HardLockup]),
    (r"^hung_task: ", &[HungTask]),
    (r"^RCU Stall", &[RcuStall]),
];

struct Compiled {
    heads: Vec<Regex>,
    any: RegexSet,
    consequences: RegexSet,
}

static COMPILED: LazyLock<Compiled> = LazyLock::new(|| {
    let heads: Vec<_> = PATTERNS.iter().map(|pattern| fixed(&pattern.head.replace('@', SYMBOL))).collect();
    let any = fixed_set(heads.iter().map(Regex::as_str));
    Compiled { heads, any, consequences: fixed_set(CONSEQUENCES.iter().map(|(panic, _)| *panic)) }
});

/// The first line of a report.
#[derive(Debug)]
pub(super) struct Head<'a> {
    pub(super) pattern: &'static Pattern,
    pub(super) captures: Captures<'a>,
}

impl<'a> Head<'a> {
    /// What begins with this line, given without prefix and tag.
    pub(super) fn find(text: &'a str) -> Option<Self> {
        let index = COMPILED.any.matches(text).into_iter().next()?;
        Some(Self { pattern: PATTERNS.get(index)?, captures: COMPILED.heads.get(index)?.captures(text)? })
    }

    pub(super) fn is_panic(&self) -> bool {
        self.pattern.end == End::Panic
    }

    /// Whether this panic follows from a fault of `kind` that was reported before.
    pub(super) fn follows_from(&self, kind: SplatKind) -> bool {
        let text = self.captures.get(1).map_or("", |text| text.as_str());
        let rules = COMPILED.consequences.matches(text);
        let mut rules = rules.into_iter().filter_map(|index| CONSEQUENCES.get(index));
        self.is_panic() && rules.any(|(_, kinds)| kinds.is_empty() || kinds.contains(&kind))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(line: &str) -> Option<SplatKind> {
        Head::find(line).map(|head| head.pattern.kind)
    }

    #[test]
    fn first_lines_are_told_apart() {
        for (line, expected) in [
            ("Kernel panic - not syncing: VFS: Unable to mount root fs", Panic),
            ("BUG: unable to handle page fault for address: ffffffffdeadbeef", Oops),
            (
                "general protection fault, probably for non-canonical address 0xdead000000000100: 0000 [#1] PREEMPT SMP",
                Oops,
            ),
            ("Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP", Oops),
            ("Oops: Oops: 0002 [#1] PREEMPT SMP", Oops),
            ("divide error: 0000 [#1] SMP", Oops),
            ("kernel BUG at mm/slub.c:123!", Bug),
            ("WARNING: CPU: 0 PID: 77 at lib/refcount.c:28 refcount_warn_saturate+0xbe/0x110", Warning),
            ("WARNING: CPU: 0 PID: 77 at 0xffffffffc0000000", Warning),
            ("WARNING: lib/refcount.c:28 at refcount_warn_saturate+0xbe/0x110, CPU#0: insmod/77", Warning),
            ("INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 0-.... } 6 jiffies s: 1", RcuStall),
            ("INFO: rcu_tasks detected stalls on tasks:", RcuStall),
            ("INFO: task kworker/0:1:12 blocked for more than 120 seconds.", HungTask),
            ("INFO: task sh:12 blocked in I/O wait for more than 120 seconds.", HungTask),
            ("Watchdog detected hard LOCKUP on cpu 0", HardLockup),
            ("BUG kmalloc-64 (Tainted: G    B     ): Poison overwritten", Bug),
            ("BUG: something that nobody thought of", Bug),
            ("BUG: spinlock bad magic on CPU#0, insmod/77", Lockdep),
            ("WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected", Lockdep),
        ] {
            assert_eq!(kind(line), Some(expected), "{line}");
        }
    }

    #[test]
    fn what_is_no_report_is_none() {
        for line in [
            "",
            "WARNING: Flushing system-wide workqueues will be prohibited in near future.",
            "INFO: lockdep is turned off.",
            "traps: sh[12] general protection fault ip:55d0 sp:7ffd error:0 in sh[55d0]",
            "sh[12]: segfault at 0 ip 0000 sp 0000 error 4",
            "Memory leak detector initialized",
            "this is no BUG: really",
            "rcu: Hierarchical RCU implementation.",
            "Debug: 0000 [#",
        ] {
            assert_eq!(kind(line), None, "{line}");
        }
    }

    #[test]
    fn some_panics_follow_from_faults() {
        let follows = |text: &str, kind| Head::find(text).is_some_and(|head| head.follows_from(kind));
        for (text, kind) in [
            ("Fatal exception in interrupt", Oops),
            ("KASAN: panic_on_warn set ...", Kasan),
            ("hung_task: blocked tasks", HungTask),
            ("Attempted to kill init! exitcode=0x00000009", Bug),
        ] {
            assert!(follows(&format!("Kernel panic - not syncing: {text}"), kind), "{text}");
            assert!(!follows(&format!("BUG: {text}"), kind), "{text}");
        }
        assert!(!follows("Kernel panic - not syncing: sysrq triggered crash", Oops));
        assert!(!follows("Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100", Warning));
    }
}
