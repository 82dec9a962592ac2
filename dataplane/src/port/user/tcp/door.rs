//! Guest forwards whose connections the supervisor makes: the guest's SYN waits here while it does.
//!
//! Trust: none in the guest. Promise: so many wait at a door and no more, none for longer than [`LATE`] if another comes or
//! the guest asks again; a connection that nobody waits for any more is closed.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use netreeve_shared::channel::Channel;

use super::super::door;
use super::segment::{Key, Segment};

/// Guest's connections that wait at one door: as many as the supervisor makes at once.
const WAITING: usize = 64;
/// How long one may wait before another takes its place, or its answer is taken for lost and it asks anew.
const LATE: Duration = Duration::from_secs(3);

/// One that waits.
#[derive(Debug)]
struct Waiting {
    number: u32,
    key: Key,
    syn: Segment,
    since: Instant,
}

/// A door, from the dataplane's side.
#[derive(Debug)]
pub(super) struct Door {
    channel: Channel,
    waiting: VecDeque<Waiting>,
    last: u32,
}

/// What came through a door: whose it is, and the connection or why there is none.
pub(super) type Came = (Key, Segment, io::Result<OwnedFd>);

impl Door {
    /// # Errors
    /// The descriptor is no such socket.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let channel = Channel::from_fd(fd)?;
        channel.set_nonblocking(true)?;
        Ok(Self { channel, waiting: VecDeque::new(), last: 0 })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// The guest asks for a connection; if it asks again, it means what it said last. False: there is no room to wait.
    pub(super) fn ask(&mut self, syn: &Segment, key: Key, now: Instant) -> bool {
        let late = |w: &Waiting| now.saturating_duration_since(w.since) >= LATE;
        self.waiting.retain(|w| w.key != key || !late(w));
        if let Some(w) = self.waiting.iter_mut().find(|w| w.key == key) {
            w.syn = *syn;
            return true;
        }
        if self.waiting.len() >= WAITING {
            if !self.waiting.front().is_some_and(late) {
                return false;
            }
            self.waiting.pop_front();
        }
        let number = self.last.wrapping_add(1);
        if self.channel.send(&door::ask(number), &[]).is_err() {
            return false;
        }
        self.last = number;
        self.waiting.push_back(Waiting { number, key, syn: *syn, since: now });
        true
    }

    /// What has come next. None: nothing more now.
    pub(super) fn came(&mut self) -> Option<Came> {
        loop {
            let message = match self.channel.recv(1, Some(Duration::ZERO)) {
                Ok(Some(m)) => m,
                // Too many descriptors for this process: nobody knows whose it was.
                Err(e) if e.kind() == io::ErrorKind::InvalidData => continue,
                Ok(None) | Err(_) => return None,
            };
            let Some((number, errno)) = door::read_answer(&message.bytes) else { continue };
            let Some(i) = self.waiting.iter().position(|w| w.number == number) else { continue };
            let Some(w) = self.waiting.remove(i) else { continue };
            let made = match (message.fds.into_iter().next(), errno) {
                (Some(fd), 0) => Ok(fd),
                // A full queue: the guest asks again.
                (_, 0 | libc::EAGAIN) => Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)),
                (_, e) => Err(io::Error::from_raw_os_error(e)),
            };
            return Some((w.key, w.syn, made));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::user::tcp::seq::Seq;

    fn key(port: u16) -> Key {
        Key { guest: ([10, 0, 2, 15], port).into(), far: ([10, 0, 2, 100], 80).into() }
    }

    fn syn(n: u32) -> Segment {
        Segment { seq: Seq(n), ..Segment::default() }
    }

    #[test]
    fn who_waits_is_answered_once_and_in_any_order() {
        let (theirs, ours) = Channel::pair().unwrap();
        let mut door = Door::new(ours.into_fd()).unwrap();
        let now = Instant::now();
        let asked = || {
            let m = theirs.recv(0, Some(Duration::ZERO)).ok()??;
            door::read_ask(&m.bytes)
        };
        assert!(door.ask(&syn(1), key(1), now) && door.ask(&syn(2), key(2), now));
        assert!(door.ask(&syn(5), key(1), now), "asked again");
        let [a, b] = [asked().unwrap(), asked().unwrap()];
        assert!(a != b && asked().is_none(), "once each");
        let fd = std::fs::File::open("/dev/null").unwrap();
        theirs.send(&door::answer(b, libc::ECONNREFUSED), &[]).unwrap();
        theirs.send(&door::answer(a, 0), &[fd.as_fd()]).unwrap();
        theirs.send(&door::answer(a, 0), &[fd.as_fd()]).unwrap();
        theirs.send(b"what?", &[]).unwrap();
        let (k, s, made) = door.came().unwrap();
        assert_eq!((k, s.seq, made.unwrap_err().raw_os_error()), (key(2), Seq(2), Some(libc::ECONNREFUSED)));
        let (k, s, made) = door.came().unwrap();
        assert_eq!((k, s.seq), (key(1), Seq(5)), "as it was said last");
        made.unwrap();
        assert!(door.came().is_none(), "nobody waits for the others");
    }

    #[test]
    fn no_more_wait_than_may() {
        let (_theirs, ours) = Channel::pair().unwrap();
        let mut door = Door::new(ours.into_fd()).unwrap();
        let now = Instant::now();
        for n in 0..64 {
            assert!(door.ask(&syn(1), key(n + 1), now));
        }
        assert!(!door.ask(&syn(1), key(100), now + LATE - Duration::from_millis(1)));
        assert!(door.ask(&syn(1), key(100), now + LATE));
        assert_eq!(door.waiting.len(), WAITING);
    }

    #[test]
    fn whose_answer_is_lost_asks_anew() {
        let (theirs, ours) = Channel::pair().unwrap();
        let mut door = Door::new(ours.into_fd()).unwrap();
        let now = Instant::now();
        let asked = || door::read_ask(&theirs.recv(0, Some(Duration::ZERO)).ok()??.bytes);
        assert!(door.ask(&syn(1), key(1), now));
        let first = asked().unwrap();
        assert!(door.ask(&syn(1), key(1), now + LATE - Duration::from_millis(1)));
        assert!(asked().is_none(), "not yet");
        assert!(door.ask(&syn(1), key(1), now + LATE));
        let second = asked().unwrap();
        assert!(second != first && asked().is_none() && door.waiting.len() == 1);
        assert!(door.ask(&syn(1), key(1), now + LATE + Duration::from_secs(1)), "waits again");
        assert!(asked().is_none());
        // The first answer comes after all: it is nobody's.
        let fd = std::fs::File::open("/dev/null").unwrap();
        theirs.send(&door::answer(first, 0), &[fd.as_fd()]).unwrap();
        theirs.send(&door::answer(second, 0), &[fd.as_fd()]).unwrap();
        let (k, _, made) = door.came().unwrap();
        assert_eq!(k, key(1));
        made.unwrap();
        assert!(door.came().is_none() && door.waiting.is_empty());
    }
}
