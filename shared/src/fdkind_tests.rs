//! Attests everything that can be made without privilege; the rest is made when the tests run as root.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::*;

const ALL: [FdKind; 7] =
    [FdKind::Tap, FdKind::Xsk, FdKind::Umem, FdKind::Link, FdKind::L2tp, FdKind::Listener, FdKind::Udp];

/// `fd` attests as `kind` and as nothing else.
fn is_only(fd: &OwnedFd, kind: Option<FdKind>) {
    for k in ALL {
        assert_eq!(attest(fd.as_fd(), k).is_ok(), Some(k) == kind, "{k:?} of {kind:?}");
    }
}

fn memfd(size: i64, seals: SealFlag) -> OwnedFd {
    let fd = memfd_create(c"nt-test", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING).unwrap();
    nix::unistd::ftruncate(&fd, size).unwrap();
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals)).unwrap();
    fd
}

#[test]
fn ordinary_things_are_nothing_of_ours() {
    is_only(&File::open("/dev/null").unwrap().into(), None);
    is_only(&File::open("/proc/self/exe").unwrap().into(), None);
    is_only(&UnixStream::pair().unwrap().0.into(), None);
    is_only(&nix::unistd::pipe().unwrap().0, None);
    is_only(&nix::sys::epoll::Epoll::new(nix::sys::epoll::EpollCreateFlags::empty()).unwrap().0, None);
}

#[test]
fn a_umem_is_sealed_and_not_empty() {
    let all = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    is_only(&memfd(4096, all), Some(FdKind::Umem));
    is_only(&memfd(0, all), None);
    for missing in [SealFlag::F_SEAL_SHRINK, SealFlag::F_SEAL_GROW, SealFlag::F_SEAL_SEAL] {
        is_only(&memfd(4096, all & !missing), None);
    }
}

#[test]
fn a_tap_without_an_interface_is_none() {
    if let Ok(fd) = File::options().read(true).write(true).open("/dev/net/tun") {
        is_only(&fd.into(), None);
    }
}

#[test]
fn a_listener_listens_and_a_udp_socket_is_udp() {
    use std::net::{TcpListener, TcpStream, UdpSocket};
    for host in ["127.0.0.1:0", "[::1]:0"] {
        let listener = TcpListener::bind(host).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        is_only(&client.into(), None);
        is_only(&listener.into(), Some(FdKind::Listener));
        is_only(&UdpSocket::bind(host).unwrap().into(), Some(FdKind::Udp));
    }
    let path = std::env::temp_dir().join(format!("nt-fdkind-l-{}.sock", std::process::id()));
    is_only(&UnixListener::bind(&path).unwrap().into(), None);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn sockets_are_told_apart() {
    let (a, _b) = UnixStream::pair().unwrap();
    let stream = Socket { family: libc::AF_UNIX, kind: libc::SOCK_STREAM, listening: false };
    assert_eq!(socket(a.as_fd()).unwrap(), stream);
    let path = std::env::temp_dir().join(format!("nt-fdkind-{}.sock", std::process::id()));
    let door = UnixListener::bind(&path).unwrap();
    assert_eq!(socket(door.as_fd()).unwrap(), Socket { listening: true, ..stream });
    std::fs::remove_file(path).unwrap();
    let null = File::open("/dev/null").unwrap();
    assert_eq!(socket(null.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTSOCK));
}
