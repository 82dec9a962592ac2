//! Taps and packet sockets: the plain ends of a link.
//!
//! Trust: the kernel. Promise: a tap goes with its descriptor.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::{fd, ok};

/// Makes a tap of this name, without packet information and virtio-net header: a plain read or write is a frame.
///
/// # Errors
/// What the kernel says.
pub fn tap(name: &str) -> io::Result<OwnedFd> {
    tap_with(name, libc::IFF_TAP | libc::IFF_NO_PI)
}

/// Makes a tap of this name whose frames have a virtio-net header of 12 bytes and, with `offloads`, may be super-frames
/// with checksums left to complete, both ways; reads of it do not wait.
///
/// # Errors
/// What the kernel says.
pub fn tap_with_header(name: &str, offloads: bool) -> io::Result<OwnedFd> {
    /// TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 (linux/if_tun.h).
    const OFFLOADS: libc::c_ulong = 1 | 2 | 4;
    let dev = tap_with(name, libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR)?;
    let header = 12_i32;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    ok(i64::from(unsafe { libc::ioctl(dev.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header) }))?;
    // SAFETY: TUNSETOFFLOAD takes a number.
    ok(i64::from(unsafe {
        libc::ioctl(dev.as_raw_fd(), libc::TUNSETOFFLOAD, if offloads { OFFLOADS } else { 0 })
    }))?;
    // SAFETY: plain numbers.
    ok(i64::from(unsafe { libc::fcntl(dev.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }))?;
    Ok(dev)
}

/// Sets how many bytes of frames that were written to a tap may be on their way through the stack.
///
/// # Errors
/// What the kernel says.
pub fn bound_tap(dev: &OwnedFd, bytes: i32) -> io::Result<()> {
    // SAFETY: TUNSETSNDBUF reads one int.
    ok(i64::from(unsafe { libc::ioctl(dev.as_raw_fd(), libc::TUNSETSNDBUF, &raw const bytes) }))?;
    Ok(())
}

fn tap_with(name: &str, flags: i32) -> io::Result<OwnedFd> {
    let dev = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in req.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = i8::from_ne_bytes([from]);
    }
    req.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: TUNSETIFF reads and writes one ifreq.
    ok(i64::from(unsafe { libc::ioctl(dev.as_raw_fd(), libc::TUNSETIFF, &raw mut req) }))?;
    Ok(dev.into())
}

/// A packet socket that sends straight to an interface's driver, past its queueing discipline.
///
/// # Errors
/// What the kernel says.
pub fn packet_socket(ifindex: u32) -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    let s = fd(i64::from(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) }))?;
    let on = 1_i32;
    // SAFETY: the kernel reads one int.
    ok(i64::from(unsafe {
        libc::setsockopt(
            s.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_QDISC_BYPASS,
            (&raw const on).cast(),
            u32::try_from(size_of::<i32>()).map_err(io::Error::other)?,
        )
    }))?;
    // SAFETY: all zeroes is a valid sockaddr_ll.
    let mut a: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    a.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    a.sll_ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
    let len = u32::try_from(size_of_val(&a)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `len` bytes of `a`.
    ok(i64::from(unsafe { libc::bind(s.as_raw_fd(), (&raw const a).cast(), len) }))?;
    Ok(s)
}

/// A packet socket that receives what comes in by an interface, but not what goes out, does not wait, and keeps up to
/// `bytes` of it.
///
/// # Errors
/// What the kernel says.
pub fn packet_reader(ifindex: u32, bytes: i32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: plain numbers. Of protocol 0 it hears nothing until it is bound.
    let s = fd(i64::from(unsafe { libc::socket(libc::AF_PACKET, kind, 0) }))?;
    let len = u32::try_from(size_of::<i32>()).map_err(io::Error::other)?;
    let (on, force) = (1_i32, (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, bytes));
    for (level, name, value) in [(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, on), force] {
        // SAFETY: the kernel reads one int.
        ok(i64::from(unsafe {
            libc::setsockopt(s.as_raw_fd(), level, name, (&raw const value).cast(), len)
        }))?;
    }
    // SAFETY: all zeroes is a valid sockaddr_ll.
    let mut a: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    a.sll_family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    a.sll_protocol = u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?.to_be();
    a.sll_ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
    let len = u32::try_from(size_of_val(&a)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `len` bytes of `a`.
    ok(i64::from(unsafe { libc::bind(s.as_raw_fd(), (&raw const a).cast(), len) }))?;
    Ok(s)
}

/// Sends `frame` 64 times by one call; says how many the driver took. It gives up at the first that was dropped.
pub fn packet_send(s: &OwnedFd, frame: &[u8]) -> usize {
    let mut iov = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
    // SAFETY: all zeroes is a valid mmsghdr.
    let mut one: libc::mmsghdr = unsafe { std::mem::zeroed() };
    one.msg_hdr.msg_iov = &raw mut iov;
    one.msg_hdr.msg_iovlen = 1;
    let mut all = [one; 64];
    // SAFETY: 64 headers that all point at one iovec, which points at `frame`; the kernel only reads the latter.
    let n = unsafe { libc::sendmmsg(s.as_raw_fd(), all.as_mut_ptr(), 64, 0) };
    usize::try_from(n).unwrap_or(0)
}
