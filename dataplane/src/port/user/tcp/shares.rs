//! Who may have how much of the table, and who goes first where it is too small.
//!
//! Two kinds of people make connections: the guest, and whoever comes by a forward. Each keeps a part of the table that the
//! other cannot take, and neither has more than a part of it in connections that are *half open*: those that the other end
//! has not answered yet. So a flood of calls, from either side, costs at most that part, pushes out its own oldest calls,
//! and ends no connection that both ends have, but for silent ones where all is taken, at most [`LEAST`] at a time.
//!
//! Trust: none in either. Promise: bounded; counts are those of the table.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::poll::Token;
use super::flow::State;

/// What of the table the guest, and those who come by forwards, can always have: this part.
const OWN: u32 = 4;
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
    /// Somebody came by a forward.
    Host,
}

/// Half-open connections that a table of `most` may have of either origin, and those of them that may be calls.
fn bounds(most: u32) -> (u32, u32) {
    let half = (most / HALF).max(LEAST).min(most);
    (half, half.min(CALLS))
}

/// Tokens, in the order in which they came. Those that are what they were no longer stay until they are looked at.
type Row = VecDeque<(Instant, Token)>;

/// What one of them has.
#[derive(Debug, Default)]
struct Share {
    flows: u32,
    half: u32,
    calling: u32,
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

/// The first of a row that is alive, if it is there since `before`.
fn first(row: &mut Row, before: Option<Instant>, alive: impl Fn(Token) -> bool) -> Option<Token> {
    while let Some(&(at, token)) = row.front() {
        if alive(token) {
            return before.filter(|b| at <= *b).map(|_| token);
        }
        row.pop_front();
    }
    None
}

impl Shares {
    /// Of a table of `most`.
    pub(super) fn new(most: u32) -> Self {
        Self { most: most.max(1), guest: Share::default(), host: Share::default() }
    }

    fn of(&mut self, who: Origin) -> &mut Share {
        match who {
            Origin::Guest => &mut self.guest,
            Origin::Host => &mut self.host,
        }
    }

    /// Connections that there may be.
    pub(super) fn most(&self) -> u32 {
        self.most
    }

    /// Connections that are half open, whosever.
    pub(super) fn half(&self) -> u32 {
        self.guest.half + self.host.half
    }

    /// There is a place for one more of theirs. `shared`: there are forwards, so the other may want his part.
    pub(super) fn has_place(&self, who: Origin, shared: bool) -> bool {
        let has = if who == Origin::Guest { self.guest.flows } else { self.host.flows };
        let kept = if shared { self.most / OWN } else { 0 };
        self.guest.flows + self.host.flows < self.most && has < self.most - kept
    }

    /// They have as many half-open ones as they may.
    pub(super) fn is_crowded(&self, who: Origin) -> bool {
        let s = if who == Origin::Guest { &self.guest } else { &self.host };
        let (half, calls) = bounds(self.most);
        s.half >= half || s.calling >= calls
    }

    /// One more of theirs may push out an open one that was silent for long: so few of those that come are half open that
    /// they will be connections, or leave their place to the next.
    pub(super) fn may_push_out(&self, who: Origin) -> bool {
        let s = if who == Origin::Guest { &self.guest } else { &self.host };
        s.half < LEAST
    }

    /// A call of theirs. `state` says how a token's connection stands.
    pub(super) fn called(
        &mut self,
        who: Origin,
        entry: (Instant, Token),
        state: impl Fn(Token) -> Option<State>,
    ) {
        let (_, calls) = bounds(self.most);
        let s = self.of(who);
        s.flows += 1;
        s.half += 1;
        s.calling += 1;
        append(&mut s.calls, entry, calls, |t| is_call(state(t)));
    }

    /// A guest's call was answered.
    pub(super) fn answered(&mut self, entry: (Instant, Token), state: impl Fn(Token) -> Option<State>) {
        let (half, _) = bounds(self.most);
        let s = &mut self.guest;
        s.calling = s.calling.saturating_sub(1);
        append(&mut s.answered, entry, half, |t| state(t) == Some(State::Answered));
    }

    /// Both ends of one of theirs have met, which was in this state before.
    pub(super) fn opened(&mut self, who: Origin, before: State) {
        let s = self.of(who);
        s.half = s.half.saturating_sub(1);
        s.calling = s.calling.saturating_sub(u32::from(is_call(Some(before))));
    }

    /// One of theirs is over.
    pub(super) fn over(&mut self, who: Origin, state: State) {
        if state != State::Open {
            self.opened(who, state);
        }
        let s = self.of(who);
        s.flows = s.flows.saturating_sub(1);
    }

    /// One of their half-open ones that may go: because they have too many of them, the oldest call that is not young; or
    /// else the oldest that is late.
    pub(super) fn victim(
        &mut self,
        who: Origin,
        now: Instant,
        state: impl Fn(Token) -> Option<State>,
    ) -> Option<Token> {
        let hurried = who == Origin::Guest && self.is_crowded(who);
        let late = now.checked_sub(LATE);
        let before = if hurried { now.checked_sub(YOUNG) } else { late };
        let s = self.of(who);
        first(&mut s.calls, before, |t| is_call(state(t)))
            .or_else(|| first(&mut s.answered, late, |t| state(t) == Some(State::Answered)))
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
        for (one, other) in [(Origin::Guest, Origin::Host), (Origin::Host, Origin::Guest)] {
            let mut s = Shares::new(400);
            let mut n = 0;
            while s.has_place(one, true) {
                s.called(one, (now, token(n)), |_| Some(State::Calling));
                s.opened(one, State::Calling);
                n += 1;
            }
            assert_eq!((n, s.half()), (300, 0));
            assert!(s.has_place(one, false), "all of it, where nobody else can come");
            while s.has_place(other, true) {
                s.called(other, (now, token(n)), |_| Some(State::Calling));
                n += 1;
            }
            assert_eq!((n, s.half()), (400, 100));
            assert!(s.is_crowded(other) && !s.is_crowded(one));
            s.over(one, State::Open);
            assert!(s.has_place(one, true) && s.has_place(other, true));
            s.over(other, State::Calling);
            assert!(s.half() == 99 && !s.is_crowded(other));
        }
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
        assert_eq!((s.half(), s.guest.calling), (100, 50));
        assert!(s.guest.calls.len() <= 2048 && s.guest.answered.len() <= 8192);
        let victim = |s: &mut Shares, at| s.victim(Origin::Guest, ms(at), state);
        assert_eq!(victim(&mut s, 3000), None, "nobody is late");
        assert_eq!(victim(&mut s, 3007), Some(token(7)));
        s.guest.half = 4096;
        assert_eq!((victim(&mut s, 106), victim(&mut s, 107)), (None, Some(token(7))));
        let done = |t: Token| state(t).filter(|s| *s == State::Answered);
        assert_eq!(s.victim(Origin::Guest, ms(4006), done), None);
        assert_eq!(s.victim(Origin::Guest, ms(4007), done), Some(token(1007)));
        assert_eq!(s.victim(Origin::Host, ms(90_000), state), None);
    }
}
