//! The command after `--`: started when frames can pass, told of our signals, and its end is ours.
#![forbid(unsafe_code)]

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::fault::{Exit, Fault};
use crate::sys;

/// Names a pipe to the process that `--daemonize` starts; nobody else's business.
pub const DAEMON_VARIABLE: &str = "NETREEVE_DAEMON_FD";

/// Starts it.
///
/// # Errors
/// It cannot be started.
pub fn start(words: &[OsString]) -> Result<Child, Fault> {
    let mut command = prepare(words)?;
    command.spawn().map_err(|e| not_started(words, &e))
}

/// Makes a command of its words.
///
/// # Errors
/// There is none.
pub fn prepare(words: &[OsString]) -> Result<Command, Fault> {
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| Fault::new(Exit::Usage, "the command after --", "it is empty", "give a command"))?;
    let mut command = Command::new(program);
    command.args(arguments).env_remove(DAEMON_VARIABLE);
    sys::process::unblock(&mut command);
    Ok(command)
}

/// The fault for a command that does not start.
#[must_use]
pub fn not_started(words: &[OsString], e: &std::io::Error) -> Fault {
    let name = words.first().map(|w| w.to_string_lossy().into_owned()).unwrap_or_default();
    Fault::new(Exit::Unavailable, format!("starting '{name}'"), e, "give the path of a program after --")
}

/// Passes a signal on.
pub fn signal(child: &Child, signal: Signal) {
    if let Ok(pid) = i32::try_from(child.id()) {
        // Not waited for yet, so the number is still its own; it may be dead already.
        let _sent = kill(Pid::from_raw(pid), signal);
    }
}

/// Our exit code for its end, as shells have it.
#[must_use]
pub fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(1)
}

/// Replaces `{name}` by its value wherever it stands; other braces stay (JSON has many).
#[must_use]
pub fn fill(word: &OsStr, values: &[(String, String)]) -> OsString {
    let mut bytes = word.as_bytes().to_vec();
    for (name, value) in values {
        bytes = replace(&bytes, format!("{{{name}}}").as_bytes(), value.as_bytes());
    }
    OsString::from_vec(bytes)
}

fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        if let Some(after) = rest.strip_prefix(from) {
            out.extend_from_slice(to);
            rest = after;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_and_other_braces_stay() {
        let values = [("n0".to_owned(), "5:6".to_owned()), ("n0.ifname".to_owned(), "nv1".to_owned())];
        let fill = |t: &str| fill(OsStr::new(t), &values).into_string().unwrap();
        assert_eq!(fill("tap,fds={n0},x={n0.ifname}"), "tap,fds=5:6,x=nv1");
        assert_eq!(fill(r#"{"fd":"{n0}{n0}","a":{}}"#), r#"{"fd":"5:65:6","a":{}}"#);
        assert_eq!(fill("{n1}{n0"), "{n1}{n0");
    }

    #[test]
    fn its_end_is_ours() {
        let run = |s: &str| code(Command::new("/bin/sh").args(["-c", s]).status().unwrap());
        assert_eq!((run("exit 7"), run("kill -9 $$"), run("true")), (7, 137, 0));
        assert_eq!(start(&[]).unwrap_err().exit, Exit::Usage);
        assert_eq!(start(&["/nonexistent/x".into()]).unwrap_err().exit, Exit::Unavailable);
    }
}
