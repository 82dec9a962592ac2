//! QEMU's `filter-mirror` and `filter-redirector`: frames go to another port, as copies or instead; and what comes from
//! another port goes on from here.
//!
//! One [`Divert`] for each queue. What comes in is put in at the first queue, as if the filter's port had sent it
//! (`queue=tx`), as if it were to receive it (`rx`), or both (`all`): that is what QEMU does.
//!
//! Promise: never waits. While nobody is at the port where frames go, a mirror drops and counts its copies, and a redirector
//! lets frames pass.
#![forbid(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::aside::{Handle, hush, lock};
use super::{Filter, Queue, Way};
use crate::frame::Batch;
use crate::port::{Interest, Watch};

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// To frames that go which way.
    pub queue: Queue,
    /// It is on.
    pub on: bool,
    /// Frames go there instead of copies.
    pub takes: bool,
    /// The slot of the port where they go.
    pub out: Option<u16>,
    /// The slot of the port from which frames come.
    pub from: Option<u16>,
}

/// A mirror or a redirector of one queue.
#[derive(Debug)]
pub struct Divert {
    plan: Plan,
    out: Option<Handle>,
    from: Option<(Handle, Arc<OwnedFd>)>,
}

impl Drop for Divert {
    fn drop(&mut self) {
        if let Some((from, _)) = &self.from {
            lock(from).end();
        }
    }
}

impl Divert {
    /// One that puts frames out at `out`, and puts in what comes from `from`, for which it is rung.
    ///
    /// # Errors
    /// No memory; what comes in is somebody else's.
    pub fn new(plan: Plan, out: Option<Handle>, from: Option<(Handle, OwnedFd)>) -> std::io::Result<Self> {
        let from = from.map(|(h, bell)| (h, Arc::new(bell)));
        if let Some((h, bell)) = &from {
            lock(h).begin(plan.queue, bell.clone())?;
        }
        Ok(Self { plan, out, from })
    }

    /// Puts the frames out that are for it, from the `skip`th up to the `end`th. True: they went there.
    fn put(&self, way: Way, b: &Batch, skip: usize, end: usize) -> bool {
        let Some(out) = self.out.as_ref().filter(|_| self.plan.on && self.plan.queue.has(way)) else {
            return false;
        };
        let mut out = lock(out);
        if self.plan.takes && !out.is_up() {
            return false;
        }
        out.put(b, b.frames().iter().take(end).skip(skip));
        true
    }
}

impl Filter for Divert {
    fn given(&mut self, b: &Batch, again: usize) -> Option<usize> {
        let all = b.len();
        // Copies were made of what came before; what is taken never comes again.
        let skip = if self.plan.takes { 0 } else { again };
        (self.put(Way::Tx, b, skip, all) && self.plan.takes).then_some(all)
    }

    fn offered(&mut self, b: &Batch) -> Option<usize> {
        let all = b.len();
        (self.plan.takes && self.put(Way::Rx, b, 0, all)).then_some(all)
    }

    fn took(&mut self, b: &Batch, taken: usize) {
        if !self.plan.takes && taken > 0 {
            self.put(Way::Rx, b, 0, taken);
        }
    }

    fn steps_in(&self) -> bool {
        self.plan.takes
    }

    fn watch(&self, w: &mut Watch) {
        if let Some((_, bell)) = &self.from {
            w.add(bell.as_raw_fd(), Interest::Gives);
            w.add(bell.as_raw_fd(), Interest::Room);
        }
    }

    fn event(&mut self, fd: RawFd) -> bool {
        let Some((_, bell)) = self.from.as_ref().filter(|(_, bell)| bell.as_raw_fd() == fd) else {
            return false;
        };
        hush(bell);
        true
    }

    fn waiting(&self, way: Way) -> usize {
        match &self.from {
            Some((from, _)) if self.plan.on => lock(from).came(way),
            _ => 0,
        }
    }

    fn give(&mut self, way: Way, b: &mut Batch) {
        if let Some((from, _)) = &self.from {
            lock(from).give(way, b);
        }
    }

    fn gone(&mut self, way: Way, taken: usize) {
        if let Some((from, _)) = &self.from {
            lock(from).gone(way, taken);
        }
    }

    fn set_on(&mut self, on: bool) {
        self.plan.on = on;
    }
}
