//! The balloon through the driver-side kit.

use std::time::Instant;

use super::*;
use crate::mem::{Backing, Ram};
use crate::virtio::kit::{Kit, LIMIT, Part};

const ALL: Wishes = Wishes { deflate_on_oom: true, stats: Some(Duration::from_millis(20)), reporting: true };
/// A part of RAM that the kit does not use, and its length.
const FREE: u64 = 8 << 20;
const LEN: u64 = 1 << 20;
const HIGH: u64 = 4 << 30;

fn kit(wishes: Wishes) -> (Kit, BalloonHandle) {
    let balloon = Balloon::new(wishes);
    let handle = balloon.handle.clone();
    (Kit::new(Box::new(balloon)), handle)
}

fn fill(kit: &Kit) {
    for at in [FREE, HIGH] {
        kit.ram.write(at, &vec![7; LEN as usize]).unwrap();
    }
}

/// Whether the page was given back: it reads as zeros.
fn gone(ram: &Ram, at: u64) -> bool {
    let mut page = [0; PAGE as usize];
    ram.read(at, &mut page).unwrap();
    assert!(page == [0; PAGE as usize] || page == [7; PAGE as usize], "half a page at {at:#x}");
    page[0] == 0
}

fn gone_pages(ram: &Ram, start: u64) -> Vec<u64> {
    (0..LEN / PAGE).filter(|page| gone(ram, start + page * PAGE)).collect()
}

fn numbers(pages: impl IntoIterator<Item = u64>) -> Vec<u8> {
    pages.into_iter().flat_map(|page| (page as u32).to_le_bytes()).collect()
}

#[test]
fn inflated_pages_are_given_back_again_after_a_reset() {
    let (mut kit, handle) = kit(ALL);
    for _ in 0..2 {
        kit.activate_on_loop(kit.device.info().features);
        fill(&kit);
        let first = FREE / PAGE;
        let list = numbers([first + 9, first + 3, HIGH / PAGE, first + 4, first + 3, first + 5]);
        kit.request(0, &[&list[..7], &list[7..]], &[]);
        assert_eq!(gone_pages(&kit.ram, FREE), [3, 4, 5, 9]);
        assert_eq!(gone_pages(&kit.ram, HIGH), [0]);
        kit.request(1, &[&list], &[]);
        kit.ram.write(FREE + 3 * PAGE, &[7; PAGE as usize]).unwrap();
        assert!(!gone(&kit.ram, FREE + 3 * PAGE));
        kit.device.write_config(CONFIG_ACTUAL, &5u32.to_le_bytes());
        assert_eq!(handle.actual(), 5 * PAGE);
        kit.reset();
        assert_eq!(handle.actual(), 0);
    }
}

#[test]
fn only_ram_is_given_back_whatever_the_guest_says() {
    let (mut kit, _) = kit(ALL);
    kit.activate(0);
    fill(&kit);
    let whole = numbers([u64::from(u32::MAX), u64::from(u32::MAX) - 1, 16 << 8, (HIGH >> 12) + (16 << 8), 1 << 19]);
    kit.request(0, &[&whole, &[1, 2, 3]], &[]);
    assert!(gone_pages(&kit.ram, FREE).is_empty() && gone_pages(&kit.ram, HIGH).is_empty());
    kit.request(0, &[&[0; 3]], &[]);
    kit.request(0, &[], &[64]);
    // Across the end of RAM.
    let end = 16 << 20;
    kit.ram.write(end - PAGE, &[7; PAGE as usize]).unwrap();
    kit.request(0, &[&numbers((end / PAGE) - 1..(end / PAGE) + 5)], &[]);
    assert!(gone(&kit.ram, end - PAGE));
    // All RAM as a list of pages, several times: takes no longer than a part of it.
    let start = Instant::now();
    kit.add(0, &[Part::OutAt(HIGH, 16 << 20); 60]);
    kit.notify(0);
    kit.wait_used(0);
    assert!(start.elapsed() < LIMIT);
    // The page that the ring is in: the driver's own loss.
    let ring = kit.layout(0).available;
    kit.add(0, &[Part::Out(&numbers([ring / PAGE]))]);
    kit.notify(0);
    kit.reset();
    kit.activate(0);
    fill(&kit);
    kit.request(0, &[&numbers([FREE / PAGE])], &[]);
    assert_eq!(gone_pages(&kit.ram, FREE), [0]);
}

#[test]
fn long_lists_are_taken_in_batches() {
    let (mut kit, _) = kit(ALL);
    let ram = Ram::new(&[(0, 64 << 20)], Backing::Anonymous).unwrap();
    kit.ram = ram;
    kit.activate(0);
    let pages: Vec<u64> = ((FREE / PAGE)..(FREE / PAGE) + 5000).collect();
    for &page in &pages {
        kit.ram.write(page * PAGE, &[7; PAGE as usize]).unwrap();
    }
    kit.request(0, &[&numbers(pages.iter().copied().rev())], &[]);
    assert!(pages.iter().all(|page| gone(&kit.ram, page * PAGE)));
}

#[test]
fn reported_ranges_are_given_back_whichever_queue_the_driver_uses() {
    // Consecutive numbers without and with statistics, and the specification's own.
    for (features, queue) in [(1 << F_REPORTING, 2), (1 << F_REPORTING | 1 << F_STATS_VQ, 3), (1 << F_REPORTING, 4)] {
        let (mut kit, _) = kit(ALL);
        kit.activate_on_loop(features);
        fill(&kit);
        let ranges = [
            Part::InAt(FREE, 4 * PAGE as u32),
            Part::InAt(HIGH + 100, 3 * PAGE as u32),
            Part::InAt(FREE + 8 * PAGE, 5),
        ];
        kit.add(queue, &ranges);
        kit.notify(queue);
        assert_eq!(kit.wait_used(queue).len, 0);
        assert_eq!(gone_pages(&kit.ram, FREE), [0, 1, 2, 3]);
        assert_eq!(gone_pages(&kit.ram, HIGH), [1, 2], "only whole pages");
    }
    let (mut kit, _) = kit(ALL);
    kit.activate(0);
    fill(&kit);
    kit.add(2, &[Part::InAt(FREE, PAGE as u32)]);
    kit.notify(2);
    kit.wait_used(2);
    assert!(gone_pages(&kit.ram, FREE).is_empty(), "not negotiated");
    kit.reset();
    kit.activate(1 << F_REPORTING);
    kit.add(2, &[Part::InAt(32 << 20, PAGE as u32)]);
    kit.notify(2);
    kit.wait_broken();
}

fn statistic(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

#[test]
fn statistics_are_asked_for_again_and_again() {
    let (mut kit, handle) = kit(ALL);
    for _ in 0..2 {
        kit.activate_on_loop(1 << F_STATS_VQ);
        assert!(handle.statistics().is_empty());
        for round in 1..4 {
            let bytes = [statistic(4, round), statistic(99, 1), statistic(5, 2 * round)].concat();
            kit.add(2, &[Part::Out(&bytes)]);
            kit.notify(2);
            kit.wait_used(2);
            assert_eq!(handle.statistics(), [("free-bytes", round), ("total-bytes", 2 * round)]);
        }
        kit.reset();
        assert_eq!(handle.report().guest["free_bytes"], 3, "for the report at the end");
    }
    kit.activate_on_loop(1 << F_STATS_VQ);
    kit.add(2, &[Part::Out(&statistic(4, 1).repeat(1000)), Part::Out(&[1])]);
    let second = kit.add(2, &[Part::Out(&[0; 9])]);
    kit.notify(2);
    assert_ne!(kit.wait_used(2).head, second, "the older one comes back at once");
    assert_eq!(kit.wait_used(2).head, second);
    assert_eq!(handle.statistics(), []);
}

#[test]
fn the_target_reaches_the_driver() {
    let (mut kit, handle) = kit(ALL);
    kit.activate_on_loop(0);
    handle.set_target(5 * PAGE + 17);
    assert_eq!(handle.target(), 5 * PAGE);
    let mut bytes = [0; 8];
    kit.device.config().read(0, &mut bytes);
    assert_eq!(bytes, [5, 0, 0, 0, 0, 0, 0, 0]);
    for (offset, data) in [(0, [1; 4].as_slice()), (4, &[1; 3]), (5, &[1; 4]), (usize::MAX, &[1; 4])] {
        kit.device.write_config(offset, data);
    }
    assert_eq!((handle.target(), handle.actual()), (5 * PAGE, 0), "the driver may say one thing only");
    handle.set_target(u64::MAX);
    assert_eq!(handle.target(), u64::from(u32::MAX) * PAGE);
}

#[test]
fn options_decide_what_is_offered() {
    let parse = |text: &str| Kind.parse(&mut Options::from_flag("balloon", KEYS, text).unwrap());
    let shown = format!("{:?}", parse("").unwrap());
    assert!(
        shown.contains("size: 0") && shown.contains("deflate_on_oom: true, stats: None, reporting: false"),
        "{shown}"
    );
    let shown = format!("{:?}", parse("64M,deflate-on-oom=off,stats=5,free-page-reporting").unwrap());
    assert!(shown.contains("deflate_on_oom: false, stats: Some(5s), reporting: true"), "{shown}");
    for bad in ["size=much", "stats=0", "deflate-on-oom=maybe"] {
        assert!(parse(bad).unwrap_err().to_string().starts_with("--balloon: "), "{bad}");
    }
    let none = Wishes { deflate_on_oom: false, stats: None, reporting: false };
    assert_eq!(Balloon::new(none).info().features, 0);
    assert_eq!(Balloon::new(ALL).info().features, 0b10_0110);
}
