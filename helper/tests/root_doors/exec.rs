//! The exec'd helper: setuid or with file capabilities, judged by real ids, beyond its caller's tricks.

use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use netreeve_shared::channel::{self, Channel};
use netreeve_shared::client::{AskError, Helper};
use netreeve_shared::codec;
use netreeve_shared::grant::Grant;
use netreeve_shared::refusal::Refusal;
use netreeve_shared::request::Request;

use crate::place::*;

/// Pids of programs called `name`.
fn running(name: &str) -> Vec<u32> {
    let pids =
        std::fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok());
    pids.filter(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == name))
        .collect()
}

#[test]
fn both_ways_of_installing_it_work_and_lock_in() {
    place("allow user:alice bridge br0\nallow user:alice xsk v0\ndeny user:bob tap *");
    for (program, name) in
        [(program("nt-suid", 0o4755), "nt-suid"), (program_with_capabilities("nt-caps"), "nt-caps")]
    {
        as_user(ALICE, &[], || {
            let mut helper = Helper::exec(&program).unwrap();
            let (grant, fds) = helper.ask(&tap_in(Some("br0"))).unwrap();
            assert!(matches!(grant, Grant::Tap(t) if t.bridge.is_some()));
            let pids = running(name);
            assert_eq!(pids.len(), 1);
            is_locked_in(pids[0], ALICE);
            let (grant, _sockets) = helper.ask(&Request::Xsk(xsk())).unwrap();
            let Grant::Xsk(xsk) = grant else { panic!("{grant:?}") };
            let _link = helper.ask(&Request::Activate(xsk.ticket)).unwrap();
            assert_eq!(refusal(helper.ask(&tap_in(None))), Refusal::Denied);
            is_locked_in(pids[0], ALICE);
            drop(helper);
            assert!(running(name).is_empty(), "reaped");
            assert_eq!(taps(), 1, "the tap is its holder's");
            drop(fds);
        });
        soon("the tap is gone", || taps() == 0);
        let bob = as_user(BOB, &[], || refusal(Helper::exec(&program).unwrap().ask(&tap_in(Some("br0")))));
        assert_eq!(bob, Refusal::Denied);
    }
}

/// Before Linux 6.4 sockets are bound when they are activated, and a caller can have the kernel say that it is older.
#[test]
fn sockets_that_are_not_bound_yet_are_for_those_who_may_bind_them() {
    let xsk_alone = "allow user:alice xsk v0";
    let both = "allow user:alice xsk v0\nallow user:alice xsk-pinned v0";
    place(xsk_alone);
    let suid = program("suid", 0o4755);
    let old = format!("{DIR}/old");
    write(&old, &format!("#!/bin/sh\nexec setarch --uname-2.6 {} \"$@\"\n", suid.display()));
    std::fs::set_permissions(&old, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let ask = || {
        as_user(ALICE, &[], || {
            let mut helper = Helper::exec(Path::new(&old)).unwrap();
            let (grant, _sockets) = match helper.ask(&Request::Xsk(xsk())) {
                Err(AskError::Refused(refusal)) => return Err(refusal),
                said => said.unwrap(),
            };
            let Grant::Xsk(xsk) = grant else { panic!("{grant:?}") };
            helper.ask(&Request::Activate(xsk.ticket)).map(|_| ()).map_err(|e| refusal::<()>(Err(e)))
        })
    };
    assert_eq!(ask(), Err(Refusal::Denied));
    write("/etc/netreeve/policy.conf", both);
    assert_eq!(ask(), Ok(()));
    write("/etc/netreeve/policy.conf", "allow user:alice xsk v0\nallow user:alice xsk-pinned v0 queue=1");
    assert_eq!(ask(), Err(Refusal::Denied));
}

/// Runs the program as alice with descriptor 3 as given; exit code and standard error.
fn run(
    program: &Path,
    arguments: &[&str],
    change: impl FnOnce(&mut Command) + Send,
) -> (Option<i32>, String) {
    as_user(ALICE, &[], || {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        change(&mut command);
        let out = command.output().unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap() + &String::from_utf8_lossy(&out.stdout))
    })
}

#[test]
fn without_privilege_it_says_what_is_missing() {
    place("allow any tap *");
    let plain = program("plain", 0o755);
    let said = as_user(ALICE, &[], || Helper::exec(&plain).unwrap().ask(&tap_in(None)).unwrap_err());
    assert!(matches!(said, AskError::Closed), "{said}");
    let caps = program_with_capabilities("caps");
    // no_new_privs takes file capabilities away.
    let said = as_user(ALICE, &[], || {
        nix::sys::prctl::set_no_new_privs().unwrap();
        Helper::exec(&caps).unwrap().ask(&tap_in(None)).unwrap_err()
    });
    assert!(matches!(said, AskError::Closed), "{said}");
}

#[test]
fn nothing_but_its_own_socket_is_a_door() {
    place("allow any tap *");
    let suid = program("suid", 0o4755);
    let none = run(&suid, &[], |_| ());
    assert_eq!(none.0, Some(64));
    // Standard input and error are no descriptor 3; a stream socket is no channel.
    let (stream, _peer) = UnixStream::pair().unwrap();
    let stream: std::os::fd::OwnedFd = stream.into();
    let text = as_user(ALICE, &[], || {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec \"$0\" 3<&0", suid.to_str().unwrap()]).stdin(stream);
        let out = command.output().unwrap();
        assert_eq!(out.status.code(), Some(1));
        String::from_utf8(out.stderr).unwrap()
    });
    assert!(text.contains("descriptor 3 is not"), "{text}");
    // Somebody else's socket: made by root, put into alice's hands.
    let (ours, theirs) = Channel::pair().unwrap();
    let theirs = theirs.into_fd();
    let code = as_user(ALICE, &[], || {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec \"$0\" 3<&0", suid.to_str().unwrap()]).stdin(theirs);
        command.output().unwrap().status.code()
    });
    assert_eq!(code, Some(1));
    drop(ours);
}

#[test]
fn an_elevated_helper_takes_no_path_and_no_environment_from_its_caller() {
    place("deny any tap *");
    write(&format!("{DIR}/mine.conf"), "allow any tap *");
    let suid = program("suid", 0o4755);
    for arguments in [
        &["--listen", "/run/netreeve-test/x"][..],
        &["--listen", "/run/netreeve-test/x", "--policy", "/run/netreeve-test/mine.conf"],
        &["--policy", "/run/netreeve-test/mine.conf"],
        &["--daemon"],
    ] {
        assert_eq!(run(&suid, arguments, |_| ()).0, Some(64), "{arguments:?}");
    }
    // Reads files with the caller's rights alone.
    write(&format!("{DIR}/secret"), "topsecret line");
    std::fs::set_permissions(format!("{DIR}/secret"), std::os::unix::fs::PermissionsExt::from_mode(0o600))
        .unwrap();
    let (code, text) = run(&suid, &["--check", "/run/netreeve-test/secret"], |_| ());
    assert_eq!(code, Some(78));
    assert!(!text.contains("topsecret") && text.contains("Permission denied"), "{text}");
    // A listening socket and the service manager's variables make no service of it.
    let text = as_user(ALICE, &[], || {
        let mut command = Command::new("/usr/bin/python3");
        let script = "import os, socket, sys\ns = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n\
                      s.bind('\\0nt-helper-test-door')\ns.listen(8)\nos.dup2(s.fileno(), 3)\nos.set_inheritable(3, True)\n\
                      os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n\
                      os.execv(sys.argv[1], [sys.argv[1]])";
        let out = command.args(["-c", script, suid.to_str().unwrap()]).output().unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    });
    assert!(text.1.contains("descriptor 3"), "{text:?}");
    assert_eq!(text.0, Some(1));
}

#[test]
fn what_its_caller_set_up_is_shed() {
    place("allow any tap *");
    let suid = program("nt-shed", 0o4755);
    let (channel, mut child) = as_user(ALICE, &[], || {
        // An ignored SIGALRM, a pending timer, a closed standard error, open descriptors, a strange directory,
        // variables.
        let mut command = Command::new("/bin/sh");
        let script = "trap '' ALRM TERM CHLD; cd /tmp; for i in 4 5 6 7 8 9; do eval \"exec $i</dev/null\"; done; \
                      LD_PRELOAD=/nowhere RUST_BACKTRACE=1 exec \"$0\" 2>&-";
        command.args(["-c", script, suid.to_str().unwrap()]).stdin(Stdio::null()).stdout(Stdio::null());
        let timer = || {
            nix::unistd::alarm::set(1);
            Ok(())
        };
        // SAFETY: one system call between fork and exec.
        unsafe { command.pre_exec(timer) };
        let (channel, child) = channel::spawn(command).unwrap();
        channel.send(&codec::request(1, &tap_in(None)).unwrap(), &[]).unwrap();
        let answer = channel.recv(16, Some(Duration::from_secs(5))).unwrap().unwrap();
        assert_eq!(answer.fds.len(), 1);
        (channel, child)
    });
    // As root again: its caller may not look.
    let pid = running("nt-shed")[0];
    // 32 and 33 are the C library's own, which it lets nobody change.
    let ignored = u64::from_str_radix(&status(pid, "SigIgn"), 16).unwrap() & !0x1_8000_0000;
    assert_eq!(ignored, 0x1000, "SIGPIPE alone");
    // No handler runs amid our work (CVE-2024-6387).
    assert_eq!((status(pid, "SigBlk"), status(pid, "SigCgt")), ("0".repeat(16), "0".repeat(16)));
    assert_eq!(status(pid, "Umask"), "0077");
    assert_eq!(std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|l| l.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    let link = |e: std::io::Result<std::fs::DirEntry>| std::fs::read_link(e.unwrap().path()).ok();
    let open = || -> Vec<_> {
        let all = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().filter_map(link);
        all.filter(|to| *to != Path::new("/dev/null")).collect()
    };
    // Its own copy of what it gave goes right after the answer.
    let until = Instant::now() + Duration::from_secs(2);
    while open().len() > 1 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    let sockets = open();
    assert!(sockets.len() == 1 && sockets[0].to_str().unwrap().starts_with("socket:"), "{sockets:?}");
    std::thread::sleep(Duration::from_millis(1200));
    assert!(child.try_wait().unwrap().is_none(), "its caller's timer is not its own");
    drop(channel);
    assert!(child.wait().unwrap().success());
}

/// CVE-2021-4034: without arguments the environment is read as if it were some.
#[test]
fn an_empty_command_line_is_none() {
    place("allow any tap *");
    let suid = program("suid", 0o4755);
    let path = std::ffi::CString::new(suid.to_str().unwrap()).unwrap();
    let out = as_user(ALICE, &[], || {
        let mut command = Command::new("/bin/true");
        let exec = move || {
            let trick = [c"--check=/etc/shadow".as_ptr(), std::ptr::null()];
            let none = [std::ptr::null()];
            // SAFETY: a path and two lists that end with null, all alive; between fork and exec.
            unsafe { libc::execve(path.as_ptr(), none.as_ptr(), trick.as_ptr()) };
            Err(std::io::Error::last_os_error())
        };
        // SAFETY: the hook makes one system call.
        unsafe { command.pre_exec(exec) };
        command.stdin(Stdio::null()).output().unwrap()
    });
    assert_eq!((out.status.code(), out.stdout.len()), (Some(64), 0), "{out:?}");
}

#[test]
fn it_cannot_be_traced_by_its_caller() {
    place("allow any tap *");
    let suid = program("nt-trace", 0o4755);
    as_user(ALICE, &[], || {
        let mut helper = Helper::exec(&suid).unwrap();
        let (_, _fds) = helper.ask(&tap_in(None)).unwrap();
        let pid = running("nt-trace")[0];
        // SAFETY: a system call with plain numbers.
        let traced = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0, 0) };
        assert_eq!((traced, nix::errno::Errno::last()), (-1, nix::errno::Errno::EPERM));
        assert!(std::fs::File::open(format!("/proc/{pid}/mem")).is_err());
        assert!(std::fs::read_dir(format!("/proc/{pid}/fd")).is_err());
    });
}

#[test]
fn check_and_explain_work_for_everybody() {
    place("# office\nallow user:alice bridge br0 queues=2\ndeny group:kvm tap *\nlimit any taps=3");
    let program = program("plain", 0o755);
    let check = run(&program, &["--check"], |_| ());
    assert_eq!(check, (Some(0), "/etc/netreeve/policy.conf: 2 rules, 1 limits\n".to_owned()));
    // A path is the caller's own, from where it stands.
    write(&format!("{DIR}/mine.conf"), "allow any tap *");
    let here = run(&program, &["--check", "mine.conf"], |command| {
        command.current_dir(DIR);
    });
    assert_eq!(here, (Some(0), "mine.conf: 1 rules, 0 limits\n".to_owned()));
    let explain = |words: &str| {
        let arguments: Vec<&str> = std::iter::once("--explain").chain(words.split(' ')).collect();
        run(&program, &arguments, |_| ())
    };
    let (code, text) = explain("user:alice bridge br0");
    assert_eq!(
        (code, text.starts_with("allowed by /etc/netreeve/policy.conf:2; at once: 3 taps")),
        (Some(0), true)
    );
    let denied = |rule: &str| (Some(77), format!("denied; rule: {rule}\n"));
    assert_eq!(explain("uid=1001 bridge br0 queues=3"), denied("/etc/netreeve/policy.conf:2(queues)"));
    assert_eq!(explain("uid:1001 gid:78 bridge br0"), denied("/etc/netreeve/policy.conf:3"));
    assert_eq!(explain("user=bob bridge br0"), denied("none"));
    assert_eq!(explain("user=carol bridge br0").0, Some(64));
    assert_eq!(explain("user=bob bridge").0, Some(64));
    assert_eq!(explain("user=bob xsk eth0 ring=3").0, Some(64));
    write(&format!("{DIR}/bad.conf"), "allow any tap *\nallow\n\nalow x");
    let (code, text) = run(&program, &["--check", "/run/netreeve-test/bad.conf"], |_| ());
    assert_eq!(code, Some(78));
    assert!(text.contains("bad.conf:2: ") && text.contains("bad.conf:4: "), "{text}");
}
