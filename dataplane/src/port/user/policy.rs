//! Whom a guest may reach, and who may reach it: asked before any socket is made.
//!
//! A list of rules, the first that fits decides; what no rule fits is allowed. The preset's rules stand behind the
//! user's. What is judged is where the host would go: what the guest sends to the network's `host` address is judged as
//! the loopback address that it stands for. A pure function, without I/O and without names.
//!
//! Trust: the guest chooses the address, in whatever form. Promise: one IPv4 address in IPv6 clothes (mapped,
//! compatible, translated, NAT64, 6to4) gets no other verdict than the address itself would get.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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
    /// The host itself by its loopback: what listens there believes to be among its own.
    Host,
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
    /// A guest that is trusted no more than a stranger: not the host's loopback, not its link, not its cloud.
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

/// Cloud metadata services outside of 169.254.0.0/16 (AWS, Google, Alibaba, Oracle, Azure, as they document them).
const METADATA4: [Ipv4Addr; 4] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(192, 0, 0, 192),
    Ipv4Addr::new(168, 63, 129, 16),
];
const METADATA6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

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
    pub fn may(&self, proto: Proto, dst: SocketAddr) -> Verdict {
        self.judge(Direction::Out, proto, dst)
    }

    /// What becomes of somebody at `from` who comes to a forward.
    #[must_use]
    pub fn may_enter(&self, proto: Proto, from: SocketAddr) -> Verdict {
        self.judge(Direction::In, proto, from)
    }

    fn judge(&self, direction: Direction, proto: Proto, at: SocketAddr) -> Verdict {
        let verdict = |ip: IpAddr| {
            let first = self.rules.iter().find(|r| r.direction == direction && r.fits(proto, ip, at.port()));
            first.map_or(self.otherwise, |r| r.verdict)
        };
        let (ip, inner) = plain(at.ip());
        match (verdict(ip), inner) {
            (Verdict::Pass, Some(v4)) => verdict(v4.into()),
            (verdict, _) => verdict,
        }
    }
}

/// The address itself, and the IPv4 address that somebody on its way would make of it.
fn plain(ip: IpAddr) -> (IpAddr, Option<Ipv4Addr>) {
    let IpAddr::V6(v6) = ip else { return (ip, None) };
    // The kernel itself takes this form for IPv4.
    if let Some(v4) = v6.to_ipv4_mapped() {
        return (v4.into(), None);
    }
    let [.., a, b, c, d] = v6.octets();
    let low = Some(Ipv4Addr::new(a, b, c, d));
    let inner = match v6.segments() {
        // Unspecified and loopback are addresses of their own.
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,
        // IPv4-compatible (RFC 4291 §2.5.5.1); translated (RFC 2765); NAT64 (RFC 6052, RFC 8215).
        [0, 0, 0, 0, 0, 0, _, _] | [0, 0, 0, 0, 0xffff, 0, _, _] | [0x64, 0xff9b, 0 | 1, 0, 0, 0, _, _] => {
            low
        }
        // 6to4 (RFC 3056).
        [0x2002, a, b, ..] => Some(Ipv4Addr::from_bits(u32::from(a) << 16 | u32::from(b))),
        _ => None,
    };
    (ip, inner)
}

impl Rule {
    fn fits(&self, proto: Proto, ip: IpAddr, port: u16) -> bool {
        let port_fits = match (self.ports, proto) {
            (None, _) => true,
            (Some(_), Proto::Icmp) => false,
            (Some((first, last)), _) => (first..=last).contains(&port),
        };
        self.proto.is_none_or(|p| p == proto) && port_fits && self.at.holds(ip)
    }
}

impl Where {
    fn holds(self, ip: IpAddr) -> bool {
        match (self, ip) {
            (Self::Any, _) => true,
            // A connection to 0.0.0.0 or :: goes to the loopback.
            (Self::Host, IpAddr::V4(a)) => a.is_loopback() || a.octets().first() == Some(&0),
            (Self::Host, IpAddr::V6(a)) => a.is_loopback() || a.is_unspecified(),
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

/// `[in:|out:][tcp:|udp:|icmp:]WHERE[:PORT[-PORT]]`, of what may pass.
impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut rest = text;
        let mut word = |words: &[&str]| {
            let n = words.iter().position(|w| rest.strip_prefix(w).is_some_and(|r| r.starts_with(':')))?;
            rest = rest.split_once(':').map_or("", |(_, r)| r);
            Some(n)
        };
        let direction = if word(&["out", "in"]) == Some(1) { Direction::In } else { Direction::Out };
        let proto = match word(&["tcp", "udp", "icmp"]) {
            None => None,
            Some(0) => Some(Proto::Tcp),
            Some(1) => Some(Proto::Udp),
            Some(_) => Some(Proto::Icmp),
        };
        let (at, ports) = match rest.strip_prefix('[') {
            Some(v6) => {
                let (at, ports) = v6.split_once(']').ok_or("']' is missing")?;
                let ports = match ports.strip_prefix(':') {
                    None if ports.is_empty() => None,
                    None => return Err(format!("'{ports}' is unexpected after ']'")),
                    ports => ports,
                };
                (six(at)?, ports)
            }
            None => match rest.split_once(':') {
                Some((_, more)) if more.contains(':') => {
                    return Err("an IPv6 address stands in brackets: [fd00::/8]:443".into());
                }
                Some((at, ports)) => (named(at)?, Some(ports)),
                None => (named(rest)?, None),
            },
        };
        let ports = ports.map(range).transpose()?;
        if ports.is_some() && proto == Some(Proto::Icmp) {
            return Err("icmp has no ports".into());
        }
        if ports.is_some() && direction == Direction::In {
            return Err("who comes does so from any port: a rule of what comes has no ports".into());
        }
        Ok(Self { verdict: Verdict::Pass, direction, proto, at, ports })
    }
}

fn named(text: &str) -> Result<Where, String> {
    Ok(match text {
        "any" => Where::Any,
        "host" => Where::Host,
        "link-local" => Where::LinkLocal,
        "metadata" => Where::Metadata,
        "private" => Where::Private,
        other => {
            let (ip, len) = prefix(other, 32)?;
            let ip: Ipv4Addr = ip.parse().map_err(|_| {
                format!("'{ip}' is no IPv4 address and none of any, host, link-local, metadata, private")
            })?;
            let beyond = ip.to_bits() & !u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            if beyond != 0 {
                return Err(format!("{ip} has bits beyond /{len}"));
            }
            Where::V4(ip, len)
        }
    })
}

fn six(text: &str) -> Result<Where, String> {
    let (ip, len) = prefix(text, 128)?;
    let ip: Ipv6Addr = ip.parse().map_err(|_| format!("'{ip}' is no IPv6 address"))?;
    let beyond = ip.to_bits() & !u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
    if beyond != 0 {
        return Err(format!("{ip} has bits beyond /{len}"));
    }
    Ok(Where::V6(ip, len))
}

fn prefix(text: &str, most: u8) -> Result<(&str, u8), String> {
    let Some((ip, len)) = text.split_once('/') else { return Ok((text, most)) };
    let number = len.parse::<u8>().ok().filter(|n| *n <= most && !len.starts_with('+'));
    number.map(|n| (ip, n)).ok_or_else(|| format!("/{len} is no length from 0 to {most}"))
}

fn range(text: &str) -> Result<(u16, u16), String> {
    let port = |t: &str| {
        let n = t.parse::<u16>().ok().filter(|n| *n > 0 && !t.starts_with('+'));
        n.ok_or_else(|| format!("'{t}' is no port from 1 to 65535"))
    };
    let (first, last) = match text.split_once('-') {
        None => (port(text)?, port(text)?),
        Some((a, b)) => (port(a)?, port(b)?),
    };
    if first > last { Err(format!("{first} is after {last}")) } else { Ok((first, last)) }
}

/// As it is read, with `allow=`, `deny=` or `drop=` before it.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.verdict {
            Verdict::Pass => "allow=",
            Verdict::Refuse => "deny=",
            Verdict::Drop => "drop=",
        })?;
        if self.direction == Direction::In {
            f.write_str("in:")?;
        }
        match self.proto {
            None => {}
            Some(Proto::Tcp) => f.write_str("tcp:")?,
            Some(Proto::Udp) => f.write_str("udp:")?,
            Some(Proto::Icmp) => f.write_str("icmp:")?,
        }
        match self.at {
            Where::Any => f.write_str("any")?,
            Where::Host => f.write_str("host")?,
            Where::LinkLocal => f.write_str("link-local")?,
            Where::Metadata => f.write_str("metadata")?,
            Where::Private => f.write_str("private")?,
            Where::V4(a, len) => write!(f, "{a}/{len}")?,
            Where::V6(a, len) => write!(f, "[{a}/{len}]")?,
        }
        match self.ports {
            None => Ok(()),
            Some((a, b)) if a == b => write!(f, ":{a}"),
            Some((a, b)) => write!(f, ":{a}-{b}"),
        }
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
