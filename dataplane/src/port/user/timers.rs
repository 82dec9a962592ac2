//! Timers of the port: any number on one descriptor, in steps of [`STEP`].
//!
//! There is no cancelling: whoever's time has come looks whether that still means anything. A room keeps one timer for a
//! flow at a time and sets the next when it has come, however often its deadline moves in between; where many of a room's
//! mean nothing any more, it sweeps them out ([`Timers::sweep`]).
//!
//! Trust: none needed. Promise: never early, late by a step at most while the port runs; nobody is woken while no timer is
//! set.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::poll::Token;
use crate::sys::timer::Timer;

/// What times are rounded up to.
pub const STEP: Duration = Duration::from_millis(10);

/// Whether a timer means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// The one that comes then does.
    At(Instant),
}

/// The timers.
#[derive(Debug)]
pub struct Timers {
    timer: Timer,
    start: Instant,
    /// By their step since the start.
    due: BTreeMap<u64, Vec<Token>>,
    /// How many.
    held: usize,
    /// When the descriptor becomes readable.
    armed: Option<Instant>,
}

impl Timers {
    /// None set.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(now: Instant) -> io::Result<Self> {
        Ok(Self { timer: Timer::new()?, start: now, due: BTreeMap::new(), held: 0, armed: None })
    }

    /// To be watched for reading, edge-triggered.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    fn step(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.start).as_nanos();
        u64::try_from(since.div_ceil(STEP.as_nanos())).unwrap_or(u64::MAX)
    }

    /// Whoever's `token` is, is told once `when` has come.
    pub fn at(&mut self, when: Instant, token: Token) {
        let step = self.step(when);
        self.due.entry(step).or_default().push(token);
        self.held += 1;
    }

    /// Timers that are set.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Forgets timers: `keep` says of each whether it means something, by its token.
    pub(super) fn sweep(&mut self, keep: impl Fn(Token) -> Kept) {
        let mut due = std::mem::take(&mut self.due);
        due.retain(|step, tokens| {
            tokens.retain(|t| match keep(*t) {
                Kept::Yes => true,
                Kept::No => false,
                Kept::At(when) => self.step(when) == *step,
            });
            tokens.shrink_to_fit();
            !tokens.is_empty()
        });
        self.held = due.values().map(Vec::len).sum();
        self.due = due;
    }

    /// One whose time has come.
    pub(super) fn next(&mut self, now: Instant) -> Option<Token> {
        let mut first = self.due.first_entry()?;
        let passed = now.saturating_duration_since(self.start).as_millis() / STEP.as_millis();
        if u128::from(*first.key()) > passed {
            return None;
        }
        let token = first.get_mut().pop();
        self.held = self.held.saturating_sub(1);
        if first.get().is_empty() {
            first.remove();
        }
        token
    }

    /// Has the descriptor become readable when the first timer's time comes, or at `soon`. It may become so earlier, once for
    /// each time that it was set: a time that has become needless is left, which costs less than to set another.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn arm(&mut self, now: Instant, soon: Option<Instant>) -> io::Result<()> {
        let step = u64::try_from(STEP.as_millis()).unwrap_or(10);
        let at = |(&n, _): (&u64, _)| self.start + Duration::from_millis(n.saturating_mul(step));
        let first = self.due.first_key_value().map(at);
        let Some(when) = first.into_iter().chain(soon).min() else { return Ok(()) };
        if self.armed.is_some_and(|at| at <= when) {
            return Ok(());
        }
        self.armed = Some(when);
        self.timer.set(when.saturating_duration_since(now))
    }

    /// The descriptor was readable.
    pub(super) fn rang(&mut self) {
        self.armed = None;
    }
}

#[cfg(test)]
mod tests {
    use super::super::poll::Who;
    use super::*;

    #[test]
    fn nobodys_time_comes_early() {
        let start = Instant::now();
        let token = Token { who: Who::Tcp, kind: 0, index: 0, generation: 0 };
        // Between two steps, and a little behind a whole millisecond, and a step itself.
        for us in [1, 999, 9_999, 10_000, 10_001, 250_000, 250_700, 250_999, 251_000] {
            let mut t = Timers::new(start).unwrap();
            let when = start + Duration::from_micros(us);
            t.at(when, token);
            assert_eq!(t.next(when - Duration::from_nanos(1)), None, "{us}");
            assert_eq!(t.next(when + STEP), Some(token), "{us}");
            assert_eq!(t.next(when + STEP), None, "{us}");
        }
    }
}
