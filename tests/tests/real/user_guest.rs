//! What a guest finds on a user network, one list for every road: a Debian kernel in an unmodified QEMU with four NICs, by
//! vhost-user and by `stream`, two of them on networks with everything, two on networks that are restricted.

use crate::services::resolver;
use crate::user::{HOST4, HOST6, configure_nic, scene, shout, slaac_nic, talk};
use netreeve_tests::guest::Console;
use netreeve_tests::leftovers::Ground;
use netreeve_tests::peers::ping_from_guest;
use netreeve_tests::scene::{FAR4, FAR6, PATIENCE, Reeve, Scene, USER};
use netreeve_tests::{echo, transfer};
use nix::sys::socket::{setsockopt, sockopt};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The networks in the order of the guest's NICs: the device, and whether it is restricted.
const NETWORKS: [(&str, bool); 4] =
    [("vhost-user", false), ("stream", false), ("vhost-user", true), ("stream", true)];

/// Where the guest sends back what comes, by TCP and UDP; and where nobody in the guest is.
const SERVED: u16 = 81;
const NOBODY: u16 = 9;

/// The host's port that leads to each of these.
fn forwarded(n: usize, to: u16) -> u16 {
    u16::try_from(n).unwrap() * 100 + 7200 + to
}

#[test]
fn a_guest_has_all_of_the_network_by_every_road() {
    let ground = Ground::survey().unwrap();
    let scene = scene();
    nowhere(&scene);
    let mut reeves: Vec<Reeve> = (0..NETWORKS.len()).map(|n| network(&scene, n)).collect();
    let mut qemu = scene.qemu().user(USER);
    for (n, (device, _)) in NETWORKS.iter().enumerate() {
        let socket = scene.path(&format!("vm{n}.sock"));
        qemu = match *device {
            "stream" => {
                let path = socket.display();
                qemu.netdev(&format!("stream,id=n{n},server=off,addr.type=unix,addr.path={path}"))
            }
            _ => qemu.vhost_user(&socket, false),
        };
    }
    let guest = qemu.boot().unwrap();
    let _until_the_end = guest.start(&format!("proof-stream serve {SERVED}")).unwrap();
    for (n, (device, restricted)) in NETWORKS.into_iter().enumerate() {
        eprintln!("-- {device}, {}", if restricted { "restricted" } else { "with everything" });
        let nic = format!("eth{n}");
        configure_nic(&guest, &nic);
        slaac_nic(&guest, &nic, !restricted);
        let lease = guest.ok("cat /tmp/lease").unwrap();
        if restricted {
            assert!(lease.starts_with("10.0.2.15/24 router= dns= "), "{lease}");
            nobody_is_reached(&scene, &guest, &nic);
        } else {
            assert!(lease.starts_with("10.0.2.15/24 router=10.0.2.2 dns=10.0.2.3"), "{lease}");
            let on = "^(tx-checksumming|tcp-segmentation-offload): on";
            let undone = guest.ok(&format!("ethtool -k {nic} | grep -cE '{on}' || true")).unwrap();
            // Over such a stream nothing is left undone; by the other road, all that can be.
            assert_eq!(undone.trim(), if device == "stream" { "0" } else { "2" });
            everything(&scene, &guest);
        }
        if (device, restricted) == ("stream", false) {
            // The network is wider than the NIC was. One as wide hears of ways that are not, and cuts (RFC 1191, RFC 8201).
            guest.ok(&format!("ip link set {nic} mtu 65520")).unwrap();
            datagrams(&scene, &guest);
        }
        forwards(&scene, n);
        // Visitors are who they are, but where the guest knows of no way to them.
        is_visited(&scene, &guest, n, if restricted { "10.0.2.2" } else { FAR4 });
        guest.ok(&format!("ip addr flush dev {nic}; ip link set {nic} down")).unwrap();
    }
    guest.power_off(PATIENCE).unwrap();
    for reeve in &mut reeves {
        let end = reeve.proc.terminate(PATIENCE).unwrap();
        assert_eq!(end.code, 0, "{}", end.text);
    }
    drop((reeves, scene));
    assert_eq!(ground.left(Duration::from_secs(3)).unwrap(), Vec::<String>::new());
}

/// One of the networks, with forwards of both protocols and families to the guest's NIC on it.
fn network(scene: &Scene, n: usize) -> Reeve {
    let (device, restricted) = NETWORKS[n];
    let device = match device {
        "stream" => format!("stream,netdev=n0,server=on,addr.type=unix,addr.path=vm{n}.sock"),
        _ => format!("vhost-user,netdev=n0,path=vm{n}.sock"),
    };
    // What a guest makes of the prefix and of the MAC that QEMU is told (RFC 4862 §5.5.3, RFC 4291 appendix A).
    let guest6 = format!("fec0::5054:ff:fe00:{:x}", 0x10 + n);
    let (at, nobody) = (forwarded(n, SERVED), forwarded(n, NOBODY));
    let mut netdev = format!("user,id=n0,hostfwd=tcp:{HOST4}:{nobody}-:{NOBODY}");
    for proto in ["tcp", "udp"] {
        netdev += &format!(
            ",hostfwd={proto}:{HOST4}:{at}-:{SERVED},hostfwd={proto}:[{HOST6}]:{at}-[{guest6}]:{SERVED}"
        );
    }
    if restricted {
        netdev += ",restrict=on";
    }
    let mut command = scene.with_etc(&[("resolv.conf", &format!("nameserver {FAR4}\n"))]).unwrap();
    command.arg(scene.program("netreeve")).args(["run", "--json", "--netdev", &netdev, "--device", &device]);
    scene.start(command).unwrap()
}

/// Networks that cannot be reached, each for a reason of its own: by the host's own word, and by a router's. Nobody counts how
/// often they say so.
fn nowhere(scene: &Scene) {
    scene
        .host
        .sh("ip route add unreachable 198.51.100.0/24; ip -6 route add unreachable 2001:db8::/32
             ip route add throw 203.0.113.0/24; ip -6 route add throw 3fff::/20")
        .unwrap();
    scene
        .far
        .sh("echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
             echo 0 >/proc/sys/net/ipv4/icmp_ratelimit; echo 0 >/proc/sys/net/ipv6/icmp/ratelimit
             ip route add unreachable 198.18.0.0/15; ip -6 route add unreachable 2001:2::/48")
        .unwrap();
}

const REFUSED: &str = "Connection refused";
const NO_HOST: &str = "No route to host";
const NO_NET: &str = "Network is unreachable";

/// Where nobody is, and what a guest's kernel makes of it: the far side's port 9, and [`nowhere`]'s networks.
const GONE: &[(&str, &str)] = &[
    (FAR4, REFUSED),
    (FAR6, REFUSED),
    ("198.51.100.7", NO_HOST),
    ("2001:db8::7", NO_HOST),
    ("203.0.113.7", NO_NET),
    ("3fff::7", NO_NET),
];

/// The same of what a router says. Here it may say it while the host's kernel is still sending, which then hears it when it
/// asks again, after a second.
const GONE_BEYOND: &[(&str, &str)] = &[("198.18.0.7", NO_HOST), ("2001:2::7", NO_NET)];

/// All that a network is for.
fn everything(scene: &Scene, guest: &Console) {
    for there in ["10.0.2.2", "fec0::2", FAR4, FAR6] {
        // The second in several packets.
        for size in [56, 4000] {
            let ping = ping_from_guest(guest, &format!("-A -c 3 -W 5 -s {size} {there}")).unwrap();
            assert_eq!((ping.sent, ping.received), (3, 3), "{size} bytes to {there}");
        }
    }
    names(scene, guest);
    streams(scene, guest);
    for (there, why) in GONE {
        is_told(guest, there, why, true);
    }
    for (there, why) in GONE_BEYOND {
        is_told(guest, there, why, false);
    }
    datagrams(scene, guest);
}

/// Names by the relay at both of its addresses, and by the resolver itself: UDP of the guest's own in both families.
pub(crate) fn names(scene: &Scene, guest: &Console) {
    let bind = |a: &str| {
        let at = SocketAddr::new(a.parse().unwrap(), 53);
        scene.far.enter(|| UdpSocket::bind(at)).unwrap().unwrap()
    };
    let (four, six) = (bind(FAR4), bind(FAR6));
    let end = AtomicBool::new(false);
    std::thread::scope(|s| {
        for socket in [&four, &six] {
            s.spawn(|| resolver(socket, &end));
        }
        let found: Vec<_> = ["10.0.2.3", "fec0::3", FAR4, FAR6]
            .iter()
            .map(|server| guest.run(&format!("nslookup name.example {server}"), PATIENCE))
            .collect();
        end.store(true, Ordering::Relaxed);
        for answer in found {
            let text = answer.unwrap().text;
            assert!(text.contains("192.0.2.77") && text.contains("2001:db8::77"), "{text}");
        }
    });
}

/// Connections of both families: words both ways, an answer to what was ended, much of it each way, each way after the
/// other one's end, and one that breaks off.
fn streams(scene: &Scene, guest: &Console) {
    let far = &scene.far;
    for address in [FAR4, FAR6] {
        let at = SocketAddr::new(address.parse().unwrap(), 7300);
        let listener = far.enter(|| TcpListener::bind(at)).unwrap().unwrap();
        std::thread::scope(|s| {
            s.spawn(|| shout(&listener, 1));
            assert_eq!(talk(guest, address, 7300), "QUIET WORDS\n");
            s.spawn(|| answer_at_the_end(&listener));
            assert_eq!(talk(guest, address, 7300), "heard to the end: quiet words\n");
        });
        transfer::to_guest(far, guest, at.ip(), 2).unwrap();
        transfer::from_guest(far, guest, at.ip(), 2).unwrap();
        transfer::to_guest_that_has_ended(far, guest, at.ip(), 1).unwrap();
        transfer::from_guest_after_an_end(far, guest, at.ip(), 1).unwrap();
        let job = guest.start(&format!("proof-stream mirror {address} 7300")).unwrap();
        let (mut broken, _) = listener.accept().unwrap();
        // One that breaks off before the guest knows of it might look like a refusal.
        broken.write_all(b"?").unwrap();
        broken.read_exact(&mut [0]).unwrap();
        setsockopt(&broken, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
        drop(broken);
        let said = guest.finish(job, PATIENCE).unwrap();
        assert!(said.code != 0 && said.text.contains("Connection reset"), "{}", said.text);
    }
}

/// Hears one connection to the guest's end of it, and only then answers.
fn answer_at_the_end(listener: &TcpListener) {
    let (mut s, _) = listener.accept().unwrap();
    let mut text = String::new();
    s.read_to_string(&mut text).unwrap();
    s.write_all(format!("heard to the end: {text}").as_bytes()).unwrap();
}

/// What the guest's kernel has counted: segments that it sent again, and errors of ICMP's that it heard of.
const COUNTED: &str = "counted() {
  awk '$1 == \"Tcp:\" && $13 ~ /^[0-9]/ {print $13}' /proc/net/snmp
  echo $(awk '$1 == \"Icmp:\" && $5 ~ /^[0-9]/ {print $5}' /proc/net/snmp) \\
    $(awk '$1 == \"Icmp6InDestUnreachs\" {print $2}' /proc/net/snmp6)
}";

/// A guest that connects where nobody is hears why. What is refused is so by a reset, and all else by an error of ICMP's.
/// `at_once`: before it would ask again, which its kernel does after a second: no segment was sent twice. (On a busy machine
/// an answer may come later than that; then it is asked once more.) Of a datagram it is told the same, by ICMP alone.
fn is_told(guest: &Console, there: &str, why: &str, at_once: bool) {
    let heard_so = || {
        let script = format!("{COUNTED}\ncounted; nc -w 20 {there} {NOBODY} </dev/null 2>&1; counted");
        let said = guest.run(&script, Duration::from_secs(40)).unwrap().text;
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines.len() == 5 && lines[2].contains(why), "{there}: {said}");
        (!at_once || lines[0] == lines[3]) && (lines[1] == lines[4]) == (why == REFUSED)
    };
    assert!((0..10).any(|_| heard_so()), "{there}: not said so, at once: {at_once}");
    // Whoever refuses is there: that is told to all. Who is not may yet come: only those hear of it who ask.
    let verb = if why == REFUSED { "told" } else { "told-all" };
    let said = guest.ok(&format!("proof-stream {verb} {there} {NOBODY} 10")).unwrap();
    assert!(said.starts_with(why), "a datagram to {there}: {said}");
}

/// Datagrams of all sizes to the far side and back.
fn datagrams(scene: &Scene, guest: &Console) {
    for far in [FAR4, FAR6] {
        let at = SocketAddr::new(far.parse().unwrap(), 7301);
        let socket = scene.far.enter(|| UdpSocket::bind(at)).unwrap().unwrap();
        let end = AtomicBool::new(false);
        let said = std::thread::scope(|s| {
            s.spawn(|| echo::echo(&socket, &end));
            let said = guest.run(&format!("proof-stream datagrams {far} 7301"), Duration::from_secs(60));
            end.store(true, Ordering::Relaxed);
            said
        });
        said.unwrap().ok(far).unwrap();
    }
}

/// From the far side to the guest by both protocols and families, and to a port where it refuses.
fn forwards(scene: &Scene, n: usize) {
    for host in [HOST4, HOST6] {
        let at = SocketAddr::new(host.parse::<IpAddr>().unwrap(), forwarded(n, SERVED));
        transfer::to_who_is_called(&scene.far, at, 1).unwrap();
        scene.far.enter(|| echo::datagrams(&echo::towards(at)?)).unwrap().unwrap();
    }
    let nobody = (HOST4, forwarded(n, NOBODY));
    let mut visitor = scene.far.enter(|| TcpStream::connect(nobody)).unwrap().unwrap();
    visitor.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(visitor.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// Somebody from the far side comes, as whom the guest sees him.
fn is_visited(scene: &Scene, guest: &Console, n: usize, seen: &str) {
    let visitor = scene.far.enter(|| TcpStream::connect((HOST4, forwarded(n, SERVED)))).unwrap().unwrap();
    let port = visitor.local_addr().unwrap().port();
    let there = format!("10.0.2.15:{SERVED} .*[: ]{seen}:{port} ");
    guest
        .ok(&format!(
            "for i in $(seq 50); do netstat -tn | grep -q '{there}' && exit 0; usleep 100000; done; netstat -tn; exit 1"
        ))
        .unwrap();
}

/// Nobody told a restricted guest of a way out; those that it makes up lead nowhere, in no protocol and to no service.
fn nobody_is_reached(scene: &Scene, guest: &Console, nic: &str) {
    guest
        .ok(&format!("ip route add default via 10.0.2.2; ip -6 route add default via fec0::2 dev {nic}"))
        .unwrap();
    let there = [FAR4, FAR6].map(|far| {
        let at = |port| SocketAddr::new(far.parse().unwrap(), port);
        let datagrams = || [53, 7301].map(|port| UdpSocket::bind(at(port)).unwrap());
        scene.far.enter(|| (TcpListener::bind(at(7301)).unwrap(), datagrams())).unwrap()
    });
    let mut tries: Vec<String> = vec![
        "timeout 2 nslookup name.example 10.0.2.3 >/dev/null 2>&1 || echo nothing".to_owned(),
        "timeout 2 nslookup name.example fec0::3 >/dev/null 2>&1 || echo nothing".to_owned(),
    ];
    for far in [FAR4, FAR6] {
        tries.push(format!("ping -c 2 -W 1 {far} | grep -q ' 0 packets received' && echo nothing"));
        tries.push(format!("proof-stream told-all {far} 7301 2"));
        tries.push(format!("nc -w 2 {far} 7301 </dev/null >/dev/null 2>&1 || echo nothing"));
    }
    let jobs: Vec<_> = tries.iter().map(|t| guest.start(t).unwrap()).collect();
    for (job, tried) in jobs.into_iter().zip(&tries) {
        assert_eq!(guest.finish(job, PATIENCE).unwrap().text, "nothing\n", "{tried}");
    }
    for (listener, sockets) in &there {
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "somebody came");
        for socket in sockets {
            socket.set_nonblocking(true).unwrap();
            assert_eq!(socket.recv(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock, "something came");
        }
    }
}
