//! What the supervisor tells on standard error, and as JSON lines on standard output if asked.
//!
//! Promise: a dataplane cannot flood the log: what it causes is limited to [`BURST`] lines a second.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
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

/// Most bytes of the file that standard error is; 0: nobody counts.
static MOST: AtomicU64 = AtomicU64::new(0);

/// Standard error is a log, open for reading as well, that shall have no more bytes than this: the oldest lines go.
pub fn keep_short(most: u64) {
    MOST.store(most, Ordering::Relaxed);
}

/// A line on standard error, without control bytes.
pub fn say(text: &str) {
    line(&plain(text));
}

/// A fault on standard error, in its three parts.
pub fn fault(fault: &Fault) {
    line(&fault.to_string());
}

fn line(text: &str) {
    // A million of them are nobody's to read.
    if cfg!(feature = "fuzz") {
        return;
    }
    let mut error = io::stderr().lock();
    // There is nobody left to tell if standard error is closed.
    let _said = writeln!(error, "netreeve: {text}");
    let most = MOST.load(Ordering::Relaxed);
    if most > 0 {
        let log = error.as_fd().try_clone_to_owned().map(File::from);
        // A log that cannot be cut grows.
        let _cut = log.and_then(|log| shorten(&log, most));
    }
}

/// Leaves the newest lines of a log that has grown too long, half of what it may have.
fn shorten(mut log: &File, most: u64) -> io::Result<()> {
    let len = log.metadata()?.len();
    if len <= most {
        return Ok(());
    }
    let mut rest = vec![0; usize::try_from(most / 2).unwrap_or(0)];
    let n = log.read_at(&mut rest, len - most / 2)?;
    let rest = rest.get(..n).unwrap_or_default();
    let begin = rest.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1);
    log.set_len(0)?;
    log.write_all(rest.get(begin..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_loses_its_oldest_lines() {
        let path = std::env::temp_dir().join(format!("netreeve-say-{}.log", std::process::id()));
        let log = File::options().read(true).append(true).create(true).open(&path).unwrap();
        for n in 0..1000 {
            writeln!(&log, "line {n}").unwrap();
            shorten(&log, 300).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(text.len() <= 300 && text.ends_with(&format!("line {n}\n")), "{text}");
            assert!(text.starts_with("line "), "{text}");
        }
        std::fs::remove_file(path).unwrap();
    }
}
