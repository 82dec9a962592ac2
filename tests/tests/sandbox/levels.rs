//! What the walls and the seal do, seen from outside, and what becomes of them where the kernel refuses something.

use crate::jail::{End, KILLED, ask, code, enter, fork, give_up};
use crate::{every_port, sys};
use netreeve_dataplane::handover::Level;
use netreeve_dataplane::sandbox::{Needs, Sockets, walls};
use std::fs;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::ptr::null;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

/// Locks a child in, started as `uid`, and calls `look` with its pid while it waits inside.
fn locked_in(uid: u32, level: Level, look: impl FnOnce(i32)) {
    let (mut ready, tell) = std::io::pipe().unwrap();
    let (wait, go) = std::io::pipe().unwrap();
    let child = fork(|| {
        if uid != 0 {
            assert_eq!(unsafe { libc::setresgid(uid, uid, uid) }, 0);
            assert_eq!(unsafe { libc::setresuid(uid, uid, uid) }, 0);
        }
        let walls = enter(level, &[tell.as_raw_fd(), wait.as_raw_fd()]);
        if let Err(e) = walls.seal(&every_port()) {
            give_up(&e.to_string());
        }
        let mut byte = [1_u8];
        sys!(libc::SYS_write, tell.as_raw_fd(), byte.as_ptr(), 1);
        sys!(libc::SYS_read, wait.as_raw_fd(), byte.as_mut_ptr(), 1);
        0
    });
    drop(tell);
    let mut byte = [0];
    ready.read_exact(&mut byte).expect("the child is not locked in");
    look(child.0);
    drop(go);
    assert_eq!(child.wait(), End::Code(0));
}

fn status(pid: i32, key: &str) -> String {
    let all = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = all.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).unwrap_or("none");
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn has_nothing(pid: i32) {
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(pid, set), "0000000000000000", "{set}");
    }
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "Seccomp"), "2");
    assert_eq!(status(pid, "Seccomp_filters"), "1");
    for ns in ["user", "mnt", "net", "ipc", "uts", "cgroup"] {
        let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{ns}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{ns}");
    }
    // No id is mapped, the root directory is empty and nothing else is mounted.
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/uid_map")).unwrap(), "");
    assert_eq!(fs::read_to_string(format!("/proc/{pid}/gid_map")).unwrap(), "");
    assert_eq!(fs::read_dir(format!("/proc/{pid}/root/")).unwrap().count(), 0);
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    let fields: Vec<_> = mounts.split_whitespace().collect();
    assert_eq!(fields[4], "/");
    assert!(fields[5].split(',').any(|o| o == "ro"), "{mounts}");
    let made = fs::write(format!("/proc/{pid}/root/x"), "").unwrap_err();
    assert_eq!(made.raw_os_error(), Some(libc::EROFS));
    // The network has a loopback, down, and nothing else.
    let net = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
    assert_eq!(net.lines().count(), 3, "{net}");
}

fn is_limited(pid: i32) {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    for what in [
        "Max core file size",
        "Max processes",
        "Max locked memory",
        "Max msgqueue size",
        "Max nice priority",
        "Max realtime priority",
    ] {
        let rest = limits.lines().find_map(|l| l.strip_prefix(what)).unwrap();
        assert_eq!(rest.split_whitespace().take(2).collect::<Vec<_>>(), ["0", "0"], "{what}");
    }
    // Nothing but what was kept, standard error, and /dev/null for the other two.
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    assert_eq!(fds, 5);
    for fd in 0..2 {
        assert_eq!(fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap().to_str(), Some("/dev/null"));
    }
}

#[test]
fn full_from_root() {
    locked_in(0, Level::Full, |pid| {
        has_nothing(pid);
        is_limited(pid);
        let own = (0x7000_0000 + pid as u32).to_string();
        assert_eq!(status(pid, "Uid"), [own.as_str(); 4].join(" "));
        assert_eq!(status(pid, "Gid"), [own.as_str(); 4].join(" "));
        assert_eq!(status(pid, "Groups"), "");
    });
}

#[test]
fn full_from_a_plain_user() {
    locked_in(4711, Level::Full, |pid| {
        has_nothing(pid);
        is_limited(pid);
        assert_eq!(status(pid, "Uid"), "4711 4711 4711 4711");
    });
}

/// A place where user namespaces are refused, as an administrator or a container would.
pub fn without_user_namespaces() {
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWUSER) }, 0);
    fs::write("/proc/sys/user/max_user_namespaces", "0").unwrap();
}

#[test]
fn without_user_namespaces_it_is_landlock() {
    let (end, said) = ask(|to, fd| {
        without_user_namespaces();
        let walls = enter(Level::Landlock, &[fd]);
        let _ = write!(to, "{:?} {}", walls.level(), walls.lacks().unwrap());
        let level = walls.seal(&every_port()).unwrap();
        let _ = write!(to, " {level:?}");
        // Nothing can be opened, by Landlock alone as well: see `escapes`.
        code(sys!(libc::SYS_openat, libc::AT_FDCWD, c"/etc/passwd".as_ptr(), 0))
    });
    assert_eq!(end, KILLED, "{said}");
    assert!(said.starts_with("Landlock sandbox: making a user namespace: ENOSPC"), "{said}");
    assert!(said.contains("sysctl -w user.max_user_namespaces"), "{said}");
    assert!(said.ends_with(" Landlock"), "{said}");
}

#[test]
fn below_the_level_asked_for_it_refuses() {
    let (end, said) = ask(|to, fd| {
        without_user_namespaces();
        match walls(&Needs {
            at_least: Level::Full,
            keep: &[fd],
            more_fds: 0,
            sockets: Sockets::None,
            binds: false,
            files: None,
        }) {
            Ok(_) => 1,
            Err(e) => {
                let _ = write!(to, "{e}");
                0
            }
        }
    });
    assert_eq!(end, End::Code(0));
    assert!(said.contains("making a user namespace") && said.contains("sysctl"), "{said}");
}

#[test]
fn in_a_chroot_it_is_landlock() {
    // The kernel refuses user namespaces to a process whose root is not its mount namespace's.
    let root = std::env::temp_dir().join(format!("nt-sandbox-{}", std::process::id()));
    fs::create_dir_all(&root).unwrap();
    let (end, said) = ask(|to, fd| {
        // A mount of its own, as the place for temporary files may be one without devices. It is gone with the child.
        let path = std::ffi::CString::new(root.to_str().unwrap()).unwrap();
        let private = libc::MS_REC | libc::MS_PRIVATE;
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
        assert_eq!(
            sys!(libc::SYS_mount, null::<u8>(), c"/".as_ptr(), null::<u8>(), private, null::<u8>()),
            0
        );
        assert_eq!(
            sys!(libc::SYS_mount, c"none".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), 0, null::<u8>()),
            0
        );
        std::os::unix::fs::chroot(&root).unwrap();
        fs::create_dir("/dev").unwrap();
        // c 1 3.
        assert_eq!(unsafe { libc::mknod(c"/dev/null".as_ptr(), libc::S_IFCHR | 0o666, 0x103) }, 0);
        let _ = write!(to, "{:?}", enter(Level::Landlock, &[fd]).level());
        0
    });
    fs::remove_dir(&root).unwrap();
    assert_eq!((end, said.as_str()), (End::Code(0), "Landlock"));
}

#[test]
fn a_process_with_threads_cannot_enter() {
    let (end, said) = ask(|to, fd| {
        std::thread::spawn(|| std::thread::sleep(Duration::from_secs(5)));
        match walls(&Needs {
            at_least: Level::Seccomp,
            keep: &[fd],
            more_fds: 0,
            sockets: Sockets::None,
            binds: false,
            files: None,
        }) {
            Ok(_) => 1,
            Err(e) => {
                let _ = write!(to, "{e}");
                0
            }
        }
    });
    assert_eq!(end, End::Code(0));
    assert!(said.contains("several threads"), "{said}");
}

#[test]
fn the_seal_closes_on_running_threads() {
    let run = |seal: bool| {
        fork(move || {
            let walls = enter(Level::Full, &[]);
            let meet = Arc::new(Barrier::new(2));
            let met = Arc::clone(&meet);
            let other = std::thread::spawn(move || {
                met.wait();
                met.wait();
                sys!(libc::SYS_getppid)
            });
            meet.wait();
            if seal {
                walls.seal(&every_port()).unwrap();
            }
            meet.wait();
            i32::from(other.join().is_err())
        })
        .wait()
    };
    assert_eq!(run(false), End::Code(0));
    assert_eq!(run(true), KILLED);
}

#[test]
fn descriptors_are_counted() {
    let (end, said) = ask(|to, fd| {
        let stray = fs::File::open("/dev/zero").unwrap();
        let most = fd.max(2) as usize + 1 + 8;
        let walls = walls(&Needs {
            at_least: Level::Full,
            keep: &[fd],
            more_fds: 8,
            sockets: Sockets::None,
            binds: false,
            files: None,
        })
        .unwrap();
        let gone = code(sys!(libc::SYS_fcntl, stray.as_raw_fd(), libc::F_GETFD));
        std::mem::forget(stray);
        let mut open = 4;
        while sys!(libc::SYS_dup, 0) >= 0 {
            open += 1;
        }
        let _ = write!(to, "{gone} {} {:?}", open - most as i32, walls.level());
        0
    });
    assert_eq!((end, said.as_str()), (End::Code(0), format!("{} 0 Full", libc::EBADF).as_str()));
}

#[test]
fn entry_takes_little() {
    let (end, said) = ask(|to, fd| {
        let mut times = Vec::new();
        for _ in 0..40 {
            let (_, said) = ask(|to, fd2| {
                let begin = Instant::now();
                let walls = enter(Level::Full, &[fd, fd2]);
                let half = begin.elapsed();
                let sealed = walls.seal(&every_port());
                let whole = begin.elapsed();
                let _ = write!(to, "{} {}", half.as_micros(), whole.as_micros());
                i32::from(sealed.is_err())
            });
            let both: Vec<u64> = said.split(' ').filter_map(|n| n.parse().ok()).collect();
            times.push((both[1], both[0]));
        }
        times.sort_unstable();
        let (least, middle) = (times[0], times[20]);
        let _ = write!(to, "{} {} {} {}", least.0, least.1, middle.0, middle.1);
        0
    });
    assert_eq!(end, End::Code(0));
    let us: Vec<u64> = said.split(' ').filter_map(|n| n.parse().ok()).collect();
    eprintln!("entry: least {} us (walls {}), median {} us (walls {})", us[0], us[1], us[2], us[3]);
    // The least is what entry costs; the median is also what else the machine has to do.
    assert!(us[0] < 50_000, "entering the sandbox takes {} us", us[0]);
}

#[test]
fn standard_error_cannot_be_read() {
    let (end, said) = ask(|to, fd| {
        let terminal = fs::OpenOptions::new().read(true).write(true).open("/dev/ptmx").unwrap();
        assert!(unsafe { libc::dup2(terminal.as_raw_fd(), 2) } == 2);
        let walls = enter(Level::Full, &[fd]);
        let mut byte = [0_u8];
        let read = code(sys!(libc::SYS_read, 2, byte.as_mut_ptr(), 1));
        let written = code(sys!(libc::SYS_write, 2, byte.as_ptr(), 1));
        let _ = write!(to, "{read} {written} {:?}", walls.level());
        std::mem::forget(terminal);
        0
    });
    assert_eq!((end, said.as_str()), (End::Code(0), format!("{} 0 Full", libc::EBADF).as_str()));
}
