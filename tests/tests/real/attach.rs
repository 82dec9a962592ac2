//! What `netreeve run -- COMMAND` makes of a command that starts an unmodified QEMU: placeholders in its words, and what is
//! appended where the guest's memory cannot be shared. No helper, no root.

use crate::user::{configure, scene, shout, talk};
use netreeve_tests::guest::Console;
use netreeve_tests::leftovers::Ground;
use netreeve_tests::scene::{FAR4, PATIENCE};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

/// What the guest sees of its NIC.
struct Nic {
    mtu: &'static str,
    /// Work may be left to do on frames, as by vhost-user; a stream has no words for that.
    offloads: bool,
}

/// QEMU gets these words beside those of the guest, which are changed first; it is to have a network with this NIC.
fn attached(change: impl Fn(&mut Vec<String>), want: &Nic) {
    let ground = Ground::survey().unwrap();
    let scene = scene();
    let qemu = scene.qemu();
    let mut words = qemu.arguments().unwrap();
    change(&mut words);
    let program = qemu.program().unwrap().display().to_string();
    let run = ["run".to_owned(), "--".to_owned(), program];
    let words: Vec<&str> = run.iter().chain(&words).map(String::as_str).collect();
    let mut command = scene.netreeve(&words);
    command.env("XDG_RUNTIME_DIR", scene.path(""));
    let guest = qemu.inside(&scene.host).boot_by(command).unwrap();
    configure(&guest);
    judge(&guest, want);
    let at = SocketAddr::new(FAR4.parse().unwrap(), 7300);
    let listener = scene.far.enter(|| TcpListener::bind(at)).unwrap().unwrap();
    std::thread::scope(|s| {
        s.spawn(|| shout(&listener, 1));
        assert_eq!(talk(&guest, FAR4, 7300), "QUIET WORDS\n");
    });
    guest.power_off(PATIENCE).unwrap();
    // The directory of the sockets goes with it.
    assert_eq!(std::fs::read_dir(scene.path("")).unwrap().count(), 0);
    drop(scene);
    assert_eq!(ground.left(Duration::from_secs(3)).unwrap(), Vec::<String>::new());
}

fn judge(guest: &Console, want: &Nic) {
    let lease = guest.ok("cat /tmp/lease").unwrap();
    assert!(lease.starts_with("10.0.2.15/24 router=10.0.2.2 dns=10.0.2.3"), "{lease}");
    let offloads = guest.ok("ethtool -k eth0 | grep -c '^tcp-segmentation-offload: on' || true").unwrap();
    let mtu = guest.ok("cat /sys/class/net/eth0/mtu").unwrap();
    assert_eq!((mtu.trim(), offloads.trim() == "1"), (want.mtu, want.offloads));
}

fn add(words: &mut Vec<String>, more: &str) {
    words.extend(more.split_whitespace().map(str::to_owned));
}

/// No netdev, no device, no helper, no root: the command line of QEMU is all there is.
#[test]
fn one_line_gives_qemu_a_network() {
    attached(|_| {}, &Nic { mtu: "1500", offloads: true });
}

#[test]
fn placeholders_are_sockets_that_qemu_attaches_to() {
    attached(
        |words| {
            add(words, "-chardev socket,id=c,path={vhost-user} -netdev vhost-user,id=a,chardev=c");
            add(words, "-device virtio-net-pci,netdev=a,romfile=");
        },
        &Nic { mtu: "1500", offloads: true },
    );
    attached(
        |words| {
            add(words, "-netdev stream,id=a,server=off,addr.type=unix,addr.path={stream}");
            add(words, "-device virtio-net-pci,netdev=a,romfile=,host_mtu=65520");
        },
        &Nic { mtu: "65520", offloads: false },
    );
}

/// Memory that is not shared, and a guest that can be saved and migrated, which QEMU checks before it starts.
#[test]
fn a_guest_whose_memory_is_not_shared_gets_a_stream() {
    attached(
        |words| {
            let shared = words.iter().position(|w| w.starts_with("memory-backend-memfd,")).unwrap();
            words.drain(shared - 1..=shared);
            words.iter_mut().filter(|w| *w == "pc,memory-backend=m").for_each(|w| "pc".clone_into(w));
            add(words, "-mem-path /dev/shm -only-migratable");
        },
        &Nic { mtu: "65520", offloads: false },
    );
}
