//! A client of a control socket, and how instances are found.
//!
//! Trust: whoever answers is our own user or root (the kernel says who). Promise: an answer takes [`PATIENCE`] at most
//! and has [`LONGEST`] bytes at most.
#![forbid(unsafe_code)]

use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::geteuid;
use serde_json::{Value, json};

use super::get;

use crate::fault::{Exit, Fault};
use crate::supervise::control::client::user;
use crate::supervise::control::place;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest line that is read, in bytes.
const LONGEST: u64 = 8 * 1024 * 1024;

/// Where an instance may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Its control socket.
    pub(super) path: PathBuf,
}

impl Found {
    /// By name, or by path if there is a `/` in it.
    pub(super) fn named(name: &str) -> Result<Self, Fault> {
        if name.contains('/') {
            return Ok(Self { path: name.into() });
        }
        let fault = |why: &str| {
            let fix = "netreeve ls shows those that run; netreeve run --name NAME makes one";
            Fault::new(Exit::Unavailable, format!("instance '{name}'"), why, fix)
        };
        if !place::is_name(name) {
            return Err(fault("that cannot be a name"));
        }
        let mut sockets = place::bases().into_iter().map(|b| b.join(name).join(place::SOCKET));
        // One that we may not look at is reported when it is opened.
        let there = |p: &PathBuf| !matches!(p.try_exists(), Ok(false));
        sockets.find(there).map(|path| Self { path }).ok_or_else(|| fault("there is none of that name"))
    }

    /// The name of its directory, or its path.
    pub(super) fn name(&self) -> String {
        let dir = self.path.parent().filter(|_| self.path.ends_with(place::SOCKET));
        let name = dir.and_then(Path::file_name).and_then(|n| n.to_str()).filter(|n| place::is_name(n));
        name.map_or_else(|| self.path.display().to_string(), str::to_owned)
    }
}

/// Control sockets of named instances, dead ones among them.
pub(super) fn find() -> Vec<Found> {
    let mut all = Vec::new();
    for base in place::bases() {
        let Ok(entries) = base.read_dir() else { continue };
        for entry in entries.flatten() {
            let path = entry.path().join(place::SOCKET);
            let name = entry.file_name();
            if name.to_str().is_some_and(place::is_name) && path.exists() {
                all.push(Found { path });
            }
        }
    }
    all
}

/// A connection.
#[derive(Debug)]
pub(super) struct Talk {
    lines: BufReader<UnixStream>,
    path: PathBuf,
    next: u64,
}

impl Talk {
    /// Connects and negotiates.
    pub(super) fn open(at: &Found) -> Result<Self, Fault> {
        let what = format!("the instance at {}", at.path.display());
        let failed = |e: io::Error| {
            let denied = e.kind() == io::ErrorKind::PermissionDenied;
            let (exit, fix) = if denied {
                (Exit::Denied, "it belongs to another user: ask as that user or as root")
            } else {
                (Exit::Unavailable, "netreeve ls shows those that run")
            };
            Fault::new(exit, what.clone(), e, fix)
        };
        let stream = UnixStream::connect(&at.path).map_err(&failed)?;
        let uid = user(stream.as_fd()).map_err(&failed)?;
        if uid != 0 && uid != geteuid().as_raw() && !geteuid().is_root() {
            return Err(Fault::new(Exit::Denied, what, "another user listens there", "choose another path"));
        }
        stream.set_read_timeout(Some(PATIENCE)).map_err(&failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(&failed)?;
        let mut new = Self { lines: BufReader::new(stream), path: at.path.clone(), next: 0 };
        let greeting = new.line()?;
        if greeting.get("QMP").is_none() {
            let why = match get(get(&greeting, "error"), "desc").as_str() {
                Some(desc) => crate::fault::plain(desc),
                None => "it does not speak QMP".into(),
            };
            return Err(Fault::new(
                Exit::Unavailable,
                what,
                why,
                "name the control socket of a netreeve run",
            ));
        }
        new.ask("qmp_capabilities", json!({}))?;
        Ok(new)
    }

    /// Asks; events that come meanwhile are passed over.
    pub(super) fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, Fault> {
        self.next += 1;
        let id = self.next;
        let request = json!({ "execute": command, "arguments": arguments, "id": id });
        let sent = self.lines.get_mut().write_all(format!("{request}\n").as_bytes());
        sent.map_err(|e| self.failed(&e))?;
        self.answer(id, command)
    }

    fn answer(&mut self, id: u64, command: &str) -> Result<Value, Fault> {
        let until = Instant::now() + PATIENCE;
        loop {
            let mut answer = self.line()?;
            if get(&answer, "id") == id {
                if let Some(desc) = get(get(&answer, "error"), "desc").as_str() {
                    let (why, fix) = parts(desc);
                    return Err(Fault::new(Exit::General, command.to_owned(), why, fix));
                }
                return Ok(answer.get_mut("return").map(Value::take).unwrap_or_default());
            }
            if Instant::now() > until {
                return Err(self.failed(&io::ErrorKind::TimedOut.into()));
            }
        }
    }

    /// Gives the instance a descriptor, to be named in what is asked next.
    pub(super) fn give(&mut self, name: &str, fd: BorrowedFd<'_>) -> Result<(), Fault> {
        self.next += 1;
        let id = self.next;
        let request = json!({ "execute": "getfd", "arguments": { "fdname": name }, "id": id }).to_string();
        let line = format!("{request}\n");
        let fds = [fd.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        let to = self.lines.get_ref().as_raw_fd();
        let sent = sendmsg::<()>(to, &[IoSlice::new(line.as_bytes())], &rights, MsgFlags::MSG_NOSIGNAL, None);
        match sent {
            Ok(n) if n == line.len() => self.answer(id, "getfd").map(|_| ()),
            Ok(_) => Err(self.failed(&io::ErrorKind::WriteZero.into())),
            Err(e) => Err(self.failed(&e.into())),
        }
    }

    /// Another hold on the connection.
    pub(super) fn stream(&self) -> Result<UnixStream, Fault> {
        self.lines.get_ref().try_clone().map_err(|e| self.failed(&e))
    }

    /// The next event, however long it takes; none: the instance has ended.
    pub(super) fn event(&mut self) -> Result<Option<Value>, Fault> {
        self.lines.get_ref().set_read_timeout(None).map_err(|e| self.failed(&e))?;
        loop {
            match self.read()? {
                None => return Ok(None),
                Some(v) if v.get("event").is_some() => return Ok(Some(v)),
                Some(_) => {}
            }
        }
    }

    fn line(&mut self) -> Result<Value, Fault> {
        self.read()?.ok_or_else(|| self.failed(&io::ErrorKind::UnexpectedEof.into()))
    }

    fn read(&mut self) -> Result<Option<Value>, Fault> {
        let mut line = Vec::new();
        let read = self.lines.by_ref().take(LONGEST).read_until(b'\n', &mut line);
        match read {
            Err(e) => Err(self.failed(&e)),
            Ok(0) => Ok(None),
            Ok(_) => serde_json::from_slice(&line).map(Some).map_err(|e| self.failed(&e.into())),
        }
    }

    fn failed(&self, e: &io::Error) -> Fault {
        let why = match e.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no answer in time".to_owned(),
            io::ErrorKind::UnexpectedEof => "it has closed the connection".to_owned(),
            _ => e.to_string(),
        };
        let what = format!("the instance at {}", self.path.display());
        Fault::new(Exit::Unavailable, what, why, "see what it says on its standard error")
    }
}

/// Why, and what to do about it: the parenthesis at the end.
fn parts(desc: &str) -> (&str, &str) {
    let mut depth = 0_u32;
    let Some(body) = desc.strip_suffix(')') else { return (desc, "") };
    for (at, c) in body.char_indices().rev() {
        match (c, depth) {
            (')', _) => depth += 1,
            ('(', 0) => {
                let why = body.get(..at).unwrap_or_default();
                return (why.trim_end(), body.get(at + 1..).unwrap_or_default());
            }
            ('(', _) => depth -= 1,
            _ => {}
        }
    }
    (desc, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_and_paths_are_paths() {
        assert_eq!(Found::named("/run/x/c").unwrap().name(), "/run/x/c");
        assert_eq!(Found::named("./c").unwrap().path, PathBuf::from("./c"));
        assert_eq!(Found { path: "/run/netreeve/vm1/control.sock".into() }.name(), "vm1");
        for bad in ["..", "", "no-such-instance-anywhere"] {
            assert_eq!(Found::named(bad).unwrap_err().exit, Exit::Unavailable, "{bad}");
        }
    }

    #[test]
    fn who_does_not_speak_qmp_is_not_waited_for() {
        let path = std::env::temp_dir().join(format!("netreeve-talk-{}", std::process::id()));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let at = Found { path: path.clone() };
        let say = std::thread::spawn(move || {
            for text in ["hello\n", "{\"a\":1}\n", ""] {
                let mut s = listener.accept().unwrap().0;
                s.write_all(text.as_bytes()).unwrap();
            }
        });
        let why: Vec<String> = (0..3).map(|_| Talk::open(&at).unwrap_err().why).collect();
        say.join().unwrap();
        assert!(why[0].contains("expected value"), "{why:?}");
        assert_eq!(why[1..], ["it does not speak QMP", "it has closed the connection"]);
        assert_eq!(Talk::open(&at).unwrap_err().exit, Exit::Unavailable);
        std::fs::remove_file(path).unwrap();
    }
}
