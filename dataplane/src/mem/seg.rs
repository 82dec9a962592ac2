//! A run of bytes in somebody's memory.
//!
//! Promise: a [`Seg`] is made only inside `mem`, by code that checked its bounds against a mapping; whoever makes one
//! keeps the mapping alive until the turn in which it was made has ended. A `Seg` is `Copy` and carries no lifetime,
//! because guest memory cannot be borrowed: the guest writes whenever it likes.

use std::ptr;

/// A run of bytes that others may change: copied in and out or handed to the kernel, never borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Seg {
    ptr: *mut u8,
    len: u32,
}

// SAFETY: a Seg is an address; all access goes through its methods, which need no exclusive ownership (the bytes are
// shared with other processes anyway), and its maker keeps the mapping alive for the turn.
unsafe impl Send for Seg {}

impl Seg {
    /// An empty run.
    pub const EMPTY: Self = Self { ptr: ptr::null_mut(), len: 0 };

    /// # Safety
    /// `len` bytes from `ptr` are mapped, readable and writable, and stay so until the end of the turn.
    #[must_use]
    pub unsafe fn new(ptr: *mut u8, len: u32) -> Self {
        Self { ptr, len }
    }

    /// A test's own bytes, which the test keeps alive for the turn.
    #[cfg(test)]
    pub(crate) fn over(bytes: &mut [u8]) -> Self {
        Self { ptr: bytes.as_mut_ptr(), len: u32::try_from(bytes.len()).unwrap() }
    }

    /// Bytes.
    #[must_use]
    #[inline]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// No bytes.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The run without its first `n` bytes (empty if it has fewer).
    #[must_use]
    #[inline]
    pub fn skip(&self, n: u32) -> Self {
        let n = n.min(self.len);
        Self { ptr: self.ptr.wrapping_add(n as usize), len: self.len - n }
    }

    /// The first `n` bytes at most.
    #[must_use]
    #[inline]
    pub fn take(&self, n: u32) -> Self {
        Self { ptr: self.ptr, len: self.len.min(n) }
    }

    /// Copies the first bytes out; says how many.
    #[inline]
    pub fn copy_out(&self, to: &mut [u8]) -> usize {
        let n = (self.len as usize).min(to.len());
        // SAFETY: n bytes are mapped at ptr (type invariant) and fit `to`; `to` is a Rust slice, which shared memory is
        // never lent as, so the two do not overlap.
        unsafe { ptr::copy_nonoverlapping(self.ptr, to.as_mut_ptr(), n) };
        n
    }

    /// Copies bytes in at the front; says how many.
    #[inline]
    pub fn copy_in(&self, from: &[u8]) -> usize {
        let n = (self.len as usize).min(from.len());
        // SAFETY: as for copy_out, with the roles exchanged.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), self.ptr, n) };
        n
    }

    /// Copies another run's first bytes to the front of this one; says how many. The runs may overlap.
    #[inline]
    pub fn copy_from(&self, from: &Self) -> u32 {
        let n = self.len.min(from.len);
        // SAFETY: n bytes are mapped at both (type invariant); `copy` allows overlap, which a guest can arrange.
        unsafe { ptr::copy(from.ptr, self.ptr, n as usize) };
        n
    }

    /// The form that `readv` and its kin take.
    #[must_use]
    #[inline]
    pub fn iovec(&self) -> libc::iovec {
        libc::iovec { iov_base: self.ptr.cast(), iov_len: self.len as usize }
    }

    /// The address, for code inside `mem` and `sys`.
    #[inline]
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }
}
