//! The device side of a split ring: chains popped, completed in the order of the caller's choice, published once.
//!
//! Trust: none in the driver. Promise: a chain is at most [`MAX_SEGS`] descriptors and [`MAX_BYTES`] bytes, each read
//! once; a chain that breaks a rule is told apart from a ring that does. Popped chains can be put back ([`Device::unpop`])
//! as if they had never been seen.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::terms::Terms;
use crate::mem::guest::GuestMemory;
use crate::mem::split::{DESC, Desc, F_INDIRECT, F_NEXT, F_WRITE, SplitRing};
use crate::mem::{Seg, sigbus};

/// Most descriptors in a chain.
pub const MAX_SEGS: usize = 64;
/// Most bytes in a chain: a 64 KiB frame with its headers, in whole pages.
pub const MAX_BYTES: u32 = 128 * 1024;

/// `VIRTQ_USED_F_NO_NOTIFY` and `VIRTQ_AVAIL_F_NO_INTERRUPT`.
const QUIET: u16 = 1;

/// A popped chain. Its segments went to the caller's list: first those to read, then those to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// First descriptor: the chain's name in the used ring.
    pub head: u16,
    /// Segments that the device reads.
    pub readable: u16,
    /// Segments that the device writes.
    pub writable: u16,
    /// Bytes of all segments.
    pub bytes: u32,
}

/// What [`Device::pop`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pop {
    /// Nothing is available.
    Empty,
    /// A chain.
    Chain(Chain),
    /// A chain that breaks the rules. To be completed with length 0.
    Bad {
        /// Its first descriptor; none if even that is outside the table: then nothing can be completed.
        head: Option<u16>,
    },
}

/// The device side of one split ring.
#[derive(Debug)]
pub struct Device {
    ring: SplitRing,
    hint: usize,
    event_idx: bool,
    indirect: bool,
    /// The next available entry to look at.
    next: u16,
    /// `avail.idx` as last read.
    avail: u16,
    /// `used.idx` as last published.
    used: u16,
    /// `used.idx` at the last decision about an interrupt; none: always interrupt.
    signalled: Option<u16>,
    /// Kicks are asked for (without EVENT_IDX: the flag is clear).
    armed: bool,
    /// The driver broke the ring: nothing more is read from it.
    stopped: bool,
    /// Completions written and not yet published.
    done: u16,
    seen_hits: u32,
}

impl Device {
    /// Serves `ring` from available position `base` on.
    #[must_use]
    pub fn new(ring: SplitRing, base: u16, terms: &Terms) -> Self {
        let used = ring.used_idx();
        let mut d = Self {
            ring,
            hint: 0,
            event_idx: terms.event_idx,
            indirect: terms.indirect,
            next: base,
            avail: base,
            used,
            signalled: None,
            armed: true,
            stopped: false,
            done: 0,
            seen_hits: sigbus::hits(),
        };
        d.arm();
        d
    }

    /// Features changed while it runs.
    pub fn set_terms(&mut self, terms: &Terms) {
        self.event_idx = terms.event_idx;
        self.indirect = terms.indirect;
        self.signalled = None;
    }

    /// The same ring in another memory table. Chains popped before must have been completed or put back.
    pub fn set_ring(&mut self, ring: SplitRing) {
        self.ring = ring;
        self.hint = 0;
    }

    /// The memory that chains lie in.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        self.ring.memory()
    }

    /// Entries of the ring.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// The next available position: where another device would go on.
    #[must_use]
    pub fn base(&self) -> u16 {
        self.next
    }

    /// The driver broke the ring, or the memory went away: it is not served any more.
    #[must_use]
    #[inline]
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Looks whether the memory was cut short since the last call, and stops the ring if so.
    #[inline]
    pub fn lost_memory(&mut self) -> bool {
        let hits = sigbus::hits();
        if hits == self.seen_hits {
            return false;
        }
        self.seen_hits = hits;
        self.stopped |= self.ring.memory().broken();
        self.stopped
    }

    /// Chains that can be popped without asking the driver's index again, after asking it if there are fewer than
    /// `want`. An index that runs ahead by more than the ring's size stops the ring.
    #[inline]
    fn available(&mut self, want: u16) -> u16 {
        let known = self.avail.wrapping_sub(self.next);
        if known >= want || self.stopped {
            return if self.stopped { 0 } else { known };
        }
        self.avail = self.ring.avail_idx();
        let n = self.avail.wrapping_sub(self.next);
        if n > self.ring.size() {
            self.stopped = true;
            return 0;
        }
        n
    }

    /// Something is available, or the ring is to be looked at.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.stopped && self.ring.avail_idx() != self.next
    }

    /// Pops the next chain and appends its segments to `segs`. A bad chain appends nothing.
    #[inline]
    pub fn pop(&mut self, segs: &mut Vec<Seg>) -> Pop {
        if self.available(1) == 0 {
            return Pop::Empty;
        }
        let head = self.ring.avail_entry(self.next);
        self.next = self.next.wrapping_add(1);
        let Some(first) = self.ring.desc(head) else { return Pop::Bad { head: None } };
        let before = segs.len();
        let mut walk =
            Walk { memory: self.ring.memory(), hint: &mut self.hint, segs, before, readable: 0, bytes: 0 };
        let ok = if first.flags & (F_NEXT | F_INDIRECT) == 0 {
            walk.add(&first)
        } else {
            walk.chain(&self.ring, first, self.indirect)
        };
        match ok {
            Some(()) => {
                let (readable, bytes) = (walk.readable, walk.bytes);
                let all = u16::try_from(segs.len() - before).unwrap_or(u16::MAX);
                Pop::Chain(Chain { head, readable, writable: all - readable, bytes })
            }
            None => {
                segs.truncate(before);
                Pop::Bad { head: Some(head) }
            }
        }
    }

    /// The first bytes of the chain that is `ahead` places behind the next one, if it is known to be there: for hints to
    /// the processor only, because the driver may change its descriptor until it is popped.
    #[inline]
    pub fn glimpse(&mut self, ahead: u16) -> Option<Seg> {
        if self.avail.wrapping_sub(self.next) <= ahead || self.stopped {
            return None;
        }
        let d = self.ring.desc(self.ring.avail_entry(self.next.wrapping_add(ahead)))?;
        self.ring.memory().run(d.addr, d.len, &mut self.hint)
    }

    /// Puts the last `n` popped chains back.
    #[inline]
    pub fn unpop(&mut self, n: u16) {
        self.next = self.next.wrapping_sub(n);
    }

    /// Completes a chain: `len` bytes were written into it. Seen by the driver after [`Device::publish`]. A head outside
    /// the table is ignored: its entry named no chain.
    #[inline]
    pub fn complete(&mut self, head: u16, len: u32) {
        // More than the ring holds would overwrite each other: a guest's broken ring, but not our counters.
        if head < self.ring.size() && self.done < self.ring.size() {
            self.ring.set_used_entry(self.used.wrapping_add(self.done), head, len);
            self.done += 1;
        }
    }

    /// Publishes what was completed, with one index store. True: the driver wants to be interrupted.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.done == 0 || self.stopped {
            self.done = 0;
            return false;
        }
        let at = self.used.wrapping_add(self.done);
        self.done = 0;
        self.used = at;
        self.ring.set_used_idx(at);
        SplitRing::barrier();
        if !self.event_idx {
            return self.ring.avail_flags() & QUIET == 0;
        }
        let Some(old) = self.signalled.replace(at) else { return true };
        let event = self.ring.used_event();
        at.wrapping_sub(event).wrapping_sub(1) < at.wrapping_sub(old)
    }

    /// Busy: kicks would only disturb. Without EVENT_IDX a flag says so; with it, the event index stays behind.
    #[inline]
    pub fn hush(&mut self) {
        if self.armed && !self.event_idx {
            self.ring.set_used_flags(QUIET);
        }
        self.armed = false;
    }

    /// About to sleep: asks for a kick when chains beyond the popped ones become available. True: there are some
    /// already, and no kick may come for them.
    pub fn arm(&mut self) -> bool {
        if self.stopped {
            return false;
        }
        if self.event_idx {
            self.ring.set_avail_event(self.next);
        }
        self.ring.set_used_flags(0);
        self.armed = true;
        SplitRing::barrier();
        self.has_work()
    }
}

/// One chain on its way to becoming segments.
struct Walk<'a> {
    memory: &'a GuestMemory,
    hint: &'a mut usize,
    segs: &'a mut Vec<Seg>,
    before: usize,
    readable: u16,
    bytes: u32,
}

impl Walk<'_> {
    /// Adds one buffer. None: it breaks a rule.
    #[inline]
    fn add(&mut self, d: &Desc) -> Option<()> {
        let n = u16::try_from(self.segs.len() - self.before).ok()?;
        let write = d.flags & F_WRITE != 0;
        // All that the device reads comes before all that it writes (virtio 1.2 §2.7.4.2).
        if !write && self.readable != n {
            return None;
        }
        self.bytes = self.bytes.checked_add(d.len).filter(|&b| b <= MAX_BYTES)?;
        let (mut at, mut left) = (d.addr, d.len);
        // Usually once: a buffer may run on from one region into its neighbour.
        while left > 0 {
            if self.segs.len() - self.before >= MAX_SEGS {
                return None;
            }
            let seg = self.memory.run(at, left, self.hint)?;
            self.segs.push(seg);
            self.readable += u16::from(!write);
            left -= seg.len();
            at = at.wrapping_add(u64::from(seg.len()));
        }
        Some(())
    }

    /// Follows a chain from its first descriptor. Bounded by a count, so that a loop ends.
    fn chain(&mut self, ring: &SplitRing, first: Desc, indirect: bool) -> Option<()> {
        let mut d = first;
        for _ in 0..MAX_SEGS {
            if d.flags & F_INDIRECT != 0 {
                // The table is the chain's last descriptor (§2.7.5.3.1).
                return if indirect && d.flags & F_NEXT == 0 { self.table(&d) } else { None };
            }
            self.add(&d)?;
            if d.flags & F_NEXT == 0 {
                return Some(());
            }
            d = ring.desc(d.next)?;
        }
        None
    }

    /// Follows a chain through an indirect table, each entry of which is copied once.
    fn table(&mut self, d: &Desc) -> Option<()> {
        if d.len == 0 || !d.len.is_multiple_of(DESC) {
            return None;
        }
        let table = self.memory.run(d.addr, d.len, self.hint).filter(|t| t.len() == d.len)?;
        let mut at = 0u32;
        for _ in 0..MAX_SEGS {
            let mut raw = [0; DESC as usize];
            if table.skip(at).copy_out(&mut raw) != raw.len() {
                return None;
            }
            let e = Desc::from_le(raw);
            if e.flags & F_INDIRECT != 0 {
                return None;
            }
            self.add(&e)?;
            if e.flags & F_NEXT == 0 {
                return Some(());
            }
            at = u32::from(e.next) * DESC;
        }
        None
    }
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
