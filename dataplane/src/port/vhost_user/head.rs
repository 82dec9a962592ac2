//! What only the first queue's port has: the listening socket and the connection.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::Plan;
use super::session::{Session, Shared};
use crate::port::{Change, Left, not_accepted};
use crate::stats::{Reason, Stats};
use crate::sys;

/// What only the first queue's port has.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) plan: Plan,
    pub(super) listener: Option<OwnedFd>,
    pub(super) session: Option<Session>,
    pub(super) link_up: bool,
    /// As last reported.
    pub(super) was_up: bool,
    pub(super) connected_before: bool,
}

impl Head {
    pub(super) fn begin(&mut self, fd: OwnedFd, shared: &Arc<Shared>) -> io::Result<()> {
        self.session = None;
        self.session = Some(Session::new(&self.plan, shared.clone(), fd, self.link_up)?);
        Ok(())
    }

    /// Goes on with the session that another dataplane left.
    pub(super) fn inherit(&mut self, left: Left, shared: &Arc<Shared>) -> io::Result<()> {
        self.session = None;
        self.session = Some(Session::inherit(&self.plan, shared, self.link_up, left)?);
        self.connected_before = true;
        Ok(())
    }

    /// The connection is over.
    pub(super) fn end(&mut self) -> Change {
        self.session = None;
        Change { rewire: true, redial: !self.plan.server, ..Change::default() }
    }

    /// Takes the next front end that waits.
    pub(super) fn accept(&mut self, shared: &Arc<Shared>, stats: &mut Stats) -> io::Result<Change> {
        let Some(l) = self.listener.as_ref().filter(|_| self.session.is_none()) else {
            return Ok(Change::default());
        };
        let fd = match sys::io::accept(l.as_fd()) {
            Ok(fd) => fd,
            Err(e) => return not_accepted(e),
        };
        if self.begin(fd, shared).is_err() {
            return Ok(Change::default());
        }
        self.count(stats);
        Ok(Change { rewire: true, ..Change::default() })
    }

    pub(super) fn count(&mut self, stats: &mut Stats) {
        stats.reconnects += u64::from(self.connected_before);
        self.connected_before = true;
    }

    pub(super) fn serve(&mut self, stats: &mut Stats) -> Change {
        let Some(s) = &mut self.session else { return Change::default() };
        match s.serve() {
            Ok(true) => Change { rewire: s.take_dirty(), ..Change::default() },
            Ok(false) => self.end(),
            Err(_) => {
                stats.drop(Reason::Protocol);
                self.end()
            }
        }
    }

    pub(super) fn serve_control(&mut self) -> Change {
        let Some(s) = &mut self.session else { return Change::default() };
        s.serve_control();
        Change { rewire: s.take_dirty(), ..Change::default() }
    }
}
