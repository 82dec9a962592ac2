//! Child processes with captured output, deadlines, and a certain end: whatever is dropped is killed with its whole
//! process group and reaped. Lines are kept with the moment they arrived, because some figures are read off them.

use crate::{Because, Done, trouble};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::Pid;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// The environment variable by which every process of this run can be found again, see [`crate::leftovers`].
pub const MARK: &str = "NETREEVE_PROOF";

/// The value of [`MARK`] in everything that this process starts.
pub fn mark() -> String {
    format!("proof-{}", std::process::id())
}

/// The process groups alive now, for [`kill_all`].
fn groups() -> MutexGuard<'static, BTreeSet<i32>> {
    static GROUPS: OnceLock<Mutex<BTreeSet<i32>>> = OnceLock::new();
    GROUPS.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills every process group that this library started and still holds: for a program that is being interrupted.
pub fn kill_all() {
    for group in groups().iter() {
        // A group that is gone already is what we want.
        let _ = killpg(Pid::from_raw(*group), Signal::SIGKILL);
    }
}

/// One line of output and when it came.
#[derive(Clone, Debug)]
pub struct Line {
    /// When its newline was read.
    pub at: Instant,
    /// Without the line end; bytes that are no UTF-8 are replaced.
    pub text: String,
}

#[derive(Default)]
struct Log {
    state: Mutex<(Vec<Line>, usize)>,
    news: Condvar,
}

impl Log {
    fn state(&self) -> MutexGuard<'_, (Vec<Line>, usize)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads lines until the end of `from`; the second field of the state counts the streams still open.
    fn follow(self: &Arc<Self>, from: impl Read + Send + 'static) {
        let log = Arc::clone(self);
        log.state().1 += 1;
        std::thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut bytes = Vec::new();
            while matches!(from.read_until(b'\n', &mut bytes), Ok(n) if n > 0) {
                let text = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_owned();
                log.state().0.push(Line { at: Instant::now(), text });
                log.news.notify_all();
                bytes.clear();
            }
            log.state().1 -= 1;
            log.news.notify_all();
        });
    }
}

/// A running child, its output collected in the background.
pub struct Proc {
    label: String,
    child: Child,
    log: Arc<Log>,
}

/// How a command that ran to its end came out.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; 128 and the signal's number when a signal ended it.
    pub code: i32,
    /// Both output streams, in the order the lines came.
    pub text: String,
}

impl Outcome {
    /// The text of a command that must have succeeded.
    pub fn ok(self, what: &str) -> Done<String> {
        if self.code == 0 {
            return Ok(self.text);
        }
        Err(trouble(format!("{what}: exit code {}\n{}", self.code, self.text)))
    }
}

impl Proc {
    /// Starts `command` in a process group of its own. Its standard input is closed unless the command says otherwise
    /// by [`Proc::with_input`].
    pub fn spawn(label: &str, command: Command) -> Done<Proc> {
        Proc::start(label, command, Stdio::null())
    }

    /// The same with a pipe to the child's standard input, taken by [`Proc::input`].
    pub fn with_input(label: &str, command: Command) -> Done<Proc> {
        Proc::start(label, command, Stdio::piped())
    }

    fn start(label: &str, mut command: Command, input: Stdio) -> Done<Proc> {
        command.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).env(MARK, mark());
        let mut child = command.spawn().because(format!("start {label} ({:?})", command.get_program()))?;
        groups().insert(child.id().cast_signed());
        let log = Arc::new(Log::default());
        if let Some(out) = child.stdout.take() {
            log.follow(out);
        }
        if let Some(err) = child.stderr.take() {
            log.follow(err);
        }
        Ok(Proc { label: label.to_owned(), child, log })
    }

    /// The child's process id, which is also that of its group.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The pipe to the child's standard input, once, if it was started [`Proc::with_input`].
    pub fn input(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// The lines so far.
    pub fn lines(&self) -> Vec<Line> {
        self.log.state().0.clone()
    }

    /// The output so far.
    pub fn text(&self) -> String {
        self.lines().into_iter().map(|l| l.text + "\n").collect()
    }

    /// The end of the output so far, short enough for a message.
    pub fn tail(&self) -> String {
        let lines = self.lines();
        let short = |l: &Line| l.text.chars().take(300).chain(['\n']).collect::<String>();
        lines.iter().skip(lines.len().saturating_sub(40)).map(short).collect()
    }

    /// Waits for the first line, from the start of the output, that `pick` makes something of.
    pub fn find<T>(&self, what: &str, within: Duration, mut pick: impl FnMut(&Line) -> Option<T>) -> Done<T> {
        let until = Instant::now() + within;
        let mut seen = 0;
        let mut state = self.log.state();
        loop {
            if let Some(found) = state.0.iter().skip(seen).find_map(&mut pick) {
                return Ok(found);
            }
            seen = state.0.len();
            let left = until.saturating_duration_since(Instant::now());
            let why = match (state.1, left) {
                (0, _) => "it closed its output".to_owned(),
                (_, Duration::ZERO) => format!("not within {within:?}"),
                _ => {
                    state = self.log.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
                    continue;
                }
            };
            drop(state);
            return Err(trouble(format!(
                "{} never said {what}: {why}; it said:\n{}",
                self.label,
                self.text()
            )));
        }
    }

    /// Waits for a line that contains `needle`.
    pub fn wait_for(&self, needle: &str, within: Duration) -> Done<Line> {
        self.find(&format!("\"{needle}\""), within, |l| l.text.contains(needle).then(|| l.clone()))
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for the end of the child and of its output.
    pub fn wait(&mut self, within: Duration) -> Done<Outcome> {
        let until = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().because(format!("wait for {}", self.label))? {
                self.drain(Duration::from_secs(2));
                return Ok(Outcome { code: code(status), text: self.text() });
            }
            if Instant::now() >= until {
                return Err(trouble(format!(
                    "{} has not ended within {within:?}; it said:\n{}",
                    self.label,
                    self.tail()
                )));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Sends a signal to the child alone.
    pub fn signal(&self, signal: Signal) -> Done {
        nix::sys::signal::kill(Pid::from_raw(self.pid()), signal)
            .because(format!("{signal} to {}", self.label))
    }

    /// Asks for the end by SIGTERM and waits for it.
    pub fn terminate(&mut self, within: Duration) -> Done<Outcome> {
        self.signal(Signal::SIGTERM)?;
        self.wait(within)
    }

    /// Waits until both output streams are closed, which a grandchild that keeps them open may prevent.
    fn drain(&self, within: Duration) {
        let until = Instant::now() + within;
        let mut state = self.log.state();
        while state.1 > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.log.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        // Also when the child itself has ended: its group may have others in it, and keeps its number as long as it has.
        if self.alive() || self.has_group() {
            let _ = killpg(Pid::from_raw(self.pid()), Signal::SIGKILL);
        }
        let _ = self.child.wait();
        groups().remove(&self.pid());
    }
}

impl Proc {
    /// Whether a process that carries our mark is left in the child's group.
    fn has_group(&self) -> bool {
        crate::leftovers::marked().iter().any(|p| p.group == self.pid())
    }
}

fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or(status.signal().map(|s| 128 + s)).unwrap_or(-1)
}

/// Runs a command to its end.
pub fn run(label: &str, command: Command, within: Duration) -> Done<Outcome> {
    Proc::spawn(label, command)?.wait(within)
}

/// Runs a line of shell to its end and returns what it said; it stops at the first command that fails.
pub fn sh(script: &str) -> Done<String> {
    let mut command = Command::new("sh");
    command.arg("-ec").arg(script);
    run(script, command, Duration::from_secs(30))?.ok(script)
}

/// When this process is told to end: kills what it has started, calls `clean`, says so and exits. To be called before any
/// other thread is started, so that all inherit the blocked signals and only the one made here is told.
#[allow(clippy::print_stderr, clippy::exit, reason = "it ends the program from the thread that hears of it")]
pub fn end_on_interrupt(name: &'static str, clean: fn()) {
    let mut set = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().for_each(|s| set.add(s));
    if set.thread_block().is_err() {
        return;
    }
    std::thread::spawn(move || {
        let signal = set.wait();
        kill_all();
        clean();
        eprintln!("\n{name}: ended by {signal:?}");
        std::process::exit(1);
    });
}
