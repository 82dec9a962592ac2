//! The supervisor with a real dataplane, from outside: ports that need no privilege, so every user can run this.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "a test may fail loudly"
)]

mod child;
mod dir;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use netreeve_dataplane::engine::KIND;
use netreeve_dataplane::handover::{FromDataplane, Level};
use netreeve_dataplane::mem::guest::Layout;
use netreeve_dataplane::port::Piece;
use netreeve_shared::codec::{self, Header};

use child::{Lines, PATIENCE, gone, wait_for};
use dir::Dir;

const NETREEVE: &str = env!("CARGO_BIN_EXE_netreeve");

/// `netreeve run --json` and what it says.
struct Netreeve {
    child: Child,
    events: Lines,
}

impl Netreeve {
    fn run(arguments: &[&str]) -> Self {
        let mut command = Command::new(NETREEVE);
        command.args(["run", "--json", "--sandbox", "seccomp"]).args(arguments);
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let events = Lines::of(child.stdout.take().unwrap());
        Self { child, events }
    }

    /// Two listening streams on one wire.
    fn pair(dir: &Dir, more: &[&str]) -> (Self, serde_json::Value) {
        let netdev = format!("stream,id=n0,server=on,addr.type=unix,addr.path={}", dir.at("a"));
        let device = format!("stream,netdev=n0,server=on,addr.type=unix,addr.path={}", dir.at("b"));
        let mut all = vec!["--netdev", &netdev, "--device", &device];
        all.extend(more);
        let mut new = Self::run(&all);
        let ready = new.event("ready");
        (new, ready)
    }

    /// The next event of that name.
    fn event(&mut self, name: &str) -> serde_json::Value {
        self.events.event(name)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        wait_for(&mut self.child)
    }
}

impl Drop for Netreeve {
    fn drop(&mut self) {
        let _dead = self.child.kill();
        let _reaped = self.child.wait();
    }
}

fn pid(event: &serde_json::Value) -> Pid {
    Pid::from_raw(event["dataplane"].as_i64().unwrap() as i32)
}

fn connect(path: &str) -> UnixStream {
    let s = UnixStream::connect(path).unwrap();
    s.set_read_timeout(Some(PATIENCE)).unwrap();
    s
}

fn frame(n: u8) -> Vec<u8> {
    let mut f = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];
    f.resize(100, n);
    f
}

fn send(mut s: &UnixStream, frame: &[u8]) {
    s.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
    s.write_all(frame).unwrap();
}

fn receive(mut s: &UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    s.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    s.read_exact(&mut frame).unwrap();
    frame
}

/// Sends until it arrives: a port drops what comes before its peer is there.
fn crosses(from: &UnixStream, to: &UnixStream, n: u8) {
    to.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let until = Instant::now() + PATIENCE;
    let mut first = [0; 1];
    while nix::sys::socket::recv(to.as_raw_fd(), &mut first, nix::sys::socket::MsgFlags::MSG_PEEK).is_err() {
        assert!(Instant::now() < until, "nothing arrives");
        send(from, &frame(n));
    }
    to.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(receive(to), frame(n));
}

#[test]
fn frames_cross_and_an_orderly_end_leaves_nothing() {
    let dir = Dir::new("cross");
    let (mut n, ready) = Netreeve::pair(&dir, &["--stats"]);
    let (a, b) = (connect(&dir.at("a")), connect(&dir.at("b")));
    crosses(&a, &b, 1);
    crosses(&b, &a, 2);
    n.signal(Signal::SIGUSR1);
    let stats = n.event("stats");
    assert!(stats["ports"][0]["rx_frames"].as_u64().unwrap() >= 1, "{stats}");
    n.signal(Signal::SIGTERM);
    assert!(n.event("stats")["ports"][1]["tx_frames"].as_u64().unwrap() >= 1);
    assert_eq!(n.wait().code(), Some(0));
    assert!(!Path::new(&dir.at("a")).exists() && !Path::new(&dir.at("b")).exists());
    assert!(gone(pid(&ready)));
}

/// The other end is gone. On a busy machine `crosses` sends a frame more than is waited for: where one lay unread when its
/// reader was killed, the kernel says reset instead of end (unix(7)).
fn ended(mut s: &UnixStream) {
    match s.read(&mut [0; 1]) {
        Ok(n) => assert_eq!(n, 0),
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

#[test]
fn a_killed_dataplane_is_replaced_on_the_same_sockets() {
    let dir = Dir::new("kill");
    let (mut n, ready) = Netreeve::pair(&dir, &[]);
    let mut dataplane = pid(&ready);
    let mut times = Vec::new();
    for i in 0..20 {
        let (a, b) = (connect(&dir.at("a")), connect(&dir.at("b")));
        crosses(&a, &b, i);
        kill(dataplane, Signal::SIGKILL).unwrap();
        let killed = Instant::now();
        // The peer sees the end at once, dials again, and waits in the queue of a socket that never closed.
        ended(&a);
        let (a, b) = (connect(&dir.at("a")), connect(&dir.at("b")));
        crosses(&b, &a, i);
        times.push(killed.elapsed());
        dataplane = pid(&n.event("restarted"));
    }
    // The median, as a machine that is busy may take longer for one.
    times.sort_unstable();
    assert!(times[10] < Duration::from_millis(200), "{times:?}");
    n.signal(Signal::SIGTERM);
    assert_eq!(n.wait().code(), Some(0));
}

#[test]
fn one_that_dies_again_and_again_is_given_up() {
    let dir = Dir::new("loop");
    let (mut n, ready) = Netreeve::pair(&dir, &[]);
    let mut dataplane = pid(&ready);
    for _ in 0..9 {
        kill(dataplane, Signal::SIGSEGV).unwrap();
        dataplane = pid(&n.event("restarted"));
    }
    kill(dataplane, Signal::SIGSEGV).unwrap();
    assert_eq!(n.wait().code(), Some(1));
    assert!(!Path::new(&dir.at("a")).exists());
}

#[test]
fn a_supervisor_that_is_killed_takes_its_dataplane_along() {
    let dir = Dir::new("orphan");
    let (mut n, ready) = Netreeve::pair(&dir, &[]);
    n.signal(Signal::SIGKILL);
    n.wait();
    let until = Instant::now() + PATIENCE;
    while !gone(pid(&ready)) {
        assert!(Instant::now() < until, "the dataplane lives on");
        std::thread::sleep(Duration::from_millis(2));
    }
    // What it left behind is replaced.
    let (_next, _ready) = Netreeve::pair(&dir, &[]);
}

#[test]
fn ready_is_said_when_the_sockets_listen() {
    let dir = Dir::new("ready");
    let (mut reader, writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let number = writer.as_raw_fd().to_string();
    let pid_file = dir.at("pid");
    let netdev = format!("stream,id=n0,server=on,addr.type=unix,addr.path={}", dir.at("a"));
    let device = format!("stream,netdev=n0,server=on,addr.type=unix,addr.path={}", dir.at("b"));
    let mut n =
        Netreeve::run(&["--netdev", &netdev, "--device", &device, "--ready-fd", &number, "--pid", &pid_file]);
    drop(writer);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "ready\n");
    let (_a, _b) = (connect(&dir.at("a")), connect(&dir.at("b")));
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), format!("{}\n", n.child.id()));
    n.signal(Signal::SIGINT);
    assert_eq!(n.wait().code(), Some(0));
    assert!(!Path::new(&pid_file).exists());
}

#[test]
fn a_daemon_is_ready_when_the_command_returns() {
    let dir = Dir::new("daemon");
    let netdev = format!("stream,id=n0,server=on,addr.type=unix,addr.path={}", dir.at("a"));
    let device = format!("stream,netdev=n0,server=on,addr.type=unix,addr.path={}", dir.at("b"));
    let run = |more: &[&str]| {
        let mut command = Command::new(NETREEVE);
        command.args([
            "run",
            "--sandbox",
            "seccomp",
            "--daemonize",
            "--netdev",
            &netdev,
            "--device",
            &device,
        ]);
        command.args(more).stderr(Stdio::null()).status().unwrap().code()
    };
    assert_eq!(run(&["--pid", &dir.at("pid")]), Some(0));
    let (a, b) = (connect(&dir.at("a")), connect(&dir.at("b")));
    let daemon: i32 = fs::read_to_string(dir.at("pid")).unwrap().trim().parse().unwrap();
    crosses(&a, &b, 9);
    assert_eq!(run(&[]), Some(69), "the paths are in use");
    kill(Pid::from_raw(daemon), Signal::SIGTERM).unwrap();
    let until = Instant::now() + PATIENCE;
    while Path::new(&dir.at("pid")).exists() || Path::new(&dir.at("a")).exists() {
        assert!(Instant::now() < until, "the daemon does not clean up");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_command_lives_in_between_and_its_end_is_ours() {
    let dir = Dir::new("command");
    let out = dir.at("out");
    let script = format!("test -S {{device0.path}} && echo {{device0.path}} > {out}; exit 7");
    let (mut n, _) = Netreeve::pair(&dir, &["--", "/bin/sh", "-c", &script]);
    assert_eq!(n.wait().code(), Some(7));
    assert_eq!(fs::read_to_string(out).unwrap().trim(), dir.at("b"));

    // *Ready* is said before the command is there.
    let began = dir.at("began");
    let script = format!("echo > {began}; exec /bin/sleep 60");
    let (mut n, _) = Netreeve::pair(&dir, &["--", "/bin/sh", "-c", &script]);
    let until = Instant::now() + PATIENCE;
    while !Path::new(&began).exists() {
        assert!(Instant::now() < until, "the command does not begin");
        std::thread::sleep(Duration::from_millis(2));
    }
    n.signal(Signal::SIGTERM);
    assert_eq!(n.wait().code(), Some(128 + 15));

    let (mut n, _) = Netreeve::pair(&dir, &["--", "/nonexistent/vmm"]);
    assert_eq!(n.wait().code(), Some(69));
    assert!(!Path::new(&dir.at("a")).exists());
}

#[test]
fn a_client_dials_again_after_its_peer_and_after_its_own_dataplane() {
    let dir = Dir::new("dial");
    let path = dir.at("peer");
    let netdev = format!("stream,id=n0,addr.type=unix,addr.path={path},reconnect-ms=20");
    let device = format!("stream,netdev=n0,server=on,addr.type=unix,addr.path={}", dir.at("b"));
    // Nobody listens yet: that is no reason not to start.
    let mut n = Netreeve::run(&["--netdev", &netdev, "--device", &device]);
    let ready = n.event("ready");
    let listener = UnixListener::bind(&path).unwrap();
    let (first, _) = listener.accept().unwrap();
    let b = connect(&dir.at("b"));
    crosses(&b, &first, 1);
    drop(first);
    let (second, _) = listener.accept().unwrap();
    crosses(&second, &b, 2);
    kill(pid(&ready), Signal::SIGKILL).unwrap();
    assert_eq!((&second).read(&mut [0; 1]).unwrap_or(0), 0, "no copy of the connection is kept");
    let (third, _) = listener.accept().unwrap();
    let b = connect(&dir.at("b"));
    crosses(&third, &b, 3);
    n.signal(Signal::SIGTERM);
    assert_eq!(n.wait().code(), Some(0));
}

#[test]
fn tcp_on_both_sides_of_a_wire() {
    let dir = Dir::new("tcp");
    // The peer listens before we start, and is dialled before the dataplane is ready.
    let peer = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = peer.local_addr().unwrap().port();
    let tcp = |port| format!("addr.type=inet,addr.host=127.0.0.1,addr.port={port}");
    let netdev = format!("stream,id=n0,{},reconnect-ms=20", tcp(port));
    let device = format!("stream,netdev=n0,server=on,{}", tcp(0));
    let mut n = Netreeve::run(&["--netdev", &netdev, "--device", &device]);
    let ready = n.event("ready");
    let (a, _) = peer.accept().unwrap();
    let b = std::net::TcpStream::connect(ready["ports"][1]["address"].as_str().unwrap()).unwrap();
    // The framing does not care which kind of stream carries it.
    let (a, b) =
        (UnixStream::from(std::os::fd::OwnedFd::from(a)), UnixStream::from(std::os::fd::OwnedFd::from(b)));
    crosses(&a, &b, 1);
    crosses(&b, &a, 2);
    drop(dir);
}

#[test]
fn inherited_sockets_are_used_and_lost_with_the_dataplane_that_had_them() {
    let dir = Dir::new("inherit");
    let (ours, theirs) = UnixStream::pair().unwrap();
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let netdev = format!("stream,id=n0,addr.type=fd,addr.str={}", theirs.as_raw_fd());
    let device = format!("stream,netdev=n0,server=on,addr.type=unix,addr.path={}", dir.at("b"));
    let mut n = Netreeve::run(&["--netdev", &netdev, "--device", &device]);
    let ready = n.event("ready");
    drop(theirs);
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    let b = connect(&dir.at("b"));
    crosses(&b, &ours, 4);
    kill(pid(&ready), Signal::SIGKILL).unwrap();
    // There is no address to dial: with its only wire gone it ends, and says so.
    assert_eq!(n.wait().code(), Some(69));
}

#[test]
fn every_way_not_to_start_has_its_code() {
    let dir = Dir::new("codes");
    let a = format!("stream,id=n0,server=on,addr.type=unix,addr.path={}", dir.at("a"));
    let b = format!("stream,netdev=n0,server=on,addr.type=unix,addr.path={}", dir.at("b"));
    let code = |arguments: &[&str]| {
        Command::new(NETREEVE)
            .args(arguments)
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .unwrap()
            .code()
    };
    for (arguments, want) in [
        (vec!["--version"], 0),
        (vec!["run"], 64),
        (vec!["run", "--nonsense"], 64),
        (vec!["run", "--netdev", &a], 64),
        (vec!["run", "--netdev", "tap,id=n0,foo=1"], 78),
        (vec!["run", "--netdev", "user,id=n0,smb=/srv", "--device", &b], 78),
        (vec!["run", "--netdev", &a, "--device", &b, "--dataplane", "/nonexistent/x"], 69),
        (vec!["run", "--netdev", &a, "--device", &b, "--dataplane", "/bin/true"], 69),
        (vec!["run", "--netdev", &a, "--device", &b, "--ready-fd", "99"], 78),
        (vec!["run", "--netdev", "tap,id=n0", "--device", &b, "--helper-socket", "/nonexistent/x"], 69),
        (vec!["run", "--netdev", "stream,id=n0,addr.type=unix,addr.path=/nonexistent/x", "--device", &b], 69),
        (vec!["run", "--netdev", "tap,id=n0,fd=99", "--device", &b], 78),
        (vec!["run", "--config", "/nonexistent/x"], 78),
    ] {
        assert_eq!(code(&arguments), Some(want), "{arguments:?}");
    }
    assert_eq!(fs::read_dir(dir.at("")).unwrap().count(), 0, "no socket is left");
}

#[test]
fn a_file_says_the_same_as_options() {
    let dir = Dir::new("file");
    let body = format!(
        "[[netdev]]\ntype = 'stream'\nid = 'n0'\nserver = true\naddr = {{ type = 'unix', path = '{}' }}\n\
         [[device]]\ntype = 'stream'\nnetdev = 'n0'\nserver = true\naddr = {{ type = 'unix', path = '{}' }}\n",
        dir.at("a"),
        dir.at("b")
    );
    fs::write(dir.at("f.toml"), body).unwrap();
    let mut n = Netreeve::run(&["--config", &dir.at("f.toml")]);
    n.event("ready");
    let (a, b) = (connect(&dir.at("a")), connect(&dir.at("b")));
    crosses(&a, &b, 1);
}

/// A dataplane that is a shell script: it says the messages, then goes on living.
fn hostile(dir: &Dir, name: &str, messages: &[Vec<u8>]) -> String {
    let octal = |m: &Vec<u8>| m.iter().map(|b| format!("\\{b:03o}")).collect::<String>();
    let says: String = messages.iter().map(|m| format!("printf '{}' >&3\n", octal(m))).collect();
    let path = dir.at(name);
    fs::write(&path, format!("#!/bin/sh\n{says}exec sleep 60\n")).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    path
}

fn message(m: &FromDataplane) -> Vec<u8> {
    codec::encode(Header { kind: KIND, sequence: 0, fds: 0 }, m).unwrap()
}

#[test]
fn what_a_dataplane_writes_to_its_standard_error_comes_as_our_lines() {
    let dir = Dir::new("errors");
    let end = |name: &str| format!("server=on,addr.type=unix,addr.path={}", dir.at(name));
    let run = |says: &str| {
        let program = hostile(&dir, "program", &[]);
        fs::write(&program, format!("#!/bin/sh\n{says}\n")).unwrap();
        let mut command = Command::new(NETREEVE);
        command.args(["run", "--sandbox", "seccomp", "--dataplane", &program]);
        command.args(["--netdev", &format!("stream,id=n0,{}", end("a"))]);
        command.args(["--device", &format!("stream,netdev=n0,{}", end("b"))]);
        let out = command.stdin(Stdio::null()).output().unwrap();
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    };
    let (code, said) = run("printf 'panicked\\033[2J at\\nnetreeve: a lie' >&2; exit 101");
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("netreeve: the dataplane says: panicked?[2J at\n"), "{said}");
    assert!(said.contains("netreeve: the dataplane says: netreeve: a lie\n"), "{said}");
    assert!(said.contains("exited with status 101"), "{said}");
    let (code, said) = run("exec yes >&2");
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("it writes to its standard error without end"), "{said}");
    let lines = said.lines().filter(|l| l.ends_with("says: y")).count();
    // A burst a second; the machine may be slow.
    assert!((1..=60).contains(&lines), "{lines} lines");
}

#[test]
fn a_dataplane_that_says_what_it_may_not_is_ended() {
    let dir = Dir::new("hostile");
    let netdev = format!("stream,id=n0,server=on,addr.type=unix,addr.path={}", dir.at("a"));
    let device = format!("stream,netdev=n0,server=on,addr.type=unix,addr.path={}", dir.at("b"));
    let run = |program: &str| {
        let mut n = Netreeve::run(&["--netdev", &netdev, "--device", &device, "--dataplane", program]);
        let code = n.wait().code();
        assert!(!Path::new(&dir.at("a")).exists());
        code
    };
    let ready = || message(&FromDataplane::Ready { level: Level::Full });
    let stats = FromDataplane::Stats { slot: 0, stats: Box::default(), up: true };
    let piece = Piece::Region(Layout { gpa: 0, uva: 0, len: 4096, offset: 0 });
    let mut cut = ready();
    cut.pop();
    // Before it was ever ready: it did not start.
    for (name, messages) in [
        ("garbage", vec![b"hello".to_vec()]),
        ("cut", vec![cut]),
        ("early", vec![message(&FromDataplane::Redial { slot: 0 })]),
        ("failed", vec![message(&FromDataplane::Failed { slot: Some(9), errno: -1, why: "\x1b[2J".into() })]),
    ] {
        let mut script = hostile(&dir, name, &messages);
        if name == "failed" {
            fs::write(&script, fs::read_to_string(&script).unwrap().replace("exec sleep 60", "exit 1"))
                .unwrap();
            script = dir.at(name);
        }
        assert_eq!(run(&script), Some(69), "{name}");
    }
    // After: it is replaced, and given up when the next ones are no better. All these runs take their waits together.
    let late = [
        ("twice", vec![ready(), ready()]),
        ("redial", vec![ready(), message(&FromDataplane::Redial { slot: 0 })]),
        ("nowhere", vec![ready(), message(&FromDataplane::Link { slot: 7, up: true })]),
        ("unasked", vec![ready(), message(&stats)]),
        ("piece", vec![ready(), message(&FromDataplane::Piece { slot: 1, piece })]),
        ("kept", vec![ready(), message(&FromDataplane::Kept { slot: 1, whole: true })]),
        ("unsettled", vec![ready(), message(&FromDataplane::Unsettled { slot: 7 })]),
        // No misdeed, but a reason for another dataplane: its socket is still there.
        ("dead", vec![ready(), message(&FromDataplane::Dead { slot: 1, errno: 5 })]),
    ];
    let mut running: Vec<(&str, Netreeve)> = Vec::new();
    for (name, messages) in late {
        let program = hostile(&dir, name, &messages);
        let at = |end| format!("server=on,addr.type=unix,addr.path={}", dir.at(&format!("{name}-{end}")));
        let (netdev, device) = (format!("stream,id=n0,{}", at("a")), format!("stream,netdev=n0,{}", at("b")));
        running.push((
            name,
            Netreeve::run(&["--netdev", &netdev, "--device", &device, "--dataplane", &program]),
        ));
    }
    for (name, mut n) in running {
        assert_eq!(n.wait().code(), Some(1), "{name}");
    }
}
