//! Frames towards the guest: headers of any length of payload, and small frames whole.
//!
//! Trust: none needed; addresses and bytes are the callers'. Promise: what is built is right in lengths and checksums; a
//! frame for a guest that was not heard of carries no destination yet, and [`super::out`] asks for it.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};

use netreeve_shared::mac::Mac;
use netreeve_shared::vnet::Vnet;

use super::net::Net;
use super::packet::{ETHER, ICMP, ICMPV6, IPV4, IPV6, Packet, UDP};
use super::room::Cx;
use crate::offload::sum::Sum;

/// Hops of what we send.
const TTL: u8 = 64;
/// Most bytes of headers: Ethernet, IPv6, TCP with all its options.
const MOST: usize = 14 + 40 + 60;
/// What an ICMPv4 error quotes at most (RFC 1812 §4.3.2.3), and an ICMPv6 one (RFC 4443 §2.4 (c)), headers included.
const QUOTE4: usize = 576 - 28;
const QUOTE6: usize = 1280 - 48;

/// Headers of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    bytes: [u8; MOST],
    len: usize,
}

impl Head {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self { bytes: [0; MOST], len: 0 }
    }

    /// Appends. What does not fit is left out, which no header of ours comes to.
    pub fn push(&mut self, b: &[u8]) {
        if let Some(to) = self.bytes.get_mut(self.len..self.len + b.len()) {
            to.copy_from_slice(b);
            self.len += b.len();
        }
    }

    /// Writes over what is there.
    pub fn set(&mut self, at: usize, b: &[u8]) {
        if let Some(to) = self.as_mut().get_mut(at..at + b.len()) {
            to.copy_from_slice(b);
        }
    }

    /// Bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a header is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    fn as_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.len).unwrap_or_default()
    }
}

impl Default for Head {
    fn default() -> Self {
        Self::new()
    }
}

impl AsRef<[u8]> for Head {
    fn as_ref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

fn short(n: u32) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

/// Where the transport's header begins in a frame of this family without IP options.
#[must_use]
pub fn transport_at(ip: IpAddr) -> u16 {
    if ip.is_ipv4() { 34 } else { 54 }
}

/// Ethernet and IP headers of a frame to a guest with `len` bytes of transport header and payload. None: the addresses are
/// of two families.
#[must_use]
pub fn ip(net: &Net, src: IpAddr, dst: IpAddr, proto: u8, len: u32) -> Option<Head> {
    let mut h = Head::new();
    let Mac(to) = net.mac_of(dst).unwrap_or_default();
    h.push(&to);
    h.push(&net.mac.0);
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            h.push(&IPV4.to_be_bytes());
            let mut b = [0x45, 0, 0, 0, 0, 0, 0x40, 0, TTL, proto, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            let fields = [(2, &short(len + 20).to_be_bytes()[..]), (12, &src.octets()), (16, &dst.octets())];
            fields.into_iter().for_each(|(at, f)| write(&mut b, at, f));
            let mut sum = Sum::default();
            sum.bytes(&b);
            write(&mut b, 10, &sum.finish());
            h.push(&b);
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            h.push(&IPV6.to_be_bytes());
            let [l0, l1] = short(len).to_be_bytes();
            h.push(&[0x60, 0, 0, 0, l0, l1, proto, TTL]);
            h.push(&src.octets());
            h.push(&dst.octets());
        }
        _ => return None,
    }
    Some(h)
}

fn write(to: &mut [u8], at: usize, b: &[u8]) {
    if let Some(to) = to.get_mut(at..at + b.len()) {
        to.copy_from_slice(b);
    }
}

/// The sum of the pseudo-header of TCP, UDP and ICMPv6 (RFC 9293 §3.1, RFC 8200 §8.1), to go on with.
/// [`Sum::partial`] of it is what a frame carries whose checksum is left to its taker.
#[must_use]
pub fn pseudo(src: IpAddr, dst: IpAddr, proto: u8, len: u32) -> Sum {
    let mut s = Sum::default();
    for a in [src, dst] {
        match a {
            IpAddr::V4(a) => s.bytes(&a.octets()),
            IpAddr::V6(a) => s.bytes(&a.octets()),
        }
    }
    s.bytes(&len.to_be_bytes());
    s.bytes(&[0, proto]);
    s
}

/// Sends a UDP datagram to a guest, checksum and all. False: it is lost, and counted. No longer than the MTU allows.
pub fn datagram(cx: &mut Cx, src: SocketAddr, dst: SocketAddr, payload: &[u8]) -> bool {
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX).saturating_add(8);
    let Some(mut h) = ip(&cx.net, src.ip(), dst.ip(), UDP, len) else { return false };
    let mut udp = [0; 8];
    write(&mut udp, 0, &src.port().to_be_bytes());
    write(&mut udp, 2, &dst.port().to_be_bytes());
    write(&mut udp, 4, &short(len).to_be_bytes());
    let mut sum = pseudo(src.ip(), dst.ip(), UDP, len);
    sum.bytes(&udp);
    sum.bytes(payload);
    write(&mut udp, 6, &sum.finish());
    h.push(&udp);
    cx.push(Vnet::default(), &[h.as_ref(), payload])
}

/// Sends an ICMP or ICMPv6 message to a guest: type, code, the four bytes after the checksum, and the rest. False: it is
/// lost, and counted. No longer than the MTU allows.
pub fn icmp(
    cx: &mut Cx,
    (src, dst): (IpAddr, IpAddr),
    (kind, code): (u8, u8),
    rest: [u8; 4],
    payload: &[u8],
) -> bool {
    let proto = if dst.is_ipv4() { ICMP } else { ICMPV6 };
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX).saturating_add(8);
    let Some(mut h) = ip(&cx.net, src, dst, proto, len) else { return false };
    let [r0, r1, r2, r3] = rest;
    let mut message = [kind, code, 0, 0, r0, r1, r2, r3];
    let mut sum = if dst.is_ipv4() { Sum::default() } else { pseudo(src, dst, proto, len) };
    sum.bytes(&message);
    sum.bytes(payload);
    write(&mut message, 2, &sum.finish());
    h.push(&message);
    cx.push(Vnet::default(), &[h.as_ref(), payload])
}

/// Why a packet of a guest's did not arrive (RFC 792, RFC 1812 §5.2.7.1, RFC 4443 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// No way there.
    Net,
    /// Nobody there.
    Host,
    /// Nobody listens.
    Port,
    /// It may not.
    Prohibited,
    /// Nobody there knows this protocol.
    Protocol,
    /// It is longer than this many bytes, and may not be cut.
    TooBig(u32),
    /// It took too many hops.
    Expired,
}

impl Unreachable {
    /// Type, code and the four bytes after the checksum.
    pub(super) fn said(self, v4: bool) -> (u8, u8, [u8; 4]) {
        let none = [0; 4];
        match (self, v4) {
            (Self::Net, true) => (3, 0, none),
            (Self::Host, true) => (3, 1, none),
            (Self::Protocol, true) => (3, 2, none),
            (Self::Port, true) => (3, 3, none),
            (Self::Prohibited, true) => (3, 13, none),
            (Self::TooBig(mtu), true) => {
                let [a, b] = short(mtu).to_be_bytes();
                (3, 4, [0, 0, a, b])
            }
            (Self::Expired, true) => (11, 0, none),
            (Self::Net, false) => (1, 0, none),
            (Self::Prohibited, false) => (1, 1, none),
            (Self::Host, false) => (1, 3, none),
            (Self::Port, false) => (1, 4, none),
            (Self::TooBig(mtu), false) => (2, 0, mtu.to_be_bytes()),
            (Self::Expired, false) => (3, 0, none),
            // Unrecognised next header, and where it stands.
            (Self::Protocol, false) => (4, 1, [0, 0, 0, 6]),
        }
    }
}

/// Tells a guest, in the name of `from`, that its packet did not arrive. Nobody is told about errors, broadcasts and later
/// fragments (RFC 1122 §3.2.2). False: not said.
pub fn unreachable(cx: &mut Cx, from: IpAddr, p: &Packet<'_>, why: Unreachable) -> bool {
    let Some(ip) = p.ip else { return false };
    let kind = p.transport().first().copied().unwrap_or(0);
    let error = match ip.proto {
        ICMP => !matches!(kind, 0 | 8),
        ICMPV6 => kind < 128,
        _ => false,
    };
    if error || p.to.is_multicast() || ip.dst.is_multicast() || ip.piece.is_some_and(|f| f.offset > 0) {
        return false;
    }
    // From the network's header on.
    let v4 = ip.dst.is_ipv4();
    let mut quote = [0; QUOTE6];
    let most = if v4 { QUOTE4 } else { QUOTE6 };
    let n = p.copy_packet(quote.get_mut(..most).unwrap_or_default());
    let (kind, code, rest) = why.said(v4);
    icmp(cx, (from, ip.src), (kind, code), rest, quote.get(..n).unwrap_or_default())
}

/// The frame that asks who has the destination of `frame`, an IP frame of ours without a destination address (RFC 826,
/// RFC 4861 §4.3).
#[must_use]
pub fn question(net: &Net, frame: &[u8]) -> Option<Vec<u8>> {
    let kind = u16::from_be_bytes(*frame.get(12..)?.first_chunk()?);
    let at = usize::try_from(ETHER).ok()?;
    let mut out = Vec::with_capacity(86);
    if kind == IPV4 {
        out.extend([0xff; 6]);
        out.extend(net.mac.0);
        out.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
        out.extend(net.mac.0);
        out.extend(frame.get(at + 12..at + 16)?);
        out.extend([0; 6]);
        out.extend(frame.get(at + 16..at + 20)?);
        return Some(out);
    }
    let target: [u8; 16] = *frame.get(at + 24..)?.first_chunk()?;
    let [.., x, y, z] = target;
    let group: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, x, y, z];
    let src = net.link_local;
    out.extend([0x33, 0x33, 0xff, x, y, z]);
    out.extend(net.mac.0);
    out.extend(IPV6.to_be_bytes());
    out.extend([0x60, 0, 0, 0, 0, 32, ICMPV6, 255]);
    out.extend(src.octets());
    out.extend(group);
    let mut message = [0; 32];
    write(&mut message, 0, &[135]);
    write(&mut message, 8, &target);
    write(&mut message, 24, &[1, 1]);
    write(&mut message, 26, &net.mac.0);
    let mut sum = pseudo(src.into(), IpAddr::from(group), ICMPV6, 32);
    sum.bytes(&message);
    write(&mut message, 2, &sum.finish());
    out.extend(message);
    Some(out)
}
