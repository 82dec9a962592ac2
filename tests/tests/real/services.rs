//! What a guest finds on a network of our own making, asked for by its own programs: busybox's DHCP, DNS and TFTP clients
//! in a kernel of its own.

use crate::DEVICE;
use crate::user::{Home, scene};
use netreeve_tests::guest::Console;
use netreeve_tests::guest::uml::Uml;
use netreeve_tests::leftovers::Ground;
use netreeve_tests::scene::{FAR4, PATIENCE};
use std::fs;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Answers every question for an address with the same one, in either family, until told to end.
pub(crate) fn resolver(socket: &UdpSocket, end: &AtomicBool) -> usize {
    let (mut q, mut n) = ([0; 512], 0);
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    while !end.load(Ordering::Relaxed) {
        let Ok((len, from)) = socket.recv_from(&mut q) else { continue };
        n += 1;
        socket.send_to(&answer(&q[..len]), from).unwrap();
    }
    n
}

/// What it says to a question.
pub(crate) fn answer(question: &[u8]) -> Vec<u8> {
    let (mut a, len) = (question.to_vec(), question.len());
    a[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1]);
    // The question's type stands before its class, at its end.
    let six = a[len - 3] == 28;
    a.extend([0xc0, 12, 0, a[len - 3], 0, 1, 0, 0, 0, 60, 0]);
    if six {
        a.extend([16, 0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x77]);
    } else {
        a.extend([4, 192, 0, 2, 77]);
    }
    a
}

pub(crate) fn sha256(path: &std::path::Path) -> String {
    let out = Command::new("sha256sum").arg(path).output().unwrap();
    String::from_utf8(out.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// Gets addresses by busybox' client, and looks at all that it was told.
fn a_lease(guest: &Console) {
    let script = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip addr add $ip/$mask dev $interface\n\
                  ip route add default via $router\nenv >/tmp/lease";
    guest.ok(&format!("cat >/tmp/lease.sh <<'END'\n{script}\nEND\nchmod +x /tmp/lease.sh")).unwrap();
    let options = "-O search -O mtu -O staticroutes -O bootfile -O tftp";
    guest
        .ok(&format!("ip link set eth0 up; udhcpc -i eth0 -n -q -f -t 10 -T 1 {options} -s /tmp/lease.sh"))
        .unwrap();
    let lease = guest.ok("cat /tmp/lease").unwrap();
    for said in [
        "ip=10.0.2.15",
        "mask=24",
        "router=10.0.2.2",
        "dns=10.0.2.3",
        "hostname=vm",
        "domain=example.org",
        "search=a.example b.example",
        "mtu=",
        "staticroutes=0.0.0.0/0 10.0.2.2",
        "bootfile=pxelinux.0",
        "boot_file=pxelinux.0",
        "siaddr=10.0.2.2",
        "tftp=10.0.2.2",
        "lease=86400",
    ] {
        assert!(lease.lines().any(|l| l.starts_with(said)), "no {said} in {lease}");
    }
}

#[test]
fn a_guests_own_programs_find_addresses_names_and_files() {
    let ground = Ground::survey().unwrap();
    let scene = scene();
    let files = scene.path("boot");
    fs::create_dir_all(files.join("sub")).unwrap();
    let content: Vec<u8> = (0..300_007u32).map(|i| (i * 7 + i / 509).to_le_bytes()[0]).collect();
    fs::write(files.join("sub/kernel"), content).unwrap();
    let hash = sha256(&files.join("sub/kernel"));
    let resolv = format!("nameserver 192.0.2.1\nnameserver {FAR4}\n");
    let netdev = format!(
        "user,id=n0,tftp={},bootfile=pxelinux.0,hostname=vm,domainname=example.org,dnssearch=a.example,dnssearch=b.example",
        files.display()
    );
    let mut command = scene.with_etc(&[("resolv.conf", resolv.as_str())]).unwrap();
    command.arg(scene.program("netreeve"));
    command.args(["run", "--json", "--netdev", netdev.as_str(), "--device", DEVICE]);
    let reeve = scene.start(command).unwrap();
    let guest = Uml::new().nic(&scene.path("vm.sock")).boot().unwrap();

    a_lease(&guest);

    // The first resolver is not there: names are found all the same.
    let socket = scene.far.enter(|| UdpSocket::bind((FAR4, 53))).unwrap().unwrap();
    let end = AtomicBool::new(false);
    std::thread::scope(|s| {
        let t = s.spawn(|| resolver(&socket, &end));
        let found = guest.run("nslookup name.example 10.0.2.3", PATIENCE);
        end.store(true, Ordering::Relaxed);
        let (found, asked) = (found.unwrap(), t.join().unwrap());
        assert!(found.text.contains("192.0.2.77") && asked > 0, "{asked} questions: {}", found.text);
    });
    drop(socket);

    for block in ["", "-b 1428 ", "-b 100 "] {
        let load = format!(
            "tftp -g {block}-r sub/kernel -l /tmp/kernel 10.0.2.2; sha256sum /tmp/kernel; rm /tmp/kernel"
        );
        let got = guest.ok(&load).unwrap();
        assert!(got.contains(&hash), "blocks {block:?}: {got}");
    }
    for not in ["../lease", "nothing", "/etc/passwd"] {
        let refused = guest.run(&format!("tftp -g -r {not} -l /tmp/not 10.0.2.2"), PATIENCE).unwrap();
        assert_ne!(refused.code, 0, "{not}: {}", refused.text);
    }
    Home { guest, reeve, scene, ground }.end();
}

/// Says so on the first serial port, and switches the machine off: what a BIOS starts at 0000:7c00 when it has loaded it.
const PROGRAM: &[u8] = &[
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0xfc, // cli; ds = 0; forward
    0xbe, 0x1e, 0x7c, 0xba, 0xf8, 0x03, // si = text; dx = the port
    0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, // each byte up to 0
    0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, // power management: off
    0xf4, 0xeb, 0xfd, // for ever
];

/// QEMU's own firmware (SeaBIOS with iPXE), in a machine that `run` attaches without being told how.
fn boots(family: &str) {
    let ground = Ground::survey().unwrap();
    let scene = scene();
    let files = scene.path("boot");
    fs::create_dir_all(&files).unwrap();
    // Many blocks, the text in the first.
    let mut program = [PROGRAM, b"booted over the network\r\n\0"].concat();
    program.resize(20_000, 0x5a);
    fs::write(files.join("program"), program).unwrap();
    let netdev = format!("user,id=n0,restrict=on,{family},tftp={},bootfile=program", files.display());
    let qemu =
        "qemu-system-x86_64 -machine pc -accel tcg -m 128 -boot n -display none -serial stdio -monitor none";
    let arguments = ["run", "--json", "--netdev", netdev.as_str(), "--"].into_iter().chain(qemu.split(' '));
    let mut reeve = scene.start(scene.netreeve(&arguments.collect::<Vec<_>>())).unwrap();
    reeve.proc.wait_for("booted over the network", Duration::from_secs(120)).unwrap();
    let end = reeve.proc.wait(PATIENCE).unwrap();
    assert_eq!(end.code, 0, "{}", end.text);
    drop((reeve, scene));
    assert_eq!(ground.left(Duration::from_secs(3)).unwrap(), Vec::<String>::new());
}

/// By DHCP and TFTP over IPv4.
#[test]
fn firmware_boots_over_the_network() {
    boots("ipv4=on");
}

/// By router advertisement, DHCPv6 and TFTP over IPv6; half of the time passes while it hopes for IPv4.
#[test]
fn firmware_boots_without_ipv4() {
    boots("ipv6=on");
}
