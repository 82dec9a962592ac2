//! QEMU's `filter-buffer`: frames are held, and let go when the interval is over, all at once and in order.
//!
//! One [`Hold`] for each queue, each with a timer of its own that the supervisor has set to go off again and again: the
//! dataplane only reads it. Frames that are held do not pass the lane's checks before they are let go.
//!
//! Promise: bounded; while there is no room, what comes waits where it is (of a port that takes nothing back, what of a last
//! batch finds no room is dropped and counted). What is held goes on when the filter is turned
//! off or taken away, before anything that comes later.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use super::aside::hush;
use super::{Filter, Queue as Which, Way};
use crate::frame::{BATCH, Batch};
use crate::port::hub::queue::{FRAMES, Queue};
use crate::port::{Interest, Watch};

/// What is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Frames that go which way.
    pub queue: Which,
    /// It is on.
    pub on: bool,
}

/// What is held of one way.
#[derive(Debug)]
struct Held {
    queue: Queue,
    /// So many, from the first, may go.
    free: usize,
}

impl Held {
    fn new() -> io::Result<Self> {
        Ok(Self { queue: Queue::new()?, free: 0 })
    }

    /// Takes frames, as many as there is room for.
    fn take(&mut self, b: &Batch) -> usize {
        let fits = b.frames().iter().position(|f| !f.dropped && !self.queue.push(f, b.body(f)));
        fits.unwrap_or(b.len())
    }
}

/// A buffer of one queue.
#[derive(Debug)]
pub struct Hold {
    on: bool,
    tx: Option<Held>,
    rx: Option<Held>,
    timer: OwnedFd,
}

impl Hold {
    /// One whose time `timer` tells.
    ///
    /// # Errors
    /// No memory.
    pub fn new(plan: Plan, timer: OwnedFd) -> io::Result<Self> {
        let held = |wanted: bool| if wanted { Held::new().map(Some) } else { Ok(None) };
        Ok(Self { on: plan.on, tx: held(plan.queue.tx())?, rx: held(plan.queue.rx())?, timer })
    }

    fn held(&self, way: Way) -> Option<&Held> {
        match way {
            Way::Tx => self.tx.as_ref(),
            Way::Rx => self.rx.as_ref(),
        }
    }

    fn held_mut(&mut self, way: Way) -> Option<&mut Held> {
        match way {
            Way::Tx => self.tx.as_mut(),
            Way::Rx => self.rx.as_mut(),
        }
    }

    fn take(&mut self, way: Way, b: &Batch) -> Option<usize> {
        if !self.on {
            return None;
        }
        self.held_mut(way).map(|h| h.take(b))
    }
}

impl Filter for Hold {
    fn given(&mut self, b: &Batch, _: usize) -> Option<usize> {
        self.take(Way::Tx, b)
    }

    fn offered(&mut self, b: &Batch) -> Option<usize> {
        self.take(Way::Rx, b)
    }

    fn took(&mut self, _: &Batch, _: usize) {}

    fn steps_in(&self) -> bool {
        true
    }

    fn watch(&self, w: &mut Watch) {
        w.add(self.timer.as_raw_fd(), Interest::Gives);
        w.add(self.timer.as_raw_fd(), Interest::Room);
    }

    fn event(&mut self, fd: RawFd) -> bool {
        if fd != self.timer.as_raw_fd() {
            return false;
        }
        hush(&self.timer);
        for h in [&mut self.tx, &mut self.rx].into_iter().flatten() {
            h.free = h.queue.len();
        }
        true
    }

    fn waiting(&self, way: Way) -> usize {
        self.held(way).map_or(0, |h| if self.on { h.free } else { h.queue.len() })
    }

    fn give(&mut self, way: Way, b: &mut Batch) {
        let most = self.waiting(way);
        if let Some(h) = self.held(way) {
            h.queue.give(b);
        }
        while b.len() > most {
            b.pop();
        }
    }

    fn gone(&mut self, way: Way, taken: usize) {
        if let Some(h) = self.held_mut(way) {
            h.queue.pop(taken);
            h.free = h.free.saturating_sub(taken);
        }
    }

    fn is_closed(&self, way: Way) -> bool {
        self.held(way).is_some_and(|h| match self.on {
            true => h.queue.len() + BATCH > FRAMES || !h.queue.is_roomy(),
            false => h.queue.len() > 0,
        })
    }

    fn is_first(&self) -> bool {
        true
    }

    fn set_on(&mut self, on: bool) {
        self.on = on;
        for h in [&mut self.tx, &mut self.rx].into_iter().flatten() {
            h.free = h.queue.len();
        }
    }

    fn leave(&mut self) -> bool {
        self.set_on(false);
        Way::BOTH.into_iter().all(|way| self.waiting(way) == 0)
    }
}
