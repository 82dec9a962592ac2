//! `netreeve add` and `netreeve remove`: ports of a running instance.
//!
//! The texts are those of `run`; they are taken apart here and sent as QEMU's JSON.
#![forbid(unsafe_code)]

use serde_json::{Map, Value, json};

use super::show::no_port;
use super::talk::{Found, Talk};
use super::{Add, Instance, Remove, get, print_json};
use crate::fault::{Exit, Fault};
use crate::spec::late::Late;
use crate::spec::text;

pub(in crate::cli) fn add(arguments: &Add) -> Result<u8, Fault> {
    let read = |texts: &[String], device| -> Result<Vec<Value>, Fault> {
        texts.iter().map(|t| options(device, t)).collect()
    };
    // Nothing is added unless all of it can be understood.
    let netdevs = read(&arguments.netdev, false)?;
    let devices = read(&arguments.device, true)?;
    let at = Found::named(&arguments.name)?;
    // A device without a name is given one: who was there before is known.
    let before = if arguments.json { Instance::ask(&at)?.ports } else { Vec::new() };
    let mut talk = Talk::open(&at)?;
    for netdev in netdevs {
        talk.ask("netdev_add", netdev)?;
    }
    for mut device in devices {
        if let Some(members) = device.as_object_mut()
            && let Some(kind) = members.remove("type")
        {
            members.insert("driver".into(), kind);
        }
        talk.ask("device_add", device)?;
    }
    if arguments.json {
        print_json(&new(&before, Instance::ask(&at)?.ports))?;
    }
    Ok(0)
}

/// The ports that were not there before.
fn new(before: &[Value], after: Vec<Value>) -> Value {
    let was = |p: &Value| before.iter().any(|b| get(b, "id") == get(p, "id"));
    after.into_iter().filter(|p| !was(p)).collect()
}

pub(in crate::cli) fn remove(arguments: &Remove) -> Result<u8, Fault> {
    let at = Found::named(&arguments.name)?;
    let there = Instance::ask(&at)?;
    let mut ports = Vec::new();
    for id in &arguments.ports {
        let port = there.ports.iter().find(|p| get(p, "id") == id.as_str());
        ports.push(port.ok_or_else(|| no_port(&there, id))?);
    }
    let mut talk = Talk::open(&at)?;
    for port in &ports {
        let command = if get(port, "role") == "device" { "device_del" } else { "netdev_del" };
        talk.ask(command, json!({ "id": get(port, "id") }))?;
    }
    if arguments.json {
        print_json(&ports.into_iter().cloned().collect())?;
    }
    Ok(0)
}

/// The options of a text, as an object: dotted keys are nested.
fn options(device: bool, text: &str) -> Result<Value, Fault> {
    let option = if device { "--device" } else { "--netdev" };
    let fault = |why: String| Fault::new(Exit::Config, format!("{option} {text}"), why, "see netreeve(1)");
    let parsed = text::parse(text, |_| true).map_err(&fault)?;
    let mut out = Map::new();
    for pair in parsed.pairs {
        if !nest(&mut out, &pair.key, pair.value) {
            return Err(fault(format!("Parameter '{}' is used inconsistently", pair.key)));
        }
    }
    // The instance would complain as well, in fewer words.
    let late = Late::read(device, &Value::Object(out.clone()).to_string(), Vec::new())?;
    if !late.port.kind.inherited().is_empty() {
        let fix = "pass it over the control socket: QMP's getfd, then netdev_add with its name";
        let why = "a descriptor of this command's is none of the instance's".to_owned();
        return Err(Fault { fix: fix.into(), ..fault(why) });
    }
    Ok(Value::Object(out))
}

/// False: a key is both a value and a group.
fn nest(into: &mut Map<String, Value>, key: &str, value: String) -> bool {
    match key.split_once('.') {
        None => !matches!(into.insert(key.to_owned(), Value::String(value)), Some(Value::Object(_))),
        Some((group, rest)) => {
            let group = into.entry(group).or_insert_with(|| json!({}));
            group.as_object_mut().is_some_and(|g| nest(g, rest, value))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_what_was_not_there() {
        let port = |id: &str| json!({ "id": id, "role": "netdev" });
        let before = [port("a"), port("b")];
        assert_eq!(new(&before, vec![port("a"), port("b"), port("c")]), json!([port("c")]));
        assert_eq!(new(&before, vec![port("b")]), json!([]));
    }

    #[test]
    fn texts_become_objects() {
        let text = "stream,id=n1,server=on,addr.type=unix,addr.path=/a,,b";
        let wanted = json!({
            "type": "stream", "id": "n1", "server": "on", "addr": {"type": "unix", "path": "/a,b"},
        });
        assert_eq!(options(false, text), Ok(wanted));
        let json = r#"{"type":"tap","id":"a","queues":2}"#;
        assert_eq!(options(false, json), Ok(json!({"type": "tap", "id": "a", "queues": "2"})));
        for bad in [
            "stream,addr=1,addr.type=unix",
            "stream,addr.type=unix,addr=1",
            "stream,x",
            "tap,id=a,fd=5",
            "tap",
        ] {
            assert!(options(false, bad).is_err(), "{bad}");
        }
    }
}
