//! One line for each decision, for root's eyes: who asked for what, what was said, by which line of the policy.
//!
//! Trust: what is written may come from a caller. Promise: control bytes are escaped, so that nobody writes a second
//! line; never a frame, never a path that a caller chose. The caller itself hears only "denied": with file
//! capabilities or setuid our standard error is the caller's, so the line goes to the system's log then.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use netreeve_shared::{grant::Grant, refusal::Refusal, request::Request};

use crate::policy::{Caller, Verdict, Why};

/// Where the system's log listens.
const LOG_SOCKET: &str = "/dev/log";
/// `LOG_AUTHPRIV | LOG_NOTICE` (RFC 5424: facility 10, severity 5).
const PRIORITY: u8 = 10 * 8 + 5;

/// Where the lines go.
#[derive(Debug)]
pub enum Log {
    /// Standard error: the journal of a service, or root's terminal.
    Stderr,
    /// The system's log, if there is one: any other would be the caller's to read.
    System(Option<UnixDatagram>),
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
        if uid == 0 { Self::Stderr } else { Self::System(connect().ok()) }
    }

    /// Writes one line. A log that takes nothing stops nobody.
    pub fn line(&self, text: &str) {
        let text = escape(text);
        let _lost = match self {
            Self::Stderr => io::stderr().write_all(format!("netreeve-helper: {text}\n").as_bytes()),
            Self::System(socket) => socket.as_ref().map_or(Ok(()), |log| {
                log.send(format!("<{PRIORITY}>netreeve-helper: {text}").as_bytes()).map(drop)
            }),
        };
    }
}

/// Replaces everything that could break a line or a terminal, or look like something else: all but printable ASCII.
#[must_use]
pub fn escape(text: &str) -> String {
    let safe =
        |c: char| if (' '..='~').contains(&c) { c.to_string() } else { c.escape_unicode().to_string() };
    text.chars().map(safe).collect()
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
    let (word, outcome) = match said {
        Ok(grant) => ("grant", format!("made={grant:?}")),
        Err(why) => ("refuse", format!("why=\"{why}\"")),
    };
    let us = took.as_micros();
    format!("{word} uid={uid} pid={pid} rule={rule} {outcome} us={us} asked={request:?}")
}

/// The rule of a verdict, as `file:line` where there is one.
#[must_use]
pub fn rule(file: &Path, verdict: Verdict) -> String {
    let file = file.display();
    match verdict {
        Ok((line, _)) | Err(Why::Denied(line)) => format!("{file}:{line}"),
        Err(Why::Exceeds(line, term)) => format!("{file}:{line}({term})"),
        Err(Why::NoRule) => "none".to_owned(),
        Err(Why::Bad(_)) => "range".to_owned(),
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
        assert_eq!(escape("br0 é:12"), "br0 \\u{e9}:12");
    }

    #[test]
    fn a_line_names_caller_request_rule_and_outcome() {
        let caller = Caller { uid: 1000, gids: vec![], pid: 7 };
        let request = Request::Activate(3);
        let text = decision(&caller, &request, "p:4", Err(Refusal::Denied), Duration::from_micros(12));
        assert_eq!(text, "refuse uid=1000 pid=7 rule=p:4 why=\"denied\" us=12 asked=Activate(3)");
    }
}
