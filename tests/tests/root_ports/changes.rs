//! A host that changes beneath the `user` network: its addresses and its way out are others, as when a laptop is carried
//! from one network into another. The guest notices nothing but that what it had open by TCP ends.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use netreeve_dataplane::port::user::{self, Plan};
use netreeve_tests::netns::{Netns, veth};
use netreeve_tests::peers::ping_from;
use netreeve_tests::proc::Proc;

use crate::support::*;

const PATIENCE: Duration = Duration::from_secs(20);
/// The far side, and the host's address before and after.
const FAR: [(&str, &str, &str); 2] =
    [("10.9.0.2", "10.8.0.1", "10.7.0.1"), ("fd09::2", "fd08::1", "fd07::1")];

/// The guest behind a tap, the host with one way to the far side at a time, and the far side.
pub(crate) fn home(plan: &Plan) -> (Netns, Netns, Netns, Running) {
    let [guest, host, far] = ["guest", "host", "far"].map(|n| Netns::new(n).unwrap());
    veth(&host, "va", &far, "vb").unwrap();
    veth(&host, "vc", &far, "vd").unwrap();
    host.sh("ip addr add 10.8.0.1/24 dev va; ip addr add fd08::1/64 dev va nodad
             ip route add default via 10.8.0.2; ip route add default via fd08::2
             echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range")
        .unwrap();
    far.sh("ip addr add 10.8.0.2/24 dev vb; ip addr add fd08::2/64 dev vb nodad
            ip addr add 10.7.0.2/24 dev vd; ip addr add fd07::2/64 dev vd nodad
            ip addr add 10.9.0.2/32 dev lo; ip addr add fd09::2/128 dev lo nodad")
        .unwrap();
    let tap = tap_port(&guest, "g0", true);
    guest
        .sh("ip addr add 10.0.2.15/24 dev g0; ip addr add fec0::15/64 dev g0 nodad; ip link set g0 up
             ip route add default via 10.0.2.2; ip route add default via fec0::2")
        .unwrap();
    let lane = host.enter(|| run(one(user::open(plan, Vec::new()).unwrap()), tap)).unwrap();
    (guest, host, far, lane)
}

/// The guest's socket says something until the far side has heard it and was answered to, for a datagram may be lost on the
/// way. Whom the far side sees.
fn speaks(near: &UdpSocket, far: &UdpSocket, word: &[u8]) -> SocketAddr {
    let mut got = [0; 100];
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        // What was refused before is told now.
        let _ = near.send(word);
        let Some((_, from)) = far.recv_from(&mut got).ok().filter(|(n, _)| got[..*n] == *word) else {
            continue;
        };
        far.send_to(&[word, b" heard"].concat(), from).unwrap();
        if near.recv(&mut got).is_ok_and(|n| got[..n].strip_suffix(b" heard") == Some(word)) {
            return from;
        }
    }
    panic!("{} is never answered", String::from_utf8_lossy(word));
}

fn talks(guest: &Netns, l: &TcpListener) -> SocketAddr {
    let to = l.local_addr().unwrap();
    let mut near = guest.enter(|| TcpStream::connect_timeout(&to, PATIENCE)).unwrap().unwrap();
    let (mut far, from) = l.accept().unwrap();
    near.write_all(b"over TCP").unwrap();
    far.set_read_timeout(Some(PATIENCE)).unwrap();
    far.read_exact(&mut [0; 8]).unwrap();
    from
}

/// Answers that a running `ping` has had.
fn answers(ping: &Proc) -> usize {
    ping.lines().iter().filter(|l| l.text.contains("bytes from")).count()
}

#[test]
fn a_host_that_moves_takes_its_guest_along() {
    let (guest, host, far, lane) = home(&Plan::qemu());
    let bind = |ns: &Netns, at: &str| {
        let s = ns.enter(|| UdpSocket::bind(at)).unwrap().unwrap();
        s.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        s
    };
    let ends: Vec<_> = FAR
        .iter()
        .map(|(there, before, _)| {
            let at = SocketAddr::new(there.parse().unwrap(), 7000);
            let near = bind(&guest, if at.is_ipv4() { "0.0.0.0:5000" } else { "[::]:5001" });
            near.connect(at).unwrap();
            let far_end = bind(&far, &at.to_string());
            let listener = far.enter(|| TcpListener::bind(at)).unwrap().unwrap();
            assert_eq!(speaks(&near, &far_end, b"before").ip().to_string(), *before);
            assert_eq!(talks(&guest, &listener).ip().to_string(), *before);
            (near, far_end, listener)
        })
        .collect();
    // One that goes on asking all the time, under the same number.
    let pings: Vec<_> = FAR
        .iter()
        .map(|(there, ..)| {
            let mut ping = Command::new("ping");
            ping.args(["-n", "-i", "0.2", there]);
            let ping = guest.spawn("ping", ping).unwrap();
            ping.wait_for("bytes from", PATIENCE).unwrap();
            ping
        })
        .collect();
    host.sh("ip addr del 10.8.0.1/24 dev va; ip addr del fd08::1/64 dev va; ip link set va down
             ip addr add 10.7.0.1/24 dev vc; ip addr add fd07::1/64 dev vc nodad
             ip route replace default via 10.7.0.2; ip -6 route replace default via fd07::2")
        .unwrap();
    let moved: Vec<usize> = pings.iter().map(answers).collect();
    for ((near, far_end, listener), (_, _, after)) in ends.iter().zip(FAR) {
        assert_eq!(speaks(near, far_end, b"after").ip().to_string(), after, "the same socket of the guest's");
        assert_eq!(talks(&guest, listener).ip().to_string(), after);
    }
    for (ping, before) in pings.iter().zip(moved) {
        let until = Instant::now() + PATIENCE;
        // The first new one may have been underway before the host moved.
        while answers(ping) < before + 2 {
            assert!(Instant::now() < until, "it is answered no more: {}", ping.tail());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    drop(pings);
    for (there, ..) in FAR {
        assert!(ping_from(&guest, &format!("-c 2 -i 0.2 -W 2 {there}")).unwrap().received >= 1);
    }
    lane.end();
}
