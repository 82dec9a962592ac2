//! A guest steered over its console: jobs go in, and each job's exit code and output come out when it is done, any number
//! of them at the same time. The guest is a stranger here too: a line that is not understood is an error with the whole
//! console in it, and every wait has an end.

use super::base64;
use crate::proc::{Line, Outcome, Proc};
use crate::{Because, Done, trouble};
use std::io::Write;
use std::process::ChildStdin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A terminal reads lines of at most 4095 bytes; stay well below.
const CHUNK: usize = 2048;

/// When a guest that says nothing is spoken to again: a console under load may forget that there is something to read until
/// more comes, or lose a line (seen with User-Mode Linux).
const AGAIN: Duration = Duration::from_secs(4);

/// How long a command may take where the test does not say.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The host's end of a guest's console, and the guest with it: dropping it kills the guest.
pub struct Console {
    proc: Proc,
    input: Mutex<ChildStdin>,
    next: AtomicU32,
}

/// A command that runs in the guest.
#[derive(Debug)]
#[must_use = "a job's outcome is only seen by finishing it"]
pub struct Job {
    id: u32,
    command: String,
}

impl Console {
    /// Takes over a guest just started with a pipe to its console, and waits until its init is up.
    pub fn attach(mut proc: Proc, within: Duration) -> Done<Console> {
        let input = proc.input().because("the guest was started without a pipe to its console")?;
        proc.wait_for("@up ", within)?;
        Ok(Console { proc, input: Mutex::new(input), next: AtomicU32::new(0) })
    }

    /// Starts a command in the guest's shell.
    pub fn start(&self, command: &str) -> Done<Job> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let added = format!("@added {id}");
        for (i, chunk) in base64::encode(command.as_bytes()).as_bytes().chunks(CHUNK).enumerate() {
            let verb = if i == 0 { "new" } else { "add" };
            let line = format!("{verb} {id} {}\n", String::from_utf8_lossy(chunk));
            self.say(&line)?;
            // One chunk at a time: a terminal that is given more than it can hold forgets the rest. What was heard after all
            // must not be added again: only the beginning is repeated, else a blank line.
            self.insist(&added, i, PATIENCE, if i == 0 { &line } else { "" })?;
        }
        self.say(&format!("run {id}\n"))?;
        Ok(Job { id, command: command.to_owned() })
    }

    /// Waits for the line with `needle` that comes after `before` others, and says `again` on a line of its own as long as
    /// it does not come.
    fn insist(&self, needle: &str, before: usize, within: Duration, again: &str) -> Done<Line> {
        let until = Instant::now() + within;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut to_pass = before;
            let found = self.proc.find(&format!("\"{needle}\""), left.min(AGAIN), |l| {
                let is = l.text.contains(needle);
                let last = is && to_pass == 0;
                to_pass = to_pass.saturating_sub(usize::from(is));
                last.then(|| l.clone())
            });
            if found.is_ok() || left <= AGAIN {
                return found;
            }
            self.say(&format!("\n{again}"))?;
        }
    }

    /// Waits for a job's end.
    pub fn finish(&self, job: Job, within: Duration) -> Done<Outcome> {
        let mark = format!("@done {} ", job.id);
        let again = format!("run {}\n", job.id);
        let line = self.insist(&mark, 0, within, &again).because(format!("in the guest: {}", job.command))?;
        let (_, rest) = line.text.split_once(&mark).because("the mark was just found")?;
        let mut words = rest.split_whitespace();
        let code = words.next().and_then(|w| w.parse().ok());
        let code = code.because(format!("in the guest: {}: no exit code in {:?}", job.command, line.text))?;
        let text = base64::decode(words.next().unwrap_or_default())?;
        Ok(Outcome { code, text: String::from_utf8_lossy(&text).into_owned() })
    }

    /// Runs a command to its end, however it ends.
    pub fn run(&self, command: &str, within: Duration) -> Done<Outcome> {
        let job = self.start(command)?;
        self.finish(job, within)
    }

    /// Runs a shell script that must succeed at every command, and returns its output.
    pub fn ok(&self, script: &str) -> Done<String> {
        self.run(&format!("set -e\n{script}"), PATIENCE)?.ok(&format!("in the guest: {script}"))
    }

    /// Loads a set of modules that lie in the guest and that most tests do not want.
    pub fn load(&self, set: &str) -> Done {
        self.ok(&format!(
            "test -e /modules/{set} || {{ echo 'no modules for {set} here: run tests/setup.sh as root'; exit 1; }}
             while read -r module; do insmod \"/modules/$module.ko\"; done </modules/{set}"
        ))?;
        Ok(())
    }

    /// The kernel's release.
    pub fn kernel(&self) -> Done<String> {
        self.proc.find("its kernel", PATIENCE, |l| Some(l.text.split_once("@up ")?.1.to_owned()))
    }

    /// Everything that came over the console so far.
    pub fn log(&self) -> String {
        self.proc.text()
    }

    /// The VMM's process.
    pub fn proc(&self) -> &Proc {
        &self.proc
    }

    /// Switches the guest off and waits for the VMM's end.
    pub fn power_off(mut self, within: Duration) -> Done {
        self.say("off\n")?;
        let outcome = self.proc.wait(within)?;
        if outcome.code != 0 {
            return Err(trouble(format!(
                "the guest's VMM ended with code {}:\n{}",
                outcome.code, outcome.text
            )));
        }
        Ok(())
    }

    fn say(&self, lines: &str) -> Done {
        let mut input = self.input.lock().because("the guest's console")?;
        input
            .write_all(lines.as_bytes())
            .because(format!("write to the guest's console\n{}", self.proc.tail()))
    }
}
