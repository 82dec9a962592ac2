//! Hubs, and ports that come, go and change places in a dataplane that is locked in: the real process, its real sandbox,
//! no privilege.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test says what is wrong by failing"
)]

mod child;
mod process;

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use child::{PATIENCE, wait_for};
use netreeve_dataplane::handover::{
    FromDataplane, Level, Plan, PortKind, PortPlan, RunPlan, ToDataplane, Wire,
};
use netreeve_dataplane::port::{hub, stream, vhost_user};
use netreeve_dataplane::stats::{Reason, Stats};
use process::{Dataplane, WAIT, frame, pair};

fn run(workers: u16) -> RunPlan {
    RunPlan { at_least: Level::Seccomp, sandbox_off: false, busy_poll_us: 0, workers }
}

fn member() -> PortPlan {
    PortPlan::Stream(stream::Plan::default())
}

fn place(hub: i64) -> PortPlan {
    PortPlan::Hub(hub::Plan { hub, learning: None, isolated: false })
}

/// A dataplane that takes changes, with what the tests keep of it.
struct Live {
    d: Dataplane,
    ask: u32,
}

impl Live {
    fn start(plan: Plan, fds: Vec<(u16, OwnedFd)>) -> Self {
        let d = Dataplane::start();
        d.say(&ToDataplane::Plan(plan), &[]);
        for (slot, fd) in fds {
            d.say(&ToDataplane::Fds { slot }, &[fd.as_fd()]);
        }
        d.say(&ToDataplane::Begin, &[]);
        match d.hear() {
            FromDataplane::Ready { level } => println!("level reached: {level:?}"),
            other => panic!("{other:?}"),
        }
        Self { d, ask: 0 }
    }

    /// With `n` streams in hub 0: places at even slots, members at odd ones.
    fn hub(n: u16, workers: u16) -> (Self, Vec<UnixStream>) {
        let (ours, theirs): (Vec<_>, Vec<_>) = (0..n).map(|_| pair()).unzip();
        let ports = (0..n).flat_map(|_| [place(0), member()]).collect();
        let wires = (0..n).map(|i| Wire { netdev: 2 * i, device: 2 * i + 1, lock_mac: None }).collect();
        let plan = Plan { later: PortKind::ALL.to_vec(), ..Plan::new(ports, wires, run(workers)) };
        let fds = (0..n).map(|i| 2 * i + 1).zip(theirs).collect();
        (Self::start(plan, fds), ours)
    }

    /// Makes a change: done, or why not.
    fn change(&mut self, of: impl Fn(u32) -> ToDataplane) -> Result<(), String> {
        self.ask += 1;
        self.d.say(&of(self.ask), &[]);
        loop {
            match self.d.hear() {
                FromDataplane::Done { ask } => {
                    assert_eq!(ask, self.ask);
                    return Ok(());
                }
                FromDataplane::Refused { ask, why, .. } => {
                    assert_eq!(ask, self.ask);
                    return Err(why);
                }
                FromDataplane::Link { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn add(&mut self, slot: u16, plan: PortPlan, fd: Option<OwnedFd>) -> Result<(), String> {
        if let Some(fd) = fd {
            self.d.say(&ToDataplane::Fds { slot }, &[fd.as_fd()]);
        }
        self.change(|ask| ToDataplane::Add { ask, slot, plan: plan.clone() })
    }

    fn join(&mut self, netdev: u16, device: u16) -> Result<(), String> {
        let wire = Wire { netdev, device, lock_mac: None };
        self.change(|ask| ToDataplane::Join { ask, wire: wire.clone() })
    }

    fn stats(&self, slot: u16) -> (Stats, bool) {
        self.d.say(&ToDataplane::Stats { slot: Some(slot) }, &[]);
        loop {
            match self.d.hear() {
                FromDataplane::Stats { slot: s, stats, up } => {
                    assert_eq!(s, slot);
                    return (*stats, up);
                }
                FromDataplane::Link { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn drops(&self, slot: u16, why: Reason) -> u64 {
        self.stats(slot).0.drops[why as usize]
    }

    /// Waits until so many were dropped: what was written may not have been looked at yet.
    fn dropped(&self, slot: u16, why: Reason, n: u64) {
        let until = Instant::now() + PATIENCE;
        loop {
            let got = self.drops(slot, why);
            if got == n {
                return;
            }
            assert!(got < n && Instant::now() < until, "{got} of {n} dropped at slot {slot}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn ends_well(mut self) {
        self.d.say(&ToDataplane::Quit, &[]);
        assert!(wait_for(&mut self.d.child).success());
    }
}

fn passes(from: &mut UnixStream, to: &mut UnixStream, n: u8) {
    from.write_all(&frame(n, 300)).unwrap();
    let mut got = vec![0; 304];
    to.read_exact(&mut got).unwrap();
    assert_eq!(got, frame(n, 300));
}

fn silent(from: &UnixStream) {
    from.set_read_timeout(Some(Duration::from_millis(30))).unwrap();
    let got = (&mut &*from).read(&mut [0; 64]).map_err(|e| e.kind());
    assert!(matches!(got, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "{got:?}");
    from.set_read_timeout(WAIT).unwrap();
}

#[test]
fn what_one_member_sends_reaches_all_the_others_and_a_stuck_one_stops_nobody() {
    for workers in [1, 2] {
        let (live, mut m) = Live::hub(3, workers);
        for from in 0..3 {
            for (n, len) in [(1, 60), (2, 1514), (3, 65550), (4, 69632)] {
                m[from].write_all(&frame(n, len)).unwrap();
                for to in (0..3).filter(|to| *to != from) {
                    let mut got = vec![0; len + 4];
                    m[to].read_exact(&mut got).unwrap();
                    assert_eq!(got, frame(n, len), "{from} to {to}");
                }
            }
        }
        // The third reads no more. The second gets everything, in order.
        let mut second = m[1].try_clone().unwrap();
        let reader = thread::spawn(move || {
            for n in 0..20_000_u32 {
                let mut got = vec![0; 1004];
                second.read_exact(&mut got).unwrap();
                assert_eq!(got, frame(n as u8, 1000));
            }
        });
        for n in 0..20_000_u32 {
            m[0].write_all(&frame(n as u8, 1000)).unwrap();
        }
        reader.join().unwrap();
        let (lost, sent) = (live.drops(4, Reason::Full), live.stats(5).0.tx_frames);
        let held = 20_008 - lost - sent;
        // Some are in the stuck one's socket, whose queue is long.
        assert!(lost > 14_000 && held > 1000 && held <= hub::FRAMES as u64 + 1, "{lost} {sent}");
        assert_eq!(live.drops(2, Reason::Full), 0);
        assert_eq!(live.stats(0).0.tx_frames, 20_004, "what the hub took of the first");
        live.ends_well();
    }
}

#[test]
fn a_source_is_stopped_when_every_other_member_is_stuck() {
    let (live, m) = Live::hub(3, 1);
    let mut first = &m[0];
    first.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let block = frame(7, 1000).repeat(64);
    let mut written = 0_usize;
    loop {
        match first.write(&block) {
            Ok(n) => written += n,
            Err(e) => {
                assert!(matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{e}");
                break;
            }
        }
        assert!(written < 64 << 20, "it was never stopped");
    }
    for slot in [2, 4] {
        assert_eq!(live.drops(slot, Reason::Full), 0, "nothing is lost where everybody waits");
    }
    // Both read again. One may be ahead of the other, and the hub waits for the slower one no more than for any.
    let readers: Vec<_> = m[1..]
        .iter()
        .map(|s| {
            let mut s = s.try_clone().unwrap();
            s.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            thread::spawn(move || {
                let mut frames = 0;
                let mut got = vec![0; 1004];
                while s.read_exact(&mut got).is_ok() {
                    assert_eq!(got[..5], [0, 0, 3, 232, 7]);
                    frames += 1;
                }
                frames
            })
        })
        .collect();
    let got: Vec<u64> = readers.into_iter().map(|r| r.join().unwrap()).collect();
    for (slot, got) in [(2, got[0]), (4, got[1])] {
        assert_eq!(got + live.drops(slot, Reason::Full), written as u64 / 1004, "slot {slot}");
    }
    live.ends_well();
}

#[test]
fn ports_come_and_go_and_a_netdev_is_swapped_beneath_a_device() {
    let (mut device, v) = pair();
    let (mut old, n) = pair();
    let later = vec![PortKind::Stream, PortKind::Hub, PortKind::VhostUser];
    let wires = vec![Wire { netdev: 0, device: 1, lock_mac: None }];
    let plan = Plan { later, ..Plan::new(vec![member(), member()], wires, run(0)) };
    let mut live = Live::start(plan, vec![(0, n), (1, v)]);
    passes(&mut device, &mut old, 1);

    let (mut new, theirs) = pair();
    live.add(2, member(), Some(theirs)).unwrap();
    assert!(live.stats(2).1, "it is there, without a peer");
    new.write_all(&frame(2, 60)).unwrap();
    live.dropped(2, Reason::PeerDown, 1);
    silent(&device);
    live.join(2, 1).unwrap();
    passes(&mut device, &mut new, 3);
    passes(&mut new, &mut device, 4);
    old.write_all(&frame(5, 60)).unwrap();
    live.dropped(0, Reason::PeerDown, 1);
    silent(&device);
    live.change(|ask| ToDataplane::Remove { ask, slot: 0 }).unwrap();
    assert_eq!(old.read(&mut [0; 8]).unwrap(), 0, "a port that is removed closes what it had");

    // Its slot is free for another one. Now both are in a hub with a third.
    live.add(0, place(-5), None).unwrap();
    live.add(3, place(-5), None).unwrap();
    live.add(4, place(-5), None).unwrap();
    let (mut third, theirs) = pair();
    live.add(5, member(), Some(theirs)).unwrap();
    live.join(0, 2).unwrap();
    live.join(3, 1).unwrap();
    live.join(4, 5).unwrap();
    device.write_all(&frame(6, 100)).unwrap();
    for s in [&mut new, &mut third] {
        let mut got = vec![0; 104];
        s.read_exact(&mut got).unwrap();
        assert_eq!(got, frame(6, 100));
    }
    live.change(|ask| ToDataplane::Part { ask, slot: 4 }).unwrap();
    passes(&mut device, &mut new, 7);
    silent(&third);

    live.ends_well();
}

#[test]
fn a_vhost_user_device_is_opened_behind_the_filter() {
    let (mut live, _m) = Live::hub(1, 1);
    let path = std::env::temp_dir().join(format!("nt-changes-{}", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let plan = vhost_user::Plan { queues: 2, server: true, mac: None, mtu: None, hide: 0 };
    live.add(6, PortPlan::VhostUser(plan), Some(listener.into())).unwrap();
    let mut front = UnixStream::connect(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    front.set_read_timeout(WAIT).unwrap();
    // GET_FEATURES.
    front.write_all(&[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    let mut reply = [0; 20];
    front.read_exact(&mut reply).unwrap();
    assert_eq!(reply[..4], [1, 0, 0, 0]);
    live.change(|ask| ToDataplane::Remove { ask, slot: 6 }).unwrap();
    assert_eq!(front.read(&mut [0; 8]).unwrap(), 0);
    live.ends_well();
}

#[test]
fn what_cannot_be_is_refused_and_changes_nothing() {
    let (mut device, v) = pair();
    let (mut new, n) = pair();
    let later = vec![PortKind::Stream, PortKind::VhostUser];
    let ports = vec![member(), member(), member()];
    let wires = vec![Wire { netdev: 0, device: 1, lock_mac: None }];
    let plan = Plan { later, ..Plan::new(ports, wires, run(0)) };
    let mut live = Live::start(plan, vec![(0, n), (1, v)]);
    let wide = vhost_user::Plan { queues: 2, server: false, mac: None, mtu: None, hide: 0 };
    live.add(6, PortPlan::VhostUser(wide), None).unwrap();
    let no = |r: Result<(), String>, what: &str| {
        let why = r.unwrap_err();
        assert!(why.contains(what), "{why}");
    };
    no(live.join(2, 6), "queues differ");
    no(live.join(2, 2), "its own peer");
    no(live.join(2, 99), "no port at slot 99");
    no(live.change(|ask| ToDataplane::Remove { ask, slot: 99 }), "no port");
    no(live.change(|ask| ToDataplane::Link { ask, slot: 99, up: true }), "no port");
    no(live.add(2, member(), None), "in use");
    no(
        live.add(
            8,
            PortPlan::Tap(netreeve_dataplane::port::tap::Plan { queues: 1, vnet_header: 12, mtu: 1500 }),
            None,
        ),
        "Tap",
    );
    let null = std::fs::File::open("/dev/null").unwrap();
    no(live.add(8, member(), Some(null.into())), "not the stream socket");
    passes(&mut device, &mut new, 8);
    live.ends_well();
}

#[test]
fn a_link_that_is_down_drops_both_ways_and_comes_back() {
    let (mut live, mut m) = Live::hub(2, 1);
    let (a, b) = m.split_at_mut(1);
    passes(&mut a[0], &mut b[0], 1);
    for (n, slot) in [(1, 3), (2, 2)] {
        live.change(|ask| ToDataplane::Link { ask, slot, up: false }).unwrap();
        assert!(!live.stats(slot).1);
        a[0].write_all(&frame(2, 60)).unwrap();
        b[0].write_all(&frame(3, 60)).unwrap();
        live.dropped(3, Reason::PeerDown, n);
        live.dropped(0, Reason::PeerDown, n); // Nobody was there to have it.
        silent(&a[0]);
        silent(&b[0]);
        live.change(|ask| ToDataplane::Link { ask, slot, up: true }).unwrap();
        passes(&mut a[0], &mut b[0], 4);
        passes(&mut b[0], &mut a[0], 5);
    }
    assert_eq!((live.drops(3, Reason::PeerDown), live.drops(0, Reason::PeerDown)), (2, 2));
    live.ends_well();
}

#[test]
fn members_come_and_go_under_load_and_the_others_lose_nothing_uncounted() {
    for workers in [1, 2] {
        let (mut live, m) = Live::hub(2, workers);
        let end = Arc::new(AtomicBool::new(false));
        let (mut from, mut to) = (m[0].try_clone().unwrap(), m[1].try_clone().unwrap());
        // Its silence is the end.
        to.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let stop = end.clone();
        let sender = thread::spawn(move || {
            let mut n = 0_u32;
            while !stop.load(Ordering::Relaxed) {
                let mut f = frame(0, 500);
                f[104..108].copy_from_slice(&n.to_be_bytes());
                from.write_all(&f).unwrap();
                n += 1;
            }
            from.shutdown(std::net::Shutdown::Write).unwrap();
            n
        });
        let reader = thread::spawn(move || {
            let (mut next, mut heard) = (0_u32, 0_u64);
            let mut got = vec![0; 504];
            while to.read_exact(&mut got).is_ok() {
                let n = u32::from_be_bytes(got[104..108].try_into().unwrap());
                assert!(n >= next, "order: {n} after {next}");
                (next, heard) = (n + 1, heard + 1);
            }
            heard
        });
        let until = Instant::now() + Duration::from_secs(2);
        let (mut times, mut heard) = (0, 0);
        while Instant::now() < until || times < 30 {
            let (mut third, theirs) = pair();
            live.add(4, place(0), None).unwrap();
            live.add(5, member(), Some(theirs)).unwrap();
            live.join(4, 5).unwrap();
            let mut got = vec![0; 504];
            third.read_exact(&mut got).unwrap();
            heard += u32::from(got[..4] == 500_u32.to_be_bytes());
            // It stops reading, or hangs up, or is taken away while it reads.
            if times % 3 == 0 {
                drop(third);
            }
            let slots = if times % 2 == 0 { [4, 5] } else { [5, 4] };
            for slot in slots {
                live.change(|ask| ToDataplane::Remove { ask, slot }).unwrap();
            }
            times += 1;
        }
        end.store(true, Ordering::Relaxed);
        let sent = sender.join().unwrap();
        let (got, lost) = (reader.join().unwrap(), live.drops(2, Reason::Full));
        println!("{times} joins, {sent} frames, {lost} lost by a slow reader, {workers} workers");
        assert_eq!((heard, got + lost), (times, u64::from(sent)));
        assert!(sent > 1000);
    }
}
