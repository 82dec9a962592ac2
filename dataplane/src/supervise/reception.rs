//! A UNIX datagram socket to which a client comes: a VMM that has its own socket and sends to ours (libkrun, vfkit).
//!
//! Whoever sends first is the client: the socket is connected to the sender's address and then handed over. A first
//! datagram of the four bytes `VFKT` is a greeting and no frame. There is one client at a time; four times a second it is
//! looked whether it is still there, and when it is gone, a new socket takes the place of the old one at the same path
//! (the dataplane is told, lets the old one go, and has none until the next client comes). A client that comes in the
//! quarter of a second before that is refused; but if the dataplane has already sent to nobody, the kernel lets him in
//! at the old socket, where he is heard but not answered until that is gone and he comes again.
//!
//! Trust: none in the client, but that it could reach the path. Promise: a client that does not name itself, or is gone
//! before it is answered, changes nothing.
#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::socket::{self, SockType, UnixAddr};

use crate::fault::Fault;
use crate::supervise::datagram::queues;
use crate::supervise::listen::{self, SocketFile};
use crate::sys::fd::unix_sender;

/// How often a client is looked for that is gone.
const LOOK: Duration = Duration::from_millis(250);
/// Datagrams of nobody in particular that are thrown away in one turn.
const NOBODYS: usize = 64;
const GREETING: &[u8] = b"VFKT";

/// The socket, and the client that has it.
#[derive(Debug)]
pub struct Reception {
    what: String,
    path: PathBuf,
    mode: u32,
    socket: Option<OwnedFd>,
    client: Option<UnixAddr>,
    /// One was found gone since that was asked.
    left: bool,
    due: Instant,
}

impl Reception {
    /// Opens at `path`, a file of `mode`.
    ///
    /// # Errors
    /// The path is in use or cannot be made.
    pub fn open(what: &str, path: &Path, mode: u32) -> Result<(Self, SocketFile), Fault> {
        let (socket, file) = listen::bind(what, path, mode, SockType::Datagram)?;
        queues(&socket);
        let (what, path) = (what.to_owned(), path.to_owned());
        Ok((
            Self { what, path, mode, socket: Some(socket), client: None, left: false, due: Instant::now() },
            file,
        ))
    }

    /// To be watched for being readable: nobody has come yet.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().filter(|_| self.client.is_none()).map(AsFd::as_fd)
    }

    /// The socket, connected if there is a client.
    #[must_use]
    pub fn socket(&self) -> Option<&OwnedFd> {
        self.socket.as_ref()
    }

    /// When to call [`Reception::step`] at the latest.
    #[must_use]
    pub fn due(&self) -> Option<Instant> {
        (self.client.is_some() || self.socket.is_none()).then_some(self.due)
    }

    /// A copy of the client's socket, for the next dataplane.
    #[must_use]
    pub fn copy(&self) -> Option<OwnedFd> {
        self.client.and(self.socket.as_ref()).and_then(|s| s.try_clone().ok())
    }

    /// Looks for a client, or whether it is still there. Gives the socket of one that has come.
    pub fn step(&mut self, now: Instant, file: &mut Option<SocketFile>) -> Option<OwnedFd> {
        if self.due().is_some_and(|due| due <= now) {
            self.due = now + LOOK;
            self.look(file);
        }
        if self.client.is_none() && self.welcome() {
            self.due = now + LOOK;
            return self.copy();
        }
        None
    }

    /// A client has gone since this was asked last.
    pub fn has_left(&mut self) -> bool {
        std::mem::take(&mut self.left)
    }

    fn look(&mut self, file: &mut Option<SocketFile>) {
        // One that a dataplane has shut would wake it, and the next one, for ever.
        if let (Some(socket), Some(client)) = (&self.socket, &self.client)
            && !listen::is_shut(socket)
            && socket::connect(socket.as_raw_fd(), client).is_ok()
        {
            return;
        }
        self.left |= self.client.is_some();
        // Its file first, so that the path is free.
        (self.client, self.socket, *file) = (None, None, None);
        // What cannot be had now is tried again.
        if let Ok((socket, new)) = listen::bind(&self.what, &self.path, self.mode, SockType::Datagram) {
            queues(&socket);
            (self.socket, *file) = (Some(socket), Some(new));
        }
    }

    /// Connects to whoever has sent. False: nobody has.
    fn welcome(&mut self) -> bool {
        let Some(socket) = &self.socket else { return false };
        for _ in 0..NOBODYS {
            let Ok((client, greets)) = sender(socket, true) else { return false };
            let here = client.filter(|c| socket::connect(socket.as_raw_fd(), c).is_ok());
            if here.is_none() || greets {
                let _gone = sender(socket, false);
            }
            if here.is_some() {
                self.client = here;
                return true;
            }
        }
        false
    }
}

/// Who sent what stands first, if he has a name, and whether it is a greeting.
fn sender(socket: &OwnedFd, peek: bool) -> io::Result<(Option<UnixAddr>, bool)> {
    let mut bytes = [0; GREETING.len() + 1];
    let (n, name) = unix_sender(socket.as_fd(), &mut bytes, peek)?;
    let named = match name.split_first() {
        None => None,
        Some((0, name)) => UnixAddr::new_abstract(name).ok(),
        Some(_) => UnixAddr::new(Path::new(OsStr::from_bytes(&name))).ok(),
    };
    Ok((named, bytes.get(..n) == Some(GREETING)))
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn client(path: &Path, to: &Path) -> UnixDatagram {
        let _gone = std::fs::remove_file(path);
        let s = UnixDatagram::bind(path).unwrap();
        s.connect(to).unwrap();
        s
    }

    #[test]
    fn clients_come_go_and_are_followed_by_others() {
        let dir = std::env::temp_dir().join(format!("netreeve-reception-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (at, theirs) = (dir.join("ours"), dir.join("theirs"));
        let (mut r, file) = Reception::open("t", &at, 0o600).unwrap();
        let mut file = Some(file);
        let mut now = Instant::now();
        assert!(r.step(now, &mut file).is_none() && r.due().is_none() && r.fd().is_some());

        UnixDatagram::unbound().unwrap().send_to(b"nobody", &at).unwrap();
        assert!(r.step(now, &mut file).is_none(), "who has no name cannot be answered");

        let named =
            UnixDatagram::bind_addr(&std::os::unix::net::SocketAddr::from_abstract_name(b"nt-x").unwrap());
        named.unwrap().send_to(b"VFKT", &at).unwrap();
        assert!(r.step(now, &mut file).is_none(), "who is gone cannot be answered");

        for round in 0..3_u8 {
            let c = client(&theirs, &at);
            if round != 1 {
                c.send(b"VFKT").unwrap();
            }
            c.send(&[round; 60]).unwrap();
            let ours = UnixDatagram::from(r.step(now, &mut file).unwrap());
            let mut raw = [0; 100];
            assert_eq!(ours.recv(&mut raw).unwrap(), 60, "the greeting is no frame");
            assert_eq!(raw[..60], [round; 60]);
            ours.send(b"answer").unwrap();
            assert_eq!(c.recv(&mut raw).unwrap(), 6);
            now += LOOK;
            assert!(r.step(now, &mut file).is_none());
            assert!(r.copy().is_some() && r.fd().is_none(), "it is still there");
            assert!(!r.has_left());
            drop(c);
            now += LOOK;
            assert!(r.step(now, &mut file).is_none());
            assert!(r.has_left() && !r.has_left());
            assert!(r.copy().is_none() && r.fd().is_some(), "it is gone");
            assert!(ours.send(b"x").is_err());
        }
        // One that a dataplane shuts makes way for another, though its client is there.
        let c = client(&theirs, &at);
        c.send(b"x").unwrap();
        let ours = r.step(now, &mut file).unwrap();
        socket::shutdown(ours.as_raw_fd(), socket::Shutdown::Both).unwrap();
        now += LOOK;
        assert!(r.step(now, &mut file).is_none());
        assert!(r.has_left() && r.copy().is_none() && !listen::is_shut(r.socket().unwrap()));
        drop((c, file));
        assert!(!at.exists());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
