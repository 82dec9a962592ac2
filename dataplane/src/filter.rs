//! What a lane checks of every frame: length, and the source address that a device is locked to.
//!
//! Only heads are looked at; what is sent is the head that was looked at.
#![forbid(unsafe_code)]

use netreeve_shared::mac::Mac;

use crate::frame::{Batch, Frame};
use crate::offload;
use crate::port::{Offloads, Traits};
use crate::stats::{Reason, Stats};

/// The checks of one direction.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    /// Frames must come from this address.
    pub lock_mac: Option<Mac>,
}

/// What was found in a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Some frame needs work in software before the taker can take it.
    pub work: bool,
    /// Some frame is dropped: to be counted by [`count`] when it counts as taken.
    pub drops: bool,
}

/// Counts the drops among frames that count as taken.
#[cold]
pub fn count(taken: &[Frame], stats: &mut Stats) {
    taken.iter().filter_map(|f| f.why).for_each(|why| stats.drop(why));
}

impl Filter {
    /// [`Filter::judge`], of a batch that waited while its taker changed.
    #[cold]
    #[inline(never)]
    pub fn judge_again(&self, b: &mut Batch, to: &Traits) -> Judgement {
        self.judge(b, to)
    }

    /// Marks the frames of a batch that may not go on to a port with traits `to`.
    #[inline(always)]
    pub fn judge(&self, b: &mut Batch, to: &Traits) -> Judgement {
        let mut j = Judgement::default();
        for f in b.frames_mut() {
            let why = if f.len < to.min_frame {
                Some(Reason::Runt)
            } else if f.vnet.is_plain() {
                (f.len > to.max_frame).then_some(Reason::Oversize)
            } else {
                let asks = offload::asked(&f.vnet);
                j.work |= !asks.within(to.takes);
                unfit(f, to, asks)
            };
            let why = why.or_else(|| self.source(f.head()));
            // What was taken out of the way by a stage is nobody's any more.
            if why.is_some() && !f.dropped {
                f.dropped = true;
                f.why = why;
                j.drops = true;
            }
        }
        j
    }

    #[inline]
    fn source(&self, head: &[u8]) -> Option<Reason> {
        let lock = self.lock_mac?;
        (head.get(6..12) != Some(lock.0.as_slice())).then_some(Reason::SourceMac)
    }
}

/// Why a frame with work left on it cannot go on, if it cannot.
fn unfit(f: &Frame, to: &Traits, asks: Offloads) -> Option<Reason> {
    if asks.within(to.takes) {
        return (f.vnet.gso() == 0 && f.len > to.max_frame).then_some(Reason::Oversize);
    }
    if !offload::feasible(f, to.takes) {
        return Some(Reason::Offload);
    }
    (f.vnet.gso() == 0 && f.len > to.max_frame).then_some(Reason::Oversize)
}
