//! The guests' root file system: busybox, iperf3 and ethtool with their libraries, and the kernel's virtio-net modules.
//! Built from what Debian installed, kept in the cache under a name that changes with its ingredients.

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

/// The path of an initramfs with the modules found below `modules`, built if the cache does not have it.
pub fn image(kind: &str, modules: &Path) -> Done<PathBuf> {
    let modules: Vec<(&str, PathBuf)> =
        MODULES.iter().filter_map(|m| Some((*m, find(modules, m)?))).collect();
    if !modules.iter().any(|(name, _)| *name == "virtio_net") {
        return Err(crate::trouble(format!(
            "no virtio_net module for the {kind} guest: run `tests/setup.sh` as root"
        )));
    }
    let busybox = peer("busybox")?;
    let stream = ours("proof-stream")?;
    let mut files: BTreeSet<PathBuf> =
        with_libraries(&stream)?.into_iter().filter(|f| *f != stream).collect();
    for tool in TOOLS {
        files.extend(with_libraries(&peer(tool)?)?);
    }
    let mut key = DefaultHasher::new();
    include_str!("init.sh").hash(&mut key);
    for path in files.iter().chain([&busybox, &stream]).chain(modules.iter().map(|(_, p)| p)) {
        let seen = fs::metadata(path).because(path.display())?;
        (path, seen.len(), seen.mtime()).hash(&mut key);
    }
    let image = cache().join(format!("{kind}-{:016x}.cpio", key.finish()));
    if !image.exists() {
        fs::create_dir_all(cache()).because(cache().display())?;
        // Under a name of our own first: two tests may be building it at the same time.
        let draft = image.with_extension(std::process::id().to_string());
        fs::write(
            &draft,
            build(&[("bin/busybox", &busybox), ("bin/proof-stream", &stream)], &files, &modules)?,
        )
        .because(draft.display())?;
        fs::rename(&draft, &image).because(image.display())?;
    }
    Ok(image)
}

fn build(
    programs: &[(&str, &Path)],
    files: &BTreeSet<PathBuf>,
    modules: &[(&str, PathBuf)],
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
    archive.file("init", 0o755, include_str!("init.sh").as_bytes());
    for (name, path) in programs {
        archive.file(name, 0o755, &read(path)?);
    }
    for path in files {
        archive.file(path.to_string_lossy().trim_start_matches('/'), 0o755, &read(path)?);
    }
    for (name, path) in modules {
        archive.file(&format!("modules/{name}.ko"), 0o644, &plain(path)?);
    }
    let order: String = modules.iter().map(|(name, _)| format!("{name}\n")).collect();
    archive.file("modules/order", 0o644, order.as_bytes());
    Ok(archive.finish())
}

/// A program and the libraries that its loader would load, each under the path by which it is asked for.
fn with_libraries(program: &Path) -> Done<Vec<PathBuf>> {
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
fn find(dir: &Path, module: &str) -> Option<PathBuf> {
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
fn plain(path: &Path) -> Done<Vec<u8>> {
    if path.extension().is_some_and(|e| e == "ko") {
        return fs::read(path).because(path.display());
    }
    let out = Command::new(peer("xz")?).arg("-dc").arg(path).output().because("xz")?;
    if !out.status.success() {
        return Err(crate::trouble(format!("xz cannot unpack {}", path.display())));
    }
    Ok(out.stdout)
}
