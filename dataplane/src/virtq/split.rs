//! The device side of a split ring (virtio 1.2 §2.7).
//!
//! Trust: none in the driver. Promise: an index that runs ahead by more than the ring holds, or a head outside the
//! descriptor table, stops the ring; nothing else does. Completions are seen in ring order, with one index store for
//! each call.
#![forbid(unsafe_code)]

use super::chain::{Chain, Chains, MAX_BYTES, MAX_SEGS, Walk};
use super::device::State;
use crate::mem::split::{Desc, F_INDIRECT, F_NEXT, F_WRITE, SplitRing};

/// `VIRTQ_USED_F_NO_NOTIFY` and `VIRTQ_AVAIL_F_NO_INTERRUPT`.
const QUIET: u16 = 1;

/// What is particular to the format.
#[derive(Debug)]
pub(super) struct Split {
    pub(super) ring: SplitRing,
    /// The next available entry to look at.
    next: u16,
    /// `avail.idx` as last read.
    avail: u16,
    /// `used.idx` as last published.
    used: u16,
    /// `used.idx` at the last decision about an interrupt; none: always interrupt.
    signalled: Option<u16>,
}

impl Split {
    /// From available position `base` on.
    pub(super) fn new(ring: SplitRing, base: u16) -> Self {
        let used = ring.used_idx();
        Self { ring, next: base, avail: base, used, signalled: None }
    }

    pub(super) fn base(&self) -> u16 {
        self.next
    }

    pub(super) fn has_work(&self) -> bool {
        self.ring.avail_idx() != self.next
    }

    /// Entries that can be fetched, `want` at most; the driver's index is asked only if too few are known.
    #[inline]
    fn available(&mut self, s: &mut State, want: u16) -> u16 {
        let known = self.avail.wrapping_sub(self.next);
        if known >= want {
            return want;
        }
        self.avail = self.ring.avail_idx();
        let n = self.avail.wrapping_sub(self.next);
        // What was fetched and is not yet completed still takes its places.
        if u32::from(n) + u32::from(s.open) > u32::from(self.ring.size()) {
            s.stopped = true;
            return 0;
        }
        n.min(want)
    }

    /// Appends up to `most` chains.
    #[inline]
    pub(super) fn fetch(&mut self, s: &mut State, into: &mut Chains, most: u16) {
        let n = self.available(s, most);
        let mut done = 0;
        while done < n {
            let window = self.ring.memory().window(s.hint);
            // Usually all of them: one buffer in the region of the last one.
            let odd = loop {
                let head = self.ring.avail_entry(self.next.wrapping_add(done));
                let Some(d) = self.ring.desc(head) else {
                    s.stopped = true;
                    break None;
                };
                match window.whole(d.addr, d.len) {
                    Some(seg) if d.flags & (F_NEXT | F_INDIRECT) == 0 && d.len <= MAX_BYTES => {
                        into.push_one(head, seg, d.flags & F_WRITE != 0);
                    }
                    _ => break Some((head, d)),
                }
                done = done.wrapping_add(1);
                if done == n {
                    break None;
                }
            };
            match odd {
                Some((head, first)) => self.chain(s, into, head, first),
                None => break,
            }
            done = done.wrapping_add(1);
        }
        self.next = self.next.wrapping_add(done);
        s.open += done;
    }

    #[inline(never)]
    fn chain(&self, s: &mut State, into: &mut Chains, head: u16, first: Desc) {
        let mut walk = into.walk(self.ring.memory(), &mut s.hint);
        let good = self.follow(&mut walk, first, s.indirect);
        walk.end(head, 1, good);
    }

    /// Follows a chain from its first descriptor. Bounded by a count, so that a loop ends.
    fn follow(&self, walk: &mut Walk<'_>, first: Desc, indirect: bool) -> Option<()> {
        let mut d = first;
        for _ in 0..MAX_SEGS {
            if d.flags & F_INDIRECT != 0 {
                // The table is the chain's last descriptor (§2.7.5.3.1).
                return if indirect && d.flags & F_NEXT == 0 { walk.table(&d, true) } else { None };
            }
            walk.add(&d)?;
            if d.flags & F_NEXT == 0 {
                return Some(());
            }
            d = self.ring.desc(d.next)?;
        }
        None
    }

    #[inline]
    pub(super) fn unfetch(&mut self, s: &mut State, chains: &[Chain]) {
        let n = u16::try_from(chains.len()).unwrap_or(u16::MAX);
        s.open = s.open.wrapping_sub(n);
        self.next = self.next.wrapping_sub(n);
    }

    /// Completes these chains. True: the driver wants to be interrupted.
    #[inline]
    pub(super) fn complete(&mut self, s: &mut State, done: &[Chain]) -> bool {
        let mut at = self.used;
        for c in done {
            self.ring.set_used_entry(at, c.id, c.written);
            at = at.wrapping_add(1);
        }
        s.open = s.open.wrapping_sub(at.wrapping_sub(self.used));
        self.used = at;
        self.ring.set_used_idx(at);
        SplitRing::barrier();
        if !s.event_idx {
            return self.ring.avail_flags() & QUIET == 0;
        }
        let Some(old) = self.signalled.replace(at) else { return true };
        let event = self.ring.used_event();
        at.wrapping_sub(event).wrapping_sub(1) < at.wrapping_sub(old)
    }

    /// With an event index, kicks stay away because the index stays behind; else a flag says so.
    #[inline]
    pub(super) fn hush(&self, s: &State) {
        if !s.event_idx {
            self.ring.set_used_flags(QUIET);
        }
    }

    pub(super) fn arm(&self, s: &State) {
        if s.event_idx {
            self.ring.set_avail_event(self.next);
        }
        self.ring.set_used_flags(0);
        SplitRing::barrier();
    }
}
