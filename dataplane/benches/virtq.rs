//! Cost of a frame on the device side of a split ring: nanoseconds of thread CPU time, with the driver's share taken
//! out. Prints one line for each case; `cargo bench -p netreeve-dataplane --bench virtq`.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench prints its figures and may stop at trouble"
)]

use std::sync::Arc;
use std::time::Duration;

use netreeve_dataplane::frame::Batch;
use netreeve_dataplane::mem::guest::{GuestMemory, Layout, Region};
use netreeve_dataplane::mem::split::{RingAddr, SplitRing};
use netreeve_dataplane::stats::Stats;
use netreeve_dataplane::virtq::{Buf, Chains, Device, Driver, Giver, Taker, Terms, terms::feature as f};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::time::{ClockId, clock_gettime};

const RING: u16 = 256;
const BATCHES: usize = 40_000;
const BURST: usize = 32;
const MEMORY: u64 = 2 << 20;
const BUFS: u64 = 0x1_0000;

fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

struct Side {
    driver: Driver,
    device: Device,
    terms: Terms,
}

fn side() -> Side {
    let fd = memfd_create(c"bench", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&fd, i64::try_from(MEMORY).unwrap()).unwrap();
    let layout = Layout { gpa: 0, uva: 0, len: MEMORY, offset: 0 };
    let memory = Arc::new(GuestMemory::new(vec![Region::map(layout, fd).unwrap()]).unwrap());
    let terms = Terms::of(f::VERSION_1 | f::MRG_RXBUF | f::CSUM | f::GUEST_CSUM | f::EVENT_IDX);
    let at = RingAddr { desc: 0, avail: 0x2000, used: 0x4000 };
    let ring = || SplitRing::new(memory.clone(), RING, at).unwrap();
    Side {
        driver: Driver::new(ring(), true),
        device: Device::new(&memory, RING, at, 0, &terms).unwrap(),
        terms,
    }
}

/// Lends `n` buffers to the device.
fn lend(driver: &mut Driver, n: usize, at: &mut u64, len: u32, write: bool) {
    for _ in 0..n {
        let addr = BUFS + (*at % u64::from(RING)) * 2048;
        *at += 1;
        driver.add(&[Buf { addr, len, write }]).unwrap();
    }
    driver.publish();
}

fn reclaim(driver: &mut Driver) -> usize {
    std::iter::from_fn(|| driver.take()).count()
}

/// Runs `round` many times and gives the nanoseconds for one frame.
fn measure(mut round: impl FnMut() -> usize) -> f64 {
    let batches = std::env::args().skip(1).find_map(|a| a.parse().ok()).unwrap_or(BATCHES);
    for _ in 0..batches / 40 {
        round();
    }
    let mut runs: Vec<f64> = (0..5)
        .map(|_| {
            let start = now();
            let frames: usize = (0..batches / 5).map(|_| round()).sum();
            (now() - start).as_nanos() as f64 / frames as f64
        })
        .collect();
    runs.sort_by(f64::total_cmp);
    runs.get(runs.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The driver's own share: lend and take back, with the device only completing.
fn driver_alone() -> f64 {
    let Side { mut driver, mut device, .. } = side();
    let (mut at, mut chains) = (0, Chains::default());
    let both = measure(|| {
        lend(&mut driver, BURST, &mut at, 76, false);
        chains.clear();
        device.fetch(&mut chains, BURST);
        device.complete(chains.all());
        reclaim(&mut driver)
    });
    // The bare ring on the device side, measured by walking the same chains again and again.
    lend(&mut driver, BURST, &mut at, 76, false);
    let bare = measure(|| {
        chains.clear();
        let n = device.fetch(&mut chains, BURST);
        device.unfetch(chains.all());
        n
    });
    println!("driver and bare device ring           {both:6.1} ns/frame");
    println!("fetch alone                           {bare:6.1} ns/frame");
    both - bare
}

fn transmit(len: u32, driver_share: f64) {
    let Side { mut driver, device, terms } = side();
    let (mut giver, mut b, mut stats, mut at) = (Giver::new(device), Batch::new(), Stats::default(), 0);
    let ns = measure(|| {
        lend(&mut driver, BURST, &mut at, 12 + len, false);
        b.clear();
        giver.recv(&mut b, &terms, &mut stats);
        let n = b.len();
        giver.release(&b, n, &mut stats);
        reclaim(&mut driver)
    });
    println!(
        "guest transmits {len:5} bytes           {ns:6.1} ns/frame, device side {:6.1}",
        ns - driver_share
    );
}

fn receive(len: usize, driver_share: f64) {
    let Side { mut driver, device, terms } = side();
    let (mut taker, mut stats, mut at) = (Taker::new(device), Stats::default(), 0);
    // The frames come out of another guest's memory.
    let Side { driver: mut other, device, .. } = side();
    let (mut giver, mut b, mut from) = (Giver::new(device), Batch::new(), 0);
    lend(&mut other, BURST, &mut from, 12 + u32::try_from(len).unwrap(), false);
    giver.recv(&mut b, &terms, &mut Stats::default());
    let ns = measure(|| {
        lend(&mut driver, BURST, &mut at, 2048, true);
        let (n, _) = taker.send(&b, &terms, &mut stats);
        assert_eq!(n, BURST);
        reclaim(&mut driver)
    });
    println!(
        "guest receives  {len:5} bytes (copied)  {ns:6.1} ns/frame, device side {:6.1}",
        ns - driver_share
    );
}

fn land(len: u32, driver_share: f64) {
    let Side { mut driver, device, terms } = side();
    let (mut taker, mut b, mut stats, mut at) = (Taker::new(device), Batch::new(), Stats::default(), 0);
    let mut room = Vec::new();
    let ns = measure(|| {
        lend(&mut driver, BURST, &mut at, 2048, true);
        b.clear();
        taker.lend(&mut b, &terms, &mut stats);
        for _ in 0..BURST {
            room.clear();
            b.landing.room(len, &mut room);
            let home = b.landing.land(len);
            if let Some(fr) = b.push() {
                fr.len = len;
                fr.home = home;
                if let Some(s) = room.first() {
                    fr.head_from(s);
                }
            }
        }
        let (n, _) = taker.send(&b, &terms, &mut stats);
        assert_eq!(n, BURST);
        reclaim(&mut driver)
    });
    println!(
        "guest receives  {len:5} bytes (landed)  {ns:6.1} ns/frame, device side {:6.1}",
        ns - driver_share
    );
}

fn main() {
    let only = std::env::args().skip(1).find(|a| a.chars().all(char::is_alphabetic));
    let wanted = |name: &str| only.as_ref().is_none_or(|o| o == name);
    let share = if wanted("ring") { driver_alone() } else { 0.0 };
    for len in [64, 1500] {
        if wanted("transmit") {
            transmit(len, share);
        }
    }
    for len in [64, 1500] {
        if wanted("receive") {
            receive(usize::try_from(len).unwrap(), share);
        }
    }
    for len in [64, 1500] {
        if wanted("land") {
            land(len, share);
        }
    }
}
