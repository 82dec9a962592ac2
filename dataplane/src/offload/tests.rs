//! Segments are checked with a parser of their own: every checksum must verify, the payload must come out whole.

use super::*;
use crate::mem::Seg;
use netreeve_shared::vnet::{F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4};
use proptest::prelude::*;

struct Super {
    bytes: Vec<u8>,
    vnet: Vnet,
}

fn super_frame(v6: bool, tcp: bool, payload: &[u8], mss: u16, vlan: bool) -> Super {
    let mut b = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    if vlan {
        b.extend([0x81, 0, 0, 5]);
    }
    b.extend(if v6 { [0x86, 0xdd] } else { [8, 0] });
    let l3 = b.len();
    let l4_header: usize = if tcp { 32 } else { 8 };
    let l4_len = l4_header + payload.len();
    if v6 {
        b.extend([0x60, 0, 0, 0]);
        b.extend((l4_len as u16).to_be_bytes());
        b.extend([if tcp { 6 } else { 17 }, 64]);
        b.extend([0xfd; 16]);
        b.extend([0xfe; 16]);
    } else {
        b.extend([0x45, 0]);
        b.extend(((20 + l4_len) as u16).to_be_bytes());
        b.extend([0xff, 0xff, 0x40, 0, 64, if tcp { 6 } else { 17 }, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    }
    let l4 = b.len();
    b.extend([0x12, 0x34, 0x56, 0x78]);
    if tcp {
        b.extend([0xff, 0xff, 0xff, 0x00, 0, 0, 0, 9, 0x80, 0x99, 1, 0, 0, 0, 0, 0]);
        b.extend([1; 12]);
    } else {
        b.extend((l4_len as u16).to_be_bytes());
        b.extend([0, 0]);
    }
    b.extend(payload);
    let gso_type = match (tcp, v6) {
        (true, false) => GSO_TCPV4,
        (true, true) => GSO_TCPV6,
        _ => GSO_UDP_L4,
    };
    let _ = l3;
    let vnet = Vnet {
        flags: F_NEEDS_CSUM,
        gso_type,
        hdr_len: 0,
        gso_size: mss,
        csum_start: l4 as u16,
        csum_offset: if tcp { 16 } else { 6 },
    };
    Super { bytes: b, vnet }
}

/// Puts a frame into a batch as a guest would: head copied, the rest scattered.
fn load(b: &mut Batch, s: &mut Super, cut: usize) {
    let len = s.bytes.len();
    let (head, body) = s.bytes.split_at_mut(len.min(crate::frame::HEAD));
    let f = b.push().unwrap();
    f.set_head(head);
    f.len = len as u32;
    f.vnet = s.vnet;
    for part in body.chunks_mut(cut) {
        b.push_seg(Seg::over(part));
    }
}

fn bytes(b: &Batch, f: &Frame) -> Vec<u8> {
    let mut v = f.head().to_vec();
    for s in b.body(f) {
        let mut p = vec![0; s.len() as usize];
        s.copy_out(&mut p);
        v.extend(p);
    }
    v
}

fn verify(p: &[u8], v6: bool, tcp: bool, l3: usize) -> Vec<u8> {
    let l4 = l3 + if v6 { 40 } else { 20 };
    let l4_len = p.len() - l4;
    let mut s = Sum::default();
    if v6 {
        assert_eq!(usize::from(u16::from_be_bytes([p[l3 + 4], p[l3 + 5]])), l4_len);
        s.bytes(&p[l3 + 8..l3 + 40]);
    } else {
        assert_eq!(usize::from(u16::from_be_bytes([p[l3 + 2], p[l3 + 3]])), 20 + l4_len);
        let mut h = Sum::default();
        h.bytes(&p[l3..l3 + 20]);
        assert_eq!(h.partial(), [0xff, 0xff], "IPv4 header checksum");
        s.bytes(&p[l3 + 12..l3 + 20]);
    }
    s.be16(if tcp { 6 } else { 17 });
    s.be16(l4_len as u16);
    s.bytes(&p[l4..]);
    assert_eq!(s.partial(), [0xff, 0xff], "transport checksum");
    p[l4 + if tcp { 32 } else { 8 }..].to_vec()
}

fn run(v6: bool, tcp: bool, vlan: bool, payload: &[u8], mss: u16, cut: usize) {
    let mut sup = super_frame(v6, tcp, payload, mss, vlan);
    let mut b = Batch::new();
    load(&mut b, &mut sup, cut);
    assert!(needed(&b, Offloads::NONE) && feasible(&b.frames()[0], Offloads::NONE));
    let mut out = Batch::new();
    let (mut at, mut got, mut n) = (At::default(), Vec::new(), 0u32);
    while at.frame == 0 {
        out.clear();
        at = finish(&b, at, Offloads::NONE, &mut out);
        for f in out.frames() {
            assert_eq!(At::of(f), At { frame: 0, segment: n });
            let p = bytes(&out, f);
            assert_eq!(p.len(), f.len as usize);
            let l3 = if vlan { 18 } else { 14 };
            got.extend(verify(&p, v6, tcp, l3));
            if tcp {
                let l4 = l3 + if v6 { 40 } else { 20 };
                let seq = u32::from_be_bytes(p[l4 + 4..l4 + 8].try_into().unwrap());
                assert_eq!(seq, 0xffff_ff00u32.wrapping_add(n * u32::from(mss)));
                let last = got.len() == payload.len();
                assert_eq!(p[l4 + 13] & (TCP_FLAGS_LAST) != 0, last, "FIN and PSH on the last only");
                assert_eq!(p[l4 + 13] & 0x80 != 0, n == 0, "CWR on the first only");
            }
            n += 1;
        }
    }
    assert_eq!(got, payload);
}

const TCP_FLAGS_LAST: u8 = 0x09;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn segments_verify_and_carry_the_payload(v6: bool, tcp: bool, vlan: bool, len in 1usize..60000, mss in 60u16..9000, cut in 1usize..5000, seed: u8) {
        let payload: Vec<u8> = (0..len).map(|i| (i as u8).wrapping_mul(31) ^ seed).collect();
        run(v6, tcp, vlan, &payload, mss.max((len / 1300) as u16 + 1), cut.max(len / 60 + 1));
    }

    #[test]
    fn hostile_headers_never_panic(raw in prop::collection::vec(any::<u8>(), 14..200), flags: u8, gso_type: u8, gso_size: u16, csum_start in 0u16..200, csum_offset in 0u16..200) {
        let vnet = Vnet { flags, gso_type, hdr_len: 0, gso_size, csum_start, csum_offset };
        if vnet.check(raw.len() as u32).is_ok() {
            let mut sup = Super { bytes: raw, vnet };
            let mut b = Batch::new();
            load(&mut b, &mut sup, 64);
            if feasible(&b.frames()[0], Offloads::NONE) {
                let mut out = Batch::new();
                let mut at = At::default();
                let mut rounds = 0;
                while at.frame == 0 {
                    out.clear();
                    at = finish(&b, at, Offloads::NONE, &mut out);
                    rounds += 1;
                    prop_assert!(rounds < 100);
                }
            }
        }
    }
}

#[test]
fn a_partial_checksum_is_completed_and_the_rest_passes() {
    let mut sup = super_frame(false, true, &[7; 1000], 0, false);
    sup.vnet.gso_type = 0;
    // The field holds the pseudo-header's sum, as a guest leaves it.
    let mut s = Sum::default();
    s.bytes(&sup.bytes[26..34]);
    s.be16(6);
    s.be16(1032);
    sup.bytes[50..52].copy_from_slice(&s.partial());
    sup.bytes[24..26].copy_from_slice(&[0, 0]);
    let mut h = Sum::default();
    h.bytes(&sup.bytes[14..34]);
    sup.bytes[24..26].copy_from_slice(&h.finish());
    let mut b = Batch::new();
    load(&mut b, &mut sup, 333);
    let mut out = Batch::new();
    assert_eq!(finish(&b, At::default(), Offloads::NONE, &mut out).frame, 1);
    let f = &out.frames()[0];
    assert!(f.vnet.is_plain());
    assert_eq!(verify(&bytes(&out, f), false, true, 14), vec![7; 1000]);
    // A taker that takes checksums gets it as it is.
    out.clear();
    finish(&b, At::default(), Offloads(bits::CSUM), &mut out);
    assert!(out.frames()[0].vnet.needs_csum());
}
