//! The host's end of a flow, as the machine sees it: a stream that takes bytes, gives bytes, and may be reset.
//!
//! Trust: the kernel; what comes out of a socket is passed on, never looked at. Promise: nothing here waits.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::plan::Outbound;
use super::super::sockets::leave;
use crate::mem::Seg;
use crate::sys::sock::{self, Half, Opt, Speaks};

/// Most seconds between questions to a far end that does not answer (Linux' default).
const INTERVAL: u16 = 75;

/// The host's end of a flow.
pub trait Sock: Sized {
    /// Begins a connection, which leaves the host as is said. It is decided when the socket becomes writable: [`Sock::error`].
    ///
    /// # Errors
    /// It is decided already.
    fn open(to: SocketAddr, by: &Outbound) -> io::Result<Self>;

    /// A connection that somebody else made; `tcp`: it is one of TCP's.
    fn made(fd: OwnedFd, tcp: bool) -> Self;

    /// To be watched.
    fn fd(&self) -> Option<BorrowedFd<'_>>;

    /// What was read stays in the kernel until [`Sock::discard`], and can be read again after [`Sock::rewind`].
    fn peeks(&self) -> bool;

    /// Takes bytes; how many.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock`: none now.
    fn write(&mut self, from: &[Seg]) -> io::Result<usize>;

    /// Gives the next bytes; none: the end.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock`: none now.
    fn read(&mut self, to: &[Seg]) -> io::Result<usize>;

    /// Bytes that were read are not needed any more; how many of them there were.
    ///
    /// # Errors
    /// The kernel's.
    fn discard(&mut self, n: u32) -> io::Result<u32>;

    /// Bytes that are there and were not discarded.
    ///
    /// # Errors
    /// The kernel's.
    fn unread(&self) -> io::Result<u32>;

    /// Reads again from the first byte that was not discarded.
    ///
    /// # Errors
    /// The kernel's.
    fn rewind(&mut self) -> io::Result<()>;

    /// The kernel keeps no more than twice so many bytes for each direction.
    fn bound(&mut self, bytes: u32);

    /// The far end is asked whether it is there after so many seconds of silence.
    fn keep_alive(&mut self, seconds: u16);

    /// No more is written: the peer reads the end.
    fn finish(&mut self);

    /// To be closed, and the peer is to know that it was broken off.
    fn abort(&mut self);

    /// It is known how the connection came out.
    fn decided(&self) -> bool;

    /// How the connection came out, or what broke it. None: all is well.
    fn error(&mut self) -> Option<io::Error>;
}

/// A socket of the kernel's.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
    peeks: bool,
}

impl Stream {
    /// Sets what every socket of a flow has. Whether the kernel knows where peeking goes on (TCP: Linux 6.9, IPv6 6.11) is
    /// found out by asking; where it does not, what was read is kept here.
    fn dress(fd: OwnedFd, tcp: bool) -> Self {
        let mut peeks = false;
        if tcp {
            // Neither can fail on a TCP socket; without them it works, if less well.
            let _ = sock::set(fd.as_fd(), Opt::NoDelay, 1);
            let _ = sock::set(fd.as_fd(), Opt::KeepAlive, 1);
            // The kernel would take an urgent byte out of the stream, and peeking would count on as if it were there.
            let _ = sock::set(fd.as_fd(), Opt::UrgentInline, 1);
            peeks = sock::set(fd.as_fd(), Opt::PeekOff, 0).is_ok();
        }
        Self { fd, peeks }
    }
}

impl Sock for Stream {
    fn open(to: SocketAddr, by: &Outbound) -> io::Result<Self> {
        let fd = sock::new(Speaks::Tcp, to.is_ipv6())?;
        let s = Self::dress(fd, true);
        leave(s.fd.as_fd(), to, by)?;
        sock::call(s.fd.as_fd(), to)?;
        Ok(s)
    }

    fn made(fd: OwnedFd, tcp: bool) -> Self {
        Self::dress(fd, tcp)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }

    fn peeks(&self) -> bool {
        self.peeks
    }

    fn write(&mut self, from: &[Seg]) -> io::Result<usize> {
        sock::write(self.fd.as_fd(), from)
    }

    fn read(&mut self, to: &[Seg]) -> io::Result<usize> {
        if self.peeks { sock::peek(self.fd.as_fd(), to) } else { sock::read(self.fd.as_fd(), to) }
    }

    fn discard(&mut self, n: u32) -> io::Result<u32> {
        let n = sock::discard(self.fd.as_fd(), usize::try_from(n).unwrap_or(usize::MAX))?;
        Ok(u32::try_from(n).unwrap_or(u32::MAX))
    }

    fn unread(&self) -> io::Result<u32> {
        sock::unread(self.fd.as_fd())
    }

    fn rewind(&mut self) -> io::Result<()> {
        sock::set(self.fd.as_fd(), Opt::PeekOff, 0)
    }

    fn bound(&mut self, bytes: u32) {
        let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
        // Neither can fail: it is the kernel that says how many these are at most.
        let _ = sock::set(self.fd.as_fd(), Opt::SendBuffer, bytes);
        let _ = sock::set(self.fd.as_fd(), Opt::ReceiveBuffer, bytes);
    }

    fn keep_alive(&mut self, seconds: u16) {
        // Only unix sockets have no such thing, and their peers are on this machine.
        let _ = sock::set(self.fd.as_fd(), Opt::KeepIdle, seconds.into());
        let _ = sock::set(self.fd.as_fd(), Opt::KeepInterval, seconds.min(INTERVAL).into());
    }

    fn finish(&mut self) {
        // Not connected any more: then its peer knows already.
        let _ = sock::shutdown(self.fd.as_fd(), Half::Write);
    }

    fn abort(&mut self) {
        // Only unix sockets have no such thing, and their peers read the end.
        let _ = sock::reset_on_close(self.fd.as_fd());
    }

    fn decided(&self) -> bool {
        let mut asked = [PollFd::new(self.fd.as_fd(), PollFlags::POLLOUT)];
        poll(&mut asked, PollTimeout::ZERO).is_ok_and(|n| n > 0)
    }

    fn error(&mut self) -> Option<io::Error> {
        sock::error(self.fd.as_fd()).unwrap_or_else(Some)
    }
}
