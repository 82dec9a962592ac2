//! Echo requests of a guest's, by the kernel's ping sockets (`SOCK_DGRAM` of `IPPROTO_ICMP` and `IPPROTO_ICMPV6`, which
//! need no privilege where `net.ipv4.ping_group_range` has the user's group); our own addresses answer here.
//!
//! A flow is a guest's identifier and whom it asks. The kernel chooses another identifier for each socket, and the guest's
//! is put back into what comes. Where the kernel gives no such socket, the guest hears that it may not, and only our own
//! addresses answer.
//!
//! Trust: none in the guest, none in what answers. Promise: bounded in sockets and memory; nothing but echo requests goes
//! out, and nothing but echo replies and the network's errors comes of it.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use netreeve_shared::vnet::Vnet;

use super::build::{self, Unreachable};
use super::errors::{self, Carries, refuse};
use super::flows::{Flows, queue};
use super::fragments::Whole;
use super::inbox::{Inbox, Key};
use super::packet::{ICMP, ICMPV6, Ip, Packet, Part};
use super::plan::Plan;
use super::policy::{Proto, Verdict};
use super::poll::{Ready, Token, Want, Who};
use super::room::{Cx, Room};
use super::sockets::{Manner, Source, is_adrift, leave};
use crate::frame::Batch;
use crate::mem::Seg;
use crate::offload::sum::Sum;
use crate::port::user::bay::Bay;
use crate::stats::Reason;
use crate::sys::io::Gather;
use crate::sys::sock::{self, Opt, Speaks};

/// How long an identifier is kept that nobody uses.
const QUIET: Duration = Duration::from_secs(30);
/// Slots for what comes, and messages that are asked for at a time.
const SLOTS: u32 = 8;
const FEW: usize = 4;
/// Parts of a request: header, and payload in the guest's memory.
const PARTS: usize = 128;
/// Expired flows are looked for this often at most.
const STEP: Duration = Duration::from_secs(1);
/// What a token is about.
const FLOW: u8 = 0;
const EXPIRY: u8 = 1;

/// Who asks whom.
#[derive(Debug)]
struct Flow {
    fd: OwnedFd,
    queued: bool,
    /// It was said to have something, and was not read since.
    fresh: bool,
    source: Source,
    manner: Manner,
}

/// The room.
#[derive(Debug)]
pub struct Icmp {
    flows: Flows<Key, Flow>,
    inbox: Inbox,
    ready: VecDeque<u32>,
    ticking: bool,
    id: u32,
}

/// The kernel gives this process sockets for echo requests: IPv4, IPv6; or has none of the family for anybody.
#[must_use]
pub fn allowed() -> (bool, bool) {
    let may = |ipv6| match sock::new(Speaks::Ping, ipv6) {
        Ok(_) => true,
        Err(e) => e.raw_os_error() == Some(libc::EAFNOSUPPORT),
    };
    (may(false), may(true))
}

impl Icmp {
    /// Without flows.
    ///
    /// # Errors
    /// No addresses.
    pub fn new(_plan: &Plan, cx: &Cx) -> io::Result<Self> {
        Ok(Self {
            flows: Flows::new(cx.limits.pings),
            inbox: Inbox::new(SLOTS)?,
            ready: VecDeque::new(),
            ticking: false,
            id: 1,
        })
    }

    /// One of our own addresses answers.
    fn answer(&mut self, p: &Packet<'_>, ip: &Ip, key: Key, cx: &mut Cx) {
        let Some(mut to) = self.inbox.write(key, ip.len) else { return cx.stats.drop(Reason::Full) };
        p.parts(ip, 0, |part| {
            let n = match part {
                Part::Head(b) => u32::try_from(to.copy_in(b)).unwrap_or(u32::MAX),
                Part::Body(s) => to.copy_from(&s),
            };
            to = to.skip(n);
            true
        });
    }

    /// The flow of a request, made if there is none. None: it goes nowhere, which is counted and said.
    fn flow_of(&mut self, key: Key, p: &Packet<'_>, ip: &Ip, cx: &mut Cx) -> Option<u32> {
        if let Some(i) = self.flows.find(&key) {
            let (_, flow) = self.flows.get(i)?;
            if !flow.source.is_lost(flow.fd.as_fd(), cx.unbound(key.far), &cx.outbound, cx.now) {
                return Some(i);
            }
            // Whom it asks answers to where the host was. Another socket asks from where it is now.
            self.flows.remove(i);
        }
        let (at, verdict) = cx.route(Proto::Icmp, key.far);
        match verdict {
            Verdict::Pass => {}
            Verdict::Drop => {
                cx.stats.drop(Reason::Denied);
                return None;
            }
            Verdict::Refuse => {
                let nowhere = cx.net.route(key.far).is_none();
                refuse(cx, p, ip.dst, if nowhere { Unreachable::Host } else { Unreachable::Prohibited });
                return None;
            }
        }
        if self.flows.is_full() {
            let gone = self.flows.quietest().and_then(|i| self.flows.remove(i));
            cx.stats.evicted += u64::from(gone.is_some());
        }
        match self.dial(at, cx) {
            Ok(fd) => {
                let flow = Flow {
                    fd,
                    queued: false,
                    fresh: false,
                    source: Source::default(),
                    manner: Manner::default(),
                };
                self.flows.insert(key, flow, cx.now, QUIET)
            }
            Err(e) => {
                match errors::reason(&e) {
                    Some(why) => refuse(cx, p, ip.dst, why),
                    None => cx.stats.drop(Reason::Refused),
                }
                None
            }
        }
    }

    /// A socket that is connected and watched for the flow that comes next.
    fn dial(&mut self, at: SocketAddr, cx: &mut Cx) -> io::Result<OwnedFd> {
        let (index, generation) = self.flows.vacancy().ok_or(io::ErrorKind::OutOfMemory)?;
        errors::unmapped(at)?;
        let fd = sock::new(Speaks::Ping, at.is_ipv6())?;
        sock::set(fd.as_fd(), if at.is_ipv4() { Opt::RecvErr } else { Opt::RecvErr6 }, 1)?;
        leave(fd.as_fd(), at, &cx.outbound)?;
        sock::connect(fd.as_fd(), at)?;
        cx.poll.add(fd.as_fd(), Token { who: Who::Icmp, kind: FLOW, index, generation }, Want::READ)?;
        Ok(fd)
    }

    /// Sends a request. What the network has said of others before is told first; a socket that sends from where the host
    /// is no more leaves for another.
    fn send(&mut self, mut index: u32, key: Key, p: &Packet<'_>, ip: &Ip, cx: &mut Cx) {
        let mut request = [0; 8];
        p.copy(0, &mut request);
        let mut adrift = false;
        for _ in 0..=3 {
            let Some((_, flow)) = self.flows.get(index) else { return };
            flow.manner.follow(flow.fd.as_fd(), key.far.is_ipv4(), (ip.ttl, ip.len, is_whole(ip, cx)));
            let mut g = Gather::<PARTS>::new();
            if !g.private(&request) || !p.gather(8, &mut g) {
                return cx.stats.drop(Reason::Refused);
            }
            let Err(e) = g.sendmsg(flow.fd.as_fd(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) else { return };
            if errors::pass_on(cx, flow.fd.as_fd(), key, Carries::Echoes) {
                continue;
            }
            if is_adrift(&e) && !adrift {
                adrift = true;
                self.flows.remove(index);
                let Some(another) = self.flow_of(key, p, ip, cx) else { return };
                index = another;
                continue;
            }
            let mtu = errors::mtu(flow.fd.as_fd(), key.far.is_ipv4());
            match (e.raw_os_error(), mtu) {
                (Some(libc::EMSGSIZE), Some(mtu)) => refuse(cx, p, ip.dst, Unreachable::TooBig(mtu)),
                (Some(libc::EAGAIN | libc::ENOBUFS), _) => cx.stats.drop(Reason::Full),
                _ => match errors::reason(&e) {
                    Some(why) => refuse(cx, p, ip.dst, why),
                    None => cx.stats.drop(Reason::Refused),
                },
            }
            return;
        }
        cx.stats.drop(Reason::Unreachable);
    }

    fn tick_later(&mut self, cx: &mut Cx) {
        if !self.ticking
            && let Some(when) = self.flows.next_expiry()
        {
            cx.timers
                .at(when.max(cx.now + STEP), Token { who: Who::Icmp, kind: EXPIRY, index: 0, generation: 0 });
            self.ticking = true;
        }
    }

    /// Reads what has come for a flow. True: there may be more.
    fn read(&mut self, index: u32, cx: &mut Cx) -> bool {
        let Some((key, flow)) = self.flows.get(index) else { return false };
        match self.inbox.recv(flow.fd.as_fd(), FEW) {
            Ok((n, asked)) => {
                (flow.queued, flow.fresh) = (n >= asked, false);
                for i in 0..n {
                    self.inbox.keep(i, key);
                }
                n >= asked
            }
            Err(e) if errors::reason(&e).is_some() => {
                errors::pass_on(cx, flow.fd.as_fd(), key, Carries::Echoes);
                true
            }
            Err(_) => {
                cx.idle += u64::from(std::mem::take(&mut flow.fresh));
                flow.queued = false;
                false
            }
        }
    }

    /// Gives one reply, in fragments if it is longer than the guest's MTU. False: there is no room.
    fn frame(&mut self, key: Key, bytes: Seg, b: &mut Batch, cx: &mut Cx) -> bool {
        if b.room() == 0 {
            return false;
        }
        let (from, to) = (key.far.ip(), key.guest.ip());
        // Anything else is not for the guest.
        let Some([_, _, _, _, _, _, q0, q1]) = bytes.first::<8>() else { return true };
        let body = bytes.skip(8);
        let [i0, i1] = key.guest.port().to_be_bytes();
        let (kind, proto) = if to.is_ipv4() { (0, ICMP) } else { (129, ICMPV6) };
        let mut sum = if to.is_ipv4() { Sum::default() } else { build::pseudo(from, to, proto, bytes.len()) };
        sum.bytes(&[kind, 0, 0, 0, i0, i1, q0, q1]);
        sum.seg(&body);
        let [c0, c1] = sum.finish();
        let reply = [kind, 0, c0, c1, i0, i1, q0, q1];
        let Some(mut head) = build::ip(&cx.net, from, to, proto, bytes.len()) else { return true };
        if cx.net.mac_of(to).is_none() {
            cx.stats.drop(Reason::Unreachable);
            return true;
        }
        if head.len() as u64 + u64::from(bytes.len()) > u64::from(cx.net.mtu) + 14 {
            self.id = self.id.wrapping_add(1);
            let whole = Whole { way: (from, to), proto, id: self.id, header: &reply, body: &[body] };
            return whole.cut(&cx.net, b, &mut cx.stats);
        }
        head.push(&reply);
        errors::push(b, &mut cx.stats, Vnet::default(), &head, body);
        true
    }
}

/// The request must not be fragmented on its way: it was not on its way here either.
fn is_whole(ip: &Ip, cx: &Cx) -> bool {
    ip.whole && ip.len + 20 <= cx.net.mtu.into()
}

impl Room for Icmp {
    fn take(&mut self, p: &Packet<'_>, cx: &mut Cx) {
        let Some(ip) = &p.ip else { return };
        let mut header = [0; 8];
        if p.copy(0, &mut header) < header.len() {
            return cx.stats.drop(Reason::Malformed);
        }
        let [kind, code, _, _, i0, i1, ..] = header;
        let request = match ip.dst {
            IpAddr::V4(_) => (ip.proto, kind, code) == (ICMP, 8, 0),
            IpAddr::V6(_) => (ip.proto, kind, code) == (ICMPV6, 128, 0),
        };
        let from_nobody = ip.src.is_unspecified() || ip.src.is_multicast();
        if !request || from_nobody || errors::is_for_many(cx, ip.dst) {
            return cx.stats.drop(Reason::Unknown);
        }
        let key = Key {
            guest: SocketAddr::new(ip.src, u16::from_be_bytes([i0, i1])),
            far: SocketAddr::new(ip.dst, 0),
        };
        if cx.net.is_ours(ip.dst) {
            return self.answer(p, ip, key, cx);
        }
        if ip.ttl <= 1 {
            return refuse(cx, p, ip.dst, Unreachable::Expired);
        }
        let Some(index) = self.flow_of(key, p, ip, cx) else { return };
        self.flows.touch(index, cx.now, QUIET);
        self.send(index, key, p, ip, cx);
        self.tick_later(cx);
    }

    fn ready(&mut self, at: Token, ready: Ready, cx: &mut Cx) {
        let places = self.flows.places();
        let Some((key, flow)) = self.flows.named(at.index, at.generation).filter(|_| at.kind == FLOW) else {
            cx.idle += 1;
            return;
        };
        let told = ready.error && errors::pass_on(cx, flow.fd.as_fd(), key, Carries::Echoes);
        cx.idle += u64::from(!told && !ready.read);
        if ready.read && !flow.queued {
            (flow.queued, flow.fresh) = (true, !told);
            queue(&mut self.ready, at.index, places);
        }
    }

    fn tick(&mut self, at: Token, cx: &mut Cx) {
        if at.kind != EXPIRY {
            return;
        }
        self.ticking = false;
        while let Some(i) = self.flows.expired(cx.now) {
            self.flows.remove(i);
        }
        self.tick_later(cx);
    }

    fn give(&mut self, _bay: &mut Bay, b: &mut Batch, cx: &mut Cx) {
        self.inbox.begin();
        loop {
            while let Some((m, bytes)) = self.inbox.front() {
                if !self.frame(m.key, bytes, b, cx) {
                    return;
                }
                self.inbox.went(bytes.len());
            }
            if !self.inbox.has_room() {
                return;
            }
            let Some(index) = self.ready.pop_front() else { return };
            if self.read(index, cx) {
                self.ready.push_back(index);
            }
        }
    }

    fn has_more(&self) -> bool {
        !self.ready.is_empty() || !self.inbox.is_empty()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
