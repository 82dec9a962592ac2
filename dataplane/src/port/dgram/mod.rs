//! Port `dgram`: a frame in each datagram, over UDP, multicast, UNIX datagram sockets or IP; with or without L2TPv3's
//! header. It is QEMU's `dgram`, the `mcast=` and `udp=` forms of `socket`, and `l2tpv3`.
//!
//! The supervisor opens, binds and connects; a port has one socket to send with, which receives as well, and perhaps one
//! that only receives: from whom the first is not connected to, or from a multicast group.
//!
//! Trust: none in who sends. Promise: what the network refuses, cannot reach or does not hold is counted, and ends
//! nothing; back-pressure without loss where the kernel says that it is full; the wire's bytes are QEMU's. A peer of whom
//! the plan says that it leaves work undone ([`Plan::undone`]) has its frames looked at.
#![forbid(unsafe_code)]

mod inbox;
pub mod l2tp;
mod outbox;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use netreeve_shared::fdkind;
use serde::{Deserialize, Serialize};

use crate::frame::Batch;
use crate::port::dgram::inbox::Inbox;
use crate::port::dgram::l2tp::Session;
use crate::port::dgram::outbox::Outbox;
use crate::port::{Change, Interest, Offloads, OpenError, Port, Queues, Traits, Watch};
use crate::sandbox::call::{Call, Cond, NEVER_WAITS};
use crate::stats::{Reason, Stats};
use crate::sys::fd::set_nonblocking;
use crate::sys::mmsg;

/// Whose datagrams are frames for us. (A connected socket has the kernel's own say before.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sources {
    /// Everybody's.
    Any,
    /// Only this address's.
    Only(SocketAddr),
    /// Everybody's but this address's: our own, whose frames come back from a multicast group.
    NotFrom(SocketAddr),
}

/// A datagram port as the dataplane opens it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Whose datagrams are taken.
    pub sources: Sources,
    /// L2TPv3's header stands before each frame.
    pub l2tp: Option<Session>,
    /// The first socket is UDP, and the kernel may cut a message into datagrams.
    pub cut: bool,
    /// A connection comes later, from the supervisor; without one there is no peer. The peer is on this machine and is
    /// waited for, whatever the kernel is short of.
    pub waits: bool,
    /// The largest frame in bytes that the peer takes.
    pub max_frame: u32,
    /// The peer leaves checksums and segmentation to do, and has no header to say so; the MTU in bytes that segments are
    /// made for.
    pub undone: Option<u16>,
}

impl Plan {
    /// A UNIX socket that the supervisor connects, again if it must: a port of a switch.
    #[must_use]
    pub fn plugged(max_frame: u32) -> Self {
        Self { sources: Sources::Any, l2tp: None, cut: false, waits: true, max_frame, undone: None }
    }
}

/// What it calls once locked in. What sends names no address, and of a socket's options only the size that UDP's messages
/// are cut to is set.
pub const CALLS: &[Call] = &[
    Call::only(libc::SYS_recvmmsg, &[Cond::is(3, mmsg::RECV_FLAGS), Cond::null(4)]),
    Call::any(libc::SYS_writev),
    Call::only(
        libc::SYS_setsockopt,
        &[Cond::is(1, mmsg::SOL_UDP.cast_unsigned()), Cond::is(2, mmsg::UDP_SEGMENT.cast_unsigned())],
    ),
    // A socket that is handed in later does not wait either.
    Call::only(libc::SYS_fcntl, &[Cond::is(1, libc::F_GETFL.cast_unsigned())]),
    NEVER_WAITS,
    // fdkind::socket, for a connection that is handed in later.
    Call::only(libc::SYS_getsockopt, &[Cond::is(1, 1)]),
];

/// What opening one calls in addition, once locked in: nothing.
pub const OPENS: &[Call] = &[];

/// Receptions from one socket before the other is asked first.
const IN_TURN: u8 = 16;
/// Empty batches of strangers' datagrams after which others have their turn.
const TRIES: usize = 4;

struct Dgram {
    plan: Plan,
    sockets: Vec<OwnedFd>,
    /// Which socket is asked first: the one that gave last, for a while.
    turn: usize,
    /// How often it was first.
    first: u8,
    inbox: Inbox,
    outbox: Outbox,
    connected_before: bool,
    stats: Stats,
}

/// Opens a datagram port over the socket that sends, and perhaps one that only receives.
///
/// # Errors
/// They are not what the plan says.
pub fn open(plan: &Plan, fds: Vec<OwnedFd>) -> Result<Queues, OpenError> {
    let fail = |what| move |source: io::Error| OpenError { what, source: Some(source) };
    if fds.len() > 2 || (fds.is_empty() && !plan.waits) {
        return Err(OpenError { what: "a datagram port needs one or two sockets", source: None });
    }
    for fd in &fds {
        check(fd).map_err(fail("a descriptor is not the datagram socket that was said"))?;
    }
    let mut inbox = Inbox::new(&plan.sources).map_err(fail("no memory for a datagram port"))?;
    // Two are of one family.
    fds.iter().for_each(|fd| inbox.of(fd));
    Ok(vec![Box::new(Dgram {
        plan: plan.clone(),
        connected_before: !fds.is_empty(),
        sockets: fds,
        turn: 0,
        first: 0,
        inbox,
        outbox: Outbox::new(plan),
        stats: Stats::default(),
    })])
}

/// It is a socket of ours; it does not wait from now on.
fn check(fd: &OwnedFd) -> io::Result<()> {
    match fdkind::socket(fd.as_fd())?.kind {
        libc::SOCK_DGRAM | libc::SOCK_RAW => set_nonblocking(fd.as_fd()),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Not now, as opposed to never.
fn is_wait(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EINTR))
}

impl Sources {
    /// Why a datagram from `source` is not for us.
    fn judge(&self, source: impl FnOnce() -> Option<SocketAddr>) -> Option<Reason> {
        match self {
            Self::Any => None,
            Self::Only(peer) => (!is(source(), peer)).then_some(Reason::Source),
            Self::NotFrom(us) => is(source(), us).then_some(Reason::Echo),
        }
    }
}

/// Flow labels and scopes do not count.
fn is(source: Option<SocketAddr>, who: &SocketAddr) -> bool {
    source.is_some_and(|s| (s.ip(), s.port()) == (who.ip(), who.port()))
}

impl Port for Dgram {
    fn traits(&self) -> Traits {
        Traits {
            min_frame: 1,
            max_frame: self.plan.max_frame,
            gives: if self.plan.undone.is_some() { Offloads::ALL } else { Offloads::NONE },
            joinable: true,
            up: !self.sockets.is_empty(),
            ..Traits::default()
        }
    }

    fn watch(&self, w: &mut Watch) {
        for fd in &self.sockets {
            w.add(fd.as_raw_fd(), Interest::Gives);
        }
        if let Some(fd) = self.sockets.first() {
            w.add(fd.as_raw_fd(), Interest::Takes);
        }
    }

    fn recv(&mut self, b: &mut Batch) -> io::Result<()> {
        let (plan, sources) = (&self.plan, &self.plan.sources);
        self.inbox.give(b, plan, &mut self.stats);
        for _ in 0..TRIES {
            if !b.is_empty() || self.inbox.is_ready() {
                return Ok(());
            }
            let mut came = false;
            for _ in 0..self.sockets.len() {
                let Some(fd) = self.sockets.get(self.turn) else { break };
                came = self.inbox.fill(fd, sources, &mut self.stats)?;
                self.first = if came { self.first + 1 } else { 0 };
                if !came || self.first >= IN_TURN {
                    (self.turn, self.first) = ((self.turn + 1) % self.sockets.len(), 0);
                }
                if came {
                    break;
                }
            }
            if !came {
                return Ok(());
            }
            self.inbox.give(b, plan, &mut self.stats);
        }
        Ok(())
    }

    fn send(&mut self, b: &Batch) -> io::Result<usize> {
        match self.sockets.first() {
            Some(fd) => self.outbox.send(fd.as_fd(), b, &mut self.stats),
            None => {
                let lost = b.frames().iter().filter(|f| !f.dropped).count();
                self.stats.drop_n(Reason::PeerDown, lost as u64);
                Ok(b.frames().len())
            }
        }
    }

    fn arm_gives(&mut self) -> bool {
        self.inbox.is_ready()
    }

    fn event(&mut self, _fd: RawFd, _why: Interest) -> io::Result<Change> {
        Ok(Change::default())
    }

    fn connect(&mut self, fd: OwnedFd) -> io::Result<Change> {
        if !self.plan.waits {
            return Err(io::ErrorKind::Unsupported.into());
        }
        check(&fd)?;
        self.inbox.of(&fd);
        self.sockets = vec![fd];
        self.turn = 0;
        if self.connected_before {
            self.stats.reconnects += 1;
        }
        self.connected_before = true;
        Ok(Change { rewire: true, link: Some(true), ..Change::default() })
    }

    fn alone(&mut self) -> io::Result<Change> {
        if !self.plan.waits {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // What has been received is still given.
        let had = !self.sockets.is_empty();
        self.sockets.clear();
        self.turn = 0;
        Ok(Change { rewire: had, link: had.then_some(false), ..Change::default() })
    }

    fn stats(&self) -> Stats {
        self.stats
    }

    fn stats_mut(&mut self) -> &mut Stats {
        &mut self.stats
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
