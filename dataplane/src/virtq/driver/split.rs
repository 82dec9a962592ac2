//! The driver side of a split ring.
#![forbid(unsafe_code)]

use super::Buf;
use crate::mem::split::{Desc, F_NEXT, F_WRITE, SplitRing};

/// What is particular to the format.
#[derive(Debug)]
pub(super) struct SplitDriver {
    pub(super) ring: SplitRing,
    /// Descriptors that are free, in a list through `links` that begins with `first`.
    pub(super) free: u16,
    first: u16,
    /// For each descriptor: the next in its chain, or in the list of free ones.
    links: Vec<u16>,
    /// For each descriptor that heads a chain: how many descriptors it has; 0: heads none.
    chains: Vec<u16>,
    avail: u16,
    published: u16,
    used: u16,
    /// `used.idx` as last read.
    seen: u16,
    event_idx: bool,
}

impl SplitDriver {
    pub(super) fn new(ring: SplitRing, event_idx: bool) -> Self {
        let n = ring.size();
        let (avail, used) = (ring.avail_idx(), ring.used_idx());
        Self {
            free: n,
            first: 0,
            links: (1..=n).collect(),
            chains: vec![0; usize::from(n)],
            avail,
            published: avail,
            used,
            seen: used,
            ring,
            event_idx,
        }
    }

    #[inline]
    fn link(&self, at: u16) -> u16 {
        self.links.get(usize::from(at)).copied().unwrap_or(0)
    }

    #[inline]
    pub(super) fn add(&mut self, bufs: &[Buf]) -> Option<u16> {
        let count = u16::try_from(bufs.len()).ok().filter(|n| (1..=self.free).contains(n))?;
        let head = self.first;
        let mut at = head;
        for (i, b) in (1..).zip(bufs) {
            let next = self.link(at);
            let more = i < count;
            let flags = if more { F_NEXT } else { 0 } | if b.write { F_WRITE } else { 0 };
            self.ring
                .set_desc(at, Desc { addr: b.addr, len: b.len, flags, next: if more { next } else { 0 } });
            at = next;
        }
        self.first = at;
        self.free = self.free.wrapping_sub(count);
        if let Some(c) = self.chains.get_mut(usize::from(head)) {
            *c = count;
        }
        self.ring.set_avail_entry(self.avail, head);
        self.avail = self.avail.wrapping_add(1);
        Some(head)
    }

    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        let old = std::mem::replace(&mut self.published, self.avail);
        self.ring.set_avail_idx(self.avail);
        SplitRing::barrier();
        if self.event_idx {
            let event = self.ring.avail_event();
            return self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(old);
        }
        self.ring.used_flags() & 1 == 0
    }

    #[inline]
    pub(super) fn take(&mut self) -> Option<(u16, u32)> {
        loop {
            if self.used == self.seen {
                self.seen = self.ring.used_idx();
                if self.used == self.seen {
                    return None;
                }
            }
            let (id, len) = self.ring.used_entry(self.used);
            self.used = self.used.wrapping_add(1);
            if let Ok(head) = u16::try_from(id)
                && self.reclaim(head)
            {
                return Some((head, len));
            }
        }
    }

    #[inline]
    fn reclaim(&mut self, head: u16) -> bool {
        let Some(count) = self.chains.get_mut(usize::from(head)).map(std::mem::take) else { return false };
        let mut last = head;
        for _ in 1..count {
            last = self.link(last);
        }
        if count > 0
            && let Some(l) = self.links.get_mut(usize::from(last))
        {
            *l = self.first;
            self.first = head;
            self.free = self.free.wrapping_add(count);
        }
        count > 0
    }

    pub(super) fn arm(&mut self) -> bool {
        self.ring.set_avail_flags(0);
        self.ring.set_used_event(self.used);
        SplitRing::barrier();
        self.ring.used_idx() != self.used
    }

    pub(super) fn hush(&mut self) {
        self.ring.set_avail_flags(1);
        // With an event index the flag means nothing: the index stays behind.
        self.ring.set_used_event(self.used.wrapping_sub(1));
    }
}
