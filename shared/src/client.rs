//! For programs that want something from the helper: a VMM in Rust, or netreeve's own supervisor.
//!
//! ```no_run
//! use netreeve_shared::client::{DEFAULT_SOCKET, Helper};
//! use netreeve_shared::grant::Grant;
//! use netreeve_shared::request::{Request, TapRequest};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut helper = Helper::connect(DEFAULT_SOCKET.as_ref())?;
//! let tap = TapRequest { name: None, persist: false, queues: 1, vnet_header: true, mtu: None, bridge: None };
//! let (grant, fds) = helper.ask(&Request::Tap(tap))?;
//! if let Grant::Tap(tap) = grant {
//!     println!("{} with {} descriptor(s)", tap.name, fds.len());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Trust: the helper is trusted to judge, but its answers are checked all the same; what a grant names is what the
//! kernel says of its descriptors, or nothing is kept of it.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::channel::{self, Channel, MAX_FDS};
use crate::codec::{self, Answer, CodecError};
use crate::fdkind::{self, NotThat};
use crate::grant::Grant;
use crate::refusal::Refusal;
use crate::request::{BadRequest, ListenRequest, Request};

/// Where the helper's service listens.
pub const DEFAULT_SOCKET: &str = "/run/netreeve/helper.sock";
/// Where packages put the helper's binary.
pub const DEFAULT_PROGRAM: &str = "/usr/libexec/netreeve/netreeve-helper";
/// How long [`Helper::ask`] waits for an answer; the helper's own deadline is shorter.
pub const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// How long [`Helper::ask`] asks again for a receive queue that is busy. The helper, which others wait for, waits less.
pub const BUSY_FOR: Duration = Duration::from_millis(500);
/// How long a helper started by [`Helper::exec`] has to end after its channel was closed.
const END_WITHIN: Duration = Duration::from_secs(2);

/// A session with the helper. Some grants last as long as it ([`Grant::XskPinned`]'s attachment), so keep it.
#[derive(Debug)]
pub struct Helper {
    channel: Option<Channel>,
    child: Option<Child>,
    sequence: u32,
}

/// Why there is no grant.
#[derive(Debug)]
pub enum AskError {
    /// The request's own numbers are out of range; the helper was not asked.
    Bad(BadRequest),
    /// The helper said no.
    Refused(Refusal),
    /// The helper closed the session without an answer. Exec'd: it said why on its standard error.
    Closed,
    /// No answer in time.
    Timeout,
    /// Sending or receiving failed.
    Io(io::Error),
    /// The answer could not be read.
    Codec(CodecError),
    /// The answer belongs to another request.
    Sequence,
    /// The answer is a grant of something else than what was asked for.
    Mismatch,
    /// A descriptor is not what the grant says.
    Label(NotThat),
}

impl Helper {
    /// Opens a session with the helper's service at `path` (usually [`DEFAULT_SOCKET`]).
    ///
    /// # Errors
    /// See [`Channel::connect`].
    pub fn connect(path: &Path) -> io::Result<Self> {
        Ok(Self::from_channel(Channel::connect(path)?))
    }

    /// Starts the helper's binary (with file capabilities, or setuid) for one session. It ends with this value.
    ///
    /// # Errors
    /// The kernel's, from starting it. A binary without privilege starts and then refuses.
    pub fn exec(program: &Path) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(Stdio::null()).env_clear();
        let (channel, child) = channel::spawn(command)?;
        Ok(Self { channel: Some(channel), child: Some(child), sequence: 0 })
    }

    /// Goes on with an inherited session.
    ///
    /// # Errors
    /// `EINVAL` if `fd` is no connected `AF_UNIX SOCK_SEQPACKET` socket.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self::from_channel(Channel::from_fd(fd)?))
    }

    fn from_channel(channel: Channel) -> Self {
        Self { channel: Some(channel), child: None, sequence: 0 }
    }

    /// The session's descriptor, to wait for its end (it becomes readable when the helper closes).
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(AsFd::as_fd)
    }

    /// Asks for one thing and waits for the answer. A receive queue that is busy is asked for again for up to
    /// [`BUSY_FOR`]: the kernel gives one back some time after its last socket closed. The descriptors are those of [`Grant::fds`], in that order, each
    /// attested by the kernel. On any error every descriptor that came is closed.
    ///
    /// # Errors
    /// [`AskError::Refused`] is an answer: the session goes on. After any other (but [`AskError::Bad`]) drop it.
    pub fn ask(&mut self, request: &Request) -> Result<(Grant, Vec<OwnedFd>), AskError> {
        let until = Instant::now() + BUSY_FOR;
        loop {
            match self.ask_once(request) {
                Err(AskError::Refused(Refusal::Busy))
                    if matches!(request, Request::Xsk(_)) && Instant::now() < until =>
                {
                    thread::sleep(BUSY_FOR / 8);
                }
                answer => return answer,
            }
        }
    }

    /// Asks for a socket at a port that needs privilege: it listens (TCP) or is bound (UDP), and does not block. The
    /// policy's key word is `listen`.
    ///
    /// # Errors
    /// See [`Helper::ask`]; [`Refusal::Busy`] if somebody has the port.
    pub fn listen(&mut self, at: ListenRequest) -> Result<OwnedFd, AskError> {
        let (_, fds) = self.ask(&Request::Listen(at))?;
        fds.into_iter().next().ok_or(AskError::Mismatch)
    }

    fn ask_once(&mut self, request: &Request) -> Result<(Grant, Vec<OwnedFd>), AskError> {
        request.check().map_err(AskError::Bad)?;
        let channel = self.channel.as_ref().ok_or(AskError::Closed)?;
        self.sequence = self.sequence.wrapping_add(1);
        let message = codec::request(self.sequence, request).map_err(AskError::Codec)?;
        channel.send(&message, &[]).map_err(AskError::from_io)?;
        let answer = channel.recv(MAX_FDS, Some(ANSWER_WITHIN)).map_err(AskError::from_io)?;
        let answer = answer.ok_or(AskError::Closed)?;
        let (sequence, said) =
            codec::read_answer(&answer.bytes, answer.fds.len()).map_err(AskError::Codec)?;
        if sequence != self.sequence {
            return Err(AskError::Sequence);
        }
        match said {
            Answer::Refusal(refusal) => Err(AskError::Refused(refusal)),
            Answer::Grant(grant) => {
                if !grant.answers(request) {
                    return Err(AskError::Mismatch);
                }
                for (fd, kind) in answer.fds.iter().zip(grant.fds()) {
                    fdkind::attest(fd.as_fd(), kind).map_err(AskError::Label)?;
                }
                Ok((grant, answer.fds))
            }
        }
    }
}

impl Drop for Helper {
    /// Closes the session, and sees an exec'd helper off: it ends by itself when its channel closes.
    fn drop(&mut self) {
        drop(self.channel.take());
        let Some(mut child) = self.child.take() else { return };
        let until = Instant::now() + END_WITHIN;
        while matches!(child.try_wait(), Ok(None)) {
            if Instant::now() >= until {
                // It may be beyond our signals (setuid); then there is nothing to wait for.
                if child.kill().is_ok() {
                    let _ended = child.wait();
                }
                return;
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl AskError {
    fn from_io(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::WouldBlock => Self::Timeout,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Io(e),
        }
    }
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bad(b) => write!(f, "the request is out of range: {b}"),
            Self::Refused(r) => write!(f, "the helper refused: {r}"),
            Self::Closed => f.write_str("the helper closed the session"),
            Self::Timeout => write!(f, "the helper did not answer within {} s", ANSWER_WITHIN.as_secs()),
            Self::Io(e) => write!(f, "talking to the helper failed: {e}"),
            Self::Codec(e) => write!(f, "the helper's answer cannot be read: {e}"),
            Self::Sequence => f.write_str("the helper's answer belongs to another request"),
            Self::Mismatch => f.write_str("the helper granted something else than was asked for"),
            Self::Label(e) => write!(f, "the helper's grant is not what it says: {e}"),
        }
    }
}

impl std::error::Error for AskError {}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
