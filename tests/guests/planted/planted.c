// SPDX-License-Identifier: GPL-2.0
/*
 * A module that does one thing wrong when it is loaded: insmod planted.ko fault=NAME. Tests look at what the kernel says
 * of it. Functions are named for their faults, so that reports can be told apart.
 */
#include <linux/irqflags.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>

static char *fault = "none";
module_param(fault, charp, 0444);
MODULE_PARM_DESC(fault, "what to do wrong");

static unsigned int seconds = 10;
module_param(seconds, uint, 0444);
MODULE_PARM_DESC(seconds, "how long what hangs does so");

/* Sizes and indices come from here, so that the compiler cannot see what is wrong. */
static volatile int eight = 8;
static volatile int forty = 40;
static void *volatile lost;

static DEFINE_MUTEX(first);
static DEFINE_MUTEX(second);
static DEFINE_SPINLOCK(spinning);

static noinline void planted_use_after_free(void)
{
	char *object = kmalloc(64, GFP_KERNEL);

	if (!object)
		return;
	kfree(object);
	WRITE_ONCE(object[eight], 1);
}

static noinline void planted_out_of_bounds(void)
{
	char *object = kmalloc(40, GFP_KERNEL);

	if (!object)
		return;
	WRITE_ONCE(object[forty], 1);
	kfree(object);
}

static noinline void planted_double_free(void)
{
	void *volatile object = kmalloc(64, GFP_KERNEL);

	kfree(object);
	kfree(object);
}

static noinline void planted_leak(void)
{
	lost = kmalloc(64, GFP_KERNEL);
	lost = NULL;
}

/* The sanitizer would report it too, before the CPU does. */
static noinline __no_sanitize_address void planted_null(void)
{
	int *volatile nowhere = NULL;

	WRITE_ONCE(*nowhere, 1);
}

static noinline void planted_warn(void)
{
	WARN_ON(eight == 8);
}

static noinline void planted_bug(void)
{
	BUG_ON(eight == 8);
}

static noinline void planted_panic(void)
{
	panic("planted");
}

static noinline void planted_shift(void)
{
	pr_info("planted: %d\n", 1 << forty);
}

/* One order, then the other. Nobody waits for anybody, but somebody could. */
static noinline void planted_lock_order(void)
{
	mutex_lock(&first);
	mutex_lock(&second);
	mutex_unlock(&second);
	mutex_unlock(&first);
	mutex_lock(&second);
	mutex_lock(&first);
	mutex_unlock(&first);
	mutex_unlock(&second);
}

static noinline void planted_sleep_in_atomic(void)
{
	spin_lock(&spinning);
	might_sleep();
	spin_unlock(&spinning);
}

static noinline void planted_rcu_use(void)
{
	static int object;
	static int __rcu *pointer = (int __rcu *)&object;

	pr_info("planted: %d\n", *rcu_dereference(pointer));
}

static void spin(void)
{
	unsigned long end = jiffies + seconds * HZ;

	while (time_before(jiffies, end))
		cpu_relax();
}

/* Jiffies may stand still with interrupts off. */
static void spin_without_jiffies(void)
{
	u64 end = ktime_get_ns() + seconds * NSEC_PER_SEC;

	while (ktime_get_ns() < end)
		cpu_relax();
}

static void nothing(struct rcu_head *head)
{
}

/* Nobody minds a long reader unless somebody waits for it; and that is found out on another CPU. */
static noinline void planted_rcu_stall(void)
{
	static struct rcu_head waiting;

	call_rcu(&waiting, nothing);
	rcu_read_lock();
	spin();
	rcu_read_unlock();
}

static noinline void planted_soft_lockup(void)
{
	preempt_disable();
	spin();
	preempt_enable();
}

static noinline void planted_hard_lockup(void)
{
	local_irq_disable();
	spin_without_jiffies();
	local_irq_enable();
}

static noinline void planted_hung_task(void)
{
	set_current_state(TASK_UNINTERRUPTIBLE);
	schedule_timeout(seconds * HZ);
}

static const struct {
	const char *name;
	void (*commit)(void);
} faults[] = {
	{ "use-after-free", planted_use_after_free },
	{ "out-of-bounds", planted_out_of_bounds },
	{ "double-free", planted_double_free },
	{ "leak", planted_leak },
	{ "null", planted_null },
	{ "warn", planted_warn },
	{ "bug", planted_bug },
	{ "panic", planted_panic },
	{ "shift", planted_shift },
	{ "lock-order", planted_lock_order },
	{ "sleep-in-atomic", planted_sleep_in_atomic },
	{ "rcu-use", planted_rcu_use },
	{ "rcu-stall", planted_rcu_stall },
	{ "soft-lockup", planted_soft_lockup },
	{ "hard-lockup", planted_hard_lockup },
	{ "hung-task", planted_hung_task },
};

static int __init planted_init(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(faults); i++) {
		if (strcmp(faults[i].name, fault))
			continue;
		faults[i].commit();
		return 0;
	}
	pr_err("planted: no such fault: %s\n", fault);
	return -EINVAL;
}

static void __exit planted_exit(void)
{
	rcu_barrier();
}

module_init(planted_init);
module_exit(planted_exit);
MODULE_DESCRIPTION("Faults for tests");
MODULE_LICENSE("GPL");
