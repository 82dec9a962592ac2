//! A slot: one port with its descriptors, kept so that the next dataplane gets the same.
//!
//! What may be handed on after a crash: taps, AF_XDP sockets with their UMEM, listening sockets, and a connection whose
//! state is known ([`Estate`]). Any other connection may not, because its peer has seen half of a conversation that died
//! with the dataplane; it is dialled again or lost, and no copy of it is kept, so that the peer sees its end.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use netreeve_shared::fdkind;
use netreeve_shared::grant::Grant;
use netreeve_shared::mac::Mac;
use netreeve_shared::request::Request;
use nix::sys::socket::{self, SockType, sockopt};

use crate::fault::{Exit, Fault};
use crate::handover::PortPlan;
use crate::port;
use crate::port::stream::framing::Framing;
use crate::port::vhost_user::feature::CHANNEL;
use crate::spec::addr::Addr;
use crate::spec::dgram::{Dgram, Ends};
use crate::spec::stream::Stream;
use crate::spec::vde::{Server, Vde};
use crate::spec::{self, Kind};
use crate::supervise::ask::Asker;
use crate::supervise::control::report::far_end;
use crate::supervise::datagram::{self, Aim, Opened};
use crate::supervise::dial::{self, Dialler, Step, Target};
use crate::supervise::estate::{self, Estate};
use crate::supervise::granted::{granted_tap, granted_xsk, handed_tap, may_be_taken_over, mtu_of};
use crate::supervise::link_watch;
use crate::supervise::listen::{self, SocketFile};
use crate::supervise::reception::Reception;
use crate::supervise::user::{self, Host};
use crate::supervise::vde::{self, Client, Plug, Switch};
use crate::sys;

/// Bytes of an Ethernet header with one VLAN tag.
pub(super) const ETHER: u32 = 18;
/// How long the first connection of a port without `reconnect-ms` may take.
const FIRST_DIAL: Duration = Duration::from_secs(10);

/// How a port is opened.
#[derive(Clone, Copy, Debug)]
pub struct How {
    /// Permission bits of unix sockets.
    pub mode: u32,
    /// A connection that is made only once is waited for; else it is on its way when the port is there.
    pub wait: bool,
}

/// One port.
#[derive(Debug)]
pub struct Slot {
    /// Its name.
    pub id: String,
    /// Its type's name.
    pub kind: &'static str,
    /// What a dataplane builds.
    pub plan: PortPlan,
    /// Descriptors that every dataplane gets.
    pub kept: Vec<OwnedFd>,
    /// VM side.
    pub device: bool,
    /// The only source address that it may use, whatever its netdev is.
    pub lock_mac: Option<Mac>,
    /// Where it is, if it is a socket.
    pub addr: Option<Addr>,
    /// Somebody is at the other end, as clients were told.
    pub connected: bool,
    /// The address of who is there, or of whom it has dialled last.
    pub far: Option<SocketAddr>,
    /// A connection that is not yet handed over.
    pub fresh: Option<OwnedFd>,
    /// Whoever was at the other end is gone, which the dataplane was not told yet.
    pub alone: bool,
    /// What is kept of a connection that was handed over.
    pub estate: Estate,
    /// Makes connections, if the port dials.
    pub dialler: Option<Dialler>,
    /// Where its UNIX datagram socket is aimed.
    pub aim: Option<Aim>,
    /// Where datagram clients come to.
    pub reception: Option<Reception>,
    /// Its place in a VDE switch.
    pub plug: Option<Plug>,
    /// What a user network has on the host's side.
    pub user: Option<Host>,
    /// The VDE switch that it is a port of.
    pub switch: Option<Box<Switch>>,
    /// It is the place in a hub of such a client.
    pub of_client: bool,
    /// Why what was on its way will not come.
    pub failed: Option<String>,
    /// The interface behind it, watched if it is in our network namespace.
    pub link: Option<Link>,
    /// The interface goes with its last descriptor.
    pub fleeting: bool,
    /// The file of its socket.
    pub file: Option<SocketFile>,
    /// The client of a VDE switch that it is there for. After its socket's file: it has the directory.
    pub client: Option<Client>,
    /// AF_XDP: names the grant until it is activated.
    pub ticket: Option<u32>,
    /// AF_XDP: closing the last copy detaches the program.
    pub xdp: Option<OwnedFd>,
    /// It cannot come back.
    pub gone: bool,
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name when it was granted.
    pub name: String,
    /// Its index in our network namespace; none: it is in another one.
    pub index: Option<u32>,
}

/// Takes over the descriptors that the command line names: before anything else is opened.
///
/// # Errors
/// One is not there.
pub fn adopt(port: &spec::Port) -> Result<Vec<OwnedFd>, Fault> {
    let take = |n: i32| {
        sys::process::adopt(n).map_err(|e| {
            let what = format!("port '{}': using descriptor {n}", port.id);
            Fault::new(
                Exit::Config,
                what,
                e,
                "let netreeve inherit it: in a shell, 3<>FILE or 3>&N after the command",
            )
        })
    };
    port.kind.inherited().into_iter().map(take).collect()
}

impl Slot {
    /// Opens what the port needs: asks the helper, listens, dials.
    ///
    /// # Errors
    /// It cannot be had.
    pub fn open(port: spec::Port, fds: Vec<OwnedFd>, asker: &mut Asker, how: How) -> Result<Self, Fault> {
        let what = format!("port '{}'", port.id);
        let kind = port.kind.name();
        match port.kind {
            Kind::Tap(spec::tap::Tap::Handed(_)) => handed_tap(port.id, &what, fds),
            Kind::Tap(spec::tap::Tap::Asked(request)) => {
                let fleeting = !request.persist;
                let (grant, fds) = asker.ask(&what, &Request::Tap(request))?;
                let Grant::Tap(grant) = grant else { return Err(mislabelled(&what)) };
                Ok(Self { fleeting, ..granted_tap(port.id, &grant, fds) })
            }
            Kind::Xsk(xsk) => {
                let request = xsk.bound(mtu_of(xsk.request.interface.as_str()));
                let (grant, fds) = asker.ask(&what, &request)?;
                let Grant::Xsk(grant) = grant else { return Err(mislabelled(&what)) };
                Ok(granted_xsk(port.id, &grant, fds))
            }
            Kind::Stream(s) => {
                let (redial, kind_of) = (s.reconnect_ms.is_some(), socket_kind(s.framing));
                let plan =
                    port::stream::Plan { server: s.server, redial, framing: s.framing, undone: s.undone };
                let plan = PortPlan::Stream(plan);
                let end =
                    End { addr: s.addr, server: s.server, reconnect_ms: s.reconnect_ms, how, kind: kind_of };
                end.open(Self::bare(port.id, kind, plan), &what, fds)
            }
            Kind::Dgram(d) => {
                let opened = datagram::open(&what, &d, fds, how.mode)?;
                Ok(datagrams(port.id, kind, opened))
            }
            Kind::Socket(n) => {
                let kind = inherited_kind(&what, n, &fds)?;
                Self::open(spec::Port { id: port.id, kind }, fds, asker, how)
            }
            Kind::Vde(v) => plug(port.id, kind, &what, v, how),
            Kind::Switch(s) => switch(port.id, kind, &what, s),
            Kind::L2tpv3(l) => {
                let opened = datagram::l2tp(&what, &l, asker)?;
                Ok(datagrams(port.id, kind, opened))
            }
            Kind::Hub(plan) => Ok(Self::bare(port.id, kind, PortPlan::Hub(plan))),
            Kind::User(u) => user_network(port.id, &what, *u, fds, how.mode, asker),
            Kind::VhostUser(v) => {
                // A connection that was handed over is of somebody who starts passt.
                let handed = if matches!(v.addr, Addr::Fd(_)) { CHANNEL } else { 0 };
                let plan = port::vhost_user::Plan {
                    queues: v.queues,
                    server: v.server,
                    mac: v.mac,
                    mtu: v.mtu,
                    hide: v.hide | handed,
                };
                let kind_of = SockType::Stream;
                let end =
                    End { addr: v.addr, server: v.server, reconnect_ms: v.reconnect_ms, how, kind: kind_of };
                end.open(Self::bare(port.id, kind, PortPlan::VhostUser(plan)), &what, fds)
            }
        }
    }

    /// A slot without anything.
    pub(crate) fn bare(id: String, kind: &'static str, plan: PortPlan) -> Self {
        Self {
            id,
            kind,
            plan,
            kept: Vec::new(),
            device: false,
            lock_mac: None,
            addr: None,
            connected: false,
            far: None,
            fresh: None,
            alone: false,
            estate: Estate::default(),
            dialler: None,
            aim: None,
            reception: None,
            plug: None,
            user: None,
            switch: None,
            client: None,
            of_client: false,
            failed: None,
            link: None,
            fleeting: false,
            file: None,
            ticket: None,
            xdp: None,
            gone: false,
        }
    }

    /// Most descriptors that are kept for it.
    #[must_use]
    pub fn descriptors(&self) -> u64 {
        let estate = match &self.plan {
            PortPlan::VhostUser(p) => estate::most_descriptors(p.queues),
            // The dataplane's flows are descriptors as well, and it has our limit.
            PortPlan::User(p) => p.limits.descriptors(),
            _ => 0,
        };
        let clients = self.switch.as_ref().map_or(0, |s| 2 * u64::from(s.spec().clients) + 32);
        self.kept.len() as u64 + estate + clients + 4
    }

    /// It is made of a connection that is on its way, and of nothing before that is there.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        let dials = self.dialler.as_ref().is_some_and(|d| !d.persists()) && self.fresh.is_none();
        let plugs = self.plug.as_ref().is_some_and(Plug::must_be_there) && self.kept.is_empty();
        dials || plugs
    }

    /// Another dataplane could use it.
    #[must_use]
    pub fn can_come_back(&self) -> bool {
        match &self.link {
            Some(link) => link.index.is_none_or(link_watch::is_here),
            // It is made of nothing.
            None if self.is_self_made() => true,
            None => {
                !self.kept.is_empty()
                    || self.reception.is_some()
                    || self.estate.whole().is_some()
                    || self.dialler.as_ref().is_some_and(Dialler::persists)
                    || self.plug.as_ref().is_some_and(Plug::persists)
            }
        }
    }

    /// It needs nobody at its other end to be what it is.
    fn is_self_made(&self) -> bool {
        matches!(self.plan, PortPlan::Hub(_) | PortPlan::User(_))
    }

    /// The dataplane that had its descriptors is dead: prepares what the next one gets.
    pub fn orphaned(&mut self, now: Instant) {
        if let PortPlan::Xsk(plan) = &mut self.plan {
            plan.resume = true;
            self.gone |= self.ticket.is_none() && !may_be_taken_over(&self.id);
        }
        self.listen_again();
        self.alone = false;
        if self.estate.whole().is_some() || self.is_self_made() {
            return;
        }
        self.estate.drop_all();
        if let Some(reception) = &self.reception {
            self.fresh = reception.copy();
            return;
        }
        if let Some(plug) = &self.plug {
            // What is kept is all there is.
            self.fresh = None;
            self.gone |= self.kept.is_empty() && !plug.persists();
            return;
        }
        match &mut self.dialler {
            Some(d) if d.persists() => d.dial(now),
            Some(_) => self.gone |= self.fresh.is_none(),
            // An inherited connection: it was handed over, and there is no other.
            None => self.gone |= self.kept.is_empty() && self.fresh.is_none(),
        }
    }
}

/// What an inherited socket is to be, by what it is (QEMU's `net_socket_fd_init`).
fn inherited_kind(what: &str, n: i32, fds: &[OwnedFd]) -> Result<Kind, Fault> {
    let about = fds.first().map(|fd| fdkind::socket(fd.as_fd()));
    match about.and_then(Result::ok).map(|s| s.kind) {
        Some(libc::SOCK_STREAM) => Ok(Kind::Stream(Stream::plain(Addr::Fd(n), false))),
        Some(libc::SOCK_DGRAM) => Ok(Kind::Dgram(Dgram { ends: Ends::Fd(n), strict: false, undone: None })),
        _ => {
            let why = "it must be either SOCK_DGRAM or SOCK_STREAM";
            let fix = "pass a connected socket";
            Err(Fault::new(Exit::Config, format!("{what}: using descriptor {n}"), why, fix))
        }
    }
}

/// A slot of a user network: forwards' sockets stay, whatever happens to the dataplane.
fn user_network(
    id: String,
    what: &str,
    spec: spec::user::User,
    inherited: Vec<OwnedFd>,
    mode: u32,
    asker: &mut Asker,
) -> Result<Slot, Fault> {
    let (host, plan, kept) = user::open(what, spec, inherited.into_iter().next(), mode, asker)?;
    let bare = Slot::bare(id, "user", PortPlan::User(Box::new(plan)));
    Ok(Slot { kept, user: Some(host), ..bare })
}

/// A slot of datagram sockets: every dataplane gets copies of the same ones.
fn datagrams(id: String, kind: &'static str, opened: Opened) -> Slot {
    let Opened { sockets, plan, aim, reception, file } = opened;
    Slot { kept: sockets, aim, reception, file, ..Slot::bare(id, kind, PortPlan::Dgram(plan)) }
}

/// A plug in a switch.
fn plug(id: String, kind: &'static str, what: &str, v: Vde, how: How) -> Result<Slot, Fault> {
    let max_frame = u32::from(v.mtu) + ETHER;
    let (plug, socket) = vde::open(what, v, how.wait)?;
    let plan = PortPlan::Dgram(port::dgram::Plan::plugged(max_frame));
    Ok(Slot { kept: socket.into_iter().collect(), plug: Some(plug), ..Slot::bare(id, kind, plan) })
}

/// A switch, which is a place in its hub.
fn switch(id: String, kind: &'static str, what: &str, s: Server) -> Result<Slot, Fault> {
    let (switch, plan) = Switch::open(what, s)?;
    let addr = Some(Addr::Unix(switch.home().ctl()));
    Ok(Slot { switch: Some(Box::new(switch)), addr, ..Slot::bare(id, kind, PortPlan::Hub(plan)) })
}

/// One end of a stream socket.
struct End {
    addr: Addr,
    server: bool,
    reconnect_ms: Option<u32>,
    how: How,
    kind: SockType,
}

fn socket_kind(framing: Framing) -> SockType {
    if framing == Framing::Packets { SockType::SeqPacket } else { SockType::Stream }
}

impl End {
    fn open(self, mut slot: Slot, what: &str, fds: Vec<OwnedFd>) -> Result<Slot, Fault> {
        slot.addr = Some(self.addr.clone());
        if let Addr::Fd(n) = self.addr {
            return self.inherited(slot, what, n, fds);
        }
        if !self.server {
            return self.dial(slot, what);
        }
        match &self.addr {
            Addr::Unix(path) => {
                let (socket, file) = match self.kind {
                    SockType::SeqPacket => listen::seqpacket(what, path, self.how.mode)?,
                    _ => listen::unix(what, path, self.how.mode)?,
                };
                slot.kept.push(socket);
                slot.file = Some(file);
            }
            Addr::Abstract(name) => slot.kept.push(listen::in_abstract(what, name, self.kind)?),
            Addr::Inet(inet) => {
                let addresses = dial::resolve(inet).map_err(|e| unresolved(what, &self.addr, &e))?;
                slot.kept.push(listen::tcp(what, inet, &addresses)?);
            }
            Addr::Vsock(cid, port) => slot.kept.push(listen::vsock(what, *cid, *port)?),
            Addr::Fd(_) => return Err(mislabelled(what)),
        }
        Ok(slot)
    }

    fn inherited(&self, mut slot: Slot, what: &str, n: i32, fds: Vec<OwnedFd>) -> Result<Slot, Fault> {
        let fault = |why: String| {
            let kind = if self.kind == SockType::SeqPacket { "SOCK_SEQPACKET" } else { "stream" };
            let fix = format!("pass a {} {kind} socket", if self.server { "listening" } else { "connected" });
            Fault::new(Exit::Config, format!("{what}: using descriptor {n}"), why, fix)
        };
        let fd = fds.into_iter().next().ok_or_else(|| fault("it is not there".into()))?;
        let about = fdkind::socket(fd.as_fd()).map_err(|e| fault(e.to_string()))?;
        if about.kind != self.kind as i32 {
            let is = if self.kind == SockType::SeqPacket { "SOCK_SEQPACKET" } else { "stream" };
            return Err(fault(format!("it is no {is} socket")));
        }
        if about.listening != self.server {
            let is = if about.listening {
                "it listens, but server=off"
            } else {
                "it does not listen, but server=on"
            };
            return Err(fault(is.into()));
        }
        // A frame waits for no other. What is no TCP socket does not know the option, and does not wait.
        let _other = socket::setsockopt(&fd, sockopt::TcpNoDelay, &true);
        if self.server {
            slot.kept.push(fd)
        } else {
            slot.far = far_end(fd.as_raw_fd());
            slot.fresh = Some(fd)
        }
        Ok(slot)
    }

    fn dial(self, mut slot: Slot, what: &str) -> Result<Slot, Fault> {
        let target = match &self.addr {
            Addr::Unix(path) => Target::Unix(path.clone()),
            Addr::Abstract(name) => Target::Abstract(name.clone()),
            Addr::Inet(inet) => Target::Tcp(inet.clone()),
            Addr::Vsock(cid, port) => Target::Vsock(*cid, *port),
            Addr::Fd(_) => return Err(mislabelled(what)),
        };
        let again = self.reconnect_ms.map(|ms| Duration::from_millis(u64::from(ms)));
        let mut dialler = Dialler::new(target, again).with(self.kind);
        dialler.dial(Instant::now());
        if again.is_none() && self.how.wait {
            let fd = first(&mut dialler).map_err(|e| {
                let exit = if e.kind() == std::io::ErrorKind::PermissionDenied {
                    Exit::Denied
                } else {
                    Exit::Unavailable
                };
                let fix = "start the peer first, or give reconnect-ms=1000 to try again and again";
                Fault::new(exit, format!("{what}: connecting to {}", self.addr), e, fix)
            })?;
            slot.far = far_end(fd.as_raw_fd());
            slot.fresh = Some(fd);
        }
        slot.dialler = Some(dialler);
        Ok(slot)
    }
}

/// Waits for a connection that is made only once.
fn first(dialler: &mut Dialler) -> std::io::Result<OwnedFd> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let until = Instant::now() + FIRST_DIAL;
    loop {
        match dialler.step(Instant::now()) {
            Step::Connected(fd) => return Ok(fd),
            Step::Failed(e) => return Err(e),
            Step::Pending if Instant::now() >= until => return Err(std::io::ErrorKind::TimedOut.into()),
            Step::Pending => {}
        }
        let mut fds: Vec<PollFd<'_>> =
            dialler.fd().map(|fd| PollFd::new(fd, PollFlags::POLLOUT)).into_iter().collect();
        let _ready = poll(&mut fds, PollTimeout::from(100_u8));
    }
}

fn unresolved(what: &str, addr: &Addr, e: &std::io::Error) -> Fault {
    Fault::new(
        Exit::Unavailable,
        format!("{what}: finding the address of {addr}"),
        e,
        "give an address in numbers",
    )
}

/// An answer or a plan that does not fit what was asked for.
pub(crate) fn mislabelled(what: &str) -> Fault {
    Fault::new(Exit::General, what, "an inconsistent plan", "this is a defect of netreeve: please report it")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn stream() -> Slot {
        Slot::bare("s".into(), "stream", PortPlan::Stream(port::stream::Plan::default()))
    }

    fn socket() -> OwnedFd {
        UnixStream::pair().unwrap().0.into()
    }

    fn dials(again: Option<Duration>) -> Slot {
        Slot { dialler: Some(Dialler::new(Target::Unix("/nonexistent/x".into()), again)), ..stream() }
    }

    #[test]
    fn what_may_be_handed_on_stays_and_connections_do_not() {
        let now = Instant::now();
        let mut listens = Slot { kept: vec![socket()], ..stream() };
        listens.orphaned(now);
        assert!(!listens.gone && listens.can_come_back());

        let mut inherited = stream();
        inherited.orphaned(now);
        assert!(inherited.gone && !inherited.can_come_back());

        let mut once = dials(None);
        once.orphaned(now);
        assert!(once.gone && !once.can_come_back());

        let mut often = dials(Some(Duration::from_secs(5)));
        often.orphaned(now);
        assert!(!often.gone && often.can_come_back());
        assert_eq!(often.dialler.unwrap().due(), Some(now), "at once: the peer is there, only we died");

        let mut unsent = Slot { fresh: Some(socket()), ..dials(None) };
        unsent.orphaned(now);
        assert!(!unsent.gone, "nobody has used it yet");
    }

    #[test]
    fn the_visitor_that_is_there_is_not_told_away_and_one_that_left_is_not_handed_over() {
        // A's socket waits for the dataplane; A leaves.
        let mut slot = Slot { fresh: Some(socket()), ..stream() };
        slot.visited(false, None);
        assert!(slot.fresh.is_some() && !slot.alone);
        slot.visited(true, None);
        assert!(slot.fresh.is_none() && slot.alone);
        // B comes before anybody was told.
        slot.visited(false, Some(socket()));
        assert!(slot.fresh.is_some() && !slot.alone);
        slot.fresh = None;
        // C in the turn in which B leaves.
        slot.visited(true, Some(socket()));
        assert!(slot.fresh.is_some() && !slot.alone);
    }

    #[test]
    fn rings_are_taken_over_by_the_next_one() {
        let plan = port::xsk::Plan {
            queues: 1,
            mtu: 1500,
            ring: 64,
            chunk: 2048,
            chunks: 128,
            headroom: 0,
            multi_buffer: false,
            resume: false,
            late: false,
        };
        let link = Link { name: "nowhere".into(), index: Some(i32::MAX.cast_unsigned()) };
        let mut slot = Slot {
            kept: vec![socket()],
            link: Some(link),
            ..Slot::bare("x".into(), "af-xdp", PortPlan::Xsk(plan))
        };
        assert!(!slot.can_come_back(), "its interface is gone");
        slot.link = Some(Link { name: "elsewhere".into(), index: None });
        assert!(slot.can_come_back(), "it cannot be known");
        slot.orphaned(Instant::now());
        assert!(matches!(slot.plan, PortPlan::Xsk(p) if p.resume));
    }

    #[test]
    fn descriptors_must_be_what_the_options_say() {
        let kind = SockType::Stream;
        let how = How { mode: 0o600, wait: true };
        let end = |server| End { addr: Addr::Fd(9), server, reconnect_ms: None, how, kind };
        assert!(end(false).open(stream(), "p", vec![socket()]).unwrap().fresh.is_some());
        assert!(end(true).open(stream(), "p", vec![socket()]).unwrap_err().why.contains("does not listen"));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let fds = vec![OwnedFd::from(listener)];
        assert!(end(false).open(stream(), "p", fds).unwrap_err().why.contains("it listens"));
        let datagram = std::os::unix::net::UnixDatagram::unbound().unwrap();
        let fds = vec![OwnedFd::from(datagram)];
        assert_eq!(end(false).open(stream(), "p", fds).unwrap_err().why, "it is no stream socket");
        let fault = handed_tap("t".into(), "p", vec![socket()]).unwrap_err();
        assert!(fault.why.starts_with("Unable to query TUNGETIFF"), "{fault}");
    }
}
