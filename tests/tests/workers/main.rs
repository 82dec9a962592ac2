//! Four queues on four workers: guests' drivers with four queue pairs, order looked at flow by flow while dataplanes are
//! killed; then the same at rest, where nothing may wake. `pair` needs no privilege, `tap` needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stderr,
    reason = "a test fails by panicking, and its figures are small and chosen"
)]

mod pair;
mod tap;

use netreeve_tests::bench::driver::Driver;
use netreeve_tests::bench::vring::Vring;
use std::collections::BTreeMap;
use std::fs;

const PAIRS: usize = 4;
/// Frames that a killed dataplane had sent and not completed come again: a batch at most, for each queue.
const BATCH: u64 = 64;

/// A UDP frame of `flow` with `seq` in it, between addresses that nobody here has.
fn frame(flow: u16, seq: u64, out: bool) -> [u8; 64] {
    let mut f = [0; 64];
    let (guest, far) = ([2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]);
    let (to, from) = if out { (far, guest) } else { (guest, far) };
    f[..6].copy_from_slice(&to);
    f[6..12].copy_from_slice(&from);
    // IPv4, 50 bytes, UDP, 192.0.2.1 to 192.0.2.2, with the header's checksum, which bridges may look at.
    f[12..26].copy_from_slice(&[8, 0, 0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0xf6, 0xb7]);
    f[26..34].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
    f[34..36].copy_from_slice(&(5000 + flow).to_be_bytes());
    f[36..40].copy_from_slice(&[9, 9, 0, 30]);
    f[48..56].copy_from_slice(&seq.to_be_bytes());
    f
}

/// Flow and number of such a frame.
fn read(f: &[u8]) -> Option<(u16, u64)> {
    let ours = f.len() >= 64 && f[12..14] == [8, 0] && f[26..34] == [192, 0, 2, 1, 192, 0, 2, 2];
    ours.then(|| {
        let flow = u16::from_be_bytes([f[34], f[35]]) - 5000;
        (flow, u64::from_be_bytes(f[48..56].try_into().unwrap()))
    })
}

/// What arrived of each flow: the highest number, how many came again, and where.
#[derive(Default, Debug)]
struct Seen {
    next: BTreeMap<u16, u64>,
    again: u64,
    rings: BTreeMap<u16, usize>,
    /// Times that a flow went on to another ring.
    moves: u64,
}

impl Seen {
    /// A frame arrived on a ring. Frames may be missing (a bridge drops), and a batch may come again after a kill.
    fn take(&mut self, flow: u16, seq: u64, ring: usize) {
        let next = self.next.entry(flow).or_insert(0);
        if seq < *next {
            self.again += 1;
            assert!(*next - seq <= 2 * BATCH, "flow {flow}: {seq} after {}", *next - 1);
        }
        *next = seq + 1;
        self.moves += u64::from(self.rings.insert(flow, ring).is_some_and(|before| before != ring));
    }
}

fn threads(pid: i32) -> Vec<String> {
    let all = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let mut all: Vec<String> = all.map(|t| t.path().display().to_string()).collect();
    all.sort();
    all
}

fn status(task: &str, key: &str) -> String {
    let all = fs::read_to_string(format!("{task}/status")).unwrap();
    let line = all.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':')).unwrap();
    line.trim().to_owned()
}

fn locked_in(pid: i32) {
    let all = threads(pid);
    assert_eq!(all.len(), PAIRS, "{all:?}");
    for t in &all {
        for (key, value) in [("Seccomp", "2"), ("Seccomp_filters", "1"), ("NoNewPrivs", "1")] {
            assert_eq!(status(t, key), value, "{t} {key}");
        }
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status(t, set), "0000000000000000", "{t} {set}");
        }
        let net = |of: &str| fs::read_link(format!("{of}/ns/net")).unwrap();
        assert_eq!(net(t), net(&all[0]));
        assert_ne!(net(t), net("/proc/self"));
    }
}

/// Voluntary switches of every thread: wake-ups from sleep.
fn sleeps(pid: i32) -> Vec<u64> {
    threads(pid).iter().map(|t| status(t, "voluntary_ctxt_switches").parse().unwrap()).collect()
}

fn rings(d: &mut Driver) -> Vec<(&mut Vring, &mut Vring)> {
    let mut all = vec![(&mut d.rx, &mut d.tx)];
    all.extend(d.more.iter_mut().map(|[rx, tx]| (rx, tx)));
    all
}
