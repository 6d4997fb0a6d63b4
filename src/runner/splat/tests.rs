//! Reports as kernels print them: what is made of them, whole, cut off, and mixed with others.

use super::samples::{SAMPLES, Sample};
use super::{Ignore, Policy, Scanner};
use crate::runner::outcome::SplatKind::*;
use crate::runner::outcome::{Action, Splat};

/// All reports in `lines`, and whether the kernel died.
fn scan_lines<'a>(lines: impl IntoIterator<Item = &'a str>) -> (Vec<Splat>, bool) {
    let mut scanner = Scanner::new(Policy::default());
    let mut splats = Vec::new();
    for (line, number) in lines.into_iter().zip(1..) {
        splats.extend(scanner.line(line, number, Some("suite/case")));
    }
    splats.extend(std::iter::from_fn(|| scanner.finish()));
    splats.sort_by_key(|splat| splat.lines);
    (splats, scanner.dead())
}

fn scan(text: &str) -> (Vec<Splat>, bool) {
    scan_lines(text.lines())
}

fn titles(splats: &[Splat]) -> Vec<&str> {
    splats.iter().map(|splat| splat.title.as_str()).collect()
}

fn sample(name: &str) -> &'static Sample {
    SAMPLES.iter().find(|sample| sample.name == name).unwrap()
}

#[test]
fn each_report_is_one_splat_with_its_title() {
    for sample in SAMPLES {
        let (splats, dead) = scan(sample.text);
        assert_eq!(titles(&splats), [sample.title], "{}", sample.name);
        assert_eq!(splats[0].kind, sample.kind, "{}", sample.name);
        assert_eq!(splats[0].case.as_deref(), Some("suite/case"));
        assert_eq!(dead, sample.text.contains("Kernel panic"), "{}", sample.name);
    }
}

#[test]
fn a_report_is_its_lines_and_no_others() {
    let lines = |name: &str| {
        let splat = scan(sample(name).text).0.remove(0);
        let mut text = splat.text.lines();
        (splat.lines, text.next().unwrap_or_default().to_string(), text.last().unwrap_or_default().to_string())
    };
    let banner = "=".repeat(66);
    assert_eq!(lines("kasan"), ((2, 39), banner.clone(), banner));
    let ((first, last), begin, end) = lines("warning");
    assert_eq!((first, last, begin.as_str()), (1, 14, "------------[ cut here ]------------"));
    assert_eq!(end, "---[ end trace 0000000000000000 ]---");
    assert_eq!(lines("deadlock").0, (2, 46));
    assert_eq!(lines("atomic-sleep").2, " </TASK>");
    assert_eq!(lines("kmemleak").0, (1, 8));
    assert_eq!(lines("oops").2, "---[ end Kernel panic - not syncing: Fatal exception ]---");
    assert_eq!(lines("hung-task").0, (1, 22));
    // Nobody's business, in the middle.
    let stall = scan(sample("rcu-stall").text).0.remove(0);
    assert!(!stall.text.contains("usb") && stall.text.contains("rcu_gp_fqs_loop"), "{}", stall.text);
}

#[test]
fn a_report_that_is_cut_off_keeps_its_kind_and_is_never_two() {
    for sample in SAMPLES {
        let lines: Vec<_> = sample.text.lines().collect();
        for count in 0..lines.len() {
            let (splats, _) = scan_lines(lines[..count].iter().copied());
            assert!(splats.len() <= 1, "{} after {count} lines: {:?}", sample.name, titles(&splats));
        }
        // What comes before the trace is enough to know it.
        let (splats, _) = scan_lines(lines[..5].iter().copied());
        assert_eq!(splats.len(), 1, "{}", sample.name);
    }
}

#[test]
fn one_after_another_without_anything_between() {
    // The stalls are the same to a reader of titles.
    let alive: Vec<_> = SAMPLES
        .iter()
        .filter(|sample| sample.name != "rcu-self-6.1" && !sample.text.contains("Kernel panic"))
        .collect();
    let text: String = alive.iter().map(|sample| sample.text).collect();
    let (splats, dead) = scan(&text);
    let expected: Vec<_> = alive.iter().map(|sample| sample.title).collect();
    assert_eq!(titles(&splats), expected);
    assert!(!dead);
}

#[test]
fn the_caller_tells_interleaved_reports_apart() {
    let called = |name: &str, caller: &str| -> Vec<String> {
        let line = |line: &str| match line.split_once(']') {
            Some((time, rest)) => format!("{time}][{caller:>5}]{rest}"),
            None => line.to_owned(),
        };
        sample(name).text.lines().map(line).collect()
    };
    let (one, two, three) = (called("kasan", "T77"), called("warning", "T78"), called("deadlock", "C1"));
    let longest = one.len().max(two.len()).max(three.len());
    let mixed: Vec<_> = (0..longest)
        .flat_map(|index| [one.get(index), two.get(index), three.get(index)])
        .flatten()
        .map(String::as_str)
        .collect();
    let (splats, _) = scan_lines(mixed);
    let mut found = titles(&splats);
    found.sort_unstable();
    let expected =
        ["KASAN: slab-use-after-free Read in read_it", "WARNING in put_it", "possible deadlock in take_b_then_a"];
    assert_eq!(found, expected);
    for splat in &splats {
        let own = scan(
            sample(["kasan", "warning", "deadlock"][expected.iter().position(|t| *t == splat.title).unwrap()]).text,
        );
        assert_eq!(splat.text, own.0[0].text);
    }
}

#[test]
fn output_of_programs_is_no_part_of_a_report() {
    let (before, after) = sample("warning").text.split_at(sample("warning").text.find("[   10.000401]").unwrap());
    let (splats, _) = scan(&format!("{before}ok 1 - a program's\n------------[ cut here ]------------\n{after}"));
    assert_eq!(titles(&splats), ["WARNING in put_it"]);
    assert!(!splats[0].text.contains("program"), "{}", splats[0].text);
}

#[test]
fn after_a_panic_nothing_begins() {
    let text = format!("{}{}", sample("oops").text, sample("warning").text);
    assert_eq!(titles(&scan(&text).0), ["BUG: unable to handle kernel NULL pointer dereference in follow_it"]);
    // A panic that has nothing to do with the warning before it.
    let (splats, dead) = scan(&format!("{}{}", sample("warning").text, sample("panic").text));
    assert_eq!(splats.len(), 2);
    assert!(dead);
}

#[test]
fn a_stall_that_goes_on_is_one_fault() {
    let one = sample("hung-task").text.split("[  242.002001]").next().unwrap();
    let again = one.replace("120 seconds", "241 seconds");
    let (splats, _) = scan(&format!("{one}{again}{}{again}", sample("hard-lockup").text));
    assert_eq!(titles(&splats), ["INFO: task hung in wait_for_ever", "hard lockup in spin_without_interrupts"]);
    // A warning that comes again is another.
    assert_eq!(scan(&sample("warning").text.repeat(3)).0.len(), 3);
}

#[test]
fn leaks_are_told_once_and_blame_nobody_else() {
    let one = sample("kmemleak").text.split("[   70.000801]").next().unwrap();
    let sum = "[   70.100000] kmemleak: 2 new suspected memory leaks (see /sys/kernel/debug/kmemleak)\n";
    let gone = one.replace("forget_it+0x2a/0x40 [belljar_bad]", "0xffffffffa0000262");
    let (splats, _) = scan(&format!("{one}{gone}{sum}"));
    assert_eq!(titles(&splats), ["memory leak in forget_it", "memory leak in an unloaded module"]);
    assert!(splats[1].text.ends_with("(see /sys/kernel/debug/kmemleak)"), "{splats:?}");
    assert_eq!(titles(&scan(sum).0), ["kmemleak: new suspected memory leaks"]);
}

#[test]
fn what_the_kernel_guesses_is_better_than_nothing() {
    let text =
        sample("jump-to-null").text.replace("  call_it+", "  ? __pfx_call_it+0x1/0x2\n[    4.001701]  ? call_it+");
    assert_eq!(titles(&scan(&text).0), ["BUG: unable to handle kernel paging request in call_it"]);
}

#[test]
fn ordinary_output_is_no_report() {
    let text = "\
[    0.000000] Linux version 6.12.117
[    1.000000] ------------[ cut here ]------------
[    1.000100] somebody prints lines like this
======================================================
a heading of a program
======================================================
[    2.000000] WARNING: this is no location
[    2.000100] kmemleak: Kernel memory leak detector initialized
[    2.000200] sh[12]: segfault at 0 ip 0000 sp 0000 error 4
ok 1 - BUG: in a name
";
    assert_eq!(scan(text), (Vec::new(), false));
}

#[test]
fn the_policy_judges() {
    let policy = Policy {
        splats: [(Kasan, Action::Warn)].into(),
        ignore_splats: vec![Ignore::new("^WARNING in put_it$", Some("^suite/")).unwrap()],
    };
    let mut scanner = Scanner::new(policy);
    let text = ["kasan", "warning", "bug"].map(|name| sample(name).text).concat();
    let mut actions = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        actions.extend(scanner.line(line, number, Some("suite/case")).map(|splat| splat.action));
    }
    actions.extend(std::iter::from_fn(|| scanner.finish()).map(|splat| splat.action));
    assert_eq!(actions, [Action::Warn, Action::Ignore, Action::Fail]);
}

#[test]
fn memory_stays_bounded() {
    let mut scanner = Scanner::new(Policy::default());
    let long = "x".repeat(16 << 10);
    let mut bytes = 0;
    for number in 0..3_000_u64 {
        let line = match number % 100 {
            0 => format!("[    1.000000][T{number}] BUG: KASAN: {long}"),
            _ => format!("[    1.000000][T{}] {long}", number / 100 * 100),
        };
        bytes += scanner.line(&line, number, None).map_or(0, |splat| splat.text.len() + splat.title.len());
    }
    bytes += std::iter::from_fn(|| scanner.finish()).map(|splat| splat.text.len()).sum::<usize>();
    assert!(bytes < 30 * (130 << 10), "{bytes}");
}
