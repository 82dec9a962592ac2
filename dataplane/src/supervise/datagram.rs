//! Datagram sockets: opened, bound and connected here, so that the dataplane names no address.
//!
//! | form | sends | receives |
//! |---|---|---|
//! | UDP, L2TPv3 | connected to the peer | the same, and from others (to be counted, where they are not taken) one that cannot send |
//! | L2TPv3 over IP | connected to the peer, the filter locked on its session, by the helper or by us | the same |
//! | multicast | connected to the group | one in the group that cannot send |
//! | UNIX without a peer | connected to whoever comes: [`Reception`] | the same |
//! | UNIX | aimed at the peer's path, again and again: [`Aim`] | the same |
//!
//! Trust: the user. Promise: a socket that is to receive only is shut down for sending; an address that another user
//! could bind beside ours is not left so.
#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use netreeve_shared::request::{L2tpRequest, Request};
use netreeve_shared::{fdkind, l2tp};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr,
    setsockopt, sockopt,
};

use crate::fault::{Exit, Fault};
use crate::frame::MAX_FRAME;
use crate::port::dgram::l2tp::{Carrier, Session};
use crate::port::dgram::{Plan, Sources};
use crate::spec::dgram::{Dgram, Ends, Host, UnixName};
use crate::spec::l2tpv3::L2tpv3;
use crate::supervise::ask::Asker;
use crate::supervise::listen::{self, SocketFile};
use crate::supervise::reception::Reception;
use crate::sys::fd::{lock_filter, raw_socket};

/// Bytes of a socket's queues that are asked for; the kernel gives what it allows.
const QUEUE: usize = 4 << 20;
/// How often a UNIX socket is aimed anew: who was there may have been replaced.
const AIM: Duration = Duration::from_millis(500);
const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// A datagram port's sockets.
#[derive(Debug)]
pub struct Opened {
    /// The one that sends, and perhaps one that only receives.
    pub sockets: Vec<OwnedFd>,
    /// What a dataplane makes of them.
    pub plan: Plan,
    /// Where a UNIX socket is aimed.
    pub aim: Option<Aim>,
    /// Where clients come to.
    pub reception: Option<Reception>,
    /// The file of a UNIX socket.
    pub file: Option<SocketFile>,
}

/// Keeps a UNIX socket connected to whoever is at the peer's path. A connected one cannot go to somebody else by itself,
/// and its peer may be replaced while nobody sends; to connect it to whom it is connected to changes nothing.
#[derive(Debug)]
pub struct Aim {
    socket: OwnedFd,
    at: UnixAddr,
    due: Instant,
}

impl Aim {
    /// When to aim next.
    #[must_use]
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Aims, if it is time to. Nobody there is no error: somebody may come.
    pub fn step(&mut self, now: Instant) {
        if self.due <= now {
            let _nobody = socket::connect(self.socket.as_raw_fd(), &self.at);
            self.due = now + AIM;
        }
    }
}

/// Opens what `spec` says.
///
/// # Errors
/// The address cannot be had.
pub fn open(what: &str, spec: &Dgram, inherited: Vec<OwnedFd>, mode: u32) -> Result<Opened, Fault> {
    let mut opened = match &spec.ends {
        Ends::Udp(local, remote) => udp(what, local, remote, spec.strict, None)?,
        Ends::Multicast(group, interface) => multicast(what, *group, *interface)?,
        Ends::Unix(local, remote) => unix(what, local, remote, mode)?,
        Ends::Visitors(path) => {
            let (reception, file) = Reception::open(what, path, mode)?;
            let plan = Plan {
                sources: Sources::Any,
                l2tp: None,
                cut: false,
                waits: true,
                max_frame: MAX_FRAME,
                undone: None,
            };
            Opened { sockets: vec![], plan, aim: None, reception: Some(reception), file: Some(file) }
        }
        Ends::Fd(n) => handed(what, *n, inherited)?,
    };
    opened.plan.undone = spec.undone;
    Ok(opened)
}

fn fault(what: &str, doing: &str, e: &io::Error) -> Fault {
    let exit = if e.kind() == io::ErrorKind::PermissionDenied { Exit::Denied } else { Exit::Unavailable };
    Fault::new(
        exit,
        format!("{what}: {doing}"),
        e,
        "see that the address is this machine's and the port is free",
    )
}

/// UDP sockets of ours at `local` for `remote`.
///
/// # Errors
/// An address cannot be found or had.
pub fn udp(
    what: &str,
    local: &Host,
    remote: &Host,
    strict: bool,
    l2tp: Option<Session>,
) -> Result<Opened, Fault> {
    let remote = remote.resolve(what, None)?;
    let local = local.resolve(what, Some(remote))?;
    let doing = format!("UDP from {local} to {remote}");
    let sockets = udp_sockets(local, remote).map_err(|e| fault(what, &doing, &e))?;
    let sources = if strict { Sources::Only(remote) } else { Sources::Any };
    let plan = Plan { sources, l2tp, cut: true, waits: false, max_frame: MAX_FRAME, undone: None };
    Ok(Opened { sockets, plan, aim: None, reception: None, file: None })
}

/// An L2TPv3 session, over UDP or over IP. Over IP the helper is asked for the socket by whoever has no `CAP_NET_RAW`.
///
/// # Errors
/// An address cannot be found or had; over IP, the helper does not give it.
pub fn l2tp(what: &str, spec: &L2tpv3, asker: &mut Asker) -> Result<Opened, Fault> {
    if spec.session.carrier == Carrier::Udp {
        return udp(what, &spec.src, &spec.dst, true, Some(spec.session));
    }
    let remote = spec.dst.resolve(what, None)?;
    let local = spec.src.resolve(what, Some(remote))?;
    let socket = match raw(local, remote, &spec.session) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let session = spec.session.rx;
            let request = L2tpRequest { src: local.ip(), dst: remote.ip(), session };
            asker.socket(what, &Request::L2tp(request))?
        }
        other => other.map_err(|e| {
            let doing = format!("{what}: L2TPv3 over IP from {} to {}", local.ip(), remote.ip());
            Fault::new(Exit::Unavailable, doing, e, "see that src= is an address of this machine")
        })?,
    };
    queues(&socket);
    let plan = Plan {
        sources: Sources::Any,
        l2tp: Some(spec.session),
        cut: false,
        waits: false,
        max_frame: MAX_FRAME,
        undone: None,
    };
    Ok(Opened { sockets: vec![socket], plan, aim: None, reception: None, file: None })
}

/// Bound, connected, and deaf for ever to other sessions than ours.
fn raw(local: SocketAddr, remote: SocketAddr, session: &Session) -> io::Result<OwnedFd> {
    let socket = raw_socket(local.is_ipv6(), l2tp::PROTOCOL)?;
    // Bound to our address and deaf before the first packet may come.
    lock_filter(socket.as_fd(), &l2tp::only_session(local.is_ipv6(), session.rx))?;
    let at = |a: SocketAddr| SockaddrStorage::from(SocketAddr::new(a.ip(), 0));
    socket::bind(socket.as_raw_fd(), &at(local))?;
    socket::connect(socket.as_raw_fd(), &at(remote))?;
    // What others have sent between the two.
    forget(&socket);
    // No program that we start may have what we were started with.
    let _none = caps::clear(None, caps::CapSet::Ambient);
    Ok(socket)
}

/// Reads what came before a socket was its peer's alone. An error that it brings along (ICMP's, of a peer before) is not
/// the end of it; more than wait in a receive buffer are the peer's own, who could go on for ever.
pub(crate) fn forget(socket: &OwnedFd) {
    let recv = || socket::recv(socket.as_raw_fd(), &mut [0; 1], MsgFlags::MSG_DONTWAIT);
    let _heard = (0..4096).find(|_| recv() == Err(Errno::EAGAIN));
}

fn udp_sockets(local: SocketAddr, remote: SocketAddr) -> io::Result<Vec<OwnedFd>> {
    let both = [udp_socket(local)?, udp_socket(local)?];
    let [tx, rx] = &both;
    // The first shares with nobody: who was there before, willing to share, would get what is meant for us, and could send
    // in our name.
    socket::bind(tx.as_raw_fd(), &SockaddrStorage::from(local))?;
    // The second shares with the first as sockets of one user do; with SO_REUSEADDR another user could slip in beside them.
    for fd in [tx, rx] {
        setsockopt(fd, sockopt::ReusePort, &true)?;
    }
    // A port of the kernel's choice is the same for both.
    socket::bind(rx.as_raw_fd(), &socket::getsockname::<SockaddrStorage>(tx.as_raw_fd())?)?;
    // From now on nobody else can bind it.
    for fd in [tx, rx] {
        setsockopt(fd, sockopt::ReusePort, &false)?;
    }
    socket::connect(tx.as_raw_fd(), &SockaddrStorage::from(remote))?;
    receive_only(rx)?;
    Ok(both.into())
}

fn udp_socket(of: SocketAddr) -> io::Result<OwnedFd> {
    let family = SockaddrStorage::from(of).family().unwrap_or(AddressFamily::Inet);
    let fd = socket::socket(family, SockType::Datagram, FLAGS, None)?;
    if of.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    queues(&fd);
    // Kernels before 5.0 do not join.
    let _older = setsockopt(&fd, sockopt::UdpGroSegment, &true);
    Ok(fd)
}

/// Asks for long queues.
pub(crate) fn queues(fd: &OwnedFd) {
    let _less = setsockopt(fd, sockopt::RcvBuf, &QUEUE);
    let _less = setsockopt(fd, sockopt::SndBuf, &QUEUE);
}

/// Sends no more. The kernel says that it is not connected, and does it.
fn receive_only(fd: &OwnedFd) -> io::Result<()> {
    match socket::shutdown(fd.as_raw_fd(), Shutdown::Write) {
        Ok(()) | Err(Errno::ENOTCONN) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// A multicast group, joined on the interface of this address.
///
/// # Errors
/// It cannot be joined, or no route leads there.
pub fn multicast(what: &str, group: SocketAddr, interface: Option<IpAddr>) -> Result<Opened, Fault> {
    let (sockets, us) = multicast_sockets(group, interface).map_err(|e| {
        let doing = format!("joining the multicast group {group}");
        let fix = "give the address of an interface of this machine (local.host= or localaddr=), or a route to the group";
        Fault::new(Exit::Unavailable, format!("{what}: {doing}"), e, fix)
    })?;
    let plan = Plan {
        sources: Sources::NotFrom(us),
        l2tp: None,
        cut: true,
        waits: false,
        max_frame: MAX_FRAME,
        undone: None,
    };
    Ok(Opened { sockets, plan, aim: None, reception: None, file: None })
}

fn multicast_sockets(group: SocketAddr, interface: Option<IpAddr>) -> io::Result<(Vec<OwnedFd>, SocketAddr)> {
    // A port of its own, so that our frames are known among those of others on this machine when they come back.
    let from = match (group, interface) {
        (_, Some(ip)) => SocketAddr::new(ip, 0),
        (SocketAddr::V4(_), None) => SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0),
        (SocketAddr::V6(_), None) => SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), 0),
    };
    let tx = UdpSocket::from(udp_socket(group)?);
    socket::bind(tx.as_raw_fd(), &SockaddrStorage::from(from))?;
    let rx = udp_socket(group)?;
    // Others on this machine are in the group too.
    setsockopt(&rx, sockopt::ReuseAddr, &true)?;
    socket::bind(rx.as_raw_fd(), &SockaddrStorage::from(group))?;
    let rx = UdpSocket::from(rx);
    match (group, interface) {
        (SocketAddr::V4(g), ip) => {
            let at = if let Some(IpAddr::V4(ip)) = ip { ip } else { Ipv4Addr::UNSPECIFIED };
            rx.join_multicast_v4(g.ip(), &at)?;
            tx.set_multicast_loop_v4(true)?;
        }
        (SocketAddr::V6(g), ip) => {
            let index = ip.map_or(Ok(g.scope_id()), index_of)?;
            rx.join_multicast_v6(g.ip(), index)?;
            tx.set_multicast_loop_v6(true)?;
        }
    }
    tx.connect(group)?;
    let us = tx.local_addr()?;
    let both = vec![OwnedFd::from(tx), OwnedFd::from(rx)];
    both.get(1).map_or(Ok(()), receive_only)?;
    Ok((both, us))
}

/// The index of the interface that has this address.
fn index_of(ip: IpAddr) -> io::Result<u32> {
    let has = |a: &nix::ifaddrs::InterfaceAddress| {
        let of = a.address.as_ref().and_then(SockaddrStorage::as_sockaddr_in6).map(|s| IpAddr::from(s.ip()));
        of == Some(ip)
    };
    let name = nix::ifaddrs::getifaddrs()?.find(has).map(|a| a.interface_name);
    let name = name.ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok(if_nametoindex(name.as_str())?)
}

fn unix(what: &str, local: &UnixName, remote: &UnixName, mode: u32) -> Result<Opened, Fault> {
    let failed = |e: io::Error| fault(what, &format!("datagrams at {local}"), &e);
    let (socket, file) = match local {
        UnixName::Path(path) => {
            let (socket, file) = listen::bind(what, path, mode, SockType::Datagram)?;
            (socket, Some(file))
        }
        UnixName::Abstract(name) => {
            let bind = || -> io::Result<OwnedFd> {
                let socket = socket::socket(AddressFamily::Unix, SockType::Datagram, FLAGS, None)?;
                socket::bind(socket.as_raw_fd(), &UnixAddr::new_abstract(name)?)?;
                Ok(socket)
            };
            (bind().map_err(failed)?, None)
        }
    };
    queues(&socket);
    let at = match remote {
        UnixName::Path(path) => UnixAddr::new(path as &Path),
        UnixName::Abstract(name) => UnixAddr::new_abstract(name),
    };
    let now = Instant::now();
    let mut aim =
        Aim { socket: socket.try_clone().map_err(failed)?, at: at.map_err(|e| failed(e.into()))?, due: now };
    aim.step(now);
    let plan = Plan {
        sources: Sources::Any,
        l2tp: None,
        cut: false,
        waits: false,
        max_frame: MAX_FRAME,
        undone: None,
    };
    Ok(Opened { sockets: vec![socket], plan, aim: Some(aim), reception: None, file })
}

/// A socket that this process inherited.
///
/// # Errors
/// It is no datagram socket, or has no peer.
pub fn handed(what: &str, n: i32, inherited: Vec<OwnedFd>) -> Result<Opened, Fault> {
    let fault = |why: String| {
        let fix = "pass a connected datagram socket, or one end of a pair";
        Fault::new(Exit::Config, format!("{what}: using descriptor {n}"), why, fix)
    };
    let fd = inherited.into_iter().next().ok_or_else(|| fault("it is not there".into()))?;
    let about = fdkind::socket(fd.as_fd()).map_err(|e| fault(e.to_string()))?;
    if about.kind != libc::SOCK_DGRAM {
        return Err(fault("it is no datagram socket".into()));
    }
    socket::getpeername::<SockaddrStorage>(fd.as_raw_fd())
        .map_err(|_| fault("it is not connected".into()))?;
    let inet = about.family == libc::AF_INET || about.family == libc::AF_INET6;
    if inet {
        let _older = setsockopt(&fd, sockopt::UdpGroSegment, &true);
    }
    let plan = Plan {
        sources: Sources::Any,
        l2tp: None,
        cut: inet,
        waits: false,
        max_frame: MAX_FRAME,
        undone: None,
    };
    Ok(Opened { sockets: vec![fd], plan, aim: None, reception: None, file: None })
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    /// A socket there that is willing to share, or the kernel's no.
    fn squat(at: SocketAddr, address: bool, port: bool) -> io::Result<OwnedFd> {
        let fd = socket::socket(AddressFamily::Inet, SockType::Datagram, FLAGS, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &address)?;
        setsockopt(&fd, sockopt::ReusePort, &port)?;
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(at))?;
        Ok(fd)
    }

    #[test]
    fn a_udp_port_is_shared_with_nobody_who_came_before_or_comes_after() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let peer = UdpSocket::bind(any).unwrap();
        let remote = peer.local_addr().unwrap();
        for (address, port) in [(true, false), (false, true), (true, true)] {
            for wild in [false, true] {
                let first = if wild { "0.0.0.0:0".parse().unwrap() } else { any };
                let squatter = UdpSocket::from(squat(first, address, port).unwrap());
                let at = SocketAddr::new(any.ip(), squatter.local_addr().unwrap().port());
                let e = udp_sockets(at, remote).unwrap_err();
                assert_eq!(e.kind(), io::ErrorKind::AddrInUse, "{address} {port} {wild}");
                drop(squatter);
                let ours: Vec<_> =
                    udp_sockets(at, remote).unwrap().into_iter().map(UdpSocket::from).collect();
                assert!(ours.iter().all(|s| s.local_addr().unwrap() == at));
                for at in [at, SocketAddr::new(first.ip(), at.port())] {
                    let e = squat(at, address, port).unwrap_err();
                    assert_eq!(e.kind(), io::ErrorKind::AddrInUse, "{address} {port} {at}");
                }
                // The peer's datagrams come to the one that is connected, everybody else's to the other.
                let mut got = [0; 9];
                peer.send_to(b"peer", at).unwrap();
                for _ in 0..16 {
                    UdpSocket::bind(any).unwrap().send_to(b"stranger", at).unwrap();
                }
                ours.iter().for_each(|s| s.set_nonblocking(false).unwrap());
                assert_eq!(ours[0].recv(&mut got).unwrap(), 4);
                for _ in 0..16 {
                    assert_eq!(ours[1].recv(&mut got).unwrap(), 8);
                }
            }
        }
    }

    #[test]
    fn a_multicast_port_is_shared() {
        let group: SocketAddr = "239.255.77.1:0".parse().unwrap();
        let first = UdpSocket::from(squat(group, true, false).unwrap());
        let group = first.local_addr().unwrap();
        let lo = Some("127.0.0.1".parse().unwrap());
        let (_one, _) = multicast_sockets(group, lo).unwrap();
        let (_two, _) = multicast_sockets(group, lo).unwrap();
    }

    #[test]
    fn what_came_before_is_forgotten_behind_an_error_too() {
        let [ours, stranger] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        for _ in 0..3 {
            stranger.send_to(b"x", ours.local_addr().unwrap()).unwrap();
        }
        let nobody = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        ours.connect(nobody).unwrap();
        ours.send(b"?").unwrap();
        let mut fds = [PollFd::new(ours.as_fd(), PollFlags::empty())];
        assert_eq!(poll(&mut fds, PollTimeout::from(5000_u16)).unwrap(), 1, "nobody is there, says ICMP");
        let ours = OwnedFd::from(ours);
        forget(&ours);
        let rest = socket::recv(ours.as_raw_fd(), &mut [0; 9], MsgFlags::MSG_DONTWAIT);
        assert_eq!(rest, Err(Errno::EAGAIN));
    }
}
