//! How connections come to be: the guest calls, or somebody comes to a forward.
//!
//! Trust: none in the guest. Promise: no socket is made before the policy was asked; how many are under way at a time is
//! bounded; a guest hears what the host's kernel said.
#![forbid(unsafe_code)]

use std::hash::BuildHasher;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use netreeve_shared::vnet::Vnet;

use super::super::build::{self, Unreachable};
use super::super::errors;
use super::super::packet::{Packet, TCP};
use super::super::plan::{Forward, Way};
use super::super::policy::{Proto, Verdict};
use super::super::poll::{Token, Want};
use super::super::room::Cx;
use super::Tcp;
use super::flow::{Fate, Flow, State};
use super::forward::Leads;
use super::segment::{Key, Segment, flag};
use super::seq::Seq;
use super::shares::Origin;
use super::sock::Sock;
use crate::stats::Reason;
use crate::sys::io::accept_from;

/// Connections that are accepted at a time, from one listening socket.
const ACCEPTS: usize = 64;
/// Calls that are found decided, and therefore stay, for one that wants the place of one of them.
const DECIDED: usize = 16;
/// When a listening socket is looked at again that could not be served.
const LATER: Duration = Duration::from_millis(100);
/// Ports that are tried for somebody whose own the guest knows already.
const PORTS: usize = 64;

impl<S: Sock> Tcp<S> {
    /// The guest asks for a connection.
    pub(super) fn call(&mut self, syn: &Segment, key: Key, cx: &mut Cx) {
        let (made, to) = match self.forwards.called(syn, key, cx.now) {
            Leads::Through(fd, tcp) => (Some((fd, tcp)), key.far),
            Leads::Later => return,
            Leads::Crowded => {
                self.counts.limited += 1;
                return cx.stats.drop(Reason::Full);
            }
            leads => match (leads, cx.route(Proto::Tcp, key.far)) {
                (Leads::To(a), _) if !cx.restrict => (None, a),
                (_, (_, Verdict::Drop)) => return cx.stats.drop(Reason::Refused),
                (_, (_, Verdict::Refuse)) => return Self::stranger(syn, &key, cx),
                (_, (a, Verdict::Pass)) => (None, a),
            },
        };
        // Before a socket is made: a call of a flood costs no more than it must.
        if !self.make_room(Origin::Guest, cx) {
            self.counts.limited += 1;
            return cx.stats.drop(Reason::Full);
        }
        // Of TCP's it may still be under way.
        let at_once = matches!(made, Some((_, false)));
        let sock = match made {
            Some((fd, tcp)) => Ok(S::made(fd, tcp)),
            // IPv4 in the clothes of IPv6 would go by where IPv4 does not: past its routes, and where there is none.
            None => errors::unmapped(key.far).and_then(|()| S::open(to, &cx.outbound)),
        };
        let mut sock = match sock {
            Ok(s) => s,
            Err(e) => return self.refused(syn.seq, key, &e, cx),
        };
        cx.limits.buffer.iter().for_each(|n| sock.bound(*n));
        let (iss, now) = (self.first(&key, cx), cx.now);
        let Some(token) = self.table.add(key, |t| Flow::called(key, t, sock, syn, iss, now)) else { return };
        let table = &self.table;
        self.shares.called(Origin::Guest, (now, token), |t| table.state(t));
        if !self.watch(token, cx) {
            return self.remove(token, cx);
        }
        self.tools.ends.call();
        if at_once {
            self.decided(token, cx);
        }
    }

    /// Watches a new flow's socket. False: that failed, which only want of memory can make it.
    fn watch(&mut self, token: Token, cx: &mut Cx) -> bool {
        let fd = self.table.get(token).map(|f| &f.sock).and_then(Sock::fd);
        let Some(fd) = fd else { return true };
        let watched = cx.poll.add(fd, token, Want::BOTH).is_ok();
        if !watched {
            cx.stats.drop(Reason::Full);
        }
        watched
    }

    /// Whether there is room for one more flow of theirs, and which has to go for it: of a flood, its own oldest call; where
    /// there is no place at all, one of theirs that is late, or was silent for long (that only while few of theirs are half
    /// open: a place that a call never fills is one that the next call takes).
    fn spare(&mut self, who: Origin, cx: &Cx) -> Option<Option<Token>> {
        let crowded = self.shares.is_crowded(who);
        if !crowded && self.shares.has_place(who) {
            return Some(None);
        }
        let table = &self.table;
        let call = self.shares.victim(who, cx.now, |t| table.standing(t));
        if call.is_some() || crowded || !self.shares.may_push_out(who) {
            return call.map(Some);
        }
        self.table.silent(cx.now, who).map(Some)
    }

    /// Sees that there is room for one more flow of theirs.
    pub(super) fn make_room(&mut self, who: Origin, cx: &mut Cx) -> bool {
        for _ in 0..DECIDED {
            match self.spare(who, cx) {
                None => return false,
                Some(None) => return true,
                // On a busy machine nobody has looked for long; whoever was called would see it broken off.
                Some(Some(token)) if self.table.get(token).is_some_and(|f| f.is_decided()) => {
                    self.decided(token, cx);
                }
                Some(Some(token)) => {
                    self.evict(token, cx);
                    return true;
                }
            }
        }
        false
    }

    /// A flow goes for another. One that is not open yet is forgotten, as if it had been lost on its way: whoever still
    /// means it asks again.
    fn evict(&mut self, token: Token, cx: &mut Cx) {
        self.counts.evicted += 1;
        cx.stats.evicted += 1;
        match self.table.get(token) {
            Some(f) if f.state != State::Open => {
                f.sock.abort();
                self.remove(token, cx);
            }
            _ => self.break_off(token, cx),
        }
    }

    /// The first sequence number: nobody can guess it, and it is not soon used again (RFC 6528).
    fn first(&self, key: &Key, cx: &Cx) -> Seq {
        let clock = cx.now.saturating_duration_since(self.start).as_micros() / 4;
        let sum = u128::from(self.secret.hash_one(key)).wrapping_add(clock);
        Seq(u32::try_from(sum & 0xffff_ffff).unwrap_or(0))
    }

    /// A connection is decided.
    pub(super) fn decided(&mut self, token: Token, cx: &mut Cx) {
        let Some(f) = self.table.get(token) else { return };
        if let Some(e) = f.sock.error() {
            let (key, syn) = (f.key, f.up.next.minus(1));
            self.remove(token, cx);
            return self.refused(syn, key, &e, cx);
        }
        f.connected(cx, &mut self.tools);
        let table = &self.table;
        self.shares.answered((cx.now, token), |t| table.state(t));
        self.after(token, Fate::Lives, true, cx);
    }

    /// The host's side said no; the guest hears what it said.
    fn refused(&mut self, seq: Seq, key: Key, e: &io::Error, cx: &mut Cx) {
        self.counts.refused += 1;
        let why = match e.raw_os_error() {
            Some(libc::ENETUNREACH | libc::ENETDOWN | libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT) => {
                Unreachable::Net
            }
            Some(libc::EHOSTUNREACH | libc::EHOSTDOWN | libc::ENONET) => Unreachable::Host,
            Some(libc::EACCES | libc::EPERM) => Unreachable::Prohibited,
            // The guest has waited as long as we did; or there is no memory or descriptor, and it asks again.
            Some(libc::ETIMEDOUT | libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS) => {
                return cx.stats.drop(Reason::Unreachable);
            }
            _ => {
                let syn = Segment { seq, flags: flag::SYN, ..Segment::default() };
                return Self::stranger(&syn, &key, cx);
            }
        };
        // An error quotes what it is about: the guest's SYN, as far as it is looked at.
        let Some(mut h) = build::ip(&cx.net, key.guest.ip(), key.far.ip(), TCP, 20) else { return };
        let mut tcp = [0; 20];
        let fields = key.guest.port().to_be_bytes().into_iter().chain(key.far.port().to_be_bytes());
        let fields = fields.chain(seq.0.to_be_bytes()).chain([0, 0, 0, 0, 0x50, flag::SYN]);
        tcp.iter_mut().zip(fields).for_each(|(to, b)| *to = b);
        h.push(&tcp);
        let len = u32::try_from(h.len()).unwrap_or(0);
        if let Ok(p) = Packet::parse(h.as_ref(), &[], len, Vnet::default()) {
            let from = cx.net.host(key.guest.ip()).unwrap_or(key.far.ip());
            build::unreachable(cx, from, &p, why);
        }
    }

    /// Somebody may have come to a listening socket.
    pub(super) fn accept(&mut self, at: Token, cx: &mut Cx) {
        for _ in 0..ACCEPTS {
            let Some(l) = self.forwards.get(at.index) else { return };
            let forward = l.forward;
            // Nobody goes before somebody has come.
            if self.spare(Origin::Host(forward.id), cx).is_none() {
                return self.forwards.later(at, cx.now + LATER, cx);
            }
            let Some(l) = self.forwards.get(at.index) else { return };
            match accept_from(l.fd.as_fd()) {
                Ok((fd, from)) => {
                    let tcp = forward.way == Way::Tcp;
                    let may = from.is_none_or(|a| cx.may_enter(Proto::Tcp, a));
                    let mut sock = S::made(fd, tcp);
                    match self.forwards.seen_as(&forward, from, cx).filter(|_| may) {
                        Some(seen) => self.come(sock, &forward, seen, cx),
                        None => sock.abort(),
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::ECONNABORTED)) => {}
                Err(_) => return self.forwards.later(at, cx.now + LATER, cx),
            }
        }
        self.forwards.later(at, cx.now, cx);
    }

    /// Connections may have come through a door.
    pub(super) fn let_through(&mut self, at: Token, cx: &mut Cx) {
        while let Some((key, syn, made)) = self.forwards.came(at.index) {
            match made {
                Ok(()) => self.call(&syn, key, cx),
                Err(e) => self.refused(syn.seq, key, &e, cx),
            }
        }
    }

    /// Somebody has come: the guest is asked.
    pub(super) fn come(&mut self, mut sock: S, by: &Forward, seen: SocketAddr, cx: &mut Cx) {
        let (who, mut key) = (Origin::Host(by.id), Key { guest: by.guest, far: seen });
        for _ in 0..PORTS {
            if self.table.find(&key).is_none() {
                break;
            }
            key.far.set_port(self.forwards.port());
        }
        if self.table.find(&key).is_some() || !self.make_room(who, cx) {
            return sock.abort();
        }
        cx.limits.buffer.iter().for_each(|n| sock.bound(*n));
        let (iss, now) = (self.first(&key, cx), cx.now);
        let Some(token) = self.table.add(key, |t| Flow::asking(key, t, sock, iss, who, now)) else { return };
        let table = &self.table;
        self.shares.called(who, (now, token), |t| table.state(t));
        if !self.watch(token, cx) {
            return self.remove(token, cx);
        }
        if let Some(f) = self.table.get(token) {
            f.greet(cx, &mut self.tools);
        }
        self.after(token, Fate::Lives, false, cx);
    }
}
