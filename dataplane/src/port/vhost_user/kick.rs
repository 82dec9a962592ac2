//! Kicks of a port's rings: counts are taken off, commands are served.
//!
//! Trust: none in the front end; what cannot be read as an eventfd is not watched any more.
#![forbid(unsafe_code)]

use std::os::fd::{AsRawFd, RawFd};

use nix::errno::Errno;

use super::VhostUser;
use super::ring::lock;
use crate::port::Change;

impl VhostUser {
    /// A data ring's kick. False: it was no eventfd after all, and the ring is stopped.
    pub(super) fn kicked(&mut self, fd: RawFd) -> bool {
        let mut count = [0u8; 8];
        for i in [2 * self.index, self.transmit_ring()] {
            let Some(mut r) = lock(&self.shared.rings, i) else { continue };
            let Some(k) = r.kick.as_ref().filter(|k| k.as_raw_fd() == fd) else { continue };
            match nix::unistd::read(k, &mut count) {
                Ok(8) | Err(Errno::EAGAIN | Errno::EINTR) => return true,
                // Not an eventfd after all: it would stay readable for ever.
                _ => {
                    r.pause();
                    r.kick = None;
                    return false;
                }
            }
        }
        true
    }

    /// The control ring's kick, if it is that.
    pub(super) fn control_kicked(&mut self, fd: RawFd) -> Option<Change> {
        let head = self.head.as_mut()?;
        let i = head.session.as_ref()?.control_ring()?;
        {
            let mut r = lock(&self.shared.rings, i)?;
            let k = r.kick.as_ref().filter(|k| k.as_raw_fd() == fd)?;
            let mut count = [0u8; 8];
            if !matches!(nix::unistd::read(k, &mut count), Ok(8) | Err(Errno::EAGAIN | Errno::EINTR)) {
                r.pause();
                r.kick = None;
                return Some(Change { rewire: true, ..Change::default() });
            }
        }
        Some(head.serve_control())
    }
}
