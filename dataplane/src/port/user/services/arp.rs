//! ARP (RFC 826): who has our addresses, and who the guest is.
//!
//! Trust: none. Promise: only our own addresses are answered for, so a guest that asks whether its own is free (RFC 5227)
//! hears nothing; nothing is learned that contradicts the frame it came in.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr};

use netreeve_shared::mac::Mac;

use super::Seen;
use super::bytes::Reader;
use super::conf::Conf;

const REQUEST: u16 = 1;
const REPLY: u16 = 2;
/// Ethernet, IPv4, and their addresses' lengths.
const KIND: [u8; 6] = [0, 1, 8, 0, 6, 4];
const TYPE: [u8; 2] = [0x08, 0x06];

struct Message {
    op: u16,
    from: (Mac, Ipv4Addr),
    to: (Mac, Ipv4Addr),
}

/// The message in a frame, Ethernet header included.
fn parse(frame: &[u8]) -> Option<Message> {
    let mut r = Reader::new(frame);
    r.take(6)?;
    let sender = Mac(r.array()?);
    let (kind, form, op) = (r.array::<2>()?, r.array::<6>()?, r.u16()?);
    let from = (Mac(r.array()?), Ipv4Addr::from(r.array::<4>()?));
    let to = (Mac(r.array()?), Ipv4Addr::from(r.array::<4>()?));
    (kind == TYPE && form == KIND && from.0 == sender && sender.is_station()).then_some(Message {
        op,
        from,
        to,
    })
}

fn write(out: &mut Vec<u8>, op: u16, eth_to: Mac, from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr)) {
    out.clear();
    out.extend_from_slice(&eth_to.0);
    out.extend_from_slice(&from.0.0);
    out.extend_from_slice(&TYPE);
    out.extend_from_slice(&KIND);
    out.extend_from_slice(&op.to_be_bytes());
    for (mac, ip) in [from, to] {
        out.extend_from_slice(&mac.0);
        out.extend_from_slice(&ip.octets());
    }
}

/// What a frame says of the guest; if it asks for one of our addresses, `out` becomes the answer, else it is empty.
/// None: it is no ARP of this network.
pub fn take(c: &Conf, frame: &[u8], out: &mut Vec<u8>) -> Option<Seen> {
    out.clear();
    let v4 = c.v4?;
    let m = parse(frame)?;
    let ours = |a: Ipv4Addr| c.owns(IpAddr::V4(a));
    if m.op == REQUEST && ours(m.to.1) {
        // Somebody who takes one of our addresses for his own hears so too.
        write(out, REPLY, m.from.0, (c.mac, m.to.1), m.from);
    }
    let known = matches!(m.op, REQUEST | REPLY) && m.from.0 != c.mac;
    let free = !m.from.1.is_unspecified() && v4.holds(m.from.1) && !ours(m.from.1);
    let free = free && m.from.1 != v4.broadcast();
    Some(Seen { mac: known.then_some(m.from.0), ip: (known && free).then_some(IpAddr::V4(m.from.1)) })
}

/// Makes `out` an announcement of our own address (RFC 5227 §2.3), for a guest that knows another Ethernet address of it.
/// False: there is no IPv4.
pub fn announce(c: &Conf, out: &mut Vec<u8>) -> bool {
    let Some(v4) = c.v4 else { return false };
    write(out, REQUEST, Mac::BROADCAST, (c.mac, v4.host), (Mac::default(), v4.host));
    true
}

#[cfg(test)]
mod tests {
    use super::super::conf::tests::qemu;
    use super::*;

    const GUEST: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

    fn request(from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
        let mut f = vec![0xff; 6];
        f.extend(GUEST);
        f.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        f.extend(GUEST);
        f.extend(from);
        f.extend([0; 6]);
        f.extend(to);
        f
    }

    #[test]
    fn our_addresses_are_answered_for() {
        let (c, mut out) = (qemu(), Vec::new());
        for ours in [[10, 0, 2, 2], [10, 0, 2, 3]] {
            let seen = take(&c, &request([10, 0, 2, 15], ours), &mut out).unwrap();
            assert_eq!(seen, Seen { mac: Some(Mac(GUEST)), ip: Some("10.0.2.15".parse().unwrap()) });
            let mut answer = GUEST.to_vec();
            answer.extend([0x52, 0x55, 10, 0, 2, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 2, 0x52, 0x55, 10, 0, 2, 2]);
            answer.extend(ours);
            answer.extend(GUEST);
            answer.extend([10, 0, 2, 15]);
            assert_eq!(out, answer);
        }
        let more = Conf { more: vec!["10.0.2.100".parse().unwrap()], ..c };
        take(&more, &request([10, 0, 2, 15], [10, 0, 2, 100]), &mut out).unwrap();
        assert_eq!(out[28..32], [10, 0, 2, 100]);
    }

    #[test]
    fn a_guest_that_probes_its_own_address_hears_nothing() {
        let (c, mut out) = (qemu(), Vec::new());
        let seen = take(&c, &request([0; 4], [10, 0, 2, 15]), &mut out).unwrap();
        assert_eq!((out.len(), seen.ip), (0, None));
        // An announcement is learned from, and not answered either.
        let seen = take(&c, &request([10, 0, 2, 15], [10, 0, 2, 15]), &mut out).unwrap();
        assert_eq!((out.len(), seen.ip), (0, Some("10.0.2.15".parse().unwrap())));
        // One that probes for ours hears that it is taken.
        take(&c, &request([0; 4], [10, 0, 2, 2]), &mut out).unwrap();
        assert_eq!(out.len(), 42);
    }

    #[test]
    fn nobody_becomes_us_and_foreign_addresses_are_not_learned() {
        let (c, mut out) = (qemu(), Vec::new());
        for from in [[10, 0, 2, 2], [10, 0, 2, 3], [10, 0, 2, 255], [192, 168, 1, 1], [0; 4]] {
            let seen = take(&c, &request(from, [10, 0, 2, 2]), &mut out).unwrap();
            assert_eq!(seen.ip, None, "{from:?}");
        }
        let mut other = request([10, 0, 2, 15], [10, 0, 2, 2]);
        other[6] ^= 4;
        assert!(take(&c, &other, &mut out).is_none(), "the frame's sender and the message's differ");
    }

    #[test]
    fn what_is_cut_or_bent_is_no_message() {
        let (c, mut out) = (qemu(), Vec::new());
        let whole = request([10, 0, 2, 15], [10, 0, 2, 2]);
        for n in 0..42 {
            assert!(take(&c, &whole[..n], &mut out).is_none());
            assert!(out.is_empty());
        }
        for at in 12..20 {
            let mut bent = whole.clone();
            bent[at] ^= 0x10;
            assert!(take(&c, &bent, &mut out).is_none(), "byte {at}");
        }
        let padded = [whole, vec![0; 18]].concat();
        assert!(take(&c, &padded, &mut out).is_some());
        assert!(take(&Conf { v4: None, ..c }, &padded, &mut out).is_none());
    }

    #[test]
    fn announcements_of_ours() {
        let (c, mut out) = (qemu(), Vec::new());
        assert!(announce(&c, &mut out));
        assert_eq!((&out[28..32], &out[38..42]), (&[10, 0, 2, 2][..], &[10, 0, 2, 2][..]));
    }
}
