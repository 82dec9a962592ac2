//! What clients are told of the instance and its ports: one schema for the control socket and the command line.
#![forbid(unsafe_code)]

use std::os::fd::AsRawFd;

use nix::sys::socket::{SockaddrStorage, getsockname};
use serde_json::{Map, Value, json};

use crate::handover::Level;
use crate::spec::addr::Addr;
use crate::stats::{Reason, Stats};
use crate::supervise::Supervisor;
use crate::supervise::counters::flows;
use crate::supervise::ready::level_name;
use crate::supervise::slot::Slot;

impl Supervisor {
    /// `query-status` (`qapi/run-state.json`): what runs is the dataplane.
    pub(in crate::supervise) fn status(&self) -> Value {
        let running = self.dataplane.as_ref().is_some_and(|d| d.ready.is_some());
        let status = match (running, self.live) {
            (true, _) => "running",
            (false, false) => "prelaunch",
            (false, true) => "internal-error",
        };
        json!({ "running": running, "status": status })
    }

    /// `netreeve-query-instance`.
    pub(in crate::supervise) fn instance_report(&self, fresh: bool) -> Value {
        let ready = self.dataplane.as_ref().filter(|d| d.ready.is_some());
        let mut out = json!({
            "pid": std::process::id(),
            "version": env!("CARGO_PKG_VERSION"),
            "running": ready.is_some(),
            "restarts": self.restarts,
        });
        let mut add = |key: &str, value: Value| out.as_object_mut().map(|m| m.insert(key.into(), value));
        if let Some(name) = self.control.as_ref().and_then(|c| c.name()) {
            add("name", name.into());
        }
        if let Some(d) = ready {
            let level = level_name(self.level.unwrap_or(Level::Off));
            let up_ms = d.ready.map_or(0, |t| u64::try_from(t.elapsed().as_millis()).unwrap_or(u64::MAX));
            add("dataplane", json!({ "pid": d.pid(), "sandbox": level, "uptime_ms": up_ms }));
        }
        if fresh {
            add("workers", self.counters.workers().iter().map(|w| json!(w)).collect());
        }
        out
    }

    /// `netreeve-query-ports`.
    pub(in crate::supervise) fn ports_report(&self, fresh: bool) -> Value {
        self.slots.iter().map(|(n, s)| self.port_report(n, s, fresh)).collect()
    }

    fn port_report(&self, n: u16, slot: &Slot, fresh: bool) -> Value {
        let wire = self.plan.wires.iter().find(|w| w.netdev == n || w.device == n);
        let peer = wire.map(|w| if w.netdev == n { w.device } else { w.netdev });
        let counters = self.counters.of(n).filter(|_| fresh);
        let state = match counters {
            _ if slot.gone => "gone",
            Some((_, true)) => "up",
            _ => "down",
        };
        let mut out = Map::new();
        let mut add = |key: &str, value: Value| out.insert(key.into(), value);
        add("id", slot.id.as_str().into());
        add("role", if slot.device { "device" } else { "netdev" }.into());
        add("type", slot.kind.into());
        add("state", state.into());
        add("link", (!self.plan.down.contains(&n)).into());
        if let Some(peer) = peer.and_then(|p| self.slots.get(p)) {
            add("peer", peer.id.as_str().into());
        }
        if let Some(link) = &slot.link {
            add("ifname", link.name.as_str().into());
        }
        if let Some(addr) = address(slot) {
            add("addr", addr);
        }
        if let Some(user) = &slot.user {
            add("hostfwd", user.rules().collect());
            add("resolvers", user.resolvers.list().iter().map(|r| r.to_string()).collect());
        }
        if let Some((stats, _)) = counters {
            count(stats, &mut out);
        }
        Value::Object(out)
    }
}

/// The counters, as members.
fn count(s: &Stats, out: &mut Map<String, Value>) {
    let drops: Map<String, Value> =
        Reason::ALL.iter().zip(s.drops).map(|((_, name), n)| ((*name).to_owned(), n.into())).collect();
    let pairs = [
        ("rx_frames", s.rx_frames),
        ("rx_bytes", s.rx_bytes),
        ("tx_frames", s.tx_frames),
        ("tx_bytes", s.tx_bytes),
        ("kicks", s.kicks),
        ("reconnects", s.reconnects),
        ("evicted", s.evicted),
    ];
    out.extend(pairs.map(|(name, n)| (name.to_owned(), n.into())));
    out.insert("drops".into(), drops.into());
    if let Some(f) = &s.flows {
        out.insert("flows".into(), flows(f));
    }
}

/// A TCP address as QEMU writes it.
pub(in crate::supervise) fn inet(host: &str, port: u16) -> Value {
    json!({ "type": "inet", "host": host, "port": port.to_string() })
}

/// Where a port is, as QEMU's `SocketAddress` (`qapi/sockets.json`): the kernel's answer if it chose the TCP port.
pub(in crate::supervise) fn address(slot: &Slot) -> Option<Value> {
    let bound = || {
        let bound = getsockname::<SockaddrStorage>(slot.kept.first()?.as_raw_fd()).ok()?;
        let v4 = bound.as_sockaddr_in().map(|a| (a.ip().to_string(), a.port()));
        let v6 = bound.as_sockaddr_in6().map(|a| (a.ip().to_string(), a.port()));
        v4.or(v6)
    };
    Some(match slot.addr.as_ref()? {
        Addr::Inet(i) => match bound() {
            Some((host, port)) => inet(&host, port),
            None => inet(&i.host, i.port),
        },
        Addr::Unix(path) => json!({ "type": "unix", "path": path.to_string_lossy() }),
        Addr::Abstract(name) => {
            let name = String::from_utf8_lossy(name);
            json!({ "type": "unix", "path": name.trim_end_matches('\0'), "abstract": true })
        }
        Addr::Vsock(cid, port) => {
            json!({ "type": "vsock", "cid": cid.to_string(), "port": port.to_string() })
        }
        Addr::Fd(n) => json!({ "type": "fd", "str": n.to_string() }),
    })
}
