//! The data path of a disk, on its event loop: each request at once, or several at a time through io_uring.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::request::{self, Request, Status};
use super::{Shared, Way, field};
use crate::block::{Disk, SECTOR, total};
use crate::host::alarm::Alarm;
use crate::host::log_limit::LogLimit;
use crate::mem::file_ring::FileRing;
use crate::virtio::queue::Queues;
use crate::virtio::{Broken, Chain, Handler};

/// How soon a guest learns that its disk was made longer or shorter. Nothing else wakes up for this: watching the file
/// for changes (inotify) would wake up for every write of the guest's own.
const SIZE_CHECK: Duration = Duration::from_millis(if cfg!(test) { 50 } else { 5000 });

/// Longest time for which finished requests are kept from the guest while others are served one by one.
const ANSWER_WITHIN: Duration = Duration::from_micros(200);

/// Requests that the ring can take at once; more wait in the queue.
const RING_ENTRIES: u32 = 128;

/// Tokens of descriptors.
const ALARM: u32 = 0;
const RING: u32 = 1;
const THROTTLE: u32 = 2;

/// The handler.
pub(super) struct Requests {
    shared: Arc<Shared>,
    size_check: Option<Alarm>,
    way: Way,
    ring: Option<Ring>,
    /// The queue that is served first when all were held back.
    first: usize,
}

/// A request that the kernel works on.
struct Flying {
    queue: usize,
    request: Request,
    chain: Chain,
    len: u64,
}

struct Ring {
    ring: FileRing,
    flying: Vec<Option<Flying>>,
    /// Indices of `flying` that are free.
    free: Vec<usize>,
}

impl Requests {
    /// A handler for the disk of `shared`.
    pub(super) fn new(shared: Arc<Shared>, way: Way) -> io::Result<Self> {
        let disk = shared.disk();
        let size_check = if disk.size_may_change() { Some(Alarm::new()?) } else { None };
        let file = disk.plain_file(0, &[], false).filter(|_| way != Way::Sync);
        let ring = file.map(|file| file.try_clone().and_then(|file| FileRing::new(file, RING_ENTRIES)));
        let ring = match ring.transpose() {
            Ok(ring) => ring.map(|ring| Ring { ring, flying: Vec::new(), free: Vec::new() }),
            Err(e) => {
                static REFUSED: LogLimit = LogLimit::new();
                if REFUSED.allow() {
                    let path = shared.path.display();
                    tracing::info!("{path}: the host refuses io_uring ({e}): requests go one by one");
                }
                None
            }
        };
        drop(disk);
        Ok(Self { shared, size_check, way, ring, first: 0 })
    }

    /// Serves one request, or sends it on its way.
    fn take(&mut self, index: usize, mut chain: Chain, disk: &mut dyn Disk, queues: &mut Queues) -> Result<(), Broken> {
        chain.take_status()?;
        let parsed = request::parse(&mut chain, &self.shared, disk.size());
        if let Some(throttle) = &self.shared.throttle {
            throttle.passed(parsed.map_or(0, |request| request.data_len(&chain)));
        }
        let status = match parsed {
            Err(status) => status,
            Ok(request) => {
                let can_fly = self.can_fly(request, &chain, disk);
                match &mut self.ring {
                    Some(ring) if can_fly => {
                        ring.make_room(disk, &self.shared, queues)?;
                        return ring.start(index, request, chain);
                    }
                    _ => {
                        self.settle(request, disk, queues)?;
                        request::serve(request, &mut chain, disk, &self.shared)
                    }
                }
            }
        };
        let used = request::finish(&mut chain, status);
        queues.queue(index).push(chain, used)
    }

    /// Whether `request` can go through the ring.
    fn can_fly(&self, request: Request, chain: &Chain, disk: &dyn Disk) -> bool {
        match request {
            Request::Read(at) => disk.plain_file(at, chain.writable(), false).is_some(),
            Request::Write(at) => {
                let through = self.way == Way::Ring && !self.shared.is_writethrough();
                through && disk.plain_file(at, chain.readable(), true).is_some()
            }
            Request::Flush => !self.shared.readonly,
            Request::Id | Request::Discard | Request::WriteZeroes => false,
        }
    }

    /// Before a request that does not go through the ring: waits for those that do. A misaligned write past the page
    /// cache reads and rewrites its neighbours, which must not change meanwhile.
    fn settle(&mut self, request: Request, disk: &mut dyn Disk, queues: &mut Queues) -> Result<(), Broken> {
        let independent = matches!(request, Request::Write(_) | Request::Id) && self.way == Way::Mixed;
        match &mut self.ring {
            Some(ring) if !independent => ring.drain(disk, &self.shared, queues),
            _ => Ok(()),
        }
    }

    /// The next request of queue `index` that may be served now.
    fn next(&self, index: usize, queues: &mut Queues) -> Result<Option<Chain>, Broken> {
        match &self.shared.throttle {
            Some(throttle) if throttle.holds_back() => Ok(None),
            _ => queues.queue(index).pop(),
        }
    }

    /// Requests that were held back may pass now: those of another queue first each time.
    fn go_on(&mut self, queues: &mut Queues) -> Result<(), Broken> {
        if let Some(throttle) = &self.shared.throttle {
            throttle.rang();
        }
        let count = queues.len();
        self.first = (self.first + 1) % count.max(1);
        (0..count).try_for_each(|index| self.on_queue((self.first + index) % count, queues))
    }

    /// Tells the driver if the image was made longer or shorter.
    fn check_size(&mut self, queues: &mut Queues) {
        let mut disk = self.shared.disk();
        let before = disk.size();
        if let Err(e) = disk.refresh_size() {
            return tracing::debug!("{}: cannot see its size: {e}", self.shared.path.display());
        }
        let size = disk.size();
        if size != before {
            tracing::info!("{}: has {size} bytes now, {before} before", self.shared.path.display());
            self.shared.config.set(field::CAPACITY, &(size / SECTOR).to_le_bytes());
            queues.config_changed();
        }
    }
}

impl Handler for Requests {
    fn fds(&self) -> Vec<(RawFd, u32)> {
        let alarm = self.size_check.iter().map(|alarm| (alarm.as_raw_fd(), ALARM));
        let ring = self.ring.iter().map(|ring| (ring.ring.fd(), RING));
        let throttle = self.shared.throttle.iter().map(|throttle| (throttle.fd(), THROTTLE));
        alarm.chain(ring).chain(throttle).collect()
    }

    fn start(&mut self, queues: &mut Queues) -> Result<(), Broken> {
        if let Some(alarm) = &self.size_check {
            alarm.set(SIZE_CHECK);
        }
        if let Some(ring) = &mut self.ring {
            ring.ring.use_ram(queues.ram());
        }
        Ok(())
    }

    fn on_queue(&mut self, index: usize, queues: &mut Queues) -> Result<(), Broken> {
        let shared = self.shared.clone();
        let mut disk = shared.disk();
        let mut answered = Instant::now();
        while let Some(chain) = self.next(index, queues)? {
            self.take(index, chain, &mut **disk, queues)?;
            if answered.elapsed() > ANSWER_WITHIN {
                queues.signal()?;
                answered = Instant::now();
            }
        }
        match &mut self.ring {
            Some(ring) => ring.submit(&mut **disk, &shared, queues),
            None => Ok(()),
        }
    }

    fn on_fd(&mut self, token: u32, queues: &mut Queues) -> Result<(), Broken> {
        match (token, &mut self.ring, &self.size_check) {
            (RING, Some(ring), _) => {
                let mut disk = self.shared.disk();
                ring.reap(&mut **disk, &self.shared, queues)
            }
            (ALARM, _, Some(alarm)) => {
                alarm.stop();
                alarm.set(SIZE_CHECK);
                self.check_size(queues);
                Ok(())
            }
            (THROTTLE, ..) => self.go_on(queues),
            _ => Ok(()),
        }
    }
}

/// The ring itself failed: the device stops, the machine goes on.
fn ring_failed(e: io::Error) -> Broken {
    Broken(format!("the host's io_uring failed: {e}"))
}

impl Ring {
    /// Sends a request to the kernel; [`Ring::submit`] makes it go.
    fn start(&mut self, queue: usize, request: Request, chain: Chain) -> Result<(), Broken> {
        let slot = self.free.pop().unwrap_or(self.flying.len());
        let token = slot as u64;
        let (started, len) = match request {
            Request::Read(at) => (self.ring.read(at, chain.writable(), token), total(chain.writable())),
            Request::Write(at) => (self.ring.write(at, chain.readable(), token), total(chain.readable())),
            _ => (self.ring.sync(token), 0),
        };
        started.map_err(ring_failed)?;
        let flying = Some(Flying { queue, request, chain, len });
        match self.flying.get_mut(slot) {
            Some(place) => *place = flying,
            None => self.flying.push(flying),
        }
        Ok(())
    }

    /// Starts what was sent, and gives back what was done at once.
    fn submit(&mut self, disk: &mut dyn Disk, shared: &Shared, queues: &mut Queues) -> Result<(), Broken> {
        self.ring.submit().map_err(ring_failed)?;
        self.reap(disk, shared, queues)
    }

    /// Gives back what is complete.
    fn reap(&mut self, disk: &mut dyn Disk, shared: &Shared, queues: &mut Queues) -> Result<(), Broken> {
        while let Some((token, result)) = self.ring.completed() {
            let slot = token as usize;
            let Some(mut done) = self.flying.get_mut(slot).and_then(Option::take) else { continue };
            self.free.push(slot);
            let status = match result {
                Ok(count) if count as u64 == done.len => {
                    if let Request::Read(_) = done.request {
                        done.chain.skip_writable(count);
                    }
                    Status::Ok
                }
                Err(e) if !is_refusal(&e) => request::answer(Err(e), shared, "complete a request"),
                // A part, or the ring cannot do it for this file: the usual way knows what to do.
                _ => request::serve(done.request, &mut done.chain, disk, shared),
            };
            let used = request::finish(&mut done.chain, status);
            queues.queue(done.queue).push(done.chain, used)?;
        }
        Ok(())
    }

    /// Waits until one more request finds room.
    fn make_room(&mut self, disk: &mut dyn Disk, shared: &Shared, queues: &mut Queues) -> Result<(), Broken> {
        while !self.ring.has_room() {
            self.ring.wait().map_err(ring_failed)?;
            self.reap(disk, shared, queues)?;
        }
        Ok(())
    }

    /// Waits until nothing is under way.
    fn drain(&mut self, disk: &mut dyn Disk, shared: &Shared, queues: &mut Queues) -> Result<(), Broken> {
        while self.ring.in_flight() > 0 {
            self.ring.wait().map_err(ring_failed)?;
            self.reap(disk, shared, queues)?;
        }
        Ok(())
    }
}

/// Whether the error says "not this way" rather than "not at all".
fn is_refusal(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINTR | libc::EINVAL | libc::EOPNOTSUPP))
}
