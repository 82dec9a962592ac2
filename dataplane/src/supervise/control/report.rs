//! What clients are told of the instance and its ports: one schema for the control socket and the command line.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use nix::sys::socket::{SockaddrStorage, UnixAddr, getpeername, getsockname};
use serde_json::{Map, Value, json};

use crate::handover::{Level, PortPlan};
use crate::port::dgram::l2tp::Carrier;
use crate::port::user::plan::Limits;
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
        let (local, remote) = ends(slot);
        for (key, end) in [("local", local), ("remote", remote)] {
            end.into_iter().for_each(|end| drop(add(key, end)));
        }
        if let Some(user) = &slot.user {
            add("hostfwd", user.rules().collect());
            add("resolvers", user.resolvers.list().iter().map(|r| r.to_string()).collect());
        }
        if let PortPlan::User(plan) = &slot.plan {
            add("limits", limits(&plan.limits));
        }
        if let Some((stats, _)) = counters {
            count(stats, &mut out);
        }
        Value::Object(out)
    }
}

/// What a user network may have at a time, as it was asked for.
fn limits(l: &Limits) -> Value {
    let mut out = json!({ "tcp": l.tcp, "udp": l.udp });
    if let (Some(out), Some(bytes)) = (out.as_object_mut(), l.buffer) {
        out.insert("socket_buffer".into(), bytes.into());
    }
    out
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

/// A stream's far end, if it has an address of numbers.
pub(in crate::supervise) fn far_end(socket: RawFd) -> Option<SocketAddr> {
    numbers(&getpeername::<SockaddrStorage>(socket).ok()?)
}

fn numbers(at: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = at.as_sockaddr_in().map(|a| SocketAddr::new(IpAddr::V4(a.ip()), a.port()));
    v4.or_else(|| at.as_sockaddr_in6().map(|a| SocketAddr::new(IpAddr::V6(a.ip()), a.port())))
}

/// Our end and the far one: of datagrams both, as the kernel has them, of a stream who is connected, where that is an
/// address.
fn ends(slot: &Slot) -> (Option<Value>, Option<Value>) {
    let PortPlan::Dgram(plan) = &slot.plan else {
        let far = slot.far.filter(|_| slot.connected);
        return (None, far.map(|a| inet(&a.ip().to_string(), a.port())));
    };
    let Some(socket) = slot.kept.first().or_else(|| slot.reception.as_ref()?.socket()) else {
        return (None, None);
    };
    let fd = socket.as_raw_fd();
    // What an IP socket says in place of a port is its protocol.
    let over_ip = plan.l2tp.as_ref().is_some_and(|s| s.carrier != Carrier::Udp);
    let named = |at: nix::Result<SockaddrStorage>| socket_address(&at.ok()?, over_ip);
    // A plug's own file is gone once both ends are connected.
    let local = if slot.plug.is_some() { None } else { named(getsockname(fd)) };
    (local, named(getpeername(fd)))
}

fn socket_address(at: &SockaddrStorage, over_ip: bool) -> Option<Value> {
    if let Some(at) = numbers(at) {
        let ip = at.ip().to_string();
        return Some(if over_ip { json!({ "type": "inet", "host": ip }) } else { inet(&ip, at.port()) });
    }
    let at: &UnixAddr = at.as_unix_addr()?;
    match (at.path(), at.as_abstract()) {
        (Some(path), _) => Some(json!({ "type": "unix", "path": path.to_string_lossy() })),
        (None, Some(name)) => Some(in_abstract(name)),
        (None, None) => None,
    }
}

fn in_abstract(name: &[u8]) -> Value {
    let name = String::from_utf8_lossy(name);
    json!({ "type": "unix", "path": name.trim_end_matches('\0'), "abstract": true })
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
        Addr::Abstract(name) => in_abstract(name),
        Addr::Vsock(cid, port) => {
            json!({ "type": "vsock", "cid": cid.to_string(), "port": port.to_string() })
        }
        Addr::Fd(n) => json!({ "type": "fd", "str": n.to_string() }),
    })
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::port::dgram;

    fn slot(fd: impl Into<std::os::fd::OwnedFd>, l2tp: Option<dgram::l2tp::Session>) -> Slot {
        let plan = PortPlan::Dgram(dgram::Plan { l2tp, ..dgram::Plan::plugged(1518) });
        Slot { kept: vec![fd.into()], ..Slot::bare("d".into(), "dgram", plan) }
    }

    #[test]
    fn both_ends_of_datagrams_are_told_and_a_streams_far_end() {
        let [us, them] = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        us.connect(them.local_addr().unwrap()).unwrap();
        let want = |s: &UdpSocket| Some(inet("127.0.0.1", s.local_addr().unwrap().port()));
        let wants = (want(&us), want(&them));
        assert_eq!(ends(&slot(us.try_clone().unwrap(), None)), wants);
        let session = dgram::l2tp::Session {
            carrier: Carrier::Ip4,
            tx: 1,
            rx: 1,
            cookie: dgram::l2tp::Cookie::None,
            counter: dgram::l2tp::Counter::None,
            offset: 0,
        };
        let ip = Some(json!({ "type": "inet", "host": "127.0.0.1" }));
        assert_eq!(ends(&slot(us, Some(session))), (ip.clone(), ip), "over IP there are no ports");

        let dir = std::env::temp_dir().join(format!("netreeve-report-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let [a, b] = ["a", "b"].map(|n| dir.join(n));
        let [us, them] = [&a, &b].map(|p| UnixDatagram::bind(p).unwrap());
        let unix = |p: &std::path::Path| Some(json!({ "type": "unix", "path": p.to_str().unwrap() }));
        assert_eq!(ends(&slot(us.try_clone().unwrap(), None)), (unix(&a), None), "nobody is there yet");
        us.connect(&b).unwrap();
        assert_eq!(ends(&slot(us, None)), (unix(&a), unix(&b)));
        drop(them);
        std::fs::remove_dir_all(dir).unwrap();

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let there = listener.local_addr().unwrap();
        let dialled = std::net::TcpStream::connect(there).unwrap();
        let plan = PortPlan::Stream(crate::port::stream::Plan::default());
        let far = far_end(dialled.as_raw_fd());
        let stream = Slot { far, connected: true, ..Slot::bare("s".into(), "stream", plan) };
        assert_eq!(ends(&stream), (None, Some(inet("127.0.0.1", there.port()))));
        assert_eq!(ends(&Slot { connected: false, ..stream }), (None, None));
    }
}
