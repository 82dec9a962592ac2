//! The system calls for which no safe wrapper exists: tun ioctls, AF_XDP socket options, link creation.
//!
//! The helper's only unsafe code. Trust: callers are this crate. Promise: every function takes owned or borrowed
//! descriptors and plain values, keeps no pointer after it returns, and reports the kernel's errno.
#![allow(unsafe_code, reason = "the one place of the helper that speaks to the kernel without a wrapper")]

pub(crate) mod process;

use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use libbpf_rs::libbpf_sys;
use libc::{c_int, socklen_t};
use netreeve_shared::kernel::{Version, version};
use netreeve_shared::{ifname::IfName, l2tp::Instruction};
use nix::errno::Errno;
use nix::sys::socket::setsockopt;
use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};

type Result<T> = nix::Result<T>;

/// `TUNGETVNETHDRSZ`, `TUNSETVNETHDRSZ` (`linux/if_tun.h`) and the rest take a pointer to an `int` or to an `ifreq`.
fn ioctl<T>(fd: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut T) -> Result<()> {
    // SAFETY: the callers below pair each request with the type that linux/if_tun.h gives it, and the kernel keeps no
    // pointer to it.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    Errno::result(answer).map(drop)
}

/// `TUNSETIFF`: makes the device `name`, or attaches a further queue to it.
pub(crate) fn tun_attach(tun: BorrowedFd<'_>, name: &IfName, flags: u16) -> Result<()> {
    // SAFETY: ifreq is a C structure of integers and pointers; all zero is a valid value of each.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.to_ifr_name()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_flags = i16::from_ne_bytes(flags.to_ne_bytes());
    ioctl(tun, libc::TUNSETIFF, &mut request)
}

/// `TUNSETVNETHDRSZ`, then what `TUNGETVNETHDRSZ` says: bytes of virtio-net header.
pub(crate) fn tun_vnet_size(tun: BorrowedFd<'_>, bytes: u8) -> Result<u8> {
    let mut size = c_int::from(bytes);
    ioctl(tun, libc::TUNSETVNETHDRSZ, &mut size)?;
    ioctl(tun, libc::TUNGETVNETHDRSZ, &mut size)?;
    u8::try_from(size).map_err(|_| Errno::EBADMSG)
}

/// `TUNSETOWNER`: only this user, or `CAP_NET_ADMIN`, may attach to the device from now on.
pub(crate) fn tun_owner(tun: BorrowedFd<'_>, uid: u32) -> Result<()> {
    ioctl_value(tun, libc::TUNSETOWNER, uid.into())
}

/// `TUNSETPERSIST`: the device outlives its descriptors.
pub(crate) fn tun_persist(tun: BorrowedFd<'_>) -> Result<()> {
    ioctl_value(tun, libc::TUNSETPERSIST, 1)
}

fn ioctl_value(fd: BorrowedFd<'_>, request: libc::Ioctl, value: libc::c_ulong) -> Result<()> {
    // SAFETY: these two requests take their argument by value.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), request, value) };
    Errno::result(answer).map(drop)
}

/// A new socket of any family (nix knows neither AF_XDP nor protocol 115), close-on-exec.
pub(crate) fn socket(family: c_int, kind: c_int, protocol: c_int) -> Result<OwnedFd> {
    // SAFETY: no pointers.
    owned(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) })
}

/// Gives a socket its filter, for ever.
pub(crate) fn lock_filter(socket: &OwnedFd, program: &[Instruction]) -> Result<()> {
    let filter = |&(code, jt, jf, k): &Instruction| libc::sock_filter { code, jt, jf, k };
    let mut filter: Vec<_> = program.iter().map(filter).collect();
    let len = u16::try_from(filter.len()).map_err(|_| Errno::E2BIG)?;
    setsockopt(socket, AttachFilter, &libc::sock_fprog { len, filter: filter.as_mut_ptr() })?;
    setsockopt(socket, LockFilter, &1)
}

/// The descriptor that a system call has just made, or the error that it left.
fn owned(fd: c_int) -> Result<OwnedFd> {
    Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

// Options as nix makes them: `SO_BINDTOIFINDEX` (the socket can be bound to this interface and no other), and those of
// AF_XDP (`linux/if_xdp.h`).
sockopt_impl!(PinTo, SetOnly, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, u32);
// Its pointer is to instructions that outlive the call, which copies them.
sockopt_impl!(AttachFilter, SetOnly, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, libc::sock_fprog);
sockopt_impl!(LockFilter, SetOnly, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, u32);
sockopt_impl!(RegisterUmem, SetOnly, libc::SOL_XDP, libc::XDP_UMEM_REG, libc::xdp_umem_reg);
sockopt_impl!(FillRing, SetOnly, libc::SOL_XDP, libc::XDP_UMEM_FILL_RING, u32);
sockopt_impl!(CompletionRing, SetOnly, libc::SOL_XDP, libc::XDP_UMEM_COMPLETION_RING, u32);
sockopt_impl!(RxRing, SetOnly, libc::SOL_XDP, libc::XDP_RX_RING, u32);
sockopt_impl!(TxRing, SetOnly, libc::SOL_XDP, libc::XDP_TX_RING, u32);
sockopt_impl!(TxBudget, SetOnly, libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, u32);
sockopt_impl!(Options, GetOnly, libc::SOL_XDP, libc::XDP_OPTIONS, libc::xdp_options);

/// `XDP_MAX_TX_SKB_BUDGET` (kernel 6.17): frames that one `sendto` sends in copy mode; 32 otherwise.
const XDP_MAX_TX_SKB_BUDGET: c_int = 9;

/// `XDP_UMEM_REG`: makes the whole `memory` (a memfd of `len` bytes) the socket's UMEM.
pub(crate) fn xsk_register(xsk: BorrowedFd<'_>, memory: BorrowedFd<'_>, len: u64, chunk: u32) -> Result<()> {
    let length = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
    let (protection, null) = (libc::PROT_READ | libc::PROT_WRITE, std::ptr::null_mut());
    // SAFETY: a new mapping where the kernel likes; nobody holds a reference into it and nobody reads or writes it here.
    let at = unsafe { libc::mmap(null, length, protection, libc::MAP_SHARED, memory.as_raw_fd(), 0) };
    if at == libc::MAP_FAILED {
        return Err(Errno::last());
    }
    let addr = u64::try_from(at.addr()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: xdp_umem_reg is a C structure of integers; all zero is valid.
    let umem = libc::xdp_umem_reg { addr, len, chunk_size: chunk, ..unsafe { zeroed() } };
    let answer = setsockopt(&xsk, RegisterUmem, &umem);
    // SAFETY: exactly the mapping made above; the kernel holds the pages themselves, not our addresses.
    unsafe { libc::munmap(at, length) };
    answer
}

/// The first two numbers of the kernel's release: what uname(2) says, which is what the caller's personality(2) makes it say.
pub(crate) fn kernel() -> Option<Version> {
    version(nix::sys::utsname::uname().ok()?.release().to_str()?)
}

/// Binds an AF_XDP socket to a receive queue. `flags` is `XDP_COPY | XDP_USE_NEED_WAKEUP | ...`.
pub(crate) fn xsk_bind(xsk: BorrowedFd<'_>, ifindex: u32, queue: u32, flags: u16) -> Result<()> {
    let family = u16::try_from(libc::AF_XDP).map_err(|_| Errno::EINVAL)?;
    let address = libc::sockaddr_xdp {
        sxdp_family: family,
        sxdp_flags: flags,
        sxdp_ifindex: ifindex,
        sxdp_queue_id: queue,
        sxdp_shared_umem_fd: 0,
    };
    let size = socklen_t::try_from(size_of::<libc::sockaddr_xdp>()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the address is a live structure of `size` bytes, copied by the kernel.
    let answer = unsafe { libc::bind(xsk.as_raw_fd(), std::ptr::from_ref(&address).cast(), size) };
    Errno::result(answer).map(drop)
}

/// Attaches an XDP program to an interface by a `bpf_link`; `flags` is one `XDP_FLAGS_*_MODE`, so that libbpf and the
/// kernel choose nothing themselves.
pub(crate) fn xdp_link(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> Result<OwnedFd> {
    let interface = c_int::try_from(ifindex).map_err(|_| Errno::EINVAL)?;
    let mut options = libbpf_sys::bpf_link_create_opts { flags, ..Default::default() };
    options.sz = u64::try_from(size_of::<libbpf_sys::bpf_link_create_opts>()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the descriptor is live, `options` says its own size and is read before the call returns.
    let fd = unsafe {
        libbpf_sys::bpf_link_create(program.as_raw_fd(), interface, libbpf_sys::BPF_XDP, &raw const options)
    };
    // libbpf returns the negated error.
    if fd < 0 { Err(Errno::from_raw(fd.saturating_neg())) } else { owned(fd) }
}
