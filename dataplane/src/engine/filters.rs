//! Filters as they come from the supervisor: made, put around a port's queues, and taken away again.
//!
//! Trust: the supervisor's, whose descriptors the kernel checks when they are mapped or read. Promise: on all queues of a
//! port, or on none; a port beside which filters put frames is faced by them as long as there is one ([`aside`]).
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::changes::no;
use crate::handover::FilterPlan;
use crate::lane::Side;
use crate::port::absent::Absent;
use crate::port::{Change, Port, Queues};
use crate::stage::aside::{Asides, End, Handle};
use crate::stage::capture::{self, Capture};
use crate::stage::divert::{self, Divert};
use crate::stage::hold::{self, Hold};
use crate::stage::{self, Filter};
use crate::worker::{Floor, Seat};

/// A filter as it was handed over.
pub(super) struct Handed {
    pub(super) slot: u16,
    pub(super) number: u16,
    pub(super) before: Option<u16>,
    pub(super) plan: FilterPlan,
    pub(super) fds: Vec<OwnedFd>,
}

/// A filter for each of a port's queues, and the ends of the lanes that have to be faced for it.
struct Made {
    filters: Vec<Box<dyn Filter>>,
    ends: Vec<(u16, End)>,
}

/// A slot, and what is to be put at the other end of its lane.
pub(super) type Facing = (u16, Box<dyn Port>);

impl Handed {
    fn make(plan: FilterPlan, fds: Vec<OwnedFd>, queues: usize, asides: &mut Asides) -> io::Result<Made> {
        match plan {
            FilterPlan::Capture(plan) => captures(plan, fds, queues),
            FilterPlan::Divert(plan) => diverts(plan, fds, queues, asides),
            FilterPlan::Hold(plan) => holds(plan, fds, queues),
        }
    }

    /// Puts it around a port that is not yet on a lane. Gives what is to face other ports.
    pub(super) fn put(self, queues: &mut Queues, asides: &mut Asides) -> io::Result<Vec<Facing>> {
        let made = Self::make(self.plan, self.fds, queues.len(), asides)?;
        for (port, filter) in queues.iter_mut().zip(made.filters) {
            stage::attach(port, self.number, self.before, filter);
        }
        Ok(made.ends.into_iter().map(|(slot, end)| (slot, Box::new(end) as Box<dyn Port>)).collect())
    }

    /// Puts it around a port whose lanes run.
    pub(super) fn attach(self, floor: &Floor, asides: &mut Asides) -> io::Result<()> {
        let seats = seats(floor, self.slot);
        if seats.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let made = Self::make(self.plan, self.fds, seats.len(), asides);
        let faced = made.and_then(|made| {
            for (slot, end) in made.ends {
                if let Err(c) = floor.face(slot, Box::new(end)) {
                    asides.forget(slot);
                    return Err(io::Error::other(no(&c).1));
                }
            }
            Ok(made.filters)
        });
        let filters = match faced {
            Ok(filters) => filters,
            Err(e) => {
                unface(floor, asides);
                return Err(e);
            }
        };
        let (number, before) = (self.number, self.before);
        for (seat, filter) in seats.iter().zip(filters) {
            change(floor, *seat, |place| stage::attach(place, number, before, filter));
        }
        Ok(())
    }
}

fn captures(plan: capture::Plan, fds: Vec<OwnedFd>, queues: usize) -> io::Result<Made> {
    let [memory, bell] = <[OwnedFd; 2]>::try_from(fds).map_err(|_| io::ErrorKind::InvalidInput)?;
    let bell = Arc::new(bell);
    let one = |queue: u16| -> io::Result<Box<dyn Filter>> {
        Ok(Box::new(Capture::new(plan, &memory, queue, bell.clone())?))
    };
    let filters = (0..u16::try_from(queues).unwrap_or(u16::MAX)).map(one).collect::<io::Result<_>>()?;
    Ok(Made { filters, ends: Vec::new() })
}

fn diverts(plan: divert::Plan, fds: Vec<OwnedFd>, queues: usize, asides: &mut Asides) -> io::Result<Made> {
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput));
    let mut ends = Vec::new();
    let mut handle = |slot: u16, bell: OwnedFd| -> io::Result<Handle> {
        let (handle, end) = asides.get(slot, bell)?;
        ends.extend(end.map(|end| (slot, end)));
        Ok(handle)
    };
    let out = plan.out.map(|slot| handle(slot, next()?)).transpose()?;
    let mut from = match plan.from {
        Some(slot) => Some((handle(slot, next()?)?, next()?)),
        None => None,
    };
    let one = |_| -> io::Result<Box<dyn Filter>> {
        // What comes in is put in at the first queue.
        Ok(Box::new(Divert::new(plan, out.clone(), from.take())?))
    };
    let filters = (0..queues).map(one).collect::<io::Result<_>>()?;
    Ok(Made { filters, ends })
}

fn holds(plan: hold::Plan, fds: Vec<OwnedFd>, queues: usize) -> io::Result<Made> {
    if fds.len() != queues {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let one = |timer| -> io::Result<Box<dyn Filter>> { Ok(Box::new(Hold::new(plan, timer)?)) };
    Ok(Made { filters: fds.into_iter().map(one).collect::<io::Result<_>>()?, ends: Vec::new() })
}

/// Changes what is around a port, and has its lanes see it.
fn change<T>(floor: &Floor, seat: Seat, what: impl FnOnce(&mut Box<dyn Port>) -> T) -> Option<T> {
    let mut done = None;
    // Nothing in it can fail.
    let _changed = floor.change(0, seat, |lane| {
        done = Some(what(lane.place(seat.side)));
        Ok(Change { rewire: true, ..Change::default() })
    });
    done
}

/// Takes a filter away. False: the port does not have it.
pub(super) fn detach(floor: &Floor, asides: &mut Asides, slot: u16, number: u16) -> bool {
    let mut found = false;
    for seat in seats(floor, slot) {
        // In one breath: a turn between the two would have the lane hold such frames again.
        let _changed = floor.change(0, seat, |lane| {
            if stage::lends_to_lane(lane.port(seat.side), number) {
                lane.forget();
            }
            found |= stage::detach(lane.place(seat.side), number);
            Ok(Change { rewire: true, ..Change::default() })
        });
    }
    unface(floor, asides);
    found
}

/// Turns a filter on or off. False: the port does not have it.
pub(super) fn set_on(floor: &Floor, slot: u16, number: u16, on: bool) -> bool {
    let set = |seat: Seat| change(floor, seat, |place| stage::set_on(place.as_mut(), number, on));
    seats(floor, slot).into_iter().filter(|seat| set(*seat) == Some(true)).count() > 0
}

/// Ports beside which no filter puts frames any more are ports without a peer again.
pub(super) fn unface(floor: &Floor, asides: &mut Asides) {
    for slot in asides.unused() {
        // It may be gone, or on a wire by now.
        let _faced = floor.face(slot, Box::<Absent>::default());
    }
}

/// Where a slot's queues are, in their order.
fn seats(floor: &Floor, slot: u16) -> Vec<Seat> {
    let sides = [Side::Netdev, Side::Device];
    let all = (0..floor.len()).flat_map(|lane| sides.map(|side| Seat { lane, side }));
    all.filter(|s| floor.slot(*s) == Some(slot)).collect()
}
