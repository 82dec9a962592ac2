//! Where frames for the guest are put: the taker's landing or the lane's pool, whichever is lent.
//!
//! A frame in bulk is made in place: [`Bay::open`] finds room for headers and payload, the kernel receives into
//! [`Bay::payload`], and [`Bay::close`] puts the headers before it. Nothing is copied but by the kernel.
//!
//! Trust: none needed; the memory may be a guest's, so nothing is read back from it. Promise: a frame that does not fit is
//! not begun, and the landing is told that its giver waits.
#![forbid(unsafe_code)]

use netreeve_shared::vnet::Vnet;

use crate::frame::{Batch, HEAD};
use crate::mem::Seg;
use crate::stats::Stats;
use crate::sys::io::MAX_PARTS;

/// Room for one frame at a time.
#[derive(Debug, Default)]
pub struct Bay {
    room: Vec<Seg>,
    payload: Vec<Seg>,
}

fn small(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Bay {
    /// Finds room for a frame of `header` bytes of headers and up to `most` bytes of payload; says how many bytes of
    /// payload fit. None: not even `least` do, now.
    pub fn open(&mut self, b: &mut Batch, header: u32, least: u32, most: u32) -> Option<u32> {
        self.room.clear();
        self.payload.clear();
        if b.room() == 0 || !b.landing.is_open() {
            return None;
        }
        let mut room = b.landing.room(header.saturating_add(most), &mut self.room);
        if self.room.len() > MAX_PARTS {
            self.room.truncate(MAX_PARTS);
            room = self.room.iter().map(Seg::len).sum();
        }
        if room < header.saturating_add(least) {
            b.landing.stop();
            return None;
        }
        let mut skip = header;
        for seg in &self.room {
            let cut = skip.min(seg.len());
            skip -= cut;
            let part = seg.skip(cut);
            if !part.is_empty() {
                self.payload.push(part);
            }
        }
        Some(room - header)
    }

    /// The room for the payload, as it was opened.
    #[must_use]
    pub fn payload(&self) -> &[Seg] {
        &self.payload
    }

    /// `payload` bytes lie in the room: makes them a frame with these headers (at most [`HEAD`] bytes, as many as were
    /// said to [`Bay::open`]).
    pub fn close(&mut self, b: &mut Batch, stats: &mut Stats, vnet: Vnet, header: &[u8], payload: u32) {
        let len = small(header.len()).saturating_add(payload);
        let home = b.landing.land(len);
        let Some(f) = b.push() else { return };
        f.vnet = vnet;
        f.len = len;
        f.home = home;
        f.set_head(header);
        let mut left = payload;
        for seg in &self.payload {
            let part = seg.take(left);
            left -= part.len();
            b.push_seg(part);
        }
        stats.rx_frames += 1;
        stats.rx_bytes += u64::from(len);
    }

    /// Puts a whole frame. False: it does not fit now.
    pub fn place(&mut self, b: &mut Batch, stats: &mut Stats, vnet: Vnet, frame: &[u8]) -> bool {
        let (head, rest) = frame.split_at(frame.len().min(HEAD));
        let n = small(rest.len());
        if self.open(b, small(head.len()), n, n).is_none() {
            return false;
        }
        let mut from = rest;
        for seg in &self.payload {
            let done = seg.copy_in(from);
            from = from.get(done..).unwrap_or_default();
        }
        self.close(b, stats, vnet, head, n);
        true
    }
}
