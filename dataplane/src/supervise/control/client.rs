//! One client of the control socket: what it sends, in values; what it is told, in a queue.
//!
//! Trust: none but for its user. Promise: nothing here waits. Who sends without reading what he gets is not read any
//! further; who does not read for [`PATIENCE`] while there is something for him, or lets events pile up to
//! [`MAX_QUEUE`], is cut off.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{self, MsgFlags};
use serde_json::Value;

use super::message::{Refusal, Request, answer};
use super::split::Splitter;
use crate::sys;

/// Bytes that may wait for a client.
pub const MAX_QUEUE: usize = 1024 * 1024;
/// Bytes that may wait for a client that is to be served on.
const SERVED: usize = 128 * 1024;
/// How long a client need not read.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes read in one turn.
const AT_ONCE: usize = 16 * 1024;
/// Descriptors that a client may have sent or named.
const MAX_FDS: usize = 16;

/// A client.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
    input: Splitter,
    queue: Vec<u8>,
    /// Sent of the queue.
    sent: usize,
    /// Since when nothing of the queue could be sent.
    stuck: Option<Instant>,
    /// It has said `qmp_capabilities`.
    pub negotiated: bool,
    /// An answer is being made; what follows has to wait.
    pub waits: bool,
    /// Descriptors that came and have no name yet, oldest first.
    passed: Vec<OwnedFd>,
    /// Those with a name (`getfd`).
    named: Vec<(String, OwnedFd)>,
    /// It sends no more.
    ended: bool,
    /// It is to be closed.
    dead: bool,
}

impl Client {
    /// A connection that was accepted, non-blocking.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            input: Splitter::default(),
            queue: Vec::new(),
            sent: 0,
            stuck: None,
            negotiated: false,
            waits: false,
            passed: Vec::new(),
            named: Vec::new(),
            ended: false,
            dead: false,
        }
    }

    /// Its descriptor.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// It may be read: it is being served, and what it sent before has been looked at.
    #[must_use]
    pub fn wants_reading(&self) -> bool {
        !self.ended && self.served() && !self.input.may_have()
    }

    /// Something waits for it.
    #[must_use]
    pub fn wants_writing(&self) -> bool {
        self.sent < self.queue.len()
    }

    /// There is work without any event.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.served() && self.input.may_have()
    }

    fn served(&self) -> bool {
        !self.dead && !self.waits && self.queue.len() - self.sent < SERVED
    }

    /// When to cut it off.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        self.stuck.map(|t| t + PATIENCE)
    }

    /// It is of no use any more.
    #[must_use]
    pub fn is_over(&self, now: Instant) -> bool {
        let finished = self.ended && !self.waits && !self.wants_writing() && !self.input.may_have();
        self.dead || finished || self.due().is_some_and(|t| t <= now)
    }

    /// Why it is [`Client::is_over`].
    #[must_use]
    pub fn why_over(&self, now: Instant) -> &'static str {
        let slow = self.due().is_some_and(|t| t <= now) || self.dead;
        match slow && !self.ended {
            true => "it did not read what it was told, and was cut off",
            false => "it has ended, or its process was killed",
        }
    }

    /// Reads what has come.
    pub fn read(&mut self) {
        if !self.wants_reading() {
            return;
        }
        let mut bytes = [0; AT_ONCE];
        match sys::fd::recv(self.socket.as_fd(), &mut bytes, &mut self.passed) {
            Ok(0) => self.ended = true,
            Ok(n) => self.input.push(bytes.get(..n).unwrap_or_default()),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => (self.ended, self.dead) = (true, true),
        }
        self.passed.truncate(MAX_FDS);
    }

    /// Gives the descriptor that came first a name (QEMU's `getfd`); one that had the name is closed.
    ///
    /// # Errors
    /// None came, or the name cannot stand.
    pub fn name(&mut self, name: String) -> Result<(), Refusal> {
        if self.passed.is_empty() {
            return Err(Refusal::generic("No file descriptor supplied via SCM_RIGHTS"));
        }
        let fd = self.passed.remove(0);
        if name.is_empty() || name.len() > 64 || name.starts_with(|c: char| c.is_ascii_digit()) {
            let why = "Parameter 'fdname' expects a name not starting with a digit";
            return Err(Refusal::generic(why));
        }
        self.named.retain(|(n, _)| *n != name);
        if self.named.len() >= MAX_FDS {
            return Err(Refusal::generic(format!("{MAX_FDS} descriptors have names already; closefd one")));
        }
        self.named.push((name, fd));
        Ok(())
    }

    /// A descriptor has this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.named.iter().any(|(n, _)| n == name)
    }

    /// Takes the descriptor with this name.
    pub fn named(&mut self, name: &str) -> Option<OwnedFd> {
        let at = self.named.iter().position(|(n, _)| n == name)?;
        Some(self.named.remove(at).1)
    }

    /// The next request. What is wrong is answered here.
    pub fn next_request(&mut self, now: Instant) -> Option<Request> {
        while self.served() {
            let value = self.input.next_value()?;
            let read = value.map_err(|t| (t.into(), None)).and_then(Request::read);
            match read {
                Ok(request) => return Some(request),
                Err((refusal, id)) => self.answer(Err(refusal), id, now),
            }
        }
        None
    }

    /// Answers a request.
    pub fn answer(&mut self, result: Result<Value, Refusal>, id: Option<Value>, now: Instant) {
        self.tell(&answer(result, id), now);
    }

    /// Sends a value, now or when it can be read.
    pub fn tell(&mut self, value: &Value, now: Instant) {
        if self.dead {
            return;
        }
        self.queue.extend_from_slice(value.to_string().as_bytes());
        self.queue.extend_from_slice(b"\r\n");
        self.write(now);
        if self.queue.len() - self.sent > MAX_QUEUE {
            self.dead = true;
        }
    }

    /// Sends what can be sent.
    pub fn write(&mut self, now: Instant) {
        while self.wants_writing() && !self.dead {
            let rest = self.queue.get(self.sent..).unwrap_or_default();
            match socket::send(self.socket.as_raw_fd(), rest, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)
            {
                Ok(n) => {
                    self.sent += n;
                    self.stuck = None;
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => {
                    self.stuck.get_or_insert(now);
                    break;
                }
                Err(_) => (self.ended, self.dead) = (true, true),
            }
        }
        // Moved seldom: half of it is gone by then.
        if self.sent * 2 >= self.queue.len() {
            self.queue.drain(..self.sent);
            self.sent = 0;
        }
    }
}

/// The user at the other end of a unix socket.
///
/// # Errors
/// The kernel's.
pub fn user(socket: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(socket::getsockopt(&socket, socket::sockopt::PeerCredentials)?.uid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    fn pair() -> (Client, UnixStream) {
        let (a, b) = UnixStream::pair().unwrap();
        a.set_nonblocking(true).unwrap();
        (Client::new(a.into()), b)
    }

    #[test]
    fn one_that_does_not_read_is_not_served_then_cut_off() {
        let (mut c, mut other) = pair();
        let now = Instant::now();
        other.write_all(b"{\"execute\":\"a\"}{\"execute\":\"b\"}").unwrap();
        c.read();
        assert_eq!(c.next_request(now).unwrap().command, "a");
        let big = json!("x".repeat(SERVED));
        for _ in 0..4 {
            c.tell(&big, now);
        }
        assert!(c.next_request(now).is_none() && !c.has_work() && !c.wants_reading());
        assert!(!c.is_over(now) && c.is_over(now + PATIENCE));
        // It reads after all.
        other.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut got = 0;
        let mut buffer = vec![0; 1 << 20];
        while let Ok(n @ 1..) = other.read(&mut buffer) {
            got += n;
            c.write(now);
        }
        assert_eq!(got, 4 * (SERVED + 4));
        assert!(!c.is_over(now + PATIENCE) && c.has_work());
        assert_eq!(c.next_request(now).unwrap().command, "b");
        for _ in 0..20 {
            c.tell(&big, now);
        }
        assert!(c.is_over(now), "events without end");
    }

    #[test]
    fn one_that_has_said_all_gets_its_answer_before_the_end() {
        let (mut c, other) = pair();
        let now = Instant::now();
        (&other).write_all(b"nonsense\n{\"execute\":\"a\"}").unwrap();
        other.shutdown(std::net::Shutdown::Write).unwrap();
        c.read();
        assert_eq!(c.next_request(now).unwrap().command, "a");
        c.waits = true;
        c.read();
        assert!(!c.is_over(now));
        c.waits = false;
        c.read();
        c.answer(Ok(json!(1)), None, now);
        assert!(c.is_over(now));
        drop(c);
        let mut all = String::new();
        (&other).read_to_string(&mut all).unwrap();
        assert!(all.starts_with("{\"error\":") && all.ends_with("{\"return\":1}\r\n"), "{all}");
    }
}
