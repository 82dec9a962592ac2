//! A lane: one queue's worth of a wire, and the turn in which frames cross it.
//!
//! THE file to read: `turn` is `lend → recv → check → send → release`, once for each direction. A lane belongs to one
//! worker and shares nothing; both ports are reached through [`Port`], a handful of virtual calls for each batch.
//!
//! Promise: a source is not read until its peer can take (no loss where the source can wait); frames stay in order;
//! a dead port ends neither the lane nor the process.
#![forbid(unsafe_code)]

mod leave;
mod side;

use std::io;
use std::os::fd::{OwnedFd, RawFd};

use netreeve_shared::mac::Mac;

use crate::filter::{self, Filter, Judgement};
use crate::frame::{BATCH, Batch};
use crate::mem::Pool;
use crate::offload::{self, At, Joiner};
use crate::port::{Change, Interest, Keep, Left, Port, Traits, Watch};
use crate::stage;
use crate::stats::{Reason, Stats};
pub use side::Side;

/// What came of a turn.
#[derive(Debug)]
pub enum Outcome {
    /// Frames moved; there may be more.
    Moved,
    /// Frames moved, and the giver has no more.
    Last,
    /// The giver has nothing.
    Dry,
    /// The taker takes no more.
    Full,
    /// A port died; the turn's frames are lost and counted.
    Dead(Side, io::Error),
}

/// One direction of a lane, named by its giver.
#[derive(Debug)]
struct Path {
    batch: Batch,
    scratch: Batch,
    /// Address space only until it is lent.
    pool: Pool,
    filter: Filter,
    /// Taken from the ports at every change.
    gives: Traits,
    takes: Traits,
    /// The taker lends, and whatever lands there needs no work and no judgement that could drop it.
    direct: bool,
    /// An end's link was taken down while its giver is up: what it gives is dropped.
    muted: bool,
    /// What is sent to a taker that is down is dropped (towards the netdev), not kept waiting (towards the guest).
    drops_when_down: bool,
    /// Frames of the last turn wait in the batch: their giver cannot take them back.
    held: bool,
    /// What the filter found in the batch.
    found: Judgement,
    /// How far the first waiting frame was segmented and sent.
    at: At,
    /// Segments are worth joining.
    joins: bool,
    joiner: Joiner,
    /// The batch waits in `scratch`, joined, with what of it was not sent.
    joined: bool,
    /// Some of the batch went joined, and the rest goes as it was given: what went is marked as dropped.
    partly: bool,
}

impl Path {
    fn new(lock_mac: Option<Mac>, drops_when_down: bool) -> io::Result<Self> {
        Ok(Self {
            batch: Batch::new(),
            scratch: Batch::new(),
            pool: Pool::new(Pool::BYTES)?,
            filter: Filter { lock_mac },
            gives: Traits { up: false, ..Traits::default() },
            takes: Traits { up: false, ..Traits::default() },
            direct: false,
            muted: false,
            drops_when_down,
            held: false,
            found: Judgement::default(),
            at: At::default(),
            joins: false,
            joiner: Joiner::default(),
            joined: false,
            partly: false,
        })
    }

    fn rewire(&mut self, gives: Traits, takes: Traits, from: &mut dyn Port) {
        let direct = gives.needs_memory
            && takes.lends
            && (gives.parks || !takes.shared)
            && gives.gives.within(takes.takes)
            && !gives.withheld
            && self.filter.lock_mac.is_none();
        // What does not lie in the taker's memory can wait for it to come back.
        let apart = !std::mem::replace(&mut self.direct, direct);
        if !(gives.up && (takes.up || apart)) {
            self.let_go(from, false);
        }
        // What waits joined may be what the taker does not take any more: the rest of the batch goes as it was given.
        self.partly = self.held && (self.partly || self.joined);
        self.joined = false;
        if self.held {
            self.found = self.filter.judge_again(&mut self.batch, &takes);
        }
        self.joins = gives.joinable && offload::pays(takes.takes);
        self.gives = gives;
        self.takes = takes;
        self.at = At::default();
    }

    /// Receives and judges a batch. False: there is no memory to receive into, the taker is full.
    fn fill(&mut self, from: &mut dyn Port, to: &mut dyn Port) -> io::Result<bool> {
        self.batch.clear();
        if self.gives.needs_memory {
            if self.direct {
                to.lend(&mut self.batch);
            } else {
                self.pool.lend(&mut self.batch.landing);
            }
            if !self.batch.landing.is_open() {
                return Ok(false);
            }
        }
        from.recv(&mut self.batch)?;
        self.found = self.filter.judge(&mut self.batch, &self.takes);
        Ok(true)
    }

    /// Sends what waits; says how many frames went on wholly.
    fn send(&mut self, to: &mut dyn Port) -> io::Result<usize> {
        if self.joined || (self.joins && !self.partly && self.join()) {
            return self.send_joined(to);
        }
        let all = self.batch.len();
        let whole = if self.found.work { self.send_finished(to)? } else { to.send(&self.batch)? };
        if whole >= all {
            self.at = At::default();
            self.partly = false;
            return Ok(all);
        }
        if self.partly {
            let gone = self.batch.frames_mut().get_mut(..whole).unwrap_or_default();
            gone.iter_mut().for_each(|f| f.dropped = true);
            return Ok(0);
        }
        self.at.frame = 0;
        Ok(whole)
    }

    /// Does the work that the taker cannot do, and sends.
    fn send_finished(&mut self, to: &mut dyn Port) -> io::Result<usize> {
        let all = self.batch.len();
        while self.at.frame < all {
            self.scratch.clear();
            let next = offload::finish(&self.batch, self.at, self.takes.takes, &mut self.scratch);
            let taken = if self.scratch.is_empty() { 0 } else { to.send(&self.scratch)? };
            if let Some(f) = self.scratch.frames().get(taken) {
                self.at = At::of(f);
                break;
            }
            self.at = next;
        }
        Ok(self.at.frame)
    }

    /// Puts the batch into `scratch` with its segments joined. False: there is nothing to join.
    fn join(&mut self) -> bool {
        if self.found.work || self.batch.len() < 2 || !self.joiner.plan(&self.batch, self.takes.takes) {
            return false;
        }
        self.scratch.clear();
        self.joiner.emit(&self.batch, &mut self.scratch);
        self.joined = true;
        true
    }

    /// Sends joined frames: the batch counts as taken when all of them are, because they have frames of any place in it.
    fn send_joined(&mut self, to: &mut dyn Port) -> io::Result<usize> {
        let taken = to.send(&self.scratch)?;
        self.joined = taken < self.scratch.len();
        if self.joined {
            let gone = self.scratch.frames().get(..taken).unwrap_or_default();
            gone.iter().for_each(|f| self.joiner.sent(&mut self.batch, f));
        }
        self.scratch.advance(taken);
        Ok(if self.joined { 0 } else { self.batch.len() })
    }

    /// Frames for a taker that is down: received and dropped, so that the giver does not stall.
    fn drain(&mut self, from: &mut dyn Port) -> io::Result<Outcome> {
        self.let_go(from, true);
        self.batch.clear();
        self.pool.lend(&mut self.batch.landing);
        from.recv(&mut self.batch)?;
        let n = self.batch.len();
        let lost = self.batch.frames().iter().filter(|f| !f.dropped).count();
        from.release(&self.batch, n);
        from.stats_mut().drop_n(Reason::PeerDown, lost as u64);
        Ok(if n == 0 { Outcome::Dry } else { Outcome::Moved })
    }
}

/// One queue's worth of a wire.
pub struct Lane {
    netdev: Box<dyn Port>,
    device: Box<dyn Port>,
    to_device: Path,
    to_netdev: Path,
    dead: (bool, bool),
    /// Its link was taken down.
    off: (bool, bool),
}

impl Lane {
    /// Joins two ports. `lock_mac`: frames from the device must come from this address.
    ///
    /// # Errors
    /// The kernel's, from mapping the pools.
    pub fn new(netdev: Box<dyn Port>, device: Box<dyn Port>, lock_mac: Option<Mac>) -> io::Result<Self> {
        let mut lane = Self {
            netdev,
            device,
            to_device: Path::new(None, false)?,
            to_netdev: Path::new(lock_mac, true)?,
            dead: (false, false),
            off: (false, false),
        };
        lane.rewire();
        Ok(lane)
    }

    /// Follows a change of either port's traits, and tells each what its peer takes.
    pub fn rewire(&mut self) {
        [&mut self.netdev, &mut self.device].into_iter().for_each(stage::tidy);
        for side in [Side::Netdev, Side::Device] {
            let peer = self.traits(side.peer());
            self.port(side).peer_takes(peer.takes);
            self.port(side).peer_spare(peer.spare);
        }
        let netdev = self.traits(Side::Netdev);
        let device = self.traits(Side::Device);
        let off = self.off.0 || self.off.1;
        self.netdev.peer_up(device.up && !off);
        self.device.peer_up(netdev.up && !off);
        self.to_device.muted = off && !self.dead.0 && self.netdev.traits().up;
        self.to_netdev.muted = off && !self.dead.1 && self.device.traits().up;
        self.to_device.rewire(netdev, device, self.netdev.as_mut());
        self.to_netdev.rewire(device, netdev, self.device.as_mut());
    }

    /// Asks again what follows from other lanes. True: something changed.
    pub fn refresh(&mut self) -> bool {
        if !(self.netdev.follows() || self.device.follows()) {
            return false;
        }
        let now = (self.traits(Side::Netdev), self.traits(Side::Device));
        let changed = now != (self.to_device.gives, self.to_netdev.gives);
        if changed {
            self.rewire();
        }
        changed
    }

    /// Puts another port at an end and gives back the one that was there. What the lane held of it is lost and counted.
    pub fn replace(&mut self, side: Side, port: Box<dyn Port>) -> Box<dyn Port> {
        match side {
            Side::Netdev if self.device.peer_new() => self.to_device.first_goes(),
            Side::Device if self.netdev.peer_new() => self.to_netdev.first_goes(),
            _ => {}
        }
        self.forget();
        let (dead, off) = match side {
            Side::Netdev => (&mut self.dead.0, &mut self.off.0),
            Side::Device => (&mut self.dead.1, &mut self.off.1),
        };
        (*dead, *off) = (false, false);
        let old = std::mem::replace(self.place(side), port);
        self.rewire();
        old
    }

    /// Lets go of what waits of both ends, because some of it lies in memory that goes.
    pub fn forget(&mut self) {
        self.to_device.forget(self.netdev.as_mut());
        self.to_netdev.forget(self.device.as_mut());
    }

    /// Frames from the device must come from this address.
    pub fn set_lock_mac(&mut self, mac: Option<Mac>) {
        self.to_netdev.filter.lock_mac = mac;
        self.rewire();
    }

    /// Takes an end's link down or up.
    pub fn set_off(&mut self, side: Side, off: bool) {
        *(if side == Side::Netdev { &mut self.off.0 } else { &mut self.off.1 }) = off;
        self.rewire();
    }

    /// What is sent to the netdev may have it give at once.
    #[must_use]
    pub fn answers(&self) -> bool {
        self.to_device.gives.answers
    }

    /// What [`Lane::set_dead`] and [`Lane::set_off`] said of an end.
    #[must_use]
    pub fn marks(&self, side: Side) -> (bool, bool) {
        if side == Side::Netdev { (self.dead.0, self.off.0) } else { (self.dead.1, self.off.1) }
    }

    /// Tells both ends whether they have a link: the other one is up, and neither was taken down.
    pub fn tell_links(&mut self) {
        let (netdev, device) = (self.is_up(Side::Netdev), self.is_up(Side::Device));
        self.netdev.peer_link(device && !self.off.0);
        self.device.peer_link(netdev && !self.off.1);
    }

    fn traits(&self, side: Side) -> Traits {
        let (dead, off) = self.marks(side);
        let t = if side == Side::Netdev { self.netdev.traits() } else { self.device.traits() };
        Traits { up: t.up && !dead && !off, ..t }
    }

    /// The port at an end.
    pub fn port(&mut self, side: Side) -> &mut dyn Port {
        self.place(side).as_mut()
    }

    /// The place of the port at an end, for a filter to be put around it. The lane is rewired by whoever does that.
    pub fn place(&mut self, side: Side) -> &mut Box<dyn Port> {
        if side == Side::Netdev { &mut self.netdev } else { &mut self.device }
    }

    /// The port is of no use until it is connected anew.
    pub fn set_dead(&mut self, side: Side, dead: bool) {
        *(if side == Side::Netdev { &mut self.dead.0 } else { &mut self.dead.1 }) = dead;
        self.rewire();
    }

    /// The end is up: alive, and its port says so.
    #[must_use]
    pub fn is_up(&self, side: Side) -> bool {
        self.traits(side).up
    }

    /// Descriptors of an end, none if it is dead (its control descriptor excepted).
    pub fn watch(&self, side: Side, w: &mut Watch) {
        match side {
            Side::Netdev if !self.dead.0 => self.netdev.watch(w),
            Side::Device if !self.dead.1 => self.device.watch(w),
            _ => {}
        }
    }

    /// A descriptor of an end is ready.
    ///
    /// # Errors
    /// The port died.
    pub fn event(&mut self, side: Side, fd: RawFd, why: Interest) -> io::Result<Change> {
        self.port(side).event(fd, why)
    }

    /// A new connection for an end.
    ///
    /// # Errors
    /// It is not what the port needs.
    pub fn connect(&mut self, side: Side, fd: OwnedFd) -> io::Result<Change> {
        self.port(side).connect(fd)
    }

    /// What the next dataplane needs to go on with an end's connection: [`Port::estate`].
    ///
    /// # Errors
    /// `keep`'s.
    pub fn estate(&mut self, side: Side, keep: &mut Keep<'_>) -> io::Result<bool> {
        self.port(side).estate(keep)
    }

    /// What the dataplane before left of an end.
    ///
    /// # Errors
    /// It does not fit.
    pub fn inherit(&mut self, side: Side, left: Left) -> io::Result<Change> {
        self.port(side).inherit(left)
    }

    /// About to sleep until `giver` gives or its taker takes; true: do not sleep.
    pub fn arm(&mut self, giver: Side, full: bool) -> bool {
        let up = self.is_up(giver);
        if full {
            self.is_up(giver.peer()) && self.port(giver.peer()).arm_takes()
        } else {
            up && self.port(giver).arm_gives()
        }
    }

    /// Counters of an end.
    #[must_use]
    pub fn stats(&self, side: Side) -> Stats {
        if side == Side::Netdev { self.netdev.stats() } else { self.device.stats() }
    }

    /// What did not come by the lane waits for this end to take it, while its peer has nothing for it.
    #[must_use]
    pub fn is_stuck(&self, taker: Side) -> bool {
        let (path, to) = match taker {
            Side::Netdev => (&self.to_netdev, &self.netdev),
            Side::Device => (&self.to_device, &self.device),
        };
        path.takes.withheld && to.is_stuck()
    }

    /// One pass in the direction that `giver` gives.
    pub fn turn(&mut self, giver: Side) -> Outcome {
        let (from, to, path) = match giver {
            Side::Netdev => (self.netdev.as_mut(), self.device.as_mut(), &mut self.to_device),
            Side::Device => (self.device.as_mut(), self.netdev.as_mut(), &mut self.to_netdev),
        };
        if !path.gives.up && !path.muted {
            return Outcome::Dry;
        }
        if !(path.gives.up && path.takes.up) {
            let drained =
                if path.drops_when_down || path.muted { path.drain(from) } else { Ok(Outcome::Full) };
            return drained.unwrap_or_else(|e| Outcome::Dead(giver, e));
        }
        if !path.held {
            match path.fill(from, to) {
                Ok(true) => {}
                Ok(false) => return Outcome::Full,
                Err(e) => return Outcome::Dead(giver, e),
            }
        }
        let waiting = path.batch.len();
        if waiting == 0 && !path.direct {
            return if path.takes.withheld && to.is_stuck() { Outcome::Full } else { Outcome::Dry };
        }
        let taken = match path.send(to) {
            Ok(taken) => taken,
            Err(e) => {
                path.held = waiting > 0;
                path.let_go(from, false);
                return Outcome::Dead(giver.peer(), e);
            }
        };
        let whole = path.joined || path.partly;
        if waiting > 0 && !whole {
            from.release(&path.batch, taken);
        }
        if path.found.drops {
            filter::count(path.batch.frames().get(..taken).unwrap_or_default(), from.stats_mut());
        }
        path.batch.advance(taken);
        path.held = taken < waiting && (whole || !path.gives.rewinds);
        if taken < waiting || (waiting == 0 && path.batch.landing.is_stopped()) {
            // What was lent may not hold the giver's next frame: only the taker can change that.
            Outcome::Full
        } else if waiting == BATCH || (waiting > 0 && path.gives.needs_memory) {
            Outcome::Moved
        } else if waiting > 0 {
            Outcome::Last
        } else {
            Outcome::Dry
        }
    }
}

#[cfg(test)]
mod tests;
