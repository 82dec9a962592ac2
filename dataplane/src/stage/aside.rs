//! Beside the way: where filters put frames out, and where frames for them come in.
//!
//! QEMU's mirrors and redirectors have character devices; here they have a **port**, which is on no wire otherwise: a
//! stream, mostly, in QEMU's framing, but any will do. An [`Aside`] is the queues between the filters of one such port
//! and the lane that the port is on, whose other end is an [`End`]. So connections, framing, back-pressure, counters and
//! what the port cannot take are what they are for every port, and a filter only copies into memory.
//!
//! Filters of several queues, on several workers, meet in its lock, once for each batch.
//!
//! Trust: none in who is at the port; what comes in is judged like any frame. Promise: bounded; what finds no room is
//! dropped and counted as the port's, what comes in waits with its peer.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Queue as Which, Way};
use crate::frame::{Batch, Frame, MAX_FRAME};
use crate::port::hub::queue::Queue;
use crate::port::{Change, Interest, Offloads, Port, Traits, Watch};
use crate::sandbox::call::Call;
use crate::stats::{Reason, Stats};
use crate::sys;

/// What filters that step in call once locked in, beside what captures do: their bells and times are read.
pub const CALLS: &[Call] = &[Call::any(libc::SYS_read)];

/// The queues between a port and its filters.
#[derive(Debug)]
pub struct Aside {
    /// For the port.
    out: Queue,
    /// From the port, for either way; there if somebody takes them.
    tx: Option<Queue>,
    rx: Option<Queue>,
    /// Rung for whoever takes them.
    taker: Option<Arc<OwnedFd>>,
    /// Somebody is at the port.
    up: bool,
    bell: Arc<OwnedFd>,
    /// The port's lane waits until there is room for what came in.
    waits: bool,
    full: u64,
    down: u64,
}

/// Filters' hold on it.
pub type Handle = Arc<Mutex<Aside>>;

/// A panic of another holder ends the process, so a poisoned lock is never seen.
pub(super) fn lock(h: &Mutex<Aside>) -> MutexGuard<'_, Aside> {
    h.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ring(bell: &OwnedFd) {
    // A counter that is full has woken whoever reads it.
    let _rung = sys::io::write(bell.as_fd(), &1_u64.to_ne_bytes());
}

/// Reads a bell or a timer that was readable, so that it is not.
pub(super) fn hush(fd: &OwnedFd) {
    // Nothing to read is as good.
    let _read = nix::unistd::read(fd, &mut [0; 8]);
}

impl Aside {
    fn new(bell: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            out: Queue::new()?,
            tx: None,
            rx: None,
            taker: None,
            up: false,
            bell: Arc::new(bell),
            waits: false,
            full: 0,
            down: 0,
        })
    }

    /// Somebody is at the port.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Puts frames out.
    pub fn put<'a>(&mut self, b: &Batch, frames: impl Iterator<Item = &'a Frame>) {
        let empty = self.out.len() == 0;
        for f in frames.filter(|f| !f.dropped) {
            if !self.up {
                self.down += 1;
            } else if !self.out.push(f, b.body(f)) {
                self.full += 1;
            }
        }
        if empty && self.out.len() > 0 {
            ring(&self.bell);
        }
    }

    fn way(&mut self, way: Way) -> &mut Option<Queue> {
        match way {
            Way::Tx => &mut self.tx,
            Way::Rx => &mut self.rx,
        }
    }

    /// Frames that came in, for this way.
    #[must_use]
    pub fn came(&self, way: Way) -> usize {
        let queue = match way {
            Way::Tx => &self.tx,
            Way::Rx => &self.rx,
        };
        queue.as_ref().map_or(0, Queue::len)
    }

    /// Gives the first of those.
    pub fn give(&mut self, way: Way, b: &mut Batch) {
        if let Some(q) = self.way(way) {
            q.give(b);
        }
    }

    /// The first `n` of those went on.
    pub fn gone(&mut self, way: Way, n: usize) {
        if let Some(q) = self.way(way) {
            q.pop(n);
        }
        if self.waits && self.is_roomy() {
            self.waits = false;
            ring(&self.bell);
        }
    }

    /// Somebody takes what comes in, these ways, and is rung for it.
    ///
    /// # Errors
    /// No memory; somebody else does.
    pub fn begin(&mut self, ways: Which, bell: Arc<OwnedFd>) -> io::Result<()> {
        if self.taker.is_some() {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        self.tx = if ways.tx() { Some(Queue::new()?) } else { None };
        self.rx = if ways.rx() { Some(Queue::new()?) } else { None };
        self.taker = Some(bell);
        Ok(())
    }

    /// Nobody does any more.
    pub fn end(&mut self) {
        self.taker = None;
        let left: usize = [self.tx.take(), self.rx.take()].iter().flatten().map(Queue::len).sum();
        self.down += left as u64;
        ring(&self.bell);
    }

    fn is_roomy(&self) -> bool {
        [&self.tx, &self.rx].into_iter().flatten().all(Queue::is_roomy)
    }

    /// Takes frames from the port; says how many: the others wait.
    fn take(&mut self, b: &Batch, stats: &mut Stats) -> usize {
        let Some(taker) = &self.taker else {
            let lost = b.frames().iter().filter(|f| !f.dropped).count();
            stats.drop_n(Reason::PeerDown, lost as u64);
            return b.len();
        };
        let queues = [&mut self.tx, &mut self.rx];
        let mut queues: Vec<&mut Queue> = queues.into_iter().flatten().collect();
        let empty = queues.iter().any(|q| q.len() == 0);
        let mut taken = 0;
        for f in b.frames() {
            if !f.dropped {
                if !queues.iter().all(|q| q.has_room(f.len)) {
                    break;
                }
                // Room for it was found just now.
                let _all_pushed = queues.iter_mut().all(|q| q.push(f, b.body(f)));
                stats.tx_frames += 1;
                stats.tx_bytes += u64::from(f.len);
            }
            taken += 1;
        }
        if empty && taken > 0 {
            ring(taker);
        }
        taken
    }
}

/// The other end of the port's lane.
#[derive(Debug)]
pub struct End {
    aside: Handle,
    bell: Arc<OwnedFd>,
    stats: Stats,
}

impl Drop for End {
    fn drop(&mut self) {
        let mut a = lock(&self.aside);
        a.up = false;
        a.down += a.out.clear() as u64;
    }
}

impl Port for End {
    fn traits(&self) -> Traits {
        Traits {
            min_frame: 1,
            max_frame: MAX_FRAME,
            takes: Offloads::ALL,
            gives: Offloads::ALL,
            rewinds: true,
            ..Traits::default()
        }
    }

    fn watch(&self, w: &mut Watch) {
        w.add(self.bell.as_raw_fd(), Interest::Gives);
        w.add(self.bell.as_raw_fd(), Interest::Room);
    }

    fn peer_up(&mut self, up: bool) {
        let mut a = lock(&self.aside);
        a.up = up;
        if !up {
            a.down += a.out.clear() as u64;
        }
    }

    fn recv(&mut self, b: &mut Batch) -> io::Result<()> {
        lock(&self.aside).out.give(b);
        Ok(())
    }

    fn release(&mut self, _: &Batch, taken: usize) {
        let bytes = lock(&self.aside).out.pop(taken);
        self.stats.rx_frames += taken as u64;
        self.stats.rx_bytes += bytes;
    }

    fn send(&mut self, b: &Batch) -> io::Result<usize> {
        Ok(lock(&self.aside).take(b, &mut self.stats))
    }

    fn arm_gives(&mut self) -> bool {
        lock(&self.aside).out.len() > 0
    }

    fn arm_takes(&mut self) -> bool {
        let mut a = lock(&self.aside);
        let now = a.is_roomy();
        a.waits = !now;
        now
    }

    fn event(&mut self, _: RawFd, _: Interest) -> io::Result<Change> {
        hush(&self.bell);
        Ok(Change::default())
    }

    fn stats(&self) -> Stats {
        let a = lock(&self.aside);
        let mut all = self.stats;
        all.drop_n(Reason::Full, a.full);
        all.drop_n(Reason::PeerDown, a.down);
        all
    }

    fn stats_mut(&mut self) -> &mut Stats {
        &mut self.stats
    }
}

/// Those of a dataplane, by the slot of their port.
#[derive(Debug, Default)]
pub struct Asides(BTreeMap<u16, Handle>);

impl Asides {
    /// The one of a slot, made with this bell if it is not there; and its end, if it was made.
    ///
    /// # Errors
    /// No memory.
    pub fn get(&mut self, slot: u16, bell: OwnedFd) -> io::Result<(Handle, Option<End>)> {
        if let Some(h) = self.0.get(&slot) {
            return Ok((h.clone(), None));
        }
        let aside = Aside::new(bell)?;
        let bell = aside.bell.clone();
        let handle = Arc::new(Mutex::new(aside));
        self.0.insert(slot, handle.clone());
        Ok((handle.clone(), Some(End { aside: handle, bell, stats: Stats::default() })))
    }

    /// Its port goes, or was never there.
    pub fn forget(&mut self, slot: u16) {
        self.0.remove(&slot);
    }

    /// Forgets those that no filter has any more; their slots.
    pub fn unused(&mut self) -> Vec<u16> {
        // One is here, one is the end's.
        let unused: Vec<u16> =
            self.0.iter().filter(|(_, h)| Arc::strong_count(h) <= 2).map(|(s, _)| *s).collect();
        unused.iter().for_each(|s| self.forget(*s));
        unused
    }
}
