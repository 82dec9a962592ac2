//! Port `stream`: QEMU's stream framing, a 32-bit big-endian length before each frame.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// A stream as the dataplane opens it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The descriptor is a listening socket; else a connection that the supervisor dials.
    pub server: bool,
    /// The supervisor dials again when the connection is lost (`reconnect-ms`).
    pub redial: bool,
}
