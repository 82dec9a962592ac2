//! AF_XDP sockets: made whole and bound here, because an unbound one could be bound to any NIC by its holder.
//!
//! Trust: the request is allowed and in range. Promise: a bound socket serves its queue and can never be re-targeted;
//! a pinned one (QEMU's way), and any before Linux 6.4 until it is activated, can be bound to its interface only. The UMEM is a memfd that can neither shrink nor grow.
//! `XDP_SHARED_UMEM` is not used: each queue has its memory, so that a queue is a unit of trust.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::sleep;
use std::time::{Duration, Instant};

use netreeve_shared::grant::XskGrant;
use netreeve_shared::ifname::IfName;
use netreeve_shared::kernel::MAPS_BOUND;
use netreeve_shared::refusal::{Refusal, Step};
use netreeve_shared::request::{BadRequest, Steer, XdpMode, XskRequest};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{getsockopt, setsockopt};

use super::{At, Outcome, failed};
use crate::netlink::{Link, Netlink};
use crate::{privilege, sys};

/// `XDP_PACKET_HEADROOM` (`linux/bpf.h`): bytes before a received frame in its chunk.
const KERNEL_HEADROOM: u32 = 256;
/// Ethernet header and two VLAN tags.
const FRAME_OVERHEAD: u32 = 14 + 2 * 4;
/// MTU up to which every driver takes a program for frames of one buffer.
const ONE_BUFFER_MTU: u32 = 1500;
/// The kernel gives a queue back some 20 ms after its last socket closed. Other sessions wait with us, so whoever needs
/// longer asks again.
const BUSY: Duration = Duration::from_millis(60);
/// The index of no interface.
const NOBODY: u32 = 0x7fff_ffff;
const BUSY_STEP: Duration = Duration::from_millis(2);

/// The sockets of one grant, kept until they are in the map.
pub(crate) struct Sockets {
    /// What was asked.
    pub(crate) request: XskRequest,
    /// The interface, by index: names change.
    pub(crate) ifindex: u32,
    /// One a queue.
    pub(crate) sockets: Vec<OwnedFd>,
    /// Frames may span several buffers.
    pub(crate) frags: bool,
    /// Queues whose sockets are still to be bound, in one of these ways.
    unbound: Range<u16>,
    ways: Vec<u16>,
}

/// How the sockets of a grant are given.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// With UMEM and rings, and bound. The descriptors are `[socket, memfd]` of each queue.
    Bound,
    /// The same, but bound only when they are activated: kernels before 6.4 let a socket's rings be mapped until it is
    /// bound and no later (`xsk_mmap`), so their holder has to come first.
    Late,
    /// Bare: memory and rings are their holder's own.
    Bare,
}

impl How {
    /// As sockets have to be bound here for a holder who is to map them.
    pub(crate) fn here() -> Self {
        if sys::kernel().is_some_and(|release| release < MAPS_BOUND) { Self::Late } else { Self::Bound }
    }
}

impl Sockets {
    /// Binds those that are not.
    pub(crate) fn bind(&mut self) -> Outcome<()> {
        let deadline = Instant::now() + BUSY;
        for queue in self.unbound.clone() {
            let n = usize::from(queue.saturating_sub(self.request.start_queue));
            let socket = self.sockets.get(n).ok_or(failed(Step::BindQueue, Errno::EBADF))?;
            bind(socket.as_fd(), self.ifindex, queue.into(), &self.ways, deadline)?;
            self.unbound.start = queue.saturating_add(1);
        }
        Ok(())
    }
}

/// Makes the sockets of a grant.
pub(crate) fn open(
    request: &XskRequest,
    ticket: u32,
    how: How,
) -> Outcome<(Sockets, XskGrant, Vec<OwnedFd>)> {
    let link = find(request.interface)?;
    let mac = link.mac.ok_or(failed(Step::FindInterface, Errno::EADDRNOTAVAIL))?;
    // Who is to leave the host its network cannot name the host's own address.
    if matches!(&request.steer, Steer::Macs { macs, .. } if macs.contains(&mac)) {
        return Err(Refusal::Bad(BadRequest::Steer));
    }
    let (ways, mut flags) = (ways(request, link.mtu), u16::MAX);
    let deadline = Instant::now() + BUSY;
    let (mut sockets, mut fds) = (Vec::new(), Vec::new());
    let (bound, mut zero_copy) = (how == How::Bound, how == How::Bound);
    let queues = request.start_queue..request.start_queue.saturating_add(request.queues);
    for queue in queues.clone() {
        let socket = make_socket(link.index, how)?;
        sockets.push(socket.try_clone().map_err(|_| failed(Step::MakeSocket, Errno::last()))?);
        let memory = if how == How::Bare { None } else { Some(furnish(socket.as_fd(), request)?) };
        if bound {
            flags &= bind(socket.as_fd(), link.index, queue.into(), &ways, deadline)?;
            let got = getsockopt(&socket, sys::Options).at(Step::BindQueue)?;
            zero_copy &= got.flags & libc::XDP_OPTIONS_ZEROCOPY != 0;
        }
        fds.extend([Some(socket), memory].into_iter().flatten());
    }
    let multi_buffer = bound && flags & libc::XDP_USE_SG != 0;
    let frags = multi_buffer || link.mtu > ONE_BUFFER_MTU;
    // A bare socket's memory and rings are its holder's own.
    let ours = |number| if how == How::Bare { 0 } else { number };
    let grant = XskGrant {
        ticket,
        name: request.interface,
        ifindex: link.index,
        start_queue: request.start_queue,
        queues: request.queues,
        mtu: link.mtu,
        mac,
        ring: ours(request.ring),
        chunk: ours(request.chunk),
        chunks: ours(request.chunks),
        headroom: 0,
        multi_buffer,
        zero_copy,
    };
    let unbound = if how == How::Late { queues } else { 0..0 };
    Ok((Sockets { request: request.clone(), ifindex: link.index, sockets, frags, unbound, ways }, grant, fds))
}

/// The flags to bind with, in the order in which they are tried. Kernels before 6.6 do not know `XDP_USE_SG`, and a driver
/// may have zero-copy without it; without both flags the kernel chooses how to copy.
fn ways(request: &XskRequest, mtu: u32) -> Vec<u16> {
    const SG: u16 = libc::XDP_USE_SG;
    // Zero-copy needs the driver's own XDP.
    let copy = if request.force_copy || request.mode == Some(XdpMode::Skb) { libc::XDP_COPY } else { 0 };
    let fits = mtu.saturating_add(FRAME_OVERHEAD) <= request.chunk.saturating_sub(KERNEL_HEADROOM);
    // In the stack, packets come that it joined or has not segmented: up to 64 KiB, whatever the MTU.
    let ways: &[u16] = match request.mode {
        Some(XdpMode::Native) if fits => &[0],
        None if fits && copy == 0 => &[libc::XDP_ZEROCOPY | SG, libc::XDP_ZEROCOPY, SG, 0],
        _ => &[SG, 0],
    };
    ways.iter().map(|way| way | copy | libc::XDP_USE_NEED_WAKEUP).collect()
}

/// The Ethernet interface of this name.
pub(crate) fn find(name: IfName) -> Result<Link, Refusal> {
    let link = Netlink::open().and_then(|mut n| n.by_name(name)).at(Step::FindInterface)?;
    // The program reads an Ethernet header.
    if link.hardware == libc::ARPHRD_ETHER {
        Ok(link)
    } else {
        Err(failed(Step::FindInterface, Errno::EOPNOTSUPP))
    }
}

fn make_socket(ifindex: u32, how: How) -> Result<OwnedFd, Refusal> {
    privilege::with(privilege::SOCKET, || {
        let socket = sys::socket(libc::AF_XDP, libc::SOCK_RAW, 0).at(Step::MakeSocket)?;
        setsockopt(&socket, sys::PinTo, &ifindex).at(Step::MakeSocket)?;
        // Kernels that do not heed it when such a socket is bound (before 6.5, 6.1.39 and 5.15.121) look for the device, which
        // nobody has; those that do refuse it before.
        if how != How::Bound && sys::xsk_bind(socket.as_fd(), NOBODY, 0, 0) != Err(Errno::EINVAL) {
            return Err(failed(Step::MakeSocket, Errno::ENOSYS));
        }
        Ok(socket)
    })
}

/// Gives a socket its UMEM, which is returned, and its four rings.
fn furnish(socket: BorrowedFd<'_>, request: &XskRequest) -> Result<OwnedFd, Refusal> {
    let bytes = u64::from(request.chunk) * u64::from(request.chunks);
    let memory = make_memory(bytes).at(Step::RegisterUmem)?;
    privilege::with(privilege::UMEM, || {
        sys::xsk_register(socket, memory.as_fd(), bytes, request.chunk).at(Step::RegisterUmem)
    })?;
    let rings = || {
        setsockopt(&socket, sys::FillRing, &request.ring)?;
        setsockopt(&socket, sys::CompletionRing, &request.ring)?;
        setsockopt(&socket, sys::RxRing, &request.ring)?;
        setsockopt(&socket, sys::TxRing, &request.ring)?;
        setsockopt(&socket, sys::TxBudget, &request.ring)
    };
    match rings() {
        // Kernels that do not know it send 32 at a time: slower, not wrong.
        Ok(()) | Err(Errno::ENOPROTOOPT) => Ok(memory),
        Err(why) => Err(failed(Step::MakeRings, why)),
    }
}

/// Anonymous memory whose size nobody can change: a truncated UMEM would kill whoever reads it.
fn make_memory(bytes: u64) -> nix::Result<OwnedFd> {
    let memory = memfd_create(c"netreeve-umem", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    nix::unistd::ftruncate(&memory, i64::try_from(bytes).map_err(|_| Errno::EFBIG)?)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(memory)
}

/// Binds in the first way that the kernel takes, waiting for a queue that is being given back. Returns its flags.
fn bind(socket: BorrowedFd<'_>, ifindex: u32, queue: u32, ways: &[u16], deadline: Instant) -> Outcome<u16> {
    let mut why = Errno::EINVAL;
    for &flags in ways {
        why = loop {
            match sys::xsk_bind(socket, ifindex, queue, flags) {
                Ok(()) => return Ok(flags),
                Err(Errno::EBUSY) if Instant::now() < deadline => sleep(BUSY_STEP),
                Err(why) => break why,
            }
        };
    }
    Err(if why == Errno::EBUSY { Refusal::Busy } else { failed(Step::BindQueue, why) })
}
