//! Options and kicks of an AF_XDP socket (`linux/if_xdp.h`).

use std::io::{Error, ErrorKind, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Reads an option that is a structure of integers; the kernel must fill all of it.
fn option<T: Copy>(fd: BorrowedFd<'_>, name: libc::c_int) -> Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let size = libc::socklen_t::try_from(size_of::<T>()).map_err(|_| ErrorKind::InvalidInput)?;
    let mut len = size;
    let to = value.as_mut_ptr().cast();
    // SAFETY: `to` is good for `len` bytes and outlives the call.
    let r = unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_XDP, name, to, &raw mut len) };
    if r < 0 {
        return Err(Error::last_os_error());
    }
    if len < size {
        // Kernels before 5.4 have shorter ones, without the flags that tell when to kick.
        return Err(ErrorKind::Unsupported.into());
    }
    // SAFETY: zeroed and then written by the kernel; the callers' types are plain integers.
    Ok(unsafe { value.assume_init() })
}

/// Where in their mappings the rings' indices, flags and entries lie.
///
/// # Errors
/// The kernel's; `Unsupported` before kernel 5.4.
pub fn mmap_offsets(fd: BorrowedFd<'_>) -> Result<libc::xdp_mmap_offsets> {
    option(fd, libc::XDP_MMAP_OFFSETS)
}

/// What the kernel lost, since the socket was made.
///
/// # Errors
/// The kernel's; `Unsupported` before kernel 5.9.
pub fn statistics(fd: BorrowedFd<'_>) -> Result<libc::xdp_statistics> {
    option(fd, libc::XDP_STATISTICS)
}

/// Has the kernel look at the transmit ring. `EAGAIN`: it did some (copy mode has a budget).
///
/// # Errors
/// The kernel's.
pub fn kick_tx(fd: BorrowedFd<'_>) -> Result<()> {
    let (data, address) = (std::ptr::null(), std::ptr::null());
    // SAFETY: no data and no address.
    let r = unsafe { libc::sendto(fd.as_raw_fd(), data, 0, libc::MSG_DONTWAIT, address, 0) };
    if r < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Has the kernel look at the fill ring.
///
/// # Errors
/// The kernel's.
pub fn kick_rx(fd: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: all zero is a valid msghdr: no data and no address.
    let mut none: libc::msghdr = unsafe { std::mem::zeroed() };
    // SAFETY: the header is valid for the call, and it names no memory that the kernel could write to.
    let r = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut none, libc::MSG_DONTWAIT) };
    if r < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}
