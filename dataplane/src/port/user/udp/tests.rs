//! Flows with real sockets on this machine's loopback. Numbers of CVEs are of other user networks that failed in the way
//! that a test has.

use std::net::{IpAddr, UdpSocket};

use netreeve_shared::vnet::Vnet;
use proptest::prelude::*;

use super::*;
use crate::port::user::guest::{
    GUEST, at, drops, given, link, packet, read, send, send_vnet, udp, udp_bytes,
};
use crate::port::user::plan::Way;
use crate::port::user::policy::{Direction, Policy, Rule, Verdict, Where};
use crate::port::{Offloads, offload_bits as bits};

const GUEST4: &str = "10.0.2.15:4000";

fn server(on: &str) -> UdpSocket {
    let s = UdpSocket::bind(on).unwrap();
    s.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    s
}

fn room(cx: &mut Cx) -> Udp {
    Udp::new(&Plan::qemu(), Vec::new(), cx).unwrap()
}

/// The host's loopback as the guest sees it.
fn seen(s: &UdpSocket) -> SocketAddr {
    let a = s.local_addr().unwrap();
    SocketAddr::new(if a.is_ipv4() { at("10.0.2.2:0").ip() } else { at("[fec0::2]:0").ip() }, a.port())
}

fn payload(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 3 + i / 251) as u8).collect()
}

/// The payload of a datagram that the guest got, after a look at its header.
fn carried(frame: &(Vnet, Vec<u8>), from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let (ip, bytes) = read(frame);
    assert_eq!((ip.src, ip.dst, ip.proto), (from.ip(), to.ip(), 17));
    assert_eq!(bytes[..4], udp_bytes(from, to, &[])[..4]);
    if ip.piece.is_none() {
        assert_eq!(usize::from(u16::from_be_bytes([bytes[4], bytes[5]])), bytes.len());
    }
    bytes[8..].to_vec()
}

#[test]
fn there_and_back_in_both_families() {
    for (on, guest) in [("127.0.0.1:0", GUEST4), ("[::1]:0", "[fec0::15]:4000")] {
        let (s, guest) = (server(on), at(guest));
        for csum in [0, bits::CSUM] {
            let mut cx = link(|_| {});
            cx.gives = Offloads(csum);
            let mut room = room(&mut cx);
            for n in [0, 1, 86, 87, 512, 1452] {
                let data = payload(n);
                send(&mut room, &mut cx, &[udp(guest, seen(&s), &data)]);
                let mut got = [0; 2000];
                let (len, from) = s.recv_from(&mut got).unwrap();
                assert_eq!(got[..len], data);
                s.send_to(&data, from).unwrap();
                let frames = given(&mut room, &mut cx, true);
                assert_eq!(carried(&frames[0], seen(&s), guest), data);
            }
            assert_eq!(room.flows.len(), 1, "all of one flow");
            assert_eq!(cx.stats.drops, [0; Reason::COUNT]);
        }
    }
}

#[test]
fn datagrams_of_a_turn_arrive_in_order_whatever_their_lengths() {
    let s = server("127.0.0.1:0");
    let other = server("127.0.0.1:0");
    let mut cx = link(|_| {});
    let mut room = room(&mut cx);
    let lens = [100, 100, 100, 7, 100, 100, 0, 0, 1200, 1200, 300, 1400, 1400, 1, 1, 1];
    let frames: Vec<_> = lens
        .iter()
        .enumerate()
        .map(|(i, n)| udp(at(GUEST4), seen(if i == 5 { &other } else { &s }), &vec![i as u8; *n]))
        .collect();
    send(&mut room, &mut cx, &frames);
    let mut got = [0; 2000];
    for (i, n) in lens.iter().enumerate() {
        let len = if i == 5 { &other } else { &s }.recv(&mut got).unwrap();
        assert_eq!(got[..len], vec![i as u8; *n], "{i}");
    }
    assert_eq!(room.flows.len(), 2);
}

/// A guest's super-datagram is cut by the kernel, and joined ones come as one frame to a guest that takes them, cut for
/// one that does not.
#[test]
fn super_datagrams_pass_both_ways() {
    let s = server("127.0.0.1:0");
    for gives in [bits::CSUM | bits::USO, bits::CSUM, 0] {
        let mut cx = link(|_| {});
        cx.gives = Offloads(gives);
        let mut room = room(&mut cx);
        let data = payload(10 * 1000 + 77);
        let frame = udp(at(GUEST4), seen(&s), &data);
        let vnet = Vnet {
            flags: vnet::F_NEEDS_CSUM,
            gso_type: vnet::GSO_UDP_L4,
            hdr_len: 42,
            gso_size: 1000,
            csum_start: 34,
            csum_offset: 6,
        };
        send_vnet(&mut room, &mut cx, &[(vnet, frame)]);
        let (mut got, mut from) = ([0; 2000], at("0.0.0.0:0"));
        for want in data.chunks(1000) {
            let (n, who) = s.recv_from(&mut got).unwrap();
            assert_eq!(got[..n], *want);
            from = who;
        }
        // Enough at once for the kernel to be asked for joined ones; then those.
        for _ in 0..3 {
            (0..16).for_each(|_| assert_eq!(s.send_to(&data[..1000], from).unwrap(), 1000));
            let mut n = 0;
            while n < 16_000 {
                for f in given(&mut room, &mut cx, true) {
                    let bytes = carried(&f, seen(&s), at(GUEST4));
                    assert!(bytes.chunks(1000).all(|c| *c == data[..1000]));
                    assert_eq!(f.0.gso_type == vnet::GSO_UDP_L4, bytes.len() > 1000);
                    assert!(bytes.len() == 1000 || gives & bits::USO != 0);
                    n += bytes.len();
                }
            }
        }
        let mut out = crate::sys::mmsg::Outgoing::new();
        out.towards(from);
        out.private(&data);
        out.finish(1000);
        assert_eq!(out.send(s.as_fd()).unwrap(), 1);
        let frames = given(&mut room, &mut cx, true);
        assert_eq!(frames.len(), if gives & bits::USO != 0 { 1 } else { 11 });
        let all: Vec<u8> = frames.iter().flat_map(|f| carried(f, seen(&s), at(GUEST4))).collect();
        assert_eq!(all, data);
    }
}

#[test]
fn what_is_longer_than_the_mtu_comes_in_fragments() {
    let s = server("127.0.0.1:0");
    let mut cx = link(|_| {});
    let mut room = room(&mut cx);
    send(&mut room, &mut cx, &[udp(at(GUEST4), seen(&s), b"?")]);
    let mut got = [0; 10];
    let (_, from) = s.recv_from(&mut got).unwrap();
    let data = payload(5000);
    s.send_to(&data, from).unwrap();
    let frames = given(&mut room, &mut cx, true);
    assert_eq!(frames.len(), 4);
    let mut all = Vec::new();
    for f in &frames {
        let (ip, bytes) = read(f);
        assert_eq!(ip.piece.unwrap().offset, all.len() as u32);
        all.extend(bytes);
    }
    assert_eq!(all[8..], data);
}

/// Nobody listens: the guest hears it as from the host, about its own packet, at once and by what it sends later.
#[test]
fn a_refusal_is_told() {
    for (on, guest) in [("127.0.0.1:0", GUEST4), ("[::1]:0", "[fec0::15]:4000")] {
        let (s, guest) = (server(on), at(guest));
        let to = seen(&s);
        drop(s);
        let mut cx = link(|_| {});
        let mut room = room(&mut cx);
        for n in 0..3 {
            send(&mut room, &mut cx, &[udp(guest, to, b"anybody there?")]);
            let (ip, icmp) = read(&given(&mut room, &mut cx, true)[0]);
            assert_eq!((ip.src, ip.dst), (to.ip(), guest.ip()), "{n}");
            assert_eq!(icmp[..2], if guest.is_ipv4() { [3, 3] } else { [1, 4] });
            let header = if guest.is_ipv4() { 20 } else { 40 };
            assert_eq!(icmp[8 + header..], udp_bytes(guest, to, b"anybody there?")[..]);
        }
        assert_eq!(room.flows.len(), 1);
    }
}

#[test]
fn where_it_may_not_go_and_where_nobody_is() {
    let denied = Rule {
        verdict: Verdict::Refuse,
        direction: Direction::Out,
        proto: None,
        at: Where::V4([127, 0, 0, 0].into(), 8),
        ports: None,
    };
    let mut cx = link(|p| p.policy = Policy { rules: vec![denied], otherwise: Verdict::Drop });
    let mut room = room(&mut cx);
    let answer = |to: &str, ttl, room: &mut Udp, cx: &mut Cx| {
        let to = at(to);
        let frame = packet((at(GUEST4).ip(), to.ip()), (17, ttl), None, &udp_bytes(at(GUEST4), to, b"x"));
        send(room, cx, &[frame]);
        given(room, cx, false).first().map(|f| {
            let (ip, icmp) = read(f);
            (ip.src.to_string(), icmp[0], icmp[1])
        })
    };
    let gateway = "10.0.2.2".to_owned();
    assert_eq!(answer("10.0.2.2:80", 64, &mut room, &mut cx), Some((gateway.clone(), 3, 13)));
    assert_eq!(answer("127.0.0.1:80", 64, &mut room, &mut cx), Some((gateway.clone(), 3, 13)));
    assert_eq!(answer("10.0.2.3:80", 64, &mut room, &mut cx), Some(("10.0.2.3".to_owned(), 3, 3)));
    assert_eq!(answer("10.0.2.77:80", 64, &mut room, &mut cx), Some((gateway.clone(), 3, 1)));
    assert_eq!(answer("198.51.100.1:80", 1, &mut room, &mut cx), Some((gateway, 11, 0)), "traceroute");
    assert_eq!(answer("198.51.100.1:80", 64, &mut room, &mut cx), None, "the policy says nothing");
    // Nothing for many goes out, and nobody is told.
    for many in ["255.255.255.255:80", "10.0.2.255:80", "224.0.0.251:5353", "239.255.255.250:1900"] {
        assert_eq!(answer(many, 64, &mut room, &mut cx), None);
    }
    // IPv4 in IPv6's clothes goes nowhere, whatever the policy says.
    cx.policy.otherwise = Verdict::Pass;
    cx.policy.rules.clear();
    let mapped = udp(at("[fec0::15]:4000"), at("[::ffff:127.0.0.1]:80"), b"x");
    send(&mut room, &mut cx, &[mapped]);
    let (_, icmp) = read(&given(&mut room, &mut cx, false)[0]);
    assert_eq!(icmp[..2], [1, 0]);
    assert_eq!(room.flows.len(), 0);
    cx.restrict = true;
    assert_eq!(answer("10.0.2.2:80", 64, &mut room, &mut cx), None);
    assert_eq!(room.flows.len(), 0);
}

#[test]
fn a_port_has_its_share_and_the_quiet_leave_first() {
    let s = server("127.0.0.1:0");
    let mut cx = link(|p| p.limits.udp = 8);
    let mut room = room(&mut cx);
    let to = |port: u16| SocketAddr::new(at("10.0.2.2:0").ip(), port);
    let from = |port: u16| SocketAddr::new(at(GUEST4).ip(), port);
    // Others of the guest's have flows; then one port wants more than its share.
    (1..=4).for_each(|i| send(&mut room, &mut cx, &[udp(from(i), seen(&s), b"x")]));
    for i in 1..=50 {
        cx.now += Duration::from_millis(1);
        send(&mut room, &mut cx, &[udp(from(99), to(20_000 + i), b"x")]);
    }
    assert_eq!(room.flows.len(), 8);
    for i in 1..=4 {
        assert!(room.flows.find(&Key { guest: from(i), far: seen(&s) }).is_some());
        assert!(room.flows.find(&Key { guest: from(99), far: to(20_046 + i) }).is_some());
    }
    // One more of another port's pushes out the one that was quiet for the longest time.
    send(&mut room, &mut cx, &[udp(from(5), seen(&s), b"x")]);
    assert!(room.flows.find(&Key { guest: from(1), far: seen(&s) }).is_none());
    assert_eq!(room.flows.len(), 8);
    assert_eq!(cx.stats.evicted, 47, "46 of the greedy port's own, and that one");
}

/// A guest that opens thousands has as many sockets as the limit says, each the newest of its kind, and who was there
/// before it and spoke since is still there.
#[test]
fn thousands_of_flows_are_no_more_than_the_limit() {
    let s = server("127.0.0.1:0");
    let mut cx = link(|p| p.limits.udp = 100);
    let mut room = room(&mut cx);
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    let from = |port: u16| SocketAddr::new(at(GUEST4).ip(), port);
    for i in 1..=3000 {
        cx.now += Duration::from_millis(1);
        send(&mut room, &mut cx, &[udp(from(10_000 + i), seen(&s), b"x"), udp(from(1), seen(&s), b"y")]);
    }
    assert_eq!((room.flows.len(), cx.stats.evicted), (100, 2901));
    // Other tests of this process have descriptors as well, but not by the thousand.
    assert!(open() < before + 1000, "{} descriptors", open());
    assert!(room.flows.find(&Key { guest: from(1), far: seen(&s) }).is_some(), "it spoke all the time");
    assert!(room.flows.find(&Key { guest: from(13_000), far: seen(&s) }).is_some());
    assert_eq!(cx.stats.drops, [0; Reason::COUNT]);
}

/// A socket that wakes the port for nothing is counted, be it a flow's, a forward's, or nobody's any more.
#[test]
fn who_is_woken_for_nothing_counts_it() {
    let s = server("127.0.0.1:0");
    let mut cx = link(|_| {});
    let (mut room, there) = forwarded(&mut cx, "127.0.0.1:0", "10.0.2.15:53");
    send(&mut room, &mut cx, &[udp(at(GUEST4), seen(&s), b"x")]);
    let (_, from) = s.recv_from(&mut [0; 10]).unwrap();
    s.send_to(b"answer", from).unwrap();
    assert_eq!(given(&mut room, &mut cx, true).len(), 1);
    s.send_to(b"call", there).unwrap();
    assert_eq!(given(&mut room, &mut cx, true).len(), 1);
    assert_eq!(cx.idle, 0, "there was something each time");
    let token = |kind, index, generation| Token { who: Who::Udp, kind, index, generation };
    let read = Ready { read: true, ..Ready::default() };
    let error = Ready { error: true, ..Ready::default() };
    let woken = [
        (token(FLOW, 0, 0), read),
        (token(LISTENER, 7, 0), read),
        (token(FLOW, 0, 0), error),
        (token(FLOW, 0, 9), read),
    ];
    for (n, (at, ready)) in (1..).zip(woken) {
        room.ready(at, ready, &mut cx);
        room.give(&mut Bay::default(), &mut Batch::new(), &mut cx);
        assert_eq!(cx.idle, n, "{at:?}");
    }
    assert!(!room.has_more());
}

#[test]
fn flows_end_when_nobody_speaks() {
    let s = server("127.0.0.1:0");
    let mut cx = link(|_| {});
    let mut room = room(&mut cx);
    let other = at("10.0.2.15:4001");
    send(&mut room, &mut cx, &[udp(at(GUEST4), seen(&s), b"x"), udp(other, seen(&s), b"y")]);
    let mut got = [0; 10];
    let (_, from) = s.recv_from(&mut got).unwrap();
    s.send_to(b"answer", from).unwrap();
    assert_eq!(given(&mut room, &mut cx, true).len(), 1);
    let expiry = Token { who: Who::Udp, kind: EXPIRY, index: 0, generation: 0 };
    for (seconds, left) in [(29, 2), (2, 1), (148, 1), (2, 0)] {
        cx.now += Duration::from_secs(seconds);
        room.tick(expiry, &mut cx);
        assert_eq!(room.flows.len(), left, "{seconds}");
    }
    assert!(!room.ticking, "nobody is woken for nothing");
}

/// CVE-2017-13711: a flow that ends while what came for it waits for the guest.
#[test]
fn what_has_come_outlives_its_flow() {
    let s = server("127.0.0.1:0");
    let mut cx = link(|_| {});
    let mut room = room(&mut cx);
    send(&mut room, &mut cx, &[udp(at(GUEST4), seen(&s), b"x")]);
    let (_, from) = s.recv_from(&mut [0; 10]).unwrap();
    (0..12u8).for_each(|i| assert_eq!(s.send_to(&[i; 300], from).unwrap(), 300));
    let (mut events, mut b) = (Vec::new(), Batch::new());
    cx.poll.events(&mut events).unwrap();
    events.into_iter().for_each(|(at, ready)| room.ready(at, ready, &mut cx));
    // Room for three.
    (3..crate::frame::BATCH).for_each(|_| assert!(b.push().is_some()));
    let before = b.len();
    room.give(&mut Bay::default(), &mut b, &mut cx);
    assert_eq!(b.len() - before, 3);
    let mut got: Vec<_> = crate::port::user::tests::frames(&b).split_off(before);
    cx.now += ANSWERED;
    room.tick(Token { who: Who::Udp, kind: EXPIRY, index: 0, generation: 0 }, &mut cx);
    assert_eq!(room.flows.len(), 0);
    // Another one is at its place now.
    send(&mut room, &mut cx, &[udp(at("10.0.2.15:4001"), seen(&s), b"y")]);
    got.extend(given(&mut room, &mut cx, true).into_iter().map(|(_, frame)| frame));
    assert!(got.len() > 3, "something was waiting");
    for (i, frame) in got.iter().enumerate() {
        let frame = (Vnet::default(), frame.clone());
        let (_, bytes) = read(&frame);
        assert_eq!(bytes[8..], [i as u8; 300]);
        assert_eq!(bytes[2..4], 4000u16.to_be_bytes());
    }
    assert!(given(&mut room, &mut cx, false).is_empty(), "what the socket still had is gone with it");
}

fn forwarded(cx: &mut Cx, on: &str, guest: &str) -> (Udp, SocketAddr) {
    let s = UdpSocket::bind(on).unwrap();
    let there = s.local_addr().unwrap();
    let forward = Forward { id: 7, way: Way::Udp, guest: at(guest), range: None };
    (Udp::new(&Plan::qemu(), vec![(forward, s.into())], cx).unwrap(), there)
}

#[test]
fn peers_of_a_forward_are_told_apart() {
    let mut cx = link(|_| {});
    let (mut room, there) = forwarded(&mut cx, "127.0.0.1:0", "10.0.2.15:53");
    let (a, b) = (server("127.0.0.1:0"), server("127.0.0.1:0"));
    for (who, says) in [(&a, b"from a"), (&b, b"from b"), (&a, b"more a")] {
        who.send_to(says, there).unwrap();
        let frames = given(&mut room, &mut cx, true);
        let guest = at("10.0.2.15:53");
        assert_eq!(carried(&frames[0], seen(who), guest), says);
        send(&mut room, &mut cx, &[udp(guest, seen(who), b"answer"), udp(guest, seen(who), b"second")]);
        let mut got = [0; 20];
        assert_eq!(who.recv_from(&mut got).unwrap(), (6, there));
        assert_eq!(&got[..6], b"answer");
        assert_eq!(who.recv(&mut got).unwrap(), 6);
    }
    assert_eq!(room.flows.len(), 2);
    // Two peers that look the same to the guest.
    let twin = server(&format!("127.0.0.2:{}", a.local_addr().unwrap().port()));
    twin.send_to(b"twin", there).unwrap();
    let (ip, bytes) = read(&given(&mut room, &mut cx, true)[0]);
    let shown = SocketAddr::new(ip.src, u16::from_be_bytes([bytes[0], bytes[1]]));
    assert_ne!(shown, seen(&a));
    send(&mut room, &mut cx, &[udp(at("10.0.2.15:53"), shown, b"to the twin")]);
    let mut got = [0; 20];
    assert_eq!(twin.recv(&mut got).unwrap(), 11);
    // What is closed is not heard any more, and its flows are gone.
    assert!(room.has_forward(7));
    room.set_forwards(Vec::new(), &mut cx).unwrap();
    assert!(!room.has_forward(7));
    assert_eq!(room.flows.len(), 0);
}

/// Somebody who calls a forward at two of the host's addresses is answered from each.
#[test]
fn a_forward_answers_from_the_address_that_was_called() {
    let mut cx = link(|_| {});
    let (mut room, there) = forwarded(&mut cx, "0.0.0.0:0", "10.0.2.15:53");
    crate::sys::mmsg::tell_local(room.listeners[&7].fd.as_fd(), false).unwrap();
    let (client, guest) = (server("127.0.0.1:0"), at("10.0.2.15:53"));
    for called in ["127.0.0.1", "127.0.0.2", "127.0.0.1"] {
        let called = SocketAddr::new(called.parse().unwrap(), there.port());
        client.send_to(b"question", called).unwrap();
        let (ip, bytes) = read(&given(&mut room, &mut cx, true)[0]);
        let shown = SocketAddr::new(ip.src, u16::from_be_bytes([bytes[0], bytes[1]]));
        send(&mut room, &mut cx, &[udp(guest, shown, b"answer")]);
        assert_eq!(client.recv_from(&mut [0; 20]).unwrap(), (6, called));
    }
    assert_eq!(room.flows.len(), 2);
}

#[test]
fn who_comes_to_a_forward_has_a_share_as_well() {
    let s = server("127.0.0.1:0");
    let mut cx = link(|p| p.limits.udp = 8);
    let (mut room, there) = forwarded(&mut cx, "127.0.0.1:0", "10.0.2.15:53");
    let from = |port: u16| SocketAddr::new(at(GUEST4).ip(), port);
    (1..=4).for_each(|i| send(&mut room, &mut cx, &[udp(from(i), seen(&s), b"x")]));
    let flood: Vec<UdpSocket> = (0..20).map(|_| server("127.0.0.1:0")).collect();
    for who in &flood {
        cx.now += Duration::from_millis(1);
        who.send_to(b"flood", there).unwrap();
        assert_eq!(given(&mut room, &mut cx, true).len(), 1);
    }
    assert_eq!(room.flows.len(), 8);
    for i in 1..=4 {
        assert!(room.flows.find(&Key { guest: from(i), far: seen(&s) }).is_some(), "{i}: the guest's own");
    }
    let last = Key { guest: at("10.0.2.15:53"), far: seen(&flood[19]) };
    assert!(room.flows.find(&last).is_some());
}

/// A guest that takes nothing, and makes one flow after the other that is answered.
#[test]
fn what_waits_to_be_read_is_bounded() {
    let s = server("127.0.0.1:0");
    let mut cx = link(|p| p.limits.udp = 2);
    let mut room = room(&mut cx);
    let mut events = Vec::new();
    for i in 0..200 {
        send(&mut room, &mut cx, &[udp(SocketAddr::new(at(GUEST4).ip(), 1000 + i), seen(&s), b"x")]);
        let (_, from) = s.recv_from(&mut [0; 10]).unwrap();
        s.send_to(b"answer", from).unwrap();
        cx.poll.events(&mut events).unwrap();
        events.drain(..).for_each(|(at, ready)| room.ready(at, ready, &mut cx));
    }
    assert!(!room.ready.is_empty() && room.ready.len() <= 17, "{}", room.ready.len());
}

#[test]
fn a_super_datagram_of_crumbs_goes_nowhere() {
    let s = server("127.0.0.1:0");
    let mut cx = link(|_| {});
    let mut room = room(&mut cx);
    let vnet = |gso_size| Vnet {
        flags: vnet::F_NEEDS_CSUM,
        gso_type: vnet::GSO_UDP_L4,
        hdr_len: 42,
        gso_size,
        csum_start: 34,
        csum_offset: 6,
    };
    let frame = udp(at(GUEST4), seen(&s), &payload(600));
    send_vnet(&mut room, &mut cx, &[(vnet(1), frame.clone())]);
    assert_eq!((drops(&cx, Reason::Refused), room.flows.len()), (1, 0));
    send_vnet(&mut room, &mut cx, &[(vnet(20), frame)]);
    (0..30).for_each(|_| assert_eq!(s.recv(&mut [0; 100]).unwrap(), 20));
    assert_eq!(cx.stats.drops.iter().sum::<u64>(), 1);
}

#[test]
fn forwards_ask_the_policy_and_change_without_harm_to_others() {
    let mut cx = link(|p| {
        p.policy.rules.push(Rule {
            verdict: Verdict::Refuse,
            direction: Direction::In,
            proto: None,
            at: Where::V4([127, 0, 0, 2].into(), 32),
            ports: None,
        });
    });
    let (mut room, there) = forwarded(&mut cx, "127.0.0.1:0", "10.0.2.15:53");
    server("127.0.0.2:0").send_to(b"no", there).unwrap();
    let a = server("127.0.0.1:0");
    a.send_to(b"yes", there).unwrap();
    let frames = given(&mut room, &mut cx, true);
    assert_eq!(frames.len(), 1);
    assert_eq!(carried(&frames[0], seen(&a), at("10.0.2.15:53")), b"yes");
    assert_eq!(drops(&cx, Reason::Denied), 1);
    let more = UdpSocket::bind("127.0.0.1:0").unwrap();
    let second = more.local_addr().unwrap();
    let keep = Forward { id: 7, way: Way::Udp, guest: at("10.0.2.15:53"), range: None };
    let new = Forward { id: 8, way: Way::Udp, guest: at("10.0.2.15:54"), range: None };
    room.set_forwards(vec![(keep, None), (new, Some(more.into()))], &mut cx).unwrap();
    assert!(room.has_forward(7) && room.has_forward(8));
    assert_eq!(room.flows.len(), 1, "its flows live on");
    a.send_to(b"again", there).unwrap();
    assert_eq!(carried(&given(&mut room, &mut cx, true)[0], seen(&a), at("10.0.2.15:53")), b"again");
    a.send_to(b"other", second).unwrap();
    assert_eq!(carried(&given(&mut room, &mut cx, true)[0], seen(&a), at("10.0.2.15:54")), b"other");
}

/// CVE-2021-3593, CVE-2021-3594 (lengths that lie), CVE-2020-29129, CVE-2020-29130 (shorter than any header), CVE-2014-3640
/// (ports and addresses of zero).
#[test]
fn headers_that_lie_are_counted_and_go_nowhere() {
    for (guest, to) in [(GUEST4, "10.0.2.2:9"), ("[fec0::15]:4000", "[fec0::2]:9")] {
        let (guest, to) = (at(guest), at(to));
        let mut cx = link(|_| {});
        let mut room = room(&mut cx);
        let with = |bytes: &[u8]| packet((guest.ip(), to.ip()), (17, 64), None, bytes);
        let good = udp_bytes(guest, to, b"data");
        let mut bad: Vec<Vec<u8>> = (0..8).map(|n| good[..n].to_vec()).collect();
        for len in [0u16, 7, 13, 0xffff] {
            let mut d = good.clone();
            d[4..6].copy_from_slice(&len.to_be_bytes());
            bad.push(d);
        }
        bad.push(udp_bytes(SocketAddr::new(guest.ip(), 0), to, b""));
        bad.push(udp_bytes(guest, SocketAddr::new(to.ip(), 0), b""));
        let n = bad.len() as u64;
        let frames: Vec<_> = bad.iter().map(|b| with(b)).collect();
        send(&mut room, &mut cx, &frames);
        assert_eq!(drops(&cx, Reason::Malformed), n);
        let nobody: IpAddr = if guest.is_ipv4() { at("0.0.0.0:0").ip() } else { at("[::]:0").ip() };
        send(&mut room, &mut cx, &[packet((nobody, to.ip()), (17, 64), None, &good)]);
        assert_eq!(drops(&cx, Reason::Malformed), n + 1);
        assert_eq!(room.flows.len(), 0);
        assert!(given(&mut room, &mut cx, false).is_empty());
    }
}

#[test]
fn a_guest_that_is_not_known_is_asked_for() {
    let mut plan = Plan::qemu();
    plan.v6 = None;
    let mut cx = crate::port::user::context(&plan).unwrap();
    let (mut room, there) = forwarded(&mut cx, "127.0.0.1:0", "10.0.2.15:53");
    let a = server("127.0.0.1:0");
    a.send_to(b"hello", there).unwrap();
    let mut frames = given(&mut room, &mut cx, true);
    if frames.is_empty() {
        frames = given(&mut room, &mut cx, true);
    }
    assert_eq!(frames[0].1[12..14], [8, 6]);
    cx.net.learn(at(GUEST4).ip(), GUEST);
    a.send_to(b"hello", there).unwrap();
    assert_eq!(carried(&given(&mut room, &mut cx, true)[0], seen(&a), at("10.0.2.15:53")), b"hello");
}

/// Where a datagram longer than the way's MTU may not be cut, the guest hears how long it may be; else it is cut.
#[test]
fn too_long_is_told_or_cut() {
    let s = server("127.0.0.1:0");
    let mut cx = link(|p| p.mtu = 65520);
    let mut room = room(&mut cx);
    // Loopback's MTU is 65536: nothing that a guest sends is longer. It all arrives, whole or not.
    for n in [1300, 9000, 65000] {
        let data = payload(n);
        send(&mut room, &mut cx, &[udp(at(GUEST4), seen(&s), &data)]);
        let mut got = vec![0; 70000];
        let len = s.recv(&mut got).unwrap();
        assert_eq!(got[..len], data);
    }
    assert_eq!(cx.stats.drops, [0; Reason::COUNT]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    /// Whatever lengths and cuts a guest sends in a turn, what arrives is that, in order.
    #[test]
    fn any_lengths_in_any_cuts(list in prop::collection::vec((prop_oneof![0..3usize, 500..1472usize, 990..1010usize], prop::option::of(1..1400u16)), 1..30)) {
        let s = server("127.0.0.1:0");
        let mut cx = link(|_| {});
        let mut room = room(&mut cx);
        let (mut frames, mut want) = (Vec::new(), Vec::new());
        for (i, (n, cut)) in list.iter().enumerate() {
            let data: Vec<u8> = (0..*n).map(|k| (k + i) as u8).collect();
            let cut = cut.filter(|c| usize::from(*c) < *n && n / usize::from(*c) < 60);
            let vnet = cut.map_or_else(Vnet::default, |gso_size| Vnet {
                flags: vnet::F_NEEDS_CSUM, gso_type: vnet::GSO_UDP_L4, hdr_len: 42, gso_size, csum_start: 34, csum_offset: 6,
            });
            match cut {
                Some(c) => want.extend(data.chunks(c.into()).map(<[u8]>::to_vec)),
                None => want.push(data.clone()),
            }
            frames.push((vnet, udp(at(GUEST4), seen(&s), &data)));
        }
        // No more at once than the receiver's buffer surely holds.
        for some in frames.chunks(4) {
            send_vnet(&mut room, &mut cx, some);
            let mut got = [0; 2000];
            let datagrams: usize = some.iter().map(|(v, f)| if v.gso_size > 0 { (f.len() - 42).div_ceil(v.gso_size.into()) } else { 1 }).sum();
            for _ in 0..datagrams {
                let n = s.recv(&mut got).unwrap();
                prop_assert_eq!(&got[..n], &want.remove(0)[..]);
            }
        }
        prop_assert!(want.is_empty());
    }
}

/// What waits is sent because the next datagram is of another manner, and its socket turns out to be of no use: the next
/// one goes by a new socket.
#[test]
fn a_datagram_that_finds_its_flow_lost_goes_by_another() {
    use nix::sys::socket::{setsockopt, sockopt::UdpGsoSegment};
    let (s, guest) = (server("127.0.0.1:0"), at(GUEST4));
    let mut cx = link(|_| {});
    let mut room = room(&mut cx);
    send(&mut room, &mut cx, &[udp(guest, seen(&s), b"first")]);
    let mut got = [0; 2000];
    assert_eq!(s.recv(&mut got).unwrap(), 5);
    let key = Key { guest, far: seen(&s) };
    let index = (0..).find(|i| room.flows.get(*i).is_some_and(|(k, _)| k == key)).unwrap();
    match &room.flows.get(index).unwrap().1.kind {
        // More pieces than the kernel makes of one: EINVAL, as from an address that is gone.
        Kind::Asks { fd } => setsockopt(fd, UdpGsoSegment, &1).unwrap(),
        Kind::Answers { .. } => unreachable!(),
    }
    let next = packet((guest.ip(), seen(&s).ip()), (17, 9), None, &udp_bytes(guest, seen(&s), b"second"));
    send(&mut room, &mut cx, &[udp(guest, seen(&s), &payload(1400)), next]);
    let n = s.recv(&mut got).unwrap();
    assert_eq!(&got[..n], b"second");
    assert_eq!(room.flows.len(), 1);
}
