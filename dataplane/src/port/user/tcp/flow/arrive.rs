//! What a segment of the guest's means (RFC 9293 §3.10.7). No system call is made here, and nothing is said: what is owed
//! is remembered for the end of the turn.
//!
//! Trust: none: every number is the guest's. Promise: only bytes inside the window that it was told, and in order, are
//! taken.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::super::segment::{Segment, flag};
use super::super::sock::Sock;
use super::{End, Flow, Owed, State};

/// Acknowledgements in a row without news that mean a loss (RFC 5681 §3.2).
const REPEATS: u8 = 3;
/// Fewest seconds of silence that a socket is told: a guest that asks for a window which was shut, while we say that it is
/// open, looks as if it asked after a second whether the far end is there, and no connection must end for that when nobody
/// is reached for some seconds.
const SHORTEST: u16 = 15;
/// Most seconds of silence that a socket can be told (`MAX_TCP_KEEPIDLE`).
const LONGEST: u16 = 32_767;

/// What is to be done with a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Act {
    /// Nothing more now.
    None,
    /// These bytes of its payload are taken.
    Take {
        /// Bytes that were there before.
        skip: u32,
        /// Bytes behind them.
        len: u32,
    },
    /// Our answer to its SYN was lost: say it again.
    Answer,
    /// The guest breaks off.
    Broken,
}

impl<S: Sock> Flow<S> {
    /// Judges a segment.
    pub(in super::super) fn arrive(&mut self, s: &Segment, now: Instant) -> Act {
        let silent = now.saturating_duration_since(self.heard);
        self.heard = now;
        if self.down.una == self.down.max && (self.down.window > 0 || !self.has_bytes()) {
            self.tries = 0;
        }
        match self.state {
            State::Calling if s.has(flag::RST) && s.seq == self.up.next => Act::Broken,
            // Its SYN again, which is being seen to.
            State::Calling => Act::None,
            State::Asking => self.answered(s, now),
            State::Answered | State::Open => {
                self.asked_for(s, silent);
                self.run(s, now)
            }
        }
    }

    /// The guest's answer to our SYN.
    fn answered(&mut self, s: &Segment, now: Instant) -> Act {
        if !s.has(flag::ACK) || s.ack != self.down.max {
            return Act::None;
        }
        if s.has(flag::RST) {
            return Act::Broken;
        }
        if s.has(flag::SYN) {
            self.meet(s);
            self.down.una = s.ack;
            self.down.said = (s.seq, s.ack);
            self.state = State::Open;
            self.up.owed = Owed::Now;
            (self.tries, self.progress) = (0, now);
        }
        Act::None
    }

    /// After a silence the guest says again what it has said (nothing, or its last byte): it asks whether the far end is there.
    /// We are, and say so; the far end may not be: its socket asks it after as long a silence, or after [`SHORTEST`]. (A guest whose
    /// window is shut asks in the same way.)
    fn asked_for(&mut self, s: &Segment, silent: Duration) {
        let asks = s.span() < 2
            && s.seq == self.up.next.minus(1)
            && s.has(flag::ACK)
            && !s.has(flag::RST | flag::SYN);
        let seconds = u16::try_from(silent.as_secs()).unwrap_or(LONGEST).clamp(SHORTEST, LONGEST);
        if !asks || s.has(flag::FIN) || silent.as_secs() == 0 || self.is_shut() || self.state != State::Open {
            return;
        }
        if self.up.alive.is_none_or(|known| seconds < known) {
            self.up.alive = Some(seconds);
            self.up.asks = true;
        }
    }

    fn run(&mut self, s: &Segment, now: Instant) -> Act {
        if s.has(flag::RST) {
            if s.seq == self.up.next {
                return Act::Broken;
            }
            // Somebody guesses, or it is late: whoever means it says it again, in its place (RFC 5961 §3.2).
            if s.seq.since(self.up.next) < self.up.edge.since(self.up.next) {
                self.up.owed = Owed::Now;
            }
            return Act::None;
        }
        if s.has(flag::SYN) {
            let first = self.state == State::Answered && !s.has(flag::ACK) && s.seq.plus(1) == self.up.next;
            // A new one in the place of this: the guest answers with a reset if it does not know this one (RFC 5961 §4.2).
            if first {
                return Act::Answer;
            }
            self.up.owed = Owed::Now;
            return Act::None;
        }
        if !s.has(flag::ACK) {
            return Act::None;
        }
        if self.down.max.before(s.ack) {
            self.up.owed = Owed::Now;
            return Act::None;
        }
        if self.state == State::Answered {
            if s.ack != self.down.max {
                return Act::None;
            }
            self.down.una = s.ack;
            self.state = State::Open;
            (self.tries, self.progress) = (0, now);
        }
        self.acknowledged(s, now);
        self.payload(s)
    }

    /// What it says of what we sent.
    fn acknowledged(&mut self, s: &Segment, now: Instant) {
        let d = &mut self.down;
        if s.ack.before(d.una) {
            return;
        }
        let mut n = s.ack.since(d.una);
        let window = u32::from(s.window) << d.scale;
        if n > 0 {
            if d.fin.is_some_and(|fin| s.ack == fin.plus(1)) {
                n -= 1;
            }
            d.stale += n;
            d.una = s.ack;
            // What was to be sent again has arrived after all.
            d.next = d.next.max(s.ack);
            d.repeats = 0;
            (self.tries, self.progress) = (0, now);
        } else if s.span() == 0 && window == d.window && d.una != d.max && !d.una.before(d.recover) {
            d.repeats = d.repeats.saturating_add(1);
            d.again |= d.repeats == REPEATS;
        }
        let (seq, ack) = d.said;
        if seq.before(s.seq) || (seq == s.seq && !s.ack.before(ack)) {
            if d.window == 0 && window > 0 {
                (self.tries, self.progress) = (0, now);
            }
            d.window = window;
            d.said = (s.seq, s.ack);
        }
    }

    /// What it carries.
    fn payload(&mut self, s: &Segment) -> Act {
        let up = &mut self.up;
        let fin = s.has(flag::FIN);
        let span = s.span();
        if span == 0 {
            // Not where it belongs: it asks whether we are there, or what our window is.
            if s.seq != up.next {
                up.owed = Owed::Now;
            }
            return Act::None;
        }
        if up.next.before(s.seq) {
            up.strays = up.strays.saturating_add(1);
            return Act::None;
        }
        let before = std::mem::replace(&mut up.owed, Owed::Now);
        let behind = up.next.since(s.seq);
        if behind >= span || up.end != End::No {
            return Act::None;
        }
        let skip = behind.min(s.payload);
        let rest = s.payload - skip;
        let len = rest.min(up.edge.since(up.next));
        up.next = up.next.plus(len);
        if fin && len == rest {
            up.next = up.next.plus(1);
            // The end takes no room, and may lie behind a window that is full.
            up.edge = up.edge.max(up.next);
            up.end = End::Seen;
            // Nobody waits for it to be acknowledged: the guest has no more to say. But where the other end has come before, this
            // is the last word.
            if behind == 0 && before == Owed::No && self.down.fin.is_none() {
                up.owed = Owed::Soon;
            }
        }
        if len == 0 { Act::None } else { Act::Take { skip, len } }
    }
}
