//! With how little the helper works: the needed capabilities, each in force only around its step.

use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use caps::{CapSet, Capability};
use netreeve_helper::privilege;
use netreeve_helper::provide::Provider;
use netreeve_shared::refusal::{Refusal, Step};
use netreeve_shared::request::{L2tpRequest, ListenRequest, Request};

use crate::support::*;
use crate::xsk;

fn keep_only(permitted: &[Capability]) {
    caps::clear(None, CapSet::Effective).unwrap();
    caps::set(None, CapSet::Permitted, &permitted.iter().copied().collect()).unwrap();
}

/// This thread becomes an ordinary user with these capabilities permitted (glibc would change every thread).
fn become_user(permitted: &[Capability]) {
    nix::sys::prctl::set_keepcaps(true).unwrap();
    // SAFETY: a system call without pointers.
    assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, UID, UID, UID) }, 0);
    keep_only(permitted);
}

fn effective() -> HashSet<Capability> {
    caps::read(None, CapSet::Effective).unwrap()
}

#[test]
fn a_tap_in_a_new_bridge_needs_net_admin_alone() {
    namespace();
    keep_only(&[Capability::CAP_NET_ADMIN]);
    let (_grant, _fds) = tap(in_bridge("br0", true, true)).unwrap();
    assert!(effective().is_empty());
}

#[test]
fn af_xdp_works_as_an_ordinary_user_with_what_is_needed() {
    xsk::veth("");
    become_user(privilege::NEEDED);
    // Four times what RLIMIT_MEMLOCK usually lets an ordinary user register.
    let asked = netreeve_shared::request::XskRequest { chunks: 16384, ..xsk::request() };
    let mut provider = Provider::default();
    let (grant, _fds) = xsk::ask(&mut provider, &asked).unwrap();
    assert!(effective().is_empty());
    let _link = xsk::activate(&mut provider, grant.ticket).unwrap();
    assert!(effective().is_empty());
    drop((_fds, _link));
    let pinned = Request::XskPinned(xsk::request());
    let _kept = provider.provide(&pinned, UID, &LIMITS).unwrap();
    assert!(effective().is_empty());
}

fn low_port() -> Request {
    let address = std::net::Ipv4Addr::LOCALHOST.into();
    Request::Listen(ListenRequest { udp: true, address, port: 1 })
}

/// Each of these needs one capability, and that alone.
#[test]
fn a_session_needs_net_raw_alone_and_a_low_port_net_bind_service() {
    let (src, dst) = ([127, 0, 0, 1].into(), [127, 0, 0, 2].into());
    let session = Request::L2tp(L2tpRequest { src, dst, session: 1 });
    let refused = Refusal::Failed { step: Step::Capability, errno: libc::EPERM };
    for (request, needed) in
        [(session, Capability::CAP_NET_RAW), (low_port(), Capability::CAP_NET_BIND_SERVICE)]
    {
        let answers = std::thread::spawn(move || {
            namespace();
            become_user(&[needed]);
            let with = Provider::default().provide(&request, UID, &LIMITS).map(drop);
            assert!(effective().is_empty());
            keep_only(&[]);
            (with, Provider::default().provide(&request, UID, &LIMITS).map(drop))
        });
        assert_eq!(answers.join().unwrap(), (Ok(()), Err(refused)), "{needed}");
    }
}

#[test]
fn each_missing_capability_refuses_its_step_and_leaves_none_in_force() {
    let refused = Refusal::Failed { step: Step::Capability, errno: libc::EPERM };
    for missing in privilege::NEEDED {
        // A thread of its own: what is given up does not come back.
        let answer = std::thread::spawn(move || {
            xsk::veth("");
            let kept: Vec<_> = privilege::NEEDED.iter().copied().filter(|c| c != missing).collect();
            become_user(&kept);
            let mut provider = Provider::default();
            let answer = xsk::ask(&mut provider, &xsk::request())
                .and_then(|(grant, fds)| xsk::activate(&mut provider, grant.ticket).map(|_| drop(fds)))
                .and_then(|()| provider.provide(&low_port(), UID, &LIMITS).map(drop));
            assert!(effective().is_empty());
            answer
        });
        assert_eq!(answer.join().unwrap(), Err(refused), "without {missing}");
    }
}

#[test]
fn start_keeps_the_needed_ones_permitted_and_nothing_in_force() {
    namespace();
    let kept = privilege::start().unwrap();
    assert_eq!(kept, privilege::NEEDED.iter().copied().collect());
    for (set, expected) in [
        (CapSet::Permitted, kept.clone()),
        (CapSet::Bounding, kept),
        (CapSet::Effective, HashSet::new()),
        (CapSet::Inheritable, HashSet::new()),
        (CapSet::Ambient, HashSet::new()),
    ] {
        assert_eq!(caps::read(None, set).unwrap(), expected, "{set:?}");
    }
    let (_grant, _fds) = tap(tap_request()).unwrap();
}

/// Not a test of its own: what a setuid-root helper is after its start.
#[test]
#[ignore = "the setuid test starts it, setuid root and as an ordinary user"]
fn setuid_child() {
    let ids = || nix::unistd::getresuid().unwrap();
    assert_eq!((ids().real.as_raw(), ids().effective.as_raw()), (UID, 0));
    assert_eq!(privilege::start().unwrap(), privilege::NEEDED.iter().copied().collect());
    assert_eq!([ids().real, ids().effective, ids().saved].map(nix::unistd::Uid::as_raw), [UID; 3]);
    assert!(effective().is_empty());
    assert_eq!(privilege::with(privilege::LINK, || Ok(effective().len())), Ok(1));
    assert_eq!(nix::unistd::setuid(nix::unistd::Uid::from_raw(0)), Err(nix::errno::Errno::EPERM));
    println!("became the caller for good");
}

#[test]
fn a_setuid_helper_becomes_its_caller_for_good() {
    namespace();
    let directory = std::env::temp_dir().join(format!("nt-provide-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let program = directory.join("setuid");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o4755)).unwrap();
    std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(&program);
    command.args(["--exact", "least::setuid_child", "--ignored", "--nocapture"]).uid(UID).gid(UID);
    // Busy: another test's child still holds our descriptor of the copy, between fork and exec.
    let busy = |out: &std::io::Result<_>| matches!(out, Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy);
    let out = std::iter::repeat_with(|| command.current_dir("/").output()).find(|out| !busy(out)).unwrap();
    std::fs::remove_dir_all(&directory).unwrap();
    let text = String::from_utf8(out.unwrap().stdout).unwrap();
    assert!(text.contains("became the caller for good"), "{text}");
}
