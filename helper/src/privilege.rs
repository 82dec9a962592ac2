//! The helper's capabilities: which it keeps, and when they are in force.
//!
//! Trust: whoever started us may be hostile (a setuid or file-capability program is started by its caller).
//! Promise: after [`start`] the effective, inheritable and ambient sets are empty and the permitted set holds nothing
//! but [`NEEDED`]; a capability is effective only inside [`with`], on its error paths too. Every change is read back;
//! what cannot be undone ends the process. Capabilities belong to a thread: the helper has one.

use std::fmt;

pub use caps::Capability;
use caps::{CapSet, CapsHashSet};
use netreeve_shared::refusal::{Refusal, Step};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd;

/// Make and change interfaces.
pub const LINK: &[Capability] = &[Capability::CAP_NET_ADMIN];
/// Make an AF_XDP socket.
pub const SOCKET: &[Capability] = &[Capability::CAP_NET_RAW];
/// Register a UMEM beyond `RLIMIT_MEMLOCK`.
pub const UMEM: &[Capability] = &[Capability::CAP_IPC_LOCK];
/// Load an XDP program, fill its maps, attach it.
pub const PROGRAM: &[Capability] = &[Capability::CAP_BPF, Capability::CAP_NET_ADMIN];
/// All that the helper ever uses.
pub const NEEDED: &[Capability] =
    &[Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW, Capability::CAP_BPF, Capability::CAP_IPC_LOCK];

/// Why the helper could not give up its privileges; it must not go on.
#[derive(Debug)]
pub enum StartError {
    /// A capability set could not be read or written.
    Capabilities(caps::errors::CapsError),
    /// The process could not become its real user.
    Identity(Errno),
    /// The kernel said yes, but reading back shows something else.
    NotTrimmed,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot give up privileges: ")?;
        match self {
            Self::Capabilities(e) => write!(f, "capabilities: {e}"),
            Self::Identity(e) => write!(f, "becoming the real user: {e}"),
            Self::NotTrimmed => f.write_str("the kernel kept more than was asked for"),
        }
    }
}

impl std::error::Error for StartError {}

impl From<caps::errors::CapsError> for StartError {
    fn from(e: caps::errors::CapsError) -> Self {
        Self::Capabilities(e)
    }
}

/// Gives up everything but the needed capabilities, and puts those out of force. Called once, before anything untrusted
/// is read. A setuid-root process becomes its real user for good. Returns what is left to [`with`]; a helper installed
/// with fewer capabilities still serves the requests that need no more.
///
/// # Errors
/// [`StartError`]: the caller must end the process.
pub fn start() -> Result<CapsHashSet, StartError> {
    let needed: CapsHashSet = NEEDED.iter().copied().collect();
    drop_bounding(&needed)?;
    let real = unistd::getuid();
    if unistd::geteuid() != real {
        become_real_user().map_err(StartError::Identity)?;
    }
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Effective)?;
    caps::clear(None, CapSet::Inheritable)?;
    let kept: CapsHashSet = caps::read(None, CapSet::Permitted)?.intersection(&needed).copied().collect();
    caps::set(None, CapSet::Permitted, &kept)?;
    prctl::set_no_new_privs().map_err(StartError::Identity)?;
    verify(&kept)?;
    Ok(kept)
}

/// Trims the bounding set where we may (`CAP_SETPCAP`); elsewhere `no_new_privs` makes it meaningless.
fn drop_bounding(needed: &CapsHashSet) -> Result<(), StartError> {
    if !caps::has_cap(None, CapSet::Permitted, Capability::CAP_SETPCAP)? {
        return Ok(());
    }
    caps::raise(None, CapSet::Effective, Capability::CAP_SETPCAP)?;
    for cap in caps::read(None, CapSet::Bounding)?.difference(needed) {
        caps::drop(None, CapSet::Bounding, *cap)?;
    }
    Ok(())
}

/// setuid root: real, effective and saved ids become the caller's; `PR_SET_KEEPCAPS` keeps the permitted set meanwhile.
fn become_real_user() -> nix::Result<()> {
    prctl::set_keepcaps(true)?;
    let (uid, gid) = (unistd::getuid(), unistd::getgid());
    unistd::setresgid(gid, gid, gid)?;
    unistd::setresuid(uid, uid, uid)?;
    prctl::set_keepcaps(false)
}

fn verify(kept: &CapsHashSet) -> Result<(), StartError> {
    let (users, groups) = (unistd::getresuid(), unistd::getresgid());
    let (users, groups) = (users.map_err(StartError::Identity)?, groups.map_err(StartError::Identity)?);
    let one_user = users.real == users.effective && users.real == users.saved;
    let one_group = groups.real == groups.effective && groups.real == groups.saved;
    let mut empty = true;
    for set in [CapSet::Effective, CapSet::Inheritable, CapSet::Ambient] {
        empty &= caps::read(None, set)?.is_empty();
    }
    let trimmed = caps::read(None, CapSet::Permitted)? == *kept;
    if one_user && one_group && empty && trimmed { Ok(()) } else { Err(StartError::NotTrimmed) }
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
