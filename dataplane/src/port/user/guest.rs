//! A guest for the tests of rooms: the frames that it sends, and what it reads in those that it is given.

use std::net::{IpAddr, SocketAddr};

use netreeve_shared::mac::Mac;
use netreeve_shared::vnet::{self, Vnet};

use super::packet::{Ip, Packet};
use super::plan::MAC;
use super::room::{Cx, Room};
use super::{Bay, Plan, build, context};
use crate::frame::{Batch, HEAD};
use crate::mem::Buf;
use crate::offload::sum::Sum;
use crate::stats::Reason;

pub(super) const GUEST: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

pub(super) fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// What the rooms share, in a network as QEMU's; both of the guest's addresses are known.
pub(super) fn link(change: impl FnOnce(&mut Plan)) -> Cx {
    let mut plan = Plan::qemu();
    change(&mut plan);
    let mut cx = context(&plan).unwrap();
    for guest in ["10.0.2.15", "fec0::15"] {
        cx.net.learn(guest.parse().unwrap(), GUEST);
    }
    cx
}

/// An IP packet in a frame to us. `part`: number, offset and whether more follow.
pub(super) fn packet(
    (src, dst): (IpAddr, IpAddr),
    (proto, ttl): (u8, u8),
    part: Option<(u32, u32, bool)>,
    payload: &[u8],
) -> Vec<u8> {
    let mut f = MAC.0.to_vec();
    f.extend(GUEST.0);
    let len = payload.len() as u16;
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            f.extend([8, 0, 0x45, 0]);
            f.extend((len + 20).to_be_bytes());
            let (id, field) = part
                .map_or((0, 0x4000), |(id, at, more)| (id as u16, (at / 8) as u16 | u16::from(more) << 13));
            f.extend(id.to_be_bytes());
            f.extend(field.to_be_bytes());
            f.extend([ttl, proto, 0, 0]);
            f.extend(src.octets());
            f.extend(dst.octets());
            let mut sum = Sum::default();
            sum.bytes(&f[14..34]);
            f[24..26].copy_from_slice(&sum.finish());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            let extra = if part.is_some() { 8 } else { 0 };
            f.extend((len + extra).to_be_bytes());
            f.extend([if part.is_some() { 44 } else { proto }, ttl]);
            f.extend(src.octets());
            f.extend(dst.octets());
            if let Some((id, at, more)) = part {
                f.extend([proto, 0]);
                f.extend((at as u16 | u16::from(more)).to_be_bytes());
                f.extend(id.to_be_bytes());
            }
        }
        _ => panic!("two families"),
    }
    f.extend(payload);
    f
}

/// A UDP datagram in a frame to us.
pub(super) fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    packet((from.ip(), to.ip()), (17, 64), None, &udp_bytes(from, to, payload))
}

/// A UDP datagram.
pub(super) fn udp_bytes(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut d = from.port().to_be_bytes().to_vec();
    d.extend(to.port().to_be_bytes());
    d.extend((payload.len() as u16 + 8).to_be_bytes());
    d.extend([0, 0]);
    d.extend(payload);
    d
}

/// An echo request in a frame to us.
pub(super) fn ping((src, dst): (&str, &str), ttl: u8, id: u16, payload: &[u8]) -> Vec<u8> {
    let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
    packet((src, dst), (if src.is_ipv4() { 1 } else { 58 }, ttl), None, &ping_bytes(src, id, payload))
}

/// An echo request with sequence number 7.
pub(super) fn ping_bytes(src: IpAddr, id: u16, payload: &[u8]) -> Vec<u8> {
    let mut d = vec![if src.is_ipv4() { 8 } else { 128 }, 0, 0, 0];
    d.extend(id.to_be_bytes());
    d.extend([0, 7]);
    d.extend(payload);
    d
}

/// Frames as a ring gives them: their heads copied, their bodies in shared memory.
pub(super) struct Sent {
    pub(super) batch: Batch,
    _mem: Buf,
}

impl Sent {
    pub(super) fn new(frames: &[(Vnet, Vec<u8>)]) -> Self {
        let total: usize = frames.iter().map(|(_, f)| f.len()).sum();
        let (mem, mut batch, mut at) = (Buf::new(total as u32 + 1).unwrap(), Batch::new(), 0);
        for (vnet, bytes) in frames {
            let seg = mem.seg(at, bytes.len() as u32);
            seg.copy_in(bytes);
            at += bytes.len() as u32;
            let f = batch.push().unwrap();
            (f.vnet, f.len) = (*vnet, bytes.len() as u32);
            f.head_from(&seg);
            // In two pieces, as guests do.
            let body = seg.skip(HEAD as u32);
            batch.push_seg(body.take(333));
            batch.push_seg(body.skip(333));
        }
        Self { batch, _mem: mem }
    }
}

/// A room takes frames, as in one turn.
pub(super) fn send(room: &mut impl Room, cx: &mut Cx, frames: &[Vec<u8>]) {
    let plain: Vec<_> = frames.iter().map(|f| (Vnet::default(), f.clone())).collect();
    send_vnet(room, cx, &plain);
}

pub(super) fn send_vnet(room: &mut impl Room, cx: &mut Cx, frames: &[(Vnet, Vec<u8>)]) {
    let sent = Sent::new(frames);
    for f in sent.batch.frames() {
        match Packet::of(f, &sent.batch) {
            Ok(p) => room.take(&p, cx),
            Err(why) => cx.stats.drop(why),
        }
    }
    room.flush(cx);
}

/// What a room and its network give: frames with what is left to be done on them. Waits until there is something, 2 s at
/// most, or (`wait` false) does not.
pub(super) fn given(room: &mut impl Room, cx: &mut Cx, wait: bool) -> Vec<(Vnet, Vec<u8>)> {
    let (mem, mut bay, mut b) = (Buf::new(1 << 20).unwrap(), Bay::default(), Batch::new());
    let mut events = Vec::new();
    for _ in 0..1000 {
        cx.poll.events(&mut events).unwrap();
        events.drain(..).for_each(|(at, ready)| room.ready(at, ready, cx));
        b.clear();
        b.landing.open_pool(mem.seg(0, mem.len()));
        cx.out.give(&mut bay, &mut b, &cx.net, &mut cx.stats);
        room.give(&mut bay, &mut b, cx);
        if !b.is_empty() || !wait {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let vnets = b.frames().iter().map(|f| f.vnet).collect::<Vec<_>>();
    vnets.into_iter().zip(super::tests::frames(&b)).collect()
}

/// The IP header and the transport's bytes of a frame to the guest, which is whole and right: its address, its checksums
/// (as far as they are not left to be done).
pub(super) fn read((vnet, frame): &(Vnet, Vec<u8>)) -> (Ip, Vec<u8>) {
    assert_eq!((&frame[..6], &frame[6..12]), (&GUEST.0[..], &MAC.0[..]));
    let p = Packet::parse(frame, &[], frame.len() as u32, *vnet).unwrap();
    let ip = p.ip.unwrap();
    if ip.src.is_ipv4() {
        let mut s = Sum::default();
        s.bytes(&frame[14..34]);
        assert_eq!(s.partial(), [0xff, 0xff]);
    }
    let mut bytes = vec![0; ip.len as usize];
    p.copy(0, &mut bytes);
    if ip.piece.is_none() {
        let mut s =
            if ip.proto == 1 { Sum::default() } else { build::pseudo(ip.src, ip.dst, ip.proto, ip.len) };
        if vnet.flags & vnet::F_NEEDS_CSUM != 0 {
            assert_eq!(usize::from(vnet.csum_start), ip.at as usize);
            assert_eq!(s.partial(), bytes[vnet.csum_offset.into()..][..2]);
        } else {
            s.bytes(&bytes);
            assert_eq!(s.partial(), [0xff, 0xff], "checksum");
        }
    }
    (ip, bytes)
}

pub(super) fn drops(cx: &Cx, why: Reason) -> u64 {
    cx.stats.drops[why as usize]
}
