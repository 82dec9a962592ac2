//! The supervisor between a hostile dataplane and two clients of its control socket: whatever the one says, and whatever
//! the others ask for meanwhile, each question is answered once and in order, and what the next dataplane is told to build
//! makes sense.
//!
//! Each step is four bytes: what is done, and three that say how. Nothing is opened but sockets of this process's own.
#![no_main]

use std::collections::{BTreeSet, VecDeque};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use netreeve_dataplane::engine::KIND;
use netreeve_dataplane::handover::{FromDataplane, Level, Plan, ToDataplane};
use netreeve_dataplane::mem::guest::Layout;
use netreeve_dataplane::port::{FarEnd, Piece};
use netreeve_dataplane::stats::{Flows, Reason, Stats};
use netreeve_dataplane::supervise::fuzz::{Rehearsal, handed};
use netreeve_dataplane::worker::Waits;
use netreeve_shared::channel::Channel;
use netreeve_shared::codec::{self, Header};
use serde_json::{Value, json};

const HOTPLUG: &[&str] = &["hubport", "stream", "vhost-user"];
const IDS: [&str; 8] = ["n0", "d0", "s0", "d1", "x1", "x2", "x3", "no such"];
const ASKS: [&str; 8] = [
    "netreeve-query-ports",
    "netreeve-query-instance",
    "netreeve-query-filters",
    "netreeve-query-captures",
    "query-status",
    "query-commands",
    "query-name",
    "no such command",
];

/// Names nobody else's socket.
fn name(which: u8) -> String {
    format!("netreeve-fuzz-{}-{which}", std::process::id())
}

fn listener() -> UnixListener {
    thread_local! {
        static LISTENER: UnixListener =
            UnixListener::bind_addr(&SocketAddr::from_abstract_name(name(0)).unwrap()).unwrap();
    }
    let l = LISTENER.with(|l| l.try_clone().unwrap());
    l.set_nonblocking(true).unwrap();
    l
}

struct Client {
    socket: UnixStream,
    /// What came of an answer or event that has no end yet.
    line: Vec<u8>,
    asked: u64,
    answered: u64,
}

impl Client {
    /// And the supervisor's end.
    fn new() -> (Self, UnixStream) {
        let (socket, ours) = UnixStream::pair().unwrap();
        socket.set_nonblocking(true).unwrap();
        ours.set_nonblocking(true).unwrap();
        (Self { socket, line: Vec::new(), asked: 0, answered: 0 }, ours)
    }

    fn ask(&mut self, command: &str, arguments: &Value) {
        let text = json!({ "execute": command, "arguments": arguments, "id": self.asked }).to_string();
        self.socket.write_all(text.as_bytes()).unwrap();
        self.asked += 1;
    }

    /// What it hears: its answers in the order of its questions.
    fn hear(&mut self) {
        let mut bytes = [0; 1 << 14];
        loop {
            match self.socket.read(&mut bytes) {
                Ok(0) => panic!("cut off"),
                Ok(n) => self.line.extend(&bytes[..n]),
                Err(e) => break assert_eq!(e.kind(), ErrorKind::WouldBlock, "{e}"),
            }
        }
        while let Some(end) = self.line.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            let value: Value = serde_json::from_slice(&line).expect("no JSON");
            if value.get("return").is_some() || value.get("error").is_some() {
                assert_eq!(value["id"], json!(self.answered), "another answer is due: {value}");
                self.answered += 1;
            }
        }
    }
}

struct World {
    supervisor: Rehearsal,
    now: Instant,
    clients: [Client; 2],
    dataplane: Option<Channel>,
    /// What the dataplane was told, and has not done.
    told: VecDeque<ToDataplane>,
    /// The slots that an honest one would have.
    slots: BTreeSet<u16>,
}

impl World {
    fn new(user: bool) -> Self {
        let ((one, its), (other, others)) = (Client::new(), Client::new());
        let door = |device: &str| format!("{device},fd={}", handed(listener().into()).unwrap());
        let (netdevs, devices, later) = if user {
            let device = door("vhost-user,id=d0,netdev=n0");
            (
                vec!["user,id=n0,resolver=127.0.0.1,hostfwd=tcp:127.0.0.1:0-:80".to_owned()],
                vec![device],
                &[][..],
            )
        } else {
            let dials =
                format!("stream,id=s0,addr.type=unix,addr.abstract=on,addr.path={},reconnect-ms=7", name(0));
            let fd = handed(listener().into()).unwrap();
            let stream = format!("stream,id=d1,netdev=s0,server=on,addr.type=fd,addr.str={fd}");
            let device = door("vhost-user,id=d0,netdev=n0");
            (vec!["hubport,id=n0,hubid=0".to_owned(), dials], vec![device, stream], HOTPLUG)
        };
        let mut supervisor = Rehearsal::new(&netdevs, &devices, later, its.into()).unwrap();
        let now = Instant::now();
        supervisor.greet(others.into(), now);
        let mut clients = [one, other];
        clients.iter_mut().for_each(|c| c.ask("qmp_capabilities", &json!({})));
        let (told, slots) = (VecDeque::new(), BTreeSet::new());
        Self { supervisor, now, clients, dataplane: None, told, slots }
    }

    /// What a client asks for.
    fn asks(&mut self, who: usize, [what, a, b]: [u8; 3]) {
        let id = |n: u8| IDS[usize::from(n & 7)];
        let (x, y) = (id(a), id(b));
        let at = json!({ "type": "unix", "path": name(a >> 6 & 1), "abstract": true });
        let server = b & 0x80 != 0;
        let object = ["f", "g", y][usize::from(a) % 3];
        let table = &["udp:127.0.0.1:0-:53", x][..1 + usize::from(b & 1)];
        let (command, arguments) = match what % 19 {
            0 => ("set_link", json!({ "name": x, "up": b & 1 != 0 })),
            1 => ("netdev_add", json!({ "type": "hubport", "id": x, "hubid": b & 3 })),
            2 => ("netdev_add", json!({ "type": "stream", "id": x, "server": server, "addr": at })),
            3 => (
                "device_add",
                json!({ "driver": "stream", "id": x, "netdev": y, "server": server, "addr": at }),
            ),
            4 => ("device_add", json!({ "driver": "hubport", "id": x, "netdev": y, "hubid": 1 })),
            5 => ("netdev_del", json!({ "id": x })),
            6 => ("device_del", json!({ "id": x })),
            7 => ("netreeve-set-netdev", json!({ "device": x, "netdev": y })),
            8 => {
                ("object-add", json!({ "qom-type": "filter-buffer", "id": y, "netdev": x, "interval": 1000 }))
            }
            9 => ("object-add", json!({ "qom-type": "filter-mirror", "id": "f", "netdev": x, "outdev": y })),
            10 => {
                ("object-add", json!({ "qom-type": "filter-redirector", "id": "g", "netdev": x, "indev": y }))
            }
            11 => ("object-del", json!({ "id": object })),
            12 => ("qom-set", json!({ "path": y, "property": "status", "value": "off" })),
            13 => ("hostfwd_add", json!({ "hostfwd": format!("tcp:127.0.0.1:0-:{b}") })),
            14 => ("hostfwd_remove", json!({ "hostfwd": "tcp:127.0.0.1:0" })),
            15 => ("netreeve-set-hostfwd", json!({ "hostfwd": table })),
            16 => (ASKS[usize::from(a & 7)], json!({ x: b })),
            17 => ("closefd", json!({ "fdname": x })),
            _ => (ASKS[usize::from(a & 7)], json!({})),
        };
        self.clients[who].ask(command, &arguments);
    }

    /// A message, which the supervisor has room for or not.
    fn say(&self, message: &FromDataplane) {
        let fds = if matches!(message, FromDataplane::Piece { .. }) {
            vec![self.clients[0].socket.as_fd()]
        } else {
            Vec::new()
        };
        let header = Header { kind: KIND, sequence: 0, fds: fds.len() as u16 };
        if let (Some(channel), Ok(bytes)) = (&self.dataplane, codec::encode(header, message)) {
            let _full = channel.send(&bytes, &fds);
        }
    }

    /// What a hostile dataplane says.
    fn lie(&self, [what, a, b]: [u8; 3]) {
        let (slot, number) = (u16::from(a & 7), u32::from(b));
        let errno = i32::from(b as i8) * 7;
        self.say(&match what % 13 {
            0 => FromDataplane::Ready { level: Level::Full },
            1 => FromDataplane::Failed { slot: Some(slot), errno, why: "x\x1b[2J".repeat(usize::from(b)) },
            2 => FromDataplane::Redial { slot },
            3 => FromDataplane::Link { slot, up: b & 1 != 0 },
            4 => FromDataplane::FarEnd { slot, end: FarEnd::Nobody },
            5 => FromDataplane::FarEnd { slot, end: FarEnd::Somebody(None) },
            6 => FromDataplane::FarEnd { slot, end: FarEnd::Refused(Reason::Oversize) },
            7 => FromDataplane::Dead { slot, errno },
            8 => FromDataplane::Unsettled { slot },
            9 => piece(slot),
            10 => FromDataplane::Kept { slot, whole: b & 1 != 0 },
            11 => FromDataplane::Done { ask: number },
            _ => FromDataplane::Refused { ask: number, errno, why: String::new() },
        });
    }

    /// Does what it was told first, or says that it has not.
    fn obey(&mut self, refuses: bool) {
        let Some(first) = self.told.pop_front() else { return };
        let ask = match first {
            ToDataplane::Stats { slot } => return self.count(slot),
            ToDataplane::Keep { slot } => {
                self.say(&piece(slot));
                return self.say(&FromDataplane::Kept { slot, whole: !refuses });
            }
            ToDataplane::Begin => return self.say(&FromDataplane::Ready { level: Level::Full }),
            ToDataplane::Add { ask, slot, .. } => {
                if !refuses {
                    self.slots.insert(slot);
                }
                ask
            }
            ToDataplane::Remove { ask, slot } => {
                if !refuses {
                    self.slots.remove(&slot);
                }
                ask
            }
            ToDataplane::Join { ask, .. }
            | ToDataplane::Part { ask, .. }
            | ToDataplane::Link { ask, .. }
            | ToDataplane::Filter { ask, .. }
            | ToDataplane::Unfilter { ask, .. }
            | ToDataplane::Tell { ask, .. }
            | ToDataplane::Status { ask, .. } => ask,
            _ => return,
        };
        let why = "no".to_owned();
        // What is handed over at the start has no number, and no answer.
        match (ask, refuses) {
            (0, _) => {}
            (_, false) => self.say(&FromDataplane::Done { ask }),
            (_, true) => self.say(&FromDataplane::Refused { ask, errno: 16, why }),
        }
    }

    fn count(&self, only: Option<u16>) {
        if only.is_none() {
            self.say(&FromDataplane::Worker { number: 0, waits: Waits::default() });
        }
        let most = u64::MAX;
        for slot in self.slots.iter().filter(|s| only.is_none_or(|o| o == **s)) {
            let stats = Stats {
                rx_bytes: most,
                drops: [most; Reason::COUNT],
                flows: Some(Flows::default()),
                ..Stats::default()
            };
            self.say(&FromDataplane::Stats { slot: *slot, stats: Box::new(stats), up: true });
        }
    }

    /// A turn of the supervisor's. False: it would end.
    fn turn(&mut self) -> bool {
        let goes_on = self.supervisor.turn(self.now);
        if !self.supervisor.has_dataplane() {
            self.dataplane = None;
            self.told.clear();
        }
        while let Some(Ok(Some(m))) = self.dataplane.as_ref().map(|d| d.recv(16, Some(Duration::ZERO))) {
            let message = codec::decode(&m.bytes).expect("no message");
            if let ToDataplane::Plan(plan) = &message {
                makes_sense(plan);
                self.slots = (0..).zip(&plan.ports).filter(|(_, p)| p.is_some()).map(|(n, _)| n).collect();
            }
            self.told.push_back(message);
        }
        makes_sense(&self.supervisor.plan());
        self.clients.iter_mut().for_each(Client::hear);
        goes_on
    }
}

fn piece(slot: u16) -> FromDataplane {
    FromDataplane::Piece { slot, piece: Piece::Region(Layout { gpa: 0, uva: u64::MAX, len: 1, offset: 0 }) }
}

/// Wires join ports that are there, each on one wire at most.
fn makes_sense(plan: &Plan) {
    let is = |n: u16| plan.ports.get(usize::from(n)).is_some_and(Option::is_some);
    let mut ends = BTreeSet::new();
    for w in &plan.wires {
        assert!(is(w.netdev) && is(w.device), "a wire to nowhere");
        assert!(ends.insert(w.netdev) && ends.insert(w.device), "two wires at one port");
    }
    assert!(plan.down.iter().all(|n| is(*n)), "a link of no port");
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, steps)) = data.split_first() else { return };
    let mut w = World::new(kind & 1 != 0);
    let mut goes_on = true;
    for step in steps.chunks_exact(4).take(200) {
        let [what, a, b, c] = *step else { continue };
        match what % 8 {
            0 if w.supervisor.wants_dataplane() => w.dataplane = Some(w.supervisor.start().unwrap()),
            0 if a == 0xff => w.dataplane = None,
            0 | 1 => (0..=a % 8).for_each(|_| w.obey(b == 0xff)),
            2 => w.lie([a, b, c]),
            3 => {
                let body = steps.get(usize::from(a)..).unwrap_or_default();
                let body = &body[..body.len().min(usize::from(b))];
                let mut bytes = codec::encode(Header { kind: KIND, sequence: 0, fds: 0 }, &()).unwrap();
                bytes[12..14].copy_from_slice(&(body.len() as u16).to_le_bytes());
                bytes.extend(body);
                let _full = w.dataplane.as_ref().map(|d| d.send(&bytes, &[]));
            }
            4 | 5 => w.asks(usize::from(what & 1), [a, b, c]),
            6 => w.now += Duration::from_millis(u64::from(a) * 8),
            _ => {}
        }
        goes_on = w.turn();
        if !goes_on {
            break;
        }
    }
    // Whoever asked is answered, at the latest when there is nobody who could do it.
    if goes_on {
        w.dataplane = None;
        for _ in 0..100 {
            w.now += Duration::from_secs(2);
            if !w.turn() {
                return;
            }
        }
        assert!(w.clients.iter().all(|c| c.answered == c.asked), "questions without an answer");
    }
    while listener().accept().is_ok() {}
});
