//! What a client may say, and how the supervisor answers.
//!
//! One row of [`COMMANDS`] for each command. A command answers at once, or when counters have come, or when names
//! are known, or when the dataplane has made a change ([`crate::supervise::change`]); until then its client is not served on, so that answers
//! come in the order of the questions.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::message::{Arguments, Class, Refusal, Request, version};
use super::{Key, forwards, ports, rounds, shutdown};
use crate::handover::ToDataplane;
use crate::supervise::Supervisor;
use crate::supervise::capture::live;
use crate::supervise::change::Change;
use crate::supervise::late_names::{Asked, Sought};

/// How long an answer waits for counters; then it is given without them.
const COUNTERS_WITHIN: Duration = Duration::from_secs(1);

/// What became of a command that was understood.
pub(in crate::supervise) enum Outcome {
    /// The answer.
    Now(Value),
    /// The answer is made of counters; false: they did not come.
    Counters(fn(&Supervisor, bool) -> Value),
    /// The answer follows the dataplane's.
    Change(Box<Change>),
    /// The port is added when its names are known.
    Names(Box<Sought>),
}

/// A question that waits for counters.
#[derive(Debug)]
pub(in crate::supervise) struct Pending {
    key: Key,
    id: Option<Value>,
    report: fn(&Supervisor, bool) -> Value,
    /// The question to the dataplane that serves this one.
    round: u64,
}

type Handler = fn(&mut Supervisor, Key, Arguments) -> Result<Outcome, Refusal>;

const COMMANDS: &[(&str, Handler)] = &[
    ("closefd", close_fd),
    ("device_add", ports::device_add),
    ("device_del", ports::device_del),
    ("getfd", get_fd),
    ("hostfwd_add", forwards::add),
    ("hostfwd_remove", forwards::remove),
    ("netreeve-query-filters", |s, _, a| now(a, s.filters_report())),
    ("netreeve-query-captures", |s, _, a| now(a, live::report(s))),
    ("netreeve-query-instance", |_, _, a| counted(a, Supervisor::instance_report)),
    ("netdev_add", ports::netdev_add),
    ("netdev_del", ports::netdev_del),
    ("netreeve-query-ports", |_, _, a| counted(a, Supervisor::ports_report)),
    ("netreeve-set-hostfwd", forwards::set),
    ("netreeve-set-netdev", ports::set_netdev),
    ("object-add", live::object_add),
    ("object-del", live::object_del),
    ("qmp_capabilities", negotiate),
    ("qom-set", live::qom_set),
    ("query-commands", |_, _, a| now(a, commands())),
    ("query-name", |s, _, a| now(a, s.control_name().map_or(json!({}), |n| json!({ "name": n })))),
    ("query-status", |s, _, a| now(a, s.status())),
    ("query-version", |_, _, a| now(a, version())),
    ("quit", quit),
    ("set_link", ports::set_link),
];

/// An answer that needs no arguments and no waiting.
fn now(arguments: Arguments, value: Value) -> Result<Outcome, Refusal> {
    arguments.end().map(|()| Outcome::Now(value))
}

fn counted(arguments: Arguments, report: fn(&Supervisor, bool) -> Value) -> Result<Outcome, Refusal> {
    arguments.end().map(|()| Outcome::Counters(report))
}

/// `query-commands`.
fn commands() -> Value {
    COMMANDS.iter().map(|(name, _)| json!({ "name": name })).collect()
}

fn negotiate(s: &mut Supervisor, key: Key, mut arguments: Arguments) -> Result<Outcome, Refusal> {
    let asked = arguments.0.remove("enable").unwrap_or_else(|| json!([]));
    arguments.end()?;
    let list = asked
        .as_array()
        .ok_or_else(|| Refusal::generic("Invalid parameter type for 'enable', expected: array"))?;
    match list.first() {
        None => {}
        Some(Value::String(oob)) if oob == "oob" => {
            return Err(Refusal::generic("Capability oob not available"));
        }
        Some(Value::String(other)) => {
            return Err(Refusal::generic(format!("Parameter 'enable' does not accept value '{other}'")));
        }
        Some(_) => return Err(Refusal::generic("Invalid parameter type for 'enable', expected: string")),
    }
    if let Some(c) = s.client(key) {
        c.negotiated = true;
    }
    Ok(Outcome::Now(json!({})))
}

fn get_fd(s: &mut Supervisor, key: Key, mut arguments: Arguments) -> Result<Outcome, Refusal> {
    let name = arguments.need_text("fdname")?;
    arguments.end()?;
    if let Some(c) = s.client(key) {
        c.name(name)?;
    }
    Ok(Outcome::Now(json!({})))
}

fn close_fd(s: &mut Supervisor, key: Key, mut arguments: Arguments) -> Result<Outcome, Refusal> {
    let name = arguments.need_text("fdname")?;
    arguments.end()?;
    match s.client(key).and_then(|c| c.named(&name)) {
        Some(_closed) => Ok(Outcome::Now(json!({}))),
        None => Err(Refusal::generic(format!("File descriptor named '{name}' not found"))),
    }
}

fn quit(s: &mut Supervisor, _: Key, arguments: Arguments) -> Result<Outcome, Refusal> {
    arguments.end()?;
    s.say_shutdown("host-qmp-quit");
    s.asked_to_end(Signal::SIGTERM, false);
    Ok(Outcome::Now(json!({})))
}

impl Supervisor {
    /// Serves the clients of the control socket.
    pub(in crate::supervise) fn serve_clients(&mut self, now: Instant) {
        if let Some(control) = &mut self.control {
            control.turn(now);
        }
        for _ in 0..rounds() {
            let all = self.control.as_mut().map(|c| c.requests(now)).unwrap_or_default();
            if all.is_empty() {
                break;
            }
            for (key, request) in all {
                self.serve_request(key, request, now);
            }
        }
        self.give_up_on_counters(now);
        if let Some(control) = &mut self.control {
            control.bury(now);
        }
    }

    fn serve_request(&mut self, key: Key, request: Request, now: Instant) {
        let Request { command, arguments, id } = request;
        let outcome = self.execute(key, &command, arguments);
        self.settle(key, outcome, id, now);
    }

    /// Answers a request, or sees to it that it will be answered.
    pub(in crate::supervise) fn settle(
        &mut self,
        key: Key,
        outcome: Result<Outcome, Refusal>,
        id: Option<Value>,
        now: Instant,
    ) {
        match outcome {
            Ok(Outcome::Now(value)) => self.answer(key, Ok(value), id, now),
            Err(refusal) => self.answer(key, Err(refusal), id, now),
            Ok(Outcome::Counters(report)) => {
                self.client_waits(key);
                match self.want_counters(now) {
                    Some(round) => self.pending.push(Pending { key, id, report, round }),
                    None => self.answer(key, Ok(report(self, false)), id, now),
                }
            }
            Ok(Outcome::Change(change)) => {
                self.client_waits(key);
                self.begin(change.asked_by(key, id), now);
            }
            Ok(Outcome::Names(sought)) => {
                self.client_waits(key);
                self.sought.push(Asked { by: key, id, sought: *sought });
            }
        }
    }

    fn execute(&mut self, key: Key, command: &str, arguments: Arguments) -> Result<Outcome, Refusal> {
        let negotiated = self.client(key).is_some_and(|c| c.negotiated);
        let refuse = |desc: &str| Err(Refusal { class: Class::CommandNotFound, desc: desc.into() });
        match (command, negotiated) {
            ("qmp_capabilities", true) => {
                return refuse("Capabilities negotiation is already complete, command ignored");
            }
            ("qmp_capabilities", false) | (_, true) => {}
            (_, false) => return refuse("Expecting capabilities negotiation with 'qmp_capabilities'"),
        }
        let row = COMMANDS.iter().find(|(name, _)| *name == command);
        let (_, handler) = row.ok_or_else(|| Refusal::no_command(command))?;
        handler(self, key, arguments)
    }

    pub(super) fn client(&mut self, key: Key) -> Option<&mut super::client::Client> {
        self.control.as_mut()?.client(key)
    }

    fn client_waits(&mut self, key: Key) {
        if let Some(c) = self.client(key) {
            c.waits = true;
        }
    }

    /// Answers a request; its client may be gone.
    pub(in crate::supervise) fn answer(
        &mut self,
        key: Key,
        result: Result<Value, Refusal>,
        id: Option<Value>,
        now: Instant,
    ) {
        if let Some(control) = &mut self.control {
            control.answer(key, result, id, now);
        }
    }

    /// Tells all clients of an event.
    pub(in crate::supervise) fn tell(&mut self, event: &str, data: Value) {
        if let Some(control) = &mut self.control {
            control.event(event, data, Instant::now());
        }
    }

    /// `SHUTDOWN`, once.
    pub(in crate::supervise) fn say_shutdown(&mut self, reason: &str) {
        if !std::mem::replace(&mut self.shutdown_said, true) {
            self.tell("SHUTDOWN", shutdown(reason));
        }
    }

    fn control_name(&self) -> Option<&str> {
        self.control.as_ref()?.name()
    }

    /// Asks for counters that are not older than this question. The number of the round that brings them; none: the
    /// dataplane cannot be asked.
    pub(in crate::supervise) fn want_counters(&mut self, now: Instant) -> Option<u64> {
        if self.counters.waits().is_some_and(|t| now < t + COUNTERS_WITHIN) {
            return Some(self.counters.round() + 1);
        }
        self.dataplane_slots().next()?;
        let d = self.dataplane.as_ref().filter(|d| d.ready.is_some())?;
        d.tell(&ToDataplane::Stats { slot: None }, &[]).ok()?;
        Some(self.counters.ask(now))
    }

    /// Counters have come: answers those who asked before they were asked for, and asks again for the others.
    pub(in crate::supervise) fn counters_came(&mut self, fresh: bool, now: Instant) {
        let round = self.counters.round();
        if self.print_round.take_if(|r| *r <= round).is_some() && fresh {
            self.print_counters();
        }
        let (served, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.pending).into_iter().partition(|p| p.round <= round);
        self.pending = later;
        for p in served {
            self.answer(p.key, Ok((p.report)(self, fresh)), p.id, now);
        }
        if (!self.pending.is_empty() || self.print_round.is_some()) && self.want_counters(now).is_none() {
            self.nobody_counts(now);
        }
    }

    /// There is no dataplane that could be asked: answers without counters.
    pub(in crate::supervise) fn nobody_counts(&mut self, now: Instant) {
        self.print_round = None;
        for p in std::mem::take(&mut self.pending) {
            self.answer(p.key, Ok((p.report)(self, false)), p.id, now);
        }
    }

    fn give_up_on_counters(&mut self, now: Instant) {
        if self.counters_due().is_some_and(|t| t <= now) {
            self.counters_came(false, now);
        }
    }

    /// When somebody has waited long enough for counters.
    pub(in crate::supervise) fn counters_due(&self) -> Option<Instant> {
        let wanted = !self.pending.is_empty() || self.print_round.is_some();
        self.counters.waits().map(|t| t + COUNTERS_WITHIN).filter(|_| wanted)
    }
}
