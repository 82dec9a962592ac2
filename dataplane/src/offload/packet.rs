//! A TCP or UDP packet as receive coalescing looks at it: where its headers are, and what must be equal.
//!
//! Trust: none in the frame; only its head is read. Promise: what is found lies inside the head, and the packet fills
//! the frame exactly.
#![forbid(unsafe_code)]

use super::sum::Sum;
use super::{be, ihl, load, network_layer};
use crate::frame::Frame;
use crate::port::{Offloads, offload_bits as bits};

pub(super) const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
pub(super) const TCP_PSH: u8 = 0x08;
const TCP_ACK: u8 = 0x10;
const TCP_URG: u8 = 0x20;
pub(super) const TCP_CWR: u8 = 0x80;

/// Where a packet's headers are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Packet {
    pub(super) v6: bool,
    pub(super) tcp: bool,
    /// Offset of the IP header, of the TCP or UDP header, and of what comes behind it.
    pub(super) l3: usize,
    pub(super) l4: usize,
    pub(super) behind: usize,
    /// Bytes of payload.
    pub(super) payload: u32,
    /// Of addresses and ports: differs where they differ, but for chance.
    pub(super) key: u64,
}

/// What a frame is.
pub(super) enum Parsed {
    /// Nothing that a flow could be told of: not TCP or UDP, a fragment, options.
    Other,
    /// TCP or UDP, and perhaps such that it can be joined.
    Flow { key: u64, packet: Option<Packet> },
}

fn word(head: &[u8], at: usize) -> u64 {
    head.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u64::from_ne_bytes(*b))
}

fn half(head: &[u8], at: usize) -> u64 {
    head.get(at..).and_then(|b| b.first_chunk()).map_or(0, |b| u32::from_ne_bytes(*b).into())
}

fn mix(key: u64, more: u64) -> u64 {
    (key.rotate_left(23) ^ more).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// The same bytes in both.
fn same(a: &[u8], b: &[u8], from: usize, to: usize) -> bool {
    matches!((a.get(from..to), b.get(from..to)), (Some(a), Some(b)) if a == b)
}

impl Packet {
    /// Reads a frame's head.
    pub(super) fn read(f: &Frame) -> Parsed {
        Self::parse(f).unwrap_or(Parsed::Other)
    }

    fn parse(f: &Frame) -> Option<Parsed> {
        let head = f.head();
        let (l3, ethertype) = network_layer(head)?;
        let (v6, l4, protocol, total) = match ethertype {
            // No options, no fragment.
            0x0800 if ihl(head, l3)? == 20 && load(head, l3 + 6) & 0x3fff == 0 => {
                (false, l3 + 20, *head.get(l3 + 9)?, u32::from(load(head, l3 + 2)))
            }
            0x86dd => (true, l3 + 40, *head.get(l3 + 6)?, u32::from(load(head, l3 + 4)) + 40),
            _ => return None,
        };
        let tcp = match protocol {
            6 => true,
            17 => false,
            _ => return None,
        };
        let mut key = mix(u64::from(protocol), half(head, l4));
        key = mix(key, word(head, l3 + if v6 { 8 } else { 12 }));
        for at in if v6 { [16, 24, 32].as_slice() } else { &[] } {
            key = mix(key, word(head, l3 + at));
        }
        let behind = l4 + if tcp { usize::from(*head.get(l4 + 12)? >> 4) * 4 } else { 8 };
        let headers = u32::try_from(behind - l3).ok()?;
        let p = Self { v6, tcp, l3, l4, behind, payload: total.saturating_sub(headers), key };
        let whole = u32::try_from(l3).ok()?.saturating_add(total) == f.len
            && behind <= head.len()
            && (!tcp || behind >= l4 + 20)
            && f.lead().len() as usize >= head.len();
        Some(Parsed::Flow { key, packet: (whole && p.joinable(f)).then_some(p) })
    }

    /// It carries payload and nothing that the receiver has to see alone.
    fn joinable(&self, f: &Frame) -> bool {
        let head = f.head();
        let alone = if self.tcp {
            self.flags(head) & (TCP_SYN | TCP_RST | TCP_URG | TCP_ACK) != TCP_ACK
        } else {
            // Without a checksum, there is none that could be right for all.
            load(head, self.l4 + 6) == 0 || u32::from(load(head, self.l4 + 4)) != self.payload + 8
        };
        !alone && self.payload > 0 && f.vnet.gso_type == 0
    }

    /// A group may begin with it: others may follow, and the taker takes such a super-frame.
    pub(super) fn begins(&self, f: &Frame, takes: Offloads) -> bool {
        let need = match (self.tcp, self.v6) {
            (true, false) => bits::TSO4,
            (true, true) => bits::TSO6,
            _ => bits::USO,
        };
        let cwr = self.tcp && self.flags(f.head()) & TCP_CWR != 0;
        let need = if cwr { need | bits::ECN } else { need };
        takes.has(need | bits::CSUM) && !self.ends(f) && self.payload <= u16::MAX.into()
    }

    /// No other segment follows it in its super-frame.
    pub(super) fn ends(&self, f: &Frame) -> bool {
        self.tcp && self.flags(f.head()) & (TCP_FIN | TCP_PSH) != 0
    }

    /// TCP's flags in a head of the same layout.
    pub(super) fn flags(&self, head: &[u8]) -> u8 {
        head.get(self.l4 + 13).copied().unwrap_or(0)
    }

    /// Bytes of all headers.
    pub(super) fn headers(&self) -> u32 {
        u32::try_from(self.behind).unwrap_or(0)
    }

    /// Bytes of the headers from IP's on.
    pub(super) fn ip_headers(&self) -> u32 {
        u32::try_from(self.behind - self.l3).unwrap_or(0)
    }

    /// Where the checksum is.
    pub(super) fn field(&self) -> usize {
        self.l4 + if self.tcp { 16 } else { 6 }
    }

    /// `other` (with head `b`) goes on where this one (with head `a`) and what joined it, `payload` bytes together, end;
    /// all that must be equal is.
    pub(super) fn continued_by(&self, a: &[u8], other: &Self, b: &[u8], payload: u32) -> bool {
        let layout = (self.v6, self.tcp, self.l3, self.l4, self.behind);
        if layout != (other.v6, other.tcp, other.l3, other.l4, other.behind) || !same(a, b, 0, self.l3) {
            return false;
        }
        let (l3, l4) = (self.l3, self.l4);
        let ip = if self.v6 {
            // All but the length.
            same(a, b, l3, l3 + 4) && same(a, b, l3 + 6, l4)
        } else {
            // All but length, identification and checksum: type of service, flags, time to live.
            same(a, b, l3, l3 + 2) && same(a, b, l3 + 6, l3 + 10) && same(a, b, l3 + 12, l4)
        };
        if !ip || !same(a, b, l4, l4 + 4) {
            return false;
        }
        if !self.tcp {
            return true;
        }
        let sequence =
            |h: &[u8]| h.get(l4 + 4..).and_then(|s| s.first_chunk()).map_or(0, |s| u32::from_be_bytes(*s));
        // CWR is said once, by the first (RFC 3168 §6.1.2).
        let flags = (self.flags(a) & !TCP_CWR) ^ self.flags(b);
        sequence(b) == sequence(a).wrapping_add(payload)
            && flags & !(TCP_FIN | TCP_PSH) == 0
            && same(a, b, l4 + 8, l4 + 13)
            && same(a, b, l4 + 14, l4 + 16)
            && same(a, b, l4 + 18, self.behind)
    }

    /// The pseudo-header's sum (RFC 9293 §3.1, RFC 8200 §8.1) for so many bytes from the TCP or UDP header on.
    pub(super) fn pseudo(&self, head: &[u8], l4_len: u32) -> Sum {
        let addresses = if self.v6 { self.l3 + 8..self.l3 + 40 } else { self.l3 + 12..self.l3 + 20 };
        let mut s = Sum::default();
        s.bytes(head.get(addresses).unwrap_or_default());
        s.be16(if self.tcp { 6 } else { 17 });
        s.be16(u16::from_be_bytes(be(l4_len)));
        s
    }
}
