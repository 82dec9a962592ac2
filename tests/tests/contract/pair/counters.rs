//! What the counters of the wire's two ports say, and that they add up.

use std::collections::BTreeMap;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Pair, Side, Until};
use crate::table::Counts;

/// Counters at a moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted {
    /// All ports' drops, by reason.
    pub(super) drops: BTreeMap<String, u64>,
    /// Which ports are up.
    pub(super) up: BTreeMap<String, bool>,
    /// Frames that the wire's ports gave and took, and what they dropped: netdev, device.
    ends: [[u64; 3]; 2],
}

const GAVE: usize = 0;
const TOOK: usize = 1;
const DROPPED: usize = 2;
/// Not of the wire's: what a group sends back of what it was sent.
const ECHO: &str = "echo";

impl Counted {
    fn end(&self, of: Side) -> [u64; 3] {
        self.ends[usize::from(!of.is_netdev())]
    }
}

impl Pair<'_> {
    /// What the product has counted by now.
    pub(super) fn stats(&self) -> Counted {
        let before = self.proc.lines().len();
        self.proc.signal(Signal::SIGUSR1).unwrap();
        let until = Until::new();
        let line = loop {
            let lines = self.proc.lines();
            if let Some(l) = lines.into_iter().skip(before).find(|l| l.text.contains("\"event\":\"stats\"")) {
                break l.text;
            }
            until.nap(|| "counters are not said".to_owned());
        };
        let said: Value = serde_json::from_str(&line).unwrap();
        let mut counted = Counted::default();
        for port in said["ports"].as_array().unwrap() {
            let id = port["id"].as_str().unwrap();
            let drops = port["drops"].as_object().unwrap();
            let mut all = 0;
            for (reason, n) in drops.iter().filter(|(reason, _)| *reason != ECHO) {
                let n = n.as_u64().unwrap();
                *counted.drops.entry(reason.clone()).or_insert(0) += n;
                all += n;
            }
            counted.up.insert(id.to_owned(), port["up"].as_bool().unwrap());
            let at = [Side::Netdev, Side::Device].into_iter().position(|s| s.id() == id);
            if let Some(end) = at {
                let n = |key: &str| port[key].as_u64().unwrap();
                counted.ends[end] = [n("rx_frames"), n("tx_frames"), all];
            }
        }
        counted
    }

    /// Drops since then, by reason.
    pub(super) fn since(&self, before: &Counted) -> BTreeMap<String, u64> {
        let mut now = self.stats().drops;
        now.iter_mut()
            .for_each(|(reason, n)| *n = n.saturating_sub(before.drops.get(reason).copied().unwrap_or(0)));
        now.retain(|_, n| *n > 0);
        now
    }

    /// Waits until exactly this was dropped since then.
    pub(super) fn expect_drops(&self, before: &Counted, want: &BTreeMap<String, u64>, what: &str) {
        let until = Until::new();
        loop {
            let got = self.since(before);
            if got == *want {
                return;
            }
            until.nap(|| format!("{what}: drops of {want:?}, but {got:?}"));
        }
    }

    /// Since then `put` frames were put in at one side, and none at the other: what the wire took and what it dropped is that
    /// many. (None: nobody knows how many. What is between the two ports adds up nevertheless.)
    pub(super) fn adds_up(&self, from: Side, before: &Counted, put: Option<u64>) {
        let put = match (self.netdev.row.counts, self.row(from).counts) {
            (Counts::Apart(_), _) => None,
            _ => put,
        };
        let exactly = self.row(from).counts == Counts::Exactly;
        let until = Until::new();
        loop {
            let now = self.stats();
            let since = |of: Side, what: usize| now.end(of)[what] - before.end(of)[what];
            let (given, taken) = (since(from, GAVE), since(from.other(), TOOK));
            let drops = since(from, DROPPED) + since(from.other(), DROPPED);
            let between = taken <= given && given <= taken + drops;
            let all = put.is_none_or(|put| if exactly { put == taken + drops } else { put <= taken + drops });
            if between && all {
                return;
            }
            until.nap(|| {
                let put = put.map_or_else(|| "those".to_owned(), |n| n.to_string());
                let way = self.way(from);
                format!(
                    "{way}: of {put} frames put in, {given} were given, {taken} taken and {drops} dropped"
                )
            });
        }
    }
}
