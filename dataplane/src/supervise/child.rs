//! One dataplane process: started, told what it needs, listened to, ended.
//!
//! Trust: once it has read a guest's byte it is hostile. Promise: nothing here waits for it but [`Dataplane::end`]
//! and, before that byte, the hand-over of very many descriptors, and they not long; a message that it may not send, or too many of them, end it.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use netreeve_shared::channel::{self, Channel};
use netreeve_shared::codec::{self, Header};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::engine::KIND;
use crate::fault::{Exit, Fault};
use crate::handover::{FilterPlan, FromDataplane, Plan, ToDataplane};
use crate::supervise::capture::Capture;
use crate::supervise::filters::Chain;
use crate::supervise::overheard::Overheard;
use crate::supervise::say;
use crate::supervise::slots::Slots;
use crate::sys;

/// From its start to *ready*.
pub const READY_WITHIN: Duration = Duration::from_secs(10);
/// Messages in one second that a sane dataplane never reaches.
const TOO_MANY: u32 = 1000;
/// How long a process may take from closing its descriptors to its end.
const DYING: Duration = Duration::from_millis(100);
/// Messages that are answered before others get their turn.
const AT_ONCE: usize = 64;

/// Lines of standard error that are shown of one that was told to end.
const LAST_LINES: usize = 20;

/// Descriptors that a message may bring: a ring's kick, call and error.
const MOST_FDS: usize = 3;

/// A message, and the descriptors that a piece brings.
pub type Heard = (FromDataplane, Vec<OwnedFd>);

/// How a dataplane is started.
#[derive(Clone, Debug)]
pub struct Program {
    /// The `netreeve-dataplane` binary.
    pub path: PathBuf,
    /// User and group to run as; none: ours (the sandbox leaves root by itself).
    pub user: Option<(u32, u32)>,
}

/// A running dataplane.
#[derive(Debug)]
pub struct Dataplane {
    channel: Channel,
    /// None: this process itself is at the other end, as in the fuzz target.
    child: Option<Child>,
    /// When it was started.
    pub born: Instant,
    /// When it said *ready*.
    pub ready: Option<Instant>,
    /// What it said before it ended, if it said why.
    pub last_words: Option<String>,
    /// Its standard error. Not ours: it could write to our user's terminal or log whatever it likes.
    pub errors: Overheard,
    window: (Instant, u32),
}

impl Program {
    /// Starts one and hands over plan and descriptors.
    ///
    /// # Errors
    /// It cannot be started, or does not take what it is given.
    pub fn start(
        &self,
        plan: &Plan,
        slots: &mut Slots,
        captures: &mut [Capture],
        chain: &Chain,
    ) -> Result<Dataplane, Fault> {
        let mut command = Command::new(&self.path);
        command
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .current_dir("/");
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        sys::process::tie(&mut command, std::process::id());
        let (channel, child) = channel::spawn(command).map_err(|e| self.not_started(&e))?;
        let mut new = Dataplane::new(channel, Some(child)).map_err(|e| self.not_started(&e))?;
        match new.hand_over(plan, slots, captures, chain) {
            Ok(()) => Ok(new),
            // It is dead already: what it said and how it died is heard as with any other.
            Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                Ok(new)
            }
            Err(e) => {
                let why = format!("{e}; it {}", in_words(new.closed()));
                new.errors.rest().iter().for_each(|line| say::say(&in_its_words(line)));
                let fix = "see what it said above; netreeve doctor";
                Err(Fault::new(Exit::Unavailable, "handing over to the dataplane", why, fix))
            }
        }
    }

    fn not_started(&self, e: &io::Error) -> Fault {
        let path = self.path.display();
        let fix = match (e.kind(), self.user) {
            (io::ErrorKind::PermissionDenied, Some((uid, _))) => {
                format!("user {uid} must be allowed to run {path}: install it where everybody may read")
            }
            _ => "install netreeve-dataplane beside netreeve, or name it: --dataplane PATH".into(),
        };
        Fault::new(Exit::Unavailable, format!("starting the dataplane {path}"), e, fix)
    }
}

impl Dataplane {
    /// This process, at the other end of this channel.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn new(channel: Channel, mut child: Option<Child>) -> io::Result<Self> {
        let errors = Overheard::new(child.as_mut().and_then(|c| c.stderr.take()))?;
        let now = Instant::now();
        Ok(Self { channel, child, born: now, ready: None, last_words: None, errors, window: (now, 0) })
    }

    /// Hands over plan and descriptors.
    pub(super) fn hand_over(
        &mut self,
        plan: &Plan,
        slots: &mut Slots,
        captures: &mut [Capture],
        chain: &Chain,
    ) -> io::Result<()> {
        self.channel.set_nonblocking(true)?;
        self.tell(&ToDataplane::Plan(plan.clone()), &[])?;
        for (slot, s) in slots.iter_mut() {
            if let Some(user) = &mut s.user {
                user.renew_doors(&mut s.kept)?;
            }
            let fds: Vec<BorrowedFd<'_>> = s.kept.iter().chain(&s.fresh).map(AsFd::as_fd).collect();
            for some in fds.chunks(channel::MAX_FDS) {
                self.hand(&ToDataplane::Fds { slot }, some)?;
            }
            s.fresh = None;
            for (piece, fds) in s.estate.whole().into_iter().flatten() {
                let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
                self.hand(&ToDataplane::Inherit { slot, piece: piece.clone() }, &fds)?;
            }
        }
        for number in chain.order() {
            if let Some(step) = chain.step(number) {
                step.give(self, 0, None)?;
            } else if let Some(c) = captures.iter_mut().find(|c| c.number == number && c.is_wanted()) {
                self.capture(c, 0, None)?;
            }
        }
        self.hand(&ToDataplane::Begin, &[])
    }

    /// Sends a message of the hand-over; where more is on its way than fits, as soon as something of it was read.
    fn hand(&self, message: &ToDataplane, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            match self.tell(message, fds) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let left = (self.born + READY_WITHIN).saturating_duration_since(Instant::now());
                    let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
                    let mut channel = [PollFd::new(self.channel.as_fd(), PollFlags::POLLOUT)];
                    if poll(&mut channel, wait)? == 0 {
                        return Err(e);
                    }
                }
                done => return done,
            }
        }
    }

    /// Gives it a capture, with a spool of its own, before the filter of number `before`.
    ///
    /// # Errors
    /// No memory, or it is gone.
    pub fn capture(&self, c: &mut Capture, ask: u32, before: Option<u16>) -> io::Result<()> {
        let (memory, bell) = c.spool()?;
        let plan = FilterPlan::Capture(c.plan);
        let message = ToDataplane::Filter { ask, slot: c.slot, filter: c.number, before, plan };
        self.tell(&message, &[memory.as_fd(), bell.as_fd()])
    }

    /// Sends a message, without waiting for it to be read.
    ///
    /// # Errors
    /// It is gone, or has not read for long.
    pub fn tell(&self, message: &ToDataplane, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bad = |_| io::Error::from(io::ErrorKind::InvalidData);
        let count = u16::try_from(fds.len()).map_err(|_| io::ErrorKind::InvalidData)?;
        let bytes = codec::encode(Header { kind: KIND, sequence: 0, fds: count }, message).map_err(bad)?;
        self.channel.send(&bytes, fds)
    }

    /// What it has said since the last time, as far as one turn goes.
    ///
    /// # Errors
    /// It is gone (`UnexpectedEof`), or says what it may not.
    pub fn hear(&mut self, now: Instant) -> io::Result<Vec<Heard>> {
        let mut heard = Vec::new();
        let mut reset = false;
        while heard.len() < AT_ONCE {
            let message = match self.channel.recv(MOST_FDS, Some(Duration::ZERO)) {
                Ok(Some(m)) => m,
                // It died with something unread: said once, before what it had said itself (unix(7) does not tell).
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset && !reset => {
                    reset = true;
                    continue;
                }
                Ok(None) if heard.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock || !heard.is_empty() => break,
                Ok(None) => break,
                Err(e) => return Err(e),
            };
            heard.push(read(message)?);
        }
        // Pieces come only when asked for, and so many; who counts them is whoever asks.
        let free = heard.iter().filter(|h| !is_answer(&h.0)).count();
        self.count(free, now)?;
        Ok(heard)
    }

    fn count(&mut self, n: usize, now: Instant) -> io::Result<()> {
        if now.duration_since(self.window.0) > Duration::from_secs(1) {
            self.window = (now, 0);
        }
        self.window.1 = self.window.1.saturating_add(u32::try_from(n).unwrap_or(u32::MAX));
        if self.window.1 > TOO_MANY {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it sends messages without end"));
        }
        Ok(())
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// The descriptor to watch for being readable.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        match &mut self.child {
            Some(child) => child.try_wait().ok().flatten(),
            None => Some(ExitStatus::default()),
        }
    }

    /// Its end of the channel is closed: gives it a moment to be dead of itself, so that its own reason is known.
    pub fn closed(&mut self) -> Option<ExitStatus> {
        let until = Instant::now() + DYING;
        while Instant::now() < until {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        self.last_words = Some("closed its channel and went on".into());
        self.kill()
    }

    /// Ends it at once. How it ended: that may have been before.
    pub fn kill(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        // A child that is already dead is only waited for.
        let _sent = child.kill();
        child.wait().ok()
    }

    /// Lets it end in order, for at most `wait`.
    pub fn end(mut self, wait: Duration) {
        let until = Instant::now() + wait;
        if self.tell(&ToDataplane::Quit, &[]).is_ok() {
            while self.ended().is_none() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        self.kill();
        for line in self.errors.rest().iter().take(LAST_LINES) {
            say::say(&in_its_words(line));
        }
    }
}

/// What comes only when asked for, so often, and is refused else: a client that asks in a loop is no misdeed of the
/// dataplane's.
fn is_answer(m: &FromDataplane) -> bool {
    use FromDataplane::{Done, Piece, Refused, Stats, Worker};
    matches!(m, Piece { .. } | Worker { .. } | Stats { .. } | Done { .. } | Refused { .. })
}

fn read(m: channel::Message) -> io::Result<Heard> {
    let bad = |e| io::Error::new(io::ErrorKind::InvalidData, e);
    let header = codec::header(&m.bytes, m.fds.len()).map_err(bad)?;
    if header.kind != KIND {
        return Err(bad(codec::CodecError::Kind(header.kind)));
    }
    let message = codec::decode(&m.bytes).map_err(bad)?;
    if !matches!(message, FromDataplane::Piece { .. }) && !m.fds.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "descriptors where none belong"));
    }
    Ok((message, m.fds))
}

/// A line of a dataplane's standard error, for its user.
#[must_use]
pub fn in_its_words(line: &str) -> String {
    format!("the dataplane says: {line}")
}

/// How a process ended, in words.
#[must_use]
pub fn in_words(status: Option<ExitStatus>) -> String {
    match (status.and_then(|s| s.signal()), status.and_then(|s| s.code())) {
        (Some(libc::SIGSYS), _) => "made a system call that its sandbox forbids (SIGSYS)".into(),
        (Some(libc::SIGKILL), _) => "was killed (SIGKILL)".into(),
        (Some(n), _) => format!("died by signal {n}"),
        (_, Some(n)) => format!("exited with status {n}"),
        _ => "ended".into(),
    }
}
