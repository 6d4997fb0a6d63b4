//! Tables of belljar.toml that are parts of one specification, and how several become one.

use std::collections::BTreeMap;

use toml::{Table, Value};

use super::source::Place;
use crate::devices;

/// Lists to which later tables add.
const ADDED: &[&str] =
    &["env", "env-file", "volumes", "publish", "allow", "initrd", "artifacts", "expected-failures", "ignore-splats"];

/// A part of a specification, and where its keys stand.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    /// What it says.
    pub(super) values: Table,
    /// Where the value of each key stands.
    pub(super) places: BTreeMap<String, Place>,
    /// Where the table begins.
    pub(super) place: Place,
}

impl Default for Layer {
    fn default() -> Self {
        Self { values: Table::new(), places: BTreeMap::new(), place: Place::START }
    }
}

/// All layers as one: the words of `append` are joined, lists and devices of which a machine may have several are added
/// up, of everything else the later one counts.
pub(super) fn merge(layers: &[&Layer]) -> Table {
    let mut all = Table::new();
    for (key, value) in layers.iter().flat_map(|layer| &layer.values) {
        add(&mut all, key, value.clone());
    }
    all
}

/// Where the value of `key` that counts stands; if nowhere, where the last layer begins.
pub(super) fn place(layers: &[&Layer], key: &str) -> Place {
    let said = layers.iter().rev().find_map(|layer| layer.places.get(key));
    said.copied().or(layers.last().map(|layer| layer.place)).unwrap_or(Place::START)
}

fn add(all: &mut Table, key: &str, value: Value) {
    // A guest has one root.
    match key {
        "root" => drop(all.remove("disk-root")),
        "disk-root" => drop(all.remove("root")),
        _ => {}
    }
    let several = ADDED.contains(&key) || devices::kind(key).is_some_and(|kind| kind.repeatable());
    let value = match (all.remove(key), value) {
        (Some(Value::String(before)), Value::String(words)) if key == "append" => {
            Value::String(format!("{before} {words}").trim().to_owned())
        }
        (Some(Value::Table(mut before)), Value::Table(more)) if key == "splats" => {
            before.extend(more);
            Value::Table(before)
        }
        (Some(before), more) if several => Value::Array([list(before), list(more)].concat()),
        (_, value) => value,
    };
    all.insert(key.to_owned(), value);
}

fn list(value: Value) -> Vec<Value> {
    match value {
        Value::Array(list) => list,
        one => vec![one],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(texts: &[&str]) -> Table {
        let layer = |text: &&str| Layer { values: text.parse().unwrap(), ..Layer::default() };
        let layers: Vec<_> = texts.iter().map(layer).collect();
        merge(&layers.iter().collect::<Vec<_>>())
    }

    #[test]
    fn later_tables_add_or_replace() {
        let all = merged(&[
            "append = \"quiet\"\nenv = [\"A=1\"]\ncpus = 1\nroot = \"a\"\ndisk = \"x\"\nsplats = { bug = \"warn\" }",
            "append = \"debug\"\nenv = [\"A=2\"]\ncpus = 4\ndisk-root = \"b\"\n[[disk]]\npath = \"y\"\n\
             [splats]\nwarning = \"ignore\"",
        ]);
        let expected = "append = \"quiet debug\"\nenv = [\"A=1\", \"A=2\"]\ncpus = 4\ndisk-root = \"b\"\n\
                        disk = [\"x\", { path = \"y\" }]\nsplats = { bug = \"warn\", warning = \"ignore\" }";
        assert_eq!(all, expected.parse::<Table>().unwrap());
    }

    #[test]
    fn devices_of_which_there_is_one_are_replaced() {
        let kind = devices::KINDS.iter().find(|kind| !kind.repeatable()).unwrap().name();
        let all = merged(&[&format!("{kind} = \"a\""), &format!("{kind} = \"b\"")]);
        assert_eq!(all.get(kind), Some(&Value::String("b".into())));
    }

    #[test]
    fn the_place_is_that_of_the_value_that_counts() {
        let at = |line| Place { line, column: 1 };
        let one = Layer { places: [("cpus".to_string(), at(2))].into(), place: at(1), ..Layer::default() };
        let two = Layer { place: at(5), ..Layer::default() };
        assert_eq!(place(&[&one, &two], "cpus"), at(2));
        assert_eq!(place(&[&one, &two], "memory"), at(5));
    }
}
