//! Workers over fake ports: that a change never meets a turn, that each lane has its own thread, that what sleeps wakes
//! up, and that a dead lane is alone.

use std::collections::HashSet;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::*;
use crate::frame::Batch;
use crate::lane::Lane;
use crate::port::{Port, Traits};
use crate::stats::Stats;

fn event() -> EventFd {
    EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap()
}

/// One lane's source, as the test sees it.
struct Source {
    /// Frames that it has.
    has: AtomicU64,
    /// Readable when there are some.
    bell: EventFd,
    given: AtomicU64,
    in_turn: AtomicBool,
    dies: AtomicBool,
    threads: Mutex<HashSet<ThreadId>>,
    rewired: AtomicUsize,
}

/// What all lanes share.
struct Stage {
    sources: Vec<Source>,
    control: EventFd,
    changes: AtomicUsize,
    /// Control cannot be served now; how often that was found.
    short: AtomicBool,
    tries: AtomicU64,
    changing: AtomicBool,
    met: AtomicBool,
}

impl Stage {
    fn new(lanes: usize, frames: u64) -> Arc<Self> {
        let source = || Source {
            has: AtomicU64::new(frames),
            bell: event(),
            given: AtomicU64::new(0),
            in_turn: AtomicBool::new(false),
            dies: AtomicBool::new(false),
            threads: Mutex::default(),
            rewired: AtomicUsize::new(0),
        };
        Arc::new(Self {
            sources: (0..lanes).map(|_| source()).collect(),
            control: event(),
            changes: AtomicUsize::new(0),
            short: AtomicBool::new(false),
            tries: AtomicU64::new(0),
            changing: AtomicBool::new(false),
            met: AtomicBool::new(false),
        })
    }

    fn in_turn(&self) -> bool {
        self.sources.iter().any(|s| s.in_turn.load(Ordering::SeqCst))
    }

    fn give(&self, lane: usize, n: u64) {
        self.sources[lane].has.fetch_add(n, Ordering::SeqCst);
        self.sources[lane].bell.write(1).unwrap();
    }

    fn given(&self, lane: usize) -> u64 {
        self.sources[lane].given.load(Ordering::SeqCst)
    }
}

/// A netdev that gives what its source has; the first lane's is told of changes.
struct Gives {
    stage: Arc<Stage>,
    lane: usize,
    stats: Stats,
}

impl Port for Gives {
    fn traits(&self) -> Traits {
        self.stage.sources[self.lane].rewired.fetch_add(1, Ordering::SeqCst);
        Traits { rewinds: true, ..Traits::default() }
    }

    fn watch(&self, w: &mut Watch) {
        w.add(self.stage.sources[self.lane].bell.as_raw_fd(), Interest::Gives);
        if self.lane == 0 {
            w.add(self.stage.control.as_raw_fd(), Interest::Control);
        }
    }

    fn recv(&mut self, b: &mut Batch) -> io::Result<()> {
        let s = &self.stage.sources[self.lane];
        s.in_turn.store(true, Ordering::SeqCst);
        if self.stage.changing.load(Ordering::SeqCst) {
            self.stage.met.store(true, Ordering::SeqCst);
        }
        s.threads.lock().unwrap().insert(thread::current().id());
        if s.dies.load(Ordering::SeqCst) {
            s.in_turn.store(false, Ordering::SeqCst);
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if s.has.load(Ordering::SeqCst) > 0 {
            let f = b.push().unwrap();
            f.set_head(&[0; 60]);
            f.len = 60;
        } else {
            s.in_turn.store(false, Ordering::SeqCst);
        }
        Ok(())
    }

    fn send(&mut self, b: &Batch) -> io::Result<usize> {
        Ok(b.len())
    }

    fn release(&mut self, _: &Batch, taken: usize) {
        let s = &self.stage.sources[self.lane];
        s.has.fetch_sub(taken as u64, Ordering::SeqCst);
        s.given.fetch_add(taken as u64, Ordering::SeqCst);
        s.in_turn.store(false, Ordering::SeqCst);
    }

    fn arm_gives(&mut self) -> bool {
        self.stage.sources[self.lane].has.load(Ordering::SeqCst) > 0
    }

    fn event(&mut self, _: RawFd, why: Interest) -> io::Result<Change> {
        let stage = &self.stage;
        if why != Interest::Control {
            // None to forget is as well.
            let _ = stage.sources[self.lane].bell.read();
            return Ok(Change::default());
        }
        if stage.short.load(Ordering::SeqCst) {
            stage.tries.fetch_add(1, Ordering::SeqCst);
            return Ok(Change { later: true, ..Change::default() });
        }
        stage.changing.store(true, Ordering::SeqCst);
        let met = stage.in_turn();
        thread::sleep(Duration::from_micros(200));
        if met || stage.in_turn() {
            stage.met.store(true, Ordering::SeqCst);
        }
        let _ = stage.control.read();
        stage.changing.store(false, Ordering::SeqCst);
        stage.changes.fetch_add(1, Ordering::SeqCst);
        Ok(Change { rewire: true, ..Change::default() })
    }

    fn stats(&self) -> Stats {
        self.stats
    }

    fn stats_mut(&mut self) -> &mut Stats {
        &mut self.stats
    }
}

/// A device that takes all.
#[derive(Default)]
struct Takes(Stats);

impl Port for Takes {
    fn traits(&self) -> Traits {
        Traits::default()
    }

    fn watch(&self, _: &mut Watch) {}

    fn recv(&mut self, _: &mut Batch) -> io::Result<()> {
        Ok(())
    }

    fn send(&mut self, b: &Batch) -> io::Result<usize> {
        Ok(b.len())
    }

    fn stats(&self) -> Stats {
        self.0
    }

    fn stats_mut(&mut self) -> &mut Stats {
        &mut self.0
    }
}

/// The outside of a test: ends when its descriptor is readable.
struct Test {
    end: Arc<EventFd>,
    dead: Arc<Mutex<Vec<u16>>>,
}

impl Outside for Test {
    fn fd(&self) -> RawFd {
        self.end.as_raw_fd()
    }

    fn message(&mut self, _: &Floor) -> io::Result<bool> {
        Ok(false)
    }

    fn unsettled(&mut self, _: u16) -> bool {
        true
    }

    fn changed(&mut self, _: u16, _: Change) {}

    fn died(&mut self, slot: u16, _: &io::Error) {
        self.dead.lock().unwrap().push(slot);
    }
}

/// Runs `workers` workers on the stage's lanes while `what` looks. `wires`: each lane is a wire of its own.
fn perform(
    stage: &Arc<Stage>,
    workers: usize,
    wires: bool,
    poll: Duration,
    what: impl FnOnce(&Floor, &Mutex<Vec<u16>>),
) -> Vec<u16> {
    let seat = |lane: usize| {
        let n = if wires { 2 * lane as u16 } else { 0 };
        let gives = Box::new(Gives { stage: stage.clone(), lane, stats: Stats::default() });
        Seated { lane: Lane::new(gives, Box::new(Takes::default()), None).unwrap(), slots: (n, n + 1) }
    };
    let floor = Arc::new(Floor::new((0..stage.sources.len()).map(seat).collect(), workers).unwrap());
    let dead = Arc::new(Mutex::new(Vec::new()));
    let end = Arc::new(event());
    let first = {
        let mut out = Test { end: end.clone(), dead: dead.clone() };
        let floor = floor.clone();
        thread::spawn(move || {
            Worker::new(&floor, 0, poll).unwrap().run(&floor, Some(&mut out)).unwrap();
            // The others stand still from now on, and end with the process.
            floor.close();
        })
    };
    for me in 1..floor.workers() {
        let w = Worker::new(&floor, me, poll).unwrap();
        let theirs = floor.clone();
        thread::spawn(move || w.follow(&theirs));
        floor.ring(me);
    }
    what(&floor, &dead);
    end.write(1).unwrap();
    first.join().unwrap();
    dead.lock().unwrap().clone()
}

fn wait_for(what: &str, mut is: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(Instant::now() < until, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_change_never_meets_a_turn() {
    let stage = Stage::new(4, u64::MAX / 2);
    perform(&stage, 4, false, Duration::ZERO, |_, _| {
        for n in 1..=50 {
            stage.control.write(1).unwrap();
            wait_for("the change is not made", || stage.changes.load(Ordering::SeqCst) >= n);
        }
        let before: Vec<u64> = (0..4).map(|i| stage.given(i)).collect();
        wait_for("a lane stands still", || (0..4).all(|i| stage.given(i) > before[i]));
    });
    assert!(!stage.met.load(Ordering::SeqCst), "a change met a turn");
    for s in &stage.sources {
        assert!(s.rewired.load(Ordering::SeqCst) > 50, "a lane was not told of the changes");
    }
}

#[test]
fn what_cannot_be_served_now_is_tried_now_and_then() {
    let stage = Stage::new(2, 0);
    stage.short.store(true, Ordering::SeqCst);
    let tries = || stage.tries.load(Ordering::SeqCst);
    perform(&stage, 1, false, Duration::ZERO, |_, _| {
        let began = Instant::now();
        stage.control.write(1).unwrap();
        wait_for("it is not tried again", || tries() >= 3);
        // Counted before the clock is looked at: whatever comes between the two is time, not tries.
        let tried = tries();
        let most = began.elapsed().as_millis() as u64 / u64::from(LATER) + 2;
        assert!(tried <= most, "{tried} times, {most} at most");
        stage.give(0, 10);
        wait_for("frames do not come meanwhile", || stage.given(0) == 10);
        stage.short.store(false, Ordering::SeqCst);
        wait_for("it is not served in the end", || stage.changes.load(Ordering::SeqCst) == 1);
    });
}

#[test]
fn every_lane_has_one_thread_and_wakes_by_itself() {
    for poll in [Duration::ZERO, Duration::from_millis(20)] {
        let stage = Stage::new(4, 0);
        perform(&stage, 4, false, poll, |floor, _| {
            for n in 1..=20 {
                for lane in 0..4 {
                    stage.give(lane, 3);
                    wait_for("a sleeping lane does not wake", || stage.given(lane) == 3 * n);
                }
            }
            assert!(
                !poll.is_zero() || floor.waits().all(|w| w.sleeps >= 20),
                "{:?}",
                floor.waits().collect::<Vec<_>>()
            );
            let looked = |n: u64| {
                stage.give(0, 1);
                wait_for("a lane does not wake", || stage.given(0) == 60 + n);
                floor.waits().any(|w| w.hits > 0)
            };
            assert_eq!((1..=50).any(looked), !poll.is_zero(), "{:?}", floor.waits().collect::<Vec<_>>());
        });
        let each: Vec<ThreadId> = stage
            .sources
            .iter()
            .map(|s| {
                let t = s.threads.lock().unwrap();
                assert_eq!(t.len(), 1, "a lane had several threads");
                *t.iter().next().unwrap()
            })
            .collect();
        assert_eq!(each.iter().collect::<HashSet<_>>().len(), 4, "lanes shared a thread");
    }
}

#[test]
fn a_lane_that_was_busy_sleeps_and_wakes() {
    for workers in [1, 2] {
        let stage = Stage::new(2, 0);
        perform(&stage, workers, false, Duration::ZERO, |_, _| {
            for n in 1..=10 {
                stage.give(0, 10_000);
                stage.give(1, 1);
                wait_for("frames do not come", || stage.given(0) == 10_000 * n && stage.given(1) == n);
            }
        });
    }
}

#[test]
fn what_a_descriptor_has_to_say_is_heard_while_frames_never_pause() {
    for lanes in [1, 2] {
        let stage = Stage::new(lanes, u64::MAX / 2);
        perform(&stage, 1, false, Duration::ZERO, |_, _| {
            wait_for("frames do not come", || stage.given(0) > 10_000);
            let bell = &stage.sources[0].bell;
            bell.write(1).unwrap();
            wait_for("it is not heard", || {
                let mut fds = [PollFd::new(bell.as_fd(), PollFlags::POLLIN)];
                nix::poll::poll(&mut fds, PollTimeout::ZERO).unwrap() == 0
            });
        });
    }
}

#[test]
fn a_dead_lane_is_alone_and_reported() {
    let stage = Stage::new(3, u64::MAX / 2);
    let dead = perform(&stage, 3, true, Duration::ZERO, |_, dead| {
        stage.sources[2].dies.store(true, Ordering::SeqCst);
        wait_for("a death is not reported", || *dead.lock().unwrap() == [4]);
        wait_for("the others stand still", || {
            let before = [stage.given(0), stage.given(1), stage.given(2)];
            thread::sleep(Duration::from_millis(20));
            stage.given(0) > before[0] && stage.given(1) > before[1] && stage.given(2) == before[2]
        });
    });
    assert_eq!(dead, [4]);
}

#[test]
fn lanes_are_dealt_out_evenly() {
    let stage = Stage::new(5, 0);
    perform(&stage, 2, true, Duration::ZERO, |floor, _| {
        let of = |w| floor.lanes_of(w).collect::<Vec<_>>();
        assert_eq!((of(0), of(1)), (vec![0, 2, 4], vec![1, 3]));
        assert_eq!(floor.seat(7), Some(Seat { lane: 3, side: Side::Device }));
        assert_eq!(floor.seat(99), None);
    });
}
