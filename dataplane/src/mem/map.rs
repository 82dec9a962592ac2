//! A shared mapping of a descriptor, unmapped when dropped.
//!
//! Promise: a place that is given out lies inside the mapping and is aligned.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

/// The mapping.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) at: NonNull<u8>,
    pub(super) len: usize,
}

// SAFETY: a Shared is the only owner of its mapping; access is atomic, volatile, or by copying through Seg.
unsafe impl Send for Shared {}

impl Shared {
    pub(super) fn map(fd: BorrowedFd<'_>, len: usize, offset: u64) -> io::Result<Self> {
        Self::map_with(fd, len, offset, libc::MAP_POPULATE)
    }

    /// Pages are made when they are first touched.
    pub(super) fn map_lazily(fd: BorrowedFd<'_>, len: usize, offset: u64) -> io::Result<Self> {
        Self::map_with(fd, len, offset, 0)
    }

    fn map_with(fd: BorrowedFd<'_>, len: usize, offset: u64, how: libc::c_int) -> io::Result<Self> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | how;
        let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let at = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, fd.as_raw_fd(), offset) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { at, len })
    }

    /// The place of a `T`; none if it is not inside or not aligned.
    pub(super) fn place<T>(&self, offset: usize) -> Option<*mut T> {
        let end = offset.checked_add(size_of::<T>())?;
        let at = self.at.as_ptr().wrapping_add(offset).cast::<T>();
        (end <= self.len && at.is_aligned()).then_some(at)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping is this Shared's own, with this length; an error cannot be acted upon.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.len) };
    }
}
