//! A guest in which tests run: a Debian kernel, with tests, our programs, and what they call, each at the place that it has on
//! this machine. So what a kernel other than this machine's does is seen by the same tests, and not by a talk over a console.
//!
//! The guest is nobody's VMM here: it is a machine, with a root file system of its own that things can be mounted in the place of.

use super::cpio::Archive;
use super::initramfs::{INIT, cached, find, plain, with_libraries};
use super::qemu::{Qemu, modules};
use super::{Console, Job};
use crate::bins::{BIN_DIR, ours, peer};
use crate::proc::Outcome;
use crate::{Because, Done, trouble};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where tests and programs of ours lie in the guest.
const HOME: &str = "/proof";

/// Our programs.
const PROGRAMS: &[&str] = &["netreeve", "netreeve-dataplane", "netreeve-helper", "proof-stream"];

/// Foreign programs that tests call. All others are busybox's.
const TOOLS: &[&str] = &["ip", "bpftool", "ping", "setpriv", "unshare", "nsenter"];

/// Modules in the order in which they must be loaded; one that a kernel does not have is built in.
const MODULES: &[&str] = &[
    "tun",
    "veth",
    "llc",
    "stp",
    "bridge",
    "overlay",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vsock_loopback",
];

/// Memory in MiB: a few copies of the programs lie in it.
const MEMORY: u32 = 768;

/// The first process, which moves to a root that is mounted: nothing can be put in the place of a kernel's first one
/// (pivot_root(2)), as our sandbox and others do.
const FIRST: &str = "#!/bin/busybox sh
set -e
/bin/busybox mkdir /new
/bin/busybox mount -t tmpfs -o mode=755,size=90% root /new
/bin/busybox cp -a /tree/. /new
exec /bin/busybox switch_root /new /init
";

/// What a distribution's init would have done before tests are run.
const PREPARE: &str = "
chmod 1777 /tmp
mkdir -p /dev/shm /dev/pts /run
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t devpts -o ptmxmode=666 pts /dev/pts
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t securityfs security /sys/kernel/security
chmod 666 /dev/net/tun /dev/null /dev/zero /dev/urandom
";

/// Files that are there on any machine.
const FILES: &[(&str, &str)] = &[
    ("etc/passwd", "root:x:0:0:root:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"),
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("etc/resolv.conf", "nameserver 192.0.2.1\n"),
];

/// A guest that runs tests.
pub struct Proving {
    console: Console,
}

impl Proving {
    /// Boots one with these programs of tests, by the names that they shall have in it.
    pub fn boot(tests: &[(&str, PathBuf)]) -> Done<Proving> {
        let console = Qemu::new().machine(image(tests)?, MEMORY).boot()?;
        console.ok(PREPARE)?;
        Ok(Proving { console })
    }

    /// Its kernel's release.
    pub fn kernel(&self) -> Done<String> {
        self.console.kernel()
    }

    /// Runs a script to its end, in the directory of the programs.
    pub fn run(&self, script: &str, within: Duration) -> Done<Outcome> {
        let job = self.start(script)?;
        self.console.finish(job, within)
    }

    fn start(&self, script: &str) -> Done<Job> {
        let places = "/usr/sbin:/usr/bin:/sbin:/bin";
        self.console.start(&format!("cd {HOME}; export PATH={places} {BIN_DIR}={HOME} TMPDIR=/tmp\n{script}"))
    }

    /// Switches it off.
    pub fn power_off(self) -> Done {
        self.console.power_off(Duration::from_secs(20))
    }
}

/// Files by the place that they have in the guest.
type Placed = Vec<(String, PathBuf)>;

fn image(tests: &[(&str, PathBuf)]) -> Done<PathBuf> {
    let modules = modules();
    let modules: Vec<(&str, PathBuf)> =
        MODULES.iter().filter_map(|m| Some((*m, find(&modules, m)?))).collect();
    if !modules.iter().any(|(name, _)| *name == "tun") {
        return Err(trouble("no module tun for the guest that runs tests: run `tests/setup.sh` as root"));
    }
    let mut placed = Placed::new();
    let mut libraries = BTreeSet::new();
    let home = HOME.trim_start_matches('/');
    let programs = PROGRAMS.iter().map(|name| Ok((*name, ours(name)?))).collect::<Done<Vec<_>>>()?;
    for (name, path) in programs.iter().chain(tests) {
        placed.push((format!("{home}/{name}"), path.clone()));
        libraries.extend(with_libraries(path)?.into_iter().filter(|f| f != path));
    }
    for tool in TOOLS {
        let path = peer(tool)?;
        let real = path.canonicalize().because(path.display())?;
        let place = real.parent().unwrap_or(Path::new("/usr/bin")).join(tool);
        placed.push((inside(&place), path.clone()));
        libraries.extend(with_libraries(&path)?.into_iter().filter(|f| *f != path));
    }
    // busybox's shell takes its own commands for those of the same name, wherever they lie.
    let shell = peer("sh")?;
    libraries.extend(with_libraries(&shell)?.into_iter().filter(|f| *f != shell));
    placed.extend([("bin/sh".to_owned(), shell), ("bin/busybox".to_owned(), peer("busybox")?)]);
    placed.extend(libraries.into_iter().map(|l| (inside(&l), l)));
    let script: String = [FIRST, INIT].concat() + &FILES.iter().map(|(_, text)| *text).collect::<String>();
    let all: Vec<PathBuf> =
        placed.iter().map(|(_, p)| p).chain(modules.iter().map(|(_, p)| p)).cloned().collect();
    cached("proving", &script, all.iter(), || build(&placed, &modules))
}

/// A path of this machine's, as it stands in an archive.
fn inside(path: &Path) -> String {
    path.to_string_lossy().trim_start_matches('/').to_owned()
}

fn build(placed: &[(String, PathBuf)], modules: &[(&str, PathBuf)]) -> Done<Vec<u8>> {
    let mut archive = Archive::default();
    archive.device("dev/console", 5, 1);
    archive.file("init", 0o755, FIRST.as_bytes());
    archive.file("bin/busybox", 0o755, &fs::read(peer("busybox")?).because("busybox")?);
    for dir in ["dev", "etc", "proc", "run", "sys", "tmp"] {
        archive.dir(&format!("tree/{dir}"));
    }
    archive.file("tree/init", 0o755, INIT.as_bytes());
    for (name, text) in FILES {
        archive.file(&format!("tree/{name}"), 0o644, text.as_bytes());
    }
    for (place, path) in placed {
        archive.file(&format!("tree/{place}"), 0o755, &fs::read(path).because(path.display())?);
    }
    for (name, path) in modules {
        archive.file(&format!("tree/modules/{name}.ko"), 0o644, &plain(path)?);
    }
    let order: String = modules.iter().map(|(name, _)| format!("{name}\n")).collect();
    archive.file("tree/modules/order", 0o644, order.as_bytes());
    Ok(archive.finish())
}
