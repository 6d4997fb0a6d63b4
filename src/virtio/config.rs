//! Device-specific configuration space (section 2.5): bytes that the device sets and the transport shows.
#[derive(Debug)]
pub struct ConfigSpace;
