//! The bare guest of a netdev `stream`: a namespace of this kernel as the guest's network stack, on a tap without any
//! header, and two threads that move its frames between the tap and a UNIX stream in QEMU's framing (32 bits of length, the
//! first byte first, before each frame). A device without offloads: every segment of the guest's is a frame.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::netns::Netns;
use crate::{Because, Done, sys};

/// Bytes of the largest frame.
const LARGEST: usize = 64 << 10;
/// Bytes of the length before each.
const PREFIX: usize = 4;
/// Bytes that are read from the stream or written to it at once.
const AT_ONCE: usize = 256 << 10;
/// How long a server may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);

/// A bare guest; ended when dropped.
pub struct StreamStand {
    world: Netns,
    stop: Arc<AtomicBool>,
    stream: UnixStream,
    threads: Vec<JoinHandle<()>>,
}

impl StreamStand {
    /// Connects to a UNIX stream server and makes the guest's `eth0`; its addresses are yet to be set.
    ///
    /// # Errors
    /// No server, or what the kernel says.
    pub fn start(socket: &Path) -> Done<Self> {
        let stream = dial(socket).because(format!("stream server {}", socket.display()))?;
        let world = Netns::new("the bare guest")?;
        let tap = world.enter(|| sys::tap("eth0"))?.because("the bare guest's tap")?;
        fcntl(&tap, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).because("the bare guest's tap")?;
        stream.set_read_timeout(Some(Duration::from_millis(100))).because("the bare guest's stream")?;
        let (tap, stop) = (Arc::new(File::from(tap)), Arc::new(AtomicBool::new(false)));
        let mut threads = Vec::new();
        for way in [from_guest, to_guest] {
            let end = stream.try_clone().because("the bare guest's stream")?;
            let (tap, told) = (Arc::clone(&tap), Arc::clone(&stop));
            threads.push(std::thread::spawn(move || way(&tap, &end, &told)));
        }
        Ok(Self { world, stop, stream, threads })
    }

    /// The guest's own namespace.
    #[must_use]
    pub fn world(&self) -> &Netns {
        &self.world
    }
}

impl Drop for StreamStand {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Wakes whoever waits for a server that takes nothing more.
        let _gone = self.stream.shutdown(Shutdown::Both);
        for t in self.threads.drain(..) {
            // What it died of was seen as traffic that stopped.
            let _ended = t.join();
        }
    }
}

/// Connects as soon as somebody listens.
fn dial(path: &Path) -> std::io::Result<UnixStream> {
    let until = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(path) {
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            done => return done,
        }
    }
}

/// Frames that are there go into the stream together.
fn from_guest(mut tap: &File, mut stream: &UnixStream, stop: &AtomicBool) {
    let mut out = vec![0; AT_ONCE];
    while !stop.load(Ordering::Relaxed) {
        let mut n = 0;
        while let Some((prefix, room)) = out.get_mut(n..).and_then(|o| o.split_at_mut_checked(PREFIX)) {
            let Some(room) = room.get_mut(..LARGEST) else { break };
            let Ok(len) = tap.read(room) else { break };
            prefix.copy_from_slice(&u32::try_from(len).unwrap_or(0).to_be_bytes());
            n += PREFIX + len;
        }
        if n == 0 {
            let mut fds = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
            // An interrupted wait is a wait.
            let _again = poll(&mut fds, PollTimeout::from(100_u8));
        } else if stream.write_all(out.get(..n).unwrap_or_default()).is_err() {
            return;
        }
    }
}

/// What comes by the stream is cut into frames again.
fn to_guest(mut tap: &File, mut stream: &UnixStream, stop: &AtomicBool) {
    let mut buf = vec![0; AT_ONCE];
    let mut have = 0;
    while !stop.load(Ordering::Relaxed) {
        match stream.read(buf.get_mut(have..).unwrap_or_default()) {
            Ok(0) => return,
            Ok(n) => have += n,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
            Err(_) => return,
        }
        let mut at = 0;
        while let Some((frame, len)) = first(buf.get(at..have).unwrap_or_default()) {
            // A tap that is full drops, as a NIC does.
            let _full = tap.write(frame);
            at += len;
        }
        buf.copy_within(at..have, 0);
        have -= at;
    }
}

/// The first frame, if all of it is there, and how many bytes it takes with its length.
fn first(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (prefix, rest) = bytes.split_first_chunk::<PREFIX>()?;
    let len = usize::try_from(u32::from_be_bytes(*prefix)).ok()?;
    Some((rest.get(..len)?, PREFIX + len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_cut_where_their_lengths_say() {
        let stream = [0, 0, 0, 2, 7, 8, 0, 0, 0, 3, 9];
        let (frame, len) = first(&stream).unwrap();
        assert_eq!((frame, len), (&[7, 8][..], 6));
        assert_eq!(first(&stream[len..]), None, "the second is not there as a whole");
        assert_eq!(first(&stream[..3]), None);
    }
}
