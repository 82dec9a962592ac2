//! Acknowledgements of ends that wait for company.
//!
//! Whatever is given to a sleeping guest wakes it, which costs both sides more than all else about a small segment; and to a
//! guest that has said its last word it is no news that this was heard. So that goes along with whatever is given to the
//! guest next, which mostly is the end of the other direction. It waits for [`WAIT`] at most.
//!
//! Trust: none needed. Promise: bounded, for a flow stands here once; nothing waits longer than [`WAIT`] and a turn.
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

impl<S: Sock> Tcp<S> {
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
