//! What a network card can be connected to: the keys that name a network, and how it is opened.
//!
//! Another network is a variant of [`Network`] with a key of its own in [`NAMES`], and a file in `src/net/`.

use std::sync::Arc;

use super::MIN_MTU;
use crate::devices::builder::{Statistics, json};
use crate::devices::{OptionError, Options};
use crate::net::Backend;
use crate::net::tap::{self, Tap};
use crate::net::user::{self, UserNet, config};

/// Keys that name a network. A card has one of them.
const NAMES: &[&str] = &["tap", "user"];
/// Keys that only go with `user`.
const OF_USER: &[&str] = &["publish", "allow", "host", "dns"];

/// A network as the specification names it.
#[derive(Debug)]
pub(super) enum Network {
    /// A tap interface of the host.
    Tap(String),
    /// A network inside this program.
    User(user::Config),
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
        let mut named = NAMES.iter().copied().filter(|name| options.text(name).is_some_and(|value| value != "off"));
        let name = named.next().unwrap_or("tap");
        if let Some(second) = named.next() {
            return Err(options.error(format!("{name} and {second}: a card is connected to one network; give one")));
        }
        if name == "user" {
            options.switch("user", false)?;
            return parse_user(options).map(Self::User);
        }
        if let Some(key) = OF_USER.iter().find(|key| options.text(key).is_some()) {
            return Err(options.error(format!("{key} goes with user, not with {name}; write --net user,{key}=..")));
        }
        let value = options.required(name)?.to_string();
        tap::check_name(&value).map_err(|reason| options.error(format!("tap={reason}")))?;
        Ok(Self::Tap(value))
    }

    /// The network in the words of the command line, after `--net`.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Tap(name) => format!("tap={name}"),
            Self::User(_) => "user".into(),
        }
    }

    /// Whether only one card can be connected to it.
    pub(super) fn exclusive(&self) -> bool {
        match self {
            Self::Tap(_) => true,
            // Each card has a network of its own.
            Self::User(_) => false,
        }
    }

    /// Opens it for this many pairs of queues.
    pub(super) fn open(&self, queues: usize) -> Result<Connection, String> {
        match self {
            Self::Tap(name) => open_tap(name, queues),
            Self::User(config) => open_user(config, queues),
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

fn parse_user(options: &Options) -> Result<user::Config, OptionError> {
    let fail = |key: &str| {
        let key = key.to_string();
        move |reason| options.error(format!("{key}={reason}"))
    };
    Ok(user::Config {
        publish: config::list(options.text("publish").unwrap_or_default()).map_err(fail("publish"))?,
        allow: config::list(options.text("allow").unwrap_or_default()).map_err(fail("allow"))?,
        host: options.switch("host", false)?,
        dns: options.text("dns").map(config::resolver).transpose().map_err(fail("dns"))?,
    })
}

fn open_user(config: &user::Config, queues: usize) -> Result<Connection, String> {
    if queues > 1 {
        return Err(format!("queues={queues}: this network has one pair of queues; leave the key out"));
    }
    let network = UserNet::open(config).map_err(|e| e.to_string())?;
    let counters = network.counters().clone();
    let statistics: Statistics = Box::new(move || json(&*counters));
    Ok(Connection { backends: vec![Arc::new(network)], mtu: Some(user::MTU), statistics: Some(("user", statistics)) })
}
