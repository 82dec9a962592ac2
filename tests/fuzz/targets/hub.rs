//! A hub under members that come, go, send, take, stop and move: nobody gets his own frames or those that isolation keeps
//! from him, or one twice, or those of one source out of order, or bytes that nobody sent; without learning, every frame
//! reaches everybody who is up or is counted as lost there; who sleeps can be woken.
#![no_main]

use std::collections::HashMap;

use libfuzzer_sys::fuzz_target;
use netreeve_dataplane::frame::Batch;
use netreeve_dataplane::mem::Buf;
use netreeve_dataplane::port::hub::{Hubs, Learning, Plan, open};
use netreeve_dataplane::port::{Interest, Offloads, Port};
use netreeve_dataplane::stats::Reason;

/// Most members at a time.
const MEMBERS: usize = 6;
/// Longest frame in bytes that is sent.
const LONGEST: usize = 65_536;

struct Member {
    port: Box<dyn Port>,
    number: u32,
    isolated: bool,
    up: bool,
    /// The last frame that it got of each source.
    last: HashMap<u32, u32>,
    /// Frames that went out while it could have them, and those that it got.
    due: u64,
    got: u64,
    /// Its own that nobody could have.
    lonely: u64,
}

impl Member {
    fn lost(&self) -> u64 {
        let drops = self.port.stats().drops;
        drops[Reason::Full as usize] + drops[Reason::PeerDown as usize] - self.lonely
    }
}

struct World {
    hubs: Hubs,
    members: Vec<Member>,
    /// Isolation of all that ever were, by number.
    isolated: Vec<bool>,
    serial: u32,
    learns: bool,
    memory: Buf,
}

impl World {
    fn enter(&mut self, how: u8) {
        if self.members.len() >= MEMBERS {
            return;
        }
        let learning =
            (self.learns && how & 1 == 0).then(|| Learning { ageing: 300, most: 1 + u16::from(how >> 4) });
        let isolated = how & 2 != 0;
        let plan = Plan { hub: 1, learning, isolated };
        let port = open(&plan, &mut self.hubs).unwrap().remove(0);
        let number = u32::try_from(self.isolated.len()).unwrap();
        self.isolated.push(isolated);
        let last = HashMap::new();
        self.members.push(Member { port, number, isolated, up: false, last, due: 0, got: 0, lonely: 0 });
        let i = self.members.len() - 1;
        self.up(i, how & 4 == 0);
    }

    fn up(&mut self, i: usize, up: bool) {
        let m = &mut self.members[i];
        m.port.peer_takes(Offloads::NONE);
        m.port.peer_up(up);
        m.up = up;
    }

    /// Sends a batch of frames of one length.
    fn send(&mut self, i: usize, count: usize, len: usize, to: u8, from: u8) {
        let mut b = Batch::new();
        let each = len.clamp(24, LONGEST);
        for k in 0..count {
            let serial = self.serial + u32::try_from(k).unwrap();
            let mut bytes = vec![serial as u8; each];
            bytes[..6].copy_from_slice(&if to == 0 { [0xff; 6] } else { [2, 0, 0, 0, 0, to % 8] });
            bytes[6..12].copy_from_slice(&[2, 0, 0, 0, 0, from % 8]);
            bytes[14..18].copy_from_slice(&serial.to_be_bytes());
            bytes[18..22].copy_from_slice(&self.members[i].number.to_be_bytes());
            let seg = self.memory.seg(u32::try_from(k * each).unwrap(), u32::try_from(each).unwrap());
            seg.copy_in(&bytes);
            let Some(f) = b.push() else { break };
            f.len = seg.len();
            let n = f.head_from(&seg);
            b.push_seg(seg.skip(n));
        }
        let taken = self.members[i].port.send(&b).unwrap();
        assert!(taken <= b.len());
        self.serial += u32::try_from(count).unwrap();
        let mine = self.members[i].isolated;
        let mut others = 0;
        for (k, m) in self.members.iter_mut().enumerate() {
            if k != i && m.up && !(mine && m.isolated) {
                m.due += taken as u64;
                others += 1;
            }
        }
        if others == 0 {
            assert_eq!(taken, b.len(), "nobody is waited for when there is nobody");
            self.members[i].lonely += taken as u64;
        }
    }

    /// Takes up to `most` frames.
    fn take(&mut self, i: usize, most: usize) -> usize {
        let m = &mut self.members[i];
        let mut b = Batch::new();
        m.port.recv(&mut b).unwrap();
        let n = b.len().min(most);
        for f in &b.frames()[..n] {
            let mut bytes = f.head().to_vec();
            for s in b.body(f) {
                let mut part = vec![0; s.len() as usize];
                s.copy_out(&mut part);
                bytes.extend(part);
            }
            assert_eq!(bytes.len(), f.len as usize);
            let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
            let (serial, source) = (word(14), word(18));
            assert!(bytes[22..].iter().all(|b| *b == serial as u8), "whole, and nothing else");
            assert_ne!(source, m.number, "its own");
            assert!(!(m.isolated && self.isolated[source as usize]), "isolated from each other");
            let last = m.last.insert(source, serial + 1).unwrap_or(0);
            assert!(serial >= last, "in order, and once");
        }
        if !b.is_empty() {
            m.port.release(&b, n);
        }
        m.got += n as u64;
        n
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&how, rest)) = data.split_first() else { return };
    let (hubs, memory) = (Hubs::default(), Buf::reserve(64 * LONGEST as u32).unwrap());
    let mut w = World { hubs, members: vec![], isolated: vec![], serial: 0, learns: how & 1 != 0, memory };
    for op in rest.chunks_exact(4).take(400) {
        let &[what, who, a, b] = op else { return };
        if what % 8 == 0 {
            w.enter(a);
        }
        if w.members.is_empty() {
            continue;
        }
        let i = usize::from(who) % w.members.len();
        match what % 8 {
            1 => drop(w.members.swap_remove(i)),
            2 => w.up(i, a & 1 == 0),
            3 | 4 => w.send(i, 1 + usize::from(a % 64), usize::from(b), what >> 3, a >> 3),
            5 => w.send(i, 1 + usize::from(a % 64), usize::from(b) * 256, what >> 3, a >> 3),
            6 => drop(w.take(i, usize::from(a))),
            7 => {
                let m = &mut w.members[i];
                let (_, _) = (m.port.arm_gives(), m.port.arm_takes());
                if a & 1 == 0 {
                    m.port.event(0, Interest::Gives).unwrap();
                }
            }
            _ => {}
        }
    }
    // Everybody takes all that waits.
    for i in 0..w.members.len() {
        while w.take(i, usize::MAX) > 0 {}
        let m = &mut w.members[i];
        assert!(!m.port.arm_gives());
        if w.learns {
            assert!(m.got + m.lost() <= m.due + u64::from(w.serial), "{} of {}", m.got, m.due);
        } else {
            assert_eq!(m.got + m.lost(), m.due, "each frame is here, or was counted");
        }
    }
    for i in 0..w.members.len() {
        assert!(w.members[i].port.arm_takes(), "everybody has room");
    }
});
