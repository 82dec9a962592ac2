//! `make bench`: netreeve beside the kernel's raw limits and beside DPDK, all in one run and interleaved, as ratios.
//!
//! `--quick` leaves out xsk-rs, busy polling and TCP over anything but a tap.
//!
//! `bench [--quick] [--rounds N] [--window MS] [--parts rates,tcp,device] [--only TEXT] [--who TEXT]`; the figures go to
//! the terminal as they come, and as Markdown and JSON to `bench/` in cargo's target directory.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench talks to who started it")]

use std::process::ExitCode;
use std::time::Duration;

use netreeve_tests::bench::case::{Case, Path, Who};
use netreeve_tests::bench::report::Figures;
use netreeve_tests::bench::runner::{self, Bench};
use netreeve_tests::bench::tcp::{self, TcpCase};
use netreeve_tests::bench::{host, micro, peer};
use netreeve_tests::{Because, Done, bins, proc, trouble};

struct Options {
    rounds: u32,
    window: Duration,
    seconds: u32,
    quick: bool,
    parts: String,
    only: String,
    who: String,
}

fn options() -> Done<Options> {
    let mut o = Options {
        rounds: 5,
        window: Duration::from_secs(1),
        seconds: 3,
        quick: false,
        parts: "rates,tcp,device".to_owned(),
        only: String::new(),
        who: String::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().because(format!("{word} needs a value"));
        match word.as_str() {
            "--quick" => {
                (o.rounds, o.window, o.seconds) = (3, Duration::from_millis(500), 2);
                o.quick = true;
            }
            "--rounds" => o.rounds = value()?.parse().because("--rounds")?,
            "--window" => o.window = Duration::from_millis(value()?.parse().because("--window")?),
            "--parts" => o.parts = value()?,
            "--only" => o.only = value()?,
            "--who" => o.who = value()?,
            _ => return Err(trouble(format!("unknown word {word}"))),
        }
    }
    Ok(o)
}

/// One round of 64-byte rates: every row, everybody in it.
fn rates(o: &Options, round: u32, cases: &[Case], bench: &mut Bench, figures: &mut Figures) {
    for (i, case) in cases.iter().enumerate() {
        for who in &case.who {
            let name = format!("round {round}/{}: {}: {}", o.rounds, case.name(), who.name());
            let sample = bench.sample(case, *who, o.window).or_else(|e| {
                eprintln!("{name}: {e}; once more");
                bench.sample(case, *who, o.window)
            });
            match sample {
                Ok(s) => {
                    let limit = if s.load_bound { " (the load's limit)" } else { "" };
                    let share = s.share * 100.0;
                    eprintln!(
                        "{name}: {:.3} Mpps, {:.0} ns CPU a frame, {share:.0} % of its core{limit}",
                        s.mpps, s.cpu_ns
                    );
                    figures.add(i, *who, s);
                }
                Err(e) => {
                    eprintln!("{name}: {e}");
                    figures.failures.push(format!("round {round}: {e}"));
                }
            }
        }
    }
}

/// One round of TCP.
fn tcp_round(o: &Options, round: u32, figures: &mut Figures) {
    let mut cases = TcpCase::all();
    cases.retain(|c| c.name().contains(&o.only) && !(o.quick && c.path != Path::Tap));
    for case in cases {
        let name = format!("round {round}/{}: {}", o.rounds, case.name());
        match tcp::sample(case, o.seconds) {
            Ok(s) => {
                eprintln!("{name}: {:.2} Gbit/s from the guest, {:.2} to the guest", s.out, s.back);
                figures.add_tcp(case, s);
            }
            Err(e) => {
                eprintln!("{name}: {e}");
                figures.failures.push(format!("round {round}: {e}"));
            }
        }
    }
}

fn bench() -> Done<bool> {
    let o = options()?;
    let machine = host::machine();
    runner::check()?;
    let mut cases = Case::all();
    cases.retain(|c| o.parts.contains("rates") && c.name().contains(&o.only));
    for c in &mut cases {
        c.who.retain(|w| w.name().contains(&o.who) && !(o.quick && matches!(w, Who::XskRs | Who::Busy)));
    }
    let mut figures = Figures::new(&cases);
    if o.parts.contains("device") {
        match micro::run(3) {
            Ok(c) => figures.device = c,
            Err(e) => figures.failures.push(e.to_string()),
        }
    }
    let _line = host::enter().because("the benches' ground")?;
    let mut bench = Bench::new()?;
    for round in 1..=o.rounds {
        rates(&o, round, &cases, &mut bench, &mut figures);
        if o.parts.contains("tcp") {
            tcp_round(&o, round, &mut figures);
        }
    }
    let text = format!(
        "{machine}.\n{} rounds, interleaved, windows of {:?}. What is measured runs on processor {}, the load on {}; for \
         TCP nothing is pinned.\n\n{}",
        o.rounds,
        o.window,
        host::MEASURED,
        host::LOAD,
        figures.markdown()
    );
    println!("{text}");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| bins::root().join("target"), Into::into);
    let dir = target.join("bench");
    std::fs::create_dir_all(&dir).because(dir.display())?;
    std::fs::write(dir.join("bench.md"), text).because("bench.md")?;
    std::fs::write(dir.join("bench.json"), figures.json().to_string()).because("bench.json")?;
    Ok(figures.failures.is_empty())
}

fn main() -> ExitCode {
    // An interrupted bench takes its processes along and sets the machine back.
    proc::end_on_interrupt("bench", || {
        peer::remove_all();
        host::step_back();
    });
    match bench() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("bench: not everything could be measured, see above");
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("bench: {e}");
            ExitCode::FAILURE
        }
    }
}
