//! A front end's connection: what was negotiated, and how each request is served.
//!
//! Trust: none in the front end. Promise: no call waits; a request that cannot be served is refused if the front end
//! asked for an answer, and ends the connection otherwise; the end of a connection gives back memory, descriptors and
//! rings at once.
#![forbid(unsafe_code)]

pub(super) mod estate;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use nix::sys::socket::{Shutdown, shutdown};
use nix::unistd::write;

use super::Plan;
use super::control;
use super::feature::{self, FrontEnd, protocol};
use super::message::{Bad, Message, Read, Reader, Request, RingFd, notice, reply};
use super::ring::{Engine, Ring, Rings, Role, lock};
use crate::mem::guest::{GuestMemory, Layout, MAX_REGIONS, Region};
use crate::mem::split::MAX_SIZE;
use crate::stats::Stats;
use crate::sys::fd::{Kind, kind, set_nonblocking};
use crate::virtq::Terms;
use crate::virtq::terms::feature as f;

/// Most messages served for one event: the data path is waiting.
const MOST: usize = 64;
/// `VHOST_USER_BACKEND_CONFIG_CHANGE_MSG`.
const CONFIG_CHANGE: u32 = 2;

/// What the queues' ports share with the session, beside the rings.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) rings: Rings,
    /// Queue pairs in use.
    pub(super) pairs: AtomicU16,
    /// MTU in bytes as the front end or the plan said it, 0: not said.
    pub(super) mtu: AtomicU16,
    /// The connection, for whoever finds that it has to end.
    pub(super) conn: std::sync::Mutex<Option<Arc<OwnedFd>>>,
    /// A RARP frame from this address is to be sent.
    pub(super) rarp: std::sync::Mutex<Option<netreeve_shared::mac::Mac>>,
}

impl Shared {
    /// Ends the connection: its descriptor becomes readable, and the session sees the end.
    pub(super) fn hang_up(&self) {
        let conn = self.conn.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(c) = conn.as_ref() {
            let _ = shutdown(c.as_raw_fd(), Shutdown::Both);
        }
    }
}

/// A connection.
#[derive(Debug)]
pub(super) struct Session {
    plan: Plan,
    shared: Arc<Shared>,
    sock: Arc<OwnedFd>,
    reader: Reader,
    front: Option<FrontEnd>,
    acked: u64,
    protocol: u64,
    status: u64,
    /// Queue pairs that the driver asked for.
    wanted: u16,
    regions: Vec<Region>,
    memory: Arc<GuestMemory>,
    back_channel: Option<OwnedFd>,
    link_up: bool,
    /// Rings or descriptors changed.
    dirty: bool,
    /// Descriptors that were replaced. They are closed after the worker has looked at what is to be watched now, so
    /// that no number is used again before.
    old: Vec<OwnedFd>,
}

/// What a served request answers with.
enum Answer {
    /// Nothing, or the success that `REPLY_ACK` asks for.
    Done,
    /// A reply with this payload.
    Reply(Vec<u8>),
}

impl From<u64> for Answer {
    fn from(v: u64) -> Self {
        Self::Reply(v.to_ne_bytes().to_vec())
    }
}

type Outcome = Result<Answer, Bad>;

impl Session {
    /// Begins on a connected socket.
    pub(super) fn new(plan: &Plan, shared: Arc<Shared>, sock: OwnedFd, link_up: bool) -> io::Result<Self> {
        if kind(sock.as_fd())? != Kind::Socket {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a socket"));
        }
        set_nonblocking(sock.as_fd())?;
        let sock = Arc::new(sock);
        *shared.conn.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(sock.clone());
        let s = Self {
            plan: plan.clone(),
            shared,
            sock,
            reader: Reader::default(),
            front: None,
            acked: 0,
            protocol: 0,
            status: 0,
            wanted: 1,
            regions: Vec::new(),
            memory: Arc::default(),
            back_channel: None,
            link_up,
            dirty: false,
            old: Vec::new(),
        };
        s.reset_rings();
        Ok(s)
    }

    /// The connection's descriptor.
    pub(super) fn sock(&self) -> &OwnedFd {
        &self.sock
    }

    /// Something changed since the last call that the worker has to follow.
    pub(super) fn take_dirty(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }

    /// The ring's role under the features negotiated.
    fn role(&self, index: usize) -> Role {
        let pairs = usize::from(self.plan.queues);
        let control = if self.acked & f::MQ == 0 { 2 } else { 2 * pairs };
        if self.acked & f::CTRL_VQ != 0 && index == control {
            Role::Control
        } else if index >= 2 * pairs {
            Role::None
        } else if index.is_multiple_of(2) {
            Role::Receive
        } else {
            Role::Transmit
        }
    }

    /// The control queue's index.
    pub(super) fn control_ring(&self) -> Option<usize> {
        (0..self.shared.rings.len()).find(|&i| self.role(i) == Role::Control)
    }

    /// Reads and serves what is there. `Ok(false)`: the front end is gone.
    ///
    /// # Errors
    /// The connection is of no more use.
    pub(super) fn serve(&mut self) -> io::Result<bool> {
        self.old.clear();
        for _ in 0..MOST {
            match self.reader.read(self.sock.as_fd())? {
                Read::Message(m) => self.message(m)?,
                Read::Later => break,
                Read::End => return Ok(false),
            }
        }
        Ok(true)
    }

    fn message(&mut self, m: Message) -> io::Result<()> {
        let Message { number, need_reply, request, fds } = m;
        let known = !matches!(request, Ok(Request::Unknown(_)));
        let answer = request.and_then(|r| self.request(r, fds));
        // Looked at afterwards: User-Mode Linux wants an answer to the very message that acknowledges REPLY_ACK.
        let ack = need_reply && self.protocol & protocol::REPLY_ACK != 0;
        let payload = match answer {
            Ok(Answer::Reply(p)) => p,
            Ok(Answer::Done) if ack => 0u64.to_ne_bytes().to_vec(),
            Ok(Answer::Done) => return Ok(()),
            Err(_) if ack => 1u64.to_ne_bytes().to_vec(),
            // What we do not know and nobody waits for is passed over.
            Err(_) if !known => return Ok(()),
            Err(b) => return Err(io::Error::new(io::ErrorKind::InvalidData, b.0)),
        };
        self.put(&reply(number, &payload))
    }

    /// Sends a reply. A front end that leaves so many unread that the socket is full is given up.
    fn put(&self, bytes: &[u8]) -> io::Result<()> {
        match write(self.sock.as_fd(), bytes) {
            Ok(n) if n == bytes.len() => Ok(()),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(e) => Err(e.into()),
        }
    }

    fn request(&mut self, r: Request, mut fds: Vec<OwnedFd>) -> Outcome {
        let first_is_features = matches!(r, Request::GetFeatures);
        let front =
            *self.front.get_or_insert(if first_is_features { FrontEnd::Qemu } else { FrontEnd::Other });
        match r {
            Request::GetFeatures => return Ok(feature::offered(&self.plan, front).into()),
            Request::GetProtocolFeatures => return Ok(feature::offered_protocol(&self.plan, front).into()),
            // Some count rings, some pairs: this satisfies both.
            Request::GetQueueNum => return Ok((self.shared.rings.len() as u64).into()),
            Request::GetMaxMemSlots => return Ok((MAX_REGIONS as u64).into()),
            Request::GetStatus => return Ok(self.status.into()),
            Request::GetConfig { offset, size } => return Ok(self.config(offset, size)),
            Request::GetRingBase { index } => return self.stop_ring(index),
            Request::SetFeatures(bits) => self.set_features(bits, front)?,
            Request::SetProtocolFeatures(bits) => {
                if bits & !feature::offered_protocol(&self.plan, front) != 0 {
                    return Err(Bad("protocol features that were not offered"));
                }
                self.protocol = bits;
            }
            // The whole status word comes back, whatever it means: some front ends wait for their own bits.
            Request::SetStatus(s) => self.status = s,
            // A driver of version 1 has nothing to write in a network device's configuration space.
            Request::SetOwner | Request::SetLogFd | Request::SetConfig => {}
            Request::ResetOwner => self.stop_all(),
            Request::ResetDevice => self.reset_device(),
            Request::SetMemTable(list) => self.set_memory(&list, fds)?,
            Request::AddMemReg(l) => self.add_region(l, fds.pop())?,
            Request::RemMemReg(l) => self.remove_region(l)?,
            Request::SendRarp(mac) => {
                *self.shared.rarp.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(mac);
                // The worker tries all lanes after a change.
                self.dirty = true;
            }
            Request::SetMtu(mtu) => {
                let mtu = u16::try_from(mtu).ok().filter(|m| *m >= 68).ok_or(Bad("MTU out of range"))?;
                self.shared.mtu.store(mtu, Ordering::Relaxed);
                self.dirty = true;
            }
            Request::SetBackendFd => self.back_channel = Some(back_channel(fds.pop())?),
            r => self.ring_request(r, fds.pop())?,
        }
        Ok(Answer::Done)
    }

    fn ring_request(&mut self, r: Request, fd: Option<OwnedFd>) -> Result<(), Bad> {
        match r {
            Request::SetRingNum { index, num } => {
                let packed = self.acked & f::RING_PACKED != 0;
                let fits = |n: &u16| (1..=MAX_SIZE).contains(n) && (packed || n.is_power_of_two());
                let n = u16::try_from(num).ok().filter(fits);
                let n = n.ok_or(Bad("ring size is not a power of two up to 32768"))?;
                self.change(index, |r| r.num = n)
            }
            Request::SetRingAddr { index, at } => self.change(index, |r| r.addr = Some(at)),
            Request::SetRingBase { index, base } => {
                // Of a packed ring, the upper half says where completion is: the same place, for nothing is under way.
                let base = if self.acked & f::RING_PACKED == 0 { base } else { base & 0xffff };
                let base = u16::try_from(base).map_err(|_| Bad("ring base"))?;
                self.change(index, |r| {
                    r.base = base;
                    r.broken = false;
                })
            }
            Request::SetRingEnable { index, on } => self.change(index, |r| r.enable(on)),
            Request::SetRingFd { index, which, .. } => self.set_fd(index, which, fd),
            // Logging, in-flight buffers, postcopy, device state, IOTLB: not offered.
            _ => Err(Bad("request is not served")),
        }
    }

    /// Pauses a ring, changes it and starts it again if it is complete.
    fn change(&mut self, index: u32, what: impl FnOnce(&mut Ring)) -> Result<(), Bad> {
        let i = index as usize;
        let role = self.role(i);
        let terms = Terms::of(self.acked);
        let mut r = lock(&self.shared.rings, i).ok_or(Bad("no such ring"))?;
        let ran = r.engine.is_some();
        r.pause();
        what(&mut r);
        let runs = r.settle(role, &self.memory, &terms);
        drop(r);
        self.dirty |= ran || runs;
        self.count_pairs();
        Ok(())
    }

    fn set_fd(&mut self, index: u32, which: RingFd, fd: Option<OwnedFd>) -> Result<(), Bad> {
        if let Some(fd) = &fd {
            fit(fd, which)?;
        }
        let mut old = None;
        match which {
            RingFd::Kick => self.change(index, |r| old = std::mem::replace(&mut r.kick, fd))?,
            RingFd::Call | RingFd::Err => {
                let mut r = lock(&self.shared.rings, index as usize).ok_or(Bad("no such ring"))?;
                let place = if which == RingFd::Call { &mut r.call } else { &mut r.err };
                old = std::mem::replace(place, fd);
                // An interrupt that was meant for the old descriptor may be lost.
                if which == RingFd::Call && r.engine.is_some() {
                    r.interrupt(&mut Stats::default());
                }
            }
        }
        self.old.extend(old);
        Ok(())
    }

    /// Stops a ring and answers with the position where it is to go on.
    fn stop_ring(&mut self, index: u32) -> Outcome {
        let mut r = lock(&self.shared.rings, index as usize).ok_or(Bad("no such ring"))?;
        r.pause();
        self.old.extend(r.kick.take());
        (r.broken, r.drains) = (false, false);
        let mut p = index.to_ne_bytes().to_vec();
        let used = if self.acked & f::RING_PACKED == 0 { 0 } else { u32::from(r.base) << 16 };
        p.extend((u32::from(r.base) | used).to_ne_bytes());
        drop(r);
        self.dirty = true;
        self.count_pairs();
        Ok(Answer::Reply(p))
    }

    fn set_features(&mut self, bits: u64, front: FrontEnd) -> Result<(), Bad> {
        if bits & !feature::offered(&self.plan, front) != 0 {
            return Err(Bad("features that were not offered"));
        }
        if bits != self.acked {
            self.acked = bits;
            self.resettle(|r| {
                // Without protocol features there is no message that enables a ring.
                if bits & f::PROTOCOL == 0 {
                    r.enabled = true;
                }
            });
        }
        Ok(())
    }

    /// Pauses every ring, changes it, and starts those that are complete.
    fn resettle(&mut self, what: impl Fn(&mut Ring)) {
        let terms = Terms::of(self.acked);
        for i in 0..self.shared.rings.len() {
            let role = self.role(i);
            if let Some(mut r) = lock(&self.shared.rings, i) {
                r.pause();
                what(&mut r);
                r.settle(role, &self.memory, &terms);
            }
        }
        self.dirty = true;
        self.count_pairs();
    }

    fn set_memory(&mut self, list: &[Layout], fds: Vec<OwnedFd>) -> Result<(), Bad> {
        let regions: io::Result<Vec<_>> = list.iter().zip(fds).map(|(l, fd)| Region::map(*l, fd)).collect();
        self.use_memory(regions.map_err(|_| Bad("memory region cannot be mapped"))?)
    }

    fn add_region(&mut self, l: Layout, fd: Option<OwnedFd>) -> Result<(), Bad> {
        let fd = fd.ok_or(Bad("memory region without a descriptor"))?;
        if self.regions.len() >= MAX_REGIONS {
            return Err(Bad("no memory slot is free"));
        }
        let mut regions = self.regions.clone();
        regions.push(Region::map(l, fd).map_err(|_| Bad("memory region cannot be mapped"))?);
        self.use_memory(regions)
    }

    fn remove_region(&mut self, l: Layout) -> Result<(), Bad> {
        let same = |r: &Region| {
            let o = r.layout();
            (o.gpa, o.uva, o.len) == (l.gpa, l.uva, l.len)
        };
        if !self.regions.iter().any(same) {
            return Err(Bad("no such memory region"));
        }
        self.use_memory(self.regions.iter().filter(|r| !same(r)).cloned().collect())
    }

    fn use_memory(&mut self, regions: Vec<Region>) -> Result<(), Bad> {
        self.memory = Arc::new(GuestMemory::new(regions.clone()).map_err(|_| Bad("memory regions overlap"))?);
        self.regions = regions;
        self.resettle(|_| {});
        Ok(())
    }

    fn config(&self, offset: u32, size: u32) -> Answer {
        let mut p = Vec::new();
        for field in [offset, size, 0] {
            p.extend(field.to_ne_bytes());
        }
        p.extend(feature::config(&self.plan, self.link_up, offset, size));
        Answer::Reply(p)
    }

    fn stop_all(&mut self) {
        self.resettle(|r| r.enabled = false);
    }

    fn reset_device(&mut self) {
        self.stop_all();
        (self.acked, self.status, self.wanted) = (0, 0, 1);
        self.reset_rings();
    }

    /// Every ring as it was before the first message.
    fn reset_rings(&self) {
        for i in 0..self.shared.rings.len() {
            if let Some(mut r) = lock(&self.shared.rings, i) {
                *r = Ring::default();
            }
        }
        self.shared.pairs.store(0, Ordering::Relaxed);
    }

    /// Counts the pairs in use: the leading ones whose rings both run.
    fn count_pairs(&self) {
        let runs = |i: usize| lock(&self.shared.rings, i).is_some_and(|r| r.runs());
        let most = match self.control_ring() {
            Some(2) if self.plan.queues > 1 => 1,
            Some(_) => self.wanted,
            None => self.plan.queues,
        };
        let n = (0..most).take_while(|p| runs(2 * usize::from(*p)) && runs(2 * usize::from(*p) + 1)).count();
        self.shared.pairs.store(u16::try_from(n).unwrap_or(0), Ordering::Relaxed);
    }

    /// The control queue was kicked.
    pub(super) fn serve_control(&mut self) {
        let Some(i) = self.control_ring() else { return };
        let mut pairs = None;
        if let Some(mut r) = lock(&self.shared.rings, i) {
            if let Some(Engine::Control(dev)) = &mut r.engine {
                let s = control::serve(dev, self.plan.queues);
                pairs = s.pairs;
                if s.call {
                    r.interrupt(&mut Stats::default());
                }
            }
            r.check(&mut Stats::default());
        }
        if let Some(n) = pairs {
            self.wanted = n;
            self.count_pairs();
            self.dirty = true;
        }
    }

    /// Tells the front end that the link came up or went down, if it can be told.
    pub(super) fn set_link(&mut self, up: bool) {
        let changed = std::mem::replace(&mut self.link_up, up) != up;
        if let Some(c) =
            self.back_channel.as_ref().filter(|_| changed && self.protocol & protocol::CONFIG != 0)
        {
            // The front end may be busy or gone; it reads the status at its next start.
            let _ = write(c.as_fd(), &notice(CONFIG_CHANGE));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        *self.shared.conn.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        *self.shared.rarp.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        self.shared.mtu.store(self.plan.mtu.unwrap_or(0), Ordering::Relaxed);
        self.reset_rings();
    }
}

fn back_channel(fd: Option<OwnedFd>) -> Result<OwnedFd, Bad> {
    fd.filter(|fd| kind(fd.as_fd()).is_ok_and(|k| k == Kind::Socket) && set_nonblocking(fd.as_fd()).is_ok())
        .ok_or(Bad("not a socket"))
}

/// A ring's descriptor is of a kind that cannot hold us up, and is made not to block.
fn fit(fd: &OwnedFd, which: RingFd) -> Result<(), Bad> {
    let fits = match kind(fd.as_fd()) {
        Ok(Kind::Anonymous) => true,
        // User-Mode Linux is interrupted through a socket pair.
        Ok(Kind::Pipe | Kind::Socket) => which != RingFd::Kick,
        _ => false,
    };
    if fits && set_nonblocking(fd.as_fd()).is_ok() { Ok(()) } else { Err(Bad("not an eventfd")) }
}
