//! Sockets inside a network namespace that we are not in: a process of ours that is there binds them and hands them over,
//! one for each question ([`serve`] is what it does, [`Inside`] is how it is asked).
//!
//! A socket is of the namespace in which it was made, whoever holds it.
//!
//! Trust: that process is of the same program, but it is in somebody else's namespace: what it hands over is looked at, and
//! it is waited for no longer than [`PATIENCE`]. Promise: whoever asks gets a socket of the kind and at the address that he
//! asked for, or an error; nothing but loopback addresses is bound.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use netreeve_shared::channel::Channel;
use nix::sys::socket::{SockType, SockaddrStorage, getsockname, getsockopt, sockopt};
use serde::{Deserialize, Serialize};

use super::ports;
use crate::fault::{Exit, Fault};
use crate::spec::forward::{Bind, HostForward};
use crate::sys::fd::set_nonblocking;

/// How long an answer may take. It is a matter of microseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Ask {
    /// Of the asker's choice, and in the answer again.
    number: u32,
    /// Where; port 0: the kernel's choice.
    at: SocketAddr,
    udp: bool,
    /// Another socket may be there that allows it.
    shared: bool,
}

/// An answer; `errno` 0: the socket travels with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    number: u32,
    errno: i32,
}

/// The asker's end.
#[derive(Debug)]
pub struct Inside {
    channel: Channel,
    last: u32,
    /// It did not answer once, and is not waited for again.
    silent: bool,
}

fn kind(udp: bool) -> SockType {
    if udp { SockType::Datagram } else { SockType::Stream }
}

/// Sees that a rule which listens inside has a guest that is a namespace: whether this one is, is said.
///
/// # Errors
/// It is none.
pub fn check(what: &str, rule: &HostForward, is_namespace: bool) -> Result<(), Fault> {
    if is_namespace || rule.listen.inside().is_none() {
        return Ok(());
    }
    let why = format!("Could not set up host forwarding rule '{rule}' (this guest is no network namespace)");
    let fix = "netreeve-pasta has --tcp-ns and --udp-ns; a machine calls its gateway's address, where a rule allows the host";
    Err(Fault::new(Exit::Config, what, why, fix))
}

impl Inside {
    /// Behind the descriptor that `ns-fd=` names.
    ///
    /// # Errors
    /// It is no such socket, or nothing leaves the network.
    pub fn handed(what: &str, fd: OwnedFd, restrict: bool) -> Result<Self, Fault> {
        let fault =
            |why: &dyn std::fmt::Display, fix| Fault::new(Exit::Config, format!("{what}: ns-fd="), why, fix);
        if restrict {
            return Err(fault(&"with restrict=on nothing leaves", "leave one of them out"));
        }
        Self::new(fd).map_err(|e| fault(&e, "it is netreeve-pasta's, which makes it; leave it out"))
    }

    /// With a process of ours at the other end.
    ///
    /// # Errors
    /// The descriptor is no such socket.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let channel = Channel::from_fd(fd)?;
        channel.set_nonblocking(true)?;
        Ok(Self { channel, last: 0, silent: false })
    }

    /// A socket at this address and first port, listening if it is of streams; and its port.
    ///
    /// # Errors
    /// The kernel's in there, or that process is gone or does as it likes.
    pub fn bind(&mut self, to: &Bind, udp: bool) -> io::Result<(OwnedFd, u16)> {
        self.ask(to.at, udp, !udp)
    }

    /// A socket of datagrams beside another one there, which allows it.
    ///
    /// # Errors
    /// As [`Inside::bind`].
    pub fn again(&mut self, to: &Bind) -> io::Result<OwnedFd> {
        self.ask(to.at, true, true).map(|(fd, _)| fd)
    }

    fn ask(&mut self, at: SocketAddr, udp: bool, shared: bool) -> io::Result<(OwnedFd, u16)> {
        self.last = self.last.wrapping_add(1);
        let ask = Ask { number: self.last, at, udp, shared };
        let gone = || io::Error::other("the process inside the namespace is gone");
        if self.silent {
            return Err(gone());
        }
        self.channel.send(&serde_json::to_vec(&ask)?, &[]).map_err(|_| gone())?;
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            // One that says much to no purpose does not answer either.
            let said = if left.is_zero() { None } else { Some(self.channel.recv(1, Some(left))) };
            let message = match said {
                Some(Ok(Some(message))) => message,
                Some(Ok(None)) => return Err(gone()),
                Some(Err(e)) if e.kind() != ErrorKind::WouldBlock => return Err(e),
                None | Some(Err(_)) => {
                    self.silent = true;
                    return Err(io::Error::other("the process inside the namespace does not answer"));
                }
            };
            // One that is late answers a question of before.
            let answer = serde_json::from_slice::<Answer>(&message.bytes)?;
            if answer.number != ask.number {
                continue;
            }
            return match (answer.errno, message.fds.into_iter().next()) {
                (0, Some(fd)) => looked_at(fd, &ask),
                (0, None) => Err(ErrorKind::InvalidData.into()),
                (e, _) => Err(io::Error::from_raw_os_error(e)),
            };
        }
    }
}

/// It is what was asked for.
fn looked_at(fd: OwnedFd, ask: &Ask) -> io::Result<(OwnedFd, u16)> {
    let at: SockaddrStorage = getsockname(fd.as_raw_fd())?;
    let four = at.as_sockaddr_in().map(|a| SocketAddr::from((a.ip(), a.port())));
    let six = at.as_sockaddr_in6().map(|a| SocketAddr::from((a.ip(), a.port())));
    let bound = four.or(six).filter(|b| b.ip() == ask.at.ip() && [b.port(), 0].contains(&ask.at.port()));
    let is = getsockopt(&fd, sockopt::SockType)? == kind(ask.udp)
        && getsockopt(&fd, sockopt::AcceptConn).unwrap_or(false) != ask.udp;
    let Some(bound) = bound.filter(|_| is) else {
        return Err(io::Error::new(ErrorKind::InvalidData, "another socket came than was asked for"));
    };
    // Nobody waits in a socket that others hold as well.
    set_nonblocking(fd.as_fd())?;
    Ok((fd, bound.port()))
}

/// Binds what is asked for, in the namespace that this process is in, until nobody can ask any more.
///
/// # Errors
/// The other end does not speak as it should.
pub fn serve(channel: &Channel) -> io::Result<()> {
    while let Some(message) = channel.recv(0, None)? {
        let ask: Ask = serde_json::from_slice(&message.bytes)?;
        let made = if ask.at.ip().is_loopback() {
            ports::bound(&Bind::from(ask.at), kind(ask.udp), ask.shared).map(|(fd, _)| fd)
        } else {
            Err(ErrorKind::AddrNotAvailable.into())
        };
        let errno = made.as_ref().map_or_else(|e| e.raw_os_error().unwrap_or(libc::EIO), |_| 0);
        let handed: Vec<_> = made.as_ref().ok().into_iter().map(AsFd::as_fd).collect();
        channel.send(&serde_json::to_vec(&Answer { number: ask.number, errno })?, &handed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    use std::thread;

    use super::*;

    /// One that is asked, and what it will have answered when it is dropped.
    fn pair() -> (Inside, thread::JoinHandle<io::Result<()>>) {
        let (ours, theirs) = Channel::pair().unwrap();
        let other = thread::spawn(move || serve(&theirs));
        (Inside::new(ours.into_fd()).unwrap(), other)
    }

    fn at(text: &str) -> Bind {
        Bind { inside: true, ..text.parse::<SocketAddr>().unwrap().into() }
    }

    #[test]
    fn sockets_come_or_the_kernels_reason() {
        let (mut inside, other) = pair();
        let (fd, port) = inside.bind(&at("127.0.0.1:0"), false).unwrap();
        let listener = TcpListener::from(fd);
        let _out = TcpStream::connect(("127.0.0.1", port)).unwrap();
        listener.accept().unwrap();
        let again = inside.bind(&at(&format!("127.0.0.1:{port}")), false).unwrap_err();
        assert_eq!(again.raw_os_error(), Some(libc::EADDRINUSE));
        let (fd, port) = inside.bind(&at("127.0.0.1:0"), true).unwrap();
        let socket = UdpSocket::from(fd);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"there", ("127.0.0.1", port)).unwrap();
        let mut room = [0; 9];
        let until = Instant::now() + PATIENCE;
        let got = loop {
            match socket.recv(&mut room) {
                Err(e) if e.kind() == ErrorKind::WouldBlock && Instant::now() < until => thread::yield_now(),
                got => break got.unwrap(),
            }
        };
        assert_eq!(&room[..got], b"there");
        // In the place of another, once that one allows it.
        let spoilt: OwnedFd = socket.into();
        let there = at(&format!("127.0.0.1:{port}"));
        assert!(inside.again(&there).is_err());
        let _new = ports::beside(&spoilt, &there, |to| inside.again(to)).unwrap();
        drop(spoilt);
        assert!(UdpSocket::bind(("127.0.0.1", port)).is_err(), "it is ours");
        // Nothing else is ever bound.
        assert!(inside.bind(&at("0.0.0.0:0"), false).is_err());
        drop(inside);
        other.join().unwrap().unwrap();
    }

    #[test]
    fn what_comes_is_looked_at() {
        let (ours, theirs) = Channel::pair().unwrap();
        let mut inside = Inside::new(ours.into_fd()).unwrap();
        let other = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let say = |number, fd: std::os::fd::BorrowedFd<'_>| {
            let text = serde_json::to_vec(&Answer { number, errno: 0 }).unwrap();
            theirs.send(&text, &[fd]).unwrap();
        };
        // A late answer first, then one at another port, of another kind, and something else.
        say(99, udp.as_fd());
        say(1, other.as_fd());
        say(2, udp.as_fd());
        say(3, file.as_fd());
        for _ in 1..=3 {
            inside.bind(&at("127.0.0.1:1"), false).unwrap_err();
        }
        let right = other.local_addr().unwrap().to_string();
        say(4, other.as_fd());
        inside.bind(&at(&right), false).unwrap();
        drop(theirs);
        assert!(inside.bind(&at(&right), false).unwrap_err().to_string().contains("gone"));
    }
}
