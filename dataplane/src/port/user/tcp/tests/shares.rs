//! Shares: whatever order people come in, each finds his part.

use super::super::super::poll::Who;
use super::*;

fn token(index: u32) -> Token {
    Token { who: Who::Tcp, kind: 0, index, generation: 0 }
}

/// Of a table of `most`, with these forwards.
fn listened(most: u32, forwards: &[u32]) -> Shares {
    let mut s = Shares::new(most);
    s.listen(forwards.iter().copied());
    s
}

/// Connections of theirs that both ends have, until there is no place for one more; how many.
fn fill(s: &mut Shares, who: Origin) -> u32 {
    let before = s.own(who).flows;
    while s.has_place(who) {
        open(s, who);
    }
    s.own(who).flows - before
}

fn open(s: &mut Shares, who: Origin) {
    s.called(who, (Instant::now(), token(0)), |_| None);
    s.opened(who, State::Calling);
}

/// The same numbers in each run.
struct Random(u32);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        (self.0 >> 4) % n
    }
}

#[test]
fn neither_takes_the_others_part() {
    let now = Instant::now();
    for (one, other) in [(Origin::Guest, Origin::Host(1)), (Origin::Host(1), Origin::Guest)] {
        let mut s = listened(400, &[1]);
        assert_eq!((fill(&mut s, one), s.half()), (300, 0));
        s.listen([].into_iter());
        assert!(s.has_place(one), "all of it, where nobody else can come");
        s.listen([1].into_iter());
        let mut n = 300;
        while s.has_place(other) {
            s.called(other, (now, token(n)), |_| Some(State::Calling));
            n += 1;
        }
        assert_eq!((n, s.half()), (400, 100));
        assert!(s.is_crowded(other) && !s.is_crowded(one));
        s.over(one, State::Open);
        assert!(s.has_place(one) && s.has_place(other));
        s.over(other, State::Calling);
        assert!(s.half() == 99 && !s.is_crowded(other));
    }
}

/// Whatever the guest and those who come by all forwards but one do, and in whatever order, those who come by that one find
/// their part, the guest its own, and in the end nothing is left over.
#[test]
fn each_of_many_forwards_finds_its_part() {
    let mut random = Random(0x9e37_79b9);
    for (most, forwards, part) in [
        (1600, 2, 100),
        (1600, 3, 66),
        (1600, 9, 22),
        (1600, 100, 2),
        (16_384, 3, 682),
        (16_384, 128, 16),
        // Told apart in groups.
        (16_384, 9000, 8),
        (1024, 9000, 1),
        (80, 60, 1),
    ] {
        let all: Vec<u32> = (7..7 + forwards).collect();
        let rounds = if most > 2000 { 3 } else { 20 };
        for _ in 0..rounds {
            let mut s = listened(most, &all);
            let quiet = Origin::Host(all[random.below(forwards) as usize]);
            let apart = |s: &Shares, who: Origin| match (who, quiet) {
                (Origin::Host(a), Origin::Host(b)) => s.group(a) != s.group(b),
                _ => true,
            };
            for _ in 0..60 {
                let guest = random.below(3) == 0;
                let who =
                    if guest { Origin::Guest } else { Origin::Host(all[random.below(forwards) as usize]) };
                if !apart(&s, who) {
                    continue;
                }
                let (n, goes) = (random.below(most), random.below(4) == 0);
                for _ in 0..n {
                    match goes {
                        true if s.own(who).flows > 0 => s.over(who, State::Open),
                        false if s.has_place(who) => open(&mut s, who),
                        _ => break,
                    }
                }
            }
            let found = fill(&mut s, quiet);
            assert!(found >= part, "{found} of {most} by one of {forwards}");
            for id in &all {
                fill(&mut s, Origin::Host(*id));
            }
            let least = s.groups.iter().filter(|g| g.listens).map(|g| g.count.flows).min();
            assert!(least >= Some(part), "{least:?} of {most} by {forwards}");
            fill(&mut s, Origin::Guest);
            assert!(s.own(Origin::Guest).flows >= most / OWN, "{most} by {forwards}");
            assert_eq!(s.guest.count.flows + s.host.count.flows, most, "none is left over");
        }
    }
}

/// Two are flooded by calls that the guest never answers, one after the other; those who come by the third are heard.
#[test]
fn two_floods_of_calls_leave_a_third_forward_its_part() {
    let (one, two, three) = (Origin::Host(1), Origin::Host(2), Origin::Host(3));
    let mut s = listened(1600, &[1, 2, 3]);
    let now = Instant::now();
    let mut n = 0;
    let mut calls = |s: &mut Shares, who: Origin| {
        let before = n;
        while !s.is_crowded(who) {
            s.called(who, (now, token(n)), |_| Some(State::Asking));
            n += 1;
        }
        n - before
    };
    // Of 400, of which half is divided.
    assert_eq!([one, two, three].map(|who| calls(&mut s, who)), [268, 66, 66]);
    let whose = |t: Token| {
        Some((State::Asking, [one, two, three][usize::from(t.index >= 268) + usize::from(t.index >= 334)]))
    };
    // Late ones of theirs go for their own.
    assert_eq!(s.victim(three, now + LATE, whose), Some(token(334)));
    assert_eq!(s.victim(two, now + LATE, whose), Some(token(268)));
    assert_eq!(s.victim(one, now + LATE, whose), Some(token(0)));
    (0..268).for_each(|_| s.over(one, State::Asking));
    assert!(s.half() == 132 && !s.is_crowded(two) && !s.is_crowded(three));
}

/// What came by a forward that is no longer there is counted, and kept free for nobody.
#[test]
fn forwards_come_and_go() {
    let (one, two, three) = (Origin::Host(1), Origin::Host(2), Origin::Host(3));
    let mut s = listened(1600, &[1, 2]);
    assert_eq!(fill(&mut s, one), 1100);
    s.listen([2, 3].into_iter());
    assert_eq!((s.own(one).flows, s.host.count.flows), (1100, 1100));
    assert_eq!([two, three].map(|who| fill(&mut s, who)), [100, 0], "until somebody leaves");
    s.over(one, State::Open);
    assert!(s.has_place(three) && !s.has_place(two), "who has less than his part comes first");
    (1..1100).for_each(|_| s.over(one, State::Open));
    assert_eq!(fill(&mut s, two), 1000, "all but the part of the third");
    assert_eq!(fill(&mut s, three), 100);
}

#[test]
fn the_oldest_that_are_under_way_go_and_the_rows_are_bounded() {
    assert_eq!([16_384, 2000, 200, 4, 1].map(bounds), [(4096, 1024), (500, 500), (64, 64), (4, 4), (1, 1)]);
    let start = Instant::now();
    let mut s = listened(16_384, &[1]);
    // One in a thousand stays, the others open at once; of these, those with even numbers were answered.
    let state = |t: Token| match (t.index % 1000, t.index % 2000) {
        (7, 7) => Some(State::Calling),
        (7, _) => Some(State::Answered),
        _ => Some(State::Open),
    };
    let ms = |n: u32| start + Duration::from_millis(n.into());
    for i in 0..100_000 {
        s.called(Origin::Guest, (ms(i), token(i)), state);
        match state(token(i)) {
            Some(State::Answered) => s.answered((ms(i), token(i)), state),
            Some(State::Open) => s.opened(Origin::Guest, State::Calling),
            _ => {}
        }
    }
    assert_eq!((s.half(), s.guest.count.calling), (100, 50));
    assert!(s.guest.calls.len() <= 2048 && s.guest.answered.len() <= 8192);
    let whose = |t: Token| state(t).map(|s| (s, Origin::Guest));
    let victim = |s: &mut Shares, at| s.victim(Origin::Guest, ms(at), whose);
    assert_eq!(victim(&mut s, 3000), None, "nobody is late");
    assert_eq!(victim(&mut s, 3007), Some(token(7)));
    s.guest.count.half = 4096;
    assert_eq!((victim(&mut s, 106), victim(&mut s, 107)), (None, Some(token(7))));
    let done = |t: Token| whose(t).filter(|(s, _)| *s == State::Answered);
    assert_eq!(s.victim(Origin::Guest, ms(4006), done), None);
    assert_eq!(s.victim(Origin::Guest, ms(4007), done), Some(token(1007)));
    assert_eq!(s.victim(Origin::Host(1), ms(90_000), whose), None);
}
