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
/// `TUNGETSNDBUF`: asks for what may be on its way through the stack.
const GET_SEND_BUFFER: u32 = request(libc::TUNGETSNDBUF);
/// `TUNGETIFF`: asks for name and flags.
pub const GET_INTERFACE: u32 = request(libc::TUNGETIFF);
/// `TUNSETQUEUE`: a queue of a multi-queue tap is taken out of use, or put back.
pub const SET_QUEUE: u32 = request(libc::TUNSETQUEUE);

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

/// An option of which the kernel writes one int through a pointer.
fn get(fd: BorrowedFd<'_>, what: u32) -> Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    // SAFETY: the callers pass requests that write one int, and `value` is one and outlives the call.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), libc::Ioctl::from(what), &raw mut value) };
    if r < 0 { Err(Error::last_os_error()) } else { Ok(value) }
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
    get(fd, GET_VNET_HEADER)
}

/// Bytes of frames that were written may be on their way through the stack, for all queues together; more have to wait.
/// `i32::MAX`: there is no bound, unless somebody has set one.
///
/// # Errors
/// The kernel's.
pub fn send_buffer(fd: BorrowedFd<'_>) -> Result<i32> {
    get(fd, GET_SEND_BUFFER)
}

/// The header's fields are little-endian, whatever the machine.
///
/// # Errors
/// The kernel's.
pub fn set_vnet_le(fd: BorrowedFd<'_>) -> Result<()> {
    set(fd, SET_VNET_LE, 1)
}

/// `struct ifreq` (`linux/if.h`), as far as `TUNSETQUEUE` reads it.
#[repr(C)]
struct QueueRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<QueueRequest>() == size_of::<libc::ifreq>());

/// Takes this queue of a multi-queue tap out of use, or puts it back as the last one. What waits in a queue that is taken
/// out is lost, and the last queue gets its number. Needs no more than the descriptor: it can only go back to its own tap.
///
/// # Errors
/// The kernel's; `EINVAL` if the queue is so already, or the tap has but one.
pub fn use_queue(fd: BorrowedFd<'_>, on: bool) -> Result<()> {
    let flag = if on { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
    let flags = libc::c_short::try_from(flag).map_err(|_| Error::from(std::io::ErrorKind::InvalidInput))?;
    let mut what = QueueRequest { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    // SAFETY: TUNSETQUEUE reads and writes one ifreq; `what` has its size and layout and outlives the call.
    let r = unsafe { libc::ioctl(fd.as_raw_fd(), libc::Ioctl::from(SET_QUEUE), &raw mut what) };
    if r < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Makes a tap of this name in the network namespace that this process is in, one frame a call with a virtio-net header
/// (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`), and gives its descriptor. The tap lives as long as that.
///
/// # Errors
/// `EPERM` without `CAP_NET_ADMIN` over the namespace, `EBUSY` if the name is taken, `EINVAL` if it is none; what opening
/// `/dev/net/tun` says.
pub fn make(name: &str) -> Result<std::os::fd::OwnedFd> {
    let invalid = || Error::from(std::io::ErrorKind::InvalidInput);
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let flags = libc::c_short::try_from(flags).map_err(|_| invalid())?;
    let mut what = QueueRequest { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    // The kernel takes a name of nothing, or one with '%', as a wish.
    let good = !name.is_empty() && !name.contains(['%', '\0', '/']);
    let place = what.name.get_mut(..name.len()).filter(|_| good && name.len() < libc::IFNAMSIZ);
    place.ok_or_else(invalid)?.copy_from_slice(name.as_bytes());
    let tun = std::fs::File::options().read(true).write(true).open("/dev/net/tun")?;
    let request = libc::Ioctl::from(request(libc::TUNSETIFF));
    // SAFETY: TUNSETIFF reads and writes one ifreq; `what` has its size and layout and outlives the call.
    let r = unsafe { libc::ioctl(tun.as_raw_fd(), request, &raw mut what) };
    if r < 0 { Err(Error::last_os_error()) } else { Ok(tun.into()) }
}
