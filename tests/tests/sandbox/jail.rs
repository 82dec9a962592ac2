//! Children that enter the sandbox and try something, and what became of them.

use netreeve_dataplane::handover::Level;
use netreeve_dataplane::sandbox::{Needs, Sockets, Walls, walls};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By this signal.
    Signal(i32),
    /// By exit, with this code: by our convention 0 for success, else an error number.
    Code(i32),
}

pub const KILLED: End = End::Signal(libc::SIGSYS);

/// The child could not be brought to the point where it was to try something.
pub const SETUP: i32 = 250;

/// A running child.
pub struct Child(pub i32);

impl Child {
    pub fn wait(self) -> End {
        let mut st = 0;
        while unsafe { libc::waitpid(self.0, &mut st, 0) } < 0 {}
        if libc::WIFSIGNALED(st) { End::Signal(libc::WTERMSIG(st)) } else { End::Code(libc::WEXITSTATUS(st)) }
    }
}

/// Runs `f` in a forked child, which ends with what it returns.
pub fn fork(f: impl FnOnce() -> i32) -> Child {
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        die_with_parent();
        let code = f();
        unsafe { libc::_exit(code) };
    }
    Child(pid)
}

/// A test that fails leaves nobody behind. To be said again after a change of ids, which clears it.
pub fn die_with_parent() {
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// Runs `f` in a forked child and returns its answer beside its end: at most what a pipe holds at once is wise.
pub fn ask(f: impl FnOnce(&mut dyn Write, RawFd) -> i32) -> (End, String) {
    let (mut from, mut to) = std::io::pipe().unwrap();
    let child = fork(|| {
        let fd = to.as_raw_fd();
        f(&mut to, fd)
    });
    drop(to);
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    (child.wait(), text)
}

/// Enters the walls, or ends the process with the reason on standard error.
pub fn enter(at_least: Level, keep: &[RawFd]) -> Walls {
    match walls(&Needs { at_least, keep, more_fds: 64, sockets: Sockets::None, binds: false, files: None }) {
        Ok(w) => w,
        Err(e) => give_up(&e.to_string()),
    }
}

/// Ends the process with a reason.
pub fn give_up(why: &str) -> ! {
    let why = format!("{why}\n");
    unsafe { libc::write(2, why.as_ptr().cast(), why.len()) };
    unsafe { libc::_exit(SETUP) }
}

/// What a raw system call returned, as an exit code: 0 or the error's number.
pub fn code(rc: libc::c_long) -> i32 {
    if rc >= 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap_or(SETUP) }
}

/// A raw system call. Every argument is widened: what is passed on is a whole register.
#[macro_export]
macro_rules! sys {
    ($nr:expr $(, $arg:expr)*) => {{
        #[allow(unused_unsafe, reason = "used inside and outside of unsafe blocks")]
        let rc = unsafe { libc::syscall($nr as libc::c_long $(, $arg as libc::c_long)*) };
        rc
    }};
}
