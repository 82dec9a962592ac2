//! The work that a frame's virtio-net header leaves to do, done in software for a port that cannot do it; and the other
//! way round, segments joined for a port that takes super-frames ([`Joiner`]).
//!
//! Checksums are completed and super-frames segmented **without copying a body**: a segment is a new head and a slice
//! of the same memory. Only the checksum reads the payload.
//!
//! Trust: the frame may be a hostile guest's; every length comes from the frame itself and every field is looked up
//! within the head. What cannot be parsed is dropped and counted ([`Reason::Offload`]).
//!
//! [`Reason::Offload`]: crate::stats::Reason::Offload
#![forbid(unsafe_code)]

mod join;
mod packet;
mod segment;
pub mod sum;
mod undone;

use netreeve_shared::vnet::{self, Vnet};

use crate::frame::{Batch, Frame};
use crate::port::{Offloads, offload_bits as bits};

pub use join::{Joiner, pays};
pub use segment::Segments;
use sum::Sum;
pub use undone::recognise;

/// The offloads that a header asks its taker for.
#[must_use]
#[inline]
pub fn asked(v: &Vnet) -> Offloads {
    let mut o = if v.needs_csum() { bits::CSUM } else { 0 };
    o |= match v.gso() {
        vnet::GSO_NONE => 0,
        vnet::GSO_TCPV4 => bits::TSO4,
        vnet::GSO_TCPV6 => bits::TSO6,
        vnet::GSO_UDP_L4 => bits::USO,
        _ => bits::UFO,
    };
    if v.gso_type & vnet::GSO_ECN != 0 {
        o |= bits::ECN;
    }
    Offloads(o)
}

/// Where the work on a batch stands: which frame, and which of its segments, comes next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct At {
    /// Frame, counted in the waiting frames.
    pub frame: usize,
    /// Segment of that frame.
    pub segment: u32,
}

impl At {
    fn cookie(self) -> u64 {
        (self.frame as u64) << 32 | u64::from(self.segment)
    }

    /// The place that a finished frame's cookie names.
    #[must_use]
    pub fn of(f: &Frame) -> Self {
        let segment = u32::try_from(f.cookie & 0xffff_ffff).unwrap_or(0);
        Self { frame: usize::try_from(f.cookie >> 32).unwrap_or(usize::MAX), segment }
    }
}

/// True if some waiting frame asks for more than `takes`.
#[must_use]
#[inline]
pub fn needed(b: &Batch, takes: Offloads) -> bool {
    b.frames().iter().any(|f| !asked(&f.vnet).within(takes))
}

/// True if the work on `f` can be done: its headers lie in its head and make sense.
#[must_use]
pub fn feasible(f: &Frame, takes: Offloads) -> bool {
    let work = asked(&f.vnet);
    if work.within(takes) {
        true
    } else if work.0 & !(bits::CSUM) == 0 {
        csum_field(f).is_some()
    } else {
        Segments::of(f).is_some()
    }
}

/// Puts waiting frames of `from`, from `at` on, into `out` as its taker takes them, until `out` is full or all are
/// in; says where it stopped. Every frame of `out` carries its place as cookie ([`At::of`]). Dropped frames are left
/// out; so are frames that are not [`feasible`], which the caller drops beforehand.
pub fn finish(from: &Batch, mut at: At, takes: Offloads, out: &mut Batch) -> At {
    while let Some(f) = from.frames().get(at.frame) {
        if !f.dropped {
            let work = asked(&f.vnet);
            if work.within(takes) || work.0 & !bits::CSUM == 0 {
                if !whole(from, f, at, !work.within(takes), out) {
                    return at;
                }
            } else if let Some(s) = Segments::of(f) {
                at.segment = s.emit(from, f, at, out);
                if at.segment < s.count() {
                    return at;
                }
            }
        }
        at = At { frame: at.frame + 1, segment: 0 };
    }
    at
}

/// Puts one unsegmented frame into `out`, its checksum completed if asked; false if there is no room.
fn whole(from: &Batch, f: &Frame, at: At, complete: bool, out: &mut Batch) -> bool {
    let Some(o) = out.push() else { return false };
    o.set_head(f.head());
    o.len = f.len;
    o.vnet = f.vnet;
    o.cookie = at.cookie();
    if complete {
        complete_csum(from, f, o);
    }
    for s in from.body(f) {
        out.push_seg(*s);
    }
    true
}

/// The place of the checksum in the head, if all that matters is there.
fn csum_field(f: &Frame) -> Option<usize> {
    let field = usize::from(f.vnet.csum_start) + usize::from(f.vnet.csum_offset);
    (field + 2 <= f.head().len()).then_some(field)
}

/// The checksum that a frame's header asks for, and its place in the head; none if that is not there. It is the
/// complement of the sum from `csum_start` to the end, for the field holds the pseudo-header's sum.
#[must_use]
pub fn checksum(from: &Batch, f: &Frame) -> Option<(usize, [u8; 2])> {
    let field = csum_field(f)?;
    let mut s = Sum::default();
    s.bytes(f.head().get(usize::from(f.vnet.csum_start)..).unwrap_or_default());
    for seg in from.body(f) {
        s.seg(seg);
    }
    Some((field, s.finish()))
}

/// Stores the checksum that the header asks for.
fn complete_csum(from: &Batch, f: &Frame, o: &mut Frame) {
    let Some((field, sum)) = checksum(from, f) else { return };
    store(o.head_mut(), field, sum);
    o.vnet.flags &= !vnet::F_NEEDS_CSUM;
    o.vnet.csum_start = 0;
    o.vnet.csum_offset = 0;
}

/// Stores two bytes; nothing happens outside the head.
fn store(head: &mut [u8], at: usize, v: [u8; 2]) {
    if let Some(to) = head.get_mut(at..at + 2) {
        to.copy_from_slice(&v);
    }
}

/// Offset of the network header and its Ethertype, behind at most two VLAN tags.
fn network_layer(head: &[u8]) -> Option<(usize, u16)> {
    let mut at = 12;
    for _ in 0..3 {
        head.get(at..at + 2)?;
        match load(head, at) {
            0x8100 | 0x88a8 => at += 4,
            t => return Some((at + 2, t)),
        }
    }
    None
}

/// Bytes of the IPv4 header.
fn ihl(head: &[u8], l3: usize) -> Option<usize> {
    let n = usize::from(head.get(l3)? & 15) * 4;
    (n >= 20).then_some(n)
}

/// A length of at most 65535, as it stands on the wire.
fn be(v: u32) -> [u8; 2] {
    u16::try_from(v).unwrap_or(u16::MAX).to_be_bytes()
}

fn load(head: &[u8], at: usize) -> u16 {
    head.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_be_bytes)
}

#[cfg(test)]
mod tests;
