//! What a sender left undone without saying so. libkrun, and VMMs that use it, let their guest leave checksums and
//! segmentation to the device, and then write the bare frame into a stream that has no place for a header: it has to be
//! recognised by itself.
//!
//! A checksum that is left undone holds the pseudo-header's sum (virtio 1.2 §5.1.6.2), so one that does is completed. If
//! it is right by chance as it stands (one in 65535), completing it gives the same two bytes. A TCP packet larger than
//! the MTU can only be a super-frame.
//!
//! Trust: none in the frame; only its head is read. Promise: what a header that is made here asks for can be done by
//! [`super::finish`], or is refused by [`super::feasible`].
#![forbid(unsafe_code)]

use netreeve_shared::vnet::{F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, Vnet};

use super::packet::Packet;
use super::{ihl, load, network_layer, store};
use crate::frame::Frame;

/// Gives a frame that came without a header the one that it should have had. `mtu` is that of the network behind.
pub fn recognise(f: &mut Frame, mtu: u16) {
    if let Some((field, sum, vnet)) = judge(f, mtu) {
        store(f.head_mut(), field, sum);
        f.vnet = vnet;
    }
}

/// Where the checksum is, what it holds while it is undone, and the header; none if there is nothing to do.
fn judge(f: &Frame, mtu: u16) -> Option<(usize, [u8; 2], Vnet)> {
    let (p, total) = layout(f)?;
    let head = f.head();
    let field = p.field();
    let is = <[u8; 2]>::try_from(head.get(field..field + 2)?).ok()?;
    // UDP without a checksum.
    if !p.tcp && is == [0, 0] {
        return None;
    }
    let l4_len = total.checked_sub(u32::try_from(p.l4 - p.l3).ok()?)?;
    let sum = p.pseudo(head, l4_len).partial();
    let n = |n: usize| u16::try_from(n).unwrap_or(0);
    let mut vnet = Vnet {
        flags: F_NEEDS_CSUM,
        hdr_len: n(p.behind),
        csum_start: n(p.l4),
        csum_offset: n(field - p.l4),
        ..Vnet::default()
    };
    if p.tcp && total > mtu.into() && u32::try_from(p.l3).ok()? + total == f.len {
        vnet.gso_type = if p.v6 { GSO_TCPV6 } else { GSO_TCPV4 };
        vnet.gso_size = mtu.checked_sub(n(p.behind - p.l3)).filter(|mss| *mss > 0)?;
        return Some((field, sum, vnet));
    }
    (number(is) == number(sum)).then_some((field, is, vnet))
}

/// Zero has two forms.
fn number(sum: [u8; 2]) -> u16 {
    u16::from_ne_bytes(sum) % 0xffff
}

/// The headers of a TCP or UDP packet that is no fragment, and the packet's bytes.
fn layout(f: &Frame) -> Option<(Packet, u32)> {
    let head = f.head();
    let (l3, ethertype) = network_layer(head)?;
    let (v6, l4, protocol, total) = match ethertype {
        0x0800 if load(head, l3 + 6) & 0x3fff == 0 => {
            (false, l3 + ihl(head, l3)?, *head.get(l3 + 9)?, u32::from(load(head, l3 + 2)))
        }
        0x86dd => (true, l3 + 40, *head.get(l3 + 6)?, u32::from(load(head, l3 + 4)) + 40),
        _ => return None,
    };
    let (tcp, behind) = match protocol {
        6 => (true, l4 + usize::from(*head.get(l4 + 12)? >> 4) * 4),
        17 => (false, l4 + 8),
        _ => return None,
    };
    let whole = u32::try_from(l3).ok()?.checked_add(total)? <= f.len;
    let sane = behind <= head.len() && (!tcp || behind >= l4 + 20);
    (whole && sane).then_some((Packet { v6, tcp, l3, l4, behind, ..Packet::default() }, total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Batch, HEAD};
    use crate::mem::Buf;
    use crate::offload::sum::Sum;
    use crate::offload::{At, feasible, finish};
    use crate::port::Offloads;

    /// A packet with its checksum as it should be, or undone.
    fn packet(v6: bool, tcp: bool, payload: usize, undone: bool) -> Vec<u8> {
        let mut f = vec![2; 12];
        let header = if tcp { 20 } else { 8 };
        let l4_len = u16::try_from(header + payload).unwrap();
        let protocol = if tcp { 6 } else { 17 };
        if v6 {
            f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            f.extend(l4_len.to_be_bytes());
            f.extend([protocol, 64]);
            f.extend([0xfd; 32]);
        } else {
            f.extend([8, 0, 0x45, 0]);
            f.extend((l4_len + 20).to_be_bytes());
            f.extend([0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        }
        let l4 = f.len();
        f.extend([0, 1, 0, 2]);
        if tcp {
            f.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
        } else {
            f.extend(l4_len.to_be_bytes());
            f.extend([0, 0]);
        }
        f.extend((0..payload).map(|i| u8::try_from(i % 251).unwrap()));
        let mut s = Sum::default();
        s.bytes(&f[if v6 { 22 } else { 26 }..l4]);
        s.be16(protocol.into());
        s.be16(l4_len);
        let pseudo = s.partial();
        s.bytes(&f[l4..]);
        let field = l4 + if tcp { 16 } else { 6 };
        f[field..field + 2].copy_from_slice(&if undone { pseudo } else { s.finish() });
        f
    }

    /// What goes on of a frame, towards a port that takes no work.
    fn through(frame: &[u8], mtu: u16) -> Vec<Vec<u8>> {
        let (mut b, mut out, mem) = (Batch::new(), Batch::new(), Buf::new(1 << 17).unwrap());
        let seg = mem.seg(0, u32::try_from(frame.len()).unwrap());
        seg.copy_in(frame);
        let f = b.push().unwrap();
        f.len = seg.len();
        f.head_from(&seg);
        recognise(f, mtu);
        assert!(feasible(f, Offloads::NONE));
        b.push_seg(seg.skip(u32::try_from(HEAD).unwrap()));
        finish(&b, At::default(), Offloads::NONE, &mut out);
        let whole = |f: &Frame| {
            let mut v = f.head().to_vec();
            for s in out.body(f) {
                let at = v.len();
                v.resize(at + s.len() as usize, 0);
                s.copy_out(&mut v[at..]);
            }
            v
        };
        out.frames().iter().map(whole).collect()
    }

    #[test]
    fn what_is_finished_stays_and_what_is_not_becomes_so() {
        for (v6, tcp) in [(false, true), (true, true), (false, false), (true, false)] {
            for payload in [0, 1, 100, 1400] {
                let done = packet(v6, tcp, payload, false);
                let both = [true, false].map(|undone| through(&packet(v6, tcp, payload, undone), 1500));
                assert_eq!(both, [vec![done.clone()], vec![done]], "{v6} {tcp} {payload}");
            }
        }
    }

    #[test]
    fn super_frames_become_segments_whether_their_checksum_is_undone_or_not() {
        for v6 in [false, true] {
            for undone in [false, true] {
                let frame = packet(v6, true, 60_000, undone);
                let got = through(&frame, 1500);
                let behind = if v6 { 74 } else { 54 };
                assert_eq!(got.len(), 60_000_usize.div_ceil(1514 - behind));
                assert!(got.iter().all(|s| s.len() <= 1514));
                let payload: Vec<u8> = got.iter().flat_map(|s| s[behind..].to_vec()).collect();
                assert_eq!(payload, frame[behind..]);
                for s in got {
                    let mut sum = Sum::default();
                    sum.bytes(&s[if v6 { 22 } else { 26 }..]);
                    sum.be16(6);
                    sum.be16(u16::try_from(s.len() - behind + 20).unwrap());
                    assert_eq!(sum.partial(), [0xff, 0xff]);
                }
            }
        }
    }

    #[test]
    fn other_frames_are_left_alone() {
        let mut fragment = packet(false, true, 100, true);
        fragment[20] = 0x20;
        let mut bare = packet(false, false, 100, true);
        bare[40..42].fill(0);
        let cut = packet(false, true, 100, true)[..60].to_vec();
        let wrong = {
            let mut p = packet(false, true, 100, false);
            p[50] ^= 0x5a;
            p
        };
        for frame in [fragment, bare, cut, wrong, vec![0xff; 60], vec![1; 14], vec![1]] {
            assert_eq!(through(&frame, 1500), [frame]);
        }
    }
}
