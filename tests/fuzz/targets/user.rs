//! A `user` network without a way out, and a guest that sends whatever frames it likes: each is two bytes of length, a
//! virtio-net header's flags, and the frame.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use netreeve_dataplane::frame::{Batch, HEAD};
use netreeve_dataplane::mem::Buf;
use netreeve_dataplane::port::Offloads;
use netreeve_dataplane::port::user::{Plan, open};

fn plan() -> &'static Plan {
    static PLAN: OnceLock<Plan> = OnceLock::new();
    PLAN.get_or_init(|| Plan { restrict: true, ..Plan::qemu() })
}

fuzz_target!(|data: &[u8]| {
    let Some(mut port) = open(plan(), Vec::new()).ok().and_then(|mut q| q.pop()) else { return };
    port.peer_takes(Offloads::ALL);
    let (memory, landing) = (Buf::new(1 << 17).unwrap(), Buf::new(1 << 18).unwrap());
    let (mut sent, mut got) = (Batch::new(), Batch::new());
    let mut rest = data;
    let mut at = 0;
    while let Some((&[high, low, kind], tail)) = rest.split_first_chunk::<3>() {
        let len = usize::from(u16::from_be_bytes([high, low]) & 0x0fff).min(tail.len());
        let (frame, tail) = tail.split_at(len);
        rest = tail;
        // Ethernet's part is worth no guessing.
        let mut bytes = vec![0x52, 0x55, 0x0a, 0, 2, 2, 0x52, 0x54, 0, 0x12, 0x34, 0x56];
        bytes.extend(match kind & 3 {
            0 => [0x08, 0x00],
            1 => [0x86, 0xdd],
            2 => [0x08, 0x06],
            _ => [0x08, 0x00],
        });
        bytes.extend(frame);
        let seg = memory.seg(at, bytes.len() as u32);
        if seg.copy_in(&bytes) < bytes.len() {
            break;
        }
        at += bytes.len() as u32;
        let Some(f) = sent.push() else { break };
        f.len = bytes.len() as u32;
        f.head_from(&seg);
        sent.push_seg(seg.skip(HEAD as u32));
    }
    let n = sent.len();
    assert_eq!(port.send(&sent).unwrap(), n);
    for _ in 0..4 {
        got.clear();
        got.landing.open_pool(landing.seg(0, landing.len()));
        port.recv(&mut got).unwrap();
    }
    assert!(!port.arm_gives(), "answers without end");
});
