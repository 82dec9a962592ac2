//! `make bench`: netreeve beside the kernel's raw limits and beside DPDK, all in one run and interleaved, as ratios.
//!
//! `bench [--quick] [--rounds N] [--window MS] [--only TEXT] [--who TEXT]`; the figures go to the terminal as they come,
//! and as Markdown and JSON to `bench/` in cargo's target directory.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench talks to who started it")]

use std::process::ExitCode;
use std::time::Duration;

use netreeve_tests::bench::case::Case;
use netreeve_tests::bench::host;
use netreeve_tests::bench::report::Figures;
use netreeve_tests::bench::runner::{self, Bench};
use netreeve_tests::{Because, Done, bins, trouble};

struct Options {
    rounds: u32,
    window: Duration,
    only: String,
    who: String,
}

fn options() -> Done<Options> {
    let mut o =
        Options { rounds: 7, window: Duration::from_millis(1500), only: String::new(), who: String::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().because(format!("{word} needs a value"));
        match word.as_str() {
            "--quick" => (o.rounds, o.window) = (3, Duration::from_millis(600)),
            "--rounds" => o.rounds = value()?.parse().because("--rounds")?,
            "--window" => o.window = Duration::from_millis(value()?.parse().because("--window")?),
            "--only" => o.only = value()?,
            "--who" => o.who = value()?,
            _ => return Err(trouble(format!("unknown word {word}"))),
        }
    }
    Ok(o)
}

fn bench() -> Done {
    let o = options()?;
    runner::check()?;
    let _line = host::enter().because("the benches' ground")?;
    let mut cases: Vec<Case> = Case::all().into_iter().filter(|c| c.name().contains(&o.only)).collect();
    for c in &mut cases {
        c.who.retain(|w| w.name().contains(&o.who));
    }
    let mut bench = Bench::new()?;
    let mut figures = Figures::new(&cases);
    for round in 1..=o.rounds {
        for (i, case) in cases.iter().enumerate() {
            for who in &case.who {
                match bench.sample(case, *who, o.window) {
                    Ok(s) => {
                        eprintln!(
                            "round {round}/{} {}: {}: {:.3} Mpps, {:.0} ns CPU a frame, {:.0} % of its core{}",
                            o.rounds,
                            case.name(),
                            who.name(),
                            s.mpps,
                            s.cpu_ns,
                            s.share * 100.0,
                            if s.load_bound { " (the load's limit)" } else { "" },
                        );
                        figures.add(i, *who, s);
                    }
                    Err(e) => {
                        eprintln!("round {round}/{}: {e}", o.rounds);
                        figures.failures.push(format!("round {round}: {e}"));
                    }
                }
            }
        }
    }
    println!("{}", figures.markdown());
    let dir = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| bins::root().join("target"), Into::into)
        .join("bench");
    std::fs::create_dir_all(&dir).because(dir.display())?;
    std::fs::write(dir.join("bench.md"), figures.markdown()).because("bench.md")?;
    std::fs::write(dir.join("bench.json"), figures.json().to_string()).because("bench.json")
}

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench: {e}");
            ExitCode::FAILURE
        }
    }
}
