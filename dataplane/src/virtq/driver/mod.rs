//! The driver side of a ring of either format: buffers lent to a device and taken back.
//!
//! For back ends that we attach to, for benches, and as the other party of the device side's tests. Trust: none in the
//! device; what it returns is checked against what was lent. Promise: a buffer is never lent twice; taking costs
//! bounded work whatever the device wrote.
#![forbid(unsafe_code)]

mod packed;
mod split;

use std::sync::Arc;

use self::packed::PackedDriver;
use self::split::SplitDriver;
use super::terms::Terms;
use crate::mem::GuestMemory;
use crate::mem::packed::PackedRing;
use crate::mem::split::{RingAddr, SplitRing};

/// One buffer of a chain, by guest physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buf {
    /// Guest physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// The device writes it.
    pub write: bool,
}

/// The driver side of one ring.
#[derive(Debug)]
pub struct Driver(Side);

#[derive(Debug)]
enum Side {
    Split(SplitDriver),
    Packed(PackedDriver),
}

macro_rules! either {
    ($side:expr, $s:pat => $do:expr) => {
        match $side {
            Side::Split($s) => $do,
            Side::Packed($s) => $do,
        }
    };
}

impl Driver {
    /// Takes charge of the ring of `size` places at `at`, which is fresh (all zero). None: it does not lie in the memory
    /// as it should.
    #[must_use]
    pub fn new(memory: &Arc<GuestMemory>, size: u16, at: RingAddr, terms: &Terms) -> Option<Self> {
        Some(Self(if terms.packed {
            Side::Packed(PackedDriver::new(PackedRing::new(memory.clone(), size, at)?, terms.event_idx))
        } else {
            Side::Split(SplitDriver::new(SplitRing::new(memory.clone(), size, at)?, terms.event_idx))
        }))
    }

    /// Where a fresh ring begins, as vhost-user says it: in a packed ring's first round the wrap counters are set.
    #[must_use]
    pub fn base(&self) -> u32 {
        if matches!(self.0, Side::Packed(_)) { 0x8000_8000 } else { 0 }
    }

    /// Descriptors that are free.
    #[must_use]
    #[inline]
    pub fn free(&self) -> usize {
        either!(&self.0, s => usize::from(s.free))
    }

    /// The ring, if it is a split one.
    #[must_use]
    pub fn split(&self) -> Option<&SplitRing> {
        if let Side::Split(s) = &self.0 { Some(&s.ring) } else { None }
    }

    /// The ring, if it is a packed one.
    #[must_use]
    pub fn packed(&self) -> Option<&PackedRing> {
        if let Side::Packed(s) = &self.0 { Some(&s.ring) } else { None }
    }

    /// Lends a chain; its name, or none if there are too few descriptors. A device that sleeps sees it after
    /// [`Driver::publish`], one that polls perhaps before.
    #[inline]
    pub fn add(&mut self, bufs: &[Buf]) -> Option<u16> {
        either!(&mut self.0, s => s.add(bufs))
    }

    /// Shows the device what was lent. True: it wants a kick.
    #[inline]
    pub fn publish(&mut self) -> bool {
        either!(&mut self.0, s => s.publish())
    }

    /// Takes one chain back: its name and the bytes written. None: nothing is back. A chain that was not lent is passed
    /// over in a split ring; in a packed one the place of the next is then unknown, and nothing more comes back.
    #[inline]
    pub fn take(&mut self) -> Option<(u16, u32)> {
        either!(&mut self.0, s => s.take())
    }

    /// Asks for an interrupt at the next completion. True: some came already, and no interrupt may.
    pub fn arm(&mut self) -> bool {
        either!(&mut self.0, s => s.arm())
    }

    /// Asks for no interrupts: this driver polls.
    pub fn hush(&mut self) {
        either!(&mut self.0, s => s.hush());
    }
}

#[cfg(test)]
#[path = "../driver_tests.rs"]
mod tests;
