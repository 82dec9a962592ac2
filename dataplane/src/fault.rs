//! Errors as the user meets them: what failed, why, what to do; and the exit codes of the program.
//!
//! Promise: every fault fits on three short lines and holds no byte that could drive a terminal.
#![forbid(unsafe_code)]

use std::fmt;

/// Exit codes (`sysexits.h`, and what service managers make of them).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Something else went wrong.
    General,
    /// The command line cannot be understood.
    Usage,
    /// A thing that is needed is not there: interface, helper, peer, device.
    Unavailable,
    /// Busy or out of a quota: the same command may succeed later.
    TryAgain,
    /// Not permitted.
    Denied,
    /// The options or the configuration file cannot stand.
    Config,
}

impl Exit {
    /// The number that the process exits with.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::General => 1,
            Self::Usage => 64,
            Self::Unavailable => 69,
            Self::TryAgain => 75,
            Self::Denied => 77,
            Self::Config => 78,
        }
    }
}

/// One error for the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// With which code the program ends.
    pub exit: Exit,
    /// What failed.
    pub what: String,
    /// Why: the kernel's words, or QEMU's for its own options.
    pub why: String,
    /// What to do about it; empty if there is nothing to say.
    pub fix: String,
}

impl Fault {
    /// A fault in three parts.
    pub fn new(exit: Exit, what: impl Into<String>, why: impl fmt::Display, fix: impl Into<String>) -> Self {
        Self { exit, what: what.into(), why: why.to_string(), fix: fix.into() }
    }
}

/// Replaces control characters, so that a text from elsewhere cannot forge lines or drive a terminal.
#[must_use]
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", plain(&self.what), plain(&self.why))?;
        if self.fix.is_empty() { Ok(()) } else { write!(f, "\n  to do: {}", plain(&self.fix)) }
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_three_things_without_control_bytes() {
        let f = Fault::new(Exit::Denied, "--netdev a\x1b[2J", "no\nreally", "ask");
        assert_eq!(f.to_string(), "--netdev a?[2J: no?really\n  to do: ask");
        assert_eq!(f.exit.code(), 77);
        assert_eq!(Fault::new(Exit::General, "a", "b", "").to_string(), "a: b");
    }
}
