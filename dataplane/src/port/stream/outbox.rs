//! Sending frames over a stream, many with each call, and the rest of the one that was cut.
//!
//! Promise: once a byte of a frame is sent, the others follow before anything else, whatever the giver does to its
//! memory meanwhile; the length sent is the number of bytes that follow.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;

use crate::frame::{BATCH, Batch, Frame, HEAD, MAX_FRAME};
use crate::mem::{Buf, Seg};
use crate::port::stream::framing::{Big, Big32, Form, Framing, Little, PREFIX, WithVnet};
use crate::stats::Reason;
use crate::sys::io::{Gather, send};

/// Parts of one call: three for an ordinary frame.
const PARTS: usize = 256;
const FLAGS: libc::c_int = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;

/// Why no more went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// All are gone or passed over.
    Done,
    /// The stream takes no more for now.
    Full,
    /// The connection is lost.
    Lost,
}

impl From<io::Error> for Stop {
    fn from(e: io::Error) -> Self {
        if is_full(&e) { Self::Full } else { Self::Lost }
    }
}

/// The rest of a frame that a full stream cut.
#[derive(Debug)]
pub(super) struct Outbox {
    framing: Framing,
    buf: Buf,
    start: u32,
    end: u32,
    /// The frame that was cut stays with its giver until its rest is sent, so that the lane waits for us: it is the
    /// first that comes again.
    owed: Option<Owed>,
    /// Some frame of the last batch could not be sent as it is.
    pub(super) passed_over: bool,
}

/// By what a frame that was cut is known when it comes again.
#[derive(Clone, Copy, Debug)]
struct Owed {
    len: u32,
    /// Where its head stands in our copy, after what stands before the frame.
    head: u32,
}

/// A frame's length; zero for one that is not to be sent.
fn length(b: &Batch, f: &Frame, framing: Framing) -> u32 {
    let body: u32 = b.body(f).iter().map(Seg::len).sum();
    let head = u32::try_from(f.head().len()).unwrap_or(u32::MAX);
    let n = head.saturating_add(body);
    if f.dropped || n > framing.max_frame() || b.body(f).len() + 2 > PARTS { 0 } else { n }
}

impl Outbox {
    /// An empty one.
    ///
    /// # Errors
    /// No memory.
    pub(super) fn new(framing: Framing) -> io::Result<Self> {
        Ok(Self {
            framing,
            buf: Buf::new(PREFIX + MAX_FRAME)?,
            start: 0,
            end: 0,
            owed: None,
            passed_over: false,
        })
    }

    /// Forgets the rest, as for a new connection.
    pub(super) fn reset(&mut self) {
        self.start = 0;
        self.end = 0;
        self.owed = None;
    }

    /// Gathers frames with their lengths until no more parts fit; says how many frames.
    fn gather<'a, F: Form>(
        b: &Batch,
        frames: &'a [Frame],
        before: &'a [F::Prefix],
        parts: &mut Gather<'a, PARTS>,
    ) -> usize {
        let mut n = 0;
        for (f, p) in frames.iter().zip(before) {
            if F::length(p) != 0 {
                if parts.room() < 2 + b.body(f).len() {
                    break;
                }
                let _ = parts.private(p.as_ref()) && parts.private(f.head()) && parts.shared(b.body(f));
            }
            n += 1;
        }
        n
    }

    /// Sends the rest of the frame that was cut.
    fn flush(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        while self.start < self.end {
            let n = send(fd, &self.buf.seg(self.start, self.end - self.start), FLAGS)?;
            self.start += u32::try_from(n).unwrap_or(u32::MAX).min(self.end - self.start);
        }
        Ok(())
    }

    /// Sends the waiting frames of `b`, `sent` being told of each that is gone. Says how many went or were passed over,
    /// and why no more.
    pub(super) fn send(&mut self, fd: BorrowedFd<'_>, b: &Batch, sent: impl FnMut(&Frame)) -> (usize, Stop) {
        match self.framing {
            Framing::Qemu | Framing::Packets => self.send_as::<Big32>(fd, b, sent),
            Framing::Little16 => self.send_as::<Little>(fd, b, sent),
            Framing::Big16 => self.send_as::<Big>(fd, b, sent),
            Framing::Vnet => self.send_as::<WithVnet>(fd, b, sent),
        }
    }

    fn send_as<F: Form>(
        &mut self,
        fd: BorrowedFd<'_>,
        b: &Batch,
        mut sent: impl FnMut(&Frame),
    ) -> (usize, Stop) {
        self.passed_over = false;
        if let Err(e) = self.flush(fd) {
            return (0, e.into());
        }
        let mut frames = 0;
        if let Some(owed) = self.owed.take() {
            // A giver that meanwhile began anew has another frame here, which is sent as usual.
            if let Some(f) = b.frames().first().filter(|f| self.is(f, owed)) {
                sent(f);
                frames = 1;
            }
        }
        let mut prefixes = [F::NONE; BATCH];
        for (p, f) in prefixes.iter_mut().zip(b.frames()) {
            match length(b, f, self.framing) {
                0 => self.passed_over |= !f.dropped,
                n => *p = F::encode(n, &f.vnet),
            }
        }
        while let Some(rest) = b.frames().get(frames..).filter(|r| !r.is_empty()) {
            let before = prefixes.get(frames..).unwrap_or_default();
            let mut parts = Gather::<PARTS>::new();
            let n = Self::gather::<F>(b, rest, before, &mut parts);
            let done = if parts.bytes() == 0 { Ok(0) } else { parts.writev(fd) };
            let all = rest.iter().zip(before).take(n);
            let whole = match done {
                Ok(done) if done == parts.bytes() => {
                    all.filter(|(_, p)| F::length(p) != 0).for_each(|(f, _)| sent(f));
                    n
                }
                Ok(done) => self.account::<F>(b, &all, done, &mut sent),
                Err(e) => return (frames, e.into()),
            };
            frames += whole;
            if whole < n {
                return (frames, Stop::Full);
            }
        }
        (frames, Stop::Done)
    }

    /// It is the frame that was cut. Its cookie does not say so: it may be a place in the batch, of which the frame has
    /// another now, or a place in a ring that has begun anew, or nothing.
    fn is(&self, f: &Frame, owed: Owed) -> bool {
        let (mut ours, head) = ([0; HEAD], f.head());
        let copy = self.buf.seg(owed.head, self.buf.len());
        let n = copy.copy_out(ours.get_mut(..head.len()).unwrap_or_default());
        f.len == owed.len && n == head.len() && ours.get(..n) == Some(head)
    }

    /// The frame that was cut will not come again: its rest is sent all the same. Its bytes; none: there is none.
    pub(super) fn disown(&mut self) -> Option<u32> {
        self.owed.take().map(|o| o.len)
    }

    /// `done` bytes of these frames are gone: says how many frames that is, and keeps the rest of the one that was cut.
    fn account<'a, F: Form>(
        &mut self,
        b: &Batch,
        frames: &(impl Iterator<Item = (&'a Frame, &'a F::Prefix)> + Clone),
        done: usize,
        sent: &mut impl FnMut(&Frame),
    ) -> usize
    where
        F::Prefix: 'a,
    {
        let mut left = done;
        let mut whole = 0;
        for (f, p) in frames.clone() {
            let len = F::length(p);
            if len != 0 {
                let bytes = p.as_ref().len() + len as usize;
                if left < bytes {
                    if left > 0 {
                        self.keep(b, f, p.as_ref(), u32::try_from(left).unwrap_or(u32::MAX));
                    }
                    return whole;
                }
                left -= bytes;
                sent(f);
            }
            whole += 1;
        }
        whole
    }

    /// Keeps what follows the first `gone` bytes of a frame.
    fn keep(&mut self, b: &Batch, f: &Frame, prefix: &[u8], gone: u32) {
        self.start = gone;
        self.end = 0;
        let mut add = |n: usize| self.end += u32::try_from(n).unwrap_or(0);
        let whole = |at| self.buf.seg(at, self.buf.len());
        let mut at = 0;
        for private in [prefix, f.head()] {
            let n = whole(at).copy_in(private);
            at += u32::try_from(n).unwrap_or(0);
            add(n);
        }
        for seg in b.body(f) {
            let n = whole(at).copy_from(seg);
            at += n;
            add(n as usize);
        }
        let head = u32::try_from(prefix.len()).unwrap_or(0);
        self.owed = Some(Owed { len: f.len, head });
    }
}

/// Sends the waiting frames of `b` as messages, `done` being told of each that is gone (none) or lost (why). Says how
/// many went or were passed over, and why no more.
pub(super) fn send_packets(
    fd: BorrowedFd<'_>,
    b: &Batch,
    mut done: impl FnMut(&Frame, Option<Reason>),
) -> (usize, Stop) {
    for (n, f) in b.frames().iter().enumerate().filter(|(_, f)| !f.dropped) {
        let mut parts = Gather::<PARTS>::new();
        if f.len > MAX_FRAME || !parts.private(f.head()) || !parts.shared(b.body(f)) {
            // Counted by whoever counts what was passed over.
            continue;
        }
        match parts.writev(fd) {
            Ok(_) => done(f, None),
            // Larger than what the socket's buffer may ever hold.
            Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) => done(f, Some(Reason::Refused)),
            Err(e) => return (n, e.into()),
        }
    }
    (b.frames().len(), Stop::Done)
}

/// Not now, as opposed to never.
pub(super) fn is_full(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINTR | libc::ENOBUFS | libc::ENOMEM))
}
