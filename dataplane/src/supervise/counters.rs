//! Counters of the ports: asked for on SIGUSR1 and at the end with `--stats`, printed when all have come.
#![forbid(unsafe_code)]

use std::time::Instant;

use serde_json::{Map, Value, json};

use crate::stats::{Flows, Reason, Stats};
use crate::supervise::slot::Slot;
use crate::supervise::slots::Slots;
use crate::worker::Waits;

/// As many as `--workers` allows.
const MOST_WORKERS: u16 = 128;

/// Answers that are awaited, and those that came.
#[derive(Debug, Default)]
pub struct Counters {
    /// Since when the dataplane is asked.
    asked: Option<Instant>,
    /// How often it was asked.
    round: u64,
    /// Answers that have not begun: one for each question.
    owed: u64,
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
    /// The dataplane was asked. Gives the number of the question.
    pub fn ask(&mut self, now: Instant) -> u64 {
        self.asked = Some(now);
        self.workers.clear();
        self.got.clear();
        self.round += 1;
        self.owed += 1;
        self.round
    }

    /// An answer is awaited since then.
    #[must_use]
    pub fn waits(&self) -> Option<Instant> {
        self.asked
    }

    /// The number of the last question.
    #[must_use]
    pub fn round(&self) -> u64 {
        self.round
    }

    /// The dataplane is dead: nothing will come.
    pub fn forget(&mut self) {
        self.asked = None;
        self.owed = 0;
        self.workers.clear();
        self.got.clear();
    }

    /// How a worker waited; they come before the ports' counters. False: nobody asked, or it is not the one that is next.
    #[must_use]
    pub fn worker(&mut self, number: u16, waits: Waits) -> bool {
        if number == 0 {
            let Some(owed) = self.owed.checked_sub(1) else { return false };
            self.owed = owed;
            // It may have left out the rest of an answer, if we were slow to read it.
            self.workers.clear();
            self.got.clear();
        }
        let next = self.asked.is_some() && self.got.is_empty() && usize::from(number) == self.workers.len();
        if next && number < MOST_WORKERS {
            self.workers.push(waits);
        }
        next && number < MOST_WORKERS
    }

    /// One answer; `ports` are the slots that the dataplane has, in order.
    pub fn take(&mut self, slot: u16, stats: Stats, up: bool, ports: &[u16]) -> Taken {
        if self.asked.is_none() || ports.get(self.got.len()) != Some(&slot) {
            return Taken::Unasked;
        }
        self.got.push((slot, stats, up));
        if self.got.len() == ports.len() {
            self.asked = None;
            return Taken::Last;
        }
        Taken::More
    }

    /// A port's counters and whether it is up, as they came last.
    #[must_use]
    pub fn of(&self, slot: u16) -> Option<(&Stats, bool)> {
        self.got.iter().find(|(s, ..)| *s == slot).map(|(_, stats, up)| (stats, *up))
    }

    /// How the workers waited, as it came last.
    #[must_use]
    pub fn workers(&self) -> &[Waits] {
        &self.workers
    }

    fn ports<'a>(&'a self, slots: &'a Slots) -> impl Iterator<Item = (&'a Slot, &'a Stats, bool)> {
        self.got.iter().filter_map(|(n, stats, up)| Some((slots.get(*n)?, stats, *up)))
    }

    /// As text, a line a port and a line a worker.
    #[must_use]
    pub fn lines(&self, slots: &Slots) -> Vec<String> {
        let workers = self.workers.iter().enumerate().map(|(i, w)| {
            format!(
                "worker {i}: sleeps {}, looked on {} times for {} us, found {} times, window {} us",
                w.sleeps, w.polls, w.polled_us, w.hits, w.window_us
            )
        });
        let ports = self.ports(slots).map(|(slot, s, up)| line(slot, s, up));
        ports.chain(workers).collect()
    }

    /// As JSON.
    #[must_use]
    pub fn json(&self, slots: &Slots) -> Value {
        let ports: Vec<Value> = self.ports(slots).map(|(slot, s, up)| port(slot, s, up)).collect();
        let workers: Vec<Value> = self.workers.iter().map(|w| json!(w)).collect();
        json!({ "event": "stats", "ports": ports, "workers": workers })
    }
}

fn line(slot: &Slot, s: &Stats, up: bool) -> String {
    let drops: Vec<String> = drops(s).map(|(name, n)| format!("{name} {n}")).collect();
    let drops = if drops.is_empty() { "none".to_owned() } else { drops.join(", ") };
    let evicted = if s.evicted == 0 { String::new() } else { format!("evicted {}, ", s.evicted) };
    let flows = s.flows.map_or_else(String::new, |f| {
        let all: Vec<String> = f.named().iter().map(|(name, n)| format!("{name} {n}")).collect();
        format!("; connections: {}", all.join(", "))
    });
    format!(
        "port '{}' ({}, {}): rx {} frames {} bytes, tx {} frames {} bytes, kicks {}, reconnects {}, {evicted}drops: \
         {drops}{flows}",
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
    let mut out = json!({
        "id": slot.id,
        "type": slot.kind,
        "up": up,
        "rx_frames": s.rx_frames,
        "rx_bytes": s.rx_bytes,
        "tx_frames": s.tx_frames,
        "tx_bytes": s.tx_bytes,
        "kicks": s.kicks,
        "reconnects": s.reconnects,
        "evicted": s.evicted,
        "drops": drops,
    });
    if let (Some(f), Some(out)) = (&s.flows, out.as_object_mut()) {
        out.insert("flows".into(), flows(f));
    }
    out
}

/// A port's connections, as members.
pub(super) fn flows(f: &Flows) -> Value {
    f.named().into_iter().map(|(name, n)| (name.to_owned(), Value::from(n))).collect::<Map<_, _>>().into()
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
        let ports = ["a", "b"].map(|id| Slot::bare(id.into(), "stream", plan()));
        let slots: Slots = ports.into_iter().collect();
        let mut s = Stats { rx_frames: 3, ..Stats::default() };
        s.drop(Reason::Runt);
        let mut c = Counters::default();
        assert_eq!(c.take(0, s, true, &[0, 1]), Taken::Unasked);
        let waits = Waits { sleeps: 7, ..Waits::default() };
        assert!(!c.worker(0, waits));
        assert_eq!(c.ask(Instant::now()), 1);
        assert!(c.worker(0, waits) && c.worker(1, waits) && !c.worker(1, waits));
        assert_eq!(c.take(0, s, true, &[0, 1]), Taken::More);
        assert!(!c.worker(0, waits), "once for each question");
        // It begins again, as its channel was full and it was asked again.
        c.ask(Instant::now());
        assert!(c.worker(0, waits) && c.worker(1, waits));
        assert_eq!(c.take(1, s, true, &[0, 1]), Taken::Unasked);
        assert_eq!(c.take(0, s, true, &[0, 1]), Taken::More);
        assert!(!c.worker(2, waits), "workers come first");
        assert_eq!(c.take(1, s, false, &[0, 1]), Taken::Last);
        assert_eq!(c.take(0, s, true, &[0, 1]), Taken::Unasked);
        assert_eq!(c.of(1), Some((&s, false)));
        assert!(c.lines(&slots)[0].starts_with("port 'a' (stream, up): rx 3 frames"));
        assert!(c.lines(&slots)[1].ends_with("drops: runt 1"));
        assert!(c.lines(&slots)[3].starts_with("worker 1: sleeps 7,"));
        assert_eq!(c.json(&slots)["workers"][1]["sleeps"], 7);
        assert_eq!(c.json(&slots)["ports"][0]["drops"], json!({"runt": 1}));
        assert_eq!(c.json(&slots)["ports"][0].get("flows"), None);
        let flows = Flows { now: 3, half_open: 1, most: 9, limited: 5, ..Flows::default() };
        c.ask(Instant::now());
        assert!(c.worker(0, waits));
        assert_eq!(c.take(0, Stats { flows: Some(flows), ..s }, true, &[0, 1]), Taken::More);
        assert!(c.lines(&slots)[0].contains("; connections: now 3, half_open 1, most 9, opened 0,"));
        assert_eq!(c.json(&slots)["ports"][0]["flows"]["limited"], 5);
    }
}
