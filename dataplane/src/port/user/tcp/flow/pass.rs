//! Up: what the guest sent goes to the socket, and the guest is told.
//!
//! Trust: the bytes are never looked at. Promise: what the guest is told as acknowledged is in the socket or held; what
//! can be neither is taken back before anything is said.
#![forbid(unsafe_code)]

use std::io::ErrorKind;

use super::super::super::room::Cx;
use super::super::hold::Store;
use super::super::segment::flag;
use super::super::sock::Sock;
use super::{End, Fate, Flow, State, Tools};
use crate::mem::Seg;
use crate::stats::Reason;
use crate::sys::io::MAX_PARTS;

/// Window in bytes of a flow whose socket takes all, however much others hold.
const OPEN_HANDED: u32 = 64 << 10;
/// The window that our SYN says, which has no scale: enough to go on with.
const FIRST: u32 = 65535;
/// What is held by all may be promised to one flow up to this part of the rest.
const SHARE: u32 = 4;

impl<S: Sock> Flow<S> {
    /// The turn is over: `tools.parts` are the guest's bytes, in order.
    pub(in super::super) fn pass(&mut self, cx: &mut Cx, tools: &mut Tools) {
        let total: u32 = tools.parts.iter().map(Seg::len).sum();
        if total > 0 && !self.up.broken {
            let left =
                if self.up.hold.is_empty() && !self.up.blocked { self.write(&mut tools.parts) } else { 0 };
            let lost = self.keep(&mut tools.store, tools.parts.get(left..).unwrap_or_default());
            if lost > 0 {
                // Promised and not there, because others hold too much: the guest sends it again.
                let fin = u32::from(self.up.end == End::Seen);
                self.up.next = self.up.next.minus(lost + fin);
                self.up.end = End::No;
                cx.stats.drop(Reason::Full);
            }
        }
        tools.parts.clear();
        self.pass_end();
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

    /// Holds what the socket did not take; says how many bytes there was no room for.
    fn keep(&mut self, store: &mut Store, parts: &[Seg]) -> u32 {
        if self.up.broken {
            return 0;
        }
        let mut lost = 0;
        for s in parts {
            lost += if lost > 0 { s.len() } else { s.len() - self.up.hold.push(store, *s) };
        }
        lost
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
    }

    fn pass_end(&mut self) {
        if self.up.end == End::Seen && self.up.hold.is_empty() && !self.up.broken {
            self.sock.finish();
            self.up.end = End::Passed;
        }
    }

    /// Bytes that the guest may send from `next` on.
    fn room(&self, tools: &Tools) -> u32 {
        let held = self.up.hold.len();
        let room = tools.each.saturating_sub(held);
        let share = tools.store.left() / SHARE;
        let least = if held == 0 && !self.up.blocked { OPEN_HANDED.min(tools.each) } else { 0 };
        room.min(share.max(least))
    }

    /// The window as the guest is told, which is what it holds us to from now on. It is told in units: what it may send
    /// already is rounded up as long as there is room for that, so that the end of its window does not go back; what is new
    /// is rounded down, with a unit to spare for the former. Where there is none left, its end goes back by less than a unit,
    /// as scaling has it (RFC 7323 §2.4), and what it has sent up to there is taken all the same.
    pub(in super::super) fn advertise(&mut self, tools: &Tools, scale: u8) -> u16 {
        let (told, room) = (self.up.edge.since(self.up.next), self.room(tools));
        let unit = 1_u32 << scale;
        let up = told.div_ceil(unit);
        let kept = if up * unit <= room { up } else { told / unit };
        let units = (room.saturating_sub(unit - 1) / unit).max(kept).min(u16::MAX.into());
        self.up.edge = self.up.edge.max(self.up.next.plus(units * unit));
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
        let now = self.down.max;
        for _ in 0..std::mem::take(&mut self.up.strays) {
            self.say(cx, tools, now, flag::ACK);
        }
        // Remembered, for there may be no room for it now, and trying says how far the window goes only once.
        self.up.owed |= self.widened(tools);
        if self.up.owed {
            self.say(cx, tools, now, flag::ACK);
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
