//! Names of hosts, looked up beside the supervisor's loop: the system's resolver asks servers, files and daemons, and may
//! take as long as those let it.
//!
//! Each lookup is a thread that ends by itself; nobody waits for it, and who has lost interest drops the [`Lookup`]. So
//! many may be at it at a time. Trust: what the resolver says is an address and no more. Promise: numbers and the empty
//! name need no thread; nothing here waits.
#![forbid(unsafe_code)]

use std::io::{self, PipeReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;

/// Lookups that may be under way.
const AT_ONCE: usize = 64;

/// The addresses of a host, with port 0, in the resolver's order.
pub(super) type Resolver = fn(&str) -> io::Result<Vec<SocketAddr>>;

/// Addresses for each name that was asked for, or why one has none.
pub(super) type Found = io::Result<Vec<Vec<SocketAddr>>>;

/// Asks the system (getaddrinfo(3)).
///
/// # Errors
/// The resolver's.
pub(super) fn by_system(host: &str) -> io::Result<Vec<SocketAddr>> {
    Ok((host, 0).to_socket_addrs()?.collect())
}

/// What needs no lookup: an address in numbers, or nothing, which is every address of this machine.
#[must_use]
pub(super) fn known(host: &str) -> Option<Vec<SocketAddr>> {
    let ip: Result<IpAddr, _> = host.parse();
    let all = match (host, ip) {
        ("", _) => vec![Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()],
        (_, Ok(ip)) => vec![ip],
        (_, Err(_)) => return None,
    };
    Some(all.into_iter().map(|ip| SocketAddr::new(ip, 0)).collect())
}

/// Names that are being looked up.
#[derive(Debug)]
pub(super) struct Lookup {
    said: Receiver<Found>,
    end: PipeReader,
}

impl Lookup {
    /// Looks these up, one after the other.
    ///
    /// # Errors
    /// There are too many at it, or no threads or descriptors left.
    pub(super) fn start(hosts: Vec<String>, resolver: Resolver) -> io::Result<Self> {
        let working = Working::begin()?;
        let (tell, said) = channel();
        let (end, held) = io::pipe()?;
        thread::Builder::new().name("names".into()).spawn(move || {
            let find = |host: &String| match resolver(host) {
                Ok(all) if all.is_empty() => Err(io::Error::other(format!("{host} has no address"))),
                Ok(all) => Ok(all),
                Err(e) => Err(io::Error::new(e.kind(), format!("finding the address of {host}: {e}"))),
            };
            // Whoever asked may have gone.
            let _heard = tell.send(hosts.iter().map(find).collect());
            drop(working);
            drop(held);
        })?;
        Ok(Self { said, end })
    }

    /// To be watched: it hangs up when there is an answer.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.end.as_fd()
    }

    /// The answer, once there is one.
    pub(super) fn take(&self) -> Option<Found> {
        match self.said.try_recv() {
            Ok(found) => Some(found),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(io::Error::other("the lookup has ended early"))),
        }
    }
}

/// One more is at it, for as long as this lives.
struct Working;

static WORKING: AtomicUsize = AtomicUsize::new(0);

impl Working {
    fn begin() -> io::Result<Self> {
        let new = Self;
        if WORKING.fetch_add(1, Ordering::Relaxed) >= AT_ONCE {
            return Err(io::Error::other("too many names are being looked up, and none is answered"));
        }
        Ok(new)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        WORKING.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    use super::*;

    fn answer(l: &Lookup) -> Found {
        let mut fds = [PollFd::new(l.fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut fds, PollTimeout::from(10_000_u16)).unwrap(), 1, "it says when it is done");
        l.take().unwrap()
    }

    #[test]
    fn numbers_are_known_and_names_are_looked_up() {
        let at = |text: &str| SocketAddr::new(text.parse().unwrap(), 0);
        assert_eq!(known("127.0.0.1").unwrap(), [at("127.0.0.1")]);
        assert_eq!(known("::1").unwrap(), [at("::1")]);
        assert_eq!(known("").unwrap(), [at("::"), at("0.0.0.0")]);
        assert!(known("localhost").is_none());
        let names = |all: &[&str]| all.iter().map(|n| (*n).to_owned()).collect();
        let found = answer(&Lookup::start(names(&["localhost", "127.0.0.9"]), by_system).unwrap()).unwrap();
        assert!(found[0].iter().all(|a| a.ip().is_loopback()) && !found[0].is_empty());
        assert_eq!(found[1], [at("127.0.0.9")]);
        let fails: Resolver = |host| known(host).ok_or(io::ErrorKind::NotFound.into());
        let e = answer(&Lookup::start(names(&["::1", "nobody"]), fails).unwrap()).unwrap_err();
        assert!(e.to_string().starts_with("finding the address of nobody: "), "{e}");
    }

    #[test]
    fn one_that_is_not_answered_keeps_nobody_waiting() {
        static DEAD: Mutex<()> = Mutex::new(());
        let held = DEAD.lock().unwrap();
        let dead: Resolver = |_| {
            drop(DEAD.lock());
            Ok(vec![])
        };
        let slow = Lookup::start(vec!["slow".into()], dead).unwrap();
        let dropped = Lookup::start(vec!["dropped".into()], dead).unwrap();
        drop(dropped);
        let other = Lookup::start(vec!["127.0.0.1".into()], by_system).unwrap();
        answer(&other).unwrap();
        assert!(slow.take().is_none());
        drop(held);
        assert_eq!(answer(&slow).unwrap_err().to_string(), "slow has no address");
    }
}
