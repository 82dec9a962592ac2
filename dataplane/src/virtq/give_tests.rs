use super::super::*;
use crate::frame::Batch;
use crate::virtq::terms::feature as f;
use crate::virtq::testing::{BUFS, Guest};

fn terms() -> Terms {
    Terms { packed: PACKED, ..Terms::of(f::VERSION_1 | f::CSUM | f::HOST_TSO4 | f::INDIRECT_DESC) }
}

fn setup() -> (Guest, Giver, Batch, Stats) {
    let (g, dev) = Guest::new(16, &terms());
    (g, Giver::new(dev), Batch::new(), Stats::default())
}

/// A frame with a plain header, `len` bytes of payload that count up from `seed`.
fn bytes(v: &Vnet, len: usize, seed: u8) -> Vec<u8> {
    let mut b = v.to_le(0).to_vec();
    b.extend((0..len).map(|i| (i % 251) as u8 ^ seed));
    b
}

/// Head and body as one.
fn whole(b: &Batch, i: usize) -> Vec<u8> {
    let f = &b.frames()[i];
    let mut out = f.head().to_vec();
    for s in b.body(f) {
        let mut part = vec![0; s.len() as usize];
        s.copy_out(&mut part);
        out.extend(part);
    }
    assert_eq!(out.len(), f.len as usize);
    out
}

#[test]
fn frames_in_one_and_in_many_buffers() {
    let (mut g, mut t, mut b, mut s) = setup();
    let data = bytes(&Vnet::default(), 1500, 3);
    g.put(BUFS, &data);
    g.readable(&[(BUFS, 1512)]);
    // Header split, head scattered over small buffers, one that fills the head in its middle.
    g.readable(&[
        (BUFS, 5),
        (BUFS + 5, 7),
        (BUFS + 12, 14),
        (BUFS + 26, 20),
        (BUFS + 46, 300),
        (BUFS + 346, 1166),
    ]);
    g.readable(&[(BUFS, 12), (BUFS + 12, 60)]);
    t.recv(&mut b, &terms(), &mut s);
    assert_eq!(b.len(), 3);
    assert_eq!(whole(&b, 0), data[12..]);
    assert_eq!(whole(&b, 1), data[12..]);
    assert_eq!(b.frames()[1].head().len(), HEAD);
    assert_eq!(whole(&b, 2), data[12..72]);
    assert_eq!(b.body(&b.frames()[2]).len(), 0);
    assert!(t.release(&b, 3, &mut s));
    assert_eq!((s.rx_frames, s.rx_bytes), (3, 3060));
    assert_eq!((g.driver.take(), g.driver.free()), (Some((0, 0)), 16 - 8));
}

#[test]
fn a_ten_byte_header_without_version_1() {
    let old = Terms { packed: PACKED, ..Terms::of(f::CSUM) };
    let (mut g, dev) = Guest::new(16, &old);
    let mut t = Giver::new(dev);
    let data = bytes(&Vnet::default(), 64, 0);
    g.put(BUFS, &data[2..]);
    g.readable(&[(BUFS, 74)]);
    let (mut b, mut s) = (Batch::new(), Stats::default());
    t.recv(&mut b, &old, &mut s);
    assert_eq!(whole(&b, 0), data[12..]);
}

#[test]
fn what_nobody_took_is_given_again() {
    let (mut g, mut t, mut b, mut s) = setup();
    for i in 0..5u8 {
        let at = BUFS + u64::from(i) * 256;
        g.put(at, &bytes(&Vnet::default(), 60, i));
        g.readable(&[(at, 72)]);
    }
    t.recv(&mut b, &terms(), &mut s);
    assert_eq!(b.len(), 5);
    t.release(&b, 2, &mut s);
    assert_eq!(g.completed(), 2);
    b.clear();
    t.recv(&mut b, &terms(), &mut s);
    assert_eq!(b.len(), 3);
    assert_eq!(whole(&b, 0)[0], 2);
    // A turn that ends without release (the taker died) loses nothing either.
    b.clear();
    t.recv(&mut b, &terms(), &mut s);
    assert_eq!(b.len(), 3);
    t.release(&b, 3, &mut s);
    assert_eq!((g.completed(), s.rx_frames), (5, 5));
    assert_eq!(t.device_mut().base() & 0x7fff, 5);
}

#[test]
fn bad_headers_runts_and_chains_are_dropped_in_order() {
    let (mut g, mut t, mut b, mut s) = setup();
    let plain = bytes(&Vnet::default(), 60, 0);
    let tso6 =
        Vnet { flags: 1, gso_type: 4, gso_size: 1000, csum_start: 34, csum_offset: 16, ..Vnet::default() };
    let far = Vnet { flags: 1, csum_start: 60, csum_offset: 16, ..Vnet::default() };
    g.put(BUFS, &plain);
    g.put(BUFS + 0x1000, &bytes(&tso6, 60, 0));
    g.put(BUFS + 0x2000, &bytes(&far, 60, 0));
    g.readable(&[(BUFS, 72)]);
    g.readable(&[(BUFS + 0x1000, 72)]); // not negotiated
    g.readable(&[(BUFS + 0x2000, 72)]); // checksum outside
    g.readable(&[(BUFS, 25)]); // runt
    g.readable(&[(BUFS, 11)]); // not even a header
    g.writable(&[(BUFS, 72)]); // wrong way
    g.readable(&[(BUFS, 12 + MAX_SUPER + 1)]); // too long
    g.readable(&[(1, 72)]); // nowhere
    g.readable(&[(BUFS, 72)]);
    t.recv(&mut b, &terms(), &mut s);
    assert_eq!(b.len(), 1);
    t.release(&b, 1, &mut s);
    b.clear();
    t.recv(&mut b, &terms(), &mut s);
    assert_eq!(b.len(), 1, "seven bad ones, then a good one");
    t.release(&b, 1, &mut s);
    assert_eq!(g.completed(), 9);
    let drops = |r: Reason| s.drops[r as usize];
    assert_eq!((drops(Reason::BadHeader), drops(Reason::Runt), drops(Reason::Oversize)), (2, 1, 1));
    assert_eq!((drops(Reason::BadChain), s.rx_frames), (3, 2));
}

#[test]
fn offloads_that_were_negotiated_pass() {
    let (mut g, mut t, mut b, mut s) = setup();
    let tso = Vnet { flags: 1, gso_type: 1, hdr_len: 54, gso_size: 1448, csum_start: 34, csum_offset: 16 };
    g.put(BUFS, &bytes(&tso, 60_000, 9));
    g.readable(&[(BUFS, 60_012)]);
    t.recv(&mut b, &terms(), &mut s);
    assert_eq!(b.frames()[0].vnet, tso);
    assert_eq!(b.frames()[0].len, 60_000);
}

#[test]
fn a_ring_of_bad_chains_costs_bounded_work_and_says_that_there_is_more() {
    let (mut g, dev) = Guest::new(256, &terms());
    let (mut t, mut b, mut s) = (Giver::new(dev), Batch::new(), Stats::default());
    for _ in 0..100 {
        g.readable(&[(1, 1)]);
    }
    t.recv(&mut b, &terms(), &mut s);
    assert_eq!((b.len(), g.completed()), (0, 64));
    assert!(t.arm(), "there is more");
    t.recv(&mut b, &terms(), &mut s);
    assert_eq!(g.completed(), 100);
    assert!(!t.arm());
}
