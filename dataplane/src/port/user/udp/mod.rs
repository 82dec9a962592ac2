//! UDP: a connected socket for each of a guest's flows, so that the kernel tells flows and their errors apart; and the
//! bound sockets of forwards, with a flow for each peer that comes.
//!
//! A flow is a guest's address and port and the other's, as the guest sees them. Whoever makes one too many loses the one
//! that was quiet for the longest time; nobody can push out more than his own share of them at another's cost but one.
//! Hops of a guest's packets are kept where they are few, so that its `traceroute` finds the way; whether they may be
//! fragmented, where they are long.
//!
//! Trust: none in the guest, none in what answers. Promise: bounded in descriptors and memory; datagrams of a flow stay in
//! order; what the network does not take or says of them is counted, and told to the guest by ICMP as a router would;
//! nothing for many (broadcast, multicast) goes out.
#![forbid(unsafe_code)]

mod flow;
mod give;
mod outbox;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use netreeve_shared::vnet;

use super::bay::Bay;
use super::build::Unreachable;
use super::errors::{self, Carries};
use super::flows::{Flows, queue};
use super::inbox::{Inbox, Key};
use super::packet::{Ip, Packet};
use super::plan::{Forward, Plan};
use super::poll::{Ready, Token, Want, Who};
use super::room::{Cx, Room};
use super::sockets::is_adrift;
use crate::frame::Batch;
use crate::stats::Reason;
use flow::{Flow, Kind, Listener};
use outbox::{Failure, Outbox};

/// How long a flow lives that nobody answered, and one that somebody did.
const QUIET: Duration = Duration::from_secs(30);
const ANSWERED: Duration = Duration::from_secs(180);
/// Flows that are closed at a time.
const EXPIRE: usize = 1024;
/// Slots for what comes.
const SLOTS: u32 = 32;
/// Most datagrams that a super-datagram may be (Linux's own are 128 at most): each may cost a call.
pub(super) const SUPER: u32 = 512;
/// What a token is about.
const FLOW: u8 = 0;
const LISTENER: u8 = 1;
const EXPIRY: u8 = 2;
/// Expired flows are looked for this often at most.
const STEP: Duration = Duration::from_secs(1);

/// Where something has come that was not read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    Flow(u32),
    Listener(u32),
}

/// The room.
#[derive(Debug)]
pub struct Udp {
    flows: Flows<Key, Flow>,
    listeners: BTreeMap<u32, Listener>,
    inbox: Inbox,
    outbox: Outbox,
    /// The flow of what waits in the outbox.
    current: Option<u32>,
    ready: VecDeque<Source>,
    /// A timer is set.
    ticking: bool,
    /// Number of the next datagram for a guest that has to be fragmented.
    id: u32,
}

impl Udp {
    /// With the UDP forwards of the plan and their sockets.
    ///
    /// # Errors
    /// The kernel's, from watching them.
    pub fn new(_plan: &Plan, forwards: Vec<(Forward, OwnedFd)>, cx: &mut Cx) -> io::Result<Self> {
        let mut room = Self {
            flows: Flows::new(cx.limits.udp),
            listeners: BTreeMap::new(),
            inbox: Inbox::new(SLOTS)?,
            outbox: Outbox::new()?,
            current: None,
            ready: VecDeque::new(),
            ticking: false,
            id: 1,
        };
        room.set_forwards(forwards.into_iter().map(|(f, fd)| (f, Some(fd))).collect(), cx)?;
        Ok(room)
    }

    /// There is a forward with this number.
    #[must_use]
    pub fn has_forward(&self, id: u32) -> bool {
        self.listeners.contains_key(&id)
    }

    /// All forwards from now on: a socket with each that is new.
    ///
    /// # Errors
    /// The kernel's, from watching them; then none is changed.
    pub fn set_forwards(&mut self, list: Vec<(Forward, Option<OwnedFd>)>, cx: &mut Cx) -> io::Result<()> {
        self.flush(cx);
        let (kept, new): (Vec<_>, Vec<_>) = list.into_iter().partition(|(_, fd)| fd.is_none());
        let mut watched: Vec<Listener> = Vec::with_capacity(new.len());
        for (forward, fd) in new {
            let Some(fd) = fd else { continue };
            let token = Token { who: Who::Udp, kind: LISTENER, index: forward.id, generation: 0 };
            if let Err(e) = cx.poll.add(fd.as_fd(), token, Want::READ) {
                watched.iter().for_each(|l| drop(cx.poll.remove(l.fd.as_fd())));
                return Err(e);
            }
            watched.push(Listener { forward, fd, fresh: false });
        }
        let kept: BTreeSet<u32> = kept.iter().map(|(f, _)| f.id).collect();
        let all = std::mem::take(&mut self.listeners);
        let (stay, go): (BTreeMap<_, _>, BTreeMap<_, _>) =
            all.into_iter().partition(|(id, _)| kept.contains(id));
        self.listeners = stay;
        for (id, gone) in go {
            // The supervisor has it open as well: closing alone would not end its events.
            let _ = cx.poll.remove(gone.fd.as_fd());
            self.ready.retain(|s| *s != Source::Listener(id));
            for i in self.flows.all(|_, f| matches!(f.kind, Kind::Answers { listener, .. } if listener == id))
            {
                self.flows.remove(i);
            }
        }
        self.listeners.extend(watched.into_iter().map(|l| (l.forward.id, l)));
        Ok(())
    }

    /// The flow of a packet of the guest's, made if there is none. None: it goes nowhere, which is counted and said.
    fn flow_of(&mut self, key: Key, p: &Packet<'_>, ip: &Ip, cx: &mut Cx) -> Option<u32> {
        if let Some(i) = self.flows.find(&key) {
            return Some(i);
        }
        // Its datagrams go before theirs whom it may push out.
        self.flush(cx);
        flow::open(&mut self.flows, key, p, ip, cx)
    }

    /// One more flow may expire: sees to it that somebody looks.
    fn tick_later(&mut self, cx: &mut Cx) {
        if !self.ticking
            && let Some(when) = self.flows.next_expiry()
        {
            let token = Token { who: Who::Udp, kind: EXPIRY, index: 0, generation: 0 };
            cx.timers.at(when.max(cx.now + STEP), token);
            self.ticking = true;
        }
    }

    /// A flow's socket sends from where the host is no more; looked at now and then.
    fn is_left_behind(&mut self, index: u32, cx: &Cx) -> bool {
        let Some((key, flow)) = self.flows.get(index) else { return false };
        let Kind::Asks { fd } = &flow.kind else { return false };
        flow.source.is_lost(fd.as_fd(), cx.unbound(key.far), &cx.outbound, cx.now)
    }

    /// Sends what waits; what is put next goes by this flow, or, where that one was found to be lost, by a new one.
    fn turn_to(&mut self, index: u32, key: Key, p: &Packet<'_>, ip: &Ip, cx: &mut Cx) -> Option<u32> {
        self.flush(cx);
        let index = match self.flows.get(index) {
            Some(_) => index,
            None => self.flow_of(key, p, ip, cx)?,
        };
        self.current = Some(index);
        Some(index)
    }

    /// What the guest is told of a datagram that did not go; none: nothing.
    fn word_of(&mut self, index: u32, key: Key, failure: &Failure) -> Option<Unreachable> {
        let too_long = failure.error.raw_os_error() == Some(libc::EMSGSIZE);
        let mtu = match self.flows.get(index) {
            Some((_, Flow { kind: Kind::Asks { fd }, .. })) if too_long => {
                errors::mtu(fd.as_fd(), key.far.is_ipv4())
            }
            _ => None,
        };
        // With its headers of UDP and IP, without options.
        let len = failure.len.saturating_add(if key.far.is_ipv4() { 28 } else { 48 });
        match mtu {
            Some(mtu) if mtu < len => Some(Unreachable::TooBig(mtu)),
            Some(_) => None,
            None => errors::reason(&failure.error),
        }
    }

    /// What waits of a flow's errors is told to its guest; says whether there was anything.
    fn tell_errors(&mut self, index: u32, cx: &mut Cx) -> bool {
        match self.flows.get(index) {
            Some((key, Flow { kind: Kind::Asks { fd }, .. })) => {
                errors::pass_on(cx, fd.as_fd(), key, Carries::Datagrams)
            }
            _ => false,
        }
    }
}

impl Room for Udp {
    fn take(&mut self, p: &Packet<'_>, cx: &mut Cx) {
        let Some(ip) = &p.ip else { return };
        let mut header = [0; 8];
        let is_super = p.vnet.gso() == vnet::GSO_UDP_L4;
        let Some(said) = (p.copy(0, &mut header) == header.len()).then_some(header) else {
            return cx.stats.drop(Reason::Malformed);
        };
        let [s0, s1, d0, d1, l0, l1, ..] = said;
        // A super-datagram's own length means nothing (virtio 1.2 §5.1.6.2).
        let len = if is_super { ip.len } else { u16::from_be_bytes([l0, l1]).into() };
        let (src, dst) = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
        if len < 8 || len > ip.len || src == 0 || dst == 0 || ip.src.is_unspecified() || ip.src.is_multicast()
        {
            return cx.stats.drop(Reason::Malformed);
        }
        if is_super && (len - 8).div_ceil(u32::from(p.vnet.gso_size).max(1)) > SUPER {
            return cx.stats.drop(Reason::Refused);
        }
        if ip.ttl <= 1 && !cx.net.is_ours(ip.dst) && !errors::is_for_many(cx, ip.dst) {
            return errors::refuse(cx, p, ip.dst, Unreachable::Expired);
        }
        let key = Key { guest: SocketAddr::new(ip.src, src), far: SocketAddr::new(ip.dst, dst) };
        let Some(mut index) = self.flow_of(key, p, ip, cx) else { return };
        if self.current != Some(index) || !self.outbox.has_room() {
            let Some(same) = self.turn_to(index, key, p, ip, cx) else { return };
            index = same;
        }
        let long = u32::from(cx.net.mtu).saturating_sub(ip.at.saturating_sub(14)) < len;
        let Some((_, flow)) = self.flows.get(index) else { return };
        let wants = (ip.ttl, len, ip.whole && (is_super || !long));
        if matches!(flow.kind, Kind::Asks { .. }) && flow.manner.differs(wants) {
            let Some(same) = self.turn_to(index, key, p, ip, cx) else { return };
            index = same;
            if let Some((_, Flow { kind: Kind::Asks { fd }, manner, .. })) = self.flows.get(index) {
                manner.follow(fd.as_fd(), key.far.is_ipv4(), wants);
            }
        }
        let segment = if is_super { p.vnet.gso_size } else { 0 };
        if !self.outbox.put(p, ip, 8, len - 8, segment) {
            cx.stats.drop(Reason::Refused);
        }
    }

    fn flush(&mut self, cx: &mut Cx) {
        let Some(index) = self.current.take() else { return };
        let (mut tries, mut lost) = (0, self.is_left_behind(index, cx));
        while !self.outbox.is_empty() {
            let Some((key, flow)) = self.flows.get(index) else { return self.outbox.clear() };
            let sent = match &mut flow.kind {
                Kind::Asks { fd } => self.outbox.send(fd.as_fd(), &mut flow.way, &mut cx.stats),
                Kind::Answers { listener, .. } => {
                    flow.answered = true;
                    let Some(l) = self.listeners.get(listener) else {
                        return self.outbox.clear();
                    };
                    self.outbox.send(l.fd.as_fd(), &mut flow.way, &mut cx.stats)
                }
            };
            let patience = if flow.answered { ANSWERED } else { QUIET };
            self.flows.touch(index, cx.now, patience);
            let Some(failure) = sent else { break };
            // It may be the answer to a datagram before, kept for the next call.
            tries += 1;
            if self.tell_errors(index, cx) && tries <= 2 {
                continue;
            }
            tries = 0;
            let told = self.word_of(index, key, &failure);
            lost |= is_adrift(&failure.error);
            let mut sent = [0; errors::QUOTE];
            let n = self.outbox.first_bytes(&failure, &mut sent);
            if let Some(why) = told {
                errors::tell(cx, key, Carries::Datagrams, why, sent.get(..n).unwrap_or_default());
            }
            self.outbox.skip(&failure, &mut cx.stats);
        }
        if lost && matches!(self.flows.get(index), Some((_, Flow { kind: Kind::Asks { .. }, .. }))) {
            self.flows.remove(index);
        }
        self.tick_later(cx);
    }

    fn ready(&mut self, at: Token, ready: Ready, cx: &mut Cx) {
        match at.kind {
            FLOW => {
                if self.flows.named(at.index, at.generation).is_none() {
                    cx.idle += 1;
                    return;
                }
                let told = ready.error && self.tell_errors(at.index, cx);
                cx.idle += u64::from(!told && !ready.read);
                let places = self.flows.places() + self.listeners.len();
                if let Some((_, flow)) = self.flows.get(at.index)
                    && ready.read
                    && !flow.queued
                {
                    (flow.queued, flow.fresh) = (true, !told);
                    queue(&mut self.ready, Source::Flow(at.index), places);
                }
            }
            LISTENER => {
                let source = Source::Listener(at.index);
                if !self.ready.contains(&source) {
                    if let Some(l) = self.listeners.get_mut(&at.index) {
                        l.fresh = true;
                    }
                    self.ready.push_back(source);
                }
            }
            _ => {}
        }
    }

    fn tick(&mut self, at: Token, cx: &mut Cx) {
        if at.kind != EXPIRY {
            return;
        }
        self.ticking = false;
        // Those that are left over are looked at a step later.
        for _ in 0..EXPIRE {
            let Some(i) = self.flows.expired(cx.now) else { break };
            self.flows.remove(i);
        }
        self.tick_later(cx);
    }

    fn give(&mut self, _bay: &mut Bay, b: &mut Batch, cx: &mut Cx) {
        self.give_waiting(b, cx);
    }

    fn has_more(&self) -> bool {
        !self.ready.is_empty() || !self.inbox.is_empty()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
