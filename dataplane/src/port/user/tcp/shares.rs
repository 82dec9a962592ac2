//! Who may have how much of the table, and who goes first where it is too small.
//!
//! Two kinds of people make connections: the guest, and whoever comes by a forward. Each keeps a part of the table that the
//! other cannot take, and neither has more than a part of it in connections that are *half open*: those that the other end
//! has not answered yet. So a flood of calls, from either side, costs at most that part, pushes out its own oldest calls,
//! and ends no connection that both ends have, but for silent ones where all is taken, at most [`LEAST`] at a time.
//! Where there are several forwards, half of their part is divided among them: what of his own somebody has not taken, nobody
//! else can take, so each finds as much as the others do, however many of them are flooded and whoever was first. (Who comes
//! from one address has no bounds of his own: he may be a whole network behind one router, or the proxy before them all.)
//!
//! Trust: none in either. Promise: bounded; counts are those of the table.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::poll::Token;
use super::flow::State;

/// What of the table the guest, and those who come by forwards, can always have: this part.
const OWN: u32 = 4;
/// What of the forwards' part is divided among them: this part.
const DIVIDED: u32 = 2;
/// Forwards that are told apart. Where there are more, those whose numbers are so many apart have one part together: the
/// ports of a range have numbers in a row, so neighbours never do.
const GROUPS: u32 = 256;
/// What of the table may be half open, of either: this part;
const HALF: u32 = 4;
/// of those, so many may be calls (each is a socket of the kernel's that sends SYNs, or a stranger who waits for the guest);
const CALLS: u32 = 1024;
/// and where the table is small, so many may be in any case. While there are fewer, an open one that was silent for long may go for
/// a new one.
const LEAST: u32 = 64;
/// A guest's call that is younger stays, however many others there are: whoever is called is given the time to answer.
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

/// Forwards that have one part together.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    /// What of the host's came by them, be it that they are no longer there.
    count: Count,
    /// Somebody may come by one of them.
    listens: bool,
}

/// All that there is.
#[derive(Debug)]
pub(super) struct Shares {
    most: u32,
    guest: Share,
    host: Share,
    groups: Vec<Group>,
    /// Groups by which somebody may come.
    listening: u32,
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

/// The first of theirs in a row that is alive and there since `before`. `alive` says whether one is theirs, if it is alive.
fn first(row: &mut Row, before: Option<Instant>, alive: impl Fn(Token) -> Option<bool>) -> Option<Token> {
    while row.front().is_some_and(|(_, t)| alive(*t).is_none()) {
        row.pop_front();
    }
    let before = before?;
    let mut old = row.iter().take_while(|(at, _)| *at <= before);
    old.find(|(_, t)| alive(*t) == Some(true)).map(|(_, t)| *t)
}

impl Shares {
    /// Of a table of `most`.
    pub(super) fn new(most: u32) -> Self {
        let most = most.max(1);
        let groups = usize::try_from((most / OWN).clamp(1, GROUPS)).unwrap_or(1);
        let (guest, host) = (Share::default(), Share::default());
        Self { most, guest, host, groups: vec![Group::default(); groups], listening: 0 }
    }

    /// By these forwards somebody may come from now on, and by no others.
    pub(super) fn listen(&mut self, ids: impl Iterator<Item = u32>) {
        self.groups.iter_mut().for_each(|g| g.listens = false);
        for id in ids {
            let group = self.group(id);
            self.groups.get_mut(group).into_iter().for_each(|g| g.listens = true);
        }
        self.listening = u32::try_from(self.groups.iter().filter(|g| g.listens).count()).unwrap_or(GROUPS);
    }

    /// Where a forward is.
    fn group(&self, id: u32) -> usize {
        usize::try_from(id).unwrap_or(0) % self.groups.len().max(1)
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
            Origin::Host(id) => self.groups.get(self.group(id)).map(|g| g.count).unwrap_or_default(),
        }
    }

    /// Counts something of theirs.
    fn count(&mut self, who: Origin, change: impl Fn(&mut Count)) {
        change(&mut self.of(who).count);
        if let Origin::Host(id) = who {
            let group = self.group(id);
            self.groups.get_mut(group).into_iter().for_each(|g| change(&mut g.count));
        }
    }

    /// What of `all` those who come by each forward can always have; one alone has nobody to share with.
    fn part(&self, all: u32) -> u32 {
        match self.listening {
            0 | 1 => 0,
            n => (all / DIVIDED / n).max(u32::from(n <= all)),
        }
    }

    /// What of their parts those who come by forwards have not taken: by all of them, or by all others.
    fn promised(&self, part: u32, others: Option<u32>, has: impl Fn(&Count) -> u32) -> u32 {
        if part == 0 {
            return 0;
        }
        let but = others.map(|id| self.group(id));
        let all = self.groups.iter().enumerate().filter(|(n, g)| g.listens && Some(*n) != but);
        all.map(|(_, g)| part.saturating_sub(has(&g.count))).sum()
    }

    /// Connections that there may be.
    pub(super) fn most(&self) -> u32 {
        self.most
    }

    /// Connections that are half open, whosever.
    pub(super) fn half(&self) -> u32 {
        self.guest.count.half + self.host.count.half
    }

    /// There is a place for one more of theirs: where somebody may come by a forward, guest and host may each want their
    /// part; where by several, each of them.
    pub(super) fn has_place(&self, who: Origin) -> bool {
        let (guest, host) = (self.guest.count.flows, self.host.count.flows);
        let (all, has) = (guest + host, |c: &Count| c.flows);
        let kept = if self.listening > 0 { self.most / OWN } else { 0 };
        let part = self.part(kept);
        all < self.most
            && match who {
                // More than its own part only where that is promised to nobody.
                Origin::Guest => {
                    let spares = || all + self.promised(part, None, has) < self.most;
                    guest < self.most - kept && (guest < kept || spares())
                }
                Origin::Host(id) => {
                    let own = self.own(who).flows < part;
                    let others = if own { 0 } else { self.promised(part, Some(id), has) };
                    all + others < self.most && host + others < self.most - kept
                }
            }
    }

    /// They have as many half-open ones as they may.
    pub(super) fn is_crowded(&self, who: Origin) -> bool {
        let (half, calls) = bounds(self.most);
        let Origin::Host(id) = who else { return self.guest.count.is_crowded((half, calls)) };
        // Whoever comes is a call until the guest has answered.
        let part = self.part(calls);
        let own = self.own(who).calling < part;
        let others = if own { 0 } else { self.promised(part, Some(id), |c| c.calling) };
        self.host.count.is_crowded((half, calls.saturating_sub(others)))
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
        let hurried = who == Origin::Guest && self.is_crowded(who);
        let late = now.checked_sub(LATE);
        let before = if hurried { now.checked_sub(YOUNG) } else { late };
        let groups = u32::try_from(self.groups.len()).unwrap_or(1).max(1);
        let theirs = |other| match (who, other) {
            (Origin::Guest, Origin::Guest) => true,
            (Origin::Host(a), Origin::Host(b)) => a % groups == b % groups,
            _ => false,
        };
        let s = self.of(who);
        let call = |t| state(t).filter(|(s, _)| is_call(Some(*s))).map(|(_, who)| theirs(who));
        let answered = |t| state(t).filter(|(s, _)| *s == State::Answered).map(|(_, who)| theirs(who));
        first(&mut s.calls, before, call).or_else(|| first(&mut s.answered, late, answered))
    }
}

#[cfg(test)]
#[path = "tests/shares.rs"]
mod tests;
