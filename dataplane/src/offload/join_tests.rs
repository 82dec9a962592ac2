//! Joining is the inverse of segmenting: whatever is joined comes out of [`finish`] as it was, byte for byte and in
//! order within its flow; and what must not be joined is not.

use super::super::{At, finish};
use super::*;
use netreeve_shared::vnet::GSO_NONE;
use proptest::prelude::*;

const ALL: Offloads = Offloads::ALL;

#[derive(Clone, Debug)]
struct Flow {
    v6: bool,
    tcp: bool,
    vlan: bool,
    /// The identification: counted, always the same with DF, or at random.
    id: u8,
    mss: usize,
    timestamps: bool,
}

/// One packet of a flow, with what is odd about it.
#[derive(Clone, Debug)]
struct Step {
    flow: usize,
    /// Percent of the flow's segment size.
    fill: usize,
    flags: u8,
    odd: Odd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Odd {
    No,
    BadSum,
    BadIpSum,
    Undone,
    WronglyUndone,
    Gap,
    Padded,
    Window,
    Ack,
    Ttl,
    Ce,
    Option,
    NoSum,
    Fragment,
    Dropped,
    Arp,
}

struct Sender {
    flow: Flow,
    number: u8,
    seq: u32,
    id: u16,
}

impl Sender {
    #[allow(clippy::too_many_lines, reason = "a packet from its first byte to its last, in order")]
    fn next(&mut self, s: &Step, salt: usize) -> (Vec<u8>, Vnet) {
        let f = &self.flow;
        let (odd, mut b) = (s.odd, vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        if odd == Odd::Arp {
            b.extend([8, 6]);
            b.resize(60, 7);
            return (b, Vnet::default());
        }
        if f.vlan {
            b.extend([0x81, 0, 0, 5]);
        }
        b.extend(if f.v6 { [0x86, 0xdd] } else { [8, 0] });
        let l3 = b.len();
        let l4_header = if f.tcp { 20 + 12 * usize::from(f.timestamps) } else { 8 };
        let len = f.mss * s.fill / 100;
        let l4_len = (l4_header + len) as u16;
        let protocol = if f.tcp { 6 } else { 17 };
        let ttl = 64 - u8::from(odd == Odd::Ttl);
        let tos = if odd == Odd::Ce { 3 } else { 2 };
        if f.v6 {
            b.extend([0x60, tos << 4, 0, 9]);
            b.extend(l4_len.to_be_bytes());
            b.extend([protocol, ttl]);
            b.extend([0xfd; 16]);
            b.extend([self.number; 16]);
        } else {
            b.extend([0x45, tos]);
            b.extend((20 + l4_len).to_be_bytes());
            b.extend(self.id.to_be_bytes());
            let df = if f.id == 1 { 0x40 } else { 0 };
            b.extend([
                if odd == Odd::Fragment { 0x20 } else { df },
                0,
                ttl,
                protocol,
                0,
                0,
                10,
                0,
                0,
                1,
                10,
                0,
                0,
                self.number,
            ]);
            self.id = match f.id {
                0 => self.id.wrapping_add(1),
                1 => self.id,
                _ => self.id.wrapping_add(1 + (salt % 3) as u16),
            };
            let mut h = Sum::default();
            h.bytes(&b[l3..]);
            let sum = h.finish();
            b[l3 + 10..l3 + 12].copy_from_slice(&sum);
            b[l3 + 11] ^= u8::from(odd == Odd::BadIpSum);
        }
        let l4 = b.len();
        b.extend([0x12, 0x34, 0x56, self.number]);
        if f.tcp {
            if odd == Odd::Gap {
                self.seq = self.seq.wrapping_add(5);
            }
            b.extend(self.seq.to_be_bytes());
            b.extend([
                0,
                0,
                0,
                9 + u8::from(odd == Odd::Ack),
                (l4_header as u8 / 4) << 4,
                s.flags,
                1,
                u8::from(odd == Odd::Window),
                0,
                0,
                0,
                0,
            ]);
            if f.timestamps {
                b.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, u8::from(odd == Odd::Option)]);
            }
            self.seq = self.seq.wrapping_add(len as u32);
        } else {
            b.extend(l4_len.to_be_bytes());
            b.extend([0, 0]);
        }
        b.extend((0..len).map(|i| (i.wrapping_mul(31) ^ salt) as u8));
        let field = l4 + if f.tcp { 16 } else { 6 };
        let mut sum = Sum::default();
        sum.bytes(if f.v6 { &b[l3 + 8..l3 + 40] } else { &b[l3 + 12..l3 + 20] });
        sum.be16(protocol.into());
        sum.be16(l4_len);
        let mut vnet = Vnet::default();
        if odd == Odd::Undone || odd == Odd::WronglyUndone {
            b[field..field + 2].copy_from_slice(&sum.partial());
            b[field] ^= u8::from(odd == Odd::WronglyUndone);
            vnet.flags = F_NEEDS_CSUM;
            vnet.csum_start = l4 as u16;
            vnet.csum_offset = (field - l4) as u16;
        } else if odd != Odd::NoSum || f.tcp {
            sum.bytes(&b[l4..]);
            b[field..field + 2].copy_from_slice(&sum.finish());
            b[field] ^= u8::from(odd == Odd::BadSum);
        }
        if odd == Odd::Padded {
            b.extend([0; 6]);
        }
        (b, vnet)
    }
}

/// Frames of a batch in memory of their own, as AF_XDP gives them: cut into chunks, the first of which leads.
fn load_all(frames: &mut [(Vec<u8>, Vnet, bool)], chunk: usize) -> Batch {
    let mut b = Batch::new();
    for (bytes, vnet, dropped) in frames {
        let (len, mut parts) =
            (bytes.len(), bytes.chunks_mut(chunk).map(Seg::over).collect::<Vec<_>>().into_iter());
        let f = b.push().unwrap();
        f.len = len as u32;
        f.vnet = *vnet;
        f.dropped = *dropped;
        let lead = parts.next().unwrap();
        f.set_lead(lead);
        let n = f.head_from(&lead);
        b.push_seg(lead.skip(n));
        parts.for_each(|s| b.push_seg(s));
    }
    b
}

fn bytes(b: &Batch, f: &Frame) -> Vec<u8> {
    let mut v = f.head().to_vec();
    for s in b.body(f) {
        let mut p = vec![0; s.len() as usize];
        s.copy_out(&mut p);
        v.extend(p);
    }
    assert_eq!(v.len(), f.len as usize);
    v
}

/// All frames of a batch, segmented and their checksums completed.
fn plain(b: &Batch) -> Vec<Vec<u8>> {
    let (mut at, mut out, mut all) = (At::default(), Batch::new(), Vec::new());
    while at.frame < b.len() {
        out.clear();
        at = finish(b, at, Offloads::NONE, &mut out);
        all.extend(out.frames().iter().map(|f| bytes(&out, f)));
    }
    all
}

/// The flow's number; none for ARP.
fn number(frame: &[u8]) -> Option<u8> {
    let l3 = if frame[12] == 0x81 { 18 } else { 14 };
    match frame[l3 - 2] {
        0x86 => Some(frame[l3 + 43]),
        8 if frame[l3 - 1] == 0 => Some(frame[l3 + 23]),
        _ => None,
    }
}

/// Of atomic datagrams with one identification for all, that and the checksum over it are not kept.
fn forget_id(frames: &mut [Vec<u8>], flows: &[Flow]) {
    for f in frames {
        let l3 = if f[12] == 0x81 { 18 } else { 14 };
        if number(f).is_some_and(|n| flows[usize::from(n)].id == 1) && f[l3 - 2] == 8 {
            f[l3 + 4..l3 + 6].fill(0);
            f[l3 + 10..l3 + 12].fill(0);
        }
    }
}

fn joined(frames: &mut [(Vec<u8>, Vnet, bool)], takes: Offloads) -> Vec<(Vec<u8>, Vnet)> {
    let b = load_all(frames, 4096);
    let (mut j, mut out) = (Joiner::default(), Batch::new());
    if !j.plan(&b, takes) {
        return b.frames().iter().filter(|f| !f.dropped).map(|f| (bytes(&b, f), f.vnet)).collect();
    }
    j.emit(&b, &mut out);
    out.frames().iter().map(|f| (bytes(&out, f), f.vnet)).collect()
}

fn flow(tcp: bool, v6: bool) -> Flow {
    Flow { v6, tcp, vlan: false, id: 0, mss: 1448, timestamps: true }
}

/// `n` frames of one flow, the `at`th of them odd.
fn train(f: &Flow, n: usize, at: usize, odd: Odd, flags: u8) -> Vec<(Vec<u8>, Vnet, bool)> {
    let mut s = Sender { flow: f.clone(), number: 1, seq: 0xffff_f000, id: 0xfffe };
    let step = |i| Step {
        flow: 0,
        fill: 100,
        flags: if i == at { flags } else { 0x10 },
        odd: if i == at { odd } else { Odd::No },
    };
    (0..n).map(|i| s.next(&step(i), i)).map(|(b, v)| (b, v, false)).collect()
}

#[test]
fn a_train_becomes_one_frame() {
    for (tcp, v6, kind) in [
        (true, false, GSO_TCPV4),
        (true, true, GSO_TCPV6),
        (false, false, GSO_UDP_L4),
        (false, true, GSO_UDP_L4),
    ] {
        let out = joined(&mut train(&flow(tcp, v6), 20, 99, Odd::No, 0), ALL);
        assert_eq!(out.len(), 1, "{tcp} {v6}");
        let (bytes, v) = &out[0];
        assert_eq!((v.gso_type, v.gso_size, v.flags), (kind, 1448, F_NEEDS_CSUM));
        assert_eq!(v.check(bytes.len() as u32), Ok(()));
        assert_eq!(bytes.len(), usize::from(v.hdr_len) + 20 * 1448);
    }
}

#[test]
fn sixty_four_kibibytes_are_the_end() {
    let out = joined(&mut train(&flow(true, false), 64, 99, Odd::No, 0), ALL);
    assert_eq!(out.len(), 2);
    assert!(out[0].0.len() - 14 <= 65535 && out[0].0.len() - 14 + 1448 > 65535);
}

#[test]
fn only_what_the_taker_takes_is_joined() {
    let count = |tcp, v6, takes| joined(&mut train(&flow(tcp, v6), 4, 99, Odd::No, 0), Offloads(takes)).len();
    assert_eq!(count(true, false, bits::CSUM | bits::TSO6 | bits::USO), 4);
    assert_eq!(count(true, false, bits::CSUM | bits::TSO4), 1);
    assert_eq!(count(true, true, bits::CSUM | bits::TSO4), 4);
    assert_eq!(count(false, true, bits::CSUM | bits::TSO4), 4);
    assert_eq!(count(false, true, bits::CSUM | bits::USO), 1);
    assert_eq!(count(true, false, bits::TSO4), 4, "segments need checksums");
    assert!(
        !pays(Offloads(bits::TSO4)) && !pays(Offloads(bits::CSUM)) && pays(Offloads(bits::CSUM | bits::TSO6))
    );
}

#[test]
fn what_differs_parts_the_train() {
    // Twelve frames, of which the seventh is odd: frames that go out.
    for (odd, n) in [
        (Odd::BadSum, 3),
        (Odd::BadIpSum, 3),
        (Odd::WronglyUndone, 3),
        (Odd::Undone, 1),
        (Odd::Gap, 2),
        (Odd::Padded, 3),
        (Odd::Window, 3),
        (Odd::Ack, 3),
        (Odd::Ttl, 3),
        (Odd::Ce, 3),
        (Odd::Option, 3),
        (Odd::Fragment, 3),
        (Odd::Arp, 3),
    ] {
        let mut frames = train(&flow(true, false), 12, 6, odd, 0x10);
        if odd == Odd::Arp {
            // It took no number: what follows goes on with the sequence, but not past it.
            assert_eq!(joined(&mut frames, ALL).len(), n, "{odd:?}");
            continue;
        }
        assert_eq!(joined(&mut frames, ALL).len(), n, "{odd:?}");
    }
    assert_eq!(joined(&mut train(&flow(false, false), 12, 6, Odd::NoSum, 0), ALL).len(), 3);
    let mut random = flow(true, false);
    random.id = 2;
    assert!(joined(&mut train(&random, 12, 99, Odd::No, 0), ALL).len() > 1, "identifications that jump");
    random.id = 1;
    assert_eq!(joined(&mut train(&random, 12, 99, Odd::No, 0), ALL).len(), 1, "atomic datagrams");
}

#[test]
fn flags_end_or_part_or_stay() {
    // PSH and FIN end a super-frame and stand in it; SYN, RST and URG are alone; CWR begins one; ECE parts.
    for (flags, n) in
        [(0x18, 2), (0x11, 2), (0x19, 2), (0x12, 3), (0x14, 3), (0x30, 3), (0x90, 2), (0x50, 3), (0x00, 3)]
    {
        assert_eq!(joined(&mut train(&flow(true, false), 12, 6, Odd::No, flags), ALL).len(), n, "{flags:#x}");
    }
    let out = joined(&mut train(&flow(true, false), 12, 6, Odd::No, 0x18), ALL);
    assert_eq!((out[0].0[14 + 20 + 13], out[1].0[14 + 20 + 13]), (0x18, 0x10));
    let out = joined(&mut train(&flow(true, false), 12, 0, Odd::No, 0x90), ALL);
    assert_eq!((out.len(), out[0].1.gso_type), (1, GSO_TCPV4 | GSO_ECN));
    let without = Offloads(ALL.0 & !bits::ECN);
    assert_eq!(joined(&mut train(&flow(true, false), 12, 0, Odd::No, 0x90), without).len(), 2);
}

fn odd() -> impl Strategy<Value = Odd> {
    use Odd::*;
    let rare = prop::sample::select(vec![
        BadSum,
        BadIpSum,
        Undone,
        WronglyUndone,
        Gap,
        Padded,
        Window,
        Ack,
        Ttl,
        Ce,
        Option,
        NoSum,
        Fragment,
        Dropped,
        Arp,
    ]);
    prop_oneof![9 => Just(No), 1 => rare]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let flags = prop_oneof![12 => Just(0x10u8), 1 => Just(0x18), 1 => any::<u8>()];
    let fill = prop_oneof![8 => Just(100usize), 1 => 0usize..100, 1 => 100usize..130];
    let step =
        (0usize..4, fill, flags, odd()).prop_map(|(flow, fill, flags, odd)| Step { flow, fill, flags, odd });
    prop::collection::vec(step, 1..=BATCH)
}

fn flows() -> impl Strategy<Value = Vec<Flow>> {
    let one = (any::<bool>(), prop::bool::weighted(0.7), any::<bool>(), 0u8..3, 40usize..2000, any::<bool>());
    let one =
        one.prop_map(|(v6, tcp, vlan, id, mss, timestamps)| Flow { v6, tcp, vlan, id, mss, timestamps });
    prop::collection::vec(one, 4)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn segmenting_undoes_joining(flows in flows(), steps in steps(), takes in prop_oneof![Just(31u16), 0u16..32], chunk in 128usize..4096) {
        let mut senders: Vec<Sender> = (0u8..).zip(&flows)
            .map(|(n, f)| Sender { flow: f.clone(), number: n, seq: u32::MAX - 5000, id: 65_530 })
            .collect();
        let mut frames: Vec<_> = steps.iter().enumerate().map(|(i, s)| {
            let (b, v) = senders[s.flow].next(s, i);
            (b, v, s.odd == Odd::Dropped)
        }).collect();
        let b = load_all(&mut frames, chunk);
        let (mut j, mut out) = (Joiner::default(), Batch::new());
        if j.plan(&b, Offloads(takes)) {
            j.emit(&b, &mut out);
            prop_assert!(out.len() < b.len());
            for f in out.frames() {
                prop_assert!(super::super::asked(&f.vnet).within(Offloads(takes | bits::CSUM)));
                prop_assert!(f.vnet.gso_type == GSO_NONE || f.vnet.check(f.len).is_ok());
                prop_assert!(f.len <= crate::frame::MAX_SUPER);
            }
            let (mut was, mut is) = (plain(&b), plain(&out));
            forget_id(&mut was, &flows);
            forget_id(&mut is, &flows);
            for n in [None, Some(0), Some(1), Some(2), Some(3)] {
                let of = |all: &[Vec<u8>]| all.iter().filter(|f| number(f) == n).cloned().collect::<Vec<_>>();
                prop_assert_eq!(of(&was), of(&is));
            }
        }
    }

    #[test]
    fn garbage_is_never_joined_wrongly(raw in prop::collection::vec((prop::collection::vec(any::<u8>(), 15..300), any::<u8>()), 1..40)) {
        let mut frames: Vec<_> = raw.into_iter().map(|(mut b, k)| {
            // Mostly looks like IP with TCP or UDP.
            b[12..14].copy_from_slice(if k & 1 == 0 { &[8, 0] } else { &[0x86, 0xdd] });
            b[14] = if k & 1 == 0 { 0x45 } else { 0x60 };
            if let Some(p) = b.get_mut(if k & 1 == 0 { 23 } else { 20 }) { *p = if k & 2 == 0 { 6 } else { 17 } }
            (b, Vnet { flags: k & 1, csum_start: 34, csum_offset: 16, ..Vnet::default() }, false)
        }).collect();
        let was: Vec<_> = frames.iter().map(|f| f.0.clone()).collect();
        let out = joined(&mut frames, ALL);
        prop_assert_eq!(out.into_iter().map(|f| f.0).collect::<Vec<_>>(), was, "no checksum was right");
    }
}
