//! One connection of the guest's: two windows, two streams, and the host's socket between them.
//!
//! Two halves, named as the guest sees them: **up**, from the guest to the socket, and **down**, from the socket to the
//! guest. Going up, what the guest is told as its window can always be taken: the socket takes it or it is held, so
//! everything in order is acknowledged at once. Going down, bytes stay in the socket (or, where the kernel cannot peek at
//! a place, are kept) until the guest has acknowledged them, so that they can be sent again.
//!
//! - [`arrive`]: what a segment of the guest's means. No system call.
//! - [`pass`]: up: bytes to the socket, acknowledgements, the end.
//! - [`give`]: down: bytes to the guest, the end.
//! - [`clock`]: what happens when nothing happens.
//!
//! Trust: none in the guest, none in the far end. Promise: bytes go through once and in order or the flow is broken off
//! at both ends; nothing here can end another flow.
#![forbid(unsafe_code)]

pub(super) mod arrive;
pub(super) mod clock;
pub(super) mod give;
pub(super) mod pass;

use std::collections::VecDeque;
use std::time::Instant;

use netreeve_shared::vnet::Vnet;

use super::super::net::Net;
use super::super::poll::Token;
use super::super::room::Cx;
use super::hold::{Hold, Purse, Store};
use super::late::{Ends, Late};
use super::segment::{self, Key, Said, Segment, flag};
use super::seq::Seq;
use super::shares::Origin;
use super::sock::Sock;
use crate::mem::Seg;

/// What our windows are scaled by (RFC 7323): 128 bytes a unit, 8 MiB at most.
const SCALE: u8 = 7;
/// Smallest segment size that a guest may ask for (RFC 879 would let it be anything).
const MIN_MSS: u32 = 88;

/// What all flows use.
#[derive(Debug)]
pub(super) struct Tools {
    pub(super) store: Store,
    /// Bytes that one flow may hold, each way.
    pub(super) each: u32,
    /// Gathered for a call.
    pub(super) parts: Vec<Seg>,
    /// Those that have something for the guest, and no room to keep it in.
    pub(super) waiting: Waiting,
    /// Whose acknowledgements wait for company.
    pub(super) late: Late,
    /// Whose ends wait until somebody was answered.
    pub(super) ends: Ends,
}

/// Who waits for room, of each origin: the first of them is the first to get some. (Each has its own, and whoever waits for
/// one is not looked at when there is some of the other.) Who is gone may be among them.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    guests: VecDeque<Token>,
    visitors: VecDeque<Token>,
}

impl Waiting {
    /// Those that the guest asked for; else those that came by a forward.
    pub(super) fn of(&mut self, guest: bool) -> &mut VecDeque<Token> {
        if guest { &mut self.guests } else { &mut self.visitors }
    }

    /// How many there are, as [`Waiting::of`] takes them.
    pub(super) fn len(&self, guest: bool) -> usize {
        if guest { self.guests.len() } else { self.visitors.len() }
    }
}

/// Where a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The socket is connecting; the guest waits for an answer to its SYN.
    Calling,
    /// The guest has our SYN and acknowledgement, and has not answered.
    Answered,
    /// Somebody came from the host's side; the guest has our SYN, and has not answered.
    Asking,
    /// Both ends have met.
    Open,
}

/// The end of what the guest sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Not seen.
    No,
    /// Seen in order.
    Seen,
    /// Passed on to the socket.
    Passed,
}

/// Where a flow stands that has to keep what it gives, when there is no room for that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It does not wait.
    No,
    /// It is in the list of those that do.
    Waits,
    /// It was the first of them, and there is room.
    Has,
}

/// Whether the guest is owed an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owed {
    /// It is not.
    No,
    /// It is, and that can wait for something to go along with ([`Late`]).
    Soon,
    /// It is.
    Now,
}

/// What becomes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It lives.
    Lives,
    /// It is over: to be removed.
    Over,
}

/// From the guest.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Up {
    /// What comes next.
    pub(super) next: Seq,
    /// The window's end, as the guest was told. It never goes back.
    pub(super) edge: Seq,
    pub(super) scale: u8,
    /// Acknowledged and not yet taken by the socket.
    pub(super) hold: Hold,
    /// Bytes of the store that it was promised.
    pub(super) claim: u32,
    /// Bytes that the socket took, as far as that can be counted here.
    pub(super) passed: u32,
    pub(super) end: End,
    /// The socket takes nothing until it says so.
    pub(super) blocked: bool,
    /// The socket takes nothing any more.
    pub(super) broken: bool,
    /// An acknowledgement.
    pub(super) owed: Owed,
    /// It stands in the list of those whose acknowledgements wait.
    pub(super) late: bool,
    /// Seconds of silence after which the guest asks whether the far end is there, as soon as that is known; and whether the
    /// socket is to be told.
    pub(super) alive: Option<u16>,
    pub(super) asks: bool,
    /// Segments out of order of this turn: each is answered, because the guest counts.
    pub(super) strays: u8,
    /// Pieces of this turn: first and last.
    pub(super) pieces: Option<(u32, u32)>,
}

/// To the guest.
#[derive(Debug)]
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Down {
    /// First byte that the guest has not acknowledged.
    pub(super) una: Seq,
    /// What is sent next.
    pub(super) next: Seq,
    /// Behind the last that was ever sent.
    pub(super) max: Seq,
    /// Bytes from `una` on that the guest takes.
    pub(super) window: u32,
    /// The segment that said so: its sequence and acknowledgement.
    pub(super) said: (Seq, Seq),
    pub(super) scale: u8,
    /// Bytes of the guest's segments.
    pub(super) mss: u32,
    /// Acknowledged, but not yet discarded.
    pub(super) stale: u32,
    /// Read and not acknowledged, where the socket does not keep it.
    pub(super) kept: Hold,
    /// Whether it waits for room.
    pub(super) turn: Turn,
    /// The socket may have something to read.
    pub(super) readable: bool,
    /// It is read until it says that there is no more: its end, an error or urgent data lie behind what it gives. Otherwise
    /// less than was asked for is all that there is, and the kernel says when there is more.
    pub(super) thorough: bool,
    /// The socket's end was read.
    pub(super) end: bool,
    /// Where the end is, once it was sent.
    pub(super) fin: Option<Seq>,
    /// Acknowledgements in a row that said nothing new.
    pub(super) repeats: u8,
    /// To be sent again from `una`, before anything new.
    pub(super) again: bool,
    /// Repeats mean nothing before this.
    pub(super) recover: Seq,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Flow<S> {
    pub(super) key: Key,
    pub(super) token: Token,
    pub(super) origin: Origin,
    pub(super) sock: S,
    pub(super) state: State,
    pub(super) up: Up,
    pub(super) down: Down,
    /// It stands in the list of those that give.
    pub(super) queued: bool,
    /// It stands in the list of those that this turn touched.
    pub(super) touched: bool,
    /// When the guest was last heard of.
    pub(super) heard: Instant,
    /// When the guest last acknowledged something new, or there was last nothing to acknowledge.
    pub(super) progress: Instant,
    /// How often a time passed in vain.
    pub(super) tries: u8,
    /// When its timer comes.
    pub(super) armed: Option<Instant>,
}

impl<S: Sock> Flow<S> {
    /// The guest asks for a connection with `syn`; `sock` is connecting.
    pub(super) fn called(key: Key, token: Token, sock: S, syn: &Segment, iss: Seq, now: Instant) -> Self {
        let mut f = Self::asking(key, token, sock, iss, Origin::Guest, now);
        f.state = State::Calling;
        f.meet(syn);
        f
    }

    /// Somebody came from the host's side, by a forward.
    pub(super) fn asking(key: Key, token: Token, sock: S, iss: Seq, origin: Origin, now: Instant) -> Self {
        let guest = origin == Origin::Guest;
        let up = Up {
            next: Seq(0),
            edge: Seq(0),
            scale: SCALE,
            hold: Hold::new(Purse { guest, up: true }),
            claim: 0,
            passed: 0,
            end: End::No,
            blocked: false,
            broken: false,
            owed: Owed::No,
            late: false,
            alive: None,
            asks: false,
            strays: 0,
            pieces: None,
        };
        let down = Down {
            una: iss,
            next: iss,
            max: iss,
            window: 0,
            said: (Seq(0), iss),
            scale: 0,
            mss: 536,
            stale: 0,
            kept: Hold::new(Purse { guest, up: false }),
            turn: Turn::No,
            readable: true,
            thorough: false,
            end: false,
            fin: None,
            repeats: 0,
            again: false,
            recover: iss,
        };
        let (heard, progress) = (now, now);
        let (queued, touched, tries, armed) = (false, false, 0, None);
        Self {
            key,
            token,
            origin,
            sock,
            state: State::Asking,
            up,
            down,
            queued,
            touched,
            heard,
            progress,
            tries,
            armed,
        }
    }

    /// Learns what a SYN says.
    pub(super) fn meet(&mut self, syn: &Segment) {
        let least = if self.key.guest.is_ipv4() { 536 } else { 1220 };
        self.up.next = syn.seq.plus(1);
        self.up.edge = self.up.next;
        self.down.mss = syn.mss.map_or(least, u32::from).max(MIN_MSS);
        (self.up.scale, self.down.scale) = syn.scale.map_or((0, 0), |s| (SCALE, s));
        self.down.window = syn.window.into();
        self.down.said = (syn.seq, self.down.una);
    }

    /// Bytes of payload in a segment for the guest.
    pub(super) fn mss(&self, net: &Net) -> u32 {
        self.down.mss.min(our_mss(net, &self.key))
    }

    /// Bytes that the guest has not acknowledged.
    pub(super) fn flying(&self) -> u32 {
        self.down.next.since(self.down.una)
    }

    /// Nothing is left to be said by either end.
    pub(super) fn is_done(&self) -> bool {
        self.up.end == End::Passed
            && self.up.owed == Owed::No
            && self.down.fin.is_some_and(|fin| self.down.una == fin.plus(1))
            && self.up.hold.is_empty()
    }

    /// Says something without payload. False: it could not be said now.
    pub(super) fn say(&mut self, cx: &mut Cx, tools: &mut Tools, seq: Seq, flags: u8) -> bool {
        let syn = flags & flag::SYN != 0;
        let mut s = Said { seq, flags, ..Said::default() };
        if flags & flag::ACK != 0 {
            s.ack = self.up.next;
            s.window = self.advertise(tools, if syn { 0 } else { self.up.scale });
        }
        if syn {
            s.mss = u16::try_from(our_mss(&cx.net, &self.key)).ok();
            // Who answers says what scale only if he was told one.
            s.scale = (flags & flag::ACK == 0 || self.up.scale != 0).then_some(SCALE);
            s.window = s.window.max(if flags & flag::ACK == 0 { u16::MAX } else { 0 });
        }
        let Some(head) = segment::small(&cx.net, &self.key, &s) else { return false };
        let said = cx.push(Vnet::default(), &[head.as_ref()]);
        if said && flags & flag::ACK != 0 {
            self.up.owed = Owed::No;
        }
        said
    }

    /// Breaks the connection off towards the guest.
    pub(super) fn reset(&mut self, cx: &mut Cx, tools: &mut Tools) {
        // The guest's answer to a SYN of ours was never seen: there is nobody to break off with.
        if self.state != State::Asking {
            self.say(cx, tools, self.down.max, flag::RST | flag::ACK);
        }
    }
}

/// Largest segment that we take: what the MTU leaves.
pub(super) fn our_mss(net: &Net, key: &Key) -> u32 {
    let headers = if key.guest.is_ipv4() { 40 } else { 60 };
    u32::from(net.mtu).saturating_sub(headers).max(MIN_MSS)
}
