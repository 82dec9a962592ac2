//! The filter: which system calls there are inside, and with which arguments.
//!
//! It is the union of [`CORE`] (what the Rust runtime, the allocator and an event loop need), of [`LOCKS`] where there
//! are several, and of what the engine and each port in use declare. A declaration cannot open what the sandbox is there to close: [`NEVER`] is refused in any form,
//! [`CHECKED`] is refused without a condition on its arguments, [`OURS`] in any form but `CORE`'s. So a port's mistake is
//! an error at start, in every test, and not a hole. The one exception is a [`Licence`], which the engine gives to a dataplane
//! with a `user` network before anything is read: some of `NEVER`, as that port declares it.
//!
//! Trust: nothing that passes is trusted: it names descriptors that the process holds, or its own memory. Promise: any
//! other call, of any architecture's numbering (x32 included), kills the whole process before it is done.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::SandboxError;
use super::call::{Call, Cond};

const PROT_EXEC: u64 = 4;
/// `FUTEX_PRIVATE_FLAG | FUTEX_CLOCK_REALTIME` do not count.
const FUTEX_OP: u64 = 0xffff_ffff & !(128 | 256);
/// The supervisor's channel.
pub const CHANNEL: u32 = netreeve_shared::channel::INHERITED.cast_unsigned();
/// Pins the signal of `tgkill`; the process id is added when the filter is compiled.
const SIGABRT: Cond = Cond::is(2, 6);

/// What a process with one thread and an event loop needs, whatever its ports.
pub const CORE: &[Call] = &[
    // The last words of a bug, on standard error. (What is held was handed over or made by a declared call.)
    Call::any(libc::SYS_write),
    // But the supervisor's channel: its number shall name nothing else, for only there `sendmsg` is allowed.
    Call::only(libc::SYS_close, &[Cond::is_not(0, CHANNEL)]),
    // The event loop, made anew when descriptors change. Without a signal mask: it has none to change.
    #[cfg(target_arch = "x86_64")]
    Call::any(libc::SYS_epoll_wait),
    #[cfg(not(target_arch = "x86_64"))]
    Call::only(libc::SYS_epoll_pwait, &[Cond::null(4)]),
    Call::only(libc::SYS_epoll_create1, &[Cond::is(0, 0x8_0000)]),
    Call::any(libc::SYS_epoll_ctl),
    // Memory: the allocator's, and regions that a VMM hands over. Never executable, and what is mapped never moves to
    // an address of somebody's choice (MREMAP_MAYMOVE alone).
    NOT_EXECUTABLE,
    Call::only(libc::SYS_mremap, &[Cond::bits(3, u64::MAX, 1)]),
    Call::any(libc::SYS_munmap),
    Call::any(libc::SYS_brk),
    // musl's allocator keeps parts of its heap unreadable until they are used.
    #[cfg(not(target_env = "gnu"))]
    MPROTECT,
    #[cfg(not(target_env = "gnu"))]
    DONTNEED,
    #[cfg(not(target_env = "gnu"))]
    FREE,
    // Time where the vDSO has none; seeds of hash tables.
    Call::any(libc::SYS_clock_gettime),
    Call::any(libc::SYS_getrandom),
    // Back from a signal's handler, and the end (`sys::process::leave`).
    Call::any(libc::SYS_rt_sigreturn),
    Call::any(libc::SYS_exit_group),
    // abort(3), so that a bug ends as SIGABRT with its message and not as SIGSYS.
    Call::any(libc::SYS_rt_sigprocmask),
    Call::any(libc::SYS_getpid),
    Call::any(libc::SYS_gettid),
    Call::only(libc::SYS_tgkill, &[SIGABRT]),
];

/// What several threads need in addition: to wait for each other and to wake each other, without priorities and
/// requeueing. Declared by whoever starts threads; they never end, so nothing is there for their end.
pub const LOCKS: &[Call] = &[
    Call::only(libc::SYS_futex, &[Cond::bits(1, FUTEX_OP, 0)]),
    Call::only(libc::SYS_futex, &[Cond::bits(1, FUTEX_OP, 1)]),
    Call::only(libc::SYS_futex, &[Cond::bits(1, FUTEX_OP, 9)]),
    Call::only(libc::SYS_futex, &[Cond::bits(1, FUTEX_OP, 10)]),
];

const NOT_EXECUTABLE: Call = Call::only(libc::SYS_mmap, &[Cond::without(2, PROT_EXEC)]);
#[cfg(not(target_env = "gnu"))]
const MPROTECT: Call = Call::only(libc::SYS_mprotect, &[Cond::without(2, PROT_EXEC)]);
#[cfg(not(target_env = "gnu"))]
const DONTNEED: Call = Call::only(libc::SYS_madvise, &[Cond::is(2, 4)]);
#[cfg(not(target_env = "gnu"))]
const FREE: Call = Call::only(libc::SYS_madvise, &[Cond::is(2, 8)]);

/// Ports may not declare these in any form: each makes a name, a process, a privilege or an address reachable, or has
/// operations that a filter cannot see.
pub const NEVER: &[libc::c_long] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_open_by_handle_at,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_prctl,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_register,
    libc::SYS_memfd_create,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_setuid,
    libc::SYS_setresuid,
    libc::SYS_capset,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_seccomp,
    libc::SYS_personality,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
];

/// Ports may declare these only with a condition on the arguments.
pub const CHECKED: &[libc::c_long] = &[
    libc::SYS_ioctl,
    libc::SYS_fcntl,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_epoll_pwait,
    libc::SYS_rt_sigaction,
    libc::SYS_io_uring_enter,
];

/// Ports may repeat these as they are in [`CORE`], and not otherwise.
pub const OURS: &[libc::c_long] =
    &[libc::SYS_close, libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_mremap, libc::SYS_tgkill];

/// What of [`NEVER`] may be declared all the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Licence {
    /// `socket` of a fixed family, type and protocol, and `connect`.
    pub sockets: bool,
    /// `bind` to an address of the length of one.
    pub binds: bool,
    /// `openat2`; what it may open, Landlock says.
    pub files: bool,
}

impl Licence {
    fn holds_for(self, call: &Call) -> bool {
        match call.nr {
            libc::SYS_socket => {
                let fixed = |arg| call.only.iter().any(|c| c.arg == arg && c.mask == 0xffff_ffff);
                self.sockets && (0..3).all(fixed)
            }
            libc::SYS_connect => self.sockets,
            libc::SYS_bind => {
                let fixed = call.only.iter().any(|c| c.arg == 2 && c.mask == 0xffff_ffff);
                self.sockets && self.binds && fixed
            }
            libc::SYS_openat2 => self.files,
            _ => false,
        }
    }
}

/// The calls that one dataplane may make: number to alternatives; no alternative: any arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Union(BTreeMap<i64, Vec<Vec<Cond>>>);

impl Union {
    /// [`CORE`] and the declarations `calls`.
    ///
    /// # Errors
    /// A declaration goes beyond what ports may ask for.
    pub fn of(calls: &[&[Call]]) -> Result<Self, SandboxError> {
        Self::licensed(calls, Licence::default())
    }

    /// The same where some of [`NEVER`] may be declared.
    ///
    /// # Errors
    /// As [`Union::of`].
    pub fn licensed(calls: &[&[Call]], licence: Licence) -> Result<Self, SandboxError> {
        let mut all = Self(BTreeMap::new());
        for call in CORE {
            all.add(call);
        }
        for call in calls.iter().copied().flatten() {
            permitted(call, licence)?;
            all.add(call);
        }
        Ok(all)
    }

    /// One more alternative, unless there is already one without conditions or the same.
    fn add(&mut self, call: &Call) {
        let only = call.only.to_vec();
        match self.0.get_mut(&call.nr) {
            None => {
                self.0.insert(call.nr, if only.is_empty() { vec![] } else { vec![only] });
            }
            Some(known) if known.is_empty() => {}
            Some(known) if only.is_empty() => known.clear(),
            Some(known) if known.contains(&only) => {}
            Some(known) => known.push(only),
        }
    }

    /// The calls in the order of their numbers, with the alternatives of each.
    pub fn iter(&self) -> impl Iterator<Item = (i64, &[Vec<Cond>])> {
        self.0.iter().map(|(nr, alternatives)| (*nr, alternatives.as_slice()))
    }

    /// How many system calls there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never true: [`CORE`] is always in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The filter for the process `pid`, whose `tgkill` reaches only itself.
    ///
    /// # Errors
    /// A condition that the kernel's filters cannot express, or more than they hold.
    pub fn compile(&self, pid: u32) -> Result<BpfProgram, SandboxError> {
        let failed = |e: seccompiler::BackendError| {
            SandboxError::new("making the system call filter", e, "please report it with the ports in use")
        };
        let mut rules = BTreeMap::new();
        for (nr, alternatives) in &self.0 {
            let mut chain = Vec::new();
            for conds in alternatives {
                let mut conds = conds.clone();
                if *nr == libc::SYS_tgkill {
                    conds.push(Cond::is(0, pid));
                }
                let conds = conds.iter().map(condition).collect::<Result<Vec<_>, _>>().map_err(failed)?;
                chain.push(SeccompRule::new(conds).map_err(failed)?);
            }
            rules.insert(*nr, chain);
        }
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(failed)?;
        SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)
            .and_then(BpfProgram::try_from)
            .map_err(failed)
    }
}

/// Whether a port may declare this.
fn permitted(call: &Call, licence: Licence) -> Result<(), SandboxError> {
    let no = |why: &str| {
        let why = format!("system call {} {why}", call.nr);
        Err(SandboxError::new(
            "reading a port's declared system calls",
            why,
            "please report it with the ports in use",
        ))
    };
    if NEVER.contains(&call.nr) && !licence.holds_for(call) {
        return no("is never allowed");
    }
    if OURS.contains(&call.nr) && !CORE.contains(call) {
        return no("is allowed only as the sandbox itself allows it");
    }
    if CHECKED.contains(&call.nr) && call.only.is_empty() {
        return no("is allowed only with conditions on its arguments");
    }
    Ok(())
}

/// 32 bits where the condition looks at no more: the kernel takes descriptors, requests and flags as `int`.
fn condition(c: &Cond) -> Result<SeccompCondition, seccompiler::BackendError> {
    let (len, op) = match c.mask {
        0xffff_ffff if c.not => (SeccompCmpArgLen::Dword, SeccompCmpOp::Ne),
        0xffff_ffff => (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq),
        u64::MAX => (SeccompCmpArgLen::Qword, SeccompCmpOp::Eq),
        m if m <= 0xffff_ffff => (SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(m)),
        m => (SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(m)),
    };
    SeccompCondition::new(c.arg, len, op, c.value)
}

/// Installs `program` in every thread of the process, for ever.
///
/// # Errors
/// The kernel has no seccomp filters, or a thread has one of its own.
pub(super) fn install(program: &BpfProgram) -> Result<(), SandboxError> {
    seccompiler::apply_filter_all_threads(program).map_err(|e| {
        let fix = "run a kernel with CONFIG_SECCOMP_FILTER, outside of a container that refuses seccomp(2)";
        SandboxError::new("installing the system call filter", e, fix)
    })
}

#[cfg(test)]
mod tests;
