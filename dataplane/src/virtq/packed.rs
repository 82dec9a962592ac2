//! The device side of a packed ring (virtio 1.2 §2.8).
//!
//! Trust: none in the driver. Promise: a chain that runs on beyond what the ring holds stops it; nothing else does.
//! Completions are seen in ring order, one by one: what a driver has not seen, a successor can still serve.
//!
//! **After a crash** no index says where this device was, as `used.idx` does in a split ring. What does is the `USED`
//! bit: the device inverts it in every place that it completes, and a driver that fills the place again leaves it. So
//! that inner places of a chain take part, they are marked before the chain's first place is; and so that the walk has
//! somewhere to begin, the device's event word carries a place that was passed less than one round ago, which drivers
//! do not look at unless it asks for kicks at a place (and then it names the place that was fetched up to).
//! [`recover`] finds the exact place from these, wherever the device was stopped.
#![forbid(unsafe_code)]

use super::chain::{Chain, Chains, MAX_BYTES, Walk};
use super::device::State;
use crate::mem::packed::{
    EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE, Entry, Event, F_AVAIL, F_USED, PackedRing, Place,
};
use crate::mem::split::{Desc, F_INDIRECT, F_NEXT, F_WRITE};

/// What is particular to the format.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) ring: PackedRing,
    /// The next place to look at.
    next: Place,
    /// The first place that is not completed.
    used: Place,
    /// Places completed since one was noted for a successor.
    noted: u16,
}

impl Packed {
    /// From this place on; none if it is outside the ring.
    pub(super) fn new(ring: PackedRing, base: u16) -> Option<Self> {
        let mut next = Place::from_bits(base);
        if next.at() >= ring.size() {
            return None;
        }
        // User-Mode Linux says 0 of every fresh ring, which means the start of the second round: then the place before
        // it were used in the first.
        if base == 0 && !is_done(&ring, next.before(1, ring.size())) {
            next = Place::new(0, true);
        }
        Some(Self { ring, next, used: next, noted: 0 })
    }

    pub(super) fn base(&self) -> u16 {
        self.next.bits()
    }

    pub(super) fn has_work(&self) -> bool {
        self.ring.entry(self.next.at()).is_available(self.next)
    }

    /// Appends up to `most` chains.
    #[inline]
    pub(super) fn fetch(&mut self, s: &mut State, into: &mut Chains, most: u16) {
        let size = self.ring.size();
        let mut left = most;
        // Where all places are taken already, nothing is looked at.
        while left > 0 && s.open < size {
            let window = self.ring.memory().window(s.hint);
            let room = left.min(size.wrapping_sub(s.open)).min(size.wrapping_sub(self.next.at()));
            let (before, mut odd) = (into.len(), None);
            // Usually all of them: one buffer in the region of the last one.
            for slot in self.ring.from(self.next.at()).take(usize::from(room)) {
                let e = slot.entry();
                if !e.is_available(self.next) {
                    left = 0;
                    break;
                }
                match window.whole(slot.addr(), e.len) {
                    Some(seg) if e.flags & (F_NEXT | F_INDIRECT) == 0 && e.len <= MAX_BYTES => {
                        into.push_one(e.id, seg, e.flags & F_WRITE != 0);
                    }
                    _ => {
                        odd = Some(e);
                        break;
                    }
                }
            }
            let n = u16::try_from(into.len().wrapping_sub(before)).unwrap_or(0);
            s.open = s.open.wrapping_add(n);
            left = left.saturating_sub(n);
            self.next = self.next.after(n, size);
            if let Some(first) = odd {
                self.chain(s, into, first);
                left = left.wrapping_sub(1);
                if s.stopped {
                    return;
                }
            }
        }
    }

    /// Appends the chain that begins at the next place. All its places are looked at even if it is a bad one, because
    /// its name stands in the last and the ring goes on behind it.
    #[inline(never)]
    fn chain(&mut self, s: &mut State, into: &mut Chains, first: Entry) {
        let size = self.ring.size();
        let room = size.wrapping_sub(s.open);
        let mut walk = into.walk(self.ring.memory(), &mut s.hint);
        let (mut place, mut e, mut slots, mut good) = (self.next, first, 1u16, Some(()));
        loop {
            let d = Desc { addr: self.ring.addr(place.at()), len: e.len, flags: e.flags, next: 0 };
            good = good.and_then(|()| add(&mut walk, &d, s.indirect && slots == 1));
            if e.flags & F_NEXT == 0 {
                break;
            }
            slots += 1;
            if slots > room {
                s.stopped = true;
                walk.forget();
                return;
            }
            place = place.after(1, size);
            e = self.ring.entry(place.at());
        }
        walk.end(e.id, slots, good);
        self.next = self.next.after(slots, size);
        s.open += slots;
    }

    #[inline]
    pub(super) fn unfetch(&mut self, s: &mut State, chains: &[Chain]) {
        let slots = chains.iter().fold(0, |n: u16, c| n.wrapping_add(c.slots));
        s.open = s.open.wrapping_sub(slots);
        self.next = self.next.before(slots, self.ring.size());
    }

    /// Completes these chains. True: the driver wants to be interrupted.
    #[inline]
    pub(super) fn complete(&mut self, s: &mut State, done: &[Chain]) -> bool {
        let size = self.ring.size();
        // What is completed now is open now.
        if u32::from(self.noted) + u32::from(s.open) > u32::from(size) {
            self.note(EVENT_DISABLE);
        }
        let (mut at, mut flags, mut slots) = (self.used.at(), self.used.used(), 0u16);
        let mut wrap = self.used.wrap();
        for c in done {
            if c.slots > 1 {
                self.mark(Place::new(at, wrap), c.slots);
            }
            let written = if c.written > 0 { F_WRITE } else { 0 };
            self.ring.set_entry(at, Entry { len: c.written, id: c.id, flags: flags | written });
            slots = slots.wrapping_add(c.slots);
            at = at.wrapping_add(c.slots);
            if at >= size {
                at = at.wrapping_sub(size);
                wrap = !wrap;
                flags ^= F_AVAIL | F_USED;
            }
        }
        self.used = Place::new(at, wrap);
        self.noted = self.noted.wrapping_add(slots);
        s.open = s.open.wrapping_sub(slots);
        PackedRing::barrier();
        self.ring.driver_event().wants(self.used, slots, size)
    }

    /// Marks the inner places of a chain.
    #[inline(never)]
    fn mark(&self, first: Place, slots: u16) {
        for n in 1..slots {
            self.ring.mark_used(first.after(n, self.ring.size()));
        }
    }

    /// Writes down where completion has come to, with flags under which drivers do not read it.
    fn note(&mut self, flags: u16) {
        self.ring.set_device_event(Event { place: self.used, flags });
        self.noted = 0;
    }

    #[inline]
    pub(super) fn hush(&mut self) {
        self.note(EVENT_DISABLE);
    }

    pub(super) fn arm(&mut self, s: &State) {
        if s.event_idx {
            self.ring.set_device_event(Event { place: self.next, flags: EVENT_DESC });
        } else {
            self.note(EVENT_ENABLE);
        }
        PackedRing::barrier();
    }
}

/// Adds one descriptor's buffer, or its table where one may be: a chain's only descriptor (§2.8.8).
fn add(walk: &mut Walk<'_>, d: &Desc, table: bool) -> Option<()> {
    if d.flags & F_INDIRECT == 0 {
        return walk.add(d);
    }
    if table && d.flags & F_NEXT == 0 { walk.table(d, false) } else { None }
}

/// A device has completed what was at this place in this round.
fn is_done(ring: &PackedRing, place: Place) -> bool {
    (ring.entry(place.at()).flags & F_USED != 0) == place.wrap()
}

/// The place where a device that was stopped at any moment had come to: the first that it had not completed.
pub(super) fn recover(ring: &PackedRing) -> Option<Place> {
    let size = ring.size();
    let event = ring.device_event();
    if event.place.at() >= size {
        return None;
    }
    let done = |p: Place| is_done(ring, p);
    if event.flags & 3 == EVENT_DESC {
        // It slept, and had completed nothing since: what it had fetched and not completed lies before.
        return (0..=size).map(|n| event.place.before(n, size)).find(|p| done(p.before(1, size)));
    }
    (0..=size).map(|n| event.place.after(n, size)).find(|p| !done(*p))
}

#[cfg(test)]
#[path = "packed_tests.rs"]
mod tests;
