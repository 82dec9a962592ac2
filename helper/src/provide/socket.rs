//! Sockets that only the privileged may make or bind: of an L2TPv3 session over IP, and at low ports.
//!
//! Trust: the request is allowed and in range. Promise: a raw socket never receives what is not its session's, from its
//! first packet on, and the filter that sees to that cannot be taken off; a socket is bound where the policy says, and
//! no capability is needed to use it. What a holder can send from a raw socket is not held to anything here: the policy
//! gives that right with it.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use netreeve_shared::l2tp;
use netreeve_shared::refusal::{Refusal, Step};
use netreeve_shared::request::{L2tpRequest, ListenRequest};
use nix::errno::Errno::{self, EAGAIN};
use nix::sys::socket::{self, Backlog, MsgFlags, SockaddrStorage, recv, setsockopt, sockopt};

use super::{At, failed};
use crate::{privilege, sys};

/// The raw socket of one session: deaf to others before it is bound.
pub(crate) fn l2tp(asked: &L2tpRequest) -> Result<OwnedFd, Refusal> {
    let socket = privilege::with(privilege::SOCKET, || make(asked.src, libc::SOCK_RAW, l2tp::PROTOCOL))?;
    sys::lock_filter(&socket, &l2tp::only_session(asked.src.is_ipv6(), asked.session))
        .at(Step::LockFilter)?;
    socket::bind(socket.as_raw_fd(), &at(asked.src, 0)).at(Step::BindAddress)?;
    socket::connect(socket.as_raw_fd(), &at(asked.dst, 0)).at(Step::BindAddress)?;
    // What others than the peer have sent between the two; more than a receive buffer holds is the peer's own. An error
    // that the socket brings along (ICMP's) is not the end.
    let _ = (0..4096).find(|_| recv(socket.as_raw_fd(), &mut [0; 1], MsgFlags::empty()) == Err(EAGAIN));
    Ok(socket)
}

/// A TCP socket that listens, or a bound UDP socket.
pub(crate) fn listen(asked: &ListenRequest) -> Result<OwnedFd, Refusal> {
    let kind = if asked.udp { libc::SOCK_DGRAM } else { libc::SOCK_STREAM };
    let socket = make(asked.address, kind, 0)?;
    if asked.address.is_ipv6() {
        // Of both families is what nobody has judged.
        setsockopt(&socket, sockopt::Ipv6V6Only, &true).at(Step::BindAddress)?;
    }
    // TCP: beside what is left of connections of before. (UDP would share the port.)
    setsockopt(&socket, sockopt::ReuseAddr, &!asked.udp).at(Step::BindAddress)?;
    let bind = || Ok(socket::bind(socket.as_raw_fd(), &at(asked.address, asked.port)));
    let listen = || if asked.udp { Ok(()) } else { socket::listen(&socket, Backlog::MAXCONN) };
    match privilege::with(privilege::PORT, bind)?.and_then(|()| listen()) {
        Ok(()) => Ok(socket),
        Err(Errno::EADDRINUSE) => Err(Refusal::Busy),
        Err(why) => Err(failed(Step::BindAddress, why)),
    }
}

fn make(address: IpAddr, kind: i32, protocol: i32) -> Result<OwnedFd, Refusal> {
    let family = if address.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
    sys::socket(family, kind | libc::SOCK_NONBLOCK, protocol).at(Step::MakeSocket)
}

fn at(address: IpAddr, port: u16) -> SockaddrStorage {
    SocketAddr::new(address, port).into()
}
