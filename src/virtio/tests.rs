//! Queues, chains and workers, driven through the kit with a toy device.

use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

use crate::mem::{Backing, Ram};
use crate::virtio::config::ConfigSpace;
use crate::virtio::kit::{Descriptor, INDIRECT, Kit, NEXT, Part, WRITE};
use crate::virtio::queue::{BUDGET, Queues};
use crate::virtio::{ActivateError, Broken, Chain, Handler, Info, Interest, VirtioDevice};

/// Queue 0 echoes (readable bytes are copied to the writable part, a status byte ends it), queue 1 keeps its chains
/// until `tick` is written to, queue 2 gives chains back two at a time.
struct Toy {
    config: ConfigSpace,
    tick: EventFd,
    extra: EventFd,
    calls: Sender<usize>,
}

struct ToyHandler {
    tick: EventFd,
    extra: EventFd,
    kept: Vec<Chain>,
    pair: Vec<(Chain, u32)>,
    calls: Sender<usize>,
}

impl Toy {
    fn new() -> (Self, EventFd, EventFd, Receiver<usize>) {
        let fd = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let (tick, extra) = (fd(), fd());
        let (calls, called) = channel();
        let toy = Self {
            config: ConfigSpace::new(8),
            tick: tick.try_clone().unwrap(),
            extra: extra.try_clone().unwrap(),
            calls,
        };
        (toy, tick, extra, called)
    }
}

impl VirtioDevice for Toy {
    fn info(&self) -> Info {
        Info { id: 42, features: 3, queue_sizes: vec![16, 16, 8], blocking: false }
    }
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn activate(&mut self, _: u64) -> Result<Box<dyn Handler>, ActivateError> {
        Ok(Box::new(ToyHandler {
            tick: self.tick.try_clone().unwrap(),
            extra: self.extra.try_clone().unwrap(),
            kept: Vec::new(),
            pair: Vec::new(),
            calls: self.calls.clone(),
        }))
    }
}

impl Handler for ToyHandler {
    fn fds(&self) -> Vec<(i32, u32)> {
        vec![(self.tick.as_raw_fd(), 7)]
    }
    fn start(&mut self, queues: &mut Queues) -> Result<(), Broken> {
        queues.watch(self.extra.as_raw_fd(), 8, Interest::Read).map_err(|e| Broken(e.to_string()))
    }
    fn on_queue(&mut self, index: usize, queues: &mut Queues) -> Result<(), Broken> {
        self.calls.send(index).unwrap();
        while let Some(mut chain) = queues.queue(index).pop()? {
            match index {
                0 => {
                    chain.take_status()?;
                    let mut bytes = vec![0; chain.readable_len()];
                    chain.read_exact(&mut bytes)?;
                    chain.write(&bytes);
                    chain.set_status(0x55);
                    let written = chain.written();
                    queues.queue(index).push(chain, written)?;
                }
                1 => self.kept.push(chain),
                _ => {
                    self.pair.push((chain, 0));
                    if self.pair.len() == 2 {
                        queues.queue(index).push_all(&mut self.pair)?;
                    }
                }
            }
        }
        Ok(())
    }
    fn on_fd(&mut self, token: u32, queues: &mut Queues) -> Result<(), Broken> {
        if token == 8 {
            queues.unwatch(self.extra.as_raw_fd());
            queues.config_changed();
            queues.pause(7, false);
            return Ok(());
        }
        assert_eq!(token, 7);
        if self.kept.is_empty() {
            // Nothing to do with it: do not wake again until there is.
            queues.pause(7, true);
            return Ok(());
        }
        self.tick.read().unwrap();
        for mut chain in self.kept.drain(..) {
            chain.write_all(b"tick")?;
            queues.queue(1).push(chain, 4)?;
        }
        Ok(())
    }
}

fn kit() -> (Kit, EventFd, EventFd, Receiver<usize>) {
    let (toy, tick, extra, calls) = Toy::new();
    (Kit::new(Box::new(toy)), tick, extra, calls)
}

fn exercise(kit: &mut Kit, tick: &EventFd) {
    for round in 0..40u8 {
        let used = kit.request(0, &[&[round; 5], b"abc"], &[4, 300, 1]);
        assert_eq!(&used.data, &[&[round; 5][..], b"abc"].concat());
        assert_eq!(used.room.last(), Some(&0x55));
    }
    kit.add(1, &[Part::In(2), Part::In(6)]);
    kit.notify(1);
    assert!(kit.try_used(1).is_none());
    tick.write(1).unwrap();
    assert_eq!(kit.wait_used(1).data, b"tick");
}

#[test]
fn requests_work_here_and_on_a_loop_and_again_after_a_reset() {
    let (mut kit, tick, _, _calls) = kit();
    for event_idx in [true, false] {
        kit.event_idx(event_idx);
        kit.activate(1);
        exercise(&mut kit, &tick);
        kit.reset();
        kit.activate_on_loop(3);
        exercise(&mut kit, &tick);
        assert!(!kit.is_broken());
        kit.reset();
    }
}

#[test]
fn chains_may_be_indirect_and_lie_in_high_memory() {
    let (mut kit, _, _, _calls) = kit();
    kit.activate(0);
    let high = 1 << 32;
    kit.ram.write(high, b"from above").unwrap();
    kit.add_indirect(0, &[Part::OutAt(high, 4), Part::Out(b""), Part::OutAt(high + 4, 6), Part::In(10), Part::In(1)]);
    kit.notify(0);
    assert_eq!(kit.wait_used(0).data, b"from above");
    // More than the ring has descriptors would be too many, exactly as many is not.
    let parts: Vec<_> = (0..14).map(|_| Part::Out(b"x")).chain([Part::In(14), Part::In(1)]).collect();
    kit.add_indirect(0, &parts);
    kit.notify(0);
    assert_eq!(kit.wait_used(0).data, [b'x'; 14]);
}

#[test]
fn buffers_may_span_pieces_of_ram() {
    let (toy, _tick, _extra, _calls) = Toy::new();
    let ram = Ram::new(&[(0, 2 << 20), (2 << 20, 1 << 20)], Backing::Anonymous).unwrap();
    let mut kit = Kit::with_ram(Box::new(toy), ram);
    kit.activate(0);
    let at = (2 << 20) - 3;
    kit.ram.write(at, b"abcdef").unwrap();
    kit.add(0, &[Part::OutAt(at, 6), Part::InAt(at + 0x1000, 6), Part::In(1)]);
    kit.notify(0);
    assert_eq!(kit.wait_used(0).data, b"abcdef");
}

#[test]
fn what_a_driver_must_not_do_breaks_the_device_until_reset() {
    let d = |at, len, flags, next| Descriptor { at, len, flags, next };
    let table = 0x8000;
    let hostile: &[(&str, &[Descriptor])] = &[
        ("outside RAM", &[d(1 << 40, 4, WRITE, 0)]),
        ("wraps around", &[d(u64::MAX - 1, 4, WRITE, 0)]),
        ("runs into the hole", &[d((16 << 20) - 1, 2, WRITE, 0)]),
        ("loops", &[d(0x9000, 4, NEXT, 1), d(0x9000, 4, NEXT, 0)]),
        ("next is no descriptor", &[d(0x9000, 4, NEXT, 99)]),
        ("readable after writable", &[d(0x9000, 4, NEXT | WRITE, 1), d(0x9000, 4, 0, 0)]),
        ("no bytes", &[d(0x9000, 0, NEXT, 1), d(0x9000, 0, WRITE, 0)]),
        ("no status byte", &[d(0x9000, 4, 0, 0)]),
        ("4 GiB in all", &[d(0, u32::MAX, NEXT, 1), d(0, 2, 0, 0)]),
        ("odd table", &[d(table, 24, INDIRECT, 0)]),
        ("empty table", &[d(table, 0, INDIRECT, 0)]),
        ("table outside RAM", &[d(1 << 40, 32, INDIRECT, 0)]),
        ("nested table", &[d(0x7000, 16, INDIRECT, 0)]),
        ("table after a descriptor is odd", &[d(0x9000, 4, NEXT, 1), d(table, 8, INDIRECT, 0)]),
        ("huge table", &[d(table, !15, INDIRECT, 0)]),
        ("table of many", &[d(0x10_0000, 1 << 19, INDIRECT, 0)]),
    ];
    let (mut kit, tick, _, calls) = kit();
    for &(what, descriptors) in hostile {
        kit.activate(0);
        kit.ram.write(0x7000, &[&table.to_le_bytes()[..], &[16, 0, 0, 0, INDIRECT as u8, 0, 0, 0]].concat()).unwrap();
        for slot in 0..(1 << 15) {
            let entry = [&0x9000u64.to_le_bytes()[..], &[1, 0, 0, 0, NEXT as u8, 0], &(slot as u16 + 1).to_le_bytes()];
            kit.ram.write(0x10_0000 + slot * 16, &entry.concat()).unwrap();
        }
        for (slot, descriptor) in descriptors.iter().enumerate() {
            kit.write_descriptor(0, slot as u16, *descriptor);
        }
        kit.publish(0, 0);
        kit.notify(0);
        assert!(kit.is_broken(), "{what}");
        while calls.try_recv().is_ok() {}
        kit.notify(1);
        assert!(calls.try_recv().is_err(), "{what}: a broken device is called no more");
        kit.reset();
    }
    kit.activate(0);
    exercise(&mut kit, &tick);
}

#[test]
fn heads_and_indices_out_of_range_break_the_device() {
    let (mut kit, _, _, _calls) = kit();
    kit.activate(0);
    kit.publish(0, 16);
    kit.notify(0);
    assert!(kit.is_broken());
    kit.reset();
    kit.activate_on_loop(0);
    kit.write_available_index(0, 17);
    kit.notify(0);
    kit.wait_broken();
    kit.reset();
    // One chain made available over and over while the device holds it.
    kit.activate(0);
    let head = kit.add(1, &[Part::In(4)]);
    for _ in 0..40 {
        kit.publish(1, head);
        kit.notify(1);
    }
    assert!(kit.is_broken());
}

#[test]
fn notifications_are_off_while_the_device_works_and_on_when_it_waits() {
    let (mut kit, _, _, _calls) = kit();
    for event_idx in [true, false] {
        kit.event_idx(event_idx);
        kit.activate(0);
        assert!(kit.wants_notification(0));
        kit.request(0, &[b"a"], &[1, 1]);
        assert!(kit.wants_notification(0), "event_idx {event_idx}");
        let before = kit.interrupts(0);
        kit.suppress_interrupts(0, 5);
        for _ in 0..3 {
            kit.add(0, &[Part::Out(b"a"), Part::In(1), Part::In(1)]);
        }
        kit.notify(0);
        assert_eq!(kit.interrupts(0), before, "event_idx {event_idx}");
        kit.reset();
    }
    // Under EVENT_IDX the interrupt comes with the entry that was asked for, and only once.
    kit.event_idx(true);
    kit.activate(0);
    kit.suppress_interrupts(0, 2);
    let counts: Vec<_> = (0..5)
        .map(|_| {
            kit.add(0, &[Part::Out(b"a"), Part::In(1)]);
            kit.notify(0);
            kit.interrupts(0)
        })
        .collect();
    assert_eq!(counts, [0, 0, 1, 1, 1]);
}

#[test]
fn several_chains_can_come_back_at_once() {
    let (mut kit, _, _, _calls) = kit();
    kit.activate(0);
    for round in 0..20 {
        let first = kit.add(2, &[Part::In(1)]);
        kit.notify(2);
        assert!(kit.try_used(2).is_none());
        let second = kit.add(2, &[Part::In(1)]);
        kit.notify(2);
        assert_eq!((kit.wait_used(2).head, kit.wait_used(2).head), (first, second));
        assert_eq!(kit.interrupts(2), round + 1);
    }
}

#[test]
fn watched_and_paused_descriptors() {
    for on_loop in [false, true] {
        let (mut kit, tick, extra, _calls) = kit();
        if on_loop {
            kit.activate_on_loop(0);
        } else {
            kit.activate(0);
        }
        // Nobody waits for the tick: the handler pauses it instead of being woken for ever.
        tick.write(1).unwrap();
        if !on_loop {
            assert!(kit.poll_fds(Duration::from_secs(1)));
            assert!(!kit.poll_fds(Duration::ZERO));
        }
        std::thread::sleep(Duration::from_millis(20));
        kit.add(1, &[Part::In(4)]);
        kit.notify(1);
        assert!(kit.used_within(1, Duration::from_millis(50)).is_none());
        extra.write(1).unwrap();
        assert_eq!(kit.wait_used(1).data, b"tick");
        assert_eq!(kit.config_interrupts(), 1);
        kit.reset();
    }
}

/// Gives each chain back and makes it available again at once: a driver that never stops.
struct Endless {
    /// It does so only when the device has found the queue empty.
    late: bool,
}
struct EndlessHandler {
    done: u32,
    late: bool,
}
impl EndlessHandler {
    fn available_again(&self, queues: &Queues) {
        if self.done < 2000 {
            let layout_of_test = 0x1_0000 + 8 * 16;
            let index = (self.done + 1) as u16;
            queues.ram().write(layout_of_test + 2, &index.to_le_bytes()).unwrap();
        }
    }
}
impl VirtioDevice for Endless {
    fn info(&self) -> Info {
        Info { id: 1, features: 0, queue_sizes: vec![8], blocking: false }
    }
    fn config(&self) -> &ConfigSpace {
        static EMPTY: std::sync::OnceLock<ConfigSpace> = std::sync::OnceLock::new();
        EMPTY.get_or_init(|| ConfigSpace::new(0))
    }
    fn activate(&mut self, _: u64) -> Result<Box<dyn Handler>, ActivateError> {
        Ok(Box::new(EndlessHandler { done: 0, late: self.late }))
    }
}
impl Handler for EndlessHandler {
    fn on_queue(&mut self, _: usize, queues: &mut Queues) -> Result<(), Broken> {
        let mut turn = 0;
        while let Some(chain) = queues.queue(0).pop()? {
            turn += 1;
            self.done += 1;
            queues.queue(0).push(chain, 0)?;
            if !self.late {
                self.available_again(queues);
            }
        }
        if self.late {
            self.available_again(queues);
        }
        assert!(turn <= BUDGET);
        Ok(())
    }
}

#[test]
fn a_driver_that_never_stops_does_not_keep_the_loop() {
    for (late, on_loop) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut kit = Kit::new(Box::new(Endless { late }));
        if on_loop {
            kit.activate_on_loop(0);
        } else {
            kit.activate(0);
        }
        assert_eq!(kit.layout(0).available, 0x1_0080);
        kit.add(0, &[Part::In(1)]);
        kit.notify(0);
        let mut bytes = [0; 2];
        let start = std::time::Instant::now();
        while u16::from_le_bytes(bytes) != 2000 {
            assert!(start.elapsed() < Duration::from_secs(10));
            kit.ram.read(kit.layout(0).used + 2, &mut bytes).unwrap();
        }
        assert!(!kit.is_broken());
        kit.reset();
    }
}
