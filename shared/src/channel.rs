//! Messages and descriptors over `AF_UNIX SOCK_SEQPACKET`.
//!
//! One send is one message: a peer can neither split nor join them, so there is no half message to wait for.
//! Trust: the peer is hostile. Promise: whatever comes is close-on-exec from the first instant, a cut message or a cut
//! list of descriptors is refused whole, and every descriptor that is not handed to the caller is closed.
//!
//! Sending is sendfd's. It writes for any connected socket but is offered for std's types alone, and a
//! [`UnixDatagram`] holds a sequenced-packet socket just as well: same calls, message boundaries kept. Receiving
//! is nix's `recvmsg`, because sendfd neither sets close-on-exec nor tells of truncation.
#![allow(
    unsafe_code,
    reason = "descriptors arrive as numbers; a child's descriptor 3 is made between fork and exec"
)]

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr};
use sendfd::SendWithFd;

use crate::codec;
use crate::fdkind;

/// Most descriptors in one message.
pub const MAX_FDS: usize = 16;
/// The descriptor on which a program started by [`spawn`] finds its end of the channel.
pub const INHERITED: RawFd = 3;

/// Room for every descriptor that the kernel can put into one message (`SCM_MAX_FD`, 253) and for the credentials and
/// labels that whoever made the socket may have asked for: with less, the surplus would be cut without a list.
const CONTROL_ROOM: usize = 253 * 4 + 16 + 1024;

/// A message as it came.
#[derive(Debug)]
pub struct Message {
    /// The bytes, at most [`codec::MAX`].
    pub bytes: Vec<u8>,
    /// The descriptors, at most as many as were asked for; all close-on-exec.
    pub fds: Vec<OwnedFd>,
}

/// One end of a connection.
#[derive(Debug)]
pub struct Channel {
    socket: UnixDatagram,
}

impl Channel {
    /// Two connected ends, close-on-exec.
    ///
    /// # Errors
    /// The kernel's (`EMFILE`, `ENFILE`).
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (a, b) = socket::socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Self { socket: a.into() }, Self { socket: b.into() }))
    }

    /// Connects to the listening socket at `path`.
    ///
    /// # Errors
    /// The kernel's: `ENOENT` and `ECONNREFUSED` (nobody listens), `EACCES` (not in the socket's group),
    /// `EPROTOTYPE` (a socket of another type).
    pub fn connect(path: &Path) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Self { socket: socket.into() })
    }

    /// Takes over a connected socket.
    ///
    /// # Errors
    /// `EINVAL` if `fd` is not a connected `AF_UNIX SOCK_SEQPACKET` socket (`ENOTSOCK` if it is none at all).
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let kind = fdkind::socket(fd.as_fd())?;
        if kind.family != libc::AF_UNIX || kind.kind != libc::SOCK_SEQPACKET || kind.listening {
            return Err(Errno::EINVAL.into());
        }
        socket::getpeername::<UnixAddr>(fd.as_raw_fd())?;
        Ok(Self { socket: fd.into() })
    }

    /// Takes over descriptor [`INHERITED`], as [`spawn`] gives it to a program. Succeeds once in a process.
    ///
    /// # Errors
    /// `EBADF` if there is no such descriptor or it was taken over before; else as [`Channel::from_fd`].
    pub fn inherited() -> io::Result<Self> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        // SAFETY: F_SETFD takes no pointer; a number that is no descriptor is an error.
        let open = unsafe { libc::fcntl(INHERITED, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
        if !open || TAKEN.swap(true, Ordering::Relaxed) {
            return Err(Errno::EBADF.into());
        }
        // SAFETY: it is open, and the flag makes us its only owner: whoever starts us leaves this number to us.
        Self::from_fd(unsafe { OwnedFd::from_raw_fd(INHERITED) })
    }

    /// Gives the socket away.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.socket.into()
    }

    /// Lets [`Channel::send`] fail with `WouldBlock` instead of waiting for a peer that does not read.
    /// ([`Channel::recv`] never waits longer than it is told.)
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_nonblocking(&self, on: bool) -> io::Result<()> {
        self.socket.set_nonblocking(on)
    }

    /// How long a [`Channel::send`] waits for a peer that does not read (`SO_SNDTIMEO`).
    ///
    /// # Errors
    /// The kernel's; a duration of zero is refused.
    pub fn set_send_timeout(&self, wait: Duration) -> io::Result<()> {
        self.socket.set_write_timeout(Some(wait))
    }

    /// Sends one message with descriptors. The peer gets copies; the caller keeps its own.
    ///
    /// # Errors
    /// `EMSGSIZE` for an empty message or one over [`codec::MAX`] bytes or [`MAX_FDS`] descriptors; else the kernel's:
    /// `EPIPE` and `ECONNRESET` (the peer is gone), `EAGAIN` (it does not read).
    pub fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if bytes.is_empty() || bytes.len() > codec::MAX || fds.len() > MAX_FDS {
            return Err(Errno::EMSGSIZE.into());
        }
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        loop {
            // One system call for both, so that a sandbox has to allow but one.
            let sent = if raw.is_empty() {
                let parts = [IoSlice::new(bytes)];
                let flags = MsgFlags::MSG_NOSIGNAL;
                socket::sendmsg::<()>(self.socket.as_raw_fd(), &parts, &[], flags, None)
                    .map_err(io::Error::from)
            } else {
                self.socket.send_with_fd(bytes, &raw)
            };
            match sent {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
                Ok(_) => return Ok(()),
            }
        }
    }

    /// Receives one message with at most `max_fds` descriptors, waiting at most `wait` (none: as long as it takes;
    /// zero: not at all). `Ok(None)`: the peer has closed.
    ///
    /// # Errors
    /// `WouldBlock` when the time is over; `InvalidData` for a message that is too long or brings more descriptors
    /// than `max_fds` or than this process may open: it is consumed, its descriptors are closed, and the next message
    /// can be received. Else the kernel's.
    pub fn recv(&self, max_fds: usize, wait: Option<Duration>) -> io::Result<Option<Message>> {
        let until = wait.map(|w| Instant::now() + w);
        loop {
            match self.recv_now(max_fds) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if !readable(self.as_fd(), until)? {
                        return Err(e);
                    }
                }
                other => return other,
            }
        }
    }

    fn recv_now(&self, max_fds: usize) -> io::Result<Option<Message>> {
        let mut bytes = vec![0; codec::MAX];
        // Without room for control data the kernel does not even make the descriptors.
        let mut control = vec![0; if max_fds == 0 { 0 } else { CONTROL_ROOM }];
        let (len, flags) = {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let room = (max_fds != 0).then_some(control.as_mut_slice());
            let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
            let got = socket::recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, room, flags)?;
            (got.bytes, got.flags)
        };
        // Read before anything is judged, so that what is refused is closed as well. (nix's own list is withheld
        // after MSG_CTRUNC, which would leak the descriptors that did come.)
        // SAFETY: zeros, of which the call above wrote some; it is looked at here only.
        let fds = unsafe { take_fds(&control) };
        if flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) || fds.len() > max_fds {
            let why = "a message was too long or brought more descriptors than may come";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        if len == 0 {
            return Ok(None);
        }
        bytes.truncate(len);
        Ok(Some(Message { bytes, fds }))
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Waits until `fd` can be read or has ended. False: the time is over.
fn readable(fd: BorrowedFd<'_>, until: Option<Instant>) -> io::Result<bool> {
    loop {
        let timeout = match until {
            None => PollTimeout::NONE,
            Some(t) => {
                let left = t.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(false);
                }
                // Up to the next whole millisecond: a wait of zero would spin.
                PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Takes ownership of every descriptor that the kernel listed in `control` (a sequence of `struct cmsghdr`, zeroed
/// before the call, so that an unused rest reads as length 0), whatever else it says of the message.
///
/// # Safety
/// `control` was zeroed, then written by one `recvmsg`, and by nothing since; nobody has taken what it lists.
#[must_use]
pub unsafe fn take_fds(mut control: &[u8]) -> Vec<OwnedFd> {
    const HEADER: usize = size_of::<libc::cmsghdr>();
    const _: () = assert!(HEADER == 16, "struct cmsghdr: a 64-bit length, then level and type");
    let mut fds = Vec::new();
    while let Some((head, _)) = control.split_first_chunk::<HEADER>() {
        let [l0, l1, l2, l3, l4, l5, l6, l7, v0, v1, v2, v3, t0, t1, t2, t3] = *head;
        let length = u64::from_ne_bytes([l0, l1, l2, l3, l4, l5, l6, l7]);
        let level = i32::from_ne_bytes([v0, v1, v2, v3]);
        let kind = i32::from_ne_bytes([t0, t1, t2, t3]);
        let Some(data) = usize::try_from(length).ok().and_then(|l| control.get(HEADER..l)) else { break };
        // SCM_PIDFD brings a descriptor too, if whoever made the socket has set SO_PASSPIDFD.
        if level == libc::SOL_SOCKET && matches!(kind, libc::SCM_RIGHTS | SCM_PIDFD) {
            for number in data.chunks_exact(size_of::<RawFd>()) {
                let raw = number.try_into().map_or(-1, RawFd::from_ne_bytes);
                if raw >= 0 {
                    // SAFETY: the kernel has just made this descriptor for us and listed it once; nobody else
                    // knows its number (the caller's promise).
                    fds.push(unsafe { OwnedFd::from_raw_fd(raw) });
                }
            }
        }
        control = control.get((HEADER + data.len()).next_multiple_of(8)..).unwrap_or_default();
    }
    fds
}

/// `SCM_PIDFD` (`linux/socket.h`, 6.5).
const SCM_PIDFD: libc::c_int = 4;

/// Starts `command` with one end of a new channel as its descriptor [`INHERITED`].
///
/// # Errors
/// The kernel's, from making the pair or from starting the program.
pub fn spawn(mut command: Command) -> io::Result<(Channel, Child)> {
    let (ours, theirs) = Channel::pair()?;
    let raw = theirs.socket.as_raw_fd();
    let hook = move || {
        if raw == INHERITED {
            // SAFETY: F_SETFD takes no pointer; async-signal-safe.
            let done = unsafe { libc::fcntl(raw, libc::F_SETFD, 0) };
            return if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        }
        // SAFETY: dup2 takes no pointer; async-signal-safe. The copy is not close-on-exec.
        let done = unsafe { libc::dup2(raw, INHERITED) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: the hook runs between fork and exec; it makes one async-signal-safe call and does not allocate.
    // `theirs` lives until the child is started, so the number is still its own.
    unsafe { command.pre_exec(hook) };
    let child = command.spawn()?;
    Ok((ours, child))
}

#[cfg(test)]
#[path = "channel_tests.rs"]
mod tests;
