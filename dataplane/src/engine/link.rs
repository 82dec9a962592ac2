//! The dataplane's end of the hand-over: words in, words out, one message at a time.
//!
//! Trust: the supervisor's words are checked for form; what they mean is the engine's. Promise: nothing here waits once
//! the plan is read.
#![forbid(unsafe_code)]

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use netreeve_shared::channel::{Channel, MAX_FDS};
use netreeve_shared::codec::{self, Header};

use super::KIND;
use crate::handover::{FromDataplane, ToDataplane};

/// The channel, and how many messages went. It is closed by the process's end: the filter keeps its number from naming
/// anything else, and so from being closed.
pub(super) struct Link {
    pub(super) channel: ManuallyDrop<Channel>,
    sequence: u32,
}

impl Link {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel: ManuallyDrop::new(channel), sequence: 0 }
    }

    pub(super) fn say(&mut self, m: &FromDataplane) -> io::Result<()> {
        self.say_with(m, &[])
    }

    pub(super) fn say_with(&mut self, m: &FromDataplane, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let count = u16::try_from(fds.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let head = Header { kind: KIND, sequence: self.sequence, fds: count };
        let bytes = codec::encode(head, m).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.channel.send(&bytes, fds)
    }

    /// The next message with its descriptors; none if none waits (`wait` over) or the supervisor is gone (an error).
    pub(super) fn hear(&self, wait: Option<Duration>) -> io::Result<Option<(ToDataplane, Vec<OwnedFd>)>> {
        let m = match self.channel.recv(MAX_FDS, wait) {
            Ok(Some(m)) => m,
            Ok(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(e),
        };
        let bad = |_| io::Error::from(io::ErrorKind::InvalidData);
        let head = codec::header(&m.bytes, m.fds.len()).map_err(bad)?;
        if head.kind != KIND {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Some((codec::decode(&m.bytes).map_err(bad)?, m.fds)))
    }
}
