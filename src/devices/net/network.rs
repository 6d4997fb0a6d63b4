//! What a network card can be connected to: the keys that name a network, and how it is opened.
//!
//! Another network is a variant of [`Network`] with a key of its own in [`NAMES`], and a file in `src/net/`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::MIN_MTU;
use crate::devices::builder::{Statistics, json};
use crate::devices::{OptionError, Options};
use crate::net::Backend;
use crate::net::capture::{Capture, Captured};
use crate::net::passt::Passt;
use crate::net::switch::{self, Switch};
use crate::net::tap::{self, Tap};
use crate::net::user::{self, UserNet, config};

/// Keys that name a network. A card has one of them.
const NAMES: &[&str] = &["tap", "user", "switch", "passt"];
/// Keys that only go with `user`.
const OF_USER: &[&str] = &["publish", "allow", "host", "dns"];

/// A network as the specification names it.
#[derive(Debug)]
pub(super) enum Network {
    /// A tap interface of the host.
    Tap(String),
    /// A network inside this program.
    User(user::Config),
    /// A switch that machines of this host share.
    Switch(String),
    /// A passt that listens at this path.
    Passt(PathBuf),
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

impl Connection {
    /// A network with one pair of queues that has nothing else to say.
    fn to(network: impl Backend + 'static) -> Self {
        Self { backends: vec![Arc::new(network)], mtu: None, statistics: None }
    }

    /// Keeps what passes in the file `path`.
    pub(super) fn capture(&mut self, path: &Path) -> Result<(), String> {
        let capture = Capture::create(path).map_err(|e| format!("cannot write pcap={}: {e}", path.display()))?;
        for backend in &mut self.backends {
            *backend = Arc::new(Captured::new(backend.clone(), capture.clone()));
        }
        Ok(())
    }
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
        let fail = |reason| options.error(format!("{name}={reason}"));
        match name {
            "switch" => switch::check_name(&value).map_err(fail).map(|()| Self::Switch(value)),
            "passt" => Ok(Self::Passt(value.into())),
            _ => tap::check_name(&value).map_err(fail).map(|()| Self::Tap(value)),
        }
    }

    /// The network in the words of the command line, after `--net`.
    pub(super) fn name(&self) -> String {
        match self {
            Self::Tap(name) => format!("tap={name}"),
            Self::User(_) => "user".into(),
            Self::Switch(name) => format!("switch={name}"),
            Self::Passt(path) => format!("passt={}", path.display()),
        }
    }

    /// Whether only one card can be connected to it.
    pub(super) fn exclusive(&self) -> bool {
        match self {
            Self::Tap(_) | Self::Passt(_) => true,
            // Each card has a network of its own; a switch is there for several.
            Self::User(_) | Self::Switch(_) => false,
        }
    }

    /// Opens it for this many pairs of queues.
    pub(super) fn open(&self, queues: usize) -> Result<Connection, String> {
        match self {
            Self::Tap(name) => open_tap(name, queues),
            Self::User(config) => open_user(config, queues),
            Self::Switch(name) => {
                one_pair(queues)?;
                Ok(Connection::to(Switch::join(name).map_err(|e| e.to_string())?))
            }
            Self::Passt(path) => {
                one_pair(queues)?;
                Ok(Connection::to(Passt::connect(path).map_err(|e| no_passt(path, &e))?))
            }
        }
    }
}

fn one_pair(queues: usize) -> Result<(), String> {
    match queues {
        1 => Ok(()),
        _ => Err(format!("queues={queues}: this network has one pair of queues; leave the key out")),
    }
}

fn no_passt(path: &Path, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            format!("no passt listens there ({error}); start it: passt --socket {}", path.display())
        }
        _ => format!("cannot connect to passt: {error}"),
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
    one_pair(queues)?;
    let network = UserNet::open(config).map_err(|e| e.to_string())?;
    let counters = network.counters().clone();
    let statistics: Statistics = Box::new(move || json(&*counters));
    Ok(Connection { backends: vec![Arc::new(network)], mtu: Some(user::MTU), statistics: Some(("user", statistics)) })
}
