//! passt's options, one by one: which take a value, which mean something here, and why the others are refused.
#![forbid(unsafe_code)]

use super::bad;
use crate::fault::Fault;

/// An option that means something here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Option_ {
    Help,
    Version,
    /// How much is said: what has to be said is, and no more.
    Quiet,
    Foreground,
    Pcap,
    Pid,
    Mtu,
    Address,
    Netmask,
    Gateway,
    MacAddr,
    Dns,
    DnsHost,
    DnsForward,
    NoDhcpDns,
    NoDhcpSearch,
    NoDhcp,
    NoDhcpv6,
    NoNdp,
    NoRa,
    LogFile,
    Runas,
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
    NsIfname,
    NsMacAddr,
    TcpNs,
    UdpNs,
    Userns,
    Netns,
    NetnsOnly,
    NoNetnsQuit,
    ConfigNet,
    NoSplice,
    DhcpDns,
    DhcpSearch,
    Interface,
    Outbound,
    OutboundIf4,
    OutboundIf6,
    Freebind,
    LogSize,
    RepairPath,
    /// It allows what is so anyway.
    AsEver,
}

/// Which of the two programs is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Mode {
    /// For a virtual machine.
    Passt,
    /// For a network namespace.
    Pasta,
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
    ("dns-host", '\0', true, O::DnsHost),
    ("no-dhcp-dns", '\0', false, O::NoDhcpDns),
    ("no-dhcp-search", '\0', false, O::NoDhcpSearch),
    ("no-dhcp", '\0', false, O::NoDhcp),
    ("no-dhcpv6", '\0', false, O::NoDhcpv6),
    ("no-ndp", '\0', false, O::NoNdp),
    ("no-ra", '\0', false, O::NoRa),
    ("mac-addr", 'M', true, O::MacAddr),
    ("log-file", 'l', true, O::LogFile),
    ("runas", '\0', true, O::Runas),
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
    ("socket-path", '\0', true, O::Socket),
    ("vhost-user", '\0', false, O::VhostUser),
    ("fd", 'F', true, O::Fd),
    ("one-off", '1', false, O::OneOff),
    ("tcp-ports", 't', true, O::TcpPorts),
    ("udp-ports", 'u', true, O::UdpPorts),
    ("interface", 'i', true, O::Interface),
    ("outbound", 'o', true, O::Outbound),
    ("outbound-if4", '\0', true, O::OutboundIf4),
    ("outbound-if6", '\0', true, O::OutboundIf6),
    ("freebind", '\0', false, O::Freebind),
    ("log-size", '\0', true, O::LogSize),
    ("repair-path", '\0', true, O::RepairPath),
    // The sandbox steps down by itself where an empty root cannot be had (netreeve-dataplane(8)).
    ("chroot-fallback", '\0', false, O::AsEver),
];

/// Those of the one program that the other does not have.
const PASST: &[Option_] =
    &[O::Socket, O::VhostUser, O::Fd, O::OneOff, O::NoDhcpDns, O::NoDhcpSearch, O::RepairPath];
const PASTA: &[(&str, char, bool, Option_)] = &[
    ("ns-ifname", 'I', true, O::NsIfname),
    ("ns-mac-addr", '\0', true, O::NsMacAddr),
    ("tcp-ns", 'T', true, O::TcpNs),
    ("udp-ns", 'U', true, O::UdpNs),
    ("userns", '\0', true, O::Userns),
    ("netns", '\0', true, O::Netns),
    ("netns-only", '\0', false, O::NetnsOnly),
    ("no-netns-quit", '\0', false, O::NoNetnsQuit),
    ("config-net", '\0', false, O::ConfigNet),
    // Nothing that comes in is ever spliced past the tap, and no host's routes or addresses are copied.
    ("no-splice", '\0', false, O::NoSplice),
    ("no-copy-routes", '\0', false, O::NoSplice),
    ("no-copy-addrs", '\0', false, O::NoSplice),
    // The command keeps our processes' numbers.
    ("no-pidns", '\0', false, O::AsEver),
    ("dhcp-dns", '\0', false, O::DhcpDns),
    ("dhcp-search", '\0', false, O::DhcpSearch),
];

/// passt's options that a user network does not have: long name, short name, why not, what to do.
const REFUSED: &[(&str, char, &str, &str)] = &[
    ("migrate-exit", '\0', "connections do not migrate", "leave it out"),
    ("migrate-no-linger", '\0', "connections do not migrate", "leave it out"),
    (
        "conf-path",
        'c',
        "there is no pesto(1) to talk to",
        "netreeve run has a control socket (--name, --control), over which netreeve set changes forwards",
    ),
    (
        "host-lo-to-ns-lo",
        '\0',
        "what comes by a tap cannot come from the loopback",
        "let the service listen at the tap's address as well",
    ),
    (
        "splice-only",
        '\0',
        "there is a tap in any case",
        "leave it out: without --config-net the tap is down, and --tcp-ns and --udp-ns go past it",
    ),
    ("stats", '\0', "counters are not printed by the clock", "send SIGUSR1, which prints them"),
];

/// What was given, in order.
#[derive(Debug, Default)]
pub(in crate::cli) struct Given(Vec<(Option_, String)>);

impl Given {
    /// It was given.
    pub(in crate::cli) fn has(&self, option: Option_) -> bool {
        self.0.iter().any(|(o, _)| *o == option)
    }

    /// Its value; the last one counts.
    pub(in crate::cli) fn last(&self, option: Option_) -> Option<&str> {
        self.0.iter().rev().find(|(o, _)| *o == option).map(|(_, v)| v.as_str())
    }

    /// All its values.
    pub(in crate::cli) fn all(&self, option: Option_) -> impl Iterator<Item = &str> {
        self.0.iter().filter(move |(o, _)| *o == option).map(|(_, v)| v.as_str())
    }
}

/// Takes the words apart: `--long value`, `--long=value`, `-s value`, `-svalue`, and short ones without a value
/// together. What is no option ends them: it and all behind it is given back.
///
/// # Errors
/// An option that the program does not have, or that is refused; a value that is missing or too much.
pub(in crate::cli) fn read(words: &[String], mode: Mode) -> Result<(Given, &[String]), Fault> {
    let mut given = Given::default();
    let mut rest = words.iter();
    let known = |fits: &dyn Fn(&str, char) -> bool| {
        let more = if mode == Mode::Pasta { PASTA } else { &[] };
        let all = KNOWN.iter().filter(|(.., o)| mode == Mode::Passt || !PASST.contains(o)).chain(more);
        all.copied().find(|(long, short, ..)| fits(long, *short))
    };
    loop {
        let before = rest.as_slice();
        let Some(word) = rest.next() else { return Ok((given, before)) };
        if word == "--" {
            return Ok((given, rest.as_slice()));
        }
        if let Some(long) = word.strip_prefix("--") {
            let (name, value) = long.split_once('=').map_or((long, None), |(n, v)| (n, Some(v.to_owned())));
            let found = known(&|n, _| n == name);
            let (_, _, takes, option) = found.ok_or_else(|| unknown(&format!("--{name}")))?;
            given.0.push((option, value_of(&format!("--{name}"), takes, value, &mut rest)?));
            continue;
        }
        let Some(mut letters) = word.strip_prefix('-').filter(|l| !l.is_empty()).map(str::chars) else {
            return Ok((given, before));
        };
        while let Some(letter) = letters.next() {
            let found = known(&|_, s| s == letter);
            let (_, _, takes, option) = found.ok_or_else(|| unknown(&format!("-{letter}")))?;
            let value = Some(letters.as_str().to_owned()).filter(|v| takes && !v.is_empty());
            given.0.push((option, value_of(&format!("-{letter}"), takes, value, &mut rest)?));
            if takes {
                break;
            }
        }
    }
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
    let is = |(long, short, ..): &&(&str, char, &str, &str)| {
        option.strip_prefix("--") == Some(long)
            || option.strip_prefix('-') == Some(short.to_string().as_str())
    };
    match REFUSED.iter().find(is) {
        Some((_, _, why, fix)) => bad(option, &format!("it is refused: {why}"), fix),
        None => bad(
            option,
            "passt has no such option, or netreeve does not know it",
            "see passt(1) and netreeve(1)",
        ),
    }
}
