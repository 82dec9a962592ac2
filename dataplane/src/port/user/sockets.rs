//! How the datagram sockets of flows are set: as the guest's packets want it, and no oftener than needed. And what one tells
//! of an address without sending anything.
#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::errors;
use super::plan::Outbound;
use crate::sys::sock::{self, Opt, Speaks};

/// A guest's packets with fewer hops than this keep them; more is as good as any number.
const FEW_HOPS: u8 = 32;
/// Datagrams of fewer bytes than this fit every way.
const SHORT: u32 = 1200;
/// `IP_PMTUDISC_DONT`, `IP_PMTUDISC_DO` (linux/in.h), which have the same numbers for IPv6.
const MAY_CUT: i32 = 0;
const MUST_NOT_CUT: i32 = 2;

/// A port that is never sent to.
const DISCARD: u16 = 9;

/// The MTU of the loopback device, unless somebody changed it: no other device's is as large. IPv4's ways have at most one
/// byte less (`IP_MAX_MTU`), which another device may have.
const LOOPBACK_MTU: u32 = 65_536;
const LARGEST4: u32 = 65_535;

/// Addresses for documentation (RFC 5737, RFC 3849): the way there is a stranger's.
const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const STRANGER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// The address is one of the host's own: what goes there would come from there. The kernel's routes say so to a datagram
/// socket that is connected and sends nothing, so an address that came or went a moment ago is judged as it is now. Where
/// nothing is learned (no socket, no free port, somebody else's program in the way), it is taken for one.
pub(super) fn is_own(ip: IpAddr) -> bool {
    let fd = match sock::new(Speaks::Udp, ip.is_ipv6()) {
        Ok(fd) => fd,
        Err(e) => return !errors::is_no_way(&e),
    };
    match sock::connect(fd.as_fd(), SocketAddr::new(ip, DISCARD)) {
        Ok(_) => {
            sock::local(fd.as_fd()).is_none_or(|at| at.ip() == ip.to_canonical()) || loops(fd.as_fd(), ip)
        }
        // There is no way to it, for its flow as little.
        Err(e) => !errors::is_no_way(&e),
    }
}

/// The address by which the host speaks to the world now, in the family of `like`, leaving as sockets do. None: it has no
/// way there.
pub(super) fn outward(like: IpAddr, by: &Outbound) -> Option<IpAddr> {
    let far: IpAddr = if like.is_ipv4() { STRANGER.into() } else { STRANGER6.into() };
    let (fd, far) = (sock::new(Speaks::Udp, far.is_ipv6()).ok()?, SocketAddr::new(far, DISCARD));
    leave(fd.as_fd(), far, by).ok()?;
    sock::connect(fd.as_fd(), far).ok()?;
    Some(sock::local(fd.as_fd())?.ip()).filter(|a| !a.is_unspecified() && !a.is_loopback())
}

/// A socket that is connected there sends by the loopback device, as to all that is the host's own. Some of that is nobody's
/// source: anycast addresses of IPv6, and what a local route gives another (`ip route add local ... src ...`).
fn loops(fd: BorrowedFd<'_>, to: IpAddr) -> bool {
    match errors::mtu(fd, to.is_ipv4()) {
        Some(LOOPBACK_MTU) => true,
        Some(LARGEST4) if to.is_ipv4() => !is_wide_outside(),
        _ => false,
    }
}

/// Ways to strangers are as wide as the loopback device's.
fn is_wide_outside() -> bool {
    let mtu = || {
        let fd = sock::new(Speaks::Udp, false).ok()?;
        sock::connect(fd.as_fd(), SocketAddr::new(STRANGER.into(), DISCARD)).ok()?;
        errors::mtu(fd.as_fd(), true)
    };
    mtu() == Some(LARGEST4)
}

/// How often the source of a flow's socket is looked at, while the flow is used.
const LOOK: Duration = Duration::from_secs(3);

/// When the source of a flow's socket was last looked at.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Source(Option<Instant>);

impl Source {
    /// The flow's socket, which is connected there and left the host so, is looked at if it is time, and sends from where the
    /// host is no more.
    pub(super) fn is_lost(
        &mut self,
        fd: BorrowedFd<'_>,
        to: Option<SocketAddr>,
        by: &Outbound,
        now: Instant,
    ) -> bool {
        match self.0 {
            Some(at) if now.saturating_duration_since(at) < LOOK => false,
            // A new one.
            None => {
                self.0 = Some(now);
                false
            }
            Some(_) => {
                self.0 = Some(now);
                to.is_some_and(|to| is_left_behind(fd, to, by))
            }
        }
    }
}

/// What the kernel says of a connected socket whose source the host has no more: another may send all the same.
pub(super) fn is_adrift(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENETUNREACH | libc::EADDRNOTAVAIL | libc::EINVAL))
}

/// Sees to it that a socket which is to be connected there leaves the host as it shall. What stays on the host is not bound
/// to an interface: it passes none.
///
/// # Errors
/// The kernel's: the interface or the address is there no more. Then nothing leaves.
pub(super) fn leave(fd: BorrowedFd<'_>, to: SocketAddr, by: &Outbound) -> io::Result<()> {
    let (from, device) = by.of(to.ip());
    if (from.is_none() && device.is_none()) || to.ip().is_loopback() {
        return Ok(());
    }
    if let Some(device) = device.filter(|_| !is_own(to.ip())) {
        sock::to_device(fd, device.as_str())?;
    }
    let Some(from) = from else { return Ok(()) };
    // Its port is chosen when it is connected, so that flows to others may have the same.
    let _ = sock::set(fd, Opt::PortLater, 1);
    sock::bind(fd, from)
}

/// A socket that is connected there sends from an address that the host has no more, and another would not. (The kernel goes
/// on sending IPv6 so, and nobody's answer arrives.)
fn is_left_behind(fd: BorrowedFd<'_>, to: SocketAddr, by: &Outbound) -> bool {
    let source = || {
        let fresh = sock::new(Speaks::Udp, to.is_ipv6()).ok()?;
        leave(fresh.as_fd(), to, by).ok()?;
        sock::connect(fresh.as_fd(), to).ok()?;
        sock::local(fresh.as_fd())
    };
    let (Some(now), Some(new)) = (sock::local(fd), source()) else { return false };
    now.ip() != new.ip() && !is_own(now.ip())
}

/// How a socket is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Manner {
    /// Hops; 0: the host's own number.
    hops: u8,
    /// About fragmentation; none: the host's own rule.
    whole: Option<bool>,
}

impl Manner {
    /// A packet with so many hops left, of so many bytes, that must stay whole or not, wants the socket set otherwise.
    pub(super) fn differs(&self, (ttl, len, whole): (u8, u32, bool)) -> bool {
        self.hops != hops(ttl) || (len > SHORT && self.whole != Some(whole))
    }

    /// Sets a socket as a packet wants it. What the kernel does not let us set stays as it is.
    pub(super) fn follow(&mut self, fd: BorrowedFd<'_>, v4: bool, (ttl, len, whole): (u8, u32, bool)) {
        if self.hops != hops(ttl) {
            self.hops = hops(ttl);
            let n = if self.hops == 0 { -1 } else { self.hops.into() };
            let _ = sock::set(fd, if v4 { Opt::Ttl } else { Opt::Hops6 }, n);
        }
        if len > SHORT && self.whole != Some(whole) {
            self.whole = Some(whole);
            let rule = if whole { MUST_NOT_CUT } else { MAY_CUT };
            let _ = sock::set(fd, if v4 { Opt::MtuDiscover } else { Opt::MtuDiscover6 }, rule);
        }
    }
}

/// Hops that a socket is set to for a packet that has so many left; 0: the host's own number.
fn hops(ttl: u8) -> u8 {
    let left = ttl.saturating_sub(1);
    if left < FEW_HOPS { left } else { 0 }
}
