//! Options of a tap's descriptor (`linux/if_tun.h`). None of them needs a privilege beyond holding the descriptor.

use std::io::{Error, Result};
use std::os::fd::{AsRawFd, BorrowedFd};

/// `TUNSETOFFLOAD`: what the reader of the descriptor lets the kernel leave undone.
pub const SET_OFFLOAD: u32 = request(libc::TUNSETOFFLOAD);
/// `TUNSETVNETHDRSZ`: bytes of virtio-net header before each frame.
pub const SET_VNET_HEADER: u32 = request(libc::TUNSETVNETHDRSZ);
/// `TUNSETVNETLE`: the header's fields are little-endian, as virtio 1 has them.
pub const SET_VNET_LE: u32 = request(libc::TUNSETVNETLE);
/// `TUNGETVNETHDRSZ`: asks for it.
pub const GET_VNET_HEADER: u32 = request(libc::TUNGETVNETHDRSZ);
/// `TUNGETIFF`: asks for name and flags.
pub const GET_INTERFACE: u32 = request(libc::TUNGETIFF);

/// `ioctl`'s request is an int in the kernel; its C type differs between libraries.
#[allow(clippy::cast_possible_truncation, reason = "a request has 32 bits (asm-generic/ioctl.h)")]
#[allow(clippy::unnecessary_cast, reason = "the C type is unsigned long in glibc and int in musl")]
#[allow(clippy::cast_sign_loss, reason = "the same bits")]
const fn request(r: libc::Ioctl) -> u32 {
    r as u32
}

/// An option of which the kernel reads one int through a pointer.
fn set(fd: BorrowedFd<'_>, what: u32, value: libc::c_int) -> Result<()> {
    // SAFETY: the callers pass requests that read one int, and `value` is one and outlives the call.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), libc::Ioctl::from(what), &raw const value) };
    if r < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Which offloads (`TUN_F_*`) frames read from it may leave to the reader. Holds for all queues of the device.
///
/// # Errors
/// `EINVAL` for a bit that this kernel does not know.
pub fn set_offload(fd: BorrowedFd<'_>, bits: u32) -> Result<()> {
    // SAFETY: the one request whose argument is the value itself: nothing is read through it.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), libc::Ioctl::from(SET_OFFLOAD), libc::c_ulong::from(bits)) };
    if r < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Sets the virtio-net header's length in bytes. Holds for all queues of the device.
///
/// # Errors
/// The kernel's; `EINVAL` below 10.
pub fn set_vnet_header(fd: BorrowedFd<'_>, bytes: u8) -> Result<()> {
    set(fd, SET_VNET_HEADER, bytes.into())
}

/// The virtio-net header's length in bytes. It says nothing of whether the tap has one (`IFF_VNET_HDR`).
///
/// # Errors
/// The kernel's.
pub fn vnet_header(fd: BorrowedFd<'_>) -> Result<i32> {
    let mut value: libc::c_int = 0;
    // SAFETY: TUNGETVNETHDRSZ writes one int, and `value` is one and outlives the call.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), libc::Ioctl::from(GET_VNET_HEADER), &raw mut value) };
    if r < 0 { Err(Error::last_os_error()) } else { Ok(value) }
}

/// The header's fields are little-endian, whatever the machine.
///
/// # Errors
/// The kernel's.
pub fn set_vnet_le(fd: BorrowedFd<'_>) -> Result<()> {
    set(fd, SET_VNET_LE, 1)
}
