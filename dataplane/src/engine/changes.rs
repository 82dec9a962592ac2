//! Ports that come, go and change places while the dataplane runs: what the supervisor asks for, done or refused.
//!
//! Trust: the supervisor, within what was said at the start: only kinds of ports that the filter was made for are opened,
//! anything else would be killed by it. Promise: each change is answered once, in order; one that is refused has changed
//! nothing, and the descriptors that came for it are closed.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use super::kinds;
use crate::handover::{FromDataplane, PortKind, PortPlan, ToDataplane, Wire};
use crate::port::hub::Hubs;
use crate::worker::{Cannot, Floor, NOBODY};

/// Most descriptors that wait for ports which are not yet added.
const MOST_WAITING: usize = 1024;

/// A refusal: an error's number and a sentence.
pub(super) type No = (i32, String);

/// What may still come, and what is here.
#[derive(Default)]
pub(super) struct Changes {
    later: BTreeSet<PortKind>,
    hubs: Hubs,
    /// Slots in use.
    used: BTreeSet<u16>,
    /// Descriptors for slots that are not in use.
    waiting: BTreeMap<u16, Vec<OwnedFd>>,
}

impl Changes {
    pub(super) fn new(later: &[PortKind], hubs: Hubs, used: impl Iterator<Item = u16>) -> Self {
        let later = later.iter().copied().collect();
        Self { later, hubs, used: used.collect(), waiting: BTreeMap::new() }
    }

    /// Slots in use, in order.
    pub(super) fn used(&self) -> impl Iterator<Item = u16> {
        self.used.iter().copied()
    }

    pub(super) fn uses(&self, slot: u16) -> bool {
        self.used.contains(&slot)
    }

    /// Descriptors came for a slot that is not in use. Too many are closed; the port that needs them is refused.
    pub(super) fn hold(&mut self, slot: u16, fds: Vec<OwnedFd>) {
        let held: usize = self.waiting.values().map(Vec::len).sum();
        if held + fds.len() <= MOST_WAITING {
            self.waiting.entry(slot).or_default().extend(fds);
        }
    }

    /// Makes the change that a message asks for; gives the answer. None: it asks for none.
    pub(super) fn make(&mut self, floor: &Floor, message: ToDataplane) -> Option<FromDataplane> {
        let (ask, result) = match message {
            ToDataplane::Add { ask, slot, plan } => {
                let fds = self.waiting.remove(&slot).unwrap_or_default();
                (ask, self.add(floor, slot, &plan, fds))
            }
            ToDataplane::Remove { ask, slot } => (ask, self.remove(floor, slot)),
            ToDataplane::Join { ask, wire } => (ask, join(floor, &wire)),
            ToDataplane::Part { ask, slot } => (ask, floor.part(slot).map_err(|c| no(&c))),
            ToDataplane::Link { ask, slot, up } => (ask, floor.set_link(slot, up).map_err(|c| no(&c))),
            _ => return None,
        };
        Some(match result {
            Ok(()) => FromDataplane::Done { ask },
            Err((errno, why)) => FromDataplane::Refused { ask, errno, why: why.chars().take(512).collect() },
        })
    }

    fn add(&mut self, floor: &Floor, slot: u16, plan: &PortPlan, fds: Vec<OwnedFd>) -> Result<(), No> {
        let kind = plan.kind();
        if !self.later.contains(&kind) {
            return Err((0, format!("this dataplane was not made for ports of kind {kind:?} to be added")));
        }
        if self.uses(slot) || slot == NOBODY {
            return Err((0, format!("slot {slot} is in use")));
        }
        let queues = kinds::open(plan, fds, &mut self.hubs).map_err(|e| {
            let errno = e.source.as_ref().and_then(std::io::Error::raw_os_error).unwrap_or(0);
            (errno, e.to_string())
        })?;
        floor.seat_port(slot, queues).map_err(|c| no(&c))?;
        self.used.insert(slot);
        Ok(())
    }

    fn remove(&mut self, floor: &Floor, slot: u16) -> Result<(), No> {
        floor.unseat_port(slot).map_err(|c| no(&c))?;
        self.used.remove(&slot);
        Ok(())
    }
}

fn join(floor: &Floor, wire: &Wire) -> Result<(), No> {
    floor.join(wire.netdev, wire.device, wire.lock_mac).map_err(|c| no(&c))
}

pub(super) fn no(c: &Cannot) -> No {
    match c {
        Cannot::NoPort(slot) => (0, format!("no port at slot {slot}")),
        Cannot::Alone => (0, "a port cannot be its own peer".into()),
        Cannot::Queues(n, d) => (0, format!("queues differ: the netdev has {n}, the device {d}")),
        Cannot::Taken(slot) => (0, format!("the port at slot {slot} has a peer")),
        Cannot::Room(errno) => (*errno, "no room for one more lane".into()),
    }
}
