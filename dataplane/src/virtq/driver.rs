//! The driver side of a split ring: buffers lent to a device and taken back.
//!
//! Small and plain: for back ends that we attach to, for benches, and as the other party of the device side's tests.
//! Trust: none in the device; what it returns is checked against what was lent. Promise: a buffer is never lent twice.
#![forbid(unsafe_code)]

use crate::mem::split::{Desc, F_NEXT, F_WRITE, SplitRing};

/// One buffer of a chain, by guest physical address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buf {
    /// Guest physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// The device writes it.
    pub write: bool,
}

/// The driver side of one split ring.
#[derive(Debug)]
pub struct Driver {
    ring: SplitRing,
    /// Free descriptors, the one freed last on top.
    free: Vec<u16>,
    /// For each descriptor that heads a chain: how many descriptors it has; 0: heads none.
    chains: Vec<u16>,
    /// For each descriptor: the next in its chain.
    links: Vec<u16>,
    avail: u16,
    published: u16,
    used: u16,
    event_idx: bool,
}

impl Driver {
    /// Takes charge of a fresh ring (all zero).
    #[must_use]
    pub fn new(ring: SplitRing, event_idx: bool) -> Self {
        let n = ring.size();
        Self {
            free: (0..n).rev().collect(),
            chains: vec![0; usize::from(n)],
            links: vec![0; usize::from(n)],
            avail: ring.avail_idx(),
            published: ring.avail_idx(),
            used: ring.used_idx(),
            ring,
            event_idx,
        }
    }

    /// Descriptors that are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// The ring itself.
    #[must_use]
    pub fn ring(&self) -> &SplitRing {
        &self.ring
    }

    /// Lends a chain; its name, or none if there are too few descriptors. Seen by the device after
    /// [`Driver::publish`].
    pub fn add(&mut self, bufs: &[Buf]) -> Option<u16> {
        if bufs.is_empty() || bufs.len() > self.free.len() {
            return None;
        }
        let count = u16::try_from(bufs.len()).ok()?;
        let head = *self.free.last()?;
        for (i, b) in bufs.iter().enumerate() {
            let at = self.free.pop()?;
            let more = i + 1 < bufs.len();
            let next = if more { *self.free.last()? } else { 0 };
            let flags = if more { F_NEXT } else { 0 } | if b.write { F_WRITE } else { 0 };
            self.ring.set_desc(at, Desc { addr: b.addr, len: b.len, flags, next });
            if let Some(l) = self.links.get_mut(usize::from(at)) {
                *l = next;
            }
        }
        if let Some(c) = self.chains.get_mut(usize::from(head)) {
            *c = count;
        }
        self.ring.set_avail_entry(self.avail, head);
        self.avail = self.avail.wrapping_add(1);
        Some(head)
    }

    /// Shows the device what was lent. True: it wants a kick.
    pub fn publish(&mut self) -> bool {
        let old = std::mem::replace(&mut self.published, self.avail);
        self.ring.set_avail_idx(self.avail);
        SplitRing::barrier();
        if self.event_idx {
            let event = self.ring.avail_event();
            return self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(old);
        }
        self.ring.used_flags() & 1 == 0
    }

    /// Takes one chain back: its name and the bytes written. None: nothing is back, or the device names a chain that
    /// it was not lent (then `used` has moved on and the entry is ignored).
    pub fn take(&mut self) -> Option<(u16, u32)> {
        while self.ring.used_idx() != self.used {
            let (id, len) = self.ring.used_entry(self.used);
            self.used = self.used.wrapping_add(1);
            if let Ok(head) = u16::try_from(id)
                && self.reclaim(head)
            {
                return Some((head, len));
            }
        }
        None
    }

    /// Asks for an interrupt at the next completion.
    pub fn arm(&mut self) {
        if self.event_idx {
            self.ring.set_used_event(self.used);
        } else {
            self.ring.set_avail_flags(0);
        }
        SplitRing::barrier();
    }

    fn reclaim(&mut self, head: u16) -> bool {
        let Some(count) = self.chains.get_mut(usize::from(head)).map(std::mem::take) else { return false };
        let mut at = head;
        for _ in 0..count {
            self.free.push(at);
            at = self.links.get(usize::from(at)).copied().unwrap_or(0);
        }
        count > 0
    }
}
