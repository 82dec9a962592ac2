//! What a guest's frame says: Ethernet, IPv4 or IPv6 with its extension headers, and where the transport's bytes begin.
//!
//! Trust: none in the guest. Only the head is judged, which is a copy; what lies in the body is copied out before it is
//! judged ([`Packet::copy`]). Lengths are IP's, checked against the frame: Ethernet's padding is no payload. Checksums are
//! not verified: on this link nothing is lost or changed, and offloads leave them undone. Promise: every range that is
//! given out lies inside the frame.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netreeve_shared::mac::Mac;
use netreeve_shared::vnet::Vnet;

use crate::frame::{Batch, Frame};
use crate::mem::Seg;
use crate::stats::Reason;
use crate::sys::io::Gather;

/// Bytes of an Ethernet header.
pub const ETHER: u32 = 14;
/// `EtherType` of IPv4.
pub const IPV4: u16 = 0x0800;
/// `EtherType` of ARP.
pub const ARP: u16 = 0x0806;
/// `EtherType` of IPv6.
pub const IPV6: u16 = 0x86dd;

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// IPv6 extension headers (RFC 8200 §4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const OPTIONS: u8 = 60;
/// Most extension headers of a packet that is looked at.
const EXTENSIONS: usize = 4;

/// What is said of a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which packet it is of.
    pub id: u32,
    /// Where its bytes belong in the transport's, in bytes.
    pub offset: u32,
    /// More follow it.
    pub more: bool,
}

/// The network's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ip {
    /// Who sends.
    pub src: IpAddr,
    /// To whom.
    pub dst: IpAddr,
    /// The transport's number.
    pub proto: u8,
    /// Hops that are left.
    pub ttl: u8,
    /// It may not be fragmented (IPv6: never, but by who sent it).
    pub whole: bool,
    /// Traffic class, or type of service.
    pub class: u8,
    /// Where the transport's header begins, in bytes from the frame's start.
    pub at: u32,
    /// Bytes of the transport's header and what it carries.
    pub len: u32,
    /// It is a fragment.
    pub piece: Option<Piece>,
}

/// A frame of a guest's and what it says.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The frame's first bytes: all headers, unless somebody means ill.
    pub head: &'a [u8],
    /// What follows them.
    pub body: &'a [Seg],
    /// What is left to be done on it.
    pub vnet: Vnet,
    /// Whose frame it is.
    pub mac: Mac,
    /// To whom.
    pub to: Mac,
    /// The network's header; none: ARP.
    pub ip: Option<Ip>,
}

fn be16(b: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*b.get(at..)?.first_chunk()?))
}

fn small(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl<'a> Packet<'a> {
    /// What a frame of a batch says.
    ///
    /// # Errors
    /// Why it goes no further: its form is wrong, or it is of a kind that nobody here knows.
    pub fn of(f: &'a Frame, b: &'a Batch) -> Result<Self, Reason> {
        Self::parse(f.head(), b.body(f), f.len, f.vnet)
    }

    /// What a frame of `len` bytes says.
    ///
    /// # Errors
    /// As [`Packet::of`].
    pub fn parse(head: &'a [u8], body: &'a [Seg], len: u32, vnet: Vnet) -> Result<Self, Reason> {
        let to = Mac(*head.first_chunk().ok_or(Reason::Runt)?);
        let mac = Mac(*head.get(6..).and_then(|h| h.first_chunk()).ok_or(Reason::Runt)?);
        let ip = match be16(head, 12).ok_or(Reason::Runt)? {
            IPV4 => Some(v4(head, len).ok_or(Reason::Malformed)?),
            IPV6 => Some(v6(head, len).ok_or(Reason::Malformed)?),
            ARP => None,
            _ => return Err(Reason::Unknown),
        };
        Ok(Self { head, body, vnet, mac, to, ip })
    }

    /// The IP address that it says to be from; of ARP, the sender's (RFC 826).
    #[must_use]
    pub fn source(&self) -> Option<IpAddr> {
        let arp = || Some(Ipv4Addr::from(*self.head.get(28..)?.first_chunk::<4>()?).into());
        self.ip.map_or_else(arp, |ip| Some(ip.src))
    }

    /// The transport's bytes as far as the head has them. (All of a header without options, unless somebody means ill.)
    #[must_use]
    pub fn transport(&self) -> &'a [u8] {
        let Some(ip) = &self.ip else { return &[] };
        let rest = usize::try_from(ip.at).ok().and_then(|at| self.head.get(at..)).unwrap_or_default();
        usize::try_from(ip.len).ok().and_then(|n| rest.get(..n)).unwrap_or(rest)
    }

    /// Copies the transport's bytes from `at` on; says how many there were.
    pub fn copy(&self, at: u32, to: &mut [u8]) -> usize {
        let Some(ip) = &self.ip else { return 0 };
        let mut done = 0;
        self.parts(ip, at, |part| {
            let n = match part {
                Part::Head(b) => {
                    let room = to.get_mut(done..).unwrap_or_default();
                    let n = b.len().min(room.len());
                    if let (Some(to), Some(from)) = (room.get_mut(..n), b.get(..n)) {
                        to.copy_from_slice(from);
                    }
                    n
                }
                Part::Body(s) => s.copy_out(to.get_mut(done..).unwrap_or_default()),
            };
            done += n;
            true
        });
        done
    }

    /// Adds the transport's bytes from `at` on to what is to be sent. False: there are more parts than fit.
    pub fn gather<const N: usize>(&self, at: u32, g: &mut Gather<'a, N>) -> bool {
        let Some(ip) = &self.ip else { return false };
        self.parts(ip, at, |part| match part {
            Part::Head(b) => g.private(b),
            Part::Body(s) => g.shared(&[s]),
        })
    }

    /// Shows the transport's bytes from `at` on, part by part, until `show` says no. False: it did.
    pub fn parts(&self, ip: &Ip, at: u32, mut show: impl FnMut(Part<'a>) -> bool) -> bool {
        let mut left = ip.len.saturating_sub(at);
        let from = ip.at.saturating_add(at);
        let head = usize::try_from(from).ok().and_then(|from| self.head.get(from..)).unwrap_or_default();
        let head = usize::try_from(left).ok().and_then(|n| head.get(..n)).unwrap_or(head);
        left = left.saturating_sub(small(head.len()));
        if !head.is_empty() && !show(Part::Head(head)) {
            return false;
        }
        let mut skip = from.saturating_sub(small(self.head.len()));
        for seg in self.body {
            let cut = skip.min(seg.len());
            skip -= cut;
            let part = seg.skip(cut).take(left);
            left -= part.len();
            if !part.is_empty() && !show(Part::Body(part)) {
                return false;
            }
        }
        true
    }
}

/// A run of a packet's bytes.
#[derive(Clone, Copy, Debug)]
pub enum Part<'a> {
    /// In the head: may be judged.
    Head(&'a [u8]),
    /// In the body: only passed on, or copied.
    Body(Seg),
}

/// IPv4 (RFC 791).
fn v4(head: &[u8], len: u32) -> Option<Ip> {
    let h = head.get(14..)?;
    let first = *h.first()?;
    let size = u32::from(first & 15) * 4;
    let total = u32::from(be16(h, 2)?);
    if first >> 4 != 4 || size < 20 || total < size || total > len.checked_sub(ETHER)? {
        return None;
    }
    let flags = be16(h, 6)?;
    let offset = u32::from(flags & 0x1fff) * 8;
    let more = flags & 0x2000 != 0;
    let bytes = total - size;
    let piece = (more || offset != 0).then_some(Piece { id: u32::from(be16(h, 4)?), offset, more });
    if piece.is_some() && (offset + bytes > 65535 || (more && bytes % 8 != 0)) {
        return None;
    }
    let address = |at: usize| Some(Ipv4Addr::from(*h.get(at..)?.first_chunk::<4>()?));
    Some(Ip {
        src: address(12)?.into(),
        dst: address(16)?.into(),
        proto: *h.get(9)?,
        ttl: *h.get(8)?,
        whole: flags & 0x4000 != 0,
        class: *h.get(1)?,
        at: ETHER + size,
        len: bytes,
        piece,
    })
}

/// IPv6 (RFC 8200), as far as the head goes.
fn v6(head: &[u8], len: u32) -> Option<Ip> {
    let h = head.get(14..)?;
    let total = u32::from(be16(h, 4)?);
    if *h.first()? >> 4 != 6 || total > len.checked_sub(ETHER + 40)? {
        return None;
    }
    let address = |at: usize| Some(Ipv6Addr::from(*h.get(at..)?.first_chunk::<16>()?));
    let (src, dst) = (address(8)?, address(24)?);
    let (mut proto, mut at, mut piece) = (*h.get(6)?, 40_u32, None);
    for _ in 0..EXTENSIONS {
        let e = h.get(usize::try_from(at).ok()?..)?;
        match proto {
            HOP_BY_HOP | ROUTING | OPTIONS => {
                proto = *e.first()?;
                at += (u32::from(*e.get(1)?) + 1) * 8;
            }
            FRAGMENT => {
                let field = be16(e, 2)?;
                let id = u32::from_be_bytes(*e.get(4..)?.first_chunk()?);
                proto = *e.first()?;
                at += 8;
                piece = Some(Piece { id, offset: u32::from(field & !7), more: field & 1 != 0 });
                // What follows belongs to the whole, and is looked at there.
                break;
            }
            _ => break,
        }
    }
    let bytes = (total + 40).checked_sub(at)?;
    if piece.is_some_and(|p| p.offset + bytes > 65535 || (p.more && bytes % 8 != 0)) {
        return None;
    }
    // A fragment of a whole is the whole (RFC 6946).
    let piece = piece.filter(|p| p.more || p.offset != 0);
    let class = u8::try_from((be16(h, 0)? >> 4) & 0xff).ok()?;
    let (src, dst, ttl) = (src.into(), dst.into(), *h.get(7)?);
    Some(Ip { src, dst, proto, ttl, whole: true, class, at: ETHER + at, len: bytes, piece })
}

impl Packet<'_> {
    /// Copies the packet from its network's header on, as errors quote it; says how many bytes there were.
    pub fn copy_packet(&self, to: &mut [u8]) -> usize {
        let Some(ip) = &self.ip else { return 0 };
        let header = self.head.get(14..usize::try_from(ip.at).unwrap_or(14)).unwrap_or_default();
        let n = header.len().min(to.len());
        if let (Some(to), Some(from)) = (to.get_mut(..n), header.get(..n)) {
            to.copy_from_slice(from);
        }
        n + self.copy(0, to.get_mut(n..).unwrap_or_default())
    }
}
