//! A guest on a network of our own making: no helper, no bridge, no privilege. What it reaches are programs in another
//! namespace, by sockets that the dataplane makes in the host's.

use crate::{DEVICE, all, streams_to};
use netreeve_tests::guest::Console;
use netreeve_tests::guest::uml::{Running, Uml};
use netreeve_tests::leftovers::Ground;
use netreeve_tests::netns::Netns;
use netreeve_tests::peers::ping_from_guest;
use netreeve_tests::scene::{FAR4, FAR6, PATIENCE, Reeve, Road, Scene, UPLINK};
use netreeve_tests::transfer;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::Pid;
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The host's own addresses on the way to the far side.
pub(crate) const HOST4: &str = "10.77.0.9";
pub(crate) const HOST6: &str = "fd77::9";

/// A floor for TCP that only something broken stays below, on a busy machine too.
const BROKEN: f64 = 2e7;

/// A scene with a running `netreeve` and a guest, in the order of their end.
pub(crate) struct Home {
    pub(crate) guest: Running,
    pub(crate) reeve: Reeve,
    pub(crate) scene: Scene,
    pub(crate) ground: Ground,
}

/// The scene without helper; the host has addresses and lets its users ping. (`Road::AfXdp` leaves its link alone.)
pub(crate) fn scene() -> Scene {
    let scene = Scene::set(Road::AfXdp).unwrap();
    let ours = format!("ip addr add {HOST4}/24 dev {UPLINK}; ip addr add {HOST6}/64 dev {UPLINK} nodad");
    // Without a way to the world, the guest is told of none.
    let ways = format!("ip route add default via {FAR4}; ip -6 route add default via {FAR6}");
    scene
        .host
        .sh(&format!("{ours}; {ways}; echo 0 2147483647 >/proc/sys/net/ipv4/ping_group_range"))
        .unwrap();
    scene
}

pub(crate) fn home(options: &str) -> Home {
    let ground = Ground::survey().unwrap();
    let scene = scene();
    let reeve = scene.run(&[&format!("user,id=n0{options}")], &[DEVICE], &[]).unwrap();
    let guest = Uml::new().nic(&scene.path("vm.sock")).boot().unwrap();
    Home { guest, reeve, scene, ground }
}

/// Gets `eth0` its addresses as any guest does: by DHCP, and by the router's advertisement.
pub(crate) fn configure(guest: &Console) {
    configure_nic(guest, "eth0");
}

/// The same for any NIC.
pub(crate) fn configure_nic(guest: &Console, nic: &str) {
    let script = "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip addr add $ip/$mask dev $interface\n\
                  [ -z \"$router\" ] || ip route add default via $router\n\
                  echo \"$ip/$mask router=$router dns=$dns host=$hostname domain=$domain mtu=$mtu\" >/tmp/lease";
    guest.ok(&format!("cat >/tmp/lease.sh <<'END'\n{script}\nEND\nchmod +x /tmp/lease.sh")).unwrap();
    guest
        .ok(&format!(
            "echo 0 >/proc/sys/net/ipv6/conf/{nic}/accept_dad; ip link set {nic} up
             udhcpc -i {nic} -n -q -f -t 10 -T 1 -s /tmp/lease.sh"
        ))
        .unwrap();
}

/// Waits for the address that the guest makes of the router's prefix, and for its way out.
pub(crate) fn slaac(guest: &Console) {
    slaac_nic(guest, "eth0", true);
}

/// The same for any NIC; some are told of no way out.
pub(crate) fn slaac_nic(guest: &Console, nic: &str, way_out: bool) {
    let way_out = if way_out { "&& ip -6 route | grep -q ^default" } else { "" };
    guest
        .ok(&format!(
            "for i in $(seq 100); do ip -6 addr show dev {nic} | grep -q 'fec0::.* scope' {way_out} \
             && exit 0; usleep 50000; done; ip -6 addr; ip -6 route; exit 1"
        ))
        .unwrap();
}

impl Home {
    pub(crate) fn end(mut self) {
        self.guest.power_off().unwrap();
        let end = self.reeve.proc.terminate(PATIENCE).unwrap();
        assert_eq!(end.code, 0, "{}", end.text);
        drop((self.reeve, self.scene));
        assert_eq!(self.ground.left(Duration::from_secs(3)).unwrap(), Vec::<String>::new());
    }
}

#[test]
fn a_guest_gets_addresses_pings_and_streams_without_any_privilege() {
    let home = home(",preset=qemu");
    configure(&home.guest);
    let lease = home.guest.ok("cat /tmp/lease").unwrap();
    assert!(lease.starts_with("10.0.2.15/24 router=10.0.2.2 dns=10.0.2.3"), "{lease}");
    slaac(&home.guest);
    for there in ["10.0.2.2", FAR4, FAR6] {
        all(ping_from_guest(&home.guest, &format!("-c 3 -W 2 {there}")).unwrap(), 3);
    }
    streams_to(&[FAR4, FAR6], &home.scene, &home.guest, BROKEN);
    for address in [FAR4, FAR6] {
        let address = address.parse().unwrap();
        transfer::to_guest(&home.scene.far, &home.guest, address, 64).unwrap();
        transfer::from_guest(&home.scene.far, &home.guest, address, 64).unwrap();
        transfer::there_and_back(&home.scene.far, &home.guest, address, 32).unwrap();
    }
    home.end();
}

/// One connection to a far end that answers in capitals, and its end.
pub(crate) fn talk(guest: &Console, address: &str, port: u16) -> String {
    guest.run(&format!("echo quiet words | nc -w 5 {address} {port}"), PATIENCE).unwrap().text
}

/// Answers everything that comes by each of `n` connections in capitals.
pub(crate) fn shout(listener: &TcpListener, n: usize) {
    // Nobody comes to a test that has failed.
    setsockopt(listener, sockopt::ReceiveTimeout, &TimeVal::seconds(60)).unwrap();
    (0..n).for_each(|_| answer(listener.accept().unwrap().0));
}

/// Answers what comes first in capitals.
fn answer(mut s: impl Read + Write) {
    let mut text = [0; 64];
    let n = s.read(&mut text).unwrap();
    s.write_all(text[..n].to_ascii_uppercase().as_slice()).unwrap();
}

#[test]
fn a_killed_dataplane_ends_its_connections_and_no_others() {
    let home = home("");
    configure(&home.guest);
    let at = SocketAddr::new(FAR4.parse().unwrap(), 7100);
    let listener = home.scene.far.enter(|| TcpListener::bind(at)).unwrap().unwrap();
    let held = home.guest.start(&format!("(echo first; sleep 60) | nc {FAR4} 7100; echo over")).unwrap();
    let (mut _open, _) = listener.accept().unwrap();
    // A guest that was not answered yet would rightly call once more.
    _open.set_read_timeout(Some(PATIENCE)).unwrap();
    _open.read_exact(&mut [0; 6]).unwrap();
    kill(Pid::from_raw(home.reeve.dataplane().unwrap()), Signal::SIGKILL).unwrap();
    drop(_open);
    std::thread::scope(|s| {
        s.spawn(|| shout(&listener, 1));
        assert_eq!(talk(&home.guest, FAR4, 7100), "QUIET WORDS\n");
    });
    home.guest.run("killall sleep", PATIENCE).unwrap();
    let over = home.guest.finish(held, Duration::from_secs(20)).unwrap();
    assert!(over.text.contains("over"), "{}", over.text);
    home.end();
}

/// A door is for the successor as it was for the dataplane that died; here, where neither may make a socket.
#[test]
fn a_guest_forward_leads_on_after_the_death_of_a_dataplane() {
    let path = std::env::temp_dir().join(format!("netreeve-door-{}.sock", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    let over = AtomicBool::new(false);
    let home = home(&format!(",restrict=on,guestfwd=tcp:10.0.2.100:80-unix:{}", path.display()));
    configure(&home.guest);
    std::thread::scope(|s| {
        s.spawn(|| {
            // It ends where nobody comes, too.
            let until = Instant::now() + 3 * PATIENCE;
            while Instant::now() < until && !over.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((end, _)) => answer(end),
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        for round in 0..2 {
            for _ in 0..2 {
                assert_eq!(talk(&home.guest, "10.0.2.100", 80), "QUIET WORDS\n", "{round}");
            }
            if round == 0 {
                kill(Pid::from_raw(home.reeve.dataplane().unwrap()), Signal::SIGKILL).unwrap();
                home.reeve.proc.wait_for("\"restarted\"", PATIENCE).unwrap();
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    fs::remove_file(&path).unwrap();
    home.end();
}

/// What whoever is at this address says at once; asked again for a while, as the guest may not listen yet.
pub(crate) fn heard(from: &Netns, at: SocketAddr) -> String {
    let ask = || {
        let mut text = String::new();
        for _ in 0..50 {
            text.clear();
            if let Ok(mut s) = TcpStream::connect(at)
                && s.set_read_timeout(Some(Duration::from_secs(10))).is_ok()
                && s.read_to_string(&mut text).is_ok()
                && !text.is_empty()
            {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        text
    };
    from.enter(ask).unwrap()
}
