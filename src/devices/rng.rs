//! An entropy source (virtio 1.3, section 5.4): the host's random numbers, or those of a seed if the run shall be one that
//! can be repeated. Runs on the event loop.

use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use crate::devices::{AttachError, Builder, Key, Kind as DeviceKind, OptionError, Options, Spec};
use crate::host::log_limit::LogLimit;
use crate::host::seeded::Seeded;
use crate::host::vectored;
use crate::virtio::config::ConfigSpace;
use crate::virtio::queue::Queues;
use crate::virtio::{ActivateError, Broken, Handler, Info, VirtioDevice};

/// Where random numbers come from; never blocks once the host has booted.
const SOURCE: &str = "/dev/urandom";
/// Requests that may wait; Linux makes one at a time.
const QUEUE_SIZE: u16 = 16;
/// Bytes given to one request, which may be any part of it (section 5.4.6.1). Making random numbers takes time on the
/// loop that other devices use too: this much takes about 10 microseconds.
const MOST: usize = 4 << 10;

/// `--rng`.
#[derive(Debug)]
pub struct Kind;

impl DeviceKind for Kind {
    fn name(&self) -> &'static str {
        "rng"
    }

    fn about(&self) -> &'static str {
        "Random numbers from the host"
    }

    fn keys(&self) -> &'static [Key] {
        &[]
    }

    fn repeatable(&self) -> bool {
        false
    }

    fn parse(&self, _: &mut Options) -> Result<Box<dyn Spec>, OptionError> {
        Ok(Box::new(RngSpec))
    }
}

#[derive(Debug)]
struct RngSpec;

impl Spec for RngSpec {
    fn attach(&self, builder: &mut Builder<'_>) -> Result<(), AttachError> {
        let source = match builder.deterministic {
            Some(how) => Source::Seeded(Mutex::new(Seeded::new(how.seed, "rng"))),
            None => Source::host()?,
        };
        builder.virtio("rng", Box::new(Rng::new(source)));
        Ok(())
    }
}

struct Rng {
    source: Arc<Source>,
    config: ConfigSpace,
}

impl Rng {
    fn new(source: Source) -> Self {
        Self { source: Arc::new(source), config: ConfigSpace::new(0) }
    }
}

/// Where the numbers come from; a stream goes on over resets.
enum Source {
    Host(File),
    Seeded(Mutex<Seeded>),
}

impl Source {
    fn host() -> Result<Self, AttachError> {
        File::open(SOURCE).map(Self::Host).map_err(|e| AttachError(format!("cannot open {SOURCE}: {e}")))
    }
}

impl VirtioDevice for Rng {
    fn info(&self) -> Info {
        Info { id: VIRTIO_ID_RNG as u16, features: 0, queue_sizes: vec![QUEUE_SIZE], blocking: false }
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn activate(&mut self, _: u64) -> Result<Box<dyn Handler>, ActivateError> {
        Ok(Box::new(Requests(self.source.clone())))
    }
}

struct Requests(Arc<Source>);

impl Handler for Requests {
    fn on_queue(&mut self, index: usize, queues: &mut Queues) -> Result<(), Broken> {
        static FAILED: LogLimit = LogLimit::new();
        let queue = queues.queue(index);
        while let Some(mut chain) = queue.pop()? {
            if chain.writable_len() == 0 {
                return Err(Broken("a request for random numbers has no room for them".into()));
            }
            chain.limit_writable(MOST);
            let host = match &*self.0 {
                Source::Host(host) => host,
                Source::Seeded(seeded) => {
                    let mut bytes = [0; MOST];
                    seeded.lock().unwrap_or_else(PoisonError::into_inner).fill(&mut bytes);
                    chain.write(&bytes);
                    let written = chain.written();
                    queue.push(chain, written)?;
                    continue;
                }
            };
            match vectored::read(host, chain.writable()) {
                Ok(count) => chain.skip_writable(count),
                Err(e) if FAILED.allow() => tracing::warn!("cannot read {SOURCE}: {e}"),
                Err(_) => {}
            }
            let written = chain.written();
            queue.push(chain, written)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::kit::{Kit, Part};

    fn kit() -> Kit {
        Kit::new(Box::new(Rng::new(Source::host().unwrap())))
    }

    #[test]
    fn requests_are_filled_with_different_bytes_again_after_a_reset() {
        let mut kit = kit();
        for _ in 0..2 {
            kit.activate_on_loop(0);
            let first = kit.request(0, &[], &[64]);
            let second = kit.request(0, &[], &[1, 63]);
            assert_eq!((first.len, second.len), (64, 64));
            assert_ne!(first.data, second.data);
            assert_ne!(first.data, vec![0xa5; 64]);
            kit.reset();
        }
    }

    #[test]
    fn a_seed_gives_the_same_bytes_again() {
        let bytes = |seed| {
            let source = Source::Seeded(Mutex::new(Seeded::new(seed, "rng")));
            let mut kit = Kit::new(Box::new(Rng::new(source)));
            kit.activate(0);
            [kit.request(0, &[], &[64]).data, kit.request(0, &[], &[8192]).data]
        };
        let first = bytes(1);
        assert_eq!(first, bytes(1));
        assert_ne!(first, bytes(2));
        assert!(first[0] != first[1][..64] && first[1].len() == MOST);
    }

    #[test]
    fn a_large_request_gets_a_part_and_many_get_their_turn() {
        let mut kit = kit();
        kit.activate(0);
        let used = kit.request(0, &[], &[1000, 1 << 20]);
        assert_eq!(used.len as usize, MOST);
        assert!(used.room[MOST..].iter().all(|&byte| byte == 0xa5), "nothing beyond what is reported");
        for _ in 0..QUEUE_SIZE {
            kit.add(0, &[Part::In(64)]);
        }
        kit.notify(0);
        for _ in 0..QUEUE_SIZE {
            assert_eq!(kit.wait_used(0).len, 64);
        }
    }

    #[test]
    fn a_request_without_room_stops_the_device_until_reset() {
        let mut kit = kit();
        kit.activate(0);
        kit.add(0, &[Part::Out(b"read this")]);
        kit.notify(0);
        kit.wait_broken();
        kit.reset();
        kit.activate(0);
        assert_eq!(kit.request(0, &[], &[16]).len, 16);
    }

    #[test]
    fn it_takes_no_options() {
        assert!(Kind.parse(&mut Options::from_flag("rng", Kind.keys(), "").unwrap()).is_ok());
        assert!(Options::from_flag("rng", Kind.keys(), "source=/x").is_err());
    }
}
