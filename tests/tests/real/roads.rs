//! Every road a guest's frames can take, with a UML guest on vhost-user: AF_XDP and a tap in a bridge.

use crate::{DEVICE, House, all, house, pings, settle, streams};
use netreeve_tests::guest::uml::Uml;
use netreeve_tests::leftovers::Ground;
use netreeve_tests::peers::{ping_from, ping_from_guest, wait_until_reachable};
use netreeve_tests::scene::{FAR4, Road, Scene, UPLINK, USER, address};
use netreeve_tests::transfer;

/// A floor for TCP that only something broken stays below, on a busy machine too.
const BROKEN: f64 = 5e7;

fn road(road: Road, mtu: u32) {
    let house = house(road, DEVICE, mtu);
    let guest = house.uml(mtu);
    pings(&house.scene, &guest, mtu - 48);
    streams(&house.scene, &guest, BROKEN);
    guest.power_off().unwrap();
    house.end();
}

#[test]
fn a_uml_guest_on_af_xdp() {
    road(Road::AfXdp, 1500);
}

#[test]
fn a_uml_guest_on_a_tap_in_a_bridge() {
    road(Road::Bridge, 1500);
}

#[test]
fn a_uml_guest_on_af_xdp_with_jumbo_frames() {
    road(Road::AfXdp, 9000);
}

#[test]
fn a_uml_guest_on_a_tap_with_jumbo_frames() {
    road(Road::Bridge, 9000);
}

fn a_gibibyte(road: Road) {
    let house = house(road, DEVICE, 1500);
    let guest = house.uml(1500);
    let to = transfer::to_guest(&house.scene.far, &guest, FAR4.parse().unwrap(), 1024).unwrap();
    eprintln!("1 GiB to the guest in {:?}: {}", to.took, to.digest);
    let from = transfer::from_guest(&house.scene.far, &guest, FAR4.parse().unwrap(), 1024).unwrap();
    eprintln!("1 GiB from the guest in {:?}: {}", from.took, from.digest);
    assert_ne!(to.digest, from.digest);
    guest.power_off().unwrap();
    house.end();
}

#[test]
fn a_gibibyte_arrives_as_it_was_sent_over_af_xdp() {
    a_gibibyte(Road::AfXdp);
}

#[test]
fn a_gibibyte_arrives_as_it_was_sent_over_a_tap() {
    a_gibibyte(Road::Bridge);
}

#[test]
fn in_skb_mode_too() {
    let mut scene = Scene::set(Road::AfXdp).unwrap();
    let ground = Ground::survey().unwrap();
    scene.help(&scene.policy()).unwrap();
    let netdev = format!("{},mode=skb", scene.netdev("n0"));
    let reeve = scene.run(&[&netdev], &[DEVICE], &[]).unwrap();
    let house = House { reeve, scene, ground };
    let guest = house.uml(1500);
    let link = house.scene.host.sh(&format!("ip -d link show dev {UPLINK}")).unwrap();
    assert!(link.contains("xdpgeneric"), "{link}");
    pings(&house.scene, &guest, 56);
    streams(&house.scene, &guest, 1e6);
    guest.power_off().unwrap();
    house.end();
}

#[test]
fn one_netreeve_serves_two_nics() {
    let ground = Ground::survey().unwrap();
    let mut scene = Scene::set(Road::Bridge).unwrap();
    scene.help(&scene.policy()).unwrap();
    let netdevs = [scene.netdev("n0"), scene.netdev("n1")];
    let devices = ["vhost-user,netdev=n0,path=vm.sock", "vhost-user,netdev=n1,path=vm1.sock"];
    let reeve = scene.run(&[&netdevs[0], &netdevs[1]], &devices, &[]).unwrap();
    let guest = Uml::new().nic(&scene.path("vm.sock")).nic(&scene.path("vm1.sock")).boot().unwrap();
    let house = House { reeve, scene, ground };
    settle(&guest, 1500);
    // The second NIC has a network of its own, so that nothing can go by the first.
    house.scene.far.sh("ip addr add 10.78.0.1/24 dev nv1").unwrap();
    guest.ok("ip addr add 10.78.0.3/24 dev eth1 && ip link set eth1 up").unwrap();
    wait_until_reachable(&guest, "10.78.0.1").unwrap();
    all(ping_from(&house.scene.far, "-n -c 5 -i 0.1 -W 2 10.78.0.3").unwrap(), 5);
    all(ping_from_guest(&guest, &format!("-c 3 -W 2 {FAR4}")).unwrap(), 3);
    let counters = guest.ok("cat /sys/class/net/eth1/statistics/rx_packets").unwrap();
    assert!(counters.trim().parse::<u32>().unwrap() >= 5, "{counters}");
    guest.power_off().unwrap();
    house.end();
}

/// With steering by address the host keeps its own network on the interface that the guest uses.
#[test]
fn host_and_guest_share_an_interface() {
    let ground = Ground::survey().unwrap();
    let mut scene = Scene::set(Road::AfXdp).unwrap();
    scene.help(&format!("allow uid:{USER} xsk {UPLINK} steer=macs\n")).unwrap();
    let mac = "52:54:00:77:00:02";
    let netdev = format!("{},macs={mac},broadcast=on,multicast=on", scene.netdev("n0"));
    let device = format!("{DEVICE},mac={mac}");
    let reeve = scene.run(&[&netdev], &[&device], &[]).unwrap();
    let house = House { reeve, scene, ground };
    let guest = Uml::new().nic(&house.scene.path("vm.sock")).boot().unwrap();
    guest.ok(&format!("ip link set eth0 address {mac}")).unwrap();
    address(&guest, "eth0", 2, 1500).unwrap();
    house.scene.host.sh(&format!("ip addr add 10.77.0.9/24 dev {UPLINK}")).unwrap();
    // Broadcasts go to the guest alone, so the host's neighbour must be known to the far side.
    let own =
        house.scene.host.sh(&format!("cat /proc/net/dev >/dev/null; ip -br link show {UPLINK}")).unwrap();
    let own = own.split_whitespace().nth(2).unwrap().to_owned();
    house.scene.far.sh(&format!("ip neigh replace 10.77.0.9 lladdr {own} dev nv1")).unwrap();
    wait_until_reachable(&guest, FAR4).unwrap();
    all(ping_from(&house.scene.far, "-n -c 5 -i 0.1 -W 2 10.77.0.9").unwrap(), 5);
    all(ping_from(&house.scene.far, "-n -c 5 -i 0.1 -W 2 10.77.0.2").unwrap(), 5);
    guest.power_off().unwrap();
    house.end();
}
