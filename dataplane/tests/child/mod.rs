//! What a child says and how it ends, with a deadline for both.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use serde_json::Value;

/// Long enough for anything on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Lines that a child writes, read as they come.
pub(crate) struct Lines(Receiver<String>);

impl Lines {
    pub(crate) fn of(from: impl Read + Send + 'static) -> Self {
        let (tell, lines) = channel();
        // It reads on when nobody listens, so that the child can go on writing.
        thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                let _unheard = tell.send(line);
            }
        });
        Self(lines)
    }

    /// The next line, if it is there within this time.
    pub(crate) fn next(&self, wait: Duration) -> Result<String, RecvTimeoutError> {
        self.0.recv_timeout(wait)
    }

    /// The next event of that name, where each line is one.
    pub(crate) fn event(&self, name: &str) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.next(left).unwrap_or_else(|e| panic!("no '{name}': {e}"));
            let event: Value = serde_json::from_str(&line).unwrap();
            if event["event"] == name {
                return event;
            }
        }
    }
}

/// How a child ended. None: it did not, and was killed.
pub(crate) fn end_of(child: &mut Child) -> Option<ExitStatus> {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(2));
    }
    let _dead = child.kill();
    let _reaped = child.wait();
    None
}

pub(crate) fn wait_for(child: &mut Child) -> ExitStatus {
    end_of(child).unwrap_or_else(|| panic!("it does not end"))
}

/// Dead, whether it was waited for or not.
pub(crate) fn gone(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}
