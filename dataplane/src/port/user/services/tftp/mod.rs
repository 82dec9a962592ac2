//! TFTP, read only: the files of one directory that the supervisor handed over (RFC 1350, with the options of RFC 2347,
//! 2348, 2349 and 7440).
//!
//! All is said on port 69, as QEMU does it: a session is known by where its client is, so nothing needs to be remembered of
//! ports. What is not acknowledged in time is sent again; blocks beyond 65535 count on from 0.
//!
//! Trust: none in guests; the directory's content is the user's, and no link leads out of it (`openat2`, and Landlock
//! beside it). Promise: bounded sessions, blocks and tries; only regular files; nothing is written. A file is read as it is
//! sent, so a disk that hangs holds this network up.
#![forbid(unsafe_code)]

pub mod file;
pub mod request;
#[cfg(test)]
mod tests;

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use netreeve_shared::vnet::Vnet;

use super::TFTP_TICK;
use super::dns::Asker;
use super::envelope::{Ends, udp};
use crate::port::user::poll::{Token, Who};
use crate::port::user::room::Cx;
use crate::stats::Reason;
use crate::sys::beneath::{open_beneath, regular};
use file::{File, Place};
use request::{Message, Read, parse, path};

/// The server's port.
pub const SERVER: u16 = 69;
/// Sessions at a time.
const SESSIONS: usize = 16;
/// A session that was quiet for so long makes way for another.
const QUIET: Duration = Duration::from_secs(5);
/// Bytes of a block for who asks for none, and at most.
const BLOCK: usize = 512;
const MOST: usize = 16384;
/// Blocks between acknowledgements, at most.
const WINDOW: u32 = 16;
/// How often something is sent before a client is given up.
const TRIES: u8 = 6;
/// How often sessions are looked at.
const TICK: Duration = Duration::from_millis(500);

/// Why a request is refused (RFC 1350 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Refusal {
    Busy = 0,
    NotFound = 1,
    Access = 2,
}

impl Refusal {
    fn text(self) -> &'static [u8] {
        match self {
            Self::Busy => b"too many transfers",
            Self::NotFound => b"File not found",
            Self::Access => b"Access violation",
        }
    }
}

/// A file on its way to a client.
#[derive(Debug)]
struct Session {
    client: Asker,
    file: File,
    block: usize,
    window: usize,
    timeout: Duration,
    /// The answer to its options, until it is acknowledged.
    told: Vec<u8>,
    /// Blocks that are acknowledged.
    done: u64,
    /// Where the next blocks begin, as far as they were sent; the first is that behind `done`.
    places: Vec<Place>,
    /// The last of them is the file's last.
    last: bool,
    sent: Instant,
    tries: u8,
}

/// The server.
#[derive(Debug)]
pub struct Tftp {
    dir: Option<OwnedFd>,
    sessions: Vec<Session>,
    ticking: bool,
    frame: Vec<u8>,
}

impl Tftp {
    /// With this directory; without one, every request is refused.
    #[must_use]
    pub fn new(dir: Option<OwnedFd>) -> Self {
        Self { dir, sessions: Vec::new(), ticking: false, frame: Vec::new() }
    }

    /// A datagram of a client's.
    pub fn take(&mut self, from: Asker, datagram: &[u8], cx: &mut Cx) {
        let Some(message) = parse(datagram) else { return cx.stats.drop(Reason::Malformed) };
        let known = self.sessions.iter().position(|s| s.client.at == from.at);
        match (message, known) {
            (Message::Read(q), known) => {
                if let Some(i) = known {
                    self.sessions.swap_remove(i);
                }
                if let Err(why) = self.begin(from, &q, cx) {
                    self.refuse(&from, why, cx);
                }
            }
            (Message::Write, _) => self.refuse(&from, Refusal::Access, cx),
            (Message::Ack(n), Some(i)) => self.acknowledged(i, n, cx),
            (Message::Error, Some(i)) => {
                self.sessions.swap_remove(i);
            }
            // Of a transfer that is over.
            (Message::Ack(_) | Message::Error, None) => {}
        }
    }

    fn begin(&mut self, client: Asker, q: &Read<'_>, cx: &mut Cx) -> Result<(), Refusal> {
        let dir = self.dir.as_ref().ok_or(Refusal::Access)?;
        let path = path(q.name).ok_or(Refusal::Access)?;
        let open = open_beneath(dir.as_fd(), &path).map_err(|e| match e.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => Refusal::NotFound,
            _ => Refusal::Access,
        })?;
        let size = regular(open.as_fd()).ok().flatten().ok_or(Refusal::Access)?;
        if self.sessions.len() >= SESSIONS {
            let quiet = |s: &Session| cx.now.saturating_duration_since(s.sent) >= QUIET;
            let i = self.sessions.iter().position(quiet).ok_or(Refusal::Busy)?;
            self.sessions.swap_remove(i);
        }
        let headers = if client.at.is_ipv4() { 20 } else { 40 } + 8 + 4;
        let most = usize::from(cx.net.mtu).saturating_sub(headers).clamp(8, MOST);
        let block = q.block.map(|n| usize::try_from(n).unwrap_or(BLOCK).min(most));
        // What comes of a text can be known only by reading it.
        let window = q.window.filter(|_| !q.text).map(|n| n.min(WINDOW));
        let mut told = Vec::new();
        let mut tell = |name: &str, value: u64| told.extend(format!("{name}\0{value}\0").bytes());
        if let Some(n) = block {
            tell("blksize", u64::try_from(n).unwrap_or(0));
        }
        if q.size && !q.text {
            tell("tsize", size);
        }
        if let Some(n) = q.timeout {
            tell("timeout", n.into());
        }
        if let Some(n) = window {
            tell("windowsize", n.into());
        }
        self.sessions.push(Session {
            client,
            file: File::new(open, q.text),
            block: block.unwrap_or(BLOCK.min(most)),
            window: usize::try_from(window.unwrap_or(1)).unwrap_or(1),
            timeout: Duration::from_secs(q.timeout.unwrap_or(1).into()),
            told,
            done: 0,
            places: vec![Place::default()],
            last: false,
            sent: cx.now,
            tries: 0,
        });
        self.send(self.sessions.len() - 1, cx);
        if !self.ticking {
            self.ticking = true;
            self.wind(cx);
        }
        Ok(())
    }

    fn wind(&mut self, cx: &mut Cx) {
        let token = Token { who: Who::Services, kind: TFTP_TICK, index: 0, generation: 0 };
        cx.timers.at(cx.now + TICK, token);
    }

    fn refuse(&mut self, client: &Asker, why: Refusal, cx: &mut Cx) {
        let ends = Ends { macs: (cx.net.mac, client.mac), at: (client.to, client.at) };
        udp(&mut self.frame, &ends, |o| {
            o.extend_from_slice(&[0, 5, 0, why as u8]);
            o.extend_from_slice(why.text());
            o.push(0);
        });
        cx.push(Vnet::default(), &[&self.frame]);
    }

    /// Sends what is not acknowledged: the answer to the options, or a window of blocks. A file that cannot be read ends
    /// the session.
    fn send(&mut self, i: usize, cx: &mut Cx) {
        let Some(s) = self.sessions.get_mut(i) else { return };
        s.sent = cx.now;
        s.tries += 1;
        let ends = Ends { macs: (cx.net.mac, s.client.mac), at: (s.client.to, s.client.at) };
        if !s.told.is_empty() {
            udp(&mut self.frame, &ends, |o| {
                o.extend_from_slice(&[0, 6]);
                o.extend_from_slice(&s.told);
            });
            cx.push(Vnet::default(), &[&self.frame]);
            return;
        }
        s.places.truncate(1);
        s.last = false;
        let mut read = Ok(());
        while read.is_ok() && !s.last && s.places.len() <= s.window {
            let from = s.places.last().copied().unwrap_or_default();
            let number = s.done.wrapping_add(u64::try_from(s.places.len()).unwrap_or(0));
            let [.., n0, n1] = number.to_be_bytes();
            udp(&mut self.frame, &ends, |o| {
                o.extend_from_slice(&[0, 3, n0, n1]);
                let start = o.len();
                match s.file.block(from, s.block, o) {
                    Ok(next) => {
                        s.last = o.len() - start < s.block;
                        s.places.push(next);
                    }
                    Err(e) => read = Err(e),
                }
            });
            if read.is_ok() {
                cx.push(Vnet::default(), &[&self.frame]);
            }
        }
        if read.is_err() {
            let s = self.sessions.swap_remove(i);
            self.refuse(&s.client, Refusal::Access, cx);
        }
    }

    fn acknowledged(&mut self, i: usize, n: u16, cx: &mut Cx) {
        let Some(s) = self.sessions.get_mut(i) else { return };
        if !s.told.is_empty() {
            if n == 0 {
                s.told.clear();
                s.tries = 0;
                self.send(i, cx);
            }
            return;
        }
        let [.., d0, d1] = s.done.to_be_bytes();
        let more = n.wrapping_sub(u16::from_be_bytes([d0, d1]));
        let on_their_way = s.places.len().saturating_sub(1);
        // Of no block on its way: said twice, or late. Answering to it would double all that follows.
        if more == 0 || usize::from(more) > on_their_way {
            return;
        }
        s.tries = 0;
        s.done = s.done.wrapping_add(more.into());
        if s.last && usize::from(more) == on_their_way {
            self.sessions.swap_remove(i);
            return;
        }
        s.places.drain(..usize::from(more));
        self.send(i, cx);
    }

    /// Time passes: what is not acknowledged is sent again, and in the end given up.
    pub fn tick(&mut self, cx: &mut Cx) {
        self.sessions.retain(|s| s.tries < TRIES || cx.now.saturating_duration_since(s.sent) < s.timeout);
        for i in (0..self.sessions.len()).rev() {
            let late = |s: &Session| cx.now.saturating_duration_since(s.sent) >= s.timeout;
            if self.sessions.get(i).is_some_and(late) {
                self.send(i, cx);
            }
        }
        self.ticking = !self.sessions.is_empty();
        if self.ticking {
            self.wind(cx);
        }
    }
}
