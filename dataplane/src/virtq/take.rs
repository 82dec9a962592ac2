//! Frames that a guest receives: frames of a batch go into chains of its receive ring.
//!
//! Chains are parsed once and kept in a list until they are filled; a stop puts the unfilled ones back. Trust: none in
//! the guest. Promise: a frame is written whole or not at all, its header last; a frame that could never fit is
//! dropped and counted, one that does not fit now stays with its giver.
#![forbid(unsafe_code)]

use netreeve_shared::vnet::{F_DATA_VALID, F_NEEDS_CSUM, LEN as VNET, Vnet};

use super::chain::Chains;
use super::device::Device;
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
const AHEAD: usize = 8;
/// Fewest chains fetched at a time, where more than one may be needed.
const FETCH: usize = 32;

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
    chains: Chains,
    /// The first chain that is still empty.
    at: usize,
    /// Chains lent from `at` on.
    lent: usize,
    /// Bytes to lend next time: follows what was used.
    want: usize,
    /// The last frame found too few buffers.
    starved: bool,
    /// The driver wants to be interrupted and was not yet.
    owed: bool,
}

impl Taker {
    /// Serves this ring.
    #[must_use]
    pub fn new(dev: Device) -> Self {
        Self {
            dev,
            chains: Chains::default(),
            at: 0,
            lent: 0,
            want: MIN_LENT_BYTES,
            starved: false,
            owed: false,
        }
    }

    /// The ring.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.dev
    }

    /// The ring, with every empty chain put back.
    pub fn device_mut(&mut self) -> &mut Device {
        self.dev.unfetch(self.chains.range(self.at, self.chains.len()));
        self.chains.clear();
        self.at = 0;
        self.lent = 0;
        &mut self.dev
    }

    /// Chains are lent at the moment.
    #[must_use]
    pub fn has_lent(&self) -> bool {
        self.lent > 0
    }

    fn empty(&self) -> usize {
        self.chains.len() - self.at
    }

    /// Fetches `want` more chains, or what there is. False: there is none. A bad chain keeps its place in the list as
    /// one without room, so that the list can still be put back as a whole; it is completed when its turn comes.
    fn more(&mut self, want: usize, terms: &Terms, stats: &mut Stats) -> bool {
        let before = self.chains.len();
        let n = self.dev.fetch(&mut self.chains, want);
        for i in before..before + n {
            if let Some(c) = self.chains.get_mut(i)
                && (c.bad || c.readable != 0 || c.bytes < terms.header)
            {
                c.bytes = 0;
                stats.drop(Reason::BadChain);
            }
        }
        n > 0
    }

    /// Passes bad chains at the front of what is empty.
    fn pass_bad(&self, next: &mut usize) {
        while self.chains.get(*next).is_some_and(|c| c.bytes == 0) {
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
        // Bad chains in front are completed with the next frames; behind others they end the offer.
        let mut from = self.at;
        self.pass_bad(&mut from);
        while self.lent < most && bytes < want {
            if from + self.lent == self.chains.len() && !self.more(FETCH.min(most - self.lent), terms, stats)
            {
                break;
            }
            if self.lent == 0 {
                self.pass_bad(&mut from);
            }
            let Some(c) = self.chains.get(from + self.lent) else { continue };
            if c.bytes == 0 {
                break;
            }
            let run = self.chains.segs(c);
            segs += run.len();
            if segs > MAX_LENT_SEGS {
                break;
            }
            bytes += c.bytes as usize;
            b.landing.offer(run, u32::from(c.id));
            self.lent += 1;
        }
        if from > self.at {
            self.owed |= self.dev.complete(self.chains.range(self.at, from));
            self.at = from;
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
        let mut landed = if b.landing.slots().is_empty() {
            0
        } else {
            b.frames().iter().filter(|f| matches!(f.home, Home::Landed { .. })).count()
        };
        let mut next = self.at + used;
        let waiting = b.len() - landed;
        if self.chains.len() - next < waiting {
            self.more(waiting - (self.chains.len() - next), terms, stats);
        }
        for i in 0..AHEAD.min(waiting) {
            self.chains.ask_to_write(next + i);
        }
        let (mut whole, mut taken, before) = (0, 0, stats.tx_frames);
        for f in b.frames() {
            if let Home::Landed { slot, slots } = f.home {
                landed -= 1;
                let (slot, slots) = (usize::from(slot), usize::from(slots));
                if !f.dropped {
                    if slot < whole || slot + slots > used {
                        stats.drop(Reason::PeerDown);
                    } else {
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
        // What was used and holds nothing (slots of frames that were dropped) cannot be put back: it lies between
        // others. It was never written to, so it is completed empty.
        let call = self.dev.complete(self.chains.range(self.at, next));
        if next > self.at && stats.tx_frames > before {
            self.dev.hush();
        }
        self.at = if self.chains.forget(next) { 0 } else { next };
        self.lent = 0;
        // A giver that stops for want of room gets more next time; what it does not use is lent less and less.
        if b.landing.is_stopped() {
            self.want = (self.want * 2).min(MAX_LENT_BYTES);
        } else if taken > 0 {
            self.want = (self.want - self.want / 8).max(MIN_LENT_BYTES);
        }
        (taken, std::mem::take(&mut self.owed) | call)
    }

    /// The giver found too little room in what was lent: lends more next time. False: that was all.
    #[cold]
    fn widen(&mut self) -> bool {
        self.want = MAX_LENT_BYTES;
        self.lent < MAX_LENT && (self.empty() > self.lent || self.dev.has_work())
    }

    /// Finishes a frame that its giver put into the landing: its head as judged, its header, its used elements.
    #[inline]
    fn landed(&mut self, f: &Frame, slot: usize, slots: usize, terms: &Terms, stats: &mut Stats) {
        let first = self.at + slot;
        let room: u32 = self.chains.range(first, first + slots).iter().map(|c| c.bytes).sum();
        if !fits(f, terms) || f.len + terms.header > room {
            stats.drop(if f.len + terms.header > room { Reason::Oversize } else { Reason::Offload });
            return;
        }
        // Usually one buffer in one piece.
        if let (1, Some(to)) = (slots, self.chains.get(first).filter(|c| c.writable == 1))
            && let Some(to) = self.chains.first(to)
        {
            to.skip(terms.header).copy_in(f.head());
        } else {
            let mut to = Cursor::over(self.chains.run(first, slots));
            to.skip(terms.header);
            to.put(f.head());
        }
        self.finish(f, first, slots, terms, stats);
    }

    /// Copies a frame into empty chains from index `next` on, and moves `next` past them.
    #[inline]
    fn put(&mut self, b: &Batch, f: &Frame, next: &mut usize, terms: &Terms, stats: &mut Stats) -> Put {
        if !fits(f, terms) {
            return Put::Drop(Reason::Offload);
        }
        self.chains.ask_to_write(next.wrapping_add(AHEAD));
        // Usually one buffer in one piece is enough.
        let total = f.len.wrapping_add(terms.header);
        if let Some(c) = self.chains.get(*next).filter(|c| c.bytes >= total && c.writable == 1)
            && let Some(to) = self.chains.first(c)
        {
            write_header(&[to], f, 1, terms);
            let mut to = to.skip(terms.header);
            to = to.skip(put_bytes(&to, f.head()));
            for seg in b.body(f) {
                to = to.skip(to.copy_from(seg));
            }
            if let Some(c) = self.chains.get_mut(*next) {
                c.written = total;
            }
            stats.tx_frames = stats.tx_frames.wrapping_add(1);
            stats.tx_bytes = stats.tx_bytes.wrapping_add(f.len.into());
            *next = next.wrapping_add(1);
            return Put::Filled;
        }
        self.put_long(b, f, next, terms, stats)
    }

    /// Copies a frame into as many chains and segments as it takes.
    #[inline(never)]
    fn put_long(&mut self, b: &Batch, f: &Frame, next: &mut usize, terms: &Terms, stats: &mut Stats) -> Put {
        let total = f.len + terms.header;
        let (mut n, mut room) = (0usize, 0u32);
        while room < total {
            if n == 0 {
                self.pass_bad(next);
            }
            if *next + n == self.chains.len() && !self.more(FETCH, terms, stats) {
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
        let mut to = Cursor::over(self.chains.run(*next, n));
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
        if self.chains.len() - next >= size || self.chains.segs_from(next) >= size {
            return Put::Drop(Reason::Oversize);
        }
        self.starved = true;
        Put::NoRoom
    }

    /// Header and lengths of a frame that lies in `n` chains from index `first` on.
    fn finish(&mut self, f: &Frame, first: usize, n: usize, terms: &Terms, stats: &mut Stats) {
        write_header(self.chains.run(first, n), f, n, terms);
        let mut left = f.len + terms.header;
        for i in first..first + n {
            if let Some(c) = self.chains.get_mut(i) {
                c.written = left.min(c.bytes);
                left -= c.written;
            }
        }
        stats.tx_frames += 1;
        stats.tx_bytes += u64::from(f.len);
    }

    /// About to sleep until there are buffers. True: there are.
    pub fn arm(&mut self) -> bool {
        if self.empty() > 0 && !self.starved {
            return !self.dev.stopped();
        }
        self.dev.arm()
    }
}

/// The driver takes frames with this header.
#[inline]
fn fits(f: &Frame, terms: &Terms) -> bool {
    f.vnet.is_plain() || work(&f.vnet).within(terms.takes)
}

/// A frame's header as the driver gets it.
#[inline]
fn header(f: &Frame, terms: &Terms) -> Vnet {
    let valid = if terms.takes.has(offload_bits::CSUM) { F_DATA_VALID } else { 0 };
    Vnet { flags: f.vnet.flags & (F_NEEDS_CSUM | valid), ..f.vnet }
}

/// Writes the header of a frame that lies in `n` chains to the front of their segments.
#[inline]
fn write_header(run: &[Seg], f: &Frame, n: usize, terms: &Terms) {
    let n = u16::try_from(n).unwrap_or(u16::MAX);
    if terms.header == 12
        && let Some(first) = run.first()
    {
        let (low, high) = header(f, terms).words(n);
        if first.set_words(low, high) {
            return;
        }
    }
    scatter_header(run, &header(f, terms).to_le(n), terms);
}

/// The same for a header of another size, or in small pieces.
#[inline(never)]
fn scatter_header(run: &[Seg], bytes: &[u8; VNET], terms: &Terms) {
    Cursor::over(run).put(bytes.get(..terms.header as usize).unwrap_or_default());
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

impl<'a> Cursor<'a> {
    fn over(segs: &'a [Seg]) -> Self {
        let mut segs = segs.iter();
        let now = segs.next().copied().unwrap_or(Seg::EMPTY);
        Self { segs, now }
    }

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

/// The same tests for either format.
#[cfg(test)]
mod tests {
    mod split {
        const PACKED: bool = false;
        include!("take_tests.rs");
    }
    mod packed {
        const PACKED: bool = true;
        include!("take_tests.rs");
    }
}
