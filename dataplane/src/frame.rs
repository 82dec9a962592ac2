//! What passes through a turn: frames in a batch, and the landing.
//!
//! A [`Frame`] is a virtio-net header, a **head** (the first bytes, copied once, the only bytes anybody judges) and a
//! **body** (the rest, never looked at, lying in someone's memory as [`Seg`]s). What is sent is *this* head and then
//! the body, so that a guest cannot rewrite a header between check and use.
//!
//! A batch is cleared at the start of every turn and its segments never outlive one, except where the giver owns
//! memory that stays (its pool): see [`crate::port::Traits::rewinds`].
#![forbid(unsafe_code)]

use netreeve_shared::vnet::Vnet;

pub use crate::landing::{Landing, Slot};
use crate::mem::Seg;
use crate::stats::Reason;

/// Most frames in a batch. 64 was best in the field's measurements; larger batches leave the first-level cache.
pub const BATCH: usize = 64;
/// Most bytes of a head: Ethernet, two VLAN tags, IPv6 with extensions, and TCP with options fit.
pub const HEAD: usize = 128;
/// Largest frame in bytes without its virtio-net header (QEMU's `NET_BUFSIZE`, 4096 + 65536).
pub const MAX_FRAME: u32 = 69632;
/// Largest frame of a guest or a tap: 64 KiB of IP behind an Ethernet header with one VLAN tag.
pub const MAX_SUPER: u32 = 65536 + 18;
/// Shortest frame in bytes: an Ethernet header.
pub const MIN_FRAME: u32 = 14;

/// A count that [`HEAD`] bounds, as a byte.
#[inline]
fn n8(n: usize) -> u8 {
    u8::try_from(n).unwrap_or(u8::MAX)
}

/// A count of segments or slots; the vectors are kept below 65535.
#[inline]
pub(crate) fn n16(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

/// Where a frame's body lies and who gets the memory back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Home {
    /// In the giver's memory (guest transmit buffers, UMEM, its own buffer), or wholly in the head.
    #[default]
    Giver,
    /// In the taker's landing: from this slot on, this many slots.
    Landed {
        /// First slot.
        slot: u16,
        /// Slots that the frame fills.
        slots: u16,
    },
}

/// One Ethernet frame on its way.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Which work is left on it.
    pub vnet: Vnet,
    /// Bytes, head and body.
    pub len: u32,
    /// The giver's own number for it (ring position, chunk address).
    pub cookie: u64,
    /// Whose memory the body is.
    pub home: Home,
    /// Not to be sent. It stays in the batch, because it counts as taken.
    pub dropped: bool,
    /// Why, if that is still to be counted: once it counts as taken, for a giver that rewinds gives it again until then.
    pub why: Option<Reason>,
    head_len: u8,
    body: (u16, u16),
    lead: Seg,
    head: [u8; HEAD],
}

impl Frame {
    const BLANK: Self = Self {
        vnet: Vnet { flags: 0, gso_type: 0, hdr_len: 0, gso_size: 0, csum_start: 0, csum_offset: 0 },
        len: 0,
        cookie: 0,
        home: Home::Giver,
        dropped: false,
        why: None,
        head_len: 0,
        body: (0, 0),
        lead: Seg::EMPTY,
        head: [0; HEAD],
    };

    /// The bytes that may be judged, and that will be sent.
    #[must_use]
    #[inline]
    pub fn head(&self) -> &[u8] {
        self.head.get(..usize::from(self.head_len)).unwrap_or_default()
    }

    /// The head, to be changed (checksum completion, segmentation).
    #[inline]
    pub fn head_mut(&mut self) -> &mut [u8] {
        self.head.get_mut(..usize::from(self.head_len)).unwrap_or_default()
    }

    /// Sets the head to a copy of `bytes`, at most [`HEAD`] of them.
    #[inline]
    pub fn set_head(&mut self, bytes: &[u8]) {
        let n = bytes.len().min(HEAD);
        if let (Some(to), Some(from)) = (self.head.get_mut(..n), bytes.get(..n)) {
            to.copy_from_slice(from);
            self.head_len = n8(n);
        }
    }

    /// The run of memory in which the frame begins: its head was copied from there, and what the head does not hold of it
    /// is the body's first segment. Only of givers whose frames may be joined ([`crate::port::Traits::joinable`]).
    #[must_use]
    #[inline]
    pub fn lead(&self) -> Seg {
        self.lead
    }

    /// Says where the frame begins.
    #[inline]
    pub fn set_lead(&mut self, seg: Seg) {
        self.lead = seg;
    }

    /// Copies the head out of `seg`, at most [`HEAD`] bytes; says how many.
    #[inline]
    pub fn head_from(&mut self, seg: &Seg) -> u32 {
        let n = seg.copy_out(&mut self.head);
        self.head_len = n8(n);
        u32::from(n8(n))
    }

    /// Appends to the head from `seg`, up to [`HEAD`] bytes in all; says how many were added. A guest may scatter
    /// its headers over several small buffers.
    #[inline]
    pub fn head_append(&mut self, seg: &Seg) -> u32 {
        let room = self.head.get_mut(usize::from(self.head_len)..).unwrap_or_default();
        let n = seg.copy_out(room);
        self.head_len += n8(n);
        u32::from(n8(n))
    }
}

/// Up to [`BATCH`] frames and the segments of their bodies. Allocated once for a lane, never in a turn.
#[derive(Debug)]
pub struct Batch {
    frames: Vec<Frame>,
    n: usize,
    first: usize,
    segs: Vec<Seg>,
    /// Memory that the taker lent for this turn.
    pub landing: Landing,
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self {
            frames: vec![Frame::BLANK; BATCH],
            n: 0,
            first: 0,
            segs: Vec::with_capacity(1024),
            landing: Landing::new(),
        }
    }

    /// Forgets frames, segments and landing.
    #[inline]
    pub fn clear(&mut self) {
        self.n = 0;
        self.first = 0;
        self.segs.clear();
        self.landing.clear();
    }

    /// Frames that may still be pushed.
    #[must_use]
    #[inline]
    pub fn room(&self) -> usize {
        BATCH - self.n
    }

    /// Frames that wait to be sent.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.n - self.first
    }

    /// No frame waits.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.n == self.first
    }

    /// Adds a blank frame and gives it to be filled; none if the batch is full. Its body is what is appended with
    /// [`Batch::push_seg`] afterwards.
    #[inline]
    pub fn push(&mut self) -> Option<&mut Frame> {
        let at = n16(self.segs.len());
        let f = self.frames.get_mut(self.n)?;
        self.n += 1;
        f.vnet = Vnet::default();
        f.len = 0;
        f.cookie = 0;
        f.home = Home::Giver;
        f.dropped = false;
        f.why = None;
        f.head_len = 0;
        f.body = (at, at);
        f.lead = Seg::EMPTY;
        Some(f)
    }

    /// Adds a segment to the body of the frame pushed last. Empty segments are left out.
    #[inline]
    pub fn push_seg(&mut self, seg: Seg) {
        if seg.is_empty() || self.segs.len() >= usize::from(u16::MAX) {
            return;
        }
        self.segs.push(seg);
        let end = n16(self.segs.len());
        if let Some(f) = self.n.checked_sub(1).and_then(|i| self.frames.get_mut(i)) {
            f.body.1 = end;
        }
    }

    /// The frame pushed last.
    #[inline]
    pub fn last_mut(&mut self) -> Option<&mut Frame> {
        self.n.checked_sub(1).and_then(|i| self.frames.get_mut(i))
    }

    /// The place in [`Batch::frames`] of the frame pushed last.
    #[must_use]
    #[inline]
    pub fn last_index(&self) -> Option<usize> {
        self.n.checked_sub(self.first + 1)
    }

    /// Takes the frame pushed last back, with its segments.
    pub fn pop(&mut self) {
        if let Some(i) = self.n.checked_sub(1).filter(|&i| i >= self.first) {
            let from = self.frames.get(i).map_or(0, |f| f.body.0);
            self.segs.truncate(usize::from(from));
            self.n = i;
        }
    }

    /// The frames that wait, in order.
    #[inline]
    pub fn frames(&self) -> &[Frame] {
        self.frames.get(self.first..self.n).unwrap_or_default()
    }

    /// The frames that wait, to be judged.
    #[inline]
    pub fn frames_mut(&mut self) -> &mut [Frame] {
        self.frames.get_mut(self.first..self.n).unwrap_or_default()
    }

    /// The body of one of this batch's frames.
    #[must_use]
    #[inline]
    pub fn body(&self, f: &Frame) -> &[Seg] {
        self.segs.get(usize::from(f.body.0)..usize::from(f.body.1)).unwrap_or_default()
    }

    /// The first `taken` frames went on: only the rest waits.
    #[inline]
    pub fn advance(&mut self, taken: usize) {
        self.first = (self.first + taken).min(self.n);
    }
}
