//! Starts who is measured on its processor, the load on the other, and takes one sample.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use super::case::{Case, Path, Way, Who};
use super::driver::Driver;
use super::load::{Load, Task, frame};
use super::peer::{self, Ours};
use super::xdp::{Gen, Mode};
use super::xsk::Xsk;
use super::{host, tap};
use crate::proc::Proc;
use crate::{Because, Done, bins, trouble};

/// Entries of the guest's rings: what QEMU allows at most for receive, and its default for transmit.
const RX_RING: u16 = 1024;
const TX_RING: u16 = 256;

/// One window's figures.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Frames that went all the way, in millions a second.
    pub mpps: f64,
    /// CPU time in nanoseconds that who is measured spent for one of them.
    pub cpu_ns: f64,
    /// Share of its processor that who is measured had.
    pub share: f64,
    /// The load could not offer more (nearly all that it offered went through, or who is measured slept a quarter of
    /// the time for want of work): the figure is the load's limit.
    pub load_bound: bool,
}

/// The benches' ground: netreeve's programs and helper in this namespace.
pub struct Bench {
    ours: Ours,
    count: u32,
}

impl Drop for Bench {
    fn drop(&mut self) {
        peer::remove_all();
    }
}

/// Who is measured, running.
enum Running {
    Thread { id: i32, stop: Arc<AtomicBool>, count: Arc<AtomicU64>, thread: JoinHandle<Done> },
    Process(Box<Proc>),
}

impl Running {
    fn cpu_ns(&self) -> u64 {
        match self {
            Self::Thread { id, .. } => host::cpu_ns(*id, false),
            Self::Process(p) => host::family(p.pid()).iter().map(|&id| host::cpu_ns(id, true)).sum(),
        }
    }

    fn end(self) -> Done {
        match self {
            Self::Thread { stop, thread, .. } => {
                stop.store(true, Ordering::Relaxed);
                thread.join().map_err(|_| trouble("the raw loop panicked"))?
            }
            Self::Process(mut p) => {
                if !p.alive() {
                    return Err(trouble(format!("it ended by itself; it said:\n{}", p.tail())));
                }
                // Killed with its group when dropped; the namespace's objects are taken away by `Bench::sample`.
                Ok(())
            }
        }
    }
}

impl Bench {
    /// A bench in this namespace.
    ///
    /// # Errors
    /// The helper did not start.
    pub fn new() -> Done<Self> {
        Ok(Self { ours: Ours::new()?, count: 0 })
    }

    /// Takes one sample over `window`.
    ///
    /// # Errors
    /// Something did not start, or no frame came through.
    pub fn sample(&mut self, case: &Case, who: Who, window: Duration) -> Done<Sample> {
        self.count += 1;
        host::make_pair().because("the veth pair")?;
        if case.path == Path::Xdp(Mode::Skb) {
            // The generator's frames reach a veth without a driver program only by its NAPI.
            host::run("ethtool", "-K v0 gro on").because("v0's NAPI")?;
        }
        let before = host::links();
        let socks = self.ours.sockets(&self.count.to_string());
        let result = self.run(case, who, &socks, &before, window);
        // The pair's end takes any program along that a killed peer left on it.
        let gone = host::ip("link del v0").because("take the veth pair away");
        for s in &socks {
            // A server that was killed leaves its socket; others do not.
            let _gone = std::fs::remove_file(s);
        }
        result.because(format!("{}, {}", case.name(), who.name())).and_then(|s| gone.map(|()| s))
    }

    fn run(
        &self,
        case: &Case,
        who: Who,
        socks: &[PathBuf; 2],
        before: &[String],
        window: Duration,
    ) -> Done<Sample> {
        host::pin(host::MEASURED).because("pin")?;
        let running = start(case, who, socks, &self.ours);
        host::unpin().because("unpin")?;
        let running = running?;
        let sample = self.watch(case, who, socks, before, window, &running);
        let said = match &running {
            Running::Process(p) if sample.is_err() => format!("; it said:\n{}", p.tail()),
            _ => String::new(),
        };
        let end = running.end();
        let sample = sample.map_err(|e| trouble(format!("{e}{said}")))?;
        end.map(|()| sample)
    }

    #[allow(clippy::too_many_arguments, reason = "the pieces of one sample, used here alone")]
    fn watch(
        &self,
        case: &Case,
        who: Who,
        socks: &[PathBuf; 2],
        before: &[String],
        window: Duration,
        running: &Running,
    ) -> Done<Sample> {
        let far = match case.path {
            Path::Xdp(_) => "v1".to_owned(),
            Path::Tap => new_link(before)?,
            Path::Vhost => String::new(),
        };
        let load = Load::start(task(case, who, socks, &far)?);
        let count = || -> u64 {
            match (case.path, case.way, running) {
                (Path::Xdp(_) | Path::Tap, Way::In, Running::Thread { count, .. }) => {
                    count.load(Ordering::Relaxed)
                }
                (Path::Xdp(_), Way::In, Running::Process(p)) if who == Who::XskRs => last_count(p),
                (Path::Vhost, ..) | (_, Way::In, _) => load.seen.arrived.load(Ordering::Relaxed),
                _ => host::received(&far),
            }
        };
        let warm = warm_up(&count, &load);
        let at = |c: &AtomicU64| c.load(Ordering::Relaxed);
        let (f0, c0, t0) = (count(), running.cpu_ns(), Instant::now());
        if warm.is_ok() {
            sleep(window);
        }
        let (f1, c1, t1) = (count(), running.cpu_ns(), t0.elapsed());
        let seen = Arc::clone(&load.seen);
        let life = load.end().because("the load")?;
        warm?;
        let wrong = at(&seen.wrong);
        if wrong > 0 {
            return Err(trouble(format!("{wrong} frames arrived damaged")));
        }
        let frames = f1.saturating_sub(f0);
        if frames == 0 {
            return Err(trouble("no frame came through in the window"));
        }
        let cpu = real(c1.saturating_sub(c0));
        Ok(Sample {
            mpps: real(frames) / t1.as_secs_f64() / 1e6,
            cpu_ns: cpu / real(frames),
            share: cpu / 1e9 / t1.as_secs_f64(),
            load_bound: (who == Who::Netreeve && cpu / 1e9 / t1.as_secs_f64() < 0.75)
                || real(frames) / t1.as_secs_f64() > 0.9 * real(at(&seen.offered)) / life.as_secs_f64()
                    && at(&seen.offered) > 0,
        })
    }
}

/// A count as a real number; counts stay far below 2^53.
#[allow(clippy::cast_precision_loss, reason = "counts of one run are far below 2^53")]
fn real(n: u64) -> f64 {
    n as f64
}

/// Waits for the first thousand frames and lets it settle.
fn warm_up(count: &impl Fn() -> u64, load: &Load) -> Done {
    let (first, until) = (count(), Instant::now() + Duration::from_secs(15));
    while count() < first + 1000 {
        if load.ended() {
            return Err(trouble("the load ended early"));
        }
        if Instant::now() > until {
            return Err(trouble("no frames came through within 15 s"));
        }
        sleep(Duration::from_millis(10));
    }
    sleep(Duration::from_millis(200));
    Ok(())
}

/// The tap that came up.
fn new_link(before: &[String]) -> Done<String> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        if let Some(new) = host::links().into_iter().find(|l| !before.contains(l)) {
            host::silence(&new).because("silence the tap")?;
            host::ip(&format!("link set {new} up promisc on")).because("the tap")?;
            return Ok(new);
        }
        if Instant::now() > until {
            return Err(trouble("no tap appeared within 10 s"));
        }
        sleep(Duration::from_millis(10));
    }
}

/// The load that belongs to the case.
fn task(case: &Case, who: Who, socks: &[PathBuf; 2], far: &str) -> Done<Task> {
    let guest = |i: usize, sleeps: bool| -> Done<Box<Driver>> {
        let path = socks.get(i).because("two sockets")?;
        Driver::connect(path, RX_RING, TX_RING, sleeps).map(Box::new).because("the guest's driver")
    };
    let source = || -> Done<Gen> {
        let ifindex = host::ifindex(far).because("the generator")?;
        // What XDP redirects to a tap lacks the packet information that DPDK's tap asks for.
        let packet = case.path == Path::Tap && who == Who::Dpdk;
        let made = if packet { Gen::packet(ifindex) } else { Gen::kernel(ifindex) };
        made.because("the generator")
    };
    Ok(match (case.path, case.way, who) {
        (Path::Vhost, ..) => Task::Pass(guest(0, false)?, guest(1, false)?),
        (_, Way::Out, Who::Raw | Who::XskRs) => Task::Idle,
        (_, Way::In | Way::Both, Who::Raw | Who::XskRs) => Task::Blast(source()?),
        (_, Way::Out, _) => Task::Send(guest(0, false)?),
        (_, Way::In, _) => Task::Generate(source()?, guest(0, true)?),
        (_, Way::Both, _) => Task::Reflect(source()?, guest(0, true)?),
    })
}

/// Starts who is measured. The calling thread is pinned, and so is what it starts.
fn start(case: &Case, who: Who, socks: &[PathBuf; 2], ours: &Ours) -> Done<Running> {
    let process = |p: Done<Proc>| Ok(Running::Process(Box::new(p?)));
    match (who, case.path) {
        (Who::Raw, Path::Xdp(mode)) => raw_xdp(mode, case.way),
        (Who::Raw, _) => raw_tap(case.way),
        (Who::XskRs, Path::Xdp(mode)) => {
            let what = match case.way {
                Way::Out => "source",
                Way::In => "sink",
                Way::Both => "reflect",
            };
            let mut c = Command::new(peer::xsk_peer()?);
            c.args([what, "v0", mode.name()]);
            process(Proc::spawn("xsk-peer", c))
        }
        (Who::XskRs, _) => Err(trouble("xsk-rs has nothing to do here")),
        (Who::Dpdk, path) => process(peer::testpmd(path, socks)),
        (Who::Netreeve, path) => process(ours.run(path, socks, &[], &[])),
        (Who::Busy, path) => process(ours.run(path, socks, &[], &["--busy-poll", "200"])),
    }
}

/// A loop in a thread of this process.
fn raw(work: impl FnOnce(&AtomicU64, &AtomicBool) -> Done + Send + 'static) -> Done<Running> {
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (s, c) = (Arc::clone(&stop), Arc::clone(&count));
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        tell.send(nix::unistd::gettid().as_raw()).because("say who I am")?;
        work(&c, &s)
    });
    let id = told.recv().because("the raw loop's thread")?;
    Ok(Running::Thread { id, stop, count, thread })
}

fn raw_xdp(mode: Mode, way: Way) -> Done<Running> {
    let ifindex = host::ifindex("v0").because("the raw loop")?;
    let receive = (way != Way::Out).then_some(mode);
    let mut xsk = Xsk::open(ifindex, receive).because("the raw AF_XDP socket")?;
    raw(move |count, stop| {
        match way {
            Way::Out => xsk.transmit(&frame(), count, stop),
            Way::In => xsk.receive(count, stop),
            Way::Both => xsk.reflect(count, stop),
        }
        Ok(())
    })
}

fn raw_tap(way: Way) -> Done<Running> {
    let fd = tap::open("nt0").because("the raw tap")?;
    raw(move |count, stop| {
        if way == Way::Out {
            tap::transmit(fd, &frame(), count, stop);
        } else {
            tap::receive(fd, count, stop);
        }
        Ok(())
    })
}

/// The count in the last line that xsk-peer printed.
fn last_count(p: &Proc) -> u64 {
    let lines = p.lines();
    let count = |l: &crate::proc::Line| l.text.strip_prefix("frames ")?.split(' ').next()?.parse().ok();
    lines.iter().rev().find_map(count).unwrap_or(0)
}

/// Whether everything that a run needs is there; the first thing that is missing is the error.
///
/// # Errors
/// What is missing, and how to get it.
pub fn check() -> Done {
    for p in ["dpdk-testpmd", "ip", "ethtool"] {
        bins::peer(p)?;
    }
    for p in ["netreeve", "netreeve-dataplane", "netreeve-helper"] {
        bins::ours(p)?;
    }
    peer::xsk_peer().map(drop)
}
