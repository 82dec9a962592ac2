//! One flow: its socket and how that is set, and how flows begin.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use super::outbox::Way;
use super::{FLOW, QUIET};
use crate::port::user::build::Unreachable;
use crate::port::user::errors::{self, refuse};
use crate::port::user::flows::Flows;
use crate::port::user::inbox::Key;
use crate::port::user::packet::{Ip, Packet};
use crate::port::user::plan::Forward;
use crate::port::user::policy::{Proto, Verdict};
use crate::port::user::poll::{Token, Want, Who};
use crate::port::user::room::Cx;
use crate::port::user::sockets::{Manner, Source, leave};
use crate::stats::Reason;
use crate::sys::sock::{self, Opt, Speaks};

/// Of all flows, the part that one guest's port may have.
const SHARE: u32 = 2;
/// Messages that are asked for at first, and at most.
const FEW: usize = 2;
pub(super) const MANY: usize = 16;
/// The bound socket of a forward.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) forward: Forward,
    pub(super) fd: OwnedFd,
    /// It was said to have something, and was not read since.
    pub(super) fresh: bool,
}

/// Whose flow it is.
#[derive(Debug)]
pub(super) enum Kind {
    /// The guest began it.
    Asks {
        /// Connected to the other.
        fd: OwnedFd,
    },
    /// Somebody came to a forward.
    Answers {
        /// The forward's number.
        listener: u32,
        /// Who.
        peer: SocketAddr,
        /// Which of the host's addresses he called, where the socket says so: he knows no other.
        local: Option<SocketAddr>,
    },
}

/// A flow.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) kind: Kind,
    pub(super) way: Way,
    /// Somebody spoke in either direction.
    pub(super) answered: bool,
    /// It is among those that have something to be read.
    pub(super) queued: bool,
    /// It was said to have something, and was not read since.
    pub(super) fresh: bool,
    /// Messages that the next call asks for.
    pub(super) expect: usize,
    /// The kernel joins datagrams.
    joins: bool,
    pub(super) source: Source,
    pub(super) manner: Manner,
}

impl Flow {
    /// A new one.
    pub(super) fn new(kind: Kind) -> Self {
        let (towards, local) = match kind {
            Kind::Answers { peer, local, .. } => (Some(peer), local),
            Kind::Asks { .. } => (None, None),
        };
        let way = Way { cut_below: u32::MAX, towards, local };
        Self {
            kind,
            way,
            answered: false,
            queued: false,
            fresh: false,
            expect: FEW,
            joins: false,
            source: Source::default(),
            manner: Manner::default(),
        }
    }

    /// So many messages came of as many as were asked for: asks for more or fewer the next time. Says whether there may
    /// be more now.
    pub(super) fn came(&mut self, n: usize, asked: usize) -> bool {
        (self.answered, self.fresh) = (true, false);
        self.expect = (2 * n).clamp(FEW, MANY);
        if n >= 4
            && !self.joins
            && let Kind::Asks { fd } = &self.kind
        {
            // Worth a call now.
            self.joins = true;
            let _ = sock::set(fd.as_fd(), Opt::UdpGro, 1);
        }
        n >= asked
    }
}

/// Sees that there is a place for one more flow of this port of the guest's: of its own there are only so many, whoever
/// else has how many, and whoever began them.
pub(super) fn make_place(flows: &mut Flows<Key, Flow>, guest: SocketAddr, cx: &mut Cx) {
    let share = usize::try_from(cx.limits.udp.div_ceil(SHARE)).unwrap_or(usize::MAX);
    let (own, count) = flows.quietest_of(&guest);
    let goes = if count >= share { own } else { flows.is_full().then(|| flows.quietest()).flatten() };
    evict(flows, goes, cx);
}

/// One goes for another.
fn evict(flows: &mut Flows<Key, Flow>, index: Option<u32>, cx: &mut Cx) {
    let gone = index.and_then(|i| flows.remove(i));
    cx.stats.evicted += u64::from(gone.is_some());
}

/// Begins a flow of the guest's. None: it goes nowhere, which is counted and, where a router would, said.
pub(super) fn open(
    flows: &mut Flows<Key, Flow>,
    key: Key,
    p: &Packet<'_>,
    ip: &Ip,
    cx: &mut Cx,
) -> Option<u32> {
    let dst = ip.dst;
    if errors::is_for_many(cx, dst) {
        cx.stats.drop(Reason::Unknown);
        return None;
    }
    let (at, verdict) = cx.route(Proto::Udp, key.far);
    match verdict {
        Verdict::Pass => {}
        Verdict::Drop => {
            cx.stats.drop(Reason::Denied);
            return None;
        }
        Verdict::Refuse => {
            let why = match cx.net.route(key.far) {
                Some(_) => Unreachable::Prohibited,
                None if cx.net.is_ours(dst) => Unreachable::Port,
                None => Unreachable::Host,
            };
            refuse(cx, p, dst, why);
            return None;
        }
    }
    make_place(flows, key.guest, cx);
    let made = match dial(flows, at, cx) {
        Err(e) if errors::is_shortage(&e) => {
            let quietest = flows.quietest();
            evict(flows, quietest, cx);
            dial(flows, at, cx)
        }
        made => made,
    };
    match made {
        Ok(fd) => flows.insert(key, Flow::new(Kind::Asks { fd }), cx.now, QUIET),
        Err(e) => {
            match errors::reason(&e) {
                Some(why) => refuse(cx, p, dst, why),
                None => cx.stats.drop(if errors::is_shortage(&e) { Reason::Quota } else { Reason::Refused }),
            }
            None
        }
    }
}

/// A socket that is connected and watched for the flow that comes next.
fn dial(flows: &mut Flows<Key, Flow>, at: SocketAddr, cx: &mut Cx) -> io::Result<OwnedFd> {
    let (index, generation) = flows.vacancy().ok_or(io::ErrorKind::OutOfMemory)?;
    errors::unmapped(at)?;
    let fd = sock::new(Speaks::Udp, at.is_ipv6())?;
    sock::set(fd.as_fd(), if at.is_ipv4() { Opt::RecvErr } else { Opt::RecvErr6 }, 1)?;
    if let Some(n) = cx.limits.buffer.and_then(|n| i32::try_from(n).ok()) {
        // What is sent does not stay.
        sock::set(fd.as_fd(), Opt::ReceiveBuffer, n)?;
    }
    leave(fd.as_fd(), at, &cx.outbound)?;
    sock::call(fd.as_fd(), at)?;
    cx.poll.add(fd.as_fd(), Token { who: Who::Udp, kind: FLOW, index, generation }, Want::READ)?;
    Ok(fd)
}
