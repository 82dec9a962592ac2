//! Finds checksums that the sender left undone.
//!
//! A local stack that sends through a veth leaves `CHECKSUM_PARTIAL` packets: the field holds the sum of the
//! pseudo-header only, for the device to complete, and AF_XDP hands the packet over without saying so (there is no
//! receive metadata for it up to kernel 7.3). But the sum can be recognised: if the field equals the pseudo-header's
//! sum, the checksum is undone. A frame with a complete checksum looks so by chance once in 65536 times, and is not
//! harmed: completing from that field yields the right checksum again, since the right checksum over data whose
//! complete checksum equals its pseudo-header sum is found from exactly that seed.
//!
//! In skb mode the kernel also leaves segmentation undone, on what its own stack sends and on what it joined when it
//! received (GRO): TCP packets of up to 64 KiB, whose checksum is always undone. One that is longer than the MTU is for
//! the taker to segment; the size of the segments is not known and need not be the sender's, so they fill the MTU.
//! For UDP the sizes are the datagrams' boundaries, which are lost: such a packet is longer than anybody takes.
//!
//! Trust: none in the frame. Promise: what is found lies inside the head. Not recognised: checksums inside tunnels, and
//! behind IPv6 extension headers.
#![forbid(unsafe_code)]

use netreeve_shared::vnet::{F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, Vnet};

use crate::offload::sum::Sum;

const ETHER: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// The header that tells the taker what to complete on the frame of `len` bytes that begins with `head` and came in over
/// an interface of this `mtu` (bytes of IP packet); plain if there is nothing to complete.
#[must_use]
pub fn find(head: &[u8], len: u32, mtu: u32) -> Vnet {
    undone(head, len, mtu).unwrap_or_default()
}

fn undone(head: &[u8], len: u32, mtu: u32) -> Option<Vnet> {
    let mut at = ETHER;
    let mut kind = be16(head, 12)?;
    // One VLAN tag, or two (802.1Q, 802.1ad).
    for _ in 0..2 {
        if kind == 0x8100 || kind == 0x88a8 {
            kind = be16(head, at + 2)?;
            at += 4;
        }
    }
    let ip = head.get(at..)?;
    let mut sum = Sum::default();
    let (ip_len, protocol) = match kind {
        0x0800 => {
            let len = usize::from(*ip.first()? & 15) * 4;
            let fragment = be16(ip, 6)? & 0x3fff != 0;
            if len < 20 || fragment {
                return None;
            }
            sum.bytes(ip.get(12..20)?);
            sum.be16(be16(ip, 2)?.checked_sub(u16::try_from(len).ok()?)?);
            (len, *ip.get(9)?)
        }
        0x86dd => {
            sum.bytes(ip.get(8..40)?);
            sum.be16(be16(ip, 4)?);
            (40, *ip.get(6)?)
        }
        _ => return None,
    };
    let csum_offset = match protocol {
        TCP => 16,
        UDP => 6,
        _ => return None,
    };
    sum.be16(protocol.into());
    let field = ip.get(ip_len + csum_offset..ip_len + csum_offset + 2)?;
    // No checksum at all (RFC 768) is not an undone one.
    if field == [0, 0] || field != sum.partial() {
        return None;
    }
    let mut vnet = Vnet {
        flags: F_NEEDS_CSUM,
        csum_start: u16::try_from(at + ip_len).ok()?,
        csum_offset: u16::try_from(csum_offset).ok()?,
        ..Vnet::default()
    };
    let packet = len.saturating_sub(u32::try_from(at).ok()?);
    if protocol == TCP && packet > mtu {
        let headers = ip_len + usize::from(*ip.get(ip_len + 12)? >> 4) * 4;
        let room = mtu.checked_sub(u32::try_from(headers).ok()?).filter(|n| *n > 0)?;
        vnet.gso_type = if kind == 0x0800 { GSO_TCPV4 } else { GSO_TCPV6 };
        vnet.gso_size = u16::try_from(room).ok()?;
        vnet.hdr_len = u16::try_from(at + headers).ok()?;
    }
    Some(vnet)
}

fn be16(b: &[u8], at: usize) -> Option<u16> {
    b.get(at..)?.first_chunk().map(|c| u16::from_be_bytes(*c))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame with the checksum undone, its tags and IP version as asked.
    fn frame(tags: usize, v6: bool, protocol: u8, payload: &[u8]) -> (Vec<u8>, usize) {
        let l4 = if protocol == TCP { 20 } else { 8 } + payload.len();
        let mut f = vec![0x52; 12];
        for _ in 0..tags {
            f.extend([0x81, 0, 0, 5]);
        }
        let mut pseudo: Vec<u8>;
        let l4_len = u16::try_from(l4).unwrap().to_be_bytes();
        if v6 {
            f.extend([0x86, 0xdd, 0x60, 0, 0, 0, l4_len[0], l4_len[1], protocol, 64]);
            let addrs: Vec<u8> = (1..=32).collect();
            f.extend(&addrs);
            pseudo = addrs;
        } else {
            let total = u16::try_from(l4 + 20).unwrap().to_be_bytes();
            f.extend([
                8, 0, 0x45, 0, total[0], total[1], 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 1, 0, 1, 10, 1, 0,
                2,
            ]);
            pseudo = vec![10, 1, 0, 1, 10, 1, 0, 2];
        }
        pseudo.extend([0, protocol]);
        pseudo.extend(l4_len);
        let mut sum = pseudo.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum::<u32>();
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        let start = f.len();
        f.resize(start + l4 - payload.len(), 0);
        let at = start + if protocol == TCP { 16 } else { 6 };
        f[at..at + 2].copy_from_slice(&u16::try_from(sum).unwrap().to_be_bytes());
        f.extend(payload);
        (f, at)
    }

    #[test]
    fn undone_ones_are_found() {
        for (tags, v6, protocol) in [
            (0, false, TCP),
            (0, true, TCP),
            (1, false, UDP),
            (2, true, UDP),
            (0, true, UDP),
            (2, false, TCP),
        ] {
            let (mut f, at) = frame(tags, v6, protocol, b"some data");
            let v = find(&f, f.len() as u32, 1500);
            assert!(v.needs_csum(), "{tags} {v6} {protocol}");
            assert_eq!(usize::from(v.csum_start + v.csum_offset), at);
            f[at] ^= 1;
            assert_eq!(find(&f, f.len() as u32, 1500), Vnet::default());
            f[at..at + 2].copy_from_slice(&[0, 0]);
            assert_eq!(find(&f, f.len() as u32, 1500), Vnet::default());
        }
    }

    #[test]
    fn superframes_are_for_the_taker_to_segment() {
        for (v6, kind, size) in [(false, GSO_TCPV4, 1460), (true, GSO_TCPV6, 1440)] {
            let (mut f, _) = frame(1, v6, TCP, &[7; 9000]);
            let l4 = if v6 { 58 } else { 38 };
            f[l4 + 12] = 0x50;
            let v = find(&f[..128], f.len() as u32, 1500);
            assert_eq!((v.gso_type, v.gso_size, usize::from(v.hdr_len)), (kind, size, l4 + 20));
            assert_eq!(v.check(f.len() as u32), Ok(()));
            let fits = find(&f[..128], f.len() as u32, 9100);
            assert_eq!((fits.gso_type, fits.needs_csum()), (0, true));
            f[l4 + 16] ^= 1;
            assert_eq!(find(&f[..128], f.len() as u32, 1500), Vnet::default());
        }
        let (f, _) = frame(0, false, UDP, &[7; 9000]);
        assert_eq!(find(&f[..128], f.len() as u32, 1500).gso_type, 0);
    }

    #[test]
    fn fragments_and_other_protocols_are_left_alone() {
        let (mut f, _) = frame(0, false, UDP, b"x");
        f[20] = 0x20;
        assert_eq!(find(&f, f.len() as u32, 1500), Vnet::default());
        let (mut f, _) = frame(0, false, UDP, b"x");
        f[23] = 1;
        assert_eq!(find(&f, f.len() as u32, 1500), Vnet::default());
        let (mut f, _) = frame(0, true, UDP, b"x");
        f[13] = 0xde;
        assert_eq!(find(&f, f.len() as u32, 1500), Vnet::default());
    }

    proptest! {
        #[test]
        fn what_is_found_lies_inside(
            tags in 0_usize..3, v6 in any::<bool>(), udp in any::<bool>(), cut in 0_usize..128,
            changes in prop::collection::vec((0_usize..128, any::<u8>()), 0..3), len in 0_u32..70_000, mtu in 0_u32..10_000,
        ) {
            let (mut f, _) = frame(tags, v6, if udp { UDP } else { TCP }, &[1; 40]);
            for (at, to) in changes {
                if let Some(b) = f.get_mut(at) {
                    *b = to;
                }
            }
            f.truncate(cut);
            let len = len.max(cut as u32);
            let v = find(&f, len, mtu);
            prop_assert!(!v.needs_csum() || v.check(cut as u32).is_ok());
        }
    }
}
