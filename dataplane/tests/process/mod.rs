//! A dataplane's process, spoken to as the supervisor does, for the tests of this folder.
#![allow(dead_code, reason = "each test file uses its part")]

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::Duration;

use netreeve_dataplane::engine::KIND;
use netreeve_dataplane::handover::{FromDataplane, ToDataplane};
use netreeve_shared::channel::{self, Channel};
use netreeve_shared::codec::{self, Header};

use crate::child::PATIENCE;

pub(crate) const WAIT: Option<Duration> = Some(PATIENCE);

pub(crate) struct Dataplane {
    pub(crate) channel: Channel,
    pub(crate) child: Child,
}

impl Dataplane {
    pub(crate) fn start() -> Self {
        let command = Command::new(env!("CARGO_BIN_EXE_netreeve-dataplane"));
        let (channel, child) = channel::spawn(command).unwrap();
        Self { channel, child }
    }

    pub(crate) fn say(&self, m: &ToDataplane, fds: &[BorrowedFd<'_>]) {
        let head = Header { kind: KIND, sequence: 1, fds: fds.len() as u16 };
        self.channel.send(&codec::encode(head, m).unwrap(), fds).unwrap();
    }

    /// The next word that is not about connections to be kept.
    pub(crate) fn hear(&self) -> FromDataplane {
        loop {
            let m = self.channel.recv(0, WAIT).unwrap().expect("the dataplane has ended");
            match codec::decode(&m.bytes).unwrap() {
                FromDataplane::Unsettled { .. } | FromDataplane::FarEnd { .. } => {}
                other => return other,
            }
        }
    }
}

impl Drop for Dataplane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A frame of one byte's value, as it stands in a stream.
pub(crate) fn frame(n: u8, len: usize) -> Vec<u8> {
    let mut f = (len as u32).to_be_bytes().to_vec();
    f.extend(std::iter::repeat_n(n, len));
    f
}

pub(crate) fn pair() -> (UnixStream, OwnedFd) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(WAIT).unwrap();
    ours.set_write_timeout(WAIT).unwrap();
    (ours, theirs.into())
}
