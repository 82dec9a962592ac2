//! Rules as they are written: `[in:|out:][tcp:|udp:|icmp:]WHERE[:PORT[-PORT]]`.
//!
//! Trust: the text is the user's. Promise: what is read is written alike, and what is not understood is refused.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::{Direction, Proto, Rule, Verdict, Where};

/// Places that have a name.
pub const WORDS: &str = "any, host, loopback, dns, link-local, metadata, private";

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
        if at == Where::Dns && (direction == Direction::In || proto == Some(Proto::Icmp) || ports.is_some()) {
            return Err(
                "dns is where the guest asks for names, by udp or tcp at port 53: give no more than that"
                    .into(),
            );
        }
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
        "loopback" => Where::Loopback,
        "dns" => Where::Dns,
        "link-local" => Where::LinkLocal,
        "metadata" => Where::Metadata,
        "private" => Where::Private,
        other => {
            let (ip, len) = prefix(other, 32)?;
            let ip: Ipv4Addr =
                ip.parse().map_err(|_| format!("'{ip}' is no IPv4 address and none of {WORDS}"))?;
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
            Where::Loopback => f.write_str("loopback")?,
            Where::Dns => f.write_str("dns")?,
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
