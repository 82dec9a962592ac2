//! TCP's header: read from a guest's packet, and made for one of ours (RFC 9293 §3.1).
//!
//! Trust: none in the guest: a header is judged from a copy, options that make no sense end the list. Promise: what is
//! built is right in lengths and checksum.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use netreeve_shared::vnet::{self, Vnet};

use super::super::build::{self, Head};
use super::super::net::Net;
use super::super::packet::{Packet, TCP};
use super::seq::Seq;

/// Bytes of a header without options.
pub(super) const HEADER: u32 = 20;

/// The flags, as they lie in the header.
pub(super) mod flag {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
}

/// Who talks to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The guest's end.
    pub(super) guest: SocketAddr,
    /// The other end, as the guest sees it.
    pub(super) far: SocketAddr,
}

/// What a segment of the guest's says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) from: u16,
    pub(super) to: u16,
    pub(super) seq: Seq,
    pub(super) ack: Seq,
    pub(super) flags: u8,
    /// Not scaled.
    pub(super) window: u16,
    /// Option 2.
    pub(super) mss: Option<u16>,
    /// Option 3 (RFC 7323 §2.2).
    pub(super) scale: Option<u8>,
    /// Bytes of the header.
    pub(super) header: u32,
    /// Bytes behind it.
    pub(super) payload: u32,
}

fn word(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*b.get(at..)?.first_chunk()?))
}

fn half(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*b.get(at..)?.first_chunk()?))
}

impl Segment {
    /// Reads a packet's header.
    pub(super) fn of(p: &Packet<'_>) -> Option<Self> {
        let len = p.ip.as_ref()?.len;
        let known = p.transport();
        let size = known.get(12).map_or(usize::MAX, |b| usize::from(b >> 4) * 4);
        if let Some(h) = known.get(..size) {
            return Self::read(h, len);
        }
        let mut copy = [0; 60];
        let n = p.copy(0, &mut copy);
        let h = copy.get(..n)?;
        let size = usize::from(h.get(12)? >> 4) * 4;
        Self::read(h.get(..size)?, len)
    }

    /// Reads a header; `len` counts what it carries as well.
    pub(super) fn read(h: &[u8], len: u32) -> Option<Self> {
        let header = u32::try_from(h.len()).ok().filter(|n| *n >= HEADER)?;
        let mut s = Self {
            from: half(h, 0)?,
            to: half(h, 2)?,
            seq: Seq(word(h, 4)?),
            ack: Seq(word(h, 8)?),
            flags: *h.get(13)?,
            window: half(h, 14)?,
            mss: None,
            scale: None,
            header,
            payload: len.checked_sub(header)?,
        };
        if s.has(flag::SYN) {
            s.options(h.get(20..)?);
        }
        Some(s)
    }

    fn options(&mut self, mut o: &[u8]) {
        while let [kind, rest @ ..] = o {
            o = match (kind, rest) {
                (0, _) => return,
                (1, _) => rest,
                (_, [size, ..]) if *size >= 2 => {
                    match rest.get(..usize::from(*size) - 1) {
                        Some([4, a, b]) if *kind == 2 => self.mss = Some(u16::from_be_bytes([*a, *b])),
                        // More than 14 means 14 (RFC 7323 §2.3).
                        Some([3, n]) if *kind == 3 => self.scale = Some((*n).min(14)),
                        Some(_) => {}
                        None => return,
                    }
                    rest.get(usize::from(*size) - 1..).unwrap_or_default()
                }
                _ => return,
            };
        }
    }

    /// A flag is set.
    #[inline]
    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Sequence numbers that it takes.
    pub(super) fn span(&self) -> u32 {
        self.payload + u32::from(self.has(flag::SYN)) + u32::from(self.has(flag::FIN))
    }
}

/// What a segment of ours says.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Said {
    pub(super) seq: Seq,
    pub(super) ack: Seq,
    pub(super) flags: u8,
    pub(super) window: u16,
    /// Maximum segment size, in a SYN.
    pub(super) mss: Option<u16>,
    /// Window scale, in a SYN.
    pub(super) scale: Option<u8>,
}

/// The header of a segment of ours, from Ethernet on, and TCP's bytes of it without the checksum.
fn header(net: &Net, key: &Key, s: &Said, payload: u32) -> Option<(Head, [u8; 28], usize, u32)> {
    let mut t = [0; 28];
    let mut n = 0;
    let mut put = |b: &[u8]| {
        if let Some(to) = t.get_mut(n..n + b.len()) {
            to.copy_from_slice(b);
            n += b.len();
        }
    };
    put(&key.far.port().to_be_bytes());
    put(&key.guest.port().to_be_bytes());
    put(&s.seq.0.to_be_bytes());
    put(&s.ack.0.to_be_bytes());
    let words = 5 + u8::from(s.mss.is_some()) + u8::from(s.scale.is_some());
    put(&[words << 4, s.flags]);
    put(&s.window.to_be_bytes());
    put(&[0, 0, 0, 0]);
    if let Some(mss) = s.mss {
        let [a, b] = mss.to_be_bytes();
        put(&[2, 4, a, b]);
    }
    if let Some(scale) = s.scale {
        put(&[1, 3, 3, scale]);
    }
    let len = u32::try_from(n).unwrap_or(0) + payload;
    Some((build::ip(net, key.far.ip(), key.guest.ip(), TCP, len)?, t, n, len))
}

/// A whole segment without payload.
pub(super) fn small(net: &Net, key: &Key, s: &Said) -> Option<Head> {
    let (mut head, t, n, len) = header(net, key, s, 0)?;
    let at = head.len();
    let t = t.get(..n)?;
    let mut sum = build::pseudo(key.far.ip(), key.guest.ip(), TCP, len);
    sum.bytes(t);
    head.push(t);
    head.set(at + 16, &sum.finish());
    Some(head)
}

/// The header of a segment with `payload` bytes whose checksum, and division into segments of `mss` bytes, is left to its
/// taker.
pub(super) fn large(net: &Net, key: &Key, s: &Said, payload: u32, mss: u32) -> Option<(Head, Vnet)> {
    let (mut head, t, n, len) = header(net, key, s, payload)?;
    let at = head.len();
    head.push(t.get(..n)?);
    head.set(at + 16, &build::pseudo(key.far.ip(), key.guest.ip(), TCP, len).partial());
    let short = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    let mut v = Vnet { flags: vnet::F_NEEDS_CSUM, csum_start: short(at), csum_offset: 16, ..Vnet::default() };
    if payload > mss {
        v.gso_type = if key.guest.is_ipv4() { vnet::GSO_TCPV4 } else { vnet::GSO_TCPV6 };
        v.gso_size = u16::try_from(mss).unwrap_or(u16::MAX);
        v.hdr_len = short(at + n);
    }
    Some((head, v))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_any_kind_are_read_to_their_end() {
        let mut h = vec![0x12, 0x34, 0, 80, 0, 0, 0, 9, 0, 0, 0, 7, 0xa0, flag::SYN, 0xfa, 0xf0, 0, 0, 0, 0];
        h.extend([2, 4, 5, 0xb4, 1, 3, 3, 20, 4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0]);
        let s = Segment::read(&h, 45).unwrap();
        assert_eq!((s.from, s.to, s.seq, s.ack, s.window), (0x1234, 80, Seq(9), Seq(7), 0xfaf0));
        assert_eq!((s.mss, s.scale, s.header, s.payload, s.span()), (Some(1460), Some(14), 40, 5, 6));
        assert_eq!(Segment::read(&h, 39), None, "shorter than its own header");
        assert_eq!(Segment::read(&h[..19], 45), None);
        for broken in
            [vec![2], vec![2, 0], vec![2, 1, 9], vec![2, 9, 1], vec![3, 4, 1, 2], vec![0, 2, 4, 1, 1]]
        {
            let mut short = h[..20].to_vec();
            short.extend(broken);
            let s = Segment::read(&short, 60).unwrap();
            assert_eq!((s.mss, s.scale), (None, None));
        }
    }
}
