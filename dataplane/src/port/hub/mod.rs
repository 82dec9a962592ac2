//! Port `hub`: a place in a hub. Its peer, on the other end of its lane, is the hub's member.
//!
//! Room by room: [`queue`] (what waits for a member), [`table`] (which address is where), [`members`] (who gets a frame
//! and who waits for whom), and here: the hub's places as ports, each on a lane like any other port's. What a member cannot
//! take is done on its own lane, so a super-frame is cut for those only who need it cut.
//!
//! A frame is copied once for each member that gets it, into that member's queue; for a device whose memory is lent for
//! a turn there is no other way, and it is what keeps members apart. Places of one hub may be on several workers: they meet
//! in its lock, once for each batch, and wake each other by eventfds, only when the other sleeps.
//!
//! Trust: none in the members. Promise: as in [`members`].
#![forbid(unsafe_code)]

mod members;
pub(crate) mod queue;
mod table;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};

use crate::frame::{Batch, MAX_FRAME};
use crate::port::{Change, Interest, Offloads, OpenError, Port, Queues, Traits, Watch};
use crate::sandbox::call::{Call, Cond};
use crate::stats::{Reason, Stats};
use members::Hub;
pub use queue::{BYTES, FRAMES};

/// A place in a hub. All places that name the same hub are one hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The hub's number: one of 32 bits that was given, or one of our own beyond those.
    pub hub: i64,
    /// Source addresses of the member's frames are learned, so that frames for them go to it alone. None: they are not,
    /// and frames for it go to every member.
    pub learning: Option<Learning>,
    /// Frames go neither from nor to another isolated member (bridge(8), `isolated`).
    pub isolated: bool,
}

/// How addresses are learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learning {
    /// Seconds after which an address that was not seen again is forgotten.
    pub ageing: u32,
    /// Most addresses that are known of this member at a time; frames from others pass, and are not learned.
    pub most: u16,
}

/// What it calls once locked in: its bell.
pub const CALLS: &[Call] = &[Call::any(libc::SYS_read), Call::any(libc::SYS_write)];

/// What opening one calls, where that is done once locked in: an eventfd that is empty, closed on exec and never waits.
pub const OPENS: &[Call] = &[Call::only(
    libc::SYS_eventfd2,
    &[Cond::is(0, 0), Cond::is(1, (libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).cast_unsigned())],
)];

/// The hubs of a dataplane, by number. One is there as long as it has a place.
#[derive(Debug, Default)]
pub struct Hubs(BTreeMap<i64, Weak<Mutex<Hub>>>);

impl Hubs {
    fn get(&mut self, number: i64) -> Arc<Mutex<Hub>> {
        self.0.retain(|_, hub| hub.strong_count() > 0);
        if let Some(hub) = self.0.get(&number).and_then(Weak::upgrade) {
            return hub;
        }
        let hub = Arc::new(Mutex::new(Hub::default()));
        self.0.insert(number, Arc::downgrade(&hub));
        hub
    }
}

/// A place.
#[derive(Debug)]
struct Place {
    hub: Arc<Mutex<Hub>>,
    /// Which of the hub's members.
    me: usize,
    bell: Arc<EventFd>,
    stats: Stats,
}

/// Opens a place in a hub; the hub begins with its first place.
///
/// # Errors
/// No memory for its queue, no descriptor for its bell.
pub fn open(plan: &Plan, hubs: &mut Hubs) -> Result<Queues, OpenError> {
    let queue = queue::Queue::new()
        .map_err(|e| OpenError { what: "no memory for a place in a hub", source: Some(e) })?;
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let bell = EventFd::from_flags(flags)
        .map_err(|e| OpenError { what: "no eventfd for a place in a hub", source: Some(e.into()) })?;
    let (bell, hub) = (Arc::new(bell), hubs.get(plan.hub));
    let me = lock(&hub).enter(plan, queue, bell.clone());
    Ok(vec![Box::new(Place { hub, me, bell, stats: Stats::default() })])
}

/// A panic of another holder ends the process, so a poisoned lock is never seen.
fn lock(hub: &Mutex<Hub>) -> MutexGuard<'_, Hub> {
    hub.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.hub).leave(self.me);
    }
}

impl Port for Place {
    fn traits(&self) -> Traits {
        Traits {
            max_frame: MAX_FRAME,
            takes: lock(&self.hub).taken_by_others(self.me),
            gives: Offloads::ALL,
            rewinds: true,
            ..Traits::default()
        }
    }

    fn watch(&self, w: &mut Watch) {
        w.add(self.bell.as_raw_fd(), Interest::Gives);
        w.add(self.bell.as_raw_fd(), Interest::Room);
    }

    fn follows(&self) -> bool {
        true
    }

    fn peer_takes(&mut self, o: Offloads) {
        lock(&self.hub).set_takes(self.me, o);
    }

    fn peer_up(&mut self, up: bool) {
        lock(&self.hub).set_up(self.me, up);
    }

    fn recv(&mut self, b: &mut Batch) -> io::Result<()> {
        lock(&self.hub).give(self.me, b);
        Ok(())
    }

    fn send(&mut self, b: &Batch) -> io::Result<usize> {
        Ok(lock(&self.hub).take(self.me, b, &mut self.stats))
    }

    fn release(&mut self, b: &Batch, taken: usize) {
        let bytes = lock(&self.hub).taken(self.me, b.len(), taken);
        self.stats.rx_frames += taken as u64;
        self.stats.rx_bytes += bytes;
    }

    fn arm_gives(&mut self) -> bool {
        lock(&self.hub).wants(self.me)
    }

    fn arm_takes(&mut self) -> bool {
        lock(&self.hub).waits(self.me)
    }

    fn event(&mut self, _: RawFd, _: Interest) -> io::Result<Change> {
        // Rung by ourselves alone; that it is empty already is as good.
        let _ = self.bell.read();
        Ok(Change::default())
    }

    fn stats(&self) -> Stats {
        let missed = lock(&self.hub).missed(self.me);
        let mut all = self.stats;
        all.drop_n(Reason::Full, missed.full);
        all.drop_n(Reason::PeerDown, missed.down);
        all
    }

    fn stats_mut(&mut self) -> &mut Stats {
        &mut self.stats
    }
}

#[cfg(test)]
mod tests;
