//! What the supervisor tells on standard error, and as JSON lines on standard output if asked.
//!
//! Promise: a dataplane cannot flood the log: what it causes is limited to [`BURST`] lines a second.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::fault::{Fault, plain};
use crate::supervise::ready;

/// Lines in one second that others may cause.
const BURST: u32 = 20;

/// The supervisor's voice.
#[derive(Debug)]
pub struct Voice {
    /// JSON lines on standard output as well.
    pub json: bool,
    window: Instant,
    lines: u32,
}

impl Voice {
    /// Silent so far.
    #[must_use]
    pub fn new(json: bool) -> Self {
        Self { json, window: Instant::now(), lines: 0 }
    }

    /// A line on standard error.
    pub fn say(&mut self, text: &str) {
        say(text);
    }

    /// A line that somebody else can cause as often as he likes.
    pub fn say_of_others(&mut self, text: &str) {
        let now = Instant::now();
        if now.duration_since(self.window) > Duration::from_secs(1) {
            self.window = now;
            if self.lines > BURST {
                say(&format!("{} lines more are left out", self.lines - BURST));
            }
            self.lines = 0;
        }
        self.lines = self.lines.saturating_add(1);
        if self.lines <= BURST {
            say(text);
        }
    }

    /// An event for programs.
    pub fn event(&mut self, event: &serde_json::Value) {
        if self.json {
            // Who closed our standard output does not want to hear it.
            let _said = ready::print_line(&event.to_string());
        }
    }
}

/// A line on standard error, without control bytes.
pub fn say(text: &str) {
    // There is nobody left to tell if standard error is closed.
    let _said = writeln!(io::stderr().lock(), "netreeve: {}", plain(text));
}

/// A fault on standard error, in its three parts.
pub fn fault(fault: &Fault) {
    // There is nobody left to tell if standard error is closed.
    let _said = writeln!(io::stderr().lock(), "netreeve: {fault}");
}
