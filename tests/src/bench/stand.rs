//! The bare guest: a namespace of this kernel as the guest's network stack, on a tap whose frames, super-frames included, a
//! thread moves between the tap and a virtio driver's rings. It stands in for a guest at the speed of this machine where
//! User-Mode Linux and QEMU without KVM would be the limit. What it costs beside a real one: a read or a write and one
//! copy for each frame.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::driver::{Driver, Make};
use crate::netns::Netns;
use crate::{Because, Done, sys, trouble};

/// Frames moved one way before it is the other's turn.
const BURST: usize = 32;

/// A bare guest; ended when dropped.
pub struct Stand {
    world: Netns,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Done>>,
}

impl Stand {
    /// Connects to a vhost-user server and brings the guest up at `address`/24, its checksums and segmentation left to
    /// the device or not.
    ///
    /// # Errors
    /// The device lacks offloads, or what the kernel says.
    pub fn start(socket: &Path, address: &str, offloads: bool) -> Done<Self> {
        let make = Make { rx: 256, tx: 256, sleeps: true, packed: false, offloads, large: false };
        let driver = Driver::connect(socket, make).because("the bare guest's driver")?;
        let world = Netns::new("the bare guest")?;
        let tap = world.enter(|| sys::tap_with_header("eth0", offloads))?.because("the bare guest's tap")?;
        world.sh(&format!("ip addr add {address}/24 dev eth0; ip link set eth0 mtu 1500 up"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || run(driver, &tap, &told));
        Ok(Self { world, stop, thread: Some(thread) })
    }

    /// The guest's own namespace.
    #[must_use]
    pub fn world(&self) -> &Netns {
        &self.world
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // What it died of was seen as traffic that stopped.
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

/// Moves frames until `stop`, asleep where there are none.
fn run(mut d: Driver, tap: &OwnedFd, stop: &AtomicBool) -> Done {
    while !stop.load(Ordering::Relaxed) {
        let sent = d.tx.send_from(tap.as_fd(), BURST).because("the bare guest's tap")?;
        let got = d.rx.recv_into(tap.as_fd(), BURST);
        if sent + got > 0 {
            continue;
        }
        // A full ring has room again after a quarter; an empty one has nothing to wait for.
        let full = d.tx.room() == 0;
        if d.rx.arm(1) || (full && d.tx.arm(d.tx.shape.size / 4)) {
            continue;
        }
        let tap = PollFd::new(tap.as_fd(), PollFlags::POLLIN);
        let (rx, tx) = (
            PollFd::new(d.rx.call.as_fd(), PollFlags::POLLIN),
            PollFd::new(d.tx.call.as_fd(), PollFlags::POLLIN),
        );
        let mut fds = [rx, if full { tx } else { tap }];
        match poll(&mut fds, PollTimeout::from(100_u8)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(trouble(format!("poll: {e}"))),
        }
        d.rx.calm();
        d.tx.calm();
    }
    Ok(())
}
