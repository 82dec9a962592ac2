//! Asks the kernel what a descriptor is.
//!
//! Trust: a descriptor came from another process with a label; the label is a claim. Promise: [`attest`] believes
//! only answers that another kind of descriptor cannot give. It needs no privilege and changes nothing.
#![allow(unsafe_code, reason = "four questions to the kernel that nix has no words for")]

use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::stat::{SFlag, major, minor};

use crate::grant::FdKind;
use crate::ifname::{self, IfName};
use crate::l2tp;

/// `TUNGETIFF` (`linux/if_tun.h`: `_IOR('T', 210, unsigned int)`); it fills a `struct ifreq`.
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
/// `/dev/net/tun` (`TUN_MINOR` of the misc devices, `linux/miscdevice.h`).
const TUN_DEVICE: (u64, u64) = (10, 200);
/// `SOL_XDP` and its option `XDP_MMAP_OFFSETS` (`linux/if_xdp.h`).
const XDP_MMAP_OFFSETS: (libc::c_int, libc::c_int) = (283, 1);
/// `BPF_OBJ_GET_INFO_BY_FD` and `BPF_LINK_UPDATE` of `enum bpf_cmd`, `BPF_LINK_TYPE_XDP` (`linux/bpf.h`).
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_TYPE_XDP: u32 = 6;

/// A descriptor is not what it was said to be.
#[derive(Debug)]
pub struct NotThat {
    /// What it was said to be.
    pub kind: FdKind,
    /// What the kernel said.
    pub why: io::Error,
}

/// What a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    /// `AF_*`.
    pub family: i32,
    /// `SOCK_*`.
    pub kind: i32,
    /// `listen` was called on it.
    pub listening: bool,
}

/// What a tap's descriptor says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tap {
    /// The interface's name.
    pub name: IfName,
    /// `IFF_*` flags of `linux/if_tun.h`.
    pub flags: u16,
}

/// Succeeds only if the kernel says that `fd` is of `kind`.
///
/// # Errors
/// [`NotThat`] with what the kernel said instead.
pub fn attest(fd: BorrowedFd<'_>, kind: FdKind) -> Result<(), NotThat> {
    let answer = match kind {
        FdKind::Tap => is_tun(fd).and_then(|()| tap(fd)).map(|_| ()),
        FdKind::Xsk => is_xsk(fd),
        FdKind::Umem => is_umem(fd),
        FdKind::Link => is_xdp_link(fd),
        FdKind::L2tp => is_l2tp(fd),
        FdKind::Listener => is_internet(fd, libc::SOCK_STREAM, libc::IPPROTO_TCP, true),
        FdKind::Udp => is_internet(fd, libc::SOCK_DGRAM, libc::IPPROTO_UDP, false),
    };
    answer.map_err(|why| NotThat { kind, why })
}

/// What `fd` is as a socket.
///
/// # Errors
/// `ENOTSOCK` if it is none.
pub fn socket(fd: BorrowedFd<'_>) -> io::Result<Socket> {
    Ok(Socket {
        family: option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)?,
        kind: option(fd, libc::SOL_SOCKET, libc::SO_TYPE)?,
        listening: option(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? != 0,
    })
}

/// What a tap's descriptor says of itself (`TUNGETIFF`). macvtap answers too; [`attest`] takes only `/dev/net/tun`.
///
/// # Errors
/// `EINVAL` if it is no character device or the name is none that we take; `EBADFD` for a tap without an interface;
/// else the kernel's.
pub fn tap(fd: BorrowedFd<'_>) -> io::Result<Tap> {
    // 'T' is the terminals' letter too (they have nothing at 210); what is no character device is not even asked.
    if SFlag::from_bits_truncate(fstat(fd)?.st_mode) & SFlag::S_IFMT != SFlag::S_IFCHR {
        return Err(Errno::EINVAL.into());
    }
    let mut request = [0_u8; size_of::<libc::ifreq>()];
    // SAFETY: TUNGETIFF writes one struct ifreq, and `request` is as long as one and outlives the call.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETIFF, request.as_mut_ptr()) };
    Errno::result(done)?;
    let (name, rest) = request.split_at(ifname::MAX_LEN + 1);
    let text = name.split(|b| *b == 0).next().and_then(|n| std::str::from_utf8(n).ok());
    let name = text.and_then(|t| IfName::new(t).ok()).ok_or(Errno::EINVAL)?;
    let flags = rest.first_chunk::<2>().map_or(0, |f| u16::from_ne_bytes(*f));
    Ok(Tap { name, flags })
}

/// Not libc's fstat, which is a different system call on newer C libraries: one that takes paths, and that no sandbox lets
/// through.
fn fstat(fd: BorrowedFd<'_>) -> io::Result<libc::stat> {
    let mut stat = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: `stat` is room for the kernel's struct stat, which libc's is on 64-bit Linux.
    let done = unsafe { libc::syscall(libc::SYS_fstat, fd.as_raw_fd(), stat.as_mut_ptr()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed is a valid stat, and the kernel filled it.
    Ok(unsafe { stat.assume_init() })
}

fn is_tun(fd: BorrowedFd<'_>) -> io::Result<()> {
    let stat = fstat(fd)?;
    let chr = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
    let tun = (major(stat.st_rdev), minor(stat.st_rdev)) == TUN_DEVICE;
    if chr && tun { Ok(()) } else { Err(Errno::ENODEV.into()) }
}

fn is_xsk(fd: BorrowedFd<'_>) -> io::Result<()> {
    if socket(fd)?.family != libc::AF_XDP {
        return Err(Errno::EAFNOSUPPORT.into());
    }
    // Only AF_XDP has this option; four ring layouts of four 64-bit offsets.
    let mut offsets = [0_u64; 16];
    let (level, name) = XDP_MMAP_OFFSETS;
    get_option(fd, level, name, &mut offsets).map(|_| ())
}

/// An IP socket of this sort.
fn is_internet(fd: BorrowedFd<'_>, kind: i32, protocol: i32, listening: bool) -> io::Result<()> {
    let is = socket(fd)?;
    let known = matches!(is.family, libc::AF_INET | libc::AF_INET6);
    let right = is == Socket { family: is.family, kind, listening };
    let same = option(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL)? == protocol;
    if known && right && same { Ok(()) } else { Err(Errno::EPROTOTYPE.into()) }
}

fn is_l2tp(fd: BorrowedFd<'_>) -> io::Result<()> {
    is_internet(fd, libc::SOCK_RAW, l2tp::PROTOCOL, false)?;
    let locked = option(fd, libc::SOL_SOCKET, libc::SO_LOCK_FILTER)? != 0;
    if locked { Ok(()) } else { Err(Errno::ENOLCK.into()) }
}

fn is_umem(fd: BorrowedFd<'_>) -> io::Result<()> {
    // Only memfds (and shmem with seals) answer F_GET_SEALS; a size that can change would kill its user by SIGBUS.
    let seals = SealFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GET_SEALS)?);
    let needed = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    if !seals.contains(needed) {
        return Err(Errno::EPERM.into());
    }
    if fstat(fd)?.st_size > 0 { Ok(()) } else { Err(Errno::ENODATA.into()) }
}

/// A `bpf_link` of XDP's type. Two questions, because the kernel answers the first for maps and programs as well and
/// numbers their types from the same small integers: an XDP program's type is 6 too.
fn is_xdp_link(fd: BorrowedFd<'_>) -> io::Result<()> {
    let raw = u64::from(fd.as_raw_fd().cast_unsigned());
    let none = u64::from(u32::MAX);
    // struct { link_fd, new_prog_fd, flags, old_prog_fd }: to put program -1 in. Not a link: EINVAL, at once. A link:
    // EBADF, for there is no program -1; nothing has changed.
    let update = [raw | (none << 32), 0];
    let link = match bpf(BPF_LINK_UPDATE, &update) {
        Err(e) if e.raw_os_error() == Some(libc::EBADF) => bpf_type(raw),
        Err(e) => Err(e),
        Ok(()) => Err(Errno::EINVAL.into()),
    };
    match link {
        Ok(BPF_LINK_TYPE_XDP) => Ok(()),
        Ok(_) => Err(Errno::EINVAL.into()),
        // Kernels before 5.19 refuse bpf() wholly to the unprivileged; then /proc says it.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => proc_says_xdp_link(fd),
        Err(e) => Err(e),
    }
}

/// The first field of `struct bpf_link_info`: its type.
fn bpf_type(raw: u64) -> io::Result<u32> {
    let mut info = [0_u64; 32];
    let length = u64::try_from(size_of_val(&info)).unwrap_or(0);
    // struct { u32 bpf_fd, u32 info_len, u64 info }
    let pointer = u64::try_from(info.as_mut_ptr().expose_provenance()).unwrap_or(0);
    bpf(BPF_OBJ_GET_INFO_BY_FD, &[raw | (length << 32), pointer])?;
    let [first, ..] = info;
    let [a, b, c, d, ..] = first.to_ne_bytes();
    Ok(u32::from_ne_bytes([a, b, c, d]))
}

fn bpf(command: libc::c_long, attributes: &[u64; 2]) -> io::Result<()> {
    // SAFETY: bpf reads 16 bytes of attributes, which live; the one pointer among them (bpf_type) is to 256 bytes that
    // outlive the call, and their length is given with it.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn proc_says_xdp_link(fd: BorrowedFd<'_>) -> io::Result<()> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let xdp = text.lines().any(|l| l.strip_prefix("link_type:").is_some_and(|t| t.trim() == "xdp"));
    if xdp { Ok(()) } else { Err(Errno::EINVAL.into()) }
}

fn option(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<i32> {
    let mut value = [0_i32; 1];
    get_option(fd, level, name, &mut value)?;
    let [value] = value;
    Ok(value)
}

/// `getsockopt` into whole integers. Gives the bytes that the kernel wrote.
fn get_option<T: Integer>(
    fd: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: &mut [T],
) -> io::Result<u32> {
    let mut length = u32::try_from(size_of_val(value)).map_err(|_| Errno::EINVAL)?;
    let to = value.as_mut_ptr().cast();
    // SAFETY: `to` points to `length` bytes that live and may hold any bit pattern (T is an integer), and the kernel
    // writes no more than `length`.
    let done = unsafe { libc::getsockopt(fd.as_fd().as_raw_fd(), level, name, to, &raw mut length) };
    Errno::result(done)?;
    Ok(length)
}

/// Types of which every bit pattern is a value.
trait Integer: Copy {}
impl Integer for i32 {}
impl Integer for u64 {}

impl fmt::Display for NotThat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            FdKind::Tap => "a tap's queue",
            FdKind::Xsk => "an AF_XDP socket",
            FdKind::Umem => "a sealed memfd",
            FdKind::Link => "an XDP link",
            FdKind::L2tp => "a raw socket of protocol 115 with a locked filter",
            FdKind::Listener => "a TCP socket that listens",
            FdKind::Udp => "a UDP socket",
        };
        write!(f, "a descriptor is not {kind}: {}", self.why)
    }
}

impl std::error::Error for NotThat {}

#[cfg(test)]
#[path = "fdkind_tests.rs"]
mod tests;
