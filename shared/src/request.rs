//! What a client may ask the helper for: plain values, no paths, no text but [`IfName`].
//!
//! Trust: a request is made by an unprivileged process; [`Request::check`] is run by the helper before the policy is
//! asked, so that a policy never judges a value that the provider would read differently.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::ifname::IfName;
use crate::mac::Mac;

/// Most queues of one tap in one grant: each queue is a descriptor and a message carries 16.
pub const MAX_TAP_QUEUES: u16 = 16;
/// Most AF_XDP queues in one grant: each queue is two descriptors (socket, UMEM).
pub const MAX_XSK_QUEUES: u16 = 8;
/// Most addresses that one steering request may name.
pub const MAX_STEER_MACS: usize = 16;
/// Largest UMEM of one queue, in bytes.
pub const MAX_UMEM: u64 = 1 << 30;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// A tap device, new, helper-named unless `name` is given.
    Tap(TapRequest),
    /// AF_XDP sockets, bound by the helper, with their UMEM.
    Xsk(XskRequest),
    /// AF_XDP sockets, unbound but pinned to the interface (`SO_BINDTODEVICE`): what QEMU's
    /// `-netdev af-xdp,inhibit=on,sock-fds=...` takes. `umem` and `ring` are ignored: the VMM makes its own.
    XskPinned(XskRequest),
    /// The holder of an [`Request::Xsk`] grant has filled its rings: insert the sockets into the map and attach.
    /// The number is the grant's `ticket`.
    Activate(u32),
    /// A raw IP socket of one L2TPv3 session.
    L2tp(L2tpRequest),
    /// A socket at a port that only the privileged may bind.
    Listen(ListenRequest),
}

/// A raw socket of IP protocol 115: bound to `src`, connected to `dst`, deaf for ever to sessions other than `session`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct L2tpRequest {
    /// Our address, one of this machine's.
    pub src: IpAddr,
    /// The peer's address, of the same family.
    pub dst: IpAddr,
    /// The session's number in what is received; not 0, which marks control messages.
    pub session: u32,
}

/// A TCP socket that listens, or a UDP socket that is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenRequest {
    /// UDP instead of TCP.
    pub udp: bool,
    /// Our address, or the unspecified one of a family for all of that family's.
    pub address: IpAddr,
    /// The port, not 0.
    pub port: u16,
}

/// A tap device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapRequest {
    /// Interface name; none: the helper makes one (`nv` and random letters). Naming is a right of its own in the policy.
    pub name: Option<IfName>,
    /// Keep the interface when its last descriptor closes. Needs `name`, and a policy that allows it.
    pub persist: bool,
    /// Queues, 1 to [`MAX_TAP_QUEUES`].
    pub queues: u16,
    /// `IFF_VNET_HDR`: every frame carries a virtio-net header.
    pub vnet_header: bool,
    /// MTU in bytes, 68 to 65521; none: the bridge's, else the kernel's default (1500).
    pub mtu: Option<u32>,
    /// Bridge to join.
    pub bridge: Option<BridgeRequest>,
}

/// The bridge that a tap joins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeRequest {
    /// The bridge's name.
    pub name: IfName,
    /// Make the bridge if it is not there (a right of its own in the policy).
    pub create: bool,
    /// Bridge-port isolation (`IFLA_BRPORT_ISOLATED`): isolated ports reach only ports that are not.
    pub isolated: bool,
}

/// How the XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XdpMode {
    /// In the driver (`XDP_FLAGS_DRV_MODE`).
    Native,
    /// In the network stack (`XDP_FLAGS_SKB_MODE`), for every driver.
    Skb,
}

/// AF_XDP sockets on consecutive receive queues of one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XskRequest {
    /// The interface.
    pub interface: IfName,
    /// How to attach; none: native, and skb if the driver refuses (QEMU's rule).
    pub mode: Option<XdpMode>,
    /// Queues, 1 to [`MAX_XSK_QUEUES`].
    pub queues: u16,
    /// First receive queue.
    pub start_queue: u16,
    /// `XDP_COPY` at bind: never zero-copy.
    pub force_copy: bool,
    /// Entries of each of the four rings, a power of two, 64 to 32768.
    pub ring: u32,
    /// Bytes of a UMEM chunk: 2048 or 4096.
    pub chunk: u32,
    /// UMEM chunks of each queue; `chunk * chunks` is at most [`MAX_UMEM`].
    pub chunks: u32,
    /// Which frames come to the sockets.
    pub steer: Steer,
}

/// Which frames the XDP program takes away from the host. Everything else passes to the host's own stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Steer {
    /// Every frame: the interface is this guest's alone.
    All,
    /// Frames whose destination address is one of these.
    Macs {
        /// The guest's addresses, 1 to [`MAX_STEER_MACS`].
        macs: Vec<Mac>,
        /// Broadcast frames go to the guest too (and no longer to the host).
        broadcast: bool,
        /// Multicast frames go to the guest too (and no longer to the host).
        multicast: bool,
    },
}

/// Why a request's values cannot stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BadRequest {
    /// Zero queues, or more than one grant carries.
    Queues,
    /// MTU outside 68 to 65521.
    Mtu,
    /// `persist` without `name`.
    PersistUnnamed,
    /// Ring size is not a power of two from 64 to 32768.
    Ring,
    /// Chunk is neither 2048 nor 4096, or the UMEM is empty or too large.
    Umem,
    /// No steering address, too many, or one that no station can own.
    Steer,
    /// `start_queue + queues` exceeds 65535.
    StartQueue,
    /// An address that no single machine has, that needs an interface beside it (`fe80::/10`), or of the other family.
    Address,
    /// Session or port 0.
    Zero,
}

impl Request {
    /// Checks that every number lies in its documented range.
    ///
    /// # Errors
    /// The first rule that the request breaks.
    pub fn check(&self) -> Result<(), BadRequest> {
        match self {
            Self::Tap(t) => t.check(),
            Self::Xsk(x) => x.check().and_then(|()| x.check_umem()),
            Self::XskPinned(x) => x.check(),
            Self::Activate(_) => Ok(()),
            Self::L2tp(l) => {
                let ends = is_station(l.src) && is_station(l.dst) && l.src.is_ipv6() == l.dst.is_ipv6();
                sound(ends, l.session)
            }
            Self::Listen(l) => sound(l.address.is_unspecified() || is_station(l.address), l.port.into()),
        }
    }
}

/// What two requests of sockets have in common: addresses that are right, and a number that is not 0.
fn sound(addresses: bool, number: u32) -> Result<(), BadRequest> {
    match (addresses, number) {
        (false, _) => Err(BadRequest::Address),
        (_, 0) => Err(BadRequest::Zero),
        _ => Ok(()),
    }
}

/// An address that one machine may have, and that says by itself where it is.
fn is_station(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !(a.is_unspecified() || a.is_multicast() || a.is_broadcast()),
        IpAddr::V6(a) => {
            let elsewhere = a.is_unicast_link_local() || a.to_ipv4_mapped().is_some();
            !(a.is_unspecified() || a.is_multicast() || elsewhere)
        }
    }
}

impl TapRequest {
    fn check(&self) -> Result<(), BadRequest> {
        if self.queues == 0 || self.queues > MAX_TAP_QUEUES {
            return Err(BadRequest::Queues);
        }
        if self.mtu.is_some_and(|m| !(68..=65521).contains(&m)) {
            return Err(BadRequest::Mtu);
        }
        if self.persist && self.name.is_none() {
            return Err(BadRequest::PersistUnnamed);
        }
        Ok(())
    }
}

impl XskRequest {
    fn check(&self) -> Result<(), BadRequest> {
        if self.queues == 0 || self.queues > MAX_XSK_QUEUES {
            return Err(BadRequest::Queues);
        }
        if self.start_queue.checked_add(self.queues).is_none() {
            return Err(BadRequest::StartQueue);
        }
        if let Steer::Macs { macs, .. } = &self.steer {
            let fits = !macs.is_empty() && macs.len() <= MAX_STEER_MACS;
            if !fits || !macs.iter().all(|m| m.is_station()) {
                return Err(BadRequest::Steer);
            }
        }
        Ok(())
    }

    fn check_umem(&self) -> Result<(), BadRequest> {
        if !self.ring.is_power_of_two() || !(64..=32768).contains(&self.ring) {
            return Err(BadRequest::Ring);
        }
        let bytes = u64::from(self.chunk) * u64::from(self.chunks);
        if !matches!(self.chunk, 2048 | 4096) || bytes == 0 || bytes > MAX_UMEM {
            return Err(BadRequest::Umem);
        }
        Ok(())
    }

    /// Bytes of UMEM that the request asks for over all queues.
    #[must_use]
    pub fn umem_bytes(&self) -> u64 {
        u64::from(self.chunk) * u64::from(self.chunks) * u64::from(self.queues)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_one_machines_own_and_numbers_are_not_0() {
        let l2tp = |src: &str, dst: &str, session| {
            Request::L2tp(L2tpRequest { src: src.parse().unwrap(), dst: dst.parse().unwrap(), session })
                .check()
        };
        assert_eq!(l2tp("192.0.2.1", "192.0.2.2", 1), Ok(()));
        assert_eq!(l2tp("127.0.0.1", "127.0.0.1", u32::MAX), Ok(()));
        assert_eq!(l2tp("2001:db8::1", "2001:db8::2", 1), Ok(()));
        assert_eq!(l2tp("192.0.2.1", "192.0.2.2", 0), Err(BadRequest::Zero));
        assert_eq!(l2tp("192.0.2.1", "2001:db8::2", 1), Err(BadRequest::Address));
        for none in ["0.0.0.0", "224.0.0.1", "255.255.255.255"] {
            assert_eq!(l2tp(none, "192.0.2.2", 1), Err(BadRequest::Address), "{none}");
            assert_eq!(l2tp("192.0.2.2", none, 1), Err(BadRequest::Address), "{none}");
        }
        for none in ["::", "ff02::1", "fe80::1", "::ffff:192.0.2.1"] {
            assert_eq!(l2tp(none, "2001:db8::2", 1), Err(BadRequest::Address), "{none}");
            assert_eq!(l2tp("2001:db8::2", none, 1), Err(BadRequest::Address), "{none}");
        }
        let listen = |address: &str, port| {
            let address = address.parse().unwrap();
            Request::Listen(ListenRequest { udp: false, address, port }).check()
        };
        for one in ["0.0.0.0", "::", "127.0.0.1", "2001:db8::1"] {
            assert_eq!((listen(one, 1), listen(one, 0)), (Ok(()), Err(BadRequest::Zero)), "{one}");
        }
        for none in ["239.0.0.1", "255.255.255.255", "ff02::1", "fe80::1", "::ffff:127.0.0.1"] {
            assert_eq!(listen(none, 80), Err(BadRequest::Address), "{none}");
        }
    }
}
