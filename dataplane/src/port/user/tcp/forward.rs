//! Ways in and ways through: listening sockets whose connections go to the guest, and addresses of the guest's network
//! behind which something on the host answers.
//!
//! Trust: who connects from the host's side is asked about ([`super::super::policy`]), then is anybody. Promise: what
//! cannot be served now stays in the listening socket's queue.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use super::super::plan::{Forward, GuestForward, To, Way};
use super::super::poll::{Token, Want, Who};
use super::super::room::Cx;
use super::door::Door;
use super::segment::{Key, Segment};

/// Kind of a listening socket's tokens, and of a door's.
pub(super) const LISTENER: u8 = 1;
pub(super) const DOOR: u8 = 2;

/// A listening socket.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) forward: Forward,
    pub(super) fd: OwnedFd,
    /// A timer is set for it.
    waits: bool,
}

/// A guest forward and, if others make its connections, its door, and what came through it for whom.
#[derive(Debug)]
struct Guest {
    forward: GuestForward,
    door: Option<Door>,
    came: Option<(Key, OwnedFd)>,
}

/// What a guest forward leads to.
#[derive(Debug)]
pub(super) enum Leads {
    /// There is none at this address.
    Nowhere,
    /// To an address.
    To(SocketAddr),
    /// To this connection, which was made for it; of TCP's and perhaps still under way, or not.
    Through(OwnedFd, bool),
    /// To one that is asked for.
    Later,
    /// To one that cannot be asked for now.
    Crowded,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Forwards {
    listeners: BTreeMap<u32, Listener>,
    guests: Vec<Guest>,
    /// For whoever comes without a port.
    port: u16,
}

/// The token of a listening socket.
pub(super) fn token(id: u32) -> Token {
    Token { who: Who::Tcp, kind: LISTENER, index: id, generation: 0 }
}

impl Forwards {
    pub(super) fn new(
        listeners: Vec<(Forward, OwnedFd)>,
        guests: Vec<(GuestForward, Option<OwnedFd>)>,
        cx: &mut Cx,
    ) -> io::Result<Self> {
        let mut f = Self::default();
        for (index, (forward, fd)) in (0..).zip(guests) {
            let door = fd.map(Door::new).transpose()?;
            if let Some(door) = &door {
                let token = Token { who: Who::Tcp, kind: DOOR, index, generation: 0 };
                cx.poll.add(door.fd(), token, Want::READ)?;
            }
            f.guests.push(Guest { forward, door, came: None });
        }
        for (forward, fd) in listeners {
            cx.poll.add(fd.as_fd(), token(forward.id), Want::READ)?;
            f.listeners.insert(forward.id, Listener { forward, fd, waits: false });
        }
        Ok(f)
    }

    /// The numbers of those by which somebody can come from the host's side.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.listeners.keys().copied()
    }

    pub(super) fn has(&self, id: u32) -> bool {
        self.listeners.contains_key(&id)
    }

    pub(super) fn get(&self, id: u32) -> Option<&Listener> {
        self.listeners.get(&id)
    }

    /// A listening socket is to be looked at again then, or sooner: one timer does for all who come meanwhile.
    pub(super) fn later(&mut self, at: Token, when: Instant, cx: &mut Cx) {
        if self.listeners.get_mut(&at.index).is_some_and(|l| !std::mem::replace(&mut l.waits, true)) {
            cx.timers.at(when, at);
        }
    }

    /// That timer has come.
    pub(super) fn rang(&mut self, at: Token) {
        if let Some(l) = self.listeners.get_mut(&at.index) {
            l.waits = false;
        }
    }

    /// Watches those of another table that are new.
    ///
    /// # Errors
    /// The kernel's; then none of them is watched.
    pub(super) fn watch(list: &[(Forward, Option<OwnedFd>)], cx: &mut Cx) -> io::Result<()> {
        for (forward, fd) in list.iter().filter_map(|(f, fd)| Some((f, fd.as_ref()?))) {
            if let Err(e) = cx.poll.add(fd.as_fd(), token(forward.id), Want::READ) {
                Self::unwatch(list, cx);
                return Err(e);
            }
        }
        Ok(())
    }

    /// Watches them no more.
    pub(super) fn unwatch(list: &[(Forward, Option<OwnedFd>)], cx: &mut Cx) {
        for fd in list.iter().filter_map(|(_, fd)| fd.as_ref()) {
            // Those behind the one that failed were never watched.
            let _ = cx.poll.remove(fd.as_fd());
        }
    }

    /// This table from now on; those of it that are new are watched already.
    pub(super) fn replace(&mut self, list: Vec<(Forward, Option<OwnedFd>)>, cx: &mut Cx) {
        let kept: BTreeSet<u32> = list.iter().filter(|(_, fd)| fd.is_none()).map(|(f, _)| f.id).collect();
        self.listeners.retain(|id, l| {
            let stays = kept.contains(id);
            if !stays {
                // Whoever handed it has it open still, and events would go on.
                let _ = cx.poll.remove(l.fd.as_fd());
            }
            stays
        });
        let fresh = list
            .into_iter()
            .filter_map(|(forward, fd)| Some((forward.id, Listener { forward, fd: fd?, waits: false })));
        self.listeners.extend(fresh);
    }

    /// What the guest calls at an address of its network. A connection that others make is asked for; when it has come
    /// ([`Forwards::came`]), the same call leads to it.
    pub(super) fn called(&mut self, syn: &Segment, key: Key, now: Instant) -> Leads {
        let Some(g) = self.guests.iter_mut().find(|g| g.forward.at == key.far) else { return Leads::Nowhere };
        match (g.forward.to, &mut g.door) {
            (To::Address(a), _) => Leads::To(a),
            (To::Asked { tcp }, Some(door)) => match g.came.take_if(|(whose, _)| *whose == key) {
                Some((_, fd)) => Leads::Through(fd, tcp),
                None if door.ask(syn, key, now) => Leads::Later,
                None => Leads::Crowded,
            },
            (To::Asked { .. }, None) => Leads::Nowhere,
        }
    }

    /// What has come through a door: whose call it answers, and whether it does. None: nothing more now.
    pub(super) fn came(&mut self, index: u32) -> Option<(Key, Segment, io::Result<()>)> {
        let guest = usize::try_from(index).ok().and_then(|i| self.guests.get_mut(i))?;
        let (key, syn, made) = guest.door.as_mut()?.came()?;
        Some((key, syn, made.map(|fd| guest.came = Some((key, fd)))))
    }

    /// How the guest sees somebody who came to a listening socket.
    pub(super) fn seen_as(&mut self, f: &Forward, from: Option<SocketAddr>, cx: &Cx) -> Option<SocketAddr> {
        let known = from.filter(|_| f.way != Way::Unix).and_then(|a| cx.net.seen_as(a));
        if let Some(seen) = known.filter(|a| a.is_ipv4() == f.guest.is_ipv4()) {
            return Some(seen);
        }
        let port = from.map_or_else(|| self.port(), |a| a.port());
        Some(SocketAddr::new(cx.net.host(f.guest.ip())?, port))
    }

    /// A port that was not used for a long time.
    pub(super) fn port(&mut self) -> u16 {
        self.port = self.port.checked_add(1).unwrap_or(0).max(32768);
        self.port
    }
}
