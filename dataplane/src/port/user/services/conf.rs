//! What the services are told once: addresses, names, what is booted. And names as the wire has them.
//!
//! Trust: the supervisor, which checked the user's options; names that do not fit a message are left out all the same.
//! Promise: option bodies that never change are made here, once.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netreeve_shared::mac::Mac;

use super::super::net::link_local;
use super::super::plan::{Boot, Plan, Service, V4, V6};
use super::bytes::n8;

/// Addresses that a guest can be given, in each family (QEMU's number).
pub const POOL: u8 = 16;
/// How long a lease lasts, in seconds (QEMU's).
pub const LEASE: u32 = 24 * 3600;

/// What of IPv4's pool has this number.
#[must_use]
pub fn lease4(v: &V4, number: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(v.dhcp_start).wrapping_add(number.into()))
}

/// The number of an address in IPv4's pool.
#[must_use]
pub fn number4(v: &V4, a: Ipv4Addr) -> Option<u8> {
    u8::try_from(u32::from(a).wrapping_sub(v.dhcp_start.into())).ok().filter(|n| *n < POOL)
}

/// What of IPv6's pool has this number: from `first` on, or `::15` as 10.0.2.15 is QEMU's for IPv4.
#[must_use]
pub fn lease6(v: &V6, first: Option<Ipv6Addr>, number: u8) -> Ipv6Addr {
    let mask = u128::MAX.checked_shl(128 - u32::from(v.len.min(128))).unwrap_or(0);
    let first = first.map_or(0x15, u128::from);
    let own = first.wrapping_add(number.into()) & !mask;
    Ipv6Addr::from(u128::from(v.prefix) & mask | own)
}

/// The number of an address in IPv6's pool.
#[must_use]
pub fn number6(v: &V6, first: Option<Ipv6Addr>, a: Ipv6Addr) -> Option<u8> {
    (0..POOL).find(|n| lease6(v, first, *n) == a)
}

/// What all services know.
#[derive(Clone, Debug)]
pub struct Conf {
    /// Our Ethernet address.
    pub mac: Mac,
    /// Our link-local address.
    pub link_local: Ipv6Addr,
    /// IPv4, if it is on.
    pub v4: Option<V4>,
    /// IPv6, if it is on.
    pub v6: Option<V6>,
    /// Largest IP packet in bytes on the guest's link.
    pub mtu: u16,
    /// The guest's name; empty: none.
    pub hostname: String,
    /// Its domain; empty: none.
    pub domain: String,
    /// Domains that it searches, each as on the wire (RFC 1035 §3.1), one behind the other.
    pub search: Vec<u8>,
    /// What it boots from.
    pub boot: Boot,
    /// The guest reaches nobody: it gets neither a router nor a name server.
    pub restrict: bool,
    /// More addresses that are ours (guestfwd).
    pub more: Vec<IpAddr>,
    /// What there is not.
    pub without: Vec<Service>,
    /// The first address of IPv6's pool; none: `::15` of the prefix, as 10.0.2.15 is QEMU's for IPv4.
    pub lease6: Option<Ipv6Addr>,
}

impl Conf {
    /// What a plan comes to.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        Self {
            mac: plan.mac,
            link_local: link_local(plan.mac),
            v4: plan.v4,
            v6: plan.v6,
            mtu: plan.mtu,
            hostname: plan.hostname.clone(),
            domain: plan.domain.clone(),
            search: wire_names(&plan.search),
            boot: plan.boot.clone(),
            restrict: plan.restrict,
            more: plan.guest_forwards.iter().map(|g| g.at.ip()).collect(),
            without: plan.without.clone(),
            lease6: plan.lease6,
        }
    }

    /// The guest finds this.
    #[must_use]
    pub fn has(&self, service: Service) -> bool {
        !self.without.contains(&service)
    }

    /// The guest is told who resolves names.
    #[must_use]
    pub fn names(&self) -> bool {
        !self.restrict && self.has(Service::Resolver)
    }

    /// The guest's name with its domain; empty: it has none.
    #[must_use]
    pub fn full_name(&self) -> String {
        match (self.hostname.is_empty(), self.domain.is_empty()) {
            (true, _) => String::new(),
            (_, true) => self.hostname.clone(),
            _ => format!("{}.{}", self.hostname, self.domain),
        }
    }

    /// The address is one of ours that the guest may speak to.
    #[must_use]
    pub fn owns(&self, a: IpAddr) -> bool {
        let named = match a {
            IpAddr::V4(a) => self.v4.is_some_and(|v| a == v.host || a == v.dns),
            IpAddr::V6(a) => self.v6.is_some_and(|v| a == v.host || a == v.dns || a == self.link_local),
        };
        named || self.more.contains(&a)
    }

    /// The numbers of IPv4 addresses that guests can have, as bits.
    #[must_use]
    pub fn usable4(&self) -> u16 {
        let Some(v) = self.v4 else { return 0 };
        let ends = [v.broadcast(), v.net];
        let good = |a| v.holds(a) && !self.owns(IpAddr::V4(a)) && (v.prefix > 30 || !ends.contains(&a));
        (0..POOL).filter(|n| good(lease4(&v, *n))).fold(0, |bits, n| bits | 1 << n)
    }

    /// The same for IPv6.
    #[must_use]
    pub fn usable6(&self) -> u16 {
        let Some(v) = self.v6 else { return 0 };
        let good = |n: u8| {
            let a = lease6(&v, self.lease6, n);
            // A narrow prefix gives one address several numbers: the first counts.
            a != v.prefix && !self.owns(IpAddr::V6(a)) && number6(&v, self.lease6, a) == Some(n)
        };
        (0..POOL).filter(|n| good(*n)).fold(0, |bits, n| bits | 1 << n)
    }
}

/// A domain name as on the wire: each label behind its length, and an empty one at the end. None: it is no name.
#[must_use]
pub fn wire_name(text: &str) -> Option<Vec<u8>> {
    let text = text.strip_suffix('.').unwrap_or(text);
    let mut out = Vec::with_capacity(text.len() + 2);
    for label in text.split('.') {
        if label.is_empty() || label.len() > 63 {
            return None;
        }
        out.push(n8(label.len()));
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    (out.len() <= 255).then_some(out)
}

/// Most bytes of a search list; what is longer would not leave room for anything else.
const SEARCH: usize = 900;

/// A search list as on the wire. Names that are none, and those beyond 900 bytes, are left out.
#[must_use]
pub fn wire_names(names: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    for name in names.iter().filter_map(|n| wire_name(n)) {
        if out.len() + name.len() <= SEARCH {
            out.extend_from_slice(&name);
        }
    }
    out
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// QEMU's network.
    pub(in crate::port::user::services) fn qemu() -> Conf {
        Conf::new(&Plan::qemu())
    }

    #[test]
    fn names_are_labels() {
        assert_eq!(wire_name("a.bc.").unwrap(), b"\x01a\x02bc\0");
        assert_eq!(wire_name("a").unwrap(), b"\x01a\0");
        for bad in ["", ".", "a..b", ".a", &"x".repeat(64), &"abc.".repeat(64)] {
            assert_eq!(wire_name(bad), None, "{bad}");
        }
        let names = ["ok.example", "..", "b"].map(String::from);
        assert_eq!(wire_names(&names), b"\x02ok\x07example\0\x01b\0");
        assert!(wire_names(&vec!["abcdefgh.example".to_owned(); 200]).len() <= 900);
    }

    #[test]
    fn networks_hold_what_is_in_them() {
        let c = qemu();
        let (v4, v6) = (c.v4.unwrap(), c.v6.unwrap());
        assert!(v4.holds("10.0.2.255".parse().unwrap()) && !v4.holds("10.0.3.1".parse().unwrap()));
        assert_eq!(v4.broadcast(), Ipv4Addr::new(10, 0, 2, 255));
        assert!(v6.holds("fec0::ffff".parse().unwrap()) && !v6.holds("fec0:0:0:1::".parse().unwrap()));
        assert_eq!(lease6(&v6, None, 0), "fec0::15".parse::<Ipv6Addr>().unwrap());
        let narrow = V6 { len: 126, ..v6 };
        assert!((0..POOL).all(|n| narrow.holds(lease6(&narrow, None, n))));
        assert_eq!((c.usable4(), c.usable6()), (0xffff, 0xffff));
        let given = Conf { lease6: "fec0::a:ffff".parse().ok(), ..c.clone() };
        assert_eq!(lease6(&v6, given.lease6, 0), "fec0::a:ffff".parse::<Ipv6Addr>().unwrap());
        assert_eq!(
            (number6(&v6, given.lease6, "fec0::b:0".parse().unwrap()), given.usable6()),
            (Some(1), 0xffff)
        );
        let near = V4 { dhcp_start: Ipv4Addr::new(10, 0, 2, 1), ..v4 };
        assert_eq!(Conf { v4: Some(near), ..c.clone() }.usable4(), !0b110);
        let end = V4 { dhcp_start: Ipv4Addr::new(10, 0, 2, 250), ..v4 };
        assert_eq!(Conf { v4: Some(end), ..c.clone() }.usable4(), 0b11111);
        assert_eq!(Conf { v6: Some(narrow), ..c.clone() }.usable6(), 0b1);
        assert_eq!(number4(&v4, lease4(&v4, 15)), Some(15));
        assert_eq!(number4(&v4, Ipv4Addr::new(10, 0, 2, 31)), None);
        assert!(c.owns("10.0.2.3".parse().unwrap()) && !c.owns("10.0.2.15".parse().unwrap()));
        assert!(c.owns("fe80::5055:aff:fe00:202".parse().unwrap()) && !c.owns("fec0::15".parse().unwrap()));
    }
}
