//! The data path of a network card: which queue is what (section 5.1.2), and who has to do something when.
//!
//! Queues 2n and 2n+1 receive and transmit, the last one takes commands. Runs on the event loop; nothing waits.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use virtio_bindings::virtio_net::VIRTIO_NET_F_MQ;

use super::control::Control;
use super::receive::Receiver;
use super::transmit::Transmitter;
use super::{Counters, GUEST_OFFLOADS, Throttles};
use crate::host::alarm::Alarm;
use crate::net::Backend;
use crate::virtio::config::ConfigSpace;
use crate::virtio::queue::Queues;
use crate::virtio::{Broken, Handler, Interest};

/// Tokens of the alarms; those of receivers are numbers of pairs, those of transmitters the same with the next bit.
const ALARM: u32 = u32::MAX;
const RECEIVE_MORE: u32 = u32::MAX - 1;
const TRANSMIT_MORE: u32 = u32::MAX - 2;
const TRANSMIT: u32 = 1 << 16;

/// What a handler is made from.
pub(super) struct Setup {
    pub backends: Vec<Arc<dyn Backend>>,
    /// As negotiated.
    pub features: u64,
    /// As told to the driver.
    pub mtu: Option<u16>,
    pub config: ConfigSpace,
    pub counters: Arc<Counters>,
    /// How long a packet waits for more buffers.
    pub patience: Duration,
    pub throttles: Throttles,
}

struct Pair {
    receiver: Receiver,
    transmitter: Transmitter,
}

pub(super) struct NetHandler {
    backends: Vec<Arc<dyn Backend>>,
    pairs: Vec<Pair>,
    control: Control,
    /// Index of the control queue.
    control_queue: usize,
    /// Rings when packets have waited long enough; made when first needed.
    alarm: Option<Alarm>,
    patience: Duration,
    throttles: Throttles,
    /// The pair that is served first when all were held back.
    first: usize,
}

impl NetHandler {
    pub(super) fn new(setup: Setup) -> Self {
        let several = setup.features & 1 << VIRTIO_NET_F_MQ != 0;
        let count = if several { setup.backends.len() } else { 1 };
        let pair = |(index, backend): (usize, &Arc<dyn Backend>)| Pair {
            receiver: Receiver::new(index, backend.clone(), &setup),
            transmitter: Transmitter::new(index, TRANSMIT | index as u32, backend.clone(), &setup),
        };
        let pairs = setup.backends.iter().take(count).enumerate().map(pair).collect();
        let control = Control::new(&setup, count);
        Self {
            pairs,
            control,
            control_queue: 2 * count,
            alarm: None,
            patience: setup.patience,
            throttles: setup.throttles,
            first: 0,
            backends: setup.backends,
        }
    }

    fn receive(&mut self, index: usize, queues: &mut Queues) -> Result<(), Broken> {
        let Some(pair) = self.pairs.get_mut(index) else { return Ok(()) };
        if pair.receiver.run(queues)? {
            return Ok(());
        }
        // A packet waits for buffers, but not for ever.
        let alarm = match &mut self.alarm {
            Some(alarm) => alarm,
            none => match Alarm::new() {
                Ok(alarm) if queues.watch(alarm.as_raw_fd(), ALARM, Interest::Read).is_ok() => none.insert(alarm),
                _ => return pair.receiver.give_up(queues),
            },
        };
        alarm.set(self.patience);
        Ok(())
    }

    fn alarmed(&mut self, queues: &mut Queues) -> Result<(), Broken> {
        if let Some(alarm) = &self.alarm {
            alarm.stop();
        }
        self.pairs.iter_mut().try_for_each(|pair| pair.receiver.give_up(queues))
    }

    /// Packets that were held back may pass now: those of another pair first each time.
    fn go_on(&mut self, token: u32, queues: &mut Queues) -> Result<(), Broken> {
        let throttle = if token == RECEIVE_MORE { &self.throttles.receive } else { &self.throttles.transmit };
        throttle.iter().for_each(|throttle| throttle.rang());
        let count = self.pairs.len();
        self.first = (self.first + 1) % count.max(1);
        for index in 0..count {
            let index = (self.first + index) % count;
            if token == RECEIVE_MORE {
                self.receive(index, queues)?;
            } else if let Some(pair) = self.pairs.get_mut(index) {
                pair.transmitter.run(queues)?;
            }
        }
        Ok(())
    }

    fn control(&mut self, queues: &mut Queues) -> Result<(), Broken> {
        while let Some(chain) = queues.queue(self.control_queue).pop()? {
            let (chain, written) = self.control.command(chain, &self.backends)?;
            queues.queue(self.control_queue).push(chain, written)?;
        }
        let offloads = self.control.offloads();
        self.pairs.iter_mut().for_each(|pair| pair.receiver.set_offloads(offloads));
        Ok(())
    }
}

impl Handler for NetHandler {
    fn fds(&self) -> Vec<(RawFd, u32)> {
        let backends = self.backends.iter().take(self.pairs.len()).zip(0..).map(|(backend, pair)| (backend.fd(), pair));
        let receive = self.throttles.receive.iter().map(|throttle| (throttle.fd(), RECEIVE_MORE));
        let transmit = self.throttles.transmit.iter().map(|throttle| (throttle.fd(), TRANSMIT_MORE));
        backends.chain(receive).chain(transmit).collect()
    }

    fn on_queue(&mut self, index: usize, queues: &mut Queues) -> Result<(), Broken> {
        match index {
            _ if index == self.control_queue => self.control(queues),
            _ if index.is_multiple_of(2) => self.receive(index / 2, queues),
            _ => self.pairs.get_mut(index / 2).map_or(Ok(()), |pair| pair.transmitter.run(queues)),
        }
    }

    fn on_fd(&mut self, token: u32, queues: &mut Queues) -> Result<(), Broken> {
        match token {
            ALARM => return self.alarmed(queues),
            RECEIVE_MORE | TRANSMIT_MORE => return self.go_on(token, queues),
            _ => {}
        }
        let index = (token & !TRANSMIT) as usize;
        if token & TRANSMIT == 0 {
            return self.receive(index, queues);
        }
        self.pairs.get_mut(index).map_or(Ok(()), |pair| pair.transmitter.writable(queues))
    }
}

/// The offloads among `features`.
pub(super) fn guest_offloads(features: u64) -> u64 {
    features & GUEST_OFFLOADS
}
