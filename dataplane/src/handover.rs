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
//! Trust: the dataplane is hostile to the supervisor once it has read a guest's byte; every message is bounded, and a
//! message that the supervisor does not expect ends the dataplane. Promise: no path and no name travels here.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

use crate::port::{self, Piece};
use crate::stats::Stats;
use crate::worker::Waits;

/// From supervisor to dataplane.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToDataplane {
    /// What to build. Sent once, first.
    Plan(Plan),
    /// Descriptors for a slot travel with this message. Before [`ToDataplane::Begin`]: what the port is opened with;
    /// afterwards: the new connection that the dataplane asked for.
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
    /// Give the counters.
    Stats,
    /// Give what the next dataplane would need to go on with this slot's connection.
    Keep {
        /// The slot.
        slot: u16,
    },
    /// End in order: flush, close, exit 0.
    Quit,
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
    /// Counters of one port, summed over its lanes; one message for each slot, in order.
    Stats {
        /// The slot.
        slot: u16,
        /// The counters.
        stats: Stats,
        /// Up.
        up: bool,
    },
}

/// What a dataplane builds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The ports; a port's index is its slot.
    pub ports: Vec<PortPlan>,
    /// The wires: indices of two ports each.
    pub wires: Vec<Wire>,
    /// How it waits and how it is locked in.
    pub run: RunPlan,
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
}
