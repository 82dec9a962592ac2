//! What a dataplane writes to its standard error (a panic, a library's complaint), as lines for its user.
//!
//! Trust: none, as in all that it says. Promise: control bytes are replaced, a line is at most [`LONGEST`] bytes, a call
//! reads at most [`AT_ONCE`]; how many lines are shown is the voice's to limit, and who writes more than [`FLOOD`] in a
//! second is told apart, to be ended: nobody's pipe is left full, nobody is kept busy.
#![forbid(unsafe_code)]

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ChildStderr;
use std::time::{Duration, Instant};

use crate::fault::plain;
use crate::sys;

/// Bytes of a line that are shown.
pub const LONGEST: usize = 400;
/// Bytes read by one call.
const AT_ONCE: usize = 4096;
/// Bytes in one second that a sane dataplane never writes: what a pipe holds.
const FLOOD: usize = 64 * 1024;

/// The reading end of a dataplane's standard error.
#[derive(Debug)]
pub struct Overheard {
    /// None: it has closed its end.
    pipe: Option<ChildStderr>,
    line: Vec<u8>,
    /// Bytes left out of the line so far.
    cut: usize,
    window: (Instant, usize),
}

impl Overheard {
    /// Listens to this pipe; to none, silence.
    ///
    /// # Errors
    /// The kernel's, of making it non-blocking.
    pub fn new(pipe: Option<ChildStderr>) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            sys::fd::set_nonblocking(pipe.as_fd())?;
        }
        Ok(Self { pipe, line: Vec::new(), cut: 0, window: (Instant::now(), 0) })
    }

    /// The descriptor to watch for being readable, while there is one.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }

    /// The lines that have ended since the last time, as far as one turn goes.
    ///
    /// # Errors
    /// `InvalidData`: it writes without end.
    pub fn hear(&mut self, now: Instant) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        let n = self.read(&mut lines);
        if now.duration_since(self.window.0) > Duration::from_secs(1) {
            self.window = (now, 0);
        }
        self.window.1 = self.window.1.saturating_add(n);
        if self.window.1 > FLOOD {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it writes to its standard error without end",
            ));
        }
        Ok(lines)
    }

    /// What is left of a dead one, its last unfinished line included.
    pub fn rest(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        // A child of a child may hold the other end and write on.
        for _ in 0..FLOOD / AT_ONCE {
            if self.read(&mut lines) == 0 {
                break;
            }
        }
        self.pipe = None;
        self.end_line(&mut lines);
        lines
    }

    /// Reads once, adding each line that ends. How many bytes came.
    fn read(&mut self, lines: &mut Vec<String>) -> usize {
        let Some(pipe) = &mut self.pipe else { return 0 };
        let mut buffer = [0; AT_ONCE];
        let n = match pipe.read(&mut buffer) {
            Ok(0) => {
                self.pipe = None;
                self.end_line(lines);
                return 0;
            }
            Ok(n) => n,
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                return 0;
            }
            Err(_) => {
                self.pipe = None;
                return 0;
            }
        };
        for part in buffer.get(..n).unwrap_or_default().split_inclusive(|b| *b == b'\n') {
            let text = part.strip_suffix(b"\n").unwrap_or(part);
            let room = LONGEST.saturating_sub(self.line.len()).min(text.len());
            self.line.extend(text.get(..room).unwrap_or_default());
            self.cut = self.cut.saturating_add(text.len() - room);
            if text.len() < part.len() {
                self.end_line(lines);
            }
        }
        n
    }

    fn end_line(&mut self, lines: &mut Vec<String>) {
        if !self.line.is_empty() {
            let mut text = plain(&String::from_utf8_lossy(&self.line));
            if self.cut > 0 {
                text.push_str(&format!(" ... ({} bytes more)", self.cut));
            }
            lines.push(text);
        }
        self.line.clear();
        self.cut = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command, Stdio};

    fn sh(script: &str) -> (Child, Overheard) {
        let mut child = Command::new("sh").args(["-c", script]).stderr(Stdio::piped()).spawn().unwrap();
        let heard = Overheard::new(child.stderr.take()).unwrap();
        (child, heard)
    }

    /// All that is said until it is closed, or until it is too much.
    fn all(heard: &mut Overheard) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        while heard.fd().is_some() {
            lines.extend(heard.hear(Instant::now())?);
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(lines)
    }

    #[test]
    fn lines_are_plain_whole_and_short() {
        let script = "printf 'a\\033[2J\\302\\233b\\377c\\n\\n' >&2; sleep 0.05; printf 'sec' >&2; sleep 0.05; \
                      printf 'ond\\n%0500d\\nend' 7 >&2";
        let (mut child, mut heard) = sh(script);
        let lines = all(&mut heard).unwrap();
        child.wait().unwrap();
        assert_eq!(lines.len(), 4, "{lines:?}");
        assert_eq!(lines[0], "a?[2J?b\u{fffd}c");
        assert_eq!(lines[1], "second");
        assert_eq!(lines[2], format!("{} ... (100 bytes more)", "0".repeat(LONGEST)));
        assert_eq!(lines[3], "end");
        assert!(heard.rest().is_empty());
    }

    #[test]
    fn the_rest_of_a_dead_one_is_heard() {
        let (mut child, mut heard) = sh("printf 'one\\ntwo' >&2");
        child.wait().unwrap();
        assert_eq!(heard.rest(), ["one", "two"]);
        assert!(heard.fd().is_none());
    }

    #[test]
    fn a_flood_of_lines_or_of_one_line_is_noticed() {
        for script in ["exec yes >&2", "exec cat /dev/zero >&2"] {
            let (mut child, mut heard) = sh(script);
            let end = all(&mut heard).map(|lines| lines.len());
            child.kill().unwrap();
            child.wait().unwrap();
            assert_eq!(end.unwrap_err().kind(), io::ErrorKind::InvalidData, "{script}");
            assert!(heard.line.capacity() <= 2 * LONGEST, "memory follows what it writes");
        }
    }
}
