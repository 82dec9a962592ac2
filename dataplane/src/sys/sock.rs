//! Sockets of our own making: the `user` network's. Each function is one call, and nothing here ever waits.
//!
//! Which families, types and options there are is fixed here, and the sandbox's filter knows the same list
//! (`port::user::CALLS`).

use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use crate::mem::Seg;
use crate::sys::sock_name::Name;
pub use crate::sys::sock_said::{Said, said};

/// Flags of every socket's type.
pub const FLAGS: i32 = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
/// `SOL_UDP` and its options (linux/udp.h).
pub const SOL_UDP: i32 = 17;
/// The kernel gives joined datagrams as one.
pub const UDP_GRO: i32 = 104;
/// `IP_BIND_ADDRESS_NO_PORT` (linux/in.h).
const BIND_ADDRESS_NO_PORT: i32 = 24;
/// `SIOCOUTQ`: bytes that the peer has not acknowledged (linux/sockios.h).
pub const UNSENT: u32 = 0x5411;
/// `SIOCINQ`: bytes to be read.
pub const UNREAD: u32 = 0x541b;

/// What a socket speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Echo requests (ICMP or ICMPv6): needs `net.ipv4.ping_group_range`.
    Ping,
}

/// A socket, non-blocking and close-on-exec.
///
/// # Errors
/// The kernel's: no descriptors, no such family here, no right to echo requests.
pub fn new(speaks: Speaks, ipv6: bool) -> Result<OwnedFd> {
    let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
    let (kind, protocol) = match (speaks, ipv6) {
        (Speaks::Tcp, _) => (libc::SOCK_STREAM, 0),
        (Speaks::Udp, _) => (libc::SOCK_DGRAM, 0),
        (Speaks::Ping, false) => (libc::SOCK_DGRAM, libc::IPPROTO_ICMP),
        (Speaks::Ping, true) => (libc::SOCK_DGRAM, libc::IPPROTO_ICMPV6),
    };
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(family, kind | FLAGS, protocol) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn done<N>(n: N) -> Result<usize>
where
    usize: TryFrom<N>,
{
    usize::try_from(n).map_err(|_| Error::last_os_error())
}

/// `connect(2)`. True: done at once; false: under way, and writable when it is decided ([`error`] says how).
///
/// # Errors
/// The kernel's.
pub fn connect(fd: BorrowedFd<'_>, to: SocketAddr) -> Result<bool> {
    let name = Name::of(to);
    // SAFETY: `name` holds an address of the length that is said, and outlives the call.
    if unsafe { libc::connect(fd.as_raw_fd(), name.as_ptr(), name.len) } == 0 {
        return Ok(true);
    }
    match Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok(false),
        e => Err(e),
    }
}

/// [`connect`] to somebody else: where nobody is at one of the host's own ports, the port that the kernel chooses for us may be
/// that one, and TCP and UDP sockets that were connected to themselves hear themselves.
///
/// # Errors
/// The kernel's; `ECONNREFUSED` as well if we are there.
pub fn call(fd: BorrowedFd<'_>, to: SocketAddr) -> Result<bool> {
    let done = connect(fd, to)?;
    if local(fd).is_some_and(|at| (at.ip().to_canonical(), at.port()) == (to.ip().to_canonical(), to.port()))
    {
        return Err(Error::from_raw_os_error(libc::ECONNREFUSED));
    }
    Ok(done)
}

/// `bind(2)` to an address; the port is the kernel's choice.
///
/// # Errors
/// The kernel's: it is no address of the host's.
pub fn bind(fd: BorrowedFd<'_>, at: IpAddr) -> Result<()> {
    let name = Name::of(SocketAddr::new(at, 0));
    // SAFETY: `name` holds an address of the length that is said, and outlives the call.
    match unsafe { libc::bind(fd.as_raw_fd(), name.as_ptr(), name.len) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

/// Binds to an interface: what it sends goes by it, and only what comes by it is received. Needs no privilege since
/// Linux 5.7, once for each socket.
///
/// # Errors
/// The kernel's: there is no such interface.
pub fn to_device(fd: BorrowedFd<'_>, name: &str) -> Result<()> {
    set_raw(fd, (libc::SOL_SOCKET, libc::SO_BINDTODEVICE), name.as_ptr().cast(), name.len())
}

/// Options that are numbers. [`Opt::name`] is what the filter lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opt {
    /// Small segments go at once.
    NoDelay,
    /// Peer is asked whether it is still there.
    KeepAlive,
    /// Seconds of silence before the peer is asked whether it is there.
    KeepIdle,
    /// Seconds between such questions.
    KeepInterval,
    /// Where peeking begins, in bytes; -1: at the start, always. It moves on by what is peeked and back by what is taken.
    PeekOff,
    /// Urgent bytes stay in their place among the others.
    UrgentInline,
    /// Errors of the network are kept to be asked for, IPv4.
    RecvErr,
    /// The same, IPv6.
    RecvErr6,
    /// Joined datagrams come as one.
    UdpGro,
    /// Whether datagrams may be fragmented, IPv4: `IP_PMTUDISC_*`.
    MtuDiscover,
    /// The same, IPv6.
    MtuDiscover6,
    /// Hops, IPv4.
    Ttl,
    /// Hops, IPv6.
    Hops6,
    /// Bytes that are kept to be sent; the kernel doubles it.
    SendBuffer,
    /// Bytes that are kept to be read; the kernel doubles it.
    ReceiveBuffer,
    /// Hops of what comes in are told, IPv4.
    RecvTtl,
    /// The same, IPv6.
    RecvHops6,
    /// A socket that is bound to an address without a port gets one when it is connected, either family.
    PortLater,
}

impl Opt {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::NoDelay,
        Self::KeepAlive,
        Self::KeepIdle,
        Self::KeepInterval,
        Self::PeekOff,
        Self::UrgentInline,
        Self::RecvErr,
        Self::RecvErr6,
        Self::UdpGro,
        Self::MtuDiscover,
        Self::MtuDiscover6,
        Self::Ttl,
        Self::Hops6,
        Self::SendBuffer,
        Self::ReceiveBuffer,
        Self::RecvTtl,
        Self::RecvHops6,
        Self::PortLater,
    ];

    /// Level and number.
    #[must_use]
    pub const fn name(self) -> (i32, i32) {
        match self {
            Self::NoDelay => (libc::IPPROTO_TCP, libc::TCP_NODELAY),
            Self::KeepAlive => (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
            Self::KeepIdle => (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
            Self::KeepInterval => (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
            Self::PeekOff => (libc::SOL_SOCKET, libc::SO_PEEK_OFF),
            Self::UrgentInline => (libc::SOL_SOCKET, libc::SO_OOBINLINE),
            Self::RecvErr => (libc::IPPROTO_IP, libc::IP_RECVERR),
            Self::RecvErr6 => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
            Self::UdpGro => (SOL_UDP, UDP_GRO),
            Self::MtuDiscover => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
            Self::MtuDiscover6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
            Self::Ttl => (libc::IPPROTO_IP, libc::IP_TTL),
            Self::Hops6 => (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
            Self::SendBuffer => (libc::SOL_SOCKET, libc::SO_SNDBUF),
            Self::ReceiveBuffer => (libc::SOL_SOCKET, libc::SO_RCVBUF),
            Self::RecvTtl => (libc::IPPROTO_IP, libc::IP_RECVTTL),
            Self::RecvHops6 => (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT),
            Self::PortLater => (libc::IPPROTO_IP, BIND_ADDRESS_NO_PORT),
        }
    }
}

fn set_raw(
    fd: BorrowedFd<'_>,
    (level, option): (i32, i32),
    value: *const libc::c_void,
    len: usize,
) -> Result<()> {
    let len = libc::socklen_t::try_from(len).map_err(|_| ErrorKind::InvalidInput)?;
    // SAFETY: the callers below pass a value of their own with its size.
    match unsafe { libc::setsockopt(fd.as_raw_fd(), level, option, value, len) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

/// `setsockopt(2)`.
///
/// # Errors
/// The kernel's.
pub fn set(fd: BorrowedFd<'_>, opt: Opt, value: i32) -> Result<()> {
    set_raw(fd, opt.name(), (&raw const value).cast(), size_of_val(&value))
}

/// Closing it resets the connection (`SO_LINGER` of no time).
///
/// # Errors
/// The kernel's.
pub fn reset_on_close(fd: BorrowedFd<'_>) -> Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_raw(fd, (libc::SOL_SOCKET, libc::SO_LINGER), (&raw const linger).cast(), size_of_val(&linger))
}

/// Numbers that may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The error that waits, and it waits no more.
    Error,
    /// Bytes that are kept to be sent.
    SendBuffer,
    /// Bytes that are kept to be read.
    ReceiveBuffer,
    /// The largest segment.
    MaxSegment,
    /// The MTU of the way, IPv4; of a connected socket.
    Mtu,
    /// The same, IPv6.
    Mtu6,
}

impl Ask {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Error, Self::SendBuffer, Self::ReceiveBuffer, Self::MaxSegment, Self::Mtu, Self::Mtu6];

    /// Level and number.
    #[must_use]
    pub const fn name(self) -> (i32, i32) {
        match self {
            Self::Error => (libc::SOL_SOCKET, libc::SO_ERROR),
            Self::SendBuffer => (libc::SOL_SOCKET, libc::SO_SNDBUF),
            Self::ReceiveBuffer => (libc::SOL_SOCKET, libc::SO_RCVBUF),
            Self::MaxSegment => (libc::IPPROTO_TCP, libc::TCP_MAXSEG),
            Self::Mtu => (libc::IPPROTO_IP, libc::IP_MTU),
            Self::Mtu6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU),
        }
    }
}

/// `getsockopt(2)`.
///
/// # Errors
/// The kernel's.
pub fn get(fd: BorrowedFd<'_>, ask: Ask) -> Result<i32> {
    let (level, option) = ask.name();
    let mut value: i32 = 0;
    let mut len = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0);
    // SAFETY: `value` is room for `len` bytes, and outlives the call.
    match unsafe { libc::getsockopt(fd.as_raw_fd(), level, option, (&raw mut value).cast(), &raw mut len) } {
        0 => Ok(value),
        _ => Err(Error::last_os_error()),
    }
}

/// The address that a socket sends from, which connecting has chosen (`getsockname(2)`).
#[must_use]
pub fn local(fd: BorrowedFd<'_>) -> Option<SocketAddr> {
    let mut name = Name::room();
    // SAFETY: `name` has room for `len` bytes, and both outlive the call.
    let said = unsafe { libc::getsockname(fd.as_raw_fd(), name.as_mut_ptr(), &raw mut name.len) };
    (said == 0).then(|| name.get()).flatten()
}

/// The error that waits (how a connection came out), and it waits no more. None: all is well.
///
/// # Errors
/// The kernel's, about the question.
pub fn error(fd: BorrowedFd<'_>) -> Result<Option<Error>> {
    Ok(Some(get(fd, Ask::Error)?).filter(|e| *e != 0).map(Error::from_raw_os_error))
}

fn count(fd: BorrowedFd<'_>, what: u32) -> Result<u32> {
    let mut n: i32 = 0;
    // SAFETY: the kernel writes one int.
    match unsafe { libc::ioctl(fd.as_raw_fd(), what as _, &raw mut n) } {
        0 => Ok(u32::try_from(n).unwrap_or(0)),
        _ => Err(Error::last_os_error()),
    }
}

/// Bytes that were sent and that the peer has not acknowledged.
///
/// # Errors
/// The kernel's.
pub fn unsent(fd: BorrowedFd<'_>) -> Result<u32> {
    count(fd, UNSENT)
}

/// Bytes to be read; of datagrams: of the next.
///
/// # Errors
/// The kernel's.
pub fn unread(fd: BorrowedFd<'_>) -> Result<u32> {
    count(fd, UNREAD)
}

/// Half of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// No more is read.
    Read,
    /// No more is written: the peer reads the end.
    Write,
    /// Both.
    Both,
}

/// `shutdown(2)`.
///
/// # Errors
/// The kernel's.
pub fn shutdown(fd: BorrowedFd<'_>, half: Half) -> Result<()> {
    let how = match half {
        Half::Read => libc::SHUT_RD,
        Half::Write => libc::SHUT_WR,
        Half::Both => libc::SHUT_RDWR,
    };
    // SAFETY: no pointers.
    match unsafe { libc::shutdown(fd.as_raw_fd(), how) } {
        0 => Ok(()),
        _ => Err(Error::last_os_error()),
    }
}

fn receive(fd: BorrowedFd<'_>, to: &[Seg], flags: i32) -> Result<usize> {
    // SAFETY: all zeros is a msghdr without a name and without control messages.
    let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
    // A Seg has the layout of an iovec (asserted in mem::seg), and recvmsg does not write to it.
    m.msg_iov = to.as_ptr().cast_mut().cast();
    m.msg_iovlen = to.len() as _;
    // SAFETY: the segments describe mapped writable memory; the header is valid for the call.
    done(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut m, flags | libc::MSG_DONTWAIT) })
}

/// Reads into segments, in order; 0 is the end of a stream.
///
/// # Errors
/// The kernel's.
pub fn read(fd: BorrowedFd<'_>, to: &[Seg]) -> Result<usize> {
    receive(fd, to, 0)
}

/// Reads without taking (`MSG_PEEK`); where from, [`Opt::PeekOff`] says.
///
/// # Errors
/// The kernel's.
pub fn peek(fd: BorrowedFd<'_>, to: &[Seg]) -> Result<usize> {
    receive(fd, to, libc::MSG_PEEK)
}

/// Takes `n` bytes of a TCP stream and throws them away (`MSG_TRUNC`); how many there were.
///
/// # Errors
/// The kernel's.
pub fn discard(fd: BorrowedFd<'_>, n: usize) -> Result<usize> {
    let mut iov = libc::iovec { iov_base: ptr::null_mut(), iov_len: n };
    // SAFETY: all zeros is a msghdr without a name and without control messages.
    let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
    m.msg_iov = &raw mut iov;
    m.msg_iovlen = 1;
    let flags = libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    // SAFETY: with MSG_TRUNC a TCP socket writes nothing (tcp(7)), so there need be no memory; a socket of another kind
    // answers EFAULT.
    done(unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut m, flags) })
}

/// Writes segments, in order, to whom the socket is connected to; how many bytes were taken. No more than
/// [`crate::sys::io::MAX_PARTS`] segments at once.
///
/// # Errors
/// The kernel's; `EPIPE` raises no signal.
pub fn write(fd: BorrowedFd<'_>, from: &[Seg]) -> Result<usize> {
    // SAFETY: all zeros is a msghdr without a name and without control messages.
    let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
    // A Seg has the layout of an iovec (asserted in mem::seg), and sendmsg does not write to it.
    m.msg_iov = from.as_ptr().cast_mut().cast();
    m.msg_iovlen = from.len() as _;
    // SAFETY: the segments describe mapped readable memory; the header is valid for the call.
    done(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const m, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })
}

/// A datagram into private memory: its length, cut at the room, and who sent it.
///
/// # Errors
/// The kernel's.
pub fn read_from(fd: BorrowedFd<'_>, to: &mut [u8]) -> Result<(usize, Option<SocketAddr>)> {
    let mut name = Name::room();
    let mut iov = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() };
    // SAFETY: all zeros is a msghdr without a name and without control messages.
    let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
    m.msg_name = name.raw.as_mut_ptr().cast();
    m.msg_namelen = name.len;
    m.msg_iov = &raw mut iov;
    m.msg_iovlen = 1;
    // SAFETY: name and buffer are ours and as long as is said; the kernel writes no more.
    let n = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut m, libc::MSG_DONTWAIT) };
    Ok((done(n)?, name.get()))
}

/// Writes private memory: to whom the socket is connected to, or to `to`.
///
/// # Errors
/// The kernel's.
pub fn write_to(fd: BorrowedFd<'_>, from: &[&[u8]], to: Option<SocketAddr>) -> Result<usize> {
    let name = to.map(Name::of);
    let iov: Vec<libc::iovec> = from
        .iter()
        .map(|b| libc::iovec { iov_base: b.as_ptr().cast_mut().cast(), iov_len: b.len() })
        .collect();
    // SAFETY: all zeros is a msghdr without a name and without control messages.
    let mut m: libc::msghdr = unsafe { std::mem::zeroed() };
    if let Some(name) = &name {
        m.msg_name = name.as_ptr().cast_mut().cast();
        m.msg_namelen = name.len;
    }
    m.msg_iov = iov.as_ptr().cast_mut();
    m.msg_iovlen = iov.len() as _;
    // SAFETY: name and parts outlive the call, and the kernel only reads them.
    done(unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const m, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) })
}

#[cfg(test)]
#[path = "sock_tests.rs"]
mod tests;
