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
        for cost in text.lines().filter_map(read) {
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

/// Reads "guest transmits    64 bytes   12.3 ns/frame, device side    6.4".
fn read(line: &str) -> Option<Cost> {
    let (what, rest) = line.split_once(" bytes")?;
    let form = rest.trim_start().strip_prefix('(').and_then(|r| r.split_once(')')).map(|(f, _)| f);
    let ns = rest.rsplit_once("device side")?.1.trim().parse().ok()?;
    let words: Vec<&str> = what.split_whitespace().collect();
    let form = form.map(|f| format!(" ({f})")).unwrap_or_default();
    Some(Cost { what: format!("{} bytes{form}", words.join(" ")), ns })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_lines_are_read() {
        let c = read("guest receives     64 bytes (copied)    12.0 ns/frame, device side    6.5").unwrap();
        assert_eq!((c.what.as_str(), c.ns), ("guest receives 64 bytes (copied)", 6.5));
        assert_eq!(read("guest transmits  1500 bytes    1.0 ns/frame, device side -0.5").unwrap().ns, -0.5);
        assert!(read("pop alone       1.0 ns/frame").is_none());
    }
}
