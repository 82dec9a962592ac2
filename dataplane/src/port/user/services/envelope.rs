//! Whole small frames: Ethernet, IP and UDP or ICMPv6 around a reply, with every checksum complete.
//!
//! Trust: the callers, with lengths (they are bounded by the guest's MTU). Promise: what is written is a valid packet;
//! the buffer is the caller's and is used again and again.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use netreeve_shared::mac::Mac;

use super::bytes::{n16, patch};
use crate::mem::sum;

/// Bytes of an Ethernet header.
pub const ETH: usize = 14;
/// Bytes of IPv4's header without options, and of IPv6's.
pub const IP4: usize = 20;
/// See [`IP4`].
pub const IP6: usize = 40;
/// Bytes of UDP's header.
pub const UDP: usize = 8;
/// UDP's number among the protocols.
pub const PROTO_UDP: u8 = 17;
/// ICMPv6's.
pub const PROTO_ICMP6: u8 = 58;

/// Who sends a datagram and who gets it.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// Ethernet addresses: from, to.
    pub macs: (Mac, Mac),
    /// IP addresses and ports, both of one family: from, to.
    pub at: (SocketAddr, SocketAddr),
}

/// A sum of 16-bit words, folded and turned over (RFC 1071), as the two bytes to be stored.
fn turned(mut total: u64) -> [u8; 2] {
    while total > 0xffff {
        total = (total >> 16) + (total & 0xffff);
    }
    (!u16::try_from(total).unwrap_or(0)).to_ne_bytes()
}

/// The checksum of what stands in `packet` behind its IP header, pseudo header included (RFC 768, RFC 8200 §8.1).
fn upper(from: IpAddr, to: IpAddr, proto: u8, upper: &[u8]) -> [u8; 2] {
    let of = |a: IpAddr| match a {
        IpAddr::V4(a) => sum::bytes(&a.octets()),
        IpAddr::V6(a) => sum::bytes(&a.octets()),
    };
    let about = sum::bytes(&[0, proto]) + sum::bytes(&n16(upper.len()).to_be_bytes());
    turned(of(from) + of(to) + about + sum::bytes(upper))
}

fn eth(out: &mut Vec<u8>, macs: (Mac, Mac), kind: [u8; 2]) {
    out.clear();
    out.extend_from_slice(&macs.1.0);
    out.extend_from_slice(&macs.0.0);
    out.extend_from_slice(&kind);
}

/// An IP header, its length and checksum still zero.
fn ip(out: &mut Vec<u8>, macs: (Mac, Mac), (from, to): (IpAddr, IpAddr), proto: u8, hops: u8) {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            eth(out, macs, [0x08, 0x00]);
            // DF and no identification: the packet is atomic (RFC 6864).
            out.extend_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, hops, proto, 0, 0]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            eth(out, macs, [0x86, 0xdd]);
            out.extend_from_slice(&[0x60, 0, 0, 0, 0, 0, proto, hops]);
            out.extend_from_slice(&from.octets());
            out.extend_from_slice(&to.octets());
        }
        // Callers answer to where they were asked from, so families never mix.
        _ => out.clear(),
    }
}

/// Writes the lengths and the checksums that depend on them.
fn seal(out: &mut [u8], (from, to): (IpAddr, IpAddr), proto: u8) {
    let at = ETH + if from.is_ipv4() { IP4 } else { IP6 };
    let body = n16(out.len().saturating_sub(at));
    if proto == PROTO_UDP {
        patch(out, at + 4, &body.to_be_bytes());
    }
    let mut c = upper(from, to, proto, out.get(at..).unwrap_or_default());
    if proto == PROTO_UDP && c == [0, 0] {
        // Zero would say that there is none.
        c = [0xff, 0xff];
    }
    patch(out, at + if proto == PROTO_UDP { 6 } else { 2 }, &c);
    if from.is_ipv4() {
        patch(out, ETH + 2, &n16(out.len().saturating_sub(ETH)).to_be_bytes());
        let c = turned(sum::bytes(out.get(ETH..at).unwrap_or_default()));
        patch(out, ETH + 10, &c);
    } else {
        patch(out, ETH + 4, &body.to_be_bytes());
    }
}

/// Makes `out` a frame with one UDP datagram, whose payload `fill` appends.
pub fn udp(out: &mut Vec<u8>, e: &Ends, fill: impl FnOnce(&mut Vec<u8>)) {
    let ips = (e.at.0.ip(), e.at.1.ip());
    ip(out, e.macs, ips, PROTO_UDP, 64);
    out.extend_from_slice(&e.at.0.port().to_be_bytes());
    out.extend_from_slice(&e.at.1.port().to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    fill(out);
    seal(out, ips, PROTO_UDP);
}

/// Makes `out` a frame with one ICMPv6 message of neighbour discovery (hop limit 255, RFC 4861), whose bytes, checksum
/// zero, `fill` appends.
pub fn icmp6(out: &mut Vec<u8>, macs: (Mac, Mac), at: (Ipv6Addr, Ipv6Addr), fill: impl FnOnce(&mut Vec<u8>)) {
    let ips = (IpAddr::V6(at.0), IpAddr::V6(at.1));
    ip(out, macs, ips, PROTO_ICMP6, 255);
    fill(out);
    seal(out, ips, PROTO_ICMP6);
}

/// The Ethernet address of an IPv6 group (RFC 2464 §7).
#[must_use]
pub fn group_mac(a: Ipv6Addr) -> Mac {
    let [.., w, x, y, z] = a.octets();
    Mac([0x33, 0x33, w, x, y, z])
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACS: (Mac, Mac) = (Mac([2; 6]), Mac([4; 6]));

    /// The sum over everything a checksum covers, itself included, is all one.
    fn holds(parts: &[&[u8]]) -> bool {
        turned(parts.iter().map(|p| sum::bytes(p)).sum()) == [0, 0]
    }

    #[test]
    fn a_datagram_in_bytes() {
        let e = Ends { macs: MACS, at: ("10.0.2.2:67".parse().unwrap(), "10.0.2.15:68".parse().unwrap()) };
        let mut out = vec![7; 3];
        udp(&mut out, &e, |o| o.extend_from_slice(b"abc"));
        #[rustfmt::skip]
        let head = [
            4, 4, 4, 4, 4, 4, 2, 2, 2, 2, 2, 2, 8, 0,
            0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0x22, 0xbe, 10, 0, 2, 2, 10, 0, 2, 15,
            0, 67, 0, 68, 0, 11,
        ];
        assert_eq!(out[..40], head);
        assert_eq!(out[42..], *b"abc");
        assert!(holds(&[&out[14..34]]));
        assert!(holds(&[&out[26..34], &[0, 17, 0, 11], &out[34..]]));
    }

    #[test]
    fn six_as_well() {
        let e = Ends { macs: MACS, at: ("[fec0::2]:69".parse().unwrap(), "[fec0::15]:9".parse().unwrap()) };
        let mut out = Vec::new();
        udp(&mut out, &e, |o| o.extend_from_slice(b"odd"));
        assert_eq!(out[12..22], [0x86, 0xdd, 0x60, 0, 0, 0, 0, 11, 17, 64]);
        assert!(holds(&[&out[22..54], &[0, 17, 0, 11], &out[54..]]));
        icmp6(&mut out, MACS, ("fe80::2".parse().unwrap(), "ff02::1".parse().unwrap()), |o| {
            o.extend_from_slice(&[134, 0, 0, 0, 64, 1, 2, 3]);
        });
        assert_eq!(out[18..22], [0, 8, 58, 255]);
        assert!(holds(&[&out[22..54], &[0, 58, 0, 8], &out[54..]]));
    }

    #[test]
    fn a_checksum_of_zero_is_not_sent_as_none() {
        let e = Ends { macs: MACS, at: ("0.0.0.0:0".parse().unwrap(), "0.0.0.0:0".parse().unwrap()) };
        let mut out = Vec::new();
        // Lengths 10 twice and the protocol, 17: the payload brings the sum to all one.
        udp(&mut out, &e, |o| o.extend_from_slice(&(0xffff - 10u16 - 10 - 17).to_be_bytes()));
        assert_eq!(out[40..42], [0xff, 0xff]);
    }
}
