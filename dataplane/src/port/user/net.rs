//! Who is who on the guest's link: our addresses, and the guests' as they are learned from their frames.
//!
//! Trust: none in guests: what one says of itself decides only where its own answers go. Promise: bounded; what is
//! learned last pushes out what was not heard of for the longest time.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netreeve_shared::mac::Mac;

use super::plan::{self, Plan, Service, V4, V6};

/// Most guest addresses that are known at a time.
const NEIGHBOURS: usize = 64;

/// The link as it is now.
#[derive(Debug)]
pub struct Net {
    /// IPv4, if there is any.
    pub v4: Option<V4>,
    /// IPv6, if there is any.
    pub v6: Option<V6>,
    /// Our Ethernet address.
    pub mac: Mac,
    /// Our link-local address, made of [`Net::mac`] (RFC 4291, appendix A).
    pub link_local: Ipv6Addr,
    /// The MTU in bytes.
    pub mtu: u16,
    /// The host's resolvers, in order.
    pub resolvers: Vec<SocketAddr>,
    /// The gateway's address leads to the host's loopback.
    loopback: bool,
    /// The guest is told of no router, and answers nobody but who is on its link.
    restrict: bool,
    /// Addresses that mean others.
    aliases: Vec<(IpAddr, IpAddr)>,
    /// [`Net::mac`] is another than the plan's ([`Net::make_way`]).
    made_way: bool,
    /// The last guest that was heard of.
    pub guest_mac: Option<Mac>,
    /// Newest first.
    neighbours: Vec<(IpAddr, Mac)>,
}

impl Net {
    /// The link of a plan.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        Self {
            v4: plan.v4,
            v6: plan.v6,
            mac: plan.mac,
            link_local: link_local(plan.mac),
            mtu: plan.mtu,
            resolvers: plan.resolvers.clone(),
            loopback: !plan.without.contains(&Service::Host),
            restrict: plan.restrict,
            aliases: plan.aliases.clone(),
            made_way: false,
            guest_mac: None,
            neighbours: Vec::with_capacity(NEIGHBOURS),
        }
    }

    /// Takes another Ethernet address than the guest's, if somebody who is the first to be heard of has ours, and says to be
    /// at `from`: whoever starts a passt by an old libvirt (9.0) gives it the guest's as `--mac-addr`. Once: what we say
    /// then may come back as well. True: it is another now.
    pub fn make_way(&mut self, from: IpAddr) -> bool {
        // From one of our own addresses, or once there is somebody else, it is our own frame that has come back, or a lie.
        if self.made_way || self.guest_mac.is_some() || self.is_ours(from) {
            return false;
        }
        self.made_way = true;
        let Mac([a, b, c, d, e, f]) = plan::MAC;
        self.mac = if self.mac == plan::MAC { Mac([a, b, c, d, e, f ^ 1]) } else { plan::MAC };
        self.link_local = link_local(self.mac);
        true
    }

    /// A guest's address, as a frame of its says.
    pub fn learn(&mut self, ip: IpAddr, mac: Mac) {
        if !mac.is_station()
            || mac == self.mac
            || self.is_ours(ip)
            || ip.is_unspecified()
            || ip.is_multicast()
        {
            return;
        }
        self.guest_mac = Some(mac);
        match self.neighbours.iter().position(|(known, _)| *known == ip) {
            Some(0) => {}
            Some(i) => {
                self.neighbours.get_mut(..=i).unwrap_or_default().rotate_right(1);
            }
            None => {
                self.neighbours.truncate(NEIGHBOURS - 1);
                self.neighbours.insert(0, (ip, mac));
            }
        }
        if let Some(first) = self.neighbours.first_mut() {
            first.1 = mac;
        }
    }

    /// Where frames for an address of a guest's go. None: nobody has been heard of at it.
    #[must_use]
    pub fn mac_of(&self, ip: IpAddr) -> Option<Mac> {
        self.neighbours.iter().find(|(known, _)| *known == ip).map(|(_, mac)| *mac)
    }

    /// The guest address of this family that was heard of last.
    #[must_use]
    pub fn guest(&self, like: IpAddr) -> Option<IpAddr> {
        let fits = |ip: &IpAddr| match (ip, like) {
            (IpAddr::V4(_), IpAddr::V4(_)) => true,
            (IpAddr::V6(a), IpAddr::V6(_)) => !a.is_unicast_link_local(),
            _ => false,
        };
        self.neighbours.iter().map(|(ip, _)| *ip).find(fits)
    }

    /// One of our own addresses on the link.
    #[must_use]
    pub fn is_ours(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(a) => self.v4.is_some_and(|v| a == v.host || a == v.dns),
            IpAddr::V6(a) => self.v6.is_some_and(|v| a == v.host || a == v.dns || a == self.link_local),
        }
    }

    /// The guest means the host by it.
    #[must_use]
    pub fn is_host(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(a) => self.v4.is_some_and(|v| a == v.host),
            IpAddr::V6(a) => self.v6.is_some_and(|v| a == v.host || a == self.link_local),
        }
    }

    /// Names are resolved there.
    #[must_use]
    pub fn is_dns(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(a) => self.v4.is_some_and(|v| a == v.dns),
            IpAddr::V6(a) => self.v6.is_some_and(|v| a == v.dns),
        }
    }

    /// The host as the guest sees it, in the family of `like`.
    #[must_use]
    pub fn host(&self, like: IpAddr) -> Option<IpAddr> {
        match like {
            IpAddr::V4(_) => self.v4.map(|v| v.host.into()),
            IpAddr::V6(_) => self.v6.map(|v| v.host.into()),
        }
    }

    /// Where on the host's side a destination of the guest's is: the host is its loopback, if it is anything, names are the first resolver's,
    /// an alias is what it means (unspecified: the host's address to the world, which [`Cx::route`] finds), anything else is where it says. None: nowhere (no resolver; an address of the guest's own network that nobody has;
    /// broadcast and multicast).
    ///
    /// [`Cx::route`]: super::room::Cx::route
    #[must_use]
    pub fn route(&self, dst: SocketAddr) -> Option<SocketAddr> {
        let ip = dst.ip();
        if self.is_host(ip) {
            let loopback: IpAddr = match ip {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            };
            return self.loopback.then(|| SocketAddr::new(loopback, dst.port()));
        }
        if self.is_dns(ip) {
            return self.resolvers.first().copied().filter(|_| dst.port() == 53);
        }
        if let Some((_, meant)) = self.aliases.iter().find(|(alias, _)| *alias == ip) {
            return Some(SocketAddr::new(*meant, dst.port()));
        }
        let nowhere = match ip {
            IpAddr::V4(a) => {
                a.is_broadcast()
                    || a.is_multicast()
                    || a.octets().first() == Some(&0)
                    || self.v4.is_none_or(|v| v.holds(a))
            }
            IpAddr::V6(a) => {
                a.is_multicast()
                    || a.is_unspecified()
                    || a.is_unicast_link_local()
                    || self.v6.is_none_or(|v| v.holds(a))
            }
        };
        (!nowhere).then_some(dst)
    }

    /// How the guest sees somebody on the host's side who comes to it: as he is, unless that is an address which the
    /// guest could not answer (loopback, or of its own network, or any where it has no way out): then he is the host.
    #[must_use]
    pub fn seen_as(&self, from: SocketAddr) -> Option<SocketAddr> {
        let ip = from.ip().to_canonical();
        let unanswerable = match ip {
            IpAddr::V4(a) => {
                a.is_loopback()
                    || a.is_unspecified()
                    || a.is_link_local()
                    || self.v4.is_none_or(|v| v.holds(a))
            }
            IpAddr::V6(a) => {
                a.is_loopback()
                    || a.is_unspecified()
                    || a.is_unicast_link_local()
                    || self.v6.is_none_or(|v| v.holds(a))
            }
        };
        let ip = if unanswerable || self.restrict { self.host(ip)? } else { ip };
        Some(SocketAddr::new(ip, from.port()))
    }
}

/// The link-local address of an Ethernet address (RFC 4291, appendix A: modified EUI-64).
#[must_use]
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let Mac([a, b, c, d, e, f]) = mac;
    let be = u16::from_be_bytes;
    Ipv6Addr::new(0xfe80, 0, 0, 0, be([a ^ 2, b]), be([c, 0xff]), be([0xfe, d]), be([e, f]))
}
