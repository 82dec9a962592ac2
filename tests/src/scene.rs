//! The scene that demo and real-tier tests play in: a host namespace with an interface or a bridge, a far namespace at
//! the other end of a veth pair, netreeve's programs copied to where an unprivileged user can run them, the helper as
//! root with a policy of its own, and `netreeve` as a user who may do nothing.

use crate::bins::ours;
use crate::guest::qemu::Qemu;
use crate::inspect;
use crate::netns::{Netns, veth};
use crate::proc::{Line, Proc};
use crate::{Because, Done, trouble};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, socket};
use std::fs::{self, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The user that `netreeve` runs as in all of the proofs: nobody's, and without any right but the policy's.
pub const USER: u32 = 64_001;

/// The interface in the host namespace.
pub const UPLINK: &str = "nv0";
/// The interface in the far namespace.
pub const FAR: &str = "nv1";
/// The bridge in the host namespace, when there is one.
pub const BRIDGE: &str = "br0";

/// The far side's addresses.
pub const FAR4: &str = "10.77.0.1";
/// The same, IPv6.
pub const FAR6: &str = "fd77::1";
/// The first guest's addresses.
pub const GUEST4: &str = "10.77.0.2";
/// The same, IPv6.
pub const GUEST6: &str = "fd77::2";

/// How long a program of ours may take to become ready, to end, to clean up.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What joins the guest and the far side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Road {
    /// The veth's host end is the guest's alone, by AF_XDP.
    AfXdp,
    /// A tap and the veth's host end are ports of a bridge.
    Bridge,
}

/// A scene. Dropping it ends everything in it.
pub struct Scene {
    // In the order of their end: processes before namespaces before files.
    helper: Option<Proc>,
    /// The namespace with the uplink, where helper and netreeve run.
    pub host: Netns,
    /// The namespace at the other end.
    pub far: Netns,
    road: Road,
    dir: Dir,
}

/// A directory that goes with its value.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes the directories of all scenes and guests of this process: for a program that is being interrupted.
pub fn remove_all() {
    for dir in crate::leftovers::files() {
        let _ = fs::remove_dir_all(dir);
    }
}

impl Scene {
    /// Sets the scene, without helper.
    pub fn set(road: Road) -> Done<Scene> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = Dir(std::env::temp_dir().join(format!("netreeve-{}-{id}", crate::proc::mark())));
        fs::create_dir(&dir.0).because(dir.0.display())?;
        fs::set_permissions(&dir.0, Permissions::from_mode(0o755)).because(dir.0.display())?;
        for program in ["netreeve", "netreeve-dataplane", "netreeve-helper"] {
            // Not linked: the tree may be where other users cannot look.
            fs::copy(ours(program)?, dir.0.join(program)).because(program)?;
        }
        let run = dir.0.join("run");
        fs::create_dir(&run).because(run.display())?;
        chown(&run, Some(USER), Some(USER)).because(run.display())?;
        let (host, far) = (Netns::new("host")?, Netns::new("far")?);
        veth(&host, UPLINK, &far, FAR)?;
        let scene = Scene { helper: None, host, far, road, dir };
        scene.join()?;
        Ok(scene)
    }

    /// Far side's addresses, and the bridge if there is one.
    fn join(&self) -> Done {
        self.far.sh(&format!("ip addr add {FAR4}/24 dev {FAR}; ip addr add {FAR6}/64 dev {FAR} nodad"))?;
        if self.road == Road::Bridge {
            self.host.sh(&format!(
                "ip link show {BRIDGE} >/dev/null 2>&1 || ip link add {BRIDGE} type bridge forward_delay 0
                 ip link set {BRIDGE} up
                 ip link set {UPLINK} master {BRIDGE}"
            ))?;
        }
        Ok(())
    }

    /// Makes the pair of interfaces anew, with as many queues each way at both ends.
    pub fn queues(&self, n: u32) -> Done {
        let each = format!("numtxqueues {n} numrxqueues {n}");
        self.host.sh(&format!(
            "ip link del {UPLINK}
             ip link add {UPLINK} {each} type veth peer name {FAR} {each} netns {}
             ip link set {UPLINK} up",
            self.far.path()
        ))?;
        self.far.sh(&format!("ip link set {FAR} up"))?;
        self.join()
    }

    /// Gives the same MTU to everything in the scene.
    pub fn mtu(&self, bytes: u32) -> Done {
        self.far.sh(&format!("ip link set {FAR} mtu {bytes}"))?;
        self.host.sh(&format!("for l in $(ls /proc/sys/net/ipv4/conf | grep -E '^({UPLINK}|{BRIDGE})$'); do ip link set $l mtu {bytes}; done"))?;
        Ok(())
    }

    /// A place in the user's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.0.join("run").join(name)
    }

    /// A program of ours, where every user can run it.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.0.join(name)
    }

    /// The helper's socket.
    pub fn helper_socket(&self) -> PathBuf {
        self.dir.0.join("helper.sock")
    }

    /// Starts the helper as a daemon with this policy.
    pub fn help(&mut self, policy: &str) -> Done {
        let file = self.write_policy(policy)?;
        let mut command = Command::new(self.program("netreeve-helper"));
        command.arg("--listen").arg(self.helper_socket()).arg("--policy").arg(file);
        let helper = self.host.spawn("netreeve-helper", command)?;
        accepts(&self.helper_socket(), PATIENCE)
            .because(format!("netreeve-helper said:\n{}", helper.tail()))?;
        self.helper = Some(helper);
        Ok(())
    }

    /// Writes a policy file that the helper will believe.
    pub fn write_policy(&self, policy: &str) -> Done<PathBuf> {
        let file = self.dir.0.join("policy.conf");
        fs::write(&file, policy).because(file.display())?;
        fs::set_permissions(&file, Permissions::from_mode(0o644)).because(file.display())?;
        Ok(file)
    }

    /// The helper's process.
    pub fn helper(&self) -> Done<&Proc> {
        self.helper.as_ref().because("this scene has no helper")
    }

    /// Ends the helper.
    pub fn dismiss(&mut self) {
        self.helper = None;
    }

    /// The `--netdev` of this scene's road.
    pub fn netdev(&self, id: &str) -> String {
        match self.road {
            Road::AfXdp => format!("af-xdp,id={id},ifname={UPLINK}"),
            Road::Bridge => format!("tap,id={id},br={BRIDGE}"),
        }
    }

    /// A policy that allows this scene's user what its road needs, and nothing else.
    pub fn policy(&self) -> String {
        match self.road {
            Road::AfXdp => format!("allow uid:{USER} xsk {UPLINK}\n"),
            Road::Bridge => format!("allow uid:{USER} bridge {BRIDGE}\n"),
        }
    }

    /// `netreeve` as the unprivileged user, with these arguments; not started yet.
    pub fn netreeve(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.program("netreeve"));
        command.args(arguments).uid(USER).gid(USER).current_dir(self.path(""));
        command
    }

    /// A QEMU guest whose files every user can read.
    pub fn qemu(&self) -> Qemu<'_> {
        Qemu::new().files_in(self.dir.0.clone())
    }

    /// Starts `netreeve run` with these netdevs and devices and waits until it listens.
    pub fn run(&self, netdevs: &[&str], devices: &[&str], more: &[&str]) -> Done<Reeve> {
        let socket = self.helper_socket();
        let mut arguments =
            vec!["run", "--json", "--helper-socket", socket.to_str().because("a path that is no text")?];
        netdevs.iter().for_each(|n| arguments.extend(["--netdev", n]));
        devices.iter().for_each(|d| arguments.extend(["--device", d]));
        arguments.extend(more);
        self.start(self.netreeve(&arguments)).because(format!("arguments {arguments:?}"))
    }
}

/// Waits until a socket of sequenced packets takes connections: it is there before it listens.
fn accepts(path: &Path, within: Duration) -> Done {
    let until = Instant::now() + within;
    let connect = || -> nix::Result<()> {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        nix::sys::socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)
    };
    while let Err(e) = connect() {
        if Instant::now() >= until {
            return Err(trouble(format!("{} takes no connection within {within:?}: {e}", path.display())));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

impl Scene {
    /// A command that runs as the unprivileged user where these files stand in `/etc`, by way of a mount namespace of
    /// its own: the machine's own `/etc` stays as it is. It takes the program and its arguments.
    pub fn with_etc(&self, files: &[(&str, &str)]) -> Done<Command> {
        let etc = self.dir.0.join("etc");
        for (name, text) in files {
            let file = etc.join(name);
            fs::create_dir_all(file.parent().unwrap_or(&etc)).because(file.display())?;
            fs::write(&file, text).because(file.display())?;
        }
        let script = format!(
            "mount -t overlay etc -o lowerdir={}:/etc /etc
             exec setpriv --reuid {USER} --regid {USER} --clear-groups \"$@\"",
            etc.display()
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", &script, "sh"]);
        command.current_dir(self.path(""));
        Ok(command)
    }

    /// Starts a command that is a `netreeve run --json`, and waits until it is ready.
    pub fn start(&self, command: Command) -> Done<Reeve> {
        let reeve = Reeve { proc: self.host.spawn("netreeve run", command)? };
        reeve.proc.wait_for("\"ready\"", PATIENCE)?;
        Ok(reeve)
    }
}

/// A running `netreeve`, the supervisor.
pub struct Reeve {
    /// Its process.
    pub proc: Proc,
}

/// In a test that fails: what it said and what it has counted, so that lost frames can be explained.
#[allow(clippy::print_stderr, reason = "for whoever reads the log of a test that failed")]
impl Drop for Reeve {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let before = self.proc.lines().len();
        let counted = |lines: &[Line]| lines.iter().skip(before).any(|l| l.text.contains("\"stats\""));
        if self.proc.alive() && self.proc.signal(Signal::SIGUSR1).is_ok() {
            let until = Instant::now() + Duration::from_secs(1);
            while !counted(&self.proc.lines()) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        eprintln!("netreeve said, its counters last:\n{}", self.proc.tail());
    }
}

impl Reeve {
    /// The process id of its dataplane.
    pub fn dataplane(&self) -> Done<i32> {
        inspect::descendant_named(self.proc.pid(), "netreeve-dataplane", PATIENCE)
    }
}

/// Gives a guest's NIC its addresses; `host` is the last part of both.
pub fn address(guest: &crate::guest::Console, nic: &str, host: u8, mtu: u32) -> Done {
    guest.ok(&format!(
        "echo 0 >/proc/sys/net/ipv6/conf/{nic}/accept_dad
         ip link set {nic} mtu {mtu} up
         ip addr add 10.77.0.{host}/24 dev {nic}
         ip -6 addr add fd77::{host}/64 dev {nic}"
    ))?;
    Ok(())
}
