//! Who may have how much of the table, and who goes first where it is too small.
//!
//! Two kinds of people make connections: the guest, and whoever comes by a forward. Each keeps a part of the table that the
//! other cannot take, and neither has more than a part of it in connections that are *half open*: those that the other end
//! has not answered yet. So a flood of calls, from either side, costs at most that part, pushes out its own oldest calls,
//! and ends no connection that both ends have, but for silent ones where all is taken, at most [`LEAST`] at a time.
//! Where there are several forwards, those who come by one leave a part of that part to those who come by others. (Who comes
//! from one address has no bounds of his own: he may be a whole network behind one router, or the proxy before them all.)
//!
//! Trust: none in either. Promise: bounded; counts are those of the table.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::super::poll::Token;
use super::flow::State;

/// What of the table the guest, and those who come by forwards, can always have: this part.
const OWN: u32 = 4;
/// What of a part of theirs those who come by one forward leave to those who come by others: this part.
const OTHERS: u32 = 4;
/// What of the table may be half open, of either: this part;
const HALF: u32 = 4;
/// of those, so many may be calls (each is a socket of the kernel's that sends SYNs, or a stranger who waits for the guest);
const CALLS: u32 = 1024;
/// and where the table is small, so many may be in any case. While there are fewer, an open one that was silent for long may go for
/// a new one.
const LEAST: u32 = 64;
/// A guest's call that is younger stays, however many others there are: the kernel may have decided it, and nobody has
/// looked yet.
const YOUNG: Duration = Duration::from_millis(100);
/// Any other half-open connection that is younger does: whoever has to answer is given the time.
const LATE: Duration = Duration::from_secs(3);

/// Whose a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The guest asked for it.
    Guest,
    /// Somebody came by the forward of this number.
    Host(u32),
}

/// Half-open connections that a table of `most` may have of either origin, and those of them that may be calls.
fn bounds(most: u32) -> (u32, u32) {
    let half = (most / HALF).max(LEAST).min(most);
    (half, half.min(CALLS))
}

/// Tokens, in the order in which they came. Those that are what they were no longer stay until they are looked at.
type Row = VecDeque<(Instant, Token)>;

/// How many connections there are: all, half-open ones, and of those, calls.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    flows: u32,
    half: u32,
    calling: u32,
}

impl Count {
    fn called(&mut self) {
        self.flows += 1;
        self.half += 1;
        self.calling += 1;
    }

    fn opened(&mut self, before: State) {
        self.half = self.half.saturating_sub(1);
        self.calling = self.calling.saturating_sub(u32::from(is_call(Some(before))));
    }

    fn over(&mut self, state: State) {
        if state != State::Open {
            self.opened(state);
        }
        self.flows = self.flows.saturating_sub(1);
    }

    /// As many are half open as may be.
    fn is_crowded(&self, (half, calls): (u32, u32)) -> bool {
        self.half >= half || self.calling >= calls
    }
}

/// What one of them has.
#[derive(Debug, Default)]
struct Share {
    count: Count,
    /// Calls: the socket connects, or the guest has not answered.
    calls: Row,
    /// The guest was answered, and has not been heard of since.
    answered: Row,
}

/// All that there is.
#[derive(Debug)]
pub(super) struct Shares {
    most: u32,
    guest: Share,
    host: Share,
    /// What of the host's came by each forward that has any.
    forwards: HashMap<u32, Count>,
}

fn is_call(state: Option<State>) -> bool {
    matches!(state, Some(State::Calling | State::Asking))
}

/// Appends to a row that is kept at less than twice `most`, of which no more are alive.
fn append(row: &mut Row, entry: (Instant, Token), most: u32, alive: impl Fn(Token) -> bool) {
    if row.len() >= usize::try_from(most.saturating_mul(2)).unwrap_or(usize::MAX) {
        row.retain(|(_, t)| alive(*t));
    }
    row.push_back(entry);
}

/// The first of theirs in a row that is alive and there since `before`. `alive` says whose it is, if it is.
fn first(
    row: &mut Row,
    who: Origin,
    before: Option<Instant>,
    alive: impl Fn(Token) -> Option<Origin>,
) -> Option<Token> {
    while row.front().is_some_and(|(_, t)| alive(*t).is_none()) {
        row.pop_front();
    }
    let before = before?;
    let mut old = row.iter().take_while(|(at, _)| *at <= before);
    old.find(|(_, t)| alive(*t) == Some(who)).map(|(_, t)| *t)
}

impl Shares {
    /// Of a table of `most`.
    pub(super) fn new(most: u32) -> Self {
        let (guest, host) = (Share::default(), Share::default());
        Self { most: most.max(1), guest, host, forwards: HashMap::new() }
    }

    fn of(&mut self, who: Origin) -> &mut Share {
        match who {
            Origin::Guest => &mut self.guest,
            Origin::Host(_) => &mut self.host,
        }
    }

    /// What is theirs, and only theirs.
    fn own(&self, who: Origin) -> Count {
        match who {
            Origin::Guest => self.guest.count,
            Origin::Host(id) => self.forwards.get(&id).copied().unwrap_or_default(),
        }
    }

    /// Counts something of theirs.
    fn count(&mut self, who: Origin, change: impl Fn(&mut Count)) {
        change(&mut self.of(who).count);
        if let Origin::Host(id) = who {
            let own = self.forwards.entry(id).or_default();
            change(own);
            if own.flows == 0 {
                self.forwards.remove(&id);
            }
        }
    }

    /// Connections that there may be.
    pub(super) fn most(&self) -> u32 {
        self.most
    }

    /// Connections that are half open, whosever.
    pub(super) fn half(&self) -> u32 {
        self.guest.count.half + self.host.count.half
    }

    /// There is a place for one more of theirs, where there are so many forwards: with one, guest and host may each want
    /// their part; with several, each of them.
    pub(super) fn has_place(&self, who: Origin, forwards: usize) -> bool {
        let (guest, host) = (self.guest.count.flows, self.host.count.flows);
        let kept = if forwards > 0 { self.most / OWN } else { 0 };
        let others = if forwards > 1 { kept / OTHERS } else { 0 };
        let all = guest + host;
        all < self.most
            && match who {
                // More than its own part only where a single forward's have left enough of theirs.
                Origin::Guest => {
                    let spares = host < kept - others || all + others < self.most;
                    guest < self.most - kept && (guest < kept || spares)
                }
                Origin::Host(_) => {
                    let wanted = others.saturating_sub(host - self.own(who).flows);
                    all + wanted < self.most && host + wanted < self.most - kept
                }
            }
    }

    /// They have as many half-open ones as they may.
    pub(super) fn is_crowded(&self, who: Origin, forwards: usize) -> bool {
        let (half, calls) = bounds(self.most);
        let part = |n: u32| if forwards > 1 { n - n / OTHERS } else { n };
        match who {
            Origin::Guest => self.guest.count.is_crowded((half, calls)),
            Origin::Host(_) => {
                self.host.count.is_crowded((half, calls))
                    || self.own(who).is_crowded((part(half), part(calls)))
            }
        }
    }

    /// One more of theirs may push out an open one that was silent for long: so few of those that come are half open that
    /// they will be connections, or leave their place to the next.
    pub(super) fn may_push_out(&self, who: Origin) -> bool {
        self.own(who).half < LEAST
    }

    /// A call of theirs. `state` says how a token's connection stands.
    pub(super) fn called(
        &mut self,
        who: Origin,
        entry: (Instant, Token),
        state: impl Fn(Token) -> Option<State>,
    ) {
        let (_, calls) = bounds(self.most);
        self.count(who, Count::called);
        append(&mut self.of(who).calls, entry, calls, |t| is_call(state(t)));
    }

    /// A guest's call was answered.
    pub(super) fn answered(&mut self, entry: (Instant, Token), state: impl Fn(Token) -> Option<State>) {
        let (half, _) = bounds(self.most);
        let s = &mut self.guest;
        s.count.calling = s.count.calling.saturating_sub(1);
        append(&mut s.answered, entry, half, |t| state(t) == Some(State::Answered));
    }

    /// Both ends of one of theirs have met, which was in this state before.
    pub(super) fn opened(&mut self, who: Origin, before: State) {
        self.count(who, |c| c.opened(before));
    }

    /// One of theirs is over.
    pub(super) fn over(&mut self, who: Origin, state: State) {
        self.count(who, |c| c.over(state));
    }

    /// One of their half-open ones that may go: because they have too many of them, the oldest call that is not young; or
    /// else the oldest that is late. `state` says how a token's connection stands, and whose it is.
    pub(super) fn victim(
        &mut self,
        who: Origin,
        now: Instant,
        state: impl Fn(Token) -> Option<(State, Origin)>,
    ) -> Option<Token> {
        let hurried = who == Origin::Guest && self.is_crowded(who, 0);
        let late = now.checked_sub(LATE);
        let before = if hurried { now.checked_sub(YOUNG) } else { late };
        let s = self.of(who);
        let call = |t| state(t).filter(|(s, _)| is_call(Some(*s))).map(|(_, who)| who);
        let answered = |t| state(t).filter(|(s, _)| *s == State::Answered).map(|(_, who)| who);
        first(&mut s.calls, who, before, call).or_else(|| first(&mut s.answered, who, late, answered))
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::poll::Who;
    use super::*;

    fn token(index: u32) -> Token {
        Token { who: Who::Tcp, kind: 0, index, generation: 0 }
    }

    #[test]
    fn neither_takes_the_others_part() {
        let now = Instant::now();
        for (one, other) in [(Origin::Guest, Origin::Host(1)), (Origin::Host(1), Origin::Guest)] {
            let mut s = Shares::new(400);
            let mut n = 0;
            while s.has_place(one, 1) {
                s.called(one, (now, token(n)), |_| Some(State::Calling));
                s.opened(one, State::Calling);
                n += 1;
            }
            assert_eq!((n, s.half()), (300, 0));
            assert!(s.has_place(one, 0), "all of it, where nobody else can come");
            while s.has_place(other, 1) {
                s.called(other, (now, token(n)), |_| Some(State::Calling));
                n += 1;
            }
            assert_eq!((n, s.half()), (400, 100));
            assert!(s.is_crowded(other, 1) && !s.is_crowded(one, 1));
            s.over(one, State::Open);
            assert!(s.has_place(one, 1) && s.has_place(other, 1));
            s.over(other, State::Calling);
            assert!(s.half() == 99 && !s.is_crowded(other, 1));
        }
    }

    /// Whatever order the guest and those who come by one forward come and go in, those of another find their places, and
    /// the guest its own.
    #[test]
    fn one_forward_leaves_others_their_places() {
        let now = Instant::now();
        let (guest, one, another) = (Origin::Guest, Origin::Host(1), Origin::Host(2));
        let fill = |s: &mut Shares, who: Origin| {
            let before = s.own(who).flows;
            while s.has_place(who, 2) {
                s.called(who, (now, token(0)), |_| None);
                s.opened(who, State::Calling);
            }
            s.own(who).flows - before
        };
        let mut random = 0x9e37_79b9_u32;
        for _ in 0..200 {
            let mut s = Shares::new(1600);
            for _ in 0..20 {
                random ^= random << 13;
                random ^= random >> 17;
                random ^= random << 5;
                let (who, n) = ([guest, one][(random & 1) as usize], random >> 8 & 1023);
                for i in 0..n {
                    let (there, goes) = (s.own(who).flows > 0, (random >> 4) & 3 == 0);
                    if goes && there {
                        s.over(who, State::Open);
                    } else if s.has_place(who, 2) {
                        s.called(who, (now, token(i)), |_| None);
                        s.opened(who, State::Calling);
                    }
                }
            }
            fill(&mut s, [guest, one][(random & 1) as usize]);
            assert!(fill(&mut s, another) >= 100, "{s:?}");
            fill(&mut s, one);
            fill(&mut s, guest);
            assert!(s.own(guest).flows >= 400, "{s:?}");
            let all = s.own(guest).flows + s.own(one).flows + s.own(another).flows;
            assert_eq!(all, 1600, "none is left over");
        }
        // Of the half-open ones as well, and its late ones go for its own.
        let mut s = Shares::new(1600);
        let mut n = 0;
        while !s.is_crowded(one, 2) {
            s.called(one, (now, token(n)), |_| Some(State::Asking));
            n += 1;
        }
        assert_eq!((n, s.is_crowded(another, 2)), (300, false));
        s.called(another, (now, token(n)), |_| Some(State::Asking));
        let whose = |t: Token| Some((State::Asking, if t.index == 300 { another } else { one }));
        assert_eq!(s.victim(another, now + LATE, whose), Some(token(300)));
        assert_eq!(s.victim(one, now + LATE, whose), Some(token(0)));
        (0..300).for_each(|_| s.over(one, State::Asking));
        assert_eq!((s.half(), s.forwards.len()), (1, 1), "who has none is not remembered");
    }

    #[test]
    fn the_oldest_that_are_under_way_go_and_the_rows_are_bounded() {
        assert_eq!(
            [16_384, 2000, 200, 4, 1].map(bounds),
            [(4096, 1024), (500, 500), (64, 64), (4, 4), (1, 1)]
        );
        let start = Instant::now();
        let mut s = Shares::new(16_384);
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
}
