//! The port af-xdp: `vx` is the port's end of a veth pair, `vn` the network's.

use std::time::{Duration, Instant};

use netreeve_dataplane::port::{Port, xsk};
use netreeve_dataplane::stats::Reason;
use netreeve_shared::request::XdpMode;
use netreeve_tests::netns::{Netns, veth};
use netreeve_tests::peers::ping_from;

use crate::support::*;

const MODES: [XdpMode; 2] = [XdpMode::Native, XdpMode::Skb];

fn pair(options: &str) -> (Netns, Netns) {
    let (x, n) = (Netns::new("x").unwrap(), Netns::new("n").unwrap());
    // Nothing but what the test sends takes a place in a ring.
    n.sh("echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6").unwrap();
    veth(&x, "vx", &n, "vn").unwrap();
    if !options.is_empty() {
        x.sh(&format!("ip link set vx {options}")).unwrap();
        n.sh(&format!("ip link set vn {options}")).unwrap();
    }
    (x, n)
}

/// One turn of an echo: what was received goes back with its addresses swapped. Says how many.
fn echo(p: &mut dyn Port, hands: &mut Hands) -> usize {
    hands.recv(p);
    for f in hands.batch.frames_mut() {
        let (to, rest) = f.head_mut().split_at_mut(6);
        to.swap_with_slice(&mut rest[..6]);
    }
    let taken = p.send(&hands.batch).unwrap();
    p.release(&hands.batch, taken);
    taken
}

#[test]
fn frames_are_echoed_whole_and_in_order() {
    for (mode, options, largest) in [
        (MODES[0], "", 1514),
        (MODES[1], "", 1514),
        (MODES[0], "mtu 9000", 9014),
        (MODES[1], "mtu 9000", 9014),
    ] {
        let (x, n) = pair(options);
        let (xdp, mut p) = Xdp::make(&x, "vx", mode, 256);
        assert_eq!(xdp.plan.multi_buffer, largest > 1792 || mode == XdpMode::Skb);
        let far = Far::new(&n, "vn");
        let mut hands = Hands::new();
        let mut next = 0;
        for round in 0..40 {
            let lens: Vec<usize> = (0..20).map(|i| 60 + (round * 20 + i) * (largest - 60) / 799).collect();
            for (i, len) in lens.iter().enumerate() {
                far.send(&frame(next + i as u32, *len));
            }
            let (mut back, until) = (Vec::new(), Instant::now() + Duration::from_secs(3));
            while back.len() < lens.len() && Instant::now() < until {
                while echo(p.as_mut(), &mut hands) > 0 {}
                back.extend(far.receive());
            }
            for (i, (f, len)) in back.iter().zip(&lens).enumerate() {
                let sent = frame(next + i as u32, *len);
                assert_eq!((&f[6..12], f.len()), (&sent[..6], *len));
                assert_eq!(f[12..], sent[12..]);
            }
            assert_eq!(back.len(), lens.len(), "{mode:?} {options} round {round}");
            next += 20;
        }
        assert_eq!(p.stats().drops, [0; Reason::COUNT]);
        assert!(p.stats().rx_frames >= 800 && p.stats().tx_frames >= 800);
    }
}

#[test]
fn a_stack_on_a_tap_talks_through_af_xdp_to_a_stack_on_a_veth() {
    for (mode, more) in [(XdpMode::Native, ""), (XdpMode::Skb, ""), (XdpMode::Native, "mtu 9000")] {
        let (x, n) = pair(more);
        let guest = Netns::new("guest").unwrap();
        let (_xdp, port) = Xdp::make(&x, "vx", mode, 1024);
        let lane = run(port, tap_port(&guest, "t0", true));
        n.sh("ip addr add 10.9.0.1/24 dev vn").unwrap();
        guest.sh("ip addr add 10.9.0.2/24 dev t0").unwrap();
        assert_eq!(ping_from(&n, "-c 3 -i 0.1 -W 1 10.9.0.2").unwrap().received, 3);
        // The veth's stack leaves checksums undone, and in skb mode segmentation; the guest's stack leaves segmentation to us.
        let there = iperf(&n, &guest, "10.9.0.2", "");
        let back = iperf(&n, &guest, "10.9.0.2", "-R");
        let udp = iperf(&n, &guest, "10.9.0.2", "-u -b 50M");
        let (nic, tap) = lane.end();
        eprintln!(
            "af-xdp {mode:?} {more}: {:.2} Gbit/s in, {:.2} out, UDP {:.1} Mbit/s, {} frames in became {}",
            there / 1e9,
            back / 1e9,
            udp / 1e6,
            nic.rx_frames,
            tap.tx_frames
        );
        assert!(tap.tx_frames < nic.rx_frames, "segments are joined for a tap that takes super-frames");
        assert!(udp > 45e6);
        // The kernel's counters of loss are of a ring that was full for a moment; ours must be none.
        let ours = |s: &netreeve_dataplane::stats::Stats| {
            Reason::ALL
                .iter()
                .filter(|(r, _)| *r != Reason::Full)
                .map(|(r, _)| s.drops[*r as usize])
                .sum::<u64>()
        };
        assert_eq!((ours(&nic), ours(&tap)), (0, 0), "{nic:?} {tap:?}");
    }
}

#[test]
fn a_killed_dataplane_is_succeeded_without_loss_or_leak() {
    for mode in MODES {
        let (x, n) = pair("");
        let (xdp, first) = Xdp::make(&x, "vx", mode, 64);
        assert!(
            xsk::open(&xdp.plan, copies(&xdp.fds)).is_err(),
            "used descriptors are taken only by who says so"
        );
        let far = Far::new(&n, "vn");
        let mut hands = Hands::new();
        let (mut sent, mut seen) = (0, std::collections::BTreeSet::new());
        let mut p = first;
        for round in 0..300_u32 {
            for _ in 0..round % 7 {
                far.send(&frame(sent, 60));
                sent += 1;
            }
            match round % 5 {
                0 => while echo(p.as_mut(), &mut hands) > 0 {},
                // Killed with frames in hand.
                1 => {
                    hands.recv(p.as_mut());
                    std::mem::forget(std::mem::replace(&mut p, xdp.resume()));
                }
                // Killed with frames sent, but not released: these are echoed twice.
                2 => {
                    hands.recv(p.as_mut());
                    for f in hands.batch.frames_mut() {
                        let (to, rest) = f.head_mut().split_at_mut(6);
                        to.swap_with_slice(&mut rest[..6]);
                    }
                    p.send(&hands.batch).unwrap();
                    std::mem::forget(std::mem::replace(&mut p, xdp.resume()));
                }
                // Killed while nothing is done.
                3 => std::mem::forget(std::mem::replace(&mut p, xdp.resume())),
                _ => {}
            }
            while let Some(f) = if round % 5 == 0 { far.receive() } else { None } {
                seen.insert(number(&f));
            }
        }
        let until = Instant::now() + Duration::from_secs(3);
        while (seen.len() as u32) < sent && Instant::now() < until {
            echo(p.as_mut(), &mut hands);
            seen.extend(far.receive().map(|f| number(&f)));
        }
        assert_eq!(seen.len() as u32, sent, "{mode:?}");
        // The rings are as deep as on the first day: 64 frames wait, and 64 can be sent at once.
        for i in 0..64 {
            far.send(&frame(1_000_000 + i, 60));
        }
        let (mut got, until) = (Vec::new(), Instant::now() + Duration::from_secs(1));
        while got.len() < 64 && Instant::now() < until {
            got = hands.recv(p.as_mut());
        }
        assert_eq!(
            got.iter().map(|f| number(f)).collect::<Vec<_>>(),
            (1_000_000..1_000_064).collect::<Vec<_>>()
        );
        assert_eq!(p.send(&hands.batch).unwrap(), 64);
    }
}

#[test]
fn more_than_the_ring_holds_is_lost_and_counted_by_the_kernel() {
    let (x, n) = pair("");
    let (_xdp, mut p) = Xdp::make(&x, "vx", XdpMode::Native, 64);
    let far = Far::new(&n, "vn");
    for i in 0..100 {
        far.send(&frame(i, 60));
    }
    let until = Instant::now() + Duration::from_secs(2);
    while p.stats().drops[Reason::Full as usize] < 36 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(p.stats().drops[Reason::Full as usize], 36);
    let mut hands = Hands::new();
    let got = hands.recv(p.as_mut());
    assert_eq!(got.len(), 64);
    assert!(got.iter().enumerate().all(|(i, f)| number(f) == i as u32));
}

#[test]
fn a_link_that_is_down_drops_and_comes_back_and_a_deleted_one_is_the_end() {
    let (x, n) = pair("");
    let (_xdp, mut p) = Xdp::make(&x, "vx", XdpMode::Native, 64);
    let mut hands = Hands::new();
    let far = Far::new(&n, "vn");
    assert_eq!(p.send(hands.fill(&[frame(1, 60), frame(1, 60)[..10].to_vec(), frame(1, 3000)])).unwrap(), 3);
    assert_eq!(p.stats().drops[Reason::Runt as usize], 1);
    assert_eq!(p.stats().drops[Reason::Oversize as usize], 1);
    x.sh("ip link set vx down").unwrap();
    for _ in 0..50 {
        assert_eq!(p.send(hands.fill(&vec![frame(2, 60); 10])).unwrap(), 10, "it must not stall");
    }
    assert!(p.stats().drops[Reason::PeerDown as usize] >= 480);
    x.sh("ip link set vx up").unwrap();
    let before = n.counter("vn", "rx_packets").unwrap();
    // The first may find the link not yet running.
    for _ in 0..20 {
        assert_eq!(p.send(hands.fill(&[frame(3, 60)])).unwrap(), 1);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(n.counter("vn", "rx_packets").unwrap() >= before + 10);
    far.send(&frame(4, 60));
    x.sh("ip link del vx").unwrap();
    let until = Instant::now() + Duration::from_secs(2);
    while p.send(hands.fill(&[frame(5, 60)])).is_ok() {
        assert!(Instant::now() < until, "sending to nowhere must end");
    }
}
