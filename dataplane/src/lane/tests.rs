//! A lane between two fakes: order, back-pressure, rewinding and held givers, work in software, death.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use netreeve_shared::vnet::{F_NEEDS_CSUM, GSO_TCPV4, Vnet};

use super::*;
use crate::frame::HEAD;
use crate::mem::Buf;
use crate::port::Offloads;

/// What a test sees and sets of a fake port.
#[derive(Default)]
struct Inside {
    gives: VecDeque<(Vec<u8>, Vnet)>,
    took: Vec<Vec<u8>>,
    room: usize,
    down: bool,
    fail: bool,
    /// What is lent does not do for the next frame.
    stops: bool,
    /// The first frame that waits is begun.
    begun: bool,
    released: usize,
}

struct Fake {
    inside: Arc<Mutex<Inside>>,
    traits: Traits,
    buf: Buf,
    stats: Stats,
    given: usize,
}

fn fake(traits: Traits, room: usize) -> (Box<Fake>, Arc<Mutex<Inside>>) {
    let inside = Arc::new(Mutex::new(Inside { room, ..Inside::default() }));
    let buf = Buf::new(1 << 20).unwrap();
    (Box::new(Fake { inside: inside.clone(), traits, buf, stats: Stats::default(), given: 0 }), inside)
}

impl Port for Fake {
    fn traits(&self) -> Traits {
        Traits { up: !self.inside.lock().unwrap().down, ..self.traits }
    }

    fn watch(&self, _: &mut Watch) {}

    fn peer_new(&mut self) -> bool {
        self.inside.lock().unwrap().begun
    }

    fn lend(&mut self, b: &mut Batch) {
        b.landing.open(0, true);
        b.landing.offer(&[self.buf.seg(0, 100)], 0);
    }

    fn recv(&mut self, b: &mut Batch) -> io::Result<()> {
        let mut i = self.inside.lock().unwrap();
        if i.fail {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.given = 0;
        if i.stops {
            b.landing.stop();
            return Ok(());
        }
        let mut at = 0;
        while b.room() > 0 && self.given < i.gives.len() {
            let (bytes, vnet) = i.gives[self.given].clone();
            let f = b.push().unwrap();
            f.set_head(&bytes);
            f.len = bytes.len() as u32;
            f.vnet = vnet;
            let seg = self.buf.seg(at, bytes.len() as u32);
            seg.copy_in(&bytes);
            at += seg.len();
            f.set_lead(seg);
            b.push_seg(seg.skip(HEAD as u32));
            self.given += 1;
        }
        if !self.traits.rewinds {
            let n = self.given;
            i.gives.drain(..n);
        }
        Ok(())
    }

    fn send(&mut self, b: &Batch) -> io::Result<usize> {
        let mut i = self.inside.lock().unwrap();
        if i.fail {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut n = 0;
        for f in b.frames() {
            if !f.dropped {
                if i.took.len() >= i.room {
                    break;
                }
                let mut bytes = f.head().to_vec();
                for s in b.body(f) {
                    let mut p = vec![0; s.len() as usize];
                    s.copy_out(&mut p);
                    bytes.extend(p);
                }
                assert_eq!(bytes.len(), f.len as usize);
                i.took.push(bytes);
            }
            n += 1;
        }
        Ok(n)
    }

    fn release(&mut self, _: &Batch, taken: usize) {
        let mut i = self.inside.lock().unwrap();
        i.released += taken;
        if self.traits.rewinds {
            i.gives.drain(..taken);
        }
    }

    fn stats(&self) -> Stats {
        self.stats
    }

    fn stats_mut(&mut self) -> &mut Stats {
        &mut self.stats
    }
}

fn frame(n: u32, len: usize) -> (Vec<u8>, Vnet) {
    let mut v = vec![0; len.max(14)];
    v[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    let at = v.len().min(18) - 4;
    v[at..at + 4].copy_from_slice(&n.to_be_bytes());
    (v, Vnet::default())
}

/// A TCP super-frame with `payload` bytes.
fn super_frame(payload: usize, mss: u16) -> (Vec<u8>, Vnet) {
    let (mut v, _) = frame(0, 14);
    v[12..14].copy_from_slice(&[8, 0]);
    let mut ip = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
    ip[2..4].copy_from_slice(&((40 + payload) as u16).to_be_bytes());
    v.extend(ip);
    v.extend([0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    v.extend((0..payload).map(|i| i as u8));
    let vnet = Vnet {
        flags: F_NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 54,
        gso_size: mss,
        csum_start: 34,
        csum_offset: 16,
    };
    (v, vnet)
}

#[test]
fn order_is_kept_and_nothing_is_lost_whoever_holds_what_waits() {
    for rewinds in [true, false] {
        let (giver, g) = fake(Traits { rewinds, ..Traits::default() }, 0);
        let (taker, t) = fake(Traits::default(), 10);
        let mut lane = Lane::new(giver, taker, None).unwrap();
        g.lock().unwrap().gives.extend((0..300).map(|n| frame(n, 60 + n as usize)));
        let mut fulls = 0;
        while t.lock().unwrap().took.len() < 300 {
            match lane.turn(Side::Netdev) {
                Outcome::Full => {
                    fulls += 1;
                    t.lock().unwrap().room += 7;
                }
                Outcome::Dead(..) => panic!("nobody died"),
                _ => {}
            }
        }
        assert!(fulls > 10);
        let want: Vec<_> = (0..300).map(|n| frame(n, 60 + n as usize).0).collect();
        assert_eq!(t.lock().unwrap().took, want);
        assert_eq!(g.lock().unwrap().released, 300);
        assert!(matches!(lane.turn(Side::Netdev), Outcome::Dry));
    }
}

#[test]
fn a_segmented_frame_goes_on_where_the_taker_stopped() {
    let (giver, g) = fake(Traits { rewinds: true, gives: Offloads::ALL, ..Traits::default() }, 0);
    let (taker, t) = fake(Traits { max_frame: 1514, ..Traits::default() }, 1);
    let mut lane = Lane::new(taker, giver, None).unwrap();
    g.lock().unwrap().gives.extend([frame(1, 60), super_frame(60000, 1448), frame(2, 60)]);
    let all = 60000usize.div_ceil(1448) + 2;
    while t.lock().unwrap().took.len() < all {
        if matches!(lane.turn(Side::Device), Outcome::Full) {
            t.lock().unwrap().room += 5;
        }
    }
    let took = std::mem::take(&mut t.lock().unwrap().took);
    let payload: Vec<u8> = took[1..all - 1].iter().flat_map(|p| p[54..].to_vec()).collect();
    assert_eq!(payload, super_frame(60000, 1448).0[54..]);
    assert_eq!((took[0].clone(), took[all - 1].clone()), (frame(1, 60).0, frame(2, 60).0));
    assert_eq!(g.lock().unwrap().released, 3);
}

#[test]
fn drops_are_counted_by_reason_and_the_rest_goes_on() {
    let (giver, g) = fake(Traits { rewinds: true, gives: Offloads::ALL, ..Traits::default() }, 0);
    let (taker, t) = fake(Traits { max_frame: 100, ..Traits::default() }, 99);
    let lock = Mac([2, 0, 0, 0, 0, 9]);
    let mut lane = Lane::new(taker, giver, Some(lock)).unwrap();
    let mut foreign = frame(3, 60);
    foreign.0[11] = 8;
    let runt = (vec![0; 13], Vnet::default());
    let broken = (super_frame(200, 100).0[..40].to_vec(), super_frame(200, 100).1);
    g.lock().unwrap().gives.extend([frame(1, 60), foreign, frame(2, 101), runt, broken, frame(4, 100)]);
    assert!(matches!(lane.turn(Side::Device), Outcome::Last));
    assert_eq!(t.lock().unwrap().took, [frame(1, 60).0, frame(4, 100).0]);
    let drops = lane.stats(Side::Device).drops;
    for why in [Reason::SourceMac, Reason::Oversize, Reason::Runt, Reason::Offload] {
        assert_eq!(drops[why as usize], 1, "{why:?}");
    }
}

#[test]
fn a_drop_is_counted_once_however_often_its_frame_is_given() {
    let (giver, g) = fake(Traits { rewinds: true, ..Traits::default() }, 0);
    let (taker, t) = fake(Traits { max_frame: 100, ..Traits::default() }, 0);
    let mut lane = Lane::new(taker, giver, None).unwrap();
    g.lock().unwrap().gives.extend([frame(1, 60), frame(2, 101), frame(3, 60)]);
    for _ in 0..5 {
        assert!(matches!(lane.turn(Side::Device), Outcome::Full));
    }
    assert_eq!(lane.stats(Side::Device).drops, [0; Reason::COUNT]);
    t.lock().unwrap().room = 9;
    assert!(matches!(lane.turn(Side::Device), Outcome::Last));
    assert_eq!(t.lock().unwrap().took, [frame(1, 60).0, frame(3, 60).0]);
    assert_eq!(lane.stats(Side::Device).drops[Reason::Oversize as usize], 1);
}

#[test]
fn a_netdev_that_is_down_swallows_and_a_guest_that_is_down_is_waited_for() {
    let (netdev, n) = fake(Traits { rewinds: true, ..Traits::default() }, 99);
    let (device, d) = fake(Traits { rewinds: true, ..Traits::default() }, 99);
    let mut lane = Lane::new(netdev, device, None).unwrap();
    n.lock().unwrap().gives.extend([frame(1, 60)]);
    d.lock().unwrap().gives.extend([frame(2, 60)]);
    d.lock().unwrap().down = true;
    lane.rewire();
    assert!(matches!(lane.turn(Side::Netdev), Outcome::Full));
    assert!(matches!(lane.turn(Side::Device), Outcome::Dry));
    d.lock().unwrap().down = false;
    n.lock().unwrap().down = true;
    lane.rewire();
    assert!(matches!(lane.turn(Side::Device), Outcome::Moved));
    assert!(n.lock().unwrap().took.is_empty());
    assert_eq!(lane.stats(Side::Device).drops[Reason::PeerDown as usize], 1);
    n.lock().unwrap().down = false;
    lane.rewire();
    assert!(matches!(lane.turn(Side::Netdev), Outcome::Last));
    assert_eq!(d.lock().unwrap().took, [frame(1, 60).0]);
}

#[test]
fn a_dead_port_is_named_and_the_lane_lives_on() {
    let (netdev, n) = fake(Traits { rewinds: true, ..Traits::default() }, 99);
    let (device, d) = fake(Traits { rewinds: true, ..Traits::default() }, 99);
    let mut lane = Lane::new(netdev, device, None).unwrap();
    d.lock().unwrap().gives.extend([frame(2, 60), frame(3, 60)]);
    n.lock().unwrap().fail = true;
    assert!(matches!(lane.turn(Side::Netdev), Outcome::Dead(Side::Netdev, _)));
    assert!(matches!(lane.turn(Side::Device), Outcome::Dead(Side::Netdev, _)));
    lane.set_dead(Side::Netdev, true);
    assert!(matches!(lane.turn(Side::Netdev), Outcome::Dry));
    d.lock().unwrap().gives.extend([frame(4, 60)]);
    assert!(matches!(lane.turn(Side::Device), Outcome::Moved));
    n.lock().unwrap().fail = false;
    lane.set_dead(Side::Netdev, false);
    d.lock().unwrap().gives.extend([frame(5, 60)]);
    assert!(matches!(lane.turn(Side::Device), Outcome::Last));
    assert_eq!(n.lock().unwrap().took, [frame(5, 60).0]);
}

#[test]
fn a_giver_that_needs_more_room_waits_for_the_taker() {
    let (giver, inside) = fake(Traits { needs_memory: true, ..Traits::default() }, 0);
    let (taker, _) = fake(Traits { lends: true, ..Traits::default() }, 9);
    let mut lane = Lane::new(giver, taker, None).unwrap();
    assert!(matches!(lane.turn(Side::Netdev), Outcome::Dry));
    inside.lock().unwrap().stops = true;
    // Dry would watch the giver, which is readable all the time.
    assert!(matches!(lane.turn(Side::Netdev), Outcome::Full));
}

/// What a lane sends of these frames to a taker of `takes` with room for one frame a turn; how many were released.
fn through(gives: Vec<(Vec<u8>, Vnet)>, giver: Traits, takes: Offloads) -> (Vec<Vec<u8>>, usize) {
    let (n, (from, given), (to, taken)) =
        (gives.len(), fake(giver, 0), fake(Traits { takes, ..Traits::default() }, 1));
    given.lock().unwrap().gives = gives.into();
    let mut lane = Lane::new(from, to, None).unwrap();
    for _ in 0..200 {
        lane.turn(Side::Netdev);
        let mut taken = taken.lock().unwrap();
        taken.room = taken.took.len() + 1;
    }
    assert!(given.lock().unwrap().gives.is_empty() && n > 0);
    let (took, released) = (std::mem::take(&mut taken.lock().unwrap().took), given.lock().unwrap().released);
    (took, released)
}

#[test]
fn segments_are_joined_for_who_takes_super_frames_and_none_is_lost_or_doubled() {
    let undone = Traits { gives: Offloads::ALL, ..Traits::default() };
    let flow = |port: u8| {
        let (mut bytes, vnet) = super_frame(20_000, 1000);
        bytes[35] = port;
        through(vec![(bytes, vnet)], undone, Offloads::NONE).0
    };
    let (a, b) = (flow(1), flow(7));
    assert_eq!((a.len(), b.len()), (20, 20));
    for rewinds in [false, true] {
        let giver = Traits { joinable: true, rewinds, ..Traits::default() };
        let both: Vec<_> = a
            .iter()
            .zip(&b)
            .flat_map(|(a, b)| [a.clone(), b.clone()])
            .map(|f| (f, Vnet::default()))
            .collect();
        let (took, released) = through(both.clone(), giver, Offloads::ALL);
        assert_eq!((took.len(), released), (2, 40), "rewinds {rewinds}");
        for (one, parts) in took.iter().zip([&a, &b]) {
            let payload: Vec<u8> = parts.iter().flat_map(|p| p[54..].to_vec()).collect();
            assert!(one[54..] == payload && one[..14] == parts[0][..14] && one[34..38] == parts[0][34..38]);
        }
        // Whoever does not say where its frames begin, or sends to one that takes segments only, joins nothing.
        assert_eq!(through(both.clone(), giver, Offloads::NONE).0.len(), 40);
        assert_eq!(through(both, Traits { rewinds, ..Traits::default() }, Offloads::ALL).0.len(), 40);
    }
}

/// The taker changes what it takes in the middle of a joined batch: the rest comes as it was given, and once.
#[test]
fn a_rewire_in_the_middle_of_a_joined_batch_loses_and_doubles_nothing() {
    let undone = Traits { gives: Offloads::ALL, ..Traits::default() };
    let flow = |port: u8| {
        let (mut bytes, vnet) = super_frame(20_000, 1000);
        bytes[35] = port;
        through(vec![(bytes, vnet)], undone, Offloads::NONE).0
    };
    let (a, b, c) = (flow(1), flow(7), flow(9));
    for rewinds in [false, true] {
        let (from, given) = fake(Traits { joinable: true, rewinds, ..Traits::default() }, 0);
        let (to, taken) = fake(Traits { takes: Offloads::ALL, ..Traits::default() }, 1);
        let mix = a.iter().zip(&b).zip(&c).flat_map(|((a, b), c)| [a.clone(), b.clone(), c.clone()]);
        given.lock().unwrap().gives = mix.map(|f| (f, Vnet::default())).collect();
        let mut lane = Lane::new(from, to, None).unwrap();
        assert!(matches!(lane.turn(Side::Netdev), Outcome::Full));
        assert_eq!(taken.lock().unwrap().took.len(), 1, "one flow, joined");
        lane.to_device.takes.takes = Offloads::NONE;
        let (gives, takes) = (lane.to_device.gives, lane.to_device.takes);
        lane.to_device.rewire(gives, takes, lane.netdev.as_mut());
        for _ in 0..60 {
            taken.lock().unwrap().room += 1;
            lane.turn(Side::Netdev);
        }
        let took = std::mem::take(&mut taken.lock().unwrap().took);
        assert_eq!(took[0][54..], a.iter().flat_map(|p| p[54..].to_vec()).collect::<Vec<u8>>());
        let rest: Vec<_> = b.iter().zip(&c).flat_map(|(b, c)| [b.clone(), c.clone()]).collect();
        assert_eq!(took[1..], rest, "rewinds {rewinds}");
        let given = given.lock().unwrap();
        assert_eq!((given.released, given.gives.len()), (60, 0));
    }
}

/// A lane from the device with a batch of three flows of 20 segments, of which `went` went joined.
fn in_the_middle(rewinds: bool, went: usize) -> (Lane, Arc<Mutex<Inside>>, Arc<Mutex<Inside>>) {
    let undone = Traits { gives: Offloads::ALL, ..Traits::default() };
    let flow = |port: u8| {
        let (mut bytes, vnet) = super_frame(20_000, 1000);
        bytes[35] = port;
        through(vec![(bytes, vnet)], undone, Offloads::NONE).0
    };
    let (from, given) = fake(Traits { joinable: true, rewinds, ..Traits::default() }, 0);
    let (to, taken) = fake(Traits { takes: Offloads::ALL, ..Traits::default() }, went);
    let (a, b, c) = (flow(1), flow(7), flow(9));
    let mix = a.into_iter().zip(b).zip(c).flat_map(|((a, b), c)| [a, b, c]);
    given.lock().unwrap().gives = mix.map(|f| (f, Vnet::default())).collect();
    let mut lane = Lane::new(to, from, None).unwrap();
    assert!(matches!(lane.turn(Side::Device), Outcome::Full));
    assert_eq!(taken.lock().unwrap().took.len(), went, "joined");
    (lane, given, taken)
}

#[test]
fn what_of_a_joined_batch_did_not_go_is_lost_once_whoever_goes() {
    let lost = |lane: &Lane| lane.stats(Side::Device).drops;
    let want = |n: u64| {
        let mut drops = [0; Reason::COUNT];
        drops[Reason::PeerDown as usize] = n;
        drops
    };
    for rewinds in [false, true] {
        // The taker goes down, for the netdev that is not waited for.
        let (mut lane, given, taken) = in_the_middle(rewinds, 1);
        taken.lock().unwrap().down = true;
        lane.rewire();
        while !matches!(lane.turn(Side::Device), Outcome::Dry) {}
        assert_eq!(lost(&lane), want(40), "the taker is down, rewinds {rewinds}");
        assert_eq!(given.lock().unwrap().released, 60);
        // The giver does, as a stream whose connection ended.
        let (mut lane, given, _) = in_the_middle(rewinds, 2);
        given.lock().unwrap().down = true;
        lane.rewire();
        assert_eq!(lost(&lane), want(20), "the giver is down, rewinds {rewinds}");
        assert_eq!(given.lock().unwrap().released, 60);
        // The taker dies.
        let (mut lane, given, taken) = in_the_middle(rewinds, 1);
        taken.lock().unwrap().fail = true;
        assert!(matches!(lane.turn(Side::Device), Outcome::Dead(Side::Netdev, _)));
        assert_eq!(lost(&lane), want(40), "the taker died, rewinds {rewinds}");
        assert_eq!(given.lock().unwrap().released, 60);
        assert!(given.lock().unwrap().gives.is_empty());
        // Another port comes in the taker's place: of what nothing went, nothing is lost if it can come again.
        for went in [0, 1] {
            let (mut lane, given, _) = in_the_middle(rewinds, went);
            let (to, taken) = fake(Traits::default(), 99);
            lane.replace(Side::Netdev, to);
            while !matches!(lane.turn(Side::Device), Outcome::Dry) {}
            let again = if rewinds && went == 0 { 60 } else { 0 };
            assert_eq!(taken.lock().unwrap().took.len(), again, "rewinds {rewinds}, {went} went");
            assert_eq!(lost(&lane), want(60 - 20 * went as u64 - again as u64));
            assert_eq!(given.lock().unwrap().released, 60);
        }
    }
}

#[test]
fn what_the_filter_drops_of_a_batch_that_is_lost_is_counted_by_its_reason() {
    let (giver, g) = fake(Traits::default(), 0);
    let (taker, t) = fake(Traits { max_frame: 100, ..Traits::default() }, 1);
    let mut lane = Lane::new(taker, giver, None).unwrap();
    g.lock().unwrap().gives.extend([frame(1, 60), frame(2, 60), frame(3, 101), frame(4, 60)]);
    assert!(matches!(lane.turn(Side::Device), Outcome::Full));
    t.lock().unwrap().fail = true;
    assert!(matches!(lane.turn(Side::Device), Outcome::Dead(Side::Netdev, _)));
    let drops = lane.stats(Side::Device).drops;
    assert_eq!((drops[Reason::PeerDown as usize], drops[Reason::Oversize as usize]), (2, 1));
}

#[test]
fn a_frame_that_the_taker_began_is_no_loss_when_its_giver_is_replaced() {
    for begun in [false, true] {
        let (giver, g) = fake(Traits::default(), 0);
        let (taker, t) = fake(Traits::default(), 1);
        g.lock().unwrap().gives.extend([1, 2, 3, 4].map(|n| frame(n, 60)));
        t.lock().unwrap().begun = begun;
        let mut lane = Lane::new(giver, taker, None).unwrap();
        assert!(matches!(lane.turn(Side::Netdev), Outcome::Full));
        let old = lane.replace(Side::Netdev, fake(Traits::default(), 0).0);
        assert_eq!(old.stats().drops[Reason::PeerDown as usize], if begun { 2 } else { 3 });
        assert_eq!(g.lock().unwrap().released, 4);
    }
}
