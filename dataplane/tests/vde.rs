//! A VDE switch of netreeve's, from outside: plugs of this test's, and of another netreeve, without privilege.
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
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use child::{Lines, PATIENCE, gone, wait_for};
use dir::Dir;

const NETREEVE: &str = env!("CARGO_BIN_EXE_netreeve");

struct Netreeve {
    child: Child,
    said: Lines,
    dataplane: i64,
}

impl Netreeve {
    fn run(arguments: &[&str]) -> Self {
        let mut command = Command::new(NETREEVE);
        command.args(["run", "--json", "--sandbox", "seccomp"]).args(arguments);
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let said = Lines::of(child.stdout.take().unwrap());
        let mut new = Self { child, said, dataplane: 0 };
        new.dataplane = new.said.event("ready")["dataplane"].as_i64().unwrap();
        new
    }

    fn kill_dataplane(&mut self) {
        kill(Pid::from_raw(self.dataplane as i32), Signal::SIGKILL).unwrap();
        self.dataplane = self.said.event("restarted")["dataplane"].as_i64().unwrap();
    }

    fn end(&mut self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
        wait_for(&mut self.child);
        let dataplane = Pid::from_raw(self.dataplane as i32);
        within("the dataplane's end", || gone(dataplane).then_some(()));
    }
}

impl Drop for Netreeve {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// A client, as libvdeplug is one.
struct Plug {
    ctl: UnixStream,
    data: UnixDatagram,
    file: String,
}

fn request(port: u32, file: &str) -> Vec<u8> {
    let mut r: Vec<u8> = [0xfeed_face_u32, 3, port << 8].iter().flat_map(|w| w.to_ne_bytes()).collect();
    r.extend(1_u16.to_ne_bytes());
    r.extend(file.as_bytes());
    r.resize(122, 0);
    r.extend(b"a test");
    r
}

impl Plug {
    /// Into the switch at `sw`. None: it says no.
    fn into(sw: &str, port: u32) -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let file = format!("{sw}/.{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut ctl = UnixStream::connect(format!("{sw}/ctl")).unwrap();
        ctl.set_read_timeout(Some(PATIENCE)).unwrap();
        let data = UnixDatagram::bind(&file).unwrap();
        data.set_read_timeout(Some(PATIENCE)).unwrap();
        let new = Self { ctl: ctl.try_clone().unwrap(), data, file };
        ctl.write_all(&request(port, &new.file)).unwrap();
        let mut answer = [0; 110];
        ctl.read_exact(&mut answer).ok()?;
        let path: Vec<u8> = answer[2..].iter().copied().take_while(|b| *b != 0).collect();
        new.data.connect(String::from_utf8(path).unwrap()).unwrap();
        Some(new)
    }

    fn send(&self, from: u8, n: u8) {
        self.data.send(&broadcast(from, n)).unwrap();
    }

    fn recv(&self) -> Vec<u8> {
        let mut got = vec![0; 2000];
        let n = self.data.recv(&mut got).unwrap();
        got.truncate(n);
        got
    }

    /// Takes frames until this one is there.
    fn until(&self, from: u8, n: u8) {
        let want = broadcast(from, n);
        while self.recv() != want {}
    }

    fn hears_nothing(&self) {
        self.data.set_nonblocking(true).unwrap();
        let got = self.data.recv(&mut [0; 2000]).unwrap_err();
        assert_eq!(got.kind(), io::ErrorKind::WouldBlock);
        self.data.set_nonblocking(false).unwrap();
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.file);
    }
}

fn broadcast(from: u8, n: u8) -> Vec<u8> {
    let mut f = vec![0xff; 6];
    f.extend([2, 0, 0, 0, 0, from, 0x88, 0xb5]);
    f.resize(60, n);
    f
}

fn within<T>(what: &str, mut get: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(got) = get() {
            return got;
        }
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

fn show(control: &str) -> Vec<Value> {
    let out = Command::new(NETREEVE).args(["show", control, "--json"]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let all: Value = serde_json::from_slice(&out.stdout).unwrap();
    all["ports"].as_array().unwrap_or_else(|| panic!("{all}")).clone()
}

/// Names of the ports that there are.
fn ports(control: &str) -> Vec<String> {
    show(control).iter().map(|p| p["id"].as_str().unwrap().to_owned()).collect()
}

/// A port's state.
/// Data sockets of a switch's port, whose names cannot be known beforehand.
fn sockets(sw: &str, port: u16) -> usize {
    let names = fs::read_dir(sw).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.starts_with(&format!("{port:03}-")) && n.ends_with(".fd")).count()
}

fn state(control: &str, id: &str) -> Value {
    show(control).into_iter().find(|p| p["id"] == id).unwrap()["state"].take()
}

/// The switch, and a VM's stream on it.
fn switch(dir: &Dir, more: &str) -> (Netreeve, UnixStream) {
    let netdev = format!("vde,id=sw,server=on,sock={}{more}", dir.at("sw"));
    let device = format!("stream,netdev=sw,id=vm,server=on,addr.type=unix,addr.path={}", dir.at("vm"));
    let control = dir.at("c");
    let n = Netreeve::run(&["--control", &control, "--netdev", &netdev, "--device", &device]);
    let vm = UnixStream::connect(dir.at("vm")).unwrap();
    vm.set_read_timeout(Some(PATIENCE)).unwrap();
    (n, vm)
}

fn to_vm(vm: &mut UnixStream) -> Vec<u8> {
    let mut len = [0; 4];
    vm.read_exact(&mut len).unwrap();
    let mut f = vec![0; u32::from_be_bytes(len) as usize];
    vm.read_exact(&mut f).unwrap();
    f
}

fn from_vm(vm: &mut UnixStream, f: &[u8]) {
    vm.write_all(&[&(f.len() as u32).to_be_bytes(), f].concat()).unwrap();
}

#[test]
fn clients_plug_in_talk_survive_a_dataplane_and_go() {
    let dir = Dir::new("vde-clients");
    let sw = dir.at("sw");
    let (mut n, mut vm) = switch(&dir, ",clients=2");
    let (a, b) = (Plug::into(&sw, 0).unwrap(), Plug::into(&sw, 2).unwrap());
    assert!(Plug::into(&sw, 0).is_none() && Plug::into(&sw, 1).is_none(), "all are taken");
    for round in 0..3 {
        a.send(1, round);
        assert_eq!((b.recv(), to_vm(&mut vm)), (broadcast(1, round), broadcast(1, round)));
        b.send(2, round);
        assert_eq!((a.recv(), to_vm(&mut vm)), (broadcast(2, round), broadcast(2, round)));
        from_vm(&mut vm, &broadcast(3, round));
        assert_eq!((a.recv(), b.recv()), (broadcast(3, round), broadcast(3, round)));
    }
    // The switch has learned where they are.
    let mut to_a = broadcast(2, 9);
    to_a[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    b.data.send(&to_a).unwrap();
    assert_eq!(a.recv(), to_a);
    // A dataplane is killed: nobody plugs in anew.
    n.kill_dataplane();
    a.send(1, 7);
    b.until(1, 7);
    b.send(2, 8);
    a.until(2, 8);
    let control = dir.at("c");
    let mut have = ports(&control);
    have.sort();
    assert_eq!(have, ["sw", "sw.1", "sw.1.hub", "sw.2", "sw.2.hub", "vm"]);
    // One goes: its port is free, and the other has not noticed.
    drop(b);
    within("the port to go", || (ports(&control).len() == 4).then_some(()));
    assert_eq!((sockets(&sw, 1), sockets(&sw, 2)), (1, 0));
    let b = Plug::into(&sw, 2).unwrap();
    a.send(1, 10);
    b.until(1, 10);
    // One is thrown out.
    let out = Command::new(NETREEVE).args(["remove", &control, "sw.2"]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!((&b.ctl).read(&mut [0; 1]).unwrap_or(0), 0);
    assert_eq!(ports(&control).len(), 4);
    let out = Command::new(NETREEVE).args(["remove", &control, "sw.1.hub"]).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stderr).contains("delete 'sw.1'"));
    a.send(1, 11);
    drop((a, b));
    n.end(Signal::SIGTERM);
    assert!(!fs::exists(&sw).unwrap(), "the directory goes with it");
}

#[test]
fn who_talks_nonsense_loses_his_connection_and_nobody_else_does() {
    let dir = Dir::new("vde-nonsense");
    let sw = dir.at("sw");
    let (_n, mut vm) = switch(&dir, "");
    let a = Plug::into(&sw, 0).unwrap();
    fs::write(dir.at("file"), "").unwrap();
    let nonsense: [Vec<u8>; 6] = [
        b"x".repeat(300),
        request(0, &dir.at("file")),
        request(0, &dir.at("nothing")),
        request(0, "/dev/null"),
        request(200, &a.file),
        [request(0, &a.file), vec![1; 300]].concat(),
    ];
    for bytes in nonsense {
        let mut s = UnixStream::connect(format!("{sw}/ctl")).unwrap();
        s.set_read_timeout(Some(PATIENCE)).unwrap();
        s.write_all(&bytes).unwrap();
        assert_eq!(s.read(&mut [0; 1]).unwrap_or(0), 0, "closed");
    }
    let idle: Vec<UnixStream> = (0..40).map(|_| UnixStream::connect(format!("{sw}/ctl")).unwrap()).collect();
    let b = Plug::into(&sw, 0).unwrap();
    a.send(1, 1);
    assert_eq!((b.recv(), to_vm(&mut vm)), (broadcast(1, 1), broadcast(1, 1)));
    // Who goes on talking when he has his port loses it.
    (&b.ctl).write_all(&[7; 1000]).unwrap();
    within("the talker's end", || ((&b.ctl).read(&mut [0; 1]).unwrap_or(0) == 0).then_some(()));
    drop(idle);
    for round in 0..100 {
        let c = Plug::into(&sw, 0).unwrap();
        c.send(3, round);
        assert_eq!(a.recv(), broadcast(3, round));
        assert_eq!(to_vm(&mut vm), broadcast(3, round));
    }
}

#[test]
fn another_netreeve_is_a_client_and_a_crash_leaves_a_directory_that_is_used_again() {
    let dir = Dir::new("vde-stale");
    let sw = dir.at("sw");
    let (mut n, mut vm) = switch(&dir, ",hubid=5,isolated=on");
    let client = format!("vde,id=n0,sock={sw},reconnect-ms=20");
    let device = format!("stream,netdev=n0,id=vm,server=on,addr.type=unix,addr.path={}", dir.at("vm2"));
    let _client = Netreeve::run(&["--netdev", &client, "--device", &device]);
    let mut vm2 = UnixStream::connect(dir.at("vm2")).unwrap();
    vm2.set_read_timeout(Some(PATIENCE)).unwrap();
    let a = Plug::into(&sw, 0).unwrap();
    let mut meet = |vm: &mut UnixStream, n| {
        // Until it is plugged in, what is sent is nobody's.
        vm.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        within("the client", || {
            from_vm(&mut vm2, &broadcast(2, n));
            let mut len = [0; 4];
            vm.read_exact(&mut len).ok()?;
            let mut f = [0; 60];
            vm.read_exact(&mut f).unwrap();
            (f[..] == broadcast(2, n)).then_some(())
        });
        vm.set_read_timeout(Some(PATIENCE)).unwrap();
        from_vm(vm, &broadcast(3, n));
        while to_vm(&mut vm2) != broadcast(3, n) {}
    };
    meet(&mut vm, 1);
    a.until(3, 1);
    a.send(1, 1);
    while to_vm(&mut vm) != broadcast(1, 1) {}
    // Isolated from the other client, but not from the VM. (What was sent before would be there before.)
    from_vm(&mut vm, &broadcast(3, 50));
    assert_eq!(a.recv(), broadcast(3, 50));
    a.hears_nothing();
    // In use, it is nobody else's.
    let out = Command::new(NETREEVE)
        .args(["run", "--netdev", &format!("vde,id=x,server=on,sock={sw}")])
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(69), "{}", String::from_utf8_lossy(&out.stderr));
    n.end(Signal::SIGKILL);
    assert!(fs::exists(format!("{sw}/ctl")).unwrap() && sockets(&sw, 1) == 1);
    let (mut n, mut vm) = switch(&dir, "");
    meet(&mut vm, 2);
    assert_eq!(sockets(&sw, 1), 1, "what was left behind is swept away");
    n.end(Signal::SIGTERM);
    assert!(!fs::exists(format!("{sw}/ctl")).unwrap());
}

#[test]
fn a_switch_comes_and_goes_while_a_run_lasts() {
    let dir = Dir::new("vde-late");
    let control = dir.at("c");
    let netdev = format!("stream,id=n0,server=on,addr.type=unix,addr.path={}", dir.at("a"));
    let _n = Netreeve::run(&["--control", &control, "--hotplug", "vde,stream", "--netdev", &netdev]);
    let sw = dir.at("sw");
    let add = json!({"type": "vde", "id": "sw", "server": true, "sock": sw, "hubid": 3}).to_string();
    let change = |words: &[&str]| {
        let mut command = Command::new(NETREEVE);
        let out = command.args([words[0], &control]).args(&words[1..]).output().unwrap();
        assert!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    change(&["add", "--netdev", &add]);
    let (a, b) = (Plug::into(&sw, 0).unwrap(), Plug::into(&sw, 0).unwrap());
    a.send(1, 1);
    assert_eq!(b.recv(), broadcast(1, 1));
    change(&["remove", "sw"]);
    assert_eq!((&a.ctl).read(&mut [0; 1]).unwrap_or(0), 0);
    assert_eq!(ports(&control), ["n0"]);
    // Plugs that wait for a switch that is not there do not keep others waiting, and say why.
    let plug = json!({"type": "vde", "id": "p", "sock": dir.at("none")}).to_string();
    let out = Command::new(NETREEVE).args(["add", &control, "--netdev", &plug]).output().unwrap();
    assert!(!out.status.success());
    assert!(String::from_utf8_lossy(&out.stderr).contains("plugging into"), "{out:?}");
    assert_eq!(ports(&control), ["n0"]);
    fs::create_dir(dir.at("mute")).unwrap();
    let mute = UnixListener::bind(dir.at("mute/ctl")).unwrap();
    let plug = json!({"type": "vde", "id": "m", "sock": dir.at("mute")}).to_string();
    let mut waits = Command::new(NETREEVE).args(["add", &control, "--netdev", &plug]).spawn().unwrap();
    within("the plug", || (ports(&control).len() == 2).then_some(()));
    assert!(waits.try_wait().unwrap().is_none(), "others are answered meanwhile");
    drop(mute);
    assert!(!wait_for(&mut waits).success());
    assert_eq!(ports(&control), ["n0"]);
    // Likewise with one that dials a host that does not answer.
    let dial = |n: u8| {
        let addr = json!({"type": "inet", "host": "127.0.0.1", "port": "1"});
        let plug = json!({"type": "stream", "id": format!("s{n}"), "addr": addr}).to_string();
        Command::new(NETREEVE).args(["add", &control, "--netdev", &plug]).output().unwrap()
    };
    let out = dial(1);
    assert!(!out.status.success() && String::from_utf8_lossy(&out.stderr).contains("connecting"), "{out:?}");
    assert_eq!(ports(&control), ["n0"]);
}

type Send = dyn FnMut(&[u8]);
type Recv = dyn FnMut() -> Vec<u8>;

/// One member's end of a hub.
struct End {
    send: Box<Send>,
    recv: Box<Recv>,
}

/// A stream's end, with lengths of so many bytes.
fn stream(path: &str, prefix: usize) -> End {
    let mut tx = UnixStream::connect(path).unwrap();
    let mut rx = tx.try_clone().unwrap();
    rx.set_read_timeout(Some(PATIENCE)).unwrap();
    let send = move |f: &[u8]| {
        let len = (f.len() as u32).to_be_bytes();
        tx.write_all(&[&len[4 - prefix..], f].concat()).unwrap();
    };
    let recv = move || {
        let mut len = [0; 4];
        rx.read_exact(&mut len[4 - prefix..]).unwrap();
        let mut f = vec![0; u32::from_be_bytes(len) as usize];
        rx.read_exact(&mut f).unwrap();
        f
    };
    End { send: Box::new(send), recv: Box::new(recv) }
}

fn datagrams(tx: UnixDatagram) -> End {
    let rx = tx.try_clone().unwrap();
    rx.set_read_timeout(Some(PATIENCE)).unwrap();
    let recv = move || {
        let mut f = vec![0; 2000];
        let n = rx.recv(&mut f).unwrap();
        f.truncate(n);
        f
    };
    let send = move |f: &[u8]| assert_eq!(tx.send(f).unwrap(), f.len());
    End { send: Box::new(send), recv: Box::new(recv) }
}

#[test]
fn members_of_four_kinds_are_one_hub() {
    let dir = Dir::new("vde-hub");
    let at = |name: &str| dir.at(name);
    let theirs = UnixDatagram::bind(at("b2")).unwrap();
    let stream_at =
        |id: &str, more: &str| format!("stream,id={id}{more},server=on,addr.type=unix,addr.path={}", at(id));
    let mut netdevs = vec![
        format!("vde,id=sw,server=on,sock={},hubid=5", at("sw")),
        stream_at("a", ""),
        format!(
            "dgram,id=b,local.type=unix,local.path={},remote.type=unix,remote.path={}",
            at("b"),
            at("b2")
        ),
        stream_at("c", ",framing=u16be"),
    ];
    netdevs.extend(["a", "b", "c"].map(|id| format!("hubport,id=h{id},hubid=5,netdev={id}")));
    let words: Vec<&str> = netdevs.iter().flat_map(|n| ["--netdev", n]).collect();
    let control = at("c.sock");
    let _n = Netreeve::run(&[&["--control", &control], &words[..]].concat());
    let plug = Plug::into(&at("sw"), 0).unwrap();
    within("the datagram socket", || theirs.connect(at("b")).ok());
    let mut ends = [
        stream(&at("a"), 4),
        datagrams(theirs),
        stream(&at("c"), 2),
        datagrams(plug.data.try_clone().unwrap()),
    ];
    let meet = |ends: &mut [End; 4], from: usize, f: &[u8]| {
        (ends[from].send)(f);
        for (i, e) in ends.iter_mut().enumerate().filter(|(i, _)| *i != from) {
            let got = (e.recv)();
            assert!(got == f, "from {from} to {i}: {} bytes, not {}", got.len(), f.len());
        }
    };
    // What is sent before a stream's connection is taken is not for it.
    within("the streams", || ["a", "c"].iter().all(|id| state(&control, id) == "up").then_some(()));
    for (n, len) in (0..).zip([60, 61, 342, 1514, 1518].iter().cycle().take(40)) {
        for from in 0..ends.len() {
            let mut f = broadcast(from as u8, n);
            f.resize(*len, n.wrapping_add(from as u8));
            meet(&mut ends, from, &f);
        }
    }
    drop(plug);
}
