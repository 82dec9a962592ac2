//! A dataplane's life as the supervisor sees it: start, *ready*, what it says, death, replacement.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use netreeve_shared::grant::Grant;
use netreeve_shared::request::Request;
use serde_json::json;

use crate::fault::{Exit, Fault};
use crate::handover::{FromDataplane, Level, ToDataplane};
use crate::supervise::ask::Asker;
use crate::supervise::back_off::Death;
use crate::supervise::capture::Capture;
use crate::supervise::counters::Taken;
use crate::supervise::ready::level_name;
use crate::supervise::say::{self, Voice};
use crate::supervise::slot::Slot;
use crate::supervise::user::Host;
use crate::supervise::{Supervisor, child, command};

/// How long the last counters may take.
const LAST_COUNTERS: Duration = Duration::from_millis(500);

impl Supervisor {
    /// Starts a dataplane if it is time to.
    pub(super) fn start_if_due(&mut self, now: Instant) -> Result<(), Fault> {
        if self.start_at.is_none_or(|t| t > now) {
            return Ok(());
        }
        self.start_at = None;
        self.plan.ports = self.slots.plan();
        match self.program.start(&self.plan, &mut self.slots, &mut self.captures, &self.chain) {
            Ok(new) => {
                self.slots.iter_mut().filter_map(|(_, s)| s.user.as_mut()).for_each(Host::begins);
                self.dataplane = Some(new);
                Ok(())
            }
            Err(e) if !self.live => Err(e),
            Err(e) => {
                say::fault(&e);
                self.replace(now, Death { served: None, killed: false }, e.why);
                Ok(())
            }
        }
    }

    /// Ends a dataplane that has not become ready in time.
    pub(super) fn check_deadline(&mut self, now: Instant) -> Result<(), Fault> {
        match &mut self.dataplane {
            Some(d) if d.ready.is_none() && now.duration_since(d.born) >= child::READY_WITHIN => {
                d.last_words = Some(format!("not ready within {} s", child::READY_WITHIN.as_secs()));
                let status = d.kill();
                self.died(now, status)
            }
            _ => Ok(()),
        }
    }

    /// The channel is readable.
    pub(super) fn listen(&mut self, now: Instant) -> Result<(), Fault> {
        let Some(d) = &mut self.dataplane else { return Ok(()) };
        let heard = match d.hear(now) {
            Ok(heard) => heard,
            Err(e) => {
                let status = if e.kind() == std::io::ErrorKind::UnexpectedEof {
                    d.closed()
                } else {
                    d.last_words = Some(format!("broke the protocol: {e}"));
                    d.kill()
                };
                return self.died(now, status);
            }
        };
        for (message, fds) in heard {
            if let Some(why) = self.heard(message, fds, now)? {
                let Some(d) = &mut self.dataplane else { return Ok(()) };
                d.last_words = Some(why);
                let status = d.kill();
                return self.died(now, status);
            }
        }
        Ok(())
    }

    /// Its standard error is readable.
    pub(super) fn overhear(&mut self, now: Instant) -> Result<(), Fault> {
        let Some(d) = &mut self.dataplane else { return Ok(()) };
        match d.errors.hear(now) {
            Ok(lines) => {
                lines.iter().for_each(|line| self.voice.say_of_others(&child::in_its_words(line)));
                Ok(())
            }
            Err(e) => {
                d.last_words = Some(format!("is ended: {e}"));
                let status = d.kill();
                self.died(now, status)
            }
        }
    }

    /// One message. What it gives is why this dataplane has to be replaced.
    fn heard(
        &mut self,
        message: FromDataplane,
        fds: Vec<OwnedFd>,
        now: Instant,
    ) -> Result<Option<String>, Fault> {
        let no_right = || Ok(Some("said what it may not say now".to_owned()));
        let Some(d) = &mut self.dataplane else { return Ok(None) };
        match message {
            FromDataplane::Ready { level } if d.ready.is_none() => {
                d.ready = Some(now);
                self.became_ready(level, now)?;
            }
            FromDataplane::Failed { slot, errno, why } if d.ready.is_none() => {
                let port = slot.and_then(|n| self.slots.get(n));
                let port = port.map(|s| format!("port '{}': ", s.id)).unwrap_or_default();
                // The dataplane's text often has the kernel's words already.
                let error = std::io::Error::from_raw_os_error(errno).to_string();
                let words = error.split(" (os error").next().unwrap_or_default();
                let more =
                    if errno == 0 || why.contains(words) { String::new() } else { format!(": {words}") };
                d.last_words = Some(format!("{port}{why}{more}"));
            }
            FromDataplane::Redial { slot } if d.ready.is_some() => {
                if self.redial(slot, now) {
                    return no_right();
                }
            }
            m @ (FromDataplane::Unsettled { .. }
            | FromDataplane::Piece { .. }
            | FromDataplane::Kept { .. }) => {
                if !self.keep(m, fds, now) {
                    return no_right();
                }
            }
            FromDataplane::Link { slot, up } if self.slots.get(slot).is_some() => self.link(slot, up),
            FromDataplane::FarEnd { slot, end } if self.slots.get(slot).is_some() => self.far_end(slot, end),
            FromDataplane::Dead { slot, errno } if self.slots.get(slot).is_some() => {
                return Ok(self.port_died(slot, errno));
            }
            FromDataplane::Worker { number, waits } => {
                if !self.counters.worker(number, waits) {
                    return no_right();
                }
            }
            FromDataplane::Stats { slot, stats, up } => {
                let slots: Vec<u16> = self.dataplane_slots().collect();
                match self.counters.take(slot, *stats, up, &slots) {
                    Taken::Last => self.counters_came(true, now),
                    Taken::More => {}
                    Taken::Unasked => return no_right(),
                }
            }
            FromDataplane::Done { ask } => {
                if !self.step_done(ask, now) {
                    return no_right();
                }
            }
            FromDataplane::Refused { ask, errno, why } => {
                if !self.step_refused(ask, errno, &why, now) {
                    return no_right();
                }
            }
            _ => return no_right(),
        }
        Ok(None)
    }

    fn became_ready(&mut self, level: Level, now: Instant) -> Result<(), Fault> {
        self.activate()?;
        self.level = Some(level);
        let pid = self.dataplane.as_ref().map_or(0, child::Dataplane::pid);
        if self.live {
            let ms = self.died_at.map_or(0, |t| now.duration_since(t).as_millis());
            self.restarted(pid, u64::try_from(ms).unwrap_or(u64::MAX));
            return Ok(());
        }
        self.live = true;
        if level == Level::Off {
            self.voice.say("warning: the dataplane is NOT in its sandbox (--sandbox off)");
        } else if level < Level::Full {
            self.voice.say(&format!("the dataplane's sandbox is '{}', not full", level_name(level)));
        }
        self.pid_file = self.ready.tell(&self.slots, level, pid)?;
        if let Some(let_go) = self.after_ready.take() {
            let_go();
        }
        if !self.words.is_empty() {
            let values: Vec<(String, String)> = self.slots.iter().filter_map(|(_, s)| path_of(s)).collect();
            let words: Vec<_> = self.words.iter().map(|w| command::fill(w, &values)).collect();
            self.command = Some(command::start(&words)?);
        }
        Ok(())
    }

    /// Rings are filled: the helper may let frames come.
    fn activate(&mut self) -> Result<(), Fault> {
        let Some(asker) = &mut self.asker else { return Ok(()) };
        for (_, slot) in self.slots.iter_mut() {
            activate(slot, asker, &mut self.voice)?;
        }
        // All is granted; the descriptors keep it.
        self.asker = None;
        Ok(())
    }

    /// AF_XDP: a port that came later is open; the helper may let its frames come.
    pub(super) fn let_come(&mut self, slot: u16, mut asker: Asker) -> Result<(), Fault> {
        let Some(s) = self.slots.get_mut(slot) else { return Ok(()) };
        activate(s, &mut asker, &mut self.voice)
    }

    /// True: this slot is not dialled.
    fn redial(&mut self, slot: u16, now: Instant) -> bool {
        let Some(s) = self.slots.get_mut(slot) else { return true };
        let Some(dialler) = &mut s.dialler else { return true };
        if dialler.due().is_none() {
            dialler.lost(now);
        }
        false
    }

    /// A port whose interface or socket is still there comes back with a new dataplane; any other is gone.
    fn port_died(&mut self, slot: u16, errno: i32) -> Option<String> {
        let s = self.slots.get_mut(slot)?;
        let text = format!("port '{}' died: {}", s.id, std::io::Error::from_raw_os_error(errno));
        let event = json!({ "event": "dead", "id": s.id, "errno": errno });
        self.voice.event(&event);
        if s.can_come_back() {
            return Some(format!("is replaced: {text}"));
        }
        s.gone = true;
        let id = s.id.clone();
        self.gone(&id, &text);
        self.voice.say_of_others(&text);
        self.end_if_nothing_is_left(&text);
        None
    }

    /// Some port is gone for good: with no wire left there is nothing to do.
    pub(super) fn end_if_nothing_is_left(&mut self, why: &str) {
        let gone = |n: u16| self.slots.get(n).is_none_or(|s| s.gone);
        if self.one_off && self.live && self.slots.iter().any(|(_, s)| s.device && s.gone) {
            // It was for once, and that is over.
            self.stop = Some(0);
            return;
        }
        // More may be added.
        if self.plan.later.is_empty()
            && self.over.is_none()
            && self.plan.wires.iter().all(|w| gone(w.netdev) || gone(w.device))
        {
            let fix = "bring the interface or the peer back and start netreeve again";
            self.over = Some(Fault::new(Exit::Unavailable, "no wire is left", why, fix));
        }
    }

    /// The dataplane is dead and waited for.
    pub(super) fn died(&mut self, now: Instant, status: Option<ExitStatus>) -> Result<(), Fault> {
        let Some(mut dead) = self.dataplane.take() else { return Ok(()) };
        for line in dead.errors.rest() {
            self.voice.say_of_others(&child::in_its_words(&line));
        }
        self.hear_the_rest(&mut dead, now);
        self.counters.forget();
        self.nobody_counts(now);
        self.changes_died(now);
        let words = dead.last_words.clone().unwrap_or_else(|| child::in_words(status));
        if !self.live {
            let fix =
                "netreeve doctor shows what this machine lacks; --sandbox landlock accepts a lower level";
            return Err(Fault::new(Exit::Unavailable, "the dataplane did not start", words, fix));
        }
        let served = dead.ready.map(|t| now.duration_since(t));
        let killed = status.and_then(|s| s.signal()) == Some(libc::SIGKILL) && dead.last_words.is_none();
        self.replace(now, Death { served, killed }, words);
        Ok(())
    }

    /// What it said last may still lie in the channel.
    fn hear_the_rest(&mut self, dead: &mut child::Dataplane, now: Instant) {
        let end = loop {
            match dead.hear(now) {
                Ok(heard) if heard.is_empty() => break None,
                Ok(heard) => {
                    for (message, fds) in heard {
                        match message {
                            FromDataplane::Failed { why, .. } if dead.last_words.is_none() => {
                                dead.last_words = Some(why);
                            }
                            m => {
                                self.keep(m, fds, now);
                            }
                        }
                    }
                }
                Err(e) => break Some(e.kind()),
            }
        };
        // What is kept must not be believed if something that was said against it may be unread.
        if end != Some(std::io::ErrorKind::UnexpectedEof) {
            self.slots.iter_mut().for_each(|(_, s)| s.estate.drop_all());
        }
    }

    /// What a dataplane says of its connections. False: it may not.
    fn keep(&mut self, message: FromDataplane, fds: Vec<OwnedFd>, now: Instant) -> bool {
        let (FromDataplane::Unsettled { slot }
        | FromDataplane::Piece { slot, .. }
        | FromDataplane::Kept { slot, .. }) = &message
        else {
            return true;
        };
        let Some(s) = self.slots.get_mut(*slot) else { return false };
        match message {
            FromDataplane::Piece { piece, .. } => s.estate.piece(piece, fds),
            FromDataplane::Kept { whole, .. } => s.estate.answered(whole, now),
            _ => {
                s.estate.unsettled(now);
                true
            }
        }
    }

    /// Asks for the state of connections that have become quiet.
    pub(super) fn ask_estates(&mut self, now: Instant) {
        let Some(d) = self.dataplane.as_ref().filter(|d| d.ready.is_some()) else { return };
        for (slot, s) in self.slots.iter_mut() {
            if s.estate.ask(now) && d.tell(&ToDataplane::Keep { slot }, &[]).is_err() {
                s.estate.not_asked(now);
            }
        }
    }

    /// Decides when the next one starts, if at all.
    fn replace(&mut self, now: Instant, how: Death, words: String) {
        self.died_at = Some(now);
        self.all_died();
        for (_, slot) in self.slots.iter_mut() {
            slot.orphaned(now);
        }
        let Some(wait) = self.back_off.died(now, how) else {
            let fix = "see the lines above; a report to netreeve's authors would help";
            self.over = Some(Fault::new(Exit::General, "the dataplane dies again and again", words, fix));
            return;
        };
        self.voice.say(&format!("the dataplane {words}; the next one starts in {} ms", wait.as_millis()));
        self.start_at = Some(now + wait);
        self.end_if_nothing_is_left("their connections died with the dataplane");
        if self.over.is_some() {
            self.start_at = None;
        }
    }

    /// Asks for the counters.
    pub(super) fn ask_counters(&mut self, now: Instant) {
        self.print_round = self.want_counters(now);
        if self.print_round.is_none() {
            self.voice.say("no counters: the dataplane is not running");
        }
    }

    pub(super) fn print_counters(&mut self) {
        for line in self.counters.lines(&self.slots) {
            self.voice.say(&line);
        }
        for c in &self.captures {
            self.voice.say(&c.name.line(&c.totals()));
        }
        let mut event = self.counters.json(&self.slots);
        if let (Some(event), false) = (event.as_object_mut(), self.captures.is_empty()) {
            event.insert("captures".into(), self.captures.iter().map(Capture::json).collect());
        }
        self.voice.event(&event);
    }

    /// Asks once more and waits a little.
    pub(super) fn last_counters(&mut self) {
        self.ask_counters(Instant::now());
        let until = Instant::now() + LAST_COUNTERS;
        while self.print_round.is_some() && self.dataplane.is_some() && Instant::now() < until {
            if self.listen(Instant::now()).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Hands over the connections that were made since the last turn, once there is somebody to take them.
    pub(super) fn hand_over_fresh(&mut self) {
        let Some(d) = self.dataplane.as_ref().filter(|d| d.ready.is_some()) else { return };
        for (slot, s) in self.slots.iter_mut() {
            // One that is being added takes its first connection with it.
            if self.changes.adds(slot) {
                continue;
            }
            // A new connection takes the place of one that is gone.
            if s.alone {
                s.alone = s.fresh.is_none() && d.tell(&ToDataplane::Alone { slot }, &[]).is_err();
            }
            let Some(fd) = s.fresh.take() else { continue };
            // One that does not read now is told in a later turn; a dead one's successor gets it at its start.
            if d.tell(&ToDataplane::Fds { slot }, &[fd.as_fd()]).is_err() {
                s.fresh = Some(fd);
            }
        }
    }
}

/// Asks the helper to attach what was granted, if it is AF_XDP and not attached yet.
fn activate(slot: &mut Slot, asker: &mut Asker, voice: &mut Voice) -> Result<(), Fault> {
    let Some(ticket) = slot.ticket else { return Ok(()) };
    let what = format!("port '{}'", slot.id);
    let (grant, fds) = asker.ask(&what, &Request::Activate(ticket))?;
    if let Grant::Active(active) = grant {
        voice.say(&format!("port '{}': XDP attached, mode {:?}", slot.id, active.mode));
    }
    slot.xdp = fds.into_iter().next();
    slot.ticket = None;
    Ok(())
}

/// `{id.path}` for the command after `--`.
fn path_of(slot: &Slot) -> Option<(String, String)> {
    let path = slot.file.as_ref()?.path().to_str()?.to_owned();
    Some((format!("{}.path", slot.id), path))
}
