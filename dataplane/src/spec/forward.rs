//! Forwards of a `user` network, as QEMU writes them, and as they are given to a running one.
//!
//! | option | text |
//! |---|---|
//! | `hostfwd` | `[PROTO]:[HOSTADDR][%INTERFACE]:HOSTPORT[-LAST]-[GUESTADDR]:GUESTPORT`, `unix:PATH-[GUESTADDR]:GUESTPORT` |
//! | `guestfwd` | `[tcp]:[SERVER]:PORT-tcp:HOST:PORT`, `[tcp]:[SERVER]:PORT-unix:PATH` |
//!
//! `PROTO` is `tcp` or `udp`, perhaps with `+try` (ports that cannot be had are left out), `+freebind` (the address need
//! not be there) and `+ns`: it listens at a loopback address inside the network namespace that is the guest (pasta's), and leads
//! out, to the host's loopback. These, ranges, interfaces, `*` (every address of both families) and IPv6 addresses, which stand in
//! brackets, are ours; QEMU has none of them. Promise: QEMU's words for what QEMU refuses as well.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use netreeve_shared::ifname::IfName;

use crate::port::user::plan::{V4, V6, Way};
use crate::spec::addr::address;
use crate::spec::fields::integer;

/// Why a text is none, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bad {
    /// QEMU's words.
    pub why: String,
    /// What to do.
    pub fix: String,
}

/// Where a forward listens by TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind {
    /// The address and the first port; port 0: the kernel's choice.
    pub at: SocketAddr,
    /// The last port; the same as the first: no range.
    pub last: u16,
    /// It is every address of both families (and `at` has IPv6's).
    pub both: bool,
    /// Only what comes in by this interface.
    pub device: Option<IfName>,
    /// Ports that cannot be had are left out.
    pub willing: bool,
    /// The address need not be one of the host's.
    pub free: bool,
    /// It is inside the guest's namespace, and leads to the host.
    pub inside: bool,
}

impl From<SocketAddr> for Bind {
    fn from(at: SocketAddr) -> Self {
        Self { at, last: at.port(), both: false, device: None, willing: false, free: false, inside: false }
    }
}

impl Bind {
    /// How many ports.
    #[must_use]
    pub fn ports(&self) -> usize {
        usize::from(self.last.saturating_sub(self.at.port())) + 1
    }
}

/// Where a forward listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// TCP.
    Tcp(Bind),
    /// UDP.
    Udp(Bind),
    /// A UNIX stream socket, absolute.
    Unix(PathBuf),
}

/// From the host to the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostForward {
    /// Where it listens.
    pub listen: Listen,
    /// Where its connections go, those of a range's first port. The unspecified address of IPv6: to whoever is the guest. Of one
    /// that listens inside: where on the host's loopback.
    pub guest: SocketAddr,
}

/// What a guest finds at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A TCP server: host and port.
    Tcp(String, u16),
    /// A UNIX stream socket that listens.
    Unix(PathBuf),
}

/// From the guest to something on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestForward {
    /// Where the guest finds it.
    pub at: SocketAddr,
    /// What it finds.
    pub to: Target,
}

const HOSTFWD: &str = "hostfwd=tcp:127.0.0.1:8080-:80 for instance";

impl HostForward {
    /// Reads one for a network of these addresses.
    ///
    /// # Errors
    /// QEMU's words.
    pub fn read(text: &str, v4: Option<&V4>, v6: Option<&V6>) -> Result<Self, Bad> {
        let bad = |reason: &str| Bad {
            why: format!("Invalid host forwarding rule '{text}' ({reason})"),
            fix: HOSTFWD.into(),
        };
        let (proto, rest) = text.split_once(':').ok_or_else(|| bad("No : separators"))?;
        let (listen, guest) = match proto.split('+').next().unwrap_or_default() {
            "" | "tcp" | "udp" => {
                let (host, rest) = part(rest, ':').ok_or_else(|| bad("Missing : separator"))?;
                let bind = bind(proto, host).map_err(bad)?;
                let (port, rest) = rest.split_once('-').ok_or_else(|| bad("Bad host port separator"))?;
                // No address of a guest's holds a '-'.
                let (last, rest) = rest.split_once('-').map_or((None, rest), |(l, r)| (Some(l), r));
                (listen(proto, bind, port, last).ok_or_else(|| bad("Bad host port"))?, rest)
            }
            "unix" if proto == "unix" => {
                // The guest's end has no '-', a path may.
                let (path, rest) = rest.rsplit_once('-').ok_or_else(|| bad("Missing - separator"))?;
                (Listen::Unix(absolute(path).ok_or_else(|| bad("Bad unix socket path"))?), rest)
            }
            _ => return Err(bad("Bad protocol name")),
        };
        let (to, port) = part(guest, ':').ok_or_else(|| bad("Missing guest address"))?;
        let to = match to {
            "" => None,
            given => Some(address(given).ok_or_else(|| bad("Bad guest address"))?),
        };
        let more = u16::try_from(listen.ports() - 1).unwrap_or(u16::MAX);
        let port = number(port).filter(|n| *n > 0 && n.checked_add(more).is_some());
        let port = port.ok_or_else(|| bad("Bad guest port"))?;
        if let Some(at) = listen.inside() {
            let to = to.unwrap_or(loopback(at));
            if !to.is_loopback() || to.is_ipv4() != at.is_ipv4() {
                return Err(bad(
                    "Bad host address: from a namespace it is the loopback's, of the same family",
                ));
            }
            return Ok(Self { listen, guest: SocketAddr::new(to, port) });
        }
        // QEMU's 0.0.0.0 is nobody's address as well.
        let to = match to.filter(|ip| !ip.is_unspecified()) {
            Some(ip) => ip,
            None => v4.map_or(Ipv6Addr::UNSPECIFIED.into(), |v| v.dhcp_start.into()),
        };
        let off = if to.is_ipv4() { v4.is_none() } else { v6.is_none() };
        if off {
            return Err(bad("Bad guest address: its family is off"));
        }
        Ok(Self { listen, guest: SocketAddr::new(to, port) })
    }
}

impl Listen {
    /// Reads where a forward listens, to name it: as in a rule, or `unix:PATH`.
    ///
    /// # Errors
    /// QEMU's words.
    pub fn read(text: &str) -> Result<Self, Bad> {
        let bad = || Bad { why: format!("invalid format '{text}'"), fix: "as in tcp:127.0.0.1:8080".into() };
        let (proto, rest) = text.split_once(':').ok_or_else(bad)?;
        if proto == "unix" {
            return absolute(rest).map(Self::Unix).ok_or_else(bad);
        }
        let (host, port) = part(rest, ':').ok_or_else(bad)?;
        let (port, last) = port.split_once('-').map_or((port, None), |(p, l)| (p, Some(l)));
        listen(proto, bind(proto, host).map_err(|_| bad())?, port, last).ok_or_else(bad)
    }

    /// How many sockets it takes.
    #[must_use]
    pub fn ports(&self) -> usize {
        match self {
            Self::Tcp(b) | Self::Udp(b) => b.ports(),
            Self::Unix(_) => 1,
        }
    }

    /// What is handed over for it.
    #[must_use]
    pub fn way(&self) -> Way {
        match self {
            Self::Tcp(b) if b.inside => Way::OutTcp,
            Self::Udp(b) if b.inside => Way::OutUdp,
            Self::Tcp(_) => Way::Tcp,
            Self::Udp(_) => Way::Udp,
            Self::Unix(_) => Way::Unix,
        }
    }

    /// Its address, if it is inside the guest's namespace.
    #[must_use]
    pub fn inside(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(b) | Self::Udp(b) if b.inside => Some(b.at.ip()),
            _ => None,
        }
    }

    /// Both are the same place, however it is taken.
    #[must_use]
    pub fn is_at(&self, other: &Self) -> bool {
        let place = |b: &Bind| Bind { willing: false, free: false, ..*b };
        match (self, other) {
            (Self::Tcp(a), Self::Tcp(b)) | (Self::Udp(a), Self::Udp(b)) => place(a) == place(b),
            (a, b) => a == b,
        }
    }
}

/// `PROTO` and `[HOSTADDR][%INTERFACE]`, the port left open.
fn bind(proto: &str, host: &str) -> Result<Bind, &'static str> {
    let mut words = proto.split('+');
    if !matches!(words.next(), Some("" | "tcp" | "udp")) {
        return Err("Bad protocol name");
    }
    let (host, device) = host.split_once('%').map_or((host, None), |(h, d)| (h, Some(d)));
    let device = device.map(str::parse).transpose().map_err(|_| "Bad host interface")?;
    let ip = match host {
        "" => Some(Ipv4Addr::UNSPECIFIED.into()),
        "*" => Some(Ipv6Addr::UNSPECIFIED.into()),
        given => address(given),
    };
    let ip = ip.ok_or("Bad host address")?;
    let at = SocketAddr::new(ip, 0);
    let mut bind = Bind { both: host == "*", device, ..at.into() };
    for word in words {
        match word {
            "try" => bind.willing = true,
            "freebind" => bind.free = true,
            "ns" => bind.inside = true,
            _ => return Err("Bad protocol name"),
        }
    }
    if bind.inside {
        if host.is_empty() {
            bind.at.set_ip(loopback(ip));
        }
        if bind.both || bind.free || bind.device.is_some() || !bind.at.ip().is_loopback() {
            return Err("Bad address: inside a namespace it is the loopback's");
        }
    }
    Ok(bind)
}

/// Of the same family.
fn loopback(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }
}

/// With its ports.
fn listen(proto: &str, mut bind: Bind, port: &str, last: Option<&str>) -> Option<Listen> {
    let first = number(port)?;
    bind.at.set_port(first);
    bind.last = match last {
        None => first,
        Some(last) => number(last).filter(|last| first > 0 && *last >= first)?,
    };
    Some(if proto.starts_with("udp") { Listen::Udp(bind) } else { Listen::Tcp(bind) })
}

impl GuestForward {
    /// Reads one for a network of these addresses.
    ///
    /// # Errors
    /// QEMU's words.
    pub fn read(text: &str, v4: Option<&V4>, v6: Option<&V6>) -> Result<Self, Bad> {
        let fix = "guestfwd=tcp:10.0.2.100:80-tcp:127.0.0.1:8080 for instance, or ...-unix:PATH";
        let bad = |why: &str, fix: &str| Bad { why: format!("{why} '{text}'"), fix: fix.into() };
        let invalid = || bad("Invalid guest forwarding rule", fix);
        let rest = text.strip_prefix("tcp:").or_else(|| text.strip_prefix(':')).ok_or_else(invalid)?;
        let (server, rest) = part(rest, ':').ok_or_else(invalid)?;
        let (port, to) = rest.split_once('-').ok_or_else(invalid)?;
        let port = port.parse::<u16>().ok().filter(|n| *n > 0).ok_or_else(invalid)?;
        let server = match (server, v4) {
            ("", None) => return Err(invalid()),
            ("", Some(v)) => Ipv4Addr::from_bits(v.net.to_bits() | 0x0204 & !v.mask().to_bits()).into(),
            (given, _) => address(given).ok_or_else(invalid)?,
        };
        let free = match server {
            IpAddr::V4(a) => v4.is_some_and(|v| v.holds(a) && a != v.host && a != v.dns),
            IpAddr::V6(a) => v6.is_some_and(|v| v.holds(a) && a != v.host && a != v.dns),
        };
        if !free {
            let fix = "the address must be one of the guest's network, and neither host= nor dns=";
            return Err(bad("Conflicting/invalid host:port in guest forwarding rule", fix));
        }
        if to.starts_with("cmd:") {
            let fix = "start the program yourself behind a socket, as in socat UNIX-LISTEN:PATH EXEC:PROGRAM, and give \
                       ...-unix:PATH";
            return Err(bad(
                "cmd: is refused, it would start a program for the guest: guest forwarding rule",
                fix,
            ));
        }
        let target = target(to).ok_or_else(|| Bad {
            why: format!("Could not open guest forwarding device '{to}'"),
            fix: "here it is tcp:HOST:PORT or unix:PATH".into(),
        });
        Ok(Self { at: SocketAddr::new(server, port), to: target? })
    }
}

fn target(text: &str) -> Option<Target> {
    if let Some(path) = text.strip_prefix("unix:") {
        // QEMU's character devices take options behind the path; none of them means anything here.
        return (!path.is_empty() && !path.contains(',')).then(|| Target::Unix(path.into()));
    }
    let (host, port) = part(text.strip_prefix("tcp:")?, ':')?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    let port = port.parse::<u16>().ok().filter(|n| *n > 0)?;
    // No name and no address has a bracket.
    (!host.is_empty() && !host.contains(['[', ']'])).then(|| Target::Tcp(host.to_owned(), port))
}

/// Up to `separator`, brackets passed over; and behind it.
fn part(text: &str, separator: char) -> Option<(&str, &str)> {
    if !text.starts_with('[') {
        return text.split_once(separator);
    }
    let end = text.find(']')? + 1;
    let behind = text.get(end..)?;
    // An interface may follow.
    let device = if behind.starts_with('%') { behind.find(separator)? } else { 0 };
    Some((text.get(..end + device)?, behind.get(device..)?.strip_prefix(separator)?))
}

fn number(text: &str) -> Option<u16> {
    integer(text).and_then(|n| u16::try_from(n).ok())
}

fn absolute(path: &str) -> Option<PathBuf> {
    path.starts_with('/').then(|| path.into())
}

impl Bind {
    fn show(&self, proto: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(proto)?;
        f.write_str(if self.inside { "+ns" } else { "" })?;
        f.write_str(if self.willing { "+try" } else { "" })?;
        f.write_str(if self.free { "+freebind" } else { "" })?;
        match self.at.ip() {
            _ if self.both => f.write_str(":*"),
            IpAddr::V4(a) => write!(f, ":{a}"),
            IpAddr::V6(a) => write!(f, ":[{a}]"),
        }?;
        self.device.map_or(Ok(()), |d| write!(f, "%{d}"))?;
        write!(f, ":{}", self.at.port())?;
        if self.ports() > 1 { write!(f, "-{}", self.last) } else { Ok(()) }
    }
}

/// As it is read.
impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(bind) => bind.show("tcp", f),
            Self::Udp(bind) => bind.show("udp", f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// As it is read.
impl fmt::Display for HostForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.listen, self.guest)
    }
}

/// As it is read.
impl fmt::Display for GuestForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.to {
            Target::Tcp(host, port) if host.contains(':') => write!(f, "tcp:{}-tcp:[{host}]:{port}", self.at),
            Target::Tcp(host, port) => write!(f, "tcp:{}-tcp:{host}:{port}", self.at),
            Target::Unix(path) => write!(f, "tcp:{}-unix:{}", self.at, path.display()),
        }
    }
}
