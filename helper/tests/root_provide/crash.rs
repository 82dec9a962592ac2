//! Killed at any moment, the helper leaves nothing.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::process::{Command, Stdio};
use std::time::Duration;

use netreeve_helper::provide::Provider;
use netreeve_shared::request::{L2tpRequest, ListenRequest, Request};

use crate::support::*;
use crate::xsk::{detaches, request};

const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn everything() -> [Request; 8] {
    let pinned = netreeve_shared::request::XskRequest { interface: name("w0"), ..request() };
    [
        Request::Tap(in_bridge("br0", false, true)),
        Request::Tap(in_bridge("br9", true, false)),
        Request::Xsk(request()),
        Request::Activate(1),
        Request::XskPinned(pinned),
        Request::L2tp(L2tpRequest { src: HERE, dst: HERE, session: 1 }),
        Request::Listen(ListenRequest { udp: false, address: HERE, port: 1 }),
        Request::Listen(ListenRequest { udp: true, address: HERE, port: 1 }),
    ]
}

/// Not a test of its own: takes everything there is, says so, and waits to be killed.
#[test]
#[ignore = "the kill tests start it"]
fn child() {
    let (mut provider, mut kept) = (Provider::default(), Vec::new());
    for asked in everything() {
        kept.extend(provider.provide(&asked, UID, &LIMITS).unwrap().1);
    }
    println!("everything");
    std::thread::sleep(Duration::from_secs(60));
}

/// Not a test of its own: asks for everything, whatever fails, and looks at what each failure leaves.
#[test]
#[ignore = "the fault tests start it under strace"]
fn stubborn() {
    // Without a child process: strace would inject its fault there as well.
    let names = || {
        let all = nix::net::if_::if_nameindex().ok()?;
        let mut names: Vec<_> = all.iter().map(|i| i.name().to_owned()).collect();
        names.sort();
        Some(names)
    };
    println!("begun");
    let (mut provider, mut kept, force) = (Provider::default(), Vec::new(), caps::CapSet::Effective);
    let in_force = caps::read(None, force).ok();
    for asked in everything() {
        let before = names();
        match provider.provide(&asked, UID, &LIMITS) {
            Ok((_, fds)) => kept.extend(fds),
            // A fault may hit the looking, too; then there is nothing to compare.
            Err(why) => assert!(before.is_none() || names().is_none_or(|now| Some(now) == before), "{why:?}"),
        }
        let now = caps::read(None, force).ok();
        assert!(in_force.is_none() || now.is_none() || now == in_force, "a capability stayed in force");
    }
    println!("done");
}

fn start() -> std::process::Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "crash::child", "--ignored", "--nocapture"]);
    command.stdout(Stdio::piped()).spawn().unwrap()
}

fn kill(mut child: std::process::Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

fn place() {
    namespace();
    for pair in ["v0 type veth peer name v1", "w0 type veth peer name w1", "br0 type bridge"] {
        ip(&format!("link add {pair}"));
    }
}

fn nothing_is_left(after: &str) {
    assert!(detaches("v0") && detaches("w0"), "{after}: the programs are gone");
    // Made on request, this one stays once it served.
    let (_, _) = try_ip("link del br9");
    only(&["br0", "v0", "v1", "w0", "w1"]);
    let free = || TcpListener::bind((HERE, 1)).is_ok() && UdpSocket::bind((HERE, 1)).is_ok();
    assert!(free(), "{after}: the ports are free");
    let raw = std::fs::read_to_string("/proc/thread-self/net/raw").unwrap();
    assert_eq!(raw.lines().count(), 1, "{after}: {raw}");
}

#[test]
fn a_kill_with_everything_granted_leaves_nothing() {
    place();
    let mut child = start();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|l| l.unwrap().contains("everything")));
    assert!(interfaces().iter().any(|n| n.starts_with("nv")) && !detaches_now("v0") && !detaches_now("w0"));
    kill(child);
    nothing_is_left("all granted");
}

#[test]
fn a_kill_at_any_moment_leaves_nothing() {
    place();
    for ms in 0..40 {
        let child = start();
        std::thread::sleep(Duration::from_millis(ms * 3));
        kill(child);
        nothing_is_left(&format!("after {} ms", ms * 3));
    }
    // A bridge cannot die with a descriptor: if a kill came between making and using it, the next request cleans up.
    let (_grant, fds) = tap(in_bridge("br8", true, false)).unwrap();
    drop(fds);
    let provisional = interfaces().iter().any(|n| show(n)["group"] == "1853095937");
    assert!(!provisional);
}

fn detaches_now(interface: &str) -> bool {
    show(interface)["xdp"]["prog"]["id"].is_null()
}

/// Runs [`stubborn`] with one fault, at the `n`th call of its kind in any thread. None: there is no such call. Else what
/// it printed.
fn with_fault(call: &str, fault: &str, n: u32) -> Option<String> {
    let trace = std::env::temp_dir().join(format!("nt-provide-{fault}-{}", std::process::id()));
    let mut command = Command::new("strace");
    command.arg("-f").arg("-o").arg(&trace);
    command.arg("-e").arg(format!("trace={call}")).arg("-e").arg(format!("inject={call}:{fault}:when={n}"));
    command.arg(std::env::current_exe().unwrap());
    command.args(["--exact", "crash::stubborn", "--ignored", "--nocapture"]);
    let out = command.output().expect("strace is needed: apt install strace");
    let seen = std::fs::read_to_string(&trace).unwrap();
    std::fs::remove_file(&trace).unwrap();
    let hit = seen.contains("INJECTED") || seen.contains("killed by SIGKILL");
    hit.then(|| String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr))
}

/// The work's calls, each with whether a fault of it may end the process: Rust ends it without memory or random
/// numbers, and a capability that cannot be put out of force must end it.
const CALLS: [(&str, bool); 19] = [
    ("openat", false),
    ("ioctl", false),
    ("socket", false),
    ("bind", false),
    ("connect", false),
    ("listen", false),
    ("getsockname", false),
    ("setsockopt", false),
    ("getsockopt", false),
    ("sendto", false),
    ("recvfrom", false),
    ("bpf", false),
    ("memfd_create", false),
    ("ftruncate", false),
    ("fcntl", false),
    ("dup3", false),
    ("getrandom", true),
    ("capset", true),
    ("mmap", true),
];

#[test]
fn a_kill_at_each_system_call_leaves_nothing() {
    place();
    let mut kills = 0;
    // A kill at an answer is a kill at the next question.
    for (call, _) in CALLS.iter().filter(|(call, _)| !matches!(*call, "recvfrom" | "mmap")) {
        for n in 1.. {
            let Some(text) = with_fault(call, "signal=KILL", n) else { break };
            kills += u32::from(text.contains("begun"));
            nothing_is_left(&format!("killed at {call} {n}"));
        }
    }
    assert!(kills > 100, "{kills} kills");
}

#[test]
fn an_error_of_each_system_call_is_a_refusal_and_leaves_nothing() {
    place();
    let mut errors = 0;
    for (call, may_end) in CALLS {
        for n in 1.. {
            let Some(text) = with_fault(call, "error=ENOMEM", n) else { break };
            errors += u32::from(text.contains("done"));
            assert!(may_end || text.contains("done") || !text.contains("begun"), "{call} {n}: {text}");
            nothing_is_left(&format!("failed at {call} {n}"));
        }
    }
    assert!(errors > 100, "{errors} errors");
}
