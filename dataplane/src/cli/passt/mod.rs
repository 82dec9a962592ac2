//! `passt`'s command line, spoken by `netreeve` when it is called `passt` or `netreeve-passt`: for QEMU's
//! `-netdev passt,path=`, libvirt's passt backend and others that start a program with these options.
//!
//! Options are passt's (passt(1)); they become those of `netreeve run` with a `user` network, and everything else is as
//! there. What a `user` network cannot do is refused, never ignored: that the guest has the host's own address above all,
//! so the guest has 10.0.2.15 unless `--address` says otherwise.
//!
//! Trust: the caller, mostly a VMM or its manager. Promise: the parent ends with 0 when a peer can connect and the pid
//! file is written, and with another status and a reason on standard error else.
#![forbid(unsafe_code)]

mod addresses;
mod options;
mod ports;

use std::ffi::OsStr;
use std::path::Path;

use crate::fault::{Exit, Fault};
pub(super) use addresses::own_by;
pub(super) use options::{Given, Mode, Option_, read};
#[cfg(any(test, feature = "fuzz"))]
pub(super) use ports::read as read_ports;
pub(super) use ports::{Ports, Scene, ephemeral};

/// What the back-end program conventions of vhost-user want to know.
const CAPABILITIES: &str = r#"{"type": "net"}"#;
/// The sockets that passt makes when none is named.
const SOCKETS: &str = "/tmp/passt_";
/// Most of them.
const MOST: u32 = 1000;
/// Bytes of a log where nobody says how many, and the least that may be said.
const LOG: u64 = 1 << 20;
const LEAST_LOG: u64 = 4096;

/// The program was called by this name.
pub(super) fn is_name(program: &OsStr) -> bool {
    let name = Path::new(program).file_name().unwrap_or_default();
    name == "passt" || name == "netreeve-passt"
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Plan {
    /// Print this and end.
    Say(String),
    /// `netreeve run` with these words; what it says goes to this file once frames can pass.
    Run(Vec<String>, Option<Log>),
}

/// A log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Log {
    /// Its path.
    pub(super) path: String,
    /// Most bytes of it: more, and the oldest lines go.
    pub(super) most: u64,
}

/// The log that was asked for.
///
/// # Errors
/// Its size is none.
pub(super) fn log(given: &Given) -> Result<Option<Log>, Fault> {
    let most = match given.last(Option_::LogSize) {
        None => LOG,
        Some(text) => text.parse().ok().filter(|n| *n >= LEAST_LOG).ok_or_else(|| {
            let fix = format!("give a number of bytes, at least {LEAST_LOG}");
            bad(&format!("--log-size {text}"), "it is no size of a log", &fix)
        })?,
    };
    Ok(given.last(Option_::LogFile).map(|path| Log { path: path.to_owned(), most }))
}

/// Makes words of `netreeve run` out of passt's, its name left out. `free` finds a path for a socket of nobody's.
///
/// # Errors
/// An option that is none, or that cannot stand.
pub(super) fn translate(words: &[String], free: impl Fn() -> Option<String>) -> Result<Plan, Fault> {
    // The conventions: everything else on the command line is ignored.
    if words.iter().any(|w| w == "--print-capabilities") {
        return Ok(Plan::Say(CAPABILITIES.to_owned()));
    }
    let (given, rest) = read(words, Mode::Passt)?;
    if let Some(word) = rest.first() {
        let fix = "passt takes options only; a program is started by netreeve run, or by netreeve-pasta in a namespace";
        return Err(bad(word, "this is no option", fix));
    }
    if given.has(Option_::Version) {
        return Ok(Plan::Say(format!("netreeve {}, called as passt", env!("CARGO_PKG_VERSION"))));
    }
    if given.has(Option_::Help) {
        return Ok(Plan::Say(
            "netreeve, called as passt: see passt(1) for the options, netreeve(1) for what differs".into(),
        ));
    }
    if let Some(path) = given.last(Option_::RepairPath).filter(|p| *p != "none") {
        let fix = "leave it out, or give none; connections do not migrate, so nobody repairs them";
        return Err(bad(&format!("--repair-path {path}"), "it is refused: there is no such socket", fix));
    }
    let mut out: Vec<String> = vec!["run".into()];
    let mut add = |option: &str, value: Option<&str>| {
        out.push(option.to_owned());
        out.extend(value.map(str::to_owned));
    };
    add("--netdev", Some(&network(&given, Mode::Passt)?));
    add("--device", Some(&device(&given, free)?));
    common(&given, &mut add);
    // An inherited connection cannot come again.
    if given.has(Option_::OneOff) || given.has(Option_::Fd) {
        add("--one-off", None);
    }
    if !given.has(Option_::Foreground) {
        add("--daemonize", None);
    }
    Ok(Plan::Run(out, log(&given)?))
}

/// What both programs have, in words of `netreeve run`.
pub(super) fn common(given: &Given, add: &mut impl FnMut(&str, Option<&str>)) {
    if let Some(path) = given.last(Option_::Pcap) {
        add("--object", Some(&format!("filter-dump,id=pcap,netdev=net0,file={},format=pcap", escape(path))));
    }
    if let Some(path) = given.last(Option_::Pid) {
        add("--pid", Some(path));
    }
    if let Some(user) = given.last(Option_::Runas) {
        add("--user", Some(user));
    }
}

fn escape(text: &str) -> String {
    text.replace(',', ",,")
}

fn device(given: &Given, free: impl Fn() -> Option<String>) -> Result<String, Fault> {
    let vhost_user = given.has(Option_::VhostUser);
    match (given.last(Option_::Fd), given.last(Option_::Socket)) {
        (Some(_), Some(_)) => Err(bad("--fd and --socket", "are mutually exclusive", "give one of them")),
        (Some(fd), None) if vhost_user => Ok(format!("vhost-user,netdev=net0,fd={},server=off", escape(fd))),
        (Some(fd), None) => Ok(format!("stream,netdev=net0,addr.type=fd,addr.str={}", escape(fd))),
        (None, socket) => {
            let path = socket.map(str::to_owned).or_else(free);
            let path =
                path.ok_or_else(|| bad("--socket", "there is no free path", "name it: --socket PATH"))?;
            let path = escape(&path);
            Ok(match vhost_user {
                true => format!("vhost-user,netdev=net0,path={path}"),
                false => format!("stream,netdev=net0,server=on,addr.type=unix,addr.path={path}"),
            })
        }
    }
}

/// The `user` network. passt's guest reaches everything that its host does, the loopback by its gateway's address.
///
/// # Errors
/// What cannot stand.
pub(super) fn network(given: &Given, mode: Mode) -> Result<String, Fault> {
    let mut out = "user,id=net0,preset=qemu".to_owned();
    let mut add = |key: &str, value: &str| {
        out.push_str(&format!(",{key}={}", escape(value)));
    };
    match (given.has(Option_::Ipv4Only), given.has(Option_::Ipv6Only)) {
        (true, true) => return Err(bad("-4 and -6", "are mutually exclusive", "give one of them")),
        (true, false) => add("ipv6", "off"),
        (false, true) => add("ipv4", "off"),
        (false, false) => {}
    }
    for (key, value) in addresses::keys(given)? {
        add(key, &value);
    }
    outbound(given, &mut add)?;
    names(given, mode, &mut add);
    if let Some(mac) = given.last(Option_::MacAddr) {
        add("mac", mac);
    }
    if let Some(mtu) = given.last(Option_::Mtu) {
        // A guest that is told of none has Ethernet's.
        add("mtu", if mtu == "0" { "1500" } else { mtu });
    }
    let closed = [(Option_::NoTcp, "tcp:any"), (Option_::NoUdp, "udp:any"), (Option_::NoIcmp, "icmp:any")];
    for (_, rule) in closed.iter().filter(|(o, _)| given.has(*o)) {
        add("deny", rule);
        add("deny", &format!("in:{rule}"));
    }
    if addresses::closed(given) && !loopback(given) {
        add("deny", "loopback");
    }
    for (scene, ports) in forwards(given, mode, ports::ephemeral())?.iter().filter(|(_, p)| !p.auto) {
        for rule in ports.rules(scene) {
            add("hostfwd", &rule);
        }
    }
    Ok(out)
}

/// All specifications of ports that lead inside, those that depend on who listens there included.
///
/// # Errors
/// One is none.
pub(super) fn forwards(
    given: &Given,
    mode: Mode,
    ephemeral: (u16, u16),
) -> Result<Vec<(Scene, Ports)>, Fault> {
    let options = [(Option_::TcpPorts, false), (Option_::UdpPorts, true)];
    specified(given, (mode, false), ephemeral, options)
}

/// All specifications of ports that lead from a namespace to the host, those that depend on who listens there included.
///
/// # Errors
/// One is none, or is of a protocol that is off.
pub(super) fn out(given: &Given, ephemeral: (u16, u16)) -> Result<Vec<(Scene, Ports)>, Fault> {
    let off = [
        (Option_::NoTcp, Option_::TcpNs, "--no-tcp and --tcp-ns"),
        (Option_::NoUdp, Option_::UdpNs, "--no-udp and --udp-ns"),
    ];
    let asked = |o| given.all(o).any(|spec| spec != "none");
    if let Some((.., both)) = off.into_iter().find(|(off, on, _)| given.has(*off) && asked(*on)) {
        return Err(bad(both, "are mutually exclusive", "give one of them"));
    }
    let options = [(Option_::TcpNs, false), (Option_::UdpNs, true)];
    specified(given, (Mode::Pasta, true), ephemeral, options)
}

fn specified(
    given: &Given,
    (mode, inside): (Mode, bool),
    ephemeral: (u16, u16),
    options: [(Option_, bool); 2],
) -> Result<Vec<(Scene, Ports)>, Fault> {
    let mut all = Vec::new();
    for (option, udp) in options {
        let scene = Scene {
            udp,
            inside,
            v4: !given.has(Option_::Ipv6Only),
            v6: !given.has(Option_::Ipv4Only),
            free: given.has(Option_::Freebind),
            auto: mode == Mode::Pasta,
            ephemeral,
        };
        for spec in given.all(option) {
            all.push((scene, ports::read(spec, &scene)?));
        }
    }
    Ok(all)
}

/// How connections leave the host. The guest's addresses are its own, so of an interface there remains that they leave by it.
fn outbound(given: &Given, add: &mut impl FnMut(&str, &str)) -> Result<(), Fault> {
    for text in given.all(Option_::Outbound) {
        let known = text.parse::<std::net::IpAddr>().is_ok();
        if !known {
            let fix = "give an IPv4 or IPv6 address of the host's";
            return Err(bad(&format!("--outbound {text}"), "it is no address", fix));
        }
        add("outbound", text);
    }
    let either = given.last(Option_::Interface);
    let families = [
        (Option_::OutboundIf4, Option_::Ipv6Only, "outbound-if4"),
        (Option_::OutboundIf6, Option_::Ipv4Only, "outbound-if6"),
    ];
    for (option, without, key) in families {
        if let Some(name) = given.last(option).or(either).filter(|_| !given.has(without)) {
            add(key, name);
        }
    }
    Ok(())
}

/// An address of the guest's network stands for the host's loopback.
fn loopback(given: &Given) -> bool {
    given.last(Option_::MapHostLoopback).is_some_and(|a| a != "none")
}

/// Who resolves names for the guest, what it is called, where it searches, and what it does not find.
fn names(given: &Given, mode: Mode, add: &mut impl FnMut(&str, &str)) {
    let mut resolvers: Vec<&str> = Vec::new();
    // A namespace is told by DHCP only if that is wanted.
    let pasta = mode == Mode::Pasta;
    let mut told = if pasta { given.has(Option_::DhcpDns) } else { !given.has(Option_::NoDhcpDns) };
    let searched = if pasta { given.has(Option_::DhcpSearch) } else { !given.has(Option_::NoDhcpSearch) };
    for server in given.all(Option_::Dns) {
        match server {
            // As the last word of the option, what came before is gone, and nobody is told.
            "none" => (resolvers, told) = (Vec::new(), false),
            server => resolvers.push(server),
        }
    }
    // Who is asked behind the address that the guest asks.
    let hosts: Vec<&str> = given.all(Option_::DnsHost).collect();
    for server in if hosts.is_empty() { resolvers } else { hosts } {
        add("resolver", server);
    }
    let words: Vec<&str> = given.all(Option_::Search).flat_map(str::split_whitespace).collect();
    let after = words.iter().rposition(|w| *w == "none").map_or(0, |at| at + 1);
    for domain in words.iter().skip(after).filter(|_| searched) {
        add("dnssearch", domain);
    }
    let (host, domain) = given.last(Option_::Fqdn).map_or(("", ""), |f| f.split_once('.').unwrap_or((f, "")));
    let name = given.last(Option_::Hostname).unwrap_or(host);
    for (key, value) in [("hostname", name), ("domainname", domain)].iter().filter(|(_, v)| !v.is_empty()) {
        add(key, value);
    }
    let off = [
        (given.has(Option_::NoDhcp), "dhcp"),
        (given.has(Option_::NoDhcpv6), "dhcpv6"),
        (given.has(Option_::NoNdp), "ndp"),
        (given.has(Option_::NoRa), "ra"),
        (!told, "resolver"),
        // Where nothing of the loopback is reached, a rule says so.
        (addresses::closed(given) && loopback(given), "host"),
    ];
    let off: Vec<&str> = off.iter().filter(|(off, _)| *off).map(|(_, word)| *word).collect();
    if !off.is_empty() {
        add("without", &off.join(":"));
    }
}

/// A path that nobody has, as passt makes one.
pub(super) fn free() -> Option<String> {
    (1..=MOST).map(|n| format!("{SOCKETS}{n}.socket")).find(|p| !Path::new(p).exists())
}

/// An option that cannot stand.
pub(super) fn bad(option: &str, why: &str, fix: &str) -> Fault {
    Fault::new(Exit::Usage, format!("passt: {option}"), why, fix)
}

#[cfg(test)]
mod tests;
