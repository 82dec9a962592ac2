//! Datagram ports on a veth pair: L2TPv3 over IP, and hosts that talk over each form.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use netreeve_dataplane::port::dgram::l2tp::{Carrier, Cookie, Counter, Session};
use netreeve_dataplane::port::{Port, dgram};
use netreeve_dataplane::spec::dgram::{Dgram, Ends, Host};
use netreeve_dataplane::spec::l2tpv3::L2tpv3;
use netreeve_dataplane::stats::Reason;
use netreeve_dataplane::supervise::ask::{Asker, Door};
use netreeve_dataplane::supervise::datagram::{self, Opened};
use netreeve_dataplane::sys::fd::raw_socket;
use netreeve_tests::netns::{Netns, veth};
use netreeve_tests::peers::ping_from;
use netreeve_tests::sys::ip_options;
use nix::sys::socket::{MsgFlags, SockaddrIn, bind, sendto};

use crate::support::*;

/// Two namespaces with the ends of a link.
fn link() -> (Netns, Netns) {
    let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
    veth(&a, "va", &b, "vb").unwrap();
    a.sh("ip addr add 10.8.0.1/24 dev va; ip addr add fd08::1/64 dev va nodad").unwrap();
    b.sh("ip addr add 10.8.0.2/24 dev vb; ip addr add fd08::2/64 dev vb nodad").unwrap();
    (a, b)
}

fn host(text: &str, port: u16) -> Host {
    Host { host: text.into(), port, ipv4: true, ipv6: true }
}

fn port(opened: Opened) -> Box<dyn Port> {
    one(dgram::open(&opened.plan, opened.sockets).unwrap())
}

fn tunnel(ns: &Netns, from: &str, to: &str, session: Session) -> Box<dyn Port> {
    let at = if session.carrier == Carrier::Udp { 1701 } else { 0 };
    let spec = L2tpv3 { src: host(from, at), dst: host(to, at), session };
    ns.enter(|| port(datagram::l2tp("t", &spec, &mut Asker::new(Door::default())).unwrap())).unwrap()
}

fn session(carrier: Carrier, tx: u32, rx: u32) -> Session {
    let (a, b) = (u64::from(tx) << 40, u64::from(rx) << 40);
    Session { carrier, tx, rx, cookie: Cookie::Eight(a, b), counter: Counter::Counts, offset: 3 }
}

#[allow(clippy::print_stderr, reason = "figures for whoever reads the log")]
/// Both hosts' taps on our lanes, joined by datagram ports.
fn hosts_talk(a: &Netns, b: &Netns, there: Box<dyn Port>, here: Box<dyn Port>) {
    let lane_a = run(there, tap_port(a, "ta", true));
    let lane_b = run(here, tap_port(b, "tb", true));
    a.sh("ip addr add 10.9.0.1/24 dev ta; ip link set ta mtu 1400 up").unwrap();
    b.sh("ip addr add 10.9.0.2/24 dev tb; ip link set tb mtu 1400 up").unwrap();
    assert_eq!(ping_from(a, "-c 3 -i 0.1 -W 1 10.9.0.2").unwrap().received, 3);
    assert_eq!(ping_from(a, "-c 3 -i 0.1 -W 1 -s 1372 -M do 10.9.0.2").unwrap().received, 3);
    let (there, back) = (iperf(a, b, "10.9.0.2", ""), iperf(a, b, "10.9.0.2", "-R"));
    eprintln!("{:.2} and {:.2} Gbit/s", there / 1e9, back / 1e9);
    assert!(there > 1e6 && back > 1e6);
    let ((na, ta), (nb, tb)) = (lane_a.end(), lane_b.end());
    assert!(na.tx_frames > 1000 && nb.tx_frames > 100);
    for s in [ta, tb] {
        assert_eq!(s.drops, [0; Reason::COUNT]);
    }
}

#[test]
fn hosts_talk_over_tunnels_of_every_carrier() {
    for (carrier, here, there) in [
        (Carrier::Udp, "10.8.0.1", "10.8.0.2"),
        (Carrier::Udp, "fd08::1", "fd08::2"),
        (Carrier::Ip4, "10.8.0.1", "10.8.0.2"),
        (Carrier::Ip6, "fd08::1", "fd08::2"),
    ] {
        let (a, b) = link();
        let far = tunnel(&b, there, here, session(carrier, 2, 1));
        hosts_talk(&a, &b, tunnel(&a, here, there, session(carrier, 1, 2)), far);
    }
}

#[test]
fn hosts_talk_over_a_multicast_group() {
    for (group, one, other) in
        [("239.8.8.8:4000", "10.8.0.1", "10.8.0.2"), ("[ff15::8:8]:4000", "fd08::1", "fd08::2")]
    {
        let (a, b) = link();
        let of = |ns: &Netns, ip: &str| {
            let ends = Ends::Multicast(group.parse().unwrap(), Some(ip.parse().unwrap()));
            let spec = Dgram { ends, strict: false, undone: None };
            ns.enter(|| port(datagram::open("m", &spec, vec![], 0o600).unwrap())).unwrap()
        };
        let far = of(&b, other);
        hosts_talk(&a, &b, of(&a, one), far);
    }
}

#[test]
fn ip_options_are_passed_over_and_other_sessions_are_not_heard() {
    let (a, b) = link();
    let s = session(Carrier::Ip4, 1, 2);
    let mut p = tunnel(&a, "10.8.0.1", "10.8.0.2", s);
    let back = Session { tx: 2, rx: 1, cookie: Cookie::Eight(2 << 40, 1 << 40), ..s };
    let wire = |s: &Session, f: &[u8]| [s.head(1).bytes(), s.zeros(), f].concat();
    let from = |ns: &Netns, ip: [u8; 4], options: bool, bytes: &[u8]| {
        ns.enter(|| {
            let fd: OwnedFd = raw_socket(false, 115).unwrap();
            bind(fd.as_raw_fd(), &SockaddrIn::new(ip[0], ip[1], ip[2], ip[3], 0)).unwrap();
            if options {
                // Seven times nothing, and the end (RFC 791).
                ip_options(fd.as_fd(), &[1, 1, 1, 1, 1, 1, 1, 0]).unwrap();
            }
            sendto(fd.as_raw_fd(), bytes, &SockaddrIn::new(10, 8, 0, 1, 0), MsgFlags::empty()).unwrap();
        })
        .unwrap();
    };
    let mut hands = Hands::new();
    let peer = [10, 8, 0, 2];
    from(&b, peer, true, &wire(&back, &frame(1, 60)));
    assert_eq!(hands.recv_ours(p.as_mut()), [frame(1, 60)]);
    // Another session, a control message, a stranger: the kernel keeps them from us.
    b.sh("ip addr add 10.8.0.3/24 dev vb").unwrap();
    from(&b, peer, false, &wire(&Session { tx: 3, ..back }, &frame(2, 60)));
    from(&b, peer, false, &[0; 40]);
    from(&b, [10, 8, 0, 3], false, &wire(&back, &frame(3, 60)));
    // The wrong cookie comes to us, and no further.
    from(&b, peer, false, &wire(&Session { cookie: Cookie::Eight(9, 9), ..back }, &frame(4, 60)));
    from(&b, peer, false, &wire(&back, &frame(5, 60)));
    assert_eq!(hands.recv_ours(p.as_mut()), [frame(5, 60)]);
    let mut want = [0; Reason::COUNT];
    want[Reason::Cookie as usize] = 1;
    assert_eq!(p.stats().drops, want);
}
