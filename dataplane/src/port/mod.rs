//! Ports: whatever takes in and gives out Ethernet frames.
//!
//! *Netdev* (host side) and *device* (VM side) are roles, not types: every port implements [`Port`], and a wire joins
//! any two. A port object is one queue of one port: it lives on one lane, on one worker, and shares nothing that a
//! turn touches.
//!
//! Trust: none of its peers. Promise: trouble with a frame is counted by reason; an `Err` means that the port is dead
//! until it comes back, and the lane lives on.
#![forbid(unsafe_code)]

pub mod absent;
pub mod dgram;
pub mod hub;
pub mod stream;
pub mod tap;
pub mod user;
pub mod vhost_user;
pub mod xsk;

use std::any::Any;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use crate::frame::{Batch, MAX_FRAME, MIN_FRAME};
use crate::stats::{Reason, Stats};
pub use vhost_user::Piece;

/// Work that a frame's virtio-net header may leave to its taker. Bits of [`Offloads`].
pub mod offload_bits {
    /// Complete the checksum.
    pub const CSUM: u16 = 1;
    /// Segment TCP over IPv4.
    pub const TSO4: u16 = 2;
    /// Segment TCP over IPv6.
    pub const TSO6: u16 = 4;
    /// Segments may carry ECN (CWR on the first only).
    pub const ECN: u16 = 8;
    /// Segment UDP (USO), both families.
    pub const USO: u16 = 16;
    /// Fragment UDP over IPv4 (UFO).
    pub const UFO: u16 = 32;
}

/// A set of offloads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads(pub u16);

impl Offloads {
    /// None: every frame is plain.
    pub const NONE: Self = Self(0);
    /// All that netreeve knows but UFO.
    pub const ALL: Self = Self(31);

    /// Every bit of `o` is here.
    #[must_use]
    pub fn has(self, o: u16) -> bool {
        self.0 & o == o
    }

    /// Every offload of `self` is one of `o`.
    #[must_use]
    pub fn within(self, o: Self) -> bool {
        self.0 & !o.0 == 0
    }

    /// Offloads in both.
    #[must_use]
    pub fn and(self, o: Self) -> Self {
        Self(self.0 & o.0)
    }
}

/// What a port is like at the moment. Asked again after every [`Change`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// Shortest frame in bytes that it takes.
    pub min_frame: u32,
    /// Largest plain frame in bytes that it takes (MTU and Ethernet header).
    pub max_frame: u32,
    /// Offloads that it takes: frames sent to it may leave this work to it.
    pub takes: Offloads,
    /// Offloads that frames given by it may leave to do.
    pub gives: Offloads,
    /// It lends landing memory.
    pub lends: bool,
    /// Another of its queues may fill the same ring as this one, so that what this one lends is not its own.
    pub shared: bool,
    /// The driver does not use this queue; what is sent to it goes into another's ring.
    pub spare: bool,
    /// A queue of it whose peer is spare gives nothing: [`Port::peer_spare`].
    pub parks: bool,
    /// It needs memory to receive into (the taker's landing or the lane's pool).
    pub needs_memory: bool,
    /// It can take frames back that nobody took and give them again ([`Port::release`]); the lane holds them otherwise.
    pub rewinds: bool,
    /// Frames that it gives are as they were on a link, in memory that it alone writes; each says where it begins
    /// ([`crate::frame::Frame::lead`]), so that segments of a flow can be joined.
    pub joinable: bool,
    /// What is sent to it may have it give at once: it is asked after each turn in which it took frames.
    pub answers: bool,
    /// Some of what it gives may be kept from the lane, and what it is given from its memory: neither is put straight into
    /// the other's (`stage`).
    pub withheld: bool,
    /// Frames can pass. A port that is down gives nothing, and what is sent to it is dropped and counted.
    pub up: bool,
}

impl Default for Traits {
    fn default() -> Self {
        Self {
            min_frame: MIN_FRAME,
            max_frame: MAX_FRAME,
            takes: Offloads::NONE,
            gives: Offloads::NONE,
            lends: false,
            shared: false,
            spare: false,
            parks: false,
            needs_memory: false,
            rewinds: false,
            joinable: false,
            answers: false,
            withheld: false,
            up: true,
        }
    }
}

/// Why a port wants to hear of a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Readable: it may give frames. Only watched while the peer can take.
    Gives,
    /// Writable: it may take frames again. Only watched while frames wait for it.
    Takes,
    /// Readable (an eventfd): it may take frames again. Always watched.
    Room,
    /// Readable: [`Port::control`] has work. Always watched.
    Control,
    /// The peer of its connection has closed it, or its half (`EPOLLRDHUP`). Always watched, so only to be asked for while
    /// nothing is read.
    Gone,
}

/// The descriptors that a port wants watched, level-triggered.
#[derive(Debug, Default)]
pub struct Watch {
    fds: Vec<(RawFd, Interest)>,
}

impl Watch {
    /// Adds a descriptor. The same one may be added for `Gives` and `Takes`.
    pub fn add(&mut self, fd: RawFd, why: Interest) {
        self.fds.push((fd, why));
    }

    /// All that was added.
    #[must_use]
    pub fn fds(&self) -> &[(RawFd, Interest)] {
        &self.fds
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.fds.clear();
    }
}

/// What [`Port::control`] changed, for the worker to follow. Fields add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Traits or watched descriptors of this port changed, on all its lanes.
    pub rewire: bool,
    /// The peer is lost and has to be dialled again by the supervisor.
    pub redial: bool,
    /// The link came up or went down, for the peer to tell its own side.
    pub link: Option<bool>,
    /// What was ready could not be served now, and is to be tried a little later: said of [`Interest::Control`] only.
    pub later: bool,
}

/// What it means that nobody could be accepted from a listening socket that is ready, and mostly stays so: the next one is
/// tried; it is tried later, because descriptors or memory are short, it is forbidden, or nobody is there (a UNIX socket that
/// somebody shut down says so for ever); or the socket is of no use any more.
///
/// # Errors
/// The socket does not listen: the port is dead, and another dataplane gets another one.
pub fn not_accepted(e: io::Error) -> io::Result<Change> {
    match e.raw_os_error() {
        Some(libc::EINVAL | libc::EBADF | libc::ENOTSOCK | libc::EOPNOTSUPP) => Err(e),
        // Whoever came went away before its turn (accept(2) passes the network's errors on), or a signal came.
        Some(
            libc::ECONNABORTED
            | libc::EINTR
            | libc::ENETDOWN
            | libc::EPROTO
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH,
        ) => Ok(Change::default()),
        // Nor does anything that is not known here keep anybody busy: what forbids it now does so at once again.
        _ => Ok(Change { later: true, ..Change::default() }),
    }
}

/// The far end of a port that has connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FarEnd {
    /// Nobody is there.
    Nobody,
    /// Somebody is; with his address if it is in numbers and he came to us.
    Somebody(Option<SocketAddr>),
    /// Nobody is: whoever was sent what cannot be, and was closed.
    Refused(Reason),
}

/// Takes one piece of what a port leaves, with its descriptors: [`Port::estate`].
pub type Keep<'a> = dyn FnMut(Piece, &[BorrowedFd<'_>]) -> io::Result<()> + 'a;

/// What another dataplane's port left, as it was kept.
pub type Left = Vec<(Piece, Vec<OwnedFd>)>;

/// What a running port is told, beyond frames and connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// A `user` network.
    User(user::Tell),
}

/// Why a port could not be opened.
#[derive(Debug)]
pub struct OpenError {
    /// What was tried, as a sentence for the user.
    pub what: &'static str,
    /// The kernel's error, if there is one.
    pub source: Option<io::Error>,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(e) => write!(f, "{}: {e}", self.what),
            None => f.write_str(self.what),
        }
    }
}

impl std::error::Error for OpenError {}

/// A port's queues, opened: one [`Port`] each. Every port module has
/// `pub fn open(plan: &Plan, fds: Vec<OwnedFd>) -> Result<Queues, OpenError>` and `pub const CALLS: &[Call]`.
pub type Queues = Vec<Box<dyn Port>>;

/// One end of a lane: something that takes in and gives out Ethernet frames.
pub trait Port: Send {
    /// What it is like now.
    fn traits(&self) -> Traits;

    /// Which descriptors to watch.
    fn watch(&self, w: &mut Watch);

    /// The peer takes only these offloads: do not give others if you can help it (a tap can).
    fn peer_takes(&mut self, _o: Offloads) {}

    /// Frames can pass to and from the peer, or not. Told at every change, after [`Port::peer_takes`].
    fn peer_up(&mut self, _up: bool) {}

    /// Another port is about to come in its peer's place. True: of the frames that wait, this port has begun to send the
    /// first one, and finishes it; it is not to be given again.
    fn peer_new(&mut self) -> bool {
        false
    }

    /// Its traits follow from ports on other lanes: they are asked again after a change of any lane.
    fn follows(&self) -> bool {
        false
    }

    /// The peer's driver uses this queue, or does not: its frames should come by others, if that can be had (a tap can).
    fn peer_spare(&mut self, _spare: bool) {}

    /// Offers landing memory for frames about to be sent to this port.
    fn lend(&mut self, _b: &mut Batch) {}

    /// Gives up to `b.room()` frames: from own memory, or put into `b.landing`. Nothing to give is `Ok` and no frames.
    /// Where the landing may not hold the next frame, the giver says so with [`crate::landing::Landing::stop`].
    ///
    /// # Errors
    /// The port is dead.
    fn recv(&mut self, b: &mut Batch) -> io::Result<()>;

    /// Takes waiting frames of `b` in order and says how many; the rest stays with the giver. Dropped frames count as
    /// taken and are not sent. Nothing of `b` is used after return.
    ///
    /// # Errors
    /// The port is dead.
    fn send(&mut self, b: &Batch) -> io::Result<usize>;

    /// The turn is over: the first `taken` waiting frames went on, the giver takes their memory back; if it
    /// [`Traits::rewinds`], it gives the others again next time.
    fn release(&mut self, _b: &Batch, _taken: usize) {}

    /// About to sleep until this port gives frames: ask for a notification. True: there is work after all.
    fn arm_gives(&mut self) -> bool {
        false
    }

    /// About to sleep until this port takes frames: ask for a notification. True: there is room after all. If the giver
    /// could not use what was lent last ([`crate::landing::Landing::is_stopped`]), room means more than that.
    fn arm_takes(&mut self) -> bool {
        false
    }

    /// Frames that did not come by the lane wait for it to take them: until then it takes no others. Asked of a port whose
    /// traits are [`Traits::withheld`].
    fn is_stuck(&self) -> bool {
        false
    }

    /// A watched descriptor is ready: consume what must be consumed (eventfd counts) and, for `Control`, act.
    ///
    /// # Errors
    /// The port is dead.
    fn event(&mut self, _fd: RawFd, _why: Interest) -> io::Result<Change> {
        Ok(Change::default())
    }

    /// A new connection for the slot, as asked for by [`Change::redial`]. Only the first queue's port is told.
    ///
    /// # Errors
    /// The descriptor is not what the port needs.
    fn connect(&mut self, _fd: OwnedFd) -> io::Result<Change> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whoever was at the far end is gone, as the supervisor has found out: there is nobody until [`Port::connect`]. Only
    /// the first queue's port is told.
    ///
    /// # Errors
    /// It is no port that waits for connections.
    fn alone(&mut self) -> io::Result<Change> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Gives to `keep` what the next dataplane needs to go on with this port's connection unnoticed. False: there is
    /// none, or it is in the middle of something. Only the first queue's port is asked.
    ///
    /// # Errors
    /// `keep`'s.
    fn estate(&self, _keep: &mut Keep<'_>) -> io::Result<bool> {
        Ok(false)
    }

    /// Goes on with what another dataplane's port left. Only the first queue's port is told.
    ///
    /// # Errors
    /// It does not fit; the connection is closed.
    fn inherit(&mut self, _left: Left) -> io::Result<Change> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Is told something, with the descriptors that belong to it. Only the first queue's port is told.
    ///
    /// # Errors
    /// It is not that port, or the descriptors are not what was said; nothing has changed.
    fn tell(&mut self, _what: Told, _fds: Vec<OwnedFd>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The peer's link came up or went down: tell our side, if it can be told (carrier).
    fn peer_link(&mut self, _up: bool) {}

    /// It has another peer now, behind which nobody knows who is here: tell that network, if it can be told. Only the first
    /// queue's port is asked.
    fn announce(&mut self) {}

    /// Who is at the far end, of a port that has connections. Only the first queue's port is asked.
    fn far_end(&self) -> Option<FarEnd> {
        None
    }

    /// Its counters on this lane.
    fn stats(&self) -> Stats;

    /// Counters that the lane writes for it (drops by filter, completions).
    fn stats_mut(&mut self) -> &mut Stats;

    /// What is around another port (`stage`) shows itself; nobody else does.
    fn around(&mut self) -> Option<&mut dyn Any> {
        None
    }
}
