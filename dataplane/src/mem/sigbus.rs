//! What happens when a mapping's file is cut short under us.
//!
//! Whoever hands us a file to map can truncate it later; touching the lost pages raises SIGBUS, which would end the
//! process and with it every other device. The handler here looks the address up in a table of mappings, puts
//! anonymous zero pages over the whole mapping and marks it broken; its owner finds the mark at the end of its turn
//! and closes the device. A SIGBUS at any other address gets the default action.
//!
//! Trust: none; a guest may raise this at any moment. Promise: the handler takes no lock, allocates nothing, and
//! makes one `mmap` call ([`CALLS`]).

use std::io;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use crate::sandbox::call::{Call, Cond};

/// The system calls of the handler and of the return from it.
pub const CALLS: &[Call] = &[
    Call::only(libc::SYS_mmap, &[Cond::without(2, libc::PROT_EXEC as u64)]),
    Call::any(libc::SYS_rt_sigreturn),
    // A SIGBUS that is not ours: back to the default action.
    Call::only(libc::SYS_rt_sigaction, &[Cond::is(0, libc::SIGBUS as u32)]),
];

/// Most mappings that can be watched in one process: 64 regions for each of 16 devices.
const SLOTS: usize = 1024;

struct Slot {
    taken: AtomicBool,
    start: AtomicUsize,
    /// Bytes; 0 while the slot is free or being changed.
    len: AtomicUsize,
    broken: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        broken: AtomicBool::new(false),
    }
}; SLOTS];

/// Mappings replaced since the process started.
static HITS: AtomicU32 = AtomicU32::new(0);
static INSTALL: Once = Once::new();

/// A mapping that the handler knows; forgotten on drop, which must come before the unmapping.
#[derive(Debug)]
pub(super) struct Guard {
    slot: usize,
}

impl Guard {
    /// Enters a mapping of `len` bytes at `start`, and installs the handler the first time.
    pub(super) fn new(start: usize, len: usize) -> io::Result<Self> {
        INSTALL.call_once(install);
        for (i, s) in TABLE.iter().enumerate() {
            if s.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                s.broken.store(false, Ordering::Relaxed);
                s.start.store(start, Ordering::Relaxed);
                s.len.store(len, Ordering::Release);
                return Ok(Self { slot: i });
            }
        }
        Err(io::Error::from_raw_os_error(libc::ENOSPC))
    }

    /// The mapping was replaced by zero pages.
    pub(super) fn broken(&self) -> bool {
        TABLE.get(self.slot).is_some_and(|s| s.broken.load(Ordering::Acquire))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(s) = TABLE.get(self.slot) {
            s.len.store(0, Ordering::Release);
            s.taken.store(false, Ordering::Release);
        }
    }
}

/// How many mappings were replaced so far, in the whole process. A cheap question for the end of a turn: only when the
/// answer has changed need an owner look at its own mappings.
#[must_use]
#[inline]
pub fn hits() -> u32 {
    HITS.load(Ordering::Acquire)
}

/// Installs the handler. Ports call it (by mapping something) before the sandbox is closed.
pub fn install_now() {
    INSTALL.call_once(install);
}

fn install() {
    // SAFETY: an all-zero sigaction is a valid value (empty mask, no flags).
    let mut act: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    act.sa_sigaction = handler as usize;
    act.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler is async-signal-safe (atomics and raw system calls only) and has the SA_SIGINFO signature.
    // It cannot fail with these arguments.
    unsafe { libc::sigaction(libc::SIGBUS, &raw const act, ptr::null_mut()) };
}

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a valid siginfo_t.
    let info = unsafe { &*info };
    // SAFETY: for SIGBUS the address member is the one that is set.
    let addr = unsafe { info.si_addr() } as usize;
    // Only faults: a SIGBUS that another process sent carries no address.
    if info.si_code > 0 && replace(addr) {
        return;
    }
    // SAFETY: an all-zero sigaction is SIG_DFL with an empty mask; on return the access faults again and ends us.
    let act: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: `act` is valid and nothing is written back.
    unsafe { libc::sigaction(libc::SIGBUS, &raw const act, ptr::null_mut()) };
}

/// Covers the mapping around `addr` with zero pages, if it is one of ours.
fn replace(addr: usize) -> bool {
    for s in &TABLE {
        let len = s.len.load(Ordering::Acquire);
        let start = s.start.load(Ordering::Relaxed);
        // Read again: another thread may have given the slot to another mapping in between.
        if addr.wrapping_sub(start) >= len || s.len.load(Ordering::Acquire) != len {
            continue;
        }
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: start and len are those of a mapping that its owner made and still holds (it leaves the table
        // first), so MAP_FIXED replaces nothing else.
        let got = unsafe { libc::mmap(ptr::with_exposed_provenance_mut(start), len, prot, flags, -1, 0) };
        if got == libc::MAP_FAILED {
            return false;
        }
        s.broken.store(true, Ordering::Release);
        HITS.fetch_add(1, Ordering::AcqRel);
        return true;
    }
    false
}
