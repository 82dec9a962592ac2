//! Called as passt by those who start a passt: QEMU's own `-netdev passt` (10.1 and later), both ways. And as pasta, for
//! namespaces of an ordinary user: a command's, a process's, one with a name. Nothing has a privilege.

use crate::user::{HOST4, configure, scene, shout, talk};
use netreeve_tests::guest::Vmm;
use netreeve_tests::leftovers::Ground;
use netreeve_tests::proc::Outcome;
use netreeve_tests::scene::{FAR4, FAR6, PATIENCE, Scene, USER};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Answers in capitals, once, at the far side's port, while `f` runs.
fn answered<T>(scene: &Scene, port: u16, f: impl FnOnce() -> T) -> T {
    let at = SocketAddr::new(FAR4.parse().unwrap(), port);
    let listener = scene.far.enter(|| TcpListener::bind(at)).unwrap().unwrap();
    std::thread::scope(|s| {
        s.spawn(|| shout(&listener, 1));
        f()
    })
}

#[test]
fn qemus_own_netdev_starts_us_as_passt() {
    let all = Vmm::all().unwrap();
    let able: Vec<&Vmm> = all.iter().filter(|v| v.version >= (10, 1, 0)).collect();
    assert!(!able.is_empty(), "no QEMU of 10.1 or later: {all:?}");
    for vmm in able {
        for vhost_user in ["off", "on"] {
            eprintln!("-- {vmm}, vhost-user={vhost_user}");
            let ground = Ground::survey().unwrap();
            let scene = scene();
            let passt = scene.path("netreeve-passt");
            symlink(scene.program("netreeve"), &passt).unwrap();
            let netdev =
                format!("passt,id=n0,path={},vhost-user={vhost_user},tcp-ports=7700:7701", passt.display());
            let guest = scene.qemu().by(vmm).user(USER).inside(&scene.host).netdev(&netdev).boot().unwrap();
            configure(&guest);
            let lease = guest.ok("cat /tmp/lease").unwrap();
            assert!(lease.starts_with("10.0.2.15/24 router=10.0.2.2 dns=10.0.2.3"), "{lease}");
            answered(&scene, 7300, || assert_eq!(talk(&guest, FAR4, 7300), "QUIET WORDS\n"));
            guest.power_off(PATIENCE).unwrap();
            drop(scene);
            assert_eq!(ground.left(Duration::from_secs(5)).unwrap(), Vec::<String>::new());
        }
    }
}

/// pasta's words, as an ordinary user in the host's namespace.
fn pasta(scene: &Scene, words: &[&str]) -> Command {
    let mut command = scene.netreeve(words);
    command.arg0("netreeve-pasta");
    command
}

fn ran(scene: &Scene, command: Command) -> Outcome {
    scene.host.run("pasta", command, Duration::from_secs(30)).unwrap()
}

#[test]
fn a_command_gets_a_network_of_its_own() {
    let ground = Ground::survey().unwrap();
    let scene = scene();
    let script = format!(
        "ip -o addr show dev t0; ip route; ip -6 route; cat /etc/resolv.conf; id -u
         echo quiet words | busybox nc -w 5 {FAR4} 7300; busybox ping -c 1 -W 5 {FAR6} >&2; pwd; exit 7"
    );
    let words = ["--config-net", "-I", "t0", "-S", "a.example", "sh", "-c", &script];
    let end = answered(&scene, 7300, || ran(&scene, pasta(&scene, &words)));
    assert_eq!(end.code, 7, "{}", end.text);
    let here = scene.path("").display().to_string();
    for said in [
        "10.0.2.15/24",
        "fec0::15/64",
        "default via 10.0.2.2 dev t0",
        "default via fec0::2 dev t0",
        "nameserver 10.0.2.3\nnameserver fec0::3\nsearch a.example\n0\n",
        "QUIET WORDS",
        "1 packets received",
        here.trim_end_matches('/'),
    ] {
        assert!(end.text.contains(said), "{said}: {}", end.text);
    }
    drop(scene);
    assert_eq!(ground.left(Duration::from_secs(5)).unwrap(), Vec::<String>::new());
}

fn wait_until(what: &str, mut f: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !f() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_process_and_a_path_are_joined_and_followed() {
    let ground = Ground::survey().unwrap();
    let scene = scene();
    let mut there = Command::new("unshare");
    there.args(["-Urn", "sleep", "1000"]).uid(USER).gid(USER);
    let mut there = scene.host.spawn("a namespace", there).unwrap();
    let of = |kind: &str| format!("/proc/{}/ns/{kind}", there.pid());
    let our = std::fs::read_link("/proc/self/ns/user").unwrap();
    wait_until("no user namespace", || std::fs::read_link(of("user")).is_ok_and(|n| n != our));
    let inside = |script: &str| {
        let mut command = Command::new("nsenter");
        let whose = there.pid().to_string();
        command.args(["-U", "-n", "--preserve-credentials", "-t", &whose, "sh", "-c", script]);
        command.uid(USER).gid(USER);
        scene.host.run("inside", command, Duration::from_secs(20)).unwrap()
    };
    // Podman's words; the namespace is named by its path.
    let pid = scene.path("pasta.pid").display().to_string();
    let (user, net) = (of("user"), of("net"));
    let line = format!(
        "--config-net --pid {pid} --dns-forward 169.254.1.1 -t none -u none -T none -U none --no-map-gw --quiet \
         --userns {user} --netns {net} --map-guest-addr 169.254.1.2 -I e0"
    );
    let words: Vec<&str> = line.split_whitespace().collect();
    let end = ran(&scene, pasta(&scene, &words));
    assert_eq!(end.code, 0, "{}", end.text);
    let running = |file: &str| {
        let pid = std::fs::read_to_string(file).unwrap();
        Path::new(&format!("/proc/{}", pid.trim())).exists()
    };
    assert!(running(&pid));
    let said = answered(&scene, 7300, || {
        inside(&format!("ip -o addr show dev e0; echo words | busybox nc -w 5 {FAR4} 7300"))
    });
    assert!(said.text.contains("10.0.2.15/24") && said.text.contains("WORDS"), "{}", said.text);
    // What stands for the host's address leads there; the gateway leads to nobody.
    let listener = scene.host.enter(|| TcpListener::bind((HOST4, 7301))).unwrap().unwrap();
    std::thread::scope(|s| {
        s.spawn(|| shout(&listener, 1));
        assert!(inside("echo me | busybox nc -w 5 169.254.1.2 7301").text.contains("ME"));
    });
    let loopback = scene.host.enter(|| TcpListener::bind("127.0.0.1:7302")).unwrap().unwrap();
    assert_ne!(inside("echo me | busybox nc -w 5 10.0.2.2 7302").code, 0);
    loopback.set_nonblocking(true).unwrap();
    assert!(loopback.accept().is_err(), "the host's loopback was reached");
    // It goes with the namespace.
    there.terminate(PATIENCE).unwrap();
    wait_until("pasta stays behind", || !Path::new(&pid).exists() || !running(&pid));
    drop((there, scene));
    assert_eq!(ground.left(Duration::from_secs(5)).unwrap(), Vec::<String>::new());
}

#[test]
fn what_pasta_cannot_do_is_said() {
    let scene = scene();
    for (words, said) in [
        (&["--config-net", "nobody-has-this-program"][..], "nobody-has-this-program"),
        (&["--netns", "/nobody/has/this"], "/nobody/has/this"),
        (&["--config-net", "1"], "/proc/1/ns/"),
        (&["-I", "much-too-long-a-name-for-one", "true"], "much-too-long"),
    ] {
        let end = ran(&scene, pasta(&scene, words));
        assert!(end.code != 0 && end.text.contains(said), "{words:?}: {} {}", end.code, end.text);
    }
}
