//! `netreeve doctor`: what this machine has and lacks; each line is ok, warn or fail, with the fix.
//!
//! It asks for what it tells of wherever that is possible without privilege: the sandbox is tried by starting a
//! dataplane, the helper by opening a session, a netdev (if named) by asking for it.
#![forbid(unsafe_code)]

mod xdp;

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use netreeve_shared::client::Helper;
use netreeve_shared::request::Request;
use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::geteuid;

use crate::cli::{Doctor, run};
use crate::fault::{Exit, Fault};
use crate::handover::{FromDataplane, Level, Plan, RunPlan};
use crate::mem::uring::Uring;
use crate::port::user::Limits;
use crate::spec::{Config, Kind, tap::Tap};
use crate::supervise::ask::{Asker, Door};
use crate::supervise::child::{Program, READY_WITHIN, in_words};
use crate::supervise::filters::Chain;
use crate::supervise::ready::{level_name, print_line};
use crate::supervise::slots::Slots;
use crate::sys::kernel::{MAPS_BOUND, Version, version};
use crate::sys::sock::{self, Opt, Speaks};

/// Descriptors that a big dataplane needs.
const DESCRIPTORS: u64 = 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Ok,
    Warn,
    Fail,
}

/// One line, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    mark: Mark,
    topic: String,
    text: String,
    fix: String,
}

impl Finding {
    fn ok(topic: impl Into<String>, text: impl Into<String>) -> Self {
        Self { mark: Mark::Ok, topic: topic.into(), text: text.into(), fix: String::new() }
    }

    fn bad(mark: Mark, topic: impl Into<String>, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { mark, topic: topic.into(), text: text.into(), fix: fix.into() }
    }

    fn print(&self) -> std::io::Result<()> {
        let mark = match self.mark {
            Mark::Ok => "ok",
            Mark::Warn => "warn",
            Mark::Fail => "fail",
        };
        print_line(&format!("{mark:<5} {:<16} {}", self.topic, crate::fault::plain(&self.text)))?;
        if self.fix.is_empty() { Ok(()) } else { print_line(&format!("{:>22} fix: {}", "", self.fix)) }
    }
}

pub(super) fn doctor(arguments: &Doctor) -> Result<u8, Fault> {
    let config = arguments.ports.read(&[])?;
    let program = run::program(arguments.dataplane.clone())?;
    let door = arguments.ports.helper.door();
    let mut all = vec![kernel(), user(), tun(), io_uring(), af_xdp(), streams()];
    all.extend(user_namespaces());
    all.push(landlock());
    all.push(sandbox(&Program { path: program, user: None }));
    all.extend([memlock(), descriptors(), helper(&door)]);
    all.extend(interfaces());
    all.extend(netdevs(config, door));
    let printed: std::io::Result<()> = all.iter().try_for_each(Finding::print);
    printed.map_err(|e| Fault::new(Exit::General, "writing to standard output", e, ""))?;
    let failed = all.iter().any(|f| f.mark == Mark::Fail);
    Ok(if failed { Exit::Unavailable.code() } else { 0 })
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|t| t.trim().to_owned())
}

fn kernel() -> Finding {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    match version(&release) {
        Some(v) if v >= (6, 12) => Finding::ok("kernel", release),
        Some(v) if v >= (5, 15) => {
            let text = format!("{release}: works; Landlock's scopes need 6.12");
            Finding::bad(Mark::Warn, "kernel", text, "a newer kernel gives a stronger sandbox")
        }
        _ => Finding::bad(Mark::Fail, "kernel", release, "Linux 5.15 or newer"),
    }
}

fn user() -> Finding {
    let caps = caps::read(None, caps::CapSet::Effective).unwrap_or_default();
    let uid = geteuid();
    if uid.is_root() || !caps.is_empty() {
        let text = format!("uid {uid} with {} capabilities: none is needed", caps.len());
        return Finding::bad(Mark::Warn, "user", text, "run netreeve as an ordinary user");
    }
    Finding::ok("user", format!("uid {uid}, no capabilities: none is needed"))
}

fn tun() -> Finding {
    if Path::new("/dev/net/tun").exists() {
        return Finding::ok("tap", "/dev/net/tun is there (the helper opens it)");
    }
    Finding::bad(Mark::Fail, "tap", "/dev/net/tun is missing", "sudo modprobe tun")
}

/// Whether a tap's frames can be read and written many at a time, by trying.
fn io_uring() -> Finding {
    let ring = UnixDatagram::pair().and_then(|(near, _far)| Uring::new(near.as_fd()));
    match ring {
        Ok(_) => Finding::ok("io_uring", "can be restricted; taps use it"),
        Err(e) => {
            let setting = read("/proc/sys/kernel/io_uring_disabled").filter(|t| t != "0");
            let why = setting.map_or_else(|| e.to_string(), |n| format!("kernel.io_uring_disabled is {n}"));
            Finding::ok("io_uring", format!("not to be had ({why}): taps make a system call for each frame"))
        }
    }
}

/// Whether a user network's downloads can stay in the kernel until the guest has them, by trying.
fn streams() -> Finding {
    let peeks = |six| sock::new(Speaks::Tcp, six).and_then(|s| sock::set(s.as_fd(), Opt::PeekOff, 0)).is_ok();
    let older = match (peeks(false), peeks(true)) {
        (true, true) => {
            return Finding::ok("user", "what a guest downloads stays in the kernel until the guest has it");
        }
        (true, false) => "IPv6 (Linux 6.11 or newer)",
        _ => "TCP (Linux 6.9 or newer, 6.11 for IPv6)",
    };
    let text =
        format!("this kernel has no SO_PEEK_OFF for {older}: a user network copies what a guest downloads");
    Finding::ok("user", text)
}

fn af_xdp() -> Finding {
    let release = read("/proc/sys/kernel/osrelease").unwrap_or_default();
    judge_af_xdp(version(&release), &release)
}

fn judge_af_xdp(version: Option<Version>, release: &str) -> Finding {
    if version.is_some_and(|v| v >= MAPS_BOUND) {
        return Finding::ok("af-xdp", "a dead dataplane's sockets can be taken over");
    }
    let text = format!(
        "{release}: works if the policy allows xsk and xsk-pinned; the sockets of a dataplane that dies cannot be taken over before Linux 6.4"
    );
    let fix = "a newer kernel; or a service manager that starts netreeve again";
    Finding::bad(Mark::Warn, "af-xdp", text, fix)
}

fn user_namespaces() -> Vec<Finding> {
    let zero = |path: &str| read(path).is_some_and(|t| t == "0");
    let mut out = Vec::new();
    if zero("/proc/sys/user/max_user_namespaces") {
        let fix = "sudo sysctl user.max_user_namespaces=15000";
        out.push(Finding::bad(Mark::Warn, "user namespaces", "forbidden by user.max_user_namespaces", fix));
    }
    if zero("/proc/sys/kernel/unprivileged_userns_clone") {
        let fix = "sudo sysctl kernel.unprivileged_userns_clone=1";
        out.push(Finding::bad(Mark::Warn, "user namespaces", "forbidden to the unprivileged", fix));
    }
    if read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").is_some_and(|t| t == "1") {
        let fix = "load netreeve's AppArmor profile (sudo apparmor_parser -r /etc/apparmor.d/netreeve); \
                   for netreeve-pasta see apparmor-pasta in /usr/share/doc/netreeve/examples as well";
        out.push(Finding::bad(Mark::Warn, "user namespaces", "AppArmor restricts them", fix));
    }
    if out.is_empty() {
        out.push(Finding::ok("user namespaces", "allowed"));
    }
    out
}

fn landlock() -> Finding {
    match read("/sys/kernel/security/lsm") {
        Some(list) if list.split(',').any(|m| m == "landlock") => Finding::ok("landlock", "enabled"),
        Some(list) => {
            let fix = "add landlock to the kernel's lsm= parameter";
            Finding::bad(Mark::Warn, "landlock", format!("not among the security modules ({list})"), fix)
        }
        // Not readable in a container; the next line tries it.
        None => Finding::ok("landlock", "the list of security modules cannot be read here; see sandbox"),
    }
}

/// Starts a dataplane without ports and sees how far it locks itself in.
fn sandbox(program: &Program) -> Finding {
    match try_sandbox(program) {
        Ok(Level::Full) => Finding::ok("sandbox", "full"),
        Ok(level) => {
            let text = format!("only '{}'", level_name(level));
            Finding::bad(Mark::Warn, "sandbox", text, format!("--sandbox {} accepts it", level_name(level)))
        }
        Err(why) => Finding::bad(Mark::Fail, "sandbox", why, "see the lines above"),
    }
}

fn try_sandbox(program: &Program) -> Result<Level, String> {
    let run = RunPlan { at_least: Level::Seccomp, sandbox_off: false, busy_poll_us: 0, workers: 1 };
    let plan = Plan::new(Vec::new(), Vec::new(), run);
    let mut dataplane = program
        .start(&plan, &mut Slots::default(), &mut [], &Chain::default())
        .map_err(|f| format!("{}: {}", f.what, f.why))?;
    let until = Instant::now() + READY_WITHIN;
    while Instant::now() < until {
        match dataplane.hear(Instant::now()) {
            Ok(heard) => {
                for message in heard {
                    match message.0 {
                        FromDataplane::Ready { level } => {
                            dataplane.end(Duration::from_secs(1));
                            return Ok(level);
                        }
                        FromDataplane::Failed { why, .. } => return Err(why),
                        _ => {}
                    }
                }
            }
            Err(_) => return Err(format!("the dataplane {}", in_words(dataplane.closed()))),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    dataplane.kill();
    Err("the dataplane did not become ready".into())
}

fn memlock() -> Finding {
    let text = match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((soft, _)) if soft == u64::MAX => "unlimited".to_owned(),
        Ok((soft, _)) => format!("{} KiB", soft >> 10),
        Err(e) => e.to_string(),
    };
    Finding::ok(
        "memlock",
        format!("{text}; AF_XDP memory is registered by the helper and limited by its policy"),
    )
}

fn descriptors() -> Finding {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, hard)) if hard < DESCRIPTORS => {
            let fix = format!("raise the limit: ulimit -Hn {DESCRIPTORS}");
            Finding::bad(Mark::Warn, "descriptors", format!("at most {hard}: too few for many queues"), fix)
        }
        Ok((_, hard)) if Limits::default().within(hard).tcp < Limits::default().tcp => {
            let (most, all) = (Limits::default().within(hard).tcp, Limits::default());
            let what =
                format!("at most {hard}: a user network carries {most} TCP connections, not {}", all.tcp);
            let fix = format!("raise the limit: ulimit -Hn {}", all.descriptors());
            Finding::bad(Mark::Warn, "descriptors", what, fix)
        }
        Ok((_, hard)) => Finding::ok("descriptors", format!("up to {hard}")),
        Err(e) => Finding::bad(Mark::Warn, "descriptors", e.to_string(), ""),
    }
}

fn helper(door: &Door) -> Finding {
    let (what, session) = match door {
        Door::Socket(path) => (format!("listens at {}", path.display()), Helper::connect(path)),
        Door::Exec(path) => (format!("{} starts", path.display()), Helper::exec(path)),
    };
    match session {
        Ok(_) => Finding::ok("helper", what),
        Err(e) => {
            let fault = crate::supervise::ask::not_reached("no session", door, &e);
            Finding::bad(Mark::Fail, "helper", format!("{}: {}", fault.what, fault.why), fault.fix)
        }
    }
}

fn interfaces() -> Vec<Finding> {
    let features = xdp::features();
    let Ok(dir) = fs::read_dir("/sys/class/net") else { return Vec::new() };
    let mut names: Vec<String> = dir.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names.iter().filter(|n| *n != "lo").map(|n| interface(n, features.as_ref().ok())).collect()
}

fn interface(name: &str, features: Option<&std::collections::BTreeMap<u32, u64>>) -> Finding {
    let sys = |leaf: &str| read(&format!("/sys/class/net/{name}/{leaf}"));
    let queues = fs::read_dir(format!("/sys/class/net/{name}/queues"))
        .map_or(0, |d| d.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("rx-")).count());
    let index = sys("ifindex").and_then(|t| t.parse::<u32>().ok()).unwrap_or(0);
    let bits = features.and_then(|f| f.get(&index)).copied();
    let mode = bits.map_or("XDP: skb; native unknown (the kernel tells since 6.3)".to_owned(), modes);
    let mtu = sys("mtu").unwrap_or_default();
    Finding::ok(name, format!("{mode}; {queues} receive queues, MTU {mtu}"))
}

fn modes(bits: u64) -> String {
    let native = BASIC_REDIRECT & bits == BASIC_REDIRECT;
    if !native {
        return "XDP: skb".into();
    }
    let mut text = "XDP: native, skb".to_owned();
    for (bit, word) in [(xdp::ZERO_COPY, ", zero-copy"), (xdp::MULTI_BUFFER, ", multi-buffer")] {
        if bits & bit != 0 {
            text.push_str(word);
        }
    }
    text
}

const BASIC_REDIRECT: u64 = xdp::BASIC | xdp::REDIRECT;

/// Asks for what was named, and gives it back at once.
fn netdevs(config: Config, door: Door) -> Vec<Finding> {
    let mut asker = Asker::new(door);
    let mut out = Vec::new();
    for port in config.ports {
        let request = match port.kind {
            Kind::Tap(Tap::Asked(t)) => Request::Tap(t),
            Kind::Xsk(x) => x.bound(1500),
            _ => continue,
        };
        out.push(match asker.ask("asking", &request) {
            Ok(_) => Finding::ok(port.id, "granted, and given back"),
            Err(f) => Finding::bad(Mark::Fail, port.id, format!("{}: {}", f.what, f.why), f.fix),
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_dies_with_af_xdp_is_replaced_where_the_kernel_maps_bound_sockets() {
        assert_eq!(judge_af_xdp(version("6.4.0-1-amd64"), "").mark, Mark::Ok);
        assert_eq!(judge_af_xdp(version("6.18.44"), "").mark, Mark::Ok);
        for old in ["6.1.0-40-amd64", "5.15.0", "6.3.9", "unknown"] {
            let f = judge_af_xdp(version(old), old);
            assert!(f.mark == Mark::Warn && f.text.contains(old) && !f.fix.is_empty(), "{f:?}");
        }
    }

    #[test]
    fn modes_are_named_by_their_bits() {
        assert_eq!(modes(0), "XDP: skb");
        assert_eq!(modes(1), "XDP: skb");
        assert_eq!(modes(3), "XDP: native, skb");
        assert_eq!(modes(127), "XDP: native, skb, zero-copy, multi-buffer");
    }

    #[test]
    fn a_helper_that_is_not_there_is_a_failure_with_a_fix() {
        let f = helper(&Door::Socket("/nonexistent/s".into()));
        assert_eq!(f.mark, Mark::Fail);
        assert!(!f.fix.is_empty());
    }

    #[test]
    fn a_dataplane_that_says_nothing_is_a_failure() {
        let f = sandbox(&Program { path: "/bin/true".into(), user: None });
        assert_eq!(f.mark, Mark::Fail, "{f:?}");
    }
}
