//! Descriptors that a stranger sends: received, and asked what they are.

use std::io::{Error, ErrorKind, IoSliceMut, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use netreeve_shared::channel::take_fds;
use netreeve_shared::l2tp::Instruction;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{MsgFlags, recvmsg};

/// Most descriptors that one `sendmsg` can carry (`SCM_MAX_FD`).
const MAX_FDS: usize = 253;
/// `ANON_INODE_FS_MAGIC`: eventfds live there.
const ANON_INODE_MAGIC: i64 = 0x0904_1934;

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An eventfd or another nameless kernel object.
    Anonymous,
    /// A pipe.
    Pipe,
    /// A socket.
    Socket,
    /// A regular file of this many bytes.
    File(u64),
    /// Something else.
    Other,
}

/// Asks the kernel what `fd` is.
///
/// # Errors
/// The kernel's.
pub fn kind(fd: BorrowedFd<'_>) -> Result<Kind> {
    let st = stat(fd)?;
    Ok(match st.st_mode & libc::S_IFMT {
        libc::S_IFIFO => Kind::Pipe,
        libc::S_IFSOCK => Kind::Socket,
        libc::S_IFREG => match file_system(fd)? {
            (ANON_INODE_MAGIC, _) => Kind::Anonymous,
            _ => Kind::File(u64::try_from(st.st_size).unwrap_or(0)),
        },
        // Anonymous inodes have no type (regular since Linux 6.16, see above).
        0 if file_system(fd)?.0 == ANON_INODE_MAGIC => Kind::Anonymous,
        _ => Kind::Other,
    })
}

/// Bytes of a file.
///
/// # Errors
/// The kernel's.
pub fn size(fd: BorrowedFd<'_>) -> Result<u64> {
    Ok(u64::try_from(stat(fd)?.st_size).unwrap_or(0))
}

fn stat(fd: BorrowedFd<'_>) -> Result<libc::stat> {
    let mut st = MaybeUninit::<libc::stat>::zeroed();
    // Not libc's fstat, which is a different system call on newer C libraries.
    // SAFETY: `st` is room for the kernel's struct stat, which libc's is on 64-bit Linux.
    let r = unsafe { libc::syscall(libc::SYS_fstat, fd.as_raw_fd(), st.as_mut_ptr()) };
    if r != 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: zeroed is a valid stat, and the kernel filled it.
    Ok(unsafe { st.assume_init() })
}

/// The magic number of the file system that `fd` lies on, and its block size in bytes.
///
/// # Errors
/// The kernel's.
pub fn file_system(fd: BorrowedFd<'_>) -> Result<(i64, u64)> {
    let mut st = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: `st` is room for one statfs.
    if unsafe { libc::fstatfs(fd.as_raw_fd(), st.as_mut_ptr()) } != 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: zeroed is a valid statfs, and the kernel filled it.
    let st = unsafe { st.assume_init() };
    Ok((st.f_type, u64::try_from(st.f_bsize).unwrap_or(0)))
}

/// Makes a descriptor non-blocking. The flag is shared with whoever else holds the open file.
///
/// # Errors
/// The kernel's.
pub fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    // Without signals, as the sandbox's filter has it.
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?) - OFlag::O_ASYNC;
    if !flags.contains(OFlag::O_NONBLOCK) {
        fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    Ok(())
}

/// `recvmsg(2)`: bytes into `to`, descriptors (close-on-exec) appended to `fds`. The number of bytes; 0 at the end.
///
/// # Errors
/// The kernel's; `InvalidData` if descriptors were lost (a limit of ours). Those that came are in `fds` even then.
pub fn recv(fd: BorrowedFd<'_>, to: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize> {
    recv_in(fd, to, fds, nix::cmsg_space!([RawFd; MAX_FDS]).len())
}

/// With so many bytes of room for what lists descriptors.
fn recv_in(fd: BorrowedFd<'_>, to: &mut [u8], fds: &mut Vec<OwnedFd>, room: usize) -> Result<usize> {
    let mut control = vec![0_u8; room];
    let mut iov = [IoSliceMut::new(to)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let (bytes, flags) = {
        let got = recvmsg::<()>(fd.as_raw_fd(), &mut iov, Some(&mut control), flags)?;
        (got.bytes, got.flags)
    };
    // nix withholds its own list after MSG_CTRUNC, and those that did come would be nobody's.
    // SAFETY: zeros, of which the call above wrote some; it is looked at here only.
    fds.append(&mut unsafe { take_fds(&control) });
    if flags.contains(MsgFlags::MSG_CTRUNC) {
        return Err(ErrorKind::InvalidData.into());
    }
    Ok(bytes)
}

/// Attaches a classic BPF program to a socket, for ever (`SO_ATTACH_FILTER`, `SO_LOCK_FILTER`): whoever has the socket
/// receives what the program lets through, and cannot take it off.
///
/// # Errors
/// The kernel's.
pub fn lock_filter(fd: BorrowedFd<'_>, program: &[Instruction]) -> Result<()> {
    let mut filter: Vec<libc::sock_filter> =
        program.iter().map(|&(code, jt, jf, k)| libc::sock_filter { code, jt, jf, k }).collect();
    let len = u16::try_from(filter.len()).map_err(|_| ErrorKind::InvalidInput)?;
    let program = libc::sock_fprog { len, filter: filter.as_mut_ptr() };
    let lock: libc::c_int = 1;
    let set = |option, at: *const libc::c_void, bytes: usize| -> Result<()> {
        let bytes = libc::socklen_t::try_from(bytes).map_err(|_| ErrorKind::InvalidInput)?;
        // SAFETY: `at` is one of the two values below, of `bytes` bytes; the program's instructions outlive the call.
        match unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, at, bytes) } {
            0 => Ok(()),
            _ => Err(Error::last_os_error()),
        }
    };
    set(libc::SO_ATTACH_FILTER, (&raw const program).cast(), size_of_val(&program))?;
    set(libc::SO_LOCK_FILTER, (&raw const lock).cast(), size_of_val(&lock))
}

/// A socket of Multipath TCP, close-on-exec and non-blocking.
///
/// # Errors
/// The kernel's: it has none.
pub fn mptcp_socket(ipv6: bool) -> Result<OwnedFd> {
    let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(family, kind, libc::IPPROTO_MPTCP) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A raw IP socket of a protocol, close-on-exec and non-blocking. Needs `CAP_NET_RAW`.
///
/// # Errors
/// The kernel's.
pub fn raw_socket(ipv6: bool, protocol: i32) -> Result<OwnedFd> {
    let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(family, kind, protocol) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `recvfrom(2)` of a UNIX datagram, perhaps without taking it (`peek`): bytes into `to`, their number, and the sender's
/// name: a path's bytes, or a zero and an abstract name's; empty if he has none. (nix ends the process for such a one.)
///
/// # Errors
/// The kernel's; `EAGAIN` if there is none.
pub fn unix_sender(fd: BorrowedFd<'_>, to: &mut [u8], peek: bool) -> Result<(usize, Vec<u8>)> {
    let mut name = [0_u8; size_of::<libc::sockaddr_un>()];
    let mut len = libc::socklen_t::try_from(name.len()).map_err(|_| ErrorKind::InvalidInput)?;
    let flags = libc::MSG_DONTWAIT | if peek { libc::MSG_PEEK } else { 0 };
    let (at, room) = (to.as_mut_ptr().cast(), to.len());
    // SAFETY: both buffers are ours and as long as is said; the kernel writes no more, and says how long the name was.
    let n =
        unsafe { libc::recvfrom(fd.as_raw_fd(), at, room, flags, name.as_mut_ptr().cast(), &raw mut len) };
    let n = usize::try_from(n).map_err(|_| Error::last_os_error())?;
    let path = std::mem::offset_of!(libc::sockaddr_un, sun_path);
    let end = usize::try_from(len).unwrap_or(0);
    let name = name.get(path..end).unwrap_or_default();
    // A path ends with a NUL; an abstract name begins with one.
    let name = match name.split_first() {
        Some((0, _)) | None => name,
        Some(_) => name.split(|b| *b == 0).next().unwrap_or_default(),
    };
    Ok((n, name.to_vec()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::IoSlice;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use nix::sys::eventfd::EventFd;
    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;

    #[test]
    fn tells_what_a_descriptor_is() {
        let (r, _w) = std::io::pipe().unwrap();
        assert_eq!(kind(r.as_fd()).unwrap(), Kind::Pipe);
        assert_eq!(kind(EventFd::new().unwrap().as_fd()).unwrap(), Kind::Anonymous);
        assert_eq!(kind(UnixStream::pair().unwrap().0.as_fd()).unwrap(), Kind::Socket);
        assert_eq!(kind(File::open("/dev/null").unwrap().as_fd()).unwrap(), Kind::Other);
        assert!(
            matches!(kind(File::open("/proc/self/exe").unwrap().as_fd()).unwrap(), Kind::File(n) if n > 0)
        );
    }

    #[test]
    fn descriptors_come_with_the_bytes() {
        let (a, b) = UnixStream::pair().unwrap();
        let e = EventFd::new().unwrap();
        let list = [e.as_fd().as_raw_fd(); 33];
        let rights = [ControlMessage::ScmRights(&list)];
        sendmsg::<()>(a.as_raw_fd(), &[IoSlice::new(b"abc")], &rights, MsgFlags::empty(), None).unwrap();
        let (mut to, mut fds) = ([0; 2], Vec::new());
        assert_eq!(recv(b.as_fd(), &mut to, &mut fds).unwrap(), 2);
        assert_eq!((fds.len(), &to), (33, b"ab"));
        assert_eq!(recv(b.as_fd(), &mut to, &mut fds).unwrap(), 1);
        assert_eq!(fds.len(), 33);
        assert_eq!(recv(b.as_fd(), &mut to, &mut fds).unwrap_err().kind(), ErrorKind::WouldBlock);
        drop(a);
        assert_eq!(recv(b.as_fd(), &mut to, &mut fds).unwrap(), 0);
        set_nonblocking(fds[0].as_fd()).unwrap();
        let mut count = [0; 8];
        let e = nix::unistd::read(&fds[0], &mut count).unwrap_err();
        assert_eq!(e, nix::errno::Errno::EAGAIN);
    }

    /// As when a limit is met: the kernel makes some of them, and says that there were more.
    #[test]
    fn descriptors_of_a_list_that_was_cut_are_not_left_behind() {
        let (a, b) = UnixStream::pair().unwrap();
        let (mut end, held) = std::io::pipe().unwrap();
        let list = [held.as_raw_fd(); 3];
        let rights = [ControlMessage::ScmRights(&list)];
        sendmsg::<()>(a.as_raw_fd(), &[IoSlice::new(b"abc")], &rights, MsgFlags::empty(), None).unwrap();
        drop(held);
        let (mut to, mut fds, room) = ([0; 3], Vec::new(), nix::cmsg_space!([RawFd; 2]).len());
        let e = recv_in(b.as_fd(), &mut to, &mut fds, room).unwrap_err();
        assert_eq!((e.kind(), fds.len()), (ErrorKind::InvalidData, 2));
        drop(fds);
        assert_eq!(std::io::Read::read(&mut end, &mut [0; 1]).unwrap(), 0, "nobody has it any more");
    }
}
