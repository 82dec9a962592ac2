//! Acknowledgements that wait for company, and those that do not.

use super::scene::{Came, Scene, Talk, key4, key6, plan};
use crate::port::user::tcp::late::WAIT;
use crate::port::user::tcp::segment::{Segment, flag};
use crate::port::user::tcp::seq::Seq;

/// What a turn gives.
fn turn(s: &mut Scene) -> Vec<Came> {
    let mut all = Vec::new();
    s.collect_once(&mut all);
    all
}

/// The guest says that it is the end, in a segment of `len` bytes, and hears nothing of it yet.
fn end(s: &mut Scene, t: &mut Talk, len: u32) {
    let seg = t.say(flag::ACK | flag::FIN, len);
    s.send(&[(t.key, seg, &vec![7; len as usize])]);
    assert!(turn(s).is_empty());
    assert_eq!(s.tcp.owes_by(), Some(s.cx.now + WAIT));
    assert!(Scene::end(t.end).borrow().got_end, "but it went on at once");
}

fn wakes(s: &mut Scene, t: &Talk) {
    let token = s.token(&t.key).unwrap();
    s.ready(token, true, false);
}

#[test]
fn an_end_is_acknowledged_with_the_other() {
    for (peeks, len) in [(true, 0), (true, 5000), (false, 0), (false, 700)] {
        let mut s = Scene::keeping(&plan(), peeks);
        let mut t = s.open(key4(1));
        end(&mut s, &mut t, len);
        Scene::end(t.end).borrow_mut().finished = true;
        wakes(&mut s, &t);
        let got = turn(&mut s);
        assert_eq!((got.len(), got[0].seg.ack, got[0].seg.flags), (1, t.nxt, flag::FIN | flag::ACK));
        t.ack = got[0].seg.seq.plus(1);
        let last = t.say(flag::ACK, 0);
        s.send(&[(t.key, last, &[])]);
        s.pass(WAIT);
        assert!(turn(&mut s).is_empty() && s.tcp.owes_by().is_none() && s.tcp.connections() == 0);
    }
}

#[test]
fn or_with_bytes_and_then_it_was_said() {
    let mut s = Scene::new(&plan());
    let mut t = s.open(key6(1));
    end(&mut s, &mut t, 10);
    Scene::end(t.end).borrow_mut().queue.extend(b"so it is");
    wakes(&mut s, &t);
    let got = turn(&mut s);
    assert_eq!((got.len(), got[0].seg.ack, &got[0].bytes[..]), (1, t.nxt, &b"so it is"[..]));
    s.pass(2 * WAIT);
    assert!(turn(&mut s).is_empty() && s.tcp.owes_by().is_none());
}

#[test]
fn with_what_goes_to_another_or_else_after_a_moment() {
    let mut s = Scene::new(&plan());
    let (mut one, other) = (s.open(key4(1)), s.open(key4(2)));
    end(&mut s, &mut one, 0);
    Scene::end(other.end).borrow_mut().queue.extend(b"something else");
    wakes(&mut s, &other);
    let got = turn(&mut s);
    assert_eq!(got.iter().map(|f| f.key).collect::<Vec<_>>(), [other.key, one.key]);
    assert_eq!((got[1].seg.ack, got[1].seg.flags), (one.nxt, flag::ACK));

    let mut t = s.open(key4(3));
    end(&mut s, &mut t, 0);
    s.pass(WAIT / 2);
    assert!(turn(&mut s).is_empty());
    s.pass(WAIT / 2);
    let got = turn(&mut s);
    assert_eq!((got.len(), got[0].seg.ack, got[0].seg.flags), (1, t.nxt, flag::ACK));
    assert!(s.tcp.owes_by().is_none() && turn(&mut s).is_empty());
}

#[test]
fn bytes_a_repeated_end_and_the_last_word_do_not_wait() {
    let mut s = Scene::new(&plan());
    let mut t = s.open(key4(1));
    let now = |s: &mut Scene, t: &Talk| {
        let got = turn(s);
        assert_eq!((got.len(), got[0].seg.ack, got[0].seg.flags), (1, t.nxt, flag::ACK));
        assert!(turn(s).is_empty());
    };
    let word = t.say(flag::ACK | flag::PSH, 1);
    s.send(&[(t.key, word, &[1])]);
    now(&mut s, &t);
    let fin = t.say(flag::ACK | flag::FIN, 0);
    s.send(&[(t.key, fin, &[])]);
    assert!(turn(&mut s).is_empty());
    s.send(&[(t.key, fin, &[])]);
    now(&mut s, &t);

    let mut t = s.open(key4(2));
    Scene::end(t.end).borrow_mut().finished = true;
    wakes(&mut s, &t);
    t.ack = turn(&mut s)[0].seg.seq.plus(1);
    let fin = t.say(flag::FIN | flag::ACK, 0);
    s.send(&[(t.key, fin, &[])]);
    now(&mut s, &t);
    assert_eq!(s.tcp.connections(), 1, "the first");
}

#[test]
fn one_that_is_gone_is_owed_nothing() {
    let mut s = Scene::new(&plan());
    let mut t = s.open(key4(1));
    end(&mut s, &mut t, 0);
    let broken = t.say(flag::RST, 0);
    s.send(&[(t.key, broken, &[])]);
    s.pass(WAIT);
    assert!(turn(&mut s).is_empty() && s.tcp.owes_by().is_none());
}

#[test]
fn whoever_calls_is_answered_before_ends_are_passed_on() {
    let mut s = Scene::new(&plan());
    let (mut one, mut two) = (s.open(key4(1)), s.open(key4(2)));
    let syn = Segment { seq: Seq(77), flags: flag::SYN, window: 65535, ..Segment::default() };
    // With a call, and then not; what there is to be said comes first, and then it is passed on as well.
    let (fin, word) = (one.say(flag::ACK | flag::FIN, 3), two.say(flag::ACK, 1));
    s.send(&[(one.key, fin, b"end"), (key4(3), syn, &[]), (two.key, word, b"!")]);
    let end = Scene::end(one.end);
    assert_eq!((&end.borrow().got[..], end.borrow().got_end), (&b"end"[..], false));
    assert!(s.tcp.has_ends());
    let called = s.token(&key4(3)).unwrap();
    s.ready(called, false, true);
    let got = turn(&mut s);
    assert_eq!(got.iter().filter(|f| f.seg.flags == flag::SYN | flag::ACK).count(), 1);
    assert!(!end.borrow().got_end && s.tcp.has_ends());
    assert!(turn(&mut s).is_empty() && end.borrow().got_end && !s.tcp.has_ends());
    // A guest that takes nothing has its ends passed on when it sends again, whatever that be.
    let fin = two.say(flag::ACK | flag::FIN, 0);
    s.send(&[(key4(4), syn, &[]), (two.key, fin, &[])]);
    assert!(!Scene::end(two.end).borrow().got_end);
    s.send(&[]);
    assert!(Scene::end(two.end).borrow().got_end && !s.tcp.has_ends());
    let mut three = s.collect_and_open(key4(5));
    end_at_once(&mut s, &mut three);
}

fn end_at_once(s: &mut Scene, t: &mut Talk) {
    s.send(&[]);
    let fin = t.say(flag::ACK | flag::FIN, 0);
    s.send(&[(t.key, fin, &[])]);
    assert!(Scene::end(t.end).borrow().got_end && !s.tcp.has_ends());
}
