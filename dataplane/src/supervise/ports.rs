//! The sockets of a `user` network's forwards: each at an address and a port, perhaps at an interface alone.
//!
//! Trust: the user, who names them. Promise: what cannot be had is said with what is to be done about it; a port below 1024 is
//! asked of the helper where the kernel refuses it.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use netreeve_shared::request::{ListenRequest, Request};
use nix::sys::socket::{
    self, AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, setsockopt, sockopt,
};

use super::ask::{Asker, user_name};
use crate::fault::{Exit, Fault};
use crate::port::user::plan::Outbound;
use crate::spec::forward::Bind;
use crate::sys::mmsg::tell_local;

/// Connections that may wait for the guest.
const BACKLOG: i32 = 128;
const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// A socket at this address and first port, listening if it is of streams; and its port, which the kernel may have chosen.
///
/// # Errors
/// The kernel's.
pub(super) fn bind(to: &Bind, kind: SockType) -> io::Result<(OwnedFd, u16)> {
    bound(to, kind, kind == SockType::Stream)
}

/// `shared`: those that listen there no more, or that allow it, are no obstacle.
///
/// # Errors
/// The kernel's.
pub(super) fn bound(to: &Bind, kind: SockType, shared: bool) -> io::Result<(OwnedFd, u16)> {
    match bind_at(to.at, to, kind, shared) {
        // A host without IPv6 has one family for both.
        Err(e) if to.both && e.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            bind_at(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), to.at.port()), to, kind, shared)
        }
        bound => bound,
    }
}

/// One of datagrams beside another that allows it.
///
/// # Errors
/// The kernel's.
pub(super) fn again(to: &Bind) -> io::Result<OwnedFd> {
    bound(to, SockType::Datagram, true).map(|(new, _)| new)
}

/// A socket of datagrams at the port of another one, whose place it takes: at no moment is that port free for others. `make` is
/// [`again`], or does it elsewhere.
///
/// # Errors
/// The kernel's.
pub(super) fn beside(
    old: &OwnedFd,
    to: &Bind,
    make: impl FnOnce(&Bind) -> io::Result<OwnedFd>,
) -> io::Result<OwnedFd> {
    let port = local_port(old)?.unwrap_or(to.at.port());
    let mut to = Bind { last: port, ..*to };
    to.at.set_port(port);
    setsockopt(old, sockopt::ReuseAddr, &true)?;
    let new = make(&to);
    // The old one ends, or stays as it was; with the new one nobody shares.
    setsockopt(new.as_ref().unwrap_or(old), sockopt::ReuseAddr, &false)?;
    new
}

fn local_port(socket: &OwnedFd) -> io::Result<Option<u16>> {
    let at: SockaddrStorage = socket::getsockname(socket.as_raw_fd())?;
    Ok(at.as_sockaddr_in().map(|a| a.port()).or(at.as_sockaddr_in6().map(|a| a.port())))
}

fn bind_at(at: SocketAddr, to: &Bind, kind: SockType, shared: bool) -> io::Result<(OwnedFd, u16)> {
    let address = SockaddrStorage::from(at);
    let socket = socket::socket(address.family().unwrap_or(AddressFamily::Inet), kind, FLAGS, None)?;
    if at.is_ipv6() {
        // An address of IPv4 has a rule of its own.
        setsockopt(&socket, sockopt::Ipv6V6Only, &!to.both)?;
    }
    if shared {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    if let Some(device) = to.device {
        // Nobody needs a privilege for it since Linux 5.7.
        setsockopt(&socket, sockopt::BindToDevice, &OsString::from(device.as_str()))?;
    }
    if to.free {
        // IPv6 has the same switch behind it.
        setsockopt(&socket, sockopt::IpFreebind, &true)?;
    }
    socket::bind(socket.as_raw_fd(), &address)?;
    if kind == SockType::Stream {
        socket::listen(&socket, Backlog::new(BACKLOG)?)?;
    }
    if kind == SockType::Datagram {
        tell_local(socket.as_fd(), at.is_ipv6())?;
    }
    let port = local_port(&socket)?;
    Ok((socket, port.unwrap_or(at.port())))
}

/// Finds out whether sockets can leave the host so.
///
/// # Errors
/// They cannot.
pub(super) fn leaves(what: &str, by: &Outbound) -> Result<(), Fault> {
    for (any, family) in [(IpAddr::from(Ipv4Addr::UNSPECIFIED), 4), (Ipv6Addr::UNSPECIFIED.into(), 6)] {
        let (from, device) = by.of(any);
        if from.is_none() && device.is_none() {
            continue;
        }
        let at = SocketAddr::new(from.unwrap_or(any), 0);
        let to = Bind { device, ..at.into() };
        bind(&to, SockType::Datagram).map_err(|e| {
            let option = match (from, device) {
                (Some(a), _) if e.raw_os_error() != Some(libc::ENODEV) => format!("outbound={a}"),
                (_, Some(d)) => format!("outbound-if{family}={d}"),
                (..) => "outbound=".into(),
            };
            let exit = if e.kind() == io::ErrorKind::PermissionDenied { Exit::Denied } else { Exit::Config };
            Fault::new(exit, format!("{what}: {option}"), words(&e), remedy(&e, &to, false))
        })?;
    }
    Ok(())
}

/// The port is somebody else's: who would take any that are free goes without.
pub(super) fn is_another_s(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EADDRINUSE | libc::EACCES))
}

/// The helper could have it: it gives an address, and listens already, so there is no place for what is more.
fn is_plain(to: &Bind) -> bool {
    !to.both && to.device.is_none() && !to.willing && !to.free && !to.inside
}

/// A port that is root's, from the helper, if it is there and its policy allows it; else what the kernel said of our try.
///
/// # Errors
/// That.
pub(super) fn by_helper(
    what: &str,
    to: &Bind,
    udp: bool,
    e: io::Error,
    asker: &mut Asker,
) -> io::Result<(OwnedFd, u16)> {
    let at = to.at;
    if e.raw_os_error() != Some(libc::EACCES) || at.port() == 0 || !is_plain(to) {
        return Err(e);
    }
    let request = Request::Listen(ListenRequest { udp, address: at.ip(), port: at.port() });
    match asker.socket(what, &request) {
        Ok(socket) if udp => tell_local(socket.as_fd(), at.is_ipv6()).map(|()| (socket, at.port())),
        Ok(socket) => Ok((socket, at.port())),
        Err(fault) if fault.exit == Exit::TryAgain => Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
        // No helper, or it refuses: what is to be done is the same.
        Err(_) => Err(e),
    }
}

/// The kernel's words, without Rust's number.
pub(super) fn words(e: &io::Error) -> String {
    e.to_string().split(" (os error").next().unwrap_or_default().to_owned()
}

/// What is to be done about it.
pub(super) fn remedy(e: &io::Error, to: &Bind, tcp: bool) -> String {
    let (ip, port) = (to.at.ip(), to.at.port());
    match e.raw_os_error() {
        Some(libc::EADDRINUSE) if to.inside => {
            format!("somebody inside the namespace has port {port}: give another, or leave it out")
        }
        Some(libc::EACCES) if to.inside => {
            "ports below 1024 are those of root inside the namespace: give one above, or join its user namespace".into()
        }
        Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT) if to.inside => {
            format!("{ip} is no address inside the namespace")
        }
        Some(libc::EADDRINUSE) => {
            let list = if tcp { "ss -ltnp" } else { "ss -lunp" };
            format!("see who has it ({list} sport = {port}), or give another port; 0 takes any that is free")
        }
        Some(libc::EACCES) if !is_plain(to) => format!(
            "ports below 1024 are root's: give one above, or an address without '*', '%', '+try' and \
             '+freebind', for which the helper can be asked, or let root say 'sysctl net.ipv4.ip_unprivileged_port_start={port}' for everybody"
        ),
        Some(libc::EACCES) => format!(
            "ports below 1024 are root's: give one above, or let root add 'allow user:{} listen {ip} port={port}' to \
             /etc/netreeve/policy.conf for the helper, or 'sysctl net.ipv4.ip_unprivileged_port_start={port}' for everybody",
            user_name()
        ),
        Some(libc::EADDRNOTAVAIL) => format!("{ip} is no address of this machine (ip address shows them)"),
        Some(libc::ENODEV) => "there is no such interface (ip link shows them)".into(),
        Some(libc::EPERM) => "sockets are bound to interfaces without privilege since Linux 5.7".into(),
        Some(libc::EMFILE | libc::ENFILE) => "raise the limit (ulimit -Hn), or forward fewer ports".into(),
        Some(libc::EAFNOSUPPORT) => "this machine has no IPv6: give an IPv4 address".into(),
        _ => "give another address or port".into(),
    }
}
