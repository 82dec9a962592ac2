//! What came from the host's side, given to the guest: datagrams as frames, many of one length as one super-frame where
//! the guest takes those, and longer ones than its MTU in fragments.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::os::fd::AsFd;

use netreeve_shared::vnet::{self, Vnet};

use super::flow::{Flow, Kind, MANY, make_place};
use super::{ANSWERED, QUIET, Source, Udp};
use crate::frame::Batch;
use crate::mem::Seg;
use crate::port::offload_bits as bits;
use crate::port::user::build;
use crate::port::user::errors;
use crate::port::user::fragments::Whole;
use crate::port::user::inbox::Key;
use crate::port::user::packet::UDP;
use crate::port::user::policy::Proto;
use crate::port::user::room::Cx;
use crate::stats::Reason;

/// Ports beside his own under which somebody is shown whose own is another's already.
const TRIES: u16 = 64;
/// Sources that are read before frames of others are given.
const IN_TURN: usize = 64;

impl Udp {
    /// Gives frames as there is room.
    pub(super) fn give_waiting(&mut self, b: &mut Batch, cx: &mut Cx) {
        self.inbox.begin();
        for _ in 0..IN_TURN {
            while let Some((m, bytes)) = self.inbox.front() {
                let part = if m.segment() > 0 { part(&m.key, m.segment(), &bytes, cx) } else { bytes };
                let segment = if part.len() > m.segment().into() { m.segment() } else { 0 };
                if !self.frame(m.key, part, segment, b, cx) {
                    return;
                }
                self.inbox.went(part.len());
            }
            if !self.inbox.has_room() {
                return;
            }
            let Some(source) = self.ready.pop_front() else { return };
            let more = match source {
                Source::Flow(i) => self.read_flow(i, cx),
                Source::Listener(id) => self.read_listener(id, cx),
            };
            if more {
                self.ready.push_back(source);
            }
        }
    }

    /// Makes one frame, or the fragments of one datagram. False: there is no room.
    fn frame(&mut self, key: Key, bytes: Seg, segment: u16, b: &mut Batch, cx: &mut Cx) -> bool {
        if b.room() == 0 {
            return false;
        }
        let (from, to) = (key.far, key.guest);
        let len = bytes.len() + 8;
        let Some(mut head) = build::ip(&cx.net, from.ip(), to.ip(), UDP, len) else { return true };
        if cx.net.mac_of(to.ip()).is_none() {
            // Nobody knows where the guest is. Whoever wants to be heard will say it again.
            cx.stats.drop(Reason::Unreachable);
            if let Some(question) = build::question(&cx.net, head.as_ref()) {
                cx.push(Vnet::default(), &[&question]);
            }
            return true;
        }
        let whole = segment > 0 || head.len() as u64 + u64::from(len) <= u64::from(cx.net.mtu) + 14;
        let leaves_sum = whole && cx.gives.has(bits::CSUM);
        let udp = header(key, len, &bytes, leaves_sum);
        if !whole {
            self.id = self.id.wrapping_add(1);
            let way = (from.ip(), to.ip());
            let whole = Whole { way, proto: UDP, id: self.id, header: &udp, body: &[bytes] };
            return whole.cut(&cx.net, b, &mut cx.stats);
        }
        let at = build::transport_at(to.ip());
        head.push(&udp);
        let mut vnet = Vnet::default();
        if leaves_sum {
            (vnet.flags, vnet.csum_start, vnet.csum_offset) = (vnet::F_NEEDS_CSUM, at, 6);
        }
        if segment > 0 {
            (vnet.gso_type, vnet.gso_size, vnet.hdr_len) = (vnet::GSO_UDP_L4, segment, at + 8);
        }
        errors::push(b, &mut cx.stats, vnet, &head, bytes);
        true
    }

    /// Reads what has come for a flow. True: there may be more.
    fn read_flow(&mut self, index: u32, cx: &mut Cx) -> bool {
        let Some((key, flow)) = self.flows.get(index) else { return false };
        let Kind::Asks { fd } = &flow.kind else { return false };
        match self.inbox.recv(fd.as_fd(), flow.expect) {
            Ok((n, asked)) => {
                flow.queued = flow.came(n, asked);
                let more = flow.queued;
                self.flows.touch(index, cx.now, ANSWERED);
                for i in 0..n {
                    self.inbox.keep(i, key);
                }
                more
            }
            // An answer to something that was sent: there may be datagrams behind it.
            Err(e) if errors::reason(&e).is_some() => {
                self.tell_errors(index, cx);
                true
            }
            Err(_) => {
                cx.idle += u64::from(std::mem::take(&mut flow.fresh));
                flow.queued = false;
                false
            }
        }
    }

    /// Reads what has come to a forward. True: there may be more.
    fn read_listener(&mut self, id: u32, cx: &mut Cx) -> bool {
        let Some(l) = self.listeners.get_mut(&id) else { return false };
        let (guest, fresh) = (l.forward.guest, std::mem::take(&mut l.fresh));
        let (n, asked) = match self.inbox.recv(l.fd.as_fd(), MANY) {
            Ok(got) => got,
            Err(e) => {
                // Of an answer that was sent; there may be datagrams behind it.
                let more = errors::reason(&e).is_some();
                cx.idle += u64::from(fresh && !more);
                return more;
            }
        };
        for i in 0..n {
            let Some(peer) = self.inbox.got(i).and_then(|(_, from)| from) else { continue };
            let from = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            if !cx.may_enter(Proto::Udp, from) {
                cx.stats.drop(Reason::Denied);
                continue;
            }
            match self.answering((id, guest), peer, self.inbox.local(i), cx) {
                Some(key) => self.inbox.keep(i, key),
                None => cx.stats.drop(Reason::Quota),
            }
        }
        n >= asked
    }

    /// The flow of a forward's peer, made if there is none. One who calls at two of the host's addresses has two.
    fn answering(
        &mut self,
        (listener, guest): (u32, SocketAddr),
        peer: SocketAddr,
        local: Option<SocketAddr>,
        cx: &mut Cx,
    ) -> Option<Key> {
        let seen = cx.net.seen_as(peer).filter(|s| s.is_ipv4() == guest.is_ipv4());
        let seen = seen.or_else(|| Some(SocketAddr::new(cx.net.host(guest.ip())?, peer.port())))?;
        for i in 0..TRIES {
            let far = SocketAddr::new(seen.ip(), seen.port().wrapping_add(i).max(1));
            let key = Key { guest, far };
            let Some(index) = self.flows.find(&key) else {
                // Whoever comes from outside, from however many addresses, does not push out the guest's own flows.
                make_place(&mut self.flows, guest, cx);
                self.flows.insert(key, Flow::new(Kind::Answers { listener, peer, local }), cx.now, QUIET)?;
                self.tick_later(cx);
                return Some(key);
            };
            let (_, flow) = self.flows.get(index)?;
            if matches!(flow.kind, Kind::Answers { listener: l, peer: p, local: at } if (l, p, at) == (listener, peer, local))
            {
                let patience = if flow.answered { ANSWERED } else { QUIET };
                self.flows.touch(index, cx.now, patience);
                return Some(key);
            }
        }
        None
    }
}

/// As much of several datagrams as goes in one frame: all, if the guest takes them so, else one.
fn part(key: &Key, segment: u16, bytes: &Seg, cx: &Cx) -> Seg {
    let headers = if key.guest.is_ipv4() { 28 } else { 48 };
    let fits = u32::from(segment) + headers <= u32::from(cx.net.mtu);
    if fits && cx.gives.has(bits::CSUM | bits::USO) { *bytes } else { bytes.take(segment.into()) }
}

/// The header of a datagram of `len` bytes with this one. Its checksum is that of the pseudo-header alone if the rest is
/// left to the guest.
fn header(key: Key, len: u32, bytes: &Seg, leaves_sum: bool) -> [u8; 8] {
    let [s0, s1] = key.far.port().to_be_bytes();
    let [d0, d1] = key.guest.port().to_be_bytes();
    let [l0, l1] = u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
    let mut sum = build::pseudo(key.far.ip(), key.guest.ip(), UDP, len);
    let [c0, c1] = if leaves_sum {
        sum.partial()
    } else {
        sum.bytes(&[s0, s1, d0, d1, l0, l1, 0, 0]);
        sum.seg(bytes);
        sum.finish()
    };
    [s0, s1, d0, d1, l0, l1, c0, c1]
}
