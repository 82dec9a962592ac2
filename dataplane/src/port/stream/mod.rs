//! Port `stream`: QEMU's stream framing, and others', over a TCP, UNIX or vsock connection.
//!
//! There is one connection at a time. A server accepts one client; later ones wait in the backlog until it leaves. A
//! client's connection is dialled by the supervisor, again if the plan says so. Every connection begins with nothing
//! left of the one before: neither a half-received nor a half-sent frame. Whole frames that came before the end go on.
//!
//! Trust: none in the peer. Promise: back-pressure without loss both ways while connected; a peer that breaks the
//! framing loses its connection and nothing else; no checksum or segmentation is left to do in what is sent, for the
//! format has no place to say so, nor in what is received: a peer of whom the plan says that it leaves work undone
//! ([`Plan::undone`]) has its frames looked at.
#![forbid(unsafe_code)]

pub mod framing;
pub mod inbox;
mod outbox;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use netreeve_shared::fdkind;
use netreeve_shared::vnet::Vnet;
use nix::sys::socket::{Shutdown, shutdown};
use serde::{Deserialize, Serialize};

use crate::frame::{Batch, Frame};
use crate::offload;
use crate::port::stream::framing::Framing;
use crate::port::stream::inbox::{Inbox, Next};
use crate::port::stream::outbox::{Outbox, Stop, is_full, send_packets};
use crate::port::{Change, FarEnd, Interest, Offloads, OpenError, Port, Queues, Traits, Watch, not_accepted};
use crate::sandbox::call::{Call, Cond, NEVER_WAITS};
use crate::stats::{Reason, Stats};
use crate::sys::fd::set_nonblocking;
use crate::sys::io as sys;
use crate::sys::sock::{self, Ask, Opt};

/// A stream as the dataplane opens it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The descriptor is a listening socket; else a connection that the supervisor dials.
    pub server: bool,
    /// The supervisor dials again when the connection is lost (`reconnect-ms`).
    pub redial: bool,
    /// How frames stand in it.
    pub framing: Framing,
    /// The peer leaves checksums and segmentation to do, without a header that says so; the MTU in bytes that segments
    /// are made for.
    pub undone: Option<u16>,
}

/// What it calls once locked in.
pub const CALLS: &[Call] = &[
    Call::any(libc::SYS_recvfrom),
    // No address: a stream's descriptor sends to nobody but its peer.
    Call::only(libc::SYS_sendto, &[Cond::null(4)]),
    Call::any(libc::SYS_writev),
    // Connections do not wait, wherever they come from.
    Call::only(libc::SYS_fcntl, &[Cond::is(1, libc::F_GETFL.cast_unsigned())]),
    NEVER_WAITS,
    Call::any(libc::SYS_accept4),
    Call::any(libc::SYS_shutdown),
    // fdkind::socket, for a connection that is handed in later.
    Call::only(libc::SYS_getsockopt, &[Cond::is(1, 1)]),
    // `lengthen`, SO_SNDBUF.
    Call::only(libc::SYS_setsockopt, &[Cond::is(1, 1), Cond::is(2, 7)]),
];

/// What opening one calls in addition, once locked in: nothing.
pub const OPENS: &[Call] = &[];

/// Space in the inbox below which a read is not worth its call while frames are there.
const WORTH: u32 = 4096;
/// Bytes asked for that may be on their way to the peer of a UNIX socket; the kernel gives twice that for its
/// book-keeping, within `wmem_max`. By itself it gives 208 KiB, little more than a batch, and tells of room when three
/// quarters are read: writer and reader would wait for each other in turns. TCP finds its own length.
const SEND: i32 = 1 << 19;
/// Empty messages in a row that are told from the end of a connection.
const EMPTY: u64 = 16;

struct Stream {
    plan: Plan,
    listener: Option<OwnedFd>,
    conn: Option<OwnedFd>,
    /// Where a client came from.
    from: Option<SocketAddr>,
    /// Nothing more is sent over the connection, which was shut down so that its descriptor becomes ready and says so.
    lost: bool,
    /// Nothing more can be read from it.
    over: bool,
    /// That, or the last one's end, is because its peer broke the framing.
    broken: bool,
    /// Frames can pass to and from the peer on the lane.
    peer_up: bool,
    /// Frames that come are looked at for work that is left to do.
    looks: bool,
    connected_before: bool,
    inbox: Inbox,
    outbox: Outbox,
    stats: Stats,
}

/// Opens a stream: a server on its listening socket, a client on its connection, or on nothing if that is yet to be
/// dialled.
///
/// # Errors
/// The descriptor is not what the plan says.
pub fn open(plan: &Plan, fds: Vec<OwnedFd>) -> Result<Queues, OpenError> {
    let fail = |what| move |source: io::Error| OpenError { what, source: Some(source) };
    let mut fds = fds.into_iter();
    let (fd, more) = (fds.next(), fds.next());
    if more.is_some() || (plan.server && fd.is_none()) {
        return Err(OpenError { what: "a stream needs one descriptor", source: None });
    }
    let mut port = Stream {
        plan: plan.clone(),
        listener: None,
        conn: None,
        from: None,
        lost: false,
        over: false,
        broken: false,
        peer_up: true,
        looks: plan.undone.is_some() || plan.framing == Framing::Vnet,
        connected_before: false,
        inbox: Inbox::new(plan.framing).map_err(fail("no memory for a stream"))?,
        outbox: Outbox::new(plan.framing).map_err(fail("no memory for a stream"))?,
        stats: Stats::default(),
    };
    if let Some(fd) = fd {
        check(&fd, plan).map_err(fail("a descriptor is not the stream socket that was said"))?;
        if plan.server {
            set_nonblocking(fd.as_fd()).map_err(fail("a listening socket cannot be made non-blocking"))?;
            port.listener = Some(fd);
        } else {
            set_nonblocking(fd.as_fd()).map_err(fail("a connection cannot be made non-blocking"))?;
            port.begin(fd);
        }
    }
    Ok(vec![Box::new(port)])
}

fn check(fd: &OwnedFd, plan: &Plan) -> io::Result<()> {
    let s = fdkind::socket(fd.as_fd())?;
    let kind = if plan.framing == Framing::Packets { libc::SOCK_SEQPACKET } else { libc::SOCK_STREAM };
    if s.kind == kind && s.listening == plan.server {
        return Ok(());
    }
    Err(io::ErrorKind::InvalidInput.into())
}

/// Asks for a long queue towards a UNIX peer, unless its maker did; without it all is well, and slower.
fn lengthen(fd: &OwnedFd) {
    let is_short = || sock::get(fd.as_fd(), Ask::SendBuffer).is_ok_and(|has| has < SEND);
    if fdkind::socket(fd.as_fd()).is_ok_and(|s| s.family == libc::AF_UNIX) && is_short() {
        let _less = sock::set(fd.as_fd(), Opt::SendBuffer, SEND);
    }
}

impl Stream {
    fn begin(&mut self, fd: OwnedFd) -> Change {
        lengthen(&fd);
        self.inbox.reset();
        self.outbox.reset();
        (self.lost, self.over) = (false, false);
        self.broken = false;
        self.conn = Some(fd);
        self.from = None;
        if self.connected_before {
            self.stats.reconnects += 1;
        }
        self.connected_before = true;
        Change { rewire: true, link: Some(true), ..Change::default() }
    }

    /// The connection is lost. What the kernel has of it is still read (vsock keeps nothing): nothing is added, and then it says that it is
    /// over. Its end is handled when its descriptor is ready, which shutting it down makes sure of.
    fn lose(&mut self) {
        if let Some(conn) = &self.conn {
            // It may be shut down already, by the peer.
            let _ = shutdown(conn.as_raw_fd(), Shutdown::Both);
            self.lost = true;
        }
    }

    /// And all of it is read, or not worth it.
    fn finish(&mut self) {
        self.lose();
        self.over = true;
    }

    fn end(&mut self) -> Change {
        self.conn = None;
        (self.lost, self.over) = (false, false);
        self.inbox.reset();
        self.outbox.reset();
        let redial = self.plan.redial && !self.plan.server;
        Change { rewire: true, link: Some(false), redial, later: false }
    }

    /// Reads once. True: bytes came.
    fn read(&mut self, may_move: bool) -> bool {
        let Some(conn) = &self.conn else { return false };
        let space = self.inbox.space(may_move);
        if !may_move && space.len() < WORTH {
            return false;
        }
        match sys::recv(conn.as_fd(), &space, libc::MSG_DONTWAIT) {
            Ok(n) if n > 0 => {
                self.inbox.filled(n);
                true
            }
            Err(e) if is_full(&e) => false,
            Ok(_) | Err(_) => {
                self.finish();
                false
            }
        }
    }

    /// Reads messages, at most `most` of them. True: some came. An empty message looks like the end, which stays.
    fn read_packets(&mut self, may_move: bool, most: usize) -> bool {
        let (mut came, mut left, mut empty) = (false, most, 0);
        while left > 0 {
            let Some(conn) = &self.conn else { break };
            let space = self.inbox.space(may_move && !came);
            if space.is_empty() {
                break;
            }
            let said = sys::recv(conn.as_fd(), &space, libc::MSG_DONTWAIT | libc::MSG_TRUNC);
            if matches!(said, Ok(0)) && empty < EMPTY {
                empty += 1;
                continue;
            }
            left -= 1;
            if !matches!(said, Ok(0)) {
                self.stats.drop_n(Reason::Runt, std::mem::take(&mut empty));
            }
            match said {
                Ok(0) => {
                    self.finish();
                    break;
                }
                // Its boundaries are the kernel's: the next one is as good as ever.
                Ok(n) if n > space.len() as usize => self.stats.drop(Reason::Oversize),
                Ok(n) => {
                    self.inbox.filled(n);
                    came = true;
                }
                Err(e) if is_full(&e) => break,
                Err(_) => {
                    self.finish();
                    break;
                }
            }
        }
        came
    }

    /// Gives the frames that are here. Anything odd is dealt with only when it stands first: then what was given
    /// before it has gone on, and it is counted once.
    fn give(&mut self, b: &mut Batch) {
        while b.room() > 0 {
            match self.inbox.peek() {
                Next::Frame { at, seg, end } => {
                    let v = if self.looks { self.header(at, seg.len()) } else { Some(Vnet::default()) };
                    let Some(v) = v else {
                        if b.is_empty() {
                            self.stats.drop(Reason::BadHeader);
                            self.inbox.pass(end);
                            continue;
                        }
                        return;
                    };
                    self.inbox.pass(end);
                    let Some(f) = b.push() else { return };
                    f.cookie = at.into();
                    f.len = seg.len();
                    f.set_lead(seg);
                    let n = f.head_from(&seg);
                    if self.looks {
                        f.vnet = v;
                        self.look(f);
                    }
                    b.push_seg(seg.skip(n));
                }
                Next::Partial => return,
                _ if !b.is_empty() => return,
                Next::Empty { end } => {
                    self.inbox.pass(end);
                    self.stats.drop(Reason::Runt);
                }
                Next::Oversize => {
                    self.stats.drop(Reason::Oversize);
                    // Nothing after it can be believed.
                    self.inbox.reset();
                    self.broken = true;
                    self.finish();
                    return;
                }
            }
        }
    }

    /// What the header before a frame of `len` bytes says; none: it cannot be its.
    fn header(&self, at: u32, len: u32) -> Option<Vnet> {
        if self.plan.framing != Framing::Vnet {
            return Some(Vnet::default());
        }
        let v = self.inbox.header(at);
        v.check(len).is_ok().then_some(v)
    }

    /// Finds out what is left to do on a frame that comes without a header.
    fn look(&self, f: &mut Frame) {
        if let Some(mtu) = self.plan.undone.filter(|_| self.plan.framing != Framing::Vnet) {
            offload::recognise(f, mtu);
        }
    }

    /// The framing has a place for what is left to do.
    fn offloads(&self) -> Offloads {
        if self.plan.framing == Framing::Vnet { Offloads::ALL } else { Offloads::NONE }
    }
}

impl Port for Stream {
    fn traits(&self) -> Traits {
        Traits {
            // It carries what it is given, as QEMU does.
            min_frame: 1,
            max_frame: self.plan.framing.max_frame(),
            takes: self.offloads(),
            gives: if self.plan.undone.is_some() { Offloads::ALL } else { self.offloads() },
            rewinds: true,
            joinable: true,
            up: self.conn.is_some(),
            ..Traits::default()
        }
    }

    fn watch(&self, w: &mut Watch) {
        match (&self.conn, &self.listener) {
            (Some(conn), _) => {
                w.add(conn.as_raw_fd(), Interest::Gives);
                w.add(conn.as_raw_fd(), Interest::Takes);
                // Nothing is read then, and its end would not be seen.
                if !self.peer_up {
                    w.add(conn.as_raw_fd(), Interest::Gone);
                }
            }
            (None, Some(listener)) => w.add(listener.as_raw_fd(), Interest::Control),
            (None, None) => {}
        }
    }

    fn peer_up(&mut self, up: bool) {
        self.peer_up = up;
    }

    fn peer_new(&mut self) -> bool {
        let cut = self.outbox.disown();
        if let Some(len) = cut {
            self.stats.tx_frames += 1;
            self.stats.tx_bytes += u64::from(len);
        }
        cut.is_some()
    }

    fn recv(&mut self, b: &mut Batch) -> io::Result<()> {
        if self.conn.is_none() {
            return Ok(());
        }
        // What came whole before the end goes on after it.
        self.give(b);
        if b.room() == 0 || self.over || self.inbox.is_odd() {
            return Ok(());
        }
        let came = match self.plan.framing {
            Framing::Packets => self.read_packets(b.is_empty(), b.room()),
            _ => self.read(b.is_empty()),
        };
        if came {
            self.give(b);
        }
        Ok(())
    }

    fn send(&mut self, b: &Batch) -> io::Result<usize> {
        let stats = &mut self.stats;
        let mut count = |f: &Frame, lost: Option<Reason>| match lost {
            Some(why) => stats.drop(why),
            None => {
                stats.tx_frames += 1;
                stats.tx_bytes += u64::from(f.len);
            }
        };
        let (taken, stop) = match (&self.conn, self.plan.framing) {
            (Some(conn), Framing::Packets) if !self.lost => send_packets(conn.as_fd(), b, count),
            (Some(conn), _) if !self.lost => self.outbox.send(conn.as_fd(), b, |f| count(f, None)),
            _ => (0, Stop::Lost),
        };
        if self.outbox.passed_over || self.plan.framing == Framing::Packets {
            let most = self.plan.framing.max_frame();
            let passed = b.frames().iter().take(taken).filter(|f| !f.dropped && f.len > most);
            self.stats.drop_n(Reason::Oversize, passed.count() as u64);
        }
        if stop != Stop::Lost {
            return Ok(taken);
        }
        let rest = b.frames().get(taken..).unwrap_or_default();
        for _ in rest.iter().filter(|f| !f.dropped) {
            self.stats.drop(Reason::PeerDown);
        }
        if !self.lost {
            self.lose();
        }
        Ok(b.frames().len())
    }

    fn release(&mut self, b: &Batch, taken: usize) {
        for f in b.frames().iter().take(taken) {
            self.stats.rx_frames += 1;
            self.stats.rx_bytes += u64::from(f.len);
        }
        if let Some(at) = b.frames().get(taken).and_then(|f| u32::try_from(f.cookie).ok()) {
            self.inbox.rewind(at);
        }
    }

    fn arm_gives(&mut self) -> bool {
        self.conn.is_some() && self.inbox.is_ready()
    }

    fn event(&mut self, fd: RawFd, why: Interest) -> io::Result<Change> {
        if self.conn.as_ref().is_some_and(|c| c.as_raw_fd() == fd) && self.lost {
            // Not before what came whole has gone on; until then there is a turn for every event. Where it cannot go
            // there is none, and its end would be told for ever.
            let goes_on = self.peer_up && (!self.over || self.inbox.is_ready());
            return Ok(if goes_on { Change::default() } else { self.end() });
        }
        if why == Interest::Gone {
            // What it sent before has nowhere to go.
            return Ok(if self.conn.is_some() { self.end() } else { Change::default() });
        }
        let Some(listener) = self.listener.as_ref().filter(|l| l.as_raw_fd() == fd && self.conn.is_none())
        else {
            return Ok(Change::default());
        };
        if why != Interest::Control {
            return Ok(Change::default());
        }
        match sys::accept_from(listener.as_fd()) {
            Ok((fd, from)) => {
                let change = self.begin(fd);
                self.from = from;
                Ok(change)
            }
            Err(e) => not_accepted(e),
        }
    }

    fn connect(&mut self, fd: OwnedFd) -> io::Result<Change> {
        if self.plan.server {
            return Err(io::ErrorKind::Unsupported.into());
        }
        check(&fd, &self.plan)?;
        set_nonblocking(fd.as_fd())?;
        Ok(self.begin(fd))
    }

    fn far_end(&self) -> Option<FarEnd> {
        Some(match self.conn {
            Some(_) => FarEnd::Somebody(self.from),
            None if self.broken => FarEnd::Refused(Reason::Oversize),
            None => FarEnd::Nobody,
        })
    }

    fn stats(&self) -> Stats {
        self.stats
    }

    fn stats_mut(&mut self) -> &mut Stats {
        &mut self.stats
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
