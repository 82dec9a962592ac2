//! QEMU and DPDK as the VMM's side: every way in which an unmodified QEMU can attach, the two that matter most with every
//! version of it that there is (`tests/vmms.sh`).

use crate::{DEVICE, House, house, pings, settle, streams};
use netreeve_tests::bins::peer;
use netreeve_tests::guest::Vmm;
use netreeve_tests::guest::qemu::Qemu;
use netreeve_tests::leftovers::Ground;
use netreeve_tests::peers::{iperf_from_guest, iperf_server, ping_from};
use netreeve_tests::proc::Proc;
use netreeve_tests::scene::{BRIDGE, FAR4, GUEST4, PATIENCE, Road, Scene, USER};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// A floor for TCP under TCG.
const BROKEN: f64 = 1e7;

/// A guest of this QEMU's on a device of ours, attached to `vm.sock` in the way that is given.
fn attached(vmm: &Vmm, road: Road, device: &str, attach: impl FnOnce(Qemu<'_>, PathBuf) -> Qemu<'_>) {
    eprintln!("-- {vmm}, {road:?}");
    let house = house(road, device, 1500);
    let guest = attach(house.scene.qemu().by(vmm).user(USER), house.scene.path("vm.sock")).boot().unwrap();
    settle(&guest, 1500);
    pings(&house.scene, &guest, 1400);
    streams(&house.scene, &guest, BROKEN);
    guest.power_off(PATIENCE).unwrap();
    house.end();
}

#[test]
fn qemu_dials_our_vhost_user_socket() {
    for vmm in Vmm::all().unwrap() {
        attached(&vmm, Road::Bridge, DEVICE, |qemu, socket| qemu.vhost_user(&socket, false));
    }
}

#[test]
fn we_dial_qemus_vhost_user_socket() {
    let device = "vhost-user,netdev=n0,path=vm.sock,server=off,reconnect-ms=20";
    for vmm in Vmm::all().unwrap() {
        attached(&vmm, Road::AfXdp, device, |qemu, socket| qemu.vhost_user(&socket, true));
    }
}

/// The guest's driver says which features it and the device agreed on: number 34 is the packed ring.
#[test]
fn qemu_with_packed_rings() {
    let house = house(Road::Bridge, "vhost-user,netdev=n0,path=vm.sock", 1500);
    let socket = house.scene.path("vm.sock");
    let guest = house.scene.qemu().user(USER).packed().vhost_user(&socket, false).boot().unwrap();
    let features = guest.ok("cat /sys/class/net/eth0/device/features").unwrap();
    assert_eq!(features.as_bytes().get(34), Some(&b'1'), "{features}");
    settle(&guest, 1500);
    pings(&house.scene, &guest, 1400);
    streams(&house.scene, &guest, BROKEN);
    guest.power_off(PATIENCE).unwrap();
    house.end();
}

/// Two queue pairs from the guest's processors to the tap, one lane each.
#[test]
fn two_queue_pairs() {
    let ground = Ground::survey().unwrap();
    let mut scene = Scene::set(Road::Bridge).unwrap();
    scene.help(&format!("allow uid:{USER} bridge {BRIDGE} queues=2\n")).unwrap();
    let netdev = format!("{},queues=2", scene.netdev("n0"));
    let reeve = scene.run(&[&netdev], &[&format!("{DEVICE},queues=2")], &[]).unwrap();
    let house = House { reeve, scene, ground };
    let socket = house.scene.path("vm.sock");
    let guest = house.scene.qemu().user(USER).queues(2).vhost_user(&socket, false).boot().unwrap();
    settle(&guest, 1500);
    for queues in [2, 1, 2] {
        guest.ok(&format!("ethtool -L eth0 combined {queues}")).unwrap();
        pings(&house.scene, &guest, 1400);
        let server = iperf_server(&house.scene.far, 5201).unwrap();
        for way in ["-P 4", "-P 4 -R"] {
            let rate = iperf_from_guest(&guest, FAR4, server.port, 1, way).unwrap();
            eprintln!("{queues} queue pairs, {way}: {:.2} Gbit/s", rate / 1e9);
            assert!(rate > BROKEN);
        }
    }
    // Both queues carried frames out: the guest's kernel counts them for each.
    let counted = guest.ok("ethtool -S eth0 | grep -E 'tx_queue_[01]_packets'").unwrap();
    let each: Vec<u64> = counted.lines().filter_map(|l| l.split(':').nth(1)?.trim().parse().ok()).collect();
    assert!(each.len() == 2 && each.iter().all(|n| *n > 100), "{counted}");
    guest.power_off(PATIENCE).unwrap();
    house.end();
}

#[test]
fn qemu_without_shared_memory_by_stream() {
    let device = "stream,netdev=n0,server=on,addr.type=unix,addr.path=vm.sock";
    let dials = |s: PathBuf| format!("stream,id=n0,server=off,addr.type=unix,addr.path={}", s.display());
    for vmm in Vmm::all().unwrap() {
        for road in [Road::Bridge, Road::AfXdp] {
            attached(&vmm, road, device, |qemu, socket| qemu.netdev(&dials(socket)));
        }
    }
}

/// `netreeve grant` hands a tap to QEMU's own `-netdev tap`.
#[test]
fn qemu_gets_a_tap_from_grant() {
    let ground = Ground::survey().unwrap();
    let mut scene = Scene::set(Road::Bridge).unwrap();
    scene.help(&scene.policy()).unwrap();
    let qemu = scene.qemu().netdev("tap,id=n0,fd={n0}").inside(&scene.host);
    let socket = scene.helper_socket();
    let netdev = scene.netdev("n0");
    let mut command =
        scene.netreeve(&["grant", "--helper-socket", socket.to_str().unwrap(), "--netdev", &netdev, "--"]);
    command.arg(qemu.program().unwrap()).args(qemu.arguments().unwrap());
    let guest = qemu.boot_by(command).unwrap();
    settle(&guest, 1500);
    pings(&scene, &guest, 1400);
    streams(&scene, &guest, BROKEN);
    guest.power_off(PATIENCE).unwrap();
    assert_eq!(scene.host.links().unwrap().len(), 2, "the tap is left");
    drop(scene);
    assert_eq!(ground.left(Duration::from_secs(3)).unwrap(), Vec::<String>::new());
}

/// QEMU's `-netdev bridge` with our program in the place of qemu-bridge-helper, setuid root as Debian installs that one,
/// and QEMU as an ordinary user.
#[test]
fn qemu_asks_our_bridge_helper() {
    let ground = Ground::survey().unwrap();
    let scene = Scene::set(Road::Bridge).unwrap();
    let bridge_helper = scene.program("netreeve-bridge-helper");
    fs::copy(scene.program("netreeve-helper"), &bridge_helper).unwrap();
    fs::set_permissions(&bridge_helper, Permissions::from_mode(0o4755)).unwrap();
    let boot = |line: &str| {
        let netdev = format!("bridge,id=n0,br={BRIDGE},helper={}", bridge_helper.display());
        let qemu = scene.qemu().netdev(&netdev).inside(&scene.host);
        let mut command = scene.with_etc(&[("qemu/bridge.conf", line)]).unwrap();
        command.arg(qemu.program().unwrap()).args(qemu.arguments().unwrap());
        qemu.boot_by(command)
    };
    let refused = boot(&format!("deny {BRIDGE}\n")).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("denied"), "{refused}");
    let guest = boot(&format!("allow {BRIDGE}\n")).unwrap();
    settle(&guest, 1500);
    pings(&scene, &guest, 1400);
    guest.power_off(PATIENCE).unwrap();
    drop(scene);
    assert_eq!(ground.left(Duration::from_secs(3)).unwrap(), Vec::<String>::new());
}

/// The helper's other door: `netreeve` starts it, with file capabilities or setuid, and there is no service at all.
#[test]
fn netreeve_starts_the_helper_itself() {
    let capabilities = "cap_net_admin,cap_net_raw,cap_bpf,cap_ipc_lock,cap_net_bind_service=p";
    for (road, mode, how) in [
        (Road::Bridge, 0o755, "capabilities"),
        (Road::AfXdp, 0o755, "capabilities"),
        (Road::Bridge, 0o4755, "setuid"),
    ] {
        let ground = Ground::survey().unwrap();
        let scene = Scene::set(road).unwrap();
        let helper = scene.program("netreeve-helper");
        fs::set_permissions(&helper, Permissions::from_mode(mode)).unwrap();
        if how == "capabilities" {
            netreeve_tests::proc::sh(&format!("setcap {capabilities} {}", helper.display())).unwrap();
        }
        let policy = scene.policy();
        let mut command = scene.with_etc(&[("netreeve/policy.conf", &policy)]).unwrap();
        command.arg(scene.program("netreeve")).args(["run", "--json", "--helper"]).arg(&helper);
        command.args(["--netdev", &scene.netdev("n0"), "--device", DEVICE]);
        let reeve = scene.start(command).unwrap();
        let house = House { reeve, scene, ground };
        let guest = house.uml(1500);
        pings(&house.scene, &guest, 1400);
        guest.power_off().unwrap();
        house.end();
    }
}

/// dpdk-testpmd with virtio-user on our socket, until dropped.
fn testpmd(house: &House, options: &str, forward: &str) -> Proc {
    let mut command = Command::new(peer("dpdk-testpmd").unwrap());
    let socket = house.scene.path("vm.sock");
    // Its runtime files go into the scene, and with it.
    command.env("XDG_RUNTIME_DIR", house.scene.path("")).env("RUNTIME_DIRECTORY", house.scene.path(""));
    command.args(["--no-pci", "--no-huge", "-m", "256", "--lcores", "0@0,1@1", "--no-telemetry", "--vdev"]);
    command.arg(format!("net_virtio_user0,path={},queues=1,queue_size=256{options}", socket.display()));
    command.args(["--", "--total-num-mbufs=16384", "--stats-period=1", "-a"]);
    command.arg(format!("--forward-mode={forward}"));
    let testpmd = house.scene.host.spawn_with_input("dpdk-testpmd", command).unwrap();
    testpmd.wait_for("NIC statistics for port 0", Duration::from_secs(30)).unwrap();
    testpmd
}

/// Ring formats and ways of going through them, as DPDK's driver names them.
const RINGS: &[&str] = &[
    ",packed_vq=0,in_order=0",
    ",packed_vq=0,in_order=1",
    ",packed_vq=1,in_order=0",
    ",packed_vq=1,in_order=1",
    ",packed_vq=0,in_order=1,mrg_rxbuf=0",
    ",packed_vq=1,in_order=0,mrg_rxbuf=0",
];

/// DPDK's virtio-user as the driver: no guest, a flood of frames.
#[test]
fn dpdk_drives_the_ring() {
    for options in RINGS {
        let house = house(Road::Bridge, "vhost-user,netdev=n0,path=vm.sock", 1500);
        let before = house.scene.far.counter("nv1", "rx_packets").unwrap();
        let mut testpmd = testpmd(&house, options, "txonly");
        let input = testpmd.input();
        std::thread::sleep(Duration::from_secs(2));
        drop(input);
        drop(testpmd);
        let sent = house.scene.far.counter("nv1", "rx_packets").unwrap() - before;
        eprintln!("{options}: {sent} frames in about two seconds");
        assert!(sent > 20_000, "{options}: only {sent} frames arrived");
        house.end();
    }
}

/// DPDK answers pings: what the driver receives is what was sent, and goes back.
#[test]
fn dpdk_echoes_through_the_rings() {
    for options in RINGS {
        let house = house(Road::Bridge, "vhost-user,netdev=n0,path=vm.sock", 1500);
        let mut testpmd = testpmd(&house, options, "icmpecho");
        let input = testpmd.input();
        for size in ["56", "1400"] {
            let ping = ping_from(&house.scene.far, &format!("-q -f -c 3000 -s {size} {GUEST4}")).unwrap();
            eprintln!("{options}: {ping:?}");
            assert!(ping.received >= 2990, "{options}: {ping:?}");
        }
        drop(input);
        drop(testpmd);
        house.end();
    }
}

#[test]
fn scripts_and_programs_in_options_are_refused() {
    let scene = Scene::set(Road::Bridge).unwrap();
    for netdev in
        ["tap,id=n0,script=/bin/true", "tap,id=n0,helper=/bin/true", "bridge,id=n0,helper=/bin/true"]
    {
        let command =
            scene.netreeve(&["run", "--netdev", netdev, "--device", "vhost-user,netdev=n0,path=vm.sock"]);
        let outcome = scene.host.run("netreeve", command, PATIENCE).unwrap();
        assert_eq!(outcome.code, 78, "{netdev}: {}", outcome.text);
        assert!(outcome.text.contains("refused") || outcome.text.contains("helper"), "{}", outcome.text);
    }
}
