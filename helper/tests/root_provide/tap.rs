//! Taps and bridges.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};

use netreeve_helper::provide::{Provider, Quota, bridge_tap};
use netreeve_shared::grant::Grant;
use netreeve_shared::refusal::{Refusal, Step};
use netreeve_shared::request::{Request, TapRequest};
use nix::errno::Errno;

use crate::support::*;

#[test]
fn each_kind_of_tap_is_what_its_grant_says_and_dies_with_its_descriptors() {
    namespace();
    for queues in [1, 2, 16] {
        for vnet_header in [false, true] {
            for mtu in [None, Some(68), Some(9000), Some(65521)] {
                let asked = TapRequest { queues, vnet_header, mtu, ..tap_request() };
                let (grant, fds) = tap(asked.clone()).unwrap();
                let seen = show(grant.name);
                assert_eq!(fds.len(), usize::from(queues), "{asked:?}");
                assert_eq!(seen["ifindex"], grant.ifindex);
                assert_eq!(seen["mtu"], mtu.unwrap_or(1500));
                assert_eq!(grant.mtu, mtu.unwrap_or(1500));
                assert_eq!(seen["address"], grant.mac.to_string());
                assert_eq!(grant.mac.0[0], 0xfe);
                assert_eq!(seen["altnames"][0], format!("nv-{UID}-{}", grant.name));
                // Below 1280 bytes the kernel has no IPv6 on the interface at all.
                let expected = if mtu == Some(68) { serde_json::Value::Null } else { "none".into() };
                assert_eq!(seen["inet6_addr_gen_mode"], expected);
                assert!(seen["flags"].as_array().unwrap().contains(&"UP".into()));
                let data = &seen["linkinfo"]["info_data"];
                assert_eq!(data["type"], "tap");
                assert_eq!(data["vnet_hdr"], vnet_header);
                assert_eq!(data["persist"], false);
                assert_eq!(data["pi"], false);
                assert_eq!(data["multi_queue"], queues > 1);
                assert_eq!(data["user"], "root");
                assert_eq!(grant.vnet_header, if vnet_header { 12 } else { 0 });
                assert_eq!(
                    grant.flags & 0x4102,
                    2 | u16::from(vnet_header) << 14 | u16::from(queues > 1) << 8
                );
                assert_eq!(
                    ip(&format!("-6 addr show dev {}", grant.name)),
                    "",
                    "the host has no address there"
                );
                drop(fds);
                only(&[]);
            }
        }
    }
}

#[test]
fn the_qemu_face_gives_the_kernels_own_header() {
    namespace();
    ip("link add br0 mtu 2000 type bridge");
    let fd = bridge_tap(&in_bridge("br0", false, false), UID, 1).unwrap();
    assert_eq!(bridge_tap(&in_bridge("br0", false, false), UID, 1).unwrap_err(), Refusal::Limit);
    let tap = interfaces().into_iter().find(|n| n.starts_with("nv")).unwrap();
    assert_eq!(show(&tap)["master"], "br0");
    assert_eq!(show(&tap)["mtu"], 2000);
    drop(fd);
    only(&["br0"]);
}

#[test]
fn a_bridge_port_takes_the_bridges_mtu_and_its_rules() {
    namespace();
    ip("link add br0 mtu 4000 type bridge");
    ip("link add up0 mtu 4000 address 02:00:00:00:00:99 master br0 type veth peer name far");
    for isolated in [false, true] {
        let (grant, _fds) = tap(in_bridge("br0", false, isolated)).unwrap();
        assert_eq!((grant.mtu, grant.bridge), (4000, Some(name("br0"))));
        let seen = show(grant.name);
        assert_eq!(seen["master"], "br0");
        let port = &seen["linkinfo"]["info_slave_data"];
        assert_eq!(port["isolated"], isolated);
        assert_eq!((&port["guard"], &port["root_block"]), (&true.into(), &true.into()));
        assert_eq!(show("br0")["mtu"], 4000);
        assert_ne!(show("br0")["address"], grant.mac.to_string(), "the bridge does not take a tap's address");
    }
    let (grant, _fds) = tap(TapRequest { mtu: Some(1400), ..in_bridge("br0", false, false) }).unwrap();
    assert_eq!(grant.mtu, 1400);
}

#[test]
fn a_bridge_is_made_only_if_asked_and_stays_once_it_served() {
    namespace();
    let missing = Refusal::Failed { step: Step::FindBridge, errno: libc::ENODEV };
    assert_eq!(tap(in_bridge("br7", false, false)).unwrap_err(), missing);
    only(&[]);
    let (grant, fds) = tap(TapRequest { mtu: Some(9000), ..in_bridge("br7", true, false) }).unwrap();
    assert_eq!((grant.mtu, show("br7")["mtu"].clone()), (9000, 9000.into()));
    assert_eq!(show("br7")["group"], "default");
    let address = show("br7")["address"].clone();
    assert_ne!(address, grant.mac.to_string(), "a bridge of ours has an address of its own");
    let (_second, more) = tap(in_bridge("br7", true, false)).unwrap();
    drop((fds, more));
    only(&["br7"]);
    assert_eq!(show("br7")["address"], address, "and keeps it");
}

#[test]
fn a_bridge_that_a_killed_helper_left_is_removed_and_one_in_use_is_not() {
    namespace();
    ip("link add left type bridge");
    ip("link add used type bridge");
    ip("link add mine type bridge");
    ip("link set left group 1853095937");
    ip("link set used group 1853095937");
    ip("link add port master used type veth peer name far");
    let (_grant, _fds) = tap(in_bridge("br0", true, false)).unwrap();
    let now = interfaces();
    assert!(!now.contains(&"left".to_owned()), "{now:?}");
    assert!(now.contains(&"used".to_owned()) && now.contains(&"mine".to_owned()), "{now:?}");
}

#[test]
fn what_is_no_bridge_is_not_joined_and_an_altname_is_no_name() {
    namespace();
    ip("link add d0 type veth peer name d1");
    ip("link add br0 type bridge");
    ip("link property add dev br0 altname br9");
    let kind = Refusal::Failed { step: Step::FindBridge, errno: libc::EOPNOTSUPP };
    assert_eq!(tap(in_bridge("d0", true, false)).unwrap_err(), kind);
    let missing = Refusal::Failed { step: Step::FindBridge, errno: libc::ENODEV };
    assert_eq!(tap(in_bridge("br9", false, false)).unwrap_err(), missing);
    assert!(matches!(
        tap(in_bridge("br9", true, false)),
        Err(Refusal::Failed { step: Step::MakeBridge, .. })
    ));
    only(&["br0", "d0", "d1"]);
}

#[test]
fn a_taken_name_is_refused_and_never_attached_to() {
    namespace();
    let named = |queues| TapRequest { name: Some(name("vm0")), queues, ..tap_request() };
    let (grant, fds) = tap(named(2)).unwrap();
    assert_eq!(grant.name, name("vm0"));
    assert_eq!(tap(named(2)).unwrap_err(), Refusal::Busy);
    assert_eq!(tap(named(1)).unwrap_err(), Refusal::Busy);
    drop(fds);
    only(&[]);
    ip("tuntap add dev vm0 mode tap multi_queue");
    assert_eq!(tap(named(2)).unwrap_err(), Refusal::Busy, "a persistent tap without a holder");
    ip("link del vm0");
    ip("link add vm0 type veth peer name d1");
    assert_eq!(tap(named(1)).unwrap_err(), Refusal::Busy);
}

#[test]
fn a_persistent_tap_stays_and_counts() {
    namespace();
    let asked = TapRequest { name: Some(name("vm0")), persist: true, ..tap_request() };
    let limits = Quota { taps: 2, ..LIMITS };
    let mut provider = Provider::default();
    drop(provider.provide(&Request::Tap(asked), UID, &limits).unwrap());
    only(&["vm0"]);
    assert_eq!(show("vm0")["linkinfo"]["info_data"]["user"], UID);
    let plain = Request::Tap(tap_request());
    let kept = provider.provide(&plain, UID, &limits).unwrap();
    assert_eq!(provider.provide(&plain, UID, &limits).unwrap_err(), Refusal::Limit);
    only(&[&tap_name(&kept), "vm0"]);
    assert!(provider.provide(&plain, UID + 1, &limits).is_ok(), "another uid has its own quota");
    assert!(provider.provide(&plain, 42, &limits).is_ok(), "nv-42- is not a prefix of nv-4242-");
    drop(kept);
    only(&["vm0"]);
    assert!(provider.provide(&plain, UID, &limits).is_ok());
}

fn tap_name((grant, _): &(Grant, Vec<OwnedFd>)) -> String {
    let Grant::Tap(tap) = grant else { panic!("{grant:?}") };
    tap.name.to_string()
}

#[test]
fn nobody_else_can_attach_a_queue_not_even_the_same_uid() {
    namespace();
    let (grant, _fds) = tap(TapRequest { queues: 2, ..tap_request() }).unwrap();
    let tun: OwnedFd = OpenOptions::new().read(true).write(true).open("/dev/net/tun").unwrap().into();
    // Of this thread only: glibc would change the whole process.
    // SAFETY: a system call without pointers.
    let answer = unsafe { libc::syscall(libc::SYS_setresuid, UID, UID, UID) };
    assert_eq!(answer, 0);
    // IFF_TAP | IFF_MULTI_QUEUE | IFF_NO_PI | IFF_VNET_HDR
    assert_eq!(attach_queue(tun.as_fd(), grant.name, 0x5102), Err(Errno::EPERM));
}
