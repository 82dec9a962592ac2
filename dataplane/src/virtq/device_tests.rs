use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::mem::Seg;
use crate::mem::split::{Desc, F_INDIRECT, F_NEXT, F_WRITE, RingAddr, SplitRing};
use crate::virtq::testing::{BUFS, GPA, Guest, SIZE, UVA, addr, memory};

const ALL: Terms = Terms {
    header: 12,
    mergeable: true,
    takes: crate::port::Offloads::NONE,
    gives: crate::port::Offloads::NONE,
    event_idx: false,
    indirect: true,
    packed: false,
};

/// Puts raw descriptors in the table and makes `head` available.
fn raw(g: &mut Guest, descs: &[Desc], head: u16) {
    for (i, d) in descs.iter().enumerate() {
        g.split().set_desc(u16::try_from(i).unwrap(), *d);
    }
    let at = g.split().avail_idx();
    g.split().set_avail_entry(at, head);
    g.split().set_avail_idx(at.wrapping_add(1));
}

fn d(addr: u64, len: u32, flags: u16, next: u16) -> Desc {
    Desc { addr, len, flags, next }
}

/// A chain as (name, segments to read, segments to write, bytes); none: a bad one.
type Seen = Option<(u16, u8, u8, u32)>;

fn seen(chains: &Chains, i: usize) -> Seen {
    let c = chains.get(i).unwrap();
    assert_eq!(chains.segs(c).len(), usize::from(c.readable + c.writable));
    assert_eq!(chains.segs(c).iter().map(Seg::len).sum::<u32>(), c.bytes);
    assert!(!c.bad || (c.readable, c.writable, c.bytes) == (0, 0, 0));
    (!c.bad).then_some((c.id, c.readable, c.writable, c.bytes))
}

fn fetch_raw(descs: &[Desc], head: u16, terms: &Terms) -> Seen {
    let (mut g, mut dev) = Guest::new(8, terms);
    raw(&mut g, descs, head);
    let mut chains = Chains::default();
    assert_eq!(dev.fetch(&mut chains, 8), 1);
    assert_eq!(dev.fetch(&mut chains, 8), 0);
    seen(&chains, 0)
}

/// Fetches and completes one chain.
fn round(dev: &mut Device) -> bool {
    let mut chains = Chains::default();
    assert_eq!(dev.fetch(&mut chains, 1), 1);
    dev.complete(chains.all())
}

#[test]
fn good_chains() {
    let two = [d(BUFS, 100, F_NEXT, 2), d(0, 0, 0, 0), d(BUFS + 4096, 50, F_WRITE, 0)];
    assert_eq!(fetch_raw(&two, 0, &ALL), Some((0, 1, 1, 150)));
    assert_eq!(fetch_raw(&[d(BUFS, 0, 0, 0)], 0, &ALL), Some((0, 0, 0, 0)));
    assert_eq!(fetch_raw(&[d(BUFS, 7, F_WRITE, 0)], 0, &ALL), Some((0, 0, 1, 7)));
    assert_eq!(fetch_raw(&[d(GPA + SIZE - 7, 7, 0, 0)], 0, &ALL), Some((0, 1, 0, 7)));
}

#[test]
fn bad_chains() {
    let bad = |descs: &[Desc]| assert_eq!(fetch_raw(descs, 0, &ALL), None, "{descs:?}");
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
    bad(&[d(BUFS, MAX_BYTES + 1, F_WRITE, 0)]);
}

#[test]
fn a_head_outside_the_table_stops_the_ring() {
    let (mut g, mut dev) = Guest::new(8, &ALL);
    g.readable(&[(BUFS, 60)]);
    raw(&mut g, &[], 8);
    raw(&mut g, &[], 0);
    let mut chains = Chains::default();
    assert_eq!(dev.fetch(&mut chains, 8), 1, "what came before is served");
    assert!(dev.stopped());
    assert_eq!(dev.fetch(&mut chains, 8), 0);
    assert_eq!(dev.base(), 1);
}

#[test]
fn indirect_tables() {
    let table = |entries: &[Desc], terms: &Terms| {
        let (mut g, mut dev) = Guest::new(8, terms);
        let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_le()).collect();
        g.put(BUFS, &bytes);
        let len = u32::try_from(bytes.len()).unwrap();
        raw(&mut g, &[d(BUFS + 0x8000, 2, F_NEXT, 1), d(BUFS, len, F_INDIRECT, 0)], 0);
        let mut chains = Chains::default();
        assert_eq!(dev.fetch(&mut chains, 2), 1);
        seen(&chains, 0)
    };
    let good = [d(BUFS + 0x1000, 10, F_NEXT, 1), d(BUFS + 0x2000, 20, 0, 0)];
    assert_eq!(table(&good, &ALL), Some((0, 3, 0, 32)));
    let bad = None;
    assert_eq!(table(&good, &Terms { indirect: false, ..ALL }), bad);
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
    g.split().set_avail_idx(9);
    let mut chains = Chains::default();
    assert_eq!(dev.fetch(&mut chains, 8), 0);
    assert!(dev.stopped());
    g.split().set_avail_idx(1);
    assert_eq!(dev.fetch(&mut chains, 8), 0, "it stays stopped");
    assert!(!dev.arm());
    assert!(!dev.complete(&[]));
    assert_eq!(g.split().used_idx(), 0);
}

#[test]
fn more_chains_than_the_ring_holds_stop_it() {
    let (mut g, mut dev) = Guest::new(8, &ALL);
    for _ in 0..8 {
        g.readable(&[(BUFS, 60)]);
    }
    let mut chains = Chains::default();
    assert_eq!(dev.fetch(&mut chains, 5), 5);
    g.split().set_avail_idx(9);
    assert_eq!(dev.fetch(&mut chains, 3), 3, "known before");
    assert_eq!(dev.fetch(&mut chains, 1), 0);
    assert!(dev.stopped());
}

#[test]
fn chains_can_be_put_back() {
    let (mut g, mut dev) = Guest::new(8, &ALL);
    let a = g.readable(&[(BUFS, 60)]);
    let b = g.readable(&[(BUFS + 64, 60)]);
    let mut chains = Chains::default();
    assert_eq!(dev.fetch(&mut chains, 8), 2);
    assert_eq!((chains.all()[0].id, chains.all()[1].id), (a, b));
    dev.unfetch(chains.range(1, 2));
    assert!(dev.has_work());
    chains.clear();
    assert_eq!(dev.fetch(&mut chains, 8), 1);
    assert_eq!(chains.all()[0].id, b);
    assert_eq!(dev.base(), 2);
}

#[test]
fn interrupts_by_flag_and_by_index() {
    let (mut g, mut dev) = Guest::new(8, &ALL);
    let h = g.readable(&[(BUFS, 60)]);
    assert!(round(&mut dev));
    assert!(!dev.complete(&[]), "nothing new");
    assert_eq!(g.driver.take(), Some((h, 0)));
    g.split().set_avail_flags(1);
    g.readable(&[(BUFS, 60)]);
    assert!(!round(&mut dev), "the driver wants quiet");

    let by_index = Terms { event_idx: true, ..ALL };
    let (mut g, mut dev) = Guest::new(8, &by_index);
    let both = |g: &mut Guest, dev: &mut Device| {
        let h = g.readable(&[(BUFS, 60)]);
        let call = round(dev);
        assert_eq!(g.driver.take(), Some((h, 0)));
        call
    };
    assert!(both(&mut g, &mut dev), "the first is always told");
    assert!(!both(&mut g, &mut dev), "used_event is 0 and lies behind");
    g.driver.arm();
    assert!(both(&mut g, &mut dev));
    assert!(!both(&mut g, &mut dev));
}

#[test]
fn kicks_are_hushed_while_busy_and_armed_before_sleep() {
    let by_index = Terms { event_idx: true, ..ALL };
    for terms in [ALL, by_index] {
        let (mut g, mut dev) = Guest::new(8, &terms);
        g.driver.add(&[Buf { addr: BUFS, len: 60, write: false }]).unwrap();
        assert!(g.driver.publish(), "a fresh ring is armed");
        assert!(dev.arm(), "armed and found work");
        round(&mut dev);
        dev.hush();
        if !terms.event_idx {
            g.driver.add(&[Buf { addr: BUFS, len: 60, write: false }]).unwrap();
            assert!(!g.driver.publish(), "no kick while busy");
            round(&mut dev);
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
            g.split().set_desc(u16::try_from(i).unwrap(), make(e));
        }
        let bytes: Vec<u8> = indirect.iter().flat_map(|e| make(e).to_le()).collect();
        g.put(BUFS + 0x3000, &bytes);
        for (i, h) in heads.iter().enumerate() {
            g.split().set_avail_entry(u16::try_from(i).unwrap(), *h);
        }
        g.split().set_avail_idx(idx);
        let mut chains = Chains::default();
        let mut served = 0u16;
        while dev.fetch(&mut chains, 3) > 0 {
            for (i, c) in chains.all().iter().enumerate() {
                seen(&chains, i);
                prop_assert!(c.bytes <= MAX_BYTES);
                prop_assert!(chains.segs(c).len() <= MAX_SEGS);
            }
            served += u16::try_from(chains.len()).unwrap();
            if !dev.stopped() {
                dev.complete(chains.all());
            }
            chains.clear();
        }
        let beyond = heads.iter().position(|h| *h >= 16).map(|i| u16::try_from(i).unwrap());
        let stop = idx > 16 || beyond.is_some_and(|b| b < idx);
        prop_assert_eq!(dev.stopped(), stop);
        prop_assert!(served <= beyond.unwrap_or(16));
        prop_assert!(stop || g.split().used_idx() == served);
        prop_assert!(Arc::strong_count(&g.memory) >= 2);
    }
}
