//! Who makes a network for a guest out of the host's sockets: netreeve's `user`, pasta, passt, slirp4netns, QEMU's `user`;
//! each with the guest that belongs to it, in a world of three namespaces: guest, host, far side.
//!
//! The guest is always a namespace of this kernel. pasta and slirp4netns have a tap in it, and so has QEMU, whose `user` is
//! joined to a tap or a `stream` by a hub: there is no VM in it.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::case::Who;
use super::figures::{Miss, Taken};
use super::runner::Bench;
use super::stand::Stand;
use super::stream_stand::StreamStand;
use super::user::{Attach, UserCase};
use super::{host, peer};
use crate::guest::uml::wait_for_socket;
use crate::netns::{Netns, veth};
use crate::proc::Proc;
use crate::scene::USER;
use crate::{Because, Done, bins, trouble};

/// The far side's address.
pub const FAR: [u8; 4] = [10, 9, 0, 2];
/// The guest's, as in QEMU's user network.
const GUEST: &str = "10.0.2.15";
/// Its gateway.
const GATEWAY: &str = "10.0.2.2";
/// How long a program may take to start.
const START: Duration = Duration::from_secs(10);

/// The host and the far side, joined by a veth pair (`va` and `vb`).
pub struct Ground {
    /// Where whoever is measured makes its sockets.
    pub host: Netns,
    /// Where servers are.
    pub far: Netns,
}

impl Ground {
    /// Makes them.
    ///
    /// # Errors
    /// Not root.
    pub fn new() -> Done<Self> {
        let (host, far) = (Netns::new("the host")?, Netns::new("the far side")?);
        veth(&host, "va", &far, "vb")?;
        // passt and pasta want an interface with an address and a route.
        host.sh("ip addr add 10.9.0.1/24 dev va; ip route add default via 10.9.0.2")?;
        far.sh("ip addr add 10.9.0.2/24 dev vb")?;
        Ok(Self { host, far })
    }

    /// Lets no more than `rate` (as tc(8) says it) through, either way.
    ///
    /// # Errors
    /// What tc says.
    pub fn shape(&self, rate: &str) -> Done {
        for (world, dev) in [(&self.host, "va"), (&self.far, "vb")] {
            world.sh(&format!("tc qdisc add dev {dev} root tbf rate {rate} burst 128kb latency 20ms"))?;
        }
        Ok(())
    }
}

/// A guest on a network; dropped in this order.
pub struct Attached {
    guest: Guest,
    /// Who is measured, if there is anybody.
    pub measured: Option<Proc>,
    _place: Place,
}

enum Guest {
    /// A program on the host itself, with nobody in between.
    None,
    Bare(Stand),
    Stream(StreamStand),
    Tap(Netns),
    /// Whoever drives the device of this socket.
    Driver(PathBuf),
}

impl Attached {
    /// The namespace of the guest's programs.
    #[must_use]
    pub fn world<'a>(&'a self, ground: &'a Ground) -> &'a Netns {
        match &self.guest {
            Guest::None | Guest::Driver(_) => &ground.host,
            Guest::Bare(s) => s.world(),
            Guest::Stream(s) => s.world(),
            Guest::Tap(n) => n,
        }
    }

    /// The vhost-user socket, where the guest is no namespace.
    #[must_use]
    pub fn device(&self) -> Option<&Path> {
        match &self.guest {
            Guest::Driver(socket) => Some(socket),
            _ => None,
        }
    }

    /// The processes that are measured.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let all = self.measured.as_ref().map(|p| host::family(p.pid())).unwrap_or_default();
        // What pasta was given to run.
        all.into_iter().filter(|pid| name(*pid) != SLEEPER).collect()
    }

    /// Adds what it said to a trouble.
    #[must_use]
    pub fn blame(&self, e: &crate::Trouble) -> crate::Trouble {
        let said = self.measured.as_ref().map(Proc::tail).unwrap_or_default();
        trouble(format!("{e}; what is measured said:\n{said}"))
    }
}

/// What pasta runs.
const SLEEPER: &str = "sleep";

fn name(pid: i32) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    text.trim_end().to_owned()
}

/// A directory of one sample, where everybody may make sockets.
struct Place(PathBuf);

impl Place {
    fn new(bench: &Bench) -> Done<Self> {
        let [at, _] = bench.ours.sockets("user");
        let _gone = std::fs::remove_dir_all(&at);
        std::fs::create_dir(&at).because(at.display())?;
        std::fs::set_permissions(&at, std::fs::Permissions::from_mode(0o777)).because(at.display())?;
        Ok(Self(at))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts who is measured on the measured processor and the guest on the load's, if they are to be `pinned`.
///
/// # Errors
/// Something did not start, or it is not there.
pub fn attach(bench: &Bench, ground: &Ground, case: UserCase, who: Who, pinned: bool) -> Taken<Attached> {
    let place = Place::new(bench)?;
    let on = |processor| if pinned { host::pin(processor).because("pin") } else { Ok(()) };
    on(host::MEASURED)?;
    let result = begin(bench, ground, case, who, &place.0);
    on(host::LOAD)?;
    let result = result.and_then(|(measured, guest)| Ok((meet(guest, case, measured.as_ref())?, measured)));
    host::unpin().because("unpin")?;
    let (guest, measured) = result?;
    Ok(Attached { guest, measured, _place: place })
}

/// How the guest gets at its network.
enum Way {
    /// No guest.
    None,
    /// A vhost-user socket.
    Device(PathBuf),
    /// A stream socket.
    Stream(PathBuf),
    /// Its own `eth0` in this namespace.
    Tap(Netns),
}

fn begin(bench: &Bench, ground: &Ground, case: UserCase, who: Who, at: &Path) -> Taken<(Option<Proc>, Way)> {
    let socket = at.join("socket");
    let (p, way) = match (who, case.attach) {
        (Who::Veth, _) => return Ok((None, Way::None)),
        (Who::Netreeve | Who::Open | Who::Busy, _) => {
            (netreeve(bench, ground, case, who, &socket)?, case.attach.way(socket))
        }
        (Who::Passt, Attach::Stream) => {
            let mut c = passt("passt", case)?;
            c.arg("--socket").arg(&socket);
            let p = ground.host.spawn("passt", c)?;
            wait_for_socket(&socket, START).because(format!("passt said:\n{}", p.tail()))?;
            (p, Way::Stream(socket))
        }
        (Who::Pasta, _) => pasta(ground, case)?,
        (Who::Slirp4netns, _) => slirp4netns(ground, case)?,
        (Who::QemuUser, Attach::Stream) => {
            let far = format!("stream,id=s,server=on,addr.type=unix,addr.path={}", socket.display());
            (qemu(ground, Some(&far), true)?, Way::Stream(socket))
        }
        (Who::QemuUser, Attach::Device) => {
            let p = qemu(ground, Some(QEMU_TAP), true)?;
            (p, Way::Tap(moved_tap(ground)?))
        }
        (who, _) => return Err(Miss::Skipped(format!("{} makes no network of sockets", who.name()))),
    };
    Ok((Some(p), way))
}

impl Attach {
    fn way(self, socket: PathBuf) -> Way {
        match self {
            Self::Device => Way::Device(socket),
            Self::Stream => Way::Stream(socket),
        }
    }
}

/// Brings the guest up.
fn meet(way: Way, case: UserCase, measured: Option<&Proc>) -> Done<Guest> {
    let said = |e| trouble(format!("{e}; it said:\n{}", measured.map(Proc::tail).unwrap_or_default()));
    let guest = match way {
        Way::None => return Ok(Guest::None),
        Way::Device(socket) if case.look.is_driven() => return Ok(Guest::Driver(socket)),
        Way::Device(socket) => Guest::Bare(Stand::start(&socket, GUEST, true).map_err(said)?),
        Way::Stream(socket) => Guest::Stream(StreamStand::start(&socket).map_err(said)?),
        Way::Tap(world) => Guest::Tap(world),
    };
    let world = match &guest {
        Guest::Bare(s) => s.world(),
        Guest::Stream(s) => s.world(),
        Guest::Tap(n) => n,
        Guest::None | Guest::Driver(_) => return Ok(guest),
    };
    world.sh(&format!(
        "ip addr replace {GUEST}/24 dev eth0; ip link set eth0 mtu {} up; ip route replace default via {GATEWAY}",
        case.mtu
    ))?;
    Ok(guest)
}

fn netreeve(bench: &Bench, ground: &Ground, case: UserCase, who: Who, socket: &Path) -> Done<Proc> {
    let at = socket.display();
    let mut c = bench.ours.command();
    c.arg("--netdev").arg(format!("user,id=n0,mtu={}", case.mtu));
    c.arg("--device").arg(match case.attach {
        Attach::Device => format!("vhost-user,netdev=n0,path={at}"),
        Attach::Stream => format!("stream,netdev=n0,server=on,addr.type=unix,addr.path={at}"),
    });
    match who {
        Who::Open => c.args(["--sandbox", "off"]),
        Who::Busy => c.args(["--busy-poll", "200"]),
        _ => &mut c,
    };
    let p = ground.host.spawn("netreeve", c)?;
    peer::ready(&p)?;
    Ok(p)
}

fn installed(program: &str) -> Taken<PathBuf> {
    bins::peer(program).map_err(|_| Miss::Skipped(format!("{program} is not installed")))
}

/// passt or pasta with the addresses of our own network and without forwards, by a user who may do nothing.
fn passt(program: &str, case: UserCase) -> Taken<Command> {
    let mut c = Command::new(installed(program)?);
    c.args(["--foreground", "--ipv4-only", "--no-map-gw", "--interface", "va"]);
    c.args(["--address", GUEST, "--netmask", "24", "--gateway", GATEWAY, "--mtu", &case.mtu.to_string()]);
    c.args(["--tcp-ports", "none", "--udp-ports", "none"]).uid(USER).gid(USER).current_dir("/");
    Ok(c)
}

/// pasta makes the namespace itself, as for a user who has none.
fn pasta(ground: &Ground, case: UserCase) -> Taken<(Proc, Way)> {
    let mut c = passt("pasta", case)?;
    c.args(["--tcp-ns", "none", "--udp-ns", "none", "--ns-ifname", "eth0", "--", SLEEPER, "3600"]);
    let p = ground.host.spawn("pasta", c)?;
    let ours = ground.host.inode()?;
    let inside = || -> Option<Netns> {
        let pid = host::family(p.pid()).into_iter().find(|pid| name(*pid) == SLEEPER)?;
        let world = Netns::of("pasta's namespace", pid).ok()?;
        let there = world.inode().is_ok_and(|i| i != ours) && has_eth0(&world);
        there.then_some(world)
    };
    let world = until(inside).because(format!("pasta made no eth0; it said:\n{}", p.tail()))?;
    Ok((p, Way::Tap(world)))
}

fn slirp4netns(ground: &Ground, case: UserCase) -> Taken<(Proc, Way)> {
    let mut c = Command::new(installed("slirp4netns")?);
    let world = Netns::new("the guest")?;
    c.arg(format!("--mtu={}", case.mtu)).args(["--netns-type=path", &world.path(), "eth0"]);
    let p = ground.host.spawn("slirp4netns", c)?;
    let there = until(|| has_eth0(&world).then_some(()));
    there.because(format!("slirp4netns made no eth0; it said:\n{}", p.tail()))?;
    Ok((p, Way::Tap(world)))
}

/// The tap that QEMU makes in its own namespace.
const QEMU_TAP: &str = "tap,id=s,ifname=q0,script=no,downscript=no";

/// QEMU without a VM: its `user`, or nothing, and another netdev in one hub.
fn qemu(ground: &Ground, far: Option<&str>, user: bool) -> Taken<Proc> {
    let mut c = Command::new(installed("qemu-system-x86_64")?);
    c.args(["-machine", "none", "-nodefaults", "-no-user-config", "-display", "none"]);
    let near = user.then_some("user,id=u,ipv6=off");
    for (id, netdev) in [("u", near), ("s", far)] {
        let Some(netdev) = netdev else { continue };
        c.args(["-netdev", netdev, "-netdev", &format!("hubport,id=h{id},hubid=0,netdev={id}")]);
    }
    Ok(ground.host.spawn("QEMU", c)?)
}

/// A QEMU like the one that is measured but for its `user`: what the latter adds is the difference.
///
/// # Errors
/// It did not start, or is not there.
pub fn qemu_without(ground: &Ground) -> Taken<(Proc, Netns)> {
    let p = qemu(ground, Some(QEMU_TAP), false)?;
    Ok((p, moved_tap(ground)?))
}

fn moved_tap(ground: &Ground) -> Done<Netns> {
    let world = Netns::new("the guest")?;
    until(|| ground.host.links().ok()?.contains(&"q0".to_owned()).then_some(()))
        .because("QEMU made no tap")?;
    ground.host.sh(&format!("ip link set q0 netns {} name eth0", world.path()))?;
    Ok(world)
}

fn has_eth0(world: &Netns) -> bool {
    world.links().is_ok_and(|l| l.contains(&"eth0".to_owned()))
}

/// Tries until there is something, for as long as a program may take to start.
fn until<T>(mut get: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + START;
    loop {
        match get() {
            None if Instant::now() < end => std::thread::sleep(Duration::from_millis(20)),
            got => return got,
        }
    }
}
