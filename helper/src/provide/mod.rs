//! Does what was asked, once it is allowed.
//!
//! Trust: the request has passed `Request::check` and the policy; the caller's uid is the kernel's word. Promise: what
//! is granted dies with the caller's descriptors (or with the session that holds the rest); a refusal leaves nothing.

mod bridge;
mod tap;

use std::os::fd::OwnedFd;

use netreeve_shared::grant::Grant;
use netreeve_shared::ifname::IfName;
use netreeve_shared::refusal::{Refusal, Step};
use netreeve_shared::request::{BridgeRequest, Request, TapRequest};
use nix::errno::Errno;

/// What a caller may have at once, from the policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Taps of the caller's uid, over all sessions, as the kernel counts them.
    pub max_taps: u32,
    /// Bytes of UMEM granted in one session.
    pub max_umem: u64,
}

/// What one session has been given and the helper still holds.
#[derive(Default)]
pub struct Provider {
    umem: u64,
}

impl Provider {
    /// A session that has nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Provides what `request` asks for. The descriptors belong to the caller's reply, in the order of [`Grant::fds`].
    ///
    /// # Errors
    /// [`Refusal::Failed`] with the step and the kernel's reason, [`Refusal::Busy`], [`Refusal::Limit`] or
    /// [`Refusal::Ticket`]; nothing of what was begun is left then.
    pub fn provide(
        &mut self,
        request: &Request,
        uid: u32,
        limits: &Limits,
    ) -> Result<(Grant, Vec<OwnedFd>), Refusal> {
        match request {
            Request::Tap(asked) => {
                let (grant, fds) = tap::make(asked, uid, limits.max_taps, tap::HeaderSize::Modern)?;
                Ok((Grant::Tap(grant), fds))
            }
            _ => Err(Refusal::Protocol),
        }
    }

    /// Bytes of UMEM that this session has been granted. They count until the session ends: the helper cannot see when
    /// the caller lets go of memory that only the caller holds.
    #[must_use]
    pub fn umem_bytes(&self) -> u64 {
        self.umem
    }
}

/// A tap in `bridge`, for the `qemu-bridge-helper` face: one queue, the kernel's own header size, the bridge's MTU.
///
/// # Errors
/// As [`Provider::provide`].
pub fn bridge_tap(bridge: IfName, vnet: bool) -> Result<OwnedFd, Refusal> {
    let asked = TapRequest {
        name: None,
        persist: false,
        queues: 1,
        vnet_header: vnet,
        mtu: None,
        bridge: Some(BridgeRequest { name: bridge, create: false, isolated: false }),
    };
    let uid = nix::unistd::getuid().as_raw();
    let (_, mut fds) = tap::make(&asked, uid, u32::MAX, tap::HeaderSize::Kernel)?;
    fds.pop().ok_or(failed(Step::MakeTap)(Errno::EBADF))
}

/// Turns the kernel's error at a step into a refusal.
fn failed(step: Step) -> impl Fn(Errno) -> Refusal {
    move |why| Refusal::Failed { step, errno: why as i32 }
}
