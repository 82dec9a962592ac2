//! Datagrams over IPv6 and by abstract names, and QEMU as a TCP client that dials again.

use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use crate::support::{Dir, PATIENCE, Qemu, Reeve, SIZES, Vm, exchange, frame};

const LENS: [usize; 6] = [1, 10, 60, 1514, 9000, 65000];

/// Frames of all sizes both ways, and some in order.
fn both_ways(vm: &mut Vm, send: impl Fn(&[u8]), recv: impl Fn(&mut [u8]) -> usize) {
    let mut got = vec![0; 70_000];
    for (n, len) in (0..).zip(LENS) {
        let there = frame(len, n);
        send(&there);
        assert!(vm.recv() == there, "{len} bytes to the VM");
        let back = frame(len, n + 100);
        vm.send(&back);
        let n = recv(&mut got);
        assert!(got[..n] == back, "{len} bytes from the VM");
    }
    for some in 0..20 {
        (0..5).for_each(|n| send(&frame(200, some * 5 + n)));
        (0..5).for_each(|n| assert!(vm.recv() == frame(200, some * 5 + n), "in order"));
    }
}

#[test]
fn udp_over_ipv6() {
    let dir = Dir::new();
    let peer = UdpSocket::bind("[::1]:0").unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let ours = UdpSocket::bind("[::1]:0").unwrap().local_addr().unwrap();
    let netdev = format!(
        "dgram,id=n0,strict=on,local.type=inet,local.host=::1,local.port={},remote.type=inet,remote.host=::1,remote.port={}",
        ours.port(),
        peer.local_addr().unwrap().port()
    );
    let reeve = Reeve::run(&dir, &netdev, &[]);
    let mut vm = reeve.vm();
    let stranger = UdpSocket::bind("[::1]:0").unwrap();
    stranger.send_to(&frame(60, 7777), ours).unwrap();
    both_ways(&mut vm, |f| assert!(peer.send_to(f, ours).is_ok()), |got| peer.recv(got).unwrap());
    drop(vm);
    let said = reeve.end();
    assert!(said.contains("\"source\":1"), "a stranger's frame is counted: {said}");
}

#[test]
fn datagrams_by_abstract_names() {
    let dir = Dir::new();
    for tight in ["on", "off"] {
        let names = ["near", "far"].map(|n| dir.at(n));
        let address = |name: &String| {
            let mut bytes = name.clone().into_bytes();
            if tight == "off" {
                bytes.resize(107, 0);
            }
            SocketAddr::from_abstract_name(bytes).unwrap()
        };
        let [ours, theirs] = &names;
        let peer = UnixDatagram::bind_addr(&address(theirs)).unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let end = |which: &str, name: &str| {
            format!("{which}.type=unix,{which}.path={name},{which}.abstract=on,{which}.tight={tight}")
        };
        let netdev = format!("dgram,id=n0,{},{}", end("local", ours), end("remote", theirs));
        let reeve = Reeve::run(&dir, &netdev, &[]);
        let mut vm = reeve.vm();
        let ours = address(ours);
        both_ways(&mut vm, |f| assert!(peer.send_to_addr(f, &ours).is_ok()), |got| peer.recv(got).unwrap());
        drop(vm);
        reeve.end();
    }
}

#[test]
fn qemu_dials_again_over_tcp() {
    let dir = Dir::new();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let addr = format!("addr.type=inet,addr.host=127.0.0.1,addr.port={port}");
    let ours = format!("stream,id=n0,server=on,{addr}");
    let mut reeve = Reeve::run(&dir, &ours, &[]);
    let qemu = Qemu::run(&dir, &format!("stream,{addr},reconnect-ms=20"));
    for _ in 0..2 {
        exchange(&qemu, &mut reeve.vm(), &SIZES);
        reeve.end();
        reeve = Reeve::run(&dir, &ours, &[]);
    }
    exchange(&qemu, &mut reeve.vm(), &SIZES);
}
