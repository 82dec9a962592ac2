//! Frames that come in by one socket-shaped port and go out by another: netreeve beside QEMU's own netdevs in a hub, and
//! beside `vde_switch`.
//!
//! The load has one processor; who is measured has the other, where the kernel works for it too. Where a socket drops what
//! nobody reads, nobody reads it and the kernel counts; where it would stop the sender instead, the sink reads by the batch.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::case::Who;
use super::figures::{Miss, Taken};
use super::row::Value;
use super::runner::{Bench, per_frame, real};
use super::socket_load::{self as ends, Flow};
use super::{host, peer};
use crate::netns::Netns;
use crate::proc::Proc;
use crate::{Because, Done, bins, trouble};

/// Ports of our sockets and of who is measured, for each of up to three ports.
pub const PORTS: [(u16, u16); 3] = [(7000, 7001), (7102, 7101), (7202, 7201)];
/// How long the first frames may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// Datagrams that wait in a UNIX socket: what systemd sets (`net.unix.max_dgram_qlen`). The kernel's own 10 would measure
/// how fast processes are switched.
const QUEUED: u32 = 512;

/// What carries the frames, in and out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// QEMU's framing over UNIX streams.
    Stream,
    /// UNIX datagrams.
    Unix,
    /// An L2TPv3 session over UDP.
    L2tp,
    /// A plug in one VDE switch to a plug in another.
    Plug,
    /// Two clients of one VDE switch.
    Switch,
    /// A hub of three UDP ports: one sends, two get.
    Hub,
    /// As [`Kind::Stream`], and a `filter-dump` writes a classic capture of what comes in.
    Capture,
}

/// What is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardCase {
    /// By what.
    pub kind: Kind,
    /// Bytes of a frame.
    pub size: usize,
    /// UDP: the generator has the kernel cut many out of one message, as netreeve itself sends; else each datagram passes
    /// the stack by itself, as QEMU's do.
    pub cut: bool,
}

impl ForwardCase {
    /// For tables.
    #[must_use]
    pub fn name(&self) -> String {
        let what = match self.kind {
            Kind::Stream => "stream → stream over UNIX sockets",
            Kind::Unix => "dgram → dgram over UNIX sockets",
            Kind::L2tp => "l2tpv3 → l2tpv3 over UDP",
            Kind::Plug => "vde → vde, plugs in two switches",
            Kind::Switch => "a VDE switch of two clients",
            Kind::Hub => "a hub of three dgram over UDP, one sends",
            Kind::Capture => "stream → stream over UNIX sockets and into a capture (filter-dump)",
        };
        let how = match (self.kind, self.cut) {
            (Kind::L2tp | Kind::Hub, true) => ", sent many at a time",
            (Kind::L2tp | Kind::Hub, false) => ", sent one at a time",
            _ => "",
        };
        format!("{what}{how}, {} B", self.size)
    }

    /// Generator and sink.
    #[must_use]
    pub fn load(&self) -> &'static str {
        match self.kind {
            Kind::Stream => "our UNIX stream, 64 KiB at a time → our UNIX stream, read 256 KiB at a time",
            Kind::Capture => {
                "our UNIX stream, 64 KiB at a time → our UNIX stream, read 256 KiB at a time, and a file: the frames \
                 that stand there (64 bytes of each), if that is fewer"
            }
            Kind::Unix | Kind::Plug | Kind::Switch => {
                "our UNIX datagram socket, sendmmsg → ours, recvmmsg, 64 at a time (max_dgram_qlen 512)"
            }
            Kind::L2tp | Kind::Hub => {
                "our UDP socket → UDP sockets that nobody reads: the kernel's count of what it drops there; of a hub, \
                 the one that got less"
            }
        }
    }
}

/// A directory of one sample, where everybody may make sockets.
struct Place(PathBuf);

impl Place {
    fn new(bench: &Bench) -> Done<Self> {
        let [a, _] = bench.ours.sockets("forward");
        let _gone = std::fs::remove_dir_all(&a);
        std::fs::create_dir(&a).because(a.display())?;
        std::fs::set_permissions(&a, std::fs::Permissions::from_mode(0o777)).because(a.display())?;
        Ok(Self(a))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

/// Forwards for `window`.
///
/// # Errors
/// Something did not start, or nothing came through.
pub fn sample(bench: &Bench, case: ForwardCase, who: Who, window: Duration) -> Taken<Vec<Value>> {
    let world = Netns::new("forward")?;
    world.sh(&format!("echo {QUEUED} >/proc/sys/net/unix/max_dgram_qlen"))?;
    let place = Place::new(bench)?;
    let at = place.0.as_path();
    let before = world.enter(|| ends::before(case.kind, at))?.because("the load's sockets")?;
    host::pin(host::MEASURED).because("pin")?;
    let started = start(bench, &world, case, who, at);
    host::unpin().because("unpin")?;
    let measured = started?;
    let flow = world.enter(|| ends::open(case, before, at))?;
    let flow =
        flow.map_err(|e| trouble(format!("the load's sockets: {e}; it said:\n{}", measured.tail())))?;
    if who.is_ours() {
        peer::ready(&measured)?;
    }
    let taken = watch(&world, &measured, &flow, case, window);
    flow.end()?;
    Ok(vec![taken?])
}

fn start(bench: &Bench, world: &Netns, case: ForwardCase, who: Who, at: &Path) -> Taken<Proc> {
    if who == Who::VdeSwitch {
        let mut c = Command::new(installed("vde_switch")?);
        c.arg("-s").arg(at.join("sw"));
        // It ends with its standard input.
        return Ok(world.spawn_with_input("vde_switch", c)?);
    }
    let (netdevs, device) = options(case.kind, at);
    if who == Who::Qemu {
        let mut c = Command::new(installed("qemu-system-x86_64")?);
        c.args(["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"]);
        for (i, netdev) in netdevs.iter().chain(&device).enumerate() {
            c.arg("-netdev").arg(netdev.replacen(',', &format!(",id=n{i},"), 1));
            c.arg("-netdev").arg(format!("hubport,id=h{i},hubid=0,netdev=n{i}"));
        }
        if case.kind == Kind::Capture {
            c.arg("-object").arg(dump(at));
        }
        return Ok(world.spawn("QEMU", c)?);
    }
    let mut c = bench.ours.command();
    for (i, netdev) in netdevs.iter().enumerate() {
        c.arg("--netdev").arg(netdev.replacen(',', &format!(",id=n{i},"), 1));
        if device.is_none() && case.kind == Kind::Hub {
            c.arg("--netdev").arg(format!("hubport,id=h{i},hubid=0,netdev=n{i}"));
        }
    }
    if let Some(device) = device {
        c.arg("--device").arg(device.replacen(',', ",netdev=n0,", 1));
    }
    if case.kind == Kind::Capture {
        c.arg("--object").arg(dump(at));
    }
    Ok(world.spawn("netreeve", c)?)
}

/// The filter of [`Kind::Capture`], in words that both know.
fn dump(at: &Path) -> String {
    format!("filter-dump,id=f0,netdev=n0,file={},maxlen={}", at.join(ends::DUMP).display(), ends::DUMPED)
}

fn installed(program: &str) -> Taken<PathBuf> {
    bins::peer(program).map_err(|_| Miss::Skipped(format!("{program} is not installed")))
}

/// The ports, in words that QEMU and netreeve both know (but for our own switch): netdevs, and a device on the first one.
fn options(kind: Kind, at: &Path) -> (Vec<String>, Option<String>) {
    let two = |f: &dyn Fn(usize) -> String| (vec![f(0)], Some(f(1)));
    let file = |name: &str, i: usize| at.join(format!("{name}{i}")).display().to_string();
    let udp = |i: usize| {
        let (theirs, ours) = PORTS.get(i).copied().unwrap_or_default();
        let end = |which: &str, port| format!("{which}.type=inet,{which}.host=127.0.0.1,{which}.port={port}");
        format!("dgram,{},{}", end("local", ours), end("remote", theirs))
    };
    match kind {
        Kind::Stream | Kind::Capture => {
            two(&|i| format!("stream,server=on,addr.type=unix,addr.path={}", file("us", i)))
        }
        Kind::Unix => two(&|i| {
            let end = |which: &str, name: &str| format!("{which}.type=unix,{which}.path={}", file(name, i));
            format!("dgram,{},{}", end("local", "us"), end("remote", "them"))
        }),
        Kind::L2tp => two(&|i| {
            let (theirs, ours) = PORTS.get(i).copied().unwrap_or_default();
            format!(
                "l2tpv3,src=127.0.0.1,dst=127.0.0.1,udp=on,srcport={ours},dstport={theirs},txsession=1,rxsession=1"
            )
        }),
        Kind::Plug => two(&|i| format!("vde,sock={}", file("sw", i))),
        Kind::Switch => (vec![format!("vde,server=on,sock={}", at.join("sw").display())], None),
        Kind::Hub => ((0..3).map(udp).collect(), None),
    }
}

fn watch(world: &Netns, measured: &Proc, flow: &Flow, case: ForwardCase, window: Duration) -> Done<Value> {
    let arrived = || world.enter(|| flow.arrived())?.because("what arrived");
    let until = Instant::now() + PATIENCE;
    while arrived()? < 1000 {
        if Instant::now() > until {
            return Err(trouble(format!("no frames came through; it said:\n{}", measured.tail())));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(200));
    let cpu = || host::family(measured.pid()).iter().map(|&id| host::cpu_ns(id, true)).sum::<u64>();
    let look = || -> Done<_> { Ok((arrived()?, cpu(), flow.offered(), Instant::now())) };
    let before = look()?;
    std::thread::sleep(window);
    let after = look()?;
    let (frames, wanted) = (real(after.0 - before.0), real(after.2 - before.2));
    let (spent, wall) = (real(after.1 - before.1), (after.3 - before.3).as_secs_f64());
    let share = spent / 1e9 / wall;
    // Where the load waits for who is measured, all that was offered arrives, and the load is the limit only if the
    // other had time left.
    let waits = !matches!(case.kind, Kind::L2tp | Kind::Hub);
    let load_bound = frames >= 0.97 * wanted && !(waits && share >= 0.95);
    Ok(Value { share: Some(share), load_bound, ..per_frame(frames.max(1.0), spent, wall, case.size) })
}
