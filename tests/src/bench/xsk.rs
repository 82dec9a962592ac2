//! The raw limit of AF_XDP: the smallest loops that send, receive and reflect on one queue, over the bare kernel
//! interface (linux/if_xdp.h). No library, no port, no lane: what netreeve's `af-xdp` port is held against.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::xdp::{Mode, ToSocket};
use crate::sys::{self, Shm};

const RING: u32 = 2048;
const CHUNK: u32 = 2048;
const CHUNKS: u32 = 2 * RING;
const BATCH: usize = 64;

/// One of the four rings.
struct Ring {
    map: Shm,
    producer: usize,
    consumer: usize,
    desc: usize,
    entry: usize,
    ours: u32,
}

impl Ring {
    /// Maps the ring that lies at `page`; `at` is its quarter of XDP_MMAP_OFFSETS.
    fn new(s: &OwnedFd, page: i64, at: &[u8], entry: usize) -> io::Result<Self> {
        let word = |i: usize| {
            let b = at.get(i * 8..i * 8 + 8).and_then(|b| b.try_into().ok()).unwrap_or([0; 8]);
            usize::try_from(u64::from_ne_bytes(b)).unwrap_or(0)
        };
        let (producer, consumer, desc) = (word(0), word(1), word(2));
        let map = Shm::map(Some(s.as_fd()), desc + RING as usize * entry, page)?;
        Ok(Self { map, producer, consumer, desc, entry, ours: 0 })
    }

    fn slot(&self, i: u32) -> usize {
        self.desc + (i & (RING - 1)) as usize * self.entry
    }

    /// Entries that we may still produce.
    fn room(&self) -> usize {
        (RING - self.ours.wrapping_sub(self.map.load32(self.consumer)).min(RING)) as usize
    }

    /// Entries that wait for us.
    fn ready(&self) -> usize {
        self.map.load32(self.producer).wrapping_sub(self.ours).min(RING) as usize
    }

    /// Writes the next entry; seen by the kernel after `publish`.
    fn push(&mut self, addr: u64, len: u32) {
        let at = self.slot(self.ours);
        self.map.store64(at, addr);
        if self.entry == 16 {
            self.map.store64(at + 8, u64::from(len));
        }
        self.ours = self.ours.wrapping_add(1);
    }

    /// Reads the next entry: address and length.
    fn pop(&mut self) -> (u64, u32) {
        let at = self.slot(self.ours);
        self.ours = self.ours.wrapping_add(1);
        (self.map.load64(at), if self.entry == 16 { self.map.load32(at + 8) } else { 0 })
    }

    fn publish_produced(&self) {
        self.map.store32(self.producer, self.ours);
    }

    fn publish_consumed(&self) {
        self.map.store32(self.consumer, self.ours);
    }
}

/// A socket bound to queue 0 of an interface, with its own memory.
pub struct Xsk {
    fd: OwnedFd,
    umem: Shm,
    rx: Ring,
    tx: Ring,
    fill: Ring,
    done: Ring,
    free: Vec<u64>,
    _prog: Option<ToSocket>,
}

impl Xsk {
    /// Opens, binds with XDP_COPY and need_wakeup, fills, and attaches a program if frames are to be received.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(ifindex: u32, receive: Option<Mode>) -> io::Result<Self> {
        const OFFSETS: i32 = 1;
        const RX_RING: i32 = 2;
        const TX_RING: i32 = 3;
        const UMEM_REG: i32 = 4;
        const FILL: i32 = 5;
        const COMPLETION: i32 = 6;
        const MAX_TX_SKB_BUDGET: i32 = 9;
        const PAGES: [i64; 4] = [0, 0x8000_0000, 0x1_0000_0000, 0x1_8000_0000];
        const COPY_WAKEUP: u16 = 2 | 8;
        let fd = sys::xsk_socket()?;
        let umem = Shm::map(None, (CHUNKS * CHUNK) as usize, 0)?;
        let mut reg = [0_u8; 24];
        let mut words = reg.chunks_exact_mut(8);
        for v in [umem.addr(), umem.len() as u64, u64::from(CHUNK)] {
            words.next().unwrap_or_default().copy_from_slice(&v.to_ne_bytes());
        }
        sys::xdp_set(&fd, UMEM_REG, &reg)?;
        for ring in [FILL, COMPLETION, RX_RING, TX_RING] {
            sys::xdp_set(&fd, ring, &RING.to_ne_bytes())?;
        }
        // More than 32 frames a call, where the kernel knows the option: the limit should be the best one to be had.
        let _older_kernel = sys::xdp_set(&fd, MAX_TX_SKB_BUDGET, &256_u32.to_ne_bytes());
        let mut at = [0_u8; 128];
        sys::xdp_get(&fd, OFFSETS, &mut at)?;
        let (rx, rest) = at.split_at(32);
        let (tx, rest) = rest.split_at(32);
        let (fr, cr) = rest.split_at(32);
        let rx = Ring::new(&fd, PAGES[0], rx, 16)?;
        let tx = Ring::new(&fd, PAGES[1], tx, 16)?;
        let mut fill = Ring::new(&fd, PAGES[2], fr, 8)?;
        let done = Ring::new(&fd, PAGES[3], cr, 8)?;
        let mut free: Vec<u64> = (0..CHUNKS).map(|i| u64::from(i) * u64::from(CHUNK)).collect();
        if receive.is_some() {
            for addr in free.drain(..RING as usize) {
                fill.push(addr, 0);
            }
            fill.publish_produced();
        }
        bind(&fd, ifindex, COPY_WAKEUP)?;
        let prog = receive.map(|mode| ToSocket::attach(&fd, ifindex, mode)).transpose()?;
        Ok(Self { fd, umem, rx, tx, fill, done, free, _prog: prog })
    }

    /// Sends `frame` as fast as it goes until `stop`; `count` follows the completions.
    pub fn transmit(&mut self, frame: &[u8], count: &AtomicU64, stop: &AtomicBool) {
        let len = u32::try_from(frame.len()).unwrap_or(0);
        for &addr in &self.free {
            self.umem.put(usize::try_from(addr).unwrap_or(usize::MAX), frame);
        }
        while !stop.load(Ordering::Relaxed) {
            for _ in 0..self.tx.room().min(BATCH) {
                let Some(addr) = self.free.pop() else { break };
                self.tx.push(addr, len);
            }
            self.tx.publish_produced();
            sys::xdp_kick(&self.fd);
            let n = self.done.ready();
            for _ in 0..n {
                let (addr, _) = self.done.pop();
                self.free.push(addr);
            }
            self.done.publish_consumed();
            count.fetch_add(n as u64, Ordering::Relaxed);
        }
    }

    /// Receives as fast as it goes until `stop`, touching each frame's first word.
    pub fn receive(&mut self, count: &AtomicU64, stop: &AtomicBool) {
        let mut seen = 0_u64;
        while !stop.load(Ordering::Relaxed) {
            let n = self.rx.ready().min(BATCH).min(self.fill.room());
            for _ in 0..n {
                let (addr, _) = self.rx.pop();
                seen ^= self.umem.load64(usize::try_from(addr & !7).unwrap_or(usize::MAX));
                self.fill.push(addr & !u64::from(CHUNK - 1), 0);
            }
            if n > 0 {
                self.rx.publish_consumed();
                self.fill.publish_produced();
                count.fetch_add(n as u64, Ordering::Relaxed);
            }
        }
        std::hint::black_box(seen);
    }

    /// Sends every received frame back, addresses swapped, until `stop`.
    pub fn reflect(&mut self, count: &AtomicU64, stop: &AtomicBool) {
        let mut sent = 0_u32;
        while !stop.load(Ordering::Relaxed) {
            let n = self.rx.ready().min(BATCH).min(self.tx.room());
            for _ in 0..n {
                let (addr, len) = self.rx.pop();
                let at = usize::try_from(addr).unwrap_or(usize::MAX);
                let mut mac = [0; 12];
                self.umem.get(at, &mut mac);
                mac.rotate_left(6);
                self.umem.put(at, &mac);
                self.tx.push(addr, len);
            }
            if n > 0 {
                self.rx.publish_consumed();
                self.tx.publish_produced();
                sent = sent.wrapping_add(u32::try_from(n).unwrap_or(0));
            }
            if self.done.ours != sent {
                sys::xdp_kick(&self.fd);
            }
            let back = self.done.ready().min(self.fill.room());
            for _ in 0..back {
                let (addr, _) = self.done.pop();
                self.fill.push(addr & !u64::from(CHUNK - 1), 0);
            }
            if back > 0 {
                self.done.publish_consumed();
                self.fill.publish_produced();
                count.fetch_add(back as u64, Ordering::Relaxed);
            }
        }
    }
}

/// Binds to queue 0, patiently: a queue stays busy for some milliseconds after its last socket was closed.
fn bind(fd: &OwnedFd, ifindex: u32, flags: u16) -> io::Result<()> {
    let until = Instant::now() + Duration::from_secs(1);
    loop {
        match sys::xdp_bind(fd, ifindex, 0, flags) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(5));
            }
            r => return r,
        }
    }
}
