//! QEMU's own user network (libslirp) as the oracle of ours: the same Debian kernel in the same QEMU with the same options
//! asks the same questions on both, and the answers are compared one by one. Where ours differs, [`DIFFERS`] says why.

use crate::services::{resolver, sha256};
use crate::user::{heard, scene, shout, slaac};
use netreeve_tests::guest::Console;
use netreeve_tests::leftovers::Ground;
use netreeve_tests::scene::{FAR4, FAR6, PATIENCE, Scene};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Where the host's loopback leads to the guest's port 80.
const FORWARD: &str = "127.0.0.1:7400";

/// What may differ: the question, QEMU's answer, ours (nothing: no answer), and why.
const DIFFERS: &[(&str, Option<&str>, Option<&str>, &str)] = &[
    (
        "dhcp bootfile",
        None,
        Some("pxelinux.0"),
        "it was asked for (option 67); QEMU has it in the old field alone",
    ),
    ("dhcp broadcast", None, Some("10.0.2.255"), "it was asked for"),
    ("dhcp mtu", None, Some("1500"), "it was asked for"),
    ("dhcp opt61", None, Some("01525400123456"), "a client's identifier goes back to it (RFC 6842)"),
    ("dhcp staticroutes", None, Some("0.0.0.0/0 10.0.2.2"), "it was asked for (RFC 3442)"),
    ("dhcp tftp", None, Some("10.0.2.2"), "it was asked for (option 66)"),
    (
        "forward to nobody",
        Some("0 bytes"),
        Some("connection reset"),
        "what the guest refuses is refused: QEMU makes an orderly end of it",
    ),
    (
        "names at fec0::3",
        Some(""),
        Some("192.0.2.77 2001:db8::77"),
        "names are found whatever family the host's resolver has; QEMU needs one by IPv6",
    ),
    (
        "pings of fd77::1 answered",
        Some("0 packets received"),
        Some("2 packets received"),
        "echo requests by IPv6 go out, too (libslirp learned it with 4.8)",
    ),
    (
        "route to the world, IPv6",
        Some("via fe80::2"),
        Some("via fe80::5055:aff:fe00:202"),
        "our link-local address is that of our Ethernet address; guests take it from the advertisement",
    ),
];

/// Answers by question.
type Answers = BTreeMap<String, String>;

/// Every option of DHCP that busybox' client knows to ask for and that either network might have.
const LEASE: &str = "
cat >/tmp/lease.sh <<'END'
#!/bin/sh
[ \"$1\" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
ip route add default via $router
env | grep -vE '^(PATH|HOME|PWD|OLDPWD|SHLVL|TERM|USER|interface)=' | sed 's/^/dhcp /' >/tmp/lease
END
chmod +x /tmp/lease.sh
echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
ip link set eth0 up
udhcpc -i eth0 -n -q -f -t 10 -T 1 -O hostname -O domain -O search -O mtu -O staticroutes -O msstaticroutes \\
  -O bootfile -O tftp -O broadcast -O lease -O serverid -O ntpsrv -O wins -O wpad -O vendor -s /tmp/lease.sh >/dev/null
cat /tmp/lease
";

/// The rest that a guest can find out alone: a line for each question, its answer behind `=`.
const QUESTIONS: &str = "
echo \"route to the world=$(ip route show default)\"
echo \"route to the world, IPv6=$(ip -6 route show default | grep -o 'via [^ ]*')\"
echo \"prefix=$(ip -6 route show dev eth0 | grep -o '^fec0[^ ]*')\"
for f in hop_limit mtu; do echo \"advertised $f=$(cat /proc/sys/net/ipv6/conf/eth0/$f)\"; done
for f in base_reachable_time_ms retrans_time_ms; do echo \"advertised $f=$(cat /proc/sys/net/ipv6/neigh/eth0/$f)\"; done
for a in 10.0.2.2 10.0.2.3 FAR4 fec0::2 fec0::3 FAR6; do
  echo \"pings of $a answered=$(ping -c 2 -W 5 $a | grep -o '[0-9]* packets received')\"
done
echo \"gateway's MAC=$(awk '$1 == \"10.0.2.2\" {print $4}' /proc/net/arp)\"
for a in 10.0.2.3 fec0::3; do
  echo \"names at $a=$(nslookup name.example $a | grep -oE '192.0.2.77|2001:db8::77' | sort | tr '\\n' ' ')\"
done
tftp -g -r sub/kernel -l /tmp/kernel 10.0.2.2
echo \"file=$(sha256sum /tmp/kernel)\"
for n in nothing ../lease /sub/kernel; do
  rm -f /tmp/x
  echo \"tftp $n=$(tftp -g -r $n -l /tmp/x 10.0.2.2 2>&1; wc -c </tmp/x)\"
done
for a in 10.0.2.2 fec0::2 FAR4 FAR6 198.51.100.7 2001:db8::7; do
  echo \"nobody at $a=$(nc -w 10 $a 9 </dev/null 2>&1)\"
done
";

/// Asks everything; `scene` is what there is around.
fn answers(scene: &Scene, guest: &Console) -> Answers {
    let mut lines = guest.ok(LEASE).unwrap();
    slaac(guest);
    let at = SocketAddr::new(FAR4.parse().unwrap(), 53);
    let socket = scene.far.enter(|| UdpSocket::bind(at)).unwrap().unwrap();
    let end = AtomicBool::new(false);
    let questions = QUESTIONS.replace("FAR4", FAR4).replace("FAR6", FAR6);
    let said = std::thread::scope(|s| {
        s.spawn(|| resolver(&socket, &end));
        let said = guest.run(&questions, Duration::from_secs(90));
        end.store(true, Ordering::Relaxed);
        said
    });
    lines += &said.unwrap().ok("the questions").unwrap();
    let mut all: Answers = lines
        .lines()
        .filter_map(|l| l.split_once('='))
        .map(|(q, a)| (q.to_owned(), a.trim().to_owned()))
        .collect();

    for (question, address) in [("halves", FAR4), ("halves, IPv6", FAR6)] {
        let at = SocketAddr::new(address.parse().unwrap(), 7300);
        let listener = scene.far.enter(|| TcpListener::bind(at)).unwrap().unwrap();
        let said = std::thread::scope(|s| {
            s.spawn(|| shout(&listener, 1));
            guest.run(&format!("echo quiet words | nc -w 10 {address} 7300"), PATIENCE)
        });
        all.insert(question.into(), said.unwrap().text);
    }
    let job =
        guest.start("(echo here I am; until netstat -tn | grep -o '10.0.2.15:80 *[^:]*'; do usleep 50000; done) | nc -l -p 80");
    all.insert("forward".into(), heard(&scene.host, FORWARD.parse().unwrap()));
    guest.finish(job.unwrap(), PATIENCE).unwrap();
    all.insert("forward to nobody".into(), nobody(scene));
    all
}

/// What somebody on the host sees of a forward behind which nobody listens: an end or a reset, and no byte.
fn nobody(scene: &Scene) -> String {
    use std::io::Read;
    let ask = || {
        let mut s = TcpStream::connect(FORWARD).unwrap();
        s.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // A reset may be there first; the read tells.
        let _ = s.shutdown(Shutdown::Write);
        match s.read_to_end(&mut Vec::new()) {
            Ok(n) => format!("{n} bytes"),
            Err(e) => e.kind().to_string(),
        }
    };
    scene.host.enter(ask).unwrap()
}

/// Compares answer by answer.
fn compare(theirs: &Answers, ours: &Answers) {
    let mut wrong = Vec::new();
    let mut allowed: BTreeSet<&str> = DIFFERS.iter().map(|d| d.0).collect();
    let questions: BTreeSet<&String> = theirs.keys().chain(ours.keys()).collect();
    for q in &questions {
        let (a, b) = (theirs.get(*q).map(String::as_str), ours.get(*q).map(String::as_str));
        let known = DIFFERS.iter().find(|d| d.0 == q.as_str());
        if let Some((_, _, _, why)) = known.filter(|d| (d.1, d.2) == (a, b)) {
            eprintln!("{q}: QEMU {a:?}, ours {b:?}: {why}");
            allowed.remove(q.as_str());
        } else if a != b {
            wrong.push(format!("{q}: QEMU says {a:?}, ours {b:?}"));
        } else if allowed.remove(q.as_str()) {
            // Another libslirp than the one that the list was made with.
            eprintln!("{q}: no difference any more: {a:?}");
        }
    }
    assert!(wrong.is_empty() && questions.len() > 30, "{} questions:\n{}", questions.len(), wrong.join("\n"));
    assert!(allowed.is_empty(), "these were not asked: {allowed:?}");
}

#[test]
fn a_guest_hears_the_same_as_on_qemus_own_network() {
    let ground = Ground::survey().unwrap();
    let scene = scene();
    scene
        .host
        .sh("ip route add unreachable 198.51.100.0/24; ip -6 route add unreachable 2001:db8::/32")
        .unwrap();
    let files = scene.path("boot");
    fs::create_dir_all(files.join("sub")).unwrap();
    let content: Vec<u8> = (0..100_007_u32).map(|i| (i * 7 + i / 509).to_le_bytes()[0]).collect();
    fs::write(files.join("sub/kernel"), content).unwrap();
    let options = format!(
        "hostname=vm,domainname=example.org,dnssearch=a.example,dnssearch=b.example,tftp={},bootfile=pxelinux.0,\
         hostfwd=tcp:{FORWARD}-:80",
        files.display()
    );
    let resolv = format!("nameserver {FAR4}\n");
    let etc = || scene.with_etc(&[("resolv.conf", resolv.as_str())]).unwrap();
    let asked = |guest: Console| {
        let all = answers(&scene, &guest);
        assert!(all["file"].starts_with(&sha256(&files.join("sub/kernel"))), "{}", all["file"]);
        guest.power_off(PATIENCE).unwrap();
        all
    };

    let qemu = scene.qemu().netdev(&format!("user,id=n0,{options}")).inside(&scene.host);
    let mut command = etc();
    command.arg(qemu.program().unwrap()).args(qemu.arguments().unwrap());
    let theirs = asked(qemu.boot_by(command).unwrap());

    let qemu = scene.qemu().inside(&scene.host);
    let mut command = etc();
    command.arg(scene.program("netreeve")).args(["run", "--netdev"]);
    // QEMU's network lets its guest reach the host's loopback.
    command.arg(format!("user,id=n0,preset=qemu,{options}")).arg("--");
    command.arg(qemu.program().unwrap()).args(qemu.arguments().unwrap());
    command.env("XDG_RUNTIME_DIR", scene.path(""));
    let ours = asked(qemu.boot_by(command).unwrap());
    compare(&theirs, &ours);
    drop(scene);
    assert_eq!(ground.left(Duration::from_secs(3)).unwrap(), Vec::<String>::new());
}
