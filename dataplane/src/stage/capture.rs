//! A capture: copies frames into a spool, from which the supervisor writes them out.
//!
//! One [`Capture`] for each queue, so that workers share nothing. A batch has one time stamp, because it came as one. A
//! checksum that is still to be computed by whoever takes the frame is completed in the copy, and only there;
//! super-frames stay whole (a capture of what crossed the port, as on a Linux interface with offloads).
//!
//! Promise: never waits. A frame that finds no room in the spool is counted, and the next one that does says how many.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::record::{HEAD, Head};
use super::{Filter, Queue};
use crate::frame::{BATCH, Batch, Frame, MAX_FRAME};
use crate::mem::spool::Writer;
use crate::offload;

/// What is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// In which directions.
    pub queue: Queue,
    /// Most bytes that are kept of a frame.
    pub keep: u32,
    /// Frames are captured; else they pass unseen.
    pub on: bool,
}

/// A capture of one queue.
pub struct Capture {
    plan: Plan,
    spool: Writer,
    /// Frames lost since the last one that was not.
    lost: u32,
    /// How things stand after each of the frames that were offered and are not yet known to be taken.
    offered: [After; BATCH],
    n: usize,
}

/// How things stand if the port takes the frames up to here.
#[derive(Clone, Copy, Debug, Default)]
struct After {
    /// The spool's mark.
    mark: u64,
    /// Frames seen, and lost of those.
    seen: u64,
    lost: u64,
    /// Frames lost since the last one that was not.
    owed: u32,
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

impl Capture {
    /// Captures into one section of a spool.
    ///
    /// # Errors
    /// The kernel's, from mapping it.
    pub fn new(plan: Plan, memory: &OwnedFd, section: u16, bell: Arc<OwnedFd>) -> std::io::Result<Self> {
        let spool = Writer::new(memory, section, bell)?;
        let plan = Plan { keep: plan.keep.clamp(1, MAX_FRAME), ..plan };
        Ok(Self { plan, spool, lost: 0, offered: [After::default(); BATCH], n: 0 })
    }

    /// Copies one frame. False: there is no room.
    fn copy(&mut self, b: &Batch, f: &Frame, time: u64, rx: bool, lost: u32) -> bool {
        let most = f.len.min(self.plan.keep);
        let Some(record) = self.spool.reserve(HEAD + most) else { return false };
        let to = record.skip(HEAD);
        let mut kept = u32::try_from(to.copy_in(f.head())).unwrap_or(0);
        for seg in b.body(f) {
            if kept == most {
                break;
            }
            kept += to.skip(kept).copy_from(seg);
        }
        if f.vnet.needs_csum()
            && let Some((at, sum)) = offload::checksum(b, f)
        {
            to.take(kept).skip(u32::try_from(at).unwrap_or(u32::MAX)).copy_in(&sum);
        }
        record.copy_in(&Head { time, len: f.len, lost, kept, rx }.bytes());
        true
    }
}

impl Filter for Capture {
    fn given(&mut self, b: &Batch, again: usize) -> Option<usize> {
        if !(self.plan.on && self.plan.queue.tx()) || b.len() <= again {
            return None;
        }
        let (time, mut seen, mut lost) = (now(), 0, 0);
        for f in b.frames().iter().skip(again) {
            seen += 1;
            if self.copy(b, f, time, false, self.lost) {
                self.lost = 0;
            } else {
                self.lost = self.lost.saturating_add(1);
                lost += 1;
            }
        }
        self.spool.publish(self.spool.mark(), seen, lost);
        None
    }

    fn offered(&mut self, b: &Batch) -> Option<usize> {
        self.n = 0;
        if !(self.plan.on && self.plan.queue.rx()) {
            return None;
        }
        let time = now();
        let mut after = After { mark: self.spool.mark(), owed: self.lost, ..After::default() };
        for f in b.frames() {
            if !f.dropped {
                after.seen += 1;
                if self.copy(b, f, time, true, after.owed) {
                    after.owed = 0;
                } else {
                    after.owed = after.owed.saturating_add(1);
                    after.lost += 1;
                }
                after.mark = self.spool.mark();
            }
            if let Some(o) = self.offered.get_mut(self.n) {
                *o = after;
                self.n += 1;
            }
        }
        None
    }

    fn took(&mut self, _: &Batch, taken: usize) {
        let last = taken.min(self.n).checked_sub(1).and_then(|i| self.offered.get(i)).copied();
        self.n = 0;
        match last {
            Some(after) => {
                self.lost = after.owed;
                self.spool.publish(after.mark, after.seen, after.lost);
            }
            None => self.spool.forget(),
        }
    }

    fn set_on(&mut self, on: bool) {
        self.plan.on = on;
    }
}
