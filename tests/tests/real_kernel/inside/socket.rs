//! Sockets that carry frames: a hub of streams, and virtual machines' own sockets (vsock(7)), which are there by
//! `vsock_loopback` and on few other machines.

use super::is_locked_in;
use super::support::{MOST, SIZES, Vm, frame, greeting};
use netreeve_tests::scene::{PATIENCE, Reeve, Road, Scene};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, accept, bind, connect, listen, socket,
};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// `VMADDR_CID_LOCAL` (`linux/vm_sockets.h`): this machine, by its loopback.
const HERE: u32 = 1;

/// A stream's end of the test's, whatever kind of socket it is.
fn end(s: OwnedFd) -> Vm {
    let s = UnixStream::from(s);
    s.set_read_timeout(Some(PATIENCE)).unwrap();
    s.set_write_timeout(Some(PATIENCE)).unwrap();
    Vm(s)
}

fn vsock() -> OwnedFd {
    socket(AddressFamily::Vsock, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .expect("this kernel has no vsock (modprobe vsock_loopback)")
}

/// Calls until somebody listens.
fn called(port: u32) -> Vm {
    let until = Instant::now() + PATIENCE;
    loop {
        let s = vsock();
        match connect(s.as_raw_fd(), &VsockAddr::new(HERE, port)) {
            Ok(()) => return end(s),
            Err(e) => assert!(Instant::now() < until, "vsock {port}: {e}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn accepted(listener: &OwnedFd) -> Vm {
    let fd = accept(listener.as_raw_fd()).unwrap();
    // SAFETY: the kernel just made this descriptor for us, and nobody else knows it.
    end(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Frames of all sizes both ways. What is sent before the two are joined may be lost.
fn exchange(a: &mut Vm, b: &mut Vm, sizes: &[usize]) {
    let quiet = Duration::from_millis(100);
    let until = Instant::now() + PATIENCE;
    while {
        a.send(&greeting());
        b.greeted(quiet).is_none()
    } {
        assert!(Instant::now() < until, "nothing comes through");
    }
    for (n, len) in (0..).zip(sizes) {
        let there = frame(*len, n);
        a.send(&there);
        assert!(b.recv() == there, "{len} bytes there");
        let back = frame(*len, n + 100);
        b.send(&back);
        assert!(a.recv() == back, "{len} bytes back");
    }
    // More of them than a socket holds.
    let many: Vec<Vec<u8>> = (0..200).map(|n| frame(1514, n)).collect();
    std::thread::scope(|s| {
        let writer = Vm(a.0.try_clone().unwrap());
        s.spawn(|| {
            let mut writer = writer;
            many.iter().for_each(|f| writer.send(f));
        });
        for f in &many {
            assert!(b.recv() == *f, "in order");
        }
    });
}

/// Says that a frame comes that is longer than any, and is hung up on.
fn too_long(vm: &mut Vm) {
    vm.0.write_all(&(MOST as u32 + 1).to_be_bytes()).unwrap();
    match vm.0.read(&mut [0; 1]) {
        Ok(n) => assert_eq!(n, 0, "it goes on after a length of {}", MOST + 1),
        Err(e) => assert_eq!(e.raw_os_error(), Some(Errno::ECONNRESET as i32), "{e}"),
    }
}

/// A scene without helper, with `netreeve` between a netdev and a stream for the test.
fn reeve(netdev: &str) -> (Reeve, Vm, Scene) {
    let scene = Scene::set(Road::AfXdp).unwrap();
    let device = "stream,netdev=n0,server=on,addr.type=unix,addr.path=vm.sock";
    let reeve = scene.run(&[netdev], &[device], &[]).unwrap();
    is_locked_in(reeve.dataplane().unwrap(), false);
    let vm = Vm::at(scene.path("vm.sock").to_str().unwrap());
    (reeve, vm, scene)
}

fn ends_well(mut reeve: Reeve) {
    let end = reeve.proc.terminate(PATIENCE).unwrap();
    assert_eq!(end.code, 0, "{}", end.text);
}

#[test]
#[ignore = "runs in the guest"]
fn a_virtual_machines_socket_is_listened_at() {
    let at = format!("stream,id=n0,server=on,addr.type=vsock,addr.cid={HERE},addr.port=1024");
    let (reeve, mut vm, _scene) = reeve(&at);
    for _ in 0..2 {
        let mut peer = called(1024);
        exchange(&mut vm, &mut peer, &SIZES);
        too_long(&mut peer);
    }
    exchange(&mut vm, &mut called(1024), &SIZES);
    ends_well(reeve);
}

#[test]
#[ignore = "runs in the guest"]
fn a_virtual_machines_socket_is_dialled() {
    let listener = vsock();
    bind(listener.as_raw_fd(), &VsockAddr::new(HERE, 1025)).unwrap();
    listen(&listener, Backlog::new(4).unwrap()).unwrap();
    let to = format!("stream,id=n0,addr.type=vsock,addr.cid={HERE},addr.port=1025,reconnect-ms=50");
    let (reeve, mut vm, _scene) = reeve(&to);
    for _ in 0..2 {
        let mut peer = accepted(&listener);
        exchange(&mut vm, &mut peer, &SIZES);
        too_long(&mut peer);
    }
    exchange(&mut vm, &mut accepted(&listener), &SIZES);
    // Of both kinds at once: what the far one says, somebody behind another netreeve hears.
    drop(listener);
    let at = format!("stream,id=n0,server=on,addr.type=vsock,addr.cid={HERE},addr.port=1025");
    let (other, mut far, _other) = self::reeve(&at);
    exchange(&mut vm, &mut far, &SIZES);
    ends_well(reeve);
    ends_well(other);
}

#[test]
#[ignore = "runs in the guest"]
fn a_hub_of_streams_carries_frames() {
    let scene = Scene::set(Road::AfXdp).unwrap();
    let ports: Vec<String> = (0..3).map(|n| format!("hubport,id=n{n},hubid=0")).collect();
    let devices: Vec<String> =
        (0..3).map(|n| format!("stream,netdev=n{n},server=on,addr.type=unix,addr.path=vm{n}.sock")).collect();
    fn words(list: &[String]) -> Vec<&str> {
        list.iter().map(String::as_str).collect()
    }
    let reeve = scene.run(&words(&ports), &words(&devices), &[]).unwrap();
    is_locked_in(reeve.dataplane().unwrap(), false);
    let mut vms = [0, 1, 2].map(|n| Vm::at(scene.path(&format!("vm{n}.sock")).to_str().unwrap()));
    let [a, b, c] = &mut vms;
    // A hub takes no frame for one that has no room for addresses.
    exchange(a, b, &SIZES[2..]);
    // Nobody reads what the third one heard of that.
    for (n, len) in (0..).zip([60, 1514, 65550]) {
        let sent = frame(len, 500 + n);
        c.send(&sent);
        for vm in [&mut *a, &mut *b] {
            assert!(vm.recv() == sent, "{len} bytes to each");
        }
    }
    ends_well(reeve);
}
