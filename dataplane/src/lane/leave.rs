//! What becomes of frames that wait when an end of the lane goes.
//!
//! Promise: each is given back, sent by a taker that has begun it, or lost and counted: one of these, and once.
#![forbid(unsafe_code)]

use super::Path;
use crate::filter;
use crate::offload::At;
use crate::port::Port;
use crate::stats::Reason;

impl Path {
    /// An end gets another port.
    pub(super) fn forget(&mut self, from: &mut dyn Port) {
        self.let_go(from, true);
        self.batch.clear();
        self.scratch.clear();
    }

    /// The taker goes on with the first frame that waits, and finishes it without its giver.
    pub(super) fn first_goes(&mut self) {
        if self.joined {
            let first = self.scratch.frames().first();
            first.into_iter().for_each(|f| self.joiner.sent(&mut self.batch, f));
        } else if self.held && !self.found.work {
            self.batch.frames_mut().first_mut().into_iter().for_each(|f| f.dropped = true);
        }
    }

    /// What waits is given back to a giver that takes it back, if it is still the one that gave it and nothing of it
    /// went; else it is lost and counted.
    pub(super) fn let_go(&mut self, from: &mut dyn Port, same: bool) {
        if std::mem::take(&mut self.held) {
            let frames = self.batch.frames();
            // What went joined is marked so.
            let went = frames.iter().any(|f| f.dropped && f.why.is_none());
            let back = same && self.gives.rewinds && !went;
            if !back {
                filter::count(frames, from.stats_mut());
                let lost = frames.iter().filter(|f| !f.dropped).count();
                from.stats_mut().drop_n(Reason::PeerDown, lost as u64);
            }
            from.release(&self.batch, if back { 0 } else { frames.len() });
        }
        (self.joined, self.partly, self.at) = (false, false, At::default());
    }
}
