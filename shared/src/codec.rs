//! Messages as bytes, and back. The only file of netreeve that names bincode.
//!
//! A message is a header of 16 bytes, little-endian, and a body:
//!
//! | bytes | field | meaning |
//! |---|---|---|
//! | 0..4 | magic | `NTRV` |
//! | 4..6 | version | [`VERSION`] |
//! | 6..8 | kind | which type the body is, see [`kind`] |
//! | 8..12 | sequence | chosen by the asker, repeated by the answer |
//! | 12..14 | length | bytes of the body |
//! | 14..16 | descriptors | how many travel with the message |
//!
//! The body is bincode with fixed-width little-endian integers, at most [`MAX`] bytes with the header.
//!
//! Trust: the bytes come from a hostile peer. Promise: nothing is decoded before its length is known to be right, a
//! byte too many or too few refuses the message whole, and there is exactly one byte form of each value. bincode is
//! unmaintained (RUSTSEC-2025-0141); the golden bytes in this file's tests say what a replacement must produce.
#![forbid(unsafe_code)]

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::grant::Grant;
use crate::refusal::Refusal;
use crate::request::Request;

/// Largest message in bytes, header included.
pub const MAX: usize = 4096;
/// Bytes of the header.
pub const HEADER: usize = 16;
/// Version of this protocol. Another version is refused: helper and clients are installed together.
pub const VERSION: u16 = 1;

const MAGIC: [u8; 4] = *b"NTRV";
const LIMIT: usize = MAX - HEADER;

/// Kinds of messages. Numbers below [`kind::PRIVATE`] belong to the helper's protocol.
pub mod kind {
    /// The body is a [`crate::request::Request`].
    pub const REQUEST: u16 = 1;
    /// The body is a [`crate::grant::Grant`].
    pub const GRANT: u16 = 2;
    /// The body is a [`crate::refusal::Refusal`].
    pub const REFUSAL: u16 = 3;
    /// The first number that other channels (supervisor and dataplane) may use for their own types.
    pub const PRIVATE: u16 = 64;
}

/// A message's header, already checked against the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which type the body is.
    pub kind: u16,
    /// Chosen by the asker, repeated by the answer.
    pub sequence: u32,
    /// Descriptors that travel with the message.
    pub fds: u16,
}

/// The helper's answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It gave.
    Grant(Grant),
    /// It did not.
    Refusal(Refusal),
}

/// Why bytes are no message, or a value cannot become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecError {
    /// Shorter than a header, or longer than [`MAX`].
    Size,
    /// Not ours: the magic bytes differ.
    Magic,
    /// Ours, of another version.
    Version(u16),
    /// The header's length is not the body's.
    Length,
    /// The header's number of descriptors is not the number that came.
    Descriptors,
    /// A kind that this end does not expect.
    Kind(u16),
    /// The body is no value of its type, or bytes follow it.
    Body,
}

/// The one byte form: fixed-width little-endian integers, bounded.
fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<LIMIT>()
}

/// Makes a message of `body`, which `fds` descriptors will accompany.
///
/// # Errors
/// [`CodecError::Size`] if it would exceed [`MAX`] bytes, [`CodecError::Body`] if the value cannot be serialized.
pub fn encode<T: Serialize>(header: Header, body: &T) -> Result<Vec<u8>, CodecError> {
    let body = bincode::serde::encode_to_vec(body, config()).map_err(|_| CodecError::Body)?;
    let length = u16::try_from(body.len()).map_err(|_| CodecError::Size)?;
    if body.len() > LIMIT {
        return Err(CodecError::Size);
    }
    let mut out = Vec::with_capacity(HEADER + body.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&header.kind.to_le_bytes());
    out.extend_from_slice(&header.sequence.to_le_bytes());
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&header.fds.to_le_bytes());
    out.extend_from_slice(&body);
    Ok(out)
}

/// Reads and checks the header of a message that came with `fds` descriptors.
///
/// # Errors
/// The first field that does not fit the message.
pub fn header(message: &[u8], fds: usize) -> Result<Header, CodecError> {
    if message.len() > MAX {
        return Err(CodecError::Size);
    }
    let (head, body) = message.split_first_chunk::<HEADER>().ok_or(CodecError::Size)?;
    let [m0, m1, m2, m3, v0, v1, k0, k1, s0, s1, s2, s3, l0, l1, f0, f1] = *head;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(CodecError::Magic);
    }
    let version = u16::from_le_bytes([v0, v1]);
    if version != VERSION {
        return Err(CodecError::Version(version));
    }
    if usize::from(u16::from_le_bytes([l0, l1])) != body.len() {
        return Err(CodecError::Length);
    }
    let named = u16::from_le_bytes([f0, f1]);
    if usize::from(named) != fds {
        return Err(CodecError::Descriptors);
    }
    let sequence = u32::from_le_bytes([s0, s1, s2, s3]);
    Ok(Header { kind: u16::from_le_bytes([k0, k1]), sequence, fds: named })
}

/// Reads the body of a message whose [`header`] was read.
///
/// # Errors
/// [`CodecError::Size`] without a header, [`CodecError::Body`] if the body is not exactly one value of `T`.
pub fn decode<T: DeserializeOwned>(message: &[u8]) -> Result<T, CodecError> {
    let body = message.get(HEADER..).ok_or(CodecError::Size)?;
    let (value, read) =
        bincode::serde::decode_from_slice::<T, _>(body, config()).map_err(|_| CodecError::Body)?;
    if read == body.len() { Ok(value) } else { Err(CodecError::Body) }
}

/// Makes a request's message. A request takes no descriptors along.
///
/// # Errors
/// See [`encode`].
pub fn request(sequence: u32, request: &Request) -> Result<Vec<u8>, CodecError> {
    encode(Header { kind: kind::REQUEST, sequence, fds: 0 }, request)
}

/// Reads a request and its sequence number. Its values are not yet checked: [`Request::check`] does that.
///
/// # Errors
/// See [`header`] and [`decode`]; a request never brings descriptors.
pub fn read_request(message: &[u8]) -> Result<(u32, Request), CodecError> {
    let header = header(message, 0)?;
    if header.kind != kind::REQUEST {
        return Err(CodecError::Kind(header.kind));
    }
    Ok((header.sequence, decode(message)?))
}

/// Makes an answer's message; the descriptors that a grant names must be sent with it.
///
/// # Errors
/// See [`encode`].
pub fn answer(sequence: u32, answer: &Answer) -> Result<Vec<u8>, CodecError> {
    match answer {
        Answer::Grant(grant) => {
            let fds = u16::try_from(grant.fds().len()).map_err(|_| CodecError::Descriptors)?;
            encode(Header { kind: kind::GRANT, sequence, fds }, grant)
        }
        Answer::Refusal(refusal) => encode(Header { kind: kind::REFUSAL, sequence, fds: 0 }, refusal),
    }
}

/// Reads an answer that came with `fds` descriptors, and its sequence number.
///
/// # Errors
/// See [`header`] and [`decode`]; [`CodecError::Descriptors`] too if a grant names another number of them.
pub fn read_answer(message: &[u8], fds: usize) -> Result<(u32, Answer), CodecError> {
    let header = header(message, fds)?;
    let answer = match header.kind {
        kind::GRANT => Answer::Grant(decode(message)?),
        kind::REFUSAL => Answer::Refusal(decode(message)?),
        other => return Err(CodecError::Kind(other)),
    };
    let named = match &answer {
        Answer::Grant(grant) => grant.fd_count(),
        Answer::Refusal(_) => 0,
    };
    if named != fds {
        return Err(CodecError::Descriptors);
    }
    Ok((header.sequence, answer))
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size => f.write_str("a message has 16 to 4096 bytes"),
            Self::Magic => f.write_str("not a netreeve message"),
            Self::Version(v) => write!(f, "protocol version {v}, this end speaks {VERSION}"),
            Self::Length => f.write_str("the header's length is not the body's"),
            Self::Descriptors => f.write_str("the number of descriptors is not the one announced"),
            Self::Kind(k) => write!(f, "unexpected kind of message ({k})"),
            Self::Body => f.write_str("the body is not exactly one value of its type"),
        }
    }
}

impl std::error::Error for CodecError {}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
