//! What users write: device options, specification files, kernel command lines, suites of tests.

use crate::devices::{KINDS, Options};
use crate::loader::cmdline;
use crate::runner::config;
use crate::spec::MachineSpec;

/// The first byte chooses the kind of device, the rest is the text of its flag.
pub(super) fn options(data: &[u8]) {
    let Some((&first, rest)) = data.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    let kind = KINDS[usize::from(first) % KINDS.len()];
    if let Ok(mut options) = Options::from_flag(kind.name(), kind.keys(), &text) {
        let again = Options::from_values(kind.name(), kind.keys(), options.values().clone());
        assert_eq!(again.map(|o| o.values().clone()).as_ref(), Ok(options.values()));
        if let Ok(spec) = kind.parse(&mut options) {
            drop((spec.kernel_words(), spec.plain_console(), format!("{spec:?}")));
        }
    }
}

pub(super) fn option_seeds() -> Vec<Vec<u8>> {
    let texts = KINDS.iter().zip(0..).flat_map(|(kind, index)| {
        let keys = kind.keys().iter().map(move |key| format!("{}={}", key.name, key.value));
        keys.chain(kind.keys().iter().map(|key| format!("{}=16", key.name))).map(move |text| (index, text))
    });
    texts.map(|(index, text): (u8, String)| [&[index], text.as_bytes()].concat()).collect()
}

/// A specification file, and a command line.
pub(super) fn spec(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let valid = MachineSpec::from_toml(&text).ok().filter(|spec| spec.validate().is_ok());
    if let Some(spec) = valid {
        let again = MachineSpec::from_toml(&spec.to_toml().unwrap()).unwrap();
        assert_eq!(again, spec, "a specification does not survive being written");
        drop(crate::machine::kernel_command_line(&spec));
    }
    drop(cmdline::check(&text, 2047));
}

pub(super) fn spec_seeds() -> Vec<Vec<u8>> {
    [
        "kernel = \"k\"\ninitrd = [\"a\", \"b\"]\ncpus = 2\nmemory = \"1G\"\ntransport = \"mmio\"\n\n[serial]\nto = \"null\"\n",
        "kernel = \"k\"\nappend = \"quiet\"\n[[disk]]\npath = \"x\"\nreadonly = true\n[[disk]]\npath = \"y\"\nqueues = 2\n",
        "kernel = \"k\"\nconsole = \"pty\"\nnet = \"tap0\"\nrng = true\ntimeout = 5\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// A suite of tests: every cell can be run, and found by its id.
pub(super) fn suite(data: &[u8]) {
    let mut cells = config::look_at_suite(&String::from_utf8_lossy(data));
    let ids: std::collections::BTreeSet<_> = cells.iter().map(|cell| cell.id.as_str()).collect();
    assert_eq!(ids.len(), cells.len(), "two cells have one id");
    cells.truncate(10);
    for cell in &cells {
        cell.run.validate().unwrap();
        drop((cell.reproduce(None), config::jobs(&cells, 4, 1 << 30)));
        let filters = vec![format!("={}", cell.id)];
        let selection = config::Selection { filters, ..config::Selection::default() };
        assert_eq!(config::select(cells.clone(), &selection).unwrap().len(), 1);
    }
}

pub(super) fn suite_seeds() -> Vec<Vec<u8>> {
    let page = include_str!("../../docs/test-config.md");
    let example = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap_or_default();
    let small = "[[test]]\nname = \"t\"\ncommand = \"a | b\"\n[[machine]]\ncpus = 2\n[[machine.disk]]\npath = \"x\"\n";
    // Where no file is, no glob matches any.
    [example.replace("out/*", "out/next"), small.into()].map(String::into_bytes).to_vec()
}
