//! What cannot be done now is done later: times between two steps, words without room, connections without a place.

use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use netreeve_shared::vnet::Vnet;

use super::scene::{Scene, key4, plan};
use crate::port::user::out::Out;
use crate::port::user::plan::{Forward, Limits, Way};
use crate::port::user::poll::Ready;
use crate::port::user::room::Room;
use crate::port::user::tcp::forward;
use crate::port::user::tcp::segment::{Segment, flag};
use crate::port::user::tcp::seq::Seq;

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
        let mut t = s.open(key);
        let end = Scene::end(t.end);
        let token = s.token(&key).unwrap();
        end.borrow_mut().finished = true;
        s.ready(token, true, false);
        assert_eq!(s.collect()[0].seg.flags, flag::FIN | flag::ACK);
        t.ack = t.ack.plus(1);
        let ack = t.say(flag::ACK, 0);
        s.send(&[(key, ack, &[])]);
        let all = Ready { read: true, write: true, error: true, hup: true, read_hup: true };
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

#[test]
fn one_timer_waits_for_all_who_find_no_place() {
    let p = plan();
    let mut s = Scene::new(&crate::port::user::Plan { limits: Limits { tcp: 1, ..p.limits }, ..p });
    let mut t = s.open(key4(5));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let at = listener.local_addr().unwrap();
    let rule = Forward { id: 7, way: Way::Tcp, guest: key4(22).guest };
    s.tcp.set_forwards(vec![(rule, Some(listener.into()))], &mut s.cx).unwrap();
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
