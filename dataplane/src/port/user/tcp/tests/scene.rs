//! The room between a model of the host and whoever plays the guest: frames in, frames out, time at will.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use netreeve_shared::mac::Mac;
use netreeve_shared::vnet::Vnet;

use super::model::{End, FAILS, MADE, Model, PEEKS};
use crate::frame::{Batch, HEAD};
use crate::mem::{Buf, Pool, Seg};
use crate::offload::sum::Sum;
use crate::port::user::bay::Bay;
use crate::port::user::packet::{Packet, TCP};
use crate::port::user::plan::{Forward, Limits, MAC, Plan, Way};
use crate::port::user::poll::{Ready, Token};
use crate::port::user::room::{Cx, Room};
use crate::port::user::tcp::Tcp;
use crate::port::user::tcp::segment::{Key, Segment, flag};
use crate::port::user::tcp::seq::Seq;
use crate::port::{Offloads, user};

pub(super) const GUEST: Mac = Mac([2, 0, 0, 0, 0, 1]);

pub(super) fn plan() -> Plan {
    let limits = Limits { tcp: 64, held: 8 << 20, held_each: 256 << 10, ..Limits::default() };
    Plan { limits, ..Plan::qemu() }
}

/// A frame that came to the guest.
#[derive(Clone, Debug)]
pub(super) struct Came {
    pub(super) seg: Segment,
    pub(super) key: Key,
    pub(super) bytes: Vec<u8>,
    pub(super) vnet: Vnet,
    /// Not TCP: the whole frame.
    pub(super) other: Option<Vec<u8>>,
}

pub(super) struct Scene {
    pub(super) tcp: Tcp<Model>,
    pub(super) cx: Cx,
    bay: Bay,
    batch: Batch,
    pool: Pool,
    memory: Buf,
}

pub(super) fn key4(port: u16) -> Key {
    Key {
        guest: SocketAddr::new(Ipv4Addr::new(10, 0, 2, 15).into(), port),
        far: "192.0.2.7:80".parse().unwrap(),
    }
}

pub(super) fn key6(port: u16) -> Key {
    Key {
        guest: SocketAddr::new("fec0::15".parse().unwrap(), port),
        far: "[2001:db8::7]:80".parse().unwrap(),
    }
}

impl Scene {
    pub(super) fn new(plan: &Plan) -> Self {
        Self::with_doors(plan, Vec::new())
    }

    /// With a door for each of the plan's guest forwards.
    pub(super) fn with_doors(plan: &Plan, doors: Vec<OwnedFd>) -> Self {
        MADE.with_borrow_mut(Vec::clear);
        FAILS.set(None);
        let mut cx = user::context(plan).unwrap();
        cx.gives = Offloads::ALL;
        for k in [key4(1), key6(1)] {
            cx.net.learn(k.guest.ip(), GUEST);
        }
        let guests = plan.guest_forwards.iter().copied().zip(doors.into_iter().map(Some)).collect();
        let tcp = Tcp::new(plan, Vec::new(), guests, &mut cx).unwrap();
        let pool = Pool::new(Pool::BYTES).unwrap();
        let memory = Buf::new(1 << 20).unwrap();
        Self { tcp, cx, bay: Bay::default(), batch: Batch::new(), pool, memory }
    }

    pub(super) fn keeping(plan: &Plan, peeks: bool) -> Self {
        PEEKS.set(peeks);
        Self::new(plan)
    }

    /// The socket that was made as the `i`th.
    pub(super) fn end(i: usize) -> Rc<RefCell<End>> {
        MADE.with_borrow(|m| Rc::clone(&m[i]))
    }

    pub(super) fn ends() -> usize {
        MADE.with_borrow(Vec::len)
    }

    /// Gives segments of the guest's to the room as one turn. Each lies in memory that is used again afterwards.
    pub(super) fn send(&mut self, list: &[(Key, Segment, &[u8])]) {
        self.tcp.pass_ends(&mut self.cx);
        let mut at = 0;
        for (key, s, payload) in list {
            let frame = frame(key, s, payload);
            let body = frame.get(HEAD..).unwrap_or_default();
            let seg = self.memory.seg(at, body.len() as u32);
            assert_eq!(seg.copy_in(body), body.len(), "the turn's memory");
            at += body.len() as u32;
            // Cut anywhere, as a guest's chains are.
            let cut = seg.len() / 3;
            let segs = [seg.take(cut), seg.skip(cut)];
            let segs: Vec<Seg> = segs.into_iter().filter(|s| !s.is_empty()).collect();
            let head = &frame[..frame.len().min(HEAD)];
            let p = Packet::parse(head, &segs, frame.len() as u32, Vnet::default()).unwrap();
            self.tcp.take(&p, &mut self.cx);
        }
        self.tcp.flush(&mut self.cx);
        self.memory.seg(0, at).copy_in(&vec![0xee; at as usize]);
    }

    /// All that the room has for the guest, with room for `room` bytes at a time.
    pub(super) fn collect(&mut self) -> Vec<Came> {
        let mut all = Vec::new();
        for _ in 0..10_000 {
            let before = all.len();
            self.collect_once(&mut all);
            if all.len() == before && self.cx.out.is_empty() {
                if self.tcp.owes_by().is_none() {
                    return all;
                }
                // What waits for company has waited long enough.
                self.tcp.say_late(true, &mut self.cx);
            }
        }
        panic!("there is no end of frames");
    }

    /// What it gives in one turn, as the port does it.
    pub(super) fn collect_once(&mut self, all: &mut Vec<Came>) {
        self.batch.clear();
        self.pool.lend(&mut self.batch.landing);
        let cx = &mut self.cx;
        cx.out.give(&mut self.bay, &mut self.batch, &cx.net, &mut cx.stats);
        if cx.out.is_empty() {
            self.tcp.give(&mut self.bay, &mut self.batch, cx);
        }
        self.tcp.say_late(!self.batch.is_empty(), cx);
        cx.out.give(&mut self.bay, &mut self.batch, &cx.net, &mut cx.stats);
        if self.batch.is_empty() {
            self.tcp.pass_ends(cx);
        }
        self.came(all);
    }

    /// Small frames that wait for the guest, and nothing of any flow's: as if there were always more of the former.
    pub(super) fn small(&mut self) -> Vec<Came> {
        self.batch.clear();
        self.pool.lend(&mut self.batch.landing);
        let (cx, mut all) = (&mut self.cx, Vec::new());
        cx.out.give(&mut self.bay, &mut self.batch, &cx.net, &mut cx.stats);
        self.came(&mut all);
        all
    }

    fn came(&self, all: &mut Vec<Came>) {
        for f in self.batch.frames() {
            let mut bytes = f.head().to_vec();
            for s in self.batch.body(f) {
                let mut b = vec![0; s.len() as usize];
                s.copy_out(&mut b);
                bytes.extend(b);
            }
            assert_eq!(bytes.len(), f.len as usize);
            all.push(came(&bytes, f.vnet));
        }
    }

    pub(super) fn ready(&mut self, token: Token, read: bool, write: bool) {
        let far = |s: &Model| s.0.borrow().finished || s.0.borrow().reset;
        let read_hup = self.tcp.table.get(token).is_some_and(|f| far(&f.sock));
        self.tcp.ready(token, Ready { read, write, read_hup, ..Ready::default() }, &mut self.cx);
    }

    /// Time passes.
    pub(super) fn pass(&mut self, by: Duration) {
        let until = self.cx.now + by;
        while self.cx.now < until {
            self.cx.now = (self.cx.now + Duration::from_millis(10)).min(until);
            while let Some(t) = self.cx.timers.next(self.cx.now) {
                self.tcp.tick(t, &mut self.cx);
            }
        }
    }

    pub(super) fn token(&self, key: &Key) -> Option<Token> {
        self.tcp.table.find(key)
    }

    /// The same, whatever there was to be said before.
    pub(super) fn collect_and_open(&mut self, key: Key) -> Talk {
        self.collect();
        self.open(key)
    }

    /// Somebody comes to a forward from this port, and the guest answers.
    pub(super) fn visit(&mut self, port: u16) -> Talk {
        let key = Key { far: SocketAddr::new(Ipv4Addr::new(192, 0, 2, 9).into(), port), ..key4(80) };
        let by = Forward { id: 7, way: Way::Tcp, guest: key.guest, range: None };
        self.tcp.come(Model::new(None), &by, key.far, &mut self.cx);
        let asked = self.collect();
        assert_eq!((asked.len(), asked[0].seg.flags), (1, flag::SYN));
        let mut t = Talk {
            key,
            nxt: Seq(77),
            ack: asked[0].seg.seq.plus(1),
            window: 8192,
            told: 0,
            end: Scene::ends() - 1,
        };
        let mut answer = t.say(flag::SYN | flag::ACK, 0);
        (answer.mss, answer.scale) = (Some(1460), Some(7));
        self.send(&[(key, answer, &[])]);
        let told = self.collect();
        assert_eq!(told.len(), 1);
        t.told = u32::from(told[0].seg.window) << 7;
        t
    }

    /// An open connection, its far end and its token.
    pub(super) fn meet(&mut self, key: Key) -> (Talk, Rc<RefCell<End>>, Token) {
        let talk = self.open(key);
        let (end, token) = (Self::end(talk.end), self.token(&key).unwrap());
        (talk, end, token)
    }

    /// Opens a connection from the guest, window 1 MiB.
    pub(super) fn open(&mut self, key: Key) -> Talk {
        let syn = Segment {
            seq: Seq(u32::MAX - 5000),
            flags: flag::SYN,
            window: 65535,
            mss: Some(1460),
            scale: Some(7),
            ..Segment::default()
        };
        self.send(&[(key, syn, &[])]);
        assert!(self.collect().is_empty(), "answered before it is decided");
        let token = self.token(&key).unwrap();
        self.ready(token, false, true);
        let answer = self.collect();
        assert_eq!(answer.len(), 1);
        let a = &answer[0].seg;
        assert_eq!((a.flags, a.ack, answer[0].key), (flag::SYN | flag::ACK, syn.seq.plus(1), key));
        let mut t = Talk {
            key,
            nxt: a.ack,
            ack: a.seq.plus(1),
            window: 8192,
            told: a.window.into(),
            end: Scene::ends() - 1,
        };
        let ack = t.say(flag::ACK, 0);
        self.send(&[(key, ack, &[])]);
        assert!(self.collect().is_empty(), "nothing to say");
        t.nxt = a.ack;
        t
    }
}

/// The guest's end of a connection, by hand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Talk {
    pub(super) key: Key,
    pub(super) nxt: Seq,
    pub(super) ack: Seq,
    /// Unscaled (by 7).
    pub(super) window: u16,
    /// What it may send at first.
    pub(super) told: u32,
    pub(super) end: usize,
}

impl Talk {
    /// The next segment, of `len` bytes.
    pub(super) fn say(&mut self, flags: u8, len: u32) -> Segment {
        let s = Segment { seq: self.nxt, ack: self.ack, flags, window: self.window, ..Segment::default() };
        let ends = flags & (flag::FIN | flag::SYN) != 0;
        self.nxt = self.nxt.plus(len + u32::from(ends));
        s
    }
}

/// The bytes of a guest's frame.
pub(super) fn frame(key: &Key, s: &Segment, payload: &[u8]) -> Vec<u8> {
    let mut t = Vec::new();
    t.extend(key.guest.port().to_be_bytes());
    t.extend(key.far.port().to_be_bytes());
    t.extend(s.seq.0.to_be_bytes());
    t.extend(s.ack.0.to_be_bytes());
    let mut options = Vec::new();
    if let Some(m) = s.mss {
        options.extend([2, 4]);
        options.extend(m.to_be_bytes());
    }
    if let Some(n) = s.scale {
        options.extend([1, 3, 3, n]);
    }
    t.extend([(((20 + options.len()) / 4) << 4) as u8, s.flags]);
    t.extend(s.window.to_be_bytes());
    t.extend([0xba, 0xad, 0, 0]);
    t.extend(options);
    let len = t.len() + payload.len();
    let mut f = Vec::new();
    f.extend(MAC.0);
    f.extend(GUEST.0);
    match (key.guest, key.far) {
        (SocketAddr::V4(a), SocketAddr::V4(b)) => {
            f.extend([8, 0, 0x45, 0]);
            f.extend(((len + 20) as u16).to_be_bytes());
            f.extend([0, 0, 0x40, 0, 64, TCP, 0, 0]);
            f.extend(a.ip().octets());
            f.extend(b.ip().octets());
        }
        (SocketAddr::V6(a), SocketAddr::V6(b)) => {
            f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            f.extend((len as u16).to_be_bytes());
            f.extend([TCP, 64]);
            f.extend(a.ip().octets());
            f.extend(b.ip().octets());
        }
        _ => panic!("two families"),
    }
    f.extend(t);
    f.extend(payload);
    f
}

/// A frame as the guest sees it: its checksums are right, or left to be completed as its header says.
fn came(bytes: &[u8], vnet: Vnet) -> Came {
    let len = bytes.len() as u32;
    vnet.check(len).unwrap();
    let p = Packet::parse(bytes, &[], len, vnet).unwrap();
    assert_eq!((p.mac, p.to), (MAC, GUEST));
    let ip = p.ip.unwrap();
    assert_eq!(ip.at + ip.len, len, "no padding, nothing cut");
    if bytes[12] == 8 {
        let mut s = Sum::default();
        s.bytes(&bytes[14..34]);
        assert_eq!(s.partial(), [0xff, 0xff], "IPv4 header");
    }
    let (src, dst) = (ip.src, ip.dst);
    let mut key = Key { guest: SocketAddr::new(dst, 0), far: SocketAddr::new(src, 0) };
    if ip.proto != TCP {
        return Came { seg: Segment::default(), key, bytes: Vec::new(), vnet, other: Some(bytes.to_vec()) };
    }
    let seg = Segment::of(&p).unwrap();
    key.guest.set_port(seg.to);
    key.far.set_port(seg.from);
    let l4 = &bytes[ip.at as usize..];
    let pseudo = user::build::pseudo(src, dst, TCP, ip.len);
    if vnet.needs_csum() {
        assert_eq!((u32::from(vnet.csum_start), vnet.csum_offset), (ip.at, 16));
        assert_eq!(l4[16..18], pseudo.partial());
    } else {
        let mut s = pseudo;
        s.bytes(l4);
        assert_eq!(s.partial(), [0xff, 0xff], "TCP");
    }
    if seg.payload > 1460 {
        assert!(vnet.gso_size > 0 && vnet.hdr_len > 0, "larger than the MTU");
    }
    Came { seg, key, bytes: l4[seg.header as usize..].to_vec(), vnet, other: None }
}
