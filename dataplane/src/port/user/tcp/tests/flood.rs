//! What a guest may make us hold, and what it may not.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::scene::{Scene, key4, plan};
use crate::port::user::plan::{Forward, Limits, Way};
use crate::port::user::tcp::flow::Flow;
use crate::port::user::tcp::forward;
use crate::port::user::tcp::segment::{Key, Segment, flag};
use crate::port::user::tcp::seq::Seq;
use crate::port::user::tcp::sock::{Sock, Stream};
use crate::stats::Reason;
use crate::sys::sock;

fn syn(key: Key) -> (Key, Segment, &'static [u8]) {
    (key, Segment { seq: Seq(9), flags: flag::SYN, window: 100, ..Segment::default() }, &[])
}

/// A turn later.
const TURN: Duration = Duration::from_millis(1);

#[test]
fn a_flood_of_calls_is_bounded_its_oldest_go_and_what_is_open_lives_on() {
    let mut p = plan();
    p.limits.tcp = 4096;
    let mut s = Scene::new(&p);
    let mut open: Vec<_> = (0..20).map(|i| s.open(key4(50_000 + i))).collect();
    // At once: the kernel could not even say whether they succeed.
    for port in 0..5000 {
        s.send(&[syn(key4(port))]);
    }
    assert_eq!((s.tcp.connections(), s.tcp.half_open(), Scene::ends()), (1044, 1024, 1044));
    assert_eq!(s.cx.stats.drops[Reason::Full as usize], 5000 - 1024);
    assert_eq!((s.tcp.counts().limited, s.tcp.counts().evicted), (5000 - 1024, 0));
    assert!(s.collect().is_empty(), "whoever finds no room calls again");
    // One after the other, for a second: each finds its place, and the oldest loses his, without a word.
    for port in 5000..6000 {
        s.cx.now += TURN;
        let before = s.tcp.counts();
        s.send(&[syn(key4(port))]);
        let evicted = s.tcp.counts().evicted - before.evicted;
        assert_eq!(
            (evicted, s.tcp.counts().limited - before.limited),
            if port < 5099 { (0, 1) } else { (1, 0) }
        );
        assert!(s.token(&key4(port)).is_some() == (port >= 5099), "{port}");
        assert_eq!(s.tcp.half_open(), 1024);
    }
    assert!(s.token(&key4(0)).is_none() && s.token(&key4(900)).is_none() && s.token(&key4(901)).is_some());
    assert!(Scene::end(20).borrow().aborted && s.collect().is_empty());
    // Somebody else's call is answered in the midst of it, and all that were open are.
    let new = key4(7000);
    s.cx.now += TURN;
    s.send(&[syn(new)]);
    let token = s.token(&new).unwrap();
    s.ready(token, false, true);
    assert_eq!(s.collect()[0].seg.flags, flag::SYN | flag::ACK);
    for t in &mut open {
        let seg = t.say(flag::ACK, 2);
        s.send(&[(t.key, seg, b"me")]);
        assert_eq!(Scene::end(t.end).borrow().got, b"me");
    }
}

/// As when the machine was busy for longer than an answer takes.
#[test]
fn calls_that_were_answered_unseen_are_not_the_ones_that_go() {
    let mut p = plan();
    p.limits.tcp = 4096;
    let mut s = Scene::new(&p);
    for port in 0..1024 {
        s.send(&[syn(key4(port))]);
    }
    (0..3).for_each(|n| Scene::end(n).borrow_mut().decided = true);
    Scene::end(1).borrow_mut().error = Some(libc::ECONNREFUSED);
    s.cx.now += Duration::from_millis(200);
    s.send(&[syn(key4(5000))]);
    // One has failed, which makes room.
    let told: Vec<_> = s.collect().iter().map(|f| f.seg.flags).collect();
    assert_eq!(told, [flag::SYN | flag::ACK, flag::RST | flag::ACK]);
    assert!(s.token(&key4(5000)).is_some() && s.token(&key4(0)).is_some());
    s.send(&[syn(key4(5001))]);
    assert_eq!(s.collect()[0].seg.flags, flag::SYN | flag::ACK);
    assert!(s.token(&key4(5001)).is_some() && s.token(&key4(3)).is_none());
    assert!((0..3).all(|n| !Scene::end(n).borrow().aborted) && Scene::end(3).borrow().aborted);
    // Where all that are asked have come to be, the next has to ask again.
    (0..1024).for_each(|n| Scene::end(n).borrow_mut().decided = true);
    s.send(&[syn(key4(5002))]);
    assert_eq!((s.collect().len(), s.token(&key4(5002)).is_some()), (16, false));
}

#[test]
fn a_full_table_takes_no_other_until_one_was_silent_for_long() {
    let mut p = plan();
    p.limits.tcp = 4;
    let mut s = Scene::new(&p);
    let open: Vec<_> = (0..4).map(|i| s.open(key4(i))).collect();
    s.send(&[syn(key4(9))]);
    assert!(s.collect().is_empty() && s.token(&key4(9)).is_none());
    s.pass(Duration::from_secs(700));
    s.send(&[syn(key4(9))]);
    assert!(s.token(&key4(9)).is_some());
    let told = s.collect();
    assert_eq!((told.len(), told[0].seg.flags), (1, flag::RST | flag::ACK));
    let gone = open.iter().find(|t| t.key == told[0].key).unwrap();
    assert!(Scene::end(gone.end).borrow().aborted);
    // The others are silent as well: they go one by one. A call that is under way goes only when it is late.
    for port in 10..13 {
        s.send(&[syn(key4(port))]);
        assert!(s.token(&key4(port)).is_some());
    }
    s.send(&[syn(key4(13))]);
    assert!(s.token(&key4(13)).is_none());
    s.cx.now += Duration::from_secs(3);
    s.send(&[syn(key4(13))]);
    assert!(s.token(&key4(13)).is_some() && s.token(&key4(9)).is_none());
}

#[test]
fn a_flood_pushes_out_no_more_than_a_few_that_were_silent() {
    let mut p = plan();
    p.limits.tcp = 400;
    let mut s = Scene::new(&p);
    for i in 0..400 {
        s.collect_and_open(key4(i));
    }
    s.pass(Duration::from_secs(700));
    for port in 1000..1300 {
        s.send(&[syn(key4(port))]);
    }
    assert_eq!((s.tcp.half_open(), s.tcp.counts().evicted, s.tcp.connections()), (64, 64, 400));
    // Once those are late, they go for others of their kind.
    s.cx.now += Duration::from_secs(4);
    for port in 2000..2300 {
        s.send(&[syn(key4(port))]);
    }
    assert_eq!((s.tcp.half_open(), s.tcp.counts().evicted, s.tcp.connections()), (64, 128, 400));
}

/// Small frames go first: where a guest sees to it that there are always some, nobody's turn to give comes.
#[test]
fn who_is_gone_does_not_wait_for_a_turn_that_never_comes() {
    let mut s = Scene::new(&plan());
    let stays = s.open(key4(60_000));
    for port in 0..5000 {
        let key = key4(port);
        s.send(&[syn(key)]);
        let token = s.token(&key).unwrap();
        s.ready(token, false, true);
        let answer = s.small().last().unwrap().seg;
        let ack = Segment {
            seq: answer.ack,
            ack: answer.seq.plus(1),
            flags: flag::ACK,
            window: 100,
            ..Segment::default()
        };
        s.send(&[(key, ack, &[])]);
        assert!(s.tcp.giving.contains(&token), "{port}");
        s.send(&[(key, Segment { flags: flag::RST, ..ack }, &[])]);
        assert!(s.token(&key).is_none());
        assert!(s.tcp.giving.len() < 300, "{}", s.tcp.giving.len());
    }
    // Who is there gives when his turn comes.
    Scene::end(stays.end).borrow_mut().queue.extend(b"after all");
    let token = s.token(&stays.key).unwrap();
    s.ready(token, true, false);
    assert_eq!(s.collect()[0].bytes, b"after all");
}

/// A forward with this number, and where it listens.
fn forward(id: u32) -> ((Forward, Option<OwnedFd>), SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let at = listener.local_addr().unwrap();
    ((Forward { id, way: Way::Tcp, guest: key4(22).guest, range: None }, Some(listener.into())), at)
}

/// Connections that somebody makes to a forward, accepted as far as they are.
fn crowd(s: &mut Scene, id: u32, to: SocketAddr, n: usize) -> Vec<TcpStream> {
    let come: Vec<_> = (0..n).map(|_| TcpStream::connect(to).unwrap()).collect();
    for _ in 0..3 {
        s.ready(forward::token(id), true, false);
    }
    come
}

#[test]
fn a_flood_that_comes_by_one_forward_leaves_others_their_part() {
    let mut p = plan();
    p.limits.tcp = 80;
    let mut s = Scene::new(&p);
    let ((one, at), (another, there)) = (forward(7), forward(8));
    s.tcp.set_forwards(vec![one, another], &mut s.cx);
    // The guest answers nobody: as many as may be half open of one forward, which is less than of all.
    let _flood = crowd(&mut s, 7, at, 70);
    assert_eq!((s.tcp.connections(), s.tcp.half_open()), (48, 48));
    let _few = crowd(&mut s, 8, there, 5);
    assert_eq!((s.tcp.connections(), s.tcp.half_open()), (53, 53));
    // What is late of the one goes for its own. Of the other, nothing does for the one.
    s.cx.now += Duration::from_secs(4);
    s.ready(forward::token(7), true, false);
    assert_eq!((s.tcp.connections(), s.tcp.counts().evicted), (53, 22));
    s.cx.now += Duration::from_secs(4);
    let _more = crowd(&mut s, 7, at, 40);
    assert_eq!((s.tcp.connections(), s.tcp.counts().evicted), (53, 62));
}

#[test]
fn two_floods_leave_who_comes_by_a_third_forward_his_part() {
    let mut p = plan();
    p.limits.tcp = 80;
    let mut s = Scene::new(&p);
    let [(one, at), (two, also), (three, there)] = [7, 8, 9].map(forward);
    s.tcp.set_forwards(vec![one, two, three], &mut s.cx);
    let _floods = [crowd(&mut s, 7, at, 70), crowd(&mut s, 8, also, 70)];
    assert_eq!((s.tcp.connections(), s.tcp.half_open()), (54, 54));
    let _few = crowd(&mut s, 9, there, 10);
    assert_eq!(s.tcp.connections(), 60, "and the guest has its own");
}

#[test]
fn the_guest_and_those_who_come_by_a_forward_each_keep_their_part() {
    let mut p = plan();
    p.limits.tcp = 80;
    let mut s = Scene::new(&p);
    let (rule, at) = forward(7);
    s.tcp.set_forwards(vec![rule], &mut s.cx);
    // Sixty come whom the guest never answers: as many as may. The others wait in the kernel's queue.
    let _come = crowd(&mut s, 7, at, 70);
    assert_eq!((s.tcp.connections(), s.tcp.half_open()), (60, 60));
    let own: Vec<_> = (0..20).map(|i| s.collect_and_open(key4(1000 + i))).collect();
    assert_eq!(s.tcp.connections(), 80);
    s.send(&[syn(key4(9))]);
    assert!(s.token(&key4(9)).is_none(), "that is all");
    // Strangers that are late make room for strangers only.
    s.cx.now += Duration::from_secs(4);
    s.ready(forward::token(7), true, false);
    assert_eq!((s.tcp.connections(), s.tcp.counts().evicted), (80, 10));
    assert!(own.iter().all(|t| s.token(&t.key).is_some()));
    // The other way round.
    let mut s = Scene::new(&p);
    let (rule, at) = forward(7);
    s.tcp.set_forwards(vec![rule], &mut s.cx);
    for port in 0..80 {
        s.cx.now += TURN;
        s.send(&[syn(key4(port))]);
        if let Some(token) = s.token(&key4(port)) {
            s.ready(token, false, true);
        }
    }
    assert_eq!(s.tcp.connections(), 60);
    let _come = crowd(&mut s, 7, at, 30);
    assert_eq!((s.tcp.connections(), s.tcp.half_open()), (80, 80));
}

/// What the kernel keeps for each is bounded where that was asked for, whoever made the connection.
#[test]
fn the_kernels_buffers_are_bounded_if_asked_for() {
    for buffer in [None, Some(1 << 16)] {
        let mut p = plan();
        p.limits.buffer = buffer;
        let mut s = Scene::new(&p);
        let ends = [s.open(key4(5)).end, s.visit(6).end];
        assert!(ends.iter().all(|i| Scene::end(*i).borrow().bound == buffer));
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut ours = Stream::made(TcpStream::connect(listener.local_addr().unwrap()).unwrap().into(), true);
    ours.bound(1 << 16);
    let has = |o| sock::get(ours.fd().unwrap(), o).unwrap();
    assert_eq!(
        [sock::Ask::SendBuffer, sock::Ask::ReceiveBuffer].map(has),
        [1 << 17; 2],
        "the kernel doubles it"
    );
}

#[test]
fn a_connection_costs_little() {
    let size = size_of::<Flow<Stream>>();
    assert!(size <= 384, "{size} bytes for each of 16,384");
}

#[test]
fn what_all_hold_is_bounded_and_those_that_hold_nothing_go_on() {
    let mut p = plan();
    p.limits = Limits { tcp: 64, held: 512 << 10, held_each: 256 << 10, ..p.limits };
    let mut s = Scene::new(&p);
    let mut talks: Vec<_> = (0..8).map(|i| s.open(key4(i))).collect();
    let data = vec![5; 50_000];
    let mut taken = vec![0_u32; talks.len()];
    for t in &talks[..7] {
        Scene::end(t.end).borrow_mut().room = 0;
    }
    for _ in 0..20 {
        for (t, taken) in talks.iter_mut().zip(&mut taken) {
            let seg =
                Segment { seq: t.nxt, ack: t.ack, flags: flag::ACK, window: t.window, ..Segment::default() };
            s.send(&[(t.key, seg, &data)]);
            let ack = s.collect().last().unwrap().seg.ack;
            *taken += ack.since(t.nxt);
            t.nxt = ack;
        }
    }
    let held: u32 = taken[..7].iter().sum();
    assert!(held <= 512 << 10 && held > 128 << 10, "{held}");
    assert!(taken[7] >= 20 * (8 << 10), "its socket takes all that it is told: {}", taken[7]);
    // Everything that was acknowledged arrives.
    for _ in 0..3 {
        for t in &talks[..7] {
            Scene::end(t.end).borrow_mut().room = 1 << 20;
            let token = s.token(&t.key).unwrap();
            s.ready(token, false, true);
        }
    }
    for (t, taken) in talks.iter().zip(&taken) {
        assert_eq!(Scene::end(t.end).borrow().got.len(), *taken as usize);
    }
}

#[test]
fn strangers_are_told() {
    let mut s = Scene::new(&plan());
    let ack = Segment { seq: Seq(5), ack: Seq(99), flags: flag::ACK, ..Segment::default() };
    s.send(&[(key4(1), ack, b"abc")]);
    let got = s.collect();
    assert_eq!((got[0].seg.flags, got[0].seg.seq), (flag::RST, Seq(99)));
    let fin = Segment { seq: Seq(5), flags: flag::FIN, ..Segment::default() };
    s.send(&[(key4(1), fin, b"abc")]);
    let got = s.collect();
    assert_eq!((got[0].seg.flags, got[0].seg.ack), (flag::RST | flag::ACK, Seq(9)));
    let rst = Segment { seq: Seq(5), flags: flag::RST | flag::ACK, ..Segment::default() };
    s.send(&[(key4(1), rst, &[])]);
    assert!(s.collect().is_empty(), "a reset is not answered");
}
