//! The load: one thread on its own processor that is driver, generator and sink at once.
//!
//! Two processors are all there is, so the load's parts take turns by themselves instead of fighting for theirs. What
//! it offered and what was taken is counted, so that a figure that is the load's own limit can be called that.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use super::driver::Driver;
use super::host;
use super::xdp::Gen;

/// Frames sent at a time by a driver.
const BURST: usize = 32;
/// Frames that the generator sends at a time: it costs some 20 µs to start, and a guest's ring must hold them.
const STRETCH: u32 = 512;

/// The frame that all benches send: 64 bytes, of the "local experimental" type, so that every stack drops it at once.
#[must_use]
pub fn frame() -> [u8; 64] {
    let mut f = [0; 64];
    let (head, _) = f.split_at_mut(14);
    head.copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
    f
}

/// What the load does.
pub enum Task {
    /// Sends from a guest, takes what comes.
    Send(Driver),
    /// Generates frames towards the netdev; a guest takes them.
    Generate(Gen, Driver),
    /// Generates frames towards the netdev; a guest sends them back.
    Reflect(Gen, Driver),
    /// Generates frames towards the netdev; what is measured takes them itself.
    Blast(Gen),
    /// Sends from one guest to another.
    Pass(Driver, Driver),
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
    thread: JoinHandle<io::Result<()>>,
}

impl Load {
    /// Starts the load on its processor.
    #[must_use]
    pub fn start(task: Task) -> Self {
        let seen = Arc::new(Seen::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (s, e) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            host::pin(host::LOAD)?;
            work(task, &s, &e)
        });
        Self { seen, stop, thread }
    }

    /// Ends it.
    ///
    /// # Errors
    /// What it died of.
    pub fn end(self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| io::Error::other("the load panicked"))?
    }
}

fn work(mut task: Task, seen: &Seen, stop: &AtomicBool) -> io::Result<()> {
    let f = frame();
    let add = |c: &AtomicU64, n: usize| {
        c.fetch_add(n as u64, Ordering::Relaxed);
    };
    let arrive = |d: &mut Driver, max: usize| {
        let mut wrong = 0;
        let n = d.rx.recv(max, |head, len| wrong += usize::from(head != &f || len != 64));
        add(&seen.arrived, n);
        add(&seen.wrong, wrong);
        n
    };
    while !stop.load(Ordering::Relaxed) {
        match &mut task {
            Task::Send(d) => {
                add(&seen.offered, BURST);
                add(&seen.accepted, d.tx.send(&f, BURST));
                arrive(d, BURST);
            }
            Task::Pass(from, to) => {
                add(&seen.offered, BURST);
                add(&seen.accepted, from.tx.send(&f, BURST));
                arrive(to, BURST);
            }
            Task::Generate(g, d) => {
                g.send(STRETCH)?;
                add(&seen.offered, STRETCH as usize);
                while arrive(d, 256) > 0 {}
            }
            Task::Reflect(g, d) => {
                g.send(STRETCH)?;
                add(&seen.offered, STRETCH as usize);
                loop {
                    let n = arrive(d, 64);
                    add(&seen.accepted, d.tx.send(&f, n));
                    if n == 0 {
                        break;
                    }
                }
            }
            Task::Blast(g) => {
                g.send(STRETCH)?;
                add(&seen.offered, STRETCH as usize);
            }
            Task::Idle => std::thread::sleep(std::time::Duration::from_millis(5)),
        }
    }
    Ok(())
}
