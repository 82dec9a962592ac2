//! What only the first queue's port has: the listening socket and the connection.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::Plan;
use super::session::{Session, Shared};
use crate::port::{Change, Left};
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
        Change { rewire: true, redial: !self.plan.server, link: None }
    }

    /// Takes the next front end that waits.
    pub(super) fn accept(&mut self, shared: &Arc<Shared>, stats: &mut Stats) -> Change {
        let Some(l) = self.listener.as_ref().filter(|_| self.session.is_none()) else {
            return Change::default();
        };
        let Ok(fd) = sys::io::accept(l.as_fd()) else { return Change::default() };
        if self.begin(fd, shared).is_err() {
            return Change::default();
        }
        self.count(stats);
        Change { rewire: true, ..Change::default() }
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
