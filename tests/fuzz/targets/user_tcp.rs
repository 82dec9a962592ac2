//! TCP of a `user` network and a guest that says what it likes on one connection, whose far end is ours: whatever it says,
//! what arrives there is a beginning of what it sent, byte for byte by sequence number, and the other way round.
//!
//! Each step is four bytes: what is done, and three that say how.
#![no_main]

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use netreeve_dataplane::frame::{Batch, HEAD};
use netreeve_dataplane::mem::Buf;
use netreeve_dataplane::port::user::{GuestForward, Plan, To, door, open};
use netreeve_dataplane::port::{Offloads, Port};
use netreeve_shared::channel::Channel;

const GUEST: [u8; 4] = [10, 0, 2, 15];
const FAR: [u8; 4] = [10, 0, 2, 100];
const FIRST: u32 = u32::MAX - 20_000;
const SYN: u8 = 2;

/// A stream's bytes repeat after so many: a prime, which nothing that is counted here is a multiple of.
const PERIOD: u32 = 65_521;

/// The bytes of a stream, three times over: parts of it are copied and compared as a whole, which is most of a run's time.
struct Bytes(Vec<u8>);

impl Bytes {
    fn of(factor: u32) -> Self {
        let once: Vec<u8> = (0..PERIOD).map(|i| (i.wrapping_mul(factor) >> 24) as u8).collect();
        Self(once.repeat(3))
    }

    /// At most 128 KiB from a place on, which may lie before the beginning.
    fn part(&self, at: u32, len: usize) -> &[u8] {
        let from = (at as i32).rem_euclid(PERIOD as i32) as usize;
        &self.0[from..from + len]
    }
}

/// The guest's stream, and the far end's.
fn up() -> &'static Bytes {
    static BYTES: OnceLock<Bytes> = OnceLock::new();
    BYTES.get_or_init(|| Bytes::of(2_654_435_761))
}

fn down() -> &'static Bytes {
    static BYTES: OnceLock<Bytes> = OnceLock::new();
    BYTES.get_or_init(|| Bytes::of(0x85eb_ca6b))
}

/// What a guest's memory holds once a frame is sent.
static USED: [u8; 1 << 16] = [0xee; 1 << 16];

struct World {
    port: Box<dyn Port>,
    far: UnixStream,
    memory: Buf,
    landing: Buf,
    sent: Batch,
    got: Batch,
    /// Where the port's numbers begin, once it said so; what it acknowledged last; how much of its bytes came.
    theirs: Option<u32>,
    acked: u32,
    came: u32,
    arrived: u32,
    wrote: u32,
    /// Connections that were opened, and that were asked for: what arrives by others has begun anew.
    opened: u32,
    asked: u32,
    door: Channel,
}

impl World {
    fn is_first(&self) -> bool {
        self.opened == 1 && self.asked == 1
    }

    /// Lets those in who ask: each has a connection of its own.
    fn serve(&mut self) {
        while let Ok(Some(m)) = self.door.recv(0, Some(Duration::ZERO)) {
            let (ours, far) = pair();
            (self.far, self.asked) = (far, self.asked + 1);
            let number = door::read_ask(&m.bytes).unwrap();
            self.door.send(&door::answer(number, 0), &[ours.as_fd()]).unwrap();
        }
    }

    /// A segment of the guest's.
    fn say(&mut self, flags: u8, seq: u32, ack: u32, window: u16, len: u32) {
        let mut f = vec![0x52, 0x55, 0x0a, 0, 2, 2, 0x52, 0x54, 0, 0x12, 0x34, 0x56, 8, 0, 0x45, 0];
        let options: &[u8] = if flags & SYN != 0 { &[3, 3, 4, 0] } else { &[] };
        let tcp = 20 + options.len() as u32;
        f.extend(((20 + tcp + len) as u16).to_be_bytes());
        f.extend([0, 0, 0, 0, 64, 6, 0, 0]);
        f.extend(GUEST);
        f.extend(FAR);
        f.extend([0x12, 0x34, 0, 25]);
        f.extend(seq.to_be_bytes());
        f.extend(ack.to_be_bytes());
        f.extend([(tcp / 4 << 4) as u8, flags]);
        f.extend(window.to_be_bytes());
        f.extend([0; 4]);
        f.extend(options);
        // The bytes are those of their places, whatever else is said of them.
        let from = if flags & SYN != 0 { seq.wrapping_add(1) } else { seq };
        f.extend(up().part(from.wrapping_sub(FIRST + 1), len as usize));
        self.sent.clear();
        let seg = self.memory.seg(0, f.len() as u32);
        seg.copy_in(&f);
        if let Some(frame) = self.sent.push() {
            frame.len = f.len() as u32;
            frame.head_from(&seg);
            self.sent.push_seg(seg.skip(HEAD as u32));
        }
        assert_eq!(self.port.send(&self.sent).unwrap(), 1);
        self.serve();
        self.memory.seg(0, f.len() as u32).copy_in(&USED[..f.len()]);
    }

    /// What the port has for the guest.
    fn take(&mut self) {
        for _ in 0..64 {
            self.got.clear();
            self.got.landing.open_pool(self.landing.seg(0, self.landing.len()));
            self.port.recv(&mut self.got).unwrap();
            if self.got.frames().is_empty() {
                break;
            }
            for f in self.got.frames() {
                let mut b = f.head().to_vec();
                for s in self.got.body(f) {
                    let from = b.len();
                    b.resize(from + s.len() as usize, 0);
                    s.copy_out(&mut b[from..]);
                }
                assert_eq!(b.len(), f.len as usize);
                if b[12..14] != [8, 0] || b[23] != 6 || b[26..30] != FAR {
                    continue;
                }
                let word = |at: usize| u32::from_be_bytes(b[at..at + 4].try_into().unwrap());
                let (seq, ack, flags) = (word(38), word(42), b[47]);
                if flags & 4 != 0 {
                    self.theirs = None;
                    continue;
                }
                if flags & SYN != 0 {
                    if self.theirs != Some(seq) {
                        (self.theirs, self.came) = (Some(seq), 0);
                        self.opened += 1;
                    }
                    continue;
                }
                let Some(first) = self.theirs else { continue };
                self.acked = ack;
                let at = seq.wrapping_sub(first).wrapping_sub(1);
                let payload = &b[14 + 20 + usize::from(b[46] >> 4) * 4..];
                if payload.is_empty() {
                    continue;
                }
                // A connection after the first begins in the middle of what the far end writes.
                if self.is_first() {
                    assert!(payload == down().part(at, payload.len()), "down");
                }
                self.came = self.came.max(at + payload.len() as u32);
            }
        }
    }

    /// What arrived at the far end; none: nothing more, now.
    fn arrive(&mut self, most: usize) -> Option<usize> {
        let mut b = [0; 1 << 14];
        match self.far.read(&mut b[..most]) {
            Ok(n) => {
                if self.is_first() {
                    assert!(b[..n] == *up().part(self.arrived, n), "up");
                }
                self.arrived += n as u32;
                Some(n)
            }
            Err(e) => {
                // The port has closed it and left something unread.
                assert!(matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionReset), "{e}");
                None
            }
        }
    }
}

fn pair() -> (UnixStream, UnixStream) {
    let (ours, far) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    far.set_nonblocking(true).unwrap();
    (ours, far)
}

fuzz_target!(|data: &[u8]| {
    let (door, theirs) = Channel::pair().unwrap();
    let at = SocketAddr::new(IpAddr::from(Ipv4Addr::from(FAR)), 25);
    let mut plan = Plan { restrict: true, ..Plan::qemu() };
    plan.guest_forwards.push(GuestForward { at, to: To::Asked { tcp: false } });
    let mut port = open(&plan, vec![theirs.into_fd()]).unwrap().pop().unwrap();
    port.peer_takes(Offloads::ALL);
    let mut w = World {
        port,
        far: pair().1,
        memory: Buf::new(1 << 17).unwrap(),
        landing: Buf::new(320 << 10).unwrap(),
        sent: Batch::new(),
        got: Batch::new(),
        theirs: None,
        acked: FIRST.wrapping_add(1),
        came: 0,
        arrived: 0,
        wrote: 0,
        opened: 0,
        asked: 0,
        door,
    };
    for step in data.chunks_exact(4).take(400) {
        let [what, a, b, c] = *step else { continue };
        let n = u32::from(u16::from_be_bytes([a, b]));
        let ack = w.theirs.map_or(0, |t| t.wrapping_add(1).wrapping_add(w.came));
        let window = u16::from(c) << 8 | 0xff;
        match what % 8 {
            0 => {
                w.say(SYN, FIRST, 0, window, 0);
                w.take();
                if let Some(t) = w.theirs {
                    w.say(0x10, FIRST.wrapping_add(1), t.wrapping_add(1), window, 0);
                }
            }
            // In order, as the port counts.
            1 | 2 => w.say(0x18, w.acked, ack, window, n.min(60_000)),
            // Anything near it.
            3 => w.say(
                0x10 | c & 0x29,
                w.acked.wrapping_add(n).wrapping_sub(0x8000),
                ack,
                window,
                u32::from(c) * 16,
            ),
            // Acknowledges anything.
            4 => w.say(0x10 | c & 1, w.acked, ack.wrapping_add(n).wrapping_sub(0x4000), u16::from(b), 0),
            5 => w.take(),
            6 => {
                w.arrive(usize::from(b) * 64 + 1);
            }
            // Any flags but those of an opening, whose first number would be another.
            _ if c == 0xff && a & SYN == 0 => w.say(a, w.acked.wrapping_add(u32::from(b)), ack, window, 0),
            _ => {
                w.wrote += w.far.write(down().part(w.wrote, n as usize)).unwrap_or(0) as u32;
            }
        }
    }
    w.take();
    while w.arrive(1 << 14).is_some_and(|n| n > 0) {}
});
