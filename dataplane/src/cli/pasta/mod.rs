//! `pasta`'s command line, spoken by `netreeve` when it is called `pasta` or `netreeve-pasta`: a `user` network for a
//! network namespace instead of a virtual machine, by a tap that is made inside it.
//!
//! | words | namespace |
//! |---|---|
//! | `[OPTIONS] [COMMAND [ARGUMENTS]]` | new ones (users, network, mounts), in which the command runs |
//! | `[OPTIONS] PID` | those of a process |
//! | `[OPTIONS] --netns PATH\|NAME` | that one |
//!
//! Options are pasta's (pasta(1)) and become those of `netreeve run` with a `user` network; the tap is its device. A user
//! namespace gives its owner what making a tap needs, so nobody is asked for anything.
//!
//! Trust: the caller. Promise: nothing is done outside the namespace; an option is kept or refused, never ignored.
#![forbid(unsafe_code)]

mod auto;
mod netlink;
mod stage;

use std::ffi::{OsStr, OsString};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use netreeve_shared::ifname::IfName;
use netreeve_shared::mac::Mac;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::daemon;
use super::passt::{self, Given, Log, Mode, Option_ as O, Ports, Scene, read};
use crate::fault::{Exit, Fault};
use crate::port::user::services::conf::{lease4, lease6};
use crate::spec::forward::{Bind, Listen};
use crate::spec::user::User;
use crate::spec::{Config, Kind};
use crate::supervise::ready::print_line;
use crate::supervise::resolvers;
use stage::{Made, Order};

/// Where `ip netns` keeps names.
const NAMED: &str = "/run/netns";
/// The tap's name where the host has no way out by IPv4.
const TAP: &str = "tap0";
/// How long one of us may take to end when its namespace has gone (30 ms alone, far more on a busy machine), and how often
/// it is looked.
const LEAVING: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);

/// The program was called by this name.
pub(super) fn is_name(program: &OsStr) -> bool {
    let name = Path::new(program).file_name().unwrap_or_default();
    name == "pasta" || name == "netreeve-pasta"
}

/// Does a stage's work, if these words are one's.
pub(super) fn stage(words: &[OsString]) -> Option<ExitCode> {
    stage::run(words)
}

/// Whose namespace.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    /// New ones, for this command.
    New(Vec<OsString>),
    /// One that is there: user namespace, if it is to be joined, and network namespace.
    There(Option<PathBuf>, PathBuf),
}

/// What the words say.
#[derive(Debug)]
struct Wish {
    given: Given,
    target: Target,
    /// The `user` network.
    netdev: String,
    /// What leads from the namespace to the host.
    out: Vec<(Scene, Ports)>,
    /// What the stage is to do.
    order: Order,
    /// Where the forwards are to listen.
    listens: Vec<Listen>,
    /// Where what is said goes.
    log: Option<Log>,
}

/// What is left to do.
#[derive(Debug)]
pub(super) enum Next {
    /// Nothing: this is our exit code.
    Done(u8),
    /// `netreeve run` with these words.
    Run(Vec<OsString>),
}

/// Makes what the words (the name left out) say, and the words of `netreeve run` that serve it.
///
/// # Errors
/// An option that cannot stand, a namespace that cannot be had.
pub(super) fn start(words: &[OsString]) -> Result<Next, Fault> {
    let text: Vec<String> = words.iter().map(|w| w.to_string_lossy().into_owned()).collect();
    let (given, rest) = read(&text, Mode::Pasta)?;
    let say = |text: String| {
        print_line(&text).map_err(|e| Fault::new(Exit::General, "writing to standard output", e, ""))
    };
    if given.has(O::Version) {
        say(format!("netreeve {}, called as pasta", env!("CARGO_PKG_VERSION")))?;
        return Ok(Next::Done(0));
    }
    if given.has(O::Help) {
        say("netreeve, called as pasta: see pasta(1) for the options, netreeve(1) for what differs".into())?;
        return Ok(Next::Done(0));
    }
    // The words behind the options, as they came.
    let rest = words.get(words.len() - rest.len()..).unwrap_or_default();
    let wish = wish(given, rest)?;
    let stays = matches!(wish.target, Target::New(_)) || wish.given.has(O::Foreground);
    if !stays && !daemon::is_child() {
        // Everything is done by the one that stays.
        return daemon::start().map(Next::Done);
    }
    daemon::log_to(wish.log.as_ref())?;
    vacated(&wish.listens);
    let made = stage::make(&wish.order)?;
    served(&wish, stays, made).map(Next::Run)
}

/// Waits a while for addresses that others still have: who starts a container anew takes its network down without
/// waiting for us to end, and its forwards are the same. If they stay taken, the fault is told where they are opened.
fn vacated(listens: &[Listen]) {
    let until = Instant::now() + LEAVING;
    // Of a range, both ends; who takes what is left waits for nobody.
    let ends = |b: &Bind| {
        let waits = !b.willing && b.device.is_none() && !b.free && !b.inside;
        let all = [b.at.port(), b.last].map(|port| SocketAddr::new(b.at.ip(), port));
        all.into_iter().filter(move |_| waits)
    };
    let is = |tried: io::Result<()>| tried.is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse);
    let taken = |listen: &Listen| match listen {
        Listen::Tcp(b) => ends(b).any(|at| is(TcpListener::bind(at).map(drop))),
        Listen::Udp(b) => ends(b).any(|at| is(UdpSocket::bind(at).map(drop))),
        Listen::Unix(_) => false,
    };
    while listens.iter().any(taken) && Instant::now() < until {
        std::thread::sleep(LOOK);
    }
}

/// Reads everything, without doing anything.
fn wish(given: Given, rest: &[OsString]) -> Result<Wish, Fault> {
    let target = target(&given, rest)?;
    let netdev = passt::network(&given, Mode::Pasta)?;
    let out = out(&given)?;
    let whole = leading_out(&netdev, &out, true);
    let config = Config::read(std::slice::from_ref(&whole), &[], None)?;
    let Some(user) = config.ports.iter().find_map(|p| match &p.kind {
        Kind::User(u) => Some((**u).clone()),
        _ => None,
    }) else {
        return Err(bad("the network", "it is none", ""));
    };
    let order = order(&given, &target, &user, &out)?;
    let listens = user.forwards.into_iter().map(|f| f.listen).collect();
    let log = passt::log(&given)?;
    Ok(Wish { given, target, netdev, out, order, listens, log })
}

/// What leads from the namespace to the host.
fn out(given: &Given) -> Result<Vec<(Scene, Ports)>, Fault> {
    let all = passt::out(given, passt::ephemeral())?;
    Ok(all.into_iter().filter(|(_, ports)| ports.auto || ports.any()).collect())
}

/// The network with its forwards that lead out, as far as they are not there only while somebody listens.
fn leading_out(netdev: &str, out: &[(Scene, Ports)], six: bool) -> String {
    let mut text = netdev.to_owned();
    for (scene, ports) in out.iter().filter(|(_, p)| !p.auto) {
        // Where there is no IPv6 inside, nobody listens by it.
        let ports = if six { ports.clone() } else { ports.of_family(false) };
        ports.rules(scene).iter().for_each(|rule| text.push_str(&format!(",hostfwd={rule}")));
    }
    text
}

/// Whose namespace is meant.
fn target(given: &Given, rest: &[OsString]) -> Result<Target, Fault> {
    let userns = given.last(O::Userns).map(PathBuf::from);
    if userns.is_some() && given.has(O::NetnsOnly) {
        return Err(bad("--userns and --netns-only", "are mutually exclusive", "give one of them"));
    }
    if let Some(netns) = given.last(O::Netns) {
        if !rest.is_empty() {
            return Err(bad("--netns", "it stands in place of a PID or a command", "leave one out"));
        }
        let path = Path::new(netns);
        return Ok(Target::There(
            userns,
            if netns.contains('/') { path.into() } else { Path::new(NAMED).join(path) },
        ));
    }
    let pid = match rest {
        [one] => one.to_str().filter(|w| w.bytes().all(|b| b.is_ascii_digit()) && !w.is_empty()),
        _ => None,
    };
    if let Some(pid) = pid {
        let of = |kind: &str| PathBuf::from(format!("/proc/{pid}/ns/{kind}"));
        let its = (!given.has(O::NetnsOnly)).then(|| of("user"));
        return Ok(Target::There(userns.or(its), of("net")));
    }
    if userns.is_some() || given.has(O::NetnsOnly) {
        return Err(bad("--userns and --netns-only", "a command gets namespaces of its own", "leave it out"));
    }
    if rest.is_empty() {
        let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
        return Ok(Target::New(vec![shell]));
    }
    Ok(Target::New(rest.to_vec()))
}

/// What the stage is to do.
fn order(given: &Given, target: &Target, user: &User, out: &[(Scene, Ports)]) -> Result<Order, Fault> {
    let (userns, netns) = match target {
        Target::New(_) => (None, None),
        Target::There(user, net) => (user.clone(), Some(net.clone())),
    };
    let mac: Option<Mac> = match given.last(O::NsMacAddr) {
        None => None,
        Some(text) => Some(text.parse().ok().filter(|m: &Mac| m.is_station()).ok_or_else(|| {
            bad(&format!("--ns-mac-addr {text}"), "it is no station's address", "as in 52:54:00:12:34:56")
        })?),
    };
    let (mut addresses, mut gateways) = (Vec::new(), Vec::new());
    if let Some(v) = &user.v4 {
        addresses.push((IpAddr::from(lease4(v, 0)), v.prefix));
        gateways.push(IpAddr::from(v.host));
    }
    if let Some(v) = &user.v6 {
        addresses.push((IpAddr::from(lease6(v, user.lease6, 0)), v.len));
        // Where the host has no way out by IPv6, nobody inside is to try in vain.
        if passt::own_by(IpAddr::from(v.host), given.last(O::Interface)).is_some() {
            gateways.push(IpAddr::from(v.host));
        }
    }
    let (autos, fixed): (Vec<_>, Vec<_>) =
        passt::forwards(given, Mode::Pasta, passt::ephemeral())?.into_iter().partition(|(_, p)| p.auto);
    let follows = out.iter().any(|(_, p)| p.auto);
    let ranges = |(scene, ports): &(Scene, Ports)| {
        ports.ranges().map(|(first, last)| (scene.udp, first, last)).collect::<Vec<_>>()
    };
    let own = if follows { fixed.iter().flat_map(ranges).collect() } else { Vec::new() };
    Ok(Order {
        userns,
        netns,
        ifname: tap_name(given)?,
        mac: mac.map(|m| m.0),
        mtu: user.mtu,
        config: given.has(O::ConfigNet),
        addresses,
        gateways,
        inside: !out.is_empty(),
        autos: autos.into_iter().chain(out.iter().filter(|(_, p)| p.auto).cloned()).collect(),
        own,
        resolv: (given.has(O::ConfigNet) && given.last(O::Dns) != Some("none")).then(|| names(given, user)),
    })
}

/// What the tap is to be called.
fn tap_name(given: &Given) -> Result<String, Fault> {
    let Some(text) = given.last(O::NsIfname).or(given.last(O::Interface)) else { return Ok(ifname()) };
    let name: Result<IfName, _> = text.parse();
    name.map(|_| text.to_owned())
        .map_err(|e| bad(&format!("--ns-ifname {text}"), &e.to_string(), "tap0 for instance"))
}

/// What `resolv.conf` says inside: our server, and where the host searches, or where the options say.
fn names(given: &Given, user: &User) -> String {
    let mut out = String::new();
    let servers =
        user.v4.map(|v| IpAddr::from(v.dns)).into_iter().chain(user.v6.map(|v| IpAddr::from(v.dns)));
    servers.for_each(|a| out.push_str(&format!("nameserver {a}\n")));
    let words: Vec<&str> =
        given.all(O::Search).flat_map(str::split_whitespace).filter(|w| *w != "none").collect();
    if given.has(O::Search) {
        if !words.is_empty() {
            out.push_str(&format!("search {}\n", words.join(" ")));
        }
        return out;
    }
    let host = std::fs::read_to_string(resolvers::FILE).unwrap_or_default();
    let kept =
        |l: &&str| ["search", "domain", "options"].iter().any(|w| l.split_whitespace().next() == Some(w));
    host.lines().filter(kept).for_each(|l| out.push_str(&format!("{l}\n")));
    out
}

/// The name of the interface by which the host goes out, as pasta gives its tap.
fn ifname() -> String {
    let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    let mut all = routes.lines().skip(1).map(str::split_whitespace);
    let out = all.find_map(|mut words| {
        let (name, destination) = (words.next()?, words.next()?);
        (destination == "00000000").then(|| name.to_owned())
    });
    out.unwrap_or_else(|| TAP.to_owned())
}

/// The words of `netreeve run` that serve the tap, its descriptors in place.
fn served(wish: &Wish, stays: bool, made: Made) -> Result<Vec<OsString>, Fault> {
    let hand = |fd: OwnedFd| {
        // Whoever takes it over sees that it came from outside; they are for us and our command.
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty()))
            .map_err(|e| Fault::new(Exit::General, "pasta: a descriptor", e, ""))?;
        Ok(fd.into_raw_fd().to_string())
    };
    let numbers: Vec<String> = made.fds.into_iter().map(hand).collect::<Result<_, Fault>>()?;
    let follower = made.follower.map(hand).transpose()?;
    let inside = made.inside.map(hand).transpose()?;
    let (tap, namespaces) = numbers.split_first().ok_or_else(|| bad("the tap", "it did not come", ""))?;
    let mut out: Vec<OsString> = vec!["run".into()];
    let mut add = |option: &str, value: Option<&str>| {
        out.push(option.into());
        out.extend(value.map(OsString::from));
    };
    if !made.six && wish.given.has(O::Ipv6Only) && !wish.out.is_empty() {
        return Err(bad(
            "--ipv6-only",
            "the namespace has no IPv6 at its loopback",
            "leave --tcp-ns and --udp-ns out",
        ));
    }
    let mut netdev = leading_out(&wish.netdev, &wish.out, made.six);
    inside.iter().for_each(|number| netdev.push_str(&format!(",ns-fd={number}")));
    add("--netdev", Some(&netdev));
    add("--device", Some(&format!("tap,netdev=net0,fd={tap}")));
    passt::common(&wish.given, &mut add);
    if let Some(number) = &follower {
        add("--control-fd", Some(number));
    }
    if !stays {
        add("--daemonize", None);
    }
    let own = std::env::current_exe().map_err(|e| Fault::new(Exit::General, "pasta: our own name", e, ""))?;
    match &wish.target {
        Target::New(command) => {
            out.extend(["--".into(), own.into(), stage::WORD.into(), "enter".into()]);
            out.extend(namespaces.iter().map(OsString::from));
            out.extend(command.iter().cloned());
        }
        Target::There(..) if wish.given.has(O::NoNetnsQuit) => {}
        Target::There(_, path) => {
            out.extend(["--".into(), own.into(), stage::WORD.into(), "watch".into(), path.into()]);
        }
    }
    Ok(out)
}

/// An option that cannot stand.
fn bad(option: &str, why: &str, fix: &str) -> Fault {
    Fault::new(Exit::Usage, format!("pasta: {option}"), why, fix)
}

#[cfg(test)]
mod tests;
