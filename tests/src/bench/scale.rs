//! Many VMs at once, each on a tap: how soon each is ready, what an idle one costs, and what all get when all push.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::case::{Path, Who};
use super::driver::{Driver, Make};
use super::figures::{Miss, Taken, median};
use super::load::{Load, Task};
use super::peer::Ours;
use super::row::{MANY, Value};
use super::runner::{connect, per_frame, real};
use super::{host, idle};
use crate::proc::Proc;
use crate::{Because, Done, trouble};

/// VMs of one process where it serves several: netreeve takes 32 ports.
const SHARED: usize = 16;
/// Bytes of a frame.
const SIZE: usize = 64;

/// Starts one VM's or all VMs' netreeve, lets them be idle, lets them push for `window`.
///
/// # Errors
/// Something did not start, or it cannot be done here.
pub fn sample(ours: &Ours, who: Who, window: Duration) -> Taken<Vec<Value>> {
    let vms = match who {
        Who::One => 1,
        Who::Netreeve | Who::Shared => MANY,
        who => return Err(Miss::Skipped(format!("{} does not serve many", who.name()))),
    };
    let socks: Vec<[PathBuf; 2]> = (0..vms).map(|i| ours.sockets(&format!("many{i}-"))).collect();
    let result = run(ours, who, &socks, window);
    for s in socks.iter().flatten() {
        // A server that was killed leaves its socket.
        let _gone = std::fs::remove_file(s);
    }
    result
}

fn run(ours: &Ours, who: Who, socks: &[[PathBuf; 2]], window: Duration) -> Taken<Vec<Value>> {
    let before = host::links();
    let (procs, starts) = launch(ours, who, socks)?;
    let taps = taps(&before, socks.len())?;
    let mut drivers = Vec::new();
    for [at, _] in socks {
        let make = Make { rx: 256, ..Make::usual(true) };
        let mut driver = connect(at, make)?;
        if drivers.len() < 8 {
            idle::busy_once(&mut driver);
        }
        drivers.push(driver);
    }
    sleep(Duration::from_secs(1));
    let pids: Vec<i32> = procs.iter().flat_map(|p| host::family(p.pid())).collect();
    let cost = idle::watch(&pids, window)?;
    let (together, least) = push(drivers, &taps, &pids, window)?;
    let plain = |value| Value { value, ..Value::default() };
    Ok(vec![
        plain(median(starts.iter().copied())),
        plain(starts.iter().copied().fold(0.0, f64::max)),
        plain(cost.own / real(socks.len() as u64) / f64::from(1 << 20)),
        plain(cost.wakes),
        together,
        plain(least),
    ])
}

/// Starts them one after the other; milliseconds from start to ready. One process for several has one start.
fn launch(ours: &Ours, who: Who, socks: &[[PathBuf; 2]]) -> Done<(Vec<Proc>, Vec<f64>)> {
    host::pin(host::MEASURED).because("pin")?;
    let mut procs = Vec::new();
    let mut starts = Vec::new();
    let mut result = Ok(());
    let together = if who == Who::Shared { SHARED } else { 1 };
    for group in socks.chunks(together) {
        let t = Instant::now();
        match ours.run_many(Path::Tap, group, &[], &[]) {
            Ok(p) => procs.push(p),
            Err(e) => {
                result = Err(trouble(format!("netreeve {} of {}: {e}", procs.len() + 1, socks.len())));
                break;
            }
        }
        starts.push(t.elapsed().as_secs_f64() * 1e3);
    }
    host::unpin().because("unpin")?;
    result.map(|()| (procs, starts))
}

/// The taps that came up since `before`, made silent and up.
fn taps(before: &[String], wanted: usize) -> Done<Vec<String>> {
    let new: Vec<String> = host::links().into_iter().filter(|l| !before.contains(l)).collect();
    if new.len() != wanted {
        return Err(trouble(format!("{} taps came up, not {wanted}", new.len())));
    }
    for tap in &new {
        host::silence(tap).because("silence a tap")?;
        host::ip(&format!("link set {tap} up promisc on")).because("a tap")?;
    }
    Ok(new)
}

/// All push at once: frames of all together, and the least served beside the most served.
fn push(drivers: Vec<Driver>, taps: &[String], pids: &[i32], window: Duration) -> Done<(Value, f64)> {
    let counts = || -> Vec<u64> { taps.iter().map(|t| host::received(t)).collect() };
    let cpu = || -> u64 { pids.iter().map(|&id| host::cpu_ns(id, true)).sum() };
    let load = Load::start(Task::Many(drivers), SIZE);
    sleep(Duration::from_millis(500));
    let (f0, c0, t) = (counts(), cpu(), Instant::now());
    sleep(window.max(Duration::from_secs(2)));
    let (f1, c1, wall) = (counts(), cpu(), t.elapsed().as_secs_f64());
    load.end().because("the load")?;
    let each: Vec<f64> = f1.iter().zip(&f0).map(|(a, b)| real(a.saturating_sub(*b))).collect();
    let most = each.iter().copied().fold(0.0, f64::max);
    let least = each.iter().copied().fold(f64::INFINITY, f64::min);
    if most == 0.0 {
        return Err(trouble("no frame came through in the window"));
    }
    let used = real(c1.saturating_sub(c0));
    let all = per_frame(each.iter().sum(), used, wall, SIZE);
    Ok((Value { share: Some(used / 1e9 / wall), ..all }, least / most))
}
