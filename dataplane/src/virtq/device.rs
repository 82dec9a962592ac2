//! The device side of a ring of either format: chains fetched many at a time, completed in ring order, published once.
//!
//! Trust: none in the driver. Promise: bounded work for each chain; a chain that breaks a rule is told apart from a
//! ring that does: the one is completed with nothing written, the other is not served any more. Fetched chains can be
//! put back ([`Device::unfetch`]) as if they had never been seen. The format is asked once for each call, and a call is
//! for many chains.
#![forbid(unsafe_code)]

use std::sync::Arc;

pub use super::chain::{Chain, Chains, MAX_BYTES, MAX_SEGS};
use super::packed::{self, Packed};
use super::split::Split;
use super::terms::Terms;
use crate::mem::guest::GuestMemory;
use crate::mem::packed::PackedRing;
use crate::mem::sigbus;
use crate::mem::split::{RingAddr, SplitRing};

/// What both formats keep.
#[derive(Debug)]
pub(super) struct State {
    /// The region of guest memory that the last buffer lay in.
    pub(super) hint: usize,
    pub(super) event_idx: bool,
    pub(super) indirect: bool,
    /// The driver broke the ring: nothing more is read from it.
    pub(super) stopped: bool,
    /// Places of chains that were fetched and neither completed nor put back.
    pub(super) open: u16,
    /// Kicks are asked for.
    armed: bool,
    seen_hits: u32,
}

/// The ring itself, in its format.
#[derive(Debug)]
enum Side {
    Split(Split),
    Packed(Packed),
}

/// Does the same with either format.
macro_rules! either {
    ($side:expr, $s:pat => $do:expr) => {
        match $side {
            Side::Split($s) => $do,
            Side::Packed($s) => $do,
        }
    };
}

/// The device side of one ring.
#[derive(Debug)]
pub struct Device {
    state: State,
    side: Side,
}

/// Where the device of a ring had come to that was stopped without being asked, at whatever moment: the position from
/// which another goes on (the base that vhost-user speaks of; of a packed ring the lower 16 bits). None: there is no such
/// ring, or it makes no sense. Only true of rings that a [`Device`] served: all that it completes, it completes in order
/// and at once.
#[must_use]
pub fn recover(memory: &Arc<GuestMemory>, size: u16, at: RingAddr, packed: bool) -> Option<u16> {
    if packed {
        return packed::recover(&PackedRing::new(memory.clone(), size, at)?).map(|p| p.bits());
    }
    Some(SplitRing::new(memory.clone(), size, at)?.used_idx())
}

impl Device {
    /// Serves the ring of `size` places at `at` from position `base` on. None: it does not lie in the memory as it
    /// should.
    #[must_use]
    pub fn new(memory: &Arc<GuestMemory>, size: u16, at: RingAddr, base: u16, terms: &Terms) -> Option<Self> {
        let state = State {
            hint: 0,
            event_idx: terms.event_idx,
            indirect: terms.indirect,
            stopped: false,
            open: 0,
            armed: true,
            seen_hits: sigbus::hits(),
        };
        let side = if terms.packed {
            Side::Packed(Packed::new(PackedRing::new(memory.clone(), size, at)?, base)?)
        } else {
            Side::Split(Split::new(SplitRing::new(memory.clone(), size, at)?, base))
        };
        let mut d = Self { state, side };
        d.arm();
        Some(d)
    }

    /// The memory that chains lie in.
    #[must_use]
    #[inline]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        either!(&self.side, s => s.ring.memory())
    }

    /// Places of the ring.
    #[must_use]
    #[inline]
    pub fn size(&self) -> u16 {
        either!(&self.side, s => s.ring.size())
    }

    /// The position of the next chain: where another device would go on.
    #[must_use]
    pub fn base(&self) -> u16 {
        either!(&self.side, s => s.base())
    }

    /// The driver broke the ring, or the memory went away: it is not served any more.
    #[must_use]
    #[inline]
    pub fn stopped(&self) -> bool {
        self.state.stopped
    }

    /// Looks whether the memory was cut short since the last call, and stops the ring if so.
    #[inline]
    pub fn lost_memory(&mut self) -> bool {
        let hits = sigbus::hits();
        if hits == self.state.seen_hits {
            return false;
        }
        self.state.seen_hits = hits;
        self.state.stopped |= self.memory().broken();
        self.state.stopped
    }

    /// A chain is available.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.state.stopped && either!(&self.side, s => s.has_work())
    }

    /// Appends up to `most` of the next chains to `into`; says how many.
    #[inline]
    pub fn fetch(&mut self, into: &mut Chains, most: usize) -> usize {
        if self.state.stopped {
            return 0;
        }
        let before = into.len();
        let most = u16::try_from(most).unwrap_or(u16::MAX);
        either!(&mut self.side, s => s.fetch(&mut self.state, into, most));
        into.len() - before
    }

    /// Puts the chains fetched last, and not completed, back.
    #[inline]
    pub fn unfetch(&mut self, chains: &[Chain]) {
        either!(&mut self.side, s => s.unfetch(&mut self.state, chains));
    }

    /// Completes the chains fetched first, which the driver sees at once. True: it wants to be interrupted.
    #[inline]
    pub fn complete(&mut self, done: &[Chain]) -> bool {
        if done.is_empty() || self.state.stopped {
            return false;
        }
        self.hush();
        either!(&mut self.side, s => s.complete(&mut self.state, done))
    }

    /// Busy: kicks would only disturb.
    #[inline]
    pub fn hush(&mut self) {
        if std::mem::take(&mut self.state.armed) {
            match &mut self.side {
                Side::Split(s) => s.hush(&self.state),
                Side::Packed(s) => s.hush(),
            }
        }
    }

    /// About to sleep: asks for a kick when chains beyond the fetched ones become available. True: there are some
    /// already, and no kick may come for them.
    pub fn arm(&mut self) -> bool {
        if self.state.stopped {
            return false;
        }
        self.state.armed = true;
        either!(&mut self.side, s => s.arm(&self.state));
        self.has_work()
    }
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
