//! Packets from the guest (section 5.1.6.2).

use std::io;
use std::sync::Arc;

use super::handler::Setup;
use super::receive::MAX_PACKET;
use super::{Counters, add};
use crate::devices::throttle::Throttle;
use crate::net::{Backend, HEADER_LEN};
use crate::virtio::queue::Queues;
use crate::virtio::{Broken, Chain, Interest};

/// Bytes of an Ethernet header.
pub(super) const ETHERNET: usize = 14;

pub(super) struct Transmitter {
    queue: usize,
    token: u32,
    backend: Arc<dyn Backend>,
    counters: Arc<Counters>,
    /// A packet that the backend had no room for.
    stuck: Option<Chain>,
    throttle: Option<Arc<Throttle>>,
}

impl Transmitter {
    pub(super) fn new(pair: usize, token: u32, backend: Arc<dyn Backend>, setup: &Setup) -> Self {
        let (counters, throttle) = (setup.counters.clone(), setup.throttles.transmit.clone());
        Self { queue: 2 * pair + 1, token, backend, counters, stuck: None, throttle }
    }

    /// Sends what waits in the queue, as long as limits allow and the backend has room: the rest stays where it is.
    pub(super) fn run(&mut self, queues: &mut Queues) -> Result<(), Broken> {
        while self.stuck.is_none() {
            if self.throttle.as_ref().is_some_and(|throttle| throttle.holds_back()) {
                return Ok(());
            }
            let Some(chain) = queues.queue(self.queue).pop()? else { return Ok(()) };
            if let Some(throttle) = &self.throttle {
                throttle.passed(chain.readable_len().saturating_sub(HEADER_LEN));
            }
            self.send(chain, queues)?;
        }
        Ok(())
    }

    /// The backend may have room again.
    pub(super) fn writable(&mut self, queues: &mut Queues) -> Result<(), Broken> {
        if let Some(chain) = self.stuck.take() {
            self.send(chain, queues)?;
            if self.stuck.is_none() {
                queues.unwatch(self.backend.fd());
            }
        }
        self.run(queues)
    }

    fn send(&mut self, chain: Chain, queues: &mut Queues) -> Result<(), Broken> {
        match self.try_send(&chain) {
            Ok(()) => self.counters.sent(chain.readable_len()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && self.watch(queues) => {
                self.stuck = Some(chain);
                return Ok(());
            }
            Err(e) => {
                add(&self.counters.sent_dropped, 1);
                tracing::trace!("packet from the guest dropped: {e}");
            }
        }
        queues.queue(self.queue).push(chain, 0)
    }

    fn watch(&self, queues: &mut Queues) -> bool {
        queues.watch(self.backend.fd(), self.token, Interest::Write).is_ok()
    }

    fn try_send(&self, chain: &Chain) -> io::Result<()> {
        if !(HEADER_LEN + ETHERNET..=MAX_PACKET).contains(&chain.readable_len()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        loop {
            match self.backend.send(chain.readable()) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}
