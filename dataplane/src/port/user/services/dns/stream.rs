//! Questions by TCP, one on each connection (RFC 7766), for networks that let no DNS through by UDP.
//!
//! Trust: none in who answers. Promise: bounded connections and bytes; nothing waits.
#![forbid(unsafe_code)]

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use super::super::DNS_STREAM;
use super::super::bytes::n16;
use super::{ANSWER, Way};
use crate::port::user::poll::{Token, Want, Who};
use crate::port::user::room::Cx;
use crate::port::user::sockets::leave;
use crate::sys::sock::{self, Speaks};

/// Connections.
const STREAMS: usize = 8;

#[derive(Debug)]
struct Stream {
    fd: OwnedFd,
    generation: u16,
    /// The question behind its length, and how much of it has gone.
    query: Vec<u8>,
    sent: usize,
    answer: Vec<u8>,
}

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Streams {
    slots: [Option<Stream>; STREAMS],
    generation: u16,
}

impl Stream {
    /// Goes on as far as it goes. True: the answer is whole.
    fn step(&mut self) -> Result<bool> {
        if let Some(e) = sock::error(self.fd.as_fd())? {
            return Err(e);
        }
        while let Some(rest) = self.query.get(self.sent..).filter(|r| !r.is_empty()) {
            match sock::write_to(self.fd.as_fd(), &[rest], None) {
                Ok(n) => self.sent += n,
                // Connecting, or full.
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    return Ok(false);
                }
                Err(e) => return Err(e),
            }
        }
        loop {
            let whole = match self.answer.first_chunk::<2>() {
                Some(len) => 2 + usize::from(u16::from_be_bytes(*len)),
                None => 2,
            };
            if self.answer.len() >= whole && whole > 2 {
                return Ok(true);
            }
            // What is longer than any asker takes is told of by its beginning.
            if self.answer.len() > ANSWER {
                return Ok(true);
            }
            let mut part = [0; 2048];
            match sock::read_from(self.fd.as_fd(), &mut part) {
                Ok((0, _)) => return Err(Error::from(ErrorKind::UnexpectedEof)),
                Ok((n, _)) => self.answer.extend_from_slice(part.get(..n).unwrap_or_default()),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
    }
}

impl Streams {
    /// Begins to ask. None: there are enough connections, or there can be none.
    pub(super) fn open(&mut self, server: SocketAddr, query: &[u8], cx: &Cx) -> Option<usize> {
        let i = self.slots.iter().position(Option::is_none)?;
        self.generation = self.generation.wrapping_add(1);
        let token = Token {
            who: Who::Services,
            kind: DNS_STREAM,
            index: u32::try_from(i).ok()?,
            generation: self.generation,
        };
        let fd = sock::new(Speaks::Tcp, server.is_ipv6()).ok()?;
        leave(fd.as_fd(), server, &cx.outbound).ok()?;
        sock::connect(fd.as_fd(), server).ok()?;
        cx.poll.add(fd.as_fd(), token, Want::BOTH).ok()?;
        let query = [&n16(query.len()).to_be_bytes()[..], query].concat();
        let s = Stream { fd, generation: self.generation, query, sent: 0, answer: Vec::new() };
        *self.slots.get_mut(i)? = Some(s);
        Some(i)
    }

    /// Goes on with a connection. None: it is not done; else its answer, and it is closed.
    pub(super) fn ready(&mut self, i: usize, generation: u16) -> Option<Result<Vec<u8>>> {
        let slot = self.slots.get_mut(i)?;
        let done = match slot.as_mut().filter(|s| s.generation == generation)?.step() {
            Ok(false) => return None,
            other => other,
        };
        let s = slot.take()?;
        Some(done.map(|_| {
            let whole = s.answer.first_chunk::<2>().map_or(0, |len| u16::from_be_bytes(*len));
            let rest = s.answer.get(2..).unwrap_or_default();
            rest.get(..usize::from(whole)).unwrap_or(rest).to_vec()
        }))
    }

    /// Whoever asked does so no more: its connection is closed, if it had one.
    pub(super) fn end(&mut self, way: &mut Way) {
        if let Way::Stream(i) = *way {
            if let Some(slot) = self.slots.get_mut(i) {
                *slot = None;
            }
            *way = Way::Nowhere;
        }
    }
}
