//! Receiving: the RX ring and the fill ring, whose indices march together.
//!
//! Chunks 0 to [`Shape::lent`] circulate: fill ring, kernel, RX ring, us, fill ring. One descriptor taken from the RX
//! ring is one chunk put into the fill ring, in the same [`Rx::release`]: first the fill ring's entries are written,
//! then the RX ring's consumer index, then the fill ring's producer index. So at every moment
//!
//! > fill producer − RX consumer = chunks that circulate, or less by those of one release that was cut between its
//! > last two stores.
//!
//! A process can be killed anywhere: its successor finds the difference, whose entries are already written, and makes
//! the second store for it ([`Rx::open`]). Frames that were peeked but not released are still in the RX ring and are
//! given again. No chunk is lost or lent twice, and no list is kept outside the rings.
#![forbid(unsafe_code)]

use std::io;

use crate::frame::Batch;
use crate::mem::xring::{Desc, Ring, Umem};
use crate::port::xsk::partial;
use crate::port::xsk::shape::{MAX_JOINED, Shape};
use crate::stats::{Reason, Stats};

/// So many descriptors ahead a frame's first bytes are asked for: the kernel wrote them on another core.
const AHEAD: u32 = 16;

/// The receiving half.
pub(super) struct Rx {
    ring: Ring<Desc>,
    fill: Ring<u64>,
    shape: Shape,
    /// The interface's MTU in bytes.
    mtu: u32,
    /// The RX ring's consumer index.
    next: u32,
    /// The fill ring's producer index.
    filled: u32,
    /// Chunks of the descriptors peeked since, from `next` on: read once, because others could change the ring.
    peeked: Vec<u64>,
    /// Up to where drops were counted; frames come again when nobody took them.
    counted: u32,
}

/// What cannot be, if only the kernel and we write to the rings.
fn broken() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "an AF_XDP ring holds what neither the kernel nor netreeve put there",
    )
}

impl Rx {
    /// Lends the chunks to the kernel, or takes over where the last process stood. Says whether there was one.
    pub(super) fn open(
        ring: Ring<Desc>,
        fill: Ring<u64>,
        shape: Shape,
        mtu: u32,
    ) -> io::Result<(Self, bool)> {
        let (next, mut filled) = (ring.consumer(), fill.producer());
        let used = next != 0 || filled != 0;
        let missing = next.wrapping_add(shape.lent).wrapping_sub(filled);
        if missing > shape.lent {
            return Err(broken());
        }
        for i in 0..missing {
            let at = filled.wrapping_add(i);
            if !used {
                fill.set(at, u64::from(i) * u64::from(shape.chunk));
            } else if !shape.is_lent(fill.get(at)) {
                return Err(broken());
            }
        }
        filled = filled.wrapping_add(missing);
        fill.produce(filled);
        let peeked = Vec::with_capacity(ring.len() as usize);
        Ok((Self { ring, fill, shape, mtu, next, filled, peeked, counted: next }, used))
    }

    /// Gives frames without consuming them.
    pub(super) fn recv(&mut self, umem: &Umem, b: &mut Batch, stats: &mut Stats) -> io::Result<()> {
        self.peeked.clear();
        let there = self.ring.between(self.next, self.ring.producer())?;
        for n in 0..AHEAD.min(there) {
            self.ask_for(umem, n);
        }
        while b.room() > 0 && self.peeked.len() < there as usize {
            let Some(f) = b.push() else { break };
            f.cookie = 0;
            let (mut len, mut parts) = (0_u32, 0);
            loop {
                let n = u32::try_from(self.peeked.len()).map_err(|_| broken())?;
                if n >= there {
                    // The kernel publishes whole frames, so this is not one yet.
                    b.pop();
                    return Ok(());
                }
                if n.wrapping_add(AHEAD) < there {
                    self.ask_for(umem, n.wrapping_add(AHEAD));
                }
                let desc = self.ring.get(self.next.wrapping_add(n));
                let base = self.shape.base(&desc).ok_or_else(broken)?;
                let seg = umem.seg(desc.addr, desc.len).ok_or_else(broken)?;
                self.peeked.push(base);
                len = len.saturating_add(desc.len);
                parts += 1;
                if parts <= MAX_JOINED {
                    let in_head = b.last_mut().map_or(0, |f| {
                        if parts == 1 {
                            f.set_lead(seg);
                        }
                        f.head_append(&seg)
                    });
                    b.push_seg(seg.skip(in_head));
                }
                if desc.options & libc::XDP_PKT_CONTD == 0 {
                    break;
                }
            }
            let end = u32::try_from(self.peeked.len()).map_err(|_| broken())?;
            let Some(f) = b.last_mut() else { break };
            f.len = len;
            f.cookie = end.into();
            if parts > MAX_JOINED {
                f.dropped = true;
                self.count_once(end, stats);
            } else {
                f.vnet = partial::find(f.head(), len, self.mtu);
            }
        }
        Ok(())
    }

    /// Asks the processor for the first bytes of the piece `n` descriptors from here.
    #[inline]
    fn ask_for(&self, umem: &Umem, n: u32) {
        let desc = self.ring.get(self.next.wrapping_add(n));
        if let Some(seg) = umem.seg(desc.addr, desc.len) {
            seg.prefetch();
            if desc.len > 64 {
                seg.prefetch_at(64);
            }
        }
    }

    fn count_once(&mut self, end: u32, stats: &mut Stats) {
        let end = self.next.wrapping_add(end);
        if end.wrapping_sub(self.counted).wrapping_sub(1) < self.ring.len() {
            self.counted = end;
            stats.drop(Reason::Fragment);
        }
    }

    /// Consumes the first `taken` frames and lends their chunks again. The kernel may have to be kicked.
    pub(super) fn release(&mut self, b: &Batch, taken: usize) -> bool {
        let Some(last) = taken.checked_sub(1).and_then(|i| b.frames().get(i)) else { return false };
        let n = u32::try_from(last.cookie).unwrap_or(0);
        for (i, base) in (0..n).zip(&self.peeked) {
            self.fill.set(self.filled.wrapping_add(i), *base);
        }
        self.next = self.next.wrapping_add(n);
        self.filled = self.filled.wrapping_add(n);
        // In this order, one after the other: see the top.
        self.ring.consume(self.next);
        self.fill.produce(self.filled);
        self.peeked.clear();
        self.fill.wants_kick()
    }
}
