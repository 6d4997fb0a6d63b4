//! Commands of the driver (section 5.1.6.5).

use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET,
    VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI, VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_ERR,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_MQ, VIRTIO_NET_OK,
};

use super::CONFIG_MAC;
use super::handler::{Setup, guest_offloads};
use crate::net::Backend;
use crate::net::mac::Mac;
use crate::virtio::config::ConfigSpace;
use crate::virtio::{Broken, Chain};

pub(super) struct Control {
    features: u64,
    offloads: u64,
    config: ConfigSpace,
    pairs: usize,
}

impl Control {
    pub(super) fn new(setup: &Setup, pairs: usize) -> Self {
        let offloads = guest_offloads(setup.features);
        Self { features: setup.features, offloads, config: setup.config.clone(), pairs }
    }

    /// What packets may leave to the guest now.
    pub(super) fn offloads(&self) -> u64 {
        self.offloads
    }

    /// Obeys a command; returns the chain with its answer and the length used.
    pub(super) fn command(&mut self, mut chain: Chain, backends: &[Arc<dyn Backend>]) -> Result<(Chain, u32), Broken> {
        chain.take_status()?;
        let done = self.obey(&mut chain, backends).is_some();
        chain.set_status(if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR } as u8);
        Ok((chain, 1))
    }

    /// None if the command is unknown, was not negotiated, or names what is not there.
    fn obey(&mut self, chain: &mut Chain, backends: &[Arc<dyn Backend>]) -> Option<()> {
        let [class, command] = read(chain)?;
        let has = |feature: u32| (self.features & 1 << feature != 0).then_some(());
        match (u32::from(class), u32::from(command)) {
            // A tap gives us every packet, and filters are best effort (section 5.1.6.5.1): there is nothing to do.
            (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC | VIRTIO_NET_CTRL_RX_ALLMULTI) => {
                has(VIRTIO_NET_F_CTRL_RX)?;
                read::<1>(chain).map(drop)
            }
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => has(VIRTIO_NET_F_CTRL_RX),
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
                has(VIRTIO_NET_F_CTRL_MAC_ADDR)?;
                let mac = Mac::new(read(chain)?)?;
                self.config.set(CONFIG_MAC, &mac.bytes());
                Some(())
            }
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                has(VIRTIO_NET_F_MQ)?;
                self.set_pairs(u16::from_le_bytes(read(chain)?).into(), backends)
            }
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                has(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)?;
                self.set_offloads(u64::from_le_bytes(read(chain)?), backends)
            }
            _ => None,
        }
    }

    fn set_pairs(&self, pairs: usize, backends: &[Arc<dyn Backend>]) -> Option<()> {
        if !(1..=self.pairs).contains(&pairs) {
            return None;
        }
        for (index, backend) in backends.iter().enumerate() {
            backend.set_enabled(index < pairs).ok()?;
        }
        Some(())
    }

    fn set_offloads(&mut self, offloads: u64, backends: &[Arc<dyn Backend>]) -> Option<()> {
        if offloads & !guest_offloads(self.features) != 0 {
            return None;
        }
        backends.first()?.set_offload(offloads).ok()?;
        self.offloads = offloads;
        Some(())
    }
}

fn read<const N: usize>(chain: &mut Chain) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    (chain.read(&mut bytes) == N).then_some(bytes)
}
