//! What cannot be done now is done later: times between two steps, words without room, connections without a place.

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use netreeve_shared::vnet::Vnet;
use nix::sys::socket::{getsockopt, sockopt};

use super::scene::{Scene, key4, plan};
use crate::port::user::out::Out;
use crate::port::user::plan::{Forward, Limits, Way};
use crate::port::user::poll::Ready;
use crate::port::user::room::Room;
use crate::port::user::tcp::forward;
use crate::port::user::tcp::segment::{Segment, flag};
use crate::port::user::tcp::seq::Seq;
use crate::port::user::tcp::sock::{Sock, Stream};

#[test]
fn a_time_that_is_no_whole_millisecond_comes() {
    let mut s = Scene::new(&plan());
    let key = key4(5);
    let syn = Segment { seq: Seq(9), flags: flag::SYN, window: 100, ..Segment::default() };
    s.cx.now += Duration::from_micros(700);
    s.send(&[(key, syn, &[])]);
    let token = s.token(&key).unwrap();
    s.ready(token, false, true);
    let first = s.collect();
    // Looked at a little before its time as well, in the same millisecond.
    s.cx.now += Duration::from_micros(9500);
    s.pass(Duration::from_millis(300));
    let again = s.collect();
    assert_eq!((again.len(), again[0].seg), (1, first[0].seg));
}

#[test]
fn a_window_that_opens_while_there_is_no_room_to_say_so_is_said_later() {
    let mut s = Scene::new(&plan());
    let key = key4(5);
    let mut t = s.open(key);
    let end = Scene::end(t.end);
    end.borrow_mut().room = 0;
    let data = vec![3; 60_000];
    for _ in 0..10 {
        let seg = t.say(flag::ACK, 60_000);
        s.send(&[(key, seg, &data)]);
        t.nxt = s.collect().last().unwrap().seg.ack;
    }
    while s.cx.out.push(Vnet::default(), &[&[2; 60]]) {}
    end.borrow_mut().room = 1 << 20;
    let token = s.token(&key).unwrap();
    s.ready(token, false, true);
    assert_eq!(s.tcp.flows().idle, 0);
    s.ready(token, false, true);
    assert_eq!(s.tcp.flows().idle, 1, "woken for nothing");
    assert!(end.borrow().got.len() >= 200 << 10 && s.tcp.has_more());
    s.cx.out = Out::default();
    let got = s.collect();
    assert_eq!((got.len(), got[0].seg.ack), (1, t.nxt));
    assert!(u32::from(got[0].seg.window) << 7 >= 200 << 10);
}

#[test]
fn a_reset_behind_the_end_is_one() {
    for peeks in [true, false] {
        let mut s = Scene::keeping(&plan(), peeks);
        let key = key4(5);
        let (mut t, end, token) = s.meet(key);
        end.borrow_mut().finished = true;
        s.ready(token, true, false);
        assert_eq!(s.collect()[0].seg.flags, flag::FIN | flag::ACK);
        t.ack = t.ack.plus(1);
        let ack = t.say(flag::ACK, 0);
        s.send(&[(key, ack, &[])]);
        let all =
            Ready { read: true, write: true, error: true, hup: true, read_hup: true, ..Ready::default() };
        s.tcp.ready(token, all, &mut s.cx);
        assert!(s.collect().is_empty(), "an event without an error is none");
        end.borrow_mut().error = Some(libc::ECONNRESET);
        end.borrow_mut().reset = true;
        s.tcp.ready(token, all, &mut s.cx);
        let got = s.collect();
        assert_eq!((got.len(), got[0].seg.flags, got[0].seg.seq), (1, flag::RST | flag::ACK, t.ack));
        assert_eq!(s.tcp.connections(), 0);
    }
}

#[test]
fn a_socket_that_takes_nothing_any_more_is_broken_off_behind_what_it_gave() {
    for peeks in [true, false] {
        let mut s = Scene::keeping(&plan(), peeks);
        let key = key4(5);
        let mut t = s.open(key);
        let end = Scene::end(t.end);
        end.borrow_mut().queue.extend(b"no more");
        end.borrow_mut().deaf = true;
        let seg = t.say(flag::ACK, 4);
        s.send(&[(key, seg, b"lost")]);
        let got = s.collect();
        assert!(got.iter().any(|f| f.bytes == b"no more"));
        assert_eq!(got.last().unwrap().seg.flags, flag::RST | flag::ACK);
        assert_eq!(s.tcp.connections(), 0);
    }
}

/// Room for small frames is gone, until it is given back.
fn fill(s: &mut Scene) {
    while s.cx.out.push(Vnet::default(), &[&[2; 60]]) {}
}

#[test]
fn the_last_word_is_said_before_a_connection_is_over_and_again_if_it_was_lost() {
    let mut s = Scene::new(&plan());
    let key = key4(5);
    let (mut t, end, token) = s.meet(key);
    end.borrow_mut().finished = true;
    s.ready(token, true, false);
    assert_eq!(s.collect()[0].seg.flags, flag::FIN | flag::ACK);
    t.ack = t.ack.plus(1);
    fill(&mut s);
    let fin = t.say(flag::FIN | flag::ACK, 0);
    s.send(&[(key, fin, &[])]);
    assert_eq!(s.tcp.connections(), 1, "nobody has told the guest yet");
    assert!(s.tcp.has_more());
    s.cx.out = Out::default();
    let last = s.collect();
    assert_eq!((last.len(), last[0].seg.flags, last[0].seg.ack), (1, flag::ACK, t.nxt));
    assert!(s.tcp.connections() == 0 && end.borrow().got_end && !end.borrow().aborted);
    // It was lost: the guest's end is answered as it was.
    s.cx.now += Duration::from_secs(20);
    s.send(&[(key, fin, &[])]);
    let again = s.collect();
    assert_eq!((again.len(), again[0].seg.flags), (1, flag::ACK));
    assert_eq!((again[0].seg.ack, again[0].seg.seq), (last[0].seg.ack, last[0].seg.seq));
    // Another end is a stranger's, and so is this one after a time, and whatever is no end.
    for (wait, s1) in
        [(0, Segment { seq: fin.seq.plus(1), ..fin }), (0, Segment { flags: flag::ACK, ..fin }), (41, fin)]
    {
        s.cx.now += Duration::from_secs(wait);
        s.send(&[(key, s1, &[])]);
        assert_eq!(s.collect()[0].seg.flags, flag::RST);
    }
}

#[test]
fn a_window_never_promises_what_there_is_no_room_for() {
    let p = plan();
    let each = 20_000;
    let p = crate::port::user::Plan { limits: Limits { held_each: each, ..p.limits }, ..p };
    for step in [1_u32, 100, 127, 129, 1000] {
        let mut s = Scene::new(&p);
        let key = key4(5);
        let mut t = s.open(key);
        let end = Scene::end(t.end);
        end.borrow_mut().room = 0;
        let (first, data) = (t.nxt, vec![7; step as usize]);
        let mut edge = t.nxt.plus(each);
        for _ in 0..30_000 / step {
            let n = edge.since(t.nxt).min(step);
            if n == 0 || n > step {
                break;
            }
            let seg = t.say(flag::ACK, n);
            s.send(&[(key, seg, &data[..n as usize])]);
            let said = s.collect().last().unwrap().seg;
            assert_eq!(said.ack, t.nxt, "in the window: taken");
            let now = said.ack.plus(u32::from(said.window) << 7);
            assert!(!now.plus(127).before(edge), "its end goes back by less than a unit");
            edge = edge.max(now);
            assert!(edge.since(first) <= each, "{step}: {} bytes are promised", edge.since(first));
        }
        assert!(t.nxt.since(first) > each - 2 * step - 256, "{step}: {} were taken", t.nxt.since(first));
        end.borrow_mut().room = 1 << 20;
        let token = s.token(&key).unwrap();
        s.ready(token, false, true);
        assert_eq!(end.borrow().got.len(), t.nxt.since(first) as usize);
    }
}

#[test]
fn whoever_stands_still_and_could_go_on_is_found_by_the_timer() {
    for peeks in [true, false] {
        // The kernel's word that the socket takes something again is missed.
        let mut s = Scene::keeping(&plan(), peeks);
        let key = key4(5);
        let mut t = s.open(key);
        let end = Scene::end(t.end);
        end.borrow_mut().room = 0;
        let seg = t.say(flag::ACK, 5000);
        s.send(&[(key, seg, &vec![1; 5000])]);
        s.collect();
        s.pass(Duration::from_secs(10));
        assert_eq!(s.tcp.counts().healed, 0, "it takes nothing: all is as it should be");
        end.borrow_mut().room = 1 << 20;
        s.pass(Duration::from_secs(3));
        assert_eq!((end.borrow().got.len(), s.tcp.counts().healed), (5000, 1));
        // The word that there is something to be read is.
        s.collect();
        s.pass(Duration::from_secs(130));
        assert_eq!(s.tcp.counts().healed, 1);
        end.borrow_mut().queue.extend(b"unheard");
        s.pass(Duration::from_secs(61));
        assert_eq!(
            (s.collect().last().unwrap().bytes.as_slice(), s.tcp.counts().healed),
            (&b"unheard"[..], 2)
        );
        // What is under way, and what the guest has and the socket was not told of, is nothing new.
        s.pass(Duration::from_millis(900));
        t.ack = t.ack.plus(7);
        let ack = t.say(flag::ACK, 0);
        s.send(&[(key, ack, &[])]);
        s.pass(Duration::from_secs(130));
        assert_eq!(s.tcp.counts().healed, 2);
    }
}

#[test]
fn a_window_that_others_shut_opens_when_they_are_gone() {
    let p = plan();
    let limits = Limits { held: 4 << 20, held_each: 200 << 10, ..p.limits };
    let mut s = Scene::new(&crate::port::user::Plan { limits, ..p });
    let mut talks: Vec<_> = (0..4).map(|i| s.open(key4(i))).collect();
    let data = vec![5; 50_000];
    for t in &talks {
        Scene::end(t.end).borrow_mut().room = 0;
    }
    let mut windows = vec![0; talks.len()];
    for _ in 0..20 {
        for (t, window) in talks.iter_mut().zip(&mut windows) {
            let seg =
                Segment { seq: t.nxt, ack: t.ack, flags: flag::ACK, window: t.window, ..Segment::default() };
            s.send(&[(t.key, seg, &data)]);
            let said = s.collect().last().unwrap().seg;
            (t.nxt, *window) = (said.ack, said.window);
        }
    }
    assert_eq!(windows[3], 0, "{windows:?}");
    let [others @ .., mut first] = <[_; 4]>::try_from(talks).unwrap();
    for t in others {
        let rst = Segment { seq: t.nxt, flags: flag::RST, ..Segment::default() };
        s.send(&[(t.key, rst, &[])]);
    }
    assert!(s.collect().is_empty() && s.tcp.connections() == 1);
    s.pass(Duration::from_secs(3));
    let got = s.collect();
    assert_eq!((got.len(), got[0].key, got[0].seg.ack), (1, first.key, first.nxt));
    assert!(u32::from(got[0].seg.window) << 7 > 20_000, "{}", got[0].seg.window);
    assert_eq!(s.tcp.counts().healed, 1);
    let seg = first.say(flag::ACK, 5000);
    s.send(&[(first.key, seg, &data[..5000])]);
    assert_eq!(s.collect().last().unwrap().seg.ack, first.nxt);
}

/// However many connections come and go in the minute that the timer of one lasts, no more timers are kept than twice as many
/// as there are connections, and some; and no time that means something is missed.
#[test]
fn timers_of_those_who_are_gone_do_not_pile_up() {
    let p = plan();
    let limits = Limits { tcp: 1000, ..p.limits };
    let mut s = Scene::new(&crate::port::user::Plan { limits, ..p });
    let stays = s.open(key4(5));
    Scene::end(stays.end).borrow_mut().queue.extend(vec![7; 100]);
    let token = s.token(&stays.key).unwrap();
    s.ready(token, true, false);
    assert_eq!(s.collect().len(), 1);
    let mut most = 0;
    for i in 0..12_000 {
        let t = s.open(key4(1000 + i % 100));
        let rst = Segment { seq: t.nxt, flags: flag::RST, ..Segment::default() };
        s.send(&[(t.key, rst, &[])]);
        most = most.max(s.cx.timers.held());
    }
    assert!(most > 4000 && most <= 4096 + 4, "{most}");
    assert_eq!(s.tcp.connections(), 1);
    s.pass(Duration::from_millis(1100));
    assert_eq!(s.collect()[0].bytes.len(), 100, "it is sent again in time");
}

/// A guest that asks whether its far end is there is answered by us, who do not know: its socket asks as often.
#[test]
fn who_asks_whether_the_far_end_is_there_has_it_asked() {
    let mut s = Scene::new(&plan());
    let mut t = s.open(key4(5));
    let end = Scene::end(t.end);
    let probe =
        Segment { seq: t.nxt.minus(1), ack: t.ack, flags: flag::ACK, window: 100, ..Segment::default() };
    // Too soon: something was lost. Then as Linux asks, more often, as others ask (a byte once more), and less often.
    for (wait, byte, alive) in
        [(0, 0, &[][..]), (60, 0, &[60]), (30, 0, &[60, 30]), (20, 1, &[60, 30, 20]), (40, 0, &[60, 30, 20])]
    {
        s.pass(Duration::from_secs(wait));
        s.send(&[(t.key, probe, &b"x"[..byte])]);
        let got = s.collect();
        assert_eq!((got.len(), got[0].seg.ack), (1, t.nxt), "it is answered");
        assert_eq!(end.borrow().alive, alive);
    }
    // A window that is shut is asked for in the same way.
    end.borrow_mut().room = 0;
    for _ in 0..10 {
        let seg = t.say(flag::ACK, 60_000);
        s.send(&[(t.key, seg, &vec![3; 60_000])]);
        t.nxt = s.collect().last().unwrap().seg.ack;
    }
    s.pass(Duration::from_secs(5));
    s.collect();
    s.send(&[(t.key, Segment { seq: t.nxt.minus(1), ..probe }, &[])]);
    assert_eq!(end.borrow().alive.len(), 3);
}

/// A guest's question for its window, which crossed our word that it is open: the far end is not asked every second from
/// then on, for a connection would end of that when nothing goes through for ten.
#[test]
fn a_late_question_for_the_window_does_not_hurry_the_far_end() {
    for wait in [1, 2, 14, 15] {
        let mut s = Scene::new(&plan());
        let t = s.open(key4(5));
        s.pass(Duration::from_secs(wait));
        let probe =
            Segment { seq: t.nxt.minus(1), ack: t.ack, flags: flag::ACK, window: 100, ..Segment::default() };
        for _ in 0..3 {
            s.send(&[(t.key, probe, &[])]);
            assert_eq!(s.collect().len(), 1, "it is answered");
            assert_eq!(Scene::end(t.end).borrow().alive, [15], "after {wait} s");
            s.pass(Duration::from_secs(2));
        }
    }
}

#[test]
fn a_socket_asks_as_often_as_it_is_told() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let far = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let same = far.try_clone().unwrap();
    let mut near = Stream::made(far.into(), true);
    for (told, interval) in [(600, 75), (5, 5)] {
        near.keep_alive(told);
        assert!(getsockopt(&same, sockopt::KeepAlive).unwrap());
        assert_eq!(getsockopt(&same, sockopt::TcpKeepIdle).unwrap(), u32::from(told));
        assert_eq!(getsockopt(&same, sockopt::TcpKeepInterval).unwrap(), interval);
    }
}

#[test]
fn one_timer_waits_for_all_who_find_no_place() {
    let p = plan();
    let mut s = Scene::new(&crate::port::user::Plan { limits: Limits { tcp: 1, ..p.limits }, ..p });
    let mut t = s.open(key4(5));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let at = listener.local_addr().unwrap();
    let rule = Forward { id: 7, way: Way::Tcp, guest: key4(22).guest, range: None };
    s.tcp.set_forwards(vec![(rule, Some(listener.into()))], &mut s.cx);
    let token = forward::token(7);
    let _come: Vec<_> = (0..3).map(|_| TcpStream::connect(at).unwrap()).collect();
    for round in 0..2 {
        (0..5).for_each(|_| s.ready(token, true, false));
        let later = s.cx.now + Duration::from_millis(120);
        let mut timers = 0;
        while let Some(due) = s.cx.timers.next(later) {
            timers += usize::from(due == token);
        }
        assert_eq!(timers, 1, "{round}");
        s.tcp.tick(token, &mut s.cx);
        assert_eq!((s.tcp.connections(), Scene::ends()), (1, 1));
        while s.cx.timers.next(later).is_some() {}
        if round == 0 {
            s.tcp.forwards.rang(token);
        }
    }
    // There is a place: the first of them is let in.
    let rst = t.say(flag::RST, 0);
    s.send(&[(t.key, rst, &[])]);
    s.tcp.tick(token, &mut s.cx);
    let syn = s.collect();
    assert_eq!((syn.len(), syn[0].seg.flags, syn[0].key.guest), (1, flag::SYN, rule.guest));
    assert_eq!(s.tcp.connections(), 1);
}
