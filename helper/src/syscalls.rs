//! The system calls of a helper that is locked in, each with its reason; every other ends the process.
//!
//! Promise: no program is started, no process or thread made, no memory made executable, no other process looked into;
//! sockets only of the families that the work needs; of the descriptor ioctls only a tap's own.
//! Which they are was found by running every request and every refusal under strace; the start-up is over by then.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use netreeve_shared::l2tp::PROTOCOL;
use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op,
    SeccompCondition, SeccompFilter, SeccompRule,
};

/// Numbers by name, several a line.
macro_rules! calls { ($($name:ident)*) => { &[$(libc::$name),*] }; }

/// Old forms that newer architectures do not have, of calls that are among [`CALLS`] as well.
#[cfg(target_arch = "x86_64")]
const OLD_CALLS: &[libc::c_long] = calls!(SYS_poll SYS_alarm);
#[cfg(not(target_arch = "x86_64"))]
const OLD_CALLS: &[libc::c_long] = &[];

/// Calls allowed whatever their arguments.
const CALLS: &[libc::c_long] = calls!(
    // Sessions: wait, let in, receive, answer, hang up.
    SYS_ppoll SYS_accept4 SYS_recvmsg SYS_recvfrom SYS_sendmsg SYS_sendto SYS_close SYS_read SYS_write
    // Who asks, and what a descriptor is.
    SYS_getsockopt SYS_getpeername SYS_getuid
    // Sockets of the work (their families are checked below): options, addresses.
    SYS_setsockopt SYS_bind SYS_getsockname SYS_connect SYS_listen
    // The policy; /dev/net/tun; nothing else, by Landlock.
    SYS_openat SYS_fstat SYS_statx SYS_newfstatat SYS_lseek
    // Sealed memory for a UMEM.
    SYS_memfd_create SYS_ftruncate SYS_fcntl
    // libbpf puts maps at descriptors that it chose, and looks which kernel this is. (bpf itself is checked below.)
    SYS_dup3 SYS_uname SYS_faccessat SYS_faccessat2
    // A capability put in force and out of it again.
    SYS_capget SYS_capset
    // Memory; mmap and mprotect are checked below.
    SYS_brk SYS_munmap SYS_mremap SYS_madvise
    // Time, chance, the deadline.
    SYS_clock_gettime SYS_clock_nanosleep SYS_getrandom SYS_setitimer SYS_restart_syscall
    // The end, an orderly one or abort()'s.
    SYS_sigaltstack SYS_rt_sigprocmask SYS_rt_sigaction SYS_rt_sigreturn SYS_getpid SYS_gettid
    SYS_exit SYS_exit_group
);

/// Families of new sockets whose protocol is 0 (`NETLINK_ROUTE`; the only one that AF_XDP has; TCP and UDP by their
/// kinds), and those of L2TPv3's.
const FAMILIES: &[libc::c_int] = &[libc::AF_NETLINK, libc::AF_XDP, libc::AF_INET, libc::AF_INET6];
const OF_L2TP: &[libc::c_int] = &[libc::AF_INET, libc::AF_INET6];

/// Commands of `bpf` (`enum bpf_cmd`): make, fill and freeze maps, load the program and its types, attach it, ask what
/// something is. Not to pin anything where it would outlive us, nor to open what others have made.
///
/// In this order: `MAP_CREATE`, `MAP_LOOKUP_ELEM`, `MAP_UPDATE_ELEM`, `PROG_LOAD`, `OBJ_GET_INFO_BY_FD`, `BTF_LOAD`,
/// `MAP_FREEZE`, `LINK_CREATE`, `PROG_BIND_MAP`.
const BPF_COMMANDS: &[u64] = &[0, 1, 2, 5, 15, 18, 22, 28, 35];

/// What may be asked of a descriptor: a tap's making and its questions (`linux/if_tun.h`), and std's non-blocking.
const IOCTLS: &[libc::Ioctl] =
    calls!(TUNSETIFF TUNGETIFF TUNSETVNETHDRSZ TUNGETVNETHDRSZ TUNSETOWNER TUNSETPERSIST FIONBIO);

/// Compiles the filter.
///
/// # Errors
/// seccompiler's; the tests compile it, too.
pub(crate) fn filter() -> Result<BpfProgram, Error> {
    let whole = CALLS.iter().chain(OLD_CALLS);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = whole.map(|call| (*call, Vec::new())).collect();
    let socket = |(family, protocol): (&libc::c_int, i32)| {
        let is = |argument, value: i32| condition(argument, Op::Eq, u64::from(value.cast_unsigned()));
        SeccompRule::new(vec![is(0, *family)?, is(2, protocol)?])
    };
    let sockets = FAMILIES.iter().map(|f| (f, 0)).chain(OF_L2TP.iter().map(|f| (f, PROTOCOL)));
    rules.insert(libc::SYS_socket, sockets.map(socket).collect::<Result<_, _>>()?);
    // abort()'s signal, and to nobody else.
    rules.insert(libc::SYS_tgkill, one_of(0, [u64::from(std::process::id())].into_iter())?);
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
    Ok(SeccompRule::new(vec![condition(argument, op, value)?])?)
}

fn condition(argument: u8, op: Op, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, Len::Dword, op, value)
}

/// Every number that the filter lets pass with some arguments; for the tests.
#[cfg(test)]
pub(crate) fn passing() -> Vec<libc::c_long> {
    let checked: &[_] = calls!(SYS_socket SYS_tgkill SYS_ioctl SYS_bpf SYS_mmap SYS_mprotect);
    [CALLS, OLD_CALLS, checked].concat()
}
