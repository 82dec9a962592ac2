//! What a `user` network has on the host's side: the sockets of its forwards, the doors of its guest forwards, the directory
//! of its files, the host's resolvers.
//!
//! Forwards change as one table: the sockets of the new ones are opened first, then the dataplane is told the whole, and
//! when it says *done* those that are no longer in it are closed. What fails leaves everything as it was.
//!
//! Trust: the user. Promise: a UNIX socket is made and removed as [`listen`] promises; a socket that stays in the table
//! is never closed and opened again, so nobody else can take its port.
#![forbid(unsafe_code)]

mod again;

use std::fs;
use std::io;
use std::net::ToSocketAddrs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Instant;

use netreeve_shared::channel::MAX_FDS;
use netreeve_shared::codec::{self, Header};
use nix::sys::socket::{SockType, UnixAddr};

use crate::engine::KIND;
use crate::fault::{Exit, Fault};
use crate::handover::PortPlan;
use crate::port::user::plan::{Boot, Forward, GuestForward, MAC, Plan, Range, To, V4, V6};
use crate::port::user::policy::Policy;
use crate::spec::forward::{self, Bind, HostForward, Listen, Target};
use crate::spec::user::{FORWARDS, User};
use crate::supervise::ask::Asker;
use crate::supervise::doors::{Beyond, Door};
use crate::supervise::inside::{self, Inside};
use crate::supervise::listen::{self, SocketFile};
use crate::supervise::ports;
use crate::supervise::resolvers::{self, Resolvers};
use crate::supervise::shortage::{room_later, say_limits};
use ports::{by_helper, remedy, words};

/// Most bytes of a plan: what a message holds less what the other ports need.
const PLAN: usize = codec::MAX - 512;
/// The MTU where nobody says another.
const MTU: u16 = 1500;

/// One forward, open.
#[derive(Debug)]
struct Open {
    /// The number of its first socket; the others have those behind it.
    id: u32,
    sockets: u32,
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
    next_id: u32,
    /// Sockets of the table that the dataplane began with.
    began: usize,
    /// The host's resolvers.
    pub resolvers: Resolvers,
    /// Doors of guest forwards.
    pub doors: Vec<Door>,
    /// Who binds sockets inside the namespace that is the guest, if it is one.
    inside: Option<Inside>,
}

/// Opens what a network needs: the host's side, what a dataplane builds, and its descriptors in the plan's order. `inherited`
/// is the descriptor that `ns-fd=` names.
///
/// # Errors
/// A forward's address, a guest forward's peer or the directory cannot be had.
pub fn open(
    what: &str,
    spec: User,
    inherited: Option<OwnedFd>,
    mode: u32,
    asker: &mut Asker,
) -> Result<(Host, Plan, Vec<OwnedFd>), Fault> {
    let limits = spec.limits();
    let resolvers = match spec.resolvers.is_empty() {
        true => Resolvers::new(Path::new(resolvers::FILE)),
        false => Resolvers::fixed(spec.resolvers),
    };
    let inside = inherited.map(|fd| Inside::handed(what, fd, spec.restrict)).transpose()?;
    let mut host = Host {
        what: what.to_owned(),
        mode,
        v4: spec.v4,
        v6: spec.v6,
        table: Vec::new(),
        next: None,
        next_id: 1,
        began: 0,
        resolvers,
        doors: Vec::new(),
        inside,
    };
    ports::leaves(what, &spec.outbound)?;
    let mut kept = Vec::new();
    for rule in spec.forwards {
        let (open, sockets) = host.listen(rule, asker)?;
        host.table.push(open);
        kept.extend(sockets);
    }
    host.begins();
    say_limits(what, spec.restrict, kept.len(), limits);
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
        outbound: spec.outbound,
        limits,
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

impl Host {
    /// The table in force, as a dataplane knows it.
    #[must_use]
    pub fn forwards(&self) -> Vec<Forward> {
        self.table.iter().map(Open::plan).collect()
    }

    /// Sockets of the table in force.
    #[must_use]
    pub fn sockets(&self) -> usize {
        count(&self.table)
    }

    /// A dataplane begins with this table.
    pub fn begins(&mut self) {
        self.began = self.sockets();
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
        let ports = new.iter().map(|r| r.listen.ports()).sum::<usize>();
        if ports > MAX_FDS {
            let why = format!("more than {MAX_FDS} new ports at once");
            return Err(fault(&why, "make the change in several steps"));
        }
        room_later(&self.what, self.began, self.sockets(), ports)?;
        if table.len() + new.len() > FORWARDS {
            return Err(fault(&format!("more than {FORWARDS} forwards"), "remove some"));
        }
        let mut sockets = Vec::new();
        for rule in new {
            let (open, new) = match self.again(&rule, &table, kept) {
                Some(again) => again,
                None => self.listen(rule, asker)?,
            };
            table.push(open);
            sockets.extend(new);
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
        let others = kept.split_off(self.sockets().min(kept.len()));
        let mut all = kept.drain(..);
        let mut old: Vec<(Open, Vec<OwnedFd>)> = Vec::new();
        for open in self.table.drain(..) {
            let its = all.by_ref().take(number(open.sockets)).collect();
            old.push((open, its));
        }
        drop(all);
        let mut new = sockets.into_iter();
        for open in &mut table {
            let at = old.iter().position(|(o, _)| o.id == open.id);
            match at.map(|n| old.swap_remove(n)) {
                Some((was, sockets)) => {
                    open.file = was.file;
                    kept.extend(sockets);
                }
                None => {
                    // The same socket under another number: its file goes on with it.
                    if let Some((o, _)) = old.iter_mut().find(|(o, _)| o.is_at(&open.rule.listen)) {
                        open.file = open.file.take().or(o.file.take());
                    }
                    kept.extend(new.by_ref().take(number(open.sockets)));
                }
            }
        }
        kept.extend(others);
        self.table = table;
    }

    /// A dataplane to come can be told `plan` with what was prepared.
    ///
    /// # Errors
    /// It is too long.
    pub fn fits(&self, plan: &Plan) -> Result<(), Fault> {
        let Some((forwards, _)) = self.prepared() else { return Ok(()) };
        fits(&self.what, &Plan { forwards, ..plan.clone() })
    }

    /// What was prepared is given up.
    pub fn abandon(&mut self) {
        self.next = None;
    }

    /// A rule for another place in the guest at an address that a forward leaves: its sockets go on.
    fn again(
        &mut self,
        rule: &HostForward,
        stays: &[Open],
        kept: &[OwnedFd],
    ) -> Option<(Open, Vec<OwnedFd>)> {
        let was = self.table.iter().position(|o| o.is_at(&rule.listen))?;
        let (before, open) = (count(self.table.get(..was)?), self.table.get(was)?);
        if stays.iter().any(|o| o.id == open.id) {
            return None;
        }
        let its = kept.get(before..)?.get(..number(open.sockets))?;
        let sockets: Vec<OwnedFd> = its.iter().map(OwnedFd::try_clone).collect::<Result<_, _>>().ok()?;
        let bound = HostForward { listen: open.rule.listen.clone(), guest: rule.guest };
        Some((self.opened(bound, rule.clone(), &sockets, None), sockets))
    }

    /// A new one of the table, with numbers that no other has.
    fn opened(
        &mut self,
        rule: HostForward,
        asked: HostForward,
        sockets: &[OwnedFd],
        file: Option<SocketFile>,
    ) -> Open {
        let sockets = u32::try_from(sockets.len()).unwrap_or(u32::MAX);
        let taken = |id: u32, end: u32| self.table.iter().any(|o| o.id < end && id < o.id + o.sockets);
        let mut id = self.next_id;
        let end = loop {
            match id.checked_add(sockets) {
                Some(end) if !taken(id, end) => break end,
                Some(end) => id = end,
                None => id = 1,
            }
        };
        self.next_id = end;
        Open { id, sockets, rule, asked, file }
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

    /// The sockets of a rule.
    fn listen(&mut self, rule: HostForward, asker: &mut Asker) -> Result<(Open, Vec<OwnedFd>), Fault> {
        inside::check(&self.what, &rule, self.inside.is_some())?;
        let (mut bound, mut file) = (rule.clone(), None);
        let sockets = match &mut bound.listen {
            Listen::Tcp(bind) => self.bound(&rule, bind, SockType::Stream, asker)?,
            Listen::Udp(bind) => self.bound(&rule, bind, SockType::Datagram, asker)?,
            Listen::Unix(path) => {
                let (socket, f) = listen::unix(&self.what, path, self.mode)?;
                file = Some(f);
                vec![socket]
            }
        };
        Ok((self.opened(bound, rule, &sockets, file), sockets))
    }

    /// A socket at each port, and in `bind` the one that the kernel chose.
    fn bound(
        &mut self,
        rule: &HostForward,
        bind: &mut Bind,
        kind: SockType,
        asker: &mut Asker,
    ) -> Result<Vec<OwnedFd>, Fault> {
        let tcp = kind == SockType::Stream;
        let (mut sockets, mut first, range) = (Vec::new(), None, bind.ports() > 1);
        for port in bind.at.port()..=bind.last {
            let mut one = Bind { last: port, ..*bind };
            one.at.set_port(port);
            let had = match self.inside.as_mut().filter(|_| one.inside) {
                Some(inside) => inside.bind(&one, !tcp),
                None => ports::bind(&one, kind).or_else(|e| by_helper(&self.what, &one, !tcp, e, asker)),
            };
            match had {
                Ok((socket, chosen)) => {
                    if !range {
                        bind.at.set_port(chosen);
                        bind.last = chosen;
                    }
                    sockets.push(socket);
                }
                Err(e) if bind.willing && ports::is_another_s(&e) => first = first.or(Some((e, one))),
                Err(e) => return Err(self.refused(rule, &e, &one, tcp)),
            }
        }
        match first {
            Some((e, one)) if sockets.is_empty() => Err(self.refused(rule, &e, &one, tcp)),
            _ => Ok(sockets),
        }
    }

    fn refused(&self, rule: &HostForward, e: &io::Error, one: &Bind, tcp: bool) -> Fault {
        let exit = match e.kind() {
            io::ErrorKind::PermissionDenied => Exit::Denied,
            _ => Exit::Unavailable,
        };
        let which = if rule.listen.ports() > 1 { format!("port {}: ", one.at.port()) } else { String::new() };
        let why = format!("Could not set up host forwarding rule '{rule}' ({which}{})", words(e));
        Fault::new(exit, self.what.clone(), why, remedy(e, one, tcp))
    }
}

impl Open {
    fn plan(&self) -> Forward {
        let range = match self.rule.listen {
            Listen::Tcp(b) | Listen::Udp(b) if b.ports() > 1 => {
                Some(Range { first: b.at.port(), sockets: self.sockets })
            }
            _ => None,
        };
        Forward { id: self.id, way: self.rule.listen.way(), guest: self.rule.guest, range }
    }

    fn is_at(&self, listen: &Listen) -> bool {
        self.rule.listen.is_at(listen)
    }

    /// The same, for a table that is not in force.
    fn unheld(&self) -> Self {
        Self {
            id: self.id,
            sockets: self.sockets,
            rule: self.rule.clone(),
            asked: self.asked.clone(),
            file: None,
        }
    }
}

/// Sockets of a table.
fn count(table: &[Open]) -> usize {
    table.iter().map(|o| number(o.sockets)).sum()
}

fn number(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
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
