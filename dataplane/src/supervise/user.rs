//! What a `user` network has on the host's side: the sockets of its forwards, the doors of its guest forwards, the directory
//! of its files, the host's resolvers.
//!
//! Forwards change as one table: the sockets of the new ones are opened first, then the dataplane is told the whole, and
//! when it says *done* those that are no longer in it are closed. What fails leaves everything as it was.
//!
//! Trust: the user. Promise: a UNIX socket is made and removed as [`listen`] promises; a socket that stays in the table
//! is never closed and opened again, so nobody else can take its port.
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

use netreeve_shared::channel::MAX_FDS;
use netreeve_shared::codec::{self, Header};
use netreeve_shared::request::{ListenRequest, Request};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{
    self, AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, setsockopt,
    sockopt,
};

use crate::engine::KIND;
use crate::fault::{Exit, Fault};
use crate::handover::PortPlan;
use crate::port::user::icmp;
use crate::port::user::plan::{Boot, Forward, GuestForward, Limits, MAC, Plan, To, V4, V6, Way};
use crate::port::user::policy::Policy;
use crate::spec::forward::{self, HostForward, Listen, Target};
use crate::spec::user::{FORWARDS, User};
use crate::supervise::ask::{Asker, user_name};
use crate::supervise::doors::{Beyond, Door};
use crate::supervise::listen::{self, SocketFile};
use crate::supervise::resolvers::{self, Resolvers};
use crate::supervise::say;
use crate::sys::mmsg::tell_local;

/// Connections that may wait for the guest.
const BACKLOG: i32 = 128;
/// Most bytes of a plan: what a message holds less what the other ports need.
const PLAN: usize = codec::MAX - 512;
/// The MTU where nobody says another.
const MTU: u16 = 1500;
const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// One forward, open.
#[derive(Debug)]
struct Open {
    id: u16,
    /// As it is bound.
    rule: HostForward,
    /// As it was asked for.
    asked: HostForward,
    file: Option<SocketFile>,
}

/// Another table, not yet in force.
#[derive(Debug)]
struct Next {
    table: Vec<Open>,
    /// Those of the new ones, in order.
    sockets: Vec<OwnedFd>,
}

/// The host's side of a network.
#[derive(Debug)]
pub struct Host {
    what: String,
    mode: u32,
    v4: Option<V4>,
    v6: Option<V6>,
    table: Vec<Open>,
    next: Option<Next>,
    last_id: u16,
    /// The host's resolvers.
    pub resolvers: Resolvers,
    /// Doors of guest forwards.
    pub doors: Vec<Door>,
}

/// Opens what a network needs: the host's side, what a dataplane builds, and its descriptors in the plan's order.
///
/// # Errors
/// A forward's address, a guest forward's peer or the directory cannot be had.
pub fn open(
    what: &str,
    spec: User,
    mode: u32,
    asker: &mut Asker,
) -> Result<(Host, Plan, Vec<OwnedFd>), Fault> {
    let resolvers = match spec.resolvers.is_empty() {
        true => Resolvers::new(Path::new(resolvers::FILE)),
        false => Resolvers::fixed(spec.resolvers),
    };
    let mut host = Host {
        what: what.to_owned(),
        mode,
        v4: spec.v4,
        v6: spec.v6,
        table: Vec::new(),
        next: None,
        last_id: 0,
        resolvers,
        doors: Vec::new(),
    };
    say_limits(what, spec.restrict);
    let mut kept = Vec::new();
    for rule in spec.forwards {
        let (open, socket) = host.listen(rule, asker)?;
        host.table.push(open);
        kept.push(socket);
    }
    let mut guest_forwards = Vec::new();
    for g in spec.guest_forwards {
        let (to, beyond) = reach(what, &g, spec.restrict)?;
        guest_forwards.push(GuestForward { at: g.at, to });
        kept.extend(beyond.map(|beyond| host.door(&g, beyond)).transpose()?);
    }
    if let Some(dir) = &spec.tftp {
        kept.push(directory(what, dir)?);
    }
    let plan = Plan {
        v4: spec.v4,
        v6: spec.v6,
        mtu: spec.mtu.unwrap_or(MTU),
        mac: spec.mac.unwrap_or(MAC),
        hostname: spec.hostname,
        domain: spec.domain,
        search: spec.search,
        resolvers: host.resolvers.list().to_vec(),
        boot: Boot { tftp: spec.tftp.is_some(), file: spec.bootfile, server_name: spec.server_name },
        restrict: spec.restrict,
        policy: Policy::new(&spec.rules, spec.preset, spec.restrict),
        forwards: host.forwards(),
        guest_forwards,
        without: spec.without,
        aliases: spec.aliases,
        lease6: spec.lease6,
        limits: Limits::default(),
    };
    fits(what, &plan)?;
    Ok((host, plan, kept))
}

/// The plan can be told.
fn fits(what: &str, plan: &Plan) -> Result<(), Fault> {
    let header = Header { kind: KIND, sequence: 0, fds: 0 };
    let size = codec::encode(header, &PortPlan::User(Box::new(plan.clone()))).map_or(usize::MAX, |b| b.len());
    if size <= PLAN {
        return Ok(());
    }
    let why = "its options, rules and forwards together are too long";
    Err(Fault::new(Exit::Config, what, why, "join rules by prefixes; give fewer or shorter names"))
}

/// Says once what a guest's pings will come to, where that is less than what they might.
fn say_pings(what: &str, (four, six): (bool, bool)) {
    let of = match (four, six) {
        (true, true) => return,
        (false, true) => "IPv4 ",
        (true, false) => "IPv6 ",
        (false, false) => "",
    };
    say::say(&format!(
        "{what}: only the gateway answers a guest's {of}pings: the kernel gives this user no socket for others \
         (sysctl net.ipv4.ping_group_range)"
    ));
}

/// Says once what a guest will find less of than elsewhere.
fn say_limits(what: &str, restrict: bool) {
    if !restrict {
        say_pings(what, icmp::allowed());
    }
    let limits = Limits::default();
    let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let most = limits.within(hard).tcp;
    if most < limits.tcp {
        say::say(&format!(
            "{what}: {most} TCP connections at a time, not {}: nothing here may have more than {hard} descriptors \
             (ulimit -Hn)",
            limits.tcp
        ));
    }
}

impl Host {
    /// The table in force, as a dataplane knows it.
    #[must_use]
    pub fn forwards(&self) -> Vec<Forward> {
        self.table.iter().map(Open::plan).collect()
    }

    /// The table in force, as it is written, with the ports that the kernel chose.
    pub fn rules(&self) -> impl Iterator<Item = String> {
        self.table.iter().map(|o| o.rule.to_string())
    }

    /// Reads a rule for this network.
    ///
    /// # Errors
    /// QEMU's words.
    pub fn read(&self, text: &str) -> Result<HostForward, forward::Bad> {
        HostForward::read(text, self.v4.as_ref(), self.v6.as_ref())
    }

    /// Prepares a table: what is in force less `remove`, more `add`; with `all`, `add` alone. The sockets of the new
    /// ones are opened; `kept` are the port's descriptors, the table's first.
    ///
    /// # Errors
    /// Another one is under way; one to be removed is not there; an address cannot be had.
    pub fn prepare(
        &mut self,
        all: bool,
        remove: &[Listen],
        add: Vec<HostForward>,
        kept: &[OwnedFd],
        asker: &mut Asker,
    ) -> Result<(), Fault> {
        let fault = |why: &str, fix: &str| Fault::new(Exit::Config, self.what.clone(), why, fix);
        if self.next.is_some() {
            return Err(Fault {
                exit: Exit::TryAgain,
                ..fault("its forwards are being changed", "try again")
            });
        }
        if let Some(l) = remove.iter().find(|l| !self.table.iter().any(|o| o.is_at(l))) {
            // QEMU's words.
            let why = format!("host forwarding rule for {l} not found");
            return Err(fault(&why, "netreeve show lists those that are there"));
        }
        let stays = |o: &Open| {
            let again = add.iter().any(|r| *r == o.asked || *r == o.rule);
            again || !(all || remove.iter().any(|l| o.is_at(l)))
        };
        let mut table: Vec<Open> = self.table.iter().filter(|o| stays(o)).map(Open::unheld).collect();
        let new: Vec<HostForward> =
            add.iter().filter(|r| !table.iter().any(|o| **r == o.asked || **r == o.rule)).cloned().collect();
        if new.len() > MAX_FDS {
            let why = format!("more than {MAX_FDS} new forwards at once");
            return Err(fault(&why, "make the change in several steps"));
        }
        if table.len() + new.len() > FORWARDS {
            return Err(fault(&format!("more than {FORWARDS} forwards"), "remove some"));
        }
        let mut sockets = Vec::new();
        for rule in new {
            let (open, socket) = match self.again(&rule, &table, kept) {
                Some(again) => again,
                None => self.listen(rule, asker)?,
            };
            table.push(open);
            sockets.push(socket);
        }
        self.next = Some(Next { table, sockets });
        Ok(())
    }

    /// What is prepared: the whole table, and the sockets of the new ones.
    #[must_use]
    pub fn prepared(&self) -> Option<(Vec<Forward>, &[OwnedFd])> {
        self.next.as_ref().map(|n| (n.table.iter().map(Open::plan).collect(), n.sockets.as_slice()))
    }

    /// What was prepared is in force: `kept` are the port's descriptors, the table's first.
    pub fn commit(&mut self, kept: &mut Vec<OwnedFd>) {
        let Some(Next { mut table, sockets }) = self.next.take() else { return };
        let others = kept.split_off(self.table.len().min(kept.len()));
        let mut old: Vec<(Open, OwnedFd)> = self.table.drain(..).zip(kept.drain(..)).collect();
        let mut new = sockets.into_iter();
        for open in &mut table {
            let at = old.iter().position(|(o, _)| o.id == open.id);
            match at.map(|n| old.swap_remove(n)) {
                Some((was, socket)) => {
                    open.file = was.file;
                    kept.push(socket);
                }
                None => {
                    // The same socket under another number: its file goes on with it.
                    if let Some((o, _)) = old.iter_mut().find(|(o, _)| o.is_at(&open.rule.listen)) {
                        open.file = open.file.take().or(o.file.take());
                    }
                    kept.extend(new.next());
                }
            }
        }
        kept.extend(others);
        self.table = table;
    }

    /// What was prepared is given up.
    pub fn abandon(&mut self) {
        self.next = None;
    }

    /// A rule for another place in the guest at an address that a forward leaves: its socket goes on.
    fn again(&mut self, rule: &HostForward, stays: &[Open], kept: &[OwnedFd]) -> Option<(Open, OwnedFd)> {
        let was = self.table.iter().position(|o| o.is_at(&rule.listen))?;
        let (open, socket) = (self.table.get(was)?, kept.get(was)?);
        if stays.iter().any(|o| o.id == open.id) {
            return None;
        }
        let socket = socket.try_clone().ok()?;
        let bound = HostForward { listen: open.rule.listen.clone(), guest: rule.guest };
        Some((Open { id: self.new_id(), rule: bound, asked: rule.clone(), file: None }, socket))
    }

    fn new_id(&mut self) -> u16 {
        self.last_id = self.last_id.wrapping_add(1);
        while self.table.iter().any(|o| o.id == self.last_id) {
            self.last_id = self.last_id.wrapping_add(1);
        }
        self.last_id
    }

    /// A door that leads there, for the dataplane.
    fn door(&mut self, rule: &forward::GuestForward, beyond: Beyond) -> Result<OwnedFd, Fault> {
        let name = format!("{}: guest forwarding rule '{rule}'", self.what);
        let fix = "close something, or raise the limit (ulimit -n)";
        let made = Door::new(name, beyond, Instant::now());
        let (door, theirs) = made.map_err(|e| Fault::new(Exit::Unavailable, self.what.clone(), e, fix))?;
        self.doors.push(door);
        Ok(theirs)
    }

    fn listen(&mut self, rule: HostForward, asker: &mut Asker) -> Result<(Open, OwnedFd), Fault> {
        let (mut bound, mut file) = (rule.clone(), None);
        let refused = |e: io::Error, at: SocketAddr, tcp: bool| {
            let exit = match e.kind() {
                io::ErrorKind::PermissionDenied => Exit::Denied,
                _ => Exit::Unavailable,
            };
            let why = format!("Could not set up host forwarding rule '{rule}' ({})", words(&e));
            Fault::new(exit, self.what.clone(), why, remedy(&e, at, tcp))
        };
        let socket = match &rule.listen {
            Listen::Tcp(at) => {
                let (socket, at) = bind(*at, SockType::Stream)
                    .or_else(|e| by_helper(&self.what, *at, false, e, asker))
                    .map_err(|e| refused(e, *at, true))?;
                bound.listen = Listen::Tcp(at);
                socket
            }
            Listen::Udp(at) => {
                let (socket, at) = bind(*at, SockType::Datagram)
                    .or_else(|e| by_helper(&self.what, *at, true, e, asker))
                    .and_then(|(socket, at)| tell_local(socket.as_fd(), at.is_ipv6()).map(|()| (socket, at)))
                    .map_err(|e| refused(e, *at, false))?;
                bound.listen = Listen::Udp(at);
                socket
            }
            Listen::Unix(path) => {
                let (socket, f) = listen::unix(&self.what, path, self.mode)?;
                file = Some(f);
                socket
            }
        };
        Ok((Open { id: self.new_id(), rule: bound, asked: rule, file }, socket))
    }
}

impl Open {
    fn plan(&self) -> Forward {
        let way = match self.rule.listen {
            Listen::Tcp(_) => Way::Tcp,
            Listen::Udp(_) => Way::Udp,
            Listen::Unix(_) => Way::Unix,
        };
        Forward { id: self.id, way, guest: self.rule.guest }
    }

    fn is_at(&self, listen: &Listen) -> bool {
        self.rule.listen == *listen
    }

    /// The same, for a table that is not in force.
    fn unheld(&self) -> Self {
        Self { id: self.id, rule: self.rule.clone(), asked: self.asked.clone(), file: None }
    }
}

/// A socket at this address, listening if it is of streams; and its address, with the port that the kernel chose.
fn bind(at: SocketAddr, kind: SockType) -> io::Result<(OwnedFd, SocketAddr)> {
    let address = SockaddrStorage::from(at);
    let socket = socket::socket(address.family().unwrap_or(AddressFamily::Inet), kind, FLAGS, None)?;
    if at.is_ipv6() {
        // An address of IPv4 has a rule of its own.
        setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
    }
    if kind == SockType::Stream {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    socket::bind(socket.as_raw_fd(), &address)?;
    if kind == SockType::Stream {
        socket::listen(&socket, Backlog::new(BACKLOG)?)?;
    }
    let bound: SockaddrStorage = socket::getsockname(socket.as_raw_fd())?;
    let port = bound.as_sockaddr_in().map(|a| a.port()).or(bound.as_sockaddr_in6().map(|a| a.port()));
    Ok((socket, SocketAddr::new(at.ip(), port.unwrap_or(at.port()))))
}

/// A port that is root's, from the helper, if it is there and its policy allows it; else what the kernel said of our try.
fn by_helper(
    what: &str,
    at: SocketAddr,
    udp: bool,
    e: io::Error,
    asker: &mut Asker,
) -> io::Result<(OwnedFd, SocketAddr)> {
    if e.raw_os_error() != Some(libc::EACCES) || at.port() == 0 {
        return Err(e);
    }
    let request = Request::Listen(ListenRequest { udp, address: at.ip(), port: at.port() });
    match asker.socket(what, &request) {
        Ok(socket) => Ok((socket, at)),
        Err(fault) if fault.exit == Exit::TryAgain => Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
        // No helper, or it refuses: what is to be done is the same.
        Err(_) => Err(e),
    }
}

/// The kernel's words, without Rust's number.
fn words(e: &io::Error) -> String {
    e.to_string().split(" (os error").next().unwrap_or_default().to_owned()
}

fn remedy(e: &io::Error, at: SocketAddr, tcp: bool) -> String {
    let (ip, port) = (at.ip(), at.port());
    match e.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            let list = if tcp { "ss -ltnp" } else { "ss -lunp" };
            format!("see who has it ({list} sport = {port}), or give another port; 0 takes any that is free")
        }
        Some(libc::EACCES) => format!(
            "ports below 1024 are root's: give one above, or let root add 'allow user:{} listen {ip} port={port}' to \
             /etc/netreeve/policy.conf for the helper, or 'sysctl net.ipv4.ip_unprivileged_port_start={port}' for everybody",
            user_name()
        ),
        Some(libc::EADDRNOTAVAIL) => format!("{ip} is no address of this machine (ip address shows them)"),
        Some(libc::EAFNOSUPPORT) => "this machine has no IPv6: give an IPv4 address".into(),
        _ => "give another address or port".into(),
    }
}

/// What a guest forward goes to: an address for a connection each that the dataplane makes, or something to which the
/// supervisor makes them. Whether anybody is there is found out when the guest calls.
fn reach(what: &str, g: &forward::GuestForward, restrict: bool) -> Result<(To, Option<Beyond>), Fault> {
    match &g.to {
        Target::Unix(path) => {
            let short = UnixAddr::new(path).map(|_| Beyond::Unix(path.clone()));
            let beyond = short.map_err(|_| {
                let why = format!("Could not open guest forwarding device 'unix:{}'", path.display());
                Fault::new(Exit::Config, what, format!("{why} (File name too long)"), "give a shorter path")
            })?;
            Ok((To::Asked { tcp: false }, Some(beyond)))
        }
        Target::Tcp(name, port) => {
            let fault = |e: &io::Error| {
                let why =
                    format!("Could not open guest forwarding device 'tcp:{name}:{port}' ({})", words(e));
                Fault::new(Exit::Unavailable, what, why, "give an address, or a name that is known")
            };
            let mut all = (name.as_str(), *port).to_socket_addrs().map_err(|e| fault(&e))?;
            let at = all.next().ok_or_else(|| fault(&io::ErrorKind::AddrNotAvailable.into()))?;
            // The dataplane of a restricted network makes no socket at all.
            Ok(if restrict {
                (To::Asked { tcp: true }, Some(Beyond::Tcp(at)))
            } else {
                (To::Address(at), None)
            })
        }
    }
}

/// The directory whose files are read by TFTP: no more than its place, so that only what the dataplane's user may read
/// is read.
fn directory(what: &str, dir: &Path) -> Result<OwnedFd, Fault> {
    let open = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir);
    open.map(OwnedFd::from).map_err(|e| {
        let exit = if e.kind() == io::ErrorKind::PermissionDenied { Exit::Denied } else { Exit::Config };
        Fault::new(
            exit,
            format!("{what}: opening tftp={}", dir.display()),
            e,
            "name a directory that you may read",
        )
    })
}

#[cfg(test)]
#[path = "user_tests.rs"]
mod tests;
