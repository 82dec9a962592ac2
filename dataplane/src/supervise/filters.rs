//! Filters that step in, or make copies for another port: QEMU's mirror, redirector and buffer, and the order of all
//! filters of a port.
//!
//! Nothing of them lives here but what they are: frames stay in the dataplane, and the ports beside them are ports like any
//! other. So they outlive a dataplane as ports do; what a buffer held is lost with it.
//!
//! Trust: the user. Promise: a filter is on all queues of its port or on none, at its place in the chain.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use serde_json::{Value, json};

use crate::fault::{Exit, Fault};
use crate::handover::{FilterPlan, PortPlan, ToDataplane};
use crate::mem::spool;
use crate::port::stream::framing::Framing;
use crate::spec::Config;
use crate::spec::filter::{Filter, Step, What};
use crate::stage::{Queue, divert, hold};
use crate::supervise::Supervisor;
use crate::supervise::child::Dataplane;
use crate::supervise::control::message::Refusal;
use crate::sys::timer::Timer;

/// Most queues of a port with a buffer: a timer for each travels in one message.
pub const MOST_QUEUES: u16 = 15;

/// A filter as the supervisor holds it.
#[derive(Debug)]
pub struct Applied {
    /// Its name.
    pub id: String,
    /// Its number in the hand-over.
    pub number: u16,
    /// Its port's slot.
    pub slot: u16,
    plan: FilterPlan,
    /// Of a buffer.
    interval: Duration,
    queues: u16,
    /// Virtio-net headers go with its frames.
    header: bool,
}

impl Applied {
    /// One as it was asked for. `slot` says which slot a port of the configuration has.
    ///
    /// # Errors
    /// A buffer of too many queues.
    pub fn new(step: &Step, number: u16, queues: u16, slot: impl Fn(usize) -> u16) -> Result<Self, Fault> {
        let divert = |takes, out: Option<usize>, from: Option<usize>| {
            FilterPlan::Divert(divert::Plan {
                queue: step.queue,
                on: step.on,
                takes,
                out: out.map(&slot),
                from: from.map(&slot),
            })
        };
        let mut interval = Duration::ZERO;
        let plan = match step.what {
            What::Mirror { out, .. } => divert(false, Some(out), None),
            What::Redirector { out, from, .. } => divert(true, out, from),
            What::Buffer { interval: us } => {
                interval = Duration::from_micros(us.into());
                if queues > MOST_QUEUES {
                    let why = format!("a buffer holds frames of at most {MOST_QUEUES} queues");
                    let what = format!("object '{}'", step.id);
                    return Err(Fault::new(Exit::Config, what, why, "give the port fewer queues"));
                }
                FilterPlan::Hold(hold::Plan { queue: step.queue, on: step.on })
            }
        };
        let (id, header) = (step.id.clone(), step.header());
        Ok(Self { id, number, slot: slot(step.port), plan, interval, queues, header })
    }

    /// Slots of the ports beside it.
    pub fn asides(&self) -> impl Iterator<Item = u16> {
        let (out, from) = match &self.plan {
            FilterPlan::Divert(p) => (p.out, p.from),
            _ => (None, None),
        };
        out.into_iter().chain(from)
    }

    fn from(&self) -> Option<u16> {
        if let FilterPlan::Divert(p) = &self.plan { p.from } else { None }
    }

    /// What a dataplane needs for it.
    fn fds(&self) -> io::Result<Vec<OwnedFd>> {
        match &self.plan {
            FilterPlan::Divert(p) => {
                let bells = usize::from(p.out.is_some()) + 2 * usize::from(p.from.is_some());
                (0..bells).map(|_| spool::bell()).collect()
            }
            FilterPlan::Hold(_) => (0..self.queues).map(|_| Timer::every(self.interval)).collect(),
            FilterPlan::Capture(_) => Ok(Vec::new()),
        }
    }

    /// Gives it to a dataplane, before the filter of number `before`.
    ///
    /// # Errors
    /// No descriptors, or the dataplane is gone.
    pub fn give(&self, d: &Dataplane, ask: u32, before: Option<u16>) -> io::Result<()> {
        let fds = self.fds()?;
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let (slot, filter, plan) = (self.slot, self.number, self.plan.clone());
        d.tell(&ToDataplane::Filter { ask, slot, filter, before, plan }, &fds)
    }

    fn set_on(&mut self, on: bool) {
        match &mut self.plan {
            FilterPlan::Divert(p) => p.on = on,
            FilterPlan::Hold(p) => p.on = on,
            FilterPlan::Capture(p) => p.on = on,
        }
    }

    fn kind(&self) -> (&'static str, Queue, bool) {
        match &self.plan {
            FilterPlan::Divert(p) if p.takes => ("filter-redirector", p.queue, p.on),
            FilterPlan::Divert(p) => ("filter-mirror", p.queue, p.on),
            FilterPlan::Hold(p) => ("filter-buffer", p.queue, p.on),
            FilterPlan::Capture(p) => ("filter-dump", p.queue, p.on),
        }
    }
}

/// Filters that step in, and the order of all.
#[derive(Debug, Default)]
pub struct Chain {
    /// Those that step in, or make copies.
    pub steps: Vec<Applied>,
    /// Numbers of all filters, captures included, head first; some may be gone.
    order: Vec<u16>,
}

impl Chain {
    /// Those of a configuration, whose ports' indices are their slots.
    ///
    /// # Errors
    /// Those of [`Applied::new`].
    pub fn of(config: &Config) -> Result<Self, Fault> {
        let mut chain = Self::default();
        let slot = |at| u16::try_from(at).unwrap_or(u16::MAX);
        for (number, f) in (0_u16..).zip(&config.filters) {
            chain.order.push(number);
            if let Filter::Step(s) = f {
                let queues = config.ports.get(s.port).map_or(1, |p| p.kind.queues());
                let queues = u16::try_from(queues).unwrap_or(u16::MAX);
                chain.steps.push(Applied::new(s, number, queues, slot)?);
            }
        }
        Ok(chain)
    }

    /// Numbers of all filters, head first.
    pub fn order(&self) -> impl Iterator<Item = u16> {
        self.order.iter().copied()
    }

    /// The filter of this number, if it is one that steps in.
    #[must_use]
    pub fn step(&self, number: u16) -> Option<&Applied> {
        self.steps.iter().find(|a| a.number == number)
    }

    /// Takes a filter away.
    pub fn remove(&mut self, number: u16) {
        self.steps.retain(|a| a.number != number);
        self.order.retain(|n| *n != number);
    }

    /// A filter that puts frames out at a port, or takes frames from it.
    #[must_use]
    pub fn user(&self, slot: u16) -> Option<&Applied> {
        self.steps.iter().find(|a| a.asides().any(|s| s == slot))
    }

    /// A filter comes before the one of number `before`, or last.
    pub fn insert(&mut self, number: u16, before: Option<u16>) {
        self.order.retain(|n| *n != number);
        let at = before.and_then(|b| self.order.iter().position(|n| *n == b)).unwrap_or(self.order.len());
        self.order.insert(at, number);
    }
}

impl Supervisor {
    /// All filters that are there, head first: number, name, slot.
    pub(super) fn filters(&self) -> Vec<(u16, String, u16)> {
        let capture = |n| self.captures.iter().find(|c| c.number == n && c.is_wanted());
        let one = |n| match (self.chain.step(n), capture(n)) {
            (Some(a), _) => Some((n, a.id.clone(), a.slot)),
            (None, Some(c)) => Some((n, c.name.id.clone(), c.slot)),
            _ => None,
        };
        self.chain.order().filter_map(one).collect()
    }

    /// The next filter of the same port behind this one.
    pub(super) fn behind(&self, number: u16, slot: u16) -> Option<u16> {
        let all = self.filters();
        let at = all.iter().position(|(n, ..)| *n == number)?;
        all.iter().skip(at + 1).find(|(_, _, s)| *s == slot).map(|(n, ..)| *n)
    }

    /// A new filter can stand beside what there is.
    pub(super) fn check_filter(&self, new: &Applied) -> Result<(), Refusal> {
        for at in new.asides() {
            let Some(port) = self.slots.get(at) else { continue };
            let id = &port.id;
            let joined = self.plan.wires.iter().any(|w| w.netdev == at || w.device == at);
            let taken = new.from() == Some(at) && self.chain.steps.iter().any(|a| a.from() == Some(at));
            if joined || taken || at == new.slot || self.chain.steps.iter().any(|a| a.slot == at) {
                return Err(Refusal::generic(format!("Device '{id}' is in use")));
            }
            let framing = match &port.plan {
                PortPlan::Stream(p) => Some(p.framing),
                PortPlan::Hub(_) => {
                    return Err(Refusal::generic(format!("port '{id}' cannot be a filter's")));
                }
                _ => None,
            };
            if port.plan.queues() != 1 {
                return Err(Refusal::generic(format!("port '{id}' has more than one queue")));
            }
            if new.header != (framing == Some(Framing::Vnet)) {
                let fix =
                    "vnet_hdr_support=on needs a stream that was added with framing=vnet, and only that";
                return Err(Refusal::generic(format!("port '{id}': {fix}")));
            }
        }
        match self.chain.user(new.slot) {
            Some(user) => {
                let port = self.slots.get(new.slot).map_or("", |s| s.id.as_str());
                Err(Refusal::generic(format!("port '{port}' is in use by object '{}'", user.id)))
            }
            None => Ok(()),
        }
    }

    /// A port that a filter puts frames out at, or takes frames from, stays where it is.
    pub(super) fn not_beside(&self, slot: u16) -> Result<(), Refusal> {
        match (self.chain.user(slot), self.slots.get(slot)) {
            (Some(user), Some(port)) => {
                Err(Refusal::generic(format!("Device '{}' is in use by object '{}'", port.id, user.id)))
            }
            _ => Ok(()),
        }
    }

    /// Gives the dataplane a filter.
    pub(super) fn tell_filter(&self, ask: u32, number: u16) -> Result<(), String> {
        let d = self.dataplane.as_ref().filter(|d| d.ready.is_some());
        let d = d.ok_or("the dataplane is being replaced: try again")?;
        let a = self.chain.step(number).ok_or("no such filter")?;
        a.give(d, ask, self.behind(number, a.slot)).map_err(|e| e.to_string())
    }

    /// A filter was turned on or off.
    pub(super) fn filter_is(&mut self, number: u16, on: bool) {
        self.chain.steps.iter_mut().filter(|a| a.number == number).for_each(|a| a.set_on(on));
        self.captures.iter_mut().filter(|c| c.number == number).for_each(|c| c.plan.on = on);
    }

    /// A port goes, and its filters with it.
    pub(super) fn end_filters_of(&mut self, slot: u16) {
        let gone: Vec<u16> = self.chain.steps.iter().filter(|a| a.slot == slot).map(|a| a.number).collect();
        gone.into_iter().for_each(|n| self.chain.remove(n));
        self.end_captures_of(slot);
    }

    /// `netreeve-query-filters`: all filters, each port's from head to tail.
    pub(super) fn filters_report(&self) -> Value {
        let name = |slot: u16| self.slots.get(slot).map(|s| s.id.clone());
        let one = |(number, id, slot): (u16, String, u16)| {
            let dumps = !self.captures.iter().any(|c| c.number == number && !c.plan.on);
            let status = if dumps { "on" } else { "off" };
            let mut out = json!({ "id": id, "port": name(slot), "type": "filter-dump", "status": status });
            let Some(a) = self.chain.step(number) else { return out };
            let (kind, queue, on) = a.kind();
            let mut add = |key: &str, value: Value| out.as_object_mut().map(|m| m.insert(key.into(), value));
            add("type", kind.into());
            add("status", if on { "on" } else { "off" }.into());
            add("queue", format!("{queue:?}").to_lowercase().into());
            match &a.plan {
                FilterPlan::Divert(p) => {
                    for (key, slot) in [("outdev", p.out), ("indev", p.from)] {
                        slot.and_then(name).map(|id| add(key, id.into()));
                    }
                    add("vnet_hdr_support", a.header.into());
                }
                _ => {
                    add("interval", u64::try_from(a.interval.as_micros()).unwrap_or(u64::MAX).into());
                }
            }
            out
        };
        self.filters().into_iter().map(one).collect()
    }
}
