//! What is kept of a slot's connection, so that the next dataplane goes on with it and the peer never learns.
//!
//! The dataplane says when the peer has something to say; from then on nothing is kept. Once the peer has been quiet for
//! a moment the dataplane is asked for what its successor needs. Pieces are kept as they came: nothing here reads them.
//!
//! Trust: none in the dataplane: pieces that were not asked for, or too many, end it. Promise: what is handed on is the
//! whole, and was true when the last dataplane died; whatever is not handed on is closed, so that the peer sees its end.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::port::{Left, Piece};

/// Most pieces of a slot: a session, 64 memory regions and the rings of 128 queue pairs and a control queue.
const MAX_PIECES: usize = 1 + 64 + 257;
/// Descriptors of a memory table, and of the connection with its channel back.
const BESIDE_RINGS: u64 = 64 + 2;
/// How long a peer is quiet before its state is asked for.
const QUIET: Duration = Duration::from_millis(20);
/// The longest wait between two questions.
const LONGEST: Duration = Duration::from_secs(1);

/// Most descriptors that are kept of a vhost-user device of so many queue pairs: kick, call and error of each ring, the
/// control queue's among them.
#[must_use]
pub fn most_descriptors(queues: u16) -> u64 {
    BESIDE_RINGS + 3 * (2 * u64::from(queues) + 1)
}

/// What is kept of one slot.
#[derive(Debug, Default)]
pub struct Estate {
    kept: Left,
    state: State,
    /// When to ask; none: the state is known, or there is none.
    ask_at: Option<Instant>,
    /// Questions since the last whole answer.
    tries: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Nothing is known.
    #[default]
    Unknown,
    /// Asked, and pieces come.
    Asked,
    /// Asked, but the peer went on talking: what comes is no longer true.
    Stale,
    /// Known and true.
    Whole,
}

impl Estate {
    /// The peer talks.
    pub fn unsettled(&mut self, now: Instant) {
        self.kept.clear();
        self.state =
            if matches!(self.state, State::Asked | State::Stale) { State::Stale } else { State::Unknown };
        self.ask_at = Some(now + (QUIET * (1 << self.tries.min(6))).min(LONGEST));
    }

    /// When to look again.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.ask_at.filter(|_| matches!(self.state, State::Unknown))
    }

    /// True, and then not again: ask now.
    pub fn ask(&mut self, now: Instant) -> bool {
        let due = self.due().is_some_and(|t| t <= now);
        if due {
            self.state = State::Asked;
            self.ask_at = None;
        }
        due
    }

    /// The question did not reach anybody.
    pub fn not_asked(&mut self, now: Instant) {
        self.state = State::Unknown;
        self.tries = self.tries.saturating_add(1);
        self.unsettled(now);
    }

    /// A piece came. False: it may not.
    pub fn piece(&mut self, piece: Piece, fds: Vec<OwnedFd>) -> bool {
        match self.state {
            State::Asked if self.kept.len() < MAX_PIECES => {
                self.kept.push((piece, fds));
                true
            }
            State::Stale => true,
            _ => false,
        }
    }

    /// The answer is complete. False: nobody asked.
    pub fn answered(&mut self, whole: bool, now: Instant) -> bool {
        match self.state {
            State::Asked if whole => {
                self.state = State::Whole;
                self.tries = 0;
            }
            State::Asked => {
                // No connection, or one in the middle of a word: the next one is announced.
                self.kept.clear();
                self.state = State::Unknown;
            }
            State::Stale => {
                self.state = State::Unknown;
                self.tries = self.tries.saturating_add(1);
                self.unsettled(now);
            }
            State::Unknown | State::Whole => return false,
        }
        true
    }

    /// What the next dataplane inherits.
    #[must_use]
    pub fn whole(&self) -> Option<&Left> {
        (self.state == State::Whole).then_some(&self.kept)
    }

    /// Nobody is to inherit: the peer sees the end of its connection.
    pub fn drop_all(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::guest::Layout;
    use std::os::unix::net::UnixStream;

    fn piece() -> Piece {
        Piece::Region(Layout { gpa: 0, uva: 0, len: 1, offset: 0 })
    }

    fn asked(e: &mut Estate, now: Instant) {
        e.unsettled(now);
        assert!(!e.ask(now), "the peer is not yet quiet");
        assert!(e.ask(now + LONGEST));
        assert!(!e.ask(now + LONGEST), "once");
    }

    #[test]
    fn what_was_asked_for_is_kept_until_the_peer_talks() {
        let (now, mut e) = (Instant::now(), Estate::default());
        asked(&mut e, now);
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(e.piece(piece(), vec![theirs.into()]));
        assert!(e.whole().is_none(), "not yet all");
        assert!(e.answered(true, now));
        assert_eq!(e.whole().unwrap().len(), 1);
        assert!(e.due().is_none());
        e.unsettled(now);
        assert!(e.whole().is_none() && e.due().is_some());
        let mut end = [0];
        assert_eq!(std::io::Read::read(&mut &ours, &mut end).unwrap(), 0, "what is not kept is closed");
    }

    #[test]
    fn what_nobody_asked_for_is_refused() {
        let (now, mut e) = (Instant::now(), Estate::default());
        assert!(!e.piece(piece(), Vec::new()));
        assert!(!e.answered(true, now));
        asked(&mut e, now);
        for _ in 0..MAX_PIECES {
            assert!(e.piece(piece(), Vec::new()));
        }
        assert!(!e.piece(piece(), Vec::new()), "too many");
    }

    #[test]
    fn an_answer_that_the_peer_interrupts_is_asked_for_again_later_and_later() {
        let (now, mut e) = (Instant::now(), Estate::default());
        asked(&mut e, now);
        let mut last = Duration::ZERO;
        for _ in 0..10 {
            e.unsettled(now);
            assert!(e.piece(piece(), Vec::new()), "it was sent before the peer talked");
            assert!(e.answered(true, now) && e.whole().is_none());
            let wait = e.due().unwrap() - now;
            assert!(wait >= last && wait <= LONGEST);
            last = wait;
            assert!(e.ask(now + LONGEST));
        }
        assert_eq!(last, LONGEST);
        assert!(e.answered(false, now) && e.whole().is_none() && e.due().is_none());
    }
}
