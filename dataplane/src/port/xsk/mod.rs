//! Port `af-xdp`: AF_XDP sockets that the helper bound (before Linux 6.4: binds when they are open here), one [`Port`] each.
//!
//! Received frames are given where the kernel put them, in the UMEM, and sent frames are copied into it: one copy in
//! user space each way. There is no segmentation in AF_XDP and no checksum help that we use, so frames sent here are
//! plain; received ones may leave a checksum to be completed, and in skb mode segmentation too ([`partial`]).
//!
//! Trust: the kernel, and nobody else who holds the same socket or memory: every index, address and length is checked
//! before it is used, and what cannot be is an `Err`. Promise: killed at any moment and started again over the same
//! descriptors, nothing is leaked and received frames that were not taken come again ([`rx`], [`tx`]).
//!
//! `poll` on an AF_XDP socket says nothing when the device goes away, and little of room ([`Again`]); sending finds out. Whoever keeps the session
//! watches the device.
#![forbid(unsafe_code)]

pub mod partial;
mod rx;
mod shape;
mod tx;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use netreeve_shared::fdkind;
use netreeve_shared::grant::FdKind;
use serde::{Deserialize, Serialize};

use crate::frame::{Batch, Frame, MIN_FRAME};
use crate::mem::xring::{Ring, Umem, Which};
use crate::port::xsk::rx::Rx;
use crate::port::xsk::shape::Shape;
use crate::port::xsk::tx::{Put, Tx};
use crate::port::{Change, Interest, Offloads, OpenError, Port, Queues, Traits, Watch, offload_bits};
use crate::sandbox::call::{Call, Cond};
use crate::stats::{Reason, Stats};
use crate::sys::timer::Timer;
use crate::sys::xdp;

/// AF_XDP sockets as the dataplane opens them; the numbers are the grant's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Queues: two descriptors each, socket and UMEM memfd.
    pub queues: u16,
    /// MTU in bytes.
    pub mtu: u32,
    /// Entries of each ring.
    pub ring: u32,
    /// Bytes of a chunk.
    pub chunk: u32,
    /// Chunks of each queue's UMEM.
    pub chunks: u32,
    /// Bytes of headroom beside the kernel's 256.
    pub headroom: u32,
    /// Frames may span several chunks.
    pub multi_buffer: bool,
    /// Descriptors were used by an earlier dataplane that died: take over the rings as they stand.
    pub resume: bool,
    /// The sockets are bound only when they are activated (kernels before 6.4): until then nothing can be sent.
    pub late: bool,
}

/// What it calls once locked in: kicks without data or address, the timer of [`Again`], and the counters of loss.
pub const CALLS: &[Call] = &[
    Call::any(libc::SYS_read),
    // Relative, and without asking for the old setting.
    Call::only(libc::SYS_timerfd_settime, &[Cond::is(1, 0), Cond::null(3)]),
    // No address.
    Call::only(libc::SYS_sendto, &[Cond::null(4)]),
    Call::any(libc::SYS_recvmsg),
    // SOL_XDP and XDP_STATISTICS.
    Call::only(libc::SYS_getsockopt, &[Cond::is(1, 283), Cond::is(2, 7)]),
];

/// What opening one calls in addition, once locked in: what the descriptors are, where the rings lie, a timer.
pub const OPENS: &[Call] = &[
    Call::any(libc::SYS_fstat),
    Call::only(libc::SYS_fcntl, &[Cond::is(1, libc::F_GET_SEALS.cast_unsigned())]),
    Call::only(libc::SYS_getsockopt, &[Cond::is(1, libc::SOL_SOCKET.cast_unsigned())]),
    Call::only(
        libc::SYS_getsockopt,
        &[Cond::is(1, libc::SOL_XDP.cast_unsigned()), Cond::is(2, libc::XDP_MMAP_OFFSETS.cast_unsigned())],
    ),
    Call::only(
        libc::SYS_timerfd_create,
        &[
            Cond::is(0, libc::CLOCK_MONOTONIC.cast_unsigned()),
            Cond::is(1, (libc::TFD_NONBLOCK | libc::TFD_CLOEXEC).cast_unsigned()),
        ],
    ),
];

/// Bytes beyond the MTU: Ethernet header and one VLAN tag.
const ETHER: u32 = 18;

/// When to look again whether the kernel gave chunks back or takes what waits in the ring.
///
/// `poll` says that an AF_XDP socket can be written to as soon as its TX ring is half empty, whatever became of the
/// chunks (`xsk_tx_writeable`), and no wake-up tells of completions in zero-copy mode: a level-triggered wait for it
/// would spin as long as a NIC is stuck or paused with our frames, an edge-triggered one would never end. So a timer
/// asks, less and less often while nothing comes.
#[derive(Debug)]
struct Again {
    timer: Timer,
    wait: Duration,
    set: bool,
}

impl Again {
    /// The first wait: some hundred frames of a fast link, of the two thousand that a ring holds.
    const FIRST: Duration = Duration::from_micros(50);
    /// The longest: a hundred wake-ups a second for a device that is stuck.
    const LAST: Duration = Duration::from_millis(10);

    fn new() -> io::Result<Self> {
        Ok(Self { timer: Timer::new()?, wait: Self::FIRST, set: false })
    }

    /// Asks later, unless it is going to.
    fn ask(&mut self) -> io::Result<()> {
        if !self.set {
            self.timer.set(self.wait)?;
            self.wait = (self.wait * 2).min(Self::LAST);
            self.set = true;
        }
        Ok(())
    }

    fn over(&mut self) {
        self.timer.clear();
        self.set = false;
    }
}

/// One queue.
struct Xsk {
    fd: OwnedFd,
    again: Again,
    rx: Rx,
    tx: Tx,
    umem: Umem,
    mtu: u32,
    multi_buffer: bool,
    stats: Stats,
    /// The kernel's counters of loss when we came.
    lost_before: Lost,
}

/// Frames that the kernel lost before they came to us.
#[derive(Clone, Copy, Debug, Default)]
struct Lost {
    full: u64,
    oversize: u64,
    refused: u64,
}

/// Opens the queues of an AF_XDP grant: maps them and fills the fill rings. Only then may the sockets be put into the
/// map that receives.
///
/// # Errors
/// A descriptor is not what the plan says; or it was used before and the plan does not say so.
pub fn open(plan: &Plan, fds: Vec<OwnedFd>) -> Result<Queues, OpenError> {
    let bare = |what| OpenError { what, source: None };
    let shape = Shape::new(plan).ok_or(bare("rings and UMEM cannot have these sizes"))?;
    if plan.queues == 0 || fds.len() != usize::from(plan.queues) * 2 {
        return Err(bare("AF_XDP needs a socket and a UMEM for each queue"));
    }
    let mut queues = Queues::new();
    let mut fds = fds.into_iter();
    while let (Some(socket), Some(memory)) = (fds.next(), fds.next()) {
        let no_such = |what| move |e: fdkind::NotThat| OpenError { what, source: Some(e.why) };
        fdkind::attest(socket.as_fd(), FdKind::Xsk).map_err(no_such("a descriptor is no AF_XDP socket"))?;
        fdkind::attest(memory.as_fd(), FdKind::Umem).map_err(no_such("a descriptor is no sealed UMEM"))?;
        let opened = Xsk::open(plan, shape, socket, &memory);
        let (port, used) = opened.map_err(not_mapped)?;
        if used && !plan.resume {
            return Err(bare("an AF_XDP socket was used before"));
        }
        queues.push(Box::new(port));
    }
    Ok(queues)
}

/// Kernels before 6.4 map a socket's rings only until it is bound (`xsk_mmap`), and say that it is busy. The helper binds
/// later there, so this is a killed dataplane's successor.
fn not_mapped(e: io::Error) -> OpenError {
    let what = if e.raw_os_error() == Some(libc::EBUSY) {
        "cannot take over a dead dataplane's AF_XDP socket, which needs Linux 6.4 or newer: start netreeve again"
    } else {
        "cannot map an AF_XDP socket"
    };
    OpenError { what, source: Some(e) }
}

impl Xsk {
    /// What the kernel may have left undone on a frame of several pieces.
    const GIVES_LONG: u16 = offload_bits::CSUM | offload_bits::TSO4 | offload_bits::TSO6;

    fn open(plan: &Plan, shape: Shape, fd: OwnedFd, memory: &OwnedFd) -> io::Result<(Self, bool)> {
        let at = xdp::mmap_offsets(fd.as_fd())?;
        let umem = Umem::map(memory.as_fd(), u64::from(plan.chunk) * u64::from(plan.chunks))?;
        let done = Ring::map(fd.as_fd(), Which::Completion, &at, plan.ring)?;
        let (mut tx, sent) = Tx::open(Ring::map(fd.as_fd(), Which::Tx, &at, plan.ring)?, done, shape)?;
        tx.late = plan.late;
        let fill = Ring::map(fd.as_fd(), Which::Fill, &at, plan.ring)?;
        let (rx, received) =
            Rx::open(Ring::map(fd.as_fd(), Which::Rx, &at, plan.ring)?, fill, shape, plan.mtu)?;
        let lost_before = Lost::read(&fd, plan.multi_buffer);
        let port = Self {
            fd,
            again: Again::new()?,
            rx,
            tx,
            umem,
            mtu: plan.mtu,
            multi_buffer: plan.multi_buffer,
            stats: Stats::default(),
            lost_before,
        };
        Ok((port, sent || received))
    }

    /// Puts as many frames as there are chunks for; says how many.
    fn put(&mut self, frames: &[Frame], b: &Batch) -> usize {
        for (n, f) in frames.iter().enumerate() {
            if f.dropped {
                continue;
            }
            if f.len < MIN_FRAME {
                self.stats.drop(Reason::Runt);
                continue;
            }
            match self.tx.put(&self.umem, b, f) {
                Put::Done => {
                    self.again.wait = Again::FIRST;
                    self.stats.tx_frames += 1;
                    self.stats.tx_bytes += u64::from(f.len);
                }
                Put::Oversize => self.stats.drop(Reason::Oversize),
                Put::Full => return n,
            }
        }
        frames.len()
    }

    fn submit(&mut self) -> io::Result<()> {
        self.stats.kicks += u64::from(self.tx.submit(self.fd.as_fd())?);
        self.tx.reap()?;
        if self.tx.stalled { self.again.ask() } else { Ok(()) }
    }
}

impl Lost {
    /// What the kernel says. In copy mode a frame that finds too few chunks in the fill ring counts as dropped; so does
    /// one that is too long, which there is only where frames may not span chunks, and then the empty ring is counted
    /// beside.
    fn read(fd: &OwnedFd, multi_buffer: bool) -> Self {
        let Ok(s) = xdp::statistics(fd.as_fd()) else { return Self::default() };
        let full = if multi_buffer { s.rx_dropped } else { s.rx_fill_ring_empty_descs.min(s.rx_dropped) };
        Self {
            full: s.rx_ring_full.wrapping_add(full),
            oversize: s.rx_dropped - full,
            refused: s.rx_invalid_descs.wrapping_add(s.tx_invalid_descs),
        }
    }
}

impl Port for Xsk {
    fn traits(&self) -> Traits {
        Traits {
            max_frame: self.mtu.saturating_add(ETHER),
            takes: Offloads::NONE,
            gives: Offloads(if self.multi_buffer { Self::GIVES_LONG } else { offload_bits::CSUM }),
            rewinds: true,
            joinable: true,
            ..Traits::default()
        }
    }

    fn watch(&self, w: &mut Watch) {
        w.add(self.fd.as_raw_fd(), Interest::Gives);
        w.add(self.again.timer.fd(), Interest::Room);
    }

    fn recv(&mut self, b: &mut Batch) -> io::Result<()> {
        self.rx.recv(&self.umem, b, &mut self.stats)
    }

    fn send(&mut self, b: &Batch) -> io::Result<usize> {
        self.tx.reap()?;
        if self.tx.is_down {
            self.submit()?;
        }
        let frames = b.frames();
        let mut taken = 0;
        while !self.tx.is_down {
            let rest = frames.get(taken..).unwrap_or_default();
            let n = self.put(rest, b);
            taken += n;
            self.submit()?;
            if n == 0 || taken == frames.len() {
                break;
            }
        }
        if self.tx.is_down {
            let rest = frames.iter().skip(taken).filter(|f| !f.dropped);
            self.stats.drop_n(Reason::PeerDown, u64::try_from(rest.count()).unwrap_or(u64::MAX));
            taken = frames.len();
        }
        Ok(taken)
    }

    fn release(&mut self, b: &Batch, taken: usize) {
        for f in b.frames().iter().take(taken).filter(|f| !f.dropped) {
            self.stats.rx_frames += 1;
            self.stats.rx_bytes += u64::from(f.len);
        }
        if self.rx.release(b, taken) {
            self.stats.kicks += 1;
            // Only asks the driver to look; it finds out itself what it cannot do.
            let _ = xdp::kick_rx(self.fd.as_fd());
        }
    }

    fn arm_takes(&mut self) -> bool {
        let free = self.tx.free();
        // What cannot be reaped or timed is found out by sending.
        self.tx.reap().is_err() || self.tx.free() > free || self.again.ask().is_err()
    }

    fn event(&mut self, fd: RawFd, why: Interest) -> io::Result<Change> {
        if why == Interest::Room && fd == self.again.timer.fd() {
            self.again.over();
            self.submit()?;
        }
        Ok(Change::default())
    }

    fn stats(&self) -> Stats {
        let (now, before) = (Lost::read(&self.fd, self.multi_buffer), self.lost_before);
        let mut all = self.stats;
        all.drop_n(Reason::Full, now.full.saturating_sub(before.full));
        all.drop_n(Reason::Oversize, now.oversize.saturating_sub(before.oversize));
        all.drop_n(Reason::Refused, now.refused.saturating_sub(before.refused));
        all
    }

    fn stats_mut(&mut self) -> &mut Stats {
        &mut self.stats
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
