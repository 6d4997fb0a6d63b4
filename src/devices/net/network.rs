//! What a network card can be connected to: the keys that name a network, and how it is opened.
//!
//! Another network is a variant of [`Network`] with a key of its own in [`NAMES`], and a file in `src/net/`.

use std::sync::Arc;

use super::MIN_MTU;
use crate::devices::builder::Statistics;
use crate::devices::{OptionError, Options};
use crate::net::Backend;
use crate::net::tap::{self, Tap};

/// Keys that name a network. A card has one of them.
const NAMES: &[&str] = &["tap"];

/// A network as the specification names it.
#[derive(Debug)]
pub(super) enum Network {
    /// A tap interface of the host.
    Tap(String),
}

/// An open network.
pub(super) struct Connection {
    /// One for each pair of queues.
    pub backends: Vec<Arc<dyn Backend>>,
    /// Largest packet that passes.
    pub mtu: Option<u16>,
    /// What the network tells of itself, for the report: a name and how to ask.
    pub statistics: Option<(&'static str, Statistics)>,
}

impl Network {
    /// The network that the options name.
    pub(super) fn parse(options: &Options) -> Result<Self, OptionError> {
        let mut named = NAMES.iter().filter(|name| options.text(name).is_some());
        let name = *named.next().unwrap_or(&"tap");
        if let Some(second) = named.next() {
            return Err(options.error(format!("{name} and {second}: a card is connected to one network; give one")));
        }
        let value = options.required(name)?.to_string();
        tap::check_name(&value).map_err(|reason| options.error(format!("tap={reason}")))?;
        Ok(Self::Tap(value))
    }

    /// The network in the words of the command line, after `--net`.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Tap(name) => format!("tap={name}"),
        }
    }

    /// Whether only one card can be connected to it.
    pub(super) fn exclusive(&self) -> bool {
        match self {
            Self::Tap(_) => true,
        }
    }

    /// Opens it for this many pairs of queues.
    pub(super) fn open(&self, queues: usize) -> Result<Connection, String> {
        match self {
            Self::Tap(name) => open_tap(name, queues),
        }
    }
}

fn open_tap(name: &str, queues: usize) -> Result<Connection, String> {
    let tap = Tap::open(name, queues).map_err(|e| e.to_string())?;
    if !tap.up {
        tracing::warn!("tap {name} is down, so the guest has no network; switch it on: ip link set {name} up");
    }
    let mtu = u16::try_from(tap.mtu).ok().filter(|&mtu| mtu >= MIN_MTU);
    Ok(Connection { backends: tap.queues, mtu, statistics: None })
}
