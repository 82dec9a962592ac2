//! UDP from inside the namespace to the host's loopback: a connected socket for each address inside that has sent something
//! to a forward, and answers go back by the forward's own socket, from the address that was called.
//!
//! Trust: none in either side. Promise: flows are bounded, the one that was quiet the longest leaves for a new one, and none
//! of one forward pushes out more than its half of another's; datagrams of a flow stay in order; one that there is no room
//! for is lost and counted, as on any network.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use super::{EXPIRY, FLOW, token};
use crate::port::user::flows::{Flows, Owned, queue};
use crate::port::user::plan::Forward;
use crate::port::user::poll::{Token, Want};
use crate::port::user::room::Cx;
use crate::stats::Reason;
use crate::sys::sock::{self, Speaks};

/// How long a flow lives that nobody answered, and one that somebody did: as those of the guest's link.
const QUIET: Duration = Duration::from_secs(30);
const ANSWERED: Duration = Duration::from_secs(180);
/// Expired flows are looked for this often at most.
const STEP: Duration = Duration::from_secs(1);
/// Datagrams of one socket before others have their turn.
const TURN: usize = 32;
/// More than the largest datagram.
const ROOM: usize = 65_536;

/// Who speaks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    /// The forward's number.
    by: u32,
    /// Who, inside.
    peer: SocketAddr,
}

/// A forward has its flows.
impl Owned for Key {
    type Owner = u32;

    fn owner(&self) -> u32 {
        self.by
    }
}

#[derive(Debug)]
struct Flow {
    /// Connected to the host's side.
    fd: OwnedFd,
    answered: bool,
}

/// Where something may be that was not read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    Socket(u32),
    Flow(u32, u16),
}

/// All of them.
#[derive(Debug)]
pub(super) struct Datagrams {
    sockets: BTreeMap<u32, (Forward, OwnedFd)>,
    flows: Flows<Key, Flow>,
    /// Of all flows, those that one forward may have while there are others.
    share: usize,
    going: VecDeque<Source>,
    ticking: bool,
    room: Vec<u8>,
}

impl Datagrams {
    pub(super) fn new(most: u32) -> Self {
        Self {
            sockets: BTreeMap::new(),
            flows: Flows::new(most),
            share: usize::try_from(most.div_ceil(2)).unwrap_or(usize::MAX),
            going: VecDeque::new(),
            ticking: false,
            room: Vec::new(),
        }
    }

    pub(super) fn has(&self, id: u32) -> bool {
        self.sockets.contains_key(&id)
    }

    pub(super) fn has_more(&self) -> bool {
        !self.going.is_empty()
    }

    /// All forwards from now on; new ones come with a socket, which is watched.
    pub(super) fn set_forwards(&mut self, list: Vec<(Forward, Option<OwnedFd>)>, cx: &mut Cx) {
        let kept: BTreeSet<u32> = list.iter().filter(|(_, fd)| fd.is_none()).map(|(f, _)| f.id).collect();
        let all = std::mem::take(&mut self.sockets);
        for (id, (forward, fd)) in all {
            if kept.contains(&id) {
                self.sockets.insert(id, (forward, fd));
                continue;
            }
            // The supervisor has it open as well: closing alone would not end its events.
            let _ = cx.poll.remove(fd.as_fd());
            for i in self.flows.all(|key, _| key.by == id) {
                self.flows.remove(i);
            }
        }
        self.sockets.extend(list.into_iter().filter_map(|(f, fd)| Some((f.id, (f, fd?)))));
        if !self.sockets.is_empty() {
            self.room.resize(ROOM, 0);
        }
    }

    /// Something has come to a forward's socket.
    pub(super) fn came(&mut self, id: u32, cx: &mut Cx) {
        for _ in 0..TURN {
            let Some((forward, fd)) = self.sockets.get(&id) else { return };
            let (forward, got) = (*forward, sock::read_from(fd.as_fd(), &mut self.room));
            match got {
                Ok((n, Some(peer))) => self.out(n, Key { by: id, peer }, &forward, cx),
                Ok((_, None)) => cx.stats.drop(Reason::Unknown),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                // What is said of an answer that nobody took.
                Err(_) => {}
            }
        }
        self.later(Source::Socket(id));
    }

    /// A datagram for the host's side.
    fn out(&mut self, n: usize, key: Key, forward: &Forward, cx: &mut Cx) {
        let Some(index) = self.flows.find(&key).or_else(|| self.open(key, forward, cx)) else { return };
        let Some((_, flow)) = self.flows.get(index) else { return };
        let patience = if flow.answered { ANSWERED } else { QUIET };
        let bytes = self.room.get(..n).unwrap_or_default();
        if let Err(why) = sent(flow.fd.as_fd(), bytes, None) {
            cx.stats.drop(why);
        }
        self.flows.touch(index, cx.now, patience);
    }

    /// Begins a flow. None: there is no socket for it, which is counted.
    fn open(&mut self, key: Key, forward: &Forward, cx: &mut Cx) -> Option<u32> {
        let (own, count) = self.flows.quietest_of(&key.by);
        let crowd = self.sockets.len() > 1 && count >= self.share;
        let goes = if crowd { own } else { self.flows.is_full().then(|| self.flows.quietest()).flatten() };
        let gone = goes.and_then(|i| self.flows.remove(i));
        cx.stats.evicted += u64::from(gone.is_some());
        let Ok(fd) = self.dial(forward, cx) else {
            cx.stats.drop(Reason::Quota);
            return None;
        };
        if !std::mem::replace(&mut self.ticking, true) {
            cx.timers.at(cx.now + STEP, token(EXPIRY, 0, 0));
        }
        self.flows.insert(key, Flow { fd, answered: false }, cx.now, QUIET)
    }

    /// A socket that is connected and watched for the flow that comes next.
    fn dial(&mut self, forward: &Forward, cx: &mut Cx) -> io::Result<OwnedFd> {
        let (index, generation) = self.flows.vacancy().ok_or(ErrorKind::OutOfMemory)?;
        let fd = sock::new(Speaks::Udp, forward.guest.is_ipv6())?;
        sock::call(fd.as_fd(), forward.guest)?;
        cx.poll.add(fd.as_fd(), token(FLOW, index, generation), Want::READ)?;
        Ok(fd)
    }

    /// The host's side has said something.
    pub(super) fn answered(&mut self, at: Token, cx: &mut Cx) {
        for _ in 0..TURN {
            let Some((Key { by, peer }, flow)) = self.flows.named(at.index, at.generation) else { return };
            let Some((_, socket)) = self.sockets.get(&by) else { return };
            match sock::read_from(flow.fd.as_fd(), &mut self.room) {
                Ok((n, _)) => {
                    flow.answered = true;
                    self.flows.touch(at.index, cx.now, ANSWERED);
                    let bytes = self.room.get(..n).unwrap_or_default();
                    if let Err(why) = sent(socket.as_fd(), bytes, Some(peer)) {
                        cx.stats.drop(why);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                // Nobody is there (ICMP said so): that is heard once, and whoever comes later is heard.
                Err(_) => cx.stats.drop(Reason::Unreachable),
            }
        }
        self.later(Source::Flow(at.index, at.generation));
    }

    fn later(&mut self, source: Source) {
        let places = self.flows.places() + self.sockets.len();
        queue(&mut self.going, source, places);
    }

    /// Those that had more go on.
    pub(super) fn go_on(&mut self, cx: &mut Cx) {
        for _ in 0..self.going.len() {
            match self.going.pop_front() {
                Some(Source::Socket(id)) => self.came(id, cx),
                Some(Source::Flow(index, generation)) => self.answered(token(FLOW, index, generation), cx),
                None => return,
            }
        }
    }

    /// Those that were quiet for too long leave.
    pub(super) fn expire(&mut self, cx: &mut Cx) {
        while let Some(index) = self.flows.expired(cx.now) {
            self.flows.remove(index);
        }
        let next = self.flows.next_expiry();
        self.ticking = next.is_some();
        if let Some(when) = next {
            cx.timers.at(when.max(cx.now + STEP), token(EXPIRY, 0, 0));
        }
    }
}

/// Sends one, twice if the first time the kernel only says what became of one before.
fn sent(fd: BorrowedFd<'_>, bytes: &[u8], to: Option<SocketAddr>) -> Result<(), Reason> {
    let refused = |e: &io::Error| e.raw_os_error() == Some(libc::ECONNREFUSED);
    let done = match sock::write_to(fd, &[bytes], to) {
        Err(e) if refused(&e) => sock::write_to(fd, &[bytes], to),
        done => done,
    };
    done.map(drop).map_err(|e| match e.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => Reason::Full,
        Some(libc::EMSGSIZE) => Reason::Oversize,
        Some(libc::ECONNREFUSED) => Reason::Unreachable,
        _ => Reason::Refused,
    })
}
