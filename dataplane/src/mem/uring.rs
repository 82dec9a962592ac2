//! A ring of reads and writes that are all done when [`Calls::run`] returns.
//!
//! Many calls on one descriptor for the price of one: the caller lists them, they are submitted together, and every
//! one of them must complete before the list is given up, so that no pointer into anybody's memory outlives the turn.
//! Each carries `RWF_NOWAIT`: what cannot be done at once fails with `EAGAIN` and is not left to a poll or a kernel
//! thread, so nothing is ever waited for.
//!
//! Trust: the kernel, for the rings too: nobody else has them. Promise: the ring is confined when it is made, before the
//! lock-in ([`crate::sys::uring::confine`]): whoever takes this process over finds one that reads and writes the one
//! descriptor it was made for, which the process may do anyway.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::mem::Seg;
use crate::mem::map::Shared;
use crate::sys::uring::{self as sys, FIXED_FILE, GETEVENTS, OP_READ, OP_WRITE, OP_WRITEV, Params};

/// Most calls in a list.
pub const CALLS: usize = 64;
/// Most runs of memory in the writes of a list, and in one of them.
const RUNS: usize = 512;
/// Bytes that a call can bring along itself.
const OWN: usize = 160;
/// `RWF_NOWAIT` (`linux/fs.h`).
const NOWAIT: u32 = 8;
const OFF_SQ_RING: u64 = 0;
const OFF_SQES: u64 = 0x1000_0000;

/// `struct io_uring_sqe` as far as reads and writes use it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Entry {
    op: u8,
    flags: u8,
    priority: u16,
    fd: i32,
    offset: u64,
    addr: u64,
    len: u32,
    rw_flags: u32,
    user_data: u64,
    rest: [u64; 3],
}

/// `struct io_uring_cqe`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Done {
    user_data: u64,
    result: i32,
    flags: u32,
}

const _: () = {
    assert!(size_of::<Entry>() == 64);
    assert!(size_of::<Done>() == 16);
};

/// The ring.
#[derive(Debug)]
pub struct Uring {
    // Before the mappings: closing it ends everything that could still touch memory.
    fd: OwnedFd,
    rings: Shared,
    entries: Shared,
    sq_tail: NonNull<u32>,
    cq_head: NonNull<u32>,
    cq_tail: NonNull<u32>,
    cqes: NonNull<Done>,
    cq_mask: u32,
    /// The submission ring's producer index.
    tail: u32,
    runs: Vec<libc::iovec>,
    own: Box<[[u8; OWN]; CALLS]>,
    results: [i32; CALLS],
    /// A call went wrong that should not: the ring is not used any more.
    broken: bool,
}

// SAFETY: the pointers lead into the mappings that the ring owns; the list of runs is empty between calls of `run`.
unsafe impl Send for Uring {}

impl Uring {
    /// A ring that does nothing but read and write `fd`, from any thread.
    ///
    /// # Errors
    /// The kernel's, or `Unsupported`: io_uring is forbidden or too old, or `fd` cannot be used without waiting.
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let (ring, params) = sys::setup(u32::try_from(CALLS).unwrap_or(64))?;
        let mut ring = Self::map(ring, &params)?;
        sys::confine(ring.fd.as_fd(), fd, &[OP_WRITEV, OP_READ, OP_WRITE])?;
        // Reads nothing, but is refused where the file has no calls that do not wait (FMODE_NOWAIT).
        let mut calls = ring.calls();
        calls.read(&Seg::EMPTY);
        match calls.run() {
            Ok([0]) => Ok(ring),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn map(fd: OwnedFd, p: &Params) -> io::Result<Self> {
        let bad = || io::Error::from(io::ErrorKind::InvalidData);
        let n = |n: u32| usize::try_from(n).map_err(|_| bad());
        let (sq_len, cq_len) = (n(p.sq_entries)?, n(p.cq_entries)?);
        if sq_len < CALLS
            || cq_len < CALLS
            || !p.cq_entries.is_power_of_two()
            || !p.sq_entries.is_power_of_two()
        {
            return Err(bad());
        }
        let len = (n(p.sq.last)? + sq_len * size_of::<u32>()).max(n(p.cq.more)? + cq_len * size_of::<Done>());
        let rings = Shared::map(fd.as_fd(), len, OFF_SQ_RING)?;
        let entries = Shared::map(fd.as_fd(), sq_len * size_of::<Entry>(), OFF_SQES)?;
        let word = |at: u32| rings.place::<u32>(n(at)?).and_then(NonNull::new).ok_or_else(bad);
        let cqes = rings.place::<Done>(n(p.cq.more)?).and_then(NonNull::new).ok_or_else(bad)?;
        // Entry i is always submitted from place i.
        for i in 0..p.sq_entries {
            let at = word(p.sq.last + i * 4)?;
            // SAFETY: an aligned word inside the mapping; the kernel reads it only when entries are submitted.
            unsafe { at.as_ptr().write_volatile(i) };
        }
        let (sq_tail, cq_head, cq_tail) = (word(p.sq.tail)?, word(p.cq.head)?, word(p.cq.tail)?);
        Ok(Self {
            fd,
            sq_tail,
            cq_head,
            cq_tail,
            cqes,
            cq_mask: p.cq_entries - 1,
            tail: 0,
            runs: Vec::with_capacity(RUNS),
            own: Box::new([[0; OWN]; CALLS]),
            results: [0; CALLS],
            broken: false,
            rings,
            entries,
        })
    }

    /// An empty list of calls.
    pub fn calls(&mut self) -> Calls<'_, '_> {
        self.runs.clear();
        Calls { ring: self, n: 0, memory: PhantomData }
    }

    fn word(&self, at: NonNull<u32>) -> &AtomicU32 {
        debug_assert!(at.as_ptr().cast::<u8>() >= self.rings.at.as_ptr());
        // SAFETY: `map` found an aligned word inside the mapping, which lives as long as self; it is only ever accessed
        // atomically here and in the kernel.
        unsafe { AtomicU32::from_ptr(at.as_ptr()) }
    }

    /// Writes the entry of the `i`th call of a list.
    fn put(&self, i: usize, entry: Entry) {
        let at = (self.tail as usize + i) % (self.entries.len / size_of::<Entry>());
        if let Some(to) = self.entries.place::<Entry>(at * size_of::<Entry>()) {
            // SAFETY: an aligned place inside the mapping; the kernel reads it only once it is submitted.
            unsafe { to.write_volatile(entry) };
        }
    }

    /// Submits `n` calls and waits until all are done. Does not return before: the kernel may hold pointers.
    fn submit(&mut self, n: u32) -> io::Result<()> {
        self.tail = self.tail.wrapping_add(n);
        self.word(self.sq_tail).store(self.tail, Ordering::Release);
        let (mut submitted, mut done, mut trouble) = (0, 0, None);
        while done < n {
            let missing = submitted - done;
            // Calls that do not wait are done when they are submitted; should one not be, wait for it.
            let (wait, flags) = if missing > 0 { (missing, GETEVENTS) } else { (0, 0) };
            match sys::enter(self.fd.as_fd(), n - submitted, wait, flags) {
                Ok(0) if missing == 0 => trouble = Some(io::ErrorKind::WriteZero.into()),
                Ok(more) => submitted += more.min(n - submitted),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => trouble = Some(e),
            }
            done += self.reap();
            if trouble.is_some() && done == submitted {
                break;
            }
        }
        // What was not submitted stays in the ring, and nobody enters it again.
        self.broken = trouble.is_some();
        trouble.map_or(Ok(()), Err)
    }

    /// Notes the results that are there; says how many.
    fn reap(&mut self) -> u32 {
        let mut head = self.word(self.cq_head).load(Ordering::Relaxed);
        let n = self.word(self.cq_tail).load(Ordering::Acquire).wrapping_sub(head);
        for _ in 0..n {
            let at = self.cqes.as_ptr().wrapping_add((head & self.cq_mask) as usize);
            // SAFETY: the masked index lies inside the mapping (`map` sized it so); the kernel wrote it before the index.
            let d = unsafe { at.read_volatile() };
            if let Some(to) = usize::try_from(d.user_data).ok().and_then(|i| self.results.get_mut(i)) {
                *to = d.result;
            }
            head = head.wrapping_add(1);
        }
        self.word(self.cq_head).store(head, Ordering::Release);
        n
    }
}

/// A list of calls, not made before [`Calls::run`]. `'m` is the life of private memory in it.
pub struct Calls<'r, 'm> {
    ring: &'r mut Uring,
    n: usize,
    memory: PhantomData<&'m [u8]>,
}

impl<'r, 'm> Calls<'r, 'm> {
    /// Calls in the list.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a list is made to be filled")]
    pub fn len(&self) -> usize {
        self.n
    }

    fn push(&mut self, op: u8, addr: *const u8, len: usize) -> bool {
        let Ok(len) = u32::try_from(len) else { return false };
        let entry = Entry {
            op,
            flags: FIXED_FILE,
            priority: 0,
            fd: 0,
            offset: 0,
            addr: addr as u64,
            len,
            rw_flags: NOWAIT,
            user_data: self.n as u64,
            rest: [0; 3],
        };
        self.ring.put(self.n, entry);
        self.n += 1;
        true
    }

    /// Adds a read into one run. False: the list is full.
    pub fn read(&mut self, to: &Seg) -> bool {
        let v = to.iovec();
        self.n < CALLS && self.push(OP_READ, v.iov_base.cast(), v.iov_len)
    }

    /// Adds a write of `header` (copied), `head` and `body`. False: the list is full, or too short for this one.
    pub fn write(&mut self, header: &[u8], head: &'m [u8], body: &[Seg]) -> bool {
        if self.n >= CALLS {
            return false;
        }
        let short = body.is_empty() && header.len() + head.len() <= OWN;
        let first = self.ring.runs.len();
        let Some(own) = self.ring.own.get_mut(self.n) else { return false };
        let copied = header.len() + if short { head.len() } else { 0 };
        if copied > OWN || (!short && first + 2 + body.len() > RUNS) {
            return false;
        }
        for (from, at) in [(header, 0), (if short { head } else { &[] }, header.len())] {
            if let Some(to) = own.get_mut(at..at + from.len()) {
                to.copy_from_slice(from);
            }
        }
        let own = own.as_ptr();
        if short {
            return self.push(OP_WRITE, own, copied);
        }
        let private = [(own, header.len()), (head.as_ptr(), head.len())];
        let private = private.map(|(p, n)| libc::iovec { iov_base: p.cast_mut().cast(), iov_len: n });
        // The capacity is never exceeded, so the list does not move.
        self.ring.runs.extend(private.into_iter().filter(|v| v.iov_len > 0));
        self.ring.runs.extend(body.iter().map(Seg::iovec));
        let n = self.ring.runs.len() - first;
        let list = self.ring.runs.get(first).map_or(ptr::null(), ptr::from_ref);
        self.push(OP_WRITEV, list.cast(), n)
    }

    /// Makes the calls, in order; the result of each: bytes, or an error's number, negative.
    ///
    /// # Errors
    /// The ring is of no use any more. Some calls may have been made.
    pub fn run(self) -> io::Result<&'r [i32]> {
        if self.ring.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let n = u32::try_from(self.n).map_err(|_| io::ErrorKind::InvalidInput)?;
        // Whatever is not done says so.
        self.ring.results.fill(-libc::ECANCELED);
        let done = self.ring.submit(n);
        self.ring.runs.clear();
        done.map(|()| self.ring.results.get(..self.n).unwrap_or_default())
    }
}

#[cfg(test)]
#[path = "uring_tests.rs"]
mod tests;
