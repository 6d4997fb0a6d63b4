//! Reports as kernels print them, for tests and to begin fuzzing from.

use crate::runner::outcome::SplatKind::{self, *};

macro_rules! samples {
    ($($name:literal $kind:ident $title:literal;)*) => {
        &[$(Sample { name: $name, text: include_str!(concat!("samples/", $name, ".txt")), kind: $kind, title: $title }),*]
    };
}

/// A report.
#[cfg_attr(not(test), allow(dead_code, reason = "fuzzing wants only the texts"))]
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
    pub(crate) kind: SplatKind,
    pub(crate) title: &'static str,
}

/// One of each sort.
pub(crate) const SAMPLES: &[Sample] = samples! {
    "kasan" Kasan "KASAN: slab-use-after-free Read in read_it";
    "kasan-double-free" Kasan "KASAN: double-free in free_twice";
    "kasan-panic" Kasan "KASAN: slab-out-of-bounds Write in copy_too_much";
    "kmsan" Kmsan "KMSAN: uninit-value in use_it";
    "kcsan" Kcsan "KCSAN: data-race in count_down / count_up";
    "kfence" Kfence "KFENCE: use-after-free read in read_it";
    "ubsan" Ubsan "UBSAN: shift-out-of-bounds in shift_it";
    "ubsan-6.1" Ubsan "UBSAN: array-index-out-of-bounds in index_it";
    "oops" Oops "BUG: unable to handle kernel NULL pointer dereference in follow_it";
    "gpf-6.1" Oops "general protection fault in unlink_it";
    "jump-to-null" Oops "BUG: unable to handle kernel paging request in call_it";
    "double-fault" Oops "PANIC: double fault in lose_the_stack";
    "bug" Bug "kernel BUG in unlink_it";
    "slub" Bug "BUG: Poison overwritten in kmalloc-64 in take_it";
    "warning" Warning "WARNING in put_it";
    "deadlock" Lockdep "possible deadlock in take_b_then_a";
    "suspicious-rcu" Lockdep "WARNING: suspicious RCU usage in peek_it";
    "wait-context" Lockdep "Invalid wait context in take_mutex_in_spin";
    "atomic-sleep" Lockdep "BUG: sleeping function called from invalid context in sleep_in_atomic";
    "rcu-stall" RcuStall "INFO: rcu detected stall in spin_it";
    "rcu-self-6.1" RcuStall "INFO: rcu detected stall in spin_it";
    "soft-lockup" SoftLockup "BUG: soft lockup in lock_twice";
    "hard-lockup" HardLockup "hard lockup in spin_without_interrupts";
    "hung-task" HungTask "INFO: task hung in wait_for_ever";
    "kmemleak" Kmemleak "memory leak in forget_it";
    "panic" Panic "kernel panic: VFS: Unable to mount root fs on unknown-block(N,N)";
};
