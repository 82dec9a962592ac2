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
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use netreeve_shared::channel::Channel;
use netreeve_shared::fdkind;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{self, AddressFamily, Backlog, SockFlag, SockType, UnixAddr};

use crate::accounts::Accounts;
use crate::caller;
use crate::policy::Caller;
use crate::provide::TICK;
use crate::serve::{Desk, FIRST_REQUEST, Session};

/// Most sessions over all users.
const MAX_SESSIONS: usize = 256;
/// How long a service without a session stays.
pub const IDLE: Duration = Duration::from_secs(60);

/// The listening socket. std's listener for streams holds one for sequenced packets as well: `accept` is the same.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    /// Where we made it ourselves: to be removed at the end.
    made: Option<PathBuf>,
}

impl Door {
    /// Takes over the service manager's socket.
    ///
    /// # Errors
    /// `EINVAL` if it is no listening `AF_UNIX SOCK_SEQPACKET` socket.
    pub fn activated(fd: OwnedFd) -> io::Result<Self> {
        let kind = fdkind::socket(fd.as_fd())?;
        if kind.family != libc::AF_UNIX || kind.kind != libc::SOCK_SEQPACKET || !kind.listening {
            return Err(Errno::EINVAL.into());
        }
        Self::with(fd, None)
    }

    /// Makes and opens a socket at `path`, open to everybody who can reach it: the policy judges, by the kernel's word
    /// on who it is. A socket left there by a helper that was killed is replaced.
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
        Self::with(fd, Some(path.to_owned()))
    }

    fn with(fd: OwnedFd, made: Option<PathBuf>) -> io::Result<Self> {
        let listener = UnixListener::from(fd);
        listener.set_nonblocking(true)?;
        Ok(Self { listener, made })
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Some(path) = &self.made {
            // Gone already, or no longer ours to remove: the next helper replaces it.
            let _gone = std::fs::remove_file(path);
        }
    }
}

/// The service's state.
pub struct Service {
    door: Door,
    desk: Desk,
    signals: SignalFd,
    sessions: Vec<Session>,
    accounts: Accounts,
    idle: Option<Duration>,
}

impl Service {
    /// Makes the service; it listens already. `idle`: ends after this long without a session (none: never).
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(door: Door, desk: Desk, idle: Option<Duration>) -> io::Result<Self> {
        let mut ends = SigSet::empty();
        ends.add(Signal::SIGTERM);
        ends.add(Signal::SIGINT);
        ends.thread_block()?;
        let signals = SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { door, desk, signals, sessions: Vec::new(), accounts: Accounts::default(), idle })
    }

    /// Serves until told to end, or until idle.
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
            let Some((ending, calling, ready)) = self.wait(idle_at)? else { continue };
            if ending {
                return Ok(());
            }
            self.serve(&ready);
            self.sessions.iter_mut().for_each(|s| s.provider.tick());
            if calling {
                self.admit();
            } else if idle_at.is_some_and(|at| Instant::now() >= at) {
                return Ok(());
            }
        }
    }

    /// Waits for something to do: (told to end, somebody connects, which sessions have something).
    fn wait(&self, idle_at: Option<Instant>) -> io::Result<Option<(bool, bool, Vec<bool>)>> {
        let silent = self.sessions.iter().filter(|s| !s.asked).map(|s| s.since + FIRST_REQUEST);
        let tick = self.sessions.iter().any(|s| s.provider.wants_tick()).then(|| Instant::now() + TICK);
        let timeout = silent.chain(idle_at).chain(tick).min().map_or(PollTimeout::NONE, |at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        // A full house lets callers queue at the door.
        let room = self.sessions.len() < MAX_SESSIONS;
        let door_events = if room { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.door.listener.as_fd(), door_events),
        ];
        fds.extend(self.sessions.iter().map(|s| PollFd::new(s.channel.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(None),
            Err(e) => return Err(e.into()),
        }
        let mut ready = fds.iter().map(|fd| fd.any().unwrap_or(true));
        let (ending, calling) = (ready.next().unwrap_or(false), ready.next().unwrap_or(false));
        Ok(Some((ending, calling, ready.collect())))
    }

    /// One message of each session that has one; then those that have ended, or never asked, are closed.
    fn serve(&mut self, ready: &[bool]) {
        let mut held: HashMap<u32, u64> = HashMap::new();
        for session in &self.sessions {
            *held.entry(session.caller.uid).or_default() += session.provider.umem_bytes();
        }
        let mut ready = ready.iter().copied();
        let Self { desk, accounts, sessions, .. } = self;
        sessions.retain_mut(|session| {
            let (uid, before) = (session.caller.uid, session.provider.umem_bytes());
            let user = held.entry(uid).or_default();
            let keep = match ready.next().unwrap_or(false).then(|| session.read(Some(Duration::ZERO))) {
                Some(Ok(Some(message))) => desk.serve(session, &message, accounts, *user - before),
                Some(Ok(None)) => false,
                Some(Err(_)) | None => session.asked || session.since.elapsed() < FIRST_REQUEST,
            };
            *user = *user - before + if keep { session.provider.umem_bytes() } else { 0 };
            if !keep {
                accounts.leave(uid);
            }
            keep
        });
    }

    /// Lets one caller in, if the kernel says who it is and its user has sessions left. Anybody else is hung up on.
    fn admit(&mut self) {
        let Ok((socket, _)) = self.door.listener.accept() else {
            // The caller has gone again, or there is no descriptor left: then not at full speed.
            return std::thread::sleep(Duration::from_millis(1));
        };
        let opened = Channel::from_fd(socket.into()).and_then(|channel| {
            channel.set_nonblocking(true)?;
            let caller = caller::of_peer(&channel)?;
            Ok(Session::new(channel, caller))
        });
        let why = match opened {
            Ok(session) => {
                let Caller { uid, pid, .. } = session.caller;
                let most = self.desk.policy().quota(&session.caller).sessions;
                if self.accounts.enter(uid, most, Instant::now()) {
                    return self.sessions.push(session);
                }
                format!("uid={uid} pid={pid} what=session why=\"limit of {most}\"")
            }
            Err(why) => format!("what=session why=\"{why}\""),
        };
        self.desk.log.line(&format!("refuse {why}"));
    }
}
