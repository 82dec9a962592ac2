//! A file as blocks: its bytes as they are, or as text for anybody (`netascii`, RFC 764: lines end with CR LF, and a CR
//! that ends none is followed by a NUL).
//!
//! Trust: the file may change while it is read; then a client gets some mixture. Promise: a block is never longer than
//! asked for, and read again from the same place it is the same, if the file is.
#![forbid(unsafe_code)]

use std::io::{ErrorKind, Result};
use std::os::fd::{AsFd, OwnedFd};

use crate::sys::beneath::read_at;

/// Bytes of a text that are read at a time.
const BYTES: usize = 2048;

/// Where a block begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// In the file.
    at: u64,
    /// A byte that belongs before it: the second of two that one of the file's became.
    owed: Option<u8>,
}

/// An open file.
#[derive(Debug)]
pub struct File {
    fd: OwnedFd,
    text: bool,
}

impl File {
    /// As text or as it is.
    #[must_use]
    pub fn new(fd: OwnedFd, text: bool) -> Self {
        Self { fd, text }
    }

    /// Appends up to `len` bytes from `from` on; fewer only at the end. Gives where the next block begins.
    ///
    /// # Errors
    /// The kernel's.
    pub fn block(&self, from: Place, len: usize, out: &mut Vec<u8>) -> Result<Place> {
        let end = out.len() + len;
        if !self.text {
            let at = self.raw(from.at, len, out)?;
            return Ok(Place { at, owed: None });
        }
        let mut p = from;
        let mut raw = Vec::with_capacity(BYTES);
        loop {
            if let Some(b) = p.owed.filter(|_| out.len() < end) {
                out.push(b);
                p.owed = None;
            }
            if out.len() >= end {
                return Ok(p);
            }
            raw.clear();
            self.raw(p.at, (end - out.len()).min(BYTES), &mut raw)?;
            if raw.is_empty() {
                return Ok(p);
            }
            for b in &raw {
                if out.len() >= end || p.owed.is_some() {
                    break;
                }
                p.at += 1;
                out.push(if *b == b'\n' { b'\r' } else { *b });
                p.owed = match b {
                    b'\n' => Some(b'\n'),
                    b'\r' => Some(0),
                    _ => None,
                };
                if let Some(b) = p.owed.filter(|_| out.len() < end) {
                    out.push(b);
                    p.owed = None;
                }
            }
        }
    }

    /// Appends up to `len` bytes as they are; gives where they end.
    fn raw(&self, at: u64, len: usize, out: &mut Vec<u8>) -> Result<u64> {
        let start = out.len();
        out.resize(start + len, 0);
        let mut have = 0;
        while have < len {
            let to = out.get_mut(start + have..).unwrap_or_default();
            let from = at.saturating_add(u64::try_from(have).unwrap_or(0));
            match read_at(self.fd.as_fd(), to, from) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => {
                    out.truncate(start);
                    return Err(e);
                }
            }
        }
        out.truncate(start + have);
        Ok(at.saturating_add(u64::try_from(have).unwrap_or(0)))
    }
}
