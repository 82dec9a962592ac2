//! Tells when a network interface goes: poll() on an `AF_XDP` socket does not.
//!
//! An unprivileged rtnetlink socket only wakes us; whether an interface is still there is then asked by its index, so
//! a lost message or a crowded machine cannot mislead.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::net::if_::if_indextoname;
use nix::sys::socket::{self, AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType};

/// `RTMGRP_LINK` (`linux/rtnetlink.h`).
const LINKS: u32 = 1;
/// Messages thrown away in one go.
const ENOUGH: usize = 1024;

/// Wakes when any link of this network namespace changes.
#[derive(Debug)]
pub struct LinkWatch {
    socket: OwnedFd,
}

impl LinkWatch {
    /// Starts watching.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket =
            socket::socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        socket::bind(socket.as_raw_fd(), &NetlinkAddr::new(0, LINKS))?;
        Ok(Self { socket })
    }

    /// The descriptor to watch for being readable.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Throws away what came: the messages only wake.
    pub fn drain(&self) {
        let mut waste = [0; 8192];
        for _ in 0..ENOUGH {
            match socket::recv(self.socket.as_raw_fd(), &mut waste, MsgFlags::MSG_DONTWAIT) {
                // ENOBUFS: messages were lost, and more may wait.
                Ok(1..) | Err(Errno::EINTR | Errno::ENOBUFS) => {}
                _ => return,
            }
        }
    }
}

/// The interface with this index is in our network namespace.
#[must_use]
pub fn is_here(index: u32) -> bool {
    // nix 0.31 takes the failed call's null for success and gives an empty name.
    if_indextoname(index).is_ok_and(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_by_index() {
        assert!(is_here(1), "every namespace has lo");
        assert!(!is_here(0) && !is_here(i32::MAX.cast_unsigned()));
        let w = LinkWatch::new().unwrap();
        w.drain();
    }
}
