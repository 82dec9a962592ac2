//! Counters of a port: frames, bytes, and drops by reason.
//!
//! Promise: trouble with a frame is counted here, never logged and never an error. Plain numbers, one owner, read by
//! copying.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Why a frame did not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Reason {
    /// Empty, or shorter than the taker takes (mostly an Ethernet header, 14 bytes).
    Runt,
    /// Longer than the port or its peer takes.
    Oversize,
    /// The virtio-net header does not fit its frame.
    BadHeader,
    /// A descriptor chain that breaks the ring's rules.
    BadChain,
    /// Its checksum or segmentation could not be completed in software.
    Offload,
    /// Not the source address that the port is locked to.
    SourceMac,
    /// The peer is down or not there.
    PeerDown,
    /// The taker had no room and the giver cannot wait.
    Full,
    /// The kernel refused this frame.
    Refused,
    /// A multi-part frame was broken or exceeds what the port joins.
    Fragment,
    /// Not one frame but a connection: its peer broke the protocol, or took memory away that it had shared.
    Protocol,
    /// Came from somebody else than the peer.
    Source,
    /// Our own multicast frame, come back.
    Echo,
    /// Of another session (L2TPv3).
    Session,
    /// Without the cookie that was agreed upon (L2TPv3).
    Cookie,
    /// A control message, which nobody here answers (L2TPv3).
    Control,
    /// The network says that it cannot reach the peer.
    Unreachable,
    /// Not what its headers say (the `user` network).
    Malformed,
    /// Of a protocol, or to somebody, that nobody here knows (the `user` network).
    Unknown,
    /// The policy does not let it pass (the `user` network).
    Denied,
    /// Its sender has as many flows, or as much held for it, as it may (the `user` network).
    Quota,
}

impl Reason {
    /// Number of reasons.
    pub const COUNT: usize = 21;
    /// Every reason with the name it has in output.
    pub const ALL: [(Self, &'static str); Self::COUNT] = [
        (Self::Runt, "runt"),
        (Self::Oversize, "oversize"),
        (Self::BadHeader, "bad_header"),
        (Self::BadChain, "bad_chain"),
        (Self::Offload, "offload"),
        (Self::SourceMac, "source_mac"),
        (Self::PeerDown, "peer_down"),
        (Self::Full, "full"),
        (Self::Refused, "refused"),
        (Self::Fragment, "fragment"),
        (Self::Protocol, "protocol"),
        (Self::Source, "source"),
        (Self::Echo, "echo"),
        (Self::Session, "session"),
        (Self::Cookie, "cookie"),
        (Self::Control, "control"),
        (Self::Unreachable, "unreachable"),
        (Self::Malformed, "malformed"),
        (Self::Unknown, "unknown"),
        (Self::Denied, "denied"),
        (Self::Quota, "quota"),
    ];
}

/// Connections of a port that has them (the `user` network's, by TCP).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flows {
    /// That there may be at a time.
    pub most: u64,
    /// That there are.
    pub now: u64,
    /// Of those, the ones that the other end has not answered yet.
    pub half_open: u64,
    /// That both ends had, so far.
    pub opened: u64,
    /// That were refused, or that nobody answered.
    pub refused: u64,
    /// That a guest asked for and that there was no room for.
    pub limited: u64,
    /// That had to go for new ones.
    pub evicted: u64,
    /// That were broken off by the host's side or by us.
    pub broken: u64,
    /// Times that something was sent again to a guest.
    pub resent: u64,
    /// Times that one stood still though it could have gone on, and was made to.
    pub healed: u64,
    /// Times that a socket of the port's, of whatever protocol, said that something was possible, and nothing was.
    pub idle: u64,
}

impl Flows {
    /// With others of the same port.
    #[must_use]
    pub fn with(self, o: &Self) -> Self {
        Self {
            most: self.most + o.most,
            now: self.now + o.now,
            half_open: self.half_open + o.half_open,
            opened: self.opened + o.opened,
            refused: self.refused + o.refused,
            limited: self.limited + o.limited,
            evicted: self.evicted + o.evicted,
            broken: self.broken + o.broken,
            resent: self.resent + o.resent,
            healed: self.healed + o.healed,
            idle: self.idle + o.idle,
        }
    }

    /// Every number with the name it has in output; what is true now comes first.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); 11] {
        [
            ("now", self.now),
            ("half_open", self.half_open),
            ("most", self.most),
            ("opened", self.opened),
            ("refused", self.refused),
            ("limited", self.limited),
            ("evicted", self.evicted),
            ("broken", self.broken),
            ("resent", self.resent),
            ("healed", self.healed),
            ("idle", self.idle),
        ]
    }
}

/// A port's counters on one lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// Frames that the port gave.
    pub rx_frames: u64,
    /// Their bytes, without virtio-net headers.
    pub rx_bytes: u64,
    /// Frames that the port took.
    pub tx_frames: u64,
    /// Their bytes, without virtio-net headers.
    pub tx_bytes: u64,
    /// Drops, by [`Reason`].
    pub drops: [u64; Reason::COUNT],
    /// Times that the port asked its peer's owner for attention (eventfd writes, kicks).
    pub kicks: u64,
    /// Times that the port was lost and came back.
    pub reconnects: u64,
    /// Flows that had to go for new ones, because their limit was reached (the `user` network).
    pub evicted: u64,
    /// Its connections, if it has any; such a port has one lane.
    pub flows: Option<Flows>,
}

impl Stats {
    /// Counts one drop.
    pub fn drop(&mut self, why: Reason) {
        self.drop_n(why, 1);
    }

    /// Counts `n` drops.
    pub fn drop_n(&mut self, why: Reason, n: u64) {
        if let Some(c) = self.drops.get_mut(why as usize) {
            *c = c.wrapping_add(n);
        }
    }

    /// Adds another lane's counters.
    pub fn add(&mut self, o: &Self) {
        self.rx_frames += o.rx_frames;
        self.rx_bytes += o.rx_bytes;
        self.tx_frames += o.tx_frames;
        self.tx_bytes += o.tx_bytes;
        self.kicks += o.kicks;
        self.reconnects += o.reconnects;
        self.evicted += o.evicted;
        self.flows = o.flows.or(self.flows);
        for (a, b) in self.drops.iter_mut().zip(o.drops) {
            *a += b;
        }
    }
}
