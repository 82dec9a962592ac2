//! QEMU's mirrors, redirectors and buffers: ours beside QEMU's own, and what becomes of frames when they come and go.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use netreeve_tests::inspect;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::{Dir, PATIENCE, Qemu, Vm, frame, greeting, until};
use crate::wire::Wire;

fn stream(id: &str, at: &str, role: &str) -> [String; 2] {
    ["--netdev".into(), format!("stream,id={id},{role},addr.type=unix,addr.path={at}")]
}

fn object(text: &str) -> [String; 2] {
    ["--object".into(), text.into()]
}

/// A QEMU with a filter at its netdev `p`, whose character device is at `chardev`.
fn qemu(dir: &Dir, chardev: &str, filter: &str) -> Qemu {
    let sink = dir.at("sink");
    let listener = UnixListener::bind(&sink).unwrap();
    let more = ["-chardev", &format!("socket,id=c,{chardev}"), "-object", &format!("{filter},id=f,netdev=p")];
    let mut qemu = Qemu::with(dir, &format!("stream,addr.type=unix,addr.path={sink}"), &more);
    // Who reads nothing holds nobody up: a hub's other members are not many here.
    let mut conn = qemu.dialled(&listener);
    std::thread::spawn(move || std::io::copy(&mut conn, &mut std::io::sink()));
    qemu
}

const LENS: [usize; 7] = [60, 1514, 64, 9000, 342, 65550, 69632];

#[test]
fn qemus_mirror_into_our_redirector() {
    for vnet in [false, true] {
        let dir = Dir::new();
        let (path, on) = (dir.at("m"), if vnet { ",vnet_hdr_support=on" } else { "" });
        let more = [
            stream("m0", &path, "reconnect-ms=20"),
            object(&format!("filter-redirector,id=f0,netdev=n0,queue=tx,indev=m0{on}")),
        ];
        let chardev = format!("path={path},server=on,wait=off");
        let qemu = qemu(&dir, &chardev, &format!("filter-mirror,queue=rx,outdev=c{on}"));
        let mut wire = Wire::new(&dir, &more.concat());
        until("the mirror to be read", || {
            qemu.send(&greeting());
            wire.vm.greeted(Duration::from_millis(50))
        });
        for (n, len) in (0..).zip(LENS) {
            qemu.send(&frame(len, n));
            assert!(wire.vm.recv() == frame(len, n), "{len} bytes, vnet {vnet}");
        }
        // The wire's own frames pass as well.
        wire.net.send(&frame(100, 77));
        assert_eq!(wire.vm.recv(), frame(100, 77));
    }
}

#[test]
fn our_mirror_into_qemus_redirector() {
    for vnet in [false, true] {
        let dir = Dir::new();
        let (path, on) = (dir.at("m"), if vnet { ",vnet_hdr_support=on" } else { "" });
        let more = [
            stream("m0", &path, "server=on"),
            object(&format!("filter-mirror,id=f0,netdev=n0,outdev=m0{on}")),
        ];
        let mut wire = Wire::new(&dir, &more.concat());
        let qemu = qemu(&dir, &format!("path={path}"), &format!("filter-redirector,queue=tx,indev=c{on}"));
        until("QEMU at the port", || wire.ports().contains("stream").then_some(()));
        // With the header, that is what QEMU puts in for a netdev that has one: as it came.
        let header = if vnet { vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0] } else { Vec::new() };
        until("a copy", || {
            wire.vm.send(&greeting());
            qemu.greeted(Duration::from_millis(50))
        });
        for (n, len) in (0..).zip(LENS).filter(|(_, len)| len + header.len() <= 69632) {
            wire.vm.send(&frame(len, n));
            assert!(wire.net.recv() == frame(len, n), "{len} bytes pass");
            assert!(qemu.recv() == [&header[..], &frame(len, n)].concat(), "{len} bytes, vnet {vnet}");
            wire.net.send(&frame(len, n + 50));
            assert!(wire.vm.recv() == frame(len, n + 50), "{len} bytes pass");
            assert!(qemu.recv() == [&header[..], &frame(len, n + 50)].concat(), "{len} bytes, vnet {vnet}");
        }
    }
}

#[test]
fn a_redirector_comes_and_goes_while_frames_pass() {
    let dir = Dir::new();
    let mut wire = Wire::new(&dir, &[]);
    let out = dir.at("out");
    let add = format!(
        "{{\"type\":\"stream\",\"id\":\"m0\",\"server\":true,\"addr\":{{\"type\":\"unix\",\"path\":\"{out}\"}}}}"
    );
    wire.done("netdev_add", &add);
    let filter = r#"{"qom-type":"filter-redirector","id":"f0","netdev":"vm","queue":"tx","outdev":"m0"}"#;
    wire.done("object-add", filter);
    let again = wire.ask("object-add", filter);
    assert!(again.contains("duplicate property 'f0'"), "{again}");
    // Nobody is there: frames pass.
    wire.vm.send(&frame(80, 1));
    assert_eq!(wire.net.recv(), frame(80, 1));
    let in_use = wire.ask("netdev_del", r#"{"id":"m0"}"#);
    assert!(in_use.contains("in use by object 'f0'"), "{in_use}");
    let mut aside = Vm::at(&out);
    until("frames aside", || {
        wire.vm.send(&greeting());
        aside.greeted(Duration::from_millis(50))
    });
    for n in 0..200 {
        wire.vm.send(&frame(60 + n as usize, n));
    }
    for n in 0..200 {
        assert_eq!(aside.recv(), frame(60 + n as usize, n));
    }
    // The other way is not the filter's.
    wire.net.send(&frame(90, 5));
    assert_eq!(wire.vm.recv(), frame(90, 5));
    wire.done("qom-set", r#"{"path":"/objects/f0","property":"status","value":"off"}"#);
    wire.vm.send(&frame(90, 6));
    assert_eq!(wire.net.recv(), frame(90, 6));
    wire.done("qom-set", r#"{"path":"f0","property":"status","value":"on"}"#);
    wire.vm.send(&frame(90, 7));
    assert_eq!(aside.recv(), frame(90, 7));
    let listed = wire.ask("netreeve-query-filters", "{}");
    assert!(listed.contains("\"outdev\":\"m0\"") && listed.contains("filter-redirector"), "{listed}");
    // The next dataplane has it again; who is at the stream comes again.
    let child = inspect::descendant_named(wire.proc.pid(), "netreeve-dataplane", PATIENCE).unwrap();
    kill(Pid::from_raw(child), Signal::SIGKILL).unwrap();
    wire.proc.wait_for("is back after", PATIENCE).unwrap();
    assert_eq!(aside.0.read(&mut [0; 1]).unwrap_or(0), 0, "its connection ended with the dataplane");
    let mut aside = Vm::at(&out);
    wire.net = Vm::at(&dir.at("n"));
    wire.vm = Vm::at(&dir.at("v"));
    until("frames aside again", || {
        wire.vm.send(&greeting());
        aside.greeted(Duration::from_millis(50))
    });
    wire.done("object-del", r#"{"id":"f0"}"#);
    wire.vm.send(&frame(70, 9));
    assert_eq!(wire.net.recv(), frame(70, 9));
    wire.done("netdev_del", r#"{"id":"m0"}"#);
    wire.settle();
}

#[test]
fn a_buffer_holds_frames_for_its_interval_and_gives_them_back() {
    let dir = Dir::new();
    // One that is never over within this test, on both sides of the wire.
    let more = object("filter-buffer,id=f0,netdev=n0,interval=4000000000,status=off");
    let mut wire = Wire::new(&dir, &more);
    let set = |wire: &mut Wire, on: &str| {
        let arguments = format!(r#"{{"path":"f0","property":"status","value":"{on}"}}"#);
        wire.done("qom-set", &arguments);
    };
    for last in [false, true] {
        set(&mut wire, "on");
        for n in 0..300 {
            wire.net.send(&frame(60 + n as usize, n));
            wire.vm.send(&frame(60 + n as usize, n + 1000));
        }
        assert!(wire.vm.drain(Duration::from_millis(100)).is_empty(), "they are held");
        assert!(wire.net.drain(Duration::from_millis(20)).is_empty(), "they are held");
        if last {
            wire.done("object-del", r#"{"id":"f0"}"#);
        } else {
            set(&mut wire, "off");
        }
        wire.net.send(&frame(77, 300));
        wire.vm.send(&frame(77, 1300));
        for n in 0..300 {
            assert_eq!(wire.vm.recv(), frame(60 + n as usize, n));
            assert_eq!(wire.net.recv(), frame(60 + n as usize, n + 1000));
        }
        assert_eq!((wire.vm.recv(), wire.net.recv()), (frame(77, 300), frame(77, 1300)));
    }
    // An ordinary one: late, all, in order, also more than it has room for at a time.
    let add = r#"{"qom-type":"filter-buffer","id":"f1","netdev":"vm","interval":100000}"#;
    let since = Instant::now();
    wire.done("object-add", add);
    let mut to = wire.net.0.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        for n in 0..9000 {
            to.write_all(&[&80_u32.to_be_bytes()[..], &frame(80, n)].concat()).unwrap();
        }
    });
    for n in 0..9000 {
        assert_eq!(wire.vm.recv(), frame(80, n));
    }
    writer.join().unwrap();
    // At most 4096 wait at a time: the last came with the third time at the earliest.
    assert!(since.elapsed() >= Duration::from_millis(300), "{:?}", since.elapsed());
    let ports = wire.ports();
    assert!(!ports.contains("\"full\":1"), "{ports}");
}

/// Another client of the control socket.
struct Client(BufReader<UnixStream>);

impl Client {
    fn at(path: &str) -> Self {
        let s = UnixStream::connect(path).unwrap();
        s.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self(BufReader::new(s));
        client.say("qmp_capabilities", "{}");
        client.answer();
        client
    }

    fn say(&mut self, command: &str, arguments: &str) {
        let text = format!("{{\"execute\":\"{command}\",\"arguments\":{arguments},\"id\":7}}\n");
        self.0.get_mut().write_all(text.as_bytes()).unwrap();
    }

    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0);
            if line.contains("\"id\":7") {
                return line;
            }
        }
    }
}

#[test]
fn what_two_clients_take_away_at_once_goes_once() {
    let dir = Dir::new();
    let mut wire = Wire::new(&dir, &object("filter-buffer,id=f0,netdev=n0,interval=1000"));
    let mut clients = [Client::at(&dir.at("c")), Client::at(&dir.at("c"))];
    let add = format!(
        r#"{{"type":"stream","id":"x0","server":true,"addr":{{"type":"unix","path":"{}"}}}}"#,
        dir.at("x")
    );
    wire.done("netdev_add", &add);
    let child =
        Pid::from_raw(inspect::descendant_named(wire.proc.pid(), "netreeve-dataplane", PATIENCE).unwrap());
    for (command, id) in [("object-del", "f0"), ("netdev_del", "x0")] {
        kill(child, Signal::SIGSTOP).unwrap();
        clients.iter_mut().for_each(|c| c.say(command, &format!(r#"{{"id":"{id}"}}"#)));
        // The one who is heard second is told so, whether the dataplane has done it by then or not.
        wire.done("netreeve-query-filters", "{}");
        kill(child, Signal::SIGCONT).unwrap();
        let said = clients.each_mut().map(Client::answer);
        assert_eq!(said.iter().filter(|s| s.contains("\"return\"")).count(), 1, "{said:?}");
        let told = said.iter().filter(|s| s.contains("\"error\"") && s.contains(&format!("'{id}'")));
        assert_eq!(told.count(), 1, "{said:?}");
    }
    // The next one has its number, and is nobody else's.
    wire.done("object-add", r#"{"qom-type":"filter-buffer","id":"f1","netdev":"n0","interval":1000}"#);
    let listed = wire.ask("netreeve-query-filters", "{}");
    assert!(listed.contains("\"f1\"") && !listed.contains("\"f0\""), "{listed}");
    wire.settle();
}
