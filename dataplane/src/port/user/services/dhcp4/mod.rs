//! DHCP for IPv4 (RFC 2131), and BOOTP: the guest's address, its router, its names, its boot file.
//!
//! There is no other server on the guest's link, so what we do not know is refused (`DHCPNAK`) rather than left open.
//!
//! Trust: none: every message is judged from a copy, and what it claims uses up nothing but the pool. Promise: an answer
//! is a valid message, no longer than the client takes; what is broken gets none.
#![forbid(unsafe_code)]

pub mod reply;
pub mod request;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use netreeve_shared::mac::Mac;

use super::Seen;
use super::conf::{Conf, lease4, number4};
use super::envelope::{Ends, udp};
use super::lease::Leases;
use crate::port::user::V4;
use reply::Answer;
use request::{Kind, Request};

/// The server's port, and the client's.
pub const SERVER: u16 = 67;
const CLIENT: u16 = 68;

/// The server.
#[derive(Debug)]
pub struct Server {
    leases: Leases,
}

impl Server {
    /// With all addresses free.
    #[must_use]
    pub fn new(c: &Conf) -> Self {
        Self { leases: Leases::new(c.usable4()) }
    }

    /// Takes a datagram that came to our port; `out` becomes the frame with the answer, or empty. None: it was no
    /// request, or a broken one.
    pub fn take(&mut self, c: &Conf, datagram: &[u8], now: Instant, out: &mut Vec<u8>) -> Option<Seen> {
        out.clear();
        let v4 = c.v4?;
        let q = Request::parse(datagram)?;
        let mut seen = Seen { mac: Some(q.mac), ip: None };
        let Some(a) = self.judge(&v4, &q, now) else { return Some(seen) };
        if let Answer::Ack(ip) = a {
            seen.ip = Some(IpAddr::V4(ip));
        }
        let (mac, ip) = whither(&q, a);
        let at = (SocketAddr::new(IpAddr::V4(v4.host), SERVER), SocketAddr::new(IpAddr::V4(ip), CLIENT));
        udp(out, &Ends { macs: (c.mac, mac), at }, |o| reply::write(c, &v4, &q, a, o));
        Some(seen)
    }

    /// What is answered (RFC 2131 §4.3). None: nothing.
    fn judge(&mut self, v4: &V4, q: &Request<'_>, now: Instant) -> Option<Answer> {
        let number = |a: Option<Ipv4Addr>| a.and_then(|a| number4(v4, a));
        match q.kind {
            Kind::Discover => {
                let want = number(q.wants);
                self.leases.offer(q.mac, want, now).map(|n| Answer::Offer(lease4(v4, n)))
            }
            Kind::Bootp => {
                let n = self.leases.offer(q.mac, None, now)?;
                self.leases.give(q.mac, n, now).then(|| Answer::Ack(lease4(v4, n)))
            }
            Kind::Request => {
                if q.server.is_some_and(|s| s != v4.host) {
                    // Another server was chosen: there is none, but what was offered is free again.
                    if let Some(n) = self.leases.of(q.mac) {
                        self.leases.release(q.mac, n, now);
                    }
                    return None;
                }
                let uses = (!q.uses.is_unspecified()).then_some(q.uses);
                let n = number(q.wants.or(uses)).filter(|n| self.leases.give(q.mac, *n, now));
                Some(n.map_or(Answer::Nak, |n| Answer::Ack(lease4(v4, n))))
            }
            Kind::Decline | Kind::Release => {
                let a = if q.kind == Kind::Decline { q.wants } else { Some(q.uses) };
                if let Some(n) = number(a).filter(|_| q.server.is_none_or(|s| s == v4.host)) {
                    match q.kind {
                        Kind::Decline => self.leases.decline(q.mac, n, now),
                        _ => self.leases.release(q.mac, n, now),
                    }
                }
                None
            }
            Kind::Inform => Some(Answer::Inform),
        }
    }
}

/// Where the answer goes (RFC 2131 §4.1): to the address in use, to the new one, or to all.
fn whither(q: &Request<'_>, a: Answer) -> (Mac, Ipv4Addr) {
    match a {
        Answer::Nak => (Mac::BROADCAST, Ipv4Addr::BROADCAST),
        _ if !q.uses.is_unspecified() => (q.mac, q.uses),
        Answer::Offer(ip) | Answer::Ack(ip) if !q.broadcast() => (q.mac, ip),
        _ => (Mac::BROADCAST, Ipv4Addr::BROADCAST),
    }
}
