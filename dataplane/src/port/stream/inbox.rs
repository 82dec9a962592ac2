//! What came in over a stream, and the frames in it.
//!
//! Wire format (QEMU, `-netdev stream` and `socket`): a 32-bit big-endian length, then a frame of that many bytes;
//! lengths 1 to [`MAX_FRAME`]. Length 0 says nothing and is passed over; a greater length means that the peer is
//! broken or that we are out of step: nothing after it can be believed.
//!
//! Trust: none in the peer. Promise: the bytes of a frame lie in our own memory, whole, before it is seen; any cutting
//! of the stream into pieces gives the same frames.
#![forbid(unsafe_code)]

use std::io;

use crate::frame::MAX_FRAME;
use crate::mem::{Buf, Seg};

/// Bytes of the length before each frame.
pub const PREFIX: u32 = 4;
/// Bytes kept: two of the largest frames and a bit, or a batch of ordinary ones. Small, so that it stays in cache.
const SPACE: u32 = 144 * 1024;

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
    buf: Buf,
    start: u32,
    end: u32,
}

impl Inbox {
    /// An empty one.
    ///
    /// # Errors
    /// No memory.
    pub fn new() -> io::Result<Self> {
        Ok(Self { buf: Buf::new(SPACE)?, start: 0, end: 0 })
    }

    /// Forgets everything, as for a new connection.
    pub fn reset(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    /// The length that stands next; none if it is not all here.
    fn length(&self) -> Option<u32> {
        let mut raw = [0; 4];
        if self.end - self.start < PREFIX {
            return None;
        }
        self.buf.seg(self.start, PREFIX).copy_out(&mut raw);
        Some(u32::from_be_bytes(raw))
    }

    /// What stands next, without passing it.
    fn peek(&self) -> Next {
        match self.length() {
            None => Next::Partial,
            Some(0) => Next::Empty,
            Some(n) if n > MAX_FRAME => Next::Oversize,
            Some(n) if self.end - self.start < PREFIX + n => Next::Partial,
            Some(n) => Next::Frame { at: self.start, seg: self.buf.seg(self.start + PREFIX, n) },
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
            Next::Frame { seg, .. } => self.start += PREFIX + seg.len(),
            Next::Empty => self.start += PREFIX,
            Next::Partial | Next::Oversize => {}
        }
        next
    }

    /// Goes back to a frame that was given since the last [`Inbox::space`].
    pub fn rewind(&mut self, at: u32) {
        self.start = self.start.min(at);
    }

    /// Where to put more bytes; at least one. `may_move`: no frame that was given is in use, so what is left over may
    /// be moved to the front. Otherwise possibly nothing.
    pub fn space(&mut self, may_move: bool) -> Seg {
        if may_move && self.start == self.end {
            self.reset();
        } else if may_move && self.start > 0 && self.end > self.buf.len() / 2 {
            self.buf.shift(self.start, 0, self.end - self.start);
            self.end -= self.start;
            self.start = 0;
        }
        self.buf.seg(self.end, self.buf.len())
    }

    /// `n` bytes were put into the space.
    pub fn filled(&mut self, n: usize) {
        let n = u32::try_from(n).unwrap_or(u32::MAX).min(self.buf.len() - self.end);
        self.end += n;
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

    fn wire(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut w = Vec::new();
        for f in frames {
            w.extend(u32::try_from(f.len()).unwrap().to_be_bytes());
            w.extend(f);
        }
        w
    }

    /// Feeds `w` in pieces of the sizes given, over and over; collects the frames.
    fn feed(w: &[u8], pieces: &[usize]) -> (Vec<Vec<u8>>, bool) {
        let mut inbox = Inbox::new().unwrap();
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
            prop_assert_eq!(feed(&wire(&frames), &pieces), (frames, false));
        }

        #[test]
        fn garbage_neither_panics_nor_escapes(w in prop::collection::vec(any::<u8>(), 0..4000), piece in 1_usize..500) {
            let (got, _) = feed(&w, &[piece]);
            prop_assert!(got.iter().map(|f| f.len() + 4).sum::<usize>() <= w.len());
        }
    }

    #[test]
    fn the_limit_is_exact() {
        let edge = vec![7; MAX_FRAME as usize];
        assert_eq!(feed(&wire(std::slice::from_ref(&edge)), &[1 << 20]), (vec![edge], false));
        let beyond = wire(&[vec![1; 14], vec![7; MAX_FRAME as usize + 1]]);
        assert_eq!(feed(&beyond, &[1 << 20]), (vec![vec![1; 14]], true));
    }

    #[test]
    fn a_rewound_frame_comes_again() {
        let mut inbox = Inbox::new().unwrap();
        let w = wire(&[vec![1; 20], vec![2; 30]]);
        let n = inbox.space(true).copy_in(&w);
        inbox.filled(n);
        let Next::Frame { at, .. } = inbox.next() else { panic!("no frame") };
        assert!(matches!(inbox.next(), Next::Frame { .. }));
        assert!(!inbox.is_ready());
        inbox.rewind(at);
        let Next::Frame { seg, .. } = inbox.next() else { panic!("no frame") };
        assert_eq!(bytes(seg), [1; 20]);
    }
}
