//! One line for each decision, for root's eyes: who asked for what, what was said, by which line of the policy.
//!
//! Trust: what is written may come from a caller. Promise: control bytes are escaped, so that nobody writes a second
//! line; never a frame, never a path that a caller chose. The caller itself hears only "denied": with file
//! capabilities or setuid our standard error is the caller's, so the line goes to the system's log then.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use netreeve_shared::grant::Grant;
use netreeve_shared::refusal::Refusal;
use netreeve_shared::request::Request;

use crate::policy::{Caller, Why};

/// Where the system's log listens.
const LOG_SOCKET: &str = "/dev/log";
/// `LOG_AUTHPRIV | LOG_NOTICE` (RFC 5424: facility 10, severity 5).
const PRIORITY: u8 = 10 * 8 + 5;

/// Where the lines go.
#[derive(Debug)]
pub enum Log {
    /// Standard error: the journal of a service, or root's terminal.
    Stderr,
    /// The system's log.
    System(UnixDatagram),
    /// There is no log that the caller does not read.
    None,
}

impl Log {
    /// The log of a process that `uid` started: its standard error only if that is root.
    #[must_use]
    pub fn of_caller(uid: u32) -> Self {
        let connect = || {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            socket.connect(LOG_SOCKET)?;
            io::Result::Ok(socket)
        };
        if uid == 0 { Self::Stderr } else { connect().map_or(Self::None, Self::System) }
    }

    /// Writes one line. A log that takes nothing stops nobody.
    pub fn line(&self, text: &str) {
        let text = escape(text);
        let _lost = match self {
            Self::Stderr => io::stderr().write_all(format!("netreeve-helper: {text}\n").as_bytes()),
            Self::System(socket) => {
                socket.send(format!("<{PRIORITY}>netreeve-helper: {text}").as_bytes()).map(|_| ())
            }
            Self::None => Ok(()),
        };
    }
}

/// Replaces everything that could break a line or a terminal.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control()
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// The line for one decision. Request and grant are shown whole: names are of [`IfName`]'s narrow alphabet, the rest is
/// numbers.
///
/// [`IfName`]: netreeve_shared::ifname::IfName
#[must_use]
pub fn decision(
    caller: &Caller,
    request: &Request,
    rule: &str,
    said: Result<&Grant, Refusal>,
    took: Duration,
) -> String {
    let Caller { uid, pid, .. } = caller;
    let us = took.as_micros();
    match said {
        Ok(grant) => {
            format!("grant uid={uid} pid={pid} rule={rule} us={us} asked={request:?} made={grant:?}")
        }
        Err(why) => format!("refuse uid={uid} pid={pid} rule={rule} why=\"{why}\" us={us} asked={request:?}"),
    }
}

/// The rule of a verdict, as `file:line` where there is one.
#[must_use]
pub fn rule(file: &str, why: Why) -> String {
    match why {
        Why::Allowed(line) | Why::Denied(line) => format!("{file}:{line}"),
        Why::Exceeds(line, term) => format!("{file}:{line}({term})"),
        Why::Continues => "ticket".to_owned(),
        Why::NoRule => "none".to_owned(),
        Why::Bad(_) => "range".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_writes_a_second_line() {
        let hostile = "a\nnetreeve-helper: grant uid=0\r\u{1b}[2J\u{7f}\u{85}\u{2028}\u{202e}b";
        let safe = escape(hostile);
        assert!(safe.starts_with("a\\u{a}netreeve") && safe.ends_with('b'), "{safe}");
        assert!(safe.chars().all(|c| (' '..='~').contains(&c)), "{safe}");
        assert_eq!(escape("br0 é:12"), "br0 é:12");
    }

    #[test]
    fn a_line_names_caller_request_rule_and_outcome() {
        let caller = Caller { uid: 1000, gids: vec![], pid: 7 };
        let request = Request::Activate(3);
        let text = decision(&caller, &request, "p:4", Err(Refusal::Denied), Duration::from_micros(12));
        assert_eq!(text, "refuse uid=1000 pid=7 rule=p:4 why=\"denied\" us=12 asked=Activate(3)");
    }
}
