//! One line for each decision, for root's eyes: who asked for what, what was said, by which line of the policy.
//!
//! Trust: what is written may come from a caller. Promise: control bytes are escaped, so that nobody writes a second
//! line; never a frame, never a path that a caller chose. The caller itself hears only "denied": with file
//! capabilities or setuid our standard error is the caller's, so the line goes to the system's log then.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use netreeve_shared::grant::Grant;
use netreeve_shared::refusal::Refusal;
use netreeve_shared::request::{BridgeRequest, Request, Steer, TapRequest, XskRequest};

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
    /// The log for a process whose standard error is the caller's.
    #[must_use]
    pub fn system() -> Self {
        let connect = || {
            let socket = UnixDatagram::unbound()?;
            socket.set_nonblocking(true)?;
            socket.connect(LOG_SOCKET)?;
            io::Result::Ok(socket)
        };
        connect().map_or(Self::None, Self::System)
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

/// The line for one decision.
#[must_use]
pub fn decision(
    caller: &Caller,
    request: &Request,
    rule: &str,
    said: Result<&Grant, Refusal>,
    took: Duration,
) -> String {
    let mut line = String::new();
    let verdict = if said.is_ok() { "grant" } else { "refuse" };
    let (uid, pid) = (caller.uid, caller.pid);
    let _ok = write!(line, "{verdict} uid={uid} pid={pid} {} rule={rule}", describe(request));
    let _ok = match said {
        Ok(Grant::Tap(g)) => write!(line, " made={} ifindex={} mtu={}", g.name, g.ifindex, g.mtu),
        Ok(Grant::Xsk(g)) => {
            write!(line, " ticket={} ifindex={} zero-copy={}", g.ticket, g.ifindex, g.zero_copy)
        }
        Ok(Grant::XskPinned(g)) => write!(line, " ticket={} ifindex={}", g.ticket, g.ifindex),
        Ok(Grant::Active(g)) => write!(line, " mode={:?}", g.mode),
        Err(refusal) => write!(line, " why=\"{refusal}\""),
    };
    let _ok = write!(line, " us={}", took.as_micros());
    line
}

/// The rule of a verdict, as `file:line` where there is one.
#[must_use]
pub fn rule(file: &str, why: Why) -> String {
    match why {
        Why::Allowed(line) | Why::Denied(line) => format!("{file}:{line}"),
        Why::Exceeds(line, term) => format!("{file}:{line}({term:?})"),
        Why::Continues => "ticket".to_owned(),
        Why::NoRule => "none".to_owned(),
        Why::Bad(_) => "range".to_owned(),
    }
}

fn describe(request: &Request) -> String {
    match request {
        Request::Tap(tap) => describe_tap(tap),
        Request::Xsk(x) => format!("{} umem={}", describe_xsk("xsk", x), x.umem_bytes()),
        Request::XskPinned(x) => describe_xsk("xsk-pinned", x),
        Request::Activate(ticket) => format!("what=activate ticket={ticket}"),
    }
}

fn describe_tap(tap: &TapRequest) -> String {
    let mut text = format!("what=tap queues={}", tap.queues);
    if let Some(name) = tap.name {
        let _ok = write!(text, " name={name} persist={}", tap.persist);
    }
    if let Some(mtu) = tap.mtu {
        let _ok = write!(text, " want-mtu={mtu}");
    }
    if let Some(BridgeRequest { name, create, isolated }) = tap.bridge {
        let _ok = write!(text, " bridge={name} create={create} isolated={isolated}");
    }
    text
}

fn describe_xsk(what: &str, xsk: &XskRequest) -> String {
    let steer = match &xsk.steer {
        Steer::All => "any".to_owned(),
        Steer::Macs { macs, .. } => macs.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    };
    let (first, queues) = (xsk.start_queue, xsk.queues);
    format!("what={what} interface={} queue={first}+{queues} steer={steer}", xsk.interface)
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
        assert_eq!(text, "refuse uid=1000 pid=7 what=activate ticket=3 rule=p:4 why=\"denied\" us=12");
    }
}
