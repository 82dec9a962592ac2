//! The port's own set of watched descriptors: one epoll instance, which the worker watches as one descriptor.
//!
//! Edge-triggered: an event says that something has become possible, once. Whoever gets it goes on until the kernel says
//! that there is no more (`EAGAIN`), or remembers that there may be.
//!
//! Trust: the kernel. Promise: an event reaches only who asked for it: a [`Token`] carries a generation, and whoever's
//! does not fit is ignored by its room.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

/// Events taken at once.
const EVENTS: usize = 64;

/// Whose a descriptor or a timer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Who {
    /// The port itself.
    Port = 0,
    /// TCP.
    Tcp = 1,
    /// UDP.
    Udp = 2,
    /// Echo.
    Icmp = 3,
    /// ARP, DHCP, DNS and their like.
    Services = 4,
    /// Fragments.
    Fragments = 5,
    /// What passes from the guest's namespace to the host's loopback.
    Passage = 6,
}

/// What an event or a timer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Whose it is.
    pub who: Who,
    /// What of its: for the room to say.
    pub kind: u8,
    /// Which one.
    pub index: u32,
    /// Which of those that were at this index.
    pub generation: u16,
}

impl Token {
    fn pack(self) -> u64 {
        let who = u64::from(self.who as u8) << 56;
        who | u64::from(self.kind) << 48 | u64::from(self.generation) << 32 | u64::from(self.index)
    }

    fn unpack(raw: u64) -> Option<Self> {
        let [who, kind, g0, g1, i0, i1, i2, i3] = raw.to_be_bytes();
        let who = match who {
            0 => Who::Port,
            1 => Who::Tcp,
            2 => Who::Udp,
            3 => Who::Icmp,
            4 => Who::Services,
            5 => Who::Fragments,
            6 => Who::Passage,
            _ => return None,
        };
        let (generation, index) = (u16::from_be_bytes([g0, g1]), u32::from_be_bytes([i0, i1, i2, i3]));
        Some(Self { who, kind, index, generation })
    }
}

/// What to watch a descriptor for. Errors and hang-ups always come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// It becomes readable, or its peer has said its last word.
    pub read: bool,
    /// It becomes writable.
    pub write: bool,
}

impl Want {
    /// Readable.
    pub const READ: Self = Self { read: true, write: false };
    /// Writable.
    pub const WRITE: Self = Self { read: false, write: true };
    /// Either.
    pub const BOTH: Self = Self { read: true, write: true };

    fn flags(self) -> EpollFlags {
        let mut f = EpollFlags::EPOLLET;
        if self.read {
            f |= EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLPRI;
        }
        if self.write {
            f |= EpollFlags::EPOLLOUT;
        }
        f
    }
}

/// What has become possible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "as the kernel says it")]
pub struct Ready {
    /// To read, be it the end.
    pub read: bool,
    /// To write.
    pub write: bool,
    /// There is an error to be asked for (`SO_ERROR`, or in the error queue).
    pub error: bool,
    /// Both directions are at their end.
    pub hup: bool,
    /// The peer has said its last word.
    pub read_hup: bool,
    /// There is something out of the ordinary to be read: TCP's urgent data, before which a reading ends.
    pub urgent: bool,
}

/// The set.
#[derive(Debug)]
pub struct Poll {
    epoll: Epoll,
}

impl Poll {
    /// An empty set.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)? })
    }

    /// To be watched by the worker.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.epoll.0.as_raw_fd()
    }

    /// Watches a descriptor. What is possible already comes as an event.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add(&self, fd: BorrowedFd<'_>, token: Token, want: Want) -> io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(want.flags(), token.pack()))?)
    }

    /// Watches it for something else. What is possible already comes as an event, again.
    ///
    /// # Errors
    /// The kernel's.
    pub fn modify(&self, fd: BorrowedFd<'_>, token: Token, want: Want) -> io::Result<()> {
        Ok(self.epoll.modify(fd, &mut EpollEvent::new(want.flags(), token.pack()))?)
    }

    /// Watches it no more. Closing a descriptor that we made does the same; one that was handed over is open elsewhere, and
    /// its events would go on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(self.epoll.delete(fd)?)
    }

    /// Appends what has become possible; says whether there may be more.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn events(&self, to: &mut Vec<(Token, Ready)>) -> io::Result<bool> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let n = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Ok(n) => n,
            Err(Errno::EINTR) => 0,
            Err(e) => return Err(e.into()),
        };
        for e in events.iter().take(n) {
            let (f, has) = (e.events(), |f: EpollFlags, x: EpollFlags| f.intersects(x));
            let hup = has(f, EpollFlags::EPOLLHUP);
            let read_hup = has(f, EpollFlags::EPOLLRDHUP);
            let urgent = has(f, EpollFlags::EPOLLPRI);
            let ready = Ready {
                read: has(f, EpollFlags::EPOLLIN) || hup || read_hup || urgent,
                write: has(f, EpollFlags::EPOLLOUT),
                error: has(f, EpollFlags::EPOLLERR),
                hup,
                read_hup,
                urgent,
            };
            to.extend(Token::unpack(e.data()).map(|t| (t, ready)));
        }
        Ok(n == EVENTS)
    }
}

impl AsFd for Poll {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}
