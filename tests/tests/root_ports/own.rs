//! The host's own addresses, of whatever kind, are not reached through a `user` network whose policy denies the host.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use netreeve_dataplane::port::user::Plan;
use netreeve_dataplane::port::user::policy::{Policy, Preset};
use netreeve_tests::netns::Netns;

use crate::changes::home;
use crate::support::Running;

const PATIENCE: Duration = Duration::from_secs(20);
const PORT: u16 = 7400;

/// A guest whose policy is the default, its host, and the far side; everybody listens at every address of his.
fn scene() -> (Netns, Netns, [TcpListener; 2], (Netns, Running)) {
    let plan = Plan { policy: Policy::new(&[], Preset::Vm, false), ..Plan::qemu() };
    let (guest, host, far, lane) = home(&plan);
    let listens = [&host, &far].map(|n| n.enter(|| TcpListener::bind(("::", PORT))).unwrap().unwrap());
    (guest, host, listens, (far, lane))
}

/// What becomes of a call of the guest's; none: it is answered.
fn trouble(guest: &Netns, to: &str) -> Option<ErrorKind> {
    let to = SocketAddr::new(to.parse().unwrap(), PORT);
    guest.enter(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().err().map(|e| e.kind())
}

#[test]
fn what_is_the_hosts_own_is_denied_whatever_makes_it_so() {
    let (guest, host, _listens, (_far, lane)) = scene();
    // Addresses; networks that are the host's by a route, with a source of their own or another; of a router, anycast.
    host.sh("ip route add local 10.1.0.0/16 dev lo; ip route add local 10.2.0.0/16 dev lo src 10.8.0.1
             ip route add local 10.3.0.0/16 dev va
             ip -6 route add local fd01::/64 dev lo; ip -6 route add local fd02::/64 dev lo src fd08::1
             ip -6 route add local fd03::/64 dev va
             echo 1 >/proc/sys/net/ipv6/conf/va/forwarding")
        .unwrap();
    for own in
        ["10.8.0.1", "10.1.2.3", "10.2.2.3", "10.3.2.3", "fd08::1", "fd01::5", "fd02::5", "fd03::5", "fd08::"]
    {
        assert_eq!(trouble(&guest, own), Some(ErrorKind::ConnectionRefused), "{own}");
    }
    for far in ["10.9.0.2", "fd09::2", "10.8.0.2", "fd08::2"] {
        assert_eq!(trouble(&guest, far), None, "{far}");
    }
    // A way out as wide as the loopback device does not make strangers the host's own.
    host.sh("ip link set va mtu 65535").unwrap();
    for far in ["10.9.0.2", "fd09::2"] {
        assert_eq!(trouble(&guest, far), None, "{far} by a wide link");
    }
    lane.end();
}

/// Where the kernel says nothing, an address is not taken for another's.
#[test]
fn where_nothing_is_learned_of_an_address_it_is_denied() {
    let (guest, host, _listens, (_far, lane)) = scene();
    host.sh("echo 40000 40001 >/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    // All ports that a socket could ask from. TCP has its own.
    let taken = [40_000, 40_001].map(|p| host.enter(|| UdpSocket::bind(("::", p))).unwrap().unwrap());
    for all in ["10.8.0.1", "fd08::1", "10.9.0.2", "fd09::2"] {
        assert_eq!(trouble(&guest, all), Some(ErrorKind::ConnectionRefused), "{all}");
    }
    drop(taken);
    for far in ["10.9.0.2", "fd09::2"] {
        // What was found of an address is believed for a moment.
        let until = Instant::now() + PATIENCE;
        while trouble(&guest, far).is_some() {
            assert!(Instant::now() < until, "{far}");
        }
    }
    for own in ["10.8.0.1", "fd08::1"] {
        assert_eq!(trouble(&guest, own), Some(ErrorKind::ConnectionRefused), "{own}");
    }
    lane.end();
}
