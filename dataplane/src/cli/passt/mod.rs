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

mod options;
mod ports;

use std::ffi::OsStr;
use std::path::Path;

use crate::fault::{Exit, Fault};
use options::{Given, Option_, read};

/// What the back-end program conventions of vhost-user want to know.
const CAPABILITIES: &str = r#"{"type": "net"}"#;
/// The sockets that passt makes when none is named.
const SOCKETS: &str = "/tmp/passt_";
/// Most of them.
const MOST: u32 = 1000;

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
    /// `netreeve run` with these words.
    Run(Vec<String>),
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
    let given = read(words)?;
    if given.has(Option_::Version) {
        return Ok(Plan::Say(format!("netreeve {}, called as passt", env!("CARGO_PKG_VERSION"))));
    }
    if given.has(Option_::Help) {
        return Ok(Plan::Say(
            "netreeve, called as passt: see passt(1) for the options, netreeve(1) for what differs".into(),
        ));
    }
    let mut out: Vec<String> = vec!["run".into()];
    let mut add = |option: &str, value: Option<&str>| {
        out.push(option.to_owned());
        out.extend(value.map(str::to_owned));
    };
    add("--netdev", Some(&network(&given)?));
    add("--device", Some(&device(&given, free)?));
    if let Some(path) = given.last(Option_::Pcap) {
        add("--object", Some(&format!("filter-dump,id=pcap,netdev=net0,file={},format=pcap", escape(path))));
    }
    if let Some(path) = given.last(Option_::Pid) {
        add("--pid", Some(path));
    }
    // An inherited connection cannot come again.
    if given.has(Option_::OneOff) || given.has(Option_::Fd) {
        add("--one-off", None);
    }
    if !given.has(Option_::Foreground) {
        add("--daemonize", None);
    }
    Ok(Plan::Run(out))
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
fn network(given: &Given) -> Result<String, Fault> {
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
    let v4 = !given.has(Option_::Ipv6Only);
    for (key, value) in options::addresses(given)? {
        add(key, &value);
    }
    for domain in given.all(Option_::Search).filter(|d| *d != "none") {
        add("dnssearch", domain);
    }
    if let Some(name) = given.last(Option_::Hostname) {
        add("hostname", name);
    }
    if let Some((host, domain)) = given.last(Option_::Fqdn).map(|f| f.split_once('.').unwrap_or((f, ""))) {
        add("hostname", host);
        if !domain.is_empty() {
            add("domainname", domain);
        }
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
    if given.has(Option_::NoMapGw) || given.last(Option_::MapHostLoopback) == Some("none") {
        add("deny", "host");
    }
    for (option, proto) in [(Option_::TcpPorts, "tcp"), (Option_::UdpPorts, "udp")] {
        for spec in given.all(option) {
            for rule in ports::forwards(spec, proto, v4, !given.has(Option_::Ipv4Only))? {
                add("hostfwd", &rule);
            }
        }
    }
    Ok(out)
}

/// A path that nobody has, as passt makes one.
pub(super) fn free() -> Option<String> {
    (1..=MOST).map(|n| format!("{SOCKETS}{n}.socket")).find(|p| !Path::new(p).exists())
}

/// An option that cannot stand.
fn bad(option: &str, why: &str, fix: &str) -> Fault {
    Fault::new(Exit::Usage, format!("passt: {option}"), why, fix)
}

#[cfg(test)]
mod tests;
