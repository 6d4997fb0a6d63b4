//! Which of all combinations of kernel, machine, root and test there are.

use std::collections::BTreeSet;

use toml::Spanned;
use toml::Value;
use toml::de::DeValue;

use super::pattern::{Pattern, did_you_mean};
use super::source::{Place, Problems};
use super::what::{Own, texts};

/// Names of what a combination is made of, as rules and messages have them.
pub(super) const AXES: [&str; 4] = ["kernel", "machine", "root", "test"];

/// Patterns for one axis; one of them has to match.
type Patterns = Vec<(Pattern, Place)>;

/// One entry of `include` or `exclude`: what it says nothing about does not matter.
#[derive(Debug, Clone, Default)]
pub(super) struct Rule([Patterns; AXES.len()]);

/// The table `[matrix]`.
#[derive(Debug, Clone)]
pub(super) struct Matrix {
    pub(super) include: Vec<Rule>,
    pub(super) exclude: Vec<Rule>,
    pub(super) place: Place,
}

impl Default for Matrix {
    fn default() -> Self {
        Self { include: Vec::new(), exclude: Vec::new(), place: Place::START }
    }
}

/// On which kernels, machines and roots a test is.
#[derive(Debug, Clone, Default)]
pub(super) struct Only(Rule);

/// Labels of a combination. A test goes by its own name too if it is one of several that a table makes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Labels<'a> {
    pub(super) axes: [&'a str; AXES.len()],
    pub(super) table: &'a str,
}

impl Matrix {
    /// Whether there is such a combination.
    pub(super) fn has(&self, labels: &Labels<'_>) -> bool {
        let included = self.include.is_empty() || self.include.iter().any(|rule| rule.matches(labels));
        included && !self.exclude.iter().any(|rule| rule.matches(labels))
    }

    /// Finds patterns that match nothing: they are slips of the pen.
    pub(super) fn check(&self, names: &[BTreeSet<&str>; AXES.len()], problems: &mut Problems) {
        self.include.iter().chain(&self.exclude).for_each(|rule| rule.check(names, problems));
    }
}

impl Only {
    pub(super) fn from_keys(own: &Own, problems: &mut Problems) -> Self {
        let mut patterns = |key: &str| -> Patterns {
            let Some((value, at)) = own.get(key) else { return Vec::new() };
            let texts = texts(value);
            if texts.is_none() {
                problems.add(*at, format!("`{key}`: write a list of names or patterns"));
            }
            texts.into_iter().flatten().map(|text| (Pattern::new(&text), *at)).collect()
        };
        Self(Rule([patterns("kernels"), patterns("machines"), patterns("roots"), Vec::new()]))
    }

    pub(super) fn has(&self, labels: &Labels<'_>) -> bool {
        self.0.matches(labels)
    }

    pub(super) fn check(&self, names: &[BTreeSet<&str>; AXES.len()], problems: &mut Problems) {
        self.0.check(names, problems);
    }
}

impl Rule {
    fn matches(&self, labels: &Labels<'_>) -> bool {
        let table = [None, None, None, Some(labels.table)];
        self.0.iter().zip(labels.axes).zip(table).all(|((patterns, label), table)| {
            let hit = |pattern: &Pattern| pattern.matches(label) || table.is_some_and(|name| pattern.matches(name));
            patterns.is_empty() || patterns.iter().any(|(pattern, _)| hit(pattern))
        })
    }

    fn check(&self, names: &[BTreeSet<&str>; AXES.len()], problems: &mut Problems) {
        for ((patterns, names), axis) in self.0.iter().zip(names).zip(AXES) {
            for (pattern, at) in patterns {
                if names.iter().any(|name| pattern.matches(name)) {
                    continue;
                }
                let text = pattern.to_string();
                let near = did_you_mean(&text, names.iter().copied());
                let known = names.iter().take(10).copied().collect::<Vec<_>>().join(", ");
                let rest = if near.is_empty() { format!("; there are {known}") } else { near };
                problems.add(*at, format!("`{text}` is no {axis}{rest}"));
            }
        }
    }
}

/// One entry of `include` or `exclude`.
pub(super) fn rule(text: &str, value: &Spanned<DeValue<'_>>, problems: &mut Problems) -> Option<Rule> {
    let at = |value: std::ops::Range<usize>| Place::of(text, value.start);
    let table = value.get_ref().as_table().filter(|table| !table.is_empty());
    let Some(table) = table else {
        problems.add(at(value.span()), "write { kernel = \"..\", machine = \"..\", root = \"..\", test = \"..\" }");
        return None;
    };
    let mut rule = Rule::default();
    for (key, value) in table {
        let (name, place) = (key.get_ref().as_ref(), at(value.span()));
        let axis = rule.0.iter_mut().zip(AXES).find(|(_, axis)| *axis == name);
        let Some((patterns, _)) = axis else {
            problems.add(at(key.span()), format!("unknown key `{name}` in [matrix]{}", did_you_mean(name, AXES)));
            continue;
        };
        let given = match value.get_ref() {
            DeValue::String(text) => texts(&Value::Array(vec![Value::String(text.to_string())])),
            DeValue::Array(list) => list.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect(),
            _ => None,
        };
        match given.filter(|given| !given.is_empty()) {
            Some(given) => patterns.extend(given.iter().map(|text| (Pattern::new(text), place))),
            None => problems.add(place, format!("`{name}`: write a name or pattern, or a list of those")),
        }
    }
    Some(rule)
}
