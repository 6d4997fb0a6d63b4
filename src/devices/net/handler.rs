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
use super::{Counters, GUEST_OFFLOADS};
use crate::host::alarm::Alarm;
use crate::net::Backend;
use crate::virtio::config::ConfigSpace;
use crate::virtio::queue::Queues;
use crate::virtio::{Broken, Handler, Interest};

/// Token of the alarm; those of receivers are numbers of pairs, those of transmitters the same with the next bit.
const ALARM: u32 = u32::MAX;
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
}

impl NetHandler {
    pub(super) fn new(setup: Setup) -> Self {
        let several = setup.features & 1 << VIRTIO_NET_F_MQ != 0;
        let count = if several { setup.backends.len() } else { 1 };
        let pair = |(index, backend): (usize, &Arc<dyn Backend>)| Pair {
            receiver: Receiver::new(index, backend.clone(), &setup),
            transmitter: Transmitter::new(index, TRANSMIT | index as u32, backend.clone(), setup.counters.clone()),
        };
        let pairs = setup.backends.iter().take(count).enumerate().map(pair).collect();
        let control = Control::new(&setup, count);
        Self {
            pairs,
            control,
            control_queue: 2 * count,
            alarm: None,
            patience: setup.patience,
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
        self.backends.iter().take(self.pairs.len()).zip(0..).map(|(backend, pair)| (backend.fd(), pair)).collect()
    }

    fn on_queue(&mut self, index: usize, queues: &mut Queues) -> Result<(), Broken> {
        match index {
            _ if index == self.control_queue => self.control(queues),
            _ if index.is_multiple_of(2) => self.receive(index / 2, queues),
            _ => self.pairs.get_mut(index / 2).map_or(Ok(()), |pair| pair.transmitter.run(queues)),
        }
    }

    fn on_fd(&mut self, token: u32, queues: &mut Queues) -> Result<(), Broken> {
        if token == ALARM {
            return self.alarmed(queues);
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
