//! Changes of a running dataplane: ports that come, go and change places, links that go up and down.
//!
//! A change is a list of steps; each is told to the dataplane and takes effect here when it says *done*, so that the
//! plan is always what the next dataplane is to be given. Trust: none in the dataplane: it answers what it was asked, in
//! order, or is ended. Promise: a change is made wholly or not at all; one that was under way when the dataplane died is
//! not made (it may be what killed it), except for what was to go: that is gone.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use serde_json::{Value, json};

use crate::handover::{ToDataplane, Wire};
use crate::port::Told;
use crate::supervise::Supervisor;
use crate::supervise::ask::Asker;
use crate::supervise::control::Key;
use crate::supervise::control::message::Refusal;
use crate::supervise::slot::Slot;

/// Something that the dataplane does at once or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Open the port in a slot.
    Add {
        /// The slot.
        slot: u16,
    },
    /// Close it.
    Remove {
        /// The slot.
        slot: u16,
    },
    /// Join two ports.
    Join(Wire),
    /// Take a link up or down.
    Link {
        /// The slot.
        slot: u16,
        /// Up.
        up: bool,
    },
    /// Put a capture around a port.
    Capture {
        /// Its number.
        number: u16,
    },
    /// Put a filter that steps in around a port.
    Filter {
        /// Its number.
        number: u16,
    },
    /// Take it away.
    Unfilter {
        /// Its number.
        number: u16,
        /// The port's slot.
        slot: u16,
    },
    /// Turn it on or off.
    Status {
        /// Its number.
        number: u16,
        /// The port's slot.
        slot: u16,
        /// On.
        on: bool,
    },
    /// Take a capture away.
    Uncapture {
        /// Its number.
        number: u16,
        /// The port's slot.
        slot: u16,
    },
    /// Give a user network the table of forwards that was prepared for it.
    Forwards {
        /// The slot.
        slot: u16,
    },
    /// Tell a user network who the host's resolvers are.
    Resolvers {
        /// The slot.
        slot: u16,
    },
}

/// A change.
#[derive(Debug)]
pub(super) struct Change {
    by: Key,
    id: Option<Value>,
    /// The first one is what the dataplane was asked for last.
    steps: VecDeque<Step>,
    /// Slots that it has added.
    added: Vec<u16>,
    /// Why it is being undone.
    failed: Option<Refusal>,
    /// AF_XDP: the session of the grant, which lets frames come.
    asker: Option<Asker>,
}

impl Change {
    /// A change of these steps.
    pub(super) fn of(steps: impl Into<VecDeque<Step>>) -> Self {
        Self { by: 0, id: None, steps: steps.into(), added: Vec::new(), failed: None, asker: None }
    }

    /// Who is to be answered.
    pub(super) fn asked_by(mut self, by: Key, id: Option<Value>) -> Self {
        self.by = by;
        self.id = id;
        self
    }

    /// Keeps the session with the helper until the port is open.
    pub(super) fn with(mut self, asker: Asker) -> Self {
        self.asker = Some(asker);
        self
    }

    /// Slots that it is still to add.
    fn adding(&self) -> impl Iterator<Item = u16> {
        self.steps.iter().filter_map(|s| if let Step::Add { slot } = s { Some(*slot) } else { None })
    }

    /// It has to do with a slot.
    fn concerns(&self, slot: u16) -> bool {
        let linked = |s: &Step| matches!(s, Step::Link { slot: n, .. } if *n == slot);
        self.moves(slot) || self.steps.iter().any(linked)
    }

    /// It brings the port of a slot, takes it away or joins it.
    fn moves(&self, slot: u16) -> bool {
        let named = |s: &Step| match s {
            Step::Add { slot: n } | Step::Remove { slot: n } => *n == slot,
            Step::Join(wire) => wire.netdev == slot || wire.device == slot,
            _ => false,
        };
        self.added.contains(&slot) || self.steps.iter().any(named)
    }

    /// It has to do with a filter.
    fn names(&self, filter: u16) -> bool {
        self.steps.iter().any(|s| match s {
            Step::Filter { number } | Step::Capture { number } => *number == filter,
            Step::Unfilter { number, .. } | Step::Uncapture { number, .. } | Step::Status { number, .. } => {
                *number == filter
            }
            _ => false,
        })
    }

    fn takes_away(&self, filter: u16) -> bool {
        self.steps.iter().any(|s| matches!(s, Step::Unfilter { number, .. } if *number == filter))
    }
}

/// Changes under way, in the order in which the dataplane answers.
#[derive(Debug, Default)]
pub(super) struct Changes {
    open: VecDeque<(u32, Change)>,
    last: u32,
    /// Those that begin when a connection is there.
    waiting: Vec<Change>,
}

impl Changes {
    /// The dataplane does not have this slot yet.
    pub(super) fn adds(&self, slot: u16) -> bool {
        self.all().any(|c| c.adding().any(|n| n == slot))
    }

    /// One that is under way has to do with a slot.
    pub(super) fn concern(&self, slot: u16) -> bool {
        self.all().any(|c| c.concerns(slot))
    }

    /// One that is under way brings the port of a slot, takes it away or joins it.
    pub(super) fn move_port(&self, slot: u16) -> bool {
        self.all().any(|c| c.moves(slot))
    }

    /// One that is under way has to do with the filter of this number, which is nobody else's until then.
    pub(super) fn name(&self, filter: u16) -> bool {
        self.all().any(|c| c.names(filter))
    }

    /// One that is under way takes the filter of this number away.
    pub(super) fn take_away(&self, filter: u16) -> bool {
        self.all().any(|c| c.takes_away(filter))
    }

    fn all(&self) -> impl Iterator<Item = &Change> {
        self.open.iter().map(|(_, c)| c).chain(&self.waiting)
    }
}

impl Supervisor {
    /// The slots that the dataplane has.
    pub(super) fn dataplane_slots(&self) -> impl Iterator<Item = u16> {
        self.slots.iter().map(|(n, _)| n).filter(|n| !self.changes.adds(*n))
    }

    /// Starts a change: tells the dataplane its first step.
    pub(super) fn begin(&mut self, mut change: Change, now: Instant) {
        let Some(step) = change.steps.front() else { return self.conclude(change, now) };
        if let Step::Add { slot } = *step
            && self.slots.get(slot).is_some_and(Slot::is_awaited)
        {
            return self.changes.waiting.push(change);
        }
        self.changes.last = self.changes.last.wrapping_add(1);
        let ask = self.changes.last;
        match self.tell_step(ask, step) {
            Ok(()) => self.changes.open.push_back((ask, change)),
            Err(why) => {
                // Not told, so not done: a port that was to be undone stays, and can be seen and taken out.
                for slot in change.adding() {
                    self.slots.take(slot);
                }
                if let Some(Step::Capture { number } | Step::Uncapture { number, .. }) = change.steps.front()
                {
                    self.end_capture(*number);
                }
                self.abandon_forwards(change.steps.front());
                if let Some(Step::Filter { number }) = change.steps.front() {
                    self.chain.remove(*number);
                }
                change.failed.get_or_insert_with(|| Refusal::generic(why));
                self.conclude(change, now);
            }
        }
    }

    fn tell_step(&mut self, ask: u32, step: &Step) -> Result<(), String> {
        if let Step::Capture { number } = *step {
            return self.tell_capture(ask, number);
        }
        if let Step::Filter { number } = *step {
            return self.tell_filter(ask, number);
        }
        let d = self.dataplane.as_ref().filter(|d| d.ready.is_some());
        let d = d.ok_or("the dataplane is being replaced: try again")?;
        let message = match *step {
            Step::Capture { .. } | Step::Filter { .. } => return Ok(()),
            Step::Forwards { slot } | Step::Resolvers { slot } => {
                let all = matches!(step, Step::Forwards { .. });
                let (what, fds) = self.to_tell(slot, all).ok_or("no such user network")?;
                let what = Told::User(what);
                return d.tell(&ToDataplane::Tell { ask, slot, what }, &fds).map_err(|e| e.to_string());
            }
            Step::Uncapture { number, slot } | Step::Unfilter { number, slot } => {
                ToDataplane::Unfilter { ask, slot, filter: number }
            }
            Step::Status { number, slot, on } => ToDataplane::Status { ask, slot, filter: number, on },
            Step::Remove { slot } => ToDataplane::Remove { ask, slot },
            Step::Join(ref wire) => ToDataplane::Join { ask, wire: wire.clone() },
            Step::Link { slot, up } => ToDataplane::Link { ask, slot, up },
            Step::Add { slot } => {
                let s = self.slots.get(slot).ok_or("no such slot")?;
                let fds: Vec<BorrowedFd<'_>> = s.kept.iter().chain(&s.fresh).map(AsFd::as_fd).collect();
                if !fds.is_empty() {
                    d.tell(&ToDataplane::Fds { slot }, &fds).map_err(|e| e.to_string())?;
                }
                ToDataplane::Add { ask, slot, plan: s.plan.clone() }
            }
        };
        d.tell(&message, &[]).map_err(|e| e.to_string())
    }

    /// The dataplane has made a step. False: it was not asked for that.
    pub(super) fn step_done(&mut self, ask: u32, now: Instant) -> bool {
        let Some(mut change) = self.answered(ask) else { return false };
        let Some(step) = change.steps.pop_front() else { return false };
        if let Step::Add { slot } = step {
            change.added.push(slot);
            if let Some(s) = self.slots.get_mut(slot) {
                s.fresh = None;
            }
            if let Some(asker) = change.asker.take()
                && let Err(fault) = self.let_come(slot, asker)
            {
                self.undo(&mut change, fault.into());
            }
        } else {
            self.apply(&step);
        }
        self.begin(change, now);
        true
    }

    /// The dataplane has refused a step. False: it was not asked for that.
    pub(super) fn step_refused(&mut self, ask: u32, errno: i32, why: &str, now: Instant) -> bool {
        let Some(mut change) = self.answered(ask) else { return false };
        let Some(step) = change.steps.pop_front() else { return false };
        let error = std::io::Error::from_raw_os_error(errno).to_string();
        let words = error.split(" (os error").next().unwrap_or_default();
        let more = if errno == 0 || why.contains(words) { String::new() } else { format!(": {words}") };
        self.abandon_forwards(Some(&step));
        match step {
            Step::Add { slot } => drop(self.slots.take(slot)),
            Step::Capture { number } => self.end_capture(number),
            Step::Filter { number } => self.chain.remove(number),
            // It is not there, which is what was wanted.
            Step::Uncapture { .. } | Step::Unfilter { .. } => {
                self.apply(&step);
                self.begin(change, now);
                return true;
            }
            _ => {}
        }
        self.undo(&mut change, Refusal::generic(format!("{why}{more}")));
        self.begin(change, now);
        true
    }

    /// Begins changes whose connections are there, and gives up those whose will not come.
    pub(super) fn begin_awaited(&mut self, now: Instant) {
        for mut change in std::mem::take(&mut self.changes.waiting) {
            let slots: Vec<u16> = change.adding().collect();
            let why = slots.iter().find_map(|n| self.slots.get_mut(*n)?.failed.take());
            if let Some(why) = why {
                self.undo(&mut change, Refusal::generic(why));
            }
            self.begin(change, now);
        }
    }

    fn answered(&mut self, ask: u32) -> Option<Change> {
        let next = self.changes.open.front().is_some_and(|(n, _)| *n == ask);
        if next { self.changes.open.pop_front().map(|(_, change)| change) } else { None }
    }

    /// What is left to do is to take back what was done.
    fn undo(&mut self, change: &mut Change, why: Refusal) {
        change.failed.get_or_insert(why);
        for slot in change.adding() {
            self.slots.take(slot);
        }
        change.steps =
            std::mem::take(&mut change.added).into_iter().map(|slot| Step::Remove { slot }).collect();
    }

    /// Makes a step here as well.
    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Add { .. } | Step::Capture { .. } | Step::Filter { .. } | Step::Resolvers { .. } => {}
            Step::Forwards { slot } => self.commit_forwards(slot),
            Step::Unfilter { number, .. } => self.chain.remove(number),
            Step::Status { number, on, .. } => self.filter_is(number, on),
            Step::Uncapture { number, .. } => self.end_capture(number),
            Step::Remove { slot } => {
                let wires = &mut self.plan.wires;
                wires.retain(|w| w.netdev != slot && w.device != slot);
                self.plan.down.retain(|s| *s != slot);
                // Filters go with their port: the slot will be another's.
                self.end_filters_of(slot);
                if let Some(port) = self.slots.take(slot)
                    && port.device
                {
                    let path = format!("/machine/peripheral/{}", port.id);
                    self.tell("DEVICE_DELETED", json!({ "device": port.id, "path": path }));
                }
            }
            Step::Join(ref wire) => {
                let ends = [wire.netdev, wire.device];
                self.plan.wires.retain(|w| !ends.contains(&w.netdev) && !ends.contains(&w.device));
                self.plan.wires.push(wire.clone());
            }
            Step::Link { slot, up } => {
                self.plan.down.retain(|s| *s != slot);
                if !up {
                    self.plan.down.push(slot);
                }
            }
        }
    }

    fn conclude(&mut self, change: Change, now: Instant) {
        let result = change.failed.map_or(Ok(json!({})), Err);
        self.answer(change.by, result, change.id, now);
    }

    /// The dataplane is dead: what it was asked for is not answered any more.
    pub(super) fn changes_died(&mut self, now: Instant) {
        let waiting = std::mem::take(&mut self.changes.waiting);
        let open = std::mem::take(&mut self.changes.open).into_iter().map(|(_, change)| change);
        for mut change in open.chain(waiting) {
            let undoing = change.failed.is_some();
            self.abandon_forwards(change.steps.front());
            for slot in change.adding() {
                self.slots.take(slot);
            }
            match change.steps.front().cloned() {
                Some(step @ (Step::Remove { .. } | Step::Uncapture { .. } | Step::Unfilter { .. })) => {
                    self.apply(&step);
                }
                Some(Step::Capture { number }) => self.end_capture(number),
                Some(Step::Filter { number }) => self.chain.remove(number),
                _ => {}
            }
            let gone = matches!(
                change.steps.front(),
                Some(Step::Remove { .. } | Step::Uncapture { .. } | Step::Unfilter { .. })
            );
            let gone = gone && !undoing;
            for slot in std::mem::take(&mut change.added) {
                self.apply(&Step::Remove { slot });
            }
            if !gone {
                change.failed.get_or_insert_with(|| Refusal::generic(DIED));
            }
            self.conclude(change, now);
        }
    }
}

/// Why a change is not made.
const DIED: &str = "the dataplane died before it was done";
