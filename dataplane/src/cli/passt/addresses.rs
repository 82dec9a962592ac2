//! Addresses: what passt says of its guest's, in the keys of a `user` network.
//!
//! passt's guest has the host's own address; that of a `user` network has one of a network of its own. So the network is
//! made around the address that is given, and the gateway is an address of it.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use nix::sys::socket::{setsockopt, sockopt};

use super::bad;
use super::options::{Given, Option_ as O};
use crate::fault::Fault;

/// Keys and values.
pub(super) type Keys = Vec<(&'static str, String)>;

/// An address of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Both {
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

/// The last address of each family that an option has; `none` takes back both.
fn both(given: &Given, option: O, name: &str) -> Result<Both, Fault> {
    let mut out = Both::default();
    for text in given.all(option) {
        if text == "none" {
            out = Both::default();
            continue;
        }
        match text.parse() {
            Ok(IpAddr::V4(a)) => out.v4 = Some(a),
            Ok(IpAddr::V6(a)) => out.v6 = Some(a),
            Err(_) => {
                return Err(bad(
                    &format!("{name} {text}"),
                    "it is no address",
                    "give an IPv4 or IPv6 address",
                ));
            }
        }
    }
    Ok(out)
}

/// What `-a` says: an address, and for IPv4 perhaps the bits of its network.
fn guest(given: &Given) -> Result<(Both, Option<String>), Fault> {
    let (mut out, mut bits) = (Both::default(), None);
    for text in given.all(O::Address) {
        let fault = |why| bad(&format!("--address {text}"), why, "give an IPv4 or IPv6 address");
        let (ip, prefix) = text.split_once('/').map_or((text, None), |(ip, b)| (ip, Some(b)));
        match ip.parse() {
            Ok(IpAddr::V4(a)) => {
                out.v4 = Some(a);
                bits = prefix.map(str::to_owned);
            }
            Ok(IpAddr::V6(a)) if prefix.is_none_or(|p| p == "64") => out.v6 = Some(a),
            Ok(IpAddr::V6(_)) => return Err(fault("its prefix has 64 bits, by which guests make addresses")),
            Err(_) => return Err(fault("it is no address")),
        }
    }
    if bits.is_some() && given.has(O::Netmask) {
        return Err(bad(
            "--address and --netmask",
            "are mutually exclusive if the former has a prefix",
            "give one",
        ));
    }
    Ok((out, bits.or(given.last(O::Netmask).map(str::to_owned))))
}

/// Keys of the `user` network that say its addresses, for the families that are on.
///
/// # Errors
/// What is no address, or what cannot be said by these keys.
pub(super) fn keys(given: &Given) -> Result<Keys, Fault> {
    let mut out = Vec::new();
    let (guest, bits) = guest(given)?;
    let gateway = both(given, O::Gateway, "--gateway")?;
    let dns = both(given, O::DnsForward, "--dns-forward")?;
    if !given.has(O::Ipv6Only) {
        four(guest.v4, bits.as_deref(), gateway.v4, dns.v4, &mut out);
    }
    if !given.has(O::Ipv4Only) {
        six(guest.v6, gateway.v6, dns.v6, &mut out)?;
    }
    // An address that is given for the loopback takes the place of the gateway's.
    let loopback = both(given, O::MapHostLoopback, "--map-host-loopback")?;
    let home = |a| -> IpAddr {
        if matches!(a, IpAddr::V4(_)) { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() }
    };
    aliases(loopback, given, |a| home(a).to_string(), &mut out);
    // Whichever that is when somebody asks.
    aliases(both(given, O::MapGuestAddr, "--map-guest-addr")?, given, |_| "host".to_owned(), &mut out);
    Ok(out)
}

/// What the addresses of an option mean, in the families that are on.
fn aliases(of: Both, given: &Given, meant: impl Fn(IpAddr) -> String, out: &mut Keys) {
    let v4 = of.v4.filter(|_| !given.has(O::Ipv6Only)).map(IpAddr::from);
    let v6 = of.v6.filter(|_| !given.has(O::Ipv4Only)).map(IpAddr::from);
    for a in v4.into_iter().chain(v6) {
        out.push(("alias", format!("{a}-{}", meant(a))));
    }
}

/// The gateway's address does not lead to the host's loopback.
pub(super) fn closed(given: &Given) -> bool {
    given.has(O::NoMapGw) || given.has(O::MapHostLoopback)
}

fn four(
    guest: Option<Ipv4Addr>,
    bits: Option<&str>,
    gateway: Option<Ipv4Addr>,
    dns: Option<Ipv4Addr>,
    out: &mut Keys,
) {
    if let Some(a) = guest {
        out.push(("net", format!("{a}/{}", bits.unwrap_or("24"))));
        out.push(("dhcpstart", a.to_string()));
    } else if let Some(bits) = bits {
        out.push(("net", format!("10.0.2.0/{bits}")));
    }
    // The usual ones end in .2 and .3: where that is the guest's, they step aside.
    let last = guest.and_then(|a| a.octets().last().copied());
    let free = |taken: &[Option<Ipv4Addr>]| {
        let near = |n: u8| guest.map(|a| Ipv4Addr::from(u32::from(a) & !0xff | u32::from(n)));
        (2..=5).filter_map(near).find(|a| Some(*a) != guest && !taken.contains(&Some(*a)))
    };
    let host = gateway.or_else(|| free(&[dns]).filter(|_| last == Some(2)));
    let two = guest.map(|a| Ipv4Addr::from(u32::from(a) & !0xff | 2));
    let names = dns.or_else(|| free(&[host.or(two)]).filter(|_| matches!(last, Some(2 | 3))));
    out.extend(host.map(|a| ("host", a.to_string())));
    out.extend(names.map(|a| ("dns", a.to_string())));
}

fn six(
    guest: Option<Ipv6Addr>,
    gateway: Option<Ipv6Addr>,
    dns: Option<Ipv6Addr>,
    out: &mut Keys,
) -> Result<(), Fault> {
    if let Some(a) = guest {
        let net = Ipv6Addr::from(u128::from(a) & !u128::from(u64::MAX));
        out.push(("ipv6-prefix", net.to_string()));
        out.push(("ipv6-dhcpstart", a.to_string()));
    }
    if let Some(a) = gateway {
        if a.is_unicast_link_local() {
            let why = "the router's link-local address follows from its Ethernet address (--mac-addr)";
            return Err(bad(
                &format!("--gateway {a}"),
                why,
                "leave it out, or give an address of the guest's network",
            ));
        }
        out.push(("ipv6-host", a.to_string()));
    }
    out.extend(dns.map(|a| ("ipv6-dns", a.to_string())));
    Ok(())
}

/// The address by which this host speaks to the world, by this interface if one is named, in the family of `like`. No packet
/// is sent to find it.
pub(in crate::cli) fn own_by(like: IpAddr, device: Option<&str>) -> Option<IpAddr> {
    // Of the networks for documentation (RFC 5737, RFC 3849): nobody's, so the default route decides.
    let (any, far) = match like {
        IpAddr::V4(_) => ("0.0.0.0:0", "192.0.2.1:53"),
        IpAddr::V6(_) => ("[::]:0", "[2001:db8::1]:53"),
    };
    let socket = UdpSocket::bind(any).ok()?;
    if let Some(device) = device {
        setsockopt(&socket, sockopt::BindToDevice, &OsString::from(device)).ok()?;
    }
    socket.connect(far).ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|a| !a.is_unspecified() && !a.is_loopback())
}
