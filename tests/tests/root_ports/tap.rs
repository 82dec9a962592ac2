//! The port tap.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netreeve_dataplane::frame::MAX_SUPER;
use netreeve_dataplane::port::{Offloads, Port, Queues, offload_bits, tap};
use netreeve_dataplane::stats::Reason;
use netreeve_shared::fdkind;
use netreeve_tests::netns::{Netns, veth};
use netreeve_tests::peers::ping_from;
use netreeve_tests::sys;

use crate::support::*;

#[test]
fn two_hosts_talk_over_two_taps_with_every_offload() {
    let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
    let lane = run(tap_port(&a, "ta", true), tap_port(&b, "tb", true));
    a.sh("ip addr add 10.9.0.1/24 dev ta; ip addr add fd09::1/64 dev ta").unwrap();
    b.sh("ip addr add 10.9.0.2/24 dev tb; ip addr add fd09::2/64 dev tb").unwrap();
    assert_eq!(ping_from(&a, "-c 3 -i 0.1 -W 1 10.9.0.2").unwrap().received, 3);
    assert_eq!(ping_from(&a, "-c 3 -i 0.1 -W 1 -s 60000 fd09::2").unwrap().received, 3);
    let there = iperf(&a, &b, "10.9.0.2", "");
    let back = iperf(&a, &b, "fd09::2", "-R");
    let (ta, tb) = lane.end();
    eprintln!("tap to tap: {:.2} and {:.2} Gbit/s", there / 1e9, back / 1e9);
    // Super-frames passed whole: far more bytes to a frame than an MTU.
    let data = ta.rx_bytes / ta.rx_frames;
    assert!(data > 4000, "{data} bytes a frame");
    assert_eq!((ta.drops, tb.drops), ([0; Reason::COUNT], [0; Reason::COUNT]));
    assert_eq!((ta.rx_frames, tb.rx_frames), (tb.tx_frames, ta.tx_frames));
}

#[test]
fn a_tap_without_header_is_served_in_software() {
    let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
    let lane = run(tap_port(&a, "ta", true), tap_port(&b, "tb", false));
    a.sh("ip addr add 10.9.0.1/24 dev ta").unwrap();
    b.sh("ip addr add 10.9.0.2/24 dev tb").unwrap();
    let there = iperf(&a, &b, "10.9.0.2", "");
    let back = iperf(&a, &b, "10.9.0.2", "-R");
    let (ta, tb) = lane.end();
    eprintln!("tap to plain tap: {:.2} and {:.2} Gbit/s", there / 1e9, back / 1e9);
    assert_eq!((ta.drops, tb.drops), ([0; Reason::COUNT], [0; Reason::COUNT]));
}

#[test]
fn frames_that_the_kernel_refuses_are_counted_and_a_deleted_device_is_the_end() {
    let ns = Netns::new("odd").unwrap();
    let mut p = tap_port(&ns, "t0", true);
    let mut hands = Hands::new();
    let shortest = frame(1, 18);
    let b = hands.fill(&[shortest[..13].to_vec(), shortest.clone(), frame(2, 1514)]);
    // A checksum's place beyond the frame.
    b.frames_mut()[1].vnet.flags = 1;
    b.frames_mut()[1].vnet.csum_start = 400;
    assert_eq!(p.send(b).unwrap(), 3);
    assert_eq!(p.stats().drops[Reason::Refused as usize], 2);
    assert_eq!((p.stats().tx_frames, p.stats().tx_bytes), (1, 1514));
    ns.sh("ip link set t0 down").unwrap();
    assert_eq!(p.send(hands.fill(&[frame(3, 60)])).unwrap(), 1);
    assert_eq!(p.stats().drops[Reason::Refused as usize], 3);
    ns.sh("ip link set t0 up").unwrap();
    assert_eq!(p.send(hands.fill(&[frame(4, 60)])).unwrap(), 1);
    assert_eq!(p.stats().tx_frames, 2);
    ns.sh("ip link del t0").unwrap();
    assert!(p.send(hands.fill(&[frame(5, 60)])).is_err());
    hands.fill(&[]);
    let pool = netreeve_dataplane::mem::Pool::new(1 << 17).unwrap();
    pool.lend(&mut hands.batch.landing);
    assert!(p.recv(&mut hands.batch).is_err());
}

#[test]
fn what_is_read_is_what_was_sent_and_nothing_is_read_without_room() {
    let ns = Netns::new("read").unwrap();
    let mut p = tap_port(&ns, "t0", true);
    let far = Far::new(&ns, "t0");
    let mut hands = Hands::new();
    let _ = hands.recv(p.as_mut());
    let sent: Vec<_> = (0..100).map(|i| frame(i, 60 + 14 * i as usize)).collect();
    sent.iter().for_each(|f| far.send(f));
    let mut got = Vec::new();
    while got.len() < 100 {
        let more = hands.recv_ours(p.as_mut());
        assert!(!more.is_empty(), "{} of 100", got.len());
        got.extend(more);
    }
    assert_eq!(got, sent);
    // What comes many at a time is read into the port's own memory; a turn that finds nothing ends that.
    assert!(hands.recv(p.as_mut()).is_empty());
    // One byte less than the largest frame that may come: it stays where it is.
    far.send(&frame(200, 100));
    let mem = netreeve_dataplane::mem::Buf::new(4096).unwrap();
    hands.batch.clear();
    hands.batch.landing.open_pool(mem.seg(0, 1517));
    p.recv(&mut hands.batch).unwrap();
    assert!(hands.batch.is_empty() && hands.batch.landing.is_stopped());
    hands.batch.clear();
    hands.batch.landing.open(12, true);
    for i in 0..16 {
        hands.batch.landing.offer(&[mem.seg(i * 100, 50), mem.seg(i * 100 + 50, 50)], i);
    }
    p.recv(&mut hands.batch).unwrap();
    let ours = hands.batch.frames().iter().find(|f| f.len == 100).expect("it was kept");
    assert_eq!(bytes(&hands.batch, ours), frame(200, 100));
}

#[test]
fn frames_longer_than_the_plan_says_are_dropped_whole() {
    let ns = Netns::new("long").unwrap();
    let (grant, fds) = tap_grant(&ns, "t0", 1, true);
    let plan = tap::Plan { queues: 1, vnet_header: grant.vnet_header, mtu: 1000 };
    let mut p = one(tap::open(&plan, fds).unwrap());
    let far = Far::new(&ns, "t0");
    for len in [1018, 1019, 1514] {
        far.send(&frame(len, len as usize));
    }
    let got = Hands::new().recv_ours(p.as_mut());
    assert_eq!(got, [frame(1018, 1018)]);
    let until = Instant::now() + Duration::from_secs(1);
    while p.stats().drops[Reason::Oversize as usize] < 2 && Instant::now() < until {
        Hands::new().recv(p.as_mut());
    }
    assert_eq!(p.stats().drops[Reason::Oversize as usize], 2);
}

#[test]
fn a_tap_that_bounds_what_is_on_its_way_makes_frames_wait_and_loses_none() {
    let (ns, far) = (Netns::new("bound").unwrap(), Netns::new("slow").unwrap());
    veth(&ns, "va", &far, "vb").unwrap();
    let (grant, fds) = tap_grant(&ns, "t0", 1, true);
    sys::bound_tap(&fds[0], 30_000).unwrap();
    ns.sh("ip link add br0 type bridge; ip link set t0 master br0; ip link set va master br0; ip link set br0 up
           tc qdisc add dev va root tbf rate 20mbit burst 4kb limit 1mb")
        .unwrap();
    let seen = Far::new(&far, "vb");
    let plan = tap::Plan { queues: 1, vnet_header: grant.vnet_header, mtu: grant.mtu };
    let mut p = one(tap::open(&plan, fds).unwrap());
    let there = |n: u32| {
        let mut f = frame(n, 500);
        f[..6].copy_from_slice(&[2, 0, 0, 0, 0, 0x78]);
        f
    };
    let (all, mut hands, mut next, mut waits) = (2000, Hands::new(), 0, 0);
    let until = Instant::now() + Duration::from_secs(20);
    while next < all {
        let some: Vec<_> = (next..all.min(next + 64)).map(there).collect();
        let n = p.send(hands.fill(&some)).unwrap();
        waits += u32::from(n < some.len());
        next += n as u32;
        assert!(Instant::now() < until, "{next} of {all}");
    }
    assert!(waits > 0, "the bound was met");
    assert_eq!(p.stats().drops, [0; Reason::COUNT]);
    for n in 0..all {
        assert_eq!(number(&seen.next()), n);
    }
}

#[test]
fn queues_and_offloads() {
    let ns = Netns::new("mq").unwrap();
    let (grant, fds) = tap_grant(&ns, "t0", 4, true);
    let plan = tap::Plan { queues: 4, vnet_header: grant.vnet_header, mtu: grant.mtu };
    let wrong = tap::Plan { queues: 3, ..plan.clone() };
    assert!(tap::open(&wrong, copies(&fds)).is_err());
    assert!(tap::open(&tap::Plan { vnet_header: 0, ..plan.clone() }, copies(&fds)).is_err());
    let mut queues = tap::open(&plan, fds).unwrap();
    assert_eq!(queues.len(), 4);
    let features = |which: &str| {
        let all = ns.sh("ethtool -k t0").unwrap();
        all.lines().find(|l| l.trim().starts_with(which)).unwrap().contains(": on")
    };
    assert!(!features("tcp-segmentation-offload") && !features("tx-checksumming"));
    for q in &mut queues {
        assert_eq!((q.traits().gives, q.traits().takes), (Offloads::NONE, Offloads::ALL));
        q.peer_takes(Offloads(offload_bits::CSUM | offload_bits::TSO4));
        assert_eq!(q.traits().gives, Offloads(offload_bits::CSUM | offload_bits::TSO4));
    }
    assert!(
        features("tx-tcp-segmentation") && !features("tx-tcp6-segmentation") && features("tx-checksumming")
    );
    queues[0].peer_takes(Offloads::NONE);
    assert!(!features("tcp-segmentation-offload"));
    // Whether the host sees a carrier is the host's business, not the guest's.
    queues[0].peer_link(false);
    assert!(ns.sh("ip link show t0").unwrap().contains("LOWER_UP"));
    assert!(queues[0].traits().max_frame < MAX_SUPER);
}

/// Datagrams of a hundred flows leave by a tap: how many come by each of its queues.
fn spread(ns: &Netns, queues: &mut Queues) -> Vec<usize> {
    let mut hands = Hands::new();
    queues.iter_mut().for_each(|q| while !hands.recv(q.as_mut()).is_empty() {});
    ns.enter(|| {
        for _ in 0..100 {
            let s = std::net::UdpSocket::bind("10.9.0.1:0").unwrap();
            s.send_to(b"a flow", "10.9.0.2:9").unwrap();
        }
    })
    .unwrap();
    let mut count = |q: &mut dyn Port| {
        let ours = |f: &Vec<u8>| f.ends_with(b"a flow");
        std::iter::from_fn(|| Some(hands.recv(q)).filter(|all| !all.is_empty()))
            .flatten()
            .filter(ours)
            .count()
    };
    queues.iter_mut().map(|q| count(q.as_mut())).collect()
}

#[test]
fn what_the_peer_does_not_use_is_parked() {
    let ns = Netns::new("mq").unwrap();
    let (grant, fds) = tap_grant(&ns, "t0", 4, true);
    ns.sh("ip addr add 10.9.0.1/24 dev t0; ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev t0").unwrap();
    let plan = tap::Plan { queues: 4, vnet_header: grant.vnet_header, mtu: grant.mtu };
    let mut queues = tap::open(&plan, copies(&fds)).unwrap();
    let all = |n: &[usize]| n.iter().sum::<usize>() == 100 && n.iter().all(|n| *n > 5);
    let seen = spread(&ns, &mut queues);
    assert!(all(&seen), "{seen:?}");
    for used in [2, 1, 3, 4, 1] {
        for (i, q) in queues.iter_mut().enumerate() {
            assert!(q.traits().parks);
            q.peer_spare(i >= used);
        }
        let seen = spread(&ns, &mut queues);
        assert!(all(&seen[..used]) && seen[used..].iter().all(|n| *n == 0), "{used} used: {seen:?}");
        let parked = fds.iter().map(|fd| fdkind::tap(fd.as_fd()).unwrap().flags & 0x400 != 0);
        assert!(parked.eq((0..4).map(|i| i >= used)));
    }
    // A dataplane that dies leaves them parked; the next one begins anew.
    drop(queues);
    let mut queues = tap::open(&plan, copies(&fds)).unwrap();
    let seen = spread(&ns, &mut queues);
    assert!(all(&seen), "{seen:?}");
    // One queue has nothing to be parked for.
    let (grant, fds) = tap_grant(&ns, "t1", 1, true);
    let plan = tap::Plan { queues: 1, vnet_header: grant.vnet_header, mtu: grant.mtu };
    let mut one = one(tap::open(&plan, fds).unwrap());
    one.peer_spare(true);
    assert!(!one.traits().parks);
}

/// A ring of reads and writes is among our descriptors.
fn rings() -> usize {
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    all.flatten()
        .filter(|e| std::fs::read_link(e.path()).is_ok_and(|l| l.ends_with("anon_inode:[io_uring]")))
        .count()
}

#[test]
fn many_frames_at_a_time_are_whole_and_in_order() {
    let ns = Netns::new("burst").unwrap();
    let before = rings();
    let mut p = tap_port(&ns, "t0", true);
    if rings() == before {
        eprintln!("no io_uring here: frames are read and written one by one");
    }
    let far = Far::new(&ns, "t0");
    let mut hands = Hands::new();
    let _ = hands.recv(p.as_mut());
    // Out: of all lengths, those that the kernel refuses among them.
    for round in 0..10 {
        let all: Vec<_> = (0..64).map(|i| frame(round * 64 + i, 60 + (i as usize * 23) % 1455)).collect();
        let mut sent = all.clone();
        sent.iter_mut().for_each(|f| f[..6].fill(2));
        let b = hands.fill(&sent);
        for bad in [0, 31, 63] {
            b.frames_mut()[bad].vnet =
                netreeve_shared::vnet::Vnet { flags: 1, csum_start: 4000, ..Default::default() };
        }
        b.frames_mut()[5].dropped = true;
        assert_eq!(p.send(b).unwrap(), 64);
        for (i, f) in sent.iter().enumerate().filter(|(i, _)| ![0, 5, 31, 63].contains(i)) {
            assert_eq!(far.next(), *f, "round {round}, frame {i}");
        }
        assert_eq!(p.stats().drops[Reason::Refused as usize], 3 * (u64::from(round) + 1));
    }
    assert_eq!(p.stats().tx_frames, 600);
    // In: short ones by the hundred, and long ones in between.
    let mut next = 0;
    for round in 0..20 {
        let sent: Vec<_> = (0..90)
            .map(|i| frame(next + i, if (round + i) % 40 == 39 { 1514 } else { 60 + i as usize }))
            .collect();
        sent.iter().for_each(|f| far.send(f));
        let mut got = Vec::new();
        while got.len() < 90 {
            let more = hands.recv_ours(p.as_mut());
            assert!(!more.is_empty(), "{} of 90", got.len());
            got.extend(more);
        }
        assert!(got == sent, "round {round}");
        next += 90;
    }
    assert_eq!(p.stats().drops[Reason::Oversize as usize], 0);
    ns.sh("ip link set t0 down").unwrap();
    let many: Vec<_> = (0..64).map(|i| frame(i, 60)).collect();
    assert_eq!(p.send(hands.fill(&many)).unwrap(), 64);
    assert_eq!(p.stats().drops[Reason::Refused as usize], 30 + 64);
    ns.sh("ip link del t0").unwrap();
    assert!(p.send(hands.fill(&many)).is_err());
}
