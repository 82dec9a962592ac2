//! Bytes in = bytes out, both ways, whatever happens in between: short writes, sockets that take nothing, readiness in
//! any order and for nothing, windows that open and close, segments that come twice, too early or not at all, frames that
//! get lost.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use proptest::prelude::*;

use super::model::End;
use super::scene::{Came, Scene, key4, key6, plan};
use crate::port::user::tcp::hold::Purse;
use crate::port::user::tcp::segment::{Key, Segment, flag};
use crate::port::user::tcp::seq::Seq;

/// Chance, from a seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = (self.0 ^ (self.0 >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (x >> 32) % n.max(1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Mostly small, sometimes large.
    fn size(&mut self, most: u64) -> u64 {
        let cap = match self.below(4) {
            0 => 10,
            1 => 1500,
            2 => 10_000,
            _ => most,
        };
        1 + self.below(cap.min(most))
    }
}

fn bytes(seed: u64, n: usize) -> Vec<u8> {
    let mut c = Chance(seed);
    (0..n).map(|_| c.below(256) as u8).collect()
}

/// The guest's end: a small TCP of its own.
struct Guest {
    key: Key,
    end: Rc<RefCell<End>>,
    /// To be sent; what is acknowledged of it, what was sent, and the end of the window.
    out: Vec<u8>,
    una: usize,
    sent: usize,
    top: usize,
    edge: usize,
    /// Where a probe of a closed window may reach.
    probe: usize,
    first: Seq,
    fin_sent: bool,
    fin_acked: bool,
    /// What came, how much of it was read, and how much is taken at a time.
    got: Vec<u8>,
    read: usize,
    space: usize,
    told: usize,
    theirs: Seq,
    ended: bool,
    owes: bool,
    /// What the host's side sends, and how much of it is in the socket.
    host: Vec<u8>,
    fed: usize,
    host_ends: bool,
    waits: u32,
}

impl Guest {
    fn theirs_next(&self) -> Seq {
        self.theirs.plus(self.got.len() as u32 + u32::from(self.ended))
    }

    fn window(&mut self) -> u16 {
        let free = self.space.saturating_sub(self.got.len() - self.read);
        let units = (free >> 7).min(65535);
        self.told = self.told.max(self.got.len() + (units << 7));
        units as u16
    }

    fn segment(&mut self, at: usize, len: usize, fin: bool) -> (Segment, Vec<u8>) {
        let flags = flag::ACK | if fin { flag::FIN } else { 0 };
        let seq = self.first.plus(at as u32);
        let s = Segment { seq, ack: self.theirs_next(), flags, window: self.window(), ..Segment::default() };
        self.owes = false;
        (s, self.out[at..at + len].to_vec())
    }

    /// What it sends in a turn.
    fn turn(&mut self, c: &mut Chance) -> Vec<(Segment, Vec<u8>)> {
        let mut list = Vec::new();
        for _ in 0..1 + c.below(5) {
            let left = self.edge.max(self.probe).min(self.out.len()).saturating_sub(self.sent);
            if left > 0 {
                let n = (c.size(60_000) as usize).min(left);
                let all = self.sent + n == self.out.len();
                let fin = all && c.one_in(2);
                list.push(self.segment(self.sent, n, fin));
                self.sent += n;
                self.top = self.top.max(self.sent);
                self.fin_sent |= fin;
            } else if self.sent == self.out.len() && !self.fin_acked && c.one_in(3) {
                list.push(self.segment(self.sent, 0, true));
                self.fin_sent = true;
            }
        }
        if c.one_in(10) && self.sent > self.una {
            // Once more, from anywhere that was sent.
            let at = self.una.saturating_sub(c.below(3000) as usize)
                + c.below((self.sent - self.una) as u64) as usize;
            let n = (c.size(60_000) as usize).min(self.sent - at);
            list.push(self.segment(at, n, false));
        }
        if self.owes && (list.is_empty() || c.one_in(2)) && !c.one_in(4) {
            list.push(self.segment(self.sent, 0, false));
        }
        list
    }

    /// What came for it. `lossy`: frames may be missing, so that others are too early.
    fn takes(&mut self, f: &Came, lossy: bool) {
        assert!(!f.seg.has(flag::SYN));
        if f.seg.has(flag::RST) {
            // It knows nothing of this connection any more.
            assert!(self.ended && (self.fin_acked || (lossy && self.fin_sent)), "{:?}", f.seg);
            (self.fin_acked, self.una) = (true, self.out.len());
            return;
        }
        let acked = f.seg.ack.since(self.first) as usize;
        let all = self.out.len();
        assert!(acked <= self.top + usize::from(self.fin_sent), "acknowledges what was never sent");
        self.fin_acked |= acked > all;
        if acked.min(all) > self.una {
            self.una = acked.min(all);
            self.waits = 0;
        }
        self.sent = self.sent.max(self.una);
        let said = acked + (usize::from(f.seg.window) << 7);
        let edge = said.max(self.edge);
        assert!(lossy || edge < said + 128 || acked < self.una, "the window shrank by a unit or more");
        self.edge = edge;
        let at = f.seg.seq.since(self.theirs) as usize;
        let next = self.got.len() + usize::from(self.ended);
        let probe = f.seg.seq == self.theirs.plus(next as u32).minus(1) && f.bytes.is_empty();
        self.owes |= !f.bytes.is_empty() || f.seg.has(flag::FIN) || probe;
        if probe && !f.seg.has(flag::FIN) {
            return;
        }
        assert!(at + f.bytes.len() <= self.told.max(at), "behind the window's end");
        if at > next || (f.bytes.is_empty() && !f.seg.has(flag::FIN)) {
            assert!(lossy || at <= next, "a gap");
            return;
        }
        let skip = (self.got.len() - at.min(self.got.len())).min(f.bytes.len());
        if at + skip == self.got.len() {
            self.got.extend(&f.bytes[skip..]);
        }
        if f.seg.has(flag::FIN) && at + f.bytes.len() == self.got.len() {
            self.ended = true;
        }
    }

    fn is_done(&self) -> bool {
        let e = self.end.borrow();
        self.fin_acked && self.ended && e.got_end && self.read == self.got.len()
    }
}

struct Run {
    s: Scene,
    c: Chance,
    guests: Vec<Guest>,
    lossy: bool,
    /// Frames under way to the guest.
    wire: VecDeque<Came>,
}

impl Run {
    fn new(seed: u64, flows: usize, lossy: bool, peeks: bool) -> Self {
        let mut p = plan();
        p.limits.held = 256 << 10;
        p.limits.held_each = 100 << 10;
        let mut s = Scene::keeping(&p, peeks);
        let mut c = Chance(seed);
        let mut guests = Vec::new();
        for i in 0..flows {
            let key = if i % 2 == 0 { key4(i as u16 + 1) } else { key6(i as u16 + 1) };
            let t = s.open(key);
            let (up, down) = (c.size(300_000) as usize, c.size(300_000) as usize);
            guests.push(Guest {
                key,
                end: Scene::end(t.end),
                out: bytes(seed ^ i as u64, up),
                una: 0,
                sent: 0,
                top: 0,
                edge: t.told as usize,
                probe: 0,
                first: Seq(u32::MAX - 4999),
                fin_sent: false,
                fin_acked: false,
                got: Vec::new(),
                read: 0,
                space: 1 << 20,
                told: 1 << 20,
                theirs: t.ack,
                ended: false,
                owes: false,
                host: bytes(!seed ^ i as u64, down),
                fed: 0,
                host_ends: false,
                waits: 0,
            });
        }
        Self { s, c, guests, lossy, wire: VecDeque::new() }
    }

    /// The host's side of a flow does something; its socket wakes as the kernel's would.
    fn host(&mut self, i: usize) {
        let (g, c) = (&mut self.guests[i], &mut self.c);
        let token = self.s.token(&g.key);
        let mut e = g.end.borrow_mut();
        let (mut read, mut write) = (false, false);
        match c.below(5) {
            0 => {
                e.room += c.size(100_000) as usize;
                write = std::mem::take(&mut e.starved);
            }
            1 => e.room = e.room.min(c.size(3000) as usize),
            2 => e.most = if c.one_in(2) { usize::MAX } else { c.size(5000) as usize },
            3 if g.fed < g.host.len() => {
                let n = (c.size(100_000) as usize).min(g.host.len() - g.fed);
                e.queue.extend(&g.host[g.fed..g.fed + n]);
                g.fed += n;
                read = true;
            }
            3 if !g.host_ends => {
                (g.host_ends, e.finished, read) = (true, true, true);
            }
            _ => {
                // For nothing, perhaps.
                read = c.one_in(2);
                write = c.one_in(4) && e.room > 0;
            }
        }
        drop(e);
        if let Some(token) = token.filter(|_| read || write) {
            self.s.ready(token, read, write);
        }
    }

    fn guest(&mut self) {
        let mut list = Vec::new();
        for g in &mut self.guests {
            if self.c.one_in(3) {
                continue;
            }
            let n = (self.c.size(200_000) as usize).min(g.got.len() - g.read);
            if n > 0 && self.c.one_in(2) {
                g.read += n;
                g.owes = true;
            }
            if self.c.one_in(20) {
                g.space = self.c.size(500_000) as usize;
                g.owes = true;
            }
            for (s, payload) in g.turn(&mut self.c) {
                list.push((g.key, s, payload));
            }
        }
        if self.lossy {
            list.retain(|_| !self.c.one_in(10));
            if list.len() > 1 && self.c.one_in(5) {
                let (a, b) =
                    (self.c.below(list.len() as u64) as usize, self.c.below(list.len() as u64) as usize);
                list.swap(a, b);
            }
        }
        let refs: Vec<_> = list.iter().map(|(k, s, p)| (*k, *s, p.as_slice())).collect();
        self.s.send(&refs);
    }

    fn take(&mut self) {
        let mut frames = Vec::new();
        self.s.collect_once(&mut frames);
        self.wire.extend(frames);
        for _ in 0..self.c.below(self.wire.len() as u64 + 1) {
            let Some(f) = self.wire.pop_front() else { return };
            if self.lossy && self.c.one_in(10) {
                continue;
            }
            let g = self.guests.iter_mut().find(|g| g.key == f.key).unwrap();
            g.takes(&f, self.lossy);
        }
    }

    /// Time passes; who waits for too long sends again.
    fn time(&mut self, ms: u64) {
        self.s.pass(Duration::from_millis(ms));
        for g in &mut self.guests {
            g.waits += 1;
            // Also where a segment was said to be taken that was taken back, and where an acknowledgement was lost.
            if g.waits > 3 && (g.una < g.sent || (g.fin_sent && !g.fin_acked) || g.sent >= g.edge) {
                g.waits = 0;
                g.sent = g.una;
                g.probe = g.una + 1;
            }
            g.owes = true;
        }
    }

    fn check(&self) {
        for g in &self.guests {
            let e = g.end.borrow();
            assert!(e.got[..] == g.out[..e.got.len()], "up");
            assert!(g.got[..] == g.host[..g.got.len()], "down");
            assert!(!e.aborted);
        }
    }

    fn run(mut self) {
        for step in 0..40_000 {
            match self.c.below(8) {
                0 | 1 => self.guest(),
                2 | 3 => self.take(),
                4 if self.lossy && self.c.one_in(4) => self.time(1500),
                4 => self.time(10),
                _ => {
                    let i = self.c.below(self.guests.len() as u64) as usize;
                    self.host(i);
                }
            }
            if step % 64 == 0 {
                self.check();
                if self.guests.iter().all(Guest::is_done) && self.s.tcp.connections() == 0 {
                    break;
                }
            }
            if step % 500 == 499 {
                self.time(3000);
                for g in &mut self.guests {
                    g.space = g.space.max(200_000);
                }
            }
        }
        self.check();
        for g in &self.guests {
            let e = g.end.borrow();
            assert_eq!((e.got.len(), g.got.len()), (g.out.len(), g.host.len()));
            assert!(e.got_end && g.ended && g.fin_acked, "both ends");
        }
        assert_eq!(self.s.tcp.connections(), 0);
        let store = &self.s.tcp.tools.store;
        for up in [true, false] {
            let purse = Purse { guest: true, up };
            let size = store.size(purse);
            assert_eq!(
                (store.left(purse), store.unclaimed(purse)),
                (size, size),
                "nothing is held for nobody"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn bytes_in_are_bytes_out(seed in any::<u64>(), flows in 1_usize..5, peeks in any::<bool>()) {
        Run::new(seed, flows, false, peeks).run();
    }

    #[test]
    fn bytes_in_are_bytes_out_over_a_link_that_loses(seed in any::<u64>(), flows in 1_usize..4, peeks in any::<bool>()) {
        Run::new(seed, flows, true, peeks).run();
    }
}
