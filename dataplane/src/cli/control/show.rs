//! `netreeve ls` and `netreeve show`.
#![forbid(unsafe_code)]

use serde_json::{Value, json};

use super::talk::Found;
use super::{Instance, Ls, Show, address, all, get, print, print_json, table, text};
use crate::fault::{Exit, Fault};

pub(in crate::cli) fn ls(arguments: &Ls) -> Result<u8, Fault> {
    if let Some(name) = &arguments.name {
        let one = Instance::ask(&Found::named(name)?)?;
        if arguments.json {
            print_json(&Value::Array(one.ports))?;
        } else {
            list_ports(&one)?;
        }
        return Ok(0);
    }
    let all = all();
    if arguments.json {
        print_json(&all.iter().map(Instance::json).collect())?;
        return Ok(0);
    }
    let heads = ["name", " pid", "state", "sandbox", " ports", " restarts"];
    let row = |i: &Instance| {
        vec![
            crate::fault::plain(&i.name),
            text(get(&i.about, "pid")),
            if get(&i.about, "running") == true { "running" } else { "restarting" }.to_owned(),
            text(get(get(&i.about, "dataplane"), "sandbox")),
            i.ports.len().to_string(),
            text(get(&i.about, "restarts")),
        ]
    };
    let rows: Vec<Vec<String>> = all.iter().map(row).collect();
    table::lines(&heads, &rows).iter().try_for_each(|l| print(l))?;
    Ok(0)
}

fn list_ports(instance: &Instance) -> Result<(), Fault> {
    let heads = ["port", "role", "type", "state", "link", "peer", "where"];
    let row = |p: &Value| {
        let place = if get(p, "ifname").is_string() {
            text(get(p, "ifname"))
        } else if get(p, "addr").is_object() {
            address(get(p, "addr"))
        } else {
            // Datagrams have no more than their two ends: ours, if it has a name.
            end(p, if get(p, "local").is_object() { "local" } else { "remote" })
        };
        let [id, role, kind, state, peer] = ["id", "role", "type", "state", "peer"].map(|k| text(get(p, k)));
        vec![id, role, kind, state, on_off(get(p, "link")), peer, place]
    };
    let rows: Vec<Vec<String>> = instance.ports.iter().map(row).collect();
    table::lines(&heads, &rows).iter().try_for_each(|l| print(l))
}

/// One end of a port as one word: what is an address of the Internet's is TCP's only of a stream.
fn end(p: &Value, key: &str) -> String {
    let (at, word) = (get(p, key), address(get(p, key)));
    match word.strip_prefix("tcp:") {
        Some(_) if !get(at, "port").is_string() => format!("ip:{}", text(get(at, "host"))),
        Some(rest) if !["stream", "vhost-user"].contains(&text(get(p, "type")).as_str()) => {
            format!("udp:{rest}")
        }
        _ => word,
    }
}

fn on_off(value: &Value) -> String {
    if value == true { "on" } else { "off" }.to_owned()
}

pub(in crate::cli) fn show(arguments: &Show) -> Result<u8, Fault> {
    let one = Instance::ask(&Found::named(&arguments.name)?)?;
    let Some(id) = &arguments.port else {
        if arguments.json {
            print_json(&one.json())?;
            return Ok(0);
        }
        describe_instance(&one).iter().try_for_each(|l| print(l))?;
        for port in &one.ports {
            print("")?;
            describe(port).iter().try_for_each(|l| print(l))?;
        }
        return Ok(0);
    };
    let found = one.ports.iter().find(|p| get(p, "id") == id.as_str()).ok_or_else(|| no_port(&one, id))?;
    if arguments.json {
        print_json(found)?;
    } else {
        describe(found).iter().try_for_each(|l| print(l))?;
    }
    Ok(0)
}

/// There is no such port.
pub(super) fn no_port(instance: &Instance, id: &str) -> Fault {
    let ids: Vec<String> = instance.ports.iter().map(|p| text(get(p, "id"))).collect();
    let fix = match crate::spec::fields::nearest(id, &ids) {
        Some(near) => format!("did you mean '{near}'?"),
        None => format!("it has: {}", ids.join(", ")),
    };
    Fault::new(Exit::Unavailable, format!("instance '{}'", instance.name), format!("no port '{id}'"), fix)
}

fn describe_instance(instance: &Instance) -> Vec<String> {
    let about = &instance.about;
    let plane = get(about, "dataplane");
    let mut out = vec![
        format!(
            "instance {} (netreeve {}, pid {})",
            text(&json!(instance.name)),
            text(get(about, "version")),
            text(get(about, "pid"))
        ),
        format!("  restarts  {}", text(get(about, "restarts"))),
    ];
    out.push(match get(plane, "pid").is_number() {
        true => {
            let seconds = get(plane, "uptime_ms").as_u64().unwrap_or(0) / 1000;
            format!(
                "  dataplane pid {}, sandbox {}, up {seconds} s",
                text(get(plane, "pid")),
                text(get(plane, "sandbox"))
            )
        }
        false => "  dataplane is being replaced".to_owned(),
    });
    for (n, w) in get(about, "workers").as_array().into_iter().flatten().enumerate() {
        out.push(format!(
            "  worker {n}  sleeps {}, found work looking {} times",
            text(get(w, "sleeps")),
            text(get(w, "hits"))
        ));
    }
    out
}

fn describe(p: &Value) -> Vec<String> {
    let mut out = vec![format!("{} {} ({})", text(get(p, "role")), text(get(p, "id")), text(get(p, "type")))];
    let mut add = |name: &str, value: String| out.push(format!("  {name:<10} {value}"));
    add("state", format!("{}, link {}", text(get(p, "state")), on_off(get(p, "link"))));
    add("peer", text(get(p, "peer")));
    if get(p, "ifname").is_string() {
        add("interface", text(get(p, "ifname")));
    }
    if get(p, "addr").is_object() {
        add("address", address(get(p, "addr")));
    }
    for key in ["local", "remote"].into_iter().filter(|key| get(p, key).is_object()) {
        add(key, end(p, key));
    }
    for rule in get(p, "hostfwd").as_array().into_iter().flatten() {
        add("hostfwd", text(rule));
    }
    if let Some(all) = get(p, "resolvers").as_array() {
        add("resolvers", all.iter().map(text).collect::<Vec<_>>().join(", "));
    }
    let l = get(p, "limits");
    if l.is_object() {
        let [tcp, udp] = ["tcp", "udp"].map(|key| text(get(l, key)));
        let buffer = get(l, "socket_buffer");
        let buffer =
            if buffer.is_number() { format!(", socket-buffer={}", text(buffer)) } else { String::new() };
        add("limits", format!("flows={tcp}:{udp}{buffer}"));
    }
    if !get(p, "rx_frames").is_number() {
        add("counters", "none now: the dataplane does not answer".into());
        return out;
    }
    add("received", format!("{} frames, {} bytes", text(get(p, "rx_frames")), text(get(p, "rx_bytes"))));
    add("sent", format!("{} frames, {} bytes", text(get(p, "tx_frames")), text(get(p, "tx_bytes"))));
    add("kicks", text(get(p, "kicks")));
    add("reconnects", text(get(p, "reconnects")));
    if get(p, "evicted").as_u64().is_some_and(|n| n > 0) {
        add("evicted", format!("{} flows", text(get(p, "evicted"))));
    }
    if let Some(f) = get(p, "flows").as_object() {
        let of = |key: &str| f.get(key).map_or_else(|| "-".into(), text);
        let [now, half, most] = ["now", "half_open", "most"].map(of);
        add("flows", format!("{now} of at most {most}, {half} of them half open"));
        let rest = ["opened", "refused", "limited", "evicted", "broken", "resent", "healed", "idle"];
        add("", rest.map(|key| format!("{key} {}", of(key))).join(", "));
    }
    let drops: Vec<String> = get(p, "drops")
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, n)| n.as_u64() != Some(0))
        .map(|(why, n)| format!("{} {}", text(&json!(why)), text(n)))
        .collect();
    add("drops", if drops.is_empty() { "none".into() } else { drops.join(", ") });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_described_with_the_drops_that_happened() {
        let p = json!({
            "id": "n0", "role": "netdev", "type": "tap", "state": "up", "link": true, "peer": "d0",
            "ifname": "nv0\u{1b}", "rx_frames": 3, "rx_bytes": 180, "tx_frames": 0, "tx_bytes": 0,
            "kicks": 0, "reconnects": 0, "evicted": 5, "drops": {"runt": 0, "full": 2},
        });
        let lines = describe(&p);
        assert_eq!(lines[0], "netdev n0 (tap)");
        assert!(lines.contains(&"  interface  nv0?".to_owned()), "{lines:?}");
        assert_eq!(lines.last().unwrap(), "  drops      full 2");
        assert!(lines.contains(&"  evicted    5 flows".to_owned()), "{lines:?}");
        let user = describe(
            &json!({"id": "n", "type": "user", "hostfwd": ["tcp:a-b", "c"], "resolvers": ["d", "e"]}),
        );
        assert_eq!(user[3..6], ["  hostfwd    tcp:a-b", "  hostfwd    c", "  resolvers  d, e"]);
        let limits = json!({"tcp": 64, "udp": 16, "socket_buffer": 65536});
        let user = describe(&json!({"id": "n", "type": "user", "limits": limits}));
        assert_eq!(user[3], "  limits     flows=64:16, socket-buffer=65536");
        let flows = json!({"now": 4, "half_open": 1, "most": 9, "opened": 70, "limited": 3});
        let user = describe(&json!({"id": "n", "type": "user", "rx_frames": 1, "flows": flows}));
        assert!(user.contains(&"  flows      4 of at most 9, 1 of them half open".to_owned()), "{user:?}");
        assert!(user.iter().any(|l| l.contains("opened 70, refused -, limited 3,")), "{user:?}");
        let away =
            describe(&json!({"id": "n0", "role": "netdev", "type": "tap", "state": "down", "link": false}));
        assert!(away[1].ends_with("down, link off") && away.last().unwrap().contains("does not answer"));
    }
    #[test]
    fn the_ends_of_a_port_are_told_in_the_words_of_its_kind() {
        let at = json!({ "type": "inet", "host": "::1", "port": "7" });
        let port = |kind: &str, remote: &Value| json!({ "id": "n", "type": kind, "remote": remote });
        assert_eq!(end(&port("stream", &at), "remote"), "tcp:[::1]:7");
        assert_eq!(end(&port("dgram", &at), "remote"), "udp:[::1]:7");
        let bare = json!({ "type": "inet", "host": "192.0.2.1" });
        assert_eq!(end(&port("l2tpv3", &bare), "remote"), "ip:192.0.2.1");
        let unix = json!({ "type": "unix", "path": "/x" });
        let lines = describe(&port("vde", &unix));
        assert!(lines.contains(&"  remote     unix:/x".to_owned()), "{lines:?}");
    }
}
