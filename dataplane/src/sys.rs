//! System calls of the data path that no safe wrapper gives: scatter/gather into memory that others change.
//!
//! Trust: the caller's segments were made by `mem`. Promise: each function is one call, short, and returns the
//! kernel's error as `io::Error`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `readv(2)` into raw buffers; the number of bytes read.
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// Every iovec describes mapped writable memory.
pub unsafe fn readv(fd: BorrowedFd<'_>, iov: &[libc::iovec]) -> io::Result<usize> {
    let n = libc::c_int::try_from(iov.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the caller vouches for the buffers; the slice itself is valid for n entries.
    let got = unsafe { libc::readv(fd.as_raw_fd(), iov.as_ptr(), n) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// `writev(2)` from raw buffers; the number of bytes written.
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// Every iovec describes mapped readable memory.
pub unsafe fn writev(fd: BorrowedFd<'_>, iov: &[libc::iovec]) -> io::Result<usize> {
    let n = libc::c_int::try_from(iov.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: the caller vouches for the buffers; the slice itself is valid for n entries.
    let put = unsafe { libc::writev(fd.as_raw_fd(), iov.as_ptr(), n) };
    usize::try_from(put).map_err(|_| io::Error::last_os_error())
}
