//! Who is asking, in the kernel's words and nobody else's.
//!
//! Promise: taken once, when the session opens; any error is a refusal (CVE-2021-3560: an error read as uid 0).
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsFd;

use netreeve_shared::channel::Channel;
use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd;

use crate::{policy::Caller, sys::process};

/// The process that connected to the service.
///
/// # Errors
/// Any of the kernel's: then nobody knows who it is, and it gets nothing.
pub fn of_peer(channel: &Channel) -> io::Result<Caller> {
    let peer = getsockopt(channel, sockopt::PeerCredentials)?;
    // What the kernel says of a socket that nobody connected.
    if peer.uid() == u32::MAX || peer.gid() == u32::MAX {
        return Err(Errno::EACCES.into());
    }
    // Kernels before 6.5 have no such option; from then on a peer that is already gone is refused here.
    match getsockopt(channel, sockopt::PeerPidfd) {
        Ok(_) | Err(Errno::ENOPROTOOPT) => {}
        Err(e) => return Err(e.into()),
    }
    let mut gids = process::peer_groups(channel.as_fd())?;
    gids.push(peer.gid());
    Ok(Caller { uid: peer.uid(), gids, pid: peer.pid() })
}

/// The process that started this one: our real ids, which no program can lend us. The other end of `channel` must have
/// been made by the same user.
///
/// # Errors
/// `EACCES` if somebody else's socket was put in our hands; else the kernel's.
pub fn of_parent(channel: &Channel) -> io::Result<Caller> {
    let made_by = getsockopt(channel, sockopt::PeerCredentials)?;
    if made_by.uid() != unistd::getuid().as_raw() {
        return Err(Errno::EACCES.into());
    }
    Ok(myself()?)
}

/// The real user and groups of this process.
///
/// # Errors
/// The kernel's.
pub fn myself() -> nix::Result<Caller> {
    let mut gids: Vec<u32> = unistd::getgroups()?.into_iter().map(unistd::Gid::as_raw).collect();
    gids.push(unistd::getgid().as_raw());
    Ok(Caller { uid: unistd::getuid().as_raw(), gids, pid: unistd::getppid().as_raw() })
}
