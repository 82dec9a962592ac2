//! The face of `qemu-bridge-helper`, called as QEMU calls it.

use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;

use netreeve_shared::fdkind;
use nix::cmsg_space;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use std::io::IoSliceMut;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use crate::place::*;

/// Calls it as `uid`; exit code, standard error, and the descriptor if one came.
fn call(uid: u32, groups: &[u32], bridge: &str) -> (Option<i32>, String, Option<OwnedFd>) {
    as_user(uid, groups, || {
        let (ours, theirs) = UnixStream::pair().unwrap();
        // QEMU leaves its end open over exec.
        nix::fcntl::fcntl(&theirs, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        let mut command = Command::new(format!("{DIR}/qemu-bridge-helper"));
        command.args(["--use-vnet", &format!("--fd={}", theirs.as_raw_fd()), &format!("--br={bridge}")]);
        let out = command.output().unwrap();
        drop(theirs);
        let (mut byte, mut room) = ([9], cmsg_space!(RawFd));
        let mut parts = [IoSliceMut::new(&mut byte)];
        let got =
            recvmsg::<()>(ours.as_raw_fd(), &mut parts, Some(&mut room), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
        let fd = got.cmsgs().unwrap().find_map(|c| match c {
            ControlMessageOwned::ScmRights(fds) => Some(fds[0]),
            _ => None,
        });
        assert_eq!(got.bytes, usize::from(fd.is_some()), "one byte with it, none without");
        // SAFETY: just received, nobody else's.
        let fd = fd.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        (out.status.code(), String::from_utf8(out.stderr).unwrap(), fd)
    })
}

#[test]
fn qemus_own_file_decides() {
    place("");
    program("qemu-bridge-helper", 0o4755);
    let table = [
        ("allow br0", true),
        ("allow all", true),
        ("allow br1", false),
        ("allow all\ndeny br0", false),
        ("deny br0\nallow br0", false),
        ("", false),
        ("include /etc/qemu/missing\nallow br0", true),
    ];
    for (text, yes) in table {
        write("/etc/qemu/bridge.conf", text);
        let (code, said, fd) = call(ALICE, &[], "br0");
        assert_eq!((code, fd.is_some()), (Some(i32::from(!yes)), yes), "{text:?}: {said}");
        assert_eq!(said.lines().count(), usize::from(!yes), "{said}");
        if let Some(fd) = fd {
            let tap = fdkind::tap(fd.as_fd()).unwrap();
            // IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, no queues beyond one.
            assert_eq!(tap.flags & 0x5102, 0x5002);
            let shown = ip(&format!("-o link show dev {}", tap.name));
            assert!(
                shown.contains("mtu 1450") && shown.contains("master br0") && shown.contains("UP"),
                "{shown}"
            );
            assert!(shown.contains("link/ether fe:"), "{shown}");
        }
        soon("the tap is gone", || taps() == 0);
    }
}

#[test]
fn an_include_gives_a_right_to_a_group() {
    place("");
    program("qemu-bridge-helper", 0o4755);
    write("/etc/qemu/bridge.conf", "include /etc/qemu/kvm.conf");
    write("/etc/qemu/kvm.conf", "allow br0");
    std::fs::set_permissions("/etc/qemu/kvm.conf", PermissionsExt::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown("/etc/qemu/kvm.conf", Some(0), Some(KVM)).unwrap();
    assert_eq!(call(ALICE, &[], "br0").0, Some(1));
    assert_eq!(call(ALICE, &[KVM], "br0").0, Some(0));
}

#[test]
fn the_policy_adds_and_takes_away() {
    place("allow user:alice bridge br0\ndeny user:bob tap *");
    program("qemu-bridge-helper", 0o4755);
    assert_eq!(call(ALICE, &[], "br0").0, Some(0), "no bridge.conf is needed then");
    assert_eq!(call(1003, &[], "br0").0, Some(1));
    write("/etc/qemu/bridge.conf", "allow all");
    assert_eq!(call(1003, &[], "br0").0, Some(0));
    assert_eq!(call(BOB, &[], "br0").0, Some(1));
    // A policy that the caller may not read could deny: it is not passed over.
    std::fs::set_permissions("/etc/netreeve/policy.conf", PermissionsExt::from_mode(0o600)).unwrap();
    assert_eq!(call(BOB, &[], "br0").0, Some(1));
    std::fs::set_permissions("/etc/netreeve", PermissionsExt::from_mode(0o700)).unwrap();
    assert_eq!(call(BOB, &[], "br0").0, Some(1));
}

#[test]
fn the_policys_numbers_hold_by_this_face_too() {
    place("allow user:alice bridge br0 max=1");
    program("qemu-bridge-helper", 0o4755);
    let (_, _, first) = call(ALICE, &[], "br0");
    let (code, said, second) = call(ALICE, &[], "br0");
    assert!(
        (code, first.is_some(), second.is_none()) == (Some(1), true, true) && said.contains("limit"),
        "{said}"
    );
    write("/etc/netreeve/policy.conf", "limit any taps=2");
    write("/etc/qemu/bridge.conf", "allow br0");
    let (_, _, second) = call(ALICE, &[], "br0");
    assert!(second.is_some() && call(ALICE, &[], "br0").2.is_none());
    assert_eq!(taps(), 2);
}

/// The caller chooses how many descriptors we may open: none of its choices skips a line that denies.
#[test]
fn a_starved_helper_reads_no_less() {
    place("");
    program("qemu-bridge-helper", 0o4755);
    write("/etc/qemu/bridge.conf", "allow all\ninclude /etc/qemu/deny.conf");
    write("/etc/qemu/deny.conf", "deny br0");
    for most in 3..12_u32 {
        let script = format!(
            "import os, resource, socket\na, b = socket.socketpair()\nos.dup2(b.fileno(), 3)\n\
             os.set_inheritable(3, True)\nresource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most}))\n\
             os.execv('{DIR}/qemu-bridge-helper', ['qemu-bridge-helper', '--fd=3', '--br=br0'])"
        );
        let run = || Command::new("/usr/bin/python3").args(["-c", &script]).output().unwrap();
        let out = as_user(ALICE, &[], run);
        assert!(!out.status.success(), "with {most} descriptors");
        assert_eq!(taps(), 0);
    }
}

#[test]
fn loops_long_names_and_foreign_files_are_refused_in_one_line() {
    place("");
    program("qemu-bridge-helper", 0o4755);
    write("/etc/qemu/bridge.conf", "allow br0\ninclude /etc/qemu/bridge.conf");
    let (code, said, _) = call(ALICE, &[], "br0");
    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
    write("/etc/qemu/bridge.conf", "allow br0");
    // CVE-2019-13164.
    let (code, said, _) = call(ALICE, &[], "br0aaaaaaaaaaaaaaaaaaaaaaa");
    assert_eq!((code, said.lines().count()), (Some(1), 1), "{said}");
    std::fs::set_permissions("/etc/qemu/bridge.conf", PermissionsExt::from_mode(0o666)).unwrap();
    assert_eq!(call(ALICE, &[], "br0").0, Some(1), "anybody may have written it");
    std::fs::remove_file("/etc/qemu/bridge.conf").unwrap();
    std::fs::remove_file("/etc/netreeve/policy.conf").unwrap();
    assert_eq!(call(ALICE, &[], "br0").0, Some(1));
}
