//! One ring of a device: what the front end said about it, and the engine that serves it while it runs.
//!
//! A ring is shared between the session, which configures it, and the port that serves it, behind a lock that either
//! takes once for each call. Whatever the session changes, it changes by pausing (every chain that was not completed
//! is put back) and settling again; a turn that was under way finds another engine and touches nothing of it.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::mem::guest::GuestMemory;
use crate::mem::split::RingAddr;
use crate::stats::{Reason, Stats};
use crate::virtq::{Device, Giver, Taker, Terms};

/// What a ring is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The guest receives.
    Receive,
    /// The guest transmits.
    Transmit,
    /// The guest's driver gives commands.
    Control,
    /// Not in use with the features negotiated.
    None,
}

/// What serves a running ring.
#[derive(Debug)]
pub(super) enum Engine {
    Taker(Taker),
    Giver(Giver),
    Control(Device),
    /// A transmit ring that is switched off.
    Drain(Device),
}

impl Engine {
    fn device_mut(&mut self) -> &mut Device {
        match self {
            Self::Taker(t) => t.device_mut(),
            Self::Giver(g) => g.device_mut(),
            Self::Control(d) | Self::Drain(d) => d,
        }
    }

    fn device(&self) -> &Device {
        match self {
            Self::Taker(t) => t.device(),
            Self::Giver(g) => g.device(),
            Self::Control(d) | Self::Drain(d) => d,
        }
    }
}

/// A ring.
#[derive(Debug, Default)]
pub(super) struct Ring {
    pub(super) num: u16,
    pub(super) addr: Option<RingAddr>,
    pub(super) base: u16,
    pub(super) kick: Option<OwnedFd>,
    pub(super) call: Option<OwnedFd>,
    pub(super) err: Option<OwnedFd>,
    pub(super) enabled: bool,
    /// It was enabled since it started, and is not now: what is sent on it is discarded, not left lying.
    pub(super) drains: bool,
    /// The guest broke it; it stays stopped until the front end starts it anew.
    pub(super) broken: bool,
    pub(super) engine: Option<Engine>,
    pub(super) terms: Terms,
}

/// All rings of a device.
pub(super) type Rings = Arc<Vec<Mutex<Ring>>>;

/// Takes a ring's lock. A panic of another holder cannot leave it half changed in a way that matters: the process
/// aborts on panic.
pub(super) fn lock(rings: &Rings, index: usize) -> Option<MutexGuard<'_, Ring>> {
    rings.get(index).map(|r| r.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Adds one to an eventfd, or writes eight bytes to a socket. Full means that the reader has something to read already.
pub(super) fn signal(fd: &OwnedFd) -> bool {
    nix::unistd::write(fd.as_fd(), &1u64.to_ne_bytes()).is_ok()
}

impl Ring {
    /// Stops serving; everything that was not completed is put back.
    pub(super) fn pause(&mut self) {
        if let Some(mut e) = self.engine.take() {
            self.base = e.device_mut().base();
        }
    }

    /// Starts or stops serving, as what is known of the ring demands. True: it was started or stopped.
    pub(super) fn settle(&mut self, role: Role, memory: &Arc<GuestMemory>, terms: &Terms) -> bool {
        self.terms = *terms;
        let wanted = self.enabled || (self.drains && role == Role::Transmit);
        let ready = wanted && self.kick.is_some() && !self.broken && role != Role::None;
        if !ready || self.engine.is_some() {
            let running = self.engine.is_some();
            if !ready {
                self.pause();
            }
            return running && !ready;
        }
        let device = self.addr.and_then(|at| Device::new(memory, self.num, at, self.base, terms));
        let Some(device) = device else { return false };
        self.engine = match role {
            Role::Receive => Some(Engine::Taker(Taker::new(device))),
            Role::Transmit if !self.enabled => Some(Engine::Drain(device)),
            Role::Transmit => Some(Engine::Giver(Giver::new(device))),
            Role::Control => Some(Engine::Control(device)),
            Role::None => None,
        };
        // Whoever served the ring before may have died between completing and interrupting.
        if let Some(call) = &self.call {
            signal(call);
        }
        // As if it had been kicked: what lies in it is found.
        if let (Some(Engine::Drain(_)), Some(kick)) = (&self.engine, &self.kick) {
            signal(kick);
        }
        true
    }

    /// The front end switches it on or off.
    pub(super) fn enable(&mut self, on: bool) {
        self.drains = !on && (self.enabled || self.drains);
        self.enabled = on;
    }

    /// It carries frames.
    pub(super) fn runs(&self) -> bool {
        self.enabled && self.engine.is_some()
    }

    /// Interrupts the guest.
    #[inline]
    pub(super) fn interrupt(&self, stats: &mut Stats) {
        if let Some(call) = &self.call
            && signal(call)
        {
            stats.kicks += 1;
        }
    }

    /// Looks whether the guest broke the ring, and if so stops it and tells the front end.
    #[inline]
    pub(super) fn check(&mut self, stats: &mut Stats) {
        if self.engine.as_ref().is_some_and(|e| e.device().stopped()) {
            self.stop_broken(stats);
        }
    }

    #[cold]
    fn stop_broken(&mut self, stats: &mut Stats) {
        stats.drop(Reason::BadChain);
        self.pause();
        self.broken = true;
        if let Some(err) = &self.err {
            signal(err);
        }
    }
}
