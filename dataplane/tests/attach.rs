//! `netreeve run -- COMMAND` without any netdev: what a command is given, with programs that only say what they were given.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may fail loudly"
)]

mod dir;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};

use dir::Dir;

const NETREEVE: &str = env!("CARGO_BIN_EXE_netreeve");

/// A program that says its version if asked, else its words, then whether the socket among them is there, then ends
/// with 7.
const SCRIPT: &str = r#"#!/bin/sh
[ "$1" = --version ] && { echo "QEMU emulator version 10.0.3"; exit 0; }
echo "$@"
for w in "$@"; do
    case $w in *path=*) p=${w##*path=}; [ -S "${p%%,*}" ] && echo "socket there";; esac
    case $w in /*.sock) [ -S "$w" ] && echo "socket there";; esac
done
exit 7
"#;

fn run(dir: &Dir, program: &str, words: &[&str]) -> Output {
    let path = dir.at(program);
    fs::write(&path, SCRIPT).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(NETREEVE);
    command.args(["run", "--sandbox", "seccomp", "--", &path]).args(words).env("XDG_RUNTIME_DIR", dir.at(""));
    command.stdin(Stdio::null()).output().unwrap()
}

fn left(dir: &Dir) -> Vec<String> {
    let entries = fs::read_dir(dir.at("")).unwrap();
    entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_qemu_is_attached_and_its_end_is_ours() {
    let dir = Dir::new("attach-qemu");
    let out = run(&dir, "qemu-system-x86_64", &["-m", "64", "-nographic"]);
    let (said, errors) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
    assert_eq!(out.status.code(), Some(7), "{errors}");
    let wanted = "-m 64 -nographic -object memory-backend-memfd,id=netreeve-memory,size=67108864,share=on -machine \
                  memory-backend=netreeve-memory -chardev socket,id=netreeve-net0,path=";
    assert!(said.starts_with(wanted), "{said}");
    assert!(said.contains(
        ",reconnect-ms=500 -netdev vhost-user,id=net0,chardev=netreeve-net0 -device virtio-net-pci"
    ));
    assert!(said.ends_with("socket there\n"), "{said}");
    assert!(errors.contains("QEMU is attached to 'net0' by vhost-user"), "{errors}");
    assert_eq!(left(&dir), ["qemu-system-x86_64"], "the directory of the socket is gone");
}

#[test]
fn another_program_is_told_the_socket_where_it_asks() {
    let dir = Dir::new("attach-vmm");
    let out = run(&dir, "vmm", &["--net", "{stream}"]);
    let said = String::from_utf8(out.stdout).unwrap();
    assert!(said.starts_with("--net /") && said.ends_with("net0.sock\nsocket there\n"), "{said}");
    assert_eq!(out.status.code(), Some(7));

    let out = run(&dir, "vmm", &["--net"]);
    let errors = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(64), "{errors}");
    assert!(errors.contains("netdev net0 has no peer") && errors.contains("{vhost-user}"), "{errors}");
}
