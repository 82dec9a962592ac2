//! The floor: all lanes of a dataplane, and how its workers share them without sharing a turn.
//!
//! The rule. A lane is behind a lock. The worker that it belongs to takes the lock for a round (a few turns each way)
//! and nobody else does, so that it is free whenever it is asked for. Whoever changes a port (a vhost-user message, a
//! new connection, a link) is the first worker's thread, and takes the locks of **all** lanes of that port's wire before
//! it does: so a change of guest memory, of a ring or of the number of queues never meets a turn that uses the old
//! one. Then it gives the locks back and rings the bells of the workers concerned; each of them makes a new list of what
//! to watch before its next round. A worker that finds a change or a death in one of its own lanes leaves a note for the
//! first one, and rings its bell.
//!
//! Nobody waits long: a worker holds one lock at a time, for a round in which nothing blocks, and lets a change go first
//! (locks are not fair, and a busy worker would take its own again at once).
//!
//! Lanes come and go ([`super::moves`]): a place on the floor, a desk, stays where it is once it is made, and one that is
//! empty is used again; so a worker's numbers are always good, and finding a lane takes no lock.
//!
//! Trust: the workers. Promise: no lock that is contended in the absence of changes, none for each frame.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::lane::{Lane, Side};
use crate::port::Change;
use crate::worker::Waits;

/// Where a port sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Lane.
    pub lane: usize,
    /// End of it.
    pub side: Side,
}

/// No slot: at that end of a lane there is nobody.
pub const NOBODY: u16 = u16::MAX;
/// Most lanes that there can be.
pub const MAX_LANES: usize = 4096;

/// A lane before it has a place.
pub struct Seated {
    /// The lane.
    pub lane: Lane,
    /// Slots of its netdev and its device in the hand-over, or [`NOBODY`].
    pub slots: (u16, u16),
}

/// A lane and whose it is.
pub(super) struct Desk {
    pub(super) lane: Mutex<Lane>,
    /// Both slots in one word, so that they are always read as they belong together.
    slots: AtomicU32,
    pub(super) worker: usize,
    /// A change waits for the lock.
    pub(super) wanted: AtomicBool,
}

impl Desk {
    pub(super) fn slots(&self) -> (u16, u16) {
        let [a, b, c, d] = self.slots.load(Ordering::Acquire).to_le_bytes();
        (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))
    }

    pub(super) fn set_slots(&self, slots: (u16, u16)) {
        self.slots.store(word(slots), Ordering::Release);
    }
}

fn word((netdev, device): (u16, u16)) -> u32 {
    u32::from(netdev) | u32::from(device) << 16
}

/// How a worker is told that what it watches has changed.
struct Bell {
    /// Written to wake it. Watched edge-triggered and never read.
    fd: EventFd,
    /// Counts the rings.
    rung: AtomicU64,
    /// What its worker's waiting came to, as of its last wait.
    waits: Mutex<Waits>,
}

/// What a worker has to say to the first one.
#[derive(Debug)]
pub enum Note {
    /// A port changed in a way that its other lanes and the supervisor have to know.
    Changed(Seat, Change),
    /// A port died.
    Died(u16, io::Error),
    /// The worker cannot go on.
    Broken(io::Error),
}

/// All lanes of a dataplane.
pub struct Floor {
    desks: Box<[OnceLock<Box<Desk>>]>,
    /// How many of them are made.
    made: AtomicUsize,
    bells: Vec<Bell>,
    /// Held during a change, by whoever lets it go first as well.
    pub(super) gate: Mutex<()>,
    notes: Mutex<Vec<Note>>,
}

/// A panic of another holder ends the process, so a poisoned lock is never seen.
pub(super) fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Floor {
    /// Gives the lanes to `workers` workers in turn.
    ///
    /// # Errors
    /// The kernel's, from `eventfd2`; more lanes than [`MAX_LANES`].
    pub fn new(lanes: Vec<Seated>, workers: usize) -> io::Result<Self> {
        let workers = workers.max(1);
        let bell = || {
            let fd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
            Ok(Bell { fd, rung: AtomicU64::new(0), waits: Mutex::default() })
        };
        let floor = Self {
            desks: (0..MAX_LANES).map(|_| OnceLock::new()).collect(),
            made: AtomicUsize::new(0),
            bells: (0..workers).map(|_| bell()).collect::<io::Result<_>>()?,
            gate: Mutex::new(()),
            notes: Mutex::new(Vec::new()),
        };
        for s in lanes {
            floor.put(s)?;
        }
        // Hubs were not whole when their first lanes were made.
        floor.refresh();
        Ok(floor)
    }

    /// Makes a new desk; says which. Only the first worker does, or whoever makes the floor.
    ///
    /// # Errors
    /// There are too many.
    pub(super) fn put(&self, s: Seated) -> io::Result<usize> {
        let at = self.made.load(Ordering::Acquire);
        let place = self.desks.get(at).ok_or(io::ErrorKind::QuotaExceeded)?;
        let desk = Desk {
            lane: Mutex::new(s.lane),
            slots: AtomicU32::new(word(s.slots)),
            worker: at % self.bells.len().max(1),
            wanted: AtomicBool::new(false),
        };
        place.set(Box::new(desk)).map_err(|_| io::ErrorKind::AlreadyExists)?;
        self.made.store(at + 1, Ordering::Release);
        Ok(at)
    }

    /// One desk.
    #[inline]
    pub(super) fn desk(&self, i: usize) -> Option<&Desk> {
        self.desks.get(i)?.get().map(AsRef::as_ref)
    }

    /// All desks, with their numbers.
    pub(super) fn desks(&self) -> impl Iterator<Item = (usize, &Desk)> {
        self.desks.iter().map_while(|d| d.get()).map(AsRef::as_ref).enumerate()
    }

    /// Has the lanes whose traits follow from others' look at them anew.
    pub(super) fn refresh(&self) {
        for (i, d) in self.desks() {
            if self.visit(i, Lane::refresh) == Some(true) {
                self.ring(d.worker);
            }
        }
    }

    /// Number of lanes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.made.load(Ordering::Acquire)
    }

    /// There are no lanes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of workers, at least one.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.bells.len()
    }

    /// The lanes of a worker.
    pub fn lanes_of(&self, worker: usize) -> impl Iterator<Item = usize> {
        self.desks().filter(move |(_, d)| d.worker == worker).map(|(i, _)| i)
    }

    /// Takes a lane for a round, or to look at it. A change goes first.
    pub fn lane(&self, i: usize) -> Option<MutexGuard<'_, Lane>> {
        let desk = self.desk(i)?;
        if desk.wanted.load(Ordering::Relaxed) {
            drop(lock(&self.gate));
        }
        Some(lock(&desk.lane))
    }

    /// Looks at a lane from another thread than its worker's.
    pub fn visit<T>(&self, i: usize, what: impl FnOnce(&mut Lane) -> T) -> Option<T> {
        let desk = self.desk(i)?;
        let _first = lock(&self.gate);
        desk.wanted.store(true, Ordering::Relaxed);
        let result = what(&mut lock(&desk.lane));
        desk.wanted.store(false, Ordering::Relaxed);
        Some(result)
    }

    /// The slot at a seat.
    #[must_use]
    pub fn slot(&self, seat: Seat) -> Option<u16> {
        let (netdev, device) = self.desk(seat.lane)?.slots();
        let slot = match seat.side {
            Side::Netdev => netdev,
            Side::Device => device,
        };
        (slot != NOBODY).then_some(slot)
    }

    /// The first seat of a slot: its port has the listening socket and the connection.
    #[must_use]
    pub fn seat(&self, slot: u16) -> Option<Seat> {
        (0..self.len())
            .flat_map(|lane| Side::BOTH.map(|side| Seat { lane, side }))
            .find(|s| self.slot(*s) == Some(slot))
    }

    /// Changes a port while no lane of its wire is in a turn, and passes what came of it on to all of them. The
    /// workers concerned are told, `me` excepted.
    ///
    /// # Errors
    /// Those of `what`.
    pub fn change(
        &self,
        me: usize,
        seat: Seat,
        what: impl FnOnce(&mut Lane) -> io::Result<Change>,
    ) -> io::Result<Change> {
        let Some(slots) = self.desk(seat.lane).map(Desk::slots) else { return Ok(Change::default()) };
        let wire = || self.desks().filter(move |(_, d)| d.slots() == slots);
        let first = lock(&self.gate);
        wire().for_each(|(_, d)| d.wanted.store(true, Ordering::Relaxed));
        let mut lanes: Vec<_> = wire().map(|(i, d)| (i, lock(&d.lane))).collect();
        let at = lanes.iter_mut().find(|(i, _)| *i == seat.lane);
        let result = at.map_or(Ok(Change::default()), |(_, l)| what(l));
        if let Ok(change) = &result {
            if let (Some(up), Some((_, l))) = (change.link, lanes.first_mut())
                && !Side::BOTH.iter().any(|s| l.marks(*s).1)
            {
                l.port(seat.side.peer()).peer_link(up);
            }
            if change.rewire {
                lanes.iter_mut().for_each(|(_, l)| l.rewire());
            }
        }
        wire().for_each(|(_, d)| d.wanted.store(false, Ordering::Relaxed));
        drop(lanes);
        drop(first);
        if result.as_ref().map_or(true, |c| c.rewire) {
            let concerned = |w: &usize| *w != me && wire().any(|(_, d)| d.worker == *w);
            (0..self.bells.len()).filter(concerned).for_each(|w| self.ring(w));
            self.refresh();
        }
        result
    }

    /// Wakes a worker and has it look anew at what it watches.
    pub fn ring(&self, worker: usize) {
        if let Some(b) = self.bells.get(worker) {
            b.rung.fetch_add(1, Ordering::Release);
            // A full counter is a wake-up as well.
            let _ = b.fd.write(1);
        }
    }

    /// How often a worker's bell was rung.
    #[must_use]
    pub fn rung(&self, worker: usize) -> u64 {
        self.bells.get(worker).map_or(0, |b| b.rung.load(Ordering::Acquire))
    }

    /// The descriptor to watch for a worker's bell.
    #[must_use]
    pub fn bell(&self, worker: usize) -> Option<RawFd> {
        self.bells.get(worker).map(|b| b.fd.as_raw_fd())
    }

    /// A worker says what its waiting came to.
    pub fn report(&self, worker: usize, waits: Waits) {
        if let Some(b) = self.bells.get(worker) {
            *lock(&b.waits) = waits;
        }
    }

    /// What the workers' waiting came to.
    pub fn waits(&self) -> impl Iterator<Item = Waits> {
        self.bells.iter().map(|b| *lock(&b.waits))
    }

    /// Leaves a note for the first worker.
    pub fn post(&self, note: Note) {
        lock(&self.notes).push(note);
        self.ring(0);
    }

    /// Takes the notes.
    #[must_use]
    pub fn notes(&self) -> Vec<Note> {
        std::mem::take(&mut *lock(&self.notes))
    }

    /// Ends all turns: every lane is taken and not given back.
    pub fn close(&self) {
        std::mem::forget(lock(&self.gate));
        for (_, d) in self.desks() {
            d.wanted.store(true, Ordering::Relaxed);
            std::mem::forget(lock(&d.lane));
        }
    }
}
