//! Where the programs under test are, and what to do when one is missing. A missing peer is a failure that names its
//! remedy, never a test that is silently skipped.

use crate::{Done, trouble};
use std::env;
use std::path::{Path, PathBuf};

/// The environment variable that names the directory of netreeve's binaries; `make test` sets it.
pub const BIN_DIR: &str = "NETREEVE_BIN_DIR";

/// The root of the source tree.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Where `tests/setup.sh` puts the QEMU guest's kernel and where built initramfs files are kept.
pub fn cache() -> PathBuf {
    env::var_os("NETREEVE_CACHE").map_or_else(|| root().join("target/guest"), PathBuf::from)
}

/// One of netreeve's own binaries: from [`BIN_DIR`], or from beside the running test.
pub fn ours(name: &str) -> Done<PathBuf> {
    let mut places: Vec<PathBuf> = env::var_os(BIN_DIR).map(PathBuf::from).into_iter().collect();
    // .../target/PROFILE/deps/test-hash, or .../target/PROFILE/demo
    let exe = env::current_exe().unwrap_or_default();
    places.extend(exe.ancestors().skip(1).take(2).map(Path::to_owned));
    places.iter().map(|d| d.join(name)).find(|p| p.is_file()).ok_or_else(|| {
        trouble(format!(
            "{name} is not built (looked in {places:?}): run `cargo build --profile fast --bins` and set {BIN_DIR}"
        ))
    })
}

/// The Debian package of each foreign program that is not named like its package.
const PACKAGES: &[(&str, &str)] = &[
    ("linux.uml", "user-mode-linux"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("dpdk-testpmd", "dpdk-dev"),
    ("pasta", "passt"),
    ("vde_switch", "vde-switch"),
    ("vde_plug", "vdeplug"),
    ("wirefilter", "vde-wirefilter"),
    ("busybox", "busybox-static"),
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("ping", "iputils-ping"),
    ("capsh", "libcap2-bin"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
    ("nsenter", "util-linux"),
    ("xz", "xz-utils"),
];

/// A foreign program, found as a shell would.
pub fn peer(name: &str) -> Done<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let found = env::split_paths(&path).chain(system).map(|d| d.join(name)).find(|p| p.is_file());
    found.ok_or_else(|| {
        let package = PACKAGES.iter().find(|(n, _)| *n == name).map_or(name, |(_, p)| p);
        trouble(format!("{name} is missing: run `tests/setup.sh` as root, or `apt-get install {package}`"))
    })
}
