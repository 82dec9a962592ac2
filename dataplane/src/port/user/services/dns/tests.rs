use std::net::UdpSocket;
use std::thread;

use proptest::prelude::*;

use super::message::tests::ask;
use super::*;
use crate::frame::Batch;
use crate::mem::Buf;
use crate::port::user::bay::Bay;
use crate::port::user::{Plan, context, tests::frames};

const GUEST: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

fn asker(port: u16) -> Asker {
    Asker { mac: GUEST, at: SocketAddr::new([10, 0, 2, 15].into(), port), to: "10.0.2.3:53".parse().unwrap() }
}

struct Bench {
    relay: Relay,
    cx: Cx,
}

fn server() -> (UdpSocket, SocketAddr) {
    let s = UdpSocket::bind("127.0.0.1:0").unwrap();
    s.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let at = s.local_addr().unwrap();
    (s, at)
}

/// A port on which nobody listens.
fn nobody() -> SocketAddr {
    server().1
}

impl Bench {
    fn new(resolvers: Vec<SocketAddr>) -> Self {
        let plan = Plan { resolvers, ..Plan::qemu() };
        Self { relay: Relay::new(), cx: context(&plan).unwrap() }
    }

    fn ask(&mut self, port: u16, q: &[u8]) {
        self.relay.ask(asker(port), q, &mut self.cx);
    }

    /// Serves what has come until there are so many frames for the guest, or nothing more for a while.
    fn frames(&mut self, n: usize) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for _ in 0..200 {
            let mut events = Vec::new();
            self.cx.poll.events(&mut events).unwrap();
            for (t, _) in events {
                self.relay.ready(t, &mut self.cx);
            }
            let (mem, mut bay, mut b) = (Buf::new(1 << 20).unwrap(), Bay::default(), Batch::new());
            b.landing.open_pool(mem.seg(0, mem.len()));
            self.cx.out.give(&mut bay, &mut b, &self.cx.net, &mut self.cx.stats);
            all.extend(frames(&b));
            if all.len() >= n {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        all
    }

    fn pass(&mut self, time: Duration) {
        self.cx.now += time;
        self.relay.tick(&mut self.cx);
    }

    fn drops(&self) -> u64 {
        self.cx.stats.drops[Reason::Source as usize]
    }
}

/// What a resolver was asked, and an answer to it of `len` bytes in all.
fn answer_to(q: &[u8], len: usize) -> Vec<u8> {
    let mut a = q.to_vec();
    a[2] |= 0x80;
    a[3] |= 0x80;
    a.resize(a.len().max(len), 0xab);
    a
}

fn answered(s: &UdpSocket, len: usize) -> Vec<u8> {
    let mut q = [0; 4096];
    let (n, from) = s.recv_from(&mut q).unwrap();
    s.send_to(&answer_to(&q[..n], len), from).unwrap();
    q[..n].to_vec()
}

#[test]
fn a_question_goes_out_under_another_number_and_its_answer_comes_back() {
    let (s, at) = server();
    let mut b = Bench::new(vec![at]);
    let q = ask(0x1234, Some(1232));
    b.ask(4000, &q);
    let asked = answered(&s, 100);
    assert_eq!(asked[2..], q[2..]);
    let got = b.frames(1);
    assert_eq!(got.len(), 1);
    assert_eq!((&got[0][..6], &got[0][26..34]), (&GUEST.0[..], &[10, 0, 2, 3, 10, 0, 2, 15][..]));
    assert_eq!(got[0][34..40], [0, 53, 0x0f, 0xa0, 0, 108]);
    let mut want = answer_to(&q, 100);
    want[..2].copy_from_slice(&[0x12, 0x34]);
    assert_eq!(got[0][42..], want);
    assert!(b.relay.asks.is_empty());
}

#[test]
fn a_resolver_may_have_an_address_of_the_other_family() {
    // Where the machine has no IPv6 at all, there is nothing to show.
    let Ok(s) = UdpSocket::bind("[::1]:0") else { return };
    s.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut b = Bench::new(vec![s.local_addr().unwrap()]);
    b.ask(4000, &ask(1, None));
    answered(&s, 60);
    assert_eq!(b.frames(1)[0][26..30], [10, 0, 2, 3]);
}

#[test]
fn numbers_and_ports_are_hard_to_guess() {
    let (s, at) = server();
    let mut b = Bench::new(vec![at]);
    let (mut ids, mut ports) = (Vec::new(), std::collections::HashSet::new());
    for n in 0..64 {
        b.ask(4000 + n, &ask(7, None));
        let mut q = [0; 512];
        let (_, from) = s.recv_from(&mut q).unwrap();
        ids.push([q[0], q[1]]);
        ports.insert(from.port());
    }
    ids.sort_unstable();
    ids.dedup();
    assert!(ids.len() >= 60, "{} of 64 numbers", ids.len());
    assert_eq!(ports.len(), EACH);
    // Sockets are not used for ever.
    for n in 0..64 {
        b.cx.now += Duration::from_millis(1);
        b.ask(5000 + n, &ask(8, None));
    }
    b.pass(WORTH);
    b.cx.now += AGE;
    b.ask(6000, &ask(9, None));
    let born: Vec<_> = b.relay.lines.iter().flatten().map(|l| l.born).collect();
    assert_eq!(born, [b.cx.now]);
}

#[test]
fn what_was_not_asked_is_no_answer() {
    let (s, at) = server();
    let mut b = Bench::new(vec![at]);
    let q = ask(1, None);
    b.ask(4000, &q);
    let mut buf = [0; 512];
    let (n, from) = s.recv_from(&mut buf).unwrap();
    let right = answer_to(&buf[..n], 60);
    let mut wrong = vec![right.clone(); 4];
    wrong[0][0] ^= 1;
    wrong[1][2] &= 0x7f;
    wrong[2][13] ^= 0x20;
    wrong[3][5] = 0;
    for w in &wrong {
        s.send_to(w, from).unwrap();
    }
    s.send_to(&right[..11], from).unwrap();
    s.send_to(&[], from).unwrap();
    // From elsewhere: the kernel does not give it to us.
    server().0.send_to(&right, from).unwrap();
    s.send_to(&right, from).unwrap();
    assert_eq!(b.frames(1).len(), 1);
    assert_eq!(b.drops(), 6, "four that are wrong and two that are none");
}

#[test]
fn an_answer_is_no_longer_than_the_asker_takes() {
    let (s, at) = server();
    let mut b = Bench::new(vec![at]);
    for (size, len, whole) in [
        (None, 512, true),
        (None, 513, false),
        (Some(1232), 1232, true),
        (Some(1232), 1233, false),
        (Some(4096), 1452, true),
        (Some(4096), 1453, false),
    ] {
        b.ask(4000, &ask(5, size));
        answered(&s, len);
        let got = b.frames(1).remove(0);
        assert_eq!((got.len() == 42 + len, got[44] & 2 == 0), (whole, whole), "{size:?} {len}");
        assert!(whole || got.len() == 42 + 22);
    }
}

#[test]
fn a_resolver_that_is_not_there_makes_way() {
    let (s, at) = server();
    let gone = nobody();
    let mut b = Bench::new(vec![gone, at]);
    b.ask(4000, &ask(1, None));
    // "Port unreachable" comes at once; the next is asked without waiting.
    assert!(b.frames(0).is_empty());
    answered(&s, 60);
    assert_eq!(b.frames(1).len(), 1);
    assert_eq!(b.cx.net.resolvers, [at, gone], "later questions, and TCP, go to who answers");
    b.ask(4001, &ask(2, None));
    answered(&s, 60);
    assert_eq!(b.frames(1).len(), 1);
}

#[test]
fn a_resolver_that_is_silent_or_refuses_makes_way() {
    let ((silent, first), (s, at)) = (server(), server());
    let mut b = Bench::new(vec![first, at]);
    b.ask(4000, &ask(1, None));
    silent.recv_from(&mut [0; 512]).unwrap();
    b.pass(Duration::from_millis(900));
    assert_eq!(b.relay.asks[0].tries, 1);
    b.pass(Duration::from_millis(100));
    let mut q = [0; 512];
    let (n, from) = s.recv_from(&mut q).unwrap();
    assert_eq!(b.cx.net.resolvers, [at, first]);
    // It refuses; both have been asked, so that is the answer.
    let mut refused = answer_to(&q[..n], 0);
    refused[3] |= 5;
    s.send_to(&refused, from).unwrap();
    let got = b.frames(1).remove(0);
    assert_eq!(got[45] & 15, 5);
    // The first of two refuses: the other is asked.
    b.ask(4001, &ask(2, None));
    let (n, from) = s.recv_from(&mut q).unwrap();
    let mut refused = answer_to(&q[..n], 0);
    refused[3] |= 2;
    s.send_to(&refused, from).unwrap();
    assert!(b.relay.asks[0].tries == 1);
    b.frames(0);
    for _ in 0..100 {
        if b.relay.asks[0].tries == 2 {
            break;
        }
        thread::sleep(Duration::from_millis(5));
        b.frames(0);
    }
    answered(&silent, 60);
    assert_eq!(b.frames(1)[0][45] & 15, 0);
}

#[test]
fn by_tcp_if_nothing_else_answers() {
    use std::io::{Read, Write};
    let (silent, at) = server();
    let listener = std::net::TcpListener::bind(at).unwrap();
    let mut b = Bench::new(vec![at]);
    let q = ask(0x0a0b, None);
    b.ask(4000, &q);
    silent.recv_from(&mut [0; 512]).unwrap();
    b.pass(Duration::from_secs(1));
    assert!(matches!(b.relay.asks[0].way, Way::Stream(_)));
    let (mut c, _) = listener.accept().unwrap();
    b.frames(0);
    let t = thread::spawn(move || {
        let mut len = [0; 2];
        c.read_exact(&mut len).unwrap();
        let mut q = vec![0; usize::from(u16::from_be_bytes(len))];
        c.read_exact(&mut q).unwrap();
        let a = answer_to(&q, 400);
        c.write_all(&[1]).unwrap();
        thread::sleep(Duration::from_millis(20));
        c.write_all(&[0x90]).unwrap();
        c.write_all(&a[..100]).unwrap();
        thread::sleep(Duration::from_millis(20));
        c.write_all(&a[100..]).unwrap();
        q
    });
    let got = b.frames(1).remove(0);
    assert_eq!(t.join().unwrap(), q, "by TCP nobody forges an answer: the number is the asker's");
    assert_eq!((got.len(), &got[42..44]), (442, &[0x0a, 0x0b][..]));
    assert!(b.relay.asks.is_empty());
}

/// What a resolver says by TCP that is no answer does not leave the question at a place that is another's next.
#[test]
fn by_tcp_too_only_an_answer_is_one() {
    use std::io::{Read, Write};
    for wrong in [&[0, 3, 1, 2, 3][..], &[0, 17, 9, 9, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1]] {
        let (silent, at) = server();
        let listener = std::net::TcpListener::bind(at).unwrap();
        let mut b = Bench::new(vec![at]);
        b.ask(4000, &ask(1, None));
        silent.recv_from(&mut [0; 512]).unwrap();
        b.pass(Duration::from_secs(1));
        let (mut c, _) = listener.accept().unwrap();
        b.frames(0);
        c.read_exact(&mut [0; 24]).unwrap();
        c.write_all(wrong).unwrap();
        for _ in 0..400 {
            b.frames(0);
            if !matches!(b.relay.asks[0].way, Way::Stream(_)) {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        assert!(matches!(b.relay.asks[0].way, Way::Line(..)), "{:?}", b.relay.asks[0].way);
        answered(&silent, 60);
        assert_eq!(b.frames(1).len(), 1);
    }
}

#[test]
fn in_the_end_the_guest_is_told() {
    let mut b = Bench::new(Vec::new());
    b.ask(4000, &ask(0x0102, None));
    let got = b.frames(1).remove(0);
    assert_eq!(got[42..], *b"\x01\x02\x81\x82\0\x01\0\0\0\0\0\0\x01a\x02bc\0\0\x01\0\x01");
    let (silent, at) = server();
    let mut b = Bench::new(vec![at]);
    b.ask(4000, &ask(3, None));
    silent.recv_from(&mut [0; 512]).unwrap();
    for _ in 0..60 {
        b.pass(Duration::from_millis(250));
    }
    let got = b.frames(1);
    assert_eq!((got.len(), got[0][45], b.relay.asks.len()), (1, 0x82, 0));
    assert!(!b.relay.ticking, "nobody is woken for nothing");
}

#[test]
fn other_resolvers_get_what_waits() {
    let ((silent, old), (s, new)) = (server(), server());
    let mut b = Bench::new(vec![old]);
    b.ask(4000, &ask(1, None));
    silent.recv_from(&mut [0; 512]).unwrap();
    b.cx.net.resolvers = vec![new];
    b.relay.resolvers_changed(&mut b.cx);
    answered(&s, 60);
    assert_eq!(b.frames(1).len(), 1);
}

#[test]
fn floods_are_bounded() {
    let (silent, at) = server();
    let mut b = Bench::new(vec![at, silent.local_addr().unwrap()]);
    for n in 0..3000u16 {
        b.ask(n % 100 + 1, &ask(n, None));
    }
    assert_eq!(b.relay.asks.len(), ASKS);
    assert!(b.relay.lines.iter().flatten().count() <= LINES);
    // The same question again is the same question.
    let (before, last) = (b.relay.asks.len(), ask(2999, None));
    b.ask(2999 % 100 + 1, &last);
    assert_eq!(b.relay.asks.len(), before);
    for bad in [&[][..], &[0; 11], &[0; 12], &answer_to(&last, 0)] {
        b.ask(1, bad);
    }
    assert_eq!(b.cx.stats.drops[Reason::Malformed as usize], 4);
    b.cx.restrict = true;
    b.ask(1, &ask(9999, None));
    assert_eq!(b.cx.stats.drops[Reason::Refused as usize], 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is asked or answered: what goes to the guest is never longer than it takes.
    #[test]
    fn any_message(bytes in proptest::collection::vec(any::<u8>(), 0..80), id in any::<[u8; 2]>(), take in 0usize..100) {
        let mut out = Vec::new();
        renumbered(&bytes, id, take, &mut out);
        prop_assert!(out.len() <= take.max(bytes.len().max(12)));
        prop_assert!(room(&bytes) >= 512);
        if let Some(q) = question(&bytes) {
            prop_assert!(q.len() >= 5 && q.len() + 12 <= bytes.len());
            out.clear();
            failure(&bytes, id, &mut out);
            prop_assert_eq!(question(&out), Some(q));
        }
    }
}
