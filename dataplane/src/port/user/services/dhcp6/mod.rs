//! DHCPv6 (RFC 8415): addresses for guests that do not make their own, name servers, search list, boot file.
//!
//! A guest has one address, as in IPv4, whatever it calls its groups; prefixes and temporary addresses are not given,
//! and the answer says so.
//!
//! Trust: none: every message is judged from a copy, and what it claims uses up nothing but the pool. Promise: an answer
//! is bounded (1232 bytes, what IPv6 takes everywhere), and what is broken gets none.
#![forbid(unsafe_code)]

pub mod request;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use netreeve_shared::mac::Mac;

use super::Seen;
use super::bytes::{n16, patch};
use super::conf::{Conf, LEASE, lease6, number6, wire_name};
use super::envelope::{Ends, udp};
use super::lease::Leases;
use crate::port::user::V6;
use request::{Group, Kind, Request, code};

/// The server's port, and the client's.
pub const SERVER: u16 = 547;
const CLIENT: u16 = 546;
/// All servers of the link.
pub const SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);
/// Longest answer in bytes.
const ROOM: usize = 1280 - 48;
/// Groups, and addresses of one, that are looked at.
const GROUPS: usize = 4;

const SUCCESS: u16 = 0;
const NO_ADDRESSES: u16 = 2;
const NO_BINDING: u16 = 3;
const NOT_ON_LINK: u16 = 4;
const NO_PREFIX: u16 = 6;

/// The server.
#[derive(Debug)]
pub struct Server {
    leases: Leases,
    /// Our identifier: the link-layer address (RFC 8415 §11.4).
    us: [u8; 10],
    /// The pool's first address, if it is not the usual one.
    first: Option<Ipv6Addr>,
}

/// An answer under way.
struct Answer<'a>(&'a mut Vec<u8>, usize);

impl Answer<'_> {
    /// Appends an option, if it fits.
    fn option(&mut self, code: u16, data: &[&[u8]]) {
        let len: usize = data.iter().map(|d| d.len()).sum();
        if self.0.len() + 4 + len <= self.1 {
            self.0.extend_from_slice(&code.to_be_bytes());
            self.0.extend_from_slice(&n16(len).to_be_bytes());
            data.iter().for_each(|d| self.0.extend_from_slice(d));
        }
    }

    fn status(&mut self, status: u16) {
        self.option(code::STATUS, &[&status.to_be_bytes()]);
    }
}

/// A status, as an option inside of another.
fn status(status: u16) -> [u8; 6] {
    let ([a, b], [y, z]) = (code::STATUS.to_be_bytes(), status.to_be_bytes());
    [a, b, 0, 2, y, z]
}

/// An address for so many seconds, as an option inside of another.
fn address(a: Ipv6Addr, seconds: u32) -> Vec<u8> {
    let mut out = vec![0, 5, 0, 24];
    out.extend_from_slice(&a.octets());
    out.extend_from_slice(&seconds.to_be_bytes());
    out.extend_from_slice(&seconds.to_be_bytes());
    out
}

impl Server {
    /// With all addresses free.
    #[must_use]
    pub fn new(c: &Conf) -> Self {
        let mut us = [0, 3, 0, 1, 0, 0, 0, 0, 0, 0];
        patch(&mut us, 4, &c.mac.0);
        Self { leases: Leases::new(c.usable6()), us, first: c.lease6 }
    }

    /// Takes a datagram that came to our port from `from`; `out` becomes the frame with the answer, or empty. None: it
    /// was no request, or a broken one.
    pub fn take(
        &mut self,
        c: &Conf,
        from: (Mac, Ipv6Addr),
        datagram: &[u8],
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Option<Seen> {
        out.clear();
        let v6 = c.v6?;
        let q = Request::parse(datagram, &self.us)?;
        let mut seen = Seen { mac: Some(from.0), ip: None };
        if q.kind == Kind::Confirm && !confirms(&q).any(|_| true) {
            return Some(seen);
        }
        let ours = if from.1.is_unicast_link_local() { c.link_local } else { v6.host };
        let at = (SocketAddr::new(IpAddr::V6(ours), SERVER), SocketAddr::new(IpAddr::V6(from.1), CLIENT));
        udp(out, &Ends { macs: (c.mac, from.0), at }, |o| {
            let rapid = q.kind == Kind::Solicit && q.options.get(code::RAPID).is_some();
            let kind = if q.kind == Kind::Solicit && !rapid { 2 } else { 7 };
            let room = o.len() + ROOM;
            o.push(kind);
            o.extend_from_slice(&q.xid);
            let mut a = Answer(o, room);
            a.option(code::SERVER, &[&self.us]);
            if let Some(id) = q.client {
                a.option(code::CLIENT, &[id]);
            }
            if rapid {
                a.option(code::RAPID, &[]);
            }
            seen.ip = self.addresses(&v6, &q, (from.0, rapid, now), &mut a).map(IpAddr::V6);
            rest(c, &v6, &q, &mut a);
        });
        Some(seen)
    }

    /// Answers for the addresses that the message is about; says which one was given.
    fn addresses(
        &mut self,
        v6: &V6,
        q: &Request<'_>,
        (mac, rapid, now): (Mac, bool, Instant),
        a: &mut Answer<'_>,
    ) -> Option<Ipv6Addr> {
        match q.kind {
            Kind::Confirm => {
                let near = confirms(q).all(|a| v6.holds(a));
                a.status(if near { SUCCESS } else { NOT_ON_LINK });
                return None;
            }
            Kind::Information => return None,
            Kind::Release | Kind::Decline => a.status(SUCCESS),
            _ => {}
        }
        let goes = matches!(q.kind, Kind::Release | Kind::Decline);
        let keeps = q.kind != Kind::Solicit || rapid;
        let (mut given, mut served) = (None, false);
        for (code, data) in q.options.iter().filter(|(c, _)| is_group(*c)).take(GROUPS) {
            match (code, Group::parse(data)) {
                (code::ADDRESSES, Some(g)) if goes => self.let_go(v6, q.kind, g, (mac, now), a),
                (code::ADDRESSES, Some(g)) if !served => {
                    served = true;
                    given = self.assign(v6, g, (mac, keeps, now), a).filter(|_| keeps);
                }
                (code::ADDRESSES, Some(g)) => a.option(code, &[&g.id, &[0; 8], &status(NO_ADDRESSES)]),
                (code::PREFIXES, Some(g)) => a.option(code, &[&g.id, &[0; 8], &status(NO_PREFIX)]),
                (code::TEMPORARY, _) => {
                    if let Some(id) = data.first_chunk::<4>() {
                        a.option(code, &[id, &status(NO_ADDRESSES)]);
                    }
                }
                _ => {}
            }
        }
        given
    }

    /// Offers or gives an address for a group: the one that it names if that can be, and says of others in it that they
    /// are not valid.
    fn assign(
        &mut self,
        v6: &V6,
        g: Group<'_>,
        (mac, keeps, now): (Mac, bool, Instant),
        a: &mut Answer<'_>,
    ) -> Option<Ipv6Addr> {
        let named = || g.addresses().take(GROUPS);
        let want = named().find_map(|a| number6(v6, self.first, a).filter(|n| self.leases.may(mac, *n, now)));
        let number = match want {
            Some(n) if keeps => Some(n),
            _ => self.leases.offer(mac, want, now),
        };
        let number = number.filter(|n| !keeps || self.leases.give(mac, *n, now));
        let Some(ip) = number.map(|n| lease6(v6, self.first, n)) else {
            a.option(code::ADDRESSES, &[&g.id, &[0; 8], &status(NO_ADDRESSES)]);
            return None;
        };
        let mut body = address(ip, LEASE);
        if keeps {
            named().filter(|n| *n != ip).for_each(|n| body.extend(address(n, 0)));
        }
        let times = [(LEASE / 2).to_be_bytes(), (LEASE / 5 * 4).to_be_bytes()];
        a.option(code::ADDRESSES, &[&g.id, times.as_flattened(), &body]);
        Some(ip)
    }

    /// Takes addresses back.
    fn let_go(&mut self, v6: &V6, kind: Kind, g: Group<'_>, (mac, now): (Mac, Instant), a: &mut Answer<'_>) {
        let has = self.leases.of(mac);
        let mine = |ip: &Ipv6Addr| has.is_some() && number6(v6, self.first, *ip) == has;
        match has.filter(|_| g.addresses().take(GROUPS).any(|ip| mine(&ip))) {
            Some(n) if kind == Kind::Decline => self.leases.decline(mac, n, now),
            Some(n) => self.leases.release(mac, n, now),
            None => a.option(code::ADDRESSES, &[&g.id, &[0; 8], &status(NO_BINDING)]),
        }
    }
}

fn is_group(c: u16) -> bool {
    matches!(c, code::ADDRESSES | code::TEMPORARY | code::PREFIXES)
}

/// The addresses that a client wants to have confirmed.
fn confirms<'a>(q: &Request<'a>) -> impl Iterator<Item = Ipv6Addr> {
    let groups = q.options.iter().filter(|(c, _)| *c == code::ADDRESSES).take(GROUPS);
    groups.filter_map(|(_, data)| Group::parse(data)).flat_map(|g| g.addresses().take(GROUPS))
}

/// What is not about addresses.
fn rest(c: &Conf, v6: &V6, q: &Request<'_>, a: &mut Answer<'_>) {
    if matches!(q.kind, Kind::Confirm | Kind::Release | Kind::Decline) {
        return;
    }
    if q.wants(code::DNS) && c.names() {
        a.option(code::DNS, &[&v6.dns.octets()]);
    }
    if let Some(url) = boot(c, v6).filter(|_| q.wants(code::BOOT)) {
        a.option(code::BOOT, &[url.as_bytes()]);
    }
    // RFC 4704: nobody here updates DNS for the client.
    let theirs = q.options.get(code::FQDN).and_then(|d| d.split_first());
    if let Some((flags, name)) = theirs {
        let flags = [4 | (flags & 1) << 1];
        let ours = wire_name(&c.full_name());
        a.option(code::FQDN, &[&flags, ours.as_deref().unwrap_or(name)]);
    }
    if q.wants(code::SEARCH) && !c.search.is_empty() {
        a.option(code::SEARCH, &[&c.search]);
    }
}

/// Where the boot file is (RFC 5970). A file that is an address already is left alone.
fn boot(c: &Conf, v6: &V6) -> Option<String> {
    let (file, server) = (&c.boot.file, &c.boot.server_name);
    if file.is_empty() || file.contains("://") {
        return (!file.is_empty()).then(|| file.clone());
    }
    let path = file.trim_start_matches('/');
    if server.parse::<Ipv6Addr>().is_ok() {
        return Some(format!("tftp://[{server}]/{path}"));
    }
    if !server.is_empty() {
        return Some(format!("tftp://{server}/{path}"));
    }
    c.boot.tftp.then(|| format!("tftp://[{}]/{path}", v6.host))
}
