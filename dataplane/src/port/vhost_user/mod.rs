//! Port `vhost-user`: a VMM attaches to us, we are the back end.
//!
//! Room by room: `message` (what the front end says), `session` (what it means), `ring` (one virtqueue's state),
//! `virtq` (how frames pass), and here: one port for each queue pair, the first of which owns the connection.
//!
//! Trust: none in the front end and none in the guest. Promise: nothing here waits for either; when the connection
//! ends, memory and descriptors are given back, and the port is down until the next one.
#![forbid(unsafe_code)]

mod control;
mod drain;
pub mod feature;
mod head;
mod kick;
pub mod message;
mod ring;
mod session;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use netreeve_shared::mac::Mac;
use serde::{Deserialize, Serialize};

use crate::frame::{Batch, Frame, MAX_SUPER, MIN_FRAME};
use crate::mem::{GuestMemory, sigbus};
use crate::port::{
    Change, FarEnd, Interest, Keep, Left, Offloads, OpenError, Port, Queues, Traits, Watch, offload_bits,
};
use crate::sandbox::call::{Call, Cond, NEVER_WAITS};
use crate::stats::{Reason, Stats};
use crate::sys;
use head::Head;
use ring::{Engine, Ring, lock};
use session::Shared;
pub use session::estate::{Piece, RingSaid, Said};

/// Most queue pairs.
pub const MAX_QUEUES: u16 = 128;

/// A ring of fewer entries does not surely hold a 64 KiB frame in buffers of a page at most while the driver, which
/// waits until half of them are used, lends no new ones: super-frames could wait for ever.
const SMALL_RING: u16 = 128;
/// What such a ring takes: checksums are no matter of size.
const PLAIN: Offloads = Offloads(offload_bits::CSUM);

/// A vhost-user device as the dataplane opens it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Queue pairs offered.
    pub queues: u16,
    /// The descriptor is a listening socket; else a connection that the supervisor dials.
    pub server: bool,
    /// Address in the device's configuration space, for front ends that ask us.
    pub mac: Option<Mac>,
    /// MTU in bytes (`VIRTIO_NET_F_MTU`).
    pub mtu: Option<u16>,
    /// Feature bits that are not offered, beside those that are not implemented.
    pub hide: u64,
}

/// What it calls once locked in.
pub const CALLS: &[Call] = &[
    // The front end: connections, messages with descriptors. (Replies are written.)
    Call::any(libc::SYS_accept4),
    Call::any(libc::SYS_recvmsg),
    Call::any(libc::SYS_shutdown),
    // Descriptors it sends: what are they, and never let them block.
    Call::any(libc::SYS_fstat),
    Call::any(libc::SYS_fstatfs),
    Call::only(libc::SYS_fcntl, &[Cond::is(1, libc::F_GETFL as u32)]),
    NEVER_WAITS,
    // Kicks and interrupts.
    Call::any(libc::SYS_read),
    Call::any(libc::SYS_write),
    // Guest memory.
    Call::only(libc::SYS_mmap, &[Cond::without(2, libc::PROT_EXEC as u64)]),
    Call::only(libc::SYS_madvise, &[Cond::is(2, libc::MADV_DONTDUMP as u32)]),
    Call::any(libc::SYS_munmap),
    // Memory that was cut short, and the default action for any other SIGBUS.
    Call::any(libc::SYS_rt_sigreturn),
    Call::only(libc::SYS_rt_sigaction, &[Cond::is(0, libc::SIGBUS as u32)]),
];

/// What opening one calls in addition, once locked in: nothing.
pub const OPENS: &[Call] = &[];

/// One queue pair of a vhost-user device.
#[derive(Debug)]
struct VhostUser {
    index: usize,
    shared: Arc<Shared>,
    head: Option<Head>,
    /// The memory that the turn's segments lie in: it stays mapped for the turn, whatever the session does.
    held: (Option<Arc<GuestMemory>>, Option<Arc<GuestMemory>>),
    hits: u32,
    rarp_given: bool,
    /// The address that the guest sent from last, if it is one.
    source: Option<Mac>,
    stats: Stats,
}

/// Opens a vhost-user device: a server on its listening socket, a client on its connection or, if that is yet to be
/// dialled, on nothing.
///
/// # Errors
/// The descriptor is not what the plan says.
pub fn open(plan: &Plan, fds: Vec<OwnedFd>) -> Result<Queues, OpenError> {
    let fail = |what| move |source: io::Error| OpenError { what, source: Some(source) };
    if plan.queues == 0 || plan.queues > MAX_QUEUES {
        return Err(OpenError { what: "a vhost-user device has 1 to 128 queue pairs", source: None });
    }
    let mut fds = fds.into_iter();
    let (fd, more) = (fds.next(), fds.next());
    if more.is_some() || (plan.server && fd.is_none()) {
        return Err(OpenError { what: "a vhost-user device needs one descriptor", source: None });
    }
    sigbus::install_now();
    let shared = Arc::new(Shared {
        rings: Arc::new((0..2 * usize::from(plan.queues) + 1).map(|_| Mutex::new(Ring::default())).collect()),
        pairs: AtomicU16::new(0),
        mtu: AtomicU16::new(plan.mtu.unwrap_or(0)),
        conn: Mutex::new(None),
        rarp: Mutex::new(None),
    });
    let mut head = Head {
        plan: plan.clone(),
        listener: None,
        session: None,
        link_up: true,
        was_up: false,
        connected_before: false,
    };
    match fd {
        Some(fd) if plan.server => {
            sys::fd::set_nonblocking(fd.as_fd()).map_err(fail("vhost-user: the listening socket"))?;
            head.listener = Some(fd);
        }
        Some(fd) => {
            head.begin(fd, &shared).map_err(fail("vhost-user: the connection"))?;
            head.connected_before = true;
        }
        None => {}
    }
    let mut head = Some(head);
    Ok((0..usize::from(plan.queues))
        .map(|index| -> Box<dyn Port> {
            Box::new(VhostUser {
                index,
                shared: shared.clone(),
                head: head.take(),
                held: (None, None),
                hits: sigbus::hits(),
                rarp_given: false,
                source: None,
                stats: Stats::default(),
            })
        })
        .collect())
}

impl VhostUser {
    /// The receive ring that this port fills: its own or, if the driver uses fewer pairs, another's.
    fn receive_ring(&self) -> usize {
        match usize::from(self.shared.pairs.load(Ordering::Relaxed)) {
            0 => 2 * self.index,
            n => 2 * (self.index % n),
        }
    }

    fn transmit_ring(&self) -> usize {
        2 * self.index + 1
    }

    /// Guest memory was cut short: the connection ends.
    #[cold]
    fn look_at_memory(&mut self) {
        self.hits = sigbus::hits();
        for i in [self.receive_ring(), self.transmit_ring()] {
            let broken = lock(&self.shared.rings, i).is_some_and(|mut r| {
                let broken = match &r.engine {
                    Some(Engine::Giver(g)) => g.device().memory().broken(),
                    Some(Engine::Taker(t)) => t.device().memory().broken(),
                    _ => false,
                };
                if broken {
                    r.engine = None;
                    r.broken = true;
                }
                broken
            });
            if broken {
                self.stats.drop(Reason::Protocol);
                self.shared.hang_up();
            }
        }
    }

    #[inline]
    fn check_memory(&mut self) {
        if sigbus::hits() != self.hits {
            self.look_at_memory();
        }
    }

    /// Gives a RARP frame, if one is to be sent: how switches learn where a migrated guest went.
    fn give_rarp(&mut self, b: &mut Batch) -> bool {
        if self.index != 0 {
            return false;
        }
        let rarp = *self.shared.rarp.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mac) = rarp else { return false };
        let Some(f) = b.push() else { return false };
        let frame = rarp_frame(mac);
        f.set_head(&frame);
        f.len = u32::try_from(frame.len()).unwrap_or(MIN_FRAME);
        self.rarp_given = true;
        true
    }

    /// Adds what has become of the link to a change.
    fn with_link(&mut self, mut c: Change) -> Change {
        let up = self.traits().up;
        if let Some(h) = &mut self.head
            && h.was_up != up
        {
            h.was_up = up;
            c.link = Some(up);
        }
        c
    }
}

/// Where a frame says that it comes from.
fn source(f: &Frame) -> Option<Mac> {
    let mac: [u8; 6] = *f.head().get(6..12)?.first_chunk()?;
    (mac[0] & 1 == 0 && mac != [0; 6]).then_some(Mac(mac))
}

/// A reverse ARP request of `mac` for its own address, broadcast (RFC 903), padded to the shortest frame.
fn rarp_frame(mac: Mac) -> Vec<u8> {
    let mut f = vec![0xff; 6];
    f.extend(mac.0);
    f.extend([0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    f.extend(mac.0);
    f.extend([0; 4]);
    f.extend(mac.0);
    f.resize(60, 0);
    f
}

impl Port for VhostUser {
    fn traits(&self) -> Traits {
        let of = |i: usize| lock(&self.shared.rings, i).map_or((None, false), |r| (Some(r.terms), r.runs()));
        let small = lock(&self.shared.rings, self.receive_ring()).is_some_and(|r| r.num < SMALL_RING);
        let (terms, receives) = of(self.receive_ring());
        let (own_terms, transmits) = of(self.transmit_ring());
        let pairs = usize::from(self.shared.pairs.load(Ordering::Relaxed));
        let queues = self.shared.rings.len() / 2;
        let mtu = self.shared.mtu.load(Ordering::Relaxed);
        Traits {
            min_frame: MIN_FRAME,
            max_frame: if mtu == 0 { MAX_SUPER } else { u32::from(mtu) + MIN_FRAME + 4 },
            takes: terms
                .map_or(Offloads::NONE, |t| if small && t.mergeable { t.takes.and(PLAIN) } else { t.takes }),
            gives: own_terms.map_or(Offloads::NONE, |t| t.gives),
            lends: receives && self.index < pairs,
            shared: self.index + pairs < queues,
            spare: pairs > 0 && self.index >= pairs,
            rewinds: true,
            up: receives && (transmits || self.index >= pairs) && pairs > 0,
            ..Traits::default()
        }
    }

    fn watch(&self, w: &mut Watch) {
        if let Some(h) = &self.head {
            match (&h.session, &h.listener) {
                (Some(s), _) => {
                    w.add(s.sock().as_raw_fd(), Interest::Control);
                    if let Some(k) = s
                        .control_ring()
                        .and_then(|i| lock(&self.shared.rings, i)?.kick.as_ref().map(AsRawFd::as_raw_fd))
                    {
                        w.add(k, Interest::Control);
                    }
                }
                (None, Some(l)) => w.add(l.as_raw_fd(), Interest::Control),
                (None, None) => {}
            }
        }
        for i in [2 * self.index, self.transmit_ring()] {
            let Some(r) = lock(&self.shared.rings, i) else { continue };
            let why = match &r.engine {
                Some(Engine::Taker(_)) => Interest::Room,
                Some(Engine::Giver(_)) => Interest::Gives,
                Some(Engine::Drain(_)) => Interest::Control,
                _ => continue,
            };
            if let Some(k) = &r.kick {
                w.add(k.as_raw_fd(), why);
            }
        }
    }

    fn lend(&mut self, b: &mut Batch) {
        let index = self.receive_ring();
        if index != 2 * self.index {
            return;
        }
        if let Some(mut r) = lock(&self.shared.rings, index) {
            let Ring { engine: Some(Engine::Taker(t)), terms, .. } = &mut *r else { return };
            t.lend(b, terms, &mut self.stats);
            self.held.0 = Some(t.device().memory().clone());
            r.check(&mut self.stats);
        }
    }

    fn recv(&mut self, b: &mut Batch) -> io::Result<()> {
        self.held.0 = None;
        if self.give_rarp(b) {
            return Ok(());
        }
        let index = self.transmit_ring();
        if let Some(mut r) = lock(&self.shared.rings, index) {
            let Ring { engine: Some(Engine::Giver(g)), terms, .. } = &mut *r else { return Ok(()) };
            let call = g.recv(b, terms, &mut self.stats);
            self.source = b.frames().first().and_then(source).or(self.source);
            self.held.1 = Some(g.device().memory().clone());
            if call {
                r.interrupt(&mut self.stats);
            }
            r.check(&mut self.stats);
        }
        self.check_memory();
        Ok(())
    }

    fn send(&mut self, b: &Batch) -> io::Result<usize> {
        let index = self.receive_ring();
        let shared = index != 2 * self.index;
        let all = b.len();
        let mut taken = None;
        if let Some(mut r) = lock(&self.shared.rings, index) {
            let Ring { engine, terms, .. } = &mut *r;
            if let Some(Engine::Taker(t)) = engine {
                // Its owner's turn is under way: its buffers are not ours to fill.
                let busy = shared && t.has_lent();
                let (n, call) = if busy { (0, false) } else { t.send(b, terms, &mut self.stats) };
                taken = Some(n);
                if call {
                    r.interrupt(&mut self.stats);
                }
                r.check(&mut self.stats);
            }
        }
        self.held.0 = None;
        self.check_memory();
        Ok(match taken {
            // Nobody would tell us when another pair's ring has room.
            Some(n) if shared && n < all => {
                self.stats.drop_n(Reason::Full, (all - n) as u64);
                all
            }
            Some(n) => n,
            None => {
                self.stats.drop_n(Reason::PeerDown, b.frames().iter().filter(|f| !f.dropped).count() as u64);
                all
            }
        })
    }

    fn release(&mut self, b: &Batch, taken: usize) {
        if std::mem::take(&mut self.rarp_given) {
            if taken > 0 {
                *self.shared.rarp.lock().unwrap_or_else(PoisonError::into_inner) = None;
                self.stats.rx_frames += 1;
                self.stats.rx_bytes += b.frames().first().map_or(0, |f| u64::from(f.len));
            }
            return;
        }
        let index = self.transmit_ring();
        if let Some(mut r) = lock(&self.shared.rings, index)
            && let Some(Engine::Giver(g)) = &mut r.engine
            && g.release(b, taken, &mut self.stats)
        {
            r.interrupt(&mut self.stats);
        }
        self.held.1 = None;
        self.check_memory();
    }

    fn announce(&mut self) {
        let said = self.head.as_ref().and_then(|h| h.plan.mac);
        if let Some(mac) = said.or(self.source).filter(|_| self.traits().up) {
            *self.shared.rarp.lock().unwrap_or_else(PoisonError::into_inner) = Some(mac);
        }
    }

    fn arm_gives(&mut self) -> bool {
        self.held = (None, None);
        if self.index == 0 && self.shared.rarp.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            return true;
        }
        let Some(mut r) = lock(&self.shared.rings, self.transmit_ring()) else { return false };
        match &mut r.engine {
            Some(Engine::Giver(g)) => g.arm(),
            _ => false,
        }
    }

    fn arm_takes(&mut self) -> bool {
        self.held = (None, None);
        let Some(mut r) = lock(&self.shared.rings, self.receive_ring()) else { return false };
        match &mut r.engine {
            Some(Engine::Taker(t)) => t.arm(),
            _ => false,
        }
    }

    fn event(&mut self, fd: RawFd, why: Interest) -> io::Result<Change> {
        self.held = (None, None);
        // Watched for whatever it was when its worker looked last.
        if let Some(change) = self.drained(fd) {
            return Ok(change);
        }
        let change = match why {
            Interest::Gives | Interest::Room | Interest::Takes | Interest::Gone => {
                Change { rewire: !self.kicked(fd), ..Change::default() }
            }
            Interest::Control => match self.drained(fd).or_else(|| self.control_kicked(fd)) {
                Some(c) => c,
                None => match &mut self.head {
                    Some(h) if h.session.is_some() => h.serve(&mut self.stats),
                    Some(h) => h.accept(&self.shared, &mut self.stats)?,
                    None => Change::default(),
                },
            },
        };
        Ok(self.with_link(change))
    }

    fn connect(&mut self, fd: OwnedFd) -> io::Result<Change> {
        let Some(head) = self.head.as_mut().filter(|h| !h.plan.server) else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        head.begin(fd, &self.shared)?;
        head.count(&mut self.stats);
        Ok(self.with_link(Change { rewire: true, ..Change::default() }))
    }

    fn far_end(&self) -> Option<FarEnd> {
        let session = &self.head.as_ref()?.session;
        Some(if session.is_some() { FarEnd::Somebody(None) } else { FarEnd::Nobody })
    }

    fn estate(&self, keep: &mut Keep<'_>) -> io::Result<bool> {
        match self.head.as_ref().and_then(|h| h.session.as_ref()) {
            Some(s) => s.estate(keep),
            None => Ok(false),
        }
    }

    fn inherit(&mut self, left: Left) -> io::Result<Change> {
        let Some(head) = &mut self.head else { return Err(io::ErrorKind::Unsupported.into()) };
        head.inherit(left, &self.shared)?;
        Ok(self.with_link(Change { rewire: true, ..Change::default() }))
    }

    fn peer_link(&mut self, up: bool) {
        if let Some(h) = &mut self.head {
            h.link_up = up;
            if let Some(s) = &mut h.session {
                s.set_link(up);
            }
        }
    }

    fn stats(&self) -> Stats {
        self.stats
    }

    fn stats_mut(&mut self) -> &mut Stats {
        &mut self.stats
    }
}

#[cfg(test)]
mod tests;
