//! The network of a run: what `--publish` and `--allow` mean, and the addresses that the agent gives its interfaces.

use super::spec::{RunSpec, RunSpecError};
use super::{Error, prepare};
use crate::agent;
use crate::net::mac::Mac;
use crate::net::user;
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
pub(super) fn for_agent(machine: &MachineSpec) -> Vec<agent::Network> {
    let cards = machine.device_options("net").filter(|options| is_user(options));
    cards.filter_map(|options| Some(network(options.get("mac")?.parse().ok()?))).collect()
}

fn network(mac: Mac) -> agent::Network {
    let ipv4 = agent::Address { address: user::GUEST, prefix: user::PREFIX, gateway: Some(user::GATEWAY) };
    let ipv6 = agent::Address { address: user::GUEST6, prefix: user::PREFIX6, gateway: Some(user::GATEWAY6) };
    let dns = vec![user::DNS.to_string(), user::DNS6.to_string()];
    agent::Network { mac: mac.bytes(), ipv4: Some(ipv4), ipv6: Some(ipv6), dns }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(spec: RunSpec) -> Result<MachineSpec, String> {
        let mut machine = spec.machine.clone();
        add(&mut machine, &spec).map(|()| machine).map_err(|e| e.to_string())
    }

    #[test]
    fn published_ports_imply_their_network() {
        let spec = RunSpec { publish: vec!["8080:80".into(), "53:53/udp".into()], ..RunSpec::default() };
        let machine = with(spec).unwrap();
        let card = machine.device_options("net").next().unwrap();
        assert_eq!(card.get("publish").map(String::as_str), Some("8080:80+53:53/udp"));
        let network = for_agent(&machine).remove(0);
        assert_eq!(network.mac, [0x52, 0x54, 0, 0x62, 0x6a, 0]);
        assert_eq!(network.ipv4.unwrap().address, user::GUEST);
        assert!(for_agent(&with(RunSpec::default()).unwrap()).is_empty());
    }

    #[test]
    fn what_the_network_does_not_take_is_named() {
        let mut spec = RunSpec { publish: vec!["80".into()], ..RunSpec::default() };
        assert!(with(spec.clone()).unwrap_err().contains("publish"));
        spec.publish = vec!["8080:80".into()];
        prepare::add(&mut spec.machine, "net", "tap=tap0").unwrap();
        assert!(with(spec).unwrap_err().starts_with("--publish goes with --net user"));
    }
}
