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

use crate::accounts::Accounts;
use crate::audit::{self, Log};
use crate::policy::{self, Caller, Decision, Policy, Why};
use crate::policy_file::Source;
use crate::provide::{Limits, Provider, TICK};

/// A request that takes longer is refused, and what was made for it is undone.
const DEADLINE: Duration = Duration::from_secs(5);
/// A request that is still not done after this many seconds ends the process (`SIGALRM`): it hangs in the kernel. All
/// that it held goes with it.
const WATCHDOG: u32 = 12;
/// A session must ask for something within this time of its opening.
pub const FIRST_REQUEST: Duration = Duration::from_secs(10);

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
}

impl Session {
    /// Opens a session.
    #[must_use]
    pub fn new(channel: Channel, caller: Caller) -> Self {
        Self { channel, caller, provider: Provider::new(), since: Instant::now(), asked: false }
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
    /// The policy as it stands now. One that cannot be read allows nothing: no session, no request.
    pub fn policy(&self) -> Policy {
        self.policy.policy().unwrap_or_else(|why| {
            why.iter().for_each(|line| self.log.line(line));
            Policy::closed()
        })
    }

    /// Serves one message: judge, provide, reply. False: the session is to be closed.
    pub fn serve(
        &self,
        session: &mut Session,
        message: &Message,
        accounts: &mut Accounts,
        umem_elsewhere: u64,
    ) -> bool {
        session.asked = true;
        let start = Instant::now();
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
        let policy = self.policy();
        let rate = policy.quota(&session.caller).requests;
        let (rule, said) = if accounts.request(session.caller.uid, rate, start) {
            alarm::set(WATCHDOG);
            let said = self.decide(&policy, session, &request, umem_elsewhere);
            alarm::cancel();
            if start.elapsed() > DEADLINE { (said.0, Err(Refusal::Timeout)) } else { said }
        } else {
            ("rate".to_owned(), Err(Refusal::Limit))
        };
        let shown = said.as_ref().map(|(grant, _)| grant).map_err(|refusal| *refusal);
        self.log.line(&audit::decision(&session.caller, &request, &rule, shown, start.elapsed()));
        match said {
            Ok((grant, fds)) => reply(&session.channel, sequence, &Answer::Grant(grant), &fds),
            // What was made too late may be held by the session: it ends.
            Err(no) => reply(&session.channel, sequence, &Answer::Refusal(no), &[]) && no != Refusal::Timeout,
        }
    }

    /// Judges, and provides if the judge says so. Gives the rule, for the log, and what to say.
    fn decide(
        &self,
        policy: &Policy,
        session: &mut Session,
        request: &Request,
        umem_elsewhere: u64,
    ) -> (String, Said) {
        let verdict = policy::judge(policy, &session.caller, request);
        let rule = audit::rule(&self.policy.path().display().to_string(), verdict.why);
        if let Why::Bad(bad) = verdict.why {
            return (rule, Err(Refusal::Bad(bad)));
        }
        if verdict.decision != Decision::Allow {
            return (rule, Err(Refusal::Denied));
        }
        let max_umem = verdict.max_umem.saturating_sub(umem_elsewhere);
        let limits = Limits { max_taps: verdict.max_taps, max_umem };
        (rule, session.provider.provide(request, session.caller.uid, &limits))
    }
}

type Said = Result<(Grant, Vec<OwnedFd>), Refusal>;

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
            Ok(Some(message)) if desk.serve(&mut session, &message, &mut accounts, 0) => {}
            Err(_) if ticking => {}
            _ => return,
        }
    }
}
