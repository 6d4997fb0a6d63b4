//! From the text of belljar.toml to its tables, each key checked where it stands. Nothing here touches the host.

use std::path::Path;

use serde::Deserialize;
use toml::de::{DeTable, DeValue, ValueDeserializer};
use toml::{Spanned, Table, Value};

use super::keys::{RULES, Section, device_mistake};
use super::layer::Layer;
use super::matrix::{Matrix, Only};
use super::pattern::did_you_mean;
use super::rules::{Expect, Rules};
use super::source::{Error, Place, Problems};
use super::what::{self, Own, Task};
use crate::devices;
use crate::run::RunSpec;

/// Longest name of a test, kernel, machine or root.
const NAME_LIMIT: usize = 80;

/// What a file says.
#[derive(Debug, Clone, Default)]
pub(super) struct Tables {
    pub(super) defaults: Layer,
    pub(super) kernels: Vec<Named>,
    pub(super) machines: Vec<Named>,
    pub(super) roots: Vec<Named>,
    pub(super) tests: Vec<Test>,
    pub(super) matrix: Matrix,
}

/// A kernel, machine or root.
#[derive(Debug, Clone)]
pub(super) struct Named {
    pub(super) name: Option<String>,
    pub(super) layer: Layer,
}

/// A test.
#[derive(Debug, Clone)]
pub(super) struct Test {
    pub(super) name: String,
    pub(super) tasks: Vec<Task>,
    pub(super) expect: Expect,
    pub(super) only: Only,
    pub(super) layer: Layer,
}

/// Reads a file.
pub(super) fn tables(text: &str, file: &Path) -> Result<Tables, Error> {
    let mut reader = Reader { text, problems: Problems::default() };
    let mut tables = Tables::default();
    match DeTable::parse(text) {
        Ok(table) => reader.file(table.get_ref(), &mut tables),
        Err(error) => {
            let place = reader.place(error.span().map_or(0, |span| span.start));
            reader.problems.add(place, one_line(error.message()));
        }
    }
    reader.problems.result(file).map(|()| tables)
}

/// Messages of parsers have several lines.
fn one_line(message: &str) -> String {
    message.trim().lines().map(str::trim).collect::<Vec<_>>().join(", ")
}

/// What is wrong with a specification, in the words of a file: messages are written for flags.
pub(super) fn as_keys(message: &str) -> String {
    message.split(' ').map(|word| word.strip_prefix("--").unwrap_or(word)).collect::<Vec<_>>().join(" ")
}

struct Reader<'t> {
    text: &'t str,
    problems: Problems,
}

impl Reader<'_> {
    fn place(&self, byte: usize) -> Place {
        Place::of(self.text, byte)
    }

    fn file(&mut self, table: &DeTable<'_>, tables: &mut Tables) {
        for (key, value) in table {
            let at = self.place(key.span().start);
            let section = Section::ALL.into_iter().find(|section| section.name() == key.get_ref());
            match (key.get_ref().as_ref(), section) {
                ("matrix", _) => tables.matrix = self.matrix(value),
                (_, Some(section)) => self.sections(section, value, tables),
                (name, None) if Section::Defaults.mistake(name).is_none() => {
                    self.problems.add(at, format!("`{name}` belongs in a table: put it below [defaults]"));
                }
                (name, None) => {
                    let known = Section::ALL.iter().map(|section| section.name()).chain(["matrix"]);
                    self.problems.add(at, format!("unknown table `{name}`{}", did_you_mean(name, known)));
                }
            }
        }
        if !table.keys().any(|key| key.get_ref() == "test") {
            self.problems.add(Place::START, "no [[test]]: a suite has at least one");
        }
    }

    /// One table, or several of a kind.
    fn sections(&mut self, section: Section, value: &Spanned<DeValue<'_>>, tables: &mut Tables) {
        let at = self.place(value.span().start);
        let list: Vec<_> = match value.get_ref() {
            DeValue::Array(list) if section != Section::Defaults => list.iter().collect(),
            DeValue::Table(_) => vec![value],
            _ => Vec::new(),
        };
        if list.is_empty() {
            self.problems.add(at, format!("`{}`: write it as {} with keys below", section.name(), section.title()));
        }
        for item in list {
            let place = self.place(item.span().start);
            let Some(table) = item.get_ref().as_table() else {
                self.problems.add(place, format!("`{}`: not a table", section.name()));
                continue;
            };
            let before = self.problems.count();
            let (layer, own) = self.section(section, table, place);
            // What seems to be missing may be there, misspelt: one message about it is enough.
            let misspelt = self.problems.count() > before && !what::is_said(&own);
            match section {
                Section::Defaults => tables.defaults = layer,
                Section::Kernel => tables.kernels.push(self.named(layer, &own)),
                Section::Machine => tables.machines.push(self.named(layer, &own)),
                Section::Root => tables.roots.push(self.named(layer, &own)),
                Section::Test if misspelt => {}
                Section::Test => self.test(layer, &own, tables),
            }
        }
    }

    /// The keys of a table: those that are merged with others, and its own.
    fn section(&mut self, section: Section, table: &DeTable<'_>, place: Place) -> (Layer, Own) {
        let mut layer = Layer { place, ..Layer::default() };
        let mut own = Own::new();
        for (key, value) in table {
            let (name, at) = (key.get_ref().as_ref(), self.place(value.span().start));
            if let Some(mistake) = section.mistake(name) {
                let at = self.place(key.span().start);
                self.problems.add(at, mistake);
                continue;
            }
            let plain = match Value::deserialize(ValueDeserializer::from(value.clone())) {
                Ok(plain) => plain,
                Err(error) => {
                    self.problems.add(at, format!("`{name}`: {}", one_line(error.message())));
                    continue;
                }
            };
            if section.owns(name) {
                own.insert(name.into(), (plain, at));
                continue;
            }
            if devices::kind(name).is_some() {
                self.devices(name, value);
            } else if let Some(mistake) = mistake(name, &plain) {
                self.problems.add(at, mistake);
            }
            layer.places.insert(name.into(), at);
            layer.values.insert(name.into(), plain);
        }
        (layer, own)
    }

    /// Devices of one kind, each looked at by itself.
    fn devices(&mut self, kind: &str, value: &Spanned<DeValue<'_>>) {
        let list = match value.get_ref() {
            DeValue::Array(list) => list.iter().collect(),
            _ => vec![value],
        };
        for device in list {
            let keys = device.get_ref().as_table().into_iter().flat_map(|table| table.keys());
            let wrong: Vec<_> = keys.filter_map(|key| Some((key, device_mistake(kind, key.get_ref())?))).collect();
            for (key, mistake) in &wrong {
                let at = self.place(key.span().start);
                self.problems.add(at, mistake.as_str());
            }
            let plain = Value::deserialize(ValueDeserializer::from(device.clone()));
            if let (true, Some(mistake)) = (wrong.is_empty(), plain.ok().and_then(|plain| mistake(kind, &plain))) {
                let at = self.place(device.span().start);
                self.problems.add(at, mistake);
            }
        }
    }

    fn named(&mut self, layer: Layer, own: &Own) -> Named {
        let name = own.get("name").and_then(|(value, at)| self.name(value, *at));
        Named { name, layer }
    }

    fn name(&mut self, value: &Value, at: Place) -> Option<String> {
        let name = value.as_str().filter(|name| is_name(name));
        if name.is_none() {
            let text = "`name`: write letters, digits and `. _ - + : ~ @ ,`, beginning with a letter or digit";
            self.problems.add(at, format!("{text}, at most {NAME_LIMIT}"));
        }
        name.map(str::to_owned)
    }

    fn test(&mut self, mut layer: Layer, own: &Own, tables: &mut Tables) {
        let (tasks, words) = what::tasks(own, layer.place, &mut self.problems);
        if !words.is_empty() {
            let at = own.get("command").map_or(layer.place, |(_, at)| *at);
            layer.places.insert("command".into(), at);
            layer.values.insert("command".into(), words.into_iter().map(Value::String).collect::<Vec<_>>().into());
        }
        let expect = own.get("expect").map(|(value, at)| (Expect::from_toml(value), *at));
        let expect = expect.and_then(|(expect, at)| expect.map_err(|text| self.problems.add(at, text)).ok());
        let only = Only::from_keys(own, &mut self.problems);
        let (name, at) = match own.get("name") {
            None => {
                self.problems.add(layer.place, "[[test]] needs a `name`");
                return;
            }
            Some((value, at)) => (self.name(value, *at), *at),
        };
        let Some(name) = name else { return };
        if tables.tests.iter().any(|test| test.name == name) {
            self.problems.add(at, format!("two tests are called `{name}`: give one another `name`"));
        }
        tables.tests.push(Test { name, tasks, expect: expect.unwrap_or_default(), only, layer });
    }

    fn matrix(&mut self, value: &Spanned<DeValue<'_>>) -> Matrix {
        let at = self.place(value.span().start);
        let Some(table) = value.get_ref().as_table() else {
            self.problems.add(at, "`matrix`: write it as [matrix] with `include` and `exclude` below");
            return Matrix::default();
        };
        let mut matrix = Matrix { place: at, ..Matrix::default() };
        for (key, value) in table {
            let (name, at) = (key.get_ref().as_ref(), self.place(key.span().start));
            let list = match name {
                "include" => &mut matrix.include,
                "exclude" => &mut matrix.exclude,
                _ => {
                    let near = did_you_mean(name, ["include", "exclude"]);
                    self.problems.add(at, format!("unknown key `{name}` in [matrix]{near}"));
                    continue;
                }
            };
            let rules = value.get_ref().as_array().filter(|rules| !rules.is_empty());
            let Some(rules) = rules else {
                self.problems.add(at, format!("`{name}`: write [{{ kernel = \"..\", test = \"..\" }}, ..]"));
                continue;
            };
            for rule in rules.iter() {
                list.extend(super::matrix::rule(self.text, rule, &mut self.problems));
            }
        }
        matrix
    }
}

/// What is wrong with the value of a key by itself.
fn mistake(key: &str, value: &Value) -> Option<String> {
    let table: Table = [(key.to_owned(), value.clone())].into_iter().collect();
    let typed = |error: toml::de::Error| format!("`{key}`: {}", one_line(error.message()));
    if RULES.contains(&key) {
        return table.try_into::<Rules>().map_or_else(|error| Some(typed(error)), |rules| rules.mistake());
    }
    match table.try_into::<RunSpec>() {
        Err(error) => Some(typed(error)),
        // It is looked at when it is known what it is relative to.
        Ok(_) if key == "workdir" => None,
        Ok(spec) => spec.validate().err().map(|error| as_keys(&error.to_string())),
    }
}

/// Whether something may be called so: it is part of ids, which are patterns' prey and parts of paths.
pub(super) fn is_name(name: &str) -> bool {
    name.len() <= NAME_LIMIT && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(is_in_names)
}

/// Whether names may have this character.
pub(super) fn is_in_names(character: char) -> bool {
    character.is_ascii_alphanumeric() || "._-+:~@,".contains(character)
}
