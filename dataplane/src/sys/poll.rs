//! `epoll_ctl(2)` by descriptor number: the worker watches descriptors that ports own.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use nix::sys::epoll::EpollFlags;

/// Changes what `epoll` watches `fd` for, from `was` to `want`; watching for nothing is not being registered, since
/// `EPOLLHUP` cannot be masked. A number that is no descriptor is an error, nothing worse.
///
/// # Errors
/// The kernel's, from `epoll_ctl`.
pub fn watch(
    epoll: BorrowedFd<'_>,
    fd: RawFd,
    was: EpollFlags,
    want: EpollFlags,
    token: u64,
) -> io::Result<()> {
    let op = match (was.is_empty(), want.is_empty()) {
        (true, true) => return Ok(()),
        (true, false) => libc::EPOLL_CTL_ADD,
        (false, true) => libc::EPOLL_CTL_DEL,
        (false, false) => libc::EPOLL_CTL_MOD,
    };
    let events = u32::from_ne_bytes(want.bits().to_ne_bytes());
    let mut event = libc::epoll_event { events, u64: token };
    // SAFETY: event is a valid epoll_event for the call; the kernel checks both descriptors.
    let done = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), op, fd, &raw mut event) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
