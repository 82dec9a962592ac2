//! A user network around a command, as an ordinary user and as root; and what `doctor` says of this kernel.

use super::{is_locked_in, line, release};
use netreeve_tests::bins::ours;
use netreeve_tests::inspect::descendant_named;
use netreeve_tests::leftovers::Ground;
use netreeve_tests::netns::Netns;
use netreeve_tests::proc::Proc;
use netreeve_tests::scene::{FAR4, FAR6, Road, Scene, UPLINK};
use netreeve_tests::{Done, echo, transfer};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);
/// MiB each way, more than a connection's window.
const MUCH: usize = 2;

/// The far side's sockets.
struct Far {
    gives: TcpListener,
    takes: TcpListener,
    answers: UdpSocket,
}

impl Far {
    fn new(far: &Netns, address: &str) -> Far {
        let at = |port| SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
        let (gives, takes, answers) = far
            .enter(|| (TcpListener::bind(at(7000)), TcpListener::bind(at(7001)), UdpSocket::bind(at(7002))))
            .unwrap();
        Far { gives: gives.unwrap(), takes: takes.unwrap(), answers: answers.unwrap() }
    }

    /// The digests of what it gave and took, once each.
    fn talk(&self) -> Done<(String, String)> {
        Ok((transfer::serve(&self.gives, MUCH)?, transfer::hear(&self.takes)?))
    }
}

/// What the command does in its network, a line for each thing. Who takes what comes down sleeps first: what the far side
/// sends meanwhile has to be kept somewhere.
fn script(go: &Path) -> String {
    let stream = ours("proof-stream").unwrap().display().to_string();
    format!(
        "echo begun; until [ -e {} ]; do sleep 0.1; done
         echo address $(ip -o addr show dev t0)
         for a in {FAR4} {FAR6}; do
           echo down $a $({stream} receive $a 7000 | (sleep 1; sha256sum))
           echo up $a $({stream} send $a 7001 {MUCH} | sha256sum)
           echo datagrams $a $({stream} datagrams $a 7002 2>&1 && echo all)
           echo refused $a $({stream} receive $a 9 2>&1)
           echo pinged $a $(busybox ping -c 1 -W 10 $a)
         done
         exit 7",
        go.display()
    )
}

/// pasta's words, by this user, in the host's namespace.
fn pasta(scene: &Scene, uid: Option<u32>, words: &[&str]) -> Proc {
    let mut command = match uid {
        Some(_) => scene.netreeve(&[]),
        None => Command::new(scene.program("netreeve")),
    };
    command.arg0("netreeve-pasta").args(words).current_dir(scene.path(""));
    scene.host.spawn("pasta", command).unwrap()
}

fn a_command_has_a_network(uid: Option<u32>) {
    let ground = Ground::survey().unwrap();
    let scene = Scene::set(Road::AfXdp).unwrap();
    scene
        .host
        .sh(&format!(
            "ip addr add 10.77.0.9/24 dev {UPLINK}; ip addr add fd77::9/64 dev {UPLINK} nodad
             ip route add default via {FAR4}; ip -6 route add default via {FAR6}
             echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range"
        ))
        .unwrap();
    let far = [FAR4, FAR6].map(|a| Far::new(&scene.far, a));
    let go = scene.path("go");
    let mut pasta = pasta(&scene, uid, &["--config-net", "-I", "t0", "sh", "-c", &script(&go)]);
    pasta.wait_for("begun", PATIENCE).unwrap();
    is_locked_in(descendant_named(pasta.pid(), "netreeve-dataplane", PATIENCE).unwrap(), true);
    std::fs::write(&go, "").unwrap();
    let end = AtomicBool::new(false);
    let (digests, said) = std::thread::scope(|s| {
        far.iter().for_each(|f| drop(s.spawn(|| echo::echo(&f.answers, &end).unwrap())));
        let digests = far.iter().map(Far::talk).collect::<Done<Vec<_>>>();
        let said = pasta.wait(PATIENCE);
        end.store(true, Ordering::Relaxed);
        (digests, said.unwrap())
    });
    let digests = digests.unwrap_or_else(|e| panic!("{e}\n{}", said.text));
    assert_eq!(said.code, 7, "{}", said.text);
    let has = |begins: &str, what: &str| {
        assert!(line(&said, begins).contains(what), "{begins}, {what:?}: {}", said.text);
    };
    has("address ", "10.0.2.15/24");
    has("address ", "fec0::15/64");
    for (a, (gave, took)) in [FAR4, FAR6].into_iter().zip(&digests) {
        has(&format!("down {a} "), gave);
        has(&format!("up {a} "), took);
        has(&format!("datagrams {a} "), "all");
        has(&format!("refused {a} "), "Connection refused");
        has(&format!("pinged {a} "), "1 packets received");
    }
    eprintln!("{MUCH} MiB down and up in both families, datagrams of every size, a refusal, a ping");
    drop((pasta, scene));
    assert_eq!(ground.left(Duration::from_secs(20)).unwrap(), Vec::<String>::new());
}

#[test]
#[ignore = "runs in the guest"]
fn an_ordinary_users_command_has_a_network() {
    a_command_has_a_network(Some(netreeve_tests::scene::USER));
}

#[test]
#[ignore = "runs in the guest"]
fn a_command_of_roots_has_a_network() {
    a_command_has_a_network(None);
}

#[test]
#[ignore = "runs in the guest"]
fn what_this_machine_can_do_is_said() {
    let scene = Scene::set(Road::AfXdp).unwrap();
    let said = scene.host.run("doctor", scene.netreeve(&["doctor"]), PATIENCE).unwrap();
    eprintln!("{}", said.text);
    let new = |first: (u32, u32)| release() >= first;
    let peeks = match (new((6, 9)), new((6, 11))) {
        (true, true) => "stays in the kernel until the guest has it",
        (true, false) => "no SO_PEEK_OFF for IPv6",
        _ => "no SO_PEEK_OFF for TCP",
    };
    let scopes = if new((6, 12)) { "ok    kernel" } else { "Landlock's scopes need 6.12" };
    let rings =
        if new((6, 4)) { "sockets can be taken over" } else { "cannot be taken over before Linux 6.4" };
    for what in [peeks, scopes, rings, "ok    sandbox          full", "ok    user namespaces", "ok    tap"] {
        assert!(said.text.contains(what), "{what}");
    }
}
