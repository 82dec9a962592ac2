//! Datagrams from the host's side on their way to a guest.
//!
//! They are received many at a time into slots of our own, because nobody knows how long a datagram is before it is there:
//! a guest's landing would have to keep room for the largest each time. What is given stays in its slot until the next
//! turn in which frames are given.
//!
//! Trust: none in who sends. Promise: bounded: a socket is read only while a slot is free; a slot that is given is not
//! written to until its frame is gone.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use super::flows::Owned;
use crate::mem::{Buf, Seg};
use crate::sys::mmsg::{Got, Incoming};

/// Bytes of a slot: the largest datagram. Not a multiple of a page alone, so that the first bytes of slots lie in
/// different places of the first-level cache.
const SLOT: u32 = 65536 + 192;

/// Somebody on the host's side and the guest he speaks with, by addresses that the guest sees. Of echoes the port is the
/// guest's identifier, and the other one 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The guest.
    pub(super) guest: SocketAddr,
    /// The other.
    pub(super) far: SocketAddr,
}

/// The guest's end has its flows.
impl Owned for Key {
    type Owner = SocketAddr;

    fn owner(&self) -> SocketAddr {
        self.guest
    }
}

/// What waits in a slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    /// For whom.
    pub(super) key: Key,
    slot: u32,
    /// Bytes.
    len: u32,
    /// Several datagrams of so many bytes each, the last of as many or fewer; 0: one.
    segment: u16,
    /// Bytes that are gone already.
    at: u32,
}

impl Message {
    /// Several datagrams of so many bytes each; 0: one.
    pub(super) fn segment(&self) -> u16 {
        self.segment
    }
}

/// The slots.
#[derive(Debug)]
pub(super) struct Inbox {
    slots: Buf,
    free: Vec<u32>,
    /// Slots whose bytes frames of this turn may lie in.
    given: Vec<u32>,
    waiting: VecDeque<Message>,
    /// The slots of the last call, and what came into them.
    asked: Vec<u32>,
    segs: Vec<Seg>,
    incoming: Incoming,
}

impl Inbox {
    /// An empty one of `count` slots. Their memory is taken when they are first used.
    ///
    /// # Errors
    /// No addresses.
    pub(super) fn new(count: u32) -> io::Result<Self> {
        let n = usize::try_from(count).unwrap_or(0);
        Ok(Self {
            slots: Buf::reserve(SLOT * count)?,
            free: (0..count).rev().collect(),
            given: Vec::with_capacity(n),
            waiting: VecDeque::with_capacity(n),
            asked: Vec::with_capacity(n),
            segs: Vec::with_capacity(n),
            incoming: Incoming::new(true),
        })
    }

    /// Frames of the turn before are gone.
    pub(super) fn begin(&mut self) {
        self.free.append(&mut self.given);
    }

    /// Nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// A slot is free.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Receives up to `most` messages; says how many there were, and how many were asked for.
    ///
    /// # Errors
    /// The kernel's; `EAGAIN` if there is none.
    pub(super) fn recv(&mut self, fd: BorrowedFd<'_>, most: usize) -> io::Result<(usize, usize)> {
        let n = most.min(self.free.len());
        self.asked.clear();
        self.segs.clear();
        self.asked.extend(self.free.iter().rev().take(n));
        self.segs.extend(self.asked.iter().map(|slot| self.slots.seg(slot * SLOT, SLOT)));
        let got = self.incoming.recv(fd, &self.segs)?;
        Ok((got.len(), n))
    }

    /// One of the messages of the last call: what it is, and where it came from.
    pub(super) fn got(&self, i: usize) -> Option<(Got, Option<SocketAddr>)> {
        Some((*self.incoming.got().get(i)?, self.incoming.source(i)))
    }

    /// Which of the host's addresses it was sent to, where the socket says so.
    pub(super) fn local(&self, i: usize) -> Option<SocketAddr> {
        self.incoming.local(i)
    }

    /// One of the messages of the last call has this receiver.
    pub(super) fn keep(&mut self, i: usize, key: Key) {
        let (Some(&slot), Some(got)) = (self.asked.get(i), self.incoming.got().get(i)) else { return };
        if let Some(at) = self.free.iter().rposition(|s| *s == slot) {
            self.free.remove(at);
            self.waiting.push_back(Message { key, slot, len: got.len, segment: got.segment, at: 0 });
        }
    }

    /// Room for a message of `len` bytes that is written by the caller. None: there is none.
    pub(super) fn write(&mut self, key: Key, len: u32) -> Option<Seg> {
        let slot = self.free.pop()?;
        let len = len.min(SLOT);
        self.waiting.push_back(Message { key, slot, len, segment: 0, at: 0 });
        Some(self.slots.seg(slot * SLOT, len))
    }

    /// The message that waits for the longest time, and its bytes that are left.
    pub(super) fn front(&self) -> Option<(Message, Seg)> {
        let m = *self.waiting.front()?;
        Some((m, self.slots.seg(m.slot * SLOT, m.len).skip(m.at)))
    }

    /// `n` bytes of it went; all of it, if none are left.
    pub(super) fn went(&mut self, n: u32) {
        let Some(m) = self.waiting.front_mut() else { return };
        m.at = m.at.saturating_add(n).min(m.len);
        if m.at >= m.len
            && let Some(m) = self.waiting.pop_front()
        {
            self.given.push(m.slot);
        }
    }
}
