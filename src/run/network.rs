//! The network of a run: what `--publish` and `--allow` mean, and the addresses that the agent gives its interfaces.

use super::spec::{RunSpec, RunSpecError};
use super::{Error, prepare};
use crate::agent;
use crate::spec::MachineSpec;

/// First bytes of the hardware addresses of user-mode networks, by which the agent knows them; one more for the number.
const MAC: &str = "52:54:00:62:6a";

type Options = std::collections::BTreeMap<String, String>;

fn is_user(options: &Options) -> bool {
    options.get("user").is_some_and(|value| value != "off")
}

/// Adds the network that published ports need, and gives each of its kind a hardware address.
pub(super) fn add(machine: &mut MachineSpec, spec: &RunSpec) -> Result<(), Error> {
    let lists = [("publish", &spec.publish), ("allow", &spec.allow)];
    let wanted = lists.iter().find(|(_, list)| !list.is_empty());
    if let Some((name, _)) = wanted {
        let mut cards = machine.device_options("net");
        if cards.next().is_none() {
            drop(cards);
            prepare::add(machine, "net", "user")?;
        } else if !machine.device_options("net").any(is_user) {
            return Err(RunSpecError::NoUserNetwork(name).into());
        }
    }
    if let Some(card) = machine.device_options_mut("net").find(|options| is_user(options)) {
        for (name, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            let before = card.remove(name).into_iter();
            card.insert(name.into(), before.chain(list.iter().cloned()).collect::<Vec<_>>().join("+"));
        }
    }
    for (number, card) in machine.device_options_mut("net").filter(|options| is_user(options)).enumerate() {
        card.entry("mac".into()).or_insert_with(|| format!("{MAC}:{number:02x}"));
    }
    Ok(machine.validate_but_kernel()?)
}

/// What the agent configures: networks whose addresses are known here.
pub(super) fn for_agent(_: &MachineSpec) -> Vec<agent::Network> {
    Vec::new()
}
