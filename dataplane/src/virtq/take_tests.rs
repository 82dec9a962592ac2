use super::super::*;
use crate::virtq::terms::feature as f;
use crate::virtq::testing::{BUFS, Guest};

fn merge() -> Terms {
    Terms { packed: PACKED, ..Terms::of(f::VERSION_1 | f::MRG_RXBUF | f::GUEST_CSUM | f::GUEST_TSO4) }
}

fn single() -> Terms {
    Terms { packed: PACKED, ..Terms::of(f::VERSION_1 | f::GUEST_CSUM) }
}

struct Setup {
    g: Guest,
    t: Taker,
    b: Batch,
    s: Stats,
    terms: Terms,
}

fn setup(terms: Terms, buffers: usize, len: u32) -> Setup {
    let (mut g, dev) = Guest::new(16, &terms);
    for i in 0..buffers {
        g.writable(&[(BUFS + i as u64 * 0x1000, len)]);
    }
    Setup { g, t: Taker::new(dev), b: Batch::new(), s: Stats::default(), terms }
}

impl Setup {
    /// Pushes a frame of `len` counting bytes: head, then a body from the end of the guest's own memory.
    fn frame(&mut self, len: usize, seed: u8) {
        let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8 ^ seed).collect();
        let at = BUFS + 0x20_0000 - 0x1_0000;
        let body = data.get(128..).unwrap_or_default();
        self.g.put(at, body);
        let f = self.b.push().unwrap();
        f.len = u32::try_from(len).unwrap();
        f.set_head(&data);
        if !body.is_empty() {
            let seg = self.g.memory.at_gpa(at, u32::try_from(body.len()).unwrap()).unwrap();
            self.b.push_seg(seg);
        }
    }

    fn send(&mut self) -> usize {
        self.t.send(&self.b, &self.terms, &mut self.s).0
    }

    fn lend(&mut self) {
        self.t.lend(&mut self.b, &self.terms, &mut self.s);
    }

    /// What the guest got: header's num_buffers, and the frame put together from that many buffers.
    fn got(&mut self) -> Option<(u16, Vec<u8>)> {
        let (head, len) = self.g.driver.take()?;
        let read = |s: &Self, head: u16, len: u32| s.g.get(BUFS + u64::from(head) * 0x1000, len);
        let mut all = read(self, head, len);
        if all.len() < 12 {
            return Some((0, all));
        }
        let n = u16::from_le_bytes([all[10], all[11]]);
        for _ in 1..n {
            let (head, len) = self.g.driver.take().unwrap();
            all.extend(read(self, head, len));
        }
        Some((n, all.split_off(12)))
    }
}

fn data(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8 ^ seed).collect()
}

#[test]
fn small_and_merged_frames() {
    let mut x = setup(merge(), 16, 1024);
    x.frame(60, 1);
    assert_eq!(x.send(), 1);
    x.b.clear();
    x.frame(5000, 2);
    assert_eq!(x.send(), 1);
    assert_eq!(x.got(), Some((1, data(60, 1))));
    assert_eq!(x.got(), Some((5, data(5000, 2))));
    assert_eq!(x.got(), None);
    assert_eq!((x.s.tx_frames, x.s.tx_bytes), (2, 5060));
}

#[test]
fn one_chain_each_without_merging() {
    let mut x = setup(single(), 3, 1526);
    for (len, seed) in [(1514, 1), (1515, 2), (64, 3)] {
        x.b.clear();
        x.frame(len, seed);
        assert_eq!(x.send(), 1);
    }
    assert_eq!(x.got(), Some((1, data(1514, 1))));
    assert_eq!(x.got(), Some((1, data(64, 3))));
    assert_eq!(x.s.drops[Reason::Oversize as usize], 1);
}

#[test]
fn out_of_buffers_leaves_the_rest_with_the_giver() {
    let mut x = setup(merge(), 2, 1024);
    for i in 0..3 {
        x.frame(60, i);
    }
    assert_eq!(x.send(), 2);
    x.b.advance(2);
    assert_eq!(x.send(), 0);
    assert!(!x.t.arm());
    let at = BUFS + 2 * 0x1000;
    x.g.writable(&[(at, 1024)]);
    assert!(x.t.arm(), "a buffer has come");
    assert_eq!(x.send(), 1);
    for i in 0..3 {
        assert_eq!(x.got(), Some((1, data(60, i))));
    }
}

#[test]
fn a_frame_beyond_the_whole_ring_is_dropped() {
    let mut x = setup(merge(), 16, 1024);
    x.frame(17_000, 0);
    x.frame(60, 1);
    assert_eq!(x.send(), 2);
    assert_eq!(x.s.drops[Reason::Oversize as usize], 1);
    assert_eq!(x.got(), Some((1, data(60, 1))));
    assert_eq!(x.t.device_mut().base() & 0x7fff, 1, "the others are put back");
}

#[test]
fn headers_follow_what_was_negotiated() {
    let v = Vnet { flags: 3, gso_type: 1, hdr_len: 54, gso_size: 1000, csum_start: 34, csum_offset: 16 };
    let mut x = setup(merge(), 4, 1024);
    x.frame(900, 0);
    x.b.last_mut().unwrap().vnet = v;
    assert_eq!(x.send(), 1);
    let (_, len) = x.g.driver.take().unwrap();
    assert_eq!(len, 912);
    assert_eq!(x.g.get(BUFS, 12), v.to_le(1));
    // Without GUEST_CSUM: work is refused, a hint is left out.
    let none = Terms { packed: PACKED, ..Terms::of(f::VERSION_1) };
    let mut x = setup(none, 4, 1024);
    x.frame(900, 0);
    x.b.last_mut().unwrap().vnet = v;
    x.frame(900, 0);
    x.b.last_mut().unwrap().vnet = Vnet { flags: 2, ..Vnet::default() };
    assert_eq!(x.send(), 2);
    assert_eq!(x.s.drops[Reason::Offload as usize], 1);
    assert_eq!(x.g.get(BUFS, 12), Vnet::default().to_le(1));
}

/// Does what a tap does: puts bytes into the landing.
fn land(x: &mut Setup, len: usize, seed: u8) {
    let bytes = data(len, seed);
    let mut room = Vec::new();
    assert_eq!(x.b.landing.room(u32::try_from(len).unwrap(), &mut room), u32::try_from(len).unwrap());
    let mut rest = &bytes[..];
    for s in room {
        let n = s.copy_in(rest);
        rest = &rest[n..];
    }
    let home = x.b.landing.land(u32::try_from(len).unwrap());
    let f = x.b.push().unwrap();
    f.len = u32::try_from(len).unwrap();
    f.home = home;
    f.set_head(&bytes);
}

#[test]
fn frames_land_in_place() {
    let mut x = setup(merge(), 16, 1024);
    x.lend();
    assert_eq!(x.b.landing.slots().len(), 16);
    land(&mut x, 3000, 1);
    land(&mut x, 60, 2);
    x.b.frames_mut()[1].head_mut()[0] = 0xee;
    x.frame(2000, 3); // copied behind the landed ones
    assert_eq!(x.send(), 3);
    assert_eq!(x.got(), Some((3, data(3000, 1))));
    let mut second = data(60, 2);
    second[0] = 0xee;
    assert_eq!(x.got(), Some((1, second)), "the judged head is what arrives");
    assert_eq!(x.got(), Some((2, data(2000, 3))));
    assert_eq!(x.got(), None);
    // The unused chains were kept and are lent again.
    x.b.clear();
    x.lend();
    assert_eq!(x.b.landing.slots().len(), 10);
    land(&mut x, 500, 4);
    assert_eq!(x.send(), 1);
    assert_eq!(x.got(), Some((1, data(500, 4))));
    assert_eq!(x.t.device_mut().base() & 0x7fff, 7);
}

#[test]
fn landed_frames_that_were_dropped_give_their_chains_back_empty() {
    let mut x = setup(merge(), 4, 1024);
    x.lend();
    for seed in 0..3 {
        land(&mut x, 60, seed);
    }
    x.b.frames_mut()[1].dropped = true;
    assert_eq!(x.send(), 3);
    assert_eq!(x.got(), Some((1, data(60, 0))));
    assert_eq!(x.got(), Some((0, vec![])));
    assert_eq!(x.got(), Some((1, data(60, 2))));
    // And with a batch in which all were dropped.
    x.b.clear();
    x.lend();
    land(&mut x, 60, 9);
    x.b.frames_mut()[0].dropped = true;
    assert_eq!(x.send(), 1);
    assert_eq!(x.got(), Some((0, vec![])));
}

#[test]
fn a_stale_landing_is_not_written() {
    let mut x = setup(merge(), 4, 1024);
    x.lend();
    land(&mut x, 60, 1);
    x.t.device_mut(); // the ring was stopped and started in between
    assert_eq!(x.send(), 1);
    assert_eq!(x.s.drops[Reason::PeerDown as usize], 1);
    assert_eq!(x.g.completed(), 0);
}

#[test]
fn bad_buffers_are_completed_empty_and_passed_over() {
    for lend in [false, true] {
        let mut x = setup(merge(), 0, 0);
        let bad = x.g.writable(&[(7, 1024)]);
        let small = x.g.writable(&[(BUFS, 11)]);
        let wrong = x.g.readable(&[(BUFS, 1024)]);
        let good = x.g.writable(&[(BUFS + 3 * 0x1000, 1024)]);
        let late = x.g.readable(&[(BUFS, 1024)]);
        x.g.writable(&[(BUFS + 5 * 0x1000, 1024)]);
        if lend {
            x.lend();
            assert_eq!(x.b.landing.slots().len(), 1);
            land(&mut x, 100, 5);
        } else {
            x.frame(100, 5);
        }
        assert_eq!(x.send(), 1);
        for head in [bad, small, wrong] {
            assert_eq!(x.g.driver.take(), Some((head, 0)));
        }
        assert_eq!(x.g.driver.take(), Some((good, 112)));
        assert_eq!(x.s.drops[Reason::BadChain as usize], 4);
        x.b.clear();
        x.frame(100, 6);
        assert_eq!(x.send(), 1);
        assert_eq!(x.g.driver.take(), Some((late, 0)));
        assert_eq!(x.got(), Some((1, data(100, 6))));
    }
}

#[test]
fn buffers_are_found_again_after_many_rounds() {
    let mut x = setup(merge(), 16, 300);
    let mut seen = 0;
    for round in 0..2000usize {
        x.b.clear();
        if round % 3 == 0 {
            x.lend();
            land(&mut x, 700, 1);
        } else {
            x.frame(100 + round % 1500, 2);
        }
        assert_eq!(x.send(), 1);
        while let Some((head, len)) = x.g.driver.take() {
            assert!(len > 0);
            seen += 1;
            x.g.writable(&[(BUFS + u64::from(head) * 0x1000, 300)]);
        }
    }
    assert!(seen > 4000);
    assert_eq!(x.s.drops, [0; Reason::COUNT]);
}
