//! What a worker keeps of a lane that is its own: how its two paths stand. Nobody else sees it.
#![forbid(unsafe_code)]

use std::io;

use super::Floor;
use crate::lane::{Lane, Outcome, Side};

/// Turns of one path before the next lane has its turn.
pub const BUDGET: usize = 4;
/// Rounds that move frames, in a row and without sleep, before a lane is busy: the change costs some system calls.
const STEADY: u8 = 4;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    #[default]
    Ready,
    Dry,
    Full,
}

/// How a path stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stand {
    pub(super) state: State,
    /// Whoever it waits for was asked to notify.
    pub(super) armed: bool,
}

impl Stand {
    pub(super) const READY: Self = Self { state: State::Ready, armed: false };
}

/// A worker's own lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Its number on the floor.
    pub(super) lane: usize,
    from_netdev: Stand,
    from_device: Stand,
    /// Rounds that moved frames, in a row and without sleep, up to [`STEADY`].
    streak: u8,
    /// Tried in every round, and only its control descriptors are watched.
    pub(super) unwatched: bool,
}

impl Place {
    pub(super) fn new(lane: usize) -> Self {
        Self { lane, from_netdev: Stand::READY, from_device: Stand::READY, streak: 0, unwatched: false }
    }

    pub(super) fn stand(&self, giver: Side) -> Stand {
        match giver {
            Side::Netdev => self.from_netdev,
            Side::Device => self.from_device,
        }
    }

    pub(super) fn set(&mut self, giver: Side, stand: Stand) {
        match giver {
            Side::Netdev => self.from_netdev = stand,
            Side::Device => self.from_device = stand,
        }
    }

    /// A path is ready.
    pub(super) fn ready(&self) -> bool {
        [self.from_netdev, self.from_device].iter().any(|s| s.state == State::Ready)
    }

    /// A path waits and nobody was asked to notify.
    pub(super) fn unarmed(&self) -> bool {
        [self.from_netdev, self.from_device].iter().any(|s| s.state != State::Ready && !s.armed)
    }

    /// Both directions are to be tried.
    pub(super) fn wake(&mut self) {
        self.from_netdev = Stand::READY;
        self.from_device = Stand::READY;
    }

    /// Frames keep coming.
    pub(super) fn busy(&self) -> bool {
        self.streak >= STEADY
    }

    /// A round moved frames, or did not.
    pub(super) fn count(&mut self, moved: bool) {
        self.streak = if moved { self.streak.saturating_add(1).min(STEADY) } else { 0 };
    }
}

/// What came of a path's turns.
#[derive(Debug, Default)]
pub(super) struct Came {
    /// How the path stands now.
    pub(super) state: State,
    /// Turns that moved frames; two at least are more than one batch.
    pub(super) moved: usize,
    /// Who died.
    pub(super) dead: Option<(Side, io::Error)>,
}

/// Up to [`BUDGET`] turns of one path.
pub(super) fn turns(lane: &mut Lane, giver: Side) -> Came {
    let mut came = Came::default();
    for _ in 0..BUDGET {
        match lane.turn(giver) {
            Outcome::Moved => came.moved += 1,
            Outcome::Last => return Came { state: State::Dry, moved: came.moved + 1, ..came },
            Outcome::Dry => return Came { state: State::Dry, ..came },
            Outcome::Full => return Came { state: State::Full, ..came },
            Outcome::Dead(side, e) => return Came { dead: Some((side, e)), ..came },
        }
    }
    came
}

/// Arms the notifications of the paths that wait; one that finds work is ready again.
pub(super) fn arm(floor: &Floor, place: &mut Place) {
    let Some(mut lane) = floor.lane(place.lane) else { return };
    for giver in [Side::Device, Side::Netdev] {
        let stand = place.stand(giver);
        if stand.state != State::Ready && !stand.armed {
            let work = lane.arm(giver, stand.state == State::Full);
            place.set(giver, if work { Stand::READY } else { Stand { armed: true, ..stand } });
        }
    }
}

/// A path that is dry, but whose taker is stuck, is tried again: then it is full, and hears when that is over. True: so
/// it is.
pub(super) fn nudge(lane: &Lane, place: &mut Place) -> bool {
    let mut stuck = false;
    for taker in Side::BOTH {
        if place.stand(taker.peer()).state == State::Dry && lane.is_stuck(taker) {
            place.set(taker.peer(), Stand::READY);
            stuck = true;
        }
    }
    stuck
}
