//! Called as passt by those who start a passt: QEMU's own `-netdev passt` (10.1 and later), both ways. And as pasta, for
//! namespaces of an ordinary user: a command's, a process's, one with a name. Nothing has a privilege.

use crate::user::{HOST4, HOST6, configure, heard, scene, shout, slaac, talk};
use crate::user_guest::names;
use netreeve_tests::guest::uml::{Running, Uml, wait_for_socket};
use netreeve_tests::guest::{Console, Vmm};
use netreeve_tests::leftovers::Ground;
use netreeve_tests::proc::{Outcome, Proc};
use netreeve_tests::scene::{FAR4, FAR6, PATIENCE, Scene, UPLINK, USER};
use netreeve_tests::{Because, echo};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Answers in capitals, once, at a port of this address of the far side's, while `f` runs.
fn answered<T>(scene: &Scene, far: &str, port: u16, f: impl FnOnce() -> T) -> T {
    let at = SocketAddr::new(far.parse().unwrap(), port);
    let listener = scene.far.enter(|| TcpListener::bind(at)).unwrap().unwrap();
    std::thread::scope(|s| {
        s.spawn(|| shout(&listener, 1));
        f()
    })
}

/// QEMU still holds the file of its guest's memory.
fn has_memory(guest: &Console) -> bool {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", guest.proc().pid())).unwrap();
    let mut files = fds.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
    files.any(|f| f.to_string_lossy().contains("memory-backend-memfd"))
}

/// A guest of a QEMU that has started a passt for it.
///
/// QEMU closes the passt's socket twice (`net/passt.c`, to 11.1 at least). The second time the number may be that of a
/// descriptor of GLib's, whose worker closes it later: by then it is that of the guest's memory. With `vhost-user=on` what
/// QEMU hands to us then is no memory, and we refuse it. There is nothing to see in such a guest.
fn guest_of_qemus(vmm: &Vmm, vhost_user: &str) -> (Scene, Console) {
    let kept = (0..10).find_map(|_| {
        let scene = scene();
        let passt = scene.path("netreeve-passt");
        symlink(scene.program("netreeve"), &passt).unwrap();
        let netdev = format!(
            "passt,id=n0,path={},vhost-user={vhost_user},tcp-ports=7700:7701,udp-ports=7710:7711,dns={FAR4}",
            passt.display()
        );
        let guest = scene.qemu().by(vmm).user(USER).inside(&scene.host).netdev(&netdev).boot().unwrap();
        guest.ok("true").unwrap();
        if guest.log().contains("vhost_set_mem_table failed") {
            assert!(vhost_user == "on" && !has_memory(&guest), "{}", guest.log());
            eprintln!("{vmm} has closed its guest's memory: another one");
            return None;
        }
        Some((scene, guest))
    });
    kept.unwrap()
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
            let (scene, guest) = guest_of_qemus(vmm, vhost_user);
            configure(&guest);
            let lease = guest.ok("cat /tmp/lease").unwrap();
            assert!(lease.starts_with("10.0.2.15/24 router=10.0.2.2 dns=10.0.2.3"), "{lease}");
            slaac(&guest);
            for far in [FAR4, FAR6] {
                answered(&scene, far, 7300, || assert_eq!(talk(&guest, far, 7300), "QUIET WORDS\n"));
            }
            names(&scene, &guest);
            let job = guest.start("echo here I am | nc -l -p 7701").unwrap();
            let forward = SocketAddr::new(HOST4.parse().unwrap(), 7700);
            assert_eq!(heard(&scene.far, forward), "here I am\n");
            guest.finish(job, PATIENCE).unwrap();
            let _until_the_end = guest.start("proof-stream serve 7711").unwrap();
            for host in [HOST4, HOST6] {
                let forward = SocketAddr::new(host.parse().unwrap(), 7710);
                scene.far.enter(|| echo::datagrams(&echo::towards(forward)?)).unwrap().because(host).unwrap();
            }
            guest.power_off(PATIENCE).unwrap();
            drop(scene);
            assert_eq!(ground.left(Duration::from_secs(5)).unwrap(), Vec::<String>::new());
        }
    }
}

/// A guest by vhost-user on a passt that was given these words too.
fn guest_of_passt(scene: &Scene, more: &str) -> (Running, Proc) {
    let socket = scene.path("vm.sock");
    let mut words = vec!["--vhost-user", "--foreground", "--one-off", "--socket", socket.to_str().unwrap()];
    words.extend(more.split_whitespace());
    let mut passt = scene.netreeve(&words);
    passt.arg0("netreeve-passt");
    let passt = scene.host.spawn("passt", passt).unwrap();
    wait_for_socket(&socket, PATIENCE).unwrap();
    let guest = Uml::new().nic(&socket).boot().unwrap();
    guest.ok("echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip link set eth0 up").unwrap();
    (guest, passt)
}

/// Addresses of the documentation's networks (RFC 3849) and of a private one, as a libvirt domain may have them.
const ADDRESSES: &str = "-a 172.17.2.4 -n 24 -a 2001:db8:7::20";

/// Both families reach the far side.
fn talks_by_both(scene: &Scene, guest: &Running) {
    let listener = scene.far.enter(|| TcpListener::bind("[::]:7300")).unwrap().unwrap();
    std::thread::scope(|s| {
        s.spawn(|| shout(&listener, 2));
        for far in [FAR4, FAR6] {
            assert_eq!(talk(guest, far, 7300), "QUIET WORDS\n", "{far}");
        }
    });
}

/// The guest is switched off, and a passt of one guest goes with it.
fn both_end((guest, mut passt): (Running, Proc)) {
    guest.power_off().unwrap();
    assert_eq!(passt.wait(PATIENCE).unwrap().code, 0);
}

/// What the guest has by routers' advertisements.
const ADVERTISED: &str = "ip -6 addr show dev eth0 scope global; ip -6 route | grep ^default";

#[test]
fn a_guest_of_passt_has_the_addresses_that_were_given() {
    let scene = scene();
    let (guest, passt) = guest_of_passt(&scene, ADDRESSES);
    configure(&guest);
    let lease = guest.ok("cat /tmp/lease").unwrap();
    assert!(lease.starts_with("172.17.2.4/24 router=172.17.2.2 dns=172.17.2.3"), "{lease}");
    let advertised = format!(
        "for i in $(seq 100); do {ADVERTISED} | grep -q default && exit 0; usleep 50000; done; exit 1"
    );
    guest.ok(&advertised).unwrap();
    let said = guest.ok(ADVERTISED).unwrap();
    assert!(said.contains(" 2001:db8:7:") && said.contains("default via fe80:"), "{said}");
    talks_by_both(&scene, &guest);
    both_end((guest, passt));
}

#[test]
fn a_guest_of_passt_is_told_nothing_and_lives() {
    let scene = scene();
    let (guest, passt) = guest_of_passt(&scene, &format!("{ADDRESSES} --no-dhcp --no-ra"));
    // Longer than it takes where both are told (the test above).
    let asked = guest.run("udhcpc -i eth0 -n -q -f -t 4 -T 1 -s /bin/true", PATIENCE).unwrap();
    assert!(asked.code != 0 && asked.text.contains("no lease"), "{}", asked.text);
    let told = guest.run(ADVERTISED, PATIENCE).unwrap().text;
    assert_eq!(told, "", "told by an advertisement");
    // What nobody told is set by hand, as the host's administrator has it.
    guest
        .ok("ip addr add 172.17.2.4/24 dev eth0; ip route add default via 172.17.2.2
             ip -6 addr add 2001:db8:7::20/64 dev eth0; ip -6 route add default via 2001:db8:7::2")
        .unwrap();
    talks_by_both(&scene, &guest);
    both_end((guest, passt));
}

#[test]
fn a_guest_of_passt_finds_no_neighbour_without_ndp() {
    let scene = scene();
    let (guest, passt) = guest_of_passt(&scene, &format!("{ADDRESSES} --no-ndp"));
    configure(&guest);
    guest.ok("ip -6 addr add 2001:db8:7::20/64 dev eth0").unwrap();
    let asked = guest.run("ping -6 -c 2 -W 2 2001:db8:7::2", PATIENCE).unwrap();
    assert!(asked.code != 0, "a neighbour was found: {}", asked.text);
    assert_eq!(guest.run("ip -6 route | grep ^default", PATIENCE).unwrap().text, "", "told by a router");
    // The other family is as ever.
    answered(&scene, FAR4, 7300, || assert_eq!(talk(&guest, FAR4, 7300), "QUIET WORDS\n"));
    both_end((guest, passt));
}

/// pasta's words, as an ordinary user in the host's namespace.
pub(crate) fn pasta(scene: &Scene, words: &[&str]) -> Command {
    let mut command = scene.netreeve(words);
    command.arg0("netreeve-pasta");
    command
}

pub(crate) fn ran(scene: &Scene, command: Command) -> Outcome {
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
    let end = answered(&scene, FAR4, 7300, || ran(&scene, pasta(&scene, &words)));
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

pub(crate) fn wait_until(what: &str, mut f: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !f() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process of the ordinary user, in namespaces of its own.
pub(crate) fn namespaces(scene: &Scene) -> Proc {
    let mut there = Command::new("unshare");
    there.args(["-Urn", "sleep", "1000"]).uid(USER).gid(USER);
    let there = scene.host.spawn("a namespace", there).unwrap();
    let of = format!("/proc/{}/ns/user", there.pid());
    let our = std::fs::read_link("/proc/self/ns/user").unwrap();
    wait_until("no user namespace", || std::fs::read_link(&of).is_ok_and(|n| n != our));
    there
}

#[test]
fn a_namespace_that_comes_again_gets_its_forwards_again() {
    let ground = Ground::survey().unwrap();
    let scene = scene();
    let mut last = String::new();
    // As Podman does when it starts a container anew: its name for the network goes, and the next is there at once.
    for n in 0..3 {
        let mut there = namespaces(&scene);
        let name = scene.path(&format!("net{n}"));
        symlink(format!("/proc/{}/ns/net", there.pid()), &name).unwrap();
        last = scene.path(&format!("pid{n}")).display().to_string();
        let (user, net) = (format!("/proc/{}/ns/user", there.pid()), name.display().to_string());
        let line = format!("--pid {last} --userns {user} --netns {net} -t 7705:80 -u 7705 -I e0");
        let end = ran(&scene, pasta(&scene, &line.split_whitespace().collect::<Vec<_>>()));
        assert_eq!(end.code, 0, "the one of round {n}: {}", end.text);
        there.terminate(PATIENCE).unwrap();
        std::fs::remove_file(name).unwrap();
    }
    wait_until("the last one stays", || !Path::new(&last).exists());
    drop(scene);
    assert_eq!(ground.left(Duration::from_secs(5)).unwrap(), Vec::<String>::new());
}

#[test]
fn a_process_and_a_path_are_joined_and_followed() {
    let ground = Ground::survey().unwrap();
    let scene = scene();
    let mut there = namespaces(&scene);
    let of = |kind: &str| format!("/proc/{}/ns/{kind}", there.pid());
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
    let said = answered(&scene, FAR4, 7300, || {
        inside(&format!("ip -o addr show dev e0; echo words | busybox nc -w 5 {FAR4} 7300"))
    });
    assert!(said.text.contains("10.0.2.15/24") && said.text.contains("WORDS"), "{}", said.text);
    // What stands for the host's address leads there; the gateway leads to nobody.
    let listener = scene.host.enter(|| TcpListener::bind((HOST4, 7301))).unwrap().unwrap();
    std::thread::scope(|s| {
        s.spawn(|| shout(&listener, 1));
        assert!(inside("echo me | busybox nc -w 5 169.254.1.2 7301").text.contains("ME"));
    });
    // So it does when the host has moved.
    let moved = "10.77.0.10";
    let change = format!("ip addr del {HOST4}/24 dev {UPLINK}; ip addr add {moved}/24 dev {UPLINK}");
    scene.host.sh(&format!("{change}; ip route replace default via {FAR4}")).unwrap();
    let listener = scene.host.enter(|| TcpListener::bind((moved, 7301))).unwrap().unwrap();
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

/// Does something in the network namespace of a process.
pub(crate) fn within<T: Send>(pid: i32, f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|s| {
        let inside = s.spawn(|| {
            let net = File::open(format!("/proc/{pid}/ns/net")).unwrap();
            setns(net, CloneFlags::CLONE_NEWNET).unwrap();
            f()
        });
        inside.join().unwrap()
    })
}

/// Who comes to a listener, within our patience.
pub(crate) fn accepted(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    listener.set_nonblocking(true).unwrap();
    let mut came = None;
    wait_until("nobody comes", || {
        came = listener.accept().ok();
        came.is_some()
    });
    came.unwrap()
}

#[test]
fn ports_follow_who_listens_inside_and_sockets_leave_as_they_are_told() {
    let ground = Ground::survey().unwrap();
    let scene = scene();
    scene.host.sh(&format!("ip addr add 10.77.0.10/24 dev {UPLINK}")).unwrap();
    let mut there = namespaces(&scene);
    let pid = there.pid();
    let file = scene.path("pasta.pid").display().to_string();
    let line = format!(
        "--config-net -I e0 --pid {file} -t auto,~7411 -t 7500-7599 -u 7600-7699 -o 10.77.0.10 --outbound-if4 {UPLINK} {pid}"
    );
    let end = ran(&scene, pasta(&scene, &line.split_whitespace().collect::<Vec<_>>()));
    assert_eq!(end.code, 0, "{}", end.text);
    // By the address and the interface that were named.
    let far = SocketAddr::new(FAR4.parse().unwrap(), 7300);
    let listener = scene.far.enter(|| TcpListener::bind(far)).unwrap().unwrap();
    let datagrams = scene.far.enter(|| UdpSocket::bind(far)).unwrap().unwrap();
    let _out = within(pid, || TcpStream::connect_timeout(&far, PATIENCE)).unwrap();
    assert_eq!(accepted(&listener).1.ip().to_string(), "10.77.0.10");
    within(pid, || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", far)).unwrap();
    datagrams.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(datagrams.recv_from(&mut [0; 9]).unwrap().1.ip().to_string(), "10.77.0.10");
    // Who listens inside is reached, at the loopback alone or left out is not, and no longer than he listens.
    let listen = |at: &'static str| within(pid, || TcpListener::bind(at)).unwrap();
    let (one, _out, _own) = (listen("0.0.0.0:7410"), listen("0.0.0.0:7411"), listen("127.0.0.1:7412"));
    let call = |port: u16| scene.host.enter(|| TcpStream::connect(("127.0.0.1", port))).unwrap();
    wait_until("a port is not forwarded", || call(7410).is_ok());
    accepted(&one);
    // Nor in another round: it is looked every second.
    for round in 0..2 {
        assert!(call(7411).is_err() && call(7412).is_err(), "round {round}");
        std::thread::sleep(Duration::from_secs(2 - 2 * round));
    }
    drop(one);
    wait_until("a port is forwarded for nobody", || call(7410).is_err());
    // One of a whole range, in both families.
    let some = listen("0.0.0.0:7555");
    call(7555).unwrap();
    accepted(&some);
    let inside = within(pid, || UdpSocket::bind("0.0.0.0:7650")).unwrap();
    inside.set_read_timeout(Some(PATIENCE)).unwrap();
    for (own, to) in [("127.0.0.1:0", "127.0.0.1:7650"), ("[::1]:0", "[::1]:7650")] {
        let client = scene.host.enter(|| UdpSocket::bind(own)).unwrap().unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.connect(to).unwrap();
        client.send(b"there").unwrap();
        let (_, from) = inside.recv_from(&mut [0; 9]).unwrap();
        inside.send_to(b"and back", from).unwrap();
        assert_eq!(client.recv(&mut [0; 9]).unwrap(), 8, "{to}");
    }
    there.terminate(PATIENCE).unwrap();
    wait_until("pasta stays behind", || !Path::new(&file).exists());
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
