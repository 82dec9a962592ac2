//! Ports that need kernel objects, added to a dataplane that is locked in: the real process, its real sandbox, taps and
//! AF_XDP sockets of the helper's own code. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    dead_code,
    reason = "a test fails by panicking, and its figures are small and chosen; each file uses its part of the support"
)]

#[path = "root_ports/support.rs"]
mod support;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command};
use std::time::Duration;

use netreeve_dataplane::engine::KIND;
use netreeve_dataplane::handover::{
    FromDataplane, Level, Plan, PortKind, PortPlan, RunPlan, ToDataplane, Wire,
};
use netreeve_dataplane::port::{dgram, hub, tap};
use netreeve_shared::channel::{self, Channel};
use netreeve_shared::codec::{self, Header};
use netreeve_shared::request::XdpMode;
use netreeve_tests::bins::ours;
use netreeve_tests::netns::{Netns, veth};
use support::{Far, Xdp, copies, frame, tap_grant};

const WAIT: Option<Duration> = Some(Duration::from_secs(5));

struct Live {
    channel: Channel,
    child: Child,
    ask: u32,
}

impl Live {
    /// A dataplane without ports, locked in wholly, that takes any.
    fn start() -> Self {
        let (channel, child) = channel::spawn(Command::new(ours("netreeve-dataplane").unwrap())).unwrap();
        let live = Self { channel, child, ask: 0 };
        let run = RunPlan { at_least: Level::Full, sandbox_off: false, busy_poll_us: 0, workers: 0 };
        let plan = Plan { later: PortKind::ALL.to_vec(), ..Plan::new(Vec::new(), Vec::new(), run) };
        live.say(&ToDataplane::Plan(plan), &[]);
        live.say(&ToDataplane::Begin, &[]);
        let heard = live.hear();
        assert!(matches!(heard, FromDataplane::Ready { level: Level::Full }), "{heard:?}");
        live
    }

    fn say(&self, m: &ToDataplane, fds: &[OwnedFd]) {
        let head = Header { kind: KIND, sequence: 1, fds: fds.len() as u16 };
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.channel.send(&codec::encode(head, m).unwrap(), &fds).unwrap();
    }

    fn hear(&self) -> FromDataplane {
        let m = self.channel.recv(0, WAIT).unwrap().expect("the dataplane has ended");
        codec::decode(&m.bytes).unwrap()
    }

    fn change(&mut self, of: impl Fn(u32) -> ToDataplane) {
        self.ask += 1;
        self.say(&of(self.ask), &[]);
        loop {
            match self.hear() {
                FromDataplane::Done { ask } if ask == self.ask => return,
                FromDataplane::Link { .. } | FromDataplane::FarEnd { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn add(&mut self, slot: u16, plan: &PortPlan, fds: &[OwnedFd]) {
        for few in fds.chunks(4) {
            self.say(&ToDataplane::Fds { slot }, few);
        }
        self.change(|ask| ToDataplane::Add { ask, slot, plan: plan.clone() });
    }

    /// A datagram port at `slot` and a place in hub 0 beside it; the test's end of the former.
    fn member(&mut self, slot: u16) -> UnixDatagram {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_read_timeout(WAIT).unwrap();
        let plan = dgram::Plan {
            sources: dgram::Sources::Any,
            l2tp: None,
            cut: false,
            waits: false,
            max_frame: 69632,
            undone: None,
        };
        self.add(slot, &PortPlan::Dgram(plan), &[theirs.into()]);
        self.place(slot + 1, slot);
        ours
    }

    fn place(&mut self, slot: u16, member: u16) {
        self.add(slot, &PortPlan::Hub(hub::Plan { hub: 0, learning: None, isolated: false }), &[]);
        let wire = Wire { netdev: slot, device: member, lock_mac: None };
        self.change(|ask| ToDataplane::Join { ask, wire: wire.clone() });
    }

    fn ends_well(mut self) {
        self.say(&ToDataplane::Quit, &[]);
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The next frame of ours.
fn next(from: &UnixDatagram) -> Vec<u8> {
    loop {
        let mut got = vec![0; 70_000];
        let n = from.recv(&mut got).unwrap();
        got.truncate(n);
        if got.get(12..14) == Some(&support::ETHERTYPE[..]) {
            return got;
        }
    }
}

/// What was sent at the far end reaches all members, and what a member sends reaches the far end and the other one.
fn meet(far: &Far, members: &[UnixDatagram; 2]) {
    for n in 0..200 {
        far.send(&frame(n, 60 + 7 * n as usize));
        for m in members {
            assert_eq!(next(m), frame(n, 60 + 7 * n as usize));
        }
        let mut back = frame(n, 100 + 7 * n as usize);
        back[..6].fill(2);
        members[0].send(&back).unwrap();
        assert_eq!(next(&members[1]), back);
        assert_eq!(far.next(), back);
    }
}

#[test]
fn a_tap_joins_a_hub_of_a_dataplane_that_is_locked_in() {
    let ns = Netns::new("later-tap").unwrap();
    let mut live = Live::start();
    let members = [live.member(0), live.member(2)];
    for vnet in [true, false] {
        let (grant, fds) = tap_grant(&ns, "t0", 1, vnet);
        let plan = tap::Plan { queues: 1, vnet_header: grant.vnet_header, mtu: grant.mtu };
        live.add(10, &PortPlan::Tap(plan), &fds);
        drop(fds);
        live.place(11, 10);
        meet(&Far::new(&ns, "t0"), &members);
        for slot in [10, 11] {
            live.change(|ask| ToDataplane::Remove { ask, slot });
        }
        // The last descriptor was the dataplane's.
        assert!(!ns.sh("ip -br link").unwrap().contains("t0"), "the tap is left");
    }
    live.ends_well();
}

#[test]
fn af_xdp_joins_a_hub_of_a_dataplane_that_is_locked_in() {
    let (ns, there) = (Netns::new("later-xdp").unwrap(), Netns::new("later-far").unwrap());
    veth(&ns, "v0", &there, "v1").unwrap();
    let far = Far::new(&there, "v1");
    let mut live = Live::start();
    let members = [live.member(0), live.member(2)];
    // The helper's session goes on with the port here closed: what the supervisor keeps.
    let (xdp, port) = Xdp::make(&ns, "v0", XdpMode::Skb, 256);
    drop(port);
    let plan = netreeve_dataplane::port::xsk::Plan { resume: true, ..xdp.plan.clone() };
    live.add(10, &PortPlan::Xsk(plan), &copies(&xdp.fds));
    live.place(11, 10);
    meet(&far, &members);
    live.ends_well();
}
