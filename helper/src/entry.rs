//! Which door the helper was called to, and its start-up order.
//!
//! Trust: whoever starts a setuid or file-capability program chose its arguments. Promise: privileges are cut down
//! before anything of the caller's is read; an elevated process takes no option that names a file.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use netreeve_shared::channel::{self, Channel};
use nix::unistd;

use crate::audit::{Log, escape};
use crate::daemon::{Door, IDLE, Service};
use crate::names::number;
use crate::policy_file::{self, DEFAULT_PATH, Trust};
use crate::serve::{Desk, one_session};
use crate::sys::process;
use crate::{bridge_helper, caller, confine, explain, privilege};

const HELP: &str = include_str!("help.txt");

/// An end before or instead of the work: exit code as in `sysexits.h`, and what failed, why, and what to do.
pub type Stop = (u8, String);

/// Wrong usage (`EX_USAGE`).
#[must_use]
pub fn usage(message: impl Into<String>) -> Stop {
    (64, message.into())
}

fn failed<E: Display>(what: &str) -> impl Fn(E) -> Stop {
    move |e| (1, format!("{what}: {e}"))
}

/// Everything. The exit code is the process's.
#[must_use]
pub fn run() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let text: Option<Vec<&str>> = arguments.iter().map(|a| a.to_str()).collect();
    let done = match text.as_deref() {
        Some([program, arguments @ ..]) => match program.rsplit('/').next() {
            Some(name) if bridge_helper::NAMES.contains(&name) => bridge(arguments),
            _ => dispatch(arguments),
        },
        // argc 0 is somebody's trick (CVE-2021-4034).
        _ => Err(usage("the command line is empty or not UTF-8")),
    };
    let (code, unheard) = match done {
        Ok((code, text)) => (code, io::stdout().write_all(text.as_bytes())),
        Err((code, why)) => {
            let line = format!("netreeve-helper: {}\n", escape(&why));
            (code, io::stderr().write_all(line.as_bytes()))
        }
    };
    ExitCode::from(if unheard.is_err() && code == 0 { 1 } else { code })
}

/// Exit code and what to print.
type Done = Result<(u8, String), Stop>;

fn dispatch(arguments: &[&str]) -> Done {
    let silent = |()| (0, String::new());
    match arguments {
        [] => inherited().map(silent),
        ["--listen", path, rest @ ..] => listen(Path::new(path), rest).map(silent),
        ["--check"] => check(DEFAULT_PATH),
        ["--check", file] => check(file),
        ["--explain", rest @ ..] => give_up_privileges(None).and_then(|_| explain::explain(rest)),
        ["--version"] => Ok((0, concat!("netreeve-helper ", env!("CARGO_PKG_VERSION"), "\n").to_owned())),
        ["--help"] => Ok((0, HELP.to_owned())),
        _ => Err(usage("wrong arguments; --help tells the right ones")),
    }
}

fn check(file: &str) -> Done {
    give_up_privileges(None)?;
    let path = Path::new(file);
    let policy = policy_file::load(path, Trust::Anybody).map_err(|why| (78, format!("bad policy: {why}")))?;
    let (rules, limits) = (policy.rules.len(), policy.limits.len());
    let mut text = format!("{file}: {rules} rules, {limits} limits\n");
    if policy_file::load(path, Trust::Root).is_err() {
        text += "the helper will not believe it as it is: chown root, chmod go-w, no symbolic link\n";
    }
    Ok((0, text))
}

/// Sheds what was inherited and cuts privileges down. Gives whether any capability is left to work with.
fn give_up_privileges(keep: Option<RawFd>) -> Result<bool, Stop> {
    confine::shed(keep);
    let kept = privilege::start().map_err(failed("start"))?;
    confine::harden().map_err(failed("hardening the process"))?;
    Ok(!kept.is_empty())
}

fn privileged(keep: Option<RawFd>) -> Result<(), Stop> {
    if give_up_privileges(keep)? {
        // The caller's directory is not ours to keep busy.
        return unistd::chdir("/").map_err(failed("leaving the directory"));
    }
    // EX_UNAVAILABLE
    let why = "no capability to work with: install the binary with file capabilities (setcap \
               cap_net_admin,cap_net_raw,cap_bpf,cap_ipc_lock,cap_net_bind_service=p), or setuid root, or use the \
               service; no_new_privs or a user namespace of the caller takes them away again";
    Err((69, why.to_owned()))
}

/// Descriptor 3: a connected socket is the exec'd door, a listening one the service manager's.
fn inherited() -> Result<(), Stop> {
    let variable = |name| std::env::var(name).unwrap_or_default();
    let activated = variable("LISTEN_PID") == std::process::id().to_string() && variable("LISTEN_FDS") == "1";
    let none = "no socket on descriptor 3: this program is started by netreeve, a VMM or systemd (--help)";
    let fd = process::inherit(channel::INHERITED).ok_or_else(|| usage(none))?;
    let elevated = process::is_elevated();
    privileged(Some(channel::INHERITED))?;
    if activated && !elevated {
        let door = Door::activated(fd).map_err(failed("the passed socket is not ListenSequentialPacket="))?;
        return serve(door, Path::new(DEFAULT_PATH), Some(IDLE));
    }
    exec_session(fd)
}

/// The exec'd door: judged by real ids. Standard error is the caller's, so the log is the system's.
fn exec_session(fd: OwnedFd) -> Result<(), Stop> {
    let _already = unistd::setsid();
    let channel =
        Channel::from_fd(fd).map_err(failed("descriptor 3 is not a connected AF_UNIX SOCK_SEQPACKET"))?;
    let caller = caller::of_parent(&channel).map_err(failed("descriptor 3 is not the caller's own"))?;
    let log = Log::of_caller(caller.uid);
    let desk = Desk { policy: DEFAULT_PATH.into(), log };
    // A caller that does not read its answers shall not keep us.
    channel.set_send_timeout(Duration::from_secs(5)).map_err(failed("descriptor 3"))?;
    lock_in(Path::new(DEFAULT_PATH))?;
    one_session(&desk, channel, caller);
    Ok(())
}

fn listen(path: &Path, mut rest: &[&str]) -> Result<(), Stop> {
    let (mut idle, mut policy) = (None, DEFAULT_PATH);
    while let [option, value, more @ ..] = rest {
        match (*option, number(value)) {
            ("--idle", Some(seconds)) => idle = Some(Duration::from_secs(seconds.into())),
            ("--policy", _) => policy = *value,
            _ => return Err(usage("--listen takes --idle SECONDS and --policy FILE")),
        }
        rest = more;
    }
    if !rest.is_empty() || process::is_elevated() {
        return Err(usage("an option lacks its value, or the binary is setuid or has file capabilities"));
    }
    // Relative paths mean the caller's directory, which is left in a moment.
    let absolute = |p: &Path| std::path::absolute(p).map_err(failed("the current directory"));
    let (path, policy) = (absolute(path)?, absolute(policy.as_ref())?);
    privileged(None)?;
    let door = Door::listen(&path).map_err(failed(&format!("listening at {}", path.display())))?;
    serve(door, &policy, idle)
}

fn serve(door: Door, policy: &Path, idle: Option<Duration>) -> Result<(), Stop> {
    let desk = Desk { policy: policy.to_owned(), log: Log::Stderr };
    lock_in(policy)?;
    Service::new(door, desk, idle).run().map_err(failed("the service"))
}

/// Landlock and seccomp. `/etc` is read for the policy and for the names of users and groups, whose files are replaced
/// and not rewritten, so that a right to the files themselves would soon be void.
fn lock_in(policy: &Path) -> Result<(), Stop> {
    let etc = Path::new("/etc");
    confine::lock_in(&[etc, policy.parent().unwrap_or(etc)]).map_err(failed("locking in"))
}

/// The face of `qemu-bridge-helper`: every failure is 1.
fn bridge(arguments: &[&str]) -> Done {
    let run = || {
        let order = bridge_helper::parse(arguments)?;
        let socket = process::inherit(order.fd).ok_or_else(|| format!("--fd={} is not open", order.fd))?;
        privileged(Some(order.fd)).map_err(|(_, why)| why)?;
        bridge_helper::run(&order, socket, &Log::of_caller(unistd::getuid().as_raw()))
    };
    run().map(|()| (0, String::new())).map_err(|why| (1, why))
}
