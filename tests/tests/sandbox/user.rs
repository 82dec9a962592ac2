//! The sandbox of a dataplane with a `user` network, which is wider: what it can do, and the doors beside those that are
//! open, tried as code in the real thing.

use crate::jail::{End, KILLED, ask, code, give_up};
use crate::sys;
use libc::{c_int, c_long};
use netreeve_dataplane::engine;
use netreeve_dataplane::handover::Level;
use netreeve_dataplane::port::user::{CALLS, FILES, RESTRICTED};
use netreeve_dataplane::port::vhost_user;
use netreeve_dataplane::sandbox::call::Call;
use netreeve_dataplane::sandbox::{Needs, Sockets, Walls, walls};
use netreeve_dataplane::sys::beneath::open_beneath;
use netreeve_dataplane::sys::sock::{self, Opt, Speaks};
use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

const FLAGS: c_int = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;

/// A try: its name, what it is, and what the walls alone answer (none: they need not).
type Try = (&'static str, fn(RawFd) -> c_long, &'static [c_int]);

fn enter(keep: &[RawFd], sockets: Sockets<'_>, files: Option<BorrowedFd<'_>>) -> Walls {
    match walls(&Needs { at_least: Level::Full, keep, more_fds: 64, sockets, binds: false, files }) {
        Ok(w) => w,
        Err(e) => give_up(&e.to_string()),
    }
}

/// What became of each try: in a process of its own, with the filter or without.
fn tried(
    seal: Option<&[&'static [Call]]>,
    sockets: Sockets<'_>,
    dir: Option<&File>,
    tries: &[Try],
) -> Vec<End> {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let (end, said) = ask(|to, fd| {
        let mut keep = vec![fd, tcp.as_raw_fd()];
        keep.extend(dir.map(AsRawFd::as_raw_fd));
        let walls = enter(&keep, sockets, dir.map(AsFd::as_fd));
        for (_, attempt, _) in tries {
            let walls = walls.clone();
            let end = crate::jail::fork(|| {
                if let Some(calls) = seal
                    && let Err(e) = walls.seal(calls)
                {
                    give_up(&e.to_string());
                }
                code(attempt(dir.map_or(tcp.as_raw_fd(), AsRawFd::as_raw_fd)))
            });
            let _ = match end.wait() {
                End::Signal(n) => writeln!(to, "-{n}"),
                End::Code(n) => writeln!(to, "{n}"),
            };
        }
        0
    });
    assert_eq!(end, End::Code(0), "{said}");
    let ends = said.lines().map(|l| l.parse::<i32>().unwrap());
    ends.map(|n| if n < 0 { End::Signal(-n) } else { End::Code(n) }).collect()
}

fn socket(family: c_int, kind: c_int, protocol: c_int) -> c_long {
    sys!(libc::SYS_socket, family, kind, protocol)
}

fn tcp() -> c_long {
    socket(libc::AF_INET, libc::SOCK_STREAM | FLAGS, 0)
}

/// `struct sockaddr_in` of the loopback.
fn loopback() -> libc::sockaddr_in {
    let mut a: libc::sockaddr_in = unsafe { std::mem::zeroed() };
    a.sin_family = libc::AF_INET as u16;
    a.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
    a
}

fn set(level: c_int, option: c_int) -> c_long {
    let (fd, one) = (tcp(), [1u32; 16]);
    sys!(libc::SYS_setsockopt, fd, level, option, one.as_ptr(), 4)
}

fn open(path: &std::ffi::CStr, flags: c_int) -> c_long {
    sys!(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0)
}

/// `openat2` beneath a directory, without any of the restraint that our own code shows.
fn openat2(dir: RawFd, path: &std::ffi::CStr, flags: c_int) -> c_long {
    let how = [u64::from(flags.cast_unsigned()), 0, 0];
    sys!(libc::SYS_openat2, dir, path.as_ptr(), how.as_ptr(), 24)
}

/// `sendmsg` that opens a stream, which Landlock does not look at; of a socket that is there, or another.
fn opens(fd: c_long) -> c_long {
    let (mut at, mut m): (_, libc::msghdr) = (loopback(), unsafe { std::mem::zeroed() });
    at.sin_port = 9u16.to_be();
    (m.msg_name, m.msg_namelen) = ((&raw mut at).cast(), 16);
    sys!(libc::SYS_sendmsg, fd, &raw const m, libc::MSG_FASTOPEN | libc::MSG_NOSIGNAL)
}

/// Beside the open doors.
const BESIDE: &[Try] = &[
    ("a UNIX socket", |_| socket(libc::AF_UNIX, libc::SOCK_STREAM | FLAGS, 0), &[]),
    ("a netlink socket", |_| socket(libc::AF_NETLINK, libc::SOCK_RAW | FLAGS, 0), &[]),
    ("a packet socket", |_| socket(libc::AF_PACKET, libc::SOCK_RAW | FLAGS, 3), &[libc::EPERM]),
    ("a raw socket", |_| socket(libc::AF_INET, libc::SOCK_RAW | FLAGS, 1), &[libc::EPERM]),
    ("a VSOCK", |_| socket(libc::AF_VSOCK, libc::SOCK_STREAM | FLAGS, 0), &[]),
    ("MPTCP", |_| socket(libc::AF_INET, libc::SOCK_STREAM | FLAGS, 262), &[]),
    ("a blocking socket", |_| socket(libc::AF_INET, libc::SOCK_STREAM, 0), &[]),
    (
        "bind of TCP",
        |_| {
            let (fd, at) = (tcp(), loopback());
            sys!(libc::SYS_bind, fd, &raw const at, 16)
        },
        &[libc::EACCES],
    ),
    ("sendmsg opens a stream", |_| opens(tcp()), &[]),
    ("listen", |_| sys!(libc::SYS_listen, tcp(), 1), &[]),
    ("SO_BINDTODEVICE", |_| set(libc::SOL_SOCKET, libc::SO_BINDTODEVICE), &[]),
    ("SO_ATTACH_FILTER", |_| set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER), &[]),
    ("SO_MARK", |_| set(libc::SOL_SOCKET, libc::SO_MARK), &[libc::EPERM]),
    ("TCP_REPAIR", |_| set(libc::IPPROTO_TCP, 19), &[libc::EPERM]),
    ("TCP_ULP", |_| set(libc::IPPROTO_TCP, 31), &[]),
    ("IP_TRANSPARENT", |_| set(libc::IPPROTO_IP, libc::IP_TRANSPARENT), &[libc::EPERM]),
    ("SIOCGIFCONF", |_| sys!(libc::SYS_ioctl, tcp(), 0x8912, 0), &[]),
    ("openat", |_| open(c"/etc/passwd", libc::O_RDONLY), &[libc::ENOENT, libc::EACCES]),
    ("openat2", |_| openat2(libc::AT_FDCWD, c"/etc/passwd", libc::O_RDONLY), &[libc::ENOENT, libc::EACCES]),
    ("kill of its parent", |_| sys!(libc::SYS_kill, libc::getppid(), 0), &[]),
    ("execve", |_| sys!(libc::SYS_execve, c"/bin/true".as_ptr(), 0, 0), &[libc::ENOENT, libc::EACCES]),
];

#[test]
fn a_user_network_makes_its_sockets_and_no_others() {
    let doors: &[Try] = &[
        ("TCP", |_| tcp(), &[]),
        ("UDP, IPv6", |_| socket(libc::AF_INET6, libc::SOCK_DGRAM | FLAGS, 0), &[]),
    ];
    let calls = [engine::CALLS, vhost_user::CALLS, CALLS];
    assert_eq!(tried(Some(&calls), Sockets::Any, None, doors), [End::Code(0), End::Code(0)]);
    let ends = tried(Some(&calls), Sockets::Any, None, BESIDE);
    let free: Vec<_> =
        BESIDE.iter().zip(&ends).filter(|(_, end)| **end != KILLED).map(|(t, e)| (t.0, e)).collect();
    assert!(free.is_empty(), "not killed: {free:?}");
    // And where there is a second wall, it holds alone.
    let walled: Vec<Try> = BESIDE.iter().filter(|t| !t.2.is_empty()).copied().collect();
    let ends = tried(None, Sockets::Any, None, &walled);
    let held = |t: &Try, end: &End| matches!(end, End::Code(n) if t.2.contains(n));
    let free: Vec<_> = walled.iter().zip(&ends).filter(|(t, e)| !held(t, e)).map(|(t, e)| (t.0, e)).collect();
    assert!(free.is_empty(), "not refused: {free:?}");
}

#[test]
fn what_it_makes_reaches_the_network_that_it_was_started_in() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let (to_tcp, to_udp) = (tcp.local_addr().unwrap(), udp.local_addr().unwrap());
    let (end, said) = ask(|to, fd| {
        // The number of the supervisor's channel, which nothing may close.
        assert_eq!(unsafe { libc::dup2(fd, 3) }, 3);
        let sealed = enter(&[fd, 3], Sockets::Any, None).seal(&[engine::CALLS, vhost_user::CALLS, CALLS]);
        let reach = || -> std::io::Result<()> {
            let s = sock::new(Speaks::Tcp, false)?;
            sock::set(s.as_fd(), Opt::NoDelay, 1)?;
            sock::connect(s.as_fd(), to_tcp)?;
            let s = sock::new(Speaks::Udp, false)?;
            sock::connect(s.as_fd(), to_udp)?;
            sock::write_to(s.as_fd(), &[b"here"], None).map(|_| ())
        };
        let _ = write!(to, "{sealed:?} {:?}", reach());
        0
    });
    assert_eq!((end, said.as_str()), (End::Code(0), "Ok(Full) Ok(())"));
    assert!(tcp.accept().is_ok());
    let mut got = [0; 8];
    assert_eq!(udp.recv(&mut got).unwrap(), 4);
}

/// Landlock's part where the policy names ports: by TCP to those and to no others, whatever our own code says.
#[test]
fn where_ports_are_named_it_connects_to_no_others() {
    let [named, other] = [0; 2].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let [named, other] = [&named, &other].map(|l| l.local_addr().unwrap());
    let (end, said) = ask(|to, fd| {
        assert_eq!(unsafe { libc::dup2(fd, 3) }, 3);
        let ports = [1, named.port()];
        let sealed =
            enter(&[fd, 3], Sockets::To(&ports), None).seal(&[engine::CALLS, vhost_user::CALLS, CALLS]);
        let reach = |speaks, at| {
            let s = sock::new(speaks, false).unwrap();
            sock::connect(s.as_fd(), at).map_err(|e| e.raw_os_error())
        };
        let tcp = (reach(Speaks::Tcp, named).is_ok(), reach(Speaks::Tcp, other));
        let _ = write!(to, "{sealed:?} {tcp:?} {:?}", reach(Speaks::Udp, other));
        0
    });
    let denied = format!("Ok(Full) (true, Err(Some({}))) Ok(true)", libc::EACCES);
    assert_eq!((end, said), (End::Code(0), denied));
}

#[test]
fn a_restricted_one_has_no_socket_and_no_network() {
    let tries: &[Try] = &[
        ("TCP", |_| tcp(), &[]),
        ("UDP", |_| socket(libc::AF_INET, libc::SOCK_DGRAM | FLAGS, 0), &[]),
        (
            "connect",
            |listener| {
                let at = loopback();
                sys!(libc::SYS_connect, listener, &raw const at, 16)
            },
            &[],
        ),
        // Of any number but that of the supervisor's channel, which the listener may have here.
        ("sendmsg opens a stream", |_| opens(9), &[]),
    ];
    let ends = tried(Some(&[engine::CALLS, vhost_user::CALLS, RESTRICTED]), Sockets::None, None, tries);
    assert_eq!(ends, [KILLED; 4]);
    let nowhere: &[Try] = &[(
        "connect UDP",
        |_| {
            let mut at = loopback();
            at.sin_port = 53u16.to_be();
            let fd = socket(libc::AF_INET, libc::SOCK_DGRAM | FLAGS, 0);
            sys!(libc::SYS_connect, fd, &raw const at, 16)
        },
        &[],
    )];
    let ends = tried(None, Sockets::None, None, nowhere);
    assert!(matches!(ends[..], [End::Code(libc::ENETUNREACH | libc::EACCES)]), "{ends:?}");
}

#[test]
fn files_are_read_beneath_their_directory_and_nowhere_else() {
    let place = std::env::temp_dir().join(format!("nt-sandbox-tftp-{}", std::process::id()));
    std::fs::create_dir_all(place.join("served")).unwrap();
    std::fs::write(place.join("secret"), "x").unwrap();
    std::fs::write(place.join("served/boot"), "x").unwrap();
    std::os::unix::fs::symlink("../secret", place.join("served/link")).unwrap();
    let dir = File::open(place.join("served")).unwrap();
    let tries: &[Try] = &[
        ("a file", |dir| openat2(dir, c"boot", libc::O_RDONLY), &[0]),
        ("one above", |dir| openat2(dir, c"../secret", libc::O_RDONLY), &[libc::EACCES]),
        ("by a link", |dir| openat2(dir, c"link", libc::O_RDONLY), &[libc::EACCES]),
        ("to be written", |dir| openat2(dir, c"boot", libc::O_WRONLY), &[libc::EACCES]),
        (
            "a new one",
            |dir| openat2(dir, c"new", libc::O_WRONLY | libc::O_CREAT),
            &[libc::EACCES, libc::EINVAL],
        ),
        (
            "the directory itself",
            |dir| openat2(dir, c".", libc::O_RDONLY | libc::O_DIRECTORY),
            &[libc::EACCES],
        ),
        (
            "our own way, by a link",
            |dir| match open_beneath(unsafe { BorrowedFd::borrow_raw(dir) }, c"link") {
                Ok(_) => 0,
                Err(e) => {
                    unsafe { *libc::__errno_location() = e.raw_os_error().unwrap_or(0) };
                    -1
                }
            },
            &[libc::EXDEV],
        ),
    ];
    let calls = [engine::CALLS, vhost_user::CALLS, CALLS, FILES];
    for sockets in [Sockets::Any, Sockets::None] {
        let calls: &[&[Call]] =
            if sockets == Sockets::Any { &calls } else { &[calls[0], calls[1], RESTRICTED, FILES] };
        let ends = tried(Some(calls), sockets, Some(&dir), tries);
        let wrong: Vec<_> = tries
            .iter()
            .zip(&ends)
            .filter(|(t, e)| !matches!(e, End::Code(n) if t.2.contains(n)))
            .map(|(t, e)| (t.0, e))
            .collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }
    std::fs::remove_dir_all(&place).unwrap();
}
