//! A raw loop for TCP: frames, super-frames included, are read from one tap and written to another, by a thread each way.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Bytes of the largest frame and its virtio-net header.
const LARGEST: usize = 68 << 10;

/// The two threads; ended when dropped.
pub struct Pump {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Pump {
    /// Joins two taps that do not block and have the same header.
    #[must_use]
    pub fn start(a: OwnedFd, b: OwnedFd) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (a, b) = (Arc::new(File::from(a)), Arc::new(File::from(b)));
        let carry = |from: &Arc<File>, to: &Arc<File>| {
            let (from, to, told) = (Arc::clone(from), Arc::clone(to), Arc::clone(&stop));
            std::thread::spawn(move || run(&from, &to, &told))
        };
        let threads = vec![carry(&a, &b), carry(&b, &a)];
        Self { stop, threads }
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for t in self.threads.drain(..) {
            // There is nobody left to tell.
            let _ended = t.join();
        }
    }
}

fn run(from: &File, to: &File, stop: &AtomicBool) {
    let mut frame = vec![0; LARGEST];
    let (mut from_, mut to_) = (from, to);
    while !stop.load(Ordering::Relaxed) {
        match from_.read(&mut frame) {
            Ok(n) => {
                // A tap that is full drops, as a NIC does.
                let _full = to_.write(frame.get(..n).unwrap_or_default());
            }
            Err(_) => {
                let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
                // An interrupted wait is a wait.
                let _again = poll(&mut fds, PollTimeout::from(100_u8));
            }
        }
    }
}
