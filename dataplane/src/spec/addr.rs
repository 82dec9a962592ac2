//! QEMU's `SocketAddress` (`qapi/sockets.json`): `addr.type=inet|unix|vsock|fd` and what belongs to each; and addresses as
//! its older options write them.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use crate::fault::Fault;
use crate::spec::fields::{Fields, U32, integer};

/// Longest path of a unix socket in bytes (`sun_path` is 108 with its NUL, unix(7)).
pub const MAX_PATH: usize = 107;

/// Where a stream is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Addr {
    /// TCP.
    Inet(Inet),
    /// A unix socket in the file system.
    Unix(PathBuf),
    /// A unix socket in the abstract namespace: the name's bytes, padded to 107 if QEMU would (`tight=off`).
    Abstract(Vec<u8>),
    /// A virtual machine's socket (vsock(7)): context and port.
    Vsock(u32, u32),
    /// A descriptor that this process inherited.
    Fd(i32),
}

/// A TCP address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inet {
    /// Name or number; empty: any address, for a server.
    pub host: String,
    /// Port, and the last port to try for a server (`to`).
    pub port: u16,
    /// Last port that a server tries.
    pub to: Option<u16>,
    /// Use IPv4 addresses.
    pub ipv4: bool,
    /// Use IPv6 addresses.
    pub ipv6: bool,
    /// How its connections are.
    pub options: TcpOptions,
    /// What the host's name was found to be, if that is not to be asked again: the ports mean nothing.
    pub found: Vec<SocketAddr>,
}

/// How TCP's connections are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpOptions {
    /// A peer that is silent is asked whether it is there (`SO_KEEPALIVE`).
    pub keep_alive: bool,
    /// How often it is asked in vain; 0: as the kernel has it. This and the following only with `keep_alive`, as in QEMU.
    pub count: u32,
    /// After how many seconds; 0: as the kernel has it.
    pub idle: u32,
    /// And then every so many seconds; 0: as the kernel has it.
    pub interval: u32,
    /// By Multipath TCP, where the peer speaks that (RFC 8684).
    pub mptcp: bool,
}

/// The most that the kernel takes of probes, and of seconds before and between them (`MAX_TCP_KEEPCNT`,
/// `MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPINTVL`).
const MAX_PROBES: u32 = 127;
const MAX_SECONDS: u32 = 32767;

/// Takes the group `addr.*`.
///
/// # Errors
/// QEMU's complaints.
pub fn take(f: &mut Fields) -> Result<Addr, Fault> {
    const FIX: &str = "give addr.type=unix,addr.path=PATH or addr.type=inet,addr.host=HOST,addr.port=PORT";
    if f.has("addr") {
        return Err(f.fault("Invalid parameter type for 'addr', expected: object", FIX));
    }
    if !f.has_group("addr") {
        return Err(f.fault("Parameter 'addr' is missing", FIX));
    }
    match f.need("addr.type", FIX)?.as_str() {
        "inet" => inet(f).map(Addr::Inet),
        "unix" => unix(f),
        "vsock" => vsock(f),
        "fd" => {
            let text = f.need("addr.str", "give the number of an inherited descriptor")?;
            fd_number(f, "addr.str", &text).map(Addr::Fd)
        }
        other => Err(f.bad_value("type", other, "addr.type is inet, unix, vsock or fd")),
    }
}

fn inet(f: &mut Fields) -> Result<Inet, Fault> {
    let host = f.need("addr.host", "give addr.host=HOST")?;
    f.need("addr.port", "give addr.port=PORT")?;
    let port = f.number16("addr.port", 0, u16::MAX)?.unwrap_or(0);
    let to = f.number16("addr.to", port, u16::MAX)?;
    let numeric = f.flag("addr.numeric")?.unwrap_or(false);
    if numeric && !host.is_empty() && host.parse::<std::net::IpAddr>().is_err() {
        return Err(f.bad_value("addr.host", &host, "addr.numeric=on wants an address, not a name"));
    }
    // QEMU's rule: naming one family alone turns the other off.
    let (v4, v6) = (f.flag("addr.ipv4")?, f.flag("addr.ipv6")?);
    let (ipv4, ipv6) = (v4.unwrap_or(v6 != Some(true)), v6.unwrap_or(v4 != Some(true)));
    if !ipv4 && !ipv6 {
        return Err(f.fault("Cannot disable IPv4 and IPv6 at same time", ""));
    }
    let options = TcpOptions {
        keep_alive: f.flag("addr.keep-alive")?.unwrap_or(false),
        count: f.number32("addr.keep-alive-count", 0, MAX_PROBES)?.unwrap_or(0),
        idle: f.number32("addr.keep-alive-idle", 0, MAX_SECONDS)?.unwrap_or(0),
        interval: f.number32("addr.keep-alive-interval", 0, MAX_SECONDS)?.unwrap_or(0),
        mptcp: f.flag("addr.mptcp")?.unwrap_or(false),
    };
    Ok(Inet { host, port, to, ipv4, ipv6, options, found: Vec::new() })
}

fn unix(f: &mut Fields) -> Result<Addr, Fault> {
    let path = f.need("addr.path", "give addr.path=PATH")?;
    let in_abstract = f.flag("addr.abstract")?.unwrap_or(false);
    let tight = f.flag("addr.tight")?.unwrap_or(true);
    if path.is_empty() || path.len() > MAX_PATH {
        let why = format!("UNIX socket path '{path}' is too long or empty");
        return Err(f.fault(why, format!("a path has 1 to {MAX_PATH} bytes")));
    }
    if !in_abstract {
        return Ok(Addr::Unix(PathBuf::from(path)));
    }
    let mut name = path.into_bytes();
    if !tight {
        name.resize(MAX_PATH, 0);
    }
    Ok(Addr::Abstract(name))
}

fn vsock(f: &mut Fields) -> Result<Addr, Fault> {
    f.need("addr.cid", "give addr.cid=CID")?;
    f.need("addr.port", "give addr.port=PORT")?;
    let cid = f.number32("addr.cid", 0, u32::MAX)?.unwrap_or(0);
    let port = f.number32("addr.port", 0, u32::MAX)?.unwrap_or(0);
    Ok(Addr::Vsock(cid, port))
}

/// A path for a unix socket, from the key `path`.
///
/// # Errors
/// It is empty or too long.
pub fn path(f: &mut Fields) -> Result<Option<PathBuf>, Fault> {
    let Some(path) = f.text("path") else { return Ok(None) };
    if path.is_empty() || path.len() > MAX_PATH {
        let why = format!("UNIX socket path '{path}' is too long or empty");
        return Err(f.fault(why, format!("a path has 1 to {MAX_PATH} bytes")));
    }
    Ok(Some(PathBuf::from(path)))
}

/// The number of an inherited descriptor. 0 to 2 are the standard streams and never a port.
///
/// # Errors
/// It is no number, or one of those.
pub fn fd_number(f: &Fields, key: &str, text: &str) -> Result<i32, Fault> {
    match text.parse::<i32>() {
        Ok(n) if n > 2 => Ok(n),
        Ok(_) => Err(f.bad_value(key, text, "descriptors 0 to 2 are the standard streams")),
        Err(_) => {
            let fix =
                "give the number of a descriptor that netreeve inherits; there is no monitor for getfd names";
            Err(f.fault(format!("{key}={text} is no descriptor number"), fix))
        }
    }
}

/// `reconnect-ms`, or the older `reconnect` in seconds; in milliseconds, none: do not dial again.
///
/// # Errors
/// QEMU's: both at once, or together with a server.
pub fn reconnect(f: &mut Fields, server: bool) -> Result<Option<u32>, Fault> {
    let seconds = f.number("reconnect", 0, U32 / 1000)?;
    let ms = f.number32("reconnect-ms", 0, u32::MAX)?;
    if seconds.is_some() && ms.is_some() {
        return Err(f.fault("'reconnect' and 'reconnect-ms' are mutually exclusive", "give reconnect-ms"));
    }
    if server && (seconds.is_some() || ms.is_some()) {
        let why = "'reconnect' and 'reconnect-ms' options are incompatible with socket in server mode";
        return Err(f.fault(why, "a server takes the next connection by itself"));
    }
    let seconds = seconds.and_then(|s| u32::try_from(s * 1000).ok());
    Ok(ms.or(seconds).filter(|n| *n != 0))
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(i) if i.host.contains(':') => write!(f, "tcp:[{}]:{}", i.host, i.port),
            Self::Inet(i) => write!(f, "tcp:{}:{}", i.host, i.port),
            Self::Unix(p) => write!(f, "unix:{}", p.display()),
            Self::Abstract(n) => {
                write!(f, "unix:@{}", String::from_utf8_lossy(n).trim_end_matches('\0'))
            }
            Self::Vsock(cid, port) => write!(f, "vsock:{cid}:{port}"),
            Self::Fd(n) => write!(f, "fd:{n}"),
        }
    }
}

/// An IPv4 address as inet_aton(3) reads it: one to four numbers as C writes them, the last one filling what is left.
pub(super) fn inet_aton(text: &str) -> Option<Ipv4Addr> {
    let parts: Vec<u64> = text.split('.').map(integer).collect::<Option<_>>()?;
    let (last, bytes) = parts.split_last()?;
    if bytes.len() > 3 || bytes.iter().any(|b| *b > 255) {
        return None;
    }
    let room = 8 * (4 - u32::try_from(bytes.len()).ok()?);
    let last = u32::try_from(*last).ok().filter(|n| room == 32 || n >> room == 0)?;
    let mut high = 0_u32;
    for (i, b) in (0_u32..).zip(bytes) {
        high |= u32::try_from(*b).ok()? << (24 - 8 * i);
    }
    Some(Ipv4Addr::from_bits(high | last))
}

/// An address in an option: IPv4, or IPv6 in brackets.
pub(super) fn address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::from),
        None => inet_aton(text).map(IpAddr::from),
    }
}
