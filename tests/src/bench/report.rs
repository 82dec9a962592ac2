//! The figures as Markdown for people and as JSON for programs.

use std::fmt::Write;

use serde_json::{Value as Json, json};

use super::case::Who;
use super::figures::{Cell, Figures, Ratio, Sampled, cell};
use super::row::{Row, Value};

/// Adds a line; writing to a string cannot fail.
fn line(t: &mut String, words: std::fmt::Arguments<'_>) {
    let _infallible = writeln!(t, "{words}");
}

/// A figure with as many places as it deserves.
#[must_use]
pub fn number(v: f64) -> String {
    match v.abs() {
        a if a >= 100.0 => format!("{v:.0}"),
        a if a >= 10.0 => format!("{v:.1}"),
        a if a >= 1.0 || a == 0.0 => format!("{v:.2}"),
        _ => format!("{v:.3}"),
    }
}

fn maybe(v: Option<f64>) -> String {
    v.map_or_else(|| "–".to_owned(), number)
}

/// All tables.
#[must_use]
pub fn markdown(f: &Figures) -> String {
    let mut t = ratios(&f.ratios());
    t.push_str(&goals(f));
    t.push_str(&everything(f));
    if !f.device.is_empty() {
        t.push_str("\n| Device side of a vhost-user frame, in one thread | CPU ns/frame |\n|---|---|\n");
        for c in &f.device {
            line(&mut t, format_args!("| {} | {:.1} |", c.what, c.ns));
        }
    }
    t.push_str("\nGenerators and sinks:\n\n");
    for (row, _) in &f.rows {
        line(&mut t, format_args!("- **{}**: {}", row.name(), row.load()));
    }
    if !f.failures.is_empty() {
        t.push_str("\nNot measured, though it should have been:\n\n");
        for f in &f.failures {
            line(
                &mut t,
                format_args!("- {}", f.lines().next().unwrap_or_default().trim_end_matches("; it said:")),
            );
        }
    }
    t
}

fn title(row: &str, figure: &str) -> String {
    if figure.is_empty() { row.to_owned() } else { format!("{row}: {figure}") }
}

fn ratios(all: &[Ratio]) -> String {
    let mut t = String::from(
        "Times as good as the one beside it, by rounds measured one after the other: median (least to most). CPU: how many \
         times the work the same CPU time would carry; for loops that spin (raw ones when receiving, busy polling, DPDK) it \
         includes spinning.\n\n\
         | work | netreeve | beside | ratio | CPU | goal |\n|---|---|---|---|---|---|\n",
    );
    for r in all {
        let dagger = if r.load_bound { " †" } else { "" };
        let ours = match r.ours {
            Who::Netreeve => String::new(),
            w => format!(" ({})", w.name().trim_start_matches("netreeve, ")),
        };
        let (a, b) = (number(r.values.0), number(r.values.1));
        let unit = r.figure.unit;
        line(
            &mut t,
            format_args!(
                "| {} | {a} {unit}{ours} | {}, {b} | **{:.2}** ({:.2} to {:.2}){dagger} | {} | {} |",
                title(&r.row, r.figure.name),
                r.beside.name(),
                r.times.mid,
                r.times.low,
                r.times.high,
                r.cpu.map_or_else(|| "–".to_owned(), |c| format!("{c:.2}")),
                r.goal.map_or_else(|| "–".to_owned(), |g| format!("{g}")),
            ),
        );
    }
    t.push_str(
        "\n† the load (driver, generator, the kernel's work for them, all on the other processor) was netreeve's \
         limit: it slept for want of work, or passed nearly all that was offered, and nobody got more out of the same load.\n",
    );
    t
}

fn goals(f: &Figures) -> String {
    let all = f.goals();
    if all.is_empty() {
        return String::new();
    }
    let mut t = String::from("\n| goal | figure | |\n|---|---|---|\n");
    for g in all {
        let verdict = match (g.met, g.undecided) {
            (true, _) => "met".to_owned(),
            (_, Some(why)) => format!("not decided: {why}"),
            _ => "**missed**".to_owned(),
        };
        line(&mut t, format_args!("| {} | {} | {verdict} |", g.what, g.is));
    }
    t
}

/// Why a cell is empty.
fn gap(samples: Option<&Vec<Sampled>>) -> String {
    let skipped = samples.into_iter().flatten().find_map(|s| match s {
        Sampled::Skipped(why) => Some(format!("skipped: {}", why.lines().next().unwrap_or_default())),
        _ => None,
    });
    skipped.unwrap_or_else(|| "not measured".to_owned())
}

fn everything(f: &Figures) -> String {
    let mut t = String::from(
        "\nEverything that was measured: median (least to most).\n\n\
         | work | who | figure | CPU ns/frame | CPU s/GiB | its processor |\n|---|---|---|---|---|---|\n",
    );
    for (row, cells) in &f.rows {
        for who in &row.who {
            let samples = cells.get(who);
            let mut any = false;
            for (i, figure) in row.figures.iter().enumerate() {
                let Some(c) = samples.and_then(|s| cell(s, i)) else { continue };
                any = true;
                line(
                    &mut t,
                    format_args!(
                        "| {} | {} |{}",
                        title(&row.name(), figure.name),
                        who.name(),
                        tail(&c, figure.unit)
                    ),
                );
            }
            if !any {
                line(&mut t, format_args!("| {} | {} | {} | | | |", row.name(), who.name(), gap(samples)));
            }
        }
    }
    t
}

fn tail(c: &Cell, unit: &str) -> String {
    format!(
        " {} ({} to {}) {unit}{} | {} | {} | {} |",
        number(c.value.mid),
        number(c.value.low),
        number(c.value.high),
        if c.load_bound { " †" } else { "" },
        maybe(c.ns_frame),
        maybe(c.s_gib),
        c.share.map_or_else(|| "–".to_owned(), |s| format!("{:.0} %", s * 100.0)),
    )
}

/// Every sample, with the medians and ratios.
#[must_use]
pub fn json(f: &Figures, machine: &str) -> Json {
    let value = |v: &Value| {
        json!({"value": v.value, "cpu_ns_frame": v.ns_frame, "cpu_s_gib": v.s_gib, "share": v.share,
               "load_bound": v.load_bound})
    };
    let sampled = |s: &Sampled| match s {
        Sampled::Values(v) => v.iter().map(value).collect::<Json>(),
        Sampled::Skipped(why) => json!({"skipped": why}),
        Sampled::Failed => Json::Null,
    };
    let rows = f.rows.iter().map(|(row, cells)| {
        let figures =
            row.figures.iter().map(|f| json!({"name": f.name, "unit": f.unit, "more_is_better": f.more}));
        let who = cells
            .iter()
            .map(|(who, s)| (who.name().to_owned(), s.iter().map(sampled).collect::<Json>()))
            .collect::<serde_json::Map<_, _>>();
        json!({"row": row.name(), "load": row.load(), "figures": figures.collect::<Json>(), "rounds": who})
    });
    let ratios = f.ratios().into_iter().map(|r| {
        json!({"row": r.row, "figure": r.figure.name, "netreeve": r.ours.name(), "beside": r.beside.name(),
               "ratio": r.times.mid, "least": r.times.low, "most": r.times.high, "cpu": r.cpu, "goal": r.goal,
               "load_bound": r.load_bound})
    });
    let device = f.device.iter().map(|c| json!({"what": c.what, "cpu_ns": c.ns}));
    json!({
        "machine": machine,
        "rows": rows.collect::<Json>(),
        "ratios": ratios.collect::<Json>(),
        "device_side": device.collect::<Json>(),
        "failures": f.failures,
    })
}

/// One sample in a line, for who watches.
#[must_use]
pub fn brief(row: &Row, values: &[Value]) -> String {
    let one = |(v, f): (&Value, &super::row::Figure)| {
        let name = if f.name.is_empty() { String::new() } else { format!("{}: ", f.name) };
        let cpu = v.ns_frame.map(|n| format!(", {} ns CPU a frame", number(n)));
        let cpu = cpu.or(v.s_gib.map(|s| format!(", {} s CPU a GiB", number(s)))).unwrap_or_default();
        let share = v.share.map(|s| format!(", {:.0} % of its processor", s * 100.0)).unwrap_or_default();
        let bound = if v.load_bound { " (the load's limit)" } else { "" };
        format!("{name}{} {}{cpu}{share}{bound}", number(v.value), f.unit)
    };
    values.iter().zip(row.figures).map(one).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_cannot_run_says_why_and_the_others_stand_in_both_tables() {
        let row = Row::all().remove(0);
        let mut f = Figures::new(std::slice::from_ref(&row));
        let value = |value| Sampled::Values(vec![Value { value, ns_frame: Some(100.0), ..Value::default() }]);
        f.add(0, Who::Dpdk, value(2.0));
        f.add(0, Who::Netreeve, value(3.0));
        f.add(0, Who::Busy, Sampled::Skipped("no time".to_owned()));
        let text = markdown(&f);
        assert!(
            text.contains("| 3.00 Mpps | DPDK testpmd, 2.00 | **1.50** (1.50 to 1.50) | 1.00 |"),
            "{text}"
        );
        assert!(text.contains("netreeve, busy-poll | skipped: no time |"), "{text}");
        assert!(text.contains(row.load()), "{text}");
        let j = json(&f, "a machine");
        assert_eq!(j.pointer("/ratios/0/ratio").and_then(Json::as_f64), Some(1.5));
        assert_eq!(j.pointer("/rows/0/rounds/netreeve/0/0/value").and_then(Json::as_f64), Some(3.0));
    }
}
