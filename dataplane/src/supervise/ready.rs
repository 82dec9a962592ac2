//! Tells whoever waits that frames can pass: a service manager, a script, a shell. Each only once, all after every
//! socket listens.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, SockaddrStorage, UnixAddr};
use serde_json::json;

use crate::fault::{Exit, Fault};
use crate::handover::Level;
use crate::supervise::slots::Slots;

/// Who is told.
#[derive(Debug, Default)]
pub struct Ready {
    /// `--ready-fd`: gets `ready` and a newline, then is closed.
    pub fd: Option<OwnedFd>,
    /// `--pid`: gets the process id.
    pub pid_file: Option<PathBuf>,
    /// `--json`: one line on standard output.
    pub json: bool,
    /// `NOTIFY_SOCKET`: the service manager (sd_notify(3)).
    pub notify: Option<std::ffi::OsString>,
}

/// A file with our process id, which goes when we go.
#[derive(Debug)]
pub struct PidFile(PathBuf);

impl Drop for PidFile {
    fn drop(&mut self) {
        let ours = std::process::id().to_string();
        if fs::read_to_string(&self.0).is_ok_and(|t| t.trim() == ours) {
            // Nothing is left to do about it if this fails.
            let _gone = fs::remove_file(&self.0);
        }
    }
}

impl Ready {
    /// Tells all of them.
    ///
    /// # Errors
    /// A file or descriptor that cannot be written. A service manager that is gone is not one.
    pub fn tell(&mut self, slots: &Slots, level: Level, dataplane: u32) -> Result<Option<PidFile>, Fault> {
        let file = match self.pid_file.take() {
            None => None,
            Some(path) => Some(write_pid(&path).map_err(|e| {
                let what = format!("writing --pid {}", path.display());
                Fault::new(Exit::Unavailable, what, e, "choose a file that you may write")
            })?),
        };
        if self.json {
            print_line(&report(slots, level, dataplane).to_string())
                .map_err(|e| Fault::new(Exit::General, "writing --json to standard output", e, ""))?;
        }
        if let Some(fd) = self.fd.take() {
            fs::File::from(fd).write_all(b"ready\n").map_err(|e| {
                Fault::new(Exit::Config, "writing to --ready-fd", e, "pass a pipe that somebody reads")
            })?;
        }
        self.notify("READY=1");
        Ok(file)
    }

    /// Tells the service manager something (`READY=1`, `STOPPING=1`); none there: nothing happens.
    pub fn notify(&self, state: &str) {
        let Some(path) = self.notify.as_deref() else { return };
        let send = || -> nix::Result<()> {
            let bytes = std::os::unix::ffi::OsStrExt::as_bytes(path);
            let address = match bytes.split_first() {
                Some((b'@', name)) => UnixAddr::new_abstract(name)?,
                _ => UnixAddr::new(path)?,
            };
            let flags = SockFlag::SOCK_CLOEXEC;
            let fd = socket::socket(AddressFamily::Unix, SockType::Datagram, flags, None)?;
            socket::sendto(fd.as_raw_fd(), state.as_bytes(), &address, MsgFlags::MSG_NOSIGNAL)?;
            Ok(())
        };
        // A manager that cannot be told finds out by its own time limit.
        let _told = send();
    }
}

fn write_pid(path: &Path) -> io::Result<PidFile> {
    let path = std::path::absolute(path)?;
    fs::write(&path, format!("{}\n", std::process::id()))?;
    Ok(PidFile(path))
}

/// Writes one line to standard output, now.
///
/// # Errors
/// The kernel's.
pub fn print_line(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(line.as_bytes())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// The name of a level in options and output.
#[must_use]
pub fn level_name(level: Level) -> &'static str {
    match level {
        Level::Off => "off",
        Level::Seccomp => "seccomp",
        Level::Landlock => "landlock",
        Level::Full => "full",
    }
}

/// Where a TCP socket listens: with port 0 the kernel chose one.
fn address(fd: &OwnedFd) -> Option<String> {
    let address = socket::getsockname::<SockaddrStorage>(fd.as_raw_fd()).ok()?;
    let inet = address.as_sockaddr_in().is_some() || address.as_sockaddr_in6().is_some();
    inet.then(|| address.to_string())
}

fn report(slots: &Slots, level: Level, dataplane: u32) -> serde_json::Value {
    let ports: Vec<serde_json::Value> = slots
        .iter()
        .map(|(_, s)| {
            json!({
                "id": s.id,
                "type": s.kind,
                "ifname": s.link.as_ref().map(|l| l.name.as_str()),
                "path": s.file.as_ref().map(|f| f.path()),
                "address": s.kept.first().and_then(address),
            })
        })
        .collect();
    json!({
        "event": "ready",
        "pid": std::process::id(),
        "dataplane": dataplane,
        "sandbox": level_name(level),
        "ports": ports,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn all_of_them_are_told_once() {
        let dir = std::env::temp_dir().join(format!("netreeve-ready-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let manager = UnixDatagram::bind(dir.join("notify")).unwrap();
        let mut ready = Ready {
            fd: Some(writer.into()),
            pid_file: Some(dir.join("pid")),
            json: false,
            notify: Some(dir.join("notify").into()),
        };
        let file = ready.tell(&Slots::default(), Level::Full, 7).unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "ready\n");
        let mut state = [0; 64];
        let n = manager.recv(&mut state).unwrap();
        assert_eq!(&state[..n], b"READY=1");
        assert_eq!(fs::read_to_string(dir.join("pid")).unwrap(), format!("{}\n", std::process::id()));
        drop(file);
        assert!(!dir.join("pid").exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
