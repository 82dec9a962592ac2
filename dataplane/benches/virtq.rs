//! Cost of a frame on either side of a ring, split and packed: nanoseconds of thread CPU time, the other side's share
//! taken out. Prints one line for each case.
//!
//! `cargo bench -p netreeve-dataplane --bench virtq -- [split|packed] [ring|transmit|receive|land|pass|cross] [batches]`;
//! with one case and a number of batches it is what to run under an instruction counter.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench prints its figures and may stop at trouble"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netreeve_dataplane::frame::Batch;
use netreeve_dataplane::mem::guest::{GuestMemory, Layout, Region};
use netreeve_dataplane::mem::split::RingAddr;
use netreeve_dataplane::stats::Stats;
use netreeve_dataplane::virtq::{Buf, Chains, Device, Driver, Giver, Taker, Terms, terms::feature as f};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

const RING: u16 = 256;
const BATCHES: usize = 40_000;
const BURST: usize = 32;
const MEMORY: u64 = 2 << 20;
const BUFS: u64 = 0x1_0000;

fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// What was asked for on the command line.
struct Asked {
    words: Vec<String>,
    batches: usize,
}

impl Asked {
    fn read() -> Self {
        let args: Vec<_> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
        let batches = args.iter().find_map(|a| a.parse().ok()).unwrap_or(BATCHES);
        Self { words: args.into_iter().filter(|a| a.parse::<usize>().is_err()).collect(), batches }
    }

    /// One of these words was named, or none of its kind was.
    fn wants(&self, name: &str, kind: &[&str]) -> bool {
        let named = |n: &&&str| self.words.iter().any(|w| w == **n);
        kind.iter().find(named).is_none_or(|_| self.words.iter().any(|w| w == name))
    }

    /// Runs `round` many times and gives the nanoseconds for one frame.
    fn measure(&self, mut round: impl FnMut() -> usize) -> f64 {
        for _ in 0..self.batches / 40 {
            round();
        }
        let mut runs: Vec<f64> = (0..5)
            .map(|_| {
                let start = now();
                let frames: usize = (0..self.batches / 5).map(|_| round()).sum();
                (now() - start).as_nanos() as f64 / frames as f64
            })
            .collect();
        runs.sort_by(f64::total_cmp);
        runs.get(runs.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

struct Side {
    driver: Driver,
    device: Device,
    terms: Terms,
    at: u64,
}

impl Side {
    fn new(packed: bool) -> Self {
        let fd = memfd_create(c"bench", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&fd, i64::try_from(MEMORY).unwrap()).unwrap();
        let layout = Layout { gpa: 0, uva: 0, len: MEMORY, offset: 0 };
        let memory = Arc::new(GuestMemory::new(vec![Region::map(layout, fd).unwrap()]).unwrap());
        let format = if packed { f::RING_PACKED } else { 0 };
        let terms = Terms::of(f::VERSION_1 | f::MRG_RXBUF | f::CSUM | f::GUEST_CSUM | f::EVENT_IDX | format);
        let at = RingAddr { desc: 0, avail: 0x2000, used: 0x4000 };
        let mut driver = Driver::new(&memory, RING, at, &terms).unwrap();
        driver.hush();
        let base = u16::try_from(driver.base() & 0xffff).unwrap();
        let device = Device::new(&memory, RING, at, base, &terms).unwrap();
        Self { driver, device, terms, at: 0 }
    }
}

/// Lends a burst of buffers to the device.
fn lend(driver: &mut Driver, at: &mut u64, len: u32, write: bool) {
    for _ in 0..BURST {
        let addr = BUFS + (*at % u64::from(RING)) * 2048;
        *at += 1;
        driver.add(&[Buf { addr, len, write }]).unwrap();
    }
    driver.publish();
}

fn reclaim(driver: &mut Driver) -> usize {
    std::iter::from_fn(|| driver.take()).count()
}

/// The rings alone. Gives the driver's share: lend and take back, with the device only completing.
fn ring(asked: &Asked, packed: bool) -> f64 {
    let Side { mut driver, mut device, mut at, .. } = Side::new(packed);
    let mut chains = Chains::default();
    let both = asked.measure(|| {
        lend(&mut driver, &mut at, 76, false);
        chains.clear();
        device.fetch(&mut chains, BURST);
        device.complete(chains.all());
        reclaim(&mut driver)
    });
    // The same chains fetched and put back again and again.
    lend(&mut driver, &mut at, 76, false);
    let fetch = asked.measure(|| {
        chains.clear();
        let n = device.fetch(&mut chains, BURST);
        device.unfetch(chains.all());
        n
    });
    println!("  both sides of the bare ring          {both:6.1} ns/frame");
    println!("  the device's fetching alone          {fetch:6.1} ns/frame");
    // Completing costs about as much as fetching at most.
    (both - 2.0 * fetch).max(0.0)
}

fn line(what: &str, len: u32, ns: f64, driver: f64) {
    println!("  {what} {len:5} bytes        {ns:6.1} ns/frame, without the driver {:6.1}", ns - driver);
}

fn transmit(asked: &Asked, packed: bool, len: u32, share: f64) {
    let Side { mut driver, device, terms, mut at } = Side::new(packed);
    let (mut giver, mut b, mut stats) = (Giver::new(device), Batch::new(), Stats::default());
    let ns = asked.measure(|| {
        lend(&mut driver, &mut at, 12 + len, false);
        b.clear();
        giver.recv(&mut b, &terms, &mut stats);
        let n = b.len();
        giver.release(&b, n, &mut stats);
        reclaim(&mut driver)
    });
    line("guest transmits", len, ns, share);
}

fn receive(asked: &Asked, packed: bool, len: u32, share: f64) {
    let Side { mut driver, device, terms, mut at } = Side::new(packed);
    let (mut taker, mut stats) = (Taker::new(device), Stats::default());
    // The frames come out of another guest's memory.
    let mut other = Side::new(packed);
    lend(&mut other.driver, &mut other.at, 12 + len, false);
    let (mut giver, mut b) = (Giver::new(other.device), Batch::new());
    giver.recv(&mut b, &terms, &mut Stats::default());
    let ns = asked.measure(|| {
        lend(&mut driver, &mut at, 2048, true);
        let (n, _) = taker.send(&b, &terms, &mut stats);
        assert_eq!(n, BURST);
        reclaim(&mut driver)
    });
    line("guest receives (copied)", len, ns, share);
}

fn land(asked: &Asked, packed: bool, len: u32, share: f64) {
    let Side { mut driver, device, terms, mut at } = Side::new(packed);
    let (mut taker, mut b, mut stats) = (Taker::new(device), Batch::new(), Stats::default());
    let mut room = Vec::new();
    let ns = asked.measure(|| {
        lend(&mut driver, &mut at, 2048, true);
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
    line("guest receives (landed)", len, ns, share);
}

/// From guest to guest: both drivers' shares are in it.
fn pass(asked: &Asked, packed: bool, len: u32, share: f64) {
    let (mut from, mut to) = (Side::new(packed), Side::new(packed));
    let (mut giver, mut taker) = (Giver::new(from.device), Taker::new(to.device));
    let (mut b, mut stats) = (Batch::new(), Stats::default());
    let ns = asked.measure(|| {
        lend(&mut from.driver, &mut from.at, 12 + len, false);
        lend(&mut to.driver, &mut to.at, 2048, true);
        b.clear();
        giver.recv(&mut b, &from.terms, &mut stats);
        let (n, _) = taker.send(&b, &to.terms, &mut stats);
        giver.release(&b, n, &mut stats);
        reclaim(&mut from.driver);
        reclaim(&mut to.driver)
    });
    line("guest to guest ", len, ns, 2.0 * share);
}

/// Runs the driver on the second processor and `round` on the first until it has seen enough frames; millions a second.
fn across(asked: &Asked, mut drive: impl FnMut() + Send, mut round: impl FnMut() -> usize) -> f64 {
    let stop = AtomicBool::new(false);
    let pin = |cpu: usize| {
        let mut set = CpuSet::new();
        set.set(cpu).unwrap();
        // With one processor they take turns, and the figure says so.
        let _one = sched_setaffinity(Pid::from_raw(0), &set);
    };
    std::thread::scope(|s| {
        s.spawn(|| {
            pin(1);
            while !stop.load(Ordering::Relaxed) {
                drive();
            }
        });
        pin(0);
        let frames = asked.batches * BURST;
        let mut runs: Vec<f64> = (0..5)
            .map(|_| {
                let (start, mut n) = (Instant::now(), 0);
                while n < frames {
                    n += round();
                }
                n as f64 / start.elapsed().as_secs_f64() / 1e6
            })
            .collect();
        stop.store(true, Ordering::Relaxed);
        runs.sort_by(f64::total_cmp);
        runs.get(runs.len() / 2).copied().unwrap_or(f64::NAN)
    })
}

/// Driver and device on a processor each: what the ring's words and the buffers cost on their way between caches.
fn cross(asked: &Asked, packed: bool, len: u32, _share: f64) {
    let rate = cross_transmit(asked, packed, len);
    println!("  guest transmits {len:5} bytes, a processor each  {rate:6.1} Mframes/s");
    let rate = cross_receive(asked, packed, len);
    println!("  guest receives  {len:5} bytes, a processor each  {rate:6.1} Mframes/s");
}

fn place(id: u16) -> u64 {
    BUFS + u64::from(id) * 2048
}

/// A frame is written, lent, and its buffer taken back.
fn cross_transmit(asked: &Asked, packed: bool, len: u32) -> f64 {
    let side = Side::new(packed);
    let (mut driver, terms, memory) = (side.driver, side.terms, side.device.memory().clone());
    let bytes = vec![0x55u8; len as usize];
    let mut free: Vec<u16> = (0..RING).collect();
    let mut names = vec![0u16; usize::from(RING)];
    let drive = || {
        while let Some((name, _)) = driver.take() {
            free.extend(names.get(usize::from(name)));
        }
        for id in free.drain(free.len() - free.len().min(BURST)..) {
            let addr = place(id);
            if let Some(seg) = memory.at_gpa(addr, 12 + len) {
                seg.set_words(0, 0);
                seg.skip(12).copy_in(&bytes);
            }
            let name = driver.add(&[Buf { addr, len: 12 + len, write: false }]).unwrap();
            if let Some(n) = names.get_mut(usize::from(name)) {
                *n = id;
            }
        }
        driver.publish();
    };
    let (mut giver, mut b, mut stats) = (Giver::new(side.device), Batch::new(), Stats::default());
    across(asked, drive, || {
        b.clear();
        giver.recv(&mut b, &terms, &mut stats);
        let n = b.len();
        giver.release(&b, n, &mut stats);
        n
    })
}

/// A buffer is read and lent again.
fn cross_receive(asked: &Asked, packed: bool, len: u32) -> f64 {
    let side = Side::new(packed);
    let (mut driver, terms, memory) = (side.driver, side.terms, side.device.memory().clone());
    let mut names = vec![0u16; usize::from(RING)];
    for id in 0..RING {
        let name = driver.add(&[Buf { addr: place(id), len: 2048, write: true }]).unwrap();
        if let Some(n) = names.get_mut(usize::from(name)) {
            *n = id;
        }
    }
    driver.publish();
    let mut sink = vec![0u8; len as usize];
    let drive = || {
        for _ in 0..BURST {
            let Some((name, _)) = driver.take() else { break };
            let addr = place(names.get(usize::from(name)).copied().unwrap_or(0));
            if let Some(seg) = memory.at_gpa(addr, 12 + len) {
                seg.skip(12).copy_out(&mut sink);
            }
            let again = driver.add(&[Buf { addr, len: 2048, write: true }]).unwrap();
            assert_eq!(again, name, "the name freed last is the next");
        }
        driver.publish();
    };
    let (mut taker, mut stats) = (Taker::new(side.device), Stats::default());
    let mut other = Side::new(packed);
    lend(&mut other.driver, &mut other.at, 12 + len, false);
    let (mut giver, mut b) = (Giver::new(other.device), Batch::new());
    giver.recv(&mut b, &terms, &mut Stats::default());
    across(asked, drive, || taker.send(&b, &terms, &mut stats).0)
}

type Case = fn(&Asked, bool, u32, f64);

fn main() {
    let asked = Asked::read();
    let cases: [(&str, Case); 5] =
        [("transmit", transmit), ("receive", receive), ("land", land), ("pass", pass), ("cross", cross)];
    let kinds = ["ring", "transmit", "receive", "land", "pass", "cross"];
    for (format, packed) in [("split", false), ("packed", true)] {
        if !asked.wants(format, &["split", "packed"]) {
            continue;
        }
        println!("{format}, {RING} places, {BURST} frames at a time");
        let share = if asked.wants("ring", &kinds) { ring(&asked, packed) } else { 0.0 };
        for (_, case) in cases.iter().filter(|(name, _)| asked.wants(name, &kinds)) {
            for len in [64, 1500] {
                case(&asked, packed, len, share);
            }
        }
    }
}
