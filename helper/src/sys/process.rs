//! The process itself: what it inherited from whoever started it, and who is at the other end of a socket.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

/// The kernel started this program with more rights than its caller has (setuid, setgid or file capabilities).
pub(crate) fn is_elevated() -> bool {
    // SAFETY: getauxval reads a table that the kernel has made before main.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}

/// Takes over an inherited descriptor, close-on-exec from now on. None if there is none of that number.
///
/// To be called at start, before anything else could own the number, and once for each.
pub(crate) fn inherit(number: RawFd) -> Option<OwnedFd> {
    // SAFETY: F_SETFD takes no pointer and fails on a number that is not open.
    let done = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    if number < 0 || done < 0 {
        return None;
    }
    // SAFETY: open, as just seen, and ours alone, as the contract above says.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Closes every descriptor from 3 up but `keep`.
pub(crate) fn close_others(keep: Option<RawFd>) {
    let keep = keep.and_then(|k| u32::try_from(k).ok()).filter(|k| *k > 2);
    let ranges = keep.map_or([(3, u32::MAX); 2], |keep| [(3, keep - 1), (keep + 1, u32::MAX)]);
    for (first, last) in ranges {
        // SAFETY: no pointers. Called at start: nothing in this process owns these numbers yet. (close_range cannot fail
        // with these arguments on kernels that have it, 5.9, but for a range that ends before it begins.)
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// Forgets the environment.
pub(crate) fn clear_environment() {
    // SAFETY: the process has one thread and holds no pointer into the environment.
    unsafe { libc::clearenv() };
}

/// Default dispositions for every signal but `SIGPIPE` (ignored, as Rust's runtime has it): a caller may have started
/// us with some ignored.
pub(crate) fn default_signals() {
    for signal in (1..=64).filter(|s| *s != libc::SIGPIPE) {
        // SAFETY: SIG_DFL installs no handler; numbers that cannot be changed are refused.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}

/// The supplementary groups of a socket's peer, as they were when it connected (`SO_PEERGROUPS`, 4.13).
pub(crate) fn peer_groups(socket: BorrowedFd<'_>) -> nix::Result<Vec<u32>> {
    // NGROUPS_MAX; what is longer is refused (ERANGE), never cut.
    let mut groups = vec![0_u32; 65536];
    let mut size = libc::socklen_t::try_from(size_of_val(groups.as_slice())).map_err(|_| Errno::ERANGE)?;
    let to = groups.as_mut_ptr().cast();
    // SAFETY: `to` points to `size` writable bytes, every pattern of which is a u32.
    let answer = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERGROUPS, to, &raw mut size)
    };
    Errno::result(answer)?;
    groups.truncate(usize::try_from(size).map_err(|_| Errno::ERANGE)? / size_of::<u32>());
    Ok(groups)
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;
