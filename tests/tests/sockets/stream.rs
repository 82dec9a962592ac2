//! QEMU's `stream` and `socket` at the other end, in both roles, over every kind of address that this machine has.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

use crate::support::{Dir, Qemu, Reeve, SIZES, exchange, number, until};

/// A TCP port that nobody has at the moment.
fn port(host: &str) -> u16 {
    TcpListener::bind((host, 0)).unwrap().local_addr().unwrap().port()
}

/// QEMU listens and we dial (`ours`), or the other way round.
fn both(dir: &Dir, theirs: &str, ours: &str, we_listen: bool) {
    let run = || Reeve::run(dir, &format!("{ours},id=n0"), &[]);
    let (reeve, qemu) = if we_listen {
        let reeve = run();
        (reeve, Qemu::run(dir, theirs))
    } else {
        let qemu = Qemu::run(dir, theirs);
        // QEMU has opened the last of its netdevs when it talks on the first; whether it listens is not said.
        (until("QEMU to listen", || Reeve::start(dir, &format!("{ours},id=n0"), &[])), qemu)
    };
    let mut vm = reeve.vm();
    exchange(&qemu, &mut vm, &SIZES);
    drop((qemu, vm));
    let said = reeve.end();
    assert!(!said.contains("oversize"), "{said}");
}

fn roles(dir: &Dir, addr: &str, reconnect: bool) {
    let server = format!("stream,server=on,{addr}");
    let client = format!("stream,{addr}{}", if reconnect { ",reconnect-ms=50" } else { "" });
    both(dir, &server, &client, false);
    both(dir, &client, &server, true);
}

#[test]
fn unix_path() {
    let dir = Dir::new();
    let path = dir.at("s");
    roles(&dir, &format!("addr.type=unix,addr.path={path}"), true);
}

#[test]
fn unix_abstract() {
    let dir = Dir::new();
    let name = dir.at("s");
    for tight in ["on", "off"] {
        roles(&dir, &format!("addr.type=unix,addr.path={name},addr.abstract=on,addr.tight={tight}"), false);
    }
}

#[test]
fn inet() {
    for host in ["127.0.0.1", "::1"] {
        let dir = Dir::new();
        let port = port(host);
        roles(&dir, &format!("addr.type=inet,addr.host={host},addr.port={port}"), false);
    }
}

#[test]
fn a_socket_that_was_handed_over() {
    let dir = Dir::new();
    // Connected.
    let path = dir.at("s");
    let listener = UnixListener::bind(&path).unwrap();
    let mut qemu = Qemu::run(&dir, &format!("stream,addr.type=unix,addr.path={path}"));
    let conn: OwnedFd = qemu.dialled(&listener).into();
    let reeve = Reeve::run(&dir, &format!("stream,id=n0,addr.type=fd,addr.str={}", number(&conn)), &[&conn]);
    drop(conn);
    let mut vm = reeve.vm();
    exchange(&qemu, &mut vm, &SIZES);
    drop(reeve);
    // Listening, of TCP.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let fd: OwnedFd = listener.into();
    let netdev = format!("stream,id=n0,server=on,addr.type=fd,addr.str={}", number(&fd));
    let reeve = Reeve::run(&dir, &netdev, &[&fd]);
    drop(fd);
    let qemu = Qemu::run(&dir, &format!("stream,addr.type=inet,addr.host=127.0.0.1,addr.port={port}"));
    let mut vm = reeve.vm();
    exchange(&qemu, &mut vm, &SIZES);
}

#[test]
fn the_older_words() {
    let dir = Dir::new();
    let at = format!("127.0.0.1:{}", port("127.0.0.1"));
    both(&dir, &format!("socket,listen={at}"), &format!("socket,connect={at}"), false);
    let at = format!("127.0.0.1:{}", port("127.0.0.1"));
    both(&dir, &format!("socket,connect={at}"), &format!("socket,listen={at}"), true);
    // And again: whoever listens takes the next one.
    let at = format!("127.0.0.1:{}", port("127.0.0.1"));
    let reeve = Reeve::run(&dir, &format!("socket,id=n0,listen={at}"), &[]);
    let mut vm = reeve.vm();
    for _ in 0..3 {
        let qemu = Qemu::run(&dir, &format!("socket,connect={at}"));
        exchange(&qemu, &mut vm, &SIZES);
    }
}
