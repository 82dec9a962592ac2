//! Datagram ports with a real supervisor and a real, locked-in dataplane: peers that come, go and are replaced, and
//! dataplanes that are killed. Every user can run this.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "a test may fail loudly"
)]

mod child;
mod dir;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::UdpSocket;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use child::{Lines, PATIENCE};
use dir::Dir;

struct Netreeve {
    child: Child,
    events: Lines,
    dataplane: Pid,
}

impl Netreeve {
    fn run(netdev: &str, device: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_netreeve"));
        command.args(["run", "--json", "--sandbox", "seccomp", "--netdev", netdev, "--device", device]);
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let events = Lines::of(child.stdout.take().unwrap());
        let mut new = Self { child, events, dataplane: Pid::from_raw(0) };
        new.event("ready");
        new
    }

    fn event(&mut self, name: &str) -> serde_json::Value {
        let event = self.events.event(name);
        if let Some(pid) = event["dataplane"].as_i64() {
            self.dataplane = Pid::from_raw(pid as i32);
        }
        event
    }

    fn stats(&mut self) -> serde_json::Value {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGUSR1).unwrap();
        self.event("stats")
    }

    /// Kills the dataplane and waits for the next one.
    fn crash(&mut self) {
        kill(self.dataplane, Signal::SIGKILL).unwrap();
        self.event("restarted");
    }
}

impl Drop for Netreeve {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The VMM's end: a stream that a device dials.
struct Vmm(UnixStream);

impl Vmm {
    fn accept(listener: &UnixListener) -> Self {
        let s = listener.accept().unwrap().0;
        s.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(s)
    }

    fn send(&mut self, frame: &[u8]) {
        self.0.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
        self.0.write_all(frame).unwrap();
    }

    fn recv(&mut self) -> Vec<u8> {
        let mut len = [0; 4];
        self.0.read_exact(&mut len).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(len) as usize];
        self.0.read_exact(&mut frame).unwrap();
        frame
    }
}

fn device(dir: &Dir) -> (UnixListener, String) {
    let path = dir.at("vmm");
    let listener = UnixListener::bind(&path).unwrap();
    (listener, format!("stream,netdev=n0,addr.type=unix,addr.path={path},reconnect-ms=10"))
}

fn frame(n: u8) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];
    f.resize(100, n);
    f
}

fn peer(path: &str, to: &str) -> UnixDatagram {
    let _gone = fs::remove_file(path);
    let s = UnixDatagram::bind(path).unwrap();
    s.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let until = Instant::now() + PATIENCE;
    while let Err(e) = s.connect(to) {
        assert!(Instant::now() < until, "{e}");
    }
    s
}

/// Sends from the VMM until the peer hears it: frames are lost while nobody is there.
fn until_heard(vmm: &mut Vmm, peer: &UnixDatagram, n: u8) {
    let (mut raw, until) = ([0; 200], Instant::now() + PATIENCE);
    loop {
        vmm.send(&frame(n));
        match peer.recv(&mut raw) {
            Ok(len) if raw.get(..len) == Some(&frame(n)) => return,
            Ok(_) => {}
            Err(e) => assert!(e.kind() == ErrorKind::WouldBlock && Instant::now() < until, "{e}"),
        }
    }
}

#[test]
fn a_unix_peer_may_come_late_and_be_replaced_and_the_dataplane_too() {
    let dir = Dir::new("unix");
    let (listener, device) = device(&dir);
    let (ours, theirs) = (dir.at("ours"), dir.at("theirs"));
    let netdev =
        format!("dgram,id=n0,local.type=unix,local.path={ours},remote.type=unix,remote.path={theirs}");
    let mut reeve = Netreeve::run(&netdev, &device);
    let mut vmm = Vmm::accept(&listener);
    vmm.send(&frame(9));
    for n in 0..3 {
        let peer = peer(&theirs, &ours);
        until_heard(&mut vmm, &peer, n);
        peer.send(&frame(n + 100)).unwrap();
        assert_eq!(vmm.recv(), frame(n + 100));
    }
    let drops = reeve.stats()["ports"][0]["drops"]["peer_down"].as_u64().unwrap_or(0);
    assert!(drops > 0, "frames to nobody are counted");
    let peer = peer(&theirs, &ours);
    until_heard(&mut vmm, &peer, 50);
    reeve.crash();
    // What came meanwhile waited in the socket, which is the same.
    let mut vmm = Vmm::accept(&listener);
    peer.send(&frame(51)).unwrap();
    assert_eq!(vmm.recv(), frame(51));
    until_heard(&mut vmm, &peer, 52);
    drop(reeve);
}

fn tunnel(session: &str, from: u16, to: u16) -> String {
    format!("l2tpv3,id=n0,src=127.0.0.1,dst=127.0.0.1,udp=on,srcport={from},dstport={to},{session}")
}

#[test]
fn two_tunnels_meet_and_strangers_are_counted() {
    let free = || UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (a_port, b_port) = (free(), free());
    let (dir_a, dir_b) = (Dir::new("ta"), Dir::new("tb"));
    let ((la, da), (lb, db)) = (device(&dir_a), device(&dir_b));
    let common = "cookie64=on,counter=on,offset=7";
    let a = tunnel(&format!("txsession=1,rxsession=2,txcookie=3,rxcookie=4,{common}"), a_port, b_port);
    let b = tunnel(&format!("txsession=2,rxsession=1,txcookie=4,rxcookie=3,{common}"), b_port, a_port);
    let (_a, mut b) = (Netreeve::run(&a, &da), Netreeve::run(&b, &db));
    let (mut va, mut vb) = (Vmm::accept(&la), Vmm::accept(&lb));
    for n in 0..50 {
        va.send(&frame(n));
        vb.send(&frame(n + 100));
    }
    for n in 0..50 {
        assert_eq!((vb.recv(), va.recv()), (frame(n), frame(n + 100)));
    }
    let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
    for _ in 0..3 {
        stranger.send_to(&[0, 3, 0, 0, 0, 0, 0, 1, 9, 9, 9], ("127.0.0.1", b_port)).unwrap();
    }
    let until = Instant::now() + PATIENCE;
    while b.stats()["ports"][0]["drops"]["source"].as_u64() != Some(3) {
        assert!(Instant::now() < until);
    }
    b.crash();
    let mut vb = Vmm::accept(&lb);
    va.send(&frame(77));
    assert_eq!(vb.recv(), frame(77));
    vb.send(&frame(78));
    assert_eq!(va.recv(), frame(78));
}

/// A client of libkrun's kind: a socket of its own, a greeting, frames.
fn visitor(dir: &Dir, name: &str, to: &str) -> UnixDatagram {
    let path = dir.at(name);
    let _gone = fs::remove_file(&path);
    let s = UnixDatagram::bind(&path).unwrap();
    let until = Instant::now() + PATIENCE;
    while let Err(e) = s.connect(to) {
        assert!(Instant::now() < until, "{e}");
        std::thread::sleep(Duration::from_millis(5));
    }
    s.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    s.send(b"VFKT").unwrap();
    s
}

#[test]
fn a_vmm_comes_greets_dies_and_is_followed_by_another() {
    let dir = Dir::new("visit");
    let path = dir.at("far");
    let listener = UnixListener::bind(&path).unwrap();
    let netdev = format!("stream,id=n0,addr.type=unix,addr.path={path},reconnect-ms=10");
    let ours = dir.at("ours");
    let device = format!("dgram,netdev=n0,local.type=unix,local.path={ours}");
    let mut reeve = Netreeve::run(&netdev, &device);
    let mut far = Vmm::accept(&listener);
    for (n, name) in [(1, "one"), (2, "two"), (3, "one")] {
        let vmm = visitor(&dir, name, &ours);
        vmm.send(&frame(n)).unwrap();
        assert_eq!(far.recv(), frame(n), "the greeting is no frame");
        until_heard(&mut far, &vmm, n + 10);
        if n == 2 {
            reeve.crash();
            far = Vmm::accept(&listener);
            vmm.send(&frame(22)).unwrap();
            assert_eq!(far.recv(), frame(22));
            until_heard(&mut far, &vmm, 23);
        }
    }
    let stats = reeve.stats();
    assert_eq!(stats["ports"][1]["drops"]["runt"].as_u64(), None, "{stats}");
}
