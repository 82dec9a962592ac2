//! The port without its rooms: what is read, what is built, what waits and for how long.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netreeve_shared::mac::Mac;
use netreeve_shared::vnet::Vnet;
use nix::sys::eventfd::{EfdFlags, EventFd};
use proptest::prelude::*;

use super::packet::{Ip, Part, Piece};
use super::plan::Range;
use super::policy::{Direction, Policy, Preset, Proto, Rule, Verdict};
use super::*;
use crate::frame::HEAD;
use crate::mem::{Buf, Seg};
use crate::offload::sum::Sum;
use crate::sys::io::Gather;

const GUEST: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

pub(super) fn plan() -> Plan {
    Plan { resolvers: vec!["192.0.2.53:53".parse().unwrap()], ..Plan::qemu() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// What waits for the guest, taken as a lane without a lending taker would.
fn given(cx: &mut Cx) -> Vec<Vec<u8>> {
    let (mem, mut bay, mut b) = (Buf::new(1 << 20).unwrap(), Bay::default(), Batch::new());
    b.landing.open_pool(mem.seg(0, mem.len()));
    cx.out.give(&mut bay, &mut b, &cx.net, &mut cx.stats);
    frames(&b)
}

pub(super) fn frames(b: &Batch) -> Vec<Vec<u8>> {
    let whole = |f: &crate::frame::Frame| {
        let mut bytes = f.head().to_vec();
        for seg in b.body(f) {
            let mut part = vec![0; seg.len() as usize];
            seg.copy_out(&mut part);
            bytes.extend(part);
        }
        assert_eq!(bytes.len(), f.len as usize);
        bytes
    };
    b.frames().iter().map(whole).collect()
}

fn parsed(frame: &[u8]) -> (Mac, Ip, Vec<u8>) {
    let p = Packet::parse(frame, &[], frame.len() as u32, Vnet::default()).unwrap();
    let ip = p.ip.unwrap();
    let mut transport = vec![0; ip.len as usize];
    assert_eq!(p.copy(0, &mut transport), ip.len as usize);
    (p.to, ip, transport)
}

/// The sum over a transport's bytes with its pseudo-header comes to nothing.
fn is_summed(ip: &Ip, transport: &[u8], pseudo: bool) -> bool {
    let mut s = if pseudo { build::pseudo(ip.src, ip.dst, ip.proto, ip.len) } else { Sum::default() };
    s.bytes(transport);
    s.partial() == [0xff, 0xff]
}

#[test]
fn what_is_built_reads_back_in_both_families() {
    let mut cx = context(&plan()).unwrap();
    for (host, guest) in [("10.0.2.2", "10.0.2.15"), ("fec0::2", "fec0::15")] {
        let (host, guest) = (ip(host), ip(guest));
        cx.net.learn(guest, GUEST);
        let (from, to) = (SocketAddr::new(host, 53), SocketAddr::new(guest, 4000));
        assert!(build::datagram(&mut cx, from, to, &[7; 301]));
        assert!(build::icmp(&mut cx, (host, guest), (0, 0), [1, 2, 3, 4], b"echo"));
        let got = given(&mut cx);
        let (mac, ip, udp) = parsed(&got[0]);
        assert_eq!((mac, ip.src, ip.dst, ip.proto, ip.len), (GUEST, host, guest, UDP, 309));
        assert_eq!(udp[..6], [0, 53, 0x0f, 0xa0, 1, 53]);
        assert_eq!(udp[8..], [7; 301]);
        assert!(is_summed(&ip, &udp, true));
        let (_, ip, icmp) = parsed(&got[1]);
        assert_eq!(
            (ip.proto, &icmp[4..]),
            (if host.is_ipv4() { ICMP } else { ICMPV6 }, &b"\x01\x02\x03\x04echo"[..])
        );
        assert!(is_summed(&ip, &icmp, host.is_ipv6()));
        if host.is_ipv4() {
            let mut header = Sum::default();
            header.bytes(&got[0][14..34]);
            assert_eq!(header.partial(), [0xff, 0xff]);
        }
    }
    assert!(build::ip(&cx.net, ip("10.0.2.2"), ip("fec0::15"), UDP, 8).is_none());
}

#[test]
fn a_guest_that_was_not_heard_of_is_asked_for() {
    let mut cx = context(&plan()).unwrap();
    assert!(build::datagram(&mut cx, at("10.0.2.2:1"), at("10.0.2.15:2"), b"x"));
    assert!(build::datagram(&mut cx, at("[fec0::2]:1"), at("[fec0::ab:cdef]:2"), b"x"));
    let got = given(&mut cx);
    let ours = plan::MAC.0;
    assert_eq!(got[0][..6], [0xff; 6]);
    assert_eq!(got[0][12..22], [8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    assert_eq!(
        (&got[0][22..28], &got[0][28..32], &got[0][38..]),
        (&ours[..], &[10, 0, 2, 2][..], &[10, 0, 2, 15][..])
    );
    assert_eq!(got[1][..6], [0x33, 0x33, 0xff, 0xab, 0xcd, 0xef]);
    let (_, ip, icmp) = parsed(&got[1]);
    assert_eq!(
        (ip.ttl, icmp[0], &icmp[8..24]),
        (255, 135, &"fec0::ab:cdef".parse::<std::net::Ipv6Addr>().unwrap().octets()[..])
    );
    assert!(is_summed(&ip, &icmp, true));
    assert_eq!(cx.stats.drops[Reason::Unreachable as usize], 2);
}

#[test]
fn errors_quote_what_was_sent_and_answer_no_errors() {
    let mut cx = context(&plan()).unwrap();
    let guest = ip("10.0.2.15");
    cx.net.learn(guest, GUEST);
    cx.net.learn(ip("198.51.100.1"), GUEST);
    assert!(build::datagram(&mut cx, at("10.0.2.15:9"), at("198.51.100.1:7"), &[1; 700]));
    let mut sent = cx.out_first();
    sent[..6].copy_from_slice(&plan::MAC.0);
    let p = Packet::parse(&sent, &[], sent.len() as u32, Vnet::default()).unwrap();
    assert!(build::unreachable(&mut cx, ip("10.0.2.2"), &p, build::Unreachable::TooBig(1400)));
    let error = cx.out_first();
    let (_, ip_, icmp) = parsed(&error);
    assert_eq!(
        (ip_.src, ip_.dst, &icmp[..2], &icmp[6..8]),
        (ip("10.0.2.2"), guest, &[3, 4][..], &1400u16.to_be_bytes()[..])
    );
    assert_eq!(icmp[8..], sent[14..14 + 548]);
    assert!(is_summed(&ip_, &icmp, false));
    let p = Packet::parse(&error, &[], error.len() as u32, Vnet::default()).unwrap();
    assert!(!build::unreachable(&mut cx, ip("10.0.2.2"), &p, build::Unreachable::Port));
}

#[test]
fn heads_that_lie_are_malformed() {
    let mut cx = context(&plan()).unwrap();
    cx.net.learn(ip("10.0.2.15"), GUEST);
    build::datagram(&mut cx, at("10.0.2.2:1"), at("10.0.2.15:2"), &[9; 40]);
    let good = cx.out_first();
    let parse = |frame: &[u8]| Packet::parse(frame, &[], frame.len() as u32, Vnet::default()).map(|_| ());
    assert_eq!(parse(&good), Ok(()));
    // Ethernet's padding is no payload.
    let mut padded = good.clone();
    padded.extend([0; 9]);
    assert_eq!(parsed(&padded).2.len(), 48);
    for (at, byte) in [(14, 0x46 - 2), (14, 0x55), (16, 0xff), (17, 19), (17, 69)] {
        let mut bad = good.clone();
        bad[at] = byte;
        assert_eq!(parse(&bad), Err(Reason::Malformed), "{at} {byte:x}");
    }
    assert_eq!(parse(&good[..13]), Err(Reason::Runt));
    assert_eq!(parse(&good[..30]), Err(Reason::Malformed));
    let mut strange = good.clone();
    strange[12] = 0x81;
    assert_eq!(parse(&strange), Err(Reason::Unknown));
    // A fragment whose end lies behind any packet's.
    let mut late = good;
    late[20..22].copy_from_slice(&0x1fffu16.to_be_bytes());
    assert_eq!(parse(&late), Err(Reason::Malformed));
}

#[test]
fn extension_headers_and_fragments_are_read() {
    let mut frame = vec![0; 14];
    frame[12..].copy_from_slice(&[0x86, 0xdd]);
    frame.extend([0x6a, 0xb0, 0, 0, 0, 8 + 16 + 8 + 16, 0, 63]);
    frame.extend([0x20; 16]);
    frame.extend([0x30; 16]);
    frame.extend([60, 0, 1, 4, 0, 0, 0, 0]);
    frame.extend([44, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend([17, 0, 0, 0x11, 0, 0, 1, 2]);
    frame.extend([0xaa; 16]);
    let p = Packet::parse(&frame, &[], frame.len() as u32, Vnet::default()).unwrap();
    let ip = p.ip.unwrap();
    assert_eq!((ip.proto, ip.ttl, ip.class, ip.len, ip.at), (17, 63, 0xab, 16, 86));
    assert_eq!(ip.piece, Some(Piece { id: 0x102, offset: 16, more: true }));
    assert_eq!(p.transport(), [0xaa; 16]);
    // All of a packet as one fragment (RFC 6946).
    frame[81] = 0;
    let p = Packet::parse(&frame, &[], frame.len() as u32, Vnet::default()).unwrap();
    assert_eq!(p.ip.unwrap().piece, None);
    // More headers than anybody sends.
    let mut long = frame[..20].to_vec();
    long.extend([60, 63]);
    long.extend([1; 32]);
    long.extend([60, 0, 1, 4, 0, 0, 0, 0].repeat(6));
    long[18..20].copy_from_slice(&48u16.to_be_bytes());
    let p = Packet::parse(&long, &[], long.len() as u32, Vnet::default()).unwrap();
    assert_eq!((p.ip.unwrap().proto, p.ip.unwrap().len), (60, 16), "not looked into");
}

#[test]
fn payload_is_copied_and_gathered_across_head_and_body() {
    let mut cx = context(&plan()).unwrap();
    cx.net.learn(ip("10.0.2.15"), GUEST);
    let payload: Vec<u8> = (0..600u32).map(|i| i as u8).collect();
    build::datagram(&mut cx, at("10.0.2.2:1"), at("10.0.2.15:2"), &payload);
    let frame = cx.out_first();
    let mem = Buf::new(4096).unwrap();
    let (head, rest) = frame.split_at(HEAD);
    mem.seg(100, 4096).copy_in(&rest[..51]);
    mem.seg(1000, 4096).copy_in(&rest[51..]);
    // Behind the packet's end: padding.
    let body = [mem.seg(100, 51), Seg::EMPTY, mem.seg(1000, rest.len() as u32 - 51 + 20)];
    let p = Packet::parse(head, &body, frame.len() as u32 + 20, Vnet::default()).unwrap();
    for from in [0u32, 8, 90, 93, 94, 95, 144, 145, 146, 607, 608, 700] {
        let want = frame[34..].get(from as usize..).unwrap_or_default();
        let mut got = vec![0; 700];
        let n = p.copy(from, &mut got);
        assert_eq!(got[..n], *want, "{from}");
        let mut g = Gather::<8>::new();
        assert!(p.gather(from, &mut g));
        assert_eq!(g.bytes(), want.len());
    }
    let mut heads = 0;
    p.parts(&p.ip.unwrap(), 8, |part| {
        heads += u32::from(matches!(part, Part::Head(_)));
        true
    });
    assert_eq!(heads, 1);
    let mut g = Gather::<2>::new();
    assert!(!p.gather(0, &mut g), "three parts");
}

#[test]
fn the_queue_is_bounded_and_waits_for_room() {
    let mut cx = context(&plan()).unwrap();
    cx.net.learn(ip("10.0.2.15"), GUEST);
    let to = at("10.0.2.15:2");
    let mut n = 0;
    while build::datagram(&mut cx, at("10.0.2.2:1"), to, &[0; 900]) {
        n += 1;
    }
    assert!((100..=1024).contains(&n), "{n}");
    assert_eq!(cx.stats.drops[Reason::Full as usize], 1);
    let (mem, mut bay, mut b) = (Buf::new(8192).unwrap(), Bay::default(), Batch::new());
    let mut seen = 0;
    while !cx.out.is_empty() {
        b.clear();
        b.landing.open(12, true);
        (0..4).for_each(|i| b.landing.offer(&[mem.seg(i * 512, 512)], i));
        cx.out.give(&mut bay, &mut b, &cx.net, &mut cx.stats);
        assert_eq!(b.len(), 2, "each takes two slots");
        assert!(frames(&b).iter().all(|f| f.len() == 942));
        seen += b.len();
    }
    assert_eq!(seen, n);
    assert_eq!(cx.stats.rx_frames, n as u64);
}

#[test]
fn timers_come_in_their_order_and_never_early() {
    let start = Instant::now();
    let mut t = Timers::new(start).unwrap();
    let token = |index| Token { who: Who::Tcp, kind: 1, index, generation: 9 };
    let ms = |n| start + Duration::from_millis(n);
    t.at(ms(95), token(3));
    t.at(ms(5), token(1));
    t.at(ms(12), token(2));
    assert_eq!(t.next(ms(9)), None);
    assert_eq!(t.next(ms(10)), Some(token(1)));
    assert_eq!(t.next(ms(19)), None);
    assert_eq!(t.next(ms(20)), Some(token(2)));
    assert_eq!(t.next(ms(99)), None);
    assert_eq!(t.next(ms(5000)), Some(token(3)));
    assert_eq!(t.next(ms(5000)), None);
    // The descriptor becomes readable when the first is due.
    let poll = Poll::new().unwrap();
    poll.add(t.fd(), token(0), Want::READ).unwrap();
    t.at(Instant::now() + Duration::from_millis(30), token(4));
    t.arm(Instant::now(), Some(Instant::now() + Duration::from_secs(9))).unwrap();
    let mut events = Vec::new();
    while events.is_empty() {
        poll.events(&mut events).unwrap();
    }
    t.rang();
    assert_eq!(t.next(Instant::now()), Some(token(4)));
}

#[test]
fn events_carry_their_tokens_once() {
    let poll = Poll::new().unwrap();
    let e = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    for who in [Who::Port, Who::Tcp, Who::Udp, Who::Icmp, Who::Services, Who::Fragments] {
        let token = Token { who, kind: 0xab, index: 0xdead_beef, generation: 0x1234 };
        poll.add(e.as_fd(), token, Want::BOTH).unwrap();
        e.write(1).unwrap();
        let mut events = Vec::new();
        assert!(!poll.events(&mut events).unwrap());
        let ready = Ready { read: true, write: true, ..Ready::default() };
        assert_eq!(events, [(token, ready)]);
        assert!(!poll.events(&mut events).unwrap());
        assert_eq!(events.len(), 1, "edge-triggered");
        poll.remove(e.as_fd()).unwrap();
    }
}

#[test]
fn destinations_are_what_the_guest_means() {
    let cx = context(&plan()).unwrap();
    let table = [
        ("10.0.2.2:80", Some("127.0.0.1:80")),
        ("[fec0::2]:80", Some("[::1]:80")),
        ("10.0.2.3:53", Some("192.0.2.53:53")),
        ("[fec0::3]:53", Some("192.0.2.53:53")),
        ("10.0.2.3:54", None),
        ("10.0.2.77:80", None),
        ("[fec0::77]:80", None),
        ("255.255.255.255:9", None),
        ("224.0.0.1:9", None),
        ("[ff02::1]:9", None),
        ("0.0.0.0:9", None),
        ("198.51.100.1:443", Some("198.51.100.1:443")),
        ("[2001:db8::1]:443", Some("[2001:db8::1]:443")),
        ("127.0.0.1:22", Some("127.0.0.1:22")),
    ];
    for (guest, host) in table {
        assert_eq!(cx.net.route(at(guest)), host.map(at), "{guest}");
    }
    for (from, seen) in [
        ("127.0.0.1:9", "10.0.2.2:9"),
        ("[::1]:9", "[fec0::2]:9"),
        ("198.51.100.1:9", "198.51.100.1:9"),
        ("10.0.2.9:9", "10.0.2.2:9"),
    ] {
        assert_eq!(cx.net.seen_as(at(from)), Some(at(seen)));
    }
    let restricted = context(&Plan { restrict: true, ..plan() }).unwrap();
    for (from, seen) in [("198.51.100.1:9", "10.0.2.2:9"), ("[2001:db8::1]:9", "[fec0::2]:9")] {
        assert_eq!(restricted.net.seen_as(at(from)), Some(at(seen)), "it knows of no router to answer by");
    }
    assert_eq!(restricted.route(Proto::Tcp, at("198.51.100.1:443")).1, Verdict::Drop);
    let local = Rule {
        verdict: Verdict::Refuse,
        direction: Direction::Out,
        proto: None,
        at: policy::Where::Host,
        ports: None,
    };
    let policy = Policy { rules: vec![local], otherwise: Verdict::Pass };
    let strict = context(&Plan { policy, ..plan() }).unwrap();
    assert_eq!(strict.route(Proto::Tcp, at("10.0.2.2:22")), (at("127.0.0.1:22"), Verdict::Refuse));
    assert_eq!(strict.route(Proto::Udp, at("10.0.2.3:53")).1, Verdict::Pass);
}

#[test]
fn what_is_learned_is_bounded_and_the_newest() {
    let mut net = Net::new(&plan());
    for i in 0..1000u32 {
        net.learn(IpAddr::V4((0x0a00_0300 + i).into()), GUEST);
    }
    net.learn(ip("10.0.2.15"), GUEST);
    net.learn(ip("10.0.2.2"), GUEST);
    net.learn(ip("10.0.2.16"), plan::MAC);
    net.learn(ip("10.0.2.16"), Mac::BROADCAST);
    assert_eq!(net.mac_of(ip("10.0.2.15")), Some(GUEST));
    assert_eq!((net.mac_of(ip("10.0.2.2")), net.mac_of(ip("10.0.2.16"))), (None, None));
    assert_eq!((net.mac_of(ip("10.0.3.0")), net.guest(ip("0.0.0.0"))), (None, Some(ip("10.0.2.15"))));
    let moved = Mac([0x52, 0x54, 0, 0, 0, 9]);
    net.learn(ip("10.0.2.15"), moved);
    assert_eq!(net.mac_of(ip("10.0.2.15")), Some(moved));
    assert_eq!(net.link_local, "fe80::5055:aff:fe00:202".parse::<std::net::Ipv6Addr>().unwrap());
}

/// What is asked of the kernel about an address: this machine's loopback is its own, and a test address is not.
/// An alias of the host is its address of now; where there is none, it is nowhere.
#[test]
fn an_alias_of_the_host_is_looked_up_for_each_flow() {
    let aliases = vec![(ip("169.254.1.2"), ip("0.0.0.0")), (ip("fd01::2"), ip("::"))];
    let cx =
        context(&Plan { aliases: aliases.clone(), policy: Policy::new(&[], Preset::Qemu, false), ..plan() });
    let cx = cx.unwrap();
    for (alias, any, far) in
        [("169.254.1.2:80", "0.0.0.0:0", "192.0.2.1:9"), ("[fd01::2]:80", "[::]:0", "[2001:db8::1]:9")]
    {
        let own = || {
            let socket = std::net::UdpSocket::bind(any).ok()?;
            socket.connect(far).ok()?;
            Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback())
        };
        let want = own().map_or((at(alias), Verdict::Refuse), |ip| (SocketAddr::new(ip, 80), Verdict::Pass));
        assert_eq!(cx.route(Proto::Tcp, at(alias)), want);
    }
    let restricted = context(&Plan { aliases, restrict: true, ..plan() }).unwrap();
    assert_eq!(restricted.route(Proto::Tcp, at("169.254.1.2:80")).1, Verdict::Drop);
}

#[test]
fn own_addresses_are_known_by_the_routes() {
    for (own, ip) in [(true, "127.0.0.1"), (true, "::1"), (false, "192.0.2.1"), (false, "2001:db8::1")] {
        assert_eq!(super::sockets::is_own(ip.parse().unwrap()), own, "{ip}");
    }
}

/// What is not known to be another's is the host's own: ports that ran out and programs that forbid tell nothing.
#[test]
fn an_address_is_anothers_only_where_the_kernel_says_so() {
    let no_way = |e| super::errors::is_no_way(&std::io::Error::from_raw_os_error(e));
    for e in [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EADDRNOTAVAIL, libc::EAFNOSUPPORT, libc::EINVAL] {
        assert!(no_way(e), "{e}");
    }
    for e in
        [libc::EAGAIN, libc::EPERM, libc::EACCES, libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS]
    {
        assert!(!no_way(e), "{e}");
    }
}

#[test]
fn ports_that_are_few_are_known_to_the_sandbox() {
    let rules: Vec<Rule> = ["tcp:any:443", "dns"].iter().map(|t| t.parse().unwrap()).collect();
    let last = Rule { verdict: Verdict::Refuse, .."any".parse().unwrap() };
    let policy = Policy::new(&[&rules[..], &[last]].concat(), Preset::Qemu, false);
    let to = To::Address(at("10.9.0.1:25"));
    let guest_forwards = vec![GuestForward { at: at("10.0.2.9:1"), to }];
    let plan = Plan { policy, guest_forwards, ..Plan::qemu() };
    assert_eq!(plan.tcp_ports(), Some(vec![53, 443, 25]));
    assert_eq!(Plan { restrict: true, ..plan }.tcp_ports(), Some(vec![]));
    assert_eq!(Plan::qemu().tcp_ports(), None);
}

#[test]
fn a_network_gets_the_descriptors_of_its_plan_or_none() {
    assert!(open(&plan(), vec![]).is_ok());
    let null = || std::os::fd::OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    assert!(open(&plan(), vec![null()]).is_err());
    let plan = Plan { boot: Boot { tftp: true, ..Boot::default() }, ..plan() };
    assert!(open(&plan, vec![]).is_err());
}

/// Whoever is asked a second time, without a look at the events, still gives at the time that it is.
#[test]
fn the_time_goes_on_where_nothing_is_looked_at() {
    let mut port = made(&plan(), vec![]).unwrap();
    let old = Instant::now();
    (port.cx.now, port.seen_to) = (old, true);
    std::thread::sleep(Duration::from_millis(2));
    port.recv(&mut Batch::new()).unwrap();
    assert!(port.cx.now > old && !port.seen_to);
}

/// Frames that the port gives now.
fn gives(port: &mut dyn Port) -> usize {
    let (mem, mut b) = (Buf::new(1 << 20).unwrap(), Batch::new());
    let turn = |_| {
        b.clear();
        b.landing.open_pool(mem.seg(0, mem.len()));
        port.recv(&mut b).unwrap();
        b.len()
    };
    (0..3).map(turn).sum()
}

#[test]
fn another_table_of_forwards_comes_as_a_whole_or_not_at_all() {
    let listen = || {
        let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        l.set_nonblocking(true).unwrap();
        l
    };
    let (old, new) = (listen(), listen());
    let come = |l: &std::net::TcpListener| std::net::TcpStream::connect(l.local_addr().unwrap()).unwrap();
    let handed = |l: &std::net::TcpListener| OwnedFd::from(l.try_clone().unwrap());
    let bound = || OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    // Nothing that can be watched.
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let rule = |id, way| Forward { id, way, guest: at("10.0.2.15:22"), range: None };
    let plan = Plan { forwards: vec![rule(1, Way::Tcp)], ..plan() };
    let mut port = open(&plan, vec![handed(&old)]).unwrap().remove(0);
    let table = vec![rule(2, Way::Tcp), rule(3, Way::Udp), rule(4, Way::Tcp), rule(5, Way::Udp)];
    let tell = |port: &mut dyn Port, list: &[Forward], fds| {
        port.tell(Told::User(Tell::Forwards(list.to_vec())), fds)
    };
    for bad in 0..4 {
        let mut fds = vec![handed(&new), bound(), handed(&listen()), bound()];
        fds[bad] = null();
        assert!(tell(port.as_mut(), &table, fds).is_err(), "{bad}");
        let _come = (come(&new), come(&old));
        assert!(gives(port.as_mut()) > 0, "{bad}: what was there is served");
    }
    let flows = |port: &dyn Port| port.stats().flows.unwrap();
    assert_eq!((flows(port.as_ref()).now, flows(port.as_ref()).half_open), (4, 4), "only they");
    tell(port.as_mut(), &table, vec![handed(&new), bound(), handed(&listen()), bound()]).unwrap();
    let _come = come(&old);
    gives(port.as_mut());
    assert_eq!(flows(port.as_ref()).now, 8, "those who waited at the new one");
}

#[test]
fn each_socket_of_a_range_leads_where_its_port_says() {
    let some = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let all = [some(), some(), some()];
    let port = |l: &std::net::TcpListener| l.local_addr().unwrap().port();
    let first = all.iter().map(port).min().unwrap();
    let range = Some(Range { first, sockets: 3 });
    let f = Forward { id: 70_000, way: Way::Tcp, guest: at("10.0.2.15:1000"), range };
    let handed = || all.iter().map(|l| OwnedFd::from(l.try_clone().unwrap()));
    let parts = sockets(&f, &mut handed());
    let ids: Vec<u32> = parts.iter().map(|(f, _)| f.id).collect();
    assert_eq!(ids, [70_000, 70_001, 70_002]);
    for ((part, _), l) in parts.iter().zip(&all) {
        assert_eq!(part.guest.port(), 1000_u16.wrapping_add(port(l) - first));
        assert_eq!(part.range, None);
    }
    // Told again, it stays; a socket too few or too many is none.
    let plan = Plan { forwards: vec![f], ..plan() };
    assert!(open(&plan, handed().take(2).collect()).is_err());
    let mut there = open(&plan, handed().collect()).unwrap().remove(0);
    let mut tell = |list: &[Forward], fds| there.tell(Told::User(Tell::Forwards(list.to_vec())), fds);
    let other = Forward {
        id: 5,
        way: Way::Udp,
        guest: at("10.0.2.15:7"),
        range: Some(Range { first: 7, sockets: 2 }),
    };
    let bound = || OwnedFd::from(std::net::UdpSocket::bind("127.0.0.1:0").unwrap());
    assert!(tell(&[f, other], vec![bound()]).is_err());
    tell(&[f, other], vec![bound(), bound()]).unwrap();
    tell(&[other], vec![]).unwrap();
    assert!(tell(&[f, other], vec![]).is_err(), "it has gone");
}

#[test]
fn sockets_leave_as_they_are_told() {
    use crate::sys::sock::Speaks;
    let (away, home) = (at("192.0.2.9:9"), at("127.0.0.1:9"));
    let left = |to, by: Outbound| {
        let fd = sock::new(Speaks::Udp, false).unwrap();
        sockets::leave(fd.as_fd(), to, &by).map(|()| sock::local(fd.as_fd()).unwrap())
    };
    let by = Outbound { v4: Some([127, 0, 0, 7].into()), ..Outbound::default() };
    assert_eq!(left(away, by).unwrap(), at("127.0.0.7:0"));
    assert_eq!(left(home, by).unwrap(), at("0.0.0.0:0"), "what stays is not bound");
    assert_eq!(
        left(away, Outbound { device6: Some("nobody".parse().unwrap()), ..by }).unwrap(),
        at("127.0.0.7:0")
    );
    let gone = Outbound { device4: Some("nobody".parse().unwrap()), ..by };
    assert_eq!(left(home, gone).unwrap(), at("0.0.0.0:0"));
    // Not if it is taken for the host's own, which without a way it is not.
    if !sockets::is_own(away.ip()) {
        assert_eq!(left(away, gone).unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
    let none = Outbound { v4: Some([192, 0, 2, 77].into()), ..Outbound::default() };
    assert_eq!(left(away, none).unwrap_err().raw_os_error(), Some(libc::EADDRNOTAVAIL));
}

#[test]
fn a_host_that_moves_is_noticed_whatever_else_is_named() {
    use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, sockopt};
    use std::os::fd::AsRawFd;
    let sure = Outbound { v4: Some([127, 0, 0, 7].into()), ..Outbound::default() };
    let device = Outbound { device4: Some("lo".parse().unwrap()), ..Outbound::default() };
    let (four, six) = (at("192.0.2.9:9"), at("[2001:db8::9]:9"));
    let mut cx = context(&plan()).unwrap();
    for (by, of_four) in [(Outbound::default(), true), (device, true), (sure, false)] {
        cx.outbound = by;
        assert_eq!((cx.unbound(four).is_some(), cx.unbound(six)), (of_four, Some(six)), "{by:?}");
    }
    // From an address that the host has no more. The kernel lets IPv6 go on so.
    let old = socket::socket(AddressFamily::Inet6, SockType::Datagram, SockFlag::empty(), None).unwrap();
    setsockopt(&old, sockopt::IpFreebind, &true).unwrap();
    socket::bind(old.as_raw_fd(), &SockaddrStorage::from(at("[2001:db8::77]:0"))).unwrap();
    let home = at("[::1]:9");
    sock::connect(old.as_fd(), home).unwrap();
    let now = Instant::now();
    for by in [Outbound::default(), sure, device] {
        let mut source = sockets::Source::default();
        let mut is_lost =
            |after| source.is_lost(old.as_fd(), Some(home), &by, now + Duration::from_secs(after));
        assert_eq!([0, 1, 4].map(&mut is_lost), [false, false, true], "{by:?}");
    }
    // Who cannot be followed as it is told is not left.
    let (any, gone) = (at("[::]:9"), Outbound { v6: Some("2001:db8::78".parse().unwrap()), ..sure });
    for (by, lost) in [(sure, true), (gone, false)] {
        let mut source = sockets::Source::default();
        let mut is_lost =
            |after| source.is_lost(old.as_fd(), Some(any), &by, now + Duration::from_secs(after));
        assert_eq!([0, 4].map(&mut is_lost), [false, lost], "{by:?}");
    }
}

#[test]
fn limits_shrink_to_the_descriptors_that_there_may_be() {
    let l = Limits::default();
    assert_eq!(l.within(l.descriptors()), l);
    assert_eq!(l.within(u64::MAX), l);
    let few = l.within(4096);
    assert!(few.tcp > 3000 && few.udp > 200 && few.pings > 10 && few.descriptors() <= 4096, "{few:?}");
    assert_eq!((few.held, few.held_each), (l.held, l.held_each));
    assert_eq!((l.within(0).tcp, l.within(0).udp, l.within(0).pings), (1, 1, 1));
}

impl Cx {
    /// The frame that waits first, without a guest that would take it.
    fn out_first(&mut self) -> Vec<u8> {
        given(self).remove(0)
    }
}

proptest! {
    #[test]
    fn any_frame_is_read_without_leaving_it(mut frame in prop::collection::vec(any::<u8>(), 14..300), kind in 0..3u8) {
        match kind {
            0 => { frame[12..14].copy_from_slice(&[8, 0]); }
            1 => { frame[12..14].copy_from_slice(&[0x86, 0xdd]); }
            _ => {}
        }
        let cut = frame.len().min(HEAD);
        let mut rest = frame[cut..].to_vec();
        let body = [Seg::over(&mut rest)];
        if let Ok(p) = Packet::parse(&frame[..cut], &body, frame.len() as u32, Vnet::default())
            && let Some(ip) = p.ip
        {
            prop_assert!((ip.at + ip.len) as usize <= frame.len());
            let mut got = vec![0; 400];
            let n = p.copy(0, &mut got);
            prop_assert_eq!(n, ip.len as usize);
            prop_assert_eq!(&got[..n], &frame[ip.at as usize..][..n]);
            prop_assert!(p.copy_packet(&mut got) <= 400);
        }
    }
}
