//! The guests' root file system: busybox, iperf3 and ethtool with their libraries, the kernel's virtio-net modules, and
//! sets of others for those who load them, with the programs that need them. Built from what Debian installed, kept in
//! the cache under a name that changes with its ingredients.

use super::cpio::Archive;
use crate::bins::{cache, ours, peer};
use crate::{Because, Done, proc};
use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What every guest's first process does.
pub(super) const INIT: &str = include_str!("init.sh");

/// Modules in the order in which they must be loaded; one that a kernel does not have is built in.
const MODULES: &[&str] = &[
    "crc-ccitt",
    "ipv6",
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];

/// The foreign programs in every guest.
const TOOLS: &[&str] = &["iperf3", "ethtool"];

/// Modules that only some tests want: they lie in the guest and are loaded by [`Console::load`].
///
/// [`Console::load`]: super::Console::load
struct Set {
    name: &'static str,
    /// In the order in which they must be loaded; one that a kernel does not have is built in.
    modules: &'static [&'static str],
    /// A kernel without this one has nothing of the set.
    needs: &'static str,
    /// The program that makes use of them, and where it is: not among busybox's own, one of which has its name.
    tool: (&'static str, &'static str),
}

const SETS: &[Set] = &[Set {
    name: "l2tp",
    modules: &[
        "udp_tunnel",
        "ip6_udp_tunnel",
        "l2tp_core",
        "l2tp_netlink",
        "l2tp_eth",
        "l2tp_ip",
        "l2tp_ip6",
    ],
    needs: "l2tp_eth",
    tool: ("ip", "usr/sbin/ip"),
}];

/// The path of an initramfs with the modules found below `modules`, built if the cache does not have it.
pub fn image(kind: &str, modules: &Path) -> Done<PathBuf> {
    let found = |names: &[&'static str]| -> Vec<(&'static str, PathBuf)> {
        names.iter().filter_map(|m| Some((*m, find(modules, m)?))).collect()
    };
    let mut lists = vec![("order", found(MODULES))];
    if !lists.iter().flat_map(|(_, l)| l).any(|(name, _)| *name == "virtio_net") {
        return Err(crate::trouble(format!(
            "no virtio_net module for the {kind} guest: run `tests/setup.sh` as root"
        )));
    }
    let mut programs = vec![("bin/busybox", peer("busybox")?), ("bin/proof-stream", ours("proof-stream")?)];
    for set in SETS.iter().filter(|s| find(modules, s.needs).is_some()) {
        let (tool, place) = set.tool;
        programs.push((place, peer(tool)?));
        lists.push((set.name, found(set.modules)));
    }
    let mut files = BTreeSet::new();
    for (_, program) in programs.iter().filter(|(name, _)| *name != "bin/busybox") {
        files.extend(with_libraries(program)?.into_iter().filter(|f| f != program));
    }
    for tool in TOOLS {
        files.extend(with_libraries(&peer(tool)?)?);
    }
    let modules = lists.iter().flat_map(|(_, l)| l).map(|(_, p)| p);
    let all = files.iter().chain(programs.iter().map(|(_, p)| p)).chain(modules);
    cached(kind, INIT, all, || build(&programs, &files, &lists))
}

/// The path of an image of this kind that is made of `script` and these files, built if the cache does not have it.
pub(super) fn cached<'a>(
    kind: &str,
    script: &str,
    files: impl Iterator<Item = &'a PathBuf>,
    build: impl FnOnce() -> Done<Vec<u8>>,
) -> Done<PathBuf> {
    let mut key = DefaultHasher::new();
    script.hash(&mut key);
    for path in files {
        let seen = fs::metadata(path).because(path.display())?;
        (path, seen.len(), seen.mtime()).hash(&mut key);
    }
    let image = cache().join(format!("{kind}-{:016x}.cpio", key.finish()));
    if !image.exists() {
        fs::create_dir_all(cache()).because(cache().display())?;
        forget_old(kind)?;
        // Under a name of our own first: two tests may be building it at the same time.
        let draft = image.with_extension(std::process::id().to_string());
        fs::write(&draft, build()?).because(draft.display())?;
        fs::rename(&draft, &image).because(image.display())?;
    }
    Ok(image)
}

/// Removes images of this kind that nobody has wanted for a day: each build of our programs makes another one.
fn forget_old(kind: &str) -> Done<()> {
    for entry in fs::read_dir(cache()).because(cache().display())? {
        let entry = entry.because(cache().display())?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_ours = name.starts_with(&format!("{kind}-")) && name.ends_with(".cpio");
        let age = entry.metadata().ok().and_then(|m| m.accessed().ok()?.elapsed().ok());
        if is_ours && age.is_some_and(|age| age > Duration::from_secs(86_400)) {
            // Another test may have done it.
            let _gone = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

fn build(
    programs: &[(&str, PathBuf)],
    files: &BTreeSet<PathBuf>,
    lists: &[(&str, Vec<(&str, PathBuf)>)],
) -> Done<Vec<u8>> {
    let read = |path: &Path| fs::read(path).because(path.display());
    let mut archive = Archive::default();
    for dir in ["proc", "sys", "tmp", "bin"] {
        archive.dir(dir);
    }
    archive.device("dev/console", 5, 1);
    archive.device("dev/null", 1, 3);
    archive.device("dev/zero", 1, 5);
    archive.device("dev/urandom", 1, 9);
    archive.file("init", 0o755, INIT.as_bytes());
    for (name, path) in programs {
        archive.file(name, 0o755, &read(path)?);
    }
    for path in files {
        archive.file(path.to_string_lossy().trim_start_matches('/'), 0o755, &read(path)?);
    }
    for (list, modules) in lists {
        for (name, path) in modules {
            archive.file(&format!("modules/{name}.ko"), 0o644, &plain(path)?);
        }
        let order: String = modules.iter().map(|(name, _)| format!("{name}\n")).collect();
        archive.file(&format!("modules/{list}"), 0o644, order.as_bytes());
    }
    Ok(archive.finish())
}

/// A program and the libraries that its loader would load, each under the path by which it is asked for.
pub(super) fn with_libraries(program: &Path) -> Done<Vec<PathBuf>> {
    let mut ldd = Command::new("ldd");
    ldd.arg(program);
    let text = proc::run("ldd", ldd, Duration::from_secs(10))?.ok("ldd")?;
    let mut files = vec![program.to_owned()];
    for line in text.lines() {
        files.extend(line.split_whitespace().find(|w| w.starts_with('/')).map(PathBuf::from));
    }
    Ok(files)
}

/// The file of a module below `dir`, plain or compressed.
pub(super) fn find(dir: &Path, module: &str) -> Option<PathBuf> {
    let names = [format!("{module}.ko"), format!("{module}.ko.xz")];
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).ok()?.flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                dirs.push(entry.path());
            } else if names.iter().any(|n| entry.file_name() == n.as_str()) {
                return Some(entry.path());
            }
        }
    }
    None
}

/// A module's bytes; busybox's insmod cannot unpack them.
pub(super) fn plain(path: &Path) -> Done<Vec<u8>> {
    if path.extension().is_some_and(|e| e == "ko") {
        return fs::read(path).because(path.display());
    }
    let out = Command::new(peer("xz")?).arg("-dc").arg(path).output().because("xz")?;
    if !out.status.success() {
        return Err(crate::trouble(format!("xz cannot unpack {}", path.display())));
    }
    Ok(out.stdout)
}
