//! What the network says of datagrams that a guest sent, said to the guest.
//!
//! The kernel keeps such errors for each socket (`IP_RECVERR`) with the first bytes of what was sent. The packet that a
//! guest hears of is made anew: its own addresses, its own ports, and those bytes.
//!
//! Trust: none in the network: what it says is passed on in the form that we make, to the guest whose flow it is about.
//! Promise: one message for each error, [`MOST`] at a time; errors of kinds that are no errors of a packet are not passed on.
#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;

use netreeve_shared::vnet::Vnet;

use super::build::{self, Head, Unreachable};
use super::inbox::Key;
use super::packet::{ICMP, ICMPV6, Packet, UDP};
use super::room::Cx;
use crate::frame::Batch;
use crate::mem::Seg;
use crate::stats::{Reason, Stats};
use crate::sys::sock::{self, Ask};

/// Errors of one socket that are passed on at a time.
pub(super) const MOST: usize = 16;
/// Bytes of a datagram that are quoted at most: with all headers less than the smallest MTU of either family.
pub(super) const QUOTE: usize = 512;

/// Origins of errors (linux/errqueue.h).
const FROM_ICMP: u8 = 2;
const FROM_ICMPV6: u8 = 3;

/// What a guest's flow carries: how the header of its datagrams looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carries {
    /// UDP.
    Datagrams,
    /// Echo requests.
    Echoes,
}

impl Carries {
    fn proto(self, v4: bool) -> u8 {
        match (self, v4) {
            (Self::Datagrams, _) => UDP,
            (Self::Echoes, true) => ICMP,
            (Self::Echoes, false) => ICMPV6,
        }
    }
}

/// Passes on what waits in a socket's queue of errors; says whether there was anything.
pub(super) fn pass_on(cx: &mut Cx, fd: BorrowedFd<'_>, key: Key, carries: Carries) -> bool {
    let mut any = false;
    for _ in 0..MOST {
        let mut sent = [0; QUOTE];
        let Ok(Some((said, n))) = sock::said(fd, &mut sent) else { break };
        any = true;
        let rest = match (said.origin, said.kind, said.code) {
            // Too big, of which the MTU is told.
            (FROM_ICMP, 3, 4) => said.info.min(65535),
            (FROM_ICMP, 3 | 11, _) => 0,
            (FROM_ICMPV6, 2, _) => said.info,
            (FROM_ICMPV6, 1 | 3, _) => 0,
            // A word of the kernel's own: whoever sent was told.
            _ => continue,
        };
        let by = said.by.and_then(|ip| cx.net.seen_as(SocketAddr::new(ip, 0))).map(|a| a.ip());
        let from =
            by.filter(|ip| ip.is_ipv4() == key.guest.is_ipv4()).or_else(|| cx.net.host(key.guest.ip()));
        let Some(from) = from else { continue };
        let sent = sent.get(..n.min(QUOTE)).unwrap_or_default();
        let quoted = match carries {
            Carries::Datagrams => quote(cx, key, carries, sent),
            // What was sent begins with ICMP's own header, whose identifier was not the guest's.
            Carries::Echoes => quote(cx, key, carries, sent.get(8..).unwrap_or_default())
                .map(|q| with_sequence(q, key, sent.get(6..8).unwrap_or_default())),
        };
        let Some(quoted) = quoted else { continue };
        build::icmp(cx, (from, key.guest.ip()), (said.kind, said.code), rest.to_be_bytes(), &quoted);
    }
    any
}

fn with_sequence(mut quoted: Vec<u8>, key: Key, sequence: &[u8]) -> Vec<u8> {
    let at = if key.guest.is_ipv4() { 26 } else { 46 };
    if let Some(to) = quoted.get_mut(at..at + sequence.len()) {
        to.copy_from_slice(sequence);
    }
    quoted
}

/// Tells a guest that a datagram of its flow did not arrive, in the name of `from`: the flow is known, the packet is not
/// any more. `sent` is what it carried first.
pub(super) fn tell(cx: &mut Cx, key: Key, carries: Carries, why: Unreachable, sent: &[u8]) {
    let from = match why {
        // Whom it reached, if it is one of us.
        Unreachable::Port => Some(key.far.ip()),
        _ => cx.net.host(key.guest.ip()),
    };
    let sent = sent.get(..QUOTE).unwrap_or(sent);
    let (Some(from), Some(quoted)) = (from, quote(cx, key, carries, sent)) else { return };
    let (kind, code, rest) = why.said(key.guest.is_ipv4());
    build::icmp(cx, (from, key.guest.ip()), (kind, code), rest, &quoted);
}

/// The packet that a guest sent: headers, and what is known of what it carried.
fn quote(cx: &Cx, key: Key, carries: Carries, sent: &[u8]) -> Option<Vec<u8>> {
    let (guest, far) = (key.guest, key.far);
    let v4 = guest.is_ipv4();
    let len = u16::try_from(sent.len() + 8).ok()?;
    let ip = build::ip(&cx.net, guest.ip(), far.ip(), carries.proto(v4), len.into())?;
    let mut out = Vec::with_capacity(48 + sent.len());
    out.extend(ip.as_ref().get(14..)?);
    match carries {
        Carries::Datagrams => {
            out.extend(guest.port().to_be_bytes());
            out.extend(far.port().to_be_bytes());
            out.extend(len.to_be_bytes());
            out.extend([0, 0]);
        }
        Carries::Echoes => {
            out.extend([if v4 { 8 } else { 128 }, 0, 0, 0]);
            out.extend(guest.port().to_be_bytes());
            out.extend([0, 0]);
        }
    }
    out.extend(sent);
    Some(out)
}

/// What a guest is told of an error of a call that sends or connects; none: nothing.
pub(super) fn reason(e: &io::Error) -> Option<Unreachable> {
    Some(match e.raw_os_error()? {
        libc::ENETUNREACH | libc::EADDRNOTAVAIL => Unreachable::Net,
        libc::EHOSTUNREACH | libc::EHOSTDOWN | libc::ENETDOWN => Unreachable::Host,
        libc::ECONNREFUSED => Unreachable::Port,
        libc::EACCES | libc::EPERM => Unreachable::Prohibited,
        _ => return None,
    })
}

/// The error is about descriptors or memory, of which there are not enough.
pub(super) fn is_shortage(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS))
}

/// The kernel knows no way there, whoever asks. Every other error says nothing about the address.
pub(super) fn is_no_way(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(
            libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT | libc::EINVAL
        )
    )
}

/// Nobody is told about a packet for many, and none goes out (RFC 1122 §3.2.2).
pub(super) fn is_for_many(cx: &Cx, ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(a) => {
            let of_ours = cx.net.v4.is_some_and(|v| a == v.broadcast() || (a == v.net && v.prefix < 31));
            a.is_multicast() || a.is_broadcast() || of_ours
        }
        IpAddr::V6(a) => a.is_multicast(),
    }
}

/// Says to a guest that its packet goes nowhere, and counts it.
pub(super) fn refuse(cx: &mut Cx, p: &Packet<'_>, dst: IpAddr, why: Unreachable) {
    cx.stats.drop(if why == Unreachable::Prohibited { Reason::Denied } else { Reason::Unreachable });
    // We speak for ourselves at each of our addresses, and for the network at the gateway's.
    let from = if cx.net.is_ours(dst) { Some(dst) } else { cx.net.host(dst) };
    if let Some(from) = from {
        build::unreachable(cx, from, p, why);
    }
}

/// An address of IPv6 that is none of IPv4's: those would lead a socket to what policy and guest know as IPv4.
///
/// # Errors
/// It is one: there is no way to it.
pub(super) fn unmapped(at: SocketAddr) -> io::Result<()> {
    match at.ip() {
        IpAddr::V6(a) if a.to_ipv4_mapped().is_some() => Err(io::Error::from_raw_os_error(libc::ENETUNREACH)),
        _ => Ok(()),
    }
}

/// The MTU of a connected socket's way, in bytes.
pub(super) fn mtu(fd: BorrowedFd<'_>, v4: bool) -> Option<u32> {
    u32::try_from(sock::get(fd, if v4 { Ask::Mtu } else { Ask::Mtu6 }).ok()?).ok()
}

/// Adds a frame whose body stays where it is.
pub(super) fn push(b: &mut Batch, stats: &mut Stats, vnet: Vnet, head: &Head, body: Seg) {
    let Some(f) = b.push() else { return };
    f.set_head(head.as_ref());
    f.len = u32::try_from(head.len()).unwrap_or(u32::MAX).saturating_add(body.len());
    f.vnet = vnet;
    stats.rx_frames += 1;
    stats.rx_bytes += u64::from(f.len);
    b.push_seg(body);
}
