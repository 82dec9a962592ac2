//! `netreeve run`.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use nix::unistd::{Group, Uid, User, geteuid};

use crate::cli::{Run, attach, daemon};
use crate::fault::{Exit, Fault};
use crate::handover::{Level, RunPlan};
use crate::spec::{Config, Kind, late};
use crate::supervise::child::Program;
use crate::supervise::control::Where;
use crate::supervise::ready::Ready;
use crate::supervise::{self, Options, say};
use crate::sys;

/// Who the dataplane is when root starts it without a sandbox.
const NOBODY: u32 = 65534;
const DATAPLANE: &str = "netreeve-dataplane";

/// `--sandbox`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sandbox(Level);

impl FromStr for Sandbox {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s {
            "full" => Ok(Self(Level::Full)),
            "landlock" => Ok(Self(Level::Landlock)),
            "seccomp" => Ok(Self(Level::Seccomp)),
            "off" => Ok(Self(Level::Off)),
            _ => Err("full, landlock, seccomp or off"),
        }
    }
}

/// `--socket-mode`: permission bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mode(pub(super) u32);

impl FromStr for Mode {
    type Err = &'static str;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let digits = s.bytes().all(|b| b.is_ascii_digit());
        let mode = u32::from_str_radix(s, 8).ok().filter(|m| digits && *m <= 0o777);
        mode.map(Self).ok_or("permission bits in octal, 0600 for instance")
    }
}

pub(super) fn run(arguments: Run) -> Result<u8, Fault> {
    let mut config = config(&arguments)?;
    let mut arguments = arguments;
    config.objects(&arguments.object)?;
    let attached = attach::complete(&mut config, &mut arguments.command)?;
    let control = Where { name: arguments.name, path: arguments.control, client: arguments.control_fd };
    let hotplug = hotplug(&arguments.hotplug, &control)?;
    // What is not there yet may come.
    if hotplug.is_empty() {
        check(&config, &arguments.command)?;
    }
    alone(&config, &hotplug)?;
    if arguments.lock_mac {
        lock(&mut config)?;
    }
    if arguments.daemonize && !daemon::is_child() {
        return daemon::start();
    }
    attached.notes.iter().for_each(|note| say::say(note));
    let off = arguments.sandbox.0 == Level::Off;
    let program =
        Program { path: program(arguments.dataplane)?, user: user(arguments.user.as_deref(), off)? };
    let ready_fd = match arguments.ready_fd {
        None => None,
        Some(n) => Some(sys::process::adopt(n).map_err(|e| {
            let fix = "pass an open descriptor, as in: --ready-fd 5 5>FILE";
            Fault::new(Exit::Config, format!("--ready-fd {n}"), e, fix)
        })?),
    };
    let ready = Ready {
        fd: ready_fd,
        pid_file: arguments.pid,
        json: arguments.json,
        notify: std::env::var_os("NOTIFY_SOCKET"),
    };
    let run = RunPlan {
        at_least: arguments.sandbox.0,
        sandbox_off: off,
        busy_poll_us: arguments.busy_poll,
        workers: arguments.workers.unwrap_or(0),
    };
    let options = Options {
        door: arguments.ports.helper.door(),
        program,
        run,
        socket_mode: arguments.socket_mode.0,
        ready,
        hotplug,
        control,
        stats: arguments.stats,
        one_off: arguments.one_off,
        command: arguments.command,
        after_ready: if arguments.daemonize { Some(daemon::let_go()?) } else { daemon::stay() },
    };
    let end = supervise::run(config, options);
    // Its sockets are gone by now.
    drop(attached);
    end
}

/// What the options say; without a netdev there is a user network for what wants one.
fn config(arguments: &Run) -> Result<Config, Fault> {
    let none = arguments.ports.netdev.is_empty() && arguments.ports.config.is_none();
    let wanted = !arguments.device.is_empty() || !arguments.command.is_empty();
    // Ports that are to come may bring their own.
    if none && wanted && arguments.hotplug.is_empty() {
        return Config::with_user(&arguments.device);
    }
    arguments.ports.read(&arguments.device)
}

/// A user network is made at the start, and nothing is added beside it.
fn alone(config: &Config, hotplug: &[String]) -> Result<(), Fault> {
    if hotplug.is_empty() || !config.ports.iter().any(|p| matches!(p.kind, Kind::User(_))) {
        return Ok(());
    }
    let why = "nothing can be added to the dataplane of a user network, since that may make sockets";
    Err(Fault::new(Exit::Usage, "--hotplug", why, "leave --hotplug out, or give another --netdev"))
}

/// `--hotplug`: types that may be added later.
fn hotplug(types: &[String], control: &Where) -> Result<Vec<String>, Fault> {
    let fault = |why: String, fix: String| Err(Fault::new(Exit::Usage, "--hotplug", why, fix));
    let mut all: Vec<&str> = late::HOTPLUG.iter().map(|(name, _)| *name).collect();
    all.dedup();
    if types.iter().any(|t| t == "all") {
        return Ok(all.into_iter().map(str::to_owned).collect());
    }
    if let Some(other) = types.iter().find(|t| !all.contains(&t.as_str())) {
        return fault(
            format!("type '{other}' cannot be added later"),
            format!("all, or of {}", all.join(", ")),
        );
    }
    if !types.is_empty() && *control == Where::default() {
        let fix = "give --name NAME as well";
        return fault("there is no control socket over which to add anything".into(), fix.into());
    }
    Ok(types.to_vec())
}

/// There is something to do.
fn check(config: &Config, command: &[OsString]) -> Result<(), Fault> {
    let usage = |why: &str, fix: &str| Err(Fault::new(Exit::Usage, "run", why, fix));
    if config.ports.is_empty() {
        let example =
            "netreeve run -- qemu-system-x86_64 ...; or netreeve run --device vhost-user,path=vm.sock";
        return usage("there is nobody to give a network to: no command and no --device", example);
    }
    // A place in a hub may wait for its member, and a switch has clients.
    match config.unjoined().find(|p| !matches!(p.kind, Kind::Hub(_) | Kind::Switch(_))) {
        None => Ok(()),
        Some(port) if !command.is_empty() => {
            let why = format!("netdev {} has no peer, and the command is no QEMU command line", port.id);
            let fix =
                "write {vhost-user} or {stream} where the command takes its socket's path, or add --device";
            usage(&why, fix)
        }
        Some(port) => {
            let why = format!("netdev {} has no peer", port.id);
            usage(&why, &format!("add --device vhost-user,netdev={},path=vm.sock", port.id))
        }
    }
}

/// `--lock-mac`: every device that does not say otherwise.
fn lock(config: &mut Config) -> Result<(), Fault> {
    for wire in &mut config.wires {
        if wire.lock_mac.is_some() {
            continue;
        }
        let Some(port) = config.ports.get(wire.device) else { continue };
        let mac = match &port.kind {
            Kind::VhostUser(v) => v.mac,
            _ => None,
        };
        let what = format!("--lock-mac: device '{}'", port.id);
        let fix = "give it mac=, or lock-mac=MAC instead of --lock-mac";
        wire.lock_mac = Some(mac.ok_or_else(|| Fault::new(Exit::Config, what, "it has no mac=", fix))?);
    }
    Ok(())
}

/// The dataplane's binary.
pub(super) fn program(given: Option<PathBuf>) -> Result<PathBuf, Fault> {
    if let Some(path) = given {
        // It is started from the root directory.
        let absolute = std::path::absolute(&path);
        return absolute
            .map_err(|e| Fault::new(Exit::Config, format!("--dataplane {}", path.display()), e, ""));
    }
    let own = std::env::current_exe().map_err(|e| {
        Fault::new(Exit::Unavailable, "finding netreeve-dataplane", e, "name it: --dataplane PATH")
    })?;
    let beside = own.with_file_name(DATAPLANE);
    let libexec = Path::new("/usr/libexec/netreeve").join(DATAPLANE);
    Ok(if !beside.exists() && libexec.exists() { libexec } else { beside })
}

/// Who the dataplane is. Started as root it leaves root by itself, in its sandbox.
fn user(name: Option<&str>, sandbox_off: bool) -> Result<Option<(u32, u32)>, Fault> {
    let Some(name) = name else {
        if geteuid().is_root() && sandbox_off {
            let text = "warning: started as root without a sandbox: the dataplane runs as uid";
            say::say(&format!("{text} {NOBODY}"));
            return Ok(Some((NOBODY, NOBODY)));
        }
        return Ok(None);
    };
    let fault = |exit, why: &str, fix: &str| Fault::new(exit, format!("--user {name}"), why, fix);
    if !geteuid().is_root() {
        return Err(fault(Exit::Denied, "only root can run the dataplane as another user", "leave it out"));
    }
    let (login, group) = name.split_once(':').map_or((name, None), |(l, g)| (l, Some(g)));
    let ids = |u: User| (u.uid.as_raw(), u.gid.as_raw());
    let found = match login.parse::<u32>() {
        // A number needs no entry in the user database.
        Ok(uid) => User::from_uid(Uid::from_raw(uid)).ok().flatten().map(ids).or(Some((uid, uid))),
        Err(_) => User::from_name(login).ok().flatten().map(ids),
    };
    let group = group.map(|g| match g.parse::<u32>() {
        Ok(gid) => Some(gid),
        Err(_) => Group::from_name(g).ok().flatten().map(|g| g.gid.as_raw()),
    });
    if matches!(group, Some(None | Some(0))) {
        return Err(fault(
            Exit::Config,
            "no such group, or root's",
            "name an unprivileged group, or leave it out",
        ));
    }
    let found = found.map(|(uid, gid)| (uid, group.flatten().unwrap_or(gid)));
    match found {
        None => Err(fault(Exit::Config, "no such user", "make it: sudo useradd --system netreeve")),
        Some((0, _)) => {
            Err(fault(Exit::Config, "that is root", "name an unprivileged user, or leave it out"))
        }
        found => Ok(found),
    }
}
