//! Frames that come in by one UDP port and go out by another, a frame in each datagram: netreeve's `dgram` on both sides
//! of a wire, beside QEMU's two in a hub.
//!
//! The generator has one processor; who is measured has the other, where the kernel works for it too. Nobody reads what
//! arrives: the receiving socket has next to no room, and the kernel counts what it drops there.

use std::io;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::case::Who;
use super::figures::{Miss, Taken};
use super::load;
use super::row::Value;
use super::runner::{Bench, per_frame, real};
use super::socket_load::burst;
use super::{host, peer};
use crate::netns::Netns;
use crate::proc::Proc;
use crate::{Because, Done, bins, trouble};

/// The generator's port, the two of who is measured, the sink's.
const PORTS: [u16; 4] = [7000, 7001, 7101, 7102];
/// Bytes of datagrams that a generator gives the kernel at once.
const AT_ONCE: usize = 60_000;
/// How long the first frames may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// What is forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatagramCase {
    /// Bytes of a frame.
    pub size: usize,
    /// The generator has the kernel cut many out of one message, as netreeve itself sends; else each datagram passes the
    /// stack by itself, as QEMU's do (64 of them by one call, so that the generator is not the limit).
    pub cut: bool,
}

impl DatagramCase {
    /// For tables.
    #[must_use]
    pub fn name(&self) -> String {
        let how = if self.cut { "many at a time" } else { "one at a time" };
        format!("dgram → dgram over UDP, sent {how}, {} B", self.size)
    }
}

/// Forwards for `window`.
///
/// # Errors
/// Something did not start, or nothing came through.
pub fn sample(bench: &Bench, case: DatagramCase, who: Who, window: Duration) -> Taken<Vec<Value>> {
    let world = Netns::new("datagrams")?;
    host::pin(host::MEASURED).because("pin")?;
    let started = start(bench, &world, who);
    host::unpin().because("unpin")?;
    let measured = started?;
    let [gen_port, near, _, far] = PORTS;
    let sockets = world.enter(|| -> io::Result<(UdpSocket, UdpSocket)> {
        let (from, to) = (UdpSocket::bind(("127.0.0.1", gen_port))?, UdpSocket::bind(("127.0.0.1", far))?);
        from.connect(("127.0.0.1", near))?;
        Ok((from, to))
    })?;
    let (from, sink) = sockets.because("the load's sockets")?;
    setsockopt(&sink, sockopt::RcvBuf, &1).because("the sink")?;
    let (stop, offered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (told, count) = (Arc::clone(&stop), Arc::clone(&offered));
    let generator = std::thread::spawn(move || generate(&from, case, &told, &count));
    let taken = watch(&world, &measured, &offered, case, window);
    stop.store(true, Ordering::Relaxed);
    let ended = generator.join().unwrap_or_else(|_| Err(io::Error::other("the generator panicked")));
    ended.because("the generator")?;
    Ok(vec![taken?])
}

fn start(bench: &Bench, world: &Netns, who: Who) -> Taken<Proc> {
    let [gen_port, near, out, far] = PORTS;
    let end = |which: &str, port| format!("{which}.type=inet,{which}.host=127.0.0.1,{which}.port={port}");
    let ends = |local, remote| format!("{},{}", end("local", local), end("remote", remote));
    let (first, second) = (ends(near, gen_port), ends(out, far));
    if who == Who::Qemu {
        let Ok(program) = bins::peer("qemu-system-x86_64") else {
            return Err(Miss::Skipped("QEMU is not installed".to_owned()));
        };
        let mut c = Command::new(program);
        c.args(["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"]);
        for netdev in [
            format!("dgram,id=a,{first}"),
            format!("dgram,id=b,{second}"),
            "hubport,id=ha,hubid=0,netdev=a".to_owned(),
            "hubport,id=hb,hubid=0,netdev=b".to_owned(),
        ] {
            c.arg("-netdev").arg(netdev);
        }
        return Ok(world.spawn("QEMU", c)?);
    }
    let mut c = bench.ours.command();
    c.arg("--netdev").arg(format!("dgram,id=n0,{first}"));
    c.arg("--device").arg(format!("dgram,netdev=n0,{second}"));
    if who == Who::Open {
        c.args(["--sandbox", "off"]);
    }
    let p = world.spawn("netreeve", c)?;
    peer::ready(&p)?;
    Ok(p)
}

fn generate(to: &UdpSocket, case: DatagramCase, stop: &AtomicBool, offered: &AtomicU64) -> io::Result<()> {
    host::pin(host::LOAD)?;
    let one = load::frame(case.size);
    let many = if case.cut { (AT_ONCE / one.len()).clamp(1, 64) } else { 1 };
    if case.cut {
        let segment = i32::try_from(one.len()).map_err(io::Error::other)?;
        setsockopt(to, sockopt::UdpGsoSegment, &segment)?;
    }
    let message = one.repeat(many);
    while !stop.load(Ordering::Relaxed) {
        // Refused while who is measured is still starting.
        let sent = if case.cut { to.send(&message).map(|_| many) } else { burst(to, &message) };
        offered.fetch_add(sent.unwrap_or(0) as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Datagrams that have come to the sink: the last column of the kernel's table.
fn arrived(world: &Netns) -> Done<u64> {
    let table = world.enter(|| std::fs::read_to_string("/proc/thread-self/net/udp"))?.because("net/udp")?;
    let [.., far] = PORTS;
    let at = format!(":{far:04X}");
    let row = table.lines().find(|l| l.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&at)));
    let drops = row.and_then(|l| l.split_whitespace().last()).and_then(|n| n.parse().ok());
    drops.because("the sink is not in the kernel's table")
}

fn watch(
    world: &Netns,
    measured: &Proc,
    offered: &AtomicU64,
    case: DatagramCase,
    window: Duration,
) -> Done<Value> {
    let until = Instant::now() + PATIENCE;
    while arrived(world)? < 1000 {
        if Instant::now() > until {
            return Err(trouble(format!("no frames came through; it said:\n{}", measured.tail())));
        }
        sleep(Duration::from_millis(10));
    }
    sleep(Duration::from_millis(200));
    let cpu = || host::family(measured.pid()).iter().map(|&id| host::cpu_ns(id, true)).sum::<u64>();
    let look =
        || -> Done<_> { Ok((arrived(world)?, cpu(), offered.load(Ordering::Relaxed), Instant::now())) };
    let before = look()?;
    sleep(window);
    let after = look()?;
    let (frames, wanted) = (real(after.0 - before.0), real(after.2 - before.2));
    let (spent, wall) = (real(after.1 - before.1), (after.3 - before.3).as_secs_f64());
    let (share, load_bound) = (Some(spent / 1e9 / wall), frames >= 0.97 * wanted);
    Ok(Value { share, load_bound, ..per_frame(frames.max(1.0), spent, wall, case.size) })
}
