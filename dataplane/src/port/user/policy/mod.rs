//! Whom a guest may reach, and who may reach it: asked before any socket is made.
//!
//! A list of rules, the first that fits decides; what no rule fits is allowed. The preset's rules stand behind the
//! user's. What is judged is where the host would go: what the guest sends to the network's `host` address is judged as
//! the loopback address that it stands for. Whether an address is one of the host's own is not known here: whoever asks
//! brings somebody who knows ([`Own`]), who is asked only where a rule depends on it.
//!
//! The network's own resolver is a destination of its own ([`Policy::may_ask`]): it is not at the address of whom it asks.
//!
//! Trust: the guest chooses the address, in whatever form. Promise: one IPv4 address in IPv6 clothes (mapped,
//! compatible, translated, NAT64, 6to4) gets no other verdict than the address itself would get.
#![forbid(unsafe_code)]

mod text;

use std::cell::OnceCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};
pub use text::WORDS;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// Echo requests, in either family. They have no ports: 0.
    Icmp,
}

/// Who begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// The guest; the address is where it wants to go.
    Out,
    /// Somebody who comes to a forward; the address is his.
    In,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// It may.
    Pass,
    /// It is told that it may not: a reset, or "administratively prohibited".
    Refuse,
    /// It is told nothing.
    Drop,
}

/// Addresses at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Where {
    /// All.
    Any,
    /// The host itself: its loopback, and every address that is its own. What comes there from the guest comes from the
    /// host, and no firewall's rule for strangers is asked.
    Host,
    /// The host by its loopback alone: what listens there believes to be among its own.
    Loopback,
    /// The network's own resolver.
    Dns,
    /// What the next router would not pass on, multicast included.
    LinkLocal,
    /// Where clouds give their machines credentials.
    Metadata,
    /// Networks of one's own (RFC 1918, 6598, 4193).
    Private,
    /// An IPv4 prefix.
    V4(Ipv4Addr, u8),
    /// An IPv6 prefix.
    V6(Ipv6Addr, u8),
}

/// One rule. All that it says must fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// What becomes of what fits.
    pub verdict: Verdict,
    /// Who begins.
    pub direction: Direction,
    /// What is spoken; none: anything.
    pub proto: Option<Proto>,
    /// The other end's address.
    pub at: Where,
    /// The other end's ports, both ends included; none: all.
    pub ports: Option<(u16, u16)>,
}

/// Rules that stand behind the user's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preset {
    /// A guest that is trusted no more than a stranger: not the host, not its link, not its cloud.
    #[default]
    Vm,
    /// QEMU's openness: everything that the host itself can reach.
    Qemu,
}

/// Ordered rules, and what becomes of what none fits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// The first that fits decides.
    pub rules: Vec<Rule>,
    /// Where none fits.
    pub otherwise: Verdict,
}

/// Says whether an address is one of the host's own.
pub type Own<'a> = &'a dyn Fn(IpAddr) -> bool;

/// Where names are asked for.
const DNS: u16 = 53;

/// Cloud metadata services outside of 169.254.0.0/16 and fe80::/10, as the clouds document them: Amazon, Alibaba, Oracle,
/// Azure;
const METADATA4: [Ipv4Addr; 4] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
    Ipv4Addr::new(168, 63, 129, 16),
];
/// Amazon's two (machines, EKS' pods), Google, Oracle, Scaleway, Akamai, Alibaba.
const METADATA6: [Ipv6Addr; 7] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe),
    Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42),
    Ipv6Addr::new(0xfd00, 0xa9fe, 0xa9fe, 0, 0, 0, 0, 1),
    Ipv6Addr::new(0xfd00, 0x100, 0, 0, 0, 0, 0x100, 0x200),
];

impl Preset {
    /// Its name in the options.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "vm" => Some(Self::Vm),
            "qemu" => Some(Self::Qemu),
            _ => None,
        }
    }

    /// Its rules.
    #[must_use]
    pub fn rules(self) -> Vec<Rule> {
        let deny =
            |at| Rule { verdict: Verdict::Refuse, direction: Direction::Out, proto: None, at, ports: None };
        match self {
            Self::Vm => [Where::Host, Where::LinkLocal, Where::Metadata].map(deny).into(),
            Self::Qemu => Vec::new(),
        }
    }
}

impl Policy {
    /// The user's rules, and behind them the preset's. `restrict`: in front of all, the guest goes nowhere.
    #[must_use]
    pub fn new(rules: &[Rule], preset: Preset, restrict: bool) -> Self {
        let nowhere = Rule {
            verdict: Verdict::Refuse,
            direction: Direction::Out,
            proto: None,
            at: Where::Any,
            ports: None,
        };
        let first = restrict.then_some(nowhere).into_iter();
        let rules = first.chain(rules.iter().copied()).chain(preset.rules()).collect();
        Self { rules, otherwise: Verdict::Pass }
    }

    /// What becomes of a destination (as the host's kernel would see it) of the guest's.
    #[must_use]
    pub fn may(&self, proto: Proto, dst: SocketAddr, own: Own<'_>) -> Verdict {
        self.judge(Direction::Out, proto, dst, own)
    }

    /// What becomes of somebody at `from` who comes to a forward.
    #[must_use]
    pub fn may_enter(&self, proto: Proto, from: SocketAddr, own: Own<'_>) -> Verdict {
        self.judge(Direction::In, proto, from, own)
    }

    /// What becomes of a question to the network's own resolver. Rules of [`Where::Dns`] and of [`Where::Any`] are about
    /// it; those of addresses are not, whomever it asks in turn.
    #[must_use]
    pub fn may_ask(&self, proto: Proto) -> Verdict {
        let about = |r: &&Rule| {
            let names = matches!(r.at, Where::Dns | Where::Any);
            names && r.direction == Direction::Out && r.speaks(proto, DNS)
        };
        self.rules.iter().find(about).map_or(self.otherwise, |r| r.verdict)
    }

    fn judge(&self, direction: Direction, proto: Proto, at: SocketAddr, own: Own<'_>) -> Verdict {
        let verdict = |ip: IpAddr| {
            let known = OnceCell::new();
            let own = || *known.get_or_init(|| own(ip));
            let fits =
                |r: &&Rule| r.direction == direction && r.speaks(proto, at.port()) && r.at.holds(ip, &own);
            self.rules.iter().find(fits).map_or(self.otherwise, |r| r.verdict)
        };
        let (ip, inner) = plain(at.ip());
        let all = std::iter::once(ip).chain(inner.into_iter().flatten().map(IpAddr::V4));
        all.map(verdict).find(|v| *v != Verdict::Pass).unwrap_or(Verdict::Pass)
    }

    /// The ports to which TCP of the guest's, or of the resolver for it, can get at any address, in order; none: they are
    /// more than `most`.
    #[must_use]
    pub fn tcp_ports(&self, most: usize) -> Option<Vec<u16>> {
        let (mut open, mut reached) = (Ports::all(), Ports::default());
        for r in self.rules.iter().filter(|r| r.direction == Direction::Out && r.at != Where::Dns) {
            if !r.proto.is_none_or(|p| p == Proto::Tcp) {
                continue;
            }
            let range = r.ports.unwrap_or((0, u16::MAX));
            if r.verdict == Verdict::Pass {
                open.within(range).for_each(|r| reached.0.push(r));
            }
            if r.at == Where::Any {
                open = open.without(range);
            }
        }
        if self.otherwise == Verdict::Pass {
            reached.0.append(&mut open.0);
        }
        // What is asked for by UDP may be asked again by TCP.
        if [Proto::Tcp, Proto::Udp].iter().any(|p| self.may_ask(*p) == Verdict::Pass) {
            reached.0.push((DNS, DNS));
        }
        reached.list(most)
    }
}

/// Ranges of ports, both ends included.
#[derive(Debug, Default)]
struct Ports(Vec<(u16, u16)>);

impl Ports {
    fn all() -> Self {
        Self(vec![(0, u16::MAX)])
    }

    /// What of them is in a range.
    fn within(&self, (first, last): (u16, u16)) -> impl Iterator<Item = (u16, u16)> {
        self.0.iter().map(move |(a, b)| (*a.max(&first), *b.min(&last))).filter(|(a, b)| a <= b)
    }

    fn without(&self, (first, last): (u16, u16)) -> Self {
        let below = first.checked_sub(1).into_iter().flat_map(|to| self.within((0, to)));
        let above = last.checked_add(1).into_iter().flat_map(|from| self.within((from, u16::MAX)));
        Self(below.chain(above).collect())
    }

    /// One by one, unless they are more than `most`.
    fn list(mut self, most: usize) -> Option<Vec<u16>> {
        self.0.sort_unstable();
        let mut all: Vec<u16> = Vec::new();
        for (a, b) in self.0 {
            let from = all.last().map_or(a, |n| a.max(n.saturating_add(1)));
            let more = if from <= b && all.last() != Some(&u16::MAX) { usize::from(b - from) + 1 } else { 0 };
            if all.len() + more > most {
                return None;
            }
            all.extend((from..=b).take(more));
        }
        Some(all)
    }
}

/// The address itself, and the IPv4 addresses that somebody on its way could make of it.
fn plain(ip: IpAddr) -> (IpAddr, [Option<Ipv4Addr>; 4]) {
    let nothing = [None; 4];
    let IpAddr::V6(v6) = ip else { return (ip, nothing) };
    // The kernel itself takes this form for IPv4.
    if let Some(v4) = v6.to_ipv4_mapped() {
        return (v4.into(), nothing);
    }
    let [.., f, g, _, h, i, j, a, b, c, d] = v6.octets();
    let low = Some(Ipv4Addr::new(a, b, c, d));
    let inner = match v6.segments() {
        // Unspecified and loopback are addresses of their own.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => nothing,
        // IPv4-compatible (RFC 4291 §2.5.5.1); translated (RFC 2765); NAT64 (RFC 6052).
        [0, 0, 0, 0, 0, 0, _, _] | [0, 0, 0, 0, 0xffff, 0, _, _] | [0x64, 0xff9b, 0, 0, 0, 0, _, _] => {
            [low, None, None, None]
        }
        // NAT64 of one's own, with a prefix of any length in this one (RFC 8215; where the address is then: RFC 6052 §2.2).
        [0x64, 0xff9b, 1, ..] => {
            let four = |a, b, c, d| Some(Ipv4Addr::new(a, b, c, d)).filter(|_| a != 0);
            [low.filter(|a| !a.is_unspecified()), four(f, g, h, i), four(g, h, i, j), four(h, i, j, a)]
        }
        // 6to4 (RFC 3056).
        [0x2002, a, b, ..] => {
            [Some(Ipv4Addr::from_bits(u32::from(a) << 16 | u32::from(b))), None, None, None]
        }
        _ => nothing,
    };
    (ip, inner)
}

impl Rule {
    /// It is about this protocol and port.
    fn speaks(&self, proto: Proto, port: u16) -> bool {
        let port_fits = match (self.ports, proto) {
            (None, _) => true,
            (Some(_), Proto::Icmp) => false,
            (Some((first, last)), _) => (first..=last).contains(&port),
        };
        self.proto.is_none_or(|p| p == proto) && port_fits
    }
}

impl Where {
    /// `own` says whether the address is one of the host's.
    fn holds(self, ip: IpAddr, own: &dyn Fn() -> bool) -> bool {
        match (self, ip) {
            (Self::Any, _) => true,
            // It has no address.
            (Self::Dns, _) => false,
            (Self::Host, _) => Self::Loopback.holds(ip, own) || own(),
            // A connection to 0.0.0.0 or :: goes to the loopback.
            (Self::Loopback, IpAddr::V4(a)) => a.is_loopback() || a.octets().first() == Some(&0),
            (Self::Loopback, IpAddr::V6(a)) => a.is_loopback() || a.is_unspecified(),
            (Self::LinkLocal, IpAddr::V4(a)) => {
                a.is_link_local() || a.is_broadcast() || prefix4(a, Ipv4Addr::new(224, 0, 0, 0), 24)
            }
            (Self::LinkLocal, IpAddr::V6(a)) => {
                // Multicast of interface and link scope (RFC 4291 §2.7).
                let near =
                    a.is_multicast() && matches!(a.octets(), [_, s, ..] if (1..=2).contains(&(s & 0xf)));
                a.is_unicast_link_local() || near
            }
            (Self::Metadata, IpAddr::V4(a)) => METADATA4.contains(&a),
            (Self::Metadata, IpAddr::V6(a)) => METADATA6.contains(&a),
            (Self::Private, IpAddr::V4(a)) => a.is_private() || prefix4(a, Ipv4Addr::new(100, 64, 0, 0), 10),
            (Self::Private, IpAddr::V6(a)) => a.is_unique_local(),
            (Self::V4(net, len), IpAddr::V4(a)) => prefix4(a, net, len),
            (Self::V6(net, len), IpAddr::V6(a)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(len.min(128))).unwrap_or(0);
                (a.to_bits() ^ net.to_bits()) & mask == 0
            }
            (Self::V4(..), IpAddr::V6(_)) | (Self::V6(..), IpAddr::V4(_)) => false,
        }
    }
}

fn prefix4(a: Ipv4Addr, net: Ipv4Addr, len: u8) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(len.min(32))).unwrap_or(0);
    (a.to_bits() ^ net.to_bits()) & mask == 0
}

#[cfg(test)]
mod tests;
