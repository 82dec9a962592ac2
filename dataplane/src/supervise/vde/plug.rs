//! A plug in a VDE switch: its protocol's handshake, spoken by ourselves.
//!
//! The data socket's file is needed until both ends are connected; then it is removed, so that nothing is left behind and
//! nobody else finds it.
//!
//! Trust: the switch may send what it likes; only an address is read from it. Promise: nothing here waits but [`open`], at
//! the start.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, User, geteuid};

use crate::fault::{Exit, Fault};
use crate::spec::vde::Vde;
use crate::supervise::datagram::{forget, queues};
use crate::supervise::listen::Own;
use crate::supervise::vde::home::group_id;
use crate::supervise::vde::words::{self, ADDRESS, read_address};

/// How long the switch may take for its answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon a switch that is gone is looked for again.
const AGAIN: Duration = Duration::from_secs(1);
const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// A plug, in a switch or on its way.
#[derive(Debug)]
pub struct Plug {
    spec: Vde,
    group: Option<Gid>,
    again: Option<Duration>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Never to be tried again.
    Idle,
    /// Try at this time.
    Wait(Instant),
    /// Asked for a port.
    Asked { ctl: OwnedFd, data: Data, until: Instant },
    /// In a port, as long as this connection lasts.
    In(OwnedFd),
}

/// Our datagram socket and its file, which goes with this.
#[derive(Debug)]
struct Data {
    socket: Option<OwnedFd>,
    path: PathBuf,
    /// Others than our own user may send to it until it is connected.
    open: bool,
}

impl Drop for Data {
    fn drop(&mut self) {
        // It was made by us under a name of our own; if it is gone already, so much the better.
        let _gone = fs::remove_file(&self.path);
    }
}

/// What a step led to.
#[derive(Debug)]
pub enum Step {
    /// Nothing new.
    Pending,
    /// In a port: its datagram socket, connected.
    Plugged(OwnedFd),
    /// The switch closed the port, or is gone.
    Lost,
    /// Failed; another try follows if [`Plug::due`] says when.
    Failed(io::Error),
}

impl Plug {
    /// To the switch that `spec` names, from now on.
    ///
    /// # Errors
    /// There is no such group.
    pub fn new(spec: Vde, now: Instant) -> io::Result<Self> {
        let group = spec.group.as_deref().map(group_id).transpose()?;
        let again = match spec.reconnect_ms {
            None => Some(AGAIN),
            Some(0) => None,
            Some(ms) => Some(Duration::from_millis(ms.into())),
        };
        Ok(Self { spec, group, again, state: State::Wait(now) })
    }

    /// It has to be there at the start.
    #[must_use]
    pub fn must_be_there(&self) -> bool {
        self.spec.reconnect_ms.is_none_or(|ms| ms == 0)
    }

    /// It will be tried again.
    #[must_use]
    pub fn persists(&self) -> bool {
        self.again.is_some()
    }

    /// When to call [`Plug::step`] at the latest.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        match &self.state {
            State::Idle | State::In(_) => None,
            State::Wait(t) | State::Asked { until: t, .. } => Some(*t),
        }
    }

    /// What to watch, and for what.
    #[must_use]
    pub fn fd(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        match &self.state {
            State::Asked { ctl, .. } | State::In(ctl) => Some((ctl.as_fd(), PollFlags::POLLIN)),
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
            State::Wait(_) => match self.ask() {
                Ok((ctl, data)) => {
                    self.state = State::Asked { ctl, data, until: now + PATIENCE };
                    Step::Pending
                }
                Err(e) => self.failed(e, now),
            },
            State::Asked { ctl, data, until } => self.answered(ctl, data, until, now),
            State::In(ctl) => {
                if is_open(&ctl) {
                    self.state = State::In(ctl);
                    return Step::Pending;
                }
                self.later(now);
                Step::Lost
            }
        }
    }

    /// What it was given is of no use any more: it plugs in anew.
    pub fn pull(&mut self, now: Instant) {
        self.later(now);
    }

    fn later(&mut self, now: Instant) {
        self.state = self.again.map_or(State::Idle, |a| State::Wait(now + a));
    }

    fn failed(&mut self, e: io::Error, now: Instant) -> Step {
        self.later(now);
        Step::Failed(e)
    }

    fn answered(&mut self, ctl: OwnedFd, data: Data, until: Instant, now: Instant) -> Step {
        let mut answer = [0; ADDRESS + 1];
        match socket::recv(ctl.as_raw_fd(), &mut answer, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN | Errno::EINTR) if now < until => {
                self.state = State::Asked { ctl, data, until };
                Step::Pending
            }
            Err(Errno::EAGAIN | Errno::EINTR) => self.failed(io::ErrorKind::TimedOut.into(), now),
            Err(e) => self.failed(e.into(), now),
            Ok(0) => self
                .failed(io::Error::other("the switch refuses: the port is taken, or not for this user"), now),
            Ok(n) => match plug_in(answer.get(..n).unwrap_or_default(), data) {
                Ok(socket) => {
                    self.state = State::In(ctl);
                    Step::Plugged(socket)
                }
                Err(e) => self.failed(e, now),
            },
        }
    }

    /// Connects to the switch and asks for a port.
    fn ask(&self) -> io::Result<(OwnedFd, Data)> {
        let dir = self.dir()?;
        let listens = dir.join("ctl");
        let ctl = socket::socket(AddressFamily::Unix, SockType::Stream, FLAGS, None)?;
        socket::connect(ctl.as_raw_fd(), &UnixAddr::new(&listens)?)?;
        let mut data = self.data(&dir)?;
        data.open = self.open_to_the_switch(&data.path, &listens)?;
        let request = words::request(self.spec.port, &data.path, &describe(&data.path));
        let sent = socket::send(ctl.as_raw_fd(), &request, MsgFlags::MSG_NOSIGNAL)?;
        if sent != request.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok((ctl, data))
    }

    /// The directory that was named, or the first of the usual ones where a switch is.
    fn dir(&self) -> io::Result<PathBuf> {
        if let Some(dir) = &self.spec.dir {
            return std::path::absolute(dir);
        }
        let home = std::env::var_os("HOME").map(|h| Path::new(&h).join(".vde2/default.switch"));
        let usual = home.into_iter().chain(["/var/run/vde.ctl", "/tmp/vde.ctl"].map(PathBuf::from));
        let is_switch = |d: &PathBuf| fs::metadata(d.join("ctl")).is_ok_and(|m| m.file_type().is_socket());
        usual.into_iter().find(is_switch).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "no switch in any of the usual directories")
        })
    }

    /// A datagram socket with a file beside the switch's, or where everybody may make one.
    fn data(&self, dir: &Path) -> io::Result<Data> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let mode = Mode::from_bits_truncate(self.spec.mode.unwrap_or(0o700));
        let mut last = io::Error::from(io::ErrorKind::PermissionDenied);
        for place in [dir, Path::new("/var/tmp"), Path::new("/tmp")] {
            let socket = socket::socket(AddressFamily::Unix, SockType::Datagram, FLAGS, None)?;
            // The file gets the socket's own mode, less the umask (unix(7)): never wider than asked for.
            fchmod(&socket, mode)?;
            let n = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = place.join(format!(".{:05}-{n:05}", std::process::id()));
            match socket::bind(socket.as_raw_fd(), &UnixAddr::new(&path)?) {
                Ok(()) => return Ok(Data { socket: Some(socket), path, open: false }),
                Err(e) => last = e.into(),
            }
        }
        Err(last)
    }

    /// Gives the group, or the switch's user where that is another, the right to send to our socket. True: others have it.
    fn open_to_the_switch(&self, path: &Path, ctl: &Path) -> io::Result<bool> {
        // The directory may be the switch's, who could put something else there.
        let own = Own::socket(path)?;
        own.give(None, self.group)?;
        let switch = fs::metadata(ctl)?;
        let known = switch.uid() == 0 || switch.uid() == geteuid().as_raw();
        let mode = match self.spec.mode {
            Some(mode) => mode,
            None if self.group.is_some() => 0o770,
            None if known => return Ok(false),
            // Who is not in the switch's group has to let everybody send, until the switch is connected.
            None if own.give(None, Some(Gid::from_raw(switch.gid()))).is_ok() => 0o770,
            None => 0o777,
        };
        own.mode(mode)?;
        Ok(mode & 0o022 != 0)
    }
}

/// Plugs in: where the switch has to be there, it is waited for, or its socket comes later by [`Plug::step`].
///
/// # Errors
/// It is not there, or refuses.
pub fn open(what: &str, spec: Vde, wait: bool) -> Result<(Plug, Option<OwnedFd>), Fault> {
    let at = spec.dir.as_ref().map_or_else(|| "a switch".to_owned(), |d| d.display().to_string());
    let what = format!("{what}: plugging into {at}");
    let mut plug = Plug::new(spec, Instant::now())
        .map_err(|e| Fault::new(Exit::Config, what.clone(), e, "name a group of /etc/group"))?;
    while wait && plug.must_be_there() {
        match plug.step(Instant::now()) {
            Step::Plugged(socket) => return Ok((plug, Some(socket))),
            Step::Pending => {
                let mut fds: Vec<PollFd<'_>> =
                    plug.fd().map(|(fd, flags)| PollFd::new(fd, flags)).into_iter().collect();
                let _ready = poll(&mut fds, PollTimeout::from(100_u8));
            }
            Step::Lost => {}
            Step::Failed(e) => {
                let exit = match e.kind() {
                    io::ErrorKind::PermissionDenied => Exit::Denied,
                    _ => Exit::Unavailable,
                };
                let fix =
                    "start the switch first (vde_switch -s DIR), or give reconnect-ms=1000 to wait for it";
                return Err(Fault::new(exit, what, e, fix));
            }
        }
    }
    Ok((plug, None))
}

/// The connection lasts. What the switch says on it means nothing, and costs it a turn for each so many bytes.
fn is_open(ctl: &OwnedFd) -> bool {
    let mut sink = [0; 4096];
    match socket::recv(ctl.as_raw_fd(), &mut sink, MsgFlags::MSG_DONTWAIT) {
        Ok(n) => n > 0,
        Err(e) => matches!(e, Errno::EAGAIN | Errno::EINTR),
    }
}

/// How we appear in the switch's lists.
fn describe(path: &Path) -> String {
    let user = User::from_uid(geteuid()).ok().flatten().map_or_else(|| geteuid().to_string(), |u| u.name);
    format!("netreeve user={user} PID={} SOCK={}", std::process::id(), path.display())
}

/// Connects our socket to the port's.
fn plug_in(answer: &[u8], mut data: Data) -> io::Result<OwnedFd> {
    let socket = data.socket.take().ok_or(io::ErrorKind::NotConnected)?;
    socket::connect(socket.as_raw_fd(), &read_address(answer)?)?;
    // From here on only the switch can send to it (unix(7)). What others may have sent before goes, and with it what the
    // switch was quick to send; where only our own user could, nothing is lost.
    if data.open {
        forget(&socket);
    }
    queues(&socket);
    Ok(socket)
}

#[cfg(test)]
#[path = "plug_tests.rs"]
mod tests;
