//! The system calls and shared memory that the benches' own AF_XDP, tap and vhost-user loops need: the only unsafe
//! folder of this crate.
//!
//! Trust: the kernel, and a peer that maps the same memory. Promise: every function here is safe to call with any
//! argument.

mod link;
mod shm;
mod xdp;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

pub use link::{bound_tap, packet_reader, packet_send, packet_socket, tap, tap_with_header};
pub use shm::{Shm, memfd, read_into, write_from};
pub use xdp::{
    bpf_link, bpf_map, bpf_map_set, bpf_prog, bpf_run_live, xdp_bind, xdp_get, xdp_kick, xdp_set, xsk_socket,
};

/// Turns a system call's result into a descriptor.
fn fd(r: i64) -> io::Result<OwnedFd> {
    if r < 0 {
        return Err(io::Error::last_os_error());
    }
    let raw = i32::try_from(r).map_err(io::Error::other)?;
    // SAFETY: a descriptor that the kernel has just given to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Turns a system call's result into success.
fn ok(r: i64) -> io::Result<()> {
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether this descriptor is readable, or writable if that is what is asked, at this moment.
#[must_use]
pub fn is_ready(fd: RawFd, writable: bool) -> bool {
    let events = if writable { libc::POLLOUT } else { libc::POLLIN };
    let mut one = libc::pollfd { fd, events, revents: 0 };
    // SAFETY: the kernel reads and writes one pollfd.
    unsafe { libc::poll(&raw mut one, 1, 0) == 1 }
}

/// Runs at the best niceness that root has, this process and its future children.
///
/// # Errors
/// EACCES without CAP_SYS_NICE.
pub fn first_in_line() -> io::Result<()> {
    // SAFETY: plain numbers.
    ok(i64::from(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) }))
}

/// Puts the calling thread before every ordinary thread of its processor (SCHED_FIFO, lowest priority). It must sleep.
///
/// # Errors
/// EPERM without CAP_SYS_NICE.
pub fn real_time() -> io::Result<()> {
    let p = libc::sched_param { sched_priority: 1 };
    // SAFETY: the kernel reads one sched_param.
    ok(i64::from(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const p) }))
}

/// Options that every IPv4 packet of a socket carries from now on (`IP_OPTIONS`, ip(7)).
///
/// # Errors
/// What setsockopt(2) says.
pub fn ip_options(fd: BorrowedFd<'_>, options: &[u8]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(options.len()).map_err(io::Error::other)?;
    let (level, name) = (libc::IPPROTO_IP, libc::IP_OPTIONS);
    // SAFETY: the slice has `len` bytes and outlives the call.
    match unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, options.as_ptr().cast(), len) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
