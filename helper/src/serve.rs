//! The story of a request: hello, read, judge, provide, reply.
//!
//! Trust: every byte from a session is hostile; the policy is root's. Promise: nothing is provided that was not judged
//! in the same breath, by the policy as it stands now; every request is answered and logged exactly once; a session
//! that breaks the protocol ends, and with it all that only the session held.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use netreeve_shared::channel::{Channel, Message};
use netreeve_shared::codec::{self, Answer};
use netreeve_shared::grant::Grant;
use netreeve_shared::refusal::Refusal;
use netreeve_shared::request::Request;
use nix::unistd::alarm;

use crate::audit::{self, Log};
use crate::policy::{self, Caller, Decision, Policy, Quota};
use crate::policy_file::Source;
use crate::provide::{Limits, Provider, TICK};

/// A request that takes longer is refused, and what was made for it is undone.
const DEADLINE: Duration = Duration::from_secs(5);
/// A request that is still not done after this many seconds ends the process (`SIGALRM`): it hangs in the kernel. All
/// that it held goes with it.
const WATCHDOG: u32 = 12;
/// A session must ask for something within this time of its opening.
pub const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// AF_XDP grants of one session: each keeps descriptors open here, and theirs is the one resource that all share.
const MAX_TICKETS: u32 = 16;

/// What all sessions share.
#[derive(Debug)]
pub struct Desk {
    /// The policy.
    pub policy: Source,
    /// The log.
    pub log: Log,
}

/// One caller's session.
pub struct Session {
    /// Its connection.
    pub channel: Channel,
    /// Who it is; does not change.
    pub caller: Caller,
    /// What it holds.
    pub provider: Provider,
    /// When it opened.
    pub since: Instant,
    /// It has asked for something.
    pub asked: bool,
    /// AF_XDP grants so far.
    tickets: u32,
}

/// What else the user of a session is using, over all sessions.
pub struct Usage {
    /// Bytes of UMEM that the user's other sessions hold.
    pub umem_elsewhere: u64,
}

impl Session {
    /// Opens a session.
    #[must_use]
    pub fn new(channel: Channel, caller: Caller) -> Self {
        Self { channel, caller, provider: Provider::new(), since: Instant::now(), asked: false, tickets: 0 }
    }

    /// Reads what has come, waiting at most `wait`. None: the session has ended, or broke the rules of the channel
    /// (descriptors, too long a message).
    ///
    /// # Errors
    /// `WouldBlock`: nothing came.
    pub fn read(&self, wait: Option<Duration>) -> io::Result<Option<Message>> {
        match self.channel.recv(0, wait) {
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => Ok(None),
            other => other,
        }
    }
}

impl Desk {
    /// The caller's quota. A policy that cannot be read gives nothing.
    pub fn quota(&mut self, caller: &Caller) -> Quota {
        let log = &self.log;
        match self.policy.policy() {
            Ok(policy) => policy.quota(caller),
            Err(why) => {
                why.iter().for_each(|line| log.line(line));
                Quota { sessions: 0, requests: 0, taps: 0, umem: 0 }
            }
        }
    }

    /// Serves one message: judge, provide, reply. `allowed` says whether the user has requests left this second.
    /// False: the session is to be closed.
    pub fn serve(&mut self, session: &mut Session, message: &Message, usage: &Usage, allowed: bool) -> bool {
        session.asked = true;
        let (sequence, request) = match codec::read_request(&message.bytes) {
            Ok(read) => read,
            Err(why) => {
                let Caller { uid, pid, .. } = session.caller;
                self.log.line(&format!("refuse uid={uid} pid={pid} what=message why=\"{why}\""));
                let sequence = codec::header(&message.bytes, 0).map_or(0, |h| h.sequence);
                reply(&session.channel, sequence, &Answer::Refusal(Refusal::Protocol), &[]);
                return false;
            }
        };
        let start = Instant::now();
        alarm::set(WATCHDOG);
        let (rule, said) = if allowed {
            self.decide(session, &request, usage, start)
        } else {
            ("rate".to_owned(), Err(Refusal::Limit))
        };
        alarm::cancel();
        let shown = said.as_ref().map(|(grant, _)| grant).map_err(|refusal| *refusal);
        self.log.line(&audit::decision(&session.caller, &request, &rule, shown, start.elapsed()));
        match said {
            Ok((grant, fds)) => reply(&session.channel, sequence, &Answer::Grant(grant), &fds),
            Err(refusal) => {
                reply(&session.channel, sequence, &Answer::Refusal(refusal), &[])
                    && refusal != Refusal::Timeout
            }
        }
    }

    /// Judges, and provides if the judge says so. Gives the rule, for the log, and what to say.
    fn decide(
        &mut self,
        session: &mut Session,
        request: &Request,
        usage: &Usage,
        start: Instant,
    ) -> (String, Said) {
        if let Err(bad) = request.check() {
            return ("range".to_owned(), Err(Refusal::Bad(bad)));
        }
        let file = self.policy.path().display().to_string();
        let verdict = match self.policy.policy() {
            Ok(policy) => policy::judge(policy, &session.caller, request),
            Err(why) => {
                why.iter().for_each(|line| self.log.line(line));
                policy::judge(&Policy::default(), &session.caller, request)
            }
        };
        let rule = audit::rule(&file, verdict.why);
        if verdict.decision != Decision::Allow {
            return (rule, Err(Refusal::Denied));
        }
        let ticket = matches!(request, Request::Xsk(_) | Request::XskPinned(_));
        if ticket && session.tickets >= MAX_TICKETS {
            return (rule, Err(Refusal::Limit));
        }
        session.tickets += u32::from(ticket);
        let max_umem = verdict.max_umem.saturating_sub(usage.umem_elsewhere);
        let limits = Limits { max_taps: verdict.max_taps, max_umem };
        let said = session.provider.provide(request, session.caller.uid, &limits);
        if start.elapsed() > DEADLINE { (rule, Err(Refusal::Timeout)) } else { (rule, said) }
    }
}

type Said = Result<(Grant, Vec<OwnedFd>), Refusal>;

/// Sends an answer. False: the peer is gone or does not read; its session is to be closed.
fn reply(channel: &Channel, sequence: u32, answer: &Answer, fds: &[OwnedFd]) -> bool {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    codec::answer(sequence, answer).is_ok_and(|bytes| channel.send(&bytes, &fds).is_ok())
}

/// The exec'd helper's whole life: one session with whoever started it.
pub fn one_session(desk: &mut Desk, channel: Channel, caller: Caller) {
    let mut session = Session::new(channel, caller);
    let quota = desk.quota(&session.caller);
    let mut accounts = crate::accounts::Accounts::default();
    loop {
        session.provider.tick();
        let ticking = session.provider.wants_tick();
        let wait = if ticking { Some(TICK) } else { (!session.asked).then_some(FIRST_REQUEST) };
        let message = match session.read(wait) {
            Ok(Some(message)) => message,
            Err(_) if ticking => continue,
            _ => return,
        };
        let allowed = accounts.request(session.caller.uid, quota.requests, Instant::now());
        if !desk.serve(&mut session, &message, &Usage { umem_elsewhere: 0 }, allowed) {
            return;
        }
    }
}
