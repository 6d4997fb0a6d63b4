//! Functions that stand above the one at fault in a trace: those that report, check, take locks, wait or copy. A title
//! names the first function that is none of these.

/// Whole names.
#[rustfmt::skip]
const NAMES: &[&str] = &[
    // Reports.
    "dump_stack", "dump_stack_lvl", "show_stack", "sched_show_task", "dump_cpu_task", "panic", "vpanic", "nmi_panic",
    "__warn", "__warn_printk", "warn_slowpath_fmt", "warn_slowpath_null", "report_bug", "handle_bug", "fixup_bug",
    "print_report", "print_address_description", "end_report", "check_panic_on_warn", "spin_dump", "spin_bug",
    "print_deadlock_bug", "print_circular_bug", "print_bad_irq_dependency", "print_usage_bug",
    "print_irq_inversion_bug", "print_unlock_imbalance_bug", "print_lock_contention_bug", "print_freed_lock_bug",
    "die", "__die", "die_addr", "die_body", "__die_body", "oops_end", "oops_begin", "do_trap", "do_error_trap",
    "page_fault_oops", "kernelmode_fixup_or_oops", "bad_area_nosemaphore", "__bad_area_nosemaphore", "no_context",
    "do_user_addr_fault", "do_kern_addr_fault", "show_regs", "slab_err", "object_err", "slab_pad_check",
    "check_bytes_and_report", "slab_bug", "bad_page", "print_bad_pte",
    // Checks.
    "refcount_warn_saturate", "refcount_error_report", "usercopy_abort", "__check_object_size",
    "__check_heap_object", "fortify_panic", "__fortify_panic", "__fortify_report", "debug_print_object",
    "ubsan_epilogue", "handle_overflow", "check_object", "check_slab", "check_chain_key",
    "debug_smp_processor_id", "__this_cpu_preempt_check", "check_preemption_disabled", "__cant_sleep", "__cant_migrate",
    "check_memory_region", "mark_lock", "mark_lock_irq", "mark_usage", "mark_held_locks", "validate_chain",
    "check_prev_add", "check_prevs_add", "check_noncircular", "check_wait_context", "check_deadlock",
    "alloc_debug_processing", "free_debug_processing", "free_to_partial_list", "rcu_sleep_check",
    // Stacks, which checks keep.
    "unwind_next_frame", "__unwind_start", "unwind_get_return_address", "arch_stack_walk", "stack_trace_save",
    "stack_depot_save", "stack_depot_save_flags", "set_track_prepare",
    // Locks.
    "do_raw_spin_lock", "do_raw_spin_trylock", "do_raw_spin_unlock", "native_queued_spin_lock_slowpath",
    "pv_queued_spin_lock_slowpath", "__pv_queued_spin_lock_slowpath", "queued_read_lock_slowpath",
    "queued_write_lock_slowpath", "down", "__down", "__down_common", "down_read", "down_write", "down_interruptible",
    "down_killable", "down_timeout", "down_read_killable", "down_read_interruptible", "down_write_killable",
    "down_read_trylock", "down_write_trylock", "down_read_nested", "down_write_nested", "up", "up_read", "up_write",
    "__down_read", "__down_write", "__down_write_common", "__down_read_common", "percpu_down_write",
    "__percpu_down_read", "lock_acquire", "__lock_acquire", "lock_release", "__lock_release", "lock_contended",
    // Waits.
    "__schedule", "schedule", "schedule_timeout", "schedule_preempt_disabled", "preempt_schedule",
    "preempt_schedule_common", "preempt_schedule_irq", "preempt_schedule_notrace", "io_schedule", "context_switch",
    "io_schedule_timeout", "__schedule_loop", "schedule_hrtimeout_range", "__cond_resched", "__schedule_bug",
    "schedule_debug", "schedule_timeout_uninterruptible", "schedule_timeout_interruptible",
    "schedule_timeout_killable", "msleep", "msleep_interruptible", "usleep_range_state", "synchronize_rcu",
    "synchronize_rcu_expedited", "synchronize_rcu_normal", "synchronize_srcu", "__synchronize_srcu",
    "delay_tsc", "delay_loop", "delay_halt", "delay_halt_tpause", "__delay", "__udelay", "__ndelay", "__const_udelay",
    "cpu_relax", "rep_nop", "flush_work", "__flush_work", "bit_wait", "bit_wait_io", "out_of_line_wait_on_bit",
    "read_tsc", "kvm_clock_read", "kvm_clock_get_cycles", "pvclock_clocksource_read", "pvclock_clocksource_read_nowd",
    "sched_clock", "sched_clock_cpu", "native_sched_clock", "local_clock",
    "__wait_on_bit", "__wait_on_bit_lock", "csd_lock_wait", "smp_call_function_many_cond", "smp_call_function_single",
    // What the machine does between a fault and its report.
    "error_entry", "paranoid_entry", "nmi_cpu_backtrace", "nmi_trigger_cpumask_backtrace", "default_do_nmi", "exc_nmi",
    "end_repeat_nmi", "asm_sysvec_apic_timer_interrupt", "sysvec_apic_timer_interrupt",
    // Memory: their callers gave what was wrong.
    "kfree", "kvfree", "kmem_cache_free", "kmem_cache_free_bulk", "__kmem_cache_free", "slab_free", "__slab_free",
    "do_slab_free", "___cache_free", "slab_free_freelist_hook", "kfree_sensitive", "krealloc", "ksize",
    "memcpy", "__memcpy", "memcpy_orig", "memcpy_erms", "memset", "__memset", "memset_orig", "memset_erms", "memmove",
    "__memmove", "memcmp", "memchr", "memscan", "strlen", "strnlen", "strcpy", "strncpy", "strscpy", "sized_strscpy",
    "strcmp", "strncmp", "strcat", "strchr", "strrchr", "strstr", "strsep", "strlcpy", "kstrdup", "kmemdup",
    "copy_to_user", "copy_from_user", "_copy_to_user", "_copy_from_user", "copy_user_generic",
    "rep_movs_alternative", "rep_stos_alternative", "copy_user_enhanced_fast_string", "clear_page_erms",
    "instrument_copy_from_user_before", "atomic_read", "refcount_read", "queue_work_on",
];

/// Beginnings of names.
#[rustfmt::skip]
const BEGINNINGS: &[&str] = &[
    "__asan_", "__hwasan_", "kasan_", "__kasan_", "__msan_", "kmsan_", "__kmsan_", "__tsan_", "kcsan_", "__kcsan_",
    "kfence_", "__kfence_", "__ubsan_", "exc_", "asm_exc_", "early_fixup_", "__list_add_valid", "__list_del_entry_valid",
    "_raw_spin_", "_raw_read_", "_raw_write_", "__raw_spin_", "__raw_read_", "__raw_write_", "mutex_lock", "__mutex_",
    "ww_mutex_lock", "rt_mutex_", "__rt_mutex_", "rwsem_", "__rwsem_", "lockdep_", "__lockdep_", "debug_check_no_",
    "debug_object_", "__debug_object_", "__might_", "___might_", "might_", "wait_for_completion", "__wait_for_common",
    "do_wait_for_common", "wait_for_common", "rcu_dump_", "print_cpu_stall", "print_other_cpu_stall", "rcu_check_gp_",
    "__pfx_", "__cfi_", "ktime_get", "__stack_chk_fail", "print_unreferenced",
];

/// Beginnings of the names of functions that get memory: who asked them is to blame for a leak.
const ALLOCATORS: &[&str] = &[
    "kmemleak_",
    "kmalloc",
    "__kmalloc",
    "__do_kmalloc",
    "kmem_cache_alloc",
    "__kmem_cache_alloc",
    "slab_post_alloc",
    "slab_alloc",
    "__alloc_",
    "alloc_pages",
    "vmalloc",
    "__vmalloc",
    "kvmalloc",
    "__kvmalloc",
    "vzalloc",
    "kzalloc",
    "kcalloc",
    "devm_kmalloc",
    "pcpu_alloc",
    "__get_free_pages",
    "create_object",
    "kmemdup",
    "kstrdup",
];

/// Whether `function` is one of these.
pub(super) fn is_machinery(function: &str) -> bool {
    NAMES.contains(&function) || BEGINNINGS.iter().any(|beginning| function.starts_with(beginning))
}

/// Whether `function` gets memory for others.
pub(super) fn is_allocator(function: &str) -> bool {
    ALLOCATORS.iter().any(|beginning| function.starts_with(beginning))
}
