//! What a vhost-user device offers, and its configuration space.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use super::Plan;
use crate::virtq::terms::feature as f;

/// Protocol features (QEMU's `docs/interop/vhost-user.rst`).
#[allow(missing_docs, reason = "the names are the specification's")]
pub mod protocol {
    pub const MQ: u64 = 1;
    pub const RARP: u64 = 1 << 2;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const MTU: u64 = 1 << 4;
    pub const BACKEND_REQ: u64 = 1 << 5;
    pub const CONFIG: u64 = 1 << 9;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
}

/// Who is on the other side, as far as it changes what is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FrontEnd {
    /// Begins with `GET_FEATURES`: serves configuration space and control queue itself and warns if we offer to.
    Qemu,
    /// Begins with `SET_OWNER`: cloud-hypervisor, crosvm, User-Mode Linux, DPDK.
    Other,
}

/// Device features offered.
#[must_use]
pub fn offered(plan: &Plan, to: FrontEnd) -> u64 {
    let mut o = f::VERSION_1 | f::PROTOCOL | f::INDIRECT_DESC | f::EVENT_IDX | f::MRG_RXBUF | f::STATUS;
    o |= f::RING_PACKED | f::IN_ORDER;
    o |= f::CSUM | f::HOST_TSO4 | f::HOST_TSO6 | f::HOST_ECN | f::HOST_USO;
    o |= f::GUEST_CSUM | f::GUEST_TSO4 | f::GUEST_TSO6 | f::GUEST_ECN | f::GUEST_USO4 | f::GUEST_USO6;
    if plan.mac.is_some() {
        o |= f::MAC;
    }
    if plan.mtu.is_some() {
        o |= f::MTU;
    }
    if plan.queues > 1 {
        o |= f::MQ;
        if to == FrontEnd::Other {
            o |= f::CTRL_VQ;
        }
    }
    complete(o & !(plan.hide & !f::PROTOCOL))
}

/// Leaves out what needs something that is not there (virtio 1.2 §5.1.3.1).
fn complete(mut o: u64) -> u64 {
    let mut needs = |feature: u64, what: u64| {
        if o & what == 0 {
            o &= !feature;
        }
    };
    needs(f::HOST_TSO4 | f::HOST_TSO6 | f::HOST_USO, f::CSUM);
    needs(f::GUEST_TSO4 | f::GUEST_TSO6 | f::GUEST_USO4 | f::GUEST_USO6, f::GUEST_CSUM);
    needs(f::HOST_ECN, f::HOST_TSO4 | f::HOST_TSO6);
    needs(f::GUEST_ECN, f::GUEST_TSO4 | f::GUEST_TSO6);
    o
}

/// In [`Plan::hide`], no feature of virtio's: the front end is not offered a channel on which we speak first. QEMU's
/// `-netdev passt` (11.1) goes on watching the number of its end after it has closed it, and closes what has the number
/// then, the guest's memory for instance.
pub const CHANNEL: u64 = 1 << 63;

/// Protocol features offered.
#[must_use]
pub fn offered_protocol(plan: &Plan, to: FrontEnd) -> u64 {
    use protocol as p;
    let all = p::MQ
        | p::RARP
        | p::REPLY_ACK
        | p::MTU
        | p::BACKEND_REQ
        | p::RESET_DEVICE
        | p::CONFIGURE_MEM_SLOTS
        | p::STATUS;
    let all = if plan.hide & CHANNEL == 0 { all } else { all & !p::BACKEND_REQ };
    match to {
        FrontEnd::Qemu => all,
        FrontEnd::Other => all | p::CONFIG,
    }
}

/// `struct virtio_net_config` (virtio 1.2 §5.1.4), from `offset` on, `size` bytes; zero where we have nothing to say.
#[must_use]
pub fn config(plan: &Plan, link_up: bool, offset: u32, size: u32) -> Vec<u8> {
    let mut c = Vec::with_capacity(17);
    c.extend(plan.mac.map_or([0; 6], |m| m.0));
    c.extend(u16::from(link_up).to_le_bytes());
    c.extend(plan.queues.to_le_bytes());
    c.extend(plan.mtu.unwrap_or(1500).to_le_bytes());
    // Speed and duplex: unknown.
    c.extend([0xff; 5]);
    let read = |i: u32| c.get(i as usize).copied().unwrap_or(0);
    (offset..offset.saturating_add(size)).map(read).collect()
}

#[cfg(test)]
mod tests {
    use netreeve_shared::mac::Mac;

    use super::*;

    fn plan(queues: u16, hide: u64) -> Plan {
        Plan { queues, server: true, mac: Some(Mac([2, 0, 0, 0, 0, 1])), mtu: Some(9000), hide }
    }

    #[test]
    fn only_what_can_be_served_is_offered() {
        let one = offered(&plan(1, 0), FrontEnd::Other);
        assert_eq!(
            one & (f::MQ | f::CTRL_VQ),
            0,
            "no control queue without need: who offers it must serve it"
        );
        let many = offered(&plan(4, 0), FrontEnd::Other);
        assert_eq!(many & (f::MQ | f::CTRL_VQ), f::MQ | f::CTRL_VQ);
        assert_eq!(offered(&plan(4, 0), FrontEnd::Qemu) & f::CTRL_VQ, 0);
        let to = FrontEnd::Qemu;
        assert_eq!(offered_protocol(&plan(1, 0), to) & protocol::CONFIG, 0);
        assert_eq!(
            offered_protocol(&plan(1, 0), to) ^ offered_protocol(&plan(1, CHANNEL), to),
            protocol::BACKEND_REQ
        );
        assert_eq!(offered(&plan(1, CHANNEL), to), offered(&plan(1, 0), to));
        let bare = offered(&plan(1, f::CSUM | f::GUEST_TSO4 | f::GUEST_TSO6), FrontEnd::Qemu);
        assert_eq!(bare & (f::HOST_TSO4 | f::HOST_TSO6 | f::HOST_USO | f::HOST_ECN | f::GUEST_ECN), 0);
        assert_ne!(offered(&plan(1, u64::MAX), FrontEnd::Qemu) & f::PROTOCOL, 0, "cannot be hidden");
    }

    #[test]
    fn configuration_space_reads_bytewise() {
        let p = plan(2, 0);
        assert_eq!(config(&p, true, 0, 12), [2, 0, 0, 0, 0, 1, 1, 0, 2, 0, 0x28, 0x23]);
        assert_eq!(config(&p, false, 6, 1), [0]);
        assert_eq!(config(&p, true, 200, 3), [0, 0, 0]);
    }
}
