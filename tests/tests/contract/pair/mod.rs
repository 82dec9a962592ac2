//! A netdev and a device on a wire of a `netreeve` of their own, and what each pair is asked to do.

mod counters;
mod ends;
mod floods;
mod sizes;

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use netreeve_tests::proc::Proc;
use netreeve_tests::scene::{Scene, USER};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde_json::Value;

use crate::far::{Far, PATIENCE, Put, Stack, Take, is_anothers};
use crate::frames::{self, PROBE, TELLS, frame};
use crate::stand::{Place, Stand};
use crate::table::Row;

/// Frames that show that a way is open and keeps its order.
const FEW: u32 = 20;
const NAP: Duration = Duration::from_micros(100);

/// A direction, by whose far end puts the frames in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Netdev,
    Device,
}

use Side::{Device, Netdev};

impl Side {
    fn other(self) -> Self {
        if self == Netdev { Device } else { Netdev }
    }

    fn is_netdev(self) -> bool {
        self == Netdev
    }

    /// The port's name on the command line.
    fn id(self) -> &'static str {
        if self == Netdev { "n0" } else { "vm" }
    }
}

/// One end of the wire.
struct End<'a> {
    row: &'static Row,
    stand: Stand<'a>,
    far: Option<Box<dyn Far>>,
}

/// A run.
pub(crate) struct Pair<'a> {
    netdev: End<'a>,
    device: End<'a>,
    /// The host's port that guests behind a `user` network talk with.
    server: Option<u16>,
    proc: Proc,
    place: Place<'a>,
    dataplane: i32,
    restarts: usize,
    /// The number of the check that is under way.
    check: u32,
}

/// A deadline for whatever makes no progress.
struct Until(Instant);

impl Until {
    fn new() -> Self {
        Self(Instant::now() + PATIENCE)
    }

    /// `what` did not happen yet.
    fn nap(&self, what: impl FnOnce() -> String) {
        assert!(Instant::now() < self.0, "{}: not within {PATIENCE:?}", what());
        std::thread::sleep(NAP);
    }
}

/// Starts `netreeve` with both sides. Gives its pid's owner and what it said when it was ready.
fn launch(scene: &Scene, netdev: &mut Stand<'_>, device: &mut Stand<'_>) -> (Proc, Value) {
    /// So that nobody else's child inherits what one is to inherit.
    static STARTS: Mutex<()> = Mutex::new(());
    let socket = scene.helper_socket();
    let mut words: Vec<String> = ["run", "--json", "--helper-socket"].map(str::to_owned).into();
    words.push(socket.to_str().unwrap().to_owned());
    let netdevs = netdev.beside.iter().cloned().chain([format!("{},id=n0", netdev.port)]);
    words.extend(netdevs.flat_map(|n| ["--netdev".to_owned(), n]));
    words.extend(["--device".to_owned(), format!("{},id=vm,netdev=n0", device.port)]);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let inherits: Vec<OwnedFd> = netdev.inherits.drain(..).chain(device.inherits.drain(..)).collect();
    let proc = {
        let _alone = STARTS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for fd in &inherits {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
        }
        let proc = scene.host.spawn("netreeve", scene.netreeve(&words)).unwrap();
        drop(inherits);
        proc
    };
    let ready = proc.wait_for("\"ready\"", PATIENCE).unwrap_or_else(|e| panic!("{words:?}: {e}"));
    let ready: Value = serde_json::from_str(&ready.text).unwrap();
    assert_eq!(ready["sandbox"], "full");
    (proc, ready)
}

impl<'a> Pair<'a> {
    /// Starts `netreeve` with both, and meets it at both ends.
    pub(crate) fn start(scene: &'a Scene, number: u16, rows: (&'static Row, &'static Row)) -> Self {
        let dir = scene.path(&number.to_string());
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        chown(&dir, Some(USER), Some(USER)).unwrap();
        let place = Place { scene, dir, number };
        let stand = |row: &Row| (row.stand)(&place, row.options);
        let (mut netdev, mut device) = (stand(rows.0), stand(rows.1));
        let (proc, ready) = launch(scene, &mut netdev, &mut device);
        let server = netdev.server;
        let end = |row, stand| End { row, stand, far: None };
        let mut pair = Self {
            netdev: end(rows.0, netdev),
            device: end(rows.1, device),
            server,
            proc,
            place,
            dataplane: ready["dataplane"].as_i64().unwrap() as i32,
            restarts: 0,
            check: 0,
        };
        pair.meet(Netdev);
        pair.meet(Device);
        pair.settle();
        pair
    }

    fn end(&mut self, of: Side) -> &mut End<'a> {
        if of == Netdev { &mut self.netdev } else { &mut self.device }
    }

    fn row(&self, of: Side) -> &'static Row {
        if of == Netdev { self.netdev.row } else { self.device.row }
    }

    fn far(&mut self, of: Side) -> &mut dyn Far {
        self.end(of).far.as_mut().expect("its far end is there").as_mut()
    }

    /// For messages: the port and its side.
    fn who(&self, of: Side) -> String {
        let role = if of == Netdev { "netdev" } else { "device" };
        format!("{role} '{}'", self.row(of).name())
    }

    /// For messages: the direction.
    fn way(&self, from: Side) -> String {
        format!("{} → {}", self.who(from), self.who(from.other()))
    }

    /// A far end, a new one if there was one.
    fn meet(&mut self, of: Side) {
        let server = self.server.filter(|_| of == Device);
        let end = self.end(of);
        end.far = None;
        let far = (end.stand.meet)();
        end.far = Some(match server {
            Some(port) => Box::new(Stack::new(far, port)),
            None => far,
        });
    }

    /// The next frame that is not of a probe or of the product's own.
    fn take(&mut self, at: Side) -> Take {
        loop {
            match self.far(at).take() {
                Take::Frame(f) if is_anothers(&f) => {}
                Take::Frame(f) if frames::read(&f).is_some_and(|(check, _)| check == PROBE) => {}
                other => return other,
            }
        }
    }

    fn send(&mut self, from: Side, f: &[u8]) {
        let until = Until::new();
        loop {
            match self.far(from).put(f) {
                Put::Gone => return,
                Put::Full => until.nap(|| format!("{}: room for {} bytes", self.way(from), f.len())),
                other => panic!("{}: {} bytes cannot be put in: {other:?}", self.way(from), f.len()),
            }
        }
    }

    fn expect(&mut self, from: Side, want: &[u8]) {
        let is = |f: &[u8]| format!("{} bytes, check and number {:?}", f.len(), frames::read(f));
        let until = Until::new();
        loop {
            self.far(from).go_on();
            match self.take(from.other()) {
                Take::Frame(got) if got == want => return,
                Take::Frame(got) => {
                    panic!("{}: there came a frame of {}, not of {}", self.way(from), is(&got), is(want));
                }
                Take::Nothing => until.nap(|| format!("{}: the frame of {}", self.way(from), is(want))),
                Take::End => {
                    panic!("{}: its connection ended before the frame of {}", self.way(from), is(want))
                }
            }
        }
    }

    /// Sends until something arrives: before, nobody may be there yet.
    fn open(&mut self, from: Side) {
        /// Of the numbers of probes.
        static NEXT: AtomicU32 = AtomicU32::new(1 << 16);
        let until = Until::new();
        let mut due = Instant::now();
        let first = NEXT.fetch_add(1 << 16, Ordering::Relaxed);
        let mut n = first;
        loop {
            if due <= Instant::now() {
                let probe = frame(PROBE, n, 60, from.is_netdev());
                if self.far(from).put(&probe) == Put::Gone {
                    n = n.wrapping_add(1);
                }
                due = Instant::now() + Duration::from_millis(5);
            }
            match self.far(from.other()).take() {
                Take::Frame(f)
                    if frames::read(&f).is_some_and(|(c, k)| c == PROBE && (first..n).contains(&k)) =>
                {
                    return;
                }
                Take::Frame(_) => {}
                Take::Nothing => {
                    until.nap(|| format!("{}: any of {} probes", self.way(from), n.wrapping_sub(first)));
                }
                Take::End => panic!("{}: its connection ended before any probe came", self.way(from)),
            }
        }
    }

    /// Both ways are open, and nothing is on its way any more.
    fn settle(&mut self) {
        for from in [Device, Netdev] {
            self.open(from);
            let check = self.next_check();
            let last = frame(check, 0, 60, from.is_netdev());
            self.send(from, &last);
            self.expect(from, &last);
        }
    }

    fn next_check(&mut self) -> u32 {
        self.check += 1;
        self.check
    }

    /// A few frames each way, one after the other and at once.
    pub(crate) fn exchange(&mut self) {
        for from in [Device, Netdev] {
            let check = self.next_check();
            let all: Vec<_> =
                (0..FEW).map(|n| frame(check, n, TELLS + 60 * n as usize, from.is_netdev())).collect();
            for some in all.chunks(4) {
                some.iter().for_each(|f| self.send(from, f));
                some.iter().for_each(|f| self.expect(from, f));
            }
        }
    }

    /// What it said last, and its counters, for whoever reads of a failure.
    pub(crate) fn said(&self) -> String {
        let lines: Vec<String> = self.proc.lines().into_iter().map(|l| l.text).collect();
        let is_port = |l: &&String| l.starts_with("netreeve: port") && l.contains("rx");
        let counters = lines.iter().filter(is_port).rev().take(2);
        let plain = lines.iter().filter(|l| !is_port(l) && !l.starts_with("netreeve: worker"));
        let plain = plain.filter(|l| !l.contains("\"event\":\"stats\"")).rev().take(8);
        counters.chain(plain).map(|l| format!("    {}\n", l.chars().take(300).collect::<String>())).collect()
    }
}
