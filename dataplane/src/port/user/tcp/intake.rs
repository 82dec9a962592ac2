//! What the guest sent in this turn, by flow: nothing is copied but what lies in heads, and one call passes all of a flow.
//!
//! Trust: none needed. Promise: what is added is used in the same turn, before its memory goes back to the guest.
#![forbid(unsafe_code)]

use std::io;

use super::super::packet::{Packet, Part};
use super::super::poll::Token;
use crate::mem::{Buf, Seg};

/// Bytes of payload in heads: of two batches at least.
const CRUMBS: u32 = 16 << 10;

/// Bytes of one segment of a guest's.
#[derive(Clone, Copy, Debug)]
struct Piece {
    segs: (usize, usize),
    next: Option<u32>,
}

/// The turn's pieces.
#[derive(Debug)]
pub(super) struct Intake {
    pieces: Vec<Piece>,
    segs: Vec<Seg>,
    crumbs: Buf,
    used: u32,
    /// Flows that the turn touched.
    pub(super) touched: Vec<Token>,
}

impl Intake {
    pub(super) fn new() -> io::Result<Self> {
        let crumbs = Buf::new(CRUMBS)?;
        Ok(Self { pieces: Vec::new(), segs: Vec::new(), crumbs, used: 0, touched: Vec::new() })
    }

    /// There may be no room for another.
    pub(super) fn is_full(&self) -> bool {
        self.used + 256 > CRUMBS
    }

    /// Adds `len` of a packet's transport bytes from `at` on to a flow's pieces.
    pub(super) fn add(&mut self, pieces: &mut Option<(u32, u32)>, p: &Packet<'_>, at: u32, len: u32) {
        let Some(ip) = &p.ip else { return };
        let from = self.segs.len();
        let mut left = len;
        p.parts(ip, at, |part| {
            let s = match part {
                Part::Body(s) => s,
                Part::Head(b) => {
                    let n = u32::try_from(b.len()).unwrap_or(u32::MAX);
                    let to = self.crumbs.seg(self.used, n);
                    to.copy_in(b);
                    self.used += to.len();
                    to
                }
            };
            let s = s.take(left);
            left -= s.len();
            self.segs.push(s);
            left > 0
        });
        let Ok(this) = u32::try_from(self.pieces.len()) else { return };
        self.pieces.push(Piece { segs: (from, self.segs.len()), next: None });
        match pieces {
            None => *pieces = Some((this, this)),
            Some((_, last)) => {
                let before = usize::try_from(*last).ok().and_then(|i| self.pieces.get_mut(i));
                if let Some(before) = before {
                    before.next = Some(this);
                }
                *last = this;
            }
        }
    }

    /// A flow's pieces, in order, appended to `out`.
    pub(super) fn gather(&self, pieces: Option<(u32, u32)>, out: &mut Vec<Seg>) {
        let mut at = pieces.map(|(first, _)| first);
        while let Some(piece) = at.and_then(|i| self.pieces.get(usize::try_from(i).ok()?)) {
            out.extend_from_slice(self.segs.get(piece.segs.0..piece.segs.1).unwrap_or_default());
            at = piece.next;
        }
    }

    /// The turn is over.
    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.segs.clear();
        self.touched.clear();
        self.used = 0;
    }
}
