//! The words of `user`: what QEMU refuses of its user network is refused in the same words, and what it takes is taken.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use netreeve_tests::proc::run;
use netreeve_tests::scene::Scene;
use netreeve_tests::{guest::qemu::Qemu, scene::Road};

/// Options that cannot stand.
const REFUSED: &[&str] = &[
    "ipv4=off,ipv6=off",
    "ipv4=off,net=10.0.0.0/8",
    "ipv6=on,host=10.0.2.2",
    "ipv4=off,dns=10.0.2.3",
    "ipv6=off,ipv6-prefix=fec0::",
    "ipv4=on,ipv6-host=fec0::2",
    "ipv6=off,ipv6-dns=fec0::3",
    "net=x",
    "net=10.0.0.256",
    "net=x/8",
    "net=10.0.0.0/x",
    "net=10.0.0.0/3",
    "net=10.0.0.0/33",
    "net=10.0.0.0/-1",
    "net=10.0.0.0/32",
    "host=x",
    "host=10.0.3.2",
    "dns=x",
    "dns=1.1.1.1,restrict=on",
    "dns=10.0.2.2",
    "dhcpstart=x",
    "dhcpstart=10.0.3.15",
    "dhcpstart=10.0.2.2",
    "dhcpstart=10.0.2.3",
    "ipv6-prefix=x",
    "ipv6-prefixlen=127",
    "ipv6-net=fec0::/127",
    "ipv6-net=fec0::/x",
    "ipv6-prefixlen=x",
    "ipv6-prefixlen=-1",
    "ipv6-host=x",
    "ipv6-host=fec1::2",
    "ipv6-dns=x",
    "ipv6-dns=2001::1,restrict=on",
    "domainname=",
    "restrict=maybe",
    "foo=1",
    "hostfwd=x",
    "hostfwd=sctp::1-:1",
    "hostfwd=tcp:1",
    "hostfwd=tcp:x:1-:1",
    "hostfwd=tcp::1",
    "hostfwd=tcp::x-:1",
    "hostfwd=tcp::65536-:1",
    "hostfwd=tcp::1-1",
    "hostfwd=tcp::1-x:1",
    "hostfwd=tcp::1-:0",
    "hostfwd=tcp::1-:",
    "guestfwd=x",
    "guestfwd=udp:10.0.2.4:1-tcp:h:1",
    "guestfwd=tcp:10.0.2.4:0-tcp:h:1",
];

/// Options that can.
const TAKEN: &[&str] = &[
    "ipv4=on,ipv6=on",
    "ipv6=off,net=192.168.9.77/24,host=192.168.9.9,dns=1.1.1.1,dhcpstart=192.168.9.100",
    "net=10.0.0.0/255.255.0.0",
    "net=16.0.0.0/4,host=16.0.0.1,dns=16.0.0.2,dhcpstart=16.0.0.3",
    "net=150.1.2.3",
    "ip=192.168.9.0",
    "restrict=y,dnssearch=a.org,dnssearch=b,domainname=x.org,hostname=vm",
    "ipv6-prefix=fd00:1::,ipv6-prefixlen=120,ipv6-host=fd00:1::9,ipv6-dns=fd00:1::a",
    "ipv6-net=fd00:2::/80",
    "tftp=/tmp,bootfile=pxe.0,tftp-server-name=boot",
    "hostfwd=tcp:127.0.0.1:0-:22,hostfwd=udp:127.1:0-10.0.2.20:53,hostfwd=::0-:80",
];

/// What QEMU says to a user network of these options, without its own name and the options; none: it takes them.
fn qemu(options: &str) -> Option<String> {
    let netdev = format!("user,id=n,{options}");
    let mut child = Command::new(Qemu::new().program().unwrap())
        .args(["-M", "none", "-nodefaults", "-display", "none", "-monitor", "stdio", "-netdev", &netdev])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that has ended already hears nothing.
    let _ = child.stdin.take().unwrap().write_all(b"quit\n");
    let end = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&end.stderr);
    let said =
        text.lines().find_map(|l| l.split_once(&format!("-netdev {netdev}: ")).map(|(_, w)| w.to_owned()));
    assert_eq!(end.status.success(), said.is_none(), "{options}: {text}");
    said
}

#[test]
fn a_user_networks_options_are_qemus_and_so_are_the_words() {
    let scene = Scene::set(Road::AfXdp).unwrap();
    for options in REFUSED {
        let words = qemu(options).unwrap();
        let netdev = format!("user,id=n,{options}");
        let command =
            scene.netreeve(&["run", "--netdev", &netdev, "--device", "vhost-user,netdev=n,path=x.sock"]);
        let end = run("netreeve", command, Duration::from_secs(10)).unwrap();
        assert_ne!(end.code, 0, "{options}: {}", end.text);
        assert!(end.text.contains(&words), "{options}\nQEMU: {words}\nnetreeve: {}", end.text);
    }
    for options in TAKEN {
        assert_eq!(qemu(options), None, "{options}");
        let netdev = format!("user,id=n,{options}");
        let mut reeve = scene.run(&[&netdev], &["vhost-user,netdev=n,path=y.sock"], &[]).unwrap();
        assert_eq!(reeve.proc.terminate(Duration::from_secs(10)).unwrap().code, 0, "{options}");
    }
}
