//! The service: one listening socket, many sessions, one thread (capabilities belong to a thread).
//!
//! Trust: whoever can open the socket is hostile. Promise: a session never waits for another's caller, only for the
//! kernel's work on another's request; the numbers of sessions, over all and by user, are bounded; with no session for
//! a while the service ends, and the service manager starts it with the next connection.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use netreeve_shared::channel::Channel;
use netreeve_shared::fdkind::{self, Socket};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};

use crate::accounts::Accounts;
use crate::caller;
use crate::confine::MAX_OPEN;
use crate::policy::Caller;
use crate::provide::{MAX_KEPT, TICK};
use crate::serve::{Desk, FIRST_REQUEST, Session};

/// Most sessions over all users.
const MAX_SESSIONS: usize = 256;
/// A session's channel and what it keeps, for all, and what serving one request takes meanwhile, find room.
const _: () = assert!((1 + MAX_KEPT) * MAX_SESSIONS as u64 + 64 <= MAX_OPEN, "raise confine::MAX_OPEN");
/// How long a service without a session stays.
pub const IDLE: Duration = Duration::from_secs(60);

/// The listening socket. std's listener for streams holds one for sequenced packets as well: `accept` is the same.
#[derive(Debug)]
pub struct Door(UnixListener);

impl Door {
    /// Takes over the service manager's socket.
    ///
    /// # Errors
    /// `EINVAL` if it is no listening `AF_UNIX SOCK_SEQPACKET` socket.
    pub fn activated(fd: OwnedFd) -> io::Result<Self> {
        let right = Socket { family: libc::AF_UNIX, kind: libc::SOCK_SEQPACKET, listening: true };
        if fdkind::socket(fd.as_fd())? != right {
            return Err(Errno::EINVAL.into());
        }
        Self::with(fd)
    }

    /// Makes and opens a socket at `path`, open to everybody who can reach it: the policy judges, by the kernel's word
    /// on who it is. A socket that another helper left there is replaced; ours is left there, too, since a helper may be
    /// killed at any moment.
    ///
    /// # Errors
    /// `PermissionDenied` if the directory is not ours or root's, or others may write to it: they could put their own
    /// socket in our place. `AddrInUse` if somebody listens there. Else the kernel's.
    pub fn listen(path: &Path) -> io::Result<Self> {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let meta = std::fs::metadata(parent)?;
        let owner = meta.uid() == 0 || meta.uid() == nix::unistd::getuid().as_raw();
        if !owner || meta.mode() & 0o022 != 0 {
            let why = format!("others than the helper may write to {} (chmod go-w)", parent.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        if Channel::connect(path).is_ok() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        // Anything else that is there makes the bind fail.
        if std::fs::symlink_metadata(path).is_ok_and(|old| old.file_type().is_socket()) {
            std::fs::remove_file(path)?;
        }
        let fd = socket::socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        socket::bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        socket::listen(&fd, Backlog::new(64)?)?;
        Self::with(fd)
    }

    fn with(fd: OwnedFd) -> io::Result<Self> {
        let listener = UnixListener::from(fd);
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }
}

/// The service's state.
pub struct Service {
    door: Door,
    desk: Desk,
    sessions: Vec<Session>,
    accounts: Accounts,
    idle: Option<Duration>,
}

impl Service {
    /// Makes the service; it listens already. `idle`: ends after this long without a session (none: never).
    #[must_use]
    pub fn new(door: Door, desk: Desk, idle: Option<Duration>) -> Self {
        Self { door, desk, sessions: Vec::new(), accounts: Accounts::default(), idle }
    }

    /// Serves until idle. (A signal ends the process as it is: see the crate's promise.)
    ///
    /// # Errors
    /// The kernel's, of `poll` itself.
    pub fn run(mut self) -> io::Result<()> {
        let mut last_use = Instant::now();
        loop {
            if !self.sessions.is_empty() {
                last_use = Instant::now();
            }
            let idle_at = self.idle.filter(|_| self.sessions.is_empty()).map(|idle| last_use + idle);
            let (calling, ready) = self.wait(idle_at)?;
            self.serve(&ready);
            self.sessions.iter_mut().for_each(|s| s.provider.tick());
            if calling {
                self.admit();
            } else if idle_at.is_some_and(|at| Instant::now() >= at) {
                return Ok(());
            }
        }
    }

    /// Waits for something to do: (somebody connects, which sessions have something).
    fn wait(&self, idle_at: Option<Instant>) -> io::Result<(bool, Vec<bool>)> {
        let silent = self.sessions.iter().filter(|s| !s.asked).map(|s| s.since + FIRST_REQUEST);
        let tick = self.sessions.iter().any(|s| s.provider.wants_tick()).then(|| Instant::now() + TICK);
        let timeout = silent.chain(idle_at).chain(tick).min().map_or(PollTimeout::NONE, |at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        // A full house lets callers queue at the door.
        let room = self.sessions.len() < MAX_SESSIONS;
        let door = if room { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut fds = vec![PollFd::new(self.door.0.as_fd(), door)];
        fds.extend(self.sessions.iter().map(|s| PollFd::new(s.channel.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
        Ok((ready.next().unwrap_or(false), ready.collect()))
    }

    /// One message of each session that has one; then those that have ended, or never asked, are closed.
    fn serve(&mut self, ready: &[bool]) {
        let mut held: HashMap<u32, u64> = HashMap::new();
        let Self { desk, accounts, sessions, .. } = self;
        for session in sessions.iter() {
            *held.entry(session.caller.uid).or_default() += session.provider.umem_bytes();
        }
        let mut ready = ready.iter();
        sessions.retain_mut(|session| {
            let all = held.entry(session.caller.uid).or_default();
            session.umem_elsewhere = all.saturating_sub(session.provider.umem_bytes());
            let keep =
                match ready.next().is_some_and(|ready| *ready).then(|| session.read(Some(Duration::ZERO))) {
                    Some(Ok(Some(message))) => desk.serve(session, &message, accounts),
                    Some(Ok(None)) => false,
                    Some(Err(_)) | None => session.asked || session.since.elapsed() < FIRST_REQUEST,
                };
            *all = session.umem_elsewhere;
            if keep {
                *all += session.provider.umem_bytes();
            } else {
                accounts.leave(session.caller.uid);
            }
            keep
        });
    }

    /// Lets one caller in, if the kernel says who it is and its user has sessions left. Anybody else is hung up on.
    fn admit(&mut self) {
        let Ok((socket, _)) = self.door.0.accept() else {
            // The caller has gone again, or there is no descriptor left: then not at full speed.
            return std::thread::sleep(Duration::from_millis(1));
        };
        let known = Channel::from_fd(socket.into()).and_then(|channel| {
            channel.set_nonblocking(true)?;
            let caller = caller::of_peer(&channel)?;
            Ok((channel, caller))
        });
        let (caller, why) = match known {
            Ok((channel, caller)) => {
                let most = self.desk.policy(&mut self.accounts, &caller).1.sessions;
                if self.accounts.enter(caller.uid, most, Instant::now()) {
                    return self.sessions.push(Session::new(channel, caller));
                }
                (caller, format!("limit of {most}"))
            }
            Err(why) => (Caller { uid: u32::MAX, gids: Vec::new(), pid: 0 }, why.to_string()),
        };
        self.desk.noise(&mut self.accounts, &caller, "session", &why);
    }
}
