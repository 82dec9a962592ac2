//! Which QEMUs there are to test with: the distribution's, and those of other suites that `tests/vmms.sh` has fetched.

use crate::bins::{cache, peer};
use crate::proc;
use crate::{Because, Done, trouble};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The environment variable that names the QEMUs to test with instead (paths, separated by `:`). The first is the one of
/// every test that takes but one.
pub const CHOICE: &str = "NETREEVE_QEMU";

/// The oldest that the tests take where they take but one: all of its netdevs know what today's do.
const USUAL: (u32, u32, u32) = (10, 0, 0);

/// A QEMU.
#[derive(Clone, Debug)]
pub struct Vmm {
    /// How it is started.
    pub path: PathBuf,
    /// Its version: major, minor and patch.
    pub version: (u32, u32, u32),
}

impl Vmm {
    /// The QEMU at this path, asked for its version.
    pub fn at(path: PathBuf) -> Done<Vmm> {
        let mut command = Command::new(&path);
        command.arg("--version");
        let what = format!("{} --version", path.display());
        let said = proc::run("qemu", command, Duration::from_secs(10))?.ok(&what)?;
        let text = said.split_once("version ").map(|(_, v)| v).because(format!("{what}: {said}"))?;
        let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
        let mut next = || numbers.next();
        let version = (next().because(said.clone())?, next().unwrap_or(0), next().unwrap_or(0));
        Ok(Vmm { path, version })
    }

    /// The one of every test that takes but one: the distribution's, or where that is older than 10 (Debian 12's is), the
    /// next that was fetched, unless [`CHOICE`] says otherwise.
    pub fn usual() -> Done<Vmm> {
        if let Some(path) = chosen().into_iter().next() {
            return Vmm::at(path);
        }
        let own = Vmm::at(peer("qemu-system-x86_64")?)?;
        if own.version >= USUAL {
            return Ok(own);
        }
        let fetched = fetched().into_iter().map(Vmm::at).collect::<Done<Vec<_>>>()?;
        let next = fetched.into_iter().filter(|v| v.version >= USUAL).min_by_key(|v| v.version);
        next.because(format!(
            "{own} is too old, and no other was fetched: run `tests/vmms.sh` (network: 45 MB)"
        ))
    }

    /// Every QEMU there is, one of each version. At least one beside the distribution's: what is said of "QEMU" should
    /// hold for more than this machine's.
    pub fn all() -> Done<Vec<Vmm>> {
        let chosen = chosen();
        if !chosen.is_empty() {
            return chosen.into_iter().map(Vmm::at).collect();
        }
        let mut paths = fetched();
        if paths.is_empty() {
            return Err(trouble(format!(
                "no QEMU but the distribution's: run `tests/vmms.sh` (network: 45 MB), or name the ones to test with in \
                 {CHOICE}"
            )));
        }
        paths.insert(0, peer("qemu-system-x86_64")?);
        let mut all: Vec<Vmm> = Vec::new();
        for path in paths {
            let vmm = Vmm::at(path)?;
            if all.iter().all(|other| other.version != vmm.version) {
                all.push(vmm);
            }
        }
        Ok(all)
    }

    /// How it is told to dial a socket again: in seconds until 9.1, in milliseconds since 9.2.
    pub fn reconnect(&self) -> &'static str {
        if self.version >= (9, 2, 0) { "reconnect-ms=100" } else { "reconnect=1" }
    }

    /// Options of a NIC that its bugs make necessary. Debian 12's 7.2.22 dies (vector_irqfd is no memory) when a guest uses
    /// MSI-X with any vhost-user back-end and there is no KVM: the NIC has a line interrupt then.
    pub fn nic(&self) -> &'static str {
        if self.version < (8, 0, 0) { ",vectors=0" } else { "" }
    }

    /// Where a user who cannot look into the source tree can start it: a fetched one is copied, loader, libraries and
    /// all, into a folder of `dir`.
    pub fn reachable(&self, dir: &Path) -> Done<PathBuf> {
        let Some(home) = self.path.parent().filter(|p| p.starts_with(store())) else {
            return Ok(self.path.clone());
        };
        let (a, b, c) = self.version;
        let to = dir.join(format!("qemu-{a}.{b}.{c}"));
        if !to.exists() {
            let mut copy = Command::new("cp");
            copy.arg("-rT").arg(home).arg(&to);
            proc::run("cp", copy, Duration::from_secs(60))?.ok("copy a QEMU")?;
        }
        Ok(to.join(self.path.file_name().because("a program has a name")?))
    }
}

impl std::fmt::Display for Vmm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (a, b, c) = self.version;
        write!(f, "QEMU {a}.{b}.{c}")
    }
}

/// Where `tests/vmms.sh` puts them.
fn store() -> PathBuf {
    cache().join("qemu")
}

fn chosen() -> Vec<PathBuf> {
    let choice = env::var_os(CHOICE).unwrap_or_default();
    env::split_paths(&choice).filter(|p| !p.as_os_str().is_empty()).collect()
}

fn fetched() -> Vec<PathBuf> {
    let suites = fs::read_dir(store()).into_iter().flatten().flatten();
    let mut all: Vec<PathBuf> = suites
        // One that is being fetched has a name with a dot in front.
        .filter(|e| !e.file_name().to_string_lossy().starts_with('.'))
        .map(|e| e.path().join("qemu-system-x86_64"))
        .filter(|p| p.is_file())
        .collect();
    all.sort();
    all
}
