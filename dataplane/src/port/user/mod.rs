//! Port `user`: a network of our own making for a guest, by ordinary sockets and without any privilege.
//!
//! # Theory of operation
//! One queue, one thread, one event loop. The guest's frames are judged from their heads ([`packet`]) and go to the room
//! that knows their protocol; what a guest sends by TCP and UDP goes to the host's sockets straight from its own memory,
//! and what comes for it is received straight into its own memory ([`bay`]): the kernel makes the only copy. Small frames
//! of ours (answers, acknowledgements) wait in [`out`]. All descriptors of the port are in one set ([`poll`]), all its
//! times on one timer ([`timers`]).
//!
//! The link to the guest loses nothing by itself, and nothing here makes it: what a socket does not take is held, within
//! bounds that the guest has been told as its window; what the guest does not take stays in its socket.
//!
//! Rooms: `tcp`, `udp`, `icmp`, `fragments`, `services`, and `passage`, past which no frame comes. Where a guest may go is asked before a socket is made ([`policy`],
//! [`room::Cx::route`]).
//!
//! Trust: none in the guest, none in what answers; the plan is trusted. Promise: a broken flow ends that flow; whatever a
//! guest does costs at most what the plan's limits say; trouble with a frame is counted by reason.
#![forbid(unsafe_code)]

pub mod bay;
pub mod build;
pub mod calls;
pub mod door;
mod errors;
mod flows;
pub mod fragments;
pub mod icmp;
mod inbox;
pub mod net;
pub mod out;
pub mod packet;
pub mod passage;
pub mod plan;
pub mod policy;
pub mod poll;
pub mod room;
pub mod services;
mod sockets;
pub mod tcp;
pub mod timers;
pub mod udp;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit};

use crate::frame::{Batch, MAX_FRAME};
use crate::port::{Interest, Offloads, OpenError, Port, Queues, Told, Traits, Watch, offload_bits as bits};
use crate::stats::{Reason, Stats};
use crate::sys::sock;
use bay::Bay;
pub use calls::{CALLS, FILES, OPENS, OUTBOUND, RESTRICTED};
use fragments::Fragments;
use icmp::Icmp;
use net::Net;
use out::Out;
use packet::{ICMP, ICMPV6, Packet, TCP, UDP};
use passage::Passage;
pub use plan::{Boot, Forward, GuestForward, Limits, Outbound, Plan, Tell, To, V4, V6, Way};
use poll::{Poll, Ready, Token, Want, Who};
use room::{Cx, Room};
use services::Services;
use tcp::Tcp;
use tcp::sock::Stream;
use timers::Timers;
use udp::Udp;

/// Rounds of events that are served before frames are given.
const ROUNDS: usize = 4;
/// Timers that are served before frames are given.
const TICKS: usize = 256;

/// Forwards, with the sockets of those that are new.
type Table = Vec<(Forward, Option<OwnedFd>)>;

/// The rooms.
struct Rooms {
    tcp: Tcp,
    udp: Udp,
    icmp: Icmp,
    fragments: Fragments,
    services: Services,
    passage: Passage,
}

/// The port.
struct User {
    cx: Cx,
    rooms: Rooms,
    bay: Bay,
    events: Vec<(Token, Ready)>,
    /// TCP or UDP gives first, by turns.
    udp_first: bool,
    /// What has become possible was seen to for the frames before, and is not looked for again for those behind them.
    seen_to: bool,
}

/// Opens a `user` network with the descriptors that [`Plan`] lists.
///
/// # Errors
/// They are not those, or there is no memory or descriptor for the port's own needs.
pub fn open(plan: &Plan, fds: Vec<OwnedFd>) -> Result<Queues, OpenError> {
    Ok(vec![Box::new(made(plan, fds)?)])
}

fn made(plan: &Plan, fds: Vec<OwnedFd>) -> Result<User, OpenError> {
    let fail = |what| move |e: io::Error| OpenError { what, source: Some(e) };
    if fds.len() != plan.descriptors() {
        return Err(OpenError {
            what: "a user network got other descriptors than its plan says",
            source: None,
        });
    }
    let mut fds = fds.into_iter();
    let (mut streams, mut datagrams, mut out) = (Vec::new(), Vec::new(), Vec::new());
    for f in &plan.forwards {
        let to = match f.way {
            Way::Udp => &mut datagrams,
            Way::Tcp | Way::Unix => &mut streams,
            Way::OutTcp | Way::OutUdp => &mut out,
        };
        to.extend(sockets(f, &mut fds));
    }
    let guests = plan
        .guest_forwards
        .iter()
        .map(|g| (*g, if matches!(g.to, To::Address(_)) { None } else { fds.next() }))
        .collect();
    let tftp = fds.next();
    let mut cx = context(plan).map_err(fail("a user network's timer and event loop"))?;
    let own = Token { who: Who::Port, kind: 0, index: 0, generation: 0 };
    cx.poll.add(cx.timers.fd(), own, Want::READ).map_err(fail("watching a user network's timer"))?;
    let rooms = Rooms {
        tcp: Tcp::new(plan, streams, guests, &mut cx).map_err(fail("a user network's TCP"))?,
        udp: Udp::new(plan, datagrams, &mut cx).map_err(fail("a user network's UDP"))?,
        icmp: Icmp::new(plan, &cx).map_err(fail("a user network's echo requests"))?,
        fragments: Fragments::new().map_err(fail("memory for a user network's fragments"))?,
        services: Services::new(plan, tftp, &mut cx).map_err(fail("a user network's services"))?,
        passage: Passage::new(out, &mut cx).map_err(fail("a user network's way out of a namespace"))?,
    };
    Ok(User { cx, rooms, bay: Bay::default(), events: Vec::new(), udp_first: false, seen_to: false })
}

/// The sockets of a forward, each with where it leads.
fn sockets(f: &Forward, fds: &mut impl Iterator<Item = OwnedFd>) -> Vec<(Forward, OwnedFd)> {
    let port = |fd: &OwnedFd| f.range.and_then(|_| sock::local(fd.as_fd())).map_or(0, |at| at.port());
    (0..f.sockets()).zip(fds).map(|(n, fd)| (f.part(n, port(&fd)), fd)).collect()
}

fn context(plan: &Plan) -> io::Result<Cx> {
    let now = Instant::now();
    let room = |(soft, _): (u64, u64)| plan.limits.within(soft.saturating_sub(plan.sockets()));
    Ok(Cx {
        net: Net::new(plan),
        out: Out::default(),
        poll: Poll::new()?,
        timers: Timers::new(now)?,
        policy: plan.policy.clone(),
        restrict: plan.restrict,
        outbound: plan.outbound,
        limits: getrlimit(Resource::RLIMIT_NOFILE).map_or(plan.limits, room),
        stats: Stats::default(),
        now,
        gives: Offloads::NONE,
        own: Cell::new(None),
        idle: 0,
    })
}

impl Rooms {
    fn take(&mut self, p: &Packet<'_>, cx: &mut Cx) {
        let Some(ip) = &p.ip else { return self.services.take(p, cx) };
        cx.net.learn(ip.src, p.mac);
        if ip.piece.is_some() {
            if let Some(whole) = self.fragments.take(p, cx) {
                Self::dispatch(
                    (&mut self.tcp, &mut self.udp, &mut self.icmp, &mut self.services),
                    &whole,
                    cx,
                );
                // Its memory is used again by the next.
                self.tcp.flush(cx);
                self.udp.flush(cx);
            }
            return;
        }
        Self::dispatch((&mut self.tcp, &mut self.udp, &mut self.icmp, &mut self.services), p, cx);
    }

    fn dispatch(
        (tcp, udp, icmp, services): (&mut Tcp, &mut Udp, &mut Icmp, &mut Services),
        p: &Packet<'_>,
        cx: &mut Cx,
    ) {
        let Some(ip) = &p.ip else { return };
        match ip.proto {
            TCP => tcp.take(p, cx),
            UDP if services::is_ours(p, &cx.net) => services.take(p, cx),
            UDP => udp.take(p, cx),
            // Router and neighbour discovery, redirects; listeners of groups.
            ICMPV6 if matches!(p.transport().first(), Some(130..=137 | 143)) => services.take(p, cx),
            ICMP | ICMPV6 => icmp.take(p, cx),
            _ => {
                cx.stats.drop(Reason::Unknown);
                if cx.net.is_ours(ip.dst) {
                    build::unreachable(cx, ip.dst, p, build::Unreachable::Protocol);
                }
            }
        }
    }

    fn ready(&mut self, at: Token, ready: Ready, cx: &mut Cx) {
        match at.who {
            Who::Port => cx.timers.rang(),
            Who::Tcp => self.tcp.ready(at, ready, cx),
            Who::Udp => self.udp.ready(at, ready, cx),
            Who::Icmp => self.icmp.ready(at, ready, cx),
            Who::Services => self.services.ready(at, ready, cx),
            Who::Passage => self.passage.ready(at, ready, cx),
            Who::Fragments => {}
        }
    }

    fn tick(&mut self, at: Token, cx: &mut Cx) {
        match at.who {
            Who::Port => {}
            Who::Tcp => self.tcp.tick(at, cx),
            Who::Udp => self.udp.tick(at, cx),
            Who::Icmp => self.icmp.tick(at, cx),
            Who::Services => self.services.tick(at, cx),
            Who::Passage => self.passage.tick(at, cx),
            Who::Fragments => self.fragments.tick(at, cx),
        }
    }
}

impl User {
    /// Serves what has become possible and whose time has come.
    fn pump(&mut self) -> io::Result<()> {
        self.cx.now = Instant::now();
        for _ in 0..ROUNDS {
            self.events.clear();
            let more = self.cx.poll.events(&mut self.events)?;
            for (at, ready) in self.events.drain(..) {
                self.rooms.ready(at, ready, &mut self.cx);
            }
            if !more {
                break;
            }
        }
        for _ in 0..TICKS {
            let Some(at) = self.cx.timers.next(self.cx.now) else { break };
            self.rooms.tick(at, &mut self.cx);
        }
        self.rooms.passage.go_on(&mut self.cx);
        Ok(())
    }
}

impl Port for User {
    fn traits(&self) -> Traits {
        Traits {
            // More than the MTU: some guests send super-frames where they were told of no such thing.
            max_frame: MAX_FRAME,
            takes: Offloads::ALL,
            gives: self.cx.gives,
            needs_memory: true,
            answers: true,
            ..Traits::default()
        }
    }

    fn watch(&self, w: &mut Watch) {
        w.add(self.cx.poll.fd(), Interest::Gives);
    }

    fn peer_takes(&mut self, o: Offloads) {
        // Super-frames in any case: what the peer does not take, the lane divides without copying, which is much cheaper than
        // to receive each segment by a call of its own.
        let tcp = bits::CSUM | bits::TSO4 | bits::TSO6;
        self.cx.gives = Offloads(o.and(Offloads::ALL).0 | tcp);
    }

    fn peer_up(&mut self, up: bool) {
        if up {
            self.rooms.services.link_up(&mut self.cx);
        }
    }

    fn recv(&mut self, b: &mut Batch) -> io::Result<()> {
        // Whoever was given frames asks at once whether that was all. What has come since then keeps the descriptor of our set
        // readable, and is found with it, or in the next round.
        let again = std::mem::take(&mut self.seen_to);
        if again {
            // What is given now counts its time from now.
            self.cx.now = Instant::now();
        } else {
            self.pump()?;
        }
        let (cx, bay) = (&mut self.cx, &mut self.bay);
        cx.out.give(bay, b, &cx.net, &mut cx.stats);
        if cx.out.is_empty() {
            self.rooms.icmp.give(bay, b, cx);
            if self.udp_first {
                self.rooms.udp.give(bay, b, cx);
                self.rooms.tcp.give(bay, b, cx);
            } else {
                self.rooms.tcp.give(bay, b, cx);
                self.rooms.udp.give(bay, b, cx);
            }
            self.udp_first = !self.udp_first;
        }
        // What can wait goes along with what goes, and last words with what was given before them.
        self.rooms.tcp.say_late(!b.is_empty(), cx);
        if !cx.out.is_empty() {
            cx.out.give(bay, b, &cx.net, &mut cx.stats);
        }
        // Only once what was given has gone, or if there is nothing.
        if again || b.is_empty() {
            self.rooms.tcp.pass_ends(cx);
        }
        self.seen_to = !again && !b.is_empty();
        cx.timers.arm(cx.now, self.rooms.tcp.owes_by())
    }

    fn send(&mut self, b: &Batch) -> io::Result<usize> {
        self.cx.now = Instant::now();
        self.rooms.tcp.pass_ends(&mut self.cx);
        for f in b.frames().iter().filter(|f| !f.dropped) {
            self.cx.stats.tx_frames += 1;
            self.cx.stats.tx_bytes += u64::from(f.len);
            let packet = Packet::of(f, b);
            if let Ok(p) = &packet
                && p.mac == self.cx.net.mac
                && let Some(from) = p.source()
            {
                self.rooms.services.make_way(from, &mut self.cx);
            }
            match packet {
                Ok(p) if p.to == self.cx.net.mac || p.to.is_multicast() => self.rooms.take(&p, &mut self.cx),
                // For somebody else on the guest's own side.
                Ok(_) => self.cx.stats.drop(Reason::Unknown),
                Err(why) => self.cx.stats.drop(why),
            }
        }
        self.rooms.tcp.flush(&mut self.cx);
        self.rooms.udp.flush(&mut self.cx);
        self.cx.timers.arm(self.cx.now, self.rooms.tcp.owes_by())?;
        Ok(b.frames().len())
    }

    fn arm_gives(&mut self) -> bool {
        let rooms = &self.rooms;
        !self.cx.out.is_empty()
            || rooms.tcp.has_ends()
            || rooms.tcp.has_more()
            || rooms.udp.has_more()
            || rooms.icmp.has_more()
            || rooms.passage.has_more()
    }

    fn tell(&mut self, what: Told, fds: Vec<OwnedFd>) -> io::Result<()> {
        let Told::User(what) = what;
        match what {
            Tell::Resolvers(list) => {
                self.cx.net.resolvers = list;
                self.rooms.services.resolvers_changed(&mut self.cx);
                Ok(())
            }
            Tell::Forwards(list) => self.forwards(&list, fds),
        }
    }

    fn stats(&self) -> Stats {
        let mut flows = self.rooms.tcp.flows().with(&self.rooms.passage.flows());
        flows.idle += self.cx.idle;
        Stats { flows: Some(flows), ..self.cx.stats }
    }

    fn stats_mut(&mut self) -> &mut Stats {
        &mut self.cx.stats
    }
}

impl User {
    /// Other forwards: all of them or, if the descriptors are not as many as are new or cannot be watched, none.
    fn forwards(&mut self, list: &[Forward], fds: Vec<OwnedFd>) -> io::Result<()> {
        let rooms = &self.rooms;
        let had =
            |id| rooms.tcp.has_forward(id) || rooms.udp.has_forward(id) || rooms.passage.has_forward(id);
        let new = |f: &Forward| !had(f.id);
        let wanted: u64 = list.iter().filter(|f| new(f)).map(|f| u64::from(f.sockets())).sum();
        if u64::try_from(fds.len()) != Ok(wanted) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut fds = fds.into_iter();
        let mut all = Vec::new();
        for f in list {
            if new(f) {
                all.extend(sockets(f, &mut fds).into_iter().map(|(f, fd)| (f, Some(fd))));
            } else {
                // Where it leads does not change.
                all.extend((0..f.sockets()).map(|n| (f.part(n, 0), None)));
            }
        }
        let (out, all): (Vec<_>, Vec<_>) = all.into_iter().partition(|(f, _)| f.way.is_out());
        let (datagrams, streams): (Vec<_>, Vec<_>) = all.into_iter().partition(|(f, _)| f.way == Way::Udp);
        self.rooms.passage.watch(&out, &mut self.cx)?;
        if let Err(e) = self.set_inward(streams, datagrams) {
            Passage::unwatch(&out, &mut self.cx);
            return Err(e);
        }
        self.rooms.passage.set_forwards(out, &mut self.cx);
        Ok(())
    }

    /// Those of them that lead into the guest.
    fn set_inward(&mut self, streams: Table, datagrams: Table) -> io::Result<()> {
        Tcp::<Stream>::watch_forwards(&streams, &mut self.cx)?;
        if let Err(e) = self.rooms.udp.set_forwards(datagrams, &mut self.cx) {
            Tcp::<Stream>::unwatch_forwards(&streams, &mut self.cx);
            return Err(e);
        }
        self.rooms.tcp.set_forwards(streams, &mut self.cx);
        Ok(())
    }
}

#[cfg(test)]
mod guest;
#[cfg(test)]
mod history;
#[cfg(test)]
mod tests;
