//! Captures of running ports, read by tcpdump, tshark and capinfos. Two guests' drivers on a wire of two vhost-user
//! ports: no privilege is needed, but for the full disk, which needs a mount.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stderr,
    reason = "a test fails by panicking, and its figures are small and chosen"
)]

mod live;
mod load;
mod read;
mod steps;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use netreeve_tests::bench::driver::{Driver, Make};
use netreeve_tests::bench::vring::Vring;
use netreeve_tests::proc::{Proc, run};
use netreeve_tests::{bins, inspect};

const PATIENCE: Duration = Duration::from_secs(20);

/// A running `netreeve` with a wire of two vhost-user ports, `n0` at `a` and `d0` at `b`, in a directory of its own.
struct Wire {
    reeve: Proc,
    dir: PathBuf,
    pairs: usize,
}

impl Wire {
    fn new(pairs: usize, objects: &[&str]) -> Self {
        Self::with(pairs, objects, |_| ())
    }

    fn with(pairs: usize, objects: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        Self::more(pairs, objects, &[], prepare)
    }

    fn more(pairs: usize, objects: &[&str], more: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("netreeve-{}-capture{id}", netreeve_tests::proc::mark()));
        std::fs::create_dir(&dir).unwrap();
        prepare(&dir);
        let mut c = Command::new(bins::ours("netreeve").unwrap());
        c.args(["run", "--json", "--stats", "--sandbox", "seccomp", "--control", "ctl"]).current_dir(&dir);
        c.args(["--netdev", &format!("vhost-user,id=n0,path=a,queues={pairs}")]);
        c.args(["--device", &format!("vhost-user,id=d0,netdev=n0,path=b,queues={pairs}")]);
        if pairs > 1 {
            c.args(["--workers", &pairs.to_string()]);
        }
        c.args(more);
        objects.iter().for_each(|o| {
            c.args(["--object", o]);
        });
        let reeve = Proc::spawn("netreeve", c).unwrap();
        reeve.wait_for("\"ready\"", PATIENCE).unwrap();
        Self { reeve, dir, pairs }
    }

    fn drivers(&self) -> (Driver, Driver) {
        let make = Make { rx: 256, ..Make::usual(false) };
        let connect = |n: &str| Driver::connect_pairs(&self.dir.join(n), make, self.pairs).unwrap();
        (connect("a"), connect("b"))
    }

    fn dataplane(&self) -> i32 {
        inspect::descendant_named(self.reeve.pid(), "netreeve-dataplane", PATIENCE).unwrap()
    }

    /// Ends it; what it said, and the counts of its captures: seen, written, lost, failed.
    fn end(&mut self) -> (String, Vec<[u64; 4]>) {
        let end = self.reeve.terminate(PATIENCE).unwrap();
        assert_eq!(end.code, 0, "{}", end.text);
        // The last word on each capture is said when it has ended.
        let mut counts = std::collections::BTreeMap::new();
        for l in end.text.lines().filter(|l| l.contains("capture '") && l.contains(" seen ")) {
            let number = |after: &str| -> u64 {
                let rest = l.split_once(after).unwrap_or_else(|| panic!("{l}")).1;
                rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
            };
            let name = l.split('\'').nth(1).unwrap().to_owned();
            counts.insert(name, [" seen ", " written ", ", lost ", "errors lost "].map(number));
        }
        (end.text.clone(), counts.into_values().collect())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.dir);
    }
}

/// A UDP frame of `len` bytes from `flow` with `seq` in it.
fn frame(flow: u16, seq: u64, len: usize) -> Vec<u8> {
    let mut f = vec![0; len.max(60)];
    f[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    let ip = (f.len() - 14) as u16;
    f[12..16].copy_from_slice(&[8, 0, 0x45, 0]);
    f[16..18].copy_from_slice(&ip.to_be_bytes());
    f[22..24].copy_from_slice(&[64, 17]);
    f[26..34].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
    let sum: u32 = f[14..34].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    f[24..26].copy_from_slice(&sum.to_be_bytes());
    f[34..36].copy_from_slice(&(5000 + flow).to_be_bytes());
    f[36..38].copy_from_slice(&[0x23, 0x28]);
    f[38..40].copy_from_slice(&(ip - 20).to_be_bytes());
    f[48..56].copy_from_slice(&seq.to_be_bytes());
    f
}

fn rings(d: &mut Driver) -> Vec<(&mut Vring, &mut Vring)> {
    let mut all = vec![(&mut d.rx, &mut d.tx)];
    all.extend(d.more.iter_mut().map(|[rx, tx]| (rx, tx)));
    all
}

/// Sends `n` frames on each queue of `from` and waits until all are at `to`.
fn pass(from: &mut Driver, to: &mut Driver, n: u64, len: usize) {
    let queues = rings(from).len();
    let (mut sent, mut got) = (vec![0; queues], 0);
    let until = Instant::now() + PATIENCE;
    while got < n * queues as u64 {
        for (q, (_, tx)) in rings(from).into_iter().enumerate() {
            while sent[q] < n && tx.send(&frame(q as u16, sent[q], len), 1) == 1 {
                sent[q] += 1;
            }
        }
        for (rx, _) in rings(to) {
            got += rx.recv(256, |_, _| ()) as u64;
        }
        assert!(Instant::now() < until, "{got} of {n} frames on each of {queues} queues");
    }
}

fn tool(name: &str, arguments: &[&str]) -> String {
    let mut c = Command::new(bins::peer(name).unwrap());
    c.args(arguments);
    run(name, c, Duration::from_secs(120)).unwrap().ok(name).unwrap()
}

/// What tshark says of a file: a line for each frame, of these fields.
fn fields(file: &Path, names: &[&str]) -> Vec<Vec<String>> {
    let file = file.display().to_string();
    let mut arguments = vec!["-n", "-r", &file, "-o", "ip.check_checksum:TRUE", "-T", "fields"];
    names.iter().for_each(|n| arguments.extend(["-e", n]));
    let text = tool("tshark", &arguments);
    let lines = text.lines().filter(|l| !l.contains("Running as user"));
    lines.map(|l| l.split('\t').map(str::to_owned).collect()).collect()
}
