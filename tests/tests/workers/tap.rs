//! A multi-queue tap on a bridge, and a far side that sees what comes through.

use crate::{BATCH, PAIRS, Seen, frame, locked_in, read, rings, sleeps};
use netreeve_tests::bench::driver::{Driver, Make};
use netreeve_tests::leftovers::Ground;
use netreeve_tests::scene::{BRIDGE, FAR, PATIENCE, Reeve, Road, Scene, USER};
use netreeve_tests::sys::packet_socket;
use nix::net::if_::if_nametoindex;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::unistd::Pid;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

struct House {
    reeve: Reeve,
    scene: Scene,
    ground: Ground,
}

fn house(device: &str, options: &[&str]) -> House {
    let ground = Ground::survey().unwrap();
    let mut scene = Scene::set(Road::Bridge).unwrap();
    scene.help(&format!("allow uid:{USER} bridge {BRIDGE} queues={PAIRS}\n")).unwrap();
    let netdev = format!("{},queues={PAIRS}", scene.netdev("n0"));
    let reeve = scene.run(&[&netdev], &[device], options).unwrap();
    House { reeve, scene, ground }
}

impl House {
    fn driver(&self) -> Driver {
        Driver::connect_pairs(&self.scene.path("vm.sock"), Make { rx: 256, ..Make::usual(false) }, PAIRS)
            .unwrap()
    }

    /// Sends on the far interface, and hears what there is in its namespace.
    fn far_sockets(&self) -> (OwnedFd, OwnedFd) {
        let hear = || {
            let s =
                socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_NONBLOCK, SockProtocol::EthAll);
            let s = s.unwrap();
            setsockopt(&s, sockopt::RcvBufForce, &(16 << 20)).unwrap();
            s
        };
        self.scene.far.enter(|| (packet_socket(if_nametoindex(FAR).unwrap()).unwrap(), hear())).unwrap()
    }

    fn end(mut self) {
        let end = self.reeve.proc.terminate(PATIENCE).unwrap();
        assert_eq!(end.code, 0, "{}", end.text);
        drop((self.reeve, self.scene));
        assert_eq!(self.ground.left(Duration::from_secs(3)).unwrap(), Vec::<String>::new());
    }
}

/// Takes what has arrived at the far side.
fn arrived(s: &OwnedFd, seen: &mut Seen) {
    let mut raw = [0; 256];
    while let Ok(n) = recv(s.as_raw_fd(), &mut raw, MsgFlags::MSG_DONTWAIT) {
        if let Some((flow, seq)) = read(&raw[..n]).filter(|_| raw[5] == 1) {
            seen.take(flow, seq, 0);
        }
    }
}

#[test]
fn four_queues_keep_order_through_kills() {
    let house = house(&format!("vhost-user,netdev=n0,path=vm.sock,queues={PAIRS}"), &["--workers", "4"]);
    let (far, ear) = house.far_sockets();
    let mut d = house.driver();
    locked_in(house.reeve.dataplane().unwrap());
    let mut out = Seen::default();
    let mut back = Seen::default();
    let mut sent = [[0_u64; PAIRS]; 2];
    // The tap's steering learns a flow's queue from what the guest sends.
    for (q, (_, tx)) in rings(&mut d).into_iter().enumerate() {
        assert_eq!(tx.send(&frame(q as u16, 0, true), 1), 1);
        sent[0][q] = 1;
    }
    let until = Instant::now() + PATIENCE;
    while out.next.len() < PAIRS && Instant::now() < until {
        arrived(&ear, &mut out);
    }
    let mut kills = 0;
    let begun = Instant::now();
    let mut last = begun;
    while begun.elapsed() < Duration::from_secs(4) {
        for (q, (rx, tx)) in rings(&mut d).into_iter().enumerate() {
            for _ in 0..16 {
                if tx.send(&frame(q as u16, sent[0][q], true), 1) == 1 {
                    sent[0][q] += 1;
                }
            }
            rx.recv(256, |f, _| {
                if let Some((flow, seq)) = read(f) {
                    back.take(flow, seq, q);
                }
            });
            // Back the same way: flow and queue as the guest chose them, so that the tap's steering finds them.
            if send(far.as_raw_fd(), &frame(q as u16, sent[1][q], false), MsgFlags::MSG_DONTWAIT).is_ok() {
                sent[1][q] += 1;
            }
        }
        arrived(&ear, &mut out);
        if kills < 3 && last.elapsed() > Duration::from_millis(800) {
            let old = house.reeve.dataplane().unwrap();
            kill(Pid::from_raw(old), Signal::SIGKILL).unwrap();
            kills += 1;
            last = Instant::now();
        }
    }
    eprintln!("sent {sent:?}; out {out:?}; back {back:?}");
    locked_in(house.reeve.dataplane().unwrap());
    // What was sent last arrives: nothing stands still after the kills.
    let until = Instant::now() + PATIENCE;
    let all_out = |out: &Seen| (0..PAIRS).all(|q| out.next.get(&(q as u16)) == Some(&sent[0][q]));
    while !all_out(&out) && Instant::now() < until {
        arrived(&ear, &mut out);
    }
    assert!(all_out(&out), "{sent:?}, {out:?}");
    assert!(out.again <= kills * BATCH * PAIRS as u64, "{} frames came again", out.again);
    assert!(sent[0].iter().all(|n| *n > 1000), "{sent:?}");
    assert!(back.next.len() == PAIRS && back.next.values().all(|n| *n > 100), "{back:?}");
    assert_eq!(back.moves, 0, "a flow changed its ring: {back:?}");
    drop(d);
    house.end();
}

#[test]
fn nothing_wakes_at_rest() {
    let devices = [("--workers", "4"), ("--workers", "1")]
        .map(|(o, n)| [o, n])
        .into_iter()
        .chain([["--busy-poll", "200"]]);
    for options in devices {
        let device = format!("vhost-user,netdev=n0,path=vm.sock,queues={PAIRS}");
        let house = house(&device, &options);
        let (_far, ear) = house.far_sockets();
        let mut d = house.driver();
        // One frame each way for each queue, so that everything has run once.
        let mut out = Seen::default();
        for (q, (_, tx)) in rings(&mut d).into_iter().enumerate() {
            assert_eq!(tx.send(&frame(q as u16, 0, true), 1), 1);
        }
        let until = Instant::now() + PATIENCE;
        while out.next.len() < PAIRS && Instant::now() < until {
            arrived(&ear, &mut out);
        }
        assert_eq!(out.next.len(), PAIRS, "{out:?}");
        // Nothing of the bridge's own (multicast memberships of a new port) comes after this.
        std::thread::sleep(Duration::from_secs(3));
        let pid = house.reeve.dataplane().unwrap();
        let before = sleeps(pid);
        std::thread::sleep(Duration::from_secs(5));
        let after = sleeps(pid);
        eprintln!("{options:?}: wake-ups before {before:?}, five seconds later {after:?}");
        assert_eq!(before, after, "{options:?}: somebody woke up");
        drop(d);
        house.end();
    }
}
