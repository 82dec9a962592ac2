//! Echo requests: those that we answer, those that the kernel sends, and those that mean ill. Numbers of CVEs are of other
//! user networks that failed in the way that a test has.

use super::*;
use crate::port::user::guest::{drops, given, link, packet, ping, ping_bytes, read, send};

fn room(cx: &Cx) -> Icmp {
    Icmp::new(&Plan::qemu(), cx).unwrap()
}

fn payload(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 5 + i / 253) as u8).collect()
}

#[test]
fn our_addresses_answer() {
    let link_local = link(|_| {}).net.link_local.to_string();
    for (guest, host) in [
        ("10.0.2.15", "10.0.2.2"),
        ("10.0.2.15", "10.0.2.3"),
        ("fec0::15", "fec0::2"),
        ("fec0::15", "fec0::3"),
        ("fec0::15", &link_local),
    ] {
        let mut cx = link(|_| {});
        let mut room = room(&cx);
        for n in [0, 56, 1400] {
            // A gateway does not count the hops of what is for itself.
            send(&mut room, &mut cx, &[ping((guest, host), 1, 0xbeef, &payload(n))]);
            let (ip, icmp) = read(&given(&mut room, &mut cx, false)[0]);
            assert_eq!((ip.src.to_string(), ip.dst.to_string()), (host.to_owned(), guest.to_owned()));
            assert_eq!(icmp[..2], [if ip.src.is_ipv4() { 0 } else { 129 }, 0]);
            assert_eq!(icmp[4..8], [0xbe, 0xef, 0, 7]);
            assert_eq!(icmp[8..], payload(n));
        }
        assert_eq!(cx.stats.drops, [0; Reason::COUNT]);
    }
}

#[test]
fn a_long_one_is_answered_in_fragments() {
    for (guest, host, most) in [("10.0.2.15", "10.0.2.2", 65507), ("fec0::15", "fec0::2", 65527)] {
        let mut cx = link(|p| p.mtu = 1500);
        let mut room = room(&cx);
        for n in [1473, most] {
            send(&mut room, &mut cx, &[ping((guest, host), 64, 1, &payload(n))]);
            let frames = given(&mut room, &mut cx, false);
            assert!(frames.iter().all(|f| f.1.len() <= 1514));
            let mut all = Vec::new();
            for f in &frames {
                let (ip, bytes) = read(f);
                assert_eq!(ip.piece.unwrap().offset as usize, all.len());
                all.extend(bytes);
            }
            assert_eq!(all.len(), n + 8);
            assert_eq!(all[8..], payload(n));
        }
    }
}

#[test]
fn a_flood_is_answered_as_far_as_there_is_room() {
    let mut cx = link(|_| {});
    let mut room = room(&cx);
    let flood: Vec<_> = (0..60).map(|i| ping(("10.0.2.15", "10.0.2.2"), 64, i, b"x")).collect();
    for _ in 0..5 {
        send(&mut room, &mut cx, &flood);
        assert_eq!(given(&mut room, &mut cx, false).len(), SLOTS as usize);
        assert!(!room.has_more());
        // Their memory is free once those frames are gone: when others are asked for.
        assert!(given(&mut room, &mut cx, false).is_empty());
    }
    assert_eq!(drops(&cx, Reason::Full), 5 * (60 - u64::from(SLOTS)));
}

/// Thousands of identifiers: as many sockets as the limit says, and the quiet go first.
#[test]
fn echo_flows_are_no_more_than_the_limit() {
    let mut cx = link(|p| p.limits.pings = 8);
    let mut room = room(&cx);
    for id in 0..2000 {
        cx.now += Duration::from_millis(1);
        send(&mut room, &mut cx, &[ping(("10.0.2.15", "127.0.0.1"), 64, id, b"x")]);
        // Answers, or that it may not.
        given(&mut room, &mut cx, false);
    }
    let most = if allowed().0 { 8 } else { 0 };
    assert_eq!(room.flows.len(), most);
    assert_eq!(cx.stats.evicted, if most == 0 { 0 } else { 1992 });
}

/// CVE-2020-10756 (a length that lies about an echo request's), CVE-2019-9824 and others that answered with what was in
/// memory; and messages that a guest has no business to send.
#[test]
fn what_is_no_request_is_not_answered() {
    let mut cx = link(|_| {});
    let mut room = room(&cx);
    let mut bad = Vec::new();
    for (guest, host) in [("10.0.2.15", "10.0.2.2"), ("fec0::15", "fec0::2")] {
        let (guest, host): (IpAddr, IpAddr) = (guest.parse().unwrap(), host.parse().unwrap());
        let good = ping_bytes(guest, 1, b"data");
        let proto = if guest.is_ipv4() { 1 } else { 58 };
        for n in 0..8 {
            bad.push(packet((guest, host), (proto, 64), None, &good[..n]));
        }
        for kind in [0, 3, 5, 8, 11, 13, 128, 129, 160] {
            let mut m = good.clone();
            if m[0] == kind {
                m[1] = 1;
            }
            m[0] = kind;
            bad.push(packet((guest, host), (proto, 64), None, &m));
        }
        // An IP length beyond the frame's.
        let mut long = packet((guest, host), (proto, 64), None, &good);
        let field = if guest.is_ipv4() { 16 } else { 18 };
        long[field..field + 2].copy_from_slice(&1400u16.to_be_bytes());
        bad.push(long);
    }
    for many in ["10.0.2.255", "255.255.255.255", "224.0.0.1"] {
        bad.push(ping(("10.0.2.15", many), 64, 1, b"data"));
    }
    bad.push(ping(("fec0::15", "ff02::1"), 64, 1, b"data"));
    for some in bad.chunks(60) {
        send(&mut room, &mut cx, some);
    }
    assert!(given(&mut room, &mut cx, false).is_empty());
    assert_eq!(drops(&cx, Reason::Malformed) + drops(&cx, Reason::Unknown), bad.len() as u64);
    assert_eq!(room.flows.len(), 0);
}

#[test]
fn hops_policy_and_nowhere() {
    let mut cx = link(|_| {});
    let mut room = room(&cx);
    let mut answer = |to: &str, ttl, cx: &mut Cx| {
        send(&mut room, cx, &[ping(("10.0.2.15", to), ttl, 1, b"x")]);
        given(&mut room, cx, false).first().map(|f| {
            let (ip, icmp) = read(f);
            (ip.src.to_string(), icmp[0], icmp[1])
        })
    };
    let gateway = "10.0.2.2".to_owned();
    assert_eq!(answer("192.0.2.9", 1, &mut cx), Some((gateway.clone(), 11, 0)));
    assert_eq!(answer("10.0.2.99", 64, &mut cx), Some((gateway.clone(), 3, 1)));
    cx.policy.otherwise = Verdict::Refuse;
    assert_eq!(answer("192.0.2.9", 64, &mut cx), Some((gateway, 3, 13)));
    cx.policy.otherwise = Verdict::Drop;
    assert_eq!(answer("192.0.2.9", 64, &mut cx), None);
    cx.policy.otherwise = Verdict::Pass;
    cx.restrict = true;
    assert_eq!(answer("192.0.2.9", 64, &mut cx), None);
}

/// By the kernel where it gives us sockets; where it does not, the guest hears that it may not.
#[test]
fn others_are_asked_by_the_kernel() {
    let mut cx = link(|_| {});
    let mut room = room(&cx);
    let (four, six) = allowed();
    for (guest, to, may) in [("10.0.2.15", "127.0.0.1", four), ("fec0::15", "::1", six)] {
        for (id, n) in [(77, 56), (78, 1000), (77, 0)] {
            send(&mut room, &mut cx, &[ping((guest, to), 64, id, &payload(n))]);
            let frames = given(&mut room, &mut cx, true);
            let (ip, icmp) = read(&frames[0]);
            if may {
                assert_eq!(ip.src.to_string(), to);
                assert_eq!(icmp[..2], [if ip.src.is_ipv4() { 0 } else { 129 }, 0]);
                assert_eq!(
                    (&icmp[4..6], &icmp[6..8], &icmp[8..]),
                    (&[0, id as u8][..], &[0, 7][..], &payload(n)[..])
                );
            } else {
                assert_eq!(icmp[..2], if ip.src.is_ipv4() { [3, 13] } else { [1, 1] });
                assert_eq!(room.flows.len(), 0);
            }
        }
    }
}
