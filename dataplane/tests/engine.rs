//! The dataplane program as the supervisor starts it: plan, descriptors, sandbox, frames, counters, redial, end.
//! No privilege is needed; what the sandbox reaches depends on the machine and is printed.
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

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::Command;

use child::wait_for;
use netreeve_dataplane::handover::{FromDataplane, Level, Plan, PortPlan, RunPlan, ToDataplane, Wire};
use netreeve_dataplane::port::stream;
use netreeve_shared::channel;
use process::{Dataplane, frame, pair};

fn plan(redial: bool) -> Plan {
    let s = |redial| PortPlan::Stream(stream::Plan { redial, ..Default::default() });
    Plan::new(
        vec![s(redial), s(false)],
        vec![Wire { netdev: 0, device: 1, lock_mac: None }],
        RunPlan { at_least: Level::Seccomp, sandbox_off: false, busy_poll_us: 0, workers: 0 },
    )
}

#[test]
fn frames_cross_a_locked_in_dataplane_and_a_lost_peer_is_dialled_again() {
    let mut d = Dataplane::start();
    let (mut netdev, n) = pair();
    let (mut device, v) = pair();
    d.say(&ToDataplane::Plan(plan(true)), &[]);
    d.say(&ToDataplane::Fds { slot: 0 }, &[n.as_fd()]);
    d.say(&ToDataplane::Fds { slot: 1 }, &[v.as_fd()]);
    drop((n, v));
    d.say(&ToDataplane::Begin, &[]);
    match d.hear() {
        FromDataplane::Ready { level } => println!("level reached: {level:?}"),
        other => panic!("{other:?}"),
    }
    for (n, len) in [(1, 60), (2, 1514), (3, 65550), (4, 14)] {
        device.write_all(&frame(n, len)).unwrap();
        let mut got = vec![0; len + 4];
        netdev.read_exact(&mut got).unwrap();
        assert_eq!(got, frame(n, len));
        netdev.write_all(&frame(n, len)).unwrap();
        device.read_exact(&mut got).unwrap();
        assert_eq!(got, frame(n, len));
    }
    drop(netdev);
    let asked = |d: &Dataplane| loop {
        match d.hear() {
            FromDataplane::Redial { slot } => return slot,
            FromDataplane::Link { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(asked(&d), 0);
    let (mut netdev, n) = pair();
    d.say(&ToDataplane::Fds { slot: 0 }, &[n.as_fd()]);
    drop(n);
    netdev.write_all(&frame(9, 100)).unwrap();
    let mut got = vec![0; 104];
    device.read_exact(&mut got).unwrap();
    assert_eq!(got, frame(9, 100));
    d.say(&ToDataplane::Stats { slot: None }, &[]);
    let mut seen = Vec::new();
    while seen.len() < 2 {
        if let FromDataplane::Stats { slot, stats, up } = d.hear() {
            assert!(up && stats.rx_frames >= 4 && stats.tx_frames >= 4, "{stats:?}");
            seen.push(slot);
        }
    }
    assert_eq!(seen, [0, 1]);
    d.say(&ToDataplane::Quit, &[]);
    assert!(wait_for(&mut d.child).success());
}

#[test]
fn what_cannot_be_built_is_said_and_the_process_ends() {
    let mut d = Dataplane::start();
    d.say(&ToDataplane::Plan(plan(false)), &[]);
    let null = std::fs::File::open("/dev/null").unwrap();
    d.say(&ToDataplane::Fds { slot: 1 }, &[null.as_fd()]);
    d.say(&ToDataplane::Begin, &[]);
    match d.hear() {
        FromDataplane::Failed { slot, why, .. } => {
            assert_eq!(slot, Some(1), "{why}");
            assert!(!why.is_empty());
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(wait_for(&mut d.child).code(), Some(69));
}

#[test]
fn a_supervisor_that_goes_away_or_babbles_ends_the_dataplane() {
    let mut d = Dataplane::start();
    d.say(&ToDataplane::Begin, &[]);
    assert!(matches!(d.hear(), FromDataplane::Failed { .. }));
    assert!(!wait_for(&mut d.child).success());
    let mut d = Dataplane::start();
    d.channel.send(b"garbage", &[]).unwrap();
    assert!(!wait_for(&mut d.child).success());
    let command = Command::new(env!("CARGO_BIN_EXE_netreeve-dataplane"));
    let (channel, mut child) = channel::spawn(command).unwrap();
    drop(channel);
    assert!(!wait_for(&mut child).success());
}
