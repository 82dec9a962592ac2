//! TCP between a real Linux guest (User-Mode Linux) and a namespace, or a second guest, through netreeve.
//!
//! Nothing is pinned here: guest, dataplane, iperf3 and the kernel share two processors, and the scheduler does best
//! what it does for everybody. MTU 1500; *offloads off* hides checksum and segmentation from the guest, so that every
//! segment goes through every queue by itself.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::case::Path;
use super::host;
use super::peer::Ours;
use super::xdp::Mode;
use crate::guest::uml::{Running, Uml};
use crate::netns::Netns;
use crate::peers::{iperf_from_guest, iperf_server, wait_until_reachable};
use crate::proc::Proc;
use crate::{Because, Done, trouble};

const PORT: u16 = 5201;
const GUEST: &str = "10.77.0.2";
const OTHER: &str = "10.77.0.1";

/// One row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpCase {
    /// What the guest is joined to.
    pub path: Path,
    /// Checksum and segmentation offloads are offered to the guest.
    pub offloads: bool,
}

impl TcpCase {
    /// All rows.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let of = |path, offloads| Self { path, offloads };
        vec![
            of(Path::Tap, true),
            of(Path::Tap, false),
            of(Path::Xdp(Mode::Native), true),
            of(Path::Xdp(Mode::Native), false),
            of(Path::Xdp(Mode::Skb), true),
            of(Path::Vhost, true),
            of(Path::Vhost, false),
        ]
    }

    /// For tables.
    #[must_use]
    pub fn name(&self) -> String {
        let far = match self.path {
            Path::Tap => "tap".to_owned(),
            Path::Xdp(m) => format!("af-xdp, veth {}", m.name()),
            Path::Vhost => "a second guest".to_owned(),
        };
        format!("UML guest ⇄ {far}, offloads {}", if self.offloads { "on" } else { "off" })
    }
}

/// One round's figures in Gbit/s of TCP payload at the receiver.
#[derive(Clone, Copy, Debug)]
pub struct TcpSample {
    /// From the guest.
    pub out: f64,
    /// To the guest.
    pub back: f64,
    /// CPU time of netreeve, all its processes, in nanoseconds for each KiB either way.
    pub cpu_ns_kib: f64,
}

/// Boots, joins, measures `seconds` each way.
///
/// # Errors
/// Something did not start, or the two never reached each other.
pub fn sample(case: TcpCase, seconds: u32) -> Done<TcpSample> {
    run(case, seconds).because(case.name())
}

fn run(case: TcpCase, seconds: u32) -> Done<TcpSample> {
    let world = Netns::new("the bench's world")?;
    if matches!(case.path, Path::Xdp(_)) {
        world.enter(host::make_pair)?.because("the veth pair")?;
    }
    let before = world.links()?;
    let ours = world.enter(Ours::new)??;
    let socks = ours.sockets("");
    let more: &[&str] = if case.offloads { &[] } else { &["csum=off"] };
    let netreeve = world.enter(|| ours.run(case.path, &socks, more, &[]))??;
    let measured = measure(case, seconds, &world, &before, &socks, &netreeve);
    measured.map_err(|e| trouble(format!("{e}; netreeve said:\n{}", netreeve.tail())))
}

fn measure(
    case: TcpCase,
    seconds: u32,
    world: &Netns,
    before: &[String],
    socks: &[PathBuf; 2],
    netreeve: &Proc,
) -> Done<TcpSample> {
    let [first, second] = socks;
    let guest = boot(first, GUEST)?;
    // Whoever listens is held until the end.
    let mut other = None;
    let mut server = None;
    if case.path == Path::Vhost {
        let g = boot(second, OTHER)?;
        g.ok(&format!("iperf3 -s -D -p {PORT}; sleep 0.3"))?;
        other = Some(g);
    } else {
        let link = match case.path {
            Path::Tap => {
                world.links()?.into_iter().find(|l| !before.contains(l)).because("no tap appeared")?
            }
            _ => "v1".to_owned(),
        };
        world.sh(&format!("ip addr add {OTHER}/24 dev {link}; ip link set {link} up"))?;
        server = Some(iperf_server(world, PORT)?);
    }
    wait_until_reachable(&guest, OTHER)?;
    let cpu = || -> u64 { host::family(netreeve.pid()).iter().map(|&id| host::cpu_ns(id, true)).sum() };
    // The first second of a connection warms everything up.
    iperf_from_guest(&guest, OTHER, PORT, 1, "")?;
    let (c0, t0) = (cpu(), Instant::now());
    let out = iperf_from_guest(&guest, OTHER, PORT, seconds, "")?;
    let back = iperf_from_guest(&guest, OTHER, PORT, seconds, "-R")?;
    let (cpu, _wall) = (cpu().saturating_sub(c0), t0.elapsed());
    drop((server, other));
    let kib = (out + back) * f64::from(seconds) / 8.0 / 1024.0;
    Ok(TcpSample {
        out: out / 1e9,
        back: back / 1e9,
        cpu_ns_kib: Duration::from_nanos(cpu).as_secs_f64() * 1e9 / kib,
    })
}

fn boot(socket: &std::path::Path, address: &str) -> Done<Running> {
    let guest = Uml::new().nic(socket).boot()?;
    guest.ok(&format!("ip addr add {address}/24 dev eth0\nip link set eth0 up"))?;
    Ok(guest)
}
