//! `vde_switch` with QEMU's and `vde_plug`'s own plugs in it, and a switch of this test's that does not read.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use netreeve_tests::bins;
use netreeve_tests::proc::Proc;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::Pid;

use crate::support::{Dir, PATIENCE, Qemu, Reeve, STOPPED, Vm, fill, frame, number, until};

/// `vde_switch` of the directory `sw`.
pub(crate) struct Switch {
    proc: Proc,
    _input: Option<ChildStdin>,
    console: String,
}

impl Switch {
    pub(crate) fn run(dir: &Dir) -> Self {
        let console = dir.at("console");
        let mut command = Command::new(bins::peer("vde_switch").unwrap());
        command.args(["-s", &dir.at("sw"), "-M", &console]);
        let mut proc = Proc::with_input("vde_switch", command).unwrap();
        // It ends with its standard input.
        let input = proc.input();
        until("the switch", || UnixStream::connect(&console).ok());
        Self { proc, _input: input, console }
    }

    /// The switch's answer to a command.
    fn says(&self, command: &str) -> String {
        let mut s = UnixStream::connect(&self.console).unwrap();
        s.set_read_timeout(Some(PATIENCE)).unwrap();
        s.write_all(format!("{command}\n").as_bytes()).unwrap();
        let (mut said, mut line) = (String::new(), String::new());
        let mut from = BufReader::new(s);
        // The line that ends an answer.
        while !line.contains("1000 Success") {
            line.clear();
            assert!(from.read_line(&mut line).unwrap() > 0, "{command}: {said}");
            said.push_str(&line);
        }
        said
    }

    /// Kills it, so that its files stay, as after a crash.
    fn kill(mut self) {
        self.proc.signal(Signal::SIGKILL).unwrap();
        self.proc.wait(PATIENCE).unwrap();
    }
}

/// A frame that a switch floods and learns nothing odd from.
pub(crate) fn broadcast(len: usize, n: u32, from: u8) -> Vec<u8> {
    let mut f = frame(len, n);
    f[..12].copy_from_slice(&[255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, from]);
    f[12..14].copy_from_slice(&[0x88, 0xb5]);
    f
}

/// One frame at a time, both ways: QEMU's plug and the switch lose what comes too fast.
fn exchange(qemu: &Qemu, vm: &mut Vm) {
    qemu.settle(vm);
    for (n, len) in (0..).zip([60, 64, 342, 1514, 1518].iter().cycle().take(100)) {
        let there = broadcast(*len, n, 1);
        qemu.send(&there);
        assert!(vm.recv() == there, "{len} bytes to the VM");
        let back = broadcast(*len, n, 2);
        vm.send(&back);
        assert!(qemu.recv() == back, "{len} bytes from the VM");
    }
}

#[test]
fn a_switch_with_qemu_in_it() {
    let dir = Dir::new();
    let (sw, theirs) = (dir.at("sw"), format!("vde,sock={}", dir.at("sw")));
    let switch = Switch::run(&dir);
    let reeve = Reeve::run(&dir, &format!("vde,id=n0,sock={sw},port=5,reconnect-ms=50"), &[]);
    let mut vm = reeve.vm();
    let qemu = Qemu::run(&dir, &theirs);
    exchange(&qemu, &mut vm);
    let endpoints = || {
        let said = switch.says("port/allprint");
        said.lines()
            .filter(|l| l.contains("endpoint") || l.contains("Port"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let ports = endpoints();
    let ours = ports.iter().position(|l| l.contains("netreeve user=")).unwrap();
    assert!(ports[ours - 1].contains("Port 0005"), "{ports:?}");
    // Longer than the switch takes: dropped here, where it is counted, and not cut off there.
    vm.send(&broadcast(1519, 1, 2));
    vm.send(&broadcast(60, 2, 2));
    assert!(qemu.recv() == broadcast(60, 2, 2));
    // The switch sees nothing of a dataplane's end.
    let ready: serde_json::Value =
        serde_json::from_str(&reeve.proc.wait_for("\"ready\"", PATIENCE).unwrap().text).unwrap();
    kill(Pid::from_raw(ready["dataplane"].as_i64().unwrap() as i32), Signal::SIGKILL).unwrap();
    let mut vm = reeve.vm();
    exchange(&qemu, &mut vm);
    assert_eq!(endpoints(), ports);
    // It is killed and started again: QEMU's plug does not notice, ours does.
    drop(qemu);
    switch.kill();
    let switch = Switch::run(&dir);
    let qemu = Qemu::run(&dir, &theirs);
    exchange(&qemu, &mut vm);
    assert!(switch.says("port/allprint").contains("netreeve user="));
    drop(qemu);
    let said = reeve.end();
    assert!(said.contains("the switch is gone") || said.contains("\"reconnects\":1"), "{said}");
    let left = switch.says("port/allprint");
    assert!(!left.contains("netreeve user="), "{left}");
}

#[test]
fn a_switch_that_is_not_there_is_said_or_waited_for() {
    let dir = Dir::new();
    let mut command = Command::new(bins::ours("netreeve").unwrap());
    let netdev = format!("vde,id=n0,sock={}", dir.at("sw"));
    command.args(["run", "--netdev", &netdev, "--device"]);
    command.arg(format!("stream,netdev=n0,server=on,addr.type=unix,addr.path={}", dir.at("vm")));
    let end = Proc::spawn("netreeve", command).unwrap().wait(PATIENCE).unwrap();
    assert_eq!(end.code, 69, "{}", end.text);
    assert!(end.text.contains("plugging into") && end.text.contains("vde_switch -s"), "{}", end.text);
    let reeve = Reeve::run(&dir, &format!("{netdev},reconnect-ms=50"), &[]);
    let mut vm = reeve.vm();
    let _switch = Switch::run(&dir);
    let qemu = Qemu::run(&dir, &format!("vde,sock={}", dir.at("sw")));
    exchange(&qemu, &mut vm);
}

/// A switch of our own that reads when it likes.
#[test]
fn a_switch_that_does_not_read_stops_the_writer_and_loses_nothing() {
    let dir = Dir::new();
    fs::create_dir(dir.at("sw")).unwrap();
    let listener = UnixListener::bind(dir.at("sw/ctl")).unwrap();
    let reeve = Reeve::run(&dir, &format!("vde,id=n0,sock={},reconnect-ms=50", dir.at("sw")), &[]);
    let (mut ctl, _) = listener.accept().unwrap();
    let mut request = [0; 512];
    let n = ctl.read(&mut request).unwrap();
    assert!((122..=250).contains(&n));
    let end = request[14..122].iter().position(|b| *b == 0).unwrap();
    let client = std::str::from_utf8(&request[14..14 + end]).unwrap().to_owned();
    let data = UnixDatagram::bind(dir.at("sw/port")).unwrap();
    data.connect(&client).unwrap();
    data.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut answer = vec![0; 110];
    answer[..2].copy_from_slice(&1_u16.to_ne_bytes());
    answer[2..2 + dir.at("sw/port").len()].copy_from_slice(dir.at("sw/port").as_bytes());
    ctl.write_all(&answer).unwrap();
    let mut vm = reeve.vm();
    data.send(&frame(60, 1)).unwrap();
    assert_eq!(vm.recv(), frame(60, 1));
    until("our socket's file to go", || (!fs::exists(&client).unwrap()).then_some(()));
    vm.patience(STOPPED);
    let (sent, rest) = fill(&mut vm.0);
    vm.patience(PATIENCE);
    std::thread::scope(|s| {
        let mut writer = vm.0.try_clone().unwrap();
        s.spawn(move || writer.write_all(&rest).unwrap());
        let mut got = [0; 2000];
        for n in 0..=sent {
            let len = data.recv(&mut got).unwrap();
            assert!(got[..len] == frame(1400, n), "frame {n} of {sent}");
        }
    });
}

/// A socket pair of this kind, one end for `netreeve`.
fn pair(kind: SockType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).unwrap()
}

/// What `vde_plug` speaks on its standard streams and on a message socket.
#[test]
fn framings_of_vde_plug() {
    let dir = Dir::new();
    let _switch = Switch::run(&dir);
    let qemu = Qemu::run(&dir, &format!("vde,sock={}", dir.at("sw")));
    for (framing, kind) in [("u16be", SockType::Stream), ("seqpacket", SockType::SeqPacket)] {
        let (ours, theirs) = pair(kind);
        let mut command = Command::new(bins::peer("vde_plug").unwrap());
        let there = format!("vde://{}", dir.at("sw"));
        let mut plug = if framing == "u16be" {
            command.arg(there);
            command
                .stdin(Stdio::from(theirs.try_clone().unwrap()))
                .stdout(Stdio::from(theirs))
                .spawn()
                .unwrap()
        } else {
            nix::fcntl::fcntl(&theirs, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
            command.args([format!("seqpacket://{}", number(&theirs)), there]);
            let plug = command.stdin(Stdio::null()).spawn().unwrap();
            drop(theirs);
            plug
        };
        let netdev = format!("stream,id=n0,framing={framing},addr.type=fd,addr.str={}", number(&ours));
        let reeve = Reeve::run(&dir, &netdev, &[&ours]);
        drop(ours);
        let mut vm = reeve.vm();
        exchange(&qemu, &mut vm);
        reeve.end();
        // The end of our connection is that of its.
        until("vde_plug's end", || plug.try_wait().unwrap());
    }
}

/// `vde_plug` to this network, and its standard streams.
fn vde_plug(to: &str) -> (Child, UnixStream) {
    let (ours, theirs) = pair(SockType::Stream);
    let mut command = Command::new(bins::peer("vde_plug").unwrap());
    command.arg(to).stdin(theirs.try_clone().unwrap()).stdout(theirs);
    (command.spawn().unwrap(), ours.into())
}

fn wire16(f: &[u8]) -> Vec<u8> {
    [&(f.len() as u16).to_be_bytes(), f].concat()
}

fn read16(from: &mut UnixStream) -> Option<Vec<u8>> {
    let mut len = [0; 2];
    from.read_exact(&mut len).ok()?;
    let mut f = vec![0; u16::from_be_bytes(len).into()];
    from.read_exact(&mut f).unwrap();
    Some(f)
}

/// The other way round: `netreeve` is the switch, and nobody who plugs in knows the difference.
#[test]
fn qemu_vde_plug_and_netreeve_in_a_switch_of_ours() {
    let dir = Dir::new();
    let sw = dir.at("sw");
    let reeve = Reeve::run(&dir, &format!("vde,id=n0,server=on,sock={sw}"), &[]);
    let mut vm = reeve.vm();
    let qemu = Qemu::run(&dir, &format!("vde,sock={sw}"));
    exchange(&qemu, &mut vm);
    let (mut plug, mut plugged) = vde_plug(&format!("vde://{sw}[7]"));
    // What was sent before it was plugged in is nobody's.
    plugged.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let got = until("vde_plug", || {
        vm.send(&broadcast(60, 1, 2));
        read16(&mut plugged)
    });
    plugged.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(got, broadcast(60, 1, 2));
    let other = Reeve::run(&dir, &format!("vde,id=n0,sock={sw}[9],reconnect-ms=50"), &[]);
    let mut far = other.vm();
    until("the other netreeve", || {
        far.send(&broadcast(60, 2, 4));
        vm.drain(Duration::from_millis(50)).contains(&broadcast(60, 2, 4)).then_some(())
    });
    // Everybody hears everybody, at every size.
    let hear = |who: &mut dyn FnMut() -> Vec<u8>, f: &[u8]| until("a frame", || (who() == f).then_some(()));
    for (n, len) in (10..).zip([60, 64, 342, 1514, 1518]) {
        let f = broadcast(len, n, 3);
        plugged.write_all(&wire16(&f)).unwrap();
        hear(&mut || qemu.recv(), &f);
        hear(&mut || vm.recv(), &f);
        hear(&mut || far.recv(), &f);
        let f = broadcast(len, n + 100, 4);
        far.send(&f);
        hear(&mut || qemu.recv(), &f);
        hear(&mut || vm.recv(), &f);
        hear(&mut || read16(&mut plugged).unwrap(), &f);
    }
    // They stay plugged in when the dataplane dies.
    let ready: serde_json::Value =
        serde_json::from_str(&reeve.proc.wait_for("\"ready\"", PATIENCE).unwrap().text).unwrap();
    kill(Pid::from_raw(ready["dataplane"].as_i64().unwrap() as i32), Signal::SIGKILL).unwrap();
    let mut vm = reeve.vm();
    exchange(&qemu, &mut vm);
    // vde_plug does nothing else while nobody reads what it writes.
    plugged.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    while read16(&mut plugged).is_some() {}
    plugged.write_all(&wire16(&broadcast(60, 99, 3))).unwrap();
    hear(&mut || vm.recv(), &broadcast(60, 99, 3));
    hear(&mut || far.recv(), &broadcast(60, 99, 3));
    drop(plugged);
    until("vde_plug's end", || plug.try_wait().unwrap());
    let of_port =
        |e: std::io::Result<fs::DirEntry>| e.unwrap().file_name().as_encoded_bytes().starts_with(b"007-");
    until("its port's end", || (!fs::read_dir(&sw).unwrap().any(of_port)).then_some(()));
    drop(qemu);
    other.end();
    reeve.end();
    assert!(!fs::exists(format!("{sw}/ctl")).unwrap());
}

/// Asks for a port; the connection and the data socket.
fn asks(dir: &Dir, name: &str) -> (UnixStream, UnixDatagram) {
    let at = dir.at(name);
    let data = UnixDatagram::bind(&at).unwrap();
    let mut ctl = UnixStream::connect(dir.at("sw/ctl")).unwrap();
    ctl.set_read_timeout(Some(PATIENCE)).unwrap();
    let words = [0xfeed_face_u32, 3, 0].into_iter().flat_map(u32::to_ne_bytes);
    let mut address = vec![1, 0];
    address.extend(at.bytes());
    address.resize(110, 0);
    ctl.write_all(&words.chain(address).chain(*b"test").collect::<Vec<u8>>()).unwrap();
    (ctl, data)
}

/// Clock ticks that a process has used.
fn ticks(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn who_finds_every_place_of_a_switch_taken_is_told_and_costs_nothing_more() {
    for (bound, why) in [("clients=2", "all 2 ports are taken"), ("per-user=2", "has 2 ports")] {
        let dir = Dir::new();
        let netdev = format!("vde,id=n0,server=on,{bound},sock={}", dir.at("sw"));
        let reeve = Reeve::run(&dir, &netdev, &[]);
        let mut in_it = ["a", "b"].map(|n| asks(&dir, n));
        for (ctl, _) in &mut in_it {
            assert!(ctl.read(&mut [0; 200]).unwrap() > 0, "it has a port");
        }
        for n in 0..40 {
            let (mut ctl, _data) = asks(&dir, &format!("c{n}"));
            assert_eq!(ctl.read(&mut [0; 200]).unwrap_or(0), 0, "{bound}: it is turned away");
        }
        reeve.proc.wait_for(why, PATIENCE).unwrap();
        // One that does not say what it wants waits for its patience to end.
        let silent = UnixStream::connect(dir.at("sw/ctl")).unwrap();
        let ready: serde_json::Value =
            serde_json::from_str(&reeve.proc.wait_for("\"ready\"", PATIENCE).unwrap().text).unwrap();
        let pids = [reeve.proc.pid(), ready["dataplane"].as_i64().unwrap() as i32];
        let used = || pids.iter().map(|p| ticks(*p)).sum::<u64>();
        let before = used();
        std::thread::sleep(Duration::from_secs(1));
        assert!(used() - before < 30, "{bound}: nobody is busy with who waits: {} ticks", used() - before);
        drop((silent, in_it));
        // Their places are free again.
        until("a place", || {
            let _gone = fs::remove_file(dir.at("d"));
            let (mut ctl, _data) = asks(&dir, "d");
            (ctl.read(&mut [0; 200]).unwrap_or(0) > 0).then_some(())
        });
        reeve.end();
    }
}
