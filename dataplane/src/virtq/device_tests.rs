use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::mem::split::{RingAddr, SplitRing};
use crate::virtq::testing::{BUFS, GPA, Guest, SIZE, UVA, addr, memory};

const ALL: Terms = Terms {
    header: 12,
    mergeable: true,
    takes: crate::port::Offloads::NONE,
    gives: crate::port::Offloads::NONE,
    event_idx: false,
    indirect: true,
};

/// Puts raw descriptors in the table and makes `head` available.
fn raw(g: &mut Guest, descs: &[Desc], head: u16) {
    for (i, d) in descs.iter().enumerate() {
        g.driver.ring().set_desc(u16::try_from(i).unwrap(), *d);
    }
    let at = g.driver.ring().avail_idx();
    g.driver.ring().set_avail_entry(at, head);
    g.driver.ring().set_avail_idx(at.wrapping_add(1));
}

fn d(addr: u64, len: u32, flags: u16, next: u16) -> Desc {
    Desc { addr, len, flags, next }
}

fn pop_raw(descs: &[Desc], head: u16, terms: &Terms) -> (Pop, usize) {
    let (mut g, mut dev) = Guest::new(8, terms);
    raw(&mut g, descs, head);
    let mut segs = Vec::new();
    let p = dev.pop(&mut segs);
    assert_eq!(dev.pop(&mut segs), Pop::Empty);
    (p, segs.len())
}

#[test]
fn good_chains() {
    let (p, n) = pop_raw(&[d(BUFS, 100, F_NEXT, 2), d(0, 0, 0, 0), d(BUFS + 4096, 50, F_WRITE, 0)], 0, &ALL);
    assert_eq!(p, Pop::Chain(Chain { head: 0, readable: 1, writable: 1, bytes: 150 }));
    assert_eq!(n, 2);
    let (p, n) = pop_raw(&[d(BUFS, 0, 0, 0)], 0, &ALL);
    assert_eq!(p, Pop::Chain(Chain { head: 0, readable: 0, writable: 0, bytes: 0 }));
    assert_eq!(n, 0);
}

#[test]
fn bad_chains() {
    let bad = |descs: &[Desc]| {
        let (p, n) = pop_raw(descs, 0, &ALL);
        assert_eq!((p, n), (Pop::Bad { head: Some(0) }, 0), "{descs:?}");
    };
    bad(&[d(BUFS, 4, F_NEXT, 0)]); // loops on itself
    bad(&[d(BUFS, 4, F_NEXT, 1), d(BUFS, 4, F_NEXT, 0)]); // loops
    bad(&[d(BUFS, 4, F_NEXT, 8)]); // index outside
    bad(&[d(BUFS, 4, F_NEXT, u16::MAX)]);
    bad(&[d(BUFS, u32::MAX, 0, 0)]); // huge
    bad(&[d(BUFS, MAX_BYTES, F_NEXT, 1), d(BUFS, 1, 0, 0)]);
    bad(&[d(0, 4, 0, 0)]); // nowhere
    bad(&[d(u64::MAX - 1, 4, 0, 0)]); // wraps
    bad(&[d(GPA + SIZE - 4, 8, 0, 0)]); // leaves the region
    bad(&[d(BUFS, 4, F_WRITE | F_NEXT, 1), d(BUFS, 4, 0, 0)]); // readable after writable
    bad(&[d(BUFS, 16, F_INDIRECT | F_NEXT, 1), d(BUFS, 4, 0, 0)]);
    bad(&[d(BUFS, 0, F_INDIRECT, 0)]);
    bad(&[d(BUFS, 17, F_INDIRECT, 0)]);
    bad(&[d(GPA + SIZE - 16, 32, F_INDIRECT, 0)]);
    let (p, _) = pop_raw(&[], 8, &ALL);
    assert_eq!(p, Pop::Bad { head: None });
}

#[test]
fn indirect_tables() {
    let table = |entries: &[Desc], terms: &Terms| {
        let (mut g, mut dev) = Guest::new(8, terms);
        let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_le()).collect();
        g.put(BUFS, &bytes);
        let len = u32::try_from(bytes.len()).unwrap();
        raw(&mut g, &[d(BUFS + 0x8000, 2, F_NEXT, 1), d(BUFS, len, F_INDIRECT, 0)], 0);
        let mut segs = Vec::new();
        (dev.pop(&mut segs), segs.len())
    };
    let good = [d(BUFS + 0x1000, 10, F_NEXT, 1), d(BUFS + 0x2000, 20, 0, 0)];
    let want = Pop::Chain(Chain { head: 0, readable: 3, writable: 0, bytes: 32 });
    assert_eq!(table(&good, &ALL), (want, 3));
    assert_eq!(table(&good, &Terms { indirect: false, ..ALL }).0, Pop::Bad { head: Some(0) });
    let bad = (Pop::Bad { head: Some(0) }, 0);
    assert_eq!(table(&[d(BUFS, 16, F_INDIRECT, 0)], &ALL), bad, "nested");
    assert_eq!(table(&[d(BUFS, 16, F_NEXT, 0)], &ALL), bad, "loops");
    assert_eq!(table(&[d(BUFS, 16, F_NEXT, 1)], &ALL), bad, "leaves the table");
    let long: Vec<_> = (1..=70).map(|i| d(BUFS + 0x4000, 1, if i < 70 { F_NEXT } else { 0 }, i)).collect();
    assert_eq!(table(&long, &ALL), bad, "more than 64 segments");
    assert_eq!(table(&long[7..], &ALL), bad);
}

#[test]
fn an_index_that_jumps_stops_the_ring() {
    let (g, mut dev) = Guest::new(8, &ALL);
    g.driver.ring().set_avail_idx(9);
    assert_eq!(dev.pop(&mut Vec::new()), Pop::Empty);
    assert!(dev.stopped());
    g.driver.ring().set_avail_idx(1);
    assert_eq!(dev.pop(&mut Vec::new()), Pop::Empty, "it stays stopped");
    assert!(!dev.arm());
    dev.complete(0, 0);
    assert!(!dev.publish());
    assert_eq!(g.driver.ring().used_idx(), 0);
}

#[test]
fn chains_can_be_put_back() {
    let (mut g, mut dev) = Guest::new(8, &ALL);
    let a = g.readable(&[(BUFS, 60)]);
    let b = g.readable(&[(BUFS + 64, 60)]);
    let mut heads = || match dev.pop(&mut Vec::new()) {
        Pop::Chain(c) => Some(c.head),
        _ => None,
    };
    assert_eq!((heads(), heads(), heads()), (Some(a), Some(b), None));
    dev.unpop(1);
    assert!(dev.has_work());
    assert!(matches!(dev.pop(&mut Vec::new()), Pop::Chain(c) if c.head == b));
    assert_eq!(dev.base(), 2);
}

#[test]
fn interrupts_by_flag_and_by_index() {
    let (mut g, mut dev) = Guest::new(8, &ALL);
    let h = g.readable(&[(BUFS, 60)]);
    dev.pop(&mut Vec::new());
    dev.complete(h, 0);
    assert!(dev.publish());
    assert!(!dev.publish(), "nothing new");
    assert_eq!(g.driver.take(), Some((h, 0)));
    g.driver.ring().set_avail_flags(1);
    let h = g.readable(&[(BUFS, 60)]);
    dev.pop(&mut Vec::new());
    dev.complete(h, 0);
    assert!(!dev.publish(), "the driver wants quiet");

    let by_index = Terms { event_idx: true, ..ALL };
    let (mut g, mut dev) = Guest::new(8, &by_index);
    let round = |g: &mut Guest, dev: &mut Device| {
        let h = g.readable(&[(BUFS, 60)]);
        dev.pop(&mut Vec::new());
        dev.complete(h, 0);
        let call = dev.publish();
        assert_eq!(g.driver.take(), Some((h, 0)));
        call
    };
    assert!(round(&mut g, &mut dev), "the first is always told");
    assert!(!round(&mut g, &mut dev), "used_event is 0 and lies behind");
    g.driver.arm();
    assert!(round(&mut g, &mut dev));
    assert!(!round(&mut g, &mut dev));
}

#[test]
fn kicks_are_hushed_while_busy_and_armed_before_sleep() {
    let by_index = Terms { event_idx: true, ..ALL };
    for terms in [ALL, by_index] {
        let (mut g, mut dev) = Guest::new(8, &terms);
        g.driver.add(&[Buf { addr: BUFS, len: 60, write: false }]).unwrap();
        assert!(g.driver.publish(), "a fresh ring is armed");
        assert!(dev.arm(), "armed and found work");
        dev.pop(&mut Vec::new());
        dev.hush();
        if !terms.event_idx {
            g.driver.add(&[Buf { addr: BUFS, len: 60, write: false }]).unwrap();
            assert!(!g.driver.publish(), "no kick while busy");
            dev.pop(&mut Vec::new());
        }
        assert!(!dev.arm());
        g.driver.add(&[Buf { addr: BUFS, len: 60, write: false }]).unwrap();
        assert!(g.driver.publish());
        g.driver.add(&[Buf { addr: BUFS, len: 60, write: false }]).unwrap();
        assert!(terms.event_idx != g.driver.publish(), "by index, one kick is enough");
    }
}

#[test]
fn rings_must_lie_in_memory_and_be_aligned() {
    let (m, _fd) = memory();
    let ok = addr(0, 8);
    assert!(SplitRing::new(m.clone(), 8, ok).is_some());
    let no = |size: u16, at: RingAddr| assert!(SplitRing::new(m.clone(), size, at).is_none());
    no(7, ok);
    no(0, ok);
    no(8, RingAddr { desc: ok.desc + 8, ..ok });
    no(8, RingAddr { avail: ok.avail + 1, ..ok });
    no(8, RingAddr { used: ok.used + 2, ..ok });
    no(8, RingAddr { used: UVA + SIZE - 69, ..ok });
    no(8, RingAddr { desc: 0, ..ok });
    no(32768, RingAddr { desc: UVA + SIZE - 16 * 32767, ..ok });
}

use crate::virtq::Buf;

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the guest writes into its ring, popping ends, stays within the caps, and completes.
    #[test]
    fn any_ring_is_walked_safely(
        table in prop::collection::vec((0u64..6, any::<u32>(), 0u16..10, 0u16..20), 16),
        indirect in prop::collection::vec((0u64..6, any::<u32>(), 0u16..10, 0u16..20), 16),
        heads in prop::collection::vec(0u16..20, 16),
        idx in any::<u16>(),
        small in any::<bool>(),
    ) {
        let (g, mut dev) = Guest::new(16, &ALL);
        let place = |n: u64| match n {
            0 => 0,
            1 => GPA + SIZE - 100,
            2 => u64::MAX - 3,
            n => BUFS + n * 0x1000,
        };
        let make = |&(a, len, flags, next): &(u64, u32, u16, u16)| {
            d(place(a), if small { len % 300 / 4 * 4 } else { len >> 12 }, flags, next)
        };
        for (i, e) in table.iter().enumerate() {
            g.driver.ring().set_desc(u16::try_from(i).unwrap(), make(e));
        }
        let bytes: Vec<u8> = indirect.iter().flat_map(|e| make(e).to_le()).collect();
        g.put(BUFS + 0x3000, &bytes);
        for (i, h) in heads.iter().enumerate() {
            g.driver.ring().set_avail_entry(u16::try_from(i).unwrap(), *h);
        }
        g.driver.ring().set_avail_idx(idx);
        let mut segs = Vec::new();
        let mut popped = 0u16;
        loop {
            segs.clear();
            match dev.pop(&mut segs) {
                Pop::Empty => break,
                Pop::Chain(c) => {
                    prop_assert!(c.bytes <= MAX_BYTES);
                    prop_assert!(segs.len() <= MAX_SEGS);
                    prop_assert_eq!(usize::from(c.readable + c.writable), segs.len());
                    prop_assert_eq!(segs.iter().map(Seg::len).sum::<u32>(), c.bytes);
                    dev.complete(c.head, 0);
                    popped += 1;
                }
                Pop::Bad { head } => {
                    prop_assert!(segs.is_empty());
                    if let Some(h) = head {
                        dev.complete(h, 0);
                        popped += 1;
                    }
                }
            }
        }
        prop_assert_eq!(dev.stopped(), idx > 16);
        dev.publish();
        prop_assert_eq!(g.driver.ring().used_idx(), popped);
        prop_assert!(Arc::strong_count(&g.memory) >= 3);
    }
}
