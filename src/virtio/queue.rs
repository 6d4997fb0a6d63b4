//! The queues of an active device.
#[derive(Debug)]
pub struct Queues;
