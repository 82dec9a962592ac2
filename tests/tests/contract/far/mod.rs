//! Far ends: whoever is at the other side of a port, as a peer of that kind puts frames in and takes them out. None of them
//! waits: what cannot be done now is said.

mod guest;
mod link;
mod messages;
mod stream;
mod user;

use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;

pub(crate) use guest::Guest;
pub(crate) use link::Link;
pub(crate) use messages::{Form, Messages, Party};
pub(crate) use stream::{Framing, Stream};
pub(crate) use user::{Server, Stack};

use crate::frames::OTHERS;

/// How long anything may take on a machine that is busy with something else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// The largest frame of QEMU's.
pub(crate) const MOST: usize = 69632;
/// The largest frame of a guest's: 64 KiB of IP, an Ethernet header, a VLAN tag.
pub(crate) const MOST_OF_GUESTS: usize = 65554;

/// What became of a frame that was put in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Put {
    /// It is on its way.
    Gone,
    /// Not now.
    Full,
    /// Nobody is there.
    Lost,
    /// The way cannot carry it.
    Never,
}

/// What there was to be taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Take {
    /// A frame.
    Frame(Vec<u8>),
    /// Nothing at the moment.
    Nothing,
    /// The connection has ended.
    End,
}

/// What was said that is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bad {
    /// Under which reason it is counted.
    pub(crate) reason: &'static str,
    /// It ends the connection.
    pub(crate) ends: bool,
}

pub(crate) trait Far: Send {
    fn put(&mut self, frame: &[u8]) -> Put;

    fn take(&mut self) -> Take;

    /// Says what is no frame. None: there is nothing of the kind to be said.
    fn garbage(&mut self) -> Option<Bad> {
        None
    }

    /// Has no more to say, and goes on listening. False: that cannot be said.
    fn half_close(&mut self) -> bool {
        false
    }

    /// Sends what it still has to send of what was put in, as far as it can.
    fn go_on(&mut self) {}

    /// False: the connection has ended, as far as that is known without taking frames.
    fn is_connected(&mut self) -> bool {
        true
    }
}

const SEND: MsgFlags = MsgFlags::MSG_DONTWAIT.union(MsgFlags::MSG_NOSIGNAL);
/// Packet sockets know no other flag here.
const RECV: MsgFlags = MsgFlags::MSG_DONTWAIT;

fn is_full(e: Errno) -> bool {
    matches!(e, Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR | Errno::ENOMEM)
}

/// Room for the largest message, and so much more that one that is too long is seen to be.
type Room = Box<[u8]>;

fn room() -> Room {
    vec![0; 72 * 1024].into()
}

/// What a far end may hear beside frames of the test: announcements in a guest's name (RARP).
pub(crate) fn is_anothers(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&OTHERS[..])
}
