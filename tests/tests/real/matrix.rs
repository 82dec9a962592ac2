//! Features on and off: what the device hides is not there in the guest, what the guest switches off is not used, and
//! frames arrive in every case.

use crate::{DEVICE, House, house, pings, streams_to};
use netreeve_tests::leftovers::Ground;
use netreeve_tests::scene::{FAR4, FAR6, PATIENCE, Road, Scene};

/// Options of the device, and what `ethtool -k` must then say in the guest.
const HIDDEN: &[(&str, &str)] = &[
    ("csum=off", "tx-checksumming: off"),
    ("tso=off", "tx-tcp-segmentation: off"),
    ("mrg_rxbuf=off", "tx-checksumming: on"),
    ("event_idx=off", "tx-checksumming: on"),
    ("indirect_desc=off", "tx-checksumming: on"),
    ("ctrl_vq=off", "tx-checksumming: on"),
    // User-Mode Linux takes packed rings if it is offered them.
    ("packed=off", "tx-checksumming: on"),
    ("packed=off,in_order=off,event_idx=off", "tx-checksumming: on"),
    ("event_idx=off,indirect_desc=off,mrg_rxbuf=off", "tx-checksumming: on"),
    ("status=off", "tx-checksumming: on"),
    (
        "csum=off,mrg_rxbuf=off,event_idx=off,indirect_desc=off,ctrl_vq=off,status=off",
        "tx-tcp-segmentation: off",
    ),
];

fn hidden(road: Road) {
    for (options, expected) in HIDDEN {
        eprintln!("-- {options}");
        let house = house(road, &format!("{DEVICE},{options}"), 1500);
        let guest = house.uml(1500);
        let features = guest.ok("ethtool -k eth0").unwrap();
        assert!(features.contains(expected), "with {options} the guest should have {expected}:\n{features}");
        pings(&house.scene, &guest, 1400);
        streams_to(&[FAR6], &house.scene, &guest, 1e7);
        guest.power_off().unwrap();
        house.end();
    }
}

#[test]
fn features_hidden_by_the_device_over_a_tap() {
    hidden(Road::Bridge);
}

#[test]
fn features_hidden_by_the_device_over_af_xdp() {
    hidden(Road::AfXdp);
}

fn switched(road: Road) {
    let house = house(road, DEVICE, 1500);
    let guest = house.uml(1500);
    for off in ["tso off", "gso off", "tx off", "gro off", "sg off"] {
        eprintln!("-- ethtool -K eth0 {off}");
        guest.ok(&format!("ethtool -K eth0 {off}")).unwrap();
        pings(&house.scene, &guest, 1400);
        streams_to(&[FAR4], &house.scene, &guest, 1e7);
    }
    guest.power_off().unwrap();
    house.end();
}

#[test]
fn features_switched_off_by_the_guest_over_a_tap() {
    switched(Road::Bridge);
}

#[test]
fn features_switched_off_by_the_guest_over_af_xdp() {
    switched(Road::AfXdp);
}

/// What the guest is told of its NIC.
#[test]
fn mac_and_mtu_are_the_devices() {
    let house = house(Road::Bridge, &format!("{DEVICE},mac=52:54:00:12:34:56,mtu=1400"), 1500);
    let guest = house.uml(1400);
    let seen = guest.ok("cat /sys/class/net/eth0/address").unwrap();
    assert!(seen.starts_with("52:54:00:12:34:56\n"), "{seen}");
    assert!(guest.ok("ip link set eth0 mtu 1401").is_err(), "the guest's MTU can exceed the device's");
    pings(&house.scene, &guest, 1300);
    guest.power_off().unwrap();
    house.end();
}

/// Two queue pairs, for a front end that leaves the control queue to us: the driver says by it how many it uses.
#[test]
fn two_queue_pairs_and_the_control_queue() {
    let ground = Ground::survey().unwrap();
    let mut scene = Scene::set(Road::Bridge).unwrap();
    scene.help(&scene.policy()).unwrap();
    let netdev = format!("{},queues=2", scene.netdev("n0"));
    let reeve = scene.run(&[&netdev], &[&format!("{DEVICE},queues=2")], &[]).unwrap();
    let house = House { reeve, scene, ground };
    let guest = house.uml(1500);
    let channels = guest.ok("ethtool -l eth0").unwrap();
    assert!(channels.contains("Combined:\t2"), "{channels}");
    for n in [1, 2, 1] {
        // One processor may forbid more than one queue; the command goes through the control queue all the same.
        let set = guest.run(&format!("ethtool -L eth0 combined {n}"), PATIENCE).unwrap();
        eprintln!("combined {n}: exit code {}", set.code);
        pings(&house.scene, &guest, 1400);
        streams_to(&[FAR4], &house.scene, &guest, 1e7);
    }
    guest.power_off().unwrap();
    house.end();
}
