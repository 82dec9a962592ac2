//! What the supervisor hands to a dataplane, and what the two say to each other afterwards.
//!
//! One `SOCK_SEQPACKET` pair, made by the supervisor, is the dataplane's descriptor 3. At start the supervisor sends
//! [`ToDataplane::Plan`] and then one [`ToDataplane::Fds`] for each slot that already has descriptors, then
//! [`ToDataplane::Begin`]; the dataplane opens its ports, locks itself in and answers [`FromDataplane::Ready`] or
//! [`FromDataplane::Failed`]. A **slot** is a place for descriptors, numbered in the plan: a dataplane asks for a new
//! connection by slot, never by address.
//!
//! A connection outlives its dataplane if the peer's state is known: while the peer is quiet the supervisor asks for it
//! ([`ToDataplane::Keep`]) and keeps what comes ([`FromDataplane::Piece`]) unread; the dataplane says
//! [`FromDataplane::Unsettled`] before it reads the peer's next word. What is kept when it dies, its successor inherits.
//!
//! # Ports that come, go and change places
//! A running dataplane that was told at the start which kinds of ports may come ([`Plan::later`]) takes changes: what
//! the port needs in descriptors ([`ToDataplane::Fds`], for a slot that is not in use), then [`ToDataplane::Add`];
//! [`ToDataplane::Join`] makes two ports a wire, [`ToDataplane::Part`] and [`ToDataplane::Remove`] undo both, and
//! [`ToDataplane::Link`] is QEMU's `set_link`. Each carries a number of the supervisor's choice and is answered in order,
//! once, by [`FromDataplane::Done`] or [`FromDataplane::Refused`] with that number; a change that is refused has changed
//! nothing. What a new port needs from outside (AF_XDP: attaching) is done after *done*, as at the start after *ready*.
//!
//! The supervisor keeps its [`Plan`] as the changes that were *done* leave it, since that is what the next dataplane is
//! given: `ports` with a hole where a slot is free, `wires`, `down`. A slot's number is the port's as long as it is
//! there, and may be used again after its removal is *done*; messages about it that were on their way before that are
//! to be passed over. A **hub** is no more than ports of kind [`PortKind::Hub`] that name the same hub, each the peer of a
//! member: there is nothing to restore but ports and wires.
//!
//! Trust: the dataplane is hostile to the supervisor once it has read a guest's byte; every message is bounded, and a
//! message that the supervisor does not expect ends the dataplane. Promise: no path travels here, and no name but those
//! that a `user` network's guest is told.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::port::{self, FarEnd, Piece};
use crate::stage;
use crate::stats::Stats;
use crate::worker::Waits;

/// From supervisor to dataplane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToDataplane {
    /// What to build. Sent once, first.
    Plan(Plan),
    /// Descriptors for a slot travel with this message. Before [`ToDataplane::Begin`], or for a slot that is not in use:
    /// what the port will be opened with, in as many messages as it takes; else: the new connection that the dataplane
    /// asked for.
    Fds {
        /// The slot.
        slot: u16,
    },
    /// A piece of what the dataplane before left of a slot, with its descriptors. Before [`ToDataplane::Begin`].
    Inherit {
        /// The slot.
        slot: u16,
        /// The piece.
        piece: Piece,
    },
    /// Everything is here: open, lock in, say [`FromDataplane::Ready`].
    Begin,
    /// Give the counters: of every slot in use and of the workers, or of one slot alone.
    Stats {
        /// The only slot that is asked about; one that is not in use is not answered.
        slot: Option<u16>,
    },
    /// Give what the next dataplane would need to go on with this slot's connection.
    Keep {
        /// The slot.
        slot: u16,
    },
    /// Open a port, with the descriptors that came for its slot. It has no peer yet: a device answers its VMM and drops
    /// what the guest sends, a netdev waits.
    Add {
        /// Number for the answer.
        ask: u32,
        /// A slot that is not in use.
        slot: u16,
        /// The port; its kind is one of [`Plan::later`].
        plan: PortPlan,
    },
    /// Close a port. The peer that it had has none from then on.
    Remove {
        /// Number for the answer.
        ask: u32,
        /// The slot.
        slot: u16,
    },
    /// Make two ports a wire. Those that were on other wires leave them, in the same breath: so a netdev is swapped
    /// beneath a device that does not notice.
    Join {
        /// Number for the answer.
        ask: u32,
        /// The wire.
        wire: Wire,
    },
    /// Take the wire that a slot is on apart. Both ports stay, without peers.
    Part {
        /// Number for the answer.
        ask: u32,
        /// Either slot of the wire.
        slot: u16,
    },
    /// Take a port's link up or down. While it is down, frames from it and for it are dropped and counted, and both ends
    /// tell who is behind them, if they can (a guest sees its carrier go).
    Link {
        /// Number for the answer.
        ask: u32,
        /// The slot.
        slot: u16,
        /// Up.
        up: bool,
    },
    /// Put a filter around a port, behind those that are there. Its descriptors travel with this message. Before
    /// [`ToDataplane::Begin`] it is not answered.
    Filter {
        /// Number for the answer; 0: none.
        ask: u32,
        /// The port's slot.
        slot: u16,
        /// The filter's number, of the supervisor's choice.
        filter: u16,
        /// It goes before the filter with this number, on the same port; none: to the tail.
        before: Option<u16>,
        /// What it does.
        plan: FilterPlan,
    },
    /// Take a filter away. What it had is closed before this is answered.
    Unfilter {
        /// Number for the answer; 0: none.
        ask: u32,
        /// The port's slot.
        slot: u16,
        /// The filter's number.
        filter: u16,
    },
    /// Tell a running port something; descriptors that belong to it travel with this message.
    Tell {
        /// Number for the answer.
        ask: u32,
        /// The port's slot.
        slot: u16,
        /// What.
        what: port::Told,
    },
    /// Turn a filter on or off.
    Status {
        /// Number for the answer.
        ask: u32,
        /// The port's slot.
        slot: u16,
        /// The filter's number.
        filter: u16,
        /// On.
        on: bool,
    },
    /// End in order: flush, close, exit 0.
    Quit,
    /// Whoever was at the far end of a port that waits for connections is gone: it has no peer until a new connection
    /// comes ([`ToDataplane::Fds`]).
    Alone {
        /// The slot.
        slot: u16,
    },
}

/// From dataplane to supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromDataplane {
    /// Locked in, rings are filled, frames may come.
    Ready {
        /// The sandbox's level, as reported to the user.
        level: Level,
    },
    /// Could not be built or locked in; the dataplane exits.
    Failed {
        /// The slot that is at fault, if one is.
        slot: Option<u16>,
        /// Error number, 0 if there is none.
        errno: i32,
        /// A sentence for the user, at most 512 characters.
        why: String,
    },
    /// The slot's connection is lost; please dial again.
    Redial {
        /// The slot.
        slot: u16,
    },
    /// A port's link came up or went down.
    Link {
        /// The slot.
        slot: u16,
        /// Up.
        up: bool,
    },
    /// Somebody has come to the far end of a port that has connections, or has gone from there; said of each at the start.
    FarEnd {
        /// The slot.
        slot: u16,
        /// Who is there.
        end: FarEnd,
    },
    /// A port died (its device is gone, its descriptor is broken); the others go on.
    Dead {
        /// The slot.
        slot: u16,
        /// Error number, 0 if there is none.
        errno: i32,
    },
    /// The slot's peer has something to say: what is kept of the slot is no longer true.
    Unsettled {
        /// The slot.
        slot: u16,
    },
    /// A piece of what [`ToDataplane::Keep`] asked for, with its descriptors.
    Piece {
        /// The slot.
        slot: u16,
        /// The piece.
        piece: Piece,
    },
    /// That was all.
    Kept {
        /// The slot.
        slot: u16,
        /// The pieces are the whole, and true until [`FromDataplane::Unsettled`].
        whole: bool,
    },
    /// What a worker's waiting came to; one message for each, in order, before the ports' counters.
    Worker {
        /// Its number.
        number: u16,
        /// Its sleeps and its looking for work.
        waits: Waits,
    },
    /// The change with this number is made.
    Done {
        /// [`ToDataplane::Add`]'s number, or another's.
        ask: u32,
    },
    /// The change with this number is not made, and nothing has changed; descriptors that came for it are closed.
    Refused {
        /// Its number.
        ask: u32,
        /// Error number, 0 if there is none.
        errno: i32,
        /// A sentence for the user, at most 512 characters.
        why: String,
    },
    /// Counters of one port, summed over its lanes; one message for each slot in use, in order, or for the one that was
    /// asked about.
    Stats {
        /// The slot.
        slot: u16,
        /// The counters.
        stats: Box<Stats>,
        /// Up.
        up: bool,
    },
}

/// What a dataplane builds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The ports; a port's index is its slot. None: the slot is free. A port that is on no wire has no peer yet.
    pub ports: Vec<Option<PortPlan>>,
    /// The wires: indices of two ports each.
    pub wires: Vec<Wire>,
    /// Slots whose link was taken down.
    pub down: Vec<u16>,
    /// Kinds of ports that may be added while it runs: their system calls, those of opening included, are in the filter
    /// from the start. None of them is ever `socket`, `connect` or `bind`. Empty: no port is ever added.
    pub later: Vec<PortKind>,
    /// Filters that step in are there or may come: what they call is in the filter from the start.
    pub filters: bool,
    /// How it waits and how it is locked in.
    pub run: RunPlan,
}

impl Plan {
    /// A plan of ports that stay as they are.
    #[must_use]
    pub fn new(ports: Vec<PortPlan>, wires: Vec<Wire>, run: RunPlan) -> Self {
        Self {
            ports: ports.into_iter().map(Some).collect(),
            wires,
            down: Vec::new(),
            later: Vec::new(),
            filters: false,
            run,
        }
    }
}

/// Two ports, peers of each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wire {
    /// Host side.
    pub netdev: u16,
    /// VM side.
    pub device: u16,
    /// Drop frames from the device whose source address is not this one.
    pub lock_mac: Option<netreeve_shared::mac::Mac>,
}

/// How a dataplane runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunPlan {
    /// Refuse to run below this level.
    pub at_least: Level,
    /// Do not lock in at all (for measuring only; said loudly).
    pub sandbox_off: bool,
    /// Look for work for this many microseconds at most before sleeping; 0: sleep at once.
    pub busy_poll_us: u32,
    /// Threads that carry frames; 0: as many as there are processors for the widest wire's queues, one for wires of
    /// one queue.
    pub workers: u16,
}

/// How far the dataplane is locked in. Ordered: more is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    /// Not at all.
    Off,
    /// Seccomp and no_new_privs; no capabilities.
    Seccomp,
    /// And Landlock.
    Landlock,
    /// And its own, empty namespaces.
    Full,
}

/// A filter, as the dataplane puts it around a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FilterPlan {
    /// A capture; descriptors: the spool's memory, with a section for each of the port's queues, and its bell.
    Capture(stage::capture::Plan),
    /// A mirror or a redirector; descriptors: a bell for the port where frames go, then two for the one from which they
    /// come, its own and the filter's.
    Divert(stage::divert::Plan),
    /// A buffer; descriptors: a timer for each of the port's queues, which goes off again and again.
    Hold(stage::hold::Plan),
}

/// One port, as the dataplane opens it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PortPlan {
    /// A tap; descriptors: one a queue.
    Tap(port::tap::Plan),
    /// AF_XDP; descriptors: socket and UMEM memfd for each queue.
    Xsk(port::xsk::Plan),
    /// A vhost-user device; descriptor: the listening socket, or the connection.
    VhostUser(port::vhost_user::Plan),
    /// QEMU's stream framing; descriptor: the listening socket, or the connection.
    Stream(port::stream::Plan),
    /// A frame in each datagram; descriptors: the socket that sends, and perhaps one that only receives.
    Dgram(port::dgram::Plan),
    /// A place in a hub, whose peer is the hub's member; no descriptors.
    Hub(port::hub::Plan),
    /// A network of our own making; descriptors: as its plan lists them. No other netdev but places in hubs is in the same
    /// dataplane, which keeps its caller's network namespace and makes sockets.
    User(Box<port::user::Plan>),
}

/// What a port is, without its particulars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum PortKind {
    /// A tap. One that is added later has no ring of calls (io_uring is made before the lock-in or not at all): each
    /// frame has its system call.
    Tap,
    /// AF_XDP.
    Xsk,
    /// A vhost-user device.
    VhostUser,
    /// A stream.
    Stream,
    /// A frame in each datagram.
    Dgram,
    /// A place in a hub.
    Hub,
    /// A network of our own making. It is there from the start or not at all.
    User,
}

impl PortKind {
    /// All that may be added to a running dataplane.
    pub const ALL: [Self; 6] = [Self::Tap, Self::Xsk, Self::VhostUser, Self::Stream, Self::Dgram, Self::Hub];
}

impl PortPlan {
    /// Its queues.
    #[must_use]
    pub fn queues(&self) -> u16 {
        match self {
            Self::Tap(p) => p.queues,
            Self::Xsk(p) => p.queues,
            Self::VhostUser(p) => p.queues,
            _ => 1,
        }
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> PortKind {
        match self {
            Self::Tap(_) => PortKind::Tap,
            Self::Xsk(_) => PortKind::Xsk,
            Self::VhostUser(_) => PortKind::VhostUser,
            Self::Stream(_) => PortKind::Stream,
            Self::Dgram(_) => PortKind::Dgram,
            Self::Hub(_) => PortKind::Hub,
            Self::User(_) => PortKind::User,
        }
    }
}
