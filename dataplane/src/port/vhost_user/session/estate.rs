//! What a session leaves to the next dataplane, so that the front end never learns that one died.
//!
//! A batch is completed in order and within its turn, so a ring's position lies in guest memory ([`recover`]) and
//! everything else was said by the front end: the connection, its memory and the rings' descriptors are all that the
//! next dataplane needs. It is only whole between two messages; whoever keeps it is told when it is not.
//!
//! Trust: none in what was left: the dataplane that died may have been the guest's. Every piece is checked as if the
//! front end had sent it. Promise: what does not fit leaves no session, and the connection ends.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::super::Plan;
use super::super::feature::{self, FrontEnd};
use super::super::message::{Bad, RingFd};
use super::super::ring::{Ring, lock};
use super::{Session, Shared, back_channel, fit};
use crate::mem::guest::{GuestMemory, Layout, MAX_REGIONS, Region};
use crate::mem::split::RingAddr;
use crate::port::{Keep, Left};
use crate::virtq::recover;
use crate::virtq::terms::feature as f;

/// One piece; its descriptors travel beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Piece {
    /// The connection. Descriptors: its socket and, if there is one, the channel back.
    Session(Said),
    /// A memory region. Descriptor: its file.
    Region(Layout),
    /// A ring. Descriptors: kick, call and error, as far as there are.
    Ring {
        /// Its number.
        index: u16,
        /// What was said about it.
        ring: RingSaid,
    },
}

/// What was negotiated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    front: FrontEnd,
    acked: u64,
    protocol: u64,
    status: u64,
    wanted: u16,
    mtu: u16,
    link_up: bool,
}

/// What the front end said about a ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingSaid {
    num: u16,
    addr: Option<RingAddr>,
    /// Where a stopped ring is to go on. Where one that runs is, the guest's memory tells.
    base: u16,
    enabled: bool,
    broken: bool,
    runs: bool,
    /// Which descriptors there are: kick, call, error.
    fds: [bool; 3],
}

impl Session {
    /// Gives every piece to `keep`. False: a message is half read, so they are not the whole.
    ///
    /// # Errors
    /// `keep`'s.
    pub(in super::super) fn estate(&self, keep: &mut Keep<'_>) -> io::Result<bool> {
        let Some(front) = self.front else { return Ok(false) };
        let said = Said {
            front,
            acked: self.acked,
            protocol: self.protocol,
            status: self.status,
            wanted: self.wanted,
            mtu: self.shared.mtu.load(Ordering::Relaxed),
            link_up: self.link_up,
        };
        let fds: Vec<BorrowedFd<'_>> = [Some(self.sock.as_fd()), self.back_channel.as_ref().map(AsFd::as_fd)]
            .into_iter()
            .flatten()
            .collect();
        keep(Piece::Session(said), &fds)?;
        for r in &self.regions {
            keep(Piece::Region(r.layout()), &[r.file()])?;
        }
        for (index, i) in (0u16..).zip(0..self.shared.rings.len()) {
            let Some(r) = lock(&self.shared.rings, i).filter(|r| r.num != 0) else { continue };
            let all = [&r.kick, &r.call, &r.err];
            let ring = RingSaid {
                num: r.num,
                addr: r.addr,
                base: r.base,
                enabled: r.enabled,
                broken: r.broken,
                runs: r.engine.is_some(),
                fds: all.map(Option::is_some),
            };
            let fds: Vec<BorrowedFd<'_>> = all.into_iter().flatten().map(AsFd::as_fd).collect();
            keep(Piece::Ring { index, ring }, &fds)?;
        }
        Ok(self.reader.is_empty())
    }

    /// Goes on with what another dataplane left.
    ///
    /// # Errors
    /// It does not fit together, or not to the plan; the connection is closed.
    pub(in super::super) fn inherit(
        plan: &Plan,
        shared: &Arc<Shared>,
        link_up: bool,
        left: Left,
    ) -> io::Result<Self> {
        let bad = |b: Bad| io::Error::new(io::ErrorKind::InvalidData, b.0);
        let mut left = left.into_iter();
        let Some((Piece::Session(said), fds)) = left.next() else {
            return Err(bad(Bad("the first piece is not a session")));
        };
        let mut fds = fds.into_iter();
        let sock = fds.next().ok_or(bad(Bad("a session without a connection")))?;
        let mut s = Self::new(plan, shared.clone(), sock, said.link_up)?;
        if let Some(fd) = fds.next() {
            s.back_channel = Some(back_channel(Some(fd)).map_err(bad)?);
        }
        s.take_said(&said).map_err(bad)?;
        let mut rings = Vec::new();
        for (piece, mut fds) in left {
            match piece {
                Piece::Region(layout) if s.regions.len() < MAX_REGIONS => {
                    let file = fds.pop().ok_or(bad(Bad("a region without a file")))?;
                    s.regions.push(Region::map(layout, file)?);
                }
                Piece::Ring { index, ring } => rings.push((index, ring, fds)),
                _ => return Err(bad(Bad("one session and up to 64 regions are left"))),
            }
        }
        s.memory = Arc::new(GuestMemory::new(s.regions.clone())?);
        for (index, ring, fds) in rings {
            s.take_ring(index, &ring, fds).map_err(bad)?;
        }
        s.resettle(|_| {});
        s.set_link(link_up);
        Ok(s)
    }

    fn take_said(&mut self, said: &Said) -> Result<(), Bad> {
        if said.acked & !feature::offered(&self.plan, said.front) != 0
            || said.protocol & !feature::offered_protocol(&self.plan, said.front) != 0
        {
            return Err(Bad("features that were not offered"));
        }
        self.front = Some(said.front);
        (self.acked, self.protocol, self.status) = (said.acked, said.protocol, said.status);
        self.wanted = said.wanted.clamp(1, self.plan.queues);
        self.shared.mtu.store(said.mtu, Ordering::Relaxed);
        Ok(())
    }

    fn take_ring(&self, index: u16, said: &RingSaid, fds: Vec<OwnedFd>) -> Result<(), Bad> {
        let mut r = lock(&self.shared.rings, usize::from(index)).ok_or(Bad("no such ring"))?;
        let mut fds = fds.into_iter();
        let mut next = |is: bool, which| -> Result<Option<OwnedFd>, Bad> {
            let Some(fd) = fds.next().filter(|_| is) else { return Ok(None) };
            fit(&fd, which).map(|()| Some(fd))
        };
        let [kick, call, err] = said.fds;
        *r = Ring {
            num: said.num,
            addr: said.addr,
            base: said.base,
            kick: next(kick, RingFd::Kick)?,
            call: next(call, RingFd::Call)?,
            err: next(err, RingFd::Err)?,
            enabled: said.enabled,
            broken: said.broken,
            drains: said.runs && !said.enabled,
            ..Ring::default()
        };
        if let (true, Some(at)) = (said.runs, said.addr) {
            let packed = self.acked & f::RING_PACKED != 0;
            r.base = recover(&self.memory, said.num, at, packed).ok_or(Bad("a ring outside of memory"))?;
        }
        Ok(())
    }
}
