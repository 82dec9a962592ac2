//! libvirt's passt backend, of a session of an ordinary user, in both of its forms: `<interface type='user'>` (QEMU's
//! stream) and `<interface type='vhostuser'>`. Its `<source dev=...>` is passt's `--interface`, `dev=` of a `<portForward>`
//! the interface in `--tcp-ports %IF/...`.

use super::{Tree, answering};
use crate::user::{HOST4, HOST6, configure, scene, talk};
use netreeve_tests::guest::Console;
use netreeve_tests::leftovers::Ground;
use netreeve_tests::proc::{Proc, sh};
use netreeve_tests::scene::{FAR4, FAR6, PATIENCE, Scene, UPLINK, USER};
use netreeve_tests::{Because, echo, transfer};
use std::fs;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a boot may take on a busy machine.
const BOOT: Duration = Duration::from_secs(120);

/// A domain as a user writes it, its guest steered over a pair of FIFOs.
fn domain(scene: &Scene, kind: &str) -> String {
    let arguments = scene.qemu().arguments().unwrap();
    let of = |option: &str| arguments[arguments.iter().position(|a| a == option).unwrap() + 1].clone();
    let (kernel, image, line) = (of("-kernel"), of("-initrd"), of("-append"));
    let (console, log) = (scene.path("console"), scene.path("home/passt.log"));
    format!(
        "<domain type='qemu'>
           <name>vm</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
           <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
           <os>
             <type arch='x86_64' machine='pc'>hvm</type>
             <kernel>{kernel}</kernel><initrd>{image}</initrd><cmdline>{line}</cmdline>
           </os>
           <devices>
             <serial type='pipe'><source path='{}'/><target port='0'/></serial>
             <interface type='{kind}'>
               <mac address='52:54:00:00:00:10'/>
               <backend type='passt' logFile='{}'/>
               <source dev='{UPLINK}'/>
               <ip family='ipv4' address='172.17.2.4' prefix='24'/>
               <ip family='ipv6' address='2001:db8:7::20'/>
               <portForward proto='tcp' address='127.0.0.1'>
                 <range start='7700' end='7703' to='7800'/>
                 <range start='7702' exclude='yes'/>
               </portForward>
               <portForward proto='tcp' dev='{UPLINK}'><range start='7720' to='7803'/></portForward>
               <portForward proto='udp'><range start='7710' to='7803'/></portForward>
               <portForward proto='udp' address='{HOST4}' dev='{UPLINK}'><range start='7711' to='7803'/></portForward>
               <model type='virtio'/><rom enabled='no'/>
             </interface>
             <memballoon model='none'/>
           </devices>
         </domain>",
        console.display(),
        log.display()
    )
}

/// A guest that libvirt starts, and its console.
fn create(scene: &Scene, tree: &Tree<'_>, kind: &str) -> Console {
    fs::write(tree.home("vm.xml"), domain(scene, kind)).unwrap();
    let console = scene.path("console").display().to_string();
    sh(&format!("mkfifo {console}.in {console}.out; chown {USER} {console}.in {console}.out")).unwrap();
    let mut ends = Command::new("sh");
    ends.args(["-c", "cat \"$0.out\" & exec cat >\"$0.in\"", &console]);
    let ends = Proc::with_input("the guest's console", ends).unwrap();
    tree.ok("virsh -c qemu:///session create vm.xml");
    Console::attach(ends, BOOT).unwrap()
}

/// Addresses by DHCP and advertisement, both families to the far side, and forwards: out of a range, by an interface alone,
/// of datagrams.
fn works(scene: &Scene, guest: &Console) {
    configure(guest);
    let lease = guest.ok("cat /tmp/lease").unwrap();
    assert!(lease.starts_with("172.17.2.4/24 router=172.17.2.2 dns=172.17.2.3"), "{lease}");
    guest
        .ok("for i in $(seq 100); do ip -6 addr | grep -q 2001:db8:7: && ip -6 route | grep -q ^default && exit 0
             usleep 50000; done; exit 1")
        .unwrap();
    let listener = scene.far.enter(|| TcpListener::bind("[::]:7300")).unwrap().unwrap();
    answering(&listener, || {
        for far in [FAR4, FAR6] {
            assert_eq!(talk(guest, far, 7300), "QUIET WORDS\n", "{far}");
        }
    });
    let served = guest.start("echo of the guest | nc -l -p 7803").unwrap();
    let to = |port: u16| scene.host.enter(|| TcpStream::connect(("127.0.0.1", port))).unwrap();
    let until = Instant::now() + PATIENCE;
    let mut text = String::new();
    // Until somebody listens in the guest, it is a refusal.
    while text.is_empty() {
        assert!(Instant::now() < until, "nobody answers behind the forward");
        let _cut = to(7703).unwrap().read_to_string(&mut text);
    }
    assert_eq!(text, "of the guest\n");
    guest.finish(served, PATIENCE).unwrap().ok("nc").unwrap();
    assert!(to(7702).is_err(), "a port that was excluded");
    assert_eq!(to(7720).unwrap_err().kind(), ErrorKind::ConnectionRefused, "not by the interface");
    let _until_the_end = guest.start("proof-stream serve 7803").unwrap();
    for (host, port) in [(HOST4, 7710), (HOST6, 7710), (HOST4, 7711)] {
        let forward = SocketAddr::new(host.parse().unwrap(), port);
        let said = scene.far.enter(|| echo::datagrams(&echo::towards(forward)?)).unwrap();
        said.because(forward).unwrap();
    }
    for host in [HOST4, HOST6] {
        transfer::to_who_is_called(&scene.far, SocketAddr::new(host.parse().unwrap(), 7720), 1).unwrap();
    }
}

fn libvirt_starts_us_as(kind: &str) {
    let ground = Ground::survey().unwrap();
    let scene = scene();
    let tree = Tree::enter(&scene);
    let mut daemon = tree.spawn("libvirtd", "exec libvirtd");
    let guest = create(&scene, &tree, kind);
    works(&scene, &guest);
    let words = tree.ok("ps -eo args | grep '[p]asst.*--'");
    for word in [format!("--interface {UPLINK} "), format!("--tcp-ports %{UPLINK}/7720:7803")] {
        assert!(words.contains(&word), "{word} in {words}");
    }
    // One that is reset finds the same network.
    tree.ok("virsh -c qemu:///session reset vm");
    let boots = || guest.log().matches("@up ").count();
    let until = Instant::now() + BOOT;
    while boots() < 2 {
        assert!(Instant::now() < until, "no second boot:\n{}", guest.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    works(&scene, &guest);
    let state = scene.path("xdg/libvirt/qemu/run/passt");
    assert!(fs::read_dir(&state).unwrap().count() > 0, "no pid file: has libvirt another place for them?");
    tree.ok("virsh -c qemu:///session destroy vm");
    tree.is_left();
    assert_eq!(fs::read_dir(&state).unwrap().count(), 0, "pid file or socket are left");
    let log = fs::read_to_string(tree.home("passt.log")).unwrap();
    assert!(log.contains("is up") && log.contains("is down"), "{log}");
    daemon.terminate(PATIENCE).unwrap();
    drop((guest, daemon, tree));
    drop(scene);
    assert_eq!(ground.left(Duration::from_secs(5)).unwrap(), Vec::<String>::new());
}

#[test]
#[ignore = "it needs libvirt of Debian 13: `make fronts` runs it"]
fn libvirt_starts_us_for_a_stream() {
    libvirt_starts_us_as("user");
}

#[test]
#[ignore = "it needs libvirt of Debian 13: `make fronts` runs it"]
fn libvirt_starts_us_for_vhost_user() {
    libvirt_starts_us_as("vhostuser");
}
