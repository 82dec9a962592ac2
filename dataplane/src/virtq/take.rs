//! Frames that a guest receives: frames of a batch go into chains of its receive ring.
//!
//! Chains are parsed once and kept in a list until they are filled; a stop puts the unfilled ones back. Trust: none in
//! the guest. Promise: a frame is written whole or not at all, its header last; a frame that could never fit is
//! dropped and counted, one that does not fit now stays with its giver.
#![forbid(unsafe_code)]

use netreeve_shared::vnet::{F_DATA_VALID, F_NEEDS_CSUM, Vnet};

use super::device::{Device, Pop};
use super::terms::{Terms, work};
use crate::frame::{BATCH, Batch, Frame, Home, MAX_SUPER};
use crate::mem::Seg;
use crate::port::offload_bits;
use crate::stats::{Reason, Stats};

/// Most chains lent in a turn.
const MAX_LENT: usize = 256;
/// Most segments lent in a turn (a `readv` takes 1024).
const MAX_LENT_SEGS: usize = 1000;
/// Fewest bytes lent, if the guest has them: room for the largest frame.
const MIN_LENT_BYTES: usize = MAX_SUPER as usize + 4096;
/// Most bytes lent.
const MAX_LENT_BYTES: usize = 8 * MIN_LENT_BYTES;

/// So many chains ahead a buffer's first bytes are asked for: they lie in another core's cache.
const AHEAD: u16 = 8;

/// A parsed, empty chain.
#[derive(Clone, Copy, Debug)]
struct Empty {
    head: u16,
    bytes: u32,
    segs: (usize, usize),
}

/// What became of one frame.
enum Put {
    /// It is written.
    Filled,
    /// The guest has too few buffers at the moment.
    NoRoom,
    /// It is dropped.
    Drop(Reason),
}

/// A receive ring and its empty chains.
#[derive(Debug)]
pub struct Taker {
    dev: Device,
    chains: Vec<Empty>,
    segs: Vec<Seg>,
    /// The first chain that is still empty.
    at: usize,
    /// Chains lent from `at` on.
    lent: usize,
    /// Bytes to lend next time: follows what was used.
    want: usize,
    /// The last frame found too few buffers.
    starved: bool,
}

impl Taker {
    /// Serves this ring.
    #[must_use]
    pub fn new(dev: Device) -> Self {
        Self {
            dev,
            chains: Vec::with_capacity(1024),
            segs: Vec::with_capacity(2048),
            at: 0,
            lent: 0,
            want: MIN_LENT_BYTES,
            starved: false,
        }
    }

    /// The ring.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.dev
    }

    /// The ring, with every empty chain put back.
    pub fn device_mut(&mut self) -> &mut Device {
        let n = u16::try_from(self.chains.len() - self.at).unwrap_or(0);
        self.dev.unpop(n);
        self.chains.clear();
        self.segs.clear();
        self.at = 0;
        self.lent = 0;
        &mut self.dev
    }

    fn empty(&self) -> usize {
        self.chains.len() - self.at
    }

    /// Forgets filled chains when they are most of the list.
    fn compact(&mut self) {
        if self.at == self.chains.len() {
            self.chains.clear();
            self.segs.clear();
            self.at = 0;
        } else if self.at > MAX_LENT {
            let from = self.chains.get(self.at).map_or(0, |c| c.segs.0);
            self.chains.drain(..self.at);
            self.segs.drain(..from);
            for c in &mut self.chains {
                c.segs = (c.segs.0 - from, c.segs.1 - from);
            }
            self.at = 0;
        }
    }

    /// Parses one more chain. False: there is none. A bad chain keeps its place in the list as one without bytes, so
    /// that the list can still be put back as a whole; it is completed when its turn comes.
    #[inline]
    fn more(&mut self, terms: &Terms, stats: &mut Stats) -> bool {
        let from = self.segs.len();
        if let Some(next) = self.dev.glimpse(AHEAD) {
            next.prefetch_to_write();
            next.skip(64).prefetch_to_write();
        }
        let (head, bytes) = match self.dev.pop(&mut self.segs) {
            Pop::Empty => return false,
            Pop::Chain(c) if c.readable == 0 && c.bytes >= terms.header => (c.head, c.bytes),
            Pop::Chain(c) => (c.head, 0),
            Pop::Bad { head } => (head.unwrap_or(u16::MAX), 0),
        };
        if bytes == 0 {
            self.segs.truncate(from);
            stats.drop(Reason::BadChain);
        }
        self.chains.push(Empty { head, bytes, segs: (from, self.segs.len()) });
        true
    }

    /// Completes bad chains at the front of the list.
    #[inline]
    fn pass_bad(&mut self, next: &mut usize) {
        while let Some(c) = self.chains.get(*next).filter(|c| c.bytes == 0) {
            self.dev.complete(c.head, 0);
            *next += 1;
        }
    }

    /// Lends empty chains for the frames of the coming turn.
    pub fn lend(&mut self, b: &mut Batch, terms: &Terms, stats: &mut Stats) {
        self.lent = 0;
        b.landing.open(terms.header, terms.mergeable);
        let (mut bytes, mut segs) = (0usize, 0usize);
        let most = if terms.mergeable { MAX_LENT } else { BATCH };
        let want = if terms.mergeable { self.want } else { usize::MAX };
        while self.lent < most && bytes < want {
            if self.lent == self.empty() && !self.more(terms, stats) {
                break;
            }
            if self.lent == 0 {
                let mut at = self.at;
                self.pass_bad(&mut at);
                self.at = at;
            }
            let Some(c) = self.chains.get(self.at + self.lent) else { continue };
            if c.bytes == 0 {
                break;
            }
            segs += c.segs.1 - c.segs.0;
            if segs > MAX_LENT_SEGS {
                break;
            }
            bytes += c.bytes as usize;
            let run = self.segs.get(c.segs.0..c.segs.1).unwrap_or_default();
            b.landing.offer(run, u32::from(c.head));
            self.lent += 1;
        }
        if self.lent > 0 {
            self.dev.hush();
        }
    }

    /// Takes waiting frames; says how many, and whether the driver wants to be interrupted. Frames that landed are
    /// always taken.
    pub fn send(&mut self, b: &Batch, terms: &Terms, stats: &mut Stats) -> (usize, bool) {
        self.starved = b.is_empty() && b.landing.is_stopped() && !self.widen();
        let used =
            if self.lent > 0 { (b.landing.slots().len() - b.landing.unused()).min(self.lent) } else { 0 };
        let mut landed = b.frames().iter().filter(|f| matches!(f.home, Home::Landed { .. })).count();
        let (mut next, mut whole, mut taken) = (self.at + used, 0, 0);
        for f in b.frames() {
            if let Home::Landed { slot, slots } = f.home {
                landed -= 1;
                let (slot, slots) = (usize::from(slot), usize::from(slots));
                if !f.dropped {
                    if slot < whole || slot + slots > used {
                        stats.drop(Reason::PeerDown);
                    } else {
                        self.give_up(whole..slot);
                        self.landed(f, slot, slots, terms, stats);
                        whole = slot + slots;
                    }
                }
            } else if !f.dropped {
                match self.put(b, f, &mut next, terms, stats) {
                    Put::Filled => {}
                    Put::Drop(why) => stats.drop(why),
                    Put::NoRoom if landed > 0 => stats.drop(Reason::Full),
                    Put::NoRoom => break,
                }
            }
            taken += 1;
        }
        // Slots of landed frames that were dropped: in the middle of the ring, so they cannot be put back.
        self.give_up(whole..used);
        self.at = next;
        self.lent = 0;
        self.compact();
        // A giver that stops for want of room gets more next time; what it does not use is lent less and less.
        if b.landing.is_stopped() {
            self.want = (self.want * 2).min(MAX_LENT_BYTES);
        } else if taken > 0 {
            self.want = (self.want - self.want / 8).max(MIN_LENT_BYTES);
        }
        (taken, self.dev.publish())
    }

    /// The giver found too little room in what was lent: lends more next time. False: that was all.
    #[cold]
    fn widen(&mut self) -> bool {
        self.want = MAX_LENT_BYTES;
        self.lent < MAX_LENT && (self.empty() > self.lent || self.dev.has_work())
    }

    /// Completes lent chains that hold nothing.
    fn give_up(&mut self, slots: std::ops::Range<usize>) {
        for i in slots {
            if let Some(c) = self.chains.get(self.at + i) {
                self.dev.complete(c.head, 0);
            }
        }
    }

    /// Finishes a frame that its giver put into the landing: its head as judged, its header, its used elements.
    #[inline]
    fn landed(&mut self, f: &Frame, slot: usize, slots: usize, terms: &Terms, stats: &mut Stats) {
        let first = self.at + slot;
        let room: u32 = self.chains.iter().skip(first).take(slots).map(|c| c.bytes).sum();
        if !work(&f.vnet).within(terms.takes) || f.len + terms.header > room {
            stats.drop(if f.len + terms.header > room { Reason::Oversize } else { Reason::Offload });
            self.give_up(slot..slot + slots);
            return;
        }
        let mut to = self.cursor(first, slots);
        to.skip(terms.header);
        to.put(f.head());
        self.finish(f, first, slots, terms, stats);
    }

    /// Copies a frame into empty chains from index `next` on, and moves `next` past them.
    #[inline]
    fn put(&mut self, b: &Batch, f: &Frame, next: &mut usize, terms: &Terms, stats: &mut Stats) -> Put {
        if !work(&f.vnet).within(terms.takes) {
            return Put::Drop(Reason::Offload);
        }
        let total = f.len + terms.header;
        if *next == self.chains.len() {
            self.more(terms, stats);
        }
        // Usually one buffer in one piece is enough.
        if let Some(c) =
            self.chains.get(*next).copied().filter(|c| c.bytes >= total && c.segs.1 - c.segs.0 == 1)
            && let Some(to) = self.segs.get(c.segs.0)
        {
            let mut to = to.skip(terms.header);
            to = to.skip(put_bytes(&to, f.head()));
            for seg in b.body(f) {
                to = to.skip(to.copy_from(seg));
            }
            self.finish(f, *next, 1, terms, stats);
            *next += 1;
            return Put::Filled;
        }
        self.put_long(b, f, next, terms, stats)
    }

    /// Copies a frame into as many chains and segments as it takes.
    fn put_long(&mut self, b: &Batch, f: &Frame, next: &mut usize, terms: &Terms, stats: &mut Stats) -> Put {
        let total = f.len + terms.header;
        let (mut n, mut room) = (0usize, 0u32);
        while room < total {
            if n == 0 {
                self.pass_bad(next);
            }
            if *next + n == self.chains.len() && !self.more(terms, stats) {
                return self.no_room(*next);
            }
            let Some(c) = self.chains.get(*next + n) else { continue };
            room += c.bytes;
            if c.bytes == 0 && n == 0 {
                continue;
            }
            n += 1;
            if room < total && !terms.mergeable {
                return Put::Drop(Reason::Oversize);
            }
        }
        let mut to = self.cursor(*next, n);
        to.skip(terms.header);
        to.put(f.head());
        for seg in b.body(f) {
            to.put_seg(seg);
        }
        self.finish(f, *next, n, terms, stats);
        *next += n;
        Put::Filled
    }

    /// Too few buffers: now, or for ever if all that the ring can hold is here already.
    #[cold]
    fn no_room(&mut self, next: usize) -> Put {
        let size = usize::from(self.dev.size());
        let from = self.chains.get(next).map_or(self.segs.len(), |c| c.segs.0);
        if self.chains.len() - next >= size || self.segs.len() - from >= size {
            return Put::Drop(Reason::Oversize);
        }
        self.starved = true;
        Put::NoRoom
    }

    /// Header and used elements of a frame that lies in `n` chains from index `first` on.
    #[inline]
    fn finish(&mut self, f: &Frame, first: usize, n: usize, terms: &Terms, stats: &mut Stats) {
        let valid = if terms.takes.has(offload_bits::CSUM) { F_DATA_VALID } else { 0 };
        let vnet = Vnet { flags: f.vnet.flags & (F_NEEDS_CSUM | valid), ..f.vnet };
        let header = vnet.to_le(u16::try_from(n).unwrap_or(u16::MAX));
        let header = header.get(..terms.header as usize).unwrap_or_default();
        let mut left = f.len + terms.header;
        let seg = self.chains.get(first).and_then(|c| self.segs.get(c.segs.0)).copied().unwrap_or(Seg::EMPTY);
        if seg.len() >= terms.header {
            seg.copy_in(header);
        } else {
            self.cursor(first, n).put(header);
        }
        for c in self.chains.iter().skip(first).take(n) {
            let here = left.min(c.bytes);
            left -= here;
            self.dev.complete(c.head, here);
        }
        stats.tx_frames += 1;
        stats.tx_bytes += u64::from(f.len);
    }

    /// The segments of `n` chains from index `first` on.
    #[inline]
    fn cursor(&self, first: usize, n: usize) -> Cursor<'_> {
        let from = self.chains.get(first).map_or(0, |c| c.segs.0);
        let to = self.chains.get((first + n).saturating_sub(1)).map_or(from, |c| c.segs.1);
        let mut segs = self.segs.get(from..to).unwrap_or_default().iter();
        let now = segs.next().copied().unwrap_or(Seg::EMPTY);
        Cursor { segs, now }
    }

    /// About to sleep until there are buffers. True: there are.
    pub fn arm(&mut self) -> bool {
        if self.empty() > 0 && !self.starved {
            return !self.dev.stopped();
        }
        self.dev.arm()
    }
}

/// Copies bytes to the front of a segment; says how many.
#[inline]
fn put_bytes(to: &Seg, bytes: &[u8]) -> u32 {
    u32::try_from(to.copy_in(bytes)).unwrap_or(0)
}

/// A place in a list of segments, moving forward as bytes are put.
struct Cursor<'a> {
    segs: std::slice::Iter<'a, Seg>,
    now: Seg,
}

impl Cursor<'_> {
    #[inline]
    fn step(&mut self, n: u32) -> bool {
        self.now = self.now.skip(n);
        while self.now.is_empty() {
            let Some(s) = self.segs.next() else { return false };
            self.now = *s;
        }
        true
    }

    #[inline]
    fn skip(&mut self, mut n: u32) {
        while n > 0 {
            let here = n.min(self.now.len());
            n -= here;
            if !self.step(here) {
                return;
            }
        }
    }

    #[inline]
    fn put(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let n = self.now.copy_in(bytes);
            bytes = bytes.get(n..).unwrap_or_default();
            if !self.step(u32::try_from(n).unwrap_or(0)) {
                return;
            }
        }
    }

    #[inline]
    fn put_seg(&mut self, from: &Seg) {
        let mut from = *from;
        while !from.is_empty() {
            let n = self.now.copy_from(&from);
            from = from.skip(n);
            if !self.step(n) {
                return;
            }
        }
    }
}

#[cfg(test)]
#[path = "take_tests.rs"]
mod tests;
