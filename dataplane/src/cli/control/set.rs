//! `netreeve set`: changes a port of a running instance.
#![forbid(unsafe_code)]

use serde_json::json;

use super::show::no_port;
use super::talk::{Found, Talk};
use super::{Instance, Set, get, print_json};
use crate::fault::{Exit, Fault};

/// What can be set.
#[derive(Debug, PartialEq, Eq)]
enum Change {
    Link(bool),
    Netdev(String),
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
    // In the order given.
    for change in changes {
        match change {
            Change::Link(up) => talk.ask("set_link", json!({ "name": arguments.port, "up": up }))?,
            Change::Netdev(id) => {
                talk.ask("netreeve-set-netdev", json!({ "device": arguments.port, "netdev": id }))?
            }
        };
    }
    if arguments.json {
        let after = Instance::ask(&at)?;
        let port = after.ports.iter().find(|p| get(p, "id") == arguments.port.as_str());
        print_json(port.ok_or_else(|| no_port(&after, &arguments.port))?)?;
    }
    Ok(0)
}

fn read(text: &str) -> Result<Change, Fault> {
    let fault = |why: &str| {
        Fault::new(
            Exit::Usage,
            format!("set {text}"),
            why,
            "give link=on, link=off or, for a device, netdev=ID",
        )
    };
    match text.split_once('=') {
        Some(("link", "on" | "up")) => Ok(Change::Link(true)),
        Some(("link", "off" | "down")) => Ok(Change::Link(false)),
        Some(("link", _)) => Err(fault("link is on or off")),
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
        for bad in ["netdev=", "link", "link=", "link=maybe", "mtu=9000"] {
            assert_eq!(read(bad).unwrap_err().exit, Exit::Usage, "{bad}");
        }
    }
}
