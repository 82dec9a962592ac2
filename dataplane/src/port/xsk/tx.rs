//! Sending: the TX ring, the completion ring, and a list of free chunks, last in, first out, so that few and hot ones
//! are used.
//!
//! A successor of a killed process does not know which chunks were free. What it knows: those in the completion ring
//! are. How many are with the kernel: as many as were ever submitted less those ever completed, which the two producer
//! indices say. So it takes every chunk for *unknown*, frees those that complete, and once as many unknown ones have
//! completed as were with the kernel when it came, all others were free all along ([`Tx::reap`]). Mostly that number
//! is zero and this takes no time.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use crate::frame::{Batch, Frame};
use crate::mem::Seg;
use crate::mem::xring::{Desc, Ring, Umem};
use crate::port::xsk::shape::{MAX_PARTS, Shape};
use crate::sys::xdp;

/// After this long, chunks that a predecessor left with the kernel and that are in no ring are taken for lost
/// completions. Their frames were copied long ago. Not in unit tests, whose kernel is not in a hurry on a busy machine.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 3600 } else { 2 });
/// Kicks in a row while the kernel makes progress: in copy mode it sends 32 frames (`TX_BATCH_SIZE`) with each.
const KICKS: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Sent,
    Unknown,
}

/// Whether a frame was put into the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// It was.
    Done,
    /// Not now.
    Full,
    /// Never: it does not fit.
    Oversize,
}

/// Chunks that a predecessor left behind.
#[derive(Clone, Copy, Debug)]
struct Left {
    with_kernel: u32,
    since: Instant,
}

/// The sending half.
pub(super) struct Tx {
    ring: Ring<Desc>,
    done: Ring<u64>,
    shape: Shape,
    /// The TX ring's producer index, and how much of it the kernel was told.
    next: u32,
    told: u32,
    /// The completion ring's consumer index.
    reaped: u32,
    free: Vec<u32>,
    state: Vec<State>,
    left: Option<Left>,
    /// See the plan's.
    pub(super) late: bool,
    /// The interface is down: frames are not sent, and not kept waiting either.
    pub(super) is_down: bool,
    /// The kernel did not take what waits in the ring and wants to be kicked again.
    pub(super) stalled: bool,
}

impl Tx {
    /// Takes the rings as they stand. Says whether somebody used them before.
    pub(super) fn open(ring: Ring<Desc>, done: Ring<u64>, shape: Shape) -> io::Result<(Self, bool)> {
        let (next, reaped, completed) = (ring.producer(), done.consumer(), done.producer());
        let state = vec![State::Unknown; shape.own as usize];
        let free = Vec::with_capacity(shape.own as usize);
        let (left, is_down, stalled) = (None, false, false);
        let mut tx = Self {
            ring,
            done,
            shape,
            next,
            told: next,
            reaped,
            free,
            state,
            left,
            late: false,
            is_down,
            stalled,
        };
        tx.reap_to(completed)?;
        let with_kernel = next.wrapping_sub(completed);
        tx.left = Some(Left { with_kernel, since: Instant::now() });
        tx.settle();
        Ok((tx, next != 0))
    }

    /// Chunks that are free.
    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    /// Frees the chunks of frames that are sent.
    pub(super) fn reap(&mut self) -> io::Result<()> {
        self.reap_to(self.done.producer())?;
        self.settle();
        Ok(())
    }

    fn reap_to(&mut self, completed: u32) -> io::Result<()> {
        for _ in 0..self.done.between(self.reaped, completed)? {
            let addr = self.done.get(self.reaped);
            self.reaped = self.reaped.wrapping_add(1);
            let Some(n) = self.shape.own_number(addr) else { continue };
            let Some(state) = self.state.get_mut(n as usize).filter(|s| **s != State::Free) else { continue };
            if let (State::Unknown, Some(left)) = (*state, &mut self.left) {
                left.with_kernel = left.with_kernel.saturating_sub(1);
            }
            *state = State::Free;
            self.free.push(n);
        }
        self.done.consume(self.reaped);
        Ok(())
    }

    /// Frees what a predecessor left, once nothing of it can be with the kernel.
    fn settle(&mut self) {
        let Some(left) = self.left else { return };
        let drained = self.ring.consumer() == self.next;
        if left.with_kernel > 0 && !(drained && left.since.elapsed() > PATIENCE) {
            return;
        }
        self.left = None;
        for (n, state) in (0..).zip(&mut self.state).filter(|(_, s)| **s == State::Unknown) {
            *state = State::Free;
            self.free.push(n);
        }
    }

    /// Copies a frame into chunks and puts it into the ring, where the kernel does not see it yet.
    pub(super) fn put(&mut self, umem: &Umem, b: &Batch, f: &Frame) -> Put {
        let head = u32::try_from(f.head().len()).unwrap_or(u32::MAX);
        let mut left = b.body(f).iter().fold(head, |n, s| n.saturating_add(s.len()));
        let parts = left.div_ceil(self.shape.chunk);
        if parts > if self.shape.multi_buffer { MAX_PARTS } else { 1 } || parts == 0 {
            return Put::Oversize;
        }
        if self.free.len() < parts as usize {
            return Put::Full;
        }
        let mut room = Seg::EMPTY;
        let mut from = f.head();
        while !from.is_empty() {
            self.open_chunk(umem, &mut room, &mut left);
            let n = room.copy_in(from);
            let Some(rest) = from.get(n..).filter(|_| n > 0) else { break };
            from = rest;
            room = room.skip(u32::try_from(n).unwrap_or(u32::MAX));
        }
        for seg in b.body(f) {
            let mut seg = *seg;
            while !seg.is_empty() {
                self.open_chunk(umem, &mut room, &mut left);
                let n = room.copy_from(&seg);
                if n == 0 {
                    break;
                }
                seg = seg.skip(n);
                room = room.skip(n);
            }
        }
        Put::Done
    }

    /// If the chunk being written is full, begins the next, with its descriptor.
    fn open_chunk(&mut self, umem: &Umem, room: &mut Seg, left: &mut u32) {
        if !room.is_empty() {
            return;
        }
        let Some(n) = self.free.pop() else { return };
        let len = (*left).min(self.shape.chunk);
        *left -= len;
        let addr = self.shape.own_addr(n);
        if let Some(state) = self.state.get_mut(n as usize) {
            *state = State::Sent;
        }
        *room = umem.seg(addr, len).unwrap_or_default();
        let options = if *left > 0 { libc::XDP_PKT_CONTD } else { 0 };
        // There is a place: the chunks for sending are no more than the ring's entries.
        self.ring.set(self.next, Desc { addr, len, options });
        self.next = self.next.wrapping_add(1);
    }

    /// Shows the kernel what was put, and kicks it if it wants that. Says how often.
    ///
    /// # Errors
    /// The device is gone.
    pub(super) fn submit(&mut self, fd: BorrowedFd<'_>) -> io::Result<u32> {
        if self.told != self.next {
            self.ring.produce(self.next);
            self.told = self.next;
        }
        let mut kicks = 0;
        self.stalled = false;
        let mut seen = self.ring.consumer();
        if seen == self.next {
            // Nothing waits, so nothing says any more that the interface is down.
            self.is_down = false;
        }
        while seen != self.next && self.ring.wants_kick() && kicks < KICKS {
            kicks += 1;
            let answer = xdp::kick_tx(fd);
            let now = self.ring.consumer();
            let progress = now != seen;
            seen = now;
            match answer.as_ref().err().and_then(io::Error::raw_os_error) {
                None => {
                    self.is_down = false;
                    break;
                }
                Some(libc::EAGAIN) if progress => self.is_down = false,
                // Full somewhere below: the rest stays in the ring until the next kick.
                Some(libc::EAGAIN | libc::EBUSY | libc::ENOBUFS | libc::ENOMEM | libc::EINTR) => {
                    self.stalled = true;
                    break;
                }
                // It is not bound yet. (Once something went, or where it was bound before, the device is gone.)
                Some(libc::ENXIO) if self.late && seen == 0 => {
                    self.stalled = true;
                    break;
                }
                Some(libc::ENETDOWN) => {
                    self.is_down = true;
                    break;
                }
                Some(_) => return answer.map(|()| kicks),
            }
        }
        Ok(kicks)
    }
}
