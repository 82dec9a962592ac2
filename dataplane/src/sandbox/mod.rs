//! The sandbox: what the dataplane locks itself into once it holds its descriptors.
//!
//! # Theory of operation
//! The dataplane reads what a guest and a VMM write, so it is taken for lost: whoever breaks it gets this process and
//! nothing else. It needs no name, no path and no privilege, because all that it works on was handed to it as
//! descriptors; so everything else can go, in two steps with the opening of the ports between them.
//!
//! 1. [`walls`], as the first thing in the process: one thread, nothing read from anybody yet.
//!    - Descriptors that were not handed over are closed; 0 and 1 become `/dev/null`; 2 becomes write-only (from
//!      `netreeve` it is a pipe, which it is anyway; the supervisor shows what comes, see `supervise::overheard`).
//!    - Root leaves: a process started as root takes a uid and gid that nobody has, derived from its pid, so that two
//!      dataplanes cannot signal, trace or limit each other even if all the rest failed. Its capabilities live on for
//!      the next step only.
//!    - New user, mount, network, IPC, UTS and cgroup namespaces. The user namespace has **no** id map: inside it,
//!      there is no id that anything could be given to, and none to become.
//!    - The root directory becomes an empty read-only tmpfs; the old tree is detached.
//!    - Every capability set is emptied, the bounding set too; secure bits are locked; no_new_privs; not dumpable; no
//!      memory becomes executable any more (MDWE); limits (see [`limits`]).
//!    - Landlock handles all that it knows and allows nothing; signals and abstract sockets are scoped.
//! 2. Ports open: rings, buffers, threads. Threads inherit all of the above, which the kernel keeps per thread. A thread's
//!    own beginning (its stack guard, `rseq`, its name) is not in the filter: the next step waits until each thread has
//!    said that it runs.
//! 3. [`Walls::seal`], just before the first untrusted byte: the seccomp filter, in every thread at once. It is a list
//!    of what is allowed (see [`seccomp`]), the union of the runtime's needs and of what each port in use declares
//!    beside its code; anything else kills the process, which the supervisor replaces.
//!
//! Each layer is there for the case that another has a hole: opening a file is refused by seccomp, by Landlock, and
//! finds an empty directory.
//!
//! # What a `user` network's dataplane keeps
//! It makes sockets, so it keeps the network namespace that it was started in, its filter has `socket` (internet families,
//! streams, datagrams and echo requests only) and `connect`, and Landlock leaves TCP's `connect` and UDP alone; where the
//! policy lets TCP of the guest's out to a few ports alone, it allows `connect` to those and no others. All else is as
//! above: no netlink, packet or UNIX socket, no `bind`, no file, and no other netdev (hubs aside) in the same process. One whose guest
//! may not go out (`restrict=on`) has none of this: it lives in an empty network namespace like the others. One that reads
//! files by TFTP may open what lies beneath one directory, for reading, by Landlock's leave; without Landlock it does not run.
//!
//! # Why no PID namespace
//! `unshare(CLONE_NEWPID)` moves children only, and forbids threads from then on; a process that shall live in one has
//! to be forked, and the supervisor would hold the pidfd of the wrong process: after a crash it could start the
//! replacement while the old one still writes to the same rings. What a PID namespace would hide is refused without it:
//! signals by seccomp (only `tgkill` to itself with SIGABRT) and by Landlock's scope, tracing and `process_vm_*` by
//! seccomp, by Landlock and by the user namespace. Limits and priorities of the same user's processes (`prlimit`,
//! `sched_*`) are left to seccomp alone, if that user is not root; root's dataplane has a uid of its own.
//!
//! # Levels
//! [`Level::Full`] is all of it. Where the kernel or the service manager refuses user namespaces, the rest makes
//! [`Level::Landlock`], where the kernel has Landlock ABI 6 (6.12), or [`Level::Seccomp`]. `Full` takes Landlock as far
//! as the kernel has it, because empty namespaces leave it only signals to stop. A level below what was asked for is an
//! error that says what to do; the level reached is reported to the user.
//!
//! Trust: the supervisor (the descriptors, the level asked for) and the port modules (their declarations, within the
//! bounds that [`seccomp`] sets). Promise: `walls` and `seal` do all of a level or fail; nothing is undone later.
#![forbid(unsafe_code)]

pub mod call;
#[cfg(all(test, target_arch = "x86_64"))]
mod golden;
mod landlock;
pub mod limits;
pub mod seccomp;
mod walls;

use std::fmt;
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::handover::Level;
use call::Call;
use seccomp::Licence;

/// The sockets that a dataplane makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sockets<'a> {
    /// None.
    None,
    /// Such that go out by UDP, and by TCP to these ports. (Landlock knows ports, not addresses; Linux 6.7.)
    To(&'a [u16]),
    /// Such that go out.
    Any,
}

/// What a dataplane asks of its sandbox.
#[derive(Clone, Copy, Debug)]
pub struct Needs<'a> {
    /// Fail below this level.
    pub at_least: Level,
    /// Descriptors that stay open, beside 2 (standard error).
    pub keep: &'a [RawFd],
    /// How many descriptors may be open beside `keep` and 0 to 2: what the ports make or receive later.
    pub more_fds: u64,
    /// It makes sockets in the network namespace that it was started in.
    pub sockets: Sockets<'a>,
    /// And binds them to addresses, without a port.
    pub binds: bool,
    /// A directory beneath which it may read files.
    pub files: Option<BorrowedFd<'a>>,
}

static SEALED: AtomicBool = AtomicBool::new(false);

/// The process is locked in: what is opened from now on does without what the filter forbids.
#[must_use]
pub fn is_sealed() -> bool {
    SEALED.load(Ordering::Relaxed)
}

/// Proof that the first step is done, and what it reached.
#[derive(Clone, Debug)]
pub struct Walls {
    level: Level,
    lacks: Option<SandboxError>,
    licence: Licence,
}

/// Builds the walls around the calling process, which must have one thread and own no descriptor but `needs.keep`.
/// After an error, the process has lost some of its rights and must exit.
///
/// # Errors
/// The level asked for is out of reach, or a step failed that every level needs.
pub fn walls(needs: &Needs<'_>) -> Result<Walls, SandboxError> {
    let found = walls::build(needs)?;
    if found.level < needs.at_least
        && let Some(lack) = found.lacks
    {
        return Err(lack);
    }
    Ok(found)
}

impl Walls {
    /// The level that [`Walls::seal`] will reach.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level
    }

    /// What kept it from [`Level::Full`], for the log.
    #[must_use]
    pub fn lacks(&self) -> Option<&SandboxError> {
        self.lacks.as_ref()
    }

    /// Locks every thread of the process in: from here on, only the runtime's calls and `calls` are possible, and no
    /// thread can be started. Every thread must have come as far as its own code (a barrier shows it): one that is
    /// still being started would be killed, and the process with it.
    ///
    /// # Errors
    /// The filter cannot be made of `calls`, or the kernel refuses it. The process must exit.
    pub fn seal(self, calls: &[&[Call]]) -> Result<Level, SandboxError> {
        let program = seccomp::Union::licensed(calls, self.licence)?.compile(std::process::id())?;
        limits::no_more()?;
        seccomp::install(&program)?;
        SEALED.store(true, Ordering::Relaxed);
        Ok(self.level)
    }
}

/// A step that failed: what, why and what to do, each a sentence for the user without its full stop.
#[derive(Clone, Debug)]
pub struct SandboxError {
    /// What was tried.
    pub what: &'static str,
    /// The kernel's words, or ours.
    pub why: String,
    /// What the user can do.
    pub fix: String,
}

impl SandboxError {
    fn new(what: &'static str, why: impl fmt::Display, fix: impl Into<String>) -> Self {
        Self { what, why: why.to_string(), fix: fix.into() }
    }
}

impl fmt::Display for SandboxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sandbox: {}: {}; {}", self.what, self.why, self.fix)
    }
}

impl std::error::Error for SandboxError {}
