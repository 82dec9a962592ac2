//! `netreeve set`: changes a port of a running instance.
#![forbid(unsafe_code)]

use serde_json::{Value, json};

use super::show::no_port;
use super::talk::{Found, Talk};
use super::{Instance, Set, get, print_json};
use crate::fault::{Exit, Fault};

/// What can be set.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Link(bool),
    Netdev(String),
    /// The whole table of forwards.
    Forwards(Vec<String>),
    /// One more forward.
    Forward(String),
    /// One less.
    NoForward(String),
}

pub(in crate::cli) fn set(arguments: &Set) -> Result<u8, Fault> {
    // Nothing is changed unless all of it can be understood.
    let changes: Vec<Change> = arguments.changes.iter().map(|t| read(t)).collect::<Result<_, _>>()?;
    let at = Found::named(&arguments.name)?;
    let before = Instance::ask(&at)?;
    if !before.ports.iter().any(|p| get(p, "id") == arguments.port.as_str()) {
        return Err(no_port(&before, &arguments.port));
    }
    let mut talk = Talk::open(&at)?;
    // In the order given, but forwards as one change of their table.
    let forwards = table(&changes, &arguments.port)?;
    if let Some(forwards) = forwards {
        talk.ask("netreeve-set-hostfwd", forwards)?;
    }
    for change in changes {
        match change {
            Change::Link(up) => talk.ask("set_link", json!({ "name": arguments.port, "up": up }))?,
            Change::Netdev(id) => {
                talk.ask("netreeve-set-netdev", json!({ "device": arguments.port, "netdev": id }))?
            }
            Change::Forwards(_) | Change::Forward(_) | Change::NoForward(_) => continue,
        };
    }
    if arguments.json {
        let after = Instance::ask(&at)?;
        let port = after.ports.iter().find(|p| get(p, "id") == arguments.port.as_str());
        print_json(port.ok_or_else(|| no_port(&after, &arguments.port))?)?;
    }
    Ok(0)
}

/// All changes of forwards as one, if there are any.
fn table(changes: &[Change], port: &str) -> Result<Option<Value>, Fault> {
    let (mut whole, mut add, mut remove) = (None, Vec::new(), Vec::new());
    for change in changes {
        match change {
            Change::Forwards(all) => whole = Some(all),
            Change::Forward(rule) => add.push(rule),
            Change::NoForward(at) => remove.push(at),
            Change::Link(_) | Change::Netdev(_) => {}
        }
    }
    match (whole, add.is_empty() && remove.is_empty()) {
        (None, true) => Ok(None),
        (Some(all), true) => Ok(Some(json!({ "id": port, "hostfwd": all }))),
        (None, false) => Ok(Some(json!({ "id": port, "add": add, "remove": remove }))),
        (Some(_), false) => {
            let why = "hostfwd= is the whole table already";
            let fix = "put all rules into hostfwd=, or use hostfwd+= and hostfwd-= alone";
            Err(Fault::new(Exit::Usage, "set hostfwd", why, fix))
        }
    }
}

fn read(text: &str) -> Result<Change, Fault> {
    let fault = |why: &str| {
        Fault::new(
            Exit::Usage,
            format!("set {text}"),
            why,
            "give link=on or link=off; for a device netdev=ID; for a user network hostfwd+=RULE, hostfwd-=WHERE or \
             hostfwd=RULE,RULE",
        )
    };
    match text.split_once('=') {
        Some(("link", "on" | "up")) => Ok(Change::Link(true)),
        Some(("link", "off" | "down")) => Ok(Change::Link(false)),
        Some(("link", _)) => Err(fault("link is on or off")),
        Some(("hostfwd", rules)) => {
            let all = rules.split(',').filter(|r| !r.is_empty()).map(str::to_owned);
            Ok(Change::Forwards(all.collect()))
        }
        Some(("hostfwd+", rule)) if !rule.is_empty() => Ok(Change::Forward(rule.to_owned())),
        Some(("hostfwd-", at)) if !at.is_empty() => Ok(Change::NoForward(at.to_owned())),
        Some(("netdev", id)) if !id.is_empty() => Ok(Change::Netdev(id.to_owned())),
        Some(_) => Err(fault("there is nothing of that name to set")),
        None => Err(fault("it has no value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_said_in_full() {
        assert_eq!(read("link=off"), Ok(Change::Link(false)));
        assert_eq!(read("link=on"), Ok(Change::Link(true)));
        assert_eq!(read("netdev=n1"), Ok(Change::Netdev("n1".into())));
        assert_eq!(read("hostfwd+=tcp::1-:1"), Ok(Change::Forward("tcp::1-:1".into())));
        assert_eq!(read("hostfwd-=tcp::1"), Ok(Change::NoForward("tcp::1".into())));
        assert_eq!(read("hostfwd=a,b"), Ok(Change::Forwards(vec!["a".into(), "b".into()])));
        assert_eq!(read("hostfwd="), Ok(Change::Forwards(vec![])));
        for bad in ["hostfwd+=", "hostfwd-=", "netdev=", "link", "link=", "link=maybe", "mtu=9000"] {
            assert_eq!(read(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }

    #[test]
    fn forwards_change_as_one_table() {
        let changes = |texts: &[&str]| texts.iter().map(|t| read(t).unwrap()).collect::<Vec<_>>();
        let table = |texts: &[&str]| table(&changes(texts), "n");
        assert_eq!(table(&["link=on"]), Ok(None));
        let both = json!({"id": "n", "add": ["a", "b"], "remove": ["c"]});
        assert_eq!(table(&["hostfwd+=a", "link=on", "hostfwd-=c", "hostfwd+=b"]), Ok(Some(both)));
        assert_eq!(table(&["hostfwd="]), Ok(Some(json!({"id": "n", "hostfwd": []}))));
        assert!(table(&["hostfwd=a", "hostfwd+=b"]).is_err());
    }
}
