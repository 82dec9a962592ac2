use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::fd::AsFd;

use super::*;
use crate::mem::Buf;

#[test]
fn addresses_go_to_the_kernel_and_back() {
    for text in ["127.0.0.1:80", "[fe80::1]:65535", "[2001:db8::2]:1"] {
        let a: SocketAddr = text.parse().unwrap();
        assert_eq!(Name::of(a).get(), Some(a));
    }
    let mapped: SocketAddr = "[::ffff:10.0.0.1]:7".parse().unwrap();
    assert_eq!(Name::of(mapped).get(), Some("10.0.0.1:7".parse().unwrap()));
    assert_eq!(Name::room().get(), None);
}

#[test]
fn a_stream_is_peeked_and_discarded() {
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let s = new(Speaks::Tcp, false).unwrap();
    let _ = connect(s.as_fd(), l.local_addr().unwrap()).unwrap();
    let (mut far, _) = l.accept().unwrap();
    assert!(error(s.as_fd()).unwrap().is_none());
    std::io::Write::write_all(&mut far, b"abcdefgh").unwrap();
    let m = Buf::new(64).unwrap();
    let look = |n| {
        for _ in 0..1000 {
            match peek(s.as_fd(), &[m.seg(0, n)]) {
                Err(e) if e.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
                other => return other,
            }
        }
        Err(ErrorKind::TimedOut.into())
    };
    assert_eq!(look(4).unwrap(), 4);
    assert_eq!(unread(s.as_fd()).unwrap(), 8);
    assert_eq!(discard(s.as_fd(), 5).unwrap(), 5);
    assert_eq!(read(s.as_fd(), &[m.seg(0, 2), m.seg(2, 8)]).unwrap(), 3);
    let mut got = [0; 3];
    m.seg(0, 3).copy_out(&mut got);
    assert_eq!(&got, b"fgh");
    reset_on_close(s.as_fd()).unwrap();
    drop(s);
    let e = std::io::Read::read(&mut far, &mut [0; 1]).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn the_network_says_that_nobody_listens() {
    let gone = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let s = new(Speaks::Udp, false).unwrap();
    set(s.as_fd(), Opt::RecvErr, 1).unwrap();
    assert!(connect(s.as_fd(), gone).unwrap());
    assert_eq!(write_to(s.as_fd(), &[b"who ", b"there"], None).unwrap(), 9);
    let mut sent = [0; 64];
    let (said_of, n) = (0..1000).find_map(|_| said(s.as_fd(), &mut sent).unwrap()).unwrap();
    assert_eq!(&sent[..n], b"who there");
    assert_eq!((said_of.errno, said_of.origin, said_of.kind, said_of.code), (libc::ECONNREFUSED, 2, 3, 3));
    assert_eq!(said_of.by, Some(Ipv4Addr::LOCALHOST.into()));
}

#[test]
fn nobody_is_connected_to_himself() {
    for (speaks, host) in
        [(Speaks::Tcp, "127.0.0.1"), (Speaks::Udp, "127.0.0.1"), (Speaks::Tcp, "::1"), (Speaks::Udp, "::1")]
    {
        let host: IpAddr = host.parse().unwrap();
        let one = new(speaks, host.is_ipv6()).unwrap();
        bind(one.as_fd(), host).unwrap();
        let at = local(one.as_fd()).unwrap();
        assert_eq!(call(one.as_fd(), at).unwrap_err().raw_os_error(), Some(libc::ECONNREFUSED), "{at}");
        let other = std::net::UdpSocket::bind((host, 0)).unwrap().local_addr().unwrap();
        if speaks == Speaks::Udp {
            assert!(call(new(speaks, host.is_ipv6()).unwrap().as_fd(), other).unwrap());
        }
    }
}
