//! The stage as a port: every call goes on to the port inside, and its filters see it.
#![forbid(unsafe_code)]

use std::any::Any;
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use super::Stage;
use crate::frame::Batch;
use crate::port::{Change, FarEnd, Interest, Keep, Left, Offloads, Port, Told, Traits, Watch};
use crate::stats::Stats;

impl Port for Stage {
    fn traits(&self) -> Traits {
        let t = self.inner.traits();
        if self.steps.is_none() {
            return t;
        }
        // What is put in or held lies in memory of the filter's, and what was lent would be for frames that never come.
        Traits { lends: false, joinable: false, withheld: true, ..t }
    }

    fn watch(&self, w: &mut Watch) {
        self.inner.watch(w);
        self.links.iter().for_each(|l| l.filter.watch(w));
    }

    fn peer_takes(&mut self, o: Offloads) {
        // The lane is being rewired.
        self.rewinds = self.inner.traits().rewinds;
        if let Some(s) = &mut self.steps {
            s.lane_waits = false;
        }
        self.inner.peer_takes(o);
    }

    fn tell(&mut self, what: Told, fds: Vec<OwnedFd>) -> io::Result<()> {
        self.inner.tell(what, fds)
    }

    fn peer_spare(&mut self, spare: bool) {
        self.inner.peer_spare(spare);
    }

    fn peer_new(&mut self) -> bool {
        // What a step holds comes again, whoever the peer is.
        self.steps.is_none() && self.inner.peer_new()
    }

    fn lend(&mut self, b: &mut Batch) {
        self.inner.lend(b);
    }

    fn recv(&mut self, b: &mut Batch) -> io::Result<()> {
        if self.steps.is_some() {
            return self.give(b);
        }
        let again = std::mem::take(&mut self.again);
        self.inner.recv(b)?;
        if !b.is_empty() {
            self.links.iter_mut().for_each(|l| {
                l.filter.given(b, again);
            });
        }
        Ok(())
    }

    fn send(&mut self, b: &Batch) -> io::Result<usize> {
        if b.is_empty() {
            return self.inner.send(b);
        }
        if self.steps.is_some() {
            return self.take_in(b);
        }
        self.links.iter_mut().rev().for_each(|l| {
            l.filter.offered(b);
        });
        let taken = self.inner.send(b);
        let n = taken.as_ref().map_or(0, |n| *n);
        self.links.iter_mut().rev().for_each(|l| l.filter.took(b, n));
        taken
    }

    fn release(&mut self, b: &Batch, taken: usize) {
        let left = if self.rewinds { b.len().saturating_sub(taken) } else { 0 };
        self.steps.iter_mut().for_each(|s| s.left = false);
        if let Some(l) = self.giving() {
            l.again = left;
            l.filter.gone(super::Way::Tx, taken);
            return;
        }
        self.again = left;
        self.inner.release(b, taken);
    }

    fn arm_gives(&mut self) -> bool {
        if self.steps.is_some() { self.arm_output() } else { self.inner.arm_gives() }
    }

    fn arm_takes(&mut self) -> bool {
        if self.steps.is_some() { self.arm_input() } else { self.inner.arm_takes() }
    }

    fn is_stuck(&self) -> bool {
        self.steps.as_ref().is_some_and(|s| s.stuck)
    }

    fn event(&mut self, fd: RawFd, why: Interest) -> io::Result<Change> {
        if let Some(change) = self.own_event(fd)? {
            return Ok(change);
        }
        let change = self.inner.event(fd, why)?;
        self.follow(change);
        self.resume()?;
        Ok(change)
    }

    fn connect(&mut self, fd: OwnedFd) -> io::Result<Change> {
        let change = self.inner.connect(fd)?;
        self.follow(change);
        Ok(change)
    }

    fn alone(&mut self) -> io::Result<Change> {
        let change = self.inner.alone()?;
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

    fn announce(&mut self) {
        self.inner.announce();
    }

    fn peer_up(&mut self, up: bool) {
        if let Some(s) = &mut self.steps {
            s.peer_up = up;
            // Nobody would hear of it.
            s.stuck &= up;
        }
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
