//! What the helper really gave, so that the receiver need not guess and can check.
//!
//! Promise: [`Grant::fds`] is the exact number, order and kind of the descriptors in the same message; a message with
//! any other is refused whole and its descriptors are closed.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::ifname::IfName;
use crate::mac::Mac;
use crate::request::{L2tpRequest, ListenRequest, Request, XdpMode};

/// One grant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Grant {
    /// A tap: one descriptor a queue.
    Tap(TapGrant),
    /// Bound AF_XDP sockets: for each queue the socket, then its UMEM memfd.
    Xsk(XskGrant),
    /// Unbound, interface-pinned AF_XDP sockets: one a queue. The session keeps the link: closing it detaches.
    XskPinned(XskGrant),
    /// The sockets of a ticket are live; one descriptor, the `bpf_link`: closing its last copy detaches the program.
    Active(ActiveGrant),
    /// A raw socket, non-blocking: bound, connected, its filter locked; one descriptor. It is as it was asked for.
    L2tp(L2tpRequest),
    /// A socket, non-blocking, that listens (TCP) or is bound (UDP); one descriptor. It is as it was asked for.
    Listen(ListenRequest),
}

/// What a descriptor is. [`crate::fdkind::attest`] asks the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FdKind {
    /// A queue of a tap device (`/dev/net/tun`, `TUNGETIFF` answers).
    Tap,
    /// An AF_XDP socket.
    Xsk,
    /// A sealed memfd holding a UMEM.
    Umem,
    /// A `bpf_link`.
    Link,
    /// A raw IP socket of protocol 115 whose filter is locked.
    L2tp,
    /// A TCP socket that listens.
    Listener,
    /// A UDP socket.
    Udp,
}

/// A tap device as it was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TapGrant {
    /// Interface name.
    pub name: IfName,
    /// Interface index in the helper's network namespace.
    pub ifindex: u32,
    /// `IFF_*` flags as `TUNGETIFF` gives them.
    pub flags: u16,
    /// Queues, one descriptor each.
    pub queues: u16,
    /// Bytes of virtio-net header before each frame: 0, 10 or 12.
    pub vnet_header: u8,
    /// MTU in bytes.
    pub mtu: u32,
    /// The host side's address (first byte `fe`, so that it never becomes the bridge's).
    pub mac: Mac,
    /// The bridge it joined.
    pub bridge: Option<IfName>,
}

/// AF_XDP sockets as they were made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XskGrant {
    /// Names this grant in [`crate::request::Request::Activate`].
    pub ticket: u32,
    /// Interface name.
    pub name: IfName,
    /// Interface index in the helper's network namespace.
    pub ifindex: u32,
    /// First receive queue.
    pub start_queue: u16,
    /// Queues.
    pub queues: u16,
    /// The interface's MTU in bytes.
    pub mtu: u32,
    /// The interface's own address.
    pub mac: Mac,
    /// Entries of each ring.
    pub ring: u32,
    /// Bytes of a chunk.
    pub chunk: u32,
    /// Chunks of each queue's UMEM.
    pub chunks: u32,
    /// Bytes between a received frame's chunk and its data, beside the kernel's 256 (`XDP_PACKET_HEADROOM`).
    pub headroom: u32,
    /// `XDP_USE_SG`: frames may span several chunks (`XDP_PKT_CONTD`).
    pub multi_buffer: bool,
    /// The kernel bound them zero-copy (`XDP_OPTIONS_ZEROCOPY`).
    pub zero_copy: bool,
}

/// The program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveGrant {
    /// The ticket of the sockets.
    pub ticket: u32,
    /// How it was really attached.
    pub mode: XdpMode,
}

impl Grant {
    /// Kinds of the descriptors that travel with this grant, in order.
    #[must_use]
    pub fn fds(&self) -> Vec<FdKind> {
        match self {
            Self::Tap(t) => vec![FdKind::Tap; usize::from(t.queues)],
            Self::Xsk(x) => [FdKind::Xsk, FdKind::Umem].repeat(usize::from(x.queues)),
            Self::XskPinned(x) => vec![FdKind::Xsk; usize::from(x.queues)],
            Self::Active(_) => vec![FdKind::Link],
            Self::L2tp(_) => vec![FdKind::L2tp],
            Self::Listen(l) => vec![if l.udp { FdKind::Udp } else { FdKind::Listener }],
        }
    }

    /// Whether this is the sort of grant that `request` asks for, of as many queues as it asks for.
    #[must_use]
    pub fn answers(&self, request: &Request) -> bool {
        match (self, request) {
            (Self::Tap(g), Request::Tap(r)) => g.queues == r.queues,
            (Self::Xsk(g), Request::Xsk(r)) | (Self::XskPinned(g), Request::XskPinned(r)) => {
                (g.name, g.start_queue, g.queues) == (r.interface, r.start_queue, r.queues)
            }
            (Self::Active(g), Request::Activate(ticket)) => g.ticket == *ticket,
            (Self::L2tp(g), Request::L2tp(r)) => g == r,
            (Self::Listen(g), Request::Listen(r)) => g == r,
            _ => false,
        }
    }

    /// How many descriptors travel with this grant, without making the list of them.
    #[must_use]
    pub fn fd_count(&self) -> usize {
        match self {
            Self::Tap(t) => usize::from(t.queues),
            Self::Xsk(x) => 2 * usize::from(x.queues),
            Self::XskPinned(x) => usize::from(x.queues),
            Self::Active(_) | Self::L2tp(_) | Self::Listen(_) => 1,
        }
    }
}
