//! Forwards of a running `user` network: `hostfwd_add` and `hostfwd_remove` as QEMU's monitor has them for people, and
//! `netreeve-set-hostfwd`, which makes any change of the table in one step or not at all.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::Key;
use super::commands::Outcome;
use super::message::{Arguments, Refusal};
use crate::handover::PortPlan;
use crate::port::user::plan::Tell;
use crate::spec::forward::Listen;
use crate::supervise::Supervisor;
use crate::supervise::ask::Asker;
use crate::supervise::change::{Change, Step};

/// When a dataplane that is being replaced is told of resolvers.
const LATER: Duration = Duration::from_millis(200);

/// `hostfwd_add`: one more.
pub(super) fn add(s: &mut Supervisor, _: Key, mut arguments: Arguments) -> Result<Outcome, Refusal> {
    let rule = arguments.need_text("hostfwd")?;
    let slot = s.user_slot(arguments)?;
    s.prepare_forwards(slot, false, &[], &[rule])
}

/// `hostfwd_remove`: the one that listens there.
pub(super) fn remove(s: &mut Supervisor, _: Key, mut arguments: Arguments) -> Result<Outcome, Refusal> {
    let listen = arguments.need_text("hostfwd")?;
    let slot = s.user_slot(arguments)?;
    s.prepare_forwards(slot, false, &[listen], &[])
}

/// `netreeve-set-hostfwd`: `hostfwd` is the whole table, or `remove` and `add` change it.
pub(super) fn set(s: &mut Supervisor, _: Key, mut arguments: Arguments) -> Result<Outcome, Refusal> {
    let whole = list(&mut arguments, "hostfwd")?;
    let added = list(&mut arguments, "add")?;
    let removed = list(&mut arguments, "remove")?;
    if whole.is_some() == (added.is_some() || removed.is_some()) {
        return Err(Refusal::generic("give either 'hostfwd', the whole table, or 'add' and 'remove'"));
    }
    let slot = s.user_slot(arguments)?;
    match whole {
        Some(table) => s.prepare_forwards(slot, true, &[], &table),
        None => s.prepare_forwards(slot, false, &removed.unwrap_or_default(), &added.unwrap_or_default()),
    }
}

/// A list of texts.
fn list(arguments: &mut Arguments, key: &str) -> Result<Option<Vec<String>>, Refusal> {
    let Some(value) = arguments.0.remove(key) else { return Ok(None) };
    let bad = || Refusal::generic(format!("Invalid parameter type for '{key}', expected: array of strings"));
    let all = value.as_array().ok_or_else(bad)?;
    all.iter().map(|v| v.as_str().map(str::to_owned).ok_or_else(bad)).collect::<Result<_, _>>().map(Some)
}

impl Supervisor {
    /// The network that `id` names; without it, the only one.
    fn user_slot(&self, mut arguments: Arguments) -> Result<u16, Refusal> {
        let id = arguments.text("id")?;
        arguments.end()?;
        let mut all = self.slots.iter().filter(|(_, s)| s.user.is_some());
        match id {
            Some(id) => {
                let slot = self.slots.find(&id).ok_or_else(|| Refusal::no_device(&id))?;
                let found = all.any(|(n, _)| n == slot);
                found.then_some(slot).ok_or_else(|| Refusal::generic(format!("'{id}' is no user network")))
            }
            None => all.next().map(|(n, _)| n).ok_or_else(|| Refusal::generic("there is no user network")),
        }
    }

    fn prepare_forwards(
        &mut self,
        slot: u16,
        all: bool,
        remove: &[String],
        add: &[String],
    ) -> Result<Outcome, Refusal> {
        // Nothing is opened for a change that nobody could be told of.
        if self.dataplane.as_ref().is_none_or(|d| d.ready.is_none()) {
            return Err(Refusal::generic("the dataplane is being replaced: try again"));
        }
        let mut asker = Asker::new(self.door.clone());
        let gone = || Refusal::generic("there is no user network");
        let s = self.slots.get_mut(slot).ok_or_else(gone)?;
        let host = s.user.as_mut().ok_or_else(gone)?;
        let bad = |b: crate::spec::forward::Bad| Refusal::generic(format!("{} ({})", b.why, b.fix));
        let remove: Vec<Listen> =
            remove.iter().map(|t| Listen::read(t)).collect::<Result<_, _>>().map_err(bad)?;
        let add = add.iter().map(|t| host.read(t)).collect::<Result<_, _>>().map_err(bad)?;
        host.prepare(all, &remove, add, &s.kept, &mut asker)?;
        if let PortPlan::User(plan) = &s.plan
            && let Err(fault) = host.fits(plan)
        {
            host.abandon();
            return Err(fault.into());
        }
        Ok(Outcome::Change(Box::new(Change::of([Step::Forwards { slot }]))))
    }

    /// What a user network is to be told: of its forwards, or of its resolvers.
    pub(in crate::supervise) fn to_tell(
        &self,
        slot: u16,
        forwards: bool,
    ) -> Option<(Tell, Vec<BorrowedFd<'_>>)> {
        let host = self.slots.get(slot)?.user.as_ref()?;
        if !forwards {
            return Some((Tell::Resolvers(host.resolvers.list().to_vec()), Vec::new()));
        }
        let (table, sockets) = host.prepared()?;
        Some((Tell::Forwards(table), sockets.iter().map(AsFd::as_fd).collect()))
    }

    /// The dataplane has the table that was prepared.
    pub(in crate::supervise) fn commit_forwards(&mut self, slot: u16) {
        let Some(s) = self.slots.get_mut(slot) else { return };
        let Some(host) = &mut s.user else { return };
        host.commit(&mut s.kept);
        if let PortPlan::User(plan) = &mut s.plan {
            plan.forwards = host.forwards();
        }
    }

    /// If this step was one of forwards, it is not made.
    pub(in crate::supervise) fn abandon_forwards(&mut self, step: Option<&Step>) {
        if let Some(Step::Forwards { slot }) = step
            && let Some(host) = self.slots.get_mut(*slot).and_then(|s| s.user.as_mut())
        {
            host.abandon();
        }
    }

    /// Tells networks of resolvers that have changed.
    pub(in crate::supervise) fn follow_resolvers(&mut self, now: Instant) {
        let ready = self.dataplane.as_ref().is_some_and(|d| d.ready.is_some());
        let mut changed = Vec::new();
        for (slot, s) in self.slots.iter_mut() {
            let (Some(host), PortPlan::User(plan)) = (&mut s.user, &mut s.plan) else { continue };
            host.resolvers.step(now);
            if plan.resolvers == host.resolvers.list() {
                continue;
            }
            if ready || self.dataplane.is_none() {
                plan.resolvers = host.resolvers.list().to_vec();
                changed.push(slot);
            } else {
                // One that has its plan already, and cannot be told yet.
                host.resolvers.again(now + LATER);
            }
        }
        for slot in changed.into_iter().filter(|_| ready) {
            self.begin(Change::of([Step::Resolvers { slot }]), now);
        }
    }
}
