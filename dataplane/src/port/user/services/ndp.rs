//! Neighbour discovery (RFC 4861): who has our IPv6 addresses, and the router's advertisements.
//!
//! An advertisement says: the prefix (RFC 4862: a guest makes its own address where the prefix has 64 bits, else it asks
//! DHCPv6), the MTU, name servers and search list (RFC 8106). Where the host has no IPv6, or the guest may reach nobody,
//! our lifetime as a router is 0, so the guest does not try in vain.
//!
//! Trust: none. Promise: only messages from the link itself (hop limit 255) whose options are whole are heard; only our
//! own addresses are answered for, so a guest that asks whether its own is free hears nothing.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv6Addr};

use netreeve_shared::mac::Mac;

use super::super::plan::Service;
use super::Seen;
use super::bytes::{Reader, n8};
use super::conf::Conf;
use super::envelope::{group_mac, icmp6};

const SOLICIT_ROUTER: u8 = 133;
const ADVERTISE_ROUTER: u8 = 134;
const SOLICIT: u8 = 135;
const ADVERTISE: u8 = 136;

const SOURCE_MAC: u8 = 1;
const TARGET_MAC: u8 = 2;
const PREFIX: u8 = 3;
const MTU: u8 = 5;
const SERVERS: u8 = 25;
const SEARCH: u8 = 31;

/// Seconds that we are a router, and a name server, after an advertisement: three of the longest intervals.
const LIFETIME: u16 = 1800;
/// Seconds between advertisements that nobody asked for.
pub const INTERVAL: u64 = 300;
/// Seconds that the prefix is valid, and that addresses in it are preferred (QEMU's).
const VALID: u32 = 86400;
const PREFERRED: u32 = 14400;
/// All nodes of the link.
const NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// What stood before a message.
#[derive(Clone, Copy, Debug)]
pub struct From {
    /// Who sent it.
    pub mac: Mac,
    /// From which address.
    pub src: Ipv6Addr,
    /// To which.
    pub dst: Ipv6Addr,
    /// Hops that were left: 255, if it comes from this link.
    pub hops: u8,
}

/// The options are whole, and none of them has no length (RFC 4861 §4.6); whether one of `kind` is among them.
fn options(mut r: Reader<'_>, kind: u8) -> Option<bool> {
    let mut found = false;
    while !r.is_empty() {
        let (k, units) = (r.u8()?, r.u8()?);
        r.take((usize::from(units) * 8).checked_sub(2)?)?;
        found |= k == kind;
    }
    Some(found)
}

/// `a` can be the guest's.
fn guests(c: &Conf, a: Ipv6Addr) -> bool {
    let near = a.is_unicast_link_local() || c.v6.is_some_and(|v| v.holds(a));
    near && !a.is_unspecified() && !a.is_multicast() && !a.is_loopback() && !c.owns(IpAddr::V6(a))
}

/// What a message (from ICMPv6's header on) says of the guest; `out` becomes the answer if there is one, else it is empty.
/// `uplink`: the host has IPv6. None: it is no neighbour discovery, or it is broken. The guest's checksum is not looked at:
/// on this link nothing is lost, and it may be left to complete.
pub fn take(c: &Conf, uplink: bool, f: &From, message: &[u8], out: &mut Vec<u8>) -> Option<Seen> {
    out.clear();
    c.v6?;
    let mut r = Reader::new(message);
    let (kind, code) = (r.u8()?, r.u8()?);
    r.take(6)?;
    if code != 0 || f.hops != 255 || !f.mac.is_station() || f.src.is_multicast() {
        return None;
    }
    let nobody = f.src.is_unspecified();
    let mut of = f.src;
    match kind {
        SOLICIT_ROUTER => {
            if options(r, SOURCE_MAC)? && nobody {
                return None;
            }
            advertise(c, uplink, (!nobody).then_some((f.mac, f.src)), out);
        }
        SOLICIT => {
            let target = Ipv6Addr::from(r.array::<16>()?);
            let named = options(r, SOURCE_MAC)?;
            if target.is_multicast() || nobody && (named || !f.dst.is_multicast()) {
                return None;
            }
            if c.has(Service::Neighbours) && c.owns(IpAddr::V6(target)) {
                answer(c, f, target, out);
            }
        }
        ADVERTISE => {
            of = Ipv6Addr::from(r.array::<16>()?);
            options(r, TARGET_MAC)?;
        }
        _ => return None,
    }
    Some(Seen { mac: Some(f.mac), ip: guests(c, of).then_some(IpAddr::V6(of)) })
}

/// An advertisement of one of our addresses. Who has none yet (`::`) wants to take it: everybody is told.
fn answer(c: &Conf, f: &From, target: Ipv6Addr, out: &mut Vec<u8>) {
    let nobody = f.src.is_unspecified();
    let (mac, to) = if nobody { (group_mac(NODES), NODES) } else { (f.mac, f.src) };
    // Router, override; solicited if it goes to who asked.
    let flags = if nobody { 0xa0 } else { 0xe0 };
    icmp6(out, (c.mac, mac), (target, to), |o| {
        o.extend_from_slice(&[ADVERTISE, 0, 0, 0, flags, 0, 0, 0]);
        o.extend_from_slice(&target.octets());
        o.extend_from_slice(&[TARGET_MAC, 1]);
        o.extend_from_slice(&c.mac.0);
    });
}

/// Makes `out` a router's advertisement to one or to all. False: there is no IPv6, or no advertisement.
pub fn advertise(c: &Conf, uplink: bool, to: Option<(Mac, Ipv6Addr)>, out: &mut Vec<u8>) -> bool {
    out.clear();
    let Some(v6) = c.v6.filter(|_| c.has(Service::Neighbours) && c.has(Service::Advertisements)) else {
        return false;
    };
    let (mac, to) = to.unwrap_or((group_mac(NODES), NODES));
    let lifetime = if uplink && !c.restrict { LIFETIME } else { 0 };
    // Only prefixes of 64 bits leave room for the interface's own part (RFC 4862 §5.5.3, RFC 4291 §2.5.1).
    let own = v6.len == 64;
    // Addresses come by DHCPv6 where the guest cannot make them; the rest can always be had from there.
    let flags = if own { 0x40 } else { 0xc0 };
    icmp6(out, (c.mac, mac), (c.link_local, to), |o| {
        o.extend_from_slice(&[ADVERTISE_ROUTER, 0, 0, 0, 64, flags]);
        o.extend_from_slice(&lifetime.to_be_bytes());
        o.extend_from_slice(&[0; 8]);
        o.extend_from_slice(&[SOURCE_MAC, 1]);
        o.extend_from_slice(&c.mac.0);
        o.extend_from_slice(&[MTU, 1, 0, 0]);
        o.extend_from_slice(&u32::from(c.mtu).to_be_bytes());
        o.extend_from_slice(&[PREFIX, 4, v6.len, if own { 0xc0 } else { 0x80 }]);
        o.extend_from_slice(&VALID.to_be_bytes());
        o.extend_from_slice(&PREFERRED.to_be_bytes());
        o.extend_from_slice(&[0; 4]);
        o.extend_from_slice(&v6.prefix.octets());
        if c.names() {
            o.extend_from_slice(&[SERVERS, 3, 0, 0]);
            o.extend_from_slice(&u32::from(LIFETIME).to_be_bytes());
            o.extend_from_slice(&v6.dns.octets());
        }
        if !c.search.is_empty() {
            let units = c.search.len().div_ceil(8);
            o.extend_from_slice(&[SEARCH, n8(1 + units), 0, 0]);
            o.extend_from_slice(&u32::from(LIFETIME).to_be_bytes());
            o.extend_from_slice(&c.search);
            o.resize(o.len() + units * 8 - c.search.len(), 0);
        }
    });
    true
}

#[cfg(test)]
mod tests {
    use super::super::conf::{tests::qemu, wire_names};
    use super::*;
    use crate::port::user::V6;

    const GUEST: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
    const OWN: &str = "fec0::5054:ff:fe12:3456";

    fn ip(s: &str) -> Ipv6Addr {
        s.parse().unwrap()
    }

    fn from(src: &str, dst: &str) -> From {
        From { mac: GUEST, src: ip(src), dst: ip(dst), hops: 255 }
    }

    fn solicit(target: &str, options: &[u8]) -> Vec<u8> {
        [&[135, 0, 0, 0, 0, 0, 0, 0][..], &ip(target).octets(), options].concat()
    }

    const SLLA: [u8; 8] = [1, 1, 0x52, 0x54, 0, 0x12, 0x34, 0x56];

    #[test]
    fn our_addresses_are_answered_for() {
        let (c, mut out) = (qemu(), Vec::new());
        for ours in ["fec0::2", "fec0::3", "fe80::5055:aff:fe00:202"] {
            let f = from(OWN, "ff02::1:ff00:2");
            let seen = take(&c, true, &f, &solicit(ours, &SLLA), &mut out).unwrap();
            assert_eq!(seen, Seen { mac: Some(GUEST), ip: Some(OWN.parse().unwrap()) });
            assert_eq!(out.len(), 14 + 40 + 32);
            assert_eq!(out[..6], GUEST.0);
            assert_eq!(out[18..22], [0, 32, 58, 255]);
            assert_eq!((&out[22..38], &out[38..54]), (&ip(ours).octets()[..], &ip(OWN).octets()[..]));
            assert_eq!((&out[54..56], &out[58..62]), (&[136, 0][..], &[0xe0, 0, 0, 0][..]));
            assert_eq!(out[62..78], ip(ours).octets());
            assert_eq!(out[78..], [2, 1, 0x52, 0x55, 10, 0, 2, 2]);
        }
    }

    #[test]
    fn a_guest_that_probes_its_own_address_hears_nothing() {
        let (c, mut out) = (qemu(), Vec::new());
        let seen = take(&c, true, &from("::", "ff02::1:ff12:3456"), &solicit(OWN, &[]), &mut out).unwrap();
        assert_eq!((out.len(), seen), (0, Seen { mac: Some(GUEST), ip: None }));
        // One that probes for ours: everybody hears that it is taken.
        take(&c, true, &from("::", "ff02::1:ff00:2"), &solicit("fec0::2", &[]), &mut out).unwrap();
        assert_eq!(out[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!((&out[38..54], out[58]), (&NODES.octets()[..], 0xa0));
        // RFC 4861 §7.1.1: from nobody, to one, or with an address.
        assert!(take(&c, true, &from("::", "fec0::2"), &solicit("fec0::2", &[]), &mut out).is_none());
        assert!(
            take(&c, true, &from("::", "ff02::1:ff00:2"), &solicit("fec0::2", &SLLA), &mut out).is_none()
        );
        assert!(out.is_empty());
    }

    #[test]
    fn an_advertisement_in_bytes() {
        let c = Conf { search: wire_names(&["a.bc".into()]), mtu: 65520, ..qemu() };
        let mut out = Vec::new();
        let q = [&[133, 0, 0, 0, 0, 0, 0, 0][..], &SLLA].concat();
        take(&c, true, &from("fe80::1:1", "ff02::2"), &q, &mut out).unwrap();
        assert_eq!(out[..6], GUEST.0);
        assert_eq!((&out[22..38], &out[38..54]), (&c.link_local.octets()[..], &ip("fe80::1:1").octets()[..]));
        #[rustfmt::skip]
        let body = [
            64, 0x40, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0,
            1, 1, 0x52, 0x55, 10, 0, 2, 2,
            5, 1, 0, 0, 0, 0, 0xff, 0xf0,
            3, 4, 64, 0xc0, 0, 1, 0x51, 0x80, 0, 0, 0x38, 0x40, 0, 0, 0, 0, 0xfe, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            25, 3, 0, 0, 0, 0, 0x07, 0x08, 0xfe, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3,
            31, 2, 0, 0, 0, 0, 0x07, 0x08, 1, b'a', 2, b'b', b'c', 0, 0, 0,
        ];
        assert_eq!(out[58..], body);
        // Nobody asked, or nobody in particular: to all.
        take(&c, true, &from("::", "ff02::2"), &q[..8], &mut out).unwrap();
        assert_eq!((&out[..6], &out[38..54]), (&[0x33, 0x33, 0, 0, 0, 1][..], &NODES.octets()[..]));
    }

    #[test]
    fn without_a_way_out_there_is_no_router() {
        let mut out = Vec::new();
        assert!(advertise(&qemu(), false, None, &mut out));
        assert_eq!(out[60..62], [0, 0]);
        let shut = Conf { restrict: true, ..qemu() };
        advertise(&shut, true, None, &mut out);
        assert_eq!((&out[60..62], out.len()), (&[0, 0][..], 58 + 12 + 8 + 8 + 32));
        let narrow = Conf { v6: qemu().v6.map(|v| V6 { len: 80, ..v }), ..qemu() };
        advertise(&narrow, true, None, &mut out);
        assert_eq!((out[59], out[88], out[89]), (0xc0, 80, 0x80), "its address comes by DHCPv6");
        assert!(!advertise(&Conf { v6: None, ..qemu() }, true, None, &mut out));
    }

    /// CVE-2020-10756: an ICMPv6 message shorter than what is read of it told of memory behind it.
    #[test]
    fn cve_2020_10756_what_is_cut_is_no_message() {
        let (c, mut out) = (qemu(), Vec::new());
        let (f, whole) = (from(OWN, "ff02::1:ff00:2"), solicit("fec0::2", &SLLA));
        for n in 0..whole.len() {
            assert_eq!(take(&c, true, &f, &whole[..n], &mut out).is_some(), n == 24, "{n} bytes");
        }
        // An option without a length would never end; one that is longer than the message is none.
        for units in [0, 2, 255] {
            let mut bent = whole.clone();
            bent[25] = units;
            assert!(take(&c, true, &f, &bent, &mut out).is_none(), "{units} units");
        }
        for (at, value) in [(1, 1), (0, 128), (0, 134), (0, 137), (8, 0xff)] {
            let mut bent = whole.clone();
            bent[at] = value;
            assert!(take(&c, true, &f, &bent, &mut out).is_none(), "byte {at}");
        }
        let odd = [From { hops: 254, ..f }, From { mac: Mac::BROADCAST, ..f }, from("ff02::1", OWN)];
        assert!(odd.iter().all(|f| take(&c, true, f, &whole, &mut out).is_none()));
        assert!(out.is_empty());
    }

    #[test]
    fn what_neighbours_say_of_themselves_is_learned() {
        let (c, mut out) = (qemu(), Vec::new());
        let f = from("fe80::1:1", "fec0::2");
        let said = |who: &str| [&[136, 0, 0, 0, 0x60, 0, 0, 0][..], &ip(who).octets(), &SLLA].concat();
        let seen = take(&c, true, &f, &said("fec0::15"), &mut out).unwrap();
        assert_eq!((seen.ip, out.len()), (Some("fec0::15".parse().unwrap()), 0));
        // Nobody becomes us, and foreign addresses are not learned.
        for not in ["fec0::2", "fec0:0:0:1::1", "::1", "ff02::1"] {
            assert_eq!(take(&c, true, &f, &said(not), &mut out).unwrap().ip, None, "{not}");
        }
    }
}
