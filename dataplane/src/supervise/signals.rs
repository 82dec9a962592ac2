//! Signals, read from a descriptor in the loop instead of interrupting it.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Child, ExitStatus};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::fault::{Exit, Fault};
use crate::supervise::command;

/// `SI_KERNEL` (`asm-generic/siginfo.h`): the terminal sent it, to our command as well.
const SI_KERNEL: i32 = 0x80;

/// The signals that this program acts on. They stay blocked in children unless those are told otherwise
/// (`sys::process`).
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks them and opens their descriptor.
    pub(crate) fn new() -> Result<Self, Fault> {
        use Signal::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGUSR1};
        let set: SigSet = [SIGTERM, SIGINT, SIGHUP, SIGCHLD, SIGUSR1].into_iter().collect();
        let open = || {
            set.thread_block()?;
            SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        };
        open().map(Self).map_err(|e| Fault::new(Exit::General, "preparing to receive signals", e, ""))
    }

    /// The descriptor to watch for being readable.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The next one, and whether the terminal sent it.
    pub(crate) fn next(&mut self) -> Option<(Signal, bool)> {
        while let Ok(Some(info)) = self.0.read_signal() {
            let signal = i32::try_from(info.ssi_signo).ok().and_then(|n| Signal::try_from(n).ok());
            if let Some(signal) = signal {
                return Some((signal, info.ssi_code == SI_KERNEL));
            }
        }
        None
    }

    /// Waits for a command's end and passes on what we are told meanwhile.
    pub(crate) fn wait_for(&mut self, child: &mut Child) -> Result<ExitStatus, Fault> {
        let fault = |e: &dyn std::fmt::Display| Fault::new(Exit::General, "waiting for the command", e, "");
        loop {
            if let Some(status) = child.try_wait().map_err(|e| fault(&e))? {
                return Ok(status);
            }
            // Interrupted or not, what there is to do is seen below.
            let _woken = poll(&mut [PollFd::new(self.fd(), PollFlags::POLLIN)], PollTimeout::NONE);
            while let Some((signal, by_terminal)) = self.next() {
                if signal != Signal::SIGCHLD && !by_terminal {
                    command::signal(child, signal);
                }
            }
        }
    }
}
