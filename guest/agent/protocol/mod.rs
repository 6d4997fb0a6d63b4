//! What the host and the agent in the guest say to each other, and the plan that the agent finds beside itself. One copy
//! for both: the agent (`guest/agent`) and the host (`src/agent`) compile these files. Standard library only.
//!
//! | file | what it is |
//! | --- | --- |
//! | `wire` | numbers, texts and lists as bytes |
//! | `message` | the messages |
//! | `frame` | messages in a stream of bytes |
//! | `plan` | what the agent shall do before it serves requests |
//! | `tree` | file trees as a stream of bytes |

pub mod frame;
pub mod message;
pub mod plan;
pub mod tree;
pub mod wire;

pub use frame::{Decoder, Frame};
pub use message::{Exec, Message, Outcome, Ready, Size, Stream, Task};
pub use plan::{Access, Address, Channel, Mount, Network, Plan, Root};
pub use wire::Malformed;

/// The version that these files speak. Both sides come from one binary, so there is no negotiation: another version is
/// an error.
pub const VERSION: u32 = 1;
/// Bytes that a sender may have under way on one stream before the receiver gives credit.
pub const WINDOW: u32 = 256 << 10;
/// Most bytes of one [`Message::Data`].
pub const CHUNK: usize = 32 << 10;
/// Longest payload of a frame for the host.
pub const TO_HOST: usize = 64 << 10;
/// Longest payload of a frame for the guest: arguments and environment of a command are in one. Linux takes 2 MiB.
pub const TO_GUEST: usize = 2 << 20;
