// SPDX-License-Identifier: GPL-2.0
/*
 * A KUnit suite with one case of every outcome. `fault` says what its fifth case does: nothing, `oops`, or `hang`.
 */
#include <kunit/test.h>
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/string.h>

static char *fault = "none";
module_param(fault, charp, 0444);
MODULE_PARM_DESC(fault, "what case faulty does: none, oops, hang");

static void passes(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, 1 + 1, 2);
}

static void fails(struct kunit *test)
{
	KUNIT_EXPECT_EQ(test, 1 + 1, 3);
}

static void skips(struct kunit *test)
{
	kunit_skip(test, "nothing to do");
}

static const int numbers[] = { 2, 4, 5 };
KUNIT_ARRAY_PARAM(number, numbers, NULL);

static void is_even(struct kunit *test)
{
	const int *number = test->param_value;

	KUNIT_EXPECT_EQ(test, *number % 2, 0);
}

/* Not sanitized: the CPU shall find it. */
static __no_sanitize_address void faulty(struct kunit *test)
{
	int *volatile nowhere = NULL;

	if (!strcmp(fault, "oops"))
		WRITE_ONCE(*nowhere, 1);
	if (!strcmp(fault, "hang"))
		for (;;)
			msleep(1000);
}

static void last(struct kunit *test)
{
	KUNIT_SUCCEED(test);
}

static struct kunit_case cases[] = {
	KUNIT_CASE(passes),
	KUNIT_CASE(fails),
	KUNIT_CASE(skips),
	KUNIT_CASE_PARAM(is_even, number_gen_params),
	KUNIT_CASE(faulty),
	KUNIT_CASE(last),
	{}
};

static struct kunit_suite suite = {
	.name = "planted",
	.test_cases = cases,
};
kunit_test_suite(suite);

MODULE_DESCRIPTION("Every outcome of a KUnit case");
MODULE_LICENSE("GPL");
