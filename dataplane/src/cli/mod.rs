//! The command line of `netreeve`.
//!
//! Trust: the user. Promise: every way to end has its exit code ([`Exit`]), every error its three parts.
#![forbid(unsafe_code)]

mod attach;
mod control;
mod daemon;
mod doctor;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod grant;
mod list;
mod passt;
mod pasta;
mod run;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::fault::{Exit, Fault};
use crate::spec::Config;
use crate::supervise::ask::Door;
use crate::supervise::control::place;
use crate::supervise::ready::print_line;
use crate::supervise::say;

/// Gives a virtual machine any network without privilege for its VMM.
#[derive(Debug, Parser)]
#[command(name = "netreeve", version)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Joins netdevs and devices and carries frames until told to end.
    Run(Box<Run>),
    /// Gets descriptors from the helper and starts a command that uses them.
    Grant(Grant),
    /// Tells what this machine has and lacks, and how to fix it.
    Doctor(Doctor),
    /// Lists the named instances that run, or the ports of one.
    Ls(control::Ls),
    /// Shows an instance, or one of its ports, in full.
    Show(control::Show),
    /// Prints counters of instances.
    Stats(control::Stats),
    /// Changes a port of a running instance.
    Set(control::Set),
    /// Adds ports to a running instance that was prepared for them (run --hotplug).
    Add(control::Add),
    /// Removes ports of a running instance.
    Remove(control::Remove),
    /// Prints what happens to an instance, as it happens.
    Events(control::Events),
    /// Writes the frames of a port to a file or a pipe, until interrupted.
    Capture(control::Capture),
    /// Lists the ports of this version and what they need.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

/// What is joined.
#[derive(Debug, Args)]
struct Ports {
    /// Host side: QEMU's -netdev, as `type,key=value` or JSON: user, tap, bridge, af-xdp, stream [default: user,id=net0].
    #[arg(long, value_name = "NETDEV")]
    netdev: Vec<String>,
    /// A TOML file with [[netdev]] and [[device]] tables.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    helper: HelperArgs,
}

/// Which helper is asked.
#[derive(Clone, Debug, Args)]
struct HelperArgs {
    /// Where netreeve's helper listens [default: /run/netreeve/helper.sock].
    #[arg(long, value_name = "PATH", conflicts_with = "helper")]
    helper_socket: Option<PathBuf>,
    /// Start this helper (with its file capabilities) instead of asking the service.
    #[arg(long, value_name = "PATH")]
    helper: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    ports: Ports,
    /// VM side: what the VMM attaches to, `type,netdev=ID,key=value`: vhost-user, stream.
    #[arg(long, value_name = "DEVICE")]
    device: Vec<String>,
    /// QEMU's -object for a port: filter-dump,id=ID,netdev=ID,file=PATH.
    #[arg(long, value_name = "OBJECT")]
    object: Vec<String>,
    /// The least sandbox that is accepted: full, landlock, seccomp, off.
    #[arg(long, value_name = "LEVEL", default_value = "full")]
    sandbox: run::Sandbox,
    /// Look for frames for at most so many microseconds before sleeping.
    #[arg(long, value_name = "US", default_value_t = 0)]
    busy_poll: u32,
    /// Threads that carry frames [default: one for each queue, up to the number of processors].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=128))]
    workers: Option<u16>,
    /// Each device may only send from its own mac=.
    #[arg(long)]
    lock_mac: bool,
    /// Permission bits of unix sockets, in octal.
    #[arg(long, value_name = "MODE", default_value = "0600")]
    socket_mode: run::Mode,
    /// Run the dataplane as this user (started as root only).
    #[arg(long, value_name = "NAME|UID[:GROUP]")]
    user: Option<String>,
    /// The dataplane's binary [default: beside this one].
    #[arg(long, value_name = "PATH")]
    dataplane: Option<PathBuf>,
    /// Write `ready` and a newline to this descriptor when frames can pass.
    #[arg(long, value_name = "N")]
    ready_fd: Option<i32>,
    /// Write the process id to this file when frames can pass.
    #[arg(long, value_name = "FILE")]
    pid: Option<PathBuf>,
    /// Go to the background; the command returns when frames can pass.
    #[arg(long)]
    daemonize: bool,
    /// Events as JSON lines on standard output; the first when frames can pass.
    #[arg(long)]
    json: bool,
    /// Name of this instance, by which the other commands find its control socket.
    #[arg(long, value_name = "NAME", value_parser = name)]
    name: Option<String>,
    /// The control socket's path [default: where --name has it; without either there is none].
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// A connected socket with a client of the control socket's at its other end.
    #[arg(long, value_name = "N")]
    control_fd: Option<i32>,
    /// Types of ports that may be added later, or all; the dataplane's filter allows what they need.
    #[arg(long, value_name = "TYPE,...", value_delimiter = ',')]
    hotplug: Vec<String>,
    /// End when the VMM that came has left.
    #[arg(long)]
    one_off: bool,
    /// Print the counters at the end (SIGUSR1 prints them any time).
    #[arg(long)]
    stats: bool,
    /// A command to start when frames can pass; netreeve ends with it. What attaches QEMU is added; {vhost-user},
    /// {stream} or {dgram} is a socket for another VMM, {ID.path} that of a port.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
struct Grant {
    #[command(flatten)]
    ports: Ports,
    /// The command to start; {ID} is a netdev's descriptors (5 or 5:6:7), {ID.ifname} its interface.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Debug, Args)]
struct Doctor {
    /// With --netdev: asks the helper for it and gives it back at once.
    #[command(flatten)]
    ports: Ports,
    /// The dataplane's binary [default: beside this one].
    #[arg(long, value_name = "PATH")]
    dataplane: Option<PathBuf>,
}

/// An instance's name.
fn name(text: &str) -> Result<String, &'static str> {
    let why = "letters, digits, '-', '_' and '.', 64 at most, a letter or digit first";
    if place::is_name(text) { Ok(text.to_owned()) } else { Err(why) }
}

/// Runs the program, under either of its names.
#[must_use]
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some(end) = pasta::stage(&words) {
        return end;
    }
    let name = std::env::args_os().next().unwrap_or_default();
    let end = if passt::is_name(&name) {
        called_passt()
    } else if pasta::is_name(&name) {
        pasta::start(&words).and_then(|next| match next {
            pasta::Next::Done(code) => Ok(code),
            pasta::Next::Run(words) => as_run("pasta", words),
        })
    } else {
        match Cli::try_parse() {
            Ok(cli) => verb(cli.command),
            Err(e) => return usage(&e),
        }
    };
    match end {
        Ok(code) => ExitCode::from(code),
        Err(fault) => {
            say::fault(&fault);
            ExitCode::from(fault.exit.code())
        }
    }
}

/// Does what passt's command line says.
fn called_passt() -> Result<u8, Fault> {
    let own: Vec<String> = std::env::args_os().skip(1).map(|w| w.to_string_lossy().into_owned()).collect();
    let words = match passt::translate(&own, passt::free)? {
        passt::Plan::Say(text) => {
            print_line(&text).map_err(|e| Fault::new(Exit::General, "writing to standard output", e, ""))?;
            return Ok(0);
        }
        passt::Plan::Run(words, log) => {
            daemon::log_to(log.as_ref())?;
            words
        }
    };
    as_run("passt", words.into_iter().map(OsString::from).collect())
}

/// Runs the words that another command line came to.
fn as_run(name: &str, words: Vec<OsString>) -> Result<u8, Fault> {
    let words = std::iter::once(OsString::from("netreeve")).chain(words);
    let cli = Cli::try_parse_from(words).map_err(|e| {
        let why = e.to_string().lines().next().unwrap_or_default().to_owned();
        Fault::new(Exit::Usage, format!("{name}: a value"), why, "see passt(1) and netreeve(1)")
    })?;
    verb(cli.command)
}

fn verb(verb: Verb) -> Result<u8, Fault> {
    match verb {
        Verb::Run(arguments) => run::run(*arguments),
        Verb::Grant(arguments) => grant::grant(&arguments),
        Verb::Doctor(arguments) => doctor::doctor(&arguments),
        Verb::Ls(arguments) => control::ls(&arguments),
        Verb::Show(arguments) => control::show(&arguments),
        Verb::Stats(arguments) => control::stats(&arguments),
        Verb::Set(arguments) => control::set(&arguments),
        Verb::Add(arguments) => control::add(&arguments),
        Verb::Remove(arguments) => control::remove(&arguments),
        Verb::Events(arguments) => control::events(&arguments),
        Verb::Capture(arguments) => control::capture(&arguments),
        Verb::List { json } => list::list(json),
    }
}

/// Help and version go to standard output and are no errors.
fn usage(e: &clap::Error) -> ExitCode {
    let text = e.render().to_string();
    if e.use_stderr() {
        // There is nobody left to tell if standard error is closed.
        let _said = std::io::stderr().write_all(text.as_bytes());
        return ExitCode::from(Exit::Usage.code());
    }
    let _said = std::io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

impl HelperArgs {
    fn door(&self) -> Door {
        match (&self.helper, &self.helper_socket) {
            (Some(path), _) => Door::Exec(path.clone()),
            (None, Some(path)) => Door::Socket(path.clone()),
            (None, None) => Door::default(),
        }
    }
}

impl Ports {
    fn read(&self, devices: &[String]) -> Result<Config, Fault> {
        let Some(path) = &self.config else { return Config::read(&self.netdev, devices, None) };
        let name = path.display().to_string();
        let body = std::fs::read_to_string(path).map_err(|e| {
            Fault::new(Exit::Config, format!("reading --config {name}"), e, "give a readable TOML file")
        })?;
        Config::read(&self.netdev, devices, Some((&name, &body)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    /// Manual and completions are written by hand; this is what keeps them true.
    #[test]
    fn manual_and_completions_name_every_subcommand_and_option_and_no_other() {
        let manual = include_str!("../../../packaging/man/netreeve.1");
        let bash = include_str!("../../../packaging/completions/netreeve.bash");
        let fish = include_str!("../../../packaging/completions/netreeve.fish");
        let zsh = include_str!("../../../packaging/completions/_netreeve");
        let command = Cli::command();
        let mut options = vec!["help", "version"];
        for verb in command.get_subcommands() {
            let name = verb.get_name();
            assert!(manual.contains(&format!("\n.It Cm {name}\n")), "netreeve.1 lacks {name}");
            assert!(bash.contains(&format!(" {name}) COMPREPLY=")), "netreeve.bash lacks {name}");
            assert!(fish.contains(&format!(" -a {name} ")), "netreeve.fish lacks {name}");
            assert!(zsh.contains(&format!("'{name}:")), "_netreeve lacks {name}");
            options.extend(verb.get_arguments().filter_map(clap::Arg::get_long));
        }
        for option in &options {
            let word = |text: &str, before: &str| {
                let whole = |rest: &str| !rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '-');
                text.match_indices(&format!("{before}{option}")).any(|(at, m)| whole(&text[at + m.len()..]))
            };
            assert!(word(manual, "Fl -"), "netreeve.1 lacks --{option}");
            assert!(word(bash, "--"), "netreeve.bash lacks --{option}");
            assert!(word(fish, "-l "), "netreeve.fish lacks --{option}");
            assert!(word(zsh, "--"), "_netreeve lacks --{option}");
        }
        for text in [bash, zsh] {
            for at in text.match_indices("--").map(|(at, _)| at + 2) {
                let name: String =
                    text[at..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
                let known = name.is_empty() || options.contains(&name.as_str());
                assert!(known, "--{name} is completed, and does not exist");
            }
        }
    }

    #[test]
    fn options_arrive() {
        let text = "netreeve run --netdev tap,id=n0 --device vhost-user,netdev=n0,path=/p --sandbox landlock \
                    --socket-mode 660 --busy-poll 50 --lock-mac -- qemu -x";
        let cli = Cli::try_parse_from(text.split_whitespace());
        let Verb::Run(run) = cli.unwrap().command else { panic!() };
        assert_eq!((run.ports.netdev.len(), run.device.len(), run.busy_poll), (1, 1, 50));
        assert_eq!((run.socket_mode.0, run.lock_mac), (0o660, true));
        assert_eq!(run.command, ["qemu", "-x"]);
        for bad in [
            "netreeve run --sandbox none",
            "netreeve run --socket-mode 9",
            "netreeve grant --netdev tap,id=a",
            "netreeve run --helper /a --helper-socket /b",
            "netreeve",
        ] {
            assert!(Cli::try_parse_from(bad.split_whitespace()).is_err(), "{bad}");
        }
    }
}
