//! The thread of a capture: takes frames out of the spool, puts them into the file's format and writes them.
//!
//! It may wait for a disk or a reader for as long as those like; what comes meanwhile finds the spool full and is counted
//! by the dataplane. Frames of several queues are written in the order of their times, as far as they are here.
//!
//! Trust: the dataplane's spool is a stranger's (`mem::spool`): its bytes are frames, its numbers are checked. Promise: an
//! error of the output is said once, counted by the frame, and survived.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::format::About;
use super::sink::{Put, Sink};
use crate::mem::spool::{Broken, Counts, Reader};
use crate::stage::record::{HEAD, Head};
use crate::supervise::say;

/// Bytes that are put together before they are written.
const CHUNK: usize = 256 * 1024;
/// While frames come, so long until the next look: few looks find many frames, and nobody is rung for.
const LINGER: Duration = Duration::from_millis(1);
/// Counts that changed are written this often.
const COUNTS_EVERY: Duration = Duration::from_secs(1);
/// An output that fails and succeeds by turns is complained of this often.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);
/// How long an end waits for a reader that does not read.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(1);

/// What the supervisor asks of the thread.
#[derive(Debug)]
pub(super) enum Order {
    /// A dataplane writes to a new spool. The one before is read to its end.
    Spool(Vec<Reader>, OwnedFd),
    /// Write what is there, and end.
    End,
}

/// What a capture came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Frames that were to be captured.
    pub seen: u64,
    /// Frames written, and their bytes as kept.
    pub written: u64,
    /// Bytes of frames, as written.
    pub bytes: u64,
    /// Frames that found the spool full: the output is too slow.
    pub lost: u64,
    /// Frames lost to errors of the output.
    pub failed: u64,
}

/// What thread and supervisor share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) totals: Mutex<Totals>,
    /// Nobody reads any more, or the spool is broken: the capture is to be ended.
    pub(super) over: AtomicBool,
    /// Nothing more will be written.
    pub(super) done: AtomicBool,
    /// When an end was asked for, the time after which nobody is waited for.
    until: Mutex<Option<Instant>>,
}

impl Shared {
    pub(super) fn end_at(&self, until: Instant) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    fn until(&self) -> Option<Instant> {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One queue's spool and its next frame.
struct Queue {
    reader: Reader,
    next: Option<(Head, u32)>,
    broken: bool,
}

impl Queue {
    fn look(&mut self) {
        if self.next.is_some() || self.broken {
            return;
        }
        match self.reader.peek() {
            Ok(None) => {}
            Ok(Some(record)) => match Head::read(&record) {
                Some(head) => self.next = Some((head, record.len())),
                None => self.broken = true,
            },
            Err(Broken) => self.broken = true,
        }
    }
}

/// What a recorder is started with.
pub(super) struct Means {
    pub(super) name: String,
    pub(super) about: About,
    pub(super) sink: Sink,
    pub(super) orders: Receiver<Order>,
    /// Rung by the supervisor.
    pub(super) called: OwnedFd,
    /// Rung by this thread when the supervisor has to look.
    pub(super) tell: OwnedFd,
    pub(super) shared: Arc<Shared>,
}

/// The thread's own.
pub(super) struct Recorder {
    means: Means,
    queues: Vec<Queue>,
    /// Rung by the dataplane.
    bell: Option<OwnedFd>,
    out: Vec<u8>,
    ends: Vec<usize>,
    /// The file's head is written.
    begun: bool,
    /// Writing failed the last time.
    failing: bool,
    /// When that was said last.
    complained: Option<Instant>,
    since: u64,
    totals: Totals,
    /// Of the spools before this one.
    past: Counts,
    said: (Instant, Counts),
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

impl Recorder {
    pub(super) fn new(means: Means) -> Self {
        Self {
            means,
            queues: Vec::new(),
            bell: None,
            out: Vec::new(),
            ends: Vec::new(),
            begun: false,
            failing: false,
            complained: None,
            since: now(),
            totals: Totals::default(),
            past: Counts::default(),
            said: (Instant::now(), Counts::default()),
        }
    }

    /// Runs until it is told to end, or nobody reads any more.
    pub(super) fn run(mut self) {
        if self.work().is_err() {
            self.give_up();
            self.means.shared.over.store(true, Ordering::Release);
        }
        self.report();
        // Said before the thread has ended: it could not ring afterwards.
        self.means.shared.done.store(true, Ordering::Release);
        ring(&self.means.tell);
    }

    fn work(&mut self) -> Result<(), ()> {
        self.begin()?;
        loop {
            match self.means.orders.try_recv() {
                Ok(Order::Spool(readers, bell)) => {
                    while self.round()? {}
                    self.past = self.counts();
                    let queue = |reader| Queue { reader, next: None, broken: false };
                    self.queues = readers.into_iter().map(queue).collect();
                    self.bell = Some(bell);
                }
                Ok(Order::End) | Err(TryRecvError::Disconnected) => return self.finish(),
                Err(TryRecvError::Empty) => {}
            }
            let moved = self.round()?;
            self.say_counts(false)?;
            self.report();
            if moved {
                self.wait(LINGER, false);
            } else if self.queues.iter().all(|q| q.broken || q.reader.may_sleep()) {
                self.wait(COUNTS_EVERY, true);
            }
        }
    }

    /// The file's head, which has to be there before any frame is. A full disk is waited for.
    fn begin(&mut self) -> Result<(), ()> {
        if !self.begun {
            self.out.clear();
            self.means.about.begin(&mut self.out);
            self.begun = self.write(0)?;
        }
        Ok(())
    }

    /// Takes and writes what is there, up to a chunk. False: there was nothing.
    fn round(&mut self) -> Result<bool, ()> {
        self.begin()?;
        self.out.clear();
        self.ends.clear();
        let (mut frames, mut bytes) = (0, 0);
        while self.out.len() < CHUNK {
            self.queues.iter_mut().for_each(Queue::look);
            let first = self.queues.iter().enumerate().filter_map(|(i, q)| Some((q.next?.0.time, i))).min();
            let Some((_, at)) = first else { break };
            bytes += u64::from(self.take(at));
            frames += 1;
        }
        self.queues.iter().for_each(|q| q.reader.give_back());
        if self.queues.iter().any(|q| q.broken) && !self.means.shared.over.swap(true, Ordering::AcqRel) {
            say::say(&format!(
                "capture '{}': what the dataplane wrote cannot be: it is ended",
                self.means.name
            ));
            ring(&self.means.tell);
        }
        if frames == 0 {
            return Ok(false);
        }
        // A frame that the file's head did not go before has nowhere to go.
        if !self.begun {
            self.totals.failed += frames;
        } else if self.write(frames)? {
            self.totals.bytes += bytes;
        }
        Ok(true)
    }

    /// Puts a queue's next frame into the buffer; says how many bytes of it were kept.
    fn take(&mut self, at: usize) -> u32 {
        let queue = u16::try_from(at).unwrap_or(u16::MAX);
        let Some(q) = self.queues.get_mut(at) else { return 0 };
        let Some((head, len)) = q.next.take() else { return 0 };
        if let Ok(Some(record)) = q.reader.peek() {
            self.means.about.frame(&mut self.out, &head, queue, |to| {
                record.skip(HEAD).copy_out(to);
            });
            self.ends.push(self.out.len());
        }
        q.reader.pass(len);
        head.kept
    }

    /// Writes the buffer, which holds so many frames. False: not all of it could be.
    fn write(&mut self, frames: u64) -> Result<bool, ()> {
        let shared = &self.means.shared;
        match self.means.sink.put(&self.out, &self.ends, self.means.called.as_fd(), || shared.until()) {
            Put::All => {
                self.totals.written += frames;
                self.failing = false;
                Ok(true)
            }
            Put::Some(n, e) => {
                self.wrote(n, frames);
                let quiet = self.complained.is_some_and(|t| t.elapsed() < COMPLAIN_EVERY);
                if !std::mem::replace(&mut self.failing, true) && !quiet {
                    self.complained = Some(Instant::now());
                    let until = "frames are lost and counted until it succeeds again";
                    say::say(&format!("capture '{}': writing failed: {e}; {until}", self.means.name));
                }
                Ok(false)
            }
            Put::Gone(n, e) => {
                self.wrote(n, frames);
                if e.kind() != io::ErrorKind::BrokenPipe {
                    say::say(&format!("capture '{}': writing failed: {e}; it is ended", self.means.name));
                }
                Err(())
            }
            Put::Called(n) => {
                self.wrote(n, frames);
                Err(())
            }
        }
    }

    /// So many of some frames were written.
    fn wrote(&mut self, n: usize, frames: u64) {
        let n = (n as u64).min(frames);
        self.totals.written += n;
        self.totals.failed += frames - n;
    }

    /// Nothing is written any more: what is still here is lost.
    fn give_up(&mut self) {
        for q in &mut self.queues {
            q.look();
            while let Some((_, len)) = q.next.take() {
                self.totals.failed += 1;
                q.reader.pass(len);
                q.look();
            }
            q.reader.give_back();
        }
    }

    /// What the dataplanes counted up to now.
    fn counts(&self) -> Counts {
        let mut sum = self.past;
        for q in &self.queues {
            let c = q.reader.counts();
            sum.seen = sum.seen.wrapping_add(c.seen);
            sum.lost = sum.lost.wrapping_add(c.lost);
        }
        sum
    }

    /// All that was lost, wherever.
    fn all_lost(&self) -> Counts {
        let c = self.counts();
        Counts { lost: c.lost.wrapping_add(self.totals.failed), ..c }
    }

    /// Writes the counts: at the end, and now and then if something more was lost.
    fn say_counts(&mut self, end: bool) -> Result<(), ()> {
        let (when, before) = self.said;
        let counts = self.all_lost();
        if !end && (counts.lost == before.lost || when.elapsed() < COUNTS_EVERY) {
            return Ok(());
        }
        self.out.clear();
        self.ends.clear();
        self.means.about.statistics(&mut self.out, counts, self.totals.written, self.since, now());
        self.said = (Instant::now(), counts);
        if self.begun && !self.out.is_empty() {
            self.write(0)?;
        }
        Ok(())
    }

    fn report(&mut self) {
        *self.means.shared.totals.lock().unwrap_or_else(PoisonError::into_inner) = self.totals;
    }

    /// Whoever writes has ended, or will not be believed any more: what is there is written, and no more.
    fn finish(&mut self) -> Result<(), ()> {
        let until = self.means.shared.until().unwrap_or_else(Instant::now);
        while self.round()? && Instant::now() < until {}
        self.say_counts(true)
    }

    fn wait(&self, longest: Duration, for_frames: bool) {
        let bells = [Some(&self.means.called), self.bell.as_ref().filter(|_| for_frames)];
        let mut fds: Vec<_> =
            bells.iter().flatten().map(|b| PollFd::new(b.as_fd(), PollFlags::POLLIN)).collect();
        let time = PollTimeout::try_from(longest.as_millis()).unwrap_or(PollTimeout::MAX);
        if poll(&mut fds, time).is_ok() {
            // Only what has rung: the dataplane shares the bell, and with it whether reading waits.
            for (bell, p) in bells.into_iter().flatten().zip(&fds) {
                if p.revents().is_some_and(|r| r.contains(PollFlags::POLLIN)) {
                    let _read = nix::unistd::read(bell, &mut [0; 8]);
                }
            }
        }
    }
}

/// Rings an eventfd.
pub(super) fn ring(fd: &OwnedFd) {
    // A full counter is a ring as well.
    let _rung = nix::unistd::write(fd, &1_u64.to_ne_bytes());
}
