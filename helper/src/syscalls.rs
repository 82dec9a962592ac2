//! The system calls of a helper that is locked in, each with its reason; every other ends the process.
//!
//! Promise: no program is started, no process or thread made, no memory made executable, no other process looked into;
//! sockets only of the families that the work needs; of the descriptor ioctls only a tap's own.
//! Which they are was found by running every request and every refusal under strace; the start-up is over by then.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule,
};

/// Old forms that newer architectures do not have, of calls that are among [`CALLS`] as well.
#[cfg(target_arch = "x86_64")]
const OLD_CALLS: &[libc::c_long] = &[libc::SYS_poll, libc::SYS_alarm, libc::SYS_unlink];
#[cfg(not(target_arch = "x86_64"))]
const OLD_CALLS: &[libc::c_long] = &[];

/// Calls allowed whatever their arguments.
const CALLS: &[libc::c_long] = &[
    // Sessions: wait, let in, receive, answer, hang up.
    libc::SYS_ppoll,
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_write,
    // Who asks, and what a descriptor is.
    libc::SYS_getsockopt,
    libc::SYS_getpeername,
    libc::SYS_getuid,
    // Sockets of the work (their families are checked below): options, addresses.
    libc::SYS_setsockopt,
    libc::SYS_bind,
    libc::SYS_getsockname,
    // The policy; /dev/net/tun; nothing else, by Landlock.
    libc::SYS_openat,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_newfstatat,
    libc::SYS_lseek,
    // The socket that --listen made.
    libc::SYS_unlinkat,
    // Sealed memory for a UMEM.
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    libc::SYS_fcntl,
    // libbpf puts maps at descriptors that it chose, and looks which kernel this is. (bpf itself is checked below.)
    libc::SYS_dup3,
    libc::SYS_uname,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    // A capability put in force and out of it again.
    libc::SYS_capget,
    libc::SYS_capset,
    // Memory; mmap and mprotect are checked below.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Time, chance, the deadline.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_setitimer,
    libc::SYS_restart_syscall,
    // The end, an orderly one or abort()'s.
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigreturn,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Families of new sockets: interfaces by rtnetlink, AF_XDP.
const FAMILIES: &[libc::c_int] = &[libc::AF_NETLINK, libc::AF_XDP];

/// Commands of `bpf` (`enum bpf_cmd`): make, fill and freeze maps, load the program and its types, attach it, ask what
/// something is. Not to pin anything where it would outlive us, nor to open what others have made.
const BPF_COMMANDS: &[u64] = &[
    0,  // BPF_MAP_CREATE
    1,  // BPF_MAP_LOOKUP_ELEM
    2,  // BPF_MAP_UPDATE_ELEM
    5,  // BPF_PROG_LOAD
    15, // BPF_OBJ_GET_INFO_BY_FD
    18, // BPF_BTF_LOAD
    22, // BPF_MAP_FREEZE
    28, // BPF_LINK_CREATE
    35, // BPF_PROG_BIND_MAP
];

/// What may be asked of a descriptor: a tap's making and its questions (`linux/if_tun.h`), and std's non-blocking.
const IOCTLS: &[libc::Ioctl] = &[
    libc::TUNSETIFF,
    libc::TUNGETIFF,
    libc::TUNSETVNETHDRSZ,
    libc::TUNGETVNETHDRSZ,
    libc::TUNSETOWNER,
    libc::TUNSETPERSIST,
    libc::FIONBIO,
];

/// Compiles the filter.
///
/// # Errors
/// seccompiler's; the tests compile it, too.
pub(crate) fn filter() -> Result<BpfProgram, Error> {
    let whole = CALLS.iter().chain(OLD_CALLS);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = whole.map(|call| (*call, Vec::new())).collect();
    let families = FAMILIES.iter().map(|family| u64::from(family.cast_unsigned()));
    rules.insert(libc::SYS_socket, one_of(0, families)?);
    rules.insert(libc::SYS_ioctl, one_of(1, IOCTLS.iter().copied())?);
    rules.insert(libc::SYS_bpf, one_of(0, BPF_COMMANDS.iter().copied())?);
    // Memory that can be executed is never made.
    let exec = u64::from(libc::PROT_EXEC.cast_unsigned());
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule(2, Op::MaskedEq(exec), 0)?]);
    }
    let arch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, arch)?;
    Ok(filter.try_into()?)
}

fn one_of(argument: u8, values: impl Iterator<Item = u64>) -> Result<Vec<SeccompRule>, Error> {
    values.map(|value| rule(argument, Op::Eq, value)).collect()
}

fn rule(argument: u8, op: Op, value: u64) -> Result<SeccompRule, Error> {
    let condition = SeccompCondition::new(argument, Len::Dword, op, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

/// Every number that the filter lets pass with some arguments; for the tests.
#[cfg(test)]
pub(crate) fn passing() -> Vec<libc::c_long> {
    let checked = [libc::SYS_socket, libc::SYS_ioctl, libc::SYS_bpf, libc::SYS_mmap, libc::SYS_mprotect];
    [CALLS, OLD_CALLS, &checked].concat()
}
