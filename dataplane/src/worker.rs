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
//! sleeps, and level-triggered interest finds what came in between; and in one round of [`BLIND`], for the end of a
//! connection is no frame, and a giver that never pauses would keep it unheard.
//!
//! The first worker also has control: the hand-over's channel and every port's control descriptors, whosever lane it
//! is. How it changes what others use is the [`floor`]'s rule.
//!
//! Promise: no lane waits for another for more than [`BUDGET`] turns each.
#![forbid(unsafe_code)]

pub mod floor;
pub mod moves;
pub mod patience;
mod place;
mod reg;

use std::io;
use std::os::fd::{AsFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::lane::Side;
use crate::port::{Change, Interest, Watch};
use crate::sys;
pub use floor::{Floor, NOBODY, Note, Seat, Seated};
pub use moves::Cannot;
use patience::Patience;
pub use patience::Waits;
pub use place::BUDGET;
use place::{Place, Stand, State, arm, nudge, turns};
use reg::{Reg, mask};

/// Rounds before events are looked for while no lane is watched: only control can wait then.
const UNWATCHED: u8 = 8;
/// Of so many rounds, one watches the descriptors of busy lanes as well.
const BLIND: u16 = 1024;
/// Events taken at once.
const EVENTS: usize = 64;
/// How long a descriptor is left alone that could not be served: for want of descriptors or memory, mostly. In
/// milliseconds.
const LATER: u8 = 100;
/// The epoll token of the hand-over channel.
const OUTSIDE: u64 = u64::MAX;
/// The epoll token of the bell.
const BELL: u64 = u64::MAX - 1;

/// A connection's peer has gone, or has closed its half.
const GONE: EpollFlags = EpollFlags::EPOLLRDHUP.union(EpollFlags::EPOLLHUP).union(EpollFlags::EPOLLERR);

/// Whom the first worker reports to: the engine behind it.
pub trait Outside {
    /// Descriptor to watch for messages.
    fn fd(&self) -> RawFd;

    /// Messages wait. False: end.
    ///
    /// # Errors
    /// The supervisor is gone or broke the protocol.
    fn message(&mut self, floor: &Floor) -> io::Result<bool>;

    /// A port's control descriptor is about to be served. False: not now; it is still ready at the next look.
    fn unsettled(&mut self, slot: u16) -> bool;

    /// A port changed in a way that others have to know.
    fn changed(&mut self, slot: u16, change: Change);

    /// A port died.
    fn died(&mut self, slot: u16, error: &io::Error);
}

/// Who hears of what a worker finds.
type Ear<'a> = Option<&'a mut (dyn Outside + 'a)>;

/// The event loop.
pub struct Worker {
    /// Its number; 0 has control.
    me: usize,
    epoll: Epoll,
    regs: Vec<Reg>,
    places: Vec<Place>,
    events: [EpollEvent; EVENTS],
    patience: Patience,
    /// Looks for work before it sleeps, at this moment.
    looking: bool,
    /// A path had more than a batch in this round.
    dense: bool,
    /// Rounds since one watched all descriptors.
    blind: u16,
    /// The bell's count when it last looked.
    heard: u64,
    /// Some descriptor is not watched until then.
    later: Option<Instant>,
}

impl Worker {
    /// Worker number `me` of the floor; it looks for work for `busy_poll` at most before it sleeps.
    ///
    /// # Errors
    /// The kernel's, from `epoll_create1`.
    pub fn new(floor: &Floor, me: usize, busy_poll: Duration) -> io::Result<Self> {
        let places = floor.lanes_of(me).map(Place::new).collect();
        let (epoll, regs, patience) = (new_epoll()?, Vec::new(), Patience::new(busy_poll));
        let events = [EpollEvent::empty(); EVENTS];
        let (looking, dense, blind, heard, later) = (false, false, 0, 0, None);
        Ok(Self { me, epoll, regs, places, events, patience, looking, dense, blind, heard, later })
    }

    /// A worker without control: waits for its bell, then runs for ever. What ends it is left as a note.
    pub fn follow(mut self, floor: &Floor) {
        let end = self.until_rung(floor).and_then(|()| self.run(floor, None));
        floor.post(Note::Broken(end.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into())));
    }

    fn until_rung(&mut self, floor: &Floor) -> io::Result<()> {
        self.watch_bell(floor)?;
        while floor.rung(self.me) == self.heard {
            self.events(EpollTimeout::NONE)?;
        }
        Ok(())
    }

    /// Runs until the outside says to end.
    ///
    /// # Errors
    /// The outside's, or epoll's; of the first worker also what another died of.
    pub fn run(&mut self, floor: &Floor, mut out: Ear<'_>) -> io::Result<()> {
        let mut rewire = true;
        let mut unseen = 0;
        loop {
            let rung = floor.rung(self.me);
            if rung != self.heard {
                self.heard = rung;
                self.read_notes(floor, &mut out)?;
                rewire = true;
            }
            rewire |= self.later.is_some_and(|t| t <= Instant::now());
            if std::mem::take(&mut rewire) {
                self.rebuild(floor, out.as_deref())?;
            }
            let (moved, dead) = self.serve(floor, &mut out);
            self.patience.served(std::mem::take(&mut self.dense));
            if dead {
                rewire = true;
                continue;
            }
            if moved {
                self.patience.found();
            }
            let rests = self.places.iter().all(|p| !p.ready() && !p.busy());
            self.looking = rests && self.patience.look_on();
            let unwatched = self.places.iter().all(|p| p.unwatched) && !self.places.is_empty();
            if (moved || self.looking) && unwatched && unseen < UNWATCHED {
                unseen += 1;
                continue;
            }
            unseen = 0;
            for i in 0..self.wait(floor)? {
                let Some(e) = self.events.get(i).copied() else { break };
                match e.data() {
                    BELL => {}
                    OUTSIDE => {
                        if let Some(o) = &mut out
                            && !o.message(floor)?
                        {
                            return Ok(());
                        }
                        rewire = true;
                    }
                    _ => rewire = self.dispatch(e, floor, &mut out),
                }
                // What is left of these events was for the old descriptors; what is still true comes again.
                if rewire {
                    break;
                }
            }
        }
    }

    /// What other workers found.
    fn read_notes(&mut self, floor: &Floor, out: &mut Ear<'_>) -> io::Result<()> {
        let Some(out) = out else { return Ok(()) };
        for note in floor.notes() {
            match note {
                Note::Changed(seat, change) => follow(floor, self.me, seat, change, *out),
                Note::Died(slot, e) => out.died(slot, &e),
                Note::Broken(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Gives every ready path its turns. Says whether frames moved and whether somebody died.
    fn serve(&mut self, floor: &Floor, out: &mut Ear<'_>) -> (bool, bool) {
        let (mut moved, mut rewire) = (false, false);
        self.blind = (self.blind + 1) % BLIND;
        for at in 0..self.places.len() {
            let Some(mut place) = self.places.get(at).copied() else { continue };
            if place.unwatched {
                place.wake();
            }
            let mut here = false;
            if place.ready()
                && let Some(mut lane) = floor.lane(place.lane)
            {
                for giver in [Side::Device, Side::Netdev] {
                    if place.stand(giver).state != State::Ready {
                        continue;
                    }
                    let came = turns(&mut lane, giver);
                    here |= came.moved > 0;
                    self.dense |= came.moved > 1;
                    place.set(giver, Stand { state: came.state, armed: false });
                    if giver == Side::Device && came.moved > 0 && lane.answers() {
                        place.set(Side::Netdev, Stand::READY);
                    }
                    if let Some((side, e)) = came.dead {
                        lane.set_dead(side, true);
                        self.died(floor, out, Seat { lane: place.lane, side }, e);
                        rewire = true;
                    }
                }
                nudge(&lane, &mut place);
            }
            moved |= here;
            place.count(here);
            let often = place.busy() || self.looking || (place.unwatched && here);
            place.unwatched = often && self.blind != 0;
            self.put(at, place);
        }
        (moved, rewire)
    }

    /// A place as it is now, and its descriptors watched for what it waits for.
    fn put(&mut self, at: usize, place: Place) {
        if let Some(p) = self.places.get_mut(at) {
            *p = place;
        }
        for (i, reg) in self.regs.iter_mut().enumerate().filter(|(_, r)| r.place == Some(at)) {
            let want = mask(reg, &place);
            if want != reg.mask
                && sys::poll::watch(self.epoll.0.as_fd(), reg.fd, reg.mask, want, i as u64).is_ok()
            {
                reg.mask = want;
            }
        }
    }

    /// Waits for events: not at all while something is ready; else, once every path is armed, until there is one.
    fn wait(&mut self, floor: &Floor) -> io::Result<usize> {
        let mut work = self.looking;
        for at in 0..self.places.len() {
            let Some(mut place) = self.places.get(at).copied() else { continue };
            if !self.looking && !place.unwatched && place.unarmed() {
                arm(floor, &mut place);
                self.put(at, place);
            }
            work |= place.unwatched || place.ready();
        }
        if work {
            floor.report(self.me, self.patience.waits());
            return self.events(EpollTimeout::ZERO);
        }
        self.places.iter_mut().for_each(|p| p.count(false));
        let since = self.patience.sleep();
        floor.report(self.me, self.patience.waits());
        let events = self.events(self.later.map_or(EpollTimeout::NONE, |_| LATER.into()));
        self.patience.woken(since);
        events
    }

    fn events(&mut self, timeout: EpollTimeout) -> io::Result<usize> {
        match self.epoll.wait(&mut self.events, timeout) {
            Ok(n) => Ok(n),
            Err(Errno::EINTR) => Ok(0),
            Err(e) => Err(e.into()),
        }
    }

    /// An event of a lane's descriptor. Says whether descriptors changed.
    fn dispatch(&mut self, e: EpollEvent, floor: &Floor, out: &mut Ear<'_>) -> bool {
        let Some(reg) = usize::try_from(e.data()).ok().and_then(|i| self.regs.get(i)).copied() else {
            return false;
        };
        let ready = e.events();
        let reads = ready.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
        let writes = ready.intersects(EpollFlags::EPOLLOUT | EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
        if reg.control
            && reads
            && let (Some(o), Some(slot)) = (out.as_mut(), floor.slot(reg.seat))
            && o.unsettled(slot)
        {
            let result = floor.change(self.me, reg.seat, |l| {
                let result = l.event(reg.seat.side, reg.fd, Interest::Control);
                if result.is_err() {
                    l.set_dead(reg.seat.side, true);
                }
                result
            });
            if self.heed(floor, out, reg, result) {
                return true;
            }
        }
        let whys = [
            (reg.gives && reads, Interest::Gives),
            (reg.room && reads, Interest::Room),
            (reg.takes && writes, Interest::Takes),
            (reg.gone && ready.intersects(GONE), Interest::Gone),
        ];
        for why in whys.into_iter().filter_map(|(on, why)| on.then_some(why)) {
            let Some(mut lane) = floor.lane(reg.seat.lane) else { return false };
            match lane.event(reg.seat.side, reg.fd, why) {
                Ok(change) if change == Change::default() => {
                    if let Some((at, mut place)) = reg.place.and_then(|at| Some((at, *self.places.get(at)?)))
                        && nudge(&lane, &mut place)
                    {
                        self.put(at, place);
                    }
                    drop(lane);
                }
                Ok(change) => {
                    drop(lane);
                    match out {
                        Some(out) => follow(floor, self.me, reg.seat, change, *out),
                        None => floor.post(Note::Changed(reg.seat, change)),
                    }
                    if change.rewire {
                        return true;
                    }
                }
                Err(e) => {
                    lane.set_dead(reg.seat.side, true);
                    drop(lane);
                    self.died(floor, out, reg.seat, e);
                    return true;
                }
            }
            reg.place.into_iter().for_each(|at| self.woken(at, reg.seat.side, why));
        }
        false
    }

    /// Does not watch a descriptor for control for a while: until all are watched anew.
    fn leave(&mut self, reg: Reg) {
        self.later = Some(Instant::now() + Duration::from_millis(LATER.into()));
        for (i, r) in self.regs.iter_mut().enumerate().filter(|(_, r)| (r.fd, r.seat) == (reg.fd, reg.seat)) {
            let (was, none) = (r.mask, EpollFlags::empty());
            if sys::poll::watch(self.epoll.0.as_fd(), r.fd, was, none, i as u64).is_ok() {
                (r.control, r.mask) = (false, none);
            }
        }
    }

    /// What control came to. Says whether descriptors changed.
    fn heed(&mut self, floor: &Floor, out: &mut Ear<'_>, reg: Reg, result: io::Result<Change>) -> bool {
        match result {
            Ok(change) => {
                if change.later {
                    self.leave(reg);
                }
                let slot = floor.slot(reg.seat);
                if let (Some(out), Some(slot), true) = (out, slot, change != Change::default()) {
                    out.changed(slot, change);
                }
                change.rewire
            }
            Err(e) => {
                self.died(floor, out, reg.seat, e);
                true
            }
        }
    }

    fn died(&self, floor: &Floor, out: &mut Ear<'_>, seat: Seat, e: io::Error) {
        let Some(slot) = floor.slot(seat) else { return };
        match out {
            Some(out) => out.died(slot, &e),
            None => floor.post(Note::Died(slot, e)),
        }
    }

    /// The path that waited for this is ready.
    fn woken(&mut self, at: usize, side: Side, why: Interest) {
        let Some(mut place) = self.places.get(at).copied() else { return };
        let (giver, waited) = match why {
            Interest::Control | Interest::Gone => return,
            Interest::Gives => (side, State::Dry),
            Interest::Room | Interest::Takes => (side.peer(), State::Full),
        };
        if place.stand(giver).state == waited {
            place.set(giver, Stand::READY);
            self.put(at, place);
        }
    }

    /// A new epoll instance with every descriptor that is this worker's to watch now.
    fn rebuild(&mut self, floor: &Floor, outside: Option<&(dyn Outside + '_)>) -> io::Result<()> {
        self.epoll = new_epoll()?;
        self.later = None;
        self.regs.clear();
        // Lanes come to a floor; none leaves it.
        let (me, known) = (self.me, self.places.len());
        self.places.extend(floor.lanes_of(me).skip(known).map(Place::new));
        let mut w = Watch::default();
        for lane in 0..floor.len() {
            let place = self.places.iter().position(|p| p.lane == lane);
            if place.is_none() && self.me != 0 {
                continue;
            }
            for side in Side::BOTH {
                w.clear();
                if let Some(l) = floor.lane(lane) {
                    l.watch(side, &mut w);
                }
                for &(fd, why) in w.fds() {
                    if if why == Interest::Control { self.me == 0 } else { place.is_some() } {
                        self.enter(fd, Seat { lane, side }, place, why);
                    }
                }
            }
        }
        for at in 0..self.places.len() {
            let Some(mut place) = self.places.get(at).copied() else { continue };
            place.wake();
            self.put(at, place);
        }
        for (i, reg) in self.regs.iter_mut().enumerate().filter(|(_, r)| r.place.is_none()) {
            let (was, want) = (reg.mask, EpollFlags::EPOLLIN);
            if sys::poll::watch(self.epoll.0.as_fd(), reg.fd, was, want, i as u64).is_ok() {
                reg.mask = want;
            }
        }
        self.watch_bell(floor)?;
        let Some(outside) = outside else { return Ok(()) };
        let none = EpollFlags::empty();
        sys::poll::watch(self.epoll.0.as_fd(), outside.fd(), none, EpollFlags::EPOLLIN, OUTSIDE)
    }

    fn watch_bell(&self, floor: &Floor) -> io::Result<()> {
        // A worker that is alone has nobody to ring.
        let Some(bell) = floor.bell(self.me).filter(|_| floor.workers() > 1) else { return Ok(()) };
        let want = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
        sys::poll::watch(self.epoll.0.as_fd(), bell, EpollFlags::empty(), want, BELL)
    }

    fn enter(&mut self, fd: RawFd, seat: Seat, place: Option<usize>, why: Interest) {
        let at = self.regs.iter().position(|r| r.fd == fd && r.seat == seat).unwrap_or_else(|| {
            let mask = EpollFlags::empty();
            let (gives, takes, room, control, gone) = (false, false, false, false, false);
            self.regs.push(Reg { fd, seat, place, gives, takes, room, control, gone, mask });
            self.regs.len() - 1
        });
        if let Some(r) = self.regs.get_mut(at) {
            match why {
                Interest::Gives => r.gives = true,
                Interest::Takes => r.takes = true,
                Interest::Room => r.room = true,
                Interest::Control => r.control = true,
                Interest::Gone => r.gone = true,
            }
        }
    }
}

/// Passes a change on to everybody whom it concerns.
pub fn follow(floor: &Floor, me: usize, seat: Seat, change: Change, out: &mut dyn Outside) {
    // Nobody dies of a change that has happened already.
    let _ = floor.change(me, seat, |_| Ok(change));
    if let (Some(slot), true) = (floor.slot(seat), change != Change::default()) {
        out.changed(slot, change);
    }
}

fn new_epoll() -> io::Result<Epoll> {
    Ok(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?)
}

#[cfg(test)]
mod tests;
