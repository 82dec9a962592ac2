//! A run of bytes in somebody's memory.
//!
//! Promise: a [`Seg`] is made only inside `mem`, by code that checked its bounds against a mapping; whoever makes one
//! keeps the mapping alive until the turn in which it was made has ended. A `Seg` is `Copy` and carries no lifetime,
//! because guest memory cannot be borrowed: the guest writes whenever it likes.

use std::ptr;

/// A run of bytes that others may change: copied in and out or handed to the kernel, never borrowed.
///
/// Its layout is that of `struct iovec` (checked below), so that `&[Seg]` goes to `readv` and `writev` as it is.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Seg {
    ptr: *mut u8,
    // Never above u32::MAX: a Seg is made and cut with u32 lengths only.
    len: usize,
}

const _: () = {
    assert!(size_of::<Seg>() == size_of::<libc::iovec>());
    assert!(align_of::<Seg>() == align_of::<libc::iovec>());
    assert!(std::mem::offset_of!(Seg, ptr) == std::mem::offset_of!(libc::iovec, iov_base));
    assert!(std::mem::offset_of!(Seg, len) == std::mem::offset_of!(libc::iovec, iov_len));
    assert!(size_of::<usize>() >= size_of::<u32>());
};

// SAFETY: a Seg is an address; all access goes through its methods, which need no exclusive ownership (the bytes are
// shared with other processes anyway), and its maker keeps the mapping alive for the turn.
unsafe impl Send for Seg {}

impl Default for Seg {
    fn default() -> Self {
        Self::EMPTY
    }
}

/// Copies up to two vectors of bytes without a call: headers and heads are short, and a call costs as much as they do.
///
/// # Safety
/// As for `ptr::copy_nonoverlapping`.
#[inline(always)]
#[allow(clippy::multiple_unsafe_ops_per_block, reason = "one of them runs, all for one reason")]
unsafe fn copy(from: *const u8, to: *mut u8, n: usize) {
    // SAFETY: in each arm both ends of the run have the arm's size; the caller vouches for the run.
    unsafe {
        // The longest first: heads are copied more often than anything shorter.
        if n > 128 {
            ptr::copy_nonoverlapping(from, to, n);
        } else if n >= 64 {
            ends::<64>(from, to, n);
        } else if n >= 32 {
            ends::<32>(from, to, n);
        } else if n >= 16 {
            ends::<16>(from, to, n);
        } else if n == 12 {
            // A virtio-net header, in the words that it was written in: they are read back while still on their way to
            // the cache, which only works for whole words.
            ptr::copy_nonoverlapping(from.cast::<[u8; 8]>(), to.cast(), 1);
            ptr::copy_nonoverlapping(from.add(8).cast::<[u8; 4]>(), to.add(8).cast(), 1);
        } else if n >= 8 {
            ends::<8>(from, to, n);
        } else if n >= 4 {
            ends::<4>(from, to, n);
        } else if n > 0 {
            ptr::copy_nonoverlapping(from, to, n);
        }
    }
}

/// Copies the first and the last `K` of `n` bytes, `K <= n <= 2 * K`: together, all of them.
///
/// # Safety
/// As for `ptr::copy_nonoverlapping`.
#[inline(always)]
#[allow(clippy::multiple_unsafe_ops_per_block, reason = "two copies at places with one reason")]
unsafe fn ends<const K: usize>(from: *const u8, to: *mut u8, n: usize) {
    // SAFETY: n >= K, so both places lie in the run, which the caller vouches for; alignment is not assumed.
    unsafe {
        ptr::copy_nonoverlapping(from.cast::<[u8; K]>(), to.cast(), 1);
        ptr::copy_nonoverlapping(from.add(n - K).cast::<[u8; K]>(), to.add(n - K).cast(), 1);
    }
}

impl Seg {
    /// An empty run.
    pub const EMPTY: Self = Self { ptr: ptr::null_mut(), len: 0 };

    /// # Safety
    /// `len` bytes from `ptr` are mapped, readable and writable, and stay so until the end of the turn.
    #[must_use]
    #[inline]
    pub unsafe fn new(ptr: *mut u8, len: u32) -> Self {
        Self { ptr, len: len as usize }
    }

    /// A test's own bytes, which the test keeps alive for the turn.
    #[cfg(test)]
    pub(crate) fn over(bytes: &mut [u8]) -> Self {
        Self { ptr: bytes.as_mut_ptr(), len: bytes.len() }
    }

    /// Bytes.
    #[must_use]
    #[inline]
    pub fn len(&self) -> u32 {
        u32::try_from(self.len).unwrap_or(u32::MAX)
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
        let n = (n as usize).min(self.len);
        Self { ptr: self.ptr.wrapping_add(n), len: self.len - n }
    }

    /// The first `n` bytes at most.
    #[must_use]
    #[inline]
    pub fn take(&self, n: u32) -> Self {
        Self { ptr: self.ptr, len: self.len.min(n as usize) }
    }

    /// Copies the first bytes out; says how many.
    #[inline]
    pub fn copy_out(&self, to: &mut [u8]) -> usize {
        let n = self.len.min(to.len());
        // SAFETY: n bytes are mapped at ptr (type invariant) and fit `to`; `to` is a Rust slice, which shared memory is
        // never lent as, so the two do not overlap.
        unsafe { copy(self.ptr, to.as_mut_ptr(), n) };
        n
    }

    /// The first `N` bytes, if there are so many.
    #[must_use]
    #[inline]
    pub fn first<const N: usize>(&self) -> Option<[u8; N]> {
        let mut to = [0; N];
        if self.len < N {
            return None;
        }
        // SAFETY: N bytes are mapped at ptr (type invariant), and `to` is our own.
        unsafe { copy(self.ptr, to.as_mut_ptr(), N) };
        Some(to)
    }

    /// Writes a little-endian word and one half as long behind it to the front. False: there is no room for them.
    #[inline]
    pub fn set_words(&self, low: u64, high: u32) -> bool {
        if self.len < 12 {
            return false;
        }
        // SAFETY: 12 bytes are mapped at ptr (type invariant); alignment is not assumed.
        unsafe { self.ptr.cast::<u64>().write_unaligned(low.to_le()) };
        // SAFETY: as above.
        unsafe { self.ptr.wrapping_add(8).cast::<u32>().write_unaligned(high.to_le()) };
        true
    }

    /// Copies bytes in at the front; says how many.
    #[inline]
    pub fn copy_in(&self, from: &[u8]) -> usize {
        let n = self.len.min(from.len());
        // SAFETY: as for copy_out, with the roles exchanged.
        unsafe { copy(from.as_ptr(), self.ptr, n) };
        n
    }

    /// Copies another run's first bytes to the front of this one; says how many. The runs may overlap.
    #[inline]
    pub fn copy_from(&self, from: &Self) -> u32 {
        let n = self.len.min(from.len);
        // SAFETY: n bytes are mapped at both (type invariant); `copy` allows overlap, which a guest can arrange.
        unsafe { ptr::copy(from.ptr, self.ptr, n) };
        u32::try_from(n).unwrap_or(u32::MAX)
    }

    /// Asks the processor for the first bytes, to be read soon: another core has written them.
    #[inline]
    pub fn prefetch(&self) {
        self.prefetch_at(0);
    }

    /// Asks the processor for the cache line `at` bytes from the start, which may lie behind the end.
    #[inline]
    pub fn prefetch_at(&self, at: usize) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint, which no address can make fail.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(self.ptr.wrapping_add(at).cast());
        }
    }

    /// Asks the processor for the first bytes, to be written soon: another core has read them.
    #[inline]
    pub fn prefetch_to_write(&self) {
        self.prefetch_to_write_at(0);
    }

    /// Asks the processor for the cache line `at` bytes from the start, which may lie behind the end.
    #[inline]
    pub fn prefetch_to_write_at(&self, at: usize) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint, which no address can make fail; processors that do not know it do nothing.
        unsafe {
            let at = self.ptr.wrapping_add(at);
            std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
        }
    }

    /// The form that `readv` and its kin take.
    #[must_use]
    #[inline]
    pub fn iovec(&self) -> libc::iovec {
        libc::iovec { iov_base: self.ptr.cast(), iov_len: self.len }
    }

    /// Where it lies, as a number: to compare, never to follow.
    #[must_use]
    #[inline]
    pub fn addr(&self) -> usize {
        self.ptr as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_short_length_is_copied_and_no_byte_more() {
        for n in 0..300usize {
            let mut from: Vec<u8> = (0..n + 2).map(|i| i as u8 | 1).collect();
            let mut to = vec![0; n + 2];
            let seg = Seg::over(&mut from).take(n as u32);
            assert_eq!(seg.copy_out(&mut to), n);
            assert_eq!(to[..n], from[..n]);
            assert_eq!(to[n..], [0, 0]);
            let mut back = vec![0; n + 2];
            let seg = Seg::over(&mut back).take(n as u32);
            assert_eq!(seg.copy_in(&to), n);
            assert_eq!(back, to);
        }
    }
}
