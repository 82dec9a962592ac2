//! Bytes that wait for somebody who takes none at the moment: of the guest for a socket, of a socket for the guest's
//! acknowledgement (where the kernel cannot keep them).
//!
//! All flows share one [`Store`], cut in chunks that are given out when needed; its pages are made when they are first
//! touched, and what was given back last is given out first.
//!
//! Trust: none needed; nothing looks at the bytes. Promise: no more than the store's size is ever held, and bytes come out
//! as they went in.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;

use crate::mem::{Buf, Seg};

/// Bytes of a chunk.
pub(super) const CHUNK: u32 = 16 << 10;

/// What all flows hold.
#[derive(Debug)]
pub(super) struct Store {
    mem: Buf,
    chunks: u32,
    fresh: u32,
    free: Vec<u32>,
}

impl Store {
    /// Room for `bytes`, a chunk at least.
    pub(super) fn new(bytes: u32) -> io::Result<Self> {
        let chunks = (bytes / CHUNK).max(1);
        Ok(Self { mem: Buf::reserve(chunks * CHUNK)?, chunks, fresh: 0, free: Vec::new() })
    }

    /// Bytes of chunks that nobody has.
    pub(super) fn left(&self) -> u32 {
        (self.chunks - self.fresh + u32::try_from(self.free.len()).unwrap_or(0)) * CHUNK
    }

    fn get(&mut self) -> Option<u32> {
        if let Some(c) = self.free.pop() {
            return Some(c);
        }
        (self.fresh < self.chunks).then(|| {
            self.fresh += 1;
            self.fresh - 1
        })
    }

    fn seg(&self, chunk: u32, at: u32, len: u32) -> Seg {
        self.mem.seg(chunk * CHUNK + at, len.min(CHUNK - at))
    }
}

/// What one flow holds.
#[derive(Debug, Default)]
pub(super) struct Hold {
    chunks: VecDeque<u32>,
    /// Where the first byte is in the first chunk.
    at: u32,
    len: u32,
}

impl Hold {
    /// Bytes.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends; says how many bytes there was room for.
    pub(super) fn push(&mut self, store: &mut Store, from: Seg) -> u32 {
        let mut rest = from;
        while !rest.is_empty() {
            let end = self.at + self.len;
            let have = u32::try_from(self.chunks.len()).unwrap_or(u32::MAX);
            if end == have * CHUNK {
                let Some(c) = store.get() else { break };
                self.chunks.push_back(c);
            }
            let Some(&last) = self.chunks.back() else { break };
            let n = store.seg(last, end % CHUNK, CHUNK).copy_from(&rest);
            self.len += n;
            rest = rest.skip(n);
        }
        from.len() - rest.len()
    }

    /// Appends the places of up to `len` bytes from the `from`th on.
    pub(super) fn segs(&self, store: &Store, from: u32, len: u32, out: &mut Vec<Seg>) {
        let mut left = len.min(self.len.saturating_sub(from));
        let mut at = self.at + from;
        for &c in self.chunks.iter().skip(usize::try_from(at / CHUNK).unwrap_or(usize::MAX)) {
            if left == 0 {
                break;
            }
            let s = store.seg(c, at % CHUNK, left);
            left -= s.len();
            at += s.len();
            out.push(s);
        }
    }

    /// Forgets the first `n` bytes.
    pub(super) fn consume(&mut self, store: &mut Store, n: u32) {
        let n = n.min(self.len);
        self.len -= n;
        self.at += n;
        while self.at >= CHUNK || self.len == 0 {
            let Some(c) = self.chunks.pop_front() else {
                self.at = 0;
                return;
            };
            store.free.push(c);
            self.at = self.at.saturating_sub(CHUNK);
        }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self, store: &mut Store) {
        self.consume(store, u32::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(h: &Hold, s: &Store, from: u32, len: u32) -> Vec<u8> {
        let mut segs = Vec::new();
        h.segs(s, from, len, &mut segs);
        let mut out = Vec::new();
        for seg in segs {
            let mut b = vec![0; seg.len() as usize];
            seg.copy_out(&mut b);
            out.extend(b);
        }
        out
    }

    proptest! {
        #[test]
        fn bytes_come_out_as_they_went_in(steps in prop::collection::vec((any::<bool>(), 0u32..40_000), 1..60)) {
            let mut store = Store::new(8 * CHUNK).unwrap();
            let (mut one, mut other) = (Hold::default(), Hold::default());
            let mut model: VecDeque<u8> = VecDeque::new();
            let mut next = 0u8;
            for (push, n) in steps {
                if push {
                    let mut data: Vec<u8> = (0..n).map(|_| { next = next.wrapping_mul(5).wrapping_add(7); next }).collect();
                    let took = one.push(&mut store, Seg::over(&mut data));
                    model.extend(&data[..took as usize]);
                    prop_assert!(took == n || store.left() == 0);
                    other.push(&mut store, Seg::over(&mut data).take(n / 8));
                } else {
                    one.consume(&mut store, n);
                    model.drain(..(n as usize).min(model.len()));
                    other.consume(&mut store, n / 8);
                }
                prop_assert_eq!(one.len() as usize, model.len());
                prop_assert_eq!(bytes(&one, &store, 0, u32::MAX), Vec::from(model.clone()));
                let k = n.min(one.len());
                let want: Vec<u8> = model.iter().skip(k as usize).take(777).copied().collect();
                prop_assert_eq!(bytes(&one, &store, k, 777), want);
            }
            one.clear(&mut store);
            other.clear(&mut store);
            prop_assert_eq!(store.left(), 8 * CHUNK);
        }
    }
}
