//! Down: what the socket has goes to the guest.
//!
//! Bytes are received straight into the landing. They stay in the socket, which is told what the guest has acknowledged;
//! a socket that cannot show its bytes twice has them kept here, a copy of each.
//!
//! Trust: none needed; the bytes are never looked at. Promise: no more than the guest's window is ever on its way.
#![forbid(unsafe_code)]

use std::io::{self, ErrorKind};

use super::super::super::bay::Bay;
use super::super::super::build::transport_at;
use super::super::super::room::Cx;
use super::super::hold::CHUNK;
use super::super::segment::{self, HEADER, Said, flag};
use super::super::sock::Sock;
use super::{Flow, Owed, State, Tools, Turn};
use crate::frame::Batch;
use crate::mem::Seg;
use crate::port::offload_bits as bits;

/// Frames that a flow gives before others have their turn.
const QUANTUM: u32 = 16;
/// Acknowledged bytes that may stay in the socket, to save calls; all go when nothing is on its way.
const STALE: u32 = 64 << 10;
/// What is left of a purse may be kept for one flow up to this part, and so much in any case.
const FAIR: u32 = 4;
const LEAST: u32 = 64 << 10;

/// How giving went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Given {
    /// Nothing more until something happens.
    Done,
    /// There is more to give.
    More,
    /// There is no room for it now.
    Full,
    /// The socket is broken.
    Broken,
}

impl<S: Sock> Flow<S> {
    /// There may be something to give.
    pub(in super::super) fn may_give(&self) -> bool {
        let d = &self.down;
        let end = d.end && (self.up.broken || d.fin.is_none_or(|fin| d.next == fin));
        self.state == State::Open
            && (d.again || end || self.up.owed == Owed::Now || (self.has_bytes() && self.sendable()))
    }

    /// The socket, or what was kept of it, has bytes that are to be sent.
    pub(in super::super) fn has_bytes(&self) -> bool {
        let d = &self.down;
        (d.readable && !d.end) || self.flying() < d.kept.len()
    }

    /// The guest's window has room that is worth a segment (RFC 9293 §3.8.6.2.1).
    pub(in super::super) fn sendable(&self) -> bool {
        let flying = self.flying();
        let room = self.down.window.saturating_sub(flying);
        room > 0 && (room >= self.down.mss || flying == 0 || room >= self.down.window / 2)
    }

    /// Gives frames.
    pub(in super::super) fn give(
        &mut self,
        bay: &mut Bay,
        b: &mut Batch,
        cx: &mut Cx,
        tools: &mut Tools,
    ) -> Given {
        if self.state != State::Open {
            return Given::Done;
        }
        if std::mem::take(&mut self.down.again) && self.rewind(tools).is_err() {
            return Given::Broken;
        }
        for _ in 0..QUANTUM {
            if self.down.end && !self.has_bytes() {
                return self.give_end(cx, tools);
            }
            if !self.has_bytes() || !self.sendable() {
                return self.give_word(cx, tools);
            }
            match self.give_one(bay, b, cx, tools) {
                Ok(Given::More) => {}
                Ok(g) => return g,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock && !self.up.broken => self.down.readable = false,
                // Bytes of the guest's are lost: there is no waiting for an end that may never come.
                Err(_) => return Given::Broken,
            }
        }
        Given::More
    }

    /// An acknowledgement that found no room among the small frames.
    fn give_word(&mut self, cx: &mut Cx, tools: &mut Tools) -> Given {
        let said = self.up.owed != Owed::Now || self.say(cx, tools, self.down.max, flag::ACK);
        if said { Given::Done } else { Given::Full }
    }

    /// Everything from `una` on is sent again.
    fn rewind(&mut self, tools: &mut Tools) -> io::Result<()> {
        self.discard(tools, true);
        let d = &mut self.down;
        (d.next, d.recover, d.repeats) = (d.una, d.max, 0);
        if self.sock.peeks() {
            self.sock.rewind()?;
            // The end is found again behind the bytes.
            (d.end, d.readable, d.thorough) = (false, true, true);
        }
        Ok(())
    }

    /// Tells the socket, or forgets, what the guest has acknowledged.
    pub(in super::super) fn discard(&mut self, tools: &mut Tools, all: bool) {
        let d = &mut self.down;
        let peeks = self.sock.peeks();
        // With nothing on its way there is nothing to wait for; and if what was to be sent again has arrived after all, the
        // socket has not shown that much again, and goes on at the right place only without it.
        if d.stale == 0 || !(all || !peeks || d.stale >= STALE || d.next == d.una) {
            return;
        }
        let n = std::mem::take(&mut d.stale);
        d.kept.consume(&mut tools.store, n);
        let mut left = if peeks { n } else { 0 };
        while left > 0 {
            match self.sock.discard(left) {
                Ok(n) if n > 0 => left -= n.min(left),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // Cannot be: it was read. Then the next reading says what is wrong.
                _ => return,
            }
        }
    }

    fn give_one(
        &mut self,
        bay: &mut Bay,
        b: &mut Batch,
        cx: &mut Cx,
        tools: &mut Tools,
    ) -> io::Result<Given> {
        let tcp = transport_at(self.key.guest.ip());
        let header = u32::from(tcp) + HEADER;
        let mss = self.mss(&cx.net);
        let gso = if self.key.guest.is_ipv4() { bits::TSO4 } else { bits::TSO6 };
        let longest = if cx.gives.has(gso | bits::CSUM) { 65535 - (header - 14) } else { mss };
        let old = self.down.kept.len().saturating_sub(self.flying());
        let mut most = longest.min(self.down.window.saturating_sub(self.flying()));
        if old > 0 {
            most = most.min(old);
        } else if !self.sock.peeks() {
            most = most.min(self.keepable(tools));
            if most == 0 {
                self.wait(tools);
                return Ok(Given::Done);
            }
        }
        let Some(room) = bay.open(b, header, most.min(mss), most) else { return Ok(Given::Full) };
        tools.parts.clear();
        let n = if old > 0 {
            self.down.kept.segs(&tools.store, self.flying(), room, &mut tools.parts);
            copy(&tools.parts, bay.payload())
        } else {
            let n = u32::try_from(self.sock.read(bay.payload())?).unwrap_or(u32::MAX);
            if !self.sock.peeks() {
                if self.down.turn == Turn::Has {
                    self.down.turn = Turn::No;
                }
                self.keep_read(bay.payload(), n, tools);
            } else if n < room && !self.down.thorough {
                self.down.readable = n == 0;
            }
            n
        };
        tools.parts.clear();
        if n == 0 {
            self.down.end = true;
            return Ok(Given::More);
        }
        let (seq, ack) = (self.down.next, self.up.next);
        let window = self.advertise(tools, self.up.scale);
        let flags = flag::ACK | if n < room || n < mss { flag::PSH } else { 0 };
        let said = Said { seq, ack, flags, window, ..Said::default() };
        let Some((head, vnet)) = segment::large(&cx.net, &self.key, &said, n, mss) else {
            return Ok(Given::Broken);
        };
        bay.close(b, &mut cx.stats, vnet, head.as_ref(), n);
        self.up.owed = Owed::No;
        self.sent(n, cx);
        Ok(Given::More)
    }

    /// Bytes that can be kept of what is read now: of a purse that has little left no flow takes all, and none goes before
    /// those that wait.
    fn keepable(&self, tools: &Tools) -> u32 {
        let kept = &self.down.kept;
        let left = tools.store.left(kept.purse());
        let crowd =
            u32::try_from(tools.waiting.len(kept.purse().guest)).unwrap_or(u32::MAX).saturating_mul(CHUNK);
        if self.down.turn != Turn::Has && left <= crowd {
            return kept.spare().min(tools.each.saturating_sub(kept.len()));
        }
        let fair = (left.saturating_add(kept.len()) / FAIR).max(LEAST).min(tools.each);
        fair.saturating_sub(kept.len()).min(left + kept.spare())
    }

    /// Has it go on when somebody gives room back ([`Tools::waiting`]).
    fn wait(&mut self, tools: &mut Tools) {
        if std::mem::replace(&mut self.down.turn, Turn::Waits) != Turn::Waits {
            tools.waiting.of(self.down.kept.purse().guest).push_back(self.token);
        }
    }

    /// A copy of what was read and is nowhere else any more. There is room: it was looked for before.
    fn keep_read(&mut self, from: &[Seg], n: u32, tools: &mut Tools) {
        let mut left = n;
        for s in from {
            let part = s.take(left);
            left -= part.len();
            self.down.kept.push(&mut tools.store, part);
        }
    }

    /// Bytes, or the end, went to the guest.
    fn sent(&mut self, n: u32, cx: &Cx) {
        let d = &mut self.down;
        if d.una == d.next {
            self.progress = cx.now;
        }
        d.next = d.next.plus(n);
        d.max = d.max.max(d.next);
    }

    fn give_end(&mut self, cx: &mut Cx, tools: &mut Tools) -> Given {
        if self.up.broken {
            return Given::Broken;
        }
        let at = self.down.next;
        if self.down.fin.is_some_and(|fin| at != fin) {
            return self.give_word(cx, tools);
        }
        if !self.say(cx, tools, at, flag::FIN | flag::ACK) {
            return Given::Full;
        }
        self.down.fin = Some(at);
        self.sent(1, cx);
        Given::Done
    }
}

/// Copies runs to runs; says how many bytes.
fn copy(from: &[Seg], to: &[Seg]) -> u32 {
    let (mut n, mut to) = (0, to.iter().copied());
    let mut room = Seg::EMPTY;
    for s in from {
        let mut rest = *s;
        while !rest.is_empty() {
            if room.is_empty() {
                match to.next() {
                    Some(next) => room = next,
                    None => return n,
                }
            }
            let k = room.copy_from(&rest);
            (room, rest, n) = (room.skip(k), rest.skip(k), n + k);
        }
    }
    n
}
