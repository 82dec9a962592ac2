//! What the helper gives: a tap on a bridge, and AF_XDP.

use super::{is_locked_in, release};
use netreeve_helper::provide::{Provider, Quota};
use netreeve_shared::grant::Grant;
use netreeve_shared::ifname::IfName;
use netreeve_shared::request::{Request, TapRequest};
use netreeve_tests::bins::ours;
use netreeve_tests::leftovers::Ground;
use netreeve_tests::netns::Netns;
use netreeve_tests::scene::{FAR4, FAR6, PATIENCE, Reeve, Road, Scene, UPLINK, USER};
use netreeve_tests::transfer;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

/// MiB each way and family.
const MUCH: usize = 2;
const DEVICE: &str = "stream,netdev=n0,server=on,addr.type=unix,addr.path=vm.sock";

/// A tap in a namespace: what a guest's stack is behind.
fn tap(ns: &Netns, link: &str) -> OwnedFd {
    let name = Some(IfName::new(link).unwrap());
    let asked = TapRequest { name, persist: false, queues: 1, vnet_header: true, mtu: None, bridge: None };
    let quota = Quota { sessions: 1, requests: 1, taps: 1, umem: 0 };
    let made = ns.enter(|| Provider::default().provide(&Request::Tap(asked), USER, &quota)).unwrap();
    let (Grant::Tap(_), mut fds) = made.unwrap() else { panic!("no tap") };
    fds.pop().unwrap()
}

/// Streams between the far side and a guest's stack, which another netreeve joins to the device of the first.
fn carries_streams(scene: &Scene, reeve: Reeve) {
    is_locked_in(reeve.dataplane().unwrap(), false);
    let guest = Netns::new("guest").unwrap();
    let fd = tap(&guest, "g0");
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let netdev = format!("tap,id=g,fd={}", fd.as_raw_fd());
    let other = scene.run(&[&netdev], &["stream,netdev=g,addr.type=unix,addr.path=vm.sock"], &[]).unwrap();
    drop(fd);
    guest
        .sh("ip link set g0 up; ip addr add 10.77.0.2/24 dev g0; ip addr add fd77::2/64 dev g0 nodad")
        .unwrap();
    let stream = ours("proof-stream").unwrap().display().to_string();
    for address in [FAR4, FAR6] {
        let at = |port| SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
        let bind = |port| scene.far.enter(|| TcpListener::bind(at(port))).unwrap().unwrap();
        let (gives, takes) = (bind(7000), bind(7001));
        std::thread::scope(|s| {
            let far = s.spawn(|| (transfer::serve(&gives, MUCH).unwrap(), transfer::hear(&takes).unwrap()));
            let got = guest.sh(&format!("{stream} receive {address} 7000 | sha256sum")).unwrap();
            let sent = guest.sh(&format!("{stream} send {address} 7001 {MUCH} | sha256sum")).unwrap();
            let (gave, took) = far.join().unwrap();
            assert!(got.starts_with(&gave) && sent.starts_with(&took), "{gave} {got} {sent} {took}");
        });
    }
    for mut reeve in [reeve, other] {
        let end = reeve.proc.terminate(PATIENCE).unwrap();
        assert_eq!(end.code, 0, "{}", end.text);
    }
}

#[test]
#[ignore = "runs in the guest"]
fn a_tap_on_a_bridge_carries_streams() {
    let ground = Ground::survey().unwrap();
    let mut scene = Scene::set(Road::Bridge).unwrap();
    scene.help(&scene.policy()).unwrap();
    let reeve = scene.run(&[&scene.netdev("n0")], &[DEVICE], &[]).unwrap();
    carries_streams(&scene, reeve);
    assert_eq!(scene.host.links().unwrap().len(), 2, "the tap is left");
    drop(scene);
    assert_eq!(ground.left(Duration::from_secs(20)).unwrap(), Vec::<String>::new());
}

/// The dataplane is killed: where its sockets cannot be mapped by another, netreeve says so and ends.
fn is_replaced_or_ends(mut reeve: Reeve) {
    kill(Pid::from_raw(reeve.dataplane().unwrap()), Signal::SIGKILL).unwrap();
    if release() >= (6, 4) {
        reeve.proc.wait_for("the dataplane is back", PATIENCE).unwrap();
        assert_eq!(reeve.proc.terminate(PATIENCE).unwrap().code, 0);
        return;
    }
    let end = reeve.proc.wait(PATIENCE).unwrap();
    assert_eq!(end.code, 69, "{}", end.text);
    assert!(end.text.contains("before Linux 6.4 no other can map"), "{}", end.text);
}

#[test]
#[ignore = "runs in the guest"]
fn an_interfaces_queue_carries_streams() {
    let ground = Ground::survey().unwrap();
    let mut scene = Scene::set(Road::AfXdp).unwrap();
    scene.help(&format!("{}allow uid:{USER} xsk-pinned {UPLINK}\n", scene.policy())).unwrap();
    let netdev = scene.netdev("n0");
    let run = || scene.run(&[&netdev], &[DEVICE], &[]).unwrap();
    carries_streams(&scene, run());
    is_replaced_or_ends(run());
    // For VMMs that have AF_XDP themselves: the socket is there, and the program is attached for it.
    let socket = scene.helper_socket();
    let script = "readlink /proc/self/fd/{n0}; ip -d link show dev nv0";
    let words =
        ["grant", "--helper-socket", socket.to_str().unwrap(), "--netdev", &netdev, "--", "sh", "-c", script];
    let said = scene.host.run("netreeve grant", scene.netreeve(&words), PATIENCE).unwrap();
    assert_eq!(said.code, 0, "{}", said.text);
    assert!(said.text.contains("socket:[") && said.text.contains("xdp"), "{}", said.text);
    drop(scene);
    assert_eq!(ground.left(Duration::from_secs(20)).unwrap(), Vec::<String>::new());
}
