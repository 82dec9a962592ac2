//! Netdevs of socket kinds that come to a running `netreeve`, carry frames beneath a device that does not notice, and go;
//! and QEMU's events of connections.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::time::Duration;

use netreeve_tests::inspect;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Dir, PATIENCE, Qemu, Vm, frame, greeting, until};
use crate::vde::{Switch, broadcast};
use crate::wire::Wire;

/// A UDP port that nobody has at the moment.
fn udp() -> (UdpSocket, u16) {
    let s = UdpSocket::bind("127.0.0.1:0").unwrap();
    s.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = s.local_addr().unwrap().port();
    (s, port)
}

fn free_udp() -> u16 {
    udp().1
}

fn free_tcp() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Adds a netdev, puts it beneath the device, has frames go both ways, and takes it away again.
fn pass(
    wire: &mut Wire,
    options: &str,
    begin: impl FnOnce() -> (Box<dyn FnMut(&[u8])>, Box<dyn FnMut() -> Vec<u8>>),
) {
    wire.done("netdev_add", options);
    wire.done("netreeve-set-netdev", r#"{"device":"vm","netdev":"x0"}"#);
    let (mut send, mut recv) = begin();
    until(&format!("{options}: a frame to the VM"), || {
        send(&greeting());
        wire.vm.greeted(Duration::from_millis(20))
    });
    for (n, len) in (0..).zip([60, 64, 342, 1514].iter().cycle().take(60)) {
        send(&frame(*len, n));
        assert!(wire.vm.recv() == frame(*len, n), "{options}: {len} bytes to the VM");
        wire.vm.send(&frame(*len, n + 100));
        assert!(recv() == frame(*len, n + 100), "{options}: {len} bytes from the VM");
    }
    wire.done("netreeve-set-netdev", r#"{"device":"vm","netdev":"n0"}"#);
    wire.net.send(&frame(99, 1));
    assert_eq!(wire.vm.recv(), frame(99, 1), "{options}: the first netdev is back");
    wire.done("netdev_del", r#"{"id":"x0"}"#);
    let ports = wire.ports();
    assert!(!ports.contains("\"x0\""), "{ports}");
}

#[test]
fn netdevs_of_every_socket_kind_come_and_go() {
    let dir = Dir::new();
    let mut wire = Wire::new(&dir, &[]);
    // dgram: UNIX and UDP.
    let (ours, theirs) = (dir.at("dl"), dir.at("dr"));
    let peer = UnixDatagram::bind(&theirs).unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    let options = format!(
        r#"{{"type":"dgram","id":"x0","local":{{"type":"unix","path":"{ours}"}},"remote":{{"type":"unix","path":"{theirs}"}}}}"#
    );
    pass(&mut wire, &options, || {
        let from = peer.try_clone().unwrap();
        (
            Box::new(move |f| assert_eq!(peer.send_to(f, &ours).unwrap(), f.len())),
            Box::new(move || datagram(|b| from.recv(b).unwrap())),
        )
    });
    let ((peer, there), here) = (udp(), free_udp());
    let options = format!(
        r#"{{"type":"dgram","id":"x0","local":{{"type":"inet","host":"127.0.0.1","port":"{here}"}},"remote":{{"type":"inet","host":"127.0.0.1","port":"{there}"}}}}"#
    );
    pass(&mut wire, &options, || udp_peer(peer, here, Vec::new()));
    // The older words, of datagrams and of a stream.
    let ((peer, there), here) = (udp(), free_udp());
    let options =
        format!(r#"{{"type":"socket","id":"x0","udp":"127.0.0.1:{there}","localaddr":"127.0.0.1:{here}"}}"#);
    pass(&mut wire, &options, || udp_peer(peer, here, Vec::new()));
    let here = free_tcp();
    let options = format!(r#"{{"type":"socket","id":"x0","listen":"127.0.0.1:{here}"}}"#);
    pass(&mut wire, &options, || tcp_peer(TcpStream::connect(("127.0.0.1", here)).unwrap()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = listener.local_addr().unwrap().port();
    let options = format!(r#"{{"type":"socket","id":"x0","connect":"127.0.0.1:{there}"}}"#);
    pass(&mut wire, &options, || tcp_peer(listener.accept().unwrap().0));
    // L2TPv3 over UDP: version, session and a cookie.
    let ((peer, there), here) = (udp(), free_udp());
    let options = format!(
        r#"{{"type":"l2tpv3","id":"x0","src":"127.0.0.1","dst":"127.0.0.1","udp":true,"srcport":"{here}","dstport":"{there}","txsession":7,"rxsession":7,"txcookie":9,"rxcookie":9}}"#
    );
    pass(&mut wire, &options, || udp_peer(peer, here, vec![0, 3, 0, 0, 0, 0, 0, 7, 0, 0, 0, 9]));
    drop(wire);
}

#[test]
fn a_vde_netdev_comes_and_goes() {
    let dir = Dir::new();
    let mut wire = Wire::new(&dir, &[]);
    let _switch = Switch::run(&dir);
    let qemu = Qemu::run(&dir, &format!("vde,sock={}", dir.at("sw")));
    for _ in 0..2 {
        wire.done("netdev_add", &format!(r#"{{"type":"vde","id":"x0","sock":"{}"}}"#, dir.at("sw")));
        wire.done("netreeve-set-netdev", r#"{"device":"vm","netdev":"x0"}"#);
        qemu.settle(&mut wire.vm);
        for n in 0..20 {
            qemu.send(&broadcast(300, n, 1));
            assert!(wire.vm.recv() == broadcast(300, n, 1));
            wire.vm.send(&broadcast(300, n, 2));
            assert!(qemu.recv() == broadcast(300, n, 2));
        }
        wire.done("netreeve-set-netdev", r#"{"device":"vm","netdev":"n0"}"#);
        wire.done("netdev_del", r#"{"id":"x0"}"#);
    }
}

fn datagram(mut recv: impl FnMut(&mut [u8]) -> usize) -> Vec<u8> {
    let mut got = vec![0; 70_000];
    let n = recv(&mut got);
    got.truncate(n);
    got
}

type Ends = (Box<dyn FnMut(&[u8])>, Box<dyn FnMut() -> Vec<u8>>);

/// A peer that puts `head` before each frame, and wants it there.
fn udp_peer(s: UdpSocket, to: u16, head: Vec<u8>) -> Ends {
    let (from, want) = (s.try_clone().unwrap(), head.clone());
    let send = move |f: &[u8]| {
        // Until somebody is there, the kernel says that nobody is.
        let _refused = s.send_to(&[&head[..], f].concat(), ("127.0.0.1", to));
    };
    let recv = move || {
        let mut got = datagram(|b| from.recv(b).unwrap());
        let frame = got.split_off(want.len());
        assert_eq!(got, want);
        frame
    };
    (Box::new(send), Box::new(recv))
}

fn tcp_peer(s: TcpStream) -> Ends {
    s.set_read_timeout(Some(PATIENCE)).unwrap();
    s.set_nodelay(true).unwrap();
    let (mut to, mut from) = (s.try_clone().unwrap(), s);
    let send = move |f: &[u8]| to.write_all(&[&(f.len() as u32).to_be_bytes(), f].concat()).unwrap();
    let recv = move || {
        let mut len = [0; 4];
        from.read_exact(&mut len).unwrap();
        let mut f = vec![0; u32::from_be_bytes(len) as usize];
        from.read_exact(&mut f).unwrap();
        f
    };
    (Box::new(send), Box::new(recv))
}

#[test]
fn clients_hear_who_comes_and_goes() {
    let dir = Dir::new();
    let mut wire = Wire::new(&dir, &[]);
    let path = dir.at("x");
    let add =
        format!(r#"{{"type":"stream","id":"x0","server":true,"addr":{{"type":"unix","path":"{path}"}}}}"#);
    wire.done("netdev_add", &add);
    let named = |name: &str, id: &str| [format!("\"{name}\""), format!("\"netdev-id\":\"{id}\"")];
    let hear = |wire: &mut Wire, name: &str, id: &str| {
        let words = named(name, id);
        wire.event(&[&words[0], &words[1]])
    };
    let conn = UnixStream::connect(&path).unwrap();
    let said = hear(&mut wire, "NETDEV_STREAM_CONNECTED", "x0");
    assert!(said.contains("\"addr\":{") && said.contains(&path), "{said}");
    // It has no peer, so nobody reads from it: its end is seen all the same.
    drop(conn);
    hear(&mut wire, "NETDEV_STREAM_DISCONNECTED", "x0");
    // Nor does what it sent before keep its end from being seen.
    let mut conn = UnixStream::connect(&path).unwrap();
    hear(&mut wire, "NETDEV_STREAM_CONNECTED", "x0");
    conn.write_all(&[0, 0, 0, 20, 1, 2, 3]).unwrap();
    drop(conn);
    hear(&mut wire, "NETDEV_STREAM_DISCONNECTED", "x0");
    // What cannot be a frame's length is said, with who sent it and why it was closed.
    wire.done("netreeve-set-netdev", r#"{"device":"vm","netdev":"x0"}"#);
    let mut conn = UnixStream::connect(&path).unwrap();
    hear(&mut wire, "NETDEV_STREAM_CONNECTED", "x0");
    conn.write_all(&69633_u32.to_be_bytes()).unwrap();
    wire.event(&["\"NETREEVE_PEER_REFUSED\"", "\"id\":\"x0\"", "\"reason\":\"oversize\""]);
    hear(&mut wire, "NETDEV_STREAM_DISCONNECTED", "x0");
    // A client of ours, which dials again.
    let there = dir.at("y");
    let listener = UnixListener::bind(&there).unwrap();
    let add = format!(
        r#"{{"type":"stream","id":"y0","reconnect-ms":20,"addr":{{"type":"unix","path":"{there}"}}}}"#
    );
    wire.done("netdev_add", &add);
    for _ in 0..2 {
        let (conn, _) = listener.accept().unwrap();
        hear(&mut wire, "NETDEV_STREAM_CONNECTED", "y0");
        drop(conn);
        hear(&mut wire, "NETDEV_STREAM_DISCONNECTED", "y0");
    }
    // A vhost-user device that comes, and its front end.
    let at = dir.at("vhost");
    let device = format!(r#"{{"driver":"vhost-user","id":"d1","netdev":"y0","path":"{at}"}}"#);
    wire.done("device_add", &device);
    let conn = UnixStream::connect(&at).unwrap();
    let said = hear(&mut wire, "NETDEV_VHOST_USER_CONNECTED", "d1");
    assert!(said.contains("\"chardev-id\":\"d1\""), "{said}");
    drop(conn);
    hear(&mut wire, "NETDEV_VHOST_USER_DISCONNECTED", "d1");
    // With a dataplane its connections end.
    let child = inspect::descendant_named(wire.proc.pid(), "netreeve-dataplane", PATIENCE).unwrap();
    kill(Pid::from_raw(child), Signal::SIGKILL).unwrap();
    hear(&mut wire, "NETDEV_STREAM_DISCONNECTED", "vm");
    wire.event(&["\"NETREEVE_RESTARTED\""]);
    wire.vm = Vm::at(&dir.at("v"));
    hear(&mut wire, "NETDEV_STREAM_CONNECTED", "vm");
}
