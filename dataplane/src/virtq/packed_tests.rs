use proptest::prelude::*;

use super::*;
use crate::mem::Seg;
use crate::mem::split::{DESC, MAX_SIZE};
use crate::virtq::device::{Device, recover as recover_ring};
use crate::virtq::testing::{BUFS, GPA, Guest, SIZE, addr, memory};
use crate::virtq::{Buf, Terms};

const ALL: Terms = Terms {
    header: 12,
    mergeable: true,
    takes: crate::port::Offloads::NONE,
    gives: crate::port::Offloads::NONE,
    event_idx: false,
    indirect: true,
    packed: true,
};

/// A chain as (name, places, segments to read, segments to write, bytes); none: a bad one.
type Seen = Option<(u16, u16, u8, u8, u32)>;

fn seen(chains: &Chains, i: usize) -> Seen {
    let c = chains.get(i).unwrap();
    assert_eq!(chains.segs(c).len(), usize::from(c.readable + c.writable));
    assert_eq!(chains.segs(c).iter().map(Seg::len).sum::<u32>(), c.bytes);
    assert!(!c.bad || (c.readable, c.writable, c.bytes) == (0, 0, 0));
    (!c.bad).then_some((c.id, c.slots, c.readable, c.writable, c.bytes))
}

/// Puts raw descriptors in the table from its start, available in the first round.
fn raw(g: &Guest, descs: &[(u64, u32, u16)]) {
    let ring = g.driver.packed().unwrap();
    for (i, &(gpa, len, flags)) in (0u16..).zip(descs) {
        ring.set_addr(i, gpa);
        ring.set_entry(i, Entry { len, id: 40 + i, flags: flags | F_AVAIL_NOW });
    }
}

const F_AVAIL_NOW: u16 = crate::mem::packed::F_AVAIL;

fn fetch_raw(descs: &[(u64, u32, u16)], terms: &Terms) -> Seen {
    let (g, mut dev) = Guest::new(8, terms);
    raw(&g, descs);
    let mut chains = Chains::default();
    assert_eq!(dev.fetch(&mut chains, 8), 1);
    assert_eq!(dev.fetch(&mut chains, 8), 0);
    assert_eq!(usize::from(chains.all()[0].slots), descs.len());
    seen(&chains, 0)
}

#[test]
fn good_chains() {
    assert_eq!(fetch_raw(&[(BUFS, 100, F_NEXT), (BUFS + 4096, 50, F_WRITE)], &ALL), Some((41, 2, 1, 1, 150)));
    assert_eq!(fetch_raw(&[(BUFS, 0, 0)], &ALL), Some((40, 1, 0, 0, 0)));
    assert_eq!(fetch_raw(&[(GPA + SIZE - 7, 7, F_WRITE)], &ALL), Some((40, 1, 0, 1, 7)));
}

#[test]
fn bad_chains() {
    let bad = |descs: &[(u64, u32, u16)]| assert_eq!(fetch_raw(descs, &ALL), None, "{descs:?}");
    bad(&[(BUFS, u32::MAX, 0)]); // huge
    bad(&[(BUFS, MAX_BYTES, F_NEXT), (BUFS, 1, 0)]);
    bad(&[(0, 4, 0)]); // nowhere
    bad(&[(u64::MAX - 1, 4, 0)]); // wraps
    bad(&[(GPA + SIZE - 4, 8, 0)]); // leaves the region
    bad(&[(BUFS, 4, F_WRITE | F_NEXT), (BUFS, 4, 0)]); // readable after writable
    bad(&[(BUFS, 16, F_INDIRECT | F_NEXT), (BUFS, 4, 0)]);
    bad(&[(BUFS, 16, F_NEXT), (BUFS, 16, F_INDIRECT)]); // a table is alone
    bad(&[(BUFS, 0, F_INDIRECT)]);
    bad(&[(BUFS, 17, F_INDIRECT)]);
    bad(&[(GPA + SIZE - 16, 32, F_INDIRECT)]);
}

#[test]
fn indirect_tables_follow_no_links() {
    let table = |entries: &[Desc], terms: &Terms| {
        let (g, mut dev) = Guest::new(8, terms);
        let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_le()).collect();
        g.put(BUFS, &bytes);
        raw(&g, &[(BUFS, u32::try_from(bytes.len()).unwrap(), F_INDIRECT)]);
        let mut chains = Chains::default();
        assert_eq!(dev.fetch(&mut chains, 2), 1);
        seen(&chains, 0)
    };
    // Of a packed ring's descriptors the name comes first, which means nothing here, and the flags are last.
    let d = |len: u32, flags: u16| Desc { addr: BUFS + 0x1000, len, flags: 0xffff, next: flags };
    let good = [d(10, 0), d(20, F_NEXT), d(5, F_WRITE)];
    assert_eq!(table(&good, &ALL), Some((40, 1, 2, 1, 35)));
    assert_eq!(table(&good, &Terms { indirect: false, ..ALL }), None);
    assert_eq!(table(&[d(16, F_INDIRECT)], &ALL), None, "nested");
    assert_eq!(table(&vec![d(1, 0); 65], &ALL), None, "more than 64 segments");
    assert_eq!(table(&vec![d(1, 0); 64], &ALL), Some((40, 1, 64, 0, 64)));
    assert_eq!(DESC, 16);
}

#[test]
fn a_chain_beyond_the_ring_stops_it() {
    let (g, mut dev) = Guest::new(8, &ALL);
    let mut all = [(BUFS, 4, F_NEXT); 8];
    all[0].2 = 0;
    raw(&g, &all);
    let mut chains = Chains::default();
    assert_eq!(dev.fetch(&mut chains, 8), 1, "what came before is served");
    assert!(dev.stopped());
    assert_eq!(chains.segs_from(0), 1);
    assert_eq!(dev.fetch(&mut chains, 8), 0);
    assert!(!dev.arm());
    let (g, mut dev) = Guest::new(8, &ALL);
    raw(&g, &[(BUFS, 4, F_NEXT); 8]);
    assert_eq!(dev.fetch(&mut chains, 8), 0, "one that goes round for ever");
    assert!(dev.stopped());
}

#[test]
fn a_long_chain_is_bad_but_the_ring_goes_on_behind_it() {
    let (mut g, mut dev) = Guest::new(128, &ALL);
    let long = vec![Buf { addr: BUFS, len: 1, write: false }; 70];
    g.driver.add(&long).unwrap();
    let b = g.readable(&[(BUFS, 60)]);
    let mut chains = Chains::default();
    assert_eq!(dev.fetch(&mut chains, 8), 2);
    assert_eq!(seen(&chains, 0), None);
    assert_eq!(seen(&chains, 1), Some((b, 1, 1, 0, 60)));
    dev.complete(chains.all());
    assert_eq!((g.driver.take(), g.driver.take()), (Some((0, 0)), Some((b, 0))));
    assert_eq!(g.driver.free(), 128);
}

#[test]
fn a_driver_that_overwrites_what_it_lent_gets_no_more_than_the_ring() {
    let (g, mut dev) = Guest::new(8, &ALL);
    raw(&g, &[(BUFS, 4, 0); 8]);
    let mut chains = Chains::default();
    assert_eq!(dev.fetch(&mut chains, 8), 8);
    let ring = g.driver.packed().unwrap();
    for i in 0..8 {
        ring.set_entry(i, Entry { len: 4, id: i, flags: F_USED });
    }
    assert_eq!(dev.fetch(&mut chains, 8), 0);
    assert!(!dev.stopped());
}

#[test]
fn chains_can_be_put_back() {
    let (mut g, mut dev) = Guest::new(8, &ALL);
    let a = g.readable(&[(BUFS, 60), (BUFS, 2)]);
    let b = g.readable(&[(BUFS + 64, 60), (BUFS, 1), (BUFS, 1)]);
    let mut chains = Chains::default();
    assert_eq!(dev.fetch(&mut chains, 8), 2);
    assert_eq!(dev.base(), 0x8005);
    dev.unfetch(chains.range(1, 2));
    assert!(dev.has_work());
    dev.complete(chains.range(0, 1));
    assert_eq!(g.driver.take(), Some((a, 0)));
    chains.clear();
    assert_eq!(dev.fetch(&mut chains, 8), 1);
    assert_eq!((chains.all()[0].id, dev.base()), (b, 0x8005));
}

#[test]
fn interrupts_and_kicks() {
    for event_idx in [false, true] {
        let terms = Terms { event_idx, ..ALL };
        let (mut g, mut dev) = Guest::new(7, &terms);
        let mut chains = Chains::default();
        for _ in 0..20 {
            g.driver.add(&[Buf { addr: BUFS, len: 60, write: false }]).unwrap();
            assert!(g.driver.publish(), "armed");
            assert!(dev.arm(), "armed and found work");
            dev.hush();
            g.driver.add(&[Buf { addr: BUFS, len: 60, write: false }]).unwrap();
            assert!(!g.driver.publish(), "no kick while busy");
            chains.clear();
            assert_eq!(dev.fetch(&mut chains, 8), 2);
            assert!(!g.driver.arm());
            assert!(dev.complete(chains.range(0, 1)), "the driver waits");
            assert_eq!(dev.complete(chains.range(1, 2)), !event_idx, "by place, one interrupt is enough");
            assert!(g.driver.arm(), "some came already");
            assert!(g.driver.take().is_some() && g.driver.take().is_some() && g.driver.take().is_none());
            g.driver.hush();
            assert!(!dev.arm());
            g.readable(&[(BUFS, 60)]);
            chains.clear();
            assert_eq!(dev.fetch(&mut chains, 8), 1);
            assert!(!dev.complete(chains.all()), "the driver wants quiet");
            assert!(g.driver.take().is_some());
            assert!(!dev.arm());
        }
    }
}

#[test]
fn base_zero_is_a_fresh_ring_unless_a_round_has_passed() {
    let (mut g, _) = Guest::new(8, &ALL);
    let memory = g.memory.clone();
    let open = |base: u16| Device::new(&memory, 8, addr(0, 8), base, &ALL).unwrap();
    let mut dev = open(0);
    assert_eq!(dev.base(), 0x8000);
    for (n, base) in [(5, 0x8005), (3, 0), (8, 0x8000), (7, 0x8007), (1, 0), (3, 3)] {
        for _ in 0..n {
            g.readable(&[(BUFS, 60)]);
        }
        let mut chains = Chains::default();
        assert_eq!(dev.fetch(&mut chains, 16), n);
        dev.complete(chains.all());
        assert_eq!(std::iter::from_fn(|| g.driver.take()).count(), n);
        assert_eq!(dev.base(), base);
        dev = open(base);
        assert_eq!(dev.base(), base);
    }
}

#[test]
fn rings_must_lie_in_memory_and_be_aligned() {
    let (m, _fd) = memory();
    let ok = addr(0, 8);
    let open = |size: u16, at| PackedRing::new(m.clone(), size, at).is_some();
    assert!(open(8, ok) && open(7, ok) && open(1, ok));
    assert!(!open(0, ok) && !open(MAX_SIZE + 1, ok));
    let used = (ok.used + 3) & !3;
    assert!(!open(8, crate::mem::split::RingAddr { desc: ok.desc + 8, ..ok }));
    assert!(!open(8, crate::mem::split::RingAddr { avail: ok.avail + 2, ..ok }));
    assert!(!open(8, crate::mem::split::RingAddr { used: used + 2, ..ok }));
    assert!(!open(8, crate::mem::split::RingAddr { used: 0, ..ok }));
    assert!(Device::new(&m, 8, ok, 8, &ALL).is_none(), "a base outside the ring");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the guest writes into its ring, fetching ends, stays within the caps, and completes.
    #[test]
    fn any_ring_is_walked_safely(
        table in prop::collection::vec((0u64..6, any::<u32>(), any::<u16>(), any::<u16>()), 16),
        indirect in prop::collection::vec((0u64..6, any::<u32>(), 0u16..10), 16),
        small in any::<bool>(),
        base in 0u16..16,
        wrap in any::<bool>(),
    ) {
        let (g, _) = Guest::new(16, &ALL);
        let place = |n: u64| match n {
            0 => 0,
            1 => GPA + SIZE - 100,
            2 => u64::MAX - 3,
            n => BUFS + n * 0x1000,
        };
        let len = |len: u32| if small { len % 300 / 4 * 4 } else { len >> 12 };
        let bytes: Vec<u8> = indirect
            .iter()
            .flat_map(|&(a, l, flags)| Desc { addr: place(a), len: len(l), flags: 0, next: flags }.to_le())
            .collect();
        g.put(BUFS + 0x3000, &bytes);
        let ring = g.driver.packed().unwrap();
        for (i, &(a, l, id, flags)) in (0u16..).zip(&table) {
            ring.set_addr(i, place(a));
            // Mostly available, in either round.
            let flags = if flags & 0x700 == 0 { flags } else { flags & 7 | Place::new(0, flags & 8 != 0).available() };
            ring.set_entry(i, Entry { len: len(l), id, flags });
        }
        let mut dev = Device::new(&g.memory, 16, addr(0, 16), Place::new(base, wrap).bits(), &ALL).unwrap();
        let mut chains = Chains::default();
        let mut turns = 0;
        while dev.fetch(&mut chains, 3) > 0 {
            for (i, c) in chains.all().iter().enumerate() {
                seen(&chains, i);
                prop_assert!(c.bytes <= MAX_BYTES);
                prop_assert!(chains.segs(c).len() <= crate::virtq::device::MAX_SEGS);
                prop_assert!(c.slots <= 16);
            }
            dev.complete(chains.all());
            chains.clear();
            turns += 1;
            prop_assert!(turns <= 33, "a used place is not available");
        }
        prop_assert!(recover_ring(&g.memory, 16, addr(0, 16), true).is_some());
    }

    /// An honest driver and this device, at any size and any base: everything comes back in order, and wherever the
    /// device stops, also in the middle of a completion, its place is found again.
    #[test]
    fn the_place_is_found_again(
        size in 1u16..20,
        event_idx in any::<bool>(),
        steps in prop::collection::vec((0u8..6, 1usize..6, any::<u16>()), 1..200),
    ) {
        let terms = Terms { event_idx, ..ALL };
        let (mut g, mut dev) = Guest::new(size, &terms);
        let (mut lent, mut got) = (std::collections::VecDeque::new(), 0);
        let mut chains = Chains::default();
        let mut first = 0;
        let mut used = Place::new(0, true);
        let found = |g: &Guest| recover_ring(&g.memory, size, addr(0, size), true).unwrap();
        for (what, n, seed) in steps {
            match what {
                0 | 1 => {
                    let bufs = vec![Buf { addr: BUFS, len: 60, write: seed & 1 != 0 }; n];
                    if let Some(id) = g.driver.add(&bufs) {
                        lent.push_back(id);
                    }
                }
                2 => {
                    dev.fetch(&mut chains, n);
                }
                3 => {
                    let to = (first + n).min(chains.len());
                    let ring = g.driver.packed().unwrap();
                    // Killed while it marks the inner places of a chain.
                    if let Some(c) = chains.get(first).filter(|c| c.slots > 1 && n > 2) {
                        dev.arm();
                        dev.hush();
                        for i in 1..c.slots {
                            let inner = used.after(i, size);
                            ring.mark_used(inner);
                            prop_assert_eq!(found(&g), used.bits());
                        }
                    }
                    for c in chains.range(first, to) {
                        used = used.after(c.slots, size);
                    }
                    dev.complete(chains.range(first, to));
                    first = to;
                }
                4 => {
                    while let Some((id, _)) = g.driver.take() {
                        prop_assert_eq!(Some(id), lent.pop_front());
                        got += 1;
                    }
                }
                _ => {
                    if seed & 2 != 0 { dev.hush() } else { dev.arm(); }
                    if seed & 4 != 0 { g.driver.publish(); }
                }
            }
            prop_assert_eq!(found(&g), used.bits());
            if first == chains.len() {
                chains.clear();
                first = 0;
            }
            // A successor goes on from there.
            if seed % 7 == 0 {
                chains.clear();
                first = 0;
                dev = Device::new(&g.memory, size, addr(0, size), found(&g), &terms).unwrap();
                prop_assert_eq!(dev.base(), used.bits());
            }
        }
        while dev.fetch(&mut chains, 4) > 0 {}
        dev.complete(chains.range(first, chains.len()));
        while let Some((id, _)) = g.driver.take() {
            prop_assert_eq!(Some(id), lent.pop_front());
            got += 1;
        }
        prop_assert!(lent.is_empty());
        prop_assert_eq!(g.driver.free(), usize::from(size), "after {} chains", got);
    }
}
