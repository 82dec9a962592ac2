//! `netreeve list`: the ports of this version and what they need.
#![forbid(unsafe_code)]

use netreeve_shared::request::{MAX_TAP_QUEUES, MAX_XSK_QUEUES};
use serde_json::json;

use crate::fault::{Exit, Fault};
use crate::spec::vhost_user::MAX_QUEUES;
use crate::supervise::ready::print_line;

/// A port type.
struct Row {
    name: &'static str,
    what: &'static str,
    queues: u16,
    offloads: bool,
    /// Capabilities that the helper raises for it.
    capabilities: &'static [&'static str],
    /// What the policy calls it.
    policy: Option<&'static str>,
}

const ROWS: &[Row] = &[
    Row {
        name: "user",
        what: "a network of its own, out of ordinary sockets",
        queues: 1,
        offloads: true,
        capabilities: &[],
        policy: None,
    },
    Row {
        name: "tap",
        what: "a tap device, made by the helper or handed by fd=/fds=",
        queues: MAX_TAP_QUEUES,
        offloads: true,
        capabilities: &["CAP_NET_ADMIN"],
        policy: Some("tap"),
    },
    Row {
        name: "bridge",
        what: "a tap device in a bridge",
        queues: MAX_TAP_QUEUES,
        offloads: true,
        capabilities: &["CAP_NET_ADMIN"],
        policy: Some("bridge"),
    },
    Row {
        name: "af-xdp",
        what: "receive queues of an interface",
        queues: MAX_XSK_QUEUES,
        offloads: false,
        capabilities: &["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "CAP_IPC_LOCK"],
        policy: Some("xsk"),
    },
    Row {
        name: "stream",
        what: "QEMU's stream framing over a unix or TCP socket",
        queues: 1,
        offloads: false,
        capabilities: &[],
        policy: None,
    },
    Row {
        name: "dgram",
        what: "a frame in each datagram: UDP, multicast, unix",
        queues: 1,
        offloads: false,
        capabilities: &[],
        policy: None,
    },
    Row {
        name: "socket",
        what: "QEMU's older words for stream and dgram",
        queues: 1,
        offloads: false,
        capabilities: &[],
        policy: None,
    },
    Row {
        name: "l2tpv3",
        what: "an L2TPv3 session over UDP, or over IP by a socket of the helper's",
        queues: 1,
        offloads: false,
        capabilities: &["CAP_NET_RAW"],
        policy: Some("l2tpv3"),
    },
    Row {
        name: "hubport",
        what: "a place in a hub, for a netdev or a device",
        queues: 1,
        offloads: true,
        capabilities: &[],
        policy: None,
    },
    Row {
        name: "vde",
        what: "a port of a VDE switch, or the switch (server=on)",
        queues: 1,
        offloads: false,
        capabilities: &[],
        policy: None,
    },
    Row {
        name: "vhost-user",
        what: "what a VMM attaches a virtio-net device to",
        queues: MAX_QUEUES,
        offloads: true,
        capabilities: &[],
        policy: None,
    },
];

pub(super) fn list(as_json: bool) -> Result<u8, Fault> {
    let print = || -> std::io::Result<()> {
        if as_json {
            return print_line(&json().to_string());
        }
        print_line(&format!(
            "{:<11} {:<7} {:<9} {:<55} needs, of the helper",
            "type", "queues", "offloads", "is"
        ))?;
        ROWS.iter().try_for_each(|r| print_line(&line(r)))
    };
    print().map_err(|e| Fault::new(Exit::General, "writing to standard output", e, ""))?;
    Ok(0)
}

fn line(r: &Row) -> String {
    let offloads = if r.offloads { "yes" } else { "no" };
    let needs = match r.policy {
        None => "nothing".to_owned(),
        Some(word) => format!("{} (policy: {word})", r.capabilities.join(" ")),
    };
    format!("{:<11} 1-{:<5} {offloads:<9} {:<55} {needs}", r.name, r.queues, r.what)
}

fn json() -> serde_json::Value {
    let rows = ROWS.iter().map(|r| {
        json!({
            "type": r.name,
            "is": r.what,
            "queues": r.queues,
            "offloads": r.offloads,
            "capabilities": r.capabilities,
            "policy": r.policy,
        })
    });
    json!({ "version": env!("CARGO_PKG_VERSION"), "ports": rows.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Config;

    #[test]
    fn every_listed_type_is_one_that_the_options_know() {
        for row in ROWS {
            let f = Config::read(&[format!("{},id=n,none=1", row.name)], &[], None).unwrap_err();
            assert!(!f.why.contains("does not accept") && !f.why.contains("not in this version"), "{f}");
        }
        assert_eq!(json()["ports"].as_array().map(Vec::len), Some(ROWS.len()));
    }
}
