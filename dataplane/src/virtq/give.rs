//! Frames that a guest transmits: chains of its transmit ring become frames of a batch.
//!
//! Trust: none in the guest. The virtio-net header and the head are copied once and checked as copied; the body stays
//! in guest memory. Promise: a chain is completed exactly once and in ring order; chains whose frames nobody took are
//! put back and given again.
#![forbid(unsafe_code)]

use netreeve_shared::vnet::{F_NEEDS_CSUM, LEN as VNET, Vnet};

use super::device::{Chain, Device, Pop};
use super::terms::{Terms, work};
use crate::frame::{BATCH, Batch, Frame, HEAD, MAX_SUPER, MIN_FRAME};
use crate::mem::Seg;
use crate::stats::{Reason, Stats};

/// So many chains ahead a frame's first bytes are asked for: they lie in another core's cache.
const AHEAD: u16 = 8;

/// A transmit ring and the chains of the turn that is under way.
#[derive(Debug)]
pub struct Giver {
    dev: Device,
    heads: [u16; BATCH],
    given: usize,
    scratch: Vec<Seg>,
}

/// A checked transmit chain.
struct Checked {
    vnet: Vnet,
    len: u32,
}

impl Giver {
    /// Serves this ring.
    #[must_use]
    pub fn new(dev: Device) -> Self {
        Self { dev, heads: [0; BATCH], given: 0, scratch: Vec::with_capacity(64) }
    }

    /// The ring.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.dev
    }

    /// The ring, with every chain put back that nobody took.
    pub fn device_mut(&mut self) -> &mut Device {
        self.rewind();
        &mut self.dev
    }

    fn rewind(&mut self) {
        let n = u16::try_from(self.given).unwrap_or(0);
        self.dev.unpop(n);
        self.given = 0;
    }

    /// Gives up to `b.room()` frames. True: the driver wants to be interrupted (for chains that were bad).
    pub fn recv(&mut self, b: &mut Batch, terms: &Terms, stats: &mut Stats) -> bool {
        self.rewind();
        // A hostile ring of nothing but bad chains costs one batch of them for each turn.
        let mut bad = 0;
        while b.room() > 0 && self.given < BATCH && bad < BATCH {
            self.scratch.clear();
            if let Some(next) = self.dev.glimpse(AHEAD) {
                next.prefetch();
                next.skip(64).prefetch();
            }
            let (head, checked) = match self.dev.pop(&mut self.scratch) {
                Pop::Empty => break,
                Pop::Bad { head } => (head, Err(Reason::BadChain)),
                Pop::Chain(c) => (Some(c.head), check(&c, &self.scratch, terms)),
            };
            match (head, checked) {
                (Some(head), Ok(c)) => {
                    self.push(b, head, &c, terms.header);
                }
                // Chains are completed in order: what is bad waits until what is before it has gone.
                (..) if self.given > 0 => {
                    self.dev.unpop(1);
                    break;
                }
                (head, r) => {
                    bad += 1;
                    stats.drop(r.err().unwrap_or(Reason::BadChain));
                    if let Some(head) = head {
                        self.dev.complete(head, 0);
                    }
                }
            }
        }
        if self.given > 0 || bad > 0 {
            self.dev.hush();
        }
        bad > 0 && self.dev.publish()
    }

    #[inline]
    fn push(&mut self, b: &mut Batch, head: u16, c: &Checked, header: u32) {
        let Some(f) = b.push() else { return };
        f.vnet = c.vnet;
        f.len = c.len;
        f.cookie = u64::from(head);
        let rest = fill_head(f, &self.scratch, header);
        for (i, seg) in self.scratch.iter().enumerate().skip(rest.0) {
            b.push_seg(if i == rest.0 { seg.skip(rest.1) } else { *seg });
        }
        if let Some(h) = self.heads.get_mut(self.given) {
            *h = head;
            self.given += 1;
        }
    }

    /// The first `taken` frames went on: their chains go back to the driver, the others are put back. True: the driver
    /// wants to be interrupted.
    pub fn release(&mut self, b: &Batch, taken: usize, stats: &mut Stats) -> bool {
        let taken = taken.min(self.given);
        for &head in self.heads.iter().take(taken) {
            self.dev.complete(head, 0);
        }
        for f in b.frames().iter().take(taken) {
            stats.rx_frames += 1;
            stats.rx_bytes += u64::from(f.len);
        }
        self.given -= taken;
        self.rewind();
        self.dev.publish()
    }

    /// About to sleep until there are frames. True: there are.
    pub fn arm(&mut self) -> bool {
        self.rewind();
        self.dev.arm()
    }
}

/// Copies the header and checks what can be checked before anything is given.
#[inline]
fn check(c: &Chain, segs: &[Seg], terms: &Terms) -> Result<Checked, Reason> {
    if c.writable != 0 || c.bytes < terms.header {
        return Err(Reason::BadChain);
    }
    let len = c.bytes - terms.header;
    if len < MIN_FRAME {
        return Err(Reason::Runt);
    }
    if len > MAX_SUPER {
        return Err(Reason::Oversize);
    }
    let mut raw = [0u8; VNET];
    let want = if terms.header == 10 { 10 } else { VNET };
    let mut at = 0;
    for seg in segs {
        at += seg.copy_out(raw.get_mut(at..want).unwrap_or_default());
        if at == want {
            break;
        }
    }
    let mut vnet = Vnet::from_le(&raw);
    // All else is for the other direction.
    vnet.flags &= F_NEEDS_CSUM;
    if vnet.check(len).is_err() || !work(&vnet).within(terms.gives) {
        return Err(Reason::BadHeader);
    }
    Ok(Checked { vnet, len })
}

/// Copies up to [`HEAD`] bytes after the virtio-net header into the frame's head, gathering them from small buffers.
/// The body begins in the segment with the index returned, after that many of its bytes.
#[inline]
fn fill_head(f: &mut Frame, segs: &[Seg], header: u32) -> (usize, u32) {
    let mut skip = header;
    for (i, seg) in segs.iter().enumerate() {
        let cut = skip.min(seg.len());
        skip -= cut;
        let part = seg.skip(cut);
        let took = f.head_append(&part);
        if took < part.len() || f.head().len() == HEAD {
            return (i, cut + took);
        }
    }
    (segs.len(), 0)
}

#[cfg(test)]
#[path = "give_tests.rs"]
mod tests;
