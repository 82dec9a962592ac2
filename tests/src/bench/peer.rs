//! The programs that are measured: netreeve, dpdk-testpmd, xsk-peer, with their command lines.

use std::path::{Path as File, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::case::Path;
use super::host;
use crate::proc::{self, Proc};
use crate::{Because, Done, bins, trouble};

/// How long a foreign program may take to start on a loaded machine.
const START: Duration = Duration::from_secs(20);

/// netreeve with one wire, sandbox and all, after it said that it is ready. `keys` are added to its vhost-user ports.
///
/// # Errors
/// It did not start; the error has what it said.
pub fn netreeve(path: Path, socks: &[PathBuf; 2], keys: &[&str], options: &[&str]) -> Done<Proc> {
    let keys: String = keys.iter().map(|k| format!(",{k}")).collect();
    let [a, b] = socks.each_ref().map(|s| s.display());
    let netdev = match path {
        Path::Xdp(mode) => format!("af-xdp,id=n0,ifname=v0,mode={}", mode.name()),
        Path::Tap => "tap,id=n0".to_owned(),
        Path::Vhost => format!("vhost-user,id=n0,path={b}{keys}"),
    };
    let mut c = Command::new(bins::ours("netreeve")?);
    c.args(["run", "--json", "--netdev", &netdev]);
    c.arg("--device").arg(format!("vhost-user,netdev=n0,path={a}{keys}")).args(options);
    let p = Proc::spawn("netreeve", c)?;
    p.find("that it is ready", START, |l| l.text.trim_start().starts_with('{').then_some(()))?;
    Ok(p)
}

/// dpdk-testpmd that forwards between net_vhost and the driver for `path`, both polled by one core.
///
/// Without huge pages, as everybody here: `--no-huge` costs it some 25 % on vhost at 64 bytes, and nothing where the
/// kernel's work dominates.
///
/// # Errors
/// It did not start; the error has what it said.
pub fn testpmd(path: Path, socks: &[PathBuf; 2]) -> Done<Proc> {
    let [a, b] = socks.each_ref().map(|s| s.display());
    let far = match path {
        Path::Xdp(_) => "net_af_xdp0,iface=v0".to_owned(),
        Path::Tap => "net_tap0,iface=dtap0".to_owned(),
        Path::Vhost => format!("net_vhost1,iface={b},queues=1"),
    };
    let mut c = Command::new(bins::peer("dpdk-testpmd")?);
    c.args(["--lcores", "0@1,1@0", "--no-pci", "--no-huge", "-m", "256", "--no-telemetry", "--no-shconf"]);
    c.arg("--file-prefix").arg(format!("netreeve-bench-{}", std::process::id()));
    c.arg("--vdev").arg(format!("net_vhost0,iface={a},queues=1")).arg("--vdev").arg(far);
    c.args(["--", "-i", "-a", "--nb-cores=1", "--burst=64", "--forward-mode=io"]);
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
