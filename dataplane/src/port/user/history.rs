//! What has gone wrong in other user networks (numbers of CVEs are theirs), tried from the guest's side of the whole port:
//! frames in, frames out. What concerns one room alone is among that room's tests; SECURITY.md lists them all.

use std::io::Read;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use netreeve_shared::vnet::Vnet;

use super::guest::{at, packet, udp};
use super::tests::frames;
use super::*;
use crate::mem::Buf;

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;
const URG: u8 = 32;

/// A port, and what lies on the guest's side of it.
struct House {
    port: Box<dyn Port>,
    landing: Buf,
    got: Batch,
}

impl House {
    fn new(plan: &Plan, fds: Vec<OwnedFd>) -> Self {
        let mut port = open(plan, fds).unwrap().pop().unwrap();
        port.peer_takes(Offloads::ALL);
        Self { port, landing: Buf::new(1 << 20).unwrap(), got: Batch::new() }
    }

    /// With a listening socket behind each of these TCP ports of one address.
    fn behind(ports: &[u16]) -> (Self, Vec<TcpListener>) {
        Self::within(Plan::qemu(), ports)
    }

    fn within(mut plan: Plan, ports: &[u16]) -> (Self, Vec<TcpListener>) {
        let far: Vec<_> = ports.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        for (port, far) in ports.iter().zip(&far) {
            let to = To::Address(far.local_addr().unwrap());
            plan.guest_forwards.push(GuestForward { at: SocketAddr::new(far_ip(), *port), to });
        }
        (Self::new(&plan, Vec::new()), far)
    }

    /// Sends these and takes all that comes of them.
    fn tell(&mut self, list: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let plain: Vec<_> = list.iter().map(|f| (Vnet::default(), f.clone())).collect();
        let sent = super::guest::Sent::new(&plain);
        assert_eq!(self.port.send(&sent.batch).unwrap(), list.len());
        let mut all = Vec::new();
        for _ in 0..16 {
            self.got.clear();
            self.got.landing.open_pool(self.landing.seg(0, self.landing.len()));
            self.port.recv(&mut self.got).unwrap();
            all.extend(frames(&self.got));
        }
        assert!(!self.port.arm_gives(), "answers without end");
        all
    }
}

fn far_ip() -> IpAddr {
    at("10.0.2.100:0").ip()
}

/// A connection of the guest's to one of those ports.
struct Call {
    port: u16,
    seq: u32,
    ack: u32,
}

impl Call {
    fn open(house: &mut House, port: u16) -> Self {
        let mut call = Self { port, seq: u32::MAX - 100, ack: 0 };
        let syn = call.say(SYN, 0, b"");
        let answer = house.tell(&[syn]);
        let tcp = answer.iter().find_map(|f| tcp(f)).unwrap();
        assert_eq!(tcp[13], SYN | ACK);
        call.ack = word(&tcp[4..]).wrapping_add(1);
        let ack = call.say(ACK, 0, b"");
        house.tell(&[ack]);
        call
    }

    /// The next segment, with an urgent pointer.
    fn say(&mut self, flags: u8, urgent: u16, payload: &[u8]) -> Vec<u8> {
        let segment = self.at(self.seq, flags, urgent, payload);
        self.seq = self.seq.wrapping_add(payload.len() as u32 + u32::from(flags & (SYN | FIN) != 0));
        segment
    }

    /// One at any place.
    fn at(&self, seq: u32, flags: u8, urgent: u16, payload: &[u8]) -> Vec<u8> {
        let mut t = [40_000_u16, self.port].into_iter().flat_map(u16::to_be_bytes).collect::<Vec<_>>();
        t.extend(seq.to_be_bytes());
        t.extend(self.ack.to_be_bytes());
        t.extend([5 << 4, flags, 0xff, 0xff, 0, 0]);
        t.extend(urgent.to_be_bytes());
        t.extend(payload);
        packet((at("10.0.2.15:0").ip(), far_ip()), (TCP, 64), None, &t)
    }
}

fn word(b: &[u8]) -> u32 {
    u32::from_be_bytes(*b.first_chunk().unwrap())
}

/// The TCP segment in a frame.
fn tcp(frame: &[u8]) -> Option<&[u8]> {
    (frame[12..14] == [8, 0] && frame[23] == TCP).then(|| &frame[34..])
}

/// Everything that has come there, to its end.
fn arrived(mut far: TcpStream) -> Vec<u8> {
    far.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut all = Vec::new();
    far.read_to_end(&mut all).unwrap();
    all
}

/// CVE-2026-9539 (libslirp): how much is urgent was reckoned from the guest's pointer, and as much was read and sent.
#[test]
fn cve_2026_9539_urgent_pointers_lead_nowhere() {
    let (mut house, listeners) = House::behind(&[25]);
    let mut call = Call::open(&mut house, 25);
    let far = listeners[0].accept().unwrap().0;
    let mut want: Vec<u8> = Vec::new();
    for pointer in [0, 1, 2, 4, 5, 6, 999, 1000, 1001, 0x7fff, 0x8000, 0xfffe, 0xffff] {
        for len in [0, 1, 5, 1000_usize] {
            let data: Vec<u8> = (0..len).map(|i| (i * 31 + want.len()) as u8).collect();
            let before = call.seq;
            let mut told = vec![call.say(ACK | PSH | URG, pointer, &data)];
            want.extend(&data);
            // The same again; what is long past; what is beyond any window; nothing.
            told.push(call.at(before, ACK | URG, pointer.wrapping_add(1), &data));
            told.push(call.at(before.wrapping_sub(3), ACK | URG, pointer, b"old"));
            told.push(call.at(call.seq.wrapping_add(1 << 24), ACK | URG, pointer, b"later"));
            told.push(call.at(call.seq, ACK | URG, pointer, b""));
            for frame in house.tell(&told) {
                let Some(t) = tcp(&frame) else { continue };
                assert_eq!(
                    (t[13] & (URG | RST), t.len()),
                    (0, usize::from(t[12] >> 4) * 4),
                    "{pointer} {len}"
                );
                assert!(
                    word(&t[8..]).wrapping_sub(call.seq) as i32 <= 0,
                    "more than was said: {pointer} {len}"
                );
            }
        }
    }
    let end = call.say(ACK | FIN | URG, 0xffff, b"");
    house.tell(&[end]);
    let got = arrived(far);
    assert_eq!(got.len(), want.len());
    assert!(got == want, "other bytes than the guest's");
}

/// CVE-2019-6778, CVE-2019-9824, CVE-2020-7039, CVE-2020-8608 (libslirp): what the guest said to such ports was read, and
/// written anew with other addresses in it.
#[test]
fn cve_2020_7039_what_old_protocols_say_passes_as_it_is() {
    let said: [(u16, &[u8]); 7] = [
        (21, b"PORT 10,0,2,15,4,1\r\nPASV\r\n227 Entering Passive Mode (10,0,2,15,4,1)\r\n"),
        (113, b"1025,21\r\n"),
        (514, b"1025\0"),
        (544, b"1025\0"),
        (6667, b"PRIVMSG x :\x01DCC CHAT chat 167772687 1025\x01\nDCC SEND f 167772687 1025 9\nDCC MOVE f 1025 9\n"),
        (7070, b"PNA\0\x0a\0\0\x01\0\x02\x04\x01pnm\0\0\0\x52\0\x02\x04\x01\0\0\0\0\0\0"),
        (517, b"\x01\0\0\0\0\x02\x04\x01\x0a\0\x02\x0f"),
    ];
    let ports: Vec<u16> = said.iter().map(|(port, _)| *port).collect();
    let (mut house, listeners) = House::behind(&ports);
    for ((port, said), listener) in said.iter().zip(&listeners) {
        let mut call = Call::open(&mut house, *port);
        let far = listener.accept().unwrap().0;
        let mut want: Vec<u8> = Vec::new();
        // Whole, in single bytes, without an end, and more of it than any buffer for it would hold.
        let long = said.repeat(1400 / said.len());
        let single: Vec<&[u8]> = said.chunks(1).collect();
        let parts = [&[*said][..], &single, &[&said[..said.len() - 1], &long]].concat();
        for part in parts {
            let segment = call.say(ACK | PSH, 0, part);
            want.extend(part);
            for frame in house.tell(&[segment]) {
                let Some(t) = tcp(&frame) else { panic!("{port}: no TCP") };
                assert_eq!((t[13], t.len(), word(&t[8..])), (ACK, 20, call.seq), "{port}");
            }
        }
        let end = call.say(ACK | FIN, 0, b"");
        house.tell(&[end]);
        assert!(arrived(far) == want, "{port}: other bytes than the guest's");
    }
}

/// CVE-2017-11434 (libslirp): an option of DHCP was believed to be as long as it says, beyond the message.
#[test]
fn cve_2017_11434_options_end_with_their_message() {
    let mut house = House::new(&Plan { restrict: true, ..Plan::qemu() }, Vec::new());
    let mut ask = |options: &[u8]| {
        let mut m = vec![1, 1, 6, 0, 1, 2, 3, 4];
        m.resize(28, 0);
        m.extend(super::guest::GUEST.0);
        m.resize(236, 0);
        m.extend([99, 130, 83, 99, 53, 1, 1]);
        m.extend(options);
        let mut frame = udp(at("0.0.0.0:68"), at("255.255.255.255:67"), &m);
        frame[..6].fill(0xff);
        house.tell(&[frame])
    };
    for code in [12, 43, 50, 52, 54, 55, 57, 60, 61, 77, 81, 82, 93, 97, 119, 250_u8] {
        for (says, is) in [(1, 0), (4, 3), (200, 199), (255, 0), (255, 254_usize)] {
            let option = [&[code, says][..], &vec![0x5a; is]].concat();
            assert_eq!(ask(&option), Vec::<Vec<u8>>::new(), "option {code}: {is} bytes for {says}");
        }
    }
    // One that says what it is, is answered.
    let answer = ask(&[61, 3, 0x5a, 0x5a, 0x5a, 255]);
    assert_eq!(answer.len(), 1);
    assert_eq!(answer[0].iter().filter(|b| **b == 0x5a).count(), 3, "what was sent, and no more of its kind");
}

/// libvirt 9.0 gave passt the guest's own Ethernet address for `--mac-addr`: with it a guest had a lease and nothing else.
#[test]
fn a_guest_with_our_ethernet_address_is_heard_and_served() {
    let plan = Plan { mac: super::guest::GUEST, ..Plan::qemu() };
    let (mut house, far) = House::within(plan, &[25]);
    // Whether its link-local address, which was ours, is free.
    let own = super::net::link_local(super::guest::GUEST);
    let mut probe = vec![135, 0, 0, 0, 0, 0, 0, 0];
    probe.extend(own.octets());
    let group = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff12, 0x3456);
    let mut frame = packet((Ipv6Addr::UNSPECIFIED.into(), group.into()), (ICMPV6, 255), None, &probe);
    frame[..6].copy_from_slice(&[0x33, 0x33, 0xff, 0x12, 0x34, 0x56]);
    let heard = house.tell(&[frame]);
    // Our address of IPv4 is said anew, and of IPv6 only routers say something: the old one that it ends, and the new one.
    let routers: Vec<_> = heard.iter().filter(|f| f[12..14] == [0x86, 0xdd]).collect();
    assert!(heard.iter().any(|f| f[12..14] == [8, 6] && f[22..28] == plan::MAC.0), "{heard:?}");
    assert!(routers.iter().all(|f| f[54] == 134), "its own address is taken: {routers:?}");
    let old = routers.iter().find(|f| f[22..38] == own.octets()).unwrap();
    assert_eq!(old[60..62], [0, 0]);
    assert!(routers.iter().any(|f| f[22..38] == super::net::link_local(plan::MAC).octets()));
    // `packet` sends to the address that was said.
    let mut call = Call::open(&mut house, 25);
    let said = call.say(ACK | PSH | FIN, 0, b"a guest's words");
    let answer = house.tell(&[said]);
    assert!(answer.iter().all(|f| (&f[..6], &f[6..12]) == (&super::guest::GUEST.0[..], &plan::MAC.0[..])));
    assert_eq!(arrived(far[0].accept().unwrap().0), b"a guest's words");
}

/// A member of a hub that sends back what it hears, before any guest was heard: what we say of ourselves is not somebody
/// else with our Ethernet address, and that we took another is said once.
#[test]
fn our_own_words_that_come_back_do_not_go_on_for_ever() {
    let mut house = House::new(&Plan { mac: super::guest::GUEST, ..Plan::qemu() }, Vec::new());
    house.port.peer_up(true);
    let mut heard = house.tell(&[]);
    assert!(heard.iter().any(|f| f[12..14] == [8, 6]) && heard.iter().any(|f| f[12..14] == [0x86, 0xdd]));
    assert!(heard.iter().all(|f| f[6..12] == super::guest::GUEST.0), "{heard:?}");
    // Whoever has our address is told so, which comes back as well, and that is the end of it.
    let echo = |house: &mut House, first: &[Vec<u8>], mac: [u8; 6]| {
        let again = house.tell(first);
        assert!(again.iter().all(|f| f[12..14] == [8, 6] && f[6..12] == mac), "{again:?}");
        assert!(again.len() <= first.len());
        assert_eq!(house.tell(&again), Vec::<Vec<u8>>::new());
    };
    echo(&mut house, &heard, super::guest::GUEST.0);
    // A guest that has it: we go, and what we say then comes back again and again, as does what was said before.
    let probe = asks([0; 4], [10, 0, 2, 15]);
    let said = house.tell(&[probe]);
    assert!(said.iter().any(|f| f[12..14] == [8, 6] && f[22..28] == plan::MAC.0), "{said:?}");
    heard.extend(said);
    for _ in 0..3 {
        echo(&mut house, &heard, plan::MAC.0);
    }
    // Once is enough, whoever says to be where.
    let mut net = Net::new(&Plan { mac: super::guest::GUEST, ..Plan::qemu() });
    let [ours, other] = ["10.0.2.2", "10.0.2.15"].map(|a| a.parse().unwrap());
    let went = [ours, other, other, ours].map(|from| net.make_way(from));
    assert_eq!((went, net.mac), ([false, true, false, false], plan::MAC));
}

/// The guest asks everybody by ARP who is `whom`, as who is `own`; nobody yet: an address probe (RFC 5227 §1.1).
fn asks(own: [u8; 4], whom: [u8; 4]) -> Vec<u8> {
    let guest = super::guest::GUEST.0;
    [&[0xff; 6][..], &guest, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &guest, &own, &[0; 6], &whom].concat()
}

/// CVE-2020-29129, CVE-2020-29130, CVE-2021-3592 to -3595, CVE-2020-10756 (libslirp) once more, at the door: every frame
/// that makes us speak, cut at each byte, says nothing.
#[test]
fn frames_cut_anywhere_are_not_answered() {
    let mut house = House::new(&Plan { restrict: true, ..Plan::qemu() }, Vec::new());
    let arp = asks([10, 0, 2, 15], [10, 0, 2, 2]);
    let whole = [
        arp,
        super::guest::ping(("10.0.2.15", "10.0.2.2"), 64, 1, &[0xa5; 64]),
        super::guest::ping(("fec0::15", "fec0::2"), 64, 1, &[0xa5; 64]),
        udp(at("10.0.2.15:9"), at("10.0.2.2:69"), b"\0\x01name\0octet\0"),
        udp(at("10.0.2.15:9"), at("10.0.2.3:53"), b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x01a\0\0\x01\0\x01"),
        udp(at("[fec0::15]:546"), at("[fec0::2]:547"), b"\x0b\x01\x02\x03\0\x01\0\x04abcd"),
    ];
    let mut answered = 0;
    for frame in whole {
        answered += usize::from(!house.tell(std::slice::from_ref(&frame)).is_empty());
        for n in 14..frame.len() {
            assert_eq!(house.tell(&[frame[..n].to_vec()]), Vec::<Vec<u8>>::new(), "{n} of {frame:?}");
        }
    }
    assert!(answered >= 4, "{answered} of them are answered when they are whole");
}
