//! Connections for a `user` network's guest that its dataplane cannot make: to UNIX sockets, which have names, and with
//! `restrict=on`, where it makes none at all. Each guest forward of that kind has a door: a pair of sockets through which the
//! dataplane asks for one more connection and is given it ([`crate::port::user::door`]).
//!
//! Trust: none in the dataplane once it has read a guest's byte. Promise: through a door leads one way, to what the user
//! named; nothing here waits; more than [`BURST`] connections at once and one each [`PACE`] from then on are not made, they
//! stay asked for; a door that a dataplane has shut is not looked at any more, and the next dataplane has another.
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
use crate::supervise::say::Voice;
use crate::supervise::user::Host;

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
    /// The dataplane has shut its side, or sent an empty message, which looks the same and which it never sends: to watch
    /// it any longer would be to wake for ever.
    ended: bool,
}

impl Door {
    /// One that leads there, and its other side, for the dataplane. `what` names it in messages.
    ///
    /// # Errors
    /// The kernel's: no descriptors.
    pub fn new(what: String, to: Beyond, now: Instant) -> io::Result<(Self, OwnedFd)> {
        let (channel, theirs) = pair()?;
        let door = Self { what, channel, to, credit: BURST, since: now, failing: false, ended: false };
        Ok((door, theirs))
    }

    /// Another pair, for another dataplane, which hears nothing of what the one before it asked and cannot suffer from what
    /// that one did to its own. How many connections may be made stays as it is. The other side is returned.
    ///
    /// # Errors
    /// The kernel's: no descriptors; then all stays as it was.
    pub fn renew(&mut self) -> io::Result<OwnedFd> {
        let (channel, theirs) = pair()?;
        self.channel = channel;
        self.ended = false;
        Ok(theirs)
    }

    /// The descriptor to watch for being readable; none: not now.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        (self.credit > 0 && !self.ended).then(|| self.channel.as_fd())
    }

    /// When to call [`Door::serve`] at the latest.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        (self.credit == 0 && !self.ended).then(|| self.since + PACE)
    }

    /// Makes the connections that are asked for, as many as may be now.
    pub fn serve(&mut self, now: Instant, voice: &mut Voice) {
        let gained = now.saturating_duration_since(self.since).as_micros() / PACE.as_micros();
        if gained > 0 {
            self.credit = self.credit.saturating_add(u32::try_from(gained).unwrap_or(BURST)).min(BURST);
            self.since = now;
        }
        while self.credit > 0 && !self.ended {
            let asked = match self.channel.recv(0, Some(Duration::ZERO)) {
                Ok(Some(message)) => message.bytes,
                // It brought what may not come, which is gone already.
                Err(e) if e.kind() == io::ErrorKind::InvalidData => Vec::new(),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Ok(None) | Err(_) => {
                    self.ended = true;
                    return;
                }
            };
            self.credit -= 1;
            let Some(number) = door::read_ask(&asked) else { continue };
            self.answer(number, voice);
        }
    }

    fn answer(&mut self, number: u32, voice: &mut Voice) {
        let made = self.to.connect();
        match &made {
            Ok(_) => self.failing = false,
            Err(e) if is_passing(e) => {}
            Err(e) => {
                if !std::mem::replace(&mut self.failing, true) {
                    voice.say_of_others(&format!(
                        "{}: {e}; the guest is refused until it is there",
                        self.what
                    ));
                }
            }
        }
        let errno = made.as_ref().map_or_else(|e| e.raw_os_error().unwrap_or(libc::EIO), |_| 0);
        let fds: Vec<BorrowedFd<'_>> = made.as_ref().ok().into_iter().map(AsFd::as_fd).collect();
        // A dataplane that does not read its answers has them no more: the guest asks again.
        let _ = self.channel.send(&door::answer(number, errno), &fds);
    }
}

/// Both sides of a door: ours, the dataplane's.
fn pair() -> io::Result<(Channel, OwnedFd)> {
    let (ours, theirs) = Channel::pair()?;
    ours.set_nonblocking(true)?;
    Ok((ours, theirs.into_fd()))
}

/// It tells nothing of who is there: the other's queue is full, or we have no room.
fn is_passing(e: &io::Error) -> bool {
    let no_room = [libc::EAGAIN, libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS];
    e.raw_os_error().is_some_and(|e| no_room.contains(&e))
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

impl Host {
    /// Other doors, for another dataplane: `kept` are the port's descriptors, the table's first, then those of the doors.
    ///
    /// # Errors
    /// The kernel's: no descriptors.
    pub fn renew_doors(&mut self, kept: &mut [OwnedFd]) -> io::Result<()> {
        let table = self.sockets();
        for (door, fd) in self.doors.iter_mut().zip(kept.iter_mut().skip(table)) {
            *fd = door.renew()?;
        }
        Ok(())
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
        users.flat_map(|u| &mut u.doors).for_each(|d| d.serve(now, &mut self.voice));
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
        door.serve(now, &mut Voice::new(false));
        let ((number, errno), fds) = heard().unwrap();
        assert_eq!((number, errno, fds.len()), (7, libc::ENOENT, 0));
        assert!(door.failing);
        // Somebody is, and what each is given is another's to the server.
        let listener = UnixListener::bind(&path).unwrap();
        for number in [8, 9] {
            ask(number);
        }
        door.serve(now, &mut Voice::new(false));
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
        door.serve(now, &mut Voice::new(false));
        assert!(heard().is_none());
        // More than a burst waits, and is not forgotten.
        assert_eq!((door.credit, door.due()), (BURST - 4, None));
        (0..BURST).for_each(ask);
        door.serve(now, &mut Voice::new(false));
        assert_eq!((door.credit, door.fd().is_none(), door.due()), (0, true, Some(now + PACE)));
        let mut answers = 0;
        while heard().is_some() {
            answers += 1;
            let _ = listener.accept().unwrap();
        }
        assert_eq!(answers, BURST - 4);
        door.serve(now + PACE - Duration::from_micros(1), &mut Voice::new(false));
        assert!(heard().is_none());
        door.serve(now + 4 * PACE, &mut Voice::new(false));
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
        door.serve(Instant::now(), &mut Voice::new(false));
        let m = theirs.recv(1, Some(Duration::ZERO)).unwrap().unwrap();
        assert_eq!((door::read_answer(&m.bytes), m.fds.len()), (Some((1, 0)), 1));
        listener.accept().unwrap();
    }

    /// Whether a poll would wake for it now.
    fn wakes(door: &Door) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let Some(fd) = door.fd() else { return false };
        poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() > 0
    }

    #[test]
    fn who_shuts_its_side_or_says_nothing_wakes_nobody_for_ever() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = Beyond::Tcp(listener.local_addr().unwrap());
        let now = Instant::now();
        let (mut door, mut theirs) = Door::new("door".into(), to, now).unwrap();
        let mut voice = Voice::new(false);
        let misdeeds: [fn(&OwnedFd); 4] = [
            |fd| socket::shutdown(fd.as_raw_fd(), socket::Shutdown::Write).unwrap(),
            |fd| socket::shutdown(fd.as_raw_fd(), socket::Shutdown::Both).unwrap(),
            |fd| assert_eq!(socket::send(fd.as_raw_fd(), b"", socket::MsgFlags::empty()).unwrap(), 0),
            // With its credit used up as well: it is not due either.
            |fd| {
                for n in 0..=BURST {
                    socket::send(fd.as_raw_fd(), b"?", socket::MsgFlags::empty()).map(|_| n).unwrap();
                }
                socket::shutdown(fd.as_raw_fd(), socket::Shutdown::Write).unwrap();
            },
        ];
        for (n, misdeed) in misdeeds.iter().enumerate() {
            let later = now + Duration::from_secs(n as u64);
            misdeed(&theirs);
            assert!(wakes(&door), "{n}");
            door.serve(later, &mut voice);
            door.serve(later + 2 * PACE, &mut voice);
            assert!(!wakes(&door) && door.fd().is_none() && door.due().is_none(), "{n}");
            // The next dataplane has one that leads there.
            theirs = door.renew().unwrap();
            assert!(door.fd().is_some() && !wakes(&door), "{n}");
            let next = Channel::from_fd(theirs.try_clone().unwrap()).unwrap();
            next.send(&door::ask(1), &[]).unwrap();
            door.serve(later + 3 * PACE, &mut voice);
            assert_eq!(next.recv(1, Some(Duration::ZERO)).unwrap().unwrap().fds.len(), 1, "{n}");
            listener.accept().unwrap();
        }
    }

    #[test]
    fn a_full_queue_is_no_refusal() {
        let path = std::env::temp_dir().join(format!("netreeve-door-{}-full.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let fd = socket::socket(AddressFamily::Unix, SockType::Stream, FLAGS, None).unwrap();
        socket::bind(fd.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        socket::listen(&fd, socket::Backlog::new(1).unwrap()).unwrap();
        let now = Instant::now();
        let (mut door, theirs) = Door::new("door".into(), Beyond::Unix(path.clone()), now).unwrap();
        let theirs = Channel::from_fd(theirs).unwrap();
        (0..8).for_each(|n| theirs.send(&door::ask(n), &[]).unwrap());
        door.serve(now, &mut Voice::new(false));
        let errors: Vec<i32> = std::iter::from_fn(|| theirs.recv(1, Some(Duration::ZERO)).ok()?)
            .map(|m| door::read_answer(&m.bytes).unwrap().1)
            .collect();
        assert_eq!((errors.len(), errors[0], errors[7]), (8, 0, libc::EAGAIN));
        assert!(!door.failing);
        // Nor is it the end of one.
        door.failing = true;
        theirs.send(&door::ask(9), &[]).unwrap();
        door.serve(now, &mut Voice::new(false));
        assert!(door.failing);
        std::fs::remove_file(&path).unwrap();
    }
}
