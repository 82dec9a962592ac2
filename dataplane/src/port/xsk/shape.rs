//! How a queue's UMEM is divided.
//!
//! The lower half of the chunks circulates for receiving, the upper half is for sending. Both are no more than the
//! rings hold, so that a ring cannot be full while a chunk is free; what is over is not used. This is an agreement
//! between a dataplane and its successor, which takes over the same memory.
#![forbid(unsafe_code)]

use crate::mem::xring::Desc;
use crate::port::xsk::Plan;

/// Most pieces of a frame that is sent: `MAX_SKB_FRAGS` and the head; the kernel drops what has more.
pub(super) const MAX_PARTS: u32 = 18;
/// Most pieces of a received frame that are joined: a 64 KiB super-frame in chunks of 2048 bytes, less headroom.
pub(super) const MAX_JOINED: u32 = 40;
/// Most chunks that circulate for receiving. With few, the kernel writes into lines that still lie in our core's cache and
/// waits for them: at 64 bytes 1024 brought 4.7 million frames a second over a veth pair where 512 brought 4.1. With
/// more, frames of full size no longer lie in the second-level cache when we come to them.
const MAX_LENT: u32 = 1024;

/// The division of one queue's UMEM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Bytes of a chunk, a power of two.
    pub(super) chunk: u32,
    /// Chunks for receiving: the first ones.
    pub(super) lent: u32,
    /// The first chunk for sending.
    pub(super) first_own: u32,
    /// Chunks for sending.
    pub(super) own: u32,
    /// Frames may span chunks.
    pub(super) multi_buffer: bool,
}

impl Shape {
    /// The division for a plan; none if the plan cannot be.
    pub(super) fn new(plan: &Plan) -> Option<Self> {
        let half = plan.chunks / 2;
        let possible = plan.ring.is_power_of_two()
            && (2048..=4096).contains(&plan.chunk)
            && plan.chunk.is_power_of_two()
            && half > 0;
        let own = (plan.chunks - half).min(plan.ring);
        let lent = half.min(plan.ring).min(MAX_LENT);
        possible.then_some(Self {
            chunk: plan.chunk,
            lent,
            first_own: half,
            own,
            multi_buffer: plan.multi_buffer,
        })
    }

    /// The chunk in which a received piece lies; none if the piece is not wholly in one of ours.
    pub(super) fn base(&self, d: &Desc) -> Option<u64> {
        let chunk = u64::from(self.chunk);
        let base = d.addr & !(chunk - 1);
        (d.addr - base + u64::from(d.len) <= chunk && self.is_lent(base)).then_some(base)
    }

    /// `base` is the address of a chunk for receiving.
    pub(super) fn is_lent(&self, base: u64) -> bool {
        let chunk = u64::from(self.chunk);
        base.is_multiple_of(chunk) && base / chunk < u64::from(self.lent)
    }

    /// Which of the chunks for sending it is, counted from 0.
    pub(super) fn own_number(&self, addr: u64) -> Option<u32> {
        let n = u32::try_from(addr / u64::from(self.chunk)).ok()?.checked_sub(self.first_own)?;
        (n < self.own).then_some(n)
    }

    /// The address of a chunk for sending.
    pub(super) fn own_addr(&self, n: u32) -> u64 {
        u64::from(self.first_own.saturating_add(n)) * u64::from(self.chunk)
    }
}
