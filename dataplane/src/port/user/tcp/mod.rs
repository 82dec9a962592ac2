//! TCP: a guest's connections become the host's.
//!
//! No stack in between: a connection of the guest's is one of the host's kernel's, and this room carries bytes, windows and
//! endings from one to the other ([`flow`]). What the guest sends in a turn goes to each socket by one call, straight from
//! the guest's memory; what a socket has is received straight into the guest's, 64 KiB at a time.
//!
//! A guest is answered when the host's side has connected, so that refusals are what they were. Endings of both
//! directions, and resets, go through as they come.
//!
//! Trust: none in the guest, none in the far end. Promise: connections, memory and time are bounded by the plan's limits; a
//! broken connection ends that connection.
#![forbid(unsafe_code)]

mod door;
mod ended;
mod flow;
mod forward;
mod hold;
mod intake;
mod late;
mod open;
mod segment;
mod seq;
mod shares;
pub mod sock;
mod table;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::hash::RandomState;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Instant;

use netreeve_shared::vnet::Vnet;

use super::bay::Bay;
use super::packet::Packet;
use super::plan::{Forward, GuestForward, Plan};
use super::poll::{Ready, Token, Who};
use super::room::{Cx, Room};
use super::timers::Kept;
use crate::frame::Batch;
use crate::stats::{Flows, Reason};
use ended::Ended;
use flow::arrive::Act;
use flow::give::Given;
use flow::{Fate, State, Tools, Turn, Waiting};
use forward::{DOOR, Forwards, LISTENER};
use hold::{CHUNK, Purse, Store};
use intake::Intake;
use late::{Ends, Late};
use segment::{Key, Said, Segment, flag};
use shares::Shares;
use sock::{Sock, Stream};
use table::{FLOW, Table};

/// Timers that may mean nothing, beside one for each flow.
const SPARE: usize = 4096;
/// Flows that are gone and wait to give all the same, beside one for each that is there.
const GONE: usize = 256;

/// What happened, for whoever wonders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that both ends had.
    pub opened: u64,
    /// Connections that were refused, or that nobody answered.
    pub refused: u64,
    /// Connections that were broken off by the host's side or by us, which includes guests that are silent for ever.
    pub broken: u64,
    /// Calls of the guest's that there was no room for.
    pub limited: u64,
    /// Connections, and calls, that had to go for new ones.
    pub evicted: u64,
    /// Times that something was sent again to the guest.
    pub again: u64,
    /// Times that a socket said that something was possible, and nothing was.
    pub idle: u64,
    /// Times that a connection stood still though it could have gone on, and was made to.
    pub healed: u64,
}

/// The room.
#[derive(Debug)]
pub struct Tcp<S = Stream> {
    table: Table<S>,
    tools: Tools,
    intake: Intake,
    /// Those that have something for the guest, in turn.
    giving: VecDeque<Token>,
    /// Whose the last segment was.
    last: Option<(Key, Token)>,
    forwards: Forwards,
    shares: Shares,
    ended: Ended,
    secret: RandomState,
    start: Instant,
    counts: Counts,
}

impl<S: Sock> Tcp<S> {
    /// With the forwards (TCP and UNIX) and guest forwards of the plan, and their descriptors.
    ///
    /// # Errors
    /// The kernel's, from watching them, or from mapping memory.
    pub fn new(
        plan: &Plan,
        forwards: Vec<(Forward, OwnedFd)>,
        guests: Vec<(GuestForward, Option<OwnedFd>)>,
        cx: &mut Cx,
    ) -> io::Result<Self> {
        let mut room = Self {
            table: Table::new(cx.limits.tcp),
            tools: Tools {
                store: Store::new(plan.limits.held)?,
                each: plan.limits.held_each,
                parts: Vec::new(),
                waiting: Waiting::default(),
                late: Late::default(),
                ends: Ends::default(),
            },
            intake: Intake::new()?,
            giving: VecDeque::new(),
            last: None,
            forwards: Forwards::new(forwards, guests, cx)?,
            shares: Shares::new(cx.limits.tcp),
            ended: Ended::default(),
            secret: RandomState::new(),
            start: cx.now,
            counts: Counts::default(),
        };
        room.heed();
        Ok(room)
    }

    /// There are other forwards than before: whoever may come by them has his part of everything.
    fn heed(&mut self) {
        self.shares.listen(self.forwards.ids());
        self.tools.store.share(self.forwards.ids().next().is_some());
    }

    /// There is a forward with this number.
    #[must_use]
    pub fn has_forward(&self, id: u32) -> bool {
        self.forwards.has(id)
    }

    /// Watches those of another table of forwards that are new (they come with a descriptor): [`Tcp::set_forwards`] cannot
    /// fail afterwards.
    ///
    /// # Errors
    /// The kernel's; then nothing has changed.
    pub fn watch_forwards(list: &[(Forward, Option<OwnedFd>)], cx: &mut Cx) -> io::Result<()> {
        Forwards::watch(list, cx)
    }

    /// Another table that was watched does not come after all.
    pub fn unwatch_forwards(list: &[(Forward, Option<OwnedFd>)], cx: &mut Cx) {
        Forwards::unwatch(list, cx);
    }

    /// All forwards from now on: a descriptor with each that is new, and watched.
    pub fn set_forwards(&mut self, list: Vec<(Forward, Option<OwnedFd>)>, cx: &mut Cx) {
        self.forwards.replace(list, cx);
        self.heed();
    }

    /// What happened so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What there is and what happened, for the port's counters.
    #[must_use]
    pub fn flows(&self) -> Flows {
        let c = self.counts;
        Flows {
            most: self.shares.most().into(),
            now: u64::try_from(self.table.len()).unwrap_or(u64::MAX),
            half_open: self.shares.half().into(),
            opened: c.opened,
            refused: c.refused,
            limited: c.limited,
            evicted: c.evicted,
            broken: c.broken,
            resent: c.again,
            healed: c.healed,
            idle: c.idle,
        }
    }

    /// Connections that there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.table.len()
    }

    /// Those of them whose ends have not met yet.
    #[must_use]
    pub fn half_open(&self) -> u32 {
        self.shares.half()
    }

    fn find(&mut self, key: &Key) -> Option<Token> {
        if let Some((_, token)) = self.last.filter(|(k, _)| k == key) {
            return Some(token);
        }
        let token = self.table.find(key)?;
        self.last = Some((*key, token));
        Some(token)
    }

    /// A segment of a connection that there is.
    fn known(&mut self, p: &Packet<'_>, s: &Segment, token: Token, cx: &mut Cx) {
        let Some(f) = self.table.get(token) else { return };
        let before = f.state;
        match f.arrive(s, cx.now) {
            Act::None => {}
            Act::Take { skip, len } => self.intake.add(&mut f.up.pieces, p, s.header + skip, len),
            Act::Answer => f.greet(cx, &mut self.tools),
            Act::Broken => {
                f.sock.abort();
                self.counts.refused += u64::from(before == State::Asking);
                return self.remove(token, cx);
            }
        }
        if before != State::Open && f.state == State::Open {
            self.counts.opened += 1;
            self.shares.opened(f.origin, before);
        }
        if !std::mem::replace(&mut f.touched, true) {
            self.intake.touched.push(token);
        }
    }

    /// A segment of a connection that there is not: the guest is told so (RFC 9293 §3.10.7.1).
    fn stranger(s: &Segment, key: &Key, cx: &mut Cx) {
        if s.has(flag::RST) {
            return;
        }
        let said = if s.has(flag::ACK) {
            Said { seq: s.ack, flags: flag::RST, ..Said::default() }
        } else {
            Said { ack: s.seq.plus(s.span()), flags: flag::RST | flag::ACK, ..Said::default() }
        };
        Self::tell(key, &said, cx);
    }

    /// Says something that belongs to no connection.
    fn tell(key: &Key, said: &Said, cx: &mut Cx) {
        if let Some(head) = segment::small(&cx.net, key, said) {
            cx.push(Vnet::default(), &[head.as_ref()]);
        }
    }

    /// What follows from whatever was done with a flow.
    fn after(&mut self, token: Token, fate: Fate, may_queue: bool, cx: &mut Cx) {
        if fate == Fate::Over {
            return self.remove(token, cx);
        }
        let Some(f) = self.table.get(token) else { return };
        let timer = f.timer(cx.now);
        if may_queue && !f.queued && f.may_give() {
            f.queued = true;
            queue(&mut self.giving, &self.table, token);
        }
        if let Some(when) = timer {
            cx.timers.at(when, token);
            self.sweep(cx);
        }
    }

    /// Timers of flows that are over, or that came to have a nearer one, are not kept beyond so many as there are flows.
    fn sweep(&self, cx: &mut Cx) {
        if cx.timers.held() > 2 * self.table.len() + SPARE {
            cx.timers.sweep(|t| match (t.who, t.kind) {
                (Who::Tcp, FLOW) => self.table.armed(t).map_or(Kept::No, Kept::At),
                _ => Kept::Yes,
            });
        }
    }

    /// Breaks a connection off at both ends.
    fn break_off(&mut self, token: Token, cx: &mut Cx) {
        if let Some(f) = self.table.get(token) {
            f.reset(cx, &mut self.tools);
            f.sock.abort();
            self.counts.broken += 1;
        }
        self.remove(token, cx);
    }

    fn remove(&mut self, token: Token, cx: &mut Cx) {
        let Some(mut f) = self.table.remove(token) else { return };
        if f.is_done() {
            self.ended.add(f.key, f.down.max, f.up.next, cx.now);
        }
        if self.last.is_some_and(|(_, t)| t == token) {
            self.last = None;
        }
        self.shares.over(f.origin, f.state);
        f.leave(&mut self.tools.store);
        self.wake();
    }

    /// There is room again for what is to be kept: those go on that wait for it, as many as there is some for.
    fn wake(&mut self) {
        for guest in [true, false] {
            let list = self.tools.waiting.of(guest);
            if list.is_empty() {
                continue;
            }
            // Who is gone is not kept for as long as there is no room.
            if list.len() > 2 * self.table.len() {
                list.retain(|token| self.table.get(*token).is_some());
            }
            let mut room = self.tools.store.left(Purse { guest, up: false }) / CHUNK;
            while room > 0 {
                let Some(token) = list.pop_front() else { break };
                let Some(f) = self.table.get(token) else { continue };
                room -= 1;
                f.down.turn = Turn::Has;
                if !f.queued && f.may_give() {
                    f.queued = true;
                    queue(&mut self.giving, &self.table, token);
                }
            }
        }
    }
}

/// Adds to those that give. Who is gone is forgotten when his turn comes, and that may be never: small frames go first, and a
/// guest may see to it that there are always some.
fn queue<S>(giving: &mut VecDeque<Token>, table: &Table<S>, token: Token) {
    if giving.len() > 2 * table.len() + GONE {
        giving.retain(|t| table.state(*t).is_some());
    }
    giving.push_back(token);
}

impl<S: Sock> Room for Tcp<S> {
    fn take(&mut self, p: &Packet<'_>, cx: &mut Cx) {
        let (Some(ip), Some(s)) = (&p.ip, Segment::of(p)) else {
            cx.stats.drop(Reason::Malformed);
            return;
        };
        if p.to.is_multicast() || ip.dst.is_multicast() {
            cx.stats.drop(Reason::Unknown);
            return;
        }
        if self.intake.is_full() {
            self.flush(cx);
        }
        let key = Key { guest: SocketAddr::new(ip.src, s.from), far: SocketAddr::new(ip.dst, s.to) };
        match self.find(&key) {
            Some(token) => self.known(p, &s, token, cx),
            None if s.has(flag::SYN) && !s.has(flag::ACK) && !s.has(flag::RST) => self.call(&s, key, cx),
            None => match self.ended.answer(&key, &s, cx.now) {
                Some(said) => Self::tell(&key, &said, cx),
                None => Self::stranger(&s, &key, cx),
            },
        }
    }

    fn flush(&mut self, cx: &mut Cx) {
        let touched = std::mem::take(&mut self.intake.touched);
        for &token in &touched {
            let Some(f) = self.table.get(token) else { continue };
            f.touched = false;
            let pieces = f.up.pieces.take();
            self.tools.parts.clear();
            self.intake.gather(pieces, &mut self.tools.parts);
            f.pass(cx, &mut self.tools);
            let fate = f.settle(cx, &mut self.tools);
            self.after(token, fate, true, cx);
        }
        self.intake.touched = touched;
        self.intake.clear();
        self.wake();
    }

    fn ready(&mut self, at: Token, ready: Ready, cx: &mut Cx) {
        match at.kind {
            LISTENER => return self.accept(at, cx),
            DOOR => return self.let_through(at, cx),
            _ => {}
        }
        let Some(f) = self.table.get(at) else { return };
        f.down.thorough |= ready.read_hup || ready.hup || ready.error || ready.urgent;
        if f.state == State::Calling {
            if ready.write || ready.error || ready.hup {
                self.decided(at, cx);
            }
            return;
        }
        let stood = (f.up.blocked, f.down.readable, f.queued);
        if ready.write && f.up.blocked {
            f.flush(&mut self.tools);
        }
        f.down.readable |= ready.read || ready.error || ready.hup;
        // Behind the end nothing is read that would say so.
        f.up.broken |= ready.error && f.down.end && f.sock.error().is_some();
        let fate = f.settle(cx, &mut self.tools);
        self.counts.idle += u64::from(stood == (f.up.blocked, f.down.readable, f.queued));
        self.after(at, fate, true, cx);
        self.wake();
    }

    fn tick(&mut self, at: Token, cx: &mut Cx) {
        if at.kind == LISTENER {
            self.forwards.rang(at);
            return self.accept(at, cx);
        }
        let Some(f) = self.table.get(at) else { return };
        if f.look(cx.now, &mut self.tools) {
            self.counts.healed += 1;
            if f.settle(cx, &mut self.tools) == Fate::Over {
                return self.remove(at, cx);
            }
        }
        let open = f.state == State::Open;
        let fate = f.tick(cx, &mut self.tools);
        self.counts.again += u64::from(f.down.again);
        let over = u64::from(fate == Fate::Over);
        *(if open { &mut self.counts.broken } else { &mut self.counts.refused }) += over;
        self.after(at, fate, true, cx);
        self.wake();
    }

    fn give(&mut self, bay: &mut Bay, b: &mut Batch, cx: &mut Cx) {
        for _ in 0..self.giving.len() {
            let Some(token) = self.giving.pop_front() else { return };
            let Some(f) = self.table.get(token) else { continue };
            match f.give(bay, b, cx, &mut self.tools) {
                Given::Done => {
                    f.queued = false;
                    // The last word may have been what there was no room for.
                    let fate = f.fate(&mut self.tools);
                    self.after(token, fate, false, cx);
                }
                Given::More => {
                    self.giving.push_back(token);
                    self.after(token, Fate::Lives, false, cx);
                }
                Given::Full => {
                    // The others are first next time.
                    self.giving.push_back(token);
                    return self.after(token, Fate::Lives, false, cx);
                }
                Given::Broken => self.break_off(token, cx),
            }
        }
    }

    fn has_more(&self) -> bool {
        !self.giving.is_empty()
    }
}
