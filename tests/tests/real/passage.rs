//! pasta's `--tcp-ns` and `--udp-ns`: what listens at the loopback of an ordinary user's namespace leads to the host's.

use crate::passt::{accepted, namespaces, pasta, ran, wait_until, within};
use crate::user::{scene, shout};
use netreeve_tests::leftovers::Ground;
use netreeve_tests::scene::{PATIENCE, Scene};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

/// A server on the host.
fn on_host(scene: &Scene, at: &'static str) -> TcpListener {
    scene.host.enter(|| TcpListener::bind(at)).unwrap().unwrap()
}

/// The dataplane of the one with this file.
fn dataplane(file: &str) -> Option<i32> {
    let pid = std::fs::read_to_string(file).ok()?.trim().to_owned();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    let is = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|c| c.contains("netreeve-dataplane"))
    };
    children.split_whitespace().filter_map(|c| c.parse().ok()).find(is)
}

/// Somebody inside calls there.
fn call(pid: i32, at: &str) -> TcpStream {
    let at: SocketAddr = at.parse().unwrap();
    let stream = within(pid, move || TcpStream::connect_timeout(&at, PATIENCE)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Each hears the other whole, and its end.
fn talk(mut inside: TcpStream, server: &TcpListener) {
    let (mut host, from) = accepted(server);
    assert!(from.ip().is_loopback());
    host.set_nonblocking(false).unwrap();
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    let words = vec![b'w'; 1 << 20];
    std::thread::scope(|s| {
        s.spawn(|| {
            (&inside).write_all(&words).unwrap();
            inside.shutdown(Shutdown::Write).unwrap();
        });
        let mut heard = Vec::new();
        host.read_to_end(&mut heard).unwrap();
        assert!(heard == words);
    });
    // One direction has ended, the other not.
    host.write_all(b"answer").unwrap();
    drop(host);
    let mut heard = String::new();
    inside.read_to_string(&mut heard).unwrap();
    assert_eq!(heard, "answer");
}

/// Who calls there is taken, and then reset, maybe before he has looked.
fn refused(pid: i32, at: &str) {
    let at: SocketAddr = at.parse().unwrap();
    let heard = within(pid, move || {
        let mut inside = TcpStream::connect_timeout(&at, PATIENCE)?;
        inside.set_read_timeout(Some(PATIENCE))?;
        inside.read(&mut [0])
    });
    assert_eq!(heard.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

fn spoken(scene: &Scene, pid: i32, (inside, host): (&'static str, &'static str)) {
    let own = if host.starts_with('[') { "[::1]:0" } else { "127.0.0.1:0" };
    let server = scene.host.enter(|| UdpSocket::bind(host)).unwrap().unwrap();
    let client = within(pid, move || UdpSocket::bind(own)).unwrap();
    for s in [&server, &client] {
        s.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    client.connect(inside).unwrap();
    client.send(b"question").unwrap();
    let mut room = [0; 20];
    let (n, from) = server.recv_from(&mut room).unwrap();
    assert!(&room[..n] == b"question" && from.ip().is_loopback());
    server.send_to(b"answer", from).unwrap();
    assert_eq!(client.recv(&mut room).unwrap(), 6, "{inside}");
}

#[test]
fn ports_inside_lead_to_the_hosts_loopback() {
    let ground = Ground::survey().unwrap();
    let scene = scene();
    let mut there = namespaces(&scene);
    let pid = there.pid();
    let file = scene.path("pasta.pid").display().to_string();
    // The tap is down, and the gateway closed: what leads out is what was named.
    let line = format!(
        "-I e0 --pid {file} --no-map-gw -T 7810:7800,7820-7823,~7822 -U 7810:7800 -T auto,~7832 -U auto -t 7840:80 {pid}"
    );
    let end = ran(&scene, pasta(&scene, &line.split_whitespace().collect::<Vec<_>>()));
    assert_eq!(end.code, 0, "{}", end.text);
    let (four, six) = (on_host(&scene, "127.0.0.1:7800"), on_host(&scene, "[::1]:7800"));
    talk(call(pid, "127.0.0.1:7810"), &four);
    talk(call(pid, "[::1]:7810"), &six);
    let ranged = on_host(&scene, "0.0.0.0:7821");
    talk(call(pid, "127.0.0.1:7821"), &ranged);
    refused(pid, "127.0.0.1:7820");
    for (closed, why) in [("127.0.0.1:7822", "left out"), ("127.0.0.1:7840", "ours")] {
        assert!(within(pid, move || TcpStream::connect(closed)).is_err(), "{why}");
    }
    spoken(&scene, pid, ("127.0.0.1:7810", "127.0.0.1:7800"));
    spoken(&scene, pid, ("[::1]:7810", "[::1]:7800"));
    // Who begins to listen on the host is found, unless he was left out.
    let (later, _not) = (on_host(&scene, "127.0.0.1:7831"), on_host(&scene, "127.0.0.1:7832"));
    wait_until("nobody follows", || within(pid, || TcpStream::connect("127.0.0.1:7831")).is_ok());
    accepted(&later);
    talk(call(pid, "127.0.0.1:7831"), &later);
    assert!(within(pid, || TcpStream::connect("[::1]:7831")).is_err(), "he is not there by IPv6");
    // Neither who was left out nor we ourselves.
    for closed in ["127.0.0.1:7832", "127.0.0.1:7840"] {
        assert!(within(pid, move || TcpStream::connect(closed)).is_err(), "{closed}");
    }
    drop(later);
    wait_until("it goes on for nobody", || within(pid, || TcpStream::connect("127.0.0.1:7831")).is_err());
    // Another dataplane gets the same sockets.
    let old = dataplane(&file).unwrap();
    kill(Pid::from_raw(old), Signal::SIGKILL).unwrap();
    wait_until("nobody comes after it", || dataplane(&file).is_some_and(|new| new != old));
    talk(call(pid, "127.0.0.1:7810"), &four);
    // It goes with the namespace, and nothing of ours stays behind.
    there.terminate(PATIENCE).unwrap();
    wait_until("pasta stays behind", || !Path::new(&file).exists());
    drop((there, scene));
    assert_eq!(ground.left(Duration::from_secs(5)).unwrap(), Vec::<String>::new());
}

#[test]
fn a_command_finds_the_hosts_service_at_its_own_loopback() {
    let ground = Ground::survey().unwrap();
    let scene = scene();
    let listener = on_host(&scene, "127.0.0.1:7800");
    let script = "echo quiet words | busybox nc -w 5 127.0.0.1 7800; exit 7";
    let end = std::thread::scope(|s| {
        s.spawn(|| shout(&listener, 1));
        ran(&scene, pasta(&scene, &["-T", "7800", "-I", "t0", "sh", "-c", script]))
    });
    assert!(end.code == 7 && end.text.contains("QUIET WORDS"), "{} {}", end.code, end.text);
    // What somebody inside has already is said; here it is we ourselves.
    let end = ran(&scene, pasta(&scene, &["-T", "7800", "-T", "7800:7801", "true"]));
    assert!(
        end.code != 0 && end.text.contains("inside the namespace has port 7800"),
        "{} {}",
        end.code,
        end.text
    );
    drop((listener, scene));
    assert_eq!(ground.left(Duration::from_secs(5)).unwrap(), Vec::<String>::new());
}
