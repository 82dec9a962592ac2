//! The stage: what stands between a port and its lane while somebody looks on (a capture, a mirror) or steps in
//! (QEMU's redirector and buffer).
//!
//! A [`Stage`] is a port around a port: it passes every call on, and shows what is given and what is taken to its
//! filters. It is put around a port when the first filter comes and taken away with the last one, so a port without
//! filters has no stage: no branch, no time stamp, no copy.
//!
//! Filters stand in a chain, as in QEMU: what the port sends passes them from head to tail, what it receives from tail to
//! head. One that **steps in** may take frames out of the way, and put frames into it behind itself. While one does, the
//! stage has work of its own ([`steps`]); a stage of captures and mirrors has not.
//!
//! What a filter sees is what crosses the port's own border: frames of a netdev that takes super-frames are
//! super-frames, those that were segmented or joined for it are as it got them, and what it did not take is not shown.
//! Frames in QEMU's words: **tx** is what the port sends into netreeve (it *gives* it), **rx** what it receives (*takes*).
//!
//! Trust: as the port's. Promise: no filter waits for anything outside; what it cannot do it counts. Only a buffer that
//! is full makes the port wait, for its own time to come.
#![forbid(unsafe_code)]

pub mod aside;
pub mod capture;
pub mod divert;
pub mod hold;
mod port;
pub mod record;
mod steps;

use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use crate::frame::Batch;
use crate::port::absent::Absent;
use crate::port::{Port, Watch};
use steps::Steps;

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

    /// Frames that go this way are among them.
    #[must_use]
    pub fn has(self, way: Way) -> bool {
        match way {
            Way::Tx => self.tx(),
            Way::Rx => self.rx(),
        }
    }
}

/// Which way frames go, in QEMU's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The port sends them.
    Tx,
    /// The port receives them.
    Rx,
}

impl Way {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Tx, Self::Rx];
}

/// Looks on or steps in at one queue of a port.
pub trait Filter: Send {
    /// The port gave these frames. The first `again` were shown before, and came again because they were not taken. Says
    /// how many of them, from the first, it takes out of the way for good; none: they pass.
    fn given(&mut self, b: &Batch, again: usize) -> Option<usize>;

    /// These frames are about to be offered to the port. Says as in [`Filter::given`].
    fn offered(&mut self, b: &Batch) -> Option<usize>;

    /// Of those that were offered last, and that it let pass, the first `taken` were taken.
    fn took(&mut self, b: &Batch, taken: usize);

    /// It may take frames out of the way or put some in.
    fn steps_in(&self) -> bool {
        false
    }

    /// Its own descriptors.
    fn watch(&self, _w: &mut Watch) {}

    /// A descriptor is readable. False: it is not this filter's.
    fn event(&mut self, _fd: RawFd) -> bool {
        false
    }

    /// So many frames are to be put in, this way, now.
    fn waiting(&self, _way: Way) -> usize {
        0
    }

    /// Gives the first of those; they stay until they are [`Filter::gone`].
    fn give(&mut self, _way: Way, _b: &mut Batch) {}

    /// The first `taken` of those that it gave last went on.
    fn gone(&mut self, _way: Way, _taken: usize) {}

    /// Nothing may come to it this way for now: it has no room, or what it holds goes first.
    fn is_closed(&self, _way: Way) -> bool {
        false
    }

    /// What it puts in goes before anything that comes from the port.
    fn is_first(&self) -> bool {
        false
    }

    /// `status=`.
    fn set_on(&mut self, _on: bool) {}

    /// It is to go: it takes nothing more. True: it holds nothing, and can go at once.
    fn leave(&mut self) -> bool {
        true
    }
}

/// A filter in its chain.
struct Link {
    /// The supervisor's number for it.
    number: u16,
    /// Nobody else's, ever.
    key: u64,
    /// Of what it put in towards the lane last, so much comes again.
    again: usize,
    /// It goes when it holds nothing any more.
    leaves: bool,
    filter: Box<dyn Filter>,
}

/// A port with filters around it.
pub struct Stage {
    inner: Box<dyn Port>,
    /// From QEMU's head to its tail.
    links: Vec<Link>,
    keys: u64,
    /// So many frames were given and not taken: the port gives them again.
    again: usize,
    rewinds: bool,
    /// There, if some filter steps in.
    steps: Option<Box<Steps>>,
}

/// Takes a port from its place, for a moment.
fn take(port: &mut Box<dyn Port>) -> Box<dyn Port> {
    std::mem::replace(port, Box::new(Absent::default()))
}

/// Puts a filter around a port: before the one with number `before`, or behind those that are there. The lane has to be
/// rewired.
pub fn attach(port: &mut Box<dyn Port>, number: u16, before: Option<u16>, filter: Box<dyn Filter>) {
    if stage(port.as_mut()).is_none() {
        let inner = take(port);
        let rewinds = inner.traits().rewinds;
        *port = Box::new(Stage { inner, links: Vec::new(), keys: 0, again: 0, rewinds, steps: None });
    }
    if let Some(s) = stage(port.as_mut()) {
        let at = before.and_then(|n| s.place(n)).unwrap_or(s.links.len());
        s.keys += 1;
        s.links.insert(at, Link { number, key: s.keys, again: 0, leaves: false, filter });
        s.settle();
    }
}

/// Takes a filter away, once it has given back what it holds; with the last one the stage goes. The lane has to be
/// rewired. False: it is not there.
pub fn detach(port: &mut Box<dyn Port>, number: u16) -> bool {
    let Some(s) = stage(port.as_mut()) else { return false };
    let Some(at) = s.place(number) else { return false };
    let Some(link) = s.links.get_mut(at) else { return false };
    if link.filter.leave() {
        s.links.remove(at);
    } else {
        link.leaves = true;
    }
    s.settle();
    tidy(port);
    true
}

/// Turns a filter on or off. False: it is not there.
pub fn set_on(port: &mut dyn Port, number: u16, on: bool) -> bool {
    let Some(s) = stage(port) else { return false };
    let Some(link) = s.place(number).and_then(|at| s.links.get_mut(at)) else { return false };
    link.filter.set_on(on);
    true
}

/// Frames of the memory of a filter that is to go, and goes at once, may lie in the lane: it is to forget them before
/// [`detach`].
#[must_use]
pub fn lends_to_lane(port: &mut dyn Port, number: u16) -> bool {
    let Some(s) = stage(port) else { return false };
    let Some(key) = s.steps.as_ref().and_then(|t| t.giving) else { return false };
    s.links.iter_mut().any(|l| l.number == number && l.key == key && l.filter.leave())
}

/// Takes the stage away from a port that has no filters any more.
pub fn tidy(port: &mut Box<dyn Port>) {
    if let Some(s) = stage(port.as_mut())
        && s.links.is_empty()
    {
        let inner = take(&mut s.inner);
        *port = inner;
    }
}

fn stage(port: &mut dyn Port) -> Option<&mut Stage> {
    port.around()?.downcast_mut()
}

impl Stage {
    fn place(&self, number: u16) -> Option<usize> {
        self.links.iter().position(|l| l.number == number && !l.leaves)
    }

    /// Filters came or went.
    fn settle(&mut self) {
        if !self.links.iter().any(|l| l.filter.steps_in()) {
            self.steps = None;
        } else if self.steps.is_none() {
            self.steps = Some(Box::default());
        }
    }
}

#[cfg(test)]
mod tests;
