//! The driver side of a packed ring.
#![forbid(unsafe_code)]

use super::Buf;
use crate::mem::packed::{EVENT_DESC, EVENT_DISABLE, EVENT_ENABLE, Entry, Event, PackedRing, Place};
use crate::mem::split::{F_NEXT, F_WRITE};

/// What is particular to the format.
#[derive(Debug)]
pub(super) struct PackedDriver {
    pub(super) ring: PackedRing,
    /// Places that are free.
    pub(super) free: u16,
    next: Place,
    used: Place,
    /// Names that are free.
    names: Vec<u16>,
    /// For each name: how many places its chain takes; 0: it names none.
    chains: Vec<u16>,
    /// Places filled since the last [`PackedDriver::publish`].
    filled: u16,
    event_idx: bool,
}

impl PackedDriver {
    pub(super) fn new(ring: PackedRing, event_idx: bool) -> Self {
        let n = ring.size();
        let start = Place::new(0, true);
        Self {
            free: n,
            next: start,
            used: start,
            names: (0..n).rev().collect(),
            chains: vec![0; usize::from(n)],
            filled: 0,
            ring,
            event_idx,
        }
    }

    #[inline]
    pub(super) fn add(&mut self, bufs: &[Buf]) -> Option<u16> {
        let count = u16::try_from(bufs.len()).ok().filter(|n| (1..=self.free).contains(n))?;
        let id = self.names.pop()?;
        let size = self.ring.size();
        self.free = self.free.wrapping_sub(count);
        self.filled = self.filled.wrapping_add(count);
        if let Some(c) = self.chains.get_mut(usize::from(id)) {
            *c = count;
        }
        if let [b] = bufs {
            let flags = self.next.available() | if b.write { F_WRITE } else { 0 };
            self.ring.set_addr(self.next.at(), b.addr);
            self.ring.set_entry(self.next.at(), Entry { len: b.len, id, flags });
            self.next = self.next.after(1, size);
            return Some(id);
        }
        let (mut place, mut head) = (self.next, Entry::default());
        for (i, b) in (1..).zip(bufs) {
            let more = if i < count { F_NEXT } else { 0 };
            let flags = place.available() | more | if b.write { F_WRITE } else { 0 };
            let entry = Entry { len: b.len, id, flags };
            self.ring.set_addr(place.at(), b.addr);
            // The first place hands the whole chain over: it is written last.
            if i == 1 {
                head = entry;
            } else {
                self.ring.set_entry(place.at(), entry);
            }
            place = place.after(1, size);
        }
        self.ring.set_entry(self.next.at(), head);
        self.next = place;
        Some(id)
    }

    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        PackedRing::barrier();
        let filled = std::mem::take(&mut self.filled);
        filled > 0 && self.ring.device_event().wants(self.next, filled, self.ring.size())
    }

    #[inline]
    pub(super) fn take(&mut self) -> Option<(u16, u32)> {
        let e = self.ring.entry(self.used.at());
        if !e.is_used(self.used) || self.free == self.ring.size() {
            return None;
        }
        let count = self.chains.get_mut(usize::from(e.id)).map(std::mem::take).filter(|&n| n > 0)?;
        self.used = self.used.after(count, self.ring.size());
        self.free = self.free.wrapping_add(count);
        self.names.push(e.id);
        Some((e.id, e.len))
    }

    pub(super) fn arm(&mut self) -> bool {
        let flags = if self.event_idx { EVENT_DESC } else { EVENT_ENABLE };
        self.ring.set_driver_event(Event { place: self.used, flags });
        PackedRing::barrier();
        self.ring.entry(self.used.at()).is_used(self.used) && self.free < self.ring.size()
    }

    pub(super) fn hush(&mut self) {
        self.ring.set_driver_event(Event { place: self.used, flags: EVENT_DISABLE });
    }
}
