//! Passage: ports that listen inside the network namespace that is the guest, and lead to the host's loopback (pasta's
//! `--tcp-ns` and `--udp-ns`). What passes never becomes a frame: a socket goes on being of the namespace that it was made
//! in, whoever holds it, so ours here accept inside and connect outside, and bytes and datagrams go from one to the other.
//!
//! Trust: none in who comes, none in who answers. The forwards themselves are the permission, and the only one: the policy
//! is about what the guest sends by its link, and is not asked. Promise: nothing is connected to but the loopback address and
//! the port that a forward names; connections and flows are bounded ([`Limits::out`](super::plan::Limits)), and one forward
//! leaves others a part; what cannot be served now stays in the listening socket's queue.
#![forbid(unsafe_code)]

mod datagrams;
mod pair;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::flows::{Flows as Table, Owned};
use super::plan::{Forward, Way};
use super::poll::{Ready, Token, Want, Who};
use super::room::Cx;
use crate::mem::{Buf, Seg};
use crate::stats::Flows;
use crate::sys::io::accept_from;
use crate::sys::sock::{self, Speaks};
use datagrams::Datagrams;
use pair::{Fate, HOST, INSIDE, Pair};

/// What a token is about.
const LISTENER: u8 = 1;
const AT_INSIDE: u8 = 2;
const AT_HOST: u8 = 3;
const SOCKET: u8 = 4;
const FLOW: u8 = 5;
const EXPIRY: u8 = 6;
/// Connections that are accepted at a time, from one listening socket.
const ACCEPTS: usize = 64;
/// Pairs that go on in one turn.
const TURN: usize = 16;
/// When a listening socket is looked at again that could not be served.
const LATER: Duration = Duration::from_millis(100);
/// Most bytes that pass at once.
const PIECE: u32 = 256 << 10;
/// Connections never expire: both ends are of this machine, whose kernel says when one is gone.
const FOR_EVER: Duration = Duration::from_secs(1 << 30);

fn token(kind: u8, index: u32, generation: u16) -> Token {
    Token { who: Who::Passage, kind, index, generation }
}

/// What a pair is found by: a number of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Number(u64);

/// Who has how many is counted beside: none leaves for another.
impl Owned for Number {
    type Owner = ();

    fn owner(&self) {}
}

/// A pair and whose it is.
#[derive(Debug)]
struct Passing {
    pair: Pair,
    /// The forward's number.
    by: u32,
    /// It is in the queue of those that have more to pass.
    queued: bool,
}

/// The room.
#[derive(Debug)]
pub struct Passage {
    listeners: BTreeMap<u32, (Forward, OwnedFd)>,
    pairs: Table<Number, Passing>,
    last: u64,
    /// Connections of each forward.
    of: BTreeMap<u32, u32>,
    /// Listening sockets for which a timer is set.
    waiting: BTreeSet<u32>,
    /// Those that have more to pass at once.
    going: VecDeque<(u32, u16)>,
    datagrams: Datagrams,
    /// Where bytes are on their way; made with the first forward.
    scratch: Option<Buf>,
    most: u32,
    counts: Flows,
}

impl Passage {
    /// With the forwards of the plan that lead out.
    ///
    /// # Errors
    /// One leads elsewhere than to the loopback; the kernel's, from watching them, or no memory.
    pub fn new(forwards: Vec<(Forward, OwnedFd)>, cx: &mut Cx) -> io::Result<Self> {
        let most = cx.limits.out;
        let mut room = Self {
            listeners: BTreeMap::new(),
            pairs: Table::new(most),
            last: 0,
            of: BTreeMap::new(),
            waiting: BTreeSet::new(),
            going: VecDeque::new(),
            datagrams: Datagrams::new(cx.limits.out_udp()),
            scratch: None,
            most,
            counts: Flows { most: most.into(), ..Flows::default() },
        };
        let list: Vec<_> = forwards.into_iter().map(|(f, fd)| (f, Some(fd))).collect();
        room.watch(&list, cx)?;
        room.set_forwards(list, cx);
        Ok(room)
    }

    /// There is a forward with this number.
    #[must_use]
    pub fn has_forward(&self, id: u32) -> bool {
        self.listeners.contains_key(&id) || self.datagrams.has(id)
    }

    /// Watches those of another table of forwards that are new (they come with a descriptor): [`Passage::set_forwards`]
    /// cannot fail afterwards.
    ///
    /// # Errors
    /// One leads elsewhere than to the loopback, or none may; the kernel's. Then nothing has changed.
    pub fn watch(&mut self, list: &[(Forward, Option<OwnedFd>)], cx: &mut Cx) -> io::Result<()> {
        if list.is_empty() {
            return Ok(());
        }
        let led = |(f, _): &(Forward, Option<OwnedFd>)| f.guest.ip().is_loopback() && f.guest.port() > 0;
        if self.most == 0 || cx.restrict || !list.iter().filter(|(_, fd)| fd.is_some()).all(led) {
            return Err(ErrorKind::PermissionDenied.into());
        }
        if self.scratch.is_none() {
            self.scratch = Some(Buf::reserve(PIECE)?);
        }
        for (f, fd) in list.iter().filter_map(|(f, fd)| Some((f, fd.as_ref()?))) {
            let kind = if f.way == Way::OutUdp { SOCKET } else { LISTENER };
            if let Err(e) = cx.poll.add(fd.as_fd(), token(kind, f.id, 0), Want::READ) {
                Self::unwatch(list, cx);
                return Err(e);
            }
        }
        Ok(())
    }

    /// Another table that was watched does not come after all.
    pub fn unwatch(list: &[(Forward, Option<OwnedFd>)], cx: &mut Cx) {
        for fd in list.iter().filter_map(|(_, fd)| fd.as_ref()) {
            // Those behind the one that failed were never watched.
            let _ = cx.poll.remove(fd.as_fd());
        }
    }

    /// All forwards that lead out from now on: a descriptor with each that is new, and watched. Connections of those that
    /// go live on, flows of UDP have no socket to answer by any more.
    pub fn set_forwards(&mut self, list: Vec<(Forward, Option<OwnedFd>)>, cx: &mut Cx) {
        let (datagrams, streams): (Vec<_>, Vec<_>) =
            list.into_iter().partition(|(f, _)| f.way == Way::OutUdp);
        self.datagrams.set_forwards(datagrams, cx);
        let kept: BTreeSet<u32> = streams.iter().filter(|(_, fd)| fd.is_none()).map(|(f, _)| f.id).collect();
        self.listeners.retain(|id, (_, fd)| {
            let stays = kept.contains(id);
            if !stays {
                // The supervisor has it open as well: closing alone would not end its events.
                let _ = cx.poll.remove(fd.as_fd());
            }
            stays
        });
        let fresh = streams.into_iter().filter_map(|(f, fd)| Some((f.id, (f, fd?))));
        self.listeners.extend(fresh);
        self.waiting.retain(|id| self.listeners.contains_key(id));
    }

    /// What there is and what happened, of connections.
    #[must_use]
    pub fn flows(&self) -> Flows {
        Flows { now: u64::try_from(self.pairs.len()).unwrap_or(u64::MAX), ..self.counts }
    }

    /// There is more to pass at once.
    #[must_use]
    pub fn has_more(&self) -> bool {
        !self.going.is_empty() || self.datagrams.has_more()
    }

    /// Something has become possible.
    pub fn ready(&mut self, at: Token, ready: Ready, cx: &mut Cx) {
        match at.kind {
            LISTENER => self.accept(at.index, cx),
            AT_INSIDE => self.passes(at, |p, scratch| p.ready(INSIDE, ready, scratch)),
            AT_HOST => self.passes(at, |p, scratch| p.ready(HOST, ready, scratch)),
            SOCKET => self.datagrams.came(at.index, cx),
            FLOW => self.datagrams.answered(at, cx),
            _ => {}
        }
    }

    /// A timer's time has come.
    pub fn tick(&mut self, at: Token, cx: &mut Cx) {
        match at.kind {
            LISTENER => {
                self.waiting.remove(&at.index);
                self.accept(at.index, cx);
            }
            EXPIRY => self.datagrams.expire(cx),
            _ => {}
        }
    }

    /// Those that had more to pass go on, each for a while.
    pub fn go_on(&mut self, cx: &mut Cx) {
        // The guest's frames wait meanwhile.
        for _ in 0..self.going.len().min(TURN) {
            let Some((index, generation)) = self.going.pop_front() else { break };
            if let Some((_, p)) = self.pairs.named(index, generation) {
                p.queued = false;
            }
            self.passes(token(AT_HOST, index, generation), Pair::pass);
        }
        self.datagrams.go_on(cx);
    }

    /// Does something with a pair, and what follows from it.
    fn passes(&mut self, at: Token, f: impl FnOnce(&mut Pair, &Seg) -> Fate) {
        let Some(scratch) = self.scratch.as_ref().map(|b| b.seg(0, PIECE)) else { return };
        let Some((_, p)) = self.pairs.named(at.index, at.generation) else { return };
        let was_open = p.pair.is_open();
        let fate = f(&mut p.pair, &scratch);
        let opened = !was_open && p.pair.is_open();
        self.counts.opened += u64::from(opened);
        self.counts.half_open -= u64::from(opened);
        match fate {
            Fate::Lives => {}
            Fate::More => {
                if !std::mem::replace(&mut p.queued, true) {
                    self.going.push_back((at.index, at.generation));
                }
            }
            Fate::Over => self.remove(at.index),
            Fate::Broken => {
                p.pair.break_off();
                if p.pair.is_open() {
                    self.counts.broken += 1;
                } else {
                    self.counts.refused += 1;
                    self.counts.half_open -= 1;
                }
                self.remove(at.index);
            }
        }
    }

    fn remove(&mut self, index: u32) {
        let Some((_, gone)) = self.pairs.remove(index) else { return };
        if let Some(n) = self.of.get_mut(&gone.by) {
            *n -= 1;
            if *n == 0 {
                self.of.remove(&gone.by);
            }
        }
    }

    /// A listening socket is to be looked at again then: one timer does for all who come meanwhile.
    fn later(&mut self, id: u32, wait: Duration, cx: &mut Cx) {
        if self.waiting.insert(id) {
            cx.timers.at(cx.now + wait, token(LISTENER, id, 0));
        }
    }

    /// There is room for one more of this forward's: one of several leaves the others a quarter.
    fn has_room(&self, id: u32) -> bool {
        let alone = self.listeners.len() < 2;
        let most = if alone { self.most } else { self.most - self.most / 4 };
        !self.pairs.is_full() && self.of.get(&id).copied().unwrap_or(0) < most
    }

    /// Somebody may have come to a listening socket.
    fn accept(&mut self, id: u32, cx: &mut Cx) {
        for _ in 0..ACCEPTS {
            let Some((forward, fd)) = self.listeners.get(&id) else { return };
            if !self.has_room(id) {
                return self.later(id, LATER, cx);
            }
            let forward = *forward;
            match accept_from(fd.as_fd()) {
                Ok((came, _)) => self.begin(came, &forward, cx),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::ECONNABORTED)) => {}
                Err(_) => return self.later(id, LATER, cx),
            }
        }
        self.later(id, Duration::ZERO, cx);
    }

    /// Somebody has come: the host's side is called for him, and if nobody is there he is reset.
    fn begin(&mut self, came: OwnedFd, by: &Forward, cx: &mut Cx) {
        pair::dress(came.as_fd());
        match self.call(&came, by, cx) {
            Ok((host, open)) => {
                self.last += 1;
                let passing = Passing { pair: Pair::new(came, host, open), by: by.id, queued: false };
                if self.pairs.insert(Number(self.last), passing, cx.now, FOR_EVER).is_some() {
                    *self.of.entry(by.id).or_default() += 1;
                    *(if open { &mut self.counts.opened } else { &mut self.counts.half_open }) += 1;
                }
            }
            Err(_) => {
                self.counts.refused += 1;
                pair::break_off(came.as_fd());
            }
        }
    }

    /// A socket that is connected, or on its way, to where a forward leads; both are watched for the pair that comes next.
    fn call(&mut self, came: &OwnedFd, by: &Forward, cx: &mut Cx) -> io::Result<(OwnedFd, bool)> {
        let (index, generation) = self.pairs.vacancy().ok_or(ErrorKind::OutOfMemory)?;
        let host = sock::new(Speaks::Tcp, by.guest.is_ipv6())?;
        pair::dress(host.as_fd());
        let open = sock::call(host.as_fd(), by.guest)?;
        cx.poll.add(came.as_fd(), token(AT_INSIDE, index, generation), Want::BOTH)?;
        cx.poll.add(host.as_fd(), token(AT_HOST, index, generation), Want::BOTH)?;
        Ok((host, open))
    }
}
