//! Fragments in every order, and those that mean ill. Numbers of CVEs are of other user networks whose reassembly failed
//! in the way that a test has.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::port::user::guest::{GUEST, Sent, drops, link, packet, read, udp_bytes};

const FAMILIES: [(&str, &str); 2] = [("10.0.2.15", "192.0.2.1"), ("fec0::15", "2001:db8::1")];

fn way(i: usize) -> (IpAddr, IpAddr) {
    let (a, b) = FAMILIES[i];
    (a.parse().unwrap(), b.parse().unwrap())
}

/// Puts a fragment in; the whole transport's bytes if that was the last.
fn put(f: &mut Fragments, cx: &mut Cx, frame: &[u8]) -> Option<Vec<u8>> {
    let sent = Sent::new(&[(Vnet::default(), frame.to_vec())]);
    let p = match Packet::of(&sent.batch.frames()[0], &sent.batch) {
        Ok(p) => p,
        Err(why) => {
            cx.stats.drop(why);
            return None;
        }
    };
    let first = p.ip.unwrap();
    let whole = f.take(&p, cx)?;
    let ip = whole.ip.unwrap();
    assert_eq!((ip.src, ip.dst, ip.piece, whole.mac), (first.src, first.dst, None, GUEST));
    assert!(!ip.whole, "who cut it lets it be cut");
    let mut bytes = vec![0; ip.len as usize];
    assert_eq!(whole.copy(0, &mut bytes), bytes.len());
    Some(bytes)
}

/// A datagram cut into fragments of `each` bytes.
fn cut_up(way: (IpAddr, IpAddr), id: u32, bytes: &[u8], each: usize) -> Vec<Vec<u8>> {
    let n = bytes.len().div_ceil(each);
    let part = |(i, b): (usize, &[u8])| packet(way, (17, 61), Some((id, (i * each) as u32, i + 1 < n)), b);
    bytes.chunks(each).enumerate().map(part).collect()
}

fn bytes(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 + i / 256) as u8).collect()
}

fn setup() -> (Fragments, Cx) {
    (Fragments::new().unwrap(), link(|_| {}))
}

#[test]
fn the_largest_datagrams_come_whole_in_any_order() {
    for (i, most) in [(0, 65515), (1, 65535)] {
        let (mut f, mut cx) = setup();
        for (n, each) in [(most, 1480), (most, 552), (9, 8), (3000, 1456)] {
            let data = bytes(n);
            let mut parts = cut_up(way(i), n as u32, &data, each);
            parts.rotate_left(1);
            parts.reverse();
            let (last, rest) = parts.split_last().unwrap();
            for p in rest {
                assert_eq!(put(&mut f, &mut cx, p), None);
                assert_eq!(put(&mut f, &mut cx, p), None, "again, which is no harm");
            }
            assert_eq!(put(&mut f, &mut cx, last), Some(data), "{n} {each}");
            assert_eq!(f.waiting(), 0);
        }
        assert_eq!(drops(&cx, Reason::Fragment), 0);
    }
}

/// CVE-2019-14378, CVE-2018-11806: a fragment that reaches beyond the room of its datagram, first or last.
#[test]
fn nothing_reaches_beyond_the_largest_datagram() {
    for i in 0..2 {
        let (mut f, mut cx) = setup();
        // Each of a datagram of its own: none is refused for what came before.
        for (n, (at, len, more)) in
            [(65528, 8, true), (65528, 200, false), (64000, 1600, true), (0x7fff & !7, 65000, true)]
                .into_iter()
                .enumerate()
        {
            let id = u32::try_from(n).unwrap() + 10;
            assert_eq!(
                put(&mut f, &mut cx, &packet(way(i), (17, 64), Some((id, at, more)), &bytes(len))),
                None
            );
            let refused = drops(&cx, Reason::Fragment) + drops(&cx, Reason::Malformed);
            assert_eq!((refused, f.waiting()), (n as u64 + 1, 0), "{len} bytes at {at}");
        }
        // A first fragment as long as a frame can be, after its end is known to be short.
        put(&mut f, &mut cx, &packet(way(i), (17, 64), Some((2, 16, false)), &bytes(8)));
        assert_eq!(put(&mut f, &mut cx, &packet(way(i), (17, 64), Some((2, 0, true)), &bytes(60000))), None);
        assert_eq!(
            put(&mut f, &mut cx, &packet(way(i), (17, 64), Some((2, 0, true)), &bytes(16))),
            None,
            "dead"
        );
    }
}

/// CVE-2020-1983, CVE-2019-15890: datagrams that push each other out while their fragments still come.
#[test]
fn the_oldest_leaves_and_what_comes_of_it_later_begins_anew() {
    for i in 0..2 {
        let (mut f, mut cx) = setup();
        let all: Vec<_> = (0..40).map(|id| cut_up(way(i), id, &bytes(100 + id as usize), 64)).collect();
        all.iter().for_each(|parts| assert_eq!(put(&mut f, &mut cx, &parts[0]), None));
        assert_eq!((f.waiting(), drops(&cx, Reason::Fragment)), (MOST, 24));
        for (id, parts) in all.iter().enumerate() {
            let whole = put(&mut f, &mut cx, &parts[1]);
            // The first ones that come anew push out those that were still waiting.
            assert!(whole.is_none_or(|w| w == bytes(100 + id)));
        }
        assert!(f.waiting() <= MOST);
        assert_eq!(f.free.len() + f.waiting(), MOST);
    }
}

/// RFC 5722: nothing of a datagram whose fragments overlap is used, not even what comes later.
#[test]
fn overlap_ends_the_datagram() {
    for i in 0..2 {
        for (at, len, more) in
            [(0, 24, true), (8, 8, true), (16, 16, true), (8, 32, true), (24, 8, false), (8, 8, false)]
        {
            let (mut f, mut cx) = setup();
            let part = |at, len, more| packet(way(i), (17, 64), Some((5, at, more)), &bytes(len));
            assert_eq!(put(&mut f, &mut cx, &part(8, 16, true)), None);
            assert_eq!(put(&mut f, &mut cx, &part(32, 8, false)), None);
            assert_eq!(put(&mut f, &mut cx, &part(at, len, more)), None);
            assert_eq!(drops(&cx, Reason::Fragment), 1, "{at} {len} {more}");
            for late in [part(0, 8, true), part(24, 8, true)] {
                assert_eq!(put(&mut f, &mut cx, &late), None);
            }
            assert_eq!(f.waiting(), 1, "remembered, so that it does not begin anew");
            cx.now += AGE;
            f.tick(
                Token { who: crate::port::user::Who::Fragments, kind: 0, index: 0, generation: 0 },
                &mut cx,
            );
            assert_eq!(f.waiting(), 0);
        }
    }
}

#[test]
fn the_late_and_the_many_are_given_up() {
    let (mut f, mut cx) = setup();
    let parts = cut_up(way(0), 9, &bytes(2000), 1000);
    put(&mut f, &mut cx, &parts[0]);
    cx.now += AGE;
    assert_eq!(put(&mut f, &mut cx, &parts[1]), None);
    assert_eq!((f.waiting(), drops(&cx, Reason::Fragment)), (1, 1));
    let crumbs = cut_up(way(0), 10, &bytes(8 * 300), 8);
    assert!(crumbs.iter().all(|c| put(&mut f, &mut cx, c).is_none()));
    assert_eq!(drops(&cx, Reason::Fragment), 1 + 44);
}

#[test]
fn what_is_cut_for_the_guest_comes_whole_again() {
    for (i, mtu) in [(0, 1500), (1, 1500), (0, 1280), (1, 1280), (1, 9000)] {
        let (mut f, mut cx) = setup();
        cx.net.mtu = mtu;
        let (guest, far) = way(i);
        let longest = if guest.is_ipv4() { 65507 } else { 65527 };
        for n in [usize::from(mtu), 20_000, longest] {
            let data = bytes(n);
            let mem = Buf::new(70000).unwrap();
            mem.seg(0, 70000).copy_in(&data[..1111]);
            mem.seg(2000, 70000).copy_in(&data[1111..]);
            let body = [mem.seg(0, 1111), mem.seg(2000, n as u32 - 1111)];
            let whole = udp_bytes((far, 7).into(), (guest, 8).into(), &data);
            let d = Whole { way: (far, guest), proto: 17, id: 77, header: &whole[..8], body: &body };
            let mut b = Batch::new();
            assert!(d.cut(&cx.net, &mut b, &mut cx.stats));
            let frames = crate::port::user::tests::frames(&b);
            assert!(frames.iter().all(|f| f.len() <= usize::from(mtu) + 14));
            assert_eq!(cx.stats.rx_frames, frames.len() as u64);
            cx.stats = Stats::default();
            let mut got = None;
            for frame in frames {
                let (ip, _) = read(&(Vnet::default(), frame.clone()));
                assert_eq!((ip.src, ip.dst), (far, guest));
                assert_eq!(got, None);
                // As the guest would put it together; from it, as far as our parser knows.
                let p = Packet::parse(&frame, &[], frame.len() as u32, Vnet::default()).unwrap();
                got = f.take(&p, &mut cx).map(|whole| {
                    let mut bytes = vec![0; whole.ip.unwrap().len as usize];
                    whole.copy(0, &mut bytes);
                    bytes
                });
            }
            assert_eq!(got.as_ref(), Some(&whole));
            while b.room() > 2 {
                b.push();
            }
            let before = b.len();
            if n == longest {
                assert!(!d.cut(&cx.net, &mut b, &mut cx.stats));
                assert_eq!(b.len(), before, "none of it where there is no room for all");
            }
        }
    }
}

/// What a datagram's fragments come to, done the plain way: byte by byte.
#[derive(Default)]
struct Model {
    bytes: BTreeMap<u32, u8>,
    parts: Vec<(u32, u32, bool)>,
    dead: bool,
}

impl Model {
    fn put(&mut self, at: u32, data: &[u8], more: bool) -> Option<Vec<u8>> {
        let to = at + data.len() as u32;
        if self.dead || self.parts.contains(&(at, to, more)) {
            return None;
        }
        let end = self.parts.iter().find(|p| !p.2).map(|p| p.1);
        let last = self.parts.iter().map(|p| p.1).max().unwrap_or(0);
        let contradicts = match (more, end) {
            (true, Some(end)) => to >= end,
            (false, Some(end)) => to != end,
            (false, None) => last > to,
            (true, None) => false,
        };
        if contradicts || (at..to).any(|i| self.bytes.contains_key(&i)) {
            self.dead = true;
            return None;
        }
        self.parts.push((at, to, more));
        self.bytes.extend((at..to).zip(data.iter().copied()));
        let end = self.parts.iter().find(|p| !p.2).map(|p| p.1)?;
        (self.bytes.len() as u32 == end).then(|| self.bytes.values().copied().collect())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    /// Random fragments of a few datagrams do what the plain way does.
    #[test]
    fn as_the_model_says(family in 0..2usize, parts in prop::collection::vec((0..3u32, 0..7u32, 1..4u32, any::<bool>(), 0..8u32), 1..60)) {
        let (mut f, mut cx) = setup();
        let mut models: BTreeMap<u32, Model> = BTreeMap::new();
        for (id, at, len, more, odd) in parts {
            let len = len * 8 - if more { 0 } else { odd };
            let data: Vec<u8> = (0..len).map(|i| (i + at * 8 + id) as u8).collect();
            let got = put(&mut f, &mut cx, &packet(way(family), (17, 64), Some((id, at * 8, more)), &data));
            // All of a packet as one fragment is no fragment (RFC 6946; in IPv4, no offset and no more).
            if !more && at == 0 {
                continue;
            }
            let want = models.entry(id).or_default().put(at * 8, &data, more);
            if want.is_some() {
                models.remove(&id);
            }
            prop_assert_eq!(got, want);
        }
    }
}
