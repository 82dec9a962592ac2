//! Captures of ports that a guest's traffic crosses on its way to the host's bridge: its vhost-user device, streams,
//! datagrams, a tap. Switched on and off while they run, by `netreeve capture`, and read by tcpdump, tshark and capinfos.
//! And a mirror with virtio-net headers, of what the guest's own driver left to be done by others.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netreeve_tests::bins::peer;
use netreeve_tests::leftovers::Ground;
use netreeve_tests::peers::wait_until_reachable;
use netreeve_tests::proc::{Proc, run};
use netreeve_tests::scene::{FAR4, FAR6, PATIENCE, Road, Scene};
use netreeve_tests::transfer;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::House;
use crate::control::SOCKET;

/// What is sent each way, in MiB.
const MEBIBYTES: usize = 2;

/// A capture: the port, which frames, the file.
type Of = (&'static str, &'static str, &'static str);

/// Of the wires' ports, `n0` is the tap, `d0` and `n1` are datagrams, `d1` and
/// `n2` streams, and `d2` is the guest's device.
const CAPTURES: [Of; 9] = [
    ("n0", "all", "n0.pcapng"),
    ("n0", "rx", "n0rx.pcap"),
    ("n0", "tx", "n0tx.pcapng"),
    ("n1", "all", "n1.pcap"),
    ("d0", "rx", "d0rx.pcapng"),
    ("n2", "all", "n2.pcapng"),
    ("d1", "tx", "d1tx.pcap"),
    ("n2", "rx", "n2rx.pcap"),
    ("d2", "all", "d2.pcapng"),
];

/// When the guest's device has the tap as its peer, which is told then that it takes offloads.
const BESIDE_EACH_OTHER: [Of; 2] = [("n0", "tx", "supers.pcapng"), ("d2", "rx", "to-guest.pcap")];

/// Three wires, one after the other, and beside them the port of a mirror.
fn wires() -> House {
    let ground = Ground::survey().unwrap();
    let mut scene = Scene::set(Road::Bridge).unwrap();
    scene.help(&scene.policy()).unwrap();
    let end = |local: &str, remote: &str| {
        format!("local.type=unix,local.path={local},remote.type=unix,remote.path={remote}")
    };
    let netdevs = [
        scene.netdev("n0"),
        format!("dgram,id=n1,{}", end("b", "a")),
        "stream,id=n2,server=on,addr.type=unix,addr.path=s".to_owned(),
        "stream,id=m0,server=on,addr.type=unix,addr.path=m".to_owned(),
    ];
    let devices = [
        format!("dgram,id=d0,netdev=n0,{}", end("a", "b")),
        "stream,id=d1,netdev=n1,addr.type=unix,addr.path=s,reconnect-ms=20".to_owned(),
        "vhost-user,id=d2,netdev=n2,path=vm.sock".to_owned(),
    ];
    let mirror = "filter-mirror,id=f0,netdev=d2,outdev=m0,vnet_hdr_support=on";
    let more = ["--control", SOCKET, "--object", mirror];
    let (netdevs, devices) = (netdevs.each_ref(), devices.each_ref());
    let reeve = scene.run(&netdevs.map(String::as_str), &devices.map(String::as_str), &more).unwrap();
    House { reeve, scene, ground }
}

/// A shell's line as the user of `netreeve`, which is a word of it; waits until it captures.
fn capture(house: &House, line: &str) -> Proc {
    let scene = &house.scene;
    let line = line.replace("netreeve", scene.program("netreeve").to_str().unwrap());
    let inner = scene.netreeve(&[]);
    let mut command = Command::new("setpriv");
    let user = netreeve_tests::scene::USER.to_string();
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "sh", "-c", &line]);
    command.current_dir(inner.get_current_dir().unwrap());
    let capture = scene.host.spawn("netreeve capture", command).unwrap();
    capture.wait_for("capturing frames of port", PATIENCE).unwrap();
    capture
}

/// Frames that a port has received and sent.
fn passed(house: &House, id: &str) -> [u64; 2] {
    let port: Value = house.port(id);
    ["rx_frames", "tx_frames"].map(|way| port[way].as_u64().unwrap())
}

/// What `tool` says, as root, who may read all.
fn said(tool: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(peer(tool).unwrap());
    command.args(arguments);
    run(tool, command, 6 * PATIENCE).unwrap().ok(tool).unwrap()
}

/// A frame that was captured: its length, how many bytes of that there are, which way it went, what is to be said of its
/// TCP checksum.
struct Seen {
    len: usize,
    kept: usize,
    way: String,
    checksum: String,
}

/// A capture, as tshark, capinfos and tcpdump read it: they agree.
fn read(file: &Path) -> Vec<Seen> {
    let file = file.to_str().unwrap();
    let mut arguments = vec!["-n", "-r", file, "-o", "tcp.check_checksum:TRUE", "-T", "fields"];
    let fields =
        ["frame.len", "frame.cap_len", "frame.packet_flags_direction", "tcp.checksum.status", "tcp.checksum"];
    for field in fields {
        arguments.extend(["-e", field]);
    }
    let text = said("tshark", &arguments);
    let rows = text.lines().filter(|l| l.contains('\t'));
    let seen: Vec<Seen> = rows
        .map(|row| {
            let mut fields = row.split('\t').map(str::to_owned);
            let mut next = || fields.next().unwrap();
            let [len, kept] = [next(), next()].map(|n| n.parse().unwrap());
            let (way, status, sum) = (next(), next(), next());
            // Zero may be written so, as Linux does (CSUM_MANGLED_0): tshark takes it for wrong. One frame in 65536.
            let checksum = if status == "0" && sum == "0xffff" { "1".to_owned() } else { status };
            Seen { len, kept, way, checksum }
        })
        .collect();
    let about = said("capinfos", &["-cM", file]);
    assert!(about.contains(&format!("Number of packets:   {}", seen.len())), "{about}");
    let lines = said("tcpdump", &["-nnte", "-r", file]);
    let lines = lines.lines().filter(|l| l.contains("ethertype") || l.contains("802.3")).count();
    assert_eq!(lines, seen.len(), "{file}: tcpdump");
    seen
}

/// What came out of the mirror.
#[derive(Default)]
struct Mirrored {
    frames: u64,
    /// Super-frames by the type of their segmentation.
    supers: BTreeMap<u8, usize>,
    /// Frames whose checksum was left to others.
    partial: usize,
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}

/// The sum of a checksum (RFC 1071).
pub(crate) fn sum(bytes: &[u8]) -> u32 {
    let mut sum: u32 =
        bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | w.get(1).map_or(0, |b| (*b).into())).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

/// Where TCP begins in a frame, and the sum of its pseudo-header; none if it is not TCP.
pub(crate) fn tcp(frame: &[u8]) -> Option<(usize, u32)> {
    let (addresses, at) = match frame.get(12..14)? {
        [8, 0] if frame[23] == 6 => (26..34, 14 + usize::from(frame[14] & 15) * 4),
        [0x86, 0xdd] if frame[20] == 6 => (22..54, 54),
        _ => return None,
    };
    let len = u32::try_from(frame.len() - at).unwrap();
    Some((at, sum(&[&frame[addresses], &len.to_be_bytes(), &6_u32.to_be_bytes()].concat())))
}

impl Mirrored {
    /// One frame and its header (virtio 1.2, section 5.1.6): what is said there is true of the frame, and what is left to
    /// be done makes it right.
    fn look(&mut self, header: &[u8], frame: &mut [u8]) {
        let field = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let (flags, kind, head, size) = (header[0], header[1], field(2), field(4));
        self.frames += 1;
        assert_eq!(kind != 0, frame.len() > 1514, "{header:?}: {} bytes", frame.len());
        let found = tcp(frame);
        if flags & 1 != 0 {
            let (start, at) = (field(6), field(6) + field(8));
            let done = !u16::try_from(sum(&frame[start..])).unwrap();
            frame[at..at + 2].copy_from_slice(&done.to_be_bytes());
            self.partial += 1;
        }
        if let Some((at, pseudo)) = found {
            let all = sum(&[&pseudo.to_be_bytes(), &frame[at..]].concat());
            assert!(all == 0xffff, "{header:?}: {:x?}", &frame[..frame.len().min(80)]);
        }
        if kind != 0 {
            let (at, _) = found.expect("nothing else is joined here");
            assert_eq!(kind & 0x7f, if frame[12] == 8 { 1 } else { 4 }, "{header:?}");
            assert!(flags & 1 != 0 && field(6) == at && field(8) == 16, "{header:?}");
            let headers = at + usize::from(frame[at + 12] >> 4) * 4;
            // As much as lay together in the guest's memory, where the kernel has written it.
            assert!(head >= headers, "{header:?}");
            assert!(size > 0 && headers + size <= 1514 && frame.len() > headers + size, "{header:?}");
            *self.supers.entry(kind & 0x7f).or_default() += 1;
        }
    }
}

/// Whoever is at the mirror's port, in QEMU's framing.
struct Beside {
    stream: UnixStream,
    all: Arc<Mutex<Mirrored>>,
    reader: JoinHandle<()>,
}

impl Beside {
    fn plug(house: &House) -> Self {
        let stream = UnixStream::connect(house.scene.path("m")).unwrap();
        let all: Arc<Mutex<Mirrored>> = Arc::default();
        let (mut from, into) = (stream.try_clone().unwrap(), Arc::clone(&all));
        let reader = std::thread::spawn(move || {
            let mut lens = [0; 8];
            while from.read_exact(&mut lens).is_ok() {
                // The first counts the header as well, but not the second.
                let (len, header) = (word(&lens[..4]) as usize, word(&lens[4..]) as usize);
                assert_eq!(header, 12, "the header of a driver with buffers that are merged");
                let mut bytes = vec![0; len];
                from.read_exact(&mut bytes).unwrap();
                let (header, frame) = bytes.split_at_mut(header);
                into.lock().unwrap().look(header, frame);
            }
        });
        Self { stream, all, reader }
    }

    /// Waits until all that the device has sent and received has come or was counted.
    fn end(self, house: &House) -> Mirrored {
        let until = Instant::now() + PATIENCE;
        loop {
            let come = self.all.lock().unwrap().frames;
            let lost: u64 = ["full", "peer_down"].iter().map(|why| house.drops("m0", why)).sum();
            let passed: u64 = passed(house, "d2").iter().sum();
            if come + lost == passed {
                break;
            }
            assert!(Instant::now() < until, "{come} have come, {lost} were lost, {passed} have passed");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.stream.shutdown(Shutdown::Both).unwrap();
        self.reader.join().unwrap();
        Arc::into_inner(self.all).unwrap().into_inner().unwrap()
    }
}

impl House {
    fn drops(&self, id: &str, why: &str) -> u64 {
        self.port(id)["drops"][why].as_u64().unwrap_or(0)
    }
}

/// Ends a capture as a user would; how many frames were captured, and how many were lost.
fn interrupted(mut capture: Proc) -> [u64; 2] {
    capture.signal(Signal::SIGINT).unwrap();
    let end = capture.wait(PATIENCE).unwrap();
    assert_eq!(end.code, 0, "{}", end.text);
    let line = end.text.lines().find(|l| l.contains("frames captured")).unwrap();
    let mut numbers = line.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok());
    [numbers.next().unwrap(), numbers.next().unwrap()]
}

/// The files, when they are whole. `offloads`: the ports whose frames may be longer than the link's.
fn judge(house: &House, captures: &[Of], counts: &BTreeMap<&str, [u64; 2]>, offloads: &[&str]) {
    for &(port, queue, name) in captures {
        let all = read(&house.scene.path(name));
        let [written, lost] = counts[name];
        eprintln!("{name}: {written} frames, {lost} lost");
        assert_eq!(all.len() as u64, written, "{name}");
        assert!(written > 30, "{name}: {written}");
        assert!(all.iter().all(|f| f.kept == f.len), "{name} was cut");
        let long = all.iter().filter(|f| f.len > 1514).count();
        assert!(long == 0 || offloads.contains(&port), "{name}: {long} longer than a frame of the link");
        // What the guest and the host's kernel leave to offloads is whole here.
        let sums = all.iter().filter(|f| !f.checksum.is_empty()).count();
        let right = all.iter().filter(|f| f.checksum == "1").count();
        assert!(right == sums && sums > 30, "{name}: {right} of {sums} checksums are right");
        if name.ends_with(".pcapng") {
            let way = |f: &&Seen| u32::from_str_radix(f.way.trim_start_matches("0x"), 16).unwrap();
            let (into, out) = (all.iter().filter(|f| way(f) == 1), all.iter().filter(|f| way(f) == 2));
            let ways = (into.count() > 0, out.count() > 0);
            assert_eq!(ways, (queue != "tx", queue != "rx"), "{name}");
        }
        if offloads.contains(&port) && !matches!(name, "n0tx.pcapng" | "n0rx.pcap") {
            assert!(long > 10, "{name}: {long} super-frames");
        }
    }
}

/// Who read the capture from a pipe is gone; it has ended then, and what could not be written is lost.
fn has_seen_enough(mut pipe: Proc) {
    let end = pipe.wait(PATIENCE).unwrap();
    assert_eq!(end.code, 0, "{}", end.text);
    let (read, rest): (Vec<&str>, Vec<&str>) = end.text.lines().partition(|l| l.contains(" IP"));
    assert!(read.len() <= 20 && read.len() > 10, "{}", end.text);
    assert!(rest.iter().any(|l| l.contains("frames captured")), "{}", end.text);
}

#[test]
fn what_a_guest_sends_is_captured_at_every_port_on_its_way() {
    let house = wires();
    let guest = house.uml(1500);
    let beside = Beside::plug(&house);
    let ports = ["n0", "n1", "d0", "n2", "d1", "d2"];
    let count = || -> BTreeMap<&str, [u64; 2]> { ports.map(|id| (id, passed(&house, id))).into() };
    let first = count();
    let begin = |(port, queue, file): Of| {
        let line = format!("exec netreeve capture {SOCKET} {port} --queue {queue} -w {file}");
        (file, capture(&house, &line))
    };
    let captures = CAPTURES.map(begin);
    let began = count();
    // Some who have soon seen enough.
    let pipes = ["n0", "n1", "n2"].map(|port| {
        capture(
            &house,
            &format!("netreeve capture {SOCKET} {port} -w - | tcpdump -nn -c 20 -r - 2>/dev/null"),
        )
    });
    for address in [FAR4, FAR6] {
        let address = address.parse().unwrap();
        transfer::from_guest(&house.scene.far, &guest, address, MEBIBYTES).unwrap();
        transfer::to_guest(&house.scene.far, &guest, address, MEBIBYTES).unwrap();
    }
    pipes.into_iter().for_each(has_seen_enough);
    let ended = count();
    let counts: BTreeMap<&str, [u64; 2]> = captures.map(|(file, c)| (file, interrupted(c))).into();
    let last = count();
    // Each has seen what has passed while it ran.
    for (port, queue, file) in CAPTURES {
        // In QEMU's words, a filter's tx is what its port sends into netreeve, which the port has received.
        let of = |all: &BTreeMap<&str, [u64; 2]>| match (queue, all[port]) {
            ("all", [rx, tx]) => rx + tx,
            ("tx", [rx, _]) => rx,
            (_, [_, tx]) => tx,
        };
        let (least, most) = (of(&ended) - of(&began), of(&last) - of(&first));
        let seen: u64 = counts[file].iter().sum();
        assert!(least <= seen && seen <= most, "{file}: {seen} of {least} to {most}");
    }
    judge(&house, &CAPTURES, &counts, &["n0", "d2"]);

    house.say(&["remove", SOCKET, "d0"]);
    house.say(&["set", SOCKET, "d2", "netdev=n0"]);
    wait_until_reachable(&guest, FAR4).unwrap();
    let captures = BESIDE_EACH_OTHER.map(begin);
    transfer::to_guest(&house.scene.far, &guest, FAR4.parse().unwrap(), MEBIBYTES).unwrap();
    let counts = captures.map(|(file, c)| (file, interrupted(c))).into();
    judge(&house, &BESIDE_EACH_OTHER, &counts, &["n0", "d2"]);
    let mirrored = beside.end(&house);
    eprintln!(
        "mirrored: {} frames, supers {:?}, partial {}",
        mirrored.frames, mirrored.supers, mirrored.partial
    );
    assert!(
        mirrored.supers.get(&1) > Some(&10) && mirrored.supers.get(&4) > Some(&10),
        "{:?}",
        mirrored.supers
    );
    guest.power_off().unwrap();
    house.end();
}
