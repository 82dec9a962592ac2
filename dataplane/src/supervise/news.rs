//! What happens to ports and dataplane, told to everybody who listens: people on standard error, `--json`, and the
//! clients of the control socket by QEMU's events (`qapi/net.json`) where it has one.
#![forbid(unsafe_code)]

use std::net::SocketAddr;

use serde_json::json;

use crate::port::FarEnd;
use crate::stats::Reason;
use crate::supervise::Supervisor;
use crate::supervise::control::report;

impl Supervisor {
    /// A port's link is up or down.
    pub(super) fn link(&mut self, slot: u16, up: bool) {
        let Some(s) = self.slots.get(slot) else { return };
        let word = if up { "up" } else { "down" };
        let id = s.id.clone();
        self.voice.say_of_others(&format!("port '{id}' is {word}"));
        self.voice.event(&json!({ "event": "link", "id": id, "up": up }));
        self.tell("NETREEVE_LINK", json!({ "id": id, "up": up }));
    }

    /// Somebody has come to the far end of a port, or has gone from there.
    pub(super) fn far_end(&mut self, slot: u16, end: FarEnd) {
        match end {
            FarEnd::Nobody => {
                let left = self.slots.get(slot).is_some_and(|s| s.device && s.connected);
                self.connected(slot, false, None);
                if self.one_off && left {
                    self.stop = Some(0);
                }
            }
            FarEnd::Somebody(from) => self.connected(slot, true, from),
            FarEnd::Refused(why) => {
                self.refused(slot, why);
                self.connected(slot, false, None);
            }
        }
    }

    /// A peer sent what cannot be, and its connection was closed.
    fn refused(&mut self, slot: u16, why: Reason) {
        let Some(id) = self.slots.get(slot).map(|s| s.id.clone()) else { return };
        let name = Reason::ALL.iter().find(|(r, _)| *r == why).map_or("protocol", |(_, name)| name);
        let what = "its peer sent a length that no frame has, and was closed";
        self.voice.say_of_others(&format!("port '{id}': {what} ({name})"));
        self.voice.event(&json!({ "event": "refused", "id": id, "reason": name }));
        self.tell("NETREEVE_PEER_REFUSED", json!({ "id": id, "reason": name }));
    }

    fn connected(&mut self, slot: u16, connected: bool, from: Option<SocketAddr>) {
        let Some(s) = self.slots.get_mut(slot) else { return };
        s.far = from.or(s.far.filter(|_| connected));
        if std::mem::replace(&mut s.connected, connected) == connected {
            return;
        }
        let Some(s) = self.slots.get(slot) else { return };
        let mut data = json!({ "netdev-id": s.id });
        let mut add = |key: &str, value| data.as_object_mut().map(|m| m.insert(key.to_owned(), value));
        let event = match (s.kind, connected) {
            ("stream", true) => {
                let from = from.map(|a| report::inet(&a.ip().to_string(), a.port()));
                add("addr", from.or_else(|| report::address(s)).unwrap_or_default());
                "NETDEV_STREAM_CONNECTED"
            }
            ("stream", false) => "NETDEV_STREAM_DISCONNECTED",
            ("vhost-user", true) => {
                // There is no chardev of another name.
                add("chardev-id", s.id.as_str().into());
                "NETDEV_VHOST_USER_CONNECTED"
            }
            ("vhost-user", false) => "NETDEV_VHOST_USER_DISCONNECTED",
            _ => return,
        };
        self.tell(event, data);
    }

    /// A port cannot come back.
    pub(super) fn gone(&mut self, id: &str, why: &str) {
        self.tell("NETREEVE_GONE", json!({ "id": id, "reason": why }));
    }

    /// A dataplane has taken over from one that died `ms` ago.
    pub(super) fn restarted(&mut self, pid: u32, ms: u64) {
        self.restarts += 1;
        self.voice.say(&format!("the dataplane is back after {ms} ms"));
        self.voice.event(&json!({ "event": "restarted", "dataplane": pid, "ms": ms }));
        self.tell("NETREEVE_RESTARTED", json!({ "dataplane": pid, "ms": ms }));
    }

    /// The dataplane is dead, and with it every connection that is not kept.
    pub(super) fn all_died(&mut self) {
        let cut = self.slots.iter().filter(|(_, s)| s.connected && s.estate.whole().is_none());
        let cut: Vec<u16> = cut.map(|(n, _)| n).collect();
        for slot in cut {
            self.connected(slot, false, None);
        }
    }
}
