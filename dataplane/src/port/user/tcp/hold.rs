//! Bytes that wait for somebody who takes none at the moment: of the guest for a socket, of a socket for the guest's
//! acknowledgement (where the kernel cannot keep them).
//!
//! All flows share one [`Store`], cut in chunks that are given out when needed; its pages are made when they are first
//! touched, and what was given back last is given out first. It is divided: the guest's connections and those that come by
//! forwards have a half each (all is the guest's where there are no forwards), and of either, what goes up has three
//! quarters and what goes down one. What goes up is promised before it is there, by the windows that the guest is told:
//! the store keeps account of that as well ([`Store::unclaimed`]).
//!
//! Trust: none needed; nothing looks at the bytes. Promise: no more than the store's size is ever held, nobody takes what is
//! another [`Purse`]'s, and bytes come out as they went in.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;

use crate::mem::{Buf, Seg};

/// Bytes of a chunk.
pub(super) const CHUNK: u32 = 16 << 10;

/// Of an origin's part, the part that is for what goes down.
const DOWN: u32 = 4;

/// For what a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Purse {
    /// Of a connection that the guest asked for; else of one that came by a forward.
    pub(super) guest: bool,
    /// For the guest's bytes; else for the guest.
    pub(super) up: bool,
}

impl Purse {
    fn index(self) -> usize {
        usize::from(!self.guest) * 2 + usize::from(self.up)
    }
}

/// What all flows hold.
#[derive(Debug)]
pub(super) struct Store {
    mem: Buf,
    chunks: u32,
    fresh: u32,
    free: Vec<u32>,
    /// There are forwards.
    shared: bool,
    /// Chunks that each purse has, and bytes that it has promised.
    taken: [u32; 4],
    claims: [u32; 4],
}

impl Store {
    /// Room for `bytes`, a chunk at least.
    pub(super) fn new(bytes: u32) -> io::Result<Self> {
        let chunks = (bytes / CHUNK).max(1);
        let mem = Buf::reserve(chunks * CHUNK)?;
        Ok(Self { mem, chunks, fresh: 0, free: Vec::new(), shared: false, taken: [0; 4], claims: [0; 4] })
    }

    /// Whether connections come by forwards.
    pub(super) fn share(&mut self, shared: bool) {
        self.shared = shared;
    }

    /// Chunks of a purse: one at least.
    fn chunks_of(&self, purse: Purse) -> u32 {
        let all = if self.shared || !purse.guest { self.chunks / 2 } else { self.chunks };
        let down = all / DOWN;
        (if purse.up { all - down } else { down }).max(1)
    }

    /// Bytes of a purse.
    pub(super) fn size(&self, purse: Purse) -> u32 {
        self.chunks_of(purse) * CHUNK
    }

    /// Bytes of a purse's chunks that it can still have.
    pub(super) fn left(&self, purse: Purse) -> u32 {
        let taken = self.taken.get(purse.index()).copied().unwrap_or(0);
        let there = self.chunks - self.fresh + u32::try_from(self.free.len()).unwrap_or(0);
        self.chunks_of(purse).saturating_sub(taken).min(there) * CHUNK
    }

    /// Bytes of a purse that were promised to nobody.
    pub(super) fn unclaimed(&self, purse: Purse) -> u32 {
        let claimed = self.claims.get(purse.index()).copied().unwrap_or(0);
        self.size(purse).saturating_sub(claimed)
    }

    /// A promise of `was` bytes is now one of `is`.
    pub(super) fn claim(&mut self, purse: Purse, was: u32, is: u32) {
        if let Some(c) = self.claims.get_mut(purse.index()) {
            *c = c.saturating_sub(was).saturating_add(is);
        }
    }

    fn get(&mut self, purse: Purse) -> Option<u32> {
        if self.left(purse) == 0 {
            return None;
        }
        let chunk = self.free.pop().unwrap_or_else(|| {
            self.fresh += 1;
            self.fresh - 1
        });
        if let Some(n) = self.taken.get_mut(purse.index()) {
            *n += 1;
        }
        Some(chunk)
    }

    fn give_back(&mut self, purse: Purse, chunk: u32) {
        self.free.push(chunk);
        if let Some(n) = self.taken.get_mut(purse.index()) {
            *n = n.saturating_sub(1);
        }
    }

    fn seg(&self, chunk: u32, at: u32, len: u32) -> Seg {
        self.mem.seg(chunk * CHUNK + at, len.min(CHUNK - at))
    }
}

/// What one flow holds.
#[derive(Debug)]
pub(super) struct Hold {
    purse: Purse,
    chunks: VecDeque<u32>,
    /// Where the first byte is in the first chunk.
    at: u32,
    len: u32,
}

impl Hold {
    /// Nothing yet, out of this purse.
    pub(super) fn new(purse: Purse) -> Self {
        Self { purse, chunks: VecDeque::new(), at: 0, len: 0 }
    }

    /// What it is of.
    pub(super) fn purse(&self) -> Purse {
        self.purse
    }

    /// Bytes that go where it is already.
    pub(super) fn spare(&self) -> u32 {
        let have = u32::try_from(self.chunks.len()).unwrap_or(u32::MAX);
        (have * CHUNK).saturating_sub(self.at + self.len)
    }

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
                let Some(c) = store.get(self.purse) else { break };
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
            store.give_back(self.purse, c);
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
            store.share(true);
            let (up, down) = (Purse { guest: true, up: true }, Purse { guest: false, up: false });
            let (mut one, mut other) = (Hold::new(up), Hold::new(down));
            let mut model: VecDeque<u8> = VecDeque::new();
            let mut next = 0u8;
            for (push, n) in steps {
                if push {
                    let mut data: Vec<u8> = (0..n).map(|_| { next = next.wrapping_mul(5).wrapping_add(7); next }).collect();
                    let took = one.push(&mut store, Seg::over(&mut data));
                    model.extend(&data[..took as usize]);
                    prop_assert!(took == n || store.left(up) == 0);
                    prop_assert!(one.chunks.len() <= 3);
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
            prop_assert_eq!((store.left(up), store.left(down)), (3 * CHUNK, CHUNK));
            prop_assert_eq!(store.free.len(), store.fresh as usize);
        }
    }
}
