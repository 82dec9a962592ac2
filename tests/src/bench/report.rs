//! The figures: medians and spread over the rounds, ratios, as Markdown and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use super::case::{Case, Path, Who};
use super::runner::Sample;

/// All samples of a run, by row and by who was measured.
#[derive(Default)]
pub struct Figures {
    rows: Vec<(Case, BTreeMap<Who, Vec<Sample>>)>,
    /// What could not be measured, and why.
    pub failures: Vec<String>,
}

/// The middle value; of an even number of values, the mean of the two in the middle.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut v: Vec<f64> = values.into_iter().collect();
    v.sort_by(f64::total_cmp);
    let mid = |i: usize| v.get(i).copied().unwrap_or(f64::NAN);
    if v.len() % 2 == 1 {
        mid(v.len() / 2)
    } else {
        f64::midpoint(mid((v.len() / 2).wrapping_sub(1)), mid(v.len() / 2))
    }
}

/// Medians of one cell.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// Million frames a second, and its extremes.
    pub mpps: (f64, f64, f64),
    /// CPU nanoseconds a frame.
    pub cpu_ns: f64,
    /// Share of the processor.
    pub share: f64,
    /// In most rounds the load was the limit.
    pub load_bound: bool,
}

fn cell(samples: &[Sample]) -> Option<Cell> {
    let mpps = || samples.iter().map(|s| s.mpps);
    (!samples.is_empty()).then(|| Cell {
        mpps: (
            median(mpps()),
            mpps().fold(f64::INFINITY, f64::min),
            mpps().fold(f64::NEG_INFINITY, f64::max),
        ),
        cpu_ns: median(samples.iter().map(|s| s.cpu_ns)),
        share: median(samples.iter().map(|s| s.share)),
        load_bound: samples.iter().filter(|s| s.load_bound).count() * 2 > samples.len(),
    })
}

impl Figures {
    /// Figures for these rows, empty.
    #[must_use]
    pub fn new(cases: &[Case]) -> Self {
        Self { rows: cases.iter().map(|c| (c.clone(), BTreeMap::new())).collect(), failures: Vec::new() }
    }

    /// Adds a sample to row `row`.
    pub fn add(&mut self, row: usize, who: Who, sample: Sample) {
        if let Some((_, cells)) = self.rows.get_mut(row) {
            cells.entry(who).or_default().push(sample);
        }
    }

    /// The table of 64-byte rates.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut t = String::from(
            "| 64-byte frames, one queue | who | Mpps (median, min to max) | CPU ns/frame | its core | × raw, rate | × raw, CPU | × DPDK, rate | × DPDK, CPU |\n\
             |---|---|---|---|---|---|---|---|---|\n",
        );
        for (case, cells) in &self.rows {
            let of = |w: Who| cells.get(&w).and_then(|s| cell(s));
            let (raw, dpdk) = (of(Who::Raw), of(Who::Dpdk));
            for who in &case.who {
                let Some(c) = of(*who) else {
                    let _infallible =
                        writeln!(t, "| {} | {} | failed, see below | | | | | | |", case.name(), who.name());
                    continue;
                };
                let ratio = |to: Option<Cell>, rate: bool| match to {
                    Some(r) if rate => format!("{:.2}", c.mpps.0 / r.mpps.0),
                    Some(r) => format!("{:.2}", r.cpu_ns / c.cpu_ns),
                    None => "–".to_owned(),
                };
                let _infallible = writeln!(
                    t,
                    "| {} | {} | {:.3} ({:.3} to {:.3}){} | {:.0} | {:.0} % | {} | {} | {} | {} |",
                    case.name(),
                    who.name(),
                    c.mpps.0,
                    c.mpps.1,
                    c.mpps.2,
                    if c.load_bound { " †" } else { "" },
                    c.cpu_ns,
                    c.share * 100.0,
                    ratio(raw, true),
                    ratio(raw, false),
                    ratio(dpdk, true),
                    ratio(dpdk, false),
                );
            }
        }
        t
    }

    /// A median cell of the table.
    #[must_use]
    pub fn cell(&self, path: Path, way: super::case::Way, who: Who) -> Option<Cell> {
        let (_, cells) = self.rows.iter().find(|(c, _)| c.path == path && c.way == way)?;
        cell(cells.get(&who)?)
    }

    /// Every sample.
    #[must_use]
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|(case, cells)| {
            let who = cells.iter().map(|(who, samples)| {
                let samples: Vec<Value> = samples
                    .iter()
                    .map(|s| json!({"mpps": s.mpps, "cpu_ns": s.cpu_ns, "share": s.share, "load_bound": s.load_bound}))
                    .collect();
                (who.name().to_owned(), Value::from(samples))
            });
            json!({"case": case.name(), "samples": who.collect::<serde_json::Map<_, _>>()})
        });
        json!({"rates_64_bytes": rows.collect::<Vec<_>>(), "failures": self.failures})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median([4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median([]).is_nan());
    }
}
