//! Datagram ports against QEMU's own: `dgram`, `socket` and `l2tpv3` in every form that both have. QEMU runs without a
//! guest, its backend in a hub with another one, by which frames are put in and taken out. Bytes are equal and in order
//! both ways.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::chown;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::Command;
use std::time::{Duration, Instant};

use netreeve_tests::guest::vmms::Vmm;
use netreeve_tests::scene::{PATIENCE, Reeve, Road, Scene, USER};

/// One form: QEMU's netdev and ours, without their ids.
struct Form {
    qemu: String,
    ours: String,
    /// The largest frame in bytes that both take.
    most: usize,
    /// Over IP: QEMU has the capability, we have a helper.
    raw: bool,
}

/// The command as the user without rights; `raw`: but for the one that QEMU needs for L2TPv3 over IP.
fn as_user(scene: &Scene, raw: bool, of: &Command) -> Command {
    let user = USER.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
    if raw {
        command.args(["--inh-caps", "+net_raw", "--ambient-caps", "+net_raw"]);
    }
    command.arg(of.get_program()).args(of.get_args()).current_dir(scene.path(""));
    command
}

/// QEMU with its backend in a hub, netreeve with its own behind a stream.
struct Stage {
    reeve: Reeve,
    _qemu: netreeve_tests::proc::Proc,
    hub: UnixDatagram,
    vmm: UnixStream,
}

impl Stage {
    fn set(scene: &Scene, form: &Form) -> Self {
        let (inside, outside) = (scene.path("inside"), scene.path("outside"));
        let _gone = (std::fs::remove_file(&inside), std::fs::remove_file(&outside));
        let hub = UnixDatagram::bind(&outside).unwrap();
        chown(&outside, Some(USER), Some(USER)).unwrap();
        let mut command = Command::new(Vmm::usual().unwrap().path);
        command.args([
            "-M",
            "none",
            "-nodefaults",
            "-display",
            "none",
            "-serial",
            "none",
            "-monitor",
            "none",
        ]);
        let inject = format!(
            "dgram,id=in,local.type=unix,local.path={},remote.type=unix,remote.path={}",
            inside.display(),
            outside.display()
        );
        for netdev in
            [&form.qemu, &inject, "hubport,id=h0,hubid=0,netdev=q0", "hubport,id=h1,hubid=0,netdev=in"]
        {
            command.args(["-netdev", netdev]);
        }
        let qemu = scene.host.spawn("qemu", as_user(scene, form.raw, &command)).unwrap();
        let device = "stream,netdev=n0,server=on,addr.type=unix,addr.path=vmm";
        let mut ours = Command::new(scene.program("netreeve"));
        ours.args(["run", "--json", "--netdev", &form.ours, "--device", device]);
        ours.arg("--helper-socket").arg(scene.helper_socket());
        let reeve = scene.start(as_user(scene, false, &ours)).unwrap();
        let vmm = UnixStream::connect(scene.path("vmm")).unwrap();
        vmm.set_read_timeout(Some(PATIENCE)).unwrap();
        let until = Instant::now() + PATIENCE;
        while let Err(e) = hub.connect(&inside) {
            assert!(Instant::now() < until, "{}: {e}\n{}", form.qemu, qemu.tail());
            std::thread::sleep(Duration::from_millis(5));
        }
        hub.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self { reeve, _qemu: qemu, hub, vmm }
    }

    fn send(&mut self, frame: &[u8]) {
        self.vmm.write_all(&u32::try_from(frame.len()).unwrap().to_be_bytes()).unwrap();
        self.vmm.write_all(frame).unwrap();
    }

    fn recv(&mut self) -> Vec<u8> {
        let mut len = [0; 4];
        self.vmm.read_exact(&mut len).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(len) as usize];
        self.vmm.read_exact(&mut frame).unwrap();
        frame
    }

    /// The next frame out of QEMU's hub but those that were put in: from a group QEMU hears itself.
    fn out_of_qemu(&self, put_in: &[Vec<u8>]) -> Option<Vec<u8>> {
        let mut raw = vec![0; 70_000];
        let until = Instant::now() + PATIENCE;
        loop {
            match self.hub.recv(&mut raw) {
                Ok(n) if put_in.iter().any(|f| *f == raw[..n]) => {}
                Ok(n) => return Some(raw[..n].to_vec()),
                Err(e) => {
                    assert_eq!(e.kind(), ErrorKind::WouldBlock);
                    if Instant::now() >= until {
                        return None;
                    }
                }
            }
        }
    }

    /// Until both backends know each other, frames may be lost.
    fn meet(&mut self) {
        let hello = frame(60, 0xee);
        let until = Instant::now() + PATIENCE;
        let mut raw = vec![0; 100];
        loop {
            self.send(&hello);
            match self.hub.recv(&mut raw) {
                Ok(n) if raw[..n] == hello => break,
                _ => assert!(Instant::now() < until, "QEMU hears nothing"),
            }
        }
        while self.hub.recv(&mut raw).is_ok() {}
    }
}

/// A frame whose bytes are its own.
fn frame(len: usize, salt: usize) -> Vec<u8> {
    let byte = |i: usize| u8::try_from((i * 7 + i / 251 + salt * 13) % 256).unwrap();
    (0..len).map(byte).collect()
}

fn both_ways(scene: &Scene, form: &Form) {
    let mut s = Stage::set(scene, form);
    s.meet();
    let sizes = [1, 10, 14, 60, 1514, 9000, 65507, 65550, 69632].into_iter().filter(|n| *n <= form.most);
    let mut all: Vec<Vec<u8>> = sizes.map(|n| frame(n, 1)).collect();
    // Many of one length, and of several, in one breath.
    all.extend((0..40).map(|i| frame(64 + (i % 9) / 8, i)));
    for (i, f) in all.iter().enumerate() {
        s.hub.send(f).unwrap();
        assert!(s.recv() == *f, "{}: frame {i} of {} bytes out of QEMU", form.qemu, f.len());
    }
    let back: Vec<Vec<u8>> = all.iter().map(|f| frame(f.len(), 200 + f.len())).collect();
    for part in back.chunks(8) {
        part.iter().for_each(|f| s.send(f));
        for f in part {
            let got = s.out_of_qemu(&all).unwrap_or_default();
            assert!(got == *f, "{}: {} bytes for {} into QEMU", form.qemu, got.len(), f.len());
        }
    }
    let end = s.reeve.proc.terminate(PATIENCE).unwrap();
    assert_eq!(end.code, 0, "{}", end.text);
}

fn stage() -> Scene {
    let scene = Scene::set(Road::Bridge).unwrap();
    scene
        .host
        .sh("ip link set lo up; ip addr add 10.99.0.1/32 dev lo; ip addr add 10.99.0.2/32 dev lo
         ip addr add fd99::1/128 dev lo nodad; ip addr add fd99::2/128 dev lo nodad")
        .unwrap();
    scene
}

#[test]
fn dgram_and_socket_are_qemus() {
    let scene = stage();
    let udp = |l: u16, r: u16| {
        let end = |which: &str, port| format!("{which}.type=inet,{which}.host=127.0.0.1,{which}.port={port}");
        format!("{},{}", end("local", l), end("remote", r))
    };
    let unix = |l: &str, r: &str| {
        let end = |which: &str, path| format!("{which}.type=unix,{which}.path={path}");
        format!("{},{}", end("local", l), end("remote", r))
    };
    let group = "remote.type=inet,remote.host=239.9.9.9,remote.port=5005,local.type=inet,local.host=127.0.0.1,local.port=0";
    let form = |qemu: String, ours: String, most| Form { qemu, ours, most, raw: false };
    for f in [
        form(
            format!("dgram,id=q0,{}", udp(5001, 5002)),
            format!("dgram,id=n0,{},strict=on", udp(5002, 5001)),
            65507,
        ),
        form(
            "socket,id=q0,udp=127.0.0.1:5002,localaddr=127.0.0.1:5001".into(),
            "socket,id=n0,udp=127.0.0.1:5001,localaddr=127.0.0.1:5002".into(),
            65507,
        ),
        form(format!("dgram,id=q0,{}", unix("q", "n")), format!("dgram,id=n0,{}", unix("n", "q")), 69632),
        form(
            format!("dgram,id=q0,{group}"),
            "socket,id=n0,mcast=239.9.9.9:5005,localaddr=127.0.0.1".into(),
            65507,
        ),
        form(
            "socket,id=q0,mcast=239.9.9.9:5005,localaddr=127.0.0.1".into(),
            format!("dgram,id=n0,{group}"),
            65507,
        ),
    ] {
        both_ways(&scene, &f);
    }
}

/// Every form of the header, the ends of one told of the other's numbers.
fn tunnels(scene: &Scene, raw: bool, family: &str, [here, there]: [&str; 2]) {
    let cookies = [
        "",
        ",txcookie=0x11121314,rxcookie=0x21222324",
        ",cookie64=on,txcookie=0x1112131415161718,rxcookie=3",
    ];
    let swapped = [
        "",
        ",txcookie=0x21222324,rxcookie=0x11121314",
        ",cookie64=on,txcookie=3,rxcookie=0x1112131415161718",
    ];
    for (theirs, ours) in cookies.iter().zip(swapped) {
        for counter in ["", ",counter=on", ",counter=on,pincounter=on,offset=6"] {
            let of = |id: &str, src: &str, dst: &str, tx: u32, rx: u32, cookie: &str| {
                let sessions = format!("txsession={tx},rxsession={rx}");
                format!("l2tpv3,id={id},{src},{dst},{sessions}{family}{cookie}{counter}")
            };
            let udp = |key: &str, port: &str| if raw { String::new() } else { format!(",{key}port={port}") };
            let end = |key: &str, at: &str, port: &str| format!("{key}={at}{}", udp(key, port));
            let (q_src, q_dst) = (end("src", here, "6001"), end("dst", there, "6002"));
            let (n_src, n_dst) = (end("src", there, "6002"), end("dst", here, "6001"));
            let qemu = of("q0", &q_src, &q_dst, 7, 0x0102_0304, theirs);
            let ours = of("n0", &n_src, &n_dst, 0x0102_0304, 7, ours);
            both_ways(scene, &Form { qemu, ours, most: 9000, raw });
        }
    }
}

#[test]
fn l2tpv3_over_udp_is_qemus_in_every_form() {
    let scene = stage();
    tunnels(&scene, false, ",udp=on", ["127.0.0.1", "127.0.0.1"]);
    tunnels(&scene, false, ",udp=on,ipv6=on", ["::1", "::1"]);
}

#[test]
fn l2tpv3_over_ip_is_qemus_in_every_form() {
    let mut scene = stage();
    let rule = |peer| format!("allow uid:{USER} l2tpv3 {peer} session=7\n");
    scene.help(&(rule("10.99.0.1") + &rule("fd99::1") + "limit any requests=1000\n")).unwrap();
    tunnels(&scene, true, "", ["10.99.0.1", "10.99.0.2"]);
    tunnels(&scene, true, ",ipv6=on", ["fd99::1", "fd99::2"]);
    // Another session, another peer: the helper's log tells the line, and its caller hears one word.
    for (peer, session, said) in [("10.99.0.1", 8, "policy.conf:1(session)"), ("10.99.0.2", 7, "rule=none")] {
        let netdev = format!("l2tpv3,id=n0,src=10.99.0.2,dst={peer},txsession={session}");
        let device = "stream,netdev=n0,server=on,addr.type=unix,addr.path=vmm";
        let socket = scene.helper_socket();
        let socket = socket.to_str().unwrap();
        let arguments = ["run", "--helper-socket", socket, "--netdev", &netdev, "--device", device];
        let mut denied = scene.host.spawn("netreeve run", scene.netreeve(&arguments)).unwrap();
        let end = denied.wait(PATIENCE).unwrap();
        assert_eq!(end.code, 77, "{}", end.text);
        let fix = format!("l2tpv3 {peer} session={session}");
        assert!(end.text.contains("denied") && end.text.contains(&fix), "{}", end.text);
        assert!(scene.helper().unwrap().text().contains(said), "{}", scene.helper().unwrap().text());
    }
}
