//! What waits for one member of a hub: whole frames, one after the other, in memory of a fixed size.
//!
//! Promise: bounded, in order, no allocation after it is made; a frame that was given stays where it is until it is
//! popped. Memory that was used last is used next: an empty queue begins at its start.
#![forbid(unsafe_code)]

use std::io;

use netreeve_shared::vnet::Vnet;

use crate::frame::{Batch, Frame, HEAD, MAX_FRAME};
use crate::mem::{Buf, Seg};

/// Most frames that wait.
pub const FRAMES: usize = 4096;
/// Most bytes that wait: 60 of the largest frames, or 2700 of 1514 bytes. Pages are made when they are first used.
pub const BYTES: u32 = 4 * 1024 * 1024;
/// Where frames begin: at multiples of a cache line.
const ALIGN: u32 = 64;

/// Where a frame lies and what is left to do on it.
#[derive(Clone, Copy, Debug, Default)]
struct Record {
    at: u32,
    len: u32,
    vnet: Vnet,
}

/// The queue.
#[derive(Debug)]
pub(crate) struct Queue {
    buf: Buf,
    records: Box<[Record]>,
    /// The oldest record.
    first: usize,
    n: usize,
    /// Where the next frame may begin.
    next: u32,
}

impl Queue {
    /// An empty one.
    ///
    /// # Errors
    /// No memory.
    pub(crate) fn new() -> io::Result<Self> {
        let records = vec![Record::default(); FRAMES].into_boxed_slice();
        Ok(Self { buf: Buf::reserve(BYTES)?, records, first: 0, n: 0, next: 0 })
    }

    /// Frames that wait.
    pub(crate) fn len(&self) -> usize {
        self.n
    }

    /// Forgets all; says how many.
    pub(crate) fn clear(&mut self) -> usize {
        self.next = 0;
        std::mem::take(&mut self.n)
    }

    fn record(&self, i: usize) -> Option<&Record> {
        self.records.get((self.first + i) % FRAMES)
    }

    /// Where a frame of `len` bytes would begin; none: there is no room for it.
    fn place(&self, len: u32) -> Option<u32> {
        let Some(oldest) = self.record(0).filter(|_| self.n > 0) else { return (len <= BYTES).then_some(0) };
        if self.n == FRAMES || self.next == oldest.at {
            return None;
        }
        if self.next < oldest.at {
            return (len <= oldest.at - self.next).then_some(self.next);
        }
        if len <= BYTES - self.next {
            return Some(self.next);
        }
        (len <= oldest.at).then_some(0)
    }

    /// There is room for a frame of `len` bytes.
    pub(crate) fn has_room(&self, len: u32) -> bool {
        self.place(len).is_some()
    }

    /// There is room for any frame.
    pub(crate) fn is_roomy(&self) -> bool {
        self.has_room(MAX_FRAME)
    }

    /// Copies a frame behind the others. False: there is no room for it.
    pub(crate) fn push(&mut self, f: &Frame, body: &[Seg]) -> bool {
        let Some(at) = self.place(f.len) else { return false };
        let room = self.buf.seg(at, f.len);
        // What counts is what was copied, so that no byte of an earlier frame is ever part of this one.
        let mut len = u32::try_from(room.copy_in(f.head())).unwrap_or(0);
        for s in body {
            len += room.skip(len).copy_from(s);
        }
        let end = (self.first + self.n) % FRAMES;
        if let Some(r) = self.records.get_mut(end) {
            *r = Record { at, len, vnet: f.vnet };
        }
        self.n += 1;
        self.next = (at + len.next_multiple_of(ALIGN)).min(BYTES);
        true
    }

    /// Puts the oldest frames into a batch; they stay.
    pub(crate) fn give(&self, b: &mut Batch) {
        for i in 0..self.n.min(b.room()) {
            let (Some(r), Some(f)) = (self.record(i), b.push()) else { return };
            let seg = self.buf.seg(r.at, r.len);
            f.vnet = r.vnet;
            f.len = r.len;
            f.set_lead(seg);
            let head = f.head_from(&seg);
            if seg.len() as usize > HEAD {
                b.push_seg(seg.skip(head));
            }
        }
    }

    /// Drops the `n` oldest frames; says how many bytes they had.
    pub(crate) fn pop(&mut self, n: usize) -> u64 {
        let n = n.min(self.n);
        let bytes = (0..n).filter_map(|i| self.record(i)).map(|r| u64::from(r.len)).sum();
        self.first = (self.first + n) % FRAMES;
        self.n -= n;
        if self.n == 0 {
            self.next = 0;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    /// A batch with one frame of these bytes, which must outlive it.
    fn frame(bytes: &mut [u8]) -> Batch {
        let mut b = Batch::new();
        let seg = Seg::over(bytes);
        let f = b.push().unwrap();
        f.len = seg.len();
        let n = f.head_from(&seg);
        b.push_seg(seg.skip(n));
        b
    }

    fn bytes(b: &Batch, f: &Frame) -> Vec<u8> {
        let mut v = f.head().to_vec();
        for s in b.body(f) {
            let mut part = vec![0; s.len() as usize];
            s.copy_out(&mut part);
            v.extend(part);
        }
        v
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn what_goes_in_comes_out_in_order_and_nothing_is_overwritten(
            steps in prop::collection::vec(
                prop_oneof![
                    (1_usize..40, prop_oneof![1_usize..200, 1400..1600_usize, 60_000..=69_632_usize]).prop_map(|(n, l)| (n, l, 0)),
                    (1_usize..60).prop_map(|n| (0, 0, n)),
                ],
                1..120,
            ),
        ) {
            let (mut q, mut model, mut number) = (Queue::new().unwrap(), VecDeque::<Vec<u8>>::new(), 0_u8);
            for (pushes, len, pops) in steps {
                for _ in 0..pushes {
                    number = number.wrapping_add(1);
                    let mut v = vec![number; len];
                    let b = frame(&mut v);
                    let f = &b.frames()[0];
                    let room = q.has_room(f.len);
                    prop_assert!(room || model.len() == FRAMES || model.iter().map(Vec::len).sum::<usize>() > BYTES as usize / 4);
                    prop_assert_eq!(q.push(f, b.body(f)), room);
                    if room {
                        model.push_back(v);
                    }
                }
                let mut out = Batch::new();
                q.give(&mut out);
                prop_assert_eq!(out.len(), model.len().min(crate::frame::BATCH));
                for (f, want) in out.frames().iter().zip(&model) {
                    prop_assert_eq!(&bytes(&out, f), want);
                }
                let n = pops.min(out.len());
                let gone: usize = model.drain(..n).map(|v| v.len()).sum();
                prop_assert_eq!(q.pop(n), gone as u64);
                prop_assert_eq!(q.len(), model.len());
            }
        }
    }

    #[test]
    fn both_bounds_hold_and_an_empty_queue_begins_anew() {
        let mut q = Queue::new().unwrap();
        let mut small = [1; 60];
        let b = frame(&mut small);
        let mut n = 0;
        while q.push(&b.frames()[0], &[]) {
            n += 1;
        }
        assert_eq!(n, FRAMES);
        assert_eq!(q.pop(FRAMES + 5), 60 * FRAMES as u64);
        let mut large = vec![2; MAX_FRAME as usize];
        let b = frame(&mut large);
        let f = &b.frames()[0];
        n = 0;
        while q.is_roomy() {
            assert!(q.push(f, b.body(f)));
            n += 1;
        }
        assert_eq!(n, (BYTES / MAX_FRAME) as usize);
        assert!(!q.push(f, b.body(f)));
        assert_eq!(q.clear(), n);
        assert!(q.is_roomy() && q.len() == 0);
    }
}
