//! Sockets of L2TPv3 sessions and at low ports, used from outside and by their holder.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use netreeve_helper::provide::{Provider, Quota};
use netreeve_shared::fdkind;
use netreeve_shared::grant::Grant;
use netreeve_shared::l2tp::PROTOCOL;
use netreeve_shared::refusal::{Refusal, Step};
use netreeve_shared::request::{L2tpRequest, ListenRequest, Request};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockaddrStorage, accept, bind, recv, send, sendto};

use crate::support::*;

/// Bytes of an IPv4 header without options.
const IP: usize = 20;

fn one(provider: &mut Provider, request: Request) -> Result<OwnedFd, Refusal> {
    request.check().unwrap();
    let (grant, mut fds) = provider.provide(&request, UID, &LIMITS)?;
    assert!(grant.answers(&request) && fds.len() == 1);
    let kind = grant.fds()[0];
    fdkind::attest(fds[0].as_fd(), kind).unwrap();
    Ok(fds.remove(0))
}

fn tunnel(src: &str, dst: &str, session: u32) -> Request {
    Request::L2tp(L2tpRequest { src: src.parse().unwrap(), dst: dst.parse().unwrap(), session })
}

fn listen(udp: bool, address: &str, port: u16) -> Request {
    Request::Listen(ListenRequest { udp, address: address.parse().unwrap(), port })
}

/// A raw socket of our own, as root in the namespace has it.
fn stranger(from: &str) -> OwnedFd {
    let from: IpAddr = from.parse().unwrap();
    let family = if from.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: no pointers.
    let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, PROTOCOL) };
    assert!(fd >= 0);
    // SAFETY: just made.
    let fd = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0))).unwrap();
    fd
}

fn say(fd: &OwnedFd, to: &str, bytes: &[u8]) {
    let to = SockaddrStorage::from(SocketAddr::new(to.parse().unwrap(), 0));
    assert_eq!(sendto(fd.as_raw_fd(), bytes, &to, MsgFlags::empty()).unwrap(), bytes.len());
}

/// What comes, until one that ends with `last`. The kernel delivers on this machine in order.
fn heard(fd: &OwnedFd, last: &[u8]) -> Vec<Vec<u8>> {
    let (until, mut all, mut buffer) = (Instant::now() + Duration::from_secs(5), Vec::new(), [0; 200]);
    loop {
        match recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(n) => all.push(buffer[..n].to_vec()),
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
        if all.last().is_some_and(|l| l.ends_with(last)) {
            return all;
        }
        assert!(Instant::now() < until, "{last:?} did not come, but {all:?}");
    }
}

#[test]
fn a_sessions_socket_hears_its_session_of_its_peer_and_nothing_else() {
    namespace();
    for (us, peer, third, header) in
        [("127.0.0.1", "127.0.0.2", "127.0.0.3", IP), ("fd00::1", "fd00::2", "fd00::3", 0)]
    {
        if us.contains(':') {
            for a in [us, peer, third] {
                ip(&format!("addr add {a}/64 dev lo nodad"));
            }
        }
        let mut provider = Provider::default();
        let ours = one(&mut provider, tunnel(us, peer, 7)).unwrap();
        let (far, other) = (stranger(peer), stranger(third));
        say(&far, us, &[0, 0, 0, 8, b'x']);
        say(&far, us, &[0, 0, 0, 0, b'x']);
        say(&far, us, &[0, 0, 0]);
        say(&other, us, &[0, 0, 0, 7, b'x']);
        say(&far, us, &[0, 0, 0, 7, b'y']);
        let all = heard(&ours, b"y");
        assert_eq!(all.len(), 1, "{us}: {all:?}");
        assert_eq!(&all[0][header..], [0, 0, 0, 7, b'y']);
        // And it speaks to its peer, without an address.
        assert_eq!(send(ours.as_raw_fd(), &[0, 0, 0, 9, b'z'], MsgFlags::empty()).unwrap(), 5);
        assert_eq!(&heard(&far, b"z")[0][header..], [0, 0, 0, 9, b'z']);
        // Its holder can neither take the filter off nor put another there.
        let filter = libc::sock_filter { code: 6, jt: 0, jf: 0, k: u32::MAX };
        let program = libc::sock_fprog { len: 1, filter: (&raw const filter).cast_mut() };
        let unlocked = 0_i32;
        let (program, unlocked) = ((&raw const program).cast(), (&raw const unlocked).cast());
        for (name, at, size) in [
            (libc::SO_DETACH_FILTER, unlocked, 4),
            (libc::SO_LOCK_FILTER, unlocked, 4),
            (libc::SO_ATTACH_FILTER, program, size_of::<libc::sock_fprog>()),
        ] {
            let size = libc::socklen_t::try_from(size).unwrap();
            // SAFETY: an int, or a program of one instruction; both outlive the call.
            let done = unsafe { libc::setsockopt(ours.as_raw_fd(), libc::SOL_SOCKET, name, at, size) };
            assert_eq!(Errno::result(done), Err(Errno::EPERM), "{name}");
        }
    }
}

#[test]
fn where_there_is_no_such_address_or_way_there_is_no_socket() {
    namespace();
    let mut provider = Provider::default();
    for (request, errno) in [
        (tunnel("192.0.2.1", "127.0.0.1", 1), libc::EADDRNOTAVAIL),
        (tunnel("fd00::1", "::1", 1), libc::EADDRNOTAVAIL),
        (listen(false, "192.0.2.1", 80), libc::EADDRNOTAVAIL),
        (listen(true, "fd00::1", 80), libc::EADDRNOTAVAIL),
    ] {
        let refused = Refusal::Failed { step: Step::BindAddress, errno };
        assert_eq!(one(&mut provider, request.clone()).unwrap_err(), refused, "{request:?}");
    }
    let Err(Refusal::Failed { step, .. }) = one(&mut provider, tunnel("127.0.0.1", "192.0.2.1", 1)) else {
        panic!("there is no way to 192.0.2.1");
    };
    assert_eq!(step, Step::BindAddress);
    assert_eq!(provider.umem_bytes(), 0, "what failed counts for nothing");
}

#[test]
fn listeners_serve_both_protocols_and_families_at_low_ports() {
    namespace();
    let mut provider = Provider::default();
    for (address, port) in [("127.0.0.1", 53), ("::1", 53), ("0.0.0.0", 80), ("::", 80)] {
        let ip: IpAddr = address.parse().unwrap();
        let lo: IpAddr =
            if ip.is_ipv6() { std::net::Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
        let at = SocketAddr::new(lo, port);
        let tcp = one(&mut provider, listen(false, address, port)).unwrap();
        let client = TcpStream::connect(at).unwrap();
        // SAFETY: just accepted.
        let served: TcpStream =
            unsafe { <TcpStream as std::os::fd::FromRawFd>::from_raw_fd(accept(tcp.as_raw_fd()).unwrap()) };
        assert_eq!(served.peer_addr().unwrap(), client.local_addr().unwrap());
        let udp = UdpSocket::from(one(&mut provider, listen(true, address, port)).unwrap());
        let client = UdpSocket::bind(SocketAddr::new(lo, 0)).unwrap();
        client.send_to(b"hello", at).unwrap();
        assert_eq!(heard(&OwnedFd::from(udp.try_clone().unwrap()), b"hello").len(), 1);
        udp.send_to(b"back", client.local_addr().unwrap()).unwrap();
        assert_eq!(client.recv(&mut [0; 9]).unwrap(), 4);
        // Taken is taken.
        for udp in [false, true] {
            assert_eq!(one(&mut provider, listen(udp, address, port)).unwrap_err(), Refusal::Busy);
        }
    }
}

#[test]
fn a_session_is_granted_as_many_sockets_as_its_quota_holds() {
    namespace();
    let quota = Quota { umem: 2 << 20, ..LIMITS };
    let mut provider = Provider::default();
    let mut ask = |request: &Request| provider.provide(request, UID, &quota).map(|(grant, _)| grant);
    assert!(matches!(ask(&tunnel("127.0.0.1", "127.0.0.2", 1)), Ok(Grant::L2tp(_))));
    assert!(matches!(ask(&listen(false, "127.0.0.1", 25)), Ok(Grant::Listen(_))));
    assert_eq!(ask(&listen(false, "127.0.0.1", 26)), Err(Refusal::Limit));
    assert_eq!(ask(&tunnel("127.0.0.1", "127.0.0.2", 1)), Err(Refusal::Limit));
    assert_eq!(provider.umem_bytes(), 2 << 20);
    // A port that was refused for the quota is free.
    assert!(std::net::TcpListener::bind("127.0.0.1:26").is_ok());
}
