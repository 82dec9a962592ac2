//! passt's options, one by one: which take a value, which mean something here, and why the others are refused.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

use super::bad;
use crate::fault::Fault;

/// An option that means something here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Option_ {
    Help,
    Version,
    /// Without any effect here: how much is said.
    Quiet,
    Foreground,
    Pcap,
    Pid,
    Mtu,
    Address,
    Netmask,
    Gateway,
    Dns,
    DnsForward,
    Search,
    Hostname,
    Fqdn,
    NoTcp,
    NoUdp,
    NoIcmp,
    NoMapGw,
    MapHostLoopback,
    MapGuestAddr,
    Ipv4Only,
    Ipv6Only,
    Socket,
    VhostUser,
    Fd,
    OneOff,
    TcpPorts,
    UdpPorts,
}

use Option_ as O;

/// Long name, short name, whether a value follows, what it is.
const KNOWN: &[(&str, char, bool, Option_)] = &[
    ("help", 'h', false, O::Help),
    ("version", '\0', false, O::Version),
    ("quiet", 'q', false, O::Quiet),
    ("debug", 'd', false, O::Quiet),
    ("trace", '\0', false, O::Quiet),
    ("stderr", 'e', false, O::Quiet),
    ("foreground", 'f', false, O::Foreground),
    ("pcap", 'p', true, O::Pcap),
    ("pid", 'P', true, O::Pid),
    ("mtu", 'm', true, O::Mtu),
    ("address", 'a', true, O::Address),
    ("netmask", 'n', true, O::Netmask),
    ("gateway", 'g', true, O::Gateway),
    ("dns", 'D', true, O::Dns),
    ("dns-host", '\0', true, O::Dns),
    ("dns-forward", '\0', true, O::DnsForward),
    ("search", 'S', true, O::Search),
    ("hostname", 'H', true, O::Hostname),
    ("fqdn", '\0', true, O::Fqdn),
    ("no-tcp", '\0', false, O::NoTcp),
    ("no-udp", '\0', false, O::NoUdp),
    ("no-icmp", '\0', false, O::NoIcmp),
    ("no-map-gw", '\0', false, O::NoMapGw),
    ("map-host-loopback", '\0', true, O::MapHostLoopback),
    ("map-guest-addr", '\0', true, O::MapGuestAddr),
    ("ipv4-only", '4', false, O::Ipv4Only),
    ("ipv6-only", '6', false, O::Ipv6Only),
    ("socket", 's', true, O::Socket),
    ("vhost-user", '\0', false, O::VhostUser),
    ("fd", 'F', true, O::Fd),
    ("one-off", '1', false, O::OneOff),
    ("tcp-ports", 't', true, O::TcpPorts),
    ("udp-ports", 'u', true, O::UdpPorts),
];

/// passt's options that a user network does not have: long name, short name, why not.
const REFUSED: &[(&str, char, &str)] = &[
    ("runas", '\0', "the dataplane leaves root by itself (netreeve run --user names another)"),
    ("log-file", 'l', "what is said goes to standard error (--foreground and 2>FILE)"),
    ("log-size", '\0', "there is no log file"),
    ("mac-addr", 'M', "the gateway's Ethernet address is 52:55:0a:00:02:02"),
    ("interface", 'i', "the guest's network is its own, no interface's addresses are copied"),
    ("outbound", 'o', "the host's routes decide by which address connections leave"),
    ("outbound-if4", '\0', "the host's routes decide by which interface connections leave"),
    ("outbound-if6", '\0', "the host's routes decide by which interface connections leave"),
    ("no-dhcp-dns", '\0', "the guest is always told its resolver"),
    ("no-dhcp-search", '\0', "the guest is told the domains of --search only"),
    ("no-dhcp", '\0', "the network always has DHCP"),
    ("no-ndp", '\0', "the network always answers neighbour solicitations (--ipv4-only has none)"),
    ("no-dhcpv6", '\0', "the network always has DHCPv6 (--ipv4-only has none)"),
    ("no-ra", '\0', "the network always has router advertisements (--ipv4-only has none)"),
    ("freebind", '\0', "forwards are bound to addresses that the host has"),
    ("repair-path", '\0', "connections do not migrate"),
    ("migrate-exit", '\0', "connections do not migrate"),
    ("migrate-no-linger", '\0', "connections do not migrate"),
    ("conf-path", 'c', "forwards are changed over netreeve's control socket"),
    ("stats", '\0', "counters are printed on SIGUSR1"),
];

/// What was given, in order.
#[derive(Debug, Default)]
pub(super) struct Given(Vec<(Option_, String)>);

impl Given {
    /// It was given.
    pub(super) fn has(&self, option: Option_) -> bool {
        self.0.iter().any(|(o, _)| *o == option)
    }

    /// Its value; the last one counts.
    pub(super) fn last(&self, option: Option_) -> Option<&str> {
        self.0.iter().rev().find(|(o, _)| *o == option).map(|(_, v)| v.as_str())
    }

    /// All its values.
    pub(super) fn all(&self, option: Option_) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(o, _)| *o == option).map(|(_, v)| v.as_str())
    }
}

/// Takes the words apart: `--long value`, `--long=value`, `-s value`, `-svalue`, and short ones without a value
/// together.
///
/// # Errors
/// An option that passt does not have, or that is refused; a value that is missing or too much.
pub(super) fn read(words: &[String]) -> Result<Given, Fault> {
    let mut given = Given::default();
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        if let Some(long) = word.strip_prefix("--") {
            let (name, value) = long.split_once('=').map_or((long, None), |(n, v)| (n, Some(v.to_owned())));
            let found = KNOWN.iter().find(|(n, ..)| *n == name);
            let (_, _, takes, option) = found.ok_or_else(|| unknown(&format!("--{name}")))?;
            given.0.push((*option, value_of(&format!("--{name}"), *takes, value, &mut rest)?));
            continue;
        }
        let Some(mut letters) = word.strip_prefix('-').filter(|l| !l.is_empty()).map(str::chars) else {
            return Err(bad(
                word,
                "this is no option",
                "passt takes options only; a program is started by netreeve run",
            ));
        };
        while let Some(letter) = letters.next() {
            let found = KNOWN.iter().find(|(_, s, ..)| *s == letter);
            let (_, _, takes, option) = found.ok_or_else(|| unknown(&format!("-{letter}")))?;
            let value = Some(letters.as_str().to_owned()).filter(|v| *takes && !v.is_empty());
            given.0.push((*option, value_of(&format!("-{letter}"), *takes, value, &mut rest)?));
            if *takes {
                break;
            }
        }
    }
    Ok(given)
}

fn value_of<'a>(
    name: &str,
    takes: bool,
    inline: Option<String>,
    rest: &mut impl Iterator<Item = &'a String>,
) -> Result<String, Fault> {
    match (takes, inline) {
        (true, Some(value)) => Ok(value),
        (true, None) => rest.next().cloned().ok_or_else(|| bad(name, "its value is missing", "see passt(1)")),
        (false, None) => Ok(String::new()),
        (false, Some(_)) => Err(bad(name, "it takes no value", "see passt(1)")),
    }
}

fn unknown(option: &str) -> Fault {
    let is = |(long, short, _): &&(&str, char, &str)| {
        option.strip_prefix("--") == Some(long)
            || option.strip_prefix('-') == Some(short.to_string().as_str())
    };
    match REFUSED.iter().find(is) {
        Some((_, _, why)) => {
            bad(option, &format!("it is refused: {why}"), "leave it out; netreeve(1) tells what there is")
        }
        None => bad(
            option,
            "passt has no such option, or netreeve does not know it",
            "see passt(1) and netreeve(1)",
        ),
    }
}

/// Keys of the `user` network that say its addresses.
///
/// # Errors
/// What cannot be said by these keys.
pub(super) fn addresses(given: &Given) -> Result<Vec<(&'static str, String)>, Fault> {
    let mut out = Vec::new();
    let own = "the guest's IPv6 network is fec0::/64, which leaves by the host's addresses; leave it out";
    let v4 = |option: &str, text: &str| {
        text.parse::<Ipv4Addr>().map_err(|_| bad(&format!("{option} {text}"), "it is no IPv4 address", own))
    };
    if let Some(text) = given.last(O::Address) {
        let (ip, bits) = text.split_once('/').map_or((text, None), |(ip, b)| (ip, Some(b)));
        let ip = v4("--address", ip)?;
        let bits = bits.or(given.last(O::Netmask)).unwrap_or("24");
        out.push(("net", format!("{ip}/{bits}")));
        out.push(("dhcpstart", ip.to_string()));
    } else if let Some(bits) = given.last(O::Netmask) {
        out.push(("net", format!("10.0.2.0/{bits}")));
    }
    if let Some(text) = given.last(O::Gateway) {
        out.push(("host", v4("--gateway", text)?.to_string()));
    }
    if let Some(text) = given.last(O::MapHostLoopback).filter(|t| *t != "none") {
        let ip = v4("--map-host-loopback", text)?.to_string();
        if given.last(O::Gateway).is_some_and(|g| g != ip) {
            let why = "the host's loopback is reached by the gateway's address here";
            return Err(bad("--map-host-loopback", why, "give the same address as --gateway, or none"));
        }
        out.push(("host", ip));
    }
    if given.last(O::MapGuestAddr).is_some_and(|t| t != "none") {
        let why = "the guest does not share the host's addresses, so it reaches them as they are";
        return Err(bad("--map-guest-addr", why, "leave it out"));
    }
    if let Some(text) = given.last(O::DnsForward) {
        out.push(("dns", v4("--dns-forward", text)?.to_string()));
    }
    for server in given.all(O::Dns).filter(|d| *d != "none") {
        out.push(("resolver", server.to_owned()));
    }
    Ok(out)
}
