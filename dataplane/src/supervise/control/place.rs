//! Where a named instance's control socket is: `BASE/NAME/control.sock`.
//!
//! BASE is `/run/netreeve` for root and for services, `$XDG_RUNTIME_DIR/netreeve` for anybody else. The directory is
//! locked (flock(2)) while its instance lives, so two of one name never meet, whatever a dead one has left behind.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::geteuid;

use crate::fault::{Exit, Fault};

/// Where root's instances are, and those of services.
pub const SYSTEM: &str = "/run/netreeve";
/// The socket in an instance's directory.
pub const SOCKET: &str = "control.sock";
/// Longest name in bytes: the path must fit into a socket's address.
pub const MAX_NAME: usize = 64;
/// Another one may remove the directory between our making and locking it.
const TRIES: usize = 8;

/// A name can stand: letters, digits, `-`, `_`, `.`, a letter or digit first.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let letters = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    letters && name.len() <= MAX_NAME && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// The directories that hold instances of ours or of everybody, ours first.
#[must_use]
pub fn bases() -> Vec<PathBuf> {
    let system = PathBuf::from(SYSTEM);
    let own = std::env::var_os("XDG_RUNTIME_DIR").filter(|d| Path::new(d).is_absolute());
    match own.map(|d| Path::new(&d).join("netreeve")) {
        Some(own) if !geteuid().is_root() => vec![own, system],
        Some(own) => vec![system, own],
        None => vec![system],
    }
}

/// The directory of an instance of ours.
///
/// # Errors
/// There is no directory for this user.
pub fn directory(name: &str) -> Result<PathBuf, Fault> {
    // A service's own directory: systemd has made it, and removes it.
    let service = std::env::var_os("RUNTIME_DIRECTORY").and_then(|d| of_service(d, name));
    let base = || {
        let base = bases().into_iter().next();
        base.filter(|b| geteuid().is_root() || b != Path::new(SYSTEM)).ok_or_else(|| {
            let fix = "log in, so that there is an XDG_RUNTIME_DIR, or name the socket: --control PATH";
            let why = "this user has no directory for sockets";
            Fault::new(Exit::Config, format!("--name {name}"), why, fix)
        })
    };
    service.map_or_else(|| Ok(base()?.join(name)), Ok)
}

/// The entry of `RUNTIME_DIRECTORY` (systemd.exec(5)) that is this instance's.
fn of_service(all: OsString, name: &str) -> Option<PathBuf> {
    let all = all.into_string().ok()?;
    all.split(':').map(PathBuf::from).find(|d| d.is_absolute() && d.file_name().is_some_and(|n| n == name))
}

/// An instance's directory, locked. Dropping it removes it if it is empty.
#[derive(Debug)]
pub struct Place {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Place {
    /// Makes and locks the directory.
    ///
    /// # Errors
    /// It cannot be made, is not ours, or another instance lives there.
    pub fn take(name: &str, path: PathBuf) -> Result<Self, Fault> {
        let fault = |exit, why: &dyn std::fmt::Display, fix: &str| {
            Fault::new(exit, format!("--name {name}: {}", path.display()), why, fix)
        };
        let mut tried = 0;
        loop {
            match try_lock(&path) {
                Ok(Some(lock)) => return Ok(Self { path, _lock: lock }),
                Ok(None) if tried < TRIES => tried += 1,
                Err(e) if e.kind() == io::ErrorKind::NotFound && tried < TRIES => tried += 1,
                Ok(None) => return Err(fault(Exit::TryAgain, &"it comes and goes", "try again")),
                Err(e) if e.raw_os_error() == Some(libc::EWOULDBLOCK) => {
                    let fix = "choose another name; netreeve ls shows those in use";
                    return Err(fault(Exit::Unavailable, &"an instance of that name runs", fix));
                }
                Err(e) => {
                    let denied = e.kind() == io::ErrorKind::PermissionDenied;
                    let exit = if denied { Exit::Denied } else { Exit::Unavailable };
                    return Err(fault(exit, &e, "or name the socket yourself: --control PATH"));
                }
            }
        }
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path.join(SOCKET)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // Other sockets of the VM may lie there as well: then it stays.
        let _gone = fs::remove_dir(&self.path);
    }
}

/// None: it was removed meanwhile.
fn try_lock(path: &Path) -> io::Result<Option<Flock<File>>> {
    if let Some(base) = path.parent() {
        // The system's is everybody's to walk through, as the helper's socket is there too.
        let mode = if base == Path::new(SYSTEM) { 0o755 } else { 0o700 };
        DirBuilder::new().recursive(true).mode(mode).create(base)?;
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let dir = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let about = dir.metadata()?;
    if about.uid() != geteuid().as_raw() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it belongs to another user"));
    }
    let lock = Flock::lock(dir, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, e)| if e == Errno::EAGAIN { Errno::EWOULDBLOCK.into() } else { io::Error::from(e) })?;
    let same = fs::symlink_metadata(path).is_ok_and(|m| m.ino() == about.ino() && m.dev() == about.dev());
    Ok(same.then_some(lock))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_make_paths_that_stay_where_they_belong() {
        for good in ["vm1", "a.b-c_d", "7", &"x".repeat(MAX_NAME)] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "-x", "a b", "ä", "a\n", &"x".repeat(MAX_NAME + 1)] {
            assert!(!is_name(bad), "{bad}");
        }
        let own = of_service("/run/other:/run/netreeve/vm1".into(), "vm1");
        assert_eq!(own, Some("/run/netreeve/vm1".into()));
        assert_eq!(of_service("/run/netreeve/vm1".into(), "vm2"), None);
        assert_eq!(of_service("vm1".into(), "vm1"), None);
    }

    #[test]
    fn a_name_is_had_once_and_again_after_its_end() {
        let base = std::env::temp_dir().join(format!("netreeve-place-{}", std::process::id()));
        let path = base.join("vm1");
        let first = Place::take("vm1", path.clone()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let again = Place::take("vm1", path.clone()).unwrap_err();
        assert_eq!((again.exit, again.why.as_str()), (Exit::Unavailable, "an instance of that name runs"));
        assert_eq!(first.socket(), path.join("control.sock"));
        drop(first);
        assert!(!path.exists());
        // What a dead one left is taken over; what else lies there stays.
        fs::create_dir(&path).unwrap();
        fs::write(path.join("vm.sock"), "").unwrap();
        drop(Place::take("vm1", path.clone()).unwrap());
        assert!(path.join("vm.sock").exists());
        let link = base.join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(Place::take("link", link).is_err());
        fs::remove_dir_all(base).unwrap();
    }
}
