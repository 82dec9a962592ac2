//! The `user` network beside who else makes a guest's network out of sockets, and beside nobody: a program on the host that
//! uses the same link itself.
//!
//! All of them have the same guest, far side and link; [`super::user_peer`] says how the guest is attached to each. IPv4, no
//! forwards. Where nothing else is said, nothing is pinned: guest, network, iperf3 and the kernel share two processors.

use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::case::Who;
use super::figures::{Miss, Taken};
use super::row::Value;
use super::runner::{Bench, real};
use super::user_driven as driven;
use super::user_load::{self as load, Echo, Times};
use super::user_peer::{self as peers, Attached, FAR, Ground};
use super::{host, idle};
use crate::netns::Netns;
use crate::peers::{iperf_from, iperf_server};
use crate::{Because, Done};

/// iperf3's port, and the echo's.
const PORT: u16 = 5201;
const ECHO: u16 = 7;
/// Connections that are kept in the row about memory.
pub const FLOWS: usize = 1000;
/// What the narrow link lets through.
pub const NARROW: &str = "1gbit";
/// Between the last frame and the first look.
const SETTLE: Duration = Duration::from_secs(1);

/// How the guest is attached to netreeve; the others are attached by what they have, see [`UserCase::load`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// A vhost-user device with checksum and segmentation offloads.
    Device,
    /// A UNIX stream of frames, without offloads.
    Stream,
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// One TCP stream, either way.
    Rate,
    /// The same where the host's link is slower than everything else.
    Narrow,
    /// Round trips and connections.
    Trips,
    /// Memory, with and without connections.
    Memory,
    /// One TCP stream of our driver's own, either way.
    Driven,
    /// Round trips and connections of our driver's own.
    DrivenTrips,
}

impl Look {
    /// The guest is our driver alone.
    #[must_use]
    pub fn is_driven(self) -> bool {
        matches!(self, Self::Driven | Self::DrivenTrips)
    }

    /// Guest and network have a processor each.
    fn is_pinned(self) -> bool {
        matches!(self, Self::Trips | Self::DrivenTrips)
    }
}

/// One row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserCase {
    /// What is looked at.
    pub look: Look,
    /// How the guest is attached.
    pub attach: Attach,
    /// The guest's MTU in bytes.
    pub mtu: u16,
}

impl UserCase {
    /// For tables.
    #[must_use]
    pub fn name(&self) -> String {
        let Self { look, attach, mtu } = self;
        let by = if *attach == Attach::Device { "vhost-user" } else { "stream" };
        match look {
            Look::Rate => format!("user network by {by}, MTU {mtu}, a stream"),
            Look::Narrow => format!("user network by {by}, MTU {mtu}, the host's link has 1 Gbit/s"),
            Look::Trips => format!("user network by {by}, 1 byte by TCP"),
            Look::Memory => format!("user network by {by}, memory"),
            Look::Driven => format!("user network by {by}, MTU {mtu}, our driver's own TCP"),
            Look::DrivenTrips => format!("user network by {by}, 1 byte by our driver's own TCP"),
        }
    }

    /// Generator and sink.
    #[must_use]
    pub fn load(&self) -> &'static str {
        match (self.look, self.attach) {
            (Look::Rate | Look::Narrow, Attach::Device) => {
                "iperf3 ⇄ iperf3, one stream; the guest is a namespace of this kernel: for netreeve on a tap that our \
                 virtio driver joins to its rings (one copy and two system calls a frame more than a guest has), for \
                 pasta, slirp4netns and QEMU (user and tap in a hub) on their own tap; the host's MTU is 1500; veth alone: \
                 iperf3 on the host"
            }
            (Look::Rate | Look::Narrow, Attach::Stream) => {
                "iperf3 ⇄ iperf3, one stream; the guest is a namespace of this kernel on a tap without offloads, whose \
                 frames two threads of ours move to and from the stream; slirp4netns knows no stream and has its own tap; \
                 the host's MTU is 1500; veth alone: iperf3 on the host"
            }
            (Look::Trips, _) => {
                "a client in the guest's namespace (for netreeve with our virtio driver between its tap and the rings, which \
                 a guest does not have) ⇄ our TCP echo at the far side, on the measured processor"
            }
            (Look::Driven, _) => {
                "our virtio driver with a TCP of its own, one copy of each byte into or out of a ring, asleep until its \
                 interrupt (veth alone: a socket on the host) ⇄ a socket at the far side, 128 KiB at a time"
            }
            (Look::DrivenTrips, _) => {
                "our virtio driver with a TCP of its own, asleep until its interrupt (veth alone: a socket on the host) ⇄ our \
                 TCP echo at the far side, on the measured processor"
            }
            (Look::Memory, _) => {
                "the guests of the rows about TCP; nothing while it is watched, after 1000 connections that each carried 4 \
                 KiB both ways; QEMU: what it has more than one without user"
            }
        }
    }
}

/// Takes one sample: `seconds` of a stream each way, `window` of everything else.
///
/// # Errors
/// Something did not start, the far side was never reached, or it cannot be done here.
pub fn sample(bench: &Bench, case: UserCase, who: Who, seconds: u32, window: Duration) -> Taken<Vec<Value>> {
    if case.look == Look::Memory {
        // Whoever is started inherits it, and takes of it what it needs.
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).because("descriptors")?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).because("descriptors")?;
    }
    let ground = Ground::new()?;
    let a = peers::attach(bench, &ground, case, who, case.look.is_pinned())?;
    let figures = match case.look {
        Look::Rate => rate(&ground, &a, seconds),
        Look::Narrow => narrow(&ground, &a, seconds),
        Look::Trips => trips(&ground, &a, window),
        Look::Driven => driven::rate(&ground, &a, Duration::from_secs(seconds.into())),
        Look::DrivenTrips => driven::trips(&ground, &a, window).map(figures_of),
        Look::Memory => return memory(&ground, &a, who, window),
    };
    Ok(figures.map_err(|e| a.blame(&e))?)
}

fn plain(value: f64) -> Value {
    Value { value, ..Value::default() }
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from((FAR, port))
}

fn reach(ground: &Ground, a: &Attached) -> Done {
    let _echo = Echo::start(&ground.far, at(ECHO), false)?;
    load::reach(a.world(ground), at(ECHO))
}

/// One stream one way: Gbit/s as the receiver saw it, and the CPU time of who is measured.
fn stream(guest: &Netns, a: &Attached, seconds: u32, more: &str) -> Done<Value> {
    let pids = a.processes();
    let cpu = || pids.iter().map(|&id| host::cpu_ns(id, true)).sum::<u64>();
    let before = cpu();
    let bits = iperf_from(guest, &at(PORT).ip().to_string(), PORT, seconds, more)?;
    let used = real(cpu().saturating_sub(before)) / 1e9;
    let gib = bits * f64::from(seconds) / 8.0 / f64::from(1 << 30);
    let s_gib = (!pids.is_empty()).then_some(used / gib);
    Ok(Value { value: bits / 1e9, s_gib, ..Value::default() })
}

fn rate(ground: &Ground, a: &Attached, seconds: u32) -> Done<Vec<Value>> {
    reach(ground, a)?;
    let _server = iperf_server(&ground.far, PORT)?;
    let guest = a.world(ground);
    // The first second of a connection warms everything up.
    stream(guest, a, 1, "")?;
    ["", "-R"].into_iter().map(|more| stream(guest, a, seconds, more)).collect()
}

fn narrow(ground: &Ground, a: &Attached, seconds: u32) -> Done<Vec<Value>> {
    reach(ground, a)?;
    ground.shape(NARROW)?;
    let _server = iperf_server(&ground.far, PORT)?;
    let guest = a.world(ground);
    let before = load::sent_again(guest)?;
    let up = stream(guest, a, seconds, "")?;
    let again = load::sent_again(guest)?.saturating_sub(before);
    let down = stream(guest, a, seconds, "-R")?;
    Ok(vec![up, down, plain(real(again))])
}

fn trips(ground: &Ground, a: &Attached, window: Duration) -> Done<Vec<Value>> {
    let _echo = Echo::start(&ground.far, at(ECHO), false)?;
    let guest = a.world(ground);
    load::reach(guest, at(ECHO))?;
    Ok(figures_of(load::trips(guest, at(ECHO), window)?))
}

fn figures_of((asked, called): (Times, Times)) -> Vec<Value> {
    [asked.mid, asked.late, called.mid, called.late].map(plain).to_vec()
}

/// Idle: resident, of what is shared its part, wake-ups; then resident with connections.
fn memory(ground: &Ground, a: &Attached, who: Who, window: Duration) -> Taken<Vec<Value>> {
    let pids = a.processes();
    if pids.is_empty() {
        return Err(Miss::Skipped(format!("{} takes no memory of its own", who.name())));
    }
    let guest = a.world(ground);
    let taken = (|| -> Done<_> {
        reach(ground, a)?;
        std::thread::sleep(SETTLE);
        let (quiet, resident) = (idle::watch(&pids, window)?, idle::resident(&pids)?);
        let _echo = Echo::start(&ground.far, at(ECHO), true)?;
        let _kept = load::keep(guest, at(ECHO), FLOWS)?;
        std::thread::sleep(SETTLE);
        Ok((quiet, resident, idle::resident(&pids)?))
    })();
    let (quiet, resident, full) = taken.map_err(|e| a.blame(&e))?;
    let (mut base, mut own) = (0.0, 0.0);
    if who == Who::QemuUser {
        let (p, _world) = peers::qemu_without(ground)?;
        std::thread::sleep(SETTLE);
        let pids = host::family(p.pid());
        (base, own) = (idle::resident(&pids)?, idle::watch(&pids, Duration::ZERO)?.own);
    }
    // Two runs differ by some pages; a difference below nothing is none.
    let mib = |bytes: f64| plain(bytes.max(0.0) / f64::from(1 << 20));
    Ok(vec![mib(resident - base), mib(quiet.own - own), plain(quiet.wakes), mib(full - base)])
}
