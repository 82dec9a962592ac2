//! The dataplane's own buffers: memory that no one else changes, in the same form as memory that others do.
//!
//! Promise: a buffer never moves and lives as long as its [`Buf`]; runs are cut inside its bounds. Its owner (a port,
//! or a lane's pool) lives longer than any turn in which its runs are used.

use std::io;
use std::ptr::{self, NonNull};

use crate::landing::Landing;
use crate::mem::Seg;

/// A page-aligned, zeroed buffer of our own.
#[derive(Debug)]
pub struct Buf {
    at: NonNull<u8>,
    len: u32,
}

// SAFETY: a Buf is the only owner of its mapping; access is by copying through Seg only.
unsafe impl Send for Buf {}

impl Buf {
    /// A buffer of `len` bytes. Its pages are touched now: a page fault in a turn is dear, and out of memory is said
    /// here.
    ///
    /// # Errors
    /// No memory, or `len` is zero.
    pub fn new(len: u32) -> io::Result<Self> {
        Self::map(len, libc::MAP_POPULATE)
    }

    /// A buffer whose pages are made when they are first touched: for room that is rarely needed.
    ///
    /// # Errors
    /// No addresses, or `len` is zero.
    pub fn reserve(len: u32) -> io::Result<Self> {
        Self::map(len, libc::MAP_NORESERVE)
    }

    fn map(len: u32, how: libc::c_int) -> io::Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | how;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let at = unsafe { libc::mmap(ptr::null_mut(), len as usize, prot, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { at, len })
    }

    /// Bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a buffer is never empty")]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// The `len` bytes from `at` on, cut at the buffer's end.
    #[must_use]
    #[inline]
    pub fn seg(&self, at: u32, len: u32) -> Seg {
        // SAFETY: the whole buffer is mapped until drop.
        let whole = unsafe { Seg::new(self.at.as_ptr(), self.len) };
        whole.skip(at).take(len)
    }

    /// Moves `len` bytes from `from` to `to` inside the buffer; the ranges may overlap. Cut at the buffer's end.
    pub fn shift(&self, from: u32, to: u32, len: u32) {
        self.seg(to, len).copy_from(&self.seg(from, len));
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        // SAFETY: the mapping is this Buf's own, with this length; an error cannot be acted upon.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len as usize) };
    }
}

/// A lane's pool: where frames land when their taker lends no memory. Lent anew for each batch that is received; a
/// batch that the taker did not take whole stays in it until it is gone, so the lane lends again only then.
#[derive(Debug)]
pub struct Pool {
    buf: Buf,
}

impl Pool {
    /// Bytes that hold four 64 KiB super-frames or a whole batch of 1514-byte frames. Small on purpose: it stays in
    /// the second-level cache, and the first part of it is used most.
    pub const BYTES: u32 = 320 * 1024;

    /// A pool of `len` bytes.
    ///
    /// # Errors
    /// No memory.
    pub fn new(len: u32) -> io::Result<Self> {
        Ok(Self { buf: Buf::new(len)? })
    }

    /// Lends all of it. No frame may still wait in it.
    pub fn lend(&self, landing: &mut Landing) {
        landing.open_pool(self.buf.seg(0, self.buf.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_stay_inside() {
        let b = Buf::new(100).unwrap();
        assert_eq!(b.seg(0, u32::MAX).len(), 100);
        assert_eq!(b.seg(90, 50).len(), 10);
        assert_eq!(b.seg(100, 1).len(), 0);
        assert_eq!(b.seg(u32::MAX, u32::MAX).len(), 0);
        assert!(Buf::new(0).is_err());
    }

    #[test]
    fn shift_moves_overlapping_bytes() {
        let b = Buf::new(8).unwrap();
        b.seg(0, 8).copy_in(&[1, 2, 3, 4, 5, 6, 7, 8]);
        b.shift(2, 0, 6);
        let mut out = [0; 8];
        b.seg(0, 8).copy_out(&mut out);
        assert_eq!(out, [3, 4, 5, 6, 7, 8, 7, 8]);
    }

    #[test]
    fn a_pool_lends_all_of_itself_again_and_again() {
        let p = Pool::new(4096).unwrap();
        let mut l = Landing::new();
        for _ in 0..3 {
            p.lend(&mut l);
            let mut out = Vec::new();
            assert_eq!(l.room(u32::MAX, &mut out), 4096);
            l.land(4096);
            assert!(!l.is_open());
        }
    }
}
