//! Sending frames as datagrams.
//!
//! Frames of one length that follow each other go to the kernel as one message, which it cuts into datagrams itself
//! (UDP's segmentation): the stack is passed once for all of them. What is on the link is the same.
//!
//! Promise: nothing here names an address; frames go in order, one datagram each; a frame that the network does not
//! take is counted by its reason and the next one goes.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;

use crate::frame::{BATCH, Batch, Frame};
use crate::port::dgram::l2tp::{Counter, Head, Session};
use crate::port::dgram::{Plan, is_wait};
use crate::stats::{Reason, Stats};
use crate::sys::mmsg::{Cutting, Outgoing};

/// Most bytes of datagrams that go as one message: less than an IPv4 packet holds.
const MOST: u32 = 65_000;

/// What is sent before each frame, and what was learned of the way.
#[derive(Debug)]
pub(super) struct Outbox {
    l2tp: Option<Session>,
    /// Frames sent, for the counter.
    count: u32,
    /// Datagrams shorter than this may be cut by the kernel; 0: none.
    cut_below: u32,
    /// What the socket cuts to now.
    cutting: Cutting,
    /// What the kernel is short of is waited for.
    waits: bool,
    /// How often it was, one time after the other.
    short: u32,
}

/// So often in a row, what the kernel is short of is asked for again. It does not say when it has it, and calls the socket
/// writable meanwhile: to wait for ever would be to ask without end.
const SHORT: u32 = 32;

/// The frames of a message that goes next: up to which frame of the batch.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    end: usize,
    segment: u32,
}

/// What is to become of frames after an error.
enum Verdict {
    /// The kernel takes none for now.
    Wait,
    /// Again, and differently.
    Again,
    /// The first message is lost for this reason.
    Lost(Reason),
    /// Nobody is there: all are lost.
    Nobody,
    /// The port is dead.
    Dead,
}

impl Outbox {
    pub(super) fn new(plan: &Plan) -> Self {
        // What a UDP socket was told by a dataplane before us is unknown.
        let (cut_below, cutting) = if plan.cut { (u32::MAX, None) } else { (0, Some(0)) };
        Self { l2tp: plan.l2tp, count: 0, cut_below, cutting, waits: plan.waits, short: 0 }
    }

    /// Sends the frames of `b` that wait; says how many went or were passed over.
    ///
    /// # Errors
    /// The socket is of no use.
    pub(super) fn send(&mut self, fd: BorrowedFd<'_>, b: &Batch, stats: &mut Stats) -> io::Result<usize> {
        let mut at = 0;
        let mut again = false;
        while let Some(rest) = b.frames().get(at..).filter(|r| !r.is_empty()) {
            let mut heads = [Head::default(); BATCH];
            self.heads(rest, &mut heads);
            let mut out = Outgoing::new();
            let mut runs = [Run::default(); BATCH];
            let passed = self.gather(b, rest, &heads, &mut out, &mut runs);
            if out.is_empty() {
                // More parts than a call takes.
                if passed == 0 {
                    count(rest.get(..1).unwrap_or_default(), Reason::Refused, stats);
                }
                at += passed.max(1);
                continue;
            }
            let first = runs.first().copied().unwrap_or_default();
            match out.send_each(fd, &mut self.cutting) {
                Ok(n) => {
                    let sent = runs.get(n.saturating_sub(1)).map_or(0, |r| r.end);
                    self.sent(rest.get(..sent).unwrap_or_default(), stats);
                    at += if n == out.len() { passed } else { sent };
                    (again, self.short) = (false, 0);
                }
                Err(e) => match self.judge(&e, first, std::mem::replace(&mut again, true)) {
                    Verdict::Wait => return Ok(at),
                    Verdict::Again => {}
                    Verdict::Lost(why) => {
                        count(rest.get(..first.end).unwrap_or_default(), why, stats);
                        at += first.end;
                        again = false;
                    }
                    Verdict::Nobody => {
                        count(rest, Reason::PeerDown, stats);
                        return Ok(b.frames().len());
                    }
                    Verdict::Dead => return Err(e),
                },
            }
        }
        Ok(b.frames().len())
    }

    fn heads(&self, frames: &[Frame], heads: &mut [Head; BATCH]) {
        let Some(l2tp) = &self.l2tp else { return };
        let mut count = self.count;
        for (head, _) in heads.iter_mut().zip(frames).filter(|(_, f)| !f.dropped) {
            count = count.wrapping_add(1);
            *head = l2tp.head(count);
        }
    }

    fn sent(&mut self, frames: &[Frame], stats: &mut Stats) {
        for f in frames.iter().filter(|f| !f.dropped) {
            stats.tx_frames += 1;
            stats.tx_bytes += u64::from(f.len);
            if self.l2tp.is_some_and(|s| s.counter == Counter::Counts) {
                self.count = self.count.wrapping_add(1);
            }
        }
    }

    /// Gathers frames into messages until no more fit; says how many frames that is, with those that are passed over.
    fn gather<'a>(
        &self,
        b: &Batch,
        frames: &'a [Frame],
        heads: &'a [Head; BATCH],
        out: &mut Outgoing<'a>,
        runs: &mut [Run; BATCH],
    ) -> usize {
        let zeros = self.l2tp.as_ref().map_or(&[][..], Session::zeros);
        let overhead = self.l2tp.as_ref().map_or(0, Session::overhead);
        // The message that may still grow: bytes of each datagram, and of all.
        let mut open: Option<(u32, u32)> = None;
        for (i, (f, head)) in frames.iter().zip(heads).enumerate() {
            if f.dropped {
                continue;
            }
            let (body, len) = (b.body(f), f.len + overhead);
            let joins = open.filter(|(each, all)| len <= *each && all + len <= MOST);
            let parts = 3 + body.len();
            if !(if joins.is_some() { out.fits_parts(parts) } else { out.fits(parts) }) {
                return i;
            }
            out.private(head.bytes());
            out.private(zeros);
            out.private(f.head());
            out.shared(body);
            let each = joins.map_or(len, |(each, _)| each);
            let segment = if joins.is_some() { each } else { 0 };
            match joins {
                Some(_) => out.extend_last(u16::try_from(segment).unwrap_or(0)),
                None => out.finish(0),
            }
            if let Some(run) = out.len().checked_sub(1).and_then(|n| runs.get_mut(n)) {
                *run = Run { end: i + 1, segment };
            }
            let all = joins.map_or(0, |(_, all)| all) + len;
            // A shorter datagram is the last of its message.
            open = Some((each, all)).filter(|_| len == each && len < self.cut_below);
        }
        frames.len()
    }

    fn judge(&mut self, e: &io::Error, first: Run, again: bool) -> Verdict {
        if is_wait(e) {
            return Verdict::Wait;
        }
        match e.raw_os_error() {
            // Longer than the way's packets, or a way on which the kernel does not cut.
            Some(libc::EINVAL | libc::EMSGSIZE | libc::EIO | libc::EOPNOTSUPP) if first.segment > 0 => {
                self.cut_below = self.cut_below.min(first.segment);
                Verdict::Again
            }
            // Kernels measure what is not cut by the size to cut to as well, if one is set.
            Some(libc::EINVAL | libc::EMSGSIZE) if self.cutting.is_some_and(|size| size > 0) => {
                self.cutting = None;
                Verdict::Again
            }
            Some(libc::EINTR) => Verdict::Again,
            Some(libc::EMSGSIZE) => Verdict::Lost(Reason::Oversize),
            // That may be the answer to a datagram before.
            Some(libc::ECONNREFUSED | libc::ECONNRESET) if !again => Verdict::Again,
            Some(
                libc::ECONNREFUSED
                | libc::ECONNRESET
                | libc::ENOTCONN
                | libc::EDESTADDRREQ
                | libc::EPIPE
                | libc::ENOENT,
            ) => Verdict::Nobody,
            Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENETDOWN) if again => {
                Verdict::Lost(Reason::Unreachable)
            }
            Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENETDOWN) => Verdict::Again,
            Some(libc::ENOBUFS | libc::ENOMEM) if self.waits && self.short < SHORT => {
                self.short += 1;
                Verdict::Wait
            }
            Some(libc::ENOBUFS | libc::ENOMEM) => Verdict::Lost(Reason::Full),
            Some(libc::EBADF | libc::ENOTSOCK) => Verdict::Dead,
            _ => Verdict::Lost(Reason::Refused),
        }
    }
}

fn count(frames: &[Frame], why: Reason, stats: &mut Stats) {
    for _ in frames.iter().filter(|f| !f.dropped) {
        stats.drop(why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::dgram::Sources;

    #[test]
    fn what_the_kernel_is_short_of_is_asked_for_again_but_not_for_ever() {
        let short = io::Error::from_raw_os_error(libc::ENOBUFS);
        let run = Run { end: 1, segment: 0 };
        let mut plugged = Outbox::new(&Plan::plugged(1518));
        for _ in 0..2 {
            let waits = (0..1000).take_while(|_| matches!(plugged.judge(&short, run, true), Verdict::Wait));
            assert_eq!(waits.count(), SHORT as usize);
            assert!(matches!(plugged.judge(&short, run, true), Verdict::Lost(Reason::Full)));
            // A frame that goes makes good.
            plugged.short = 0;
        }
        let udp = Plan { sources: Sources::Any, cut: true, waits: false, ..Plan::plugged(1518) };
        assert!(matches!(Outbox::new(&udp).judge(&short, run, true), Verdict::Lost(Reason::Full)));
    }
}
