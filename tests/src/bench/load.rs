//! The load: driver, generator and sink, together on one processor.
//!
//! Two processors are all there is. A guest that only sends polls. Where frames are generated, the guest's driver sleeps
//! until a quarter of its ring is full and goes before the generator then (SCHED_FIFO), which takes all the rest. What
//! was offered and what was taken is counted, so that a figure that is the load's own limit can be called that.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::driver::Driver;
use super::host;
use super::xdp::Gen;

/// Frames sent at a time by a driver.
const BURST: usize = 32;
/// Generators that take turns, so that one works while the other waits to begin or to end.
const GENERATORS: usize = 2;
/// Frames that a guest lets come together before it wakes, a quarter of its ring.
const TOGETHER: u16 = 256;

/// Our source address in every frame.
pub const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// The frame that all benches send, of `size` bytes, 64 at least: of the "local experimental" type, so that every stack
/// drops it at once.
#[must_use]
pub fn frame(size: usize) -> Vec<u8> {
    let mut f = vec![0xff; 6];
    f.extend(MAC);
    f.extend([0x88, 0xb5]);
    f.resize(size.max(64), 0);
    f
}

/// What the load does.
pub enum Task {
    /// Sends from a guest, takes what comes.
    Send(Box<Driver>),
    /// Generates frames towards the netdev; a guest takes them.
    Generate(Gen, Box<Driver>),
    /// Generates frames towards the netdev; a guest sends them back.
    Reflect(Gen, Box<Driver>),
    /// Generates frames towards the netdev; what is measured takes them itself.
    Blast(Gen),
    /// Sends from one guest to another.
    Pass(Box<Driver>, Box<Driver>),
    /// Takes whatever comes to a guest, and does not compare it.
    Take(Box<Driver>),
    /// Sends from many guests in turn.
    Many(Vec<Driver>),
    /// Nothing: what is measured makes its frames itself.
    Idle,
}

/// What the load has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Frames offered: wanted to send, room or not.
    pub offered: AtomicU64,
    /// Frames that found room.
    pub accepted: AtomicU64,
    /// Frames that arrived at a guest.
    pub arrived: AtomicU64,
    /// Frames that arrived, but not as they were sent.
    pub wrong: AtomicU64,
}

/// The running load.
pub struct Load {
    /// Its counters.
    pub seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
    began: Instant,
}

impl Load {
    /// Starts the load on its processor, with frames of `size` bytes.
    #[must_use]
    pub fn start(task: Task, size: usize) -> Self {
        let f = frame(size);
        let mut load = Self {
            seen: Arc::new(Seen::default()),
            stop: Arc::new(AtomicBool::new(false)),
            threads: Vec::new(),
            began: Instant::now(),
        };
        match task {
            Task::Idle => {}
            Task::Blast(g) => load.generate(g, f),
            Task::Generate(g, d) => {
                let sent = f.clone();
                load.thread(move |seen, stop| guest(d, false, &sent, seen, stop));
                load.generate(g, f);
            }
            Task::Reflect(g, d) => {
                let sent = f.clone();
                load.thread(move |seen, stop| guest(d, true, &sent, seen, stop));
                load.generate(g, f);
            }
            Task::Send(mut d) => load.thread(move |seen, stop| {
                while !stop.load(Ordering::Relaxed) {
                    send(&mut d, &f, seen);
                    arrive(&mut d, BURST, &f, seen);
                }
                Ok(())
            }),
            Task::Take(mut d) => load.thread(move |seen, stop| {
                while !stop.load(Ordering::Relaxed) {
                    add(&seen.arrived, d.rx.recv(BURST, |_, _| ()));
                }
                Ok(())
            }),
            Task::Many(mut all) => load.thread(move |seen, stop| {
                while !stop.load(Ordering::Relaxed) {
                    for d in &mut all {
                        send(d, &f, seen);
                        d.rx.recv(BURST, |_, _| ());
                    }
                }
                Ok(())
            }),
            Task::Pass(mut from, mut to) => load.thread(move |seen, stop| {
                while !stop.load(Ordering::Relaxed) {
                    send(&mut from, &f, seen);
                    arrive(&mut to, BURST, &f, seen);
                }
                Ok(())
            }),
        }
        load
    }

    fn thread(&mut self, work: impl FnOnce(&Seen, &AtomicBool) -> io::Result<()> + Send + 'static) {
        let (seen, stop) = (Arc::clone(&self.seen), Arc::clone(&self.stop));
        self.threads.push(std::thread::spawn(move || {
            host::pin(host::LOAD)?;
            work(&seen, &stop)
        }));
    }

    fn generate(&mut self, g: Gen, f: Vec<u8>) {
        let (g, f) = (Arc::new(g), Arc::new(f));
        for _ in 0..GENERATORS {
            let (g, f) = (Arc::clone(&g), Arc::clone(&f));
            self.thread(move |seen, stop| {
                while !stop.load(Ordering::Relaxed) {
                    seen.offered.fetch_add(g.send(&f)?.into(), Ordering::Relaxed);
                }
                Ok(())
            });
        }
    }

    /// A part of it has died.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Ends it and says how long it lived.
    ///
    /// # Errors
    /// What it died of.
    pub fn end(self) -> io::Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        let mut result = Ok(());
        for t in self.threads {
            result = result.and(t.join().unwrap_or_else(|_| Err(io::Error::other("the load panicked"))));
        }
        result.map(|()| self.began.elapsed())
    }
}

fn add(c: &AtomicU64, n: usize) {
    c.fetch_add(n as u64, Ordering::Relaxed);
}

fn send(d: &mut Driver, f: &[u8], seen: &Seen) {
    add(&seen.offered, BURST);
    add(&seen.accepted, d.tx.send(f, BURST));
}

fn arrive(d: &mut Driver, max: usize, f: &[u8], seen: &Seen) -> usize {
    let (mut wrong, size) = (0, u32::try_from(f.len()).unwrap_or(0));
    let first = f.get(..64).unwrap_or_default();
    let n = d.rx.recv(max, |head, len| wrong += usize::from(head != first || len != size));
    add(&seen.arrived, n);
    add(&seen.wrong, wrong);
    n
}

/// A guest that takes frames, and sends them back if it `reflects`, asleep in between.
fn guest(mut d: Box<Driver>, reflects: bool, f: &[u8], seen: &Seen, stop: &AtomicBool) -> io::Result<()> {
    host::before_others()?;
    while !stop.load(Ordering::Relaxed) {
        let room = if reflects { d.tx.room().min(BURST) } else { BURST };
        if room == 0 {
            d.wait(0);
            continue;
        }
        let n = arrive(&mut d, room, f, seen);
        if reflects {
            add(&seen.accepted, d.tx.send(f, n));
        }
        if n == 0 {
            d.wait(TOGETHER);
        }
    }
    Ok(())
}
