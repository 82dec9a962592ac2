//! Counters of the ports: asked for on SIGUSR1 and at the end with `--stats`, printed when all have come.
#![forbid(unsafe_code)]

use serde_json::{Map, Value, json};

use crate::stats::{Reason, Stats};
use crate::supervise::slot::Slot;
use crate::worker::Waits;

/// As many as `--workers` allows.
const MOST_WORKERS: u16 = 128;

/// Answers that are awaited, and those that came.
#[derive(Debug, Default)]
pub struct Counters {
    asked: bool,
    workers: Vec<Waits>,
    got: Vec<(u16, Stats, bool)>,
}

/// What an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Others follow.
    More,
    /// All are here.
    Last,
    /// Nobody asked, or it is not the one that is next.
    Unasked,
}

impl Counters {
    /// The dataplane was asked.
    pub fn ask(&mut self) {
        self.asked = true;
        self.workers.clear();
        self.got.clear();
    }

    /// An answer is awaited.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.asked
    }

    /// The dataplane is dead: nothing will come.
    pub fn forget(&mut self) {
        self.asked = false;
    }

    /// How a worker waited; they come before the ports' counters. False: nobody asked, or it is not the one that is next.
    #[must_use]
    pub fn worker(&mut self, number: u16, waits: Waits) -> bool {
        let next = self.asked && self.got.is_empty() && usize::from(number) == self.workers.len();
        if next && number < MOST_WORKERS {
            self.workers.push(waits);
        }
        next && number < MOST_WORKERS
    }

    /// One answer.
    pub fn take(&mut self, slot: u16, stats: Stats, up: bool, ports: usize) -> Taken {
        if !self.asked || usize::from(slot) != self.got.len() || usize::from(slot) >= ports {
            return Taken::Unasked;
        }
        self.got.push((slot, stats, up));
        if self.got.len() == ports {
            self.asked = false;
            return Taken::Last;
        }
        Taken::More
    }

    /// As text, a line a port and a line a worker.
    #[must_use]
    pub fn lines(&self, slots: &[Slot]) -> Vec<String> {
        let workers = self.workers.iter().enumerate().map(|(i, w)| {
            format!(
                "worker {i}: sleeps {}, looked on {} times for {} us, found {} times, window {} us",
                w.sleeps, w.polls, w.polled_us, w.hits, w.window_us
            )
        });
        let ports = self.got.iter().zip(slots).map(|((_, s, up), slot)| line(slot, s, *up));
        ports.chain(workers).collect()
    }

    /// As JSON.
    #[must_use]
    pub fn json(&self, slots: &[Slot]) -> Value {
        let ports: Vec<Value> =
            self.got.iter().zip(slots).map(|((_, s, up), slot)| port(slot, s, *up)).collect();
        let workers: Vec<Value> = self.workers.iter().map(|w| json!(w)).collect();
        json!({ "event": "stats", "ports": ports, "workers": workers })
    }
}

fn line(slot: &Slot, s: &Stats, up: bool) -> String {
    let drops: Vec<String> = drops(s).map(|(name, n)| format!("{name} {n}")).collect();
    let drops = if drops.is_empty() { "none".to_owned() } else { drops.join(", ") };
    format!(
        "port '{}' ({}, {}): rx {} frames {} bytes, tx {} frames {} bytes, kicks {}, reconnects {}, drops: {drops}",
        slot.id,
        slot.kind,
        if up { "up" } else { "down" },
        s.rx_frames,
        s.rx_bytes,
        s.tx_frames,
        s.tx_bytes,
        s.kicks,
        s.reconnects,
    )
}

fn port(slot: &Slot, s: &Stats, up: bool) -> Value {
    let drops: Map<String, Value> = drops(s).map(|(name, n)| (name.to_owned(), n.into())).collect();
    json!({
        "id": slot.id,
        "type": slot.kind,
        "up": up,
        "rx_frames": s.rx_frames,
        "rx_bytes": s.rx_bytes,
        "tx_frames": s.tx_frames,
        "tx_bytes": s.tx_bytes,
        "kicks": s.kicks,
        "reconnects": s.reconnects,
        "drops": drops,
    })
}

/// Drops that happened, by name.
fn drops(s: &Stats) -> impl Iterator<Item = (&'static str, u64)> {
    Reason::ALL.iter().zip(s.drops).filter(|(_, n)| *n != 0).map(|((_, name), n)| (*name, n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handover::PortPlan;
    use crate::port;

    #[test]
    fn only_what_was_asked_for_in_order_is_taken() {
        let plan = || PortPlan::Stream(port::stream::Plan { server: true, ..Default::default() });
        let slots = [Slot::bare("a".into(), "stream", plan()), Slot::bare("b".into(), "stream", plan())];
        let mut s = Stats { rx_frames: 3, ..Stats::default() };
        s.drop(Reason::Runt);
        let mut c = Counters::default();
        assert_eq!(c.take(0, s, true, 2), Taken::Unasked);
        let waits = Waits { sleeps: 7, ..Waits::default() };
        assert!(!c.worker(0, waits));
        c.ask();
        assert!(c.worker(0, waits) && !c.worker(0, waits) && c.worker(1, waits));
        assert_eq!(c.take(1, s, true, 2), Taken::Unasked);
        assert_eq!(c.take(0, s, true, 2), Taken::More);
        assert!(!c.worker(2, waits), "workers come first");
        assert_eq!(c.take(1, s, false, 2), Taken::Last);
        assert_eq!(c.take(0, s, true, 2), Taken::Unasked);
        assert!(c.lines(&slots)[0].starts_with("port 'a' (stream, up): rx 3 frames"));
        assert!(c.lines(&slots)[1].ends_with("drops: runt 1"));
        assert!(c.lines(&slots)[3].starts_with("worker 1: sleeps 7,"));
        assert_eq!(c.json(&slots)["workers"][1]["sleeps"], 7);
        assert_eq!(c.json(&slots)["ports"][0]["drops"], json!({"runt": 1}));
    }
}
