//! Places of a hub as ports: whom frames reach, against a simple model; who waits, who loses, who is woken.

use std::collections::HashMap;
use std::os::fd::AsFd;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use proptest::prelude::*;

use super::*;
use crate::frame::{BATCH, HEAD};
use crate::mem::Seg;
use crate::sys;

fn plan(learning: Option<Learning>, isolated: bool) -> Plan {
    Plan { hub: 1, learning, isolated }
}

/// A place whose member is up.
fn place(hubs: &mut Hubs, p: &Plan) -> Box<dyn Port> {
    let mut port = open(p, hubs).unwrap().remove(0);
    port.peer_takes(Offloads::NONE);
    port.peer_up(true);
    port
}

fn places(n: usize) -> (Hubs, Vec<Box<dyn Port>>) {
    let mut hubs = Hubs::default();
    let all = (0..n).map(|_| place(&mut hubs, &plan(None, false))).collect();
    (hubs, all)
}

fn frame(to: [u8; 6], from: [u8; 6], number: u32, len: usize) -> Vec<u8> {
    let mut v = vec![number as u8; len.max(18)];
    v[..6].copy_from_slice(&to);
    v[6..12].copy_from_slice(&from);
    v[14..18].copy_from_slice(&number.to_be_bytes());
    v
}

const ALL: [u8; 6] = [0xff; 6];

fn station(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, n]
}

/// Sends frames; says how many were taken.
fn send(port: &mut dyn Port, frames: &mut [Vec<u8>]) -> usize {
    let mut b = Batch::new();
    for v in frames {
        let seg = Seg::over(v);
        let f = b.push().unwrap();
        f.len = seg.len();
        let n = f.head_from(&seg);
        b.push_seg(seg.skip(n));
    }
    port.send(&b).unwrap()
}

/// Takes up to `most` frames, as a lane whose taker takes no more.
fn take(port: &mut dyn Port, most: usize) -> Vec<Vec<u8>> {
    let mut b = Batch::new();
    port.recv(&mut b).unwrap();
    let n = b.len().min(most);
    let bytes = |f: &crate::frame::Frame| {
        let mut v = f.head().to_vec();
        for s in b.body(f) {
            let mut part = vec![0; s.len() as usize];
            s.copy_out(&mut part);
            v.extend(part);
        }
        assert_eq!(v.len(), f.len as usize);
        v
    };
    let got = b.frames()[..n].iter().map(bytes).collect();
    if !b.is_empty() {
        port.release(&b, n);
    }
    got
}

fn take_all(port: &mut dyn Port) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let some = take(port, BATCH);
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

/// Its bell was rung and it has not yet heard.
fn bell(port: &dyn Port) -> bool {
    let mut w = Watch::default();
    port.watch(&mut w);
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    sys::poll::watch(epoll.0.as_fd(), w.fds()[0].0, EpollFlags::empty(), EpollFlags::EPOLLIN, 0).unwrap();
    epoll.wait(&mut [EpollEvent::empty()], EpollTimeout::ZERO).unwrap() == 1
}

fn drops(port: &dyn Port, why: Reason) -> u64 {
    port.stats().drops[why as usize]
}

#[derive(Clone, Debug)]
enum Step {
    Send { from: usize, source: u8, to: Option<u8> },
    Up(usize, bool),
    Anew(usize, Plan),
    Look(usize),
}

fn any_plan() -> impl Strategy<Value = Plan> {
    let learning =
        prop::option::of((Just(300_u32), 1_u16..4).prop_map(|(ageing, most)| Learning { ageing, most }));
    (learning, any::<bool>()).prop_map(|(l, i)| plan(l, i))
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0_usize..4, 0_u8..8, prop::option::of(0_u8..8))
            .prop_map(|(from, source, to)| Step::Send { from, source, to }),
        1 => (0_usize..4, any::<bool>()).prop_map(|(m, up)| Step::Up(m, up)),
        1 => (0_usize..4, any_plan()).prop_map(|(m, p)| Step::Anew(m, p)),
        3 => (0_usize..4).prop_map(Step::Look),
    ]
}

/// What a hub is, said as simply as possible.
#[derive(Default)]
struct Model {
    plans: Vec<Plan>,
    up: Vec<bool>,
    queues: Vec<Vec<Vec<u8>>>,
    at: HashMap<[u8; 6], usize>,
}

impl Model {
    fn send(&mut self, from: usize, source: [u8; 6], to: [u8; 6], bytes: &[u8]) {
        if let Some(l) = self.plans[from].learning
            && self.at.get(&source) != Some(&from)
        {
            self.at.remove(&source);
            if self.at.values().filter(|m| **m == from).count() < l.most.into() {
                self.at.insert(source, from);
            }
        }
        let known = self.at.get(&to).copied();
        for m in 0..self.plans.len() {
            let isolated = self.plans[m].isolated && self.plans[from].isolated;
            if m != from && self.up[m] && !isolated && known.is_none_or(|k| k == m) {
                self.queues[m].push(bytes.to_vec());
            }
        }
    }

    fn gone(&mut self, m: usize) {
        self.at.retain(|_, at| *at != m);
        self.queues[m].clear();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn frames_reach_whom_the_model_says(
        plans in prop::collection::vec(any_plan(), 4),
        steps in prop::collection::vec(any_step(), 1..300),
    ) {
        let mut hubs = Hubs::default();
        let mut ports: Vec<_> = plans.iter().map(|p| place(&mut hubs, p)).collect();
        let mut model = Model { up: vec![true; 4], queues: vec![Vec::new(); 4], plans, at: HashMap::new() };
        for (number, step) in steps.into_iter().enumerate() {
            match step {
                Step::Send { from, source, to } => {
                    let (source, to) = (station(source), to.map_or(ALL, station));
                    let bytes = frame(to, source, number as u32, 18 + number % 200);
                    prop_assert_eq!(send(ports[from].as_mut(), &mut [bytes.clone()]), 1);
                    model.send(from, source, to, &bytes);
                }
                Step::Up(m, up) => {
                    ports[m].peer_up(up);
                    if model.up[m] && !up {
                        model.gone(m);
                    }
                    model.up[m] = up;
                }
                Step::Anew(m, p) => {
                    // Another one takes its place in the vector before it is gone, as in a running hub.
                    let new = place(&mut hubs, &p);
                    drop(std::mem::replace(&mut ports[m], new));
                    model.gone(m);
                    model.plans[m] = p;
                    model.up[m] = true;
                }
                Step::Look(m) => {
                    prop_assert_eq!(take_all(ports[m].as_mut()), std::mem::take(&mut model.queues[m]));
                }
            }
        }
        for (port, queue) in ports.iter_mut().zip(&model.queues) {
            prop_assert_eq!(&take_all(port.as_mut()), queue);
        }
    }
}

#[test]
fn a_hub_of_two_is_a_wire_and_loses_nothing() {
    let (_hubs, mut p) = places(2);
    let (mut sent, mut got) = (0, Vec::new());
    while sent < 9000 {
        let mut some: Vec<_> =
            (sent..(sent + 64).min(9000)).map(|n| frame(ALL, station(1), n, 700)).collect();
        let n = send(p[0].as_mut(), &mut some);
        sent += n as u32;
        if n < some.len() {
            assert!(!p[0].arm_takes());
            // The other one takes a few, and then no more for the moment.
            got.extend(take(p[1].as_mut(), 5));
        }
    }
    while got.len() < 9000 {
        got.extend(take(p[1].as_mut(), 64));
    }
    for (n, f) in got.iter().enumerate() {
        assert_eq!(f, &frame(ALL, station(1), n as u32, 700));
    }
    for port in &p {
        assert_eq!(port.stats().drops, [0; Reason::COUNT]);
    }
}

#[test]
fn a_blocked_member_loses_what_it_cannot_hold_and_stops_nobody() {
    let (_hubs, mut p) = places(3);
    let mut good = 0;
    for n in 0..9000 {
        while send(p[0].as_mut(), &mut [frame(ALL, station(1), n, 60)]) == 0 {
            // One that had no turn yet is waited for; once it turns out to be blocked, not any more.
            assert!(!p[0].arm_takes());
            assert!(take(p[2].as_mut(), 0).is_empty());
            assert!(p[0].arm_takes());
        }
        good += take_all(p[1].as_mut()).len();
    }
    assert_eq!(good, 9000);
    assert_eq!(drops(p[2].as_ref(), Reason::Full), 9000 - FRAMES as u64);
    assert_eq!(drops(p[1].as_ref(), Reason::Full), 0);
    // What it holds are the oldest, in order; then it is as good as any other.
    let held = take_all(p[2].as_mut());
    assert_eq!(held.len(), FRAMES);
    assert!(held.iter().enumerate().all(|(n, f)| f == &frame(ALL, station(1), n as u32, 60)));
    assert_eq!(send(p[0].as_mut(), &mut [frame(ALL, station(1), 9, 60)]), 1);
    assert_eq!(take_all(p[2].as_mut()).len(), 1);
}

#[test]
fn the_source_waits_only_if_every_other_is_blocked_and_goes_on_when_one_is_not() {
    let (_hubs, mut p) = places(3);
    let mut n = 0;
    let mut fill = |p: &mut [Box<dyn Port>]| {
        while send(p[0].as_mut(), &mut [frame(ALL, station(1), n, 1500)]) == 1 {
            n += 1;
        }
        n
    };
    fill(&mut p);
    take(p[1].as_mut(), 0);
    assert_eq!(send(p[0].as_mut(), &mut [frame(ALL, station(1), 7, 1500)]), 0, "the third has had no turn");
    take(p[2].as_mut(), 0);
    assert!(!p[0].arm_takes(), "both are blocked");
    assert_eq!(drops(p[1].as_ref(), Reason::Full) + drops(p[2].as_ref(), Reason::Full), 0);
    // A wake-up is one write to the bell, and only where somebody sleeps.
    assert!(!bell(p[0].as_ref()));
    while !bell(p[0].as_ref()) {
        assert!(!take(p[1].as_mut(), 8).is_empty(), "it was never woken");
        take(p[1].as_mut(), 0);
    }
    p[0].event(0, Interest::Gives).unwrap();
    assert!(!bell(p[0].as_ref()));
    assert!(p[0].arm_takes());
    assert_eq!(send(p[0].as_mut(), &mut [frame(ALL, station(1), 7, 1500)]), 1);
    assert_eq!(drops(p[2].as_ref(), Reason::Full), 1);
    // One that goes down is not waited for, and what waited for it is counted.
    let waiting = fill(&mut p);
    assert!(waiting > 0);
    take(p[1].as_mut(), 0);
    p[2].peer_up(false);
    assert!(drops(p[2].as_ref(), Reason::PeerDown) > 0);
    p[1].peer_up(false);
    assert!(p[0].arm_takes());
    assert_eq!(send(p[0].as_mut(), &mut [frame(ALL, station(1), 8, 60)]), 1);
    assert_eq!(drops(p[0].as_ref(), Reason::PeerDown), 1, "there is nobody");
}

#[test]
fn sleepers_are_woken_once_and_only_they() {
    let (_hubs, mut p) = places(3);
    assert!(!p[1].arm_gives());
    assert_eq!(send(p[0].as_mut(), &mut [frame(ALL, station(1), 1, 60)]), 1);
    assert!(bell(p[1].as_ref()) && !bell(p[2].as_ref()), "the third looks by itself");
    assert!(p[2].arm_gives(), "there is something already");
    assert_eq!(p[0].traits().takes, Offloads::NONE);
    p[2].peer_takes(Offloads::ALL);
    assert_eq!(p[0].traits().takes, Offloads::ALL, "one who takes super-frames is enough");
    assert_eq!(p[2].traits().takes, Offloads::NONE);
    assert!(frame(ALL, station(1), 1, 60).len() < HEAD);
}

#[test]
fn hubs_are_told_apart_by_number_and_end_with_their_last_place() {
    let mut hubs = Hubs::default();
    let mut a = place(&mut hubs, &plan(None, false));
    let mut b = place(&mut hubs, &Plan { hub: 2, ..plan(None, false) });
    assert_eq!(send(a.as_mut(), &mut [frame(ALL, station(1), 1, 60)]), 1);
    assert!(take_all(b.as_mut()).is_empty());
    assert_eq!(hubs.0.len(), 2);
    drop(a);
    drop(place(&mut hubs, &Plan { hub: 3, ..plan(None, false) }));
    drop(place(&mut hubs, &Plan { hub: 3, ..plan(None, false) }));
    assert_eq!(hubs.0.len(), 2, "the first is gone");
}
