//! A store that is too small for all who want it: who reads nothing costs the others no byte, and who waits for room goes on
//! when there is some.

use super::scene::{Came, Scene, Talk, key4, plan};
use crate::port::user::plan::{Limits, Plan};
use crate::port::user::tcp::flow::Turn;
use crate::port::user::tcp::hold::Purse;
use crate::port::user::tcp::segment::flag;
use crate::stats::Reason;

fn crowded(tcp: u32) -> Plan {
    Plan { limits: Limits { tcp, ..Limits::default() }, ..plan() }
}

/// What the guest was told last: the end of its window.
struct Sender {
    talk: Talk,
    room: u32,
    /// Frames for others.
    aside: Vec<Came>,
}

impl Sender {
    fn new(talk: Talk) -> Self {
        Self { talk, room: talk.told, aside: Vec::new() }
    }

    /// Sends all that it may, `most` bytes at most; says how many of them were acknowledged.
    fn push(&mut self, s: &mut Scene, most: u32) -> u32 {
        let (first, mut left) = (self.talk.nxt, self.room.min(most));
        while left > 0 {
            let n = left.min(30_000);
            let seg = self.talk.say(flag::ACK, n);
            s.send(&[(self.talk.key, seg, &vec![7; n as usize])]);
            left -= n;
        }
        self.hear(s.collect());
        self.talk.nxt.since(first)
    }

    fn hear(&mut self, came: Vec<Came>) {
        let (mine, others): (Vec<_>, Vec<_>) = came.into_iter().partition(|f| f.key == self.talk.key);
        self.aside.extend(others);
        if let Some(f) = mine.last() {
            self.talk.nxt = f.seg.ack;
            self.room = u32::from(f.seg.window) << 7;
        }
    }

    /// Its socket takes so much more, and says so.
    fn takes(&mut self, s: &mut Scene, n: usize) {
        Scene::end(self.talk.end).borrow_mut().room += n;
        if let Some(token) = s.token(&self.talk.key) {
            s.ready(token, false, true);
        }
        self.hear(s.collect());
    }
}

/// Forty visitors of a guest's server ask for much and read nothing, all of a sudden. Whoever else is served, or whom the guest
/// serves, and whose socket is full now and then, loses nothing and stands still only as long as that.
#[test]
fn visitors_who_read_nothing_cost_the_others_no_byte() {
    let mut s = Scene::new(&crowded(256));
    s.tcp.tools.store.share(true);
    let mut crowd: Vec<Sender> = (0..40).map(|i| Sender::new(s.visit(1000 + i))).collect();
    let mut others = [Sender::new(s.visit(999)), Sender::new(s.open(key4(5)))];
    for _ in 0..40 {
        for v in &mut crowd {
            Scene::end(v.talk.end).borrow_mut().room = 1 << 30;
            v.push(&mut s, u32::MAX);
        }
    }
    for _ in 0..3 {
        for v in &mut crowd {
            Scene::end(v.talk.end).borrow_mut().room = 0;
            v.push(&mut s, u32::MAX);
        }
    }
    assert!(crowd.iter().all(|v| v.room < 128), "their windows are shut");
    let lost = s.cx.stats.drops[Reason::Full as usize];
    for other in &mut others {
        let end = Scene::end(other.talk.end);
        end.borrow_mut().room = 0;
        let mut sent = 0;
        for round in 0..200 {
            let may = other.room;
            let taken = other.push(&mut s, u32::MAX);
            assert_eq!(taken, may, "round {round}: promised and not there");
            sent += taken as usize;
            other.takes(&mut s, 1 << 20);
            assert_eq!(end.borrow().got.len(), sent);
            assert!(other.room >= 4096, "round {round}: it stands still");
            end.borrow_mut().room = usize::from(round % 3 == 0) * 3000;
        }
    }
    assert_eq!(s.cx.stats.drops[Reason::Full as usize], lost);
    // The guest's own have a half that no visitor was promised.
    assert!(others[1].room >= 60 << 10);
}

/// Sockets that cannot peek, more than the store can keep something for: all is given as the guest acknowledges it, and no
/// time passes. (What they keep leaves room for what goes up.)
#[test]
fn many_that_wait_for_room_take_turns() {
    for (flows, each) in [(20_u16, 400_000_usize), (600, 40_000)] {
        let mut s = Scene::keeping(&crowded(1000), false);
        let mut talks: Vec<Talk> = (0..flows).map(|i| s.open(key4(1000 + i))).collect();
        let mut up = Sender::new(s.open(key4(5)));
        for t in &talks {
            Scene::end(t.end).borrow_mut().queue.extend(vec![9; each]);
            let token = s.token(&t.key).unwrap();
            s.ready(token, true, false);
        }
        let mut got = vec![0; usize::from(flows)];
        for _ in 0..20_000 {
            let mut came = std::mem::take(&mut up.aside);
            came.extend(s.collect());
            came.retain(|f| !f.bytes.is_empty());
            if came.is_empty() {
                break;
            }
            let mut acks = Vec::new();
            for f in came {
                let i = usize::from(f.key.guest.port() - 1000);
                assert_eq!(f.seg.seq, talks[i].ack, "in order");
                got[i] += f.bytes.len();
                talks[i].ack = talks[i].ack.plus(f.bytes.len() as u32);
                acks.push((f.key, talks[i].say(flag::ACK, 0), &[][..]));
            }
            // As late as one can.
            let last = acks.split_off(acks.len() / 2);
            s.send(&last);
            s.send(&acks);
            Scene::end(up.talk.end).borrow_mut().room = 0;
            let may = up.room;
            assert_eq!(up.push(&mut s, 10_000), may.min(10_000));
            up.takes(&mut s, 1 << 20);
        }
        assert!(got.iter().all(|n| *n == each), "{flows}: {got:?}");
        assert_eq!(s.cx.stats.drops, [0; Reason::COUNT]);
    }
}

/// Those that wait for room are not looked at while there is none for them, though there is some that only visitors may have;
/// of those that are gone no more are remembered than there are others; and the rest go on when there is room.
#[test]
fn who_waits_is_left_alone_until_there_is_room_and_forgotten_when_gone() {
    let p = crowded(300);
    let mut s = Scene::keeping(&Plan { limits: Limits { held: 1 << 20, ..p.limits }, ..p }, false);
    s.tcp.tools.store.share(true);
    let talks: Vec<Talk> = (0..200).map(|i| s.open(key4(1000 + i))).collect();
    for t in &talks {
        Scene::end(t.end).borrow_mut().queue.extend(vec![9; 40_000]);
        let token = s.token(&t.key).unwrap();
        s.ready(token, true, false);
    }
    s.collect();
    let left = [true, false].map(|guest| s.tcp.tools.store.left(Purse { guest, up: false }));
    assert!(left[0] == 0 && left[1] > 0, "{left:?}");
    let waited = s.tcp.tools.waiting.len(true);
    assert!(waited > 150 && s.tcp.tools.waiting.len(false) == 0, "{waited}");
    // Those that hold nothing, but for two, break off.
    let (mut empty, full): (Vec<_>, Vec<_>) = talks.into_iter().partition(|t| {
        let token = s.token(&t.key).unwrap();
        let down = &s.tcp.table.get(token).unwrap().down;
        down.kept.is_empty() && down.turn == Turn::Waits
    });
    let rest = empty.split_off(empty.len() - 2);
    for (i, mut t) in empty.into_iter().enumerate() {
        let rst = t.say(flag::RST, 0);
        s.send(&[(t.key, rst, &[])]);
        let waiting = s.tcp.tools.waiting.len(true);
        assert!(waiting <= 2 * s.tcp.connections(), "{waiting} wait");
        assert!(i > 50 || waiting == waited, "nobody was looked at");
    }
    assert!(s.tcp.connections() < 30 && s.collect().is_empty());
    for mut t in full {
        let rst = t.say(flag::RST, 0);
        s.send(&[(t.key, rst, &[])]);
    }
    let came = s.collect();
    assert!(rest.iter().all(|t| came.iter().any(|f| f.key == t.key && !f.bytes.is_empty())));
    assert_eq!((s.tcp.connections(), s.tcp.tools.waiting.len(true)), (2, 0));
}

/// Connections that say little are promised little: who sends much has a wide window beside hundreds of them.
#[test]
fn who_sends_much_has_a_wide_window_beside_many_that_do_not() {
    let mut s = Scene::new(&crowded(1000));
    let take_all = |t: &Talk| Scene::end(t.end).borrow_mut().room = 1 << 30;
    for i in 0..500 {
        let mut idle = Sender::new(s.open(key4(1000 + i)));
        take_all(&idle.talk);
        assert_eq!(idle.push(&mut s, 500), 500);
    }
    let mut busy = Sender::new(s.open(key4(5)));
    take_all(&busy.talk);
    for _ in 0..20 {
        busy.push(&mut s, u32::MAX);
    }
    assert!(busy.room >= 512 << 10, "{}", busy.room);
}
