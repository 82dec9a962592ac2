//! Filters that step in: what goes where, in which order, and what is counted.

use std::os::fd::AsFd;

use super::*;
use crate::stage::aside::{Asides, End, Handle};
use crate::stage::divert::{self, Divert};
use crate::stage::hold::{self, Hold};

/// A port beside: what filters put out there, and what comes in there.
struct Beside {
    handle: Handle,
    end: End,
    memory: Buf,
}

impl Beside {
    fn new() -> Self {
        let (handle, end) = Asides::default().get(7, spool::bell().unwrap()).unwrap();
        let mut end = end.unwrap();
        end.peer_up(true);
        Self { handle, end, memory: Buf::new(1 << 20).unwrap() }
    }

    /// All that waits to go out.
    fn out(&mut self) -> Vec<Vec<u8>> {
        let mut got = Vec::new();
        loop {
            let mut b = Batch::new();
            self.end.recv(&mut b).unwrap();
            if b.is_empty() {
                return got;
            }
            got.extend(b.frames().iter().map(|f| whole(&b, f)));
            let n = b.len();
            self.end.release(&b, n);
        }
    }

    /// Frames come in; how many were taken.
    fn come(&mut self, frames: &[Vec<u8>]) -> usize {
        let mut b = Batch::new();
        for (i, f) in frames.iter().enumerate() {
            push(&mut b, &self.memory, i as u32 * 4096, f);
        }
        self.end.send(&b).unwrap()
    }

    fn drops(&self, why: crate::stats::Reason) -> u64 {
        self.end.stats().drops[why as usize]
    }
}

fn plan(queue: Queue, takes: bool) -> divert::Plan {
    divert::Plan { queue, on: true, takes, out: None, from: None }
}

fn frames(from: u8, n: u8) -> Vec<Vec<u8>> {
    (from..from + n).map(|i| vec![i; 60 + 7 * usize::from(i)]).collect()
}

fn fake(rewinds: bool, gives: &[Vec<u8>]) -> Fake {
    let mut f = Fake::new(rewinds);
    f.gives.extend(gives.iter().cloned());
    f
}

/// What the lane gets in one turn, of which its taker takes so many.
fn turn(port: &mut dyn Port, most: usize) -> Vec<Vec<u8>> {
    let mut b = Batch::new();
    port.recv(&mut b).unwrap();
    let n = most.min(b.len());
    let got = b.frames()[..n].iter().filter(|f| !f.dropped).map(|f| whole(&b, f)).collect();
    // As a lane does: of nothing, nothing is released.
    if !b.is_empty() {
        port.release(&b, n);
    }
    got
}

fn offer(port: &mut dyn Port, memory: &Buf, frames: &[Vec<u8>]) -> usize {
    let mut b = Batch::new();
    for (i, f) in frames.iter().enumerate() {
        push(&mut b, memory, i as u32 * 4096, f);
    }
    port.send(&b).unwrap()
}

/// What the port inside took.
fn took(port: &mut Box<dyn Port>) -> Vec<Vec<u8>> {
    assert!(port.traits().up);
    TOOK.with(|t| std::mem::take(&mut *t.borrow_mut()))
}

thread_local! {
    static TOOK: std::cell::RefCell<Vec<Vec<u8>>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// A port that notes where the test sees it what it took.
struct Noting(Fake);

impl Port for Noting {
    fn traits(&self) -> Traits {
        self.0.traits()
    }
    fn watch(&self, _w: &mut Watch) {}
    fn recv(&mut self, b: &mut Batch) -> io::Result<()> {
        self.0.recv(b)
    }
    fn release(&mut self, b: &Batch, taken: usize) {
        self.0.release(b, taken);
    }
    fn arm_takes(&mut self) -> bool {
        self.0.takes > 0
    }
    fn send(&mut self, b: &Batch) -> io::Result<usize> {
        let n = self.0.send(b)?;
        TOOK.with(|t| t.borrow_mut().append(&mut self.0.took));
        Ok(n)
    }
    fn stats(&self) -> Stats {
        self.0.stats
    }
    fn stats_mut(&mut self) -> &mut Stats {
        &mut self.0.stats
    }
}

#[test]
fn a_mirror_copies_what_passes_and_once() {
    let mut aside = Beside::new();
    for rewinds in [true, false] {
        let mut port: Box<dyn Port> = Box::new(Noting(fake(rewinds, &frames(1, 5))));
        let mirror = Divert::new(plan(Queue::All, false), Some(aside.handle.clone()), None).unwrap();
        attach(&mut port, 1, None, Box::new(mirror));
        assert!(!port.traits().withheld, "it only looks on");
        assert_eq!(turn(port.as_mut(), 2), frames(1, 2));
        assert_eq!(aside.out(), frames(1, 5));
        if rewinds {
            assert_eq!(turn(port.as_mut(), 9), frames(3, 3));
        }
        assert!(aside.out().is_empty(), "what comes again is no second frame");
        let memory = Buf::new(1 << 20).unwrap();
        assert_eq!(offer(port.as_mut(), &memory, &frames(10, 4)), 4);
        assert_eq!((took(&mut port), aside.out()), (frames(10, 4), frames(10, 4)));
    }
    // What the port did not take did not pass.
    let inner = Fake { takes: 1, ..fake(true, &[]) };
    let mut port: Box<dyn Port> = Box::new(Noting(inner));
    let mirror = Divert::new(plan(Queue::Rx, false), Some(aside.handle.clone()), None).unwrap();
    attach(&mut port, 1, None, Box::new(mirror));
    let memory = Buf::new(1 << 20).unwrap();
    assert_eq!(offer(port.as_mut(), &memory, &frames(1, 3)), 1);
    assert_eq!(aside.out(), frames(1, 1));
    // Nobody at the other end, or no room: counted, and the port goes on.
    aside.end.peer_up(false);
    assert_eq!(offer(port.as_mut(), &memory, &frames(1, 1)), 1);
    assert_eq!((aside.drops(crate::stats::Reason::PeerDown), aside.out().len()), (1, 0));
    aside.end.peer_up(true);
    for _ in 0..5000 {
        assert_eq!(offer(port.as_mut(), &memory, &frames(1, 1)), 1);
    }
    assert_eq!((aside.out().len(), aside.drops(crate::stats::Reason::Full)), (4096, 904));
}

#[test]
fn a_redirector_takes_frames_while_somebody_is_there() {
    let mut aside = Beside::new();
    let memory = Buf::new(1 << 20).unwrap();
    for rewinds in [true, false] {
        let mut port: Box<dyn Port> = Box::new(Noting(fake(rewinds, &frames(1, 5))));
        let redirector = Divert::new(plan(Queue::All, true), Some(aside.handle.clone()), None).unwrap();
        attach(&mut port, 1, None, Box::new(redirector));
        assert!(port.traits().withheld);
        assert!(turn(port.as_mut(), 9).is_empty());
        assert_eq!(aside.out(), frames(1, 5));
        assert_eq!(offer(port.as_mut(), &memory, &frames(20, 3)), 3);
        assert_eq!((took(&mut port), aside.out()), (vec![], frames(20, 3)));
        aside.end.peer_up(false);
        assert_eq!(offer(port.as_mut(), &memory, &frames(20, 3)), 3);
        assert_eq!(took(&mut port), frames(20, 3), "nobody is there: they pass");
        aside.end.peer_up(true);
        assert!(set_on(port.as_mut(), 1, false) && !set_on(port.as_mut(), 2, false));
        assert_eq!(offer(port.as_mut(), &memory, &frames(20, 3)), 3);
        assert_eq!((took(&mut port), aside.out()), (frames(20, 3), vec![]));
        assert!(detach(&mut port, 1) && port.around().is_none());
    }
    assert_eq!(aside.end.stats().drops.iter().sum::<u64>(), 0);
}

#[test]
fn what_comes_in_goes_on_behind_the_filter() {
    let mut aside = Beside::new();
    let mut other = Beside::new();
    let mut port: Box<dyn Port> = Box::new(Noting(fake(true, &frames(1, 2))));
    let bell = spool::bell().unwrap();
    let fd = bell.try_clone().unwrap();
    assert_eq!(aside.come(&frames(30, 2)), 2, "nobody takes them: lost and counted");
    assert_eq!(aside.end.stats().drops[crate::stats::Reason::PeerDown as usize], 2);
    // head: redirector in; behind it a mirror that sees what was put in, before it one that does not.
    let of = |h: &Handle, q| Divert::new(plan(q, false), Some(h.clone()), None).unwrap();
    let redirector = Divert::new(plan(Queue::All, true), None, Some((aside.handle.clone(), bell))).unwrap();
    attach(&mut port, 1, None, Box::new(redirector));
    attach(&mut port, 2, None, Box::new(of(&other.handle, Queue::Tx)));
    attach(&mut port, 3, Some(1), Box::new(of(&other.handle, Queue::Rx)));
    let again =
        Divert::new(plan(Queue::Rx, true), None, Some((aside.handle.clone(), spool::bell().unwrap())));
    assert!(again.is_err(), "one takes them");
    assert_eq!(aside.come(&frames(40, 3)), 3);
    assert!(port.arm_gives());
    let mut w = Watch::default();
    port.watch(&mut w);
    assert_eq!(w.fds().len(), 2, "its bell, for both ways");
    assert!(nix::unistd::read(fd.as_fd(), &mut [0; 8]).is_ok(), "rung");
    assert_eq!(port.event(w.fds()[0].0, Interest::Gives).unwrap(), Change::default());
    // Towards the port: past the filters before it in the chain, which is number 3.
    assert_eq!((took(&mut port), other.out()), (frames(40, 3), frames(40, 3)));
    // Towards the lane: past number 2. Part of them comes again, and only then the port's own.
    assert_eq!(turn(port.as_mut(), 1), frames(40, 1));
    assert_eq!(turn(port.as_mut(), 9), frames(41, 2));
    assert_eq!(other.out(), frames(40, 3));
    assert_eq!(turn(port.as_mut(), 9), frames(1, 2));
    assert_eq!(other.out(), frames(1, 2));
    assert!(!port.arm_gives());
}

#[test]
fn what_the_port_does_not_take_waits_and_nothing_overtakes_it() {
    let mut aside = Beside::new();
    let memory = Buf::new(1 << 20).unwrap();
    let mut port: Box<dyn Port> = Box::new(Noting(Fake { takes: 0, ..fake(true, &[]) }));
    let bell = spool::bell().unwrap();
    let redirector = Divert::new(plan(Queue::Rx, true), None, Some((aside.handle.clone(), bell))).unwrap();
    attach(&mut port, 1, None, Box::new(redirector));
    assert_eq!(aside.come(&frames(40, 3)), 3);
    assert!(turn(port.as_mut(), 9).is_empty());
    assert!(port.is_stuck());
    assert_eq!(offer(port.as_mut(), &memory, &frames(1, 2)), 0, "it has to wait");
    set_takes(&mut port, 2);
    assert_eq!(offer(port.as_mut(), &memory, &frames(1, 2)), 0, "one is still before it");
    assert_eq!(offer(port.as_mut(), &memory, &frames(1, 2)), 2);
    assert!(!port.is_stuck());
    assert_eq!(took(&mut port), [frames(40, 3), frames(1, 2)].concat());
    // With nobody to wake for, they are dropped and counted.
    set_takes(&mut port, 0);
    port.peer_up(false);
    assert_eq!(aside.come(&frames(40, 3)), 3);
    assert!(turn(port.as_mut(), 9).is_empty() && !port.is_stuck());
    assert_eq!(port.stats().drops[crate::stats::Reason::Full as usize], 3);
    // What comes in waits with its peer when there is no room.
    port.peer_up(true);
    let came: usize = (0..70).map(|_| aside.come(&frames(1, 64))).sum();
    assert_eq!(came, 4096);
    assert!(!aside.end.arm_takes());
    set_takes(&mut port, 64);
    while !took(&mut port).is_empty() || aside.handle.lock().unwrap().came(Way::Rx) > 0 {
        turn(port.as_mut(), 0);
    }
    assert!(aside.end.arm_takes());
}

fn set_takes(port: &mut Box<dyn Port>, n: usize) {
    let s = stage(port.as_mut()).unwrap();
    s.inner = Box::new(Noting(Fake { takes: n, stats: s.inner.stats(), ..fake(true, &[]) }));
}

struct Timed {
    port: Box<dyn Port>,
    timer: OwnedFd,
    memory: Buf,
}

impl Timed {
    fn new(queue: Queue, inner: Fake) -> Self {
        let timer = spool::bell().unwrap();
        let hold = Hold::new(hold::Plan { queue, on: true }, timer.try_clone().unwrap()).unwrap();
        let mut port: Box<dyn Port> = Box::new(Noting(inner));
        attach(&mut port, 1, None, Box::new(hold));
        Self { port, timer, memory: Buf::new(1 << 20).unwrap() }
    }

    fn goes_off(&mut self) -> Change {
        nix::unistd::write(&self.timer, &1_u64.to_ne_bytes()).unwrap();
        let mut w = Watch::default();
        self.port.watch(&mut w);
        let change = self.port.event(w.fds()[0].0, Interest::Room).unwrap();
        assert!(nix::unistd::read(&self.timer, &mut [0; 8]).is_err(), "it was read");
        change
    }
}

#[test]
fn a_buffer_holds_until_its_time_and_keeps_the_order() {
    for rewinds in [true, false] {
        let mut t = Timed::new(Queue::All, fake(rewinds, &frames(1, 5)));
        assert!(turn(t.port.as_mut(), 9).is_empty());
        assert_eq!(offer(t.port.as_mut(), &t.memory, &frames(20, 3)), 3);
        assert!(took(&mut t.port).is_empty() && !t.port.arm_gives());
        t.goes_off();
        // One that comes now is of the next interval.
        assert_eq!(offer(t.port.as_mut(), &t.memory, &frames(23, 1)), 1);
        assert_eq!(took(&mut t.port), frames(20, 3));
        assert!(t.port.arm_gives());
        assert_eq!(turn(t.port.as_mut(), 2), frames(1, 2));
        assert_eq!(turn(t.port.as_mut(), 9), frames(3, 3));
        assert!(turn(t.port.as_mut(), 9).is_empty() && !t.port.arm_gives());
        t.goes_off();
        assert_eq!(took(&mut t.port), frames(23, 1));
    }
}

#[test]
fn what_is_held_goes_before_the_buffer_does() {
    for way in Way::BOTH {
        let mut t = Timed::new(Queue::All, fake(true, &frames(1, 5)));
        assert!(turn(t.port.as_mut(), 9).is_empty());
        assert_eq!(offer(t.port.as_mut(), &t.memory, &frames(20, 3)), 3);
        if way == Way::Tx {
            assert!(set_on(t.port.as_mut(), 1, false));
        } else {
            assert!(detach(&mut t.port, 1));
            assert!(!detach(&mut t.port, 1), "it is gone for whoever asks");
            assert!(t.port.around().is_some(), "but holds frames");
        }
        assert_eq!(offer(t.port.as_mut(), &t.memory, &frames(30, 1)), 1);
        assert_eq!(took(&mut t.port), [frames(20, 3), frames(30, 1)].concat());
        assert_eq!(turn(t.port.as_mut(), 9), frames(1, 5));
        let change = t.goes_off();
        assert_eq!(change.rewire, way == Way::Rx);
        tidy(&mut t.port);
        assert_eq!(t.port.around().is_none(), way == Way::Rx);
    }
}

#[test]
fn a_full_buffer_makes_both_sides_wait_and_loses_nothing() {
    let mut t = Timed::new(Queue::All, fake(true, &[]));
    let mut taken = 0;
    loop {
        let n = offer(t.port.as_mut(), &t.memory, &frames(1, 64));
        taken += n;
        if n < 64 {
            break;
        }
    }
    assert!(taken > 4000 && !t.port.arm_takes(), "{taken}");
    t.goes_off();
    let mut got = took(&mut t.port).len();
    while got < taken {
        assert!(t.port.arm_takes() || t.port.arm_gives());
        turn(t.port.as_mut(), 9);
        let more = took(&mut t.port).len();
        assert!(more > 0);
        got += more;
    }
    assert!(t.port.arm_gives() || got == taken);
    assert_eq!(t.port.stats().drops.iter().sum::<u64>(), 0);
}

#[test]
fn what_a_full_buffer_leaves_with_the_port_comes_again_after_its_time() {
    let one = |i: u32| [&i.to_be_bytes()[..], &[7; 1596]].concat();
    let all: Vec<Vec<u8>> = (0..3200).map(one).collect();
    let mut t = Timed::new(Queue::Tx, fake(true, &all));
    let mut got = Vec::new();
    for _ in 0..2 {
        for _ in 0..60 {
            assert!(turn(t.port.as_mut(), 64).is_empty());
        }
        assert!(!t.port.arm_gives(), "nothing is to be done before its time");
        t.goes_off();
        loop {
            let more = turn(t.port.as_mut(), 50);
            if more.is_empty() {
                break;
            }
            got.extend(more);
        }
    }
    assert_eq!(got.len(), all.len());
    assert!(got == all, "in order, each once");
}

#[test]
fn who_waits_for_a_full_buffer_is_not_asked_before_its_time() {
    for way in Way::BOTH {
        let mut aside = Beside::new();
        let mut t = Timed::new(Queue::All, fake(true, &[]));
        let plan = plan(if way == Way::Tx { Queue::Tx } else { Queue::Rx }, true);
        let from = Some((aside.handle.clone(), spool::bell().unwrap()));
        let redirector = Divert::new(plan, None, from).unwrap();
        let (before, timer) = if way == Way::Tx { (Some(1), 2) } else { (None, 0) };
        attach(&mut t.port, 2, before, Box::new(redirector));
        let some: Vec<_> = (0..64).map(|_| vec![9; 1600]).collect();
        for _ in 0..100 {
            aside.come(&some);
            assert!(turn(t.port.as_mut(), 64).is_empty());
        }
        assert!(aside.handle.lock().unwrap().came(way) > 0 && !t.port.arm_gives(), "{way:?}");
        assert!(way == Way::Tx || (t.port.is_stuck() && !t.port.arm_takes()));
        nix::unistd::write(&t.timer, &1_u64.to_ne_bytes()).unwrap();
        let mut w = Watch::default();
        t.port.watch(&mut w);
        t.port.event(w.fds()[timer].0, Interest::Room).unwrap();
        let went = if way == Way::Tx { turn(t.port.as_mut(), 64) } else { took(&mut t.port) };
        assert!(went.len() >= 64, "{way:?}");
    }
}

#[test]
fn a_buffer_that_goes_lets_the_lane_keep_what_it_has_of_it() {
    let mut t = Timed::new(Queue::Tx, fake(false, &frames(1, 5)));
    assert!(turn(t.port.as_mut(), 9).is_empty());
    t.goes_off();
    let mut b = Batch::new();
    t.port.recv(&mut b).unwrap();
    assert_eq!(b.len(), 5);
    t.port.release(&b, 2);
    assert!(!lends_to_lane(t.port.as_mut(), 1) && detach(&mut t.port, 1));
    let rest: Vec<_> = b.frames()[2..].iter().map(|f| whole(&b, f)).collect();
    assert_eq!(rest, frames(3, 3));
    b.advance(2);
    t.port.release(&b, 3);
    assert!(t.goes_off().rewire, "now it goes");

    let mut aside = Beside::new();
    let mut port: Box<dyn Port> = Box::new(Noting(fake(false, &[])));
    let from = Some((aside.handle.clone(), spool::bell().unwrap()));
    attach(&mut port, 1, None, Box::new(Divert::new(plan(Queue::Tx, true), None, from).unwrap()));
    assert_eq!(aside.come(&frames(40, 3)), 3);
    b.clear();
    port.recv(&mut b).unwrap();
    assert!(lends_to_lane(port.as_mut(), 1), "its memory goes with it");
}

#[test]
fn a_mirror_before_a_full_buffer_copies_once_what_a_redirector_puts_in() {
    let (mut aside, mut other) = (Beside::new(), Beside::new());
    let mut t = Timed::new(Queue::Tx, fake(true, &[]));
    let from = Some((aside.handle.clone(), spool::bell().unwrap()));
    attach(&mut t.port, 2, Some(1), Box::new(Divert::new(plan(Queue::Tx, true), None, from).unwrap()));
    let mirror = Divert::new(plan(Queue::Tx, false), Some(other.handle.clone()), None).unwrap();
    attach(&mut t.port, 3, Some(1), Box::new(mirror));
    let all: Vec<Vec<u8>> = (0..3200_u32).map(|i| [&i.to_be_bytes()[..], &[7; 1596]].concat()).collect();
    let (mut came, mut copies, mut got, mut times) = (0, Vec::new(), Vec::new(), 0);
    while got.len() < all.len() {
        came += aside.come(&all[came..all.len().min(came + 64)]);
        let more = turn(t.port.as_mut(), 50);
        copies.extend(other.out());
        if more.is_empty() && !t.port.arm_gives() {
            times += 1;
            assert!(times < 100, "{} of {} after {times} times", got.len(), all.len());
            nix::unistd::write(&t.timer, &1_u64.to_ne_bytes()).unwrap();
            let mut w = Watch::default();
            t.port.watch(&mut w);
            t.port.event(w.fds()[2].0, Interest::Room).unwrap();
        }
        got.extend(more);
    }
    assert!(got == all, "in order, each once");
    assert!(copies == all, "{} copies", copies.len());
}
