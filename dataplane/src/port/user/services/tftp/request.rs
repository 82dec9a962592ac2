//! What a client of TFTP sends (RFC 1350), and the options that it asks for (RFC 2347, 2348, 2349, 7440).
//!
//! Trust: none. Promise: every slice lies in the message; a name that would lead out of the directory is none.
#![forbid(unsafe_code)]

use std::ffi::CString;

use super::super::bytes::Reader;

/// Longest name in bytes.
const NAME: usize = 512;
/// Options that are looked at.
const OPTIONS: usize = 8;

/// A message of a client's.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// This file, please.
    Read(Read<'a>),
    /// It wants to write.
    Write,
    /// Came to me up to this block.
    Ack(u16),
    /// I give up.
    Error,
}

/// A request for a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Read<'a> {
    /// Its name, as asked for.
    pub name: &'a [u8],
    /// As text (`netascii`).
    pub text: bool,
    /// Bytes of a block.
    pub block: Option<u32>,
    /// Its size is asked for.
    pub size: bool,
    /// Seconds until something is sent again.
    pub timeout: Option<u32>,
    /// Blocks between acknowledgements.
    pub window: Option<u32>,
}

/// The message in a datagram. None: it is none, or broken.
#[must_use]
pub fn parse(datagram: &[u8]) -> Option<Message<'_>> {
    let mut r = Reader::new(datagram);
    match r.u16()? {
        1 => read(r).map(Message::Read),
        2 => Some(Message::Write),
        4 => r.u16().map(Message::Ack),
        5 => Some(Message::Error),
        _ => None,
    }
}

fn read(mut r: Reader<'_>) -> Option<Read<'_>> {
    let name = r.text()?;
    let mode = r.text()?;
    let text = mode.eq_ignore_ascii_case(b"netascii");
    if !text && !mode.eq_ignore_ascii_case(b"octet") {
        return None;
    }
    let mut q = Read { name, text, ..Read::default() };
    for _ in 0..OPTIONS {
        // What follows the last whole option is padding of clients that send more than they say.
        let Some((option, value)) = r.text().zip(r.text()) else { break };
        let number = || std::str::from_utf8(value).ok()?.parse::<u32>().ok();
        match option.to_ascii_lowercase().as_slice() {
            b"blksize" => q.block = number().filter(|n| (8..=65464).contains(n)),
            b"tsize" => q.size = number().is_some(),
            b"timeout" => q.timeout = number().filter(|n| (1..=255).contains(n)),
            b"windowsize" => q.window = number().filter(|n| (1..=65535).contains(n)),
            _ => {}
        }
    }
    Some(q)
}

/// The path of a name, beneath the directory: slashes either way are slashes, and the first one means the directory. None:
/// it would lead elsewhere, or to no file. (The kernel is told the same when it is opened.)
#[must_use]
pub fn path(name: &[u8]) -> Option<CString> {
    let all: Vec<u8> = name.iter().map(|b| if *b == b'\\' { b'/' } else { *b }).collect();
    let start = all.iter().position(|b| *b != b'/')?;
    let path = all.get(start..)?;
    let steps = || path.split(|b| *b == b'/');
    if path.len() > NAME
        || steps().any(|s| s == b"..")
        || steps().next_back().is_none_or(|s| s.is_empty() || s == b".")
    {
        return None;
    }
    CString::new(path).ok()
}
