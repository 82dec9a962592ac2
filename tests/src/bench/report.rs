//! The figures: medians and spread over the rounds, ratios, as Markdown and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};

use super::case::{Case, Path, Way, Who};
use super::micro::Cost;
use super::runner::Sample;
use super::tcp::{TcpCase, TcpSample};
use super::xdp::Mode;

/// All samples of a run, by row and by who was measured.
#[derive(Default)]
pub struct Figures {
    rows: Vec<(Case, BTreeMap<Who, Vec<Sample>>)>,
    tcp: Vec<(TcpCase, Vec<TcpSample>)>,
    /// The device side's costs.
    pub device: Vec<Cost>,
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

/// Adds a line; writing to a string cannot fail.
fn line(t: &mut String, words: std::fmt::Arguments<'_>) {
    let _infallible = writeln!(t, "{words}");
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
        Self { rows: cases.iter().map(|c| (c.clone(), BTreeMap::new())).collect(), ..Self::default() }
    }

    /// Adds a round of TCP.
    pub fn add_tcp(&mut self, case: TcpCase, sample: TcpSample) {
        match self.tcp.iter_mut().find(|(c, _)| *c == case) {
            Some((_, list)) => list.push(sample),
            None => self.tcp.push((case, vec![sample])),
        }
    }

    /// Adds a sample to row `row`.
    pub fn add(&mut self, row: usize, who: Who, sample: Sample) {
        if let Some((_, cells)) = self.rows.get_mut(row) {
            cells.entry(who).or_default().push(sample);
        }
    }

    /// All tables.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut t = self.rates();
        if !self.tcp.is_empty() {
            t.push('\n');
            t.push_str(&self.tcp_table());
        }
        if !self.device.is_empty() {
            t.push_str("\n| Device side of a vhost-user frame | CPU ns/frame |\n|---|---|\n");
            for c in &self.device {
                line(&mut t, format_args!("| {} | {:.1} |", c.what, c.ns));
            }
        }
        t.push('\n');
        t.push_str(&self.goals());
        if !self.failures.is_empty() {
            t.push_str("\nNot measured:\n\n");
            for f in &self.failures {
                line(&mut t, format_args!("- {}", f.lines().next().unwrap_or_default()));
            }
        }
        t
    }

    fn rates(&self) -> String {
        let mut t = String::new();
        if self.rows.is_empty() {
            return t;
        }
        t.push_str(
            "| 64-byte frames, one queue | who | Mpps (median, min to max) | CPU ns/frame | its core | \
             × raw: rate | CPU | × DPDK: rate | CPU |\n|---|---|---|---|---|---|---|---|---|\n",
        );
        for (case, cells) in &self.rows {
            let of = |w: Who| cells.get(&w).and_then(|s| cell(s));
            let (raw, dpdk) = (of(Who::Raw), of(Who::Dpdk));
            for who in &case.who {
                let head = format!("| {} | {} |", case.name(), who.name());
                let Some(c) = of(*who) else {
                    line(&mut t, format_args!("{head} not measured | | | | | | |"));
                    continue;
                };
                let ratios = |to: Option<Cell>| match to {
                    Some(r) => format!("{:.2} | {:.2}", c.mpps.0 / r.mpps.0, r.cpu_ns / c.cpu_ns),
                    None => "– | –".to_owned(),
                };
                let (m, low, high) = c.mpps;
                let dagger = if c.load_bound { " †" } else { "" };
                let rest = format!(
                    "{:.0} | {:.0} % | {} | {} |",
                    c.cpu_ns,
                    c.share * 100.0,
                    ratios(raw),
                    ratios(dpdk)
                );
                line(&mut t, format_args!("{head} {m:.3} ({low:.3} to {high:.3}){dagger} | {rest}"));
            }
        }
        t.push_str(
            "\n† the load (driver, generator, the kernel's work for them, all on the other core) was the limit. Where \
             frames come in, a guest takes its share of that core; the raw loops have no guest beside them there. CPU \
             ratios say how many times the frames the same CPU time would carry; for loops that spin (the raw ones when \
             receiving, busy polling, DPDK) they include spinning.\n",
        );
        t
    }

    fn tcp_table(&self) -> String {
        let mut t = String::from(
            "| TCP, one queue, MTU 1500 | from the guest, Gbit/s | to the guest, Gbit/s | netreeve's CPU ns/KiB |\n|---|---|---|---|\n",
        );
        for (case, samples) in &self.tcp {
            let of = |f: fn(&TcpSample) -> f64| {
                let (low, high) = samples
                    .iter()
                    .map(f)
                    .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
                format!("{:.2} ({low:.2} to {high:.2})", median(samples.iter().map(f)))
            };
            let cpu = median(samples.iter().map(|s| s.cpu_ns_kib));
            let (out, back) = (of(|s| s.out), of(|s| s.back));
            line(&mut t, format_args!("| {} | {out} | {back} | {cpu:.0} |", case.name()));
        }
        t
    }

    /// A row's median of TCP, out and back.
    fn tcp_of(&self, path: Path, offloads: bool) -> Option<(f64, f64)> {
        let (_, s) = self.tcp.iter().find(|(c, _)| c.path == path && c.offloads == offloads)?;
        Some((median(s.iter().map(|s| s.out)), median(s.iter().map(|s| s.back))))
    }

    /// The goals of the project, and where they stand.
    fn goals(&self) -> String {
        let mut t = String::from("| Goal | figure | |\n|---|---|---|\n");
        let mut say = |what: &str, figure: String, verdict: &str| {
            line(&mut t, format_args!("| {what} | {figure} | {verdict} |"));
        };
        let verdict = |met: bool| if met { "met" } else { "**missed**" };
        let paths = [Path::Xdp(Mode::Native), Path::Xdp(Mode::Skb), Path::Tap];
        for (path, way) in paths.iter().flat_map(|p| [Way::Out, Way::In, Way::Both].map(|w| (*p, w))) {
            let of = |who| self.cell(path, way, who);
            let (Some(raw), Some(c)) = (of(Who::Raw), of(Who::Netreeve)) else { continue };
            let busy = of(Who::Busy)
                .map(|b| format!(", busy-poll {:.2}", b.mpps.0 / raw.mpps.0))
                .unwrap_or_default();
            let rate = c.mpps.0 / raw.mpps.0;
            let what = format!("{}: 0.8 of the raw limit", Case { path, way, who: Vec::new() }.name());
            let said = if rate < 0.8 && c.load_bound {
                "not decided: the load is the limit"
            } else {
                verdict(rate >= 0.8)
            };
            say(&what, format!("{rate:.2}{busy} (CPU {:.2})", raw.cpu_ns / c.cpu_ns), said);
        }
        let of = |who| self.cell(Path::Vhost, Way::Out, who);
        if let (Some(dpdk), Some(c)) = (of(Who::Dpdk), of(Who::Netreeve).or(of(Who::Busy))) {
            let rate = c.mpps.0 / dpdk.mpps.0;
            let figure = format!("{rate:.2} (CPU {:.2})", dpdk.cpu_ns / c.cpu_ns);
            say("vhost-user → vhost-user: 0.7 of DPDK", figure, verdict(rate >= 0.7));
        }
        for c in self.device.iter().filter(|c| c.what.contains(" 64 bytes")) {
            let what = format!("device side, {}: under 20 ns", c.what);
            say(&what, format!("{:.1} ns", c.ns), verdict(c.ns < 20.0));
        }
        if let (Some(on), Some(off)) = (self.tcp_of(Path::Tap, true), self.tcp_of(Path::Tap, false)) {
            for (what, on, off) in [("from", on.0, off.0), ("to", on.1, off.1)] {
                let what = format!("TCP {what} a UML guest over tap: offloads 4 times the same without");
                say(&what, format!("{:.1}", on / off), verdict(on / off >= 4.0));
            }
        }
        t
    }

    /// A median cell of the table.
    #[must_use]
    pub fn cell(&self, path: Path, way: Way, who: Who) -> Option<Cell> {
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
        let tcp = self.tcp.iter().map(|(case, list)| {
            let of = |s: &TcpSample| json!({"out": s.out, "back": s.back, "cpu_ns_kib": s.cpu_ns_kib});
            json!({"case": case.name(), "gbit_s": list.iter().map(of).collect::<Vec<_>>()})
        });
        let device = self.device.iter().map(|c| json!({"what": c.what, "cpu_ns": c.ns}));
        json!({
            "rates_64_bytes": rows.collect::<Vec<_>>(),
            "tcp": tcp.collect::<Vec<_>>(),
            "device_side": device.collect::<Vec<_>>(),
            "failures": self.failures,
        })
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
