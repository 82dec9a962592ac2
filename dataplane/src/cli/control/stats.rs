//! `netreeve stats`: the counters of instances, as a table, as JSON, or as OpenMetrics.
#![forbid(unsafe_code)]

use serde_json::Value;

use super::talk::Found;
use super::{Format, Instance, Stats, all, get, openmetrics, print, print_json, table, text};
use crate::fault::Fault;

pub(in crate::cli) fn stats(arguments: &Stats) -> Result<u8, Fault> {
    let instances = if arguments.names.is_empty() {
        all()
    } else {
        let ask = |name: &String| Instance::ask(&Found::named(name)?);
        arguments.names.iter().map(ask).collect::<Result<_, _>>()?
    };
    match arguments.format {
        _ if arguments.json => print_json(&instances.iter().map(Instance::json).collect())?,
        Format::Json => print_json(&instances.iter().map(Instance::json).collect())?,
        Format::Openmetrics => print(openmetrics::text(&instances).trim_end())?,
        Format::Table => table::lines(HEADS, &rows(&instances)).iter().try_for_each(|l| print(l))?,
    }
    Ok(0)
}

const HEADS: &[&str] =
    &["name", "port", "state", " rx frames", " rx bytes", " tx frames", " tx bytes", " drops"];

fn rows(instances: &[Instance]) -> Vec<Vec<String>> {
    let row = |i: &Instance, p: &Value| {
        let all = get(p, "drops").as_object();
        let drops = all.map(|d| d.values().filter_map(Value::as_u64).sum::<u64>().to_string());
        let cells =
            ["id", "state", "rx_frames", "rx_bytes", "tx_frames", "tx_bytes"].map(|k| text(get(p, k)));
        let name = crate::fault::plain(&i.name);
        std::iter::once(name).chain(cells).chain([drops.unwrap_or_else(|| "-".into())]).collect()
    };
    instances.iter().flat_map(|i| i.ports.iter().map(move |p| row(i, p))).collect()
}
