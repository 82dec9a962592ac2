//! Listening sockets, and connections to inherited ones.
//!
//! Promise: a unix socket is never, not even for an instant, open to more users than its mode says; a socket file that
//! a dead program left behind is replaced, one that is in use and anything that is no socket is left alone; ours goes
//! away with [`SocketFile`].
#![forbid(unsafe_code)]

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    self, AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, VsockAddr,
    sockopt,
};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, chown, geteuid};

use crate::fault::{Exit, Fault};
use crate::spec::addr::{Inet, TcpOptions};
use crate::sys;

/// Connections that may wait for us.
pub(super) const BACKLOG: i32 = 16;
const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC.union(SockFlag::SOCK_NONBLOCK);

/// The file of a unix socket that we made. Dropping it removes the file, if it is still ours.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    mode: u32,
    device: u64,
    inode: u64,
}

impl SocketFile {
    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The permission bits that it was made with.
    #[must_use]
    pub fn mode(&self) -> u32 {
        self.mode
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|m| m.dev() == self.device && m.ino() == self.inode && m.file_type().is_socket());
        if ours {
            // Nothing is left to do about it if this fails, and the next start replaces a dead socket.
            let _gone = fs::remove_file(&self.path);
        }
    }
}

/// What lies at a path, held by a descriptor: who may put something else there meanwhile has no part in what is done to
/// it.
#[derive(Debug)]
pub(super) struct Own(fs::File);

impl Own {
    fn at(path: &Path) -> io::Result<(Self, fs::Metadata)> {
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        let file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        let about = file.metadata()?;
        Ok((Self(file), about))
    }

    /// A socket.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn socket(path: &Path) -> io::Result<Self> {
        let (own, about) = Self::at(path)?;
        let known = about.file_type().is_socket();
        if known { Ok(own) } else { Err(io::Error::other("somebody has put something else there")) }
    }

    /// A directory of our own user's.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn directory(path: &Path) -> io::Result<Self> {
        let (own, about) = Self::at(path)?;
        let known = about.is_dir() && about.uid() == geteuid().as_raw();
        if known { Ok(own) } else { Err(io::Error::other("somebody has put something else there")) }
    }

    fn place(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    /// Gives it permission bits.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn mode(&self, bits: u32) -> io::Result<()> {
        fs::set_permissions(self.place(), fs::Permissions::from_mode(bits))
    }

    /// Gives it to a user or a group.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn give(&self, user: Option<Uid>, group: Option<Gid>) -> io::Result<()> {
        if user.is_none() && group.is_none() { Ok(()) } else { Ok(chown(&self.place(), user, group)?) }
    }
}

/// A unix stream socket that listens at `path`, a file of `mode` (its permission bits).
///
/// # Errors
/// The path is in use by a living program, is no socket, or cannot be made.
pub fn unix(what: &str, path: &Path, mode: u32) -> Result<(OwnedFd, SocketFile), Fault> {
    let (socket, file) = bind(what, path, mode, SockType::Stream)?;
    listen(&socket).map_err(|e| {
        let what = format!("{what}: listening at {}", path.display());
        Fault::new(Exit::Unavailable, what, e, "choose another path")
    })?;
    Ok((socket, file))
}

/// A unix socket bound to `path`, a file of `mode` (its permission bits).
///
/// # Errors
/// The path is in use by a living program, is no socket, or cannot be made.
pub fn bind(what: &str, path: &Path, mode: u32, kind: SockType) -> Result<(OwnedFd, SocketFile), Fault> {
    let fault = |exit, why: &dyn std::fmt::Display, fix: String| {
        Fault::new(exit, format!("{what}: listening at {}", path.display()), why, fix)
    };
    let failed = |e: io::Error| {
        let exit = if e.kind() == io::ErrorKind::PermissionDenied { Exit::Denied } else { Exit::Unavailable };
        let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        fault(exit, &e, format!("{} must be a directory that you may write to", dir.display()))
    };
    let path = std::path::absolute(path).map_err(&failed)?;
    let address = UnixAddr::new(&path).map_err(|e| failed(e.into()))?;
    let socket = socket::socket(AddressFamily::Unix, kind, FLAGS, None).map_err(|e| failed(e.into()))?;
    // The file gets the socket's own mode, less the umask: set it before, so that it never was wider (unix(7)).
    let bits = Mode::from_bits_truncate(mode);
    fchmod(&socket, bits).map_err(|e| failed(e.into()))?;
    match socket::bind(socket.as_raw_fd(), &address) {
        Err(Errno::EADDRINUSE) => {
            if !is_dead_socket(&path, &address).map_err(&failed)? {
                let fix = format!(
                    "choose another path, or end the program that uses it (fuser {})",
                    path.display()
                );
                return Err(fault(Exit::Unavailable, &"the path is in use, or is no socket", fix));
            }
            fs::remove_file(&path).map_err(&failed)?;
            socket::bind(socket.as_raw_fd(), &address).map_err(|e| failed(e.into()))?;
        }
        other => other.map_err(|e| failed(e.into()))?,
    }
    let about = fs::symlink_metadata(&path).map_err(&failed)?;
    let file = SocketFile { path: path.clone(), mode, device: about.dev(), inode: about.ino() };
    // Only what the umask took away is given back.
    Own::socket(&path).and_then(|own| own.mode(bits.bits())).map_err(&failed)?;
    Ok((socket, file))
}

/// True if there is a socket at the path that nobody holds any more.
pub(super) fn is_dead(path: &Path) -> bool {
    UnixAddr::new(path).is_ok_and(|address| is_dead_socket(path, &address).unwrap_or(false))
}

/// True if the path is a socket at which nobody listens.
fn is_dead_socket(path: &Path, address: &UnixAddr) -> io::Result<bool> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        return Ok(false);
    }
    let probe = socket::socket(AddressFamily::Unix, SockType::Stream, FLAGS, None)?;
    // Connected, or its queue is full, or it is of another type, or not for us: somebody is there.
    Ok(socket::connect(probe.as_raw_fd(), address) == Err(Errno::ECONNREFUSED))
}

/// A unix socket of `kind` that listens in the abstract namespace.
///
/// # Errors
/// The name is in use.
pub fn in_abstract(what: &str, name: &[u8], kind: SockType) -> Result<OwnedFd, Fault> {
    let open = || -> io::Result<OwnedFd> {
        let socket = socket::socket(AddressFamily::Unix, kind, FLAGS, None)?;
        socket::bind(socket.as_raw_fd(), &UnixAddr::new_abstract(name)?)?;
        listen(&socket)?;
        Ok(socket)
    };
    open().map_err(|e| {
        let name = String::from_utf8_lossy(name).into_owned();
        Fault::new(Exit::Unavailable, format!("{what}: listening at @{name}"), e, "choose another name")
    })
}

/// As [`unix`], with messages instead of a stream (`SOCK_SEQPACKET`).
///
/// # Errors
/// As there.
pub fn seqpacket(what: &str, path: &Path, mode: u32) -> Result<(OwnedFd, SocketFile), Fault> {
    let (socket, file) = bind(what, path, mode, SockType::SeqPacket)?;
    listen(&socket).map_err(|e| {
        let what = format!("{what}: listening at {}", path.display());
        Fault::new(Exit::Unavailable, what, e, "choose another path")
    })?;
    Ok((socket, file))
}

/// A socket that listens for virtual machines (vsock(7)).
///
/// # Errors
/// The port is in use, or this kernel has no such sockets.
pub fn vsock(what: &str, cid: u32, port: u32) -> Result<OwnedFd, Fault> {
    let open = || -> io::Result<OwnedFd> {
        let socket = socket::socket(AddressFamily::Vsock, SockType::Stream, FLAGS, None)?;
        socket::bind(socket.as_raw_fd(), &VsockAddr::new(cid, port))?;
        listen(&socket)?;
        Ok(socket)
    };
    open().map_err(|e| {
        let fix = "choose another addr.port; addr.cid=4294967295 is any of this machine's";
        Fault::new(Exit::Unavailable, format!("{what}: listening at vsock:{cid}:{port}"), e, fix)
    })
}

/// A TCP socket that listens at the first address and port that can be had.
///
/// # Errors
/// The last one's error.
pub fn tcp(what: &str, inet: &Inet, addresses: &[SocketAddr]) -> Result<OwnedFd, Fault> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for port in inet.port..=inet.to.unwrap_or(inet.port) {
        for mut address in addresses.iter().copied() {
            address.set_port(port);
            match tcp_at(address, inet.options) {
                Ok(socket) => return Ok(socket),
                Err(e) => last = e,
            }
        }
    }
    let at = format!("{what}: listening at {}:{}", inet.host, inet.port);
    let exit = if last.kind() == io::ErrorKind::PermissionDenied { Exit::Denied } else { Exit::Unavailable };
    Err(Fault::new(exit, at, last, "choose another addr.port, or give addr.to= for a range"))
}

fn tcp_at(address: SocketAddr, options: TcpOptions) -> io::Result<OwnedFd> {
    let socket = tcp_socket(address, options)?;
    socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    if address.is_ipv6() {
        socket::setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    }
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    listen(&socket)?;
    Ok(socket)
}

/// A TCP socket whose connections send at once: a frame waits for no other. (Accepted ones inherit that on Linux.)
pub(crate) fn tcp_socket(address: SocketAddr, options: TcpOptions) -> io::Result<OwnedFd> {
    let family = SockaddrStorage::from(address).family().unwrap_or(AddressFamily::Inet);
    let socket = match options.mptcp {
        true => sys::fd::mptcp_socket(address.is_ipv6())?,
        false => socket::socket(family, SockType::Stream, FLAGS, None)?,
    };
    socket::setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
    socket::setsockopt(&socket, sockopt::KeepAlive, &options.keep_alive)?;
    let said = |n: u32| options.keep_alive && n != 0;
    if said(options.count) {
        socket::setsockopt(&socket, sockopt::TcpKeepCount, &options.count)?;
    }
    if said(options.idle) {
        socket::setsockopt(&socket, sockopt::TcpKeepIdle, &options.idle)?;
    }
    if said(options.interval) {
        socket::setsockopt(&socket, sockopt::TcpKeepInterval, &options.interval)?;
    }
    Ok(socket)
}

/// A listening socket to which nobody can come any more: somebody who holds it has called `shutdown(2)`.
pub(super) fn is_shut(socket: &OwnedFd) -> bool {
    // Of a UNIX socket that is shut for reading alone only this one tells, and only who asks for it.
    let reading = PollFlags::from_bits_retain(libc::POLLRDHUP);
    let mut fds = [PollFd::new(socket.as_fd(), reading)];
    let looked = poll(&mut fds, PollTimeout::ZERO);
    let ends = PollFlags::POLLHUP | reading;
    // None: a flag that nix has no name for, and there is but the one that was asked for.
    looked.is_ok() && fds.iter().any(|p| p.revents().is_none_or(|r| r.intersects(ends)))
}

/// Has connections come to a socket that is bound.
///
/// # Errors
/// The kernel's.
pub(super) fn listen(socket: &impl AsFd) -> io::Result<()> {
    Ok(socket::listen(&socket.as_fd(), Backlog::new(BACKLOG)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    fn dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("netreeve-listen-{}-{name}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn the_file_has_its_mode_and_goes_with_its_owner() {
        let dir = dir("mode");
        let path = dir.join("s");
        let (_socket, file) = unix("t", &path, 0o660).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        UnixStream::connect(&path).unwrap();
        drop(file);
        assert!(!path.exists());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_dead_socket_is_replaced_a_living_one_and_a_file_are_not() {
        let dir = dir("stale");
        let (dead, alive, file) = (dir.join("dead"), dir.join("alive"), dir.join("file"));
        drop(UnixListener::bind(&dead).unwrap());
        let _listener = UnixListener::bind(&alive).unwrap();
        fs::write(&file, "x").unwrap();
        unix("t", &dead, 0o600).unwrap();
        assert_eq!(unix("t", &alive, 0o600).unwrap_err().exit, Exit::Unavailable);
        assert_eq!(unix("t", &file, 0o600).unwrap_err().exit, Exit::Unavailable);
        assert_eq!(fs::read(&file).unwrap(), b"x");
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn rights_are_given_to_what_was_made_and_not_to_what_a_link_leads_to() {
        let dir = dir("own");
        let (secret, link, socket) = (dir.join("secret"), dir.join("link"), dir.join("s"));
        fs::write(&secret, "x").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        for target in [&secret, &dir] {
            std::os::unix::fs::symlink(target, &link).unwrap();
            assert!(Own::socket(&link).is_err() && Own::directory(&link).is_err());
            fs::remove_file(&link).unwrap();
        }
        assert!(Own::socket(&secret).is_err() && Own::directory(&secret).is_err());
        let _listener = UnixListener::bind(&socket).unwrap();
        let own = Own::socket(&socket).unwrap();
        fs::rename(&socket, dir.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink(&secret, &socket).unwrap();
        own.mode(0o666).unwrap();
        own.give(None, Some(nix::unistd::getegid())).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&secret), mode(&dir.join("elsewhere"))), (0o600, 0o666));
        Own::directory(&dir).unwrap().mode(0o700).unwrap();
        assert_eq!(mode(&dir), 0o700);
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_file_that_is_no_longer_ours_stays() {
        let dir = dir("theirs");
        let path = dir.join("s");
        let (_socket, file) = unix("t", &path, 0o600).unwrap();
        fs::remove_file(&path).unwrap();
        let _theirs = UnixListener::bind(&path).unwrap();
        drop(file);
        assert!(path.exists());
        fs::remove_dir_all(dir).unwrap();
    }

    fn inet(port: u16, to: Option<u16>, options: TcpOptions) -> Inet {
        Inet { host: "h".into(), port, to, ipv4: true, ipv6: true, options, found: Vec::new() }
    }

    #[test]
    fn an_accepted_connection_sends_at_once_and_is_as_was_said() {
        let plain = TcpOptions::default();
        let kept = TcpOptions { keep_alive: true, count: 3, idle: 60, interval: 10, mptcp: false };
        // By Multipath TCP to whom does not speak it.
        let many = TcpOptions { mptcp: true, ..plain };
        for (host, options) in [("127.0.0.1", plain), ("::1", kept), ("127.0.0.1", many)] {
            let at = SocketAddr::new(host.parse().unwrap(), 0);
            let listener = tcp("t", &inet(0, None, options), &[at]);
            if options.mptcp && sys::fd::mptcp_socket(false).is_err() {
                listener.unwrap_err();
                continue;
            }
            let listener = std::net::TcpListener::from(listener.unwrap());
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (fd, from) = sys::io::accept_from(listener.as_fd()).unwrap();
            assert_eq!(from, Some(client.local_addr().unwrap()));
            assert!(socket::getsockopt(&fd, sockopt::TcpNoDelay).unwrap());
            assert_eq!(socket::getsockopt(&fd, sockopt::KeepAlive).unwrap(), options.keep_alive);
            if options.keep_alive {
                assert_eq!(socket::getsockopt(&fd, sockopt::TcpKeepCount).unwrap(), 3);
                assert_eq!(socket::getsockopt(&fd, sockopt::TcpKeepIdle).unwrap(), 60);
                assert_eq!(socket::getsockopt(&fd, sockopt::TcpKeepInterval).unwrap(), 10);
            }
        }
    }

    #[test]
    fn a_range_of_ports_is_tried() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let inet = |to| inet(port, to, TcpOptions::default());
        let at = [SocketAddr::from(([127, 0, 0, 1], port))];
        assert!(tcp("t", &inet(None), &at).is_err());
        assert!(tcp("t", &inet(Some(port.saturating_add(20))), &at).is_ok());
    }
}
