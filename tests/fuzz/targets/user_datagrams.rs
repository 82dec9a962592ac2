//! UDP, echo requests and fragments of a guest that means ill: packets whose form is mostly right, so that what is behind
//! the form is reached. Nothing leaves the process: the policy refuses every destination, and the guest hears so.
//!
//! What the gateway answers is what it was asked, byte for byte; nothing is longer than the MTU, and answers have an end.
#![no_main]

use std::collections::BTreeMap;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use netreeve_dataplane::frame::Batch;
use netreeve_dataplane::mem::Buf;
use netreeve_dataplane::port::user::policy::{Policy, Verdict};
use netreeve_dataplane::port::user::{Plan, open};
use netreeve_dataplane::port::{Offloads, Port};
use netreeve_shared::vnet::Vnet;

fn plan() -> &'static Plan {
    static PLAN: OnceLock<Plan> = OnceLock::new();
    let policy = || Policy { rules: Vec::new(), otherwise: Verdict::Refuse };
    PLAN.get_or_init(|| Plan { policy: policy(), ..Plan::qemu() })
}

const GUEST: [[u8; 16]; 2] = [
    [10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    [0xfe, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 15],
];
const TO: [[[u8; 16]; 2]; 4] = [
    [[10, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0xfe, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]],
    [[127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1]],
    [[10, 0, 2, 255, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]],
    [[192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]],
];

/// What eight bytes of the input say of a packet.
struct Recipe {
    v6: bool,
    to: usize,
    proto: u8,
    ttl: u8,
    /// Number, offset in eights, more.
    part: Option<(u8, u16, bool)>,
    len: usize,
    seed: u8,
    vnet: Vnet,
}

fn recipe(b: [u8; 8]) -> Recipe {
    let [kind, to, proto, part, offset, len, seed, work] = b;
    let v6 = kind & 1 != 0;
    let proto = match proto & 3 {
        0 => 17,
        1 => if v6 { 58 } else { 1 },
        2 => proto,
        _ => if v6 { 58 } else { 1 },
    };
    let whole = u16::from(offset) | u16::from(part & 0x1f) << 8;
    let gso = work & 7 == 5;
    Recipe {
        v6,
        to: usize::from(to & 3),
        proto,
        ttl: if kind & 2 != 0 { 1 } else { 64 },
        part: (kind & 4 != 0).then_some((seed & 3, whole, part & 0x80 != 0)),
        len: usize::from(len) * if kind & 8 != 0 { 8 } else { 1 } + if kind & 16 != 0 { 7 } else { 0 },
        seed,
        vnet: Vnet {
            flags: u8::from(gso),
            gso_type: if gso { 5 } else { 0 },
            gso_size: if gso { u16::from(work) } else { 0 },
            csum_start: if gso { 34 } else { 0 },
            csum_offset: if gso { 6 } else { 0 },
            ..Vnet::default()
        },
    }
}

impl Recipe {
    fn payload(&self, extra: &[u8]) -> Vec<u8> {
        let mut p = Vec::with_capacity(self.len + 8);
        if self.part.is_none_or(|(_, at, _)| at == 0) {
            match self.proto {
                17 => {
                    p.extend([self.seed, 1, 0x12, 0x34]);
                    let lie = u16::from(self.seed == 0xff);
                    p.extend((self.len as u16 + 8 + lie).to_be_bytes());
                    p.extend([0, 0]);
                }
                1 => p.extend([8, 0, 0, 0, 0, self.seed, 0, 1]),
                58 => p.extend([128, 0, 0, 0, 0, self.seed, 0, 1]),
                _ => {}
            }
        }
        p.extend(extra.iter().copied().chain((0..).map(|i: usize| i as u8 ^ self.seed)).take(self.len));
        p
    }

    fn frame(&self, extra: &[u8]) -> Vec<u8> {
        let payload = self.payload(extra);
        let mut f = vec![0x52, 0x55, 0x0a, 0, 2, 2, 0x52, 0x54, 0, 0x12, 0x34, 0x56];
        let (src, dst) = (GUEST[usize::from(self.v6)], TO[self.to][usize::from(self.v6)]);
        if self.v6 {
            f.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            let more = if self.part.is_some() { 8 } else { 0 };
            f.extend((payload.len() as u16 + more).to_be_bytes());
            f.extend([if self.part.is_some() { 44 } else { self.proto }, self.ttl]);
            f.extend(src);
            f.extend(dst);
            if let Some((id, at, more)) = self.part {
                f.extend([self.proto, 0]);
                f.extend((at << 3 | u16::from(more)).to_be_bytes());
                f.extend([0, 0, 0, id]);
            }
        } else {
            f.extend([8, 0, 0x45, 0]);
            f.extend((payload.len() as u16 + 20).to_be_bytes());
            let (id, field) = self.part.map_or((0, 0), |(id, at, more)| (id, at | u16::from(more) << 13));
            f.extend([0, id]);
            f.extend(field.to_be_bytes());
            f.extend([self.ttl, self.proto, 0, 0]);
            f.extend(&src[..4]);
            f.extend(&dst[..4]);
        }
        f.extend(payload);
        f
    }
}

/// Echo requests that the gateway may answer: by family and identifier, what they may carry.
type Asked = BTreeMap<(bool, u8), Vec<Vec<u8>>>;

fn drain(port: &mut dyn Port, landing: &Buf, got: &mut Batch) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for _ in 0..8 {
        got.clear();
        got.landing.open_pool(landing.seg(0, landing.len()));
        port.recv(got).unwrap();
        for f in got.frames() {
            let mut bytes = f.head().to_vec();
            for s in got.body(f) {
                let mut part = vec![0; s.len() as usize];
                s.copy_out(&mut part);
                bytes.extend(part);
            }
            assert_eq!(bytes.len(), f.len as usize);
            assert!(bytes.len() <= 1514, "longer than the MTU");
            all.push(bytes);
        }
    }
    assert!(!port.arm_gives(), "answers without end");
    all
}

fuzz_target!(|data: &[u8]| {
    let Some(mut port) = open(plan(), Vec::new()).ok().and_then(|mut q| q.pop()) else { return };
    port.peer_takes(Offloads::ALL);
    let (memory, landing) = (Buf::new(1 << 18).unwrap(), Buf::new(1 << 18).unwrap());
    let (mut sent, mut got) = (Batch::new(), Batch::new());
    let mut asked = Asked::new();
    let (mut rest, mut answers, mut pieces) = (data, Vec::new(), false);
    while let Some((&first, tail)) = rest.split_first_chunk::<8>() {
        let r = recipe(first);
        let (extra, tail) = tail.split_at(usize::from(first[6] & 15).min(tail.len()));
        rest = tail;
        pieces |= r.part.is_some();
        let bytes = r.frame(extra);
        if r.to == 0 && r.part.is_none() && matches!(r.proto, 1 | 58) {
            asked.entry((r.v6, r.seed)).or_default().push(r.payload(extra)[8..].to_vec());
        }
        let seg = memory.seg(0, bytes.len() as u32);
        assert_eq!(seg.copy_in(&bytes), bytes.len());
        sent.clear();
        let Some(f) = sent.push() else { return };
        f.len = bytes.len() as u32;
        f.vnet = r.vnet;
        let n = f.head_from(&seg);
        sent.push_seg(seg.skip(n));
        assert_eq!(port.send(&sent).unwrap(), 1);
        answers.extend(drain(port.as_mut(), &landing, &mut got));
    }
    for a in answers {
        let (v6, at) = if a[12..14] == [0x86, 0xdd] { (true, 54) } else { (false, 34) };
        let whole = if v6 { a[20] == 58 } else { a[12..14] == [8, 0] && a[23] == 1 && (a[20] & 0x3f, a[21]) == (0, 0) };
        if whole && a.len() >= at + 8 && a[at] == if v6 { 129 } else { 0 } {
            let carried = &a[at + 8..];
            let may = asked.get(&(v6, a[at + 5])).is_some_and(|list| list.iter().any(|p| p == carried));
            // What was put together of fragments, other tests compare.
            assert!(may || pieces, "an answer to nothing");
        }
    }
});
