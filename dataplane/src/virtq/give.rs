//! Frames that a guest transmits: chains of its transmit ring become frames of a batch.
//!
//! Trust: none in the guest. The virtio-net header and the head are copied once and checked as copied; the body stays
//! in guest memory. Promise: a chain is completed exactly once and in ring order; chains whose frames nobody took are
//! put back and given again.
#![forbid(unsafe_code)]

use netreeve_shared::vnet::{self, F_NEEDS_CSUM, LEN as VNET, Vnet};

use super::chain::{Chain, Chains};
use super::device::Device;
use super::terms::{Terms, work};
use crate::frame::{BATCH, Batch, Frame, HEAD, MAX_SUPER, MIN_FRAME};
use crate::mem::Seg;
use crate::stats::{Reason, Stats};

/// So many chains ahead a frame's first bytes are asked for: they lie in another core's cache.
const AHEAD: usize = 8;

/// A transmit ring and the chains of the turn that is under way.
#[derive(Debug)]
pub struct Giver {
    dev: Device,
    chains: Chains,
    /// Bad chains before the first that was given.
    bad: usize,
    /// Chains given as frames.
    given: usize,
}

impl Giver {
    /// Serves this ring.
    #[must_use]
    pub fn new(dev: Device) -> Self {
        Self { dev, chains: Chains::default(), bad: 0, given: 0 }
    }

    /// The ring.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.dev
    }

    /// The ring, with every chain put back that nobody took.
    pub fn device_mut(&mut self) -> &mut Device {
        self.rewind(0);
        &mut self.dev
    }

    /// Puts every chain back but the first `taken` of those that were given.
    fn rewind(&mut self, taken: usize) {
        self.dev.unfetch(self.chains.range(self.bad + taken, self.chains.len()));
        self.chains.clear();
        (self.bad, self.given) = (0, 0);
    }

    /// Gives up to `b.room()` frames. True: the driver wants to be interrupted (for chains that were bad).
    pub fn recv(&mut self, b: &mut Batch, terms: &Terms, stats: &mut Stats) -> bool {
        self.rewind(0);
        // A hostile ring of nothing but bad chains costs one batch of them for each turn.
        let n = self.dev.fetch(&mut self.chains, b.room().min(BATCH));
        for i in 0..AHEAD {
            self.chains.ask_for(i);
        }
        let (mut bad, mut given) = (0, 0);
        for (i, c) in self.chains.all().iter().enumerate() {
            self.chains.ask_for(i.wrapping_add(AHEAD));
            match give(b, c, &self.chains, terms) {
                Ok(()) => given += 1,
                // Chains are completed in order: what is bad waits until what is before it has gone.
                Err(_) if given > 0 => break,
                Err(why) => {
                    bad += 1;
                    stats.drop(why);
                }
            }
        }
        (self.bad, self.given) = (bad, given);
        if n > 0 {
            self.dev.hush();
        }
        self.bad > 0 && self.dev.complete(self.chains.range(0, self.bad))
    }

    /// The first `taken` frames went on: their chains go back to the driver, the others are put back. True: the driver
    /// wants to be interrupted.
    pub fn release(&mut self, b: &Batch, taken: usize, stats: &mut Stats) -> bool {
        let taken = taken.min(self.given);
        let call = self.dev.complete(self.chains.range(self.bad, self.bad + taken));
        stats.rx_frames += taken as u64;
        stats.rx_bytes += b.frames().iter().take(taken).fold(0, |n: u64, f| n.wrapping_add(f.len.into()));
        self.rewind(taken);
        call
    }

    /// About to sleep until there are frames. True: there are.
    pub fn arm(&mut self) -> bool {
        self.rewind(0);
        self.dev.arm()
    }
}

/// Makes a frame of a chain: header and head are copied, and checked as copied.
#[inline]
fn give(b: &mut Batch, c: &Chain, chains: &Chains, terms: &Terms) -> Result<(), Reason> {
    if c.bad || c.writable != 0 || c.bytes < terms.header {
        return Err(Reason::BadChain);
    }
    let len = c.bytes.wrapping_sub(terms.header);
    if len < MIN_FRAME {
        return Err(Reason::Runt);
    }
    if len > MAX_SUPER {
        return Err(Reason::Oversize);
    }
    // Usually one buffer and no work, and 12 bytes are there whatever the header's size: the shortest frame is longer.
    // Word by word on the way to the frame: what is gathered in memory from smaller parts is waited for.
    if c.readable == 1
        && let Some(seg) = chains.first(c)
        && let Some(raw) = seg.first::<VNET>()
        && let Vnet { gso_type: vnet::GSO_NONE, .. } = Vnet::from_le(&raw)
        && !Vnet::from_le(&raw).needs_csum()
    {
        let Some(f) = b.push() else { return Err(Reason::Full) };
        f.vnet = Vnet { flags: 0, ..Vnet::from_le(&raw) };
        (f.len, f.cookie) = (len, c.id.into());
        let seg = seg.skip(terms.header);
        if f.head_from(&seg) < len {
            b.push_seg(seg.skip(u32::try_from(HEAD).unwrap_or(0)));
        }
        return Ok(());
    }
    give_scattered(b, c, chains.segs(c), terms)
}

/// The same for a frame in several buffers, or with work left on it.
#[inline(never)]
fn give_scattered(b: &mut Batch, c: &Chain, segs: &[Seg], terms: &Terms) -> Result<(), Reason> {
    let len = c.bytes - terms.header;
    let mut raw = [0u8; VNET];
    let want = if terms.header == 10 { 10 } else { VNET };
    let mut at = 0;
    for seg in segs {
        at += seg.copy_out(raw.get_mut(at..want).unwrap_or_default());
        if at == want {
            break;
        }
    }
    let vnet = header(&raw, len, terms)?;
    let Some(f) = b.push() else { return Err(Reason::Full) };
    (f.vnet, f.len, f.cookie) = (vnet, len, c.id.into());
    let rest = fill_head(f, segs, terms.header);
    for (i, seg) in segs.iter().enumerate().skip(rest.0) {
        b.push_seg(if i == rest.0 { seg.skip(rest.1) } else { *seg });
    }
    Ok(())
}

/// Reads a header and checks what can be checked before anything is given.
fn header(raw: &[u8; VNET], len: u32, terms: &Terms) -> Result<Vnet, Reason> {
    let mut vnet = Vnet::from_le(raw);
    // All else is for the other direction.
    vnet.flags &= F_NEEDS_CSUM;
    // The work that it asks for makes sense, and was negotiated.
    let good = vnet.check(len).is_ok() && work(&vnet).within(terms.gives);
    if good { Ok(vnet) } else { Err(Reason::BadHeader) }
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

/// The same tests for either format.
#[cfg(test)]
mod tests {
    mod split {
        const PACKED: bool = false;
        include!("give_tests.rs");
    }
    mod packed {
        const PACKED: bool = true;
        include!("give_tests.rs");
    }
}
