//! A transmit ring that is switched off while it is started, as front ends do when a driver uses fewer queue pairs: what
//! the guest sends on it is taken and forgotten (QEMU's `docs/interop/vhost-user.rst`, "Ring states"). Left lying, it
//! would stop connections for good: a TCP sends nothing again as long as its own device has not sent it.
//!
//! Trust: none in the guest. Promise: bounded work for each kick.
#![forbid(unsafe_code)]

use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;

use super::VhostUser;
use super::ring::{Engine, lock, signal};
use crate::frame::BATCH;
use crate::port::Change;
use crate::stats::{Reason, Stats};
use crate::virtq::{Chains, Device};

impl VhostUser {
    /// The kick of this port's transmit ring, if that is switched off: empties it. None: the descriptor is another's.
    pub(super) fn drained(&mut self, fd: RawFd) -> Option<Change> {
        let mut r = lock(&self.shared.rings, self.transmit_ring())?;
        if !matches!(r.engine, Some(Engine::Drain(_))) {
            return None;
        }
        let kick = r.kick.as_ref().filter(|k| k.as_raw_fd() == fd)?;
        let mut count = [0u8; 8];
        if !matches!(nix::unistd::read(kick, &mut count), Ok(8) | Err(Errno::EAGAIN | Errno::EINTR)) {
            // Not an eventfd after all: it would stay readable for ever.
            r.pause();
            r.kick = None;
            return Some(Change { rewire: true, ..Change::default() });
        }
        if let Some(Engine::Drain(dev)) = &mut r.engine {
            let (call, more) = empty(dev, &mut self.stats);
            if call {
                r.interrupt(&mut self.stats);
            }
            if let (true, Some(kick)) = (more, &r.kick) {
                signal(kick);
            }
        }
        r.check(&mut self.stats);
        Some(Change::default())
    }
}

/// Completes what there is, a ring's worth at most. Says whether the driver wants to be interrupted, and whether there
/// may be more.
fn empty(dev: &mut Device, stats: &mut Stats) -> (bool, bool) {
    let (mut call, mut chains) = (false, Chains::default());
    for _ in 0..=usize::from(dev.size()) / BATCH {
        chains.clear();
        let n = dev.fetch(&mut chains, BATCH);
        if n == 0 && !dev.arm() {
            return (call, false);
        }
        stats.drop_n(Reason::PeerDown, n as u64);
        call |= dev.complete(chains.all());
    }
    (call, true)
}
