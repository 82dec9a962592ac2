//! Filters as they come from the supervisor: made, put around a port's queues, and taken away again.
//!
//! Trust: the supervisor's, whose descriptors the kernel checks when they are mapped. Promise: on all queues of a port, or
//! on none.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::handover::FilterPlan;
use crate::lane::Side;
use crate::port::Queues;
use crate::stage::capture::Capture;
use crate::stage::{self, Filter};
use crate::worker::{Floor, Seat};

/// A filter as it was handed over.
pub(super) struct Handed {
    pub(super) slot: u16,
    pub(super) number: u16,
    pub(super) plan: FilterPlan,
    pub(super) fds: Vec<OwnedFd>,
}

impl Handed {
    /// One for each of a port's queues.
    fn make(self, queues: usize) -> io::Result<Vec<Box<dyn Filter>>> {
        let FilterPlan::Capture(plan) = self.plan;
        let [memory, bell] = <[OwnedFd; 2]>::try_from(self.fds).map_err(|_| io::ErrorKind::InvalidInput)?;
        let bell = Arc::new(bell);
        let one = |queue: u16| -> io::Result<Box<dyn Filter>> {
            Ok(Box::new(Capture::new(plan, &memory, queue, bell.clone())?))
        };
        (0..u16::try_from(queues).unwrap_or(u16::MAX)).map(one).collect()
    }

    /// Puts it around a port that is not yet on a lane.
    pub(super) fn put(self, queues: &mut Queues) -> io::Result<()> {
        let number = self.number;
        let filters = self.make(queues.len())?;
        for (port, filter) in queues.iter_mut().zip(filters) {
            stage::attach(port, number, filter);
        }
        Ok(())
    }

    /// Puts it around a port whose lanes run.
    pub(super) fn attach(self, floor: &Floor) -> io::Result<()> {
        let (slot, number) = (self.slot, self.number);
        let seats = seats(floor, slot);
        if seats.is_empty() {
            return Err(io::ErrorKind::NotFound.into());
        }
        for (seat, filter) in seats.iter().zip(self.make(seats.len())?) {
            floor.visit(seat.lane, |lane| stage::attach(lane.place(seat.side), number, filter));
        }
        Ok(())
    }
}

/// Takes a filter away. False: the port does not have it.
pub(super) fn detach(floor: &Floor, slot: u16, number: u16) -> bool {
    let mut found = false;
    for seat in seats(floor, slot) {
        let here = floor.visit(seat.lane, |lane| stage::detach(lane.place(seat.side), number));
        found |= here.unwrap_or(false);
    }
    found
}

/// Where a slot's queues are, in their order.
fn seats(floor: &Floor, slot: u16) -> Vec<Seat> {
    let sides = [Side::Netdev, Side::Device];
    let all = (0..floor.len()).flat_map(|lane| sides.map(|side| Seat { lane, side }));
    all.filter(|s| floor.slot(*s) == Some(slot)).collect()
}
