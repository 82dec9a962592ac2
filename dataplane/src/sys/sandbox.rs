//! System calls of the sandbox that no safe wrapper gives.
//!
//! Trust: called by `sandbox` only, on the process itself, before it has threads. Promise: each function is one step,
//! done whole or reported as the kernel's error.

use std::io;
use std::os::fd::RawFd;

/// Drop root's special treatment, and lock every secure bit (`linux/securebits.h`): NOROOT, NO_SETUID_FIXUP and
/// NO_CAP_AMBIENT_RAISE set, KEEP_CAPS clear, each with its lock.
const SECURE_BITS: libc::c_ulong = 0xef;

fn done(rc: libc::c_int) -> io::Result<()> {
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// One `prctl(2)` whose arguments are numbers.
fn prctl(option: libc::c_int, arg: libc::c_ulong) -> io::Result<()> {
    let zero: libc::c_ulong = 0;
    // SAFETY: the options used in this file take numbers, no pointers.
    done(unsafe { libc::prctl(option, arg, zero, zero, zero) })
}

/// Closes every descriptor that is not in `keep`. Whoever still owns one of the closed ones must never use it again:
/// this is for the very start of a process, when nothing owns any but those that it was handed.
///
/// # Errors
/// `close_range(2)`'s (Linux 5.9).
pub fn close_others(keep: &[RawFd]) -> io::Result<()> {
    let mut kept: Vec<libc::c_uint> = keep.iter().filter_map(|fd| libc::c_uint::try_from(*fd).ok()).collect();
    kept.sort_unstable();
    let mut from: libc::c_uint = 0;
    for fd in kept {
        if fd > from {
            close_range(from, fd.saturating_sub(1))?;
        }
        from = from.max(fd.saturating_add(1));
    }
    close_range(from, libc::c_uint::MAX)
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> io::Result<()> {
    let flags: libc::c_uint = 0;
    // SAFETY: three numbers; `close_others` asks its caller to own nothing in the range.
    let rc = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether `fd` is open.
#[must_use]
pub fn is_open(fd: RawFd) -> bool {
    // SAFETY: F_GETFD takes no argument and changes nothing.
    unsafe { libc::fcntl(fd, libc::F_GETFD) >= 0 }
}

/// Opens `/dev/null` on each of the descriptors 0 to 2 that is closed, and on 0 and 1 in any case.
///
/// # Errors
/// `open(2)`'s and `dup2(2)`'s.
pub fn quiet_standard() -> io::Result<()> {
    // SAFETY: a constant path, ended by a zero.
    let null = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR) };
    if null < 0 {
        return Err(io::Error::last_os_error());
    }
    for fd in 0..3 {
        if fd < 2 || !is_open(fd) {
            // SAFETY: both are numbers; what 0 and 1 were is given up on purpose.
            if unsafe { libc::dup2(null, fd) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    if null > 2 {
        // SAFETY: opened above, used by nobody else.
        unsafe { libc::close(null) };
    }
    Ok(())
}

/// Standard error can be written to and no longer read: a terminal is usually open both ways, and what is typed there
/// is none of the sandbox's business. Does nothing where it cannot be opened again (a socket, or no `/proc`).
pub fn write_only_errors() {
    // SAFETY: F_GETFL takes no argument and changes nothing.
    let flags = unsafe { libc::fcntl(2, libc::F_GETFL) };
    if flags < 0 || flags & libc::O_ACCMODE != libc::O_RDWR {
        return;
    }
    let kind = kind(2);
    if kind != libc::S_IFCHR && kind != libc::S_IFREG {
        return;
    }
    let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: a constant path, ended by a zero.
    let again = unsafe { libc::open(c"/proc/self/fd/2".as_ptr(), flags) };
    if again < 0 {
        return;
    }
    // SAFETY: both are open; the old one is given up on purpose.
    unsafe { libc::dup2(again, 2) };
    // SAFETY: opened above, used by nobody else.
    unsafe { libc::close(again) };
}

/// Whether `fd` is a regular file (what a limit on file sizes bears on).
#[must_use]
pub fn is_regular(fd: RawFd) -> bool {
    kind(fd) == libc::S_IFREG
}

/// The file type bits of what `fd` is; 0 if it is closed.
fn kind(fd: RawFd) -> libc::mode_t {
    let mut st = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: room for one `struct stat`.
    if unsafe { libc::fstat(fd, st.as_mut_ptr()) } != 0 {
        return 0;
    }
    // SAFETY: fstat succeeded, so it filled all of it.
    let st = unsafe { st.assume_init() };
    st.st_mode & libc::S_IFMT
}

/// No memory becomes executable any more (`PR_SET_MDWE`, Linux 6.3).
///
/// # Errors
/// EINVAL on older kernels.
pub fn refuse_exec_gain() -> io::Result<()> {
    prctl(libc::PR_SET_MDWE, libc::c_ulong::from(libc::PR_MDWE_REFUSE_EXEC_GAIN))
}

/// Root is nobody special in this process, for ever.
///
/// # Errors
/// EPERM without CAP_SETPCAP.
pub fn lock_secure_bits() -> io::Result<()> {
    prctl(libc::PR_SET_SECUREBITS, SECURE_BITS)
}

/// Forgets personality bits such as READ_IMPLIES_EXEC, which would make memory executable behind the filter's back.
///
/// # Errors
/// `personality(2)`'s.
pub fn plain_personality() -> io::Result<()> {
    // SAFETY: takes a number; PER_LINUX has no bit set.
    if unsafe { libc::personality(0) } < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Threads share one heap. With one each, glibc asks for the number of processors at a moment of its own choice, which
/// would be a call that is not in the filter; and nothing allocates where two threads could be in each other's way.
pub fn one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: two numbers, set before the process has threads. A refusal leaves all as it was.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// A fault ends the process at once and as what it is. Rust's own handler of SIGSEGV and SIGBUS would first make a
/// system call that is not in the filter, and swallow the signal if somebody sent it. (Ports that map foreign memory put
/// their handler of SIGBUS there later.)
pub fn plain_faults() {
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: the default action is no function of ours, so nothing can be called that should not be.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
}
