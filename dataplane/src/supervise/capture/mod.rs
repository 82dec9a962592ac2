//! Captures: frames of a port in a file, a pipe or whatever else is open for writing.
//!
//! Three parts. In the dataplane, a [`stage`](crate::stage) around the port copies frames into a spool: memory that the
//! two share, 4 MiB for each queue. Here, a thread for each capture reads it, and writes pcapng or pcap. So nothing that
//! the output does can hold up a frame; the sandbox needs no descriptor of a file (its limit on file sizes stays zero), no
//! thread and no system call for it; and what is in the file is well-formed whatever became of the dataplane.
//!
//! A capture outlives its dataplane: the next one gets a spool of its own.
//!
//! Trust: the user. Promise: an output that is slow, full or gone costs frames of the capture, which are counted, and
//! nothing else.
#![forbid(unsafe_code)]

pub mod format;
pub(super) mod live;
mod output;
mod recorder;
mod sink;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::mem::spool::{self, Counts, Reader};
use crate::stage::capture::Plan;
use crate::supervise::control::Key;
use format::About;
pub use output::{adopt, begin, open};
pub use recorder::Totals;
use recorder::{LAST_WORDS, Means, Order, Recorder, Shared, ring};
use sink::Sink;

/// Descriptors that a capture may need: its output, two bells, and, for a moment, a spool and its bell.
pub const DESCRIPTORS: u64 = 10;

/// A capture's name and its port's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The capture's.
    pub id: String,
    /// The port's.
    pub port: String,
}

impl Name {
    /// Its counts as text.
    #[must_use]
    pub fn line(&self, t: &Totals) -> String {
        format!(
            "capture '{}' of port '{}': seen {} frames, written {} frames {} bytes, lost {}, write errors lost {}",
            self.id, self.port, t.seen, t.written, t.bytes, t.lost, t.failed
        )
    }
}

/// A capture as the supervisor holds it.
#[derive(Debug)]
pub struct Capture {
    /// What it is called.
    pub name: Name,
    /// Its number in the hand-over.
    pub number: u16,
    /// The slot of its port.
    pub slot: u16,
    /// What is captured.
    pub plan: Plan,
    queues: u16,
    orders: Sender<Order>,
    call: OwnedFd,
    told: OwnedFd,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// What the dataplane counts is looked at from here as well: the thread may wait for its output.
    counts: Vec<Reader>,
    past: Counts,
    /// It was told to end.
    ends: bool,
    /// Because of its output.
    lost_output: bool,
    /// It ends with this client.
    tied: Option<Key>,
}

/// What a dataplane needs to capture: the spool's memory and its bell.
pub type Spool = (OwnedFd, OwnedFd);

/// Which port is captured, and how it is named.
#[derive(Clone, Debug)]
pub struct Target {
    /// The capture's name.
    pub id: String,
    /// The capture's number in the hand-over.
    pub number: u16,
    /// The port's slot.
    pub slot: u16,
}

impl Capture {
    /// Starts the thread that writes to `output`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(target: Target, plan: Plan, about: About, output: OwnedFd) -> io::Result<Self> {
        let sink = Sink::new(output)?;
        let (orders, taken) = channel();
        let (call, told) = (spool::bell()?, spool::bell()?);
        let shared = Arc::new(Shared::default());
        let (port, queues) = (about.port.clone(), about.queues.max(1));
        let means = Means {
            name: target.id.clone(),
            about,
            sink,
            orders: taken,
            called: call.try_clone()?,
            tell: told.try_clone()?,
            shared: shared.clone(),
        };
        let life = move || Recorder::new(means).run();
        let thread = std::thread::Builder::new().name("capture".into()).spawn(life)?;
        let Target { id, number, slot } = target;
        let name = Name { id, port };
        let thread = Some(thread);
        let (counts, past) = (Vec::new(), Counts::default());
        Ok(Self {
            name,
            number,
            slot,
            plan,
            queues,
            orders,
            call,
            told,
            shared,
            thread,
            counts,
            past,
            ends: false,
            lost_output: false,
            tied: None,
        })
    }

    /// A new spool, read by the thread from now on. The one before is read to its end.
    ///
    /// # Errors
    /// No memory.
    pub fn spool(&mut self) -> io::Result<Spool> {
        let (memory, bell) = (spool::memory(self.queues)?, spool::bell()?);
        let readers =
            || (0..self.queues).map(|q| Reader::new(&memory, q, self.queues)).collect::<io::Result<Vec<_>>>();
        self.past = self.counts();
        self.counts = readers()?;
        // A thread that has ended needs no spool, and its capture is over.
        let _ordered = self.orders.send(Order::Spool(readers()?, bell.try_clone()?));
        ring(&self.call);
        Ok((memory, bell))
    }

    /// Readable when [`Capture::is_over`] may have changed.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.told.as_fd()
    }

    /// Nothing can be written any more: to be taken away.
    #[must_use]
    pub fn is_over(&self) -> bool {
        // So that it is not heard twice.
        let _read = nix::unistd::read(&self.told, &mut [0; 8]);
        self.shared.over.load(Ordering::Acquire)
    }

    /// A dataplane is to be given it.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        !self.ends
    }

    /// Tells the thread to write what is there, waiting for at most a second for whoever reads it. No dataplane is to
    /// write to it any more.
    pub fn begin_end(&mut self) {
        self.shared.end_at(Instant::now() + LAST_WORDS);
        let _ordered = self.orders.send(Order::End);
        ring(&self.call);
        self.ends = true;
    }

    /// All is written that could be.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        // After the bell is read: whoever rings it has said so before.
        let _heard = self.is_over();
        self.shared.done.load(Ordering::Acquire)
    }

    /// Waits for the end, which may be long since begun.
    pub fn end(mut self) -> (Name, Totals) {
        if !self.ends {
            self.begin_end();
        }
        let until = Instant::now() + LAST_WORDS;
        if let Some(thread) = self.thread.take() {
            while !thread.is_finished() && Instant::now() < until + LAST_WORDS / 10 {
                std::thread::sleep(Duration::from_millis(1));
            }
            // One that hangs in a disk that hangs is left; it ends with the process.
            if thread.is_finished() {
                let _ended = thread.join();
            }
        }
        let totals = self.totals();
        (self.name, totals)
    }

    fn counts(&self) -> Counts {
        self.counts.iter().map(Reader::counts).fold(self.past, |a, b| Counts {
            seen: a.seen.wrapping_add(b.seen),
            lost: a.lost.wrapping_add(b.lost),
        })
    }

    /// What it came to up to now.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let Counts { seen, lost } = self.counts();
        let written = *self.shared.totals.lock().unwrap_or_else(PoisonError::into_inner);
        Totals { seen, lost, ..written }
    }

    /// Its counts as JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        let t = self.totals();
        json!({
            "id": self.name.id, "port": self.name.port, "seen": t.seen, "written": t.written, "bytes": t.bytes,
            "lost": t.lost, "failed": t.failed,
        })
    }
}

#[cfg(test)]
mod tests;
