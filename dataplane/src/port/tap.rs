//! Port `tap`: a tap device's queues.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// A tap as the dataplane opens it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Queues: as many descriptors.
    pub queues: u16,
    /// Bytes of virtio-net header before each frame: 0, 10 or 12 (read back from the kernel by whoever made the tap).
    pub vnet_header: u8,
    /// MTU in bytes.
    pub mtu: u32,
}
