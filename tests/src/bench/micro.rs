//! The device side of vhost-user by itself: the dataplane's own micro-bench, run and read.

use std::process::Command;
use std::time::Duration;

use crate::{Because, Done, bins, proc};

/// CPU nanoseconds that the device side spends for one frame.
#[derive(Clone, Debug)]
pub struct Cost {
    /// What was done, as the micro-bench says it.
    pub what: String,
    /// Nanoseconds.
    pub ns: f64,
}

/// Builds and runs `dataplane/benches/virtq.rs` `times` times and gives each line's median.
///
/// # Errors
/// It does not build, or printed nothing that can be read.
pub fn run(times: u32) -> Done<Vec<Cost>> {
    let mut all: Vec<(String, Vec<f64>)> = Vec::new();
    for _ in 0..times {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["bench", "--quiet", "--profile", "fast", "-p", "netreeve-dataplane", "--bench", "virtq"]);
        cargo.current_dir(bins::root());
        let text =
            proc::run("cargo bench", cargo, Duration::from_secs(900))?.ok("the device side's micro-bench")?;
        for cost in read(&text) {
            match all.iter_mut().find(|(what, _)| *what == cost.what) {
                Some((_, list)) => list.push(cost.ns),
                None => all.push((cost.what, vec![cost.ns])),
            }
        }
    }
    (!all.is_empty()).then_some(()).because("the device side's micro-bench printed no figure")?;
    let middle = |(what, list)| Cost { what, ns: super::figures::median(list) };
    Ok(all.into_iter().map(middle).collect())
}

/// Reads the lines of one run, each under its ring's format:
/// "split, 256 places, 32 frames at a time" and then
/// "  guest receives (copied)    64 bytes    21.1 ns/frame, without the driver   16.1".
fn read(text: &str) -> Vec<Cost> {
    let mut format = "";
    let mut all = Vec::new();
    for line in text.lines() {
        if let Some((word, _)) = line.split_once(", ").filter(|_| !line.starts_with(' ')) {
            format = word;
        } else if let Some(cost) = cost(format, line) {
            all.push(cost);
        }
    }
    all
}

fn cost(format: &str, line: &str) -> Option<Cost> {
    let (what, rest) = line.split_once(" bytes")?;
    let ns = rest.rsplit_once("without the driver")?.1.trim().parse().ok()?;
    let words: Vec<&str> = what.split_whitespace().collect();
    Some(Cost { what: format!("{format}, {} bytes", words.join(" ")), ns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_lines_are_read() {
        let text = "split, 256 places, 32 frames at a time\n\
            \u{20} the device's fetching alone             3.0 ns/frame\n\
            \u{20} guest receives (copied)    64 bytes          21.1 ns/frame, without the driver   16.1\n\
            \u{20} guest receives    64 bytes, a processor each    17.9 Mframes/s\n\
            packed, 256 places, 32 frames at a time\n\
            \u{20} guest transmits  1500 bytes          22.7 ns/frame, without the driver   -0.5\n";
        let read: Vec<(String, f64)> = read(text).into_iter().map(|c| (c.what, c.ns)).collect();
        let right =
            [("split, guest receives (copied) 64 bytes", 16.1), ("packed, guest transmits 1500 bytes", -0.5)];
        assert_eq!(read, right.map(|(what, ns)| (what.to_owned(), ns)));
    }
}
