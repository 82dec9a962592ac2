//! A hub: its members, and who gets a frame.
//!
//! The rule of waiting. A member's frames wait in its [`Queue`]. A member is *blocked* when its port did not take all that
//! it was last given; until then it merely has not had its turn. A frame that finds no room in a queue is dropped there
//! and counted if that member is blocked, and waits with its source if it is not, which is soon over; it also waits if
//! *every* member that it could go to is blocked, so that a hub of two is a wire. A member that is down or gone is not
//! asked.
//!
//! Trust: none in the members; nothing here is done for one that costs another more than a copy. Promise: no member
//! stops the others; frames of one source keep their order at every member; nothing is allocated for a frame.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Instant;

use nix::sys::eventfd::EventFd;

use super::queue::Queue;
use super::table::{Mac, Table};
use super::{Learning, Plan};
use crate::frame::{Batch, Frame};
use crate::port::Offloads;
use crate::stats::{Reason, Stats};

/// One place and who is behind it.
#[derive(Debug)]
pub(super) struct Member {
    queue: Queue,
    bell: Arc<EventFd>,
    learning: Option<Learning>,
    isolated: bool,
    /// Its peer is there and takes frames.
    up: bool,
    /// Its peer did not take all that it was last given.
    blocked: bool,
    /// Offloads that its peer takes.
    takes: Offloads,
    /// Its lane sleeps until there are frames for it.
    wants: bool,
    /// Its lane sleeps until somebody has room for a frame of its own.
    waits: bool,
    /// Frames that were not put into its queue.
    missed: Missed,
}

/// Frames that did not reach a member.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Missed {
    /// It was blocked and its queue was full.
    pub(super) full: u64,
    /// It went down while they waited.
    pub(super) down: u64,
}

/// Whom a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    /// All that may have it.
    All,
    /// This one alone.
    One(usize),
    /// Its source's own member: nobody.
    Nobody,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It is wherever it can be.
    Gone,
    /// There was nobody to have it.
    Lonely,
    /// Its source has to wait.
    Waits,
}

/// The hub.
#[derive(Debug)]
pub(super) struct Hub {
    members: Vec<Option<Member>>,
    table: Table,
    born: Instant,
}

impl Default for Hub {
    fn default() -> Self {
        Self { members: Vec::new(), table: Table::default(), born: Instant::now() }
    }
}

impl Hub {
    /// A new member; says which.
    pub(super) fn enter(&mut self, plan: &Plan, queue: Queue, bell: Arc<EventFd>) -> usize {
        if let Some(l) = plan.learning {
            self.table.reserve(l);
        }
        let member = Member {
            queue,
            bell,
            learning: plan.learning,
            isolated: plan.isolated,
            up: false,
            blocked: false,
            takes: Offloads::NONE,
            wants: false,
            waits: false,
            missed: Missed::default(),
        };
        let at = self.members.iter().position(Option::is_none).unwrap_or(self.members.len());
        match self.members.get_mut(at) {
            Some(place) => *place = Some(member),
            None => self.members.push(Some(member)),
        }
        at
    }

    /// A member leaves.
    pub(super) fn leave(&mut self, me: usize) {
        self.table.flush(me);
        if let Some(m) = self.members.get_mut(me).and_then(Option::take)
            && let Some(l) = m.learning
        {
            self.table.unreserve(l);
        }
        self.wake_waiters();
    }

    pub(super) fn member(&mut self, me: usize) -> Option<&mut Member> {
        self.members.get_mut(me).and_then(Option::as_mut)
    }

    /// Frames that never reached a member.
    pub(super) fn missed(&self, me: usize) -> Missed {
        self.members.get(me).and_then(Option::as_ref).map_or_else(Missed::default, |m| m.missed)
    }

    /// A member's peer is there or not. What waits for one that is not is dropped.
    pub(super) fn set_up(&mut self, me: usize, up: bool) {
        let Some(m) = self.member(me) else { return };
        if m.up == up {
            return;
        }
        m.up = up;
        m.blocked = false;
        if !up {
            m.missed.down += m.queue.clear() as u64;
            self.table.flush(me);
        }
        self.wake_waiters();
    }

    /// What a member's peer takes.
    pub(super) fn set_takes(&mut self, me: usize, takes: Offloads) {
        if let Some(m) = self.member(me) {
            m.takes = takes;
        }
    }

    /// The other members that a frame of `me` may go to.
    fn others(&self, me: usize) -> impl Iterator<Item = (usize, &Member)> {
        let isolated = self.members.get(me).and_then(Option::as_ref).is_some_and(|m| m.isolated);
        let all = self.members.iter().enumerate().filter_map(|(i, m)| m.as_ref().map(|m| (i, m)));
        all.filter(move |(i, m)| *i != me && m.up && !(isolated && m.isolated))
    }

    /// Offloads that at least one of the others takes: what a source may leave to do.
    pub(super) fn taken_by_others(&self, me: usize) -> Offloads {
        self.others(me).fold(Offloads::NONE, |all, (_, m)| Offloads(all.0 | m.takes.0))
    }

    /// Takes frames of a member; says how many. The first of the rest has to wait.
    pub(super) fn take(&mut self, me: usize, b: &Batch, stats: &mut Stats) -> usize {
        let now = u32::try_from(self.born.elapsed().as_secs()).unwrap_or(u32::MAX);
        let learning = self.members.get(me).and_then(Option::as_ref).and_then(|m| m.learning);
        let knows = self.members.iter().flatten().any(|m| m.learning.is_some());
        let (mut source, mut last) = (None, None);
        for (taken, f) in b.frames().iter().enumerate() {
            if f.dropped {
                continue;
            }
            let mut to = To::All;
            if let (true, Some([to_mac, from])) = (knows, addresses(f)) {
                if let Some(l) = learning
                    && source != Some(from)
                {
                    if self.table.learn(me, from, l, now) {
                        last = None;
                    }
                    source = Some(from);
                }
                to = match last {
                    Some((mac, to)) if mac == to_mac => to,
                    _ => self.whom(me, to_mac, now),
                };
                last = Some((to_mac, to));
            }
            match self.deliver(me, to, b, f) {
                Fate::Gone => {
                    stats.tx_frames += 1;
                    stats.tx_bytes += u64::from(f.len);
                }
                Fate::Lonely => stats.drop(Reason::PeerDown),
                Fate::Waits => return taken,
            }
        }
        b.frames().len()
    }

    fn whom(&self, me: usize, mac: Mac, now: u32) -> To {
        match if mac[0] & 1 == 0 { self.table.find(mac, now) } else { None } {
            None => To::All,
            Some(m) if m == me => To::Nobody,
            Some(m) => To::One(m),
        }
    }

    fn deliver(&mut self, me: usize, to: To, b: &Batch, f: &Frame) -> Fate {
        let is_for = |i: usize| to == To::All || to == To::One(i);
        let (mut others, mut wanted, mut open) = (0_usize, 0_usize, false);
        for (i, m) in self.others(me) {
            let room = m.queue.has_room(f.len);
            others += 1;
            open |= room || !m.blocked;
            if is_for(i) {
                wanted += 1;
                if !room && !m.blocked {
                    return Fate::Waits;
                }
            }
        }
        match (others, wanted, to) {
            (0, _, _) => return Fate::Lonely,
            (_, 0, To::Nobody) => return Fate::Gone,
            // It is known where it belongs, and it may not go there.
            (_, 0, _) => return Fate::Lonely,
            _ if !open => return Fate::Waits,
            _ => {}
        }
        let isolated = self.members.get(me).and_then(Option::as_ref).is_some_and(|m| m.isolated);
        for (i, m) in self.members.iter_mut().enumerate() {
            let Some(m) = m.as_mut().filter(|m| i != me && m.up && is_for(i) && !(isolated && m.isolated))
            else {
                continue;
            };
            if !m.queue.push(f, b.body(f)) {
                m.missed.full += 1;
            } else if std::mem::take(&mut m.wants) {
                ring(&m.bell);
            }
        }
        Fate::Gone
    }

    /// The oldest frames of a member's queue, which stay there.
    pub(super) fn give(&mut self, me: usize, b: &mut Batch) {
        if let Some(m) = self.member(me) {
            m.wants = false;
            m.queue.give(b);
        }
    }

    /// Of `given` frames a member's peer took `taken`. Says how many bytes they had.
    pub(super) fn taken(&mut self, me: usize, given: usize, taken: usize) -> u64 {
        let Some(m) = self.member(me) else { return 0 };
        m.blocked = taken < given;
        let bytes = m.queue.pop(taken);
        self.wake_waiters();
        bytes
    }

    /// True if frames wait for a member; else its bell rings when there are some.
    pub(super) fn wants(&mut self, me: usize) -> bool {
        let Some(m) = self.member(me) else { return false };
        let some = m.queue.len() > 0;
        m.wants = !some;
        some
    }

    /// True if a member's next frame does not have to wait, whatever it is; else its bell rings when that is so.
    pub(super) fn waits(&mut self, me: usize) -> bool {
        let now = self.is_open(me);
        if let Some(m) = self.member(me) {
            m.waits = !now;
        }
        now
    }

    fn is_open(&self, me: usize) -> bool {
        let (mut open, mut any) = (false, false);
        for (_, m) in self.others(me) {
            let room = m.queue.is_roomy();
            if !room && !m.blocked {
                return false;
            }
            any = true;
            open |= room;
        }
        open || !any
    }

    /// Rings the bells of the sources that wait and need not any more.
    fn wake_waiters(&mut self) {
        for i in 0..self.members.len() {
            let waits = self.members.get(i).and_then(Option::as_ref).is_some_and(|m| m.waits);
            if waits
                && self.is_open(i)
                && let Some(m) = self.member(i)
            {
                m.waits = false;
                ring(&m.bell);
            }
        }
    }
}

fn ring(bell: &EventFd) {
    // A counter that is full has woken whoever reads it.
    let _ = bell.write(1);
}

/// Destination and source.
fn addresses(f: &Frame) -> Option<[Mac; 2]> {
    let (to, rest) = f.head().split_first_chunk::<6>()?;
    let (from, _) = rest.split_first_chunk::<6>()?;
    Some([*to, *from])
}
