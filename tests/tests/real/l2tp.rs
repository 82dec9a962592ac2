//! The kernel's own L2TPv3 as the peer of ours: a Debian kernel under QEMU at the other end of a link, told of its tunnels by
//! iproute2. Frames pass in every form that both have; what comes with another cookie, of another session or from
//! another host gets no further than a counter.

use crate::control::SOCKET;
use crate::{House, all};
use netreeve_tests::guest::Console;
use netreeve_tests::leftovers::Ground;
use netreeve_tests::peers::{iperf_from_guest, iperf_server, ping_from_guest, wait_until_reachable};
use netreeve_tests::scene::{FAR, FAR4, FAR6, PATIENCE, Reeve, Road, Scene, USER, address};
use serde_json::Value;
use std::time::{Duration, Instant};

/// The link's ends by family: ours, the kernel's, and a second one of the kernel's that is nobody's peer.
const ENDS: [[&str; 3]; 2] = [["10.66.0.1", "10.66.0.2", "10.66.0.3"], ["fd66::1", "fd66::2", "fd66::3"]];
/// Cookies by their length: what the kernel sends, and what it expects.
const COOKIES: [(&str, &str); 3] =
    [("", ""), ("11121314", "21222324"), ("1112131415161718", "2122232425262728")];
/// What reaches the guest through a tunnel in one piece, in bytes: the link has 1500, the longest headers are 56 and
/// the frame's own 14.
const MTU: u32 = 1400;
/// A floor for TCP under TCG that only something broken stays below.
const BROKEN: f64 = 1e6;

/// One form of the tunnel. The number is in all that tells it from those before it.
#[derive(Clone, Copy)]
struct Form {
    udp: bool,
    family: usize,
    cookie: usize,
    number: u32,
}

impl Form {
    /// What the kernel sends, and we receive.
    fn rx(self) -> u32 {
        0x0a00_0000 + self.number
    }

    /// What we send.
    fn tx(self) -> u32 {
        0x0b00_0000 + self.number
    }

    /// Our netdev. The kernel's header has four bytes more, unless it is told otherwise: our counter.
    fn ours(self) -> String {
        let [ours, theirs, _] = ENDS[self.family];
        let (theirs_sent, ours_sent) = COOKIES[self.cookie];
        let udp = if self.udp {
            format!(",udp=on,srcport={0},dstport={0}", 5000 + self.number)
        } else {
            String::new()
        };
        let ipv6 = ["", ",ipv6=on"][self.family];
        let cookies = match self.cookie {
            0 => String::new(),
            n => {
                format!(",cookie64={},txcookie=0x{ours_sent},rxcookie=0x{theirs_sent}", ["", "off", "on"][n])
            }
        };
        let counter = ["", ",counter=on", ",counter=on"][self.cookie];
        let sessions = format!("txsession={},rxsession={}", self.tx(), self.rx());
        format!("l2tpv3,id=l0,src={ours},dst={theirs},{sessions}{udp}{ipv6}{cookies}{counter}")
    }

    /// A tunnel of the guest's from one of its addresses.
    fn tunnel(self, id: u32, from: &str, port: u32) -> String {
        let ours = ENDS[self.family][0];
        let carrier = if self.udp {
            format!("udp udp_sport {port} udp_dport {}", 5000 + self.number)
        } else {
            "ip".to_owned()
        };
        format!(
            "/usr/sbin/ip l2tp add tunnel tunnel_id {id} peer_tunnel_id {id} encap {carrier} local {from} remote {ours}\n"
        )
    }

    /// A session of the guest's in a tunnel: the interface's name, the numbers of both ways, the cookie that it sends.
    fn session(self, tunnel: u32, name: &str, [rx, tx]: [u32; 2], cookie: &str) -> String {
        let cookies = match COOKIES[self.cookie] {
            ("", _) => String::new(),
            (_, expected) => format!("cookie {cookie} peer_cookie {expected}"),
        };
        let sublayer = ["l2spec_type none", "", ""][self.cookie];
        format!(
            "/usr/sbin/ip l2tp add session name {name} tunnel_id {tunnel} session_id {rx} peer_session_id {tx} \
             {cookies} {sublayer}\n"
        )
    }
}

/// The kernel of the peer, booted on a tap of the host namespace's, with the modules and an address of each family.
fn peer(scene: &Scene) -> Console {
    let [[ours4, ..], [ours6, ..]] = ENDS;
    scene
        .host
        .sh(&format!(
            "ip tuntap add dev nt0 mode tap user {USER}
             ip addr add {ours4}/24 dev nt0; ip addr add {ours6}/64 dev nt0 nodad
             ip link set nt0 up"
        ))
        .unwrap();
    let qemu = scene.qemu().user(USER).netdev("tap,id=n0,ifname=nt0,script=no,downscript=no");
    let guest = qemu.inside(&scene.host).boot().unwrap();
    guest.load("l2tp").unwrap();
    let mut script = "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad\nip link set eth0 up\n".to_owned();
    for ([_, first, second], prefix) in ENDS.iter().zip([24, 64]) {
        for address in [first, second] {
            script += &format!("/usr/sbin/ip addr add {address}/{prefix} dev eth0\n");
        }
    }
    guest.ok(&script).unwrap();
    guest
}

/// The session beneath a hub, in which the far side's tap is the other member.
fn start(scene: &Scene, form: Form) -> Reeve {
    let (tap, ours) = (scene.netdev("n0"), form.ours());
    eprintln!("-- {ours}");
    let netdevs = [tap.as_str(), &ours, "hubport,id=h0,hubid=0,netdev=n0", "hubport,id=h1,hubid=0,netdev=l0"];
    scene.run(&netdevs, &[], &["--control", SOCKET]).unwrap()
}

/// One after the other: over IP first, then over UDP.
#[test]
fn the_kernel_s_l2tp_in_every_form() {
    let ground = Ground::survey().unwrap();
    let mut scene = Scene::set(Road::Bridge).unwrap();
    let policy = ENDS.map(|[_, theirs, _]| format!("allow uid:{USER} l2tpv3 {theirs}\n")).concat();
    scene.help(&format!("{}{policy}limit any requests=1000\n", scene.policy())).unwrap();
    let guest = peer(&scene);
    let form = |number: usize| {
        let (udp, family, cookie) = (number > 6, (number - 1) / 3 % 2, (number - 1) % 3);
        Form { udp, family, cookie, number: u32::try_from(number).unwrap() }
    };
    let mut house = House { reeve: start(&scene, form(1)), scene, ground };
    for number in 1..=12 {
        let form = form(number);
        if number > 1 {
            let end = house.reeve.proc.terminate(PATIENCE).unwrap();
            assert_eq!(end.code, 0, "{}", end.text);
            house.reeve = start(&house.scene, form);
        }
        let began = Instant::now();
        passes(&house, &guest, form);
        if form.cookie == 2 {
            strangers(&house, &guest, form);
        }
        gone(&guest, number, &format!("lt{number}"));
        eprintln!("{:?}", began.elapsed());
    }
    guest.power_off(PATIENCE).unwrap();
    house.scene.host.sh("ip link del nt0").unwrap();
    house.end();
}

/// Takes a tunnel of the guest's away and waits until its kernel has done that.
fn gone(guest: &Console, tunnel: impl std::fmt::Display, nic: &str) {
    let left = format!("test -e /sys/class/net/{nic}");
    guest
        .ok(&format!(
            "/usr/sbin/ip l2tp del tunnel tunnel_id {tunnel}
             for i in $(seq 500); do {left} || exit 0; usleep 20000; done; echo it stays; exit 1"
        ))
        .unwrap();
}

/// The guest's interface in the tunnel and the far side reach each other.
fn passes(house: &House, guest: &Console, form: Form) {
    let Form { number, family, cookie, .. } = form;
    let nic = format!("lt{number}");
    let tunnel = form.tunnel(number, ENDS[family][1], 5000 + number);
    let session = form.session(number, &nic, [form.tx(), form.rx()], COOKIES[cookie].0);
    // The far side knows it by one address, whatever tunnel it is behind.
    guest.ok(&format!("{tunnel}{session}ip link set {nic} address 52:54:00:00:00:66")).unwrap();
    address(guest, &nic, 2, MTU).unwrap();
    wait_until_reachable(guest, FAR4).unwrap();
    for (there, size) in [(FAR4, 56), (FAR6, MTU - 48)] {
        // The guest's waits for what a busy machine delays.
        all(ping_from_guest(guest, &format!("-c 3 -i 0.1 -W 10 -s {size} {there}")).unwrap(), 3);
    }
    if cookie == 2 {
        let server = iperf_server(&house.scene.far, 5201).unwrap();
        let way = ["", "-R"][family];
        let rate = iperf_from_guest(guest, FAR4, server.port, 1, way).unwrap();
        eprintln!("iperf3 {way}: {:.0} Mbit/s", rate / 1e6);
        assert!(rate > BROKEN, "{rate} bit/s {way}");
    }
    let port = house.port("l0");
    assert!(port["rx_frames"].as_u64().unwrap() > 6 && port["tx_frames"].as_u64().unwrap() > 6, "{port}");
    for reason in ["cookie", "session", "source", "control", "bad_header", "runt", "oversize"] {
        assert_eq!(port["drops"][reason], 0, "{port}");
    }
}

/// Questions that the far side was asked by ping.
fn asked(scene: &Scene) -> u64 {
    let said = scene.far.sh("grep ^Icmp: /proc/net/snmp").unwrap();
    let rows: Vec<Vec<&str>> = said.lines().map(|l| l.split_whitespace().collect()).collect();
    let column = rows[0].iter().position(|name| *name == "InEchos").unwrap();
    rows[1][column].parse().unwrap()
}

/// Sessions beside the right one: with another cookie, of another number, and from another of the guest's addresses. Over
/// IP it is the kernel that keeps the two last from us: our socket is deaf to them.
fn strangers(house: &House, guest: &Console, form: Form) {
    let Form { udp, family, cookie, number } = form;
    let (right, wrong) = (COOKIES[cookie].0, "1112131415161719");
    let sessions =
        [("cookie", form.rx(), wrong), ("session", form.rx() + 100, right), ("source", form.rx(), right)];
    let other = number + 10;
    let mut script = form.tunnel(other, ENDS[family][2], 6000 + number);
    let mac = house.scene.far.sh(&format!("ip -br link show dev {FAR}")).unwrap();
    let mac = mac.split_whitespace().nth(2).unwrap();
    for (n, (name, tx, cookie)) in (0..).zip(sessions) {
        let (tunnel, rx) = (if name == "source" { other } else { number }, form.tx() + 100 + n);
        let name = format!("{name}{number}");
        script += &form.session(tunnel, &name, [rx, tx], cookie);
        // No word of its own: what it sends are our pings and nothing else.
        script += &format!(
            "echo 1 >/proc/sys/net/ipv6/conf/{name}/disable_ipv6
             ip link set {name} mtu {MTU} up
             /usr/sbin/ip addr add 10.88.{n}.2/24 dev {name}
             /usr/sbin/ip neigh add 10.88.{n}.1 lladdr {mac} dev {name} nud permanent\n"
        );
        house.scene.far.sh(&format!("ip addr add 10.88.{n}.1/24 dev {FAR}")).unwrap();
    }
    guest.ok(&script).unwrap();
    let before = asked(&house.scene);
    let ping = "for n in 0 1 2; do ping -c 5 -i 0.1 -W 1 10.88.$n.1 & done; wait";
    let said = guest.ok(ping).unwrap();
    assert_eq!(said.matches("5 packets transmitted, 0 packets received").count(), 3, "{said}");
    let counts = sessions.map(|(name, ..)| format!("/sys/class/net/{name}{number}/statistics/tx_packets"));
    let counts = guest.ok(&format!("cat {}", counts.join(" "))).unwrap();
    let counts: Vec<u64> = counts.split_whitespace().map(|n| n.parse().unwrap()).collect();
    for ((name, ..), sent) in sessions.iter().zip(counts) {
        assert!(sent >= 5, "{name}: {sent}");
        counted(house, name, if udp || *name == "cookie" { sent } else { 0 });
    }
    assert_eq!(asked(&house.scene), before, "they have reached the far side");
    let undo: String = (0..3).map(|n| format!("ip addr del 10.88.{n}.1/24 dev {FAR}\n")).collect();
    house.scene.far.sh(&undo).unwrap();
    gone(guest, other, &format!("source{number}"));
}

/// Our port has dropped as many for this reason.
fn counted(house: &House, reason: &str, want: u64) {
    let until = Instant::now() + PATIENCE;
    loop {
        let port: Value = house.port("l0");
        if port["drops"][reason] == want {
            return;
        }
        assert!(Instant::now() < until, "{want} {reason}: {port}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
