//! What two sides agreed on for a network device, as far as its queues care.
#![forbid(unsafe_code)]

use netreeve_shared::vnet::{self, Vnet};

use crate::port::{Offloads, offload_bits};

/// Feature bits of a network device (virtio 1.2 §5.1.3, §6; `linux/virtio_net.h`) and of vhost-user.
#[allow(missing_docs, reason = "the names are the specification's")]
pub mod feature {
    pub const CSUM: u64 = 1;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const GUEST_ECN: u64 = 1 << 9;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const HOST_ECN: u64 = 1 << 13;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const MQ: u64 = 1 << 22;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    /// `VHOST_USER_F_PROTOCOL_FEATURES`.
    pub const PROTOCOL: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
    pub const RING_PACKED: u64 = 1 << 34;
    pub const IN_ORDER: u64 = 1 << 35;
    pub const GUEST_USO4: u64 = 1 << 54;
    pub const GUEST_USO6: u64 = 1 << 55;
    pub const HOST_USO: u64 = 1 << 56;
}

/// The features in force, in the form that the data path asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Bytes of virtio-net header before each frame: 12 with `num_buffers`, else 10.
    pub header: u32,
    /// A frame for the guest may span several chains.
    pub mergeable: bool,
    /// Offloads that the guest takes (`GUEST_*`).
    pub takes: Offloads,
    /// Offloads that the guest's frames may ask for (`CSUM`, `HOST_*`).
    pub gives: Offloads,
    /// Notifications by index (`EVENT_IDX`).
    pub event_idx: bool,
    /// Indirect descriptors.
    pub indirect: bool,
    /// Packed rings.
    pub packed: bool,
}

impl Default for Terms {
    fn default() -> Self {
        Self::of(0)
    }
}

impl Terms {
    /// From acknowledged feature bits.
    #[must_use]
    pub fn of(acked: u64) -> Self {
        use feature as f;
        let has = |bit: u64| acked & bit == bit;
        let set = |csum: u64, list: &[(u64, u16)]| {
            // No segmentation without checksumming (virtio 1.2 §5.1.3.1).
            let bits = list.iter().filter(|(f, _)| has(*f)).fold(offload_bits::CSUM, |a, (_, o)| a | o);
            Offloads(if has(csum) { bits } else { 0 })
        };
        let takes = [
            (f::GUEST_TSO4, offload_bits::TSO4),
            (f::GUEST_TSO6, offload_bits::TSO6),
            (f::GUEST_ECN, offload_bits::ECN),
            (f::GUEST_USO4 | f::GUEST_USO6, offload_bits::USO),
        ];
        let gives = [
            (f::HOST_TSO4, offload_bits::TSO4),
            (f::HOST_TSO6, offload_bits::TSO6),
            (f::HOST_ECN, offload_bits::ECN),
            (f::HOST_USO, offload_bits::USO),
        ];
        Self {
            header: if acked & (f::VERSION_1 | f::MRG_RXBUF) == 0 { 10 } else { 12 },
            mergeable: has(f::MRG_RXBUF),
            takes: set(f::GUEST_CSUM, &takes),
            gives: set(f::CSUM, &gives),
            event_idx: has(f::EVENT_IDX),
            indirect: has(f::INDIRECT_DESC),
            packed: has(f::RING_PACKED),
        }
    }
}

/// The offloads that a frame with this header needs its taker to have.
#[must_use]
#[inline]
pub fn work(v: &Vnet) -> Offloads {
    let mut o = if v.needs_csum() { offload_bits::CSUM } else { 0 };
    if v.gso_type != vnet::GSO_NONE {
        o |= match v.gso() {
            vnet::GSO_NONE => 0,
            vnet::GSO_TCPV4 => offload_bits::TSO4,
            vnet::GSO_TCPV6 => offload_bits::TSO6,
            vnet::GSO_UDP_L4 => offload_bits::USO,
            // UFO and what nobody knows: a bit that no port of ours has.
            _ => offload_bits::UFO,
        };
        if v.gso_type & vnet::GSO_ECN != 0 {
            o |= offload_bits::ECN;
        }
    }
    Offloads(o)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_follow_the_acknowledged_bits() {
        let t = Terms::of(feature::CSUM | feature::HOST_TSO4 | feature::GUEST_TSO4 | feature::VERSION_1);
        assert_eq!(t.gives, Offloads(offload_bits::CSUM | offload_bits::TSO4));
        assert_eq!(t.takes, Offloads::NONE, "GUEST_TSO4 without GUEST_CSUM is void");
        assert_eq!(t.header, 12);
        assert_eq!(Terms::of(0).header, 10);
        let one = Terms::of(feature::GUEST_CSUM | feature::GUEST_USO4);
        assert!(!one.takes.has(offload_bits::USO), "one family alone is not enough");
    }

    #[test]
    fn work_names_what_a_header_asks_for() {
        let v = Vnet { flags: 1, gso_type: vnet::GSO_TCPV4 | vnet::GSO_ECN, ..Vnet::default() };
        assert_eq!(work(&v).0, offload_bits::CSUM | offload_bits::TSO4 | offload_bits::ECN);
        assert_eq!(work(&Vnet::default()), Offloads::NONE);
    }
}
