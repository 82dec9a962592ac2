//! The stage: what stands between a port and its lane while somebody looks on (a capture) or steps in (QEMU's filters).
//!
//! A [`Stage`] is a port around a port: it passes every call on, and shows what is given and what is taken to its
//! filters. It is put around a port when the first filter comes and taken away with the last one, so a port without
//! filters has no stage: no branch, no time stamp, no copy.
//!
//! What a filter sees is what crosses the port's own border: frames of a netdev that takes super-frames are
//! super-frames, those that were segmented or joined for it are as it got them, and what it did not take is not shown.
//! Frames in QEMU's words: **tx** is what the port sends into netreeve (it *gives* it), **rx** what it receives (*takes*).
//!
//! Trust: as the port's. Promise: a filter never makes the port wait; what it cannot do it counts.
#![forbid(unsafe_code)]

pub mod capture;
pub mod record;

use std::any::Any;
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use crate::frame::Batch;
use crate::port::absent::Absent;
use crate::port::{Change, FarEnd, Interest, Keep, Left, Offloads, Port, Traits, Watch};
use crate::stats::Stats;

/// Which frames a filter is for, in QEMU's words (`queue=`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Queue {
    /// Both.
    #[default]
    All,
    /// Those that the port receives.
    Rx,
    /// Those that the port sends.
    Tx,
}

impl Queue {
    /// Frames that the port receives are among them.
    #[must_use]
    pub fn rx(self) -> bool {
        self != Self::Tx
    }

    /// Frames that the port sends are among them.
    #[must_use]
    pub fn tx(self) -> bool {
        self != Self::Rx
    }
}

/// Looks on at one queue of a port.
pub trait Filter: Send {
    /// The port gave these frames. The first `again` were shown before and not taken.
    fn given(&mut self, b: &Batch, again: usize);

    /// These frames are about to be offered to the port.
    fn offered(&mut self, b: &Batch);

    /// The port took the first `taken` of what was offered last.
    fn took(&mut self, taken: usize);
}

/// A port with filters around it.
pub struct Stage {
    inner: Box<dyn Port>,
    /// With their numbers, from QEMU's head to its tail.
    filters: Vec<(u16, Box<dyn Filter>)>,
    /// So many frames were given and not taken: the port gives them again.
    again: usize,
    rewinds: bool,
}

/// Takes a port from its place, for a moment.
fn take(port: &mut Box<dyn Port>) -> Box<dyn Port> {
    std::mem::replace(port, Box::new(Absent::default()))
}

/// Puts a filter around a port, behind those that are there.
pub fn attach(port: &mut Box<dyn Port>, number: u16, filter: Box<dyn Filter>) {
    if stage(port.as_mut()).is_none() {
        let inner = take(port);
        let rewinds = inner.traits().rewinds;
        *port = Box::new(Stage { inner, filters: Vec::new(), again: 0, rewinds });
    }
    if let Some(s) = stage(port.as_mut()) {
        s.filters.push((number, filter));
    }
}

/// Takes a filter away; with the last one the stage goes. False: it is not there.
pub fn detach(port: &mut Box<dyn Port>, number: u16) -> bool {
    let Some(s) = stage(port.as_mut()) else { return false };
    let before = s.filters.len();
    s.filters.retain(|(n, _)| *n != number);
    let found = s.filters.len() < before;
    if s.filters.is_empty() {
        let inner = take(&mut s.inner);
        *port = inner;
    }
    found
}

fn stage(port: &mut dyn Port) -> Option<&mut Stage> {
    port.around()?.downcast_mut()
}

impl Port for Stage {
    fn traits(&self) -> Traits {
        self.inner.traits()
    }

    fn watch(&self, w: &mut Watch) {
        self.inner.watch(w);
    }

    fn peer_takes(&mut self, o: Offloads) {
        // The lane is being rewired.
        self.rewinds = self.inner.traits().rewinds;
        self.inner.peer_takes(o);
    }

    fn peer_spare(&mut self, spare: bool) {
        self.inner.peer_spare(spare);
    }

    fn lend(&mut self, b: &mut Batch) {
        self.inner.lend(b);
    }

    fn recv(&mut self, b: &mut Batch) -> io::Result<()> {
        let again = std::mem::take(&mut self.again);
        self.inner.recv(b)?;
        if !b.is_empty() {
            self.filters.iter_mut().for_each(|(_, f)| f.given(b, again));
        }
        Ok(())
    }

    fn send(&mut self, b: &Batch) -> io::Result<usize> {
        if b.is_empty() {
            return self.inner.send(b);
        }
        self.filters.iter_mut().rev().for_each(|(_, f)| f.offered(b));
        let taken = self.inner.send(b);
        let n = taken.as_ref().map_or(0, |n| *n);
        self.filters.iter_mut().rev().for_each(|(_, f)| f.took(n));
        taken
    }

    fn release(&mut self, b: &Batch, taken: usize) {
        if self.rewinds {
            self.again = b.len().saturating_sub(taken);
        }
        self.inner.release(b, taken);
    }

    fn arm_gives(&mut self) -> bool {
        self.inner.arm_gives()
    }

    fn arm_takes(&mut self) -> bool {
        self.inner.arm_takes()
    }

    fn event(&mut self, fd: RawFd, why: Interest) -> io::Result<Change> {
        let change = self.inner.event(fd, why)?;
        self.follow(change);
        Ok(change)
    }

    fn connect(&mut self, fd: OwnedFd) -> io::Result<Change> {
        let change = self.inner.connect(fd)?;
        self.follow(change);
        Ok(change)
    }

    fn estate(&self, keep: &mut Keep<'_>) -> io::Result<bool> {
        self.inner.estate(keep)
    }

    fn inherit(&mut self, left: Left) -> io::Result<Change> {
        let change = self.inner.inherit(left)?;
        self.follow(change);
        Ok(change)
    }

    fn peer_link(&mut self, up: bool) {
        self.inner.peer_link(up);
    }

    fn peer_up(&mut self, up: bool) {
        self.inner.peer_up(up);
    }

    fn follows(&self) -> bool {
        self.inner.follows()
    }

    fn far_end(&self) -> Option<FarEnd> {
        self.inner.far_end()
    }

    fn stats(&self) -> Stats {
        self.inner.stats()
    }

    fn stats_mut(&mut self) -> &mut Stats {
        self.inner.stats_mut()
    }

    fn around(&mut self) -> Option<&mut dyn Any> {
        Some(self)
    }
}

impl Stage {
    /// The port may have been changed into one that gives nothing again.
    fn follow(&mut self, change: Change) {
        if change.rewire {
            self.again = 0;
        }
    }
}

#[cfg(test)]
mod tests;
