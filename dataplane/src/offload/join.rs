//! Receive coalescing (GRO): in-order segments of a flow within one batch become one super-frame, **by description**: the
//! first one's head with lengths, flags and checksum made anew, and the list of everybody's payload. Nothing is copied.
//!
//! For givers that hand over what was on a link (AF_XDP, a stream of plain frames), towards takers that take
//! super-frames: a guest or a tap spends its time for each frame, not for each byte. Joining is the inverse of
//! [`super::Segments`]: what is joined here and segmented there is the same again, byte for byte (but the IPv4
//! identification of atomic datagrams, RFC 6864 §4.1, if their sender always uses the same). So the rules are those of
//! the kernel's `tcp_gro_receive`, `udp_gro_receive` and `inet_gro_receive`, and the window must be equal besides.
//!
//! Trust: none in the frames. Promise: no wrong checksum is laundered, for the taker will not look at it again: every
//! segment that is joined was verified, or its checksum is undone and its pseudo-header's sum is right. Frames of a
//! flow stay in order; a frame that joins nothing passes as it is.
#![forbid(unsafe_code)]

use netreeve_shared::vnet::{F_NEEDS_CSUM, GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Vnet};

use super::packet::{Packet, Parsed, TCP_CWR, TCP_FIN, TCP_PSH};
use super::{be, load, store};
use crate::frame::{BATCH, Batch, Frame};
use crate::mem::Seg;
use crate::offload::sum::Sum;
use crate::port::{Offloads, offload_bits as bits};

/// Flows that are followed at a time: as many as the kernel does for a queue (`MAX_GRO_SKBS`).
const OPEN: usize = 8;
/// Largest IP packet in bytes.
const MAX_IP: u32 = 65535;

/// How the IPv4 identification goes on in a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Id {
    /// By one with each segment, or there is none.
    #[default]
    Counts,
    /// Always the same, which it may where nothing is fragmented.
    Fixed,
}

/// Segments that become one super-frame; places are those in the batch.
#[derive(Clone, Copy, Debug, Default)]
struct Group {
    first: Packet,
    at: u8,
    last: u8,
    count: u8,
    /// The first one's checksum was looked at.
    sound: bool,
    id: Id,
    /// Bytes of payload of all.
    payload: u32,
}

/// What is to be joined in one batch. Kept by the lane, so that nothing is allocated in a turn.
#[derive(Debug)]
pub struct Joiner {
    groups: Vec<Group>,
    /// Places in `groups` of those that may still grow, the one begun last at the end.
    open: Vec<u8>,
    /// For each frame, the next one of its group.
    next: [u8; BATCH],
    /// For each frame: it goes out as (the first of) this group; none: it went into one.
    role: [Option<u8>; BATCH],
}

const NONE: u8 = u8::MAX;

impl Default for Joiner {
    fn default() -> Self {
        Self {
            groups: Vec::with_capacity(BATCH),
            open: Vec::with_capacity(OPEN),
            next: [NONE; BATCH],
            role: [None; BATCH],
        }
    }
}

/// The offloads that make joining possible at all.
#[must_use]
pub fn pays(takes: Offloads) -> bool {
    takes.has(bits::CSUM) && takes.0 & (bits::TSO4 | bits::TSO6 | bits::USO) != 0
}

impl Joiner {
    /// Finds out what of `b` can be joined for a taker of `takes`. False: nothing, and the batch goes as it is.
    pub fn plan(&mut self, b: &Batch, takes: Offloads) -> bool {
        self.groups.clear();
        self.open.clear();
        let mut joined = false;
        for (i, f) in (0u8..).zip(b.frames()) {
            self.set(i, Some(NONE));
            if f.dropped {
                continue;
            }
            match Packet::read(f) {
                // Not known to be of no flow: nothing may overtake it.
                Parsed::Other => self.open.clear(),
                Parsed::Flow { key, packet } => joined |= self.place(b, i, key, packet, takes),
            }
        }
        joined
    }

    fn set(&mut self, frame: u8, role: Option<u8>) {
        if let Some(r) = self.role.get_mut(usize::from(frame)) {
            *r = role;
        }
        if let Some(n) = self.next.get_mut(usize::from(frame)) {
            *n = NONE;
        }
    }

    /// Puts a frame into its flow's group, or begins one. True: it joined others.
    fn place(&mut self, b: &Batch, i: u8, key: u64, packet: Option<Packet>, takes: Offloads) -> bool {
        let Some(f) = b.frames().get(usize::from(i)) else { return false };
        let found = self.open.iter().position(|&g| self.group(g).is_some_and(|g| g.first.key == key));
        if let Some(place) = found {
            let g = self.open.get(place).copied().unwrap_or(NONE);
            if let (Some(p), Some(group)) = (packet, self.groups.get_mut(usize::from(g)))
                && group.add(b, i, f, p)
            {
                let (before, closed) = (group.last, p.payload < group.first.payload || p.ends(f));
                group.last = i;
                if let Some(n) = self.next.get_mut(usize::from(before)) {
                    *n = i;
                }
                self.set(i, None);
                if closed {
                    self.open.remove(place);
                }
                return true;
            }
            self.open.remove(place);
        }
        if let Some(p) = packet.filter(|p| p.begins(f, takes)) {
            if self.open.len() == OPEN {
                self.open.remove(0);
            }
            let g = u8::try_from(self.groups.len()).unwrap_or(NONE);
            self.groups.push(Group {
                first: p,
                at: i,
                last: i,
                count: 1,
                payload: p.payload,
                ..Group::default()
            });
            self.open.push(g);
            self.set(i, Some(g));
        }
        false
    }

    fn group(&self, g: u8) -> Option<&Group> {
        self.groups.get(usize::from(g))
    }

    /// Puts the batch into `out`, joined as planned. Dropped frames are left out. Each frame's cookie is the place of
    /// its first segment in the batch.
    pub fn emit(&self, b: &Batch, out: &mut Batch) {
        for ((at, f), role) in (0u64..).zip(b.frames()).zip(&self.role) {
            let Some(g) = role.filter(|_| !f.dropped) else { continue };
            match self.group(g).filter(|g| g.count > 1) {
                Some(g) => self.one(b, f, g, out),
                None => alone(b, f, out),
            }
            if let Some(o) = out.last_mut() {
                o.cookie = at;
            }
        }
    }

    /// A frame of [`Joiner::emit`]'s is gone: marks its segments in `b`, so that they are not sent once more if the rest
    /// of the batch goes another way.
    pub fn sent(&self, b: &mut Batch, gone: &Frame) {
        let mut at = u8::try_from(gone.cookie).unwrap_or(NONE);
        while let Some(f) = b.frames_mut().get_mut(usize::from(at)) {
            f.dropped = true;
            at = self.next.get(usize::from(at)).copied().unwrap_or(NONE);
        }
    }

    /// The super-frame of a group.
    fn one(&self, b: &Batch, f: &Frame, g: &Group, out: &mut Batch) {
        let p = g.first;
        let Some(o) = out.push() else { return };
        o.set_head(f.head());
        o.len = p.headers() + g.payload;
        o.vnet = g.vnet(f);
        let last = b.frames().get(usize::from(g.last)).map_or(f, |l| l);
        g.dress(o.head_mut(), last.head());
        b.body(f).iter().for_each(|s| out.push_seg(*s));
        let mut at = self.next.get(usize::from(g.at)).copied().unwrap_or(NONE);
        while let Some(m) = b.frames().get(usize::from(at)) {
            payload(b, m, p.headers(), |s| out.push_seg(s));
            at = self.next.get(usize::from(at)).copied().unwrap_or(NONE);
        }
    }
}

fn alone(b: &Batch, f: &Frame, out: &mut Batch) {
    let Some(o) = out.push() else { return };
    o.set_head(f.head());
    o.len = f.len;
    o.vnet = f.vnet;
    b.body(f).iter().for_each(|s| out.push_seg(*s));
}

/// The bytes of a frame behind its headers, as they lie in memory.
fn payload(b: &Batch, f: &Frame, headers: u32, mut put: impl FnMut(Seg)) {
    let in_head = u32::try_from(f.head().len()).unwrap_or(0);
    let lead = f.lead();
    put(lead.skip(headers));
    // What of the first run is not in the head is the first segment of the body.
    let seen = usize::from(lead.len() > in_head);
    b.body(f).iter().skip(seen).for_each(|s| put(*s));
}

impl Group {
    /// Adds a frame if it goes on where the group stands.
    fn add(&mut self, b: &Batch, i: u8, f: &Frame, p: Packet) -> bool {
        let Some(first) = b.frames().get(usize::from(self.at)) else { return false };
        let goes_on = self.first.continued_by(first.head(), &p, f.head(), self.payload);
        let fits = self.first.ip_headers() + self.payload + p.payload <= MAX_IP;
        if i == NONE || !goes_on || !fits || p.payload > self.first.payload {
            return false;
        }
        let Some(id) = self.identification(first.head(), f.head()) else { return false };
        if !self.sound && !sound(b, first, &self.first) {
            return false;
        }
        self.sound = true;
        if !sound(b, f, &p) {
            return false;
        }
        self.id = id;
        self.count += 1;
        self.payload += p.payload;
        true
    }

    /// How the identification goes on with this one; none: not as it should.
    fn identification(&self, first: &[u8], head: &[u8]) -> Option<Id> {
        if self.first.v6 {
            return Some(Id::Counts);
        }
        let at = self.first.l3 + 4;
        let step = load(head, at).wrapping_sub(load(first, at));
        let atomic = load(first, at + 2) & 0x4000 != 0;
        let id = match step {
            0 if atomic => Id::Fixed,
            n if n == u16::from(self.count) => Id::Counts,
            _ => return None,
        };
        (self.count == 1 || id == self.id).then_some(id)
    }

    fn vnet(&self, f: &Frame) -> Vnet {
        let p = &self.first;
        let n = |n: usize| u16::try_from(n).unwrap_or(0);
        let kind = match (p.tcp, p.v6) {
            (true, false) => GSO_TCPV4,
            (true, true) => GSO_TCPV6,
            _ => GSO_UDP_L4,
        };
        let ecn = if p.tcp && p.flags(f.head()) & TCP_CWR != 0 { GSO_ECN } else { 0 };
        Vnet {
            flags: F_NEEDS_CSUM,
            gso_type: kind | ecn,
            hdr_len: n(p.behind),
            gso_size: u16::try_from(p.payload).unwrap_or(0),
            csum_start: n(p.l4),
            csum_offset: n(p.field() - p.l4),
        }
    }

    /// Makes the first one's headers those of all.
    fn dress(&self, head: &mut [u8], last: &[u8]) {
        let p = &self.first;
        let l4_len = u32::try_from(p.behind - p.l4).unwrap_or(0) + self.payload;
        if p.v6 {
            store(head, p.l3 + 4, be(l4_len));
        } else {
            store(head, p.l3 + 2, be(l4_len + 20));
            store(head, p.l3 + 10, [0, 0]);
            let mut s = Sum::default();
            s.bytes(head.get(p.l3..p.l4).unwrap_or_default());
            store(head, p.l3 + 10, s.finish());
        }
        if p.tcp {
            let more = p.flags(last) & (TCP_FIN | TCP_PSH);
            if let Some(flags) = head.get_mut(p.l4 + 13) {
                *flags |= more;
            }
        } else {
            store(head, p.l4 + 4, be(l4_len));
        }
        store(head, p.field(), p.pseudo(head, l4_len).partial());
    }
}

/// The checksums are right, or rightly undone.
fn sound(b: &Batch, f: &Frame, p: &Packet) -> bool {
    let head = f.head();
    if !p.v6 {
        let mut s = Sum::default();
        s.bytes(head.get(p.l3..p.l4).unwrap_or_default());
        if s.partial() != [0xff, 0xff] {
            return false;
        }
    }
    let l4_len = u32::try_from(p.behind - p.l4).unwrap_or(0) + p.payload;
    let mut s = p.pseudo(head, l4_len);
    if f.vnet.needs_csum() {
        let at = usize::from(f.vnet.csum_start);
        return at == p.l4
            && at + usize::from(f.vnet.csum_offset) == p.field()
            && head.get(p.field()..p.field() + 2) == Some(s.partial().as_slice());
    }
    s.bytes(head.get(p.l4..).unwrap_or_default());
    b.body(f).iter().for_each(|seg| s.seg(seg));
    s.partial() == [0xff, 0xff]
}

#[cfg(test)]
#[path = "join_tests.rs"]
mod tests;
