//! What the guest finds on its link: ARP, neighbour and router discovery, DHCP, DNS, TFTP.
//!
//! Each is a function from a copy of what the guest sent, and a little state, to whole small frames ([`envelope`]). Where
//! answers go is taken from the question alone.
//!
//! | door | what | bounded by |
//! |---|---|---|
//! | ARP, ICMPv6 133 to 136 | [`arp`], [`ndp`] | nothing is kept |
//! | UDP 67, 547 | [`dhcp4`], [`dhcp6`] | 16 addresses each |
//! | UDP 53 | [`dns`] | questions, sockets |
//! | UDP 69 | [`tftp`] | sessions, files |
//!
//! Trust: none in guests; lengths are checked before anything is read. Promise: what is broken gets no answer and is
//! counted; one message costs at most one answer (a window of TFTP: 16).
#![forbid(unsafe_code)]

pub mod arp;
pub mod bytes;
pub mod conf;
pub mod dhcp4;
pub mod dhcp6;
pub mod dns;
pub mod envelope;
pub mod lease;
pub mod ndp;
#[cfg(test)]
mod tests;
pub mod tftp;

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use netreeve_shared::mac::Mac;
use netreeve_shared::vnet::{GSO_UDP_L4, Vnet};

use super::build::Unreachable;
use super::errors;
use super::net::Net;
use super::packet::{ICMPV6, Ip, Packet};
use super::plan::{Plan, Service};
use super::policy::{Proto, Verdict};
use super::poll::{Ready, Token, Who};
use super::room::{Cx, Room};
use crate::stats::Reason;
use crate::sys::sock::{self, Speaks};
use bytes::Reader;
use conf::Conf;
use dns::{Asker, Relay};
use tftp::Tftp;

/// Kinds of tokens of this room.
const ADVERTISE_TICK: u8 = 0;
const DNS_TICK: u8 = 1;
const DNS_LINE: u8 = 2;
const DNS_STREAM: u8 = 3;
const TFTP_TICK: u8 = 4;

/// Longest message of a guest's that is looked at, in bytes, with its UDP header.
const MESSAGE: usize = 4096 + 8;
/// Somewhere in the part of IPv6 that is given out to everybody, by which it is found whether there is a way there.
const AFAR: Ipv6Addr = Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1);

/// How long what was found of the host's routes is believed, if somebody asks.
const FRESH: Duration = Duration::from_secs(1);

/// What a message says of who sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// An IP address that is there.
    pub ip: Option<IpAddr>,
}

/// A UDP packet is for a service of ours.
#[must_use]
pub fn is_ours(p: &Packet<'_>, net: &Net) -> bool {
    let Some(ip) = &p.ip else { return false };
    let port = p.transport().get(2..4).and_then(|b| b.first_chunk()).map_or(0, |b| u16::from_be_bytes(*b));
    match port {
        dhcp4::SERVER => ip.dst.is_ipv4() && (net.is_ours(ip.dst) || p.to.is_multicast()),
        dhcp6::SERVER => ip.dst.is_ipv6() && (net.is_ours(ip.dst) || p.to.is_multicast()),
        53 => net.is_dns(ip.dst),
        tftp::SERVER => net.is_host(ip.dst),
        _ => false,
    }
}

/// The room.
#[derive(Debug)]
pub struct Services {
    conf: Conf,
    dhcp4: dhcp4::Server,
    dhcp6: dhcp6::Server,
    dns: Relay,
    tftp: Tftp,
    /// The host has IPv6, and when that was found.
    uplink: (bool, Instant),
    message: Vec<u8>,
    frame: Vec<u8>,
}

impl Services {
    /// With the directory that is read by TFTP.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(plan: &Plan, tftp: Option<OwnedFd>, cx: &mut Cx) -> io::Result<Self> {
        let conf = Conf::new(plan);
        let s = Self {
            dhcp4: dhcp4::Server::new(&conf),
            dhcp6: dhcp6::Server::new(&conf),
            dns: Relay::new(),
            tftp: Tftp::new(tftp),
            uplink: (uplink(cx), cx.now),
            message: vec![0; MESSAGE],
            frame: Vec::new(),
            conf,
        };
        s.wind(cx);
        Ok(s)
    }

    /// The next advertisement.
    fn wind(&self, cx: &mut Cx) {
        if self.conf.v6.is_some() {
            let token = Token { who: Who::Services, kind: ADVERTISE_TICK, index: 0, generation: 0 };
            cx.timers.at(cx.now + Duration::from_secs(ndp::INTERVAL), token);
        }
    }

    /// [`Net::resolvers`] has changed, and perhaps more than that.
    pub fn resolvers_changed(&mut self, cx: &mut Cx) {
        self.dns.resolvers_changed(cx);
        let before = std::mem::replace(&mut self.uplink, (uplink(cx), cx.now));
        if before.0 != self.uplink.0 {
            self.advertise(cx);
        }
    }

    /// A guest can hear us, perhaps one that has heard another under our addresses.
    pub fn link_up(&mut self, cx: &mut Cx) {
        if arp::announce(&self.conf, &mut self.frame) {
            cx.push(Vnet::default(), &[&self.frame]);
        }
        self.advertise(cx);
    }

    /// Somebody at `from` has our Ethernet address: we take another, if that can be, and say so.
    pub fn make_way(&mut self, from: IpAddr, cx: &mut Cx) {
        if !cx.net.make_way(from) {
            return;
        }
        // The router whose link-local address is now the guest's is none any more (RFC 4861 §6.2.8).
        if ndp::advertise(&self.conf, false, None, &mut self.frame) {
            cx.push(Vnet::default(), &[&self.frame]);
        }
        (self.conf.mac, self.conf.link_local) = (cx.net.mac, cx.net.link_local);
        self.link_up(cx);
    }

    fn advertise(&mut self, cx: &mut Cx) {
        if ndp::advertise(&self.conf, self.uplink.0, None, &mut self.frame) {
            cx.push(Vnet::default(), &[&self.frame]);
        }
    }

    /// What a message came to: who was seen, and perhaps an answer.
    fn done(&self, seen: Option<Seen>, cx: &mut Cx) {
        let Some(seen) = seen else { return cx.stats.drop(Reason::Malformed) };
        if let Some((ip, mac)) = seen.ip.zip(seen.mac) {
            cx.net.learn(ip, mac);
        }
        if !self.frame.is_empty() {
            cx.push(Vnet::default(), &[&self.frame]);
        }
    }

    /// A message of neighbour discovery. Others that come here are of groups, and nobody needs to know.
    fn neighbour(&mut self, p: &Packet<'_>, ip: &Ip, message: &[u8], cx: &mut Cx) {
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (ip.src, ip.dst) else { return };
        if !matches!(message.first(), Some(133 | 135 | 136)) || self.conf.v6.is_none() {
            return;
        }
        if cx.now.saturating_duration_since(self.uplink.1) > FRESH {
            self.uplink = (uplink(cx), cx.now);
        }
        let from = ndp::From { mac: p.mac, src, dst, hops: ip.ttl };
        let seen = ndp::take(&self.conf, self.uplink.0, &from, message, &mut self.frame);
        self.done(seen, cx);
    }

    /// Datagrams of one length that came as one, as a lane or a guest's kernel joins them: each for itself. What their
    /// common header says of a length means nothing (virtio 1.2 §5.1.6.2).
    fn train(&mut self, p: &Packet<'_>, ip: &Ip, buffer: &mut [u8], cx: &mut Cx) {
        let Some(&[s0, s1, d0, d1, ..]) = p.transport().first_chunk::<8>() else {
            return cx.stats.drop(Reason::Malformed);
        };
        let ports = (u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1]));
        let size = u32::from(p.vnet.gso_size).max(1);
        let Some(buffer) = buffer.get_mut(..usize::from(p.vnet.gso_size)) else {
            return cx.stats.drop(Reason::Oversize);
        };
        if ip.len.saturating_sub(8).div_ceil(size) > super::udp::SUPER {
            return cx.stats.drop(Reason::Refused);
        }
        let mut at = 8;
        while at < ip.len {
            let n = p.copy(at, buffer);
            self.datagram(p, ip, (ports.0, ports.1, buffer.get(..n).unwrap_or_default()), cx);
            at += size;
        }
    }

    fn datagram(&mut self, p: &Packet<'_>, ip: &Ip, (from, to, payload): (u16, u16, &[u8]), cx: &mut Cx) {
        let now = cx.now;
        match (to, ip.src) {
            (dhcp4::SERVER, _) if self.conf.v4.is_none() || !self.conf.has(Service::Dhcp4) => {
                cx.stats.drop(Reason::Unknown);
            }
            (dhcp6::SERVER, _) if !self.conf.has(Service::Dhcp6) => cx.stats.drop(Reason::Unknown),
            (dhcp4::SERVER, _) => {
                let seen = self.dhcp4.take(&self.conf, payload, now, &mut self.frame);
                self.done(seen, cx);
            }
            (dhcp6::SERVER, IpAddr::V6(src)) if !src.is_multicast() && !src.is_unspecified() => {
                let seen = self.dhcp6.take(&self.conf, (p.mac, src), payload, now, &mut self.frame);
                self.done(seen, cx);
            }
            (_, src) => {
                // Nobody answers to a group, to nobody, or to ourselves.
                if src.is_multicast() || src.is_unspecified() || from == 0 || self.conf.owns(src) {
                    return cx.stats.drop(Reason::Source);
                }
                let at = (SocketAddr::new(src, from), SocketAddr::new(ip.dst, to));
                let asker = Asker { mac: p.mac, at: at.0, to: at.1 };
                if to == tftp::SERVER {
                    return self.tftp.take(asker, payload, cx);
                }
                match cx.policy.may_ask(Proto::Udp) {
                    Verdict::Refuse if !cx.restrict => errors::refuse(cx, p, ip.dst, Unreachable::Prohibited),
                    Verdict::Drop => cx.stats.drop(Reason::Denied),
                    _ => self.dns.ask(asker, payload, cx),
                }
            }
        }
    }
}

/// Ports and payload of a UDP datagram, whose length may be less than there is, never more.
fn datagram(message: &[u8]) -> Option<(u16, u16, &[u8])> {
    let mut r = Reader::new(message);
    let (from, to, len) = (r.u16()?, r.u16()?, r.u16()?);
    r.u16()?;
    let payload = r.take(usize::from(len).checked_sub(8)?)?;
    Some((from, to, payload))
}

/// The host has a way to IPv6's wide world, as far as its routes say. (Nothing is sent.)
fn uplink(cx: &Cx) -> bool {
    let connects = || {
        let fd = sock::new(Speaks::Udp, true)?;
        sock::connect(fd.as_fd(), SocketAddr::new(AFAR.into(), 9))
    };
    cx.net.v6.is_some() && !cx.restrict && connects().is_ok()
}

impl Room for Services {
    fn take(&mut self, p: &Packet<'_>, cx: &mut Cx) {
        if !p.mac.is_station() {
            return cx.stats.drop(Reason::Source);
        }
        let Some(ip) = p.ip else {
            let seen = arp::take(&self.conf, p.head, &mut self.frame);
            return self.done(seen, cx);
        };
        let joined = p.vnet.gso() == GSO_UDP_L4;
        if !joined && usize::try_from(ip.len).is_ok_and(|n| n > MESSAGE) {
            return cx.stats.drop(Reason::Oversize);
        }
        let mut copy = std::mem::take(&mut self.message);
        if joined {
            self.train(p, &ip, &mut copy, cx);
            self.message = copy;
            return;
        }
        let n = p.copy(0, &mut copy);
        let message = copy.get(..n).unwrap_or_default();
        if ip.proto == ICMPV6 {
            self.neighbour(p, &ip, message, cx);
        } else {
            match datagram(message) {
                Some(d) => self.datagram(p, &ip, d, cx),
                None => cx.stats.drop(Reason::Malformed),
            }
        }
        self.message = copy;
    }

    fn ready(&mut self, at: Token, _ready: Ready, cx: &mut Cx) {
        self.dns.ready(at, cx);
    }

    fn tick(&mut self, at: Token, cx: &mut Cx) {
        match at.kind {
            ADVERTISE_TICK => {
                self.uplink = (uplink(cx), cx.now);
                if cx.net.guest_mac.is_some() {
                    self.advertise(cx);
                }
                self.wind(cx);
            }
            DNS_TICK => self.dns.tick(cx),
            _ => self.tftp.tick(cx),
        }
    }
}
