//! What came in over a stream, and the frames in it.
//!
//! A length as the [`Framing`] has it, then a frame of that many bytes. Length 0 says nothing and is passed over; a
//! length above the framing's largest means that the peer is broken or that we are out of step: nothing after it can be
//! believed. A message, which has no length on the wire, is given one here, so that all framings are the same from then
//! on.
//!
//! Trust: none in the peer. Promise: the bytes of a frame lie in our own memory, whole, before it is seen; any cutting
//! of the stream into pieces gives the same frames.
#![forbid(unsafe_code)]

use std::io;

use crate::frame::MAX_FRAME;
use crate::mem::{Buf, Seg};
use crate::port::stream::framing::{Framing, PREFIX};

/// Bytes kept: two of the largest frames and a bit, or a batch of ordinary ones. Small, so that it stays in cache.
const SPACE: u32 = 144 * 1024;

// What is moved to the front when half is full leaves room for the largest message.
const _: () = assert!(SPACE / 2 >= PREFIX + MAX_FRAME);

/// What stands next in the stream.
#[derive(Clone, Copy, Debug)]
pub enum Next {
    /// A whole frame.
    Frame {
        /// Where it begins in the inbox, its length included: to [`Inbox::rewind`] to.
        at: u32,
        /// Its bytes.
        seg: Seg,
    },
    /// An empty frame, passed over.
    Empty,
    /// Not all of it is here.
    Partial,
    /// A length that cannot be. The inbox stays at it.
    Oversize,
}

/// A buffer of received bytes and how far they were read.
#[derive(Debug)]
pub struct Inbox {
    framing: Framing,
    buf: Buf,
    start: u32,
    end: u32,
}

impl Inbox {
    /// An empty one.
    ///
    /// # Errors
    /// No memory.
    pub fn new(framing: Framing) -> io::Result<Self> {
        Ok(Self { framing, buf: Buf::new(SPACE)?, start: 0, end: 0 })
    }

    /// Forgets everything, as for a new connection.
    pub fn reset(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    /// The length that stands next; none if it is not all here.
    fn length(&self) -> Option<u32> {
        let mut raw = [0; 4];
        let prefix = self.framing.prefix();
        if self.end - self.start < prefix {
            return None;
        }
        self.buf.seg(self.start, prefix).copy_out(&mut raw);
        Some(self.framing.decode(raw))
    }

    /// What stands next, without passing it.
    fn peek(&self) -> Next {
        let prefix = self.framing.prefix();
        match self.length() {
            None => Next::Partial,
            Some(0) => Next::Empty,
            Some(n) if n > self.framing.max_frame() => Next::Oversize,
            Some(n) if self.end - self.start < prefix + n => Next::Partial,
            Some(n) => Next::Frame { at: self.start, seg: self.buf.seg(self.start + prefix, n) },
        }
    }

    /// Something stands next that is no part of a frame.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !matches!(self.peek(), Next::Partial)
    }

    /// An empty frame or an impossible length stands next.
    #[must_use]
    pub fn is_odd(&self) -> bool {
        matches!(self.peek(), Next::Empty | Next::Oversize)
    }

    /// Gives what stands next and passes it.
    #[allow(clippy::should_implement_trait, reason = "it does not end: more may come in")]
    pub fn next(&mut self) -> Next {
        let next = self.peek();
        match next {
            Next::Frame { seg, .. } => self.start += self.framing.prefix() + seg.len(),
            Next::Empty => self.start += self.framing.prefix(),
            Next::Partial | Next::Oversize => {}
        }
        next
    }

    /// Goes back to a frame that was given since the last [`Inbox::space`].
    pub fn rewind(&mut self, at: u32) {
        self.start = self.start.min(at);
    }

    /// Where to put more bytes; at least one. `may_move`: no frame that was given is in use, so what is left over may
    /// be moved to the front. Otherwise possibly nothing. Of a message: room for the largest, or nothing.
    pub fn space(&mut self, may_move: bool) -> Seg {
        if may_move && self.start == self.end {
            self.reset();
        } else if may_move && self.start > 0 && self.end > self.buf.len() / 2 {
            self.buf.shift(self.start, 0, self.end - self.start);
            self.end -= self.start;
            self.start = 0;
        }
        if self.framing == Framing::Packets {
            let space = self.buf.seg(self.end + PREFIX, MAX_FRAME);
            return if space.len() < MAX_FRAME { Seg::EMPTY } else { space };
        }
        self.buf.seg(self.end, self.buf.len())
    }

    /// `n` bytes were put into the space.
    pub fn filled(&mut self, n: usize) {
        let most = self.buf.len() - self.end;
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        if self.framing != Framing::Packets {
            self.end += n.min(most);
            return;
        }
        let n = n.min(MAX_FRAME).min(most.saturating_sub(PREFIX));
        self.buf.seg(self.end, PREFIX).copy_in(&self.framing.encode(n));
        self.end += PREFIX + n;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(seg: Seg) -> Vec<u8> {
        let mut v = vec![0; seg.len() as usize];
        seg.copy_out(&mut v);
        v
    }

    const STREAMS: [Framing; 3] = [Framing::Qemu, Framing::Little16, Framing::Big16];

    fn wire(framing: Framing, frames: &[Vec<u8>]) -> Vec<u8> {
        let mut w = Vec::new();
        for f in frames {
            w.extend(&framing.encode(u32::try_from(f.len()).unwrap())[..framing.prefix() as usize]);
            w.extend(f);
        }
        w
    }

    /// Feeds `w` in pieces of the sizes given, over and over; collects the frames.
    fn feed(framing: Framing, w: &[u8], pieces: &[usize]) -> (Vec<Vec<u8>>, bool) {
        let mut inbox = Inbox::new(framing).unwrap();
        let (mut got, mut rest, mut pieces) = (Vec::new(), w, pieces.iter().cycle());
        loop {
            match inbox.next() {
                Next::Frame { seg, .. } => got.push(bytes(seg)),
                Next::Empty => got.push(vec![]),
                Next::Oversize => return (got, true),
                Next::Partial if rest.is_empty() => return (got, false),
                Next::Partial => {
                    let space = inbox.space(true);
                    assert!(!space.is_empty());
                    let n = (*pieces.next().unwrap()).clamp(1, rest.len());
                    let n = space.copy_in(&rest[..n]);
                    rest = &rest[n..];
                    inbox.filled(n);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn any_cutting_gives_the_same_frames(
            lens in prop::collection::vec(prop_oneof![0_usize..200, 1500..1600_usize, 69_000..=69_632_usize], 0..40),
            pieces in prop::collection::vec(prop_oneof![1_usize..20, 1000..5000_usize, Just(200_000)], 1..20),
        ) {
            let frames: Vec<Vec<u8>> =
                lens.iter().enumerate().map(|(i, n)| vec![u8::try_from(i).unwrap(); *n]).collect();
            for framing in STREAMS {
                let fit = |f: &&Vec<u8>| f.len() <= framing.max_frame() as usize;
                let frames: Vec<Vec<u8>> = frames.iter().filter(fit).cloned().collect();
                prop_assert_eq!(feed(framing, &wire(framing, &frames), &pieces), (frames, false));
            }
        }

        #[test]
        fn garbage_neither_panics_nor_escapes(w in prop::collection::vec(any::<u8>(), 0..4000), piece in 1_usize..500) {
            for framing in STREAMS {
                let (got, _) = feed(framing, &w, &[piece]);
                let prefix = framing.prefix() as usize;
                prop_assert!(got.iter().map(|f| f.len() + prefix).sum::<usize>() <= w.len());
            }
        }
    }

    #[test]
    fn the_limit_is_exact() {
        let framing = Framing::Qemu;
        let edge = vec![7; MAX_FRAME as usize];
        assert_eq!(
            feed(framing, &wire(framing, std::slice::from_ref(&edge)), &[1 << 20]),
            (vec![edge], false)
        );
        let beyond = wire(framing, &[vec![1; 14], vec![7; MAX_FRAME as usize + 1]]);
        assert_eq!(feed(framing, &beyond, &[1 << 20]), (vec![vec![1; 14]], true));
    }

    #[test]
    fn a_rewound_frame_comes_again() {
        let framing = Framing::Qemu;
        let mut inbox = Inbox::new(framing).unwrap();
        let w = wire(framing, &[vec![1; 20], vec![2; 30]]);
        let n = inbox.space(true).copy_in(&w);
        inbox.filled(n);
        let Next::Frame { at, .. } = inbox.next() else { panic!("no frame") };
        assert!(matches!(inbox.next(), Next::Frame { .. }));
        assert!(!inbox.is_ready());
        inbox.rewind(at);
        let Next::Frame { seg, .. } = inbox.next() else { panic!("no frame") };
        assert_eq!(bytes(seg), [1; 20]);
    }

    #[test]
    fn messages_are_kept_apart_and_there_is_room_for_the_largest_or_none() {
        let mut inbox = Inbox::new(Framing::Packets).unwrap();
        let lens = [1, 60, MAX_FRAME, 1514, 0, 30];
        let mut waiting = lens.to_vec();
        let mut got = Vec::new();
        while got.len() < lens.len() {
            let space = inbox.space(true);
            if !waiting.is_empty() && !space.is_empty() {
                assert_eq!(space.len(), MAX_FRAME);
                let n = waiting.remove(0);
                inbox.filled(space.copy_in(&vec![u8::try_from(n % 251).unwrap(); n as usize]));
                continue;
            }
            match inbox.next() {
                Next::Frame { seg, .. } => {
                    assert!(bytes(seg).iter().all(|b| u32::from(*b) == seg.len() % 251));
                    got.push(seg.len());
                }
                Next::Empty => got.push(0),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(got, lens);
    }
}
