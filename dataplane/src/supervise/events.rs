//! One turn of the supervisor's loop: wait, then signals, dataplane, links, connections, times.
#![forbid(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::fault::{Exit, Fault};
use crate::supervise::control::report::far_end;
use crate::supervise::datagram::Aim;
use crate::supervise::dial::Step;
use crate::supervise::doors::Door;
use crate::supervise::slot::Slot;
use crate::supervise::{Supervisor, child, command, link_watch, vde};

/// What has happened.
#[derive(Clone, Copy, Debug, Default)]
struct Woken {
    signal: bool,
    dataplane: bool,
    errors: bool,
    links: bool,
    control: bool,
}

impl Slot {
    /// A visitor has left, or `came`: the last word is what counts, and what nobody was told of is none any more.
    pub(super) fn visited(&mut self, left: bool, came: Option<OwnedFd>) {
        if left {
            (self.alone, self.fresh) = (true, None);
        }
        if came.is_some() {
            (self.alone, self.fresh) = (false, came);
        }
    }
}

impl Supervisor {
    /// Waits for something and deals with it.
    pub(super) fn turn(&mut self) -> Result<(), Fault> {
        self.start_if_due(Instant::now())?;
        let woken = self.wait()?;
        if woken.errors {
            self.overhear(Instant::now())?;
        }
        if woken.dataplane {
            self.listen(Instant::now())?;
        }
        if woken.signal {
            self.read_signals()?;
        }
        if woken.links {
            self.check_links();
        }
        let now = Instant::now();
        self.end_captures();
        if woken.control || self.control.as_ref().is_some_and(|c| c.due(now).is_some_and(|t| t <= now)) {
            self.serve_clients(now);
        }
        self.dial(now);
        self.follow_resolvers(now);
        self.serve_doors(now);
        self.follow_names(now);
        self.begin_awaited(now);
        self.serve_switches(now);
        self.ask_estates(now);
        self.check_deadline(now)
    }

    fn wait(&self) -> Result<Woken, Fault> {
        let mut fds = vec![PollFd::new(self.signals.fd(), PollFlags::POLLIN)];
        let mut add = |fd, flags| {
            fds.push(PollFd::new(fd, flags));
            fds.len() - 1
        };
        let dataplane = self.dataplane.as_ref().map(|d| add(d.fd(), PollFlags::POLLIN));
        let errors = self.dataplane.as_ref().and_then(|d| Some(add(d.errors.fd()?, PollFlags::POLLIN)));
        let links = self.links.as_ref().map(|l| add(l.fd(), PollFlags::POLLIN));
        self.captures.iter().for_each(|c| {
            add(c.fd(), PollFlags::POLLIN);
        });
        let control: Vec<usize> =
            self.control.iter().flat_map(|c| c.watch()).map(|(fd, flags)| add(fd, flags)).collect();
        for fd in self.slots.iter().filter_map(|(_, s)| s.dialler.as_ref()?.fd()) {
            add(fd, PollFlags::POLLOUT);
        }
        for fd in self.slots.iter().filter_map(|(_, s)| s.reception.as_ref()?.fd()) {
            add(fd, PollFlags::POLLIN);
        }
        for (fd, flags) in self.slots.iter().filter_map(|(_, s)| s.plug.as_ref()?.fd()) {
            add(fd, flags);
        }
        for fd in self.slots.iter().filter_map(|(_, s)| s.user.as_ref()?.resolvers.fd()) {
            add(fd, PollFlags::POLLIN);
        }
        for fd in self.doors().filter_map(Door::fd) {
            add(fd, PollFlags::POLLIN);
        }
        for asked in &self.sought {
            add(asked.sought.lookup.fd(), PollFlags::POLLIN);
        }
        for fd in self.switch_fds() {
            add(fd, PollFlags::POLLIN);
        }
        match poll(&mut fds, self.timeout()) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(Fault::new(Exit::General, "waiting for events", e, "")),
        }
        let ready = |n: usize| fds.get(n).and_then(PollFd::any).unwrap_or(false);
        Ok(Woken {
            signal: ready(0),
            dataplane: dataplane.is_some_and(ready),
            errors: errors.is_some_and(ready),
            links: links.is_some_and(ready),
            control: control.into_iter().any(ready),
        })
    }

    /// Until the next thing that happens by time alone.
    fn timeout(&self) -> PollTimeout {
        let now = Instant::now();
        let deadline =
            self.dataplane.as_ref().filter(|d| d.ready.is_none()).map(|d| d.born + child::READY_WITHIN);
        let dials = self.slots.iter().filter_map(|(_, s)| s.dialler.as_ref()?.due());
        let ready = self.dataplane.as_ref().is_some_and(|d| d.ready.is_some());
        let estates = self.slots.iter().filter_map(|(_, s)| s.estate.due()).filter(|_| ready);
        let aims = self.slots.iter().filter_map(|(_, s)| s.aim.as_ref()).map(Aim::due);
        let aims = aims.chain(self.slots.iter().filter_map(|(_, s)| s.reception.as_ref()?.due()));
        let aims = aims.chain(self.slots.iter().filter_map(|(_, s)| s.plug.as_ref()?.due()));
        let aims = aims.chain(self.slots.iter().filter_map(|(_, s)| s.user.as_ref()?.resolvers.due()));
        let aims = aims.chain(self.doors().filter_map(Door::due));
        let aims = aims.chain(self.switches_due());
        let clients = self.control.as_ref().and_then(|c| c.due(now)).into_iter().chain(self.counters_due());
        let times = dials.chain(aims).chain(deadline).chain(self.start_at).chain(estates).chain(clients);
        let Some(next) = times.min() else {
            return PollTimeout::NONE;
        };
        let left = next.saturating_duration_since(now);
        // Up to the next whole millisecond: a wait of zero would spin.
        let left = if left.is_zero() { left } else { left + std::time::Duration::from_micros(999) };
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    fn read_signals(&mut self) -> Result<(), Fault> {
        while let Some((signal, by_terminal)) = self.signals.next() {
            match signal {
                Signal::SIGCHLD => self.reap()?,
                Signal::SIGUSR1 => self.ask_counters(Instant::now()),
                signal => self.asked_to_end(signal, by_terminal),
            }
        }
        Ok(())
    }

    pub(super) fn asked_to_end(&mut self, signal: Signal, by_terminal: bool) {
        let again = std::mem::replace(&mut self.asked_to_stop, true);
        match &self.command {
            None => self.stop = Some(0),
            Some(c) if again => command::signal(c, Signal::SIGKILL),
            // The terminal told the command itself.
            Some(_) if by_terminal => {}
            Some(c) => command::signal(c, signal),
        }
    }

    fn reap(&mut self) -> Result<(), Fault> {
        if let Some(status) = self.command.as_mut().and_then(|c| c.try_wait().ok().flatten()) {
            self.command = None;
            self.stop = Some(command::code(status));
        }
        match self.dataplane.as_mut().and_then(child::Dataplane::ended) {
            Some(status) => self.died(Instant::now(), Some(status)),
            None => Ok(()),
        }
    }

    fn check_links(&mut self) {
        if let Some(links) = &self.links {
            links.drain();
        }
        let mut said = Vec::new();
        for (_, s) in self.slots.iter_mut().filter(|(_, s)| !s.gone) {
            let Some(link) = &s.link else { continue };
            if link.index.is_some_and(|i| !link_watch::is_here(i)) {
                s.gone = true;
                said.push((s.id.clone(), link.name.clone()));
            }
        }
        for (id, name) in said {
            let text = format!("port '{id}': its interface {name} is gone");
            self.voice.say(&text);
            self.voice.event(&serde_json::json!({ "event": "gone", "id": id, "ifname": name }));
            self.gone(&id, &text);
            self.end_if_nothing_is_left(&text);
        }
    }

    /// A slot's place in a switch.
    fn plug(&mut self, slot: u16, now: Instant) {
        // One for the dataplane that runs, one for those that come after it. A port that is being added comes with it.
        let runs = self.dataplane.is_some() && !self.changes.adds(slot);
        let Some(s) = self.slots.get_mut(slot) else { return };
        let said = match s.plug.as_mut().map(|p| p.step(now)) {
            None | Some(vde::Step::Pending) => return,
            Some(vde::Step::Plugged(socket)) => {
                s.fresh = if runs { socket.try_clone().ok() } else { None };
                s.kept = vec![socket];
                s.alone = false;
                return;
            }
            Some(vde::Step::Lost) => {
                (s.kept, s.fresh, s.alone) = (Vec::new(), None, true);
                s.gone |= s.plug.as_ref().is_none_or(|p| !p.persists());
                format!("port '{}': the switch is gone", s.id)
            }
            Some(vde::Step::Failed(e)) => {
                s.failed = Some(format!("plugging into the switch failed: {e}"));
                format!("port '{}': plugging in failed: {e}", s.id)
            }
        };
        self.voice.say_of_others(&said);
        self.end_if_nothing_is_left(&said);
    }

    /// Connections that come, go and are made.
    pub(super) fn dial(&mut self, now: Instant) {
        for (_, s) in self.slots.iter_mut() {
            if let Some(aim) = &mut s.aim {
                aim.step(now);
            }
            if let Some(reception) = &mut s.reception {
                let came = reception.step(now, &mut s.file);
                let left = reception.has_left();
                s.visited(left, came);
            }
            match s.dialler.as_mut().map(|d| d.step(now)) {
                Some(Step::Connected(fd)) => {
                    s.far = far_end(fd.as_raw_fd());
                    s.fresh = Some(fd);
                }
                Some(Step::Failed(e)) => {
                    let text = format!("port '{}': connecting failed: {e}", s.id);
                    s.failed = Some(format!("connecting failed: {e}"));
                    self.voice.say_of_others(&text);
                }
                Some(Step::Pending) | None => {}
            }
        }
        let plugs: Vec<u16> = self.slots.iter().filter_map(|(n, s)| s.plug.as_ref().map(|_| n)).collect();
        plugs.into_iter().for_each(|slot| self.plug(slot, now));
        self.hand_over_fresh();
    }
}
