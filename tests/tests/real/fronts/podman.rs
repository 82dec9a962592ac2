//! Podman without root, its `pasta` being ours: the network that it gives a container by itself, the forwards of
//! `--publish`, what is behind `--network pasta:...`, and containers that come again.

use super::{Tree, answering};
use crate::user::{HOST4, scene};
use netreeve_tests::leftovers::Ground;
use netreeve_tests::scene::{FAR4, FAR6, PATIENCE, Scene, USER};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::chown;
use std::time::{Duration, Instant};

/// Where Podman finds us first, and what it is not to look for here: systemd and control groups.
fn configuration(scene: &Scene) -> String {
    format!(
        "[network]\ndefault_rootless_network_cmd = \"pasta\"\n\
         [engine]\nhelper_binaries_dir = [\"{}\", \"/usr/libexec/podman\", \"/usr/lib/podman\"]\n\
         cgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
         [containers]\ncgroups = \"disabled\"\nlog_driver = \"k8s-file\"\n",
        scene.program("").display()
    )
}

/// An image that has nothing but the programs of the tree.
const IMAGE: &str =
    "mkdir -p img/etc img/tmp img/usr; for d in bin sbin lib lib64; do ln -s usr/$d img/$d; done
                     tar -C img -c . | podman import -q - bare";

fn ready(scene: &Scene) -> Tree<'_> {
    fs::write(scene.program("resolv.conf"), format!("nameserver {FAR4}\n")).unwrap();
    let tree = Tree::enter(scene);
    let file = tree.home(".config/containers/containers.conf");
    fs::write(&file, configuration(scene)).unwrap();
    chown(&file, Some(USER), Some(USER)).unwrap();
    tree.ok(IMAGE);
    tree
}

/// The words that run a script in a container.
fn container(options: &str, script: &str) -> String {
    format!("podman run -v /usr:/usr:ro {options} bare sh -c '{script}'")
}

/// A resolver that knows one answer: 192.0.2.77, for whatever name (RFC 1035).
fn resolve(socket: &UdpSocket) {
    let mut query = [0; 512];
    let Ok((n, from)) = socket.recv_from(&mut query) else { return };
    let end = 12 + query[12..n].iter().position(|b| *b == 0).unwrap() + 5;
    let is_a = query[end - 4..end] == [0, 1, 0, 1];
    let mut answer = query[..end].to_vec();
    answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
    if is_a {
        // The name of the question, A, IN, a minute, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77]);
    }
    socket.send_to(&answer, from).unwrap();
}

/// What a container's web server says at this place of the host's.
fn get(scene: &Scene, at: &str) -> String {
    let mut text = String::new();
    let until = Instant::now() + PATIENCE;
    while !text.contains("web words") {
        assert!(Instant::now() < until, "no answer at {at}: {text:?}");
        text.clear();
        let stream = scene.host.enter(|| TcpStream::connect(at)).unwrap();
        let said = stream.and_then(|mut s| {
            s.set_read_timeout(Some(PATIENCE))?;
            s.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
            s.read_to_string(&mut text)
        });
        if said.is_err() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    text
}

#[test]
#[ignore = "it needs Podman of Debian 13: `make fronts` runs it"]
fn a_container_reaches_others_and_only_those_that_it_may() {
    let ground = Ground::survey().unwrap();
    let scene = scene();
    let tree = ready(&scene);
    let far = scene.far.enter(|| TcpListener::bind("[::]:7300")).unwrap().unwrap();
    let host = scene.host.enter(|| TcpListener::bind((HOST4, 7301))).unwrap().unwrap();
    let own = scene.host.enter(|| TcpListener::bind("127.0.0.1:7302")).unwrap().unwrap();
    let names = scene.far.enter(|| UdpSocket::bind((FAR4, 53))).unwrap().unwrap();
    names.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let script = format!(
        "ip -4 addr; echo one far | nc.openbsd -N -w 5 {FAR4} 7300; sleep 1; echo two far | nc.openbsd -N -w 5 {FAR6} 7300
         echo to the host | nc.openbsd -N -w 5 host.containers.internal 7301; cat /etc/resolv.conf
         ping -c 1 -W 5 {FAR4}; busybox nslookup -type=a some.example 169.254.1.1
         echo to its loopback | nc.openbsd -N -w 2 10.0.2.2 7302 || echo and not there"
    )
    .replace("ping", "busybox ping");
    let said = answering(&far, || {
        answering(&host, || {
            answering(&own, || {
                std::thread::scope(|s| {
                    s.spawn(|| resolve(&names));
                    tree.run(&container("--rm --cap-add NET_RAW", &script)).text
                })
            })
        })
    });
    for words in [
        "10.0.2.15/24",
        "ONE FAR",
        "TWO FAR",
        "TO THE HOST",
        "nameserver 169.254.1.1",
        "1 packets received",
        "192.0.2.77",
        "and not there",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // With pasta's words for it, the gateway is the host's loopback.
    let script = "echo to its loopback | nc.openbsd -N -w 5 10.0.9.2 7302; ip -o addr show dev t7; cat /sys/class/net/t7/mtu";
    let options = "--rm --network pasta:--map-gw,-I,t7,-a,10.0.9.4,-n,24,-g,10.0.9.2,--mtu,1400";
    let said = answering(&own, || tree.ok(&container(options, script)));
    for words in ["TO ITS LOOPBACK", "10.0.9.4/24", "\n1400\n"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let refused = tree.run(&container("--rm --network pasta:--no-such-word", "true"));
    assert!(refused.code != 0 && refused.text.contains("--no-such-word"), "{}", refused.text);
    tree.is_left();
    drop(tree);
    drop(scene);
    assert_eq!(ground.left(Duration::from_secs(5)).unwrap(), Vec::<String>::new());
}

#[test]
#[ignore = "it needs Podman of Debian 13: `make fronts` runs it"]
fn what_a_container_publishes_is_there_again_at_once() {
    let ground = Ground::survey().unwrap();
    let scene = scene();
    let tree = ready(&scene);
    let script = "echo web words >/tmp/index.html; busybox httpd -p 80 -h /tmp; busybox httpd -p 91 -h /tmp
                  echo answer | nc.openbsd -u -l -p 81 & sleep 1000";
    let options = "-d --name web -p 8080:80 -p 7710-7712:90-92 -p 127.0.0.1:8081:81/udp";
    tree.ok(&container(options, script));
    let ports =
        ["127.0.0.1:8080", &format!("{HOST4}:8080"), "[::1]:8080", "127.0.0.1:7711"].map(str::to_owned);
    for at in &ports {
        get(&scene, at);
    }
    let socket = scene.host.enter(|| UdpSocket::bind("127.0.0.1:0")).unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(b"question", "127.0.0.1:8081").unwrap();
    let mut text = [0; 64];
    let n = socket.recv(&mut text).unwrap();
    assert_eq!(&text[..n], b"answer\n");
    for _ in 0..3 {
        tree.ok("podman restart -t 0 web");
        get(&scene, &ports[0]);
    }
    tree.ok("podman rm -f -t 0 web");
    tree.is_left();
    for at in &ports {
        scene.host.enter(|| TcpListener::bind(at)).unwrap().unwrap();
    }
    drop(tree);
    drop(scene);
    assert_eq!(ground.left(Duration::from_secs(5)).unwrap(), Vec::<String>::new());
}
