//! The `user` network with a kernel for a guest: its datagrams, echo requests and fragments, and what it hears of those
//! that do not arrive. The guest is a namespace behind a tap; the host has a router before it, and behind that, on a
//! narrower link, is the far side.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

use netreeve_dataplane::port::user::{self, Forward, Plan, Way};
use netreeve_dataplane::stats::{Reason, Stats};
use netreeve_dataplane::sys::mmsg::Outgoing;
use netreeve_tests::netns::{Netns, veth};
use netreeve_tests::peers::ping_from;

use crate::support::*;

const FAR: [&str; 2] = ["10.9.0.2", "fd09::2"];

struct Home {
    guest: Netns,
    host: Netns,
    router: Netns,
    far: Netns,
    lane: Option<Running>,
}

impl Home {
    /// `forward`: a UDP port of the host's loopback and where it leads.
    fn new(pings: bool, forward: Option<(u16, &str)>) -> Self {
        let [guest, host, router, far] = ["guest", "host", "router", "far"].map(|n| Netns::new(n).unwrap());
        veth(&host, "va", &router, "vb").unwrap();
        veth(&router, "vc", &far, "vd").unwrap();
        host.sh("ip addr add 10.8.0.1/24 dev va; ip addr add fd08::1/64 dev va nodad
                 ip route add default via 10.8.0.2; ip route add default via fd08::2")
            .unwrap();
        router
            .sh("ip addr add 10.8.0.2/24 dev vb; ip addr add fd08::2/64 dev vb nodad
                 ip link set vc mtu 1400
                 ip addr add 10.9.0.1/24 dev vc; ip addr add fd09::1/64 dev vc nodad
                 ip route add unreachable 198.51.100.0/24; ip route add unreachable 2001:db8::/32
                 echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
                 echo 0 >/proc/sys/net/ipv6/icmp/ratelimit")
            .unwrap();
        far.sh("ip link set vd mtu 1400; ip addr add 10.9.0.2/24 dev vd; ip addr add fd09::2/64 dev vd nodad
                ip route add default via 10.9.0.1; ip route add default via fd09::1
                echo 0 >/proc/sys/net/ipv6/icmp/ratelimit")
            .unwrap();
        if pings {
            host.sh("echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range").unwrap();
        }
        let tap = tap_port(&guest, "g0", true);
        guest
            .sh("ip addr add 10.0.2.15/24 dev g0; ip addr add fec0::15/64 dev g0 nodad; ip link set g0 up
                 ip route add default via 10.0.2.2; ip route add default via fec0::2")
            .unwrap();
        let lane = host
            .enter(|| {
                let mut plan = Plan::qemu();
                let mut fds = Vec::new();
                if let Some((port, to)) = forward {
                    plan.forwards.push(Forward {
                        id: 1,
                        way: Way::Udp,
                        guest: to.parse().unwrap(),
                        range: None,
                    });
                    fds.push(UdpSocket::bind(("127.0.0.1", port)).unwrap().into());
                }
                run(one(user::open(&plan, fds).unwrap()), tap)
            })
            .unwrap();
        Self { guest, host, router, far, lane: Some(lane) }
    }

    fn socket(ns: &Netns, on: &str) -> UdpSocket {
        let s = ns.enter(|| UdpSocket::bind(on)).unwrap().unwrap();
        s.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        s
    }

    /// What a `ping` of the guest's says, with `-n`.
    fn says(&self, arguments: &str) -> String {
        let mut ping = Command::new("ping");
        ping.args(["-n"]).args(arguments.split_whitespace());
        self.guest.run("ping", ping, Duration::from_secs(20)).unwrap().text
    }

    fn end(mut self) -> Stats {
        self.lane.take().unwrap().end().0
    }
}

fn payload(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 7 + i / 256) as u8).collect()
}

/// Lengths up to the largest that there is, whole and in fragments of the guest's, of the host's and of ours.
#[test]
fn datagrams_of_all_lengths_pass_both_ways() {
    let home = Home::new(false, None);
    for (there, on) in FAR.into_iter().zip(["0.0.0.0:0", "[::]:0"]) {
        let far = Home::socket(&home.far, &SocketAddr::new(there.parse().unwrap(), 7000).to_string());
        let near = Home::socket(&home.guest, on);
        // A guest that does not find out about the way's MTU: what is too long for it is cut by whoever must.
        near.connect(SocketAddr::new(there.parse().unwrap(), 7000)).unwrap();
        let most = if far.local_addr().unwrap().is_ipv4() { 65507 } else { 65487 };
        let mut got = vec![0; 70_000];
        for n in [0, 1, 100, 1300, 1472, 2000, 9000, 30_000, most] {
            let data = payload(n);
            // The way's MTU is learned from a datagram that is lost; so are fragments that find no room.
            let mut tries = 0;
            far.set_read_timeout(Some(Duration::from_millis(700))).unwrap();
            let (len, from) = loop {
                tries += 1;
                assert!(tries < 8, "{n} bytes to {there} never arrive");
                let sent = near.send(&data);
                assert!(
                    sent.is_ok() || sent.as_ref().unwrap_err().raw_os_error() == Some(libc::EMSGSIZE),
                    "{sent:?}"
                );
                if let Ok(got) = far.recv_from(&mut got) {
                    break got;
                }
            };
            assert_eq!(got[..len], data, "{n} to {there}");
            far.send_to(&data, from).unwrap();
            let len = near.recv(&mut got).unwrap();
            assert_eq!(got[..len], data, "{n} from {there}");
        }
        // A train of equal ones in order, which the kernels may join and cut again.
        for i in 0..40_u32 {
            near.send(&[&i.to_be_bytes()[..], &payload(1100)].concat()).unwrap();
        }
        far.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        for i in 0..40_u32 {
            assert_eq!(far.recv(&mut got).unwrap(), 1104);
            assert_eq!(got[..4], i.to_be_bytes());
        }
        trains(&near, &far, from_of(&near, &far));
    }
    home.end();
}

/// The address by which `far` sees `near`, which is connected to it.
fn from_of(near: &UdpSocket, far: &UdpSocket) -> SocketAddr {
    near.send(b"who").unwrap();
    let (n, from) = far.recv_from(&mut [0; 10]).unwrap();
    assert_eq!(n, 3);
    from
}

/// Forty datagrams as one message, cut by the last who can: each kernel passes them on as one (UDP's segmentation).
fn trains(near: &UdpSocket, far: &UdpSocket, from: SocketAddr) {
    let train: Vec<u8> = (0..40_u32).flat_map(|i| [&i.to_be_bytes()[..], &payload(1100)].concat()).collect();
    let arrives = |at: &UdpSocket| {
        let mut got = [0; 2000];
        for want in train.chunks(1104) {
            assert_eq!(at.recv(&mut got).unwrap(), want.len());
            assert_eq!(got[..want.len()], *want);
        }
    };
    for _ in 0..4 {
        let mut out = Outgoing::new();
        out.private(&train);
        out.finish(1104);
        assert_eq!(out.send(near.as_fd()).unwrap(), 1);
        arrives(far);
        let mut out = Outgoing::new();
        out.towards(from);
        out.private(&train);
        out.finish(1104);
        assert_eq!(out.send(far.as_fd()).unwrap(), 1);
        arrives(near);
    }
}

#[test]
fn the_guest_hears_why_nothing_arrives() {
    let home = Home::new(true, None);
    let word = |says: &str, what: &str| assert!(says.contains(what), "{what:?} is not in {says}");
    for (there, nowhere, gateway, first) in
        [(FAR[0], "198.51.100.7", "10.0.2.2", "10.8.0.2"), (FAR[1], "2001:db8::7", "fec0::2", "fd08::2")]
    {
        assert_eq!(ping_from(&home.guest, &format!("-c 3 -i 0.1 -W 2 {there}")).unwrap().received, 3);
        assert_eq!(ping_from(&home.guest, &format!("-c 3 -i 0.1 -W 2 {gateway}")).unwrap().received, 3);
        assert_eq!(
            ping_from(&home.guest, &format!("-c 2 -i 0.1 -W 2 -s 20000 {gateway}")).unwrap().received,
            2
        );
        // By hop: we are the first, as a router is.
        word(&home.says(&format!("-c 1 -W 2 -t 1 {there}")), &format!("From {gateway}"));
        word(&home.says(&format!("-c 1 -W 2 -t 2 {there}")), &format!("From {first}"));
        assert_eq!(ping_from(&home.guest, &format!("-c 1 -W 2 -t 3 {there}")).unwrap().received, 1);
        let says = home.says(&format!("-c 1 -W 2 {nowhere}"));
        std::thread::sleep(Duration::from_millis(1500));
        word(&says, &format!("From {first}"));
        word(&says, "nreachable");
        // Too long for the way, and not to be cut.
        let says = home.says(&format!("-c 2 -i 0.2 -W 2 -M do -s 1440 {there}"));
        assert!(says.contains("mtu = 1400") || says.contains("mtu=1400"), "{says}");
        assert_eq!(ping_from(&home.guest, &format!("-c 1 -W 2 -M do -s 1340 {there}")).unwrap().received, 1);
    }
    // A datagram to a port where nobody listens.
    for there in FAR {
        let there: IpAddr = there.parse().unwrap();
        let s = Home::socket(&home.guest, if there.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" });
        s.connect((there, 9)).unwrap();
        s.send(b"anybody?").unwrap();
        assert_eq!(s.recv(&mut [0; 10]).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    }
    // The way's MTU, as the guest's kernel has learned it from what we said about a datagram.
    home.guest.sh("ip route flush cache").unwrap();
    let s = Home::socket(&home.guest, "0.0.0.0:0");
    s.connect((FAR[0], 7)).unwrap();
    for _ in 0..2 {
        let _ = s.send(&payload(1472));
        std::thread::sleep(Duration::from_millis(200));
    }
    let route = home.guest.sh(&format!("ip route get {}", FAR[0])).unwrap();
    assert!(route.contains("mtu 1400"), "{route}");
    // Every hop by UDP, as traceroute has it.
    let hops =
        home.guest.sh(&format!("busybox traceroute -n -q 1 -w 2 -m 5 {} 2>/dev/null", FAR[0])).unwrap();
    let hops: Vec<&str> =
        hops.lines().filter_map(|l| l.split_whitespace().nth(1)).filter(|w| w.contains('.')).collect();
    assert_eq!(hops, ["10.0.2.2", "10.8.0.2", FAR[0]]);
    drop(home.router);
    let stats = home.lane.unwrap().end().0;
    assert_eq!(stats.drops[Reason::Malformed as usize], 0);
}

#[test]
fn without_ping_sockets_only_the_gateway_answers() {
    let home = Home::new(false, None);
    for (gateway, there) in ["10.0.2.2", "fec0::2"].into_iter().zip(FAR) {
        assert_eq!(ping_from(&home.guest, &format!("-c 2 -i 0.1 -W 2 {gateway}")).unwrap().received, 2);
        let says = home.says(&format!("-c 1 -W 2 {there}"));
        assert!(says.contains(&format!("From {gateway}")), "{says}");
    }
    home.end();
}

#[test]
fn a_forward_leads_to_the_guest_and_back() {
    let home = Home::new(false, Some((5353, "10.0.2.15:53")));
    let server = Home::socket(&home.guest, "10.0.2.15:53");
    let client = Home::socket(&home.host, "127.0.0.1:0");
    client.connect("127.0.0.1:5353").unwrap();
    // Nobody has heard of the guest: the first ones only ask who it is.
    server.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut tries = 0;
    let mut got = vec![0; 70_000];
    loop {
        client.send(b"who is there?").unwrap();
        match server.recv_from(&mut got) {
            Ok((n, _)) => break assert_eq!(got[..n], b"who is there?"[..]),
            Err(_) => tries += 1,
        }
        assert!(tries < 50, "the guest is never found");
    }
    server.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    for n in [1, 1472, 30_000] {
        let data = payload(n);
        client.send(&data).unwrap();
        let (len, from) = loop {
            let (len, from) = server.recv_from(&mut got).unwrap();
            // One of the first may have come late.
            if got[..len] != b"who is there?"[..] {
                break (len, from);
            }
        };
        assert_eq!(from, SocketAddr::new("10.0.2.2".parse().unwrap(), client.local_addr().unwrap().port()));
        assert_eq!(got[..len], data);
        server.send_to(&data, from).unwrap();
        let len = client.recv(&mut got).unwrap();
        assert_eq!(got[..len], data);
    }
    home.end();
}
