//! Port `af-xdp`: AF_XDP sockets that the helper bound.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// AF_XDP sockets as the dataplane opens them; the numbers are the grant's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Queues: two descriptors each, socket and UMEM memfd.
    pub queues: u16,
    /// MTU in bytes.
    pub mtu: u32,
    /// Entries of each ring.
    pub ring: u32,
    /// Bytes of a chunk.
    pub chunk: u32,
    /// Chunks of each queue's UMEM.
    pub chunks: u32,
    /// Bytes of headroom beside the kernel's 256.
    pub headroom: u32,
    /// Frames may span several chunks.
    pub multi_buffer: bool,
    /// Descriptors were used by an earlier dataplane that died: take over the rings as they stand.
    pub resume: bool,
}
