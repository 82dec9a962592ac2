//! vhost-user messages: read bit by bit, never waiting, and parsed into [`Request`]s.
//!
//! Source: QEMU's `docs/interop/vhost-user.rst`. Trust: none in the front end: sizes are bounded before memory is
//! used, descriptors are owned (and so closed on every path) before anything is looked at. Promise: a message is
//! handed on whole, with exactly the descriptors that its kind takes, or not at all.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use netreeve_shared::mac::Mac;

use crate::mem::guest::{Layout, MAX_REGIONS};
use crate::mem::split::RingAddr;
use crate::sys;

/// Bytes of a message's header.
pub const HEADER: usize = 12;
/// Largest payload in bytes: what all front ends keep to.
pub const MAX_PAYLOAD: usize = 4096;
/// Bytes of the configuration space that may be asked for.
pub const MAX_CONFIG: u32 = 256;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const F_REPLY: u32 = 1 << 2;
const F_NEED_REPLY: u32 = 1 << 3;
/// In a ring's index: no descriptor comes with the message.
const NO_FD: u64 = 1 << 8;

/// Requests by number.
#[allow(missing_docs, reason = "the names are the specification's")]
pub mod request {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_LOG_FD: u32 = 7;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SEND_RARP: u32 = 19;
    pub const NET_SET_MTU: u32 = 20;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const GET_CONFIG: u32 = 24;
    pub const SET_CONFIG: u32 = 25;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_STATUS: u32 = 39;
    pub const GET_STATUS: u32 = 40;
}

/// One of a ring's three descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFd {
    /// The guest's notification to us.
    Kick,
    /// Our interrupt to the guest.
    Call,
    /// Our report that the ring is broken.
    Err,
}

/// A request, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<Layout>),
    SetLogBase,
    SetLogFd,
    SetRingNum { index: u32, num: u32 },
    SetRingAddr { index: u32, at: RingAddr },
    SetRingBase { index: u32, base: u32 },
    GetRingBase { index: u32 },
    SetRingFd { index: u32, which: RingFd, has_fd: bool },
    SetRingEnable { index: u32, on: bool },
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SendRarp(Mac),
    SetMtu(u64),
    SetBackendFd,
    GetConfig { offset: u32, size: u32 },
    SetConfig,
    ResetDevice,
    GetMaxMemSlots,
    AddMemReg(Layout),
    RemMemReg(Layout),
    SetStatus(u64),
    GetStatus,
    Unknown(u32),
}

/// Why a message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bad(pub &'static str);

/// Little-endian (the machine's, says the specification; front ends run on the same machine) fields in order.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&mut self) -> Result<u32, Bad> {
        let (a, rest) = self.0.split_first_chunk().ok_or(Bad("payload too short"))?;
        self.0 = rest;
        Ok(u32::from_ne_bytes(*a))
    }

    fn u64(&mut self) -> Result<u64, Bad> {
        let (a, rest) = self.0.split_first_chunk().ok_or(Bad("payload too short"))?;
        self.0 = rest;
        Ok(u64::from_ne_bytes(*a))
    }

    fn region(&mut self) -> Result<Layout, Bad> {
        Ok(Layout { gpa: self.u64()?, len: self.u64()?, uva: self.u64()?, offset: self.u64()? })
    }
}

impl Request {
    /// Parses a payload. Longer payloads than needed are accepted: some front ends pad.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(number: u32, payload: &[u8]) -> Result<Self, Bad> {
        use request as r;
        let mut p = Fields(payload);
        Ok(match number {
            r::GET_FEATURES => Self::GetFeatures,
            r::SET_FEATURES => Self::SetFeatures(p.u64()?),
            r::SET_OWNER => Self::SetOwner,
            r::RESET_OWNER => Self::ResetOwner,
            r::SET_MEM_TABLE => {
                let n = p.u32()? as usize;
                p.u32()?;
                if n > MAX_REGIONS {
                    return Err(Bad("too many memory regions"));
                }
                Self::SetMemTable((0..n).map(|_| p.region()).collect::<Result<_, _>>()?)
            }
            r::SET_LOG_BASE => Self::SetLogBase,
            r::SET_LOG_FD => Self::SetLogFd,
            r::SET_VRING_NUM => Self::SetRingNum { index: p.u32()?, num: p.u32()? },
            r::SET_VRING_ADDR => {
                let (index, _flags) = (p.u32()?, p.u32()?);
                let (desc, used, avail) = (p.u64()?, p.u64()?, p.u64()?);
                Self::SetRingAddr { index, at: RingAddr { desc, avail, used } }
            }
            r::SET_VRING_BASE => Self::SetRingBase { index: p.u32()?, base: p.u32()? },
            r::GET_VRING_BASE => Self::GetRingBase { index: p.u32()? },
            r::SET_VRING_KICK | r::SET_VRING_CALL | r::SET_VRING_ERR => {
                let v = p.u64()?;
                let which = match number {
                    r::SET_VRING_KICK => RingFd::Kick,
                    r::SET_VRING_CALL => RingFd::Call,
                    _ => RingFd::Err,
                };
                let index = u32::try_from(v & 0xff).map_err(|_| Bad("ring index"))?;
                Self::SetRingFd { index, which, has_fd: v & NO_FD == 0 }
            }
            r::SET_VRING_ENABLE => Self::SetRingEnable { index: p.u32()?, on: p.u32()? != 0 },
            _ => return Self::parse_rest(number, p),
        })
    }

    fn parse_rest(number: u32, mut p: Fields<'_>) -> Result<Self, Bad> {
        use request as r;
        Ok(match number {
            r::GET_PROTOCOL_FEATURES => Self::GetProtocolFeatures,
            r::SET_PROTOCOL_FEATURES => Self::SetProtocolFeatures(p.u64()?),
            r::GET_QUEUE_NUM => Self::GetQueueNum,
            r::SEND_RARP => {
                let [a, b, c, d, e, f, ..] = p.u64()?.to_ne_bytes();
                Self::SendRarp(Mac([a, b, c, d, e, f]))
            }
            r::NET_SET_MTU => Self::SetMtu(p.u64()?),
            r::SET_BACKEND_REQ_FD => Self::SetBackendFd,
            r::GET_CONFIG => {
                let (offset, size, _flags) = (p.u32()?, p.u32()?, p.u32()?);
                if size > MAX_CONFIG || offset > MAX_CONFIG - size {
                    return Err(Bad("configuration space has 256 bytes"));
                }
                Self::GetConfig { offset, size }
            }
            r::SET_CONFIG => Self::SetConfig,
            r::RESET_DEVICE => Self::ResetDevice,
            r::GET_MAX_MEM_SLOTS => Self::GetMaxMemSlots,
            r::ADD_MEM_REG => {
                p.u64()?;
                Self::AddMemReg(p.region()?)
            }
            r::REM_MEM_REG => {
                p.u64()?;
                Self::RemMemReg(p.region()?)
            }
            r::SET_STATUS => Self::SetStatus(p.u64()?),
            r::GET_STATUS => Self::GetStatus,
            n => Self::Unknown(n),
        })
    }

    /// Fewest and most descriptors that come with it.
    #[must_use]
    pub fn fds(&self) -> (usize, usize) {
        match self {
            Self::SetMemTable(list) => (list.len(), list.len()),
            Self::SetLogFd | Self::SetBackendFd | Self::AddMemReg(_) => (1, 1),
            Self::SetRingFd { has_fd, .. } => (usize::from(*has_fd), usize::from(*has_fd)),
            // Front ends may send one although none is needed.
            Self::SetLogBase | Self::RemMemReg(_) => (0, 1),
            Self::Unknown(_) => (0, usize::MAX),
            _ => (0, 0),
        }
    }
}

/// A whole message.
#[derive(Debug)]
pub struct Message {
    /// The request's number.
    pub number: u32,
    /// The front end waits for an answer (meaningful with `REPLY_ACK`).
    pub need_reply: bool,
    /// The request, or why it is refused.
    pub request: Result<Request, Bad>,
    /// Its descriptors; as many as [`Request::fds`] says.
    pub fds: Vec<OwnedFd>,
}

/// What reading came to.
#[derive(Debug)]
pub enum Read {
    /// A message.
    Message(Message),
    /// Nothing more at the moment.
    Later,
    /// The front end closed the connection.
    End,
}

/// Puts messages together.
#[derive(Debug)]
pub struct Reader {
    buf: Box<[u8; HEADER + MAX_PAYLOAD]>,
    have: usize,
    fds: Vec<OwnedFd>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { buf: Box::new([0; HEADER + MAX_PAYLOAD]), have: 0, fds: Vec::new() }
    }
}

impl Reader {
    /// Number, flags and total length, once the header is here.
    fn header(&self) -> Result<Option<(u32, u32, usize)>, Bad> {
        if self.have < HEADER {
            return Ok(None);
        }
        let mut p = Fields(self.buf.as_slice());
        let (number, flags, size) = (p.u32()?, p.u32()?, p.u32()? as usize);
        if flags & VERSION_MASK != VERSION || flags & F_REPLY != 0 {
            return Err(Bad("not a vhost-user request of version 1"));
        }
        if size > MAX_PAYLOAD {
            return Err(Bad("payload of more than 4096 bytes"));
        }
        Ok(Some((number, flags, HEADER + size)))
    }

    /// Reads what is there, up to one message. Never reads beyond it: descriptors belong to the bytes they came with.
    ///
    /// # Errors
    /// The connection is of no more use: broken framing, or the kernel's.
    pub fn read(&mut self, sock: BorrowedFd<'_>) -> io::Result<Read> {
        let broken = |b: Bad| io::Error::new(io::ErrorKind::InvalidData, b.0);
        loop {
            let want = match self.header().map_err(broken)? {
                Some((number, flags, total)) if self.have == total => {
                    return Ok(Read::Message(self.take(number, flags, total)));
                }
                Some((_, _, total)) => total,
                None => HEADER,
            };
            let Some(to) = self.buf.get_mut(self.have..want) else { return Ok(Read::Later) };
            match sys::fd::recv(sock, to, &mut self.fds) {
                Ok(0) => return Ok(Read::End),
                Ok(n) => self.have += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Read::Later),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// No part of a message was read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.have == 0 && self.fds.is_empty()
    }

    fn take(&mut self, number: u32, flags: u32, total: usize) -> Message {
        self.have = 0;
        let fds = std::mem::take(&mut self.fds);
        let payload = self.buf.get(HEADER..total).unwrap_or_default();
        let request = Request::parse(number, payload).and_then(|r| {
            let (least, most) = r.fds();
            if fds.len() < least || fds.len() > most {
                Err(Bad("wrong number of descriptors"))
            } else {
                Ok(r)
            }
        });
        let fds = if request.is_ok() { fds } else { Vec::new() };
        Message { number, need_reply: flags & F_NEED_REPLY != 0, request, fds }
    }
}

/// A reply to request `number`.
#[must_use]
pub fn reply(number: u32, payload: &[u8]) -> Vec<u8> {
    message(number, VERSION | F_REPLY, payload)
}

/// A request of ours to the front end, which needs no answer.
#[must_use]
pub fn notice(number: u32) -> Vec<u8> {
    message(number, VERSION, &[])
}

fn message(number: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
    let mut m = Vec::with_capacity(HEADER + payload.len());
    m.extend(number.to_ne_bytes());
    m.extend(flags.to_ne_bytes());
    m.extend(u32::try_from(payload.len()).unwrap_or(0).to_ne_bytes());
    m.extend(payload);
    m
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
