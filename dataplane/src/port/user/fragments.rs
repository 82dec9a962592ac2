//! Fragments: the guest's are put together, and datagrams for the guest that are longer than its MTU are cut up.
//!
//! A datagram that is whole again becomes a frame without any fragmentation, in memory of our own, and is judged like any
//! other. Sources: RFC 791 §3.2 and RFC 8200 §4.5 (the fields), RFC 815 (that order does not matter), RFC 5722 (overlap).
//!
//! Trust: none in who sends. Promise: [`MOST`] datagrams at a time, each in room for the largest that there is, for
//! [`AGE`]; no byte is written outside that room, whatever a fragment says of itself; a datagram whose fragments overlap
//! or contradict each other is thrown away with all that still comes of it, and the same fragment twice is no harm.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netreeve_shared::vnet::Vnet;

use super::build::{self, Head};
use super::net::Net;
use super::packet::{Ip, Packet, Part};
use super::poll::Token;
use super::room::Cx;
use crate::frame::{Batch, HEAD};
use crate::mem::{Buf, Seg};
use crate::offload::sum::Sum;
use crate::stats::{Reason, Stats};

/// Datagrams that are put together at a time; another pushes the oldest out.
pub const MOST: usize = 16;
/// How long the fragments of a datagram are waited for.
pub const AGE: Duration = Duration::from_secs(30);

/// Bytes of room for a datagram: what 16 bits of length can say, behind either family's header.
const ROOM: u32 = 65536;
/// The largest payload of an IPv4 datagram, whose length counts its header.
const MOST_V4: u32 = 65535 - 20;
/// Fragments of one datagram: more than the largest has at the smallest MTU that anybody uses (576).
const PARTS: usize = 256;
/// IPv6's extension header for fragments, and its bytes.
const FRAGMENT: u8 = 44;
const FRAGMENT_LEN: u32 = 8;
/// Bytes of Ethernet and IP headers without options, of either family.
const HEADER4: usize = 34;
const HEADER6: usize = 54;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    id: u32,
}

/// A datagram of which something came.
#[derive(Debug)]
struct Partial {
    key: Key,
    began: Instant,
    slot: u32,
    /// What came, as first byte and end, in order.
    parts: Vec<(u32, u32)>,
    /// Bytes that came.
    have: u32,
    /// Where it ends, once the last fragment came.
    end: Option<u32>,
    /// Its fragments contradict each other: nothing of it is used.
    dead: bool,
    /// Ethernet and IP header, without options, and the transport's number, as its first fragment has them.
    header: [u8; HEADER6],
    proto: u8,
}

/// What a fragment does to its datagram.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// It is new.
    New,
    /// It came before.
    Again,
    /// It cannot be of the same datagram as what came.
    Contradiction,
}

impl Partial {
    fn place(&mut self, from: u32, to: u32, more: bool) -> Place {
        let beyond = match self.end {
            Some(end) if more => to >= end,
            Some(end) => to != end,
            None => !more && self.parts.last().is_some_and(|(_, last)| *last > to),
        };
        let i = self.parts.partition_point(|(start, _)| *start < from);
        if self.parts.get(i) == Some(&(from, to)) {
            let was_last = self.end == Some(to);
            return if was_last == more { Place::Contradiction } else { Place::Again };
        }
        let before = i.checked_sub(1).and_then(|i| self.parts.get(i));
        let overlaps =
            before.is_some_and(|(_, end)| *end > from) || self.parts.get(i).is_some_and(|p| p.0 < to);
        if beyond || overlaps || self.parts.len() >= PARTS {
            return Place::Contradiction;
        }
        self.parts.insert(i, (from, to));
        self.have += to - from;
        if !more {
            self.end = Some(to);
        }
        Place::New
    }
}

/// The guest's datagrams that are being put together.
#[derive(Debug)]
pub struct Fragments {
    room: Buf,
    partial: Vec<Partial>,
    /// Slots of `room` without a datagram; the one that was given back last is used last.
    free: VecDeque<u32>,
    whole: Batch,
}

impl Fragments {
    /// None yet.
    ///
    /// # Errors
    /// No addresses.
    pub fn new() -> io::Result<Self> {
        let slots = u32::try_from(MOST).unwrap_or(0);
        Ok(Self {
            room: Buf::reserve(slots * ROOM)?,
            partial: Vec::with_capacity(MOST),
            free: (0..slots).collect(),
            whole: Batch::new(),
        })
    }

    /// Takes a fragment; gives the whole packet if it was the last that was missing. Its memory is used again by the next
    /// one: rooms that keep what a packet carries until they are flushed are to be flushed before.
    pub fn take(&mut self, p: &Packet<'_>, cx: &mut Cx) -> Option<Packet<'_>> {
        if !self.put(p, cx.now, &mut cx.stats) {
            return None;
        }
        let whole = self.whole.frames().first()?;
        let mut whole = Packet::of(whole, &self.whole).map_err(|why| cx.stats.drop(why)).ok()?;
        // Whoever cut it lets it be cut. In IPv6 that is said by the pieces alone.
        if let Some(ip) = &mut whole.ip {
            ip.whole = false;
        }
        Some(whole)
    }

    /// Old ones are forgotten when another comes, and cost nothing until then: no timer is needed.
    pub fn tick(&mut self, _at: Token, cx: &mut Cx) {
        self.expire(cx.now, &mut cx.stats);
    }

    /// True: a datagram is whole.
    fn put(&mut self, p: &Packet<'_>, now: Instant, stats: &mut Stats) -> bool {
        self.expire(now, stats);
        let Some((ip, piece)) = p.ip.as_ref().and_then(|ip| Some((ip, ip.piece?))) else { return false };
        let largest = if ip.src.is_ipv4() { MOST_V4 } else { ROOM - 1 };
        let to = piece.offset.saturating_add(ip.len);
        if ip.len == 0 || (piece.more && ip.len % 8 != 0) || to > largest {
            stats.drop(Reason::Fragment);
            return false;
        }
        let Some(i) = self.entry(ip, piece.id, now, stats) else { return false };
        let Some(d) = self.partial.get_mut(i) else { return false };
        let place = if d.dead { Place::Contradiction } else { d.place(piece.offset, to, piece.more) };
        match place {
            Place::New => {}
            Place::Again => return false,
            Place::Contradiction => {
                // Kept, so that what still comes of it does not begin anew.
                d.dead = true;
                stats.drop(Reason::Fragment);
                return false;
            }
        }
        if piece.offset == 0 {
            let n = p.head.len().min(HEADER6);
            store(&mut d.header, 0, p.head.get(..n).unwrap_or_default());
            d.proto = ip.proto;
        }
        copy(p, ip, self.room.seg(d.slot * ROOM + piece.offset, ip.len));
        if d.end != Some(d.have) {
            return false;
        }
        self.finish(i);
        true
    }

    /// Datagrams that wait for more.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.partial.len()
    }

    /// Gives up what was waited for too long.
    fn expire(&mut self, now: Instant, stats: &mut Stats) {
        while let Some(i) = self.partial.iter().position(|d| now.saturating_duration_since(d.began) >= AGE) {
            self.forget(i, stats);
        }
    }

    fn forget(&mut self, i: usize, stats: &mut Stats) {
        let d = self.partial.swap_remove(i);
        self.free.push_back(d.slot);
        if !d.dead {
            stats.drop(Reason::Fragment);
        }
    }

    /// The place of a fragment's datagram, a new one if there is none.
    fn entry(&mut self, ip: &Ip, id: u32, now: Instant, stats: &mut Stats) -> Option<usize> {
        // IPv6 does not tell datagrams apart by their protocol.
        let proto = if ip.src.is_ipv4() { ip.proto } else { 0 };
        let key = Key { src: ip.src, dst: ip.dst, proto, id };
        if let Some(i) = self.partial.iter().position(|d| d.key == key) {
            return Some(i);
        }
        if self.partial.len() >= MOST {
            let oldest = self.partial.iter().enumerate().min_by_key(|(_, d)| d.began).map(|(i, _)| i)?;
            self.forget(oldest, stats);
        }
        let slot = self.free.pop_front()?;
        let (parts, header) = (Vec::with_capacity(8), [0; HEADER6]);
        let partial = Partial {
            key,
            began: now,
            slot,
            parts,
            have: 0,
            end: None,
            dead: false,
            header,
            proto: ip.proto,
        };
        self.partial.push(partial);
        self.partial.len().checked_sub(1)
    }

    fn finish(&mut self, i: usize) {
        let d = self.partial.swap_remove(i);
        self.free.push_back(d.slot);
        let mut head = [0; HEAD];
        store(&mut head, 0, &d.header);
        let n = if d.key.src.is_ipv4() {
            // No options, whole.
            store(&mut head, 14, &[0x45]);
            store(&mut head, 16, &be16(d.have + 20));
            store(&mut head, 18, &[0, 0, 0, 0]);
            store(&mut head, 23, &[d.proto]);
            HEADER4
        } else {
            store(&mut head, 18, &be16(d.have));
            store(&mut head, 20, &[d.proto]);
            HEADER6
        };
        let payload = self.room.seg(d.slot * ROOM, d.have);
        let in_head = head.get_mut(n..).map_or(0, |rest| payload.copy_out(rest));
        self.whole.clear();
        let Some(f) = self.whole.push() else { return };
        f.set_head(head.get(..n + in_head).unwrap_or_default());
        f.len = len32(n) + d.have;
        f.vnet = Vnet::default();
        self.whole.push_seg(payload.skip(len32(in_head)));
    }
}

/// Copies a fragment's payload to where it belongs, and not a byte further.
fn copy(p: &Packet<'_>, ip: &Ip, mut to: Seg) {
    p.parts(ip, 0, |part| {
        let n = match part {
            Part::Head(b) => len32(to.copy_in(b)),
            Part::Body(s) => to.copy_from(&s),
        };
        to = to.skip(n);
        true
    });
}

/// A datagram for a guest: its addresses, what it carries, and its number if it has to be cut up.
#[derive(Clone, Copy, Debug)]
pub struct Whole<'a> {
    /// Who sends, to whom.
    pub way: (IpAddr, IpAddr),
    /// The transport's number.
    pub proto: u8,
    /// What its fragments have in common.
    pub id: u32,
    /// The transport's header, with its checksum.
    pub header: &'a [u8],
    /// What it carries.
    pub body: &'a [Seg],
}

impl Whole<'_> {
    /// Fragments of `each` bytes that it becomes.
    fn count(&self, each: u32) -> u32 {
        self.len().div_ceil(each)
    }

    fn len(&self) -> u32 {
        len32(self.header.len()) + self.body.iter().map(Seg::len).sum::<u32>()
    }

    /// Headers of the fragment with `len` bytes from `at` on.
    fn part(&self, net: &Net, at: u32, len: u32) -> Option<Head> {
        let ((src, dst), more) = (self.way, at + len < self.len());
        if dst.is_ipv6() {
            let mut h = build::ip(net, src, dst, FRAGMENT, len + FRAGMENT_LEN)?;
            h.push(&[self.proto, 0]);
            h.push(&be16((at & 0xfff8) | u32::from(more)));
            h.push(&self.id.to_be_bytes());
            return Some(h);
        }
        let mut h = build::ip(net, src, dst, self.proto, len)?;
        h.set(18, &be16(self.id & 0xffff));
        h.set(20, &be16((at / 8) | u32::from(more) << 13));
        h.set(24, &[0, 0]);
        let mut sum = Sum::default();
        sum.bytes(h.as_ref().get(14..HEADER4).unwrap_or_default());
        h.set(24, &sum.finish());
        Some(h)
    }

    /// Puts it into `b` as fragments that fit the network's MTU. False: there is no room for all of them, and none is
    /// there. At the smallest MTU that there is (1280) the largest datagram takes no more than an empty batch has room for.
    pub fn cut(&self, net: &Net, b: &mut Batch, stats: &mut Stats) -> bool {
        let ip = if self.way.1.is_ipv4() { 20 } else { 40 + FRAGMENT_LEN };
        let each = u32::from(net.mtu.max(1280)).saturating_sub(ip) & !7;
        if b.room() < usize::try_from(self.count(each)).unwrap_or(usize::MAX) {
            return false;
        }
        let (mut at, mut rest) = (0, Rest { segs: self.body, at: 0 });
        while at < self.len() {
            let len = each.min(self.len() - at);
            let Some(mut head) = self.part(net, at, len) else { return true };
            let size = len32(head.len()) + len;
            let first = if at == 0 { self.header } else { &[] };
            head.push(first);
            let Some(f) = b.push() else { return true };
            f.set_head(head.as_ref());
            f.len = size;
            let mut left = len - len32(first.len());
            while left > 0
                && let Some(part) = rest.next(left)
            {
                left -= part.len();
                b.push_seg(part);
            }
            stats.rx_frames += 1;
            stats.rx_bytes += u64::from(size);
            at += len;
        }
        true
    }
}

/// What is left of a run of segments.
struct Rest<'a> {
    segs: &'a [Seg],
    at: u32,
}

impl Rest<'_> {
    /// The next bytes, `most` at most.
    fn next(&mut self, most: u32) -> Option<Seg> {
        let first = self.segs.first()?;
        let part = first.skip(self.at).take(most);
        self.at += part.len();
        if self.at >= first.len() {
            self.segs = self.segs.get(1..).unwrap_or_default();
            self.at = 0;
        }
        Some(part)
    }
}

/// Bytes into a header; nothing happens outside of it.
fn store(to: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(to) = to.get_mut(at..at + bytes.len()) {
        to.copy_from_slice(bytes);
    }
}

/// A number of at most 16 bits, as it stands on the wire.
fn be16(n: u32) -> [u8; 2] {
    u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes()
}

fn len32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "fragments_tests.rs"]
mod tests;
