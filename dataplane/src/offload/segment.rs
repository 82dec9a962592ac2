//! Software segmentation: TCP over IPv4 and IPv6 (TSO), UDP over both (USO).
//!
//! A segment's head is the super-frame's headers with lengths, identification, sequence number, flags and checksums
//! made its own (as the kernel's `tcp_gso_segment`, `__udp_gso_segment` define the result); its body is a slice of the
//! super-frame's. Source for the header fields: RFC 791, 8200, 9293, 768; for the meaning of the fields of the
//! virtio-net header: virtio 1.2 §5.1.6.2.
#![forbid(unsafe_code)]

use netreeve_shared::vnet::{self, Vnet};

use super::sum::Sum;
use super::{At, be, ihl, load, network_layer, store};
use crate::frame::{Batch, Frame, HEAD};

/// Most segments of one frame: 64 KiB in the smallest segments that TCP stacks send (48 bytes, Linux's
/// `tcp_min_snd_mss`). More is a guest that wants to keep us busy.
const MOST: u32 = 1400;

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// Transport protocol of a super-frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum L4 {
    Tcp,
    Udp,
}

/// A super-frame's layout, checked: every header lies in the head.
#[derive(Clone, Copy, Debug)]
pub struct Segments {
    v6: bool,
    l3: usize,
    l4: usize,
    headers: usize,
    kind: L4,
    mss: u32,
    payload: u32,
}

impl Segments {
    /// Reads the layout of a super-frame; none if its headers do not make sense or are not within the head.
    #[must_use]
    pub fn of(f: &Frame) -> Option<Self> {
        let head = f.head();
        let (l3, ethertype) = network_layer(head)?;
        let kind = match f.vnet.gso() {
            vnet::GSO_TCPV4 | vnet::GSO_TCPV6 => L4::Tcp,
            vnet::GSO_UDP_L4 => L4::Udp,
            _ => return None,
        };
        let v6 = match ethertype {
            0x0800 => false,
            0x86dd => true,
            _ => return None,
        };
        let l4 = usize::from(f.vnet.csum_start);
        let least = if v6 { l3 + 40 } else { l3 + ihl(head, l3)? };
        if l4 < least || (!v6 && l4 != least) {
            return None;
        }
        let headers = l4
            + match kind {
                L4::Tcp => usize::from(head.get(l4 + 12)? >> 4) * 4,
                L4::Udp => 8,
            };
        if headers > head.len() || (kind == L4::Tcp && headers < l4 + 20) || f.vnet.gso_size == 0 {
            return None;
        }
        let payload = f.len.checked_sub(u32::try_from(headers).ok()?)?;
        let s = Self { v6, l3, l4, headers, kind, mss: u32::from(f.vnet.gso_size), payload };
        (s.count() <= MOST && s.fits_ip()).then_some(s)
    }

    /// Segments that the super-frame becomes. One without payload stays one.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.payload.div_ceil(self.mss).max(1)
    }

    /// One segment's IP packet must fit the 16-bit length.
    fn fits_ip(&self) -> bool {
        let ip = (self.headers - self.l3) as u64 + u64::from(self.mss.min(self.payload));
        ip <= 65535
    }

    /// Puts segments from `at.segment` on into `out` until it is full; says which comes next.
    pub fn emit(&self, from: &Batch, f: &Frame, at: At, out: &mut Batch) -> u32 {
        let mut n = at.segment;
        while n < self.count() {
            let off = n * self.mss;
            let len = self.mss.min(self.payload - off);
            let Some(o) = out.push() else { break };
            o.cookie = At { frame: at.frame, segment: n }.cookie();
            o.vnet = Vnet::default();
            o.len = u32::try_from(self.headers).unwrap_or(0) + len;
            let in_head = self.head(f, off, len, o);
            self.body(from, f, off + in_head, len - in_head, out);
            if let Some(o) = out.last_index() {
                self.dress(o, n, len, out);
            }
            n += 1;
        }
        n
    }

    /// Headers, and payload that lies in the super-frame's own head; says how much payload that was.
    fn head(&self, f: &Frame, off: u32, len: u32, o: &mut Frame) -> u32 {
        let src = f.head();
        let mut head = [0; HEAD];
        let from = self.headers + usize::try_from(off).unwrap_or(HEAD);
        let pay = src.get(from..).unwrap_or_default();
        let pay = pay.get(..usize::try_from(len).unwrap_or(0)).unwrap_or(pay);
        if let (Some(a), Some(b)) = (head.get_mut(..self.headers), src.get(..self.headers)) {
            a.copy_from_slice(b);
        }
        if let Some(a) = head.get_mut(self.headers..self.headers + pay.len()) {
            a.copy_from_slice(pay);
        }
        o.set_head(head.get(..self.headers + pay.len()).unwrap_or_default());
        u32::try_from(pay.len()).unwrap_or(0)
    }

    /// The slice of the super-frame's body that holds `len` bytes of payload from `off` on.
    fn body(&self, from: &Batch, f: &Frame, off: u32, len: u32, out: &mut Batch) {
        let in_head = u32::try_from(f.head().len() - self.headers).unwrap_or(0);
        let mut skip = off.saturating_sub(in_head);
        let mut left = len;
        for seg in from.body(f) {
            if left == 0 {
                break;
            }
            let cut = skip.min(seg.len());
            skip -= cut;
            let part = seg.skip(cut).take(left);
            left -= part.len();
            out.push_seg(part);
        }
    }

    /// Makes the headers those of segment `n` with `len` bytes of payload.
    fn dress(&self, index: usize, n: u32, len: u32, out: &mut Batch) {
        let l4_len = u32::try_from(self.headers - self.l4).unwrap_or(0) + len;
        let Some(o) = out.frames_mut().get_mut(index) else { return };
        let head = o.head_mut();
        self.dress_ip(head, n, l4_len);
        match self.kind {
            L4::Tcp => self.dress_tcp(head, n),
            L4::Udp => store(head, self.l4 + 4, be(l4_len)),
        }
        let field = self.l4 + if self.kind == L4::Tcp { 16 } else { 6 };
        store(head, field, self.pseudo(head, l4_len));
        let mut s = Sum::default();
        s.bytes(head.get(self.l4..).unwrap_or_default());
        if let Some(f) = out.frames().get(index) {
            for seg in out.body(f) {
                s.seg(seg);
            }
        }
        if let Some(o) = out.frames_mut().get_mut(index) {
            store(o.head_mut(), field, s.finish());
        }
    }

    fn dress_ip(&self, head: &mut [u8], n: u32, l4_len: u32) {
        if self.v6 {
            let ext = u32::try_from(self.l4 - self.l3 - 40).unwrap_or(0);
            store(head, self.l3 + 4, be(ext + l4_len));
            return;
        }
        let header = self.l4 - self.l3;
        store(head, self.l3 + 2, be(u32::try_from(header).unwrap_or(0) + l4_len));
        let id = load(head, self.l3 + 4).wrapping_add(u16::try_from(n & 0xffff).unwrap_or(0));
        store(head, self.l3 + 4, id.to_be_bytes());
        store(head, self.l3 + 10, [0, 0]);
        let mut s = Sum::default();
        s.bytes(head.get(self.l3..self.l4).unwrap_or_default());
        store(head, self.l3 + 10, s.finish());
    }

    fn dress_tcp(&self, head: &mut [u8], n: u32) {
        if let Some(seq) = head.get_mut(self.l4 + 4..self.l4 + 8) {
            let was = <[u8; 4]>::try_from(&*seq).map_or(0, u32::from_be_bytes);
            seq.copy_from_slice(&was.wrapping_add(n * self.mss).to_be_bytes());
        }
        if let Some(flags) = head.get_mut(self.l4 + 13) {
            if n + 1 < self.count() {
                *flags &= !(TCP_FIN | TCP_PSH);
            }
            if n > 0 {
                *flags &= !TCP_CWR;
            }
        }
    }

    /// The pseudo-header's sum (RFC 9293 §3.1, RFC 8200 §8.1).
    fn pseudo(&self, head: &[u8], l4_len: u32) -> [u8; 2] {
        let addresses = if self.v6 { self.l3 + 8..self.l3 + 40 } else { self.l3 + 12..self.l3 + 20 };
        let mut s = Sum::default();
        s.bytes(head.get(addresses).unwrap_or_default());
        s.be16(if self.kind == L4::Tcp { 6 } else { 17 });
        s.be16(u16::from_be_bytes(be(l4_len)));
        s.partial()
    }
}
