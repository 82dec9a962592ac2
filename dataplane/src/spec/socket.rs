//! `socket`: QEMU's older words for `stream` and `dgram` (net/socket.c), IPv4 only.
//!
//! Exactly one of the forms is given. The datagram forms `mcast=` and `udp=` are `dgram`'s, with the same bytes.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::fault::Fault;
use crate::spec::addr;
use crate::spec::dgram::{Dgram, Ends, Host};
use crate::spec::fields::Fields;

/// What was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Socket {
    /// `fd=`: an inherited descriptor, of a stream or of datagrams.
    Fd(i32),
    /// `listen=`: we listen.
    Listen(Host),
    /// `connect=`: we dial, once.
    Connect(Host),
    /// `mcast=` and `udp=`.
    Datagrams(Dgram),
}

const FORMS: [&str; 5] = ["fd", "listen", "connect", "mcast", "udp"];
const FIX: &str =
    "give listen=HOST:PORT, connect=HOST:PORT, mcast=GROUP:PORT, or udp=HOST:PORT,localaddr=HOST:PORT";

/// Reads the options of `socket`.
///
/// # Errors
/// QEMU's complaints and rules.
pub fn read(f: &mut Fields) -> Result<Socket, Fault> {
    let [fd, listen, connect, mcast, udp] = FORMS.map(|k| f.text(k));
    let given = [&fd, &listen, &connect, &mcast, &udp].iter().filter(|o| o.is_some()).count();
    let local = f.text("localaddr");
    if given != 1 {
        let why = "exactly one of listen=, connect=, mcast= or udp= is required";
        return Err(f.fault(why, FIX));
    }
    if local.is_some() && mcast.is_none() && udp.is_none() {
        return Err(f.fault("localaddr= is only valid with mcast= or udp=", FIX));
    }
    if let Some(n) = fd {
        return addr::fd_number(f, "fd", &n).map(Socket::Fd);
    }
    if let Some(at) = listen {
        return host_port(f, "listen", &at).map(Socket::Listen);
    }
    if let Some(at) = connect {
        return host_port(f, "connect", &at).map(Socket::Connect);
    }
    let ends = match (mcast, udp, local) {
        (Some(at), _, local) => multicast(f, &at, local.as_deref())?,
        (None, Some(at), Some(local)) => {
            Ends::Udp(host_port(f, "localaddr", &local)?, host_port(f, "udp", &at)?)
        }
        _ => return Err(f.fault("localaddr= is mandatory with udp=", FIX)),
    };
    Ok(Socket::Datagrams(Dgram { ends, strict: false, undone: None }))
}

fn multicast(f: &Fields, text: &str, local: Option<&str>) -> Result<Ends, Fault> {
    let at = host_port(f, "mcast", text)?;
    let ip: Ipv4Addr =
        at.host.parse().map_err(|_| f.bad_value("mcast", text, "give GROUP:PORT in numbers"))?;
    if !ip.is_multicast() {
        let why =
            format!("specified mcastaddr {ip} (0x{:08x}) does not contain a multicast address", ip.to_bits());
        return Err(f.fault(why, "groups are 224.0.0.0 to 239.255.255.255; 239.x.x.x are for such use"));
    }
    let parse = |l: &str| {
        l.parse::<Ipv4Addr>().map(IpAddr::from).map_err(|_| {
            let why = format!("localaddr '{l}' is not a valid IPv4 address");
            f.fault(why, "with mcast= give the address of the interface to use, without a port")
        })
    };
    Ok(Ends::Multicast(SocketAddr::new(ip.into(), at.port), local.map(parse).transpose()?))
}

/// `[host]:port`, both of IPv4.
fn host_port(f: &Fields, key: &str, text: &str) -> Result<Host, Fault> {
    let Some((host, port)) = text.split_once(':') else {
        return Err(
            f.fault(format!("host address '{text}' doesn't contain ':' separating host from port"), FIX)
        );
    };
    let number: u16 = port.parse().map_err(|_| {
        f.fault(
            format!("port number '{port}' is invalid"),
            format!("{key}=HOST:PORT, a port from 0 to 65535"),
        )
    })?;
    Ok(Host { host: host.to_owned(), port: number, ipv4: true, ipv6: false })
}
