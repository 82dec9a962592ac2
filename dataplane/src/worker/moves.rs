//! Lanes that come, go and get other ends, while frames pass on all the others.
//!
//! A port without a peer sits on lanes of its own, at the device's end, with [`Absent`] at the other: so it is served as
//! ever, and what comes from it is dropped and counted. To join two ports is to move the one's queues to the netdev's end
//! of the other's lanes; to part them is to move the device's queues to new lanes. What may fail (memory, a place) is
//! done first, so that a move is made wholly or not at all.
//!
//! All this is the first worker's, under the floor's gate and with the locks of every lane that is touched, as any
//! change (see [`super::floor`]); no turn is under way in them.
//!
//! Trust: the engine, for slots that mean what the supervisor means. Promise: every queue of a port moves or none; order
//! is kept; of frames, a giver that cannot take back loses what its old lane held, counted.
#![forbid(unsafe_code)]

use std::io;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use netreeve_shared::mac::Mac;

use super::floor::{Desk, Floor, NOBODY, Seated, lock};
use crate::lane::{Lane, Side};
use crate::port::absent::Absent;
use crate::port::{Port, Queues};

/// Why a port cannot go where it is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cannot {
    /// No such slot in use.
    NoPort(u16),
    /// A port cannot be its own peer.
    Alone,
    /// The numbers of queues differ: of the netdev and of the device.
    Queues(usize, usize),
    /// No memory, or no place: the error's number.
    Room(i32),
    /// It has a peer.
    Taken(u16),
}

impl From<io::Error> for Cannot {
    fn from(e: io::Error) -> Self {
        Self::Room(e.raw_os_error().unwrap_or(libc::ENOMEM))
    }
}

/// A desk whose lane is held.
struct Held<'a> {
    desk: &'a Desk,
    lane: MutexGuard<'a, Lane>,
}

/// A lane with nobody at either end.
fn bare() -> io::Result<Lane> {
    Lane::new(Box::<Absent>::default(), Box::<Absent>::default(), None)
}

impl Floor {
    /// The desks that a slot's queues sit at, in order, and at which end.
    fn seats(&self, slot: u16) -> Vec<(usize, Side)> {
        let at = |(i, d): (usize, &Desk)| match d.slots() {
            (n, _) if n == slot => Some((i, Side::Netdev)),
            (_, d) if d == slot => Some((i, Side::Device)),
            _ => None,
        };
        if slot == NOBODY { Vec::new() } else { self.desks().filter_map(at).collect() }
    }

    /// A slot is in use.
    #[must_use]
    pub fn has(&self, slot: u16) -> bool {
        !self.seats(slot).is_empty()
    }

    /// Slots of ports without peers, once for each of their queues.
    #[must_use]
    pub fn lonely(&self) -> Vec<u16> {
        self.desks().map(|(_, d)| d.slots()).filter(|s| s.0 == NOBODY && s.1 != NOBODY).map(|s| s.1).collect()
    }

    /// So many desks with nobody at them.
    fn free(&self, n: usize) -> io::Result<Vec<usize>> {
        let mut free: Vec<usize> =
            self.desks().filter(|(_, d)| d.slots() == (NOBODY, NOBODY)).map(|(i, _)| i).take(n).collect();
        while free.len() < n {
            free.push(self.put(Seated { lane: bare()?, slots: (NOBODY, NOBODY) })?);
        }
        Ok(free)
    }

    /// Holds the lanes of these desks, all at once, for `what`; then has everybody look at what changed.
    fn hold<T>(&self, desks: &[usize], what: impl FnOnce(&mut [Held<'_>]) -> T) -> T {
        let first = lock(&self.gate);
        let desks: Vec<&Desk> = desks.iter().filter_map(|i| self.desk(*i)).collect();
        desks.iter().for_each(|d| d.wanted.store(true, Ordering::Relaxed));
        let mut held: Vec<_> = desks.iter().map(|desk| Held { desk, lane: lock(&desk.lane) }).collect();
        let result = what(&mut held);
        drop(held);
        desks.iter().for_each(|d| d.wanted.store(false, Ordering::Relaxed));
        drop(first);
        (0..self.workers()).for_each(|w| self.ring(w));
        self.refresh();
        result
    }

    /// Seats a new port's queues, without a peer.
    ///
    /// # Errors
    /// No room; the port is closed.
    pub fn seat_port(&self, slot: u16, queues: Queues) -> Result<(), Cannot> {
        let desks = self.free(queues.len())?;
        self.hold(&desks, |held| {
            for (h, port) in held.iter_mut().zip(queues) {
                h.lane.replace(Side::Device, port);
                h.lane.set_lock_mac(None);
                h.desk.set_slots((NOBODY, slot));
            }
            if let Some(h) = held.first_mut() {
                h.lane.tell_links();
            }
        });
        Ok(())
    }

    /// Closes a port; the peer that it had has none any more.
    ///
    /// # Errors
    /// There is no such port, or no room for its peer alone.
    pub fn unseat_port(&self, slot: u16) -> Result<(), Cannot> {
        self.part(slot)?;
        let desks: Vec<usize> = self.seats(slot).into_iter().map(|(i, _)| i).collect();
        let gone: Queues = self.hold(&desks, |held| {
            let leave = |h: &mut Held<'_>| {
                h.desk.set_slots((NOBODY, NOBODY));
                // Who faces a port without a peer goes with it.
                let faced = h.lane.replace(Side::Netdev, Box::<Absent>::default());
                [h.lane.replace(Side::Device, Box::<Absent>::default()), faced]
            };
            held.iter_mut().flat_map(leave).collect()
        });
        drop(gone);
        // A hub may have lost a member with it.
        self.refresh();
        Ok(())
    }

    /// Takes the wire that a slot is on apart, if it is on one: both ports are without peers.
    ///
    /// # Errors
    /// There is no such port, or no room.
    pub fn part(&self, slot: u16) -> Result<(), Cannot> {
        let seats = self.seats(slot);
        let Some((first, _)) = seats.first() else { return Err(Cannot::NoPort(slot)) };
        let slots = self.desk(*first).map_or((NOBODY, NOBODY), Desk::slots);
        if slots.0 == NOBODY {
            return Ok(());
        }
        let old: Vec<usize> = seats.into_iter().map(|(i, _)| i).collect();
        let new = self.free(old.len())?;
        let (n, desks) = (old.len(), [old, new].concat());
        self.hold(&desks, |held| {
            let (old, new) = held.split_at_mut(n);
            separate(old, new);
            tell_links([old, new]);
        });
        Ok(())
    }

    /// The netdev that these desks have beside a port, if they have one.
    fn has_two(&self, desks: &[usize]) -> bool {
        desks.first().and_then(|i| self.desk(*i)).is_some_and(|d| d.slots().0 != NOBODY)
    }

    /// Makes two ports a wire; they leave the wires that they are on.
    ///
    /// # Errors
    /// There is no such port; they do not fit; no room.
    pub fn join(&self, netdev: u16, device: u16, lock_mac: Option<Mac>) -> Result<(), Cannot> {
        if netdev == device {
            return Err(Cannot::Alone);
        }
        let (a, b) = (self.seats(netdev), self.seats(device));
        for (seats, slot) in [(&a, netdev), (&b, device)] {
            if seats.is_empty() {
                return Err(Cannot::NoPort(slot));
            }
        }
        if a.len() != b.len() {
            return Err(Cannot::Queues(a.len(), b.len()));
        }
        // Room for whoever is left behind: first the netdev's lanes and new ones, then the device's.
        let (n, one) = (a.len(), |seats: Vec<(usize, Side)>| seats.into_iter().map(|(i, _)| i));
        let (a, b): (Vec<usize>, Vec<usize>) = (one(a).collect(), one(b).collect());
        let same = a == b;
        let for_a = if self.has_two(&a) { n } else { 0 };
        let for_b = if !same && self.has_two(&b) { n } else { 0 };
        let moved = for_b > 0;
        let spare = self.free(for_a + for_b)?;
        let desks = if same { [a, spare].concat() } else { [a, b, spare].concat() };
        self.hold(&desks, |held| {
            let (a, rest) = held.split_at_mut(n);
            let (b, spare) = rest.split_at_mut(if same { 0 } else { n });
            let (for_a, for_b) = spare.split_at_mut(for_a);
            separate(a, for_a);
            if !same {
                separate(b, for_b);
            }
            let mut lanes: Vec<&mut Held<'_>> =
                a.iter_mut().chain(b.iter_mut()).chain(for_a.iter_mut()).chain(for_b.iter_mut()).collect();
            unite(&mut lanes, netdev, device, lock_mac);
            // A device that was elsewhere before: who is behind its new netdev does not know it.
            let wire = |h: &&mut &mut Held<'_>| h.desk.slots() == (netdev, device);
            if let Some(first) = lanes.iter_mut().find(wire).filter(|_| moved) {
                first.lane.port(Side::Device).announce();
            }
            tell_links([a, b, for_a, for_b]);
        });
        Ok(())
    }

    /// Puts a port that has no slot to the other end of the lane of one that has no peer, in place of who was there.
    ///
    /// # Errors
    /// There is no such port, it has a peer, or more than one queue.
    pub fn face(&self, slot: u16, port: Box<dyn Port>) -> Result<(), Cannot> {
        let desks: Vec<usize> = self.seats(slot).into_iter().map(|(i, _)| i).collect();
        match desks.len() {
            0 => return Err(Cannot::NoPort(slot)),
            1 if self.has_two(&desks) => return Err(Cannot::Taken(slot)),
            1 => {}
            n => return Err(Cannot::Queues(1, n)),
        }
        let was = self.hold(&desks, |held| {
            let h = held.first_mut()?;
            let was = h.lane.replace(Side::Netdev, port);
            h.lane.tell_links();
            Some(was)
        });
        drop(was);
        Ok(())
    }

    /// Takes a port's link down, or up again.
    ///
    /// # Errors
    /// There is no such port.
    pub fn set_link(&self, slot: u16, up: bool) -> Result<(), Cannot> {
        let seats = self.seats(slot);
        let Some((_, side)) = seats.first().copied() else { return Err(Cannot::NoPort(slot)) };
        let desks: Vec<usize> = seats.into_iter().map(|(i, _)| i).collect();
        self.hold(&desks, |held| {
            held.iter_mut().for_each(|h| h.lane.set_off(side, !up));
            if let Some(h) = held.first_mut() {
                h.lane.tell_links();
            }
        });
        Ok(())
    }
}

/// Moves a port from one lane's end to another's, with what was said of it.
fn move_port(from: &mut Lane, end: Side, to: &mut Lane, side: Side) {
    let (dead, off) = from.marks(end);
    let port = from.replace(end, Box::<Absent>::default());
    to.replace(side, port);
    to.set_dead(side, dead);
    to.set_off(side, off);
}

/// Takes a wire's lanes apart: devices stay where they are, netdevs go to new lanes. Of lanes without a netdev, nothing.
fn separate(wire: &mut [Held<'_>], new: &mut [Held<'_>]) {
    for (old, new) in wire.iter_mut().zip(new) {
        let (netdev, device) = old.desk.slots();
        if netdev == NOBODY {
            continue;
        }
        move_port(&mut old.lane, Side::Netdev, &mut new.lane, Side::Device);
        old.lane.set_lock_mac(None);
        old.desk.set_slots((NOBODY, device));
        new.desk.set_slots((NOBODY, netdev));
    }
}

/// Of these lanes, puts the netdev's queues to the device's: both are without peers.
fn unite(lanes: &mut [&mut Held<'_>], netdev: u16, device: u16, lock_mac: Option<Mac>) {
    let of = |lanes: &[&mut Held<'_>], slot: u16| -> Vec<usize> {
        lanes.iter().enumerate().filter(|(_, h)| h.desk.slots() == (NOBODY, slot)).map(|(i, _)| i).collect()
    };
    let (from, to) = (of(lanes, netdev), of(lanes, device));
    for (f, t) in from.into_iter().zip(to) {
        let Ok([from, to]) = lanes.get_disjoint_mut([f, t]) else { continue };
        move_port(&mut from.lane, Side::Device, &mut to.lane, Side::Netdev);
        from.lane.replace(Side::Netdev, Box::<Absent>::default());
        from.desk.set_slots((NOBODY, NOBODY));
        to.desk.set_slots((netdev, device));
        to.lane.set_lock_mac(lock_mac);
    }
}

/// Has the first queues' ports tell who is behind them how the move has left their links. Only at its end: a device whose
/// netdev was swapped has not been without a link.
fn tell_links<'a, 'f: 'a, const N: usize>(wires: [&'a mut [Held<'f>]; N]) {
    wires.into_iter().filter_map(<[_]>::first_mut).for_each(|h| h.lane.tell_links());
}
