//! What the rooms of a `user` network share, and the shape that each has.
//!
//! Trust: rooms of each other. Promise: one thread; nothing here waits.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use netreeve_shared::vnet::Vnet;

use super::bay::Bay;
use super::net::Net;
use super::out::Out;
use super::packet::Packet;
use super::plan::{Limits, Outbound};
use super::policy::{Policy, Proto, Verdict};
use super::poll::{Poll, Ready, Token};
use super::sockets::{is_own, outward};
use super::timers::Timers;
use crate::frame::Batch;
use crate::port::Offloads;
use crate::stats::{Reason, Stats};

/// How long what was found of an address is believed.
const FRESH: Duration = Duration::from_millis(100);

/// What rooms work with.
#[derive(Debug)]
pub struct Cx {
    /// Who is who on the link.
    pub net: Net,
    /// Small frames for the guest.
    pub out: Out,
    /// Descriptors.
    pub poll: Poll,
    /// Timers.
    pub timers: Timers,
    /// Which destinations there are.
    pub policy: Policy,
    /// No socket is ever made.
    pub restrict: bool,
    /// How sockets leave the host.
    pub outbound: Outbound,
    /// How much of everything.
    pub limits: Limits,
    /// The port's counters.
    pub stats: Stats,
    /// When this turn began.
    pub now: Instant,
    /// Work that frames for the guest may leave to do.
    pub gives: Offloads,
    /// What was found of an address last, whether it is the host's own, and when.
    pub own: Cell<Option<(IpAddr, bool, Instant)>>,
    /// Times that a socket that is not TCP's said that something was possible, and nothing was.
    pub idle: u64,
}

impl Cx {
    /// Sends a small frame, given in parts, to the guest. False: there is no room, and that is counted.
    pub fn push(&mut self, vnet: Vnet, parts: &[&[u8]]) -> bool {
        let done = self.out.push(vnet, parts);
        if !done {
            self.stats.drop(Reason::Full);
        }
        done
    }

    /// Where on the host's side a destination of the guest's is, and what becomes of it there. A destination that is
    /// nowhere is refused; where no socket may be made, every one is dropped, as QEMU's `restrict` has it.
    #[must_use]
    pub fn route(&self, proto: Proto, dst: SocketAddr) -> (SocketAddr, Verdict) {
        let at = match self.net.route(dst) {
            // An alias of the host's own address: the one that it has as this flow begins.
            Some(at) if at.ip().is_unspecified() && !self.restrict => {
                outward(at.ip(), &self.outbound).map(|ip| SocketAddr::new(ip, at.port()))
            }
            at => at,
        };
        match at {
            _ if self.restrict => (dst, Verdict::Drop),
            Some(at) if self.net.is_dns(dst.ip()) => (at, self.policy.may_ask(proto)),
            Some(at) => (at, self.policy.may(proto, at, &|ip| self.is_own(ip))),
            None => (dst, Verdict::Refuse),
        }
    }

    /// Where on the host's side a destination of the guest's is, if the address that it is reached from is not a named one:
    /// that one stays, wherever the host moves to.
    #[must_use]
    pub fn unbound(&self, dst: SocketAddr) -> Option<SocketAddr> {
        self.net.route(dst).filter(|at| self.outbound.of(at.ip()).0.is_none())
    }

    /// The address is one of the host's own. Who asks about the same one over and over costs no calls.
    fn is_own(&self, ip: IpAddr) -> bool {
        let fresh = |(known, _, at): &(IpAddr, bool, Instant)| {
            *known == ip && self.now.saturating_duration_since(*at) < FRESH
        };
        if let Some((_, own, _)) = self.own.get().filter(fresh) {
            return own;
        }
        let own = is_own(ip);
        self.own.set(Some((ip, own, self.now)));
        own
    }

    /// Somebody at `from` may come to a forward.
    #[must_use]
    pub fn may_enter(&self, proto: Proto, from: SocketAddr) -> bool {
        // A restricted network has no socket to ask with, and no rule that wants it (`spec`).
        let own = |ip| !self.restrict && self.is_own(ip);
        self.policy.may_enter(proto, from, &own) == Verdict::Pass
    }
}

/// A room: one protocol, or one family of services.
pub trait Room {
    /// A packet of a guest's. What it carries lives until the end of this turn's [`Room::flush`].
    fn take(&mut self, p: &Packet<'_>, cx: &mut Cx);

    /// The guest's packets of this turn were all taken.
    fn flush(&mut self, _cx: &mut Cx) {}

    /// Something has become possible with a descriptor.
    fn ready(&mut self, at: Token, ready: Ready, cx: &mut Cx);

    /// A timer's time has come.
    fn tick(&mut self, at: Token, cx: &mut Cx);

    /// Gives frames in bulk, as far as there is room.
    fn give(&mut self, _bay: &mut Bay, _b: &mut Batch, _cx: &mut Cx) {}

    /// There is more to give at once.
    fn has_more(&self) -> bool {
        false
    }
}
