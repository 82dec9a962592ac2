//! Sockets with a frame in each message: connected ones, and those of a group.

use std::collections::VecDeque;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::socket::{Shutdown, SockaddrStorage, recv, recvfrom, send, sendto, shutdown};

use super::{Bad, Far, PATIENCE, Put, RECV, Room, SEND, Take, is_full, room};

/// What messages are besides frames.
#[derive(Clone, Debug, Default)]
pub(crate) struct Form {
    /// Stands before each frame that is put in.
    pub(crate) head: Vec<u8>,
    /// Stands before each frame that is taken out.
    pub(crate) behind: Vec<u8>,
    /// And an IPv4 header before that.
    pub(crate) ip: bool,
    /// A message of no bytes is the end.
    pub(crate) connection: bool,
    /// What is no frame, and under which reason it is counted.
    pub(crate) bad: (Vec<u8>, &'static str),
}

/// A connected socket with a frame in each message.
pub(crate) struct Messages {
    fd: OwnedFd,
    form: Form,
    /// Goes with it.
    _with: Vec<OwnedFd>,
    room: Room,
    ended: bool,
}

impl Messages {
    pub(crate) fn new(fd: impl Into<OwnedFd>, form: Form, with: Vec<OwnedFd>) -> Self {
        Self { fd: fd.into(), form, _with: with, room: room(), ended: false }
    }

    /// Datagrams that are frames and nothing else.
    pub(crate) fn plain(fd: impl Into<OwnedFd>, with: Vec<OwnedFd>) -> Self {
        Self::new(fd, Form { bad: (Vec::new(), "runt"), ..Form::default() }, with)
    }

    fn say(&self, message: &[u8]) -> Put {
        // The first may hear of the one before.
        for again in [true, false] {
            match send(self.fd.as_raw_fd(), message, SEND) {
                Ok(_) => return Put::Gone,
                Err(e) if is_full(e) => return Put::Full,
                Err(Errno::EMSGSIZE) => return Put::Never,
                Err(Errno::ECONNREFUSED) if again => {}
                Err(_) => return Put::Lost,
            }
        }
        Put::Lost
    }

    /// The frame in a message; none: it is another's.
    fn open(&self, message: &[u8]) -> Option<Vec<u8>> {
        let ip = if self.form.ip { usize::from(message[0] & 0x0f) * 4 } else { 0 };
        message[ip..].strip_prefix(&self.form.behind[..]).map(<[u8]>::to_vec)
    }
}

impl Far for Messages {
    fn put(&mut self, frame: &[u8]) -> Put {
        if self.form.head.is_empty() { self.say(frame) } else { self.say(&[&self.form.head, frame].concat()) }
    }

    fn take(&mut self) -> Take {
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.room, RECV) {
                Ok(0) if self.form.connection => {
                    self.ended = true;
                    return Take::End;
                }
                Ok(n) => {
                    assert!(n < self.room.len(), "a message that is longer than any may be");
                    match self.open(&self.room[..n]) {
                        Some(frame) => return Take::Frame(frame),
                        None => panic!("a message that begins with {:?}", &self.room[..n.min(48)]),
                    }
                }
                Err(e) if is_full(e) => return Take::Nothing,
                // Of something that was sent.
                Err(Errno::ECONNREFUSED) => {}
                Err(_) => {
                    self.ended = true;
                    return Take::End;
                }
            }
        }
    }

    fn garbage(&mut self) -> Option<Bad> {
        let (message, reason) = self.form.bad.clone();
        let until = Instant::now() + PATIENCE;
        while self.say(&message) != Put::Gone {
            assert!(Instant::now() < until, "nobody takes messages");
        }
        Some(Bad { reason, ends: false })
    }

    fn half_close(&mut self) -> bool {
        self.form.connection && shutdown(self.fd.as_raw_fd(), Shutdown::Write).is_ok()
    }

    fn is_connected(&mut self) -> bool {
        !self.ended
    }
}

/// A socket that hears many and sends to one address.
pub(crate) struct Party {
    /// Sends; what comes from its address is our own.
    tx: UdpSocket,
    rx: OwnedFd,
    to: SocketAddr,
    room: Room,
    /// What came, our own aside.
    came: VecDeque<Vec<u8>>,
}

impl Party {
    pub(crate) fn new(tx: UdpSocket, rx: OwnedFd, to: SocketAddr) -> Self {
        Self { tx, rx, to, room: room(), came: VecDeque::new() }
    }

    /// Reads one message. False: there is none.
    fn hear(&mut self) -> bool {
        let us = SockaddrStorage::from(self.tx.local_addr().unwrap());
        match recvfrom::<SockaddrStorage>(self.rx.as_raw_fd(), &mut self.room) {
            Ok((_, Some(from))) if from == us => true,
            Ok((n, _)) => {
                self.came.push_back(self.room[..n].to_vec());
                true
            }
            Err(_) => false,
        }
    }
}

impl Far for Party {
    /// Its own frame comes back to it, and has to be taken from the queue lest that be full of them.
    fn put(&mut self, frame: &[u8]) -> Put {
        let put = match sendto(self.tx.as_raw_fd(), frame, &SockaddrStorage::from(self.to), SEND) {
            Ok(_) => Put::Gone,
            Err(e) if is_full(e) => Put::Full,
            Err(Errno::EMSGSIZE) => Put::Never,
            Err(_) => Put::Lost,
        };
        while self.hear() {}
        put
    }

    fn take(&mut self) -> Take {
        while self.came.is_empty() && self.hear() {}
        self.came.pop_front().map_or(Take::Nothing, Take::Frame)
    }

    fn garbage(&mut self) -> Option<Bad> {
        (self.put(&[]) == Put::Gone).then_some(Bad { reason: "runt", ends: false })
    }
}
