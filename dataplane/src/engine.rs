//! The dataplane's life: take over the descriptors, build the lanes, lock in, run.
//!
//! Order (the sandbox's theory of operation says why): plan and descriptors arrive → walls → ports open, memory and
//! rings are made → seal → *ready* is said → the first untrusted byte is read.
//!
//! Trust: the supervisor is trusted before the seal and bounded after it. Promise: every descriptor that arrives is
//! owned at once; what cannot be built is one clear sentence to the supervisor and a clean exit.
#![forbid(unsafe_code)]

mod answers;
mod changes;
mod ends;
mod filters;
pub mod kinds;
mod link;
mod trouble;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::num::NonZero;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use netreeve_shared::channel::Channel;
use netreeve_shared::codec::kind;
use netreeve_shared::mac::Mac;

use crate::handover::{FromDataplane, Level, Plan, ToDataplane, Wire};
use crate::lane::Lane;
use crate::port::absent::Absent;
use crate::port::hub::Hubs;
use crate::port::{Change, Left, Piece, Port, Queues};
use crate::sandbox::call::{Call, Cond};
use crate::sandbox::seccomp::{CHANNEL, LOCKS};
use crate::sandbox::{self, Needs};
use crate::stage::aside::Asides;
use crate::worker::{Floor, NOBODY, Outside, Seated, Worker};
use changes::Changes;
use ends::Ends;
use link::Link;
use trouble::Trouble;

/// Kind of the messages in both directions.
pub const KIND: u16 = kind::PRIVATE;

/// What the engine, the lanes and the worker call once locked in, beside the sandbox's core.
pub const CALLS: &[Call] = &[
    // std's own check before it closes a descriptor, in debug builds (F_GETFD).
    Call::only(libc::SYS_fcntl, &[Cond::is(1, 1)]),
    // From the supervisor and to it, with descriptors.
    Call::any(libc::SYS_recvmsg),
    // Nothing else is sent by it: a message can name whom it goes to, where no filter sees it.
    Call::only(libc::SYS_sendmsg, &[Cond::is(0, CHANNEL)]),
];

/// Descriptors that may come or be made later: connections, guest memory (64 regions), two or three eventfds a ring.
const MORE_FDS: u64 = 1024;

/// Those that there may be where ports may come later.
const LATER_FDS: u64 = 4 * MORE_FDS;

/// Bytes of a worker's stack: nothing in a turn recurses, and batches live on the heap.
const STACK: usize = 256 * 1024;

/// Runs a dataplane on the channel at descriptor 3 until the supervisor ends it. The process's exit code.
#[must_use]
pub fn main() -> u8 {
    let Ok(channel) = Channel::inherited() else { return 64 };
    // A supervisor that does not read must not hold up the data path.
    let _ = channel.set_nonblocking(true);
    let mut link = Link::new(channel);
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
    changes: Changes,
    asides: Asides,
    left: Vec<Left>,
}

impl Ready {
    fn run(mut self, mut link: Link) -> io::Result<()> {
        link.say(&FromDataplane::Ready { level: self.level })?;
        let mut engine = Engine {
            link,
            changes: self.changes,
            asides: self.asides,
            told: BTreeSet::new(),
            floor: self.floor.clone(),
            ends: Ends::default(),
        };
        for (slot, left) in (0u16..).zip(std::mem::take(&mut self.left)) {
            if !left.is_empty() {
                engine.inherit(&self.floor, slot, left);
            }
        }
        (0..NOBODY)
            .filter(|s| engine.changes.uses(*s))
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|s| engine.look(s));
        (1..self.floor.workers()).for_each(|w| self.floor.ring(w));
        let end = self.first.run(&self.floor, Some(&mut engine));
        self.floor.close();
        end
    }
}

fn start(link: &mut Link) -> Result<Ready, Trouble> {
    let Handed { plan, fds, left, filters } = gather(link)?;
    // Asked for before the walls: inside, the kernel's answer cannot be read.
    let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
    let beyond = kinds::beyond(&plan, &fds).map_err(Trouble::new)?;
    let walls = if plan.run.sandbox_off {
        None
    } else {
        let ours = [link.channel.as_fd().as_raw_fd()];
        let inherited = left.iter().flatten().flat_map(|(_, fds)| fds);
        let of_filters = filters.iter().flat_map(|f| &f.fds);
        let all = fds.iter().flatten().chain(inherited).chain(of_filters);
        let keep: Vec<RawFd> = all.map(AsRawFd::as_raw_fd).chain(ours).collect();
        let more_fds = beyond.fds + if plan.later.is_empty() { MORE_FDS } else { LATER_FDS };
        let (sockets, binds, files) = (beyond.sockets(), beyond.binds, beyond.files);
        let needs = Needs { at_least: plan.run.at_least, keep: &keep, more_fds, sockets, binds, files };
        Some(sandbox::walls(&needs).map_err(|e| Trouble::new(e.to_string()))?)
    };
    let mut calls = vec![CALLS];
    calls.extend(kinds::of_plan(&plan));
    let mut hubs = Hubs::default();
    let mut asides = Asides::default();
    let lanes = build(&plan, fds, filters, &mut hubs, &mut asides)?;
    let workers = workers(plan.run.workers.into(), &lanes, processors);
    if workers > 1 {
        calls.push(LOCKS);
    }
    let floor = Floor::new(lanes, workers).map_err(|e| Trouble::io("the workers' bells", &e))?;
    for slot in floor.lonely() {
        // A guest whose port has no peer sees that from the beginning.
        let _ = floor.set_link(slot, true);
    }
    for slot in &plan.down {
        floor
            .set_link(*slot, false)
            .map_err(|_| Trouble::new("a link is down of a port that is not there"))?;
    }
    let used = (0u16..).zip(&plan.ports).filter(|(_, p)| p.is_some()).map(|(slot, _)| slot);
    let changes = Changes::new(&plan.later, hubs, used);
    let (floor, first) = hire(floor, Duration::from_micros(plan.run.busy_poll_us.into()))?;
    let level = match walls {
        None => Level::Off,
        Some(w) => w.seal(&calls).map_err(|e| Trouble::new(e.to_string()))?,
    };
    Ok(Ready { floor, first, level, changes, asides, left })
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
    filters: Vec<filters::Handed>,
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
    let mut filters = Vec::new();
    loop {
        match hear()? {
            (ToDataplane::Filter { slot, filter: number, before, plan, .. }, fds) => {
                filters.push(filters::Handed { slot, number, before, plan, fds });
            }
            (ToDataplane::Fds { slot }, fds) => {
                let to = slots.get_mut(usize::from(slot)).ok_or_else(|| Trouble::new("no such slot"))?;
                to.extend(fds);
            }
            (ToDataplane::Inherit { slot, piece }, fds) => {
                let to = left.get_mut(usize::from(slot)).ok_or_else(|| Trouble::new("no such slot"))?;
                to.push((piece, fds));
            }
            (ToDataplane::Begin, _) => return Ok(Handed { plan, fds: slots, left, filters }),
            _ => return Err(Trouble::new("unexpected message before begin")),
        }
    }
}

/// Lanes of all ports: wires, and ports without peers.
fn build(
    plan: &Plan,
    fds: Vec<Vec<OwnedFd>>,
    filters: Vec<filters::Handed>,
    hubs: &mut Hubs,
    asides: &mut Asides,
) -> Result<Vec<Seated>, Trouble> {
    let mut ports = Vec::new();
    let mut facing = BTreeMap::new();
    for (slot, (p, fds)) in (0u16..).zip(plan.ports.iter().zip(fds)) {
        let opened = p.as_ref().map(|p| kinds::open(p, fds, hubs).map_err(|e| Trouble::open(slot, &e)));
        ports.push(opened.transpose()?);
    }
    for f in filters {
        let slot = f.slot;
        let queues = ports.get_mut(usize::from(slot)).and_then(Option::as_mut);
        let queues = queues.ok_or_else(|| Trouble::new("a filter on no port"))?;
        let faces = f.put(queues, asides);
        facing.extend(faces.map_err(|e| Trouble { slot: Some(slot), ..Trouble::io("a filter", &e) })?);
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
    for (slot, queues) in (0u16..).zip(ports) {
        for port in queues.into_iter().flatten() {
            let faces = facing.remove(&slot).unwrap_or_else(|| Box::<Absent>::default());
            lanes.push(seated(faces, port, None, (NOBODY, slot))?);
        }
    }
    if let Some((slot, _)) = facing.pop_first() {
        return Err(Trouble {
            slot: Some(slot),
            ..Trouble::new("a filter's port has a peer, or is not there")
        });
    }
    Ok(lanes)
}

fn seated(
    netdev: Box<dyn Port>,
    device: Box<dyn Port>,
    lock_mac: Option<Mac>,
    slots: (u16, u16),
) -> Result<Seated, Trouble> {
    let lane = Lane::new(netdev, device, lock_mac).map_err(|e| Trouble::io("memory for a lane", &e))?;
    Ok(Seated { lane, slots })
}

/// The lanes of one wire.
fn wire(w: &Wire, netdev: Queues, device: Queues) -> Result<Vec<Seated>, Trouble> {
    if netdev.len() != device.len() {
        let why = format!("queues differ: the netdev has {}, the device {}", netdev.len(), device.len());
        return Err(Trouble { slot: Some(w.device), errno: 0, why });
    }
    let pairs = netdev.into_iter().zip(device);
    pairs.map(|(n, d)| seated(n, d, w.lock_mac, (w.netdev, w.device))).collect()
}

/// What stands between the worker and the supervisor.
struct Engine {
    link: Link,
    changes: Changes,
    asides: Asides,
    /// Slots of which the supervisor knows that what it keeps is no longer true.
    told: BTreeSet<u16>,
    floor: Arc<Floor>,
    ends: Ends,
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

    /// Nobody is at the far end of a slot any more.
    fn alone(&mut self, floor: &Floor, slot: u16) {
        let Some(seat) = floor.seat(slot) else { return };
        // A port that waits for nobody has nothing to do with it.
        if let Ok(change) = floor.change(0, seat, |l| l.port(seat.side).alone()) {
            self.changed(slot, change);
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
        self.told.remove(&slot);
        let Some(seat) = floor.seat(slot) else { return };
        let link = &mut self.link;
        let mut keep =
            |piece: Piece, fds: &[BorrowedFd<'_>]| link.say_with(&FromDataplane::Piece { slot, piece }, fds);
        let whole = floor.visit(seat.lane, |l| l.estate(seat.side, &mut keep).unwrap_or(false));
        let _ = self.link.say(&FromDataplane::Kept { slot, whole: whole.unwrap_or(false) });
    }

    /// Ports come, go or change places. The answer does not get lost: a supervisor that does not read it is gone.
    fn change(&mut self, floor: &Floor, message: ToDataplane) -> io::Result<()> {
        if let ToDataplane::Remove { slot, .. } = message {
            self.told.remove(&slot);
            self.ends.forget(slot);
            self.asides.forget(slot);
        }
        let removes = matches!(message, ToDataplane::Remove { .. });
        let added = if let ToDataplane::Add { slot, .. } = message { Some(slot) } else { None };
        let answer = self.changes.make(floor, message);
        if removes {
            // The port's filters went with it.
            filters::unface(floor, &mut self.asides);
        }
        match answer {
            Some(answer) => {
                self.link.say(&answer)?;
                added.filter(|slot| self.changes.uses(*slot)).into_iter().for_each(|slot| self.look(slot));
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Says who is at a port's far end, if that is news.
    fn look(&mut self, slot: u16) {
        let Some(seat) = self.floor.seat(slot) else { return };
        let end = self.floor.visit(seat.lane, |l| l.port(seat.side).far_end()).flatten();
        let Some(end) = end.filter(|end| self.ends.is_news(slot, *end, Instant::now())) else { return };
        if self.link.say(&FromDataplane::FarEnd { slot, end }).is_ok() {
            self.ends.told(slot, end);
        }
    }
}

impl Outside for Engine {
    fn fd(&self) -> RawFd {
        self.link.channel.as_fd().as_raw_fd()
    }

    fn message(&mut self, floor: &Floor) -> io::Result<bool> {
        let Some((message, fds)) = self.link.hear(Some(Duration::ZERO))? else { return Ok(true) };
        match message {
            ToDataplane::Fds { slot } if self.changes.uses(slot) => self.connect(floor, slot, fds),
            ToDataplane::Fds { slot } => self.changes.hold(slot, fds),
            ToDataplane::Stats { slot } => self.stats(floor, slot)?,
            ToDataplane::Quit => return Ok(false),
            ToDataplane::Alone { slot } => self.alone(floor, slot),
            ToDataplane::Keep { slot } => self.keep(floor, slot),
            ToDataplane::Filter { ask, slot, filter: number, before, plan } => {
                let handed = filters::Handed { slot, number, before, plan, fds };
                let done = handed.attach(floor, &mut self.asides);
                self.answer(ask, done)?;
            }
            ToDataplane::Unfilter { ask, slot, filter } => {
                let found = filters::detach(floor, &mut self.asides, slot, filter);
                self.answer(ask, if found { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) })?;
            }
            ToDataplane::Status { ask, slot, filter, on } => {
                let found = filters::set_on(floor, slot, filter, on);
                self.answer(ask, if found { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) })?;
            }
            ToDataplane::Tell { ask, slot, what } => {
                let told = floor
                    .seat(slot)
                    .map(|seat| floor.visit(seat.lane, |l| l.port(seat.side).tell(what, fds)));
                let told = told.flatten().unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()));
                self.answer(ask, told)?;
            }
            ToDataplane::Add { .. }
            | ToDataplane::Remove { .. }
            | ToDataplane::Join { .. }
            | ToDataplane::Part { .. }
            | ToDataplane::Link { .. } => self.change(floor, message)?,
            ToDataplane::Plan(_) | ToDataplane::Begin | ToDataplane::Inherit { .. } => {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        Ok(true)
    }

    fn unsettled(&mut self, slot: u16) -> bool {
        // A word of the peer's that is read before the supervisor knows could be lost with us.
        if self.told.contains(&slot) {
            return true;
        }
        let said = self.link.say(&FromDataplane::Unsettled { slot }).is_ok();
        said && self.told.insert(slot)
    }

    fn changed(&mut self, slot: u16, change: Change) {
        // A supervisor that does not read is found out by its own death; the data path never waits for it.
        if let Some(up) = change.link {
            let _ = self.link.say(&FromDataplane::Link { slot, up });
        }
        if change.redial {
            let _ = self.link.say(&FromDataplane::Redial { slot });
        }
        self.look(slot);
    }

    fn died(&mut self, slot: u16, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or(0);
        let _ = self.link.say(&FromDataplane::Dead { slot, errno });
    }
}
