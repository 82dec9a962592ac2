//! Cost of the checksum and of joining segments, in nanoseconds of thread CPU time; prints one line for each case;
//! `cargo bench -p netreeve-dataplane --bench offload`.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench prints its figures and may stop at trouble"
)]

use std::hint::black_box;
use std::time::Duration;

use netreeve_dataplane::frame::Batch;
use netreeve_dataplane::mem::Buf;
use netreeve_dataplane::offload::sum::Sum;
use netreeve_dataplane::offload::{At, Joiner, finish};
use netreeve_dataplane::port::Offloads;
use nix::time::{ClockId, clock_gettime};

fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// The best of several runs, in nanoseconds for one.
fn time(n: u32, mut f: impl FnMut()) -> f64 {
    let run = |f: &mut dyn FnMut()| {
        let from = now();
        (0..n).for_each(|_| f());
        (now() - from).as_secs_f64() * 1e9 / f64::from(n)
    };
    (0..7).map(|_| run(&mut f)).fold(f64::MAX, f64::min)
}

fn sums() {
    let memory = Buf::new(1 << 16).unwrap();
    for len in [64, 512, 1448, 65_000] {
        let seg = memory.seg(7, len);
        let ns = time(4_000_000 / len, || {
            let mut s = Sum::default();
            s.seg(black_box(&seg));
            black_box(s.partial());
        });
        println!("checksum of {len} bytes: {ns:.1} ns, {:.2} bytes/ns", f64::from(len) / ns);
    }
}

/// Frames of a TCP flow with right checksums, each in a chunk of its own.
fn train(memory: &Buf, n: u32) -> Batch {
    let mut b = Batch::new();
    for i in 0..n {
        let mut head = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0];
        head.extend(1500u16.to_be_bytes());
        head.extend(u16::try_from(i).unwrap().to_be_bytes());
        head.extend([0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let mut h = Sum::default();
        h.bytes(head.get(14..).unwrap());
        head.get_mut(24..26).unwrap().copy_from_slice(&h.finish());
        head.extend([1, 2, 3, 4]);
        head.extend((i * 1448).to_be_bytes());
        head.extend([0, 0, 0, 9, 0x80, 0x10, 1, 0, 0, 0, 0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1]);
        let seg = memory.seg(i * 2048 + 256, 1514);
        seg.skip(66).copy_in(&vec![5; 1448]);
        let mut s = Sum::default();
        s.bytes(head.get(26..34).unwrap());
        s.be16(6);
        s.be16(1480);
        s.bytes(head.get(34..).unwrap());
        s.seg(&seg.skip(66));
        head.get_mut(50..52).unwrap().copy_from_slice(&s.finish());
        seg.copy_in(&head);
        let f = b.push().unwrap();
        f.len = 1514;
        f.set_lead(seg);
        let n = f.head_from(&seg);
        b.push_seg(seg.skip(n));
    }
    b
}

fn joining() {
    let memory = Buf::new(64 * 2048).unwrap();
    for n in [2, 16, 64] {
        let (b, mut j, mut out) = (train(&memory, n), Joiner::default(), Batch::new());
        let ns = time(4_000, || {
            out.clear();
            assert!(j.plan(black_box(&b), Offloads::ALL));
            j.emit(&b, &mut out);
        });
        let each = ns / f64::from(n);
        println!("{n} segments joined into {}: {each:.1} ns each, {:.2} bytes/ns", out.len(), 1514.0 / each);
        let joined = out;
        let mut out = Batch::new();
        let ns = time(4_000, || {
            let mut at = At::default();
            while at.frame < joined.len() {
                out.clear();
                at = finish(black_box(&joined), at, Offloads::NONE, &mut out);
            }
        });
        println!("the same segmented: {:.1} ns each", ns / f64::from(n));
    }
}

fn main() {
    sums();
    joining();
}
