//! Files beneath a directory that was handed over, and files whose names come from strangers.

use std::ffi::CStr;
use std::io::{Error, ErrorKind, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `RESOLVE_NO_XDEV | RESOLVE_NO_MAGICLINKS | RESOLVE_BENEATH` (linux/openat2.h). Links that stay beneath are followed:
/// trees for network boot are full of them.
const RESOLVE: u64 = 0x01 | 0x02 | 0x08;
/// `RESOLVE_NO_MAGICLINKS | RESOLVE_CACHED`: no way through processes' descriptors and roots, and nobody is asked.
const CACHED: u64 = 0x02 | 0x20;

/// Opens a regular or any other file beneath a directory for reading (`openat2(2)`): no way leads out, be it by a
/// link, and no device or pipe is waited for.
///
/// # Errors
/// The kernel's.
pub fn open_beneath(dir: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd> {
    let flags = libc::O_RDONLY | libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY;
    openat2(dir.as_raw_fd(), path, flags, RESOLVE)
}

const HOLD: libc::c_int = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;

/// Holds what lies at a path (`O_PATH`), a last link itself, if the kernel knows it without asking a file system: one that
/// somebody has just made there, mostly. So a server or a daemon behind a mount cannot keep us waiting.
///
/// # Errors
/// The kernel's: `EAGAIN` where somebody would have to be asked; `ENOSYS` before Linux 5.6, `EINVAL` before 5.12.
pub fn hold_known(path: &CStr) -> Result<OwnedFd> {
    openat2(libc::AT_FDCWD, path, HOLD, CACHED)
}

/// The same beneath a directory and on its file system, which is asked.
///
/// # Errors
/// The kernel's: `EXDEV` where the way leads out, or to another file system.
pub fn hold_beneath(dir: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd> {
    openat2(dir.as_raw_fd(), path, HOLD, RESOLVE)
}

fn openat2(dir: libc::c_int, path: &CStr, flags: libc::c_int, resolve: u64) -> Result<OwnedFd> {
    // struct open_how: flags, mode, resolve.
    let how: [u64; 3] = [u64::try_from(flags).unwrap_or(0), 0, resolve];
    // SAFETY: the path ends with a NUL, `how` is an open_how of the size that is said, and both outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_openat2, dir, path.as_ptr(), how.as_ptr(), size_of_val(&how)) };
    let fd = i32::try_from(fd).map_err(|_| Error::from(ErrorKind::Other))?;
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Bytes of a regular file; none: it is something else.
///
/// # Errors
/// The kernel's.
pub fn regular(fd: BorrowedFd<'_>) -> Result<Option<u64>> {
    let mut st = MaybeUninit::<libc::stat>::zeroed();
    // Not libc's fstat, which is a different system call on newer C libraries.
    // SAFETY: `st` is room for the kernel's struct stat, which libc's is on 64-bit Linux.
    if unsafe { libc::syscall(libc::SYS_fstat, fd.as_raw_fd(), st.as_mut_ptr()) } != 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: zeroed is a valid stat, and the kernel filled it.
    let st = unsafe { st.assume_init() };
    let regular = st.st_mode & libc::S_IFMT == libc::S_IFREG;
    Ok(regular.then(|| u64::try_from(st.st_size).unwrap_or(0)))
}

/// `pread(2)` into private memory.
///
/// # Errors
/// The kernel's.
pub fn read_at(fd: BorrowedFd<'_>, to: &mut [u8], at: u64) -> Result<usize> {
    let at = libc::off_t::try_from(at).map_err(|_| ErrorKind::InvalidInput)?;
    // SAFETY: the buffer is ours and as long as is said.
    let n = unsafe { libc::pread(fd.as_raw_fd(), to.as_mut_ptr().cast(), to.len(), at) };
    usize::try_from(n).map_err(|_| Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn nothing_outside_of_a_directory_is_opened() {
        let dir = std::fs::File::open("/proc/self").unwrap();
        let file = open_beneath(dir.as_fd(), c"status").unwrap();
        let mut got = [0; 4];
        assert_eq!(read_at(file.as_fd(), &mut got, 1).unwrap(), 4);
        assert_eq!(&got, b"ame:");
        assert_eq!(regular(file.as_fd()).unwrap(), Some(0));
        assert_eq!(regular(open_beneath(dir.as_fd(), c"fd").unwrap().as_fd()).unwrap(), None);
        for path in [c"../version", c"/proc/version", c"exe", c"cwd/x", c"nothing"] {
            assert!(open_beneath(dir.as_fd(), path).is_err(), "{path:?}");
        }
    }
}
