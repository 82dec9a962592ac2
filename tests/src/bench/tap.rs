//! The raw limit of a tap: one `write` or `read` a frame, no virtio-net header, and nothing around it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::host;
use crate::sys;

/// Makes a tap that is up and silent.
///
/// # Errors
/// What the kernel says.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    let fd = sys::tap(name)?;
    host::silence(name)?;
    host::ip(&format!("link set {name} up"))?;
    Ok(fd)
}

/// Writes `frame` as fast as it goes until `stop`.
pub fn transmit(tap: OwnedFd, frame: &[u8], count: &AtomicU64, stop: &AtomicBool) {
    let mut tap = File::from(tap);
    while !stop.load(Ordering::Relaxed) {
        if tap.write(frame).is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Reads as fast as it goes until `stop`, sleeping in poll(2) when nothing is there.
pub fn receive(tap: OwnedFd, count: &AtomicU64, stop: &AtomicBool) {
    use std::os::fd::AsFd;
    let mut buf = [0; 2048];
    let mut tap = match nonblocking(&tap) {
        Ok(()) => File::from(tap),
        Err(_) => return,
    };
    while !stop.load(Ordering::Relaxed) {
        if tap.read(&mut buf).is_ok() {
            count.fetch_add(1, Ordering::Relaxed);
        } else {
            let mut fds = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
            // An interrupted wait is a wait.
            let _again = poll(&mut fds, PollTimeout::from(100_u8));
        }
    }
}

fn nonblocking(fd: &OwnedFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}
