//! What goes wrong before the first frame: a sentence for the supervisor.
#![forbid(unsafe_code)]

use std::io;

use crate::port::OpenError;

/// What went wrong before the first frame.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) slot: Option<u16>,
    pub(super) errno: i32,
    pub(super) why: String,
}

impl Trouble {
    pub(super) fn new(why: impl Into<String>) -> Self {
        Self { slot: None, errno: 0, why: why.into() }
    }

    pub(super) fn io(what: &str, e: &io::Error) -> Self {
        Self { slot: None, errno: e.raw_os_error().unwrap_or(0), why: format!("{what}: {e}") }
    }

    pub(super) fn open(slot: u16, e: &OpenError) -> Self {
        let errno = e.source.as_ref().and_then(io::Error::raw_os_error).unwrap_or(0);
        Self { slot: Some(slot), errno, why: e.to_string() }
    }
}
