//! The control socket of a running `netreeve`, spoken to in raw QMP and by the commands that use it: ports that need no
//! privilege, so every user can run this.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    reason = "a test may fail loudly"
)]

mod child;
mod dir;

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use child::{Lines, PATIENCE, end_of, wait_for};
use dir::Dir;

const NETREEVE: &str = env!("CARGO_BIN_EXE_netreeve");

/// A running instance with two listening streams, `n0` and `d0`, on one wire.
struct Instance {
    child: Child,
    control: String,
}

impl Instance {
    fn start(dir: &Dir, more: &[&str]) -> Self {
        let netdev = format!("stream,id=n0,server=on,addr.type=unix,addr.path={}", dir.at("a"));
        let device = format!("stream,id=d0,netdev=n0,server=on,addr.type=unix,addr.path={}", dir.at("b"));
        Self::of(dir, &[&["--netdev", &netdev, "--device", &device], more].concat())
    }

    /// An instance of these ports.
    fn of(dir: &Dir, more: &[&str]) -> Self {
        let mut command = Command::new(NETREEVE);
        command.args(["run", "--sandbox", "seccomp"]);
        let (reader, writer) = std::io::pipe().unwrap();
        let control = dir.at("c");
        if !more.contains(&"--name") {
            command.args(["--control", &control]);
        }
        // Standard output is the pipe: one line of JSON when it is ready.
        let child = command.arg("--json").args(more).stdout(writer).stdin(Stdio::null()).spawn().unwrap();
        drop(command);
        let new = Self { child, control };
        Lines::of(reader).next(PATIENCE).unwrap();
        new
    }

    fn wait(&mut self) -> ExitStatus {
        wait_for(&mut self.child)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let _ended = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        let _reaped = end_of(&mut self.child);
    }
}

/// A client that speaks raw QMP.
struct Client(BufReader<UnixStream>, VecDeque<Value>);

impl Client {
    fn connect(instance: &Instance) -> Self {
        let stream = UnixStream::connect(&instance.control).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut new = Self(BufReader::new(stream), VecDeque::new());
        assert!(new.read()["QMP"]["version"]["package"].as_str().unwrap().starts_with("netreeve "));
        new
    }

    fn negotiated(instance: &Instance) -> Self {
        let mut new = Self::connect(instance);
        assert_eq!(new.ask(json!({"execute": "qmp_capabilities"})), json!({"return": {}}));
        new
    }

    fn say(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "closed");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))
    }

    /// The next answer; events that come before it are kept.
    fn answer(&mut self) -> Value {
        loop {
            let v = self.read();
            if v.get("event").is_none() {
                return v;
            }
            self.1.push_back(v);
        }
    }

    fn ask(&mut self, request: Value) -> Value {
        self.say(request.to_string().as_bytes());
        self.answer()
    }

    fn run(&mut self, command: &str) -> Value {
        let mut answer = self.ask(json!({"execute": command}));
        assert!(answer.get("return").is_some(), "{answer}");
        answer["return"].take()
    }

    /// The next event of that name; those before it are passed over.
    fn event(&mut self, name: &str) -> Value {
        loop {
            let v = self.1.pop_front().unwrap_or_else(|| self.read());
            if v["event"] == name {
                return v["data"].clone();
            }
        }
    }
}

fn netreeve(arguments: &[&str]) -> Output {
    Command::new(NETREEVE).args(arguments).output().unwrap()
}

fn said(arguments: &[&str]) -> String {
    let out = netreeve(arguments);
    assert!(out.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// A frame in QEMU's framing.
fn frame(bytes: usize) -> Vec<u8> {
    let mut f = (bytes as u32).to_be_bytes().to_vec();
    f.extend(std::iter::repeat_n(7, bytes));
    f
}

fn error(class: &str, desc: &str) -> Value {
    json!({"error": {"class": class, "desc": desc}})
}

/// Classes and words are those of QEMU 10.0.2, asked the same.
#[test]
fn it_answers_as_qemu_does() {
    let dir = Dir::new("qemu");
    let instance = Instance::start(&dir, &[]);
    let mut c = Client::connect(&instance);
    let early = error("CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'");
    assert_eq!(c.ask(json!({"execute": "query-status"})), early);
    assert_eq!(c.ask(json!({"execute": "nope"})), early);
    let oob = json!({"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}});
    assert_eq!(c.ask(oob), error("GenericError", "Capability oob not available"));
    let mut with_id = json!({"execute": "qmp_capabilities", "id": {"a": [1]}});
    assert_eq!(c.ask(with_id.clone()), json!({"return": {}, "id": {"a": [1]}}));
    let again = c.ask(with_id.take());
    assert_eq!(again["error"]["desc"], "Capabilities negotiation is already complete, command ignored");
    assert_eq!(again["id"], json!({"a": [1]}));
    assert_eq!(
        c.ask(json!({"execute": "query-status"})),
        json!({"return": {"running": true, "status": "running"}})
    );
}

#[test]
fn what_it_refuses_it_refuses_as_qemu_does() {
    let dir = Dir::new("refuses");
    let instance = Instance::start(&dir, &[]);
    let mut c = Client::negotiated(&instance);
    for (request, class, desc) in [
        (json!({"execute": "nope"}), "CommandNotFound", "The command nope has not been found"),
        (
            json!({"execute": "query-status", "foo": 1}),
            "GenericError",
            "QMP input member 'foo' is unexpected",
        ),
        (
            json!({"execute": "query-status", "arguments": {"x": 1}}),
            "GenericError",
            "Parameter 'x' is unexpected",
        ),
        (
            json!({"execute": "set_link", "arguments": {"name": "zz", "up": true}}),
            "DeviceNotFound",
            "Device 'zz' not found",
        ),
        (
            json!({"execute": "set_link", "arguments": {"name": "n0"}}),
            "GenericError",
            "Parameter 'up' is missing",
        ),
        (
            json!({"execute": "set_link", "arguments": {"name": "n0", "up": "x"}}),
            "GenericError",
            "Invalid parameter type for 'up', expected: boolean",
        ),
        (
            json!({"execute": "getfd", "arguments": {"fdname": "x"}}),
            "GenericError",
            "No file descriptor supplied via SCM_RIGHTS",
        ),
        (
            json!({"execute": "closefd", "arguments": {"fdname": "x"}}),
            "GenericError",
            "File descriptor named 'x' not found",
        ),
        (json!([1]), "GenericError", "QMP input must be a JSON object"),
    ] {
        assert_eq!(c.ask(request.clone()), error(class, desc), "{request}");
    }
    // Two on one line, and one after a broken line.
    c.say(b"{\"execute\":\"query-status\",\"id\":1} {\"execute\":\"query-name\",\"id\":2}{\"oops\"]\n");
    assert_eq!((c.read()["id"].clone(), c.read()), (json!(1), json!({"return": {}, "id": 2})));
    assert!(c.read()["error"]["desc"].as_str().unwrap().starts_with("JSON parse error, "));
    let names = c.run("query-commands");
    let names: Vec<&str> = names.as_array().unwrap().iter().map(|n| n["name"].as_str().unwrap()).collect();
    for wanted in ["qmp_capabilities", "query-commands", "query-version", "set_link", "quit"] {
        assert!(names.contains(&wanted), "{names:?}");
    }
}

#[test]
fn ports_are_told_with_peer_state_and_counters_and_events_as_they_happen() {
    let dir = Dir::new("ports");
    let instance = Instance::start(&dir, &[]);
    let mut c = Client::negotiated(&instance);
    let ports = c.run("netreeve-query-ports");
    assert_eq!(
        (&ports[0]["id"], &ports[0]["role"], &ports[0]["peer"]),
        (&json!("n0"), &json!("netdev"), &json!("d0"))
    );
    assert_eq!(
        (&ports[1]["id"], &ports[1]["role"], &ports[1]["peer"]),
        (&json!("d0"), &json!("device"), &json!("n0"))
    );
    assert_eq!(
        (&ports[0]["state"], &ports[0]["link"], &ports[0]["type"]),
        (&json!("down"), &json!(true), &json!("stream"))
    );
    assert_eq!(ports[0]["addr"], json!({"type": "unix", "path": dir.at("a")}));

    let mut a = UnixStream::connect(dir.at("a")).unwrap();
    let connected = c.event("NETDEV_STREAM_CONNECTED");
    assert_eq!(connected, json!({"netdev-id": "n0", "addr": {"type": "unix", "path": dir.at("a")}}));
    let mut b = UnixStream::connect(dir.at("b")).unwrap();
    assert_eq!(c.event("NETDEV_STREAM_CONNECTED")["netdev-id"], "d0");
    for _ in 0..5 {
        a.write_all(&frame(100)).unwrap();
    }
    a.write_all(&frame(0)).unwrap();
    let mut got = vec![0; 5 * 104];
    b.read_exact(&mut got).unwrap();
    let until = Instant::now() + PATIENCE;
    let ports = loop {
        let ports = c.run("netreeve-query-ports");
        if ports[0]["drops"]["runt"] == 1 {
            break ports;
        }
        assert!(Instant::now() < until, "{ports}");
    };
    assert_eq!((&ports[0]["rx_bytes"], &ports[0]["state"]), (&json!(500), &json!("up")));
    assert_eq!((&ports[1]["tx_frames"], &ports[1]["tx_bytes"]), (&json!(5), &json!(500)));
    assert_eq!(ports[1]["drops"]["full"], 0, "every reason is there");
    drop(b);
    assert_eq!(c.event("NETDEV_STREAM_DISCONNECTED"), json!({"netdev-id": "d0"}));

    let about = c.run("netreeve-query-instance");
    assert_eq!((&about["running"], &about["restarts"]), (&json!(true), &json!(0)));
    assert_eq!(
        (&about["dataplane"]["sandbox"].is_string(), &about["pid"]),
        (&true, &json!(instance.child.id()))
    );
    assert!(about["workers"][0]["sleeps"].is_u64());

    // The dataplane dies: connections with it, and its counters begin again.
    kill(Pid::from_raw(about["dataplane"]["pid"].as_i64().unwrap() as i32), Signal::SIGKILL).unwrap();
    assert_eq!(c.event("NETDEV_STREAM_DISCONNECTED"), json!({"netdev-id": "n0"}));
    assert!(c.event("NETREEVE_RESTARTED")["dataplane"].is_u64());
    assert_eq!(c.run("netreeve-query-instance")["restarts"], 1);
    assert_eq!(c.run("netreeve-query-ports")[0]["rx_frames"], 0);
}

#[test]
fn who_asks_without_end_does_not_end_the_dataplane() {
    let dir = Dir::new("often");
    let instance = Instance::start(&dir, &[]);
    let mut c = Client::negotiated(&instance);
    let until = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < until {
        assert!(c.run("netreeve-query-ports")[0]["rx_frames"].is_u64());
    }
    assert_eq!(c.run("netreeve-query-instance")["restarts"], 0);
}

#[test]
fn quit_ends_it_in_order_and_signals_are_announced() {
    let dir = Dir::new("quit");
    let mut instance = Instance::start(&dir, &[]);
    let mut c = Client::negotiated(&instance);
    c.say(b"{\"execute\":\"quit\",\"id\":\"bye\"}");
    assert_eq!(c.read()["data"], json!({"guest": false, "reason": "host-qmp-quit"}));
    assert_eq!(c.read(), json!({"return": {}, "id": "bye"}));
    assert!(instance.wait().success());
    assert!(!fs::exists(&instance.control).unwrap());

    let mut instance = Instance::start(&dir, &[]);
    let mut c = Client::negotiated(&instance);
    kill(Pid::from_raw(instance.child.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(c.event("SHUTDOWN")["reason"], "host-signal");
    assert!(instance.wait().success());
}

#[test]
fn clients_that_misbehave_harm_nobody() {
    let dir = Dir::new("harm");
    let instance = Instance::start(&dir, &[]);
    let mut good = Client::negotiated(&instance);
    // One that asks without end and never reads.
    let mut greedy = Client::negotiated(&instance);
    greedy.0.get_ref().set_nonblocking(true).unwrap();
    let ask = b"{\"execute\":\"netreeve-query-ports\"}".repeat(400);
    let mut sent = 0;
    while let Ok(n @ 1..) = greedy.0.get_mut().write(&ask) {
        sent += n;
        if sent > 4 << 20 {
            break;
        }
    }
    // One that sends what is no JSON, one that is deep, one that is long.
    let mut junk = Client::negotiated(&instance);
    for bad in [vec![0xff; 5000], vec![b'['; 100_000], vec![b'"'; 100_001]] {
        junk.say(&bad);
        junk.say(b"\n");
        assert_eq!(junk.read()["error"]["class"], "GenericError");
    }
    assert_eq!(junk.run("query-status")["running"], true);
    // Half a request, then silence.
    let mut half = Client::negotiated(&instance);
    half.say(b"{\"execute\":\"query-st");
    for _ in 0..50 {
        let asked = Instant::now();
        assert_eq!(good.run("query-status")["running"], true);
        assert!(asked.elapsed() < Duration::from_secs(2));
    }
    half.say(b"atus\"}");
    assert_eq!(half.read()["return"]["running"], true);
    // Whoever does not read is cut off in the end.
    let until = Instant::now() + 3 * PATIENCE;
    while fs::read_dir(format!("/proc/{}/fd", instance.child.id())).unwrap().count() > 0 {
        greedy.0.get_ref().set_nonblocking(true).unwrap();
        match greedy.0.get_mut().write(b"{") {
            Err(e)
                if e.kind() == std::io::ErrorKind::BrokenPipe
                    || e.kind() == std::io::ErrorKind::ConnectionReset =>
            {
                break;
            }
            _ => assert!(Instant::now() < until, "it is still served"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(good.run("query-status")["running"], true);
}

/// Until they have negotiated, events are missed: here it happens again.
fn connects_until_told(lines: &Lines, path: &str) -> String {
    let until = Instant::now() + PATIENCE;
    loop {
        let _a = UnixStream::connect(path).unwrap();
        match lines.next(Duration::from_millis(100)) {
            Ok(line) if line.contains("NETDEV_STREAM_CONNECTED") => return line,
            Err(RecvTimeoutError::Disconnected) => panic!("it ended"),
            _ => assert!(Instant::now() < until, "the event is not told"),
        }
    }
}

#[test]
fn the_commands_show_what_the_instance_says() {
    let dir = Dir::new("commands");
    let instance = Instance::start(&dir, &[]);
    let at = instance.control.as_str();
    let ports: Value = serde_json::from_str(&said(&["ls", at, "--json"])).unwrap();
    assert_eq!((&ports[0]["id"], &ports[1]["peer"]), (&json!("n0"), &json!("n0")));
    assert!(
        said(&["ls", at])
            .lines()
            .nth(2)
            .unwrap()
            .starts_with("d0    device  stream  down   on    n0    unix:")
    );
    let shown = said(&["show", at]);
    assert!(shown.contains("sandbox ") && shown.contains("netdev n0 (stream)"), "{shown}");
    assert!(said(&["show", at, "d0"]).contains("drops      none"));
    let one: Value = serde_json::from_str(&said(&["show", at, "d0", "--json"])).unwrap();
    assert_eq!(one["id"], "d0");
    let wrong = netreeve(&["show", at, "d9"]);
    assert_eq!(wrong.status.code(), Some(69));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("did you mean 'd0'?"));
    let metrics = said(&["stats", at, "--format", "openmetrics"]);
    assert!(metrics.ends_with("# EOF\n") && metrics.contains("netreeve_port_drops_total{"), "{metrics}");
    assert!(said(&["stats", at]).lines().count() == 3);
    let stats: Value = serde_json::from_str(&said(&["stats", at, "--json"])).unwrap();
    assert_eq!(stats[0]["ports"][1]["drops"]["runt"], 0);
    assert_eq!(netreeve(&["set", at, "n0", "mtu=1"]).status.code(), Some(64));
    assert_eq!(netreeve(&["set", at, "x9", "link=off"]).status.code(), Some(69));

    let mut events = Command::new(NETREEVE).args(["events", at]).stdout(Stdio::piped()).spawn().unwrap();
    let line = connects_until_told(&Lines::of(events.stdout.take().unwrap()), &dir.at("a"));
    assert!(
        line.ends_with(&format!("NETDEV_STREAM_CONNECTED addr=unix:{} netdev-id=n0", dir.at("a"))),
        "{line}"
    );
    drop(instance);
    assert!(wait_for(&mut events).success(), "it ends with its instance");
}

#[test]
fn names_find_their_instances() {
    let dir = Dir::new("names");
    let name = format!("ctl-{}", std::process::id());
    // Root's instances are in one place for all; a user's are where this variable says.
    if !nix::unistd::geteuid().is_root() && std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        return;
    }
    let mut instance = Instance::start(&dir, &["--name", &name]);
    let all = said(&["ls"]);
    assert!(all.lines().any(|l| l.starts_with(&format!("{name}  "))), "{all}");
    let one: Value = serde_json::from_str(&said(&["show", &name, "--json"])).unwrap();
    assert_eq!((&one["name"], &one["pid"]), (&json!(name), &json!(instance.child.id())));
    let again = netreeve(&[
        "run",
        "--name",
        &name,
        "--netdev",
        "stream,id=n,server=on,addr.type=unix,addr.path=/x",
        "--device",
        "stream,netdev=n,server=on,addr.type=unix,addr.path=/y",
    ]);
    assert_eq!(again.status.code(), Some(69), "{}", String::from_utf8_lossy(&again.stderr));
    assert!(String::from_utf8_lossy(&again.stderr).contains("an instance of that name runs"));
    // Killed, it leaves its socket behind; nobody minds.
    instance.child.kill().unwrap();
    instance.wait();
    assert!(!said(&["ls"]).contains(&name));
    let mut instance = Instance::start(&dir, &["--name", &name]);
    assert!(said(&["ls"]).contains(&name));
    kill(Pid::from_raw(instance.child.id() as i32), Signal::SIGTERM).unwrap();
    assert!(instance.wait().success());
    assert!(!said(&["ls"]).contains(&name));
    assert_eq!(netreeve(&["show", &name]).status.code(), Some(69));
}

/// Frames from one stream to the other, and nothing else.
fn passes(from: &mut UnixStream, to: &mut UnixStream, bytes: usize) {
    from.write_all(&frame(bytes)).unwrap();
    to.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut got = vec![0; bytes + 4];
    to.read_exact(&mut got).unwrap();
    assert_eq!(got, frame(bytes));
}

fn unix(id: &str, path: &str) -> Value {
    json!({"type": "stream", "id": id, "server": true, "addr": {"type": "unix", "path": path}})
}

fn done(c: &mut Client, command: &str, arguments: Value) {
    let answer = c.ask(json!({"execute": command, "arguments": arguments}));
    assert_eq!(answer, json!({"return": {}}), "{command}");
}

fn refused(c: &mut Client, command: &str, arguments: Value) -> String {
    let answer = c.ask(json!({"execute": command, "arguments": arguments}));
    answer["error"]["desc"].as_str().unwrap_or_else(|| panic!("{command}: {answer}")).to_owned()
}

#[test]
fn a_link_is_taken_down_and_up() {
    let dir = Dir::new("link");
    let instance = Instance::start(&dir, &[]);
    let mut a = UnixStream::connect(dir.at("a")).unwrap();
    let mut b = UnixStream::connect(dir.at("b")).unwrap();
    passes(&mut a, &mut b, 60);
    assert!(said(&["set", &instance.control, "n0", "link=off", "--json"]).contains("\"link\":false"));
    let mut c = Client::negotiated(&instance);
    b.write_all(&frame(60)).unwrap();
    let until = Instant::now() + PATIENCE;
    while c.run("netreeve-query-ports")[1]["drops"]["peer_down"] != 1 {
        assert!(Instant::now() < until);
    }
    // It stays down in the next dataplane.
    let about = c.run("netreeve-query-instance");
    kill(Pid::from_raw(about["dataplane"]["pid"].as_i64().unwrap() as i32), Signal::SIGKILL).unwrap();
    c.event("NETREEVE_RESTARTED");
    assert_eq!(c.run("netreeve-query-ports")[0]["link"], false);
    said(&["set", &instance.control, "n0", "link=on"]);
    let mut a = UnixStream::connect(dir.at("a")).unwrap();
    let mut b = UnixStream::connect(dir.at("b")).unwrap();
    passes(&mut a, &mut b, 61);
    passes(&mut b, &mut a, 62);
}

#[test]
fn ports_come_and_go_and_change_places_beneath_a_live_device() {
    let dir = Dir::new("plug");
    let instance = Instance::start(&dir, &["--hotplug", "stream"]);
    let mut c = Client::negotiated(&instance);
    let mut b = UnixStream::connect(dir.at("b")).unwrap();
    c.event("NETDEV_STREAM_CONNECTED");
    done(&mut c, "netdev_add", unix("n1", &dir.at("a1")));
    assert_eq!(refused(&mut c, "netdev_add", unix("n1", &dir.at("a2"))), "Duplicate ID 'n1'");
    let mut a1 = UnixStream::connect(dir.at("a1")).unwrap();
    c.event("NETDEV_STREAM_CONNECTED");
    // The device d0 has a connection all the time.
    done(&mut c, "netreeve-set-netdev", json!({"device": "d0", "netdev": "n1"}));
    passes(&mut a1, &mut b, 70);
    passes(&mut b, &mut a1, 71);
    let ports = c.run("netreeve-query-ports");
    assert_eq!(
        (ports[0].get("peer"), &ports[1]["peer"], &ports[2]["peer"]),
        (None, &json!("n1"), &json!("d0"))
    );

    // A device of its own for the netdev that was left alone.
    let device = |id: &str, netdev: &str| json!({"driver": "stream", "id": id, "netdev": netdev, "server": true, "addr": {"type": "unix", "path": dir.at("b1")}});
    let in_use = "Property 'netdev' can't take value 'n1', it's in use";
    assert_eq!(refused(&mut c, "device_add", device("d1", "n1")), in_use);
    assert_eq!(refused(&mut c, "device_add", device("d1", "n9")), "Property 'netdev' can't find value 'n9'");
    assert!(!fs::exists(dir.at("b1")).unwrap());
    done(&mut c, "device_add", device("d1", "n0"));
    let mut a = UnixStream::connect(dir.at("a")).unwrap();
    let mut b1 = UnixStream::connect(dir.at("b1")).unwrap();
    passes(&mut a, &mut b1, 80);
    assert_eq!(refused(&mut c, "netreeve-set-netdev", json!({"device": "d1", "netdev": "n1"})), in_use);

    // All of it outlives a dataplane.
    let about = c.run("netreeve-query-instance");
    kill(Pid::from_raw(about["dataplane"]["pid"].as_i64().unwrap() as i32), Signal::SIGKILL).unwrap();
    c.event("NETREEVE_RESTARTED");
    let mut a1 = UnixStream::connect(dir.at("a1")).unwrap();
    let mut b = UnixStream::connect(dir.at("b")).unwrap();
    passes(&mut a1, &mut b, 90);

    done(&mut c, "device_del", json!({"id": "d1"}));
    assert!(!fs::exists(dir.at("b1")).unwrap(), "its socket goes with it");
    done(&mut c, "netdev_del", json!({"id": "n0"}));
    assert_eq!(refused(&mut c, "netdev_del", json!({"id": "n0"})), "Device 'n0' not found");
    assert_eq!(refused(&mut c, "device_del", json!({"id": "n1"})), "Device 'n1' not found");
    assert_eq!(c.run("netreeve-query-ports").as_array().unwrap().len(), 2);
    passes(&mut a1, &mut b, 91);
    // The netdev of a live device goes, and another comes.
    done(&mut c, "netdev_del", json!({"id": "n1"}));
    done(&mut c, "netdev_add", unix("n0", &dir.at("a")));
    done(&mut c, "netreeve-set-netdev", json!({"device": "d0", "netdev": "n0"}));
    let mut a = UnixStream::connect(dir.at("a")).unwrap();
    passes(&mut a, &mut b, 92);
    // What it was not prepared for is refused before anything is opened.
    let tap = refused(&mut c, "netdev_add", json!({"type": "tap", "id": "t"}));
    assert!(tap.contains("--hotplug tap"), "{tap}");
    let numbered = json!({"type": "stream", "id": "s", "addr": {"type": "fd", "str": "9"}});
    assert!(refused(&mut c, "netdev_add", numbered).contains("getfd"));
}

#[test]
fn descriptors_come_over_the_control_socket_and_an_empty_run_is_filled() {
    use std::os::fd::AsRawFd;
    let dir = Dir::new("fds");
    let instance = Instance::of(&dir, &["--hotplug", "all"]);
    let mut c = Client::negotiated(&instance);
    let (mut near, far) = UnixStream::pair().unwrap();
    let request = br#"{"execute":"getfd","arguments":{"fdname":"s"}}"#;
    let fds = [far.as_raw_fd()];
    let rights = nix::sys::socket::ControlMessage::ScmRights(&fds);
    let socket = c.0.get_ref().as_raw_fd();
    let none = nix::sys::socket::MsgFlags::empty();
    nix::sys::socket::sendmsg::<()>(socket, &[std::io::IoSlice::new(request)], &[rights], none, None)
        .unwrap();
    assert_eq!(c.read(), json!({"return": {}}));
    drop(far);
    let netdev = |id: &str| json!({"type": "stream", "id": id, "addr": {"type": "fd", "str": "s"}});
    done(&mut c, "netdev_add", netdev("n0"));
    let used_up = refused(&mut c, "netdev_add", netdev("n1"));
    assert_eq!(used_up, "File descriptor named 's' has not been found");
    said(&[
        "add",
        &instance.control,
        "--device",
        &format!("stream,id=d0,netdev=n0,server=on,addr.type=unix,addr.path={}", dir.at("b")),
    ]);
    let mut b = UnixStream::connect(dir.at("b")).unwrap();
    passes(&mut near, &mut b, 60);
    said(&["remove", &instance.control, "d0", "n0"]);
    assert_eq!(near.read(&mut [0; 1]).unwrap(), 0, "its peer sees the end");
    assert_eq!(c.run("netreeve-query-ports"), json!([]));
    let wrong = netreeve(&["remove", &instance.control, "d0"]);
    assert_eq!(wrong.status.code(), Some(69));
}

#[test]
fn far_ends_are_told_as_qemu_tells_them() {
    let dir = Dir::new("ends");
    let peer = std::os::unix::net::UnixListener::bind(dir.at("peer")).unwrap();
    let dials = format!("stream,id=n0,reconnect-ms=20,addr.type=unix,addr.path={}", dir.at("peer"));
    let vm = format!("vhost-user,id=d1,netdev=n1,path={}", dir.at("vm"));
    let tcp = "stream,id=n1,server=on,addr.type=inet,addr.host=127.0.0.1,addr.port=0";
    let other = format!("stream,id=d0,netdev=n0,server=on,addr.type=unix,addr.path={}", dir.at("b"));
    let instance =
        Instance::of(&dir, &["--netdev", &dials, "--netdev", tcp, "--device", &vm, "--device", &other]);
    let mut c = Client::negotiated(&instance);
    // Its end is seen by whoever reads it, and it is read while somebody takes its frames.
    let _b = UnixStream::connect(dir.at("b")).unwrap();
    // The netdev has dialled when the instance is ready; whether this client sees it told is a matter of moments.
    let mut connected = c.event("NETDEV_STREAM_CONNECTED");
    if connected["netdev-id"] == "n0" {
        connected = c.event("NETDEV_STREAM_CONNECTED");
    }
    assert_eq!(connected["netdev-id"], "d0");
    let dialled = peer.accept().unwrap().0;
    drop(dialled);
    assert_eq!(c.event("NETDEV_STREAM_DISCONNECTED"), json!({"netdev-id": "n0"}));
    let _again = peer.accept().unwrap().0;
    let to = json!({"type": "unix", "path": dir.at("peer")});
    assert_eq!(c.event("NETDEV_STREAM_CONNECTED"), json!({"netdev-id": "n0", "addr": to}));

    let front_end = UnixStream::connect(dir.at("vm")).unwrap();
    assert_eq!(c.event("NETDEV_VHOST_USER_CONNECTED"), json!({"netdev-id": "d1", "chardev-id": "d1"}));
    drop(front_end);
    assert_eq!(c.event("NETDEV_VHOST_USER_DISCONNECTED"), json!({"netdev-id": "d1"}));

    let ports = c.run("netreeve-query-ports");
    let at = &ports[1]["addr"];
    let port: u16 = at["port"].as_str().unwrap().parse().unwrap();
    assert_eq!((&at["host"], port == 0), (&json!("127.0.0.1"), false));
    let client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let from = client.local_addr().unwrap().port().to_string();
    let from = json!({"type": "inet", "host": "127.0.0.1", "port": from});
    assert_eq!(c.event("NETDEV_STREAM_CONNECTED"), json!({"netdev-id": "n1", "addr": from}));
}

/// Members that were there at the start and members that came later are one hub, also behind the next dataplane.
#[test]
fn a_hub_outlives_its_dataplane_with_members_that_came_later() {
    let dir = Dir::new("hub");
    let instance = Instance::start(&dir, &["--hotplug", "stream,hubport"]);
    let mut c = Client::negotiated(&instance);
    let names = ["h0", "h1", "h2"];
    for (i, id) in names.iter().enumerate() {
        done(&mut c, "netdev_add", json!({"type": "hubport", "id": id, "hubid": 3}));
        let path = dir.at(&format!("m{i}"));
        let member = json!({"driver": "stream", "id": format!("m{i}"), "netdev": id, "server": true,
            "addr": {"type": "unix", "path": path}});
        done(&mut c, "device_add", member);
    }
    let connect = |c: &mut Client| -> Vec<UnixStream> {
        let dial = |i: usize| {
            let s = UnixStream::connect(dir.at(&format!("m{i}"))).unwrap();
            c.event("NETDEV_STREAM_CONNECTED");
            s
        };
        (0..names.len()).map(dial).collect()
    };
    let meet = |m: &mut [UnixStream]| {
        for from in 0..m.len() {
            m[from].write_all(&frame(100 + from)).unwrap();
            for to in (0..m.len()).filter(|to| *to != from) {
                let mut got = vec![0; 104 + from];
                m[to].set_read_timeout(Some(PATIENCE)).unwrap();
                m[to].read_exact(&mut got).unwrap();
                assert_eq!(got, frame(100 + from), "{from} to {to}");
            }
        }
    };
    meet(&mut connect(&mut c));
    let about = c.run("netreeve-query-instance");
    kill(Pid::from_raw(about["dataplane"]["pid"].as_i64().unwrap() as i32), Signal::SIGKILL).unwrap();
    c.event("NETREEVE_RESTARTED");
    let mut m = connect(&mut c);
    meet(&mut m);
    done(&mut c, "device_del", json!({"id": "m1"}));
    done(&mut c, "netdev_del", json!({"id": "h1"}));
    m.remove(1);
    meet(&mut m);
    assert_eq!(
        refused(&mut c, "netdev_add", json!({"type": "hubport", "id": "h9"})),
        "Parameter 'hubid' is missing"
    );
}
