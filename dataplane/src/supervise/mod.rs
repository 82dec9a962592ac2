//! The supervisor: asks the helper, opens what needs a name, starts the dataplane and keeps it alive.
//!
//! One thread, one poll loop, no privilege (names are looked up, and captures written, by threads that it does not wait
//! for). It keeps a copy of every descriptor that may outlive a dataplane, so that a
//! crashed one is replaced while taps, XDP programs, listening sockets and quiet vhost-user connections stay as they are.
//!
//! Trust: the user; the helper's answers are checked by the kernel; the dataplane is hostile ([`child`]). Promise:
//! *ready* is said only when every socket listens and frames can pass; whatever way it ends, the dataplane ends with it
//! and the files of its sockets are removed.
#![forbid(unsafe_code)]

pub mod ask;
pub mod back_off;
pub mod capture;
mod change;
pub mod child;
pub mod command;
pub mod control;
pub mod counters;
pub mod datagram;
pub mod dial;
pub mod doors;
pub mod estate;
mod events;
pub mod filters;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod granted;
pub mod inside;
mod late_names;
mod life;
pub mod link_watch;
pub mod listen;
mod listen_again;
mod names;
mod news;
pub mod overheard;
mod ports;
pub mod ready;
pub mod reception;
pub mod resolvers;
pub mod say;
mod shortage;
mod signals;
pub mod slot;
pub mod slots;
pub mod user;
pub mod vde;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::process::Child;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;

use crate::fault::Fault;
use crate::handover::{Level, Plan, PortKind, RunPlan, Wire};
use crate::spec::{Config, Kind, late};
use ask::{Asker, Door};
use back_off::BackOff;
use capture::Capture;
use change::Changes;
use child::{Dataplane, Program};
use control::commands::Pending;
use control::{Control, Where};
use counters::Counters;
use filters::Chain;
use link_watch::LinkWatch;
use ready::{PidFile, Ready};
use say::Voice;
pub(crate) use signals::Signals;
use slot::{How, Slot};
use slots::Slots;

/// How long the kernel may take to remove an interface that nobody holds any more.
const GONE_WITHIN: Duration = Duration::from_secs(1);
/// Descriptors beside those of the ports.
const SPARE: u64 = 64;
/// How long a dataplane has to end in order.
const END_WITHIN: Duration = Duration::from_secs(1);

/// How to run.
#[derive(Debug)]
pub struct Options {
    /// Which helper to ask.
    pub door: Door,
    /// How to start a dataplane.
    pub program: Program,
    /// How it waits and is locked in.
    pub run: RunPlan,
    /// Permission bits of unix sockets.
    pub socket_mode: u32,
    /// Who is told when frames can pass.
    pub ready: Ready,
    /// Types of ports that may be added later.
    pub hotplug: Vec<String>,
    /// Where clients may talk to us.
    pub control: Where,
    /// Print the counters at the end.
    pub stats: bool,
    /// End when the VMM that came has left.
    pub one_off: bool,
    /// Started when frames can pass.
    pub command: Vec<OsString>,
    /// Called once after *ready* was said (a daemon lets its terminal go).
    pub after_ready: Option<fn()>,
}

/// Everything that lives while frames pass.
#[derive(Debug)]
struct Supervisor {
    plan: Plan,
    slots: Slots,
    captures: Vec<Capture>,
    chain: Chain,
    program: Program,
    asker: Option<Asker>,
    ready: Ready,
    /// Held for its end.
    pid_file: Option<PidFile>,
    after_ready: Option<fn()>,
    live: bool,

    dataplane: Option<Dataplane>,
    back_off: BackOff,
    /// When to start the next dataplane.
    start_at: Option<Instant>,
    /// When the last one died.
    died_at: Option<Instant>,
    /// No dataplane will be started any more, and why.
    over: Option<Fault>,

    /// For ports that come later: the helper, and their sockets' permission bits.
    door: Door,
    socket_mode: u32,
    /// The sandbox's level, as the dataplane said last.
    level: Option<Level>,
    /// Dataplanes that were replaced.
    restarts: u64,

    control: Option<Control>,
    changes: Changes,
    /// Clients that wait for counters.
    pending: Vec<Pending>,
    /// Ports that wait for what their names mean.
    sought: Vec<late_names::Asked>,
    shutdown_said: bool,
    signals: Signals,
    links: Option<LinkWatch>,
    counters: Counters,
    /// The round of counters that is to be printed.
    print_round: Option<u64>,
    stats_at_end: bool,
    one_off: bool,
    voice: Voice,
    words: Vec<OsString>,
    command: Option<Child>,
    /// End with this code.
    stop: Option<u8>,
    /// Asked to end before.
    asked_to_stop: bool,
}

/// Opens everything, runs until told to end, and cleans up. The process's exit code.
///
/// # Errors
/// What could not be had; or the dataplane that does not stay alive.
pub fn run(config: Config, options: Options) -> Result<u8, Fault> {
    let mut supervisor = open(config, options)?;
    let end = supervisor.serve();
    supervisor.finish(end.is_ok());
    end
}

fn open(config: Config, options: Options) -> Result<Supervisor, Fault> {
    let mut config = config;
    config.settle();
    // First of all: the numbers on the command line mean what this process was started with.
    let given = config.ports.iter().map(slot::adopt).collect::<Result<Vec<_>, Fault>>()?;
    let outputs = capture::adopt(&config.filters)?;
    let signals = Signals::new()?;
    for warning in &config.warnings {
        say::say(&format!("warning: {warning}"));
    }
    shortage::check(&config)?;
    let captures = capture::begin(&config, outputs)?;
    let chain = Chain::of(&config)?;
    let of_captures = capture::DESCRIPTORS * captures.len() as u64;
    let control = Control::open(options.control)?;
    let mut asker = Asker::new(options.door.clone());
    let later = kinds_later(&options.hotplug, &config);
    let (slots, wires) = open_ports(config, given, &mut asker, options.socket_mode)?;
    make_room(slots.iter().map(|(_, s)| s.descriptors()).sum::<u64>() + of_captures);
    let watched = slots.iter().any(|(_, s)| s.link.as_ref().is_some_and(|l| l.index.is_some()));
    let filters = control.as_ref().is_some_and(Control::is_open) || !chain.steps.is_empty();
    let plan = Plan { ports: slots.plan(), wires, down: Vec::new(), later, filters, run: options.run };
    let json = options.ready.json;
    Ok(Supervisor {
        plan,
        slots,
        captures,
        chain,
        program: options.program,
        asker: Some(asker),
        ready: options.ready,
        pid_file: None,
        after_ready: options.after_ready,
        live: false,
        dataplane: None,
        back_off: BackOff::default(),
        start_at: Some(Instant::now()),
        died_at: None,
        over: None,
        door: options.door,
        socket_mode: options.socket_mode,
        level: None,
        restarts: 0,
        control,
        changes: Changes::default(),
        pending: Vec::new(),
        sought: Vec::new(),
        shutdown_said: false,
        signals,
        // Without it the ports work; only their end is noticed later.
        links: if watched { LinkWatch::new().ok() } else { None },
        counters: Counters::default(),
        print_round: None,
        stats_at_end: options.stats,
        one_off: options.one_off,
        voice: Voice::new(json),
        words: options.command,
        command: None,
        stop: None,
        asked_to_stop: false,
    })
}

/// Kinds of ports that may come while it runs.
fn kinds_later(hotplug: &[String], config: &Config) -> Vec<PortKind> {
    let mut later: Vec<_> = hotplug.iter().flat_map(|t| late::hotplug(t)).collect();
    // A switch's clients are ports that come later.
    if config.ports.iter().any(|p| matches!(p.kind, Kind::Switch(_))) {
        later.extend(late::hotplug("vde"));
    }
    later.sort_unstable();
    later.dedup();
    later
}

fn open_ports(
    config: Config,
    given: Vec<Vec<OwnedFd>>,
    asker: &mut Asker,
    mode: u32,
) -> Result<(Slots, Vec<Wire>), Fault> {
    let mut slots = Vec::new();
    for (port, fds) in config.ports.into_iter().zip(given) {
        let wire = config.wires.iter().find(|w| w.device == slots.len());
        let device = wire.is_some() && port.kind.name() != "hubport";
        let open = Slot::open(port, fds, asker, How { mode, wait: true })?;
        slots.push(Slot { device, lock_mac: wire.and_then(|w| w.lock_mac), ..open });
    }
    let index = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
    let wire = |w: &crate::spec::Wire| Wire {
        netdev: index(w.netdev),
        device: index(w.device),
        lock_mac: w.lock_mac,
    };
    Ok((slots.into_iter().collect(), config.wires.iter().map(wire).collect()))
}

/// Raises the limit on descriptors if the ports may need more.
pub(crate) fn make_room(most: u64) {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return };
    let most = most.saturating_add(SPARE).min(hard);
    if most > soft {
        // Without it a VM of very many queues is not kept across the end of a dataplane.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, hard);
    }
}

impl Supervisor {
    fn serve(&mut self) -> Result<u8, Fault> {
        loop {
            self.turn()?;
            if let Some(code) = self.stop.take() {
                return self.over.take().map_or(Ok(code), Err);
            }
            // A command that runs may end by itself; its VM has lost its network, not its life.
            if self.command.is_none()
                && let Some(fault) = self.over.take()
            {
                return Err(fault);
            }
        }
    }

    /// Ends what was started, clients told. Sockets, files and links go with `self`.
    fn finish(&mut self, in_order: bool) {
        self.ready.notify("STOPPING=1");
        self.say_shutdown(if in_order { "host-signal" } else { "host-error" });
        if self.stats_at_end {
            self.last_counters();
        }
        if let Some(dataplane) = self.dataplane.take() {
            dataplane.end(END_WITHIN);
        }
        self.captures.iter_mut().for_each(Capture::begin_end);
        for c in std::mem::take(&mut self.captures) {
            let (about, totals) = c.end();
            if self.stats_at_end || totals.lost + totals.failed > 0 {
                self.voice.say(&about.line(&totals));
            }
        }
        if let Some(command) = &mut self.command {
            command::signal(command, Signal::SIGTERM);
        }
        self.let_links_go();
    }

    /// Waits until the interfaces that lived by our descriptors are gone, so that whoever starts us again finds none: the
    /// kernel lets go of what a dataplane's io_uring held a moment after its end.
    fn let_links_go(&mut self) {
        let mut links = Vec::new();
        for (_, s) in self.slots.iter_mut().filter(|(_, s)| s.fleeting) {
            s.kept.clear();
            links.extend(s.link.as_ref().and_then(|l| l.index));
        }
        let until = Instant::now() + GONE_WITHIN;
        while links.iter().any(|i| link_watch::is_here(*i)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
