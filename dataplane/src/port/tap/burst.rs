//! Many frames of a tap with one system call, through a ring of reads and writes ([`crate::mem::uring`]).
//!
//! Writing: a batch's frames become a list of writes, all done when the list is. Reading: each read needs room for the
//! largest frame there is, which the taker rarely has many times over, so frames are read into memory of our own and
//! copied from there as any giver's are. That copy is worth less than a system call as long as frames are short, so it is
//! done only while they come short and many at a time; else each is read straight to where it goes.
//!
//! Promise: what is read is given in the order in which it came, and lies in one batch's slots until that batch is gone.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;

use netreeve_shared::vnet;

use crate::frame::{BATCH, MAX_SUPER};
use crate::mem::uring::{CALLS, Uring};
use crate::mem::{Buf, Seg};

/// Bytes of a slot: the largest frame, its header, and one more by which a longer one is known. Not a multiple of a page
/// alone, so that the first bytes of slots lie in different places of the first-level cache.
const SLOT: u32 = 68 * 1024 + 128;
/// So many frames at once are worth a list.
pub(super) const WORTH: usize = 4;
/// Frames up to this length are short: copying one takes less time than a system call.
const SHORT: u32 = 2048;

const _: () = assert!(SLOT as usize > MAX_SUPER as usize + vnet::LEN && CALLS >= BATCH);

/// The ring, the slots, and what is expected to come.
pub(super) struct Burst {
    pub(super) ring: Uring,
    slots: Buf,
    /// Frames that the next turn may find; too few: they are read one by one.
    expect: usize,
    /// A list failed as a whole: the ring is of no use any more.
    pub(super) failed: bool,
}

impl Burst {
    /// None where there is no io_uring, or it is forbidden, or the tap is older than calls that do not wait on it: then
    /// every frame has its system call.
    pub(super) fn open(fd: BorrowedFd<'_>) -> Option<Box<Self>> {
        let ring = Uring::new(fd).ok()?;
        let slots = Buf::reserve(SLOT * u32::try_from(BATCH).ok()?).ok()?;
        Some(Box::new(Self { ring, slots, expect: 0, failed: false }))
    }

    /// The next frames are to be read with a list.
    pub(super) fn is_on(&self) -> bool {
        self.expect >= WORTH
    }

    /// A turn read `n` frames, the longest of `longest` bytes.
    pub(super) fn learn(&mut self, n: usize, longest: u32) {
        self.expect = if longest > SHORT || n < WORTH { 0 } else { (n + n / 2).min(BATCH) };
    }

    /// Reads as many frames as are expected, `most` at most, into the slots from the first on. The results are bytes or
    /// negative errors.
    pub(super) fn read(&mut self, most: usize) -> io::Result<&[i32]> {
        let mut calls = self.ring.calls();
        for i in 0..self.expect.min(most) {
            calls.read(&slot(&self.slots, i));
        }
        calls.run()
    }

    /// What a read put into a slot.
    pub(super) fn slot(&self, i: usize) -> Seg {
        slot(&self.slots, i)
    }
}

fn slot(slots: &Buf, i: usize) -> Seg {
    u32::try_from(i).ok().map_or(Seg::EMPTY, |i| slots.seg(i * SLOT, SLOT))
}

/// Where a list of writes stands: what a result means for the frames.
pub(super) enum Fate {
    /// It is written.
    Sent,
    /// Not now, nor any after it: it stays with its giver.
    Wait,
    /// Not now, but others after it are written: it cannot come before them any more.
    Late,
    /// Not at all.
    Refused(io::Error),
}

/// What became of the `i`th call of a list.
pub(super) fn fate(results: &[i32], i: usize) -> Fate {
    let waits = |r: i32| [-libc::EAGAIN, -libc::EINTR, -libc::ECANCELED].contains(&r);
    match results.get(i).copied().unwrap_or(-libc::ECANCELED) {
        r if r >= 0 => Fate::Sent,
        r if waits(r) && results.iter().skip(i).all(|r| waits(*r)) => Fate::Wait,
        r if waits(r) => Fate::Late,
        r => Fate::Refused(io::Error::from_raw_os_error(r.saturating_neg())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_stays_in_order_or_is_lost() {
        let all = [70, -libc::EAGAIN, 70, -libc::EINVAL, -libc::EAGAIN, -libc::EAGAIN];
        let fates: Vec<_> = (0..7).map(|i| fate(&all, i)).collect();
        assert!(matches!(
            fates[..],
            [Fate::Sent, Fate::Late, Fate::Sent, Fate::Refused(_), Fate::Wait, Fate::Wait, Fate::Wait]
        ));
    }
}
