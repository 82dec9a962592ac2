//! `netreeve ls`, `show`, `stats`, `set`, `add`, `remove` and `events`: what instances say on their control sockets.
//!
//! Trust: an instance is of our user or root, and what it says of ports came from users and peers: control bytes are
//! taken out before anything reaches a terminal. Promise: an instance that does not answer costs seconds, not for ever.
#![forbid(unsafe_code)]

mod add;
mod capture;
mod events;
mod openmetrics;
mod set;
mod show;
mod stats;
mod table;
mod talk;

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::fault::{Exit, Fault};
use crate::supervise::ready::print_line;
use talk::{Found, Talk};

pub(super) use add::{add, remove};
pub(super) use capture::capture;
pub(super) use events::events;
pub(super) use set::set;
pub(super) use show::{ls, show};
pub(super) use stats::stats;

/// Which instance.
#[derive(Debug, Args)]
pub(super) struct Ls {
    /// The instance whose ports are listed: its name, or its control socket's path [default: all instances].
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// The instance: its name, or its control socket's path.
    #[arg(value_name = "NAME")]
    name: String,
    /// One port alone.
    #[arg(value_name = "PORT")]
    port: Option<String>,
    /// As JSON.
    #[arg(long)]
    json: bool,
}

/// How counters are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
    /// For Prometheus and others (OpenMetrics 1.0).
    Openmetrics,
}

#[derive(Debug, Args)]
pub(super) struct Stats {
    /// The instances: names, or paths of control sockets [default: all].
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// How they are written.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// As JSON.
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Set {
    /// The instance: its name, or its control socket's path.
    #[arg(value_name = "NAME")]
    name: String,
    /// The port.
    #[arg(value_name = "PORT")]
    port: String,
    /// link=on, link=off; netdev=ID: another netdev for a device, which does not notice.
    #[arg(value_name = "KEY=VALUE", required = true)]
    changes: Vec<String>,
    /// As JSON: the port as it is then.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Add {
    /// The instance: its name, or its control socket's path.
    #[arg(value_name = "NAME")]
    name: String,
    /// Host side, as of run; netdevs come before devices.
    #[arg(long, value_name = "NETDEV", required_unless_present = "device")]
    netdev: Vec<String>,
    /// VM side, as of run.
    #[arg(long, value_name = "DEVICE")]
    device: Vec<String>,
    /// As JSON: the ports that were added.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Remove {
    /// The instance: its name, or its control socket's path.
    #[arg(value_name = "NAME")]
    name: String,
    /// The ports, in this order.
    #[arg(value_name = "PORT", required = true)]
    ports: Vec<String>,
    /// As JSON: the ports as they were.
    #[arg(long)]
    json: bool,
}

/// Which frames of a port, in QEMU's words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Which {
    /// Both directions.
    #[default]
    All,
    /// What the port receives from its peer.
    Rx,
    /// What the port sends to its peer.
    Tx,
}

impl Which {
    fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Rx => "rx",
            Self::Tx => "tx",
        }
    }
}

/// How a capture is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Written {
    /// Classic pcap, microseconds.
    Pcap,
    /// Classic pcap, nanoseconds.
    PcapNs,
    /// pcapng.
    Pcapng,
}

impl Written {
    fn name(self) -> &'static str {
        match self {
            Self::Pcap => "pcap",
            Self::PcapNs => "pcap-ns",
            Self::Pcapng => "pcapng",
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Capture {
    /// The instance: its name, or its control socket's path.
    #[arg(value_name = "NAME")]
    name: String,
    /// The port [default: the only netdev].
    #[arg(value_name = "PORT")]
    port: Option<String>,
    /// The file, or - for standard output.
    #[arg(short, long, value_name = "FILE")]
    write: PathBuf,
    /// Most bytes that are kept of a frame.
    #[arg(long, value_name = "N", default_value_t = 65536, value_parser = clap::value_parser!(u32).range(1..))]
    maxlen: u32,
    /// Which frames, as of filter-dump.
    #[arg(long, value_enum, default_value_t)]
    queue: Which,
    /// How they are written [default: pcapng; pcap if FILE ends in .pcap].
    #[arg(long, value_enum)]
    format: Option<Written>,
    /// What became of it as JSON, at the end; on standard error if standard output is the capture.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct Events {
    /// The instance: its name, or its control socket's path.
    #[arg(value_name = "NAME")]
    name: String,
    /// As JSON, a line for each.
    #[arg(long)]
    json: bool,
}

/// What an instance says of itself.
#[derive(Debug)]
struct Instance {
    /// Its name, or its socket's path if it has none.
    name: String,
    about: Value,
    ports: Vec<Value>,
}

impl Instance {
    fn ask(at: &Found) -> Result<Self, Fault> {
        let mut talk = Talk::open(at)?;
        let about = talk.ask("netreeve-query-instance", json!({}))?;
        let ports = talk.ask("netreeve-query-ports", json!({}))?;
        let name = get(&about, "name").as_str().map_or_else(|| at.name(), str::to_owned);
        Ok(Self { name, about, ports: ports.as_array().cloned().unwrap_or_default() })
    }

    fn json(&self) -> Value {
        let mut out = self.about.clone();
        if let Some(members) = out.as_object_mut() {
            members.insert("name".into(), self.name.as_str().into());
            members.insert("ports".into(), self.ports.clone().into());
        }
        out
    }
}

/// All instances that answer us, by name. Those that are dead, or another user's, are left out.
fn all() -> Vec<Instance> {
    let mut all: Vec<Instance> = talk::find().iter().filter_map(|at| Instance::ask(at).ok()).collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// A member; null if there is none.
fn get<'a>(value: &'a Value, key: &str) -> &'a Value {
    value.get(key).unwrap_or(&Value::Null)
}

/// A text of a JSON value, without control bytes; none: a dash.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(s) => crate::fault::plain(s),
        other => crate::fault::plain(&other.to_string()),
    }
}

/// QEMU's address as one word.
fn address(addr: &Value) -> String {
    match get(addr, "type").as_str() {
        Some("inet") => {
            let host = text(get(addr, "host"));
            let port = text(get(addr, "port"));
            if host.contains(':') { format!("tcp:[{host}]:{port}") } else { format!("tcp:{host}:{port}") }
        }
        Some("unix") => {
            let at = if get(addr, "abstract") == true { "@" } else { "" };
            format!("unix:{at}{}", text(get(addr, "path")))
        }
        Some("vsock") => format!("vsock:{}:{}", text(get(addr, "cid")), text(get(addr, "port"))),
        Some("fd") => format!("fd:{}", text(get(addr, "str"))),
        _ => "-".into(),
    }
}

/// Prints a line.
fn print(line: &str) -> Result<(), Fault> {
    print_line(line).map_err(|e| Fault::new(Exit::General, "writing to standard output", e, ""))
}

/// Prints JSON. What of it could drive a terminal is escaped, which changes nothing for a reader.
fn print_json(value: &Value) -> Result<(), Fault> {
    print(&harmless(value))
}

fn harmless(value: &Value) -> String {
    let mut out = String::new();
    for c in value.to_string().chars() {
        // The serializer has escaped the others; all of these are within strings.
        if c.is_control() {
            out.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_a_terminal_that_could_drive_it() {
        let evil = json!({ "path": "a\u{1b}[2J\u{9b}31m\u{7f}\n" });
        assert_eq!(text(&evil["path"]), "a?[2J?31m??");
        let line = harmless(&evil);
        assert!(!line.contains(char::is_control), "{line}");
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), evil);
        let unix = json!({ "type": "unix", "path": "/x\u{1b}" });
        assert_eq!(address(&unix), "unix:/x?");
        assert_eq!(address(&json!({"type": "inet", "host": "::1", "port": "7"})), "tcp:[::1]:7");
        assert_eq!(address(&Value::Null), "-");
    }
}
