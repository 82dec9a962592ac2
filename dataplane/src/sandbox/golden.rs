//! What each kind of dataplane may call, written down: a change of the attack surface shows up in review as a change of
//! a file in `golden/` (x86_64's: elsewhere two calls have other names). After a change that is wanted:
//! `UPDATE_GOLDEN=1 cargo test -p netreeve-dataplane golden`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write;
use std::path::Path;

use super::call::{Call, Cond};
use super::seccomp::{LOCKS, Licence, Union};
use crate::{engine, port};

/// Most system calls that a wire's dataplane may make, whatever its two ports.
const MOST: usize = 32;

/// Most of those of a `user` network's, which makes its sockets itself and asks where they would send from.
const MOST_USER: usize = 36;

macro_rules! names {
    ($($name:ident)*) => { &[$((libc::$name, stringify!($name))),*] };
}

const NAMES: &[(i64, &str)] = names! {
    SYS_read SYS_write SYS_readv SYS_writev SYS_recvmsg SYS_sendmsg SYS_recvfrom SYS_sendto SYS_recvmmsg SYS_sendmmsg
    SYS_close SYS_fcntl SYS_fstat SYS_fstatfs SYS_ioctl SYS_accept4 SYS_shutdown SYS_getsockopt SYS_setsockopt
    SYS_getsockname SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_wait SYS_epoll_pwait SYS_ppoll SYS_poll SYS_futex SYS_mmap
    SYS_mprotect SYS_mremap SYS_munmap SYS_brk SYS_madvise SYS_clock_gettime SYS_getrandom SYS_rt_sigreturn
    SYS_rt_sigaction SYS_restart_syscall SYS_sigaltstack SYS_exit SYS_exit_group SYS_rt_sigprocmask SYS_getpid SYS_gettid
    SYS_tgkill SYS_timerfd_create SYS_timerfd_settime SYS_eventfd2 SYS_dup SYS_pread64 SYS_pwrite64
    SYS_io_uring_enter SYS_socket SYS_connect SYS_bind SYS_openat2
};

fn name(nr: i64) -> String {
    let known = NAMES.iter().find(|(n, _)| *n == nr).map(|(_, name)| name.trim_start_matches("SYS_"));
    known.map_or_else(|| format!("call {nr} (name it in golden.rs)"), str::to_owned)
}

fn condition(c: &Cond) -> String {
    match c.mask {
        _ if c.not => format!("a{} != {:#x}", c.arg, c.value),
        u64::MAX | 0xffff_ffff => format!("a{} == {:#x}", c.arg, c.value),
        m => format!("a{} & {m:#x} == {:#x}", c.arg, c.value),
    }
}

/// One line a call and alternative, by name.
fn describe(u: &Union) -> String {
    let mut lines = Vec::new();
    for (nr, alternatives) in u.iter() {
        if alternatives.is_empty() {
            lines.push(name(nr));
        }
        for a in alternatives {
            let conds: Vec<_> = a.iter().map(condition).collect();
            lines.push(format!("{} [{}]", name(nr), conds.join(", ")));
        }
    }
    lines.sort();
    let mut text = format!("{} system calls\n", u.len());
    for line in lines {
        let _ = writeln!(text, "{line}");
    }
    text
}

fn holds(file: &str, ports: &[&[Call]]) -> usize {
    holds_with(file, ports, Licence::default())
}

fn holds_with(file: &str, ports: &[&[Call]], licence: Licence) -> usize {
    let calls: Vec<_> = [engine::CALLS].into_iter().chain(ports.iter().copied()).collect();
    let union = Union::licensed(&calls, licence).unwrap();
    union.compile(1).unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/sandbox/golden").join(file);
    let now = describe(&union);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    assert_eq!(now, std::fs::read_to_string(&path).unwrap_or_default(), "{file}: see golden.rs");
    union.len()
}

#[test]
fn each_pair_of_ports_has_its_calls_on_file() {
    use port::{dgram, hub, stream, tap, vhost_user, xsk};
    let pairs: [(&str, &[&[Call]]); 12] = [
        ("vhost-user+tap.txt", &[vhost_user::CALLS, tap::CALLS]),
        ("vhost-user+af-xdp.txt", &[vhost_user::CALLS, xsk::CALLS]),
        ("vhost-user+stream.txt", &[vhost_user::CALLS, stream::CALLS]),
        ("vhost-user+vhost-user.txt", &[vhost_user::CALLS]),
        ("vhost-user+dgram.txt", &[vhost_user::CALLS, dgram::CALLS]),
        ("dgram+tap.txt", &[dgram::CALLS, tap::CALLS]),
        ("dgram+stream.txt", &[dgram::CALLS, stream::CALLS]),
        ("stream+tap.txt", &[stream::CALLS, tap::CALLS]),
        ("stream+af-xdp.txt", &[stream::CALLS, xsk::CALLS]),
        ("hubport+vhost-user.txt", &[hub::CALLS, vhost_user::CALLS]),
        ("hubport+tap.txt", &[hub::CALLS, tap::CALLS]),
        ("hubport+stream.txt", &[hub::CALLS, stream::CALLS]),
    ];
    for (file, ports) in pairs {
        let calls = holds(file, ports);
        assert!(calls <= MOST, "{file}: {calls}");
    }
    // Several workers wait for each other, and that is all.
    for (_, ports) in pairs {
        let alone: Vec<_> = [engine::CALLS].into_iter().chain(ports.iter().copied()).collect();
        let several: Vec<_> = alone.iter().copied().chain([LOCKS]).collect();
        let (alone, several) = (Union::of(&alone).unwrap(), Union::of(&several).unwrap());
        let more: Vec<i64> =
            several.iter().map(|(nr, _)| nr).filter(|nr| alone.iter().all(|(n, _)| n != *nr)).collect();
        assert_eq!(more, [libc::SYS_futex]);
    }
    let calls = holds("several-workers.txt", &[LOCKS, vhost_user::CALLS, tap::CALLS]);
    assert!(calls <= MOST, "several workers: {calls}");
}

#[test]
fn a_dataplane_that_may_get_any_port_later_has_its_calls_on_file() {
    use crate::engine::kinds::{calls, opens};
    use crate::handover::PortKind;
    let all: Vec<&[Call]> =
        PortKind::ALL.iter().flat_map(|k| [calls(*k), opens(*k)]).chain([LOCKS]).collect();
    let calls = holds("ports-later.txt", &all);
    // Every kind at once, and what opening takes: fstat, eventfd2, timerfd_create.
    assert!(calls <= MOST + 12, "{calls}");
    let known: Vec<_> = [engine::CALLS].into_iter().chain(all).flatten().copied().collect();
    assert!(known.iter().all(|c| !super::seccomp::NEVER.contains(&c.nr)));
}

#[test]
fn a_user_network_makes_internet_sockets_and_nothing_else_that_is_never_allowed() {
    use super::seccomp::NEVER;
    use port::user::{CALLS, FILES, OUTBOUND, RESTRICTED};
    use port::{stream, vhost_user};
    let open = Licence { sockets: true, ..Licence::default() };
    for (file, device) in [("vhost-user+user.txt", vhost_user::CALLS), ("stream+user.txt", stream::CALLS)] {
        let calls = holds_with(file, &[device, CALLS], open);
        assert!(calls <= MOST_USER, "{file}: {calls}");
        assert!(Union::of(&[device, CALLS]).is_err(), "only with a licence");
    }
    let reading = Licence { sockets: true, binds: false, files: true };
    let calls = holds_with("vhost-user+user-tftp.txt", &[vhost_user::CALLS, CALLS, FILES], reading);
    assert!(calls <= MOST_USER + 2, "{calls}");
    assert!(Union::licensed(&[vhost_user::CALLS, FILES], open).is_err(), "only with a licence");
    let bound = Licence { sockets: true, binds: true, files: false };
    let calls = holds_with("vhost-user+user-outbound.txt", &[vhost_user::CALLS, CALLS, OUTBOUND], bound);
    assert!(calls <= MOST_USER + 1, "{calls}");
    assert!(Union::licensed(&[vhost_user::CALLS, CALLS, OUTBOUND], open).is_err(), "only with a licence");
    const ANYWHERE: &[Call] = &[Call::any(libc::SYS_bind)];
    assert!(Union::licensed(&[ANYWHERE], bound).is_err(), "only of an address");
    let calls = holds("vhost-user+user-restrict.txt", &[vhost_user::CALLS, RESTRICTED]);
    assert!(calls <= MOST_USER - 2, "{calls}");
    let declared: Vec<_> = CALLS.iter().filter(|c| NEVER.contains(&c.nr)).map(|c| c.nr).collect();
    assert!(declared.iter().all(|nr| [libc::SYS_socket, libc::SYS_connect].contains(nr)));
    assert!(RESTRICTED.iter().all(|c| !NEVER.contains(&c.nr)));
    // Any domain, type or protocol is too much.
    const ANY: &[Call] = &[Call::only(libc::SYS_socket, &[Cond::is(0, 2), Cond::is(1, 1)])];
    assert!(Union::licensed(&[ANY], open).is_err());
}
