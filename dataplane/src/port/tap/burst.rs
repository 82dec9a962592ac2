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

use netreeve_shared::vnet::{self, Vnet};

use crate::frame::{BATCH, Batch, Home, MAX_SUPER};
use crate::mem::uring::{CALLS, Uring};
use crate::mem::{Buf, Seg};
use crate::port::tap::{Tap, is_gone};
use crate::sandbox;
use crate::stats::Reason;
use crate::sys::tun;

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
    ring: Uring,
    slots: Buf,
    /// Frames that the next turn may find; too few: they are read one by one.
    expect: usize,
    /// Frames are written with a list. Not where the tap bounds what is on its way, as somebody has set it to: what has to
    /// wait in the middle of a list is passed by what comes after it.
    pub(super) writes: bool,
    /// A list failed as a whole: the ring is of no use any more.
    pub(super) failed: bool,
}

impl Burst {
    /// None where there is no io_uring, or it is forbidden, or the tap is older than calls that do not wait on it, or the
    /// process is locked in already: then every frame has its system call.
    pub(super) fn open(fd: BorrowedFd<'_>) -> Option<Box<Self>> {
        if sandbox::is_sealed() {
            return None;
        }
        let ring = Uring::new(fd).ok()?;
        let slots = Buf::reserve(SLOT * u32::try_from(BATCH).ok()?).ok()?;
        let writes = tun::send_buffer(fd).is_ok_and(|n| n == i32::MAX);
        Some(Box::new(Self { ring, slots, expect: 0, writes, failed: false }))
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
    fn read(&mut self, most: usize) -> io::Result<&[i32]> {
        let mut calls = self.ring.calls();
        for i in 0..self.expect.min(most) {
            calls.read(&slot(&self.slots, i));
        }
        calls.run()
    }

    /// What a read put into a slot.
    fn slot(&self, i: usize) -> Seg {
        slot(&self.slots, i)
    }
}

fn slot(slots: &Buf, i: usize) -> Seg {
    u32::try_from(i).ok().map_or(Seg::EMPTY, |i| slots.seg(i * SLOT, SLOT))
}

/// Where a list of writes stands: what a result means for the frames.
enum Fate {
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
fn fate(results: &[i32], i: usize) -> Fate {
    let waits = |r: i32| [-libc::EAGAIN, -libc::EINTR, -libc::ECANCELED].contains(&r);
    match results.get(i).copied().unwrap_or(-libc::ECANCELED) {
        r if r >= 0 => Fate::Sent,
        r if waits(r) && results.iter().skip(i).all(|r| waits(*r)) => Fate::Wait,
        r if waits(r) => Fate::Late,
        r => Fate::Refused(io::Error::from_raw_os_error(r.saturating_neg())),
    }
}

impl Tap {
    /// Reads frames into our own slots. The ring may turn out to be of no use.
    pub(super) fn read_burst(&mut self, b: &mut Batch) -> io::Result<()> {
        let Some(mut burst) = self.burst.take() else { return Ok(()) };
        let mut results = [-libc::ECANCELED; CALLS];
        match burst.read(b.room()) {
            Ok(all) => results.iter_mut().zip(all).for_each(|(to, r)| *to = *r),
            Err(_) => return Ok(()),
        }
        let (mut n, mut longest) = (0, 0);
        for (i, r) in results.iter().enumerate() {
            match u32::try_from(*r) {
                Ok(got) => {
                    (n, longest) = (n + 1, got.max(longest));
                    self.take_in(b, &burst.slot(i).take(got), got);
                }
                Err(_) => {
                    let e = io::Error::from_raw_os_error(r.saturating_neg());
                    if is_gone(&e) {
                        return Err(e);
                    }
                }
            }
        }
        burst.learn(n, longest);
        self.burst = Some(burst);
        Ok(())
    }

    /// A read of `got` bytes put a header and a frame into `slot`: makes it a frame, which stays there.
    fn take_in(&mut self, b: &mut Batch, slot: &Seg, got: u32) {
        let header = u32::from(self.header);
        let mut raw = [0; vnet::LEN];
        slot.take(header).copy_out(&mut raw);
        let (vnet, frame) = (Vnet::from_le(&raw), slot.skip(header));
        let len = frame.len();
        let why = if len == 0 {
            Some(Reason::Runt)
        } else if got - header > self.largest().0 {
            Some(Reason::Oversize)
        } else {
            vnet.check(len).is_err().then_some(Reason::BadHeader)
        };
        if let Some(why) = why {
            self.stats.drop(why);
            return;
        }
        let Some(f) = b.push() else { return };
        f.vnet = vnet;
        f.len = len;
        f.home = Home::Giver;
        let n = f.head_from(&frame);
        b.push_seg(frame.skip(n));
        self.stats.rx_frames += 1;
        self.stats.rx_bytes += u64::from(len);
    }

    /// Writes frames with as few system calls as it takes; says how many were taken.
    pub(super) fn write_burst(&mut self, b: &Batch, burst: &mut Burst) -> io::Result<usize> {
        let mut next = 0;
        while next < b.frames().len() {
            let first = next;
            // Which frame each call of the list is for.
            let mut which = [0; CALLS];
            let mut calls = burst.ring.calls();
            for (i, f) in b.frames().iter().enumerate().skip(next) {
                let header = self.header_of(f);
                let header = header.get(..usize::from(self.header)).unwrap_or_default();
                if !f.dropped {
                    let at = calls.len();
                    if !calls.write(header, f.head(), b.body(f)) {
                        break;
                    }
                    if let Some(w) = which.get_mut(at) {
                        *w = i;
                    }
                }
                next = i + 1;
            }
            if calls.len() == 0 {
                // A frame in more pieces than a list holds.
                let Some(f) = b.frames().get(next) else { break };
                if !self.write_alone(f, b.body(f))? {
                    return Ok(next);
                }
                next += 1;
                continue;
            }
            let Ok(results) = calls.run() else {
                // Nothing is known of this list, so its frames come again, one by one.
                burst.failed = true;
                return Ok(first);
            };
            for (i, at) in which.into_iter().enumerate().take(results.len()) {
                match (fate(results, i), b.frames().get(at)) {
                    (Fate::Sent, Some(f)) => self.sent(f),
                    (Fate::Wait, _) => return Ok(at),
                    (Fate::Late, _) => self.stats.drop(Reason::Full),
                    (Fate::Refused(e), _) if is_gone(&e) => return Err(e),
                    _ => self.stats.drop(Reason::Refused),
                }
            }
        }
        Ok(b.frames().len())
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
