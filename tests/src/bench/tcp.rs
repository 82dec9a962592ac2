//! TCP, one stream, between a guest and a namespace, or a second guest.
//!
//! Nothing is pinned here: guest, dataplane, iperf3 and the kernel share two processors, and the scheduler does best what
//! it does for everybody. MTU 1500; *offloads off* hides checksum and segmentation from the guest, so that every segment
//! goes through every queue by itself.

use std::path::PathBuf;

use super::case::{Path, Who};
use super::figures::{Miss, Taken};
use super::host;
use super::peer::Ours;
use super::pump::Pump;
use super::row::Value;
use super::runner::real;
use super::stand::Stand;
use super::xdp::Mode;
use crate::guest::Console;
use crate::guest::qemu::Qemu;
use crate::guest::uml::{Running, Uml};
use crate::netns::{Netns, veth};
use crate::peers::{Server, iperf_from, iperf_from_guest, iperf_server, wait_until_reachable};
use crate::proc::Proc;
use crate::{Because, Done, bins, proc, sys, trouble};

const PORT: u16 = 5201;
const GUEST: &str = "10.77.0.2";
const OTHER: &str = "10.77.0.1";

/// What the guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// A namespace of this kernel behind our own virtio driver: no emulation in the way.
    Host,
    /// Debian's User-Mode Linux.
    Uml,
    /// A Debian kernel in QEMU without KVM.
    Qemu,
}

/// One row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpCase {
    /// The guest.
    pub guest: Guest,
    /// What it is joined to.
    pub path: Path,
    /// Checksum and segmentation offloads are offered to the guest.
    pub offloads: bool,
}

impl TcpCase {
    /// For tables.
    #[must_use]
    pub fn name(&self) -> String {
        let far = match self.path {
            Path::Tap => "tap".to_owned(),
            Path::Xdp(m) => format!("af-xdp {}", m.name()),
            Path::Vhost | Path::Nothing => "a second guest".to_owned(),
        };
        let guest = match self.guest {
            Guest::Host => "bare guest",
            Guest::Uml => "UML guest",
            Guest::Qemu => "QEMU guest",
        };
        let off = if self.offloads { "" } else { ", offloads off" };
        format!("TCP, {guest} ⇄ {far}{off}")
    }

    /// Generator and sink.
    #[must_use]
    pub fn load(&self) -> &'static str {
        match self.guest {
            Guest::Host => {
                "iperf3 ⇄ iperf3, one stream, MTU 1500; the bare guest is a namespace of this kernel on a tap that our \
                 virtio driver joins to its rings (one copy and two system calls a frame more than a guest has); raw loop: \
                 two threads that read from one tap and write to another, so the same copies and no rings"
            }
            Guest::Uml => {
                "iperf3 in User-Mode Linux ⇄ iperf3, one stream, MTU 1500; the guest is mostly the limit"
            }
            Guest::Qemu => {
                "iperf3 in a Debian kernel under QEMU without KVM ⇄ iperf3, one stream, MTU 1500; the guest is mostly \
                 the limit"
            }
        }
    }
}

/// The guest, running: whoever it is, it can start an iperf3 client.
enum Client {
    Host(Stand),
    Namespace(Netns),
    Uml(Box<Running>),
    Qemu(Box<Console>),
}

impl Client {
    fn iperf(&self, seconds: u32, more: &str) -> Done<f64> {
        match self {
            Self::Host(s) => iperf_from(s.world(), OTHER, PORT, seconds, more),
            Self::Namespace(n) => iperf_from(n, OTHER, PORT, seconds, more),
            Self::Uml(g) => iperf_from_guest(g, OTHER, PORT, seconds, more),
            Self::Qemu(g) => iperf_from_guest(g, OTHER, PORT, seconds, more),
        }
    }

    fn console(&self) -> Option<&Console> {
        match self {
            Self::Uml(g) => Some(g),
            Self::Qemu(g) => Some(g),
            Self::Host(_) | Self::Namespace(_) => None,
        }
    }

    /// Waits until the other side answers.
    fn reach(&self) -> Done {
        let from = match self {
            Self::Host(s) => s.world(),
            Self::Namespace(n) => n,
            _ => return self.console().map_or(Ok(()), |g| wait_until_reachable(g, OTHER)),
        };
        from.sh(&format!("for i in $(seq 50); do ping -c 1 -W 1 {OTHER} >/dev/null && exit 0; done; exit 1"))
            .map(drop)
    }
}

/// What is measured, and whatever it stands on; dropped in this order.
struct Scene {
    client: Client,
    _other: Option<Running>,
    _pump: Option<Pump>,
    _server: Option<Server>,
    measured: Option<Proc>,
    _ours: Option<Ours>,
}

/// Boots, joins, measures `seconds` each way: from the guest, to the guest.
///
/// # Errors
/// Something did not start, the two never reached each other, or it cannot be done here.
pub fn sample(case: TcpCase, who: Who, seconds: u32) -> Taken<Vec<Value>> {
    let world = Netns::new("the bench's world")?;
    let scene = match who {
        Who::Veth => beside_veth(&world)?,
        Who::Raw if case.path == Path::Tap => beside_pump(case, &world)?,
        Who::Qemu => beside_qemu(case, &world)?,
        Who::Netreeve | Who::Open | Who::Busy => with_netreeve(case, who, &world)?,
        who => return Err(Miss::Skipped(format!("{} has no TCP row", who.name()))),
    };
    let said = |e: crate::Trouble| match &scene.measured {
        Some(p) => trouble(format!("{e}; what is measured said:\n{}", p.tail())),
        None => e,
    };
    let figures = measure(&scene, seconds).map_err(said)?;
    Ok(figures)
}

fn measure(scene: &Scene, seconds: u32) -> Done<Vec<Value>> {
    let cpu = || {
        scene
            .measured
            .as_ref()
            .map(|p| host::family(p.pid()).iter().map(|&id| host::cpu_ns(id, true)).sum::<u64>())
    };
    scene.client.reach()?;
    // The first second of a connection warms everything up.
    scene.client.iperf(1, "")?;
    let mut figures = Vec::new();
    for more in ["", "-R"] {
        let before = cpu();
        let bits = scene.client.iperf(seconds, more)?;
        let used = cpu().zip(before).map(|(after, before)| real(after.saturating_sub(before)));
        let gib = bits * f64::from(seconds) / 8.0 / f64::from(1 << 30);
        let s_gib = used.map(|ns| ns / 1e9 / gib);
        figures.push(Value { value: bits / 1e9, s_gib, ..Value::default() });
    }
    Ok(figures)
}

/// A veth pair between two namespaces: the kernel alone.
fn beside_veth(world: &Netns) -> Done<Scene> {
    let guest = Netns::new("the guest's side")?;
    veth(world, "v1", &guest, "v0")?;
    world.sh(&format!("ip addr add {OTHER}/24 dev v1"))?;
    guest.sh(&format!("ip addr add {GUEST}/24 dev v0"))?;
    let server = Some(iperf_server(world, PORT)?);
    let client = Client::Namespace(guest);
    Ok(Scene { client, _other: None, _pump: None, _server: server, measured: None, _ours: None })
}

/// Two taps, and two threads that carry frames from one to the other: what a guest on a tap costs without any ring.
fn beside_pump(case: TcpCase, world: &Netns) -> Done<Scene> {
    let guest = Netns::new("the guest's side")?;
    let make = |n: &Netns, name| n.enter(|| sys::tap_with_header(name, case.offloads))?.because("a tap");
    let (far, near) = (make(world, "t1")?, make(&guest, "t0")?);
    let pump = Some(Pump::start(near, far));
    guest.sh(&format!("ip addr add {GUEST}/24 dev t0; ip link set t0 up"))?;
    let server = Some(serve(world, "t1")?);
    let client = Client::Namespace(guest);
    Ok(Scene { client, _other: None, _pump: pump, _server: server, measured: None, _ours: None })
}

/// The same guest on QEMU's own netdev.
fn beside_qemu(case: TcpCase, world: &Netns) -> Taken<Scene> {
    let netdev = match case.path {
        Path::Tap => "tap,id=n0,ifname=q0,script=no,downscript=no,vhost=off",
        Path::Xdp(_) if !knows_af_xdp()? => {
            return Err(Miss::Skipped("this QEMU was built without af-xdp".to_owned()));
        }
        Path::Xdp(Mode::Native) => "af-xdp,id=n0,ifname=v0,mode=native",
        Path::Xdp(Mode::Skb) => "af-xdp,id=n0,ifname=v0,mode=skb",
        Path::Vhost | Path::Nothing => return Err(Miss::Skipped("QEMU has nothing to do here".to_owned())),
    };
    if matches!(case.path, Path::Xdp(_)) {
        world.enter(host::make_pair)?.because("the veth pair")?;
    }
    let guest = Qemu::new().inside(world).netdev(netdev).boot()?;
    address(&guest, GUEST)?;
    let far = if case.path == Path::Tap { "q0" } else { "v1" };
    let server = serve(world, far)?;
    Ok(Scene {
        client: Client::Qemu(Box::new(guest)),
        _other: None,
        _pump: None,
        _server: Some(server),
        measured: None,
        _ours: None,
    })
}

fn knows_af_xdp() -> Done<bool> {
    let mut q = std::process::Command::new(bins::peer("qemu-system-x86_64")?);
    q.args(["-netdev", "help"]);
    let said = proc::run("qemu", q, std::time::Duration::from_secs(10))?.text;
    Ok(said.lines().any(|l| l.trim() == "af-xdp"))
}

fn with_netreeve(case: TcpCase, who: Who, world: &Netns) -> Done<Scene> {
    if matches!(case.path, Path::Xdp(_)) {
        world.enter(host::make_pair)?.because("the veth pair")?;
    }
    let before = world.links()?;
    let ours = world.enter(Ours::new)??;
    let socks = ours.sockets("");
    let keys: &[&str] = if case.offloads { &[] } else { &["csum=off"] };
    let options: &[&str] = match who {
        Who::Open => &["--sandbox", "off"],
        Who::Busy => &["--busy-poll", "200"],
        _ => &[],
    };
    let netreeve = world.enter(|| ours.run(case.path, &socks, keys, options))??;
    join(case, world, &before, &socks)
        .map_err(|e| trouble(format!("{e}; netreeve said:\n{}", netreeve.tail())))
        .map(|(client, other, server)| Scene {
            client,
            _other: other,
            _pump: None,
            _server: server,
            measured: Some(netreeve),
            _ours: Some(ours),
        })
}

/// Boots the guest, or both, and whoever listens.
fn join(
    case: TcpCase,
    world: &Netns,
    before: &[String],
    socks: &[PathBuf; 2],
) -> Done<(Client, Option<Running>, Option<Server>)> {
    let [first, second] = socks;
    let client = match case.guest {
        Guest::Host => Client::Host(Stand::start(first, GUEST, case.offloads)?),
        Guest::Uml => Client::Uml(Box::new(boot(first, GUEST)?)),
        Guest::Qemu => {
            let guest = Qemu::new().vhost_user(first, false).boot()?;
            address(&guest, GUEST)?;
            Client::Qemu(Box::new(guest))
        }
    };
    if case.path == Path::Vhost {
        let other = boot(second, OTHER)?;
        other.ok(&format!("iperf3 -s -D -p {PORT}; sleep 0.3"))?;
        return Ok((client, Some(other), None));
    }
    let link = match case.path {
        Path::Tap => world.links()?.into_iter().find(|l| !before.contains(l)).because("no tap appeared")?,
        _ => "v1".to_owned(),
    };
    Ok((client, None, Some(serve(world, &link)?)))
}

/// The far side on this interface.
fn serve(world: &Netns, link: &str) -> Done<Server> {
    world.sh(&format!("ip addr add {OTHER}/24 dev {link}; ip link set {link} up"))?;
    iperf_server(world, PORT)
}

fn boot(socket: &std::path::Path, at: &str) -> Done<Running> {
    let guest = Uml::new().nic(socket).boot()?;
    address(&guest, at)?;
    Ok(guest)
}

fn address(guest: &Console, at: &str) -> Done {
    guest.ok(&format!("ip addr add {at}/24 dev eth0\nip link set eth0 up")).map(drop)
}
