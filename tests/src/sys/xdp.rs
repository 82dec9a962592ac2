//! AF_XDP sockets, and the few BPF calls around them, without a library: what is measured against is no code of ours.
//!
//! Trust: the kernel. Promise: what is made here goes with its descriptors.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use super::{fd, ok};

/// An AF_XDP socket.
///
/// # Errors
/// EPERM without CAP_NET_RAW.
pub fn xsk_socket() -> io::Result<OwnedFd> {
    // SAFETY: plain numbers.
    fd(i64::from(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) }))
}

/// Sets a socket option of SOL_XDP (linux/if_xdp.h).
///
/// # Errors
/// What the kernel says.
pub fn xdp_set(s: &OwnedFd, option: i32, value: &[u8]) -> io::Result<()> {
    let len = u32::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `len` bytes of `value`.
    ok(i64::from(unsafe {
        libc::setsockopt(s.as_raw_fd(), libc::SOL_XDP, option, value.as_ptr().cast(), len)
    }))
}

/// Reads a socket option of SOL_XDP into `value`.
///
/// # Errors
/// What the kernel says.
pub fn xdp_get(s: &OwnedFd, option: i32, value: &mut [u8]) -> io::Result<()> {
    let mut len = u32::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `len` bytes of `value`.
    ok(i64::from(unsafe {
        libc::getsockopt(s.as_raw_fd(), libc::SOL_XDP, option, value.as_mut_ptr().cast(), &raw mut len)
    }))
}

/// Binds an AF_XDP socket to a queue. `flags` are XDP_COPY and so on.
///
/// # Errors
/// What the kernel says; EBUSY for some milliseconds after another socket left the queue.
pub fn xdp_bind(s: &OwnedFd, ifindex: u32, queue: u32, flags: u16) -> io::Result<()> {
    let a = libc::sockaddr_xdp {
        sxdp_family: u16::try_from(libc::AF_XDP).map_err(io::Error::other)?,
        sxdp_flags: flags,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: 0,
    };
    let len = u32::try_from(size_of_val(&a)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `len` bytes of `a`.
    ok(i64::from(unsafe { libc::bind(s.as_raw_fd(), (&raw const a).cast(), len) }))
}

/// Makes the kernel look at an AF_XDP socket's transmit ring. Its errors say only "later" and are left out.
#[inline]
pub fn xdp_kick(s: &OwnedFd) {
    // SAFETY: no address and no data.
    unsafe { libc::sendto(s.as_raw_fd(), std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
}

/// Words of `union bpf_attr` (linux/bpf.h) that the commands used here need.
type Attr = [u64; 16];

/// bpf(2). Not public: the pointers inside `attr` must be good.
fn bpf(cmd: i32, attr: &mut Attr) -> i64 {
    // SAFETY: the kernel reads and writes `size_of::<Attr>()` bytes of `attr`; the callers vouch for pointers inside.
    unsafe { libc::syscall(libc::SYS_bpf, cmd, attr.as_mut_ptr(), size_of::<Attr>()) }
}

/// Two 32-bit fields as the word that they share on a little-endian machine.
fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// A raw descriptor as the number that bpf(2) wants.
fn num(f: &OwnedFd) -> u32 {
    f.as_fd().as_raw_fd().unsigned_abs()
}

/// Makes a BPF map with 4-byte keys and values.
///
/// # Errors
/// EPERM without CAP_BPF and CAP_NET_ADMIN.
pub fn bpf_map(kind: u32, entries: u32) -> io::Result<OwnedFd> {
    let mut a: Attr = [0; 16];
    [a[0], a[1]] = [pair(kind, 4), pair(4, entries)];
    fd(bpf(0, &mut a))
}

/// Sets a map's entry.
///
/// # Errors
/// What the kernel says.
pub fn bpf_map_set(map: &OwnedFd, key: u32, value: u32) -> io::Result<()> {
    let mut a: Attr = [0; 16];
    [a[0], a[1], a[2]] = [num(map).into(), (&raw const key) as u64, (&raw const value) as u64];
    ok(bpf(2, &mut a))
}

/// Loads an XDP program of raw instructions.
///
/// # Errors
/// What the verifier says, as an error number.
pub fn bpf_prog(code: &[u64]) -> io::Result<OwnedFd> {
    const PROG_TYPE_XDP: u32 = 6;
    const ATTACH_XDP: u32 = 37;
    let mut a: Attr = [0; 16];
    let n = u32::try_from(code.len()).map_err(io::Error::other)?;
    [a[0], a[1], a[2]] = [pair(PROG_TYPE_XDP, n), code.as_ptr() as u64, c"GPL".as_ptr() as u64];
    a[8] = pair(0, ATTACH_XDP);
    fd(bpf(5, &mut a))
}

/// Attaches a program; it is gone when the link is dropped. `flags`: 2 skb, 4 native.
///
/// # Errors
/// What the kernel says.
pub fn bpf_link(prog: &OwnedFd, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    const ATTACH_XDP: u32 = 37;
    let mut a: Attr = [0; 16];
    [a[0], a[1]] = [pair(num(prog), ifindex), pair(ATTACH_XDP, flags)];
    fd(bpf(28, &mut a))
}

/// Runs a program over `repeat` copies of `frame` as live frames, 64 at a time, and lets its verdicts happen.
///
/// # Errors
/// What the kernel says.
pub fn bpf_run_live(prog: &OwnedFd, frame: &[u8], repeat: u32) -> io::Result<()> {
    const LIVE_FRAMES: u32 = 2;
    let n = u32::try_from(frame.len()).map_err(io::Error::other)?;
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
    let md = [0, n, 0, 0, 0, 0_u32];
    let mut a: Attr = [0; 16];
    a[0] = num(prog).into();
    a[1] = pair(n, 0);
    a[2] = frame.as_ptr() as u64;
    a[4] = pair(repeat, 0);
    a[5] = pair(24, 0);
    a[6] = md.as_ptr() as u64;
    a[8] = pair(LIVE_FRAMES, 0);
    a[9] = 64;
    ok(bpf(10, &mut a))
}
