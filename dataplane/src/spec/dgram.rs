//! `dgram`: a frame in each datagram, over UDP, multicast, a UNIX socket or an inherited descriptor, as netdev or as
//! device.
//!
//! Which of `local` and `remote` are needed is QEMU's rule (net/dgram.c), word by word; IPv6, `strict=`, `finish=` and the
//! abstract namespace are ours.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

use crate::fault::{Exit, Fault};
use crate::spec::addr::{self, MAX_PATH};
use crate::spec::fields::Fields;
use crate::spec::stream;

/// A UNIX socket's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UnixName {
    /// A file.
    Path(PathBuf),
    /// A name in the abstract namespace: its bytes.
    Abstract(Vec<u8>),
}

/// A host and a port, of a family or of any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Name or number; empty: any address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Use IPv4 addresses.
    pub ipv4: bool,
    /// Use IPv6 addresses.
    pub ipv6: bool,
}

/// Where datagrams come from and go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ends {
    /// UDP: our address, the peer's.
    Udp(Host, Host),
    /// A multicast group, and the address of the interface to use.
    Multicast(SocketAddr, Option<IpAddr>),
    /// UNIX sockets: ours, the peer's.
    Unix(UnixName, UnixName),
    /// A UNIX socket to which a VMM comes, and is known by where it sends from.
    Visitors(PathBuf),
    /// A datagram socket that this process inherited, connected.
    Fd(i32),
}

/// A datagram port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dgram {
    /// Where.
    pub ends: Ends,
    /// Take datagrams from the peer's address only.
    pub strict: bool,
    /// The peer leaves checksums and segmentation undone; the MTU in bytes that segments are made for.
    pub undone: Option<u16>,
}

/// One address as it was written.
enum End {
    Inet(Host),
    Unix(UnixName),
    Fd(i32),
}

const FIX: &str = "give local.type=inet,local.host=,local.port=,remote.type=inet,remote.host=,remote.port= or \
                   local.type=unix,local.path=,remote.type=unix,remote.path=";

/// Reads the options of `dgram`, for a device or not.
///
/// # Errors
/// QEMU's complaints and rules.
pub fn read(f: &mut Fields, device: bool) -> Result<Dgram, Fault> {
    let (remote, local) = (end(f, "remote")?, end(f, "local")?);
    let strict = f.flag("strict")?;
    let undone = stream::undone(f)?;
    if let Some(End::Inet(host)) = &remote
        && let Some(group) = group(f, host)?
    {
        let interface = match local {
            None => None,
            Some(End::Inet(at)) => Some(interface(f, &at.host)?),
            Some(End::Fd(_)) => {
                let fix = "give local.type=inet with the interface's address, or leave local out";
                return Err(f.fault("local.type=fd with a multicast remote is refused: QEMU puts a socket of its own in its place", fix));
            }
            Some(End::Unix(_)) => return Err(f.fault("only support inet or fd type for local", FIX)),
        };
        no_strict(f, strict, "a group has many members")?;
        return Ok(Dgram { ends: Ends::Multicast(group, interface), strict: false, undone });
    }
    let ends = match (local, remote) {
        (None, _) => return Err(f.fault("dgram requires local= parameter", FIX)),
        (Some(End::Fd(_)), Some(_)) => return Err(f.fault("don't set remote with local.fd", FIX)),
        (Some(End::Fd(n)), None) => Ends::Fd(n),
        (Some(End::Unix(UnixName::Path(path))), None) if device => Ends::Visitors(path),
        (Some(_), None) => {
            return Err(f.fault("type=inet or type=unix requires remote parameter", FIX));
        }
        (Some(End::Inet(l)), Some(End::Inet(r))) => Ends::Udp(l, r),
        (Some(End::Unix(l)), Some(End::Unix(r))) => Ends::Unix(l, r),
        _ => return Err(f.fault("remote and local types must be the same", FIX)),
    };
    match ends {
        Ends::Fd(_) => no_strict(f, strict, "a connected socket has one peer")?,
        Ends::Unix(..) | Ends::Visitors(_) if strict == Some(false) => {
            return Err(f.fault("strict=off is refused: a UNIX socket has one peer", "leave it out"));
        }
        _ => {}
    }
    Ok(Dgram { ends, strict: strict.unwrap_or(false), undone })
}

fn no_strict(f: &Fields, strict: Option<bool>, why: &str) -> Result<(), Fault> {
    match strict {
        None => Ok(()),
        Some(_) => Err(f.fault(format!("strict= is refused: {why}"), "leave it out")),
    }
}

fn end(f: &mut Fields, which: &str) -> Result<Option<End>, Fault> {
    if f.has(which) {
        let why = format!("Invalid parameter type for '{which}', expected: object");
        return Err(f.fault(why, FIX));
    }
    if !f.has_group(which) {
        // So that they are among the keys that are known.
        f.text(&format!("{which}.type"));
        return Ok(None);
    }
    let key = |name: &str| format!("{which}.{name}");
    match f.need(&key("type"), FIX)?.as_str() {
        "inet" => inet(f, which).map(|h| Some(End::Inet(h))),
        "unix" => unix(f, which).map(|u| Some(End::Unix(u))),
        "fd" => {
            let text = f.need(&key("str"), "give the number of an inherited descriptor")?;
            addr::fd_number(f, &key("str"), &text).map(|n| Some(End::Fd(n)))
        }
        "vsock" => Err(f.fault("only support inet or unix type for local", FIX)),
        other => Err(f.bad_value("type", other, "the types are inet, unix and fd")),
    }
}

fn inet(f: &mut Fields, which: &str) -> Result<Host, Fault> {
    let key = |name: &str| format!("{which}.{name}");
    let host = f.need(&key("host"), &format!("give {which}.host=HOST"))?;
    f.need(&key("port"), &format!("give {which}.port=PORT"))?;
    let port = f.number16(&key("port"), 0, u16::MAX)?.unwrap_or(0);
    if f.flag(&key("numeric"))? == Some(true) && !host.is_empty() && host.parse::<IpAddr>().is_err() {
        return Err(f.bad_value(&key("host"), &host, "numeric=on wants an address, not a name"));
    }
    let (v4, v6) = (f.flag(&key("ipv4"))?, f.flag(&key("ipv6"))?);
    let (ipv4, ipv6) = (v4.unwrap_or(v6 != Some(true)), v6.unwrap_or(v4 != Some(true)));
    if !ipv4 && !ipv6 {
        return Err(f.fault("Cannot disable IPv4 and IPv6 at same time", ""));
    }
    for name in ["to", "keep-alive", "keep-alive-count", "keep-alive-idle", "keep-alive-interval", "mptcp"] {
        f.refuse(&key(name), "datagrams have no connection", "leave it out")?;
    }
    Ok(Host { host, port, ipv4, ipv6 })
}

fn unix(f: &mut Fields, which: &str) -> Result<UnixName, Fault> {
    let key = |name: &str| format!("{which}.{name}");
    let path = f.need(&key("path"), &format!("give {which}.path=PATH"))?;
    let in_abstract = f.flag(&key("abstract"))?.unwrap_or(false);
    let tight = f.flag(&key("tight"))?.unwrap_or(true);
    if path.is_empty() || path.len() > MAX_PATH {
        let why = format!("UNIX socket path '{path}' is too long");
        return Err(f.fault(why, format!("Path must be less than {} bytes", MAX_PATH + 1)));
    }
    if !in_abstract {
        return Ok(UnixName::Path(PathBuf::from(path)));
    }
    let mut name = path.into_bytes();
    if !tight {
        name.resize(MAX_PATH, 0);
    }
    Ok(UnixName::Abstract(name))
}

/// The multicast group, if the host is one.
fn group(f: &Fields, host: &Host) -> Result<Option<SocketAddr>, Fault> {
    match host.host.parse::<IpAddr>() {
        Ok(ip) if ip.is_multicast() && host.port == 0 => {
            Err(f.fault("a multicast group needs a port", "give remote.port=PORT"))
        }
        Ok(ip) if ip.is_multicast() => Ok(Some(SocketAddr::new(ip, host.port))),
        _ => Ok(None),
    }
}

/// The address of the interface that a group is joined on.
///
/// # Errors
/// It is none.
pub(crate) fn interface(f: &Fields, text: &str) -> Result<IpAddr, Fault> {
    text.parse().map_err(|_| {
        let why = format!("localaddr '{text}' is not a valid IPv4 address");
        f.fault(why, "give the address of the interface to use")
    })
}

impl Host {
    /// Its first address of the families wanted.
    ///
    /// # Errors
    /// There is none.
    pub fn resolve(&self, what: &str, like: Option<SocketAddr>) -> Result<SocketAddr, Fault> {
        let fits = |a: &SocketAddr| {
            let wanted = if a.is_ipv4() { self.ipv4 } else { self.ipv6 };
            wanted && like.is_none_or(|l| l.is_ipv4() == a.is_ipv4())
        };
        let any: [IpAddr; 2] =
            [std::net::Ipv4Addr::UNSPECIFIED.into(), std::net::Ipv6Addr::UNSPECIFIED.into()];
        let found = if self.host.is_empty() {
            Ok(any.map(|ip| SocketAddr::new(ip, self.port)).into_iter().find(fits))
        } else {
            (self.host.as_str(), self.port).to_socket_addrs().map(|mut all| all.find(fits))
        };
        let fault = |why: &dyn fmt::Display| {
            let fix = "give an address in numbers, of the other end's family";
            Fault::new(Exit::Unavailable, format!("{what}: finding the address of {self}"), why, fix)
        };
        found.map_err(|e| fault(&e))?.ok_or_else(|| fault(&"no address of this family"))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for UnixName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(p) => write!(f, "{}", p.display()),
            Self::Abstract(n) => write!(f, "@{}", String::from_utf8_lossy(n).trim_end_matches('\0')),
        }
    }
}
