//! Datagrams of a guest's on their way out: those of one flow that follow each other go in one call.
//!
//! Equal datagrams go as one message that the kernel cuts up (`UDP_SEGMENT`), as does a guest's own super-datagram (USO):
//! the stack is passed once for all of them. What is on the link is the same. Payload is not copied but for what a frame's
//! head holds of it.
//!
//! Trust: none in the guest; lengths were checked against its frame. Promise: in order; each datagram goes once or is
//! counted once, by reason, and the caller learns which error the guest should hear of.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use crate::frame::{BATCH, HEAD};
use crate::mem::{Buf, Seg};
use crate::port::user::packet::{Ip, Packet, Part};
use crate::stats::{Reason, Stats};
use crate::sys::mmsg::Outgoing;

/// Most bytes of datagrams that go as one message: less than an IPv4 packet holds.
const MOST: u32 = 65_000;
/// Most datagrams that go as one message (`UDP_MAX_SEGMENTS` of older kernels).
const TOGETHER: u32 = 64;
/// Parts of one call, and of one message at most.
const PARTS: usize = 500;

/// One datagram, or several of `segment` bytes each.
#[derive(Clone, Copy, Debug)]
struct Datagram {
    /// Where its parts begin and end.
    parts: (usize, usize),
    len: u32,
    segment: u16,
}

/// What waits, all of one flow.
#[derive(Debug)]
pub(super) struct Outbox {
    /// What heads hold of payload, one place for each frame of a turn.
    heads: Buf,
    used: u32,
    parts: Vec<Seg>,
    list: Vec<Datagram>,
    /// The next one to go.
    at: usize,
}

/// How a flow's socket is to be used, as far as was learned.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    /// Datagrams shorter than this may be cut by the kernel; 0: none.
    pub(super) cut_below: u32,
    /// To whom, from a socket that is not connected.
    pub(super) towards: Option<SocketAddr>,
    /// From which of the host's addresses; none: as the kernel chooses.
    pub(super) local: Option<SocketAddr>,
}

/// A datagram that did not go, and why.
#[derive(Debug)]
pub(super) struct Failure {
    /// The kernel's error.
    pub(super) error: io::Error,
    /// Bytes of it.
    pub(super) len: u32,
    /// Where its parts are, until the next one is put.
    parts: (usize, usize),
    /// Where its message ends in the list.
    end: usize,
}

fn small(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Outbox {
    /// An empty one.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new() -> io::Result<Self> {
        let heads = Buf::reserve(small(BATCH * HEAD))?;
        Ok(Self { heads, used: 0, parts: Vec::with_capacity(PARTS), list: Vec::with_capacity(BATCH), at: 0 })
    }

    /// Nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Another datagram has a place.
    pub(super) fn has_room(&self) -> bool {
        self.list.len() < BATCH && self.used < small(BATCH * HEAD)
    }

    /// Adds `len` bytes of a packet's payload, behind `header` bytes of the transport's. False: it has too many parts.
    pub(super) fn put(&mut self, p: &Packet<'_>, ip: &Ip, header: u32, len: u32, segment: u16) -> bool {
        let begin = self.parts.len();
        let ip = Ip { len: header + len, ..*ip };
        let (heads, used, parts) = (&self.heads, &mut self.used, &mut self.parts);
        p.parts(&ip, header, |part| {
            parts.push(match part {
                Part::Head(b) => {
                    let to = heads.seg(*used, small(HEAD));
                    *used += small(HEAD);
                    to.take(small(to.copy_in(b)))
                }
                Part::Body(s) => s,
            });
            true
        });
        if self.parts.len() - begin > PARTS {
            self.parts.truncate(begin);
            return false;
        }
        let segment = if u32::from(segment) < len { segment } else { 0 };
        self.list.push(Datagram { parts: (begin, self.parts.len()), len, segment });
        true
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        (self.used, self.at) = (0, 0);
        self.parts.clear();
        self.list.clear();
    }

    /// Sends what waits. None: all is gone, or counted. Otherwise the next one did not go, for an error of its own or of the
    /// network's: the caller [`Outbox::skip`]s it or not, and calls again.
    pub(super) fn send(&mut self, fd: BorrowedFd<'_>, way: &mut Way, stats: &mut Stats) -> Option<Failure> {
        while self.at < self.list.len() {
            let mut out = Outgoing::new();
            if let Some(peer) = way.towards {
                out.towards(peer);
            }
            if let Some(local) = way.local {
                out.from_local(local);
            }
            let ends = self.gather(way, &mut out);
            let Some(&(end, segment)) = ends.first() else { break };
            let error = match out.send(fd) {
                Ok(n) => {
                    self.at = n.checked_sub(1).and_then(|i| ends.get(i)).map_or(end, |e| e.0);
                    continue;
                }
                Err(e) => e,
            };
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // Longer than the way's packets, or a way on which the kernel does not cut.
                Some(libc::EINVAL | libc::EMSGSIZE | libc::EIO | libc::EOPNOTSUPP) if segment > 0 => {
                    way.cut_below = way.cut_below.min(segment);
                    self.explode();
                }
                // The link is full; what waits longer would be late.
                Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => {
                    stats.drop_n(Reason::Full, (self.list.len() - self.at) as u64);
                    break;
                }
                _ => {
                    let d = self.list.get(self.at).copied()?;
                    return Some(Failure { error, len: d.len, parts: d.parts, end });
                }
            }
        }
        self.clear();
        None
    }

    /// What did not go is lost, and counted.
    pub(super) fn skip(&mut self, f: &Failure, stats: &mut Stats) {
        stats.drop_n(why(&f.error), f.end.saturating_sub(self.at) as u64);
        self.at = self.at.max(f.end);
    }

    /// Gathers what waits into messages, as many as one call takes; says where each message ends in the list, and how it
    /// is cut.
    fn gather(&self, way: &Way, out: &mut Outgoing<'_>) -> Vec<(usize, u32)> {
        let mut ends: Vec<(usize, u32)> = Vec::with_capacity(BATCH);
        // The message that may still grow: bytes of each datagram, of all, and how many.
        let mut open: Option<(u32, u32, u32)> = None;
        for (i, d) in self.list.iter().enumerate().skip(self.at) {
            let parts = self.parts.get(d.parts.0..d.parts.1).unwrap_or_default();
            let joins = open
                .filter(|(each, all, n)| {
                    d.segment == 0 && d.len <= *each && all + d.len <= MOST && *n < TOGETHER
                })
                .filter(|_| d.len > 0);
            if !(if joins.is_some() { out.fits_parts(parts.len()) } else { out.fits(parts.len()) }) {
                break;
            }
            out.shared(parts);
            let (each, all, n) = joins.unwrap_or((d.len, 0, 0));
            let (all, n) = (all + d.len, n + 1);
            let segment = if n > 1 { each } else { d.segment.into() };
            let cut = u16::try_from(segment).unwrap_or(0);
            if n > 1 {
                out.extend_last(cut);
                ends.pop();
            } else {
                out.finish(cut);
            }
            ends.push((i + 1, segment));
            // A shorter datagram, or one of none at all, is the last of its message.
            let grows = d.segment == 0 && d.len == each && each > 0 && each < way.cut_below;
            open = grows.then_some((each, all, n));
        }
        ends
    }

    /// Makes several datagrams of the next one, if it is several, because the kernel does not cut it.
    fn explode(&mut self) {
        let Some(d) = self.list.get(self.at).copied().filter(|d| d.segment > 0) else { return };
        let (mut left, mut pieces) = (d.len, Vec::new());
        let (mut i, mut off) = (d.parts.0, 0);
        while left > 0 {
            let mut want = left.min(d.segment.into());
            let (len, begin) = (want, self.parts.len());
            left -= want;
            while want > 0
                && let Some(seg) = self.parts.get(i).copied().filter(|_| i < d.parts.1)
            {
                let part = seg.skip(off).take(want);
                (off, want) = (off + part.len(), want - part.len());
                self.parts.push(part);
                if off >= seg.len() {
                    (i, off) = (i + 1, 0);
                }
            }
            pieces.push(Datagram { parts: (begin, self.parts.len()), len, segment: 0 });
        }
        self.list.splice(self.at..=self.at, pieces);
    }

    /// The first bytes of a datagram that failed.
    pub(super) fn first_bytes(&self, f: &Failure, to: &mut [u8]) -> usize {
        let mut done = 0;
        for seg in self.parts.get(f.parts.0..f.parts.1).unwrap_or_default() {
            done += seg.copy_out(to.get_mut(done..).unwrap_or_default());
        }
        done
    }
}

/// Why a datagram is lost.
fn why(e: &io::Error) -> Reason {
    match e.raw_os_error() {
        Some(libc::EMSGSIZE) => Reason::Oversize,
        Some(
            libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN | libc::ENETDOWN,
        ) => Reason::Unreachable,
        _ => Reason::Refused,
    }
}
