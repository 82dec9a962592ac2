//! The dataplane's life: take over the descriptors, build the lanes, lock in, run.
//!
//! Order (the sandbox's theory of operation says why): plan and descriptors arrive → walls → ports open, memory and
//! rings are made → seal → *ready* is said → the first untrusted byte is read.
//!
//! Trust: the supervisor is trusted before the seal and bounded after it. Promise: every descriptor that arrives is
//! owned at once; what cannot be built is one clear sentence to the supervisor and a clean exit.
#![forbid(unsafe_code)]

use std::io;
use std::num::NonZero;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use netreeve_shared::channel::{Channel, MAX_FDS};
use netreeve_shared::codec::{self, Header, kind};

use crate::handover::{FromDataplane, Level, Plan, PortPlan, ToDataplane, Wire};
use crate::lane::{Lane, Side};
use crate::port::{self, Change, Left, OpenError, Piece, Queues};
use crate::sandbox::call::{Call, Cond};
use crate::sandbox::seccomp::LOCKS;
use crate::sandbox::{self, Needs};
use crate::stats::Stats;
use crate::worker::{Floor, Outside, Seat, Seated, Worker};

/// Kind of the messages in both directions.
pub const KIND: u16 = kind::PRIVATE;

/// What the engine, the lanes and the worker call once locked in, beside the sandbox's core.
pub const CALLS: &[Call] = &[
    // std's own check before it closes a descriptor, in debug builds (F_GETFD).
    Call::only(libc::SYS_fcntl, &[Cond::is(1, 1)]),
    // From the supervisor and to it, with descriptors.
    Call::any(libc::SYS_recvmsg),
    Call::any(libc::SYS_sendmsg),
];

/// Descriptors that may come or be made later: connections, guest memory (64 regions), two or three eventfds a ring.
const MORE_FDS: u64 = 1024;

/// Bytes of a worker's stack: nothing in a turn recurses, and batches live on the heap.
const STACK: usize = 256 * 1024;

/// What went wrong before the first frame.
#[derive(Debug)]
struct Trouble {
    slot: Option<u16>,
    errno: i32,
    why: String,
}

impl Trouble {
    fn new(why: impl Into<String>) -> Self {
        Self { slot: None, errno: 0, why: why.into() }
    }

    fn io(what: &str, e: &io::Error) -> Self {
        Self { slot: None, errno: e.raw_os_error().unwrap_or(0), why: format!("{what}: {e}") }
    }

    fn open(slot: u16, e: &OpenError) -> Self {
        let errno = e.source.as_ref().and_then(io::Error::raw_os_error).unwrap_or(0);
        Self { slot: Some(slot), errno, why: e.to_string() }
    }
}

/// The two ends of the hand-over as the dataplane sees them.
struct Link {
    channel: Channel,
    sequence: u32,
}

impl Link {
    fn say(&mut self, m: &FromDataplane) -> io::Result<()> {
        self.say_with(m, &[])
    }

    fn say_with(&mut self, m: &FromDataplane, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let count = u16::try_from(fds.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let head = Header { kind: KIND, sequence: self.sequence, fds: count };
        let bytes = codec::encode(head, m).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.channel.send(&bytes, fds)
    }

    /// The next message with its descriptors; none if none waits (`wait` over) or the supervisor is gone (an error).
    fn hear(&self, wait: Option<Duration>) -> io::Result<Option<(ToDataplane, Vec<OwnedFd>)>> {
        let m = match self.channel.recv(MAX_FDS, wait) {
            Ok(Some(m)) => m,
            Ok(None) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(e),
        };
        let bad = |_| io::Error::from(io::ErrorKind::InvalidData);
        let head = codec::header(&m.bytes, m.fds.len()).map_err(bad)?;
        if head.kind != KIND {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Some((codec::decode(&m.bytes).map_err(bad)?, m.fds)))
    }
}

/// Runs a dataplane on the channel at descriptor 3 until the supervisor ends it. The process's exit code.
#[must_use]
pub fn main() -> u8 {
    let Ok(channel) = Channel::inherited() else { return 64 };
    // A supervisor that does not read must not hold up the data path.
    let _ = channel.set_nonblocking(true);
    let mut link = Link { channel, sequence: 0 };
    match start(&mut link) {
        Ok(ready) => match ready.run(link) {
            Ok(()) => 0,
            Err(_) => 1,
        },
        Err(t) => {
            let why = t.why.chars().take(512).collect();
            let said = link.say(&FromDataplane::Failed { slot: t.slot, errno: t.errno, why });
            if said.is_ok() { 69 } else { 1 }
        }
    }
}

/// A built and locked-in dataplane.
struct Ready {
    floor: Arc<Floor>,
    first: Worker,
    level: Level,
    ports: usize,
    left: Vec<Left>,
}

impl Ready {
    fn run(mut self, mut link: Link) -> io::Result<()> {
        link.say(&FromDataplane::Ready { level: self.level })?;
        let mut engine = Engine { link, ports: self.ports, told: vec![false; self.ports] };
        for (slot, left) in (0u16..).zip(std::mem::take(&mut self.left)) {
            if !left.is_empty() {
                engine.inherit(&self.floor, slot, left);
            }
        }
        (1..self.floor.workers()).for_each(|w| self.floor.ring(w));
        let end = self.first.run(&self.floor, Some(&mut engine));
        self.floor.close();
        end
    }
}

fn start(link: &mut Link) -> Result<Ready, Trouble> {
    let Handed { plan, fds, left } = gather(link)?;
    // Asked for before the walls: inside, the kernel's answer cannot be read.
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let walls = if plan.run.sandbox_off {
        None
    } else {
        let ours = [link.channel.as_fd().as_raw_fd()];
        let inherited = left.iter().flatten().flat_map(|(_, fds)| fds);
        let keep: Vec<RawFd> =
            fds.iter().flatten().chain(inherited).map(AsRawFd::as_raw_fd).chain(ours).collect();
        let needs = Needs { at_least: plan.run.at_least, keep: &keep, more_fds: MORE_FDS };
        Some(sandbox::walls(&needs).map_err(|e| Trouble::new(e.to_string()))?)
    };
    let ports = plan.ports.len();
    let (lanes, mut calls) = build(&plan, fds)?;
    let workers = workers(plan.run.workers.into(), &lanes, processors);
    if workers > 1 {
        calls.push(LOCKS);
    }
    let floor = Floor::new(lanes, workers).map_err(|e| Trouble::io("the workers' bells", &e))?;
    let (floor, first) = hire(floor, Duration::from_micros(plan.run.busy_poll_us.into()))?;
    let level = match walls {
        None => Level::Off,
        Some(w) => w.seal(&calls).map_err(|e| Trouble::new(e.to_string()))?,
    };
    Ok(Ready { floor, first, level, ports, left })
}

/// How many workers there are to be: never more than lanes, which would leave some without work.
fn workers(asked: usize, lanes: &[Seated], processors: usize) -> usize {
    let of_wire = |s: &Seated| lanes.iter().filter(|o| o.slots == s.slots).count();
    let widest = lanes.iter().map(of_wire).max().unwrap_or(1);
    let wanted = if asked > 0 { asked } else { widest.min(processors) };
    wanted.clamp(1, lanes.len().max(1))
}

/// Starts the workers but the first, and waits until each runs: they wait for their bells.
fn hire(floor: Floor, busy_poll: Duration) -> Result<(Arc<Floor>, Worker), Trouble> {
    let floor = Arc::new(floor);
    let worker = |me| Worker::new(&floor, me, busy_poll).map_err(|e| Trouble::io("epoll", &e));
    let here = Arc::new(Barrier::new(floor.workers()));
    for me in 1..floor.workers() {
        let (w, floor, here) = (worker(me)?, floor.clone(), here.clone());
        let life = move || {
            here.wait();
            w.follow(&floor);
        };
        let thread = std::thread::Builder::new().name(format!("worker-{me}")).stack_size(STACK).spawn(life);
        thread.map_err(|e| Trouble::io("starting a worker's thread", &e))?;
    }
    here.wait();
    let first = worker(0)?;
    Ok((floor, first))
}

/// What the supervisor handed over.
struct Handed {
    plan: Plan,
    /// Each slot's descriptors.
    fds: Vec<Vec<OwnedFd>>,
    /// What the dataplane before left of each slot.
    left: Vec<Left>,
}

fn gather(link: &Link) -> Result<Handed, Trouble> {
    let hear = || match link.hear(None) {
        Ok(Some(m)) => Ok(m),
        Ok(None) => Err(Trouble::new("the supervisor said nothing")),
        Err(e) => Err(Trouble::io("reading the plan", &e)),
    };
    let (ToDataplane::Plan(plan), _) = hear()? else {
        return Err(Trouble::new("the first message is not a plan"));
    };
    let mut slots: Vec<Vec<OwnedFd>> = plan.ports.iter().map(|_| Vec::new()).collect();
    let mut left: Vec<Left> = plan.ports.iter().map(|_| Vec::new()).collect();
    loop {
        match hear()? {
            (ToDataplane::Fds { slot }, fds) => {
                let to = slots.get_mut(usize::from(slot)).ok_or_else(|| Trouble::new("no such slot"))?;
                to.extend(fds);
            }
            (ToDataplane::Inherit { slot, piece }, fds) => {
                let to = left.get_mut(usize::from(slot)).ok_or_else(|| Trouble::new("no such slot"))?;
                to.push((piece, fds));
            }
            (ToDataplane::Begin, _) => return Ok(Handed { plan, fds: slots, left }),
            _ => return Err(Trouble::new("unexpected message before begin")),
        }
    }
}

/// Opens a port: its queues and the system calls they need.
fn open(plan: &PortPlan, fds: Vec<OwnedFd>) -> Result<(Queues, &'static [Call]), OpenError> {
    Ok(match plan {
        PortPlan::Tap(p) => (port::tap::open(p, fds)?, port::tap::CALLS),
        PortPlan::Xsk(p) => (port::xsk::open(p, fds)?, port::xsk::CALLS),
        PortPlan::VhostUser(p) => (port::vhost_user::open(p, fds)?, port::vhost_user::CALLS),
        PortPlan::Stream(p) => (port::stream::open(p, fds)?, port::stream::CALLS),
        PortPlan::Dgram(p) => (port::dgram::open(p, fds)?, port::dgram::CALLS),
    })
}

fn build(plan: &Plan, fds: Vec<Vec<OwnedFd>>) -> Result<(Vec<Seated>, Vec<&'static [Call]>), Trouble> {
    let mut calls = vec![CALLS];
    let mut ports = Vec::new();
    for (slot, (p, fds)) in (0u16..).zip(plan.ports.iter().zip(fds)) {
        let (queues, c) = open(p, fds).map_err(|e| Trouble::open(slot, &e))?;
        calls.push(c);
        ports.push(Some(queues));
    }
    let mut lanes = Vec::new();
    for w in &plan.wires {
        let mut take = |slot: u16| {
            let p = ports.get_mut(usize::from(slot)).and_then(Option::take);
            p.ok_or_else(|| Trouble { slot: Some(slot), errno: 0, why: "a port is on one wire".into() })
        };
        let (netdev, device) = (take(w.netdev)?, take(w.device)?);
        lanes.extend(wire(w, netdev, device)?);
    }
    Ok((lanes, calls))
}

/// The lanes of one wire.
fn wire(w: &Wire, netdev: Queues, device: Queues) -> Result<Vec<Seated>, Trouble> {
    if netdev.len() != device.len() {
        let why = format!("queues differ: the netdev has {}, the device {}", netdev.len(), device.len());
        return Err(Trouble { slot: Some(w.device), errno: 0, why });
    }
    let mut lanes = Vec::new();
    for (n, d) in netdev.into_iter().zip(device) {
        let lane = Lane::new(n, d, w.lock_mac).map_err(|e| Trouble::io("memory for a lane", &e))?;
        lanes.push(Seated { lane, slots: (w.netdev, w.device) });
    }
    Ok(lanes)
}

/// What stands between the worker and the supervisor.
struct Engine {
    link: Link,
    ports: usize,
    /// Slots of which the supervisor knows that what it keeps is no longer true.
    told: Vec<bool>,
}

impl Engine {
    fn connect(&mut self, floor: &Floor, slot: u16, fds: Vec<OwnedFd>) {
        let (Some(fd), Some(seat)) = (fds.into_iter().next(), floor.seat(slot)) else { return };
        let result = floor.change(0, seat, |l| {
            let change = l.connect(seat.side, fd)?;
            l.set_dead(seat.side, false);
            Ok(change)
        });
        match result {
            Ok(change) if change == Change::default() => {}
            Ok(change) => self.changed(slot, change),
            Err(e) => self.died(slot, &e),
        }
    }

    /// Goes on where the dataplane before was killed; if that cannot be, the peer has to come again.
    fn inherit(&mut self, floor: &Floor, slot: u16, left: Left) {
        let Some(seat) = floor.seat(slot) else { return };
        if let Ok(change) = floor.change(0, seat, |l| l.inherit(seat.side, left)) {
            self.changed(slot, change);
        } else {
            let _ = self.unsettled(slot);
            self.changed(slot, Change { redial: true, ..Change::default() });
        }
    }

    /// Gives the supervisor what it keeps of a slot. What it does not take now, it asks for again.
    fn keep(&mut self, floor: &Floor, slot: u16) {
        if let Some(told) = self.told.get_mut(usize::from(slot)) {
            *told = false;
        }
        let Some(seat) = floor.seat(slot) else { return };
        let link = &mut self.link;
        let mut keep =
            |piece: Piece, fds: &[BorrowedFd<'_>]| link.say_with(&FromDataplane::Piece { slot, piece }, fds);
        let whole = floor.visit(seat.lane, |l| l.estate(seat.side, &mut keep).unwrap_or(false));
        let _ = self.link.say(&FromDataplane::Kept { slot, whole: whole.unwrap_or(false) });
    }

    fn stats(&mut self, floor: &Floor) -> io::Result<()> {
        match self.say_stats(floor) {
            // It does not read now, and asks again if it wants to.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            said => said,
        }
    }

    fn say_stats(&mut self, floor: &Floor) -> io::Result<()> {
        for (number, waits) in (0u16..).zip(floor.waits()) {
            self.link.say(&FromDataplane::Worker { number, waits })?;
        }
        for slot in (0u16..).take(self.ports) {
            let mut sum = Stats::default();
            let mut up = false;
            for lane in 0..floor.len() {
                for side in [Side::Netdev, Side::Device] {
                    if floor.slot(Seat { lane, side }) != Some(slot) {
                        continue;
                    }
                    let seen = floor.visit(lane, |l| (l.stats(side), l.is_up(side)));
                    sum.add(&seen.map_or_else(Stats::default, |s| s.0));
                    up |= seen.is_some_and(|s| s.1);
                }
            }
            self.link.say(&FromDataplane::Stats { slot, stats: sum, up })?;
        }
        Ok(())
    }
}

impl Outside for Engine {
    fn fd(&self) -> RawFd {
        self.link.channel.as_fd().as_raw_fd()
    }

    fn message(&mut self, floor: &Floor) -> io::Result<bool> {
        let Some((message, fds)) = self.link.hear(Some(Duration::ZERO))? else { return Ok(true) };
        match message {
            ToDataplane::Fds { slot } => self.connect(floor, slot, fds),
            ToDataplane::Stats => self.stats(floor)?,
            ToDataplane::Quit => return Ok(false),
            ToDataplane::Keep { slot } => self.keep(floor, slot),
            ToDataplane::Plan(_) | ToDataplane::Begin | ToDataplane::Inherit { .. } => {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        Ok(true)
    }

    fn unsettled(&mut self, slot: u16) -> bool {
        // A word of the peer's that is read before the supervisor knows could be lost with us.
        let Some(told) = self.told.get_mut(usize::from(slot)).filter(|told| !**told) else { return true };
        *told = self.link.say(&FromDataplane::Unsettled { slot }).is_ok();
        *told
    }

    fn changed(&mut self, slot: u16, change: Change) {
        // A supervisor that does not read is found out by its own death; the data path never waits for it.
        if let Some(up) = change.link {
            let _ = self.link.say(&FromDataplane::Link { slot, up });
        }
        if change.redial {
            let _ = self.link.say(&FromDataplane::Redial { slot });
        }
    }

    fn died(&mut self, slot: u16, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or(0);
        let _ = self.link.say(&FromDataplane::Dead { slot, errno });
    }
}
