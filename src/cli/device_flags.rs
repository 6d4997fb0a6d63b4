//! Device flags, made from the list of device kinds: `--disk PATH,key=value`, and their part of `--help`.

use clap::{Arg, ArgAction, ArgMatches};

use crate::devices::{KINDS, Kind};
use crate::spec::{MachineSpec, SpecError};

/// A flag for every kind of device.
pub fn args() -> impl Iterator<Item = Arg> {
    KINDS.iter().map(|kind| {
        Arg::new(kind.name())
            .long(kind.name())
            .value_name(value_name(*kind))
            .help(kind.about())
            .long_help(long_help(*kind))
            .help_heading("Devices")
            .action(ArgAction::Append)
            .num_args(0..=1)
            .default_missing_value("")
    })
}

/// Puts the devices that the flags ask for into `spec`.
pub fn apply(matches: &ArgMatches, spec: &mut MachineSpec) -> Result<(), SpecError> {
    for kind in KINDS {
        for text in matches.get_many::<String>(kind.name()).into_iter().flatten() {
            spec.add_device(*kind, text)?;
        }
    }
    Ok(())
}

fn value_name(kind: &dyn Kind) -> String {
    match kind.keys() {
        [] => "".into(),
        [first] => first.value.into(),
        [first, ..] => format!("{},KEY=VALUE..", first.value),
    }
}

fn long_help(kind: &dyn Kind) -> String {
    let mut text = kind.about().to_string();
    for (index, key) in kind.keys().iter().enumerate() {
        let name =
            if index == 0 { format!("[{}=]{}", key.name, key.value) } else { format!("{}={}", key.name, key.value) };
        text.push_str(&format!("\n  {name}: {}", key.about));
    }
    text
}
