//! Ends that can wait: their acknowledgements for company, they themselves for others to be answered.
//!
//! Whatever is given to a sleeping guest wakes it, which costs both sides more than all else about a small segment; and to a
//! guest that has said its last word it is no news that this was heard. So that goes along with whatever is given to the
//! guest next, which mostly is the end of the other direction. It waits for [`WAIT`] at most.
//!
//! And where the guest calls somebody in the same breath, as who makes one connection after the other does, it is answered
//! first: passing ends on and what comes of it (whoever hears of one wakes up, and mostly closes) is done while it wakes up.
//!
//! Trust: none needed. Promise: bounded, for a flow stands in each list once; an acknowledgement waits no longer than
//! [`WAIT`] and a turn, an end until the guest was given something or sends again.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::super::poll::Token;
use super::super::room::Cx;
use super::Tcp;
use super::flow::{Fate, Owed};
use super::segment::flag;
use super::sock::Sock;

/// How long (RFC 9293 §3.8.6.3 allows half a second).
pub(super) const WAIT: Duration = Duration::from_millis(1);

/// Whose they are.
#[derive(Debug, Default)]
pub(super) struct Late {
    flows: Vec<Token>,
    until: Option<Instant>,
}

impl Late {
    /// One more. It is not here yet.
    pub(super) fn add(&mut self, token: Token, now: Instant) {
        self.flows.push(token);
        self.until.get_or_insert(now + WAIT);
    }
}

/// Ends of the guest's that are not passed on yet.
#[derive(Debug, Default)]
pub(super) struct Ends {
    flows: Vec<Token>,
    /// The guest called somebody in this turn.
    called: bool,
}

impl Ends {
    /// The guest has called somebody.
    pub(super) fn call(&mut self) {
        self.called = true;
    }

    /// An end came. False: there is nobody to be answered before.
    pub(super) fn wait_for_call(&mut self, token: Token) -> bool {
        if self.called {
            self.flows.push(token);
        }
        self.called
    }
}

impl<S: Sock> Tcp<S> {
    /// Ends wait to be passed on.
    pub fn has_ends(&self) -> bool {
        !self.tools.ends.flows.is_empty()
    }

    /// Passes them on.
    pub fn pass_ends(&mut self, cx: &mut Cx) {
        self.tools.ends.called = false;
        let mut flows = std::mem::take(&mut self.tools.ends.flows);
        for token in flows.drain(..) {
            let Some(f) = self.table.get(token) else { continue };
            f.pass_end();
            let fate = f.fate(&mut self.tools);
            self.after(token, fate, true, cx);
        }
        self.tools.ends.flows = flows;
    }

    /// When somebody has waited long enough.
    pub fn owes_by(&self) -> Option<Instant> {
        self.tools.late.until
    }

    /// Says what waits, if frames are `going` to the guest in any case, or its time has come.
    pub fn say_late(&mut self, going: bool, cx: &mut Cx) {
        if !self.owes_by().is_some_and(|until| going || until <= cx.now) {
            return;
        }
        self.tools.late.until = None;
        let mut flows = std::mem::take(&mut self.tools.late.flows);
        for token in flows.drain(..) {
            let Some(f) = self.table.get(token) else { continue };
            f.up.late = false;
            if f.up.owed == Owed::Soon {
                // Where there is no room for it, it waits in turn.
                f.up.owed = Owed::Now;
                f.say(cx, &mut self.tools, f.down.max, flag::ACK);
                self.after(token, Fate::Lives, true, cx);
            }
        }
        self.tools.late.flows = flows;
    }
}
