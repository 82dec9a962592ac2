//! `make bench`: netreeve beside the kernel's raw limits, DPDK, QEMU, passt, slirp4netns and veth alone, all in one run and
//! interleaved, as ratios.
//!
//! `bench [--quick | --try] [--list] [--only TEXT]... [--who TEXT]... [--rounds N] [--window MS] [--publish | --publish-as NAME]`.
//! A row is measured by all who are in it, one after the other, round by round. The figures go to the terminal as they come,
//! and as Markdown, JSON and SVG to `bench/` in cargo's target directory; `--publish` puts Markdown and SVG into
//! `tests/figures/` as well, `--publish-as` those of some of the rows, under a name of their own.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench talks to who started it")]

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use netreeve_tests::bench::case::Who;
use netreeve_tests::bench::figures::{Figures, Miss, Sampled, Taken};
use netreeve_tests::bench::row::{Row, Value, Work};
use netreeve_tests::bench::runner::{self, Bench};
use netreeve_tests::bench::{
    datagram, forward, host, idle, micro, peer, plot, report, scale, tcp, trip, user,
};
use netreeve_tests::{Because, Done, bins, proc, trouble};

/// The part of the run that is not a row: costs of the device side in one thread.
const DEVICE: &str = "device side";
/// The file of a run of all rows.
const WHOLE: &str = "bench";

struct Options {
    rounds: u32,
    window: Duration,
    seconds: u32,
    quick: bool,
    list: bool,
    first: bool,
    publish: Option<String>,
    only: Vec<String>,
    who: Vec<String>,
}

fn options() -> Done<Options> {
    let mut o = Options {
        rounds: 5,
        window: Duration::from_secs(1),
        seconds: 3,
        quick: false,
        list: false,
        first: true,
        publish: None,
        only: Vec::new(),
        who: Vec::new(),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().because(format!("{word} needs a value"));
        match word.as_str() {
            "--quick" => {
                (o.rounds, o.window, o.seconds) = (3, Duration::from_millis(300), 1);
                o.quick = true;
            }
            // One short round of everything, behind everybody else: does it run?
            "--try" => (o.rounds, o.window, o.seconds, o.first) = (1, Duration::from_millis(200), 1, false),
            "--list" => o.list = true,
            "--publish" => o.publish = Some(WHOLE.to_owned()),
            "--publish-as" => o.publish = Some(value()?),
            "--rounds" => o.rounds = value()?.parse().because("--rounds")?,
            "--window" => o.window = Duration::from_millis(value()?.parse().because("--window")?),
            "--only" => o.only.push(value()?),
            "--who" => o.who.push(value()?),
            _ => return Err(trouble(format!("unknown word {word}"))),
        }
    }
    let part = o.quick || !(o.only.is_empty() && o.who.is_empty());
    let plain = |name: &String| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    match &o.publish {
        Some(name) if part && name == WHOLE => Err(trouble(
            "--publish is for all rows; --publish-as NAME leaves the figures of the others as they are",
        )),
        Some(name) if name.is_empty() || !plain(name) => {
            Err(trouble(format!("--publish-as {name:?}: letters, digits and dashes name a file")))
        }
        _ => Ok(o),
    }
}

impl Options {
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|o| name.contains(o.as_str()))
    }

    /// The rows of this run. Asked for by name, a row is whole, in a short run as well.
    fn rows(&self) -> Vec<Row> {
        let mut rows = Row::all();
        if self.quick && self.only.is_empty() {
            Row::shorten(&mut rows);
        }
        rows.retain(|r| self.wants(&r.name()));
        for r in &mut rows {
            r.who.retain(|w| self.who.is_empty() || self.who.iter().any(|o| w.name().contains(o.as_str())));
        }
        rows
    }

    /// Rounds of a row: what boots guests or waits for silence is not so often done in a short run.
    fn rounds_of(&self, work: Work) -> u32 {
        match work {
            Work::Frames(_) | Work::Datagrams(_) | Work::Forward(_) | Work::Trip(_) => self.rounds,
            Work::Tcp(_) if self.quick => self.rounds.min(2),
            Work::Tcp(_) => self.rounds,
            Work::User(_) if self.quick => 1,
            Work::User(_) => self.rounds.min(3),
            Work::Idle(_) | Work::Scale if self.quick => 1,
            Work::Idle(_) | Work::Scale => self.rounds.min(3),
        }
    }
}

fn list(rows: &[Row]) {
    for r in rows {
        let who: Vec<&str> = r.who.iter().map(|w| w.name()).collect();
        println!("{}\n    who:  {}\n    load: {}", r.name(), who.join("; "), r.load());
    }
    println!("{DEVICE}\n    who:  netreeve's virtio code in one thread, by its own micro-bench");
}

fn sample(o: &Options, bench: &mut Bench, work: Work, who: Who) -> Taken<Vec<Value>> {
    match work {
        Work::Frames(case) => bench.frames(&case, who, o.window),
        Work::Datagrams(case) => datagram::sample(bench, case, who, o.window),
        Work::Forward(case) => forward::sample(bench, case, who, o.window),
        Work::Tcp(case) => tcp::sample(case, who, o.seconds),
        Work::User(case) => user::sample(bench, case, who, o.seconds, o.window),
        Work::Trip(path) => trip::sample(bench, path, who, o.window),
        Work::Idle(path) => idle::sample(bench, path, who, 4 * o.window),
        Work::Scale => scale::sample(&bench.ours, who, 2 * o.window),
    }
}

/// All rounds of one row: everybody in it, in turn.
fn measure(o: &Options, at: usize, row: &Row, bench: &mut Bench, figures: &mut Figures) {
    let rounds = o.rounds_of(row.work);
    for round in 1..=rounds {
        for who in &row.who {
            let name = format!("{}, {round}/{rounds}, {}", row.name(), who.name());
            let mut taken = sample(o, bench, row.work, *who);
            if let Err(Miss::Failed(e)) = &taken {
                eprintln!("{name}: {e}; once more");
                taken = sample(o, bench, row.work, *who);
            }
            let sampled = match taken {
                Ok(values) => {
                    eprintln!("{name}: {}", report::brief(row, &values));
                    Sampled::Values(values)
                }
                Err(Miss::Skipped(why)) => {
                    eprintln!("{name}: skipped: {why}");
                    Sampled::Skipped(why)
                }
                Err(Miss::Failed(e)) => {
                    eprintln!("{name}: {e}");
                    figures.failures.push(format!("{name}: {e}"));
                    Sampled::Failed
                }
            };
            figures.add(at, *who, sampled);
        }
    }
}

fn bench() -> Done<bool> {
    let o = options()?;
    let rows = o.rows();
    if o.list {
        list(&rows);
        return Ok(true);
    }
    let device = o.wants(DEVICE) && !o.quick;
    if rows.is_empty() && !device {
        return Err(trouble("no row has such a name; `--list` names them all"));
    }
    let (machine, began) = (host::machine(), Instant::now());
    runner::check(&rows)?;
    let mut figures = Figures::new(&rows);
    if device {
        match micro::run(3) {
            Ok(c) => figures.device = c,
            Err(e) => figures.failures.push(e.to_string()),
        }
    }
    let _line = host::enter(o.first).because("the benches' ground")?;
    let mut bench = Bench::new()?;
    for (at, row) in rows.iter().enumerate() {
        measure(&o, at, row, &mut bench, &mut figures);
    }
    let caption = format!(
        "{machine}; {}{} rounds, windows of {:?}, {:.0} minutes",
        host::commit().map(|c| format!("commit {c}; ")).unwrap_or_default(),
        o.rounds,
        o.window,
        began.elapsed().as_secs_f64() / 60.0
    );
    write(&o, &figures, &caption)?;
    Ok(figures.failures.is_empty())
}

fn write(o: &Options, figures: &Figures, caption: &str) -> Done {
    let text = format!(
        "{caption}. Streams and round trips: what is measured runs on processor {}, the load on {}; for TCP nothing is \
         pinned.\n\n{}",
        host::MEASURED,
        host::LOAD,
        report::markdown(figures)
    );
    println!("{text}");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| bins::root().join("target"), Into::into);
    let (dir, docs) = (target.join("bench"), bins::root().join("tests/figures"));
    let put = |dir: &Path, name: String, text: &str| -> Done {
        std::fs::create_dir_all(dir).because(dir.display())?;
        std::fs::write(dir.join(&name), text).because(dir.join(&name).display())
    };
    let picture = plot::svg(figures, caption);
    put(&dir, format!("{WHOLE}.json"), &report::json(figures, caption).to_string())?;
    let words: String = o.only.iter().map(|t| format!(" --only '{t}'")).collect();
    let by = if words.is_empty() {
        "`make bench`".to_owned()
    } else {
        format!("`make bench BENCH=\"{}\"`", words.trim())
    };
    let title = format!("# Figures\n\nWritten by {by}; what the words mean stands in the README.\n\n");
    let published = o.publish.as_ref().map(|name| (&docs, name.as_str()));
    for (dir, name) in std::iter::once((&dir, WHOLE)).chain(published) {
        put(dir, format!("{name}.md"), &format!("{title}{text}"))?;
        if let Some(picture) = &picture {
            put(dir, format!("{name}.svg"), picture)?;
        }
        eprintln!("bench: written to {}", dir.display());
    }
    Ok(())
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
