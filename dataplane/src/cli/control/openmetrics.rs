//! Counters as OpenMetrics text (version 1.0.0 of its specification).
//!
//! A family's samples stand together, whatever instance they are of; every reason for a drop has its sample from the
//! start, so that a rate can be taken of the first one. Promise: what comes from outside (names, addresses) is escaped,
//! and a port without counters has no samples instead of zeros.
#![forbid(unsafe_code)]

use std::fmt::Write;

use serde_json::Value;

use super::{Instance, get};

/// Labels and their values.
type Labels<'a> = Vec<(&'static str, &'a str)>;

/// The text of all instances, with its end mark.
pub(super) fn text(all: &[Instance]) -> String {
    let mut out = String::new();
    instances(&mut out, all);
    ports(&mut out, all);
    workers(&mut out, all);
    out.push_str("# EOF\n");
    out
}

fn instances(out: &mut String, all: &[Instance]) {
    family(out, "netreeve", "info", "", "An instance of netreeve.");
    for i in all {
        let version = get(&i.about, "version").as_str().unwrap_or_default();
        let sandbox = get(get(&i.about, "dataplane"), "sandbox").as_str().unwrap_or("none");
        let labels = vec![("name", i.name.as_str()), ("version", version), ("sandbox", sandbox)];
        sample(out, "netreeve_info", &labels, 1);
    }
    family(out, "netreeve_running", "gauge", "", "1: its dataplane carries frames.");
    for i in all {
        sample(out, "netreeve_running", &named(i), u64::from(get(&i.about, "running") == true));
    }
    family(out, "netreeve_restarts", "counter", "", "Dataplanes that died and were replaced.");
    for i in all {
        optional(out, "netreeve_restarts_total", &named(i), get(&i.about, "restarts"));
    }
    let help = "How long its dataplane has been running; counters of ports begin with it.";
    family(out, "netreeve_dataplane_uptime_seconds", "gauge", "seconds", help);
    for i in all {
        if let Some(ms) = get(get(&i.about, "dataplane"), "uptime_ms").as_u64() {
            let seconds = format!("{}.{:03}", ms / 1000, ms % 1000);
            sample(out, "netreeve_dataplane_uptime_seconds", &named(i), seconds);
        }
    }
}

/// Counters of a port: name without `_total`, unit, member, help.
const COUNTERS: &[(&str, &str, &str, &str)] = &[
    ("netreeve_port_rx_frames", "frames", "rx_frames", "Frames that the port gave."),
    ("netreeve_port_rx_bytes", "bytes", "rx_bytes", "Their bytes, without virtio-net headers."),
    ("netreeve_port_tx_frames", "frames", "tx_frames", "Frames that the port took."),
    ("netreeve_port_tx_bytes", "bytes", "tx_bytes", "Their bytes, without virtio-net headers."),
    ("netreeve_port_kicks", "", "kicks", "Times that the port's owner was asked for attention."),
    ("netreeve_port_reconnects", "", "reconnects", "Times that the port was lost and came back."),
    ("netreeve_port_evicted", "", "evicted", "Flows of a user network that had to go for new ones."),
];

fn ports(out: &mut String, all: &[Instance]) {
    let ports = || all.iter().flat_map(|i| i.ports.iter().map(move |p| (i, p)));
    family(out, "netreeve_port_up", "gauge", "", "1: frames can pass.");
    for (i, p) in ports() {
        sample(out, "netreeve_port_up", &of_port(i, p), u64::from(get(p, "state") == "up"));
    }
    family(out, "netreeve_port_link", "gauge", "", "0: the link was taken down by set_link.");
    for (i, p) in ports() {
        sample(out, "netreeve_port_link", &of_port(i, p), u64::from(get(p, "link") == true));
    }
    for (name, unit, member, help) in COUNTERS {
        family(out, name, "counter", unit, help);
        for (i, p) in ports() {
            optional(out, &format!("{name}_total"), &of_port(i, p), get(p, member));
        }
    }
    connections(out, all);
    let help = "Frames that did not go on, by reason.";
    family(out, "netreeve_port_drops", "counter", "", help);
    for (i, p) in ports() {
        for (reason, n) in get(p, "drops").as_object().into_iter().flatten() {
            let mut labels = of_port(i, p);
            labels.push(("reason", reason));
            optional(out, "netreeve_port_drops_total", &labels, n);
        }
    }
}

/// Connections of a port that has them: name without `_total`, kind, member, help.
const FLOWS: &[(&str, &str, &str, &str)] = &[
    ("netreeve_port_flows", "gauge", "now", "Connections that there are."),
    ("netreeve_port_flows_half_open", "gauge", "half_open", "Of those, the ones that are not answered yet."),
    ("netreeve_port_flows_most", "gauge", "most", "Connections that there may be."),
    ("netreeve_port_flows_opened", "counter", "opened", "Connections that both ends had."),
    ("netreeve_port_flows_refused", "counter", "refused", "Connections that were refused or not answered."),
    ("netreeve_port_flows_limited", "counter", "limited", "Calls of the guest's without room."),
    ("netreeve_port_flows_evicted", "counter", "evicted", "Connections that had to go for new ones."),
    ("netreeve_port_flows_broken", "counter", "broken", "Connections that were broken off."),
    ("netreeve_port_flows_resent", "counter", "resent", "Times that something was sent again to a guest."),
    ("netreeve_port_flows_healed", "counter", "healed", "Times that one that stood still was made to go on."),
    ("netreeve_port_flows_idle", "counter", "idle", "Times that a socket woke the port for nothing."),
];

fn connections(out: &mut String, all: &[Instance]) {
    let ports = || all.iter().flat_map(|i| i.ports.iter().map(move |p| (i, p)));
    if !ports().any(|(_, p)| get(p, "flows").is_object()) {
        return;
    }
    for (name, kind, member, help) in FLOWS {
        family(out, name, kind, "", help);
        let sample = if *kind == "counter" { format!("{name}_total") } else { (*name).to_owned() };
        for (i, p) in ports() {
            optional(out, &sample, &of_port(i, p), get(get(p, "flows"), member));
        }
    }
}

/// Counters of a worker: name without `_total`, unit, member, help.
const WORKERS: &[(&str, &str, &str, &str)] = &[
    ("netreeve_worker_sleeps", "", "sleeps", "Times that the worker slept."),
    ("netreeve_worker_polls", "", "polls", "Times that it looked on for work before sleeping."),
    ("netreeve_worker_hits", "", "hits", "Times that it found work so."),
];

fn workers(out: &mut String, all: &[Instance]) {
    for (name, unit, member, help) in WORKERS {
        family(out, name, "counter", unit, help);
        for i in all {
            for (n, w) in get(&i.about, "workers").as_array().into_iter().flatten().enumerate() {
                let number = n.to_string();
                let mut labels = named(i);
                labels.push(("worker", &number));
                optional(out, &format!("{name}_total"), &labels, get(w, member));
            }
        }
    }
}

fn named(i: &Instance) -> Labels<'_> {
    vec![("name", &i.name)]
}

fn of_port<'a>(i: &'a Instance, p: &'a Value) -> Labels<'a> {
    let member = |key: &str| get(p, key).as_str().unwrap_or_default();
    vec![("name", &i.name), ("port", member("id")), ("role", member("role")), ("type", member("type"))]
}

fn family(out: &mut String, name: &str, kind: &str, unit: &str, help: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(out, "# TYPE {name} {kind}");
    if !unit.is_empty() {
        let _ = writeln!(out, "# UNIT {name} {unit}");
    }
    let _ = writeln!(out, "# HELP {name} {help}");
}

fn optional(out: &mut String, name: &str, labels: &Labels<'_>, value: &Value) {
    if let Some(n) = value.as_u64() {
        sample(out, name, labels, n);
    }
}

fn sample(out: &mut String, name: &str, labels: &Labels<'_>, value: impl std::fmt::Display) {
    let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escaped(v))).collect();
    let _ = writeln!(out, "{name}{{{}}} {value}", labels.join(","));
}

/// A label's value: backslash, quote and newline are escaped, other control bytes are of no use to anybody.
fn escaped(value: &str) -> String {
    let mut out = String::new();
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c if c.is_control() => out.push('?'),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
#[path = "openmetrics_tests.rs"]
mod tests;
