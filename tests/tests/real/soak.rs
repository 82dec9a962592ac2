//! Many ends under load: the dataplane killed again and again, the VMM killed again and again (200 times each in
//! `make soak`, ten in `make test`). Nothing may pile up.

use crate::{DEVICE, House, all, house, settle, user};
use netreeve_tests::peers::{iperf_server, ping_from, pulse};
use netreeve_tests::scene::{FAR4, GUEST4, PATIENCE, Road, USER};
use netreeve_tests::transfer;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// How often each is killed: `make soak` says 200.
fn kills() -> usize {
    crate::crash::times().max(10)
}

/// Nine gaps in ten are shorter.
const BACK: Duration = Duration::from_millis(200);

/// What a process holds: open descriptors.
fn descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

fn share(sorted: &[Duration], tenths: usize) -> Duration {
    sorted[(sorted.len() - 1) * tenths / 10]
}

/// XDP programs of the whole machine.
fn programs(house: &House) -> usize {
    let list = house.scene.host.sh("bpftool -j prog list | grep -o '\"type\":\"xdp\"' | wc -l").unwrap();
    list.trim().parse().unwrap()
}

fn dataplane_killed(road: Road) {
    let house = house(road, "vhost-user,netdev=n0,path=vm.sock,server=off,reconnect-ms=20", 1500);
    let guest = house.scene.qemu().user(USER).vhost_user(&house.scene.path("vm.sock"), true).boot().unwrap();
    settle(&guest, 1500);
    let server = iperf_server(&house.scene.far, 5201).unwrap();
    let load = guest.start(&format!("iperf3 -c {FAR4} -p {} -b 20M -t 3600", server.port)).unwrap();
    let pulse = pulse(&house.scene.far, GUEST4, Duration::from_millis(5)).unwrap();
    pulse.wait(20, Instant::now(), PATIENCE).unwrap();
    let before = (descriptors(house.reeve.proc.pid()), house.scene.host.links().unwrap(), programs(&house));
    let mut gaps = Vec::new();
    for _ in 0..kills() {
        let old = house.reeve.dataplane().unwrap();
        let from = Instant::now();
        kill(Pid::from_raw(old), Signal::SIGKILL).unwrap();
        gaps.push(pulse.gap(from, PATIENCE).unwrap());
        std::thread::sleep(Duration::from_millis(30));
    }
    let after = (descriptors(house.reeve.proc.pid()), house.scene.host.links().unwrap(), programs(&house));
    assert_eq!((after.0, &after.1), (before.0, &before.1), "descriptors of the supervisor, interfaces");
    // Of the whole machine, where others may have ended theirs meanwhile.
    assert!(after.2 <= before.2, "XDP programs: {} before, {} after", before.2, after.2);
    gaps.sort();
    let (half, most, worst) = (share(&gaps, 5), share(&gaps, 9), share(&gaps, 10));
    eprintln!(
        "{} dataplanes killed on {road:?}: away for {half:?} (median), {most:?} (nine in ten), {worst:?} (worst)",
        gaps.len()
    );
    assert!(most < BACK && worst < 4 * BACK, "away for too long: {gaps:?}");
    drop((load, pulse, server));
    guest.power_off(PATIENCE).unwrap();
    house.end();
}

#[test]
fn many_dataplanes_killed_on_a_tap() {
    dataplane_killed(Road::Bridge);
}

#[test]
fn many_dataplanes_killed_on_af_xdp() {
    dataplane_killed(Road::AfXdp);
}

#[test]
fn many_guests_killed_under_load() {
    let house = house(Road::AfXdp, DEVICE, 1500);
    let dataplane = house.reeve.dataplane().unwrap();
    let server = iperf_server(&house.scene.far, 5201).unwrap();
    let before = (descriptors(dataplane), descriptors(house.reeve.proc.pid()));
    for _ in 0..kills() {
        let guest = house.uml(1500);
        let load = guest.start(&format!("iperf3 -c {FAR4} -p {} -t 30", server.port)).unwrap();
        std::thread::sleep(Duration::from_millis(50));
        drop((load, guest));
    }
    let guest = house.uml(1500);
    all(ping_from(&house.scene.far, &format!("-n -c 5 -i 0.1 -W 2 {GUEST4}")).unwrap(), 5);
    assert_eq!(house.reeve.dataplane().unwrap(), dataplane, "the dataplane died with its guest");
    guest.power_off().unwrap();
    drop(server);
    let until = Instant::now() + Duration::from_secs(3);
    while (descriptors(dataplane), descriptors(house.reeve.proc.pid())) != before {
        assert!(Instant::now() < until, "descriptors were leaked");
        std::thread::sleep(Duration::from_millis(20));
    }
    house.end();
}

/// Ten GiB each way, compared by SHA-256. (Each way by itself, with a digest of the guest's own, is what the network's own
/// test has, with 64 MiB.)
#[test]
#[ignore = "it takes minutes: `make soak` runs it"]
fn ten_gib_through_a_user_network_arrive_as_they_were_sent() {
    let home = user::home("");
    user::configure(&home.guest);
    let sent =
        transfer::there_and_back(&home.scene.far, &home.guest, FAR4.parse().unwrap(), 10 << 10).unwrap();
    eprintln!("10 GiB to the guest and back, at the same time, in {:?}: {}", sent.took, sent.digest);
    home.end();
}
