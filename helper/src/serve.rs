//! The story of a request: hello, read, judge, provide, reply.
//!
//! Trust: every byte from a session is hostile; the policy is root's. Promise: nothing is provided that was not judged
//! in the same breath, by the policy as it stands now; every request is answered and logged exactly once; a session
//! that breaks the protocol ends, and with it all that only the session held.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use netreeve_shared::channel::{Channel, Message};
use netreeve_shared::codec::{self, Answer};
use netreeve_shared::refusal::Refusal;
use netreeve_shared::request::Request;
use nix::unistd::alarm;

use crate::accounts::Accounts;
use crate::audit::{self, Log};
use crate::policy::{self, Caller, Policy, Quota, Why};
use crate::policy_file::{self, Trust};
use crate::provide::{Granted, Provider, TICK, amounts_to};

/// A request that is still not done after this many seconds ends the process (`SIGALRM`): it hangs in the kernel. All
/// that it held goes with it.
const WATCHDOG: u32 = 12;
/// A session must ask for something within this time of its opening.
pub const FIRST_REQUEST: Duration = Duration::from_secs(10);

/// What all sessions share.
#[derive(Debug)]
pub struct Desk {
    /// The policy's file, read anew for each judgement: what it says counts from the moment that it says so.
    pub policy: PathBuf,
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
    /// Bytes of UMEM that its user's other sessions hold.
    pub umem_elsewhere: u64,
}

impl Session {
    /// Opens a session.
    #[must_use]
    pub fn new(channel: Channel, caller: Caller) -> Self {
        let (provider, since) = (Provider::default(), Instant::now());
        Self { channel, caller, provider, since, asked: false, umem_elsewhere: 0 }
    }

    /// Reads what has come, waiting at most `wait`. None: the session has ended. A message that broke the rules of the
    /// channel (descriptors, too long) comes empty, which no codec takes.
    ///
    /// # Errors
    /// `WouldBlock`: nothing came.
    pub fn read(&self, wait: Option<Duration>) -> io::Result<Option<Message>> {
        match self.channel.recv(0, wait) {
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                Ok(Some(Message { bytes: vec![], fds: vec![] }))
            }
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => Ok(None),
            other => other,
        }
    }
}

impl Desk {
    /// The policy as it stands now, and what it lets `caller` use up. None: it cannot be read, and allows nothing.
    pub fn policy(&self, accounts: &mut Accounts, caller: &Caller) -> (Option<Policy>, Quota) {
        let read = policy_file::load(&self.policy, Trust::Root);
        let policy = read.map_err(|why| self.noise(accounts, caller, "policy", &why)).ok();
        let quota = policy.as_ref().map_or(policy::DEFAULT_QUOTA, |p| p.quota(caller));
        (policy, quota)
    }

    /// Logs a refusal that no judgement came before. Nobody can fill the log with those: see [`Accounts::noise`].
    pub fn noise(&self, accounts: &mut Accounts, caller: &Caller, what: &str, why: &str) {
        let Caller { uid, pid, .. } = caller;
        if let Some(unlogged) = accounts.noise(*uid, Instant::now()) {
            let line = format!("refuse uid={uid} pid={pid} what={what} why=\"{why}\" unlogged={unlogged}");
            self.log.line(&line);
        }
    }

    /// Serves one message: judge, provide, reply. False: the session is to be closed.
    pub fn serve(&self, session: &mut Session, message: &Message, accounts: &mut Accounts) -> bool {
        session.asked = true;
        let start = Instant::now();
        let refuse = |session: &Session, sequence, refusal| {
            reply(&session.channel, sequence, &Answer::Refusal(refusal), &[])
        };
        let (sequence, request) = match codec::read_request(&message.bytes) {
            Ok(read) => read,
            Err(why) => {
                self.noise(accounts, &session.caller, "message", &why.to_string());
                let sequence = codec::header(&message.bytes, 0).map_or(0, |h| h.sequence);
                refuse(session, sequence, Refusal::Protocol);
                return false;
            }
        };
        let (policy, quota) = self.policy(accounts, &session.caller);
        if !accounts.request(session.caller.uid, quota.requests, start) {
            self.noise(accounts, &session.caller, "request", "too many a second");
            return refuse(session, sequence, Refusal::Limit);
        }
        alarm::set(WATCHDOG);
        let (rule, said) = self.decide(policy.as_ref(), session, &request);
        alarm::cancel();
        let shown = said.as_ref().map(|(grant, _)| grant).map_err(|refusal| *refusal);
        self.log.line(&audit::decision(&session.caller, &request, &rule, shown, start.elapsed()));
        match said {
            Ok((grant, fds)) => reply(&session.channel, sequence, &Answer::Grant(grant), &fds),
            Err(refusal) => refuse(session, sequence, refusal),
        }
    }

    /// Judges, and provides if the judge says so. Gives the rule, for the log, and what to say.
    fn decide(&self, policy: Option<&Policy>, session: &mut Session, request: &Request) -> (String, Granted) {
        let Some(policy) = policy else { return ("unreadable".to_owned(), Err(Refusal::Denied)) };
        // A ticket is worth what its request is worth by now.
        let judged = match request {
            Request::Activate(ticket) => session.provider.asked(*ticket).map(Request::Xsk),
            other => Some(other.clone()),
        };
        let Some(judged) = judged else { return ("ticket".to_owned(), Err(Refusal::Ticket)) };
        let more = amounts_to(&judged);
        let verdict = policy::judge_both(policy, &session.caller, &judged, more.as_ref());
        let said = match verdict {
            Ok((_, mut quota)) => {
                quota.umem = quota.umem.saturating_sub(session.umem_elsewhere);
                session.provider.provide(request, session.caller.uid, &quota)
            }
            Err(Why::Bad(bad)) => Err(Refusal::Bad(bad)),
            Err(_) => Err(Refusal::Denied),
        };
        (audit::rule(&self.policy, verdict), said)
    }
}

/// Sends an answer. False: the peer is gone or does not read; its session is to be closed.
fn reply(channel: &Channel, sequence: u32, answer: &Answer, fds: &[OwnedFd]) -> bool {
    let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    codec::answer(sequence, answer).is_ok_and(|bytes| channel.send(&bytes, &fds).is_ok())
}

/// The exec'd helper's whole life: one session with whoever started it.
pub fn one_session(desk: &Desk, channel: Channel, caller: Caller) {
    let (mut session, mut accounts) = (Session::new(channel, caller), Accounts::default());
    loop {
        session.provider.tick();
        let ticking = session.provider.wants_tick();
        let wait = if ticking { Some(TICK) } else { (!session.asked).then_some(FIRST_REQUEST) };
        match session.read(wait) {
            Ok(Some(message)) if desk.serve(&mut session, &message, &mut accounts) => {}
            Err(_) if ticking => {}
            _ => return,
        }
    }
}
