//! Scenes by hand: opening, bytes both ways, windows, what comes out of order.

use std::time::Duration;

use super::model::FAILS;
use super::scene::{Scene, key4, key6, plan};
use crate::port::user::Plan;
use crate::port::user::policy::{Direction, Policy, Proto, Rule, Verdict, Where};
use crate::port::user::tcp::segment::{Key, Segment, flag};
use crate::port::user::tcp::seq::Seq;

fn syn() -> Segment {
    Segment { seq: Seq(77), flags: flag::SYN, window: 1000, ..Segment::default() }
}

#[test]
fn a_connection_opens_carries_bytes_and_ends_in_both_families() {
    for (key, mss) in [(key4(5), 1460), (key6(5), 1440)] {
        let mut s = Scene::keeping(&plan(), true);
        let mut t = s.open(key);
        let end = Scene::end(t.end);
        assert_eq!(end.borrow().to, Some(key.far));
        let hello = t.say(flag::ACK, 5);
        s.send(&[(key, hello, b"hello")]);
        assert_eq!(end.borrow().got, b"hello");
        let got = s.collect();
        assert_eq!((got.len(), got[0].seg.ack, got[0].bytes.len()), (1, t.nxt, 0));
        // 100 KB come: as super-frames, the last shorter.
        let data: Vec<u8> = (0..100_000_u32).map(|i| (i / 7) as u8).collect();
        end.borrow_mut().queue.extend(&data);
        let token = s.token(&key).unwrap();
        s.ready(token, true, false);
        let got = s.collect();
        assert_eq!(got.len(), 2);
        assert_eq!(got[0].vnet.gso_size, mss);
        assert_eq!(got[0].seg.seq, t.ack);
        let all: Vec<u8> = got.iter().flat_map(|f| f.bytes.clone()).collect();
        assert!(all == data);
        assert_eq!(end.borrow().queue.len(), data.len(), "stays until it is acknowledged");
        t.ack = t.ack.plus(100_000);
        let fin = t.say(flag::ACK | flag::FIN, 0);
        s.send(&[(key, fin, &[])]);
        assert!(end.borrow().got_end && end.borrow().queue.is_empty());
        assert_eq!(s.collect()[0].seg.ack, t.nxt);
        end.borrow_mut().finished = true;
        s.ready(token, true, false);
        let got = s.collect();
        assert_eq!((got.len(), got[0].seg.flags, got[0].seg.seq), (1, flag::FIN | flag::ACK, t.ack));
        t.ack = t.ack.plus(1);
        let last = t.say(flag::ACK, 0);
        s.send(&[(key, last, &[])]);
        assert_eq!(s.tcp.connections(), 0);
        assert!(!end.borrow().aborted);
        assert!(s.collect().is_empty());
    }
}

#[test]
fn the_guest_hears_what_the_host_said() {
    // RST; ICMP and ICMPv6 with type and code; nothing.
    let table = [
        (libc::ECONNREFUSED, None),
        (libc::ENETUNREACH, Some([(3, 0), (1, 0)])),
        (libc::EHOSTUNREACH, Some([(3, 1), (1, 3)])),
        (libc::EACCES, Some([(3, 13), (1, 1)])),
    ];
    for (error, icmp) in table {
        for at_once in [true, false] {
            for (i, key) in [key4(9), key6(9)].into_iter().enumerate() {
                let mut s = Scene::new(&plan());
                FAILS.set(at_once.then_some(error));
                s.send(&[(key, syn(), &[])]);
                if !at_once {
                    assert!(s.collect().is_empty());
                    Scene::end(0).borrow_mut().error = Some(error);
                    let token = s.token(&key).unwrap();
                    s.ready(token, false, true);
                }
                let got = s.collect();
                assert_eq!((got.len(), s.tcp.connections()), (1, 0), "{error}");
                match icmp {
                    None => {
                        assert_eq!(got[0].seg.flags, flag::RST | flag::ACK);
                        assert_eq!((got[0].seg.ack, got[0].key), (Seq(78), key));
                    }
                    Some(codes) => {
                        let f = got[0].other.as_ref().unwrap();
                        let l4 = if i == 0 { 34 } else { 54 };
                        assert_eq!((f[l4], f[l4 + 1]), codes[i]);
                        // What is quoted: ports and sequence number of the guest's SYN.
                        let quoted = &f[l4 + 8 + if i == 0 { 20 } else { 40 }..];
                        assert_eq!(quoted[..8], [0, 9, 0, 80, 0, 0, 0, 77]);
                    }
                }
            }
        }
    }
    let mut s = Scene::new(&plan());
    FAILS.set(Some(libc::EMFILE));
    s.send(&[(key4(9), syn(), &[])]);
    assert!(s.collect().is_empty(), "the guest asks again");
}

#[test]
fn policy_is_asked_before_a_socket_is_made() {
    let rule = |verdict| Rule {
        verdict,
        direction: Direction::Out,
        proto: Some(Proto::Tcp),
        at: Where::Any,
        ports: Some((80, 80)),
    };
    for (verdict, answers) in [(Verdict::Refuse, 1), (Verdict::Drop, 0)] {
        let mut p = plan();
        p.policy = Policy { rules: vec![rule(verdict)], otherwise: Verdict::Pass };
        let mut s = Scene::new(&p);
        s.send(&[(key4(9), syn(), &[])]);
        assert_eq!((s.collect().len(), Scene::ends()), (answers, 0));
    }
    let mut p = plan();
    p.restrict = true;
    let mut s = Scene::new(&p);
    s.send(&[(key4(9), syn(), &[])]);
    assert_eq!((s.collect().len(), Scene::ends()), (0, 0));
}

#[test]
fn ipv4_in_the_clothes_of_ipv6_is_nowhere() {
    let mut s = Scene::new(&Plan { v4: None, ..plan() });
    let key = Key { far: "[::ffff:192.0.2.7]:80".parse().unwrap(), ..key6(9) };
    s.send(&[(key, syn(), &[])]);
    let got = s.collect();
    assert_eq!((got.len(), s.tcp.connections(), Scene::ends()), (1, 0, 0));
    let f = got[0].other.as_ref().unwrap();
    assert_eq!((f[54], f[55]), (1, 0), "no way there");
}

#[test]
fn what_the_socket_does_not_take_is_held_and_the_window_says_so() {
    let mut s = Scene::new(&plan());
    let key = key4(5);
    let mut t = s.open(key);
    let end = Scene::end(t.end);
    end.borrow_mut().room = 1000;
    let data: Vec<u8> = (0..60_000_u32).map(|i| (i / 5) as u8).collect();
    let mut edge = 0;
    for i in 0..10 {
        let seg = t.say(flag::ACK, 60_000);
        s.send(&[(key, seg, &data)]);
        let got = s.collect();
        let last = &got.last().unwrap().seg;
        let acked = last.ack.since(t.nxt.minus(60_000));
        t.nxt = last.ack;
        edge = u32::from(last.window) << 7;
        if acked < 60_000 {
            assert!(i >= 4, "256 KiB are held");
            break;
        }
    }
    assert!(edge < 128, "the window is closed: {edge}");
    let (sent, got) = (t.nxt, end.borrow().got.len());
    assert_eq!(got, 1000);
    // A probe of the closed window is answered, and not taken.
    let probe = Segment { seq: t.nxt, ack: t.ack, flags: flag::ACK, window: t.window, ..Segment::default() };
    s.send(&[(key, probe, b"x")]);
    let answer = s.collect();
    assert_eq!((answer.len(), answer[0].seg.ack), (1, sent));
    // The socket takes again: the guest hears of it.
    end.borrow_mut().room = 1 << 20;
    let token = s.token(&key).unwrap();
    s.ready(token, false, true);
    let got = s.collect();
    assert_eq!(got.len(), 1);
    assert!(u32::from(got[0].seg.window) << 7 >= 200 << 10);
    let mut want: Vec<u8> = Vec::new();
    (0..10).for_each(|_| want.extend(&data));
    let all = end.borrow().got.clone();
    assert!(all.len() >= 256 << 10 && all[..] == want[..all.len()]);
}

#[test]
fn duplicates_overlaps_and_gaps() {
    let mut s = Scene::new(&plan());
    let key = key4(5);
    let t = s.open(key);
    let end = Scene::end(t.end);
    let at = |off: u32, flags| Segment {
        seq: t.nxt.plus(off),
        ack: t.ack,
        flags,
        window: t.window,
        ..Segment::default()
    };
    // A gap: answered by what is missing, once for each, so that the guest can count three.
    s.send(&[
        (key, at(5, flag::ACK), b"fghij"),
        (key, at(10, flag::ACK), b"klmno"),
        (key, at(15, flag::ACK), b"p"),
    ]);
    let got = s.collect();
    assert!(got.len() >= 3 && got.iter().all(|f| f.seg.ack == t.nxt));
    assert!(end.borrow().got.is_empty());
    // Overlaps and repetitions, in one turn.
    let before = end.borrow().calls;
    s.send(&[
        (key, at(0, flag::ACK), b"abc"),
        (key, at(0, flag::ACK), b"abcdef"),
        (key, at(2, flag::ACK), b"cd"),
        (key, at(4, flag::ACK | 0x20), b"efghij"),
        (key, at(u32::MAX, flag::ACK), b"?a"),
    ]);
    assert_eq!(end.borrow().got, b"abcdefghij");
    assert_eq!(s.collect().last().unwrap().seg.ack, t.nxt.plus(10));
    assert_eq!(end.borrow().calls, before + 1, "one call passes all of a turn");
    // Is anybody there?
    s.send(&[(key, at(9, flag::ACK), &[])]);
    assert_eq!(s.collect()[0].seg.ack, t.nxt.plus(10));
    // Bytes before the end once more, and the end twice.
    s.send(&[(key, at(8, flag::ACK | flag::FIN), b"ijk"), (key, at(11, flag::ACK | flag::FIN), &[])]);
    assert_eq!(s.collect().last().unwrap().seg.ack, t.nxt.plus(12));
    assert!(end.borrow().got == b"abcdefghijk" && end.borrow().got_end);
    // What was never sent cannot be acknowledged.
    let future = Segment { ack: t.ack.plus(1), ..at(12, flag::ACK) };
    s.send(&[(key, future, &[])]);
    assert_eq!(s.collect()[0].seg.seq, t.ack);
}

#[test]
fn a_closed_window_of_the_guests_is_asked_for_and_what_is_lost_is_sent_again() {
    for peeks in [true, false] {
        let mut s = Scene::keeping(&plan(), peeks);
        let key = key4(5);
        let (mut t, end, token) = s.meet(key);
        end.borrow_mut().queue.extend(vec![7; 5000]);
        end.borrow_mut().finished = true;
        s.ready(token, true, false);
        let first = s.collect();
        assert_eq!(first.iter().map(|f| f.bytes.len()).sum::<usize>(), 5000);
        assert_eq!(first.last().unwrap().seg.flags, flag::FIN | flag::ACK);
        // Nothing was heard of: all of it again, the end as well, and once more, later.
        for wait in [1, 2, 4] {
            s.pass(Duration::from_millis(wait * 1000 - 100));
            assert!(s.collect().is_empty());
            s.pass(Duration::from_millis(150));
            let again = s.collect();
            assert_eq!(again.iter().map(|f| f.bytes.len()).sum::<usize>(), 5000);
            assert_eq!((again[0].seg.seq, again.last().unwrap().seg.flags), (t.ack, flag::FIN | flag::ACK));
        }
        // Three repetitions say that a segment was lost.
        t.ack = t.ack.plus(2000);
        for _ in 0..4 {
            let ack = t.say(flag::ACK, 0);
            s.send(&[(key, ack, &[])]);
        }
        assert!(s.collect().is_empty(), "these are answers to what was sent three times");
        t.ack = t.ack.plus(3001);
        t.window = 0;
        let ack = t.say(flag::ACK, 0);
        s.send(&[(key, ack, &[])]);
        s.pass(Duration::from_secs(5));
        assert!(s.collect().is_empty(), "everything was acknowledged");
        let fin = t.say(flag::ACK | flag::FIN, 0);
        s.send(&[(key, fin, &[])]);
        assert_eq!(s.collect()[0].seg.ack, t.nxt);
        assert_eq!(s.tcp.connections(), 0);
    }
}

#[test]
fn repeats_are_a_loss_and_windows_are_asked_for() {
    for peeks in [true, false] {
        let mut s = Scene::keeping(&plan(), peeks);
        let key = key4(5);
        let (mut t, end, token) = s.meet(key);
        end.borrow_mut().queue.extend(vec![7; 5000]);
        s.ready(token, true, false);
        assert_eq!(s.collect().len(), 1);
        t.ack = t.ack.plus(2000);
        for i in 0..4 {
            let ack = t.say(flag::ACK, 0);
            s.send(&[(key, ack, &[])]);
            let again = s.collect();
            assert_eq!(again.len(), usize::from(i == 3), "{i}");
            if let Some(f) = again.first() {
                assert_eq!((f.seg.seq, f.bytes.len()), (t.ack, 3000));
            }
        }
        t.ack = t.ack.plus(3000);
        t.window = 0;
        let ack = t.say(flag::ACK, 0);
        s.send(&[(key, ack, &[])]);
        end.borrow_mut().queue.extend(vec![8; 10]);
        s.ready(token, true, false);
        assert!(s.collect().is_empty());
        for wait in [1, 2, 4] {
            s.pass(Duration::from_millis(wait * 1000 + 100));
            let probe = s.collect();
            assert_eq!((probe.len(), probe[0].seg.seq, probe[0].bytes.len()), (1, t.ack.minus(1), 0));
            let still = t.say(flag::ACK, 0);
            s.send(&[(key, still, &[])]);
        }
        t.window = 5;
        let open = t.say(flag::ACK, 0);
        s.send(&[(key, open, &[])]);
        assert_eq!(s.collect()[0].bytes, [8; 10]);
    }
}
