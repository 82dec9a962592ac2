//! passt's port grammar: `none`, or `[ADDRESS[%INTERFACE]/]ENTRY,...`, each entry one of
//!
//! | entry | means |
//! |---|---|
//! | `FIRST[-LAST][:[TOADDRESS/]TO[-TOLAST]]`, `FIRST[-LAST]:TOADDRESS` | these ports |
//! | `~FIRST[-LAST]` | not these |
//! | `all[:TOADDRESS]`, nothing, or exclusions alone | every other port that is not ephemeral and can be had |
//! | `auto` | pasta: of these ports (or every one), those at which somebody listens inside |
//!
//! Those that lead from a namespace to the host (pasta's) listen at the namespace's loopback and go to the host's, so they have
//! no addresses; their `auto` is about who listens on the host.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use netreeve_shared::ifname::IfName;
use serde::{Deserialize, Serialize};

use super::bad;
use crate::fault::Fault;

/// Ports that are root's, unless the kernel was told otherwise.
const LOW: u16 = 1024;
/// The ports that the kernel gives to whoever asks for any, where it does not say.
const EPHEMERAL: (u16, u16) = (32_768, 60_999);

/// What specifications are read for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(in crate::cli) struct Scene {
    /// UDP; else TCP.
    pub(in crate::cli) udp: bool,
    /// They listen inside the namespace, and lead to the host.
    pub(in crate::cli) inside: bool,
    /// The guest has IPv4.
    pub(in crate::cli) v4: bool,
    /// The guest has IPv6.
    pub(in crate::cli) v6: bool,
    /// The address need not be the host's.
    pub(in crate::cli) free: bool,
    /// `auto` means something.
    pub(in crate::cli) auto: bool,
    /// Ports that the kernel gives to whoever asks for any.
    pub(in crate::cli) ephemeral: (u16, u16),
}

impl Scene {
    fn proto(&self) -> &'static str {
        if self.udp { "udp" } else { "tcp" }
    }
}

/// Ports in a row and where they lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    /// First and last.
    ports: (u16, u16),
    /// The first one's.
    to: u16,
    guest: Option<IpAddr>,
    /// Those that cannot be had are left out.
    willing: bool,
}

/// A specification, read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::cli) struct Ports {
    hosts: Vec<String>,
    rows: Vec<Row>,
    /// They are forwarded while somebody listens inside.
    pub(in crate::cli) auto: bool,
}

/// The kernel's own ports.
pub(in crate::cli) fn ephemeral() -> (u16, u16) {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut words = text.split_whitespace().map(str::parse::<u16>);
    match (words.next(), words.next()) {
        (Some(Ok(first)), Some(Ok(last))) if first <= last => (first, last),
        _ => EPHEMERAL,
    }
}

/// Reads a specification. Without an address ports are bound in each family that is on.
///
/// # Errors
/// It is none.
pub(in crate::cli) fn read(spec: &str, scene: &Scene) -> Result<Ports, Fault> {
    let option = format!("--{}-{} {spec}", scene.proto(), if scene.inside { "ns" } else { "ports" });
    let fix = match scene.inside {
        true => "as in 5432, 8080:80, 8000-8010:9000-9010, all,~25, auto or none",
        false => "as in 22, 2222:22, 8000-8010:9000-9010, 127.0.0.1/8080, %eth0/80, all,~25 or none",
    };
    let fault = |why: &str| bad(&option, why, fix);
    if spec == "none" {
        return Ok(Ports::default());
    }
    let (at, list) = match spec.split_once('/') {
        Some((at, list)) => match place(at) {
            Some(at) => (Some(at), list),
            // It may belong to a target.
            None if at.contains(':') && at.starts_with(|c: char| c.is_ascii_digit()) => (None, spec),
            None => return Err(fault("what stands before '/' is no address and no interface")),
        },
        None => (None, spec),
    };
    if scene.inside && at.is_some() {
        return Err(fault(
            "inside a namespace it listens at the loopback, and at no other address or interface",
        ));
    }
    let mut ports = Ports { hosts: hosts(at, scene), ..Ports::default() };
    let mut without: Vec<(u16, u16)> = Vec::new();
    let mut all = None;
    for item in list.split(',').filter(|i| !i.is_empty()) {
        if let Some(excluded) = item.strip_prefix('~') {
            without.push(range(excluded).ok_or_else(|| fault("an exclusion is no port and no range"))?);
        } else if item == "auto" {
            ports.auto = true;
        } else if let Some(to) = item.strip_prefix("all").filter(|t| t.is_empty() || t.starts_with(':')) {
            let to = to.strip_prefix(':').map(guest);
            all = Some(to.map(|a| a.ok_or_else(|| fault("the target is no address"))).transpose()?);
        } else {
            ports.rows.push(row(item).map_err(fault)?);
        }
    }
    if scene.inside && (all.flatten().is_some() || ports.rows.iter().any(|r| r.guest.is_some())) {
        return Err(fault("from a namespace it leads to the host's loopback, and to no other address"));
    }
    if ports.auto && !scene.auto {
        return Err(fault("nobody looks into a virtual machine for ports (pasta has auto)"));
    }
    if ports.rows.is_empty() || all.is_some() {
        let row = Row { ports: (1, u16::MAX), to: 1, guest: all.flatten(), willing: true };
        // What is named has a target of its own.
        let named = ports.rows.iter().map(|r| r.ports);
        let taken: Vec<(u16, u16)> = named.chain([scene.ephemeral]).collect();
        ports.rows.extend(less(&[row], &taken));
    }
    ports.rows = joined(less(&ports.rows, &without));
    if ports.rows.is_empty() { Err(fault("it excludes every port")) } else { Ok(ports) }
}

impl Ports {
    /// `hostfwd` texts.
    pub(in crate::cli) fn rules(&self, scene: &Scene) -> Vec<String> {
        self.rows.iter().flat_map(|r| self.row(r, scene)).collect()
    }

    /// Those that lead to this port, if they can be had.
    pub(in crate::cli) fn rules_to(&self, target: u16, scene: &Scene) -> Vec<String> {
        let leads = |r: &Row| {
            let on = target.checked_sub(r.to).filter(|on| *on <= r.ports.1 - r.ports.0)?;
            let port = r.ports.0 + on;
            Some(Row { ports: (port, port), to: target, willing: true, ..*r })
        };
        self.rows.iter().filter_map(leads).flat_map(|r| self.row(&r, scene)).collect()
    }

    /// The same at the addresses of one family, of those that are inside.
    pub(in crate::cli) fn of_family(&self, six: bool) -> Self {
        let hosts = self.hosts.iter().filter(|h| h.starts_with('[') == six).cloned().collect();
        Self { hosts, ..self.clone() }
    }

    /// There are some.
    pub(in crate::cli) fn any(&self) -> bool {
        !self.rows.is_empty()
    }

    /// First and last ports of those in a row.
    pub(in crate::cli) fn ranges(&self) -> impl Iterator<Item = (u16, u16)> {
        self.rows.iter().map(|r| r.ports)
    }

    fn row(&self, r: &Row, scene: &Scene) -> Vec<String> {
        let (first, last) = r.ports;
        let words = [
            scene.proto(),
            if scene.inside { "+ns" } else { "" },
            if r.willing { "+try" } else { "" },
            if scene.free && !scene.inside { "+freebind" } else { "" },
        ];
        let range = if last > first { format!("-{last}") } else { String::new() };
        let guest = r.guest.map_or(String::new(), |a| match a {
            IpAddr::V4(a) => a.to_string(),
            IpAddr::V6(a) => format!("[{a}]"),
        });
        let text = |host: &String| format!("{}:{host}:{first}{range}-{guest}:{}", words.concat(), r.to);
        match self.hosts.as_slice() {
            // One that is root's comes from the helper, one family at a time.
            [any] if any == "*" && first < LOW && first == last && !r.willing && !scene.free => {
                ["0.0.0.0".to_owned(), "[::]".to_owned()].iter().map(text).collect()
            }
            hosts => hosts.iter().map(text).collect(),
        }
    }
}

/// `[ADDRESS][%INTERFACE]`.
fn place(text: &str) -> Option<(Option<IpAddr>, Option<IfName>)> {
    let (address, device) = text.split_once('%').map_or((text, None), |(a, d)| (a, Some(d)));
    let device = device.map(str::parse).transpose().ok()?;
    match address {
        "" => device.map(|d| (None, Some(d))),
        given => Some((Some(guest(given)?), device)),
    }
}

/// An address, IPv6's perhaps in brackets.
fn guest(text: &str) -> Option<IpAddr> {
    text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text).parse().ok()
}

/// What it is in a `hostfwd`.
fn hosts(at: Option<(Option<IpAddr>, Option<IfName>)>, scene: &Scene) -> Vec<String> {
    if scene.inside {
        let both = [(scene.v4, "127.0.0.1"), (scene.v6, "[::1]")];
        return both.iter().filter(|(on, _)| *on).map(|(_, a)| (*a).to_owned()).collect();
    }
    let (ip, device) = at.unwrap_or_default();
    let host = match (ip, scene.v4, scene.v6) {
        (Some(IpAddr::V4(a)), ..) => a.to_string(),
        (Some(IpAddr::V6(a)), ..) => format!("[{a}]"),
        (None, true, true) => "*".to_owned(),
        (None, true, false) => "0.0.0.0".to_owned(),
        (None, false, _) => "[::]".to_owned(),
    };
    vec![device.map_or(host.clone(), |d| format!("{host}%{d}"))]
}

/// `FIRST[-LAST][:[TOADDRESS/]TO[-TOLAST]]` or `FIRST[-LAST]:TOADDRESS`.
fn row(item: &str) -> Result<Row, &'static str> {
    let (from, to) = item.split_once(':').map_or((item, None), |(f, t)| (f, Some(t)));
    let ports = range(from).ok_or("there is no port, or no range of ports")?;
    let (address, targets) = match to {
        None => (None, None),
        Some(to) => match (to.rsplit_once('/'), range(to)) {
            (Some((address, targets)), _) => (Some(address), Some(targets)),
            (None, Some(_)) => (None, Some(to)),
            (None, None) => (Some(to), None),
        },
    };
    let guest =
        address.map(|a| guest(a).ok_or("the target is no port, no range and no address")).transpose()?;
    let target = targets.map_or(Some(ports), range).ok_or("the target is no port and no range")?;
    if ports.1 - ports.0 != target.1 - target.0 {
        return Err("the ranges before and behind ':' differ in length");
    }
    Ok(Row { ports, to: target.0, guest, willing: false })
}

fn range(text: &str) -> Option<(u16, u16)> {
    let port = |t: &str| t.parse::<u16>().ok().filter(|n| *n > 0 && !t.starts_with('+'));
    let (first, last) = match text.split_once('-') {
        None => (port(text)?, port(text)?),
        Some((a, b)) => (port(a)?, port(b)?),
    };
    (first <= last).then_some((first, last))
}

/// What is left of rows without these ports.
fn less(rows: &[Row], without: &[(u16, u16)]) -> Vec<Row> {
    let mut rows = rows.to_vec();
    for (first, last) in without {
        let cut = |r: Row| {
            let (a, b) = r.ports;
            let below = first.checked_sub(1).map(|end| b.min(end)).filter(|end| a <= *end);
            let above = last.checked_add(1).map(|begin| a.max(begin)).filter(|begin| *begin <= b);
            let below = below.map(|end| Row { ports: (a, end), ..r });
            let above = above.map(|begin| Row { ports: (begin, b), to: r.to + (begin - a), ..r });
            below.into_iter().chain(above)
        };
        rows = rows.into_iter().flat_map(cut).collect();
    }
    rows
}

/// Rows that go on where others end become one, and what was said twice is said once.
fn joined(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by_key(|r| r.ports);
    rows.dedup();
    let mut out: Vec<Row> = Vec::new();
    for r in rows {
        match out.last_mut() {
            Some(l)
                if (l.guest, l.willing) == (r.guest, r.willing)
                    && l.ports.1.checked_add(1) == Some(r.ports.0)
                    && l.to.checked_add(r.ports.0 - l.ports.0) == Some(r.to) =>
            {
                l.ports.1 = r.ports.1;
            }
            _ => out.push(r),
        }
    }
    out
}
