//! What came in over datagram sockets, and the frames in it.
//!
//! The kernel may give many datagrams as one ([`Got::segment`]); they are taken apart here, and given as room allows.
//!
//! Trust: none in who sends. Promise: one frame for each datagram, whole or not at all; what is not a frame for us is
//! counted by its reason and never ends anything; no descriptor that a peer sends along becomes ours.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use netreeve_shared::fdkind;

use crate::frame::{Batch, MAX_FRAME};
use crate::mem::{Buf, Seg};
use crate::offload;
use crate::port::dgram::l2tp::MAX_HEADER;
use crate::port::dgram::{Plan, Sources, is_wait};
use crate::stats::{Reason, Stats};
use crate::sys::mmsg::{Got, Incoming, MESSAGES};

/// Bytes of a slot: the largest frame with what stands before it. Not a multiple of a page alone, so that the first bytes
/// of slots lie in different places of the first-level cache.
const SLOT: u32 = 71 * 1024 + 192;

/// Messages that are asked for at least.
const FEW: usize = 8;

const _: () = assert!(SLOT > MAX_FRAME + MAX_HEADER);

/// Received messages and how far they were given.
#[derive(Debug)]
pub(super) struct Inbox {
    slots: Buf,
    segs: Vec<Seg>,
    incoming: Incoming,
    /// What the messages of the last call are, none of them oversize or from a stranger.
    got: Vec<(u32, Got)>,
    /// The next message to be given.
    next: usize,
    /// How much of it was given, in bytes.
    at: u32,
    /// Messages that the next call asks for: each costs a little, there or not.
    expect: usize,
}

impl Inbox {
    /// An empty one.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new(sources: &Sources) -> io::Result<Self> {
        let count = u32::try_from(MESSAGES).unwrap_or(0);
        Ok(Self {
            slots: Buf::reserve(SLOT * count)?,
            segs: Vec::with_capacity(MESSAGES),
            incoming: Incoming::new(*sources != Sources::Any),
            got: Vec::with_capacity(MESSAGES),
            next: 0,
            at: 0,
            expect: FEW,
        })
    }

    /// Receives from this socket from now on.
    pub(super) fn of(&mut self, fd: &OwnedFd) {
        // What stands beside an internet's datagrams is the kernel's own.
        let unix = fdkind::socket(fd.as_fd()).is_ok_and(|s| s.family == libc::AF_UNIX);
        self.incoming.take_notes(!unix);
    }

    /// Something is here that was not given.
    pub(super) fn is_ready(&self) -> bool {
        self.next < self.got.len()
    }

    /// Receives from a socket what is there. No frame that was given may be in use, and none be left. False: nothing.
    ///
    /// # Errors
    /// The socket is of no use any more.
    pub(super) fn fill(&mut self, fd: &OwnedFd, sources: &Sources, stats: &mut Stats) -> io::Result<bool> {
        self.got.clear();
        self.next = 0;
        self.at = 0;
        self.segs.clear();
        self.segs.extend((0..).map(|i| self.slots.seg(i * SLOT, SLOT)).take(self.expect));
        let got = match self.incoming.recv(fd.as_fd(), &self.segs) {
            Ok(got) => got,
            Err(e) if is_wait(&e) => return Ok(false),
            Err(e) => return refused(e, stats),
        };
        let n = got.len();
        self.expect = (2 * n).clamp(FEW, MESSAGES);
        for (i, g) in (0..).zip(got) {
            let why = if g.truncated {
                Some(Reason::Oversize)
            } else if g.len == 0 {
                Some(Reason::Runt)
            } else {
                None
            };
            match why {
                Some(why) => stats.drop(why),
                None => self.got.push((i, *g)),
            }
        }
        let incoming = &self.incoming;
        self.got.retain(|(i, g)| {
            let why = sources.judge(|| incoming.source(*i as usize));
            let datagrams = if g.segment > 0 { g.len.div_ceil(g.segment.into()) } else { 1 };
            why.map(|why| stats.drop_n(why, datagrams.into())).is_none()
        });
        Ok(n > 0)
    }

    /// Gives frames as room allows.
    pub(super) fn give(&mut self, b: &mut Batch, plan: &Plan, stats: &mut Stats) {
        while b.room() > 0
            && let Some((slot, got)) = self.got.get(self.next)
        {
            let rest = self.slots.seg(slot * SLOT, got.len).skip(self.at);
            let message = if got.segment > 0 { rest.take(got.segment.into()) } else { rest };
            self.at += message.len();
            if self.at >= got.len {
                self.next += 1;
                self.at = 0;
            }
            let frame = plan.l2tp.as_ref().map_or(Ok(message), |s| s.open(&message));
            let frame = frame.and_then(|f| match f.len() {
                0 => Err(Reason::Runt),
                n if n > MAX_FRAME => Err(Reason::Oversize),
                _ => Ok(f),
            });
            let seg = match frame {
                Ok(seg) => seg,
                Err(why) => {
                    stats.drop(why);
                    continue;
                }
            };
            let Some(f) = b.push() else { return };
            f.len = seg.len();
            f.set_lead(seg);
            let n = f.head_from(&seg);
            if let Some(mtu) = plan.undone {
                offload::recognise(f, mtu);
            }
            b.push_seg(seg.skip(n));
            stats.rx_frames += 1;
            stats.rx_bytes += u64::from(seg.len());
        }
    }
}

/// An error that the socket brought along from a datagram that was sent before is counted; any other is the end.
fn refused(e: io::Error, stats: &mut Stats) -> io::Result<bool> {
    match e.raw_os_error() {
        Some(libc::EBADF | libc::ENOTSOCK | libc::EOPNOTSUPP) => Err(e),
        Some(libc::ECONNREFUSED | libc::ECONNRESET | libc::ENOTCONN | libc::EPIPE) => {
            stats.drop(Reason::PeerDown);
            Ok(true)
        }
        Some(libc::EHOSTUNREACH | libc::ENETUNREACH | libc::ENETDOWN) => {
            stats.drop(Reason::Unreachable);
            Ok(true)
        }
        Some(libc::EMSGSIZE) => {
            stats.drop(Reason::Oversize);
            Ok(true)
        }
        _ => {
            stats.drop(Reason::Refused);
            Ok(true)
        }
    }
}
