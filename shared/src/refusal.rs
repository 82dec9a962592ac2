//! Why a request was not granted, as far as the caller may know.
//!
//! Promise: a policy's refusal is [`Refusal::Denied`] and nothing more, whether the named thing exists or not; the rule
//! and its line stand in the helper's log, for root. Only after the policy has said yes does an answer tell what the
//! kernel said.
#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::request::BadRequest;

/// One refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The policy does not allow it.
    Denied,
    /// A number lies outside its range.
    Bad(BadRequest),
    /// A quota of the policy is used up (devices, bytes of UMEM, requests a second).
    Limit,
    /// The thing is in use: another program, another socket, the name is taken.
    Busy,
    /// The kernel refused a step.
    Failed {
        /// Which step.
        step: Step,
        /// The kernel's error number.
        errno: i32,
    },
    /// The ticket is unknown in this session, or was used.
    Ticket,
    /// The request could not be read: another version, or garbage.
    Protocol,
}

/// A step of providing, named so that its failure can be explained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Open `/dev/net/tun`.
    OpenTun,
    /// `TUNSETIFF`.
    MakeTap,
    /// Look the interface up.
    FindInterface,
    /// Look the bridge up, or it is no bridge.
    FindBridge,
    /// Make the bridge.
    MakeBridge,
    /// Join the bridge.
    JoinBridge,
    /// Set MTU, address, name or flags.
    SetLink,
    /// Make the socket.
    MakeSocket,
    /// Register the UMEM.
    RegisterUmem,
    /// Make the rings.
    MakeRings,
    /// Bind to the queue.
    BindQueue,
    /// Load the XDP program.
    LoadProgram,
    /// Put the socket into the map.
    InsertSocket,
    /// Attach the program.
    Attach,
    /// Raise or drop a capability.
    Capability,
    /// Attach a raw socket's filter and lock it.
    LockFilter,
    /// Bind to the address, and connect or listen there.
    BindAddress,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied => f.write_str("denied"),
            Self::Bad(b) => write!(f, "the request is out of range: {b}"),
            Self::Limit => f.write_str("a limit of the policy is reached"),
            Self::Busy => f.write_str("in use by somebody else"),
            Self::Failed { step, errno } => {
                write!(f, "{step} failed: {}", std::io::Error::from_raw_os_error(*errno))
            }
            Self::Ticket => f.write_str("no such ticket in this session"),
            Self::Protocol => f.write_str("the message could not be read (another version?)"),
        }
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenTun => "opening /dev/net/tun",
            Self::MakeTap => "making the tap (TUNSETIFF)",
            Self::FindInterface => "finding the interface",
            Self::FindBridge => "finding the bridge",
            Self::MakeBridge => "making the bridge",
            Self::JoinBridge => "joining the bridge",
            Self::SetLink => "setting the interface's attributes",
            Self::MakeSocket => "making the socket",
            Self::RegisterUmem => "registering the UMEM",
            Self::MakeRings => "making the AF_XDP rings",
            Self::BindQueue => "binding to the receive queue",
            Self::LoadProgram => "loading the XDP program",
            Self::InsertSocket => "inserting the socket into the XSKMAP",
            Self::Attach => "attaching the XDP program",
            Self::Capability => "raising a capability",
            Self::LockFilter => "locking the raw socket's filter",
            Self::BindAddress => "binding to the address",
        })
    }
}

impl fmt::Display for BadRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queues => "queues (a tap has 1 to 16, AF_XDP 1 to 8 in one grant)",
            Self::Mtu => "mtu (68 to 65521)",
            Self::PersistUnnamed => "a persistent tap needs a name",
            Self::Ring => "ring (a power of two, 64 to 32768)",
            Self::Umem => "umem (chunks of 2048 or 4096 bytes, 1 GiB at most)",
            Self::Steer => "steering addresses (1 to 16 station addresses, none of them the interface's own)",
            Self::StartQueue => "start-queue and queues exceed 65535",
            Self::Address => "an address (one machine's own, both ends of one family, not link-local)",
            Self::Zero => "a session or a port of number 0",
        })
    }
}
