//! Memory shared with a kernel or a peer.
//!
//! Trust: a peer's indices are masked or checked by the callers. Promise: an offset outside a mapping reads as 0 and
//! writes nothing, so that a broken peer gives wrong figures, never a crash.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::{fd, ok};

/// Memory that the kernel or another process changes under us. Offsets are in bytes.
#[derive(Debug)]
pub struct Shm {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to no thread; words are reached as atomics, bytes by copies that form no reference.
unsafe impl Send for Shm {}
// SAFETY: as above; concurrent byte copies are as racy as the peer's own, and their bytes are never relied on.
unsafe impl Sync for Shm {}

impl Shm {
    /// Maps `len` bytes of `fd` from `offset`, shared and populated; without `fd`, anonymous memory.
    ///
    /// # Errors
    /// What mmap(2) says.
    pub fn map(fd: Option<BorrowedFd<'_>>, len: usize, offset: i64) -> io::Result<Self> {
        let (raw, anon) = fd.map_or((-1, libc::MAP_ANONYMOUS), |f| (f.as_raw_fd(), 0));
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_POPULATE | anon;
        // SAFETY: a new mapping at an address that the kernel chooses touches no memory of ours.
        let p = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, raw, offset) };
        if p == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(p.cast::<u8>()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { base, len })
    }

    /// Bytes mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Nothing is mapped (never true: mmap(2) refuses length 0).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of the mapping, for a kernel interface that wants it as a number.
    #[must_use]
    pub fn addr(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// A pointer to `n` aligned bytes at `off`.
    #[inline]
    fn at(&self, off: usize, n: usize) -> Option<NonNull<u8>> {
        if off.checked_add(n)? > self.len || off & (n - 1) != 0 {
            return None;
        }
        // SAFETY: checked above to lie inside the mapping.
        Some(unsafe { self.base.add(off) })
    }

    /// The word at `off`, Acquire.
    #[must_use]
    #[inline]
    pub fn load16(&self, off: usize) -> u16 {
        // SAFETY: inside the mapping and aligned (`at`), and only ever reached as an atomic.
        self.at(off, 2)
            .map_or(0, |p| unsafe { AtomicU16::from_ptr(p.as_ptr().cast()) }.load(Ordering::Acquire))
    }

    /// Sets the word at `off`, Release.
    #[inline]
    pub fn store16(&self, off: usize, v: u16) {
        if let Some(p) = self.at(off, 2) {
            // SAFETY: as in `load16`.
            unsafe { AtomicU16::from_ptr(p.as_ptr().cast()) }.store(v, Ordering::Release);
        }
    }

    /// The word at `off`, Acquire.
    #[must_use]
    #[inline]
    pub fn load32(&self, off: usize) -> u32 {
        // SAFETY: as in `load16`.
        self.at(off, 4)
            .map_or(0, |p| unsafe { AtomicU32::from_ptr(p.as_ptr().cast()) }.load(Ordering::Acquire))
    }

    /// Sets the word at `off`, Release.
    #[inline]
    pub fn store32(&self, off: usize, v: u32) {
        if let Some(p) = self.at(off, 4) {
            // SAFETY: as in `load16`.
            unsafe { AtomicU32::from_ptr(p.as_ptr().cast()) }.store(v, Ordering::Release);
        }
    }

    /// The word at `off`, Acquire.
    #[must_use]
    #[inline]
    pub fn load64(&self, off: usize) -> u64 {
        // SAFETY: as in `load16`.
        self.at(off, 8)
            .map_or(0, |p| unsafe { AtomicU64::from_ptr(p.as_ptr().cast()) }.load(Ordering::Acquire))
    }

    /// Sets the word at `off`, Release.
    #[inline]
    pub fn store64(&self, off: usize, v: u64) {
        if let Some(p) = self.at(off, 8) {
            // SAFETY: as in `load16`.
            unsafe { AtomicU64::from_ptr(p.as_ptr().cast()) }.store(v, Ordering::Release);
        }
    }

    /// Asks the processor for the two cache lines at `off`, which another core has written.
    #[inline]
    pub fn prefetch(&self, off: usize) {
        #[cfg(target_arch = "x86_64")]
        for off in [off, off + 64] {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a hint, which no address can make fail.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.base.as_ptr().wrapping_add(off).cast()) };
        }
    }

    /// Copies `bytes` in at `off`; false if they do not fit.
    #[inline]
    pub fn put(&self, off: usize, bytes: &[u8]) -> bool {
        if off.checked_add(bytes.len()).is_none_or(|end| end > self.len) {
            return false;
        }
        // SAFETY: inside the mapping, checked above.
        let to = unsafe { self.base.add(off) };
        // SAFETY: both sides have `bytes.len()` bytes; a Rust slice cannot overlap a mapping that only we point into.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.as_ptr(), bytes.len()) };
        true
    }

    /// Copies bytes from `off` out; false if the mapping has fewer.
    #[inline]
    pub fn get(&self, off: usize, bytes: &mut [u8]) -> bool {
        if off.checked_add(bytes.len()).is_none_or(|end| end > self.len) {
            return false;
        }
        // SAFETY: inside the mapping, checked above.
        let from = unsafe { self.base.add(off) };
        // SAFETY: as in `put`.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
        true
    }
}

impl Shm {
    /// A pointer to `len` bytes at `off`, for a system call.
    fn span(&self, off: usize, len: u32) -> io::Result<(NonNull<u8>, usize)> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        if off.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: inside the mapping, checked above.
        Ok((unsafe { self.base.add(off) }, len))
    }
}

impl Drop for Shm {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping made in `map`; nothing borrows from it.
        unsafe { libc::munmap(self.base.as_ptr().cast::<c_void>(), self.len) };
    }
}

/// Reads once from `fd` into at most `len` bytes of `mem` at `off`; says how many came.
///
/// # Errors
/// read(2)'s; `InvalidInput` if the bytes are not in the mapping.
pub fn read_into(fd: BorrowedFd<'_>, mem: &Shm, off: usize, len: u32) -> io::Result<usize> {
    let (at, len) = mem.span(off, len)?;
    // SAFETY: `span` has checked that these bytes are in the mapping; no reference to them exists.
    let n = unsafe { libc::read(fd.as_raw_fd(), at.as_ptr().cast(), len) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Writes `len` bytes of `mem` at `off` to `fd` by one call; says how many went.
///
/// # Errors
/// write(2)'s; `InvalidInput` if the bytes are not in the mapping.
pub fn write_from(fd: BorrowedFd<'_>, mem: &Shm, off: usize, len: u32) -> io::Result<usize> {
    let (at, len) = mem.span(off, len)?;
    // SAFETY: `span` has checked that these bytes are in the mapping.
    let n = unsafe { libc::write(fd.as_raw_fd(), at.as_ptr().cast(), len) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// A memfd of `len` bytes that cannot shrink or grow, as QEMU's guest memory.
///
/// # Errors
/// What the kernel says.
pub fn memfd(len: usize) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string; the call touches no other memory.
    let f = fd(i64::from(unsafe {
        libc::memfd_create(c"bench".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING)
    }))?;
    let size = i64::try_from(len).map_err(io::Error::other)?;
    // SAFETY: plain numbers.
    ok(i64::from(unsafe { libc::ftruncate(f.as_raw_fd(), size) }))?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: plain numbers.
    ok(i64::from(unsafe { libc::fcntl(f.as_raw_fd(), libc::F_ADD_SEALS, seals) }))?;
    Ok(f)
}
