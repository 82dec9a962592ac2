//! The other side of an interface.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{recv, send};

use super::{Far, Put, RECV, Room, SEND, Take, is_full, room};
use crate::frames::ETHERTYPE;

/// Packet sockets on the other side of an interface.
pub(crate) struct Link {
    tx: OwnedFd,
    rx: OwnedFd,
    room: Room,
}

impl Link {
    pub(crate) fn new(tx: OwnedFd, rx: OwnedFd) -> Self {
        Self { tx, rx, room: room() }
    }
}

impl Far for Link {
    fn put(&mut self, frame: &[u8]) -> Put {
        match send(self.tx.as_raw_fd(), frame, SEND) {
            Ok(_) => Put::Gone,
            // A queue that is full, or a link that comes up.
            Err(e) if is_full(e) || e == Errno::ENETDOWN => Put::Full,
            Err(Errno::EMSGSIZE | Errno::EINVAL) => Put::Never,
            Err(_) => Put::Lost,
        }
    }

    fn take(&mut self) -> Take {
        loop {
            match recv(self.rx.as_raw_fd(), &mut self.room, RECV) {
                // The kernel's own frames are of other types.
                Ok(n) if n >= 14 && self.room[12..14] == ETHERTYPE => {
                    return Take::Frame(self.room[..n].to_vec());
                }
                Ok(_) => {}
                Err(e) if is_full(e) || e == Errno::ENETDOWN => return Take::Nothing,
                Err(e) => panic!("a packet socket: {e}"),
            }
        }
    }
}
