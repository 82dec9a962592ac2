//! The helper locks itself in: what it inherited goes first, then the file system, then the system calls.
//!
//! Trust: the starter of a setuid or file-capability program controls its environment, descriptors, signals, timers,
//! limits, directory and umask. Promise: nothing of these reaches the work; afterwards a hijacked helper opens no file
//! but those named here and starts no program.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, Scope,
};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::SigSet;
use nix::sys::stat::{Mode, umask};
use nix::unistd::alarm;

use crate::{sys::process, syscalls};

/// Descriptors that the helper may have open: each AF_XDP grant in a session holds some. The unit's `LimitNOFILE=` is as
/// much.
pub const MAX_OPEN: u64 = 65536;

/// Sheds what the starter chose: environment, descriptors (but `keep`), signals, timers, umask. Before
/// anything else.
pub fn shed(keep: Option<RawFd>) {
    process::clear_environment();
    process::close_others(keep);
    process::default_signals();
    // A timer survives exec. (Those of processor time would end a process that has used it up: as any signal may.)
    alarm::cancel();
    // An error leaves the caller's mask: then a deadline may not come, and nothing else is lost.
    let _kept = SigSet::empty().thread_set_mask();
    umask(Mode::from_bits_truncate(0o077));
}

/// No dump, no tracing by the same user, room for descriptors. After the identity is settled: changing it sets the
/// process's dumpability anew.
///
/// # Errors
/// The kernel's.
pub fn harden() -> nix::Result<()> {
    prctl::set_dumpable(false)?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let most = hard.min(MAX_OPEN);
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
}

/// Restricts the file system to reading what is beneath `read`, to what the work itself opens, and to nothing else; no TCP
/// connection (ports are bound: the policy names them); no signals to, and
/// no abstract sockets of, processes outside. Parts that the kernel does not know are left out, and a kernel without
/// Landlock leaves the rest of the confinement.
fn landlock(read: &[&Path]) -> io::Result<()> {
    let other = |e: landlock::RulesetError| io::Error::other(e);
    let all = AccessFs::from_all(ABI::V7);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .and_then(|r| r.handle_access(AccessNet::ConnectTcp))
        .and_then(|r| r.scope(Scope::from_all(ABI::V7)))
        .and_then(Ruleset::create)
        .map_err(other)?;
    // The rights of an open tap travel with its descriptor: whoever gets it needs the ioctls, too.
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let read = read.iter().map(|path| (*path, AccessFs::ReadFile | AccessFs::ReadDir));
    let needs = read.chain([(Path::new("/dev/net/tun"), device)]);
    for (path, access) in needs {
        // What is not there cannot be opened later either, but for a directory made afterwards: no right for it.
        let Ok(fd) = PathFd::new(path) else { continue };
        let access = if path.is_dir() { access } else { access & AccessFs::from_file(ABI::V7) };
        rules = rules.add_rule(PathBeneath::new(fd, access)).map_err(other)?;
    }
    rules.restrict_self().map(|_| ()).map_err(other)
}

/// [`landlock`], and only the system calls of [`syscalls`]: any other ends the process.
///
/// # Errors
/// A rule or the filter was refused: the helper must not go on.
pub fn lock_in(read: &[&Path]) -> io::Result<()> {
    landlock(read)?;
    let filter = syscalls::filter().map_err(io::Error::other)?;
    seccompiler::apply_filter(&filter).map_err(io::Error::other)
}
