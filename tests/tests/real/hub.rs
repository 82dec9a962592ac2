//! A hub of three kinds of port: a tap in a bridge, a vhost-user device and a stream. Guests of two VMMs reach each other
//! and the far side through it, with a member that is stuck and across the death of the dataplane.

use std::os::unix::net::UnixStream;

use netreeve_tests::guest::Console;
use netreeve_tests::guest::uml::Uml;
use netreeve_tests::leftovers::Ground;
use netreeve_tests::peers::{
    iperf_from_guest, iperf_server, ping_from, ping_from_guest, wait_until_reachable,
};
use netreeve_tests::scene::{FAR4, GUEST4, PATIENCE, Road, Scene, USER, address};

use crate::crash::kill_dataplane;
use crate::{House, all, pings, streams};

/// The second guest's address.
const SECOND4: &str = "10.77.0.3";
/// A floor for TCP that only something broken stays below.
const BROKEN: f64 = 1e7;

fn hub(more: &str) -> House {
    let ground = Ground::survey().unwrap();
    let mut scene = Scene::set(Road::Bridge).unwrap();
    scene.help(&scene.policy()).unwrap();
    let places: Vec<String> = ["id=h0,netdev=n0", "id=h1", "id=h2"]
        .iter()
        .map(|place| format!("hubport,hubid=0,{place}{more}"))
        .collect();
    let tap = scene.netdev("n0");
    let netdevs = [&tap, &places[0], &places[1], &places[2]].map(String::as_str);
    let devices = [
        "vhost-user,netdev=h1,path=vm.sock",
        "stream,netdev=h2,server=on,addr.type=unix,addr.path=stream.sock",
    ];
    let reeve = scene.run(&netdevs, &devices, &[]).unwrap();
    House { reeve, scene, ground }
}

/// From one guest to the other, and to the far side.
fn reach(house: &House, first: &Console, second: &Console) {
    wait_until_reachable(second, FAR4).unwrap();
    for size in [56, 1400] {
        all(ping_from_guest(first, &format!("-c 5 -W 2 -s {size} {SECOND4}")).unwrap(), 5);
        all(ping_from_guest(second, &format!("-c 5 -W 2 -s {size} {GUEST4}")).unwrap(), 5);
        all(ping_from(&house.scene.far, &format!("-n -c 5 -i 0.1 -W 2 -s {size} {SECOND4}")).unwrap(), 5);
    }
}

fn guests_meet(more: &str) {
    let house = hub(more);
    let first = house.uml(1500);
    pings(&house.scene, &first, 1400);
    streams(&house.scene, &first, BROKEN);
    // One who attaches and never reads.
    let stuck = UnixStream::connect(house.scene.path("stream.sock")).unwrap();
    streams(&house.scene, &first, BROKEN);
    drop(stuck);

    let dials = format!(
        "stream,id=n0,server=off,addr.type=unix,addr.path={},reconnect-ms=20",
        house.scene.path("stream.sock").display()
    );
    let second = house.scene.qemu().user(USER).netdev(&dials).boot().unwrap();
    address(&second, "eth0", 3, 1500).unwrap();
    reach(&house, &first, &second);
    let server = iperf_server(&house.scene.far, 5201).unwrap();
    for (guest, way) in [(&second, ""), (&second, "-R"), (&*first, "-R")] {
        let rate = iperf_from_guest(guest, FAR4, server.port, 1, way).unwrap();
        eprintln!("through the hub {way}: {:.2} Gbit/s", rate / 1e9);
        assert!(rate > BROKEN);
    }
    drop(server);
    eprintln!("away for {:?}", kill_dataplane(&house));
    reach(&house, &first, &second);
    first.power_off().unwrap();
    second.power_off(PATIENCE).unwrap();
    house.end();
}

#[test]
fn guests_of_two_vmms_meet_in_a_hub_of_three_kinds_of_port() {
    guests_meet("");
}

#[test]
fn guests_of_two_vmms_meet_in_a_hub_that_learns() {
    guests_meet(",learning=on,ageing=60");
}

/// Isolated guests reach the far side, which is not isolated, and not each other.
#[test]
fn isolated_members_reach_others_only() {
    let ground = Ground::survey().unwrap();
    let mut scene = Scene::set(Road::Bridge).unwrap();
    scene.help(&scene.policy()).unwrap();
    let tap = scene.netdev("n0");
    let netdevs = [
        &tap,
        "hubport,id=h0,hubid=0,netdev=n0",
        "hubport,id=h1,hubid=0,isolated=on",
        "hubport,id=h2,hubid=0,isolated=on",
    ];
    let devices = ["vhost-user,netdev=h1,path=vm.sock", "vhost-user,netdev=h2,path=vm1.sock"];
    let reeve = scene.run(&netdevs, &devices, &[]).unwrap();
    let house = House { reeve, scene, ground };
    let first = house.uml(1500);
    let second = Uml::new().nic(&house.scene.path("vm1.sock")).boot().unwrap();
    address(&second, "eth0", 3, 1500).unwrap();
    wait_until_reachable(&second, FAR4).unwrap();
    all(ping_from(&house.scene.far, &format!("-n -c 5 -i 0.1 -W 2 {SECOND4}")).unwrap(), 5);
    all(ping_from(&house.scene.far, &format!("-n -c 5 -i 0.1 -W 2 {GUEST4}")).unwrap(), 5);
    let lost = ping_from_guest(&first, &format!("-c 3 -W 1 {SECOND4}")).unwrap();
    assert_eq!(lost.received, 0, "they reach each other");
    first.power_off().unwrap();
    second.power_off().unwrap();
    house.end();
}
