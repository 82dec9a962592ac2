//! What happens when nothing happens: what was lost is sent again, windows are asked for, the dead are found out.
//!
//! A flow has one timer; when it comes, the deadline may have moved on, and the timer is set to it.
//!
//! Trust: none needed. Promise: whatever waits for the guest waits for a bounded time without a sign of life from it.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::super::super::room::Cx;
use super::super::segment::flag;
use super::super::sock::Sock;
use super::{Fate, Flow, Owed, State, Tools};

/// What a guest has to acknowledge something in (RFC 6298 §2.1); twice as long each time.
const RTO: Duration = Duration::from_secs(1);
/// The first time, for a SYN: nobody may have asked yet who has the guest's address.
const SYN: Duration = Duration::from_millis(250);
/// The longest time.
const LONGEST: Duration = Duration::from_secs(60);
/// How often a SYN, or an answer to one, is sent again.
const SYN_TRIES: u8 = 7;
/// How often bytes are (Linux' `tcp_retries2`).
const TRIES: u8 = 15;
/// When a silent guest is asked whether it is there, and how long it has to answer, how often (Linux' defaults).
const IDLE: Duration = Duration::from_secs(7200);
const PROBE: Duration = Duration::from_secs(75);
const PROBES: u8 = 9;
/// How soon a flow is looked at that stands still because of what somebody else has to do.
const WATCH: Duration = Duration::from_secs(2);
/// Half of a connection is at its end and the guest says nothing.
const HALF: Duration = Duration::from_secs(600);

/// Doubled `n` times, at most [`LONGEST`].
fn backed_off(first: Duration, n: u8) -> Duration {
    first.saturating_mul(1 << n.min(16)).min(LONGEST)
}

/// What a flow waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    /// Nothing: the kernel decides, or it is asked otherwise.
    No,
    /// For the other end of the handshake.
    Hands,
    /// For an acknowledgement.
    Ack,
    /// For a window, or for memory.
    Window,
    /// For a word of the guest's, whatever it be.
    Sign,
}

impl<S: Sock> Flow<S> {
    fn waits(&self) -> Waits {
        match self.state {
            State::Calling => Waits::No,
            State::Answered | State::Asking => Waits::Hands,
            State::Open if self.down.una != self.down.max => Waits::Ack,
            State::Open if self.has_bytes() => Waits::Window,
            State::Open => Waits::Sign,
        }
    }

    /// When something is to be done if nothing happens.
    pub(in super::super) fn deadline(&self) -> Option<Instant> {
        let half = self.down.fin.is_some() || self.up.end != super::End::No;
        Some(match self.waits() {
            Waits::No => return None,
            Waits::Hands => self.progress + backed_off(SYN, self.tries),
            Waits::Ack | Waits::Window => self.progress + backed_off(RTO, self.tries),
            Waits::Sign => self.heard + if half { HALF } else { IDLE } + PROBE * u32::from(self.tries),
        })
    }

    /// The timer that has to be set, if the one that is set comes too late. None is set far ahead, for it cannot be taken
    /// back when something nearer comes up.
    pub(in super::super) fn timer(&mut self, now: Instant) -> Option<Instant> {
        let stands = self.up.blocked || (self.state == State::Open && self.is_shut());
        let due = self.deadline()?.min(now + if stands { WATCH } else { LONGEST });
        if self.armed.is_some_and(|at| at <= due) {
            return None;
        }
        self.armed = Some(due);
        self.armed
    }

    /// The guest may send next to nothing.
    pub(super) fn is_shut(&self) -> bool {
        self.up.end == super::End::No && self.up.edge.since(self.up.next) < self.down.mss
    }

    /// The timer has come: looks whether the flow stands still though it could go on, because a word was missed, be it the
    /// kernel's or ours, or because others gave back what there was no room in. True: so it was, and goes on.
    pub(in super::super) fn look(&mut self, now: Instant, tools: &mut Tools) -> bool {
        if self.state != State::Open || self.armed.is_some_and(|at| now < at) {
            return false;
        }
        let mut healed = false;
        if self.up.blocked && !self.up.hold.is_empty() && !self.up.broken {
            let held = self.up.hold.len();
            self.flush(tools);
            healed |= self.up.hold.len() < held;
        }
        if self.is_shut() && self.up.owed == Owed::No && self.widened(tools) {
            self.up.owed = Owed::Now;
            healed = true;
        }
        if !self.down.readable && !self.down.end && !self.up.broken {
            let known = if self.sock.peeks() { self.down.stale + self.flying() } else { 0 };
            self.down.readable = self.sock.unread().is_ok_and(|n| n > known);
            healed |= self.down.readable;
        }
        healed
    }

    /// The timer has come.
    pub(in super::super) fn tick(&mut self, cx: &mut Cx, tools: &mut Tools) -> Fate {
        // One that was overtaken by a nearer one.
        if self.armed.is_some_and(|at| cx.now < at) {
            return Fate::Lives;
        }
        self.armed = None;
        if self.deadline().is_none_or(|due| cx.now < due) {
            return Fate::Lives;
        }
        let waits = self.waits();
        let most = match waits {
            Waits::Hands => SYN_TRIES,
            Waits::Ack | Waits::Window | Waits::No => TRIES,
            Waits::Sign => PROBES,
        };
        // A guest that says that its window is closed may do so for ever.
        let alive = waits == Waits::Window && cx.now.saturating_duration_since(self.heard) < 2 * LONGEST;
        self.tries = self.tries.saturating_add(1);
        if self.tries > most && !alive {
            self.reset(cx, tools);
            self.sock.abort();
            return Fate::Over;
        }
        self.tries = self.tries.min(most);
        match waits {
            Waits::Hands => {
                self.progress = cx.now;
                self.greet(cx, tools);
            }
            Waits::Ack if self.down.window > 0 => {
                self.progress = cx.now;
                self.down.again = true;
            }
            Waits::Ack | Waits::Window => {
                self.progress = cx.now;
                self.probe(cx, tools);
            }
            Waits::Sign => self.probe(cx, tools),
            Waits::No => {}
        }
        Fate::Lives
    }

    /// Says something that the guest has to answer: an acknowledgement from where it has been already (RFC 9293 §3.8.4).
    fn probe(&mut self, cx: &mut Cx, tools: &mut Tools) {
        self.say(cx, tools, self.down.una.minus(1), flag::ACK);
    }

    /// Says our SYN, or our answer to the guest's.
    pub(in super::super) fn greet(&mut self, cx: &mut Cx, tools: &mut Tools) {
        let flags = if self.state == State::Asking { flag::SYN } else { flag::SYN | flag::ACK };
        self.say(cx, tools, self.down.una, flags);
        let d = &mut self.down;
        (d.next, d.max, d.recover) = (d.una.plus(1), d.una.plus(1), d.una.plus(1));
    }

    /// It is known how the guest's call came out, and nobody has looked yet.
    pub(in super::super) fn is_decided(&self) -> bool {
        self.state == State::Calling && self.sock.decided()
    }

    /// The socket has connected: the guest is answered.
    pub(in super::super) fn connected(&mut self, cx: &mut Cx, tools: &mut Tools) {
        self.state = State::Answered;
        (self.tries, self.progress) = (0, cx.now);
        self.greet(cx, tools);
    }
}
