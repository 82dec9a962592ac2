//! Which door the helper was called to, and its start-up order.
//!
//! Trust: whoever starts a setuid or file-capability program chose its arguments. Promise: privileges are cut down
//! before anything of the caller's is read; an elevated process takes no option that names a file.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use netreeve_shared::channel::{self, Channel};
use nix::unistd;

use crate::audit::{Log, escape};
use crate::bridge_helper;
use crate::caller;
use crate::confine::{self, Use};
use crate::daemon::{Door, IDLE, Service};
use crate::explain;
use crate::names::number;
use crate::policy_file::{DEFAULT_PATH, Source, Trust};
use crate::privilege;
use crate::serve::{Desk, one_session};
use crate::sys::process;

const HELP: &str = "netreeve-helper: hands out network descriptors as /etc/netreeve/policy.conf allows

usage:
  netreeve-helper                    one session on descriptor 3, or the service on a passed socket
  netreeve-helper --listen PATH [--idle SECONDS] [--policy FILE]
  netreeve-helper --check [FILE]
  netreeve-helper --explain [--policy FILE] uid:N|user:NAME [gid:N|group:NAME ...] WHAT NAME [key=value ...]
  netreeve-helper --version | --help

--explain: WHAT, NAME (a tap of no name: *) and keys are written as in a rule that allows just what is asked.
exit codes: 0 done or allowed, 1 failed, 64 usage, 69 unavailable (no capability), 77 denied, 78 bad policy
";

/// An end before or instead of the work: exit code and message.
#[derive(Debug)]
pub struct Stop {
    /// Exit code, as in `sysexits.h`.
    pub code: u8,
    /// What failed, why, and what to do.
    pub message: String,
}

impl Stop {
    /// Makes one.
    #[must_use]
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

/// Wrong usage (`EX_USAGE`).
pub const USAGE: u8 = 64;
/// No privilege to work with (`EX_UNAVAILABLE`).
const UNAVAILABLE: u8 = 69;

/// Everything. The exit code is the process's.
#[must_use]
pub fn run() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let text: Option<Vec<&str>> = arguments.iter().map(|a| a.to_str()).collect();
    // argc 0 is somebody's trick (CVE-2021-4034).
    let Some((program, arguments)) = text.as_deref().and_then(<[&str]>::split_first) else {
        return end(&Stop::new(USAGE, "the command line is empty or not UTF-8"));
    };
    let name = program.rsplit('/').next().unwrap_or_default();
    if bridge_helper::NAMES.contains(&name) {
        return match bridge(arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => end(&Stop::new(1, why)),
        };
    }
    match dispatch(arguments) {
        Ok(code) => ExitCode::from(code),
        Err(stop) => end(&stop),
    }
}

fn end(stop: &Stop) -> ExitCode {
    let line = format!("netreeve-helper: {}\n", escape(&stop.message));
    let _unheard = io::stderr().write_all(line.as_bytes());
    ExitCode::from(stop.code)
}

fn dispatch(arguments: &[&str]) -> Result<u8, Stop> {
    match arguments {
        [] => inherited().map(|()| 0),
        ["--listen", path, rest @ ..] => listen(Path::new(path), rest).map(|()| 0),
        ["--check"] => check(Path::new(DEFAULT_PATH)),
        ["--check", file] => check(Path::new(file)),
        ["--explain", rest @ ..] => {
            give_up_privileges(None)?;
            let (code, text) = explain::explain(rest)?;
            print(&text).map(|()| code)
        }
        ["--version"] => print(concat!("netreeve-helper ", env!("CARGO_PKG_VERSION"), "\n")).map(|()| 0),
        ["--help"] => print(HELP).map(|()| 0),
        _ => Err(Stop::new(USAGE, "wrong arguments; --help tells the right ones")),
    }
}

fn print(text: &str) -> Result<(), Stop> {
    io::stdout().write_all(text.as_bytes()).map_err(|e| Stop::new(1, format!("standard output: {e}")))
}

fn check(file: &Path) -> Result<u8, Stop> {
    give_up_privileges(None)?;
    let shown = file.display();
    let trusted = Source::new(file.to_owned(), Trust::Root).policy().map(|_| ()).is_ok();
    match Source::new(file.to_owned(), Trust::Anybody).policy() {
        Ok(policy) => {
            let (rules, limits) = (policy.rules.len(), policy.limits.len());
            print(&format!("{shown}: {rules} rules, {limits} limits\n"))?;
            if !trusted {
                print(&format!(
                    "{shown}: the helper will not believe it as it is: chown root, chmod go-w, no symbolic link\n"
                ))?;
            }
            Ok(0)
        }
        Err(why) => Err(Stop::new(78, format!("bad policy\n{}", why.join("\n")))),
    }
}

/// Sheds what was inherited and cuts privileges down. Gives whether any capability is left to work with.
fn give_up_privileges(keep: Option<RawFd>) -> Result<bool, Stop> {
    confine::shed(keep);
    let kept = privilege::start().map_err(|e| Stop::new(1, e.to_string()))?;
    confine::harden().map_err(|e| Stop::new(1, format!("cannot harden the process: {e}")))?;
    Ok(!kept.is_empty())
}

fn privileged(keep: Option<RawFd>) -> Result<(), Stop> {
    if give_up_privileges(keep)? {
        return Ok(());
    }
    Err(Stop::new(
        UNAVAILABLE,
        "no capability to work with: install the binary with file capabilities \
         (setcap cap_net_admin,cap_net_raw,cap_bpf,cap_ipc_lock=p), or setuid root, or use the service; \
         no_new_privs or a user namespace of the caller takes them away again",
    ))
}

fn failed(what: &str) -> impl Fn(io::Error) -> Stop {
    move |e| Stop::new(1, format!("{what}: {e}"))
}

/// Descriptor 3: a connected socket is the exec'd door, a listening one the service manager's.
fn inherited() -> Result<(), Stop> {
    let activated = std::env::var("LISTEN_PID").is_ok_and(|pid| pid == std::process::id().to_string());
    let sockets = std::env::var("LISTEN_FDS").unwrap_or_default();
    let elevated = process::is_elevated();
    let fd = process::inherit(channel::INHERITED).ok_or_else(|| {
        Stop::new(
            USAGE,
            "no socket on descriptor 3: this program is started by netreeve, a VMM or systemd (--help)",
        )
    })?;
    privileged(Some(channel::INHERITED))?;
    if activated && !elevated {
        if sockets != "1" {
            return Err(Stop::new(
                USAGE,
                format!("LISTEN_FDS is '{sockets}', not 1: one socket unit, one socket"),
            ));
        }
        let door = Door::activated(fd).map_err(failed("the passed socket is not ListenSequentialPacket="))?;
        return serve(door, Path::new(DEFAULT_PATH), Some(IDLE), None);
    }
    exec_session(fd)
}

/// The exec'd door: judged by real ids. Standard error is the caller's, so the log is the system's.
fn exec_session(fd: OwnedFd) -> Result<(), Stop> {
    let _already = unistd::setsid();
    let channel =
        Channel::from_fd(fd).map_err(failed("descriptor 3 is not a connected AF_UNIX SOCK_SEQPACKET"))?;
    let caller = caller::of_parent(&channel).map_err(failed("descriptor 3 is not the caller's own"))?;
    let log = if caller.uid == 0 { Log::Stderr } else { Log::system() };
    let desk = Desk { policy: Source::new(DEFAULT_PATH.into(), Trust::Root), log };
    // A caller that does not read its answers shall not keep us.
    channel.set_send_timeout(Duration::from_secs(5)).map_err(failed("descriptor 3"))?;
    lock_in(Path::new(DEFAULT_PATH), None)?;
    one_session(&desk, channel, caller);
    Ok(())
}

fn listen(path: &Path, rest: &[&str]) -> Result<(), Stop> {
    let (mut idle, mut policy) = (None, PathBuf::from(DEFAULT_PATH));
    let mut words = rest.iter();
    while let Some(option) = words.next() {
        let value = words.next().ok_or_else(|| Stop::new(USAGE, format!("{option} needs a value")))?;
        match *option {
            "--idle" => {
                let seconds = number(value).ok_or_else(|| Stop::new(USAGE, "--idle takes seconds"))?;
                idle = Some(Duration::from_secs(u64::from(seconds)));
            }
            "--policy" => policy = PathBuf::from(value),
            _ => return Err(Stop::new(USAGE, format!("unknown option {option}"))),
        }
    }
    if process::is_elevated() {
        return Err(Stop::new(USAGE, "--listen is not for a setuid or file-capability binary"));
    }
    // Relative paths mean the caller's directory, which is left in a moment.
    let absolute = |p: &Path| std::path::absolute(p).map_err(failed("the current directory"));
    let (path, policy) = (absolute(path)?, absolute(&policy)?);
    privileged(None)?;
    let door = Door::listen(&path).map_err(failed(&format!("listening at {}", path.display())))?;
    serve(door, &policy, idle, path.parent())
}

fn serve(door: Door, policy: &Path, idle: Option<Duration>, made_in: Option<&Path>) -> Result<(), Stop> {
    let desk = Desk { policy: Source::new(policy.to_owned(), Trust::Root), log: Log::Stderr };
    let service = Service::new(door, desk, idle).map_err(failed("starting the service"))?;
    lock_in(policy, made_in)?;
    service.run().map_err(failed("the service"))
}

/// Landlock and seccomp. `/etc` is read for the policy and for the names of users and groups, whose files are replaced
/// and not rewritten, so that a right to the files themselves would soon be void.
fn lock_in(policy: &Path, unlink: Option<&Path>) -> Result<(), Stop> {
    let mut uses = vec![Use::Read(Path::new("/etc"))];
    uses.extend(policy.parent().map(Use::Read));
    uses.extend(unlink.map(Use::Unlink));
    confine::landlock(&uses).map_err(failed("Landlock"))?;
    confine::seccomp().map_err(failed("seccomp"))
}

/// The face of `qemu-bridge-helper`.
fn bridge(arguments: &[&str]) -> Result<(), String> {
    let order = bridge_helper::parse(arguments)?;
    let socket = process::inherit(order.fd).ok_or_else(|| format!("--fd={} is not open", order.fd))?;
    privileged(Some(order.fd)).map_err(|stop| stop.message)?;
    let log = if unistd::getuid().is_root() { Log::Stderr } else { Log::system() };
    bridge_helper::run(&order, socket, &log)
}
