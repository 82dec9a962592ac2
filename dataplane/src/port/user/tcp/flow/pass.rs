//! Up: what the guest sent goes to the socket, and the guest is told.
//!
//! Trust: the bytes are never looked at. Promise: what the guest is told as acknowledged is in the socket or held; what
//! can be neither is taken back before anything is said.
#![forbid(unsafe_code)]

use std::io::ErrorKind;

use super::super::super::room::Cx;
use super::super::hold::{CHUNK, Store};
use super::super::segment::flag;
use super::super::sock::Sock;
use super::{End, Fate, Flow, Owed, State, Tools};
use crate::mem::Seg;
use crate::stats::Reason;
use crate::sys::io::MAX_PARTS;

/// Window in bytes of a flow whose socket takes all, and the least of it, where others hold too much.
const OPEN_HANDED: u32 = 64 << 10;
const NARROW: u32 = 8 << 10;
/// What is promised to nobody is enough for so many windows of one whose socket takes all, and may not for long.
const MANY: u32 = 32;
/// The window that our SYN says, which has no scale: enough to go on with.
const FIRST: u32 = 65535;
/// One flow is promised no more than this part of what is promised to nobody; half of all is kept back for those whose
/// sockets stop taking, with a window of [`OPEN_HANDED`] on its way.
const SHARE: u32 = 8;

impl<S: Sock> Flow<S> {
    /// The turn is over: `tools.parts` are the guest's bytes, in order.
    pub(in super::super) fn pass(&mut self, cx: &mut Cx, tools: &mut Tools) {
        let total: u32 = tools.parts.iter().map(Seg::len).sum();
        if total > 0 && !self.up.broken {
            let left =
                if self.up.hold.is_empty() && !self.up.blocked { self.write(&mut tools.parts) } else { 0 };
            let lost = self.keep(tools, left);
            if lost > 0 {
                // Promised and not there, because others hold too much: the guest sends it again.
                let fin = u32::from(self.up.end == End::Seen);
                self.up.next = self.up.next.minus(lost + fin);
                self.up.end = End::No;
                self.up.owed = Owed::Now;
                cx.stats.drop(Reason::Full);
            }
        }
        tools.parts.clear();
        if self.ends() && !tools.ends.wait_for_call(self.token) {
            self.pass_end();
        }
        self.claim(&mut tools.store);
    }

    /// Writes as many parts as the socket takes; says where the rest begins.
    fn write(&mut self, parts: &mut [Seg]) -> usize {
        let mut at = 0;
        while at < parts.len() {
            let some = parts.get(at..(at + MAX_PARTS).min(parts.len())).unwrap_or_default();
            let offered: usize = some.iter().map(|s| usize::try_from(s.len()).unwrap_or(0)).sum();
            let taken = match self.sock.write(some) {
                Ok(n) => n,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.up.blocked = true;
                    return at;
                }
                Err(_) => {
                    self.break_up();
                    return parts.len();
                }
            };
            let mut n = u32::try_from(taken).unwrap_or(u32::MAX);
            self.up.passed = self.up.passed.saturating_add(n);
            while let Some(s) = parts.get_mut(at).filter(|s| s.len() <= n) {
                n -= s.len();
                at += 1;
                if n == 0 {
                    break;
                }
            }
            if let Some(s) = parts.get_mut(at) {
                *s = s.skip(n);
            }
            if taken < offered {
                // Its buffer is full, and it says when that changes.
                self.up.blocked = true;
                return at;
            }
        }
        at
    }

    /// Holds what the socket did not take, the parts from the `from`th on; says how many bytes there was no room for. One that
    /// stops taking when the others were promised all has no more than a part of what is left, so that the next has
    /// something as well.
    fn keep(&mut self, tools: &mut Tools, from: usize) -> u32 {
        let parts = tools.parts.get(from..).unwrap_or_default();
        if self.up.broken || parts.is_empty() {
            return 0;
        }
        let told = self.told();
        let (store, hold) = (&mut tools.store, &mut self.up.hold);
        let (total, purse) = (bytes(parts), hold.purse());
        let mut room = total;
        if hold.len() + total + told + CHUNK > store.unclaimed(purse).saturating_add(self.up.claim) {
            room = hold.spare() + (store.left(purse) / MANY).max(CHUNK.saturating_sub(hold.len()));
        }
        let mut held = 0;
        for s in parts {
            let part = s.take(room.saturating_sub(held));
            let n = hold.push(store, part);
            held += n;
            if n < s.len() {
                break;
            }
        }
        total - held
    }

    /// Bytes that the guest was told it may still send.
    fn told(&self) -> u32 {
        if self.up.broken || self.up.end != End::No { 0 } else { self.up.edge.since(self.up.next) }
    }

    /// What the store has promised it: all that it holds and may still send; while its socket takes all, what of that is
    /// beyond what the socket is trusted with.
    pub(super) fn claim(&mut self, store: &mut Store) {
        let told = self.told();
        let up = &mut self.up;
        let claim = if up.hold.is_empty() && !up.blocked {
            told.saturating_sub(OPEN_HANDED)
        } else {
            up.hold.len().saturating_add(told).saturating_add(CHUNK)
        };
        store.claim(up.hold.purse(), up.claim, claim);
        up.claim = claim;
    }

    /// Gives back all that it has of the store.
    pub(in super::super) fn leave(&mut self, store: &mut Store) {
        self.up.hold.clear(store);
        self.down.kept.clear(store);
        store.claim(self.up.hold.purse(), self.up.claim, 0);
        self.up.claim = 0;
    }

    /// The socket takes nothing any more. What came before its end is still to be read, and then the guest is told.
    fn break_up(&mut self) {
        self.up.broken = true;
        (self.down.readable, self.down.thorough) = (true, true);
    }

    /// The socket takes something again.
    pub(in super::super) fn flush(&mut self, tools: &mut Tools) {
        self.up.blocked = false;
        while !self.up.hold.is_empty() && !self.up.blocked && !self.up.broken {
            tools.parts.clear();
            self.up.hold.segs(&tools.store, 0, u32::MAX, &mut tools.parts);
            let before = bytes(&tools.parts);
            let at = self.write(&mut tools.parts);
            let left = bytes(tools.parts.get(at..).unwrap_or_default());
            self.up.hold.consume(&mut tools.store, before - left);
        }
        if self.up.broken {
            self.up.hold.clear(&mut tools.store);
        }
        tools.parts.clear();
        self.pass_end();
        self.claim(&mut tools.store);
    }

    /// The guest's end is what the socket is to hear next.
    fn ends(&self) -> bool {
        self.up.end == End::Seen && self.up.hold.is_empty() && !self.up.broken
    }

    /// Passes the guest's end on, if it is time.
    pub(in super::super) fn pass_end(&mut self) {
        if self.ends() {
            self.sock.finish();
            self.up.end = End::Passed;
        }
    }

    /// Bytes that the guest may send from `next` on.
    fn room(&self, tools: &Tools) -> u32 {
        let purse = self.up.hold.purse();
        let free = tools.store.unclaimed(purse).saturating_add(self.up.claim);
        let large = free.saturating_sub(tools.store.size(purse) / 2) / SHARE;
        if self.up.hold.is_empty() && !self.up.blocked {
            // Whoever sent little is promised little, for a promise lasts as long as the connection: idle ones would take all.
            let large = large.min(self.up.passed.saturating_mul(2).max(OPEN_HANDED));
            return large.max((free / MANY).clamp(NARROW, OPEN_HANDED)).min(tools.each);
        }
        large.min(tools.each).saturating_sub(self.up.hold.len())
    }

    /// The window as the guest is told, which is what it holds us to from now on. It is told in units: what it may send
    /// already is rounded up as long as there is room for that, so that the end of its window does not go back; what is new
    /// is rounded down, with a unit to spare for the former. Where there is none left, its end goes back by less than a unit,
    /// as scaling has it (RFC 7323 §2.4), and what it has sent up to there is taken all the same.
    pub(in super::super) fn advertise(&mut self, tools: &mut Tools, scale: u8) -> u16 {
        let (told, room) = (self.up.edge.since(self.up.next), self.room(tools));
        let unit = 1_u32 << scale;
        let up = told.div_ceil(unit);
        let kept = if up * unit <= room { up } else { told / unit };
        let units = (room.saturating_sub(unit - 1) / unit).max(kept).min(u16::MAX.into());
        self.up.edge = self.up.edge.max(self.up.next.plus(units * unit));
        self.claim(&mut tools.store);
        u16::try_from(units).unwrap_or(u16::MAX)
    }

    /// The guest's window has become so much larger that it is worth a word (RFC 9293 §3.8.6.2.2).
    pub(super) fn widened(&self, tools: &Tools) -> bool {
        let (told, room) = (self.up.edge.since(self.up.next), self.room(tools));
        // Where the guest can still send, the answer to that says how much further.
        let worth = (2 * self.down.mss).min(tools.each / 2);
        self.state == State::Open
            && self.up.end == End::No
            && told < (tools.each / 8).min(FIRST)
            && room >= told.saturating_add(worth)
    }

    /// Says what is owed; gives back what the guest has; sees whether all is said.
    pub(in super::super) fn settle(&mut self, cx: &mut Cx, tools: &mut Tools) -> Fate {
        if std::mem::take(&mut self.up.asks)
            && let Some(seconds) = self.up.alive
        {
            self.sock.keep_alive(seconds);
        }
        let now = self.down.max;
        for _ in 0..std::mem::take(&mut self.up.strays) {
            self.say(cx, tools, now, flag::ACK);
        }
        // Remembered, for there may be no room for it now, and trying says how far the window goes only once.
        if self.widened(tools) {
            self.up.owed = Owed::Now;
        }
        match self.up.owed {
            Owed::No => {}
            Owed::Soon if self.up.late => {}
            Owed::Soon => {
                self.up.late = true;
                tools.late.add(self.token, cx.now);
            }
            Owed::Now => {
                self.say(cx, tools, now, flag::ACK);
            }
        }
        self.discard(tools, false);
        self.fate(tools)
    }

    /// Sees whether all is said.
    pub(in super::super) fn fate(&mut self, tools: &mut Tools) -> Fate {
        if !self.is_done() {
            return Fate::Lives;
        }
        // A socket that is closed with bytes in it resets its connection.
        self.discard(tools, true);
        Fate::Over
    }
}

fn bytes(parts: &[Seg]) -> u32 {
    parts.iter().map(Seg::len).sum()
}
