//! `--daemonize`: the command returns when frames can pass, and what carries them lives on.
//!
//! The parent starts itself once more with a pipe; the child makes a session of its own and says *ready* on the pipe.
//! Nothing is forked, so there is nothing half made to take along.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Mutex;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};

use super::passt::Log;
use crate::fault::{Exit, Fault};
use crate::supervise::command::{self, DAEMON_VARIABLE as VARIABLE};
use crate::supervise::say;
use crate::sys;

/// The pipe that the parent reads, until *ready* is said.
static PIPE: Mutex<Option<OwnedFd>> = Mutex::new(None);

/// Where standard error goes once frames can pass, if not to nowhere.
static LOG: Mutex<Option<(File, u64)>> = Mutex::new(None);

fn fault(e: &dyn std::fmt::Display) -> Fault {
    Fault::new(Exit::General, "going to the background (--daemonize)", e, "start it without --daemonize")
}

/// This process is the one that stays.
pub(super) fn is_child() -> bool {
    std::env::var_os(VARIABLE).is_some()
}

/// Starts the process that stays and waits until it is ready or has failed. Our exit code.
pub(super) fn start() -> Result<u8, Fault> {
    let (mut reader, writer) = io::pipe().map_err(|e| fault(&e))?;
    fcntl(&writer, FcntlArg::F_SETFD(FdFlag::empty())).map_err(|e| fault(&e))?;
    let own = std::env::current_exe().map_err(|e| fault(&e))?;
    let mut words = std::env::args_os();
    let mut child = Command::new(own)
        // It may be called by another name than its file's.
        .arg0(words.next().unwrap_or_default())
        .args(words)
        .env(VARIABLE, writer.as_raw_fd().to_string())
        .spawn()
        .map_err(|e| fault(&e))?;
    drop(writer);
    let mut said = [0; 1];
    if reader.read_exact(&mut said).is_ok() {
        return Ok(0);
    }
    // It ended before it was ready, and has said why.
    let status = child.wait().map_err(|e| fault(&e))?;
    Ok(command::code(status).max(1))
}

/// What is said once frames can pass goes to the end of this file, as `--log-file` of passt has it.
pub(super) fn log_to(log: Option<&Log>) -> Result<(), Fault> {
    let Some(Log { path, most }) = log else { return Ok(()) };
    // It is read where its oldest lines go.
    let open = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path);
    let file = open.map_err(|e| {
        Fault::new(Exit::Config, format!("--log-file {path}"), e, "name a file that you may write to")
    })?;
    if let Ok(mut log) = LOG.lock() {
        *log = Some((file, *most));
    }
    Ok(())
}

/// What is to be called when frames can pass, in a process that stays in the foreground.
pub(super) fn stay() -> Option<fn()> {
    LOG.lock().is_ok_and(|l| l.is_some()).then_some(switch as fn())
}

/// Standard error goes to the log. False: there is none.
fn switch_to_log() -> bool {
    let Some((file, most)) = LOG.lock().ok().and_then(|mut l| l.take()) else { return false };
    let is_there = dup2_stderr(&file).is_ok();
    if is_there {
        say::keep_short(most);
    }
    is_there
}

fn switch() {
    switch_to_log();
}

/// Makes this process one that stays. What it returns is to be called when frames can pass.
pub(super) fn let_go() -> Result<fn(), Fault> {
    let number = std::env::var(VARIABLE).ok().and_then(|t| t.parse().ok());
    let number = number.ok_or_else(|| fault(&"no pipe to the starting process"))?;
    let pipe = sys::process::adopt(number).map_err(|e| fault(&e))?;
    setsid().map_err(|e| fault(&e))?;
    if let Ok(mut keep) = PIPE.lock() {
        *keep = Some(pipe);
    }
    Ok(detach)
}

/// Leaves the terminal and lets the parent return.
fn detach() {
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        // A stream that cannot be replaced stays what it was.
        let _in = dup2_stdin(&null);
        let _out = dup2_stdout(&null);
        if !switch_to_log() {
            let _err = dup2_stderr(&null);
        }
    }
    if let Some(pipe) = PIPE.lock().ok().and_then(|mut p| p.take()) {
        // A parent that is gone does not wait any more.
        let _told = File::from(pipe).write_all(b"+");
    }
}
