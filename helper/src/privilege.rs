//! The helper's capabilities: which it keeps, and when they are in force.
//!
//! Trust: whoever started us may be hostile (a setuid or file-capability program is started by its caller).
//! Promise: after [`start`] the effective, inheritable and ambient sets are empty and the permitted set holds nothing
//! but [`NEEDED`]; a capability is effective only inside [`with`], on its error paths too. Every change is read back;
//! what cannot be undone ends the process. Capabilities belong to a thread: the helper has one.

use std::io;

pub use caps::Capability;
use caps::Capability::{CAP_BPF, CAP_IPC_LOCK, CAP_NET_ADMIN, CAP_NET_BIND_SERVICE, CAP_NET_RAW};
use caps::errors::CapsError;
use caps::{CapSet, CapsHashSet};
use netreeve_shared::refusal::{Refusal, Step};
use nix::sys::prctl;
use nix::unistd;

/// Make and change interfaces.
pub const LINK: &[Capability] = &[CAP_NET_ADMIN];
/// Make an AF_XDP or a raw socket.
pub const SOCKET: &[Capability] = &[CAP_NET_RAW];
/// Register a UMEM beyond `RLIMIT_MEMLOCK`.
pub const UMEM: &[Capability] = &[CAP_IPC_LOCK];
/// Load an XDP program, fill its maps, attach it.
pub const PROGRAM: &[Capability] = &[CAP_BPF, CAP_NET_ADMIN];
/// Bind a port below `net.ipv4.ip_unprivileged_port_start`.
pub const PORT: &[Capability] = &[CAP_NET_BIND_SERVICE];
/// All that the helper ever uses.
pub const NEEDED: &[Capability] = &[CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF, CAP_IPC_LOCK, CAP_NET_BIND_SERVICE];

/// Gives up everything but the needed capabilities, and puts those out of force. Called once, before anything untrusted
/// is read. A setuid-root process becomes its real user for good. Returns what is left to [`with`]; a helper installed
/// with fewer capabilities still serves the requests that need no more.
///
/// # Errors
/// The kernel's, or that it kept more than was asked for: the caller must end the process.
pub fn start() -> io::Result<CapsHashSet> {
    drop_bounding().map_err(io::Error::other)?;
    if unistd::geteuid() != unistd::getuid() {
        become_real_user()?;
    }
    let kept = trim().map_err(io::Error::other)?;
    prctl::set_no_new_privs()?;
    let (users, groups) = (unistd::getresuid()?, unistd::getresgid()?);
    let one_user = users.real == users.effective && users.real == users.saved;
    let one_group = groups.real == groups.effective && groups.real == groups.saved;
    if one_user && one_group && is_trimmed(&kept).map_err(io::Error::other)? {
        return Ok(kept);
    }
    Err(io::Error::other("the kernel kept more privileges than it was asked for"))
}

/// Trims the bounding set where we may (`CAP_SETPCAP`); elsewhere `no_new_privs` makes it meaningless.
fn drop_bounding() -> Result<(), CapsError> {
    if !caps::has_cap(None, CapSet::Permitted, Capability::CAP_SETPCAP)? {
        return Ok(());
    }
    caps::raise(None, CapSet::Effective, Capability::CAP_SETPCAP)?;
    let bounding = caps::read(None, CapSet::Bounding)?;
    bounding.iter().filter(|c| !NEEDED.contains(c)).try_for_each(|c| caps::drop(None, CapSet::Bounding, *c))
}

fn trim() -> Result<CapsHashSet, CapsError> {
    for set in [CapSet::Ambient, CapSet::Effective, CapSet::Inheritable] {
        caps::clear(None, set)?;
    }
    let permitted = caps::read(None, CapSet::Permitted)?;
    let kept = permitted.into_iter().filter(|c| NEEDED.contains(c)).collect();
    caps::set(None, CapSet::Permitted, &kept)?;
    Ok(kept)
}

fn is_trimmed(kept: &CapsHashSet) -> Result<bool, CapsError> {
    let mut right = caps::read(None, CapSet::Permitted)? == *kept;
    for set in [CapSet::Ambient, CapSet::Effective, CapSet::Inheritable] {
        right &= caps::read(None, set)?.is_empty();
    }
    Ok(right)
}

/// setuid root: real, effective and saved ids become the caller's; `PR_SET_KEEPCAPS` keeps the permitted set meanwhile.
fn become_real_user() -> nix::Result<()> {
    prctl::set_keepcaps(true)?;
    let (uid, gid) = (unistd::getuid(), unistd::getgid());
    unistd::setresgid(gid, gid, gid)?;
    unistd::setresuid(uid, uid, uid)?;
    prctl::set_keepcaps(false)
}

/// Puts the effective set back as it was. A process that cannot do that must not go on.
struct Restore(CapsHashSet);

impl Drop for Restore {
    fn drop(&mut self) {
        let done = caps::set(None, CapSet::Effective, &self.0).is_ok();
        if !done || caps::read(None, CapSet::Effective).ok().as_ref() != Some(&self.0) {
            std::process::abort();
        }
    }
}

/// Runs `work` with exactly these capabilities in force, and none of them afterwards.
///
/// # Errors
/// [`Step::Capability`] if the process does not hold them; else what `work` says.
pub fn with<T>(needed: &[Capability], work: impl FnOnce() -> Result<T, Refusal>) -> Result<T, Refusal> {
    let refused = Refusal::Failed { step: Step::Capability, errno: libc::EPERM };
    let wanted: CapsHashSet = needed.iter().copied().collect();
    let _restore = Restore(caps::read(None, CapSet::Effective).map_err(|_| refused)?);
    caps::set(None, CapSet::Effective, &wanted).map_err(|_| refused)?;
    if caps::read(None, CapSet::Effective).map_err(|_| refused)? != wanted {
        return Err(refused);
    }
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effective() -> CapsHashSet {
        caps::read(None, CapSet::Effective).unwrap()
    }

    /// Capabilities are per thread, so each test has its own; privileged or not, the sets come back as they were.
    #[test]
    fn the_effective_set_returns_after_success_error_and_lack() {
        let before = effective();
        let inside = with(&[], || Ok(effective())).unwrap();
        assert!(inside.is_empty());
        assert_eq!(effective(), before);
        assert_eq!(with(&[], || Err::<(), _>(Refusal::Busy)), Err(Refusal::Busy));
        assert_eq!(effective(), before);
        caps::clear(None, CapSet::Effective).unwrap();
        caps::clear(None, CapSet::Permitted).unwrap();
        let lack = Refusal::Failed { step: Step::Capability, errno: libc::EPERM };
        assert_eq!(with(LINK, || Ok(())), Err(lack));
        assert!(effective().is_empty());
    }
}
