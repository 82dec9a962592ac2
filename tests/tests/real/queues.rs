//! Multi-queue from end to end: a guest's driver changes the number of its queues while eight connections run through
//! them, and none of them notices. The guest's kernel says by its own counters which queues carried what.

use crate::{DEVICE, House, all, settle};
use netreeve_tests::guest::Console;
use netreeve_tests::guest::uml::Uml;
use netreeve_tests::leftovers::Ground;
use netreeve_tests::peers::{iperf_server, parse_iperf, parse_iperf_streams, ping_from};
use netreeve_tests::scene::{BRIDGE, FAR4, GUEST4, PATIENCE, Road, Scene, UPLINK, USER};
use std::time::Duration;

/// Queue pairs.
const PAIRS: u32 = 4;
/// What the guest's driver uses, one after the other, for so many seconds each. It begins with all of them: a TCP
/// connection that always has something under way keeps its queue for as long as there is one of that number, so
/// those that began on a single queue would stay there.
const STEPS: [u32; 5] = [4, 1, 4, 2, 4];
const EACH: u32 = 3;
/// Connections.
const STREAMS: usize = 8;
/// A floor for TCP under TCG with four processors on as many as there are.
const BROKEN: f64 = 1e7;

fn four(road: Road, options: &[&str]) -> House {
    let ground = Ground::survey().unwrap();
    let mut scene = Scene::set(road).unwrap();
    scene.queues(PAIRS).unwrap();
    let policy = match road {
        Road::Bridge => format!("allow uid:{USER} bridge {BRIDGE} queues={PAIRS}\n"),
        Road::AfXdp => format!("allow uid:{USER} xsk {UPLINK} queues={PAIRS}\n"),
    };
    scene.help(&policy).unwrap();
    let netdev = format!("{},queues={PAIRS}", scene.netdev("n0"));
    let reeve = scene.run(&[&netdev], &[&format!("{DEVICE},queues={PAIRS}")], options).unwrap();
    House { reeve, scene, ground }
}

/// The guest's driver uses `pairs` queues, and each flow's hash alone says which is whose. At each change the driver
/// gives every processor a queue (XPS); iperf3 on one processor would have one queue for all of its connections.
fn put(guest: &Console, pairs: u32) {
    guest.ok(&format!("ethtool -L eth0 combined {pairs}")).unwrap();
    let said = guest.ok("ethtool -l eth0 | tail -n 2").unwrap();
    assert!(said.contains(&format!("Combined:\t{pairs}")), "{said}");
    let queues = "/sys/class/net/eth0/queues/tx";
    guest.ok(&format!("test -d {queues}-{}", pairs - 1)).unwrap();
    // A kernel for one processor (User-Mode Linux) has no such file, and hashes anyway.
    guest
        .ok(&format!("for f in {queues}-*/xps_cpus; do test ! -e $f || echo 0 > $f || exit 1; done"))
        .unwrap();
}

/// What the guest's driver counted on each queue, `rx` or `tx`. It says so of the queues that it uses.
fn counted(guest: &Console, way: &str) -> Vec<u64> {
    put(guest, PAIRS);
    // Kernels from 6.8 on write `rx0_packets`, earlier ones `rx_queue_0_packets`.
    let said = guest.ok(&format!("ethtool -S eth0 | grep -E '^ *{way}(_queue_)?[0-9]+_packets: '")).unwrap();
    said.lines().map(|l| l.split(':').nth(1).unwrap().trim().parse().unwrap()).collect()
}

/// They run one way while the driver changes its queues; says what each queue carried that way.
fn changes(house: &House, guest: &Console, way: &str) -> Vec<u64> {
    let server = iperf_server(&house.scene.far, 5201).unwrap();
    let column = if way == "-R" { "rx" } else { "tx" };
    let before = counted(guest, column);
    put(guest, STEPS[0]);
    let seconds = EACH * 5;
    let load = format!(
        "iperf3 -J -c {FAR4} -p {} -P {STREAMS} -t {seconds} --connect-timeout 5000 {way}",
        server.port
    );
    let load = guest.start(&load).unwrap();
    for n in &STEPS[1..] {
        std::thread::sleep(Duration::from_secs(EACH.into()));
        put(guest, *n);
    }
    let said = guest.finish(load, Duration::from_secs(u64::from(seconds) + 30)).unwrap();
    assert_eq!(said.code, 0, "a connection was lost:\n{}", said.text);
    let streams = parse_iperf_streams(&said.text).unwrap();
    assert_eq!(streams.len(), STREAMS);
    for s in &streams {
        // A connection that stands still for two seconds has lost something that nobody sends again.
        let still = s.windows(2).filter(|w| w[0] + w[1] == 0).count();
        assert_eq!(still, 0, "a connection stood still with queues {STEPS:?} {way}: {streams:?}");
    }
    let rate = parse_iperf(&said.text).unwrap();
    let after = counted(guest, column);
    let carried: Vec<u64> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
    eprintln!("queues {STEPS:?} {way}: {:.2} Gbit/s, frames on each {carried:?}", rate / 1e9);
    assert!(rate > BROKEN);
    carried
}

fn followed(house: &House, guest: &Console) {
    settle(guest, 1500);
    for way in ["", "-R"] {
        // The hashes of eight connections are random: that all are on one queue happens once in 16,000 times.
        let carried = changes(house, guest, way);
        let used = carried.iter().filter(|n| **n > 20).count();
        assert!(carried.len() == 4 && used > 1, "only one queue carried frames: {carried:?} {way}");
    }
    all(ping_from(&house.scene.far, &format!("-n -c 5 -i 0.1 -W 2 {GUEST4}")).unwrap(), 5);
}

fn by_qemu(road: Road) {
    let house = four(road, &["--workers", "2"]);
    let socket = house.scene.path("vm.sock");
    let guest = house.scene.qemu().user(USER).queues(PAIRS).vhost_user(&socket, false).boot().unwrap();
    followed(&house, &guest);
    guest.power_off(PATIENCE).unwrap();
    house.end();
}

/// The driver tells QEMU, which enables and disables rings.
#[test]
fn queues_change_under_load_over_a_tap() {
    by_qemu(Road::Bridge);
}

#[test]
fn queues_change_under_load_over_af_xdp() {
    by_qemu(Road::AfXdp);
}

fn by_uml(road: Road) {
    let house = four(road, &[]);
    let guest = Uml::new().nic(&house.scene.path("vm.sock")).boot().unwrap();
    followed(&house, &guest);
    guest.power_off().unwrap();
    house.end();
}

/// The driver tells us, by the control queue.
#[test]
fn the_control_queue_changes_queues_under_load_over_a_tap() {
    by_uml(Road::Bridge);
}

#[test]
fn the_control_queue_changes_queues_under_load_over_af_xdp() {
    by_uml(Road::AfXdp);
}
