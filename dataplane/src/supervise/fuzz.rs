//! A supervisor for the fuzz target, whose dataplane and clients are the target's. Built for tests, and with the feature
//! `fuzz`, only.
//!
//! Promise: what it does with what it hears is what `netreeve run` does; no program is started.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Instant;

use netreeve_shared::channel::Channel;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::ask::Door;
use super::child::{Dataplane, Program};
use super::control::Where;
use super::ready::Ready;
use super::{Options, Supervisor, open};
use crate::fault::{Exit, Fault};
use crate::handover::{Level, Plan, RunPlan};
use crate::spec::Config;

/// A supervisor.
#[derive(Debug)]
pub struct Rehearsal(Supervisor);

/// A descriptor's number, as if it was inherited.
///
/// # Errors
/// The kernel's.
pub fn handed(fd: OwnedFd) -> io::Result<i32> {
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(fd.into_raw_fd())
}

impl Rehearsal {
    /// One with these ports, to which ports of these types may come, and with a client.
    ///
    /// # Errors
    /// What could not be had.
    pub fn new(
        netdevs: &[String],
        devices: &[String],
        hotplug: &[&str],
        client: OwnedFd,
    ) -> Result<Self, Fault> {
        let config = Config::read(netdevs, devices, None)?;
        let client = handed(client).map_err(|e| Fault::new(Exit::General, "a client", e, ""))?;
        let run = RunPlan { at_least: Level::Full, sandbox_off: false, busy_poll_us: 0, workers: 0 };
        let options = Options {
            door: Door::Socket("/nonexistent/netreeve.sock".into()),
            program: Program { path: PathBuf::from("/nonexistent/netreeve-dataplane"), user: None },
            run,
            socket_mode: 0o600,
            ready: Ready::default(),
            hotplug: hotplug.iter().map(|t| (*t).to_owned()).collect(),
            control: Where { client: Some(client), ..Where::default() },
            stats: false,
            one_off: false,
            command: Vec::new(),
            after_ready: None,
        };
        open(config, options).map(Self)
    }

    /// Another client comes.
    pub fn greet(&mut self, client: OwnedFd, now: Instant) {
        if let Some(control) = &mut self.0.control {
            control.greet(client, now);
        }
    }

    /// It is time for a dataplane, or was.
    #[must_use]
    pub fn wants_dataplane(&self) -> bool {
        self.0.start_at.is_some() && self.0.dataplane.is_none()
    }

    /// Starts one, and hands over to it. Its end of the channel.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(&mut self) -> io::Result<Channel> {
        let s = &mut self.0;
        s.start_at = None;
        s.plan.ports = s.slots.plan();
        let (ours, theirs) = Channel::pair()?;
        theirs.set_nonblocking(true)?;
        let mut new = Dataplane::new(ours, None)?;
        new.hand_over(&s.plan, &mut s.slots, &mut s.captures, &s.chain)?;
        s.dataplane = Some(new);
        Ok(theirs)
    }

    /// One turn at that time. False: the run would end.
    pub fn turn(&mut self, now: Instant) -> bool {
        let s = &mut self.0;
        if s.listen(now).is_err() {
            return false;
        }
        s.serve_clients(now);
        s.dial(now);
        s.follow_resolvers(now);
        s.serve_doors(now);
        s.begin_awaited(now);
        s.ask_estates(now);
        s.check_deadline(now).is_ok() && s.stop.is_none() && s.over.is_none()
    }

    /// What another dataplane would be told to build.
    #[must_use]
    pub fn plan(&self) -> Plan {
        Plan { ports: self.0.slots.plan(), ..self.0.plan.clone() }
    }

    /// Slots whose connections another dataplane would go on with.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.0.slots.iter().filter(|(_, s)| s.estate.whole().is_some()).count()
    }

    /// A dataplane is there.
    #[must_use]
    pub fn has_dataplane(&self) -> bool {
        self.0.dataplane.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    use netreeve_shared::codec::{self, Header};

    use super::*;
    use crate::engine::KIND;
    use crate::handover::{FromDataplane, ToDataplane};

    fn client() -> (UnixStream, OwnedFd) {
        let (theirs, ours) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        ours.set_nonblocking(true).unwrap();
        (theirs, ours.into())
    }

    /// What it asks, and what it is told in one turn.
    fn ask(s: &mut Rehearsal, c: &mut UnixStream, text: &str) -> String {
        c.write_all(text.as_bytes()).unwrap();
        assert!(s.turn(Instant::now()));
        heard(c)
    }

    fn heard(c: &mut UnixStream) -> String {
        let mut all = Vec::new();
        let _would_block = c.read_to_end(&mut all);
        String::from_utf8(all).unwrap()
    }

    fn told(d: &Channel) -> VecDeque<ToDataplane> {
        let next = || d.recv(16, Some(Duration::ZERO)).ok().flatten();
        std::iter::from_fn(next).map(|m| codec::decode(&m.bytes).unwrap()).collect()
    }

    fn say(d: &Channel, m: &FromDataplane) {
        d.send(&codec::encode(Header { kind: KIND, sequence: 0, fds: 0 }, m).unwrap(), &[]).unwrap();
    }

    #[test]
    fn a_second_clients_change_of_the_same_port_waits_for_the_first() {
        let netdevs = ["hubport,id=n0,hubid=0", "hubport,id=n1,hubid=1"].map(str::to_owned);
        let device = "stream,id=d0,netdev=n0,server=on,addr.type=inet,addr.host=127.0.0.1,addr.port=0";
        let ((mut one, its), (mut other, others)) = (client(), client());
        let mut s = Rehearsal::new(&netdevs, &[device.to_owned()], &["hubport"], its).unwrap();
        s.greet(others, Instant::now());
        let d = s.start().unwrap();
        say(&d, &FromDataplane::Ready { level: Level::Full });
        for c in [&mut one, &mut other] {
            assert!(ask(&mut s, c, r#"{"execute":"qmp_capabilities"}"#).ends_with("{\"return\":{}}\r\n"));
        }
        told(&d);
        let del = r#"{"execute":"netdev_del","arguments":{"id":"n1"}}"#;
        assert_eq!(ask(&mut s, &mut one, del), "", "the dataplane has not done it");
        let Some(ToDataplane::Remove { ask: number, slot: 1 }) = told(&d).pop_front() else { panic!() };
        for (text, why) in [
            (r#"{"execute":"netreeve-set-netdev","arguments":{"device":"d0","netdev":"n1"}}"#, "in use"),
            (r#"{"execute":"set_link","arguments":{"name":"n1","up":false}}"#, "another change: try again"),
            (del, "another change: try again"),
        ] {
            let said = ask(&mut s, &mut other, text);
            assert!(said.contains(why), "{said}");
        }
        assert!(told(&d).is_empty());
        say(&d, &FromDataplane::Done { ask: number });
        assert!(s.turn(Instant::now()));
        assert_eq!(heard(&mut one), "{\"return\":{}}\r\n");
        // What is done of a link is nobody's that comes to its place.
        let link = r#"{"execute":"set_link","arguments":{"name":"n0","up":false}}"#;
        assert_eq!(ask(&mut s, &mut one, link), "");
        let said = ask(&mut s, &mut other, &del.replace("n1", "n0"));
        assert!(said.contains("another change"), "{said}");
        assert_eq!(s.plan().wires.len(), 1);
        assert!(s.has_dataplane() && !s.wants_dataplane() && s.kept() == 0);
    }
}
