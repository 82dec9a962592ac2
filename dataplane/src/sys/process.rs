//! What the supervisor needs around `fork` and for descriptors that it inherits, and how a dataplane ends.
//!
//! Trust: the numbers come from the user's command line. Promise: nothing allocates or locks between fork and exec.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use nix::sys::signal::SigSet;

/// Makes the child of `command` die by SIGKILL with the thread that starts it (`PR_SET_PDEATHSIG`), receive every
/// signal, and lose at its `exec` every descriptor above the standard streams but those made inheritable after this.
///
/// `parent` is this process: a child whose parent died before the child could ask to be told does not start.
pub fn tie(command: &mut Command, parent: u32) {
    let hook = move || {
        // SAFETY: prctl with PR_SET_PDEATHSIG takes no pointer; async-signal-safe.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: getppid takes nothing and cannot fail.
        let now = unsafe { libc::getppid() };
        if u32::try_from(now) != Ok(parent) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        all_signals()?;
        close_at_exec()
    };
    // SAFETY: the hook runs between fork and exec; it makes four async-signal-safe calls and does not allocate.
    unsafe { command.pre_exec(hook) };
}

/// Lets the child of `command` receive every signal again: a program that reads its signals from a descriptor has them
/// blocked, and std lets children inherit that.
pub fn unblock(command: &mut Command) {
    // SAFETY: the hook runs between fork and exec; it makes one async-signal-safe call and does not allocate.
    unsafe { command.pre_exec(all_signals) };
}

fn all_signals() -> io::Result<()> {
    SigSet::empty().thread_set_mask().map_err(io::Error::from)
}

/// Sets close-on-exec on every descriptor from 3 on (`CLOSE_RANGE_CLOEXEC`, Linux 5.11).
fn close_at_exec() -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: close_range takes no pointer; with CLOSE_RANGE_CLOEXEC it closes nothing now.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, flags) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes over a descriptor that this process inherited, and makes it close-on-exec. Call it once for each number, and
/// before anything else is opened: a number that this process itself has opened is not its user's to name.
///
/// # Errors
/// `EBADF` if there is none; `EINVAL` for the standard streams.
pub fn adopt(number: i32) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: F_GETFD takes no pointer; a bad number is EBADF.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // What this process opened itself is close-on-exec; what it inherited cannot be.
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: F_SETFD takes no pointer.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open and was inherited (it was not close-on-exec), so nothing in this process owns it;
    // a second call for the same number is refused by the check above.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Ends the process now (`_exit(2)`): what std does at a process's end, giving back its signal handlers' stack, would be
/// one more system call in the sandbox. Whatever must be dropped or written is the caller's to do before.
pub fn leave(code: u8) -> ! {
    // SAFETY: _exit takes a number and does not return; no destructor or handler runs after it.
    unsafe { libc::_exit(code.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn only_what_was_inherited_is_adopted() {
        assert_eq!(adopt(2).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(adopt(i32::MAX).unwrap_err().raw_os_error(), Some(libc::EBADF));
        let own = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(adopt(own.as_raw_fd()).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}
