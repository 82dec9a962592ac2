//! The programs that are measured: netreeve, dpdk-testpmd, xsk-peer, with their command lines.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path as File, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::case::{Path, Way};
use super::host;
use crate::guest::uml::wait_for_socket;
use crate::proc::{self, Proc};
use crate::scene::USER;
use crate::{Because, Done, bins, trouble};

/// How long a foreign program may take to start on a loaded machine.
const START: Duration = Duration::from_secs(20);

/// The directory that DPDK makes for its processes here and does not remove.
fn dpdk_runtime() -> PathBuf {
    PathBuf::from(format!("/var/run/dpdk/netreeve-bench-{}", std::process::id()))
}

/// Removes what a bench, interrupted or not, leaves in the file system.
pub fn remove_all() {
    let _none = fs::remove_dir_all(dpdk_runtime());
    let mine = format!("netreeve-bench-{}-", std::process::id());
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&mine) {
            // There is nobody left to tell.
            let _gone = fs::remove_dir_all(entry.path());
        }
    }
}

/// netreeve's programs in a directory of their own, with a helper in the namespace of whoever made this, and `netreeve`
/// run by a user who may do nothing but what the helper's policy says: as in daily use.
pub struct Ours {
    _helper: Proc,
    dir: PathBuf,
}

impl Ours {
    /// Starts the helper.
    ///
    /// # Errors
    /// The programs are not built, or the helper did not start; the error has what it said.
    pub fn new() -> Done<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("netreeve-bench-{}-{id}", std::process::id()));
        fs::create_dir(&dir).because(dir.display())?;
        let started = Self::start(&dir);
        if started.is_err() {
            // The first trouble is the one to tell.
            let _gone = fs::remove_dir_all(&dir);
        }
        Ok(Self { _helper: started?, dir })
    }

    fn start(dir: &File) -> Done<Proc> {
        for program in ["netreeve", "netreeve-dataplane", "netreeve-helper"] {
            // Not linked: the tree may be where other users cannot look.
            fs::copy(bins::ours(program)?, dir.join(program)).because(program)?;
        }
        let run = dir.join("run");
        fs::create_dir(&run).because(run.display())?;
        std::os::unix::fs::chown(&run, Some(USER), Some(USER)).because(run.display())?;
        let policy = dir.join("policy.conf");
        fs::write(&policy, format!("allow uid:{USER} xsk v0\nallow uid:{USER} tap *\nlimit any sessions=200 requests=1000/s taps=200 umem=1G\n"))
            .because(policy.display())?;
        for path in [dir, &policy] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).because(path.display())?;
        }
        let socket = dir.join("helper.sock");
        let mut c = Command::new(dir.join("netreeve-helper"));
        c.arg("--listen").arg(&socket).arg("--policy").arg(&policy);
        let helper = Proc::spawn("netreeve-helper", c)?;
        wait_for_socket(&socket, START).because(format!("netreeve-helper said:\n{}", helper.tail()))?;
        Ok(helper)
    }

    /// `netreeve run`, by the user who may do nothing; its ports are yet to be said.
    #[must_use]
    pub fn command(&self) -> Command {
        let mut c = Command::new(self.dir.join("netreeve"));
        c.args(["run", "--json"]).uid(USER).gid(USER).current_dir(self.dir.join("run"));
        c
    }

    /// Two places for vhost-user sockets.
    #[must_use]
    pub fn sockets(&self, name: &str) -> [PathBuf; 2] {
        ["a", "b"].map(|i| self.dir.join("run").join(format!("{name}{i}")))
    }

    /// netreeve with one wire, sandbox and all, after it said that it is ready. `keys` are added to its vhost-user
    /// ports, `options` to its own.
    ///
    /// # Errors
    /// It did not start; the error has what it said.
    pub fn run(&self, path: Path, socks: &[PathBuf; 2], keys: &[&str], options: &[&str]) -> Done<Proc> {
        self.run_many(path, std::slice::from_ref(socks), keys, options)
    }

    /// The same with one wire for each pair of sockets.
    ///
    /// # Errors
    /// It did not start; the error has what it said.
    pub fn run_many(
        &self,
        path: Path,
        wires: &[[PathBuf; 2]],
        keys: &[&str],
        options: &[&str],
    ) -> Done<Proc> {
        let keys: String = keys.iter().map(|k| format!(",{k}")).collect();
        let mut c = Command::new(self.dir.join("netreeve"));
        c.args(["run", "--json", "--helper-socket"]).arg(self.dir.join("helper.sock"));
        for (i, socks) in wires.iter().enumerate() {
            let [a, b] = socks.each_ref().map(|s| s.display());
            let netdev = match path {
                Path::Xdp(mode) => format!("af-xdp,id=n{i},ifname=v0,mode={}", mode.name()),
                Path::Tap => format!("tap,id=n{i}"),
                Path::Vhost => format!("vhost-user,id=n{i},path={b}{keys}"),
                Path::Nothing => return Err(trouble("a wire has two ends")),
            };
            c.arg("--netdev").arg(netdev);
            c.arg("--device").arg(format!("vhost-user,netdev=n{i},path={a}{keys}"));
        }
        c.args(options);
        c.uid(USER).gid(USER).current_dir(self.dir.join("run"));
        let p = Proc::spawn("netreeve", c)?;
        ready(&p)?;
        Ok(p)
    }
}

/// Waits until a netreeve is ready.
///
/// # Errors
/// It did not start; the error has what it said.
pub fn ready(p: &Proc) -> Done {
    p.find("that it is ready", START, |l| l.text.trim_start().starts_with('{').then_some(()))
}

impl Drop for Ours {
    fn drop(&mut self) {
        // There is nobody left to tell.
        let _gone = fs::remove_dir_all(&self.dir);
    }
}

/// dpdk-testpmd that forwards between net_vhost and the driver for `path`, both polled by one core; for [`Path::Nothing`]
/// it drops what net_vhost gives or makes frames for it.
///
/// Without huge pages, as everybody here: `--no-huge` costs it some 25 % on vhost at 64 bytes, and nothing where the
/// kernel's work dominates.
///
/// # Errors
/// It did not start; the error has what it said.
pub fn testpmd(path: Path, way: Way, size: usize, socks: &[PathBuf; 2]) -> Done<Proc> {
    let [a, b] = socks.each_ref().map(|s| s.display());
    let far = match path {
        Path::Xdp(_) => Some("net_af_xdp0,iface=v0".to_owned()),
        Path::Tap => Some("net_tap0,iface=dtap0".to_owned()),
        Path::Vhost => Some(format!("net_vhost1,iface={b},queues=1")),
        Path::Nothing => None,
    };
    let mode = match (path, way) {
        (Path::Nothing, Way::Out) => "rxonly",
        (Path::Nothing, _) => "txonly",
        _ => "io",
    };
    let mut c = Command::new(bins::peer("dpdk-testpmd")?);
    c.args(["--lcores", "0@1,1@0", "--no-pci", "--no-huge", "-m", "256", "--no-telemetry", "--no-shconf"]);
    c.arg("--file-prefix").arg(format!("netreeve-bench-{}", std::process::id()));
    c.arg("--vdev").arg(format!("net_vhost0,iface={a},queues=1"));
    c.args(far.iter().flat_map(|far| ["--vdev", far]));
    c.args(["--", "-i", "-a", "--nb-cores=1", "--burst=64"]);
    c.arg(format!("--forward-mode={mode}")).arg(format!("--txpkts={size}"));
    c.args(["--total-num-mbufs=16384", "--no-mlockall"]);
    // Its main thread only waits for commands and signals; the thread that forwards has the measured core to itself.
    host::unpin().because("unpin")?;
    // Its interactive mode ends at the end of its input: the pipe stays open as long as the process is held.
    let p = Proc::with_input("dpdk-testpmd", c)?;
    p.wait_for("Checking link statuses", START)?;
    Ok(p)
}

/// The xsk-rs peer, built when it is missing: it has a lockfile of its own and so its own cargo run.
///
/// # Errors
/// It could not be built.
pub fn xsk_peer() -> Done<PathBuf> {
    let dir = bins::root().join("tests/xsk-peer");
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| bins::root().join("target"), PathBuf::from)
        .join("xsk-peer");
    let program = target.join("release/xsk-peer");
    if newer(&program, &dir.join("src/main.rs")) {
        return Ok(program);
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args(["build", "--release", "--locked", "--quiet"])
        .current_dir(&dir)
        .env("CARGO_TARGET_DIR", &target);
    proc::run("cargo build of tests/xsk-peer", cargo, Duration::from_secs(900))?
        .ok("building tests/xsk-peer")?;
    if program.is_file() { Ok(program) } else { Err(trouble("cargo built no xsk-peer")) }
}

/// `file` is there and not older than `than`.
fn newer(file: &File, than: &File) -> bool {
    let at = |p: &File| p.metadata().and_then(|m| m.modified()).ok();
    at(file).zip(at(than)).is_some_and(|(a, b)| a >= b)
}
