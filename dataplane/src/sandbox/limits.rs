//! Limits of the sandbox: what the process may use up, set soft and hard.
//!
//! Trust: nobody after this. Promise: no core file (it would hold guest memory), no file grows, no descriptor beyond
//! what the ports need, no locked memory, no queue, no real-time scheduling, and, once its threads run, no new thread.
#![forbid(unsafe_code)]

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::SandboxError;
use crate::sys::sandbox as sys;

/// What is zero for everybody.
const ZERO: [Resource; 5] = [
    Resource::RLIMIT_CORE,
    Resource::RLIMIT_MSGQUEUE,
    Resource::RLIMIT_NICE,
    Resource::RLIMIT_RTPRIO,
    Resource::RLIMIT_LOCKS,
];

const FIX: &str = "start it with higher limits (`ulimit -H -a` shows them)";

/// Sets all limits but the one on threads. Descriptor numbers stay below `descriptors`.
///
/// # Errors
/// `setrlimit(2)`'s.
pub(super) fn set(descriptors: u64) -> Result<(), SandboxError> {
    for what in ZERO {
        setrlimit(what, 0, 0).map_err(|e| SandboxError::new("setting limits", e, FIX))?;
    }
    // Regular files that the process may write are only its log, if its standard error is one; memfds count as well,
    // so this also keeps it from filling memory through those that are not sealed.
    if !sys::is_regular(2) {
        setrlimit(Resource::RLIMIT_FSIZE, 0, 0).map_err(|e| SandboxError::new("forbidding files", e, FIX))?;
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)
        .map_err(|e| SandboxError::new("asking for the limit on descriptors", e, FIX))?;
    let most = descriptors.min(hard);
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
        .map_err(|e| SandboxError::new("limiting descriptors", e, FIX))
}

/// No thread and no process beyond those that are, and no more locked memory than the ports' rings of calls, which the
/// kernel counts as such. (UMEM is registered, and accounted, by the helper.)
///
/// # Errors
/// `setrlimit(2)`'s.
pub(super) fn no_more() -> Result<(), SandboxError> {
    setrlimit(Resource::RLIMIT_NPROC, 0, 0)
        .map_err(|e| SandboxError::new("forbidding new threads", e, FIX))?;
    setrlimit(Resource::RLIMIT_MEMLOCK, 0, 0)
        .map_err(|e| SandboxError::new("forbidding locked memory", e, FIX))
}
