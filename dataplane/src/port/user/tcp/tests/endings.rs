//! How connections end: resets both ways, refusals, halves, silence.

use std::os::fd::AsFd;
use std::time::Duration;

use netreeve_shared::channel::Channel;

use super::model::Model;
use super::scene::{Scene, Talk, key4, plan};
use crate::port::user::door;
use crate::port::user::plan::{Forward, GuestForward, To, Way};
use crate::port::user::poll::{Token, Who};
use crate::port::user::tcp::forward::DOOR;
use crate::port::user::tcp::segment::{Key, Segment, flag};
use crate::port::user::tcp::seq::Seq;
use crate::port::user::tcp::sock::{Sock, Stream};

#[test]
fn a_reset_of_the_guests_reaches_the_far_end() {
    let mut s = Scene::new(&plan());
    let key = key4(5);
    let mut t = s.open(key);
    // Not in its place: the guest is asked to say it again there.
    let off = Segment { seq: t.nxt.plus(9), flags: flag::RST, ..Segment::default() };
    s.send(&[(key, off, &[])]);
    assert_eq!((s.collect()[0].seg.ack, s.tcp.connections()), (t.nxt, 1));
    let far = Segment { seq: t.nxt.plus(1 << 30), flags: flag::RST, ..Segment::default() };
    s.send(&[(key, far, &[])]);
    assert_eq!((s.collect().len(), s.tcp.connections()), (0, 1));
    let rst = t.say(flag::RST, 0);
    s.send(&[(key, rst, &[])]);
    assert_eq!((s.collect().len(), s.tcp.connections()), (0, 0));
    assert!(Scene::end(t.end).borrow().aborted);
}

#[test]
fn a_reset_of_the_far_ends_comes_behind_its_bytes() {
    for (finished, writes) in [(false, false), (false, true), (true, true)] {
        let mut s = Scene::new(&plan());
        let key = key4(5);
        let (mut t, end, token) = s.meet(key);
        end.borrow_mut().queue.extend(b"last words");
        if finished {
            end.borrow_mut().finished = true;
            s.ready(token, true, false);
            assert_eq!(s.collect().len(), 2);
        }
        end.borrow_mut().reset = true;
        if writes {
            // The socket says so when it is written to.
            let seg = t.say(flag::ACK, 1);
            s.send(&[(key, seg, b"x")]);
        } else {
            s.ready(token, true, false);
        }
        let got = s.collect();
        let last = got.last().unwrap().seg;
        assert_eq!((last.flags, last.ack), (flag::RST | flag::ACK, t.nxt));
        assert_eq!(last.seq, t.ack.plus(10 + u32::from(finished)), "where the guest expects it");
        assert_eq!(got.iter().any(|f| f.bytes == b"last words"), !finished);
        assert_eq!(s.tcp.connections(), 0);
    }
}

#[test]
fn halves_end_one_by_one() {
    // The far end first: the guest goes on.
    let mut s = Scene::new(&plan());
    let key = key4(5);
    let (mut t, end, token) = s.meet(key);
    end.borrow_mut().finished = true;
    s.ready(token, true, false);
    assert_eq!(s.collect()[0].seg.flags, flag::FIN | flag::ACK);
    t.ack = t.ack.plus(1);
    for _ in 0..3 {
        let seg = t.say(flag::ACK, 3);
        s.send(&[(key, seg, b"abc")]);
        assert_eq!(s.collect()[0].seg.ack, t.nxt);
        // Whatever the socket says, there is nothing more to read, and nobody spins.
        s.ready(token, true, true);
        assert!(s.collect().is_empty());
    }
    assert!(end.borrow().got == b"abcabcabc" && !end.borrow().got_end);
    let fin = t.say(flag::FIN | flag::ACK, 0);
    s.send(&[(key, fin, &[])]);
    assert_eq!(s.tcp.connections(), 0);
    assert!(end.borrow().got_end && !end.borrow().aborted);
    // Both at once.
    let mut s = Scene::new(&plan());
    let (mut t, end, token) = s.meet(key);
    end.borrow_mut().finished = true;
    s.ready(token, true, false);
    let fin = t.say(flag::FIN | flag::ACK, 0);
    s.send(&[(key, fin, &[])]);
    let got = s.collect();
    assert!(got.iter().any(|f| f.seg.has(flag::FIN)) && got.last().unwrap().seg.ack == t.nxt);
    assert_eq!(s.tcp.connections(), 1);
    t.ack = t.ack.plus(1);
    let last = t.say(flag::ACK, 0);
    s.send(&[(key, last, &[])]);
    assert_eq!(s.tcp.connections(), 0);
    // A repetition of its end is answered as it was.
    s.send(&[(key, fin, &[])]);
    assert_eq!(s.collect()[0].seg.flags, flag::ACK);
}

#[test]
fn an_acknowledgement_that_finds_no_room_is_said_later() {
    let mut s = Scene::new(&plan());
    let key = key4(5);
    let mut t = s.open(key);
    while s.cx.out.push(netreeve_shared::vnet::Vnet::default(), &[&[2; 60]]) {}
    let seg = t.say(flag::ACK, 5);
    s.send(&[(key, seg, b"abcde")]);
    assert!(s.tcp.counts().opened == 1 && crate::port::user::room::Room::has_more(&s.tcp));
    s.cx.out = crate::port::user::out::Out::default();
    let got = s.collect();
    assert_eq!((got.len(), got[0].seg.ack), (1, t.nxt));
    assert!(!crate::port::user::room::Room::has_more(&s.tcp));
}

#[test]
fn the_end_waits_for_what_is_held() {
    let mut s = Scene::new(&plan());
    let key = key4(5);
    let mut t = s.open(key);
    let end = Scene::end(t.end);
    end.borrow_mut().room = 2;
    let seg = t.say(flag::FIN | flag::ACK, 6);
    s.send(&[(key, seg, b"abcdef")]);
    assert_eq!(s.collect()[0].seg.ack, t.nxt, "acknowledged, the end as well");
    assert!(!end.borrow().got_end);
    end.borrow_mut().room = 3;
    let token = s.token(&key).unwrap();
    s.ready(token, false, true);
    assert!(end.borrow().got == b"abcde" && !end.borrow().got_end);
    end.borrow_mut().room = 100;
    s.ready(token, false, true);
    assert!(end.borrow().got == b"abcdef" && end.borrow().got_end);
}

#[test]
fn the_guests_syn_is_answered_until_it_hears_and_not_for_ever() {
    let mut s = Scene::new(&plan());
    let key = key4(5);
    let syn = Segment { seq: Seq(9), flags: flag::SYN, window: 100, ..Segment::default() };
    s.send(&[(key, syn, &[]), (key, syn, &[])]);
    assert_eq!(Scene::ends(), 1);
    let token = s.token(&key).unwrap();
    s.ready(token, false, true);
    let first = s.collect();
    assert_eq!((first[0].seg.scale, first[0].seg.mss), (None, Some(1460)), "the guest knows no scale");
    s.send(&[(key, syn, &[])]);
    let again = s.collect();
    assert_eq!((again.len(), again[0].seg), (1, first[0].seg));
    s.pass(Duration::from_millis(300));
    assert_eq!(s.collect()[0].seg, first[0].seg);
    // Another SYN in the place of this: told where this one stands.
    let other = Segment { seq: Seq(5000), ..syn };
    s.send(&[(key, other, &[])]);
    assert_eq!((s.collect()[0].seg.flags, s.tcp.connections()), (flag::ACK, 1));
    s.pass(Duration::from_secs(200));
    assert_eq!(s.tcp.connections(), 0);
    assert_eq!(s.collect().last().unwrap().seg.flags, flag::RST | flag::ACK);
    assert!(Scene::end(0).borrow().aborted);
}

#[test]
fn a_guest_that_calls_off_is_not_connected() {
    let mut s = Scene::new(&plan());
    let key = key4(5);
    let syn = Segment { seq: Seq(9), flags: flag::SYN, window: 100, ..Segment::default() };
    let rst = Segment { seq: Seq(10), flags: flag::RST, ..Segment::default() };
    s.send(&[(key, syn, &[])]);
    let token = s.token(&key).unwrap();
    s.send(&[(key, rst, &[])]);
    assert_eq!(s.tcp.connections(), 0);
    assert!(Scene::end(0).borrow().aborted);
    s.ready(token, true, true);
    assert!(s.collect().is_empty(), "its events are nobody's");
}

/// A forward to the guest's end of a connection.
fn by(key: Key) -> Forward {
    Forward { id: 7, way: Way::Tcp, guest: key.guest, range: None }
}

/// Somebody came from the host's side; the guest's answer is `answer`.
fn asked(s: &mut Scene, answer: impl Fn(Segment) -> Segment) -> Talk {
    let key = key4(22);
    let sock = Model::new(None);
    s.tcp.come(sock, &by(key), key.far, &mut s.cx);
    let syn = s.collect();
    assert_eq!((syn.len(), syn[0].seg.flags, syn[0].seg.scale), (1, flag::SYN, Some(7)));
    let a = answer(syn[0].seg);
    s.send(&[(key, a, &[])]);
    Talk { key, nxt: a.seq.plus(1), ack: a.ack, window: 100, told: 0, end: Scene::ends() - 1 }
}

fn welcome(syn: Segment) -> Segment {
    Segment {
        seq: Seq(500),
        ack: syn.seq.plus(1),
        flags: flag::SYN | flag::ACK,
        window: 60000,
        mss: Some(1000),
        scale: Some(3),
        ..Segment::default()
    }
}

#[test]
fn somebody_from_the_host_is_let_in_or_refused() {
    let mut s = Scene::new(&plan());
    let mut t = asked(&mut s, welcome);
    assert_eq!((s.collect()[0].seg.ack, s.tcp.counts().opened), (Seq(501), 1));
    let end = Scene::end(t.end);
    end.borrow_mut().queue.extend(b"who is there");
    let token = s.token(&t.key).unwrap();
    s.ready(token, true, true);
    assert_eq!(s.collect()[0].bytes, b"who is there");
    t.ack = t.ack.plus(12);
    let seg = t.say(flag::ACK, 2);
    s.send(&[(t.key, seg, b"me")]);
    assert_eq!(end.borrow().got, b"me");
    // The same ports again, while they are in use: another port.
    let sock = Model::new(None);
    s.tcp.come(sock, &by(t.key), t.key.far, &mut s.cx);
    let other = s.collect();
    assert!(
        other.iter().any(|f| f.seg.flags == flag::SYN && f.key != t.key && f.key.far.ip() == t.key.far.ip())
    );
    // Nobody listens.
    let mut s = Scene::new(&plan());
    let t = asked(&mut s, |syn| Segment {
        ack: syn.seq.plus(1),
        flags: flag::RST | flag::ACK,
        ..Segment::default()
    });
    assert!(Scene::end(t.end).borrow().aborted && s.collect().is_empty());
    assert_eq!((s.tcp.connections(), s.tcp.counts().refused), (0, 1));
    // A reset that is no answer to it is none.
    let mut s = Scene::new(&plan());
    asked(&mut s, |syn| Segment { ack: syn.seq, flags: flag::RST | flag::ACK, ..Segment::default() });
    assert_eq!(s.tcp.connections(), 1);
    // Nobody answers: asked a few times, then not any more.
    s.pass(Duration::from_secs(300));
    assert_eq!(s.tcp.connections(), 0);
    let asked = s.collect();
    assert!((5..10).contains(&asked.len()) && asked.iter().all(|f| f.seg.flags == flag::SYN));
    assert!(Scene::end(0).borrow().aborted);
}

#[test]
fn a_silent_guest_is_asked_and_then_given_up() {
    let mut s = Scene::new(&plan());
    let key = key4(5);
    let mut t = s.open(key);
    s.pass(Duration::from_secs(7250));
    let probe = s.collect();
    assert_eq!((probe.len(), probe[0].seg.seq), (1, t.ack.minus(1)));
    let here = t.say(flag::ACK, 0);
    s.send(&[(key, here, &[])]);
    s.pass(Duration::from_secs(7000));
    assert!(s.collect().is_empty());
    s.pass(Duration::from_secs(200 + 75 * 11));
    assert!(s.collect().len() > 5);
    assert_eq!(s.tcp.connections(), 0);
    assert_eq!((s.tcp.counts().broken, s.tcp.counts().refused), (1, 0));
    assert!(Scene::end(t.end).borrow().aborted);
}

/// What goes to a guest forward is connected by others: the guest's SYN waits, is answered when that is done, and is refused
/// if it cannot be; each call has a connection of its own.
#[test]
fn through_a_door_each_call_has_its_own() {
    let (theirs, ours) = Channel::pair().unwrap();
    let mut plan = plan();
    let far = "10.0.2.100:80".parse().unwrap();
    plan.guest_forwards.push(GuestForward { at: far, to: To::Asked { tcp: false } });
    let mut s = Scene::with_doors(&plan, vec![ours.into_fd()]);
    let key = |port| Key { far, ..key4(port) };
    let syn = Segment { seq: Seq(7), flags: flag::SYN, window: 65535, ..Segment::default() };
    let asked = || {
        let m = theirs.recv(0, Some(Duration::ZERO)).ok()??;
        door::read_ask(&m.bytes)
    };
    let come = |s: &mut Scene| {
        let door = Token { who: Who::Tcp, kind: DOOR, index: 0, generation: 0 };
        s.ready(door, true, false);
        s.collect().iter().map(|c| (c.key.guest.port(), c.seg.flags)).collect::<Vec<_>>()
    };
    s.send(&[(key(1), syn, &[]), (key(2), syn, &[]), (key(1), syn, &[]), (key(3), syn, &[])]);
    assert!(s.collect().is_empty() && Scene::ends() == 0);
    let [a, b, c] = [(); 3].map(|()| asked().unwrap());
    assert_eq!(asked(), None, "a SYN that is sent again asks for nothing more");
    let fd = std::fs::File::open("/dev/null").unwrap();
    theirs.send(&door::answer(b, 0), &[fd.as_fd()]).unwrap();
    theirs.send(&door::answer(a, libc::ECONNREFUSED), &[]).unwrap();
    theirs.send(&door::answer(c, libc::EAGAIN), &[]).unwrap();
    let said = [(2, flag::SYN | flag::ACK), (1, flag::RST | flag::ACK)];
    assert_eq!(come(&mut s), said, "the third asks again by itself: a full queue is no answer");
    assert_eq!((Scene::ends(), s.tcp.connections()), (1, 1));
    s.send(&[(key(3), syn, &[])]);
    theirs.send(&door::answer(asked().unwrap(), 0), &[fd.as_fd()]).unwrap();
    assert_eq!(come(&mut s), [(3, flag::SYN | flag::ACK)]);
    assert_eq!((Scene::ends(), s.tcp.connections()), (2, 2));
    let unix = std::os::unix::net::UnixStream::pair().unwrap().0;
    assert!(!Stream::made(unix.into(), false).peeks(), "what a unix socket gave is kept here");
}
