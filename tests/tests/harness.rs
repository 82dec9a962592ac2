//! The instruments themselves, before anything is measured with them: guests boot and switch off, namespaces and
//! processes go away. Needs root and Debian's guests (`tests/setup.sh`).
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "figures for whoever reads the log")]

use netreeve_tests::guest::qemu::Qemu;
use netreeve_tests::guest::uml::Uml;
use netreeve_tests::leftovers::{Ground, in_netns, marked};
use netreeve_tests::netns::{Netns, veth};
use netreeve_tests::peers::{
    iperf_from_guest, iperf_server, parse_iperf, ping_from, ping_from_guest, pulse, wait_until_reachable,
};
use netreeve_tests::proc::Proc;
use netreeve_tests::scene::address;
use netreeve_tests::transfer;
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn namespaces_are_joined_and_leave_nothing() {
    let before = Ground::survey().unwrap();
    let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
    veth(&a, "nta", &b, "ntb").unwrap();
    a.sh("ip addr add 10.1.0.1/24 dev nta").unwrap();
    b.sh("ip addr add 10.1.0.2/24 dev ntb").unwrap();
    assert_eq!(ping_from(&a, "-c 3 -i 0.1 -W 1 10.1.0.2").unwrap().received, 3);
    assert_eq!(ping_from(&a, "-c 1 -W 0.2 10.1.0.3").unwrap().received, 0);
    assert!(b.counter("ntb", "rx_packets").unwrap() >= 3);
    // With the link its neighbours would be forgotten, and a lost question for one is asked again after a second.
    a.sh("ip neigh replace 10.1.0.2 dev nta nud permanent lladdr $(ip neigh show 10.1.0.2 dev nta | grep -o '[0-9a-f:]\\{17\\}')")
        .unwrap();
    let pulse = pulse(&a, "10.1.0.2", Duration::from_millis(5)).unwrap();
    let began = Instant::now();
    pulse.wait(50, began, Duration::from_secs(5)).unwrap();
    b.sh("ip link set ntb down; sleep 0.3; ip link set ntb up").unwrap();
    let gap = pulse.gap(began, Duration::from_secs(5)).unwrap();
    assert!((300..2000).contains(&gap.as_millis()), "{gap:?}");
    drop(pulse);
    let server = iperf_server(&b, 5201).unwrap();
    let mut client = Command::new("iperf3");
    client.args(["-J", "-t", "1", "-c", "10.1.0.2"]);
    let said = a.run("iperf3", client, Duration::from_secs(10)).unwrap();
    assert!(parse_iperf(&said.text).unwrap() > 1e8);
    let inodes = [a.inode().unwrap(), b.inode().unwrap()];
    drop(server);
    drop((a, b));
    assert_eq!(before.left(Duration::from_secs(2)).unwrap(), Vec::<String>::new());
    assert!(inodes.iter().all(|i| in_netns(*i).is_empty()));
}

/// It is so soon.
fn become_true(f: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(5);
    while !f() {
        assert!(Instant::now() < until, "{:?}", marked());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_dropped_process_takes_its_children_along() {
    let mut command = Command::new("sh");
    command.args(["-c", "sleep 1000 & sleep 1000 & echo ready; wait"]);
    let proc = Proc::spawn("sleepers", command).unwrap();
    proc.wait_for("ready", Duration::from_secs(5)).unwrap();
    let group = proc.pid();
    let members = || marked().into_iter().filter(|p| p.group == group).count();
    // One that is just being started has no environment to be known by.
    become_true(|| members() == 3);
    drop(proc);
    become_true(|| members() == 0);
}

#[test]
fn the_uml_guest_runs_jobs_side_by_side() {
    let began = Instant::now();
    let guest = Uml::new().boot().unwrap();
    eprintln!("UML {} up after {:?}", guest.kernel().unwrap(), began.elapsed());
    let slow = guest.start("sleep 0.3; echo slow; exit 3").unwrap();
    assert_eq!(guest.ok("echo quick").unwrap(), "quick\n");
    // Longer than a terminal's line in both directions, and with bytes that a console would swallow.
    let long = "x".repeat(20_000);
    assert_eq!(guest.ok(&format!("printf '\\001\\004%s' {long}")).unwrap(), format!("\u{1}\u{4}{long}"));
    let slow = guest.finish(slow, Duration::from_secs(5)).unwrap();
    assert_eq!((slow.code, slow.text.as_str()), (3, "slow\n"));
    assert!(guest.ok("iperf3 --version && ethtool --version").unwrap().contains("iperf"));
    assert!(guest.ok("exit 1").is_err());
    assert!(guest.run("sleep 5", Duration::from_millis(100)).is_err());
    guest.power_off().unwrap();
    eprintln!("UML gone after {:?}", began.elapsed());
}

#[test]
fn a_dropped_uml_guest_is_gone() {
    let guest = Uml::new().boot().unwrap();
    let group = guest.proc().pid();
    assert!(marked().iter().any(|p| p.group == group));
    drop(guest);
    become_true(|| !marked().iter().any(|p| p.group == group));
}

#[test]
fn the_qemu_guest_boots_with_a_nic() {
    let began = Instant::now();
    let guest = Qemu::new().netdev("user,id=n0").boot().unwrap();
    eprintln!("QEMU {} up after {:?}", guest.kernel().unwrap(), began.elapsed());
    let seen = guest.ok("cat /sys/class/net/eth0/address; ethtool -i eth0").unwrap();
    assert!(seen.starts_with("52:54:00:00:00:10\ndriver: virtio_net"), "{seen}");
    guest.power_off(Duration::from_secs(20)).unwrap();
}

/// The ways in which the real tier measures, over a NIC that is none of ours: User-Mode Linux's own tap driver.
#[test]
fn pings_streams_and_transfers_work_over_a_foreign_nic() {
    let ns = Netns::new("host").unwrap();
    ns.sh("ip tuntap add nt0 mode tap && ip link set nt0 up && ip addr add 10.77.0.1/24 dev nt0").unwrap();
    ns.sh("ip addr add fd77::1/64 dev nt0 nodad").unwrap();
    let guest = Uml::new().inside(&ns).word("vec0:transport=tap,ifname=nt0,depth=128").boot().unwrap();
    address(&guest, "vec0", 2, 1500).unwrap();
    wait_until_reachable(&guest, "10.77.0.1").unwrap();
    assert_eq!(ping_from_guest(&guest, "-c 3 -i 0.05 10.77.0.1").unwrap().received, 3);
    assert_eq!(ping_from(&ns, "-c 3 -i 0.1 -W 1 fd77::2").unwrap().received, 3);
    let _server = iperf_server(&ns, 5201).unwrap();
    assert!(iperf_from_guest(&guest, "10.77.0.1", 5201, 1, "").unwrap() > 1e7);
    // Only outward: that driver is slow inward, and it is not the one under test.
    let sent = transfer::from_guest(&ns, &guest, "fd77::1".parse().unwrap(), 16).unwrap();
    eprintln!("16 MiB from the guest in {:?}", sent.took);
    guest.power_off().unwrap();
    assert!(ns.counter("nt0", "rx_bytes").unwrap() > 16 << 20);
}
