//! A switch's directory: the socket `ctl`, where clients ask for ports, and the ports' own data sockets beside it.
//!
//! Clients say where their data socket is, and we connect to it with our rights, not theirs. So a file is taken only if it
//! is a socket that belongs to the client's own user, as the kernel says of the connection; it is looked at and connected
//! to through one descriptor, so that nothing can be put in its place between the two. A name in the abstract namespace
//! belongs to nobody: it is taken from our own user and from root. A name may lead to a file system whose server does not
//! answer: only what the kernel knows already is looked at there.
//!
//! Where a group or everybody may ask, they may also make files in the directory, so nothing depends on a name there that
//! they could have taken before: ports' sockets have names that nobody can guess.
//!
//! Trust: none in clients; the user for the directory. Promise: nobody but the client sends to a port's socket, from its
//! first moment; what is ours in the directory goes with us, and the directory with it if nothing else is in it.
#![forbid(unsafe_code)]

use std::ffi::CString;
use std::fs::{self, DirBuilder, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::socket::{self, SockType, UnixAddr};
use nix::unistd::{Gid, Group, Uid, geteuid};

use crate::fault::{Exit, Fault};
use crate::supervise::datagram::{forget, queues};
use crate::supervise::listen::{self, Own, SocketFile};
use crate::supervise::vde::words::Place;
use crate::sys::beneath;

/// Permission bits of `ctl` unless given.
const MODE: u32 = 0o600;
/// How many names are tried for a port's data socket.
const NAMES: usize = 4;
/// Bytes of its name with the slash before it: `/001-0123456789.fd`.
const NAME: usize = 18;
/// Bytes of a UNIX socket's path, without the one that ends it (unix(7)).
const PATH: usize = 107;

/// The directory. Dropping the last one removes it if it is empty.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// It is not somebody's who had it before.
    ours: bool,
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.ours {
            sweep(&self.path);
            // Somebody else's file in it keeps it there.
            let _kept = fs::remove_dir(&self.path);
        }
    }
}

/// Where a switch lives.
#[derive(Debug)]
pub struct Home {
    ctl: UnixListener,
    // Before the directory, so that it is gone first.
    _file: SocketFile,
    directory: Arc<Directory>,
    mode: u32,
    group: Option<Gid>,
}

/// The group of this name or number.
///
/// # Errors
/// There is none.
pub fn group_id(name: &str) -> io::Result<Gid> {
    match name.parse::<u32>() {
        Ok(n) => Ok(Gid::from_raw(n)),
        Err(_) => {
            let known = Group::from_name(name)?;
            Ok(known.ok_or_else(|| io::Error::other(format!("there is no group '{name}'")))?.gid)
        }
    }
}

impl Home {
    /// Makes the directory, or takes over one that is left or prepared for us, and listens in it.
    ///
    /// # Errors
    /// It is somebody else's, or in use; no such group.
    pub fn open(what: &str, path: &Path, mode: Option<u32>, group: Option<&str>) -> Result<Self, Fault> {
        let what = format!("{what}: a switch at {}", path.display());
        let fault = |e: io::Error| {
            let denied = e.kind() == io::ErrorKind::PermissionDenied;
            let exit = if denied { Exit::Denied } else { Exit::Unavailable };
            Fault::new(exit, what.clone(), e, "give sock= a directory that you may make, or have made")
        };
        let no_group = |e| Fault::new(Exit::Config, what.clone(), e, "name a group of /etc/group");
        let group = group.map(group_id).transpose().map_err(no_group)?;
        let mode = mode.unwrap_or(MODE);
        let path = std::path::absolute(path).map_err(fault)?;
        let too_long =
            |e| Fault::new(Exit::Config, what.clone(), e, "give sock= a directory with a shorter path");
        room(&path).map_err(too_long)?;
        let made = match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => true,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
            Err(e) => return Err(fault(e)),
        };
        let directory = Directory { ours: made, path };
        let ours = made || is_ours(&directory.path).map_err(fault)?;
        let at = directory.path.join("ctl");
        // One that a dead switch has left: the directory is as good as made by us.
        let stale = fs::symlink_metadata(&at).is_ok_and(|about| about.uid() == geteuid().as_raw());
        // Another one, with other things in it, keeps its bits: it may be anything.
        let empty = || fs::read_dir(&directory.path).is_ok_and(|mut all| all.next().is_none());
        let opens = ours && (made || stale || empty());
        // Open to nobody else until it has its group.
        let (ctl, file) = listen::unix(&what, &at, mode & 0o700)?;
        let directory = Arc::new(directory_of(directory, made || (ours && stale)));
        if directory.ours {
            sweep(&directory.path);
        }
        if opens {
            let own = Own::directory(&directory.path);
            own.and_then(|own| open_to(&own, group, of_directory(mode))).map_err(fault)?;
        }
        Own::socket(&at).and_then(|own| open_to(&own, group, mode)).map_err(fault)?;
        Ok(Self { ctl: ctl.into(), _file: file, directory, mode, group })
    }

    /// To be watched for being readable: somebody comes.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ctl.as_fd()
    }

    /// Where clients ask.
    #[must_use]
    pub fn ctl(&self) -> PathBuf {
        self.directory.path.join("ctl")
    }

    /// The directory, for as long as a socket is in it.
    #[must_use]
    pub fn directory(&self) -> Arc<Directory> {
        Arc::clone(&self.directory)
    }

    /// The next client, if there is one.
    ///
    /// # Errors
    /// The kernel's: no descriptors are left.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        match self.ctl.accept() {
            Ok((client, _)) => Ok(Some(client.into())),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The data socket of a port, connected to a client's, which user `uid` asks for.
    ///
    /// # Errors
    /// The client's is not its own or not there; no socket of ours can be made.
    pub fn socket(&self, port: u16, to: &Place, uid: u32) -> io::Result<(OwnedFd, SocketFile)> {
        let held;
        let to = match to {
            Place::Abstract(name) if uid == 0 || uid == geteuid().as_raw() => *name,
            Place::Abstract(_) => {
                return Err(io::Error::other(
                    "an abstract name belongs to nobody: it is taken from our user only",
                ));
            }
            Place::File(path) => {
                held = own_socket(path, uid, &self.directory.path)?;
                UnixAddr::new(&PathBuf::from(format!("/proc/self/fd/{}", held.as_raw_fd())))?
            }
        };
        let (socket, file) = self.bind(port)?;
        socket::connect(socket.as_raw_fd(), &to)?;
        // From here on only the client can send to it (unix(7)); what others of our own user have sent before goes.
        forget(&socket);
        queues(&socket);
        if uid != geteuid().as_raw() {
            let own = Own::socket(file.path())?;
            if own.give(Some(Uid::from_raw(uid)), None).is_err() {
                // Not root: as open as `ctl`, for whoever may ask may answer.
                open_to(&own, self.group, self.mode)?;
            }
        }
        Ok((socket, file))
    }

    /// A data socket for a port. Who may put files into the directory cannot know its name beforehand and take it.
    fn bind(&self, port: u16) -> io::Result<(OwnedFd, SocketFile)> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..NAMES {
            let unknown = RandomState::new().hash_one(port) >> 24;
            let at = self.directory.path.join(format!("{port:03}-{unknown:010x}.fd"));
            match listen::bind("the port's socket", &at, 0o600, SockType::Datagram) {
                Ok(bound) => return Ok(bound),
                Err(fault) => last = io::Error::other(fault.why),
            }
        }
        Err(last)
    }
}

/// The ports' sockets have room beside `ctl`: at the first client it would be too late to say so.
fn room(directory: &Path) -> io::Result<()> {
    let (len, most) = (directory.as_os_str().len(), PATH - NAME);
    if len <= most {
        return Ok(());
    }
    let why =
        format!("its path has {len} bytes, and at most {most} leave room for the sockets of ports in it");
    Err(io::Error::other(why))
}

/// Marks the directory as one that goes with us, or not.
fn directory_of(mut directory: Directory, ours: bool) -> Directory {
    directory.ours = ours;
    directory
}

/// True: it is our user's own. False: root has prepared it.
fn is_ours(path: &Path) -> io::Result<bool> {
    let about = fs::symlink_metadata(path)?;
    if !about.is_dir() {
        return Err(io::Error::other("it is there, and is no directory"));
    }
    let (owner, us) = (about.uid(), geteuid().as_raw());
    if owner != us && owner != 0 {
        let why = format!(
            "the directory belongs to user {owner}, who could put a socket of his own into our place"
        );
        return Err(io::Error::other(why));
    }
    Ok(owner == us)
}

/// Permission bits of the directory for those of `ctl`: who may ask may come in, and put a socket there that nobody else
/// can take away. The sockets have the directory's group.
fn of_directory(mode: u32) -> u32 {
    let class = |bits: u32| if mode & bits == bits { 0o7 } else { 0 };
    let (group, others) = (class(0o020), class(0o002));
    let special = if group | others > 0 { 0o3000 } else { 0 };
    special | 0o700 | group << 3 | others
}

fn open_to(own: &Own, group: Option<Gid>, mode: u32) -> io::Result<()> {
    own.give(None, group)?;
    own.mode(mode)
}

/// Holds a socket's file, which belongs to `uid`. Root may name any.
fn own_socket(path: &Path, uid: u32, ours: &Path) -> io::Result<fs::File> {
    let file = fs::File::from(hold(path, ours)?);
    let about = file.metadata()?;
    if !about.file_type().is_socket() {
        return Err(io::Error::other("its data socket is no socket"));
    }
    if uid != 0 && about.uid() != uid {
        return Err(io::Error::other("its data socket is not its own"));
    }
    Ok(file)
}

/// Holds what lies at a path that a stranger names, without being kept waiting by the file system that it is on: what the
/// kernel has in memory, as what was just made there, or else what is on the file systems of `ours` and the usual
/// directories themselves.
fn hold(path: &Path, ours: &Path) -> io::Result<OwnedFd> {
    let name = |p: &Path| CString::new(p.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput);
    let e = match beneath::hold_known(&name(path)?) {
        Ok(file) => return Ok(file),
        Err(e) => e,
    };
    match e.raw_os_error() {
        Some(libc::EAGAIN) => {}
        // Older kernels, and sandboxes that are: nothing better is known there.
        Some(libc::ENOSYS | libc::EINVAL | libc::EPERM) => {
            let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
            return Ok(OpenOptions::new().read(true).custom_flags(flags).open(path)?.into());
        }
        _ => return Err(e),
    }
    let far = || io::Error::other("its data socket is where looking for it may take long: put it beside ctl");
    for dir in [ours, Path::new("/run"), Path::new("/var/run"), Path::new("/tmp"), Path::new("/var/tmp")] {
        if let Ok(rest) = path.strip_prefix(dir) {
            let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
            let dir = OpenOptions::new().read(true).custom_flags(flags).open(dir)?;
            let held = beneath::hold_beneath(dir.as_fd(), &name(rest)?);
            return held.map_err(|e| if e.raw_os_error() == Some(libc::EXDEV) { far() } else { e });
        }
    }
    Err(far())
}

/// Removes what plugs and a switch before us have left whose ends are gone: sockets with hidden names, and ports' data
/// sockets, that nobody holds.
fn sweep(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.as_encoded_bytes();
        if (name.starts_with(b".") || name.ends_with(b".fd")) && listen::is_dead(&entry.path()) {
            let _gone = fs::remove_file(entry.path());
        }
    }
}
