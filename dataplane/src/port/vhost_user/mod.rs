//! Port `vhost-user`: a VMM attaches to us, we are the back end.
#![forbid(unsafe_code)]

use netreeve_shared::mac::Mac;
use serde::{Deserialize, Serialize};

/// A vhost-user device as the dataplane opens it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Queue pairs offered.
    pub queues: u16,
    /// The descriptor is a listening socket; else a connection that the supervisor dials.
    pub server: bool,
    /// Address in the device's configuration space, for front ends that ask us.
    pub mac: Option<Mac>,
    /// MTU in bytes (`VIRTIO_NET_F_MTU`).
    pub mtu: Option<u16>,
    /// Feature bits that are not offered, beside those that are not implemented.
    pub hide: u64,
}
