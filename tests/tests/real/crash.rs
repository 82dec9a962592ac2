//! Ends that nobody ordered: of the dataplane, the VMM, the helper, the supervisor. Traffic comes back where it can, and
//! nothing is left where it cannot.

use crate::{DEVICE, House, all, house, settle};
use netreeve_tests::guest::Console;
use netreeve_tests::guest::uml::Uml;
use netreeve_tests::leftovers::marked;
use netreeve_tests::peers::{iperf_server, ping_from, pulse};
use netreeve_tests::scene::{FAR4, GUEST4, PATIENCE, Road, USER};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// The longest that a guest may be without network when its dataplane is killed.
const BACK: Duration = Duration::from_millis(200);

/// How often things are killed under load: by `NETREEVE_TIMES`, which `make soak` sets.
pub(crate) fn times() -> usize {
    std::env::var("NETREEVE_TIMES").ok().and_then(|t| t.parse().ok()).unwrap_or(5)
}

/// Kills the dataplane under a flow of pings and returns how long none came back.
pub(crate) fn kill_dataplane(house: &House) -> Duration {
    let pulse = pulse(&house.scene.far, GUEST4, Duration::from_millis(5)).unwrap();
    pulse.wait(20, Instant::now(), PATIENCE).unwrap();
    let old = house.reeve.dataplane().unwrap();
    let from = Instant::now();
    kill(Pid::from_raw(old), Signal::SIGKILL).unwrap();
    let gap = pulse.gap(from, PATIENCE).unwrap();
    assert_ne!(house.reeve.dataplane().unwrap(), old);
    gap
}

/// Nine gaps in ten are shorter than [`BACK`], and none much longer: the machine may be busy with others.
fn not_long(gaps: &mut [Duration]) {
    gaps.sort();
    eprintln!("away for {gaps:?}");
    let (most, worst) = (gaps[(gaps.len() - 1) * 9 / 10], gaps[gaps.len() - 1]);
    assert!(most < BACK && worst < 4 * BACK, "the guest was away for longer than {BACK:?}: {gaps:?}");
}

/// Who listens: the other one connects once and never again.
#[derive(Clone, Copy, PartialEq)]
enum Listens {
    Qemu,
    Netreeve,
}

/// The guest is untouched, and never learns that a dataplane died: its carrier stays.
fn killed_under_qemu(road: Road, listens: Listens, load: bool, packed: bool) {
    let theirs = listens == Listens::Qemu;
    let device = if theirs { "vhost-user,netdev=n0,path=vm.sock,server=off,reconnect-ms=20" } else { DEVICE };
    let house = house(road, device, 1500);
    let qemu = house.scene.qemu().user(USER);
    let qemu = if packed { qemu.packed() } else { qemu };
    let guest = qemu.vhost_user(&house.scene.path("vm.sock"), theirs).boot().unwrap();
    settle(&guest, 1500);
    let changes = "cat /sys/class/net/eth0/carrier_changes";
    let carrier = guest.ok(changes).unwrap();
    let links = house.scene.host.links().unwrap();
    let server = iperf_server(&house.scene.far, 5201).unwrap();
    let job = load.then(|| {
        let command = format!("iperf3 --bidir -b 300M -c {FAR4} -p {} -t 1000 >/dev/null", server.port);
        guest.start(&command).unwrap()
    });
    let mut gaps: Vec<Duration> = (0..times()).map(|_| kill_dataplane(&house)).collect();
    not_long(&mut gaps);
    assert_eq!(guest.ok(changes).unwrap(), carrier, "the guest's carrier changed");
    assert_eq!(house.scene.host.links().unwrap(), links, "the interfaces changed");
    if let Some(job) = job {
        guest.run("killall iperf3", PATIENCE).unwrap();
        guest.finish(job, PATIENCE).unwrap();
    }
    drop(server);
    guest.power_off(PATIENCE).unwrap();
    house.end();
}

#[test]
fn a_killed_dataplane_is_replaced_under_qemu_on_a_tap() {
    killed_under_qemu(Road::Bridge, Listens::Netreeve, false, false);
}

#[test]
fn a_killed_dataplane_is_replaced_under_qemu_on_af_xdp() {
    killed_under_qemu(Road::AfXdp, Listens::Qemu, false, false);
}

#[test]
fn a_killed_dataplane_is_replaced_under_load_on_a_tap() {
    killed_under_qemu(Road::Bridge, Listens::Qemu, true, false);
}

#[test]
fn a_killed_dataplane_is_replaced_under_load_on_af_xdp() {
    killed_under_qemu(Road::AfXdp, Listens::Netreeve, true, false);
}

/// No index of a packed ring says where the dead dataplane was: its successor finds the place.
#[test]
fn a_killed_dataplane_is_replaced_under_load_with_packed_rings() {
    killed_under_qemu(Road::Bridge, Listens::Netreeve, true, true);
}

/// TCP outlives the kill: what was in flight is sent again.
#[test]
fn a_stream_outlives_the_dataplane() {
    let house = house(Road::Bridge, "vhost-user,netdev=n0,path=vm.sock,server=off,reconnect-ms=20", 1500);
    let guest = house.scene.qemu().user(USER).vhost_user(&house.scene.path("vm.sock"), true).boot().unwrap();
    settle(&guest, 1500);
    let server = iperf_server(&house.scene.far, 5201).unwrap();
    let job = guest.start(&format!("iperf3 -J -c {FAR4} -p {} -t 4", server.port)).unwrap();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(800));
        kill(Pid::from_raw(house.reeve.dataplane().unwrap()), Signal::SIGKILL).unwrap();
    }
    let report = guest.finish(job, Duration::from_secs(40)).unwrap().ok("iperf3").unwrap();
    assert!(netreeve_tests::peers::parse_iperf(&report).unwrap() > 1e6, "{report}");
    drop(server);
    guest.power_off(PATIENCE).unwrap();
    house.end();
}

/// A VMM that dies under load takes nothing along: the next one finds the same socket.
#[test]
fn a_killed_guest_can_come_again() {
    let house = house(Road::AfXdp, DEVICE, 1500);
    let dataplane = house.reeve.dataplane().unwrap();
    for _ in 0..times() {
        let guest = house.uml(1500);
        let server = iperf_server(&house.scene.far, 5201).unwrap();
        let _job = guest.start(&format!("iperf3 -c {FAR4} -p {} -t 30", server.port)).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        drop(guest);
    }
    let guest = house.uml(1500);
    all(ping_from(&house.scene.far, &format!("-n -c 5 -i 0.1 -W 2 {GUEST4}")).unwrap(), 5);
    assert_eq!(house.reeve.dataplane().unwrap(), dataplane, "the dataplane died with its guest");
    guest.power_off().unwrap();
    house.end();
}

/// What the helper gave lives without it.
#[test]
fn traffic_goes_on_without_the_helper() {
    for road in [Road::AfXdp, Road::Bridge] {
        let mut house = house(road, DEVICE, 1500);
        let guest = house.uml(1500);
        let pulse = pulse(&house.scene.far, GUEST4, Duration::from_millis(5)).unwrap();
        pulse.wait(20, Instant::now(), PATIENCE).unwrap();
        let from = Instant::now();
        house.scene.dismiss();
        pulse.wait(100, from, PATIENCE).unwrap();
        let answered: Vec<u64> = pulse.replies().into_iter().map(|(_, n)| n).collect();
        assert!(
            answered.iter().copied().eq(1..=answered.len() as u64),
            "not all were answered: {answered:?}"
        );
        drop(pulse);
        guest.power_off().unwrap();
        house.end();
    }
}

/// When the supervisor is killed, the dataplane goes with it and the kernel takes the interfaces back.
#[test]
fn a_killed_supervisor_leaves_nothing() {
    for road in [Road::AfXdp, Road::Bridge] {
        let house = house(road, DEVICE, 1500);
        let guest: &Console = &Uml::new().nic(&house.scene.path("vm.sock")).boot().unwrap();
        settle(guest, 1500);
        let dataplane = house.reeve.dataplane().unwrap();
        house.reeve.proc.signal(Signal::SIGKILL).unwrap();
        let until = Instant::now() + Duration::from_secs(3);
        let gone = || {
            let links = house.scene.host.links().unwrap();
            let xdp = house.scene.host.sh("ip link show dev nv0").unwrap().contains("xdp");
            !xdp && links.iter().all(|l| l == "nv0" || l == "br0")
                && !marked().iter().any(|p| p.pid == dataplane)
        };
        while !gone() {
            assert!(Instant::now() < until, "left: {:?} {:?}", house.scene.host.links().unwrap(), marked());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// User-Mode Linux connects once and takes its NIC away when the connection ends: here it does not end.
#[test]
fn a_uml_guest_does_not_learn_that_its_dataplane_died() {
    for road in [Road::Bridge, Road::AfXdp] {
        let house = house(road, DEVICE, 1500);
        let guest = house.uml(1500);
        let mut gaps: Vec<Duration> = (0..times()).map(|_| kill_dataplane(&house)).collect();
        not_long(&mut gaps);
        guest.ok("ip link show dev eth0").unwrap();
        guest.power_off().unwrap();
        house.end();
    }
}

/// What a front end had begun to say dies with the dataplane: the connection ends, the next guest finds the socket.
#[test]
fn a_half_begun_connection_ends_with_its_dataplane() {
    use std::io::{Read, Write};
    let house = house(Road::Bridge, DEVICE, 1500);
    let mut half = std::os::unix::net::UnixStream::connect(house.scene.path("vm.sock")).unwrap();
    half.set_read_timeout(Some(PATIENCE)).unwrap();
    half.write_all(&[1, 0, 0, 0, 1]).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let old = house.reeve.dataplane().unwrap();
    kill(Pid::from_raw(old), Signal::SIGKILL).unwrap();
    assert_eq!(half.read(&mut [0]).unwrap_or(0), 0, "nobody has what it had said");
    let guest = house.uml(1500);
    all(ping_from(&house.scene.far, &format!("-n -c 5 -i 0.1 -W 2 {GUEST4}")).unwrap(), 5);
    assert_ne!(house.reeve.dataplane().unwrap(), old);
    guest.power_off().unwrap();
    house.end();
}
