//! Disks (virtio 1.3, section 5.2): options, configuration space, features.
//!
//! | file | what it is |
//! | --- | --- |
//! | `request` | what a request asks for, whether it may, and doing it |
//! | `handler` | the data path on the event loop, one by one or through io_uring |
//!
//! One handler serves all queues on one loop: a loop of its own if its system calls may block.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES, VIRTIO_BLK_ID_BYTES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use crate::block::{self, Disk, DiskOptions, Format, SECTOR};
use crate::devices::throttle::{self, Rates, Throttle};
use crate::devices::{AttachError, Builder, Key, Kind as DeviceKind, OptionError, Options, Spec};
use crate::mem::file_ring::FileRing;
use crate::virtio::config::ConfigSpace;
use crate::virtio::{ActivateError, Handler, Info, VirtioDevice};

mod handler;
mod request;
#[cfg(test)]
mod tests;

/// Room for a request of 1 MiB in 256 pages, header and status, next to smaller ones; queues are the guest's memory.
const QUEUE_SIZE: u16 = 512;
/// A request has at most as many buffers as one system call takes.
const MAX_QUEUE_SIZE: u16 = 1024;
/// More queues would not make one loop faster.
const MAX_QUEUES: u16 = 16;

/// `--disk`.
#[derive(Debug)]
pub struct Kind;

const KEYS: &[Key] = &[
    Key { name: "path", value: "PATH", about: "image file or block device" },
    Key { name: "format", value: "auto|raw|qcow2", about: "default auto: qcow2 if it starts like one, else raw" },
    Key { name: "readonly", value: "on|off", about: "the guest cannot write (default off)" },
    Key { name: "snapshot", value: "on|off", about: "what the guest writes is thrown away at the end (default off)" },
    Key { name: "direct", value: "on|off", about: "past the host's page cache (default off)" },
    Key { name: "aio", value: "auto|sync|io_uring", about: "how the host reads and writes (default auto)" },
    Key { name: "queues", value: "N", about: "number of queues, 1 to 16 (default 1)" },
    Key { name: "queue-size", value: "N", about: "requests per queue, a power of two, 4 to 1024 (default 512)" },
    Key { name: "serial", value: "TEXT", about: "at most 20 characters; in the guest: /dev/disk/by-id/virtio-TEXT" },
    throttle::BANDWIDTH,
    throttle::OPERATIONS,
];

/// How the host reads and writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aio {
    Auto,
    Sync,
    IoUring,
}

impl DeviceKind for Kind {
    fn name(&self) -> &'static str {
        "disk"
    }

    fn about(&self) -> &'static str {
        "A disk image or block device"
    }

    fn keys(&self) -> &'static [Key] {
        KEYS
    }

    fn parse(&self, options: &mut Options) -> Result<Box<dyn Spec>, OptionError> {
        Ok(Box::new(parse(options)?))
    }
}

fn parse(options: &Options) -> Result<DiskSpec, OptionError> {
    let path = PathBuf::from(options.required("path")?);
    let formats = [("auto", None), ("raw", Some(Format::Raw)), ("qcow2", Some(Format::Qcow2))];
    let readonly = options.switch("readonly", false)?;
    let snapshot = options.switch("snapshot", false)?;
    if readonly && snapshot {
        return Err(options.error("readonly and snapshot: choose one; a snapshot never changes the image either"));
    }
    let serial = options.text("serial").unwrap_or_default();
    if serial.len() > VIRTIO_BLK_ID_BYTES as usize || !serial.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(options.error(format!("serial={serial}: give at most 20 letters, digits or signs")));
    }
    let queue_size = options.number("queue-size", QUEUE_SIZE, 4..=MAX_QUEUE_SIZE)?;
    if !queue_size.is_power_of_two() {
        return Err(options.error(format!("queue-size={queue_size}: give a power of two")));
    }
    Ok(DiskSpec {
        image: DiskOptions {
            format: options.choice("format", None, &formats)?,
            direct: options.switch("direct", false)?,
            path,
            readonly,
            snapshot,
        },
        aio: options.choice(
            "aio",
            Aio::Auto,
            &[("auto", Aio::Auto), ("sync", Aio::Sync), ("io_uring", Aio::IoUring)],
        )?,
        queues: options.number("queues", 1, 1..=MAX_QUEUES)?,
        queue_size,
        serial: serial.into(),
        rates: Rates::parse(options)?,
    })
}

/// One disk that a machine shall have.
#[derive(Debug, Clone)]
struct DiskSpec {
    image: DiskOptions,
    aio: Aio,
    queues: u16,
    queue_size: u16,
    serial: String,
    rates: Rates,
}

impl Spec for DiskSpec {
    fn timed(&self) -> Option<&'static str> {
        (!self.rates.is_unlimited()).then_some("--disk bw or ops")
    }

    fn attach(&self, builder: &mut Builder<'_>) -> Result<(), AttachError> {
        builder.virtio("disk", Box::new(Blk::open(self, builder.events.in_step())?));
        Ok(())
    }
}

/// What the device and its handler share; it outlives resets.
#[derive(Debug)]
struct Shared {
    disk: Mutex<Box<dyn Disk>>,
    config: ConfigSpace,
    /// For messages.
    path: PathBuf,
    id: [u8; VIRTIO_BLK_ID_BYTES as usize],
    readonly: bool,
    /// The driver turned the write cache off: every write is made permanent before it is answered.
    writethrough: AtomicBool,
    throttle: Option<Arc<Throttle>>,
}

impl Shared {
    fn disk(&self) -> MutexGuard<'_, Box<dyn Disk>> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_writethrough(&self) -> bool {
        self.writethrough.load(Ordering::Acquire)
    }
}

/// How requests are done; measured in docs/disks.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// One by one, on a loop of the disk's own.
    Sync,
    /// Reads and flushes through io_uring, where those that must wait for a disk overlap; writes, which go to the
    /// host's page cache, one by one. On a loop of the disk's own, since a write may still have to wait.
    Mixed,
    /// All through io_uring.
    Ring,
}

/// A disk as its transport sees it.
struct Blk {
    shared: Arc<Shared>,
    info: Info,
    way: Way,
}

/// Byte offsets in the configuration (section 5.2.4).
mod field {
    pub(super) const CAPACITY: usize = 0;
    pub(super) const SEG_MAX: usize = 12;
    pub(super) const BLK_SIZE: usize = 20;
    pub(super) const PHYSICAL_BLOCK_EXP: usize = 24;
    pub(super) const MIN_IO_SIZE: usize = 26;
    pub(super) const WRITEBACK: usize = 32;
    pub(super) const NUM_QUEUES: usize = 34;
    pub(super) const MAX_DISCARD_SECTORS: usize = 36;
    pub(super) const MAX_DISCARD_SEG: usize = 40;
    pub(super) const DISCARD_SECTOR_ALIGNMENT: usize = 44;
    pub(super) const MAX_WRITE_ZEROES_SECTORS: usize = 48;
    pub(super) const MAX_WRITE_ZEROES_SEG: usize = 52;
    pub(super) const WRITE_ZEROES_MAY_UNMAP: usize = 56;
    pub(super) const END: usize = 60;
}

impl Blk {
    /// `in_step`: requests are to be done when their notification has been handled.
    fn open(spec: &DiskSpec, in_step: bool) -> Result<Self, AttachError> {
        let disk = block::open(&spec.image).map_err(|e| AttachError(e.to_string()))?;
        let way = if in_step { Way::Sync } else { choose_way(spec, &*disk)? };
        let throttle = spec.rates.throttle().map_err(|e| AttachError(format!("cannot make a timer: {e}")))?;
        Ok(Self::over(disk, spec, way, throttle))
    }

    fn over(disk: Box<dyn Disk>, spec: &DiskSpec, way: Way, throttle: Option<Arc<Throttle>>) -> Self {
        let readonly = spec.image.readonly;
        let mut features = (1 << VIRTIO_BLK_F_SEG_MAX) | (1 << VIRTIO_BLK_F_BLK_SIZE) | (1 << VIRTIO_BLK_F_TOPOLOGY);
        features |= match readonly {
            true => 1 << VIRTIO_BLK_F_RO,
            false => {
                (1 << VIRTIO_BLK_F_FLUSH)
                    | (1 << VIRTIO_BLK_F_CONFIG_WCE)
                    | (1 << VIRTIO_BLK_F_DISCARD)
                    | (1 << VIRTIO_BLK_F_WRITE_ZEROES)
            }
        };
        if spec.queues > 1 {
            features |= 1 << VIRTIO_BLK_F_MQ;
        }
        let config = ConfigSpace::new(field::END);
        describe(&config, spec, &*disk);
        let shared = Shared {
            id: serial(spec),
            path: spec.image.path.clone(),
            disk: Mutex::new(disk),
            config,
            readonly,
            writethrough: AtomicBool::new(false),
            throttle,
        };
        let info = Info {
            id: VIRTIO_ID_BLOCK as u16,
            features,
            queue_sizes: vec![spec.queue_size; usize::from(spec.queues)],
            blocking: way != Way::Ring,
        };
        Self { shared: Arc::new(shared), info, way }
    }
}

/// How requests to `disk` are to be done.
fn choose_way(spec: &DiskSpec, disk: &dyn Disk) -> Result<Way, AttachError> {
    let path = spec.image.path.display();
    let plain = disk.plain_file(0, &[], false).is_some();
    match spec.aio {
        Aio::Sync => return Ok(Way::Sync),
        Aio::Auto if !plain => return Ok(Way::Sync),
        Aio::Auto if !spec.image.direct => return Ok(Way::Mixed),
        Aio::IoUring if !plain => {
            let reason = "aio=io_uring is for raw images without snapshot only; leave aio out";
            return Err(AttachError(format!("{path}: {reason}")));
        }
        Aio::Auto | Aio::IoUring => {}
    }
    match FileRing::probe() {
        Ok(()) => Ok(Way::Ring),
        Err(e) => {
            tracing::info!("{path}: the host refuses io_uring ({e}): using aio=sync");
            Ok(Way::Sync)
        }
    }
}

/// What GET_ID answers: the serial number, or else the name of the file, so that disks can be told apart.
fn serial(spec: &DiskSpec) -> [u8; VIRTIO_BLK_ID_BYTES as usize] {
    let name = spec.image.path.file_name().unwrap_or_default().to_string_lossy();
    let text = if spec.serial.is_empty() { &name } else { spec.serial.as_str() };
    let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
    id.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
    id
}

/// Fills the configuration.
fn describe(config: &ConfigSpace, spec: &DiskSpec, disk: &dyn Disk) {
    let topology = disk.topology();
    let blocks_per_physical = (topology.physical_block / topology.logical_block).max(1);
    let sectors = |bytes: u32| (bytes / SECTOR as u32).max(1);
    config.set(field::CAPACITY, &(disk.size() / SECTOR).to_le_bytes());
    // Two descriptors are for header and status.
    config.set(field::SEG_MAX, &u32::from(spec.queue_size - 2).to_le_bytes());
    config.set(field::BLK_SIZE, &topology.logical_block.to_le_bytes());
    config.set(field::PHYSICAL_BLOCK_EXP, &[blocks_per_physical.ilog2() as u8]);
    config.set(field::MIN_IO_SIZE, &(blocks_per_physical as u16).to_le_bytes());
    config.set(field::WRITEBACK, &[1]);
    config.set(field::NUM_QUEUES, &spec.queues.to_le_bytes());
    config.set(field::MAX_DISCARD_SECTORS, &request::MAX_DISCARD_SECTORS.to_le_bytes());
    config.set(field::MAX_DISCARD_SEG, &request::MAX_RANGES.to_le_bytes());
    config.set(field::DISCARD_SECTOR_ALIGNMENT, &sectors(topology.discard_block).to_le_bytes());
    config.set(field::MAX_WRITE_ZEROES_SECTORS, &request::MAX_WRITE_ZEROES_SECTORS.to_le_bytes());
    config.set(field::MAX_WRITE_ZEROES_SEG, &request::MAX_RANGES.to_le_bytes());
    config.set(field::WRITE_ZEROES_MAY_UNMAP, &[1]);
}

impl VirtioDevice for Blk {
    fn info(&self) -> Info {
        self.info.clone()
    }

    fn config(&self) -> &ConfigSpace {
        &self.shared.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        // The only field that a driver may write (section 5.2.6.2).
        if let (field::WRITEBACK, &[on]) = (offset, data) {
            self.shared.writethrough.store(on == 0, Ordering::Release);
            self.shared.config.set(field::WRITEBACK, &[u8::from(on != 0)]);
        }
    }

    fn activate(&mut self, features: u64) -> Result<Box<dyn Handler>, ActivateError> {
        // A driver that does not know how to flush relies on every write being permanent.
        if !self.shared.readonly && features & (1 << VIRTIO_BLK_F_FLUSH) == 0 {
            self.shared.writethrough.store(true, Ordering::Release);
        }
        let handler = handler::Requests::new(self.shared.clone(), self.way);
        let path: &Path = &self.shared.path;
        Ok(Box::new(handler.map_err(|e| ActivateError(format!("{}: {e}", path.display())))?))
    }

    fn reset(&mut self) {
        self.shared.writethrough.store(false, Ordering::Release);
        self.shared.config.set(field::WRITEBACK, &[1]);
    }
}
