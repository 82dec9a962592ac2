//! Connections for a `user` network's guest that its dataplane cannot make: to UNIX sockets, which have names, and with
//! `restrict=on`, where it makes none at all. Each guest forward of that kind has a door: a pair of sockets through which the
//! dataplane asks for one more connection and is given it ([`crate::port::user::door`]).
//!
//! Trust: none in the dataplane once it has read a guest's byte. Promise: through a door leads one way, to what the user
//! named; nothing here waits; more than [`BURST`] connections at once and one each [`PACE`] from then on are not made, they
//! stay asked for.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use netreeve_shared::channel::Channel;
use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage, UnixAddr};

use crate::port::user::door;
use crate::supervise::Supervisor;
use crate::supervise::say;

/// Connections that are made at once.
const BURST: u32 = 64;
/// How soon there may be one more.
const PACE: Duration = Duration::from_millis(5);
const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// Where a door leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beyond {
    /// A UNIX stream socket that listens.
    Unix(PathBuf),
    /// A TCP server.
    Tcp(SocketAddr),
}

/// A door, from the supervisor's side.
#[derive(Debug)]
pub struct Door {
    what: String,
    channel: Channel,
    to: Beyond,
    /// Connections that may be made now, and when there was last one more.
    credit: u32,
    since: Instant,
    /// The last one was not to be had, and that was said.
    failing: bool,
}

impl Door {
    /// One that leads there, and its other side, for the dataplane. `what` names it in messages.
    ///
    /// # Errors
    /// The kernel's: no descriptors.
    pub fn new(what: String, to: Beyond, now: Instant) -> io::Result<(Self, OwnedFd)> {
        let (channel, theirs) = Channel::pair()?;
        channel.set_nonblocking(true)?;
        let door = Self { what, channel, to, credit: BURST, since: now, failing: false };
        Ok((door, theirs.into_fd()))
    }

    /// The descriptor to watch for being readable; none: not now.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        (self.credit > 0).then(|| self.channel.as_fd())
    }

    /// When to call [`Door::serve`] at the latest.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        (self.credit == 0).then(|| self.since + PACE)
    }

    /// Makes the connections that are asked for, as many as may be now.
    pub fn serve(&mut self, now: Instant) {
        let gained = now.saturating_duration_since(self.since).as_micros() / PACE.as_micros();
        if gained > 0 {
            self.credit = self.credit.saturating_add(u32::try_from(gained).unwrap_or(BURST)).min(BURST);
            self.since = now;
        }
        while self.credit > 0 {
            let asked = match self.channel.recv(0, Some(Duration::ZERO)) {
                Ok(Some(message)) => message.bytes,
                // It brought what may not come, which is gone already.
                Err(e) if e.kind() == io::ErrorKind::InvalidData => Vec::new(),
                Ok(None) | Err(_) => return,
            };
            self.credit -= 1;
            let Some(number) = door::read_ask(&asked) else { continue };
            self.answer(number);
        }
    }

    fn answer(&mut self, number: u32) {
        let made = self.to.connect();
        if let Err(e) = &made
            && !std::mem::replace(&mut self.failing, true)
        {
            say::say(&format!("{}: {e}; the guest is refused until it is there", self.what));
        }
        self.failing = made.is_err();
        let errno = made.as_ref().map_or_else(|e| e.raw_os_error().unwrap_or(libc::EIO), |_| 0);
        let fds: Vec<BorrowedFd<'_>> = made.as_ref().ok().into_iter().map(AsFd::as_fd).collect();
        // A dataplane that does not read its answers has them no more: the guest asks again.
        let _ = self.channel.send(&door::answer(number, errno), &fds);
    }
}

impl Beyond {
    /// A connection, or one that is under way.
    fn connect(&self) -> io::Result<OwnedFd> {
        let family = match self {
            Self::Unix(_) => AddressFamily::Unix,
            Self::Tcp(SocketAddr::V4(_)) => AddressFamily::Inet,
            Self::Tcp(SocketAddr::V6(_)) => AddressFamily::Inet6,
        };
        let fd = socket::socket(family, SockType::Stream, FLAGS, None)?;
        let done = match self {
            Self::Unix(path) => socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?),
            Self::Tcp(at) => socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(*at)),
        };
        match done {
            Ok(()) | Err(Errno::EINPROGRESS) => Ok(fd),
            Err(e) => Err(e.into()),
        }
    }
}

impl Supervisor {
    /// The doors of all networks.
    pub(super) fn doors(&self) -> impl Iterator<Item = &Door> {
        self.slots.iter().filter_map(|(_, s)| s.user.as_ref()).flat_map(|u| &u.doors)
    }

    /// Serves them.
    pub(super) fn serve_doors(&mut self, now: Instant) {
        let users = self.slots.iter_mut().filter_map(|(_, s)| s.user.as_mut());
        users.flat_map(|u| &mut u.doors).for_each(|d| d.serve(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn each_that_asks_has_a_connection_of_its_own_and_not_too_many() {
        let path = std::env::temp_dir().join(format!("netreeve-door-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let now = Instant::now();
        let (mut door, theirs) = Door::new("door".into(), Beyond::Unix(path.clone()), now).unwrap();
        let theirs = Channel::from_fd(theirs).unwrap();
        let ask = |number| theirs.send(&door::ask(number), &[]).unwrap();
        let heard = || {
            let m = theirs.recv(1, Some(Duration::ZERO)).ok()??;
            Some((door::read_answer(&m.bytes).unwrap(), m.fds))
        };
        // Nobody is there.
        ask(7);
        door.serve(now);
        let ((number, errno), fds) = heard().unwrap();
        assert_eq!((number, errno, fds.len()), (7, libc::ENOENT, 0));
        assert!(door.failing);
        // Somebody is, and what each is given is another's to the server.
        let listener = UnixListener::bind(&path).unwrap();
        for number in [8, 9] {
            ask(number);
        }
        door.serve(now);
        for number in [8, 9] {
            let (said, mut fds) = heard().unwrap();
            assert_eq!(said, (number, 0));
            let near = UnixStream::from(fds.remove(0));
            let (mut far, _) = listener.accept().unwrap();
            std::io::Write::write_all(&mut &near, &[number as u8]).unwrap();
            let mut got = [0];
            far.read_exact(&mut got).unwrap();
            assert_eq!(got, [number as u8]);
        }
        assert!(!door.failing && heard().is_none());
        // Nonsense is passed over, and costs as much.
        theirs.send(b"?", &[]).unwrap();
        door.serve(now);
        assert!(heard().is_none());
        // More than a burst waits, and is not forgotten.
        assert_eq!((door.credit, door.due()), (BURST - 4, None));
        (0..BURST).for_each(ask);
        door.serve(now);
        assert_eq!((door.credit, door.fd().is_none(), door.due()), (0, true, Some(now + PACE)));
        let mut answers = 0;
        while heard().is_some() {
            answers += 1;
            let _ = listener.accept().unwrap();
        }
        assert_eq!(answers, BURST - 4);
        door.serve(now + PACE - Duration::from_micros(1));
        assert!(heard().is_none());
        door.serve(now + 4 * PACE);
        assert_eq!((0..9).filter(|_| heard().is_some()).count(), 4);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn by_tcp_too() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = Beyond::Tcp(listener.local_addr().unwrap());
        let (mut door, theirs) = Door::new("door".into(), to, Instant::now()).unwrap();
        let theirs = Channel::from_fd(theirs).unwrap();
        theirs.send(&door::ask(1), &[]).unwrap();
        door.serve(Instant::now());
        let m = theirs.recv(1, Some(Duration::ZERO)).unwrap().unwrap();
        assert_eq!((door::read_answer(&m.bytes), m.fds.len()), (Some((1, 0)), 1));
        listener.accept().unwrap();
    }
}
