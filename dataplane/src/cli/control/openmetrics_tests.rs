use std::collections::BTreeSet;

use serde_json::json;

use super::*;

fn port(id: &str) -> Value {
    json!({
        "id": id, "role": "netdev", "type": "tap", "state": "up", "link": true, "rx_frames": 3, "rx_bytes": 180,
        "tx_frames": 0, "tx_bytes": 0, "kicks": 0, "reconnects": 1, "evicted": 4, "drops": {"runt": 0, "full": 2},
    })
}

fn instance(name: &str, ports: Vec<Value>) -> Instance {
    let about = json!({
        "version": "0.1.0", "running": true, "restarts": 2, "workers": [{"sleeps": 5, "polls": 0, "hits": 0}],
        "dataplane": {"pid": 7, "sandbox": "full", "uptime_ms": 12_034},
    });
    Instance { name: name.into(), about, ports }
}

/// Reads what [`text`] writes, as strictly as the specification: families once and together, metadata before samples,
/// units as suffixes, `_total` for counters, label syntax, no sample twice, the end mark last.
fn read(text: &str) -> Result<Vec<(String, String)>, String> {
    let body = text.strip_suffix("# EOF\n").ok_or("no end mark")?;
    let mut families = BTreeSet::new();
    let mut current: Option<(String, String)> = None;
    let mut seen = BTreeSet::new();
    let mut samples = Vec::new();
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (what, name, value) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
            match what {
                "TYPE" => {
                    if !families.insert(name.to_owned()) {
                        return Err(format!("{name} twice"));
                    }
                    current = Some((name.to_owned(), value.to_owned()));
                }
                "UNIT" if !name.ends_with(&format!("_{value}")) => {
                    return Err(format!("{name}: unit {value}"));
                }
                "UNIT" | "HELP" => {
                    let known = current.as_ref().is_some_and(|(n, _)| n == name);
                    if !known {
                        return Err(format!("{what} of {name} out of place"));
                    }
                }
                other => return Err(other.to_owned()),
            }
            continue;
        }
        let (series, value) = line.rsplit_once("} ").ok_or(format!("no sample: {line}"))?;
        let (name, labels) = series.split_once('{').ok_or(format!("no labels: {line}"))?;
        let (family, kind) = current.clone().ok_or("a sample without a family")?;
        let suffix = match kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        if name != format!("{family}{suffix}") {
            return Err(format!("{name} in {family}"));
        }
        value.parse::<f64>().map_err(|e| format!("{value}: {e}"))?;
        check_labels(labels)?;
        if !seen.insert(series.to_owned()) {
            return Err(format!("{series} twice"));
        }
        samples.push((series.to_owned() + "}", value.to_owned()));
    }
    Ok(samples)
}

fn check_labels(labels: &str) -> Result<(), String> {
    let mut rest = labels;
    loop {
        let (name, after) = rest.split_once("=\"").ok_or(format!("label: {rest}"))?;
        if !name.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
            return Err(format!("label name {name}"));
        }
        let mut escaped = false;
        let end = after.char_indices().find(|(_, c)| {
            let end = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            end
        });
        let (end, _) = end.ok_or(format!("no end: {after}"))?;
        rest = &after[end + 1..];
        if rest.is_empty() {
            return Ok(());
        }
        rest = rest.strip_prefix(',').ok_or(format!("after a label: {rest}"))?;
    }
}

#[test]
fn what_is_written_is_openmetrics_and_holds_every_counter() {
    let all = [instance("vm1", vec![port("n0"), port("d0")]), instance("vm2", vec![port("n0")])];
    let written = text(&all);
    let samples = read(&written).unwrap_or_else(|e| panic!("{e}\n{written}"));
    let value = |series: &str| samples.iter().find(|(s, _)| s == series).map(|(_, v)| v.as_str());
    let n0 = r#"{name="vm1",port="n0",role="netdev",type="tap"}"#;
    assert_eq!(value(&format!("netreeve_port_rx_frames_total{n0}")), Some("3"));
    assert_eq!(value(&format!("netreeve_port_rx_bytes_total{n0}")), Some("180"));
    let drop = |why: &str| {
        format!(
            r#"netreeve_port_drops_total{{name="vm2",port="n0",role="netdev",type="tap",reason="{why}"}}"#
        )
    };
    assert_eq!((value(&drop("full")), value(&drop("runt"))), (Some("2"), Some("0")));
    assert_eq!(value(r#"netreeve_dataplane_uptime_seconds{name="vm1"}"#), Some("12.034"));
    assert_eq!(value(r#"netreeve_worker_sleeps_total{name="vm2",worker="0"}"#), Some("5"));
    assert_eq!(read(&text(&[])), Ok(Vec::new()));
}

#[test]
fn what_comes_from_outside_is_escaped_and_what_is_unknown_is_left_out() {
    let evil = "a\"b\\c\nd\u{1b}";
    let away = json!({"id": "n0", "role": "netdev", "type": "tap", "state": "down", "link": true});
    let written = text(&[instance(evil, vec![away])]);
    read(&written).unwrap_or_else(|e| panic!("{e}\n{written}"));
    assert!(written.contains(r#"netreeve_running{name="a\"b\\c\nd?"} 1"#), "{written}");
    assert!(!written.contains("rx_frames_total{"));
}

#[test]
fn the_reader_of_these_tests_is_strict() {
    for bad in [
        "",
        "# TYPE a counter\na_total{x=\"1\"} 1\n",
        "# TYPE a counter\na{x=\"1\"} 1\n# EOF\n",
        "# TYPE a gauge\na{x=\"1\"} 1\na{x=\"1\"} 2\n# EOF\n",
        "# TYPE a gauge\n# TYPE b gauge\n# TYPE a gauge\n# EOF\n",
        "# TYPE a gauge\n# UNIT a bytes\n# EOF\n",
        "# TYPE a gauge\na{x=\"1} 1\n# EOF\n",
        "# TYPE a gauge\na{x=\"1\"} one\n# EOF\n",
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
}
