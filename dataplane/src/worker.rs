//! A worker: one thread, one event loop, any number of lanes.
//!
//! Level-triggered epoll. A path (one direction of a lane) is *ready*, *dry* (waits for its giver) or *full* (waits for
//! its taker); a giver is not watched while its path is full, a taker only then. A path that stops being ready is armed
//! (its giver or taker is asked to notify) before events are looked for, and is ready again if that finds work.
//!
//! Every change of descriptors makes a new epoll instance: a VMM keeps its own copies of the eventfds it gave us, so
//! closing ours would not end their registration in the old one.
//!
//! A watched descriptor costs whoever wakes it: the kernel calls back for every frame that a socket or tap finishes,
//! wanted or not. So a lane whose frames keep coming is *busy*: none but its control descriptors are watched, and both
//! its paths are tried in every round, until a round moves nothing. Its descriptors are watched again before anybody
//! sleeps, and level-triggered interest finds what came in between.
//!
//! Promise: no lane waits for another for more than [`BUDGET`] turns each.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, RawFd};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::lane::{Lane, Outcome, Side};
use crate::port::{Change, Interest, Watch};
use crate::sys;

/// Turns of one path before the next lane has its turn.
pub const BUDGET: usize = 4;
/// Rounds that move frames, in a row and without sleep, before a lane is busy: the change costs some system calls.
const STEADY: u8 = 4;
/// Rounds before events are looked for while every lane is busy: only control can wait then.
const UNWATCHED: u8 = 8;
/// Events taken at once.
const EVENTS: usize = 64;
/// The epoll token of the hand-over channel.
const OUTSIDE: u64 = u64::MAX;

/// Who the worker reports to: the engine behind it.
pub trait Outside {
    /// Descriptor to watch for messages.
    fn fd(&self) -> RawFd;

    /// Messages wait. False: end.
    ///
    /// # Errors
    /// The supervisor is gone or broke the protocol.
    fn message(&mut self, lanes: &mut Lanes) -> io::Result<bool>;

    /// A port's control descriptor is about to be served. False: not now; it is still ready at the next look.
    fn unsettled(&mut self, slot: u16) -> bool;

    /// A port changed in a way that others have to know.
    fn changed(&mut self, slot: u16, change: Change);

    /// A port died.
    fn died(&mut self, slot: u16, error: &io::Error);
}

/// Where a port sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    /// Lane.
    pub lane: usize,
    /// End of it.
    pub side: Side,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Ready,
    Dry,
    Full,
}

/// How a path stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Stand {
    state: State,
    /// Whoever it waits for was asked to notify.
    armed: bool,
}

impl Stand {
    const READY: Self = Self { state: State::Ready, armed: false };
}

/// A lane and how its two paths stand.
pub struct Seated {
    /// The lane.
    pub lane: Lane,
    /// Slots of its netdev and its device in the hand-over.
    pub slots: (u16, u16),
    from_netdev: Stand,
    from_device: Stand,
    /// Rounds that moved frames, in a row and without sleep, up to [`STEADY`].
    streak: u8,
}

impl Seated {
    /// Seats a lane.
    #[must_use]
    pub fn new(lane: Lane, slots: (u16, u16)) -> Self {
        Self { lane, slots, from_netdev: Stand::READY, from_device: Stand::READY, streak: 0 }
    }

    /// The slot at an end.
    #[must_use]
    pub fn slot(&self, side: Side) -> u16 {
        match side {
            Side::Netdev => self.slots.0,
            Side::Device => self.slots.1,
        }
    }

    fn stand(&mut self, giver: Side) -> &mut Stand {
        match giver {
            Side::Netdev => &mut self.from_netdev,
            Side::Device => &mut self.from_device,
        }
    }

    /// Frames keep coming: it is tried in every round and not watched.
    fn busy(&self) -> bool {
        self.streak >= STEADY
    }

    /// A round moved frames, or did not. True: it became busy, or is so no more.
    fn round(&mut self, moved: bool) -> bool {
        let was = self.busy();
        self.streak = if moved { self.streak.saturating_add(1).min(STEADY) } else { 0 };
        was != self.busy()
    }

    /// Both directions are to be tried.
    pub fn wake(&mut self) {
        self.from_netdev = Stand::READY;
        self.from_device = Stand::READY;
    }
}

/// The lanes of a worker.
pub type Lanes = Vec<Seated>;

/// One watched descriptor.
#[derive(Clone, Copy, Debug)]
struct Reg {
    fd: RawFd,
    seat: Seat,
    gives: bool,
    takes: bool,
    room: bool,
    control: bool,
    mask: EpollFlags,
}

/// The event loop.
pub struct Worker {
    epoll: Epoll,
    regs: Vec<Reg>,
    busy_poll: Duration,
}

impl Worker {
    /// A worker that busy-polls for `busy_poll` before it sleeps.
    ///
    /// # Errors
    /// The kernel's, from `epoll_create1`.
    pub fn new(busy_poll: Duration) -> io::Result<Self> {
        Ok(Self { epoll: new_epoll()?, regs: Vec::new(), busy_poll })
    }

    /// Runs until the outside says to end.
    ///
    /// # Errors
    /// The outside's, or epoll's.
    pub fn run(&mut self, lanes: &mut Lanes, out: &mut dyn Outside) -> io::Result<()> {
        self.rebuild(lanes, out.fd())?;
        let mut idle_since = None;
        let mut unwatched = 0;
        loop {
            let (moved, rewire) = self.serve(lanes, out);
            if rewire {
                self.rebuild(lanes, out.fd())?;
            } else if moved && unwatched < UNWATCHED && lanes.iter().all(Seated::busy) {
                unwatched += 1;
                continue;
            }
            unwatched = 0;
            let wait = self.wait(lanes, moved, &mut idle_since);
            let mut events = [EpollEvent::empty(); EVENTS];
            let n = match self.epoll.wait(&mut events, wait) {
                Ok(n) => n,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(e) => return Err(e.into()),
            };
            let mut rewire = false;
            for e in events.iter().take(n) {
                if e.data() == OUTSIDE {
                    if !out.message(lanes)? {
                        return Ok(());
                    }
                    rewire = true;
                } else {
                    rewire = self.dispatch(*e, lanes, out);
                }
                // What is left of these events was for the old descriptors; what is still true comes again.
                if rewire {
                    break;
                }
            }
            if rewire {
                self.rebuild(lanes, out.fd())?;
            }
        }
    }

    /// Gives every ready path its turns. Says whether frames moved and whether descriptors changed.
    fn serve(&mut self, lanes: &mut Lanes, out: &mut dyn Outside) -> (bool, bool) {
        let (mut moved, mut rewire) = (false, false);
        for (i, seated) in lanes.iter_mut().enumerate() {
            let (busy, mut here) = (seated.busy(), false);
            if busy {
                seated.wake();
            }
            for giver in [Side::Device, Side::Netdev] {
                if seated.stand(giver).state != State::Ready {
                    continue;
                }
                let (state, any, dead) = turns(&mut seated.lane, giver);
                here |= any;
                *seated.stand(giver) = Stand { state, armed: false };
                if state == State::Full && !busy {
                    self.remask(i, seated);
                }
                if let Some((side, e)) = dead {
                    seated.lane.set_dead(side, true);
                    out.died(seated.slot(side), &e);
                    rewire = true;
                }
            }
            moved |= here;
            if seated.round(here) {
                self.remask(i, seated);
            }
        }
        (moved, rewire)
    }

    /// How long to sleep: not at all while something is ready; else, once every path is armed, until an event.
    fn wait(&mut self, lanes: &mut Lanes, moved: bool, idle_since: &mut Option<Instant>) -> EpollTimeout {
        if moved {
            *idle_since = None;
        }
        if !self.busy_poll.is_zero() && idle_since.get_or_insert_with(Instant::now).elapsed() < self.busy_poll
        {
            for (i, s) in lanes.iter_mut().enumerate() {
                s.wake();
                self.remask(i, s);
            }
            return EpollTimeout::ZERO;
        }
        let mut work = false;
        for (i, s) in lanes.iter_mut().enumerate() {
            if s.busy() {
                work = true;
                continue;
            }
            for giver in [Side::Device, Side::Netdev] {
                work |= self.arm(i, s, giver);
            }
        }
        if work {
            return EpollTimeout::ZERO;
        }
        lanes.iter_mut().for_each(|s| s.streak = 0);
        EpollTimeout::NONE
    }

    /// Arms the notifications of a path that is not ready. True: it is ready, or has become so.
    fn arm(&mut self, lane: usize, s: &mut Seated, giver: Side) -> bool {
        let stand = *s.stand(giver);
        if stand.state == State::Ready || stand.armed {
            return stand.state == State::Ready;
        }
        let full = stand.state == State::Full;
        let work = s.lane.arm(giver, full);
        *s.stand(giver) = if work { Stand::READY } else { Stand { armed: true, ..stand } };
        if work && full {
            self.remask(lane, s);
        }
        work
    }

    /// An event of a lane's descriptor. Says whether descriptors changed.
    fn dispatch(&mut self, e: EpollEvent, lanes: &mut Lanes, out: &mut dyn Outside) -> bool {
        let Some(reg) = usize::try_from(e.data()).ok().and_then(|i| self.regs.get(i)).copied() else {
            return false;
        };
        let ready = e.events();
        let reads = ready.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
        let writes = ready.intersects(EpollFlags::EPOLLOUT | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
        let whys = [
            (reg.control && reads, Interest::Control),
            (reg.gives && reads, Interest::Gives),
            (reg.room && reads, Interest::Room),
            (reg.takes && writes, Interest::Takes),
        ];
        for why in whys.into_iter().filter_map(|(on, why)| on.then_some(why)) {
            let Some(seated) = lanes.get_mut(reg.seat.lane) else { return false };
            if why == Interest::Control && !out.unsettled(seated.slot(reg.seat.side)) {
                continue;
            }
            match seated.lane.event(reg.seat.side, reg.fd, why) {
                Ok(change) => {
                    if follow(lanes, reg.seat, change, out) {
                        return true;
                    }
                }
                Err(e) => {
                    seated.lane.set_dead(reg.seat.side, true);
                    seated.wake();
                    out.died(seated.slot(reg.seat.side), &e);
                    return true;
                }
            }
            if let Some(seated) = lanes.get_mut(reg.seat.lane) {
                self.woken(reg.seat, why, seated);
            }
        }
        false
    }

    /// The path that waited for this is ready.
    fn woken(&mut self, seat: Seat, why: Interest, seated: &mut Seated) {
        let (giver, waited) = match why {
            Interest::Control => return,
            Interest::Gives => (seat.side, State::Dry),
            Interest::Room | Interest::Takes => (seat.side.peer(), State::Full),
        };
        if seated.stand(giver).state == waited {
            *seated.stand(giver) = Stand::READY;
            if waited == State::Full {
                self.remask(seat.lane, seated);
            }
        }
    }

    /// Watches a lane's descriptors for what its paths wait for now.
    fn remask(&mut self, lane: usize, seated: &mut Seated) {
        for (i, reg) in self.regs.iter_mut().enumerate().filter(|(_, r)| r.seat.lane == lane) {
            let want = mask(reg, seated);
            if want != reg.mask
                && sys::poll::watch(self.epoll.0.as_fd(), reg.fd, reg.mask, want, i as u64).is_ok()
            {
                reg.mask = want;
            }
        }
    }

    /// A new epoll instance with every descriptor that the ports want watched now.
    fn rebuild(&mut self, lanes: &mut Lanes, outside: RawFd) -> io::Result<()> {
        self.epoll = new_epoll()?;
        self.regs.clear();
        let mut w = Watch::default();
        for (lane, seated) in lanes.iter_mut().enumerate() {
            for side in [Side::Netdev, Side::Device] {
                w.clear();
                seated.lane.watch(side, &mut w);
                for &(fd, why) in w.fds() {
                    self.enter(fd, Seat { lane, side }, why);
                }
            }
            seated.wake();
            self.remask(lane, seated);
        }
        let none = EpollFlags::empty();
        sys::poll::watch(self.epoll.0.as_fd(), outside, none, EpollFlags::EPOLLIN, OUTSIDE)
    }

    fn enter(&mut self, fd: RawFd, seat: Seat, why: Interest) {
        let at = self.regs.iter().position(|r| r.fd == fd && r.seat == seat).unwrap_or_else(|| {
            let mask = EpollFlags::empty();
            self.regs.push(Reg { fd, seat, gives: false, takes: false, room: false, control: false, mask });
            self.regs.len() - 1
        });
        if let Some(r) = self.regs.get_mut(at) {
            match why {
                Interest::Gives => r.gives = true,
                Interest::Takes => r.takes = true,
                Interest::Room => r.room = true,
                Interest::Control => r.control = true,
            }
        }
    }
}

/// Up to [`BUDGET`] turns of one path: how it stands, whether frames moved, and who died.
fn turns(lane: &mut Lane, giver: Side) -> (State, bool, Option<(Side, io::Error)>) {
    let mut moved = false;
    for _ in 0..BUDGET {
        match lane.turn(giver) {
            Outcome::Moved => moved = true,
            Outcome::Last => return (State::Dry, true, None),
            Outcome::Dry => return (State::Dry, moved, None),
            Outcome::Full => return (State::Full, moved, None),
            Outcome::Dead(side, e) => return (State::Ready, moved, Some((side, e))),
        }
    }
    (State::Ready, moved, None)
}

/// What a path's state asks of a descriptor.
fn mask(r: &Reg, s: &mut Seated) -> EpollFlags {
    let mut m = EpollFlags::empty();
    if s.busy() {
        return if r.control { EpollFlags::EPOLLIN } else { m };
    }
    if r.control || r.room || (r.gives && s.stand(r.seat.side).state != State::Full) {
        m |= EpollFlags::EPOLLIN;
    }
    if r.takes && s.stand(r.seat.side.peer()).state == State::Full {
        m |= EpollFlags::EPOLLOUT;
    }
    m
}

/// Passes a change on to everybody whom it concerns. Says whether descriptors changed.
pub fn follow(lanes: &mut Lanes, seat: Seat, change: Change, out: &mut dyn Outside) -> bool {
    let Some(slot) = lanes.get(seat.lane).map(|s| s.slot(seat.side)) else { return false };
    let mut concerned = lanes.iter_mut().filter(|s| s.slot(seat.side) == slot);
    if let (Some(up), Some(first)) = (change.link, concerned.next()) {
        first.lane.port(seat.side.peer()).peer_link(up);
    }
    if change.rewire {
        for s in lanes.iter_mut().filter(|s| s.slot(seat.side) == slot) {
            s.lane.rewire();
            s.wake();
        }
    }
    if change != Change::default() {
        out.changed(slot, change);
    }
    change.rewire
}

fn new_epoll() -> io::Result<Epoll> {
    Ok(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?)
}
