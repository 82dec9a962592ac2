//! The control socket as its users have it: the network of a running guest is changed beneath it, QEMU's own Python client
//! (`qemu.qmp`) drives it, and Prometheus's tool reads the counters.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use netreeve_tests::guest::uml::Uml;
use netreeve_tests::leftovers::Ground;
use netreeve_tests::peers::{ping_from_guest, wait_until_reachable};
use netreeve_tests::proc::run;
use netreeve_tests::scene::{FAR4, PATIENCE, Road, Scene, address};
use serde_json::Value;
use std::time::{Duration, Instant};

use crate::crash::kill_dataplane;
use crate::services::{answer, resolver};
use crate::{House, all, pings};

/// Where the control socket is, seen from where `netreeve` runs.
pub(crate) const SOCKET: &str = "./control.sock";

/// A bridge, a tap in it and a guest's device; more of `bridge` may come.
fn house() -> House {
    let ground = Ground::survey().unwrap();
    let mut scene = Scene::set(Road::Bridge).unwrap();
    scene.help(&scene.policy()).unwrap();
    let netdev = scene.netdev("n0");
    let device = "vhost-user,id=d0,netdev=n0,path=vm.sock";
    let more = ["--control", SOCKET, "--hotplug", "bridge"];
    let reeve = scene.run(&[&netdev], &[device], &more).unwrap();
    House { reeve, scene, ground }
}

impl House {
    /// What a `netreeve` command says.
    pub(crate) fn say(&self, arguments: &[&str]) -> String {
        run("netreeve", self.scene.netreeve(arguments), PATIENCE).unwrap().ok("netreeve").unwrap()
    }

    /// The ports as the instance tells them.
    fn ports(&self) -> Vec<Value> {
        let said = self.say(&["ls", SOCKET, "--json"]);
        serde_json::from_str::<Value>(&said).unwrap().as_array().unwrap().clone()
    }

    pub(crate) fn port(&self, id: &str) -> Value {
        self.ports().into_iter().find(|p| p["id"] == id).unwrap()
    }

    /// Whether the interface is there within the time that the kernel takes.
    fn has_link(&self, name: &str, wanted: bool) -> bool {
        let until = Instant::now() + PATIENCE;
        let here = || self.scene.host.links().unwrap().iter().any(|l| l == name) == wanted;
        while !here() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(20));
        }
        here()
    }
}

#[test]
fn the_netdev_beneath_a_guest_is_swapped_and_its_link_is_cut() {
    let house = house();
    let guest = house.uml(1500);
    let carrier = || guest.ok("cat /sys/class/net/eth0/carrier_changes").unwrap();
    let changes = carrier();
    let first = house.port("n0")["ifname"].as_str().unwrap().to_owned();
    assert!(house.has_link(&first, true));

    house.say(&["add", SOCKET, "--netdev", "bridge,id=n1,br=br0"]);
    let second = house.port("n1")["ifname"].as_str().unwrap().to_owned();
    assert!(second != first && house.has_link(&second, true));
    house.say(&["set", SOCKET, "d0", "netdev=n1"]);
    // The bridge is told where the guest is now, before it sends anything.
    let mac = guest.ok("cat /sys/class/net/eth0/address").unwrap();
    let there = || house.scene.host.sh(&format!("bridge fdb show dev {second}")).unwrap();
    let until = Instant::now() + PATIENCE;
    while !there().contains(mac.trim()) {
        assert!(Instant::now() < until, "{mac} is not behind {second}: {}", there());
        std::thread::sleep(Duration::from_millis(5));
    }
    wait_until_reachable(&guest, FAR4).unwrap();
    pings(&house.scene, &guest, 1400);
    house.say(&["remove", SOCKET, "n0"]);
    assert!(house.has_link(&first, false), "the tap goes with its port");
    pings(&house.scene, &guest, 1400);
    assert_eq!(carrier(), changes, "the guest has noticed");
    let counted = house.port("n1");
    assert!(
        counted["tx_frames"].as_u64().unwrap() > 0 && counted["rx_bytes"].as_u64().unwrap() > 0,
        "{counted}"
    );

    // It is the same after the death of the dataplane.
    kill_dataplane(&house);
    pings(&house.scene, &guest, 1400);

    house.say(&["set", SOCKET, "n1", "link=off"]);
    let cut = ping_from_guest(&guest, &format!("-c 2 -W 1 {FAR4}")).unwrap();
    assert_eq!(cut.received, 0);
    house.say(&["set", SOCKET, "n1", "link=on"]);
    all(ping_from_guest(&guest, &format!("-c 5 -W 2 {FAR4}")).unwrap(), 5);
    drop(guest);
    house.end();
}

/// AF_XDP sockets come from the helper to a dataplane that is locked in, serve the guest, and let the interface go.
#[test]
fn af_xdp_comes_beneath_a_guest_and_goes() {
    let ground = Ground::survey().unwrap();
    let mut scene = Scene::set(Road::AfXdp).unwrap();
    scene.help(&scene.policy()).unwrap();
    let n0 = "stream,id=n0,server=on,addr.type=unix,addr.path=n.sock";
    let more = ["--control", SOCKET, "--hotplug", "af-xdp"];
    let reeve = scene.run(&[n0], &["vhost-user,id=d0,netdev=n0,path=vm.sock"], &more).unwrap();
    let house = House { reeve, scene, ground };
    let guest = Uml::new().nic(&house.scene.path("vm.sock")).boot().unwrap();
    let attached = || house.scene.host.sh("ip -d link show nv0").unwrap().contains("xdp");
    address(&guest, "eth0", 2, 1500).unwrap();
    for round in 0..2 {
        house.say(&["add", SOCKET, "--netdev", &house.scene.netdev("x0")]);
        assert!(attached());
        house.say(&["set", SOCKET, "d0", "netdev=x0"]);
        wait_until_reachable(&guest, FAR4).unwrap();
        pings(&house.scene, &guest, 1400);
        if round == 0 {
            kill_dataplane(&house);
            pings(&house.scene, &guest, 1400);
        }
        house.say(&["set", SOCKET, "d0", "netdev=n0"]);
        house.say(&["remove", SOCKET, "x0"]);
        let until = Instant::now() + PATIENCE;
        while attached() {
            assert!(Instant::now() < until, "the program is still at the interface");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    drop(guest);
    house.end();
}

/// Drives the instance in the current directory with QEMU's own client.
const CLIENT: &str = r#"
import asyncio, sys
from qemu.qmp import QMPClient
from qemu.qmp.qmp_client import ExecuteError

async def main():
    client = QMPClient('test')
    await client.connect('./control.sock')
    assert (await client.execute('query-status')) == {'running': True, 'status': 'running'}
    names = [c['name'] for c in await client.execute('query-commands')]
    assert {'netdev_add', 'netdev_del', 'device_add', 'device_del', 'set_link', 'quit'} <= set(names), names
    with client.listener('NETDEV_VHOST_USER_CONNECTED') as events:
        reader, writer = await asyncio.open_unix_connection('vm.sock')
        event = await asyncio.wait_for(events.get(), 10)
        assert event['data'] == {'netdev-id': 'd0', 'chardev-id': 'd0'}, event
        writer.close()
    await client.execute('netdev_add', {'type': 'bridge', 'id': 'n1', 'br': 'br0'})
    await client.execute('netreeve-set-netdev', {'device': 'd0', 'netdev': 'n1'})
    ports = {p['id']: p for p in await client.execute('netreeve-query-ports')}
    assert ports['d0']['peer'] == 'n1' and 'peer' not in ports['n0'], ports
    assert ports['n1']['drops']['runt'] == 0, ports
    await client.execute('netdev_del', {'id': 'n0'})
    try:
        await client.execute('netdev_del', {'id': 'n0'})
        sys.exit('it is still there')
    except ExecuteError as e:
        assert e.error_class == 'DeviceNotFound', e
    with client.listener('SHUTDOWN') as events:
        await client.execute('quit')
        assert (await asyncio.wait_for(events.get(), 10))['data']['reason'] == 'host-qmp-quit'
    await client.disconnect()
    print('all is well')

asyncio.run(main())
"#;

/// A Python that has `qemu.qmp`: the machine's, or one of our own with the version that is written down, by its hash.
fn python() -> PathBuf {
    let has = |python: &PathBuf| {
        let try_it = Command::new(python).args(["-c", "import qemu.qmp"]).output();
        try_it.is_ok_and(|o| o.status.success())
    };
    let own = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("qemu-qmp");
    let python = own.join("bin/python");
    if let Some(python) = [PathBuf::from("python3"), python.clone()].into_iter().find(has) {
        return python;
    }
    let list = concat!(env!("CARGO_MANIFEST_DIR"), "/qemu-qmp.txt");
    let make = format!(
        "python3 -m venv {0} && {0}/bin/pip install --quiet --no-deps --only-binary :all: --require-hashes -r {list}",
        own.display()
    );
    let made = Command::new("sh").args(["-c", &make]).output().unwrap();
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(has(&python), "qemu.qmp is missing, and this did not get it: {make}\n{said}");
    python
}

#[test]
fn qemus_own_client_drives_it() {
    let python = python();
    let mut house = house();
    let script = house.scene.path("client.py");
    fs::write(&script, CLIENT).unwrap();
    let mut command = Command::new(python);
    // As root, who may talk to anybody's instance.
    command.arg(&script).current_dir(house.scene.path(""));
    let said = run("qemu.qmp", command, PATIENCE).unwrap().ok("qemu.qmp").unwrap();
    assert!(said.contains("all is well"), "{said}");
    let end = house.reeve.proc.wait(PATIENCE).unwrap();
    assert_eq!(end.code, 0, "{}", end.text);
    drop((house.reeve, house.scene));
    assert_eq!(house.ground.left(Duration::from_secs(3)).unwrap(), Vec::<String>::new());
}

/// Prometheus's tool: installed, or unpacked from the distribution's package.
fn promtool() -> PathBuf {
    let works =
        |tool: &PathBuf| Command::new(tool).arg("--version").output().is_ok_and(|o| o.status.success());
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("prometheus");
    let own = dir.join("usr/bin/promtool");
    if let Some(tool) = [PathBuf::from("promtool"), own.clone()].into_iter().find(works) {
        return tool;
    }
    fs::create_dir_all(&dir).unwrap();
    let get = "apt-get -qq download prometheus && dpkg -x prometheus_*.deb . && rm prometheus_*.deb";
    let got = Command::new("sh").args(["-c", get]).current_dir(&dir).output().unwrap();
    let said = String::from_utf8_lossy(&got.stderr);
    assert!(works(&own), "promtool is missing: apt-get install prometheus\n{said}");
    own
}

#[test]
fn prometheus_reads_the_counters() {
    let tool = promtool();
    let house = house();
    let text = house.say(&["stats", SOCKET, "--format", "openmetrics"]);
    // What it reads into a block has a time; what it scrapes has not.
    let stamped: Vec<String> = text
        .lines()
        .map(|l| if l.starts_with('#') { l.to_owned() } else { format!("{l} 1800000000") })
        .collect();
    let file = house.scene.path("metrics");
    fs::write(&file, stamped.join("\n") + "\n").unwrap();
    let mut command = Command::new(&tool);
    command.args(["tsdb", "create-blocks-from", "openmetrics"]).arg(&file).arg(house.scene.path("blocks"));
    let said = run("promtool", command, 3 * PATIENCE).unwrap().ok("promtool").unwrap();
    let samples = text.lines().filter(|l| !l.starts_with('#')).count().to_string();
    assert!(samples.parse::<u32>().unwrap() > 40, "{text}");
    assert!(said.split_whitespace().any(|w| w == samples), "{samples} samples: {said}");
    house.end();
}

/// A name server that keeps silent holds up nobody but who waits for what a name means, neither at the start nor later.
#[test]
fn names_that_are_not_answered_hold_up_nobody_else() {
    let ground = Ground::survey().unwrap();
    let scene = Scene::set(Road::Bridge).unwrap();
    scene.host.sh("ip addr add 192.0.2.77/24 dev lo").unwrap();
    let server = scene.host.enter(|| UdpSocket::bind(("127.0.0.1", 53))).unwrap().unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let resolv = "nameserver 127.0.0.1\noptions timeout:60 attempts:1\n";
    let mut command = scene.with_etc(&[("resolv.conf", resolv)]).unwrap();
    let v4 = "addr.host=peer.example,addr.port=4003,addr.ipv6=off";
    let n0 = format!("stream,id=n0,reconnect-ms=50,addr.type=inet,{v4}");
    let d0 = "stream,id=d0,netdev=n0,server=on,addr.type=unix,addr.path=vm.sock";
    command.arg(scene.program("netreeve"));
    command.args(["run", "--json", "--control", SOCKET, "--hotplug", "dgram"]);
    command.args(["--netdev", n0.as_str(), "--device", d0]);
    // It is ready though it does not know whom to dial.
    let reeve = scene.start(command).unwrap();
    let house = House { reeve, scene, ground };
    let question = || {
        let mut q = [0; 512];
        let (len, from) = server.recv_from(&mut q).unwrap();
        (q[..len].to_vec(), from)
    };
    let mut held = vec![question()];

    let x0 = "dgram,id=x0,local.type=inet,local.host=192.0.2.77,local.port=4001,remote.type=inet,\
              remote.host=peer.example,remote.port=4002,remote.ipv6=off";
    let mut asks = house.scene.netreeve(&["add", SOCKET, "--netdev", x0]).spawn().unwrap();
    // The dialler's has two halves.
    while held.iter().all(|(_, from)| *from == held[0].1) {
        held.push(question());
    }
    let ids = || house.ports().iter().map(|p| p["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(ids(), ["n0", "d0"], "others are served");
    assert!(asks.try_wait().unwrap().is_none());
    held.into_iter().for_each(|(q, from)| drop(server.send_to(&answer(&q), from)));

    let end = AtomicBool::new(false);
    let there = house.scene.host.enter(|| TcpListener::bind(("192.0.2.77", 4003))).unwrap().unwrap();
    there.set_nonblocking(true).unwrap();
    let (mut added, mut dialled) = (None, false);
    std::thread::scope(|s| {
        s.spawn(|| resolver(&server, &end));
        let until = Instant::now() + PATIENCE;
        while (added.is_none() || !dialled) && Instant::now() < until {
            added = added.or(asks.try_wait().unwrap());
            dialled |= there.accept().is_ok();
            std::thread::sleep(Duration::from_millis(5));
        }
        end.store(true, Ordering::Relaxed);
    });
    assert!(added.is_some_and(|status| status.success()) && dialled, "{added:?} {dialled}");
    assert_eq!(ids(), ["n0", "d0", "x0"]);
    house.end();
}
