//! Connections that we make: non-blocking, one address after the other, again after a while if told so.
//!
//! Promise: nothing here waits; the supervisor's loop watches [`Dialler::fd`] and calls [`Dialler::step`] when it is
//! writable or [`Dialler::due`] has come.
#![forbid(unsafe_code)]

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, VsockAddr, sockopt,
};

use crate::spec::addr::Inet;
use crate::supervise::listen;

/// How long one address is tried.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A unix socket's file.
    Unix(PathBuf),
    /// A name in the abstract namespace.
    Abstract(Vec<u8>),
    /// TCP addresses, tried in order.
    Tcp(Vec<SocketAddr>, bool),
    /// A virtual machine's socket: context and port.
    Vsock(u32, u32),
}

/// One connection, made again and again.
#[derive(Debug)]
pub struct Dialler {
    target: Target,
    kind: SockType,
    again: Option<Duration>,
    state: State,
    /// Which TCP address is next.
    next: usize,
}

#[derive(Debug)]
enum State {
    /// Nothing to do: connected, or never to be tried again.
    Idle,
    /// Try at this time.
    Wait(Instant),
    /// On its way.
    Going(OwnedFd, Instant),
}

/// What a step led to.
#[derive(Debug)]
pub enum Step {
    /// Not yet.
    Pending,
    /// Here it is.
    Connected(OwnedFd),
    /// Failed; another try follows if [`Dialler::due`] says when.
    Failed(io::Error),
}

impl Dialler {
    /// To `target`, again after `again` when it fails or is lost; none: only once.
    #[must_use]
    pub fn new(target: Target, again: Option<Duration>) -> Self {
        Self { target, kind: SockType::Stream, again, state: State::Idle, next: 0 }
    }

    /// The same with UNIX sockets of this kind.
    #[must_use]
    pub fn with(self, kind: SockType) -> Self {
        Self { kind, ..self }
    }

    /// The connection is lost, or was never made: dial at `now`, or later if this is another try.
    pub fn dial(&mut self, now: Instant) {
        self.next = 0;
        self.state = State::Wait(now);
    }

    /// The connection was lost: dial after the user's interval, or never.
    pub fn lost(&mut self, now: Instant) {
        self.next = 0;
        self.state = self.again.map_or(State::Idle, |a| State::Wait(now + a));
    }

    /// It will be tried again when it fails.
    #[must_use]
    pub fn persists(&self) -> bool {
        self.again.is_some()
    }

    /// When to call [`Dialler::step`] at the latest.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        match &self.state {
            State::Idle => None,
            State::Wait(t) | State::Going(_, t) => Some(*t),
        }
    }

    /// The descriptor to watch for being writable.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::Going(fd, _) => Some(fd.as_fd()),
            _ => None,
        }
    }

    /// Goes on as far as it can without waiting.
    pub fn step(&mut self, now: Instant) -> Step {
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => Step::Pending,
            State::Wait(t) if t > now => {
                self.state = State::Wait(t);
                Step::Pending
            }
            State::Wait(_) => self.start(now),
            State::Going(fd, until) => self.arrived(fd, until, now),
        }
    }

    fn start(&mut self, now: Instant) -> Step {
        match self.connect() {
            Ok((fd, true)) => self.here(fd, now),
            Ok((fd, false)) => {
                self.state = State::Going(fd, now + PATIENCE);
                Step::Pending
            }
            Err(e) => self.failed(e, now),
        }
    }

    fn arrived(&mut self, fd: OwnedFd, until: Instant, now: Instant) -> Step {
        match socket::getsockopt(&fd, sockopt::SocketError) {
            Ok(0) if is_connected(&fd) => self.here(fd, now),
            Ok(0) if now < until => {
                self.state = State::Going(fd, until);
                Step::Pending
            }
            Ok(0) => self.failed(io::ErrorKind::TimedOut.into(), now),
            Ok(e) => self.failed(io::Error::from_raw_os_error(e), now),
            Err(e) => self.failed(e.into(), now),
        }
    }

    /// Somebody is at the other end, who is not ourselves: a port among those that the kernel chooses from may be given to
    /// the very socket that dials it, and the two opens then meet (RFC 9293, 3.5). Whoever comes to listen there later
    /// would find it taken.
    fn here(&mut self, fd: OwnedFd, now: Instant) -> Step {
        if matches!(self.target, Target::Tcp(..)) && is_its_own_peer(&fd) {
            drop(fd);
            let why = "nobody listens there: the kernel has connected it to itself";
            return self.failed(io::Error::new(io::ErrorKind::ConnectionRefused, why), now);
        }
        Step::Connected(fd)
    }

    fn failed(&mut self, e: io::Error, now: Instant) -> Step {
        if matches!(&self.target, Target::Tcp(all, _) if self.next < all.len()) {
            self.state = State::Wait(now);
            return Step::Pending;
        }
        self.lost(now);
        Step::Failed(e)
    }

    /// The socket, and whether it is connected already.
    fn connect(&mut self) -> io::Result<(OwnedFd, bool)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let unix = |address: UnixAddr| -> io::Result<(OwnedFd, bool)> {
            let fd = socket::socket(AddressFamily::Unix, self.kind, flags, None)?;
            socket::connect(fd.as_raw_fd(), &address)?;
            Ok((fd, true))
        };
        let start = |fd: OwnedFd, address: &dyn SockaddrLike| match socket::connect(fd.as_raw_fd(), address) {
            Ok(()) => Ok((fd, true)),
            Err(Errno::EINPROGRESS) => Ok((fd, false)),
            Err(e) => Err(io::Error::from(e)),
        };
        match &self.target {
            Target::Unix(path) => unix(UnixAddr::new(path)?),
            Target::Abstract(name) => unix(UnixAddr::new_abstract(name)?),
            Target::Tcp(all, keep_alive) => {
                let address = all.get(self.next).ok_or(io::ErrorKind::AddrNotAvailable)?;
                self.next += 1;
                start(listen::tcp_socket(*address, *keep_alive)?, &SockaddrStorage::from(*address))
            }
            Target::Vsock(cid, port) => {
                let fd = socket::socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
                start(fd, &VsockAddr::new(*cid, *port))
            }
        }
    }
}

fn is_connected(fd: &OwnedFd) -> bool {
    socket::getpeername::<SockaddrStorage>(fd.as_raw_fd()).is_ok()
        || socket::getpeername::<VsockAddr>(fd.as_raw_fd()).is_ok()
}

fn is_its_own_peer(fd: &OwnedFd) -> bool {
    let us = socket::getsockname::<SockaddrStorage>(fd.as_raw_fd());
    us.is_ok() && us == socket::getpeername::<SockaddrStorage>(fd.as_raw_fd())
}

/// The addresses of a TCP host: of the families wanted; an empty host is every address of this machine.
///
/// # Errors
/// The resolver's, or no address of these families.
pub fn resolve(inet: &Inet) -> io::Result<Vec<SocketAddr>> {
    let wanted = |a: &SocketAddr| if a.is_ipv4() { inet.ipv4 } else { inet.ipv6 };
    let all: Vec<SocketAddr> = if inet.host.is_empty() {
        let any: [std::net::IpAddr; 2] =
            [std::net::Ipv6Addr::UNSPECIFIED.into(), std::net::Ipv4Addr::UNSPECIFIED.into()];
        any.iter().map(|ip| SocketAddr::new(*ip, inet.port)).collect()
    } else {
        (inet.host.as_str(), inet.port).to_socket_addrs()?.collect()
    };
    let found: Vec<SocketAddr> = all.into_iter().filter(wanted).collect();
    if found.is_empty() { Err(io::ErrorKind::AddrNotAvailable.into()) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn finish(d: &mut Dialler) -> Step {
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            match d.step(Instant::now()) {
                Step::Pending if Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
                other => return other,
            }
        }
    }

    #[test]
    fn the_second_address_is_tried_after_the_first() {
        let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let here = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut d = Dialler::new(Target::Tcp(vec![dead, here.local_addr().unwrap()], false), None);
        assert!(matches!(d.step(Instant::now()), Step::Pending) && d.due().is_none());
        d.dial(Instant::now());
        let Step::Connected(fd) = finish(&mut d) else { panic!() };
        assert!(socket::getsockopt(&fd, sockopt::TcpNoDelay).unwrap());
        here.accept().unwrap();
        assert!(d.due().is_none());
    }

    #[test]
    fn a_connection_to_itself_is_none() {
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let any: SocketAddr = at.parse().unwrap();
            let fd = listen::tcp_socket(any, false).unwrap();
            socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(any)).unwrap();
            let own: SockaddrStorage = socket::getsockname(fd.as_raw_fd()).unwrap();
            let here = TcpListener::bind("127.0.0.1:0").unwrap();
            let _met = socket::connect(fd.as_raw_fd(), &own);
            assert!(is_connected(&fd) && is_its_own_peer(&fd), "this is how it happens");

            let now = Instant::now();
            let next = here.local_addr().unwrap();
            let mut d = Dialler::new(Target::Tcp(vec![any, next], false), Some(Duration::from_secs(7)));
            d.next = 1;
            d.state = State::Going(fd, now + PATIENCE);
            assert!(matches!(d.step(now), Step::Pending), "the next address is tried");
            let Step::Connected(fd) = finish(&mut d) else { panic!() };
            assert!(!is_its_own_peer(&fd));
            d.state = State::Going(fd, now + PATIENCE);
            assert!(matches!(d.step(now), Step::Connected(_)), "what is somebody's is kept");
            let own = listen::tcp_socket(any, false).unwrap();
            socket::bind(own.as_raw_fd(), &SockaddrStorage::from(any)).unwrap();
            let _met = socket::connect(
                own.as_raw_fd(),
                &socket::getsockname::<SockaddrStorage>(own.as_raw_fd()).unwrap(),
            );
            let Step::Failed(e) = d.here(own, now) else { panic!() };
            assert_eq!(
                (e.kind(), d.due()),
                (io::ErrorKind::ConnectionRefused, Some(now + Duration::from_secs(7)))
            );
        }
    }

    #[test]
    fn a_failure_is_tried_again_only_if_told_so() {
        let nowhere = Target::Unix("/nonexistent/netreeve".into());
        let mut once = Dialler::new(nowhere.clone(), None);
        once.dial(Instant::now());
        assert!(matches!(once.step(Instant::now()), Step::Failed(e) if e.kind() == io::ErrorKind::NotFound));
        assert!(once.due().is_none());

        let now = Instant::now();
        let mut often = Dialler::new(nowhere, Some(Duration::from_secs(7)));
        often.dial(now);
        assert!(matches!(often.step(now), Step::Failed(_)));
        assert_eq!(often.due(), Some(now + Duration::from_secs(7)));
        assert!(matches!(often.step(now + Duration::from_secs(6)), Step::Pending));
        assert!(matches!(often.step(now + Duration::from_secs(7)), Step::Failed(_)));
    }

    #[test]
    fn families_are_chosen() {
        let inet = |host: &str, ipv4, ipv6| Inet {
            host: host.into(),
            port: 9,
            to: None,
            ipv4,
            ipv6,
            keep_alive: false,
        };
        assert_eq!(resolve(&inet("127.0.0.1", true, true)).unwrap(), ["127.0.0.1:9".parse().unwrap()]);
        assert!(resolve(&inet("127.0.0.1", false, true)).is_err());
        assert_eq!(resolve(&inet("", true, true)).unwrap().len(), 2);
        assert_eq!(resolve(&inet("", false, true)).unwrap(), ["[::]:9".parse().unwrap()]);
    }
}
