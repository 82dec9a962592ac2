//! What a run left behind: interfaces, namespaces, BPF objects, processes and files. A [`Ground`] is taken before and compared
//! after; what is new and ours is named. Only the kernel is asked, never netreeve.

use crate::proc::{self, MARK};
use crate::{Because, Done};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A process found in `/proc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its process id.
    pub pid: i32,
    /// Its process group.
    pub group: i32,
    /// Its short name.
    pub name: String,
}

/// All processes of this run: those that carry its mark in their environment, and those whose program lies in one of its
/// scenes (the dataplane starts with an empty environment). Zombies are not listed: they have neither.
pub fn marked() -> Vec<Found> {
    let mark = format!("{MARK}={}", proc::mark());
    let scene = format!("/netreeve-{}-", proc::mark());
    processes(|dir| {
        let environment = fs::read(format!("{dir}/environ")).unwrap_or_default();
        environment.split(|b| *b == 0).any(|v| v == mark.as_bytes())
            || fs::read_link(format!("{dir}/exe")).is_ok_and(|exe| exe.to_string_lossy().contains(&scene))
    })
}

/// All processes whose network namespace has this inode number.
pub fn in_netns(inode: u64) -> Vec<Found> {
    let name = format!("net:[{inode}]");
    processes(|dir| fs::read_link(format!("{dir}/ns/net")).is_ok_and(|l| l.as_os_str() == name.as_str()))
}

fn processes(mut wanted: impl FnMut(&str) -> bool) -> Vec<Found> {
    let Ok(all) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = all.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let dir = format!("/proc/{pid}");
        if !wanted(&dir) {
            return None;
        }
        let stat = fs::read_to_string(format!("{dir}/stat")).ok()?;
        // "pid (name) state parent group ...": the name may hold anything, so count from its closing bracket.
        let (before, after) = stat.rsplit_once(')')?;
        let name = before.split_once('(')?.1.to_owned();
        let group = after.split_whitespace().nth(2)?.parse().ok()?;
        Some(Found { pid, group, name })
    })
    .collect()
}

/// What there is at one moment.
pub struct Ground {
    links: BTreeSet<String>,
    names: BTreeSet<String>,
    bpf: BTreeSet<String>,
}

/// The names that netreeve gives to the BPF objects it loads begin so; programs of others are none of our business.
const BPF_NAME: &str = "netreeve";

impl Ground {
    /// Takes stock.
    pub fn survey() -> Done<Ground> {
        let list = |script: &str| -> Done<BTreeSet<String>> {
            Ok(proc::sh(script)?.lines().map(str::to_owned).collect())
        };
        Ok(Ground {
            links: list("ip -o link show | cut -d: -f2 | cut -d@ -f1")?,
            names: list("ls /run/netns 2>/dev/null || true")?,
            bpf: bpf_objects()?,
        })
    }

    /// What is there now and was not before, waiting up to `within` for the kernel to finish its clearing up (namespaces
    /// and BPF objects go away in the background). An empty list is a clean end.
    pub fn left(&self, within: Duration) -> Done<Vec<String>> {
        let until = Instant::now() + within;
        loop {
            let left = self.compare()?;
            if left.is_empty() || Instant::now() >= until {
                return Ok(left);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn compare(&self) -> Done<Vec<String>> {
        let now = Ground::survey()?;
        let mut left: Vec<String> = Vec::new();
        left.extend(now.links.difference(&self.links).map(|l| format!("interface {}", l.trim())));
        left.extend(now.names.difference(&self.names).map(|n| format!("network namespace {n}")));
        left.extend(now.bpf.difference(&self.bpf).map(|b| format!("BPF object {b}")));
        left.extend(marked().into_iter().map(|p| format!("process {} ({})", p.pid, p.name)));
        left.extend(files().into_iter().map(|f| format!("directory {}", f.display())));
        Ok(left)
    }
}

/// The directories that this process's scenes and guests make.
pub fn files() -> Vec<PathBuf> {
    let mine = format!("netreeve-{}-", proc::mark());
    let places = [std::env::temp_dir(), PathBuf::from("/dev/shm")];
    let all = places.iter().filter_map(|p| fs::read_dir(p).ok()).flatten().flatten();
    all.filter(|e| e.file_name().to_string_lossy().starts_with(&mine)).map(|e| e.path()).collect()
}

/// Programs and maps by id, those with our name only.
fn bpf_objects() -> Done<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for kind in ["prog", "map"] {
        let text = proc::sh(&format!("bpftool -j {kind} show"))?;
        let list: serde_json::Value = serde_json::from_str(&text).because(format!("bpftool {kind} show"))?;
        for object in list.as_array().into_iter().flatten() {
            let name = object.get("name").and_then(serde_json::Value::as_str).unwrap_or_default();
            if name.starts_with(BPF_NAME) {
                found.insert(format!(
                    "{kind} {name} id {}",
                    object.get("id").unwrap_or(&serde_json::Value::Null)
                ));
            }
        }
    }
    Ok(found)
}
