//! The system call filter, tried in child processes: what it does not name ends the process, all numbers of them.

use libc::{c_long, c_ulong};

use crate::syscalls::{filter, passing};

/// Makes one call in a child that has locked itself in. The signal that ended it, if one did.
fn signal_of(filter: &seccompiler::BpfProgram, number: c_long, arguments: [c_ulong; 4]) -> Option<i32> {
    // SAFETY: the child makes system calls only, until it ends.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let locked_in = seccompiler::apply_filter(filter).is_ok();
        if locked_in {
            let [a, b, c, d] = arguments;
            // SAFETY: either the filter ends the process here, or the call is one of harmless arguments.
            unsafe { libc::syscall(number, a, b, c, d, 0, 0) };
        }
        // SAFETY: ends the child at once, without the parent's exit handlers.
        unsafe { libc::_exit(i32::from(!locked_in)) };
    }
    let mut status = 0;
    // SAFETY: our own child, and a place for its status.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFSIGNALED(status) || libc::WEXITSTATUS(status) == 0, "the filter could not be installed");
    libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status))
}

#[test]
fn every_other_system_call_ends_the_process() {
    let (filter, passing) = (filter().unwrap(), passing());
    assert!(passing.len() <= 60, "{} calls", passing.len());
    assert!((50..450).contains(&filter.len()), "{} instructions", filter.len());
    for number in (0..480).chain([0x4000_0000, 0x4000_003b]) {
        // uretprobe and uprobe of x86_64 pass by every filter (the kernel excepts them) and do nothing when called by
        // hand.
        if !passing.contains(&number) && !matches!(number, 335 | 336) {
            assert_eq!(signal_of(&filter, number, [0; 4]), Some(libc::SIGSYS), "call {number}");
        }
    }
}

#[test]
fn arguments_are_checked() {
    let filter = filter().unwrap();
    let value = |n: i32| c_ulong::from(n.cast_unsigned());
    let (rw, rwx) = (value(libc::PROT_READ | libc::PROT_WRITE), value(libc::PROT_READ | libc::PROT_EXEC));
    // An address that is not there: a call that passes fails.
    let none = c_ulong::MAX;
    let netfilter = value(libc::NETLINK_NETFILTER);
    // SAFETY: no pointers.
    let parent = value(unsafe { libc::getppid() });
    let table: [(c_long, [c_ulong; 4], bool); 29] = [
        (libc::SYS_socket, [value(libc::AF_NETLINK), 3, netfilter, 0], false),
        (libc::SYS_socket, [value(libc::AF_XDP), 3, 1, 0], false),
        (libc::SYS_tgkill, [parent, parent, 0, 0], false),
        (libc::SYS_tgkill, [c_ulong::from(std::process::id()), 0, 0, 0], true),
        (libc::SYS_socket, [value(libc::AF_NETLINK), 3, 0, 0], true),
        (libc::SYS_socket, [value(libc::AF_XDP), 3, 0, 0], true),
        (libc::SYS_socket, [value(libc::AF_UNIX), 1, 0, 0], false),
        (libc::SYS_socket, [value(libc::AF_INET), 1, 0, 0], true),
        (libc::SYS_socket, [value(libc::AF_INET6), 2, 0, 0], true),
        (libc::SYS_socket, [value(libc::AF_INET), 3, 115, 0], true),
        (libc::SYS_socket, [value(libc::AF_INET6), 3, 115, 0], true),
        (libc::SYS_socket, [value(libc::AF_INET), 3, 255, 0], false), // IPPROTO_RAW
        (libc::SYS_socket, [value(libc::AF_XDP), 3, 115, 0], false),
        (libc::SYS_socket, [value(libc::AF_PACKET), 3, 0, 0], false),
        (libc::SYS_ioctl, [none, libc::TUNSETIFF, none, 0], true),
        (libc::SYS_ioctl, [none, libc::TIOCSTI, none, 0], false),
        (libc::SYS_ioctl, [none, libc::TUNSETLINK, none, 0], false),
        (libc::SYS_mmap, [0, 0, rw, 0], true),
        (libc::SYS_mmap, [0, 0, rwx, 0], false),
        (libc::SYS_mprotect, [0, 0, rw, 0], true),
        (libc::SYS_mprotect, [0, 0, rwx, 0], false),
        (libc::SYS_bpf, [5, none, 0, 0], true),
        (libc::SYS_bpf, [6, none, 0, 0], false),  // BPF_OBJ_PIN
        (libc::SYS_bpf, [7, none, 0, 0], false),  // BPF_OBJ_GET
        (libc::SYS_bpf, [13, none, 0, 0], false), // BPF_PROG_GET_FD_BY_ID
        (libc::SYS_bpf, [14, none, 0, 0], false), // BPF_MAP_GET_FD_BY_ID
        (libc::SYS_bpf, [30, none, 0, 0], false), // BPF_LINK_GET_FD_BY_ID
        (libc::SYS_bpf, [32, none, 0, 0], false), // BPF_ENABLE_STATS
        (libc::SYS_getpid, [0; 4], true),
    ];
    for (number, arguments, passes) in table {
        let expected = if passes { None } else { Some(libc::SIGSYS) };
        assert_eq!(signal_of(&filter, number, arguments), expected, "{number} {arguments:?}");
    }
}
