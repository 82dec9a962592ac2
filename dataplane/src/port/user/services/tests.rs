//! The room as a whole: frames of a guest's go in, frames for it come out.

use std::net::UdpSocket;

use super::envelope::{Ends, udp};
use super::*;
use crate::frame::Batch;
use crate::mem::Buf;
use crate::port::user::bay::Bay;
use crate::port::user::{Boot, context, tests::frames};

const GUEST: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

struct Bench {
    services: Services,
    cx: Cx,
}

impl Bench {
    fn new(plan: &Plan) -> Self {
        let mut cx = context(plan).unwrap();
        let services = Services::new(plan, None, &mut cx).unwrap();
        Self { services, cx }
    }

    /// The head has the first bytes, the body the rest, as a lane would have it.
    fn tell(&mut self, frame: &[u8]) -> Vec<Vec<u8>> {
        self.tell_with(frame, Vnet::default())
    }

    fn tell_with(&mut self, frame: &[u8], vnet: Vnet) -> Vec<Vec<u8>> {
        let mem = Buf::new(1 << 16).unwrap();
        let whole = mem.seg(0, frame.len() as u32);
        whole.copy_in(frame);
        let head = &frame[..frame.len().min(crate::frame::HEAD)];
        let body = [whole.skip(head.len() as u32)];
        let Ok(p) = Packet::parse(head, &body, frame.len() as u32, vnet) else {
            return Vec::new();
        };
        self.services.take(&p, &mut self.cx);
        self.got()
    }

    fn got(&mut self) -> Vec<Vec<u8>> {
        let (mem, mut bay, mut b) = (Buf::new(1 << 20).unwrap(), Bay::default(), Batch::new());
        b.landing.open_pool(mem.seg(0, mem.len()));
        self.cx.out.give(&mut bay, &mut b, &self.cx.net, &mut self.cx.stats);
        frames(&b)
    }

    fn drops(&self, why: Reason) -> u64 {
        self.cx.stats.drops[why as usize]
    }
}

fn datagram_to(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let e = Ends {
        macs: (GUEST, Mac([0x52, 0x55, 10, 0, 2, 2])),
        at: (from.parse().unwrap(), to.parse().unwrap()),
    };
    udp(&mut out, &e, |o| o.extend_from_slice(payload));
    out
}

#[test]
fn a_guest_gets_its_address_and_is_known_by_it() {
    let mut b = Bench::new(&Plan::qemu());
    let mut m = vec![1, 1, 6, 0, 1, 2, 3, 4];
    m.resize(28, 0);
    m.extend(GUEST.0);
    m.resize(236, 0);
    m.extend([99, 130, 83, 99, 53, 1, 3, 50, 4, 10, 0, 2, 15]);
    // As much again of options in the body that nobody reads for us.
    m.extend([43, 200]);
    m.extend([7; 200]);
    m.push(255);
    let got = b.tell(&datagram_to("0.0.0.0:68", "255.255.255.255:67", &m));
    assert_eq!((got.len(), &got[0][58..62]), (1, &[10, 0, 2, 15][..]));
    assert_eq!(b.cx.net.mac_of("10.0.2.15".parse().unwrap()), Some(GUEST));
}

#[test]
fn link_up_tells_who_we_are() {
    let mut b = Bench::new(&Plan::qemu());
    b.services.link_up(&mut b.cx);
    let got = b.got();
    assert_eq!((got.len(), &got[0][12..14], got[1][54]), (2, &[8, 6][..], 134));
    // Nobody is told in vain, over and over.
    b.services.tick(Token { who: Who::Services, kind: ADVERTISE_TICK, index: 0, generation: 0 }, &mut b.cx);
    assert!(b.got().is_empty());
    b.cx.net.learn("10.0.2.15".parse().unwrap(), GUEST);
    b.services.tick(Token { who: Who::Services, kind: ADVERTISE_TICK, index: 0, generation: 0 }, &mut b.cx);
    assert_eq!(b.got().len(), 1);
}

/// Questions that came as one, as a lane joins datagrams of one length between the same two.
#[test]
fn datagrams_that_came_as_one_are_each_for_itself() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut b = Bench::new(&Plan { resolvers: vec![server.local_addr().unwrap()], ..Plan::qemu() });
    let ask = |name: u8| [b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01", &[name][..], b"\0\0\x01\0\x01"].concat();
    let len = ask(b'a').len();
    for (from, to, start) in
        [("10.0.2.15:999", "10.0.2.3:53", 34_u16), ("[fec0::15]:999", "[fec0::3]:53", 54)]
    {
        let vnet = |size: usize| Vnet {
            flags: netreeve_shared::vnet::F_NEEDS_CSUM,
            gso_type: GSO_UDP_L4,
            hdr_len: start + 8,
            gso_size: size as u16,
            csum_start: start,
            csum_offset: 6,
        };
        let short = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\0\0\x02\0\x01".to_vec();
        let train = [ask(b'a'), ask(b'b'), ask(b'c'), short.clone()].concat();
        assert!(b.tell_with(&datagram_to(from, to, &train), vnet(len)).is_empty());
        let mut asked = [0; 512];
        for want in [ask(b'a'), ask(b'b'), ask(b'c'), short] {
            let n = server.recv(&mut asked).unwrap();
            assert_eq!(asked[2..n], want[2..]);
        }
        // Crumbs, and parts longer than any message.
        b.tell_with(&datagram_to(from, to, &vec![1; 1000]), vnet(1));
        b.tell_with(&datagram_to(from, to, &vec![1; 9000]), vnet(5000));
    }
    assert_eq!((b.drops(Reason::Refused), b.drops(Reason::Oversize)), (2, 2));
}

#[test]
fn a_name_is_asked_for_from_end_to_end() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut b = Bench::new(&Plan { resolvers: vec![server.local_addr().unwrap()], ..Plan::qemu() });
    let q = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";
    for (from, to) in [("10.0.2.15:999", "10.0.2.3:53"), ("[fec0::15]:999", "[fec0::3]:53")] {
        assert!(b.tell(&datagram_to(from, to, q)).is_empty());
        let mut asked = [0; 512];
        let (n, back) = server.recv_from(&mut asked).unwrap();
        assert_eq!(asked[2..n], q[2..]);
        asked[2] |= 0x80;
        server.send_to(&asked[..n], back).unwrap();
        let got = (0..200).find_map(|_| {
            let mut events = Vec::new();
            b.cx.poll.events(&mut events).unwrap();
            events.into_iter().for_each(|(t, r)| b.services.ready(t, r, &mut b.cx));
            std::thread::sleep(Duration::from_millis(5));
            b.got().pop()
        });
        let got = got.unwrap();
        assert_eq!((&got[..6], &got[got.len() - 19..][..4]), (&GUEST.0[..], &[0x12, 0x34, 0x81, 0][..]));
    }
    // To nobody, to ourselves, from nowhere: no answer could arrive.
    for from in ["0.0.0.0:9", "10.0.2.3:9", "224.0.0.1:9", "10.0.2.15:0"] {
        b.tell(&datagram_to(from, "10.0.2.3:53", q));
    }
    assert_eq!(b.drops(Reason::Source), 4);
}

/// Names are what the policy says of them, by UDP here and by TCP where connections are asked for.
#[test]
fn who_may_not_ask_for_names_is_told_so_or_nothing() {
    use crate::port::user::policy::{Policy, Preset, Rule};
    let q = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let dns = "10.0.2.3:53".parse().unwrap();
    for (text, verdict) in [("any", Verdict::Refuse), ("any", Verdict::Drop), ("dns", Verdict::Refuse)] {
        let rule = Rule { verdict, ..text.parse().unwrap() };
        let policy = Policy::new(&[rule], Preset::Vm, false);
        let resolvers = vec![server.local_addr().unwrap()];
        let mut b = Bench::new(&Plan { resolvers, policy, ..Plan::qemu() });
        b.cx.net.learn("10.0.2.15".parse().unwrap(), GUEST);
        let got = b.tell(&datagram_to("10.0.2.15:999", "10.0.2.3:53", q));
        // Destination unreachable, administratively prohibited, from whom it asked.
        let told = got.first().map(|f| (f[26..30].to_vec(), f[34..36].to_vec()));
        let refused = Some((vec![10, 0, 2, 3], vec![3, 13]));
        assert_eq!(told, if verdict == Verdict::Refuse { refused } else { None });
        assert_eq!(b.drops(Reason::Denied), 1);
        assert_eq!(b.cx.route(Proto::Tcp, dns).1, verdict);
        assert!(server.recv(&mut [0; 64]).is_err(), "somebody was asked");
    }
}

/// CVE-2021-3594, CVE-2021-3593: a UDP header that is cut, or says more than there is.
#[test]
fn cve_2021_3594_lengths_of_udp_are_not_believed() {
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    server.set_nonblocking(true).unwrap();
    let mut b = Bench::new(&Plan { resolvers: vec![server.local_addr().unwrap()], ..Plan::qemu() });
    let q = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01";
    for (to, udp_at) in [("10.0.2.3:53", 34), ("[fec0::3]:53", 54)] {
        let from = if udp_at == 34 { "10.0.2.15:999" } else { "[fec0::15]:999" };
        let whole = datagram_to(from, to, q);
        for len in [0u16, 7, 28, 4096, 65535] {
            let mut bent = whole.clone();
            bent[udp_at + 4..udp_at + 6].copy_from_slice(&len.to_be_bytes());
            assert!(b.tell(&bent).is_empty(), "{len}");
        }
        for cut in 0..8u16 {
            let mut bent = whole[..udp_at + usize::from(cut)].to_vec();
            let (at, total) = if udp_at == 34 { (16, 20 + cut) } else { (18, cut) };
            bent[at..at + 2].copy_from_slice(&total.to_be_bytes());
            assert!(b.tell(&bent).is_empty(), "{cut}");
        }
    }
    assert_eq!(b.drops(Reason::Malformed), 2 * (5 + 8));
    assert!(server.recv_from(&mut [0; 512]).is_err(), "none of it went out");
}

/// CVE-2019-6778, CVE-2020-8608: old protocols' commands were read in the guest's data and answered out of buffers too
/// small; CVE-2020-29129, CVE-2020-29130: control frames shorter than they say. Here there are no such services: what is
/// not ours is not taken, and frames of other kinds are none.
#[test]
fn cve_2019_6778_and_cve_2020_29129_no_such_services() {
    let net = Net::new(&Plan::qemu());
    for to in ["10.0.2.2:113", "10.0.2.2:21", "10.0.2.2:6667", "10.0.2.2:7070", "10.0.2.2:544"] {
        let f = datagram_to("10.0.2.15:999", to, b"ident");
        let p = Packet::parse(&f, &[], f.len() as u32, Vnet::default()).unwrap();
        assert!(!is_ours(&p, &net), "{to}");
    }
    let mut b = Bench::new(&Plan::qemu());
    // NC-SI (0x88f8) and a cut ARP.
    let mut f = vec![0xff; 6];
    f.extend(GUEST.0);
    f.extend([0x88, 0xf8, 0, 1, 0, 0]);
    assert!(b.tell(&f).is_empty());
    f.truncate(12);
    f.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    assert!(b.tell(&f).is_empty());
    assert_eq!(b.drops(Reason::Malformed), 1);
}

#[test]
fn who_is_ours() {
    let net = Net::new(&Plan { boot: Boot::default(), ..Plan::qemu() });
    for (to, ours) in [
        ("10.0.2.2:67", true),
        ("10.0.2.3:53", true),
        ("10.0.2.2:69", true),
        ("[fec0::2]:547", true),
        ("[fec0::3]:53", true),
        ("10.0.2.2:53", false),
        ("10.0.2.3:69", false),
        ("8.8.8.8:53", false),
        ("8.8.8.8:67", false),
    ] {
        let from = if to.starts_with('[') { "[fec0::15]:9" } else { "10.0.2.15:9" };
        let f = datagram_to(from, to, b"");
        let p = Packet::parse(&f, &[], f.len() as u32, Vnet::default()).unwrap();
        assert_eq!(is_ours(&p, &net), ours, "{to}");
    }
}
