//! The control socket: QEMU's machine protocol (QMP) over a unix socket, so that clients that exist work.
//!
//! Greeting, `qmp_capabilities`, then commands and events, for several clients at a time; [`commands`] is what they may
//! say, [`report`] what they are told. Names are QEMU's where QEMU has the thing; what it lacks begins with `netreeve-`
//! (its rule for others' names, a reversed domain, supposes a domain).
//!
//! Trust: a client is our own user or root, as the kernel says (`SO_PEERCRED`); nobody else is answered. What it sends
//! is bounded in length, depth and number, what waits for it in length and time. Promise: nothing here waits for a
//! client, and frames pass whatever it does.
#![forbid(unsafe_code)]

pub mod client;
pub mod commands;
mod forwards;
pub mod message;
pub mod place;
pub(super) mod ports;
pub mod report;
pub mod split;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::unistd::geteuid;
use serde_json::{Value, json};

use crate::fault::{Exit, Fault};
use crate::supervise::listen::{self, SocketFile};
use crate::supervise::say;
use crate::sys;
use client::Client;
use message::{Refusal, Request};
use place::Place;

/// Clients at a time.
pub const MAX_CLIENTS: usize = 16;
/// Requests that are served before anything else gets its turn.
const AT_ONCE: usize = 64;
/// How long nobody is accepted after that has failed: for want of descriptors, mostly.
const PAUSE: Duration = Duration::from_secs(1);

/// Where the socket is to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Where {
    /// The instance's name; none: it has none.
    pub name: Option<String>,
    /// The socket's path; none: where instances of that name have it.
    pub path: Option<PathBuf>,
    /// A connection of a client that is there already, by its number.
    pub client: Option<i32>,
}

/// Names a client, also when it is gone.
pub type Key = u64;

/// The control socket and its clients.
#[derive(Debug)]
pub struct Control {
    /// None: the one client that was handed over is the only one. The file is held for its end; before the place, so that the
    /// directory is empty by then.
    listener: Option<(OwnedFd, SocketFile)>,
    _place: Option<Place>,
    name: Option<String>,
    clients: Vec<(Key, Client)>,
    next: Key,
    /// Nobody is accepted before.
    paused: Option<Instant>,
    /// The client that was handed over, for as long as it is there.
    handed: Option<Key>,
}

impl Control {
    /// Listens; none: nobody wants that.
    ///
    /// # Errors
    /// The name or the path is in use or cannot be had.
    pub fn open(at: Where) -> Result<Option<Self>, Fault> {
        let place = match &at.name {
            Some(name) if at.path.is_none() => Some(Place::take(name, place::directory(name)?)?),
            _ => None,
        };
        let path = at.path.or_else(|| place.as_ref().map(Place::socket));
        if path.is_none() && at.client.is_none() {
            return Ok(None);
        }
        let listener = path.map(|p| listen::unix("the control socket", &p, 0o600)).transpose()?;
        let clients = Vec::new();
        let name = at.name;
        let mut new = Self { listener, _place: place, name, clients, next: 0, paused: None, handed: None };
        if let Some(number) = at.client {
            let fix = "name a connected socket that this process was started with";
            let socket = sys::process::adopt(number)
                .map_err(|e| Fault::new(Exit::Config, format!("--control-fd {number}"), e, fix))?;
            new.handed = new.greet(socket, Instant::now());
        }
        Ok(Some(new))
    }

    /// Others can come.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.listener.is_some()
    }

    /// The instance's name.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// What to wait for.
    pub fn watch(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let listener = self.listener.as_ref().filter(|_| self.paused.is_none());
        let listener = listener.map(|(l, _)| (l.as_fd(), PollFlags::POLLIN));
        let clients = self.clients.iter().filter_map(|(_, c)| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, c.wants_reading());
            flags.set(PollFlags::POLLOUT, c.wants_writing());
            // One without either would wake us for its end again and again.
            (!flags.is_empty()).then(|| (c.fd(), flags))
        });
        listener.into_iter().chain(clients)
    }

    /// When there is something to do without any event.
    #[must_use]
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let work = self.clients.iter().any(|(_, c)| c.has_work()).then_some(now);
        let stuck = self.clients.iter().filter_map(|(_, c)| c.due());
        work.into_iter().chain(stuck).chain(self.paused).min()
    }

    /// Accepts, reads and writes what there is, and lets go of who is gone.
    pub fn turn(&mut self, now: Instant) {
        self.accept(now);
        for (_, c) in &mut self.clients {
            c.write(now);
            c.read();
        }
        self.bury(now);
    }

    /// Lets go of who is gone. Of the client that was handed over that is said, and why: nobody else can come in its place.
    pub fn bury(&mut self, now: Instant) {
        let handed = self.handed;
        if let Some((_, c)) = self.clients.iter().find(|(k, c)| Some(*k) == handed && c.is_over(now)) {
            say::fault(&lost(c.why_over(now)));
            self.handed = None;
        }
        self.clients.retain(|(_, c)| !c.is_over(now));
    }

    fn accept(&mut self, now: Instant) {
        if self.paused.is_some_and(|t| t > now) {
            return;
        }
        self.paused = None;
        for _ in 0..MAX_CLIENTS {
            let Some((listener, _)) = &self.listener else { return };
            match sys::io::accept(listener.as_fd()) {
                Ok(socket) => {
                    self.greet(socket, now);
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.paused = Some(now + PAUSE);
                    return;
                }
            }
        }
    }

    /// A new client's key, if it may be one.
    pub(super) fn greet(&mut self, socket: OwnedFd, now: Instant) -> Option<Key> {
        let known = client::user(socket.as_fd()).is_ok_and(|u| u == 0 || u == geteuid().as_raw());
        let mut new = Client::new(socket);
        if !known {
            return None;
        }
        if self.clients.len() >= MAX_CLIENTS {
            let why = format!("{MAX_CLIENTS} clients are connected already");
            new.answer(Err(Refusal::generic(why)), None, now);
            return None;
        }
        new.tell(&message::greeting(), now);
        let key = self.next;
        self.clients.push((key, new));
        self.next += 1;
        Some(key)
    }

    /// The next request of a client that may ask now, as often as one turn allows.
    pub fn requests(&mut self, now: Instant) -> Vec<(Key, Request)> {
        let mut all = Vec::new();
        for (key, c) in &mut self.clients {
            if let Some(request) = c.next_request(now) {
                all.push((*key, request));
            }
        }
        all
    }

    /// A client that is still there.
    pub fn client(&mut self, key: Key) -> Option<&mut Client> {
        self.clients.iter_mut().find(|(k, _)| *k == key).map(|(_, c)| c)
    }

    /// The client is still there.
    #[must_use]
    pub fn has(&self, key: Key) -> bool {
        self.clients.iter().any(|(k, _)| *k == key)
    }

    /// Answers a request, and lets its client go on.
    pub fn answer(&mut self, key: Key, result: Result<Value, Refusal>, id: Option<Value>, now: Instant) {
        if let Some(c) = self.client(key) {
            c.waits = false;
            c.answer(result, id, now);
        }
    }

    /// Tells all clients that have negotiated of an event.
    pub fn event(&mut self, name: &str, data: Value, now: Instant) {
        let event = message::event(name, data);
        for (_, c) in self.clients.iter_mut().filter(|(_, c)| c.negotiated) {
            c.tell(&event, now);
        }
    }
}

/// The client that was handed over is there no more: forwards that it asked for stay, and nobody asks for others.
fn lost(why: &str) -> Fault {
    let fix = "start netreeve again if what it did is to be done on (called as pasta: to have ports forwarded as somebody begins \
               or ceases to listen at them); forwards stay as they are now";
    Fault::new(Exit::Unavailable, "the client at --control-fd", why, fix)
}

/// Rounds of [`Control::requests`] in one turn.
#[must_use]
pub fn rounds() -> usize {
    AT_ONCE / MAX_CLIENTS
}

/// `SHUTDOWN` (`qapi/run-state.json`): there is no guest to cause it.
#[must_use]
pub fn shutdown(reason: &str) -> Value {
    json!({ "guest": false, "reason": reason })
}

#[cfg(test)]
mod tests;
