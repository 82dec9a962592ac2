//! A spool: records that one process writes and another reads, in memory that both map, so that neither waits for the
//! other. The dataplane writes; what it does not find room for it counts and lets go.
//!
//! One memfd holds a **section** for each writer (a queue): a page of positions, then [`room`] bytes of records. The
//! positions are free-running; a record lies in one piece, at a multiple of eight, and never across the end: what is left
//! there is passed over ([`PASS`]). A record's first four bytes are its length. One eventfd, the **bell**, serves all
//! sections; it is rung only for a reader that says that it sleeps.
//!
//! Trust: none in the other side. The reader is the supervisor and the writer a dataplane that may be anybody's by now:
//! every position and length that is read is checked against what is mapped, and what cannot be true ends the reading.
//! Promise: neither side reads or writes outside its section whatever the other does; the memory's size is sealed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::mem::Seg;
use crate::mem::map::Shared;
use crate::sys;

/// Most bytes of records in a section: at 10 Gbit/s, what comes in three milliseconds.
pub const MOST: u32 = 4 << 20;
/// Least bytes of records in a section.
pub const LEAST: u32 = 512 << 10;
/// Bytes of records in all sections, where that leaves each the least.
const ALL: u32 = 16 << 20;
/// Bytes before them.
const PAGE: u32 = 4096;
/// Longest record in bytes, its length included: the largest frame, and several in the least room.
pub const LONGEST: u32 = LEAST / 4;

/// Bytes of records in each of so many sections: many queues share what comes, and all of it is memory at once.
#[must_use]
pub const fn room(sections: u16) -> u32 {
    let share = ALL / if sections == 0 { 1 } else { sections as u32 };
    let room = if share > MOST { MOST } else { share };
    // Of a power of two, positions may run freely.
    if room < LEAST { LEAST } else { 1 << room.ilog2() }
}
/// Instead of a length: the next record is at the start.
const PASS: u32 = u32::MAX;

/// Where the positions stand in the page; the two sides write to different cache lines.
mod at {
    /// Bytes that were written and may be read.
    pub(super) const TAIL: usize = 0;
    /// What the writer counts.
    pub(super) const SEEN: usize = 8;
    pub(super) const LOST: usize = 16;
    /// The writer has ended.
    pub(super) const ENDED: usize = 24;
    /// Bytes that were read.
    pub(super) const HEAD: usize = 128;
    /// The reader sleeps.
    pub(super) const ASLEEP: usize = 136;
    /// In the first section: bytes of records in each.
    pub(super) const ROOM: usize = 256;
}

/// The memory of `sections` writers.
///
/// # Errors
/// The kernel's.
pub fn memory(sections: u16) -> io::Result<OwnedFd> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let fd = memfd_create(c"netreeve-spool", flags)?;
    let bytes = i64::from(sections.max(1)) * i64::from(PAGE + room(sections));
    // All of it now: a page that cannot be had later would end whoever touches it.
    fallocate(&fd, FallocateFlags::empty(), 0, bytes)?;
    let fd = File::from(fd);
    fd.write_all_at(&room(sections).to_ne_bytes(), at::ROOM as u64)?;
    let fd = OwnedFd::from(fd);
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(fd)
}

/// A bell: an eventfd that never blocks.
///
/// # Errors
/// The kernel's.
pub fn bell() -> io::Result<OwnedFd> {
    let fd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    Ok(fd.into())
}

/// A section, mapped.
#[derive(Debug)]
struct Section {
    map: Shared,
    /// Bytes of records.
    room: u32,
}

impl Section {
    fn map(memory: &OwnedFd, section: u16, room: u32) -> io::Result<Self> {
        let bytes = PAGE + room;
        let at = u64::from(section) * u64::from(bytes);
        Ok(Self { map: Shared::map_lazily(memory.as_fd(), bytes as usize, at)?, room })
    }

    /// Where in the room a position is.
    fn place(&self, position: u64) -> u32 {
        u32::try_from(position % u64::from(self.room)).unwrap_or(0)
    }

    fn long(&self, at: usize) -> Option<&AtomicU64> {
        let place = self.map.place::<u64>(at)?;
        // SAFETY: an aligned word inside the mapping, which lives as long as self; both sides access it atomically.
        Some(unsafe { AtomicU64::from_ptr(place) })
    }

    fn word(&self, at: usize) -> Option<&AtomicU32> {
        let place = self.map.place::<u32>(at)?;
        // SAFETY: as above.
        Some(unsafe { AtomicU32::from_ptr(place) })
    }

    fn load(&self, at: usize, order: Ordering) -> u64 {
        self.long(at).map_or(0, |p| p.load(order))
    }

    fn store(&self, at: usize, value: u64, order: Ordering) {
        if let Some(p) = self.long(at) {
            p.store(value, order);
        }
    }

    /// The bytes from a position on to the end.
    fn bytes(&self, position: u64) -> Seg {
        // SAFETY: the records' room lies behind the page, inside the mapping.
        let start = unsafe { self.map.at.as_ptr().add(PAGE as usize) };
        // SAFETY: so many bytes are mapped there for as long as self lives.
        let room = unsafe { Seg::new(start, self.room) };
        room.skip(self.place(position))
    }
}

/// The writing side of a section. One thread's at a time.
#[derive(Debug)]
pub struct Writer {
    section: Section,
    /// Shared by the writers of all sections: a copy would be a system call.
    bell: Arc<OwnedFd>,
    /// What may be read ends here.
    tail: u64,
    /// What was written and may not yet be read ends here.
    open: u64,
    /// How far the reader was, at the last look.
    head: u64,
    seen: u64,
    lost: u64,
}

impl Writer {
    /// Writes to a section of `memory` that nobody has written to before.
    ///
    /// # Errors
    /// The kernel's, from mapping it; it is no spool's.
    pub fn new(memory: &OwnedFd, section: u16, bell: Arc<OwnedFd>) -> io::Result<Self> {
        // The supervisor has said it, and nobody else has had the memory.
        let first = Section { map: Shared::map_lazily(memory.as_fd(), PAGE as usize, 0)?, room: 0 };
        let room = first.word(at::ROOM).map_or(0, |r| r.load(Ordering::Relaxed));
        if !(LEAST..=MOST).contains(&room) || !room.is_power_of_two() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let section = Section::map(memory, section, room)?;
        Ok(Self { section, bell, tail: 0, open: 0, head: 0, seen: 0, lost: 0 })
    }

    /// Bytes that lie between the reader and the end of what is open.
    fn fits(&self, need: u64) -> bool {
        self.open.wrapping_sub(self.head).saturating_add(need) <= u64::from(self.section.room)
    }

    /// Room for a record of `len` bytes, which begin behind the record's length; none: there is none now.
    pub fn reserve(&mut self, len: u32) -> Option<Seg> {
        let whole = len.checked_add(4).filter(|n| *n <= LONGEST)?.next_multiple_of(8);
        let left = self.section.room - self.section.place(self.open);
        let pass = if left < whole { left } else { 0 };
        let need = u64::from(whole) + u64::from(pass);
        if !self.fits(need) {
            let head = self.section.load(at::HEAD, Ordering::Acquire);
            // A reader that is ahead of what it was given is none.
            if head > self.tail || head < self.head {
                return None;
            }
            self.head = head;
            if !self.fits(need) {
                return None;
            }
        }
        if pass > 0 {
            self.section.bytes(self.open).copy_in(&PASS.to_le_bytes());
            self.open += u64::from(pass);
        }
        let record = self.section.bytes(self.open).take(whole);
        record.copy_in(&(len + 4).to_le_bytes());
        self.open += u64::from(whole);
        Some(record.skip(4).take(len))
    }

    /// The position behind what was reserved last.
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.open
    }

    /// Lets the reader have what was reserved up to `mark`, and forgets the rest. `seen` and `lost` are added to what the
    /// writer counts.
    pub fn publish(&mut self, mark: u64, seen: u64, lost: u64) {
        let mark = mark.clamp(self.tail, self.open);
        self.open = mark;
        self.seen += seen;
        self.lost += lost;
        self.section.store(at::SEEN, self.seen, Ordering::Relaxed);
        self.section.store(at::LOST, self.lost, Ordering::Relaxed);
        self.tail = mark;
        self.section.store(at::TAIL, mark, Ordering::Release);
        // With the reader's: either it sees what was written, or it is seen to sleep.
        fence(Ordering::SeqCst);
        self.wake();
    }

    /// Forgets what was reserved and not published.
    pub fn forget(&mut self) {
        self.open = self.tail;
    }

    fn wake(&self) {
        let Some(asleep) = self.section.word(at::ASLEEP) else { return };
        if asleep.load(Ordering::Relaxed) != 0 {
            asleep.store(0, Ordering::Relaxed);
            // A full counter is a ring as well.
            let _ = sys::io::write(self.bell.as_fd(), &1_u64.to_ne_bytes());
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(ended) = self.section.word(at::ENDED) {
            ended.store(1, Ordering::Release);
        }
        fence(Ordering::SeqCst);
        self.wake();
    }
}

/// What a writer counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Frames that it was to record.
    pub seen: u64,
    /// Those that found no room.
    pub lost: u64,
}

/// What is in a spool cannot be: its writer is not to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// The reading side of a section.
#[derive(Debug)]
pub struct Reader {
    section: Section,
    head: u64,
    /// What may be read, at the last look.
    tail: u64,
}

impl Reader {
    /// Reads a section of `memory`, which has so many, from its start.
    ///
    /// # Errors
    /// The kernel's, from mapping it.
    pub fn new(memory: &OwnedFd, section: u16, sections: u16) -> io::Result<Self> {
        Ok(Self { section: Section::map(memory, section, room(sections))?, head: 0, tail: 0 })
    }

    /// The next record without its length, which stays until [`Reader::pass`]; none: there is none now.
    ///
    /// # Errors
    /// What cannot be.
    pub fn peek(&mut self) -> Result<Option<Seg>, Broken> {
        loop {
            if self.head == self.tail {
                let tail = self.section.load(at::TAIL, Ordering::Acquire);
                if tail < self.head
                    || tail - self.head > u64::from(self.section.room)
                    || !tail.is_multiple_of(8)
                {
                    return Err(Broken);
                }
                self.tail = tail;
                if self.head == tail {
                    return Ok(None);
                }
            }
            let left = self.section.room - self.section.place(self.head);
            let len = self.length()?;
            if len != PASS {
                let whole = len.checked_next_multiple_of(8).filter(|n| len >= 4 && *n <= left.min(LONGEST));
                let whole = whole.filter(|n| u64::from(*n) <= self.tail - self.head).ok_or(Broken)?;
                return Ok(Some(self.section.bytes(self.head).take(whole).take(len).skip(4)));
            }
            if u64::from(left) > self.tail - self.head {
                return Err(Broken);
            }
            self.head += u64::from(left);
        }
    }

    fn length(&self) -> Result<u32, Broken> {
        self.section.bytes(self.head).first().map(u32::from_le_bytes).ok_or(Broken)
    }

    /// Passes the record of `len` bytes that [`Reader::peek`] gave: its room is the writer's again at the next
    /// [`Reader::give_back`].
    pub fn pass(&mut self, len: u32) {
        // The length as it was when it was checked, and not as it may be now.
        let whole = u64::from(len) + 4;
        self.head = (self.head + whole.next_multiple_of(8)).min(self.tail);
    }

    /// Gives the room of what was passed back.
    pub fn give_back(&self) {
        self.section.store(at::HEAD, self.head, Ordering::Release);
    }

    /// What the writer counts, as far as it says so.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let load = |at| self.section.load(at, Ordering::Relaxed);
        Counts { seen: load(at::SEEN), lost: load(at::LOST) }
    }

    /// The writer will write no more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.section.word(at::ENDED).is_none_or(|e| e.load(Ordering::Acquire) != 0)
    }

    /// Says that the reader is about to sleep. False: do not, there is something to read.
    #[must_use]
    pub fn may_sleep(&self) -> bool {
        if let Some(asleep) = self.section.word(at::ASLEEP) {
            asleep.store(1, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
        self.section.load(at::TAIL, Ordering::Acquire) == self.tail && self.head == self.tail
    }
}

#[cfg(test)]
#[path = "spool_tests.rs"]
mod tests;
