//! Named escapes, tried as code inside the sandbox of a dataplane that has every port, holding what such a dataplane
//! holds: a tap, an AF_XDP socket, sockets. Each is killed by the filter; and each that has a second column is tried
//! again without the filter, where the walls alone must refuse it.

use crate::jail::{Child, End, KILLED, ask, code, die_with_parent, enter, fork, give_up};
use crate::{every_port, sys};
use libc::{AT_FDCWD, c_int, c_long};
use netreeve_dataplane::handover::Level;
use std::ffi::CStr;
use std::mem::zeroed;
use std::os::fd::RawFd;
use std::ptr::{null, null_mut};

/// What a dataplane holds, and whom it could reach.
pub struct Held {
    tap: RawFd,
    xsk: RawFd,
    udp: RawFd,
    stream: RawFd,
    memory: RawFd,
    outside: RawFd,
    victim: c_int,
    buffer: *mut u8,
}

/// One escape: its name, the attempt, and what the walls alone answer (none: they need not, it leads nowhere by itself
/// or is the filter's to stop).
pub struct Escape {
    pub name: &'static str,
    pub attempt: fn(&Held) -> c_long,
    pub walls: &'static [c_int],
}

macro_rules! escapes {
    ($all:ident: $($name:literal, [$($errno:ident),*], $attempt:expr;)*) => {
        pub const $all: &[Escape] =
            &[$(Escape { name: $name, attempt: $attempt, walls: &[$(libc::$errno),*] }),*];
    };
}

/// `struct sockaddr_in` of a port of the loopback or of a host outside.
fn inet(host: [u8; 4], port: u16) -> libc::sockaddr_in {
    let mut a: libc::sockaddr_in = unsafe { zeroed() };
    a.sin_family = libc::AF_INET as u16;
    a.sin_port = port.to_be();
    a.sin_addr.s_addr = u32::from_ne_bytes(host);
    a
}

fn connect_inet(kind: c_int) -> c_long {
    let to = inet([192, 0, 2, 1], 53);
    let fd = sys!(libc::SYS_socket, libc::AF_INET, kind | libc::SOCK_CLOEXEC, 0);
    sys!(libc::SYS_connect, fd, &raw const to, size_of_val(&to))
}

fn unix(path: &[u8]) -> libc::sockaddr_un {
    let mut a: libc::sockaddr_un = unsafe { zeroed() };
    a.sun_family = libc::AF_UNIX as u16;
    for (into, from) in a.sun_path.iter_mut().zip(path) {
        *into = *from as _;
    }
    a
}

/// An abstract address at which somebody listens who is not in the sandbox.
const ABSTRACT: &[u8] = b"\0nt-sandbox-outside";

fn connect_unix(path: &[u8]) -> c_long {
    let to = unix(path);
    let fd = sys!(libc::SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0);
    sys!(libc::SYS_connect, fd, &raw const to, 2 + path.len())
}

fn open(path: &CStr, flags: c_int) -> c_long {
    sys!(libc::SYS_openat, AT_FDCWD, path.as_ptr(), flags, 0o600)
}

fn vm(nr: c_long, h: &Held) -> c_long {
    let iov = libc::iovec { iov_base: h.buffer.cast(), iov_len: 8 };
    sys!(nr, h.victim, &raw const iov, 1, &raw const iov, 1, 0)
}

fn sendmsg_to(h: &Held) -> libc::mmsghdr {
    let mut m: libc::mmsghdr = unsafe { zeroed() };
    m.msg_hdr.msg_name = h.buffer.cast();
    m.msg_hdr.msg_namelen = 16;
    m
}

fn socket(family: c_int, kind: c_int, protocol: c_int) -> c_long {
    sys!(libc::SYS_socket, family, kind, protocol)
}

/// An ioctl whose argument is an int by pointer, or by value where the kernel takes it so.
fn ioctl(fd: RawFd, request: u64, h: &Held) -> c_long {
    sys!(libc::SYS_ioctl, fd, request, h.buffer)
}

fn mmap(prot: c_int, flags: c_int, fd: RawFd) -> c_long {
    let private = if flags & libc::MAP_SHARED == 0 { libc::MAP_PRIVATE } else { 0 };
    sys!(libc::SYS_mmap, null::<u8>(), 4096, prot, flags | private, fd, 0)
}

fn siginfo(signal: c_int) -> libc::siginfo_t {
    let mut info: libc::siginfo_t = unsafe { zeroed() };
    info.si_signo = signal;
    info.si_code = -1;
    info
}

const RW: c_int = libc::PROT_READ | libc::PROT_WRITE;
const RX: c_int = libc::PROT_READ | libc::PROT_EXEC;
const ANON: c_int = libc::MAP_ANONYMOUS;

escapes! { ESCAPES:
    // Files and names.
    "openat /etc/passwd", [ENOENT, EACCES], |_| open(c"/etc/passwd", libc::O_RDONLY);
    "openat /", [EACCES], |_| open(c"/", libc::O_RDONLY | libc::O_DIRECTORY);
    "openat of the old root", [ENOENT, EACCES], |_| open(c"../../../../etc/passwd", libc::O_RDONLY);
    "openat /proc/self/mem", [ENOENT, EACCES], |_| open(c"/proc/self/mem", libc::O_RDWR);
    "openat /dev/net/tun", [ENOENT, EACCES], |_| open(c"/dev/net/tun", libc::O_RDWR);
    "openat creates a file", [EROFS, EACCES], |_| open(c"/x", libc::O_RDWR | libc::O_CREAT);
    "openat O_TMPFILE", [EROFS, EACCES], |_| open(c"/", libc::O_RDWR | libc::O_TMPFILE);
    "openat2 /proc/self/root", [ENOENT, EACCES], |h| sys!(libc::SYS_openat2, AT_FDCWD, c"/proc/self/root".as_ptr(), h.buffer, 24);
    "openat reopens a descriptor by /proc/self/fd", [ENOENT, EACCES], |_| open(c"/proc/self/fd/2", libc::O_RDWR);
    "name_to_handle_at", [ENOENT, EOPNOTSUPP, EOVERFLOW, EPERM], |h| sys!(libc::SYS_name_to_handle_at, AT_FDCWD, c"/etc".as_ptr(), h.buffer, h.buffer, 0);
    "open_by_handle_at", [EPERM, EBADF], |_| { let handle = [8_u32, 1, 0, 0]; sys!(libc::SYS_open_by_handle_at, AT_FDCWD, handle.as_ptr(), 0) };
    "memfd_create", [], |_| sys!(libc::SYS_memfd_create, c"x".as_ptr(), 0);
    "mkdirat", [EROFS, EACCES], |_| sys!(libc::SYS_mkdirat, AT_FDCWD, c"/x".as_ptr(), 0o700);
    "mknodat of /dev/mem", [EROFS, EACCES, EPERM], |_| sys!(libc::SYS_mknodat, AT_FDCWD, c"/m".as_ptr(), libc::S_IFCHR | 0o600, 0x101);
    "unlinkat", [ENOENT, EROFS, EACCES], |_| sys!(libc::SYS_unlinkat, AT_FDCWD, c"/etc/passwd".as_ptr(), 0);
    "symlinkat", [EROFS, EACCES], |_| sys!(libc::SYS_symlinkat, c"/".as_ptr(), AT_FDCWD, c"/x".as_ptr());
    "renameat2", [ENOENT, EROFS, EACCES], |_| sys!(libc::SYS_renameat2, AT_FDCWD, c"/a".as_ptr(), AT_FDCWD, c"/b".as_ptr(), 0);
    "statx /etc/shadow", [ENOENT], |h| sys!(libc::SYS_statx, AT_FDCWD, c"/etc/shadow".as_ptr(), 0, 0xfff, h.buffer);
    "fchmodat /", [EROFS, EPERM, EACCES], |_| sys!(libc::SYS_fchmodat, AT_FDCWD, c"/".as_ptr(), 0o777);
    "chdir to the old root", [ENOENT], |_| sys!(libc::SYS_chdir, c"../../etc".as_ptr());
    "chroot", [EPERM], |_| sys!(libc::SYS_chroot, c"/".as_ptr());
    "inotify_init1", [], |_| sys!(libc::SYS_inotify_init1, 0);
    "fanotify_init", [EPERM, ENOSYS], |_| sys!(libc::SYS_fanotify_init, 0, 0);
    "quotactl", [EPERM, ENOENT, ENOSYS, ENOTBLK, EINVAL, ENODEV], |h| sys!(libc::SYS_quotactl, 0x0080_0002, c"/dev/sda".as_ptr(), 0, h.buffer);
    "swapon", [EPERM, ENOSYS], |_| sys!(libc::SYS_swapon, c"/x".as_ptr(), 0);
    // Mounts and namespaces.
    "mount tmpfs", [EPERM, EACCES], |_| sys!(libc::SYS_mount, c"none".as_ptr(), c"/".as_ptr(), c"tmpfs".as_ptr(), 0, null::<u8>());
    "mount proc", [EPERM, EACCES], |_| sys!(libc::SYS_mount, c"proc".as_ptr(), c"/".as_ptr(), c"proc".as_ptr(), 0, null::<u8>());
    "remount read-write", [EPERM, EACCES], |_| sys!(libc::SYS_mount, c"none".as_ptr(), c"/".as_ptr(), null::<u8>(), libc::MS_REMOUNT, null::<u8>());
    "umount2 of the root", [EPERM, EINVAL, EACCES], |_| sys!(libc::SYS_umount2, c"/".as_ptr(), libc::MNT_DETACH);
    "pivot_root", [EPERM, EACCES], |_| sys!(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr());
    "fsopen", [EPERM], |_| sys!(libc::SYS_fsopen, c"proc".as_ptr(), 0);
    "open_tree clones a tree", [EPERM], |_| sys!(libc::SYS_open_tree, AT_FDCWD, c"/".as_ptr(), 1);
    "move_mount", [EPERM, EACCES], |_| sys!(libc::SYS_move_mount, AT_FDCWD, c"/".as_ptr(), AT_FDCWD, c"/".as_ptr(), 0);
    "unshare a user namespace", [], |_| sys!(libc::SYS_unshare, libc::CLONE_NEWUSER);
    "unshare a network namespace", [EPERM], |_| sys!(libc::SYS_unshare, libc::CLONE_NEWNET);
    "setns to what a descriptor shows", [EPERM, EINVAL], |h| sys!(libc::SYS_setns, h.stream, 0);
    // Processes.
    "execve", [ENOENT, EACCES], |_| sys!(libc::SYS_execve, c"/bin/sh".as_ptr(), null::<u8>(), null::<u8>());
    "execveat of a descriptor", [EACCES, ENOEXEC], |h| sys!(libc::SYS_execveat, h.memory, c"".as_ptr(), null::<u8>(), null::<u8>(), libc::AT_EMPTY_PATH);
    "clone as fork", [], |_| sys!(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
    "clone as thread", [], |_| sys!(libc::SYS_clone, 0, 0, 0, 0, 0);
    "clone3", [], |h| sys!(libc::SYS_clone3, h.buffer, 1);
    "ptrace of a process outside", [EPERM, ESRCH], |h| sys!(libc::SYS_ptrace, libc::PTRACE_SEIZE, h.victim, 0, 0);
    "ptrace PTRACE_TRACEME", [], |_| sys!(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0);
    "process_vm_readv of a process outside", [EPERM], |h| vm(libc::SYS_process_vm_readv, h);
    "process_vm_writev of a process outside", [EPERM], |h| vm(libc::SYS_process_vm_writev, h);
    "process_madvise", [EBADF, EINVAL, EPERM], |h| sys!(libc::SYS_process_madvise, h.stream, h.buffer, 0, 4, 0);
    "pidfd_open of a process outside", [], |h| sys!(libc::SYS_pidfd_open, h.victim, 0);
    "pidfd_getfd", [EBADF, EPERM], |h| sys!(libc::SYS_pidfd_getfd, h.stream, 0, 0);
    "pidfd_send_signal", [EBADF, EPERM], |h| sys!(libc::SYS_pidfd_send_signal, h.stream, 9, null::<u8>(), 0);
    "kill of a process outside", [EPERM], |h| sys!(libc::SYS_kill, h.victim, 0);
    // Without the filter it reaches others of its own kind, which a sandbox does not have.
    "kill of everybody", [], |_| sys!(libc::SYS_kill, -1, 0);
    "kill of itself", [], |_| sys!(libc::SYS_kill, std::process::id(), libc::SIGTERM);
    "tkill", [EPERM], |h| sys!(libc::SYS_tkill, h.victim, libc::SIGABRT);
    "tgkill of a process outside", [EPERM], |h| sys!(libc::SYS_tgkill, h.victim, h.victim, libc::SIGABRT);
    "tgkill of itself with another signal", [], |_| sys!(libc::SYS_tgkill, std::process::id(), std::process::id(), libc::SIGKILL);
    "rt_sigqueueinfo", [EPERM], |h| { let i = siginfo(9); sys!(libc::SYS_rt_sigqueueinfo, h.victim, 9, &raw const i) };
    "rt_tgsigqueueinfo", [EPERM], |h| { let i = siginfo(9); sys!(libc::SYS_rt_tgsigqueueinfo, h.victim, h.victim, 9, &raw const i) };
    "kcmp", [EPERM, ENOSYS], |h| sys!(libc::SYS_kcmp, h.victim, std::process::id(), 0, 0, 0);
    // The one thing that a user's own processes are open to without the filter, and a PID namespace would hide.
    "prlimit64 of a process outside", [], |h| sys!(libc::SYS_prlimit64, h.victim, libc::RLIMIT_NOFILE, null::<u8>(), h.buffer);
    "prlimit64 raises its own limit", [EPERM], |_| { let most = [1_u64 << 20; 2]; sys!(libc::SYS_prlimit64, 0, libc::RLIMIT_NOFILE, most.as_ptr(), null::<u8>()) };
    "setpriority of a process outside", [EPERM, EACCES], |h| sys!(libc::SYS_setpriority, libc::PRIO_PROCESS, h.victim, -20);
    "sched_setscheduler real-time", [EPERM], |_| { let one = 1_i32; sys!(libc::SYS_sched_setscheduler, 0, libc::SCHED_FIFO, &raw const one) };
    "move_pages of a process outside", [EPERM, ENOSYS, EACCES], |h| sys!(libc::SYS_move_pages, h.victim, 1, h.buffer, null::<u8>(), h.buffer, 0);
    "get_robust_list of a process outside", [EPERM], |h| sys!(libc::SYS_get_robust_list, h.victim, h.buffer, h.buffer);
    "setsid", [], |_| sys!(libc::SYS_setsid);
    // Privileges.
    "setuid 0", [EINVAL, EPERM], |_| sys!(libc::SYS_setuid, 0);
    "setresuid to root", [EINVAL, EPERM], |_| sys!(libc::SYS_setresuid, 0, 0, 0);
    "setgroups", [EPERM], |h| sys!(libc::SYS_setgroups, 1, h.buffer);
    "capset", [EPERM], |_| { let head = [0x2008_0522_u32, 0]; let all = [u32::MAX; 6]; sys!(libc::SYS_capset, head.as_ptr(), all.as_ptr()) };
    "prctl makes it dumpable", [], |_| sys!(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0);
    "prctl clears no_new_privs", [EINVAL], |_| sys!(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0);
    "prctl raises an ambient capability", [EPERM], |_| sys!(libc::SYS_prctl, libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, 12, 0, 0);
    "prctl unlocks secure bits", [EPERM], |_| sys!(libc::SYS_prctl, libc::PR_SET_SECUREBITS, 0, 0, 0, 0);
    "prctl lifts MDWE", [EPERM, EINVAL], |_| sys!(libc::SYS_prctl, libc::PR_SET_MDWE, 0, 0, 0, 0);
    "seccomp installs another filter", [EFAULT], |_| sys!(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, 1);
    "personality READ_IMPLIES_EXEC", [], |_| sys!(libc::SYS_personality, 0x040_0000);
    "add_key", [], |h| sys!(libc::SYS_add_key, c"user".as_ptr(), c"x".as_ptr(), h.buffer, 1, -2);
    "request_key", [ENOKEY, ENOSYS], |_| sys!(libc::SYS_request_key, c"user".as_ptr(), c"nt-none".as_ptr(), null::<u8>(), 0);
    "keyctl joins a session keyring", [], |_| sys!(libc::SYS_keyctl, 1, 0);
    // Addresses.
    "socket AF_INET", [], |_| connect_inet(libc::SOCK_STREAM);
    "connect TCP to the outside", [EACCES, ENETUNREACH], |_| connect_inet(libc::SOCK_STREAM);
    "connect UDP to the outside", [EACCES, ENETUNREACH], |_| connect_inet(libc::SOCK_DGRAM);
    "socket AF_INET raw", [EPERM], |_| socket(libc::AF_INET, libc::SOCK_RAW, 1);
    "socket AF_INET6", [], |_| socket(libc::AF_INET6, libc::SOCK_STREAM, 0);
    "socket AF_PACKET", [EPERM], |_| socket(libc::AF_PACKET, libc::SOCK_RAW, 0x0300);
    "socket AF_XDP", [EPERM], |_| socket(44, libc::SOCK_RAW, 0);
    "socket AF_NETLINK", [], |_| socket(libc::AF_NETLINK, libc::SOCK_RAW, 0);
    "socket AF_VSOCK", [], |_| socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0);
    "socket AF_ALG", [], |_| socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0);
    "connect to a socket in a directory", [ENOENT, EACCES], |_| connect_unix(b"/run/systemd/private\0");
    "connect to an abstract socket", [ECONNREFUSED, EPERM], |_| connect_unix(ABSTRACT);
    "socketpair", [], |h| sys!(libc::SYS_socketpair, libc::AF_UNIX, libc::SOCK_STREAM, 0, h.buffer);
    "connect re-targets a held UDP socket", [EACCES, EPERM, ENETUNREACH, EINVAL], |h| { let to = inet([192, 0, 2, 9], 9); sys!(libc::SYS_connect, h.udp, &raw const to, 16) };
    "sendto with an address", [], |h| { let to = inet([127, 0, 0, 1], 9); sys!(libc::SYS_sendto, h.udp, h.buffer, 1, 0, &raw const to, 16) };
    "sendmmsg with addresses", [], |h| { let m = sendmsg_to(h); sys!(libc::SYS_sendmmsg, h.udp, &raw const m, 1, 0) };
    "sendmsg with an address", [], |h| { let m = sendmsg_to(h); sys!(libc::SYS_sendmsg, h.udp, &raw const m, 0) };
    "sendmsg without one, but of a channel", [], |h| { let m: libc::msghdr = unsafe { zeroed() }; sys!(libc::SYS_sendmsg, h.stream, &raw const m, 0) };
    "sendmsg opens a TCP connection", [], |h| { let m = sendmsg_to(h); sys!(libc::SYS_sendmsg, h.stream, &raw const m, libc::MSG_FASTOPEN) };
    "sendto opens a TCP connection", [], |h| { let to = inet([192, 0, 2, 1], 9); sys!(libc::SYS_sendto, h.stream, h.buffer, 1, libc::MSG_FASTOPEN, &raw const to, 16) };
    "close gives the channel's number free", [], |_| sys!(libc::SYS_close, 3);
    "setsockopt IP_HDRINCL", [], |h| sys!(libc::SYS_setsockopt, h.udp, libc::IPPROTO_IP, libc::IP_HDRINCL, h.buffer, 4);
    "setsockopt IPV6_HDRINCL", [], |h| sys!(libc::SYS_setsockopt, h.udp, libc::IPPROTO_IPV6, 36, h.buffer, 4);
    "setsockopt UDP_ENCAP", [], |h| sys!(libc::SYS_setsockopt, h.udp, libc::SOL_UDP, 100, h.buffer, 4);
    "bind of a held socket", [EACCES, EINVAL, EPERM, EADDRNOTAVAIL], |h| { let at = inet([192, 0, 2, 1], 80); sys!(libc::SYS_bind, h.udp, &raw const at, 16) };
    "listen", [EINVAL, EOPNOTSUPP], |h| sys!(libc::SYS_listen, h.stream, 1);
    "setsockopt SO_BINDTODEVICE", [], |h| sys!(libc::SYS_setsockopt, h.udp, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, c"lo".as_ptr(), 2);
    "setsockopt SO_ATTACH_FILTER", [], |h| sys!(libc::SYS_setsockopt, h.udp, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, h.buffer, 16);
    "getsockname", [], |h| sys!(libc::SYS_getsockname, h.udp, h.buffer, h.buffer);
    "AF_XDP socket bound to another interface", [], |h| { let at: [u16; 8] = [44, 0, 1, 0, 0, 0, 0, 0]; sys!(libc::SYS_bind, h.xsk, at.as_ptr(), 16) };
    "AF_XDP socket gets another UMEM", [], |h| sys!(libc::SYS_setsockopt, h.xsk, 283, 4, h.buffer, 32);
    // The tap: what its holder could do without any privilege.
    "tap TUNSETPERSIST", [], |h| ioctl(h.tap, 0x4004_54cb, h);
    "tap TUNSETOWNER", [], |h| ioctl(h.tap, 0x4004_54cc, h);
    "tap TUNSETGROUP", [], |h| ioctl(h.tap, 0x4004_54ce, h);
    "tap TUNSETIFF", [], |h| ioctl(h.tap, 0x4004_54ca, h);
    "tap TUNSETLINK", [], |h| ioctl(h.tap, 0x4004_54cd, h);
    "tap TUNSETTXFILTER", [], |h| ioctl(h.tap, 0x4004_54d1, h);
    "tap TUNATTACHFILTER", [], |h| ioctl(h.tap, 0x4010_54d5, h);
    "tap TUNDETACHFILTER", [], |h| ioctl(h.tap, 0x4010_54d6, h);
    "tap TUNSETSNDBUF", [], |h| ioctl(h.tap, 0x4004_54d4, h);
    "tap TUNSETIFINDEX", [], |h| ioctl(h.tap, 0x4004_54da, h);
    "tap TUNSETVNETBE", [], |h| ioctl(h.tap, 0x4004_54de, h);
    "tap TUNSETSTEERINGEBPF", [], |h| ioctl(h.tap, 0x8004_54e0, h);
    "tap TUNSETFILTEREBPF", [], |h| ioctl(h.tap, 0x8004_54e1, h);
    "tap TUNGETDEVNETNS", [], |h| ioctl(h.tap, 0x0000_54e3, h);
    "tap TUNGETIFF", [], |h| ioctl(h.tap, 0x8004_54d2, h);
    "tap SIOCSIFHWADDR", [], |h| ioctl(h.tap, 0x8924, h);
    "tap SIOCGSKNS", [], |h| ioctl(h.tap, 0x894c, h);
    "ioctl SIOCSIFFLAGS", [], |h| ioctl(h.udp, 0x8914, h);
    "ioctl TIOCSTI", [], |h| ioctl(2, 0x5412, h);
    "ioctl TIOCLINUX", [], |h| ioctl(2, 0x541c, h);
    "ioctl FIOASYNC", [], |h| ioctl(h.stream, 0x5452, h);
    "fcntl F_SETFL has whoever shares the open file wait", [], |h| sys!(libc::SYS_fcntl, h.stream, libc::F_SETFL, 0);
    "fcntl F_SETFL O_ASYNC", [], |h| sys!(libc::SYS_fcntl, h.stream, libc::F_SETFL, libc::O_NONBLOCK | libc::O_ASYNC);
    "fcntl F_SETOWN", [], |h| sys!(libc::SYS_fcntl, h.stream, libc::F_SETOWN, h.victim);
    "fcntl F_ADD_SEALS", [], |h| sys!(libc::SYS_fcntl, h.memory, libc::F_ADD_SEALS, 1);
    "dup3 over another descriptor", [], |h| sys!(libc::SYS_dup3, h.stream, h.tap, 0);
    "ftruncate of shared memory", [EFBIG, EPERM], |h| sys!(libc::SYS_ftruncate, h.memory, 1_u64 << 40);
    "splice", [], |h| sys!(libc::SYS_splice, h.stream, null::<u8>(), h.tap, null::<u8>(), 1, 0);
    "vmsplice", [], |h| sys!(libc::SYS_vmsplice, h.stream, h.buffer, 0, 0);
    // Memory.
    "mmap writable and executable", [EACCES], |_| mmap(RW | libc::PROT_EXEC, ANON, -1);
    "mmap executable", [], |_| mmap(RX, ANON, -1);
    "mmap of a descriptor as code", [EACCES, EPERM], |h| mmap(RX | libc::PROT_WRITE, libc::MAP_SHARED, h.memory);
    "mprotect makes data executable", [EACCES], |h| sys!(libc::SYS_mprotect, h.buffer, 4096, RX);
    "mprotect writable and executable", [EACCES], |h| sys!(libc::SYS_mprotect, h.buffer, 4096, RW | libc::PROT_EXEC);
    "pkey_mprotect makes data executable", [EACCES, EINVAL, ENOSYS], |h| sys!(libc::SYS_pkey_mprotect, h.buffer, 4096, RX, -1);
    "mremap to a chosen address", [], |h| sys!(libc::SYS_mremap, h.buffer, 4096, 4096, 3, 0x10_0000);
    "remap_file_pages", [EINVAL, ENOSYS], |h| sys!(libc::SYS_remap_file_pages, h.buffer, 4096, 0, 0, 0);
    "madvise MADV_HWPOISON", [EPERM, EINVAL], |h| sys!(libc::SYS_madvise, h.buffer, 4096, 100);
    "madvise MADV_DONTFORK", [], |h| sys!(libc::SYS_madvise, h.buffer, 4096, 10);
    "mlockall", [ENOMEM, EPERM], |_| sys!(libc::SYS_mlockall, 3);
    "memfd_secret", [], |_| sys!(libc::SYS_memfd_secret, 0);
    "shmget", [], |_| sys!(libc::SYS_shmget, 0, 4096, 0o1600);
    "mq_open", [], |_| sys!(libc::SYS_mq_open, c"x".as_ptr(), 0o102, 0o600, null::<u8>());
    // Doors into the kernel that a filter cannot look behind.
    "bpf", [EPERM], |_| { let array = [2_u32, 4, 4, 1, 0, 0, 0, 0]; sys!(libc::SYS_bpf, 0, array.as_ptr(), 32) };
    "io_uring_setup", [], |h| sys!(libc::SYS_io_uring_setup, 8, h.buffer);
    "io_uring_enter wakes a polling thread", [EBADF, EOPNOTSUPP, ENOSYS], |_| sys!(libc::SYS_io_uring_enter, 0, 1, 0, 2, 0, 0);
    "io_uring_enter of a ring by its number", [EINVAL, EBADF, EOPNOTSUPP, ENOSYS], |_| sys!(libc::SYS_io_uring_enter, 0, 1, 0, 16, 0, 0);
    "io_uring_enter with a signal mask", [EBADF, EOPNOTSUPP, ENOSYS], |h| sys!(libc::SYS_io_uring_enter, 0, 1, 0, 1, h.buffer, 8);
    "io_uring_register", [EBADF, EOPNOTSUPP, ENOSYS, EINVAL], |_| sys!(libc::SYS_io_uring_register, 0, 0, 0, 0);
    "userfaultfd", [EPERM, ENOSYS], |_| sys!(libc::SYS_userfaultfd, 0);
    "perf_event_open", [EPERM, EACCES, ENOSYS, E2BIG, EINVAL], |h| sys!(libc::SYS_perf_event_open, h.buffer, -1, 0, -1, 0);
    "landlock_create_ruleset", [], |h| sys!(libc::SYS_landlock_create_ruleset, h.buffer, 8, 0);
    "eventfd2", [], |_| sys!(libc::SYS_eventfd2, 0, 0);
    "signalfd4", [], |h| sys!(libc::SYS_signalfd4, -1, h.buffer, 8, 0);
    "init_module", [EPERM, ENOSYS], |h| sys!(libc::SYS_init_module, h.buffer, 1, c"".as_ptr());
    "finit_module", [EPERM, ENOSYS], |h| sys!(libc::SYS_finit_module, h.memory, c"".as_ptr(), 0);
    "delete_module", [EPERM, ENOSYS], |_| sys!(libc::SYS_delete_module, c"tun".as_ptr(), 0);
    "kexec_load", [EPERM, ENOSYS], |_| sys!(libc::SYS_kexec_load, 0, 0, null::<u8>(), 0);
    // Wrong magic numbers: even without any sandbox it would do nothing.
    "reboot", [EPERM, EINVAL], |_| sys!(libc::SYS_reboot, 0, 0, 0, null::<u8>());
    "syslog reads the kernel's", [EPERM], |h| sys!(libc::SYS_syslog, 5, h.buffer, 0);
    "sethostname", [EPERM], |_| sys!(libc::SYS_sethostname, c"x".as_ptr(), 1);
    "clock_settime", [EPERM], |h| sys!(libc::SYS_clock_settime, 0, h.buffer);
    "acct", [EPERM, ENOSYS], |_| sys!(libc::SYS_acct, null::<u8>());
    "vhangup", [EPERM], |_| sys!(libc::SYS_vhangup);
}

#[cfg(target_arch = "x86_64")]
escapes! { ESCAPES_OF_ARCH:
    "open", [ENOENT, EACCES], |_| sys!(libc::SYS_open, c"/etc/passwd".as_ptr(), 0);
    "creat", [EROFS, EACCES], |_| sys!(libc::SYS_creat, c"/x".as_ptr(), 0o600);
    "fork", [], |_| sys!(libc::SYS_fork);
    "vfork", [], |_| sys!(libc::SYS_vfork);
    "iopl", [EPERM, ENOSYS], |_| sys!(libc::SYS_iopl, 3);
    "ioperm", [EPERM, ENOSYS], |_| sys!(libc::SYS_ioperm, 0x60, 1, 1);
    "modify_ldt", [], |h| sys!(libc::SYS_modify_ldt, 1, h.buffer, 16);
    "arch_prctl", [], |_| sys!(libc::SYS_arch_prctl, 0x1002, 0);
    "x32 numbering: read", [], |h| sys!(0x4000_0000 | libc::SYS_read, h.stream, h.buffer, 0);
    "x32 numbering: execve", [], |_| sys!(0x4000_0000_i64 | 520, c"/bin/sh".as_ptr(), null::<u8>(), null::<u8>());
    "i386 numbering by int 0x80", [], |_| int80(11);
}

#[cfg(not(target_arch = "x86_64"))]
pub const ESCAPES_OF_ARCH: &[Escape] = &[];

/// The 32-bit door of x86: another architecture to a filter.
#[cfg(target_arch = "x86_64")]
fn int80(nr: u32) -> c_long {
    let got: u64;
    unsafe { std::arch::asm!("int 0x80", inlateout("rax") u64::from(nr) => got, in("rcx") 0, in("rdx") 0) };
    got as c_long
}

/// What a dataplane would hold, in a network namespace of its own.
fn hold(victim: c_int) -> Held {
    must("network namespace", unsafe { libc::unshare(libc::CLONE_NEWNET) });
    let udp = socket(libc::AF_INET, libc::SOCK_DGRAM, 0) as RawFd;
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (into, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *into = *from as _;
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
    must("loopback up", unsafe { libc::ioctl(udp, libc::SIOCSIFFLAGS as _, &raw const request) });
    let to = inet([127, 0, 0, 1], 9);
    must("UDP", unsafe { libc::connect(udp, (&raw const to).cast(), 16) });
    let tap = must("/dev/net/tun", open(c"/dev/net/tun", libc::O_RDWR) as c_int);
    request = unsafe { zeroed() };
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
    must("tap", unsafe { libc::ioctl(tap, libc::TUNSETIFF as _, &raw const request) });
    let mut pair = [0; 2];
    must("pair", unsafe { libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr()) });
    let outside = socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) as RawFd;
    let at = unix(ABSTRACT);
    must("bind", unsafe { libc::bind(outside, (&raw const at).cast(), 2 + ABSTRACT.len() as u32) });
    must("listen", unsafe { libc::listen(outside, 1) });
    let memory = must("memfd", unsafe { libc::memfd_create(c"nt".as_ptr(), libc::MFD_ALLOW_SEALING) });
    let xsk = must("AF_XDP", socket(44, libc::SOCK_RAW, 0) as c_int);
    let flags = libc::MAP_PRIVATE | ANON;
    let buffer = unsafe { libc::mmap(null_mut(), 1 << 16, RW, flags, -1, 0) }.cast();
    Held { tap, xsk, udp, stream: pair[0], memory, outside, victim, buffer }
}

fn must(what: &str, rc: c_int) -> c_int {
    if rc < 0 {
        give_up(&format!("{what}: {}", std::io::Error::last_os_error()));
    }
    rc
}

/// Tries `these` in a sandbox entered as `uid`, each in a process of its own; with the filter or without.
fn tried(uid: u32, level: Level, seal: bool, these: &[&Escape]) -> Vec<End> {
    let victim = fork(|| {
        become_user(uid);
        unsafe { libc::pause() }
    });
    let (end, said) = ask(|to, fd| {
        // Files may not grow only where standard error is none.
        must("standard error", unsafe { libc::dup2(fd, 2) });
        let held = hold(victim.0);
        become_user(uid);
        if level < Level::Full {
            crate::levels::without_user_namespaces();
        }
        let walls = enter(level, &[fd, held.tap, held.xsk, held.udp, held.stream, held.memory, held.outside]);
        for escape in these {
            let walls = walls.clone();
            let end = fork(|| {
                if seal && let Err(e) = walls.seal(&every_port()) {
                    give_up(&e.to_string());
                }
                code((escape.attempt)(&held))
            });
            let _ = match end.wait() {
                End::Signal(n) => writeln!(to, "-{n}"),
                End::Code(n) => writeln!(to, "{n}"),
            };
        }
        0
    });
    assert_eq!(end, End::Code(0), "{said}");
    unharmed(victim);
    let ends = said.lines().map(|l| l.parse::<i32>().unwrap());
    ends.map(|n| if n < 0 { End::Signal(-n) } else { End::Code(n) }).collect()
}

fn become_user(uid: u32) {
    if uid != 0 {
        must("gid", unsafe { libc::setresgid(uid, uid, uid) });
        must("uid", unsafe { libc::setresuid(uid, uid, uid) });
        die_with_parent();
    }
}

/// The process outside still runs, and is ended now.
fn unharmed(victim: Child) {
    let mut st = 0;
    assert_eq!(
        unsafe { libc::waitpid(victim.0, &mut st, libc::WNOHANG) },
        0,
        "the process outside was ended"
    );
    unsafe { libc::kill(victim.0, libc::SIGKILL) };
    assert_eq!(victim.wait(), End::Signal(libc::SIGKILL));
}

fn all() -> Vec<&'static Escape> {
    ESCAPES.iter().chain(ESCAPES_OF_ARCH).collect()
}

#[test]
fn every_escape_is_killed_by_the_filter() {
    let these = all();
    let ends = tried(0, Level::Full, true, &these);
    assert_eq!(ends.len(), these.len());
    let free: Vec<_> =
        these.iter().zip(&ends).filter(|(_, end)| **end != KILLED).map(|(e, end)| (e.name, end)).collect();
    assert!(free.is_empty(), "not killed: {free:#?}");
    assert!(these.len() >= 40);
    eprintln!("{} escapes, all killed", these.len());
}

#[test]
fn the_walls_hold_without_the_filter() {
    let these: Vec<_> = all().into_iter().filter(|e| !e.walls.is_empty()).collect();
    for uid in [0, 4711] {
        let ends = tried(uid, Level::Full, false, &these);
        assert_eq!(ends.len(), these.len());
        // A file that would grow ends it by a signal, as limits have it.
        let held = |e: &Escape, end: &End| match end {
            End::Code(n) => e.walls.contains(n),
            End::Signal(n) => *n == libc::SIGXFSZ && e.walls.contains(&libc::EFBIG),
        };
        let free: Vec<_> =
            these.iter().zip(&ends).filter(|(e, end)| !held(e, end)).map(|(e, end)| (e.name, end)).collect();
        assert!(free.is_empty(), "as uid {uid}: {free:#?}");
    }
    eprintln!("{} escapes, all refused by the walls alone", these.len());
}

/// Escapes that Landlock stops by itself, where there are no namespaces and no filter.
const LANDLOCK: &[&str] = &[
    "openat /etc/passwd",
    "openat /",
    "openat /proc/self/mem",
    "openat creates a file",
    "openat reopens a descriptor by /proc/self/fd",
    "mkdirat",
    "execve",
    "connect TCP to the outside",
    "connect to an abstract socket",
    "ptrace of a process outside",
    "process_vm_readv of a process outside",
    "kill of a process outside",
    "tgkill of a process outside",
];

#[test]
fn landlock_holds_without_namespaces_and_filter() {
    let these: Vec<_> = all().into_iter().filter(|e| LANDLOCK.contains(&e.name)).collect();
    assert_eq!(these.len(), LANDLOCK.len());
    let ends = tried(4711, Level::Landlock, false, &these);
    let held = |end: &End| matches!(end, End::Code(libc::EACCES | libc::EPERM));
    let free: Vec<_> =
        these.iter().zip(&ends).filter(|(_, end)| !held(end)).map(|(e, end)| (e.name, end)).collect();
    assert!(free.is_empty(), "{free:#?}");
}
