//! Two guests' drivers on one wire.

use crate::{BATCH, PAIRS, Seen, frame, locked_in, read, rings, sleeps};
use netreeve_tests::bench::driver::{Driver, Make};
use netreeve_tests::proc::Proc;
use netreeve_tests::{bins, inspect};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);

/// A running `netreeve` with two listening vhost-user ports, in a directory of its own.
struct Pair {
    reeve: Proc,
    dir: PathBuf,
}

impl Pair {
    fn new(options: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("netreeve-{}-pair{id}", netreeve_tests::proc::mark()));
        std::fs::create_dir(&dir).unwrap();
        let mut c = Command::new(bins::ours("netreeve").unwrap());
        c.args(["run", "--json", "--sandbox", "seccomp"]).args(options);
        c.args(["--netdev", &format!("vhost-user,id=n0,path=a,queues={PAIRS}")]);
        c.args(["--device", &format!("vhost-user,netdev=n0,path=b,queues={PAIRS}")]).current_dir(&dir);
        let reeve = Proc::spawn("netreeve", c).unwrap();
        reeve.wait_for("\"ready\"", PATIENCE).unwrap();
        Self { reeve, dir }
    }

    fn driver(&self, name: &str) -> Driver {
        Driver::connect_pairs(&self.dir.join(name), Make { rx: 256, ..Make::usual(false) }, PAIRS).unwrap()
    }

    fn dataplane(&self) -> i32 {
        inspect::descendant_named(self.reeve.pid(), "netreeve-dataplane", PATIENCE).unwrap()
    }

    fn end(mut self) {
        let end = self.reeve.terminate(PATIENCE).unwrap();
        assert_eq!(end.code, 0, "{}", end.text);
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _gone = std::fs::remove_dir_all(&self.dir);
    }
}

/// Sends up to `n` more frames on each queue of `from` and takes what came to `to`.
fn pass(from: &mut Driver, to: &mut Driver, n: usize, sent: &mut [u64; PAIRS], seen: &mut Seen) {
    for (q, (_, tx)) in rings(from).into_iter().enumerate() {
        for _ in 0..n {
            if tx.send(&frame(q as u16, sent[q], true), 1) == 1 {
                sent[q] += 1;
            }
        }
    }
    for (q, (rx, _)) in rings(to).into_iter().enumerate() {
        rx.recv(256, |f, _| {
            if let Some((flow, seq)) = read(f) {
                seen.take(flow, seq, q);
            }
        });
    }
}

fn all(seen: &Seen, sent: &[u64; PAIRS]) -> bool {
    (0..PAIRS).all(|q| seen.next.get(&(q as u16)).copied().unwrap_or(0) == sent[q])
}

#[test]
fn queues_keep_order_through_kills_and_nothing_is_lost() {
    let pair = Pair::new(&["--workers", "4"]);
    let (mut a, mut b) = (pair.driver("a"), pair.driver("b"));
    locked_in(pair.dataplane());
    let (mut out, mut back) = (Seen::default(), Seen::default());
    let (mut sent_a, mut sent_b) = ([0; PAIRS], [0; PAIRS]);
    let mut kills = 0;
    let (begun, mut last) = (Instant::now(), Instant::now());
    while begun.elapsed() < Duration::from_secs(4) {
        pass(&mut a, &mut b, 16, &mut sent_a, &mut out);
        pass(&mut b, &mut a, 16, &mut sent_b, &mut back);
        if kills < 3 && last.elapsed() > Duration::from_millis(800) {
            kill(Pid::from_raw(pair.dataplane()), Signal::SIGKILL).unwrap();
            (kills, last) = (kills + 1, Instant::now());
        }
    }
    let until = Instant::now() + PATIENCE;
    while !(all(&out, &sent_a) && all(&back, &sent_b)) && Instant::now() < until {
        pass(&mut a, &mut b, 0, &mut sent_a, &mut out);
        pass(&mut b, &mut a, 0, &mut sent_b, &mut back);
    }
    eprintln!("sent {sent_a:?} and {sent_b:?}; {} and {} frames came again", out.again, back.again);
    locked_in(pair.dataplane());
    assert!(all(&out, &sent_a), "{sent_a:?}, {out:?}");
    assert!(all(&back, &sent_b), "{sent_b:?}, {back:?}");
    assert!(out.again.max(back.again) <= kills * BATCH * PAIRS as u64, "{out:?} {back:?}");
    assert!(sent_a.iter().chain(&sent_b).all(|n| *n > 1000), "{sent_a:?} {sent_b:?}");
    assert_eq!((out.moves, back.moves), (0, 0), "a flow changed its ring");
    pair.end();
}

#[test]
fn nothing_wakes_at_rest() {
    for options in [&["--workers", "4"][..], &["--workers", "1"], &["--workers", "3", "--busy-poll", "200"]] {
        let pair = Pair::new(options);
        let (mut a, mut b) = (pair.driver("a"), pair.driver("b"));
        let (mut seen, mut sent) = (Seen::default(), [0; PAIRS]);
        let until = Instant::now() + PATIENCE;
        for n in 0..50 {
            pass(&mut a, &mut b, 1, &mut sent, &mut seen);
            assert_eq!(sent, [n + 1; PAIRS]);
            while !all(&seen, &sent) && Instant::now() < until {
                pass(&mut a, &mut b, 0, &mut sent, &mut seen);
            }
        }
        assert!(all(&seen, &sent), "{sent:?}, {seen:?}");
        // The supervisor asks for what it is to keep of a connection once that has been quiet for a while.
        std::thread::sleep(Duration::from_secs(2));
        let pid = pair.dataplane();
        let before = sleeps(pid);
        std::thread::sleep(Duration::from_secs(5));
        let after = sleeps(pid);
        eprintln!("{options:?}: wake-ups before {before:?}, five seconds later {after:?}");
        assert_eq!(before, after, "{options:?}: somebody woke up");
        pair.end();
    }
}
