//! What runs in the guest. Each is a test of the real programs, as it could stand in any other file; sizes are small,
//! because every instruction there is twenty of ours.

mod helper;
mod socket;
#[path = "../../sockets/support.rs"]
#[allow(dead_code, reason = "shared with tests that use more of it")]
mod support;
mod user;

use netreeve_tests::inspect::look;
use netreeve_tests::proc::Outcome;

/// What the dataplane is locked in by, in the kernel's words; it must be all that a dataplane has anywhere.
fn is_locked_in(dataplane: i32, keeps_network: bool) {
    let me = std::process::id().cast_signed();
    let seen = look(dataplane, me).unwrap();
    let caps = seen.caps;
    let sets = [caps.effective, caps.permitted, caps.inheritable, caps.ambient, caps.bounding];
    assert_eq!(sets, [0; 5], "{seen:?}");
    assert!(seen.no_new_privs && seen.seccomp == 2, "{seen:?}");
    assert_ne!(seen.uid, 0);
    for kind in ["user", "mnt", "ipc", "uts", "cgroup", "net"] {
        let apart = seen.apart.iter().any(|k| k == kind);
        assert!(apart || keeps_network && kind == "net", "the dataplane shares {kind}: {seen:?}");
    }
    eprintln!("dataplane: seccomp filter, no new privileges, no capability, apart: {}", seen.apart.join(" "));
}

/// The line of a program's words that begins so, without that beginning.
fn line<'a>(said: &'a Outcome, begins: &str) -> &'a str {
    let found = said.text.lines().find_map(|l| l.strip_prefix(begins));
    found.unwrap_or_else(|| panic!("no line {begins:?} in:\n{}", said.text))
}

/// The kernel's release, as far as it is numbers.
fn release() -> (u32, u32) {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut parts = text.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap());
    (parts.next().unwrap(), parts.next().unwrap())
}
