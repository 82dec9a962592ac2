//! The landing: empty memory into which a receiving port's frames are put straight.
//!
//! It has two forms. The taker lends its own **slots** (guest receive buffers): a frame fills whole slots, and the
//! taker learns which from [`Home::Landed`]. Or, where no taker lends, the lane lends its **pool**: one run of bytes
//! in which each frame begins after the one before, and frames are the giver's as far as the taker can see
//! ([`Home::Giver`]). A giver needs not know which it fills: it asks for [`Landing::room`] and says what it has put
//! there with [`Landing::land`].
//!
//! Trust: the memory is shared with a guest, so nothing put there is believed afterwards; sizes and positions are kept
//! here, in private memory. Promise: a frame never overlaps another and never leaves what was lent.
#![forbid(unsafe_code)]

use std::ops::Range;

use crate::frame::{Home, n16};
use crate::mem::Seg;

/// Where frames begin in a pool: multiples of a cache line in bytes, so that heads are read from one or two lines.
pub const POOL_ALIGN: u32 = 64;

/// A stretch of landing memory in which one frame may begin.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// The lender's own number for it (descriptor head).
    pub cookie: u32,
    /// Bytes that a frame beginning here finds in it.
    pub bytes: u32,
    segs: (u16, u16),
}

/// Empty memory that the taker (or the lane's pool) lends so that the giver can put frames straight in.
///
/// The lender offers slots in order; a frame begins in a slot and, if the landing is mergeable, runs on through the
/// following ones. In a slot where a frame begins, the first [`Landing::open`] `header` bytes are left for the lender's
/// own header; in a slot that a frame only runs through, they are not.
#[derive(Debug, Default)]
pub struct Landing {
    segs: Vec<Seg>,
    slots: Vec<Slot>,
    next: usize,
    header: u32,
    mergeable: bool,
    pool: Seg,
    stopped: bool,
}

impl Landing {
    /// A landing in which nothing is offered.
    #[must_use]
    pub fn new() -> Self {
        Self { segs: Vec::with_capacity(1024), slots: Vec::with_capacity(512), ..Self::default() }
    }

    /// Forgets all.
    #[inline]
    pub fn clear(&mut self) {
        self.segs.clear();
        self.slots.clear();
        self.next = 0;
        self.header = 0;
        self.mergeable = false;
        self.pool = Seg::EMPTY;
        self.stopped = false;
    }

    /// Starts an offer: `header` bytes stay free at the start of every frame; `mergeable` frames may span slots.
    pub fn open(&mut self, header: u32, mergeable: bool) {
        self.clear();
        self.header = header;
        self.mergeable = mergeable;
    }

    /// Offers one run in which frames lie one after the other, each at a multiple of [`POOL_ALIGN`] from the start.
    /// It stays the lender's: what lands in it is [`Home::Giver`].
    pub fn open_pool(&mut self, run: Seg) {
        self.clear();
        self.pool = run;
    }

    /// Offers one slot. The header's room is part of `segs`.
    pub fn offer(&mut self, segs: &[Seg], cookie: u32) {
        let from = n16(self.segs.len());
        self.segs.extend_from_slice(segs);
        let bytes = segs.iter().map(Seg::len).sum();
        self.slots.push(Slot { cookie, bytes, segs: (from, n16(self.segs.len())) });
    }

    /// Something was offered and is not yet used up.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.next < self.slots.len() || !self.pool.is_empty()
    }

    /// The giver has frames, or may have, but what is left does not surely hold one: it has to wait for the taker, and
    /// asking it again in this turn (or when its descriptor is readable) is in vain until the taker has more room.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// The giver waits for more room than was lent.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// Slots offered; none in a pool.
    #[must_use]
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The segments of a slot, header room included.
    #[must_use]
    pub fn segs(&self, slot: &Slot) -> &[Seg] {
        self.segs.get(usize::from(slot.segs.0)..usize::from(slot.segs.1)).unwrap_or_default()
    }

    /// Slots that no frame has landed in.
    #[must_use]
    pub fn unused(&self) -> usize {
        self.slots.len() - self.next
    }

    /// Appends the room for one frame of at most `max` bytes, in order, to `out`; says how many bytes that is.
    pub fn room(&self, max: u32, out: &mut Vec<Seg>) -> u32 {
        if !self.pool.is_empty() {
            let part = self.pool.take(max);
            out.push(part);
            return part.len();
        }
        let mut left = max;
        let mut skip = self.header;
        let reach = if self.mergeable { usize::MAX } else { 1 };
        for slot in self.slots.iter().skip(self.next).take(reach) {
            for seg in self.segs(slot) {
                let cut = skip.min(seg.len());
                skip -= cut;
                let part = seg.skip(cut).take(left);
                left -= part.len();
                if !part.is_empty() {
                    out.push(part);
                }
            }
            skip = 0;
            if left == 0 {
                break;
            }
        }
        max - left
    }

    /// A frame of `len` bytes was put into the room; says whose memory it is now and which slots it fills.
    pub fn land(&mut self, len: u32) -> Home {
        if !self.pool.is_empty() {
            self.pool = self.pool.skip(len.next_multiple_of(POOL_ALIGN));
            return Home::Giver;
        }
        let first = self.next;
        let mut left = len.saturating_add(self.header);
        while let Some(slot) = self.slots.get(self.next) {
            self.next += 1;
            left = left.saturating_sub(slot.bytes);
            if left == 0 {
                break;
            }
        }
        Home::Landed { slot: n16(first), slots: n16(self.next - first) }
    }

    /// The slots of a landed frame.
    #[must_use]
    pub fn range(&self, slot: u16, slots: u16) -> &[Slot] {
        let r: Range<usize> = usize::from(slot)..usize::from(slot) + usize::from(slots);
        self.slots.get(r).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Buf;

    fn lens(segs: &[Seg]) -> Vec<u32> {
        segs.iter().map(Seg::len).collect()
    }

    #[test]
    fn mergeable_frames_run_through_slots() {
        let mem = Buf::new(4096).unwrap();
        let mut l = Landing::new();
        l.open(12, true);
        for i in 0..4 {
            l.offer(&[mem.seg(i * 100, 100)], i);
        }
        let mut out = Vec::new();
        assert_eq!(l.room(150, &mut out), 150);
        assert_eq!(lens(&out), [88, 62]);
        assert_eq!(l.land(150), Home::Landed { slot: 0, slots: 2 });
        out.clear();
        assert_eq!(l.room(1000, &mut out), 188);
        assert_eq!(l.land(88), Home::Landed { slot: 2, slots: 1 });
        assert_eq!(l.unused(), 1);
        assert_eq!(l.range(0, 2).iter().map(|s| s.cookie).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn unmergeable_frames_stay_in_one_slot_and_headers_may_span_segments() {
        let mem = Buf::new(4096).unwrap();
        let mut l = Landing::new();
        l.open(12, false);
        l.offer(&[mem.seg(0, 10), mem.seg(64, 1516)], 7);
        let mut out = Vec::new();
        assert_eq!(l.room(9000, &mut out), 1514);
        assert_eq!(lens(&out), [1514]);
        assert_eq!(l.land(60), Home::Landed { slot: 0, slots: 1 });
        assert!(!l.is_open());
        out.clear();
        assert_eq!(l.room(9000, &mut out), 0);
    }

    #[test]
    fn pool_frames_are_aligned_and_disjoint() {
        let mem = Buf::new(4096).unwrap();
        let mut l = Landing::new();
        l.open_pool(mem.seg(0, 4096));
        let mut out = Vec::new();
        assert_eq!(l.room(1518, &mut out), 1518);
        assert_eq!(l.land(61), Home::Giver);
        assert_eq!(l.room(1518, &mut out), 1518);
        assert_eq!(out[1].addr() - out[0].addr(), 64);
        assert_eq!(l.land(1518), Home::Giver);
        assert_eq!(l.room(9000, &mut out), 4096 - 64 - 1536);
        l.land(9000);
        assert!(!l.is_open());
        assert!(l.slots().is_empty());
    }
}
