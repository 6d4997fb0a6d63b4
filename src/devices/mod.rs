//! The devices a machine can have. Adding one is a file here and two lines below: `mod` and an entry in [`KINDS`].
//! Its options, `--help`, TOML table and ACPI entry follow from what the file says of itself.

pub mod balloon;
pub mod blk;
pub mod builder;
pub mod character_queues;
pub mod console;
pub mod console_output;
pub mod exit_port;
pub mod fs;
pub mod guest_event;
pub mod keyboard_reset;
pub mod net;
pub mod options;
mod place;
pub mod port;
pub mod pvpanic;
pub mod rng;
pub mod rtc;
pub mod serial;
pub mod throttle;
pub mod uart;
pub mod vsock;

use std::fmt::Debug;

pub use builder::Builder;
pub use guest_event::{GuestEvent, Notify};
pub use options::{Key, OptionError, Options};

/// Every kind of device; the order is that of `--help` and of PCI slots.
pub const KINDS: &[&dyn Kind] = &[
    &serial::Kind,
    &uart::Kind,
    &console::Kind,
    &blk::Kind,
    &net::Kind,
    &fs::Kind,
    &rng::Kind,
    &vsock::Kind,
    &balloon::Kind,
    &port::Kind,
];

/// Places the devices that every machine has: clock, reset line, exit port, pvpanic. They cost nothing until used.
/// `rtc_listed`: ACPI shall name the clock (see [`rtc::place`]).
pub fn place_fixed(builder: &mut Builder<'_>, rtc_listed: bool) {
    rtc::place(builder, rtc_listed);
    keyboard_reset::place(builder);
    exit_port::place(builder);
    pvpanic::place(builder);
}

/// A kind of device: what the command line and the specification file know about it.
pub trait Kind: Sync {
    /// Name of the flag and of the TOML table, e.g. `disk`.
    fn name(&self) -> &'static str;
    /// One line for `--help`.
    fn about(&self) -> &'static str;
    /// What can be set. The first key may be given without its name (`--disk PATH,readonly`).
    fn keys(&self) -> &'static [Key];
    /// Whether a machine may have more than one.
    fn repeatable(&self) -> bool {
        true
    }
    /// Checks the options and makes a specification of one device. No side effects: files are opened by
    /// [`Spec::attach`].
    fn parse(&self, options: &mut Options) -> Result<Box<dyn Spec>, OptionError>;
}

/// One device that a machine shall have.
pub trait Spec: Debug + Send + Sync {
    /// Opens what the device needs and places it in the machine.
    fn attach(&self, builder: &mut Builder<'_>) -> Result<(), AttachError>;
    /// Words that the guest kernel's command line needs for this device, e.g. `console=hvc0`.
    fn kernel_words(&self) -> Vec<String> {
        Vec::new()
    }
    /// What no other device of the machine may have as well, in the words of the command line, e.g. `name=agent`.
    fn exclusive(&self) -> Option<String> {
        None
    }
    /// For a device that does things at times of its own, in the words of the command line, e.g. `--net`: a run with it
    /// cannot be repeated.
    fn timed(&self) -> Option<&'static str> {
        None
    }
    /// How many serial ports the kernel has to look for, if this is one.
    fn serial_ports(&self) -> u32 {
        0
    }
    /// For a device that can be the kernel's console but gives way to a better one.
    fn plain_console(&self) -> Option<PlainConsole> {
        None
    }
}

/// Kernel command line words of a console that works from the first message on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlainConsole {
    /// When it is the only console.
    pub main: &'static str,
    /// When there is a better one later: it prints until that takes over, so that no message appears twice.
    pub early: &'static str,
}

/// A device cannot be made. Says what was tried, why it failed and, where there is one, the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct AttachError(pub String);

/// The kind called `name`.
pub fn kind(name: &str) -> Option<&'static dyn Kind> {
    KINDS.iter().copied().find(|kind| kind.name() == name)
}
