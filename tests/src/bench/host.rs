//! The machine under the benches: a network namespace of their own, cores, CPU time, interface counters.
//!
//! Everything is made in a nameless namespace that this process alone is in: when it and its children are gone, so are
//! the interfaces.

use std::fs;
use std::io;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::unistd::Pid;

use crate::{bins, sys};

/// One line about the machine.
#[must_use]
pub fn machine() -> String {
    let read = |p: &str| fs::read_to_string(p).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model =
        cpus.lines().find_map(|l| l.strip_prefix("model name")?.split_once(": ")).map_or("", |(_, m)| m);
    let n = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default();
    format!(
        "Linux {}, {n} processors ({model}), load average at the start {load}",
        read("/proc/sys/kernel/osrelease").trim()
    )
}

/// The commit that this tree was checked out at, `-dirty` if files have changed since; none outside of a repository.
#[must_use]
pub fn commit() -> Option<String> {
    let mut c = Command::new("git");
    c.args(["describe", "--always", "--dirty", "--abbrev=9", "--exclude=*"]).current_dir(bins::root());
    let said = c.output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8_lossy(&said.stdout).trim().to_owned()).filter(|c| !c.is_empty())
}

/// Runs what is measured.
pub const MEASURED: usize = 0;
/// Runs the load: driver, generator, sink.
pub const LOAD: usize = 1;

/// Whether this run goes before others.
static FIRST: AtomicBool = AtomicBool::new(false);

/// Puts the calling thread before every ordinary thread of its processor, if this run goes first. It must sleep.
///
/// # Errors
/// Not root.
pub fn before_others() -> io::Result<()> {
    if FIRST.load(Ordering::Relaxed) { sys::real_time() } else { Ok(()) }
}

/// Enters a new network namespace and goes, if it is to be `first`, first in line for the processors. Before any thread.
///
/// # Errors
/// Not root, or fewer than two processors.
pub fn enter(first: bool) -> io::Result<Line> {
    if std::thread::available_parallelism()?.get() < 2 {
        return Err(io::Error::other(
            "the benches need two processors: one for what is measured, one for the load",
        ));
    }
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|e| io::Error::other(format!("new network namespace: {e}; the benches need root")))?;
    ip("link set lo up")?;
    FIRST.store(first, Ordering::Relaxed);
    if !first {
        return Ok(Line(false));
    }
    sys::first_in_line()?;
    Ok(Line::first())
}

/// This session's place among the scheduler's groups; put back when dropped.
#[derive(Debug)]
pub struct Line(bool);

impl Line {
    fn first() -> Self {
        Self(fs::write("/proc/self/autogroup", "-20").is_ok())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.0 {
            step_back();
        }
    }
}

/// Gives this session its ordinary place among the scheduler's groups again.
pub fn step_back() {
    // There is nobody left to tell.
    let _gone = fs::write("/proc/self/autogroup", "0");
}

/// Keeps the calling thread, and what it spawns from now on, on one processor.
///
/// # Errors
/// No such processor.
pub fn pin(core: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Lets the calling thread run on both processors again.
///
/// # Errors
/// None is known.
pub fn unpin() -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(MEASURED)?;
    set.set(LOAD)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// CPU time in nanoseconds that a process (all its threads that live) or a thread has used, softirqs in its context
/// included.
#[must_use]
pub fn cpu_ns(id: i32, whole: bool) -> u64 {
    let one = |path: String| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split(' ').next().and_then(|w| w.parse::<u64>().ok()).unwrap_or(0)
    };
    if !whole {
        return one(format!("/proc/{id}/schedstat"));
    }
    let tasks = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
    tasks.map(|t| one(format!("{}/schedstat", t.path().display()))).sum()
}

/// The processes that descend from `pid`, and itself.
#[must_use]
pub fn family(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(&p) = all.get(at) {
        at += 1;
        for t in fs::read_dir(format!("/proc/{p}/task")).into_iter().flatten().flatten() {
            let text = fs::read_to_string(t.path().join("children")).unwrap_or_default();
            all.extend(text.split_whitespace().filter_map(|w| w.parse::<i32>().ok()));
        }
    }
    all
}

/// Runs `ip` with these words.
///
/// # Errors
/// What it said.
pub fn ip(words: &str) -> io::Result<()> {
    run("ip", words)
}

/// Runs a program with these words and wants success.
///
/// # Errors
/// What it said.
pub fn run(program: &str, words: &str) -> io::Result<()> {
    let out = Command::new(program)
        .args(words.split(' '))
        .output()
        .map_err(|e| io::Error::other(format!("{program}: {e}")))?;
    if out.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&out.stderr);
    Err(io::Error::other(format!("{program} {words}: {}", why.trim())))
}

/// Frames that an interface has received, as its own statistics say; 0 if there is none of this name.
#[must_use]
pub fn received(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    let line = text.lines().find_map(|l| l.trim_start().strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|l| l.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

/// The names of all interfaces.
#[must_use]
pub fn links() -> Vec<String> {
    let text = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    text.lines().filter_map(|l| Some(l.split_once(':')?.0.trim().to_owned())).collect()
}

/// An interface's number.
///
/// # Errors
/// There is none of this name.
pub fn ifindex(name: &str) -> io::Result<u32> {
    nix::net::if_::if_nametoindex(name).map_err(|e| io::Error::other(format!("interface {name}: {e}")))
}

/// An interface's Ethernet address. Asked of `ip`, because `/sys` shows the namespace that it was mounted in.
///
/// # Errors
/// There is none of this name, or it has no address.
pub fn mac(name: &str) -> io::Result<[u8; 6]> {
    let out = Command::new("ip").args(["-o", "link", "show", "dev", name]).output()?;
    read_mac(&String::from_utf8_lossy(&out.stdout))
        .ok_or_else(|| io::Error::other(format!("interface {name} has no Ethernet address")))
}

fn read_mac(text: &str) -> Option<[u8; 6]> {
    let (_, rest) = text.split_once("link/ether ")?;
    let bytes = rest.split(' ').next()?.split(':').map(|b| u8::from_str_radix(b, 16).ok());
    bytes.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

/// Makes the pair `v0` (measured) and `v1` (the world), one queue each, without addresses and IPv6's chatter.
///
/// # Errors
/// What `ip` said.
pub fn make_pair() -> io::Result<()> {
    ip("link add v0 numrxqueues 1 numtxqueues 1 type veth peer name v1 numrxqueues 1 numtxqueues 1")?;
    for v in ["v0", "v1"] {
        silence(v)?;
        ip(&format!("link set {v} up promisc on"))?;
    }
    Ok(())
}

/// Keeps the kernel from sending frames of its own on an interface.
///
/// # Errors
/// None if there is no IPv6.
pub fn silence(name: &str) -> io::Result<()> {
    match fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1") {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let text = "3: v1@v0: <UP> mtu 1500 \\    link/ether 02:00:00:00:00:0a brd ff:ff:ff:ff:ff:ff";
        assert_eq!(read_mac(text), Some([2, 0, 0, 0, 0, 10]));
        assert_eq!(read_mac("link/ether 02:00 brd"), None);
        assert_eq!(read_mac(""), None);
    }
}
