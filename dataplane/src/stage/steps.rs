//! What a stage does while some filter steps in: it takes frames out of the way, and puts in what its filters give.
//!
//! Towards the lane, one source gives at a time: the port, or a filter with frames to put in; what was not taken of it
//! comes again before any other's. Towards the port, what filters put in is **pumped**, whenever there is an occasion; what
//! the port does not take then stays with its filter, and until it is gone nothing else goes to the port, so that order is
//! kept. The lane is told that it is stuck ([`Port::is_stuck`]), and has the port say when it takes frames again.
//!
//! Frames that are pumped did not pass the lane: length, and work that the port cannot do, are seen to here.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::RawFd;

use super::{Link, Stage, Way};
use crate::filter::{self, Filter as Checks};
use crate::frame::Batch;
use crate::offload::{self, At};
use crate::port::{Change, Port};
use crate::stats::Reason;

/// Batches that are pumped on one occasion.
const AT_ONCE: usize = 8;

/// What a stage has beside its filters while one steps in.
#[derive(Debug)]
pub(super) struct Steps {
    /// The filter whose frames the lane has; none: the port's.
    pub(super) giving: Option<u64>,
    /// A filter that need not be first has had its turn.
    had_turn: bool,
    /// What a filter puts in stays there: the port takes nothing now.
    pub(super) stuck: bool,
    /// And not because the port takes nothing, but so that others have their turn.
    paused: bool,
    /// And not because the port takes nothing, but because a filter on the way does not.
    behind: bool,
    /// What comes again of whoever gave last was left by a filter, not by the lane: others may go before it.
    pub(super) left: bool,
    /// The port did not take all that the lane offered: that comes again first.
    pub(super) lane_waits: bool,
    /// Frames can pass to and from the lane's other end.
    pub(super) peer_up: bool,
    batch: Batch,
    scratch: Batch,
    at: At,
    /// Whose first frame `at` is about.
    at_of: u64,
}

impl Default for Steps {
    fn default() -> Self {
        Self {
            giving: None,
            had_turn: false,
            stuck: false,
            paused: false,
            behind: false,
            left: false,
            lane_waits: false,
            // Until it is told: a frame too many waits rather than is lost.
            peer_up: true,
            batch: Batch::new(),
            scratch: Batch::new(),
            at: At::default(),
            at_of: 0,
        }
    }
}

impl Stage {
    /// The filter whose frames the lane has.
    pub(super) fn giving(&mut self) -> Option<&mut Link> {
        let key = self.steps.as_ref()?.giving?;
        self.links.iter_mut().find(|l| l.key == key)
    }

    /// Who gives next: a filter's place, or none for the port.
    fn source(&mut self) -> Option<usize> {
        let of_lane = !self.steps.as_ref().is_some_and(|s| s.left);
        match self.giving().map(|l| (l.key, l.again)) {
            Some((key, 1..)) if of_lane => return self.links.iter().position(|l| l.key == key),
            None if of_lane && self.again > 0 => return None,
            _ => {}
        }
        let had_turn = self.steps.as_ref().is_some_and(|s| s.had_turn);
        self.givers().find(|(_, l)| l.filter.is_first() || !had_turn).map(|(at, _)| at)
    }

    /// Filters with frames for the lane that those behind them let come, the last one first.
    fn givers(&self) -> impl Iterator<Item = (usize, &Link)> {
        let mut open = true;
        let mut is_open = move |l: &Link| {
            let was = open;
            open &= !l.filter.is_closed(Way::Tx);
            was
        };
        let links = self.links.iter().enumerate().rev();
        links.take_while(move |(_, l)| is_open(l)).filter(|(_, l)| l.filter.waiting(Way::Tx) > 0)
    }

    /// Gives frames to the lane.
    pub(super) fn give(&mut self, b: &mut Batch) -> io::Result<()> {
        self.pump()?;
        match self.source() {
            Some(at) => self.give_of(at, b),
            None => return self.give_own(b),
        }
        Ok(())
    }

    fn give_of(&mut self, at: usize, b: &mut Batch) {
        let Some(link) = self.links.get_mut(at) else { return };
        let again = std::mem::take(&mut link.again);
        link.filter.give(Way::Tx, b);
        let (key, first) = (link.key, link.filter.is_first());
        if let Some(s) = &mut self.steps {
            (s.giving, s.had_turn, s.left) = (Some(key), !first, false);
        }
        let all = b.len();
        if let Some(taken) = self.show(at + 1, b, again) {
            if let Some(link) = self.links.get_mut(at) {
                link.filter.gone(Way::Tx, taken);
                link.again = all.saturating_sub(taken);
            }
            self.steps.iter_mut().for_each(|s| s.left = true);
            b.clear();
        }
    }

    fn give_own(&mut self, b: &mut Batch) -> io::Result<()> {
        if let Some(s) = &mut self.steps {
            (s.giving, s.had_turn) = (None, false);
        }
        if self.links.iter().any(|l| l.filter.is_closed(Way::Tx)) {
            return Ok(());
        }
        let again = std::mem::take(&mut self.again);
        self.inner.recv(b)?;
        if b.is_empty() {
            return Ok(());
        }
        let all = b.len();
        if let Some(taken) = self.show(0, b, again) {
            if self.rewinds {
                self.inner.release(b, taken);
                self.again = all.saturating_sub(taken);
                self.steps.iter_mut().for_each(|s| s.left = true);
            } else {
                self.inner.release(b, all);
                self.inner.stats_mut().drop_n(Reason::Full, all.saturating_sub(taken) as u64);
            }
            b.clear();
        }
        Ok(())
    }

    /// Shows frames on their way to the lane to the filters from place `from` on. How many one of them took; none: they
    /// have passed.
    fn show(&mut self, from: usize, b: &Batch, again: usize) -> Option<usize> {
        self.links.iter_mut().skip(from).find_map(|l| l.filter.given(b, again))
    }

    /// Takes frames from the lane.
    pub(super) fn take_in(&mut self, b: &Batch) -> io::Result<usize> {
        self.pump()?;
        if self.is_stuck() {
            return Ok(0);
        }
        let (from, end) = (self.links.len(), b.len());
        let (passed, taken) = self.offer(from, b);
        let mut waited = false;
        let result = match taken {
            Some(n) => Ok(n),
            None => {
                let sent = self.inner.send(b);
                if let (Some(s), Ok(n)) = (&mut self.steps, &sent) {
                    waited = std::mem::replace(&mut s.lane_waits, *n < end);
                }
                sent
            }
        };
        let n = result.as_ref().map_or(0, |n| *n);
        self.tell(passed..from, b, n);
        if result? == end && waited {
            // What waited behind it.
            self.pump()?;
        }
        Ok(n)
    }

    /// Offers frames on their way to the port to the filters below place `from`. The first of those that let them pass,
    /// and how many the one after them took; none: they have passed all.
    fn offer(&mut self, from: usize, b: &Batch) -> (usize, Option<usize>) {
        for at in (0..from).rev() {
            let Some(l) = self.links.get_mut(at) else { break };
            let taken = if l.filter.is_closed(Way::Rx) { Some(0) } else { l.filter.offered(b) };
            if taken.is_some() {
                return (at + 1, taken);
            }
        }
        (0, None)
    }

    /// Tells those that let frames pass what became of them.
    fn tell(&mut self, who: std::ops::Range<usize>, b: &Batch, taken: usize) {
        let links = self.links.get_mut(who).unwrap_or_default();
        links.iter_mut().rev().for_each(|l| l.filter.took(b, taken));
    }

    /// Sends the port what filters put in, as far as it takes it.
    fn pump(&mut self) -> io::Result<()> {
        if !self.links.iter().any(|l| l.filter.waiting(Way::Rx) > 0) {
            if let Some(s) = &mut self.steps {
                s.stuck = false;
            }
            return Ok(());
        }
        let Some(mut s) = self.steps.take() else { return Ok(()) };
        let done = if s.lane_waits { Ok(()) } else { self.pump_with(&mut s) };
        self.steps = Some(s);
        done
    }

    fn pump_with(&mut self, s: &mut Steps) -> io::Result<()> {
        (s.stuck, s.paused, s.behind) = (false, false, false);
        let mut batches = 0;
        for at in 0..self.links.len() {
            while self.links.get(at).is_some_and(|l| l.filter.waiting(Way::Rx) > 0) {
                batches += 1;
                if batches > AT_ONCE && s.peer_up {
                    // Others have their turn; then it goes on as after any wait.
                    (s.stuck, s.paused) = (true, true);
                    return Ok(());
                }
                s.batch.clear();
                if let Some(l) = self.links.get_mut(at) {
                    l.filter.give(Way::Rx, &mut s.batch);
                }
                let all = s.batch.len();
                let (passed, taken) = self.offer(at, &s.batch);
                let sent = match taken {
                    Some(n) => Ok(n),
                    None => {
                        let key = self.links.get(at).map_or(0, |l| l.key);
                        if std::mem::replace(&mut s.at_of, key) != key {
                            s.at = At::default();
                        }
                        self.deliver(s)
                    }
                };
                let n = *sent.as_ref().unwrap_or(&all);
                self.tell(passed..at, &s.batch, if sent.is_ok() { n } else { 0 });
                let mut gone = n;
                if n < all && !s.peer_up {
                    // Nobody would say when it takes them.
                    self.inner.stats_mut().drop_n(Reason::Full, (all - n) as u64);
                    s.at = At::default();
                    gone = all;
                }
                if let Some(l) = self.links.get_mut(at) {
                    l.filter.gone(Way::Rx, gone);
                }
                sent?;
                if gone < all {
                    (s.stuck, s.behind) = (true, taken.is_some());
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Sends a batch that no lane has seen to the port; says how many went or were dropped.
    fn deliver(&mut self, s: &mut Steps) -> io::Result<usize> {
        let all = s.batch.len();
        let to = self.inner.traits();
        if !to.up {
            self.inner.stats_mut().drop_n(Reason::PeerDown, all as u64);
            return Ok(all);
        }
        let found = Checks::default().judge_again(&mut s.batch, &to);
        let taken = if found.work {
            while s.at.frame < all {
                s.scratch.clear();
                let next = offload::finish(&s.batch, s.at, to.takes, &mut s.scratch);
                let n = if s.scratch.is_empty() { 0 } else { self.inner.send(&s.scratch)? };
                if let Some(f) = s.scratch.frames().get(n) {
                    s.at = At::of(f);
                    break;
                }
                s.at = next;
            }
            std::mem::take(&mut s.at.frame).min(all)
        } else {
            self.inner.send(&s.batch)?
        };
        if taken == all {
            s.at = At::default();
        }
        if found.drops {
            filter::count(s.batch.frames().get(..taken).unwrap_or_default(), self.inner.stats_mut());
        }
        Ok(taken)
    }

    /// About to sleep until there are frames for the lane.
    pub(super) fn arm_output(&mut self) -> bool {
        let stuck = self.is_stuck() || self.steps.as_ref().is_some_and(|s| s.lane_waits);
        let pumps = !stuck && self.links.iter().any(|l| l.filter.waiting(Way::Rx) > 0);
        if pumps || self.givers().next().is_some() {
            return true;
        }
        !self.links.iter().any(|l| l.filter.is_closed(Way::Tx)) && self.inner.arm_gives()
    }

    /// About to sleep until the port takes frames.
    pub(super) fn arm_input(&mut self) -> bool {
        let behind = self.steps.as_ref().is_some_and(|s| s.behind);
        if self.links.iter().any(|l| l.filter.is_closed(Way::Rx)) && (behind || !self.is_stuck()) {
            // Its own descriptor wakes us.
            return false;
        }
        let paused = self.steps.as_ref().is_some_and(|s| s.stuck && s.paused);
        let takes = paused || self.inner.arm_takes();
        // What died is found out by the next turn.
        if takes && self.is_stuck() && self.pump().is_err() {
            return true;
        }
        takes
    }

    /// The port may take frames again.
    pub(super) fn resume(&mut self) -> io::Result<()> {
        if self.is_stuck() { self.pump() } else { Ok(()) }
    }

    /// A descriptor is readable; none: it is no filter's.
    pub(super) fn own_event(&mut self, fd: RawFd) -> io::Result<Option<Change>> {
        if self.steps.is_none() || !self.links.iter_mut().any(|l| l.filter.event(fd)) {
            return Ok(None);
        }
        self.pump()?;
        let before = self.links.len();
        self.links.retain_mut(|l| !(l.leaves && l.filter.leave()));
        let gone = self.links.len() < before;
        if gone {
            self.settle();
        }
        Ok(Some(Change { rewire: gone, ..Change::default() }))
    }
}
