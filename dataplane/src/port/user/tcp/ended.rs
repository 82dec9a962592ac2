//! Connections that are over, for as long as the guest may not know: the last word of ours, which nobody acknowledges, may
//! have been lost. Then the guest says its end again, and is answered as it was, where a reset would look like a failure
//! (RFC 9293 §3.6.1).
//!
//! Trust: none in the guest. Promise: bounded; what does not end exactly where the connection ended is a stranger's.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::segment::{Key, Said, Segment, flag};
use super::seq::Seq;

/// Connections that are remembered.
const MOST: usize = 256;
/// How long (Linux' `TCP_TIMEWAIT_LEN`).
const LIFE: Duration = Duration::from_secs(60);

/// One of them.
#[derive(Clone, Copy, Debug)]
struct Last {
    at: Instant,
    key: Key,
    /// Behind our end, and behind the guest's.
    ours: Seq,
    theirs: Seq,
}

/// The last of them.
#[derive(Debug, Default)]
pub(super) struct Ended {
    list: VecDeque<Last>,
}

impl Ended {
    /// A connection has come to its end on both sides.
    pub(super) fn add(&mut self, key: Key, ours: Seq, theirs: Seq, at: Instant) {
        if self.list.len() == MOST {
            self.list.pop_front();
        }
        self.list.push_back(Last { at, key, ours, theirs });
    }

    /// What a segment of no connection is answered, if it is the end of one of these.
    pub(super) fn answer(&self, key: &Key, s: &Segment, now: Instant) -> Option<Said> {
        if !s.has(flag::FIN) || s.has(flag::SYN) || s.has(flag::RST) {
            return None;
        }
        let last = self.list.iter().rev().find(|l| l.key == *key)?;
        let same = s.seq.plus(s.span()) == last.theirs && now.saturating_duration_since(last.at) < LIFE;
        let (seq, ack, window) = (last.ours, last.theirs, u16::MAX);
        same.then_some(Said { seq, ack, window, flags: flag::ACK, ..Said::default() })
    }
}
