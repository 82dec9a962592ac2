//! What changes beneath a running user network: its forwards, the host's resolvers, the host's addresses. The guest is a
//! namespace of this kernel behind a tap, on the other end of a stream of messages.

use std::fs::{self, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netreeve_tests::leftovers::Ground;
use netreeve_tests::netns::Netns;
use netreeve_tests::proc::run;
use netreeve_tests::scene::{FAR4, FAR6, PATIENCE, Reeve, Scene, UPLINK, USER};
use netreeve_tests::sys::tap;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::user::{HOST4, HOST6, scene};

const DEVICE: &str = "stream,id=d0,netdev=n0,server=on,framing=seqpacket,addr.type=unix,addr.path=vm.sock";
const SOCKET: &str = "./control.sock";

/// A guest without a machine: a namespace, its tap, and a thread that carries frames between that and a socket.
struct Guest {
    ns: Netns,
    over: Arc<AtomicBool>,
    carrier: Option<JoinHandle<()>>,
}

impl Guest {
    fn new(socket: &Path) -> Self {
        let ns = Netns::new("guest").unwrap();
        let tap = ns.enter(|| tap("g0")).unwrap().unwrap();
        // With no address but these, which its servers answer from.
        ns.sh("echo 0 >/proc/sys/net/ipv6/conf/g0/accept_ra
               ip addr add 10.0.2.15/24 dev g0; ip addr add fec0::15/64 dev g0 nodad; ip link set g0 up
               ip route add default via 10.0.2.2; ip route add default via fec0::2")
            .unwrap();
        let peer =
            socket::socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        socket::connect(peer.as_raw_fd(), &UnixAddr::new(socket).unwrap()).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&over);
        let carrier = std::thread::spawn(move || carry(&tap, &peer, &ends));
        // So that it is known before anybody comes.
        ns.sh("ping -n -c 1 -W 5 10.0.2.2; ping -n -c 1 -W 5 fec0::2").unwrap();
        Self { ns, over, carrier: Some(carrier) }
    }

    fn listen(&self, at: &str) -> TcpListener {
        self.ns.enter(|| TcpListener::bind(at)).unwrap().unwrap()
    }

    fn call(&self, to: &str) -> std::io::Result<TcpStream> {
        let at: SocketAddr = to.parse().unwrap();
        self.ns.enter(|| TcpStream::connect_timeout(&at, PATIENCE)).unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(carrier) = self.carrier.take() {
            let _ = carrier.join();
        }
    }
}

/// Frames from the tap to the socket and back, until there is an end.
fn carry(tap: &OwnedFd, peer: &OwnedFd, over: &AtomicBool) {
    let mut frame = vec![0; 70_000];
    while !over.load(Ordering::Relaxed) {
        let watch = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = [watch(tap.as_fd()), watch(peer.as_fd())];
        if poll(&mut fds, PollTimeout::from(100_u8)).is_err() {
            continue;
        }
        let [from_tap, from_peer] = [0, 1].map(|i: usize| fds[i].any() == Some(true));
        if from_tap && let Ok(n) = nix::unistd::read(tap, &mut frame) {
            let _ = socket::send(peer.as_raw_fd(), &frame[..n], MsgFlags::MSG_NOSIGNAL);
        }
        if from_peer {
            match socket::recv(peer.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return,
                Ok(n) => drop(nix::unistd::write(tap, &frame[..n])),
                Err(_) => {}
            }
        }
    }
}

struct Home {
    guest: Guest,
    reeve: Reeve,
    scene: Scene,
    ground: Ground,
}

/// `resolv`: what the host's `/etc/resolv.conf` says; [`resolv`] changes it.
fn home(options: &str, policy: Option<&str>, resolvers: &str) -> Home {
    let ground = Ground::survey().unwrap();
    let mut scene = scene();
    if let Some(policy) = policy {
        scene.help(policy).unwrap();
    }
    fs::create_dir(scene.path("etc")).unwrap();
    resolv(&scene, resolvers);
    // Its own /etc, which the test can change.
    let script = format!(
        "mount --bind {} /etc; exec setpriv --reuid {USER} --regid {USER} --clear-groups \"$@\"",
        scene.path("etc").display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-ec", &script, "sh"]);
    command.arg(scene.program("netreeve")).args(["run", "--json", "--control", SOCKET, "--helper-socket"]);
    command.arg(scene.helper_socket()).args([
        "--netdev",
        &format!("user,id=n0,mtu=1500{options}"),
        "--device",
        DEVICE,
    ]);
    command.current_dir(scene.path(""));
    let reeve = scene.start(command).unwrap();
    let guest = Guest::new(&scene.path("vm.sock"));
    Home { guest, reeve, scene, ground }
}

/// Replaces the file, as those do who keep it.
fn resolv(scene: &Scene, text: &str) {
    let new = scene.path("etc").join("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, scene.path("etc").join("resolv.conf")).unwrap();
}

impl Home {
    /// What a `netreeve` command says.
    fn say(&self, arguments: &[&str]) -> String {
        run("netreeve", self.scene.netreeve(arguments), PATIENCE).unwrap().ok("netreeve").unwrap()
    }

    /// The network as the instance tells it.
    fn told(&self) -> Value {
        let ports: Value = serde_json::from_str(&self.say(&["ls", SOCKET, "--json"])).unwrap();
        ports.as_array().unwrap().iter().find(|p| p["id"] == "n0").unwrap().clone()
    }

    /// The host's ends of the forwards, in order, with the ports that the kernel chose.
    fn ends(&self) -> Vec<String> {
        let rules = self.told()["hostfwd"].as_array().unwrap().clone();
        rules.iter().map(|r| r.as_str().unwrap().rsplit_once('-').unwrap().0.to_owned()).collect()
    }

    /// Somebody at the far side comes to a forward of TCP's.
    fn come(&self, to: &str) -> std::io::Result<TcpStream> {
        let at: SocketAddr = to.parse().unwrap();
        self.scene.far.enter(|| TcpStream::connect_timeout(&at, PATIENCE)).unwrap()
    }

    fn end(mut self) {
        drop(self.guest);
        let end = self.reeve.proc.terminate(PATIENCE).unwrap();
        assert_eq!(end.code, 0, "{}", end.text);
        drop((self.reeve, self.scene));
        assert_eq!(self.ground.left(Duration::from_secs(3)).unwrap(), Vec::<String>::new());
    }
}

fn patient(s: &TcpStream) -> &TcpStream {
    s.set_read_timeout(Some(PATIENCE)).unwrap();
    s
}

/// Words go both ways.
fn talk(mut a: impl Read + Write, mut b: impl Read + Write) {
    let mut got = [0; 4];
    a.write_all(b"ping").unwrap();
    b.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ping");
    b.write_all(b"pong").unwrap();
    a.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"pong");
}

/// A datagram goes to the guest's `server` and back.
fn exchange(client: &UdpSocket, to: &str, server: &UdpSocket) {
    let mut got = [0; 16];
    for s in [client, server] {
        s.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    client.send_to(b"question", to).unwrap();
    let (n, from) = server.recv_from(&mut got).unwrap();
    assert_eq!(&got[..n], b"question");
    server.send_to(b"answer", from).unwrap();
    let (n, from) = client.recv_from(&mut got).unwrap();
    assert_eq!((&got[..n], from), (&b"answer"[..], to.parse().unwrap()));
}

/// A client of the control socket.
struct Qmp(UnixStream);

impl Qmp {
    fn new(scene: &Scene) -> Self {
        let s = UnixStream::connect(scene.path("control.sock")).unwrap();
        s.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut q = Self(s);
        assert!(q.line()["QMP"].is_object());
        assert!(q.ask("qmp_capabilities", &json!({}))["return"].is_object());
        q
    }

    fn line(&mut self) -> Value {
        let mut text = Vec::new();
        while text.last() != Some(&b'\n') {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            text.push(byte[0]);
        }
        serde_json::from_slice(&text).unwrap()
    }

    fn ask(&mut self, command: &str, arguments: &Value) -> Value {
        let text = json!({ "execute": command, "arguments": arguments }).to_string();
        self.0.write_all(text.as_bytes()).unwrap();
        loop {
            let answer = self.line();
            if answer["event"].is_null() {
                return answer;
            }
        }
    }
}

#[test]
fn forwards_of_every_kind_come_and_go_beneath_a_running_guest() {
    let policy = format!("allow uid:{USER} listen {HOST4} port=80\n");
    let options = format!(
        ",preset=qemu,hostfwd=tcp:{HOST4}:80-:80,hostfwd=udp:{HOST4}:0-:81,hostfwd=unix:{{}}-:82,\
         hostfwd=tcp:[{HOST6}]:0-[fec0::15]:83,hostfwd=udp:[{HOST6}]:0-[fec0::15]:84"
    );
    // The path is to be absolute, and is known once the scene stands: by a name that does not change.
    let path = std::env::temp_dir().join(format!("netreeve-forward-{}.sock", std::process::id()));
    let options = options.replace("{}", &path.display().to_string());
    let home = home(&options, Some(&policy), "nameserver 127.0.0.1\n");
    let ends = home.ends();
    assert_eq!((ends.len(), ends[0].as_str()), (5, format!("tcp:{HOST4}:80").as_str()));
    assert!(ends.iter().all(|e| !e.ends_with(":0")), "{ends:?}");
    let at = |n: usize| ends[n].split_once(':').unwrap().1.to_owned();
    let listen: Vec<TcpListener> =
        ["0.0.0.0:80", "0.0.0.0:82", "[::]:83", "0.0.0.0:90"].iter().map(|a| home.guest.listen(a)).collect();
    let accept = |n: usize| listen[n].accept().unwrap().0;

    // A port below 1024, from the helper; a UNIX socket; IPv6.
    let kept = home.come(&at(0)).unwrap();
    let kept_end = accept(0);
    talk(patient(&kept), patient(&kept_end));
    let near = UnixStream::connect(&path).unwrap();
    near.set_read_timeout(Some(PATIENCE)).unwrap();
    talk(&near, patient(&accept(1)));
    talk(patient(&home.come(&at(2 + 1)).unwrap()), patient(&accept(2)));
    // UDP, both families.
    for (n, on, far) in [(1, "0.0.0.0:81", "0.0.0.0:0"), (4, "[::]:84", "[::]:0")] {
        let server = home.guest.ns.enter(|| UdpSocket::bind(on)).unwrap().unwrap();
        let client = home.scene.far.enter(|| UdpSocket::bind(far)).unwrap().unwrap();
        exchange(&client, &at(n), &server);
    }

    // By the command line: one comes, one goes, in one step. What was connected stays so.
    let (add, gone) = (format!("hostfwd+=tcp:{HOST4}:0-:90"), format!("hostfwd-=tcp:{HOST4}:80"));
    home.say(&["set", SOCKET, "n0", &add, &gone]);
    let new = home.ends().last().unwrap().split_once(':').unwrap().1.to_owned();
    talk(patient(&home.come(&new).unwrap()), patient(&accept(3)));
    assert_eq!(home.come(&at(0)).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    talk(&kept, &kept_end);

    // By QMP: what cannot be had whole changes nothing; then the whole table.
    let mut qmp = Qmp::new(&home.scene);
    let before = home.ends();
    let clash = json!({ "id": "n0", "add": [format!("tcp:{HOST4}:0-:91"), format!("tcp:{new}-:92")] });
    let why = qmp.ask("netreeve-set-hostfwd", &clash)["error"]["desc"].as_str().unwrap().to_owned();
    assert!(why.contains("Address already in use"), "{why}");
    assert_eq!(home.ends(), before);
    let gone = qmp.ask("hostfwd_remove", &json!({ "hostfwd": format!("unix:{}", path.display()) }));
    assert!(gone["return"].is_object() && !path.exists(), "{gone}");
    let added = qmp.ask("hostfwd_add", &json!({ "hostfwd": format!("tcp:{HOST4}:0-:80") }));
    assert!(added["return"].is_object(), "{added}");
    let again = home.ends().last().unwrap().split_once(':').unwrap().1.to_owned();
    talk(patient(&home.come(&again).unwrap()), patient(&accept(0)));
    let table = json!({ "id": "n0", "hostfwd": [format!("tcp:{new}-:82")] });
    let all = qmp.ask("netreeve-set-hostfwd", &table);
    assert!(all["return"].is_object(), "{all}");
    assert_eq!(home.ends(), [format!("tcp:{new}")]);
    // The same port leads elsewhere, the others are closed.
    talk(patient(&home.come(&new).unwrap()), patient(&accept(1)));
    assert_eq!(home.come(&again).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    talk(&kept, &kept_end);
    drop((kept, near, qmp));
    home.end();
}

/// The smallest question there is: the root's addresses.
fn question(number: u16) -> Vec<u8> {
    let [a, b] = number.to_be_bytes();
    vec![a, b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1]
}

/// Answers one question in these words, if one comes in time.
fn answer(server: &UdpSocket) -> bool {
    let mut got = [0; 512];
    let Ok((n, from)) = server.recv_from(&mut got) else { return false };
    got[2] |= 0x80;
    server.send_to(&got[..n], from).unwrap();
    true
}

#[test]
fn names_are_asked_of_whom_the_host_asks_now() {
    let home = home("", None, &format!("nameserver {FAR4}\n"));
    let far = &home.scene.far;
    far.sh("ip addr add 10.77.0.7/24 dev nv1").unwrap();
    let servers = [FAR4, "10.77.0.7"].map(|a| {
        let s = far.enter(|| UdpSocket::bind((a, 53))).unwrap().unwrap();
        s.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        s
    });
    let asker = home.guest.ns.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    asker.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut number = 0;
    // Asks until that server is the one that hears of it.
    let mut heard_by = |server: &UdpSocket| {
        let until = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < until, "nobody asks {:?}", server.local_addr());
            number += 1;
            asker.send_to(&question(number), "10.0.2.3:53").unwrap();
            if !answer(server) {
                continue;
            }
            let mut got = [0; 512];
            // Answers to those before may come as well.
            while asker.recv(&mut got).unwrap() > 0 && got[..2] != number.to_be_bytes() {}
            return;
        }
    };
    heard_by(&servers[0]);
    resolv(&home.scene, "nameserver 10.77.0.7\n");
    heard_by(&servers[1]);
    assert_eq!(home.told()["resolvers"], json!(["10.77.0.7:53"]));
    home.end();
}

/// A host of several addresses: who calls one of them is answered from that one, whichever the kernel would choose.
#[test]
fn a_forward_at_all_addresses_answers_from_the_one_that_was_called() {
    let home = home(",hostfwd=udp::0-:81,hostfwd=udp:[::]:0-[fec0::15]:82", None, "nameserver 127.0.0.1\n");
    home.scene
        .host
        .sh(&format!("ip addr add 10.77.0.99/24 dev {UPLINK}; ip addr add fd77::99/64 dev {UPLINK} nodad"))
        .unwrap();
    let ends = home.ends();
    let port = |n: usize| ends[n].rsplit_once(':').unwrap().1.to_owned();
    let addresses = [[HOST4, "10.77.0.99"], ["[fd77::9]", "[fd77::99]"]];
    for (n, on, far) in [(0, "0.0.0.0:81", "0.0.0.0:0"), (1, "[::]:82", "[::]:0")] {
        let server = home.guest.ns.enter(|| UdpSocket::bind(on)).unwrap().unwrap();
        // One socket for both, as of somebody who looks for a server that answers; a flow for each.
        let client = home.scene.far.enter(|| UdpSocket::bind(far)).unwrap().unwrap();
        for at in addresses[n].iter().chain(&addresses[n]) {
            exchange(&client, &format!("{at}:{}", port(n)), &server);
        }
    }
    home.end();
}

/// Speaks until it is heard from that address.
fn heard(speaker: &UdpSocket, sink: &UdpSocket, want: &str) {
    let until = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < until, "nothing comes from {want}");
        let _ = speaker.send(b"here");
        if let Ok((_, from)) = sink.recv_from(&mut [0; 8])
            && from.ip().to_string() == want
        {
            return;
        }
    }
}

#[test]
fn sources_are_the_hosts_of_now_and_it_is_not_reached_at_any_of_them() {
    let home = home("", None, "nameserver 127.0.0.1\n");
    let far = &home.scene.far;
    // The host's address changes: who is called next is called from the new one.
    let listener = far.enter(|| TcpListener::bind((FAR4, 7000))).unwrap().unwrap();
    let sink = far.enter(|| UdpSocket::bind((FAR4, 7001))).unwrap().unwrap();
    sink.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let source = |n: usize| {
        let near = home.guest.call(&format!("{FAR4}:7000")).unwrap();
        let (end, from) = listener.accept().unwrap();
        talk(patient(&near), patient(&end));
        assert_eq!(from.ip().to_string(), [HOST4, "10.77.0.19"][n]);
        (near, end)
    };
    let (_near, _end) = source(0);
    let speaker = home.guest.ns.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap().unwrap();
    speaker.connect((FAR4, 7001)).unwrap();
    let heard_from = |want: &str| heard(&speaker, &sink, want);
    heard_from(HOST4);
    // What listens at all of the host's addresses is not for the guest, whichever they are.
    let own = home.scene.host.enter(|| TcpListener::bind("0.0.0.0:7002")).unwrap().unwrap();
    own.set_nonblocking(true).unwrap();
    let refused = |at: &str| home.guest.call(&format!("{at}:7002")).unwrap_err().kind();
    assert_eq!(refused(HOST4), ErrorKind::ConnectionRefused);
    home.scene
        .host
        .sh(&format!(
            "ip addr del {HOST4}/24 dev {UPLINK}; ip addr add 10.77.0.19/24 dev {UPLINK}
             ip route replace default via {FAR4}"
        ))
        .unwrap();
    let (_near, _end) = source(1);
    assert_eq!(refused("10.77.0.19"), ErrorKind::ConnectionRefused);
    assert_eq!(own.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "somebody came");
    // A flow that goes on does so from the new one.
    heard_from("10.77.0.19");
    let six = far.enter(|| TcpListener::bind((FAR6, 7000))).unwrap().unwrap();
    let sink6 = far.enter(|| UdpSocket::bind((FAR6, 7001))).unwrap().unwrap();
    sink6.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let speaker6 = home.guest.ns.enter(|| UdpSocket::bind("[::]:0")).unwrap().unwrap();
    speaker6.connect((FAR6, 7001)).unwrap();
    heard(&speaker6, &sink6, HOST6);
    home.scene
        .host
        .sh(&format!("ip addr add fd77::19/64 dev {UPLINK} nodad; ip addr del {HOST6}/64 dev {UPLINK}"))
        .unwrap();
    let near = home.guest.call(&format!("[{FAR6}]:7000")).unwrap();
    let (end, from) = six.accept().unwrap();
    talk(patient(&near), patient(&end));
    assert_eq!(from.ip().to_string(), "fd77::19");
    heard(&speaker6, &sink6, "fd77::19");
    home.end();
}

/// A path, and what a restricted network's dataplane cannot connect to: the supervisor does, for each call anew.
#[test]
fn guest_forwards_give_each_call_a_connection_of_its_own() {
    let path = std::env::temp_dir().join(format!("netreeve-service-{}.sock", std::process::id()));
    let _ = fs::remove_file(&path);
    let options = format!(
        ",restrict=on,guestfwd=tcp:10.0.2.100:80-unix:{},guestfwd=tcp:10.0.2.100:81-tcp:{FAR4}:7000",
        path.display()
    );
    let home = home(&options, None, "nameserver 127.0.0.1\n");
    let call = |port: u16| home.guest.call(&format!("10.0.2.100:{port}"));
    let far = home.scene.far.enter(|| TcpListener::bind((FAR4, 7000))).unwrap().unwrap();
    for _ in 0..2 {
        assert_eq!(call(80).unwrap_err().kind(), ErrorKind::ConnectionRefused, "nobody is there");
    }
    home.reeve.proc.wait_for("No such file or directory", PATIENCE).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    let near: Vec<TcpStream> = (0..3).map(|_| call(80).unwrap()).collect();
    let ends: Vec<UnixStream> = (0..3).map(|_| listener.accept().unwrap().0).collect();
    for (near, end) in near.iter().zip(&ends).rev() {
        end.set_read_timeout(Some(PATIENCE)).unwrap();
        talk(patient(near), end);
    }
    // Halves are passed on, and the server goes on for others.
    near[0].shutdown(Shutdown::Write).unwrap();
    assert_eq!((&ends[0]).read(&mut [0]).unwrap(), 0);
    (&ends[0]).write_all(b"last").unwrap();
    let mut last = [0; 4];
    patient(&near[0]).read_exact(&mut last).unwrap();
    drop(ends);
    assert_eq!(patient(&near[1]).read(&mut [0]).unwrap(), 0);
    for _ in 0..2 {
        let near = call(81).unwrap();
        talk(patient(&near), patient(&far.accept().unwrap().0));
    }
    drop(far);
    assert_eq!(call(81).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    // After the death of the dataplane the doors are where they were.
    kill(Pid::from_raw(home.reeve.dataplane().unwrap()), Signal::SIGKILL).unwrap();
    home.reeve.proc.wait_for("\"restarted\"", PATIENCE).unwrap();
    drop(near);
    fs::remove_file(&path).unwrap();
    home.end();
}
