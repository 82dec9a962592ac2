//! A switch's side of the handshake: who asks for a port, and what a client that has one says afterwards.
//!
//! A client that has come has [`PATIENCE`] for its request; so many may be at it at a time, and another takes the place of
//! the one that has been longest, of the user who has most of them: nobody keeps others out. What is no request, asks for what there is not, or names a data socket that is not the
//! client's own, costs the connection.
//!
//! Trust: none in clients, but that the file system let them in. Promise: nothing here waits, and no client is asked to
//! before another more than once.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{self, MsgFlags, sockopt};

use crate::fault::Fault;
use crate::port::hub;
use crate::spec::vde::Server;
use crate::supervise::listen::SocketFile;
use crate::supervise::vde::home::{Directory, Home};
use crate::supervise::vde::words::{ADDRESS, LONGEST, Request, address, read_request};

/// How long a client may take for its request.
const PATIENCE: Duration = Duration::from_secs(5);
/// Clients that may be at it at a time.
const ASKING: usize = 16;
/// Clients that are let in in one turn.
const AT_ONCE: usize = 8;
/// When somebody could not be let in, others are tried after so long.
const AGAIN: Duration = Duration::from_secs(1);
/// Hubs of switches that name none have numbers beyond those that can be named.
const OWN_HUBS: i64 = 1 << 32;

/// A switch.
#[derive(Debug)]
pub struct Switch {
    number: u32,
    spec: Server,
    home: Home,
    asking: VecDeque<Asking>,
    /// Nobody is let in before.
    again: Option<Instant>,
}

#[derive(Debug)]
struct Asking {
    ctl: OwnedFd,
    /// Whose it is, as the kernel says.
    uid: u32,
    said: Vec<u8>,
    until: Instant,
}

/// A request that is whole.
#[derive(Debug)]
pub struct Asked {
    ctl: OwnedFd,
    /// Whose it is.
    pub uid: u32,
    /// How much more may come on its connection: the rest of a description that was cut.
    rest: usize,
    /// What it says.
    pub request: Request,
}

/// A client that has a port.
#[derive(Debug)]
pub struct Client {
    /// Whose: [`Switch::number`].
    pub switch: u32,
    /// Which port.
    pub port: u16,
    /// Whose it is.
    pub uid: u32,
    /// The slot of its place in the hub.
    pub place: u16,
    ctl: OwnedFd,
    rest: usize,
    /// What is to be said to it once it is joined.
    answer: Option<[u8; ADDRESS]>,
    /// Held for its end.
    _directory: Arc<Directory>,
}

impl Switch {
    /// Opens a switch where `spec` says. Gives its hub as well.
    ///
    /// # Errors
    /// The directory cannot be had.
    pub fn open(what: &str, spec: Server) -> Result<(Self, hub::Plan), Fault> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let home = Home::open(what, &spec.dir, spec.mode, spec.group.as_deref())?;
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let new = Self { number, spec, home, asking: VecDeque::new(), again: None };
        let plan = hub::Plan { hub: new.hub(), learning: new.spec.learning, isolated: false };
        Ok((new, plan))
    }

    /// Its number among all switches that ever were.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// What it was asked to be.
    #[must_use]
    pub fn spec(&self) -> &Server {
        &self.spec
    }

    /// Its directory and sockets.
    #[must_use]
    pub fn home(&self) -> &Home {
        &self.home
    }

    fn hub(&self) -> i64 {
        self.spec.hub.map_or(OWN_HUBS + i64::from(self.number), i64::from)
    }

    /// A client's place in the hub.
    #[must_use]
    pub fn place(&self) -> hub::Plan {
        hub::Plan { hub: self.hub(), learning: self.spec.learning, isolated: self.spec.isolated }
    }

    /// To be watched for being readable.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let listens = self.again.is_none().then(|| self.home.fd());
        listens.into_iter().chain(self.asking.iter().map(|a| a.ctl.as_fd()))
    }

    /// When to call [`Switch::step`] at the latest.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.asking.iter().map(|a| a.until).chain(self.again).min()
    }

    /// Lets clients in and hears them: whole requests, and why others were turned away.
    pub fn step(&mut self, now: Instant) -> Vec<Result<Asked, String>> {
        self.again = self.again.filter(|t| *t > now);
        for _ in 0..AT_ONCE {
            match self.home.accept() {
                _ if self.again.is_some() => break,
                Ok(Some(ctl)) => {
                    // Who cannot be known is nobody whom others would wait for.
                    let who = socket::getsockopt(&ctl, sockopt::PeerCredentials);
                    let uid = who.map_or(u32::MAX, |who| who.uid());
                    self.make_room(uid);
                    self.asking.push_back(Asking { ctl, uid, said: Vec::new(), until: now + PATIENCE });
                }
                Ok(None) => break,
                Err(_) => self.again = Some(now + AGAIN),
            }
        }
        let mut heard = Vec::new();
        for mut a in std::mem::take(&mut self.asking) {
            match a.hear() {
                Heard::More if now < a.until => self.asking.push_back(a),
                Heard::More => heard.push(Err("it said nothing for long".to_owned())),
                Heard::Gone => {}
                Heard::No(why) => heard.push(Err(why)),
                Heard::Request(request) => heard.push(Ok(a.asked(request))),
            }
        }
        heard
    }

    /// Makes room for one more, of this user.
    fn make_room(&mut self, uid: u32) {
        if self.asking.len() < ASKING {
            return;
        }
        let has = |of: u32| self.asking.iter().filter(|a| a.uid == of).count() + usize::from(of == uid);
        let most = self.asking.iter().map(|a| has(a.uid)).max();
        let longest = self.asking.iter().position(|a| Some(has(a.uid)) == most);
        self.asking.remove(longest.unwrap_or(0));
    }
}

enum Heard {
    More,
    Gone,
    No(String),
    Request(Request),
}

impl Asking {
    fn hear(&mut self) -> Heard {
        let mut some = [0; LONGEST + 1];
        match socket::recv(self.ctl.as_raw_fd(), &mut some, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return Heard::Gone,
            Ok(n) => self.said.extend(some.iter().take(n)),
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => return Heard::Gone,
        }
        match read_request(&self.said) {
            Ok(None) => Heard::More,
            Ok(Some(request)) => Heard::Request(request),
            Err(why) => Heard::No(why.to_owned()),
        }
    }

    fn asked(self, request: Request) -> Asked {
        let rest = LONGEST.saturating_sub(self.said.len());
        Asked { ctl: self.ctl, uid: self.uid, rest, request }
    }
}

impl Asked {
    /// Makes it a client with this port: the port's data socket and its file as well.
    ///
    /// # Errors
    /// Its own data socket cannot be used.
    pub fn welcome(self, switch: &Switch, port: u16) -> io::Result<(Client, OwnedFd, SocketFile)> {
        let (socket, file) = switch.home.socket(port, &self.request.data, self.uid)?;
        let answer = address(file.path().as_os_str().as_encoded_bytes());
        let client = Client {
            switch: switch.number,
            port,
            uid: self.uid,
            place: 0,
            ctl: self.ctl,
            rest: self.rest,
            answer: Some(answer),
            _directory: switch.home.directory(),
        };
        Ok((client, socket, file))
    }
}

impl Client {
    /// The same with its place in the hub.
    #[must_use]
    pub fn at(self, place: u16) -> Self {
        Self { place, ..self }
    }

    /// To be watched for being readable: it says something, or goes.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ctl.as_fd()
    }

    /// It is joined to the hub: tells it so, if it was not told. False: it is gone, or talks too much.
    pub fn stays(&mut self) -> bool {
        if let Some(answer) = self.answer.take() {
            let sent =
                socket::send(self.ctl.as_raw_fd(), &answer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
            if sent != Ok(answer.len()) {
                return false;
            }
        }
        let mut sink = [0; LONGEST];
        match socket::recv(self.ctl.as_raw_fd(), &mut sink, MsgFlags::MSG_DONTWAIT) {
            Ok(n @ 1..) if n <= self.rest => {
                self.rest -= n;
                true
            }
            Err(Errno::EAGAIN | Errno::EINTR) => true,
            Ok(_) | Err(_) => false,
        }
    }
}

#[cfg(test)]
#[path = "switch_tests.rs"]
mod tests;
