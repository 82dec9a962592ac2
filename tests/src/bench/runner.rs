//! Starts who is measured on its processor, the load on the other, and takes one sample.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use super::case::{Case, Form, Path, Way, Who};
use super::driver::{Driver, Make};
use super::figures::{Miss, Taken};
use super::load::{Load, Task, frame};
use super::peer::{self, Ours};
use super::row::{Row, Value};
use super::xdp::{Gen, Mode};
use super::xsk::Xsk;
use super::{alone, host, tap};
use crate::proc::Proc;
use crate::{Because, Done, bins, trouble};

/// The benches' ground: netreeve's programs and helper in this namespace.
pub struct Bench {
    /// netreeve's programs.
    pub ours: Ours,
    count: u32,
}

impl Drop for Bench {
    fn drop(&mut self) {
        peer::remove_all();
    }
}

/// Who is measured, running.
pub enum Running {
    /// A loop of ours.
    #[allow(missing_docs, reason = "made and read in this file alone")]
    Thread { id: i32, stop: Arc<AtomicBool>, count: Arc<AtomicU64>, thread: JoinHandle<Done> },
    /// A program.
    Process(Box<Proc>),
}

impl Running {
    /// CPU time used so far, by all of its processes.
    #[must_use]
    pub fn cpu_ns(&self) -> u64 {
        match self {
            Self::Thread { id, .. } => host::cpu_ns(*id, false),
            Self::Process(p) => host::family(p.pid()).iter().map(|&id| host::cpu_ns(id, true)).sum(),
        }
    }

    /// The process, if it is one.
    #[must_use]
    pub fn process(&self) -> Option<&Proc> {
        match self {
            Self::Process(p) => Some(p),
            Self::Thread { .. } => None,
        }
    }

    /// Ends it.
    ///
    /// # Errors
    /// It ended before.
    pub fn end(self) -> Done {
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

    /// Makes the veth pair and two places for sockets, lets `work` use them, and takes all away again.
    ///
    /// # Errors
    /// What `work` says.
    pub fn on_a_pair<T>(
        &mut self,
        path: Path,
        work: impl FnOnce(&Ours, &[PathBuf; 2], &[String]) -> Taken<T>,
    ) -> Taken<T> {
        self.count += 1;
        host::make_pair().because("the veth pair")?;
        if path == Path::Xdp(Mode::Skb) {
            // The generator's frames reach a veth without a driver program only by its NAPI.
            host::run("ethtool", "-K v0 gro on").because("v0's NAPI")?;
        }
        let before = host::links();
        let socks = self.ours.sockets(&self.count.to_string());
        let result = work(&self.ours, &socks, &before);
        // The pair's end takes any program along that a killed peer left on it.
        let gone = host::ip("link del v0").because("take the veth pair away");
        for s in &socks {
            // A server that was killed leaves its socket; others do not.
            let _gone = std::fs::remove_file(s);
        }
        let made = result?;
        gone?;
        Ok(made)
    }

    /// Takes one sample of a stream of frames over `window`.
    ///
    /// # Errors
    /// Something did not start, no frame came through, or it cannot be done here.
    pub fn frames(&mut self, case: &Case, who: Who, window: Duration) -> Taken<Vec<Value>> {
        self.on_a_pair(case.path, |ours, socks, before| {
            let running = start(case, who, socks, ours)?;
            with(running, |running| watch(case, who, socks, before, window, running))
        })
        .map(|v| vec![v])
    }
}

/// Lets `work` use what runs, ends it, and adds what it said to a trouble.
///
/// # Errors
/// What `work` says, or that it ended before.
pub fn with<T>(running: Running, work: impl FnOnce(&Running) -> Taken<T>) -> Taken<T> {
    let result = work(&running).map_err(|e| match (e, running.process()) {
        (Miss::Failed(t), Some(p)) => Miss::Failed(trouble(format!("{t}; it said:\n{}", p.tail()))),
        (e, _) => e,
    });
    let end = running.end();
    let made = result?;
    end?;
    Ok(made)
}

fn watch(
    case: &Case,
    who: Who,
    socks: &[PathBuf; 2],
    before: &[String],
    window: Duration,
    running: &Running,
) -> Taken<Value> {
    let far = match case.path {
        Path::Xdp(_) => "v1".to_owned(),
        Path::Tap => new_link(before)?,
        Path::Vhost | Path::Nothing => String::new(),
    };
    let load = Load::start(task(case, who, socks, &far)?, case.size);
    let at = |c: &AtomicU64| c.load(Ordering::Relaxed);
    let count = || -> u64 {
        match (case.path, case.way, running) {
            (Path::Xdp(_) | Path::Tap, Way::In, Running::Thread { count, .. }) => at(count),
            (Path::Xdp(_), Way::In, Running::Process(p)) if who == Who::XskRs => last_count(p),
            // What the device took may still lie in one ring: nothing beside a window.
            (Path::Nothing, Way::Out, _) => at(&load.seen.accepted),
            (Path::Vhost, ..) | (_, Way::In, _) => at(&load.seen.arrived),
            _ => host::received(&far),
        }
    };
    let warm = warm_up(&count, &load);
    let (f0, c0, o0, t0) = (count(), running.cpu_ns(), at(&load.seen.offered), Instant::now());
    if warm.is_ok() {
        sleep(window);
    }
    let (f1, c1, o1, wall) = (count(), running.cpu_ns(), at(&load.seen.offered), t0.elapsed().as_secs_f64());
    let seen = Arc::clone(&load.seen);
    load.end().because("the load")?;
    warm?;
    let wrong = at(&seen.wrong);
    if wrong > 0 {
        return Err(trouble(format!("{wrong} frames arrived damaged")).into());
    }
    let (frames, cpu) = (real(f1.saturating_sub(f0)), real(c1.saturating_sub(c0)));
    if frames == 0.0 {
        return Err(trouble("no frame came through in the window").into());
    }
    let (offered, share) = (real(o1.saturating_sub(o0)), cpu / 1e9 / wall);
    // Nearly all that was offered went through, or netreeve slept a quarter of the time for want of work.
    let load_bound = (who == Who::Netreeve && share < 0.75) || (offered > 0.0 && frames > 0.9 * offered);
    Ok(Value { share: Some(share), load_bound, ..per_frame(frames, cpu, wall, case.size) })
}

/// A stream's figures: millions a second, and the CPU time of one and of a GiB.
#[must_use]
pub fn per_frame(frames: f64, cpu_ns: f64, seconds: f64, size: usize) -> Value {
    let each = cpu_ns / frames;
    let in_gib = f64::from(1 << 30) / f64::from(u32::try_from(size).unwrap_or(u32::MAX));
    Value {
        value: frames / seconds / 1e6,
        ns_frame: Some(each),
        s_gib: Some(each * in_gib / 1e9),
        ..Value::default()
    }
}

/// A count as a real number; counts stay far below 2^53.
#[allow(clippy::cast_precision_loss, reason = "counts of one run are far below 2^53")]
#[must_use]
pub fn real(n: u64) -> f64 {
    n as f64
}

/// Waits for the first thousand frames and lets it settle.
///
/// # Errors
/// None came within 15 seconds.
pub fn warm_up(count: &impl Fn() -> u64, load: &Load) -> Done {
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

/// The tap that came up since `before`, made silent.
///
/// # Errors
/// None came within ten seconds.
pub fn new_link(before: &[String]) -> Done<String> {
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
fn task(case: &Case, who: Who, socks: &[PathBuf; 2], far: &str) -> Taken<Task> {
    let guest = |i: usize, sleeps: bool| -> Taken<Box<Driver>> {
        let path = socks.get(i).because("two sockets")?;
        connect(path, Make { packed: case.form == Form::Packed, ..Make::usual(sleeps) }).map(Box::new)
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
        (Path::Nothing, Way::Out, _) => Task::Send(guest(0, false)?),
        // What testpmd makes is its own kind of frame.
        (Path::Nothing, ..) => Task::Take(guest(0, false)?),
        (_, Way::Out, Who::Raw | Who::XskRs) => Task::Idle,
        (_, Way::In | Way::Both, Who::Raw | Who::XskRs) => Task::Blast(source()?),
        (_, Way::Out, _) => Task::Send(guest(0, false)?),
        (_, Way::In, _) => Task::Generate(source()?, guest(0, true)?),
        (_, Way::Both, _) => Task::Reflect(source()?, guest(0, true)?),
    })
}

/// A guest's driver.
///
/// # Errors
/// No server; or the device does not offer what is wanted, which is a reason to skip.
pub fn connect(path: &std::path::Path, make: Make) -> Taken<Driver> {
    Driver::connect(path, make).map_err(|e| {
        if e.kind() == std::io::ErrorKind::Unsupported {
            return Miss::Skipped(e.to_string());
        }
        Miss::Failed(trouble(format!("the guest's driver: {e}")))
    })
}

/// Starts who is measured, on its processor.
///
/// # Errors
/// It did not start.
pub fn start(case: &Case, who: Who, socks: &[PathBuf; 2], ours: &Ours) -> Done<Running> {
    host::pin(host::MEASURED).because("pin")?;
    let running = start_here(case, who, socks, ours);
    host::unpin().because("unpin")?;
    running
}

fn start_here(case: &Case, who: Who, socks: &[PathBuf; 2], ours: &Ours) -> Done<Running> {
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
        (Who::Dpdk, path) => process(peer::testpmd(path, case.way, case.size, socks)),
        (Who::Netreeve, Path::Nothing) => raw_device(case, socks),
        (Who::Netreeve, path) => process(ours.run(path, socks, &[], &[])),
        (Who::Busy, path) => process(ours.run(path, socks, &[], &["--busy-poll", "200"])),
        (Who::Open, path) => process(ours.run(path, socks, &[], &["--sandbox", "off"])),
        (who, _) => Err(trouble(format!("{} moves no frames", who.name()))),
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
            Way::Out => xsk.transmit(&frame(64), count, stop),
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
            tap::transmit(fd, &frame(64), count, stop);
        } else {
            tap::receive(fd, count, stop);
        }
        Ok(())
    })
}

fn raw_device(case: &Case, socks: &[PathBuf; 2]) -> Done<Running> {
    let [at, _] = socks;
    let listener = std::os::unix::net::UnixListener::bind(at).because("the device's socket")?;
    let makes = (case.way == Way::In).then(|| frame(case.size));
    raw(move |_, stop| alone::serve(listener, makes.as_deref(), stop))
}

/// The count in the last line that xsk-peer printed.
fn last_count(p: &Proc) -> u64 {
    let lines = p.lines();
    let count = |l: &crate::proc::Line| l.text.strip_prefix("frames ")?.split(' ').next()?.parse().ok();
    lines.iter().rev().find_map(count).unwrap_or(0)
}

/// Whether everything that these rows need is there; the first thing that is missing is the error.
///
/// # Errors
/// What is missing, and how to get it.
pub fn check(rows: &[Row]) -> Done {
    let has = |who: Who| rows.iter().any(|r| r.who.contains(&who));
    for p in ["ip", "ethtool"].into_iter().chain(has(Who::Dpdk).then_some("dpdk-testpmd")) {
        bins::peer(p)?;
    }
    for p in ["netreeve", "netreeve-dataplane", "netreeve-helper"] {
        bins::ours(p)?;
    }
    if has(Who::XskRs) { peer::xsk_peer().map(drop) } else { Ok(()) }
}
