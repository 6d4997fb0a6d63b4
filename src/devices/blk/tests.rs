//! Every request, every way to do it, and what no driver should do.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::request::MAX_RANGES;
use super::*;
use crate::block::Topology;
use crate::host::vectored::IoBuf;
use crate::virtio::kit::{Descriptor, INDIRECT, Kit, LIMIT, NEXT, Part, Used, WRITE};

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const ZEROES: u32 = 13;

const FLUSH_BIT: u64 = 1 << 9;

/// Bytes of the images below.
const SIZE: usize = 4 << 20;

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 512 * 13 + i % 512 + seed) as u8).collect()
}

fn spec(text: &str) -> Result<DiskSpec, OptionError> {
    let options = Options::from_flag("disk", KEYS, text)?;
    Kind.parse(&mut options.clone())?;
    parse(&options)
}

fn image(folder: &Path) -> String {
    let path = folder.join("disk.img");
    std::fs::write(&path, pattern(SIZE, 1)).unwrap();
    path.to_str().unwrap().into()
}

fn kit(text: &str) -> Kit {
    Kit::new(Box::new(Blk::open(&spec(text).unwrap(), false).unwrap_or_else(|e| panic!("{text}: {e}"))))
}

fn features(kit: &Kit) -> u64 {
    kit.device.info().features
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [kind.to_le_bytes().as_slice(), &[0; 4], &sector.to_le_bytes()].concat()
}

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [sector.to_le_bytes().as_slice(), &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

fn status(used: &Used) -> u8 {
    *used.room.last().unwrap()
}

fn read(kit: &mut Kit, sector: u64, len: usize) -> (u8, Vec<u8>) {
    let used = kit.request(0, &[&header(IN, sector)], &[len, 1]);
    let complete = status(&used) == OK;
    assert_eq!(used.len as usize, if complete { len + 1 } else { 0 });
    (status(&used), used.room[..len].to_vec())
}

fn send(kit: &mut Kit, kind: u32, sector: u64, data: &[u8]) -> u8 {
    let head = header(kind, sector);
    let parts: &[&[u8]] = if data.is_empty() { &[&head] } else { &[&head, data] };
    let used = kit.request(0, parts, &[1]);
    assert_eq!(used.len, 1);
    status(&used)
}

/// All ways to have a disk of [`SIZE`] bytes with [`pattern`] 1 in it. The second part: changes survive a reopening.
fn ways(folder: &Path) -> Vec<(String, bool)> {
    let path = image(folder);
    let mut ways = vec![
        (format!("{path},aio=sync"), true),
        (format!("{path},aio=io_uring"), true),
        (path.clone(), true),
        (format!("{path},snapshot"), false),
        (format!("{path},aio=sync,queues=3,queue-size=16"), true),
    ];
    if crate::mem::file_ring::FileRing::probe().is_err() {
        eprintln!("\nSKIPPED: io_uring is refused by the host; aio=io_uring falls back to sync here");
    }
    let qcow2 = folder.join("disk.qcow2");
    let convert = ["convert", "-f", "raw", "-O", "qcow2", &path, qcow2.to_str().unwrap()];
    match std::process::Command::new("qemu-img").args(convert).status() {
        Ok(status) if status.success() => ways.push((qcow2.to_str().unwrap().into(), true)),
        _ => eprintln!("\nSKIPPED: no qemu-img (apt-get install qemu-utils)"),
    }
    ways
}

#[test]
fn every_request_works_in_every_way_again_after_a_reset() {
    let dir = tempfile::tempdir().unwrap();
    for (way, keeps) in ways(dir.path()) {
        std::fs::write(dir.path().join("disk.img"), pattern(SIZE, 1)).unwrap();
        let mut kit = kit(&format!("{way},serial=S-1"));
        let all = features(&kit);
        for round in 0..2 {
            kit.activate_on_loop(all);
            assert_eq!(read(&mut kit, 8, 4096), (OK, pattern(SIZE, 1)[4096..8192].to_vec()), "{way}");
            let data = pattern(70_144, 40 + round);
            assert_eq!(send(&mut kit, OUT, 1000, &data), OK, "{way}");
            assert_eq!(send(&mut kit, FLUSH, 0, &[]), OK);
            assert_eq!(read(&mut kit, 1000, data.len()), (OK, data.clone()), "{way}");
            assert_eq!(send(&mut kit, ZEROES, 0, &[range(1010, 3, 0), range(1020, 8, 1)].concat()), OK);
            let mut zeroed = data.clone();
            zeroed[10 * 512..13 * 512].fill(0);
            zeroed[20 * 512..28 * 512].fill(0);
            assert_eq!(read(&mut kit, 1000, data.len()), (OK, zeroed), "{way}");
            assert_eq!(send(&mut kit, DISCARD, 0, &range(2048, 128, 0)), OK, "{way}");
            let id = kit.request(0, &[&header(GET_ID, 0)], &[20, 1]);
            assert_eq!((id.len, &id.room[..4]), (21, b"S-1\0".as_slice()));
            assert_eq!(send(&mut kit, 99, 0, &[]), UNSUPP);
            kit.reset();
        }
        drop(kit);
        let mut again = self::kit(&way);
        again.activate(features(&again));
        let expected =
            if keeps { pattern(70_144, 41)[..512].to_vec() } else { pattern(SIZE, 1)[512_000..512_512].to_vec() };
        assert_eq!(read(&mut again, 1000, 512), (OK, expected), "{way}");
    }
}

#[test]
fn requests_that_are_wrong_get_an_error_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for (way, _) in ways(dir.path()) {
        let mut kit = kit(&way);
        kit.activate(features(&kit));
        let sectors = (SIZE / 512) as u64;
        let data = [0x77; 1024];
        for sector in [sectors - 1, sectors, u64::MAX, u64::MAX / 512, 1 << 55] {
            assert_eq!(send(&mut kit, OUT, sector, &data), IOERR, "{way} {sector}");
            let (status, room) = read(&mut kit, sector, 1024);
            assert_eq!(status, IOERR);
            assert!(room.iter().all(|&b| b == 0xa5), "nothing may be written");
        }
        assert_eq!(send(&mut kit, OUT, 0, &data[..1000]), IOERR);
        assert_eq!(send(&mut kit, OUT, 0, &[]), IOERR);
        assert_eq!(read(&mut kit, 0, 511).0, IOERR);
        // Data in the wrong direction: nothing to write, nothing to read into.
        let used = kit.request(0, &[&header(OUT, 0)], &[512, 1]);
        assert_eq!((used.len, status(&used)), (0, IOERR));
        let used = kit.request(0, &[&header(IN, 0), &data], &[1]);
        assert_eq!((used.len, status(&used)), (1, IOERR));
        // Headers that are short or in pieces.
        let used = kit.request(0, &[&header(FLUSH, 0)[..15]], &[1]);
        assert_eq!(status(&used), IOERR);
        let used = kit.request(0, &[], &[1]);
        assert_eq!(status(&used), IOERR);
        let head = header(IN, 0);
        let used = kit.request(0, &[&head[..3], &head[3..9], &head[9..]], &[100, 411, 1, 1]);
        assert_eq!((used.len, &used.room[..512]), (513, &pattern(SIZE, 1)[..512]), "{way}");
        for (kind, ranges, expected) in [
            (DISCARD, range(sectors - 1, 2, 0), IOERR),
            (DISCARD, range(0, 0, 0), IOERR),
            (DISCARD, range(0, 1, 1), UNSUPP),
            (DISCARD, range(u64::MAX, 1, 0), IOERR),
            (DISCARD, range(0, u32::MAX, 0), IOERR),
            (DISCARD, range(0, 1, 0)[..15].to_vec(), IOERR),
            (DISCARD, vec![0; 16 * (MAX_RANGES as usize + 1)], IOERR),
            (ZEROES, range(0, 1, 2), UNSUPP),
            (ZEROES, [range(0, 1, 0), range(sectors, 1, 0)].concat(), IOERR),
            (ZEROES, Vec::new(), IOERR),
        ] {
            assert_eq!(send(&mut kit, kind, 0, &ranges), expected, "{way} {kind} {ranges:?}");
        }
        assert_eq!(read(&mut kit, 0, 4096), (OK, pattern(SIZE, 1)[..4096].to_vec()), "{way}");
        assert!(!kit.is_broken());
        kit.reset();
        kit.activate(features(&kit));
        assert_eq!(read(&mut kit, 0, 512).0, OK);
    }
}

#[test]
fn a_request_without_room_for_its_status_stops_the_device_until_reset() {
    let dir = tempfile::tempdir().unwrap();
    let mut kit = kit(&image(dir.path()));
    kit.activate(features(&kit));
    kit.add(0, &[Part::Out(&header(FLUSH, 0))]);
    kit.notify(0);
    kit.wait_broken();
    kit.reset();
    kit.activate(features(&kit));
    assert_eq!(send(&mut kit, FLUSH, 0, &[]), OK);
}

#[test]
fn read_only_disks_refuse_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    for aio in ["sync", "io_uring", "auto"] {
        let mut kit = kit(&format!("{path},readonly,aio={aio}"));
        let bits = features(&kit);
        assert!(bits & (1 << VIRTIO_BLK_F_RO) != 0 && bits & FLUSH_BIT == 0);
        kit.activate(bits);
        assert_eq!(send(&mut kit, OUT, 0, &[1; 512]), IOERR);
        assert_eq!(send(&mut kit, ZEROES, 0, &range(0, 1, 0)), IOERR);
        assert_eq!(send(&mut kit, DISCARD, 0, &range(0, 1, 0)), IOERR);
        assert_eq!(send(&mut kit, FLUSH, 0, &[]), OK);
        assert_eq!(read(&mut kit, 0, 512).1, pattern(512, 1));
        kit.reset();
        kit.activate(bits);
        assert_eq!(read(&mut kit, 0, 512).0, OK);
    }
    assert!(std::fs::read(&path).unwrap() == pattern(SIZE, 1));
}

#[test]
fn a_reset_may_come_at_any_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    for aio in ["sync", "io_uring", "auto"] {
        let mut kit = kit(&format!("{path},aio={aio}"));
        let bits = features(&kit);
        for round in 0..20 {
            kit.activate_on_loop(bits);
            let data = pattern(65_536, round);
            for request in 0..20 {
                let sector = request * 128;
                if request % 2 == 0 {
                    kit.add(0, &[Part::Out(&header(OUT, sector)), Part::Out(&data), Part::In(1)]);
                } else {
                    kit.add(0, &[Part::Out(&header(IN, sector)), Part::In(65_536), Part::In(1)]);
                }
                kit.notify(0);
            }
            for _ in 0..round {
                let used = kit.wait_used(0);
                assert_eq!(status(&used), OK);
            }
            kit.reset();
            // Nothing may move any more: this memory is the guest's again.
            kit.ram.write(0x1_0000, &vec![0x5a; 4 << 20]).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(2));
            let mut seen = vec![0; 4 << 20];
            kit.ram.read(0x1_0000, &mut seen).unwrap();
            assert!(seen.iter().all(|&b| b == 0x5a), "{aio}: written to after the reset");
        }
        kit.activate_on_loop(bits);
        assert_eq!(read(&mut kit, 1, 512).0, OK);
    }
}

#[test]
fn many_requests_in_flight_all_come_back_right() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    for aio in ["sync", "io_uring", "auto"] {
        std::fs::write(&path, pattern(SIZE, 1)).unwrap();
        let mut kit = kit(&format!("{path},aio={aio},queues=2"));
        kit.activate_on_loop(features(&kit));
        let mut expected: [BTreeMap<u16, u64>; 2] = Default::default();
        for request in 0..400u64 {
            let queue = (request % 2) as usize;
            let sector = request * 7 % 4000;
            let head = kit.add_indirect(queue, &[Part::Out(&header(IN, sector)), Part::In(1536), Part::In(1)]);
            expected[queue].insert(head, sector);
            if request % 5 == 0 {
                kit.notify(queue);
            }
        }
        let bytes = pattern(SIZE, 1);
        for (queue, requests) in expected.iter_mut().enumerate() {
            kit.notify(queue);
            while !requests.is_empty() {
                let used = kit.wait_used(queue);
                let at = requests.remove(&used.head).unwrap() as usize * 512;
                assert_eq!((used.len, status(&used)), (1537, OK));
                assert!(used.room[..1536] == bytes[at..at + 1536], "{aio}");
            }
        }
    }
}

#[test]
fn a_guest_learns_of_a_new_size_and_survives_a_file_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    for aio in ["sync", "io_uring", "auto"] {
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(SIZE as u64).unwrap();
        let mut kit = kit(&format!("{path},aio={aio}"));
        kit.activate_on_loop(features(&kit));
        file.set_len(4096).unwrap();
        // Whether or not the device has seen it yet.
        assert_eq!(read(&mut kit, 4000, 512).0, IOERR);
        let capacity = |kit: &Kit| {
            let mut bytes = [0; 8];
            kit.device.config().read(field::CAPACITY, &mut bytes);
            u64::from_le_bytes(bytes)
        };
        for (len, sectors) in [(4096, 8), (1 << 40, 1 << 31)] {
            file.set_len(len).unwrap();
            let start = Instant::now();
            while capacity(&kit) != sectors || kit.config_interrupts() == 0 {
                assert!(start.elapsed() < LIMIT, "{aio}: {}", capacity(&kit));
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        assert_eq!(read(&mut kit, (1 << 31) - 1, 512), (OK, vec![0; 512]));
    }
}

#[test]
fn a_file_that_cannot_grow_means_errors_for_the_guest_only() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    use std::os::fd::AsRawFd;
    for aio in ["sync", "io_uring", "auto"] {
        let file = std::fs::File::from(memfd_create("disk", MemfdFlags::ALLOW_SEALING).unwrap());
        file.write_all_at(&pattern(SIZE, 1), 0).unwrap();
        let mut kit = kit(&format!("/proc/self/fd/{},aio={aio}", file.as_raw_fd()));
        kit.activate_on_loop(features(&kit));
        file.set_len(65_536).unwrap();
        fcntl_add_seals(&file, SealFlags::GROW).unwrap();
        // The size is looked at every so often, so either the disk has no such sector or the file cannot be written.
        for _ in 0..50 {
            assert_eq!(send(&mut kit, OUT, 1000, &[1; 4096]), IOERR);
        }
        assert_eq!(read(&mut kit, 100, 512), (OK, pattern(SIZE, 1)[51_200..51_712].to_vec()));
    }
}

/// A disk that only counts.
#[derive(Debug, Default, Clone)]
struct Counting {
    calls: Arc<Mutex<Vec<(&'static str, usize)>>>,
    flushes: Arc<AtomicUsize>,
}

impl Disk for Counting {
    fn size(&self) -> u64 {
        1 << 30
    }
    fn topology(&self) -> Topology {
        Topology { logical_block: 512, physical_block: 4096, discard_block: 65_536 }
    }
    fn read(&mut self, _: u64, into: &[IoBuf]) -> std::io::Result<()> {
        self.calls.lock().unwrap().push(("read", into.len()));
        Ok(())
    }
    fn write(&mut self, _: u64, from: &[IoBuf]) -> std::io::Result<()> {
        self.calls.lock().unwrap().push(("write", from.len()));
        Ok(())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn discard(&mut self, _: u64, _: u64) -> std::io::Result<()> {
        Ok(())
    }
    fn write_zeroes(&mut self, _: u64, _: u64, _: bool) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn writes_are_permanent_at_once_unless_the_driver_can_flush() {
    let disk = Counting::default();
    let blk = Blk::over(Box::new(disk.clone()), &spec("x").unwrap(), Way::Sync, None);
    let mut kit = Kit::new(Box::new(blk));
    let all = features(&kit);
    let flushes = || disk.flushes.swap(0, Ordering::Relaxed);
    kit.activate(all & !FLUSH_BIT);
    assert_eq!(send(&mut kit, OUT, 0, &[1; 512]), OK);
    assert_eq!(send(&mut kit, ZEROES, 0, &range(0, 1, 0)), OK);
    assert_eq!(flushes(), 2);
    kit.reset();
    kit.activate(all);
    assert_eq!(send(&mut kit, OUT, 0, &[1; 512]), OK);
    assert_eq!(flushes(), 0);
    kit.device.write_config(field::WRITEBACK, &[0]);
    assert_eq!(send(&mut kit, OUT, 0, &[1; 512]), OK);
    assert_eq!(flushes(), 1);
    kit.device.write_config(field::WRITEBACK, &[1]);
    kit.device.write_config(field::CAPACITY, &[1; 8]);
    assert_eq!(send(&mut kit, OUT, 0, &[1; 512]), OK);
    assert_eq!(flushes(), 0);
}

#[test]
fn a_megabyte_in_pages_is_one_call_to_the_disk() {
    let disk = Counting::default();
    let blk = Blk::over(Box::new(disk.clone()), &spec("x").unwrap(), Way::Sync, None);
    let mut kit = Kit::new(Box::new(blk));
    kit.activate(features(&kit));
    let head = header(IN, 0);
    // Every other page, so that none adjoin.
    let mut parts = vec![Part::Out(&head)];
    parts.extend((0..256).map(|page| Part::InAt(0x20_0000 + page * 0x2000, 4096)));
    parts.push(Part::In(1));
    kit.add_indirect(0, &parts);
    kit.notify(0);
    let used = kit.wait_used(0);
    assert_eq!((used.len, status(&used)), ((1 << 20) + 1, OK));
    assert_eq!(*disk.calls.lock().unwrap(), [("read", 256)]);
}

#[test]
fn the_configuration_says_what_the_disk_can_do() {
    let blk = Blk::over(Box::new(Counting::default()), &spec("x,queues=2,queue-size=128").unwrap(), Way::Sync, None);
    let mut bytes = [0; field::END];
    blk.config().read(0, &mut bytes);
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!(word(field::CAPACITY), (1 << 30) / 512);
    assert_eq!(word(field::SEG_MAX), 126);
    assert_eq!(word(field::BLK_SIZE), 512);
    assert_eq!((bytes[field::PHYSICAL_BLOCK_EXP], bytes[field::MIN_IO_SIZE], bytes[field::WRITEBACK]), (3, 8, 1));
    assert_eq!(bytes[field::NUM_QUEUES], 2);
    assert_eq!(word(field::DISCARD_SECTOR_ALIGNMENT), 128);
    assert!(blk.info().features & (1 << VIRTIO_BLK_F_MQ) != 0);
    assert_eq!(blk.info().queue_sizes, [128, 128]);
}

#[test]
fn options_are_checked() {
    let good = spec("/a/b.img,readonly,aio=sync,queues=4,queue-size=64,serial=abc,format=raw").unwrap();
    assert_eq!((good.queues, good.queue_size, good.image.format), (4, 64, Some(Format::Raw)));
    for (text, words) in [
        ("", "path= is missing"),
        ("x,readonly,snapshot", "choose one"),
        ("x,queues=0", "1 to 16"),
        ("x,queue-size=100", "power of two"),
        ("x,serial=123456789012345678901", "at most 20"),
        ("x,format=vmdk", "auto, raw, qcow2"),
        ("x,aio=threads", "auto, sync, io_uring"),
    ] {
        let error = spec(text).unwrap_err().to_string();
        assert!(error.starts_with("--disk") && error.contains(words), "{error}");
    }
}

#[test]
fn the_same_image_twice_is_refused_unless_it_is_only_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    let open = |text: String| Blk::open(&spec(&text).unwrap(), false);
    let first = open(path.clone()).ok().unwrap();
    for text in [path.clone(), format!("{path},readonly"), format!("{path},snapshot")] {
        assert!(open(text).err().unwrap().to_string().contains("is in use"));
    }
    drop(first);
    let readers =
        [open(format!("{path},readonly")), open(format!("{path},snapshot")), open(format!("{path},snapshot"))];
    assert!(readers.iter().all(Result::is_ok));
    assert!(open(path.clone()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever descriptors say, the device answers, stops or waits; it neither panics nor hangs.
    #[test]
    fn any_descriptors_are_survived(
        table in prop::collection::vec((0u64..40, 0u32..0x3000, 0u16..8, 0u16..8), 1..8),
        kind in prop_oneof![Just(IN), Just(OUT), Just(FLUSH), Just(GET_ID), Just(DISCARD), Just(ZEROES), any::<u32>()],
        sector in prop_oneof![0u64..9000, any::<u64>()],
        aio in prop_oneof![Just("sync"), Just("io_uring"), Just("auto")],
    ) {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(SIZE as u64).unwrap();
        let mut kit = kit(&format!("{},queue-size=8,aio={aio}", file.path().display()));
        kit.activate(features(&kit));
        kit.ram.write(0x10_0000, &header(kind, sector)).unwrap();
        for (slot, &(page, len, flags, next)) in table.iter().enumerate() {
            let len = if slot == 0 { len.min(16) } else { len };
            let flags = flags & (NEXT | WRITE | INDIRECT);
            kit.write_descriptor(0, slot as u16, Descriptor { at: 0x10_0000 + page * 0x1000, len, flags, next });
        }
        kit.publish(0, 0);
        kit.notify(0);
        kit.reset();
        kit.activate(features(&kit));
        prop_assert_eq!(read(&mut kit, 0, 512).0, OK);
    }
}

#[test]
fn requests_wait_for_tokens_and_none_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path());
    for (aio, limit) in [("sync", "bw=1M"), ("io_uring", "ops=1000"), ("auto", "bw=64M,ops=500")] {
        let spec = spec(&format!("{path},aio={aio},queues=2,{limit}")).unwrap();
        let blk = Blk::open(&spec, false).unwrap();
        let throttle = blk.shared.throttle.clone().unwrap();
        let mut kit = Kit::new(Box::new(blk));
        let all = features(&kit);
        for _ in 0..2 {
            throttle.refill(&spec.rates);
            kit.activate(all);
            assert_eq!(read(&mut kit, 8, 512).0, OK);
            throttle.exhaust();
            let heads: Vec<_> =
                (0..4).map(|i| kit.add(i % 2, &[Part::Out(&header(IN, 9)), Part::In(1024), Part::In(1)])).collect();
            let flush = kit.add(1, &[Part::Out(&header(FLUSH, 0)), Part::In(1)]);
            (0..2).for_each(|queue| kit.notify(queue));
            for _ in 0..3 {
                kit.poll_fds(Duration::from_millis(40));
            }
            assert!((0..2).all(|queue| kit.try_used(queue).is_none()), "{limit}: nothing passes without tokens");
            throttle.refill(&spec.rates);
            let mut used: Vec<_> = [0, 0, 1, 1, 1].map(|queue| kit.wait_used(queue)).into();
            let flushed = used.iter().position(|used| used.head == flush).unwrap();
            assert_eq!(status(&used.remove(flushed)), OK, "{limit}");
            assert!(used.iter().all(|used| status(used) == OK && used.len == 1025), "{limit}");
            assert!(heads.iter().all(|head| used.iter().any(|used| used.head == *head)), "{limit}");
            // A reset while something waits: it is gone, and the next driver is served.
            throttle.exhaust();
            kit.add(0, &[Part::Out(&header(IN, 9)), Part::In(1024), Part::In(1)]);
            kit.notify(0);
            kit.reset();
        }
    }
}

#[test]
fn a_limit_that_is_never_reached_changes_nothing_on_a_loop() {
    let dir = tempfile::tempdir().unwrap();
    let mut kit = kit(&format!("{},bw=1T,ops=4000000000", image(dir.path())));
    kit.activate_on_loop(features(&kit));
    for sector in 0..300 {
        assert_eq!(read(&mut kit, sector, 4096).0, OK);
    }
    assert!(spec("x,ops=0").unwrap_err().to_string().contains("ops=0"));
}
