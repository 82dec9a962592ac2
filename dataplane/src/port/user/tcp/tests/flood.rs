//! What a guest may make us hold, and what it may not.

use std::time::Duration;

use super::scene::{Scene, key4, plan};
use crate::port::user::plan::Limits;
use crate::port::user::tcp::segment::{Key, Segment, flag};
use crate::port::user::tcp::seq::Seq;
use crate::stats::Reason;

fn syn(key: Key) -> (Key, Segment, &'static [u8]) {
    (key, Segment { seq: Seq(9), flags: flag::SYN, window: 100, ..Segment::default() }, &[])
}

#[test]
fn a_flood_of_calls_is_bounded_and_old_ones_go() {
    let mut p = plan();
    p.limits.tcp = 4096;
    let mut s = Scene::new(&p);
    for port in 0..5000 {
        s.send(&[syn(key4(port))]);
    }
    assert_eq!((s.tcp.connections(), Scene::ends()), (256, 256));
    assert_eq!(s.cx.stats.drops[Reason::Full as usize], 5000 - 256);
    s.pass(Duration::from_secs(4));
    s.send(&[syn(key4(6000))]);
    assert_eq!((s.tcp.connections(), s.tcp.counts().evicted), (256, 1));
    assert!(s.token(&key4(6000)).is_some());
    // Those that are open do not suffer.
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
    assert!(held <= 512 << 10 && held > 256 << 10, "{held}");
    assert_eq!(taken[7], 20 * 50_000, "its socket takes all");
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
