//! Connections that we make: non-blocking, one address after the other, again after a while if told so. A name is looked
//! up anew for every round, because what it means may have changed.
//!
//! Promise: nothing here waits; the supervisor's loop watches [`Dialler::fd`] and calls [`Dialler::step`] when it is
//! writable or [`Dialler::due`] has come.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, VsockAddr, sockopt,
};

use crate::spec::addr::Inet;
use crate::supervise::listen;
use crate::supervise::names::{self, Lookup, Resolver};

/// How long one address is tried.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a name is looked up: longer than the system's resolver takes for three silent servers (resolv.conf(5)).
const LOOKUP: Duration = Duration::from_secs(40);

/// Where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A unix socket's file.
    Unix(PathBuf),
    /// A name in the abstract namespace.
    Abstract(Vec<u8>),
    /// A TCP host, whose addresses are tried in order.
    Tcp(Inet),
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
    resolver: Resolver,
    /// This round's TCP addresses; none: it has not begun.
    found: Vec<SocketAddr>,
    /// Which of them is next.
    next: usize,
}

#[derive(Debug)]
enum State {
    /// Nothing to do: connected, or never to be tried again.
    Idle,
    /// Try at this time.
    Wait(Instant),
    /// Its name is being looked up.
    Looking(Lookup, Instant),
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
        let (kind, resolver) = (SockType::Stream, names::by_system);
        Self { target, kind, again, state: State::Idle, resolver, found: Vec::new(), next: 0 }
    }

    /// The same with UNIX sockets of this kind.
    #[must_use]
    pub fn with(self, kind: SockType) -> Self {
        Self { kind, ..self }
    }

    /// The connection is lost, or was never made: dial at `now`, or later if this is another try.
    pub fn dial(&mut self, now: Instant) {
        self.found.clear();
        self.state = State::Wait(now);
    }

    /// The connection was lost: dial after the user's interval, or never.
    pub fn lost(&mut self, now: Instant) {
        self.found.clear();
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
            State::Wait(t) | State::Looking(_, t) | State::Going(_, t) => Some(*t),
        }
    }

    /// The descriptor to watch for being writable, or hung up.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::Going(fd, _) => Some(fd.as_fd()),
            State::Looking(lookup, _) => Some(lookup.fd()),
            State::Idle | State::Wait(_) => None,
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
            State::Looking(lookup, until) => self.looked(lookup, until, now),
            State::Going(fd, until) => self.arrived(fd, until, now),
        }
    }

    fn start(&mut self, now: Instant) -> Step {
        match &self.target {
            Target::Tcp(inet) if self.found.is_empty() => match addresses(inet) {
                Some(all) => self.known(all, now),
                None => match Lookup::start(vec![inet.host.clone()], self.resolver) {
                    Ok(lookup) => self.looked(lookup, now + LOOKUP, now),
                    Err(e) => self.failed(e, now),
                },
            },
            _ => self.try_next(now),
        }
    }

    fn looked(&mut self, lookup: Lookup, until: Instant, now: Instant) -> Step {
        match lookup.take() {
            Some(Ok(all)) => self.known(all.concat(), now),
            Some(Err(e)) => self.failed(e, now),
            None if now < until => {
                self.state = State::Looking(lookup, until);
                Step::Pending
            }
            None => {
                let why = "finding its address: the name servers do not answer";
                self.failed(io::Error::new(io::ErrorKind::TimedOut, why), now)
            }
        }
    }

    /// These are the host's addresses.
    fn known(&mut self, all: Vec<SocketAddr>, now: Instant) -> Step {
        if let Target::Tcp(inet) = &self.target {
            (self.found, self.next) = (of_families(all, inet), 0);
        }
        if self.found.is_empty() {
            let why = "it has no address of this family";
            return self.failed(io::Error::new(io::ErrorKind::AddrNotAvailable, why), now);
        }
        self.try_next(now)
    }

    fn try_next(&mut self, now: Instant) -> Step {
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
        if self.next < self.found.len() {
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
            Target::Tcp(inet) => {
                let address = *self.found.get(self.next).ok_or(io::ErrorKind::AddrNotAvailable)?;
                self.next += 1;
                start(listen::tcp_socket(address, inet.options)?, &SockaddrStorage::from(address))
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
    let all = addresses(inet).map_or_else(|| names::by_system(&inet.host), Ok)?;
    let found = of_families(all, inet);
    if found.is_empty() { Err(io::ErrorKind::AddrNotAvailable.into()) } else { Ok(found) }
}

/// A host's addresses, where nobody has to be asked.
fn addresses(inet: &Inet) -> Option<Vec<SocketAddr>> {
    if inet.found.is_empty() { names::known(&inet.host) } else { Some(inet.found.clone()) }
}

/// Those of the families wanted, with the port.
fn of_families(mut all: Vec<SocketAddr>, inet: &Inet) -> Vec<SocketAddr> {
    all.retain(|a| if a.is_ipv4() { inet.ipv4 } else { inet.ipv6 });
    all.iter_mut().for_each(|a| a.set_port(inet.port));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn inet(host: &str, port: u16) -> Inet {
        let host = host.into();
        Inet { host, port, to: None, ipv4: true, ipv6: true, options: Default::default(), found: Vec::new() }
    }

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
        let here = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = here.local_addr().unwrap();
        let dead = SocketAddr::from(([127, 0, 0, 7], 0));
        let two = Inet { found: vec![dead, at], ..inet("h", at.port()) };
        let mut d = Dialler::new(Target::Tcp(two), None);
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
            let fd = listen::tcp_socket(any, Default::default()).unwrap();
            socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(any)).unwrap();
            let own: SockaddrStorage = socket::getsockname(fd.as_raw_fd()).unwrap();
            let here = TcpListener::bind("127.0.0.1:0").unwrap();
            let _met = socket::connect(fd.as_raw_fd(), &own);
            assert!(is_connected(&fd) && is_its_own_peer(&fd), "this is how it happens");

            let now = Instant::now();
            let next = here.local_addr().unwrap();
            let target = Target::Tcp(inet("127.0.0.1", next.port()));
            let mut d = Dialler::new(target, Some(Duration::from_secs(7)));
            (d.found, d.next) = (vec![any, next], 1);
            d.state = State::Going(fd, now + PATIENCE);
            assert!(matches!(d.step(now), Step::Pending), "the next address is tried");
            let Step::Connected(fd) = finish(&mut d) else { panic!() };
            assert!(!is_its_own_peer(&fd));
            d.state = State::Going(fd, now + PATIENCE);
            assert!(matches!(d.step(now), Step::Connected(_)), "what is somebody's is kept");
            let own = listen::tcp_socket(any, Default::default()).unwrap();
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
    fn a_name_is_looked_up_anew_for_every_round() {
        use std::sync::atomic::{AtomicU8, Ordering};
        static MEANS: AtomicU8 = AtomicU8::new(0);
        let here = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = here.local_addr().unwrap().port();
        let mut d = Dialler::new(Target::Tcp(inet("peer.example", port)), Some(Duration::ZERO));
        d.resolver = |name| match MEANS.load(Ordering::SeqCst) {
            0 => Err(io::ErrorKind::NotFound.into()),
            n => {
                assert_eq!(name, "peer.example");
                Ok(vec![SocketAddr::from(([127, 0, 0, n], 0))])
            }
        };
        d.dial(Instant::now());
        let Step::Failed(e) = finish(&mut d) else { panic!() };
        assert!(e.to_string().contains("finding the address of peer.example"), "{e}");
        assert!(d.due().is_some(), "it may be known later");
        MEANS.store(9, Ordering::SeqCst);
        assert!(matches!(finish(&mut d), Step::Failed(e) if e.kind() == io::ErrorKind::ConnectionRefused));
        MEANS.store(1, Ordering::SeqCst);
        assert!(matches!(finish(&mut d), Step::Connected(_)), "the address of now");
        MEANS.store(9, Ordering::SeqCst);
        d.lost(Instant::now());
        assert!(matches!(finish(&mut d), Step::Failed(_)));
    }

    #[test]
    fn a_name_that_is_not_answered_keeps_nobody_waiting() {
        static DEAD: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let held = DEAD.lock().unwrap();
        let mut d = Dialler::new(Target::Tcp(inet("dead.example", 9)), Some(Duration::from_secs(7)));
        d.resolver = |_| {
            drop(DEAD.lock());
            Ok(vec![])
        };
        let now = Instant::now();
        d.dial(now);
        assert!(matches!(d.step(now), Step::Pending) && d.fd().is_some());
        assert_eq!(d.due(), Some(now + LOOKUP));
        assert!(matches!(d.step(now + LOOKUP), Step::Failed(e) if e.kind() == io::ErrorKind::TimedOut));
        assert_eq!(d.due(), Some(now + LOOKUP + Duration::from_secs(7)));
        drop(held);
    }

    #[test]
    fn families_are_chosen() {
        let inet = |host: &str, ipv4, ipv6| Inet { ipv4, ipv6, ..inet(host, 9) };
        assert_eq!(resolve(&inet("127.0.0.1", true, true)).unwrap(), ["127.0.0.1:9".parse().unwrap()]);
        assert!(resolve(&inet("127.0.0.1", false, true)).is_err());
        assert_eq!(resolve(&inet("", true, true)).unwrap().len(), 2);
        assert_eq!(resolve(&inet("", false, true)).unwrap(), ["[::]:9".parse().unwrap()]);
    }
}
