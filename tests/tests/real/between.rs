//! A guest in one VMM and a guest in another, each behind a `netreeve` of its own, reach each other over networks made of
//! sockets: an L2TPv3 session, a VDE switch, a VDE switch of ours, and a multicast group. User-Mode Linux is at one end
//! of a link and QEMU at the other; each has a NIC in every one of the networks. The two ends are two users'.
//!
//! Into the switch of ours User-Mode Linux plugs a second time by itself, with its own transport.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{ChildStdin, Command};
use std::time::{Duration, Instant};

use netreeve_tests::bins::peer;
use netreeve_tests::guest::uml::Uml;
use netreeve_tests::guest::{Console, Job};
use netreeve_tests::leftovers::Ground;
use netreeve_tests::peers::{parse_ping, wait_until_reachable};
use netreeve_tests::proc::Proc;
use netreeve_tests::scene::{FAR, PATIENCE, Reeve, Road, Scene, UPLINK, USER};
use netreeve_tests::transfer;

use crate::{House, all};

/// What is sent through each network, each way.
const MEBIBYTES: usize = 1;

/// The users of the two ends. Both switches are the first one's.
const USERS: [u32; 2] = [USER, USER + 1];

/// In the switch of ours: the NIC that User-Mode Linux plugs in itself, and addresses of its and of QEMU's beside those
/// that they have there.
const OWN: (&str, [&str; 2]) = ("eth9", ["10.79.0.2", "10.79.0.3"]);
/// The number of that network.
const OURS: usize = 2;

/// A network: its name, our netdev at either end, and the MTU in bytes of guests in it.
struct Network {
    name: &'static str,
    ends: [String; 2],
    mtu: u32,
}

/// The networks, in the order of the guests' NICs.
fn networks(scene: &Scene) -> [Network; 4] {
    let vde = |dir: &str| format!("vde,sock={}", scene.path(dir).display());
    let session = |src: &str, dst: &str, numbers: &str| {
        format!(
            "l2tpv3,src={src},dst={dst},ipv6=on,udp=on,srcport=1701,dstport=1701,{numbers},cookie64=on,counter=on"
        )
    };
    let group = |at: &str| {
        format!(
            "dgram,remote.type=inet,remote.host=239.66.0.9,remote.port=5006,\
             local.type=inet,local.host={at},local.port=0"
        )
    };
    [
        Network {
            name: "an L2TPv3 session",
            ends: [
                session("fd66::1", "fd66::2", "txsession=1,rxsession=2,txcookie=3,rxcookie=4"),
                session("fd66::2", "fd66::1", "txsession=2,rxsession=1,txcookie=4,rxcookie=3"),
            ],
            mtu: 1400,
        },
        Network { name: "a VDE switch", ends: [vde("theirs"), vde("theirs")], mtu: 1500 },
        Network {
            name: "a VDE switch of ours",
            ends: [vde("ours") + ",server=on,mode=0777", vde("ours")],
            mtu: 1500,
        },
        Network { name: "a multicast group", ends: [group("10.66.0.1"), group("10.66.0.2")], mtu: 1400 },
    ]
}

/// `vde_switch` as the user. It ends with its standard input.
fn switch(scene: &Scene) -> (Proc, Option<ChildStdin>) {
    let console = scene.path("console");
    let mut command = Command::new(peer("vde_switch").unwrap());
    command.arg("-s").arg(scene.path("theirs")).arg("-M").arg(&console).args(["-m", "777"]);
    command.uid(USER).gid(USER);
    let mut proc = scene.host.spawn_with_input("vde_switch", command).unwrap();
    let input = proc.input();
    let until = Instant::now() + PATIENCE;
    while UnixStream::connect(&console).is_err() {
        assert!(Instant::now() < until, "no switch: {}", proc.tail());
        std::thread::sleep(Duration::from_millis(5));
    }
    (proc, input)
}

/// The arguments of the `netreeve` at one end, with a vhost-user device on each of the networks.
fn arguments(all: &[Network], end: usize) -> Vec<String> {
    let mut said = vec!["run".to_owned(), "--json".to_owned()];
    for (n, network) in all.iter().enumerate() {
        let (kind, options) = network.ends[end].split_once(',').unwrap();
        said.extend(["--netdev".to_owned(), format!("{kind},id=n{n},{options}")]);
        said.extend(["--device".to_owned(), format!("vhost-user,netdev=n{n},path={}", socket(n))]);
    }
    said
}

/// A device's socket.
fn socket(n: usize) -> String {
    format!("vm{n}.sock")
}

/// `netreeve` as the user of that end, in a directory of his own.
fn netreeve(scene: &Scene, end: usize, arguments: &[&str]) -> Command {
    let mut command = scene.netreeve(arguments);
    command.uid(USERS[end]).gid(USERS[end]).current_dir(home(scene, end));
    command
}

fn home(scene: &Scene, end: usize) -> PathBuf {
    let home = scene.path(["", "far"][end]);
    if !home.exists() {
        fs::create_dir(&home).unwrap();
        chown(&home, Some(USERS[end]), Some(USERS[end])).unwrap();
    }
    home
}

/// Starts it in the namespace of that end.
fn start(scene: &Scene, all: &[Network], end: usize) -> Reeve {
    let said = arguments(all, end);
    let command = netreeve(scene, end, &said.iter().map(String::as_str).collect::<Vec<_>>());
    let ns = [&scene.host, &scene.far][end];
    let reeve = Reeve { proc: ns.spawn("netreeve run", command).unwrap() };
    reeve.proc.wait_for("\"ready\"", PATIENCE).unwrap();
    reeve
}

/// A guest's addresses in network `n`.
fn addresses(n: usize, host: usize) -> [String; 2] {
    [format!("10.78.{n}.{host}"), format!("fd78:{n}::{host}")]
}

fn settle(guest: &Console, all: &[Network], host: usize) {
    for (n, network) in all.iter().enumerate() {
        let ([four, six], mtu) = (addresses(n, host), network.mtu);
        guest
            .ok(&format!(
                "echo 0 >/proc/sys/net/ipv6/conf/eth{n}/accept_dad
                 ip link set eth{n} mtu {mtu} up
                 ip addr add {four}/24 dev eth{n}
                 ip -6 addr add {six}/64 dev eth{n}"
            ))
            .unwrap();
    }
}

/// Nobody else may plug into a switch whose user has not said so.
fn shut_to_others(scene: &Scene) {
    let device = |n: usize| format!("stream,netdev=n0,server=on,addr.type=unix,addr.path=shut{n}.sock");
    let dir = format!("vde,id=n0,sock={}", scene.path("shut").display());
    let (switch, first) = (format!("{dir},server=on"), device(0));
    let command = netreeve(scene, 0, &["run", "--json", "--netdev", &switch, "--device", &first]);
    let mut switch = scene.start(command).unwrap();
    for end in [1, 0] {
        let plug = device(1 + end);
        let command = netreeve(scene, end, &["run", "--json", "--netdev", &dir, "--device", &plug]);
        let mut plug = scene.host.spawn("netreeve run", command).unwrap();
        if end == 1 {
            let end = plug.wait(PATIENCE).unwrap();
            assert_eq!(end.code, 77, "{}", end.text);
            assert!(end.text.contains("plugging into") && end.text.contains("denied"), "{}", end.text);
        } else {
            plug.wait_for("\"ready\"", PATIENCE).unwrap();
            plug.terminate(PATIENCE).unwrap();
        }
    }
    assert_eq!(switch.proc.terminate(PATIENCE).unwrap().code, 0);
}

/// Pings of a guest to the other in every network and of both families, all at once: small ones and such as fill a frame.
fn pings<'a>(guest: &Console, all: &'a [Network], to: usize) -> Vec<(&'a str, Job)> {
    let mut jobs = Vec::new();
    for (n, network) in all.iter().enumerate() {
        for (address, header) in addresses(n, to).iter().zip([28, 48]) {
            for size in [56, network.mtu - header] {
                let job = guest.start(&format!("ping -c 4 -i 0.2 -W 5 -s {size} {address}")).unwrap();
                jobs.push((network.name, job));
            }
        }
    }
    jobs
}

fn answered(guest: &Console, jobs: Vec<(&str, Job)>) {
    for (name, job) in jobs {
        let said = guest.finish(job, 2 * PATIENCE).unwrap().text;
        eprintln!("{name}: {}", said.lines().next().unwrap_or_default());
        all(parse_ping(&said).unwrap(), 4);
    }
}

#[test]
fn guests_of_two_vmms_reach_each_other_over_sockets_of_every_kind() {
    let ground = Ground::survey().unwrap();
    let scene = Scene::set(Road::AfXdp).unwrap();
    for (ns, link, host) in [(&scene.host, UPLINK, 1), (&scene.far, FAR, 2)] {
        ns.sh(&format!(
            "ip addr add 10.66.0.{host}/24 dev {link}; ip addr add fd66::{host}/64 dev {link} nodad"
        ))
        .unwrap();
    }
    let switch = switch(&scene);
    let networks = networks(&scene);
    let near = start(&scene, &networks, 0);
    let mut far = start(&scene, &networks, 1);

    shut_to_others(&scene);

    let at = &scene;
    let sockets = |end| (0..networks.len()).map(move |n| home(at, end).join(socket(n)));
    let own = format!("{}=vde,{}", OWN.0, scene.path("ours").display());
    let uml = sockets(0).fold(Uml::new().word(&own), |uml, s| uml.nic(&s)).boot().unwrap();
    let qemu = scene.qemu().user(USERS[1]);
    let qemu = sockets(1).fold(qemu, |qemu, s| qemu.vhost_user(&s, false));
    let qemu = qemu.boot().unwrap();
    settle(&uml, &networks, 2);
    settle(&qemu, &networks, 3);
    let (nic, [here, there]) = OWN;
    // Its other NIC there does not speak for this one.
    uml.ok(&format!(
        "echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore
         ip link set {nic} mtu 1400 up; ip addr add {here}/24 dev {nic}"
    ))
    .unwrap();
    qemu.ok(&format!("ip addr add {there}/24 dev eth{OURS}")).unwrap();
    wait_until_reachable(&uml, there).unwrap();
    for (n, network) in networks.iter().enumerate() {
        let [four, _] = addresses(n, 3);
        wait_until_reachable(&uml, &four).map_err(|e| format!("{}: {e}", network.name)).unwrap();
    }
    let (to_qemu, to_uml) = (pings(&uml, &networks, 3), pings(&qemu, &networks, 2));
    answered(&uml, to_qemu);
    answered(&qemu, to_uml);
    let sent = transfer::between(&uml, &qemu, there.parse().unwrap(), MEBIBYTES).unwrap();
    let back = transfer::between(&qemu, &uml, here.parse().unwrap(), MEBIBYTES).unwrap();
    for way in ["rx", "tx"] {
        let passed = uml.ok(&format!("cat /sys/class/net/{nic}/statistics/{way}_bytes")).unwrap();
        assert!(passed.trim().parse::<usize>().unwrap() > MEBIBYTES << 20, "{passed}");
    }
    eprintln!("{nic} of UML's own: {MEBIBYTES} MiB there in {:?}, back in {:?}", sent.took, back.took);
    for (n, network) in networks.iter().enumerate() {
        let ([_, six], [four, _]) = (addresses(n, 3), addresses(n, 2));
        let there = transfer::between(&uml, &qemu, six.parse().unwrap(), MEBIBYTES);
        let there = there.map_err(|e| format!("{}: {e}", network.name)).unwrap();
        let back = transfer::between(&qemu, &uml, four.parse().unwrap(), MEBIBYTES);
        let back = back.map_err(|e| format!("{}: {e}", network.name)).unwrap();
        eprintln!("{}: {MEBIBYTES} MiB there in {:?}, back in {:?}", network.name, there.took, back.took);
    }
    uml.power_off().unwrap();
    qemu.power_off(PATIENCE).unwrap();
    let end = far.proc.terminate(PATIENCE).unwrap();
    assert_eq!(end.code, 0, "{}", end.text);
    drop((far, switch));
    House { reeve: near, scene, ground }.end();
}
