//! What came in over a stream, and the frames in it.
//!
//! A length as the [`Framing`] has it, then a frame of that many bytes. Length 0 says nothing and is passed over; a
//! length above the framing's largest (or a header that can be none) means that the peer is broken or that we are out of
//! step: nothing after it can be believed. A message, which has no length on the wire, is given one here, so that all framings are the same from then
//! on.
//!
//! Trust: none in the peer. Promise: the bytes of a frame lie in our own memory, whole, before it is seen; any cutting
//! of the stream into pieces gives the same frames.
#![forbid(unsafe_code)]

use std::io;

use netreeve_shared::vnet::Vnet;

use crate::frame::MAX_FRAME;
use crate::mem::{Buf, Seg};
use crate::port::stream::framing::{Framing, LEAST_HEADER, MOST_HEADER, PREFIX};

/// Bytes kept: two of the largest frames and a bit, or a batch of ordinary ones. Small, so that it stays in cache.
const SPACE: u32 = 144 * 1024;

// What is moved to the front when half is full leaves room for the largest message.
const _: () = assert!(SPACE / 2 >= PREFIX + MAX_FRAME);

/// Bytes of the length that a message is given here.
const LENGTH: u32 = 4;

/// What stands next in the stream.
#[derive(Clone, Copy, Debug)]
pub enum Next {
    /// A whole frame.
    Frame {
        /// Where it begins in the inbox, its length included: to [`Inbox::rewind`] to.
        at: u32,
        /// Its bytes.
        seg: Seg,
        /// Where it ends in the inbox.
        end: u32,
    },
    /// An empty frame, to be passed over.
    Empty {
        /// Where it ends in the inbox.
        end: u32,
    },
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

    /// Bytes before the frame that stands next, and its own; none: that is not all here, or (the second) cannot be.
    #[inline]
    fn lengths(&self) -> Option<(u32, Option<u32>)> {
        let here = self.buf.seg(self.start, self.end - self.start);
        Some(match self.framing {
            Framing::Qemu | Framing::Packets => (4, Some(u32::from_be_bytes(here.first()?))),
            Framing::Little16 => (2, Some(u16::from_le_bytes(here.first()?).into())),
            Framing::Big16 => (2, Some(u16::from_be_bytes(here.first()?).into())),
            Framing::Vnet => {
                let [a, b, c, d, w, x, y, z] = here.first()?;
                let (len, header) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([w, x, y, z]));
                let fits = header == 0 || (LEAST_HEADER..=MOST_HEADER).contains(&header);
                (8 + header.min(MOST_HEADER), len.checked_sub(header).filter(|_| fits))
            }
        })
    }

    /// What stands next, without passing it.
    #[inline]
    pub fn peek(&self) -> Next {
        let Some((before, len)) = self.lengths() else { return Next::Partial };
        let Some(len) = len.filter(|n| *n <= self.framing.max_frame()) else { return Next::Oversize };
        let end = self.start + before + len;
        if end > self.end {
            Next::Partial
        } else if len == 0 {
            Next::Empty { end }
        } else {
            Next::Frame { at: self.start, seg: self.buf.seg(self.start + before, len), end }
        }
    }

    /// Passes what [`Inbox::peek`] said ends there.
    #[inline]
    pub fn pass(&mut self, end: u32) {
        self.start = end.min(self.end);
    }

    /// The virtio-net header before the frame at `at`, of [`Framing::Vnet`]; a header of no bytes says nothing.
    #[must_use]
    pub fn header(&self, at: u32) -> Vnet {
        let here = self.buf.seg(at, self.end.saturating_sub(at));
        let len = here.skip(4).first().map_or(0, u32::from_be_bytes);
        let mut raw = [0; netreeve_shared::vnet::LEN];
        here.skip(8).take(len).copy_out(&mut raw);
        Vnet::from_le(&raw)
    }

    /// Something stands next that is no part of a frame.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !matches!(self.peek(), Next::Partial)
    }

    /// An empty frame or an impossible length stands next.
    #[must_use]
    pub fn is_odd(&self) -> bool {
        matches!(self.peek(), Next::Empty { .. } | Next::Oversize)
    }

    /// Gives what stands next and passes it.
    #[allow(clippy::should_implement_trait, reason = "it does not end: more may come in")]
    pub fn next(&mut self) -> Next {
        let next = self.peek();
        if let Next::Frame { end, .. } | Next::Empty { end } = next {
            self.pass(end);
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
            let space = self.buf.seg(self.end + LENGTH, MAX_FRAME);
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
        let n = n.min(MAX_FRAME).min(most.saturating_sub(LENGTH));
        self.buf.seg(self.end, LENGTH).copy_in(&n.to_be_bytes());
        self.end += LENGTH + n;
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

    const STREAMS: [Framing; 4] = [Framing::Qemu, Framing::Little16, Framing::Big16, Framing::Vnet];

    fn wire(framing: Framing, frames: &[Vec<u8>]) -> Vec<u8> {
        let mut w = Vec::new();
        for (i, f) in frames.iter().enumerate() {
            let n = f.len() as u32;
            match framing {
                Framing::Qemu | Framing::Packets => w.extend(n.to_be_bytes()),
                Framing::Little16 => w.extend((n as u16).to_le_bytes()),
                Framing::Big16 => w.extend((n as u16).to_be_bytes()),
                Framing::Vnet => {
                    // Those of taps, of virtio 1.0, with a hash, and none.
                    let header = [10, 12, 20, 0][i % 4];
                    w.extend((n + header).to_be_bytes());
                    w.extend(header.to_be_bytes());
                    w.extend((0..header as u8).map(|b| b ^ 0x40));
                }
            }
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
                Next::Empty { .. } => got.push(vec![]),
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
                prop_assert!(got.iter().map(|f| f.len() + 2).sum::<usize>() <= w.len());
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
    fn a_header_comes_with_its_frame_and_one_that_cannot_be_ends_all() {
        let feed_all = |w: &[u8]| {
            let mut inbox = Inbox::new(Framing::Vnet).unwrap();
            let n = inbox.space(true).copy_in(w);
            inbox.filled(n);
            inbox
        };
        let mut w = [14_u32 + 10, 10].into_iter().flat_map(u32::to_be_bytes).collect::<Vec<_>>();
        w.extend([1, 0, 0, 0, 0, 0, 34, 0, 6, 0]);
        w.extend([7; 14]);
        w.extend([14_u32, 0].into_iter().flat_map(u32::to_be_bytes));
        w.extend([8; 14]);
        let mut inbox = feed_all(&w);
        let Next::Frame { at, seg, .. } = inbox.next() else { panic!("no frame") };
        assert_eq!(bytes(seg), [7; 14]);
        assert_eq!(inbox.header(at), Vnet { flags: 1, csum_start: 34, csum_offset: 6, ..Vnet::default() });
        let Next::Frame { at, seg, .. } = inbox.next() else { panic!("no frame") };
        assert_eq!((bytes(seg), inbox.header(at)), (vec![8; 14], Vnet::default()));
        for (len, header) in [(5, 10), (100, 9), (100, 65), (u32::MAX, 12), (MAX_FRAME + 13, 12)] {
            let w: Vec<u8> = [len, header].into_iter().flat_map(u32::to_be_bytes).chain([0; 200]).collect();
            assert!(matches!(feed_all(&w).next(), Next::Oversize), "{len} {header}");
        }
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
                Next::Empty { .. } => got.push(0),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(got, lens);
    }
}
