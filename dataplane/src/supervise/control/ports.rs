//! Commands that change ports: `netdev_add`, `netdev_del`, `device_add`, `device_del`, `set_link`, and the swap of the
//! netdev beneath a live device.
//!
//! The arguments are those of the command line's options, in QEMU's JSON form. Descriptors are named as in QEMU: passed
//! with `getfd`, then `fd=NAME`; a number would mean a descriptor of ours, and is refused.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use serde_json::{Map, Value};

use super::Key;
use super::commands::Outcome;
use super::message::{Arguments, Refusal};
use super::report::far_end;
use crate::handover::Wire;
use crate::spec::late::{self, Late};
use crate::supervise::ask::Asker;
use crate::supervise::change::{Change, Step};
use crate::supervise::dial;
use crate::supervise::late_names::{self, Sought};
use crate::supervise::link_watch::LinkWatch;
use crate::supervise::names::{Lookup, by_system};
use crate::supervise::slot::{How, Slot};
use crate::supervise::{Supervisor, make_room};

/// Placeholders for named descriptors begin here: the options know no lower ones.
const FIRST_FD: i32 = 3;

pub(super) fn set_link(s: &mut Supervisor, _: Key, mut arguments: Arguments) -> Result<Outcome, Refusal> {
    let name = arguments.need_text("name")?;
    let up = arguments.need_flag("up")?;
    arguments.end()?;
    let slot = s.slots.find(&name).ok_or_else(|| Refusal::no_device(&name))?;
    if s.changes.move_port(slot) {
        return Err(busy(&name));
    }
    Ok(change([Step::Link { slot, up }]))
}

pub(super) fn netdev_add(s: &mut Supervisor, key: Key, arguments: Arguments) -> Result<Outcome, Refusal> {
    add(s, key, arguments.0, false, None)
}

pub(super) fn device_add(s: &mut Supervisor, key: Key, arguments: Arguments) -> Result<Outcome, Refusal> {
    let mut arguments = arguments;
    let driver = arguments.need_text("driver")?;
    if arguments.0.contains_key("type") {
        return Err(Refusal::generic("Parameter 'type' is unexpected"));
    }
    if late::hotplug(&driver).count() == 0 {
        return Err(Refusal::generic(format!("'{driver}' is not a valid device model name")));
    }
    arguments.0.insert("type".into(), driver.into());
    add(s, key, arguments.0, true, None)
}

pub(super) fn netdev_del(s: &mut Supervisor, _: Key, arguments: Arguments) -> Result<Outcome, Refusal> {
    remove(s, arguments, false)
}

pub(super) fn device_del(s: &mut Supervisor, _: Key, arguments: Arguments) -> Result<Outcome, Refusal> {
    remove(s, arguments, true)
}

/// Another netdev for a device, which does not notice.
pub(super) fn set_netdev(s: &mut Supervisor, _: Key, mut arguments: Arguments) -> Result<Outcome, Refusal> {
    let device = arguments.need_text("device")?;
    let netdev = arguments.need_text("netdev")?;
    arguments.end()?;
    let slot = s.find(&device, true)?;
    s.not_changing(slot, &device)?;
    let wire = s.wire(slot, &netdev)?;
    Ok(if s.plan.wires.contains(&wire) { change([]) } else { change([Step::Join(wire)]) })
}

/// A slot may be another port's before the turn of a second change comes.
fn busy(id: &str) -> Refusal {
    Refusal::generic(format!("Device '{id}' is in the middle of another change: try again"))
}

fn change<const N: usize>(steps: [Step; N]) -> Outcome {
    Outcome::Change(Box::new(Change::of(steps)))
}

fn remove(s: &Supervisor, mut arguments: Arguments, device: bool) -> Result<Outcome, Refusal> {
    let id = arguments.need_text("id")?;
    arguments.end()?;
    let slot = s.find(&id, device)?;
    s.not_beside(slot)?;
    s.not_changing(slot, &id)?;
    if s.slots.get(slot).is_some_and(|p| p.of_client) {
        let client = id.strip_suffix(".hub").unwrap_or(&id);
        return Err(Refusal::generic(format!("'{id}' goes with its client: delete '{client}'")));
    }
    Ok(Outcome::Change(Box::new(Change::of(s.removal(slot)))))
}

/// Adds a port; `found` are the addresses of its names, if it has any and they were looked up.
///
/// # Errors
/// It cannot be had.
pub(in crate::supervise) fn add(
    s: &mut Supervisor,
    key: Key,
    options: Map<String, Value>,
    device: bool,
    found: Option<Vec<Vec<SocketAddr>>>,
) -> Result<Outcome, Refusal> {
    // Nothing is opened for a change that nobody could be told of.
    if s.dataplane.as_ref().is_none_or(|d| d.ready.is_none()) {
        return Err(Refusal::generic("the dataplane is being replaced: try again"));
    }
    let asked = options.clone();
    let mut options = options;
    let names = fd_names(&mut options)?;
    let taken = s.slots.iter().map(|(_, p)| p.id.clone()).collect();
    let mut new = Late::read(device, &Value::Object(options).to_string(), taken)?;
    let kind = new.port.kind.name();
    if kind == "user" {
        let why = "a user network is made at the start or not at all: its dataplane may make sockets";
        return Err(Refusal::generic(why));
    }
    if !late::hotplug(kind).any(|k| s.plan.later.contains(&k)) {
        let fix = format!("start netreeve run with --hotplug {kind}");
        return Err(Refusal::generic(format!("ports of type '{kind}' cannot be added to this run ({fix})")));
    }
    if let Some(netdev) = &new.netdev {
        s.free_netdev(netdev, None)?;
    }
    let unknown = late_names::unknown(&mut new.port.kind);
    match found {
        _ if unknown.is_empty() => {}
        Some(found) => late_names::settle(&format!("port '{}'", new.port.id), &mut new.port.kind, found)?,
        None => {
            let lookup = Lookup::start(unknown, by_system).map_err(|e| Refusal::generic(e.to_string()))?;
            return Ok(Outcome::Names(Box::new(Sought { lookup, options: asked, device })));
        }
    }
    let fds = claim(s, key, &names, &new.port.kind.inherited())?;
    for warning in &new.warnings {
        s.voice.say(&format!("warning: {warning}"));
    }
    let mut asker = Asker::new(s.door.clone());
    let port = Slot::open(new.port, fds, &mut asker, How { mode: s.socket_mode, wait: false })?;
    make_room(s.slots.iter().map(|(_, p)| p).chain([&port]).map(Slot::descriptors).sum());
    if s.links.is_none() && port.link.as_ref().is_some_and(|l| l.index.is_some()) {
        s.links = LinkWatch::new().ok();
    }
    let port = Slot { device, lock_mac: new.lock_mac, ..port };
    let slot =
        s.slots.put(port).ok_or_else(|| Refusal::generic("there are as many ports as there may be"))?;
    let mut steps = vec![Step::Add { slot }];
    if let Some(netdev) = &new.netdev {
        match s.wire(slot, netdev) {
            Ok(wire) => steps.push(Step::Join(wire)),
            Err(e) => {
                s.slots.take(slot);
                return Err(e);
            }
        }
    }
    s.dial_now(slot);
    Ok(Outcome::Change(Box::new(Change::of(steps).with(asker))))
}

/// Replaces the names of descriptors by placeholders, in the order of the names that it gives.
pub(in crate::supervise) fn fd_names(options: &mut Map<String, Value>) -> Result<Vec<String>, Refusal> {
    let mut names = Vec::new();
    for (key, value) in options.iter_mut() {
        match value {
            Value::Object(address) if address.get("type").is_some_and(|t| t == "fd") => {
                if let Some(name) = address.get_mut("str") {
                    replace_names("str", name, &mut names)?;
                }
            }
            value if key == "fd" || key == "fds" => replace_names(key, value, &mut names)?,
            _ => {}
        }
    }
    Ok(names)
}

fn replace_names(key: &str, value: &mut Value, names: &mut Vec<String>) -> Result<(), Refusal> {
    let number = || {
        let why = format!("Parameter '{key}' expects a name that getfd gave, not a number");
        Err(Refusal::generic(why))
    };
    let Value::String(text) = &*value else { return number() };
    let mut placeholders = Vec::new();
    for name in text.split(':') {
        if name.is_empty() || name.bytes().all(|b| b.is_ascii_digit()) {
            return number();
        }
        let next = i32::try_from(names.len()).unwrap_or(i32::MAX).saturating_add(FIRST_FD);
        placeholders.push(next.to_string());
        names.push(name.to_owned());
    }
    *value = Value::String(placeholders.join(":"));
    Ok(())
}

/// The descriptors with these names, in the order in which the port wants them. All are there, or none is taken.
pub(in crate::supervise) fn claim(
    s: &mut Supervisor,
    key: Key,
    names: &[String],
    wanted: &[i32],
) -> Result<Vec<OwnedFd>, Refusal> {
    let missing = |name: &str| Refusal::generic(format!("File descriptor named '{name}' has not been found"));
    if wanted.len() != names.len() {
        return Err(Refusal::generic("a descriptor is named that the port does not use"));
    }
    let Some(client) = s.client(key) else { return Ok(Vec::new()) };
    let place = |n: &i32| usize::try_from(n.saturating_sub(FIRST_FD)).ok().and_then(|i| names.get(i));
    if let Some(name) = names.iter().find(|n| !client.has(n)) {
        return Err(missing(name));
    }
    // One name twice is one descriptor.
    let take = |name: &String| client.named(name).ok_or_else(|| missing(name));
    wanted.iter().filter_map(place).map(take).collect()
}

impl Supervisor {
    /// The slot of a device or of a netdev.
    fn find(&self, id: &str, device: bool) -> Result<u16, Refusal> {
        let slot = self.slots.find(id).filter(|n| self.slots.get(*n).is_some_and(|s| s.device == device));
        slot.ok_or_else(|| Refusal::no_device(id))
    }

    /// No change is under way that has to do with a slot.
    fn not_changing(&self, slot: u16, id: &str) -> Result<(), Refusal> {
        if self.changes.concern(slot) { Err(busy(id)) } else { Ok(()) }
    }

    /// The slot of a netdev that no other device than `but` has.
    fn free_netdev(&self, id: &str, but: Option<u16>) -> Result<u16, Refusal> {
        let bad = |why: &str| Refusal::generic(format!("Property 'netdev' can't {why}"));
        let found = self.find(id, false).map_err(|_| bad(&format!("find value '{id}'")))?;
        // Another client's change may be about to take it, or to take it away.
        if self.chain.user(found).is_some() || self.changes.concern(found) {
            return Err(bad(&format!("take value '{id}', it's in use")));
        }
        let wire = self.plan.wires.iter().find(|w| w.netdev == found || w.device == found);
        match wire {
            Some(w) if Some(w.device) != but => Err(bad(&format!("take value '{id}', it's in use"))),
            _ => Ok(found),
        }
    }

    /// The wire that joins a device to a netdev.
    fn wire(&self, device: u16, netdev: &str) -> Result<Wire, Refusal> {
        let netdev = self.free_netdev(netdev, Some(device))?;
        let lock_mac = self.slots.get(device).and_then(|s| s.lock_mac);
        Ok(Wire { netdev, device, lock_mac })
    }

    /// A port that dials begins at once, so that it comes with its connection.
    fn dial_now(&mut self, slot: u16) {
        let Some(s) = self.slots.get_mut(slot) else { return };
        match s.dialler.as_mut().map(|d| d.step(Instant::now())) {
            Some(dial::Step::Connected(fd)) => {
                s.far = far_end(fd.as_raw_fd());
                s.fresh = Some(fd);
            }
            Some(dial::Step::Failed(e)) => s.failed = Some(format!("connecting failed: {e}")),
            Some(dial::Step::Pending) | None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn names(mut options: Value) -> Result<(Value, Vec<String>), Refusal> {
        let names = fd_names(options.as_object_mut().unwrap())?;
        Ok((options, names))
    }

    #[test]
    fn descriptors_are_named_and_never_numbered() {
        let (options, got) = names(json!({"type": "tap", "id": "x", "fds": "a:b"})).unwrap();
        assert_eq!((&options["fds"], got), (&json!("3:4"), vec!["a".to_owned(), "b".to_owned()]));
        let (options, got) = names(json!({"type": "stream", "addr": {"type": "fd", "str": "s"}})).unwrap();
        assert_eq!((&options["addr"]["str"], got), (&json!("3"), vec!["s".to_owned()]));
        let unix = json!({"type": "stream", "addr": {"type": "unix", "str": "7", "path": "/fd"}});
        assert_eq!(names(unix.clone()).unwrap(), (unix, Vec::new()));
        for bad in [
            json!({"fd": "5"}),
            json!({"fd": 5}),
            json!({"fds": "a:"}),
            json!({"addr": {"type": "fd", "str": "0"}}),
        ] {
            assert!(names(bad.clone()).unwrap_err().desc.contains("getfd"), "{bad}");
        }
    }
}
