//! Where a capture goes: a regular file, or something that is read at its other end (a pipe, a socket, a terminal).
//!
//! A file always ends with a whole record: what was written of a broken one is cut off, and writing goes on when there
//! is room again. Something that is read may be read slowly or not at all: it is written to only when it says that it
//! takes something, so that whoever waits here can be called away.
//!
//! Trust: the user's descriptor; its flags are left as they are. Promise: an error is an answer, never an end of ours.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// So much is taken at once by whatever says that it takes something (`PIPE_BUF`).
const AT_ONCE: usize = 4096;

/// What became of some records.
#[derive(Debug)]
pub(super) enum Put {
    /// All are written.
    All,
    /// So many are; the rest is lost.
    Some(usize, io::Error),
    /// So many are, and nothing can be written any more.
    Gone(usize, io::Error),
    /// So many are; then it was called away.
    Called(usize),
}

/// How many records end within the first `n` bytes.
fn whole(ends: &[usize], n: usize) -> usize {
    ends.partition_point(|end| *end <= n)
}

/// An output.
#[derive(Debug)]
pub(super) struct Sink {
    file: File,
    /// Where the next record goes in a regular file.
    at: Option<u64>,
}

impl Sink {
    /// Writes to what is open here, from where it stands.
    ///
    /// # Errors
    /// The kernel's, when asked what it is.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let mut file = File::from(fd);
        let at = if file.metadata()?.is_file() { Some(file.stream_position()?) } else { None };
        Ok(Self { file, at })
    }

    /// Writes records, of which each ends where `ends` says. `called` becomes readable when `until` may have changed: the
    /// time after which a reader is no longer waited for.
    pub(super) fn put(
        &mut self,
        bytes: &[u8],
        ends: &[usize],
        called: BorrowedFd<'_>,
        until: impl Fn() -> Option<Instant>,
    ) -> Put {
        match self.at {
            Some(at) => self.put_file(bytes, ends, at),
            None => self.put_reader(bytes, ends, called, until),
        }
    }

    fn put_file(&mut self, bytes: &[u8], ends: &[usize], at: u64) -> Put {
        let mut n = 0;
        let why = loop {
            let rest = bytes.get(n..).unwrap_or_default();
            if rest.is_empty() {
                self.at = Some(at + n as u64);
                return Put::All;
            }
            match self.file.write_at(rest, at + n as u64) {
                Ok(0) => break io::ErrorKind::WriteZero.into(),
                Ok(more) => n += more,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => break e,
            }
        };
        let whole = whole(ends, n);
        let kept = whole.checked_sub(1).and_then(|last| ends.get(last)).map_or(0, |end| *end as u64);
        self.at = Some(at + kept);
        // If this fails, the next record is written over what is left.
        let _cut = self.file.set_len(at + kept);
        Put::Some(whole, why)
    }

    fn put_reader(
        &mut self,
        bytes: &[u8],
        ends: &[usize],
        called: BorrowedFd<'_>,
        until: impl Fn() -> Option<Instant>,
    ) -> Put {
        let mut rest = bytes;
        while !rest.is_empty() {
            let done = || whole(ends, bytes.len() - rest.len());
            let wait = match until() {
                None => PollTimeout::NONE,
                Some(t) => match t.checked_duration_since(Instant::now()) {
                    None => return Put::Called(done()),
                    Some(left) => PollTimeout::try_from(left.as_millis()).unwrap_or(PollTimeout::MAX),
                },
            };
            let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLOUT)].to_vec();
            if wait == PollTimeout::NONE {
                fds.push(PollFd::new(called, PollFlags::POLLIN));
            }
            match poll(&mut fds, wait) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Put::Gone(done(), e.into()),
            }
            let takes = fds.first().and_then(PollFd::any).unwrap_or(false);
            if fds.get(1).and_then(PollFd::any).unwrap_or(false) && until().is_none() {
                // Something else than an end is called for: it can wait until these records are gone, but not for ever.
                let _read = nix::unistd::read(called, &mut [0; 8]);
            }
            if !takes {
                continue;
            }
            match self.file.write(rest.get(..rest.len().min(AT_ONCE)).unwrap_or_default()) {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                Err(e) => return Put::Gone(done(), e),
            }
        }
        Put::All
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::time::Duration;

    fn calls() -> (std::os::unix::net::UnixStream, std::os::unix::net::UnixStream) {
        std::os::unix::net::UnixStream::pair().unwrap()
    }

    #[test]
    fn a_file_is_written_from_where_it_stands() {
        let mut file = nix_file();
        file.write_all(b"before").unwrap();
        let mut sink = Sink::new(file.try_clone().unwrap().into()).unwrap();
        let (called, _) = calls();
        for part in [b"abc", b"def"] {
            assert!(matches!(sink.put(part, &[3], called.as_fd(), || None), Put::All));
        }
        let mut all = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut all).unwrap();
        assert_eq!(all, "beforeabcdef");
    }

    fn nix_file() -> File {
        let fd = nix::sys::memfd::memfd_create(c"sink", nix::sys::memfd::MFdFlags::MFD_ALLOW_SEALING);
        File::from(fd.unwrap())
    }

    /// A file that may not grow stands for a full disk.
    #[test]
    fn a_full_file_ends_with_a_whole_record_and_goes_on_when_there_is_room() {
        let mut path = std::env::temp_dir();
        path.push(format!("netreeve-sink-{}", std::process::id()));
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut sink = Sink::new(file.try_clone().unwrap().into()).unwrap();
        let (called, _) = calls();
        assert!(matches!(sink.put(&[1; 30], &[10, 20, 30], called.as_fd(), || None), Put::All));
        // The device that is always full is no regular file; where the file is does not matter here.
        sink.file = File::options().write(true).open("/dev/full").unwrap();
        match sink.put(&[2; 30], &[10, 20, 30], called.as_fd(), || None) {
            Put::Some(0, e) => assert_eq!(e.raw_os_error(), Some(libc::ENOSPC)),
            other => panic!("{other:?}"),
        }
        assert_eq!(sink.at, Some(30));
        sink.file = file.try_clone().unwrap();
        assert!(matches!(sink.put(&[3; 5], &[5], called.as_fd(), || None), Put::All));
        assert_eq!(file.metadata().unwrap().len(), 35);
    }

    #[test]
    fn a_reader_that_does_not_read_is_left_when_the_time_is_over() {
        let (r, w) = std::io::pipe().unwrap();
        let mut sink = Sink::new(w.into()).unwrap();
        let (called, caller) = calls();
        let big = vec![5; 1 << 20];
        let until = Instant::now() + Duration::from_millis(50);
        assert!(matches!(sink.put(&big, &[1 << 20], called.as_fd(), || Some(until)), Put::Called(_)));
        // One that is called away in the middle of a wait without end.
        let flag = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                std::thread::sleep(Duration::from_millis(30));
                flag.store(true, std::sync::atomic::Ordering::Relaxed);
                (&caller).write_all(&[0; 8]).unwrap();
            });
            let until = || flag.load(std::sync::atomic::Ordering::Relaxed).then(Instant::now);
            assert!(matches!(sink.put(&big, &[1 << 20], called.as_fd(), until), Put::Called(_)));
        });
        drop(r);
        match sink.put(&big, &[1 << 20], called.as_fd(), || None) {
            Put::Gone(_, e) => assert_eq!(e.kind(), io::ErrorKind::BrokenPipe),
            other => panic!("{other:?}"),
        }
    }
}
