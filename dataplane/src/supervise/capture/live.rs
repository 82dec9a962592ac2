//! Captures and other filters that come and go while frames pass: QMP's `object-add`, `object-del` and `qom-set`;
//! `netreeve capture` speaks them.
//!
//! The arguments are those of `--object`; a descriptor has a name, given with `getfd`. With `netreeve-tied` the capture ends
//! with the connection that asked for it, so that a client that is killed leaves none behind.
#![forbid(unsafe_code)]

use serde_json::{Value, json};

use super::format::About;
use super::{Capture, Target, open};
use crate::handover::ToDataplane;
use crate::spec::filter::{self, Dump, Filter, Output};
use crate::supervise::Supervisor;
use crate::supervise::change::{Change, Step};
use crate::supervise::control::Key;
use crate::supervise::control::commands::Outcome;
use crate::supervise::control::message::{Arguments, Refusal};
use crate::supervise::control::ports::{claim, fd_names};
use crate::supervise::filters::Applied;

/// Most filters of a run.
const MOST: u16 = 64;

/// `object-add`.
pub(in crate::supervise) fn object_add(
    s: &mut Supervisor,
    key: Key,
    arguments: Arguments,
) -> Result<Outcome, Refusal> {
    let mut options = arguments.0;
    let tied = match options.remove("netreeve-tied") {
        None | Some(Value::Bool(false)) => false,
        Some(Value::Bool(true)) => true,
        Some(_) => {
            return Err(Refusal::generic("Invalid parameter type for 'netreeve-tied', expected: boolean"));
        }
    };
    let names = fd_names(&mut options)?;
    let ids: Vec<(u16, String)> = s.slots.iter().map(|(n, p)| (n, p.id.clone())).collect();
    let ports: Vec<String> = ids.iter().map(|(_, id)| id.clone()).collect();
    let all = s.filters();
    // A port's place in the list stands for it here.
    let place = |slot: u16| ids.iter().position(|(n, _)| *n == slot).unwrap_or(usize::MAX);
    let chain = all.iter().map(|(_, id, slot)| (id.clone(), place(*slot))).collect();
    let read = filter::late(&Value::Object(options).to_string(), &ports, &chain)?;
    if s.captures.iter().any(|c| c.name.id == read.filter.id()) {
        let why = format!("attempt to add duplicate property '{}' to object", read.filter.id());
        return Err(Refusal::generic(why));
    }
    let is_free = |n: &u16| {
        s.captures.iter().all(|c| c.number != *n) && s.chain.step(*n).is_none() && !s.changes.name(*n)
    };
    let number = (0..MOST).find(is_free);
    let number = number.ok_or_else(|| Refusal::generic(format!("there are {MOST} filters already")))?;
    let before = all.get(read.at).map(|(n, ..)| *n);
    for warning in &read.warnings {
        s.voice.say(&format!("warning: {warning}"));
    }
    let dump = match read.filter {
        Filter::Dump(dump) => dump,
        Filter::Step(step) => {
            if tied {
                return Err(Refusal::generic("Parameter 'netreeve-tied' is for filter-dump"));
            }
            let slot = |at: usize| ids.get(at).map_or(u16::MAX, |(n, _)| *n);
            let queues = s.slots.get(slot(step.port)).map_or(1, |p| p.plan.queues());
            let new = Applied::new(&step, number, queues, slot)?;
            s.check_filter(&new)?;
            s.chain.steps.push(new);
            s.chain.insert(number, before);
            return Ok(Outcome::Change(Box::new(Change::of([Step::Filter { number }]))));
        }
    };
    let slot = ids.get(dump.port).map_or(0, |(n, _)| *n);
    let capture = begin(s, key, dump, &names, (number, slot))?;
    s.captures.push(Capture { tied: tied.then_some(key), ..capture });
    s.chain.insert(number, before);
    Ok(Outcome::Change(Box::new(Change::of([Step::Capture { number }]))))
}

/// Opens a capture's output and starts its thread.
fn begin(
    s: &mut Supervisor,
    key: Key,
    dump: Dump,
    names: &[String],
    (number, slot): (u16, u16),
) -> Result<Capture, Refusal> {
    let port = s.slots.get(slot).ok_or_else(|| Refusal::generic("the port is gone"))?;
    let about = About {
        format: dump.format,
        keep: dump.maxlen,
        port: port.id.clone(),
        kind: port.kind.into(),
        queues: port.plan.queues(),
    };
    let wanted: Vec<i32> = dump.output.inherited().into_iter().collect();
    let given = claim(s, key, names, &wanted)?.into_iter().next();
    let output = match (given, &dump.output) {
        (Some(fd), _) => fd,
        (None, Output::File(path)) => open(&format!("object '{}'", dump.id), path)?,
        (None, Output::Fd(_)) => return Err(Refusal::generic("the descriptor is not there")),
    };
    let target = Target { id: dump.id, number, slot };
    let capture = Capture::start(target, dump.plan, about, output);
    capture.map_err(|e| Refusal::generic(format!("starting a capture: {e}")))
}

/// `object-del`.
pub(in crate::supervise) fn object_del(
    s: &mut Supervisor,
    _: Key,
    mut arguments: Arguments,
) -> Result<Outcome, Refusal> {
    let id = arguments.need_text("id")?;
    arguments.end()?;
    // For whoever asks meanwhile it is gone.
    if let Some(a) = s.chain.steps.iter().find(|a| a.id == id && !s.changes.take_away(a.number)) {
        let (number, slot) = (a.number, a.slot);
        return Ok(Outcome::Change(Box::new(Change::of([Step::Unfilter { number, slot }]))));
    }
    let found = s.captures.iter_mut().find(|c| c.name.id == id && !c.ends);
    let capture = found.ok_or_else(|| Refusal::generic(format!("object '{id}' not found")))?;
    capture.ends = true;
    let (number, slot) = (capture.number, capture.slot);
    Ok(Outcome::Change(Box::new(Change::of([Step::Uncapture { number, slot }]))))
}

/// `qom-set`, of filters' `status`: all that QEMU's clients set of them while frames pass.
pub(in crate::supervise) fn qom_set(
    s: &mut Supervisor,
    _: Key,
    mut arguments: Arguments,
) -> Result<Outcome, Refusal> {
    let path = arguments.need_text("path")?;
    let property = arguments.need_text("property")?;
    let value = arguments.0.remove("value");
    arguments.end()?;
    let id = path.strip_prefix("/objects/").unwrap_or(&path);
    let mut steps = s.chain.steps.iter().filter(|a| a.id == id).map(|a| (a.number, a.slot));
    let mut dumps = s.captures.iter().filter(|c| c.name.id == id && !c.ends).map(|c| (c.number, c.slot));
    let (number, slot) = steps.next().or_else(|| dumps.next()).ok_or_else(|| Refusal::no_device(&path))?;
    if property != "status" {
        return Err(Refusal::generic(format!("Property '{property}' cannot be set while frames pass")));
    }
    let on = match value.as_ref().and_then(Value::as_str) {
        Some("on") => true,
        Some("off") => false,
        _ => return Err(Refusal::generic("Invalid value for 'status': on or off")),
    };
    Ok(Outcome::Change(Box::new(Change::of([Step::Status { number, slot, on }]))))
}

/// `netreeve-query-captures`.
pub(in crate::supervise) fn report(s: &Supervisor) -> Value {
    s.captures.iter().map(Capture::json).collect()
}

impl Supervisor {
    /// Gives the dataplane a capture.
    pub(in crate::supervise) fn tell_capture(&mut self, ask: u32, number: u16) -> Result<(), String> {
        let d = self.dataplane.as_ref().filter(|d| d.ready.is_some());
        let d = d.ok_or("the dataplane is being replaced: try again")?;
        let slot = self.captures.iter().find(|c| c.number == number).map_or(u16::MAX, |c| c.slot);
        let before = self.behind(number, slot);
        let c = self.captures.iter_mut().find(|c| c.number == number).ok_or("no such capture")?;
        d.capture(c, ask, before).map_err(|e| e.to_string())
    }

    /// The dataplane does not write to a capture any more, or never did: what is there is written, and its thread ends.
    pub(in crate::supervise) fn end_capture(&mut self, number: u16) {
        if let Some(c) = self.captures.iter_mut().find(|c| c.number == number) {
            c.begin_end();
        }
    }

    /// A port goes, and its captures with it.
    pub(in crate::supervise) fn end_captures_of(&mut self, slot: u16) {
        self.captures.iter_mut().filter(|c| c.slot == slot).for_each(Capture::begin_end);
    }

    /// Takes captures away whose thread has ended, or whose output or client is gone.
    pub(in crate::supervise) fn end_captures(&mut self) {
        for at in 0..self.captures.len() {
            let Some(c) = self.captures.get(at).filter(|c| !c.ends) else { continue };
            let orphan = c.tied.is_some_and(|key| self.control.as_ref().is_none_or(|all| !all.has(key)));
            if !(orphan || c.is_over()) {
                continue;
            }
            if let Some(d) = &self.dataplane {
                // One that does not read has a spool that fills, and that is all.
                let _told = d.tell(&ToDataplane::Unfilter { ask: 0, slot: c.slot, filter: c.number }, &[]);
            }
            if let Some(c) = self.captures.get_mut(at) {
                c.lost_output = !orphan;
                c.begin_end();
            }
        }
        while let Some(at) = self.captures.iter().position(|c| c.ends && c.has_ended()) {
            let c = self.captures.remove(at);
            let (lost_output, tied) = (c.lost_output, c.tied.is_some());
            let (name, totals) = c.end();
            let said = json!({
                "id": name.id, "port": name.port, "seen": totals.seen, "written": totals.written,
                "bytes": totals.bytes, "lost": totals.lost, "failed": totals.failed,
            });
            self.tell("NETREEVE_CAPTURE_ENDED", said);
            let gone = if lost_output { "; its output is gone" } else { "" };
            if lost_output && !tied || totals.lost + totals.failed > 0 {
                self.voice.say(&format!("{}{gone}", name.line(&totals)));
            }
        }
    }
}
