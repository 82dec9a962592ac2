//! Chains of buffers as the device sees them: fetched from a ring of either format, checked, kept in a list until they
//! are completed in the same order.
//!
//! Trust: none; descriptors and indirect tables are copied once and checked as copied. Promise: a chain is at most
//! [`MAX_SEGS`] descriptors and [`MAX_BYTES`] bytes; one that breaks a rule stays in the list as a bad one without
//! segments, because its place in the ring has to be given back too.
#![forbid(unsafe_code)]

use crate::mem::split::{DESC, Desc, F_INDIRECT, F_NEXT, F_WRITE};
use crate::mem::{GuestMemory, Seg};

/// Most descriptors in a chain.
pub const MAX_SEGS: usize = 64;
/// Most bytes in a chain: a 64 KiB frame with its headers, in whole pages.
pub const MAX_BYTES: u32 = 128 * 1024;

/// A chain. Its segments are first those to read, then those to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name: what the driver is told when it is completed.
    pub id: u16,
    /// Places that it takes in the ring.
    pub slots: u16,
    /// Bytes of all segments.
    pub bytes: u32,
    /// Bytes that were written into it: to be set before it is completed.
    pub written: u32,
    /// Segments that the device reads.
    pub readable: u8,
    /// Segments that the device writes.
    pub writable: u8,
    /// It breaks the rules: to be completed with nothing written.
    pub bad: bool,
    first: u32,
}

/// Chains in ring order, and their segments.
#[derive(Debug)]
pub struct Chains {
    list: Vec<Chain>,
    segs: Vec<Seg>,
}

impl Default for Chains {
    fn default() -> Self {
        Self { list: Vec::with_capacity(512), segs: Vec::with_capacity(2048) }
    }
}

impl Chains {
    /// Forgets all.
    #[inline]
    pub fn clear(&mut self) {
        self.list.clear();
        self.segs.clear();
    }

    /// Chains.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// No chain.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// All chains.
    #[must_use]
    #[inline]
    pub fn all(&self) -> &[Chain] {
        &self.list
    }

    /// Chain number `i`.
    #[must_use]
    #[inline]
    pub fn get(&self, i: usize) -> Option<&Chain> {
        self.list.get(i)
    }

    /// Chain number `i`, to say what was written.
    #[inline]
    pub fn get_mut(&mut self, i: usize) -> Option<&mut Chain> {
        self.list.get_mut(i)
    }

    /// The chains from `from` up to, not including, `to`.
    #[must_use]
    #[inline]
    pub fn range(&self, from: usize, to: usize) -> &[Chain] {
        self.list.get(from..to).unwrap_or_default()
    }

    /// A chain's segments.
    #[must_use]
    #[inline]
    pub fn segs(&self, c: &Chain) -> &[Seg] {
        let from = c.first as usize;
        self.segs.get(from..from + usize::from(c.readable) + usize::from(c.writable)).unwrap_or_default()
    }

    /// A chain's first segment.
    #[must_use]
    #[inline]
    pub fn first(&self, c: &Chain) -> Option<Seg> {
        self.segs.get(c.first as usize).copied()
    }

    /// Asks the processor for the first bytes of segment number `i`, to be read soon: another core has written them.
    /// Nearly always a chain has one segment, so that this is chain number `i`.
    #[inline]
    pub fn ask_for(&self, i: usize) {
        if let Some(s) = self.segs.get(i) {
            s.prefetch();
            s.prefetch_at(64);
        }
    }

    /// The same for bytes that are to be written: another core has read them.
    #[inline]
    pub fn ask_to_write(&self, i: usize) {
        if let Some(s) = self.segs.get(i) {
            s.prefetch_to_write();
            s.prefetch_to_write_at(64);
        }
    }

    /// The segments of the `n` chains from number `from` on.
    #[must_use]
    #[inline]
    pub fn run(&self, from: usize, n: usize) -> &[Seg] {
        let start = self.list.get(from).map_or(0, |c| c.first as usize);
        let end = self.list.get(from + n).map_or(self.segs.len(), |c| c.first as usize);
        self.segs.get(start..end).unwrap_or_default()
    }

    /// Segments of the chains from number `from` on.
    #[must_use]
    pub fn segs_from(&self, from: usize) -> usize {
        self.list.get(from).map_or(0, |c| self.segs.len() - c.first as usize)
    }

    /// Forgets the first `n` chains if they are all or most of the list. True: they are gone.
    #[inline]
    pub fn forget(&mut self, n: usize) -> bool {
        if n == self.list.len() {
            self.clear();
            return true;
        }
        n > 256 && self.shift(n)
    }

    #[cold]
    fn shift(&mut self, n: usize) -> bool {
        let Some(from) = self.list.get(n).map(|c| c.first) else { return false };
        self.list.drain(..n);
        self.segs.drain(..from as usize);
        for c in &mut self.list {
            c.first -= from;
        }
        true
    }

    /// The usual chain: one buffer in one piece, all to be read or all to be written.
    #[inline]
    pub(super) fn push_one(&mut self, id: u16, seg: Seg, write: bool) {
        let first = u32::try_from(self.segs.len()).unwrap_or(u32::MAX);
        let (readable, writable) = (u8::from(!write), u8::from(write));
        let bytes = seg.len();
        self.segs.push(seg);
        self.list.push(Chain { id, slots: 1, bytes, written: 0, readable, writable, bad: false, first });
    }

    /// Begins any other chain.
    pub(super) fn walk<'a>(&'a mut self, memory: &'a GuestMemory, hint: &'a mut usize) -> Walk<'a> {
        let before = self.segs.len();
        Walk { memory, hint, chains: self, before, readable: 0, bytes: 0 }
    }
}

/// One chain on its way into the list.
pub(super) struct Walk<'a> {
    memory: &'a GuestMemory,
    hint: &'a mut usize,
    chains: &'a mut Chains,
    before: usize,
    readable: u8,
    bytes: u32,
}

impl Walk<'_> {
    /// Adds one buffer. None: it breaks a rule.
    pub(super) fn add(&mut self, d: &Desc) -> Option<()> {
        let n = self.chains.segs.len() - self.before;
        let write = d.flags & F_WRITE != 0;
        // All that the device reads comes before all that it writes (virtio 1.2 §2.7.4.2, §2.8.6).
        if !write && usize::from(self.readable) != n {
            return None;
        }
        self.bytes = self.bytes.checked_add(d.len).filter(|&b| b <= MAX_BYTES)?;
        let (mut at, mut left) = (d.addr, d.len);
        // Usually once: a buffer may run on from one region into its neighbour.
        while left > 0 {
            if self.chains.segs.len() - self.before >= MAX_SEGS {
                return None;
            }
            let seg = self.memory.run(at, left, self.hint)?;
            self.chains.segs.push(seg);
            self.readable += u8::from(!write);
            left -= seg.len();
            at = at.wrapping_add(u64::from(seg.len()));
        }
        Some(())
    }

    /// Adds the buffers of an indirect table, each entry of which is copied once. In a split ring's table entries name
    /// the next one (virtio 1.2 §2.7.5.3); in a packed ring's, where flags stand last, all follow one another (§2.8.7).
    pub(super) fn table(&mut self, d: &Desc, linked: bool) -> Option<()> {
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
            let mut e = Desc::from_le(raw);
            if !linked {
                e.flags = e.next;
            }
            if e.flags & F_INDIRECT != 0 {
                return None;
            }
            self.add(&e)?;
            let more = if linked { e.flags & F_NEXT != 0 } else { at + DESC < d.len };
            if !more {
                return Some(());
            }
            at = if linked { u32::from(e.next) * DESC } else { at + DESC };
        }
        None
    }

    /// Leaves it out.
    pub(super) fn forget(self) {
        self.chains.segs.truncate(self.before);
    }

    /// Ends the chain, good or bad.
    pub(super) fn end(self, id: u16, slots: u16, good: Option<()>) {
        let bad = good.is_none();
        if bad {
            self.chains.segs.truncate(self.before);
        }
        let all = u8::try_from(self.chains.segs.len() - self.before).unwrap_or(u8::MAX);
        let (readable, bytes) = if bad { (0, 0) } else { (self.readable, self.bytes) };
        let first = u32::try_from(self.before).unwrap_or(u32::MAX);
        let chain = Chain { id, slots, bytes, written: 0, readable, writable: all - readable, bad, first };
        self.chains.list.push(chain);
    }
}
