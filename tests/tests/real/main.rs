//! The real tier: netreeve between foreign programs. Guests with kernels of their own, QEMU, DPDK, iperf3 and ping judge
//! it; nothing of netreeve's is linked in. Needs root (for namespaces) and `tests/setup.sh`; `netreeve` itself always
//! runs as a user without any right.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![allow(clippy::print_stderr, reason = "figures for whoever reads the log")]

mod attach;
mod between;
mod capture;
mod control;
mod crash;
mod datagrams;
mod forwards;
mod fronts;
mod hostile;
mod hub;
mod l2tp;
mod matrix;
mod mirror;
mod passage;
mod passt;
mod queues;
mod refusal;
mod roads;
mod services;
mod soak;
mod user;
mod user_guest;
mod user_oracle;
mod user_stream;
mod vmm;
mod words;

use netreeve_tests::guest::Console;
use netreeve_tests::guest::uml::{Running, Uml};
use netreeve_tests::leftovers::Ground;
use netreeve_tests::peers::{
    Ping, iperf_from_guest, iperf_server, ping_from, ping_from_guest, wait_until_reachable,
};
use netreeve_tests::scene::{FAR4, FAR6, GUEST4, GUEST6, PATIENCE, Reeve, Road, Scene, address};
use std::time::Duration;

/// The device that most guests attach to.
const DEVICE: &str = "vhost-user,netdev=n0,path=vm.sock";

/// A scene with helper and a running `netreeve`, in the order of their end.
struct House {
    reeve: Reeve,
    scene: Scene,
    ground: Ground,
}

/// Sets a scene, and starts `netreeve` with one netdev and one device.
fn house(road: Road, device: &str, mtu: u32) -> House {
    let ground = Ground::survey().unwrap();
    let mut scene = Scene::set(road).unwrap();
    if mtu != 1500 {
        scene.mtu(mtu).unwrap();
    }
    scene.help(&scene.policy()).unwrap();
    let reeve = scene.run(&[&scene.netdev("n0")], &[device], &[]).unwrap();
    House { reeve, scene, ground }
}

impl House {
    /// Boots a UML guest on the device's socket, with addresses, and waits until it reaches the far side.
    fn uml(&self, mtu: u32) -> Running {
        let guest = Uml::new().nic(&self.scene.path("vm.sock")).boot().unwrap();
        settle(&guest, mtu);
        guest
    }

    /// Ends it all in order and looks at what is left.
    fn end(mut self) {
        let end = self.reeve.proc.terminate(PATIENCE).unwrap();
        assert_eq!(end.code, 0, "{}", end.text);
        let links = self.scene.host.links().unwrap();
        assert!(links.iter().all(|l| l == "nv0" || l == "br0"), "left in the host's namespace: {links:?}");
        assert!(!self.scene.path("vm.sock").exists(), "the socket is left");
        drop((self.reeve, self.scene));
        assert_eq!(self.ground.left(Duration::from_secs(3)).unwrap(), Vec::<String>::new());
    }
}

/// Gives `eth0` the guest's addresses and waits until the far side answers.
fn settle(guest: &Console, mtu: u32) {
    address(guest, "eth0", 2, mtu).unwrap();
    wait_until_reachable(guest, FAR4).unwrap();
}

fn all(ping: Ping, sent: u32) {
    assert_eq!((ping.sent, ping.received), (sent, sent), "pings were lost");
}

/// Pings in all four ways, with frames of `size` bytes of data that may not be cut into pieces.
fn pings(scene: &Scene, guest: &Console, size: u32) {
    for there in [GUEST4, GUEST6] {
        all(ping_from(&scene.far, &format!("-n -c 5 -i 0.1 -W 2 -M do -s {size} {there}")).unwrap(), 5);
    }
    for here in [FAR4, FAR6] {
        all(ping_from_guest(guest, &format!("-c 3 -W 2 -s {size} {here}")).unwrap(), 3);
    }
}

/// TCP both ways over both families for a second each; at least `least` bit/s.
fn streams(scene: &Scene, guest: &Console, least: f64) {
    streams_to(&[FAR4, FAR6], scene, guest, least);
}

/// TCP both ways to each of these addresses for a second each; at least `least` bit/s.
fn streams_to(addresses: &[&str], scene: &Scene, guest: &Console, least: f64) {
    let server = iperf_server(&scene.far, 5201).unwrap();
    for here in addresses {
        for way in ["", "-R"] {
            let rate = iperf_from_guest(guest, here, server.port, 1, way).unwrap();
            eprintln!("iperf3 {here} {way}: {:.2} Gbit/s", rate / 1e9);
            assert!(rate >= least, "{rate} bit/s to {here} {way}");
        }
    }
}
